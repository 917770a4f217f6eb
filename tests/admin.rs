//! The admin address of a real broker: health, readiness, metrics, and what peers may do to it.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::peer::Peer;
use common::{Broker, PATIENCE, forebay, forebay_on_small_disk, outcome};
use forebay::client::Connection;
use forebay::protocol::frame::Opcode;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const ADMIN: [&str; 2] = ["--admin", "127.0.0.1:0"];

/// A broker with an admin address, and that.
fn start(flags: &[&str]) -> (Broker, SocketAddr) {
    let broker = Broker::start(&[&ADMIN, flags].concat());
    let admin = admin_of(&broker);
    (broker, admin)
}

fn admin_of(broker: &Broker) -> SocketAddr {
    let line = broker.wait_for_log("admin: /healthz");
    line.rsplit_once("address=").expect(&line).1.trim().parse().unwrap()
}

fn connect(admin: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes; what comes back until the end, as far as it comes.
fn converse(admin: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(admin);
    // It may have been closed before all was sent.
    drop(stream.write_all(bytes));
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer));
    String::from_utf8(answer).unwrap()
}

/// Status and body.
fn get(admin: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let answer =
        converse(admin, format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    let status = head.split(' ').nth(1).expect(head).parse().expect(head);
    (status, body.to_owned())
}

fn state(admin: SocketAddr, path: &str) -> (u16, String) {
    let (status, body) = get(admin, path, "");
    assert_eq!((body.lines().count(), body.ends_with('\n')), (1, true), "{body}");
    (status, body.trim_end().to_owned())
}

/// Asks until the status is this one.
fn wait_for(admin: SocketAddr, path: &str, wanted: u16) -> String {
    let begun = now();
    loop {
        let (status, body) = state(admin, path);
        if status == wanted {
            return body;
        }
        assert!(begun.elapsed() < PATIENCE, "{path} is still {status}: {body}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[expect(clippy::disallowed_methods, reason = "the one clock function of this program")]
fn now() -> Instant {
    Instant::now()
}

/// The value of a series, which must be there once.
fn value(metrics: &str, series: &str) -> u64 {
    let values: Vec<_> =
        metrics.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).collect();
    let [value] = values[..] else { panic!("{series}: {values:?} in {metrics}") };
    value.parse().unwrap()
}

#[test]
fn a_broker_that_serves_is_well_and_ready_and_tells_its_figures() {
    let (broker, admin) = start(&["--shards", "2"]);
    assert_eq!(state(admin, "/healthz"), (200, "ok".to_owned()));
    assert_eq!(state(admin, "/readyz"), (200, "ready".to_owned()));
    let mut peer = Peer::open(broker.address);
    peer.create_queue("orders");
    peer.open_producer("orders", 1);
    peer.publish(1, 1, &["one", "two", "three"]);
    peer.expect(Opcode::Confirm);
    let (status, metrics) = get(admin, "/metrics", "");
    assert_eq!(status, 200);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    for (series, expected) in [
        ("forebay_queue_published_messages_total{queue=\"orders\"}", 3),
        ("forebay_queue_ready_messages{queue=\"orders\"}", 3),
        ("forebay_queue_ready_messages{queue=\"$other\"}", 0),
        ("forebay_shard_up{shard=\"0\"}", 1),
        ("forebay_shard_up{shard=\"1\"}", 1),
        ("forebay_ready", 1),
        ("forebay_memory_limit_bytes", 64 << 20),
    ] {
        assert_eq!(value(&metrics, series), expected, "{series}");
    }
    assert!(value(&metrics, "forebay_disk_limit_bytes") > 0);
    assert!(value(&metrics, "forebay_disk_free_bytes") > 0);
    // The next look is a new one, and shards are ticking.
    peer.publish(1, 4, &["four"]);
    peer.expect(Opcode::Confirm);
    let (_, later) = get(admin, "/metrics", "");
    assert_eq!(value(&later, "forebay_queue_ready_messages{queue=\"orders\"}"), 4);
    let ticks = "forebay_shard_ticks_total{shard=\"0\"}";
    assert!(value(&later, ticks) > value(&metrics, ticks));
}

#[test]
fn many_queues_have_figures_for_some_and_a_sum_for_the_rest() {
    let (broker, admin) = start(&["--shards", "1", "--memory-limit", "128MiB"]);
    let mut connection = Connection::open(&broker.options()).unwrap();
    for nth in 0..1500 {
        connection.queue_create(&format!("q{nth}"), &Default::default()).unwrap();
    }
    let (_, metrics) = get(admin, "/metrics", "");
    let subscriptions = |line: &&str| line.starts_with("forebay_queue_subscriptions{");
    assert_eq!(metrics.lines().filter(subscriptions).count(), 1001);
    assert_eq!(value(&metrics, "forebay_queue_subscriptions{queue=\"$other\"}"), 500);
    assert_eq!(value(&metrics, "forebay_shard_subscriptions{shard=\"0\"}"), 1500);
}

#[test]
fn an_admin_address_in_use_is_an_error_that_names_the_flag() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let place = tempfile::tempdir().unwrap();
    let mut command = forebay();
    command.args(["serve", "--log", "error", "--listen", "127.0.0.1:0", "--admin", &address]);
    let (code, out, err) = outcome(command.current_dir(place.path()));
    assert_eq!((code, out.as_str(), err.lines().count()), (Some(2), "", 1), "{err}");
    assert!(err.contains(&format!("--admin: address in use: {address}")), "{err}");
    assert!(err.contains("--admin off"), "{err}");
    let mut command = forebay();
    command.args(["serve", "--log", "error", "--admin", "192.0.2.1:7441", "--insecure"]);
    command.args(["--listen", "127.0.0.1:0"]).current_dir(place.path());
    let (code, _, err) = outcome(&mut command);
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains("--admin: cannot listen on 192.0.2.1:7441"), "{err}");
}

#[test]
fn a_damaged_disk_limit_is_an_error_that_names_its_file() {
    let place = tempfile::tempdir().unwrap();
    let data_dir = place.path().join("data");
    drop(Broker::start_in(forebay(), &data_dir, &[]));
    let file = data_dir.join("disk-limit");
    let text = std::fs::read_to_string(&file).unwrap();
    drop(Broker::start_in(forebay(), &data_dir, &[]));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "the first start decides");
    std::fs::write(&file, &text[..text.len() - 3]).unwrap();
    let mut command = forebay();
    command.args(["serve", "--log", "error", "--listen", "127.0.0.1:0", "--data-dir"]);
    let (code, _, err) = outcome(command.arg(&data_dir));
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains(file.to_str().unwrap()) && err.contains("--disk-limit"), "{err}");
}

#[test]
fn other_requests_are_answered_for_what_they_are() {
    let (_broker, admin) = start(&[]);
    assert_eq!(get(admin, "/", "").0, 200);
    assert_eq!(get(admin, "/nothing", "").0, 404);
    assert_eq!(get(admin, "/healthz?x=1", "").0, 200);
    let refused =
        converse(admin, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 405 ") && refused.contains("GET, HEAD"), "{refused}");
    let head = converse(admin, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
}

#[test]
fn with_a_token_the_figures_want_it_and_health_does_not() {
    let (_broker, admin) = start(&["--token", "s3cret"]);
    assert_eq!(get(admin, "/healthz", "").0, 200);
    assert_eq!(get(admin, "/readyz", "").0, 200);
    for headers in ["", "Authorization: Bearer s3cre\r\n", "Authorization: s3cret\r\n"] {
        let (status, body) = get(admin, "/metrics", headers);
        assert_eq!(status, 401);
        assert!(!body.contains("forebay_"), "{body}");
    }
    assert_eq!(get(admin, "/metrics", "Authorization: Bearer s3cret\r\n").0, 200);
}

#[test]
fn garbage_floods_and_slow_requests_hurt_nobody() {
    let (broker, admin) = start(&[]);
    let mut peer = Peer::open(broker.address);
    peer.create_queue("q");
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    let long_header = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(1 << 20));
    let long_path = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for bytes in [
        &b"\0\x01\x02\xff\xfe garbage\r\n\r\n"[..],
        b"FBAY\x01\0\0\0\0\0\0\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        many_headers.as_bytes(),
        long_header.as_bytes(),
        long_path.as_bytes(),
    ] {
        let answer = converse(admin, bytes);
        let told = answer.is_empty() || answer.starts_with("HTTP/1.1 ");
        assert!(told, "{answer}");
        assert_eq!(get(admin, "/healthz", "").0, 200);
    }
    // Heads that never end: there are more than may be, and who comes last is served all the same.
    let slow: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect(admin);
            drop(stream.write_all(b"GET /metrics HTTP/1.1\r\nHost"));
            stream
        })
        .collect();
    assert_eq!(get(admin, "/readyz", "").0, 200);
    assert_eq!(get(admin, "/metrics", "").0, 200);
    // They are ended, without having said more.
    for mut stream in slow {
        drop(stream.read_to_end(&mut Vec::new()));
    }
    peer.open_producer("q", 1);
    peer.publish(1, 1, &["as ever"]);
    peer.expect(Opcode::Confirm);
}

#[test]
fn a_broker_that_drains_is_well_and_not_ready() {
    let (broker, admin) = start(&["--drain-timeout", "600s"]);
    let mut peer = Peer::open(broker.address);
    peer.create_queue("q");
    peer.open_producer("q", 1);
    peer.open_consumer("q", 2, 10);
    peer.publish(1, 1, &["held"]);
    peer.expect(Opcode::Deliver);
    broker.signal("TERM");
    peer.expect(Opcode::Drain);
    let (status, body) = state(admin, "/readyz");
    assert_eq!(status, 503);
    assert!(body.starts_with("draining"), "{body}");
    assert_eq!(state(admin, "/healthz").0, 200);
    drop(peer);
    let (status, _, log) = broker.wait();
    assert_eq!(status.code(), Some(0), "{log}");
    TcpStream::connect(admin).unwrap_err();
}

#[test]
fn a_data_dir_that_cannot_be_written_is_not_ready_until_it_can() {
    let (broker, admin) = start(&[]);
    // Between two probes: what a probe writes is put in place under its name, and now something
    // else is in the way.
    let begun = now();
    while value(&get(admin, "/metrics", "").1, "forebay_probes_total") == 0 {
        assert!(begun.elapsed() < PATIENCE, "nobody probes");
    }
    let obstacle = broker.data_dir().join("probe.new");
    std::fs::create_dir(&obstacle).unwrap();
    let why = wait_for(admin, "/readyz", 503);
    assert!(why.starts_with("writing to the data directory fails: "), "{why}");
    assert_eq!(state(admin, "/healthz").0, 200, "restarting it would help nobody");
    let (_, metrics) = get(admin, "/metrics", "");
    assert_eq!(value(&metrics, "forebay_ready"), 0);
    assert!(value(&metrics, "forebay_probe_failures_total") >= 3);
    // It serves on: what is in memory needs no disk.
    Peer::open(broker.address).create_queue("q");
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(wait_for(admin, "/readyz", 200), "ready");
}

#[test]
fn a_full_disk_is_not_ready_until_there_is_room() {
    let place = tempfile::tempdir().unwrap();
    let Some(command) = forebay_on_small_disk(place.path(), "1m") else { return };
    let broker = Broker::start_in(command, &place.path().join("data"), &ADMIN);
    let admin = admin_of(&broker);
    assert_eq!(state(admin, "/readyz").0, 200);
    let filler = broker.see(place.path()).join("filler");
    // To the last byte.
    drop(std::fs::write(&filler, vec![1; 2 << 20]));
    let why = wait_for(admin, "/readyz", 503);
    assert!(why.contains("No space left on device"), "{why}");
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(wait_for(admin, "/readyz", 200), "ready");
}
