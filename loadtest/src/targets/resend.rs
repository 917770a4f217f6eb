//! What a producer of the hand-written client has sent and not seen confirmed, to be sent again
//! from where a full broker refused it. Bodies all have one size, so a batch is cut by counting.

use forebay::base::checksum::crc32c;
use forebay::format::batch::BatchHeader;
use forebay::format::record::RecordHeader;
use forebay::limits::{BATCH_HEADER_BYTES, RECORD_HEADER_BYTES};
use std::collections::VecDeque;
use std::io;

/// Payloads kept for their memory, of all producers.
const SPARE_MAX: usize = 64;

/// Payloads that are not needed any more, and whose memory is used again: that of all producers,
/// for of many queues each has only a batch or two under way.
#[derive(Default)]
pub struct Spare(Vec<Vec<u8>>);

struct Batch {
    /// Producer sequence of its first message.
    first: u64,
    count: u64,
    payload: Vec<u8>,
}

/// Batches in order, without gaps.
pub struct Unconfirmed {
    body_bytes: usize,
    batches: VecDeque<Batch>,
    /// Where to go on, once the broker has refused something.
    resume_at: Option<u64>,
}

impl Unconfirmed {
    /// Of bodies of so many bytes.
    pub fn new(body_bytes: usize) -> Unconfirmed {
        Unconfirmed { body_bytes, batches: VecDeque::new(), resume_at: None }
    }

    /// Keeps a batch that was sent, the payload of its frame.
    pub fn push(&mut self, first: u64, count: u64, payload: &[u8], spare: &mut Spare) {
        let mut kept = spare.0.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(payload);
        self.batches.push_back(Batch { first, count, payload: kept });
    }

    /// All up to `sequence` is confirmed.
    pub fn confirm(&mut self, sequence: u64, spare: &mut Spare) {
        while let Some(batch) = self.batches.front()
            && batch.first + batch.count - 1 <= sequence
        {
            let Some(batch) = self.batches.pop_front() else { break };
            if spare.0.len() < SPARE_MAX {
                spare.0.push(batch.payload);
            }
        }
    }

    /// Everything before `sequence` is confirmed; it and what follows has to be sent again.
    ///
    /// # Errors
    /// If its batch cannot be read, which is this program's own mistake.
    pub fn refuse(&mut self, sequence: u64, spare: &mut Spare) -> io::Result<()> {
        self.confirm(sequence - 1, spare);
        if let Some(batch) = self.batches.front_mut()
            && batch.first < sequence
        {
            let record_bytes = RECORD_HEADER_BYTES + self.body_bytes;
            batch.cut((sequence - batch.first) as usize, record_bytes)?;
        }
        self.resume_at = Some(sequence);
        Ok(())
    }

    /// Whether something has to be sent again, before anything new.
    pub fn is_behind(&self) -> bool {
        self.resume_at.is_some()
    }

    /// The payload of the next batch that is sent again, if it is not over `bytes_max`.
    pub fn next(&mut self, bytes_max: u64) -> Option<&[u8]> {
        let sequence = self.resume_at?;
        let index = self.batches.partition_point(|batch| batch.first < sequence);
        let Some(batch) = self.batches.get(index) else {
            self.resume_at = None;
            return None;
        };
        if batch.payload.len() as u64 > bytes_max {
            return None;
        }
        let end = batch.first + batch.count;
        self.resume_at = (index + 1 < self.batches.len()).then_some(end);
        Some(&self.batches[index].payload)
    }
}

impl Batch {
    /// Takes off the first messages.
    fn cut(&mut self, messages: usize, record_bytes: usize) -> io::Result<()> {
        let header = BatchHeader::decode(&self.payload).map_err(io::Error::other)?;
        let taken = messages * record_bytes;
        self.payload.drain(BATCH_HEADER_BYTES..BATCH_HEADER_BYTES + taken);
        let header = BatchHeader {
            record_count: header.record_count - messages as u32,
            records_bytes: header.records_bytes - taken as u32,
            producer_sequence: header.producer_sequence + messages as u64,
            ..header
        };
        let (front, records) = self.payload.split_at_mut(BATCH_HEADER_BYTES);
        front.copy_from_slice(&header.encode());
        let body_bytes = (record_bytes - RECORD_HEADER_BYTES) as u32;
        for (sequence_delta, record) in (0..).zip(records.chunks_exact_mut(record_bytes)) {
            let header = RecordHeader { sequence_delta, body_bytes, ..Default::default() };
            record[..RECORD_HEADER_BYTES].copy_from_slice(&header.encode());
        }
        let crc = crc32c(&self.payload[4..]);
        self.payload[..4].copy_from_slice(&crc.to_le_bytes());
        self.first += messages as u64;
        self.count -= messages as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay::format::record::Records;

    /// Messages `first..first + count`, each of them its sequence.
    fn payload(first: u64, count: u64) -> Vec<u8> {
        let header = BatchHeader {
            record_count: count as u32,
            records_bytes: count as u32 * (RECORD_HEADER_BYTES as u32 + 8),
            producer_id: 7,
            producer_sequence: first,
            ..Default::default()
        };
        let mut payload = header.encode().to_vec();
        for nth in 0..count {
            let sequence_delta = nth as u32;
            let header = RecordHeader { sequence_delta, body_bytes: 8, ..Default::default() };
            payload.extend_from_slice(&header.encode());
            payload.extend_from_slice(&(first + nth).to_le_bytes());
        }
        let crc = crc32c(&payload[4..]);
        payload[..4].copy_from_slice(&crc.to_le_bytes());
        payload
    }

    fn three_batches(spare: &mut Spare) -> Unconfirmed {
        let mut kept = Unconfirmed::new(8);
        for first in [1, 11, 21] {
            kept.push(first, 10, &payload(first, 10), spare);
        }
        kept
    }

    #[test]
    fn what_was_refused_and_all_behind_it_is_sent_again_in_order() {
        let mut spare = Spare::default();
        let mut kept = three_batches(&mut spare);
        assert!(!kept.is_behind() && kept.next(u64::MAX).is_none());
        kept.refuse(14, &mut spare).unwrap();
        let again = kept.next(u64::MAX).unwrap();
        // As it would have been cut at first, checksum and all.
        assert_eq!(again, payload(14, 7));
        let bodies: Vec<u64> = Records::new(&again[BATCH_HEADER_BYTES..])
            .map(|record| u64::from_le_bytes(record.body.try_into().unwrap()))
            .collect();
        assert_eq!(bodies, (14..21).collect::<Vec<_>>());
        assert_eq!(kept.next(u64::MAX).unwrap(), payload(21, 10));
        assert!(!kept.is_behind() && kept.next(u64::MAX).is_none());
    }

    #[test]
    fn what_one_needs_no_more_serves_another() {
        let mut spare = Spare::default();
        let mut kept = three_batches(&mut spare);
        let place = kept.batches[0].payload.as_ptr();
        kept.confirm(10, &mut spare);
        let mut other = Unconfirmed::new(8);
        other.push(1, 10, &payload(1, 10), &mut spare);
        assert_eq!(other.batches[0].payload.as_ptr(), place);
    }

    #[test]
    fn the_window_and_another_refusal_hold_it_up() {
        let mut spare = Spare::default();
        let mut kept = three_batches(&mut spare);
        kept.refuse(11, &mut spare).unwrap();
        assert!(kept.next(100).is_none() && kept.is_behind());
        assert_eq!(kept.next(10_000).unwrap(), payload(11, 10));
        kept.confirm(12, &mut spare);
        kept.refuse(13, &mut spare).unwrap();
        assert_eq!(kept.next(10_000).unwrap(), payload(13, 8));
        kept.confirm(20, &mut spare);
        assert_eq!(kept.next(10_000).unwrap(), payload(21, 10));
        kept.confirm(30, &mut spare);
        assert!(!kept.is_behind() && kept.batches.is_empty());
        // Nothing is left behind what was refused: the next message is new.
        kept.refuse(31, &mut spare).unwrap();
        assert!(kept.next(10_000).is_none() && !kept.is_behind());
    }
}
