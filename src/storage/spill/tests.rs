//! The store over a file in memory that fails as it is told to, and against a naive model.

use super::*;
use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
use crate::format::batch::{BatchBuilder, BatchPrefix};
use crate::format::chunk;
use crate::limits::{CHUNK_HEADER_BYTES, KIB, SPILL_CALM_MS, SPILL_RELEASE_PACE_MS};

mod model;

const PAGE: usize = DISK_ALIGN_BYTES;
const SLOT: usize = 4 * PAGE;
const EXTENT: u64 = 4 * SLOT as u64;
const SHAPE: SpillShape = SpillShape {
    slot_bytes: SLOT,
    extent_slots: 4,
    reserve_bytes: 2 * EXTENT,
    headroom_bytes: EXTENT,
    warm_bytes: 0,
};

fn pool() -> ChunkPool {
    let shape = PoolShape {
        slab_bytes: 64 * KIB,
        class_bytes: vec![SLOT],
        header_bytes: CHUNK_HEADER_BYTES,
    };
    ChunkPool::new(shape, Rc::new(HeapSlabs))
}

fn take(pool: &ChunkPool) -> ChunkWriter {
    pool.take(0).unwrap_or_else(|| {
        assert!(pool.grow(0));
        pool.take(0).unwrap()
    })
}

fn name(ordinal: u64, pages: usize) -> ChunkName {
    let first_sequence = ordinal * 100 + 1;
    let end_sequence = first_sequence + 3 * pages as u64;
    ChunkName { queue: 5, chunk: ordinal, first_sequence, end_sequence }
}

/// A chunk of three messages a page, that fill it.
fn chunk(pool: &ChunkPool, ordinal: u64, pages: usize) -> SealedChunk {
    let (mut writer, name) = (take(pool), name(ordinal, pages));
    for sequence in name.first_sequence..name.end_sequence {
        let mut builder = BatchBuilder::default();
        builder.push(0, b"", &vec![(ordinal + sequence) as u8; 1200]);
        let prefix = BatchPrefix { base_sequence: sequence, accepted_us: sequence };
        writer.append(&[&prefix.encode(), builder.finish(0, 1, sequence)]);
    }
    let sealed = chunk::seal(writer, name);
    assert_eq!(sealed.image().len(), pages * PAGE);
    assert_eq!(chunk::ChunkHeader::decode(sealed.image()).unwrap().name(), name);
    sealed
}

struct Bench {
    pool: ChunkPool,
    budget: Arc<DiskBudget>,
    store: SpillStore<u64>,
    file: Vec<u8>,
    now: Mono,
    next: u64,
}

impl Bench {
    fn new(limit_extents: u64, shape: SpillShape) -> Bench {
        let budget = DiskBudget::new(limit_extents * EXTENT);
        let store = SpillStore::new(shape, Arc::clone(&budget));
        let (pool, file, now) = (pool(), vec![0; 64 * EXTENT as usize], Mono(1));
        Bench { pool, budget, store, file, now, next: 1 }
    }

    fn later(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    /// All requests that there are, done.
    fn serve(&mut self, free_bytes: Option<u64>) -> Vec<StoreRequest> {
        let mut served = Vec::new();
        while let Some(request) = self.store.poll_request(self.now, || free_bytes) {
            match request {
                StoreRequest::Allocate { tag, .. } => {
                    self.store.handle_allocated(tag, Ok(()), self.now);
                }
                StoreRequest::Release { tag, .. } => {
                    self.store.handle_released(tag, Ok(()), self.now);
                }
            }
            served.push(request);
        }
        served
    }

    fn plan(&mut self, pages: &[usize]) -> Option<PlannedWrite> {
        let mut chunks = Vec::new();
        for &pages in pages {
            chunks.push((self.next, chunk(&self.pool, self.next, pages)));
            self.next += 1;
        }
        self.store.write(chunks).ok()
    }

    fn finish(&mut self, planned: PlannedWrite, result: Result<(), ErrorKind>) -> Written<u64> {
        let mut at = planned.offset as usize;
        for chunk in planned.chunks.iter().filter(|_| result.is_ok()) {
            let image = chunk.image();
            self.file[at..at + image.len()].copy_from_slice(image);
            at += image.len();
        }
        self.store.handle_written(planned.tag, result, self.now)
    }

    fn write(&mut self, pages: &[usize]) -> Vec<(u64, Place)> {
        self.store.can_write();
        self.serve(None);
        let planned = self.plan(pages).expect("there is room");
        match self.finish(planned, Ok(())) {
            Written::Done(placed) => placed,
            Written::Failed(_, error) => panic!("{error}"),
        }
    }

    fn load(&self, planned: &mut PlannedRead) -> usize {
        let from = (planned.offset as usize).min(self.file.len());
        let end = (from + planned.bytes).min(self.file.len());
        planned.into.load(|all| {
            all[..end - from].copy_from_slice(&self.file[from..end]);
            end - from
        })
    }

    /// Reads once, or twice where the store asks for it.
    fn read(&mut self, owner: u64, place: &Place) -> Refilled<u64> {
        let name = name(owner, place.image_bytes() / PAGE);
        let mut planned = self.store.read(owner, place.clone(), name, take(&self.pool));
        let bytes = self.load(&mut planned);
        match self.store.handle_read(planned.tag, planned.into, Ok(bytes), self.now) {
            Refilled::Again(mut planned) => {
                let bytes = self.load(&mut planned);
                self.store.handle_read(planned.tag, planned.into, Ok(bytes), self.now)
            }
            other => other,
        }
    }

    fn assert_whole(&mut self, owner: u64, place: &Place) {
        let expected = chunk(&self.pool, owner, place.image_bytes() / PAGE);
        match self.read(owner, place) {
            Refilled::Whole(whose, sealed) => {
                assert_eq!(whose, owner);
                assert_eq!(sealed.image(), expected.image());
                assert_eq!(sealed.reader().filled_bytes(), expected.reader().filled_bytes());
            }
            _ => panic!("chunk {owner} is not whole"),
        }
    }
}

#[test]
fn what_was_written_comes_back_and_its_slot_is_filled_again() {
    let mut bench = Bench::new(8, SHAPE);
    assert!(!bench.store.can_write(), "there is no slot yet, but now one was asked for");
    assert_eq!(bench.store.state(), SpillState::Ready);
    for round in 0..4 {
        let placed = bench.write(&[1, 2, 1]);
        assert_eq!(bench.store.stats().live_bytes, SLOT as u64);
        let offsets: Vec<u64> = placed.iter().map(|(_, place)| place.offset()).collect();
        assert_eq!(offsets, [0, PAGE as u64, 3 * PAGE as u64], "round {round}");
        for (owner, place) in &placed {
            bench.assert_whole(*owner, place);
        }
    }
    let stats = bench.store.stats();
    assert_eq!((stats.slots_used, stats.slots_free), (0, 4));
    assert_eq!((stats.live_bytes, stats.written_bytes), (0, 4 * SLOT as u64));
    assert!(!bench.store.is_busy());
}

#[test]
fn a_slot_stays_while_one_of_its_images_or_readers_does() {
    let mut bench = Bench::new(8, SHAPE);
    let mut placed = bench.write(&[1, 1]);
    let (_, place) = placed.pop().unwrap();
    drop(placed);
    let stats = bench.store.stats();
    assert_eq!((stats.slots_used, stats.live_bytes), (1, PAGE as u64));
    let planned = bench.store.read(2, place.clone(), name(2, 1), take(&bench.pool));
    drop(place);
    let stats = bench.store.stats();
    assert_eq!((stats.slots_used, stats.live_bytes), (1, 0), "it is being read");
    let into = planned.into;
    drop(bench.store.handle_read(planned.tag, into, Err(ErrorKind::Other), bench.now));
    assert_eq!(bench.store.stats().slots_used, 1, "and once more");
}

#[test]
fn a_flipped_bit_of_a_packed_slot_costs_its_batch_and_no_other_image() {
    let mut bench = Bench::new(8, SHAPE);
    let placed = bench.write(&[1, 2, 1]);
    let clean = bench.file[..SLOT].to_vec();
    for bit in (0..SLOT * 8).step_by(3) {
        bench.file[bit / 8] ^= 1 << (bit % 8);
        let (mut lost_messages, mut damaged) = (0, 0);
        for (nth, (owner, place)) in placed.iter().enumerate() {
            let expected = chunk(&bench.pool, *owner, place.image_bytes() / PAGE);
            let hit = (place.offset()..place.offset() + place.image_bytes() as u64)
                .contains(&(bit as u64 / 8));
            let (sealed, lost) = match bench.read(*owner, place) {
                Refilled::Whole(_, sealed) => (sealed, vec![]),
                Refilled::Damaged(_, sealed, lost) => (sealed, lost),
                Refilled::Lost(..) if hit => {
                    (lost_messages, damaged) = (lost_messages + 1, damaged + 1);
                    continue;
                }
                _ => panic!("image {nth}, bit {bit}"),
            };
            assert!(hit || lost.is_empty(), "image {nth}, bit {bit}");
            damaged += lost.len();
            let first = name(*owner, 1).first_sequence;
            for (batch, bytes) in batches(&expected).enumerate() {
                let is_lost = lost.iter().any(|lost| lost.contains(&(first + batch as u64)));
                let at = CHUNK_HEADER_BYTES + batch * bytes.len();
                let read = sealed.reader();
                if !is_lost {
                    assert_eq!(read.slice(at..at + bytes.len()), bytes, "bit {bit}");
                }
            }
        }
        assert!(damaged <= 1 && lost_messages <= 1);
        bench.file[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(bench.file[..SLOT], clean);
    assert!(bench.store.stats().read_errors > 0);
}

fn batches(chunk: &SealedChunk) -> impl Iterator<Item = &[u8]> {
    let used = chunk.reader().filled_bytes();
    chunk.image()[CHUNK_HEADER_BYTES..used].chunks(BATCH)
}

/// Bytes of each batch here, with its prefix.
const BATCH: usize = 16 + 40 + 16 + 1200;

#[test]
fn what_the_device_refuses_is_read_again_later_and_counts_as_under_way() {
    let mut bench = Bench::new(8, SHAPE);
    let (owner, place) = bench.write(&[2]).pop().unwrap();
    let began = bench.now;
    let plan = |bench: &mut Bench| {
        assert!(bench.store.can_read());
        bench.store.read(owner, place.clone(), name(owner, 2), take(&bench.pool))
    };
    let (mut planned, other) = (plan(&mut bench), plan(&mut bench));
    let others: Vec<PlannedRead> = (2..SPILL_READ_DEPTH).map(|_| plan(&mut bench)).collect();
    let refuse = |bench: &mut Bench, planned: PlannedRead| {
        bench.store.handle_read(planned.tag, planned.into, Err(ErrorKind::Other), bench.now)
    };
    for wait_ms in [1, 2, 4].map(|times| times * READ_RETRY_MS) {
        assert!(matches!(refuse(&mut bench, planned), Refilled::PutOff(ReadError::Device { .. })));
        assert_eq!(bench.store.next_deadline(), Some(bench.now.plus_ms(wait_ms)));
        bench.later(wait_ms - 1);
        assert!(bench.store.poll_read(bench.now).is_none(), "not before {wait_ms} ms");
        assert!(!bench.store.can_read());
        bench.later(1);
        planned = bench.store.poll_read(bench.now).expect("it is time");
        assert!(bench.store.poll_read(bench.now).is_none(), "once");
        assert!(!bench.store.can_read(), "not before it is known how it ends");
        assert_eq!(bench.store.read_failure(), Some(ErrorKind::Other));
        assert_eq!(bench.store.stats().reads_under_way as usize, SPILL_READ_DEPTH);
    }
    match refuse(&mut bench, planned) {
        Refilled::Lost(1, ReadError::Device { slot: 0, kind: ErrorKind::Other }) => {}
        _ => panic!("it was refused {READ_TRIES_MAX} times"),
    }
    assert_eq!(bench.now.ms_since(began), 7 * READ_RETRY_MS);
    assert!(bench.store.can_read() && bench.store.read_failure().is_none());
    // What was under way when the device failed has its own tries.
    assert!(matches!(refuse(&mut bench, other), Refilled::PutOff(_)));
    bench.later(READ_RETRY_MS);
    let mut planned = bench.store.poll_read(bench.now).unwrap();
    let bytes = bench.load(&mut planned);
    let outcome = bench.store.handle_read(planned.tag, planned.into, Ok(bytes), bench.now);
    assert!(matches!(outcome, Refilled::Whole(1, _)));
    for mut planned in others {
        let bytes = bench.load(&mut planned);
        let outcome = bench.store.handle_read(planned.tag, planned.into, Ok(bytes), bench.now);
        assert!(matches!(outcome, Refilled::Whole(1, _)));
    }
    let stats = bench.store.stats();
    assert_eq!((stats.read_errors, stats.reads_under_way), (5, 0));
}

#[test]
fn damaged_bytes_are_read_again_at_once_also_where_the_device_refused_before() {
    let mut bench = Bench::new(8, SHAPE);
    let (owner, place) = bench.write(&[1]).pop().unwrap();
    bench.file[..PAGE].fill(7);
    let mut planned = bench.store.read(owner, place.clone(), name(owner, 1), take(&bench.pool));
    let refused = Err(ErrorKind::TimedOut);
    let outcome = bench.store.handle_read(planned.tag, planned.into, refused, bench.now);
    assert!(matches!(outcome, Refilled::PutOff(_)));
    // Who had the chunk is gone; the read keeps the slot until it has ended.
    drop(place);
    assert_eq!(bench.store.trim(), 0);
    bench.later(READ_RETRY_MS);
    planned = bench.store.poll_read(bench.now).unwrap();
    let bytes = bench.load(&mut planned);
    let outcome = bench.store.handle_read(planned.tag, planned.into, Ok(bytes), bench.now);
    let Refilled::Again(mut planned) = outcome else { panic!("it is read again") };
    let bytes = bench.load(&mut planned);
    let outcome = bench.store.handle_read(planned.tag, planned.into, Ok(bytes), bench.now);
    assert!(matches!(outcome, Refilled::Lost(1, ReadError::Damaged { slot: 0, .. })));
    assert!(bench.store.can_read() && !bench.store.is_busy());
    assert_eq!((bench.store.stats().slots_used, bench.store.trim()), (0, EXTENT));
}

#[test]
fn what_a_broken_device_says_has_a_name() {
    let kind = std::io::Error::from_raw_os_error(libc::EIO).kind();
    let error = ReadError::Device { slot: 7, kind };
    assert_eq!(error.to_string(), "reading slot 7 failed: input/output error");
    assert_eq!(error_text(ErrorKind::TimedOut), "timed out");
}

#[test]
fn a_write_that_was_lost_brings_no_old_chunk_back() {
    let mut bench = Bench::new(8, SHAPE);
    drop(bench.write(&[1]));
    let planned = bench.plan(&[1]).unwrap();
    // The device said yes, and did nothing.
    let Written::Done(placed) = bench.store.handle_written(planned.tag, Ok(()), bench.now) else {
        panic!("it said yes");
    };
    let (owner, place) = &placed[0];
    match bench.read(*owner, place) {
        Refilled::Lost(2, error @ ReadError::Another { .. }) => {
            let text = "slot 0 holds chunk 1 of queue 5 from message 101, \
                        where chunk 2 of queue 5 from message 201 was written";
            assert_eq!(error.to_string(), text);
        }
        _ => panic!("another chunk"),
    }
}

#[test]
fn slots_that_fail_are_left_alone_until_it_is_the_device_that_fails() {
    let mut bench = Bench::new(2, SHAPE);
    bench.store.can_write();
    bench.serve(None);
    let mut offsets = Vec::new();
    for nth in 0..3 {
        let planned = bench.plan(&[1]).expect("there are others");
        offsets.push(planned.offset);
        let Written::Failed(owners, error) = bench.finish(planned, Err(ErrorKind::Other)) else {
            panic!("it failed");
        };
        assert_eq!(owners, [nth + 1]);
        assert_eq!(error, WriteError::Device { slot: nth as u32, kind: ErrorKind::Other });
    }
    assert_eq!(offsets, [0, SLOT as u64, 2 * SLOT as u64], "each elsewhere");
    assert_eq!(bench.store.stats().slots_bad, 3);
    assert_eq!(bench.store.state(), SpillState::Failing(ErrorKind::Other));
    for _ in 0..10 {
        assert!(!bench.store.can_write());
        assert_eq!(bench.store.next_deadline(), Some(bench.now.plus_ms(SPILL_RETRY_MS)));
        bench.later(SPILL_RETRY_MS);
        bench.serve(None);
        let planned = bench.plan(&[1]).expect("it is tried again");
        assert!(bench.plan(&[1]).is_none(), "by one write");
        bench.finish(planned, Err(ErrorKind::Other));
        assert_eq!(bench.store.stats().slots_bad, 3, "no slot is to blame");
    }
    bench.later(SPILL_RETRY_MS);
    bench.serve(None);
    let planned = bench.plan(&[1]).unwrap();
    let placed = bench.finish(planned, Ok(()));
    assert_eq!(bench.store.state(), SpillState::Ready);
    drop(placed);
    assert_eq!(bench.store.trim(), 2 * EXTENT);
    bench.serve(None);
    assert_eq!((bench.store.stats().slots_bad, bench.budget.used_bytes()), (0, 0));
}

#[test]
fn a_full_device_is_said_to_be_full_and_tried_again() {
    let mut bench = Bench::new(8, SHAPE);
    bench.store.can_write();
    bench.serve(None);
    let planned = bench.plan(&[1]).unwrap();
    let outcome = bench.finish(planned, Err(ErrorKind::StorageFull));
    assert!(matches!(outcome, Written::Failed(_, WriteError::Full(ErrorKind::StorageFull))));
    assert_eq!(bench.store.state(), SpillState::Full(FullReason::NoSpace));
    assert!(!bench.store.can_write());
    assert_eq!(bench.store.stats().slots_bad, 0);
    bench.later(SPILL_RETRY_MS);
    bench.serve(None);
    assert!(bench.store.can_write());
    // The slot for which there was no space is the last to be filled, but only this once.
    let mut placed: Vec<_> = (0..4).flat_map(|_| bench.write(&[1])).collect();
    assert_eq!(bench.store.state(), SpillState::Ready);
    let slots: Vec<u32> = placed.iter().map(|(_, place)| place.slot()).collect();
    assert_eq!(slots, [1, 2, 3, 0]);
    placed.clear();
    assert_eq!(bench.write(&[1])[0].1.slot(), 0, "the last that was freed");
}

#[test]
fn a_slot_that_was_bad_is_as_good_as_any_once_its_extent_was_given_back() {
    let mut bench = Bench::new(1, SHAPE);
    bench.store.can_write();
    bench.serve(None);
    let planned = bench.plan(&[1]).unwrap();
    bench.finish(planned, Err(ErrorKind::Other));
    assert_eq!(bench.store.stats().slots_bad, 1);
    assert_eq!(bench.store.trim(), EXTENT);
    bench.serve(None);
    for _ in 0..2 {
        let placed: Vec<_> = (0..4).map(|_| bench.write(&[1])).collect();
        assert_eq!(placed.len(), 4);
    }
    assert_eq!(bench.store.stats().slots_bad, 0);
}

#[test]
fn no_more_is_under_way_than_the_depth() {
    let mut bench = Bench::new(8, SHAPE);
    for _ in 0..4 {
        bench.store.can_write();
        bench.serve(None);
    }
    let writes: Vec<PlannedWrite> =
        (0..SPILL_WRITE_DEPTH).map(|_| bench.plan(&[1]).unwrap()).collect();
    assert!(!bench.store.can_write());
    let refused = vec![(9, chunk(&bench.pool, 9, 1))];
    let refused = bench.store.write(refused).err().expect("they come back");
    assert_eq!(refused[0].0, 9);
    drop(writes);
    let mut bench = Bench::new(8, SHAPE);
    let (owner, place) = bench.write(&[1]).pop().unwrap();
    let mut reads = Vec::new();
    for _ in 0..SPILL_READ_DEPTH {
        assert!(bench.store.can_read());
        let into = take(&bench.pool);
        reads.push(bench.store.read(owner, place.clone(), name(owner, 1), into));
    }
    assert!(!bench.store.can_read());
    let mut planned = reads.pop().unwrap();
    let bytes = bench.load(&mut planned);
    let outcome = bench.store.handle_read(planned.tag, planned.into, Ok(bytes), bench.now);
    assert!(matches!(outcome, Refilled::Whole(..)));
    assert!(bench.store.can_read());
}

#[test]
fn nothing_is_spilled_where_the_limit_is_zero() {
    let mut bench = Bench::new(0, SpillShape { warm_bytes: 3 * EXTENT, ..SHAPE });
    assert_eq!(bench.store.state(), SpillState::Off);
    assert!(!bench.store.can_write());
    let served = bench.serve(None);
    assert_eq!(served.len(), 3, "what was there goes back");
    assert_eq!((bench.budget.used_bytes(), bench.store.stats().leaving_bytes), (0, 0));
    assert_eq!(bench.store.next_deadline(), None);
}

#[test]
fn blocks_that_were_there_are_filled_first_as_far_as_the_limit_goes() {
    let mut bench = Bench::new(2, SpillShape { warm_bytes: 3 * EXTENT + 5, ..SHAPE });
    assert_eq!(bench.store.stats().slots_free, 8);
    assert_eq!(bench.budget.used_bytes(), 2 * EXTENT);
    assert!(bench.store.can_write(), "at once");
    let served = bench.serve(None);
    let (offset, bytes) = (2 * EXTENT, EXTENT);
    assert!(matches!(served[..], [StoreRequest::Release { offset: o, bytes: b, .. }]
        if (o, b) == (offset, bytes)));
    let placed: Vec<_> = (0..8).map(|_| bench.write(&[4])).collect();
    assert_eq!(placed.len(), 8);
    assert!(!bench.store.can_write());
    assert!(bench.serve(None).is_empty());
    assert_eq!(bench.store.state(), SpillState::Full(FullReason::Limit));
    // A slot that is freed is room.
    drop(placed);
    assert_eq!(bench.store.state(), SpillState::Ready);
}

#[test]
fn a_file_does_not_grow_into_the_headroom() {
    let mut bench = Bench::new(8, SHAPE);
    bench.store.can_write();
    assert_eq!(bench.store.poll_request(bench.now, || Some(2 * EXTENT - 1)), None);
    assert_eq!(bench.store.state(), SpillState::Full(FullReason::Headroom));
    assert_eq!(bench.budget.used_bytes(), 0);
    assert_eq!(bench.store.next_deadline(), Some(bench.now.plus_ms(SPILL_RETRY_MS)));
    assert!(bench.serve(Some(2 * EXTENT)).is_empty(), "not before its time");
    bench.later(SPILL_RETRY_MS);
    assert_eq!(bench.serve(Some(2 * EXTENT)).len(), 1);
    assert_eq!(bench.store.state(), SpillState::Ready);
}

#[test]
fn an_allocation_that_fails_costs_nothing() {
    for (kind, state) in [
        (ErrorKind::StorageFull, SpillState::Full(FullReason::NoSpace)),
        (ErrorKind::Other, SpillState::Failing(ErrorKind::Other)),
    ] {
        let mut bench = Bench::new(8, SHAPE);
        bench.store.can_write();
        let Some(StoreRequest::Allocate { tag, offset: 0, bytes: EXTENT }) =
            bench.store.poll_request(bench.now, || None)
        else {
            panic!("it grows");
        };
        assert_eq!(bench.budget.used_bytes(), EXTENT);
        assert_eq!(bench.store.poll_request(bench.now, || None), None, "one at a time");
        bench.store.handle_allocated(tag, Err(kind), bench.now);
        assert_eq!((bench.store.state(), bench.budget.used_bytes()), (state, 0));
        bench.later(SPILL_RETRY_MS);
        bench.write(&[1]);
        assert_eq!(bench.store.state(), SpillState::Ready);
    }
}

#[test]
fn in_calm_the_file_shrinks_to_its_reserve_and_by_a_trim_to_nothing() {
    let mut bench = Bench::new(8, SHAPE);
    let placed: Vec<_> = (0..17).map(|_| bench.write(&[1])).collect();
    assert_eq!(bench.budget.used_bytes(), 5 * EXTENT);
    drop(placed);
    bench.serve(None);
    bench.later(SPILL_CALM_MS - 1);
    assert!(bench.serve(None).is_empty(), "it is not calm yet");
    assert_eq!(bench.store.next_deadline(), Some(bench.now.plus_ms(1)));
    bench.later(1);
    let Some(StoreRequest::Release { tag, .. }) = bench.store.poll_request(bench.now, || None)
    else {
        panic!("it is calm");
    };
    bench.later(10 * SPILL_RELEASE_PACE_MS);
    assert!(bench.serve(None).is_empty(), "not before the one under way has ended");
    bench.store.handle_released(tag, Ok(()), bench.now);
    for extents in [3, 2] {
        assert_eq!(bench.serve(None).len(), 1, "one at a time");
        assert_eq!(bench.budget.used_bytes(), extents * EXTENT);
        bench.later(SPILL_RELEASE_PACE_MS);
    }
    assert!(bench.serve(None).is_empty(), "the reserve stays");
    assert_eq!(bench.store.next_deadline(), None);
    assert_eq!(bench.store.trim(), 2 * EXTENT);
    assert_eq!(bench.store.stats().slots_free, 0);
    assert_eq!(bench.serve(None).len(), 2);
    assert_eq!(bench.budget.used_bytes(), 0);
}

#[test]
fn in_calm_a_large_file_is_given_back_in_half_a_minute() {
    for (extents, expected_ms) in [(10, 10_000), (30, 30_000), (100, 30_000), (3000, 30_000)] {
        let warm_bytes = (extents + 2) * EXTENT;
        let mut bench = Bench::new(extents + 2, SpillShape { warm_bytes, ..SHAPE });
        bench.later(SPILL_CALM_MS);
        let calm = bench.now;
        while let Some(at) = bench.store.next_deadline() {
            bench.now = Mono(at.0.max(bench.now.0));
            assert_eq!(bench.serve(None).len(), 1, "one at a time");
        }
        assert_eq!(bench.budget.used_bytes(), 2 * EXTENT, "the reserve");
        // As if one more were to come.
        let lasted_ms = bench.now.ms_since(calm) + expected_ms / extents;
        assert_eq!(lasted_ms, expected_ms, "{extents} extents");
    }
}

#[test]
fn an_extent_that_is_wanted_does_not_come_and_go() {
    let shape = SpillShape { reserve_bytes: 0, ..SHAPE };
    let mut bench = Bench::new(8, shape);
    // Nothing is written, but it may be at any time.
    for _ in 0..20 {
        bench.store.can_write();
        bench.serve(None);
        bench.later(SPILL_CALM_MS - 1);
    }
    let stats = bench.store.stats();
    assert_eq!((stats.extents_allocated, stats.extents_released), (1, 0));
    bench.later(1);
    bench.serve(None);
    assert_eq!(bench.budget.used_bytes(), 0, "nobody wants it any more");
}

#[test]
fn blocks_that_cannot_be_given_back_are_used_again() {
    let mut bench = Bench::new(8, SHAPE);
    drop(bench.write(&[1]));
    bench.store.trim();
    let Some(StoreRequest::Release { tag, .. }) = bench.store.poll_request(bench.now, || None)
    else {
        panic!("it was trimmed");
    };
    assert_eq!(bench.store.stats().leaving_bytes, EXTENT);
    bench.store.handle_released(tag, Err(ErrorKind::Unsupported), bench.now);
    assert_eq!((bench.store.stats().slots_free, bench.budget.used_bytes()), (4, EXTENT));
    bench.write(&[4]);
}

#[test]
fn shards_share_one_limit() {
    let budget = DiskBudget::new(3 * EXTENT);
    let mut stores: Vec<SpillStore<u64>> =
        (0..2).map(|_| SpillStore::new(SHAPE, Arc::clone(&budget))).collect();
    let mut granted = 0;
    for nth in 0..6 {
        let store = &mut stores[nth % 2];
        store.can_write();
        let Some(StoreRequest::Allocate { tag, .. }) =
            store.poll_request(Mono(nth as u64), || None)
        else {
            continue;
        };
        store.handle_allocated(tag, Ok(()), Mono(0));
        granted += 1;
        // All of it is filled, so that more is wanted.
        for nth in 0..4 {
            let chunk = chunk(&pool(), nth, 4);
            if let Ok(planned) = store.write(vec![(nth, chunk)]) {
                std::mem::drop(planned.chunks);
                let Written::Done(placed) = store.handle_written(planned.tag, Ok(()), Mono(0))
                else {
                    panic!("it was written");
                };
                Box::leak(Box::new(placed));
            }
        }
    }
    assert_eq!((granted, budget.used_bytes()), (3, 3 * EXTENT));
    let full = stores.iter().filter(|store| store.state() == SpillState::Full(FullReason::Limit));
    assert!(full.count() > 0);
}

#[test]
fn what_a_shard_does_not_use_goes_to_one_that_is_refused() {
    let mut idle = Bench::new(4, SpillShape { warm_bytes: 4 * EXTENT, ..SHAPE });
    let mut full: SpillStore<u64> = SpillStore::new(SHAPE, Arc::clone(&idle.budget));
    assert_eq!(idle.budget.used_bytes(), 4 * EXTENT);
    let mut now = idle.now;
    // Not calm, and with less than its reserve in the end, it gives up all, one after the other.
    for extents in 1..=4 {
        full.can_write();
        assert!(full.poll_request(now, || None).is_none());
        assert_eq!(full.state(), SpillState::Full(FullReason::Limit));
        let at = idle.store.next_deadline().expect("it looks whether it is wanted");
        now = Mono(at.0.max(now.0));
        idle.store.wrote = true;
        let Some(StoreRequest::Release { tag, .. }) = idle.store.poll_request(now, || None) else {
            panic!("what is wanted is given back");
        };
        assert!(idle.store.poll_request(now, || None).is_none());
        idle.store.handle_released(tag, Ok(()), now);
        now = now.plus_ms(SPILL_RETRY_MS);
        let Some(StoreRequest::Allocate { tag, .. }) = full.poll_request(now, || None) else {
            panic!("there is room");
        };
        full.handle_allocated(tag, Ok(()), now);
        assert_eq!(full.stats().allocated_bytes, extents * EXTENT);
        while full.can_write() {
            let Ok(planned) = full.write(vec![(0, chunk(&pool(), 0, 4))]) else { break };
            Box::leak(Box::new(full.handle_written(planned.tag, Ok(()), now)));
        }
    }
    // Nobody wants what there is none of.
    assert_eq!(idle.store.next_deadline(), None);
}

#[test]
fn extents_are_small_where_the_limit_is() {
    let mib = 1 << 20;
    assert_eq!(SpillShape::for_limit(100 << 30, 4).extent_slots, 64);
    assert_eq!(SpillShape::for_limit(64 * mib, 2).extent_slots, 8);
    assert_eq!(SpillShape::for_limit(0, 1).extent_slots, 1);
    assert_eq!(SpillShape::for_limit(64 * mib, 2).extent_bytes(), 8 * mib);
}
