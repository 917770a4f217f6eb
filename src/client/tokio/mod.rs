//! The driver for programs that use tokio: the same session, one task per connection.
//!
//! - [`Publisher`]: `publish` waits for room and gives a [`Confirm`], a future
//! - [`Consumer`]: a stream of [`Message`]s of one or several queues, acked on the message; or
//!   [`Consumer::for_each_concurrent`], which acks, nacks and bounds by itself
//!
//! ```no_run
//! use forebay::client::tokio::{Consumer, Publisher};
//! use forebay::client::{ConnectOptions, ConsumerOptions, PublisherOptions};
//!
//! # async fn example() -> Result<(), forebay::client::ClientError> {
//! let broker = ConnectOptions::new("127.0.0.1:7440");
//! let publisher = Publisher::open(&broker, "jobs", PublisherOptions::default()).await?;
//! publisher.publish("hello").await?.await?;
//!
//! let mut consumer = Consumer::open(&broker, "jobs", ConsumerOptions::default()).await?;
//! while let Some(message) = consumer.recv().await? {
//!     println!("{}", String::from_utf8_lossy(message.body()));
//!     message.ack();
//! }
//! # Ok(())
//! # }
//! ```
//!
//! All futures here are safe to cancel: a publish that was cancelled while it waited for room was
//! not taken, a receive that was cancelled has taken nothing. The calls do what they can at once,
//! in the caller's task; the connection's own task waits for the socket and for time.

mod consumer;
mod io;
mod lane;
mod message;
mod publisher;
mod workers;

pub use consumer::{Consumer, Stopper};
pub use lane::Source;
pub use message::Message;
pub use publisher::{Confirm, Publisher};
