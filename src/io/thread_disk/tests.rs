//! What is particular to threads; the rest is tested over every backend in `any_disk`.

use super::*;
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
use crate::base::pages::Pages;
use crate::io::uring_disk::tests::with_call_failing;
use crate::limits::{CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

const CHUNK: usize = 16384;

struct Bench {
    pool: ChunkPool,
    disk: ThreadDisk,
    woken: Arc<AtomicUsize>,
    _place: tempfile::TempDir,
}

fn bench(shape: ThreadDiskShape) -> Bench {
    let place = tempfile::tempdir().unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&woken);
    let wake_up: WakeUp = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let pool_shape = PoolShape {
        slab_bytes: 64 * CHUNK,
        class_bytes: vec![CHUNK],
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(pool_shape, Rc::new(HeapSlabs));
    assert!(pool.grow(0));
    Bench { pool, disk: ThreadDisk::new(place.path(), shape, wake_up), woken, _place: place }
}

fn write(pool: &ChunkPool, file: FileId, tag: u64) -> DiskRequest {
    let mut writer = pool.take(0).unwrap();
    writer.append(&[&vec![tag as u8; writer.room_bytes()]]);
    let chunk = writer.seal(&[tag as u8; CHUNK_HEADER_BYTES], DISK_ALIGN_BYTES);
    DiskRequest::Write { tag, file, offset: tag * CHUNK as u64, chunks: vec![chunk] }
}

#[test]
fn each_completion_wakes() {
    let mut bench = bench(ThreadDiskShape { threads: 3, depth: 8 });
    let file = bench.disk.open("slots").unwrap();
    for tag in 0..8 {
        assert!(bench.disk.submit(write(&bench.pool, file, tag)).is_ok());
    }
    bench.disk.flush();
    // A wake-up follows its completion.
    while bench.woken.load(Ordering::SeqCst) < 8 {
        std::thread::yield_now();
    }
    for _ in 0..8 {
        let completion = bench.disk.poll_completion().unwrap();
        assert!(matches!(completion, DiskCompletion::Written { result: Ok(()), .. }));
    }
    assert!(bench.disk.poll_completion().is_none());
}

#[test]
fn nothing_begins_before_it_is_flushed() {
    let mut bench = bench(ThreadDiskShape::default());
    let file = bench.disk.open("slots").unwrap();
    assert!(bench.disk.submit(DiskRequest::Sync { tag: 1, file }).is_ok());
    assert!(bench.disk.poll_completion().is_none());
    assert!(bench.disk.shared.queue().jobs.is_empty());
}

#[test]
fn dropping_it_with_requests_under_way_leaves_no_thread_behind() {
    for _ in 0..20 {
        let mut bench = bench(ThreadDiskShape { threads: 2, depth: 32 });
        let file = bench.disk.open("slots").unwrap();
        for tag in 0..16 {
            assert!(bench.disk.submit(write(&bench.pool, file, tag)).is_ok());
            let (offset, into) = (tag * CHUNK as u64, bench.pool.take(0).unwrap());
            let read = DiskRequest::Read { tag, file, offset, bytes: CHUNK, into };
            assert!(bench.disk.submit(read).is_ok());
        }
        bench.disk.flush();
        let shared = Arc::downgrade(&bench.disk.shared);
        drop(bench);
        assert_eq!(shared.strong_count(), 0);
    }
}

#[test]
fn a_thread_count_is_kept_over_many_files() {
    let mut bench = bench(ThreadDiskShape { threads: 2, depth: 4 });
    bench.disk.start().unwrap();
    let first = bench.disk.open("a").unwrap();
    let second = bench.disk.open("b").unwrap();
    assert_ne!(first, second);
    assert_eq!(bench.disk.threads.len(), 2);
}

/// Outcomes of writes to one file: one that is synced, one that is not, another that is synced.
fn write_three() -> [Result<(), ErrorKind>; 3] {
    let mut bench = bench(ThreadDiskShape { threads: 1, depth: 4 });
    let file = bench.disk.open("journal").unwrap();
    let outcomes = [true, false, true].map(|sync| {
        let mut pages = Pages::default();
        pages.extend_from_slice(&[7; 2 * DISK_ALIGN_BYTES]);
        let write = DiskRequest::WritePages { tag: 1, file, offset: 0, pages, sync };
        assert!(bench.disk.submit(write).is_ok());
        bench.disk.flush();
        loop {
            match bench.disk.poll_completion() {
                Some(DiskCompletion::WrotePages { result, .. }) => return result,
                Some(_) => panic!("only the write is under way"),
                None => std::thread::yield_now(),
            }
        }
    });
    let mut pages = Pages::zeroed(2 * DISK_ALIGN_BYTES);
    let there = bench.disk.read_now(file, 0, pages.as_mut_slice()).unwrap();
    assert!(outcomes.iter().all(Result::is_err) || there == pages.len());
    outcomes
}

/// Both calls are the system's own words for "keep it": what fails with one of them has asked.
#[test]
fn a_write_that_cannot_keep_itself_is_synced_behind() {
    let (broken, nothing) = (Err(ErrorKind::Other), Ok(()));
    let kinds = |outcomes: [Result<(), ErrorKind>; 3]| {
        outcomes.map(|outcome| outcome.map_err(|_| ErrorKind::Other))
    };
    let three = || kinds(write_three());
    assert_eq!(three(), [nothing; 3]);
    let (by_write, by_sync) = (libc::SYS_pwritev2, libc::SYS_fdatasync);
    let Some(outcomes) = with_call_failing(by_write, libc::EIO, three) else { return };
    assert_eq!(outcomes, [broken, nothing, broken]);
    assert_eq!(with_call_failing(by_sync, libc::EIO, three), Some([nothing; 3]));
    for errno in [libc::EOPNOTSUPP, libc::EINVAL, libc::ENOSYS] {
        assert_eq!(with_call_failing(by_write, errno, three), Some([nothing; 3]));
        let neither = || with_call_failing(by_write, errno, three);
        let outcomes = with_call_failing(by_sync, libc::EIO, neither);
        assert_eq!(outcomes, Some(Some([broken, nothing, broken])));
    }
}
