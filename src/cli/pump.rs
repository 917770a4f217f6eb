//! Moves bodies from a source to a publisher until all are confirmed.
//!
//! Three threads, so that none waits for another: one reads blocks of lines (`source.rs`), one
//! publishes them, and the main one shows progress and ends a standstill.

use crate::base::units::show_duration;
use crate::cli::broker::BrokerArgs;
use crate::cli::clock::now;
use crate::cli::failure::{Exit, Failure, Outcome};
use crate::cli::fields::Fields;
use crate::cli::lines::LineError;
use crate::cli::output::Output;
use crate::cli::progress::{Blockage, Progress};
use crate::cli::source::{Block, Pace, Source};
use crate::cli::table::thousands;
use crate::client::{ClientError, Message, PublishCounts, Publisher, PublisherState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often progress is shown and a standstill looked for.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// What the client has beyond the time of an outage to say itself that it gave up.
const OUTAGE_SLACK: Duration = Duration::from_secs(5);

/// What becomes of the bodies.
#[derive(Clone, Debug)]
pub struct Shaping {
    /// For each message. Checked: a message takes them.
    pub headers: Vec<(String, String)>,
    /// Messages per second.
    pub rate: Option<f64>,
}

/// How long nothing may be confirmed.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// While the broker is away.
    pub outage: Duration,
    /// While the queue takes nothing; `None`: as long as it takes.
    pub blocked: Option<Duration>,
}

/// What the threads of one publish share.
pub struct Pump {
    publisher: Publisher,
    shaping: Shaping,
    /// Body bytes given to the publisher.
    bytes: AtomicU64,
    /// How far the source is with the publisher.
    steps: AtomicU64,
}

/// Why publishing ended early.
enum Fault {
    /// Reading failed.
    Line(LineError),
    /// Publishing failed; with the number of the message that was not taken, from 1.
    Client(Box<ClientError>, Option<u64>),
}

impl Pump {
    /// Publishes by `publisher`.
    pub fn new(publisher: Publisher, shaping: Shaping) -> Pump {
        Pump { publisher, shaping, bytes: AtomicU64::new(0), steps: AtomicU64::new(0) }
    }

    /// Publishes all of `source` and tells what became of it.
    ///
    /// # Errors
    /// If not every message was confirmed.
    pub fn run(
        self,
        source: Source,
        broker: &BrokerArgs,
        progress: &Progress,
        patience: Patience,
    ) -> Outcome {
        let pump = Arc::new(self);
        let (sender, done) = sync_channel(1);
        let worker = Arc::clone(&pump);
        std::thread::spawn(move || {
            // Nobody listens any more once the watch has given up.
            let _ = sender.send(worker.publish_all(source));
        });
        let result = pump.watch(&done, broker, progress, patience);
        pump.conclude(result, broker, progress)
    }

    fn publish_all(&self, source: Source) -> Result<(), Fault> {
        let mut pace = self.shaping.rate.map(Pace::new);
        let mut fault = None;
        for block in source.blocks() {
            let published = match block {
                Ok(block) => self.publish_block(&block, pace.as_mut()),
                Err(error) => Err(Fault::Line(error)),
            };
            if let Err(error) = published {
                fault = Some(error);
                break;
            }
            // Flushing tells of the first failure; nothing more goes out before it is told.
            if self.publisher.counts().failed > 0 {
                break;
            }
        }
        // What was published before a fault is still to be confirmed, and counted.
        let flushed = self.publisher.flush();
        fault.map_or(Ok(()), Err)?;
        flushed.map_err(|error| Fault::Client(Box::new(error), None))
    }

    fn publish_block(&self, block: &Block, pace: Option<&mut Pace>) -> Result<(), Fault> {
        let bodies = block.bodies();
        let body_bytes: usize = bodies.iter().map(|body| body.len()).sum();
        let published = match pace {
            None if self.shaping.headers.is_empty() => {
                self.publisher.publish_many(bodies).map(drop)
            }
            None => {
                self.publisher.publish_many(bodies.iter().map(|body| self.message(body))).map(drop)
            }
            Some(pace) => bodies.iter().try_for_each(|body| {
                pace.wait();
                self.publisher.publish(self.message(body)).map(drop)
            }),
        };
        self.bytes.fetch_add(body_bytes as u64, Ordering::Relaxed);
        self.steps.fetch_add(block.steps(), Ordering::Relaxed);
        published.map_err(|error| {
            let number = self.publisher.counts().published + 1;
            Fault::Client(Box::new(error), Some(number))
        })
    }

    fn message<'b>(&self, body: &'b [u8]) -> Message<'b> {
        self.shaping.headers.iter().fold(Message::new(body), |message, (key, value)| {
            message.header(key, value).expect("the headers were checked when they were read")
        })
    }

    /// Waits for the worker; shows progress; gives up after a standstill.
    fn watch(
        &self,
        done: &Receiver<Result<(), Fault>>,
        broker: &BrokerArgs,
        progress: &Progress,
        patience: Patience,
    ) -> Result<(), Failure> {
        let mut standstill = Standstill { answered: 0, since: now() };
        let mut blockage = Blockage::default();
        loop {
            match done.recv_timeout(WATCH_INTERVAL) {
                Ok(result) => return result.map_err(|fault| self.failure(fault, broker)),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(Exit::Failed, "bug", "the publishing thread ended"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            // While the worker waits for a line nobody else takes in confirms, or sees that the
            // broker has gone. What ended the publisher is in its state.
            let _ = self.publisher.poll();
            let counts = self.publisher.counts();
            progress.at(self.steps.load(Ordering::Relaxed), counts.confirmed);
            let (time, state) = (now(), self.publisher.state());
            let stood_for = standstill.length(&counts, time);
            let blocked = match &state {
                PublisherState::Blocked { reason } => Some(reason.as_str()),
                _ => None,
            };
            if let Some((code, text)) = blockage.look(blocked, time) {
                progress.notice(code, &text);
            }
            let is_blocked = blocked.is_some();
            let (limit, text) = match state {
                // The worker may be waiting for a line that does not come.
                PublisherState::Failed(error) => {
                    return Err(self.failure(Fault::Client(Box::new(error), None), broker));
                }
                PublisherState::Blocked { reason } => {
                    (patience.blocked, format!("the queue took nothing ({reason})"))
                }
                // The client gives up by itself and knows why; this is for when it does not.
                _ => (
                    Some(patience.outage.saturating_add(OUTAGE_SLACK)),
                    format!("the broker at {} confirmed nothing", broker.server),
                ),
            };
            if limit.is_some_and(|limit| stood_for >= limit) {
                let text = format!("{text} for {}", show_duration(stood_for));
                let failure = Failure::new(Exit::TimedOut, "timed_out", text);
                return Err(match is_blocked {
                    true => failure.hint("consume, or make room"),
                    false => failure,
                });
            }
        }
    }

    fn failure(&self, fault: Fault, broker: &BrokerArgs) -> Failure {
        match fault {
            Fault::Line(error) => Failure::new(Exit::Failed, "stdin", error.to_string()),
            Fault::Client(error, number) => {
                let about_message = matches!(*error, ClientError::MessageTooLarge { .. });
                let mut failure = broker.queue_failure(self.publisher.queue(), *error);
                if let (true, Some(number)) = (about_message, number) {
                    failure.text = format!("message {}: {}", thousands(number), failure.text);
                }
                failure
            }
        }
    }

    fn conclude(
        &self,
        result: Result<(), Failure>,
        broker: &BrokerArgs,
        progress: &Progress,
    ) -> Outcome {
        let counts = self.publisher.counts();
        progress.end("published", counts.confirmed);
        if counts.dropped > 0 {
            let text = format!(
                "{} of the messages were dropped: the queue was full and drops the newest",
                thousands(counts.dropped)
            );
            progress.notice("dropped", &text);
        }
        let mut fields = Fields::default();
        fields.push("queue", self.publisher.queue());
        fields.extend([
            ("published", counts.published),
            ("confirmed", counts.confirmed),
            ("duplicates", counts.duplicates),
            ("dropped", counts.dropped),
            ("failed", counts.failed),
            ("bytes", self.bytes.load(Ordering::Relaxed)),
            ("elapsed_us", u64::try_from(progress.elapsed().as_micros()).unwrap_or(u64::MAX)),
        ]);
        let printed = Output::new(broker.json).finish(&fields, "");
        result.map_err(|mut failure| {
            let (confirmed, published) = (thousands(counts.confirmed), thousands(counts.published));
            failure.text += &format!(" ({confirmed} of {published} messages are confirmed)");
            failure
        })?;
        printed
    }
}

/// How long nothing has been answered although something waits for an answer.
struct Standstill {
    answered: u64,
    since: Instant,
}

impl Standstill {
    fn length(&mut self, counts: &PublishCounts, time: Instant) -> Duration {
        let answered = counts.confirmed + counts.failed;
        if answered != self.answered || answered == counts.published {
            *self = Standstill { answered, since: time };
        }
        time.duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_when_something_waits_and_nothing_comes() {
        let begun = now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let counts = |published, confirmed| PublishCounts {
            published,
            confirmed,
            ..PublishCounts::default()
        };
        let mut standstill = Standstill { answered: 0, since: begun };
        assert_eq!(standstill.length(&counts(0, 0), at(5)).as_secs(), 0, "nothing to wait for");
        assert_eq!(standstill.length(&counts(9, 0), at(7)).as_secs(), 2);
        assert_eq!(standstill.length(&counts(9, 4), at(8)).as_secs(), 0, "something came");
        assert_eq!(standstill.length(&counts(9, 4), at(18)).as_secs(), 10);
        assert_eq!(standstill.length(&counts(9, 9), at(60)).as_secs(), 0, "all came");
    }
}
