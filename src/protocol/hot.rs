//! Payloads of the frames on the data path: fixed layouts, little endian. Publish is a batch
//! (`format/batch.rs`) and has nothing here.

use crate::format::{u16_at, u32_at, u64_at};
use crate::limits::{DELIVER_HEADER_BYTES, NACK_RANGES_MAX, NACK_TEXT_BYTES_MAX};

/// What a confirm says was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reached {
    /// Held in the broker's memory.
    Memory = 0,
    /// Handed to the operating system.
    Written = 1,
    /// The device was told to keep it and said yes.
    Synced = 2,
}

/// Cumulative answer to the publishes of a handle.
///
/// ```text
///  0  u64  sequence             all records up to this producer sequence are answered for
///  8  u64  window_bytes_total   payload bytes that the handle may have sent in all, since opened
/// 16  u32  duplicates           of the records confirmed here, how many the broker had before
/// 20  u32  dropped              of the records confirmed here, how many the queue's policy dropped
/// 24  u8   reached              0 memory, 1 written, 2 synced
/// 25  7 bytes zero
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// All records up to this producer sequence are answered for.
    pub sequence: u64,
    /// Publish payload bytes that the handle may have sent in all since it was opened.
    pub window_bytes_total: u64,
    /// Records confirmed here that the broker had before.
    pub duplicates: u32,
    /// Records confirmed here that `drop_newest` dropped.
    pub dropped: u32,
    /// What an acknowledgement means.
    pub reached: Reached,
}

impl Confirm {
    /// Bytes of the payload.
    pub const BYTES: usize = 32;

    /// `None` unless the payload is one.
    pub fn decode(payload: &[u8]) -> Option<Confirm> {
        let bytes: &[u8; Confirm::BYTES] = payload.try_into().ok()?;
        let reached = match bytes[24] {
            0 => Reached::Memory,
            1 => Reached::Written,
            2 => Reached::Synced,
            _ => return None,
        };
        Some(Confirm {
            sequence: u64_at(bytes, 0),
            window_bytes_total: u64_at(bytes, 8),
            duplicates: u32_at(bytes, 16),
            dropped: u32_at(bytes, 20),
            reached,
        })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; Confirm::BYTES] {
        let mut bytes = [0; Confirm::BYTES];
        bytes[0..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.window_bytes_total.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.duplicates.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dropped.to_le_bytes());
        bytes[24] = self.reached as u8;
        bytes
    }
}

/// Some message of the run was delivered before.
pub const DELIVER_REDELIVERED: u16 = 1;
/// The run is one fragment of a message too large for one record. All fragments carry the same
/// delivery id; the records' marks say which is first and last.
pub const DELIVER_FRAGMENT: u16 = 2;

/// Front of a deliver frame's payload; records follow. Delivery ids count up by one per record.
///
/// ```text
///  0  u64  delivery_id      of the first record
///  8  u64  base_sequence    a record's sequence is this plus its sequence delta
/// 16  u64  accepted_us      when the broker took the batch
/// 24  u32  record_count
/// 28  u32  crc32c           over the records, 0 unless the consumer asked for checksums
/// 32  u16  attempts         1: first delivery
/// 34  u16  flags
/// 36  u8   priority
/// 37  11 bytes zero
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliverHeader {
    /// Delivery id of the first record.
    pub delivery_id: u64,
    /// Base of the records' sequence deltas.
    pub base_sequence: u64,
    /// Wall clock in microseconds.
    pub accepted_us: u64,
    /// Records that follow.
    pub record_count: u32,
    /// See above.
    pub crc32c: u32,
    /// How often these were delivered, this time included.
    pub attempts: u16,
    /// [`DELIVER_REDELIVERED`], [`DELIVER_FRAGMENT`].
    pub flags: u16,
    /// Priority of the messages.
    pub priority: u8,
}

impl DeliverHeader {
    /// Splits a payload into header and records; `None` if it is too short.
    #[inline]
    pub fn decode(payload: &[u8]) -> Option<(DeliverHeader, &[u8])> {
        let (bytes, records) = payload.split_first_chunk::<DELIVER_HEADER_BYTES>()?;
        let header = DeliverHeader {
            delivery_id: u64_at(bytes, 0),
            base_sequence: u64_at(bytes, 8),
            accepted_us: u64_at(bytes, 16),
            record_count: u32_at(bytes, 24),
            crc32c: u32_at(bytes, 28),
            attempts: u16_at(bytes, 32),
            flags: u16_at(bytes, 34),
            priority: bytes[36],
        };
        Some((header, records))
    }

    /// As bytes.
    #[inline]
    pub fn encode(&self) -> [u8; DELIVER_HEADER_BYTES] {
        let mut bytes = [0; DELIVER_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.delivery_id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.base_sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.accepted_us.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.crc32c.to_le_bytes());
        bytes[32..34].copy_from_slice(&self.attempts.to_le_bytes());
        bytes[34..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36] = self.priority;
        bytes
    }
}

/// One entry of a credit frame: what a consumer may be sent beyond what it was granted before.
///
/// ```text
///  0  u32  handle
///  4  u32  messages
///  8  u64  bytes       of records, headers included
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreditEntry {
    /// The consumer.
    pub handle: u32,
    /// More messages.
    pub messages: u32,
    /// More bytes.
    pub bytes: u64,
}

impl CreditEntry {
    /// Bytes of an entry.
    pub const BYTES: usize = 16;

    /// The entries of a payload; `None` unless it is made of whole ones.
    pub fn decode_all(payload: &[u8]) -> Option<impl Iterator<Item = CreditEntry> + '_> {
        let (entries, rest) = payload.as_chunks::<{ CreditEntry::BYTES }>();
        rest.is_empty().then(|| {
            entries.iter().map(|bytes| CreditEntry {
                handle: u32_at(bytes, 0),
                messages: u32_at(bytes, 4),
                bytes: u64_at(bytes, 8),
            })
        })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; CreditEntry::BYTES] {
        let mut bytes = [0; CreditEntry::BYTES];
        bytes[0..4].copy_from_slice(&self.handle.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.messages.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        bytes
    }
}

/// One range of an ack frame: deliveries `first..=last` of a consumer are done.
///
/// ```text
///  0  u32  handle
///  4  u32  zero
///  8  u64  first
/// 16  u64  last
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckRange {
    /// The consumer.
    pub handle: u32,
    /// First delivery id.
    pub first: u64,
    /// Last delivery id, not before the first.
    pub last: u64,
}

impl AckRange {
    /// Bytes of a range.
    pub const BYTES: usize = 24;

    /// The ranges of a payload; `None` unless it is made of whole ones.
    pub fn decode_all(payload: &[u8]) -> Option<impl Iterator<Item = AckRange> + '_> {
        let (entries, rest) = payload.as_chunks::<{ AckRange::BYTES }>();
        rest.is_empty().then(|| {
            entries.iter().map(|bytes| AckRange {
                handle: u32_at(bytes, 0),
                first: u64_at(bytes, 8),
                last: u64_at(bytes, 16),
            })
        })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; AckRange::BYTES] {
        let mut bytes = [0; AckRange::BYTES];
        bytes[0..4].copy_from_slice(&self.handle.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        bytes
    }
}

/// What a range of a nack frame means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum NackKind {
    /// Failed: ready again after the back-off, or dead-lettered when it failed too often.
    Failed = 0,
    /// Given back untried: ready again at once, and no attempt is counted as failed.
    Returned = 1,
    /// Rejected: dead-lettered now.
    Rejected = 2,
}

/// One range of a nack frame: deliveries `first..=last` of a consumer are not done.
///
/// ```text
///  0  u32  handle
///  4  u8   kind         0 failed, 1 returned, 2 rejected
///  5  3 bytes zero
///  8  u64  first
/// 16  u64  last
/// 24  u32  delay_ms     of failed ones: 4294967295 as the subscription's back-off says, else this
/// 28  u32  zero
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NackRange {
    /// The consumer.
    pub handle: u32,
    /// What became of them.
    pub kind: NackKind,
    /// First delivery id.
    pub first: u64,
    /// Last delivery id, not before the first.
    pub last: u64,
    /// Milliseconds until they are ready again; `None`: by the subscription's back-off.
    pub delay_ms: Option<u32>,
}

impl NackRange {
    /// Bytes of a range.
    pub const BYTES: usize = 32;

    /// `None` unless the bytes are a range.
    pub fn decode(bytes: &[u8; NackRange::BYTES]) -> Option<NackRange> {
        let kind = match bytes[4] {
            0 => NackKind::Failed,
            1 => NackKind::Returned,
            2 => NackKind::Rejected,
            _ => return None,
        };
        let delay_ms = u32_at(bytes, 24);
        (bytes[5..8] == [0; 3] && bytes[28..] == [0; 4]).then_some(NackRange {
            handle: u32_at(bytes, 0),
            kind,
            first: u64_at(bytes, 8),
            last: u64_at(bytes, 16),
            delay_ms: (delay_ms != u32::MAX).then_some(delay_ms),
        })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; NackRange::BYTES] {
        let mut bytes = [0; NackRange::BYTES];
        bytes[0..4].copy_from_slice(&self.handle.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.delay_ms.unwrap_or(u32::MAX).to_le_bytes());
        bytes
    }
}

/// Payload of a nack frame: ranges, and one text for all of them, which goes into the headers of
/// those that are dead-lettered.
///
/// ```text
///  0  u32  range_count
///  4  u32  text_bytes
///  8  ranges, 32 bytes each; then the text, UTF-8
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack<'a> {
    /// The ranges.
    pub ranges: Vec<NackRange>,
    /// Why, for people; may be empty.
    pub text: &'a str,
}

impl<'a> Nack<'a> {
    /// Bytes before the ranges.
    pub const HEAD_BYTES: usize = 8;

    /// `None` unless the payload is whole, within the limits, and its text is UTF-8.
    pub fn decode(payload: &'a [u8]) -> Option<Nack<'a>> {
        let (head, rest) = payload.split_at_checked(Nack::HEAD_BYTES)?;
        let (range_count, text_bytes) = (u32_at(head, 0) as usize, u32_at(head, 4) as usize);
        if range_count > NACK_RANGES_MAX || text_bytes > NACK_TEXT_BYTES_MAX {
            return None;
        }
        let (ranges, text) = rest.split_at_checked(range_count * NackRange::BYTES)?;
        let (ranges, _) = ranges.as_chunks::<{ NackRange::BYTES }>();
        let ranges = ranges.iter().map(NackRange::decode).collect::<Option<Vec<_>>>()?;
        let text = std::str::from_utf8(text).ok()?;
        (text.len() == text_bytes).then_some(Nack { ranges, text })
    }

    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(self.ranges.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.text.len() as u32).to_le_bytes());
        for range in &self.ranges {
            bytes.extend_from_slice(&range.encode());
        }
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }
}

/// One range of an extend frame: the leases of deliveries `first..=last` end `lease_ms` from now.
///
/// ```text
///  0  u32  handle
///  4  u32  lease_ms     0: as long as the consumer's leases are
///  8  u64  first
/// 16  u64  last
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendRange {
    /// The consumer.
    pub handle: u32,
    /// Milliseconds from now; 0: the consumer's own.
    pub lease_ms: u32,
    /// First delivery id.
    pub first: u64,
    /// Last delivery id, not before the first.
    pub last: u64,
}

impl ExtendRange {
    /// Bytes of a range.
    pub const BYTES: usize = 24;

    /// The ranges of a payload; `None` unless it is made of whole ones.
    pub fn decode_all(payload: &[u8]) -> Option<impl Iterator<Item = ExtendRange> + '_> {
        let (entries, rest) = payload.as_chunks::<{ ExtendRange::BYTES }>();
        rest.is_empty().then(|| {
            entries.iter().map(|bytes| ExtendRange {
                handle: u32_at(bytes, 0),
                lease_ms: u32_at(bytes, 4),
                first: u64_at(bytes, 8),
                last: u64_at(bytes, 16),
            })
        })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; ExtendRange::BYTES] {
        let mut bytes = [0; ExtendRange::BYTES];
        bytes[0..4].copy_from_slice(&self.handle.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.lease_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.first.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.last.to_le_bytes());
        bytes
    }
}

/// Answer to an ack, nack or extend frame that carried a correlation.
///
/// ```text
///  0  u64  acked      deliveries that this frame ended, or extended
///  8  u64  late       deliveries that were in flight no more: acked, returned or expired before
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckDone {
    /// Deliveries that the frame ended.
    pub acked: u64,
    /// Deliveries that were in flight no more.
    pub late: u64,
}

impl AckDone {
    /// Bytes of the payload.
    pub const BYTES: usize = 16;

    /// `None` unless the payload is one.
    pub fn decode(payload: &[u8]) -> Option<AckDone> {
        let bytes: &[u8; AckDone::BYTES] = payload.try_into().ok()?;
        Some(AckDone { acked: u64_at(bytes, 0), late: u64_at(bytes, 8) })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; AckDone::BYTES] {
        let mut bytes = [0; AckDone::BYTES];
        bytes[0..8].copy_from_slice(&self.acked.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.late.to_le_bytes());
        bytes
    }
}

/// Asks for messages now, or as soon as there are some. The frame's handle is the consumer's, its
/// correlation names the pull. It ends once `messages_max` came, or when something came and there
/// is no more at hand, or when the time is over.
///
/// ```text
///  0  u32  messages_max   at least 1
///  4  u32  wait_ms        0: answer at once
///  8  u64  bytes_max      of records; a single message may pass it; 0: no limit of its own
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Messages at most.
    pub messages_max: u32,
    /// Milliseconds to wait for the first.
    pub wait_ms: u32,
    /// Bytes of records at most.
    pub bytes_max: u64,
}

impl Pull {
    /// Bytes of the payload.
    pub const BYTES: usize = 16;

    /// `None` unless the payload is one.
    pub fn decode(payload: &[u8]) -> Option<Pull> {
        let bytes: &[u8; Pull::BYTES] = payload.try_into().ok()?;
        Some(Pull {
            messages_max: u32_at(bytes, 0),
            wait_ms: u32_at(bytes, 4),
            bytes_max: u64_at(bytes, 8),
        })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; Pull::BYTES] {
        let mut bytes = [0; Pull::BYTES];
        bytes[0..4].copy_from_slice(&self.messages_max.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.wait_ms.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.bytes_max.to_le_bytes());
        bytes
    }
}

/// End of a pull; the frame carries the pull's correlation.
///
/// ```text
///  0  u32  messages    that it brought
///  4  u32  zero
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullDone {
    /// Messages that the pull brought.
    pub messages: u32,
}

impl PullDone {
    /// Bytes of the payload.
    pub const BYTES: usize = 8;

    /// `None` unless the payload is one.
    pub fn decode(payload: &[u8]) -> Option<PullDone> {
        let bytes: &[u8; PullDone::BYTES] = payload.try_into().ok()?;
        Some(PullDone { messages: u32_at(bytes, 0) })
    }

    /// As bytes.
    pub fn encode(&self) -> [u8; PullDone::BYTES] {
        u64::from(self.messages).to_le_bytes()
    }
}
