//! What a consumer says of its deliveries: ack, nack, extend. Each frame holds ranges of delivery
//! ids, of one or several handles, and all three are answered the same way.

use crate::base::slot_map::Key;
use crate::limits::{ACK_RANGES_MAX, EXTEND_RANGES_MAX};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::{AckDone, AckRange, ExtendRange, Nack, NackRange};
use crate::protocol::wire;
use crate::queue::consumer::ConsumerKey;
use crate::queue::{Acked, ExtendError, NackRequest};
use crate::shard::connection::Target;
use crate::shard::core::{Core, activate};
use crate::shard::options::{Refused, check_delay, check_lease};

/// What the ranges of a frame came to.
#[derive(Default)]
struct Outcome {
    done: AckDone,
    /// The first fault: whose, and what.
    fault: Option<(u32, wire::ErrorT)>,
}

impl Core {
    pub fn ack(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let ranges = match AckRange::decode_all(payload) {
            Some(ranges) if payload.len() <= ACK_RANGES_MAX * AckRange::BYTES => ranges,
            _ => return self.fail(key, ErrorCode::BadFrame, "an ack frame holds whole ranges"),
        };
        let mut outcome = Outcome::default();
        for range in ranges {
            let AckRange { handle, first, last } = range;
            let acked = self.ack_range(key, &range);
            self.note_range(key, header, (handle, first, last), acked, &mut outcome);
        }
        self.answer_ranges(key, header, outcome);
    }

    pub fn nack(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let Some(nack) = Nack::decode(payload) else {
            let text = "a nack frame holds whole ranges and a text in UTF-8, both within limits";
            return self.fail(key, ErrorCode::BadFrame, text);
        };
        let mut outcome = Outcome::default();
        for range in &nack.ranges {
            let nacked = self.nack_range(key, range, nack.text);
            let NackRange { handle, first, last, .. } = *range;
            self.note_range(key, header, (handle, first, last), nacked, &mut outcome);
        }
        self.answer_ranges(key, header, outcome);
    }

    pub fn extend(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let ranges = match ExtendRange::decode_all(payload) {
            Some(ranges) if payload.len() <= EXTEND_RANGES_MAX * ExtendRange::BYTES => ranges,
            _ => return self.fail(key, ErrorCode::BadFrame, "an extend frame holds whole ranges"),
        };
        let mut outcome = Outcome::default();
        for range in ranges {
            let ExtendRange { handle, first, last, .. } = range;
            let extended = self.extend_range(key, &range);
            self.note_range(key, header, (handle, first, last), extended, &mut outcome);
        }
        self.answer_ranges(key, header, outcome);
    }

    fn ack_range(&mut self, key: Key, range: &AckRange) -> Result<Acked, Refused> {
        let (queue, consumer) = self.consumer_of(key, range.handle)?;
        let Some(slot) = self.queues.at_mut(queue) else { return Ok(Acked::default()) };
        let (first, last) = (range.first, range.last);
        let acked = slot.queue.ack(consumer, first, last, &mut self.memory);
        let acked = acked.map_err(|e| Refused::new(ErrorCode::NeverDelivered, e.to_string()))?;
        if slot.queue.ready() > 0 {
            // A subscription that was at its bound may go on.
            activate(&mut self.active, slot, queue);
        }
        Ok(acked)
    }

    fn nack_range(&mut self, key: Key, range: &NackRange, text: &str) -> Result<Acked, Refused> {
        let (queue, consumer) = self.consumer_of(key, range.handle)?;
        let &NackRange { kind, first, last, delay_ms, .. } = range;
        check_delay("delay_ms", delay_ms.unwrap_or_default())?;
        let Some(slot) = self.queues.at_mut(queue) else { return Ok(Acked::default()) };
        let request = NackRequest { kind, first, last, delay_ms, text };
        let nacked = slot.queue.nack(consumer, &request, self.now, &mut self.memory);
        let nacked = nacked.map_err(|e| Refused::new(ErrorCode::NeverDelivered, e.to_string()))?;
        activate(&mut self.active, slot, queue);
        Ok(nacked)
    }

    fn extend_range(&mut self, key: Key, range: &ExtendRange) -> Result<Acked, Refused> {
        let (queue, consumer) = self.consumer_of(key, range.handle)?;
        let &ExtendRange { lease_ms, first, last, .. } = range;
        if lease_ms != 0 {
            check_lease("lease_ms", lease_ms)?;
        }
        let Some(slot) = self.queues.at_mut(queue) else { return Ok(Acked::default()) };
        let (now, memory) = (self.now, &mut self.memory);
        let extended = slot.queue.extend(consumer, first, last, lease_ms, now, memory);
        self.arm_queue(queue);
        extended.map_err(|error| match error {
            ExtendError::NeverDelivered(never) => {
                Refused::new(ErrorCode::NeverDelivered, never.to_string())
            }
            ExtendError::MemoryFull(full) => {
                let (limit, max) = ("memory_limit", full.limit_bytes);
                Refused::limit(ErrorCode::MemoryLimit, limit, max, full.to_string())
            }
            ExtendError::TooMany { leases_max, .. } => {
                let limit = "EXTENDED_LEASES_PER_TICK_MAX";
                Refused::limit(ErrorCode::ExtendsMax, limit, leases_max, error.to_string())
            }
        })
    }

    fn consumer_of(&self, key: Key, handle: u32) -> Result<(Key, ConsumerKey), Refused> {
        match self.connections.at(key).and_then(|connection| connection.target(handle)) {
            Some(Target::Consumer { queue, consumer }) => Ok((queue, consumer)),
            _ => {
                let text = format!("handle {handle} is no open consumer");
                Err(Refused::new(ErrorCode::UnknownHandle, text))
            }
        }
    }

    /// Counts what a range did, or tells what was wrong with it, where nobody waits for an answer.
    fn note_range(
        &mut self,
        key: Key,
        header: &FrameHeader,
        (handle, first, last): (u32, u64, u64),
        result: Result<Acked, Refused>,
        outcome: &mut Outcome,
    ) {
        let is_asked = header.correlation != 0;
        let fault = match result {
            Ok(Acked { acked, late }) => {
                outcome.done.acked += acked;
                outcome.done.late += late;
                if acked > 0 || is_asked {
                    return;
                }
                let text = format!("deliveries {first} to {last} are in flight no more");
                Refused::new(ErrorCode::LateAck, text)
            }
            Err(refused) => refused,
        };
        if !is_asked {
            self.send_error_body(key, handle, 0, fault.body());
        } else if outcome.fault.is_none() {
            outcome.fault = Some((handle, fault.body()));
        }
    }

    fn answer_ranges(&mut self, key: Key, header: &FrameHeader, outcome: Outcome) {
        if header.correlation == 0 {
            return;
        }
        if let Some((handle, body)) = outcome.fault {
            return self.send_error_body(key, handle, header.correlation, body);
        }
        self.end_ranges(key, header, outcome.done);
    }

    /// Answers an ack, or whatever else is answered by ACK_DONE.
    fn end_ranges(&mut self, key: Key, header: &FrameHeader, done: AckDone) {
        if self.gather_own(key, Opcode::AckDone, header, || done.encode().to_vec()) {
            return;
        }
        if let Some(connection) = self.connections.at_mut(key) {
            connection.send(Opcode::AckDone, 0, header.correlation, &done.encode());
        }
        self.flush_later(key);
    }
}
