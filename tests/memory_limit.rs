//! A real broker keeps to its memory limit whatever is published, and gives memory back.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Broker, PATIENCE, forebay, outcome};
use forebay::limits::{SPILL_EXTENT_SLOTS, SPILL_SLOT_BYTES};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// What `common` starts brokers with.
const LIMIT: u64 = 64 * MIB;
/// By which a spill file grows and shrinks at most.
const EXTENT: u64 = SPILL_EXTENT_SLOTS as u64 * SPILL_SLOT_BYTES as u64;
/// Over the limit, for what is no message.
const ROOM: u64 = LIMIT / 10 + 64 * MIB;

fn resident_bytes(broker: &Broker) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", broker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn run(broker: &Broker, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = forebay();
    command.args(arguments).args(["--server", &broker.address.to_string()]);
    let (code, _, err) = outcome(&mut command);
    (code, err)
}

#[test]
fn memory_stays_under_the_limit_and_comes_back() {
    let broker = Broker::start(&["--disk-limit", "0"]);
    let idle = resident_bytes(&broker);
    assert!(idle < 32 * MIB, "{idle} bytes when idle");
    for (queue, size) in [("small", "16"), ("middle", "1024"), ("large", "1048576")] {
        assert_eq!(run(&broker, &["queue", "create", queue, "--on-full", "reject"]).0, Some(0));
        // Far more than fits.
        let count = (4 * LIMIT / size.parse::<u64>().unwrap()).to_string();
        let (code, err) = run(&broker, &["publish", queue, "--count", &count, "--size", size]);
        assert_ne!(code, Some(0));
        assert!(err.contains("memory"), "{err}");
        let full = resident_bytes(&broker);
        assert!(full <= LIMIT + ROOM, "{full} bytes, full of {queue} messages");
        assert!(full > LIMIT / 2, "{full} bytes are not full");
        assert_eq!(run(&broker, &["ping"]).0, Some(0));
        assert_eq!(run(&broker, &["queue", "delete", queue]).0, Some(0));
        falls_below(&broker, idle + 16 * MIB);
    }
}

/// As the file system counts it.
fn disk_bytes(broker: &Broker) -> u64 {
    let entries = std::fs::read_dir(broker.data_dir()).unwrap().map(|entry| entry.unwrap());
    let spill = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("spill-"));
    spill.map(|entry| entry.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn a_spike_goes_to_disk_and_comes_back_in_order_and_leaves_nothing() {
    const COUNT: u64 = 200_000;
    let broker = Broker::start(&["--disk-limit", "1GiB", "--spill-reserve", "0"]);
    let idle = resident_bytes(&broker);
    assert_eq!(run(&broker, &["queue", "create", "spike"]).0, Some(0));
    let count = COUNT.to_string();
    let (code, err) = run(&broker, &["publish", "spike", "--count", &count, "--size", "1024"]);
    assert_eq!(code, Some(0), "{err}");
    let full = resident_bytes(&broker);
    assert!(full <= LIMIT + ROOM, "{full} bytes in memory");
    let spilled = disk_bytes(&broker);
    assert!(spilled > COUNT * 1024 - LIMIT, "{spilled} bytes on disk");

    let mut command = forebay();
    command.args(["consume", "spike", "--server", &broker.address.to_string()]);
    let mut consumer = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(consumer.stdout.take().unwrap()).lines();
    let mut next = 0;
    for line in lines.map(Result::unwrap) {
        let number: String = line.chars().take_while(char::is_ascii_digit).collect();
        assert_eq!((number.parse(), line.len()), (Ok(next), 1024));
        next += 1;
    }
    assert_eq!(next, COUNT);
    assert!(consumer.wait().unwrap().success());
    assert!(resident_bytes(&broker) <= LIMIT + ROOM);
    falls_below(&broker, idle + 16 * MIB);

    // A purge leaves as little, without reading anything.
    let (code, err) = run(&broker, &["publish", "spike", "--count", "150", "--size", "1MiB"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(resident_bytes(&broker) <= LIMIT + ROOM);
    assert_eq!(run(&broker, &["queue", "purge", "spike"]).0, Some(0));
    falls_below(&broker, idle + 16 * MIB);
    // What was being made at that moment is there for the next.
    let trims = (0..5).map(|_| {
        assert_eq!(run(&broker, &["trim"]).0, Some(0));
        disk_bytes(&broker)
    });
    assert_eq!(trims.min(), Some(0));
}

#[test]
fn disk_over_the_reserve_goes_back_within_a_minute_of_calm_and_all_of_it_by_a_trim() {
    const RESERVE: u64 = 96 * MIB;
    let broker = Broker::start(&["--disk-limit", "1GiB", "--spill-reserve", "96MiB"]);
    assert_eq!(run(&broker, &["queue", "create", "spike"]).0, Some(0));
    let (code, err) = run(&broker, &["publish", "spike", "--count", "400", "--size", "1MiB"]);
    assert_eq!(code, Some(0), "{err}");
    let spilled = disk_bytes(&broker);
    assert!(spilled > 400 * MIB - LIMIT, "{spilled} bytes on disk");
    assert_eq!(run(&broker, &["queue", "purge", "spike"]).0, Some(0));
    // Nobody asks for it. `PATIENCE` is the minute.
    comes_to(|| disk_bytes(&broker) < RESERVE + EXTENT, "the spill file stays large");
    assert!(disk_bytes(&broker) >= RESERVE, "the reserve stays");
    // By hand the reserve goes too.
    let mut trim = forebay();
    trim.args(["trim", "--json", "--server", &broker.address.to_string()]);
    let (code, out, err) = outcome(&mut trim);
    assert_eq!((code, disk_bytes(&broker)), (Some(0), 0), "{out} {err}");
}

/// Memory goes back when the broker next looks, not at once.
fn falls_below(broker: &Broker, bytes: u64) {
    comes_to(|| resident_bytes(broker) < bytes, "memory stays taken");
}

/// Looks until it is so.
fn comes_to(is_so: impl Fn() -> bool, else_what: &str) {
    let (_never, timer) = mpsc::sync_channel::<()>(0);
    let step = Duration::from_millis(50);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if is_so() {
            return;
        }
        let _ = timer.recv_timeout(step);
    }
    panic!("{else_what}");
}
