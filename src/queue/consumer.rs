//! One consumer of a subscription: its credit, its pulls and its leases.

use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, RUN_RECORDS_MAX};
use crate::queue::log::{Position, Run};
use std::collections::VecDeque;

/// So many finished leases are not worth a look.
const FINISHED_FEW: usize = 32;

/// Who owns a producer or consumer: a connection and its handle there. The queue only carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The connection.
    pub connection: Key,
    /// Its handle.
    pub handle: u32,
}

/// What a consumer asked for when it was opened.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerOptions {
    /// Delivered means done.
    pub auto_ack: bool,
    /// Deliveries carry a checksum.
    pub checksum: bool,
    /// First credit.
    pub credit_messages: u32,
    /// First credit.
    pub credit_bytes: u64,
}

/// A wait for messages beside push.
#[derive(Clone, Copy, Debug)]
pub struct PullState {
    /// Names it in its answer.
    pub correlation: u32,
    /// Messages that it may still bring.
    pub messages_left: u32,
    /// Bytes that it may still bring; the last message may pass it.
    pub bytes_left: u64,
    /// Ends then at the latest.
    pub deadline: Mono,
    /// Messages that it brought.
    pub brought: u32,
}

/// A run in flight.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Delivery id of the run's first message.
    pub first_delivery: u64,
    /// What was delivered.
    pub run: Run,
    /// Messages of it not yet done.
    pub left: u32,
    acked: [u64; RUN_RECORDS_MAX / 64],
}

impl Lease {
    /// Of a run just delivered.
    pub fn new(first_delivery: u64, run: Run) -> Self {
        debug_assert!(run.count as usize <= RUN_RECORDS_MAX);
        Lease { first_delivery, run, left: run.count, acked: [0; RUN_RECORDS_MAX / 64] }
    }

    /// One past the delivery id of the run's last message.
    pub fn end_delivery(&self) -> u64 {
        self.first_delivery + u64::from(self.run.count)
    }

    /// Whether the n-th message is done.
    pub fn is_acked(&self, nth: u32) -> bool {
        self.left == 0 || self.acked[nth as usize / 64] & 1 << (nth % 64) != 0
    }

    /// The next stretch of messages in `from..to` that are not done, as `(skip, take)`.
    pub fn next_unacked(&self, from: u32, to: u32) -> Option<(u32, u32)> {
        let start = (from..to).find(|&nth| !self.is_acked(nth))?;
        let end = (start..to).find(|&nth| self.is_acked(nth)).unwrap_or(to);
        Some((start, end - start))
    }

    /// Marks a stretch that was not done as done.
    pub fn mark(&mut self, skip: u32, take: u32) {
        for nth in skip..skip + take {
            self.acked[nth as usize / 64] |= 1 << (nth % 64);
        }
        self.left -= take;
    }
}

/// A large message on its way out, fragment by fragment.
#[derive(Clone, Copy, Debug)]
pub struct LargeProgress {
    /// The message.
    pub run: Run,
    /// Its next fragment.
    pub at: Position,
    /// Its delivery id.
    pub delivery_id: u64,
}

/// See the module.
pub struct Consumer {
    /// The connection and handle.
    pub owner: Owner,
    /// Delivered means done.
    pub auto_ack: bool,
    /// Deliveries carry a checksum.
    pub checksum: bool,
    /// Messages that may be pushed.
    pub credit_messages: u32,
    /// Bytes that may be pushed; below zero after a message that passed it.
    pub credit_bytes: i64,
    /// Waiting pulls, oldest first.
    pub pulls: VecDeque<PullState>,
    /// Runs in flight, by delivery id; finished ones stay until they are at the front or
    /// outnumber the others.
    pub leases: VecDeque<Lease>,
    /// How many of these are finished.
    pub finished: usize,
    /// Delivery id of the next message.
    pub next_delivery: u64,
    /// A large message on its way.
    pub large: Option<LargeProgress>,
    /// Whether it stands in the ring of those that want messages.
    pub queued: bool,
    /// Whether its connection could take no more; the connection says when it can.
    pub stalled: bool,
}

impl Consumer {
    /// A consumer that has nothing yet.
    pub fn new(owner: Owner, options: ConsumerOptions) -> Self {
        Consumer {
            owner,
            auto_ack: options.auto_ack,
            checksum: options.checksum,
            credit_messages: options.credit_messages,
            credit_bytes: options.credit_bytes as i64,
            pulls: VecDeque::new(),
            leases: VecDeque::new(),
            finished: 0,
            next_delivery: 1,
            large: None,
            queued: false,
            stalled: false,
        }
    }

    /// Whether it may be sent a message now, as far as it knows.
    pub fn wants(&self) -> bool {
        !self.stalled
            && (self.large.is_some()
                || !self.pulls.is_empty()
                || (self.credit_messages > 0 && self.credit_bytes > 0))
    }

    /// Adds credit. False, and nothing added, if it would pass what a consumer may hold.
    pub fn add_credit(&mut self, messages: u32, bytes: u64) -> bool {
        let messages = self.credit_messages.checked_add(messages);
        let bytes = i64::try_from(bytes).ok().and_then(|b| self.credit_bytes.checked_add(b));
        match (messages, bytes) {
            (Some(messages), Some(bytes))
                if messages <= CREDIT_MESSAGES_MAX && bytes <= CREDIT_BYTES_MAX as i64 =>
            {
                self.credit_messages = messages;
                self.credit_bytes = bytes;
                true
            }
            _ => false,
        }
    }

    /// Messages and bytes that the next run may have: of the oldest pull, else of the credit.
    pub fn allowance(&self) -> (u32, u64) {
        let (messages, bytes) = match self.pulls.front() {
            Some(pull) => (pull.messages_left, pull.bytes_left),
            None => (self.credit_messages, self.credit_bytes.max(0) as u64),
        };
        (messages.min(RUN_RECORDS_MAX as u32), bytes)
    }

    /// Forgets finished leases, at the latest when they outnumber the others: one message that is
    /// never acked must not keep the leases of all that came after it. Returns how many.
    pub fn drop_finished(&mut self) -> usize {
        let before = self.leases.len();
        while self.leases.front().is_some_and(|lease| lease.left == 0) {
            self.leases.pop_front();
            self.finished -= 1;
        }
        if self.finished > FINISHED_FEW && 2 * self.finished > self.leases.len() {
            self.leases.retain(|lease| lease.left > 0);
            self.finished = 0;
        }
        before - self.leases.len()
    }

    /// Takes a run out of what [`Consumer::allowance`] said.
    pub fn spend(&mut self, messages: u32, bytes: u64) {
        match self.pulls.front_mut() {
            Some(pull) => {
                pull.messages_left -= messages;
                pull.bytes_left = pull.bytes_left.saturating_sub(bytes);
                pull.brought += messages;
            }
            None => {
                self.credit_messages -= messages;
                self.credit_bytes -= bytes as i64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_finds_what_is_left() {
        let run = Run {
            at: Position::chunk_start(0),
            count: 100,
            bytes: 0,
            sequence: 1,
            large: false,
            attempts: 0,
        };
        let mut lease = Lease::new(1, run);
        lease.mark(10, 60);
        assert_eq!(lease.left, 40);
        assert_eq!(lease.next_unacked(0, 100), Some((0, 10)));
        assert_eq!(lease.next_unacked(10, 100), Some((70, 30)));
        assert_eq!(lease.next_unacked(10, 70), None);
        lease.mark(0, 10);
        lease.mark(70, 30);
        assert_eq!(lease.next_unacked(0, 100), None);
    }
}
