//! What a durable queue does for its journal: says what changed, or all there is to say, and
//! learns how far that has come. `restore` is the way back.

use crate::base::slot_map::Key;
use crate::base::time::{Mono, Now, Wall};
use crate::format::change::{Failure, MoveName};
use crate::protocol::hot::Reached;
use crate::queue::Queue;
use crate::queue::dead::MoveReason;
use crate::queue::moved::TRANSIENT_STORES;
use crate::queue::outbox::{Outbox, QueueChange};
use crate::queue::parts::failures;
use crate::queue::portion::Portion;
use crate::queue::subscription::Subscription;

/// All that a journal is told of a subscription's messages.
#[derive(Debug, PartialEq, Eq)]
pub struct SubscriptionState {
    /// Nothing before this sequence is held.
    pub start: u64,
    /// Ranges `(first, end)` from there on that are done, or not for it.
    pub done: Vec<(u64, u64)>,
    /// What failed before and is held still.
    pub failures: Vec<Failure>,
}

impl Queue {
    /// From now on it notes what changes; all of it is new to the journal.
    pub fn make_durable(&mut self) {
        let mut outbox = Box::new(Outbox::new(self.log.next_sequence()));
        outbox.note_defined();
        self.turns.iter().for_each(|&key| outbox.note_subscribed(key));
        self.outbox = Some(outbox);
    }

    /// Whether it keeps a journal.
    pub fn is_durable(&self) -> bool {
        self.outbox.is_some()
    }

    /// Whether the journal has not been told everything.
    pub fn has_changes(&self) -> bool {
        self.outbox.as_ref().is_some_and(|outbox| !outbox.is_empty())
    }

    /// Takes everything that the journal is to be told, in the order in which it is to be.
    pub fn drain_changes(&mut self, tell: impl FnMut(QueueChange)) {
        if let Some(outbox) = &mut self.outbox {
            outbox.drain(tell);
        }
    }

    /// Messages before `end_sequence` have come so far. Calls `confirm` for each producer that a
    /// confirm is due to since, and that the caller has not listed. Poll as after any verb.
    pub fn handle_journaled(
        &mut self,
        reached: Reached,
        end_sequence: u64,
        mut confirm: impl FnMut(Key),
    ) {
        let Some(outbox) = &mut self.outbox else { return };
        outbox.note_reached(reached, end_sequence);
        let (end, producers) = (outbox.end_of(self.options.confirm), &mut self.producers);
        outbox.waiting.retain(|&key| {
            let Some(producer) = producers.at_mut(key) else { return false };
            let waits = producer.note_reached(end);
            if producer.note_confirm_listed() {
                confirm(key);
            }
            waits
        });
    }

    /// One past the last message that has come so far.
    pub fn end_of(&self, reached: Reached) -> u64 {
        self.outbox.as_ref().map_or(u64::MAX, |outbox| outbox.end_of(reached))
    }

    /// All that is to be said of a subscription's messages.
    pub fn subscription_state(&self, key: Key, now: Now) -> Option<SubscriptionState> {
        Some(self.subscription(key)?.state(now))
    }

    /// All producer ids, with the last sequence of each.
    pub fn known_producers(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.known.iter().map(|(id, known)| {
            let open = known.handle.and_then(|key| self.producers.at(key));
            (id, open.map_or(known.last_sequence, |open| open.next_sequence - 1))
        })
    }

    /// Moves from durable queues that it has taken and that are not settled.
    pub fn moves_taken(&self) -> impl Iterator<Item = MoveName> + '_ {
        self.moves_taken.iter().copied().filter(|name| name.store < TRANSIENT_STORES)
    }
}

impl Subscription {
    fn state(&self, now: Now) -> SubscriptionState {
        let held: Vec<&Portion> =
            self.held().into_iter().flatten().chain(self.due.ready()).collect();
        let ranges = held.iter().flat_map(|portion| portion.sequences());
        let mut ranges: Vec<(u64, u64)> = ranges.map(|(first, last)| (first, last + 1)).collect();
        ranges.sort_unstable();
        // What is ahead of the cursor is held but for the skips; what was taken out from there
        // stands among the portions, and is skipped as well.
        let cursor = self.cursor_sequence;
        let start = ranges.first().map_or(cursor, |&(first, _)| first.min(cursor));
        let (mut done, mut held) = (Vec::new(), ranges.into_iter().peekable());
        for (first, end) in std::iter::once((start, cursor)).chain(self.skips.iter()) {
            let mut from = first;
            while let Some((first, past)) = held.next_if(|&(first, _)| first < end) {
                if from < first {
                    done.push((from, first));
                }
                from = from.max(past);
            }
            if from < end {
                done.push((from, end));
            }
        }
        SubscriptionState { start, done, failures: self.failures_held(now) }
    }

    fn failures_held(&self, now: Now) -> Vec<Failure> {
        let due_wall = |due: Mono| Wall(now.wall.0 + due.after(now.mono).as_micros() as u64);
        let failed = |portion: &&Portion| portion.history.failures > 0;
        let [in_flight, _, _] = self.held();
        let at_once = in_flight.into_iter().chain(self.due.ready()).filter(failed);
        let mut all: Vec<Failure> =
            at_once.flat_map(|portion| failures(portion, Wall::default(), false)).collect();
        for (due, portion) in self.due.waiting_with_due() {
            all.extend(failures(portion, due_wall(due), false));
        }
        for (reason, portion) in self.dead.reasons().filter(|(why, _)| *why != MoveReason::Redrive)
        {
            all.extend(failures(portion, Wall::default(), reason == MoveReason::Rejected));
        }
        all
    }
}
