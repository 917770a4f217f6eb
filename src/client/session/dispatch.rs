//! What the broker's frames do to a session.

use super::consumer::{ConsumerPhase, Delivered};
use super::producer::{Hold, Nonsense, Phase};
use super::{Event, Pending, Run, Session, Slot, State};
use crate::base::time::Mono;
use crate::client::{BrokerError, LostReason};
use crate::limits::PREAMBLE_BYTES;
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{self, FrameHeader, Opcode};
use crate::protocol::hot::{AckDone, Confirm, DeliverHeader, PullDone, Reached};
use crate::protocol::wire;
use std::ops::Range;

impl Session {
    /// Handles all whole frames in the input.
    pub(super) fn take_frames(&mut self, now: Mono) {
        if self.state == State::Preamble {
            let Some(preamble) = self.input.take::<PREAMBLE_BYTES>() else { return };
            match frame::preamble_version(&preamble) {
                // Version 0 refuses ours; an error that says so follows.
                Some(0 | frame::VERSION) => self.state = State::Greeting,
                Some(other) => return self.nonsense(format!("version {other}")),
                None => return self.nonsense("no preamble".into()),
            }
        }
        while matches!(self.state, State::Greeting | State::Up) {
            match self.input.take_frame() {
                Ok(Some((header, payload))) => self.handle_frame(now, &header, payload),
                Ok(None) => return,
                Err(error) => return self.nonsense(error.to_string()),
            }
        }
    }

    #[inline]
    fn handle_frame(&mut self, now: Mono, header: &FrameHeader, payload: Range<usize>) {
        let opcode = Opcode::from_u8(header.opcode);
        if opcode == Some(Opcode::Deliver) {
            return self.on_deliver(now, header.handle, payload);
        }
        let bytes = self.input.slice(payload);
        let result = match opcode {
            Some(Opcode::Confirm) => match Confirm::decode(bytes) {
                Some(confirm) => self.on_confirm(header.handle, &confirm),
                None => Err(Nonsense("a confirm that does not decode")),
            },
            Some(Opcode::Ping) => {
                self.output.frame(Opcode::Pong, 0, header.correlation, &[]);
                Ok(())
            }
            Some(Opcode::Pong) => self.on_pong(header.correlation),
            Some(Opcode::Closed) => self.on_closed(header),
            Some(Opcode::AckDone) => match AckDone::decode(bytes) {
                Some(done) => self.on_ack_done(header.correlation, done),
                None => Err(Nonsense("an ack's answer that does not decode")),
            },
            Some(Opcode::PullDone) => match PullDone::decode(bytes) {
                Some(done) => self.on_pull_done(header, done.messages),
                None => Err(Nonsense("a pull's answer that does not decode")),
            },
            Some(opcode) => match Answer::decode(opcode, bytes) {
                Ok(answer) => self.on_answer(now, header, answer),
                Err(error) => return self.nonsense(error.to_string()),
            },
            // Of a newer broker; what it means is not for us.
            None => Ok(()),
        };
        if let Err(Nonsense(text)) = result {
            self.nonsense(text.into());
        }
    }

    fn nonsense(&mut self, text: String) {
        self.lost(LostReason::Protocol(text));
    }

    #[inline]
    fn on_deliver(&mut self, now: Mono, handle: u32, payload: Range<usize>) {
        let end = payload.end;
        let Some((header, records)) = DeliverHeader::decode(self.input.slice(payload)) else {
            return self.nonsense("a delivery shorter than its header".into());
        };
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Consumer(consumer))) = slot else {
            return self.nonsense("a delivery for no consumer".into());
        };
        if consumer.phase != ConsumerPhase::Open {
            // Underway when the consumer was closed; the broker takes it back.
            return;
        }
        match consumer.deliver(&header, records, self.connection, now) {
            Ok(Delivered::Run) => self.events.push_back(Event::Delivered(Run {
                handle,
                connection: self.connection,
                header,
                start: end - records.len(),
                end,
                generation: self.input.generation(),
            })),
            Ok(Delivered::Whole(large)) => self.events.push_back(Event::DeliveredLarge(large)),
            Ok(Delivered::Part) => {}
            Err(Nonsense(text)) => self.nonsense(text.into()),
        }
    }

    fn on_confirm(&mut self, handle: u32, confirm: &Confirm) -> Result<(), Nonsense> {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Producer(producer))) = slot else {
            return Err(Nonsense("a confirm for no producer"));
        };
        if !matches!(producer.phase, Phase::Open | Phase::Closing) {
            return Ok(());
        }
        producer.grant(confirm.window_bytes_total);
        let news = producer.advance(confirm.sequence)?;
        producer.pump(&mut self.output);
        if news {
            let ordinal = producer.answered_ordinal();
            let (duplicates, dropped) = (confirm.duplicates, confirm.dropped);
            let reached = confirm.reached;
            let event = Event::Confirmed { handle, ordinal, duplicates, dropped, reached };
            self.events.push_back(event);
        }
        Ok(())
    }

    fn on_pong(&mut self, correlation: u32) -> Result<(), Nonsense> {
        match self.pending.remove(&correlation) {
            Some(Pending::Ping) => self.events.push_back(Event::Pong { correlation }),
            Some(Pending::AckBarrier) => {
                self.events.push_back(Event::Acked { correlation, done: AckDone::default() });
            }
            Some(Pending::AskBlocked(handle)) => self.on_not_blocked(handle),
            Some(Pending::Probe) | None => {}
            Some(_) => return Err(Nonsense("a pong for what was no ping")),
        }
        Ok(())
    }

    /// The broker has answered a ping behind a refusal and did not say BLOCKED: the queue rejects,
    /// and that is the answer to the batch.
    fn on_not_blocked(&mut self, handle: u32) {
        let Some(Some(Slot::Producer(producer))) = self.slots.get_mut(handle as usize - 1) else {
            return;
        };
        let Hold::Asking(error) = &producer.hold else { return };
        let error = error.clone();
        producer.hold = Hold::Nothing;
        if let Some((first, last)) = producer.reject_front() {
            self.events.push_back(Event::PublishFailed { handle, first, last, error });
        }
        producer.pump(&mut self.output);
    }

    fn on_closed(&mut self, header: &FrameHeader) -> Result<(), Nonsense> {
        let handle = header.handle;
        if header.correlation != 0 {
            self.pending.remove(&header.correlation);
        }
        let at = (handle as usize).wrapping_sub(1);
        match self.slots.get_mut(at) {
            Some(Some(Slot::Producer(producer))) => match producer.phase {
                Phase::Reopening => {
                    producer.went_down();
                    self.reopen(handle);
                    return Ok(());
                }
                Phase::Closing => {}
                // Unasked: an error before it has said why.
                _ => return Ok(()),
            },
            Some(Some(Slot::Consumer(consumer))) if consumer.phase == ConsumerPhase::Closing => {}
            _ => return Ok(()),
        }
        self.slots[at] = None;
        self.events.push_back(Event::Closed { handle });
        Ok(())
    }

    fn on_ack_done(&mut self, correlation: u32, done: AckDone) -> Result<(), Nonsense> {
        let Some(Pending::AckPart(asked)) = self.pending.remove(&correlation) else {
            return Err(Nonsense("an answer to an ack that was not asked for"));
        };
        self.ack_part_done(asked, done);
        Ok(())
    }

    fn on_pull_done(&mut self, header: &FrameHeader, messages: u32) -> Result<(), Nonsense> {
        let (handle, correlation) = (header.handle, header.correlation);
        let Some(Pending::Pull(messages_max)) = self.pending.remove(&correlation) else {
            return Err(Nonsense("the end of a pull that was not asked for"));
        };
        self.pull_ended(handle, messages_max.saturating_sub(messages));
        self.events.push_back(Event::PullDone { correlation, handle, messages });
        Ok(())
    }

    /// A pull has ended with `missing` messages fewer than it might have brought.
    fn pull_ended(&mut self, handle: u32, missing: u32) {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        if let Some(Some(Slot::Consumer(consumer))) = slot {
            consumer.pulling = consumer.pulling.saturating_sub(missing);
        }
    }

    fn on_answer(
        &mut self,
        now: Mono,
        header: &FrameHeader,
        answer: Answer,
    ) -> Result<(), Nonsense> {
        let handle = header.handle;
        match answer {
            Answer::HelloOk(hello) => {
                if self.state != State::Greeting {
                    return Err(Nonsense("a second hello"));
                }
                self.pending.remove(&header.correlation);
                self.state = State::Up;
                self.heartbeat_ms = hello.heartbeat_ms;
                self.shard = hello.shard;
                self.events.push_back(Event::Connected(Box::new(hello)));
                Ok(())
            }
            Answer::Error(error) => self.on_error(header, &error),
            _ if self.state != State::Up => Err(Nonsense("an answer before the hello's")),
            Answer::PublishError(error) => self.on_publish_error(now, handle, &error),
            Answer::Drain(drain) => {
                let reason = drain.reason.unwrap_or_default();
                self.events.push_back(Event::Drain { reason, deadline_ms: drain.deadline_ms });
                Ok(())
            }
            Answer::ProducerOpened(opened) => {
                self.pending.remove(&header.correlation);
                self.on_producer_opened(handle, &opened)
            }
            Answer::ConsumerOpened(opened) => {
                self.pending.remove(&header.correlation);
                self.on_consumer_opened(handle, &opened)
            }
            Answer::Blocked(blocked) => self.on_blocked(handle, blocked),
            Answer::Unblocked(unblocked) => self.on_unblocked(handle, unblocked.window_bytes_total),
            answer => {
                let correlation = header.correlation;
                if self.pending.remove(&correlation) != Some(Pending::Request) {
                    return Err(Nonsense("an answer to a request that was not made"));
                }
                self.events.push_back(Event::Answered { correlation, answer: Box::new(answer) });
                Ok(())
            }
        }
    }

    fn on_error(&mut self, header: &FrameHeader, error: &wire::ErrorT) -> Result<(), Nonsense> {
        let error = BrokerError::from_wire(error);
        let (handle, correlation) = (header.handle, header.correlation);
        let pending = self.pending.remove(&correlation);
        let fatal = error.code.is_some_and(ErrorCode::is_fatal);
        // Draining has a fatal code, but a request may be refused by it while the connection lives.
        let refusal = error.code == Some(ErrorCode::Draining) && (pending.is_some() || handle != 0);
        if pending == Some(Pending::Hello) || fatal && !refusal {
            self.lost(LostReason::Fatal(error));
            return Ok(());
        }
        match pending {
            Some(Pending::Open(handle)) => self.on_open_refused(handle, error),
            Some(Pending::Pull(messages_max)) => {
                self.pull_ended(handle, messages_max);
                self.events.push_back(Event::Refused { correlation, error });
            }
            // A handle that the broker does not know is as good as closed.
            Some(Pending::Close(handle)) => {
                return self.on_closed(&FrameHeader { handle, ..FrameHeader::default() });
            }
            Some(Pending::Probe | Pending::Hello | Pending::AskBlocked(_)) => {
                self.events.push_back(Event::Fault { handle, error });
            }
            Some(Pending::AckPart(asked)) => {
                if self.pending.remove(&asked).is_some() {
                    self.events.push_back(Event::Refused { correlation: asked, error });
                }
            }
            Some(Pending::Request | Pending::Ping | Pending::Ack { .. } | Pending::AckBarrier) => {
                self.events.push_back(Event::Refused { correlation, error });
            }
            None => self.on_fault(handle, error),
        }
        Ok(())
    }

    /// A fault of an open handle, or of none. Some end the handle; CLOSED follows then.
    fn on_fault(&mut self, handle: u32, error: BrokerError) {
        let ends = matches!(
            error.code,
            Some(
                ErrorCode::QueueDeleted
                    | ErrorCode::SubscriptionDeleted
                    | ErrorCode::ProducerFenced
                    | ErrorCode::Draining
            )
        );
        match self.slots.get_mut((handle as usize).wrapping_sub(1)) {
            Some(Some(Slot::Producer(producer))) if ends => {
                producer.went_down();
                self.events.push_back(Event::ProducerDown { handle, error });
            }
            Some(Some(Slot::Consumer(consumer))) if ends => {
                consumer.went_down();
                self.events.push_back(Event::ConsumerDown { handle, error });
            }
            _ => self.events.push_back(Event::Fault { handle, error }),
        }
    }

    fn on_open_refused(&mut self, handle: u32, error: BrokerError) {
        match self.slots.get_mut((handle as usize).wrapping_sub(1)) {
            Some(Some(Slot::Producer(producer))) => {
                producer.went_down();
                if error.code == Some(ErrorCode::ProducerUnknown) {
                    return self.renew(handle);
                }
                self.events.push_back(Event::ProducerDown { handle, error });
            }
            Some(Some(Slot::Consumer(consumer))) => {
                consumer.went_down();
                self.events.push_back(Event::ConsumerDown { handle, error });
            }
            _ => {}
        }
    }

    /// The broker has forgotten the producer: takes a new id and opens again.
    fn renew(&mut self, handle: u32) {
        let producer_id = self.prng.next_u64().max(1);
        let Some(Some(Slot::Producer(producer))) = self.slots.get_mut(handle as usize - 1) else {
            return;
        };
        producer.renew(producer_id);
        let messages = producer.ordinal_last() - producer.answered_ordinal();
        self.events.push_back(Event::ProducerRenewed { handle, messages });
        if producer.phase == Phase::Down {
            self.reopen(handle);
        } else {
            producer.phase = Phase::Reopening;
            let correlation = self.next_correlation(Pending::Close(handle));
            self.output.frame(Opcode::ProducerClose, handle, correlation, &[]);
        }
    }

    fn on_producer_opened(
        &mut self,
        handle: u32,
        opened: &wire::ProducerOpenedT,
    ) -> Result<(), Nonsense> {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Producer(producer))) = slot else {
            return Err(Nonsense("an open producer that was not asked for"));
        };
        if producer.phase != Phase::Opening {
            return Ok(());
        }
        let before = producer.answered_ordinal();
        producer.home_shard = opened.home_shard;
        producer.opened(
            opened.last_sequence,
            opened.window_bytes_total,
            opened.message_bytes_max,
            opened.blocked,
        )?;
        let ordinal = producer.answered_ordinal();
        producer.pump(&mut self.output);
        self.events.push_back(Event::ProducerOpened { handle });
        if ordinal > before {
            self.events.push_back(confirmed(handle, ordinal));
        }
        if opened.blocked {
            let reason = opened.blocked_reason.clone().unwrap_or_default();
            self.events.push_back(Event::Blocked { handle, reason, retry_after_ms: 0 });
        }
        Ok(())
    }

    fn on_consumer_opened(
        &mut self,
        handle: u32,
        opened: &wire::ConsumerOpenedT,
    ) -> Result<(), Nonsense> {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Consumer(consumer))) = slot else {
            return Err(Nonsense("an open consumer that was not asked for"));
        };
        if consumer.phase == ConsumerPhase::Opening {
            consumer.opened(opened.lease_ms, opened.home_shard);
            // Credit that was granted while the open was under way.
            self.consumers_dirty |= consumer.grant != (0, 0);
            self.events.push_back(Event::ConsumerOpened { handle });
        }
        Ok(())
    }

    fn on_blocked(&mut self, handle: u32, blocked: wire::BlockedT) -> Result<(), Nonsense> {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Producer(producer))) = slot else { return Ok(()) };
        if producer.hold != Hold::Draining {
            producer.hold = Hold::Blocked;
        }
        let reason = blocked.reason.unwrap_or_default();
        let retry_after_ms = blocked.retry_after_ms;
        self.events.push_back(Event::Blocked { handle, reason, retry_after_ms });
        Ok(())
    }

    fn on_unblocked(&mut self, handle: u32, window_bytes_total: u64) -> Result<(), Nonsense> {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Producer(producer))) = slot else { return Ok(()) };
        producer.grant(window_bytes_total);
        if producer.hold == Hold::Blocked {
            producer.hold = Hold::Nothing;
        }
        producer.pump(&mut self.output);
        self.events.push_back(Event::Unblocked { handle });
        Ok(())
    }

    fn on_publish_error(
        &mut self,
        now: Mono,
        handle: u32,
        body: &wire::ErrorT,
    ) -> Result<(), Nonsense> {
        let slot = self.slots.get_mut((handle as usize).wrapping_sub(1));
        let Some(Some(Slot::Producer(producer))) = slot else {
            return Err(Nonsense("a refusal for no producer"));
        };
        if producer.phase != Phase::Open {
            return Ok(());
        }
        let error = BrokerError::from_wire(body);
        producer.grant(body.window_bytes_total);
        let forgotten = match error.code {
            Some(ErrorCode::ProducerUnknown) => true,
            // The broker holds less of this producer than it has confirmed.
            Some(ErrorCode::SequenceGap) => body.sequence < producer.next_sequence_to_open(),
            _ => false,
        };
        if forgotten {
            self.renew(handle);
            return Ok(());
        }
        if matches!(error.code, Some(ErrorCode::ProducerFenced | ErrorCode::ProducerMismatch)) {
            producer.went_down();
            self.events.push_back(Event::ProducerDown { handle, error });
            return Ok(());
        }
        let before = producer.answered_ordinal();
        producer.resume_at(body.sequence)?;
        let ordinal = producer.answered_ordinal();
        if ordinal > before {
            self.events.push_back(confirmed(handle, ordinal));
        }
        let blocked = producer.hold == Hold::Blocked;
        let mut ask = false;
        match error.code {
            Some(ErrorCode::Draining) => producer.hold = Hold::Draining,
            _ if blocked && error.is_retryable() => {}
            // The limits of a queue that is full. BLOCKED comes behind the refusal, if at all.
            Some(code)
                if code.is_of_memory()
                    || matches!(code, ErrorCode::QueueMessagesMax | ErrorCode::QueueBytesMax) =>
            {
                producer.hold = Hold::Asking(error);
                ask = true;
            }
            Some(ErrorCode::ChecksumMismatch) if producer.checksum_fails() => {
                Self::refuse(producer, &mut self.events, error);
            }
            Some(ErrorCode::SequenceGap) => producer.hold = producer.retry_at(now, &error),
            _ if error.is_retryable() => producer.hold = producer.retry_at(now, &error),
            _ => Self::refuse(producer, &mut self.events, error),
        }
        if matches!(producer.hold, Hold::Until(at) if at <= now) {
            producer.hold = Hold::Nothing;
        }
        producer.pump(&mut self.output);
        if ask {
            self.send_ping(Pending::AskBlocked(handle));
        }
        Ok(())
    }

    fn refuse(
        producer: &mut super::Producer,
        events: &mut std::collections::VecDeque<Event>,
        error: BrokerError,
    ) {
        let refused = match error.code {
            Some(ErrorCode::MessageTooLarge) => producer.refuse_first(),
            _ => producer.refuse_front(),
        };
        if let Some((first, last)) = refused {
            let handle = producer.handle;
            events.push_back(Event::PublishFailed { handle, first, last, error });
        }
    }
}

/// What the broker confirms in passing: by where it resumes, or by what it says at an open.
fn confirmed(handle: u32, ordinal: u64) -> Event {
    Event::Confirmed { handle, ordinal, duplicates: 0, dropped: 0, reached: Reached::Memory }
}
