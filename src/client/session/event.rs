//! What a session reports.

use crate::client::{BrokerError, LostReason};
use crate::protocol::control::Answer;
use crate::protocol::hot::{AckDone, DeliverHeader, Reached};
use crate::protocol::wire;

/// Something that the caller of a [`Session`](super::Session) must know.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The broker has answered the hello.
    Connected(Box<wire::HelloOkT>),
    /// The connection is of no use any more: close the socket, then
    /// [`handle_disconnected`](super::Session::handle_disconnected).
    Lost(LostReason),
    /// The broker is going down.
    Drain {
        /// Why, in its words.
        reason: String,
        /// It closes the connection after so many milliseconds at the latest.
        deadline_ms: u32,
    },
    /// The answer to a request.
    Answered {
        /// The request's.
        correlation: u32,
        /// What it says.
        answer: Box<Answer>,
    },
    /// The answer to a ping.
    Pong {
        /// The ping's.
        correlation: u32,
    },
    /// A request was refused.
    Refused {
        /// The request's.
        correlation: u32,
        /// Why.
        error: BrokerError,
    },
    /// The connection ended before the answer to a request came.
    Unanswered {
        /// The request's.
        correlation: u32,
    },
    /// A fault that the broker reports unasked.
    Fault {
        /// The handle it concerns; 0: none.
        handle: u32,
        /// What it says.
        error: BrokerError,
    },

    /// The producer is open; what was unconfirmed is being sent again.
    ProducerOpened {
        /// Which.
        handle: u32,
    },
    /// The broker refused the open, or closed the producer by itself. Messages are kept:
    /// [`reopen`](super::Session::reopen) sends them, [`abandon`](super::Session::abandon) gives
    /// up.
    ProducerDown {
        /// Which.
        handle: u32,
        /// Why.
        error: BrokerError,
    },
    /// The broker did not know the producer id any more; a new one was taken, and what was
    /// unconfirmed is sent again under it.
    ProducerRenewed {
        /// Which.
        handle: u32,
        /// Messages to be sent again.
        messages: u64,
    },
    /// All messages up to `ordinal` have their answer: those that no
    /// [`Event::PublishFailed`] named are confirmed.
    Confirmed {
        /// Which producer.
        handle: u32,
        /// As [`publish`](super::Session::publish) gave it.
        ordinal: u64,
        /// Of these, how many the broker had before.
        duplicates: u32,
        /// Of these, how many the queue's policy dropped.
        dropped: u32,
        /// What was reached.
        reached: Reached,
    },
    /// Messages were refused for good.
    PublishFailed {
        /// Which producer.
        handle: u32,
        /// Ordinal of the first.
        first: u64,
        /// Ordinal of the last.
        last: u64,
        /// Why.
        error: BrokerError,
    },
    /// The queue takes nothing for now.
    Blocked {
        /// Which producer.
        handle: u32,
        /// Why.
        reason: String,
        /// When it may be over; 0: the broker does not say.
        retry_after_ms: u32,
    },
    /// It takes messages again.
    Unblocked {
        /// Which producer.
        handle: u32,
    },
    /// The answer to a close. The handle may be used again.
    Closed {
        /// Which producer or consumer.
        handle: u32,
    },

    /// The consumer is open.
    ConsumerOpened {
        /// Which.
        handle: u32,
    },
    /// The broker refused the open, or closed the consumer by itself;
    /// [`reopen`](super::Session::reopen) tries again.
    ConsumerDown {
        /// Which.
        handle: u32,
        /// Why.
        error: BrokerError,
    },
    /// Messages; [`records`](super::Session::records) gives them, until more bytes are handled.
    Delivered(Run),
    /// A message that came in fragments.
    DeliveredLarge(Box<Large>),
    /// The answer to acks that were sent by [`ack_now`](super::Session::ack_now).
    Acked {
        /// As `ack_now` gave it.
        correlation: u32,
        /// What became of them.
        done: AckDone,
    },
    /// A pull has ended; what it brought was delivered before.
    PullDone {
        /// As `pull` gave it.
        correlation: u32,
        /// The consumer.
        handle: u32,
        /// Messages that it brought.
        messages: u32,
    },
}

/// A run of delivered messages, in the session's input buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The consumer.
    pub handle: u32,
    /// Which connection of the session it came by, counted from 1; acks name it.
    pub connection: u32,
    /// Delivery ids, base sequence, time, attempts.
    pub header: DeliverHeader,
    /// Where the records stand in the input buffer.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Of the input buffer, to catch runs that have been overwritten.
    pub(super) generation: u64,
}

impl Run {
    /// Bytes of the records, headers included: what they cost in credit.
    pub fn records_bytes(&self) -> usize {
        self.end - self.start
    }
}

/// A message that came in fragments, put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Large {
    /// The consumer.
    pub handle: u32,
    /// Which connection of the session it came by.
    pub connection: u32,
    /// Header of its first fragment.
    pub header: DeliverHeader,
    /// Its place in the queue.
    pub sequence: u64,
    /// When the broker took it: microseconds since 1970 UTC.
    pub accepted_us: u64,
    /// The encoded properties, without the one that gives the body's length.
    pub properties: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
    /// Bytes of all its records, headers included: what it cost in credit.
    pub records_bytes: usize,
}
