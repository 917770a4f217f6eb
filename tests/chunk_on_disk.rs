//! Sealed chunks go out to a real file, by each backend that the system allows, and come back
//! through the spill store: whole, or what is left of them.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test")]

use forebay::base::chunk_pool::{ChunkPool, ChunkWriter, PoolShape, SealedChunk};
use forebay::base::time::Mono;
use forebay::format::batch::{Batch, BatchBuilder, BatchHeader, BatchPrefix};
use forebay::format::chunk::{self, ChunkHeader, ChunkName};
use forebay::io::any_disk::AnyDisk;
use forebay::io::memory::MappedSlabs;
use forebay::io::{Disk, DiskCompletion, DiskRequest, FileId};
use forebay::limits::{
    BATCH_PREFIX_BYTES, CHUNK_BYTES_MAX, CHUNK_CLASS_BYTES, CHUNK_HEADER_BYTES, SLAB_BYTES,
    SPILL_SLOT_BYTES,
};
use forebay::storage::slots::Place;
use forebay::storage::spill::{
    DiskBudget, FullReason, PlannedRead, ReadError, Refilled, SpillShape, SpillState, SpillStore,
    StoreRequest, WriteError, Written,
};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

const BATCHES: u32 = 5;
const RECORDS: u32 = 100;
const EXTENT_SLOTS: u32 = 4;
const EXTENT: u64 = EXTENT_SLOTS as u64 * SPILL_SLOT_BYTES as u64;

struct Bench {
    pool: ChunkPool,
    budget: Arc<DiskBudget>,
    store: SpillStore<u64>,
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
        let budget = DiskBudget::new(4 * EXTENT);
        // A device has no blocks to ask for; it shall be written to all the same.
        let warm_bytes = if name == "full" { EXTENT } else { 0 };
        let shape = SpillShape::for_limit(0, 1);
        let shape = SpillShape { extent_slots: EXTENT_SLOTS, warm_bytes, ..shape };
        let store = SpillStore::new(shape, Arc::clone(&budget));
        let mut bench = Bench { pool, budget, store, disk, file, path, class, _place: place };
        if !bench.store.can_write() {
            assert_eq!(bench.serve(), 1, "there was no block yet");
        }
        bench
    }

    fn take(&self) -> ChunkWriter {
        self.pool.take(self.class).unwrap_or_else(|| {
            assert!(self.pool.grow(self.class));
            self.pool.take(self.class).unwrap()
        })
    }

    fn submit(&mut self, request: DiskRequest) -> DiskCompletion {
        assert!(self.disk.submit(request).is_ok());
        loop {
            self.disk.flush();
            match self.disk.poll_completion() {
                Some(completion) => return completion,
                None => std::thread::yield_now(),
            }
        }
    }

    /// Gets the blocks, or gives them back, that the store asks for.
    fn serve(&mut self) -> usize {
        let mut count = 0;
        while let Some(request) = self.store.poll_request(Mono(1), || self.disk.free_bytes()) {
            let file = self.file;
            let request = match request {
                StoreRequest::Allocate { tag, offset, bytes } => {
                    DiskRequest::Allocate { tag, file, offset, bytes }
                }
                StoreRequest::Release { tag, offset, bytes } => {
                    DiskRequest::Release { tag, file, offset, bytes }
                }
            };
            match self.submit(request) {
                DiskCompletion::Allocated { tag, result } => {
                    self.store.handle_allocated(tag, result, Mono(1));
                }
                DiskCompletion::Released { tag, result } => {
                    assert_eq!(result, Ok(()));
                    self.store.handle_released(tag, result, Mono(1));
                }
                _ => panic!("only that is under way"),
            }
            count += 1;
        }
        count
    }

    fn name(ordinal: u64) -> ChunkName {
        let first_sequence = ordinal * 1000 + 1;
        let end_sequence = first_sequence + u64::from(BATCHES * RECORDS);
        ChunkName { queue: 3, chunk: ordinal, first_sequence, end_sequence }
    }

    /// Fills a chunk with real batches.
    fn fill(&self, ordinal: u64) -> SealedChunk {
        let (mut writer, name) = (self.take(), Bench::name(ordinal));
        for nth in 0..BATCHES {
            let mut builder = BatchBuilder::default();
            for record in 0..RECORDS {
                builder.push(0, &[], format!("{ordinal} {nth} {record}").as_bytes());
            }
            let base_sequence = name.first_sequence + u64::from(nth * RECORDS);
            let prefix = BatchPrefix { base_sequence, accepted_us: 1 };
            writer.append(&[&prefix.encode(), builder.finish(0, 0, base_sequence)]);
        }
        chunk::seal(writer, name)
    }

    /// Writes chunks into one slot.
    fn write_out(&mut self, ordinals: &[u64]) -> Result<Vec<(u64, Place)>, WriteError> {
        let fill = |&ordinal: &u64| (ordinal, self.fill(ordinal));
        let chunks = ordinals.iter().map(fill).collect();
        let planned = self.store.write(chunks).ok().expect("a slot is free");
        let (tag, file, offset) = (planned.tag, self.file, planned.offset);
        match self.submit(DiskRequest::Write { tag, file, offset, chunks: planned.chunks }) {
            DiskCompletion::Written { tag, result } => {
                match self.store.handle_written(tag, result, Mono(1)) {
                    Written::Done(placed) => Ok(placed),
                    Written::Failed(_, error) => Err(error),
                }
            }
            _ => panic!("only the write is under way"),
        }
    }

    fn read_back(&mut self, ordinal: u64, place: &Place) -> Refilled<u64> {
        let name = Bench::name(ordinal);
        let into = self.take();
        let mut planned = self.store.read(ordinal, place.clone(), name, into);
        loop {
            let PlannedRead { tag, offset, bytes, into } = planned;
            let request = DiskRequest::Read { tag, file: self.file, offset, bytes, into };
            let refilled = match self.submit(request) {
                DiskCompletion::Read { tag, into, result } => {
                    self.store.handle_read(tag, into, result, Mono(1))
                }
                _ => panic!("only the read is under way"),
            };
            match refilled {
                Refilled::Again(again) => planned = again,
                Refilled::PutOff(_) => {
                    let until = self.store.next_deadline().expect("it is tried again");
                    planned = self.store.poll_read(until).expect("its time has come");
                }
                other => return other,
            }
        }
    }

    fn open(&self) -> std::fs::File {
        OpenOptions::new().read(true).write(true).open(&self.path).unwrap()
    }

    /// Flips bits on the file itself, behind the broker's back.
    fn flip(&self, offset: u64, bits: u8) {
        let mut byte = [0];
        self.open().read_exact_at(&mut byte, offset).unwrap();
        self.open().write_all_at(&[byte[0] ^ bits], offset).unwrap();
        self.open().sync_all().unwrap();
    }
}

/// Bodies by sequence, of all that can be walked.
fn bodies(chunk: &SealedChunk) -> Vec<(u64, Vec<u8>)> {
    let header = ChunkHeader::decode(chunk.image()).unwrap();
    let bytes = chunk.reader().slice(CHUNK_HEADER_BYTES..header.used_bytes as usize);
    let (mut at, mut sequence, mut bodies) = (0, header.first_sequence, Vec::new());
    for _ in 0..header.batch_count {
        assert_eq!(BatchPrefix::decode(&bytes[at..]).base_sequence, sequence);
        at += BATCH_PREFIX_BYTES;
        let wire_bytes = BatchHeader::decode(&bytes[at..]).unwrap().wire_bytes();
        let batch = Batch::decode(&bytes[at..at + wire_bytes]).unwrap();
        for record in forebay::format::record::Records::new(batch.records()) {
            bodies.push((sequence, record.body.to_vec()));
            sequence += 1;
        }
        at += wire_bytes;
    }
    assert_eq!((at, sequence), (bytes.len(), header.end_sequence));
    bodies
}

#[test]
fn sealed_chunks_go_out_and_come_back_batch_by_batch() {
    for class in [2, CHUNK_CLASS_BYTES.len() - 1] {
        with_each(class, "chunks", go_out_and_come_back);
    }
}

fn go_out_and_come_back(mut bench: Bench) {
    let mut placed = bench.write_out(&[0, 1, 2]).unwrap();
    placed.extend(bench.write_out(&[3]).unwrap());
    for (ordinal, place) in placed.into_iter().rev() {
        let expected = bodies(&bench.fill(ordinal));
        let Refilled::Whole(whose, chunk) = bench.read_back(ordinal, &place) else {
            panic!("it is whole");
        };
        assert_eq!((whose, bodies(&chunk)), (ordinal, expected));
    }
    assert_eq!(bench.store.stats().slots_used, 0);
}

#[test]
fn flipped_bits_in_every_region_cost_their_batch_or_what_cannot_be_followed() {
    with_each(2, "chunks", flip_bits);
}

fn flip_bits(mut bench: Bench) {
    let placed = bench.write_out(&[0, 1, 2]).unwrap();
    let image = bench.fill(1);
    let start = placed[0].1.image_bytes() as u64;
    let used = image.reader().filled_bytes() as u64;
    let expected = bodies(&image);
    let batch = (used - 64) / u64::from(BATCHES);
    // Each field of the header, the first batch's prefix, header and records, the second batch's
    // length, the last byte, and the padding.
    let header = [0, 4, 8, 10, 12, 16, 24, 32, 40, 44, 48, 56, 63];
    let length = 64 + batch + 16 + 16;
    let regions = header.into_iter().chain([64, 79, 80, 119, 120, 200, length]);
    let regions = regions.chain([used / 2, used - 1, used]);
    for offset in regions {
        for bits in [0x01, 0x80, 0xFF] {
            bench.flip(start + offset, bits);
            for (ordinal, place) in &placed {
                match bench.read_back(*ordinal, place) {
                    Refilled::Whole(1, chunk) => assert_eq!(bodies(&chunk), expected),
                    Refilled::Whole(..) => {}
                    Refilled::Damaged(1, chunk, lost) => {
                        assert!((64..used).contains(&offset) && offset != length, "byte {offset}");
                        let count: u64 = lost.iter().map(|lost| lost.end - lost.start).sum();
                        assert_eq!(count, u64::from(RECORDS), "byte {offset}");
                        let is_lost = |at: u64| lost.iter().any(|lost| lost.contains(&at));
                        let kept = |all: Vec<(u64, Vec<u8>)>| -> Vec<(u64, Vec<u8>)> {
                            all.into_iter().filter(|(at, _)| !is_lost(*at)).collect()
                        };
                        assert_eq!(kept(bodies(&chunk)), kept(expected.clone()));
                    }
                    // Nobody knows where the next batch is.
                    Refilled::Lost(1, ReadError::Damaged { .. }) if offset == length => {}
                    _ => panic!("chunk {ordinal}, byte {offset}, bits {bits:#x}"),
                }
            }
            bench.flip(start + offset, bits);
        }
    }
    assert!(bench.store.stats().chunks_damaged > 0);
}

#[test]
fn a_truncated_file_and_a_swapped_chunk_are_told_apart() {
    with_each(2, "chunks", truncate_and_swap);
}

fn truncate_and_swap(mut bench: Bench) {
    let first = bench.write_out(&[0]).unwrap().remove(0).1;
    let second = bench.write_out(&[1]).unwrap().remove(0).1;
    let mut image = vec![0; first.image_bytes()];
    bench.open().read_exact_at(&mut image, 0).unwrap();
    bench.open().write_all_at(&image, SPILL_SLOT_BYTES as u64).unwrap();
    let outcome = bench.read_back(1, &second);
    assert!(matches!(outcome, Refilled::Lost(1, ReadError::Another { slot: 1, .. })));
    bench.open().set_len(4096).unwrap();
    // Of a front nothing says that it was written together with the rest.
    let outcome = bench.read_back(0, &first);
    assert!(matches!(outcome, Refilled::Lost(0, ReadError::Damaged { slot: 0, .. })));
}

#[test]
fn blocks_come_ahead_of_need_and_go_back_by_a_trim() {
    with_each(2, "chunks", grow_and_trim);
}

fn grow_and_trim(mut bench: Bench) {
    let blocks = |bench: &Bench| bench.open().metadata().unwrap().blocks() * 512;
    assert_eq!(bench.open().metadata().unwrap().len(), EXTENT);
    let placed = bench.write_out(&[0]).unwrap();
    assert!(bench.store.can_write());
    assert_eq!((bench.serve(), bench.budget.used_bytes()), (1, 2 * EXTENT));
    let before = blocks(&bench);
    // What is used stays.
    assert_eq!(bench.store.trim(), EXTENT);
    assert_eq!((bench.serve(), bench.budget.used_bytes()), (1, EXTENT));
    drop(placed);
    assert_eq!(bench.store.trim(), EXTENT);
    assert_eq!((bench.serve(), bench.budget.used_bytes()), (1, 0));
    assert!(before == 0 || blocks(&bench) < before, "{before} bytes have become fewer");
}

#[test]
fn a_full_device_leaves_the_chunk_in_memory() {
    with_each(CHUNK_CLASS_BYTES.len() - 1, "full", write_to_a_full_device);
}

fn write_to_a_full_device(mut bench: Bench) {
    assert_eq!(CHUNK_CLASS_BYTES[bench.class], CHUNK_BYTES_MAX);
    let error = bench.write_out(&[0]).unwrap_err();
    assert_eq!(error, WriteError::Full(ErrorKind::StorageFull));
    assert_eq!(bench.store.stats().slots_used, 0);
    assert_eq!(bench.store.state(), SpillState::Full(FullReason::NoSpace));
}

#[test]
fn a_file_that_cannot_be_made_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    for mut disk in disks(&place.path().join("missing")) {
        assert_eq!(disk.open("chunks").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
