//! Sealed chunks in the slots of one file: where each goes, and whether what comes back is what
//! went.
//!
//! ```text
//! file = | slot | slot | slot | ...         all of one size, numbered from 0
//! slot = | chunk image (header, batches, zeros to 4 KiB) | whatever was there before |
//! ```
//!
//! [`ChunkFile::write`] and [`ChunkFile::read`] plan a request; the caller submits it and brings
//! the outcome to [`ChunkFile::handle_written`] or [`ChunkFile::handle_read`]. Slots that were
//! freed last are used first: writing over blocks that the device has is much faster than having
//! it find new ones. A slot that failed to take a write is not used again.

use crate::base::chunk_pool::{ChunkRef, ChunkWriter, SealedChunk};
use crate::format::chunk::{ChunkError, ChunkHeader};
use crate::limits::{CHUNK_BYTES_MAX, CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES};
use std::io::ErrorKind;

/// Where a chunk stands, and what must be found there: all that is kept in memory of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    slot: u32,
    image_bytes: u32,
    header: ChunkHeader,
}

impl Place {
    /// What the chunk holds.
    pub fn header(&self) -> &ChunkHeader {
        &self.header
    }

    /// Bytes of its image on disk.
    pub fn image_bytes(&self) -> usize {
        self.image_bytes as usize
    }
}

/// A write to submit. `tag` comes back with its outcome.
pub struct PlannedWrite {
    /// Names the request.
    pub tag: u64,
    /// From the file's start.
    pub offset: u64,
    /// What to write.
    pub chunk: SealedChunk,
}

/// A read to submit. `tag` comes back with its outcome.
pub struct PlannedRead {
    /// Names the request.
    pub tag: u64,
    /// From the file's start.
    pub offset: u64,
    /// How many.
    pub bytes: usize,
    /// Where to.
    pub into: ChunkWriter,
}

/// No slot is left. The chunk comes back and stays in memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {slots} slots of the spill file are in use or out of order")]
pub struct NoSlot {
    /// Slots of the file.
    pub slots: u32,
}

/// A chunk could not be written out. Nothing is lost: it is still in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The file system is full. The slot can be tried again.
    #[error("no space is left on the device")]
    Full,
    /// The device refused. The slot is not used again.
    #[error("writing slot {slot} failed: {kind}")]
    Device {
        /// Which.
        slot: u32,
        /// As the system says.
        kind: ErrorKind,
    },
}

/// A chunk could not be read back. Its slot stays as it is, for another try or for repair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The device refused.
    #[error("reading slot {slot} failed: {kind}")]
    Device {
        /// Which.
        slot: u32,
        /// As the system says.
        kind: ErrorKind,
    },
    /// The file ends inside the chunk.
    #[error("slot {slot} ends after {actual} of {expected} bytes")]
    Short {
        /// Which.
        slot: u32,
        /// Bytes of the image.
        expected: usize,
        /// Bytes that there were.
        actual: usize,
    },
    /// The bytes are no chunk, or a damaged one.
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
        expected: Box<ChunkHeader>,
        /// What is there.
        found: Box<ChunkHeader>,
    },
}

/// A chunk that came back and is what was written.
pub struct ReadChunk {
    /// Reads its batches, which end at `header.used_bytes`.
    pub reader: ChunkRef,
    /// What it holds.
    pub header: ChunkHeader,
    /// The caller's, from [`ChunkFile::read`].
    pub place: Place,
}

#[derive(Clone, Copy)]
enum UnderWay {
    Write(Place),
    Read(Place),
}

/// See the module.
pub struct ChunkFile {
    slot_bytes: usize,
    slots_max: u32,
    /// Slots up to here were used before.
    slots_touched: u32,
    /// Used before and free again, the last one first.
    free: Vec<u32>,
    /// Out of order.
    slots_bad: u32,
    slots_used: u32,
    /// By tag; a tag is used again after its outcome.
    under_way: Vec<Option<UnderWay>>,
    free_tags: Vec<usize>,
}

impl ChunkFile {
    /// An empty file of at most `slots_max` slots.
    ///
    /// # Panics
    /// If a slot is not aligned for direct writes, or larger than the largest chunk.
    pub fn new(slot_bytes: usize, slots_max: u32) -> ChunkFile {
        assert!(slot_bytes > 0 && slot_bytes.is_multiple_of(DISK_ALIGN_BYTES));
        assert!(slot_bytes <= CHUNK_BYTES_MAX);
        ChunkFile {
            slot_bytes,
            slots_max,
            slots_touched: 0,
            free: Vec::new(),
            slots_bad: 0,
            slots_used: 0,
            under_way: Vec::new(),
            free_tags: Vec::new(),
        }
    }

    /// Slots that hold a chunk or are being written.
    pub fn slots_used(&self) -> u32 {
        self.slots_used
    }

    /// Slots that failed and are left alone.
    pub fn slots_bad(&self) -> u32 {
        self.slots_bad
    }

    /// Plans to write a chunk that was sealed with `header`.
    ///
    /// # Errors
    /// If no slot is left; the chunk comes back.
    ///
    /// # Panics
    /// If the chunk does not fit a slot, or `header` is not its.
    pub fn write(
        &mut self,
        chunk: SealedChunk,
        header: ChunkHeader,
    ) -> Result<PlannedWrite, (SealedChunk, NoSlot)> {
        let image_bytes = chunk.image().len();
        assert!(image_bytes <= self.slot_bytes, "a chunk that is larger than a slot");
        assert_eq!(image_bytes, (header.used_bytes as usize).next_multiple_of(DISK_ALIGN_BYTES));
        let Some(slot) = self.take_slot() else {
            return Err((chunk, NoSlot { slots: self.slots_max }));
        };
        let place = Place { slot, image_bytes: image_bytes as u32, header };
        let tag = self.begin(UnderWay::Write(place));
        Ok(PlannedWrite { tag, offset: self.offset(slot), chunk })
    }

    /// The outcome of a planned write: where the chunk stands now.
    ///
    /// # Errors
    /// If it is not on disk. It is still whole in memory then, for another [`ChunkFile::write`].
    ///
    /// # Panics
    /// If `tag` is not that of a write under way.
    pub fn handle_written(
        &mut self,
        tag: u64,
        result: Result<(), ErrorKind>,
    ) -> Result<Place, WriteError> {
        let UnderWay::Write(place) = self.end(tag) else { panic!("tag {tag} is a read's") };
        match result {
            Ok(()) => Ok(place),
            Err(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => {
                self.release(place);
                Err(WriteError::Full)
            }
            Err(kind) => {
                self.slots_used -= 1;
                self.slots_bad += 1;
                Err(WriteError::Device { slot: place.slot, kind })
            }
        }
    }

    /// Plans to read the chunk at `place` into an empty chunk that is large enough.
    ///
    /// # Panics
    /// If `into` is too small.
    pub fn read(&mut self, place: Place, into: ChunkWriter) -> PlannedRead {
        assert!(into.capacity_bytes() >= place.image_bytes());
        let tag = self.begin(UnderWay::Read(place));
        PlannedRead { tag, offset: self.offset(place.slot), bytes: place.image_bytes(), into }
    }

    /// The outcome of a planned read: the chunk, if it is whole and the one that was written.
    ///
    /// # Errors
    /// If it is not; see [`ReadError`].
    ///
    /// # Panics
    /// If `tag` is not that of a read under way.
    pub fn handle_read(
        &mut self,
        tag: u64,
        into: ChunkWriter,
        result: Result<usize, ErrorKind>,
    ) -> Result<ReadChunk, ReadError> {
        let UnderWay::Read(place) = self.end(tag) else { panic!("tag {tag} is a write's") };
        let slot = place.slot;
        let expected = place.image_bytes();
        match result {
            Err(kind) => return Err(ReadError::Device { slot, kind }),
            Ok(actual) if actual < expected => {
                return Err(ReadError::Short { slot, expected, actual });
            }
            Ok(_) => {}
        }
        let header = ChunkHeader::decode(&into.loaded_image()[..expected])
            .map_err(|error| ReadError::Damaged { slot, error })?;
        if header != place.header {
            let (expected, found) = (Box::new(place.header), Box::new(header));
            return Err(ReadError::Another { slot, expected, found });
        }
        Ok(ReadChunk { reader: into.reader(), header, place })
    }

    /// The chunk at `place` is not needed any more. Nothing may be under way there.
    pub fn release(&mut self, place: Place) {
        debug_assert!(!self.free.contains(&place.slot), "a slot is released once");
        self.slots_used -= 1;
        self.free.push(place.slot);
    }

    fn take_slot(&mut self) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots_touched < self.slots_max => {
                self.slots_touched += 1;
                self.slots_touched - 1
            }
            None => return None,
        };
        self.slots_used += 1;
        Some(slot)
    }

    fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * self.slot_bytes as u64
    }

    fn begin(&mut self, what: UnderWay) -> u64 {
        let tag = self.free_tags.pop().unwrap_or_else(|| {
            self.under_way.push(None);
            self.under_way.len() - 1
        });
        self.under_way[tag] = Some(what);
        tag as u64
    }

    fn end(&mut self, tag: u64) -> UnderWay {
        let what = self.under_way[tag as usize].take().expect("an outcome of what is under way");
        self.free_tags.push(tag as usize);
        what
    }
}

/// Ends the filling of a chunk: writes its header, from `header` with the bytes counted here, and
/// zeroes the padding.
pub fn seal(writer: ChunkWriter, header: ChunkHeader) -> (SealedChunk, ChunkHeader) {
    let used = writer.filled_bytes();
    let header = ChunkHeader { used_bytes: used as u32, ..header };
    let bytes = header.encode(writer.slice(CHUNK_HEADER_BYTES..used));
    (writer.seal(&bytes, DISK_ALIGN_BYTES), header)
}

#[cfg(test)]
mod tests;
