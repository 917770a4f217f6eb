//! How the real binary starts, refuses to, and ends.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::peer::Peer;
use common::{Broker, forebay, forebay_with_files, outcome};
use forebay::protocol::frame::Opcode;
use forebay::protocol::hot::{AckDone, AckRange, Confirm};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

/// Runs `serve` with these flags, which must be refused: its one line.
fn refused(flags: &[&str]) -> String {
    let place = tempfile::tempdir().unwrap();
    let mut command = forebay();
    command.args(["serve", "--log", "error"]).args(flags).current_dir(place.path());
    let (code, out, err) = outcome(&mut command);
    assert_eq!(code, Some(2), "{err}");
    assert_eq!(out, "");
    assert_eq!(err.lines().count(), 1, "{err}");
    err
}

#[test]
fn it_says_one_line_when_it_is_ready_and_ends_well_on_either_signal() {
    for signal in ["TERM", "INT"] {
        let broker = Broker::start(&[]);
        assert_ne!(broker.address.port(), 0);
        let _connection = TcpStream::connect(broker.address).unwrap();
        broker.wait_for_log("memory_limit_bytes=67108864");
        broker.signal(signal);
        let (status, out, log) = broker.wait();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(out, "");
        assert!(log.contains("draining") && log.contains("drained"), "{log}");
    }
}

#[test]
fn the_log_says_how_files_are_written() {
    let broker = Broker::start(&["--disk-backend", "threads"]);
    broker.wait_for_log("disk backend=\"threads\"");
    // Whichever the system allows, and why not the other.
    let broker = Broker::start(&[]);
    broker.wait_for_log("backend=\"");
}

#[test]
fn an_address_in_use_is_one_line_and_exit_code_2() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let line = refused(&["--listen", &address]);
    assert!(line.contains(&format!("address in use: {address}")), "{line}");
}

#[test]
fn a_data_dir_in_use_is_one_line_and_exit_code_2() {
    let place = tempfile::tempdir().unwrap();
    let data_dir = place.path().join("data");
    let broker = Broker::start_in(forebay(), &data_dir, &[]);
    let path = data_dir.to_str().unwrap();
    let line = refused(&["--listen", "127.0.0.1:0", "--data-dir", path]);
    let holder = format!("{path} is held by process {}", broker.pid());
    assert!(line.contains("data dir in use") && line.contains(&holder), "{line}");
    // However its holder ends, the directory is free then.
    broker.signal("KILL");
    let (status, ..) = broker.wait();
    assert_eq!(status.signal(), Some(9));
    Broker::start_in(forebay(), &data_dir, &[]);
}

#[test]
fn a_bad_option_is_one_line_and_exit_code_2() {
    for (flags, expected) in [
        (["--memory-limit", "1MiB"], "--memory-limit: 1MiB is too little"),
        (["--shards", "17"], "--shards: `17` is not a number of shards"),
        (["--listen", "0.0.0.0:0"], "--listen: 0.0.0.0:0 is open to other machines"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--disk-backend", "fast"], "--disk-backend: `fast` is not a way to the disk"),
        (["--pin", "1023"], "cannot pin a shard to core 1023"),
        (["--data-dir", "/proc/none"], "cannot use the data dir /proc/none"),
        (["--no-such", "flag"], "--no-such"),
    ] {
        let line = refused(&flags);
        assert!(line.contains(expected), "{line}");
    }
    let line = refused(&["--listen", "192.0.2.1:7440", "--insecure"]);
    assert!(line.contains("cannot listen on 192.0.2.1:7440"), "{line}");
}

#[test]
fn file_and_environment_count_and_unknown_keys_are_named() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("forebay.toml");
    std::fs::write(&file, "memory_limit = \"96MiB\"\nconnections_max = 11\n").unwrap();
    let print = || {
        let mut command = forebay();
        command.args(["serve", "--print-config"]).env("FOREBAY_CONFIG", &file);
        command.env("FOREBAY_CONNECTIONS_MAX", "22");
        command
    };
    let (code, out, err) = outcome(&mut print());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("memory_limit = \"96MiB\""), "{out}");
    assert!(out.contains("connections_max = 22"), "{out}");
    let (_, out, _) = outcome(print().args(["--connections-max", "33"]));
    assert!(out.contains("connections_max = 33"), "{out}");
    std::fs::write(&file, "memory = 1\n").unwrap();
    let (code, _, err) = outcome(&mut print());
    assert_eq!(code, Some(2));
    assert!(err.contains("there is no setting `memory`") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_flood_beyond_open_files_is_shed_and_the_broker_recovers() {
    const FILES: u64 = 48;
    let place = tempfile::tempdir().unwrap();
    let data_dir = place.path().join("data");
    let broker = Broker::start_in(forebay_with_files(FILES), &data_dir, &["--shards", "1"]);
    let mut witness = Peer::open(broker.address);
    let mut flood: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(broker.address).unwrap()).collect();
    // Who is not served hears it (the end, a reset, a refusal), though nothing was sent. All have
    // heard when the one who came last has, for a shard takes them in order.
    let is_served = |stream: &mut TcpStream, wait_ms| {
        stream.set_read_timeout(Some(Duration::from_millis(wait_ms))).unwrap();
        let read = stream.read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert!(!is_served(&mut flood.pop().unwrap(), 60_000));
    let served = flood.iter_mut().filter_map(|stream| is_served(stream, 20).then_some(())).count();
    assert!((8..FILES as usize).contains(&served), "{served} are served");
    witness.create_queue("flooded");
    drop(flood);
    witness.create_queue("after");
    Peer::open(broker.address).create_queue("by-another");
    broker.signal("TERM");
    let (status, _, log) = broker.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn clients_are_told_of_a_drain_and_get_their_confirms() {
    let broker = Broker::start(&[]);
    let mut peer = Peer::open(broker.address);
    peer.create_queue("q");
    peer.open_producer("q", 1);
    let batches = 200;
    for nth in 0..batches {
        peer.publish(1, nth + 1, &["body"]);
    }
    broker.signal("TERM");
    let (mut confirmed, mut told) = (0, false);
    while let Some((header, payload)) = peer.read_frame() {
        match Opcode::from_u8(header.opcode) {
            Some(Opcode::Confirm) => confirmed = Confirm::decode(&payload).unwrap().sequence,
            Some(Opcode::Drain) => told = true,
            // What came after the signal was refused, not lost.
            Some(Opcode::PublishError) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(told && confirmed <= batches);
    let (status, _, log) = broker.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

/// A consumer that holds a message that it has not acked.
fn holder(address: SocketAddr) -> Peer {
    let mut peer = Peer::open(address);
    peer.create_queue("q");
    peer.open_producer("q", 1);
    peer.open_consumer("q", 2, 10);
    peer.publish(1, 1, &["held"]);
    peer.expect(Opcode::Deliver);
    peer
}

#[test]
fn a_drain_waits_for_acks_and_no_longer() {
    let broker = Broker::start(&["--drain-timeout", "600s"]);
    let mut peer = holder(broker.address);
    broker.signal("TERM");
    peer.expect(Opcode::Drain);
    peer.send(Opcode::Ack, 0, 7, &AckRange { handle: 2, first: 1, last: 1 }.encode());
    let (header, payload) = peer.expect(Opcode::AckDone);
    assert_eq!((header.correlation, AckDone::decode(&payload).unwrap().acked), (7, 1));
    peer.expect_end();
    let (status, _, log) = broker.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_drain_ends_when_its_time_is_over() {
    let broker = Broker::start(&["--drain-timeout", "300ms"]);
    let mut peer = holder(broker.address);
    broker.signal("TERM");
    peer.expect(Opcode::Drain);
    peer.expect_end();
    let (status, _, log) = broker.wait();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("TERM", "INT", 130)] {
        let broker = Broker::start(&["--drain-timeout", "600s"]);
        let mut peer = holder(broker.address);
        broker.signal(first);
        peer.expect(Opcode::Drain);
        broker.signal(second);
        let (status, _, log) = broker.wait();
        assert_eq!(status.code(), Some(code), "{log}");
    }
}
