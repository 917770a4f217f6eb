//! A real broker on a file system that is really full: publishers are told so by name, consumers
//! go on, and when there is room again everything does.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Broker, PATIENCE, forebay_on_small_disk};
use forebay::client::{
    ClientError, Connection, Consumer, ConsumerOptions, ErrorCode, OnFull, Publisher,
    PublisherOptions, PublisherState, QueueOptions,
};
use forebay::limits::SPILL_RETRY_MS;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// Of each message.
const BODY_BYTES: usize = 16 << 10;
/// More than memory, 64 MiB, and the file system, 96 MiB, take together.
const COUNT: u64 = 256 * MIB / BODY_BYTES as u64;
/// The file grows by 24 MiB, of which the file system has three.
const FLAGS: [&str; 6] = ["--shards", "1", "--disk-limit", "96MiB", "--disk-headroom", "0"];

fn body(number: u64) -> Vec<u8> {
    let mut body = vec![number as u8; BODY_BYTES];
    body[..8].copy_from_slice(&number.to_le_bytes());
    body
}

/// A broker that has a file system of 96 MiB for itself.
struct Bench {
    broker: Broker,
    /// Where we see that file system.
    disk: PathBuf,
    _place: tempfile::TempDir,
}

impl Bench {
    fn start() -> Option<Bench> {
        let place = tempfile::tempdir().unwrap();
        let command = forebay_on_small_disk(place.path(), "96m")?;
        let broker = Broker::start_in(command, &place.path().join("data"), &FLAGS);
        let disk = broker.see(place.path());
        Some(Bench { broker, disk, _place: place })
    }

    /// Somebody else writes so many bytes, or as many as there is room for.
    fn fill(&self, bytes_max: u64) {
        let mut file = File::create(self.disk.join("filler")).unwrap();
        let page = [1; 4096];
        for _ in 0..bytes_max / page.len() as u64 {
            match file.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.disk.join("filler")).unwrap();
    }

    /// Not a page is left.
    fn assert_full(&self) {
        let error = std::fs::write(self.disk.join("more"), "x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    fn publisher(&self, queue: &str, on_full: OnFull) -> Arc<Publisher> {
        self.broker.create(queue, &QueueOptions { on_full, ..QueueOptions::default() });
        let options = PublisherOptions::default();
        Arc::new(Publisher::open(&self.broker.options(), queue, options).unwrap())
    }

    fn consumer(&self, queue: &str) -> Consumer {
        Consumer::open(&self.broker.options(), queue, ConsumerOptions::default()).unwrap()
    }

    /// It has not crashed.
    fn end(self) {
        self.broker.signal("TERM");
        let (status, _, log) = self.broker.wait();
        assert_eq!(status.code(), Some(0), "{log}");
    }
}

/// From one look to the next.
const LOOK_MS: u64 = 20;

/// Looks until it is so.
fn comes_to(what: &str, mut is_so: impl FnMut() -> bool) {
    let (_never, timer) = mpsc::sync_channel::<()>(0);
    let step = Duration::from_millis(LOOK_MS);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if is_so() {
            return;
        }
        let _ = timer.recv_timeout(step);
    }
    panic!("it does not come to this: {what}");
}

/// Waits until nothing more is taken for want of disk, and the publisher is told so by name. How
/// many messages are confirmed then.
fn comes_to_stand(publisher: &Publisher) -> u64 {
    let (mut confirmed, mut looks) = (0, 0);
    comes_to("told of a full disk", || {
        let now = publisher.counts().confirmed;
        let is_told = match publisher.state() {
            PublisherState::Blocked { reason } => reason.starts_with("disk_full: "),
            _ => false,
        };
        looks = if is_told && now == confirmed { looks + 1 } else { 0 };
        confirmed = now;
        // A full disk is tried again once a second.
        looks * LOOK_MS > 2 * SPILL_RETRY_MS
    });
    confirmed
}

/// Takes and acks the messages of these numbers, which come in this order, each as it was.
fn take(consumer: &mut Consumer, numbers: impl IntoIterator<Item = u64>) {
    let mut taken = 0;
    for number in numbers {
        let message = consumer.recv(Some(PATIENCE)).unwrap();
        let message = message.unwrap_or_else(|| panic!("{number} does not come"));
        assert!(message.body() == body(number), "another message than {number}");
        message.ack();
        taken += 1;
    }
    let answered = consumer.flush().unwrap();
    assert!(answered.acked <= taken && answered.late == 0, "{answered:?}");
}

fn assert_empty(consumer: &mut Consumer) {
    assert!(consumer.recv(Some(Duration::from_millis(200))).unwrap().is_none(), "one too many");
}

/// Publishes these in a thread, which is not waited for where the test fails.
fn publish_all(publisher: &Arc<Publisher>, count: u64) -> JoinHandle<Result<(), ClientError>> {
    let publisher = Arc::clone(publisher);
    std::thread::spawn(move || {
        for number in 0..count {
            let _ = publisher.publish(body(number))?;
        }
        publisher.flush()
    })
}

#[test]
fn a_full_disk_blocks_by_name_and_all_goes_on_when_there_is_room() {
    let Some(bench) = Bench::start() else { return };
    bench.fill(40 * MIB);
    let other = bench.publisher("other", OnFull::Block);
    publish_all(&other, 1000).join().unwrap().unwrap();
    let publisher = bench.publisher("q", OnFull::Block);
    let published = publish_all(&publisher, COUNT);
    let confirmed = || publisher.counts().confirmed;
    let before = comes_to_stand(&publisher);
    bench.broker.wait_for_log("full: no space in the file system");
    assert!(before > 40 * MIB / BODY_BYTES as u64, "{before} are not what was free");

    // The other file goes, and the spill file takes its place.
    bench.free();
    let more = 16 * MIB / BODY_BYTES as u64;
    comes_to("going on", || confirmed() > before + more);
    comes_to_stand(&publisher);

    // With not a byte free, a purge makes room, and consuming does.
    bench.fill(u64::MAX);
    bench.assert_full();
    let before = confirmed();
    let mut connection = Connection::open(&bench.broker.options()).unwrap();
    assert_eq!(connection.queue_purge("other").unwrap().messages, 1000);
    comes_to("going on after a purge", || confirmed() > before + 500);
    let before = comes_to_stand(&publisher);
    // What little is acked makes room first for what the consumer takes next, and a slot is free
    // when all in it is acked; half of everything makes room for both.
    let mut consumer = bench.consumer("q");
    take(&mut consumer, 0..before / 2);
    comes_to("going on after acks", || confirmed() > before + before / 8);
    take(&mut consumer, before / 2..COUNT);
    assert_empty(&mut consumer);
    bench.assert_full();
    published.join().unwrap().unwrap();
    let counts = publisher.counts();
    assert_eq!((counts.confirmed, counts.duplicates, counts.failed), (COUNT, 0, 0));
    bench.end();
}

#[test]
fn a_disk_that_others_filled_refuses_by_name_until_they_make_room() {
    let Some(bench) = Bench::start() else { return };
    bench.fill(u64::MAX);
    bench.assert_full();
    let rejected = bench.publisher("rejects", OnFull::Reject);
    // Each publish has an answer of its own.
    let publish = |number| rejected.publish(body(number)).unwrap().wait().map_err(|e| e.code());
    let (mut accepted, mut refused) = (VecDeque::new(), 0);
    for number in 0..COUNT {
        match publish(number) {
            Ok(_) => accepted.push_back(number),
            Err(code) => {
                assert_eq!(code, Some(ErrorCode::DiskFull));
                refused += 1;
            }
        }
        if refused == 100 {
            break;
        }
    }
    assert_eq!(refused, 100, "{} were accepted", accepted.len());
    let count = accepted.len() as u64;
    assert!(count > 32 * MIB / BODY_BYTES as u64, "only {count} fit in memory");
    let publisher = bench.publisher("blocks", OnFull::Block);
    let published = publish_all(&publisher, count);
    comes_to_stand(&publisher);
    bench.broker.wait_for_log("full: no space in the file system");
    let mut consumer = bench.consumer("rejects");
    take(&mut consumer, accepted.drain(..10));
    consumer.close().unwrap();
    bench.assert_full();

    bench.free();
    published.join().unwrap().unwrap();
    comes_to("taken again", || publish(COUNT).is_ok());
    accepted.push_back(COUNT);
    for (queue, numbers) in [("rejects", accepted), ("blocks", (0..count).collect())] {
        let mut consumer = bench.consumer(queue);
        take(&mut consumer, numbers);
        assert_empty(&mut consumer);
    }
    // It says that it is well, and does not warn of it.
    let line = bench.broker.wait_for_log("state=\"ready\"");
    assert!(line.contains("INFO"), "{line}");
    bench.end();
}
