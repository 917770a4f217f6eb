//! The byte format of a journal, version 1: segments of groups of records. Groups are all that is
//! ever written behind a segment's header; `change` says what a record's body
//! means.
//!
//! ```text
//! segment = | header, zeros to 4 KiB | group | group | ... | what was there before, or zeros |
//! group   = | header | record | record | ... | zeros to 4 KiB |
//! record  = | kind u8 | flags u8 | zero u16 | body_bytes u32 | body |
//!
//! Segment header:
//!  0  u32   crc32c           over bytes 4..80
//!  4  u32   magic            "FBJS"
//!  8  u16   version          1
//! 10  u16   flags            zero
//! 12  u32   reserved         zero
//! 16  [16]  store            random, one per store
//! 32  u64   epoch            one more with each opening of the journal
//! 40  u64   segment          sequence of the segment, never used twice in an epoch
//! 48  u64   end_segment      where the log ended when this segment was opened: in which segment
//! 56  u64   end_group        one past the last group's sequence
//! 64  u64   end_offset       one past the last group's bytes in its segment
//! 72  u64   needed           sequence of the first group that was still needed
//!
//! Group header:
//!  0  u32   crc32c           over bytes 4..72 and the records
//!  4  u32   magic            "FBJG"
//!  8  u16   version          1
//! 10  u16   flags            zero
//! 12  u32   payload_bytes    of the records
//! 16  [16]  store            as in the segment header, and so are the next two
//! 32  u64   epoch
//! 40  u64   segment
//! 48  u64   group            sequence of the group, in one row over all segments and epochs
//! 56  u64   synced           the last group that was synced, with all before it, by then; or 0
//! 64  u32   page             where in the segment, in units of 4 KiB
//! 68  u32   record_count
//! ```
//!
//! Numbers are little endian. A group says where it stands, so that neither what a recycled segment
//! held before nor a copy of a group inside of a message can be taken for one. In every version the
//! checksum stands and reaches where it does here, so that a version that is not known can be told
//! from damage.

use crate::base::checksum::crc32c;
use crate::base::pages::Pages;
use crate::format::{u16_at, u32_at, u64_at};
use crate::limits::{
    DISK_ALIGN_BYTES, JOURNAL_BODY_BYTES_MAX, JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_HEADER_BYTES,
    JOURNAL_RECORD_HEADER_BYTES, JOURNAL_SEGMENT_HEADER_BYTES,
};

/// "FBJS", little endian.
pub const SEGMENT_MAGIC: u32 = u32::from_le_bytes(*b"FBJS");
/// "FBJG", little endian.
pub const GROUP_MAGIC: u32 = u32::from_le_bytes(*b"FBJG");
/// Version of the journal's layout.
pub const VERSION: u16 = 1;

/// Flag of a record: it says again what was said before, so that the segments of that can go.
pub const CARRIED: u8 = 1;
/// Flag of a [`RecordKind::Publish`]: the message came by a move, whose name stands in the body.
pub const MOVED: u8 = 2;
/// Flag of a [`RecordKind::Publish`]: one fragment of a large message; the body says which.
pub const FRAGMENT: u8 = 4;

/// Which store a journal is of: random bytes, given when the store is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreId(pub [u8; 16]);

/// What a record's body is. The journal itself does not look into bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// Batches that a queue has taken, by a publish or a move.
    Publish = 1,
    /// Ranges of sequences that a subscription is done with, for whatever reason.
    Acks = 2,
    /// Failed attempts of a subscription's messages.
    Attempts = 3,
    /// A queue, its options and where it is.
    Queue = 4,
    /// A queue was deleted.
    QueueDeleted = 5,
    /// A subscription, its options and where it is.
    Subscription = 6,
    /// A subscription was deleted.
    SubscriptionDeleted = 7,
    /// Where producers are in their sequences.
    Producers = 8,
    /// Moves to a queue that their sources have settled: it may forget them.
    MovesSettled = 9,
    /// Moves to a queue that are not settled yet, whatever became of their messages.
    Moves = 10,
}

impl RecordKind {
    /// The kind with this number; `None` if this version knows none.
    pub fn from_number(number: u8) -> Option<RecordKind> {
        use RecordKind::*;
        let all = [
            Publish,
            Acks,
            Attempts,
            Queue,
            QueueDeleted,
            Subscription,
            SubscriptionDeleted,
            Producers,
            MovesSettled,
            Moves,
        ];
        all.into_iter().find(|&kind| kind as u8 == number)
    }
}

/// One record of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// A [`RecordKind`], or what a later program may have written; never 0.
    pub kind: u8,
    /// [`CARRIED`], [`MOVED`] and [`FRAGMENT`], or what a later program may have written.
    pub flags: u8,
    /// As it was appended.
    pub body: &'a [u8],
}

/// Writes a record behind what `group` holds; its body is all of the parts.
///
/// # Panics
/// If the kind is 0 or the body does not fit any group.
pub fn encode_record(kind: u8, flags: u8, body: &[&[u8]], group: &mut Pages) {
    let body_bytes: usize = body.iter().map(|part| part.len()).sum();
    assert!(kind != 0, "all-zero bytes are no record");
    assert!(body_bytes <= JOURNAL_BODY_BYTES_MAX, "a record fits a group");
    group.extend_from_slice(&[kind, flags, 0, 0]);
    group.extend_from_slice(&(body_bytes as u32).to_le_bytes());
    body.iter().for_each(|part| group.extend_from_slice(part));
}

/// Why bytes are not a segment header or not a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Shorter than a header, or than the header says; or longer than anything may be.
    #[error("{actual} bytes where {expected} are needed")]
    Length {
        /// What is needed.
        expected: usize,
        /// What there is.
        actual: usize,
    },
    /// The magic is another: never written, or overwritten.
    #[error("nothing of a journal: magic {0:#010x}")]
    Magic(u32),
    /// Whole, but of a version that this program does not know.
    #[error("journal version {0} is not supported, only 1")]
    Version(u16),
    /// A group of another store or epoch, segment or page: what stood there before.
    #[error("a group of epoch {epoch}, segment {segment}, page {page}, or of another store")]
    Another {
        /// The epoch that it names.
        epoch: u64,
        /// The segment that it names.
        segment: u64,
        /// The page that it names.
        page: u32,
    },
    /// The checksum does not match the bytes.
    #[error("checksum {actual:#010x} where the header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        actual: u32,
    },
    /// A record is longer than its group, or has kind 0.
    #[error("record {0} of the group is none")]
    Record(u32),
    /// Fields that contradict each other, or reserved bytes that are not zero.
    #[error("the header contradicts itself")]
    Contradiction,
}

/// Where a log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogEnd {
    /// The segment that was the last; 0 before the first.
    pub segment: u64,
    /// One past the sequence of the last group, which counts from 1.
    pub group: u64,
    /// One past its bytes, from the segment's start.
    pub offset: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of which store.
    pub store: StoreId,
    /// Counts openings of the journal, from 1.
    pub epoch: u64,
    /// Sequence of the segment, from 1.
    pub segment: u64,
    /// Where the log ended before this segment.
    pub end: LogEnd,
    /// Sequence of the first group that was needed when the segment was opened.
    pub needed: u64,
}

impl SegmentHeader {
    /// Writes the header into `pages`, which then hold the one block that it fills.
    pub fn encode(&self, pages: &mut Pages) {
        pages.clear();
        pages.resize(DISK_ALIGN_BYTES);
        let block = pages.as_mut_slice();
        block[4..8].copy_from_slice(&SEGMENT_MAGIC.to_le_bytes());
        block[8..10].copy_from_slice(&VERSION.to_le_bytes());
        block[16..32].copy_from_slice(&self.store.0);
        block[32..40].copy_from_slice(&self.epoch.to_le_bytes());
        block[40..48].copy_from_slice(&self.segment.to_le_bytes());
        block[48..56].copy_from_slice(&self.end.segment.to_le_bytes());
        block[56..64].copy_from_slice(&self.end.group.to_le_bytes());
        block[64..72].copy_from_slice(&self.end.offset.to_le_bytes());
        block[72..80].copy_from_slice(&self.needed.to_le_bytes());
        let crc = crc32c(&block[4..JOURNAL_SEGMENT_HEADER_BYTES]);
        block[0..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads and checks the header of a segment; what is behind it is not looked at.
    ///
    /// # Errors
    /// Why it is none.
    pub fn decode(image: &[u8]) -> Result<SegmentHeader, JournalError> {
        let expected = JOURNAL_SEGMENT_HEADER_BYTES;
        let Some(bytes) = image.first_chunk::<JOURNAL_SEGMENT_HEADER_BYTES>() else {
            return Err(JournalError::Length { expected, actual: image.len() });
        };
        if u32_at(bytes, 4) != SEGMENT_MAGIC {
            return Err(JournalError::Magic(u32_at(bytes, 4)));
        }
        check(u32_at(bytes, 0), &bytes[4..])?;
        if u16_at(bytes, 8) != VERSION {
            return Err(JournalError::Version(u16_at(bytes, 8)));
        }
        let (segment, group, offset) = (u64_at(bytes, 48), u64_at(bytes, 56), u64_at(bytes, 64));
        let header = SegmentHeader {
            store: store_at(bytes, 16),
            epoch: u64_at(bytes, 32),
            segment: u64_at(bytes, 40),
            end: LogEnd { segment, group, offset },
            needed: u64_at(bytes, 72),
        };
        let is_sound = header.epoch != 0
            && header.segment > segment
            && (1..=group).contains(&header.needed)
            && group < SEQUENCE_END
            && header.segment < SEQUENCE_END
            && header.epoch < SEQUENCE_END
            && u16_at(bytes, 10) == 0
            && u32_at(bytes, 12) == 0;
        if is_sound { Ok(header) } else { Err(JournalError::Contradiction) }
    }
}

/// No sequence comes near it, so that counting on from one that was read never wraps.
const SEQUENCE_END: u64 = u64::MAX / 2;

/// Where a group stands, and so what its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPlace {
    /// Of which store.
    pub store: StoreId,
    /// In which epoch it was written.
    pub epoch: u64,
    /// In which segment.
    pub segment: u64,
    /// Where there, in units of [`DISK_ALIGN_BYTES`].
    pub page: u32,
}

impl GroupPlace {
    /// What the header at the front of `image` says, be it one or not; `None` if it is none of
    /// `store`, or too short.
    pub(crate) fn read_unchecked(image: &[u8], store: StoreId) -> Option<GroupPlace> {
        let bytes = image.first_chunk::<JOURNAL_GROUP_HEADER_BYTES>()?;
        let is_ours = u32_at(bytes, 4) == GROUP_MAGIC && store_at(bytes, 16) == store;
        let (epoch, segment) = (u64_at(bytes, 32), u64_at(bytes, 40));
        is_ours.then(|| GroupPlace { store, epoch, segment, page: u32_at(bytes, 64) })
    }
}

/// A group that was checked as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group<'a> {
    /// Where it stands in its segment, in units of [`DISK_ALIGN_BYTES`].
    pub page: u32,
    /// Sequence of the group.
    pub group: u64,
    /// The last group that was synced, with all before it, when this was written.
    pub synced: u64,
    /// How many records.
    pub record_count: u32,
    records: &'a [u8],
}

impl<'a> Group<'a> {
    /// Reads and checks the group at the front of `image`; it must say that it stands at `place`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn decode(image: &'a [u8], place: &GroupPlace) -> Result<Group<'a>, JournalError> {
        let header_bytes = JOURNAL_GROUP_HEADER_BYTES;
        let Some(bytes) = image.first_chunk::<JOURNAL_GROUP_HEADER_BYTES>() else {
            return Err(JournalError::Length { expected: header_bytes, actual: image.len() });
        };
        if u32_at(bytes, 4) != GROUP_MAGIC {
            return Err(JournalError::Magic(u32_at(bytes, 4)));
        }
        if GroupPlace::read_unchecked(bytes, place.store).as_ref() != Some(place) {
            let (epoch, segment, page) = (u64_at(bytes, 32), u64_at(bytes, 40), u32_at(bytes, 64));
            return Err(JournalError::Another { epoch, segment, page });
        }
        let used = header_bytes.saturating_add(u32_at(bytes, 12) as usize);
        if used > image.len().min(JOURNAL_GROUP_BYTES_MAX) {
            return Err(JournalError::Length { expected: used, actual: image.len() });
        }
        check(u32_at(bytes, 0), &image[4..used])?;
        if u16_at(bytes, 8) != VERSION {
            return Err(JournalError::Version(u16_at(bytes, 8)));
        }
        let group = Group {
            page: place.page,
            group: u64_at(bytes, 48),
            synced: u64_at(bytes, 56),
            record_count: u32_at(bytes, 68),
            records: &image[header_bytes..used],
        };
        if u16_at(bytes, 10) != 0
            || group.group <= group.synced
            || group.group >= SEQUENCE_END
            || group.record_count == 0
        {
            return Err(JournalError::Contradiction);
        }
        group.check_records()?;
        Ok(group)
    }

    /// Bytes on disk, padding included.
    pub fn image_bytes(&self) -> usize {
        group_image_bytes(JOURNAL_GROUP_HEADER_BYTES + self.records.len())
    }

    /// The records, in the order they were appended.
    pub fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        let mut rest = self.records;
        std::iter::from_fn(move || {
            let (record, behind) = split_record(rest)?;
            rest = behind;
            Some(record)
        })
    }

    fn check_records(&self) -> Result<(), JournalError> {
        let mut rest = self.records;
        for nth in 0..self.record_count {
            (_, rest) = split_record(rest).ok_or(JournalError::Record(nth))?;
        }
        if rest.is_empty() { Ok(()) } else { Err(JournalError::Contradiction) }
    }
}

/// Makes a group of `pages`, which have room for the header and then the records: writes the header
/// and pads with zeros.
///
/// # Panics
/// If there is no record, or more than a group may hold.
pub fn seal_group(
    pages: &mut Pages,
    place: &GroupPlace,
    group: u64,
    synced: u64,
    record_count: u32,
) {
    let used = pages.len();
    assert!(used > JOURNAL_GROUP_HEADER_BYTES && used <= JOURNAL_GROUP_BYTES_MAX);
    assert!(synced < group && record_count > 0);
    let image = pages.as_mut_slice();
    image[0..16].fill(0);
    image[4..8].copy_from_slice(&GROUP_MAGIC.to_le_bytes());
    image[8..10].copy_from_slice(&VERSION.to_le_bytes());
    image[12..16].copy_from_slice(&((used - JOURNAL_GROUP_HEADER_BYTES) as u32).to_le_bytes());
    image[16..32].copy_from_slice(&place.store.0);
    image[32..40].copy_from_slice(&place.epoch.to_le_bytes());
    image[40..48].copy_from_slice(&place.segment.to_le_bytes());
    image[48..56].copy_from_slice(&group.to_le_bytes());
    image[56..64].copy_from_slice(&synced.to_le_bytes());
    image[64..68].copy_from_slice(&place.page.to_le_bytes());
    image[68..72].copy_from_slice(&record_count.to_le_bytes());
    let crc = crc32c(&image[4..]);
    image[0..4].copy_from_slice(&crc.to_le_bytes());
    pages.pad();
}

/// Bytes on disk of a group whose header and records take `used` bytes.
pub fn group_image_bytes(used: usize) -> usize {
    used.next_multiple_of(DISK_ALIGN_BYTES)
}

/// The first record, and what is behind it.
fn split_record(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (header, rest) = bytes.split_at_checked(JOURNAL_RECORD_HEADER_BYTES)?;
    let (body, rest) = rest.split_at_checked(u32_at(header, 4) as usize)?;
    let is_sound = header[0] != 0 && u16_at(header, 2) == 0;
    is_sound.then_some((Record { kind: header[0], flags: header[1], body }, rest))
}

fn check(expected: u32, bytes: &[u8]) -> Result<(), JournalError> {
    let actual = crc32c(bytes);
    if actual == expected { Ok(()) } else { Err(JournalError::Checksum { expected, actual }) }
}

/// The caller has checked that it is there.
fn store_at(bytes: &[u8], at: usize) -> StoreId {
    StoreId(bytes[at..at + 16].try_into().expect("sixteen bytes"))
}

#[cfg(test)]
mod tests;
