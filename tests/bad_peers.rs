//! Peers that misbehave on real sockets: each hears why, and none costs another anything.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::Broker;
use common::peer::Peer;
use forebay::protocol::error::ErrorCode;
use forebay::protocol::frame::{FrameHeader, Opcode, VERSION, preamble};
use std::io::Write;
use std::net::SocketAddr;

/// Somebody who behaves, before and after.
struct Witness {
    peer: Peer,
    published: u64,
}

impl Witness {
    fn new(address: SocketAddr) -> Witness {
        let mut peer = Peer::open(address);
        peer.create_queue("witness");
        peer.open_producer("witness", 1);
        Witness { peer, published: 0 }
    }

    fn is_served(&mut self) {
        self.published += 1;
        self.peer.publish(1, self.published, &["x"]);
        self.peer.expect(Opcode::Confirm);
    }
}

/// What a new connection that sends this, and goes on sending, is told before the end.
fn told(address: SocketAddr, bytes: &[u8]) -> (ErrorCode, String) {
    let mut peer = Peer::connect(address);
    peer.stream.write_all(bytes).unwrap();
    // What is still on its way when the broker ends the connection must not cost the reason.
    let _ = peer.stream.write_all(&[0xEE; 100_000]);
    peer.read_preamble();
    let told = peer.expect_error();
    peer.expect_end();
    told
}

#[test]
fn garbage_gets_a_reason_and_costs_nobody_anything() {
    let broker = Broker::start(&[]);
    let mut witness = Witness::new(broker.address);
    let header = |opcode: u8, payload_bytes: u32| {
        let header = FrameHeader { opcode, payload_bytes, ..FrameHeader::default() };
        [&preamble(VERSION)[..], &header.encode()].concat()
    };
    for (bytes, code) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ErrorCode::BadPreamble),
        (vec![0; 64], ErrorCode::BadPreamble),
        (preamble(99).to_vec(), ErrorCode::UnsupportedVersion),
        (header(Opcode::Hello as u8, u32::MAX), ErrorCode::FrameTooLarge),
        (header(Opcode::Publish as u8, 1 << 20), ErrorCode::FrameTooLarge),
        (header(Opcode::Hello as u8, 16), ErrorCode::BadFrame),
        (header(Opcode::Ping as u8, 0), ErrorCode::HelloExpected),
    ] {
        let (found, text) = told(broker.address, &bytes);
        assert_eq!(found, code, "{text}");
        assert!(!text.is_empty());
        witness.is_served();
    }
}

#[test]
fn nobody_comes_in_without_the_token() {
    let broker = Broker::start(&["--token", "open sesame"]);
    for token in [None, Some(""), Some("open"), Some("open sesame "), Some("Open sesame")] {
        let mut peer = Peer::connect(broker.address);
        peer.stream.write_all(&preamble(VERSION)).unwrap();
        peer.send_hello(token);
        assert_eq!(peer.read_preamble(), Some(VERSION));
        let (code, text) = peer.expect_error();
        assert_eq!(code, ErrorCode::BadToken, "{text}");
        assert!(!text.contains("sesame"));
        peer.expect_end();
    }
    let mut peer = Peer::connect(broker.address);
    peer.stream.write_all(&preamble(VERSION)).unwrap();
    peer.send_hello(Some("open sesame"));
    peer.read_preamble();
    peer.expect(Opcode::HelloOk);
}

#[test]
fn who_says_nothing_or_never_ends_a_frame_is_told_so() {
    let broker = Broker::start(&["--hello-timeout", "200ms", "--frame-timeout", "300ms"]);
    let mut witness = Witness::new(broker.address);
    let mut silent = Peer::connect(broker.address);
    let mut slow = Peer::open(broker.address);
    let half = FrameHeader::new(Opcode::QueueList, 0, 40).encode();
    slow.stream.write_all(&half).unwrap();
    silent.read_preamble();
    assert_eq!(silent.expect_error().0, ErrorCode::Timeout);
    silent.expect_end();
    assert_eq!(slow.expect_error().0, ErrorCode::Timeout);
    slow.expect_end();
    witness.is_served();
}

#[test]
fn a_connection_that_comes_byte_by_byte_is_served() {
    let broker = Broker::start(&[]);
    let mut peer = Peer::connect(broker.address);
    let mut bytes = preamble(VERSION).to_vec();
    let hello = forebay::protocol::control::Request::Hello(Default::default());
    let payload = hello.encode();
    bytes.extend(FrameHeader::new(Opcode::Hello, 0, payload.len()).encode());
    bytes.extend(payload);
    bytes.extend(FrameHeader { correlation: 5, ..FrameHeader::new(Opcode::Ping, 0, 0) }.encode());
    for byte in bytes {
        peer.stream.write_all(&[byte]).unwrap();
    }
    assert_eq!(peer.read_preamble(), Some(VERSION));
    peer.expect(Opcode::HelloOk);
    let (pong, _) = peer.expect(Opcode::Pong);
    assert_eq!(pong.correlation, 5);
}

#[test]
fn a_connection_over_the_limit_is_refused_by_name() {
    let broker = Broker::start(&["--connections-max", "2"]);
    let mut witness = Witness::new(broker.address);
    let other = Peer::open(broker.address);
    let (code, text) = told(broker.address, &preamble(VERSION));
    assert_eq!(code, ErrorCode::ConnectionsMax);
    assert!(text.contains("connections_max, 2"), "{text}");
    witness.is_served();
    drop(other);
    // The end of the other is seen by its own shard, which may not be the witness's.
    let opens = (0..10_000).any(|_| {
        witness.is_served();
        Peer::try_open(broker.address).is_ok()
    });
    assert!(opens, "the place stays taken");
}
