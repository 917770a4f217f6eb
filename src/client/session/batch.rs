//! Batches on the way out: gathered, cut into fragments, sealed when they are sent, kept until they
//! are confirmed. Each is a whole PUBLISH frame in one buffer, so sending copies nothing.

use crate::format::batch::{self, BatchHeader};
use crate::format::record::{self, RecordHeader, Records};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_RECORDS_BYTES_MAX, BATCH_RECORDS_MAX, FRAME_HEADER_BYTES,
    RECORD_HEADER_BYTES,
};
use crate::protocol::frame::{FrameHeader, Opcode};
use std::sync::Arc;

/// Room at the front of a frame for its header and the batch's.
const FRONT_BYTES: usize = FRAME_HEADER_BYTES + BATCH_HEADER_BYTES;

/// The batch that records are added to.
pub(super) struct Gather {
    frame: Vec<u8>,
    records: u32,
}

impl Gather {
    pub(super) fn new() -> Gather {
        Gather { frame: vec![0; FRONT_BYTES], records: 0 }
    }

    pub(super) fn records(&self) -> u32 {
        self.records
    }

    pub(super) fn frame_bytes(&self) -> usize {
        if self.records == 0 { 0 } else { self.frame.len() }
    }

    /// Whether a record with so much content fits, when the batch shall not pass `records_bytes`
    /// unless it is a single record.
    #[inline]
    pub(super) fn fits(&self, content_bytes: usize, records_bytes: usize) -> bool {
        let bytes = self.frame.len() - FRONT_BYTES + RECORD_HEADER_BYTES + content_bytes;
        bytes <= records_bytes.min(BATCH_RECORDS_BYTES_MAX)
            && (self.records as usize) < BATCH_RECORDS_MAX
            || self.records == 0
    }

    #[inline]
    pub(super) fn push(&mut self, flags: u16, properties: &[u8], body: &[u8]) {
        push_record(&mut self.frame, self.records, flags, properties, body);
        self.records += 1;
    }

    /// Takes what is gathered; `buffer` is used for what comes.
    pub(super) fn take(&mut self, mut buffer: Vec<u8>, ordinal: u64) -> OutBatch {
        buffer.clear();
        buffer.resize(FRONT_BYTES, 0);
        let frame = std::mem::replace(&mut self.frame, buffer);
        let records = std::mem::take(&mut self.records);
        OutBatch::new(frame, records, ordinal, None)
    }
}

#[inline]
fn push_record(frame: &mut Vec<u8>, delta: u32, flags: u16, properties: &[u8], body: &[u8]) {
    let header = RecordHeader {
        body_bytes: body.len() as u32,
        properties_bytes: properties.len() as u16,
        flags,
        sequence_delta: delta,
        time_delta_ms: 0,
    };
    frame.reserve(header.record_bytes());
    frame.extend_from_slice(&header.encode());
    frame.extend_from_slice(properties);
    frame.extend_from_slice(body);
}

/// A batch that holds a piece of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    pub(super) first: bool,
    pub(super) last: bool,
}

/// A batch that is sent or waits to be.
pub(super) struct OutBatch {
    frame: Arc<Vec<u8>>,
    pub(super) records: u32,
    /// Records at the front that the broker has answered for.
    pub(super) answered: u32,
    /// Of the first record.
    pub(super) ordinal: u64,
    pub(super) fragment: Option<Fragment>,
    /// Producer id and sequence that its header carries.
    sealed_as: Option<(u64, u64)>,
}

impl OutBatch {
    fn new(frame: Vec<u8>, records: u32, ordinal: u64, fragment: Option<Fragment>) -> OutBatch {
        let frame = Arc::new(frame);
        OutBatch { frame, records, answered: 0, ordinal, fragment, sealed_as: None }
    }

    /// A piece of a message; `properties` only with the first.
    pub(super) fn fragment(
        ordinal: u64,
        fragment: Fragment,
        properties: &[u8],
        body: &[u8],
    ) -> OutBatch {
        let mut frame = vec![0; FRONT_BYTES];
        frame.reserve_exact(RECORD_HEADER_BYTES + properties.len() + body.len());
        push_record(&mut frame, 0, fragment_flags(fragment), properties, body);
        OutBatch::new(frame, 1, ordinal, Some(fragment))
    }

    /// Bytes of the frame.
    pub(super) fn frame_bytes(&self) -> usize {
        self.frame.len()
    }

    /// Bytes that count against the window.
    pub(super) fn payload_bytes(&self) -> usize {
        self.frame.len() - FRAME_HEADER_BYTES
    }

    /// Producer sequences that it takes up; a message in fragments is counted with its last.
    pub(super) fn sequences(&self) -> u64 {
        match self.fragment {
            Some(Fragment { last: false, .. }) => 0,
            _ => u64::from(self.records),
        }
    }

    /// Ordinal of its last record.
    pub(super) fn ordinal_last(&self) -> u64 {
        self.ordinal + u64::from(self.records) - 1
    }

    /// The frame, ready to send under this producer id and sequence. The checksum is computed only
    /// when they are others than before.
    pub(super) fn sealed(&mut self, handle: u32, producer_id: u64, sequence: u64) -> Arc<Vec<u8>> {
        if self.sealed_as != Some((producer_id, sequence)) {
            let frame = Arc::make_mut(&mut self.frame);
            let payload_bytes = frame.len() - FRAME_HEADER_BYTES;
            let (front, wire) = frame.split_at_mut(FRAME_HEADER_BYTES);
            front.copy_from_slice(
                &FrameHeader::new(Opcode::Publish, handle, payload_bytes).encode(),
            );
            let header = BatchHeader {
                flags: if self.fragment.is_some() { batch::FRAGMENT } else { 0 },
                record_count: self.records,
                records_bytes: (wire.len() - BATCH_HEADER_BYTES) as u32,
                producer_id,
                producer_sequence: sequence,
                ..BatchHeader::default()
            };
            batch::seal(wire, header);
            self.sealed_as = Some((producer_id, sequence));
        }
        Arc::clone(&self.frame)
    }

    /// Drops the records at the front that are answered.
    pub(super) fn drop_answered(&mut self) {
        if self.answered == 0 {
            return;
        }
        assert!(self.answered < self.records, "a batch that is answered is not kept");
        let rest = self.copy(self.answered, self.records - self.answered);
        *self = rest;
    }

    /// Cuts the batch so that its payload does not pass `payload_bytes_max`, and gives what was cut
    /// off. `None` if it cannot be cut so small.
    pub(super) fn split(&mut self, payload_bytes_max: usize) -> Option<OutBatch> {
        let records_bytes_max = payload_bytes_max.checked_sub(BATCH_HEADER_BYTES)?;
        if let Some(fragment) = self.fragment {
            return self.split_fragment(fragment, records_bytes_max);
        }
        let (mut take, mut bytes) = (0, 0);
        for record in Records::new(&self.frame[FRONT_BYTES..]) {
            bytes += record.header.record_bytes();
            if bytes > records_bytes_max {
                break;
            }
            take += 1;
        }
        self.split_at(take)
    }

    /// Cuts the batch behind `take` records; `None` if that leaves one part empty.
    pub(super) fn split_at(&mut self, take: u32) -> Option<OutBatch> {
        if take == 0 || take >= self.records || self.fragment.is_some() {
            return None;
        }
        assert!(self.answered == 0, "only a batch that is sent anew is cut");
        let tail = self.copy(take, self.records - take);
        *self = self.copy(0, take);
        Some(tail)
    }

    fn split_fragment(&mut self, fragment: Fragment, records_bytes_max: usize) -> Option<OutBatch> {
        let record = Records::new(&self.frame[FRONT_BYTES..]).next()?;
        let body_bytes = records_bytes_max
            .checked_sub(RECORD_HEADER_BYTES + record.properties.len())
            .filter(|&bytes| bytes > 0 && bytes < record.body.len())?;
        let (front, rest) = record.body.split_at(body_bytes);
        let tail = Fragment { first: false, ..fragment };
        let tail = OutBatch::fragment(self.ordinal, tail, &[], rest);
        let head = Fragment { last: false, ..fragment };
        *self = OutBatch::fragment(self.ordinal, head, record.properties, front);
        Some(tail)
    }

    fn copy(&self, skip: u32, take: u32) -> OutBatch {
        let mut frame = vec![0; FRONT_BYTES];
        let records = Records::new(&self.frame[FRONT_BYTES..]);
        for (delta, record) in records.skip(skip as usize).take(take as usize).enumerate() {
            let flags = record.header.flags;
            push_record(&mut frame, delta as u32, flags, record.properties, record.body);
        }
        OutBatch::new(frame, take, self.ordinal + u64::from(skip), None)
    }

    /// The buffer, to be used again, unless it is still being sent.
    pub(super) fn into_buffer(self) -> Option<Vec<u8>> {
        Arc::try_unwrap(self.frame).ok()
    }
}

fn fragment_flags(fragment: Fragment) -> u16 {
    let mut flags = 0;
    if fragment.first {
        // The body's length stands in the properties of the first.
        flags |= record::FRAGMENT_FIRST | record::BROKER_PROPERTIES;
    }
    if fragment.last {
        flags |= record::FRAGMENT_LAST;
    }
    flags
}
