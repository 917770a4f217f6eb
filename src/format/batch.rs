//! A batch: what a producer sends in one publish, what a chunk holds, what a delivery is cut from.
//!
//! ```text
//! prefix, written by the broker, in chunks only
//!  0  u64  base_sequence       of the first record in the queue's log
//!  8  u64  accepted_us         wall clock when the broker took it
//! header, written by the producer; first on the wire
//!  0  u32  crc32c              over everything behind it: header from byte 4, and the records
//!  4  u16  magic               0xFB0A
//!  6  u8   version             1
//!  7  u8   priority            higher is delivered first
//!  8  u16  flags
//! 10  u16  reserved, zero
//! 12  u32  record_count
//! 16  u32  records_bytes
//! 20  u32  reserved, zero
//! 24  u64  producer_id         0: anonymous
//! 32  u64  producer_sequence   of the first record; the first of a producer is 1
//! 40       records
//! ```
//!
//! All-zero bytes never decode, for the magic is not zero.

use crate::base::checksum::crc32c;
use crate::format::record::{self, RecordHeader, Records};
use crate::format::{properties, u16_at, u32_at, u64_at};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, BATCH_RECORDS_BYTES_MAX, BATCH_RECORDS_MAX,
    RECORD_HEADER_BYTES,
};

/// Marks a batch header.
pub const MAGIC: u16 = 0xFB0A;
/// Version of the batch and record layout.
pub const VERSION: u8 = 1;
/// Where `records_bytes` stands in the header, for who walks batches that were checked.
pub(crate) const RECORDS_BYTES_AT: usize = 16;
/// The batch holds one fragment of a message that is too large for one record.
pub const FRAGMENT: u16 = 1;
/// All flags of this version; others are refused.
pub const FLAGS_KNOWN: u16 = FRAGMENT;

/// Why bytes are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Shorter than a header, or than the header says.
    #[error("the batch has {actual} bytes where its header says {expected}")]
    Length {
        /// What the header says, or the size of a header.
        expected: usize,
        /// What there is.
        actual: usize,
    },
    /// The magic is another.
    #[error("not a batch: magic {0:#06x} instead of 0xfb0a")]
    Magic(u16),
    /// A version that this program does not know.
    #[error("batch version {0} is not supported, only 1")]
    Version(u8),
    /// Unknown flags or reserved bytes that are not zero.
    #[error("unknown flags or reserved bytes in a batch or record header")]
    Reserved,
    /// No record, or more than [`BATCH_RECORDS_MAX`].
    #[error("a batch holds 1 to {BATCH_RECORDS_MAX} records, not {0}")]
    RecordCount(u32),
    /// More than [`BATCH_RECORDS_BYTES_MAX`] bytes of records.
    #[error("a batch holds at most {BATCH_RECORDS_BYTES_MAX} bytes of records, not {0}")]
    RecordsBytes(u32),
    /// The checksum does not match the bytes.
    #[error("the batch's checksum is {actual:#010x} where its header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        actual: u32,
    },
    /// The records do not fill the batch as the header counts them.
    #[error("the records disagree with the header: {0}")]
    Records(&'static str),
    /// A properties block that is damaged.
    #[error(transparent)]
    Properties(#[from] properties::PropertiesError),
}

/// The producer's header of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchHeader {
    /// Checksum over all that follows it.
    pub crc32c: u32,
    /// Higher is delivered first.
    pub priority: u8,
    /// See [`FRAGMENT`].
    pub flags: u16,
    /// Records in the batch.
    pub record_count: u32,
    /// Their bytes.
    pub records_bytes: u32,
    /// 0: anonymous.
    pub producer_id: u64,
    /// Of the first record.
    pub producer_sequence: u64,
}

impl BatchHeader {
    /// Reads and checks a header, not what stands behind it.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(bytes) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
            return Err(BatchError::Length { expected: BATCH_HEADER_BYTES, actual: bytes.len() });
        };
        if u16_at(bytes, 4) != MAGIC {
            return Err(BatchError::Magic(u16_at(bytes, 4)));
        }
        if bytes[6] != VERSION {
            return Err(BatchError::Version(bytes[6]));
        }
        let header = BatchHeader {
            crc32c: u32_at(bytes, 0),
            priority: bytes[7],
            flags: u16_at(bytes, 8),
            record_count: u32_at(bytes, 12),
            records_bytes: u32_at(bytes, RECORDS_BYTES_AT),
            producer_id: u64_at(bytes, 24),
            producer_sequence: u64_at(bytes, 32),
        };
        if header.flags & !FLAGS_KNOWN != 0 || u16_at(bytes, 10) != 0 || u32_at(bytes, 20) != 0 {
            return Err(BatchError::Reserved);
        }
        if header.record_count == 0 || header.record_count as usize > BATCH_RECORDS_MAX {
            return Err(BatchError::RecordCount(header.record_count));
        }
        if header.records_bytes as usize > BATCH_RECORDS_BYTES_MAX {
            return Err(BatchError::RecordsBytes(header.records_bytes));
        }
        Ok(header)
    }

    /// The header as bytes, with its checksum as it stands in `crc32c`.
    pub fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.crc32c.to_le_bytes());
        bytes[4..6].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[6] = VERSION;
        bytes[7] = self.priority;
        bytes[8..10].copy_from_slice(&self.flags.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.records_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.producer_id.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.producer_sequence.to_le_bytes());
        bytes
    }

    /// Bytes of the batch on the wire.
    pub fn wire_bytes(&self) -> usize {
        BATCH_HEADER_BYTES + self.records_bytes as usize
    }
}

/// The broker's prefix of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchPrefix {
    /// Sequence of the first record.
    pub base_sequence: u64,
    /// Wall clock in microseconds.
    pub accepted_us: u64,
}

impl BatchPrefix {
    /// Reads a prefix; the caller has checked that it is there.
    #[inline]
    pub fn decode(bytes: &[u8]) -> BatchPrefix {
        BatchPrefix { base_sequence: u64_at(bytes, 0), accepted_us: u64_at(bytes, 8) }
    }

    /// The prefix as bytes.
    #[inline]
    pub fn encode(&self) -> [u8; BATCH_PREFIX_BYTES] {
        let mut bytes = [0; BATCH_PREFIX_BYTES];
        bytes[0..8].copy_from_slice(&self.base_sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.accepted_us.to_le_bytes());
        bytes
    }
}

/// A batch behind its prefix, in place; only its header is checked.
#[derive(Clone, Copy, Debug)]
pub struct PrefixedBatch<'a> {
    /// The broker's prefix.
    pub prefix: BatchPrefix,
    /// The producer's header.
    pub header: BatchHeader,
    /// Prefix, header and records.
    pub bytes: &'a [u8],
}

impl<'a> PrefixedBatch<'a> {
    /// Header and records: the batch as its producer sent it.
    pub fn wire(&self) -> &'a [u8] {
        &self.bytes[BATCH_PREFIX_BYTES..]
    }

    /// Whether its own checksum is right.
    pub fn is_whole(&self) -> bool {
        crc32c(&self.wire()[4..]) == self.header.crc32c
    }
}

/// Walks batches that stand one behind the other, each behind its prefix; stops at the end, or at
/// the first whose header is none or which is not all there.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Batches<'a> {
    /// Walks `bytes`, which should hold whole batches only.
    pub fn new(bytes: &'a [u8]) -> Self {
        Batches { rest: bytes }
    }

    /// What has not been walked. Empty after the last batch; not empty after damage.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = PrefixedBatch<'a>;

    fn next(&mut self) -> Option<PrefixedBatch<'a>> {
        let (prefix, wire) = self.rest.split_at_checked(BATCH_PREFIX_BYTES)?;
        let prefix = BatchPrefix::decode(prefix);
        let header = BatchHeader::decode(wire).ok()?;
        let bytes;
        (bytes, self.rest) =
            self.rest.split_at_checked(BATCH_PREFIX_BYTES + header.wire_bytes())?;
        Some(PrefixedBatch { prefix, header, bytes })
    }
}

/// A batch as a producer sends it, wholly checked.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Its header.
    pub header: BatchHeader,
    /// Header and records.
    pub wire: &'a [u8],
    /// Bodies together.
    pub body_bytes: u64,
    /// Flags of all records, or-ed.
    pub record_flags: u16,
    /// Known tags that concern the broker, of all records, as a bit set by tag number.
    pub broker_tags: u32,
}

impl<'a> Batch<'a> {
    /// Checks all of `wire`: lengths, checksum, each record's sizes, flags, sequence, properties.
    pub fn decode(wire: &'a [u8]) -> Result<Batch<'a>, BatchError> {
        let header = BatchHeader::decode(wire)?;
        if wire.len() != header.wire_bytes() {
            return Err(BatchError::Length { expected: header.wire_bytes(), actual: wire.len() });
        }
        let actual = crc32c(&wire[4..]);
        if actual != header.crc32c {
            return Err(BatchError::Checksum { expected: header.crc32c, actual });
        }
        let mut batch = Batch { header, wire, body_bytes: 0, record_flags: 0, broker_tags: 0 };
        batch.check_records()?;
        Ok(batch)
    }

    /// The records' bytes.
    pub fn records(&self) -> &'a [u8] {
        &self.wire[BATCH_HEADER_BYTES..]
    }

    fn check_records(&mut self) -> Result<(), BatchError> {
        let first = self.header.producer_sequence;
        if first == 0 || first.checked_add(u64::from(self.header.record_count)).is_none() {
            return Err(BatchError::Records("producer sequences count up from 1 and never wrap"));
        }
        let mut records = Records::new(self.records());
        let mut count = 0;
        for record in &mut records {
            if record.header.sequence_delta != count {
                return Err(BatchError::Records("sequence deltas must count up from 0"));
            }
            count += 1;
            if record.header.time_delta_ms != 0 {
                return Err(BatchError::Records("time deltas are the broker's and must be 0"));
            }
            self.body_bytes += u64::from(record.header.body_bytes);
            self.record_flags |= record.header.flags;
            if record.header.properties_bytes != 0 {
                let tags = properties::check(record.properties)?;
                if tags != 0 && record.header.flags & record::BROKER_PROPERTIES == 0 {
                    return Err(BatchError::Records("a property for the broker without its flag"));
                }
                self.broker_tags |= tags;
            }
        }
        if !records.rest().is_empty() {
            return Err(BatchError::Records("a record reaches past the end of the batch"));
        }
        if count != self.header.record_count {
            return Err(BatchError::Records("another number of records than the header counts"));
        }
        if self.record_flags & !record::FLAGS_KNOWN != 0 {
            return Err(BatchError::Reserved);
        }
        let fragment = self.header.flags & FRAGMENT != 0;
        let marks = record::FRAGMENT_FIRST | record::FRAGMENT_LAST;
        if fragment && count != 1 {
            return Err(BatchError::Records("a fragment's batch holds one record"));
        }
        if !fragment && self.record_flags & marks != 0 {
            return Err(BatchError::Records("fragment marks in a batch that is none"));
        }
        Ok(())
    }
}

/// Fills a batch record by record. The bytes are ready to send after [`BatchBuilder::finish`].
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    /// Header room, then records.
    bytes: Vec<u8>,
    record_count: u32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        BatchBuilder { bytes: vec![0; BATCH_HEADER_BYTES], record_count: 0 }
    }
}

impl BatchBuilder {
    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Bytes so far, header included.
    pub fn wire_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a record with so many bytes of properties and body still fits.
    #[inline]
    pub fn fits(&self, content_bytes: usize) -> bool {
        (self.record_count as usize) < BATCH_RECORDS_MAX
            && self.bytes.len() - BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + content_bytes
                <= BATCH_RECORDS_BYTES_MAX
    }

    /// Adds a record.
    ///
    /// # Panics
    /// If it does not fit: callers ask [`BatchBuilder::fits`] first.
    #[inline]
    pub fn push(&mut self, flags: u16, properties: &[u8], body: &[u8]) {
        assert!(self.fits(properties.len() + body.len()), "a record that does not fit the batch");
        let header = RecordHeader {
            body_bytes: body.len() as u32,
            properties_bytes: properties.len() as u16,
            flags,
            sequence_delta: self.record_count,
            time_delta_ms: 0,
        };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(properties);
        self.bytes.extend_from_slice(body);
        self.record_count += 1;
    }

    /// Writes the header and gives the whole batch. More records may follow; then finish again.
    pub fn finish(&mut self, flags: u16, producer_id: u64, producer_sequence: u64) -> &[u8] {
        let header = BatchHeader {
            crc32c: 0,
            priority: 0,
            flags,
            record_count: self.record_count,
            records_bytes: (self.bytes.len() - BATCH_HEADER_BYTES) as u32,
            producer_id,
            producer_sequence,
        };
        seal(&mut self.bytes, header);
        &self.bytes
    }

    /// Starts anew, keeping the memory.
    pub fn clear(&mut self) {
        self.bytes.truncate(BATCH_HEADER_BYTES);
        self.record_count = 0;
    }
}

/// Writes `header` with its checksum over the front of `wire`, which holds room for it and the
/// records behind.
pub fn seal(wire: &mut [u8], header: BatchHeader) {
    wire[..BATCH_HEADER_BYTES].copy_from_slice(&header.encode());
    let crc = crc32c(&wire[4..]);
    wire[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Cuts records `skip..skip + take` out of a checked batch into `into`, as a batch of its own:
/// deltas count from 0 again, producer sequence and checksum follow. For the rare batch that fits
/// only in part.
///
/// # Panics
/// If the batch has not so many records.
pub fn cut(batch: &Batch<'_>, skip: u32, take: u32, into: &mut Vec<u8>) {
    assert!(take > 0 && skip + take <= batch.header.record_count);
    into.clear();
    into.resize(BATCH_HEADER_BYTES, 0);
    let records = Records::new(batch.records()).skip(skip as usize).take(take as usize);
    for (nth, record) in records.enumerate() {
        let header = RecordHeader { sequence_delta: nth as u32, ..record.header };
        into.extend_from_slice(&header.encode());
        into.extend_from_slice(record.properties);
        into.extend_from_slice(record.body);
    }
    let header = BatchHeader {
        record_count: take,
        records_bytes: (into.len() - BATCH_HEADER_BYTES) as u32,
        producer_sequence: batch.header.producer_sequence + u64::from(skip),
        ..batch.header
    };
    seal(into, header);
}
