//! The queue by itself: order, returns, policies, purge and peek, one at a time. Random histories
//! against a naive model are in the simulator and the model test.

use super::policy::{Start, SubscriptionOptions};
use super::*;
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
use crate::format::batch::BatchBuilder;
use crate::format::record::Records;
use crate::protocol::hot::NackKind;
use crate::queue::memory::Budget;
use crate::queue::policy::OnFull;
use std::rc::Rc;

mod dead_letters;
pub(super) mod disk;
mod large;
mod leases;
mod moved;
mod pulls;
mod spill;
mod subscriptions;

const NOBODY: Key = Key { index: 0, generation: 0 };

struct Bench {
    queue: Queue,
    memory: Memory,
    producer: Key,
    sequence: u64,
    subscription: Key,
    now: Now,
    several: bool,
}

impl Bench {
    fn new(options: QueueOptions) -> Self {
        Bench::with(options, SubscriptionOptions::default())
    }

    fn with(options: QueueOptions, asked: SubscriptionOptions) -> Self {
        let shape = PoolShape {
            slab_bytes: 1 << 20,
            class_bytes: vec![4096, 16384, 1 << 18, 1 << 20],
            header_bytes: crate::limits::CHUNK_HEADER_BYTES,
        };
        let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
        let mut memory = Memory::new(Budget::new(16 << 20, 1 << 20), pool);
        let mut queue =
            Queue::new("q", options, QueueBounds::default(), 1, Wall(0), 1, &mut memory).unwrap();
        let now = Now { mono: Mono(0), wall: Wall(1) };
        queue.create_subscription("default", asked, Start::Now, now, &mut memory).unwrap();
        let subscription = queue.subscription_key("default").unwrap();
        let producer = queue.open_producer(owner(1), 0, 1, &mut memory).unwrap().key;
        Bench { queue, memory, producer, sequence: 1, subscription, now, several: false }
    }

    fn publish(&mut self, bodies: &[&str]) -> Option<ErrorCode> {
        let mut builder = BatchBuilder::default();
        bodies.iter().for_each(|body| builder.push(0, &[], body.as_bytes()));
        let batch = builder.finish(0, 0, self.sequence).to_vec();
        let result = self.queue.publish(self.producer, &batch, Wall(5), &mut self.memory);
        self.queue.grant_window(self.producer);
        match result {
            Ok(()) => {
                self.sequence += bodies.len() as u64;
                None
            }
            Err(refusal) => {
                let refusal = refusal.expect("nothing was refused before");
                self.sequence = refusal.sequence;
                Some(refusal.code)
            }
        }
    }

    fn consumer(&mut self, handle: u32, credit_messages: u32, auto_ack: bool) -> ConsumerKey {
        self.consumer_of(self.subscription, handle, credit_messages, auto_ack)
    }

    fn consumer_of(
        &mut self,
        subscription: Key,
        handle: u32,
        credit_messages: u32,
        auto_ack: bool,
    ) -> ConsumerKey {
        let credit_bytes = 1 << 20;
        let options = ConsumerOptions {
            auto_ack,
            checksum: false,
            credit_messages,
            credit_bytes,
            lease_ms: 0,
            unacked_max: 0,
        };
        self.queue.open_consumer(subscription, owner(handle), options, &mut self.memory)
    }

    /// Everything that may be delivered now: handle, delivery id, attempts, body.
    fn deliveries(&mut self) -> Vec<(u32, u64, u16, String)> {
        let mut all = Vec::new();
        while let Some(delivery) =
            self.queue.poll_delivery(self.now, &mut self.memory, &mut |_| true)
        {
            let records = delivery.bytes.chunk.slice(delivery.bytes.range.clone());
            for (nth, record) in Records::new(records).enumerate() {
                let body = String::from_utf8(record.body.to_vec()).unwrap();
                let id = delivery.delivery_id + nth as u64;
                all.push((delivery.owner.handle, id, delivery.attempts, body));
            }
        }
        self.check();
        all
    }

    fn bodies(&mut self) -> Vec<String> {
        self.deliveries().into_iter().map(|(_, _, _, body)| body).collect()
    }

    /// Another subscription.
    fn subscribe(&mut self, name: &str, start: Start) -> Key {
        self.several = true;
        let (asked, now) = (SubscriptionOptions::default(), self.now);
        let made = self.queue.create_subscription(name, asked, start, now, &mut self.memory);
        assert_eq!(made, Ok(true));
        self.queue.subscription_key(name).unwrap()
    }

    /// Time goes on by so many milliseconds, and what is due happens.
    fn pass(&mut self, ms: u64) {
        self.now.mono = self.now.mono.plus_ms(ms);
        self.now.wall.0 += ms * 1000;
        self.queue.handle_deadline(self.now, &mut self.memory);
        self.check();
    }

    fn nack(&mut self, key: ConsumerKey, kind: NackKind, first: u64, last: u64) -> Acked {
        let nack = NackRequest { kind, first, last, delay_ms: None, text: "no good" };
        let nacked = self.queue.nack(key, &nack, self.now, &mut self.memory).unwrap();
        self.check();
        nacked
    }

    fn extend(&mut self, key: ConsumerKey, first: u64, last: u64, ms: u32) -> Acked {
        self.queue.extend(key, first, last, ms, self.now, &mut self.memory).unwrap()
    }

    fn ack(&mut self, key: ConsumerKey, first: u64, last: u64) -> Acked {
        self.queue.ack(key, first, last, &mut self.memory).unwrap()
    }

    fn check(&self) {
        let counters = self.queue.counters();
        if !self.several {
            assert_eq!(counters.published, counters.gone() + self.queue.messages());
        }
        for (_, subscription) in self.queue.subscriptions() {
            let counters = subscription.counters();
            assert_eq!(counters.entered, counters.gone() + subscription.messages());
        }
    }
}

fn owner(handle: u32) -> Owner {
    Owner { connection: NOBODY, handle }
}

fn options() -> QueueOptions {
    QueueOptions {
        messages_max: 0,
        bytes_max: 0,
        on_full: OnFull::Block,
        message_bytes_max: 1 << 20,
        confirm: Reached::Memory,
    }
}

#[test]
fn consumers_take_turns_and_get_everything_in_order() {
    let mut bench = Bench::new(options());
    bench.consumer(2, 2, false);
    bench.consumer(3, 2, false);
    bench.publish(&["a", "b", "c", "d", "e"]);
    let got = bench.deliveries();
    let of =
        |handle| got.iter().filter(|d| d.0 == handle).map(|d| d.3.as_str()).collect::<Vec<_>>();
    assert_eq!((of(2), of(3)), (vec!["a", "b"], vec!["c", "d"]));
    assert_eq!((bench.queue.ready(), bench.queue.in_flight()), (1, 4));
}

#[test]
fn what_a_closed_consumer_had_comes_back_at_its_old_place_and_is_not_failed() {
    let mut bench = Bench::new(options());
    let first = bench.consumer(2, 4, false);
    bench.publish(&["a", "b", "c", "d", "e", "f"]);
    bench.deliveries();
    bench.queue.ack(first, 2, 2, &mut bench.memory).unwrap();
    bench.queue.close_consumer(first, bench.now, &mut bench.memory);
    assert_eq!((bench.queue.ready(), bench.queue.in_flight()), (5, 0));
    bench.consumer(3, 100, false);
    let got = bench.deliveries();
    let seen: Vec<_> =
        got.iter().map(|(_, _, attempts, body)| (*attempts, body.as_str())).collect();
    assert_eq!(seen, [(2, "a"), (2, "c"), (2, "d"), (1, "e"), (1, "f")]);
    let counters = bench.queue.counters();
    assert_eq!((counters.returned, counters.failed, counters.redelivered), (3, 0, 3));
}

#[test]
fn acks_in_any_order_free_the_memory() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 1000, false);
    for _ in 0..20 {
        let body = "x".repeat(1000);
        bench.publish(&[body.as_str(); 10]);
    }
    assert_eq!(bench.deliveries().len(), 200);
    assert!(bench.queue.memory_bytes() > 200_000);
    for id in (1..=200).rev().step_by(2).chain((1..=200).step_by(2)) {
        let acked = bench.queue.ack(consumer, id, id, &mut bench.memory).unwrap();
        assert_eq!((acked.acked, acked.late), (1, 0));
        bench.check();
    }
    assert_eq!((bench.queue.memory_bytes(), bench.queue.bytes()), (0, 0));
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

#[test]
fn auto_ack_ends_a_message_with_its_delivery() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 10, true);
    bench.publish(&["a", "b"]);
    assert_eq!(bench.bodies(), ["a", "b"]);
    assert_eq!((bench.queue.counters().acked, bench.queue.memory_bytes()), (2, 0));
    let acked = bench.queue.ack(consumer, 1, 2, &mut bench.memory).unwrap();
    assert_eq!((acked.acked, acked.late), (0, 2));
}

#[test]
fn reject_takes_what_fits_and_refuses_the_rest() {
    let mut bench =
        Bench::new(QueueOptions { messages_max: 3, on_full: OnFull::Reject, ..options() });
    assert_eq!(bench.publish(&["a", "b", "c", "d"]), Some(ErrorCode::QueueMessagesMax));
    assert_eq!((bench.queue.ready(), bench.sequence), (3, 4));
    assert!(bench.queue.blocked().is_none());
    assert_eq!(bench.queue.counters().refused, 1);
    bench.consumer(2, 10, true);
    assert_eq!(bench.bodies(), ["a", "b", "c"]);
}

#[test]
fn drop_oldest_keeps_the_newest_and_leaves_what_is_in_flight() {
    let mut bench =
        Bench::new(QueueOptions { messages_max: 4, on_full: OnFull::DropOldest, ..options() });
    bench.consumer(2, 1, false);
    bench.publish(&["a", "b", "c", "d"]);
    assert_eq!(bench.bodies(), ["a"]);
    assert_eq!(bench.publish(&["e", "f", "g", "h", "i"]), None);
    assert_eq!(bench.queue.counters().dropped_oldest, 5);
    bench.consumer(3, 10, true);
    assert_eq!(bench.bodies(), ["g", "h", "i"]);
}

#[test]
fn drop_newest_confirms_and_counts_what_it_dropped() {
    let mut bench =
        Bench::new(QueueOptions { messages_max: 2, on_full: OnFull::DropNewest, ..options() });
    assert_eq!(bench.publish(&["a", "b", "c"]), None);
    let (_, confirm) = bench.queue.poll_confirm(bench.producer).unwrap();
    assert_eq!((confirm.sequence, confirm.dropped), (3, 1));
    bench.consumer(2, 10, true);
    assert_eq!(bench.bodies(), ["a", "b"]);
}

#[test]
fn bytes_are_limited_exactly() {
    // Each record is 16 + 4 bytes.
    let mut bench =
        Bench::new(QueueOptions { bytes_max: 65, on_full: OnFull::Reject, ..options() });
    let refused = bench.publish(&["1111", "2222", "3333", "4444"]);
    assert_eq!(refused, Some(ErrorCode::QueueBytesMax));
    assert_eq!((bench.queue.ready(), bench.queue.bytes()), (3, 60));
    let large = "x".repeat(60);
    assert_eq!(bench.publish(&[&large]), Some(ErrorCode::MessageTooLarge));
}

#[test]
fn a_message_over_its_limit_is_refused_by_itself() {
    let mut bench = Bench::new(QueueOptions { message_bytes_max: 10, ..options() });
    let refused = bench.publish(&["fits", "also fits", "this does not", "never seen"]);
    assert_eq!((refused, bench.sequence), (Some(ErrorCode::MessageTooLarge), 3));
    assert_eq!(bench.queue.ready(), 2);
}

#[test]
fn a_purge_takes_what_is_ready_and_leaves_what_is_in_flight() {
    let mut bench = Bench::new(options());
    let first = bench.consumer(2, 2, false);
    bench.publish(&["a", "b", "c", "d"]);
    bench.deliveries();
    assert_eq!(bench.queue.purge(None, &mut bench.memory).0, 2);
    bench.publish(&["e"]);
    bench.queue.close_consumer(first, bench.now, &mut bench.memory);
    bench.consumer(3, 10, false);
    assert_eq!(bench.bodies(), ["a", "b", "e"]);
    assert_eq!(bench.queue.counters().purged, 2);
}

#[test]
fn a_peek_shows_returned_messages_first_and_takes_nothing() {
    let mut bench = Bench::new(options());
    let first = bench.consumer(2, 2, false);
    bench.publish(&["a", "b", "c", "d"]);
    bench.deliveries();
    bench.queue.ack(first, 1, 1, &mut bench.memory).unwrap();
    bench.queue.close_consumer(first, bench.now, &mut bench.memory);
    let (peeked, more) = bench.queue.peek(bench.subscription, 0, 2, 1000).unwrap();
    let bodies: Vec<_> = peeked.iter().map(|peeked| peeked.body.as_slice()).collect();
    assert_eq!((bodies, more), (vec![&b"b"[..], b"c"], true));
    let (peeked, more) = bench.queue.peek(bench.subscription, 2, 10, 1000).unwrap();
    assert_eq!((peeked.len(), peeked[0].sequence, more), (1, 4, false));
    assert_eq!(bench.queue.ready(), 3);
}

#[test]
fn an_idle_queue_holds_no_chunk_and_a_busy_one_grows_its_chunks() {
    let mut bench = Bench::new(options());
    assert_eq!(bench.queue.memory_bytes(), 0);
    bench.publish(&["a"]);
    assert_eq!(bench.queue.memory_bytes(), 4096);
    let body = "x".repeat(3000);
    for _ in 0..10 {
        bench.publish(&[&body]);
    }
    assert!(bench.queue.memory_bytes() > 4096 * 4);
    bench.consumer(2, 100, true);
    bench.deliveries();
    assert_eq!(bench.queue.memory_bytes(), 0);
}

#[test]
fn a_subscription_at_its_bound_pauses() {
    let mut bench = Bench::new(options());
    bench.queue.bounds.in_flight_max = 2;
    let consumer = bench.consumer(2, 100, false);
    for body in ["a", "b", "c"] {
        bench.publish(&[body]);
    }
    assert_eq!(bench.bodies(), ["a", "b"]);
    bench.queue.ack(consumer, 1, 1, &mut bench.memory).unwrap();
    assert_eq!(bench.bodies(), ["c"]);
}

#[test]
fn one_message_held_does_not_keep_the_leases_and_chunks_of_all_after_it() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 1_000_000, false);
    bench.publish(&["held"]);
    bench.deliveries();
    let before = bench.memory.budget.used_by(Account::InFlight);
    for id in 2..5000 {
        bench.publish(&["x"]);
        bench.deliveries();
        bench.queue.ack(consumer, id, id, &mut bench.memory).unwrap();
        bench.check();
    }
    let held = bench.memory.budget.used_by(Account::InFlight);
    assert!(held <= 100 * before, "{held} bytes of leases for one message");
    assert!(bench.queue.log.descriptor_bytes() < 10_000, "{}", bench.queue.log.descriptor_bytes());
    bench.queue.ack(consumer, 1, 1, &mut bench.memory).unwrap();
    assert_eq!(bench.queue.memory_bytes(), 0);
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

#[test]
fn deliveries_pause_when_there_is_no_memory_to_remember_them() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 1_000_000, false);
    for body in ["a", "b", "c"] {
        bench.publish(&[body]);
    }
    let free = bench.memory.budget.free_for_leases() as usize;
    bench.memory.budget.charge(Account::Connections, free);
    assert_eq!(bench.bodies(), ["a"], "one is always delivered");
    bench.queue.ack(consumer, 1, 1, &mut bench.memory).unwrap();
    assert_eq!(bench.bodies(), ["b"]);
    bench.memory.budget.release(Account::Connections, free);
    assert_eq!(bench.bodies(), ["c"]);
}
