//! A session against scripted frames, and against a small broker that is hostile by dice.

mod hostile;
mod hostile_consumer;
mod leases;

use super::*;
use crate::client::ErrorCode;
use crate::format::batch::{Batch, FRAGMENT};
use crate::format::record;
use crate::limits::{FRAME_HEADER_BYTES, MIB, PREAMBLE_BYTES};
use crate::protocol::control::Answer;
use crate::protocol::frame::FrameHeader;
use crate::protocol::hot::{
    AckRange, Confirm, CreditEntry, DELIVER_FRAGMENT, DeliverHeader, PullDone, Reached,
};

const NOW: Mono = Mono(1_000_000_000);

/// Frames that a session has sent: header and payload.
type Frames = Vec<(FrameHeader, Vec<u8>)>;

/// The broker's end of the script.
struct Script {
    session: Session,
    /// The preamble of this connection was read.
    greeted: bool,
}

impl Script {
    fn new() -> Script {
        let config = SessionConfig { probe_ms: 1000, seed: 7, ..SessionConfig::default() };
        Script { session: Session::new(config), greeted: false }
    }

    /// Connects and answers the hello.
    fn connected() -> Script {
        let mut script = Script::new();
        script.connect();
        script
    }

    fn connect(&mut self) -> Frames {
        self.session.handle_connected(NOW);
        self.greeted = false;
        let frames = self.sent();
        assert_eq!(frames[0].0.opcode, Opcode::Hello as u8);
        self.give(&frame::preamble(frame::VERSION));
        self.answer(Answer::HelloOk(wire::HelloOkT::default()), 0, frames[0].0.correlation);
        assert!(matches!(self.event(), Event::Connected(_)));
        frames[1..].to_vec()
    }

    fn disconnect(&mut self) {
        self.session.handle_disconnected();
    }

    fn give(&mut self, bytes: &[u8]) {
        assert_eq!(self.session.handle_bytes(NOW, bytes), bytes.len());
    }

    fn frame(&mut self, opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
        self.give(&[&header.encode(), payload].concat());
    }

    fn answer(&mut self, answer: Answer, handle: u32, correlation: u32) {
        let opcode = answer.opcode();
        self.frame(opcode, handle, correlation, &answer.encode());
    }

    fn sent(&mut self) -> Frames {
        let mut bytes = Vec::new();
        self.session.poll_transmit(NOW, &mut bytes);
        let mut rest = &bytes[..];
        if !self.greeted && !rest.is_empty() {
            assert_eq!(rest[..PREAMBLE_BYTES], frame::preamble(frame::VERSION));
            rest = &rest[PREAMBLE_BYTES..];
            self.greeted = true;
        }
        let mut frames = Vec::new();
        while let Some((header, behind)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let header = FrameHeader::decode_from_client(header).unwrap();
            let (payload, behind) = behind.split_at(header.payload_bytes as usize);
            frames.push((header, payload.to_vec()));
            rest = behind;
        }
        assert!(rest.is_empty());
        frames
    }

    fn event(&mut self) -> Event {
        self.session.poll_event().expect("an event")
    }

    fn no_event(&mut self) {
        assert_eq!(self.session.poll_event(), None);
    }

    /// A producer that is open, with a window.
    fn producer(&mut self, window_bytes_total: u64) -> u32 {
        let settings =
            ProducerSettings { queue: "q".into(), producer_id: 5, batch_bytes: 64 * 1024 };
        let handle = self.session.open_producer(settings).unwrap();
        let open = self.sent();
        assert_eq!(open[0].0.opcode, Opcode::ProducerOpen as u8);
        self.opened(handle, open[0].0.correlation, 0, window_bytes_total);
        handle
    }

    fn opened(&mut self, handle: u32, correlation: u32, last_sequence: u64, window: u64) {
        let opened = wire::ProducerOpenedT {
            last_sequence,
            window_bytes_total: window,
            message_bytes_max: MIB as u64,
            ..wire::ProducerOpenedT::default()
        };
        self.answer(Answer::ProducerOpened(opened), handle, correlation);
        assert_eq!(self.event(), Event::ProducerOpened { handle });
    }

    fn publish(&mut self, handle: u32, bodies: &[&[u8]]) {
        for body in bodies {
            self.session.publish(handle, &[], false, body).unwrap();
        }
        self.session.send(handle);
    }

    fn confirm(&mut self, handle: u32, sequence: u64, window_bytes_total: u64) {
        let reached = Reached::Memory;
        let confirm = Confirm { sequence, window_bytes_total, duplicates: 0, dropped: 0, reached };
        self.frame(Opcode::Confirm, handle, 0, &confirm.encode());
    }

    fn refuse(&mut self, handle: u32, code: ErrorCode, sequence: u64, retry_after_ms: u32) {
        let error = wire::ErrorT {
            code: code as u16,
            sequence,
            retry_after_ms,
            window_bytes_total: MIB as u64,
            ..wire::ErrorT::default()
        };
        self.answer(Answer::PublishError(error), handle, 0);
    }

    /// The batches among what was sent: producer id, sequence, bodies.
    fn batches(&mut self) -> Vec<(u64, u64, Vec<Vec<u8>>)> {
        let publish = |(header, _): &(FrameHeader, _)| header.opcode == Opcode::Publish as u8;
        let batch = |(_, payload): (_, Vec<u8>)| {
            let batch = Batch::decode(&payload).expect("a sound batch");
            let bodies = Records::new(batch.records()).map(|record| record.body.to_vec());
            let header = batch.header;
            (header.producer_id, header.producer_sequence, bodies.collect())
        };
        self.sent().into_iter().filter(publish).map(batch).collect()
    }

    fn consumer(&mut self, checksum: bool) -> u32 {
        let settings = ConsumerSettings {
            queue: "q".into(),
            credit_messages: 10,
            credit_bytes: 1000,
            replenish: true,
            checksum,
            ..ConsumerSettings::default()
        };
        let handle = self.session.open_consumer(settings).unwrap();
        let open = self.sent();
        self.consumer_opened(handle, open[0].0.correlation);
        handle
    }

    fn consumer_opened(&mut self, handle: u32, correlation: u32) {
        self.answer(Answer::ConsumerOpened(wire::ConsumerOpenedT::default()), handle, correlation);
        assert_eq!(self.event(), Event::ConsumerOpened { handle });
    }
}

fn record(flags: u16, delta: u32, properties: &[u8], body: &[u8]) -> Vec<u8> {
    let header = record::RecordHeader {
        body_bytes: body.len() as u32,
        properties_bytes: properties.len() as u16,
        flags,
        sequence_delta: delta,
        time_delta_ms: delta,
    };
    [&header.encode(), properties, body].concat()
}

fn deliver(delivery_id: u64, flags: u16, records: &[Vec<u8>]) -> Vec<u8> {
    let header = DeliverHeader {
        delivery_id,
        base_sequence: 100,
        accepted_us: 5_000_000,
        record_count: records.len() as u32,
        crc32c: crate::base::checksum::crc32c(&records.concat()),
        attempts: 1,
        flags,
        priority: 0,
    };
    [&header.encode(), records.concat().as_slice()].concat()
}

fn bodies(frame: &[&[u8]]) -> Vec<Vec<u8>> {
    frame.iter().map(|body| body.to_vec()).collect()
}

// ---- hello ----

#[test]
fn hello_and_opens_are_pipelined() {
    let mut script = Script::new();
    let settings = ProducerSettings { queue: "q".into(), producer_id: 5, batch_bytes: 100 };
    let handle = script.session.open_producer(settings).unwrap();
    let opens = script.connect();
    assert_eq!((opens[0].0.opcode, opens[0].0.handle), (Opcode::ProducerOpen as u8, handle));
}

#[test]
fn a_peer_that_is_no_broker_is_told_apart_from_one_that_refuses() {
    let mut script = Script::new();
    script.session.handle_connected(NOW);
    script.give(b"HTTP/1.1 400 Bad Request\r\n");
    assert!(matches!(script.event(), Event::Lost(LostReason::Protocol(_))));

    let mut script = Script::new();
    script.session.handle_connected(NOW);
    script.give(&frame::preamble(0));
    let error =
        wire::ErrorT { code: ErrorCode::UnsupportedVersion as u16, ..wire::ErrorT::default() };
    script.answer(Answer::Error(error), 0, 0);
    let Event::Lost(LostReason::Fatal(error)) = script.event() else { panic!("not refused") };
    assert_eq!(error.code, Some(ErrorCode::UnsupportedVersion));
    // What comes behind is of no interest.
    script.give(b"more");
    script.no_event();
}

#[test]
fn silence_is_probed_then_given_up() {
    let mut script = Script::connected();
    let probe_at = script.session.poll_timeout().unwrap();
    assert_eq!(probe_at, NOW.plus_ms(1000));
    script.session.handle_timeout(probe_at);
    let ping = script.sent();
    assert_eq!(ping[0].0.opcode, Opcode::Ping as u8);
    script.frame(Opcode::Pong, 0, ping[0].0.correlation, &[]);
    script.no_event();
    script.session.handle_timeout(probe_at);
    assert_eq!(script.sent().len(), 1);
    let give_up_at = script.session.poll_timeout().unwrap();
    assert_eq!(give_up_at, probe_at.plus_ms(1000));
    script.session.handle_timeout(give_up_at);
    assert_eq!(script.event(), Event::Lost(LostReason::Silent));
}

#[test]
fn a_ping_of_the_broker_is_answered() {
    let mut script = Script::connected();
    script.frame(Opcode::Ping, 0, 77, &[]);
    let pong = script.sent();
    assert_eq!((pong[0].0.opcode, pong[0].0.correlation), (Opcode::Pong as u8, 77));
}

#[test]
fn requests_meet_their_answers_or_are_reported_unanswered() {
    let mut script = Script::connected();
    let request = Request::QueuePurge(wire::QueuePurgeT { name: "q".into(), subscription: None });
    let first = script.session.request(&request).unwrap();
    let second = script.session.request(&request).unwrap();
    script.answer(Answer::QueueRemoved(wire::QueueRemovedT::default()), 0, second);
    assert!(matches!(script.event(), Event::Answered { correlation, .. } if correlation == second));
    script.disconnect();
    assert_eq!(script.event(), Event::Unanswered { correlation: first });
    assert_eq!(script.session.request(&request), None);
}

// ---- publishing ----

#[test]
fn gathered_messages_leave_as_one_batch_and_are_confirmed_by_ordinal() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b", b"c"]);
    assert_eq!(script.batches(), [(5, 1, bodies(&[b"a", b"b", b"c"]))]);
    script.publish(handle, &[b"d"]);
    assert_eq!(script.batches(), [(5, 4, bodies(&[b"d"]))]);
    script.confirm(handle, 2, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 2, .. }));
    script.confirm(handle, 4, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 4, .. }));
    assert_eq!(script.session.producer(handle).outstanding_bytes, 0);
    script.confirm(handle, 5, MIB as u64);
    assert!(matches!(script.event(), Event::Lost(LostReason::Protocol(_))));
}

#[test]
fn a_window_too_small_for_a_batch_cuts_it() {
    let mut script = Script::connected();
    // Header 40, each record 16 + 10.
    let handle = script.producer(100);
    script.publish(handle, &[&[1; 10], &[2; 10], &[3; 10], &[4; 10]]);
    assert_eq!(script.batches(), [(5, 1, bodies(&[&[1; 10], &[2; 10]]))]);
    script.confirm(handle, 2, 92 + 66);
    assert_eq!(script.batches(), [(5, 3, bodies(&[&[3; 10]]))]);
    script.confirm(handle, 3, 92 + 66 + 65);
    assert_eq!(script.batches(), []);
    script.confirm(handle, 3, 92 + 66 + 66);
    assert_eq!(script.batches(), [(5, 4, bodies(&[&[4; 10]]))]);
}

#[test]
fn a_refusal_inside_a_batch_resumes_there_when_its_time_has_come() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b", b"c"]);
    script.publish(handle, &[b"d"]);
    script.batches();
    script.confirm(handle, 1, MIB as u64);
    script.refuse(handle, ErrorCode::ChecksumMismatch, 2, 50);
    assert_eq!(script.batches(), []);
    assert_eq!(script.session.poll_timeout(), Some(NOW.plus_ms(50)));
    script.session.handle_timeout(NOW.plus_ms(49));
    assert_eq!(script.batches(), []);
    script.session.handle_timeout(NOW.plus_ms(50));
    assert_eq!(script.batches(), [(5, 2, bodies(&[b"b", b"c"])), (5, 4, bodies(&[b"d"]))]);
}

fn blocked() -> Answer {
    let reason = Some("queue_messages_max".into());
    Answer::Blocked(wire::BlockedT { reason, ..wire::BlockedT::default() })
}

#[test]
fn a_queue_that_blocks_resumes_when_it_unblocks() {
    for blocked_first in [true, false] {
        let mut script = Script::connected();
        let handle = script.producer(MIB as u64);
        script.publish(handle, &[b"a", b"b"]);
        script.batches();
        if blocked_first {
            script.answer(blocked(), handle, 0);
        }
        script.refuse(handle, ErrorCode::QueueMessagesMax, 1, 1000);
        let pings = script.sent();
        if !blocked_first {
            script.answer(blocked(), handle, 0);
            script.frame(Opcode::Pong, 0, pings[0].0.correlation, &[]);
        }
        assert!(matches!(script.event(), Event::Blocked { .. }));
        assert!(script.session.producer(handle).blocked);
        let window_bytes_total = 2 * MIB as u64;
        let unblocked = wire::UnblockedT { window_bytes_total };
        script.answer(Answer::Unblocked(unblocked), handle, 0);
        assert_eq!(script.event(), Event::Unblocked { handle });
        assert_eq!(script.batches(), [(5, 1, bodies(&[b"a", b"b"]))]);
    }
}

#[test]
fn a_large_message_that_found_no_room_on_its_way_is_sent_again_in_time() {
    // 1 as in a queue that drops its oldest, 1000 as in one that blocks.
    for after_ms in [1, 1000] {
        let mut script = Script::connected();
        let handle = script.producer(MIB as u64);
        script.publish(handle, &[b"a"]);
        script.batches();
        script.refuse(handle, ErrorCode::NoRoomMidway, 1, after_ms);
        assert!(script.sent().is_empty(), "there is nothing to ask");
        script.no_event();
        script.session.handle_timeout(NOW.plus_ms(u64::from(after_ms) - 1));
        assert!(script.batches().is_empty());
        script.session.handle_timeout(NOW.plus_ms(u64::from(after_ms)));
        assert_eq!(script.batches(), [(5, 1, bodies(&[b"a"]))]);
    }
}

#[test]
fn a_queue_that_rejects_fails_the_batch_and_the_next_takes_its_sequence() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b"]);
    script.publish(handle, &[b"c"]);
    script.batches();
    script.refuse(handle, ErrorCode::QueueMessagesMax, 1, 100);
    let ping = script.sent();
    assert_eq!(ping[0].0.opcode, Opcode::Ping as u8);
    script.frame(Opcode::Pong, 0, ping[0].0.correlation, &[]);
    assert!(matches!(script.event(), Event::PublishFailed { first: 1, last: 2, .. }));
    assert_eq!(script.batches(), [(5, 1, bodies(&[b"c"]))]);
    script.confirm(handle, 1, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 3, .. }));
}

#[test]
fn a_message_refused_for_good_fails_alone() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b", b"bad", b"d"]);
    script.batches();
    // The broker refuses the batch as a whole; which message it is shows by halving.
    script.refuse(handle, ErrorCode::Unsupported, 1, 0);
    let halves = [(5, 1, bodies(&[b"a", b"b"])), (5, 3, bodies(&[b"bad", b"d"]))];
    assert_eq!(script.batches(), halves);
    script.confirm(handle, 2, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 2, .. }));
    script.refuse(handle, ErrorCode::Unsupported, 3, 0);
    assert_eq!(script.batches(), [(5, 3, bodies(&[b"bad"])), (5, 4, bodies(&[b"d"]))]);
    script.refuse(handle, ErrorCode::Unsupported, 3, 0);
    assert!(matches!(script.event(), Event::PublishFailed { first: 3, last: 3, .. }));
    assert_eq!(script.batches(), [(5, 3, bodies(&[b"d"]))]);
}

#[test]
fn a_reconnect_drops_what_the_broker_has_and_resends_the_rest() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b", b"c"]);
    script.publish(handle, &[b"d"]);
    script.batches();
    script.confirm(handle, 1, MIB as u64);
    script.event();
    script.disconnect();
    script.publish(handle, &[b"e"]);
    let open = script.connect();
    let Ok(Request::ProducerOpen(body)) = Request::decode(Opcode::ProducerOpen, &open[0].1) else {
        panic!("no open");
    };
    assert_eq!((body.producer_id, body.next_sequence), (5, 2));
    script.opened(handle, open[0].0.correlation, 2, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 2, .. }));
    let resent = script.batches();
    assert_eq!(resent[..2], [(5, 3, bodies(&[b"c"])), (5, 4, bodies(&[b"d"]))]);
    assert_eq!(resent[2], (5, 5, bodies(&[b"e"])));
}

#[test]
fn a_forgotten_producer_takes_a_new_id_and_counts_from_one() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b"]);
    script.batches();
    script.confirm(handle, 1, MIB as u64);
    script.event();
    script.disconnect();
    let open = script.connect();
    let code = ErrorCode::ProducerUnknown as u16;
    let error = wire::ErrorT { code, ..wire::ErrorT::default() };
    script.answer(Answer::Error(error), handle, open[0].0.correlation);
    assert_eq!(script.event(), Event::ProducerRenewed { handle, messages: 1 });
    let open = script.sent();
    let Ok(Request::ProducerOpen(body)) = Request::decode(Opcode::ProducerOpen, &open[0].1) else {
        panic!("no open");
    };
    assert_eq!(body.next_sequence, 1);
    assert_ne!(body.producer_id, 5);
    script.opened(handle, open[0].0.correlation, 0, MIB as u64);
    assert_eq!(script.batches(), [(body.producer_id, 1, bodies(&[b"b"]))]);
    script.confirm(handle, 1, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 2, .. }));
}

#[test]
fn a_producer_id_with_a_past_goes_on_behind_it() {
    let mut script = Script::connected();
    let settings = ProducerSettings { queue: "q".into(), producer_id: 9, batch_bytes: 1000 };
    let handle = script.session.open_producer(settings).unwrap();
    script.publish(handle, &[b"new"]);
    let open = script.sent();
    script.opened(handle, open[0].0.correlation, 500, MIB as u64);
    assert_eq!(script.batches(), [(9, 501, bodies(&[b"new"]))]);
    script.confirm(handle, 501, MIB as u64);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 1, .. }));
}

#[test]
fn a_fenced_producer_is_down_and_its_messages_can_be_given_up() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[b"a", b"b"]);
    let code = ErrorCode::ProducerFenced as u16;
    let error = wire::ErrorT { code, ..wire::ErrorT::default() };
    script.answer(Answer::Error(error), handle, 0);
    script.frame(Opcode::Closed, handle, 0, &[]);
    let Event::ProducerDown { error, .. } = script.event() else { panic!("not down") };
    script.session.abandon(handle, &error);
    assert!(matches!(script.event(), Event::PublishFailed { first: 1, last: 2, .. }));
}

#[test]
fn a_large_message_goes_in_fragments_as_one_sequence() {
    let mut script = Script::connected();
    let handle = script.producer(200_000);
    let body: Vec<u8> = (0..700_000).map(|at| (at % 251) as u8).collect();
    script.publish(handle, &[b"a", &body, b"z"]);
    let mut fragments = script.batches();
    assert_eq!(fragments.remove(0), (5, 1, bodies(&[b"a"])));
    assert_eq!(fragments.len(), 0, "a fragment is larger than what the window has left");
    script.confirm(handle, 1, 1_300_000);
    script.event();
    let mut fragments = script.batches();
    assert_eq!(fragments.pop(), Some((5, 3, bodies(&[b"z"]))));
    assert!(fragments.iter().all(|(_, sequence, _)| *sequence == 2));
    let joined: Vec<u8> = fragments.into_iter().flat_map(|(.., body)| body.concat()).collect();
    assert!(joined == body);
    // A confirm that only widens the window says nothing of the message.
    script.confirm(handle, 1, 2_400_000);
    script.no_event();
    // Refused in the middle, it starts again with its first fragment.
    script.refuse(handle, ErrorCode::ChecksumMismatch, 2, 0);
    assert_eq!(script.batches().len(), 4);
    script.confirm(handle, 3, 2_400_000);
    assert!(matches!(script.event(), Event::Confirmed { ordinal: 3, .. }));
    assert_eq!(script.session.producer(handle).outstanding_bytes, 0);
}

#[test]
fn fragments_carry_their_marks() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    script.publish(handle, &[&[1; 300_000]]);
    let frames = script.sent();
    let flags: Vec<u16> = frames
        .iter()
        .map(|(_, payload)| {
            let batch = Batch::decode(payload).unwrap();
            assert_eq!(batch.header.flags, FRAGMENT);
            batch.record_flags
        })
        .collect();
    let first = record::FRAGMENT_FIRST | record::BROKER_PROPERTIES;
    assert_eq!(flags, [first, record::FRAGMENT_LAST]);
}

#[test]
fn what_is_over_the_limits_is_refused_at_once() {
    let mut script = Script::connected();
    let handle = script.producer(MIB as u64);
    let error = script.session.publish(handle, &[], false, &vec![0; MIB + 1]).unwrap_err();
    assert!(matches!(error, ClientError::MessageTooLarge { .. }));
    let error = script.session.publish(handle, &vec![0; 40_000], false, &[]).unwrap_err();
    assert_eq!(error, ClientError::Properties(PropertiesError::TooLarge));
    assert_eq!(script.session.producer(handle).ordinal_last, 0);
}

// ---- consuming ----

#[test]
fn runs_stay_readable_until_more_bytes_are_handled() {
    let mut script = Script::connected();
    let handle = script.consumer(true);
    let records = [record(0, 0, &[], b"one"), record(0, 3, b"\x02\x01\x00i", b"two")];
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 0, &records));
    let Event::Delivered(run) = script.event() else { panic!("no run") };
    let messages: Vec<_> = script.session.messages(&run).collect();
    assert_eq!((messages[0].body, messages[1].body), (b"one".as_slice(), b"two".as_slice()));
    assert_eq!(consumer::sequence(&run.header, &messages[1].header), 103);
    assert_eq!(consumer::accepted_us(&run.header, &messages[1].header), 5_003_000);
    assert_eq!(run.records_bytes(), 16 + 3 + 16 + 4 + 3);
}

#[test]
#[should_panic(expected = "the run was overwritten")]
fn a_run_is_not_readable_later() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 0, &[record(0, 0, &[], b"one")]));
    let Event::Delivered(run) = script.event() else { panic!("no run") };
    script.frame(Opcode::Ping, 0, 1, &[]);
    script.session.records(&run);
}

#[test]
fn damaged_deliveries_end_the_connection() {
    let one = [record(0, 0, &[], b"one")];
    let mut crc = deliver(1, 0, &one);
    crc[28] ^= 1;
    let mut count = deliver(1, 0, &one);
    count[24] = 2;
    let gap = deliver(2, 0, &one);
    let last_without_first = deliver(1, DELIVER_FRAGMENT, &[record(4, 0, &[], b"one")]);
    let none = deliver(1, 0, &[]);
    for payload in [crc, count, gap, last_without_first, none] {
        let mut script = Script::connected();
        let handle = script.consumer(true);
        script.frame(Opcode::Deliver, handle, 0, &payload);
        assert!(matches!(script.event(), Event::Lost(LostReason::Protocol(_))));
    }
}

#[test]
fn fragments_are_put_together() {
    let mut script = Script::connected();
    let handle = script.consumer(true);
    let length = [&[1u8, 8, 0], 8u64.to_le_bytes().as_slice()].concat();
    let properties = [&length[..], b"\x02\x02\x00id"].concat();
    let parts = [
        record(record::FRAGMENT_FIRST, 0, &properties, b"abc"),
        record(0, 0, &[], b"def"),
        record(record::FRAGMENT_LAST, 0, &[], b"gh"),
    ];
    for part in &parts {
        let payload = deliver(1, DELIVER_FRAGMENT, std::slice::from_ref(part));
        script.frame(Opcode::Deliver, handle, 0, &payload);
    }
    let Event::DeliveredLarge(large) = script.event() else { panic!("no message") };
    assert_eq!((large.body.as_slice(), large.sequence), (b"abcdefgh".as_slice(), 100));
    assert_eq!(large.properties, b"\x02\x02\x00id");
    assert_eq!(large.records_bytes, parts.concat().len());
    script.frame(Opcode::Deliver, handle, 0, &deliver(2, 0, &[record(0, 1, &[], b"next")]));
    assert!(matches!(script.event(), Event::Delivered(_)));
}

#[test]
fn acks_and_credit_of_all_consumers_share_their_frames() {
    let mut script = Script::connected();
    let (first, second) = (script.consumer(false), script.consumer(false));
    let connection = script.session.connection();
    for id in 1..=5 {
        assert!(script.session.ack(first, connection, id, id));
    }
    script.session.ack(second, connection, 7, 9);
    script.session.ack(second, connection, 11, 11);
    script.session.credit(first, 3, 100);
    script.session.credit(first, 2, 50);
    let frames = script.sent();
    assert_eq!(frames.len(), 2);
    let ranges: Vec<_> = AckRange::decode_all(&frames[0].1).unwrap().collect();
    assert_eq!(
        ranges,
        [
            AckRange { handle: first, first: 1, last: 5 },
            AckRange { handle: second, first: 7, last: 9 },
            AckRange { handle: second, first: 11, last: 11 },
        ]
    );
    let entries: Vec<_> = CreditEntry::decode_all(&frames[1].1).unwrap().collect();
    assert_eq!(entries, [CreditEntry { handle: first, messages: 5, bytes: 150 }]);
    assert!(script.sent().is_empty());
}

#[test]
fn acks_can_be_waited_for() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.session.ack(handle, 1, 1, 4);
    let correlation = script.session.ack_now().unwrap();
    let frames = script.sent();
    assert_eq!(frames[0].0.opcode, Opcode::Ack as u8);
    let done = AckDone { acked: 3, late: 1 };
    script.frame(Opcode::AckDone, 0, frames[0].0.correlation, &done.encode());
    assert_eq!(script.event(), Event::Acked { correlation, done });
    // With nothing to ack, a ping shows that all before was answered.
    let correlation = script.session.ack_now().unwrap();
    assert_eq!(script.sent()[0].0.opcode, Opcode::Ping as u8);
    script.frame(Opcode::Pong, 0, correlation, &[]);
    assert_eq!(script.event(), Event::Acked { correlation, done: AckDone::default() });
}

#[test]
fn acks_of_an_old_connection_are_late() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 0, &[record(0, 0, &[], b"one")]));
    let Event::Delivered(run) = script.event() else { panic!("no run") };
    script.disconnect();
    assert!(!script.session.ack(handle, run.connection, 1, 1));
    let open = script.connect();
    script.consumer_opened(handle, open[0].0.correlation);
    assert!(!script.session.ack(handle, run.connection, 1, 1));
    assert!(script.sent().is_empty());
    // Ids begin anew.
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 1, &[record(0, 0, &[], b"one")]));
    let Event::Delivered(again) = script.event() else { panic!("no run") };
    assert!(script.session.ack(handle, again.connection, 1, 1));
    assert_eq!(script.sent().len(), 1);
}

#[test]
fn a_consumer_without_replenishing_opens_again_with_what_is_left() {
    let mut script = Script::connected();
    let settings = ConsumerSettings {
        queue: "q".into(),
        credit_messages: 3,
        credit_bytes: 1000,
        ..ConsumerSettings::default()
    };
    let handle = script.session.open_consumer(settings).unwrap();
    let open = script.sent();
    script.consumer_opened(handle, open[0].0.correlation);
    let records = [record(0, 0, &[], b"one"), record(0, 1, &[], b"two")];
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 0, &records));
    script.event();
    script.disconnect();
    let open = script.connect();
    let Ok(Request::ConsumerOpen(body)) = Request::decode(Opcode::ConsumerOpen, &open[0].1) else {
        panic!("no open");
    };
    assert_eq!((body.credit_messages, body.credit_bytes), (1, 1000 - 38));
}

#[test]
fn a_pull_ends_with_its_answer() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    let correlation = script.session.pull(handle, 5, 100, 0).unwrap();
    assert_eq!(script.sent()[0].0.opcode, Opcode::Pull as u8);
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 0, &[record(0, 0, &[], b"one")]));
    let done = PullDone { messages: 1 };
    script.frame(Opcode::PullDone, handle, correlation, &done.encode());
    assert!(matches!(script.event(), Event::Delivered(_)));
    assert_eq!(script.event(), Event::PullDone { correlation, handle, messages: 1 });
}

#[test]
fn a_closed_handle_is_used_again() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.session.ack(handle, 1, 1, 1);
    script.session.close(handle);
    let frames = script.sent();
    assert_eq!(frames[0].0.opcode, Opcode::Ack as u8);
    assert_eq!(frames[1].0.opcode, Opcode::ConsumerClose as u8);
    // What was under way is ignored.
    script.frame(Opcode::Deliver, handle, 0, &deliver(1, 0, &[record(0, 0, &[], b"one")]));
    script.frame(Opcode::Closed, handle, frames[1].0.correlation, &[]);
    assert_eq!(script.event(), Event::Closed { handle });
    assert_eq!(script.consumer(false), handle);
}

#[test]
fn bytes_may_come_one_by_one() {
    let mut whole = Vec::new();
    whole.extend_from_slice(&frame::preamble(frame::VERSION));
    let frame = |opcode, handle, correlation, payload: &[u8]| {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
        [&header.encode(), payload].concat()
    };
    let hello = Answer::HelloOk(wire::HelloOkT::default()).encode();
    whole.extend(frame(Opcode::HelloOk, 0, 1, &hello));
    let opened = Answer::ConsumerOpened(wire::ConsumerOpenedT::default()).encode();
    whole.extend(frame(Opcode::ConsumerOpened, 1, 2, &opened));
    whole.extend(frame(Opcode::Deliver, 1, 0, &deliver(1, 0, &[record(0, 0, &[], b"one")])));
    let mut script = Script::new();
    script.session.open_consumer(ConsumerSettings { queue: "q".into(), ..Default::default() });
    script.session.handle_connected(NOW);
    let mut events = Vec::new();
    for byte in whole {
        script.give(&[byte]);
        while let Some(event) = script.session.poll_event() {
            if let Event::Delivered(run) = &event {
                assert_eq!(script.session.messages(run).next().unwrap().body, b"one");
            }
            events.push(event);
        }
    }
    assert_eq!(events.len(), 3);
}
