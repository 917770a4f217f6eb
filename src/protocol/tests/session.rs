//! One whole session as bytes. docs/PROTOCOL.md shows the same dump; this test makes it with the
//! code and compares, so that neither can change alone.

use crate::format::batch::BatchBuilder;
use crate::format::properties::PropertiesBuilder;
use crate::limits;
use crate::protocol::control::{Answer, Request};
use crate::protocol::frame::{self, FrameHeader, Opcode};
use crate::protocol::hot::{AckDone, AckRange, Confirm, DeliverHeader, Reached};
use crate::protocol::wire;

const PRODUCER: u32 = 1;
const CONSUMER: u32 = 2;

/// The dump as it grows.
struct Dump {
    text: String,
}

impl Dump {
    /// Bytes of `side` (`C` client, `B` broker) under a title.
    fn bytes(&mut self, side: char, title: &str, bytes: &[u8]) {
        self.text.push_str(&format!("{side}: {title}\n"));
        for (row, line) in bytes.chunks(16).enumerate() {
            let mut hex = String::new();
            for (nth, byte) in line.iter().enumerate() {
                hex.push_str(if nth == 8 { "  " } else { " " });
                hex.push_str(&format!("{byte:02x}"));
            }
            let shown =
                |byte: &u8| if (0x20..0x7f).contains(byte) { char::from(*byte) } else { '.' };
            let ascii: String = line.iter().map(shown).collect();
            self.text.push_str(&format!("  {:04x} {hex:<49}  |{ascii}|\n", row * 16));
        }
    }

    fn frame(&mut self, side: char, opcode: Opcode, numbers: (u32, u32), payload: &[u8]) {
        let (handle, correlation) = numbers;
        let mut header = FrameHeader::new(opcode, handle, payload.len());
        header.correlation = correlation;
        let mut title = wire_name(opcode);
        for (name, number) in [("handle", handle), ("correlation", correlation)] {
            if number != 0 {
                title.push_str(&format!(", {name} {number}"));
            }
        }
        self.bytes(side, &title, &[header.encode().as_slice(), payload].concat());
    }

    fn request(&mut self, numbers: (u32, u32), request: Request) {
        self.frame('C', request.opcode(), numbers, &request.encode());
    }

    fn answer(&mut self, numbers: (u32, u32), answer: Answer) {
        self.frame('B', answer.opcode(), numbers, &answer.encode());
    }
}

/// `QueueCreate` as the documents write it: `QUEUE_CREATE`.
fn wire_name(opcode: Opcode) -> String {
    let mut name = String::new();
    for letter in format!("{opcode:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn open(dump: &mut Dump) {
    dump.bytes('C', "preamble", &frame::preamble(frame::VERSION));
    let hello = wire::HelloT { client_name: Some("example".to_owned()), ..Default::default() };
    dump.request((0, 1), Request::Hello(hello));
    dump.bytes('B', "preamble", &frame::preamble(frame::VERSION));
    let hello_ok = wire::HelloOkT {
        server_version: Some("0.1.0".to_owned()),
        frame_payload_bytes_max: limits::FRAME_PAYLOAD_BYTES_MAX as u32,
        batch_bytes_max: limits::BATCH_WIRE_BYTES_MAX as u32,
        message_bytes_max: limits::MESSAGE_BYTES_DEFAULT as u64,
        records_per_batch_max: limits::BATCH_RECORDS_MAX as u32,
        handles_max: limits::HANDLE_MAX,
        ..Default::default()
    };
    dump.answer((0, 1), Answer::HelloOk(hello_ok));
    let create = wire::QueueCreateT { name: "orders".to_owned(), ..Default::default() };
    dump.request((0, 2), Request::QueueCreate(create));
    dump.answer((0, 2), Answer::QueueDone(wire::QueueDoneT { created: true }));
}

fn publish(dump: &mut Dump) -> Vec<u8> {
    let open = wire::ProducerOpenT {
        queue: "orders".to_owned(),
        producer_id: 0x5eed_0000_0000_0001,
        next_sequence: 1,
    };
    dump.request((PRODUCER, 3), Request::ProducerOpen(open));
    let opened = wire::ProducerOpenedT {
        window_bytes_total: limits::WINDOW_BYTES,
        message_bytes_max: limits::MESSAGE_BYTES_DEFAULT as u64,
        ..Default::default()
    };
    dump.answer((PRODUCER, 3), Answer::ProducerOpened(opened));
    let mut properties = PropertiesBuilder::default();
    properties.header(b"lang", b"en").unwrap();
    let mut builder = BatchBuilder::default();
    builder.push(0, b"", b"hello");
    builder.push(0, properties.bytes(), b"world");
    let batch = builder.finish(0, 0x5eed_0000_0000_0001, 1).to_vec();
    dump.frame('C', Opcode::Publish, (PRODUCER, 0), &batch);
    let confirm = Confirm {
        sequence: 2,
        window_bytes_total: limits::WINDOW_BYTES + batch.len() as u64,
        duplicates: 0,
        dropped: 0,
        reached: Reached::Memory,
    };
    dump.frame('B', Opcode::Confirm, (PRODUCER, 0), &confirm.encode());
    batch
}

fn consume(dump: &mut Dump, batch: &[u8]) {
    let open = wire::ConsumerOpenT {
        queue: "orders".to_owned(),
        credit_messages: 256,
        credit_bytes: 4 << 20,
        ..Default::default()
    };
    dump.request((CONSUMER, 4), Request::ConsumerOpen(open));
    let in_flight_max = limits::IN_FLIGHT_MAX as u32;
    let opened =
        wire::ConsumerOpenedT { in_flight_max, lease_ms: limits::LEASE_MS_DEFAULT, home_shard: 0 };
    dump.answer((CONSUMER, 4), Answer::ConsumerOpened(opened));
    let header = DeliverHeader {
        delivery_id: 1,
        base_sequence: 1,
        accepted_us: 1_900_000_000_000_000,
        record_count: 2,
        attempts: 1,
        ..Default::default()
    };
    let records = &batch[limits::BATCH_HEADER_BYTES..];
    let payload = [header.encode().as_slice(), records].concat();
    dump.frame('B', Opcode::Deliver, (CONSUMER, 0), &payload);
    let range = AckRange { handle: CONSUMER, first: 1, last: 2 };
    dump.frame('C', Opcode::Ack, (0, 5), &range.encode());
    dump.frame('B', Opcode::AckDone, (0, 5), &AckDone { acked: 2, late: 0 }.encode());
}

fn close(dump: &mut Dump) {
    dump.frame('C', Opcode::ProducerClose, (PRODUCER, 6), &[]);
    dump.frame('B', Opcode::Closed, (PRODUCER, 6), &[]);
    dump.frame('C', Opcode::ConsumerClose, (CONSUMER, 7), &[]);
    dump.frame('B', Opcode::Closed, (CONSUMER, 7), &[]);
}

#[test]
fn the_documented_session_is_the_real_one() {
    let mut dump = Dump { text: String::new() };
    open(&mut dump);
    let batch = publish(&mut dump);
    consume(&mut dump, &batch);
    close(&mut dump);
    let document = include_str!("../../../docs/PROTOCOL.md");
    let shown = document.split("```session\n").nth(1).and_then(|rest| rest.split("```").next());
    assert!(shown == Some(&dump.text), "docs/PROTOCOL.md should show:\n{}", dump.text);
}
