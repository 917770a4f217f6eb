//! Forebay through the blocking client of its crate: publishers and consumers as any program has
//! them, driven by one thread, which waits for all of them in a poller of its own.

use crate::sys::{Epoll, Ready};
use crate::targets::{Shape, Wire};
use forebay::client::{
    ClientError, ConnectOptions, Consumer, ConsumerOptions, Publisher, PublisherOptions,
    ReconnectPolicy,
};
use forebay::limits::{BATCH_RECORDS_BYTES_MAX, CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX};
use forebay::limits::{MIB, RECORD_HEADER_BYTES};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::Duration;

/// Clients of one thread.
pub struct BlockingWire {
    epoll: Epoll,
    ready: Vec<Ready>,
    /// Tokens are consumers first, then publishers.
    consumers: Vec<Consumer>,
    publishers: Vec<Producing>,
    /// Consumers with acks to send: they leave after what was published meanwhile.
    acking: Vec<usize>,
    /// Bodies of one publish, one behind the other.
    bodies: Vec<u8>,
    body_bytes: usize,
    window: u64,
}

struct Producing {
    publisher: Publisher,
    sent: u64,
    confirmed: u64,
}

impl BlockingWire {
    /// Connects producers and consumers of `queue`.
    ///
    /// # Errors
    /// If a connection cannot be made or the broker refuses something.
    pub fn connect(
        server: SocketAddr,
        queue: &str,
        shape: Shape,
        busy_poll: bool,
    ) -> io::Result<BlockingWire> {
        let connect = ConnectOptions {
            token: std::env::var("FOREBAY_TOKEN").ok(),
            // A run with a lost connection measures nothing.
            reconnect: ReconnectPolicy::never(),
            busy_poll,
            ..ConnectOptions::new(server.to_string())
        };
        let epoll = Epoll::new()?;
        let mut wire = BlockingWire {
            epoll,
            ready: Vec::new(),
            consumers: Vec::new(),
            publishers: Vec::new(),
            acking: Vec::new(),
            bodies: Vec::new(),
            body_bytes: shape.body_bytes,
            window: shape.window as u64,
        };
        for _ in 0..shape.consumers {
            let consumer =
                Consumer::open(&connect, queue, consumer_options(shape)).map_err(fault)?;
            wire.watch(consumer.raw_fd())?;
            wire.consumers.push(consumer);
        }
        for _ in 0..shape.producers {
            let publisher =
                Publisher::open(&connect, queue, publisher_options(shape)).map_err(fault)?;
            wire.watch(publisher.raw_fd())?;
            wire.publishers.push(Producing { publisher, sent: 0, confirmed: 0 });
        }
        Ok(wire)
    }

    fn watch(&self, fd: Option<RawFd>) -> io::Result<()> {
        let fd = fd.ok_or(io::ErrorKind::NotConnected)?;
        self.epoll.add(fd, (self.consumers.len() + self.publishers.len()) as u64, false)
    }
}

pub(super) fn consumer_options(shape: Shape) -> ConsumerOptions {
    let credit = shape.credit.clamp(256, CREDIT_MESSAGES_MAX as usize);
    let bytes = credit as u64 * (RECORD_HEADER_BYTES + shape.body_bytes) as u64;
    ConsumerOptions {
        credit_messages: credit as u32,
        credit_bytes: bytes.clamp(4 * MIB as u64, CREDIT_BYTES_MAX),
        ..ConsumerOptions::default()
    }
}

pub(super) fn publisher_options(shape: Shape) -> PublisherOptions {
    let each = RECORD_HEADER_BYTES + shape.body_bytes;
    PublisherOptions {
        // A call of ours is a batch, which leaves at once.
        batch_bytes: BATCH_RECORDS_BYTES_MAX,
        gather: Duration::ZERO,
        // The window is counted here; the client's own never makes a call wait.
        outstanding_bytes_max: (2 * shape.window * each).max(8 * MIB),
        ..PublisherOptions::default()
    }
}

pub(crate) fn fault(error: ClientError) -> io::Error {
    io::Error::other(error)
}

impl Producing {
    fn count(&mut self) -> io::Result<()> {
        let counts = self.publisher.counts();
        if counts.failed + counts.duplicates + counts.dropped > 0 {
            return Err(io::Error::other(format!("publishes went wrong: {counts:?}")));
        }
        self.confirmed = counts.confirmed;
        Ok(())
    }
}

impl Wire for BlockingWire {
    #[inline]
    fn room(&self, producer: usize) -> usize {
        let Producing { sent, confirmed, .. } = self.publishers[producer];
        (self.window - (sent - confirmed)) as usize
    }

    fn publish(
        &mut self,
        producer: usize,
        count: usize,
        fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        self.bodies.resize(count * self.body_bytes, 0);
        self.bodies.chunks_exact_mut(self.body_bytes).for_each(fill);
        let producing = &mut self.publishers[producer];
        let bodies = self.bodies.chunks_exact(self.body_bytes);
        // Its counts tell what became of it.
        let _ = producing.publisher.publish_many(bodies).map_err(fault)?;
        producing.sent += count as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
        for consumer in self.acking.drain(..) {
            self.consumers[consumer].send().map_err(fault)?;
        }
        self.ready.clear();
        self.epoll.wait(wait, &mut self.ready)?;
        for event in &self.ready {
            let index = event.token as usize;
            if let Some(consumer) = self.consumers.get_mut(index) {
                let batch = consumer.recv_batch(Some(Duration::ZERO)).map_err(fault)?;
                batch.iter().for_each(|delivery| take(index, delivery.body()));
                batch.ack();
                self.acking.push(index);
            } else {
                let producing = &mut self.publishers[index - self.consumers.len()];
                producing.publisher.poll().map_err(fault)?;
            }
        }
        // Of all: the client's own threads may have read what was confirmed.
        let waiting = self.publishers.iter_mut().filter(|each| each.sent > each.confirmed);
        waiting.into_iter().try_for_each(Producing::count)
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.epoll.fd())
    }

    fn confirmed(&self) -> u64 {
        self.publishers.iter().map(|producing| producing.confirmed).sum()
    }
}
