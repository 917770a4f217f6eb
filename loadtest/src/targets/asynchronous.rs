//! Forebay through the tokio client of its crate: publishers and consumers as any program has
//! them, on a runtime of one thread.

use crate::targets::blocking::{consumer_options, fault, publisher_options};
use crate::targets::{Shape, Wire};
use forebay::client::tokio::{Confirm, Consumer, Message, Publisher};
use forebay::client::{ConnectOptions, ReconnectPolicy};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Messages taken at once from one consumer.
const TAKE_MAX: usize = 4096;

/// Clients of one thread.
pub struct TokioWire {
    runtime: Runtime,
    clients: Clients,
    /// Bodies of one publish, one behind the other.
    bodies: Vec<u8>,
    body_bytes: usize,
    window: u64,
}

struct Clients {
    consumers: Vec<Consumer>,
    publishers: Vec<Producing>,
    /// What came in this turn, and of which consumer.
    came: Vec<(usize, Vec<Message>)>,
}

struct Producing {
    publisher: Publisher,
    /// In the order of their publishes.
    confirms: VecDeque<Confirm>,
    sent: u64,
    confirmed: u64,
}

impl TokioWire {
    /// Connects producers and consumers of `queue`.
    ///
    /// # Errors
    /// If a connection cannot be made or the broker refuses something.
    pub fn connect(server: SocketAddr, queue: &str, shape: Shape) -> io::Result<TokioWire> {
        let connect = ConnectOptions {
            token: std::env::var("FOREBAY_TOKEN").ok(),
            // A run with a lost connection measures nothing.
            reconnect: ReconnectPolicy::never(),
            ..ConnectOptions::new(server.to_string())
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let clients = runtime.block_on(async {
            let (mut consumers, mut publishers) = (Vec::new(), Vec::new());
            for _ in 0..shape.consumers {
                let options = consumer_options(shape);
                consumers.push(Consumer::open(&connect, queue, options).await.map_err(fault)?);
            }
            for _ in 0..shape.producers {
                let options = publisher_options(shape);
                let publisher = Publisher::open(&connect, queue, options).await.map_err(fault)?;
                let confirms = VecDeque::new();
                publishers.push(Producing { publisher, confirms, sent: 0, confirmed: 0 });
            }
            Ok::<Clients, io::Error>(Clients { consumers, publishers, came: Vec::new() })
        })?;
        Ok(TokioWire {
            runtime,
            clients,
            bodies: Vec::new(),
            body_bytes: shape.body_bytes,
            window: shape.window as u64,
        })
    }
}

impl Clients {
    /// Takes in what is there; ready if that was something.
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        for (index, consumer) in self.consumers.iter_mut().enumerate() {
            match pin!(consumer.recv_batch(TAKE_MAX)).poll(task) {
                Poll::Ready(Ok(batch)) => self.came.push((index, batch)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(fault(error))),
                Poll::Pending => {}
            }
        }
        let mut confirmed = false;
        for producing in &mut self.publishers {
            while let Some(confirm) = producing.confirms.front_mut() {
                match pin!(confirm).poll(task) {
                    Poll::Ready(Ok(_)) => confirmed = true,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(fault(error))),
                    Poll::Pending => break,
                }
                producing.confirms.pop_front();
            }
        }
        if self.came.is_empty() && !confirmed { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
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

impl Wire for TokioWire {
    #[inline]
    fn room(&self, producer: usize) -> usize {
        let Producing { sent, confirmed, .. } = self.clients.publishers[producer];
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
        let producing = &mut self.clients.publishers[producer];
        let bodies = self.bodies.chunks_exact(self.body_bytes);
        let confirm = self.runtime.block_on(producing.publisher.publish_many(bodies));
        producing.confirms.push_back(confirm.map_err(fault)?);
        producing.sent += count as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
        let clients = &mut self.clients;
        self.runtime.block_on(async {
            if wait.is_zero() {
                // The clients' own tasks have their turn.
                tokio::task::yield_now().await;
                return poll_fn(|task| match clients.poll(task) {
                    Poll::Ready(result) => Poll::Ready(result),
                    Poll::Pending => Poll::Ready(Ok(())),
                })
                .await;
            }
            let something = poll_fn(|task| clients.poll(task));
            tokio::time::timeout(wait, something).await.unwrap_or(Ok(()))
        })?;
        for (index, batch) in clients.came.drain(..) {
            for message in batch {
                take(index, message.body());
                message.ack();
            }
        }
        let waiting = clients.publishers.iter_mut().filter(|each| each.sent > each.confirmed);
        waiting.into_iter().try_for_each(Producing::count)
    }

    fn confirmed(&self) -> u64 {
        self.clients.publishers.iter().map(|producing| producing.confirmed).sum()
    }
}
