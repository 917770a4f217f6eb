//! Golden bytes and properties of what records say. The golden bytes were made by a script that
//! shares nothing with this code; docs/STORAGE.md has the same tables.

use super::*;
use crate::base::checksum::crc32c;
use crate::limits::{
    BATCH_BYTES_MAX, BATCH_PREFIX_BYTES, JOURNAL_BODY_BYTES_MAX, JOURNAL_RANGES_MAX,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

const PUBLISHED: &str = "
    0807060504030201 0900000000000000 e803000000000000 8d9b24270afb0100 0000000001000000
    1200000000000000 0700000000000000 4600000000000000 0200000000000000 0000000000000000
    6869";
const LAST_FRAGMENT: &str = "
    0807060504030201 0300000000000000 2100000000000000 2200000000000000 2300000000000000
    0900000000000000 0100000002000000 0000000000000000 e803000000000000 043d1f030afb0100
    0100000001000000 1200000000000000 0700000000000000 4600000000000000 0200000000000400
    0000000000000000 6869";
const DONE: &str = "
    0807060504030201 1817161514131211 0500000000000000 0700000000000000 0700000000000000
    0900000000000000";
const FAILED: &str = "
    0807060504030201 1817161514131211 0500000000000000 0200000004000300 6400000000000000
    c800000000000000 2c01000000000000 0100000000000000";
const QUEUE: &str = "
    0807060504030201 e803000000000000 0a00000000000000 0300000002000000 616263fffe";
const QUEUE_DELETED: &str = "
    0807060504030201";
const SUBSCRIPTION: &str = "
    0807060504030201 1817161514131211 e803000000000000 0500000000000000 0300000002000000
    616263fffe";
const SUBSCRIPTION_DELETED: &str = "
    0807060504030201 1817161514131211";
const PRODUCERS: &str = "
    0807060504030201 0700000000000000 4600000000000000";
const MOVES: &str = "
    0807060504030201 0300000000000000 2100000000000000 2200000000000000 2300000000000000";

const QUEUE_NUMBER: u64 = 0x0102_0304_0506_0708;
const NUMBER: u64 = 0x1112_1314_1516_1718;
const NAME: MoveName = MoveName { store: 3, queue: 0x21, subscription: 0x22, sequence: 0x23 };
const PART: FragmentOf = FragmentOf { sequence: 9, nth: 1, count: 2 };
const FAILURE: Failure = Failure {
    first: 5,
    count: 2,
    attempts: 4,
    failures: 3,
    first_failed_us: 100,
    last_failed_us: 200,
    due_us: 300,
    rejected: true,
};

/// Of each kind: its number, flags and golden body.
fn golden() -> Vec<(u8, u8, Vec<u8>)> {
    let all = [
        (1, 0, PUBLISHED),
        (1, MOVED | FRAGMENT, LAST_FRAGMENT),
        (2, 0, DONE),
        (3, 0, FAILED),
        (4, 0, QUEUE),
        (5, 0, QUEUE_DELETED),
        (6, 0, SUBSCRIPTION),
        (7, 0, SUBSCRIPTION_DELETED),
        (8, 0, PRODUCERS),
        (9, 0, MOVES),
        (10, 0, MOVES),
    ];
    all.map(|(kind, flags, text)| (kind, flags, hex(text))).to_vec()
}

fn decoded(kind: u8, flags: u8, body: &[u8]) -> Result<Change<'_>, ChangeError> {
    Change::decode(&Record { kind, flags, body })
}

/// Writes the body again.
fn encoded(change: &Change<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    let into = &mut body;
    match *change {
        Change::Published(Published { queue, moved, fragment, batches }) => {
            PublishedHead { queue, moved, fragment }.encode(into);
            into.extend_from_slice(batches);
        }
        Change::Done { queue, subscription, ranges } => {
            encode_done(queue, subscription, ranges, into);
        }
        Change::Failed { queue, subscription, entries } => {
            encode_failed(queue, subscription, entries, into);
        }
        Change::Queue(of) => of.encode(into),
        Change::QueueDeleted { queue } => encode_queue_deleted(queue, into),
        Change::Subscription(of) => of.encode(into),
        Change::SubscriptionDeleted { queue, subscription } => {
            encode_subscription_deleted(queue, subscription, into);
        }
        Change::Producers { queue, entries } => encode_producers(queue, entries, into),
        Change::MovesSettled { queue, moves } | Change::Moves { queue, moves } => {
            encode_moves(queue, moves, into);
        }
    }
    body
}

#[test]
fn golden_bytes() {
    let (queue, subscription) = (QUEUE_NUMBER, NUMBER);
    let (name, options, created_us) = ("abc", &b"\xff\xfe"[..], 1000);
    let all = golden();
    let changes: Vec<Change<'_>> =
        all.iter().map(|(kind, flags, body)| decoded(*kind, *flags, body).unwrap()).collect();
    let one = Published { queue, moved: None, fragment: None, batches: &all[0].2[8..] };
    let last =
        Published { moved: Some(NAME), fragment: Some(PART), batches: &all[1].2[56..], ..one };
    assert_eq!(changes[0], Change::Published(one));
    assert_eq!(changes[1], Change::Published(last));
    let head = PublishedHead { queue, moved: Some(NAME), fragment: Some(PART) };
    assert_eq!(head.flags(), MOVED | FRAGMENT);
    let Change::Done { ranges, .. } = changes[2] else { panic!("{:?}", changes[2]) };
    assert_eq!(ranges.collect::<Vec<_>>(), [(5, 7), (7, 9)]);
    let Change::Failed { entries, .. } = changes[3] else { panic!("{:?}", changes[3]) };
    assert_eq!(entries.collect::<Vec<_>>(), [FAILURE]);
    let of = QueueDefinition { queue, created_us, next_sequence: 10, name, options };
    assert_eq!(changes[4], Change::Queue(of));
    assert_eq!(changes[5], Change::QueueDeleted { queue });
    let of = SubscriptionDefinition { queue, subscription, created_us, start: 5, name, options };
    assert_eq!(changes[6], Change::Subscription(of));
    assert_eq!(changes[7], Change::SubscriptionDeleted { queue, subscription });
    let Change::Producers { entries, .. } = changes[8] else { panic!("{:?}", changes[8]) };
    assert_eq!(entries.collect::<Vec<_>>(), [(7, 70)]);
    let Change::MovesSettled { moves, .. } = changes[9] else { panic!("{:?}", changes[9]) };
    assert_eq!(moves.collect::<Vec<_>>(), [NAME]);
    assert!(matches!(changes[10], Change::Moves { moves: same, .. } if same == moves));
    for (change, (kind, flags, body)) in changes.iter().zip(&all) {
        assert_eq!(encoded(change), *body, "kind {kind}");
        assert_eq!(decoded(*kind, flags | CARRIED, body).as_ref(), Ok(change));
    }
}

#[test]
fn kinds_and_flags_that_are_not_known_are_refused() {
    for kind in [0, 11, 12, 200, 255] {
        assert_eq!(decoded(kind, 0, &hex(QUEUE)), Err(ChangeError::Kind(kind)));
    }
    for (kind, known, body) in golden() {
        let own = if kind == 1 { MOVED | FRAGMENT } else { 0 };
        for flag in [1, 2, 4, 8, 16, 32, 64, 128u8].into_iter().filter(|flag| flag & (own | 1) == 0)
        {
            let flags = known | flag;
            assert_eq!(decoded(kind, flags, &body), Err(ChangeError::Flags { kind, flags }));
        }
    }
}

#[test]
fn a_body_has_its_length() {
    for (kind, flags, body) in golden() {
        // Two ranges and the first of them are both a list.
        for bytes in (0..body.len()).filter(|&bytes| (kind, bytes) != (2, 32)) {
            assert!(decoded(kind, flags, &body[..bytes]).is_err(), "kind {kind}, {bytes} bytes");
        }
        let longer = [&body[..], &[0]].concat();
        assert!(decoded(kind, flags, &longer).is_err(), "kind {kind}");
    }
    let nothing = ChangeError::Length { kind: 2, body_bytes: 16 };
    assert_eq!(decoded(2, 0, &hex(DONE)[..16]), Err(nothing));
    let nothing = ChangeError::Length { kind: 1, body_bytes: 8 };
    assert_eq!(decoded(1, 0, &hex(PUBLISHED)[..8]), Err(nothing));
}

#[test]
fn reserved_bytes_are_zero_and_fields_agree() {
    let refused = |kind: u8, flags: u8, text: &str, at: usize, bytes: &[u8]| {
        let mut body = hex(text);
        body[at..at + bytes.len()].copy_from_slice(bytes);
        let outcome = decoded(kind, flags, &body);
        assert_eq!(outcome, Err(ChangeError::Contradiction(kind)), "kind {kind} at {at}");
    };
    let large = MOVED | FRAGMENT;
    (12..16).for_each(|at| refused(1, large, LAST_FRAGMENT, at, &[1]));
    (12..16).for_each(|at| refused(9, 0, MOVES, at, &[1]));
    (12..16).for_each(|at| refused(10, 0, MOVES, at, &[1]));
    (57..64).for_each(|at| refused(3, 0, FAILED, at, &[1]));
    (26..28).for_each(|at| refused(4, 0, QUEUE, at, &[1]));
    (34..36).for_each(|at| refused(6, 0, SUBSCRIPTION, at, &[1]));
    refused(1, large, LAST_FRAGMENT, 48, &[2]); // the fragment behind the last
    refused(1, large, LAST_FRAGMENT, 48, &[0]); // a move beside the first fragment
    refused(1, large, LAST_FRAGMENT, 40, &[0xff; 8]); // no sequence behind it
    refused(2, 0, DONE, 24, &[5]); // empty
    refused(2, 0, DONE, 32, &[6]); // overlapping
    refused(2, 0, DONE, 40, &[6]); // the wrong way round
    refused(3, 0, FAILED, 56, &[2]); // state
    refused(3, 0, FAILED, 24, &[0]); // count
    refused(3, 0, FAILED, 16, &[0xff; 8]); // no sequence behind it
    refused(4, 0, QUEUE, 32, &[0xff]); // a name that is no text
    refused(8, 0, PRODUCERS, 8, &[0]); // nobody's sequence
}

/// `text` with `bytes` at `at` of the batch at `batch`, whose checksum is then right.
fn resealed(text: &str, batch: usize, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut body = hex(text);
    let wire = batch + BATCH_PREFIX_BYTES;
    body[batch + at..batch + at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c(&body[wire + 4..]);
    body[wire..wire + 4].copy_from_slice(&crc.to_le_bytes());
    body
}

#[test]
fn batches_are_whole_and_what_the_head_says() {
    let two = [hex(PUBLISHED), hex(PUBLISHED)[8..].to_vec()].concat();
    let Ok(Change::Published(Published { batches, .. })) = decoded(1, 0, &two) else { panic!() };
    let walked: Vec<_> = Batches::new(batches).collect();
    assert_eq!(walked.len(), 2);
    assert_eq!((walked[1].prefix.base_sequence, walked[1].header.producer_id), (9, 7));
    assert_eq!(walked[1].bytes, &batches[74..]);
    for bit in (8 + BATCH_PREFIX_BYTES) * 8..(8 + 74) * 8 {
        let mut damaged = two.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decoded(1, 0, &damaged), Err(ChangeError::Batch(8)), "bit {bit}");
        let mut damaged = two.clone();
        damaged[74 + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(decoded(1, 0, &damaged), Err(ChangeError::Batch(8 + 74)), "bit {bit}");
    }
    let no_sequence_left = resealed(PUBLISHED, 8, 0, &[0xff; 8]);
    assert_eq!(decoded(1, 0, &no_sequence_left), Err(ChangeError::Batch(8)));
    let a_fragment = resealed(PUBLISHED, 8, BATCH_PREFIX_BYTES + 8, &[1]);
    assert_eq!(decoded(1, 0, &a_fragment), Err(ChangeError::Batch(8)));
    let large = MOVED | FRAGMENT;
    let no_fragment = resealed(LAST_FRAGMENT, 56, BATCH_PREFIX_BYTES + 8, &[0]);
    assert_eq!(decoded(1, large, &no_fragment), Err(ChangeError::Batch(56)));
    let two_records = resealed(LAST_FRAGMENT, 56, BATCH_PREFIX_BYTES + 12, &[2]);
    assert_eq!(decoded(1, large, &two_records), Err(ChangeError::Batch(56)));
    let two = [hex(LAST_FRAGMENT), hex(LAST_FRAGMENT)[56..].to_vec()].concat();
    assert_eq!(decoded(1, large, &two), Err(ChangeError::Contradiction(1)));
}

#[test]
fn as_many_entries_as_the_limit_says_fit_a_record() {
    let count = JOURNAL_RANGES_MAX;
    let mut body = Vec::new();
    encode_failed(1, 2, std::iter::repeat_n(FAILURE, count), &mut body);
    assert!(body.len() <= JOURNAL_BODY_BYTES_MAX);
    let entries = [Failure::BYTES, MoveName::BYTES, <(u64, u64)>::BYTES];
    assert_eq!(entries.iter().max(), Some(&Failure::BYTES));
    body.clear();
    PublishedHead { queue: 1, moved: Some(NAME), fragment: Some(PART) }.encode(&mut body);
    assert!(body.len() + BATCH_BYTES_MAX <= JOURNAL_BODY_BYTES_MAX);
}

proptest! {
    /// Whatever a record holds, reading it does not panic; what is accepted is written the same.
    #[test]
    fn no_bytes_panic(
        kind in 0..12u8,
        flags in 0..8u8,
        bytes in vec(prop_oneof![Just(0u8), 0..4u8, any::<u8>()], 0..120),
    ) {
        if let Ok(change) = decoded(kind, flags, &bytes) {
            prop_assert_eq!(encoded(&change), bytes);
        }
    }

    /// The same, of records that almost are some.
    #[test]
    fn no_damage_panics(
        nth in 0..11usize,
        at in 0..130usize,
        bytes in vec(any::<u8>(), 1..12),
        more in vec(any::<u8>(), 0..50),
    ) {
        let (kind, flags, mut body) = golden().swap_remove(nth);
        body.extend_from_slice(&more);
        body.iter_mut().skip(at).zip(&bytes).for_each(|(byte, &other)| *byte = other);
        if let Ok(change) = decoded(kind, flags, &body) {
            prop_assert_eq!(encoded(&change), body);
        }
    }
}
