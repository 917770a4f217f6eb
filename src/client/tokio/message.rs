//! A received message that owns its bytes, and what its holder has to say about it.

use super::lane::Source;
use crate::client::session::consumer::{accepted_us, sequence};
use crate::client::session::{Large, Run};
use crate::client::subscription::{delay_ms, lease_ms};
use crate::client::{ClientError, Properties};
use crate::format::record::Records;
use crate::protocol::hot::{DELIVER_REDELIVERED, DeliverHeader, NackKind};
use ::tokio::sync::Notify;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A message. It shares the memory of those that were delivered with it (256 KiB at most), which is
/// free when the last of them is dropped.
///
/// **Dropped without an answer it goes back to the queue at once** (as by
/// [`give_back`](Message::give_back)), so that nothing is lost and nothing waits for its lease to
/// end. While it is held, its lease is extended by the consumer; see
/// [`ConsumerOptions::extend_for`](crate::client::ConsumerOptions::extend_for).
///
/// An answer is on its way within about a millisecond, with others; none is waited for. See
/// [`Consumer::flush`](super::Consumer::flush).
pub struct Message {
    run: Arc<Delivered>,
    number: u64,
    sequence: u64,
    accepted_us: u64,
    properties: Range<u32>,
    body: Range<u32>,
    answered: bool,
    /// Somebody else answers when this is dropped without an answer.
    receipt: Option<Arc<Receipt>>,
}

/// A run of delivered messages, copied from the connection's buffer.
pub(super) struct Delivered {
    pub(super) answers: Arc<Answers>,
    pub(super) source: Arc<Source>,
    /// Which of the consumer's sources.
    pub(super) feed: usize,
    pub(super) handle: u32,
    pub(super) connection: u32,
    pub(super) header: DeliverHeader,
    bytes: Vec<u8>,
    /// A message that came in fragments: its place, and where its body begins.
    large: Option<(u64, u64, u32)>,
    pub(super) records_bytes: usize,
}

impl Delivered {
    pub(super) fn from_run(
        run: &Run,
        records: &[u8],
        feed: usize,
        source: &Arc<Source>,
        answers: &Arc<Answers>,
    ) -> Delivered {
        Delivered {
            answers: Arc::clone(answers),
            source: Arc::clone(source),
            feed,
            handle: run.handle,
            connection: run.connection,
            header: run.header,
            bytes: records.to_vec(),
            large: None,
            records_bytes: records.len(),
        }
    }

    pub(super) fn from_large(
        large: Large,
        feed: usize,
        source: &Arc<Source>,
        answers: &Arc<Answers>,
    ) -> Delivered {
        let Large { properties: mut bytes, body, .. } = large;
        let place = Some((large.sequence, large.accepted_us, bytes.len() as u32));
        bytes.extend_from_slice(&body);
        Delivered {
            answers: Arc::clone(answers),
            source: Arc::clone(source),
            feed,
            handle: large.handle,
            connection: large.connection,
            header: DeliverHeader { record_count: 1, ..large.header },
            bytes,
            large: place,
            records_bytes: large.records_bytes,
        }
    }

    /// Whether it came by a connection that has ended: then it is the broker's again.
    pub(super) fn is_stale(&self) -> bool {
        self.answers.connection.load(Ordering::Relaxed) != self.connection
    }
}

/// Hands out the messages of a run.
pub(super) struct Cursor {
    pub(super) run: Arc<Delivered>,
    nth: u32,
    offset: usize,
}

impl Cursor {
    pub(super) fn new(run: Arc<Delivered>) -> Cursor {
        Cursor { run, nth: 0, offset: 0 }
    }
}

impl Iterator for Cursor {
    type Item = Message;

    #[inline]
    fn next(&mut self) -> Option<Message> {
        if self.nth == self.run.header.record_count {
            return None;
        }
        let run = &self.run;
        let number = run.header.delivery_id + u64::from(self.nth);
        let (place, properties, body) = if let Some((sequence, at_us, body)) = run.large {
            ((sequence, at_us), 0..body, body..run.bytes.len() as u32)
        } else {
            let mut records = Records::new(&run.bytes[self.offset..]);
            let record = records.next()?;
            let end = run.bytes.len() - records.rest().len();
            let body = end - record.body.len();
            let properties = body - record.properties.len();
            let place =
                (sequence(&run.header, &record.header), accepted_us(&run.header, &record.header));
            self.offset = end;
            (place, properties as u32..body as u32, body as u32..end as u32)
        };
        self.nth += 1;
        Some(Message {
            run: Arc::clone(run),
            number,
            sequence: place.0,
            accepted_us: place.1,
            properties,
            body,
            answered: run.answers.automatic,
            receipt: None,
        })
    }
}

impl Message {
    /// The body.
    #[inline]
    pub fn body(&self) -> &[u8] {
        &self.run.bytes[self.body.start as usize..self.body.end as usize]
    }

    /// The properties, read when asked for.
    pub fn properties(&self) -> Properties<'_> {
        let range = self.properties.start as usize..self.properties.end as usize;
        Properties::new(&self.run.bytes[range])
    }

    /// The queue that it came from.
    pub fn queue(&self) -> &str {
        &self.run.source.queue
    }

    /// The subscription that it came from; empty: `default`.
    pub fn subscription(&self) -> &str {
        &self.run.source.subscription
    }

    /// Its place in the queue: counts up, first in, first out.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the broker took it: microseconds since 1970 UTC.
    pub fn accepted_us(&self) -> u64 {
        self.accepted_us
    }

    /// How often it was delivered, this time included.
    pub fn attempts(&self) -> u16 {
        self.run.header.attempts
    }

    /// Whether it was delivered before, to whomever.
    pub fn redelivered(&self) -> bool {
        self.run.header.flags & DELIVER_REDELIVERED != 0
    }

    /// It is done.
    #[inline]
    pub fn ack(mut self) {
        self.answer(Verb::Ack);
    }

    /// It failed: ready again after `delay`, or as the subscription's back-off says; dead-lettered
    /// when it failed too often. `text` says why, for people, and is cut at 1 KiB.
    ///
    /// # Errors
    /// [`ClientError::Option`] if the delay is over 7 days; it is given back then.
    pub fn nack(mut self, delay: Option<Duration>, text: &str) -> Result<(), ClientError> {
        let delay_ms = delay.map(delay_ms).transpose()?;
        self.answer(Verb::Other(Other::Nack {
            kind: NackKind::Failed,
            delay_ms,
            text: text.into(),
        }));
        Ok(())
    }

    /// Gives it back untried: ready again at once, at its old place; no failure is counted.
    pub fn give_back(mut self) {
        self.answer(Verb::Other(Other::GiveBack));
    }

    /// It can never be done: dead-lettered now. `text` as for [`nack`](Message::nack).
    pub fn reject(mut self, text: &str) {
        let kind = NackKind::Rejected;
        self.answer(Verb::Other(Other::Nack { kind, delay_ms: None, text: text.into() }));
    }

    /// Lets its lease end so long from now; `None`: as long as the consumer's leases are. For
    /// consumers that do not extend by themselves, or for longer.
    ///
    /// # Errors
    /// [`ClientError::Option`] unless the lease is 100 ms to 12 h.
    pub fn extend(&self, lease: Option<Duration>) -> Result<(), ClientError> {
        let lease_ms = lease.map_or(Ok(0), lease_ms)?;
        if !self.answered {
            self.run.answer(self.number, Verb::Other(Other::Extend { lease_ms }));
        }
        Ok(())
    }

    fn answer(&mut self, verb: Verb) {
        if !std::mem::replace(&mut self.answered, true) {
            if let Some(receipt) = self.receipt.take() {
                receipt.answered.store(true, Ordering::Relaxed);
            }
            self.run.answer(self.number, verb);
        }
    }

    /// Leaves the answer to the receipt, should this be dropped without one.
    pub(super) fn with_receipt(mut self) -> (Message, Arc<Receipt>) {
        let receipt = Arc::new(Receipt {
            run: Arc::clone(&self.run),
            number: self.number,
            answered: AtomicBool::new(self.answered),
        });
        self.receipt = Some(Arc::clone(&receipt));
        (self, receipt)
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.answered && self.receipt.is_none() {
            self.run.answer(self.number, Verb::Other(Other::GiveBack));
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("queue", &self.queue())
            .field("sequence", &self.sequence)
            .field("attempts", &self.attempts())
            .field("body_bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}

impl Delivered {
    fn answer(&self, number: u64, verb: Verb) {
        self.answers.add(self.handle, self.connection, number, verb);
    }
}

/// Answers for a message that somebody else holds, unless that one does.
pub(super) struct Receipt {
    run: Arc<Delivered>,
    number: u64,
    answered: AtomicBool,
}

impl Receipt {
    pub(super) fn answer(&self, verb: Verb) {
        if !self.answered.swap(true, Ordering::Relaxed) {
            self.run.answer(self.number, verb);
        }
    }
}

/// What becomes of a delivery.
#[derive(Clone, Debug)]
pub(super) enum Verb {
    Ack,
    Other(Other),
}

/// What becomes of it where it is not done, or not yet.
#[derive(Clone, Debug)]
pub(super) enum Other {
    GiveBack,
    Nack { kind: NackKind, delay_ms: Option<u32>, text: Box<str> },
    Extend { lease_ms: u32 },
}

/// What the holders of messages of one connection have said, and was not passed on yet.
pub(super) struct Answers {
    log: Mutex<Log>,
    /// Of the connection's task.
    wake: Arc<Notify>,
    /// The connection that is up; 0: none.
    pub(super) connection: AtomicU32,
    /// Delivered means done: there is nothing to answer.
    automatic: bool,
}

#[derive(Default)]
pub(super) struct Log {
    /// Handle, connection, first and last delivery number of those that are done.
    pub(super) acks: Vec<(u32, u32, u64, u64)>,
    /// The others: handle, connection, delivery number.
    pub(super) others: Vec<(u32, u32, u64, Other)>,
    /// The task knows that there is something.
    told: bool,
}

impl Answers {
    pub(super) fn new(wake: Arc<Notify>, automatic: bool) -> Arc<Answers> {
        let log = Mutex::new(Log::default());
        Arc::new(Answers { log, wake, connection: AtomicU32::new(0), automatic })
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // Nothing panics under this lock.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn add(&self, handle: u32, connection: u32, number: u64, verb: Verb) {
        let mut log = self.lock();
        match verb {
            Verb::Ack => match log.acks.last_mut() {
                Some((of, by, _, end))
                    if (*of, *by) == (handle, connection) && *end + 1 == number =>
                {
                    *end = number;
                }
                _ => log.acks.push((handle, connection, number, number)),
            },
            Verb::Other(other) => log.others.push((handle, connection, number, other)),
        }
        if !std::mem::replace(&mut log.told, true) {
            drop(log);
            self.wake.notify_one();
        }
    }

    /// Takes what was said, into `log`, whose lists are empty.
    pub(super) fn take(&self, log: &mut Log) {
        let mut said = self.lock();
        std::mem::swap(&mut said.acks, &mut log.acks);
        std::mem::swap(&mut said.others, &mut log.others);
    }

    pub(super) fn are_told(&self) -> bool {
        self.lock().told
    }

    /// From now on the task wants to be told again.
    pub(super) fn forget_told(&self) {
        self.lock().told = false;
    }
}
