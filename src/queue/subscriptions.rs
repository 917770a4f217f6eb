//! The subscriptions of a queue: how they come and go, what is due for them, and what leaves them
//! for another queue.

use crate::base::slot_map::Key;
use crate::base::time::{Mono, Now};
use crate::limits::{BACKOFF_LIST_MAX, NAME_BYTES_MAX, RUN_RECORDS_MAX, SUBSCRIPTIONS_MAX};
use crate::protocol::error::ErrorCode;
use crate::queue::consumer::Owner;
use crate::queue::dead::MoveOut;
use crate::queue::due::DUE_BYTES;
use crate::queue::log::{Absent, Log, Position};
use crate::queue::memory::{Account, Memory, MemoryFull};
use crate::queue::policy::{Start, SubscriptionOptions};
use crate::queue::portion::{History, Portion};
use crate::queue::skips::{SKIP_BYTES, Skips};
use crate::queue::subscription::Subscription;
use crate::queue::{CONSUMER_BYTES, Queue};
use std::collections::BTreeMap;

/// A subscription could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateSubscriptionError {
    /// There is one of the name, with other options.
    #[error("the subscription exists with other options; update or delete it")]
    Exists,
    /// There are as many as a queue may have.
    #[error("a queue may have {SUBSCRIPTIONS_MAX} subscriptions")]
    TooMany,
    /// There is no memory for it.
    #[error(transparent)]
    MemoryFull(MemoryFull),
    /// What it begins with must be read first; it is asked for.
    #[error("what it begins with is on disk and is being read; ask again")]
    Absent(Absent),
}

/// Consumers have the subscription open, and it was not to be forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} consumers have the subscription open")]
pub struct SubscriptionInUse(pub usize);

/// What one takes, its own name apart.
const SUBSCRIPTION_BYTES: usize =
    size_of::<Subscription>() + NAME_BYTES_MAX + size_of::<u32>() * BACKOFF_LIST_MAX + 256;

pub(super) fn charged_bytes(name: &str) -> usize {
    SUBSCRIPTION_BYTES + 2 * name.len()
}

impl Queue {
    /// All subscriptions, by name.
    pub fn subscriptions(&self) -> impl Iterator<Item = (Key, &Subscription)> {
        let all = self.names.values();
        all.filter_map(|&key| Some((key, &**self.subscriptions.at(key)?)))
    }

    /// A subscription.
    pub fn subscription(&self, key: Key) -> Option<&Subscription> {
        self.subscriptions.at(key).map(|subscription| &**subscription)
    }

    /// The subscription of a name.
    pub fn subscription_key(&self, name: &str) -> Option<Key> {
        self.names.get(name).copied()
    }

    /// How many there are.
    pub fn subscription_count(&self) -> usize {
        self.turns.len()
    }

    /// Makes a subscription. False if it exists, with these options.
    ///
    /// # Errors
    /// See [`CreateSubscriptionError`].
    pub fn create_subscription(
        &mut self,
        name: &str,
        options: SubscriptionOptions,
        start: Start,
        now: Now,
        memory: &mut Memory,
    ) -> Result<bool, CreateSubscriptionError> {
        if let Some(known) = self.subscription_key(name).and_then(|key| self.subscription(key)) {
            return match *known.options() == options {
                true => Ok(false),
                false => Err(CreateSubscriptionError::Exists),
            };
        }
        if self.turns.len() >= SUBSCRIPTIONS_MAX {
            return Err(CreateSubscriptionError::TooMany);
        }
        let charged = memory.try_charge(Account::Queues, charged_bytes(name));
        charged.map_err(CreateSubscriptionError::MemoryFull)?;
        let (cursor, sequence) = (self.log.end(), self.log.next_sequence());
        let number = self.next_subscription;
        let mut made = Subscription::new((name, number), options, now, cursor, sequence);
        if start == Start::Oldest
            && let Err(error) = self.begin_with_oldest(&mut made, memory)
        {
            memory.budget.release(Account::Queues, charged_bytes(name));
            if let CreateSubscriptionError::Absent(absent) = error {
                self.log.want(absent);
            }
            return Err(error);
        }
        self.next_subscription += 1;
        let key = self.insert_subscription(made);
        if let Some(outbox) = &mut self.outbox {
            outbox.note_subscribed(key);
        }
        Ok(true)
    }

    pub(super) fn insert_subscription(&mut self, made: Subscription) -> Key {
        let name = made.name.clone();
        let key = self.subscriptions.insert(Box::new(made));
        self.names.insert(name, key);
        self.turns.push(key);
        key
    }

    /// Gives a new subscription all that another one holds. Ahead of the smallest cursor that is
    /// everything that not all of them skip; behind it, what came back or is in flight somewhere.
    /// Nothing has changed where it fails.
    fn begin_with_oldest(
        &mut self,
        made: &mut Subscription,
        memory: &mut Memory,
    ) -> Result<(), CreateSubscriptionError> {
        let Some(base) = self.each().min_by_key(|other| other.cursor_sequence) else {
            return Ok(());
        };
        let (first, at) = (base.cursor_sequence, base.cursor);
        let end = self.log.next_sequence();
        let held = self.held_behind_cursors();
        (made.cursor, made.cursor_sequence) = (at, first);
        for (from, to) in gaps(&self.ahead(&held, first, end), first, end) {
            made.skips.add(from, to);
        }
        // What the other has ahead of its cursor is known without a look at the records.
        let more =
            base.skips.iter().map(|(from, to)| sum_without(&self.log, at, from, to, &made.skips));
        let more: Result<u64, Absent> = more.sum();
        let bytes_ahead = base.bytes_ahead() + more.map_err(CreateSubscriptionError::Absent)?;
        // What is behind its cursor comes in portions of the runs that others hold.
        let mut behind: BTreeMap<u64, Portion> = BTreeMap::new();
        for portion in &held {
            let below = first.clamp(portion.run.sequence, run_end(portion)) - portion.run.sequence;
            let mut wanted = portion.clone().take(0, below as u32);
            wanted.history = History::default();
            without(&mut wanted, &behind);
            if wanted.left() > 0 {
                behind.insert(wanted.first_sequence(), wanted);
            }
        }
        // It is no delivery, so it leaves the reserve to those.
        let bytes = behind.len() * DUE_BYTES + made.skips.len() * SKIP_BYTES;
        let charged = memory.try_charge(Account::Queues, bytes);
        charged.map_err(CreateSubscriptionError::MemoryFull)?;
        memory.budget.release(Account::Queues, bytes);
        for portion in behind.into_values() {
            let count = portion.left();
            self.log.hold(portion.run.at.chunk, count);
            made.handle_appended(u64::from(count), portion.charge());
            made.due.put_ready(portion);
        }
        let mut from = first;
        let skips: Vec<_> = made.skips.iter().chain([(end, end)]).collect();
        for (to, past) in skips {
            self.log.hold_between(at, from, to);
            made.handle_appended(to.saturating_sub(from), 0);
            from = past;
        }
        made.handle_appended(0, bytes_ahead);
        made.settle_cursor(&self.log);
        let (counters, bounds, prng) = (&mut self.counters, &self.bounds, &mut self.prng);
        let log = &mut self.log;
        let outbox = None;
        made.settle_charge(&mut super::Parts { log, counters, memory, bounds, prng, outbox });
        Ok(())
    }

    /// Everything that subscriptions hold behind their cursors, or took out from ahead of them.
    fn held_behind_cursors(&self) -> Vec<Portion> {
        let mut held = Vec::new();
        for subscription in self.each() {
            held.extend(subscription.held().into_iter().flatten().cloned());
            held.extend(subscription.due.ready().cloned());
        }
        held
    }

    /// Sequences in `first..end` that somebody holds, as ranges `(first, end)`, ordered.
    fn ahead(&self, held: &[Portion], first: u64, end: u64) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        for subscription in self.each() {
            let mut from = subscription.cursor_sequence;
            for (skipped, past) in subscription.skips.iter().chain([(end, end)]) {
                ranges.push((from, skipped));
                from = past;
            }
        }
        let portions = held.iter().flat_map(Portion::sequences);
        ranges.extend(portions.map(|(from, last)| (from, last + 1)));
        ranges.retain_mut(|(from, _)| {
            *from = (*from).max(first);
            true
        });
        ranges.retain(|(from, to)| from < to);
        ranges.sort_unstable();
        ranges
    }

    /// Changes the options of a subscription, for what comes after.
    pub fn update_subscription(&mut self, key: Key, options: SubscriptionOptions, now: Now) {
        let Some(subscription) = self.subscriptions.at_mut(key) else { return };
        // The time without a consumer counts from the change where it is new.
        if subscription.options.expires_after_ms != options.expires_after_ms
            && let Some(since) = &mut subscription.idle_since
        {
            *since = now.mono;
        }
        subscription.options = options;
        if let Some(outbox) = &mut self.outbox {
            outbox.note_subscribed(key);
        }
    }

    /// Ends a subscription. Returns messages and bytes that it held. With `force` its consumers
    /// are closed; poll them.
    ///
    /// # Errors
    /// If consumers have it open, unless forced.
    pub fn delete_subscription(
        &mut self,
        key: Key,
        force: bool,
        memory: &mut Memory,
    ) -> Result<(u64, u64), SubscriptionInUse> {
        let Some((subscription, mut parts)) = self.parts(key, memory) else { return Ok((0, 0)) };
        let owners = subscription.owners();
        if !owners.is_empty() && !force {
            return Err(SubscriptionInUse(owners.len()));
        }
        for &(consumer, _) in &owners {
            parts.memory.budget.release(Account::Handles, CONSUMER_BYTES);
            subscription.close_consumer(consumer, Now::default(), &mut parts);
        }
        let removed = subscription.clear(&mut parts);
        let closed = owners.into_iter().map(|(_, owner)| (owner, ErrorCode::SubscriptionDeleted));
        self.closed.extend(closed);
        if let Some(gone) = self.subscriptions.remove(key) {
            if let Some(outbox) = &mut self.outbox {
                outbox.note_unsubscribed(key, gone.number);
            }
            memory.budget.release(Account::Queues, charged_bytes(&gone.name));
            self.names.remove(&gone.name);
        }
        self.turns.retain(|&other| other != key);
        self.turn = 0;
        Ok(removed)
    }

    /// A consumer whose subscription is gone, and why; it is to be told.
    pub fn poll_closed(&mut self) -> Option<(Owner, ErrorCode)> {
        self.closed.pop_front()
    }

    // ---- deadlines ----

    /// When the next thing is due: the end of a lease, of a wait, of a pull, of a subscription.
    /// It may be that nothing is due then after all.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.each().filter_map(Subscription::next_deadline).min()
    }

    /// Handles what is due; poll as after any verb. What is too much for one call is due still.
    pub fn handle_deadline(&mut self, now: Now, memory: &mut Memory) {
        for nth in 0..self.turns.len() {
            let Some((subscription, mut parts)) = self.parts(self.turns[nth], memory) else {
                continue;
            };
            subscription.handle_deadline(now, &mut parts);
        }
        let expired = |key: &Key| self.subscription(*key).is_some_and(|s| s.is_expired(now.mono));
        let expired: Vec<Key> = self.turns.iter().copied().filter(expired).collect();
        for key in expired {
            self.delete_subscription(key, true, memory).expect("it is forced");
        }
    }

    // ---- to other queues ----

    /// The next message that another queue shall have. It is held here until
    /// [`Queue::handle_moved`].
    pub fn poll_move(&mut self, now: Now) -> Option<MoveOut> {
        for nth in 0..self.turns.len() {
            let key = self.turns[nth];
            let subscription = self.subscriptions.at_mut(key)?;
            let out = subscription.dead.poll(key, now.mono, &mut self.log);
            if out.is_some() {
                return out;
            }
        }
        None
    }

    /// What became of a move: the target has the message, or why it does not take it.
    pub fn handle_moved(
        &mut self,
        subscription: Key,
        sequence: u64,
        outcome: Result<(), &'static str>,
        now: Now,
        memory: &mut Memory,
    ) {
        if let Some((subscription, mut parts)) = self.parts(subscription, memory) {
            subscription.handle_moved(sequence, outcome, now, &mut parts);
        }
    }

    /// Takes a message that is ready out for another queue, as a dead letter is, but it is ready
    /// again if the move is refused. False if it is not ready.
    ///
    /// # Errors
    /// When there is no memory to remember it.
    pub fn begin_redrive(
        &mut self,
        subscription: Key,
        sequence: u64,
        memory: &mut Memory,
    ) -> Result<bool, MemoryFull> {
        let room = memory.budget.try_charge(Account::InFlight, REDRIVE_BYTES);
        room?;
        memory.budget.release(Account::InFlight, REDRIVE_BYTES);
        let Some((subscription, mut parts)) = self.parts(subscription, memory) else {
            return Ok(false);
        };
        Ok(subscription.begin_redrive(sequence, &mut parts))
    }

    /// The queue that dead letters of a subscription go to.
    pub fn dead_letter_name(&self, subscription: Key) -> String {
        let own = self.subscription(subscription).and_then(|s| s.options.dead_letter.as_deref());
        own.map_or_else(|| format!("{}.dead", self.name), str::to_owned)
    }

    /// Whether that queue is made where it does not exist: only the default one is.
    pub fn makes_dead_letter(&self, subscription: Key) -> bool {
        self.subscription(subscription).is_some_and(|s| s.options.dead_letter.is_none())
    }
}

/// What one message in a redrive may take: its place on the way and a hole ahead of the cursor.
const REDRIVE_BYTES: usize = 1024;

fn run_end(portion: &Portion) -> u64 {
    portion.run.sequence + u64::from(portion.run.count)
}

/// What of `first..end` is in none of the ordered ranges.
fn gaps(ranges: &[(u64, u64)], first: u64, end: u64) -> Vec<(u64, u64)> {
    let (mut at, mut gaps) = (first, Vec::new());
    for &(from, to) in ranges.iter().chain([&(end, end)]) {
        if from > at {
            gaps.push((at, from));
        }
        at = at.max(to);
    }
    gaps
}

/// Takes out of a portion what stands in others already.
fn without(portion: &mut Portion, others: &BTreeMap<u64, Portion>) {
    let reach = portion.run.sequence.saturating_sub(RUN_RECORDS_MAX as u64)..run_end(portion);
    for other in others.range(reach).map(|(_, other)| other) {
        for (from, last) in other.sequences() {
            let held = portion.run.sequence..run_end(portion);
            let from = from.clamp(held.start, held.end) - held.start;
            let to = (last + 1).clamp(held.start, held.end) - held.start;
            portion.take(from as u32, to as u32);
        }
    }
}

/// Bytes of those messages of `first..end` that are not skipped; `at` is not behind them.
fn sum_without(
    log: &Log,
    at: Position,
    first: u64,
    end: u64,
    skips: &Skips,
) -> Result<u64, Absent> {
    let (mut at, mut sequence, mut sum) = (at, first, 0);
    while sequence < end {
        if let Some(past) = skips.end_of(sequence) {
            sequence = past;
            continue;
        }
        let stop = skips.next_from(sequence).map_or(end, |next| next.min(end));
        let count_max = (stop - sequence).min(u64::from(u32::MAX)) as u32;
        at = log.seek(at, sequence);
        let Some((run, next)) = log.run_at(at, count_max, u64::MAX)? else { break };
        sum += run.bytes;
        (at, sequence) = (next, run.sequence + u64::from(run.count));
    }
    Ok(sum)
}
