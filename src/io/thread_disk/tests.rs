//! On real files.

use super::*;
use crate::base::chunk_pool::{ChunkPool, ChunkWriter, HeapSlabs, PoolShape, SealedChunk};
use crate::limits::{CHUNK_CLASS_BYTES, CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES, SLAB_BYTES};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

const CLASS: usize = 1;
const CHUNK: usize = CHUNK_CLASS_BYTES[CLASS];

struct Bench {
    pool: ChunkPool,
    disk: ThreadDisk,
    woken: Arc<AtomicUsize>,
    place: tempfile::TempDir,
}

fn bench(shape: ThreadDiskShape) -> Bench {
    let place = tempfile::tempdir().unwrap();
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&woken);
    let wake_up: WakeUp = Arc::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let pool_shape = PoolShape {
        slab_bytes: SLAB_BYTES,
        class_bytes: CHUNK_CLASS_BYTES.to_vec(),
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(pool_shape, Rc::new(HeapSlabs));
    assert!(pool.grow(CLASS));
    Bench { pool, disk: ThreadDisk::new(place.path(), shape, wake_up), woken, place }
}

fn sealed(pool: &ChunkPool, fill: u8) -> SealedChunk {
    let mut writer = pool.take(CLASS).unwrap();
    writer.append(&[&vec![fill; writer.room_bytes()]]);
    writer.seal(&[fill; CHUNK_HEADER_BYTES], DISK_ALIGN_BYTES)
}

fn completion(disk: &mut ThreadDisk) -> DiskCompletion {
    disk.flush();
    loop {
        match disk.poll_completion() {
            Some(completion) => return completion,
            None => std::thread::yield_now(),
        }
    }
}

fn written(disk: &mut ThreadDisk) -> (u64, Result<(), ErrorKind>) {
    match completion(disk) {
        DiskCompletion::Written { tag, result } => (tag, result),
        _ => panic!("only writes are under way"),
    }
}

fn read(bench: &mut Bench, file: FileId, offset: u64, bytes: usize) -> (ChunkWriter, usize) {
    let into = bench.pool.take(CLASS).unwrap();
    let request = DiskRequest::Read { tag: 9, file, offset, bytes, into };
    assert!(bench.disk.submit(request).is_ok());
    match completion(&mut bench.disk) {
        DiskCompletion::Read { tag: 9, into, result } => (into, result.unwrap()),
        _ => panic!("only this read is under way"),
    }
}

#[test]
fn chunks_go_to_disk_and_come_back() {
    let mut bench = bench(ThreadDiskShape { threads: 3, depth: 8 });
    let file = bench.disk.open("slots").unwrap();
    for nth in 0..8u8 {
        let chunk = sealed(&bench.pool, nth + 1);
        let offset = u64::from(nth) * CHUNK as u64;
        let request = DiskRequest::Write { tag: u64::from(nth), file, offset, chunks: vec![chunk] };
        assert!(bench.disk.submit(request).is_ok());
    }
    let mut tags: Vec<u64> = (0..8)
        .map(|_| {
            let (tag, result) = written(&mut bench.disk);
            assert_eq!(result, Ok(()));
            tag
        })
        .collect();
    tags.sort_unstable();
    assert_eq!(tags, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(bench.disk.submit(DiskRequest::Sync { tag: 77, file }).is_ok());
    match completion(&mut bench.disk) {
        DiskCompletion::Synced { tag, result } => assert_eq!((tag, result), (77, Ok(()))),
        _ => panic!("only the sync is under way"),
    }
    for nth in 0..8u8 {
        let (chunk, bytes) = read(&mut bench, file, u64::from(nth) * CHUNK as u64, CHUNK);
        assert_eq!(bytes, CHUNK);
        assert!(chunk.loaded_image().iter().all(|byte| *byte == nth + 1));
    }
    // A wake-up follows its completion; all but the last must have come by now.
    assert!(bench.woken.load(Ordering::SeqCst) >= 16);
}

#[test]
fn images_are_written_one_behind_the_other() {
    let mut bench = bench(ThreadDiskShape::default());
    let file = bench.disk.open("slots").unwrap();
    let chunks = (1..=3).map(|fill| sealed(&bench.pool, fill)).collect();
    let offset = CHUNK as u64;
    assert!(bench.disk.submit(DiskRequest::Write { tag: 1, file, offset, chunks }).is_ok());
    assert_eq!(written(&mut bench.disk), (1, Ok(())));
    for nth in 1..=3u8 {
        let (chunk, _) = read(&mut bench, file, u64::from(nth) * CHUNK as u64, CHUNK);
        assert!(chunk.loaded_image() == vec![nth; CHUNK]);
    }
}

#[test]
fn blocks_are_asked_for_and_given_back() {
    let mut bench = bench(ThreadDiskShape::default());
    assert_eq!(bench.disk.free_bytes(), None);
    let file = bench.disk.open("slots").unwrap();
    assert_eq!(bench.disk.file_bytes(file).unwrap(), 0);
    let (bytes, part) = (16 << 20, 4 << 20);
    let free_bytes = bench.disk.free_bytes().unwrap();
    assert!(free_bytes > 2 * bytes, "a test needs some room");
    assert!(bench.disk.submit(DiskRequest::Allocate { tag: 1, file, offset: 0, bytes }).is_ok());
    match completion(&mut bench.disk) {
        DiskCompletion::Allocated { tag: 1, result } => assert_eq!(result, Ok(())),
        _ => panic!("only the allocation is under way"),
    }
    assert_eq!(bench.disk.file_bytes(file).unwrap(), bytes);
    let chunks = vec![sealed(&bench.pool, 7)];
    assert!(bench.disk.submit(DiskRequest::Write { tag: 2, file, offset: part, chunks }).is_ok());
    assert_eq!(written(&mut bench.disk), (2, Ok(())));
    let release = DiskRequest::Release { tag: 3, file, offset: part, bytes: part };
    assert!(bench.disk.submit(release).is_ok());
    match completion(&mut bench.disk) {
        DiskCompletion::Released { tag: 3, result } => assert_eq!(result, Ok(())),
        _ => panic!("only the release is under way"),
    }
    assert!(bench.disk.file_bytes(file).unwrap() <= part);
    let metadata = std::fs::metadata(bench.place.path().join("slots")).unwrap();
    assert_eq!(metadata.len(), bytes);
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 < bytes);
    let (chunk, _) = read(&mut bench, file, part, CHUNK);
    assert!(chunk.loaded_image() == vec![0; CHUNK]);
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
fn a_read_ends_where_the_file_does() {
    let mut bench = bench(ThreadDiskShape::default());
    let file = bench.disk.open("short").unwrap();
    let path = bench.place.path().join("short");
    let (_, bytes) = read(&mut bench, file, 0, CHUNK);
    assert_eq!(bytes, 0);
    std::fs::write(&path, vec![5; DISK_ALIGN_BYTES + 100]).unwrap();
    let (chunk, bytes) = read(&mut bench, file, 0, CHUNK);
    assert_eq!(bytes, DISK_ALIGN_BYTES + 100);
    assert_eq!(chunk.loaded_image(), vec![5; DISK_ALIGN_BYTES + 100]);
    let (_, bytes) = read(&mut bench, file, 8 * CHUNK as u64, CHUNK);
    assert_eq!(bytes, 0);
}

#[test]
fn a_full_backend_gives_the_request_back() {
    let mut bench = bench(ThreadDiskShape { threads: 1, depth: 2 });
    let file = bench.disk.open("slots").unwrap();
    for tag in 0..2 {
        assert!(bench.disk.submit(DiskRequest::Sync { tag, file }).is_ok());
    }
    match bench.disk.submit(DiskRequest::Sync { tag: 2, file }) {
        Err(DiskRequest::Sync { tag: 2, .. }) => {}
        _ => panic!("completions that are not polled keep their places"),
    }
    completion(&mut bench.disk);
    assert!(bench.disk.submit(DiskRequest::Sync { tag: 2, file }).is_ok());
}

#[test]
fn a_full_device_is_an_answer() {
    let mut bench = bench(ThreadDiskShape::default());
    std::os::unix::fs::symlink("/dev/full", bench.place.path().join("full")).unwrap();
    let file = bench.disk.open("full").unwrap();
    let chunk = sealed(&bench.pool, 1);
    assert!(
        bench
            .disk
            .submit(DiskRequest::Write { tag: 1, file, offset: 0, chunks: vec![chunk] })
            .is_ok()
    );
    assert_eq!(written(&mut bench.disk), (1, Err(ErrorKind::StorageFull)));
    // A device that cannot sync says so.
    assert!(bench.disk.submit(DiskRequest::Sync { tag: 2, file }).is_ok());
    match completion(&mut bench.disk) {
        DiskCompletion::Synced { tag: 2, result } => assert!(result.is_err()),
        _ => panic!("only the sync is under way"),
    }
}

#[test]
fn names_stay_inside_the_directory() {
    let mut bench = bench(ThreadDiskShape::default());
    for name in ["", ".", "..", "../x", "a/b", "/etc/passwd"] {
        assert_eq!(bench.disk.open(name).unwrap_err().kind(), ErrorKind::InvalidInput, "{name}");
    }
}

#[test]
fn dropping_it_with_requests_under_way_leaves_no_thread_behind() {
    for _ in 0..20 {
        let mut bench = bench(ThreadDiskShape { threads: 2, depth: 32 });
        let file = bench.disk.open("slots").unwrap();
        for tag in 0..16 {
            let chunk = sealed(&bench.pool, tag as u8);
            let offset = tag * CHUNK as u64;
            assert!(
                bench
                    .disk
                    .submit(DiskRequest::Write { tag, file, offset, chunks: vec![chunk] })
                    .is_ok()
            );
            let into = bench.pool.take(CLASS).unwrap();
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
    let first = bench.disk.open("a").unwrap();
    let second = bench.disk.open("b").unwrap();
    assert_ne!(first, second);
    assert_eq!(bench.disk.threads.len(), 2);
}
