//! The spill store of a shard: chunks that leave memory and come back, in the slots of one file
//! that grows and shrinks. Plans only: somebody submits what is planned here and brings back how it
//! ended. docs/STORAGE.md draws what stands on disk.
//!
//! ```text
//! write -> handle_written -> places     one slot per write, with as many images as fit
//! read  -> handle_read    -> chunk      the very one that was written, or what is left of it
//! poll_read -> handle_read              each tick: what the device refused, tried again in time
//! poll_request -> handle_allocated, handle_released        each tick, until there is none
//! ```
//!
//! What stands there is transient: it means nothing to the next run, which only takes over the
//! blocks. Nothing is synced.

use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::base::time::Mono;
use crate::format::chunk::{ChunkError, ChunkName};
use crate::limits::{
    DISK_ALIGN_BYTES, READ_RETRY_MS, READ_TRIES_MAX, SPILL_FAILURES_MAX, SPILL_READ_DEPTH,
    SPILL_RETRY_MS, SPILL_WRITE_DEPTH,
};
use crate::storage::extents::{Change, Extents, Refusal, is_full};
use crate::storage::salvage::{self, Verdict};
use crate::storage::slots::{Fate, Place, SlotTable};
use std::io::ErrorKind;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

pub use crate::storage::extents::{DiskBudget, FullReason, SpillShape};

/// A write to submit: the images, one behind the other.
pub struct PlannedWrite {
    /// Comes back with the outcome.
    pub tag: u64,
    /// From the file's start.
    pub offset: u64,
    /// What to write.
    pub chunks: Vec<SealedChunk>,
}

/// A read to submit.
pub struct PlannedRead {
    /// Comes back with the outcome.
    pub tag: u64,
    /// From the file's start.
    pub offset: u64,
    /// How many.
    pub bytes: usize,
    /// Where to.
    pub into: ChunkWriter,
}

/// Blocks to ask for or to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreRequest {
    /// Gets blocks for a range; the file grows to hold it.
    Allocate {
        /// Comes back with the outcome.
        tag: u64,
        /// From the file's start.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Gives the blocks of a range back to the file system.
    Release {
        /// Comes back with the outcome.
        tag: u64,
        /// From the file's start.
        offset: u64,
        /// How many.
        bytes: u64,
    },
}

/// Chunks could not be written out. Nothing is lost: they are still in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The file system is full. It is tried again in a while.
    #[error("no space is left for spilled messages: {}", error_text(*.0))]
    Full(ErrorKind),
    /// The device refused.
    #[error("writing slot {slot} failed: {}", error_text(*kind))]
    Device {
        /// Which.
        slot: u32,
        /// As the system says.
        kind: ErrorKind,
    },
}

/// The outcome of a write. Whose chunks stands in the order they were given.
#[derive(Debug)]
pub enum Written<T> {
    /// Where each chunk stands.
    Done(Vec<(T, Place)>),
    /// None of them is on disk.
    Failed(Vec<T>, WriteError),
}

/// Nothing of a chunk came back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The device refused, as often as it was asked.
    #[error("reading slot {slot} failed: {}", error_text(*kind))]
    Device {
        /// Which.
        slot: u32,
        /// As the system says.
        kind: ErrorKind,
    },
    /// The bytes are no chunk, or nothing of them is whole.
    #[error("slot {slot} is damaged: {error}")]
    Damaged {
        /// Which.
        slot: u32,
        /// What is wrong.
        error: ChunkError,
    },
    /// A whole chunk, but another than was written there: a write that was lost or went astray.
    #[error(
        "slot {slot} holds chunk {} of queue {} from message {}, where chunk {} of queue {} \
         from message {} was written",
        found.chunk, found.queue, found.first_sequence,
        expected.chunk, expected.queue, expected.first_sequence
    )]
    Another {
        /// Which.
        slot: u32,
        /// What was written.
        expected: Box<ChunkName>,
        /// What is there.
        found: Box<ChunkName>,
    },
}

/// The outcome of a read.
pub enum Refilled<T> {
    /// The chunk as it was written, every message of it.
    Whole(T, SealedChunk),
    /// It is to be read once more: submit this.
    Again(PlannedRead),
    /// The device refused: [`SpillStore::poll_read`] hands the read out again in a while.
    PutOff(ReadError),
    /// What is left of the chunk. In the place of the lost messages stand empty records with their
    /// sequences, so that all others stand where they stood; nobody may deliver those.
    Damaged(T, SealedChunk, Vec<Range<u64>>),
    /// No message of it is left.
    Lost(T, ReadError),
}

/// Whether chunks can leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpillState {
    /// Nothing may be spilled: the limit is 0.
    Off,
    /// They can, as fast as the disk goes.
    Ready,
    /// There is no room. It is tried again once a second, and whenever a slot becomes free.
    Full(FullReason),
    /// The disk fails. It is tried again once a second.
    Failing(ErrorKind),
}

/// What a store has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpillStats {
    /// One slot.
    pub slot_bytes: u64,
    /// Charged to the disk budget: blocks of the file, those that come and those that go included.
    pub allocated_bytes: u64,
    /// Of these, on their way back to the file system.
    pub leaving_bytes: u64,
    /// Slots that hold something or are being written.
    pub slots_used: u32,
    /// Slots that can be filled.
    pub slots_free: u32,
    /// Slots that failed and are left alone.
    pub slots_bad: u32,
    /// Images in the used slots; `slots_used * slot_bytes` less this is lost to fragmentation.
    pub live_bytes: u64,
    /// Writes under way.
    pub writes_under_way: u32,
    /// Reads under way, and those that were put off.
    pub reads_under_way: u32,
    /// Bytes written, ever.
    pub written_bytes: u64,
    /// Bytes read, ever.
    pub read_bytes: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Reads that the device refused or that brought damaged bytes.
    pub read_errors: u64,
    /// Chunks of which messages were lost.
    pub chunks_damaged: u64,
    /// Of these, those of which others were saved.
    pub chunks_saved: u64,
    /// Extents that were given back, ever.
    pub extents_released: u64,
    /// Extents that were allocated, ever.
    pub extents_allocated: u64,
}

struct Reading<T> {
    owner: T,
    place: Place,
    name: ChunkName,
    /// Times that the device refused it.
    refusals: u32,
    /// It has brought damaged bytes.
    damaged: bool,
}

/// A read that the device refused, until it is tried again.
struct PutOff<T> {
    until: Mono,
    reading: Reading<T>,
    into: ChunkWriter,
}

enum UnderWay<T> {
    Write(Vec<(T, Place)>),
    Read(Reading<T>),
    Change(Change),
}

/// Why nothing is written for a while.
struct Pause {
    state: SpillState,
    until: Mono,
    /// The time has come: one write is tried.
    over: bool,
}

/// See the module. `T` says whose a chunk is; the store only hands it back.
pub struct SpillStore<T> {
    shape: SpillShape,
    is_off: bool,
    table: Rc<SlotTable>,
    extents: Extents,
    /// By tag; a tag is used again after its outcome.
    under_way: Vec<Option<UnderWay<T>>>,
    free_tags: Vec<u32>,
    /// Since the last poll.
    wrote: bool,
    /// Writes that failed one after the other.
    failures: u32,
    pause: Option<Pause>,
    put_off: Vec<PutOff<T>>,
    /// Reads under way that were put off before.
    retries: u32,
    /// What the device said last when it refused a read.
    refusal: Option<ErrorKind>,
    stats: SpillStats,
}

impl<T> SpillStore<T> {
    /// A store in a file of which [`SpillShape::warm_bytes`] have blocks; what stands there is
    /// nothing.
    ///
    /// # Panics
    /// If a slot is no whole number of pages, or more than 256.
    pub fn new(shape: SpillShape, budget: Arc<DiskBudget>) -> SpillStore<T> {
        let table = SlotTable::new(shape.slot_bytes, shape.extent_slots);
        SpillStore {
            shape,
            is_off: budget.limit_bytes() == 0,
            extents: Extents::new(shape, budget, Rc::clone(&table)),
            table,
            under_way: Vec::new(),
            free_tags: Vec::new(),
            wrote: false,
            failures: 0,
            pause: None,
            put_off: Vec::new(),
            retries: 0,
            refusal: None,
            stats: SpillStats::default(),
        }
    }

    /// Whether a write can be planned now. Asking is what makes the file grow, so ask when there
    /// is something to write.
    pub fn can_write(&mut self) -> bool {
        if self.is_off {
            return false;
        }
        self.extents.ask();
        let depth = match &self.pause {
            None => SPILL_WRITE_DEPTH,
            Some(pause) if pause.over => 1,
            Some(_) => 0,
        };
        (self.stats.writes_under_way as usize) < depth && self.table.counts().free > 0
    }

    /// Plans to write chunks into one slot, one behind the other.
    ///
    /// # Errors
    /// If [`SpillStore::can_write`] is not so; the chunks come back.
    ///
    /// # Panics
    /// If there are none, or they do not fit a slot.
    pub fn write(
        &mut self,
        chunks: Vec<(T, SealedChunk)>,
    ) -> Result<PlannedWrite, Vec<(T, SealedChunk)>> {
        if !self.can_write() {
            return Err(chunks);
        }
        let measure = |(_, chunk): &(T, SealedChunk)| {
            let image = chunk.image();
            (image.len(), salvage::check_of(image))
        };
        let images: Vec<(usize, u16)> = chunks.iter().map(measure).collect();
        let Some(places) = self.table.fill(&images) else { return Err(chunks) };
        let offset = places[0].offset();
        let (owners, chunks): (Vec<T>, Vec<SealedChunk>) = chunks.into_iter().unzip();
        let placed = owners.into_iter().zip(places).collect();
        let tag = self.begin(UnderWay::Write(placed));
        self.stats.writes_under_way += 1;
        self.wrote = true;
        Ok(PlannedWrite { tag, offset, chunks })
    }

    /// The outcome of a planned write.
    ///
    /// # Panics
    /// If `tag` is not that of a write under way.
    pub fn handle_written(
        &mut self,
        tag: u64,
        result: Result<(), ErrorKind>,
        now: Mono,
    ) -> Written<T> {
        let UnderWay::Write(placed) = self.end(tag) else { panic!("tag {tag} is no write's") };
        self.stats.writes_under_way -= 1;
        self.wrote = true;
        let Err(kind) = result else {
            (self.failures, self.pause) = (0, None);
            let bytes: usize = placed.iter().map(|(_, place)| place.image_bytes()).sum();
            self.stats.written_bytes += bytes as u64;
            return Written::Done(placed);
        };
        self.stats.write_errors += 1;
        let slot = placed[0].1.slot();
        let fate = self.fail(kind, now);
        self.table.doom(slot, fate);
        let error = match is_full(kind) {
            true => WriteError::Full(kind),
            false => WriteError::Device { slot, kind },
        };
        Written::Failed(placed.into_iter().map(|(owner, _)| owner).collect(), error)
    }

    /// What a failed write means for the store, and for its slot.
    fn fail(&mut self, kind: ErrorKind, now: Mono) -> Fate {
        let until = now.plus_ms(SPILL_RETRY_MS);
        if is_full(kind) {
            let state = SpillState::Full(FullReason::NoSpace);
            self.pause = Some(Pause { state, until, over: false });
            return Fate::Cold;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= SPILL_FAILURES_MAX {
            let state = SpillState::Failing(kind);
            self.pause = Some(Pause { state, until, over: false });
        }
        // Where every write fails it is not the slots' fault; another is tried the next time.
        if self.failures > SPILL_FAILURES_MAX { Fate::Cold } else { Fate::Bad }
    }

    /// Whether a read can be planned now. One that the device refused counts until it succeeds or
    /// is given up: so a device that is gone costs what was under way and no more, one that comes
    /// back soon costs nothing, and a bad place on it leaves the rest of the depth to others.
    pub fn can_read(&self) -> bool {
        (self.stats.reads_under_way as usize) + self.put_off.len() < SPILL_READ_DEPTH
    }

    /// What the device says, while reads that it refused are to be tried again.
    pub fn read_failure(&self) -> Option<ErrorKind> {
        self.refusal.filter(|_| self.retries > 0 || !self.put_off.is_empty())
    }

    /// Plans to read the chunk `name` at `place` into an empty chunk that is large enough.
    ///
    /// # Panics
    /// If `into` is too small, or `place` is another store's.
    pub fn read(
        &mut self,
        owner: T,
        place: Place,
        name: ChunkName,
        into: ChunkWriter,
    ) -> PlannedRead {
        assert!(place.is_in(&self.table), "a place of another store");
        self.plan_read(Reading { owner, place, name, refusals: 0, damaged: false }, into)
    }

    /// A read that was put off and is to be submitted now; poll until there is none, each tick.
    pub fn poll_read(&mut self, now: Mono) -> Option<PlannedRead> {
        let nth = self.put_off.iter().position(|put_off| put_off.until <= now)?;
        let PutOff { reading, into, .. } = self.put_off.remove(nth);
        Some(self.plan_read(reading, into))
    }

    fn plan_read(&mut self, reading: Reading<T>, into: ChunkWriter) -> PlannedRead {
        let (offset, bytes) = (reading.place.offset(), reading.place.image_bytes());
        assert!(into.capacity_bytes() >= bytes, "a chunk that is too small for its image");
        self.retries += u32::from(reading.refusals > 0);
        let tag = self.begin(UnderWay::Read(reading));
        self.stats.reads_under_way += 1;
        PlannedRead { tag, offset, bytes, into }
    }

    /// The outcome of a planned read: the chunk, if it is whole and the one that was written; what
    /// can be saved of it, if it is not so twice. What the device refuses is tried again later,
    /// [`READ_TRIES_MAX`] times in all.
    ///
    /// # Panics
    /// If `tag` is not that of a read under way.
    pub fn handle_read(
        &mut self,
        tag: u64,
        mut into: ChunkWriter,
        result: Result<usize, ErrorKind>,
        now: Mono,
    ) -> Refilled<T> {
        let UnderWay::Read(mut reading) = self.end(tag) else { panic!("tag {tag} is no read's") };
        self.stats.reads_under_way -= 1;
        self.retries -= u32::from(reading.refusals > 0);
        let (slot, image_bytes) = (reading.place.slot(), reading.place.image_bytes());
        let (name, check) = (reading.name, reading.place.check());
        let verdict = result.map(|bytes| {
            self.stats.read_bytes += bytes as u64;
            let there = bytes.min(image_bytes);
            salvage::judge(&into.loaded_image()[..there], image_bytes, name, check)
        });
        if let Ok(Verdict::Whole { used_bytes }) = verdict {
            let sealed = into.seal_loaded(used_bytes, DISK_ALIGN_BYTES);
            return Refilled::Whole(reading.owner, sealed);
        }
        self.stats.read_errors += 1;
        match verdict {
            Ok(_) if !std::mem::replace(&mut reading.damaged, true) => {
                into.unload();
                Refilled::Again(self.plan_read(reading, into))
            }
            Err(kind) if reading.refusals + 1 < READ_TRIES_MAX => {
                into.unload();
                let until = now.plus_ms(READ_RETRY_MS << reading.refusals);
                reading.refusals += 1;
                self.refusal = Some(kind);
                self.put_off.push(PutOff { until, reading, into });
                Refilled::PutOff(ReadError::Device { slot, kind })
            }
            _ => self.save(reading, into, verdict, slot),
        }
    }

    /// After the last try.
    fn save(
        &mut self,
        reading: Reading<T>,
        mut into: ChunkWriter,
        verdict: Result<Verdict, ErrorKind>,
        slot: u32,
    ) -> Refilled<T> {
        let Reading { owner, place, name, .. } = reading;
        let error = match verdict {
            Err(kind) => ReadError::Device { slot, kind },
            Ok(Verdict::Another(header)) => {
                let (expected, found) = (Box::new(name), Box::new(header.name()));
                ReadError::Another { slot, expected, found }
            }
            Ok(Verdict::Whole { .. }) => unreachable!("it was taken"),
            Ok(Verdict::Damaged { error, there }) => {
                let bytes = &mut into.loaded_bytes()[..place.image_bytes()];
                bytes[there..].fill(0);
                if let Some(saved) = salvage::salvage(bytes, name, place.check()) {
                    let sealed = into.seal_loaded(saved.used_bytes, DISK_ALIGN_BYTES);
                    if saved.lost.is_empty() {
                        return Refilled::Whole(owner, sealed);
                    }
                    self.stats.chunks_damaged += 1;
                    self.stats.chunks_saved += 1;
                    return Refilled::Damaged(owner, sealed, saved.lost);
                }
                ReadError::Damaged { slot, error }
            }
        };
        self.stats.chunks_damaged += 1;
        Refilled::Lost(owner, error)
    }

    /// What is to be asked of the file system now; poll until there is nothing, each tick.
    /// `free_bytes` is what the file system has left, if that is known; asked only before growth.
    pub fn poll_request(
        &mut self,
        now: Mono,
        free_bytes: impl Fn() -> Option<u64>,
    ) -> Option<StoreRequest> {
        if let Some(pause) = &mut self.pause {
            pause.over |= now >= pause.until;
        }
        let wrote = std::mem::take(&mut self.wrote) || self.stats.writes_under_way > 0;
        let change = self.extents.poll(now, free_bytes, wrote)?;
        let (Change::Allocate(extent) | Change::Release(extent)) = change;
        let (offset, bytes) = (self.extents.offset(extent), self.shape.extent_bytes());
        let tag = self.begin(UnderWay::Change(change));
        Some(match change {
            Change::Allocate(_) => StoreRequest::Allocate { tag, offset, bytes },
            Change::Release(_) => StoreRequest::Release { tag, offset, bytes },
        })
    }

    /// The outcome of an allocation.
    ///
    /// # Panics
    /// If `tag` is not that of one under way.
    pub fn handle_allocated(&mut self, tag: u64, result: Result<(), ErrorKind>, now: Mono) {
        let UnderWay::Change(Change::Allocate(extent)) = self.end(tag) else {
            panic!("tag {tag} is no allocation's");
        };
        self.stats.extents_allocated += u64::from(result.is_ok());
        self.extents.handle_allocated(extent, result, now);
    }

    /// The outcome of a release.
    ///
    /// # Panics
    /// If `tag` is not that of one under way.
    pub fn handle_released(&mut self, tag: u64, result: Result<(), ErrorKind>, now: Mono) {
        let UnderWay::Change(Change::Release(extent)) = self.end(tag) else {
            panic!("tag {tag} is no release's");
        };
        self.stats.extents_released += u64::from(result.is_ok());
        self.extents.handle_released(extent, result, now);
    }

    /// When [`SpillStore::poll_request`] or [`SpillStore::poll_read`] will have something to do, or
    /// a pause ends, without any outcome that tells.
    pub fn next_deadline(&self) -> Option<Mono> {
        let pause = self.pause.as_ref().filter(|pause| !pause.over).map(|pause| pause.until);
        let put_off = self.put_off.iter().map(|put_off| put_off.until);
        pause.into_iter().chain(put_off).chain(self.extents.next_deadline()).min()
    }

    /// Whether chunks can leave memory, and why not.
    pub fn state(&self) -> SpillState {
        if self.is_off {
            return SpillState::Off;
        }
        if let Some(pause) = &self.pause {
            return pause.state;
        }
        match self.extents.refusal() {
            Some(refusal) if self.table.counts().free == 0 => match refusal {
                Refusal::Full(reason) => SpillState::Full(reason),
                Refusal::Failed(kind) => SpillState::Failing(kind),
            },
            _ => SpillState::Ready,
        }
    }

    /// All extents that hold nothing now are given back at once, the reserve too; the requests come
    /// by [`SpillStore::poll_request`]. Returns their bytes.
    pub fn trim(&mut self) -> u64 {
        self.extents.trim() as u64 * self.shape.extent_bytes()
    }

    /// What it has done and holds.
    pub fn stats(&self) -> SpillStats {
        let counts = self.table.counts();
        SpillStats {
            slot_bytes: self.shape.slot_bytes as u64,
            allocated_bytes: self.extents.charged_bytes(),
            leaving_bytes: self.extents.leaving_bytes(),
            slots_used: counts.used,
            slots_free: counts.free,
            slots_bad: counts.bad,
            live_bytes: counts.live_pages * DISK_ALIGN_BYTES as u64,
            reads_under_way: self.stats.reads_under_way + self.put_off.len() as u32,
            ..self.stats
        }
    }

    /// Bytes that the store takes in memory, places apart.
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
            + self.under_way.capacity() * size_of::<Option<UnderWay<T>>>()
            + self.put_off.capacity() * size_of::<PutOff<T>>()
    }

    /// Whether anything was planned whose outcome is not known.
    #[cfg(test)]
    pub fn is_busy(&self) -> bool {
        self.free_tags.len() < self.under_way.len() || !self.put_off.is_empty()
    }

    fn begin(&mut self, what: UnderWay<T>) -> u64 {
        let tag = self.free_tags.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            self.under_way.len() as u32 - 1
        });
        self.under_way[tag as usize] = Some(what);
        u64::from(tag)
    }

    fn end(&mut self, tag: u64) -> UnderWay<T> {
        let what = self.under_way.get_mut(tag as usize).and_then(Option::take);
        self.free_tags.push(tag as u32);
        what.expect("an outcome of what is under way")
    }
}

/// What a device that fails says: EIO, the same number everywhere.
const DEVICE_ERRNO: i32 = 5;

/// What the system says, for people. The standard library has no name for EIO, and calls it
/// uncategorized.
pub fn error_text(kind: ErrorKind) -> String {
    let device = std::io::Error::from_raw_os_error(DEVICE_ERRNO).kind();
    if kind == device { "input/output error".to_owned() } else { kind.to_string() }
}

#[cfg(test)]
mod tests;
