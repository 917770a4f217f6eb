//! What a journal asks for, and in which order.

use super::*;
use crate::format::journal::Group;

mod disk;
mod model;

const PAGE: u64 = DISK_ALIGN_BYTES as u64;
const STORE: StoreId = StoreId(*b"0123456789abcdef");
const SHAPE: JournalShape = JournalShape {
    segment_bytes: 8 * PAGE,
    group_bytes_max: 3 * PAGE as usize,
    prewrite_bytes: 4 * PAGE,
};

/// A request in words; offsets and lengths in pages.
fn words(request: &JournalRequest) -> String {
    match request {
        JournalRequest::Create { file, .. } => format!("create {file}"),
        JournalRequest::Prewrite { file, offset, bytes, .. } => {
            format!("zeros {file} {}+{}", offset / PAGE, bytes / PAGE)
        }
        JournalRequest::Write { file, offset, image, sync, .. } => {
            let how = if *sync { " sync" } else { "" };
            format!("write {file} {}+{}{how}", offset / PAGE, image.len() as u64 / PAGE)
        }
        JournalRequest::Sync { file, .. } => format!("sync {file}"),
    }
}

fn tag(request: &JournalRequest) -> u64 {
    match request {
        JournalRequest::Create { tag, .. }
        | JournalRequest::Prewrite { tag, .. }
        | JournalRequest::Write { tag, .. }
        | JournalRequest::Sync { tag, .. } => *tag,
    }
}

/// What a request writes.
fn image_of(request: JournalRequest) -> Option<Pages> {
    match request {
        JournalRequest::Write { image, .. } => Some(image),
        _ => None,
    }
}

/// Does all there is to do, one after the other, but what `fails`; says what that was.
fn run(journal: &mut Journal, fails: &str) -> Vec<String> {
    let mut said = vec![];
    while let Some(request) = journal.poll_request() {
        let words = words(&request);
        let result = if words == fails { Err(ErrorKind::StorageFull) } else { Ok(()) };
        journal.handle_completed(tag(&request), result, image_of(request));
        said.push(words);
    }
    said
}

/// A record that makes a group so many pages long.
fn append(journal: &mut Journal, pages: usize, wants_synced: bool) -> Result<u64, AppendError> {
    let body = vec![7; (pages - 1) * PAGE as usize + 1];
    journal.append(RecordKind::Publish, 0, &[&body[..1], &body[1..]], wants_synced)
}

/// A journal with its first segment open and one to spare.
fn opened() -> Journal {
    let mut journal = Journal::open(STORE, SHAPE, &Recovered::default());
    run(&mut journal, "");
    assert!(journal.is_ready());
    journal
}

#[test]
fn a_new_journal_makes_a_segment_and_then_another() {
    let mut journal = Journal::open(STORE, SHAPE, &Recovered::default());
    assert_eq!(append(&mut journal, 1, true), Ok(1));
    assert!(!journal.is_ready());
    let all = run(&mut journal, "");
    let first = ["create 0", "zeros 0 0+4", "zeros 0 4+4", "sync 0", "write 0 0+1 sync"];
    assert_eq!(all[..6], [&first[..], &["write 0 1+1 sync"]].concat());
    assert_eq!(all[6..], ["create 1", "zeros 1 0+4", "zeros 1 4+4", "sync 1"]);
    assert_eq!(journal.progress(), Progress { written: 1, synced: 1 });
}

#[test]
fn a_file_has_one_name_and_no_number_that_somebody_made_up() {
    assert_eq!(file_numbers(&file_name(3, 42)), Some((3, 42)));
    assert_eq!(
        file_numbers(&file_name(0, JOURNAL_FILES_MAX - 1)).map(|(_, file)| file),
        Some(99_999)
    );
    let none =
        ["", "0-1", "0-0000042", "0-+00001", "0-100000", "0-4294967295", "00-000001", "-0-000001"];
    for other in none {
        assert_eq!(file_numbers(&format!("journal-{other}.log")), None, "{other}");
    }
}

#[test]
fn while_one_group_is_written_the_next_gathers() {
    let mut journal = opened();
    assert_eq!(append(&mut journal, 1, false), Ok(1));
    let first = journal.poll_request().unwrap();
    for _ in 0..3 {
        assert_eq!(append(&mut journal, 1, false), Ok(2));
    }
    assert_eq!(journal.poll_request(), None);
    assert_eq!(journal.handle_completed(tag(&first), Ok(()), None).written, 1);
    let second = journal.poll_request().unwrap();
    let JournalRequest::Write { image, offset, .. } = &second else { panic!("{second:?}") };
    let place = GroupPlace { store: STORE, epoch: 1, segment: 1, page: 2 };
    assert_eq!(*offset, 2 * PAGE);
    assert_eq!(Group::decode(image.as_slice(), &place).unwrap().records().count(), 3);
    assert_eq!(journal.handle_completed(tag(&second), Ok(()), None).written, 2);
    let counters = journal.counters();
    assert_eq!((counters.groups, counters.records), (2, 4));
    assert_eq!(counters.group_bytes, 2 * 72 + 4 * (8 + 1));
    assert_eq!(counters.group_bytes + counters.padding_bytes, 2 * PAGE);
}

#[test]
fn what_comes_back_is_written_from_again() {
    let mut journal = opened();
    // What was written is held here, and another buffer comes back in its place.
    let (mut held, mut given) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        append(&mut journal, 3, true).unwrap();
        while let Some(request) = journal.poll_request() {
            let number = tag(&request);
            let image = image_of(request).map(|image| {
                let start = image.as_slice().as_ptr();
                assert!(held.len() < 2 || given.contains(&start), "two buffers and no more");
                held.push(image);
                let back = Pages::with_capacity(SHAPE.group_bytes_max);
                given.push(back.as_slice().as_ptr());
                back
            });
            let progress = journal.handle_completed(number, Ok(()), image);
            journal.release(progress.synced);
        }
    }
    // Headers of segments among them.
    assert!(held.len() > 50 && journal.progress().synced == 40);
}

#[test]
fn a_full_group_is_refused_until_it_can_be_written() {
    let mut journal = opened();
    assert_eq!(append(&mut journal, 3, false), Ok(1));
    assert_eq!(append(&mut journal, 3, false), Err(AppendError::Full));
    let first = journal.poll_request().unwrap();
    assert_eq!(append(&mut journal, 3, false), Ok(2));
    assert_eq!(append(&mut journal, 3, false), Err(AppendError::Full));
    journal.handle_completed(tag(&first), Ok(()), None);
    run(&mut journal, "");
    assert_eq!(append(&mut journal, 3, false), Ok(3));
}

#[test]
fn a_sync_takes_all_before_it() {
    let mut journal = opened();
    append(&mut journal, 1, true).unwrap();
    assert_eq!(run(&mut journal, ""), ["write 0 1+1 sync"]);
    append(&mut journal, 1, false).unwrap();
    assert_eq!(run(&mut journal, ""), ["write 0 2+1"]);
    assert_eq!(journal.progress(), Progress { written: 2, synced: 1 });
    append(&mut journal, 1, true).unwrap();
    assert_eq!(run(&mut journal, ""), ["write 0 3+1", "sync 0"]);
    assert_eq!(journal.progress(), Progress { written: 3, synced: 3 });
    append(&mut journal, 1, false).unwrap();
    run(&mut journal, "");
    journal.sync();
    assert_eq!(run(&mut journal, ""), ["sync 0"]);
    journal.sync();
    assert_eq!(run(&mut journal, ""), [""; 0]);
}

#[test]
fn a_sync_is_not_put_off_by_more_to_write() {
    let mut journal = opened();
    append(&mut journal, 1, false).unwrap();
    run(&mut journal, "");
    append(&mut journal, 1, true).unwrap();
    let write = journal.poll_request().unwrap();
    append(&mut journal, 1, true).unwrap();
    journal.handle_completed(tag(&write), Ok(()), None);
    assert_eq!(run(&mut journal, ""), ["sync 0", "write 0 3+1 sync"]);
}

#[test]
fn a_sync_that_is_wanted_of_what_is_being_synced_is_not_done_twice() {
    let mut journal = opened();
    append(&mut journal, 1, true).unwrap();
    let write = journal.poll_request().unwrap();
    journal.sync();
    journal.handle_completed(tag(&write), Ok(()), None);
    append(&mut journal, 1, false).unwrap();
    assert_eq!(run(&mut journal, ""), ["write 0 2+1"]);
}

#[test]
fn a_segment_is_opened_when_all_before_it_is_synced() {
    let mut journal = opened();
    append(&mut journal, 3, false).unwrap();
    run(&mut journal, "");
    append(&mut journal, 3, false).unwrap();
    run(&mut journal, "");
    append(&mut journal, 2, false).unwrap();
    let said = run(&mut journal, "");
    assert_eq!(said[..3], ["sync 0", "write 1 0+1 sync", "write 1 1+2"]);
    assert_eq!(said[3], "create 2");
    let live: Vec<_> = journal.segments().map(|live| (live.file, live.end_group)).collect();
    assert_eq!(live, [(0, 3), (1, 3)]);
}

#[test]
fn a_header_says_where_the_log_ended() {
    let mut journal = opened();
    append(&mut journal, 3, true).unwrap();
    run(&mut journal, "");
    append(&mut journal, 3, true).unwrap();
    run(&mut journal, "");
    journal.release(1);
    append(&mut journal, 3, true).unwrap();
    let request = journal.poll_request().unwrap();
    let JournalRequest::Write { image, .. } = &request else { panic!("{request:?}") };
    let end = LogEnd { segment: 1, group: 3, offset: 7 * PAGE };
    let header = SegmentHeader { store: STORE, epoch: 1, segment: 2, end, needed: 2 };
    assert_eq!(SegmentHeader::decode(image.as_slice()), Ok(header));
}

/// Else a torn header would leave a file that is neither the old segment nor the new one, while
/// what stands on disk says that the old one is needed.
#[test]
fn a_segment_is_written_over_when_a_synced_header_says_so() {
    let mut journal = opened();
    let mut said = vec![];
    append(&mut journal, 3, true).unwrap();
    run(&mut journal, "");
    for group in [1, 3, 5, 7] {
        append(&mut journal, 3, true).unwrap();
        run(&mut journal, "");
        append(&mut journal, 3, true).unwrap();
        let header = journal.poll_request().unwrap();
        // Too late for this header to say it.
        journal.release(group + 1);
        journal.handle_completed(tag(&header), Ok(()), None);
        said.push(words(&header));
        said.extend(run(&mut journal, "").into_iter().filter(|words| words.starts_with("create")));
    }
    let first = ["write 1 0+1 sync", "create 2", "write 2 0+1 sync"];
    assert_eq!(said, [&first[..], &["write 0 0+1 sync", "write 1 0+1 sync"]].concat());
}

#[test]
fn nothing_is_written_after_a_failure() {
    for (fails, offset) in [("write 0 2+1", 2), ("write 0 2+1 sync", 2), ("sync 0", 3)] {
        let mut journal = opened();
        append(&mut journal, 1, fails == "write 0 2+1 sync").unwrap();
        run(&mut journal, "");
        let before = journal.progress();
        append(&mut journal, 1, fails != "write 0 2+1").unwrap();
        run(&mut journal, fails);
        let poison = Poison { segment: 1, offset: offset * PAGE, kind: ErrorKind::StorageFull };
        assert_eq!(journal.poison(), Some(poison), "{fails}");
        assert_eq!(journal.progress().synced, before.synced);
        assert_eq!(append(&mut journal, 1, true), Err(AppendError::Poisoned(poison)));
        journal.sync();
        journal.retry();
        assert_eq!(journal.poll_request(), None);
    }
}

#[test]
fn a_segment_that_cannot_be_made_is_tried_again_when_told() {
    for fails in ["create 0", "zeros 0 4+4", "sync 0"] {
        let mut journal = Journal::open(STORE, SHAPE, &Recovered::default());
        append(&mut journal, 1, true).unwrap();
        run(&mut journal, fails);
        assert_eq!(journal.blocked(), Some(ErrorKind::StorageFull));
        assert_eq!((journal.poll_request(), journal.poison()), (None, None));
        journal.retry();
        assert_eq!(run(&mut journal, "")[0], "create 0");
        assert_eq!((journal.progress().synced, journal.blocked()), (1, None));
    }
}
