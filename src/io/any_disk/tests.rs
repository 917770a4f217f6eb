//! On real files, over each backend that the system allows.

use super::*;
use crate::base::chunk_pool::{ChunkPool, ChunkWriter, HeapSlabs, PoolShape, SealedChunk};
use crate::base::pages::Pages;
use crate::limits::{
    CHUNK_CLASS_BYTES, CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES, DISK_FILES_MAX, DISK_WRITE_CHUNKS_MAX,
    SLAB_BYTES,
};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;

const CLASS: usize = 1;
const CHUNK: usize = CHUNK_CLASS_BYTES[CLASS];
const BLOCK: u64 = DISK_ALIGN_BYTES as u64;

struct Bench {
    pool: ChunkPool,
    disk: AnyDisk,
    directory: PathBuf,
}

fn quiet() -> WakeUp {
    Arc::new(|| ())
}

/// Runs `test` with each backend, on files of a directory of its own.
fn with_each(test: impl Fn(&mut Bench)) {
    for threads in [false, true] {
        let place = tempfile::tempdir().unwrap();
        with_one(threads, place.path(), &test);
    }
}

fn with_one(threads: bool, directory: &Path, test: impl Fn(&mut Bench)) {
    let disk = if threads {
        AnyDisk::threads(directory, quiet()).unwrap()
    } else {
        match AnyDisk::uring(directory) {
            Ok(disk) => disk,
            Err(refusal) => return eprintln!("skipped over io_uring: {refusal}"),
        }
    };
    let shape = PoolShape {
        slab_bytes: SLAB_BYTES,
        class_bytes: CHUNK_CLASS_BYTES.to_vec(),
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
    eprintln!("over {}", disk.name());
    test(&mut Bench { pool, disk, directory: directory.to_owned() });
}

impl Bench {
    fn take(&self, class: usize) -> ChunkWriter {
        self.pool.take(class).unwrap_or_else(|| {
            assert!(self.pool.grow(class));
            self.pool.take(class).unwrap()
        })
    }

    fn sealed(&self, class: usize, fill: u8) -> SealedChunk {
        let mut writer = self.take(class);
        writer.append(&[&vec![fill; writer.room_bytes()]]);
        writer.seal(&[fill; CHUNK_HEADER_BYTES], DISK_ALIGN_BYTES)
    }

    fn submit(&mut self, request: DiskRequest) {
        assert!(self.disk.submit(request).is_ok());
    }

    fn write(&mut self, tag: u64, file: FileId, offset: u64, fill: u8) {
        let chunks = vec![self.sealed(CLASS, fill)];
        self.submit(DiskRequest::Write { tag, file, offset, chunks });
    }

    fn completion(&mut self) -> DiskCompletion {
        loop {
            self.disk.flush();
            match self.disk.poll_completion() {
                Some(completion) => return completion,
                None => std::thread::yield_now(),
            }
        }
    }

    /// The outcome of the one request that is under way, which reads nothing.
    fn outcome(&mut self, expected_tag: u64) -> Result<(), ErrorKind> {
        let (tag, result) = match self.completion() {
            DiskCompletion::Written { tag, result }
            | DiskCompletion::Synced { tag, result }
            | DiskCompletion::Allocated { tag, result }
            | DiskCompletion::Released { tag, result } => (tag, result),
            DiskCompletion::WrotePages { tag, result, .. } => (tag, result),
            DiskCompletion::Read { .. } => panic!("no read is under way"),
        };
        assert_eq!(tag, expected_tag);
        result
    }

    fn allocate(&mut self, file: FileId, offset: u64, bytes: u64) -> Result<(), ErrorKind> {
        self.submit(DiskRequest::Allocate { tag: 7, file, offset, bytes });
        self.outcome(7)
    }

    fn release(&mut self, file: FileId, offset: u64, bytes: u64) -> Result<(), ErrorKind> {
        self.submit(DiskRequest::Release { tag: 8, file, offset, bytes });
        self.outcome(8)
    }

    fn write_pages(
        &mut self,
        file: FileId,
        offset: u64,
        pages: Pages,
        sync: bool,
    ) -> (Pages, Result<(), ErrorKind>) {
        self.submit(DiskRequest::WritePages { tag: 5, file, offset, pages, sync });
        match self.completion() {
            DiskCompletion::WrotePages { tag: 5, pages, result } => (pages, result),
            _ => panic!("only this write is under way"),
        }
    }

    /// So many bytes, or those that there are.
    fn read_now(&mut self, file: FileId, offset: u64, bytes: usize) -> Vec<u8> {
        let mut pages = Pages::zeroed(bytes);
        let there = self.disk.read_now(file, offset, pages.as_mut_slice()).unwrap();
        pages.as_slice()[..there].to_vec()
    }

    /// The bytes of one chunk.
    fn read(&mut self, file: FileId, offset: u64) -> Vec<u8> {
        let into = self.take(CLASS);
        self.submit(DiskRequest::Read { tag: 9, file, offset, bytes: CHUNK, into });
        match self.completion() {
            DiskCompletion::Read { tag: 9, into, result } => {
                into.loaded_image()[..result.unwrap()].to_vec()
            }
            _ => panic!("only this read is under way"),
        }
    }
}

#[test]
fn chunks_go_to_disk_and_come_back() {
    with_each(|bench| {
        let file = bench.disk.open("slots").unwrap();
        for nth in 0..8u8 {
            bench.write(u64::from(nth), file, u64::from(nth) * CHUNK as u64, nth + 1);
        }
        let mut tags = Vec::new();
        for _ in 0..8 {
            match bench.completion() {
                DiskCompletion::Written { tag, result: Ok(()) } => tags.push(tag),
                _ => panic!("only writes are under way"),
            }
        }
        tags.sort_unstable();
        assert_eq!(tags, [0, 1, 2, 3, 4, 5, 6, 7]);
        bench.submit(DiskRequest::Sync { tag: 77, file });
        assert_eq!(bench.outcome(77), Ok(()));
        for nth in 0..8u8 {
            assert!(bench.read(file, u64::from(nth) * CHUNK as u64) == vec![nth + 1; CHUNK]);
        }
    });
}

#[test]
fn images_are_written_one_behind_the_other() {
    with_each(|bench| {
        let file = bench.disk.open("slots").unwrap();
        let mut chunks: Vec<_> = (1..=3).map(|fill| bench.sealed(CLASS, fill)).collect();
        chunks.push(bench.sealed(0, 4));
        let offset = CHUNK as u64;
        bench.submit(DiskRequest::Write { tag: 1, file, offset, chunks });
        assert_eq!(bench.outcome(1), Ok(()));
        for nth in 1..=3u8 {
            assert!(bench.read(file, u64::from(nth) * CHUNK as u64) == vec![nth; CHUNK]);
        }
        assert!(bench.read(file, 4 * CHUNK as u64) == vec![4; CHUNK_CLASS_BYTES[0]]);
        // As many as one write may have.
        let chunks = (0..DISK_WRITE_CHUNKS_MAX).map(|nth| bench.sealed(0, nth as u8)).collect();
        bench.submit(DiskRequest::Write { tag: 2, file, offset: 0, chunks });
        assert_eq!(bench.outcome(2), Ok(()));
        let image = bench.read(file, 8 * CHUNK as u64);
        let first = 8 * CHUNK / CHUNK_CLASS_BYTES[0];
        for (nth, block) in image.chunks(CHUNK_CLASS_BYTES[0]).enumerate() {
            assert!(block.iter().all(|byte| *byte == (first + nth) as u8));
        }
    });
}

/// Bytes that differ from page to page, in whole pages.
fn pages_of(fill: u8, pages: usize) -> Pages {
    let mut all = Pages::default();
    (0..pages)
        .for_each(|nth| all.extend_from_slice(&[fill.wrapping_add(nth as u8); DISK_ALIGN_BYTES]));
    all
}

#[test]
fn pages_go_to_disk_and_come_back_for_use_again() {
    with_each(|bench| {
        let file = bench.disk.open("journal").unwrap();
        let mut pages = pages_of(1, 300);
        let start = pages.as_slice().as_ptr();
        for (nth, sync) in [(0, true), (1, false), (1, true), (3, true)] {
            let offset = nth * 300 * BLOCK;
            pages.as_mut_slice()[7] = nth as u8;
            let expected = pages.clone();
            let (back, result) = bench.write_pages(file, offset, pages, sync);
            assert_eq!(result, Ok(()));
            assert!(back.as_slice().as_ptr() == start && back == expected);
            assert!(bench.read_now(file, offset, back.len()) == expected.as_slice());
            pages = back;
        }
        assert_eq!(bench.disk.file_len(file).unwrap(), 1200 * BLOCK, "the hole included");
        assert!(bench.read_now(file, 600 * BLOCK, 300 * DISK_ALIGN_BYTES).iter().all(|b| *b == 0));
        let last = bench.read_now(file, 1198 * BLOCK, 4 * DISK_ALIGN_BYTES);
        assert!(last == pages.as_slice()[298 * DISK_ALIGN_BYTES..], "the file ends there");
        assert!(bench.read_now(file, 2000 * BLOCK, DISK_ALIGN_BYTES).is_empty());
        std::fs::write(bench.directory.join("journal"), [9; DISK_ALIGN_BYTES + 700]).unwrap();
        assert!(bench.read_now(file, BLOCK, 3 * DISK_ALIGN_BYTES) == [9; 700]);
        assert_eq!(bench.disk.file_len(file).unwrap(), BLOCK + 700);
    });
}

#[test]
fn a_file_that_was_closed_leaves_its_number_to_another() {
    with_each(|bench| {
        let files = ["a", "b", "c"].map(|name| bench.disk.open(name).unwrap());
        assert_eq!(bench.write_pages(files[1], 0, pages_of(1, 1), true).1, Ok(()));
        bench.disk.close(files[1]);
        assert_eq!(bench.disk.open("d").unwrap(), files[1]);
        assert_eq!(bench.write_pages(files[1], BLOCK, pages_of(2, 1), true).1, Ok(()));
        bench.disk.close(files[0]);
        assert_eq!(bench.disk.open("b").unwrap(), files[0]);
        assert!(bench.read_now(files[0], 0, DISK_ALIGN_BYTES) == [1; DISK_ALIGN_BYTES]);
        let in_ring = bench.read(files[1], 0);
        assert!(in_ring[..DISK_ALIGN_BYTES] == [0; DISK_ALIGN_BYTES]);
        assert!(in_ring[DISK_ALIGN_BYTES..] == [2; DISK_ALIGN_BYTES]);
        // However many there were.
        for nth in 0..2 * DISK_FILES_MAX {
            let file = bench.disk.open(&nth.to_string()).unwrap();
            assert_eq!(file, FileId(3));
            bench.disk.close(file);
        }
        let open = (3..DISK_FILES_MAX).map(|nth| bench.disk.open(&nth.to_string()).unwrap().0);
        assert!(open.eq(3..DISK_FILES_MAX as u32));
        assert_eq!(bench.disk.open("more").unwrap_err().kind(), ErrorKind::QuotaExceeded);
    });
}

#[test]
fn files_are_found_by_how_their_names_begin() {
    with_each(|bench| {
        assert_eq!(bench.disk.names("").unwrap(), [""; 0]);
        for name in ["journal-2", "spill", "journal-10", "journal"] {
            bench.disk.open(name).unwrap();
        }
        std::fs::create_dir(bench.directory.join("journal-of-another")).unwrap();
        assert_eq!(bench.disk.names("journal-").unwrap(), ["journal-10", "journal-2"]);
        assert_eq!(bench.disk.names("").unwrap().len(), 4);
        assert_eq!(bench.disk.names("x").unwrap(), [""; 0]);
        std::fs::remove_dir_all(&bench.directory).unwrap();
        assert_eq!(bench.disk.names("").unwrap_err().kind(), ErrorKind::NotFound);
        std::fs::create_dir(&bench.directory).unwrap();
    });
}

#[test]
fn blocks_are_asked_for_and_given_back() {
    with_each(|bench| {
        assert_eq!(bench.disk.free_bytes(), None);
        let file = bench.disk.open("slots").unwrap();
        assert_eq!(bench.disk.file_bytes(file).unwrap(), 0);
        let (bytes, part) = (16 << 20, 4 << 20);
        assert!(bench.disk.free_bytes().unwrap() > 2 * bytes, "a test needs some room");
        assert_eq!(bench.allocate(file, 0, bytes), Ok(()));
        assert_eq!(bench.disk.file_bytes(file).unwrap(), bytes);
        bench.write(2, file, part, 7);
        assert_eq!(bench.outcome(2), Ok(()));
        assert_eq!(bench.allocate(file, 0, bytes), Ok(()));
        assert!(bench.read(file, part) == vec![7; CHUNK], "what stands there stays");
        assert_eq!(bench.release(file, part, part), Ok(()));
        assert_eq!(bench.disk.file_bytes(file).unwrap(), part);
        // Many extents before the hole, written and not.
        for nth in 0..part / CHUNK as u64 / 2 {
            bench.write(3, file, 2 * nth * CHUNK as u64, 3);
            assert_eq!(bench.outcome(3), Ok(()));
        }
        assert_eq!(bench.disk.file_bytes(file).unwrap(), part);
        let metadata = std::fs::metadata(bench.directory.join("slots")).unwrap();
        assert_eq!(metadata.len(), bytes);
        assert!(metadata.blocks() * 512 < bytes);
        assert!(bench.read(file, part) == vec![0; CHUNK]);
        // All that there is and was, and more.
        assert_eq!(bench.release(file, 0, 1 << 40), Ok(()));
        assert_eq!(bench.disk.file_bytes(file).unwrap(), 0);
    });
}

#[test]
fn a_read_ends_where_the_file_does() {
    with_each(|bench| {
        let file = bench.disk.open("short").unwrap();
        let path = bench.directory.join("short");
        assert!(bench.read(file, 0).is_empty());
        for bytes in [1, 511, DISK_ALIGN_BYTES, DISK_ALIGN_BYTES + 100, 3 * DISK_ALIGN_BYTES - 1] {
            std::fs::write(&path, vec![5; bytes]).unwrap();
            assert!(bench.read(file, 0) == vec![5; bytes]);
            let rest = bytes.saturating_sub(DISK_ALIGN_BYTES);
            assert!(bench.read(file, BLOCK) == vec![5; rest]);
        }
        assert!(bench.read(file, 8 * CHUNK as u64).is_empty());
        assert_eq!(bench.disk.file_bytes(file).unwrap(), 3 * BLOCK - 1);
    });
}

#[test]
fn a_full_backend_gives_the_request_back() {
    with_each(|bench| {
        let file = bench.disk.open("slots").unwrap();
        for tag in 0..DISK_DEPTH as u64 {
            bench.submit(DiskRequest::Sync { tag, file });
        }
        bench.disk.flush();
        match bench.disk.submit(DiskRequest::Sync { tag: 99, file }) {
            Err(DiskRequest::Sync { tag: 99, .. }) => {}
            _ => panic!("completions that are not polled keep their places"),
        }
        bench.completion();
        bench.submit(DiskRequest::Sync { tag: 99, file });
        for _ in 0..DISK_DEPTH {
            match bench.completion() {
                DiskCompletion::Synced { result, .. } => assert_eq!(result, Ok(())),
                _ => panic!("only syncs are under way"),
            }
        }
        assert!(bench.disk.poll_completion().is_none());
    });
}

#[test]
fn a_device_that_fails_is_an_answer() {
    with_each(|bench| {
        let path = bench.directory.join("full");
        std::os::unix::fs::symlink("/dev/full", path).unwrap();
        let file = bench.disk.open("full").unwrap();
        bench.write(1, file, 0, 1);
        assert_eq!(bench.outcome(1), Err(ErrorKind::StorageFull));
        for sync in [false, true] {
            let (pages, result) = bench.write_pages(file, 0, pages_of(1, 2), sync);
            assert!(pages == pages_of(1, 2));
            assert_eq!(result, Err(ErrorKind::StorageFull));
        }
        // A device that can neither sync nor reserve says so.
        bench.submit(DiskRequest::Sync { tag: 2, file });
        assert!(bench.outcome(2).is_err());
        assert!(bench.allocate(file, 0, BLOCK).is_err());
        assert!(bench.release(file, 0, BLOCK).is_err());
    });
}

#[test]
fn names_stay_inside_the_directory() {
    with_each(|bench| {
        for name in ["", ".", "..", "../x", "a/b", "/etc/passwd"] {
            let error = bench.disk.open(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
        }
        assert_eq!(bench.disk.open("a").unwrap(), FileId(0));
        assert_eq!(bench.disk.open("b").unwrap(), FileId(1));
    });
}

#[test]
fn a_disk_that_is_dropped_waits_for_what_is_under_way() {
    with_each(|bench| {
        let file = bench.disk.open("slots").unwrap();
        for nth in 0..DISK_DEPTH as u64 / 2 - 1 {
            let offset = nth * CHUNK as u64;
            bench.write(nth, file, offset, nth as u8);
            let into = bench.take(CLASS);
            bench.submit(DiskRequest::Read { tag: nth, file, offset, bytes: CHUNK, into });
        }
        let (pages, offset) = (pages_of(0, 256), DISK_DEPTH as u64 * CHUNK as u64);
        bench.submit(DiskRequest::WritePages { tag: 98, file, offset, pages, sync: true });
        bench.disk.flush();
        // This one never leaves.
        bench.write(99, file, 0, 99);
        // Another takes its place; the first, and all chunks that it had, go.
        let other = AnyDisk::threads(&bench.directory, quiet()).unwrap();
        drop(std::mem::replace(&mut bench.disk, other));
        let free = bench.pool.shrink(0);
        assert_eq!(bench.pool.mapped_bytes(), 0, "{free} were free: a chunk is still held");
    });
}

/// A small file system of its own, on a loop device.
struct SmallDisk {
    mounted: PathBuf,
    _place: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with a word why, where that is not permitted.
    fn mount(kind: &str, bytes: u64) -> Option<SmallDisk> {
        let place = tempfile::tempdir().unwrap();
        let (image, mounted) = (place.path().join("image"), place.path().join("mounted"));
        std::fs::create_dir(&mounted).unwrap();
        std::fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        let mut make = Command::new(format!("mkfs.{kind}"));
        make.args(["-q", "-F", "-b", "4096", "-m", "0"]).arg(&image);
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(&mounted);
        for command in [&mut make, &mut mount] {
            match command.output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    let why = String::from_utf8_lossy(&output.stderr).into_owned();
                    eprintln!("skipped: {command:?}: {}", why.trim());
                    return None;
                }
                Err(error) => {
                    eprintln!("skipped: {command:?}: {error}");
                    return None;
                }
            }
        }
        Some(SmallDisk { mounted, _place: place })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.mounted).status();
        assert!(unmounted.unwrap().success());
    }
}

#[test]
fn a_file_system_without_space_refuses_and_takes_again_what_was_freed() {
    for threads in [false, true] {
        let Some(small) = SmallDisk::mount("ext4", 24 << 20) else { return };
        with_one(threads, &small.mounted, |bench| {
            let file = bench.disk.open("spill").unwrap();
            let free = bench.disk.free_bytes().unwrap();
            assert!(free > 4 << 20 && free < 24 << 20, "{free}");
            assert_eq!(bench.allocate(file, 0, 64 << 20), Err(ErrorKind::StorageFull));
            assert_eq!(bench.release(file, 0, 64 << 20), Ok(()));
            let some = 2 << 20;
            assert_eq!(bench.allocate(file, 0, some), Ok(()));
            assert!(bench.disk.free_bytes().unwrap() <= free - some);
            assert_eq!(bench.disk.file_bytes(file).unwrap(), some, "none of them written");
            // Another file takes what is left; then blocks are only in the range of before.
            let hog = bench.disk.open("hog").unwrap();
            let mut taken = 0;
            loop {
                bench.write(1, hog, taken, 1);
                match bench.outcome(1) {
                    Ok(()) => taken += CHUNK as u64,
                    Err(kind) => break assert_eq!(kind, ErrorKind::StorageFull),
                }
            }
            assert!(taken > 0);
            bench.write(2, file, some - CHUNK as u64, 2);
            assert_eq!(bench.outcome(2), Ok(()), "it has its blocks");
            bench.write(3, file, some + (8 << 20), 3);
            assert_eq!(bench.outcome(3), Err(ErrorKind::StorageFull));
            assert_eq!(bench.release(hog, 0, taken), Ok(()));
            bench.write(4, file, some + (8 << 20), 4);
            assert_eq!(bench.outcome(4), Ok(()));
            assert!(bench.read(file, some - CHUNK as u64) == vec![2; CHUNK]);
        });
    }
}

#[test]
fn a_file_system_that_reserves_nothing_is_written_to_all_the_same() {
    for threads in [false, true] {
        let Some(small) = SmallDisk::mount("ext2", 24 << 20) else { return };
        with_one(threads, &small.mounted, |bench| {
            let file = bench.disk.open("spill").unwrap();
            assert_eq!(bench.allocate(file, 0, 1 << 20), Ok(()));
            assert_eq!(bench.disk.file_bytes(file).unwrap(), 0, "no block is there yet");
            bench.write(1, file, 0, 1);
            assert_eq!(bench.outcome(1), Ok(()));
            assert_eq!(bench.disk.file_bytes(file).unwrap(), CHUNK as u64);
            assert!(bench.read(file, 0) == vec![1; CHUNK]);
        });
    }
}

/// Times that the device under `path` was told to flush its cache, if the system says.
fn flushes(path: &Path) -> Option<u64> {
    let device = std::fs::metadata(path).unwrap().dev();
    let numbers = format!("{}:{}", libc::major(device), libc::minor(device));
    let line = std::fs::read_to_string(format!("/sys/dev/block/{numbers}/stat")).ok()?;
    line.split_whitespace().nth(15)?.parse().ok()
}

#[test]
fn a_write_that_keeps_itself_makes_the_device_flush() {
    const WRITES: u64 = 40;
    for threads in [false, true] {
        let Some(small) = SmallDisk::mount("ext4", 24 << 20) else { return };
        with_one(threads, &small.mounted, |bench| {
            let file = bench.disk.open("journal").unwrap();
            assert_eq!(bench.write_pages(file, 0, pages_of(0, 2), true).1, Ok(()));
            let mut counts = [0, 0];
            for (nth, sync) in [(0, false), (1, true)] {
                let Some(before) = flushes(&small.mounted) else {
                    return eprintln!("skipped: flushes are not counted");
                };
                for _ in 0..WRITES {
                    assert_eq!(bench.write_pages(file, 0, pages_of(0, 2), sync).1, Ok(()));
                }
                counts[nth] = flushes(&small.mounted).unwrap() - before;
            }
            assert!(counts[0] < WRITES && counts[1] >= WRITES, "{counts:?}");
        });
    }
}

#[test]
fn a_process_without_files_to_spare_is_refused_by_name() {
    // The limit is the process's, so this runs in one of its own.
    const CHILD: &str = "FOREBAY_TEST_WITHOUT_FILES";
    if std::env::var_os(CHILD).is_none() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let name = "io::any_disk::tests::a_process_without_files_to_spare_is_refused_by_name";
        let output = command.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("without files"), "{text}");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    with_one(true, place.path(), no_more_files);
    with_one(false, place.path(), no_more_files);
    let uring = || AnyDisk::uring(place.path());
    let outcome = without_files(|| AnyDisk::auto(uring, place.path(), quiet()));
    let (disk, refusal) = outcome.unwrap();
    assert_eq!(disk.name(), "threads");
    let refusal = refusal.unwrap().to_string();
    let skipped = !refusal.contains("(os error 24)");
    assert!(skipped || refusal.contains("raise `ulimit -n`"), "{refusal}");
    eprintln!("without files");
}

/// Opening fails, and what is open goes on.
fn no_more_files(bench: &mut Bench) {
    let file = bench.disk.open("open").unwrap();
    let error = without_files(|| bench.disk.open("one more").unwrap_err());
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    without_files(|| {
        bench.write(1, file, 0, 1);
        assert_eq!(bench.outcome(1), Ok(()));
        assert!(bench.read(file, 0) == vec![1; CHUNK]);
    });
    bench.disk.open("one more").unwrap();
}

/// Runs `action` while the process can open nothing.
fn without_files<T>(action: impl FnOnce() -> T) -> T {
    let mut held = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        held.push(file);
    }
    action()
}

#[test]
fn a_ring_that_is_refused_gives_way_to_threads_and_says_why() {
    let place = tempfile::tempdir().unwrap();
    for (errno, expected) in [
        (libc::EPERM, "forbids it, as Docker's default does: allow io_uring_setup"),
        (libc::ENOSYS, "Linux 5.6 or newer is needed"),
        (libc::ENOMEM, "raise `ulimit -l` (LimitMEMLOCK= of systemd)"),
        (libc::EMFILE, "raise `ulimit -n` (LimitNOFILE= of systemd)"),
        (libc::EINVAL, "Linux 5.6 or newer is needed"),
        (libc::EIO, "disk_backend = threads does without it"),
    ] {
        let refuse = || {
            let error = std::io::Error::from_raw_os_error(errno);
            Err(Refusal::System { call: "io_uring_setup", error })
        };
        let (mut disk, refusal) = AnyDisk::auto(refuse, place.path(), quiet()).unwrap();
        assert_eq!(disk.name(), "threads");
        let text = refusal.unwrap().to_string();
        assert!(text.starts_with("io_uring_setup: ") && text.contains(expected), "{text}");
        assert!(!text.contains('\n'));
        disk.open("file").unwrap();
    }
}
