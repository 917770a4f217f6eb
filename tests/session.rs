//! The session that docs/PROTOCOL.md shows, played against the real broker: what a stranger's
//! client would send is sent byte for byte, and what comes back is compared byte for byte.
#![cfg(all(feature = "cli", feature = "server"))]
#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

mod common;

use common::Broker;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const DOCUMENT: &str = include_str!("../docs/PROTOCOL.md");
const HEADER_BYTES: usize = 16;
const DELIVER: u8 = 34;

/// A frame or preamble of the documented session.
struct Part {
    from_client: bool,
    title: String,
    bytes: Vec<u8>,
}

fn documented() -> Vec<Part> {
    let dump = DOCUMENT.split("```session\n").nth(1).and_then(|rest| rest.split("```").next());
    let mut parts: Vec<Part> = Vec::new();
    for line in dump.expect("the document shows a session").lines() {
        if let Some((side, title)) = line.split_once(": ") {
            let from_client = side == "C";
            parts.push(Part { from_client, title: title.to_owned(), bytes: Vec::new() });
            continue;
        }
        let hex = line[6..].split("  |").next().unwrap();
        let bytes = hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap());
        parts.last_mut().expect("a title comes first").bytes.extend(bytes);
    }
    parts
}

/// The time when the broker took the messages is the only thing that differs from run to run.
fn without_time(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if bytes.len() > HEADER_BYTES && bytes[4] == DELIVER {
        bytes[HEADER_BYTES + 16..HEADER_BYTES + 24].fill(0);
    }
    bytes
}

#[test]
fn the_documented_session_works() {
    let broker = Broker::start(&["--memory-limit", "256MiB", "--shards", "1"]);
    let mut socket = TcpStream::connect(broker.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let parts = documented();
    assert!(parts.len() > 15, "the session has {} parts", parts.len());
    for part in parts {
        if part.from_client {
            socket.write_all(&part.bytes).unwrap();
            continue;
        }
        let mut answer = vec![0; part.bytes.len()];
        socket.read_exact(&mut answer).unwrap_or_else(|error| panic!("{}: {error}", part.title));
        assert_eq!(without_time(&answer), without_time(&part.bytes), "{}", part.title);
    }
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(socket.read(&mut [0; 1]).unwrap(), 0, "nothing more comes");
}

/// All that the client says in one write, as a client that does not wait would send it.
#[test]
fn the_documented_session_works_without_waiting() {
    let broker = Broker::start(&["--memory-limit", "256MiB", "--shards", "1"]);
    let mut socket = TcpStream::connect(broker.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (asked, answered): (Vec<Part>, Vec<Part>) =
        documented().into_iter().partition(|part| part.from_client);
    // Up to the consumer: what is delivered must have been received before it can be acked.
    let pipelined = asked.iter().take_while(|part| !part.title.starts_with("ACK"));
    let bytes: Vec<u8> = pipelined.flat_map(|part| part.bytes.clone()).collect();
    socket.write_all(&bytes).unwrap();
    let mut wanted: Vec<Vec<u8>> = answered
        .iter()
        .take_while(|part| !part.title.starts_with("ACK_DONE"))
        .skip(1)
        .map(|part| without_time(&part.bytes))
        .collect();
    let mut preamble = [0; 8];
    socket.read_exact(&mut preamble).unwrap();
    // The answers of one producer or consumer come in order; confirms and deliveries may change
    // places with what concerns others.
    while !wanted.is_empty() {
        let mut frame = vec![0; HEADER_BYTES];
        socket.read_exact(&mut frame).unwrap();
        let payload_bytes = u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize;
        frame.resize(HEADER_BYTES + payload_bytes, 0);
        socket.read_exact(&mut frame[HEADER_BYTES..]).unwrap();
        let frame = without_time(&frame);
        let place = wanted.iter().position(|wanted| *wanted == frame);
        wanted.remove(place.unwrap_or_else(|| panic!("not in the document: {frame:02x?}")));
    }
}
