//! The verbs of consumers: credit, acks, nacks, extensions, pulls, and the frames they leave in.

use super::consumer::{Consumer, ConsumerPhase};
use super::{ConsumerSettings, Event, Pending, Session, Slot};
use crate::base::time::Mono;
use crate::limits::{ACK_RANGES_MAX, CREDIT_ENTRIES_MAX, EXTEND_RANGES_MAX, NACK_TEXT_BYTES_MAX};
use crate::protocol::frame::Opcode;
use crate::protocol::hot::{
    AckDone, AckRange, CreditEntry, ExtendRange, Nack, NackKind, NackRange, Pull,
};

/// What becomes of deliveries that are not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// Failed, given back, or rejected.
    pub kind: NackKind,
    /// Of failed ones: when they are ready again; `None`: as the subscription's back-off says.
    pub delay_ms: Option<u32>,
    /// Why, for people; cut at `NACK_TEXT_BYTES_MAX`.
    pub text: &'a str,
}

impl Session {
    /// Makes a consumer; opened at once, or with the next connection. `None` if there are as many
    /// handles as there may be.
    pub fn open_consumer(&mut self, settings: ConsumerSettings) -> Option<u32> {
        let at = self.free_slot()?;
        let handle = at as u32 + 1;
        self.slots[at] = Some(Slot::Consumer(Box::new(Consumer::new(handle, settings))));
        self.reopen(handle);
        Some(handle)
    }

    /// The broker may send so much more. Goes out with the next transmit.
    ///
    /// # Panics
    /// If `handle` is no consumer; so also below.
    pub fn credit(&mut self, handle: u32, messages: u32, bytes: u64) {
        let consumer = self.consumer(handle);
        consumer.add_credit(messages, bytes);
        self.consumers_dirty |= consumer.phase == ConsumerPhase::Open;
    }

    /// Deliveries `first..=last` of `connection` are done. Goes out with the next transmit; false
    /// if they are of an older connection, and the ack is late.
    #[inline]
    pub fn ack(&mut self, handle: u32, connection: u32, first: u64, last: u64) -> bool {
        let Some(consumer) = self.answering(handle, connection) else { return false };
        consumer.add_ack(first, last);
        true
    }

    /// Deliveries `first..=last` of `connection` are not done. As [`ack`](Session::ack).
    pub fn nack(
        &mut self,
        handle: u32,
        connection: u32,
        first: u64,
        last: u64,
        refusal: &Refusal<'_>,
    ) -> bool {
        let Some(consumer) = self.answering(handle, connection) else { return false };
        let text = cut_text(refusal.text);
        let (kind, delay_ms) = (refusal.kind, refusal.delay_ms);
        consumer.add_nack(NackRange { handle, kind, first, last, delay_ms }, text);
        true
    }

    /// The leases of deliveries `first..=last` of `connection` shall end `lease_ms` from now; 0: as
    /// long as the consumer's leases are. As [`ack`](Session::ack).
    pub fn extend(
        &mut self,
        handle: u32,
        connection: u32,
        first: u64,
        last: u64,
        lease_ms: u32,
    ) -> bool {
        let Some(consumer) = self.answering(handle, connection) else { return false };
        consumer.add_extend(ExtendRange { handle, lease_ms, first, last });
        true
    }

    /// The consumer, if it is open by `connection`; then it will have something to send.
    #[inline]
    fn answering(&mut self, handle: u32, connection: u32) -> Option<&mut Consumer> {
        let current = self.connection == connection && self.is_connected();
        if !current || self.consumer(handle).phase != ConsumerPhase::Open {
            return None;
        }
        self.consumers_dirty = true;
        Some(self.consumer(handle))
    }

    /// Sends acks, nacks and extensions that wait; [`Event::Acked`] with this correlation comes
    /// when the broker has answered these and all before them, and sums up the acks and nacks sent
    /// by this call. `None` without a connection.
    pub fn ack_now(&mut self) -> Option<u32> {
        if !self.is_connected() {
            return None;
        }
        let correlation = self.next_correlation(Pending::AckBarrier);
        let parts = self.flush_consumers(correlation);
        if parts == 0 {
            self.output.frame(Opcode::Ping, 0, correlation, &[]);
        } else {
            self.pending.insert(correlation, Pending::Ack { parts, done: AckDone::default() });
        }
        Some(correlation)
    }

    /// A frame of an [`ack_now`](Session::ack_now) was answered; its last one gives the event.
    pub(super) fn ack_part_done(&mut self, correlation: u32, done: AckDone) {
        let Some(Pending::Ack { parts, done: sum }) = self.pending.get_mut(&correlation) else {
            // An error has answered for all its frames.
            return;
        };
        sum.acked = sum.acked.saturating_add(done.acked);
        sum.late = sum.late.saturating_add(done.late);
        *parts -= 1;
        if *parts == 0 {
            let done = *sum;
            self.pending.remove(&correlation);
            self.events.push_back(Event::Acked { correlation, done });
        }
    }

    /// Asks for up to `messages_max` messages within `wait_ms`; [`Event::PullDone`] with this
    /// correlation ends it. `None` unless the consumer is open.
    pub fn pull(
        &mut self,
        handle: u32,
        messages_max: u32,
        wait_ms: u32,
        bytes_max: u64,
    ) -> Option<u32> {
        if self.consumer(handle).phase != ConsumerPhase::Open || !self.is_connected() {
            return None;
        }
        self.consumer(handle).pulling += messages_max;
        let correlation = self.next_correlation(Pending::Pull(messages_max));
        let pull = Pull { messages_max, wait_ms, bytes_max };
        self.output.frame(Opcode::Pull, handle, correlation, &pull.encode());
        Some(correlation)
    }

    /// How long the broker gives this consumer for each delivery, in milliseconds; 0 while it is
    /// not known, and for a consumer with automatic acks.
    pub fn lease_ms(&mut self, handle: u32) -> u32 {
        self.consumer(handle).lease_ms()
    }

    pub(super) fn consumer(&mut self, handle: u32) -> &mut Consumer {
        match self.slots.get_mut(handle as usize - 1) {
            Some(Some(Slot::Consumer(consumer))) => consumer,
            _ => panic!("handle {handle} is no consumer"),
        }
    }

    /// Extends the leases of what is held, where half of them is over.
    pub(super) fn extend_due(&mut self, now: Mono) {
        for slot in self.slots.iter_mut().flatten() {
            let Slot::Consumer(consumer) = slot else { continue };
            if consumer.phase == ConsumerPhase::Open {
                self.consumers_dirty |= consumer.extend_held(now);
            }
        }
    }

    /// When the next lease wants to be extended.
    pub(super) fn extend_at(&self) -> Option<Mono> {
        let consumers = self.slots.iter().flatten().filter_map(|slot| match slot {
            Slot::Consumer(consumer) => consumer.extend_at(),
            Slot::Producer(_) => None,
        });
        consumers.min()
    }

    /// Writes what consumers have to say, several to a frame: extensions first, for what is
    /// answered cannot be extended any more. Where `asked` is not 0, the frames of acks and nacks
    /// carry correlations that stand for it; gives how many.
    pub(super) fn flush_consumers(&mut self, asked: u32) -> u32 {
        if !self.consumers_dirty {
            return 0;
        }
        self.consumers_dirty = false;
        let mut extends: Vec<ExtendRange> = Vec::new();
        let mut acks: Vec<AckRange> = Vec::new();
        let mut entries: Vec<CreditEntry> = Vec::new();
        let mut nacks = Vec::new();
        for slot in self.slots.iter_mut().flatten() {
            let Slot::Consumer(consumer) = slot else { continue };
            if consumer.phase != ConsumerPhase::Open {
                continue;
            }
            let handle = consumer.handle;
            extends.append(&mut consumer.extends);
            let ranges = consumer.acks.drain(..);
            acks.extend(ranges.map(|(first, last)| AckRange { handle, first, last }));
            nacks.append(&mut consumer.nacks);
            let (messages, bytes) = std::mem::take(&mut consumer.grant);
            if messages > 0 || bytes > 0 {
                entries.push(CreditEntry { handle, messages, bytes });
            }
        }
        for ranges in extends.chunks(EXTEND_RANGES_MAX) {
            self.output.frame_with(Opcode::Extend, 0, |payload| {
                ranges.iter().for_each(|range| payload.extend_from_slice(&range.encode()));
            });
        }
        let mut parts = 0;
        for ranges in acks.chunks(ACK_RANGES_MAX) {
            let correlation = self.part(asked, &mut parts);
            self.output.frame_with(Opcode::Ack, correlation, |payload| {
                ranges.iter().for_each(|range| payload.extend_from_slice(&range.encode()));
            });
        }
        for (text, ranges) in nacks {
            let correlation = self.part(asked, &mut parts);
            let nack = Nack { ranges, text: &text }.encode();
            self.output.frame(Opcode::Nack, 0, correlation, &nack);
        }
        for entries in entries.chunks(CREDIT_ENTRIES_MAX) {
            self.output.frame_with(Opcode::Credit, 0, |payload| {
                entries.iter().for_each(|entry| payload.extend_from_slice(&entry.encode()));
            });
        }
        parts
    }

    fn part(&mut self, asked: u32, parts: &mut u32) -> u32 {
        *parts += 1;
        if asked == 0 { 0 } else { self.next_correlation(Pending::AckPart(asked)) }
    }
}

/// As much of a text as a nack may carry, cut between characters.
fn cut_text(text: &str) -> &str {
    let mut end = text.len().min(NACK_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
