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
//! damaged header says. A batch is taken only with its own checksum and the sequence that it must
//! have: a whole batch with another may be what stood there before. Its checksum does not cover the
//! time in the broker's prefix, which is mended from the neighbours if it is not between theirs.

use crate::base::checksum::crc32c;
use crate::format::batch::{self, BatchHeader, BatchPrefix, FRAGMENT};
use crate::format::chunk::{ChunkError, ChunkHeader, ChunkName, MAGIC};
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
/// if nothing can: also if a fragment of a large message is damaged, which is nothing without it.
pub(super) fn salvage(image: &mut [u8], name: ChunkName, check: u16) -> Option<Saved> {
    if is_anothers(image, name, check) {
        return None;
    }
    if let Some(used_bytes) = mend_header(image, name, check) {
        return Some(Saved { used_bytes, lost: Vec::new() });
    }
    let mut walk = Walk {
        image,
        end_sequence: name.end_sequence,
        at: CHUNK_HEADER_BYTES,
        sequence: name.first_sequence,
        batch_count: 0,
        lost: Vec::new(),
        times: Vec::new(),
    };
    while walk.sequence < name.end_sequence {
        match walk.step()? {
            Step::Next => {}
            Step::Broken => walk.lose_rest()?,
        }
    }
    if walk.times.is_empty() {
        return None;
    }
    walk.mend_times();
    let Walk { at: used_bytes, batch_count, lost, .. } = walk;
    write_header(image, name, used_bytes, batch_count);
    Some(Saved { used_bytes, lost })
}

fn write_header(image: &mut [u8], name: ChunkName, used_bytes: usize, batch_count: u32) {
    let header = ChunkHeader::of(name, used_bytes, batch_count);
    let bytes = header.encode(&image[CHUNK_HEADER_BYTES..used_bytes]);
    image[..CHUNK_HEADER_BYTES].copy_from_slice(&bytes);
}

/// Whether what can be read of the header is another chunk's: both its name and its checksum.
fn is_anothers(image: &[u8], name: ChunkName, check: u16) -> bool {
    u32_at(image, 4) == MAGIC
        && check_of(image) != check
        && ChunkHeader::read_unchecked(image).name() != name
}

/// Writes the header anew if all else is as it was when the checksum was taken that `check` is of,
/// and either only the checksum in the header is damaged, or only what is behind it.
fn mend_header(image: &mut [u8], name: ChunkName, check: u16) -> Option<usize> {
    let (mut used_bytes, mut batch_count) = (CHUNK_HEADER_BYTES, 0);
    for batch in (Batches { image, at: CHUNK_HEADER_BYTES }) {
        if !batch.is_whole(image) {
            return None;
        }
        (used_bytes, batch_count) = (batch.end, batch_count + 1);
    }
    let header = ChunkHeader::of(name, used_bytes, batch_count);
    let bytes = header.encode(&image[CHUNK_HEADER_BYTES..used_bytes]);
    let half = bytes[..4] == image[..4] || bytes[4..] == image[4..CHUNK_HEADER_BYTES];
    (half && check_of(&bytes) == check).then(|| {
        image[..CHUNK_HEADER_BYTES].copy_from_slice(&bytes);
        used_bytes
    })
}

enum Step {
    Next,
    /// Here is nothing that can be followed.
    Broken,
}

/// Goes through a damaged image, from one batch to the next.
struct Walk<'a> {
    image: &'a mut [u8],
    end_sequence: u64,
    /// Of the next batch.
    at: usize,
    /// Of its first message.
    sequence: u64,
    batch_count: u32,
    lost: Vec<Range<u64>>,
    /// Of whole batches: where they stand and when they were taken.
    times: Vec<(usize, u64)>,
}

impl Walk<'_> {
    /// `None` at a fragment.
    fn step(&mut self) -> Option<Step> {
        let Some(found) = Found::at(self.image, self.at) else { return Some(Step::Broken) };
        let is_whole = found.is_whole(self.image);
        if is_whole && found.header.flags & FRAGMENT != 0 {
            return None;
        }
        let is_ours = is_whole && found.prefix.base_sequence == self.sequence;
        let count = found.header.record_count;
        let next = self.sequence.checked_add(u64::from(count));
        let Some(next) = next.filter(|next| *next <= self.end_sequence) else {
            return Some(Step::Broken);
        };
        if !is_ours {
            let records_min = count as usize * RECORD_HEADER_BYTES;
            if !self.agrees(found.end, next) || records_min > found.header.records_bytes as usize {
                return Some(Step::Broken);
            }
        }
        if is_ours {
            self.times.push((self.at, found.prefix.accepted_us));
            (self.at, self.sequence) = (found.end, next);
            self.batch_count += 1;
        } else {
            self.lose(count, found.header.records_bytes as usize);
        }
        Some(Step::Next)
    }

    /// Whether the batch at `at` is readable and has this sequence, or the chunk ends with it.
    fn agrees(&self, at: usize, sequence: u64) -> bool {
        sequence == self.end_sequence
            || Found::at(self.image, at).is_some_and(|next| next.prefix.base_sequence == sequence)
    }

    /// Puts so many records without content here, the first of which fills up to `records_bytes`.
    fn lose(&mut self, count: u32, records_bytes: usize) {
        let prefix = BatchPrefix { base_sequence: self.sequence, accepted_us: 0 };
        let end = self.at + HEAD_BYTES + records_bytes;
        let (head, wire) = self.image[self.at..end].split_at_mut(BATCH_PREFIX_BYTES);
        head.copy_from_slice(&prefix.encode());
        let records = &mut wire[BATCH_HEADER_BYTES..];
        records.fill(0);
        let spare = records_bytes - count as usize * RECORD_HEADER_BYTES;
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
            records_bytes: records_bytes as u32,
            producer_sequence: 1,
            ..BatchHeader::default()
        };
        batch::seal(wire, header);
        let next = self.sequence + u64::from(count);
        match self.lost.last_mut() {
            Some(last) if last.end == self.sequence => last.end = next,
            _ => self.lost.push(self.sequence..next),
        }
        (self.at, self.sequence) = (end, next);
        self.batch_count += 1;
    }

    /// All that is left is lost. `None` if there is no room to say so, which cannot be where so
    /// many records stood.
    fn lose_rest(&mut self) -> Option<()> {
        while self.sequence < self.end_sequence {
            let left = self.end_sequence - self.sequence;
            let count = left.min(BATCH_RECORDS_MAX as u64) as u32;
            let records_bytes = count as usize * RECORD_HEADER_BYTES;
            if self.image.len() - self.at < HEAD_BYTES + records_bytes {
                return None;
            }
            self.lose(count, records_bytes);
        }
        Some(())
    }

    /// No checksum but the chunk's covers when a batch was taken. A time that is not between its
    /// neighbours', where those are in order, becomes that of the batch before.
    fn mend_times(&mut self) {
        for nth in 0..self.times.len() {
            let time = |nth: usize| self.times.get(nth).map(|(_, time)| *time);
            let (at, own) = self.times[nth];
            let before = nth.checked_sub(1).and_then(time);
            let mended = match (before, time(nth + 1), time(nth + 2)) {
                (Some(before), Some(after), _) if before <= after => {
                    if own < before || own > after { before } else { own }
                }
                (Some(before), None, _) => own.max(before),
                (None, Some(after), Some(later)) if own > after.max(later) => after,
                _ => own,
            };
            let mended = if mended > TIME_US_MAX { before.unwrap_or(0) } else { mended };
            self.times[nth].1 = mended;
            self.image[at + 8..at + BATCH_PREFIX_BYTES].copy_from_slice(&mended.to_le_bytes());
        }
    }
}

/// No batch was taken later: the year 2255. What is computed from it does not overflow.
const TIME_US_MAX: u64 = 1 << 53;

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

#[cfg(test)]
mod tests;
