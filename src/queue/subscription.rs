//! A subscription: its cursor into the log, what came back, and who gets what.
//!
//! ```text
//!              run_at(cursor)             ack
//!   log -------------------> in flight ---------> done
//!                 ^            |   |   \
//!                 |- returned -'   |    `-- rejected, failed too often: dead letter
//!                 |                |
//!                 '--- waiting <---'  failed: after its back-off
//! ```
//!
//! What comes back is ready at its old place: by sequence, ahead of all that is newer.

use crate::base::slot_map::{Key, SlotMap};
use crate::base::time::{Mono, Now, Wall};
use crate::protocol::error::ErrorCode;
use crate::queue::consumer::{Consumer, ConsumerOptions, LargeProgress, Owner};
use crate::queue::counters::SubscriptionCounters;
use crate::queue::dead::DeadLetters;
use crate::queue::due::{DUE_BYTES, DueSet};
use crate::queue::lease::{LEASE_BYTES, Lease};
use crate::queue::log::{Absent, Log, Position, Run, RunBytes};
use crate::queue::memory::{Account, Memory};
use crate::queue::policy::{QueueBounds, SubscriptionOptions};
use crate::queue::portion::{History, Portion};
use crate::queue::pulls::Pulls;
use crate::queue::skips::{SKIP_BYTES, Skips};
use std::collections::{BTreeSet, VecDeque};

pub use crate::queue::parts::Parts;
pub use crate::queue::pulls::PullEnd;
pub use crate::queue::settle::{Acked, ExtendError, NackRequest, NeverDelivered};

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

/// See the module.
pub struct Subscription {
    pub(super) name: Box<str>,
    /// Never used twice in its queue.
    pub(super) number: u64,
    pub(super) options: SubscriptionOptions,
    pub(super) created: Wall,
    pub(super) cursor: Position,
    /// Sequence of the message at the cursor; never one that is skipped.
    pub(super) cursor_sequence: u64,
    /// What is not for it, ahead of the cursor.
    pub(super) skips: Skips,
    pub(super) due: DueSet,
    pub(super) dead: DeadLetters,
    pub(super) ready: u64,
    pub(super) in_flight: u64,
    pub(super) delayed: u64,
    pub(super) dead_lettering: u64,
    /// Of everything held; too much or too little by a bit after losses.
    bytes: u64,
    pub(super) counters: SubscriptionCounters,
    pub(super) consumers: SlotMap<Consumer>,
    /// Consumers that want messages, each once, served in turn.
    wanting: VecDeque<Key>,
    pub(super) pulls: Pulls,
    /// Consumers in the middle of a large message.
    large_count: usize,
    /// When to look for leases that have ended: each consumer once at most.
    pub(super) lease_timers: BTreeSet<(Mono, Key)>,
    /// Since when it has no consumer.
    pub(super) idle_since: Option<Mono>,
    /// No message in flight or waiting has a smaller sequence.
    pub(super) span_floor: u64,
    /// Whether one may have become the smallest that is greater.
    pub(super) span_stale: bool,
    paused: Option<&'static str>,
    /// The absent chunk that the next delivery waits for.
    pub(super) waits: Option<u64>,
    /// Bytes charged for what came back, dead letters and skips.
    charged_bytes: usize,
}

impl Subscription {
    /// One that holds nothing yet and begins at `cursor`.
    pub(super) fn new(
        (name, number): (&str, u64),
        options: SubscriptionOptions,
        now: Now,
        cursor: Position,
        cursor_sequence: u64,
    ) -> Subscription {
        Subscription {
            name: name.into(),
            number,
            options,
            created: now.wall,
            cursor,
            cursor_sequence,
            skips: Skips::default(),
            due: DueSet::default(),
            dead: DeadLetters::default(),
            ready: 0,
            in_flight: 0,
            delayed: 0,
            dead_lettering: 0,
            bytes: 0,
            counters: SubscriptionCounters::default(),
            consumers: SlotMap::default(),
            wanting: VecDeque::new(),
            pulls: Pulls::default(),
            large_count: 0,
            lease_timers: BTreeSet::new(),
            idle_since: Some(now.mono),
            span_floor: cursor_sequence,
            span_stale: true,
            paused: None,
            waits: None,
            charged_bytes: 0,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number in its queue, never used twice there.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its options.
    pub fn options(&self) -> &SubscriptionOptions {
        &self.options
    }

    /// When it was made.
    pub fn created(&self) -> Wall {
        self.created
    }

    /// What went in and out.
    pub fn counters(&self) -> &SubscriptionCounters {
        &self.counters
    }

    /// Messages ready to be delivered.
    pub fn ready(&self) -> u64 {
        self.ready
    }

    /// Messages in flight.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Failed messages that wait for their back-off.
    pub fn delayed(&self) -> u64 {
        self.delayed
    }

    /// Messages on their way to another queue.
    pub fn dead_lettering(&self) -> u64 {
        self.dead_lettering
    }

    /// Messages held, in every state.
    pub fn messages(&self) -> u64 {
        self.ready + self.in_flight + self.delayed + self.dead_lettering
    }

    /// Bytes of the records held, in every state.
    pub fn bytes(&self) -> u64 {
        if self.messages() == 0 { 0 } else { self.bytes }
    }

    /// Bytes of the records ahead of the cursor.
    pub(super) fn bytes_ahead(&self) -> u64 {
        let held = self.held().into_iter().flatten();
        let behind: u64 = held.chain(self.due.ready()).map(Portion::charge).sum();
        self.bytes().saturating_sub(behind)
    }

    /// Whether the next delivery waits for a chunk that is on disk.
    pub fn waits_for_disk(&self) -> bool {
        self.waits.is_some()
    }

    /// Sequence of the next message that was never delivered.
    pub fn cursor_sequence(&self) -> u64 {
        self.cursor_sequence
    }

    /// Why nothing is delivered although something is ready, where a bound is the reason.
    pub fn paused_reason(&self) -> Option<&'static str> {
        self.paused.filter(|_| self.ready > 0)
    }

    /// Why dead letters wait, where they do.
    pub fn dead_letter_reason(&self) -> Option<&'static str> {
        self.dead.reason()
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

    /// Everything that is held but not ready, for the checkers: in flight, waiting, on its way.
    pub fn held(&self) -> [Vec<&Portion>; 3] {
        let consumers = self.consumers.iter();
        let in_flight = consumers.flat_map(|(_, consumer)| consumer.leases.portions()).collect();
        [in_flight, self.due.waiting().collect(), self.dead.portions().collect()]
    }

    /// The log got `count` messages more.
    #[inline]
    pub(super) fn handle_appended(&mut self, count: u64, bytes: u64) {
        if self.counters.lost_damaged > 0 && self.messages() == 0 {
            self.bytes = 0;
        }
        self.ready += count;
        self.bytes += bytes;
        self.counters.entered += count;
    }

    /// Messages left that were accounted for with so many bytes. What lost ones had among others in
    /// their chunk is not known exactly, so there may be less left.
    #[inline]
    pub(super) fn uncharge(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// The log got messages, the last ones, that are not for this subscription.
    pub(super) fn handle_passed_over(&mut self, first: u64, end: u64, parts: &mut Parts<'_>) {
        if let Some((outbox, number)) = &mut parts.outbox {
            outbox.note_done(*number, first, end);
        }
        self.skips.add(first, end);
        self.settle_cursor(parts.log);
        self.settle_charge(parts);
    }

    /// Opens a consumer.
    pub(super) fn open_consumer(&mut self, owner: Owner, options: ConsumerOptions) -> Key {
        let consumer = Consumer::new(owner, options, self.options.lease_ms);
        let key = self.consumers.insert(consumer);
        self.idle_since = None;
        self.enqueue(key);
        key
    }

    /// Adds credit. False if it would pass what a consumer may hold, or it is gone.
    pub(super) fn add_credit(&mut self, key: Key, messages: u32, bytes: u64) -> bool {
        let added = self.consumers.at_mut(key).is_some_and(|c| c.add_credit(messages, bytes));
        self.enqueue(key);
        added
    }

    /// The consumer's connection can take bytes again.
    pub(super) fn handle_unstalled(&mut self, key: Key) {
        if let Some(consumer) = self.consumers.at_mut(key) {
            consumer.stalled = false;
        }
        self.enqueue(key);
    }

    /// Closes a consumer; what it has in flight is ready again at its old place.
    pub(super) fn close_consumer(&mut self, key: Key, now: Now, parts: &mut Parts<'_>) {
        self.drop_pulls(key, parts);
        let Some(mut consumer) = self.consumers.remove(key) else {
            return;
        };
        self.wanting.retain(|&other| other != key);
        self.large_count -= usize::from(consumer.large.is_some());
        if let Some(armed) = consumer.armed {
            self.lease_timers.remove(&(armed, key));
        }
        parts.memory.budget.release(Account::InFlight, LEASE_BYTES * consumer.leases.records());
        for portion in consumer.leases.drain() {
            self.give_back(portion, parts);
        }
        if self.consumers.is_empty() {
            self.idle_since = Some(now.mono);
        }
    }

    /// The next delivery, to a consumer whose connection `can_take` one. Call until `None`; then
    /// poll [`Subscription::poll_pull_end`].
    pub(super) fn poll_delivery(
        &mut self,
        now: Now,
        parts: &mut Parts<'_>,
        can_take: &mut impl FnMut(Owner) -> bool,
    ) -> Option<Delivery> {
        // Who waited for a chunk may have gone, or the subscription may pause since: then it need
        // not be kept for anybody.
        self.waits = None;
        let mut serving = self.ready > 0;
        if serving {
            self.paused = self.pause(parts);
            serving = self.paused.is_none();
        }
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
                let fragment = self.deliver_fragment(key, large, now, parts);
                if fragment.is_some() {
                    return fragment;
                }
                self.wanting.rotate_left(1);
                continue;
            }
            let (records_max, bytes_max) = consumer.allowance();
            let records_max = u64::from(records_max).min(self.room(parts.bounds)) as u32;
            if serving && let Some((run, history)) = self.take_run(parts, records_max, bytes_max) {
                return self.deliver(key, run, history, now, parts);
            }
            // Nothing for this one, but another may be in the middle of a large message.
            serving = false;
            self.wanting.rotate_left(1);
        }
        None
    }

    /// Removes all that is ready or waits. Returns messages and bytes.
    pub(super) fn purge(&mut self, parts: &mut Parts<'_>) -> (u64, u64) {
        let messages = self.ready + self.delayed;
        let [in_flight, _, dead] = self.held();
        let stays = in_flight.iter().chain(&dead).map(|portion| portion.charge()).sum();
        let bytes = self.bytes().saturating_sub(stays);
        for portion in self.due.drain() {
            parts.done(&portion);
        }
        self.drop_ahead(parts);
        self.ready = 0;
        self.delayed = 0;
        self.bytes = stays;
        self.counters.purged += messages;
        parts.counters.purged += messages;
        self.settle_charge(parts);
        (messages, bytes)
    }

    /// Removes everything; its consumers are gone already. Returns messages and bytes.
    pub(super) fn clear(&mut self, parts: &mut Parts<'_>) -> (u64, u64) {
        let removed = (self.messages(), self.bytes());
        self.purge(parts);
        for portion in self.dead.drain() {
            parts.done(&portion);
        }
        self.counters.purged += self.dead_lettering;
        parts.counters.purged += self.dead_lettering;
        (self.dead_lettering, self.bytes) = (0, 0);
        self.settle_charge(parts);
        removed
    }

    /// Runs that are ready and not before `from`, in the order in which they would be delivered, up
    /// to the first chunk that is absent.
    pub(super) fn ready_runs<'a>(
        &'a self,
        from: u64,
        log: &'a Log,
    ) -> impl Iterator<Item = Result<Run, Absent>> + 'a {
        let mut sequence = from.max(self.cursor_sequence);
        let mut at = log.seek(self.cursor, sequence);
        let mut back = self.due.first_ready_from(from, log);
        std::iter::from_fn(move || {
            while let Some(end) = self.skips.end_of(sequence) {
                (at, sequence) = (log.seek(at, end), end);
            }
            let first_back = back.map_or(u64::MAX, |(sequence, _)| sequence);
            let stop = self.skips.next_from(sequence).unwrap_or(u64::MAX).min(first_back);
            let records_max = stop.saturating_sub(sequence).min(u64::from(u32::MAX)) as u32;
            if records_max > 0 {
                match log.run_at(at, records_max, u64::MAX) {
                    Ok(Some((run, next))) => {
                        (at, sequence) = (next, run.sequence + u64::from(run.count));
                        return Some(Ok(run));
                    }
                    Ok(None) => {}
                    Err(absent) => return Some(Err(absent)),
                }
            }
            let (_, run) = back?;
            if let Ok(run) = run {
                back = self.due.first_ready_from(run.sequence + u64::from(run.count), log);
            }
            Some(run)
        })
    }

    /// Sequences that are ready, as ordered ranges `(first, end)` that do not overlap.
    pub(super) fn ready_ranges(&self, log: &Log) -> Vec<(u64, u64)> {
        let back = self.due.ready().flat_map(Portion::sequences);
        let mut ranges: Vec<_> = back.map(|(first, last)| (first, last + 1)).collect();
        let (mut from, end) = (self.cursor_sequence, log.next_sequence());
        for (skipped, past) in self.skips.iter().chain([(end, end)]) {
            ranges.push((from, skipped));
            from = past;
        }
        ranges.retain(|(first, end)| first < end);
        ranges.sort_unstable();
        ranges
    }

    /// Whether a consumer is in the middle of a large message.
    pub(super) fn is_in_fragments(&self) -> bool {
        self.large_count > 0
    }

    pub(super) fn enqueue(&mut self, key: Key) {
        if let Some(consumer) = self.consumers.at_mut(key)
            && !consumer.queued
            && consumer.wants()
        {
            consumer.queued = true;
            self.wanting.push_back(key);
        }
    }

    /// The bound that holds deliveries up, if one does.
    pub(super) fn pause(&mut self, parts: &Parts<'_>) -> Option<&'static str> {
        let unacked_max = self.options.unacked_max;
        // Where dead letters wait for memory, others must go on, for they give it back.
        let code = self.dead.reason().and_then(ErrorCode::from_name);
        let wait_for_memory = code.is_some_and(ErrorCode::is_of_memory);
        let waiting = self.delayed + if wait_for_memory { 0 } else { self.dead_lettering };
        if unacked_max > 0 && self.in_flight >= unacked_max {
            Some("unacked_max")
        } else if self.in_flight >= parts.bounds.in_flight_max {
            Some("in_flight_max")
        } else if self.is_short_of_memory(parts.memory) {
            Some("memory_limit")
        } else if waiting >= parts.bounds.retry_waiting_max {
            Some("retry_waiting_max")
        // What came back is old, so it makes the span no longer; and with nothing in flight or
        // waiting there is no end of it that would end the pause.
        } else if self.in_flight + self.delayed > 0
            && self.due.first_ready().is_none()
            && self.is_span_over(parts.bounds.ack_span_max)
        {
            Some("ack_span_max")
        } else {
            None
        }
    }

    /// Whether there is no memory to remember one more run in flight. With nothing in flight one is
    /// delivered all the same: it is by acks that memory becomes free.
    pub(super) fn is_short_of_memory(&self, memory: &Memory) -> bool {
        self.in_flight > 0 && memory.budget.free_for_leases() < (LEASE_BYTES + DUE_BYTES) as u64
    }

    /// The floor is looked for only where it may decide, and not again until it has moved.
    fn is_span_over(&mut self, span_max: u64) -> bool {
        let span = |floor: u64| self.cursor_sequence.saturating_sub(floor);
        if span(self.span_floor) < span_max {
            return false;
        }
        if std::mem::take(&mut self.span_stale) {
            let [in_flight, waiting, _] = self.held();
            let firsts = in_flight.iter().chain(&waiting).map(|portion| portion.first_sequence());
            self.span_floor = firsts.min().unwrap_or(self.cursor_sequence);
        }
        self.cursor_sequence.saturating_sub(self.span_floor) >= span_max
    }

    /// Takes messages out of ready: the oldest.
    pub(super) fn take_run(
        &mut self,
        parts: &mut Parts<'_>,
        records_max: u32,
        bytes_max: u64,
    ) -> Option<(Run, History)> {
        if self.ready == 0 || records_max == 0 {
            return None;
        }
        self.try_take_run(parts, records_max, bytes_max).unwrap_or_else(|absent| {
            self.wait_for(absent, parts.log);
            None
        })
    }

    #[inline]
    fn try_take_run(
        &mut self,
        parts: &mut Parts<'_>,
        records_max: u32,
        bytes_max: u64,
    ) -> Result<Option<(Run, History)>, Absent> {
        let mut records_max = records_max;
        let back = self.due.first_ready();
        let (run, history) = if back.is_some_and(|sequence| sequence < self.cursor_sequence) {
            parts.log.check_present(self.due.first_ready_chunk())?;
            let taken = self.due.take_front(parts.log, records_max, bytes_max)?;
            self.settle_charge(parts);
            taken
        } else {
            let stop = back.into_iter().chain(self.skips.first()).min();
            if let Some(stop) = stop {
                records_max = records_max.min((stop - self.cursor_sequence).min(1 << 31) as u32);
            }
            let Some((mut run, mut next)) =
                parts.log.run_at(self.cursor, records_max, bytes_max)?
            else {
                return Ok(None);
            };
            if run.sequence != self.cursor_sequence {
                // It was moved in a chunk that was absent then.
                self.cursor = parts.log.seek(self.cursor, self.cursor_sequence);
                let found = parts.log.run_at(self.cursor, records_max, bytes_max)?;
                (run, next) = found.expect("a message stands at the cursor");
            }
            if run.large {
                parts.log.check_present(Some(run.at.chunk))?;
            }
            self.cursor = next;
            self.cursor_sequence = run.sequence + u64::from(run.count);
            if !self.skips.is_empty() {
                self.settle_cursor(parts.log);
                self.settle_charge(parts);
            }
            (run, History::default())
        };
        self.ready -= u64::from(run.count);
        Ok(Some((run, history)))
    }

    /// The next delivery waits for a chunk.
    #[cold]
    fn wait_for(&mut self, absent: Absent, log: &mut Log) {
        self.waits = Some(absent.chunk);
        log.want(absent);
        log.spilled.waited = true;
    }

    /// Messages that may still be in flight.
    fn room(&self, bounds: &QueueBounds) -> u64 {
        let own = match self.options.unacked_max {
            0 => u64::MAX,
            max => max,
        };
        own.min(bounds.in_flight_max).saturating_sub(self.in_flight)
    }

    /// Moves the cursor past what is skipped.
    pub(super) fn settle_cursor(&mut self, log: &Log) {
        let next = self.skips.pass(self.cursor_sequence);
        if next != self.cursor_sequence {
            self.cursor = log.seek(self.cursor, next);
            self.cursor_sequence = next;
        }
    }

    /// Counts everything from the cursor on as done, and moves it to the end.
    fn drop_ahead(&mut self, parts: &mut Parts<'_>) {
        let (at, mut sequence) = (self.cursor, self.cursor_sequence);
        let end = parts.log.next_sequence();
        for (first, past) in self.skips.iter().chain([(end, end)]) {
            parts.done_between(at, sequence, first);
            sequence = past;
        }
        self.skips.clear();
        self.cursor = parts.log.end();
        self.cursor_sequence = end;
    }

    /// Charges what is remembered of messages that came back, dead letters and skips.
    pub(super) fn settle_charge(&mut self, parts: &mut Parts<'_>) {
        let bytes =
            self.due.entries() * DUE_BYTES + self.dead.bytes() + self.skips.len() * SKIP_BYTES;
        if bytes != self.charged_bytes {
            parts.memory.budget.charge(Account::InFlight, bytes);
            parts.memory.budget.release(Account::InFlight, self.charged_bytes);
            self.charged_bytes = bytes;
        }
    }

    fn deliver(
        &mut self,
        key: Key,
        run: Run,
        mut history: History,
        now: Now,
        parts: &mut Parts<'_>,
    ) -> Option<Delivery> {
        let count = u64::from(run.count);
        let again = if history.attempts > 0 { count } else { 0 };
        history.attempts = history.attempts.saturating_add(1);
        parts.counters.delivered += count;
        parts.counters.delivered_bytes += run.bytes;
        parts.counters.redelivered += again;
        self.counters.delivered += count;
        self.counters.delivered_bytes += run.bytes;
        self.counters.redelivered += again;
        let consumer = self.consumers.at_mut(key).expect("the caller looked it up");
        let delivery_id = consumer.next_delivery;
        consumer.next_delivery += count;
        if consumer.spend(run.count, run.bytes) {
            self.pulls.note_brought(key);
        }
        let (auto_ack, checksum, owner) = (consumer.auto_ack, consumer.checksum, consumer.owner);
        if !auto_ack || run.large {
            self.in_flight += count;
            self.span_floor = self.span_floor.min(run.sequence);
            consumer.in_flight += count;
            // The lease of a large message begins when all of it was sent.
            let deadline = match run.large {
                true => Mono(u64::MAX),
                false => now.mono.plus_ms(u64::from(consumer.lease_ms)),
            };
            let portion = Portion::whole(run, history);
            consumer.leases.push(Lease::new(delivery_id, deadline, portion));
            parts.memory.budget.charge(Account::InFlight, LEASE_BYTES);
            self.arm(key, deadline);
        }
        if run.large {
            let large = LargeProgress { run, at: run.at, delivery_id, history };
            if let Some(consumer) = self.consumers.at_mut(key) {
                consumer.large = Some(large);
            }
            self.large_count += 1;
            return self.deliver_fragment(key, large, now, parts);
        }
        let bytes = parts.log.run_bytes(&run).expect("it was taken from a chunk in memory");
        if auto_ack {
            self.count_done(count, run.charge, parts);
            parts.done_run(&run);
        }
        self.turn(key, parts);
        let attempts = history.attempts;
        let (count, fragment) = (run.count, false);
        Some(Delivery { owner, bytes, delivery_id, count, attempts, fragment, checksum })
    }

    fn deliver_fragment(
        &mut self,
        key: Key,
        large: LargeProgress,
        now: Now,
        parts: &mut Parts<'_>,
    ) -> Option<Delivery> {
        let (bytes, next) = match parts.log.fragment_at(&large.run, large.at) {
            Ok(found) => found,
            Err(absent) => {
                parts.log.want(absent);
                parts.log.spilled.waited = true;
                return None;
            }
        };
        let consumer = self.consumers.at_mut(key).expect("the caller looked it up");
        consumer.large = next.map(|at| LargeProgress { at, ..large });
        let delivery = Delivery {
            owner: consumer.owner,
            bytes,
            delivery_id: large.delivery_id,
            count: 1,
            attempts: large.history.attempts,
            fragment: true,
            checksum: consumer.checksum,
        };
        if next.is_none() {
            self.large_count -= 1;
            let deadline = now.mono.plus_ms(u64::from(consumer.lease_ms));
            consumer.leases.begin_newest(deadline);
            if consumer.auto_ack {
                let id = large.delivery_id;
                self.ack(key, id, id, parts).expect("the delivery was just given out");
            } else {
                self.arm(key, deadline);
            }
            self.turn(key, parts);
        }
        Some(delivery)
    }

    /// Messages are acked.
    pub(super) fn count_done(&mut self, count: u64, bytes: u64, parts: &mut Parts<'_>) {
        self.uncharge(bytes);
        self.counters.acked += count;
        parts.counters.acked += count;
    }

    /// Sees to it that the consumer is looked at when its next lease ends. A look that comes too
    /// early sets the next one.
    #[inline]
    pub(super) fn arm(&mut self, key: Key, deadline: Mono) {
        let Some(consumer) = self.consumers.at_mut(key) else { return };
        if deadline == Mono(u64::MAX) || consumer.armed.is_some_and(|armed| armed <= deadline) {
            return;
        }
        if let Some(armed) = consumer.armed.replace(deadline) {
            self.lease_timers.remove(&(armed, key));
        }
        self.lease_timers.insert((deadline, key));
    }

    /// The consumer at the front of the ring was served: the next one's turn.
    fn turn(&mut self, key: Key, parts: &mut Parts<'_>) {
        debug_assert_eq!(self.wanting.front(), Some(&key));
        let Some(consumer) = self.consumers.at_mut(key) else {
            return;
        };
        if let Some(pull) = consumer.pulls.front()
            && (pull.messages_left == 0 || pull.bytes_left == 0 || pull.over)
        {
            self.end_pull(key, parts);
        }
        self.wanting.rotate_left(1);
    }
}
