//! What a frame does: publishes, credit and pulls here, ack, nack and extend in `settle`, requests
//! in `control`.

use crate::base::slot_map::Key;
use crate::limits::{CREDIT_ENTRIES_MAX, HANDLES_MAX, PULL_WAIT_MS_MAX, PULLS_WAITING_MAX};
use crate::protocol::control::{Answer, Request};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::{CreditEntry, Pull};
use crate::protocol::wire;
use crate::queue::consumer::PullState;
use crate::queue::policy::Refusal;
use crate::shard::connection::{Stage, Target, error_body};
use crate::shard::core::{Core, activate};

/// Retry after so long when the broker is going down: the client will have to connect anew.
const DRAIN_RETRY_MS: u32 = 1000;

impl Core {
    /// Handles one complete frame.
    pub fn handle_frame(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let Some(connection) = self.connections.at(key) else { return };
        let opcode = Opcode::from_u8(header.opcode);
        if connection.stage == Stage::Hello {
            return match opcode {
                Some(Opcode::Hello) => self.hello(key, header, payload),
                _ => self.fail(key, ErrorCode::HelloExpected, "the first frame must be HELLO"),
            };
        }
        match opcode {
            Some(Opcode::Publish) => self.publish(key, header, payload),
            Some(Opcode::Ack) => self.ack(key, header, payload),
            Some(Opcode::Nack) => self.nack(key, header, payload),
            Some(Opcode::Extend) => self.extend(key, header, payload),
            Some(Opcode::Credit) => self.credit(key, payload),
            Some(Opcode::Pull) => self.pull(key, header, payload),
            Some(Opcode::Ping) => self.answer_plain(key, Opcode::Pong, header),
            Some(Opcode::Pong) => {}
            Some(Opcode::Hello) => {
                self.fail(key, ErrorCode::HelloExpected, "a second HELLO on a connection");
            }
            Some(Opcode::ProducerClose | Opcode::ConsumerClose) => {
                self.close_on_request(key, header)
            }
            Some(opcode) => match Request::decode(opcode, payload) {
                Ok(request) => self.request(key, header, request),
                Err(error @ crate::protocol::control::ControlError::Malformed { .. }) => {
                    self.fail(key, ErrorCode::BadFrame, &error.to_string());
                }
                Err(_) => self.unknown_opcode(key, header),
            },
            None => self.unknown_opcode(key, header),
        }
    }

    /// Answers a request with an error.
    pub fn refuse(&mut self, key: Key, header: &FrameHeader, code: ErrorCode, text: &str) {
        self.send_error_body(key, header.handle, header.correlation, error_body(code, text));
    }

    /// Sends an error frame.
    pub fn send_error_body(&mut self, key: Key, handle: u32, correlation: u32, body: wire::ErrorT) {
        let header = FrameHeader { correlation, ..FrameHeader::new(Opcode::Error, handle, 0) };
        let encode = || Answer::Error(body.clone()).encode();
        if correlation != 0 && self.gather_own(key, Opcode::Error, &header, encode) {
            return;
        }
        if let Some(connection) = self.connections.at_mut(key) {
            connection.send_answer(&Answer::Error(body), handle, correlation);
        }
        self.flush_later(key);
    }

    /// Sends an answer.
    pub fn answer(&mut self, key: Key, header: &FrameHeader, answer: &Answer) {
        if self.gather_own(key, answer.opcode(), header, || answer.encode()) {
            return;
        }
        if let Some(connection) = self.connections.at_mut(key) {
            connection.send_answer(answer, header.handle, header.correlation);
        }
        self.flush_later(key);
    }

    /// Sends an answer without a body.
    pub fn answer_plain(&mut self, key: Key, opcode: Opcode, header: &FrameHeader) {
        if let Some(connection) = self.connections.at_mut(key) {
            connection.send(opcode, header.handle, header.correlation, &[]);
        }
        self.flush_later(key);
    }

    /// Refuses a publish of which only the front is there: there is no memory for the rest.
    pub fn refuse_unread(&mut self, key: Key, header: &FrameHeader, front: &[u8]) {
        let target = self.connections.at(key).and_then(|c| c.target(header.handle));
        let Some(Target::Producer { queue, producer }) = target else {
            return self.unknown_handle(key, header);
        };
        let Some(slot) = self.queues.at_mut(queue) else { return };
        let bytes = header.payload_bytes;
        let refusal = slot.queue.refuse_unread(producer, front, bytes, &self.memory);
        if slot.queue.note_confirm_listed(producer) {
            self.to_confirm.push((queue, producer));
        }
        if let Some(refusal) = refusal {
            self.send_refusal(key, header.handle, queue, producer, refusal);
        }
        // Also where the refusal itself is silent: who blocks must be known, to be unblocked.
        self.note_blocked(queue);
    }

    fn publish(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let target = self.connections.at(key).and_then(|c| c.target(header.handle));
        let Some(Target::Producer { queue, producer }) = target else {
            return self.unknown_handle(key, header);
        };
        let Some(slot) = self.queues.at_mut(queue) else { return };
        if self.draining.is_some() {
            let refusal = slot.queue.refuse_draining(producer, payload, DRAIN_RETRY_MS);
            if let Some(refusal) = refusal {
                self.send_refusal(key, header.handle, queue, producer, refusal);
            }
            return;
        }
        if slot.store.is_some()
            && let Some((code, text)) = self.unkept(self.queues.at(queue).and_then(|s| s.store))
        {
            return self.refuse_unkept(key, header, (queue, producer), payload, code, text);
        }
        let Some(slot) = self.queues.at_mut(queue) else { return };
        let published = slot.queue.publish(producer, payload, self.now.wall, &mut self.memory);
        activate(&mut self.active, slot, queue);
        self.spill.note(queue, slot, false);
        if slot.queue.note_confirm_listed(producer) {
            self.to_confirm.push((queue, producer));
        }
        if let Err(refusal) = published {
            if let Some(refusal) = refusal {
                self.send_refusal(key, header.handle, queue, producer, refusal);
            }
            self.note_blocked(queue);
        }
    }

    /// Refuses a publish whose store takes nothing.
    fn refuse_unkept(
        &mut self,
        key: Key,
        header: &FrameHeader,
        (queue, producer): (Key, Key),
        payload: &[u8],
        code: ErrorCode,
        text: String,
    ) {
        let Some(slot) = self.queues.at_mut(queue) else { return };
        if let Some(refusal) = slot.queue.refuse_unkept(producer, payload, code, text) {
            self.send_refusal(key, header.handle, queue, producer, refusal);
        }
    }

    /// What was taken before is confirmed first; then the refusal with the window after it.
    fn send_refusal(&mut self, key: Key, handle: u32, queue: Key, producer: Key, refusal: Refusal) {
        self.confirm_one(queue, producer);
        let Some(slot) = self.queues.at_mut(queue) else { return };
        let window_bytes_total = slot.queue.grant_window(producer);
        let body = wire::ErrorT {
            code: refusal.code as u16,
            text: Some(refusal.text),
            retry_after_ms: refusal.retry_after_ms,
            limit_name: refusal.limit.map(|(name, _)| name.to_owned()),
            limit_value: refusal.limit.map_or(0, |(_, value)| value),
            sequence: refusal.sequence,
            window_bytes_total,
        };
        if let Some(connection) = self.connections.at_mut(key) {
            connection.send_answer(&Answer::PublishError(body), handle, 0);
        }
        self.flush_later(key);
    }

    fn credit(&mut self, key: Key, payload: &[u8]) {
        let entries = match CreditEntry::decode_all(payload) {
            Some(entries) if payload.len() <= CREDIT_ENTRIES_MAX * CreditEntry::BYTES => entries,
            _ => return self.fail(key, ErrorCode::BadFrame, "a credit frame holds whole entries"),
        };
        for entry in entries {
            let target = self.connections.at(key).and_then(|c| c.target(entry.handle));
            let Some(Target::Consumer { queue, consumer }) = target else {
                let text = format!("handle {} is no open consumer", entry.handle);
                self.fault(key, entry.handle, ErrorCode::UnknownHandle, &text);
                continue;
            };
            let Some(slot) = self.queues.at_mut(queue) else { continue };
            let added = slot.queue.add_credit(consumer, entry.messages, entry.bytes);
            activate(&mut self.active, slot, queue);
            if !added {
                let text = "the credit would pass what a consumer may hold; nothing was added";
                self.fault(key, entry.handle, ErrorCode::CreditOverflow, text);
            }
        }
    }

    fn pull(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let Some(pull) = Pull::decode(payload) else {
            return self.fail(key, ErrorCode::BadFrame, "a pull frame has 16 bytes");
        };
        let target = self.connections.at(key).and_then(|c| c.target(header.handle));
        let Some(Target::Consumer { queue, consumer }) = target else {
            return self.unknown_handle(key, header);
        };
        if pull.messages_max == 0 || pull.wait_ms > PULL_WAIT_MS_MAX {
            let text =
                format!("a pull takes 1 message or more and waits {PULL_WAIT_MS_MAX} ms at most");
            return self.refuse(key, header, ErrorCode::BadOption, &text);
        }
        let Some(slot) = self.queues.at_mut(queue) else { return };
        if slot.queue.pull_count(consumer) >= PULLS_WAITING_MAX {
            let text = format!("a consumer may have {PULLS_WAITING_MAX} pulls waiting");
            return self.refuse(key, header, ErrorCode::PullsMax, &text);
        }
        let deadline = self.now.mono.plus_ms(u64::from(pull.wait_ms));
        let state = PullState {
            correlation: header.correlation,
            messages_left: pull.messages_max,
            bytes_left: if pull.bytes_max == 0 { u64::MAX } else { pull.bytes_max },
            deadline,
            brought: 0,
            over: false,
            late: false,
        };
        if let Err(full) = slot.queue.pull(consumer, state, &mut self.memory) {
            return self.refuse(key, header, ErrorCode::MemoryLimit, &full.to_string());
        }
        activate(&mut self.active, slot, queue);
    }

    fn close_on_request(&mut self, key: Key, header: &FrameHeader) {
        let target = self.connections.at(key).and_then(|c| c.target(header.handle));
        let closes_producer = header.opcode == Opcode::ProducerClose as u8;
        match target {
            Some(Target::Producer { queue, producer }) if closes_producer => {
                self.confirm_one(queue, producer);
            }
            Some(Target::Consumer { .. }) if !closes_producer => {}
            _ => return self.unknown_handle(key, header),
        }
        self.close_handle(key, header.handle);
        self.answer_plain(key, Opcode::Closed, header);
    }

    /// An unasked error about a handle.
    fn fault(&mut self, key: Key, handle: u32, code: ErrorCode, text: &str) {
        self.send_error_body(key, handle, 0, error_body(code, text));
    }

    fn unknown_opcode(&mut self, key: Key, header: &FrameHeader) {
        let text = format!("opcode {} is not known in this version", header.opcode);
        self.refuse(key, header, ErrorCode::UnknownOpcode, &text);
    }

    /// Refuses a frame whose handle is not open, or of the other kind.
    pub fn unknown_handle(&mut self, key: Key, header: &FrameHeader) {
        let text = format!("handle {} is not open, or of the other kind", header.handle);
        self.refuse(key, header, ErrorCode::UnknownHandle, &text);
    }

    /// Whether a connection may open one more handle under this number.
    pub fn check_new_handle(&mut self, key: Key, header: &FrameHeader) -> bool {
        let Some(connection) = self.connections.at(key) else { return false };
        let checked = if connection.handles().len() >= HANDLES_MAX {
            Err((ErrorCode::HandlesMax, format!("a connection may have {HANDLES_MAX} handles")))
        } else {
            connection.check_new_handle(header.handle)
        };
        match checked {
            Ok(()) => true,
            Err((code, text)) => {
                self.refuse(key, header, code, &text);
                false
            }
        }
    }
}
