//! What of an image that came from disk is what was written: all of it, or which batches.
//!
//! ```text
//! judge:    whole -----------------------------------> taken as it is
//!           another chunk, whole -------------------> nothing of it is taken
//!           else damaged, and after a second read:
//! salvage:  header or checksum damaged, all else whole -> the header is written anew
//!           batch damaged, its neighbours agree ------> lost; records without content stand there
//!           else -------------------------------------> it and all behind it are lost
//! ```
//!
//! Every length is checked before it is followed, and sequences are dense, so a batch that is
//! damaged is passed over only when the batch behind it stands where and has the sequence that the
//! damaged header says. A batch's own checksum covers all but the broker's prefix: there, the
//! sequence follows from the neighbours, and so does the time, if it is not between theirs.

use crate::base::checksum::crc32c;
use crate::format::batch::{self, BatchHeader, BatchPrefix, FRAGMENT};
use crate::format::chunk::{ChunkError, ChunkHeader, ChunkName};
use crate::format::record::RecordHeader;
use crate::format::{u16_at, u32_at};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, BATCH_RECORDS_MAX, CHUNK_HEADER_BYTES,
    RECORD_HEADER_BYTES,
};
use std::ops::Range;

const HEAD_BYTES: usize = BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What was written. So many bytes of it count.
    Whole { used_bytes: usize },
    /// A whole chunk, but another.
    Another(ChunkHeader),
    /// Neither. So many bytes were read.
    Damaged { error: ChunkError, there: usize },
}

/// What could be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Saved {
    /// Bytes of the image that count.
    pub used_bytes: usize,
    /// Sequences that are lost.
    pub lost: Vec<Range<u64>>,
}

/// Of the checksum of a sealed image: what is kept in memory of it.
pub(super) fn check_of(image: &[u8]) -> u16 {
    u16_at(image, 0)
}

/// Looks at what was read of an image of `image_bytes`, without changing it.
pub(super) fn judge(there: &[u8], image_bytes: usize, name: ChunkName, check: u16) -> Verdict {
    let damaged = |error| Verdict::Damaged { error, there: there.len() };
    let header = match ChunkHeader::decode(there) {
        Ok(header) => header,
        Err(error) => return damaged(error),
    };
    if there.len() < image_bytes {
        return damaged(ChunkError::Length { expected: image_bytes, actual: there.len() });
    }
    if header.name() != name || check_of(there) != check {
        return Verdict::Another(header);
    }
    let used_bytes = header.used_bytes as usize;
    let batches = Batches { image: &there[..used_bytes], at: CHUNK_HEADER_BYTES };
    let mut count = 0;
    for batch in batches {
        if !batch.is_whole(there) {
            return damaged(ChunkError::Contradiction);
        }
        count += 1;
    }
    match count == header.batch_count {
        true => Verdict::Whole { used_bytes },
        false => damaged(ChunkError::Contradiction),
    }
}

/// Saves what can be saved of a damaged image, and leaves an image that is whole in itself. `None`
/// if nothing can.
pub(super) fn salvage(_image: &mut [u8], _name: ChunkName, _check: u16) -> Option<Saved> {
    None
}

/// A batch whose header can be read, and which ends inside the image.
#[derive(Clone, Copy)]
struct Found {
    /// Of its prefix.
    at: usize,
    end: usize,
    prefix: BatchPrefix,
    header: BatchHeader,
}

impl Found {
    fn at(image: &[u8], at: usize) -> Option<Found> {
        let head = image.get(at..)?.get(..HEAD_BYTES)?;
        let header = BatchHeader::decode(&head[BATCH_PREFIX_BYTES..]).ok()?;
        let end = at + BATCH_PREFIX_BYTES + header.wire_bytes();
        let prefix = BatchPrefix::decode(head);
        (end <= image.len()).then_some(Found { at, end, prefix, header })
    }

    /// Whether its own checksum is right.
    fn is_whole(&self, image: &[u8]) -> bool {
        let wire = &image[self.at + BATCH_PREFIX_BYTES..self.end];
        crc32c(&wire[4..]) == self.header.crc32c
    }
}

/// Batches one behind the other, up to the first that cannot be read.
struct Batches<'a> {
    image: &'a [u8],
    at: usize,
}

impl Iterator for Batches<'_> {
    type Item = Found;

    fn next(&mut self) -> Option<Found> {
        let found = Found::at(self.image, self.at)?;
        self.at = found.end;
        Some(found)
    }
}
