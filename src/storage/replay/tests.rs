//! The tables of the module, row by row, over segments that are made by hand.

use super::*;
use crate::base::pages::Pages;
use crate::format::journal::{encode_record, seal_group};
use crate::limits::{JOURNAL_GROUP_HEADER_BYTES, JOURNAL_SEGMENT_HEADER_BYTES};
use proptest::collection::vec;
use proptest::prelude::*;

const PAGE: usize = DISK_ALIGN_BYTES;
const STORE: StoreId = StoreId(*b"0123456789abcdef");

/// A segment of 6 pages: after the header one page per group, each of which says what was synced.
fn segment(at: (u64, u64), end: (u64, u64, u64), needed: u64, groups: &[(u64, u64)]) -> Vec<u8> {
    let ((epoch, segment), (before, group, page)) = (at, end);
    let end = LogEnd { segment: before, group, offset: page * PAGE as u64 };
    let mut pages = Pages::default();
    SegmentHeader { store: STORE, epoch, segment, end, needed }.encode(&mut pages);
    let mut image = pages.as_slice().to_vec();
    for (page, &(group, synced)) in (1..).zip(groups) {
        let mut bytes = Pages::zeroed(JOURNAL_GROUP_HEADER_BYTES);
        let body = group.to_le_bytes();
        encode_record(1, 0, &[&body], &mut bytes);
        seal_group(
            &mut bytes,
            &GroupPlace { store: STORE, epoch, segment, page },
            group,
            synced,
            1,
        );
        image.extend_from_slice(bytes.as_slice());
    }
    image.resize(6 * PAGE, 0);
    image
}

fn spoil(image: &mut [u8], page: usize) {
    image[page * PAGE + 20] ^= 1;
}

/// The groups of the log, and the rest.
fn recover(images: &[&[u8]]) -> (Vec<u64>, Recovered) {
    let mut survey = Survey::new(STORE);
    for (file, image) in images.iter().enumerate() {
        survey.add(file as u32, image).unwrap();
    }
    let (mut replay, mut groups) = (survey.order(), vec![]);
    while let Some(file) = replay.next_file() {
        groups.extend(replay.read(images[file as usize]).iter().map(|group| group.group));
    }
    (groups, replay.finish())
}

fn files(recovered: &Recovered) -> Vec<u32> {
    recovered.live.iter().map(|live| live.file).collect()
}

const FIRST: ((u64, u64), (u64, u64, u64)) = ((1, 1), (0, 1, 0));

#[test]
fn an_empty_directory_is_a_new_store() {
    let recovered = Recovered::default();
    assert_eq!((recovered.epoch, recovered.needed, recovered.next_file), (0, 1, 0));
    assert_eq!(recovered.end, LogEnd { segment: 0, group: 1, offset: 0 });
}

#[test]
fn segments_are_read_in_the_order_of_their_sequence() {
    let first = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1)]);
    let second = segment((1, 2), (1, 3, 3), 1, &[(3, 2)]);
    let third = segment((2, 3), (2, 4, 2), 1, &[(4, 3), (5, 4), (6, 4)]);
    let (groups, recovered) = recover(&[&third, &first, &second]);
    assert_eq!(groups, [1, 2, 3, 4, 5, 6]);
    assert_eq!(files(&recovered), [1, 2, 0]);
    assert_eq!(recovered.end, LogEnd { segment: 3, group: 7, offset: 4 * PAGE as u64 });
    assert_eq!((recovered.epoch, recovered.next_file, recovered.damages), (2, 3, vec![]));
}

#[test]
fn what_has_no_whole_group_behind_it_is_a_torn_tail() {
    let mut image = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 2)]);
    image[3 * PAGE + 75] ^= 1;
    let (groups, recovered) = recover(&[&image]);
    assert_eq!((groups, recovered.end.group), (vec![1, 2], 3));
    assert_eq!((recovered.end.offset, &recovered.damages), (3 * PAGE as u64, &vec![]));
    assert!(matches!(recovered.torn, Some(JournalError::Checksum { .. })));
}

#[test]
fn what_has_one_is_damage() {
    let mut image = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)]);
    image[2 * PAGE + 75] ^= 1;
    spoil(&mut image, 4);
    let (groups, recovered) = recover(&[&image]);
    assert_eq!((groups, recovered.end.group), (vec![1, 3], 4));
    let [first] = &recovered.damages[..] else { panic!("{recovered:?}") };
    assert_eq!((first.segment, first.offset, &first.lost), (1, 2 * PAGE as u64, &(2..3)));
    assert!(matches!(first.why, Some(JournalError::Checksum { .. })) && first.was_synced);
}

/// The device may keep a later write and not an earlier one. What a producer is told then must not
/// be that it is all there.
#[test]
fn what_was_not_synced_ends_the_log_where_the_first_of_it_is_missing() {
    let mut image = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 1), (4, 1), (5, 1)]);
    spoil(&mut image, 3);
    let (groups, recovered) = recover(&[&image]);
    assert_eq!((groups, recovered.end.group), (vec![1, 2], 3));
    assert_eq!((recovered.end.offset, recovered.damages), (3 * PAGE as u64, vec![]));
    // If a later one says that it was, it is damage.
    let mut image = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 1), (4, 1), (5, 3)]);
    spoil(&mut image, 3);
    let (groups, recovered) = recover(&[&image]);
    assert_eq!((groups, recovered.end.group), (vec![1, 2, 4, 5], 6));
    assert!(recovered.damages[0].lost == (3..4) && recovered.damages[0].was_synced);
}

#[test]
fn the_end_of_a_segment_is_missed_because_the_next_one_says_so() {
    let mut first = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 0), (3, 0)]);
    spoil(&mut first, 2);
    spoil(&mut first, 3);
    for epoch in [1, 2] {
        let second = segment((epoch, 2), (1, 4, 4), 1, &[(4, 3)]);
        let (groups, recovered) = recover(&[&first, &second]);
        assert_eq!(groups, [1, 4]);
        let damage = &recovered.damages[0];
        assert_eq!((damage.offset, &damage.lost), (2 * PAGE as u64, &(2..4)));
        assert!(damage.was_synced);
    }
}

#[test]
fn a_later_recovery_did_not_sync_what_was_not_there() {
    let mut first = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 0), (3, 1)]);
    spoil(&mut first, 2);
    let second = segment((2, 2), (1, 4, 4), 1, &[(4, 3)]);
    let (groups, recovered) = recover(&[&first, &second]);
    assert_eq!(groups, [1, 3, 4]);
    assert!(!recovered.damages[0].was_synced);
}

#[test]
fn a_segment_without_its_header_is_known_by_its_groups() {
    let first = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1)]);
    let mut second = segment((2, 2), (1, 3, 3), 1, &[(3, 2), (4, 3)]);
    spoil(&mut second, 0);
    let (groups, recovered) = recover(&[&second, &first]);
    assert_eq!((groups, recovered.epoch), (vec![1, 2, 3, 4], 2));
    let damage = &recovered.damages[0];
    assert_eq!((damage.segment, damage.offset, damage.lost.is_empty()), (2, 0, true));
    assert_eq!(recovered.damages.len(), 1);
    // Its first group is gone too.
    spoil(&mut second, 1);
    let (groups, recovered) = recover(&[&second, &first]);
    assert_eq!(groups, [1, 2, 4]);
    assert!(recovered.damages.iter().any(|damage| damage.lost == (3..4)));
}

#[test]
fn what_a_recycled_segment_held_is_not_of_the_log() {
    let old = segment((1, 1), (0, 1, 0), 1, &[(1, 0), (2, 1), (3, 2), (4, 3)]);
    let mut new = segment((1, 3), (2, 9, 2), 7, &[(9, 8)]);
    new[2 * PAGE..].copy_from_slice(&old[2 * PAGE..]);
    let between = segment((1, 2), (1, 5, 5), 1, &[(5, 4), (6, 5), (7, 6), (8, 7)]);
    let (groups, recovered) = recover(&[&new, &between]);
    assert_eq!((groups, recovered.end.group), (vec![7, 8, 9], 10));
    assert_eq!((recovered.damages, recovered.torn), (vec![], None));
    // Nor when its new header is damaged.
    spoil(&mut new, 0);
    let (groups, recovered) = recover(&[&new, &between]);
    assert_eq!((groups.last(), recovered.end.segment), (Some(&9), 3));
}

#[test]
fn what_is_not_needed_is_spare() {
    let first = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1)]);
    let second = segment((1, 2), (1, 3, 3), 1, &[(3, 2), (4, 3)]);
    let empty = segment((2, 3), (2, 5, 3), 1, &[]);
    let last = segment((3, 4), (3, 5, 1), 3, &[]);
    let (groups, recovered) = recover(&[&first, &second, &empty, &last, &[0; 6 * PAGE]]);
    assert_eq!((groups, files(&recovered)), (vec![3, 4], vec![1, 3]));
    let mut spares = recovered.spares.clone();
    spares.sort_unstable();
    assert_eq!((spares, recovered.end.group), (vec![0, 2, 4], 5));
}

#[test]
fn the_first_needed_groups_are_missed() {
    let second = segment((1, 2), (1, 3, 3), 2, &[(3, 2), (4, 3)]);
    let (groups, recovered) = recover(&[&second]);
    assert_eq!(groups, [3, 4]);
    assert_eq!((recovered.damages[0].lost.clone(), recovered.damages[0].was_synced), (2..3, true));
}

/// A device that could not read something at one start and can at the next: what the log said in
/// the meantime holds, and nothing comes twice.
#[test]
fn what_comes_back_after_the_log_went_on_without_it_is_not_of_the_log() {
    let whole = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 2)]);
    let lost = segment((1, 2), (1, 4, 4), 1, &[(4, 3), (5, 4)]);
    let later = segment((2, 2), (1, 3, 3), 1, &[(3, 2), (4, 3)]);
    let (groups, recovered) = recover(&[&lost, &whole, &later]);
    assert_eq!((groups, files(&recovered)), (vec![1, 2, 3, 4], vec![1, 2]));
    assert_eq!(recovered.live[0].end_group, 3, "3 is the later one");
    assert_eq!(recovered.end, LogEnd { segment: 2, group: 5, offset: 3 * PAGE as u64 });
    assert_eq!((recovered.damages, recovered.epoch), (vec![], 2));
}

#[test]
fn what_nobody_knows_is_left_alone() {
    let (groups, recovered) = recover(&[&[7; 6 * PAGE], &[], &[0; 100], &[7; 100]]);
    assert_eq!((groups, recovered.unknown, recovered.next_file), (vec![], vec![0], 4));
    assert_eq!(recovered.spares, [1, 2, 3], "nothing stands behind a header");
}

#[test]
fn another_store_and_a_later_version_are_not_touched() {
    let image = segment(FIRST.0, FIRST.1, 1, &[]);
    let another = Survey::new(StoreId([1; 16])).add(3, &image);
    assert_eq!(another, Err(SurveyError::Store { file: 3 }));
    let mut later = image;
    later[8] = 2;
    let crc = crate::base::checksum::crc32c(&later[4..JOURNAL_SEGMENT_HEADER_BYTES]);
    later[..4].copy_from_slice(&crc.to_le_bytes());
    let error = JournalError::Version(2);
    assert_eq!(Survey::new(STORE).add(3, &later), Err(SurveyError::Version { file: 3, error }));
}

#[test]
fn a_file_of_any_length_is_read() {
    let image = segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 2)]);
    for bytes in (0..image.len()).step_by(50) {
        let (groups, recovered) = recover(&[&image[..bytes]]);
        assert!(groups.len() <= 3 && recovered.damages.is_empty());
        assert!(groups.is_sorted() && recovered.end.group == groups.len() as u64 + 1);
    }
}

proptest! {
    /// Whatever stands in the files, parts of another segment and right checksums of wrong fields
    /// included, nothing panics, and groups come in order.
    #[test]
    fn no_bytes_panic(
        copies in vec((0..3usize, 0..6usize, 0..3usize, 0..6usize), 0..6),
        writes in vec((0..3usize, 0..6usize, 0..90usize, vec(any::<u8>(), 1..9)), 0..6),
        bytes in 0..=6 * PAGE,
    ) {
        let mut images = [
            segment(FIRST.0, FIRST.1, 1, &[(1, 0), (2, 1), (3, 2), (4, 3)]),
            segment((1, 2), (1, 5, 5), 2, &[(5, 4), (6, 5), (7, 5)]),
            segment((2, 3), (2, 8, 4), 3, &[(8, 7), (9, 8)]),
        ];
        for (from, page, to, at) in copies {
            let copy = images[from][page * PAGE..][..PAGE].to_vec();
            images[to][at * PAGE..][..PAGE].copy_from_slice(&copy);
        }
        for (image, page, at, bytes) in writes {
            let block = &mut images[image][page * PAGE..][..PAGE];
            block[at..at + bytes.len()].copy_from_slice(&bytes);
            let used = if page == 0 { JOURNAL_SEGMENT_HEADER_BYTES } else { 72 + 16 };
            let crc = crate::base::checksum::crc32c(&block[4..used]);
            block[..4].copy_from_slice(&crc.to_le_bytes());
        }
        images[2].truncate(bytes);
        let mut survey = Survey::new(STORE);
        for (file, image) in images.iter().enumerate() {
            let _ = survey.add(file as u32, image);
        }
        let (mut replay, mut groups) = (survey.order(), vec![]);
        while let Some(file) = replay.next_file() {
            groups.extend(replay.read(&images[file as usize]).iter().map(|group| group.group));
        }
        let recovered = replay.finish();
        prop_assert!(groups.is_sorted_by(|a, b| a < b));
        prop_assert!(groups.last().is_none_or(|&last| last < recovered.end.group));
    }
}
