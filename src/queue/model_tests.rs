//! A queue against the simplest model of one: any order of publishes, deliveries, acks, returns and
//! purges under any limits and policy, compared after every step.

use super::consumer::{ConsumerKey, ConsumerOptions, Owner};
use super::memory::{Budget, Memory};
use super::policy::{OnFull, QueueBounds, QueueOptions, Refusal, Start, SubscriptionOptions};
use super::{OpenProducerError, Queue};
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
use crate::base::slot_map::Key;
use crate::base::time::{Now, Wall};
use crate::format::batch::{self, BatchBuilder};
use crate::format::properties::{PropertiesBuilder, Tag};
use crate::format::record::{self, Records};
use crate::limits::{CHUNK_HEADER_BYTES, RECORD_HEADER_BYTES};
use crate::protocol::error::ErrorCode;
use crate::protocol::hot::Reached;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

mod life;

const NOBODY: Key = Key { index: 0, generation: 0 };

fn memory() -> Memory {
    let shape = PoolShape {
        slab_bytes: 2 << 20,
        class_bytes: vec![4096, 16384, 1 << 20],
        header_bytes: CHUNK_HEADER_BYTES,
    };
    Memory::new(Budget::new(1 << 30, 1 << 20), ChunkPool::new(shape, Rc::new(HeapSlabs)))
}

fn queue(options: QueueOptions, memory: &mut Memory) -> Queue {
    let bounds = QueueBounds { window_bytes: 1 << 40, ..QueueBounds::default() };
    let mut queue = Queue::new("q", options, bounds, 1, Wall(1), 1, memory).unwrap();
    let (asked, now) = (SubscriptionOptions::default(), Now::default());
    queue.create_subscription("default", asked, Start::Now, now, memory).unwrap();
    queue
}

fn owner(handle: u32) -> Owner {
    Owner { connection: NOBODY, handle }
}

fn consumer_options(auto_ack: bool) -> ConsumerOptions {
    ConsumerOptions {
        auto_ack,
        checksum: false,
        credit_messages: 0,
        credit_bytes: 0,
        lease_ms: 0,
        unacked_max: 0,
    }
}

fn options(on_full: OnFull, messages_max: u64, bytes_max: u64) -> QueueOptions {
    let (message_bytes_max, confirm) = (1 << 26, Reached::Memory);
    QueueOptions { messages_max, bytes_max, on_full, message_bytes_max, confirm }
}

/// What a test does to the queue.
#[derive(Clone, Debug)]
enum Step {
    /// A batch of bodies of these lengths.
    Publish(Vec<usize>),
    /// Credit for consumer 0 or 1.
    Credit(usize, u32, u64),
    /// Acks up to so many of what consumer 0 or 1 has in flight, from the n-th on.
    Ack(usize, usize, usize),
    /// Consumer 0 or 1 goes away; another takes its place.
    Leave(usize),
    Purge,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => vec(0..60usize, 1..9).prop_map(Step::Publish),
        4 => (0..2usize, 1..6u32, 1..200u64).prop_map(|(who, m, b)| Step::Credit(who, m, b)),
        4 => (0..2usize, 0..4usize, 1..6usize).prop_map(|(who, at, n)| Step::Ack(who, at, n)),
        1 => (0..2usize).prop_map(Step::Leave),
        1 => Just(Step::Purge),
    ];
    vec(step, 1..80)
}

/// Lengths of the bodies of a batch: of one length where bytes are limited, for then a run that is
/// cut counts its records' own bytes, and the model need not know how it was cut.
fn lengths_for(options: &QueueOptions, lengths: &[usize]) -> Vec<usize> {
    match options.bytes_max {
        0 => lengths.to_vec(),
        _ => vec![lengths[0]; lengths.len()],
    }
}

fn any_options() -> impl Strategy<Value = QueueOptions> {
    let on_full = prop_oneof![
        Just(OnFull::Block),
        Just(OnFull::Reject),
        Just(OnFull::DropOldest),
        Just(OnFull::DropNewest),
    ];
    let messages_max = prop_oneof![Just(0), 1..12u64];
    let bytes_max = prop_oneof![Just(0), 90..600u64];
    (on_full, messages_max, bytes_max).prop_map(|(f, m, b)| options(f, m, b))
}

/// A consumer as the model sees it.
struct Taker {
    key: ConsumerKey,
    handle: u32,
    /// Delivery id and sequence, oldest first.
    in_flight: BTreeMap<u64, u64>,
    last_delivery: u64,
}

/// The queue and what should be in it.
struct Pair {
    queue: Queue,
    memory: Memory,
    producer: Key,
    subscription: Key,
    next_publish: u64,
    takers: Vec<Taker>,
    handles: u32,
    /// Body of each message held, by sequence.
    held: BTreeMap<u64, Vec<u8>>,
    ready: BTreeSet<u64>,
    next_sequence: u64,
    gone: u64,
}

impl Pair {
    fn new(options: QueueOptions) -> Pair {
        let mut memory = memory();
        let mut queue = queue(options, &mut memory);
        let producer = queue.open_producer(owner(1), 7, 1, &mut memory).unwrap().key;
        let subscription = queue.subscription_key("default").unwrap();
        let mut pair = Pair {
            queue,
            memory,
            producer,
            subscription,
            next_publish: 1,
            takers: Vec::new(),
            handles: 1,
            held: BTreeMap::new(),
            ready: BTreeSet::new(),
            next_sequence: 1,
            gone: 0,
        };
        for _ in 0..2 {
            let taker = pair.taker();
            pair.takers.push(taker);
        }
        pair
    }

    fn taker(&mut self) -> Taker {
        self.handles += 1;
        let handle = self.handles;
        let key = self.queue.open_consumer(
            self.subscription,
            owner(handle),
            consumer_options(false),
            &mut self.memory,
        );
        Taker { key, handle, in_flight: BTreeMap::new(), last_delivery: 0 }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish(lengths) => self.publish(lengths),
            Step::Credit(who, messages, bytes) => {
                let key = self.takers[*who].key;
                assert!(self.queue.add_credit(key, *messages, *bytes));
            }
            Step::Ack(who, at, count) => self.ack(*who, *at, *count),
            Step::Leave(who) => self.leave(*who),
            Step::Purge => {
                let (messages, _) = self.queue.purge(None, &mut self.memory);
                assert_eq!(messages, self.ready.len() as u64);
                for sequence in std::mem::take(&mut self.ready) {
                    self.held.remove(&sequence);
                    self.gone += 1;
                }
            }
        }
        self.deliver();
        let peeked = self.queue.peek(self.subscription, 0, 1000, 1 << 20).unwrap();
        let sequences = peeked.0.iter().map(|message| message.sequence);
        assert!(sequences.eq(self.ready.iter().copied()) && !peeked.1);
        if self.queue.blocked().is_some() && self.queue.poll_unblocked(&self.memory) {
            self.queue.grant_window(self.producer);
        }
        self.compare();
    }

    fn bytes_held(&self) -> u64 {
        self.held.values().map(|body| (RECORD_HEADER_BYTES + body.len()) as u64).sum()
    }

    /// Whether one more body fits, by the letter of the options.
    fn fits(&self, body: &[u8]) -> bool {
        let QueueOptions { messages_max, bytes_max, .. } = *self.queue.options();
        let bytes = self.bytes_held() + (RECORD_HEADER_BYTES + body.len()) as u64;
        (messages_max == 0 || (self.held.len() as u64) < messages_max)
            && (bytes_max == 0 || bytes <= bytes_max)
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
        let outcome = self.queue.publish(self.producer, &batch, Wall(5), &mut self.memory);
        let mut dropping = false;
        let taken =
            bodies.iter().take_while(|body| self.take(body, was_blocked, &mut dropping)).count();
        self.next_publish += taken as u64;
        match outcome {
            Ok(()) => assert_eq!(taken, lengths.len()),
            Err(refusal) => {
                let Refusal { sequence, limit, code, .. } = refusal.expect("it is the first");
                assert!(taken < lengths.len());
                assert_eq!(sequence, first + taken as u64, "resume at the first not taken");
                assert!(limit.is_some());
                assert!(matches!(code, ErrorCode::QueueMessagesMax | ErrorCode::QueueBytesMax));
            }
        }
        let confirm = self.queue.poll_confirm(self.producer);
        assert_eq!(confirm.is_some(), taken > 0);
        if let Some((_, confirm)) = confirm {
            assert_eq!(confirm.sequence, first + taken as u64 - 1);
        }
    }

    /// One message by the policy; false if it is refused. Once one of a batch is dropped for being
    /// the newest, the rest is too.
    fn take(&mut self, body: &[u8], was_blocked: bool, dropping: &mut bool) -> bool {
        let on_full = self.queue.options().on_full;
        if was_blocked {
            return false;
        }
        while *dropping || !self.fits(body) {
            match on_full {
                OnFull::DropNewest => {
                    *dropping = true;
                    self.gone += 1;
                    return true;
                }
                OnFull::DropOldest if !self.ready.is_empty() => {
                    let oldest = self.ready.pop_first().expect("not empty");
                    self.held.remove(&oldest);
                    self.gone += 1;
                }
                _ => return false,
            }
        }
        self.held.insert(self.next_sequence, body.to_vec());
        self.ready.insert(self.next_sequence);
        self.next_sequence += 1;
        true
    }

    fn deliver(&mut self) {
        while let Some(delivery) =
            self.queue.poll_delivery(Now::default(), &mut self.memory, &mut |_| true)
        {
            let taker = self.takers.iter_mut().find(|t| t.handle == delivery.owner.handle);
            let taker = taker.expect("it goes to one that is there");
            assert_eq!(delivery.delivery_id, taker.last_delivery + 1, "delivery ids are dense");
            let bytes = delivery.bytes.chunk.slice(delivery.bytes.range.clone());
            let mut count = 0;
            for record in Records::new(bytes) {
                let sequence =
                    delivery.bytes.base_sequence + u64::from(record.header.sequence_delta);
                assert_eq!(self.ready.pop_first(), Some(sequence), "the oldest that is ready");
                assert_eq!(record.body, self.held[&sequence]);
                taker.last_delivery += 1;
                taker.in_flight.insert(taker.last_delivery, sequence);
                count += 1;
            }
            assert_eq!(count, delivery.count);
        }
    }

    fn ack(&mut self, who: usize, at: usize, count: usize) {
        let taker = &mut self.takers[who];
        let chosen: Vec<u64> = taker.in_flight.keys().skip(at).take(count).copied().collect();
        let (Some(&first), Some(&last)) = (chosen.first(), chosen.last()) else {
            let past = taker.last_delivery + 1;
            let never = self.queue.ack(taker.key, past, past, &mut self.memory);
            assert!(never.is_err(), "what was never given out cannot be acked");
            return;
        };
        let acked = self.queue.ack(taker.key, first, last, &mut self.memory).unwrap();
        assert_eq!(acked.acked, chosen.len() as u64);
        assert_eq!(acked.late, last - first + 1 - acked.acked);
        for delivery in &chosen {
            let sequence = taker.in_flight.remove(delivery).expect("chosen from there");
            self.held.remove(&sequence);
            self.gone += 1;
        }
        let again = self.queue.ack(taker.key, first, last, &mut self.memory).unwrap();
        assert_eq!((again.acked, again.late), (0, last - first + 1), "an ack counts once");
    }

    fn leave(&mut self, who: usize) {
        let successor = self.taker();
        let gone = std::mem::replace(&mut self.takers[who], successor);
        self.queue.close_consumer(gone.key, Now::default(), &mut self.memory);
        self.ready.extend(gone.in_flight.values());
    }

    fn compare(&self) {
        let queue = &self.queue;
        let in_flight: usize = self.takers.iter().map(|taker| taker.in_flight.len()).sum();
        assert_eq!(queue.ready(), self.ready.len() as u64);
        assert_eq!(queue.in_flight(), in_flight as u64);
        if self.held.is_empty() || queue.options().bytes_max > 0 {
            assert_eq!(queue.bytes(), self.bytes_held());
        }
        let counters = queue.counters();
        assert_eq!(counters.gone(), self.gone);
        assert_eq!(counters.published, counters.gone() + queue.ready() + queue.in_flight());
        let QueueOptions { messages_max, bytes_max, .. } = *queue.options();
        assert!(messages_max == 0 || queue.messages() <= messages_max);
        assert!(bytes_max == 0 || queue.bytes() <= bytes_max);
        let ready = queue.ready_ranges(self.subscription).into_iter();
        assert!(ready.flat_map(|(first, end)| first..end).eq(self.ready.iter().copied()));
    }

    /// Everything comes out; the budget is as before.
    fn drain(mut self) {
        self.queue.add_credit(self.takers[0].key, 100_000, 1 << 20);
        self.deliver();
        for who in 0..2 {
            self.ack(who, 0, usize::MAX);
        }
        self.compare();
        assert!(self.held.is_empty() && self.queue.memory_bytes() <= 1 << 20);
        self.queue.delete(&mut self.memory);
        self.memory.shrink(0);
        assert_eq!(self.memory.budget.used_bytes(), 0, "everything charged was given back");
    }
}

proptest! {
    #[test]
    fn a_queue_does_what_its_model_does(options in any_options(), steps in steps()) {
        let mut pair = Pair::new(options);
        for step in &steps {
            pair.step(step);
        }
        pair.drain();
    }
}

fn fragments(total: usize, piece: usize, id: u64, sequence: u64) -> Vec<Vec<u8>> {
    let mut properties = PropertiesBuilder::default();
    properties.push(Tag::BodyBytesTotal, &(total as u64).to_le_bytes()).unwrap();
    let count = total.div_ceil(piece);
    let fragment = |nth: usize| {
        let body = vec![nth as u8; piece.min(total - nth * piece)];
        let first = nth == 0;
        let flags = if first { record::FRAGMENT_FIRST | record::BROKER_PROPERTIES } else { 0 }
            | if nth + 1 == count { record::FRAGMENT_LAST } else { 0 };
        let mut builder = BatchBuilder::default();
        builder.push(flags, if first { properties.bytes() } else { b"" }, &body);
        builder.finish(batch::FRAGMENT, id, sequence).to_vec()
    };
    (0..count).map(fragment).collect()
}

#[test]
fn large_messages_that_come_at_once_keep_the_limit_together() {
    let mut memory = memory();
    let mut queue = queue(options(OnFull::Block, 0, 500_000), &mut memory);
    let keys: Vec<Key> = (1..=3)
        .map(|id| queue.open_producer(owner(id), u64::from(id), 1, &mut memory).unwrap().key)
        .collect();
    let messages: Vec<Vec<Vec<u8>>> = (1..=3).map(|id| fragments(200_000, 50_000, id, 1)).collect();
    let mut refused = 0;
    for nth in 0..4 {
        for (key, message) in keys.iter().zip(&messages) {
            let outcome = queue.publish(*key, &message[nth], Wall(1), &mut memory);
            refused += usize::from(matches!(outcome, Err(Some(_))));
        }
    }
    assert!(queue.bytes() <= 500_000, "{} bytes held under a limit of 500000", queue.bytes());
    assert_eq!((queue.ready(), refused), (2, 1));
}

/// The one in flight keeps the chunk that the purged ones stand in.
#[test]
fn what_was_purged_stays_away() {
    let mut pair = Pair::new(options(OnFull::Block, 0, 0));
    pair.step(&Step::Credit(0, 1, 1000));
    pair.step(&Step::Publish(vec![1, 2, 3]));
    pair.step(&Step::Purge);
    pair.step(&Step::Publish(vec![4]));
    pair.step(&Step::Credit(0, 10, 1000));
    assert_eq!(pair.takers[0].in_flight.values().copied().collect::<Vec<_>>(), [1, 4]);
    pair.drain();
}

#[test]
fn a_length_that_cannot_be_is_refused() {
    let mut memory = memory();
    let mut queue = queue(options(OnFull::Block, 0, 0), &mut memory);
    let key = queue.open_producer(owner(1), 0, 1, &mut memory).unwrap().key;
    let mut properties = PropertiesBuilder::default();
    properties.push(Tag::BodyBytesTotal, &u64::MAX.to_le_bytes()).unwrap();
    let mut builder = BatchBuilder::default();
    let flags = record::FRAGMENT_FIRST | record::BROKER_PROPERTIES;
    builder.push(flags, properties.bytes(), b"x");
    let batch = builder.finish(batch::FRAGMENT, 0, 1).to_vec();
    let refusal = queue.publish(key, &batch, Wall(1), &mut memory).unwrap_err().unwrap();
    assert_eq!(refusal.code, ErrorCode::MessageTooLarge);
}

#[test]
fn an_id_that_is_not_known_claims_nothing() {
    let mut memory = memory();
    let mut queue = queue(options(OnFull::Block, 0, 0), &mut memory);
    let refused = queue.open_producer(owner(1), 9, 4, &mut memory).unwrap_err();
    assert_eq!(refused, OpenProducerError::Unknown);
    let opened = queue.open_producer(owner(1), 9, 1, &mut memory).unwrap();
    let mut builder = BatchBuilder::default();
    (0..3).for_each(|_| builder.push(0, b"", b"x"));
    let batch = builder.finish(0, 9, 1).to_vec();
    assert!(queue.publish(opened.key, &batch, Wall(1), &mut memory).is_ok());
    queue.close_producer(opened.key, &mut memory);
    let again = queue.open_producer(owner(2), 9, 4, &mut memory).unwrap();
    assert_eq!((again.last_sequence, again.fenced), (3, None));
    assert!(queue.publish(again.key, &batch, Wall(1), &mut memory).is_ok());
    let (_, confirm) = queue.poll_confirm(again.key).unwrap();
    assert_eq!((confirm.sequence, confirm.duplicates, queue.ready()), (3, 3, 3));
    let fencing = queue.open_producer(owner(3), 9, 4, &mut memory).unwrap();
    assert_eq!(fencing.fenced, Some(owner(2)));
}
