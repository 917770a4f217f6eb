//! L3: the client. A sans-IO session that knows the protocol, and drivers over it: blocking ones
//! here, and with the feature `tokio` those in `client::tokio`.
//!
//! - [`Connection`]: ping, queues, stats: one request, one answer
//! - [`Publisher`]: gathers messages into batches by itself; a [`Confirm`] per publish
//! - [`Consumer`]: messages one by one or by the batch, acked on the message
//!
//! All three reconnect by themselves: a publisher sends again what was not confirmed, and the
//! broker knows it by producer id and sequence; a consumer opens again, and acks of what was
//! delivered before are dropped, for the broker has given those messages back to the queue. Each
//! connection is handed to the shard of the broker that has the queue.
//!
//! A message that is delivered is leased: it is to be acked, or nacked (it failed and comes again
//! after a back-off), given back (at once, and no failure) or rejected (dead-lettered) before its
//! lease ends, or the lease is to be extended. See [`Delivery`] and [`SubscriptionOptions`].
//!
//! ```no_run
//! use forebay::client::{ConnectOptions, Connection, Consumer, ConsumerOptions};
//! use forebay::client::{Publisher, PublisherOptions, QueueOptions};
//! use std::time::Duration;
//!
//! let broker = ConnectOptions::new("127.0.0.1:7440");
//! Connection::open(&broker)?.queue_create("jobs", &QueueOptions::default())?;
//!
//! let publisher = Publisher::open(&broker, "jobs", PublisherOptions::default())?;
//! publisher.publish("hello")?.wait()?;
//!
//! let mut consumer = Consumer::open(&broker, "jobs", ConsumerOptions::default())?;
//! if let Some(message) = consumer.recv(Some(Duration::from_secs(1)))? {
//!     println!("{}", String::from_utf8_lossy(message.body()));
//!     message.ack();
//! }
//! consumer.close()?;
//! # Ok::<(), forebay::client::ClientError>(())
//! ```

mod blocking;
mod counts;
mod driver;
mod error;
mod message;
mod options;
pub mod session;
mod subscription;
#[cfg(feature = "tokio")]
pub mod tokio;

pub use crate::protocol::error::ErrorCode;
pub use crate::protocol::hot::Reached;
pub use crate::protocol::wire::{
    ConfirmAt, OnFull, PeekedMessageT as PeekedMessage, QueueCountersT as QueueCounters,
    QueueDescriptionT as QueueDescription, Start, StatsT as Stats,
    SubscriptionDescriptionT as SubscriptionDescription, TrimmedT as Trimmed,
};
pub use blocking::connection::{Connection, Peeked, Removed};
pub use blocking::consumer::Consumer;
pub use blocking::delivery::{Batch, Delivery, DeliveryId, Iter, OwnedDelivery};
pub use blocking::publisher::{Confirm, Publisher};
pub use blocking::subscriptions::{Redrive, Redriven};
pub use counts::{AckCount, ConsumeCounts, PublishCounts, PublisherState};
pub use error::{BrokerError, ClientError, LostReason};
pub use message::{Message, Properties};
pub use options::{
    ConnectOptions, ConnectionEvent, ConsumerOptions, DEFAULT_SERVER, EventSink, MissingQueue,
    PublisherOptions, QueueChange, QueueOptions, ReconnectPolicy,
};
pub use subscription::{Backoff, BackoffError, BackoffRule, MaxAttempts, SubscriptionOptions};
