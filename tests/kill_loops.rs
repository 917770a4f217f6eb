//! A broker that is killed again and again, on real files, while its clients go on. In the end
//! everything that was published to a durable queue is there as it was published, in order, and
//! once, but for what was acked.
//!
//! `KILLS=5000 cargo test --release --test kill_loops` makes a long run of it: so many for each way
//! to the disk.
#![cfg(all(feature = "cli", feature = "server"))]
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

mod common;

use common::{Broker, PATIENCE, forebay, serving};
use forebay::base::prng::Prng;
use forebay::client::{
    ConnectOptions, Connection, ConnectionEvent, Consumer, ConsumerOptions, Publisher,
    PublisherOptions, QueueOptions, Reached, ReconnectPolicy,
};
use std::collections::VecDeque;
use std::ops::Range;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// An address of its own, so that no client that looks for the broker while it is away can be given
/// its port.
const LISTEN: &str = "127.0.0.2:0";
/// Kills of one loop, unless `KILLS` says otherwise.
const KILLS: u64 = 20;
/// Each in a store of its own where there are two, with a publisher and a consumer.
const QUEUES: [&str; 2] = ["first", "other-queue"];
/// With so many it is started again; the stores stay two.
const SHARDS: [&str; 3] = ["1", "2", "3"];
/// A publisher is no further ahead of the acks.
const AHEAD_MAX: u64 = 4000;
/// A consumer that holds so many unacked gives them back, by ending.
const HELD_MAX: u64 = 200;

/// What is known of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody has acked it.
    Held,
    /// It was acked, and the broker that heard it may have been killed before it told the disk.
    MayBeDone,
    /// Something that was published behind its ack was confirmed by the same broker.
    Done,
}

/// What the threads of a loop share.
#[derive(Default)]
struct Scene {
    stop: AtomicBool,
    /// Odd from before a kill until the broker is gone: an even number names the one that serves.
    lives: AtomicU64,
    /// The broker had forgotten a publisher.
    forgotten: Arc<AtomicBool>,
}

/// Ends the threads also where a loop fails.
struct StopGuard<'s>(&'s Scene);

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
    }
}

/// One queue of a loop: who publishes, and what became of it.
struct Line<'s> {
    scene: &'s Scene,
    connect: ConnectOptions,
    queue: &'static str,
    publisher: Publisher,
    /// Different messages.
    acked: AtomicU64,
}

/// Acks that were answered. They count when the message with the number `next` is confirmed.
struct Answered {
    life: u64,
    next: u64,
    numbers: Vec<u64>,
}

/// Numbered, of any size; one in some hundred is longer than a batch may be.
fn body(number: u64) -> Vec<u8> {
    let mut prng = Prng::new(number);
    let size = match number % 300 {
        299 => 300_000 + prng.below(900_000),
        _ => 8 + prng.below(2000),
    };
    let mut body = number.to_le_bytes().to_vec();
    body.resize(size as usize, 0);
    let first = u64::from(prng.next_u64() as u32);
    body[8..].iter_mut().zip(first..).for_each(|(byte, nth)| *byte = nth as u8);
    body
}

fn number_of(message: &[u8]) -> u64 {
    let number = u64::from_le_bytes(message[..8].try_into().unwrap());
    assert!(message == body(number), "message {number} is not as it was published");
    number
}

fn pause(ms: u64) {
    std::thread::park_timeout(Duration::from_millis(ms));
}

impl<'s> Line<'s> {
    fn open(scene: &'s Scene, connect: &ConnectOptions, queue: &'static str) -> Line<'s> {
        let forgotten = Arc::clone(&scene.forgotten);
        let told = connect.clone().on_event(move |event| {
            if let ConnectionEvent::ProducerRenewed { .. } = event {
                forgotten.store(true, SeqCst);
            }
        });
        let options = PublisherOptions { producer_id: Some(77), ..PublisherOptions::default() };
        let publisher = Publisher::open(&told, queue, options).unwrap();
        let (connect, acked) = (connect.clone(), AtomicU64::new(0));
        Line { scene, connect, queue, publisher, acked }
    }

    fn is_over(&self) -> bool {
        self.scene.stop.load(SeqCst)
    }

    fn consumer(&self) -> Consumer {
        Consumer::open(&self.connect, self.queue, ConsumerOptions::default()).unwrap()
    }

    /// Publishes until it is enough, and waits until all is confirmed. How many.
    fn publish(&self) -> u64 {
        let mut prng = Prng::new(1);
        let mut number = 0;
        while !self.is_over() {
            if number > self.acked.load(SeqCst) + AHEAD_MAX {
                pause(1);
                continue;
            }
            let life = self.scene.lives.load(SeqCst);
            let confirm = self.publisher.publish(&body(number)[..]).unwrap();
            number += 1;
            match prng.below(1000) {
                // Alone on its way, as of one who waits for each.
                0..20 => {
                    let reached = confirm.wait().unwrap();
                    // A broker that is started anew just says that it has it.
                    let is_same = life.is_multiple_of(2) && life == self.scene.lives.load(SeqCst);
                    assert!(reached == Reached::Synced || !is_same, "{reached:?}");
                }
                20..60 => pause(1),
                _ => {}
            }
        }
        self.publisher.flush().unwrap();
        let counts = self.publisher.counts();
        assert_eq!((counts.published, counts.confirmed, counts.failed), (number, number, 0));
        number
    }

    /// Until so many more are confirmed.
    fn await_confirms(&self, more: u64) {
        let enough = self.publisher.counts().confirmed + more;
        let mut looks = 0;
        while self.publisher.counts().confirmed < enough {
            looks += 1;
            assert!(looks < 60_000, "{}: nothing is confirmed", self.queue);
            pause(1);
        }
    }

    /// Takes what comes and acks some of it, until it is enough.
    fn consume(&self) -> Vec<Fate> {
        let (mut fates, mut answered) = (Vec::new(), VecDeque::new());
        let mut prng = Prng::new(2);
        while !self.is_over() {
            let mut consumer = self.consumer();
            let mut held = 0;
            while held < HELD_MAX && !self.is_over() {
                self.note_done(&mut fates, &mut answered);
                let life = self.scene.lives.load(SeqCst);
                let batch = consumer.recv_batch(Some(Duration::from_millis(10))).unwrap();
                let mut numbers = Vec::new();
                for message in &batch {
                    let number = self.take(&mut fates, message.body());
                    if prng.chance(250) {
                        held += 1;
                    } else {
                        message.ack();
                        numbers.push(number);
                    }
                }
                self.note_acked(&mut fates, &numbers);
                // Acks that were lost, or of a connection before, are just not counted on.
                if consumer.flush().is_ok_and(|acks| acks.late == 0) {
                    let next = self.publisher.counts().published;
                    answered.push_back(Answered { life, next, numbers });
                }
            }
        }
        self.note_done(&mut fates, &mut answered);
        fates
    }

    fn take(&self, fates: &mut Vec<Fate>, message: &[u8]) -> u64 {
        let number = number_of(message);
        if fates.len() <= number as usize {
            fates.resize(number as usize + 1, Fate::Held);
        }
        let fate = fates[number as usize];
        assert_ne!(fate, Fate::Done, "{}: {number} was acked and came again", self.queue);
        number
    }

    fn note_acked(&self, fates: &mut [Fate], numbers: &[u64]) {
        for &number in numbers {
            if fates[number as usize] == Fate::Held {
                fates[number as usize] = Fate::MayBeDone;
                self.acked.fetch_add(1, SeqCst);
            }
        }
    }

    /// What was acked is done for good when the same broker has confirmed what came later.
    fn note_done(&self, fates: &mut [Fate], answered: &mut VecDeque<Answered>) {
        let confirmed = self.publisher.counts().confirmed;
        // Read after it: so who confirmed that is not killed yet, if it is the same.
        let life = self.scene.lives.load(SeqCst);
        while let Some(first) = answered.front() {
            let is_same = first.life == life && life.is_multiple_of(2);
            if is_same && first.next >= confirmed {
                return;
            }
            let first = answered.pop_front().unwrap();
            if is_same {
                first.numbers.iter().for_each(|&number| fates[number as usize] = Fate::Done);
            }
        }
    }

    /// Takes and acks everything that is left: all that nobody has acked, in order and once, and
    /// perhaps some of what may be done.
    fn drain(&self, mut fates: Vec<Fate>, published: u64) {
        fates.resize(published as usize, Fate::Held);
        let mut consumer = self.consumer();
        let mut connection = Connection::open(&self.connect).unwrap();
        let (mut next, mut sequence, mut silences) = (0, 0, 0);
        loop {
            let batch = consumer.recv_batch(Some(Duration::from_millis(100))).unwrap();
            for message in &batch {
                let number = self.take(&mut fates, message.body());
                assert!(number >= next, "{}: {number} comes after {next}", self.queue);
                assert!(message.sequence() > sequence, "{}: {number} out of order", self.queue);
                self.assert_done(&fates, next..number);
                (next, sequence) = (number + 1, message.sequence());
            }
            batch.ack();
            if !batch.is_empty() {
                continue;
            }
            consumer.flush().unwrap();
            let left = connection.queue_describe(self.queue).unwrap();
            if (left.ready, left.in_flight) == (0, 0) {
                break;
            }
            silences += 1;
            assert!(silences < 600, "{}: {left:?}", self.queue);
        }
        self.assert_done(&fates, next..published);
    }

    fn assert_done(&self, fates: &[Fate], numbers: Range<u64>) {
        for number in numbers {
            let fate = fates[number as usize];
            assert_ne!(fate, Fate::Held, "{}: {number} is confirmed and lost", self.queue);
        }
    }
}

/// How brokers of a loop are started; the first one makes two stores.
struct Brokers<'a> {
    backend: &'static str,
    data_dir: &'a Path,
    listen: String,
}

impl Brokers<'_> {
    fn flags(&self, shards: &'static str) -> [&'static str; 4] {
        ["--disk-backend", self.backend, "--shards", shards]
    }

    fn start(&self, shards: &'static str) -> Broker {
        Broker::launch(forebay(), &self.listen, self.data_dir, &self.flags(shards))
    }

    /// One that is killed so long after its process began, most often while it recovers.
    fn kill_early(&self, shards: &'static str, ms: u64) {
        let mut command = serving(forebay(), &self.listen, self.data_dir, &self.flags(shards));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        pause(ms);
        assert!(child.try_wait().unwrap().is_none(), "a broker did not start");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills it. What it has said of its recovery must be good.
    fn kill(&self, broker: Broker) {
        broker.signal("KILL");
        let (status, _, log) = broker.wait();
        assert_eq!(status.signal(), Some(9), "{log}");
        assert!(!log.contains("ERROR"), "{log}");
    }

    /// Kills and starts until it is enough. The one that serves then.
    fn kill_on(&self, lines: &[Line], mut broker: Broker, kills: u64) -> Broker {
        let scene = lines[0].scene;
        let mut prng = Prng::new(kills);
        let mut killed = 0;
        while killed < kills {
            match prng.below(6) {
                0 => pause(prng.below(5)),
                1 => pause(prng.below(300)),
                // In the midst of it.
                _ => prng.pick(lines).await_confirms(1 + prng.below(400)),
            }
            scene.lives.fetch_add(1, SeqCst);
            self.kill(broker);
            killed += 1;
            while prng.chance(300) {
                let ms = prng.below(60);
                self.kill_early(shards(&mut prng), ms);
                killed += 1;
            }
            scene.lives.fetch_add(1, SeqCst);
            broker = self.start(shards(&mut prng));
        }
        broker
    }
}

fn shards(prng: &mut Prng) -> &'static str {
    SHARDS[prng.below(SHARDS.len() as u64) as usize]
}

fn kills() -> u64 {
    std::env::var("KILLS").map_or(KILLS, |count| count.parse().expect("KILLS is a number"))
}

fn nothing_is_lost(backend: &'static str) {
    let place = tempfile::tempdir().unwrap();
    let data_dir = place.path().join("data");
    let mut brokers = Brokers { backend, data_dir: &data_dir, listen: LISTEN.into() };
    let broker = brokers.start("2");
    brokers.listen = broker.address.to_string();
    let durable = QueueOptions { durable: true, ..QueueOptions::default() };
    QUEUES.iter().for_each(|queue| broker.create(queue, &durable));
    let reconnect = ReconnectPolicy {
        pause_first: Duration::from_millis(2),
        pause_max: Duration::from_millis(50),
        ..ReconnectPolicy::within(PATIENCE)
    };
    // A broker that recovers is waited for: a connection that is given up meanwhile is served too,
    // and what it asked for may be done after what the next one asked for.
    let connect = ConnectOptions { reconnect, connect_timeout: PATIENCE, ..broker.options() };
    let scene = Scene::default();
    let lines = QUEUES.map(|queue| Line::open(&scene, &connect, queue));
    let outcomes = std::thread::scope(|scope| {
        let stop = StopGuard(&scene);
        let publishing = lines.each_ref().map(|line| scope.spawn(|| line.publish()));
        let consuming = lines.each_ref().map(|line| scope.spawn(|| line.consume()));
        let broker = brokers.kill_on(&lines, broker, kills());
        drop(stop);
        let published = publishing.map(|thread| thread.join().unwrap());
        let fates = consuming.map(|thread| thread.join().unwrap());
        broker.signal("TERM");
        let (status, _, log) = broker.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        published.into_iter().zip(fates)
    });
    assert!(!scene.forgotten.load(SeqCst), "the broker has forgotten a publisher");
    let broker = brokers.start("1");
    for (line, (published, fates)) in lines.iter().zip(outcomes) {
        let count = |of| fates.iter().filter(|&&fate| fate == of).count();
        let (maybe, done) = (count(Fate::MayBeDone), count(Fate::Done));
        println!("{backend} {}: {published} published, {done} done, {maybe} may be", line.queue);
        // A loop in which nothing happens shows nothing.
        assert!(published > 100 && done > 0);
        line.drain(fates, published);
    }
    drop(lines);
    brokers.kill(broker);
}

#[test]
fn nothing_confirmed_is_lost_with_io_uring() {
    nothing_is_lost("io_uring");
}

#[test]
fn nothing_confirmed_is_lost_with_threads() {
    nothing_is_lost("threads");
}

/// What each start adds to the journal it gives back, or the next one has more to read. A message
/// that is held keeps what came after it.
#[test]
fn restarts_do_not_make_the_journal_grow() {
    let place = tempfile::tempdir().unwrap();
    let data_dir = place.path().join("data");
    let durable = QueueOptions { durable: true, ..QueueOptions::default() };
    let mut broker = Broker::start_in(forebay(), &data_dir, &["--shards", "1"]);
    broker.create("q", &durable);
    let segments = |broker: &Broker| {
        let stats = Connection::open(&broker.options()).unwrap().stats().unwrap();
        stats.journal_segments
    };
    for _ in 0..12 {
        let publisher = Publisher::open(&broker.options(), "q", PublisherOptions::default());
        publisher.unwrap().publish("one").unwrap().wait().unwrap();
        let mut consumer = Consumer::open(&broker.options(), "q", Default::default()).unwrap();
        consumer.recv(Some(PATIENCE)).unwrap().expect("what was confirmed").ack();
        consumer.close().unwrap();
        // Answered when all of that is synced.
        Connection::open(&broker.options()).unwrap().queue_purge("q").unwrap();
        broker = broker.restart(&["--shards", "1"]);
    }
    let mut looks = 0;
    while segments(&broker) > 5 {
        looks += 1;
        assert!(looks < 600, "{} segments", segments(&broker));
        pause(100);
    }
}
