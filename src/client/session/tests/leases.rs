//! Nacks, extensions and leases against scripted frames.

use super::*;
use crate::limits::{NACK_RANGES_MAX, NACK_TEXT_BYTES_MAX};
use crate::protocol::hot::{AckDone, ExtendRange, Nack, NackKind};

const LEASE_MS: u32 = 1000;

impl Script {
    /// A consumer that is open, whose held leases are extended.
    fn holder(&mut self) -> u32 {
        let settings = ConsumerSettings {
            queue: "q".into(),
            hold_ms: 3_600_000,
            ..ConsumerSettings::default()
        };
        let handle = self.session.open_consumer(settings).unwrap();
        let open = self.sent();
        let opened = wire::ConsumerOpenedT { lease_ms: LEASE_MS, ..Default::default() };
        self.answer(Answer::ConsumerOpened(opened), handle, open[0].0.correlation);
        assert_eq!(self.event(), Event::ConsumerOpened { handle });
        handle
    }

    fn deliver(&mut self, handle: u32, first: u64, count: u32) {
        let records: Vec<_> = (0..count).map(|nth| record(0, nth, &[], b"x")).collect();
        self.frame(Opcode::Deliver, handle, 0, &deliver(first, 0, &records));
        assert!(matches!(self.event(), Event::Delivered(_)));
    }

    fn nack(&mut self, handle: u32, first: u64, last: u64, refusal: &Refusal<'_>) -> bool {
        self.session.nack(handle, self.session.connection(), first, last, refusal)
    }
}

fn failed(text: &str) -> Refusal<'_> {
    Refusal { kind: NackKind::Failed, delay_ms: None, text }
}

fn opcodes(frames: &Frames) -> Vec<Opcode> {
    frames.iter().map(|(header, _)| Opcode::from_u8(header.opcode).unwrap()).collect()
}

#[test]
fn nacks_are_merged_by_what_they_say() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.deliver(handle, 1, 9);
    script.nack(handle, 1, 2, &failed("down"));
    script.nack(handle, 3, 3, &failed("down"));
    script.nack(handle, 4, 4, &Refusal { delay_ms: Some(50), ..failed("down") });
    script.nack(handle, 5, 5, &Refusal { kind: NackKind::Rejected, ..failed("bad") });
    script.nack(handle, 7, 7, &Refusal { kind: NackKind::Returned, ..failed("") });
    script.session.ack(handle, 1, 8, 8);
    script.session.extend(handle, 1, 9, 9, 5000);
    let frames = script.sent();
    assert_eq!(
        opcodes(&frames),
        [Opcode::Extend, Opcode::Ack, Opcode::Nack, Opcode::Nack, Opcode::Nack]
    );
    let extends: Vec<_> = ExtendRange::decode_all(&frames[0].1).unwrap().collect();
    assert_eq!(extends, [ExtendRange { handle, lease_ms: 5000, first: 9, last: 9 }]);
    let nack = Nack::decode(&frames[2].1).unwrap();
    assert_eq!((nack.text, nack.ranges.len()), ("down", 2));
    assert_eq!((nack.ranges[0].first, nack.ranges[0].last, nack.ranges[0].delay_ms), (1, 3, None));
    assert_eq!(nack.ranges[1].delay_ms, Some(50));
    assert_eq!(Nack::decode(&frames[3].1).unwrap().ranges[0].kind, NackKind::Rejected);
    assert_eq!(Nack::decode(&frames[4].1).unwrap().ranges[0].kind, NackKind::Returned);
}

#[test]
fn a_nack_frame_keeps_its_limits() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    // Cut between characters, of which each has three bytes.
    let text = "\u{20ac}".repeat(1000);
    for nth in 0..NACK_RANGES_MAX as u64 + 1 {
        script.nack(handle, nth * 2 + 1, nth * 2 + 1, &failed(&text));
    }
    let frames = script.sent();
    assert_eq!(frames.len(), 2);
    let nack = Nack::decode(&frames[0].1).unwrap();
    assert_eq!(nack.ranges.len(), NACK_RANGES_MAX);
    assert!(nack.text.len() > NACK_TEXT_BYTES_MAX - 3);
    assert_eq!(Nack::decode(&frames[1].1).unwrap().ranges.len(), 1);
}

#[test]
fn one_answer_sums_up_all_frames() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.deliver(handle, 1, 4);
    script.session.ack(handle, 1, 1, 2);
    script.nack(handle, 3, 3, &failed("a"));
    script.nack(handle, 4, 4, &failed("b"));
    let asked = script.session.ack_now().unwrap();
    let frames = script.sent();
    let correlations: Vec<u32> = frames.iter().map(|(header, _)| header.correlation).collect();
    assert!(correlations.iter().all(|&correlation| correlation != 0 && correlation != asked));
    // Also in another order, for several shards may have answered.
    for (nth, (acked, late)) in [(2, (1, 0)), (0, (1, 1)), (1, (0, 1))] {
        script.no_event();
        let done = AckDone { acked, late };
        script.frame(Opcode::AckDone, 0, correlations[nth], &done.encode());
    }
    let done = AckDone { acked: 2, late: 2 };
    assert_eq!(script.event(), Event::Acked { correlation: asked, done });
    // Twice is not an answer.
    script.frame(Opcode::AckDone, 0, correlations[0], &done.encode());
    assert!(matches!(script.event(), Event::Lost(LostReason::Protocol(_))));
}

#[test]
fn a_refused_part_answers_for_all() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.deliver(handle, 1, 2);
    script.session.ack(handle, 1, 1, 1);
    script.nack(handle, 2, 2, &failed("a"));
    let asked = script.session.ack_now().unwrap();
    let frames = script.sent();
    let error = wire::ErrorT { code: ErrorCode::NeverDelivered as u16, ..Default::default() };
    script.answer(Answer::Error(error), 0, frames[0].0.correlation);
    let event = script.event();
    assert!(matches!(event, Event::Refused { correlation, .. } if correlation == asked));
    let done = AckDone { acked: 1, late: 0 };
    script.frame(Opcode::AckDone, 0, frames[1].0.correlation, &done.encode());
    script.no_event();
}

#[test]
fn an_answer_to_an_old_delivery_is_not_sent() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.deliver(handle, 1, 1);
    script.disconnect();
    let open = script.connect();
    script.consumer_opened(handle, open[0].0.correlation);
    assert!(!script.session.nack(handle, 1, 1, 1, &failed("late")));
    assert!(!script.session.extend(handle, 1, 1, 1, 0));
    assert_eq!(script.sent(), []);
}

#[test]
fn what_waits_to_be_said_ends_with_its_connection() {
    let mut script = Script::connected();
    let handle = script.consumer(false);
    script.deliver(handle, 1, 3);
    script.nack(handle, 1, 1, &failed("x"));
    script.session.extend(handle, 1, 2, 2, 0);
    script.disconnect();
    let open = script.connect();
    script.consumer_opened(handle, open[0].0.correlation);
    assert_eq!(script.sent(), []);
}

#[test]
fn held_leases_are_extended_in_time() {
    let mut script = Script::connected();
    let handle = script.holder();
    assert_eq!(script.session.lease_ms(handle), LEASE_MS);
    script.deliver(handle, 1, 5);
    script.session.ack(handle, 1, 1, 2);
    script.nack(handle, 4, 4, &failed(""));
    script.sent();
    let due = NOW.plus_ms(u64::from(LEASE_MS) / 2);
    assert_eq!(script.session.poll_timeout(), Some(due));
    script.session.handle_timeout(due);
    let frames = script.sent();
    let extends: Vec<_> = ExtendRange::decode_all(&frames[0].1).unwrap().collect();
    let range = |first, last| ExtendRange { handle, lease_ms: 0, first, last };
    assert_eq!(extends, [range(3, 3), range(5, 5)]);
    // With nothing held there is nothing to do but to probe.
    script.session.ack(handle, 1, 3, 5);
    script.sent();
    assert_eq!(script.session.poll_timeout(), Some(NOW.plus_ms(1000)));
}

#[test]
fn a_late_extension_is_a_fault_and_no_end() {
    let mut script = Script::connected();
    let handle = script.holder();
    script.deliver(handle, 1, 1);
    script.session.extend(handle, 1, 1, 1, 0);
    script.sent();
    let error = wire::ErrorT { code: ErrorCode::LateAck as u16, ..Default::default() };
    script.answer(Answer::Error(error), handle, 0);
    assert!(matches!(script.event(), Event::Fault { .. }));
    assert!(script.session.is_connected());
}

#[test]
fn a_consumer_whose_subscription_is_deleted_is_down() {
    let mut script = Script::connected();
    let handle = script.holder();
    script.deliver(handle, 1, 1);
    let error = wire::ErrorT { code: ErrorCode::SubscriptionDeleted as u16, ..Default::default() };
    script.answer(Answer::Error(error), handle, 0);
    assert!(matches!(script.event(), Event::ConsumerDown { .. }));
    script.frame(Opcode::Closed, handle, 0, &[]);
    assert!(!script.session.ack(handle, 1, 1, 1));
    script.session.handle_timeout(NOW.plus_ms(u64::from(LEASE_MS)));
    assert!(!opcodes(&script.sent()).contains(&Opcode::Extend));
}

#[test]
fn a_broker_that_gives_no_lease_is_believed() {
    for lease_ms in [0, 1, u32::MAX] {
        let mut script = Script::connected();
        let settings = ConsumerSettings { queue: "q".into(), hold_ms: 1, ..Default::default() };
        let handle = script.session.open_consumer(settings).unwrap();
        let open = script.sent();
        let opened = wire::ConsumerOpenedT { lease_ms, ..Default::default() };
        script.answer(Answer::ConsumerOpened(opened), handle, open[0].0.correlation);
        script.event();
        script.deliver(handle, 1, 1);
        let mut now = NOW;
        for _ in 0..10 {
            now = now.plus_ms(1);
            script.session.handle_timeout(now);
        }
        assert!(script.sent().len() <= 1);
    }
}

#[test]
fn a_session_knows_whether_it_is_at_home() {
    let mut script = Script::new();
    script.session.handle_connected(NOW);
    let hello = script.sent();
    script.give(&frame::preamble(frame::VERSION));
    let ok = wire::HelloOkT { shards: 4, shard: 2, ..wire::HelloOkT::default() };
    script.answer(Answer::HelloOk(ok), 0, hello[0].0.correlation);
    script.event();
    assert_eq!(script.session.shard(), 2);
    for (home_shard, at_home) in [(2, true), (3, false)] {
        let settings = ConsumerSettings { queue: "q".into(), ..Default::default() };
        let handle = script.session.open_consumer(settings).unwrap();
        let open = script.sent();
        let opened = wire::ConsumerOpenedT { home_shard, ..Default::default() };
        script.answer(Answer::ConsumerOpened(opened), handle, open[0].0.correlation);
        script.event();
        assert_eq!(script.session.is_at_home(handle), at_home);
    }
}

/// The broker will have it later: nothing ends, and what is held is extended when it is due again.
#[test]
fn an_extension_that_comes_too_often_is_a_fault_and_is_tried_again() {
    let mut script = Script::connected();
    let handle = script.holder();
    script.deliver(handle, 1, 5);
    script.sent();
    let half_ms = u64::from(LEASE_MS) / 2;
    for round in 1..=3 {
        script.session.handle_timeout(NOW.plus_ms(round * half_ms));
        // A probe may be among them.
        let mut frames = script.sent();
        frames.retain(|frame| frame.0.opcode == Opcode::Extend as u8);
        let extends: Vec<_> = ExtendRange::decode_all(&frames[0].1).unwrap().collect();
        assert_eq!(extends, [ExtendRange { handle, lease_ms: 0, first: 1, last: 5 }]);
        let error = wire::ErrorT { code: ErrorCode::ExtendsMax as u16, ..Default::default() };
        script.answer(Answer::Error(error), handle, 0);
        match script.event() {
            Event::Fault { handle: of, error } => {
                assert!(of == handle && error.is_retryable(), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(script.session.is_connected());
    assert!(script.session.ack(handle, 1, 1, 5));
}
