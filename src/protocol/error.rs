//! Error codes: one per thing that can go wrong, each with its number, whether the connection ends
//! with it, and whether the same request may work later.

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $wire_name:literal;)*) => {
        /// What went wrong. The numbers are the wire's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$doc])* $name = $number,)* }

        impl ErrorCode {
            /// All codes, by number.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code of a number, if this version knows it.
            pub fn from_u16(number: u16) -> Option<ErrorCode> {
                match number { $($number => Some(ErrorCode::$name),)* _ => None }
            }

            /// The code of a name, if this version knows it.
            pub fn from_name(name: &str) -> Option<ErrorCode> {
                match name { $($wire_name => Some(ErrorCode::$name),)* _ => None }
            }

            /// The name that documents, logs and `--json` use.
            pub fn name(self) -> &'static str {
                match self { $(ErrorCode::$name => $wire_name,)* }
            }
        }
    };
}

codes! {
    // 1..: the connection ends.
    /// The first bytes are not the preamble.
    BadPreamble = 1, "bad_preamble";
    /// A version that the broker does not speak.
    UnsupportedVersion = 2, "unsupported_version";
    /// Another frame came before hello, or a second hello.
    HelloExpected = 3, "hello_expected";
    /// The token is wrong or missing.
    BadToken = 4, "bad_token";
    /// A frame over its limit.
    FrameTooLarge = 5, "frame_too_large";
    /// Bytes that are no frame of this protocol: reserved bytes set, a body that does not decode.
    BadFrame = 6, "bad_frame";
    /// Hello did not come, or a frame was not finished, in time.
    Timeout = 7, "timeout";
    /// Nothing was heard for two heartbeats.
    HeartbeatLost = 8, "heartbeat_lost";
    /// The connection does not read what it is sent. Not sent by this version: there is no way to.
    SlowReader = 9, "slow_reader";
    /// The broker has as many connections as it may.
    ConnectionsMax = 10, "connections_max";
    /// The broker is going down.
    Draining = 11, "draining";

    // 32..: a request was refused.
    /// An opcode that this version does not know.
    UnknownOpcode = 32, "unknown_opcode";
    /// A handle that is not open, or of the other kind.
    UnknownHandle = 33, "unknown_handle";
    /// A handle that is open already, or over the limit.
    BadHandle = 34, "bad_handle";
    /// As many handles as a connection may have, or producer ids as a queue may have open.
    HandlesMax = 35, "handles_max";
    /// A name with other characters or another length than names have.
    BadName = 36, "bad_name";
    /// No queue of that name.
    QueueNotFound = 37, "queue_not_found";
    /// The queue exists, with other options.
    QueueExists = 38, "queue_exists";
    /// `if_empty` was asked and it is not.
    QueueNotEmpty = 39, "queue_not_empty";
    /// The queue was deleted while the handle was open.
    QueueDeleted = 40, "queue_deleted";
    /// An option with a value that it cannot have.
    BadOption = 41, "bad_option";
    /// Something that the protocol has but this broker does not do (yet).
    Unsupported = 42, "unsupported";
    /// No subscription of that name.
    SubscriptionNotFound = 43, "subscription_not_found";
    /// The broker's memory limit leaves no room for this.
    MemoryLimit = 44, "memory_limit";
    /// As many waiting pulls as a consumer may have.
    PullsMax = 45, "pulls_max";
    /// The subscription exists, with other options.
    SubscriptionExists = 46, "subscription_exists";
    /// As many subscriptions as a queue may have.
    SubscriptionsMax = 47, "subscriptions_max";
    /// Consumers have the subscription open, and `force` was not asked.
    SubscriptionInUse = 48, "subscription_in_use";
    /// The subscription was deleted, or expired, while the handle was open.
    SubscriptionDeleted = 49, "subscription_deleted";
    /// Memory is full, and the spill files are at `disk_limit`.
    DiskLimit = 51, "disk_limit";
    /// Memory is full, and the file system has no space for more spill files.
    DiskFull = 52, "disk_full";
    /// Memory is full and the disk cannot be written; or what was on disk cannot be read any more.
    DiskError = 53, "disk_error";
    /// What was asked for has to be read from disk first, which takes too long, or too many wait
    /// for that already.
    Refilling = 54, "refilling";

    // 64..: a publish was refused.
    /// The batch does not decode: lengths, counts, reserved bytes.
    BadBatch = 64, "bad_batch";
    /// The checksum does not match.
    ChecksumMismatch = 65, "checksum_mismatch";
    /// A message over `message_bytes_max`.
    MessageTooLarge = 66, "message_too_large";
    /// Beyond the window that was granted.
    WindowExceeded = 67, "window_exceeded";
    /// The queue is at `messages_max`.
    QueueMessagesMax = 68, "queue_messages_max";
    /// The queue is at `bytes_max`.
    QueueBytesMax = 69, "queue_bytes_max";
    /// An earlier publish of the handle was refused; resume there. This version does so silently.
    OutOfOrder = 70, "out_of_order";
    /// The producer sequence leaves a gap, or cuts through what the broker has.
    SequenceGap = 71, "sequence_gap";
    /// The broker does not know this producer id (any more).
    ProducerUnknown = 72, "producer_unknown";
    /// The batch's producer id is not the handle's.
    ProducerMismatch = 73, "producer_mismatch";
    /// The same producer id was opened elsewhere; this handle is out.
    ProducerFenced = 74, "producer_fenced";
    /// The queue has no subscription: nobody would ever get the message.
    NoSubscription = 75, "no_subscription";
    /// Memory ran out in the middle of a large message; send it again from its start.
    NoRoomMidway = 76, "no_room_midway";

    // 96..: an ack or credit was refused.
    /// A delivery id that was never given out, or a range that ends before it begins.
    NeverDelivered = 96, "never_delivered";
    /// The delivery is in flight no more: acked before, returned, or its lease has ended.
    LateAck = 97, "late_ack";
    /// Credit over what a consumer may hold.
    CreditOverflow = 98, "credit_overflow";
    /// Extensions of a consumer went over its leases again and again at one time.
    ExtendsMax = 99, "extends_max";
}

impl ErrorCode {
    /// Whether the broker closes the connection after it.
    pub fn is_fatal(self) -> bool {
        (self as u16) < 32
    }

    /// Whether it says that memory is full, whatever keeps it from being spilled to disk.
    pub fn is_of_memory(self) -> bool {
        use ErrorCode as E;
        matches!(self, E::MemoryLimit | E::DiskLimit | E::DiskFull | E::DiskError)
    }

    /// Whether the same request may work later without anything else being changed.
    pub fn is_retryable(self) -> bool {
        use ErrorCode as E;
        matches!(
            self,
            E::Draining
                | E::ConnectionsMax
                | E::MemoryLimit
                | E::DiskLimit
                | E::DiskFull
                | E::DiskError
                | E::Refilling
                | E::WindowExceeded
                | E::QueueMessagesMax
                | E::QueueBytesMax
                | E::NoRoomMidway
                | E::OutOfOrder
                | E::ChecksumMismatch
                | E::Timeout
                | E::HeartbeatLost
                | E::SlowReader
                | E::ExtendsMax
        )
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
