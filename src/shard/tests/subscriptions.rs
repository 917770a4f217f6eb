//! Several subscriptions of one queue: each gets everything, a slow one slows nobody, and one that
//! goes takes nothing from the others.

use super::verbs::*;
use super::*;
use crate::protocol::hot::NackKind;
use crate::queue::memory::Account;

fn two_subscriptions() -> (Bench, Key) {
    let mut bench = Bench::new();
    let key = bench.open();
    let options = wire::SubscriptionOptionsT::default();
    let answer = bench.create_with(key, "q", &["audit", "mail"], options);
    assert!(matches!(answer, Answer::QueueDone(_)), "{answer:?}");
    bench.producer(key, "q", 100, 0);
    (bench, key)
}

#[test]
fn each_gets_everything_and_it_is_held_once() {
    let (mut bench, key) = two_subscriptions();
    bench.publish(key, 100, 1, &[b"a", b"b"]);
    for (handle, name) in [(1, "audit"), (2, "mail")] {
        let frames = bench.consumer_of(key, ("q", name), handle, 10);
        let got: Vec<_> = deliveries(&frames, handle).into_iter().map(|m| (m.0, m.2)).collect();
        assert_eq!(got, [(1, b"a".to_vec()), (2, b"b".to_vec())]);
    }
    let one_chunk = bench.describe(key, "q").memory_bytes;
    bench.ack(key, 1, 1, 2);
    assert_eq!(bench.describe(key, "q").memory_bytes, one_chunk);
    bench.ack(key, 2, 1, 2);
    assert_eq!(bench.describe(key, "q").memory_bytes, 0);
    // There is no default one where others were named.
    let open = wire::ConsumerOpenT { queue: "q".into(), ..Default::default() };
    let answer = bench.ask(key, Request::ConsumerOpen(open), 3);
    assert_eq!(code_of(&answer), ErrorCode::SubscriptionNotFound);
}

/// The backlog of one neither holds up nor hides what the other gets.
#[test]
fn a_slow_subscriber_slows_nobody() {
    let (mut bench, key) = two_subscriptions();
    let slow = bench.open();
    bench.consumer_of(slow, ("q", "audit"), 1, 1);
    bench.consumer_of(key, ("q", "mail"), 2, 10);
    for sequence in 1..=2000 {
        let frames = bench.publish(key, 100, sequence, &[b"x"]);
        assert_eq!(deliveries(&frames, 2).len(), 1);
        bench.ack(key, 2, sequence, sequence);
        bench.credit(key, 2, 1);
    }
    assert_eq!(deliveries(&bench.sent(slow), 1).len(), 1);
    let (audit, mail) =
        (bench.subscription(key, "q", "audit"), bench.subscription(key, "q", "mail"));
    assert_eq!((audit.ready, audit.in_flight, mail.acked), (1999, 1, 2000));
    // It comes back and gets all of it in order, while the other goes on.
    let mut next = 2;
    bench.ack(slow, 1, 1, 1);
    while next <= 2000 {
        let frames = bench.credit(slow, 1, 100);
        let got = deliveries(&frames, 1);
        assert_eq!(got[0].0, next);
        next += got.len() as u64;
        bench.ack(slow, 1, got[0].0, next - 1);
    }
    let frames = bench.publish(key, 100, 2001, &[b"new"]);
    assert_eq!(deliveries(&frames, 2), [(2001, 1, b"new".to_vec())]);
}

#[test]
fn a_new_one_begins_now_or_with_the_oldest() {
    let (mut bench, key) = two_subscriptions();
    bench.publish(key, 100, 1, &[b"done", b"held"]);
    bench.consumer_of(key, ("q", "audit"), 1, 10);
    bench.consumer_of(key, ("q", "mail"), 2, 10);
    bench.ack(key, 1, 1, 1);
    bench.ack(key, 2, 1, 2);
    for (name, start, ready) in [("later", wire::Start::Now, 0), ("all", wire::Start::Oldest, 1)] {
        match bench.subscribe(key, "q", name, start) {
            Answer::QueueDone(done) => assert!(done.created),
            other => panic!("{other:?}"),
        }
        assert_eq!(bench.subscription(key, "q", name).ready, ready, "{name}");
    }
    let frames = bench.consumer_of(key, ("q", "all"), 3, 10);
    assert_eq!(deliveries(&frames, 3), [(1, 1, b"held".to_vec())]);
    let frames = bench.publish(key, 100, 3, &[b"new"]);
    assert_eq!(deliveries(&frames, 3), [(2, 1, b"new".to_vec())]);
    assert_eq!(bench.subscription(key, "q", "later").ready, 1);
}

#[test]
fn one_that_exists_is_missing_or_in_use_is_told_so() {
    let (mut bench, key) = two_subscriptions();
    let again = bench.subscribe(key, "q", "mail", wire::Start::Oldest);
    assert!(matches!(again, Answer::QueueDone(wire::QueueDoneT { created: false })), "{again:?}");
    let other = wire::SubscriptionOptionsT { lease_ms: 1234, ..Default::default() };
    let create = |queue: &str, name: &str, options| {
        let (queue, name, start) = (queue.to_owned(), name.to_owned(), wire::Start::Now);
        let options = Some(Box::new(options));
        Request::SubscriptionCreate(wire::SubscriptionCreateT { queue, name, options, start })
    };
    for (request, code) in [
        (create("q", "mail", other.clone()), ErrorCode::SubscriptionExists),
        (create("none", "mail", other.clone()), ErrorCode::QueueNotFound),
        (create("q", "with space", other), ErrorCode::BadName),
    ] {
        assert_eq!(code_of(&bench.ask(key, request, 0)), code);
    }
    let describe = wire::SubscriptionDescribeT { queue: "q".into(), name: "none".into() };
    let answer = bench.ask(key, Request::SubscriptionDescribe(describe), 0);
    assert_eq!(code_of(&answer), ErrorCode::SubscriptionNotFound);
    let frames = bench.unsubscribe(key, "q", "none", true);
    assert_eq!(first_code(&frames), ErrorCode::SubscriptionNotFound);

    bench.publish(key, 100, 1, &[b"a", b"b"]);
    bench.consumer_of(key, ("q", "mail"), 1, 1);
    let frames = bench.unsubscribe(key, "q", "mail", false);
    assert_eq!(first_code(&frames), ErrorCode::SubscriptionInUse);
    let frames = bench.unsubscribe(key, "q", "mail", true);
    let told: Vec<_> = frames.iter().map(|(header, _)| (header.opcode, header.handle)).collect();
    let (error, closed) = (Opcode::Error as u8, Opcode::Closed as u8);
    assert_eq!(told, [(error, 1), (closed, 1), (Opcode::QueueRemoved as u8, 0)]);
    assert_eq!(first_code(&frames), ErrorCode::SubscriptionDeleted);
    match Answer::decode(Opcode::QueueRemoved, &frames[2].1) {
        Ok(Answer::QueueRemoved(removed)) => assert_eq!(removed.messages, 2),
        other => panic!("{other:?}"),
    }
    // The handle is free again, the other subscription has what it had.
    assert_eq!(deliveries(&bench.consumer_of(key, ("q", "audit"), 1, 10), 1).len(), 2);
}

#[test]
fn a_queue_without_any_refuses_publishes_until_it_has_one() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.publish(key, 1, 1, &[b"a"]);
    let frames = bench.unsubscribe(key, "q", "default", false);
    assert_eq!(frames[0].0.opcode, Opcode::QueueRemoved as u8);
    let shown = bench.describe(key, "q");
    assert_eq!((shown.subscriptions, shown.ready, shown.memory_bytes), (0, 0, 0));
    let frames = bench.publish(key, 1, 2, &[b"b"]);
    assert_eq!(first_code(&frames), ErrorCode::NoSubscription);
    let peek = wire::QueuePeekT { name: "q".into(), count_max: 1, ..Default::default() };
    let answer = bench.ask(key, Request::QueuePeek(peek), 0);
    assert_eq!(code_of(&answer), ErrorCode::SubscriptionNotFound);
    bench.subscribe(key, "q", "later", wire::Start::Oldest);
    assert_eq!(confirm_of(&bench.publish(key, 1, 2, &[b"b"])).sequence, 2);
    assert_eq!(bench.subscription(key, "q", "later").ready, 1);
}

#[test]
fn there_are_so_many_and_no_more_and_one_listing_shows_them() {
    let mut bench = Bench::new();
    let key = bench.open();
    let queue = "q".repeat(200);
    let options = wire::SubscriptionOptionsT {
        dead_letter: Some("d".repeat(200)),
        backoff: Some(Box::new(wire::BackoffT {
            kind: wire::BackoffKind::List,
            list_ms: Some(vec![600_000_000; 32]),
            ..Default::default()
        })),
        ..Default::default()
    };
    let names: Vec<String> = (0..256).map(|nth| format!("{nth:0200}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let answer = bench.create_with(key, &queue, &all, options);
    assert!(matches!(answer, Answer::QueueDone(_)), "{answer:?}");
    let answer = bench.subscribe(key, &queue, "one-more", wire::Start::Now);
    assert_eq!(code_of(&answer), ErrorCode::SubscriptionsMax);
    let list = Request::SubscriptionList(wire::SubscriptionListT { queue: queue.clone() });
    match bench.ask(key, list, 0) {
        Answer::SubscriptionListing(listing) => {
            let shown: Vec<_> =
                listing.subscriptions.unwrap().into_iter().map(|shown| shown.name).collect();
            assert_eq!(shown, names);
        }
        other => panic!("{other:?}"),
    }
    // All of it goes with the queue.
    let delete = wire::QueueDeleteT { name: queue, if_empty: false };
    bench.ask(key, Request::QueueDelete(delete), 0);
    assert_eq!(bench.core.budget().used_by(Account::Queues), 0);
}

#[test]
fn one_that_expires_is_gone_with_what_only_it_had() {
    let (mut bench, key) = two_subscriptions();
    let (queue, name, start) = ("q".into(), "short".into(), wire::Start::Now);
    let options = wire::SubscriptionOptionsT { expires_after_ms: 1000, ..Default::default() };
    let options = Some(Box::new(options));
    let create = wire::SubscriptionCreateT { queue, name, options, start };
    bench.ask(key, Request::SubscriptionCreate(create), 0);
    bench.publish(key, 100, 1, &[b"a"]);
    bench.consumer_of(key, ("q", "short"), 1, 0);
    bench.wait(10_000);
    assert_eq!(bench.describe(key, "q").subscriptions, 3, "a consumer keeps it");
    bench.core.close_handle(key, 1);
    bench.wait(0);
    bench.wait(999);
    assert_eq!(bench.describe(key, "q").subscriptions, 3);
    bench.wait(1);
    assert_eq!(bench.describe(key, "q").subscriptions, 2);
    assert_eq!(bench.subscription(key, "q", "mail").ready, 1);
}

#[test]
fn acks_and_nacks_of_one_are_not_the_others() {
    let (mut bench, key) = two_subscriptions();
    bench.publish(key, 100, 1, &[b"a"]);
    bench.consumer_of(key, ("q", "audit"), 1, 1);
    bench.consumer_of(key, ("q", "mail"), 2, 1);
    bench.ack(key, 1, 1, 1);
    let shown = bench.subscription(key, "q", "mail");
    assert_eq!((shown.in_flight, shown.acked), (1, 0));
    let nacked = bench.nack(key, 1, NackKind::Rejected, (1, 1));
    assert_eq!(AckDone::decode(&nacked[0].1), Some(AckDone { acked: 0, late: 1 }));
    assert_eq!(bench.ack(key, 2, 1, 1).0, AckDone { acked: 1, late: 0 });
}

#[test]
fn a_purge_is_of_one_or_of_all() {
    let (mut bench, key) = two_subscriptions();
    bench.publish(key, 100, 1, &[b"a", b"b"]);
    let purge = |subscription: Option<&str>| {
        let subscription = subscription.map(str::to_owned);
        Request::QueuePurge(wire::QueuePurgeT { name: "q".into(), subscription })
    };
    assert_eq!(code_of(&bench.ask(key, purge(Some("none")), 0)), ErrorCode::SubscriptionNotFound);
    bench.ask(key, purge(Some("audit")), 0);
    assert_eq!(bench.subscription(key, "q", "audit").purged, 2);
    assert_eq!(bench.subscription(key, "q", "mail").ready, 2);
    bench.ask(key, purge(None), 0);
    let shown = bench.describe(key, "q");
    assert_eq!((shown.ready, shown.memory_bytes), (0, 0));
    let peek = |subscription: &str| {
        let subscription = Some(subscription.to_owned());
        let name = "q".into();
        Request::QueuePeek(wire::QueuePeekT { name, count_max: 9, skip: 0, subscription })
    };
    bench.publish(key, 100, 3, &[b"c"]);
    for name in ["audit", "mail"] {
        match bench.ask(key, peek(name), 0) {
            Answer::PeekedMessages(shown) => assert_eq!(shown.messages.unwrap()[0].sequence, 3),
            other => panic!("{other:?}"),
        }
    }
}
