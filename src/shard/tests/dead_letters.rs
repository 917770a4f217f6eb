//! Dead letters and their way back: moved once, kept when the target does not take
//! them, marked with where they come from and why.

use super::large::fragments_of;
use super::verbs::*;
use super::*;
use crate::format::dead_letter;
use crate::protocol::hot::NackKind;

/// A queue `q`, its options, and one connection with a producer (100) and a consumer (1).
fn bench_with(options: wire::SubscriptionOptionsT) -> (Bench, Key) {
    let mut bench = Bench::new();
    let key = bench.open();
    let answer = bench.create_with(key, "q", &[], options);
    assert!(matches!(answer, Answer::QueueDone(_)), "{answer:?}");
    bench.producer(key, "q", 100, 0);
    bench.consumer(key, "q", 1, 1000);
    (bench, key)
}

fn to(name: &str) -> wire::SubscriptionOptionsT {
    wire::SubscriptionOptionsT {
        dead_letter: Some(name.into()),
        backoff: no_backoff(),
        ..Default::default()
    }
}

fn default_options() -> wire::SubscriptionOptionsT {
    wire::SubscriptionOptionsT { max_attempts: 3, backoff: no_backoff(), ..Default::default() }
}

fn redrive(queue: &str) -> wire::RedriveT {
    wire::RedriveT { queue: queue.into(), ..Default::default() }
}

fn redriven((answer, _): (Answer, Vec<Frame>)) -> wire::RedrivenT {
    match answer {
        Answer::Redriven(body) => body,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_message_that_fails_too_often_goes_to_the_dead_letters() {
    let (mut bench, key) = bench_with(default_options());
    bench.frame(key, Opcode::Publish, 100, &batch_with_header(1, "lang", "en", b"poison"));
    for attempt in 1..=3u64 {
        bench.wait(1000);
        bench.nack(key, 1, NackKind::Failed, (attempt, attempt));
    }
    bench.settle();
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.failed, shown.dead_lettered, shown.dead_lettering), (3, 1, 0));
    assert_eq!(bench.describe(key, "q").memory_bytes, 0);
    let dead = bench.describe(key, "q.dead");
    assert_eq!((dead.ready, dead.counters.published, dead.counters.moved_in), (1, 1, 1));
    let frames = bench.consumer(key, "q.dead", 2, 1);
    assert_eq!(deliveries(&frames, 2), [(1, 1, b"poison".to_vec())]);
    let properties = first_properties(&frames);
    for (name, value) in [
        (&b"lang"[..], "en"),
        (dead_letter::QUEUE, "q"),
        (dead_letter::SUBSCRIPTION, "default"),
        (dead_letter::SEQUENCE, "1"),
        (dead_letter::REASON, "max_attempts"),
        (dead_letter::ERROR, "it failed"),
        (dead_letter::ATTEMPTS, "3"),
        (dead_letter::FIRST_US, "1700000001000000"),
        (dead_letter::LAST_US, "1700000003000000"),
        (dead_letter::HOPS, "1"),
    ] {
        assert_eq!(header_of(&properties, name), value, "{}", String::from_utf8_lossy(name));
    }
    // In a dead-letter queue made so nothing is given up by failures.
    let options = bench.subscription(key, "q.dead", "default").options;
    assert_eq!(options.max_attempts, u32::MAX);
}

#[test]
fn a_rejected_message_goes_at_once_and_others_stay() {
    let (mut bench, key) = bench_with(default_options());
    bench.publish(key, 100, 1, &[b"a", b"b", b"c"]);
    bench.nack(key, 1, NackKind::Rejected, (2, 2));
    bench.settle();
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.in_flight, shown.dead_lettered, shown.failed), (2, 1, 0));
    let frames = bench.consumer(key, "q.dead", 2, 1);
    assert_eq!(deliveries(&frames, 2)[0].2, b"b");
    assert_eq!(header_of(&first_properties(&frames), dead_letter::REASON), "rejected");
    assert_eq!(header_of(&first_properties(&frames), dead_letter::SEQUENCE), "2");
}

#[test]
fn a_missing_target_keeps_the_dead_letters_and_says_so() {
    let (mut bench, key) = bench_with(to("elsewhere"));
    bench.publish(key, 100, 1, &[b"a", b"b"]);
    bench.nack(key, 1, NackKind::Rejected, (1, 2));
    bench.settle();
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.dead_lettering, shown.dead_lettered), (2, 0));
    assert_eq!(shown.dead_letter_reason.as_deref(), Some("queue_not_found"));
    assert_eq!(bench.core.queues().count(), 1);
    bench.create(key, "elsewhere", wire::QueueOptionsT::default());
    bench.wait(1000);
    bench.settle();
    let shown = bench.subscription(key, "q", "default");
    assert_eq!((shown.dead_lettering, shown.dead_lettered, shown.dead_letter_reason), (0, 2, None));
    assert_eq!(bench.describe(key, "elsewhere").ready, 2);
}

#[test]
fn a_full_target_keeps_the_rest_until_there_is_room() {
    let (mut bench, key) = bench_with(to("small"));
    for on_full in [wire::OnFull::Block, wire::OnFull::Reject, wire::OnFull::DropNewest] {
        let options = wire::QueueOptionsT { messages_max: 3, on_full, ..Default::default() };
        bench.create(key, "small", options);
        let first = bench.describe(key, "q").counters.published + 1;
        for sequence in first..first + 10 {
            bench.publish(key, 100, sequence, &[b"x"]);
        }
        bench.nack(key, 1, NackKind::Rejected, (first, first + 9));
        bench.settle();
        let shown = bench.subscription(key, "q", "default");
        assert_eq!(shown.dead_lettering, 7);
        assert_eq!(shown.dead_letter_reason.as_deref(), Some("queue_messages_max"));
        let mut total = 0;
        while total < 10 {
            let purge = wire::QueuePurgeT { name: "small".into(), subscription: None };
            match bench.ask(key, Request::QueuePurge(purge), 0) {
                Answer::QueueRemoved(removed) => total += removed.messages,
                other => panic!("{other:?}"),
            }
            bench.wait(1000);
            bench.settle();
        }
        assert_eq!(total, 10, "none is there twice");
        assert_eq!(bench.subscription(key, "q", "default").dead_lettering, 0);
        let small = bench.describe(key, "small");
        assert_eq!((small.counters.moved_in, small.counters.dropped_newest), (10, 0));
        let delete = wire::QueueDeleteT { name: "small".into(), if_empty: false };
        bench.ask(key, Request::QueueDelete(delete), 0);
        bench.credit(key, 1, 1000);
    }
    // Who drops its oldest always has room.
    let on_full = wire::OnFull::DropOldest;
    let options = wire::QueueOptionsT { messages_max: 3, on_full, ..Default::default() };
    bench.create(key, "small", options);
    let first = bench.describe(key, "q").counters.published + 1;
    bench.publish(key, 100, first, &[&b"x"[..]; 10]);
    bench.nack(key, 1, NackKind::Rejected, (first, first + 9));
    bench.settle();
    let small = bench.describe(key, "small");
    assert_eq!((small.ready, small.counters.dropped_oldest), (3, 7));
}

#[test]
fn a_target_without_a_subscription_takes_nothing() {
    let (mut bench, key) = bench_with(to("deaf"));
    bench.create(key, "deaf", wire::QueueOptionsT::default());
    bench.unsubscribe(key, "deaf", "default", false);
    bench.publish(key, 100, 1, &[b"a"]);
    bench.nack(key, 1, NackKind::Rejected, (1, 1));
    bench.settle();
    let shown = bench.subscription(key, "q", "default");
    assert_eq!(shown.dead_letter_reason.as_deref(), Some("no_subscription"));
    assert_eq!(shown.dead_lettering, 1);
}

#[test]
fn a_circle_ends_after_so_many_rounds() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create_with(key, "a", &[], to("b"));
    bench.create_with(key, "b", &[], to("a"));
    bench.producer(key, "a", 100, 0);
    bench.publish(key, 100, 1, &[b"round and round"]);
    bench.consumer(key, "a", 1, 1000);
    bench.consumer(key, "b", 2, 1000);
    bench.settle();
    for nth in 0..100u64 {
        let handle = 1 + (nth % 2) as u32;
        bench.nack(key, handle, NackKind::Rejected, (nth / 2 + 1, nth / 2 + 1));
        bench.wait(1000);
        bench.settle();
    }
    let shown = bench.subscription(key, "a", "default");
    assert_eq!(shown.dead_letter_reason.as_deref(), Some("dead_letter_hops"));
    assert_eq!((shown.dead_lettering, shown.dead_lettered), (1, 8));
    assert_eq!(bench.describe(key, "b").ready, 0);
}

#[test]
fn a_name_too_long_for_its_dead_letters_keeps_them() {
    let mut bench = Bench::new();
    let key = bench.open();
    let name = "n".repeat(198);
    bench.create(key, &name, wire::QueueOptionsT::default());
    bench.producer(key, &name, 100, 0);
    bench.publish(key, 100, 1, &[b"a"]);
    bench.consumer(key, &name, 1, 1);
    bench.nack(key, 1, NackKind::Rejected, (1, 1));
    bench.settle();
    let shown = bench.subscription(key, &name, "default");
    assert_eq!(shown.dead_letter_reason.as_deref(), Some("bad_name"));
}

#[test]
fn a_large_message_moves_whole() {
    let (mut bench, key) = bench_with(default_options());
    let body: Vec<u8> = (0..600_000u32).map(|n| (n / 7) as u8).collect();
    for payload in fragments_of(&body, 1) {
        bench.frame(key, Opcode::Publish, 100, &payload);
    }
    bench.settle();
    bench.sent(key);
    bench.nack(key, 1, NackKind::Rejected, (1, 1));
    bench.settle();
    assert_eq!(bench.describe(key, "q").memory_bytes, 0);
    let mut frames = bench.consumer(key, "q.dead", 2, 10);
    for _ in 0..4 {
        bench.wait(0);
        frames.extend(bench.sent(key));
    }
    let got = deliveries(&frames, 2);
    assert!(got.iter().all(|m| m.0 == 1), "one message");
    assert!(got.into_iter().flat_map(|m| m.2).collect::<Vec<_>>() == body);
    let properties = first_properties(&frames);
    assert_eq!(header_of(&properties, dead_letter::QUEUE), "q");
    // And back.
    bench.core.close_handle(key, 2);
    let (answer, mut frames) = bench.redrive(key, redrive("q.dead"));
    let answer = redriven((answer, Vec::new()));
    assert_eq!((answer.messages, answer.refused, answer.finished), (1, 0, true));
    for _ in 0..4 {
        bench.wait(0);
        frames.extend(bench.sent(key));
    }
    let got = deliveries(&frames, 1);
    assert!(got.into_iter().flat_map(|m| m.2).collect::<Vec<_>>() == body);
    assert_eq!(header_of(&first_properties(&frames), dead_letter::QUEUE), "absent");
}

#[test]
fn a_message_as_large_as_a_record_can_be_moves_too() {
    let (mut bench, key) = bench_with(default_options());
    let body = vec![7; crate::limits::RECORD_CONTENT_BYTES_MAX];
    bench.publish(key, 100, 1, &[&body]);
    bench.nack(key, 1, NackKind::Rejected, (1, 1));
    bench.settle();
    let mut frames = bench.consumer(key, "q.dead", 2, 10);
    bench.wait(0);
    frames.extend(bench.sent(key));
    let got = deliveries(&frames, 2);
    assert!(got.into_iter().flat_map(|m| m.2).collect::<Vec<_>>() == body);
    bench.ack(key, 2, 1, 1);
    assert_eq!(bench.describe(key, "q.dead").memory_bytes, 0);
}

#[test]
fn redrive_gives_the_messages_back_to_where_they_came_from() {
    let (mut bench, key) = bench_with(default_options());
    let bodies: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];
    bench.publish(key, 100, 1, &bodies);
    bench.nack(key, 1, NackKind::Rejected, (1, 5));
    bench.settle();
    // One is in flight there: it is left alone.
    bench.consumer(key, "q.dead", 2, 1);
    let body = wire::RedriveT { count_max: 2, ..redrive("q.dead") };
    let (answer, mut frames) = bench.redrive(key, body);
    let answer = redriven((answer, Vec::new()));
    assert_eq!((answer.messages, answer.last_sequence, answer.finished), (2, 3, false));
    let body = wire::RedriveT { after_sequence: answer.last_sequence, ..redrive("q.dead") };
    let (answer, more) = bench.redrive(key, body);
    let answer = redriven((answer, Vec::new()));
    assert_eq!((answer.messages, answer.finished), (2, true));
    frames.extend(more);
    let got = deliveries(&frames, 1);
    let got: Vec<_> = got.into_iter().map(|m| (m.1, m.2)).collect();
    assert_eq!(got.len(), 4);
    assert_eq!(got[0], (1, b"b".to_vec()));
    let dead = bench.subscription(key, "q.dead", "default");
    assert_eq!((dead.redriven, dead.in_flight, dead.ready), (4, 1, 0));
    assert_eq!(bench.describe(key, "q").counters.moved_in, 4);
}

#[test]
fn only_the_subscription_that_gave_it_up_gets_it_back() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create_with(key, "q", &["audit", "mail"], default_options());
    bench.producer(key, "q", 100, 0);
    bench.publish(key, 100, 1, &[b"a", b"b"]);
    bench.consumer_of(key, ("q", "audit"), 1, 100);
    bench.consumer_of(key, ("q", "mail"), 2, 100);
    bench.ack(key, 1, 1, 2);
    bench.nack(key, 2, NackKind::Rejected, (1, 1));
    bench.ack(key, 2, 2, 2);
    bench.settle();
    bench.sent(key);
    assert_eq!(redriven(bench.redrive(key, redrive("q.dead"))).messages, 1);
    bench.settle();
    let frames = bench.publish(key, 100, 3, &[b"c"]);
    let both = [bench.sent(key), frames].concat();
    let bodies =
        |handle| -> Vec<Vec<u8>> { deliveries(&both, handle).into_iter().map(|m| m.2).collect() };
    assert_eq!(bodies(1), [b"c"]);
    assert!(bodies(2).ends_with(&[b"c".to_vec()]));
    let (audit, mail) =
        (bench.subscription(key, "q", "audit"), bench.subscription(key, "q", "mail"));
    assert_eq!((audit.entered, mail.entered), (3, 4));
    bench.ack(key, 1, 3, 3);
    bench.ack(key, 2, 3, 4);
    assert_eq!(bench.describe(key, "q").memory_bytes, 0);
    // A subscription that is gone: then all that are there get it.
    bench.publish(key, 100, 4, &[b"d"]);
    bench.ack(key, 1, 4, 4);
    bench.nack(key, 2, NackKind::Rejected, (5, 5));
    bench.settle();
    bench.unsubscribe(key, "q", "mail", true);
    bench.sent(key);
    assert_eq!(redriven(bench.redrive(key, redrive("q.dead"))).messages, 1);
    bench.settle();
    assert_eq!(bench.subscription(key, "q", "audit").in_flight, 1);
}

#[test]
fn a_filter_a_target_and_a_refusal_are_as_asked() {
    let (mut bench, key) = bench_with(default_options());
    for (sequence, lang) in [(1, "en"), (2, "de"), (3, "en")] {
        let batch = batch_with_header(sequence, "lang", lang, lang.as_bytes());
        bench.frame(key, Opcode::Publish, 100, &batch);
    }
    bench.nack(key, 1, NackKind::Rejected, (1, 3));
    bench.settle();
    let filtered = wire::RedriveT {
        filter_key: Some("lang".into()),
        filter_value: Some("de".into()),
        target: Some("workshop".into()),
        ..redrive("q.dead")
    };
    let answer = redriven(bench.redrive(key, filtered.clone()));
    assert_eq!((answer.messages, answer.refused), (0, 1));
    assert_eq!(answer.reason.as_deref(), Some("queue_not_found"));
    let dead = bench.subscription(key, "q.dead", "default");
    assert_eq!((dead.ready, dead.redriven, dead.dead_lettering), (3, 0, 0));
    bench.create(key, "workshop", wire::QueueOptionsT::default());
    let answer = redriven(bench.redrive(key, filtered));
    assert_eq!((answer.messages, answer.refused, answer.finished), (1, 0, true));
    assert_eq!(deliveries(&bench.consumer(key, "workshop", 2, 9), 2)[0].2, b"de");
    for (body, code) in [
        (redrive("none"), ErrorCode::QueueNotFound),
        (
            wire::RedriveT { target: Some("q.dead".into()), ..redrive("q.dead") },
            ErrorCode::BadOption,
        ),
        (
            wire::RedriveT { target: Some("no name".into()), ..redrive("q.dead") },
            ErrorCode::BadName,
        ),
    ] {
        assert_eq!(code_of(&bench.redrive(key, body).0), code);
    }
    // A message that never was a dead letter has nowhere to go back to.
    bench.producer(key, "q.dead", 101, 0);
    bench.publish(key, 101, 1, &[b"stray"]);
    let answer = redriven(bench.redrive(key, redrive("q.dead")));
    assert_eq!((answer.messages, answer.refused, answer.finished), (2, 1, true));
    assert_eq!(answer.reason.as_deref(), Some("no_origin"));
}

#[test]
fn a_subscription_that_goes_takes_its_dead_letters_with_it() {
    let (mut bench, key) = bench_with(to("elsewhere"));
    bench.publish(key, 100, 1, &[b"a", b"b"]);
    bench.nack(key, 1, NackKind::Rejected, (1, 1));
    bench.settle();
    bench.unsubscribe(key, "q", "default", true);
    bench.create(key, "elsewhere", wire::QueueOptionsT::default());
    bench.wait(5000);
    bench.settle();
    assert_eq!(bench.describe(key, "elsewhere").ready, 0);
    assert_eq!(bench.describe(key, "q").memory_bytes, 0);
    bench.core.memory.shrink(0);
    assert_eq!(bench.core.budget().used_by(crate::queue::memory::Account::InFlight), 0);
}

#[test]
fn a_drain_ends_although_dead_letters_wait_for_their_target() {
    let (mut bench, key) = bench_with(to("elsewhere"));
    bench.publish(key, 100, 1, &[b"a"]);
    bench.nack(key, 1, NackKind::Rejected, (1, 1));
    bench.settle();
    bench.core.drain(bench.now);
    bench.wait(200);
    bench.sent(key);
    while bench.core.poll_flush().is_some() {}
    assert!(bench.core.is_drained(bench.now));
}

#[test]
fn a_long_redrive_is_many_requests_and_each_has_its_bounds() {
    let (mut bench, key) = bench_with(default_options());
    bench.create(key, "q.dead", wire::QueueOptionsT::default());
    bench.producer(key, "q.dead", 101, 0);
    // Dead letters that say where they are from, made by hand: every tenth is wanted.
    let batches = 15;
    for batch in 0..batches {
        let mut builder = BatchBuilder::default();
        for nth in 0..1000 {
            let mut properties = crate::format::properties::PropertiesBuilder::default();
            properties.header(dead_letter::QUEUE, b"q").unwrap();
            properties.header(b"kind", if nth % 10 == 0 { b"good" } else { b"bad!" }).unwrap();
            builder.push(0, properties.bytes(), b"x");
        }
        let publish = builder.finish(0, 0, batch * 1000 + 1).to_vec();
        bench.frame(key, Opcode::Publish, 101, &publish);
    }
    let mut body = wire::RedriveT {
        filter_key: Some("kind".into()),
        filter_value: Some("good".into()),
        ..redrive("q.dead")
    };
    let answer = redriven(bench.redrive(key, body.clone()));
    assert_eq!((answer.messages, answer.last_sequence, answer.finished), (1000, 9991, false));
    body.after_sequence = answer.last_sequence;
    let answer = redriven(bench.redrive(key, body.clone()));
    assert_eq!((answer.messages, answer.last_sequence, answer.finished), (500, 15_000, true));
    let dead = bench.subscription(key, "q.dead", "default");
    assert_eq!((dead.ready, dead.redriven), (13_500, 1500));
    // Nothing is wanted: it looks at so many and no more.
    (body.after_sequence, body.filter_value) = (0, Some("none such".into()));
    let answer = redriven(bench.redrive(key, body));
    assert_eq!((answer.messages, answer.finished), (0, false));
    assert_eq!(answer.last_sequence, 11_112, "of every ten nine are left");
}

#[test]
fn a_redrive_ends_where_its_target_takes_no_more() {
    let (mut bench, key) = bench_with(default_options());
    for sequence in 0..3 {
        bench.publish(key, 100, sequence * 100 + 1, &[&b"x"[..]; 100]);
    }
    bench.nack(key, 1, NackKind::Rejected, (1, 300));
    bench.settle();
    let options = wire::QueueOptionsT { messages_max: 10, ..Default::default() };
    bench.create(key, "small", options);
    let body = wire::RedriveT { target: Some("small".into()), ..redrive("q.dead") };
    let answer = redriven(bench.redrive(key, body));
    assert_eq!((answer.messages, answer.refused, answer.finished), (10, 64, false));
    assert_eq!((answer.last_sequence, answer.reason.as_deref()), (74, Some("queue_messages_max")));
    let dead = bench.subscription(key, "q.dead", "default");
    assert_eq!((dead.ready, dead.redriven, dead.dead_lettering), (290, 10, 0));
    // The refused ones stand where they stood.
    let got = deliveries(&bench.consumer(key, "q.dead", 2, 1), 2);
    assert_eq!(got.len(), 1);
    assert_eq!(bench.describe(key, "q.dead").first_sequence, 1);
}
