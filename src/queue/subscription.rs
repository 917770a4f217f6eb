//! A subscription: the cursor into the log, what came back, and who gets what.
//!
//! ```text
//!              run_at(cursor)            ack
//!   log ------------------> in flight ---------> done
//!                ^              |
//!                '- returned <--'  consumer closed: ready at once, at its old place
//! ```
//!
//! What was returned goes ahead of the cursor, by sequence: its sequences are all smaller.

use crate::base::slot_map::{Key, SlotMap};
use crate::base::time::Mono;
use crate::queue::consumer::{Consumer, ConsumerOptions, LargeProgress, Lease, Owner, PullState};
use crate::queue::counters::Counters;
use crate::queue::log::{Log, Position, Run, RunBytes};
use crate::queue::memory::{Account, Memory};
use crate::queue::policy::QueueBounds;
use std::collections::{BTreeMap, VecDeque};

/// Part of a run, on its way to a consumer.
pub struct Delivery {
    /// Where it goes.
    pub owner: Owner,
    /// The records.
    pub bytes: RunBytes,
    /// Delivery id of the first.
    pub delivery_id: u64,
    /// How many.
    pub count: u32,
    /// 1: for the first time.
    pub attempts: u16,
    /// One fragment of a large message.
    pub fragment: bool,
    /// The consumer asked for a checksum.
    pub checksum: bool,
}

/// A pull has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullEnd {
    /// Whose.
    pub owner: Owner,
    /// Which.
    pub correlation: u32,
    /// What it brought.
    pub messages: u32,
}

/// What became of an ack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Messages that are done by it.
    pub acked: u64,
    /// Messages that were in flight no more.
    pub late: u64,
}

/// The range names deliveries that were never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deliveries {first} to {last} were not given out; the last is {delivered}")]
pub struct NeverDelivered {
    /// As asked.
    pub first: u64,
    /// As asked.
    pub last: u64,
    /// The last delivery id given out completely.
    pub delivered: u64,
}

/// The parts of a queue that a subscription works on.
pub struct Parts<'a> {
    /// The messages.
    pub log: &'a mut Log,
    /// What is counted.
    pub counters: &'a mut Counters,
    /// The budget of leases.
    pub memory: &'a mut Memory,
    /// The bounds of the queue.
    pub bounds: &'a QueueBounds,
}

/// See the module.
pub struct Subscription {
    cursor: Position,
    /// Sequence of the message at the cursor.
    cursor_sequence: u64,
    returned: BTreeMap<u64, Run>,
    ready: u64,
    ready_bytes: u64,
    in_flight: u64,
    in_flight_bytes: u64,
    consumers: SlotMap<Consumer>,
    /// Consumers that want messages, each once, served in turn.
    wanting: VecDeque<Key>,
    /// Pulls that have ended, not yet polled.
    pulls_ended: VecDeque<PullEnd>,
    /// Consumers with waiting pulls.
    pulling: Vec<Key>,
    /// Consumers in the middle of a large message.
    large_count: usize,
}

impl Default for Subscription {
    fn default() -> Self {
        Subscription {
            cursor: Position::chunk_start(0),
            cursor_sequence: 1,
            returned: BTreeMap::new(),
            ready: 0,
            ready_bytes: 0,
            in_flight: 0,
            in_flight_bytes: 0,
            consumers: SlotMap::default(),
            wanting: VecDeque::new(),
            pulls_ended: VecDeque::new(),
            pulling: Vec::new(),
            large_count: 0,
        }
    }
}

const LEASE_BYTES: usize = size_of::<Lease>();
const RETURNED_BYTES: usize = 2 * size_of::<(u64, Run)>();

impl Subscription {
    /// Messages ready to be delivered.
    pub fn ready(&self) -> u64 {
        self.ready
    }

    /// Messages in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes of the records that are ready or in flight.
    pub fn bytes(&self) -> u64 {
        self.ready_bytes + self.in_flight_bytes
    }

    /// Consumers open.
    pub fn consumer_count(&self) -> usize {
        self.consumers.len()
    }

    /// Connections and handles of all consumers.
    pub fn owners(&self) -> Vec<(Key, Owner)> {
        self.consumers.iter().map(|(key, consumer)| (key, consumer.owner)).collect()
    }

    /// A consumer, for the checkers.
    pub fn consumer(&self, key: Key) -> Option<&Consumer> {
        self.consumers.at(key)
    }

    /// The log got `count` messages more.
    pub fn handle_appended(&mut self, count: u64, bytes: u64) {
        self.ready += count;
        self.ready_bytes += bytes;
    }

    /// Opens a consumer.
    pub fn open_consumer(&mut self, owner: Owner, options: ConsumerOptions) -> Key {
        let key = self.consumers.insert(Consumer::new(owner, options));
        self.enqueue(key);
        key
    }

    /// Adds credit. False if it would pass what a consumer may hold, or it is gone.
    pub fn add_credit(&mut self, key: Key, messages: u32, bytes: u64) -> bool {
        let added = self.consumers.at_mut(key).is_some_and(|c| c.add_credit(messages, bytes));
        self.enqueue(key);
        added
    }

    /// Starts a pull.
    pub fn pull(&mut self, key: Key, pull: PullState) {
        let Some(consumer) = self.consumers.at_mut(key) else {
            return;
        };
        consumer.pulls.push_back(pull);
        if consumer.pulls.len() == 1 {
            self.pulling.push(key);
        }
        self.enqueue(key);
    }

    /// The consumer's connection can take bytes again.
    pub fn handle_unstalled(&mut self, key: Key) {
        if let Some(consumer) = self.consumers.at_mut(key) {
            consumer.stalled = false;
        }
        self.enqueue(key);
    }

    /// The next delivery, to a consumer whose connection `can_take` one. Call until `None`; then
    /// poll [`Subscription::poll_pull_end`].
    pub fn poll_delivery(
        &mut self,
        parts: &mut Parts<'_>,
        can_take: &mut impl FnMut(Owner) -> bool,
    ) -> Option<Delivery> {
        let mut serving = self.ready > 0 && !self.is_paused(parts);
        if !serving && self.large_count == 0 {
            return None;
        }
        // Each consumer is looked at once at most before somebody is served.
        for _ in 0..self.wanting.len() {
            let key = *self.wanting.front()?;
            let Some(consumer) = self.consumers.at_mut(key) else {
                self.wanting.pop_front();
                continue;
            };
            if !consumer.wants() || !can_take(consumer.owner) {
                consumer.stalled |= consumer.wants();
                consumer.queued = false;
                self.wanting.pop_front();
                continue;
            }
            if let Some(large) = consumer.large {
                return Some(self.deliver_fragment(key, large, parts));
            }
            let (records_max, bytes_max) = consumer.allowance();
            if serving && let Some(run) = self.take_run(parts, records_max, bytes_max) {
                return Some(self.deliver(key, run, parts));
            }
            // Nothing for this one, but another may be in the middle of a large message.
            serving = false;
            self.wanting.rotate_left(1);
        }
        None
    }

    /// A pull that has ended: it has all it may, or something and there is no more at hand, or its
    /// time is over. Poll after [`Subscription::poll_delivery`] gave `None`.
    pub fn poll_pull_end(&mut self, now: Mono, parts: &Parts<'_>) -> Option<PullEnd> {
        let nothing_at_hand = self.ready == 0 || self.is_paused(parts);
        let mut nth = if nothing_at_hand { 0 } else { self.pulling.len() };
        while nth < self.pulling.len() && self.pulls_ended.is_empty() {
            let key = self.pulling[nth];
            let Some(consumer) = self.consumers.at_mut(key) else {
                self.pulling.swap_remove(nth);
                continue;
            };
            let over = |pull: &PullState| pull.brought > 0 || pull.deadline <= now;
            if consumer.large.is_none()
                && !consumer.stalled
                && consumer.pulls.front().is_some_and(over)
            {
                self.end_pull(key);
            } else {
                nth += 1;
            }
        }
        self.pulls_ended.pop_front()
    }

    /// When the next pull is over, of those that are not over at `now`. Of each consumer only the
    /// oldest counts: the others begin when it has ended.
    pub fn pull_deadline(&self, now: Mono) -> Option<Mono> {
        let first = |key: &Key| Some(self.consumers.at(*key)?.pulls.front()?.deadline);
        self.pulling.iter().filter_map(first).filter(|&deadline| deadline > now).min()
    }

    /// Pulls that a consumer has waiting.
    pub fn pull_count(&self, key: Key) -> usize {
        self.consumers.at(key).map_or(0, |consumer| consumer.pulls.len())
    }

    /// Ends deliveries `first..=last` of a consumer.
    ///
    /// # Errors
    /// If some of them were never given out; then none is ended.
    pub fn ack(
        &mut self,
        key: Key,
        first: u64,
        last: u64,
        parts: &mut Parts<'_>,
    ) -> Result<Acked, NeverDelivered> {
        let Some(consumer) = self.consumers.at_mut(key) else {
            return Ok(Acked::default());
        };
        let delivered = match consumer.large {
            Some(large) => large.delivery_id - 1,
            None => consumer.next_delivery - 1,
        };
        if first == 0 || first > last || last > delivered {
            return Err(NeverDelivered { first, last, delivered });
        }
        let mut acked = 0;
        let mut index = consumer.leases.partition_point(|lease| lease.end_delivery() <= first);
        while let Some(lease) = consumer.leases.get_mut(index)
            && lease.first_delivery <= last
        {
            let from = first.max(lease.first_delivery) - lease.first_delivery;
            let to = (last + 1).min(lease.end_delivery()) - lease.first_delivery;
            let (count, bytes) = end_range(lease, from as u32, to as u32, parts.log);
            acked += u64::from(count);
            self.in_flight_bytes -= bytes;
            consumer.finished += usize::from(count > 0 && lease.left == 0);
            index += 1;
        }
        let dropped = consumer.drop_finished();
        parts.memory.budget.release(Account::InFlight, LEASE_BYTES * dropped);
        self.in_flight -= acked;
        parts.counters.acked += acked;
        Ok(Acked { acked, late: last - first + 1 - acked })
    }

    /// Closes a consumer; what it has in flight is ready again at its old place.
    pub fn close_consumer(&mut self, key: Key, parts: &mut Parts<'_>) {
        let Some(consumer) = self.consumers.remove(key) else {
            return;
        };
        self.pulling.retain(|&other| other != key);
        self.wanting.retain(|&other| other != key);
        self.pulls_ended.retain(|end| end.owner != consumer.owner);
        self.large_count -= usize::from(consumer.large.is_some());
        for lease in &consumer.leases {
            parts.memory.budget.release(Account::InFlight, LEASE_BYTES);
            let mut from = 0;
            while let Some((skip, take)) = lease.next_unacked(from, lease.run.count) {
                let mut run = parts.log.part(&lease.run, skip, take);
                run.attempts = run.attempts.saturating_add(1);
                self.put_back(run, parts);
                from = skip + take;
            }
        }
    }

    /// Drops the oldest messages that nobody has in flight, at most `count_max` of one run,
    /// the last of which may pass `bytes_max`.
    /// Returns how many.
    pub fn drop_oldest(&mut self, count_max: u32, bytes_max: u64, parts: &mut Parts<'_>) -> u64 {
        let Some(run) = self.take_run(parts, count_max, bytes_max) else {
            return 0;
        };
        parts.log.done(run.at.chunk, run.count);
        u64::from(run.count)
    }

    /// Removes all that is ready. Returns messages and bytes.
    pub fn purge(&mut self, parts: &mut Parts<'_>) -> (u64, u64) {
        let mut removed = 0;
        for run in std::mem::take(&mut self.returned).into_values() {
            parts.memory.budget.release(Account::InFlight, RETURNED_BYTES);
            parts.log.done(run.at.chunk, run.count);
            removed += u64::from(run.count);
        }
        removed += parts.log.done_from(self.cursor);
        self.cursor = parts.log.end();
        self.cursor_sequence = parts.log.next_sequence();
        assert_eq!(removed, self.ready, "what is ready is what was returned and what is ahead");
        self.ready = 0;
        (removed, std::mem::take(&mut self.ready_bytes))
    }

    /// Runs that are ready, in the order in which they would be delivered.
    pub fn ready_runs<'a>(&'a self, log: &'a Log) -> impl Iterator<Item = Run> + 'a {
        let mut at = self.cursor;
        let ahead = std::iter::from_fn(move || {
            let (run, next) = log.run_at(at, u32::MAX, u64::MAX)?;
            at = next;
            Some(run)
        });
        self.returned.values().copied().chain(ahead)
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(consumer) = self.consumers.at_mut(key)
            && !consumer.queued
            && consumer.wants()
        {
            consumer.queued = true;
            self.wanting.push_back(key);
        }
    }

    fn is_paused(&self, parts: &Parts<'_>) -> bool {
        let oldest = parts.log.first_sequence();
        self.in_flight >= parts.bounds.in_flight_max
            || self.is_short_of_memory(parts)
            // What was returned is old, so it makes the span no longer; and with nothing in flight
            // no ack would ever end the pause.
            || (self.in_flight > 0
                && self.returned.is_empty()
                && self.cursor_sequence.saturating_sub(oldest) >= parts.bounds.ack_span_max)
    }

    /// Whether there is no memory to remember one more run in flight. With nothing in flight one is
    /// delivered all the same: it is by acks that memory becomes free.
    pub fn is_short_of_memory(&self, parts: &Parts<'_>) -> bool {
        self.in_flight > 0
            && parts.memory.budget.free_for_leases() < (LEASE_BYTES + RETURNED_BYTES) as u64
    }

    /// Takes messages out of ready: returned ones first, then from the cursor.
    fn take_run(&mut self, parts: &mut Parts<'_>, records_max: u32, bytes_max: u64) -> Option<Run> {
        if self.ready == 0 || records_max == 0 {
            return None;
        }
        let run = match self.returned.pop_first() {
            Some((_, whole)) => {
                let count = parts.log.front_count(&whole, records_max, bytes_max);
                if count < whole.count {
                    let rest = parts.log.part(&whole, count, whole.count - count);
                    self.returned.insert(rest.sequence, rest);
                } else {
                    parts.memory.budget.release(Account::InFlight, RETURNED_BYTES);
                }
                parts.log.part(&whole, 0, count)
            }
            None => {
                let (run, next) = parts.log.run_at(self.cursor, records_max, bytes_max)?;
                self.cursor = next;
                self.cursor_sequence = run.sequence + u64::from(run.count);
                run
            }
        };
        self.ready -= u64::from(run.count);
        self.ready_bytes -= run.bytes;
        Some(run)
    }

    fn put_back(&mut self, run: Run, parts: &mut Parts<'_>) {
        let count = u64::from(run.count);
        self.in_flight -= count;
        self.in_flight_bytes -= run.bytes;
        self.ready += count;
        self.ready_bytes += run.bytes;
        parts.counters.returned += count;
        parts.memory.budget.charge(Account::InFlight, RETURNED_BYTES);
        let before = self.returned.insert(run.sequence, run);
        assert!(before.is_none(), "a message is returned by the one that had it");
    }

    fn deliver(&mut self, key: Key, run: Run, parts: &mut Parts<'_>) -> Delivery {
        let consumer = self.consumers.at_mut(key).expect("the caller looked it up");
        let delivery_id = consumer.next_delivery;
        consumer.next_delivery += u64::from(run.count);
        consumer.spend(run.count, run.bytes);
        let count = u64::from(run.count);
        parts.counters.delivered += count;
        parts.counters.delivered_bytes += run.bytes;
        parts.counters.redelivered += if run.attempts > 0 { count } else { 0 };
        if !consumer.auto_ack || run.large {
            self.in_flight += count;
            self.in_flight_bytes += run.bytes;
            consumer.leases.push_back(Lease::new(delivery_id, run));
            parts.memory.budget.charge(Account::InFlight, LEASE_BYTES);
        }
        if run.large {
            let large = LargeProgress { run, at: run.at, delivery_id };
            consumer.large = Some(large);
            self.large_count += 1;
            return self.deliver_fragment(key, large, parts);
        }
        let delivery = Delivery {
            owner: consumer.owner,
            bytes: parts.log.run_bytes(&run),
            delivery_id,
            count: run.count,
            attempts: run.attempts.saturating_add(1),
            fragment: false,
            checksum: consumer.checksum,
        };
        if consumer.auto_ack {
            parts.counters.acked += count;
            parts.log.done(run.at.chunk, run.count);
        }
        self.turn(key);
        delivery
    }

    fn deliver_fragment(
        &mut self,
        key: Key,
        large: LargeProgress,
        parts: &mut Parts<'_>,
    ) -> Delivery {
        let (bytes, next) = parts.log.fragment_at(&large.run, large.at);
        let consumer = self.consumers.at_mut(key).expect("the caller looked it up");
        consumer.large = next.map(|at| LargeProgress { at, ..large });
        let delivery = Delivery {
            owner: consumer.owner,
            bytes,
            delivery_id: large.delivery_id,
            count: 1,
            attempts: large.run.attempts.saturating_add(1),
            fragment: true,
            checksum: consumer.checksum,
        };
        let auto_ack = consumer.auto_ack;
        if next.is_none() {
            self.large_count -= 1;
            if auto_ack {
                let id = large.delivery_id;
                self.ack(key, id, id, parts).expect("the delivery was just given out");
            }
            self.turn(key);
        }
        delivery
    }

    /// The consumer at the front of the ring was served: the next one's turn.
    fn turn(&mut self, key: Key) {
        debug_assert_eq!(self.wanting.front(), Some(&key));
        let Some(consumer) = self.consumers.at_mut(key) else {
            return;
        };
        let full = |pull: &PullState| pull.messages_left == 0 || pull.bytes_left == 0;
        if consumer.pulls.front().is_some_and(full) {
            self.end_pull(key);
        }
        self.wanting.rotate_left(1);
    }

    fn end_pull(&mut self, key: Key) {
        let Some(consumer) = self.consumers.at_mut(key) else {
            return;
        };
        let Some(pull) = consumer.pulls.pop_front() else {
            return;
        };
        let (owner, correlation) = (consumer.owner, pull.correlation);
        if consumer.pulls.is_empty() {
            self.pulling.retain(|&other| other != key);
        }
        self.pulls_ended.push_back(PullEnd { owner, correlation, messages: pull.brought });
    }
}

/// Ends messages `from..to` of a lease. Returns how many were in flight, and their bytes.
fn end_range(lease: &mut Lease, from: u32, to: u32, log: &mut Log) -> (u32, u64) {
    if from == 0 && lease.left == lease.run.count && to == lease.run.count {
        lease.left = 0;
        log.done(lease.run.at.chunk, lease.run.count);
        return (lease.run.count, lease.run.bytes);
    }
    let (mut count, mut bytes) = (0, 0);
    while let Some((skip, take)) = lease.next_unacked(from, to) {
        bytes += log.part(&lease.run, skip, take).bytes;
        lease.mark(skip, take);
        log.done(lease.run.at.chunk, take);
        count += take;
    }
    (count, bytes)
}
