//! Several subscriptions on one log: how they begin, what they cost, how they end.

use super::*;
use crate::limits::SUBSCRIPTIONS_MAX;

#[test]
fn each_gets_every_message_and_it_is_stored_once() {
    let mut bench = Bench::new(options());
    let second = bench.subscribe("second", Start::Now);
    let body = "x".repeat(1000);
    bench.publish(&[&body, &body]);
    let stored = bench.queue.memory_bytes();
    let mut alone = Bench::new(options());
    alone.publish(&[&body, &body]);
    assert_eq!(stored, alone.queue.memory_bytes());
    bench.consumer(2, 10, true);
    assert_eq!(bench.deliveries().len(), 2);
    assert_eq!((bench.queue.memory_bytes(), bench.queue.ready()), (stored, 2));
    bench.consumer_of(second, 3, 10, true);
    assert_eq!(bench.deliveries().len(), 2);
    assert_eq!(bench.queue.memory_bytes(), 0);
}

#[test]
fn a_queue_without_any_refuses_by_name_and_takes_again() {
    let mut bench = Bench::new(options());
    let key = bench.subscription;
    bench.publish(&["a"]);
    assert_eq!(bench.queue.delete_subscription(key, false, &mut bench.memory), Ok((1, 17)));
    assert_eq!(bench.queue.memory_bytes(), 0);
    assert_eq!(bench.publish(&["b"]), Some(ErrorCode::NoSubscription));
    assert!(bench.queue.blocked().is_none());
    let key = bench.subscribe("later", Start::Oldest);
    assert_eq!(bench.publish(&["b"]), None);
    bench.consumer_of(key, 2, 10, true);
    assert_eq!(bench.bodies(), ["b"]);
}

#[test]
fn oldest_is_what_somebody_still_holds_and_now_is_nothing_of_it() {
    let mut bench = Bench::new(options());
    let consumer = bench.consumer(2, 4, false);
    bench.publish(&["a", "b", "c", "d", "e"]);
    bench.deliveries();
    bench.ack(consumer, 2, 3);
    let oldest = bench.subscribe("oldest", Start::Oldest);
    let later = bench.subscribe("now", Start::Now);
    bench.publish(&["f"]);
    bench.consumer_of(oldest, 3, 100, true);
    let got: Vec<_> = bench.deliveries().into_iter().filter(|d| d.0 == 3).collect();
    let bodies: Vec<_> = got.iter().map(|d| d.3.as_str()).collect();
    assert_eq!(bodies, ["a", "d", "e", "f"]);
    assert!(got.iter().all(|delivery| delivery.2 == 1), "all as first deliveries");
    bench.consumer_of(later, 4, 100, true);
    assert_eq!(bench.bodies(), ["f"]);
}

#[test]
fn one_that_exists_is_made_again_only_with_the_same_options() {
    let mut bench = Bench::new(options());
    let (same, now) = (SubscriptionOptions::default(), bench.now);
    let other = SubscriptionOptions { lease_ms: 100, ..same.clone() };
    let mut make = |name: &str, asked: &SubscriptionOptions| {
        let asked = asked.clone();
        bench.queue.create_subscription(name, asked, Start::Oldest, now, &mut bench.memory)
    };
    assert_eq!(make("default", &same), Ok(false));
    assert_eq!(make("default", &other), Err(CreateSubscriptionError::Exists));
    for nth in 1..SUBSCRIPTIONS_MAX {
        assert_eq!(make(&format!("s{nth}"), &other), Ok(true));
    }
    assert_eq!(make("one.more", &same), Err(CreateSubscriptionError::TooMany));
    assert_eq!(make("s1", &other), Ok(false));
}

#[test]
fn one_without_memory_is_refused() {
    let mut bench = Bench::new(options());
    let free = bench.memory.budget.free_for_leases() as usize;
    bench.memory.budget.charge(Account::Connections, free);
    let (asked, now) = (SubscriptionOptions::default(), bench.now);
    let made = bench.queue.create_subscription("s", asked, Start::Now, now, &mut bench.memory);
    assert!(matches!(made, Err(CreateSubscriptionError::MemoryFull(_))));
}

#[test]
fn one_in_use_is_deleted_by_force_and_its_consumers_are_told() {
    let mut bench = Bench::new(options());
    let second = bench.subscribe("second", Start::Now);
    let consumer = bench.consumer_of(second, 2, 1, false);
    bench.publish(&["a", "b"]);
    bench.deliveries();
    let refused = bench.queue.delete_subscription(second, false, &mut bench.memory);
    assert_eq!(refused, Err(SubscriptionInUse(1)));
    let removed = bench.queue.delete_subscription(second, true, &mut bench.memory);
    assert_eq!(removed, Ok((2, 34)));
    let told = bench.queue.poll_closed();
    assert_eq!(told, Some((owner(2), ErrorCode::SubscriptionDeleted)));
    assert_eq!(bench.queue.poll_closed(), None);
    // Whatever still comes for it finds nothing.
    assert_eq!(bench.ack(consumer, 1, 1), Acked::default());
    assert_eq!(bench.extend(consumer, 1, 1, 0), Acked::default());
    assert_eq!(bench.nack(consumer, NackKind::Failed, 1, 1), Acked::default());
    assert!(!bench.queue.add_credit(consumer, 1, 1));
    bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    assert_eq!((bench.queue.ready(), bench.queue.counters().purged), (2, 2));
    let again = bench.queue.delete_subscription(second, true, &mut bench.memory);
    assert_eq!(again, Ok((0, 0)));
}

#[test]
fn one_without_consumers_expires_and_one_with_does_not() {
    let asked = SubscriptionOptions { expires_after_ms: 5000, ..SubscriptionOptions::default() };
    let mut bench = Bench::with(options(), asked);
    let consumer = bench.consumer(2, 1, false);
    bench.publish(&["a"]);
    bench.pass(60_000);
    assert_eq!(bench.queue.subscription_count(), 1);
    bench.queue.close_consumer(consumer, bench.now, &mut bench.memory);
    assert_eq!(bench.queue.next_deadline(), Some(bench.now.mono.plus_ms(5000)));
    bench.pass(4999);
    assert_eq!(bench.queue.subscription_count(), 1);
    bench.pass(1);
    assert_eq!((bench.queue.subscription_count(), bench.queue.memory_bytes()), (0, 0));
    assert_eq!(bench.queue.next_deadline(), None);
}

#[test]
fn limits_look_at_the_one_that_is_behind_most() {
    let mut bench = Bench::new(QueueOptions { messages_max: 3, ..options() });
    bench.subscribe("slow", Start::Now);
    bench.consumer(2, 100, true);
    bench.publish(&["a", "b", "c"]);
    bench.deliveries();
    assert_eq!(bench.publish(&["d"]), Some(ErrorCode::QueueMessagesMax));
    let slow = bench.queue.subscription_key("slow").unwrap();
    bench.queue.delete_subscription(slow, false, &mut bench.memory).unwrap();
    assert!(bench.queue.poll_unblocked(&bench.memory));
    assert_eq!(bench.publish(&["d"]), None);
}

#[test]
fn drop_oldest_spares_what_another_has_in_flight_and_what_makes_no_room() {
    let mut bench =
        Bench::new(QueueOptions { messages_max: 3, on_full: OnFull::DropOldest, ..options() });
    let slow = bench.subscribe("slow", Start::Now);
    let consumer = bench.consumer(2, 1, false);
    bench.publish(&["a", "b", "c"]);
    assert_eq!(bench.bodies(), ["a"]);
    assert_eq!(bench.publish(&["d"]), None);
    // `a` is in flight, so `b` went, from both.
    bench.ack(consumer, 1, 1);
    bench.queue.add_credit(consumer, 100, 0);
    assert_eq!(bench.bodies(), ["c", "d"]);
    bench.ack(consumer, 2, 3);
    bench.consumer_of(slow, 3, 100, true);
    assert_eq!(bench.bodies(), ["a", "c", "d"]);
    assert_eq!(bench.queue.counters().dropped_oldest, 2);
    // The first has all in flight; what the second has ready would make it no room.
    bench.publish(&["e", "f", "g"]);
    assert_eq!(bench.deliveries().len(), 6);
    assert_eq!(bench.publish(&["h"]), Some(ErrorCode::QueueMessagesMax));
    assert_eq!(bench.queue.counters().dropped_oldest, 2);
}

#[test]
fn one_is_purged_and_the_others_keep_theirs() {
    let mut bench = Bench::new(options());
    let second = bench.subscribe("second", Start::Now);
    bench.publish(&["a", "b"]);
    assert_eq!(bench.queue.purge(Some(second), &mut bench.memory), (2, 34));
    assert_eq!(bench.queue.purge(Some(second), &mut bench.memory), (0, 0));
    assert_eq!((bench.queue.ready(), bench.queue.messages()), (2, 2));
    bench.consumer(2, 10, true);
    assert_eq!(bench.bodies(), ["a", "b"]);
}

#[test]
fn a_lease_is_as_its_consumer_or_its_subscription_says_when_it_opens() {
    let mut bench = Bench::new(options());
    let before = bench.consumer(2, 1, false);
    let asked = SubscriptionOptions { lease_ms: 200, ..SubscriptionOptions::default() };
    bench.queue.update_subscription(bench.subscription, asked, bench.now);
    let after = bench.consumer(3, 1, false);
    let lease_of = |key: ConsumerKey| {
        let subscription = bench.queue.subscription(key.subscription).unwrap();
        subscription.consumer(key.consumer).unwrap().lease_ms
    };
    assert_eq!((lease_of(before), lease_of(after)), (30_000, 200));
}

#[test]
fn one_that_begins_with_the_oldest_is_refused_where_it_does_not_fit() {
    let mut bench = Bench::new(options());
    bench.consumer(2, 10_000, false);
    for _ in 0..5000 {
        bench.publish(&["x"]);
    }
    assert_eq!(bench.deliveries().len(), 5000);
    let limit_bytes = bench.memory.budget.limit_bytes();
    let mut made = 0;
    for nth in 0..SUBSCRIPTIONS_MAX - 1 {
        let (asked, now) = (SubscriptionOptions::default(), bench.now);
        let (name, memory) = (format!("s{nth}"), &mut bench.memory);
        let used_bytes = memory.budget.used_bytes();
        match bench.queue.create_subscription(&name, asked, Start::Oldest, now, memory) {
            Ok(created) => made += u64::from(created),
            Err(error) => {
                assert!(matches!(error, CreateSubscriptionError::MemoryFull(_)));
                assert_eq!(bench.memory.budget.used_bytes(), used_bytes);
                break;
            }
        }
    }
    assert!(bench.memory.budget.used_bytes() <= limit_bytes);
    assert!(made > 0 && bench.queue.subscription_count() as u64 == 1 + made);
    // And those that were made hold what they say.
    assert_eq!(bench.queue.ready(), 5000 * made);
}
