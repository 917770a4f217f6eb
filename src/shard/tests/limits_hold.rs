//! What a peer could make the shard hold or do beyond its limits, and time that passes unnoticed.

use super::large::fragments_of;
use super::*;
use crate::queue::memory::Account;
use crate::shard::outbound::Flushed;

#[test]
fn answers_to_one_read_are_bounded() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.publish(key, 1, 1, &[&vec![1; 200_000]]);
    let peek = wire::QueuePeekT { name: "q".into(), count_max: 1, ..wire::QueuePeekT::default() };
    let peek = encode(Opcode::QueuePeek, 0, 1, &Request::QueuePeek(peek).encode());
    let many = peek.repeat(1000);
    bench.core.begin_tick(bench.now);
    bench.core.handle_bytes(key, &many, many.len(), bench.now);
    let unsent = bench.core.outbound(key).unwrap().unsent_bytes();
    let most = limits::UNSENT_BYTES_MAX + limits::ANSWER_PAYLOAD_BYTES_MAX;
    assert!(unsent > limits::UNSENT_BYTES_MAX && unsent < most, "{unsent}");
    assert_eq!(bench.core.poll_close(), Some(key));
}

#[test]
fn pulls_that_ended_leave_no_timers_behind() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.consumer(key, "q", 2, 0);
    let before = bench.core.deadlines.len();
    let pull = |wait_ms| Pull { messages_max: 1, wait_ms, bytes_max: 0 }.encode();
    for sequence in 1..=1000 {
        bench.now.mono = bench.now.mono.plus_ms(1);
        bench.frame(key, Opcode::Pull, 2, &pull(limits::PULL_WAIT_MS_MAX));
        let frames = bench.publish(key, 1, sequence, &[b"a"]);
        assert_eq!(bodies_of(&frames).len(), 1);
    }
    assert!(bench.core.deadlines.len() <= before + 2, "{}", bench.core.deadlines.len());
    // The timer of a longer pull does not hide a shorter one behind it.
    bench.frame(key, Opcode::Pull, 2, &pull(50));
    bench.now.mono = bench.now.mono.plus_ms(50);
    bench.core.begin_tick(bench.now);
    bench.turn();
    assert_eq!(bench.sent(key)[0].0.opcode, Opcode::PullDone as u8);
}

#[test]
fn an_idle_connection_is_neither_stalled_nor_slow_when_it_speaks_again() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.now.mono = bench.now.mono.plus_ms(10 * limits::STALL_TIMEOUT_MS);
    bench.core.begin_tick(bench.now);
    // A whole request and the front of another, in the tick in which its timer is due.
    let ping = encode(Opcode::Ping, 0, 1, &[]);
    let bytes = [&ping[..], &ping[..3]].concat();
    let frames = bench.bytes(key, &bytes);
    assert_eq!(frames[0].0.opcode, Opcode::Pong as u8);
    assert_eq!(bench.core.poll_close(), None);
    bench.bytes(key, &ping[3..]);
    // Again, with nothing but the front.
    bench.now.mono = bench.now.mono.plus_ms(10 * limits::FRAME_TIMEOUT_MS);
    assert!(bench.bytes(key, &ping[..3]).is_empty());
    assert_eq!(bench.bytes(key, &ping[3..])[0].0.opcode, Opcode::Pong as u8);
    // A socket that takes nothing is stalled from then on.
    bench.core.handle_flushed(key, Flushed::Part(0), bench.now);
    bench.now.mono = bench.now.mono.plus_ms(2 * limits::STALL_TIMEOUT_MS);
    bench.core.begin_tick(bench.now);
    bench.turn();
    assert_eq!(bench.core.poll_close(), Some(key));
}

#[test]
fn a_large_message_that_memory_cannot_hold_is_not_asked_for_again_at_once() {
    let mut bench = Bench::with(ShardConfig::new(16 << 20));
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let mut codes = Vec::new();
    for payload in fragments_of(&vec![7; 16_000_000], 1) {
        if !codes.is_empty() {
            break;
        }
        for (header, payload) in bench.frame(key, Opcode::Publish, 1, &payload) {
            match Opcode::from_u8(header.opcode).unwrap() {
                Opcode::Confirm => {}
                _ => codes.push(error_of(&(header, payload))),
            }
        }
    }
    let [(code, error)] = &codes[..] else { panic!("{codes:?}") };
    assert_eq!((*code, error.sequence), (ErrorCode::NoRoomMidway, 1));
    assert!(error.retry_after_ms >= 100);
    bench.publish(key, 1, 1, &[b"small"]);
    assert_eq!(bench.describe(key, "q").ready, 1);
}

#[test]
fn fragments_bring_nothing_but_their_body() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let payloads = fragments_of(&vec![7; 600_000], 1);
    bench.frame(key, Opcode::Publish, 1, &payloads[0]);
    let mut empty = BatchBuilder::default();
    empty.push(0, &[], &[]);
    let empty = empty.finish(batch::FRAGMENT, 0, 1).to_vec();
    let frames = bench.frame(key, Opcode::Publish, 1, &empty);
    let refused = frames.iter().find(|frame| frame.0.opcode == Opcode::PublishError as u8);
    assert_eq!(error_of(refused.expect("a refusal")).0, ErrorCode::BadBatch);
}

#[test]
fn what_was_under_way_behind_a_refused_publish_does_not_use_up_the_window() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    let frames = bench.publish(key, 1, 5, &[b"a gap"]);
    assert_eq!(first_code(&frames), ErrorCode::SequenceGap);
    let mut sent = batch_of(0, 5, &[b"a gap"]).len() as u64;
    let mut window = error_of(&frames[0]).1.window_bytes_total;
    let body = vec![1; 100_000];
    for sequence in 6..40 {
        sent += batch_of(0, sequence, &[&body]).len() as u64;
        assert!(sent <= window, "no window left for the resend");
        let frames = bench.publish(key, 1, sequence, &[&body]);
        if !frames.is_empty() {
            window = confirm_of(&frames).window_bytes_total;
        }
    }
    assert_eq!(confirm_of(&bench.publish(key, 1, 1, &[&body])).sequence, 1);
}

#[test]
fn a_queue_that_blocks_by_a_silent_refusal_takes_again_once_there_is_memory() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    assert_eq!(first_code(&bench.publish(key, 1, 5, &[b"a gap"])), ErrorCode::SequenceGap);
    // Behind that refusal comes the front of a publish for which there is no memory.
    let rest_bytes = bench.core.memory.budget.limit_bytes() as usize;
    bench.core.memory.budget.charge(Account::Connections, rest_bytes);
    let publish = encode(Opcode::Publish, 1, 0, &batch_of(0, 6, &[&[1; 1000]]));
    let frames = bench.bytes(key, &publish[..200]);
    assert_eq!(frames[0].0.opcode, Opcode::Blocked as u8);
    bench.core.memory.budget.release(Account::Connections, rest_bytes);
    let frames = bench.bytes(key, &publish[200..]);
    assert_eq!(frames[0].0.opcode, Opcode::Unblocked as u8);
    assert_eq!(confirm_of(&bench.publish(key, 1, 1, &[b"first"])).sequence, 1);
}
