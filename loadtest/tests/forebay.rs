//! Smoke tests of the load test against the broker: every message arrives once, whole and in order.
//! No figure of speed is asserted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The broker's program: beside this test's, where a build of the whole workspace puts it; else
/// built now.
fn broker() -> &'static PathBuf {
    static BROKER: OnceLock<PathBuf> = OnceLock::new();
    BROKER.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_BIN_EXE_forebay-loadtest")).with_file_name("forebay");
        if !path.is_file() {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
            let built = cargo.args(["build", "--bin", "forebay"]).status().unwrap();
            assert!(built.success() && path.is_file(), "the broker is not at {}", path.display());
        }
        path
    })
}

/// Runs the load test unpinned with `--spawn --json`, expects success, gives the JSON.
fn measure(line: &str) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-loadtest"));
    command.args(line.split(' ')).arg("--spawn").arg("--forebay-binary").arg(broker());
    command.args(["--broker-core", "none", "--client-core", "none", "--json"]).arg(&json);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    for fault in ["lost", "duplicated", "reordered", "corrupt"] {
        assert_eq!(report[fault], 0, "{fault}: {report}");
    }
    assert_eq!(report["sent"], report["confirmed"], "{report}");
    report
}

#[test]
fn every_message_of_many_clients_arrives() {
    for client in ["wire", "blocking", "tokio"] {
        let clients = format!("--client {client} --producers 3 --consumers 2");
        for size in ["16 --count 30000", "1KiB --count 20000", "200KiB --count 200"] {
            let report = measure(&format!("throughput {clients} --size {size}"));
            assert_eq!(report["received"], report["sent"], "{report}");
        }
    }
}

#[test]
fn publishes_are_confirmed_one_by_one() {
    for client in ["wire", "blocking", "tokio"] {
        let line = format!("throughput --client {client} --connections 8 --count 2000");
        assert_eq!(measure(&line)["confirmed"], 2000);
    }
}

#[test]
fn what_is_due_is_sent_and_received() {
    for client in ["wire", "blocking", "tokio"] {
        let line = format!("latency --client {client} --rate 2000 --duration 300ms --warmup 100ms");
        let report = measure(&line);
        assert_eq!((&report["sent"], &report["messages"]), (&800.into(), &600.into()));
    }
}

#[test]
fn backlogs_come_back_whole() {
    for client in ["wire", "blocking", "tokio"] {
        let rates = "--rate 1000 --before 200ms --after 100ms --idle 100ms --consumers 2";
        let report = measure(&format!("backlog --client {client} --bytes 8MiB {rates} --warm"));
        assert_eq!(report["received"], report["sent"], "{report}");
        let more = &report["more"];
        assert_eq!(more["sent_digest"], more["received_digest"], "{report}");
        assert_eq!(report["phases"][0]["phase"], "before", "{report}");
        let asked = report["samples"].as_array().unwrap();
        assert!(asked.iter().any(|sample| sample["chunk_bytes"].as_u64() > Some(0)), "{report}");
    }
}

#[test]
fn many_queues_hold_a_backlog_together() {
    let report = measure("backlog --client wire --queues 300 --bytes 16MiB --idle 0 --warm");
    assert_eq!((&report["received"], &report["sent"]), (&32768.into(), &32768.into()));
}

#[test]
fn a_spike_comes_back_whole() {
    for client in ["wire", "blocking", "tokio"] {
        let rates = "--rate 1000 --drain 5000 --burst 3 --burst-time 300ms";
        let times = "--before 200ms --after 100ms --idle 0";
        let report = measure(&format!("spike --client {client} {rates} {times}"));
        assert_eq!(report["received"], report["sent"], "{report}");
    }
}

/// What a full broker refuses is sent again, in order, and waits meanwhile.
#[test]
fn a_spike_over_the_memory_limit_comes_back_whole() {
    for client in ["wire", "blocking"] {
        let rates = "--rate 1000 --drain 10000 --burst 8 --burst-time 1s --size 2KiB";
        let more = "--before 0 --after 0 --idle 0 --forebay-arg=--memory-limit=64MiB";
        let report = measure(&format!("spike --client {client} {rates} {more}"));
        assert_eq!(report["received"], report["sent"], "{report}");
        assert!(report["sent"].as_u64() > Some(79_000), "{report}");
    }
}

#[test]
fn durable_queues_confirm_and_deliver_everything() {
    for client in ["wire", "blocking", "tokio"] {
        let report = measure(&format!("durable --client {client} --consume --count 10000"));
        assert_eq!(report["received"], 10_000, "{report}");
        let report = measure(&format!("durable --client {client} --one-in-flight --count 50"));
        assert_eq!(report["confirmed"], 50, "{report}");
        assert!(report["p50_us"].as_f64() > Some(0.0), "{report}");
    }
    let report = measure("durable --client wire --queues 100 --count 20000");
    assert_eq!(report["confirmed"], 20_000, "{report}");
}

#[test]
fn a_broker_that_is_killed_has_everything_when_it_starts_again() {
    let report = measure("restart --journal-bytes 4MiB --more 5000");
    assert_eq!((&report["received"], &report["sent"]), (&9096.into(), &9096.into()));
    let more = &report["more"];
    assert!(more["serves_again_s"].as_f64() >= more["start_s"].as_f64(), "{report}");
}

#[test]
fn idle_connections_and_queues_are_held() {
    let report = measure("idle --connections 20 --queues 500 --duration 200ms");
    assert!(report["more"]["rss_bytes"].as_u64().unwrap() > 0, "{report}");
}
