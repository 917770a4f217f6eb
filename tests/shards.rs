//! The real broker with several shards: connections move to the home of the queue that they name,
//! others cross, and all shards start and end as one.
#![cfg(all(feature = "server", feature = "cli"))]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(clippy::field_reassign_with_default, reason = "bodies of the wire may grow fields")]

mod common;

use common::peer::Peer;
use common::{Broker, forebay, outcome};
use forebay::format::record::Records;
use forebay::io::affinity;
use forebay::protocol::control::{Answer, Request};
use forebay::protocol::frame::{Opcode, VERSION, preamble};
use forebay::protocol::hot::{Confirm, DeliverHeader};
use forebay::protocol::wire;
use std::io::Write;
use std::net::SocketAddr;

/// Connects, names `queue` in the hello if told to, and gives the shard that answered.
fn connect(address: SocketAddr, attach: Option<&str>) -> (Peer, u32) {
    let mut peer = Peer::connect(address);
    let mut hello = wire::HelloT::default();
    hello.attach = attach.map(str::to_owned);
    peer.stream.write_all(&preamble(VERSION)).unwrap();
    peer.send_request(&Request::Hello(hello), 0);
    assert_eq!(peer.read_preamble(), Some(VERSION));
    match answer(&mut peer) {
        Answer::HelloOk(body) => (peer, body.shard),
        other => panic!("{other:?}"),
    }
}

fn answer(peer: &mut Peer) -> Answer {
    let (header, payload) = peer.read_frame().expect("an answer");
    Answer::decode(Opcode::from_u8(header.opcode).unwrap(), &payload).unwrap()
}

fn create(peer: &mut Peer, queue: &str) {
    let mut body = wire::QueueCreateT::default();
    body.name = queue.to_owned();
    peer.send_request(&Request::QueueCreate(body), 0);
    assert!(matches!(answer(peer), Answer::QueueDone(_)));
}

/// Opens a producer and gives the queue's home.
fn produce(peer: &mut Peer, queue: &str) -> u32 {
    let mut body = wire::ProducerOpenT::default();
    body.queue = queue.to_owned();
    peer.send_request(&Request::ProducerOpen(body), 1);
    match answer(peer) {
        Answer::ProducerOpened(body) => body.home_shard,
        other => panic!("{other:?}"),
    }
}

fn consume(peer: &mut Peer, queue: &str) {
    let mut body = wire::ConsumerOpenT::default();
    body.queue = queue.to_owned();
    body.credit_messages = 1000;
    body.credit_bytes = 1 << 20;
    peer.send_request(&Request::ConsumerOpen(body), 2);
    assert!(matches!(answer(peer), Answer::ConsumerOpened(_)));
}

/// Reads deliveries until there were so many messages.
fn receive(peer: &mut Peer, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let (header, payload) = peer.read_frame().expect("a delivery");
        assert_eq!(header.opcode, Opcode::Deliver as u8);
        let (_, records) = DeliverHeader::decode(&payload).unwrap();
        bodies.extend(Records::new(records).map(|r| String::from_utf8(r.body.to_vec()).unwrap()));
    }
    bodies
}

#[test]
fn connections_are_where_their_queue_is_or_cross_to_it() {
    let broker = Broker::start(&["--shards", "3"]);
    let mut homes = Vec::new();
    for nth in 0..12 {
        let queue = format!("orders-{nth}");
        // Attached before the queue exists; a stranger is on whichever shard the system chose.
        let (mut at_home, shard) = connect(broker.address, Some(&queue));
        let (mut anywhere, _) = connect(broker.address, None);
        create(&mut anywhere, &queue);
        let home = produce(&mut at_home, &queue);
        assert_eq!(home, shard, "{queue}");
        assert_eq!(produce(&mut anywhere, &queue), home);
        consume(&mut anywhere, &queue);
        for sequence in 1..=50 {
            at_home.publish(1, sequence, &[&format!("{nth} at home {sequence}")]);
        }
        let bodies = receive(&mut anywhere, 50);
        let expected: Vec<_> = (1..=50).map(|n| format!("{nth} at home {n}")).collect();
        assert_eq!(bodies, expected);
        let (mut last, mut frames) = (0, 0);
        while last < 50 && frames < 50 {
            let (header, payload) = at_home.read_frame().expect("a confirm");
            assert_eq!(header.opcode, Opcode::Confirm as u8);
            last = Confirm::decode(&payload).unwrap().sequence;
            frames += 1;
        }
        assert_eq!(last, 50);
        homes.push(home);
    }
    assert!((0..3).all(|shard| homes.contains(&shard)), "{homes:?}");
    let (code, out, _) =
        outcome(forebay().args(["queue", "list", "--server"]).arg(broker.address.to_string()));
    assert_eq!((code, out.lines().count()), (Some(0), 13), "{out}");
    broker.signal("TERM");
    let (status, _, log) = broker.wait();
    assert_eq!((status.code(), log.matches("drained").count()), (Some(0), 3), "{log}");
}

#[test]
fn two_shards_run_on_one_core() {
    let cores = affinity::cores();
    let first = cores[0];
    // A child may run where its parent's thread may.
    let broker = std::thread::spawn(move || {
        affinity::pin(first).unwrap();
        Broker::start(&["--shards", "2"])
    });
    let broker = broker.join().unwrap();
    broker.wait_for_log("pin=[]");
    for queue in ["a", "b", "c", "d"] {
        let (mut peer, _) = connect(broker.address, None);
        create(&mut peer, queue);
        produce(&mut peer, queue);
        consume(&mut peer, queue);
        peer.publish(1, 1, &["hello"]);
        loop {
            let (header, _) = peer.read_frame().expect("the message");
            if header.opcode == Opcode::Deliver as u8 {
                break;
            }
        }
    }
}

#[test]
fn memory_and_cores_must_do_for_all_shards() {
    for (flags, expected) in [
        (["--shards", "8"], "memory_limit 64MiB is too little for 8 shards"),
        (["--message-bytes-max", "5MiB"], "memory_limit 64MiB / (8 x 2 shards) = 4MiB"),
        (["--pin", "0"], "1 cores for 2 shards"),
    ] {
        let mut command = forebay();
        command.args(["serve", "--memory-limit", "64MiB", "--log", "error"]);
        if flags[0] != "--shards" {
            command.args(["--shards", "2"]);
        }
        let (code, _, err) = outcome(command.args(flags));
        assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn what_is_sent_behind_a_hello_moves_along_in_order() {
    let broker = Broker::start(&["--shards", "3"]);
    let mut peers = Vec::new();
    for nth in 0..60 {
        // All in one go, nothing is waited for: most of it comes before the connection has moved.
        let (queue, other) = (format!("own-{nth}"), format!("other-{nth}"));
        let mut peer = Peer::connect(broker.address);
        let mut hello = wire::HelloT::default();
        hello.attach = Some(queue.clone());
        peer.stream.write_all(&preamble(VERSION)).unwrap();
        peer.send_request(&Request::Hello(hello), 0);
        for (name, handle) in [(queue, 1), (other, 3)] {
            let (mut made, mut opened) =
                (wire::QueueCreateT::default(), wire::ProducerOpenT::default());
            (made.name, opened.queue, opened.next_sequence) = (name.clone(), name.clone(), 1);
            peer.send_request(&Request::QueueCreate(made), 0);
            peer.send_request(&Request::ProducerOpen(opened), handle);
            for sequence in 1..=20 {
                peer.publish(handle, sequence, &[&format!("{name} {sequence}")]);
            }
            let mut consumer = wire::ConsumerOpenT::default();
            (consumer.queue, consumer.credit_messages, consumer.credit_bytes) =
                (name, 100, 1 << 20);
            peer.send_request(&Request::ConsumerOpen(consumer), handle + 1);
        }
        peers.push(peer);
    }
    for (nth, peer) in peers.iter_mut().enumerate() {
        assert_eq!(peer.read_preamble(), Some(VERSION));
        let (mut own, mut other) = (Vec::new(), Vec::new());
        while own.len() + other.len() < 40 {
            let (header, payload) = peer.read_frame().expect("a frame");
            let opcode = Opcode::from_u8(header.opcode).unwrap();
            assert!(!matches!(opcode, Opcode::Error | Opcode::PublishError), "{nth}: {header:?}");
            if opcode == Opcode::Deliver {
                let (_, records) = DeliverHeader::decode(&payload).unwrap();
                let bodies = if header.handle == 2 { &mut own } else { &mut other };
                let text = |body: &[u8]| String::from_utf8(body.to_vec()).unwrap();
                bodies.extend(Records::new(records).map(|record| text(record.body)));
            }
        }
        let expected =
            |name: &str| (1..=20).map(|n| format!("{name}-{nth} {n}")).collect::<Vec<_>>();
        assert_eq!((own, other), (expected("own"), expected("other")));
    }
}
