//! What of an image that came from disk is what was written: all of it, or which batches.
//!
//! ```text
//! judge:    whole -----------------------------------> taken as it is
//!           another chunk, whole -------------------> nothing of it is taken
//!           else damaged, and after a second read:
//! salvage:  header or checksum damaged, all else whole -> the header is written anew
//!           heads of batches are as written, but one --> that one is lost, and each whose content
//!                                                        is damaged; empty records stand there
//!           else -------------------------------------> nothing of it is taken
//! ```
//!
//! A batch that is whole, and has the right sequence, may still be what stood there before: of
//! another queue, or because a sector is half of this image and half of the last. So one is taken
//! only if the sums in the chunk's header say that its head was written as part of this image; the
//! head has the checksum of what is behind it. The header in turn is believed only if its own,
//! short checksum is the one that is kept in memory.

use crate::base::checksum::crc32c;
use crate::format::batch::{self, BatchHeader, BatchPrefix, Batches, FRAGMENT, PrefixedBatch};
use crate::format::chunk::{ChunkError, ChunkHeader, ChunkName, OddOne, head_crc};
use crate::format::record::RecordHeader;
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, CHUNK_HEADER_BYTES, RECORD_HEADER_BYTES,
};
use std::ops::Range;

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

/// Of a sealed image's header, its sums over the batches included: what is kept in memory of it.
///
/// # Panics
/// If the image is shorter than a header.
pub(super) fn check_of(image: &[u8]) -> u16 {
    // Not of the checksum that stands there: a torn sector may have that one, and other sums.
    crc32c(&image[4..CHUNK_HEADER_BYTES]) as u16
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
    let mut count = 0;
    for batch in Batches::new(&there[CHUNK_HEADER_BYTES..used_bytes]) {
        if !batch.is_whole() {
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
/// if nothing can: also if a fragment of a large message is damaged, which is nothing without it.
pub(super) fn salvage(image: &mut [u8], name: ChunkName, check: u16) -> Option<Saved> {
    if let Some(used_bytes) = mend_header(image, name, check) {
        return Some(Saved { used_bytes, lost: Vec::new() });
    }
    let header = ChunkHeader::read_unchecked(image);
    if check_of(image) != check || header.name() != name {
        return None;
    }
    let used_bytes = header.used_bytes as usize;
    let batches = Found::all(image.get(CHUNK_HEADER_BYTES..used_bytes)?);
    if batches.last()?.end != used_bytes {
        return None;
    }
    let heads: Vec<u32> = batches.iter().map(|batch| head_crc(image, batch.at)).collect();
    let odd = match header.heads.odd_one(&heads) {
        OddOne::None => None,
        OddOne::At(nth) => Some(nth),
        OddOne::Several => return None,
    };
    let (mut sequence, mut lost) = (name.first_sequence, Vec::new());
    for (nth, batch) in batches.iter().enumerate() {
        let next = sequence.checked_add(u64::from(batch.header.record_count))?;
        if Some(nth) != odd && batch.prefix.base_sequence != sequence {
            return None;
        }
        if Some(nth) == odd || !batch.is_whole {
            lose(image, batch, sequence)?;
            extend(&mut lost, sequence..next);
        }
        sequence = next;
    }
    let all = name.first_sequence..name.end_sequence;
    let some_are_left = lost != [all];
    (sequence == name.end_sequence && some_are_left).then(|| {
        write_header(image, name, used_bytes);
        Saved { used_bytes, lost }
    })
}

fn write_header(image: &mut [u8], name: ChunkName, used_bytes: usize) {
    let batches = &image[CHUNK_HEADER_BYTES..used_bytes];
    let bytes = ChunkHeader::of(name, batches).encode(batches);
    image[..CHUNK_HEADER_BYTES].copy_from_slice(&bytes);
}

/// Writes the header anew if all batches are whole, and either only the checksum in the header is
/// damaged, or only what is behind it.
fn mend_header(image: &mut [u8], name: ChunkName, check: u16) -> Option<usize> {
    let mut used_bytes = CHUNK_HEADER_BYTES;
    for batch in Batches::new(&image[CHUNK_HEADER_BYTES..]) {
        if !batch.is_whole() {
            return None;
        }
        used_bytes += batch.bytes.len();
    }
    let batches = &image[CHUNK_HEADER_BYTES..used_bytes];
    let bytes = ChunkHeader::of(name, batches).encode(batches);
    let half = bytes[..4] == image[..4] || bytes[4..] == image[4..CHUNK_HEADER_BYTES];
    (half && check_of(&bytes) == check).then(|| {
        image[..CHUNK_HEADER_BYTES].copy_from_slice(&bytes);
        used_bytes
    })
}

/// Puts records without content in the place of a batch, the first of which fills it up. `None` if
/// there is no room for so many, or it is a fragment.
fn lose(image: &mut [u8], batch: &Found, sequence: u64) -> Option<()> {
    let BatchHeader { record_count: count, records_bytes, flags, .. } = batch.header;
    let spare = (records_bytes as usize).checked_sub(count as usize * RECORD_HEADER_BYTES)?;
    if flags & FRAGMENT != 0 {
        return None;
    }
    let prefix = BatchPrefix { base_sequence: sequence, accepted_us: 0 };
    let (head, wire) = image[batch.at..batch.end].split_at_mut(BATCH_PREFIX_BYTES);
    head.copy_from_slice(&prefix.encode());
    let records = &mut wire[BATCH_HEADER_BYTES..];
    records.fill(0);
    let mut at = 0;
    for nth in 0..count {
        let body_bytes = if nth == 0 { spare } else { 0 };
        let header = RecordHeader {
            body_bytes: body_bytes as u32,
            sequence_delta: nth,
            ..RecordHeader::default()
        };
        records[at..at + RECORD_HEADER_BYTES].copy_from_slice(&header.encode());
        at += RECORD_HEADER_BYTES + body_bytes;
    }
    let header = BatchHeader {
        record_count: count,
        records_bytes,
        producer_sequence: 1,
        ..BatchHeader::default()
    };
    batch::seal(wire, header);
    Some(())
}

fn extend(lost: &mut Vec<Range<u64>>, more: Range<u64>) {
    match lost.last_mut() {
        Some(last) if last.end == more.start => last.end = more.end,
        _ => lost.push(more),
    }
}

/// A batch whose header can be read, and which ends inside the image.
struct Found {
    /// Of its prefix, from the image's start.
    at: usize,
    end: usize,
    prefix: BatchPrefix,
    header: BatchHeader,
    /// Its own checksum is right.
    is_whole: bool,
}

impl Found {
    /// What there is in an image behind its header.
    fn all(batches: &[u8]) -> Vec<Found> {
        let mut at = CHUNK_HEADER_BYTES;
        let found = Batches::new(batches).map(|batch| {
            let PrefixedBatch { prefix, header, bytes } = batch;
            let end = at + bytes.len();
            let start = std::mem::replace(&mut at, end);
            Found { at: start, end, prefix, header, is_whole: batch.is_whole() }
        });
        found.collect()
    }
}

#[cfg(test)]
mod tests;
