//! L1: a queue as a pure state machine: a log, its subscriptions, its producers, its policy. It
//! knows no frame, no file and no clock; `shard/` drives it.
//!
//! Methods: verbs for what a client wants (`publish`, `ack`, `purge`, ...), `handle_*` for what
//! happened to a connection or came due, `poll_*` for what comes out. Order of polling after any
//! of them: [`Queue::poll_closed`] until `None`, [`Queue::poll_delivery`] until `None`,
//! [`Queue::poll_pull_end`] until `None`, [`Queue::poll_move`] until `None`,
//! [`Queue::poll_unblocked`]; confirms at any time by [`Queue::poll_confirm`]. Then
//! [`Queue::next_deadline`] says when to call [`Queue::handle_deadline`].
//!
//! Kept at all times, for each subscription: `entered` = ways out + ready + in flight
//! + delayed + dead-lettering.

pub mod assembly;
mod backoff;
pub mod consumer;
pub mod counters;
pub mod dead;
mod due;
pub mod durable;
pub mod lease;
pub mod log;
mod lost;
pub mod memory;
pub mod moved;
pub mod outbox;
mod parts;
mod peek;
mod pick;
pub mod policy;
pub mod portion;
pub mod producer;
mod publish;
mod pulls;
pub mod restore;
mod settle;
mod skips;
pub mod spill;
pub mod subscription;
mod subscriptions;

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

use crate::base::prng::Prng;
use crate::base::slot_map::{Key, SlotMap};
use crate::base::time::{Mono, Now, Wall};
use crate::format::change::MoveName;
use crate::limits::BATCH_BYTES_MAX;
use crate::protocol::error::ErrorCode;
use crate::protocol::hot::{Confirm, Reached};
use consumer::{ConsumerKey, ConsumerOptions, Owner, PullState};
use counters::Counters;
use log::Log;
use memory::{Account, Memory, MemoryFull};
use outbox::Outbox;
use policy::{Block, OnFull, QueueBounds, QueueOptions};
use producer::{KnownProducer, KnownProducers, Producer};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use subscription::{Delivery, Parts, PullEnd, Subscription};

pub use dead::{MoveOut, MoveReason};
pub use log::Absent;
pub use peek::Peeked;
pub use settle::{Acked, ExtendError, NackRequest, NeverDelivered};
pub use subscriptions::{CreateSubscriptionError, SubscriptionInUse};

/// See the module.
pub struct Queue {
    name: Box<str>,
    options: QueueOptions,
    bounds: QueueBounds,
    number: u64,
    created: Wall,
    log: Log,
    /// Boxed, so that the map grows without moving them.
    subscriptions: SlotMap<Box<Subscription>>,
    names: BTreeMap<Box<str>, Key>,
    /// All of them, in the order in which they take turns.
    turns: Vec<Key>,
    /// Whose turn it is.
    turn: usize,
    /// Consumers whose subscription is gone, not yet polled.
    closed: VecDeque<(Owner, ErrorCode)>,
    prng: Prng,
    /// What subscriptions have in flight or on its way, once it was asked for and as long as none
    /// of them was touched: many messages are dropped by one look.
    busy: Option<Vec<(u64, u64)>>,
    producers: SlotMap<Producer>,
    known: KnownProducers,
    counters: Counters,
    blocked: Option<Block>,
    /// Moves that it has taken and whose sources have not settled them yet.
    moves_taken: BTreeSet<MoveName>,
    /// The absent chunk with the oldest message, which is to be dropped.
    drop_waits: Option<u64>,
    /// Number of the next subscription.
    next_subscription: u64,
    /// Of a durable queue.
    outbox: Option<Box<Outbox>>,
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

/// What an idle queue costs, its name apart; charged when it is made.
const QUEUE_BYTES: usize = size_of::<Queue>() + 128;
const PRODUCER_BYTES: usize = size_of::<Producer>();
const CONSUMER_BYTES: usize = size_of::<consumer::Consumer>() + 64;
const KNOWN_BYTES: usize = 2 * size_of::<(u64, KnownProducer)>() + 32;

impl Queue {
    /// An empty queue without subscriptions. Its number tells its chunks on disk from those of all
    /// others of the shard; the seed is for the jitter of back-offs.
    ///
    /// # Errors
    /// When the budget has no room for one more.
    pub fn new(
        name: &str,
        options: QueueOptions,
        bounds: QueueBounds,
        number: u64,
        created: Wall,
        seed: u64,
        memory: &mut Memory,
    ) -> Result<Queue, MemoryFull> {
        memory.try_charge(Account::Queues, QUEUE_BYTES + 2 * name.len())?;
        Ok(Queue {
            name: name.into(),
            options,
            bounds,
            number,
            created,
            log: Log::default(),
            subscriptions: SlotMap::default(),
            names: BTreeMap::new(),
            turns: Vec::new(),
            turn: 0,
            closed: VecDeque::new(),
            prng: Prng::new(seed),
            busy: None,
            producers: SlotMap::default(),
            known: KnownProducers::default(),
            counters: Counters::default(),
            blocked: None,
            moves_taken: BTreeSet::new(),
            drop_waits: None,
            next_subscription: number,
            outbox: None,
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
        if let Some(outbox) = &mut self.outbox {
            outbox.note_defined();
        }
    }

    /// When it was made.
    pub fn created(&self) -> Wall {
        self.created
    }

    /// What went in and out.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Messages ready, of all subscriptions together.
    pub fn ready(&self) -> u64 {
        self.each().map(Subscription::ready).sum()
    }

    /// Messages in flight, of all subscriptions together.
    pub fn in_flight(&self) -> u64 {
        self.each().map(Subscription::in_flight).sum()
    }

    /// Failed messages that wait, of all subscriptions together.
    pub fn delayed(&self) -> u64 {
        self.each().map(Subscription::delayed).sum()
    }

    /// Messages on their way to another queue, of all subscriptions together.
    pub fn dead_lettering(&self) -> u64 {
        self.each().map(Subscription::dead_lettering).sum()
    }

    /// Messages held in every state, by the subscription that holds most: what the limit counts.
    pub fn messages(&self) -> u64 {
        self.each().map(Subscription::messages).max().unwrap_or(0)
    }

    /// Bytes of the records held in every state, by the subscription that holds most.
    pub fn bytes(&self) -> u64 {
        self.each().map(Subscription::bytes).max().unwrap_or(0)
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
        self.each().map(Subscription::consumer_count).sum()
    }

    /// Connections and handles of all consumers.
    pub fn consumer_owners(&self) -> impl Iterator<Item = Owner> + '_ {
        self.each().flat_map(Subscription::owners).map(|(_, owner)| owner)
    }

    /// All open producers.
    pub fn producers(&self) -> impl Iterator<Item = (Key, &Producer)> {
        self.producers.iter()
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
        // Its last messages were written, and the device did not keep them.
        if known.is_some() && next_sequence > first {
            return Err(OpenProducerError::Unknown);
        }
        let mut producer = Producer::new(owner, id, first, self.window_ahead());
        // What the producer does not send again was confirmed before.
        let confirmed = known.and_then(|known| self.unconfirmed(&known));
        let confirmed = confirmed.map_or(first, |from| from.max(next_sequence).min(first));
        if self.outbox.is_some() {
            producer.hold_from(confirmed);
        }
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
        if confirmed < first {
            self.hold_confirm(key);
        }
        Ok(OpenedProducer { key, last_sequence: confirmed - 1, window_bytes_total, fenced })
    }

    /// Where that begins which is held of a producer and not as safe as it is to be: it is not
    /// told, so that it is sent again and confirmed when it is safe.
    fn unconfirmed(&self, known: &KnownProducer) -> Option<u64> {
        let outbox = self.outbox.as_ref()?;
        let held = match known.handle.and_then(|key| self.producers.at(key)) {
            Some(open) => open.held(),
            None => known.held,
        };
        let (confirmed, end_sequence) = held?;
        (end_sequence > outbox.end_of(self.options.confirm)).then_some(confirmed)
    }

    /// What a producer has given is confirmed when it has come as far as the options say.
    fn hold_confirm(&mut self, key: Key) {
        let Some(outbox) = &mut self.outbox else { return };
        let Some(producer) = self.producers.at_mut(key) else { return };
        if producer.hold(self.log.next_sequence()) {
            outbox.waiting.push(key);
        }
    }

    /// A producer's records before `next_sequence` are taken.
    fn note_taken(&mut self, key: Key, next_sequence: u64, duplicates: u32, dropped: u32) {
        let Some(producer) = self.producers.at_mut(key) else { return };
        producer.note_taken(next_sequence, duplicates, dropped);
        if let Some(outbox) = &mut self.outbox {
            if dropped > 0 && producer.id != 0 {
                outbox.note_producer(producer.id, next_sequence - 1);
            }
            self.hold_confirm(key);
            self.grant_ahead(key);
        }
    }

    /// What waits for its confirm uses up the window: it moves on before there is none.
    fn grant_ahead(&mut self, key: Key) {
        let is_blocked = self.blocked.is_some();
        let Some(producer) = self.producers.at_mut(key) else { return };
        let left = producer.window_bytes_total.saturating_sub(producer.received_bytes);
        if left < self.bounds.window_bytes / 2 && !is_blocked {
            producer.note_window_due();
        }
    }

    /// Closes a producer. A large message that is not complete goes with it; it was never taken.
    pub fn close_producer(&mut self, key: Key, memory: &mut Memory) {
        let Some(producer) = self.producers.remove(key) else {
            return;
        };
        memory.budget.release(Account::Handles, PRODUCER_BYTES);
        if producer.id != 0 {
            let held = producer.held();
            self.known.close(producer.id, producer.next_sequence - 1, held);
        }
    }

    /// The confirm that a producer is due.
    pub fn poll_confirm(&mut self, key: Key) -> Option<(Owner, Confirm)> {
        let ahead = self.window_ahead();
        let producer = self.producers.at_mut(key)?;
        let reached = self.outbox.as_ref().map_or(Reached::Memory, |_| self.options.confirm);
        Some((producer.owner, producer.poll_confirm(ahead, reached)?))
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
        self.drop_waits.take_if(|chunk| !self.log.is_absent(*chunk));
        if self.drop_waits.is_some() {
            return false;
        }
        let makes_room = match self.options.on_full {
            OnFull::Block => false,
            OnFull::DropOldest => self.ready() + self.delayed() > 0,
            OnFull::Reject | OnFull::DropNewest => true,
        };
        let low = |max: u64| max - max / 8;
        let messages_max = self.options.messages_max;
        let bytes_max = self.options.bytes_max;
        let needed_bytes = (block.needed_bytes as u64).max(bytes_max / 8);
        let chunk_bytes = block.needed_bytes.min(BATCH_BYTES_MAX);
        let room = (messages_max == 0 || self.messages() < low(messages_max))
            && (bytes_max == 0 || self.bytes() + needed_bytes <= bytes_max || self.messages() == 0)
            && (!block.code.is_of_memory() || memory.could_take(chunk_bytes));
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

    /// Opens a consumer. Of a subscription that is gone it is one that never gets anything.
    pub fn open_consumer(
        &mut self,
        subscription: Key,
        owner: Owner,
        options: ConsumerOptions,
        memory: &mut Memory,
    ) -> ConsumerKey {
        let mut consumer = Key { index: 0, generation: 0 };
        if let Some(subscription) = self.subscriptions.at_mut(subscription) {
            memory.budget.charge(Account::Handles, CONSUMER_BYTES);
            consumer = subscription.open_consumer(owner, options);
        }
        ConsumerKey { subscription, consumer }
    }

    /// Closes a consumer; what it has in flight is ready again at once.
    pub fn close_consumer(&mut self, key: ConsumerKey, now: Now, memory: &mut Memory) {
        let Some((subscription, mut parts)) = self.parts(key.subscription, memory) else { return };
        if subscription.consumer(key.consumer).is_some() {
            parts.memory.budget.release(Account::Handles, CONSUMER_BYTES);
            subscription.close_consumer(key.consumer, now, &mut parts);
        }
    }

    /// Adds credit. False if it would pass what a consumer may hold.
    pub fn add_credit(&mut self, key: ConsumerKey, messages: u32, bytes: u64) -> bool {
        let subscription = self.subscriptions.at_mut(key.subscription);
        subscription.is_some_and(|s| s.add_credit(key.consumer, messages, bytes))
    }

    /// Starts a pull.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn pull(
        &mut self,
        key: ConsumerKey,
        pull: PullState,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        match self.parts(key.subscription, memory) {
            Some((subscription, mut parts)) => subscription.pull(key.consumer, pull, &mut parts),
            None => Ok(()),
        }
    }

    /// Pulls that a consumer has waiting.
    pub fn pull_count(&self, key: ConsumerKey) -> usize {
        let subscription = self.subscriptions.at(key.subscription);
        let consumer = subscription.and_then(|s| s.consumer(key.consumer));
        consumer.map_or(0, |consumer| consumer.pulls.len())
    }

    /// The consumer's connection can take bytes again.
    pub fn handle_unstalled(&mut self, key: ConsumerKey) {
        if let Some(subscription) = self.subscriptions.at_mut(key.subscription) {
            subscription.handle_unstalled(key.consumer);
        }
    }

    /// Ends deliveries `first..=last` of a consumer: they are done.
    ///
    /// # Errors
    /// If some were never given out; then none is ended.
    pub fn ack(
        &mut self,
        key: ConsumerKey,
        first: u64,
        last: u64,
        memory: &mut Memory,
    ) -> Result<Acked, NeverDelivered> {
        match self.parts(key.subscription, memory) {
            Some((subscription, mut parts)) => {
                subscription.ack(key.consumer, first, last, &mut parts)
            }
            None => Ok(Acked::default()),
        }
    }

    /// Ends deliveries of a consumer: they are not done.
    ///
    /// # Errors
    /// If some were never given out; then none is ended.
    pub fn nack(
        &mut self,
        key: ConsumerKey,
        nack: &NackRequest<'_>,
        now: Now,
        memory: &mut Memory,
    ) -> Result<Acked, NeverDelivered> {
        match self.parts(key.subscription, memory) {
            Some((subscription, mut parts)) => {
                subscription.nack(key.consumer, nack, now, &mut parts)
            }
            None => Ok(Acked::default()),
        }
    }

    /// Sets the end of the leases of what is in flight of deliveries `first..=last` of a consumer
    /// to `lease_ms` from now; 0: as long as the consumer's leases are.
    ///
    /// # Errors
    /// See [`ExtendError`].
    pub fn extend(
        &mut self,
        key: ConsumerKey,
        first: u64,
        last: u64,
        lease_ms: u32,
        now: Now,
        memory: &mut Memory,
    ) -> Result<Acked, ExtendError> {
        match self.parts(key.subscription, memory) {
            Some((subscription, mut parts)) => {
                subscription.extend(key.consumer, (first, last), lease_ms, now, &mut parts)
            }
            None => Ok(Acked::default()),
        }
    }

    /// Whether messages wait for memory to remember their delivery in.
    pub fn is_short_of_memory(&self, memory: &Memory) -> bool {
        self.each()
            .any(|subscription| subscription.ready() > 0 && subscription.is_short_of_memory(memory))
    }

    /// The next delivery, to a consumer whose connection `can_take` one. The subscriptions take
    /// turns.
    pub fn poll_delivery(
        &mut self,
        now: Now,
        memory: &mut Memory,
        can_take: &mut impl FnMut(Owner) -> bool,
    ) -> Option<Delivery> {
        for _ in 0..self.turns.len() {
            let key = self.turns[self.turn];
            self.turn = if self.turn + 1 < self.turns.len() { self.turn + 1 } else { 0 };
            let (subscription, mut parts) = self.parts(key, memory)?;
            let delivery = subscription.poll_delivery(now, &mut parts, can_take);
            if delivery.is_some() {
                return delivery;
            }
        }
        None
    }

    /// A pull that has ended.
    pub fn poll_pull_end(&mut self, now: Mono, memory: &mut Memory) -> Option<PullEnd> {
        for nth in 0..self.turns.len() {
            let (subscription, mut parts) = self.parts(self.turns[nth], memory)?;
            let end = subscription.poll_pull_end(now, &mut parts);
            if end.is_some() {
                return end;
            }
        }
        None
    }

    // ---- all of it ----

    /// Removes all that is ready or delayed, of one subscription or of all. Returns messages and
    /// bytes.
    pub fn purge(&mut self, subscription: Option<Key>, memory: &mut Memory) -> (u64, u64) {
        let keys = subscription.map_or_else(|| self.turns.clone(), |key| vec![key]);
        let mut removed = (0, 0);
        for key in keys {
            let Some((subscription, mut parts)) = self.parts(key, memory) else { continue };
            let (messages, bytes) = subscription.purge(&mut parts);
            removed = (removed.0 + messages, removed.1 + bytes);
        }
        self.log.settle_charge(memory);
        removed
    }

    /// Ends the queue: gives everything back to the budget. Who has it open must be told by the
    /// caller. Returns messages and bytes that went with it, once for each subscription.
    pub fn delete(mut self, memory: &mut Memory) -> (u64, u64) {
        for key in self.producers.keys() {
            self.close_producer(key, memory);
        }
        let mut removed = (0, 0);
        for key in self.turns.clone() {
            let (messages, bytes) = self.delete_subscription(key, true, memory).unwrap_or_default();
            removed = (removed.0 + messages, removed.1 + bytes);
        }
        self.log.end_charge(memory);
        memory.budget.release(Account::Handles, KNOWN_BYTES * self.known.len());
        let keys_bytes = moved::MOVE_KEY_BYTES * self.moves_taken.len();
        memory.budget.release(Account::Queues, keys_bytes);
        memory.budget.release(Account::Queues, QUEUE_BYTES + 2 * self.name.len());
        removed
    }

    fn each(&self) -> impl Iterator<Item = &Subscription> {
        self.subscriptions.iter().map(|(_, subscription)| &**subscription)
    }

    fn parts<'a>(
        &'a mut self,
        key: Key,
        memory: &'a mut Memory,
    ) -> Option<(&'a mut Subscription, Parts<'a>)> {
        self.busy = None;
        let subscription = &mut **self.subscriptions.at_mut(key)?;
        let parts = Parts {
            log: &mut self.log,
            counters: &mut self.counters,
            memory,
            bounds: &self.bounds,
            prng: &mut self.prng,
            outbox: self.outbox.as_deref_mut().map(|outbox| (outbox, subscription.number)),
        };
        Some((subscription, parts))
    }
}
