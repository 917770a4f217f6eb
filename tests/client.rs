//! The blocking client against the real broker: what it promises when connections break, brokers
//! restart and queues fill up.
#![cfg(all(feature = "cli", feature = "server"))]
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

mod common;

use common::Broker;
use common::proxy::CuttingProxy;
use forebay::client::{
    ClientError, ConnectOptions, Connection, ConnectionEvent, Consumer, ConsumerOptions, ErrorCode,
    Message, MissingQueue, OnFull, Publisher, PublisherOptions, PublisherState, QueueOptions,
    ReconnectPolicy,
};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn take_all(connect: &ConnectOptions, queue: &str, count: usize) -> Vec<Vec<u8>> {
    let mut consumer = Consumer::open(connect, queue, ConsumerOptions::default()).unwrap();
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let batch = consumer.recv_batch(Some(PATIENCE)).unwrap();
        assert!(!batch.is_empty(), "{} of {count} came", bodies.len());
        bodies.extend(batch.iter().map(|message| message.body().to_vec()));
        batch.ack();
    }
    assert!(consumer.recv(Some(Duration::from_millis(50))).unwrap().is_none());
    assert_eq!(consumer.close().unwrap().late, 0);
    bodies
}

fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[..8].try_into().unwrap())
}

#[test]
fn messages_come_back_as_they_were_published() {
    let broker = Broker::start(&["--shards", "1"]);
    broker.create("q", &QueueOptions::default());
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    let sizes = [0, 1, 100, 65_000, 262_000, 262_008, 262_009, 1_000_000, 5_000_001];
    let body = |size: usize| (0..size).map(|at| (at * 31 + size) as u8).collect::<Vec<u8>>();
    for size in sizes {
        let body = body(size);
        let message = Message::from(&body).header("size", size.to_string()).unwrap();
        let message = message.message_id(b"id").unwrap().content_type("text/x").unwrap();
        let _ = publisher.publish(&message).unwrap();
    }
    publisher.flush().unwrap();
    let counts = publisher.counts();
    assert_eq!((counts.published, counts.confirmed), (9, 9));
    let options = ConsumerOptions { checksum: true, ..ConsumerOptions::default() };
    let mut consumer = Consumer::open(&broker.options(), "q", options).unwrap();
    for (at, size) in sizes.into_iter().enumerate() {
        let message = consumer.recv(Some(PATIENCE)).unwrap().expect("a message");
        assert!(message.body() == body(size), "a body of {size} bytes differs");
        assert_eq!(message.properties().header("size"), Some(size.to_string().as_bytes()));
        assert_eq!(message.properties().message_id(), Some(b"id".as_slice()));
        assert_eq!(message.properties().content_type(), Some("text/x"));
        assert_eq!((message.sequence(), message.attempts()), (at as u64 + 1, 1));
        assert!(!message.redelivered());
        message.ack();
    }
    let acks = consumer.close().unwrap();
    assert_eq!((acks.acked, acks.late), (9, 0));
    let left = Connection::open(&broker.options()).unwrap().queue_describe("q").unwrap();
    assert_eq!((left.ready, left.in_flight, left.counters.acked), (0, 0, 9));
}

#[test]
fn cut_connections_lose_double_and_reorder_nothing() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let proxy = CuttingProxy::start(broker.address, 150_000);
    let count = 20_000u64;
    let publisher = Publisher::open(
        &ConnectOptions::new(&proxy.address),
        "q",
        PublisherOptions { batch_bytes: 5000, ..PublisherOptions::default() },
    )
    .unwrap();
    let large = vec![7; 400_000];
    for at in 0..count {
        let mut body = at.to_le_bytes().to_vec();
        body.resize(100, 1);
        let _ = publisher.publish(&body).unwrap();
        if at % 1000 == 999 {
            let _ = publisher.poll();
        }
    }
    // On a busy machine little of it may have gone through the proxy yet.
    while proxy.cuts.load(Ordering::Relaxed) < 3 && publisher.counts().confirmed < count {
        publisher.poll().unwrap();
    }
    assert!(proxy.cuts.load(Ordering::Relaxed) >= 3, "the proxy cut nothing");
    proxy.calm.store(true, Ordering::Relaxed);
    let _ = publisher.publish(&large).unwrap();
    publisher.flush().unwrap();
    let bodies = take_all(&broker.options(), "q", count as usize + 1);
    for (at, body) in bodies[..count as usize].iter().enumerate() {
        assert_eq!(number(body), at as u64);
    }
    assert!(bodies[count as usize] == large);
    assert_eq!(publisher.counts().failed, 0);
}

#[test]
fn a_consumer_whose_connection_is_cut_gets_the_unacked_again() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    publisher
        .publish_many((0..1000u64).map(|at| at.to_le_bytes().to_vec()))
        .unwrap()
        .wait()
        .unwrap();
    let proxy = CuttingProxy::start(broker.address, 1000);
    let mut consumer = Consumer::open(
        &ConnectOptions::new(&proxy.address),
        "q",
        ConsumerOptions { credit_messages: 10, ..ConsumerOptions::default() },
    )
    .unwrap();
    let mut seen = vec![0; 1000];
    while seen.contains(&0) {
        let message = consumer.recv(Some(PATIENCE)).unwrap().expect("a message");
        seen[number(message.body()) as usize] += 1;
        message.ack();
    }
    assert!(proxy.cuts.load(Ordering::Relaxed) >= 1, "the proxy cut nothing");
    proxy.calm.store(true, Ordering::Relaxed);
    while let Some(message) = consumer.recv(Some(Duration::from_millis(100))).unwrap() {
        message.ack();
    }
    let counts = consumer.counts();
    consumer.close().unwrap();
    let left = Connection::open(&broker.options()).unwrap().queue_describe("q").unwrap();
    assert_eq!((left.ready, left.in_flight, left.counters.acked), (0, 0, 1000));
    // Acks that were under way when the connection was cut count as given, and came again.
    assert_eq!(counts.acked + counts.late, counts.received);
}

#[test]
fn a_restarted_broker_gets_the_unconfirmed_again() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let connect = ConnectOptions {
        reconnect: ReconnectPolicy::within(PATIENCE),
        ..broker.options().on_event(move |event| seen.lock().unwrap().push(event.clone()))
    };
    let create = MissingQueue::Create(QueueOptions::default());
    let options = PublisherOptions { on_missing_queue: create.clone(), ..Default::default() };
    let publisher = Publisher::open(&connect, "q", options).unwrap();
    publisher.publish("before").unwrap().wait().unwrap();
    let mut consumer = Consumer::open(
        &ConnectOptions { on_event: None, ..connect.clone() },
        "q",
        ConsumerOptions { on_missing_queue: create, ..ConsumerOptions::default() },
    )
    .unwrap();
    consumer.recv(Some(PATIENCE)).unwrap().expect("a message").ack();
    consumer.flush().unwrap();

    let broker = broker.restart(&[]);
    let after: Vec<_> =
        (0..100).map(|at| publisher.publish(&format!("{at}")[..]).unwrap()).collect();
    for confirm in after {
        confirm.wait().unwrap();
    }
    for at in 0..100 {
        let message = consumer.recv(Some(PATIENCE)).unwrap().expect("a message");
        assert_eq!(message.body(), format!("{at}").as_bytes());
        message.ack();
    }
    consumer.close().unwrap();
    publisher.close().unwrap();
    drop(broker);
    let events = events.lock().unwrap();
    let has = |wanted: fn(&ConnectionEvent) -> bool| events.iter().any(wanted);
    assert!(has(|event| matches!(event, ConnectionEvent::Disconnected { .. })));
    assert!(has(|event| matches!(event, ConnectionEvent::QueueMissing { .. })));
    assert!(has(|event| matches!(event, ConnectionEvent::ProducerRenewed { .. })), "{events:?}");
}

#[test]
fn a_missing_queue_is_an_error_of_its_own() {
    let broker = Broker::start(&[]);
    let error = Publisher::open(&broker.options(), "no", PublisherOptions::default()).err();
    assert!(matches!(error, Some(ClientError::QueueMissing { .. })), "{error:?}");
    let error = Consumer::open(&broker.options(), "no", ConsumerOptions::default()).err();
    assert_eq!(error.unwrap().code(), Some(ErrorCode::QueueNotFound));

    // Deleted while a publisher and a consumer are open.
    broker.create("gone", &QueueOptions::default());
    let publisher =
        Publisher::open(&broker.options(), "gone", PublisherOptions::default()).unwrap();
    let mut consumer =
        Consumer::open(&broker.options(), "gone", ConsumerOptions::default()).unwrap();
    Connection::open(&broker.options()).unwrap().queue_delete("gone", false).unwrap();
    let error = publisher.publish("late").and_then(|confirm| confirm.wait()).unwrap_err();
    assert!(matches!(error, ClientError::QueueMissing { .. }), "{error:?}");
    let error = consumer.recv(Some(PATIENCE)).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::QueueDeleted));
}

#[test]
fn a_queue_that_blocks_makes_publishers_wait_and_says_so() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions { messages_max: 100, ..QueueOptions::default() });
    let events = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&events);
    let connect = broker.options().on_event(move |event| seen.lock().unwrap().push(event.clone()));
    let publisher = Publisher::open(&connect, "q", PublisherOptions::default()).unwrap();
    let confirm = publisher.publish_many((0..1000u64).map(|at| at.to_le_bytes().to_vec())).unwrap();
    let waited = confirm.wait_for(Duration::from_millis(300));
    assert_eq!(waited, Err(ClientError::TimedOut));
    assert!(matches!(publisher.state(), PublisherState::Blocked { .. }), "{:?}", publisher.state());
    assert_eq!(publisher.counts().confirmed, 100);
    let bodies = std::thread::scope(|scope| {
        let taken = scope.spawn(|| take_all(&connect, "q", 1000));
        confirm.wait().unwrap();
        taken.join().unwrap()
    });
    assert!(bodies.iter().enumerate().all(|(at, body)| number(body) == at as u64));
    let events = events.lock().unwrap();
    assert!(events.iter().any(|event| matches!(event, ConnectionEvent::Blocked { .. })));
    assert!(events.contains(&ConnectionEvent::Unblocked));
}

#[test]
fn a_queue_that_rejects_answers_with_an_error() {
    let broker = Broker::start(&[]);
    let options =
        QueueOptions { messages_max: 10, on_full: OnFull::Reject, ..QueueOptions::default() };
    broker.create("q", &options);
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    for at in 0..10u64 {
        publisher.publish(&at.to_le_bytes()).unwrap().wait().unwrap();
    }
    for _ in 0..3 {
        let error = publisher.publish("eleventh").unwrap().wait().unwrap_err();
        assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
        assert_eq!(error.code(), Some(ErrorCode::QueueMessagesMax));
    }
    assert_eq!(publisher.counts().failed, 3);
    assert!(publisher.flush().is_err(), "a flush tells of failures since the last one");
    assert_eq!(publisher.flush(), Ok(()));
    take_all(&broker.options(), "q", 10);
    publisher.publish(&10u64.to_le_bytes()).unwrap().wait().unwrap();
    assert_eq!(number(&take_all(&broker.options(), "q", 1)[0]), 10);
}

#[test]
fn what_a_queue_drops_is_counted() {
    let broker = Broker::start(&[]);
    let options =
        QueueOptions { messages_max: 10, on_full: OnFull::DropNewest, ..QueueOptions::default() };
    broker.create("q", &options);
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    publisher.publish_many((0..25u64).map(|at| at.to_le_bytes().to_vec())).unwrap().wait().unwrap();
    let counts = publisher.counts();
    assert_eq!((counts.confirmed, counts.dropped), (25, 15));
}

#[test]
fn a_message_too_large_fails_alone() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions { message_bytes_max: 1000, ..QueueOptions::default() });
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    let error = publisher.publish(vec![0; 1001]).err();
    assert!(matches!(error, Some(ClientError::MessageTooLarge { limit_bytes: 1000, .. })));
    // The limit shrinks behind the client's back.
    let mut connection = Connection::open(&broker.options()).unwrap();
    let change =
        forebay::client::QueueChange { message_bytes_max: Some(100), ..Default::default() };
    connection.queue_update("q", &change).unwrap();
    let bodies: Vec<Vec<u8>> = (0..9).map(|at| vec![at; if at == 4 { 101 } else { 100 }]).collect();
    let confirm = publisher.publish_many(&bodies).unwrap();
    assert_eq!(confirm.wait().unwrap_err().code(), Some(ErrorCode::MessageTooLarge));
    let counts = publisher.counts();
    assert_eq!((counts.confirmed, counts.failed), (8, 1));
    let taken = take_all(&broker.options(), "q", 8);
    assert!(taken.iter().zip([0u8, 1, 2, 3, 5, 6, 7, 8]).all(|(body, at)| body[0] == at));
}

#[test]
fn a_pull_brings_no_more_than_asked_for() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    publisher.publish_many((0..10u64).map(|at| at.to_le_bytes().to_vec())).unwrap().wait().unwrap();
    let options =
        ConsumerOptions { credit_messages: 0, credit_bytes: 0, ..ConsumerOptions::default() };
    let mut consumer = Consumer::open(&broker.options(), "q", options).unwrap();
    let batch = consumer.pull(7, Duration::ZERO).unwrap();
    assert_eq!(batch.len(), 7);
    batch.ack();
    let batch = consumer.pull(7, Duration::from_secs(5)).unwrap();
    assert_eq!(batch.iter().map(|message| number(message.body())).collect::<Vec<_>>(), [7, 8, 9]);
    batch.ack();
    assert!(consumer.pull(7, Duration::from_millis(100)).unwrap().is_empty());
    assert!(consumer.pull(7, Duration::ZERO).unwrap().is_empty());
    assert_eq!(consumer.close().unwrap().acked, 10);
}

#[test]
fn one_publisher_serves_many_threads() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let publisher = &publisher;
            scope.spawn(move || {
                for at in 0..500u64 {
                    let body = (thread << 32 | at).to_le_bytes();
                    let confirm = publisher.publish(&body).unwrap();
                    if at % 10 == 0 {
                        confirm.wait().unwrap();
                    }
                }
            });
        }
    });
    publisher.flush().unwrap();
    let mut next = [0u64; 4];
    for body in take_all(&broker.options(), "q", 2000) {
        let (thread, at) = ((number(&body) >> 32) as usize, number(&body) & 0xffff_ffff);
        assert_eq!(at, next[thread], "each thread's messages keep their order");
        next[thread] += 1;
    }
}

#[test]
fn a_silent_caller_does_not_keep_a_message_back() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default()).unwrap();
    for at in 0..100u64 {
        let _ = publisher.publish(&at.to_le_bytes()).unwrap();
    }
    // Nobody waits, polls or flushes.
    assert_eq!(take_all(&broker.options(), "q", 100).len(), 100);
}

#[test]
fn admin_requests() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    connection.ping().unwrap();
    assert!(!connection.server_version().is_empty());
    assert!(connection.queue_create("a", &QueueOptions::default()).unwrap());
    assert!(!connection.queue_create("a", &QueueOptions::default()).unwrap());
    let other = QueueOptions { messages_max: 7, ..QueueOptions::default() };
    let error = connection.queue_create("a", &other).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::QueueExists));
    for at in 0..450 {
        connection.queue_create(&format!("b.{at:03}"), &QueueOptions::default()).unwrap();
    }
    let names: Vec<_> = connection.queue_list("b.").unwrap().into_iter().map(|q| q.name).collect();
    assert_eq!(names.len(), 450);
    assert!(names.is_sorted());
    let publisher = Publisher::open(&broker.options(), "a", PublisherOptions::default()).unwrap();
    publisher.publish_many(["one", "two", "three"]).unwrap().wait().unwrap();
    let peeked = connection.queue_peek("a", 2, 1).unwrap();
    assert_eq!(peeked.messages[0].body.as_deref(), Some(b"two".as_slice()));
    assert!(!peeked.more && peeked.messages.len() == 2);
    assert_eq!(connection.queue_purge("a").unwrap().messages, 3);
    assert_eq!(connection.stats().unwrap().queues, 451);
    connection.queue_delete("a", true).unwrap();
    let error = connection.queue_describe("a").unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::QueueNotFound));
}

#[test]
fn without_reconnect_a_lost_broker_is_an_error() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let connect = ConnectOptions { reconnect: ReconnectPolicy::never(), ..broker.options() };
    let publisher = Publisher::open(&connect, "q", PublisherOptions::default()).unwrap();
    let mut consumer = Consumer::open(&connect, "q", ConsumerOptions::default()).unwrap();
    drop(broker);
    let error = consumer.recv(Some(PATIENCE)).unwrap_err();
    assert!(matches!(error, ClientError::Lost(_)), "{error:?}");
    let error = publisher.publish("x").and_then(|confirm| confirm.wait()).unwrap_err();
    assert!(matches!(error, ClientError::Lost(_)), "{error:?}");
    let error = Connection::open(&connect).err();
    assert!(matches!(error, Some(ClientError::Connect { .. })), "{error:?}");
}

#[test]
fn busy_polling_clients_do_the_same() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let connect = ConnectOptions { busy_poll: true, ..broker.options() };
    let publisher = Publisher::open(&connect, "q", PublisherOptions::default()).unwrap();
    let mut consumer = Consumer::open(&connect, "q", ConsumerOptions::default()).unwrap();
    for at in 0..100u64 {
        publisher.publish(&at.to_le_bytes()).unwrap().wait().unwrap();
        let message = consumer.recv(Some(PATIENCE)).unwrap().expect("a message");
        assert_eq!(number(message.body()), at);
        message.ack();
    }
    assert!(consumer.recv(Some(Duration::from_millis(5))).unwrap().is_none());
    assert_eq!(consumer.close().unwrap().acked, 100);
}
