//! L1: a queue as a pure state machine: a log, its subscription, its producers, its policy. It
//! knows no frame, no file and no clock; `shard/` drives it.
//!
//! Methods: verbs for what a client wants (`publish`, `ack`, `purge`, ...), `handle_*` for what
//! happened to a connection, `poll_*` for what comes out. Order of polling after any of them:
//! [`Queue::poll_delivery`] until `None`, [`Queue::poll_pull_end`] until `None`,
//! [`Queue::poll_unblocked`]; confirms at any time by [`Queue::poll_confirm`].
//!
//! Kept at all times (DESIGN 1.2): `published` = ways out + ready + in flight.

pub mod assembly;
pub mod consumer;
pub mod counters;
pub mod log;
pub mod memory;
pub mod policy;
pub mod producer;
mod publish;
pub mod subscription;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use crate::base::slot_map::{Key, SlotMap};
use crate::base::time::{Mono, Wall};
use crate::format::record::Records;
use crate::limits::BATCH_BYTES_MAX;
use crate::protocol::error::ErrorCode;
use crate::protocol::hot::Confirm;
use consumer::{ConsumerOptions, Owner, PullState};
use counters::Counters;
use log::{Log, Run};
use memory::{Account, Memory};
use policy::{Block, OnFull, QueueBounds, QueueOptions};
use producer::{KnownProducer, KnownProducers, Producer};
use subscription::{Acked, Delivery, NeverDelivered, Parts, PullEnd, Subscription};

/// See the module.
pub struct Queue {
    name: Box<str>,
    options: QueueOptions,
    bounds: QueueBounds,
    created: Wall,
    log: Log,
    subscription: Subscription,
    producers: SlotMap<Producer>,
    known: KnownProducers,
    counters: Counters,
    blocked: Option<Block>,
}

/// A producer could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenProducerError {
    /// The id claims earlier records, of which the queue knows nothing (any more).
    #[error("this producer id is not known here (any more); open with a new id and sequence 1")]
    Unknown,
    /// As many producer ids as the queue remembers, and all are open.
    #[error("the queue has {0} producer ids open, as many as it may")]
    TooMany(usize),
}

/// An open producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedProducer {
    /// For the calls that need it.
    pub key: Key,
    /// Last sequence that the queue has of it.
    pub last_sequence: u64,
    /// Its first window.
    pub window_bytes_total: u64,
    /// The handle that had the same id open until now; it is closed.
    pub fenced: Option<Owner>,
}

/// A ready message, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Its sequence.
    pub sequence: u64,
    /// When it was taken, wall clock in microseconds.
    pub accepted_us: u64,
    /// Its properties block.
    pub properties: Vec<u8>,
    /// Its body, or the front of it.
    pub body: Vec<u8>,
    /// Length of the whole body.
    pub body_bytes: u64,
}

/// What an idle queue costs, its name apart; charged when it is made.
const QUEUE_BYTES: usize = size_of::<Queue>() + 128;
const PRODUCER_BYTES: usize = size_of::<Producer>();
const CONSUMER_BYTES: usize = size_of::<consumer::Consumer>() + 64;
const KNOWN_BYTES: usize = 2 * size_of::<(u64, KnownProducer)>() + 32;

impl Queue {
    /// An empty queue.
    ///
    /// # Errors
    /// When the budget has no room for one more.
    pub fn new(
        name: &str,
        options: QueueOptions,
        bounds: QueueBounds,
        created: Wall,
        memory: &mut Memory,
    ) -> Result<Queue, memory::MemoryFull> {
        memory.budget.try_charge(Account::Queues, QUEUE_BYTES + 2 * name.len())?;
        Ok(Queue {
            name: name.into(),
            options,
            bounds,
            created,
            log: Log::default(),
            subscription: Subscription::default(),
            producers: SlotMap::default(),
            known: KnownProducers::default(),
            counters: Counters::default(),
            blocked: None,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its options.
    pub fn options(&self) -> &QueueOptions {
        &self.options
    }

    /// Changes its options; what is held stays, even over a new limit.
    pub fn update(&mut self, options: QueueOptions) {
        self.options = options;
    }

    /// When it was made.
    pub fn created(&self) -> Wall {
        self.created
    }

    /// What went in and out.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Messages ready.
    pub fn ready(&self) -> u64 {
        self.subscription.ready()
    }

    /// Messages in flight.
    pub fn in_flight(&self) -> u64 {
        self.subscription.in_flight()
    }

    /// Messages held, in every state.
    pub fn messages(&self) -> u64 {
        self.ready() + self.in_flight()
    }

    /// Bytes of the records held, in every state.
    pub fn bytes(&self) -> u64 {
        self.subscription.bytes()
    }

    /// Bytes of the chunks that hold them.
    pub fn memory_bytes(&self) -> u64 {
        self.log.memory_bytes()
    }

    /// Sequence of the first message of the oldest chunk held, and of the next message.
    pub fn sequences(&self) -> (u64, u64) {
        (self.log.first_sequence(), self.log.next_sequence())
    }

    /// Why it takes nothing now.
    pub fn blocked(&self) -> Option<Block> {
        self.blocked
    }

    /// Producer handles open.
    pub fn producer_count(&self) -> usize {
        self.producers.len()
    }

    /// Consumers open.
    pub fn consumer_count(&self) -> usize {
        self.subscription.consumer_count()
    }

    /// All open producers.
    pub fn producers(&self) -> impl Iterator<Item = (Key, &Producer)> {
        self.producers.iter()
    }

    /// The subscription, for the checkers.
    pub fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Runs that are ready, in the order in which they would be delivered, for the checkers.
    pub fn ready_runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.subscription.ready_runs(&self.log)
    }

    // ---- producers ----

    /// Opens a producer that will send `next_sequence` first.
    ///
    /// # Errors
    /// See [`OpenProducerError`].
    pub fn open_producer(
        &mut self,
        owner: Owner,
        id: u64,
        next_sequence: u64,
        memory: &mut Memory,
    ) -> Result<OpenedProducer, OpenProducerError> {
        let known = if id == 0 { None } else { self.known.find(id) };
        let first = match known {
            Some(known) => match known.handle.and_then(|key| self.producers.at(key)) {
                Some(open) => open.next_sequence,
                None => known.last_sequence + 1,
            },
            None if id != 0 && next_sequence != 1 => return Err(OpenProducerError::Unknown),
            None => next_sequence,
        };
        let producer = Producer::new(owner, id, first, self.window_ahead());
        let window_bytes_total = producer.window_bytes_total;
        let key = self.producers.insert(producer);
        memory.budget.charge(Account::Handles, PRODUCER_BYTES);
        let mut fenced = None;
        if id != 0 {
            if let Some(old) = known.and_then(|known| known.handle) {
                fenced = self.producers.remove(old).map(|old| old.owner);
                memory.budget.release(Account::Handles, PRODUCER_BYTES);
            }
            let forgot = self.known.open(id, key, self.bounds.producers_max);
            let Some(forgot) = forgot else {
                self.producers.remove(key);
                memory.budget.release(Account::Handles, PRODUCER_BYTES);
                return Err(OpenProducerError::TooMany(self.bounds.producers_max));
            };
            if known.is_none() && !forgot {
                memory.budget.charge(Account::Handles, KNOWN_BYTES);
            }
        }
        Ok(OpenedProducer { key, last_sequence: first - 1, window_bytes_total, fenced })
    }

    /// Closes a producer. A large message that is not complete goes with it; it was never taken.
    pub fn close_producer(&mut self, key: Key, memory: &mut Memory) {
        let Some(producer) = self.producers.remove(key) else {
            return;
        };
        memory.budget.release(Account::Handles, PRODUCER_BYTES);
        if producer.id != 0 {
            self.known.close(producer.id, producer.next_sequence - 1);
        }
    }

    /// The confirm that a producer is due.
    pub fn poll_confirm(&mut self, key: Key) -> Option<(Owner, Confirm)> {
        let ahead = self.window_ahead();
        let producer = self.producers.at_mut(key)?;
        Some((producer.owner, producer.poll_confirm(ahead)?))
    }

    /// Whether a confirm became due that the caller has not listed yet; from now on it has.
    pub fn note_confirm_listed(&mut self, key: Key) -> bool {
        self.producers.at_mut(key).is_some_and(Producer::note_confirm_listed)
    }

    /// Whether a blocked queue takes again; then all its producers must be told their new window.
    /// An eighth of each limit has to be free first, and room for what was refused, so that it
    /// does not flutter.
    pub fn poll_unblocked(&mut self, memory: &Memory) -> bool {
        let Some(block) = self.blocked else {
            return false;
        };
        let makes_room = match self.options.on_full {
            OnFull::Block => false,
            OnFull::DropOldest => self.ready() > 0,
            OnFull::Reject | OnFull::DropNewest => true,
        };
        let low = |max: u64| max - max / 8;
        let messages_max = self.options.messages_max;
        let bytes_max = self.options.bytes_max;
        let needed_bytes = (block.needed_bytes as u64).max(bytes_max / 8);
        let chunk_bytes = block.needed_bytes.min(BATCH_BYTES_MAX);
        let room = (messages_max == 0 || self.messages() < low(messages_max))
            && (bytes_max == 0 || self.bytes() + needed_bytes <= bytes_max || self.messages() == 0)
            && (block.code != ErrorCode::MemoryLimit || memory.could_take(chunk_bytes));
        if room || makes_room {
            self.blocked = None;
        }
        self.blocked.is_none()
    }

    /// Grants a producer a window; what it must be told when the queue takes again.
    pub fn grant_window(&mut self, key: Key) -> u64 {
        let ahead = self.window_ahead();
        self.producers.at_mut(key).map_or(0, |producer| producer.grant(ahead))
    }

    fn window_ahead(&self) -> u64 {
        if self.blocked.is_some() { 0 } else { self.bounds.window_bytes }
    }

    // ---- consumers ----

    /// Opens a consumer.
    pub fn open_consumer(
        &mut self,
        owner: Owner,
        options: ConsumerOptions,
        memory: &mut Memory,
    ) -> Key {
        memory.budget.charge(Account::Handles, CONSUMER_BYTES);
        self.subscription.open_consumer(owner, options)
    }

    /// Closes a consumer; what it has in flight is ready again at once.
    pub fn close_consumer(&mut self, key: Key, memory: &mut Memory) {
        if self.subscription.consumer(key).is_none() {
            return;
        }
        memory.budget.release(Account::Handles, CONSUMER_BYTES);
        let (subscription, mut parts) = self.parts(memory);
        subscription.close_consumer(key, &mut parts);
    }

    /// Adds credit. False if it would pass what a consumer may hold.
    pub fn add_credit(&mut self, key: Key, messages: u32, bytes: u64) -> bool {
        self.subscription.add_credit(key, messages, bytes)
    }

    /// Starts a pull.
    pub fn pull(&mut self, key: Key, pull: PullState) {
        self.subscription.pull(key, pull);
    }

    /// When the next pull is over, of those that are not over at `now`.
    pub fn pull_deadline(&self, now: Mono) -> Option<Mono> {
        self.subscription.pull_deadline(now)
    }

    /// Pulls that a consumer has waiting.
    pub fn pull_count(&self, key: Key) -> usize {
        self.subscription.pull_count(key)
    }

    /// The consumer's connection can take bytes again.
    pub fn handle_unstalled(&mut self, key: Key) {
        self.subscription.handle_unstalled(key);
    }

    /// Ends deliveries `first..=last` of a consumer.
    ///
    /// # Errors
    /// If some were never given out; then none is ended.
    pub fn ack(
        &mut self,
        key: Key,
        first: u64,
        last: u64,
        memory: &mut Memory,
    ) -> Result<Acked, NeverDelivered> {
        let (subscription, mut parts) = self.parts(memory);
        subscription.ack(key, first, last, &mut parts)
    }

    /// Whether messages wait for memory to remember their delivery in.
    pub fn is_short_of_memory(&mut self, memory: &mut Memory) -> bool {
        let (subscription, parts) = self.parts(memory);
        subscription.ready() > 0 && subscription.is_short_of_memory(&parts)
    }

    /// The next delivery, to a consumer whose connection `can_take` one.
    pub fn poll_delivery(
        &mut self,
        memory: &mut Memory,
        can_take: &mut impl FnMut(Owner) -> bool,
    ) -> Option<Delivery> {
        let (subscription, mut parts) = self.parts(memory);
        subscription.poll_delivery(&mut parts, can_take)
    }

    /// A pull that has ended.
    pub fn poll_pull_end(&mut self, now: Mono, memory: &mut Memory) -> Option<PullEnd> {
        let (subscription, parts) = self.parts(memory);
        subscription.poll_pull_end(now, &parts)
    }

    // ---- all of it ----

    /// Removes all that is ready. Returns messages and bytes.
    pub fn purge(&mut self, memory: &mut Memory) -> (u64, u64) {
        let (subscription, mut parts) = self.parts(memory);
        let (messages, bytes) = subscription.purge(&mut parts);
        self.counters.purged += messages;
        (messages, bytes)
    }

    /// Ends the queue: gives everything back to the budget. Who has it open must be told by the
    /// caller. Returns messages and bytes that went with it.
    pub fn delete(mut self, memory: &mut Memory) -> (u64, u64) {
        for (key, _) in self.subscription.owners() {
            self.close_consumer(key, memory);
        }
        for key in self.producers.keys() {
            self.close_producer(key, memory);
        }
        let removed = self.purge(memory);
        memory.budget.release(Account::Handles, KNOWN_BYTES * self.known.len());
        memory.budget.release(Account::Queues, QUEUE_BYTES + 2 * self.name.len());
        removed
    }

    /// Looks at up to `count_max` ready messages behind the first `skip`, with bodies and
    /// properties of `bytes_max` together. Also whether there are more.
    pub fn peek(&self, skip: u64, count_max: usize, bytes_max: usize) -> (Vec<Peeked>, bool) {
        let (mut skip, mut bytes_left) = (skip, bytes_max);
        let mut peeked: Vec<Peeked> = Vec::new();
        for run in self.subscription.ready_runs(&self.log) {
            if skip >= u64::from(run.count) {
                skip -= u64::from(run.count);
                continue;
            }
            for nth in std::mem::take(&mut skip) as u32..run.count {
                if peeked.len() == count_max || bytes_left == 0 {
                    return (peeked, true);
                }
                let message = self.peek_one(&run, nth, &mut bytes_left);
                peeked.extend(message);
            }
        }
        (peeked, false)
    }

    fn peek_one(&self, run: &Run, nth: u32, bytes_left: &mut usize) -> Option<Peeked> {
        let part = if run.large { *run } else { self.log.part(run, nth, 1) };
        let bytes = if run.large {
            self.log.fragment_at(&part, part.at).0
        } else {
            self.log.run_bytes(&part)
        };
        let record = Records::new(bytes.chunk.slice(bytes.range.clone())).next()?;
        let total = crate::format::properties::find_u64(
            record.properties,
            crate::format::properties::Tag::BodyBytesTotal,
        );
        let shown = record.body.len().min(bytes_left.saturating_sub(record.properties.len()));
        *bytes_left = bytes_left.saturating_sub(record.properties.len() + shown + 64);
        Some(Peeked {
            sequence: part.sequence,
            accepted_us: bytes.accepted_us + u64::from(record.header.time_delta_ms) * 1000,
            properties: record.properties.to_vec(),
            body: record.body[..shown].to_vec(),
            body_bytes: total.unwrap_or(record.body.len() as u64),
        })
    }

    fn parts<'a>(&'a mut self, memory: &'a mut Memory) -> (&'a mut Subscription, Parts<'a>) {
        let parts = Parts {
            log: &mut self.log,
            counters: &mut self.counters,
            memory,
            bounds: &self.bounds,
        };
        (&mut self.subscription, parts)
    }
}
