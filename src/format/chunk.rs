//! The header of a chunk: what makes it self-describing once it leaves memory.
//!
//! ```text
//!  0  u32  crc32c           over bytes 4..64 and the CRC32C of what follows, to `used_bytes`
//!  4  u32  magic            "FBCK"
//!  8  u16  version          1
//! 10  u16  flags, zero
//! 12  u32  used_bytes       header and batches, without the padding
//! 16  u64  queue            number of the queue in its store
//! 24  u64  first_sequence
//! 32  u64  end_sequence     one past the last
//! 40  u32  batch_count
//! 44  u32  heads_sum        of the CRC32C of each batch's head, which is its prefix and header
//! 48  u64  chunk            ordinal of the chunk in its log
//! 56  u64  heads_weighted   of the same, each times its place, counted from 1
//! ```
//!
//! The two sums wrap around. They say of every batch that it was written as part of this image,
//! where the chunk's own checksum no longer can, and they say which one is not, if it is one.

use crate::base::checksum::crc32c;
use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::format::batch::RECORDS_BYTES_AT;
use crate::format::{u16_at, u32_at, u64_at};
use crate::limits::{BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES};

/// "FBCK", little endian.
pub const MAGIC: u32 = u32::from_le_bytes(*b"FBCK");
/// Version of the chunk layout.
pub const VERSION: u16 = 1;

/// Why an image is not a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Shorter than a header, or than the header says.
    #[error("the chunk's image has {actual} bytes where {expected} are needed")]
    Length {
        /// What is needed.
        expected: usize,
        /// What there is.
        actual: usize,
    },
    /// The magic is another: never written, or overwritten.
    #[error("not a chunk: magic {0:#010x}")]
    Magic(u32),
    /// A version that this program does not know.
    #[error("chunk version {0} is not supported, only 1")]
    Version(u16),
    /// The checksum does not match the bytes.
    #[error("the chunk's checksum is {actual:#010x} where its header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        actual: u32,
    },
    /// Fields that contradict each other, or flags that are not zero.
    #[error("the chunk's header contradicts itself")]
    Contradiction,
}

/// Which chunk an image is of: what its reader knows before it reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkName {
    /// The queue's number in its store.
    pub queue: u64,
    /// Ordinal of the chunk in its log.
    pub chunk: u64,
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// One past the sequence of the last.
    pub end_sequence: u64,
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Header and batches.
    pub used_bytes: u32,
    /// The queue's number in its store.
    pub queue: u64,
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// One past the sequence of the last.
    pub end_sequence: u64,
    /// Batches in the chunk.
    pub batch_count: u32,
    /// Ordinal of the chunk in its log.
    pub chunk: u64,
    /// Of the batches.
    pub heads: Heads,
}

/// Sums over the heads of a chunk's batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// Of the CRC32C of each.
    pub sum: u32,
    /// Of each times its place, counted from 1.
    pub weighted: u64,
}

impl Heads {
    /// Of heads with these checksums, in order.
    pub fn of(crcs: impl IntoIterator<Item = u32>) -> Heads {
        crcs.into_iter().zip(1..).fold(Heads::default(), |heads, (crc, place)| Heads {
            sum: heads.sum.wrapping_add(crc),
            weighted: heads.weighted.wrapping_add(u64::from(crc).wrapping_mul(place)),
        })
    }

    /// Which of the heads that are there is another, if these are the sums of what was written.
    pub(crate) fn odd_one(&self, there: &[u32]) -> OddOne {
        let sums = Heads::of(there.iter().copied());
        if sums == *self {
            return OddOne::None;
        }
        // What one must have been follows from the first sum, and the second says whether it was.
        let is_odd = |&(crc, place): &(u32, u64)| {
            let own = self.sum.wrapping_sub(sums.sum).wrapping_add(crc);
            let others = sums.weighted.wrapping_sub(u64::from(crc).wrapping_mul(place));
            others.wrapping_add(u64::from(own).wrapping_mul(place)) == self.weighted
        };
        let odd = there.iter().copied().zip(1..).position(|head| is_odd(&head));
        odd.map_or(OddOne::Several, OddOne::At)
    }
}

/// Which head of a chunk is another than was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OddOne {
    /// All are what was written.
    None,
    /// This one, and no other.
    At(usize),
    /// Nobody knows which.
    Several,
}

/// Checksum of the head of the batch whose prefix is at `at`.
///
/// # Panics
/// If it does not end inside `bytes`.
pub(crate) fn head_crc(bytes: &[u8], at: usize) -> u32 {
    crc32c(&bytes[at..at + BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES])
}

impl ChunkHeader {
    /// A header of what `name` says, before these batches.
    ///
    /// # Panics
    /// If they are not whole batches, each behind its prefix.
    pub fn of(name: ChunkName, batches: &[u8]) -> ChunkHeader {
        let ChunkName { queue, chunk, first_sequence, end_sequence } = name;
        let used_bytes = (CHUNK_HEADER_BYTES + batches.len()) as u32;
        let (mut batch_count, mut at) = (0, 0);
        let heads = Heads::of(std::iter::from_fn(|| {
            if at == batches.len() {
                return None;
            }
            let crc = head_crc(batches, at);
            let records_bytes = u32_at(batches, at + BATCH_PREFIX_BYTES + RECORDS_BYTES_AT);
            at += BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES + records_bytes as usize;
            assert!(at <= batches.len(), "a chunk is filled with whole batches");
            batch_count += 1;
            Some(crc)
        }));
        ChunkHeader { used_bytes, queue, first_sequence, end_sequence, batch_count, chunk, heads }
    }

    /// Which chunk it is.
    pub fn name(&self) -> ChunkName {
        let &ChunkHeader { queue, chunk, first_sequence, end_sequence, .. } = self;
        ChunkName { queue, chunk, first_sequence, end_sequence }
    }

    /// The header as bytes, with the checksum over itself and `batches`.
    ///
    /// # Panics
    /// If `used_bytes` is not the header and `batches` together.
    pub fn encode(&self, batches: &[u8]) -> [u8; CHUNK_HEADER_BYTES] {
        assert_eq!(self.used_bytes as usize, CHUNK_HEADER_BYTES + batches.len());
        let mut bytes = [0; CHUNK_HEADER_BYTES];
        bytes[4..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.used_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.queue.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first_sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.end_sequence.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.batch_count.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.heads.sum.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.chunk.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.heads.weighted.to_le_bytes());
        let crc = checksum(&bytes, batches);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What stands in the fields of a header, be it one or not.
    ///
    /// # Panics
    /// If the image is shorter than a header.
    pub(crate) fn read_unchecked(image: &[u8]) -> ChunkHeader {
        ChunkHeader {
            used_bytes: u32_at(image, 12),
            queue: u64_at(image, 16),
            first_sequence: u64_at(image, 24),
            end_sequence: u64_at(image, 32),
            batch_count: u32_at(image, 40),
            chunk: u64_at(image, 48),
            heads: Heads { sum: u32_at(image, 44), weighted: u64_at(image, 56) },
        }
    }

    /// Reads and checks a whole image; padding behind `used_bytes` is not looked at.
    pub fn decode(image: &[u8]) -> Result<ChunkHeader, ChunkError> {
        let Some(bytes) = image.first_chunk::<CHUNK_HEADER_BYTES>() else {
            return Err(ChunkError::Length { expected: CHUNK_HEADER_BYTES, actual: image.len() });
        };
        if u32_at(bytes, 4) != MAGIC {
            return Err(ChunkError::Magic(u32_at(bytes, 4)));
        }
        if u16_at(bytes, 8) != VERSION {
            return Err(ChunkError::Version(u16_at(bytes, 8)));
        }
        let header = ChunkHeader::read_unchecked(bytes);
        let used = header.used_bytes as usize;
        if used < CHUNK_HEADER_BYTES || used > image.len() {
            return Err(ChunkError::Length { expected: used, actual: image.len() });
        }
        let expected = u32_at(bytes, 0);
        let actual = checksum(bytes, &image[CHUNK_HEADER_BYTES..used]);
        if actual != expected {
            return Err(ChunkError::Checksum { expected, actual });
        }
        if u16_at(bytes, 10) != 0 || header.first_sequence > header.end_sequence {
            return Err(ChunkError::Contradiction);
        }
        Ok(header)
    }
}

/// Ends the filling of a chunk: writes its header, with what `name` says and the count, the bytes,
/// sums and the checksum of the batches in it, and zeroes the padding. Then its image can go to
/// disk.
///
/// # Panics
/// If what it is filled with are not whole batches, each behind its prefix.
pub fn seal(writer: ChunkWriter, name: ChunkName) -> SealedChunk {
    let batches = writer.slice(CHUNK_HEADER_BYTES..writer.filled_bytes());
    let bytes = ChunkHeader::of(name, batches).encode(batches);
    writer.seal(&bytes, DISK_ALIGN_BYTES)
}

/// Over the header behind its checksum, then the checksum of the batches: so that neither needs to
/// be copied next to the other.
fn checksum(header: &[u8; CHUNK_HEADER_BYTES], batches: &[u8]) -> u32 {
    let mut tail = [0; CHUNK_HEADER_BYTES];
    tail[..CHUNK_HEADER_BYTES - 4].copy_from_slice(&header[4..]);
    tail[CHUNK_HEADER_BYTES - 4..].copy_from_slice(&crc32c(batches).to_le_bytes());
    crc32c(&tail)
}
