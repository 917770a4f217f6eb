//! Control-plane bodies as Rust values: requests of a client, answers of the broker.
//!
//! The tables are those of `schema.fbs`. Bytes from outside go through FlatBuffers' verifier with
//! limits of ours, so decoding never reads past them nor builds more than they hold.

use crate::protocol::frame::Opcode;
use crate::protocol::wire;
use flatbuffers::{FlatBufferBuilder, VerifierOptions};

/// Why a body is not what its opcode promises.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The FlatBuffers verifier refused the bytes.
    #[error("the body of {opcode:?} does not decode: {reason}")]
    Malformed {
        /// The frame's opcode.
        opcode: Opcode,
        /// What the verifier says.
        reason: String,
    },
    /// The opcode has no control body, or goes the other way.
    #[error("{0:?} is not expected here")]
    Unexpected(Opcode),
}

fn verifier() -> VerifierOptions {
    VerifierOptions {
        max_depth: 8,
        max_tables: 4096,
        max_apparent_size: 1 << 20,
        ..VerifierOptions::default()
    }
}

macro_rules! bodies {
    ($(#[$doc:meta])* $name:ident { $($variant:ident($table:ident, $owned:ident),)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name { $(
            #[doc = concat!("Body `", stringify!($table), "` of `schema.fbs`.")]
            $variant(wire::$owned),
        )* }

        impl $name {
            /// The opcode of the frame that carries it.
            pub fn opcode(&self) -> Opcode {
                match self { $($name::$variant(_) => Opcode::$variant,)* }
            }

            /// Reads the body of a frame with `opcode`.
            pub fn decode(opcode: Opcode, payload: &[u8]) -> Result<$name, ControlError> {
                match opcode {
                    $(Opcode::$variant => {
                        flatbuffers::root_with_opts::<wire::$table>(&verifier(), payload)
                            .map(|table| $name::$variant(table.unpack()))
                            .map_err(|error| {
                                ControlError::Malformed { opcode, reason: error.to_string() }
                            })
                    })*
                    _ => Err(ControlError::Unexpected(opcode)),
                }
            }

            /// The body as bytes.
            pub fn encode(&self) -> Vec<u8> {
                let mut builder = FlatBufferBuilder::with_capacity(256);
                match self {
                    $($name::$variant(body) => {
                        let root = body.pack(&mut builder);
                        builder.finish_minimal(root);
                    })*
                }
                builder.finished_data().to_vec()
            }
        }
    };
}

bodies! {
    /// What a client asks by a control frame.
    Request {
        Hello(Hello, HelloT),
        ProducerOpen(ProducerOpen, ProducerOpenT),
        ConsumerOpen(ConsumerOpen, ConsumerOpenT),
        QueueCreate(QueueCreate, QueueCreateT),
        QueueUpdate(QueueUpdate, QueueUpdateT),
        QueueDelete(QueueDelete, QueueDeleteT),
        QueuePurge(QueuePurge, QueuePurgeT),
        QueueList(QueueList, QueueListT),
        QueueDescribe(QueueDescribe, QueueDescribeT),
        QueuePeek(QueuePeek, QueuePeekT),
        BrokerStats(BrokerStats, BrokerStatsT),
        SubscriptionCreate(SubscriptionCreate, SubscriptionCreateT),
        SubscriptionUpdate(SubscriptionUpdate, SubscriptionUpdateT),
        SubscriptionDelete(SubscriptionDelete, SubscriptionDeleteT),
        SubscriptionList(SubscriptionList, SubscriptionListT),
        SubscriptionDescribe(SubscriptionDescribe, SubscriptionDescribeT),
        Redrive(Redrive, RedriveT),
        Trim(Trim, TrimT),
    }
}

bodies! {
    /// What the broker says by a control frame.
    Answer {
        HelloOk(HelloOk, HelloOkT),
        Error(Error, ErrorT),
        PublishError(Error, ErrorT),
        Drain(Drain, DrainT),
        ProducerOpened(ProducerOpened, ProducerOpenedT),
        Blocked(Blocked, BlockedT),
        Unblocked(Unblocked, UnblockedT),
        ConsumerOpened(ConsumerOpened, ConsumerOpenedT),
        QueueDone(QueueDone, QueueDoneT),
        QueueRemoved(QueueRemoved, QueueRemovedT),
        QueueListing(QueueListing, QueueListingT),
        QueueDescription(QueueDescription, QueueDescriptionT),
        PeekedMessages(PeekedMessages, PeekedMessagesT),
        Stats(Stats, StatsT),
        SubscriptionListing(SubscriptionListing, SubscriptionListingT),
        SubscriptionDescription(SubscriptionDescription, SubscriptionDescriptionT),
        Redriven(Redriven, RedrivenT),
        Trimmed(Trimmed, TrimmedT),
    }
}

/// Bits of `QueueUpdate.set`.
pub mod update_set {
    /// `messages_max` changes.
    pub const MESSAGES_MAX: u32 = 1;
    /// `bytes_max` changes.
    pub const BYTES_MAX: u32 = 2;
    /// `on_full` changes.
    pub const ON_FULL: u32 = 4;
    /// `message_bytes_max` changes.
    pub const MESSAGE_BYTES_MAX: u32 = 8;
    /// All bits of this version; others are refused.
    pub const KNOWN: u32 = 15;
}

/// Bits of `SubscriptionUpdate.set`.
pub mod subscription_set {
    /// `lease_ms` changes.
    pub const LEASE_MS: u32 = 1;
    /// `max_attempts` changes.
    pub const MAX_ATTEMPTS: u32 = 2;
    /// `backoff` changes.
    pub const BACKOFF: u32 = 4;
    /// `dead_letter` changes.
    pub const DEAD_LETTER: u32 = 8;
    /// `unacked_max` changes.
    pub const UNACKED_MAX: u32 = 16;
    /// `expires_after_ms` changes.
    pub const EXPIRES_AFTER_MS: u32 = 32;
    /// All bits of this version; others are refused.
    pub const KNOWN: u32 = 63;
}

/// `SubscriptionOptions.max_attempts` of a subscription that dead-letters nothing but what is
/// rejected.
pub const ATTEMPTS_UNLIMITED: u32 = u32::MAX;
