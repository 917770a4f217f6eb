//! Leases that end or are extended, nacks, back-off, bounds.

use super::*;
use crate::base::prng::Prng;
use crate::limits::{EXTEND_RANGES_MAX, EXTENDED_LEASES_PER_TICK_MAX, LEASE_MS_DEFAULT};
use crate::queue::policy::{Backoff, BackoffRule};

const LEASE_MS: u64 = LEASE_MS_DEFAULT as u64;

fn strict() -> SubscriptionOptions {
    let backoff = Backoff { rule: BackoffRule::None, ..Backoff::default() };
    SubscriptionOptions { backoff, ..SubscriptionOptions::default() }
}

fn fixed(base_ms: u32) -> SubscriptionOptions {
    let backoff = Backoff { rule: BackoffRule::Fixed, base_ms, max_ms: base_ms, jitter: false };
    SubscriptionOptions { backoff, ..SubscriptionOptions::default() }
}

#[test]
fn a_lease_ends_on_time_and_the_message_comes_again() {
    let mut bench = Bench::with(options(), fixed(500));
    let consumer = bench.consumer(2, 100, false);
    bench.publish(&["a", "b"]);
    assert_eq!(bench.bodies(), ["a", "b"]);
    assert_eq!(bench.queue.next_deadline(), Some(Mono(0).plus_ms(LEASE_MS)));
    bench.pass(LEASE_MS - 1);
    assert_eq!((bench.queue.in_flight(), bench.queue.counters().failed), (2, 0));
    bench.pass(1);
    assert_eq!((bench.queue.in_flight(), bench.queue.delayed()), (0, 2));
    assert_eq!(bench.ack(consumer, 1, 2), Acked { acked: 0, late: 2 });
    assert_eq!(bench.extend(consumer, 1, 2, 0), Acked { acked: 0, late: 2 });
    assert_eq!(bench.nack(consumer, NackKind::Failed, 1, 2), Acked { acked: 0, late: 2 });
    bench.pass(499);
    assert!(bench.bodies().is_empty());
    bench.pass(1);
    let got = bench.deliveries();
    assert_eq!(got[0], (2, 3, 2, "a".to_owned()));
    assert_eq!(got[1], (2, 4, 2, "b".to_owned()));
    assert_eq!(bench.queue.counters().failed, 2);
}

#[test]
fn an_extended_lease_ends_later_and_the_rest_of_its_run_does_not() {
    let mut bench = Bench::with(options(), strict());
    let consumer = bench.consumer(2, 4, false);
    bench.publish(&["a", "b", "c", "d"]);
    bench.deliveries();
    assert_eq!(bench.extend(consumer, 2, 3, 60_000), Acked { acked: 2, late: 0 });
    assert_eq!(bench.extend(consumer, 3, 3, 90_000), Acked { acked: 1, late: 0 });
    bench.pass(LEASE_MS);
    assert_eq!((bench.queue.ready(), bench.queue.in_flight()), (2, 2));
    bench.pass(60_000 - LEASE_MS);
    assert_eq!(bench.queue.in_flight(), 1);
    assert_eq!(bench.queue.next_deadline(), Some(Mono(0).plus_ms(90_000)));
    assert_eq!(bench.ack(consumer, 1, 4), Acked { acked: 1, late: 3 });
    bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    bench.consumer(3, 10, true);
    assert_eq!(bench.bodies(), ["a", "b", "d"]);
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

#[test]
fn an_extension_can_make_a_lease_shorter() {
    let mut bench = Bench::with(options(), strict());
    let consumer = bench.consumer(2, 4, false);
    bench.publish(&["a"]);
    bench.deliveries();
    bench.extend(consumer, 1, 1, 100);
    assert_eq!(bench.queue.next_deadline(), Some(Mono(0).plus_ms(100)));
    bench.pass(100);
    assert_eq!(bench.queue.counters().failed, 1);
}

#[test]
fn an_extension_without_memory_is_refused_by_name_and_changes_nothing() {
    let mut bench = Bench::with(options(), strict());
    let consumer = bench.consumer(2, 10, false);
    bench.publish(&["a", "b"]);
    bench.deliveries();
    let free = bench.memory.budget.free_for_leases() as usize;
    bench.memory.budget.charge(Account::Connections, free);
    let refused = bench.queue.extend(consumer, 1, 1, 60_000, bench.now, &mut bench.memory);
    assert!(matches!(refused, Err(ExtendError::MemoryFull(_))));
    bench.memory.budget.release(Account::Connections, free);
    bench.pass(LEASE_MS);
    assert_eq!(bench.queue.counters().failed, 2);
}

#[test]
fn what_was_never_delivered_can_neither_be_acked_nor_nacked_nor_extended() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 1, false);
    let other = bench.consumer(3, 1, false);
    bench.publish(&["a"]);
    bench.deliveries();
    for (first, last) in [(0, 1), (1, 2), (2, 1), (5, 9), (1, u64::MAX)] {
        let (now, memory) = (bench.now, &mut bench.memory);
        assert!(bench.queue.ack(consumer, first, last, memory).is_err());
        let nack = NackRequest { kind: NackKind::Returned, first, last, delay_ms: None, text: "" };
        assert!(bench.queue.nack(consumer, &nack, now, memory).is_err());
        assert!(bench.queue.extend(consumer, first, last, 0, now, memory).is_err());
    }
    // The id is another consumer's.
    assert!(bench.queue.ack(other, 1, 1, &mut bench.memory).is_err());
    assert_eq!(bench.queue.in_flight(), 1);
}

#[test]
fn an_ack_to_another_subscription_ends_nothing_there() {
    let mut bench = Bench::new(options());
    let second = bench.subscribe("second", Start::Now);
    let consumer = bench.consumer(2, 1, false);
    bench.publish(&["a"]);
    bench.deliveries();
    let stranger = ConsumerKey { subscription: second, ..consumer };
    assert_eq!(bench.ack(stranger, 1, 1), Acked::default());
    assert_eq!(bench.queue.in_flight(), 1);
}

#[test]
fn failures_are_counted_apart_from_attempts() {
    let mut bench = Bench::with(options(), SubscriptionOptions { max_attempts: 2, ..strict() });
    let consumer = bench.consumer(2, 100, false);
    bench.publish(&["a"]);
    for round in 1..=5 {
        assert_eq!(bench.deliveries()[0].2, round as u16);
        bench.nack(consumer, NackKind::Returned, round, round);
    }
    for round in 6..=7 {
        assert_eq!(bench.deliveries().len(), 1);
        bench.nack(consumer, NackKind::Failed, round, round);
    }
    assert_eq!((bench.queue.ready(), bench.queue.dead_lettering()), (0, 1));
    let out = bench.queue.poll_move(bench.now).unwrap();
    assert_eq!((out.attempts, out.failures, &*out.text), (7, 2, "no good"));
}

#[test]
fn a_consumer_that_comes_and_goes_burns_no_attempts() {
    let mut bench = Bench::with(options(), SubscriptionOptions { max_attempts: 3, ..strict() });
    bench.publish(&["a", "b", "c"]);
    for handle in 2..200 {
        let consumer = bench.consumer(handle, 100, false);
        assert_eq!(bench.bodies(), ["a", "b", "c"]);
        bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    }
    let counters = *bench.queue.counters();
    assert_eq!((counters.returned, counters.failed, bench.queue.ready()), (3 * 198, 0, 3));
}

#[test]
fn a_nack_can_say_when() {
    let mut bench = Bench::with(options(), fixed(1000));
    let consumer = bench.consumer(2, 100, false);
    bench.publish(&["a"]);
    bench.deliveries();
    let (kind, now) = (NackKind::Failed, bench.now);
    let nack = NackRequest { kind, first: 1, last: 1, delay_ms: Some(7), text: "" };
    bench.queue.nack(consumer, &nack, now, &mut bench.memory).unwrap();
    bench.pass(6);
    assert!(bench.bodies().is_empty());
    bench.pass(1);
    assert_eq!(bench.bodies(), ["a"]);
}

#[test]
fn retries_go_ahead_of_what_is_newer_at_their_old_place() {
    let mut bench = Bench::with(options(), fixed(10));
    let consumer = bench.consumer(2, 3, false);
    bench.publish(&["a", "b", "c", "d", "e"]);
    bench.deliveries();
    bench.nack(consumer, NackKind::Failed, 3, 3);
    bench.nack(consumer, NackKind::Failed, 1, 1);
    bench.pass(10);
    bench.queue.add_credit(consumer, 10, 0);
    assert_eq!(bench.bodies(), ["a", "c", "d", "e"]);
}

#[test]
fn one_entry_for_a_run_that_comes_back_with_holes() {
    let mut bench = Bench::with(options(), strict());
    let consumer = bench.consumer(2, 1000, false);
    bench.publish(&["x"; 200]);
    bench.deliveries();
    for id in (1..=200).step_by(2) {
        bench.ack(consumer, id, id);
    }
    bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    let one = crate::queue::due::DUE_BYTES as u64;
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), one);
    bench.consumer(3, 1000, true);
    assert_eq!(bench.deliveries().len(), 100);
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

#[test]
fn nacks_one_by_one_share_an_entry_where_memory_is_short() {
    let mut bench = Bench::with(options(), fixed(10));
    let consumer = bench.consumer(2, 1000, false);
    bench.publish(&["x"; 200]);
    bench.deliveries();
    let free = bench.memory.budget.free_for_leases() as usize;
    bench.memory.budget.charge(Account::Connections, free);
    for id in 1..=200 {
        bench.nack(consumer, NackKind::Failed, id, id);
    }
    assert!(bench.memory.budget.used_bytes() <= bench.memory.budget.limit_bytes());
    assert_eq!(bench.queue.delayed(), 200);
    bench.memory.budget.release(Account::Connections, free);
    bench.pass(10);
    assert_eq!(bench.deliveries().len(), 200);
}

#[test]
fn unacked_max_pauses_and_says_so() {
    let mut bench = Bench::with(options(), SubscriptionOptions { unacked_max: 2, ..strict() });
    let consumer = bench.consumer(2, 100, false);
    bench.publish(&["a", "b", "c", "d"]);
    assert_eq!(bench.bodies(), ["a", "b"]);
    let reason = |bench: &Bench| bench.queue.subscriptions().next().unwrap().1.paused_reason();
    assert_eq!(reason(&bench), Some("unacked_max"));
    bench.ack(consumer, 2, 2);
    assert_eq!(bench.bodies(), ["c"]);
    bench.ack(consumer, 1, 3);
    assert_eq!(bench.bodies(), ["d"]);
    assert_eq!(reason(&bench), None);
}

#[test]
fn a_consumer_that_never_acks_stops_nobody_else() {
    let mut bench = Bench::with(options(), strict());
    let limited = ConsumerOptions {
        auto_ack: false,
        checksum: false,
        credit_messages: 1000,
        credit_bytes: 1 << 20,
        lease_ms: 0,
        unacked_max: 3,
    };
    bench.queue.open_consumer(bench.subscription, owner(2), limited, &mut bench.memory);
    bench.consumer(3, 1000, true);
    let mut got = Vec::new();
    for _ in 0..10 {
        bench.publish(&["x", "y"]);
        got.extend(bench.deliveries());
    }
    assert_eq!(got.iter().filter(|delivery| delivery.0 == 2).count(), 3);
    assert_eq!((got.len(), bench.queue.ready()), (20, 0));
}

#[test]
fn too_many_that_wait_pause_until_they_are_due() {
    let mut bench = Bench::with(options(), fixed(10));
    bench.queue.bounds.retry_waiting_max = 2;
    let consumer = bench.consumer(2, 2, false);
    bench.publish(&["a", "b", "c", "d"]);
    bench.deliveries();
    bench.nack(consumer, NackKind::Failed, 1, 2);
    bench.queue.add_credit(consumer, 100, 0);
    assert!(bench.bodies().is_empty());
    let (_, shown) = bench.queue.subscriptions().next().unwrap();
    assert_eq!(shown.paused_reason(), Some("retry_waiting_max"));
    bench.pass(10);
    assert_eq!(bench.bodies(), ["a", "b", "c", "d"]);
}

#[test]
fn the_span_of_acks_is_bounded_by_the_own_oldest_and_not_by_anothers() {
    let mut bench = Bench::with(options(), strict());
    bench.queue.bounds.ack_span_max = 3;
    bench.subscribe("slow", Start::Now);
    let consumer = bench.consumer(2, 1000, false);
    let mut got = Vec::new();
    for body in ["a", "b", "c", "d", "e", "f"] {
        bench.publish(&[body]);
        got.extend(bench.bodies());
    }
    assert_eq!(got, ["a", "b", "c"]);
    bench.ack(consumer, 2, 3);
    assert!(bench.bodies().is_empty(), "the oldest is not done");
    bench.ack(consumer, 1, 1);
    assert_eq!(bench.bodies(), ["d", "e", "f"]);
}

#[test]
fn many_leases_that_end_at_once_are_handled_in_turns() {
    let mut bench = Bench::with(options(), strict());
    bench.consumer(2, 10_000, false);
    for _ in 0..5000 {
        bench.publish(&["x"]);
    }
    bench.deliveries();
    bench.pass(LEASE_MS);
    let failed = bench.queue.counters().failed;
    assert!(failed > 0 && failed < 5000, "{failed}");
    assert!(bench.queue.next_deadline().unwrap() <= bench.now.mono);
    bench.pass(0);
    assert_eq!(bench.queue.counters().failed, 5000);
}

#[test]
fn a_thousand_consumers_share_one_queue() {
    let mut bench = Bench::with(options(), strict());
    let keys: Vec<_> = (2..1002).map(|handle| bench.consumer(handle, 2, false)).collect();
    for _ in 0..1000 {
        bench.publish(&["x", "y"]);
    }
    let got = bench.deliveries();
    assert_eq!(got.len(), 2000);
    assert!((2..1002).all(|handle| got.iter().filter(|d| d.0 == handle).count() == 2));
    bench.pass(LEASE_MS);
    assert_eq!((bench.queue.ready(), bench.queue.counters().failed), (2000, 2000));
    for key in keys {
        bench.queue.close_consumer(key, bench.now, &mut bench.memory);
    }
    assert_eq!(bench.queue.next_deadline(), None);
}

#[test]
fn an_extension_without_memory_for_all_leaves_nothing_behind_that_ends_twice() {
    let mut bench = Bench::with(options(), strict());
    let consumer = bench.consumer(2, 100, false);
    for body in ["a", "b", "c"] {
        bench.publish(&[body]);
    }
    bench.deliveries();
    // Room for one record more.
    let free = bench.memory.budget.free_for_leases() as usize;
    let fill = free - crate::queue::lease::LEASE_BYTES;
    bench.memory.budget.charge(Account::Connections, fill);
    let (now, memory) = (bench.now, &mut bench.memory);
    let refused = bench.queue.extend(consumer, 1, 3, 60_000, now, memory);
    assert!(matches!(refused, Err(ExtendError::MemoryFull(_))), "{refused:?}");
    bench.memory.budget.release(Account::Connections, fill);
    bench.pass(LEASE_MS);
    assert_eq!((bench.queue.ready(), bench.queue.in_flight()), (2, 1));
    assert_eq!((bench.queue.counters().failed, bench.bodies()), (2, vec!["b".into(), "c".into()]));
    assert_eq!(bench.ack(consumer, 1, 5), Acked { acked: 3, late: 2 });
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

/// Each lease is of one message, so that what was extended counts the leases that were gone over.
#[test]
fn a_range_that_is_named_again_and_again_costs_no_more_than_twice_the_leases() {
    const LEASES: usize = EXTENDED_LEASES_PER_TICK_MAX - 1000;
    let mut bench = Bench::with(options(), strict());
    let consumer = bench.consumer(2, LEASES as u32, false);
    (0..LEASES).for_each(|_| assert_eq!(bench.publish(&["x"]), None));
    assert_eq!(bench.deliveries().len(), LEASES);
    for _ in 0..2 {
        let (mut extended, mut refused) = (0, 0);
        for nth in 0..EXTEND_RANGES_MAX {
            // The same messages, but never the same range; by turns longer and shorter.
            let (first, lease_ms) = (1 + nth as u64 % 7, 60_000 + nth as u32 % 2);
            let (now, memory) = (bench.now, &mut bench.memory);
            match bench.queue.extend(consumer, first, LEASES as u64, lease_ms, now, memory) {
                Ok(Acked { acked, .. }) => extended += acked as usize,
                Err(ExtendError::TooMany { leases_max, .. }) => {
                    assert!(leases_max as usize >= 2 * LEASES);
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!((LEASES..=4 * LEASES).contains(&extended), "{extended}");
        assert!(refused >= EXTEND_RANGES_MAX - 4, "{refused}");
        // One lease is free, whatever came before.
        assert_eq!(bench.extend(consumer, 7, 7, 0), Acked { acked: 1, late: 0 });
        bench.pass(1);
    }
    assert_eq!(bench.ack(consumer, 1, LEASES as u64).acked, LEASES as u64);
    assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
}

/// However runs were cut up before, and however the ranges cut them now: who names each delivery
/// once is never refused, whatever it acks in between.
#[test]
fn each_delivery_can_always_be_extended_once() {
    const MESSAGES: u64 = 12_000;
    for seed in 0..4 {
        let mut prng = Prng::new(seed);
        let mut bench = Bench::with(options(), strict());
        let consumer = bench.consumer(2, MESSAGES as u32, false);
        let run = ["x"; 240];
        (0..MESSAGES / 240).for_each(|_| assert_eq!(bench.publish(&run), None));
        assert_eq!(bench.deliveries().len() as u64, MESSAGES);
        // Leases within leases, some in three layers, and most of the ring's runs with holes.
        for layer in [4, 2] {
            for first in (1..=MESSAGES).step_by(3).filter(|first| first % layer != 0) {
                if first > MESSAGES / 8 && prng.chance(100 * layer) {
                    extend_once(&mut bench, consumer, first, first + layer / 2);
                    bench.now.mono.0 += 1;
                }
            }
        }
        let layers = MESSAGES / 8 + 1;
        (layers..MESSAGES).step_by(2).for_each(|id| extend_once(&mut bench, consumer, id, id));
        bench.now.mono.0 += 1;
        let (mut first, mut crossed) = (1, 0);
        while first <= MESSAGES {
            let last = (first + prng.below([2, 4, 9][seed as usize % 3])).min(MESSAGES);
            extend_once(&mut bench, consumer, first, last);
            crossed += last - first;
            if prng.chance(300) {
                bench.queue.ack(consumer, first, last, &mut bench.memory).unwrap();
            }
            first = last + 1;
        }
        assert!(crossed > EXTENDED_LEASES_PER_TICK_MAX as u64 / 2, "{crossed}");
        bench.check();
        bench.queue.ack(consumer, 1, MESSAGES, &mut bench.memory).unwrap();
        assert_eq!(bench.memory.budget.used_by(Account::InFlight), 0);
    }
}

fn extend_once(bench: &mut Bench, consumer: ConsumerKey, first: u64, last: u64) {
    let extended = bench.queue.extend(consumer, first, last, 0, bench.now, &mut bench.memory);
    assert_eq!(extended, Ok(Acked { acked: last - first + 1, late: 0 }));
}
