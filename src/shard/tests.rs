//! Frames in, frames out: every kind of bad input gets its code and costs nobody else anything.
//! The core is driven without a world; what it would write is taken from its connections.

mod bounds;
mod dead_letters;
mod far_moves;
mod grants;
mod large;
mod leases;
mod limits_hold;
mod options;
mod redrives;
mod report;
mod shards;
mod spill;
mod subscriptions;
mod verbs;

use super::core::Core;
use super::*;
use crate::base::chunk_pool::HeapSlabs;
use crate::base::time::{Mono, Wall};
use crate::format::batch::{self, BatchBuilder};
use crate::format::record;
use crate::io::{Socket, WriteOutcome};
use crate::protocol::control::{Answer, Request};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{self, FrameHeader, Opcode};
use crate::protocol::hot::{
    AckDone, AckRange, Confirm, CreditEntry, DeliverHeader, Pull, PullDone,
};
use crate::protocol::wire;

/// Takes every byte.
struct Sink(Vec<u8>);

impl Net for Sink {
    type Detached = Socket;
    fn poll(&mut self, _: Option<Duration>, _: &mut Vec<NetEvent>) -> std::io::Result<()> {
        Ok(())
    }
    fn accept(&mut self) -> Accepted {
        Accepted::Nothing
    }
    fn read(&mut self, _: Socket, _: &mut [u8]) -> ReadOutcome {
        ReadOutcome::Nothing
    }
    fn write(&mut self, _: Socket, slices: &[std::io::IoSlice<'_>]) -> WriteOutcome {
        let before = self.0.len();
        slices.iter().for_each(|slice| self.0.extend_from_slice(slice));
        WriteOutcome::Bytes(self.0.len() - before)
    }
    fn close(&mut self, _: Socket) {}
    fn release(&mut self, socket: Socket) -> Option<Socket> {
        Some(socket)
    }
    fn adopt(&mut self, socket: Socket) -> Option<Socket> {
        Some(socket)
    }
    fn stop_listening(&mut self) {}
}

type Frame = (FrameHeader, Vec<u8>);

struct Bench {
    core: Core,
    now: Now,
    sockets: u32,
}

impl Bench {
    fn new() -> Self {
        Bench::with(ShardConfig::new(64 << 20))
    }

    fn with(config: ShardConfig) -> Self {
        let now = Now { mono: Mono(1_000_000_000), wall: Wall(1_700_000_000_000_000) };
        Bench { core: Core::new(config, Rc::new(HeapSlabs), now), now, sockets: 0 }
    }

    fn connect(&mut self) -> Key {
        self.sockets += 1;
        self.core.handle_connected(Socket(self.sockets), self.now).unwrap()
    }

    /// A connection past its hello.
    fn open(&mut self) -> Key {
        let key = self.connect();
        self.bytes(key, &frame::preamble(1));
        let answers = self.ask(key, Request::Hello(wire::HelloT::default()), 0);
        assert!(matches!(answers, Answer::HelloOk(_)));
        key
    }

    /// Sends bytes as they are; gives what came back, without a preamble.
    fn bytes(&mut self, key: Key, bytes: &[u8]) -> Vec<Frame> {
        self.core.begin_tick(self.now);
        let mut all = vec![0; self.core.inbox_bytes(key) + bytes.len()];
        let kept = self.core.inbox_bytes(key);
        self.core.begin_read(key, &mut all).unwrap();
        all[kept..].copy_from_slice(bytes);
        self.core.handle_bytes(key, &all, bytes.len(), self.now);
        self.turn();
        self.sent(key)
    }

    fn turn(&mut self) {
        self.core.handle_deadlines(self.now);
        self.core.deliver(self.now);
        self.core.unblock();
        self.core.confirm();
    }

    /// What waits for a connection.
    fn sent(&mut self, key: Key) -> Vec<Frame> {
        let mut sink = Sink(Vec::new());
        let Some(out) = self.core.outbound(key) else { return Vec::new() };
        let flushed = out.flush(&mut sink, Socket(0));
        self.core.handle_flushed(key, flushed, self.now);
        frames_of(&sink.0)
    }

    fn frame(&mut self, key: Key, opcode: Opcode, handle: u32, payload: &[u8]) -> Vec<Frame> {
        self.bytes(key, &encode(opcode, handle, 7, payload))
    }

    fn ask(&mut self, key: Key, request: Request, handle: u32) -> Answer {
        let frames = self.frame(key, request.opcode(), handle, &request.encode());
        let (header, payload) = frames.first().expect("an answer");
        assert_eq!((header.correlation, header.handle), (7, handle));
        Answer::decode(Opcode::from_u8(header.opcode).unwrap(), payload).unwrap()
    }

    fn create(&mut self, key: Key, name: &str, options: wire::QueueOptionsT) {
        let options = Some(Box::new(options));
        let answer = self.ask(
            key,
            Request::QueueCreate(wire::QueueCreateT {
                name: name.into(),
                options,
                ..Default::default()
            }),
            0,
        );
        assert!(matches!(answer, Answer::QueueDone(_)), "{answer:?}");
    }

    fn producer(&mut self, key: Key, queue: &str, handle: u32, producer_id: u64) {
        let body = wire::ProducerOpenT { queue: queue.into(), producer_id, next_sequence: 1 };
        let answer = self.ask(key, Request::ProducerOpen(body), handle);
        assert!(matches!(answer, Answer::ProducerOpened(_)), "{answer:?}");
    }

    fn consumer(&mut self, key: Key, queue: &str, handle: u32, credit_messages: u32) -> Vec<Frame> {
        let body = wire::ConsumerOpenT {
            queue: queue.into(),
            credit_messages,
            credit_bytes: 1 << 20,
            ..wire::ConsumerOpenT::default()
        };
        let request = Request::ConsumerOpen(body);
        let mut frames = self.frame(key, Opcode::ConsumerOpen, handle, &request.encode());
        assert_eq!(frames.remove(0).0.opcode, Opcode::ConsumerOpened as u8);
        frames
    }

    fn publish(&mut self, key: Key, handle: u32, sequence: u64, bodies: &[&[u8]]) -> Vec<Frame> {
        let batch = batch_of(0, sequence, bodies);
        self.frame(key, Opcode::Publish, handle, &batch)
    }

    fn describe(&mut self, key: Key, name: &str) -> wire::QueueDescriptionT {
        match self.ask(key, Request::QueueDescribe(wire::QueueDescribeT { name: name.into() }), 0) {
            Answer::QueueDescription(body) => body,
            other => panic!("{other:?}"),
        }
    }
}

fn encode(opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
    [&header.encode()[..], payload].concat()
}

fn batch_of(producer_id: u64, sequence: u64, bodies: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    bodies.iter().for_each(|body| builder.push(0, &[], body));
    builder.finish(0, producer_id, sequence).to_vec()
}

fn error_of(frame: &Frame) -> (ErrorCode, wire::ErrorT) {
    let opcode = Opcode::from_u8(frame.0.opcode).unwrap();
    match Answer::decode(opcode, &frame.1) {
        Ok(Answer::Error(body) | Answer::PublishError(body)) => {
            (ErrorCode::from_u16(body.code).unwrap(), body)
        }
        other => panic!("an error was expected, not {other:?}"),
    }
}

fn frames_of(mut rest: &[u8]) -> Vec<Frame> {
    if rest.starts_with(b"FBAY") {
        rest = &rest[8..];
    }
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<16>() {
        let header = FrameHeader::decode(header).unwrap();
        let (payload, after) = after.split_at(header.payload_bytes as usize);
        frames.push((header, payload.to_vec()));
        rest = after;
    }
    frames
}

fn first_code(frames: &[Frame]) -> ErrorCode {
    error_of(frames.first().expect("an answer")).0
}

fn confirm_of(frames: &[Frame]) -> Confirm {
    let frame = frames.iter().find(|(header, _)| header.opcode == Opcode::Confirm as u8);
    Confirm::decode(&frame.expect("a confirm").1).unwrap()
}

fn bodies_of(frames: &[Frame]) -> Vec<(u64, Vec<u8>)> {
    let mut bodies = Vec::new();
    for (header, payload) in frames {
        if header.opcode == Opcode::Deliver as u8 {
            let (deliver, records) = DeliverHeader::decode(payload).unwrap();
            for (nth, record) in record::Records::new(records).enumerate() {
                bodies.push((deliver.delivery_id + nth as u64, record.body.to_vec()));
            }
        }
    }
    bodies
}

#[test]
fn a_message_goes_in_and_out_and_is_acked() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let frames = bench.publish(key, 1, 1, &[b"one", b"two"]);
    assert_eq!(confirm_of(&frames).sequence, 2);
    let frames = bench.consumer(key, "q", 2, 10);
    assert_eq!(bodies_of(&frames), [(1, b"one".to_vec()), (2, b"two".to_vec())]);
    let range = AckRange { handle: 2, first: 1, last: 2 };
    let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
    assert_eq!(AckDone::decode(&frames[0].1), Some(AckDone { acked: 2, late: 0 }));
    let shown = bench.describe(key, "q");
    assert_eq!((shown.ready, shown.in_flight, shown.counters.acked), (0, 0, 2));
    assert_eq!((shown.bytes, shown.memory_bytes), (0, 0));
}

#[test]
fn bytes_may_come_one_by_one() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let bytes = encode(Opcode::Publish, 1, 0, &batch_of(0, 1, &[b"slowly"]));
    let mut frames = Vec::new();
    for byte in bytes {
        frames.extend(bench.bytes(key, &[byte]));
    }
    assert_eq!(confirm_of(&frames).sequence, 1);
}

#[test]
fn first_bytes_that_are_no_preamble_end_the_connection() {
    let mut bench = Bench::new();
    for (bytes, code) in [
        (*b"GET / HT", ErrorCode::BadPreamble),
        ([0; 8], ErrorCode::BadPreamble),
        (frame::preamble(2), ErrorCode::UnsupportedVersion),
    ] {
        let key = bench.connect();
        let frames = bench.bytes(key, &bytes);
        assert_eq!(first_code(&frames), code);
        assert!(bench.frame(key, Opcode::Ping, 0, &[]).is_empty(), "nothing is answered after it");
        bench.now.mono = bench.now.mono.plus_ms(1000);
        bench.turn();
        assert_eq!(bench.core.poll_close(), Some(key));
        bench.core.handle_closed(key);
    }
}

#[test]
fn hello_comes_first_and_once_and_with_the_token() {
    let mut config = ShardConfig::new(64 << 20);
    config.token = Some("secret".into());
    let mut bench = Bench::with(config);
    let key = bench.connect();
    bench.bytes(key, &frame::preamble(1));
    assert_eq!(first_code(&bench.frame(key, Opcode::Ping, 0, &[])), ErrorCode::HelloExpected);
    for token in [None, Some("wrong!".to_owned()), Some("x".repeat(1000))] {
        let key = bench.connect();
        bench.bytes(key, &frame::preamble(1));
        let hello = Request::Hello(wire::HelloT { token, ..wire::HelloT::default() });
        let frames = bench.frame(key, Opcode::Hello, 0, &hello.encode());
        assert_eq!(first_code(&frames), ErrorCode::BadToken);
    }
    let key = bench.connect();
    bench.bytes(key, &frame::preamble(1));
    let hello = wire::HelloT { token: Some("secret".into()), ..wire::HelloT::default() };
    let hello = Request::Hello(hello).encode();
    assert_eq!(bench.frame(key, Opcode::Hello, 0, &hello)[0].0.opcode, Opcode::HelloOk as u8);
    let frames = bench.frame(key, Opcode::Hello, 0, &hello);
    assert_eq!(first_code(&frames), ErrorCode::HelloExpected);
}

#[test]
fn frames_that_lie_end_the_connection_and_cost_no_other_anything() {
    let mut bench = Bench::new();
    let good = bench.open();
    bench.create(good, "q", wire::QueueOptionsT::default());
    bench.producer(good, "q", 1, 0);
    let huge = FrameHeader { payload_bytes: u32::MAX, opcode: 18, ..FrameHeader::default() };
    let control = FrameHeader { payload_bytes: 65_537, opcode: 48, ..FrameHeader::default() };
    let mut reserved = FrameHeader::new(Opcode::Ping, 0, 0).encode();
    reserved[6] = 1;
    let garbage_body = encode(Opcode::QueueCreate, 0, 1, &[0xff; 40]);
    let short_pull = encode(Opcode::Pull, 1, 1, &[0; 15]);
    let part_of_a_range = encode(Opcode::Ack, 0, 1, &[0; 23]);
    for (bytes, code) in [
        (huge.encode().to_vec(), ErrorCode::FrameTooLarge),
        (control.encode().to_vec(), ErrorCode::FrameTooLarge),
        (reserved.to_vec(), ErrorCode::BadFrame),
        (garbage_body, ErrorCode::BadFrame),
        (short_pull, ErrorCode::BadFrame),
        (part_of_a_range, ErrorCode::BadFrame),
    ] {
        let key = bench.open();
        let frames = bench.bytes(key, &bytes);
        assert_eq!(first_code(&frames), code);
    }
    assert_eq!(confirm_of(&bench.publish(good, 1, 1, &[b"fine"])).sequence, 1);
}

#[test]
fn unknown_opcodes_and_handles_are_answered() {
    let mut bench = Bench::new();
    let key = bench.open();
    let header = FrameHeader { opcode: 200, correlation: 9, ..FrameHeader::default() };
    let frames = bench.bytes(key, &header.encode());
    assert_eq!((first_code(&frames), frames[0].0.correlation), (ErrorCode::UnknownOpcode, 9));
    // A broker's opcode is as unknown from a client.
    let frames = bench.frame(key, Opcode::Confirm, 0, &[]);
    assert_eq!(first_code(&frames), ErrorCode::UnknownOpcode);
    for opcode in [Opcode::Publish, Opcode::ProducerClose, Opcode::ConsumerClose] {
        assert_eq!(first_code(&bench.frame(key, opcode, 5, &[])), ErrorCode::UnknownHandle);
    }
    let range = AckRange { handle: 5, first: 1, last: 1 };
    let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
    assert_eq!(first_code(&frames), ErrorCode::UnknownHandle);
    let entry = CreditEntry { handle: 5, messages: 1, bytes: 1 };
    let frames = bench.frame(key, Opcode::Credit, 0, &entry.encode());
    assert_eq!(first_code(&frames), ErrorCode::UnknownHandle);
    // And a producer's handle is no consumer's.
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 5, 0);
    let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
    assert_eq!(first_code(&frames), ErrorCode::UnknownHandle);
    assert_eq!(
        first_code(&bench.frame(key, Opcode::ConsumerClose, 5, &[])),
        ErrorCode::UnknownHandle
    );
}

#[test]
fn handles_are_bounded_and_open_once() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    for handle in [0, 1, 4097, u32::MAX] {
        let body = wire::ProducerOpenT { queue: "q".into(), ..wire::ProducerOpenT::default() };
        match bench.ask(key, Request::ProducerOpen(body), handle) {
            Answer::Error(error) => assert_eq!(error.code, ErrorCode::BadHandle as u16),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn batches_that_lie_are_refused_and_order_holds() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let good = batch_of(0, 1, &[b"body"]);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut counts = good.clone();
    let header = batch::BatchHeader::decode(&good).unwrap();
    batch::seal(&mut counts, batch::BatchHeader { record_count: 2, ..header });
    for (bad, code) in [
        (batch_of(0, 1, &[]), ErrorCode::BadBatch),
        (good[..good.len() - 1].to_vec(), ErrorCode::BadBatch),
        ([&good[..], &[0]].concat(), ErrorCode::BadBatch),
        (flipped, ErrorCode::ChecksumMismatch),
        (counts, ErrorCode::BadBatch),
        (batch_of(9, 1, &[b"body"]), ErrorCode::ProducerMismatch),
    ] {
        let frames = bench.frame(key, Opcode::Publish, 1, &bad);
        let (actual, body) = error_of(&frames[0]);
        assert_eq!((actual, body.sequence), (code, 1));
        // What follows a refused publish is refused too, silently, until it comes again.
        let frames = bench.publish(key, 1, 2, &[b"later"]);
        assert!(frames.is_empty(), "{frames:?}");
        bench.now.mono = bench.now.mono.plus_ms(1);
    }
    assert_eq!(confirm_of(&bench.publish(key, 1, 1, &[b"body"])).sequence, 1);
    let frames = bench.publish(key, 1, 5, &[b"gap"]);
    assert_eq!(error_of(&frames[0]).1.sequence, 2);
    assert_eq!(first_code(&frames), ErrorCode::SequenceGap);
}

#[test]
fn a_publish_beyond_the_window_is_refused() {
    let mut config = ShardConfig::new(64 << 20);
    config.bounds.window_bytes = 100;
    let mut bench = Bench::with(config);
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let frames = bench.publish(key, 1, 1, &[&[0; 100]]);
    assert_eq!(first_code(&frames), ErrorCode::WindowExceeded);
    let window = error_of(&frames[0]).1.window_bytes_total;
    assert_eq!(window, 156 + 100);
    assert_eq!(confirm_of(&bench.publish(key, 1, 1, &[&[0; 40]])).sequence, 1);
}

#[test]
fn names_and_options_are_checked() {
    let mut bench = Bench::new();
    let key = bench.open();
    let long = "x".repeat(201);
    for name in ["", "a b", "a/b", "$sys", "ümlaut", &long] {
        let create = wire::QueueCreateT { name: name.into(), ..Default::default() };
        match bench.ask(key, Request::QueueCreate(create), 0) {
            Answer::Error(error) => assert_eq!(error.code, ErrorCode::BadName as u16, "{name}"),
            other => panic!("{other:?}"),
        }
    }
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.create(key, "q", wire::QueueOptionsT::default());
    let other = wire::QueueOptionsT { messages_max: 3, ..wire::QueueOptionsT::default() };
    let create = wire::QueueCreateT {
        name: "q".into(),
        options: Some(Box::new(other)),
        ..Default::default()
    };
    match bench.ask(key, Request::QueueCreate(create), 0) {
        Answer::Error(error) => assert_eq!(error.code, ErrorCode::QueueExists as u16),
        other => panic!("{other:?}"),
    }
    let durable = wire::QueueOptionsT { durable: true, ..wire::QueueOptionsT::default() };
    let create = wire::QueueCreateT {
        name: "d".into(),
        options: Some(Box::new(durable)),
        ..Default::default()
    };
    match bench.ask(key, Request::QueueCreate(create), 0) {
        Answer::Error(error) => assert_eq!(error.code, ErrorCode::Unsupported as u16),
        other => panic!("{other:?}"),
    }
    match bench.ask(
        key,
        Request::QueuePurge(wire::QueuePurgeT { name: "none".into(), subscription: None }),
        0,
    ) {
        Answer::Error(error) => assert_eq!(error.code, ErrorCode::QueueNotFound as u16),
        other => panic!("{other:?}"),
    }
}

#[test]
fn acks_of_what_was_never_delivered_and_double_acks() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.publish(key, 1, 1, &[b"a", b"b"]);
    bench.consumer(key, "q", 2, 10);
    for (first, last) in [(0, 0), (2, 1), (3, 3), (1, 3), (1, u64::MAX)] {
        let range = AckRange { handle: 2, first, last };
        let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
        assert_eq!(first_code(&frames), ErrorCode::NeverDelivered, "{first}..={last}");
    }
    let range = AckRange { handle: 2, first: 1, last: 1 };
    bench.frame(key, Opcode::Ack, 0, &range.encode());
    let both = AckRange { handle: 2, first: 1, last: 2 };
    let frames = bench.frame(key, Opcode::Ack, 0, &both.encode());
    assert_eq!(AckDone::decode(&frames[0].1), Some(AckDone { acked: 1, late: 1 }));
    // Without a correlation a late ack is answered as late.
    let frames = bench.bytes(key, &encode(Opcode::Ack, 0, 0, &both.encode()));
    assert_eq!(first_code(&frames), ErrorCode::LateAck);
    assert_eq!(bench.describe(key, "q").counters.acked, 2);
}

#[test]
fn credit_has_a_ceiling() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.consumer(key, "q", 2, 0);
    for (messages, bytes) in [(1_000_001, 0), (u32::MAX, 0), (1, u64::MAX)] {
        let entry = CreditEntry { handle: 2, messages, bytes };
        let frames = bench.frame(key, Opcode::Credit, 0, &entry.encode());
        assert_eq!(first_code(&frames), ErrorCode::CreditOverflow);
    }
    assert!(bodies_of(&bench.publish(key, 1, 1, &[b"a"])).is_empty());
    let entry = CreditEntry { handle: 2, messages: 1, bytes: 0 };
    assert_eq!(bodies_of(&bench.frame(key, Opcode::Credit, 0, &entry.encode())).len(), 1);
}

#[test]
fn a_blocked_queue_says_so_takes_a_part_and_says_when_it_takes_again() {
    let mut bench = Bench::new();
    let (key, other) = (bench.open(), bench.open());
    let options = wire::QueueOptionsT { messages_max: 2, ..wire::QueueOptionsT::default() };
    bench.create(key, "q", options);
    bench.producer(key, "q", 1, 0);
    bench.producer(other, "q", 4, 0);
    let frames = bench.publish(key, 1, 1, &[b"a", b"b", b"c"]);
    assert_eq!(confirm_of(&frames).sequence, 2);
    let (code, error) = error_of(&frames[1]);
    assert_eq!((code, error.sequence), (ErrorCode::QueueMessagesMax, 3));
    assert_eq!((error.limit_name.as_deref(), error.limit_value), (Some("messages_max"), 2));
    assert_eq!(frames[2].0.opcode, Opcode::Blocked as u8);
    // Every producer of the queue knows, and consumers go on.
    let told = bench.sent(other);
    assert_eq!((told[0].0.opcode, told[0].0.handle), (Opcode::Blocked as u8, 4));
    assert_eq!(bodies_of(&bench.consumer(key, "q", 2, 1)).len(), 1);
    let range = AckRange { handle: 2, first: 1, last: 1 };
    let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
    assert!(frames.iter().any(|(header, _)| header.opcode == Opcode::Unblocked as u8));
    assert_eq!(bench.sent(other)[0].0.opcode, Opcode::Unblocked as u8);
    assert_eq!(confirm_of(&bench.publish(key, 1, 3, &[b"c"])).sequence, 3);
}

#[test]
fn full_memory_refuses_by_name_and_consuming_makes_room() {
    let mut config = ShardConfig::new(16 << 20);
    config.bounds.window_bytes = 1 << 30;
    let mut bench = Bench::with(config);
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let body = vec![7; 200_000];
    let mut sequence = 1;
    let frames = loop {
        let frames = bench.publish(key, 1, sequence, &[&body]);
        if frames.iter().any(|(header, _)| header.opcode == Opcode::PublishError as u8) {
            break frames;
        }
        sequence += 1;
        assert!(sequence < 1000, "the limit must come");
    };
    assert_eq!(first_code(&frames), ErrorCode::MemoryLimit);
    assert!(bench.core.budget().used_bytes() <= 16 << 20);
    bench.consumer(key, "q", 2, 1_000_000);
    let mut unblocked = false;
    for _ in 0..1000 {
        let entry = CreditEntry { handle: 2, messages: 0, bytes: 1 << 20 };
        bench.frame(key, Opcode::Credit, 0, &entry.encode());
        let delivered = bench.describe(key, "q").counters.delivered;
        let range = AckRange { handle: 2, first: 1, last: delivered };
        let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
        unblocked |= frames.iter().any(|(header, _)| header.opcode == Opcode::Unblocked as u8);
    }
    assert!(unblocked);
    assert_eq!(confirm_of(&bench.publish(key, 1, sequence, &[&body])).sequence, sequence);
}

#[test]
fn a_slow_reader_gets_only_so_much_and_others_go_on() {
    let mut bench = Bench::new();
    let (slow, fast) = (bench.open(), bench.open());
    bench.create(fast, "q", wire::QueueOptionsT::default());
    bench.producer(fast, "q", 1, 0);
    bench.consumer(slow, "q", 1, 1_000_000);
    let body = vec![1; 100_000];
    for sequence in 1..=9 {
        bench.publish(fast, 1, sequence, &[&body]);
    }
    let unsent = bench.core.outbound(slow).unwrap().unsent_bytes();
    assert!(unsent < limits::UNSENT_BYTES_SOFT + 200_000, "{unsent}");
    let frames = bench.consumer(fast, "q", 2, 1_000_000);
    assert!(!bodies_of(&frames).is_empty());
    bench.core.handle_flushed(slow, outbound::Flushed::Part(0), bench.now);
    // It stays stalled: it is closed, and what it had goes to the other.
    bench.now.mono = bench.now.mono.plus_ms(2 * limits::STALL_TIMEOUT_MS);
    bench.core.begin_tick(bench.now);
    bench.turn();
    while let Some(key) = bench.core.poll_close() {
        assert_eq!(key, slow);
        bench.core.handle_closed(key);
    }
    bench.turn();
    let frames = bench.sent(fast);
    assert!(!bodies_of(&frames).is_empty());
}

#[test]
fn a_slow_loris_is_closed() {
    let mut bench = Bench::new();
    let silent = bench.connect();
    let dripping = bench.open();
    bench.bytes(dripping, &FrameHeader::new(Opcode::QueueList, 0, 1000).encode());
    for second in 0..60 {
        bench.now.mono = bench.now.mono.plus_ms(1000);
        if second < 20 {
            bench.bytes(dripping, &[1]);
        }
        bench.core.begin_tick(bench.now);
        bench.turn();
    }
    assert_eq!(first_code(&bench.sent(silent)), ErrorCode::Timeout);
    assert_eq!(first_code(&bench.sent(dripping)), ErrorCode::Timeout);
}

#[test]
fn connections_have_a_limit() {
    let mut config = ShardConfig::new(64 << 20);
    config.connections_max = 2;
    let mut bench = Bench::with(config);
    let first = bench.connect();
    bench.connect();
    assert!(bench.core.handle_connected(Socket(9), bench.now).is_none());
    let refusal = frames_of(&bench.core.refusal());
    assert_eq!(first_code(&refusal), ErrorCode::ConnectionsMax);
    bench.core.handle_closed(first);
    assert!(bench.core.handle_connected(Socket(9), bench.now).is_some());
}

#[test]
fn a_pull_ends_when_it_has_enough_or_there_is_no_more_or_its_time_is_over() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.consumer(key, "q", 2, 0);
    let pull = |messages_max, wait_ms| Pull { messages_max, wait_ms, bytes_max: 0 }.encode();
    let done = |frames: &[Frame]| {
        let frame = frames.iter().find(|(header, _)| header.opcode == Opcode::PullDone as u8)?;
        PullDone::decode(&frame.1).map(|done| done.messages)
    };
    assert_eq!(done(&bench.frame(key, Opcode::Pull, 2, &pull(5, 0))), Some(0));
    bench.publish(key, 1, 1, &[b"a", b"b", b"c"]);
    let frames = bench.frame(key, Opcode::Pull, 2, &pull(2, 0));
    assert_eq!((bodies_of(&frames).len(), done(&frames)), (2, Some(2)));
    let frames = bench.frame(key, Opcode::Pull, 2, &pull(2, 1000));
    assert_eq!((bodies_of(&frames).len(), done(&frames)), (1, Some(1)));
    assert_eq!(done(&bench.frame(key, Opcode::Pull, 2, &pull(2, 1000))), None);
    bench.now.mono = bench.now.mono.plus_ms(1000);
    bench.core.begin_tick(bench.now);
    bench.turn();
    assert_eq!(done(&bench.sent(key)), Some(0));
    let frames = bench.frame(key, Opcode::Pull, 2, &pull(0, 0));
    assert_eq!(first_code(&frames), ErrorCode::BadOption);
}

#[test]
fn a_resend_is_a_duplicate_and_an_unknown_claim_is_told() {
    let mut bench = Bench::new();
    let (key, again) = (bench.open(), bench.open());
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 42);
    let batch = batch_of(42, 1, &[b"a", b"b"]);
    bench.frame(key, Opcode::Publish, 1, &batch);
    bench.core.handle_closed(key);
    let open = |id, next_sequence| {
        let queue = "q".into();
        Request::ProducerOpen(wire::ProducerOpenT { queue, producer_id: id, next_sequence })
    };
    match bench.ask(again, open(42, 3), 1) {
        Answer::ProducerOpened(body) => assert_eq!(body.last_sequence, 2),
        other => panic!("{other:?}"),
    }
    let confirm = confirm_of(&bench.frame(again, Opcode::Publish, 1, &batch));
    assert_eq!((confirm.sequence, confirm.duplicates), (2, 2));
    assert_eq!(bench.describe(again, "q").ready, 2);
    match bench.ask(again, open(43, 3), 2) {
        Answer::Error(error) => assert_eq!(error.code, ErrorCode::ProducerUnknown as u16),
        other => panic!("{other:?}"),
    }
    // The same id from elsewhere puts the old handle out.
    let third = bench.open();
    assert!(matches!(bench.ask(third, open(42, 3), 1), Answer::ProducerOpened(_)));
    let frames = bench.sent(again);
    assert_eq!(first_code(&frames), ErrorCode::ProducerFenced);
    assert_eq!(frames[1].0.opcode, Opcode::Closed as u8);
}

#[test]
fn a_deleted_queue_closes_its_handles_and_gives_everything_back() {
    let mut bench = Bench::new();
    let key = bench.open();
    let before = bench.core.budget().used_bytes();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 77);
    bench.frame(key, Opcode::Publish, 1, &batch_of(77, 1, &[b"a"]));
    bench.consumer(key, "q", 2, 0);
    let delete = wire::QueueDeleteT { name: "q".into(), if_empty: true };
    match bench.ask(key, Request::QueueDelete(delete), 0) {
        Answer::Error(error) => assert_eq!(error.code, ErrorCode::QueueNotEmpty as u16),
        other => panic!("{other:?}"),
    }
    let delete = wire::QueueDeleteT { name: "q".into(), if_empty: false };
    let frames = bench.frame(key, Opcode::QueueDelete, 0, &Request::QueueDelete(delete).encode());
    let codes: Vec<_> = frames.iter().map(|(header, _)| header.opcode).collect();
    let (error, closed) = (Opcode::Error as u8, Opcode::Closed as u8);
    assert_eq!(codes, [error, closed, error, closed, Opcode::QueueRemoved as u8]);
    bench.core.memory.shrink(0);
    bench.core.charge_connection(key);
    let connection = bench.core.connections.at(key).unwrap().memory_bytes();
    assert!(bench.core.budget().used_bytes() <= before + connection as u64);
    assert_eq!(bench.core.budget().used_by(crate::queue::memory::Account::Chunks), 0);
    assert_eq!(bench.core.budget().used_by(crate::queue::memory::Account::Handles), 0);
    assert_eq!(bench.core.budget().used_by(crate::queue::memory::Account::Queues), 0);
}

#[test]
fn a_drain_tells_the_clients_refuses_publishes_and_ends_when_all_is_acked() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.publish(key, 1, 1, &[b"a"]);
    bench.consumer(key, "q", 2, 1);
    bench.core.drain(bench.now);
    assert_eq!(bench.sent(key)[0].0.opcode, Opcode::Drain as u8);
    assert_eq!(first_code(&bench.publish(key, 1, 2, &[b"b"])), ErrorCode::Draining);
    bench.now.mono = bench.now.mono.plus_ms(200);
    bench.turn();
    assert!(!bench.core.is_drained(bench.now), "a delivery is still in flight");
    let range = AckRange { handle: 2, first: 1, last: 1 };
    let frames = bench.frame(key, Opcode::Ack, 0, &range.encode());
    assert_eq!(AckDone::decode(&frames[0].1), Some(AckDone { acked: 1, late: 0 }));
    while bench.core.poll_flush().is_some() {}
    assert!(bench.core.is_drained(bench.now));
}

#[test]
fn a_clock_that_jumps_breaks_nothing() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    for (sequence, wall) in [(1, 0), (2, u64::MAX), (3, 5)] {
        bench.now.wall = Wall(wall);
        let frames = bench.publish(key, 1, sequence, &[b"x"]);
        assert_eq!(confirm_of(&frames).sequence, sequence);
    }
    assert_eq!(bodies_of(&bench.consumer(key, "q", 2, 10)).len(), 3);
}
