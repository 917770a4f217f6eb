//! A real broker keeps to its memory limit whatever is published, and gives memory back.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Broker, PATIENCE, forebay, outcome};
use std::sync::mpsc;
use std::time::Duration;

const MIB: u64 = 1 << 20;
/// What `common` starts brokers with.
const LIMIT: u64 = 64 * MIB;

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
        assert!(full <= LIMIT + LIMIT / 10 + 64 * MIB, "{full} bytes, full of {queue} messages");
        assert!(full > LIMIT / 2, "{full} bytes are not full");
        assert_eq!(run(&broker, &["ping"]).0, Some(0));
        assert_eq!(run(&broker, &["queue", "delete", queue]).0, Some(0));
        falls_below(&broker, idle + 16 * MIB);
    }
}

#[test]
fn what_memory_cannot_hold_goes_to_disk_and_both_come_back() {
    let broker = Broker::start(&["--disk-limit", "1GiB", "--spill-reserve", "0"]);
    let idle = resident_bytes(&broker);
    for (queue, size) in [("small", "16"), ("middle", "1024"), ("large", "1048576")] {
        let count = (4 * LIMIT / size.parse::<u64>().unwrap()).to_string();
        let published = run(&broker, &["publish", queue, "--count", &count, "--size", size]);
        assert_eq!(published, (Some(0), String::new()));
        let full = resident_bytes(&broker);
        assert!(full <= LIMIT + LIMIT / 10 + 64 * MIB, "{full} bytes, full of {queue} messages");
        assert_eq!(run(&broker, &["queue", "purge", queue, "--yes"]).0, Some(0));
        falls_below(&broker, idle + 16 * MIB);
    }
}

/// Memory goes back when the broker next looks, not at once.
fn falls_below(broker: &Broker, bytes: u64) {
    let (_never, timer) = mpsc::sync_channel::<()>(0);
    let step = Duration::from_millis(50);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if resident_bytes(broker) < bytes {
            return;
        }
        let _ = timer.recv_timeout(step);
    }
    panic!("{} bytes stay in memory", resident_bytes(broker));
}
