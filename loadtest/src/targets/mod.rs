//! What can be measured, behind one trait: the scenarios do the same work whatever the target.

pub mod asynchronous;
pub mod blocking;
pub mod echo;
pub mod forebay;
pub mod nats;
pub mod peer;
pub mod redis;
pub mod relay;
pub mod resend;
pub mod text;
pub mod wire;

use crate::args::ServeArgs;
use clap::ValueEnum;
use serde::Serialize;
use std::io;
use std::net::TcpListener;
use std::os::fd::RawFd;
use std::time::Duration;

/// A program to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The broker, through the blocking client of this crate.
    Forebay,
    /// In, to a ring in memory, out to the consumers in turn, acked; no queue logic.
    BaselineRelay,
    /// Sends each message back to where it came from, or only confirms it.
    BaselineEcho,
    /// A stream of Redis, acked by a consumer group.
    RedisStream,
    /// A list of Redis: taken is gone.
    RedisList,
    /// NATS core: nothing is kept, confirmed or acked.
    Nats,
    /// Raw writes to the disk; no messages.
    BaselineDiskWrite,
    /// Raw reads from the disk; no messages.
    BaselineDiskRead,
    /// Raw writes that the device has kept when they end; no messages.
    BaselineDiskSync,
}

impl Target {
    /// The name that commands and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Target::Forebay => "forebay",
            Target::BaselineRelay => "baseline-relay",
            Target::BaselineEcho => "baseline-echo",
            Target::RedisStream => "redis-stream",
            Target::RedisList => "redis-list",
            Target::Nats => "nats",
            Target::BaselineDiskWrite => "baseline-disk-write",
            Target::BaselineDiskRead => "baseline-disk-read",
            Target::BaselineDiskSync => "baseline-disk-sync",
        }
    }

    /// Whether it is the disk and no program.
    pub fn is_disk(self) -> bool {
        use Target::{BaselineDiskRead, BaselineDiskSync, BaselineDiskWrite};
        matches!(self, BaselineDiskWrite | BaselineDiskRead | BaselineDiskSync)
    }
}

/// How many clients a run has, and what they may have under way.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Producers, each with a connection of its own.
    pub producers: usize,
    /// Consumers, each with a connection of its own. 0: publishes are only confirmed.
    pub consumers: usize,
    /// Messages that one producer may have unconfirmed.
    pub window: usize,
    /// Size of a body.
    pub body_bytes: usize,
    /// Queues, each with the producer and the consumer of its number where there are several.
    pub queues: usize,
    /// Subscriptions of the queue, each with the consumer of its number where there are several.
    pub subscriptions: usize,
    /// Messages that consumers may have delivered and unacked; brokers that ask for it are told.
    pub credit: usize,
    /// Messages that may wait in the target; those that must be told keep so many.
    pub held: u64,
    /// Whether the queues of a Forebay are durable.
    pub durable: bool,
}

/// One thread's connections to a target.
pub trait Wire {
    /// Messages that `producer` may publish now.
    fn room(&self, producer: usize) -> usize;

    /// Publishes `count` messages, at most the room, as one batch; `fill` is given each body in
    /// turn. They leave with the next [`Wire::turn`], at the latest.
    ///
    /// # Errors
    /// If the target refused them or the connection failed.
    fn publish(
        &mut self,
        producer: usize,
        count: usize,
        fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()>;

    /// Sends what waits, then takes in what has come, waiting for something at most `wait`. Each
    /// message is shown to `take` with the number of its consumer, and acked after.
    ///
    /// # Errors
    /// If the connection failed or the target said something unexpected.
    fn turn(&mut self, wait: Duration, take: impl FnMut(usize, &[u8])) -> io::Result<()>;

    /// Messages of all producers that the target has confirmed.
    fn confirmed(&self) -> u64;

    /// Readable while a [`Wire::turn`] has something to do; `None` if there is no such thing.
    fn poll_fd(&self) -> Option<RawFd> {
        None
    }
}

/// Serves a baseline on a free port of 127.0.0.1 and says where.
///
/// # Errors
/// If the system refuses the sockets.
pub fn serve(args: &ServeArgs) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let lifetime = Duration::from_secs(args.lifetime_s);
    crate::sys::raise_open_files();
    match args.target {
        Target::BaselineRelay => {
            let mut relay = relay::Relay::new(listener, args.ring_bytes)?;
            println!("baseline-relay ready on {address}");
            relay.run(lifetime, args.busy_poll)
        }
        Target::BaselineEcho => {
            let mut echo = echo::Echo::new(listener)?;
            println!("baseline-echo ready on {address}");
            echo.run(lifetime, args.busy_poll)
        }
        other => {
            let text = format!("{} is served by its own program", other.name());
            Err(io::Error::other(text))
        }
    }
}
