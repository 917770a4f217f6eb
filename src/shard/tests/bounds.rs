//! What a connection may have at a time, and what is told at the bound.

use super::*;
use crate::limits::{HANDLE_MAX, PULLS_WAITING_MAX};
use crate::protocol::hot::CreditEntry;

#[test]
fn the_sooner_of_two_pulls_ends_first_and_both_in_time() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    for (handle, wait_ms) in [(1, 2000), (2, 1000)] {
        bench.consumer(key, "q", handle, 0);
        let pull = Pull { messages_max: 1, wait_ms, bytes_max: 0 };
        bench.frame(key, Opcode::Pull, handle, &pull.encode());
    }
    for handle in [2, 1] {
        assert!(bench.sent(key).is_empty());
        bench.now.mono = bench.now.mono.plus_ms(1000);
        bench.core.begin_tick(bench.now);
        bench.turn();
        let ended: Vec<_> = bench.sent(key).iter().map(|(header, _)| header.handle).collect();
        assert_eq!(ended, [handle]);
    }
}

#[test]
fn a_consumer_may_have_so_many_pulls_waiting() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.consumer(key, "q", 1, 0);
    let pull = Pull { messages_max: 1, wait_ms: 1000, bytes_max: 0 }.encode();
    for _ in 0..PULLS_WAITING_MAX {
        assert!(bench.frame(key, Opcode::Pull, 1, &pull).is_empty());
    }
    assert_eq!(first_code(&bench.frame(key, Opcode::Pull, 1, &pull)), ErrorCode::PullsMax);
}

#[test]
fn a_connection_may_have_so_many_handles() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    for handle in 1..=HANDLE_MAX {
        bench.producer(key, "q", handle, 0);
    }
    let body = wire::ProducerOpenT { queue: "q".into(), ..wire::ProducerOpenT::default() };
    let open = Request::ProducerOpen(body).encode();
    let frames = bench.frame(key, Opcode::ProducerOpen, HANDLE_MAX + 1, &open);
    assert_eq!(first_code(&frames), ErrorCode::HandlesMax);
}

#[test]
fn a_queue_made_without_naming_subscriptions_has_the_default_one_only() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    for (name, is_there) in [("default", true), ("audit", false)] {
        let subscription = Some(name.to_owned());
        let body = wire::ConsumerOpenT {
            queue: "q".into(),
            subscription,
            ..wire::ConsumerOpenT::default()
        };
        match bench.ask(key, Request::ConsumerOpen(body), 1) {
            Answer::ConsumerOpened(_) => assert!(is_there),
            Answer::Error(error) => {
                assert!(!is_there);
                assert_eq!(error.code, ErrorCode::SubscriptionNotFound as u16);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_hello_that_comes_in_pieces_has_no_more_time_than_another() {
    let mut bench = Bench::new();
    let key = bench.connect();
    bench.now.mono = bench.now.mono.plus_ms(9_000);
    bench.core.begin_tick(bench.now);
    bench.bytes(key, &frame::preamble(1));
    bench.now.mono = bench.now.mono.plus_ms(1_250);
    bench.core.begin_tick(bench.now);
    bench.turn();
    assert_eq!(first_code(&bench.sent(key)), ErrorCode::Timeout);
}

#[test]
fn who_agreed_to_heartbeats_and_falls_silent_is_told_so() {
    let mut bench = Bench::new();
    let key = bench.connect();
    bench.bytes(key, &frame::preamble(1));
    let hello = wire::HelloT { heartbeat_ms: 1000, ..wire::HelloT::default() };
    bench.frame(key, Opcode::Hello, 0, &Request::Hello(hello).encode());
    for _ in 0..25 {
        bench.now.mono = bench.now.mono.plus_ms(100);
        bench.core.begin_tick(bench.now);
        bench.turn();
    }
    let frames = bench.sent(key);
    assert_eq!(frames[0].0.opcode, Opcode::Ping as u8);
    assert_eq!(error_of(frames.last().unwrap()).0, ErrorCode::HeartbeatLost);
}

#[test]
fn totals_go_on_counting_what_deleted_queues_did() {
    let mut bench = Bench::new();
    let key = bench.open();
    bench.create(key, "q", wire::QueueOptionsT::default());
    bench.producer(key, "q", 1, 0);
    bench.publish(key, 1, 1, &[b"one", b"two"]);
    let delete = wire::QueueDeleteT { name: "q".into(), if_empty: false };
    bench.frame(key, Opcode::QueueDelete, 0, &Request::QueueDelete(delete).encode());
    match bench.ask(key, Request::BrokerStats(wire::BrokerStatsT::default()), 0) {
        Answer::Stats(stats) => {
            assert_eq!(stats.counters.unwrap().published, 2);
            assert_eq!((stats.queues_deleted_messages, stats.ready), (2, 0));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn consumers_that_share_a_full_connection_take_turns() {
    const QUEUES: u32 = 8;
    let mut bench = Bench::new();
    let (reader, writer) = (bench.open(), bench.open());
    let body = vec![1; 100_000];
    let name = |handle: u32| format!("q{handle}");
    for handle in 1..=QUEUES {
        bench.create(writer, &name(handle), wire::QueueOptionsT::default());
        bench.producer(writer, &name(handle), handle, 0);
        for sequence in 1..=4 {
            bench.publish(writer, handle, sequence, &[&body]);
        }
    }
    let mut published = [4; QUEUES as usize];
    let mut brought = [0; QUEUES as usize];
    let count = |frames: Vec<Frame>, brought: &mut [u64]| {
        for (header, _) in frames {
            if header.opcode == Opcode::Deliver as u8 {
                brought[header.handle as usize - 1] += 1;
            }
        }
    };
    for handle in 1..=QUEUES {
        count(bench.consumer(reader, &name(handle), handle, 1_000_000), &mut brought);
    }
    for handle in 1..=QUEUES {
        let credit = CreditEntry { handle, messages: 0, bytes: 100_000_000 };
        count(bench.frame(reader, Opcode::Credit, 0, &credit.encode()), &mut brought);
    }
    // Every queue is kept full, and the socket takes a little at a time.
    for _ in 0..40 {
        bench.core.begin_tick(bench.now);
        bench.turn();
        count(bench.sent(reader), &mut brought);
        for handle in 1..=QUEUES {
            let nth = handle as usize - 1;
            while published[nth] < brought[nth] + 4 {
                published[nth] += 1;
                bench.publish(writer, handle, published[nth], &[&body]);
            }
        }
    }
    let (least, most) = (brought.iter().min().unwrap(), brought.iter().max().unwrap());
    assert!(*least > 10 && *most < 2 * *least, "{brought:?}");
}
