//! What records add up to, one thing at a time; `model` has histories of whole stores.

use super::*;
use crate::format::batch::{self, BatchBuilder, BatchPrefix};
use crate::format::change::{
    PublishedHead, encode_done, encode_failed, encode_moves, encode_producers,
    encode_queue_deleted, encode_subscription_deleted,
};
use crate::format::journal::RecordKind;

mod model;

/// Kind, flags and body.
type Entry = (RecordKind, u8, Vec<u8>);

fn entry(kind: RecordKind, encode: impl FnOnce(&mut Vec<u8>)) -> Entry {
    let mut body = Vec::new();
    encode(&mut body);
    (kind, 0, body)
}

fn defined(queue: u64, next_sequence: u64, options: &[u8]) -> Entry {
    let name = &format!("queue-{queue}");
    let of = QueueDefinition { queue, created_us: queue, next_sequence, name, options };
    entry(RecordKind::Queue, |into| of.encode(into))
}

fn subscribed(queue: u64, subscription: u64, start: u64, options: &[u8]) -> Entry {
    let (name, created_us) = (&format!("subscription-{subscription}"), subscription);
    let of = SubscriptionDefinition { queue, subscription, created_us, start, name, options };
    entry(RecordKind::Subscription, |into| of.encode(into))
}

fn done(queue: u64, subscription: u64, ranges: &[(u64, u64)]) -> Entry {
    let ranges = ranges.iter().copied();
    entry(RecordKind::Acks, |into| encode_done(queue, subscription, ranges, into))
}

fn failed(queue: u64, subscription: u64, failure: Failure) -> Entry {
    entry(RecordKind::Attempts, |into| encode_failed(queue, subscription, [failure], into))
}

/// A batch of so many records behind its prefix.
fn prefixed(base_sequence: u64, flags: u16, producer: (u64, u64), records: u32) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    (0..records).for_each(|_| builder.push(0, b"", b"body"));
    let prefix = BatchPrefix { base_sequence, accepted_us: 1 };
    [&prefix.encode()[..], builder.finish(flags, producer.0, producer.1)].concat()
}

fn published(head: PublishedHead, batches: &[u8]) -> Entry {
    let mut body = Vec::new();
    head.encode(&mut body);
    body.extend_from_slice(batches);
    (RecordKind::Publish, head.flags(), body)
}

fn plain(queue: u64, moved: Option<MoveName>, batches: &[u8]) -> Entry {
    published(PublishedHead { queue, moved, fragment: None }, batches)
}

/// All fragments of a large message.
fn large(
    queue: u64,
    sequence: u64,
    count: u32,
    moved: Option<MoveName>,
    producer: (u64, u64),
) -> Vec<Entry> {
    let one = |nth| {
        let fragment = Some(FragmentOf { sequence, nth, count });
        let moved = moved.filter(|_| nth + 1 == count);
        let batch = prefixed(0, batch::FRAGMENT, producer, 1);
        published(PublishedHead { queue, moved, fragment }, &batch)
    };
    (0..count).map(one).collect()
}

fn carried((kind, flags, body): Entry) -> Entry {
    (kind, flags | CARRIED, body)
}

fn applied<'a>(log: impl IntoIterator<Item = &'a Entry>) -> StoreState {
    let mut state = StoreState::default();
    for (kind, flags, body) in log {
        state.apply(&Record { kind: *kind as u8, flags: *flags, body }).unwrap();
    }
    state
}

/// What queue 1 is after `log`.
fn finished(log: &[Entry]) -> Option<QueueState> {
    let mut state = applied(&[log, &[defined(1, 1, b""), subscribed(1, 2, 1, b"")]].concat());
    state.finish();
    state.queues.remove(&1)
}

fn failure(first: u64, count: u32, attempts: u16) -> Failure {
    Failure {
        first,
        count,
        attempts,
        failures: 1,
        first_failed_us: 1,
        last_failed_us: 2,
        due_us: 3,
        rejected: false,
    }
}

const NAME: MoveName = MoveName { store: 1, queue: 2, subscription: 3, sequence: 4 };

#[test]
fn what_is_deleted_stays_deleted() {
    let gone = [entry(RecordKind::SubscriptionDeleted, |into| {
        encode_subscription_deleted(1, 2, into);
    })];
    assert!(finished(&gone).unwrap().subscriptions.is_empty());
    let gone = [entry(RecordKind::QueueDeleted, |into| encode_queue_deleted(1, into))];
    assert_eq!(finished(&gone), None);
}

#[test]
fn what_has_no_definition_is_dropped() {
    let mut state = applied(&[done(1, 2, &[(1, 3)]), defined(3, 1, b""), done(3, 4, &[(1, 3)])]);
    assert_eq!(state.queues.len(), 2);
    state.finish();
    assert_eq!(state.queues.keys().collect::<Vec<_>>(), [&3]);
    assert!(state.queues[&3].subscriptions.is_empty());
    assert_eq!(state.queues[&3].next_sequence, 3);
}

#[test]
fn a_large_message_counts_when_all_of_it_is_there() {
    let all = large(1, 5, 3, Some(NAME), (7, 70));
    for mut log in [all.clone(), [&all[1..], &all[..1]].concat()] {
        // Another order than that of the log comes to be where it is carried beside it.
        log = log.into_iter().map(carried).collect();
        let last = log.pop().unwrap();
        let before = finished(&log).unwrap();
        assert_eq!((before.next_sequence, before.moves.len(), before.producers.len()), (1, 0, 0));
        log.push(last);
        let whole = finished(&log).unwrap();
        assert_eq!((whole.next_sequence, whole.moves.first()), (6, Some(&NAME)));
        assert_eq!(whole.producers.into_iter().collect::<Vec<_>>(), [(7, 70)]);
    }
}

#[test]
fn fragments_of_another_message_with_the_same_sequence_do_not_count() {
    let (first, second) = (large(1, 5, 3, None, (7, 70)), large(1, 5, 3, None, (8, 80)));
    // Had the first not been given up, it would be whole with what follows.
    let log = [&first[1..], &second[..1]].concat();
    assert_eq!(finished(&log).unwrap().next_sequence, 1);
    let longer = large(1, 5, 4, None, (8, 80));
    let log = [&first[..2], &longer[2..]].concat();
    assert_eq!(finished(&log).unwrap().next_sequence, 1);
    let log = [&first[..2], &second[..]].concat();
    assert_eq!(finished(&log).unwrap().producers.into_iter().collect::<Vec<_>>(), [(8, 80)]);
    // What is carried says nothing against what is there.
    let log = [&first[..2], &[carried(first[0].clone())], &first[2..]].concat();
    assert_eq!(finished(&log).unwrap().next_sequence, 6);
}

#[test]
fn sequences_only_grow() {
    let log = [
        plain(1, None, &[prefixed(3, 0, (7, 70), 4), prefixed(7, 0, (0, 9), 1)].concat()),
        plain(1, None, &prefixed(1, 0, (7, 60), 2)),
        entry(RecordKind::Producers, |into| encode_producers(1, [(7, 72), (8, 5)], into)),
        subscribed(1, 2, 4, b"newer"),
        subscribed(1, 2, 2, b""),
    ];
    let queue = finished(&log).unwrap();
    assert_eq!((queue.next_sequence, queue.subscriptions[&2].start), (8, 4));
    assert_eq!(queue.producers.into_iter().collect::<Vec<_>>(), [(7, 73), (8, 5)]);
    // Where what was published is lost, what names it still is there.
    for lost in [done(1, 2, &[(1, 20)]), failed(1, 2, failure(18, 2, 1)), subscribed(1, 3, 20, b"")]
    {
        assert_eq!(finished(&[lost]).unwrap().next_sequence, 20);
    }
}

#[test]
fn a_move_that_is_settled_stays_settled() {
    let moved = plain(1, Some(NAME), &prefixed(1, 0, (0, 0), 1));
    let kept = entry(RecordKind::Moves, |into| encode_moves(1, [NAME], into));
    let settled = entry(RecordKind::MovesSettled, |into| encode_moves(1, [NAME], into));
    for log in [vec![moved.clone()], vec![kept.clone()], vec![moved.clone(), kept.clone()]] {
        assert_eq!(finished(&log).unwrap().moves.into_iter().collect::<Vec<_>>(), [NAME]);
    }
    for log in [vec![moved.clone(), settled.clone()], vec![settled, moved, kept]] {
        assert!(finished(&log).unwrap().moves.is_empty());
    }
}

#[test]
fn a_failure_is_cut_by_what_comes_later() {
    let of = |log: &[Entry]| -> Vec<(u64, u64, u16)> {
        let failures = finished(log).unwrap().subscriptions.remove(&2).unwrap().failures;
        failures.into_values().map(|of| (of.first, of.end(), of.attempts)).collect()
    };
    let old = failed(1, 2, failure(10, 10, 1));
    let inside = failed(1, 2, failure(12, 3, 2));
    assert_eq!(of(&[old.clone(), inside]), [(10, 12, 1), (12, 15, 2), (15, 20, 1)]);
    let over = failed(1, 2, failure(5, 20, 2));
    assert_eq!(of(&[old.clone(), over]), [(5, 25, 2)]);
    let (first, last) = (failed(1, 2, failure(8, 4, 2)), failed(1, 2, failure(18, 4, 3)));
    assert_eq!(of(&[old.clone(), first, last]), [(8, 12, 2), (12, 18, 1), (18, 22, 3)]);
    let log = [done(1, 2, &[(1, 11), (13, 14), (19, 20)]), old];
    assert_eq!(of(&log), [(11, 13, 1), (14, 19, 1)]);
}

#[test]
fn a_message_is_live_while_a_subscription_holds_it() {
    let log = [
        defined(1, 20, b""),
        subscribed(1, 2, 5, b""),
        subscribed(1, 3, 10, b""),
        done(1, 2, &[(5, 7), (9, 20)]),
        done(1, 3, &[(10, 12)]),
    ];
    let mut state = applied(&log);
    state.finish();
    let live: Vec<u64> = (0..20).filter(|&first| state.is_live(1, first, first + 1)).collect();
    assert_eq!(live, [&[7, 8][..], &(12..20).collect::<Vec<_>>()].concat());
    assert!(state.is_live(1, 0, 8) && !state.is_live(1, 0, 7) && !state.is_live(1, 9, 12));
    assert!(!state.is_live(1, 8, 8) && !state.is_live(2, 0, 100));
    assert_eq!(state.queues[&1].subscriptions[&2].start, 7);
    assert_eq!(state.queues[&1].subscriptions[&3].done.len(), 0);
}

#[test]
fn what_is_not_understood_changes_nothing() {
    let state = applied(&[defined(1, 1, b""), subscribed(1, 2, 1, b"")]);
    let mut same = state.clone();
    let unknown = Record { kind: 11, flags: 0, body: &1u64.to_le_bytes() };
    assert_eq!(same.apply(&unknown), Err(ChangeError::Kind(11)));
    let (.., mut body) =
        plain(1, None, &[prefixed(1, 0, (7, 1), 1), prefixed(2, 0, (7, 2), 1)].concat());
    *body.last_mut().unwrap() ^= 1;
    let damaged = Record { kind: 1, flags: 0, body: &body };
    assert!(matches!(same.apply(&damaged), Err(ChangeError::Batch(_))));
    assert_eq!(same, state);
}
