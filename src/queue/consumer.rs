//! One consumer of a subscription: its credit, its pulls and its leases.

use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, RUN_RECORDS_MAX};
use crate::queue::lease::Leases;
use crate::queue::log::{Position, Run};
use crate::queue::portion::History;
use std::collections::VecDeque;

/// Who owns a producer or consumer: a connection and its handle there. The queue only carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The connection.
    pub connection: Key,
    /// Its handle.
    pub handle: u32,
}

/// Names a consumer of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConsumerKey {
    /// The subscription that it is of.
    pub subscription: Key,
    /// The consumer there.
    pub consumer: Key,
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
    /// Its leases in milliseconds; 0: as the subscription says.
    pub lease_ms: u32,
    /// Messages that it may have in flight; 0: no limit of its own.
    pub unacked_max: u64,
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
    /// Its time is over: it ends with the large message that is on its way.
    pub over: bool,
    /// Its time is over: it waits only for what is being read.
    pub late: bool,
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
    /// What happened to it, this delivery included.
    pub history: History,
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
    /// What it has in flight.
    pub leases: Leases,
    /// Messages of these.
    pub in_flight: u64,
    /// How long a lease is.
    pub lease_ms: u32,
    /// Messages that it may have in flight.
    pub unacked_max: u64,
    /// When the subscription looks for leases of it that have ended; never too late.
    pub armed: Option<Mono>,
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
    /// A consumer that has nothing yet; `lease_ms` where it has no wish.
    pub fn new(owner: Owner, options: ConsumerOptions, lease_ms: u32) -> Self {
        Consumer {
            owner,
            auto_ack: options.auto_ack,
            checksum: options.checksum,
            credit_messages: options.credit_messages,
            credit_bytes: options.credit_bytes as i64,
            pulls: VecDeque::new(),
            leases: Leases::default(),
            in_flight: 0,
            lease_ms: if options.lease_ms == 0 { lease_ms } else { options.lease_ms },
            unacked_max: if options.unacked_max == 0 { u64::MAX } else { options.unacked_max },
            armed: None,
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
                || (self.has_room()
                    && (!self.pulls.is_empty()
                        || (self.credit_messages > 0 && self.credit_bytes > 0))))
    }

    /// Whether it may have more in flight.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.in_flight < self.unacked_max
    }

    /// The last delivery id that was given out completely.
    pub fn delivered(&self) -> u64 {
        match self.large {
            Some(large) => large.delivery_id - 1,
            None => self.next_delivery - 1,
        }
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
        let room = self.unacked_max.saturating_sub(self.in_flight);
        (messages.min(RUN_RECORDS_MAX.min(room as usize) as u32), bytes)
    }

    /// Takes a run out of what [`Consumer::allowance`] said. True if it is the first that the
    /// oldest pull brings.
    pub fn spend(&mut self, messages: u32, bytes: u64) -> bool {
        match self.pulls.front_mut() {
            Some(pull) => {
                pull.messages_left -= messages;
                pull.bytes_left = pull.bytes_left.saturating_sub(bytes);
                pull.brought += messages;
                pull.brought == messages
            }
            None => {
                self.credit_messages -= messages;
                self.credit_bytes -= bytes as i64;
                false
            }
        }
    }
}
