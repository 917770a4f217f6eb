//! The disk's actor: chunks go out through `storage::chunk_file` and come back, and each must be
//! what it was or be known to be damaged; what was synced survives every crash.

use crate::base::chunk_pool::{ChunkPool, ChunkWriter, HeapSlabs, PoolShape};
use crate::format::batch::BatchBuilder;
use crate::format::chunk::ChunkHeader;
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::{CHUNK_HEADER_BYTES, KIB};
use crate::sim::Checked;
use crate::sim::disk::SimDisk;
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use crate::storage::chunk_file::{ChunkFile, Place, ReadError, WriteError, seal};
use std::collections::BTreeMap;
use std::rc::Rc;

const SLOT_BYTES: usize = 16 * KIB;
const SLOTS_MAX: u32 = 24;

/// A chunk that is on disk.
struct Stored {
    place: Place,
    offset: u64,
    bytes: Vec<u8>,
    /// A bit of its slot was turned, somewhere.
    rotten: bool,
    synced: bool,
    reading: bool,
}

enum UnderWay {
    /// With its place in the file.
    Write(ChunkHeader, u64, Vec<u8>),
    /// Index of the stored chunk.
    Read(u64),
    Sync(Vec<u64>),
}

/// See the module.
pub struct Spill {
    universe: Rc<Universe>,
    pool: ChunkPool,
    disk: SimDisk,
    id: FileId,
    file: ChunkFile,
    stored: BTreeMap<u64, Stored>,
    under_way: BTreeMap<u64, UnderWay>,
    next_chunk: u64,
    /// After a crash: all that is left is read before anything is written.
    recovering: bool,
}

/// Tags of syncs, apart from those of the chunk file.
const SYNC_TAG: u64 = 1 << 32;

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
            disk,
            id,
            file: ChunkFile::new(SLOT_BYTES, SLOTS_MAX),
            stored: BTreeMap::new(),
            under_way: BTreeMap::new(),
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
            self.complete(completion)?;
        }
        let universe = Rc::clone(&self.universe);
        if universe.healed() {
            // What is under way comes to its end, and nothing is begun.
            return Ok(());
        }
        let outcome = self.begin_something(&universe);
        self.disk.flush();
        outcome
    }

    fn begin_something(&mut self, universe: &Universe) -> Checked {
        if self.recovering {
            return self.recover();
        }
        match universe.range(0, 99) {
            0..30 => self.write(),
            30..60 => self.read_any(),
            60..75 => self.sync(),
            75..90 => self.release(),
            90..95 if universe.fault(300) => self.rot(),
            95 if universe.fault(200) => self.crash(),
            _ => {}
        }
        Ok(())
    }

    /// Whether nothing is under way.
    pub fn is_settled(&self) -> bool {
        self.under_way.is_empty()
    }

    fn take_chunk(&self) -> ChunkWriter {
        loop {
            if let Some(writer) = self.pool.take(1) {
                return writer;
            }
            assert!(self.pool.grow(1), "the heap has memory for a few slabs");
        }
    }

    fn write(&mut self) {
        let mut writer = self.take_chunk();
        let mut builder = BatchBuilder::default();
        let (first_sequence, mut end_sequence, mut batch_count) = (self.next_chunk * 1000, 0, 0);
        for _ in 0..1 + self.universe.skewed(8) {
            builder.clear();
            let body: Vec<u8> =
                (0..self.universe.skewed(2000)).map(|_| self.universe.bits() as u8).collect();
            builder.push(0, &[], &body);
            let wire = builder.finish(0, 7, 1 + end_sequence);
            if writer.room_bytes() < wire.len() {
                break;
            }
            writer.append(&[wire]);
            (end_sequence, batch_count) = (end_sequence + 1, batch_count + 1);
        }
        let header = ChunkHeader {
            used_bytes: 0,
            queue: self.universe.range(1, 3),
            first_sequence,
            end_sequence: first_sequence + end_sequence,
            batch_count,
            chunk: self.next_chunk,
        };
        self.next_chunk += 1;
        let (chunk, header) = seal(writer, header);
        let bytes = chunk.image()[..header.used_bytes as usize].to_vec();
        let Ok(planned) = self.file.write(chunk, header) else { return };
        let (file, tag, offset) = (self.id, planned.tag, planned.offset);
        let request = DiskRequest::Write { tag, file, offset, chunks: vec![planned.chunk] };
        match self.disk.submit(request) {
            Ok(()) => {
                self.under_way.insert(tag, UnderWay::Write(header, offset, bytes));
            }
            // Too many under way: as if the device had said that it is full.
            Err(_) => {
                let full = Err(std::io::ErrorKind::StorageFull);
                let refused = self.file.handle_written(tag, full);
                assert_eq!(refused.err(), Some(WriteError::Full));
            }
        }
    }

    fn read_any(&mut self) {
        if self.stored.is_empty() {
            return;
        }
        let nth = self.universe.index(self.stored.len());
        let key = *self.stored.keys().nth(nth).expect("nth is below their number");
        self.read(key);
    }

    fn read(&mut self, key: u64) {
        let into = self.take_chunk();
        let stored = self.stored.get_mut(&key).expect("the caller has its key");
        if stored.reading || self.disk.is_full() {
            return;
        }
        let planned = self.file.read(stored.place, into);
        let (file, tag) = (self.id, planned.tag);
        let (offset, bytes, into) = (planned.offset, planned.bytes, planned.into);
        let submitted = self.disk.submit(DiskRequest::Read { tag, file, offset, bytes, into });
        assert!(submitted.is_ok(), "it was asked whether there is room");
        stored.reading = true;
        self.under_way.insert(tag, UnderWay::Read(key));
    }

    fn sync(&mut self) {
        let syncing = self.under_way.keys().any(|&tag| tag == SYNC_TAG);
        let (tag, file) = (SYNC_TAG, self.id);
        if !syncing && self.disk.submit(DiskRequest::Sync { tag, file }).is_ok() {
            let covered = self.stored.keys().copied().collect();
            self.under_way.insert(tag, UnderWay::Sync(covered));
        }
    }

    fn release(&mut self) {
        let idle = |stored: &Stored| !stored.reading;
        if let Some(key) = self.stored.iter().find(|(_, s)| idle(s)).map(|(key, _)| *key) {
            let stored = self.stored.remove(&key).expect("it was found");
            self.file.release(stored.place);
        }
    }

    fn rot(&mut self) {
        if self.stored.is_empty() {
            return;
        }
        let nth = self.universe.index(self.stored.len());
        let stored = self.stored.values_mut().nth(nth).expect("nth is below their number");
        let at = stored.offset as usize + self.universe.index(stored.bytes.len());
        stored.rotten |= self.disk.rot(self.id, at);
    }

    fn crash(&mut self) {
        self.disk.crash();
        self.under_way.clear();
        self.stored.values_mut().for_each(|stored| stored.reading = false);
        self.file = ChunkFile::new(SLOT_BYTES, SLOTS_MAX);
        self.recovering = true;
    }

    /// Reads what was there before a crash, one after the other, and begins anew.
    fn recover(&mut self) -> Checked {
        match self.stored.keys().next() {
            Some(&key) => self.read(key),
            None => self.recovering = false,
        }
        Ok(())
    }

    fn complete(&mut self, completion: DiskCompletion) -> Checked {
        match completion {
            DiskCompletion::Written { tag, result } => {
                let Some(UnderWay::Write(header, offset, bytes)) = self.under_way.remove(&tag)
                else {
                    return Err("the end of a write that was not begun".into());
                };
                if let Ok(place) = self.file.handle_written(tag, result) {
                    let (rotten, synced, reading) = (false, false, false);
                    let stored = Stored { place, offset, bytes, rotten, synced, reading };
                    self.stored.insert(header.chunk, stored);
                }
            }
            DiskCompletion::Read { tag, into, result } => {
                let Some(UnderWay::Read(key)) = self.under_way.remove(&tag) else {
                    return Err("the end of a read that was not begun".into());
                };
                self.judge_read(key, tag, into, result)?;
            }
            DiskCompletion::Synced { tag, result } => {
                let Some(UnderWay::Sync(covered)) = self.under_way.remove(&tag) else {
                    return Err("the end of a sync that was not begun".into());
                };
                for key in covered.iter().filter(|_| result.is_ok()) {
                    if let Some(stored) = self.stored.get_mut(key) {
                        stored.synced = true;
                    }
                }
            }
            DiskCompletion::Allocated { .. } | DiskCompletion::Released { .. } => {
                return Err("the end of what was not begun".into());
            }
        }
        Ok(())
    }

    fn judge_read(
        &mut self,
        key: u64,
        tag: u64,
        into: ChunkWriter,
        result: Result<usize, std::io::ErrorKind>,
    ) -> Checked {
        let stored = self.stored.get_mut(&key).expect("what is read is not released");
        stored.reading = false;
        let whole = !stored.rotten && (!self.recovering || stored.synced);
        match self.file.handle_read(tag, into, result) {
            Ok(read) => {
                let end = read.header.used_bytes as usize;
                let bytes = read.reader.slice(CHUNK_HEADER_BYTES..end);
                if bytes != &stored.bytes[CHUNK_HEADER_BYTES..] {
                    return Err(format!("chunk {key} came back from disk as another"));
                }
                self.universe.cover(Cover::ChunkRound);
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
