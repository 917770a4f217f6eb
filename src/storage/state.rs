//! What the records of a store's journal add up to: its queues, what their subscriptions have done
//! with, and where everybody is. The bodies of messages are not kept, only which are still wanted.
//!
//! ```text
//! apply      for each record, from the first that is needed on
//! finish     once: takes out what is deleted or done
//! is_live    for each batch, when the log is read again for the bodies
//! ```
//!
//! A store says again from time to time what is true of each of its queues (a *round*), so that
//! the log before that can go. So a record may come twice, and a record of a queue may stand in
//! front of the round that defines it. What makes that come to the same:
//!
//! - What is deleted stays deleted, whatever comes later: numbers are never used twice.
//! - What is done stays done. Sequences, also those of producers, only grow.
//! - A failure takes the place of an earlier one of the same message, and of a message that is done
//!   there is none.
//! - A move that is settled stays settled. A round says which are not, and carries messages without
//!   the moves that brought them.
//! - What has no definition in the end was deleted before the first round that is left.

use crate::base::range_set::RangeSet;
use crate::format::batch::{BatchHeader, Batches};
use crate::format::change::{
    Change, ChangeError, Failure, FragmentOf, MoveName, Published, QueueDefinition,
    SubscriptionDefinition,
};
use crate::format::journal::{CARRIED, Record};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreState {
    /// By their numbers.
    pub queues: BTreeMap<u64, QueueState>,
}

/// A queue of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Always there after [`StoreState::finish`].
    pub definition: Option<Definition>,
    /// Of the next message: behind all that any record names.
    pub next_sequence: u64,
    /// By their numbers.
    pub subscriptions: BTreeMap<u64, SubscriptionState>,
    /// By their ids: their last sequences. More than the queue knew, if it has forgotten some.
    pub producers: BTreeMap<u64, u64>,
    /// Moves to the queue that are not settled.
    pub moves: BTreeSet<MoveName>,
    replay: Replay,
}

/// A subscription of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionState {
    /// Always there after [`StoreState::finish`].
    pub definition: Option<Definition>,
    /// No message before it is held; after [`StoreState::finish`] the first that is not done.
    pub start: u64,
    /// Sequences behind that which are done.
    pub done: RangeSet,
    /// By their first sequence; they do not overlap.
    pub failures: BTreeMap<u64, Failure>,
    is_deleted: bool,
}

/// What a queue or a subscription was made as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definition {
    /// Its name.
    pub name: String,
    /// Wall clock, microseconds.
    pub created_us: u64,
    /// As the control plane wrote them.
    pub options: Vec<u8>,
}

/// What matters of a queue only while records are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Replay {
    is_deleted: bool,
    /// By their sequences: large messages whose fragments are not all there.
    unfinished: BTreeMap<u64, Unfinished>,
    settled: BTreeSet<MoveName>,
}

/// A large message whose fragments are not all there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unfinished {
    count: u32,
    there: RangeSet,
    /// What the last fragment says.
    moved: Option<MoveName>,
    producer: (u64, u64),
}

impl StoreState {
    /// Takes a record; see the module for the order.
    ///
    /// # Errors
    /// If it is not understood. Then nothing has changed.
    pub fn apply(&mut self, record: &Record<'_>) -> Result<(), ChangeError> {
        match Change::decode(record)? {
            Change::Published(published) => {
                let is_carried = record.flags & CARRIED != 0;
                self.queue(published.queue).publish(&published, is_carried);
            }
            Change::Done { queue, subscription, ranges } => {
                let queue = self.queue(queue);
                for (first, end) in ranges {
                    queue.subscription(subscription).done.add(first, end);
                    queue.note_end(end);
                }
            }
            Change::Failed { queue, subscription, entries } => {
                let queue = self.queue(queue);
                for failure in entries {
                    queue.subscription(subscription).fail(failure);
                    queue.note_end(failure.end());
                }
            }
            Change::Queue(of) => self.queue(of.queue).define(&of),
            Change::QueueDeleted { queue } => {
                let replay = Replay { is_deleted: true, ..Replay::default() };
                *self.queue(queue) = QueueState { replay, ..QueueState::default() };
            }
            Change::Subscription(of) => {
                let queue = self.queue(of.queue);
                queue.subscription(of.subscription).define(&of);
                queue.note_end(of.start);
            }
            Change::SubscriptionDeleted { queue, subscription } => {
                let deleted = SubscriptionState { is_deleted: true, ..Default::default() };
                *self.queue(queue).subscription(subscription) = deleted;
            }
            Change::Producers { queue, entries } => {
                let queue = self.queue(queue);
                entries.for_each(|producer| queue.note_producer(producer));
            }
            Change::MovesSettled { queue, moves } => {
                let queue = self.queue(queue);
                for name in moves {
                    queue.moves.remove(&name);
                    queue.replay.settled.insert(name);
                }
            }
            Change::Moves { queue, moves } => self.queue(queue).moved(moves),
        }
        Ok(())
    }

    /// All records were applied: takes out what is deleted or was never defined, and what is said
    /// of messages that are done. Nothing is applied after that.
    pub fn finish(&mut self) {
        self.queues.retain(|_, queue| !queue.replay.is_deleted && queue.definition.is_some());
        for queue in self.queues.values_mut() {
            queue.replay = Replay::default();
            queue.subscriptions.retain(|_, of| !of.is_deleted && of.definition.is_some());
            queue.subscriptions.values_mut().for_each(SubscriptionState::finish);
        }
    }

    /// Whether any subscription of the queue still holds any message of `first..end`. For after
    /// [`StoreState::finish`].
    pub fn is_live(&self, queue: u64, first: u64, end: u64) -> bool {
        let queue = self.queues.get(&queue);
        queue.is_some_and(|queue| queue.subscriptions.values().any(|of| of.holds(first, end)))
    }

    fn queue(&mut self, number: u64) -> &mut QueueState {
        self.queues.entry(number).or_default()
    }
}

impl QueueState {
    fn subscription(&mut self, number: u64) -> &mut SubscriptionState {
        self.subscriptions.entry(number).or_default()
    }

    fn define(&mut self, of: &QueueDefinition<'_>) {
        self.definition = Some(Definition::new(of.name, of.created_us, of.options));
        self.note_end(of.next_sequence);
    }

    fn publish(&mut self, published: &Published<'_>, is_carried: bool) {
        for batch in Batches::new(published.batches) {
            let producer = last_of(&batch.header);
            match published.fragment {
                Some(part) => self.note_part(part, published.moved, producer, is_carried),
                None => {
                    self.note_producer(producer);
                    let records = u64::from(batch.header.record_count);
                    self.note_end(batch.prefix.base_sequence.saturating_add(records));
                }
            }
        }
        if published.fragment.is_none() {
            self.moved(published.moved);
        }
    }

    /// A fragment of a large message, which counts once all are there.
    fn note_part(
        &mut self,
        part: FragmentOf,
        moved: Option<MoveName>,
        producer: (u64, u64),
        is_carried: bool,
    ) {
        let FragmentOf { sequence, nth, count } = part;
        let of = self.replay.unfinished.entry(sequence).or_default();
        // What was not finished before a crash, and then its sequence was another message's. What
        // is carried may run beside the first writing of it.
        if of.count != count || (nth == 0 && !is_carried) {
            *of = Unfinished { count, ..Unfinished::default() };
        }
        of.there.add(u64::from(nth), u64::from(nth) + 1);
        if nth + 1 == count {
            (of.moved, of.producer) = (moved, producer);
        }
        if of.there.covers(0, u64::from(count)) {
            let (moved, producer) = (of.moved, of.producer);
            self.replay.unfinished.remove(&sequence);
            self.note_producer(producer);
            self.note_end(sequence + 1);
            self.moved(moved);
        }
    }

    /// Sequences before `end` are used.
    fn note_end(&mut self, end: u64) {
        self.next_sequence = self.next_sequence.max(end);
    }

    fn note_producer(&mut self, (id, last_sequence): (u64, u64)) {
        if id != 0 {
            let known = self.producers.entry(id).or_default();
            *known = last_sequence.max(*known);
        }
    }

    fn moved(&mut self, names: impl IntoIterator<Item = MoveName>) {
        let settled = &self.replay.settled;
        self.moves.extend(names.into_iter().filter(|name| !settled.contains(name)));
    }
}

impl SubscriptionState {
    /// Whether it holds any message of `first..end`.
    pub fn holds(&self, first: u64, end: u64) -> bool {
        !self.done.covers(first.max(self.start), end)
    }

    fn define(&mut self, of: &SubscriptionDefinition<'_>) {
        self.definition = Some(Definition::new(of.name, of.created_us, of.options));
        self.start = self.start.max(of.start);
    }

    fn fail(&mut self, failure: Failure) {
        cut(&mut self.failures, failure.first, failure.end());
        self.failures.insert(failure.first, failure);
    }

    fn finish(&mut self) {
        while self.done.first().is_some_and(|first| first <= self.start) {
            self.start = self.done.pass(self.start);
        }
        cut(&mut self.failures, 0, self.start);
        self.done.iter().for_each(|(first, end)| cut(&mut self.failures, first, end));
    }
}

impl Definition {
    fn new(name: &str, created_us: u64, options: &[u8]) -> Definition {
        Definition { name: name.to_owned(), created_us, options: options.to_owned() }
    }
}

/// The producer of a batch, and the sequence of its last record.
fn last_of(header: &BatchHeader) -> (u64, u64) {
    let after = u64::from(header.record_count - 1);
    (header.producer_id, header.producer_sequence.saturating_add(after))
}

/// Takes `first..end` out of what is known of messages.
fn cut(failures: &mut BTreeMap<u64, Failure>, first: u64, end: u64) {
    let mut behind = None;
    let mut keep_behind = |failure: &Failure| {
        if failure.end() > end {
            let count = (failure.end() - end) as u32;
            behind = Some(Failure { first: end, count, ..*failure });
        }
    };
    if let Some((_, before)) = failures.range_mut(..first).next_back()
        && before.end() > first
    {
        keep_behind(before);
        before.count = (first - before.first) as u32;
    }
    while let Some((&at, failure)) = failures.range(first..end).next() {
        keep_behind(failure);
        failures.remove(&at);
    }
    failures.extend(behind.map(|failure| (failure.first, failure)));
}

#[cfg(test)]
mod tests;
