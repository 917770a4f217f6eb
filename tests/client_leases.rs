//! Leases, nacks, subscriptions and dead letters through the blocking client and the real broker.
#![cfg(all(feature = "cli", feature = "server"))]
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

mod common;

use common::{Broker, PATIENCE};
use forebay::client::{
    Backoff, BackoffRule, ClientError, Connection, Consumer, ConsumerOptions, ErrorCode,
    MaxAttempts, Publisher, PublisherOptions, QueueOptions, Redrive, Start, SubscriptionOptions,
};
use std::time::Duration;

fn publish(broker: &Broker, queue: &str, bodies: &[&str]) {
    let publisher = Publisher::open(&broker.options(), queue, PublisherOptions::default()).unwrap();
    publisher.publish_many(bodies.iter().copied()).unwrap().wait().unwrap();
}

fn consumer(broker: &Broker, queue: &str, options: ConsumerOptions) -> Consumer {
    Consumer::open(&broker.options(), queue, options).unwrap()
}

/// Fails at once, so that tests need not wait.
fn at_once() -> SubscriptionOptions {
    let backoff = Some(Backoff::new(BackoffRule::None));
    SubscriptionOptions { backoff, ..SubscriptionOptions::default() }
}

fn next(consumer: &mut Consumer) -> (String, u16) {
    let message = consumer.recv(Some(PATIENCE)).unwrap().expect("a message");
    let taken = (String::from_utf8(message.body().to_vec()).unwrap(), message.attempts());
    message.ack();
    taken
}

#[test]
fn what_failed_comes_again_and_what_is_rejected_does_not() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    connection.queue_create_with("q", &QueueOptions::default(), &[], &at_once()).unwrap();
    publish(&broker, "q", &["fails", "returned", "rejected", "later", "done"]);
    let mut consumer = consumer(&broker, "q", ConsumerOptions::default());
    for _ in 0..5 {
        let message = consumer.recv(Some(PATIENCE)).unwrap().unwrap();
        match message.body() {
            b"fails" => message.nack(None, "not today").unwrap(),
            b"returned" => message.give_back(),
            b"rejected" => message.reject("never"),
            b"later" => message.nack(Some(Duration::from_millis(300)), "soon").unwrap(),
            _ => message.ack(),
        }
    }
    let flushed = consumer.flush().unwrap();
    assert_eq!((flushed.acked, flushed.late), (5, 0));
    let mut again = vec![next(&mut consumer), next(&mut consumer)];
    again.sort();
    assert_eq!(again, [("fails".to_owned(), 2), ("returned".to_owned(), 2)]);
    // The delay is kept.
    assert_eq!(next(&mut consumer), ("later".to_owned(), 2));
    let counts = consumer.counts();
    assert_eq!((counts.received, counts.nacked), (8, 4));
    consumer.close().unwrap();
    let described = connection.subscription_describe("q", "default").unwrap();
    assert_eq!((described.failed, described.returned, described.acked), (2, 1, 4));
    // Rejected ones are dead letters, with the reason in the consumer's words.
    let mut dead = Consumer::open(
        &broker.options(),
        "q.dead",
        ConsumerOptions {
            on_missing_queue: forebay::client::MissingQueue::Retry,
            ..ConsumerOptions::default()
        },
    )
    .unwrap();
    let message = dead.recv(Some(PATIENCE)).unwrap().unwrap();
    assert_eq!(message.body(), b"rejected");
    let header = |key: &str| message.properties().header(key).map(<[u8]>::to_vec);
    assert_eq!(header("dead-letter-queue").as_deref(), Some(b"q".as_slice()));
    assert_eq!(header("dead-letter-reason").as_deref(), Some(b"rejected".as_slice()));
    assert_eq!(header("dead-letter-error").as_deref(), Some(b"never".as_slice()));
}

#[test]
fn a_lease_that_ends_is_a_failure_and_its_ack_is_late() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    connection.queue_create_with("q", &QueueOptions::default(), &[], &at_once()).unwrap();
    publish(&broker, "q", &["a"]);
    let options = ConsumerOptions {
        lease: Some(Duration::from_millis(150)),
        // One and no more, or the next attempt is its own.
        credit_messages: 1,
        replenish: false,
        ..ConsumerOptions::default()
    };
    let mut holder = consumer(&broker, "q", options);
    assert_eq!(holder.lease(), Some(Duration::from_millis(150)));
    let id = holder.recv(Some(PATIENCE)).unwrap().unwrap().id();
    // Nobody acks, nobody extends; another one gets it.
    let mut other = consumer(&broker, "q", ConsumerOptions::default());
    assert_eq!(next(&mut other), ("a".to_owned(), 2));
    other.close().unwrap();
    holder.ack(id);
    let flushed = holder.flush().unwrap();
    assert_eq!((flushed.acked, flushed.late), (0, 1));
    let described = connection.subscription_describe("q", "default").unwrap();
    assert_eq!((described.failed, described.acked), (1, 1));
}

#[test]
fn a_lease_can_be_extended() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    connection.queue_create_with("q", &QueueOptions::default(), &[], &at_once()).unwrap();
    publish(&broker, "q", &["by hand", "by itself"]);
    let options = ConsumerOptions {
        lease: Some(Duration::from_millis(400)),
        extend_for: Some(Duration::from_secs(60)),
        ..ConsumerOptions::default()
    };
    let mut consumer = consumer(&broker, "q", options);
    let first = consumer.recv(Some(PATIENCE)).unwrap().unwrap().id();
    let second = consumer.recv(Some(PATIENCE)).unwrap().unwrap().id();
    for lease in [Duration::ZERO, Duration::from_secs(100_000)] {
        let error = consumer.extend(first, Some(lease)).unwrap_err();
        assert!(matches!(error, ClientError::Option { name: "lease", .. }));
    }
    consumer.extend(first, Some(Duration::from_secs(60))).unwrap();
    // It waits for long, and extends meanwhile.
    assert!(consumer.recv(Some(Duration::from_millis(1200))).unwrap().is_none());
    consumer.ack(first);
    consumer.ack(second);
    let flushed = consumer.flush().unwrap();
    assert_eq!((flushed.acked, flushed.late), (2, 0));
}

#[test]
fn each_subscription_gets_everything() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    let options = at_once();
    connection.queue_create_with("q", &QueueOptions::default(), &["a", "b"], &options).unwrap();
    publish(&broker, "q", &["1", "2", "3"]);
    for subscription in ["a", "b"] {
        let options =
            ConsumerOptions { subscription: subscription.into(), ..ConsumerOptions::default() };
        let mut consumer = consumer(&broker, "q", options);
        for body in ["1", "2", "3"] {
            assert_eq!(next(&mut consumer), (body.to_owned(), 1));
        }
        assert_eq!(consumer.close().unwrap().acked, 3);
    }
    let error = Consumer::open(&broker.options(), "q", ConsumerOptions::default()).err().unwrap();
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionNotFound));
}

#[test]
fn subscriptions_can_be_managed() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    connection.queue_create("q", &QueueOptions::default()).unwrap();
    publish(&broker, "q", &["1", "2", "3"]);
    let options = SubscriptionOptions {
        lease: Some(Duration::from_secs(5)),
        max_attempts: Some(MaxAttempts::Count(3)),
        backoff: Some("list:1s,5s,1m".parse().unwrap()),
        ..SubscriptionOptions::default()
    };
    assert!(connection.subscription_create("q", "late", &options, Start::Now).unwrap());
    assert!(connection.subscription_create("q", "all", &options, Start::Oldest).unwrap());
    assert!(!connection.subscription_create("q", "all", &options, Start::Oldest).unwrap());
    let other = SubscriptionOptions { max_attempts: Some(MaxAttempts::Unlimited), ..options };
    let error = connection.subscription_create("q", "all", &other, Start::Now).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionExists));
    let listed = connection.subscription_list("q").unwrap();
    let names: Vec<&str> = listed.iter().map(|subscription| subscription.name.as_str()).collect();
    assert_eq!(names, ["all", "default", "late"]);
    let ready: Vec<u64> = listed.iter().map(|subscription| subscription.ready).collect();
    assert_eq!(ready, [3, 3, 0]);
    let change = SubscriptionOptions {
        backoff: Some("fixed:2s".parse().unwrap()),
        ..SubscriptionOptions::default()
    };
    connection.subscription_update("q", "all", &change).unwrap();
    let described = connection.subscription_describe("q", "all").unwrap();
    let described_options = &described.options;
    assert_eq!((described_options.lease_ms, described_options.max_attempts), (5000, 3));
    let backoff = Backoff::from_wire(described_options.backoff.as_deref().unwrap());
    assert_eq!(backoff.to_string(), "fixed:2s");
    let peeked = connection.subscription_peek("q", "all", 10, 1).unwrap();
    assert_eq!(peeked.messages.len(), 2);
    assert_eq!(connection.subscription_purge("q", "all").unwrap().messages, 3);
    assert_eq!(connection.queue_describe("q").unwrap().ready, 3);
    let options = ConsumerOptions { subscription: "late".into(), ..ConsumerOptions::default() };
    let mut holder = consumer(&broker, "q", options);
    let error = connection.subscription_delete("q", "late", false).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionInUse));
    connection.subscription_delete("q", "late", true).unwrap();
    let error = holder.recv(Some(PATIENCE)).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionDeleted));
    let error = connection.subscription_describe("q", "late").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionNotFound));
}

#[test]
fn dead_letters_are_redriven() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    let options = SubscriptionOptions { max_attempts: Some(MaxAttempts::Count(2)), ..at_once() };
    connection.queue_create_with("q", &QueueOptions::default(), &[], &options).unwrap();
    publish(&broker, "q", &["a", "b", "c"]);
    let mut worker = consumer(&broker, "q", ConsumerOptions::default());
    for _ in 0..6 {
        worker.recv(Some(PATIENCE)).unwrap().unwrap().nack(None, "it is broken").unwrap();
    }
    worker.flush().unwrap();
    let waited = (0..1000).find(|_| {
        std::thread::park_timeout(Duration::from_millis(10));
        connection.queue_describe("q.dead").is_ok_and(|dead| dead.ready == 3)
    });
    assert!(waited.is_some(), "three dead letters");
    assert_eq!(connection.queue_describe("q").unwrap().counters.dead_lettered, 3);
    let redriven = connection.redrive(&Redrive::of("q.dead")).unwrap();
    assert_eq!((redriven.messages, redriven.refused, redriven.finished), (3, 0, true));
    let mut bodies: Vec<String> = (0..3).map(|_| next(&mut worker).0).collect();
    bodies.sort();
    assert_eq!(bodies, ["a", "b", "c"]);
    worker.close().unwrap();
    assert_eq!(connection.queue_describe("q.dead").unwrap().ready, 0);
}

/// A consumer that reconnects in a loop fails nothing and makes no storm.
#[test]
fn what_a_consumer_had_ahead_is_returned_and_not_failed() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    let options = SubscriptionOptions { max_attempts: Some(MaxAttempts::Count(3)), ..at_once() };
    connection.queue_create_with("q", &QueueOptions::default(), &[], &options).unwrap();
    publish(&broker, "q", &["x"; 100]);
    for _ in 0..20 {
        let mut consumer = consumer(&broker, "q", ConsumerOptions::default());
        assert!(!consumer.recv_batch(Some(PATIENCE)).unwrap().is_empty());
    }
    let mut consumer = consumer(&broker, "q", ConsumerOptions::default());
    (0..100).for_each(|_| drop(next(&mut consumer)));
    assert_eq!(consumer.close().unwrap().acked, 100);
    let described = connection.subscription_describe("q", "default").unwrap();
    assert_eq!((described.failed, described.dead_lettered, described.acked), (0, 0, 100));
    assert!(described.delivered <= 100 * 21, "{}", described.delivered);
}
