//! What a durable queue has to tell the journal of its store, and how far that has come. A queue
//! notes here what changed; once per tick the caller takes all of it and says later what of it is
//! on disk.
//!
//! ```text
//! note_* -> Queue::drain_changes -> journal -> Queue::handle_journaled -> confirms
//! ```
//!
//! What is told is idempotent: where it is not known what was told before, it is told again.

use crate::base::chunk_pool::ChunkRef;
use crate::base::slot_map::Key;
use crate::format::change::{Failure, FragmentOf, MoveName};
use crate::limits::{BATCH_BYTES_MAX, JOURNAL_RANGES_MAX};
use crate::protocol::hot::Reached;
use std::collections::BTreeMap;
use std::ops::Range;

/// Something that the journal is to be told of a queue.
pub enum QueueChange {
    /// The queue is new, or its options have changed.
    Defined,
    /// A subscription is new, or its options have changed: all that is to be said of it.
    Subscribed(Key),
    /// A subscription is gone, the one with this number.
    SubscriptionDeleted(u64),
    /// Messages came.
    Appended(Appended),
    /// A subscription is done with messages, in ranges `(first, end)`, ordered.
    Done(u64, Vec<(u64, u64)>),
    /// Deliveries of a subscription failed.
    Failed(u64, Vec<Failure>),
    /// Producers went on in their sequences without a message: ids and last sequences.
    Producers(Vec<(u64, u64)>),
    /// Moves that need not be remembered any more.
    Settled(Vec<MoveName>),
}

/// Batches as they stand in a chunk, each behind its prefix.
pub struct Appended {
    /// Where they stand.
    pub chunk: ChunkRef,
    /// Whole batches.
    pub range: Range<usize>,
    /// They are a part of a large message.
    pub fragment: Option<FragmentOf>,
    /// The move that brought one of the messages; of a large one beside its last fragment.
    pub moved: Option<MoveName>,
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// One past the sequence of the last message.
    pub end_sequence: u64,
}

/// See the module.
#[derive(Default)]
pub struct Outbox {
    defined: bool,
    subscribed: Vec<Key>,
    unsubscribed: Vec<u64>,
    appended: Vec<Appended>,
    done: Vec<(u64, u64, u64)>,
    failed: Vec<(u64, Failure)>,
    producers: BTreeMap<u64, u64>,
    settled: Vec<MoveName>,
    /// One past the last message that is written, and that is synced.
    written: u64,
    synced: u64,
    /// Producers with something to confirm that has not come so far.
    pub(super) waiting: Vec<Key>,
}

impl Outbox {
    /// Of a queue whose messages before `end_sequence` are on disk.
    pub(super) fn new(end_sequence: u64) -> Outbox {
        Outbox { written: end_sequence, synced: end_sequence, ..Outbox::default() }
    }

    /// Of a queue whose messages before `end_sequence` were read from disk: a process before this
    /// one has written them, and nobody knows yet whether the device keeps them.
    pub(super) fn returned(end_sequence: u64) -> Outbox {
        Outbox { written: end_sequence, synced: 1, ..Outbox::default() }
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        !self.defined
            && self.subscribed.is_empty()
            && self.unsubscribed.is_empty()
            && self.appended.is_empty()
            && self.done.is_empty()
            && self.failed.is_empty()
            && self.producers.is_empty()
            && self.settled.is_empty()
    }

    /// One past the last message that has come so far.
    pub fn end_of(&self, reached: Reached) -> u64 {
        match reached {
            Reached::Memory => u64::MAX,
            Reached::Written => self.written,
            Reached::Synced => self.synced,
        }
    }

    /// Messages have come so far. They never go back.
    pub(super) fn note_reached(&mut self, reached: Reached, end_sequence: u64) {
        match reached {
            Reached::Memory => {}
            Reached::Written => self.written = self.written.max(end_sequence),
            Reached::Synced => {
                self.written = self.written.max(end_sequence);
                self.synced = self.synced.max(end_sequence);
            }
        }
    }

    pub(super) fn note_defined(&mut self) {
        self.defined = true;
    }

    pub(super) fn note_subscribed(&mut self, key: Key) {
        self.subscribed.push(key);
    }

    pub(super) fn note_unsubscribed(&mut self, key: Key, number: u64) {
        self.subscribed.retain(|&other| other != key);
        self.unsubscribed.push(number);
    }

    /// Batches were appended. Those that stand one behind the other are told at once.
    pub(super) fn note_appended(&mut self, appended: Appended) {
        if let Some(last) = self.appended.last_mut()
            && last.fragment.is_none()
            && appended.fragment.is_none()
            && last.moved.is_none()
            && appended.moved.is_none()
            && last.range.end == appended.range.start
            && last.chunk.is_same(&appended.chunk)
            && appended.range.end - last.range.start <= BATCH_BYTES_MAX
        {
            last.range.end = appended.range.end;
            last.end_sequence = appended.end_sequence;
        } else {
            self.appended.push(appended);
        }
    }

    /// The message that was appended last came by a move.
    pub(super) fn note_moved(&mut self, name: MoveName) {
        if let Some(last) = self.appended.last_mut() {
            last.moved = Some(name);
        }
    }

    /// A subscription is done with messages `first..end`, for whatever reason.
    #[inline]
    pub(super) fn note_done(&mut self, subscription: u64, first: u64, end: u64) {
        if let Some((of, _, last)) = self.done.last_mut()
            && *of == subscription
            && *last == first
        {
            *last = end;
        } else {
            self.done.push((subscription, first, end));
        }
    }

    pub(super) fn note_failed(&mut self, subscription: u64, failure: Failure) {
        self.failed.push((subscription, failure));
    }

    pub(super) fn note_producer(&mut self, id: u64, last_sequence: u64) {
        self.producers.insert(id, last_sequence);
    }

    pub(super) fn note_settled(&mut self, name: MoveName) {
        self.settled.push(name);
    }

    /// Takes everything there is to tell. A change holds as much as a record does at most.
    pub(super) fn drain(&mut self, mut tell: impl FnMut(QueueChange)) {
        if std::mem::take(&mut self.defined) {
            tell(QueueChange::Defined);
        }
        self.subscribed.drain(..).for_each(|key| tell(QueueChange::Subscribed(key)));
        self.appended.drain(..).for_each(|appended| tell(QueueChange::Appended(appended)));
        if !self.done.is_empty() {
            for (subscription, ranges) in ordered(std::mem::take(&mut self.done)) {
                for part in ranges.chunks(JOURNAL_RANGES_MAX) {
                    tell(QueueChange::Done(subscription, part.to_vec()));
                }
            }
        }
        if !self.failed.is_empty() {
            let mut by_subscription: BTreeMap<u64, Vec<Failure>> = BTreeMap::new();
            for (subscription, failure) in self.failed.drain(..) {
                by_subscription.entry(subscription).or_default().push(failure);
            }
            for (subscription, failures) in by_subscription {
                for part in failures.chunks(JOURNAL_RANGES_MAX) {
                    tell(QueueChange::Failed(subscription, part.to_vec()));
                }
            }
        }
        let producers: Vec<_> = std::mem::take(&mut self.producers).into_iter().collect();
        for part in producers.chunks(JOURNAL_RANGES_MAX) {
            tell(QueueChange::Producers(part.to_vec()));
        }
        let settled = std::mem::take(&mut self.settled);
        for part in settled.chunks(JOURNAL_RANGES_MAX) {
            tell(QueueChange::Settled(part.to_vec()));
        }
        self.unsubscribed.drain(..).for_each(|number| {
            tell(QueueChange::SubscriptionDeleted(number));
        });
    }
}

/// Ranges by subscription, ordered, neighbours joined.
fn ordered(mut done: Vec<(u64, u64, u64)>) -> Vec<(u64, Vec<(u64, u64)>)> {
    done.sort_unstable();
    let mut all: Vec<(u64, Vec<(u64, u64)>)> = Vec::new();
    for (subscription, first, end) in done {
        match all.last_mut() {
            Some((of, ranges)) if *of == subscription => match ranges.last_mut() {
                Some((_, last)) if *last >= first => *last = end.max(*last),
                _ => ranges.push((first, end)),
            },
            _ => all.push((subscription, vec![(first, end)])),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(outbox: &mut Outbox) -> Vec<(u64, Vec<(u64, u64)>)> {
        let mut all = Vec::new();
        outbox.drain(|change| match change {
            QueueChange::Done(subscription, ranges) => all.push((subscription, ranges)),
            _ => panic!("nothing else was noted"),
        });
        all
    }

    #[test]
    fn what_is_done_is_told_in_few_ranges() {
        let mut outbox = Outbox::new(1);
        for (of, first, end) in
            [(1, 5, 9), (1, 9, 10), (2, 5, 6), (1, 1, 3), (1, 3, 5), (1, 20, 21)]
        {
            outbox.note_done(of, first, end);
        }
        assert!(!outbox.is_empty());
        assert_eq!(drained(&mut outbox), [(1, vec![(1, 10), (20, 21)]), (2, vec![(5, 6)])]);
        assert!(outbox.is_empty() && drained(&mut outbox).is_empty());
    }

    #[test]
    fn what_is_too_much_for_a_record_is_told_in_several() {
        let mut outbox = Outbox::new(1);
        let count = 2 * JOURNAL_RANGES_MAX as u64 + 1;
        (0..count).for_each(|nth| outbox.note_done(7, 2 * nth, 2 * nth + 1));
        let sizes: Vec<_> = drained(&mut outbox).iter().map(|(_, ranges)| ranges.len()).collect();
        assert_eq!(sizes, [JOURNAL_RANGES_MAX, JOURNAL_RANGES_MAX, 1]);
    }

    #[test]
    fn what_is_synced_is_written() {
        let mut outbox = Outbox::new(5);
        outbox.note_reached(Reached::Synced, 9);
        outbox.note_reached(Reached::Written, 7);
        let ends = [Reached::Memory, Reached::Written, Reached::Synced].map(|r| outbox.end_of(r));
        assert_eq!(ends, [u64::MAX, 9, 9]);
    }
}
