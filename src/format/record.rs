//! A record: one message, or one fragment of a message too large for a batch.
//!
//! ```text
//!  0  u32  body_bytes
//!  4  u16  properties_bytes
//!  6  u16  flags
//!  8  u32  sequence_delta   from the batch's base sequence (and producer sequence)
//! 12  u32  time_delta_ms    from the batch's time accepted; 0 from a producer
//! 16       properties, then body
//! ```

use crate::format::{u16_at, u32_at};
use crate::limits::{DEAD_LETTER_BYTES_MAX, PROPERTIES_BYTES_MAX, RECORD_HEADER_BYTES};

/// The broker must look into the properties: they change what it does with the message.
pub const BROKER_PROPERTIES: u16 = 1;
/// First fragment of a message; carries its properties, among them the whole body's length.
pub const FRAGMENT_FIRST: u16 = 2;
/// Last fragment of a message.
pub const FRAGMENT_LAST: u16 = 4;
/// All flags of this version; others are refused.
pub const FLAGS_KNOWN: u16 = BROKER_PROPERTIES | FRAGMENT_FIRST | FRAGMENT_LAST;

/// The fixed part of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// Length of the body.
    pub body_bytes: u32,
    /// Length of the properties block.
    pub properties_bytes: u16,
    /// See the constants of this module.
    pub flags: u16,
    /// Distance from the batch's base sequence.
    pub sequence_delta: u32,
    /// Milliseconds after the batch's time accepted.
    pub time_delta_ms: u32,
}

impl RecordHeader {
    /// Reads the header at the front of `bytes`; `None` if it is not all there.
    #[inline]
    pub fn decode(bytes: &[u8]) -> Option<RecordHeader> {
        let bytes: &[u8; RECORD_HEADER_BYTES] = bytes.first_chunk()?;
        Some(RecordHeader {
            body_bytes: u32_at(bytes, 0),
            properties_bytes: u16_at(bytes, 4),
            flags: u16_at(bytes, 6),
            sequence_delta: u32_at(bytes, 8),
            time_delta_ms: u32_at(bytes, 12),
        })
    }

    /// The header as bytes.
    #[inline]
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[4..6].copy_from_slice(&self.properties_bytes.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sequence_delta.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.time_delta_ms.to_le_bytes());
        bytes
    }

    /// Bytes of the whole record.
    #[inline]
    pub fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + usize::from(self.properties_bytes) + self.body_bytes as usize
    }
}

/// A record in place.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The fixed part.
    pub header: RecordHeader,
    /// The properties block; `format/properties.rs` reads it.
    pub properties: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

/// Walks records one after the other; stops at the end or at the first that does not fit.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Walks `bytes`, which should hold whole records only.
    pub fn new(bytes: &'a [u8]) -> Self {
        Records { rest: bytes }
    }

    /// What has not been walked. Empty after the last record; not empty after damage.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Record<'a>> {
        let header = RecordHeader::decode(self.rest)?;
        let record_bytes = header.record_bytes();
        if record_bytes > self.rest.len()
            || usize::from(header.properties_bytes) > PROPERTIES_BYTES_MAX + DEAD_LETTER_BYTES_MAX
        {
            return None;
        }
        let (record, rest) = self.rest.split_at(record_bytes);
        self.rest = rest;
        let (properties, body) =
            record[RECORD_HEADER_BYTES..].split_at(usize::from(header.properties_bytes));
        Some(Record { header, properties, body })
    }
}
