//! The whole life of messages against a naive model: several subscriptions that come and go, leases
//! that end or are extended, nacks of each kind, back-off, dead letters, redrives, any limits.

use super::*;
use crate::base::prng::Prng;
use crate::base::time::Mono;
use crate::protocol::hot::NackKind;
use crate::queue::counters::SubscriptionCounters;
use crate::queue::policy::{Backoff, BackoffRule};
use crate::queue::subscriptions::CreateSubscriptionError;
use crate::queue::tests::disk::TestDisk;
use crate::queue::{MoveReason, NackRequest, Subscription};

mod disk;
mod moves;

/// What a test does; subscriptions and consumers are chosen among those that are there.
#[derive(Clone, Debug)]
enum Step {
    Publish(Vec<usize>),
    /// One for a single subscription.
    Address(usize, usize),
    Credit(usize, u32, u64),
    Ack(usize, usize, usize),
    Nack(usize, usize, usize, NackKind, Option<u32>),
    Extend(usize, usize, usize, u32),
    Leave(usize),
    Enter(usize, u32, u64),
    Advance(u64),
    Purge(Option<usize>),
    Create(usize, Start),
    Delete(usize),
    Redrive(usize, usize),
    Moves,
    Moved(usize, bool),
    /// So many chunks go to disk, the one that is filled too; or they do not, for it fails.
    Spill(usize, bool, bool),
    Refill(u32),
    Evict(u32),
    /// Whether reads are left waiting.
    Hold(bool),
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    let kind =
        prop_oneof![Just(NackKind::Failed), Just(NackKind::Returned), Just(NackKind::Rejected)];
    let delay = prop_oneof![Just(None), (0..40u32).prop_map(Some)];
    let start = prop_oneof![Just(Start::Now), Just(Start::Oldest)];
    prop_oneof![
        8 => vec(0..60usize, 1..9).prop_map(Step::Publish),
        2 => (0..9usize, 0..60usize).prop_map(|(s, length)| Step::Address(s, length)),
        8 => (0..9usize, 1..9u32, 1..400u64).prop_map(|(who, m, b)| Step::Credit(who, m, b)),
        6 => (0..9usize, 0..4usize, 1..6usize).prop_map(|(who, at, n)| Step::Ack(who, at, n)),
        6 => (0..9usize, 0..4usize, 1..6usize, kind, delay)
            .prop_map(|(who, at, n, kind, delay)| Step::Nack(who, at, n, kind, delay)),
        4 => (0..9usize, 0..4usize, 1..6usize, 0..400u32)
            .prop_map(|(who, at, n, ms)| Step::Extend(who, at, n, ms)),
        2 => (0..9usize).prop_map(Step::Leave),
        3 => (0..9usize, 0..200u32, 0..6u64).prop_map(|(s, ms, max)| Step::Enter(s, ms, max)),
        6 => (1..120u64).prop_map(Step::Advance),
        1 => proptest::option::of(0..3usize).prop_map(Step::Purge),
        2 => (0..4usize, start).prop_map(|(nth, start)| Step::Create(nth, start)),
        1 => (0..9usize).prop_map(Step::Delete),
        3 => (0..9usize, 0..9usize).prop_map(|(s, nth)| Step::Redrive(s, nth)),
        3 => Just(Step::Moves),
        3 => (0..9usize, any::<bool>()).prop_map(|(nth, ok)| Step::Moved(nth, ok)),
        6 => (1..4usize, any::<bool>(), 0..4u32)
            .prop_map(|(count, tails, fails)| Step::Spill(count, tails, fails == 0)),
        2 => (0..3u32).prop_map(Step::Refill),
        3 => (0..3u32).prop_map(Step::Evict),
        2 => any::<bool>().prop_map(Step::Hold),
        1 => Just(Step::Lose),
    ]
}

fn any_subscription() -> impl Strategy<Value = SubscriptionOptions> {
    let rule = prop_oneof![
        Just(BackoffRule::None),
        Just(BackoffRule::Fixed),
        Just(BackoffRule::Linear),
        Just(BackoffRule::Exponential),
        Just(BackoffRule::List([7, 0, 30].into())),
    ];
    (rule, 1..20u32, 1..5u32, 0..8u64, prop_oneof![Just(0u64), 1000..2000u64]).prop_map(
        |(rule, base_ms, max_attempts, unacked_max, expires_after_ms)| SubscriptionOptions {
            lease_ms: 100,
            max_attempts,
            backoff: Backoff { rule, base_ms, max_ms: 50, jitter: false },
            dead_letter: None,
            unacked_max,
            expires_after_ms,
        },
    )
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Ready,
    /// Handle, delivery id, end of the lease.
    InFlight(u32, u64, u64),
    Waiting(u64),
    Dead(MoveReason),
    Out(MoveReason),
}

#[derive(Clone, Copy, Debug)]
struct Held {
    state: State,
    attempts: u32,
    failures: u32,
    first_failed: u64,
    last_failed: u64,
}

const FRESH: Held =
    Held { state: State::Ready, attempts: 0, failures: 0, first_failed: 0, last_failed: 0 };

struct Taker {
    key: ConsumerKey,
    handle: u32,
    last_delivery: u64,
    credit: (i64, i64),
    lease_ms: u64,
    unacked_max: u64,
}

struct Sub {
    key: Key,
    name: String,
    options: SubscriptionOptions,
    held: BTreeMap<u64, Held>,
    takers: Vec<Taker>,
    counters: SubscriptionCounters,
    idle_since: Option<u64>,
}

impl Sub {
    fn count(&self, is: impl Fn(&State) -> bool) -> u64 {
        self.held.values().filter(|held| is(&held.state)).count() as u64
    }

    fn in_flight(&self) -> u64 {
        self.count(|state| matches!(state, State::InFlight(..)))
    }

    fn of(&self, handle: u32) -> Vec<(u64, u64)> {
        let delivery = |(&sequence, held): (&u64, &Held)| match held.state {
            State::InFlight(of, id, _) if of == handle => Some((id, sequence)),
            _ => None,
        };
        let mut all: Vec<_> = self.held.iter().filter_map(delivery).collect();
        all.sort_unstable();
        all
    }

    fn gone(&mut self, sequence: u64) {
        self.held.remove(&sequence).expect("it was held");
    }

    fn fail(&mut self, sequence: u64, delay_ms: Option<u32>, now: u64) {
        let held = self.held.get_mut(&sequence).expect("it is held");
        held.failures += 1;
        held.first_failed = if held.first_failed == 0 { now } else { held.first_failed };
        held.last_failed = now;
        self.counters.failed += 1;
        let backoff = &self.options.backoff;
        let wait = || backoff.wait_ms(held.failures, &mut Prng::new(0));
        held.state = if held.failures >= self.options.max_attempts {
            State::Dead(MoveReason::MaxAttempts)
        } else {
            match delay_ms.map_or_else(wait, u64::from) {
                0 => State::Ready,
                wait => State::Waiting(now + wait),
            }
        };
    }

    fn paused(&self, retry_waiting_max: u64) -> Option<&'static str> {
        let unacked_max = self.options.unacked_max;
        let aside = self.count(|s| matches!(s, State::Waiting(_) | State::Dead(_) | State::Out(_)));
        if unacked_max > 0 && self.in_flight() >= unacked_max {
            Some("unacked_max")
        } else if aside >= retry_waiting_max {
            Some("retry_waiting_max")
        } else {
            None
        }
    }
}

struct Life {
    queue: Queue,
    memory: Memory,
    producer: Key,
    next_publish: u64,
    subs: Vec<Sub>,
    asked: SubscriptionOptions,
    handles: u32,
    bodies: BTreeMap<u64, Vec<u8>>,
    next_sequence: u64,
    published: u64,
    dropped_newest: u64,
    gone_with_subs: u64,
    out: Vec<(Key, u64)>,
    retry_waiting_max: u64,
    now: u64,
    disk: TestDisk,
    holds_reads: bool,
    /// What nobody can read any more.
    lost: BTreeSet<u64>,
}

impl Life {
    fn new(options: QueueOptions, asked: SubscriptionOptions, retry_waiting_max: u64) -> Life {
        let mut memory = memory();
        let bounds =
            QueueBounds { window_bytes: 1 << 40, retry_waiting_max, ..QueueBounds::default() };
        let mut queue = Queue::new("q", options, bounds, 1, Wall(1), 1, &mut memory).unwrap();
        let producer = queue.open_producer(owner(1), 7, 1, &mut memory).unwrap().key;
        let mut life = Life {
            queue,
            memory,
            producer,
            next_publish: 1,
            subs: Vec::new(),
            asked,
            handles: 1,
            bodies: BTreeMap::new(),
            next_sequence: 1,
            published: 0,
            dropped_newest: 0,
            gone_with_subs: 0,
            out: Vec::new(),
            retry_waiting_max,
            now: 1,
            disk: TestDisk::new(),
            holds_reads: false,
            lost: BTreeSet::new(),
        };
        life.create(0, Start::Now);
        life.enter(0, 0, 0);
        life
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.now * 1_000_000), wall: Wall(self.now) }
    }

    /// Subscription and consumer by a number.
    fn taker(&self, who: usize) -> Option<(usize, usize)> {
        let all = self.subs.iter().enumerate();
        let all: Vec<_> =
            all.flat_map(|(s, sub)| (0..sub.takers.len()).map(move |t| (s, t))).collect();
        (!all.is_empty()).then(|| all[who % all.len()])
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish(ref lengths) => self.publish(lengths),
            Step::Address(s, length) => self.address(s, length),
            Step::Credit(who, messages, bytes) => {
                if let Some((s, t)) = self.taker(who) {
                    let taker = &mut self.subs[s].takers[t];
                    assert!(self.queue.add_credit(taker.key, messages, bytes));
                    taker.credit.0 += i64::from(messages);
                    taker.credit.1 += bytes as i64;
                }
            }
            Step::Ack(who, at, count) => self.ack(who, at, count),
            Step::Nack(who, at, count, kind, delay) => self.nack(who, at, count, kind, delay),
            Step::Extend(who, at, count, ms) => self.extend(who, at, count, ms),
            Step::Leave(who) => self.leave(who),
            Step::Enter(s, lease_ms, unacked_max) => self.enter(s, lease_ms, unacked_max),
            Step::Advance(ms) => self.advance(ms),
            Step::Purge(s) => self.purge(s),
            Step::Create(nth, start) => self.create(nth, start),
            Step::Delete(s) => self.delete(s),
            Step::Redrive(s, nth) => self.redrive(s, nth),
            Step::Moves => self.moves(),
            Step::Moved(nth, ok) => self.moved(nth, ok),
            Step::Spill(count, tails, fails) => self.spill(count, tails, fails),
            Step::Refill(ahead) => _ = self.disk.refill(&mut self.queue, &mut self.memory, ahead),
            Step::Evict(near) => self.disk.evict(&mut self.queue, near),
            Step::Hold(holds) => self.holds_reads = holds,
            Step::Lose => self.lose(),
        }
        self.deliver();
        self.peek();
        if self.queue.blocked().is_some() && self.queue.poll_unblocked(&self.memory) {
            self.queue.grant_window(self.producer);
        }
        self.compare();
    }

    fn publish(&mut self, lengths: &[usize]) {
        let lengths = lengths_for(self.queue.options(), lengths);
        let mut builder = BatchBuilder::default();
        let body = |nth: usize, length| vec![(self.next_publish as usize + nth) as u8; length];
        let bodies: Vec<Vec<u8>> =
            lengths.iter().enumerate().map(|(nth, length)| body(nth, *length)).collect();
        bodies.iter().for_each(|body| builder.push(0, b"", body));
        let first = self.next_publish;
        let batch = builder.finish(0, 7, first).to_vec();
        let was_blocked = self.queue.blocked().is_some();
        let nobody = self.subs.is_empty();
        let outcome = self.queue.publish(self.producer, &batch, Wall(5), &mut self.memory);
        let mut dropping = false;
        let mut taken = 0;
        for body in bodies {
            if was_blocked || nobody || !self.take(body, &mut dropping) {
                break;
            }
            taken += 1;
        }
        self.next_publish += taken as u64;
        match outcome {
            Ok(()) => assert_eq!(taken, lengths.len()),
            Err(refusal) => {
                let refusal = refusal.expect("it is the first");
                assert_eq!(refusal.sequence, first + taken as u64, "resume at the first not taken");
                assert!(!nobody || refusal.code == ErrorCode::NoSubscription);
            }
        }
    }

    fn address(&mut self, s: usize, length: usize) {
        let body = vec![7; length];
        if self.subs.is_empty() || !self.subs.iter().all(|sub| self.fits(sub, &body)) {
            return;
        }
        let index = s % self.subs.len();
        let sub = &mut self.subs[index];
        let mut builder = BatchBuilder::default();
        builder.push(0, b"", &body);
        let batch = builder.finish(0, 0, 1).to_vec();
        let bytes = (RECORD_HEADER_BYTES + length) as u64;
        let only = Some(sub.key);
        self.queue.append(&batch, (1, bytes), only, 5, &mut self.memory).unwrap();
        sub.held.insert(self.next_sequence, FRESH);
        sub.counters.entered += 1;
        self.bodies.insert(self.next_sequence, body);
        self.next_sequence += 1;
        self.published += 1;
    }

    fn bytes_of(&self, sequence: u64) -> u64 {
        (RECORD_HEADER_BYTES + self.bodies[&sequence].len()) as u64
    }

    fn bytes(&self, sub: &Sub) -> u64 {
        sub.held.keys().map(|sequence| self.bytes_of(*sequence)).sum()
    }

    /// Whether what is left of runs that were cut counts exactly its own bytes.
    fn counts_bytes(&self, sub: &Sub) -> bool {
        sub.held.is_empty() || self.queue.options().bytes_max > 0
    }

    /// Whether a subscription has room for one more body, by the letter of the options.
    fn fits(&self, sub: &Sub, body: &[u8]) -> bool {
        let bytes_max = self.queue.options().bytes_max;
        let bytes = self.bytes(sub) + (RECORD_HEADER_BYTES + body.len()) as u64;
        self.fits_one_more(sub) && (bytes_max == 0 || bytes <= bytes_max)
    }

    fn fits_one_more(&self, sub: &Sub) -> bool {
        let messages_max = self.queue.options().messages_max;
        messages_max == 0 || (sub.held.len() as u64) < messages_max
    }

    fn take(&mut self, body: Vec<u8>, dropping: &mut bool) -> bool {
        while *dropping || !self.subs.iter().all(|sub| self.fits(sub, &body)) {
            let on_full = self.queue.options().on_full;
            match on_full {
                OnFull::DropNewest => {
                    *dropping = true;
                    self.published += 1;
                    self.dropped_newest += 1;
                    return true;
                }
                OnFull::DropOldest if self.drop_oldest(&body) => {}
                _ => return false,
            }
        }
        for sub in &mut self.subs {
            sub.held.insert(self.next_sequence, FRESH);
            sub.counters.entered += 1;
        }
        self.bodies.insert(self.next_sequence, body);
        self.next_sequence += 1;
        self.published += 1;
        true
    }

    /// The oldest message that a full subscription has ready or delayed and none has in flight.
    /// Those that have too many messages come first, then those that have too many bytes.
    fn drop_oldest(&mut self, body: &[u8]) -> bool {
        let idle = |state: State| matches!(state, State::Ready | State::Waiting(_));
        let busy = |sequence: &u64| {
            let mut all = self.subs.iter().filter_map(|sub| sub.held.get(sequence));
            all.any(|held| !idle(held.state))
        };
        let by_count = self.subs.iter().any(|sub| !self.fits_one_more(sub));
        let full = self.subs.iter().filter(|sub| match by_count {
            true => !self.fits_one_more(sub),
            false => !self.fits(sub, body),
        });
        let oldest = full.flat_map(|sub| sub.held.keys()).filter(|s| !busy(s)).min().copied();
        let Some(oldest) = oldest else { return false };
        for sub in &mut self.subs {
            if sub.held.remove(&oldest).is_some() {
                sub.counters.dropped += 1;
            }
        }
        true
    }

    fn deliver(&mut self) {
        self.settle_lost();
        self.deliver_present();
        while self.read() {
            self.deliver_present();
        }
    }

    fn deliver_present(&mut self) {
        let now = self.now();
        while let Some(delivery) = self.queue.poll_delivery(now, &mut self.memory, &mut |_| true) {
            let handle = delivery.owner.handle;
            let is = |taker: &Taker| taker.handle == handle;
            let sub = self.subs.iter_mut().find(|sub| sub.takers.iter().any(is));
            let sub = sub.expect("it goes to one that is there");
            assert!(sub.paused(self.retry_waiting_max).is_none());
            let taker = sub.takers.iter_mut().find(|taker| is(taker)).unwrap();
            assert_eq!(delivery.delivery_id, taker.last_delivery + 1, "delivery ids are dense");
            assert!(taker.credit.0 > 0 && taker.credit.1 > 0);
            let bytes = delivery.bytes.chunk.slice(delivery.bytes.range.clone());
            for record in Records::new(bytes) {
                let sequence =
                    delivery.bytes.base_sequence + u64::from(record.header.sequence_delta);
                let oldest = sub.held.iter_mut().find(|(_, held)| held.state == State::Ready);
                let (&oldest, held) = oldest.expect("something is ready");
                assert_eq!(oldest, sequence, "the oldest that is ready");
                assert_eq!(record.body, self.bodies[&sequence]);
                taker.last_delivery += 1;
                taker.credit.0 -= 1;
                taker.credit.1 -= record.header.record_bytes() as i64;
                let id = taker.last_delivery;
                held.state = State::InFlight(handle, id, self.now + taker.lease_ms);
                sub.counters.delivered += 1;
                sub.counters.delivered_bytes += record.header.record_bytes() as u64;
                sub.counters.redelivered += u64::from(held.attempts > 0);
                held.attempts += 1;
                assert_eq!(u32::from(delivery.attempts), held.attempts);
            }
            assert!(taker.credit.0 >= 0);
            let (unacked_max, own) = (taker.unacked_max, sub.of(handle).len() as u64);
            assert!(unacked_max == 0 || own <= unacked_max);
            assert!(sub.options.unacked_max == 0 || sub.in_flight() <= sub.options.unacked_max);
        }
    }

    /// A range of what a consumer has in flight: subscription, key, first and last id, sequences.
    #[allow(clippy::type_complexity)]
    fn range(
        &self,
        who: usize,
        at: usize,
        count: usize,
    ) -> Option<(usize, ConsumerKey, u64, u64, Vec<u64>)> {
        let (s, t) = self.taker(who)?;
        let taker = &self.subs[s].takers[t];
        let chosen: Vec<_> =
            self.subs[s].of(taker.handle).into_iter().skip(at).take(count).collect();
        let (first, last) = (chosen.first()?.0, chosen.last()?.0);
        Some((s, taker.key, first, last, chosen.into_iter().map(|(_, s)| s).collect()))
    }

    fn ack(&mut self, who: usize, at: usize, count: usize) {
        let Some((s, key, first, last, chosen)) = self.range(who, at, count) else {
            if let Some((s, t)) = self.taker(who) {
                let taker = &self.subs[s].takers[t];
                let past = taker.last_delivery + 1;
                assert!(self.queue.ack(taker.key, past, past, &mut self.memory).is_err());
            }
            return;
        };
        let acked = self.queue.ack(key, first, last, &mut self.memory).unwrap();
        assert_eq!((acked.acked, acked.late), late(first, last, &chosen));
        let again = self.queue.ack(key, first, last, &mut self.memory).unwrap();
        assert_eq!((again.acked, again.late), (0, last - first + 1), "an ack counts once");
        self.subs[s].counters.acked += chosen.len() as u64;
        chosen.iter().for_each(|sequence| self.subs[s].gone(*sequence));
    }

    fn nack(&mut self, who: usize, at: usize, count: usize, kind: NackKind, delay: Option<u32>) {
        let Some((s, key, first, last, chosen)) = self.range(who, at, count) else { return };
        let nack = NackRequest { kind, first, last, delay_ms: delay, text: "why" };
        let now = self.now();
        let nacked = self.queue.nack(key, &nack, now, &mut self.memory).unwrap();
        assert_eq!((nacked.acked, nacked.late), late(first, last, &chosen));
        let sub = &mut self.subs[s];
        for sequence in chosen {
            match kind {
                NackKind::Failed => sub.fail(sequence, delay, self.now),
                NackKind::Returned => {
                    sub.held.get_mut(&sequence).unwrap().state = State::Ready;
                    sub.counters.returned += 1;
                }
                NackKind::Rejected => {
                    let held = sub.held.get_mut(&sequence).unwrap();
                    held.state = State::Dead(MoveReason::Rejected);
                    held.first_failed =
                        if held.first_failed == 0 { self.now } else { held.first_failed };
                    held.last_failed = self.now;
                }
            }
        }
    }

    fn extend(&mut self, who: usize, at: usize, count: usize, ms: u32) {
        let Some((s, key, first, last, chosen)) = self.range(who, at, count) else { return };
        let now = self.now();
        let extended = self.queue.extend(key, first, last, ms, now, &mut self.memory).unwrap();
        assert_eq!((extended.acked, extended.late), late(first, last, &chosen));
        let own = self.subs[s].takers.iter().find(|taker| taker.key == key).unwrap().lease_ms;
        let until = self.now + if ms == 0 { own } else { u64::from(ms) };
        for sequence in chosen {
            let State::InFlight(_, _, end) =
                &mut self.subs[s].held.get_mut(&sequence).unwrap().state
            else {
                panic!("it is in flight");
            };
            *end = until;
        }
    }

    fn leave(&mut self, who: usize) {
        let Some((s, t)) = self.taker(who) else { return };
        let now = self.now();
        let sub = &mut self.subs[s];
        let taker = sub.takers.remove(t);
        self.queue.close_consumer(taker.key, now, &mut self.memory);
        for (_, sequence) in sub.of(taker.handle) {
            sub.held.get_mut(&sequence).unwrap().state = State::Ready;
            sub.counters.returned += 1;
        }
        if sub.takers.is_empty() {
            sub.idle_since = Some(self.now);
        }
    }

    fn enter(&mut self, s: usize, lease_ms: u32, unacked_max: u64) {
        if self.subs.is_empty() {
            return;
        }
        let index = s % self.subs.len();
        let sub = &mut self.subs[index];
        self.handles += 1;
        let handle = self.handles;
        let options = ConsumerOptions { lease_ms, unacked_max, ..consumer_options(false) };
        let key = self.queue.open_consumer(sub.key, owner(handle), options, &mut self.memory);
        let lease_ms = u64::from(if lease_ms == 0 { sub.options.lease_ms } else { lease_ms });
        let (last_delivery, credit) = (0, (0, 0));
        sub.takers.push(Taker { key, handle, last_delivery, credit, lease_ms, unacked_max });
        sub.idle_since = None;
    }

    fn advance(&mut self, ms: u64) {
        let asleep = self.queue.next_deadline();
        self.now += ms;
        let now = self.now();
        let mut changed = false;
        for sub in &mut self.subs {
            let due: Vec<u64> = sub
                .held
                .iter()
                .filter(
                    |(_, held)| matches!(held.state, State::InFlight(_, _, end) if end <= self.now),
                )
                .map(|(&sequence, _)| sequence)
                .collect();
            changed |= !due.is_empty();
            due.into_iter().for_each(|sequence| sub.fail(sequence, None, self.now));
            for held in sub.held.values_mut() {
                if matches!(held.state, State::Waiting(due) if due <= self.now) {
                    held.state = State::Ready;
                    changed = true;
                }
            }
        }
        let expired = |sub: &Sub| {
            let after = sub.options.expires_after_ms;
            after > 0 && sub.idle_since.is_some_and(|since| since + after <= self.now)
        };
        let gone: Vec<usize> = (0..self.subs.len()).filter(|&s| expired(&self.subs[s])).collect();
        if changed || !gone.is_empty() {
            assert!(asleep.is_some_and(|at| at <= now.mono), "a deadline that nobody waits for");
        }
        for s in gone.into_iter().rev() {
            self.gone_with_subs += 1;
            self.subs.remove(s);
        }
        for _ in 0..100 {
            if self.queue.next_deadline().is_none_or(|at| at > now.mono) {
                break;
            }
            self.queue.handle_deadline(now, &mut self.memory);
            // What was refused is due for another try, and is so until it is polled.
            self.settle_lost();
            self.moves();
        }
        assert!(self.queue.next_deadline().is_none_or(|at| at > now.mono), "nothing is left due");
    }

    fn purge(&mut self, s: Option<usize>) {
        let s = s.filter(|_| !self.subs.is_empty()).map(|s| s % self.subs.len());
        let key = s.map(|s| self.subs[s].key);
        let (messages, _) = self.queue.purge(key, &mut self.memory);
        let mut purged = 0;
        for (nth, sub) in self.subs.iter_mut().enumerate() {
            if s.is_none_or(|s| s == nth) {
                let before = sub.held.len();
                sub.held.retain(|_, h| !matches!(h.state, State::Ready | State::Waiting(_)));
                sub.counters.purged += (before - sub.held.len()) as u64;
                purged += before - sub.held.len();
            }
        }
        assert_eq!(messages, purged as u64);
    }

    fn create(&mut self, nth: usize, start: Start) {
        let name = format!("s{nth}");
        let (asked, now) = (self.asked.clone(), self.now());
        let known = self.subs.iter().any(|sub| sub.name == name);
        // What is lost and in flight enters, and is found lost only when it is read: not followed.
        let mut all = self.subs.iter().flat_map(|sub| sub.held.keys());
        let start = if all.any(|s| self.lost.contains(s)) { Start::Now } else { start };
        let made = loop {
            let (asked, memory) = (asked.clone(), &mut self.memory);
            let made = self.queue.create_subscription(&name, asked, start, now, memory);
            match made {
                Err(CreateSubscriptionError::Absent(_)) if self.read() => {}
                Err(CreateSubscriptionError::Absent(_)) => return,
                made => break made,
            }
        };
        assert_eq!(made, Ok(!known));
        if known {
            return;
        }
        let mut held = BTreeMap::new();
        if start == Start::Oldest {
            let all = self.subs.iter().flat_map(|sub| sub.held.keys());
            held.extend(all.map(|&sequence| (sequence, FRESH)));
            held.retain(|sequence, _| !self.lost.contains(sequence));
        }
        let key = self.queue.subscription_key(&name).unwrap();
        let entered = held.len() as u64;
        let counters = SubscriptionCounters { entered, ..SubscriptionCounters::default() };
        let (options, idle_since) = (self.asked.clone(), Some(self.now));
        self.subs.push(Sub { key, name, options, held, takers: Vec::new(), counters, idle_since });
    }

    fn delete(&mut self, s: usize) {
        if self.subs.is_empty() {
            return;
        }
        let s = s % self.subs.len();
        let (key, takers) = (self.subs[s].key, self.subs[s].takers.len());
        if takers > 0 {
            assert!(self.queue.delete_subscription(key, false, &mut self.memory).is_err());
        }
        let sub = self.subs.remove(s);
        let removed = self.queue.delete_subscription(key, true, &mut self.memory).unwrap();
        // What is in flight and lost comes back to nobody: it counts as lost, not as removed.
        let is_lost = |(sequence, held): &(&u64, &Held)| {
            matches!(held.state, State::InFlight(..)) && self.lost.contains(sequence)
        };
        let lost = sub.held.iter().filter(is_lost).count();
        assert_eq!(removed.0, (sub.held.len() - lost) as u64);
        assert!(!self.counts_bytes(&sub) || removed.1 == self.bytes(&sub));
        for _ in 0..takers {
            let (closed, code) = self.queue.poll_closed().unwrap();
            assert!(sub.takers.iter().any(|taker| owner(taker.handle) == closed));
            assert_eq!(code, ErrorCode::SubscriptionDeleted);
        }
        self.gone_with_subs += 1;
    }

    fn compare(&self) {
        TestDisk::check(&self.queue);
        let counters = self.queue.counters();
        assert_eq!(
            (counters.published, counters.dropped_newest),
            (self.published, self.dropped_newest)
        );
        assert_eq!(self.queue.subscription_count(), self.subs.len());
        for sub in &self.subs {
            self.compare_one(sub, self.queue.subscription(sub.key).unwrap());
        }
        let most = self.subs.iter().map(|sub| sub.held.len() as u64).max();
        assert_eq!(self.queue.messages(), most.unwrap_or(0));
        let of = |count: fn(&SubscriptionCounters) -> u64| -> u64 {
            self.subs.iter().map(|sub| count(&sub.counters)).sum()
        };
        if self.gone_with_subs == 0 {
            assert_eq!(counters.acked, of(|c| c.acked));
            assert_eq!(counters.failed, of(|c| c.failed));
            assert_eq!(counters.dropped_oldest, of(|c| c.dropped));
            assert_eq!(counters.gone() - counters.dropped_newest, of(SubscriptionCounters::gone));
        }
    }

    fn compare_one(&self, sub: &Sub, shown: &Subscription) {
        assert_eq!(*shown.counters(), sub.counters);
        assert_eq!(shown.counters().entered, shown.counters().gone() + shown.messages());
        assert_eq!(shown.ready(), sub.count(|state| *state == State::Ready));
        assert_eq!(shown.in_flight(), sub.in_flight());
        assert_eq!(shown.delayed(), sub.count(|state| matches!(state, State::Waiting(_))));
        let aside = sub.count(|state| matches!(state, State::Dead(_) | State::Out(_)));
        assert_eq!(shown.dead_lettering(), aside);
        if self.counts_bytes(sub) {
            assert_eq!(shown.bytes(), self.bytes(sub));
        }
        let shown_ready = self.queue.ready_ranges(sub.key).into_iter();
        let ready = sub.held.iter().filter(|(_, held)| held.state == State::Ready);
        assert!(shown_ready.flat_map(|(first, end)| first..end).eq(ready.map(|(s, _)| *s)));
        if shown.ready() > 0 {
            let paused = sub.paused(self.retry_waiting_max);
            assert_eq!(shown.paused_reason(), paused);
            let wants = |taker: &Taker| {
                let own = sub.of(taker.handle).len() as u64;
                taker.credit.0 > 0
                    && taker.credit.1 > 0
                    && (taker.unacked_max == 0 || own < taker.unacked_max)
            };
            let waits = shown.waits_for_disk();
            assert!(!waits || self.holds_reads, "what it waits for has come");
            let wanted = sub.takers.iter().any(wants);
            assert!(paused.is_some() || waits || !wanted, "somebody waits for it");
        }
    }

    /// Everything comes out; the budget is as before.
    fn drain(mut self) {
        self.holds_reads = false;
        for s in 0..self.subs.len() {
            self.enter(s, 100, 0);
            let taker = self.subs[s].takers.last_mut().unwrap();
            assert!(self.queue.add_credit(taker.key, 100_000, 1 << 20));
            taker.credit = (100_000, 1 << 20);
        }
        for _ in 0..5000 {
            if self.subs.iter().all(|sub| sub.held.is_empty()) {
                break;
            }
            self.deliver();
            let takers: usize = self.subs.iter().map(|sub| sub.takers.len()).sum();
            (0..takers).for_each(|who| self.ack(who, 0, usize::MAX));
            self.settle_lost();
            self.moves();
            while !self.out.is_empty() {
                self.moved(0, true);
            }
            self.advance(60);
            self.deliver();
            self.compare();
        }
        assert!(self.subs.iter().all(|sub| sub.held.is_empty()), "all of it comes out");
        assert!(self.queue.memory_bytes() <= 1 << 20);
        self.queue.delete(&mut self.memory);
        self.memory.shrink(0);
        assert_eq!(self.memory.budget.used_bytes(), 0, "everything charged was given back");
    }
}

/// How many of a range are still in flight, and how many are not.
fn late(first: u64, last: u64, chosen: &[u64]) -> (u64, u64) {
    (chosen.len() as u64, last - first + 1 - chosen.len() as u64)
}

proptest! {
    #[test]
    fn messages_live_as_their_model_says(
        options in any_options(),
        asked in any_subscription(),
        retry_waiting_max in prop_oneof![Just(1000u64), 1..8u64],
        steps in vec(step(), 1..120),
    ) {
        let mut life = Life::new(options, asked, retry_waiting_max);
        for step in &steps {
            life.step(step);
        }
        life.drain();
    }
}
