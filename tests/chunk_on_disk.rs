//! Sealed chunks go out to a real file, by each backend that the system allows, and come back,
//! whole or with a name for what is wrong.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test")]

use forebay::base::chunk_pool::{ChunkPool, ChunkWriter, PoolShape};
use forebay::format::batch::{Batch, BatchBuilder, BatchPrefix};
use forebay::format::chunk::ChunkHeader;
use forebay::io::any_disk::AnyDisk;
use forebay::io::memory::MappedSlabs;
use forebay::io::{Disk, DiskCompletion, DiskRequest, FileId};
use forebay::limits::{CHUNK_BYTES_MAX, CHUNK_CLASS_BYTES, CHUNK_HEADER_BYTES, SLAB_BYTES};
use forebay::storage::chunk_file::{ChunkFile, Place, ReadChunk, ReadError, WriteError, seal};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

const BATCHES: u32 = 5;
const RECORDS: u32 = 100;

struct Bench {
    pool: ChunkPool,
    plan: ChunkFile,
    disk: AnyDisk,
    file: FileId,
    path: PathBuf,
    class: usize,
    _place: tempfile::TempDir,
}

/// A disk by each backend; one that the system does not allow is skipped.
fn disks(directory: &Path) -> Vec<AnyDisk> {
    let uring = AnyDisk::uring(directory);
    let uring = uring.inspect_err(|refusal| eprintln!("skipped over io_uring: {refusal}"));
    let threads = AnyDisk::threads(directory, Arc::new(|| ())).unwrap();
    uring.into_iter().chain([threads]).collect()
}

/// Runs `test` over each backend, with files of its own.
fn with_each(class: usize, name: &str, test: impl Fn(Bench)) {
    let kinds = disks(tempfile::tempdir().unwrap().path()).len();
    for nth in 0..kinds {
        test(Bench::new(nth, class, name));
    }
}

impl Bench {
    fn new(nth_disk: usize, class: usize, name: &str) -> Bench {
        let place = tempfile::tempdir().unwrap();
        let shape = PoolShape {
            slab_bytes: SLAB_BYTES,
            class_bytes: CHUNK_CLASS_BYTES.to_vec(),
            header_bytes: CHUNK_HEADER_BYTES,
        };
        let path = place.path().join(name);
        if name == "full" {
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        }
        let mut disk = disks(place.path()).remove(nth_disk);
        let file = disk.open(name).unwrap();
        let pool = ChunkPool::new(shape, Rc::new(MappedSlabs));
        let plan = ChunkFile::new(CHUNK_CLASS_BYTES[class], 16);
        Bench { pool, plan, disk, file, path, class, _place: place }
    }

    fn take(&self) -> ChunkWriter {
        self.pool.take(self.class).unwrap_or_else(|| {
            assert!(self.pool.grow(self.class));
            self.pool.take(self.class).unwrap()
        })
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

    /// Fills a chunk with real batches and writes it out.
    fn write_out(&mut self, ordinal: u64) -> Result<Place, WriteError> {
        let mut writer = self.take();
        let first_sequence = ordinal * 1000 + 1;
        for nth in 0..BATCHES {
            let mut builder = BatchBuilder::default();
            for record in 0..RECORDS {
                builder.push(0, &[], format!("{ordinal} {nth} {record}").as_bytes());
            }
            let base_sequence = first_sequence + u64::from(nth * RECORDS);
            let prefix = BatchPrefix { base_sequence, accepted_us: 1 };
            writer.append(&[&prefix.encode(), builder.finish(0, 0, base_sequence)]);
        }
        let header = ChunkHeader {
            used_bytes: 0,
            queue: 3,
            first_sequence,
            end_sequence: first_sequence + u64::from(BATCHES * RECORDS),
            batch_count: BATCHES,
            chunk: ordinal,
        };
        let (sealed, header) = seal(writer, header);
        let planned = self.plan.write(sealed, header).ok().expect("a slot is free");
        let request = DiskRequest::Write {
            tag: planned.tag,
            file: self.file,
            offset: planned.offset,
            chunks: vec![planned.chunk],
        };
        assert!(self.disk.submit(request).is_ok());
        match self.completion() {
            DiskCompletion::Written { tag, result } => self.plan.handle_written(tag, result),
            _ => panic!("only the write is under way"),
        }
    }

    fn read_back(&mut self, place: Place) -> Result<ReadChunk, ReadError> {
        let planned = self.plan.read(place, self.take());
        let request = DiskRequest::Read {
            tag: planned.tag,
            file: self.file,
            offset: planned.offset,
            bytes: planned.bytes,
            into: planned.into,
        };
        assert!(self.disk.submit(request).is_ok());
        self.disk.flush();
        match self.completion() {
            DiskCompletion::Read { tag, into, result } => self.plan.handle_read(tag, into, result),
            _ => panic!("only the read is under way"),
        }
    }

    /// Flips bits on the file itself, behind the broker's back.
    fn flip(&self, offset: u64, bits: u8) {
        let file = OpenOptions::new().read(true).write(true).open(&self.path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ bits], offset).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn sealed_chunks_go_out_and_come_back_batch_by_batch() {
    for class in [2, CHUNK_CLASS_BYTES.len() - 1] {
        with_each(class, "chunks", |mut bench| {
            let places: Vec<Place> = (0..6).map(|nth| bench.write_out(nth).unwrap()).collect();
            for (ordinal, place) in places.into_iter().enumerate().rev() {
                let chunk = bench.read_back(place).expect("it is there");
                assert_eq!(chunk.header.chunk, ordinal as u64);
                let mut at = CHUNK_HEADER_BYTES;
                let mut sequence = chunk.header.first_sequence;
                let bytes = chunk.reader.slice(at..chunk.header.used_bytes as usize);
                at = 0;
                for _ in 0..chunk.header.batch_count {
                    let prefix = BatchPrefix::decode(&bytes[at..]);
                    assert_eq!(prefix.base_sequence, sequence);
                    at += forebay::limits::BATCH_PREFIX_BYTES;
                    let header = forebay::format::batch::BatchHeader::decode(&bytes[at..]).unwrap();
                    let batch = Batch::decode(&bytes[at..at + header.wire_bytes()]).unwrap();
                    at += batch.wire.len();
                    sequence += u64::from(header.record_count);
                }
                assert_eq!(at, bytes.len());
                assert_eq!(sequence, chunk.header.end_sequence);
            }
        });
    }
}

#[test]
fn flipped_bits_in_every_region_are_found() {
    with_each(2, "chunks", |mut bench| {
        let slot = CHUNK_CLASS_BYTES[2] as u64;
        bench.write_out(0).unwrap();
        let place = bench.write_out(1).unwrap();
        let used = u64::from(place.header().used_bytes);
        // Each field of the header, the first batch's prefix, header and records, the last byte.
        let header = [0, 4, 8, 10, 12, 16, 24, 32, 40, 44, 48, 56, 63];
        let regions = header.into_iter().chain([64, 79, 80, 119, 120, 200, used / 2, used - 1]);
        for offset in regions {
            for bits in [0x01, 0x80, 0xFF] {
                bench.flip(slot + offset, bits);
                let outcome = bench.read_back(place);
                let found = matches!(outcome, Err(ReadError::Damaged { slot: 1, .. }));
                assert!(found, "byte {offset}, bits {bits:#x}");
                bench.flip(slot + offset, bits);
            }
        }
        bench.read_back(place).expect("whole again");
    });
}

#[test]
fn a_truncated_file_and_a_swapped_chunk_are_told_apart() {
    with_each(2, "chunks", |mut bench| {
        let slot = CHUNK_CLASS_BYTES[2];
        let first = bench.write_out(0).unwrap();
        let second = bench.write_out(1).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&bench.path).unwrap();
        let mut image = vec![0; first.image_bytes()];
        file.read_exact_at(&mut image, 0).unwrap();
        file.write_all_at(&image, slot as u64).unwrap();
        let error = bench.read_back(second).err().expect("another chunk");
        assert!(matches!(error, ReadError::Another { slot: 1, .. }), "{error}");
        file.set_len(slot as u64 + 4096).unwrap();
        let error = bench.read_back(second).err().expect("a short chunk");
        let expected = second.image_bytes();
        assert_eq!(error, ReadError::Short { slot: 1, expected, actual: 4096 });
        bench.read_back(first).expect("the other is whole");
    });
}

#[test]
fn a_full_device_leaves_the_chunk_in_memory() {
    with_each(CHUNK_CLASS_BYTES.len() - 1, "full", |mut bench| {
        assert_eq!(CHUNK_CLASS_BYTES[bench.class], CHUNK_BYTES_MAX);
        assert_eq!(bench.write_out(0), Err(WriteError::Full));
        assert_eq!(bench.plan.slots_used(), 0);
    });
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    for mut disk in disks(&place.path().join("missing")) {
        assert_eq!(disk.open("chunks").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
