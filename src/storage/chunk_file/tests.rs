//! Over a file in memory that fails as it is told to.

use super::*;
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
use crate::base::prng::Prng;
use crate::limits::{CHUNK_CLASS_BYTES, SLAB_BYTES};
use std::rc::Rc;

const CLASS: usize = 1;
const SLOT: usize = CHUNK_CLASS_BYTES[CLASS];

fn pool() -> ChunkPool {
    let shape = PoolShape {
        slab_bytes: SLAB_BYTES,
        class_bytes: CHUNK_CLASS_BYTES.to_vec(),
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
    assert!(pool.grow(CLASS));
    pool
}

/// A chunk of `bytes` bytes of "batches"; what they are does not concern a chunk file.
fn chunk(pool: &ChunkPool, ordinal: u64, bytes: usize) -> (SealedChunk, ChunkHeader) {
    let mut writer = pool.take(CLASS).unwrap();
    let body: Vec<u8> = (0..bytes).map(|nth| (nth as u64 * 31 + ordinal) as u8).collect();
    writer.append(&[&body]);
    let header = ChunkHeader {
        used_bytes: 0,
        queue: 7,
        first_sequence: ordinal * 100,
        end_sequence: ordinal * 100 + 100,
        batch_count: 3,
        chunk: ordinal,
    };
    seal(writer, header)
}

/// A file in memory, and what goes wrong next.
#[derive(Default)]
struct Fake {
    bytes: Vec<u8>,
    write_fails: Option<ErrorKind>,
    read_fails: Option<ErrorKind>,
}

impl Fake {
    fn write(&mut self, planned: &PlannedWrite) -> Result<(), ErrorKind> {
        if let Some(kind) = self.write_fails {
            return Err(kind);
        }
        let (start, image) = (planned.offset as usize, planned.chunk.image());
        let end = start + image.len();
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[start..end].copy_from_slice(image);
        Ok(())
    }

    fn read(&self, planned: &mut PlannedRead) -> Result<usize, ErrorKind> {
        if let Some(kind) = self.read_fails {
            return Err(kind);
        }
        let start = (planned.offset as usize).min(self.bytes.len());
        let end = (start + planned.bytes).min(self.bytes.len());
        planned.into.load(|all| {
            all[..end - start].copy_from_slice(&self.bytes[start..end]);
            end - start
        });
        Ok(end - start)
    }
}

struct Bench {
    pool: ChunkPool,
    file: ChunkFile,
    disk: Fake,
}

impl Bench {
    fn new(slots: u32) -> Bench {
        Bench { pool: pool(), file: ChunkFile::new(SLOT, slots), disk: Fake::default() }
    }

    fn write_out(&mut self, ordinal: u64, bytes: usize) -> Result<Place, WriteError> {
        let (chunk, header) = chunk(&self.pool, ordinal, bytes);
        let planned = self.file.write(chunk, header).ok().expect("a slot is free");
        let result = self.disk.write(&planned);
        self.file.handle_written(planned.tag, result)
    }

    fn read_back(&mut self, place: Place) -> Result<ReadChunk, ReadError> {
        let mut planned = self.file.read(place, self.pool.take(CLASS).unwrap());
        let result = self.disk.read(&mut planned);
        self.file.handle_read(planned.tag, planned.into, result)
    }
}

#[test]
fn what_was_written_comes_back() {
    let mut bench = Bench::new(4);
    let sizes = [0, 1, 4032, 4033, SLOT - CHUNK_HEADER_BYTES];
    for (ordinal, bytes) in sizes.into_iter().enumerate() {
        let place = bench.write_out(ordinal as u64, bytes).unwrap();
        assert_eq!(place.image_bytes(), (bytes + 64).next_multiple_of(4096));
        let read = bench.read_back(place).unwrap();
        assert_eq!(read.header.chunk, ordinal as u64);
        let expected: Vec<u8> = (0..bytes).map(|nth| (nth * 31 + ordinal) as u8).collect();
        let used = read.header.used_bytes as usize;
        assert_eq!(read.reader.slice(CHUNK_HEADER_BYTES..used), expected);
        assert_eq!(read.place, place);
        bench.file.release(place);
    }
    assert_eq!(bench.file.slots_used(), 0);
    assert_eq!(bench.disk.bytes.len(), SLOT, "a slot that is free again is used first");
}

#[test]
fn any_flipped_bit_of_a_chunk_is_found() {
    let mut bench = Bench::new(1);
    let used = CHUNK_HEADER_BYTES + 200;
    let place = bench.write_out(5, used - CHUNK_HEADER_BYTES).unwrap();
    for bit in 0..used * 8 {
        bench.disk.bytes[bit / 8] ^= 1 << (bit % 8);
        match bench.read_back(place) {
            Err(ReadError::Damaged { slot: 0, .. }) => {}
            Err(other) => panic!("bit {bit}: {other}"),
            Ok(_) => panic!("bit {bit} was not missed"),
        }
        bench.disk.bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // The padding holds nothing.
    bench.disk.bytes[used] ^= 1;
    bench.read_back(place).unwrap();
}

#[test]
fn damage_of_every_kind_has_its_name() {
    let mut bench = Bench::new(2);
    let place = bench.write_out(1, 5000).unwrap();
    let image = bench.disk.bytes.clone();
    let mut outcome = |bytes: &[u8]| {
        bench.disk.bytes = bytes.to_vec();
        bench.read_back(place).err().expect("damage is found")
    };
    let damaged = |error| ReadError::Damaged { slot: 0, error };
    assert_eq!(outcome(&vec![0; image.len()]), damaged(ChunkError::Magic(0)));
    let mut other = image.clone();
    other[8] = 9;
    assert_eq!(outcome(&other), damaged(ChunkError::Version(9)));
    other = image.clone();
    other[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(outcome(&other), ReadError::Damaged { error: ChunkError::Length { .. }, .. }));
    other = image.clone();
    other[4096] ^= 0xFF;
    let error = outcome(&other);
    assert!(matches!(error, ReadError::Damaged { error: ChunkError::Checksum { .. }, .. }));
    for end in [0, 1, 4096, image.len() - 1] {
        let (expected, actual) = (8192, end);
        assert_eq!(outcome(&image[..end]), ReadError::Short { slot: 0, expected, actual });
    }
}

#[test]
fn a_chunk_of_another_queue_or_time_is_not_taken_for_the_one_that_was_written() {
    let mut bench = Bench::new(2);
    let first = bench.write_out(1, 100).unwrap();
    let stale = bench.disk.bytes.clone();
    bench.file.release(first);
    let second = bench.write_out(2, 100).unwrap();
    // The write of the second was lost: whole and valid, but of before.
    bench.disk.bytes = stale;
    let error = bench.read_back(second).err().unwrap();
    let ReadError::Another { slot: 0, expected, found } = &error else { panic!("{error}") };
    assert_eq!((expected.chunk, found.chunk), (2, 1));
    assert!(error.to_string().contains("holds chunk 1 of queue 7 from message 100"), "{error}");
}

#[test]
fn a_device_that_refuses_costs_a_slot_and_no_chunk() {
    let mut bench = Bench::new(2);
    bench.disk.write_fails = Some(ErrorKind::Other);
    let error = bench.write_out(1, 100).unwrap_err();
    assert_eq!(error, WriteError::Device { slot: 0, kind: ErrorKind::Other });
    assert_eq!((bench.file.slots_used(), bench.file.slots_bad()), (0, 1));
    bench.disk.write_fails = None;
    let place = bench.write_out(1, 100).unwrap();
    assert_eq!(bench.disk.bytes.len(), SLOT + 4096);
    bench.disk.read_fails = Some(ErrorKind::Other);
    let error = bench.read_back(place).err().unwrap();
    assert_eq!(error, ReadError::Device { slot: 1, kind: ErrorKind::Other });
    bench.disk.read_fails = None;
    bench.read_back(place).expect("another try may succeed");
}

#[test]
fn a_full_device_costs_nothing() {
    let mut bench = Bench::new(1);
    bench.disk.write_fails = Some(ErrorKind::StorageFull);
    assert_eq!(bench.write_out(1, 100), Err(WriteError::Full));
    assert_eq!((bench.file.slots_used(), bench.file.slots_bad()), (0, 0));
    bench.disk.write_fails = None;
    bench.write_out(1, 100).unwrap();
    let (chunk, header) = chunk(&bench.pool, 2, 100);
    let image = chunk.image().to_vec();
    let (back, error) = bench.file.write(chunk, header).err().expect("the file is full");
    assert_eq!(error, NoSlot { slots: 1 });
    assert_eq!(back.image(), image);
}

#[test]
fn slots_are_never_shared_whatever_the_order_of_outcomes() {
    let mut prng = Prng::new(11);
    let mut bench = Bench::new(32);
    let mut standing: Vec<Place> = Vec::new();
    let mut writes: Vec<PlannedWrite> = Vec::new();
    for step in 0..20_000u64 {
        match prng.below(4) {
            0 if bench.file.slots_used() < 32 => {
                let (chunk, header) = chunk(&bench.pool, step, 16);
                writes.push(bench.file.write(chunk, header).ok().unwrap());
            }
            1 if !writes.is_empty() => {
                let nth = prng.below(writes.len() as u64) as usize;
                let planned = writes.swap_remove(nth);
                let result = bench.disk.write(&planned);
                standing.push(bench.file.handle_written(planned.tag, result).unwrap());
            }
            2 if !standing.is_empty() => {
                let nth = prng.below(standing.len() as u64) as usize;
                let read = bench.read_back(standing[nth]).expect("it is there");
                assert_eq!(read.place, standing[nth]);
            }
            3 if !standing.is_empty() && prng.below(3) == 0 => {
                let nth = prng.below(standing.len() as u64) as usize;
                bench.file.release(standing.swap_remove(nth));
            }
            _ => {}
        }
        assert_eq!(bench.file.slots_used() as usize, standing.len() + writes.len());
    }
}
