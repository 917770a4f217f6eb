//! Histories of a naive store. It writes down what happens, and in rounds again what is true; what
//! the whole log adds up to is what is true, and so is what any part of it adds up to that begins
//! at a complete round.

use super::*;
use crate::base::prng::Prng;
use crate::format::journal::FRAGMENT;
use std::ops::Range;

#[derive(Default)]
struct Queue {
    options: Vec<u8>,
    next_sequence: u64,
    subscriptions: BTreeMap<u64, Subscription>,
    producers: BTreeMap<u64, u64>,
    moves: BTreeSet<MoveName>,
    /// What carries a message again, without its move.
    bodies: BTreeMap<u64, Vec<Entry>>,
}

#[derive(Default)]
struct Subscription {
    held: BTreeSet<u64>,
    failures: BTreeMap<u64, Failure>,
}

#[derive(Default)]
struct Store {
    queues: BTreeMap<u64, Queue>,
    next_number: u64,
    log: Vec<Entry>,
    /// Where complete rounds began.
    rounds: Vec<usize>,
    /// The round that goes on: where it began, and the queues that it has not come to.
    round: Option<(usize, Vec<u64>)>,
}

/// One of `choices`, if there is any.
fn pick<T: Copy>(prng: &mut Prng, choices: impl IntoIterator<Item = T>) -> Option<T> {
    let all: Vec<T> = choices.into_iter().collect();
    (!all.is_empty()).then(|| *prng.pick(&all))
}

/// Neighbours joined, as `(first, end)`.
fn ranges(sequences: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut set = RangeSet::default();
    sequences.into_iter().for_each(|sequence| set.add(sequence, sequence + 1));
    set.iter().collect()
}

impl Store {
    fn step(&mut self, prng: &mut Prng) {
        let number = pick(prng, self.queues.keys().copied());
        match (prng.below(100), number) {
            (..4, _) => self.create(),
            (4..6, Some(number)) if prng.chance(300) => {
                self.queues.remove(&number);
                self.log.push(entry(RecordKind::QueueDeleted, |into| {
                    encode_queue_deleted(number, into);
                }));
            }
            (6..8, Some(number)) => {
                let queue = self.queues.get_mut(&number).unwrap();
                queue.options = prng.next_u64().to_le_bytes().to_vec();
                self.log.push(defined(number, queue.next_sequence, &queue.options));
            }
            (8..12, Some(number)) => self.subscribe(number, prng),
            (12..14, Some(number)) => self.unsubscribe(number, prng),
            (14..34, Some(number)) => self.publish(number, prng),
            (34..42, Some(number)) => self.publish_large(number, prng),
            (42..62, Some(number)) => self.finish_some(number, prng),
            (62..76, Some(number)) => self.fail_some(number, prng),
            (76..80, Some(number)) => self.note_producer(number, prng),
            (80..86, Some(number)) => self.settle(number, prng),
            (86..90, _) => self.say_again(prng),
            (90.., _) => self.go_round(prng),
            _ => {}
        }
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn create(&mut self) {
        let number = self.number();
        let queue = Queue { next_sequence: 1, ..Queue::default() };
        self.log.push(defined(number, 1, &queue.options));
        self.queues.insert(number, queue);
    }

    /// From now on, or from the oldest message on that is there.
    fn subscribe(&mut self, number: u64, prng: &mut Prng) {
        let own = self.number();
        let queue = self.queues.get_mut(&number).unwrap();
        let all = if prng.chance(500) { Some(queue.bodies.keys().copied()) } else { None };
        let held = all.into_iter().flatten().collect();
        let subscription = Subscription { held, failures: BTreeMap::new() };
        self.log.extend(queue.position(number, own, &subscription));
        queue.subscriptions.insert(own, subscription);
    }

    fn unsubscribe(&mut self, number: u64, prng: &mut Prng) {
        let queue = self.queues.get_mut(&number).unwrap();
        let Some(own) = pick(prng, queue.subscriptions.keys().copied()) else { return };
        queue.subscriptions.remove(&own);
        queue.forget();
        self.log.push(entry(RecordKind::SubscriptionDeleted, |into| {
            encode_subscription_deleted(number, own, into);
        }));
    }

    /// Batches of a producer, or a message that was moved.
    fn publish(&mut self, number: u64, prng: &mut Prng) {
        let moved = prng.chance(300).then(|| self.name(prng));
        let queue = self.queues.get_mut(&number).unwrap();
        let mut batches = Vec::new();
        for _ in 0..if moved.is_some() { 1 } else { prng.range(1, 3) } {
            let records = if moved.is_some() { 1 } else { prng.range(1, 4) };
            let producer = queue.producer(records, prng);
            let first = queue.next_sequence;
            let batch = prefixed(first, 0, producer, records as u32);
            queue.take(first..first + records, &[plain(number, None, &batch)]);
            batches.extend(batch);
        }
        queue.moves.extend(moved);
        queue.forget();
        self.log.push(plain(number, moved, &batches));
    }

    /// A large message, at times with a round between its fragments; or only a part of it, for the
    /// process stopped.
    fn publish_large(&mut self, number: u64, prng: &mut Prng) {
        let moved = prng.chance(300).then(|| self.name(prng));
        let queue = self.queues.get_mut(&number).unwrap();
        let (sequence, count) = (queue.next_sequence, prng.range(1, 4) as u32);
        if prng.chance(200) {
            let mut parts = large(number, sequence, count, moved, (9, 1 << 40));
            parts.truncate(prng.below(u64::from(count)) as usize);
            self.log.extend(parts);
            return;
        }
        let producer = queue.producer(1, prng);
        let parts = large(number, sequence, count, None, producer);
        queue.take(sequence..sequence + 1, &parts);
        queue.moves.extend(moved);
        queue.forget();
        for part in large(number, sequence, count, moved, producer) {
            self.log.push(part);
            if prng.chance(200) {
                self.go_round(prng);
            }
        }
    }

    fn finish_some(&mut self, number: u64, prng: &mut Prng) {
        let queue = self.queues.get_mut(&number).unwrap();
        let Some(own) = pick(prng, queue.subscriptions.keys().copied()) else { return };
        let of = queue.subscriptions.get_mut(&own).unwrap();
        let chance = prng.range(1, 1000);
        let gone: Vec<u64> = of.held.iter().copied().filter(|_| prng.chance(chance)).collect();
        if gone.is_empty() {
            return;
        }
        of.held.retain(|sequence| !gone.contains(sequence));
        of.failures.retain(|sequence, _| !gone.contains(sequence));
        queue.forget();
        self.log.push(done(number, own, &ranges(gone)));
    }

    fn fail_some(&mut self, number: u64, prng: &mut Prng) {
        let queue = self.queues.get_mut(&number).unwrap();
        let Some(own) = pick(prng, queue.subscriptions.keys().copied()) else { return };
        let of = queue.subscriptions.get_mut(&own).unwrap();
        let Some(first) = pick(prng, of.held.iter().copied()) else { return };
        let run = (first..).take_while(|sequence| of.held.contains(sequence)).count() as u64;
        let attempts = prng.range(1, 1000) as u16;
        let rejected = prng.chance(300);
        let failure = Failure { rejected, ..failure(first, prng.range(1, run) as u32, attempts) };
        for sequence in first..failure.end() {
            of.failures.insert(sequence, Failure { first: sequence, count: 1, ..failure });
        }
        self.log.push(failed(number, own, failure));
    }

    /// A producer goes on without a message: it was dropped.
    fn note_producer(&mut self, number: u64, prng: &mut Prng) {
        let queue = self.queues.get_mut(&number).unwrap();
        let (id, sequence) = queue.producer(1, prng);
        if id != 0 {
            self.log.push(entry(RecordKind::Producers, |into| {
                encode_producers(number, [(id, sequence)], into);
            }));
        }
    }

    fn settle(&mut self, number: u64, prng: &mut Prng) {
        let queue = self.queues.get_mut(&number).unwrap();
        let Some(name) = pick(prng, queue.moves.iter().copied()) else { return };
        queue.moves.remove(&name);
        self.log.push(entry(RecordKind::MovesSettled, |into| encode_moves(number, [name], into)));
    }

    fn name(&mut self, prng: &mut Prng) -> MoveName {
        MoveName { sequence: self.number(), store: prng.below(3) as u32, ..NAME }
    }

    /// Something that was said since the last round began, and that no later record changes.
    fn say_again(&mut self, prng: &mut Prng) {
        use RecordKind::*;
        let last = self.rounds.last().copied().unwrap_or(0);
        let from = self.round.as_ref().map_or(last, |(begin, _)| *begin);
        let again = [Publish, Acks, QueueDeleted, SubscriptionDeleted, Producers, MovesSettled];
        let said = self.log[from..].iter();
        let said = said.filter(|(kind, flags, _)| again.contains(kind) && flags & FRAGMENT == 0);
        let said: Vec<&Entry> = said.collect();
        if !said.is_empty() {
            let again = (*prng.pick(&said)).clone();
            self.log.push(again);
        }
    }

    /// Begins a round, or says of another queue what is true, or ends it.
    fn go_round(&mut self, prng: &mut Prng) {
        let Some((begin, left)) = &mut self.round else {
            self.round = Some((self.log.len(), self.queues.keys().copied().collect()));
            return;
        };
        let Some(number) = left.pop() else {
            self.rounds.push(*begin);
            self.round = None;
            return;
        };
        let Some(queue) = self.queues.get(&number) else { return };
        let mut all = queue.truth(number);
        for index in (1..all.len()).rev() {
            all.swap(index, prng.below(index as u64 + 1) as usize);
        }
        self.log.extend(all.into_iter().flatten().map(carried));
    }
}

impl Queue {
    /// A producer's id, or 0, and the sequence of the first of `records` that it sends.
    fn producer(&mut self, records: u64, prng: &mut Prng) -> (u64, u64) {
        let id = prng.below(4);
        if id == 0 {
            return (0, 1);
        }
        let last = self.producers.entry(id).or_default();
        *last += records;
        (id, *last + 1 - records)
    }

    /// Messages come that these records carry.
    fn take(&mut self, sequences: Range<u64>, bodies: &[Entry]) {
        self.next_sequence = sequences.end;
        for sequence in sequences {
            self.bodies.insert(sequence, bodies.to_vec());
            self.subscriptions.values_mut().for_each(|of| {
                of.held.insert(sequence);
            });
        }
    }

    /// The bodies that nobody holds.
    fn forget(&mut self) {
        let all = self.subscriptions.values();
        let held: BTreeSet<u64> = all.flat_map(|of| of.held.iter().copied()).collect();
        self.bodies.retain(|sequence, _| held.contains(sequence));
    }

    /// Where a subscription is.
    fn position(&self, number: u64, own: u64, of: &Subscription) -> Vec<Entry> {
        let start = of.held.first().copied().unwrap_or(self.next_sequence);
        let gone = ranges((start..self.next_sequence).filter(|at| !of.held.contains(at)));
        let gone = if gone.is_empty() { None } else { Some(done(number, own, &gone)) };
        std::iter::once(subscribed(number, own, start, b"")).chain(gone).collect()
    }

    /// All that is true, in parts whose order does not matter.
    fn truth(&self, number: u64) -> Vec<Vec<Entry>> {
        let mut all = vec![vec![defined(number, self.next_sequence, &self.options)]];
        for (&own, of) in &self.subscriptions {
            all.extend(self.position(number, own, of).into_iter().map(|one| vec![one]));
            all.push(of.failures.values().map(|&failure| failed(number, own, failure)).collect());
        }
        if !self.producers.is_empty() {
            let known = self.producers.iter().map(|(&id, &last)| (id, last));
            let of = entry(RecordKind::Producers, |into| encode_producers(number, known, into));
            all.push(vec![of]);
        }
        if !self.moves.is_empty() {
            let moves = self.moves.iter().copied();
            all.push(vec![entry(RecordKind::Moves, |into| encode_moves(number, moves, into))]);
        }
        all.extend(self.bodies.values().cloned());
        all
    }
}

/// The state is what is true of the store.
fn compare(state: &StoreState, store: &Store, what: &str) {
    let numbers: Vec<_> = state.queues.keys().collect();
    assert_eq!(numbers, store.queues.keys().collect::<Vec<_>>(), "{what}");
    for (&number, queue) in &store.queues {
        let what = format!("{what}, queue {number}");
        let own = &state.queues[&number];
        let definition = own.definition.as_ref().unwrap();
        assert_eq!(definition.name, format!("queue-{number}"));
        assert_eq!((definition.created_us, &definition.options), (number, &queue.options));
        assert_eq!(own.next_sequence, queue.next_sequence, "{what}");
        assert_eq!(own.producers, queue.producers, "{what}");
        assert_eq!(own.moves, queue.moves, "{what}");
        let numbers: Vec<_> = own.subscriptions.keys().collect();
        assert_eq!(numbers, queue.subscriptions.keys().collect::<Vec<_>>(), "{what}");
        for (number, of) in &queue.subscriptions {
            let own = &own.subscriptions[number];
            let all = 0..queue.next_sequence;
            let held: BTreeSet<u64> = all.filter(|&at| own.holds(at, at + 1)).collect();
            assert_eq!(held, of.held, "{what}, subscription {number}");
            assert!(own.done.first().is_none_or(|first| first > own.start));
            let single = own.failures.values().flat_map(|failure| {
                let one = |first| (first, Failure { first, count: 1, ..*failure });
                (failure.first..failure.end()).map(one)
            });
            assert_eq!(single.collect::<BTreeMap<_, _>>(), of.failures, "{what}");
        }
        for sequence in 1..queue.next_sequence {
            let is_live = state.is_live(number, sequence, sequence + 1);
            assert_eq!(is_live, queue.bodies.contains_key(&sequence), "{what}, {sequence}");
        }
    }
}

#[test]
fn what_is_left_of_a_log_from_a_round_on_says_all() {
    let (mut suffixes, mut messages, mut failures, mut moves) = (0, 0, 0, 0);
    for seed in 0..200 {
        let (mut prng, mut store) = (Prng::new(seed), Store::default());
        for _ in 0..prng.range(10, 400) {
            store.step(&mut prng);
        }
        for from in std::iter::once(0).chain(store.rounds.iter().copied()) {
            let mut state = applied(&store.log[from..]);
            state.finish();
            compare(&state, &store, &format!("seed {seed}, from {from} of {}", store.log.len()));
            suffixes += 1;
        }
        for queue in store.queues.values() {
            messages += queue.bodies.len();
            moves += queue.moves.len();
            failures += queue.subscriptions.values().map(|of| of.failures.len()).sum::<usize>();
        }
    }
    let seen = (suffixes, messages, failures, moves);
    assert!(suffixes > 600 && messages > 1000 && failures > 200 && moves > 200, "{seen:?}");
}
