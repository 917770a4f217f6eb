//! What a queue was told to do: its options, what happens when it is full, and how a refusal reads.

use crate::limits::{self, NAME_BYTES_MAX};
use crate::protocol::error::ErrorCode;
use crate::protocol::hot::Reached;
pub use crate::queue::backoff::{Backoff, BackoffRule};

/// What happens to a publish that does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// Refused until there is room; the producers are told when.
    #[default]
    Block,
    /// Refused with an error; what then is the producer's affair.
    Reject,
    /// The oldest messages that nobody has in flight make room.
    DropOldest,
    /// The publish is confirmed and its messages are dropped.
    DropNewest,
}

/// Options of a queue; 0 means no limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Messages held at most, in every state.
    pub messages_max: u64,
    /// Bytes of records held at most, in every state.
    pub bytes_max: u64,
    /// What happens at a limit.
    pub on_full: OnFull,
    /// Properties and body of one message at most, in bytes.
    pub message_bytes_max: u64,
    /// What a publish has reached when it is confirmed. More than memory: the queue is durable.
    pub confirm: Reached,
}

impl QueueOptions {
    /// Whether the queue outlives the broker's process.
    pub fn is_durable(&self) -> bool {
        self.confirm != Reached::Memory
    }
}

/// Options of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// How long a consumer has a message before it counts as failed, in milliseconds.
    pub lease_ms: u32,
    /// A message that failed so often is dead-lettered; `ATTEMPTS_UNLIMITED`: it never is.
    pub max_attempts: u32,
    /// How long a failed message waits.
    pub backoff: Backoff,
    /// Where dead letters go; `None`: to the queue's name with `.dead` behind it.
    pub dead_letter: Option<Box<str>>,
    /// Messages in flight at most, of all consumers together; 0: no limit of its own.
    pub unacked_max: u64,
    /// The subscription ends when it had no consumer for so long; 0: never.
    pub expires_after_ms: u64,
}

impl Default for SubscriptionOptions {
    fn default() -> Self {
        SubscriptionOptions {
            lease_ms: limits::LEASE_MS_DEFAULT,
            max_attempts: limits::ATTEMPTS_DEFAULT,
            backoff: Backoff::default(),
            dead_letter: None,
            unacked_max: 0,
            expires_after_ms: 0,
        }
    }
}

/// Where a new subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the next message.
    Now,
    /// With the oldest that another subscription still holds.
    Oldest,
}

/// Bounds that a queue keeps by itself, whatever its options.
#[derive(Clone, Copy, Debug)]
pub struct QueueBounds {
    /// Messages in flight of one subscription; at the bound it pauses.
    pub in_flight_max: u64,
    /// Messages from the oldest unacked to the cursor; at the bound the subscription pauses.
    pub ack_span_max: u64,
    /// Messages of one subscription that wait for their back-off or their move; at the bound it
    /// pauses.
    pub retry_waiting_max: u64,
    /// Producer ids remembered.
    pub producers_max: usize,
    /// Bytes that a producer handle is granted ahead.
    pub window_bytes: u64,
}

impl Default for QueueBounds {
    fn default() -> Self {
        QueueBounds {
            in_flight_max: limits::IN_FLIGHT_MAX,
            ack_span_max: limits::ACK_SPAN_MAX,
            retry_waiting_max: limits::RETRY_WAITING_MAX,
            producers_max: limits::PRODUCERS_PER_QUEUE_MAX,
            window_bytes: limits::WINDOW_BYTES,
        }
    }
}

/// A publish, or the rest of one, was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub code: ErrorCode,
    /// What happened, for people.
    pub text: String,
    /// Producer sequence of the first record that was not taken: resume there.
    pub sequence: u64,
    /// 0: not by waiting.
    pub retry_after_ms: u32,
    /// Name and value of the limit, where one was hit.
    pub limit: Option<(&'static str, u64)>,
}

/// Why a queue takes nothing for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// `QueueMessagesMax`, `QueueBytesMax`, or that memory is full: `MemoryLimit`, `DiskLimit`,
    /// `DiskFull`, `DiskError`.
    pub code: ErrorCode,
    /// Bytes that the refused publish needed.
    pub needed_bytes: usize,
}

pub use crate::limits::{BLOCK_RETRY_MS, REJECT_RETRY_MS};

/// Whether `name` may name a queue of a user: 1 to 200 of `A-Z a-z 0-9 . _ - :`, not the system's.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed)
}
