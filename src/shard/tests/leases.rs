//! Leases, nacks and extensions: who comes late is told so, who fails waits, and a consumer that
//! never acks holds up nobody but itself.

use super::verbs::*;
use super::*;
use crate::limits::EXTEND_RANGES_MAX;
use crate::protocol::hot::{ExtendRange, NackKind, NackRange};

/// A queue `q` with so many messages and options, and its one connection.
fn bench_with(messages: u64, options: wire::SubscriptionOptionsT) -> (Bench, Key) {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create_with(key, "q", &[], options);
    bench.producer(key, "q", 100, 0);
    for sequence in 1..=messages {
        bench.publish(key, 100, sequence, &[format!("m{sequence}").as_bytes()]);
    }
    (bench, key)
}

fn short_lease() -> wire::SubscriptionOptionsT {
    wire::SubscriptionOptionsT { lease_ms: 1000, backoff: no_backoff(), ..Default::default() }
}

#[test]
fn a_lease_that_ends_gives_the_message_to_another_and_its_ack_is_late() {
    let (mut bench, key) = bench_with(1, short_lease());
    let other = bench.open();
    assert_eq!(deliveries(&bench.consumer(key, "q", 1, 10), 1), [(1, 1, b"m1".to_vec())]);
    bench.consumer(other, "q", 1, 10);
    bench.wait(999);
    assert!(bench.sent(other).is_empty() && bench.sent(key).is_empty());
    bench.wait(1);
    let again = [bench.sent(key), bench.sent(other)].concat();
    let again = deliveries(&again, 1);
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].1, &again[0].2[..]), (2, &b"m1"[..]));
    assert_eq!(bench.ack(key, 1, 1, 1).0, AckDone { acked: 0, late: 1 });
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.failed, shown.returned, shown.in_flight), (1, 0, 1));
    // Without a correlation the late ack is an error; so are a late nack and a late extension.
    let range = AckRange { handle: 1, first: 1, last: 1 };
    let late = bench.bytes(key, &encode(Opcode::Ack, 0, 0, &range.encode()));
    assert_eq!(first_code(&late), ErrorCode::LateAck);
    let extended = bench.extend(key, 1, 0, (1, 1));
    assert_eq!(AckDone::decode(&extended[0].1), Some(AckDone { acked: 0, late: 1 }));
    let nacked = bench.nack(key, 1, NackKind::Rejected, (1, 1));
    assert_eq!(AckDone::decode(&nacked[0].1), Some(AckDone { acked: 0, late: 1 }));
    assert_eq!(bench.subscription(key, "q", "default").in_flight, 1);
}

#[test]
fn who_extends_in_time_keeps_the_message() {
    let (mut bench, key) = bench_with(2, short_lease());
    bench.consumer(key, "q", 1, 10);
    for _ in 0..10 {
        bench.wait(500);
        // The second is not extended: it fails and comes back, again and again.
        assert_eq!(deliveries(&bench.sent(key), 1).iter().filter(|m| m.2 == b"m1").count(), 0);
        let frames = bench.extend(key, 1, 0, (1, 1));
        assert_eq!(AckDone::decode(&frames[0].1), Some(AckDone { acked: 1, late: 0 }));
    }
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.in_flight, shown.failed), (2, 5));
    // An extension may also shorten: then it ends sooner.
    bench.extend(key, 1, 100, (1, 1));
    bench.wait(100);
    assert_eq!(deliveries(&bench.sent(key), 1)[0].2, b"m1");
}

#[test]
fn ranges_that_were_never_delivered_or_are_anothers_are_faults() {
    let (mut bench, key) = bench_with(3, short_lease());
    let other = bench.open();
    bench.consumer(key, "q", 1, 2);
    let first_of = |frames: &[Frame]| first_code(frames);
    assert_eq!(first_of(&bench.extend(key, 1, 0, (1, 3))), ErrorCode::NeverDelivered);
    assert_eq!(first_of(&bench.extend(key, 1, 0, (2, 1))), ErrorCode::NeverDelivered);
    assert_eq!(first_of(&bench.nack(key, 1, NackKind::Failed, (0, 1))), ErrorCode::NeverDelivered);
    assert_eq!(first_of(&bench.extend(key, 9, 0, (1, 1))), ErrorCode::UnknownHandle);
    assert_eq!(first_of(&bench.nack(key, 100, NackKind::Failed, (1, 1))), ErrorCode::UnknownHandle);
    // Another connection's handle of the same number is another consumer: it was given nothing.
    bench.consumer(other, "q", 1, 0);
    assert_eq!(
        first_of(&bench.nack(other, 1, NackKind::Rejected, (1, 1))),
        ErrorCode::NeverDelivered
    );
    let range = AckRange { handle: 1, first: 1, last: 2 };
    let frames = bench.frame(other, Opcode::Ack, 0, &range.encode());
    assert_eq!(first_of(&frames), ErrorCode::NeverDelivered);
    assert_eq!(bench.subscription(key, "q", "default").in_flight, 2);
    // Times out of bounds name their limit.
    for lease_ms in [99, 43_200_001, u32::MAX] {
        let frames = bench.extend(key, 1, lease_ms, (1, 1));
        assert_eq!(first_of(&frames), ErrorCode::BadOption);
        assert!(error_of(&frames[0]).1.limit_name.unwrap().starts_with("LEASE_MS_"));
    }
    let kind = NackKind::Failed;
    let delay_ms = Some(604_800_001);
    let range = NackRange { handle: 1, kind, first: 1, last: 1, delay_ms };
    let frames = bench.nack_with(key, range, "");
    assert_eq!(first_of(&frames), ErrorCode::BadOption);
    assert_eq!(error_of(&frames[0]).1.limit_name.as_deref(), Some("BACKOFF_MS_MAX"));
    assert_eq!(bench.subscription(key, "q", "default").in_flight, 2);
}

/// One frame that names thousands of leases 2048 times: one answer, little work, and the consumer
/// goes on as before.
#[test]
fn a_frame_that_extends_the_same_leases_again_and_again_is_refused_by_name() {
    const LEASES: u64 = 3000;
    let (mut bench, key) = bench_with(LEASES, short_lease());
    bench.consumer(key, "q", 1, LEASES as u32);
    bench.settle();
    let range = ExtendRange { handle: 1, lease_ms: 0, first: 1, last: LEASES };
    let all = range.encode().repeat(EXTEND_RANGES_MAX);
    bench.wait(1);
    let frames = bench.frame(key, Opcode::Extend, 0, &all);
    assert_eq!(frames.len(), 1);
    let (code, error) = error_of(&frames[0]);
    assert_eq!((frames[0].0.handle, code), (1, ErrorCode::ExtendsMax));
    assert!(ErrorCode::ExtendsMax.is_retryable() && !ErrorCode::ExtendsMax.is_fatal());
    assert_eq!(error.limit_name.as_deref(), Some("EXTENDED_LEASES_PER_TICK_MAX"));
    assert!((2 * LEASES..=4 * LEASES).contains(&error.limit_value), "{error:?}");
    // Where no answer was asked for, each range that was not extended is told of.
    bench.wait(1);
    let frames = bench.bytes(key, &encode(Opcode::Extend, 0, 0, &range.encode().repeat(10)));
    assert!((6..10).contains(&frames.len()), "{}", frames.len());
    assert!(frames.iter().all(|frame| error_of(frame).0 == ErrorCode::ExtendsMax));
    // In the next tick it is as it was; and all were extended.
    bench.wait(998);
    let done = AckDone::decode(&bench.extend(key, 1, 0, (1, LEASES))[0].1);
    assert_eq!(done, Some(AckDone { acked: LEASES, late: 0 }));
    bench.wait(999);
    assert_eq!(bench.subscription(key, "q", "default").failed, 0);
}

#[test]
fn frames_that_are_no_nack_or_extend_end_the_connection() {
    let (mut bench, _) = bench_with(0, short_lease());
    let kind = NackKind::Failed;
    let range = NackRange { handle: 1, kind, first: 1, last: 1, delay_ms: None };
    let whole = crate::protocol::hot::Nack { ranges: vec![range], text: "why" }.encode();
    let mut bad_kind = whole.clone();
    bad_kind[12] = 3;
    let mut many = whole.clone();
    many[0..4].copy_from_slice(&1025u32.to_le_bytes());
    let mut no_text = whole.clone();
    let end = no_text.len();
    no_text[end - 1] = 0xff;
    for (opcode, payload) in [
        (Opcode::Nack, &whole[..7]),
        (Opcode::Nack, &whole[..end - 1]),
        (Opcode::Nack, &bad_kind[..]),
        (Opcode::Nack, &many[..]),
        (Opcode::Nack, &no_text[..]),
        (Opcode::Extend, &[0; 23][..]),
        (Opcode::Extend, &[0; 24 * 2049][..]),
    ] {
        let key = bench.open();
        assert_eq!(first_code(&bench.frame(key, opcode, 0, payload)), ErrorCode::BadFrame);
    }
}

#[test]
fn a_failed_message_waits_a_returned_one_does_not() {
    let options = wire::SubscriptionOptionsT { backoff: fixed(5000), ..Default::default() };
    let (mut bench, key) = bench_with(3, options);
    bench.consumer(key, "q", 1, 3);
    bench.nack(key, 1, NackKind::Failed, (1, 1));
    let kind = NackKind::Failed;
    let range = NackRange { handle: 1, kind, first: 2, last: 2, delay_ms: Some(1000) };
    bench.nack_with(key, range, "");
    bench.nack(key, 1, NackKind::Returned, (3, 3));
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.ready, shown.delayed, shown.in_flight), (1, 2, 0));
    assert_eq!((shown.failed, shown.returned), (2, 1));
    assert_eq!(deliveries(&bench.credit(key, 1, 10), 1), [(4, 2, b"m3".to_vec())]);
    bench.wait(999);
    assert!(bench.sent(key).is_empty());
    bench.wait(1);
    assert_eq!(deliveries(&bench.sent(key), 1), [(5, 2, b"m2".to_vec())]);
    bench.wait(3999);
    assert!(bench.sent(key).is_empty());
    bench.wait(1);
    assert_eq!(deliveries(&bench.sent(key), 1), [(6, 2, b"m1".to_vec())]);
}

/// While one consumer holds a message, another gets all the others.
#[test]
fn one_slow_message_blocks_nobody() {
    let (mut bench, key) = bench_with(1000, short_lease());
    let slow = bench.open();
    assert_eq!(deliveries(&bench.consumer(slow, "q", 1, 1), 1).len(), 1);
    let mut got = deliveries(&bench.consumer(key, "q", 2, 256), 2);
    let mut bodies = std::collections::BTreeSet::new();
    while let Some(last) = got.last().map(|m| m.0) {
        bodies.extend(got.drain(..).map(|m| m.2));
        let (_, mut frames) = bench.ack(key, 2, 1, last);
        frames.extend(bench.credit(key, 2, 100));
        got = deliveries(&frames, 2);
    }
    assert_eq!(bodies.len(), 999);
    assert!(!bodies.contains(&b"m1"[..]));
    bench.wait(1000);
    assert_eq!(deliveries(&bench.sent(key), 2)[0].2, b"m1");
}

#[test]
fn a_consumer_that_never_acks_is_at_its_bound_and_the_others_go_on() {
    let options = wire::SubscriptionOptionsT { unacked_max: 10, ..short_lease() };
    let (mut bench, key) = bench_with(100, options);
    let hoarder = bench.open();
    let open = wire::ConsumerOpenT {
        queue: "q".into(),
        credit_messages: 1000,
        credit_bytes: 1 << 20,
        unacked_max: 4,
        ..Default::default()
    };
    let open = Request::ConsumerOpen(open).encode();
    let frames = bench.frame(hoarder, Opcode::ConsumerOpen, 1, &open);
    assert_eq!(deliveries(&frames, 1).len(), 4);
    let mut last = deliveries(&bench.consumer(key, "q", 1, 1000), 1).len() as u64;
    assert_eq!(last, 6, "what the subscription may have in flight, less the hoarder's");
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.in_flight, shown.paused_reason.as_deref()), (10, Some("unacked_max")));
    let mut done = 0;
    while done < last {
        let (acked, frames) = bench.ack(key, 1, done + 1, last);
        done += acked.acked;
        last += deliveries(&frames, 1).len() as u64;
    }
    assert_eq!(done, 96);
    // The leases of the hoarder end: it gets the same four again and nobody waits for it.
    bench.core.close_handle(hoarder, 1);
    bench.wait(0);
    assert_eq!(deliveries(&bench.sent(key), 1).len(), 4);
}

/// A consumer that comes and goes gives its messages back as often as it likes; none
/// of that counts as a failure, and nothing goes to the dead letters.
#[test]
fn a_consumer_that_reconnects_in_a_loop_burns_no_attempts() {
    let options = wire::SubscriptionOptionsT { max_attempts: 2, ..Default::default() };
    let (mut bench, watcher) = bench_with(10, options);
    for round in 1..=100u16 {
        let key = bench.open();
        let got = deliveries(&bench.consumer(key, "q", 1, 100), 1);
        assert_eq!(got.len(), 10, "all of them, at once");
        assert_eq!((got[0].1, &got[0].2[..]), (round, &b"m1"[..]));
        bench.core.handle_closed(key);
        bench.wait(1);
    }
    let shown = bench.subscription(watcher, "q", "default");
    assert_eq!((shown.ready, shown.failed, shown.returned), (10, 0, 1000));
    assert_eq!((shown.dead_lettered, shown.dead_lettering), (0, 0));
}

/// By default a bare nack does not burn all attempts in milliseconds.
#[test]
fn a_consumer_that_nacks_at_once_is_slowed_down() {
    let (mut bench, key) = bench_with(100, wire::SubscriptionOptionsT::default());
    let mut frames = bench.consumer(key, "q", 1, 1000);
    let mut delivered = 0;
    for _ in 0..1000 {
        let got = deliveries(&frames, 1);
        delivered += got.len();
        if let (Some(first), Some(last)) = (got.first(), got.last()) {
            bench.nack(key, 1, NackKind::Failed, (first.0, last.0));
        }
        bench.wait(1);
        frames = bench.sent(key);
    }
    // In the first second a message is tried about four times, with jitter.
    assert!(delivered < 1500, "{delivered}");
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.dead_lettered, shown.dead_lettering, shown.acked), (0, 0, 0));
}

#[test]
fn a_thousand_consumers_share_a_queue() {
    let (mut bench, key) = bench_with(0, short_lease());
    let connections: Vec<Key> = (0..10).map(|_| bench.open()).collect();
    for (nth, &connection) in connections.iter().cycle().take(1000).enumerate() {
        bench.consumer(connection, "q", 1 + nth as u32 / 10, 2);
    }
    let bodies: Vec<&[u8]> = vec![b"x"; 2000];
    bench.publish(key, 100, 1, &bodies);
    bench.settle();
    let mut delivered = 0;
    for &connection in &connections {
        let frames = bench.sent(connection);
        for handle in 1..=100 {
            assert_eq!(deliveries(&frames, handle).len(), 2, "each as much as it asked for");
            delivered += 2;
        }
    }
    assert_eq!(delivered, 2000);
    assert_eq!(bench.describe(key, "q").consumers, 1000);
    // All leases end at once; everything is ready again, by one timer.
    assert!(bench.core.queue_deadlines.len() <= 1);
    bench.wait(1000);
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.ready, shown.in_flight, shown.failed), (2000, 0, 2000));
}

#[test]
fn timers_of_leases_never_pile_up() {
    let (mut bench, key) = bench_with(0, wire::SubscriptionOptionsT::default());
    bench.consumer(key, "q", 1, 1);
    for sequence in 1..=1000 {
        bench.publish(key, 100, sequence, &[b"x"]);
        bench.extend(key, 1, 100 + (sequence % 7) as u32 * 1000, (sequence, sequence));
        bench.ack(key, 1, sequence, sequence);
        bench.credit(key, 1, 1);
        bench.wait(1);
        assert!(bench.core.queue_deadlines.len() <= 1);
    }
    // Nothing is in flight: the last timer finds nothing and sets no other.
    bench.wait(3_600_000);
    assert!(bench.core.queue_deadlines.is_empty());
}
