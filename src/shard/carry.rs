//! What a journal is told of a queue, and the rounds in which all of it is told again, so that the
//! log before can go.
//!
//! A round goes over the durable queues of a store, a few in each tick, by name, and writes what is
//! true of each. When it is over and synced, the log is needed only from the begin of the round
//! before on (two rounds are kept), and from the oldest body on that stands nowhere else.

use crate::base::slot_map::Key;
use crate::base::time::Now;
use crate::format::change::{
    QueueDefinition, SubscriptionDefinition, encode_done, encode_failed, encode_moves,
    encode_producers, encode_subscription_deleted,
};
use crate::format::journal::{CARRIED, RecordKind};
use crate::limits::{CARRY_QUEUES_PER_TICK, JOURNAL_RANGES_MAX};
use crate::protocol::control::Request;
use crate::protocol::wire;
use crate::queue::Queue;
use crate::queue::outbox::QueueChange;
use crate::shard::core::Core;
use crate::shard::options::{wire_queue_options, wire_subscription_options};
use crate::shard::store::{Deferred, Store};
use std::collections::VecDeque;
use std::rc::Rc;

/// A body's group and sequence: of the messages from there on none stands in an older group.
pub(super) type Body = (u64, u64);
/// So many segments are not worth a round.
const SEGMENTS_FEW: usize = 2;
/// Bodies of a queue are told apart by so many groups.
const BODY_GROUPS: u64 = 16;

/// Where the rounds of a store are.
pub(super) struct Round {
    /// First group of the round before this one: what it wrote is needed until this one is synced.
    before: u64,
    /// And of the last that was begun.
    begun: u64,
    /// Bytes in groups when it was begun, and that it has cost.
    bytes_at: u64,
    cost_bytes: u64,
    /// The queue that was told last, while a round is under way.
    at: Option<Rc<str>>,
    is_under_way: bool,
    /// All is told, but not synced.
    is_ending: bool,
    /// Rounds that begin at once: the log that was found is longer than it need be.
    hasty: u32,
    /// The oldest body of all queues that were met, by its group.
    oldest_body: u64,
}

impl Round {
    /// None yet; the log is needed from this group on, and has so many segments.
    pub fn new(needed: u64, segments: usize) -> Round {
        Round {
            hasty: if segments > SEGMENTS_FEW { 2 } else { 0 },
            before: needed,
            begun: needed,
            bytes_at: 0,
            cost_bytes: 0,
            at: None,
            is_under_way: false,
            is_ending: false,
            oldest_body: u64::MAX,
        }
    }

    /// Whether there are queues left to be told anew.
    pub fn is_under_way(&self) -> bool {
        self.is_under_way
    }
}

/// Bodies from `sequence` on are in no group before this one.
pub(super) fn note_body(bodies: &mut VecDeque<Body>, group: u64, sequence: u64) {
    if bodies.back().is_none_or(|&(last, _)| group >= last + BODY_GROUPS) {
        bodies.push_back((group, sequence));
    }
}

/// The oldest group with a body that is not before `sequence`.
fn oldest_body(bodies: &mut VecDeque<Body>, sequence: u64) -> Option<u64> {
    while bodies.get(1).is_some_and(|&(_, first)| first <= sequence) {
        bodies.pop_front();
    }
    bodies.front().map(|&(group, _)| group)
}

impl Core {
    /// Goes on with a round, or begins one: where enough was written since the last.
    pub(super) fn go_on_with_round(&mut self, index: usize) {
        let store = self.stores.at(index);
        if !store.round.is_under_way && !store.begin_round() {
            return;
        }
        for _ in 0..CARRY_QUEUES_PER_TICK {
            if !self.carry_next(index) {
                self.stores.at(index).finish_round();
                return;
            }
        }
    }

    /// Tells everything of the next queue. False if there is none.
    fn carry_next(&mut self, index: usize) -> bool {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = match self.stores.at(index).round.at.clone() {
            Some(name) => Excluded(name),
            None => Unbounded,
        };
        let queues = &self.queues;
        let is_here = |key: &Key| queues.at(*key).is_some_and(|slot| slot.store == Some(index));
        let mut names = self.names.range((from, Unbounded));
        let Some((name, &key)) = names.find(|(_, key)| is_here(key)) else { return false };
        let name = Rc::clone(name);
        let Some(slot) = self.queues.at_mut(key) else { return false };
        let (store, now) = (self.stores.at(index), self.now);
        tell_all(store, (key, &slot.queue), now);
        let (first, next) = slot.queue.sequences();
        let oldest = match first < next {
            true => oldest_body(&mut slot.bodies, first),
            false => {
                slot.bodies.clear();
                None
            }
        };
        store.round.oldest_body = store.round.oldest_body.min(oldest.unwrap_or(u64::MAX));
        store.round.at = Some(name);
        true
    }
}

impl Store {
    /// A round begins when the log has grown by a segment since the last, and by several times of
    /// what that has cost.
    fn begin_round(&mut self) -> bool {
        let written = self.counters().group_bytes;
        // Where no segment can be made, what is needed no more is wanted back at once.
        let due = match self.is_blocked() || self.round.hasty > 0 {
            true => 0,
            false => (self.round.cost_bytes * 4).max(self.segment_bytes()),
        };
        let nothing_new = self.is_blocked() && written == self.round.bytes_at;
        if written < self.round.bytes_at + due || self.round.is_ending || nothing_new {
            return false;
        }
        self.round.is_under_way = true;
        self.round.before = self.round.begun;
        self.round.begun = self.last_group();
        self.round.bytes_at = written;
        (self.round.at, self.round.oldest_body) = (None, u64::MAX);
        true
    }

    fn finish_round(&mut self) {
        let written = self.counters().group_bytes;
        (self.round.is_under_way, self.round.is_ending) = (false, true);
        self.round.cost_bytes = written.saturating_sub(self.round.bytes_at);
        self.defer(Deferred::RoundEnd(self.round.before.min(self.round.oldest_body)));
    }

    /// All that a round told is synced: the log before this group can go.
    pub(super) fn end_round(&mut self, needed: u64) {
        self.round.is_ending = false;
        let hasty = self.round.hasty;
        self.round.hasty = hasty.saturating_sub(1);
        if let Some(journal) = self.journal()
            && needed > 1
        {
            journal.release(needed - 1);
            if journal.blocked().is_some() || hasty == 1 {
                journal.roll();
            }
        }
    }
}

/// Tells all there is to be said of a queue.
fn tell_all(store: &mut Store, (key, queue): (Key, &Queue), now: Now) {
    tell_definition(store, key, queue, CARRIED);
    for (subscription, _) in queue.subscriptions() {
        tell_subscription(store, (key, queue), subscription, now, CARRIED);
    }
    let producers: Vec<_> = queue.known_producers().collect();
    for part in producers.chunks(JOURNAL_RANGES_MAX) {
        tell_change(store, key, queue.number(), QueueChange::Producers(part.to_vec()), CARRIED);
    }
    let moves: Vec<_> = queue.moves_taken().collect();
    for part in moves.chunks(JOURNAL_RANGES_MAX) {
        let mut body = Vec::new();
        encode_moves(queue.number(), part.iter().copied(), &mut body);
        store.push(RecordKind::Moves, CARRIED, body, key);
    }
}

/// Tells what a queue is.
pub(super) fn tell_definition(store: &mut Store, key: Key, queue: &Queue, flags: u8) {
    let options = Request::QueueCreate(wire::QueueCreateT {
        name: queue.name().to_owned(),
        options: Some(Box::new(wire_queue_options(queue.options()))),
        ..wire::QueueCreateT::default()
    });
    let options = options.encode();
    let definition = QueueDefinition {
        queue: queue.number(),
        created_us: queue.created().0,
        next_sequence: queue.sequences().1,
        name: queue.name(),
        options: &options,
    };
    let mut body = Vec::new();
    definition.encode(&mut body);
    store.push(RecordKind::Queue, flags, body, key);
}

/// Tells what a subscription is, and what it has done with.
pub(super) fn tell_subscription(
    store: &mut Store,
    (key, queue): (Key, &Queue),
    subscription: Key,
    now: Now,
    flags: u8,
) {
    let Some(of) = queue.subscription(subscription) else { return };
    let Some(state) = queue.subscription_state(subscription, now) else { return };
    let options = Request::SubscriptionCreate(wire::SubscriptionCreateT {
        queue: queue.name().to_owned(),
        name: of.name().to_owned(),
        options: Some(Box::new(wire_subscription_options(of.options()))),
        ..wire::SubscriptionCreateT::default()
    });
    let options = options.encode();
    let definition = SubscriptionDefinition {
        queue: queue.number(),
        subscription: of.number(),
        created_us: of.created().0,
        start: state.start,
        name: of.name(),
        options: &options,
    };
    let mut body = Vec::new();
    definition.encode(&mut body);
    store.push(RecordKind::Subscription, flags, body, key);
    for part in state.done.chunks(JOURNAL_RANGES_MAX) {
        let change = QueueChange::Done(of.number(), part.to_vec());
        tell_change(store, key, queue.number(), change, flags);
    }
    for part in state.failures.chunks(JOURNAL_RANGES_MAX) {
        let change = QueueChange::Failed(of.number(), part.to_vec());
        tell_change(store, key, queue.number(), change, flags);
    }
}

/// Tells a change that has all its bytes in itself.
pub(super) fn tell_change(store: &mut Store, key: Key, queue: u64, change: QueueChange, flags: u8) {
    let mut body = Vec::new();
    let kind = match change {
        QueueChange::Done(subscription, ranges) => {
            encode_done(queue, subscription, ranges, &mut body);
            RecordKind::Acks
        }
        QueueChange::Failed(subscription, failures) => {
            encode_failed(queue, subscription, failures, &mut body);
            RecordKind::Attempts
        }
        QueueChange::Producers(producers) => {
            encode_producers(queue, producers, &mut body);
            RecordKind::Producers
        }
        QueueChange::Settled(moves) => {
            encode_moves(queue, moves, &mut body);
            RecordKind::MovesSettled
        }
        QueueChange::SubscriptionDeleted(subscription) => {
            encode_subscription_deleted(queue, subscription, &mut body);
            RecordKind::SubscriptionDeleted
        }
        QueueChange::Defined | QueueChange::Subscribed(_) | QueueChange::Appended(_) => return,
    };
    store.push(kind, flags, body, key);
}
