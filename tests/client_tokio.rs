//! The tokio client against the real broker: what it promises when connections break, brokers
//! restart, queues fill up and handlers fail.
#![cfg(all(feature = "cli", feature = "server", feature = "tokio"))]
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

mod common;

use common::proxy::CuttingProxy;
use common::{Broker, PATIENCE};
use forebay::client::tokio::{Consumer, Message, Publisher};
use forebay::client::{
    ClientError, ConnectOptions, Connection, ConnectionEvent, ConsumerOptions, ErrorCode,
    MaxAttempts, MissingQueue, OnFull, PublisherOptions, PublisherState, QueueOptions,
    ReconnectPolicy, SubscriptionOptions,
};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("a healthy client is faster")
}

fn number(message: &Message) -> u64 {
    u64::from_le_bytes(message.body()[..8].try_into().unwrap())
}

async fn publisher(connect: &ConnectOptions, queue: &str) -> Publisher {
    within(Publisher::open(connect, queue, PublisherOptions::default())).await.unwrap()
}

async fn consumer(connect: &ConnectOptions, queue: &str) -> Consumer {
    within(Consumer::open(connect, queue, ConsumerOptions::default())).await.unwrap()
}

/// Takes and acks so many, and checks that there is no other.
async fn take_all(connect: &ConnectOptions, queue: &str, count: usize) -> Vec<Vec<u8>> {
    let mut consumer = consumer(connect, queue).await;
    let mut bodies = Vec::new();
    while bodies.len() < count {
        for message in within(consumer.recv_batch(1000)).await.unwrap() {
            bodies.push(message.body().to_vec());
            message.ack();
        }
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await.is_err());
    assert_eq!(within(consumer.close()).await.unwrap().late, 0);
    bodies
}

#[tokio::test]
async fn messages_come_back_as_they_were_published() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    let sizes = [0, 1, 100, 65_000, 262_008, 262_009, 1_000_000, 3_000_001];
    let body = |size: usize| (0..size).map(|at| (at * 31 + size) as u8).collect::<Vec<u8>>();
    for size in sizes {
        let body = body(size);
        let message = forebay::client::Message::new(&body);
        let message = message.header("size", size.to_string()).unwrap();
        within(publisher.publish(&message)).await.unwrap().await.unwrap();
    }
    let mut consumer = consumer(&broker.options(), "q").await;
    for size in sizes {
        let message = within(consumer.recv()).await.unwrap().unwrap();
        assert_eq!(message.body(), body(size));
        assert_eq!(message.properties().header("size"), Some(size.to_string().as_bytes()));
        assert_eq!((message.queue(), message.attempts()), ("q", 1));
        message.ack();
    }
    assert_eq!(within(consumer.close()).await.unwrap().acked, sizes.len() as u64);
    within(publisher.close()).await.unwrap();
}

#[tokio::test]
async fn a_publisher_waits_for_room_and_each_confirm_comes() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let options = PublisherOptions { outstanding_bytes_max: 10_000, ..Default::default() };
    let publisher = within(Publisher::open(&broker.options(), "q", options)).await.unwrap();
    let mut confirms = Vec::new();
    for at in 0..5000u64 {
        confirms.push(within(publisher.publish(&at.to_le_bytes())).await.unwrap());
    }
    for confirm in confirms {
        within(confirm).await.unwrap();
    }
    let many = (0..5000u64).map(|at| at.to_le_bytes().to_vec());
    within(publisher.publish_many(many).await.unwrap()).await.unwrap();
    assert_eq!(publisher.counts().confirmed, 10_000);
    assert_eq!(take_all(&broker.options(), "q", 10_000).await.len(), 10_000);
}

#[tokio::test]
async fn a_cancelled_publish_was_not_taken() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions { messages_max: 10, ..QueueOptions::default() });
    let options = PublisherOptions { outstanding_bytes_max: 100, ..Default::default() };
    let publisher = within(Publisher::open(&broker.options(), "q", options)).await.unwrap();
    let mut taken = 0u64;
    loop {
        let publish = publisher.publish(taken.to_le_bytes().to_vec());
        match tokio::time::timeout(Duration::from_millis(300), publish).await {
            Ok(confirm) => drop(confirm.unwrap()),
            Err(_) => break,
        }
        taken += 1;
    }
    assert_eq!(publisher.counts().published, taken);
    let mut consumer = consumer(&broker.options(), "q").await;
    for at in 0..taken {
        let message = within(consumer.recv()).await.unwrap().unwrap();
        assert_eq!(number(&message), at);
        message.ack();
    }
    within(publisher.flush()).await.unwrap();
}

/// A publisher whose queue is full is told, with the reason, and told when it is over.
#[tokio::test]
async fn a_blocked_publisher_is_told() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions { messages_max: 10, ..QueueOptions::default() });
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let connect = broker.options().on_event(move |event| sink.lock().unwrap().push(event.clone()));
    let publisher = publisher(&connect, "q").await;
    let many = (0..30u64).map(|at| at.to_le_bytes().to_vec());
    let all = publisher.publish_many(many).await.unwrap();
    let until = |wanted: fn(&ConnectionEvent) -> bool| {
        let told = Arc::clone(&told);
        within(async move {
            while !told.lock().unwrap().iter().any(wanted) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    };
    until(|event| matches!(event, ConnectionEvent::Blocked { .. })).await;
    assert!(matches!(publisher.state(), PublisherState::Blocked { reason } if !reason.is_empty()));
    assert!(all.try_get().is_none());
    // Consumers are never blocked.
    assert_eq!(take_all(&broker.options(), "q", 30).await.len(), 30);
    within(all).await.unwrap();
    until(|event| matches!(event, ConnectionEvent::Unblocked)).await;
    assert_eq!(publisher.state(), PublisherState::Open);
}

/// What a lost connection left unconfirmed is sent again, and stored once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_lose_double_and_reorder_nothing() {
    const COUNT: u64 = 60_000;
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let proxy = CuttingProxy::start(broker.address, 150_000);
    let publisher = publisher(&ConnectOptions::new(&proxy.address), "q").await;
    let mut confirms = Vec::new();
    for at in 0..COUNT {
        let body = [&at.to_le_bytes()[..], &[at as u8; 32]].concat();
        let confirm = within(publisher.publish(body)).await.unwrap();
        if at % 100 == 0 {
            confirms.push(confirm);
        }
    }
    within(publisher.flush()).await.unwrap();
    for confirm in confirms {
        within(confirm).await.unwrap();
    }
    let counts = publisher.counts();
    assert_eq!((counts.confirmed, counts.failed), (COUNT, 0));
    assert!(proxy.cuts.load(Ordering::Relaxed) > 10);
    let taken = take_all(&broker.options(), "q", COUNT as usize).await;
    let numbers = taken.iter().map(|body| u64::from_le_bytes(body[..8].try_into().unwrap()));
    assert!(numbers.eq(0..COUNT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_consumers_lose_nothing() {
    const COUNT: u64 = 5000;
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    let many = (0..COUNT).map(|at| at.to_le_bytes().to_vec());
    within(publisher.publish_many(many).await.unwrap()).await.unwrap();
    let proxy = CuttingProxy::start(broker.address, 1000);
    let mut consumer = consumer(&ConnectOptions::new(&proxy.address), "q").await;
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < COUNT {
        let message = within(consumer.recv()).await.unwrap().unwrap();
        seen.insert(number(&message));
        message.ack();
    }
    assert!(proxy.cuts.load(Ordering::Relaxed) > 0);
    proxy.calm.store(true, Ordering::Relaxed);
    // Acks that were under way when a connection ended may not have arrived: those come again.
    let again = tokio::time::timeout(Duration::from_millis(200), async {
        while let Ok(Some(message)) = consumer.recv().await {
            message.ack();
        }
    });
    let _ = again.await;
    let _ = within(consumer.close()).await;
    let mut connection = Connection::open(&broker.options()).unwrap();
    let left = connection.queue_describe("q").unwrap();
    assert_eq!((left.ready, left.in_flight), (0, 0));
}

/// A publisher and a consumer that live through a restart of the broker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_live_through_a_restart() {
    let broker = Broker::start(&[]);
    let connect =
        ConnectOptions { reconnect: ReconnectPolicy::within(PATIENCE), ..broker.options() };
    let create = MissingQueue::Create(QueueOptions::default());
    let options =
        PublisherOptions { on_missing_queue: create.clone(), ..PublisherOptions::default() };
    let publisher = within(Publisher::open(&connect, "q", options)).await.unwrap();
    let options = ConsumerOptions { on_missing_queue: create, ..ConsumerOptions::default() };
    let mut consumer = within(Consumer::open(&connect, "q", options)).await.unwrap();
    within(publisher.publish("before").await.unwrap()).await.unwrap();
    let message = within(consumer.recv()).await.unwrap().unwrap();
    assert_eq!(message.body(), b"before");
    let _broker = broker.restart(&[]);
    // Of the old connection: it is neither acked nor an error.
    message.ack();
    within(publisher.publish("after").await.unwrap()).await.unwrap();
    let message = within(consumer.recv()).await.unwrap().unwrap();
    assert_eq!(message.body(), b"after");
    message.ack();
    let acks = within(consumer.close()).await.unwrap();
    assert_eq!((acks.acked, acks.late), (1, 1));
}

#[tokio::test]
async fn what_is_dropped_goes_back_at_once() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    within(publisher.publish_many(["a", "b", "c"]).await.unwrap()).await.unwrap();
    let mut consumer = consumer(&broker.options(), "q").await;
    let first = within(consumer.recv()).await.unwrap().unwrap();
    assert_eq!((first.body(), first.attempts()), (b"a".as_slice(), 1));
    drop(first);
    for body in [b"b", b"c"] {
        let message = within(consumer.recv()).await.unwrap().unwrap();
        assert_eq!(message.body(), body);
        message.ack();
    }
    let again = within(consumer.recv()).await.unwrap().unwrap();
    assert_eq!((again.body(), again.attempts()), (b"a".as_slice(), 2));
    assert!(again.redelivered());
    again.ack();
    within(consumer.close()).await.unwrap();
    let mut connection = Connection::open(&broker.options()).unwrap();
    let counters = connection.queue_describe("q").unwrap().counters;
    assert_eq!((counters.returned, counters.failed, counters.acked), (1, 0, 3));
}

#[tokio::test]
async fn errors_and_panics_of_handlers_are_failures() {
    let broker = Broker::start(&[]);
    let options = SubscriptionOptions {
        max_attempts: Some(MaxAttempts::Count(2)),
        backoff: Some("none".parse().unwrap()),
        ..SubscriptionOptions::default()
    };
    let mut connection = Connection::open(&broker.options()).unwrap();
    connection.queue_create_with("q", &QueueOptions::default(), &[], &options).unwrap();
    let publisher = publisher(&broker.options(), "q").await;
    let many = ["fine", "error", "panic", "rejected", "error once"];
    within(publisher.publish_many(many).await.unwrap()).await.unwrap();
    let mut worker = consumer(&broker.options(), "q").await;
    let handling = worker.for_each_concurrent(2, async |message: Message| {
        let again = message.attempts() > 1;
        match message.body() {
            b"fine" => Ok(()),
            b"error once" if again => Ok(()),
            b"panic" => panic!("planned"),
            b"rejected" => {
                message.reject("by hand");
                Ok(())
            }
            _ => Err("did not work"),
        }
    });
    // It has no end of its own; cancelled, it gives back what it holds.
    let _ = tokio::time::timeout(Duration::from_secs(1), handling).await;
    within(worker.close()).await.unwrap();
    let described = connection.subscription_describe("q", "default").unwrap();
    assert_eq!((described.acked, described.dead_lettered), (2, 3));
    let mut dead = consumer(&broker.options(), "q.dead").await;
    let mut letters = BTreeSet::new();
    for _ in 0..3 {
        let message = within(dead.recv()).await.unwrap().unwrap();
        let text = message.properties().header("dead-letter-error").unwrap_or_default();
        let text = String::from_utf8(text.to_vec()).unwrap();
        letters.insert((String::from_utf8(message.body().to_vec()).unwrap(), text));
        message.ack();
    }
    let letter = |body: &str, text: &str| (body.to_owned(), text.to_owned());
    let wanted = [
        letter("error", "did not work"),
        letter("panic", "the handler panicked: planned"),
        letter("rejected", "by hand"),
    ];
    assert!(letters.iter().eq(wanted.iter()), "{letters:?}");
}

#[tokio::test]
async fn a_message_that_is_held_keeps_its_lease() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    within(publisher.publish_many(["a", "b"]).await.unwrap()).await.unwrap();
    let options =
        ConsumerOptions { lease: Some(Duration::from_secs(2)), ..ConsumerOptions::default() };
    let mut holder = within(Consumer::open(&broker.options(), "q", options)).await.unwrap();
    let held = within(holder.recv()).await.unwrap().unwrap();
    // The second waits in the consumer, and is held as well. Both well over their lease, which is
    // long enough for a busy machine.
    tokio::time::sleep(Duration::from_secs(5)).await;
    held.ack();
    within(holder.recv()).await.unwrap().unwrap().ack();
    let flushed = within(holder.flush()).await.unwrap();
    assert_eq!((flushed.acked, flushed.late), (2, 0));
    let mut connection = Connection::open(&broker.options()).unwrap();
    let counters = connection.queue_describe("q").unwrap().counters;
    assert_eq!((counters.failed, counters.delivered), (0, 2));
}

#[tokio::test]
async fn one_consumer_takes_from_several_subscriptions() {
    let broker = Broker::start(&[]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    let options = SubscriptionOptions::default();
    connection.queue_create_with("q", &QueueOptions::default(), &["a", "b"], &options).unwrap();
    let publisher = publisher(&broker.options(), "q").await;
    within(publisher.publish_many(["1", "2", "3"]).await.unwrap()).await.unwrap();
    let connect = broker.options();
    let sources = [("q", "a"), ("q", "b")];
    let opening = Consumer::open_all(&connect, sources, ConsumerOptions::default());
    let mut consumer = within(opening).await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..6 {
        let message = within(consumer.recv()).await.unwrap().unwrap();
        taken.push((message.subscription().to_owned(), message.body().to_vec()));
        message.ack();
    }
    taken.sort();
    let wanted = ["a", "b"].map(|name| ["1", "2", "3"].map(|body| (name, body.as_bytes())));
    let wanted = wanted.iter().flatten();
    assert!(taken.iter().map(|(name, body)| (name.as_str(), body.as_slice())).eq(wanted.copied()));
    assert_eq!(within(consumer.close()).await.unwrap().acked, 6);
}

/// Prefetched messages of a consumer that goes are returned, not failed; one that
/// reconnects in a loop makes no storm.
#[tokio::test]
async fn a_consumer_that_comes_and_goes_makes_no_storm() {
    const COUNT: u64 = 500;
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    let many = (0..COUNT).map(|at| at.to_le_bytes().to_vec());
    within(publisher.publish_many(many).await.unwrap()).await.unwrap();
    for _ in 0..30 {
        let mut consumer = consumer(&broker.options(), "q").await;
        let held = within(consumer.recv_batch(50)).await.unwrap();
        drop(consumer);
        drop(held);
    }
    let taken = take_all(&broker.options(), "q", COUNT as usize).await;
    assert_eq!(taken.len() as u64, COUNT);
    let mut connection = Connection::open(&broker.options()).unwrap();
    let counters = connection.queue_describe("q").unwrap().counters;
    assert_eq!((counters.failed, counters.dead_lettered), (0, 0));
    // No more than what each was allowed ahead.
    assert!(counters.delivered <= COUNT + 30 * 256, "{}", counters.delivered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_run_so_many_at_a_time() {
    const COUNT: usize = 300;
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    within(publisher.publish_many(vec!["x"; COUNT]).await.unwrap()).await.unwrap();
    let mut consumer = consumer(&broker.options(), "q").await;
    let (stopper, running) = (consumer.stopper(), Arc::new(AtomicUsize::new(0)));
    let (done, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let handled = (Arc::clone(&done), Arc::clone(&most));
    let handling = consumer.for_each_concurrent(7, move |message| {
        let (running, stopper) = (Arc::clone(&running), stopper.clone());
        let (done, most) = handled.clone();
        async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(1)).await;
            running.fetch_sub(1, Ordering::SeqCst);
            if done.fetch_add(1, Ordering::SeqCst) + 1 == COUNT {
                stopper.stop();
            }
            assert_eq!(message.body(), b"x");
            Ok::<(), ClientError>(())
        }
    });
    within(handling).await.unwrap();
    assert_eq!((done.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (COUNT, 7));
    assert_eq!(within(consumer.close()).await.unwrap().acked, COUNT as u64);
}

#[tokio::test]
async fn a_consumer_of_several_queues_is_at_home_with_each() {
    let broker = Broker::start(&["--shards", "2"]);
    let names: Vec<String> = (0..6).map(|at| format!("q{at}")).collect();
    for name in &names {
        broker.create(name, &QueueOptions::default());
    }
    let sources = names.iter().map(String::as_str);
    let connect = broker.options();
    let opening = Consumer::open_all(&connect, sources, ConsumerOptions::default());
    let mut consumer = within(opening).await.unwrap();
    for name in &names {
        let publisher = publisher(&broker.options(), name).await;
        let many = (0..500u64).map(|at| at.to_le_bytes().to_vec());
        within(publisher.publish_many(many).await.unwrap()).await.unwrap();
    }
    let mut next = vec![0u64; names.len()];
    while next.iter().any(|&at| at < 500) {
        let message = within(consumer.recv()).await.unwrap().unwrap();
        let queue = names.iter().position(|name| name == message.queue()).unwrap();
        assert_eq!(number(&message), next[queue], "each queue's messages keep their order");
        next[queue] += 1;
        message.ack();
    }
    let mut connection = Connection::open(&broker.options()).unwrap();
    let homes: BTreeSet<u32> =
        names.iter().map(|name| connection.queue_describe(name).unwrap().shard).collect();
    assert_eq!(within(consumer.close()).await.unwrap().acked, 6 * 500);
    assert_eq!(homes.len(), 2, "names for both shards");
}

#[tokio::test]
async fn a_pull_brings_no_more_than_asked_for() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions::default());
    let publisher = publisher(&broker.options(), "q").await;
    let many = (0..10u64).map(|at| at.to_le_bytes().to_vec());
    within(publisher.publish_many(many).await.unwrap()).await.unwrap();
    let options =
        ConsumerOptions { credit_messages: 0, credit_bytes: 0, ..ConsumerOptions::default() };
    let mut consumer = within(Consumer::open(&broker.options(), "q", options)).await.unwrap();
    for (messages_max, wait, wanted) in [
        (7, Duration::ZERO, 0..7),
        (7, Duration::from_secs(5), 7..10),
        (7, Duration::from_millis(50), 10..10),
        (7, Duration::ZERO, 10..10),
    ] {
        let batch = within(consumer.pull(messages_max, wait)).await.unwrap();
        assert!(batch.iter().map(number).eq(wanted));
        batch.into_iter().for_each(Message::ack);
    }
    assert_eq!(within(consumer.close()).await.unwrap().acked, 10);
}

#[tokio::test]
async fn refusals_are_errors() {
    let broker = Broker::start(&[]);
    let error = Publisher::open(&broker.options(), "none", PublisherOptions::default()).await;
    assert!(matches!(error.err(), Some(ClientError::QueueMissing { .. })));
    let error = Consumer::open(&broker.options(), "none", ConsumerOptions::default()).await;
    assert_eq!(error.err().unwrap().code(), Some(ErrorCode::QueueNotFound));
    for lease in [Duration::ZERO, Duration::from_secs(3 * 365 * 86_400)] {
        let options = ConsumerOptions { lease: Some(lease), ..ConsumerOptions::default() };
        let error = Consumer::open(&broker.options(), "none", options).await;
        assert!(matches!(error.err(), Some(ClientError::Option { name: "lease", .. })));
    }
    broker.create(
        "small",
        &QueueOptions { messages_max: 1, on_full: OnFull::Reject, ..QueueOptions::default() },
    );
    let publisher = publisher(&broker.options(), "small").await;
    within(publisher.publish("a").await.unwrap()).await.unwrap();
    let error = within(publisher.publish("b").await.unwrap()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)), "{error:?}");
    assert!(within(publisher.flush()).await.is_err());
    drop(broker);
    let connect = ConnectOptions::new("127.0.0.1:1");
    let error = Publisher::open(&connect, "q", PublisherOptions::default()).await;
    assert!(matches!(error.err(), Some(ClientError::Connect { .. })));
}

#[tokio::test]
async fn a_publisher_that_is_dropped_answers_its_confirms() {
    let broker = Broker::start(&[]);
    broker.create("q", &QueueOptions { messages_max: 1, ..QueueOptions::default() });
    let publisher = publisher(&broker.options(), "q").await;
    within(publisher.publish("a").await.unwrap()).await.unwrap();
    let waiting = tokio::spawn(publisher.publish("b").await.unwrap());
    tokio::task::yield_now().await;
    drop(publisher);
    assert_eq!(within(waiting).await.unwrap().unwrap_err(), ClientError::Closed);
}
