//! Smoke tests of the whole program against the bare targets: small counts, every message must
//! arrive once, whole and in order, and the JSON must say so. No figure of speed is asserted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use std::process::{Command, Output};

fn loadtest(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-loadtest"));
    command.args(args).output().expect("the program starts")
}

/// Runs it unpinned with `--spawn --json`, expects success, gives the JSON.
fn measure(args: &[&str]) -> Value {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let mut all = args.to_vec();
    all.extend(["--spawn", "--broker-core", "none", "--client-core", "none", "--json"]);
    all.push(json.to_str().unwrap());
    let output = loadtest(&all);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap()
}

fn assert_sound(report: &Value) {
    for fault in ["lost", "duplicated", "reordered", "corrupt"] {
        assert_eq!(report[fault], 0, "{fault}: {report}");
    }
    assert_eq!(report["sent"], report["confirmed"], "{report}");
    assert!(report["messages_per_s"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["peak_rss_bytes"].as_u64().unwrap() > 0, "{report}");
    assert!(report["broker_cpu_s_per_million"].as_f64().is_some(), "{report}");
}

#[test]
fn relay_carries_every_message() {
    let report = measure(&["throughput", "--target", "baseline-relay", "--count", "50000"]);
    assert_sound(&report);
    assert_eq!((&report["messages"], &report["received"]), (&50_000.into(), &50_000.into()));
    assert_eq!(report["parameters"]["size"], 128);
    for quantile in ["p50_us", "p90_us", "p99_us", "p999_us", "p9999_us", "max_us"] {
        assert!(report[quantile].as_f64().unwrap() > 0.0, "{quantile}");
    }
}

#[test]
fn relay_carries_messages_of_any_size_between_many_clients() {
    for size in ["16", "1KiB", "200KiB"] {
        let count = if size == "200KiB" { "400" } else { "30000" };
        let clients = ["--producers", "3", "--consumers", "4", "--batch", "7", "--window", "64"];
        let mut args = vec!["throughput", "--target", "baseline-relay", "--count", count];
        args.extend(["--size", size]);
        args.extend(clients);
        let report = measure(&args);
        assert_sound(&report);
        assert_eq!(report["received"].to_string(), count);
    }
}

#[test]
fn echo_confirms_one_message_in_flight_on_each_connection() {
    let target = ["throughput", "--target", "baseline-echo", "--connections", "16"];
    let report = measure(&[&target[..], &["--count", "5000"]].concat());
    assert_sound(&report);
    assert_eq!(report["confirmed"], 5000);
    assert_eq!(report["p50_us"], Value::Null);
}

#[test]
fn latency_counts_what_was_due() {
    for (target, extra) in [("baseline-relay", "--busy-poll"), ("baseline-echo", "--rate=2000")] {
        let times = ["--duration", "300ms", "--warmup", "100ms"];
        let mut args = vec!["latency", "--target", target, extra];
        args.extend(times);
        let report = measure(&args);
        assert_sound(&report);
        // What is sent follows from the schedule, however slow the machine is.
        let rate = if extra == "--busy-poll" { 10_000 } else { 2_000 };
        assert_eq!(report["sent"], rate * 4 / 10, "{report}");
        assert_eq!(report["messages"], rate * 3 / 10, "{report}");
        assert!(report["p50_us"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn one_in_flight_waits_for_each_answer() {
    let times = ["--duration", "200ms", "--warmup", "50ms", "--one-in-flight"];
    let args = [&["latency", "--target", "baseline-echo"], &times[..]].concat();
    let report = measure(&args);
    assert_sound(&report);
    assert_eq!(report["send_lag_p99_us"], Value::Null);
}

/// The digests of all that was sent and of all that came back.
fn assert_all_came_back(report: &Value) {
    assert_sound(report);
    assert_eq!(report["received"], report["sent"], "{report}");
    assert_eq!(report["more"]["sent_digest"], report["more"]["received_digest"], "{report}");
    assert_eq!(report["more"]["cut_short"], Value::Null, "{report}");
}

fn phases(report: &Value) -> Vec<&str> {
    let phases = report["phases"].as_array().unwrap();
    phases.iter().map(|phase| phase["phase"].as_str().unwrap()).collect()
}

#[test]
fn a_backlog_is_filled_and_drained() {
    let report =
        measure(&["backlog", "--target", "baseline-relay", "--bytes", "8MiB", "--idle", "0"]);
    assert_all_came_back(&report);
    assert_eq!((&report["sent"], &report["messages"]), (&8192.into(), &8192.into()));
    for figure in ["drain_messages_per_s", "rss_after_fill_bytes", "rss_after_idle_bytes"] {
        assert!(report["more"][figure].as_f64().unwrap() > 0.0, "{figure}: {report}");
    }
    assert!(!report["samples"].as_array().unwrap().is_empty());
}

#[test]
fn publishing_goes_on_while_a_backlog_drains() {
    let times = ["--before", "200ms", "--after", "200ms", "--idle", "0", "--warm"];
    let rates = ["--rate", "2000", "--drain", "20000", "--bytes", "4MiB", "--consumers", "2"];
    let args = [&["backlog", "--target", "baseline-relay"], &times[..], &rates[..]].concat();
    let report = measure(&args);
    assert_all_came_back(&report);
    assert_eq!(phases(&report)[..3], ["before", "filling", "draining"], "{report}");
    for phase in report["phases"].as_array().unwrap() {
        assert!(phase["p99_us"].as_f64().unwrap() > 0.0, "{phase}");
    }
    // Twice 4096 and what was due meanwhile.
    assert!(report["sent"].as_u64().unwrap() > 8192 + 800, "{report}");
    // 4096 messages at 20000/s, but for what was allowed ahead.
    assert!(report["more"]["drain_seconds"].as_f64().unwrap() > 0.15, "{report}");
}

#[test]
fn a_spike_is_drained() {
    let rates = ["--rate", "1000", "--drain", "5000", "--burst", "3", "--burst-time", "300ms"];
    let times = ["--before", "200ms", "--after", "200ms", "--idle", "0"];
    let args = [&["spike", "--target", "baseline-relay"], &times[..], &rates[..]].concat();
    let report = measure(&args);
    assert_all_came_back(&report);
    assert_eq!(phases(&report), ["before", "burst", "draining", "after"], "{report}");
    // Due is what the schedule says: 15000/s for 300 ms, whatever the machine does.
    assert!(report["phases"][1]["messages"].as_u64().unwrap() >= 4499, "{report}");
    assert!(report["more"]["time_to_drain_s"].as_f64().unwrap() > 0.3, "{report}");
}

#[test]
fn disks_are_written_and_read() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("disk");
    let file = ["--disk-file", file.to_str().unwrap()];
    for target in ["baseline-disk-write", "baseline-disk-sync", "baseline-disk-read"] {
        let sizes = ["--size", "64KiB", "--bytes", "4MiB", "--file-bytes", "1MiB"];
        let args = [&["disk", "--target", target], &sizes[..], &file[..]].concat();
        let report = measure(&args);
        assert_eq!(report["messages"], 64, "{report}");
        assert!(report["p99_us"].as_f64().unwrap() > 0.0, "{report}");
        let args = [&["backlog", "--target", target, "--bytes", "4MiB"], &file[..]].concat();
        let report = measure(&args);
        let drained = report["more"]["drain_messages_per_s"].as_f64();
        assert_eq!(drained.is_some(), target.ends_with("read"), "{report}");
        assert_eq!(report["messages"] == 4096, drained.is_none(), "{report}");
    }
}

#[test]
fn synced_writes_stand_beside_durable_queues() {
    for more in [&[][..], &["--one-in-flight"]] {
        let args = ["durable", "--target", "baseline-disk-sync", "--duration", "100ms"];
        let report = measure(&[&args[..], more].concat());
        assert!(report["messages"].as_u64() > Some(0), "{report}");
        assert!(report["p50_us"].as_f64() > Some(0.0), "{report}");
    }
    let args = ["durable", "--target", "baseline-echo", "--one-in-flight", "--count", "500"];
    let report = measure(&args);
    assert_sound(&report);
    assert!(report["p50_us"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn idle_connections_are_watched() {
    let scenario = ["idle", "--target", "baseline-echo", "--connections", "50"];
    let report = measure(&[&scenario[..], &["--duration", "200ms"]].concat());
    assert!(report["more"]["rss_bytes"].as_u64().unwrap() > 0);
    assert!(report["broker_cpu_percent"].as_f64().is_some());
    assert_eq!(report["messages"], 0);
}

#[test]
fn a_comparison_runs_each_target_in_each_round() {
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("comparison.json");
    let compare = "compare --repetitions 2 --repeats 0 --targets baseline-relay,baseline-echo";
    let scenario = "latency --spawn --rate 1000 --duration 100ms --warmup 0 --broker-core none \
                    --client-core none --json";
    let mut args: Vec<&str> = compare.split(' ').chain(scenario.split_whitespace()).collect();
    args.push(json.to_str().unwrap());
    let output = loadtest(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let targets = |round: &Value| [round[0]["target"].clone(), round[1]["target"].clone()];
    for round in 0..2 {
        assert_eq!(targets(&found["rounds"][round]), ["baseline-relay", "baseline-echo"]);
    }
    let rows = found["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["figure"] == "p50_us" && row["ratio"] != Value::Null);
    assert_eq!(row.unwrap()["target"], "baseline-echo");
}

#[test]
fn what_cannot_be_run_is_said_in_one_line() {
    let no_target = loadtest(&["throughput", "--target", "baseline-relay"]);
    let no_consumer =
        loadtest(&["throughput", "--target", "baseline-relay", "--spawn", "--connections", "2"]);
    let mut outputs = vec![no_target, no_consumer];
    for line in [
        "backlog --spawn --target nats",
        "backlog --spawn --target baseline-echo",
        "spike --spawn --target baseline-disk-write",
        "spike --spawn --target baseline-relay --rate 500 --drain 400",
        "latency --spawn --target baseline-disk-read",
        "disk --spawn --target forebay",
        "disk --target baseline-disk-read --fresh",
        "durable --spawn --target nats",
        "durable --target baseline-disk-write",
        "restart --spawn --target baseline-relay",
    ] {
        outputs.push(loadtest(&line.split(' ').collect::<Vec<_>>()));
    }
    for output in outputs {
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}
