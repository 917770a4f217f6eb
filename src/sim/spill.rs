//! The disk's actor: chunks go out through `storage::spill` and come back, and each must be what it
//! was or be known to be damaged; what was synced survives every crash.

use crate::base::chunk_pool::{ChunkPool, ChunkWriter, HeapSlabs, PoolShape, SealedChunk};
use crate::format::batch::{BatchBuilder, BatchHeader, BatchPrefix};
use crate::format::chunk::{self, ChunkName};
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::{BATCH_PREFIX_BYTES, CHUNK_HEADER_BYTES, KIB};
use crate::sim::Checked;
use crate::sim::disk::SimDisk;
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use crate::storage::slots::Place;
use crate::storage::spill::{
    DiskBudget, PlannedRead, ReadError, Refilled, SpillShape, SpillStore, StoreRequest, Written,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

const SLOT_BYTES: usize = 16 * KIB;
const EXTENT_SLOTS: u32 = 2;
const SLOTS_MAX: u32 = 24;

/// What was written of a chunk.
struct Original {
    name: ChunkName,
    bytes: Vec<u8>,
    offset: u64,
}

/// A chunk that is on disk.
struct Stored {
    place: Place,
    original: Original,
    /// A bit of it was turned, somewhere.
    rotten: bool,
    synced: bool,
    reading: bool,
}

/// See the module.
pub struct Spill {
    universe: Rc<Universe>,
    pool: ChunkPool,
    disk: SimDisk,
    id: FileId,
    store: SpillStore<u64>,
    stored: BTreeMap<u64, Stored>,
    /// By ordinal of the chunk.
    writing: BTreeMap<u64, Original>,
    /// What the sync under way covers.
    syncing: Option<Vec<u64>>,
    /// The disk did not take them yet.
    waiting: Vec<DiskRequest>,
    under_way: usize,
    next_chunk: u64,
    /// After a crash: all that is left is read before anything is written.
    recovering: bool,
}

impl Spill {
    /// An empty file on a disk of its own.
    pub fn new(universe: &Rc<Universe>) -> Spill {
        let shape = PoolShape {
            slab_bytes: 64 * KIB,
            class_bytes: vec![4 * KIB, SLOT_BYTES],
            header_bytes: CHUNK_HEADER_BYTES,
        };
        let mut disk = SimDisk::new(Rc::clone(universe));
        if universe.chance(300) {
            disk.limit_bytes(SLOT_BYTES * universe.range(2, 12) as usize);
        }
        let id = disk.open("spill").expect("the simulated disk opens every file");
        Spill {
            universe: Rc::clone(universe),
            pool: ChunkPool::new(shape, Rc::new(HeapSlabs)),
            store: store(&disk, id),
            disk,
            id,
            stored: BTreeMap::new(),
            writing: BTreeMap::new(),
            syncing: None,
            waiting: Vec::new(),
            under_way: 0,
            next_chunk: 1,
            recovering: false,
        }
    }

    /// Lets something happen.
    ///
    /// # Errors
    /// If a chunk came back as another, or a whole one is said to be damaged.
    pub fn act(&mut self) -> Checked {
        while let Some(completion) = self.disk.poll_completion() {
            self.under_way -= 1;
            self.complete(completion)?;
        }
        let universe = Rc::clone(&self.universe);
        // Once all is healed, what is under way comes to its end, and nothing is begun.
        if !universe.healed() {
            self.begin_something(&universe);
        }
        for request in std::mem::take(&mut self.waiting) {
            self.submit(request);
        }
        self.disk.flush();
        Ok(())
    }

    fn begin_something(&mut self, universe: &Universe) {
        if self.recovering {
            return self.recover();
        }
        match universe.range(0, 99) {
            0..30 => self.write(),
            30..60 => self.read_any(),
            60..72 => self.sync(),
            72..87 => self.release(),
            87..90 if universe.chance(100) => drop(self.store.trim()),
            90..95 if universe.fault(300) => self.rot(),
            95 if universe.fault(200) => return self.crash(),
            _ => {}
        }
        let free_bytes = self.disk.free_bytes();
        while let Some(request) = self.store.poll_request(self.universe.mono(), free_bytes) {
            let file = self.id;
            self.submit(match request {
                StoreRequest::Allocate { tag, offset, bytes } => {
                    DiskRequest::Allocate { tag, file, offset, bytes }
                }
                StoreRequest::Release { tag, offset, bytes } => {
                    DiskRequest::Release { tag, file, offset, bytes }
                }
            });
        }
    }

    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.under_way == 0 && self.waiting.is_empty()
    }

    fn submit(&mut self, request: DiskRequest) {
        match self.disk.submit(request) {
            Ok(()) => self.under_way += 1,
            Err(request) => self.waiting.push(request),
        }
    }

    fn take_chunk(&self) -> ChunkWriter {
        loop {
            if let Some(writer) = self.pool.take(1) {
                return writer;
            }
            assert!(self.pool.grow(1), "the heap has memory for a few slabs");
        }
    }

    /// A chunk of a few messages, at most so many bytes.
    fn fill(&mut self, bytes_max: usize) -> (ChunkName, SealedChunk) {
        let mut writer = self.take_chunk();
        let mut builder = BatchBuilder::default();
        let first_sequence = self.next_chunk * 1000;
        let mut end_sequence = first_sequence;
        for _ in 0..1 + self.universe.skewed(8) {
            builder.clear();
            let body: Vec<u8> =
                (0..self.universe.skewed(2000)).map(|_| self.universe.bits() as u8).collect();
            builder.push(0, &[], &body);
            let wire = builder.finish(0, 7, end_sequence);
            if writer.filled_bytes() + BATCH_PREFIX_BYTES + wire.len() > bytes_max {
                break;
            }
            let accepted_us = self.universe.wall_us();
            let prefix = BatchPrefix { base_sequence: end_sequence, accepted_us };
            writer.append(&[&prefix.encode(), wire]);
            end_sequence += 1;
        }
        let (queue, chunk) = (self.universe.range(1, 3), self.next_chunk);
        self.next_chunk += 1;
        let name = ChunkName { queue, chunk, first_sequence, end_sequence };
        (name, chunk::seal(writer, name))
    }

    /// A slot full of chunks.
    fn write(&mut self) {
        if !self.store.can_write() {
            return;
        }
        let (mut chunks, mut names, mut left_bytes) = (Vec::new(), Vec::new(), SLOT_BYTES);
        for _ in 0..1 + self.universe.skewed(3) {
            let (name, sealed) = self.fill(left_bytes);
            left_bytes -= sealed.image().len();
            let used_bytes = sealed.reader().filled_bytes();
            names.push((name, sealed.image()[..used_bytes].to_vec(), sealed.image().len()));
            chunks.push((name.chunk, sealed));
            if left_bytes < 4 * KIB {
                break;
            }
        }
        let Ok(planned) = self.store.write(chunks) else { panic!("it could write") };
        let mut offset = planned.offset;
        for (name, bytes, image_bytes) in names {
            self.writing.insert(name.chunk, Original { name, bytes, offset });
            offset += image_bytes as u64;
        }
        let (file, tag, offset) = (self.id, planned.tag, planned.offset);
        self.submit(DiskRequest::Write { tag, file, offset, chunks: planned.chunks });
    }

    fn read_any(&mut self) {
        if self.stored.is_empty() || !self.store.can_read() {
            return;
        }
        let nth = self.universe.index(self.stored.len());
        let key = *self.stored.keys().nth(nth).expect("nth is below their number");
        self.read(key);
    }

    fn read(&mut self, key: u64) {
        let into = self.take_chunk();
        let stored = self.stored.get_mut(&key).expect("the caller has its key");
        if stored.reading {
            return;
        }
        stored.reading = true;
        let planned = self.store.read(key, stored.place.clone(), stored.original.name, into);
        self.submit_read(planned);
    }

    fn submit_read(&mut self, planned: PlannedRead) {
        let PlannedRead { tag, offset, bytes, into } = planned;
        let file = self.id;
        self.submit(DiskRequest::Read { tag, file, offset, bytes, into });
    }

    fn sync(&mut self) {
        if self.syncing.is_none() {
            self.syncing = Some(self.stored.keys().copied().collect());
            self.submit(DiskRequest::Sync { tag: 0, file: self.id });
        }
    }

    /// Of one chunk, be it read or not.
    fn release(&mut self) {
        self.stored.pop_first();
    }

    fn rot(&mut self) {
        if self.stored.is_empty() {
            return;
        }
        let nth = self.universe.index(self.stored.len());
        let stored = self.stored.values_mut().nth(nth).expect("nth is below their number");
        let Original { offset, bytes, .. } = &stored.original;
        let at = *offset as usize + self.universe.index(bytes.len());
        stored.rotten |= self.disk.rot(self.id, at);
    }

    fn crash(&mut self) {
        self.disk.crash();
        self.waiting.clear();
        self.writing.clear();
        (self.under_way, self.syncing) = (0, None);
        self.stored.values_mut().for_each(|stored| stored.reading = false);
        self.recovering = true;
    }

    /// Reads what was there before a crash, one after the other, and begins anew.
    fn recover(&mut self) {
        match self.stored.keys().next() {
            Some(&key) => self.read(key),
            // What the store of before has begun comes to its end before there is a new one.
            None if !self.is_settled() => {}
            None => {
                self.recovering = false;
                self.store = store(&self.disk, self.id);
            }
        }
    }

    fn complete(&mut self, completion: DiskCompletion) -> Checked {
        let now = self.universe.mono();
        match completion {
            DiskCompletion::Written { tag, result } => {
                match self.store.handle_written(tag, result, now) {
                    Written::Done(placed) => {
                        for (key, place) in placed {
                            let original = self.writing.remove(&key).ok_or("never written")?;
                            let (rotten, synced, reading) = (false, false, false);
                            let stored = Stored { place, original, rotten, synced, reading };
                            self.stored.insert(key, stored);
                        }
                    }
                    Written::Failed(keys, _) => {
                        keys.iter().for_each(|key| drop(self.writing.remove(key)));
                    }
                }
            }
            DiskCompletion::Read { tag, into, result } => {
                let refilled = self.store.handle_read(tag, into, result);
                self.judge(refilled)?;
            }
            DiskCompletion::Synced { result, .. } => {
                let covered = self.syncing.take().ok_or("a sync that was not begun")?;
                for key in covered.iter().filter(|_| result.is_ok()) {
                    if let Some(stored) = self.stored.get_mut(key) {
                        stored.synced = true;
                    }
                }
            }
            DiskCompletion::Allocated { tag, result } => {
                self.store.handle_allocated(tag, result, now);
            }
            DiskCompletion::Released { tag, result } => {
                self.store.handle_released(tag, result, now);
            }
        }
        Ok(())
    }

    fn judge(&mut self, refilled: Refilled<u64>) -> Checked {
        let (key, outcome) = match refilled {
            Refilled::Again(planned) => {
                self.submit_read(planned);
                return Ok(());
            }
            Refilled::Whole(key, sealed) => (key, Ok((sealed, Vec::new()))),
            Refilled::Damaged(key, sealed, lost) => (key, Ok((sealed, lost))),
            Refilled::Lost(key, error) => (key, Err(error)),
        };
        let Some(stored) = self.stored.get_mut(&key) else { return Ok(()) };
        stored.reading = false;
        let whole = !stored.rotten && (!self.recovering || stored.synced);
        match outcome {
            Ok((sealed, lost)) => {
                if whole && !lost.is_empty() {
                    return Err(format!("messages {lost:?} of chunk {key} were lost on disk"));
                }
                compare(&stored.original, &sealed, &lost)?;
                self.universe.cover(Cover::ChunkRound);
                if stored.rotten {
                    self.universe.cover(Cover::BitRot);
                }
            }
            Err(ReadError::Device { .. }) => return Ok(()),
            Err(error) if whole => return Err(format!("chunk {key} was lost on disk: {error}")),
            Err(_) if stored.rotten => self.universe.cover(Cover::BitRot),
            Err(_) => {}
        }
        if self.recovering {
            self.stored.remove(&key);
        }
        Ok(())
    }
}

fn store(disk: &SimDisk, id: FileId) -> SpillStore<u64> {
    let shape = SpillShape {
        slot_bytes: SLOT_BYTES,
        extent_slots: EXTENT_SLOTS,
        reserve_bytes: 2 * SLOT_BYTES as u64,
        headroom_bytes: SLOT_BYTES as u64,
        warm_bytes: disk.file_bytes(id).unwrap_or(0),
    };
    SpillStore::new(shape, DiskBudget::new(SLOT_BYTES as u64 * u64::from(SLOTS_MAX)))
}

/// Every message that is not said to be lost is as it was, to the byte.
fn compare(original: &Original, sealed: &SealedChunk, lost: &[Range<u64>]) -> Checked {
    let (bytes, key) = (&original.bytes, original.name.chunk);
    let mut at = CHUNK_HEADER_BYTES;
    while at < bytes.len() {
        let sequence = BatchPrefix::decode(&bytes[at..]).base_sequence;
        let header = BatchHeader::decode(&bytes[at + BATCH_PREFIX_BYTES..]);
        let header = header.map_err(|error| format!("chunk {key} was never whole: {error}"))?;
        let end = at + BATCH_PREFIX_BYTES + header.wire_bytes();
        if !lost.iter().any(|lost| lost.contains(&sequence)) {
            let there = sealed.reader().slice(CHUNK_HEADER_BYTES..sealed.reader().filled_bytes());
            let there = there.get(at - CHUNK_HEADER_BYTES..end - CHUNK_HEADER_BYTES);
            if there != Some(&bytes[at..end]) {
                return Err(format!("message {sequence} of chunk {key} came back as another"));
            }
        }
        at = end;
    }
    Ok(())
}
