//! Preamble and frames.
//!
//! ```text
//! preamble, both ways, 8 bytes:  "FBAY" | u16 version | u16 zero
//! frame:  header (16 bytes) | payload
//!  0  u32  payload_bytes
//!  4  u8   opcode
//!  5  u8   flags          per opcode, unknown ones zero
//!  6  u16  zero
//!  8  u32  handle         producer or consumer; 0 where none is meant
//! 12  u32  correlation    of a request; its answer carries the same
//! ```

use crate::format::{u16_at, u32_at};
use crate::limits::{
    CONTROL_PAYLOAD_BYTES_MAX, FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, PREAMBLE_BYTES,
};

/// First bytes of a connection.
pub const MAGIC: [u8; 4] = *b"FBAY";
/// The protocol version of this program.
pub const VERSION: u16 = 1;

/// The preamble for `version`. A broker that refuses the client's version answers with 0.
pub fn preamble(version: u16) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&version.to_le_bytes());
    bytes
}

/// The version that a peer's preamble names; `None` if it is not a preamble.
pub fn preamble_version(bytes: &[u8; PREAMBLE_BYTES]) -> Option<u16> {
    (bytes[..4] == MAGIC && bytes[6..] == [0, 0]).then(|| u16_at(bytes, 4))
}

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a frame is. The numbers are the wire's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Opcode { $($(#[$doc])* $name = $number,)* }

        impl Opcode {
            /// All opcodes, by number.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];

            /// The opcode of a number, if this version knows it.
            pub fn from_u8(number: u8) -> Option<Opcode> {
                match number { $($number => Some(Opcode::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    /// Client: first frame. Body `Hello`.
    Hello = 1,
    /// Broker: answer to hello. Body `HelloOk`.
    HelloOk = 2,
    /// Broker: a request failed, or a fault unasked. Body `Error`.
    Error = 3,
    /// Either: answer me. Empty.
    Ping = 4,
    /// Either: the answer, with the same correlation. Empty.
    Pong = 5,
    /// Broker: it is going down. Body `Drain`.
    Drain = 6,
    /// Client: open a producer under the frame's handle. Body `ProducerOpen`.
    ProducerOpen = 16,
    /// Broker: it is open. Body `ProducerOpened`.
    ProducerOpened = 17,
    /// Client: one batch, `format/batch.rs`.
    Publish = 18,
    /// Broker: cumulative answer to publishes, `hot::Confirm`.
    Confirm = 19,
    /// Broker: a publish was refused. Body `Error` with `sequence` and `window_bytes_total`.
    PublishError = 20,
    /// Broker: the queue takes nothing for now. Body `Blocked`.
    Blocked = 21,
    /// Broker: it takes again. Body `Unblocked`.
    Unblocked = 22,
    /// Client: close the producer. Empty; answered by `Closed`.
    ProducerClose = 23,
    /// Client: open a consumer under the frame's handle. Body `ConsumerOpen`.
    ConsumerOpen = 32,
    /// Broker: it is open. Body `ConsumerOpened`.
    ConsumerOpened = 33,
    /// Broker: a run of messages, `hot::DeliverHeader` and records.
    Deliver = 34,
    /// Client: more credit, for one or several consumers, `hot::CreditEntry`.
    Credit = 35,
    /// Client: done with ranges of delivery ids, of one or several consumers, `hot::AckRange`.
    Ack = 36,
    /// Broker: answer to an ack with a correlation, `hot::AckDone`.
    AckDone = 37,
    /// Client: give me up to so many now or within a time, `hot::Pull`.
    Pull = 38,
    /// Broker: a pull has ended, `hot::PullDone`; what it brought was delivered before.
    PullDone = 39,
    /// Client: close the consumer; what it has in flight is returned. Answered by `Closed`.
    ConsumerClose = 40,
    /// Broker: the handle is closed, on request or because its queue is gone.
    Closed = 41,
    /// Client: ranges of delivery ids failed, are given back, or are rejected, `hot::Nack`.
    /// Answered like an ack.
    Nack = 42,
    /// Client: new lease for ranges of delivery ids, `hot::ExtendRange`. Answered like an ack.
    Extend = 43,
    /// Client: body `QueueCreate`; answer `QueueDone`.
    QueueCreate = 48,
    /// Client: body `QueueUpdate`; answer `QueueDone`.
    QueueUpdate = 49,
    /// Client: body `QueueDelete`; answer `QueueRemoved`.
    QueueDelete = 50,
    /// Client: body `QueuePurge`; answer `QueueRemoved`.
    QueuePurge = 51,
    /// Client: body `QueueList`; answer `QueueListing`.
    QueueList = 52,
    /// Client: body `QueueDescribe`; answer `QueueDescription`.
    QueueDescribe = 53,
    /// Client: body `QueuePeek`; answer `PeekedMessages`.
    QueuePeek = 54,
    /// Client: body `BrokerStats`; answer `Stats`.
    BrokerStats = 55,
    /// Client: body `SubscriptionCreate`; answer `QueueDone`.
    SubscriptionCreate = 56,
    /// Client: body `SubscriptionUpdate`; answer `QueueDone`.
    SubscriptionUpdate = 57,
    /// Client: body `SubscriptionDelete`; answer `QueueRemoved`.
    SubscriptionDelete = 58,
    /// Client: body `SubscriptionList`; answer `SubscriptionListing`.
    SubscriptionList = 59,
    /// Client: body `SubscriptionDescribe`; answer `SubscriptionDescription`.
    SubscriptionDescribe = 60,
    /// Client: body `Redrive`; answer `Redriven`.
    Redrive = 61,
    /// Client: body `Trim`; answer `Trimmed`.
    Trim = 62,
    /// Broker: answer of create and update.
    QueueDone = 64,
    /// Broker: answer of delete and purge.
    QueueRemoved = 65,
    /// Broker: answer of list.
    QueueListing = 66,
    /// Broker: answer of describe.
    QueueDescription = 67,
    /// Broker: answer of peek.
    PeekedMessages = 68,
    /// Broker: answer of stats.
    Stats = 69,
    /// Broker: answer of a list of subscriptions.
    SubscriptionListing = 70,
    /// Broker: answer of describing a subscription.
    SubscriptionDescription = 71,
    /// Broker: answer of a redrive.
    Redriven = 72,
    /// Broker: answer of a trim.
    Trimmed = 73,
}

/// Why a frame header ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Over [`FRAME_PAYLOAD_BYTES_MAX`], or over [`CONTROL_PAYLOAD_BYTES_MAX`] to the broker for
    /// anything but a publish.
    #[error("frame payload of {payload_bytes} bytes is over the limit of {limit_bytes}")]
    TooLarge {
        /// What the header says.
        payload_bytes: u32,
        /// What is allowed.
        limit_bytes: u32,
    },
    /// Reserved bytes that are not zero: not a frame of this protocol.
    #[error("reserved bytes of a frame header are not zero")]
    Reserved,
}

/// The fixed header of a frame. `opcode` stays a number, for an unknown one is answered, not fatal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes behind the header.
    pub payload_bytes: u32,
    /// See [`Opcode`].
    pub opcode: u8,
    /// Per opcode.
    pub flags: u8,
    /// Producer or consumer.
    pub handle: u32,
    /// Of a request and its answer.
    pub correlation: u32,
}

impl FrameHeader {
    /// A header with flags and correlation zero.
    pub fn new(opcode: Opcode, handle: u32, payload_bytes: usize) -> Self {
        let payload_bytes = payload_bytes as u32;
        FrameHeader { payload_bytes, opcode: opcode as u8, flags: 0, handle, correlation: 0 }
    }

    /// Reads a header and checks what any frame must keep.
    #[inline]
    pub fn decode(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let header = FrameHeader {
            payload_bytes: u32_at(bytes, 0),
            opcode: bytes[4],
            flags: bytes[5],
            handle: u32_at(bytes, 8),
            correlation: u32_at(bytes, 12),
        };
        if u16_at(bytes, 6) != 0 {
            return Err(FrameError::Reserved);
        }
        if header.payload_bytes as usize > FRAME_PAYLOAD_BYTES_MAX {
            let limit_bytes = FRAME_PAYLOAD_BYTES_MAX as u32;
            return Err(FrameError::TooLarge { payload_bytes: header.payload_bytes, limit_bytes });
        }
        Ok(header)
    }

    /// As [`FrameHeader::decode`], with the smaller limit for what a client may send.
    #[inline]
    pub fn decode_from_client(bytes: &[u8; FRAME_HEADER_BYTES]) -> Result<FrameHeader, FrameError> {
        let header = FrameHeader::decode(bytes)?;
        let limit_bytes = CONTROL_PAYLOAD_BYTES_MAX as u32;
        if header.opcode != Opcode::Publish as u8 && header.payload_bytes > limit_bytes {
            return Err(FrameError::TooLarge { payload_bytes: header.payload_bytes, limit_bytes });
        }
        Ok(header)
    }

    /// The header as bytes.
    #[inline]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[4] = self.opcode;
        bytes[5] = self.flags;
        bytes[8..12].copy_from_slice(&self.handle.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.correlation.to_le_bytes());
        bytes
    }
}
