//! What a run leaves behind: a hash over all its events, and how often each thing happened that a
//! run is there to make happen.

use crate::base::checksum::crc32c;

macro_rules! covers {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Something that the runs together must have met at least once.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Cover { $($(#[$doc])* $name,)* }

        impl Cover {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [Cover] = &[$(Cover::$name,)*];

            /// How the coverage line calls it.
            pub fn label(self) -> &'static str {
                match self { $(Cover::$name => $label,)* }
            }
        }
    };
}

covers! {
    /// Bytes reached the broker in pieces.
    SplitRead = "split_read",
    /// The broker's write was cut short.
    ShortWrite = "short_write",
    /// A direction of a connection stood still.
    Stall = "stall",
    /// A connection was reset from outside.
    Reset = "reset",
    /// A client closed only its sending side.
    HalfClose = "half_close",
    /// The broker had no descriptor for a connection.
    Emfile = "emfile",
    /// A connection failed before it was accepted.
    AcceptFailed = "accept_failed",
    /// Many connections came at once.
    Flood = "flood",
    /// The wall clock jumped back.
    WallBack = "wall_back",
    /// The wall clock jumped ahead.
    WallAhead = "wall_ahead",
    /// The shard did not run for a while.
    Pause = "pause",
    /// The broker ended and a new one took its place.
    Restart = "restart",
    /// A client came back with unconfirmed publishes.
    ResumeBatch = "resume_batch",
    /// A batch was sent again and answered as a duplicate.
    Duplicate = "duplicate",
    /// BLOCKED was seen.
    Blocked = "blocked",
    /// UNBLOCKED was seen.
    Unblocked = "unblocked",
    /// A publish was refused by a queue that rejects.
    Rejected = "rejected",
    /// A queue dropped its oldest messages.
    DroppedOldest = "dropped_oldest",
    /// A queue dropped new messages.
    DroppedNewest = "dropped_newest",
    /// The memory limit refused something.
    MemoryLimit = "memory_limit",
    /// Nothing but what deliveries need was left of the memory.
    MemoryFull = "memory_full",
    /// A publish passed its window.
    WindowExceeded = "window_exceeded",
    /// A batch was taken in part.
    PartTaken = "part_taken",
    /// The broker forgot a producer, or never knew it.
    ProducerUnknown = "producer_unknown",
    /// A producer was fenced by another with its id.
    Fenced = "fenced",
    /// A message came again after its consumer was gone.
    Returned = "returned",
    /// A message in fragments came through.
    Jumbo = "jumbo",
    /// A purge removed messages.
    Purge = "purge",
    /// A queue was deleted while handles were open on it.
    DeletedOpen = "deleted_open",
    /// An update changed a queue.
    Updated = "updated",
    /// A peek showed messages.
    Peeked = "peeked",
    /// A listing or description was checked.
    Described = "described",
    /// A pull brought something.
    PullFull = "pull_full",
    /// A pull ended with nothing.
    PullEmpty = "pull_empty",
    /// An ack frame named several consumers.
    AckMany = "ack_many",
    /// Acks were answered as late.
    LateAck = "late_ack",
    /// A message was delivered without need of an ack.
    AutoAck = "auto_ack",
    /// A message came to another consumer because its lease had ended.
    LeaseEnded = "lease_ended",
    /// An ack, nack or extend came after the end of the lease.
    LateForLease = "late_for_lease",
    /// A lease was extended.
    Extended = "extended",
    /// A nack: failed.
    NackFailed = "nack_failed",
    /// A nack: given back.
    NackReturned = "nack_returned",
    /// A nack: rejected.
    NackRejected = "nack_rejected",
    /// A dead letter was seen where it belongs.
    DeadLetter = "dead_letter",
    /// One that was a dead letter before.
    DeadLetterAgain = "dead_letter_again",
    /// A dead letter had to wait for its queue.
    DeadLetterWaits = "dead_letter_waits",
    /// A redrive moved messages.
    Redriven = "redriven",
    /// A redrive could not move all that it should.
    RedriveRefused = "redrive_refused",
    /// A queue had several subscriptions with messages.
    FanOut = "fan_out",
    /// A subscription was made later, from the oldest message that was there.
    FromOldest = "from_oldest",
    /// A subscription was deleted.
    SubscriptionDeleted = "subscription_deleted",
    /// It had consumers.
    SubscriptionDeletedOpen = "subscription_deleted_open",
    /// A subscription was to be deleted while it had consumers, not by force.
    SubscriptionInUse = "subscription_in_use",
    /// A subscription that nobody used expired.
    SubscriptionExpired = "subscription_expired",
    /// A subscription that is there, with other options.
    SubscriptionExists = "subscription_exists",
    /// A subscription that is not there.
    SubscriptionNotFound = "subscription_not_found",
    /// A publish to a queue without subscriptions.
    NoSubscription = "no_subscription",
    /// A subscription paused at a bound.
    Paused = "paused",
    /// An option with a value that it cannot have.
    BadOption = "bad_option",
    /// Garbage instead of a preamble.
    BadPreamble = "bad_preamble",
    /// A version that nobody speaks.
    BadVersion = "bad_version",
    /// A wrong token.
    BadToken = "bad_token",
    /// A frame before hello, or hello twice.
    HelloExpected = "hello_expected",
    /// A frame whose length is over the limit.
    FrameTooLarge = "frame_too_large",
    /// A frame that is none.
    BadFrame = "bad_frame",
    /// An opcode that nobody knows.
    UnknownOpcode = "unknown_opcode",
    /// A handle that is not open.
    UnknownHandle = "unknown_handle",
    /// A handle that cannot be opened.
    BadHandle = "bad_handle",
    /// A name that is none.
    BadName = "bad_name",
    /// A queue that is not there.
    QueueNotFound = "queue_not_found",
    /// A queue that is there, with other options.
    QueueExists = "queue_exists",
    /// A batch that contradicts itself.
    BadBatch = "bad_batch",
    /// A batch whose checksum is wrong.
    ChecksumMismatch = "checksum_mismatch",
    /// A message over its limit.
    MessageTooLarge = "message_too_large",
    /// A producer sequence that leaves a gap.
    SequenceGap = "sequence_gap",
    /// A batch of another producer.
    ProducerMismatch = "producer_mismatch",
    /// Something that this version does not do.
    Unsupported = "unsupported",
    /// An ack of what was never delivered.
    NeverDelivered = "never_delivered",
    /// Credit over what may be held.
    CreditOverflow = "credit_overflow",
    /// A hello or frame that never ends.
    Timeout = "timeout",
    /// A client that reads nothing was closed.
    SlowReader = "slow_reader",
    /// A frame that ends with its connection.
    Truncated = "truncated",
    /// More connections than the broker may have.
    ConnectionsMax = "connections_max",
    /// The broker said that it is going down, and went.
    Drained = "drained",
    /// Frames crossed from one shard to another.
    Crossed = "crossed",
    /// A connection moved to the home of its queue.
    HandOver = "hand_over",
    /// A ring between two shards was full.
    FullRing = "full_ring",
    /// A connection waited for another shard.
    Parked = "parked",
    /// The client session came back by itself.
    SessionReconnect = "session_reconnect",
    /// The client session's messages went round.
    SessionRound = "session_round",
    /// A disk operation failed.
    DiskError = "disk_error",
    /// The disk was full.
    DiskFull = "disk_full",
    /// A read came back shorter than asked.
    ShortRead = "disk_short_read",
    /// A chunk was read that the disk had refused before.
    ReadAfterRefusal = "read_after_refusal",
    /// The disk refused a chunk as often as it was tried.
    Unreadable = "unreadable",
    /// Completions came in another order than the requests.
    DiskReordered = "disk_reordered",
    /// The disk lost or tore what was not synced.
    DiskCrash = "disk_crash",
    /// A sector was torn.
    DiskTorn = "disk_torn",
    /// A bit of a chunk on disk rotted.
    BitRot = "bit_rot",
    /// The disk said that it had written what it had not.
    LostWrite = "lost_write",
    /// Several chunks were written into one slot.
    Packed = "packed",
    /// Chunks were written out.
    Spilled = "spilled",
    /// A chunk came back from disk.
    Refilled = "refilled",
    /// A part of a large message came back from disk.
    FragmentsRefilled = "fragments_refilled",
    /// A chunk that was in memory and on disk left memory without being written again.
    EvictedClean = "evicted_clean",
    /// Messages were lost that the disk had spoiled.
    Lost = "lost",
    /// A consumer was ended because it had half of a large message whose rest was lost.
    LostInFragments = "lost_in_fragments",
    /// A damaged chunk was saved in part.
    Salvaged = "salvaged",
    /// The spill files had all that they may have.
    SpillAtLimit = "spill_at_limit",
    /// The file system had to keep its headroom.
    SpillAtHeadroom = "spill_at_headroom",
    /// The file system had no space.
    SpillNoSpace = "spill_no_space",
    /// The disk was said to fail.
    SpillFailing = "spill_failing",
    /// It was said to work again.
    SpillRecovered = "spill_recovered",
    /// A queue was blocked for memory because the disk could not make room.
    BlockedByDisk = "blocked_by_disk",
    /// A spill file grew.
    Grown = "grown",
    /// A spill file gave space back.
    Released = "released",
    /// It did so because somebody asked.
    Trimmed = "trimmed",
    /// A spill file had space from an earlier run.
    WarmStart = "warm_start",
    /// A peek waited for the disk.
    PeekWaited = "peek_waited",
    /// A dead letter on its way out stood on disk.
    DeadLetterSpilled = "dead_letter_spilled",
    /// A message that was redriven stood on disk.
    RedriveSpilled = "redrive_spilled",
    /// A message in flight or waiting for its turn stood on disk.
    HeldSpilled = "held_spilled",
    /// A crash tore what was being written to a journal.
    DurableTorn = "durable_torn",
    /// The process ended between two operations of a disk in one tick.
    DurableStopped = "durable_stopped",
    /// Crashes came in a row.
    DurableRow = "durable_row",
    /// The process ended while it was beginning.
    DurableInRecovery = "durable_in_recovery",
    /// The process ended by itself.
    DurableEnded = "durable_ended",
    /// A journal needed an older segment no more.
    DurableRound = "durable_round",
    /// The number of shards changed.
    DurableReshard = "durable_reshard",
    /// A message of a durable queue was sent again and answered as a duplicate.
    DurableDuplicate = "durable_duplicate",
    /// A large message came out of a durable queue.
    DurableLarge = "durable_large",
    /// And out of one that had come back.
    DurableLargeBack = "durable_large_back",
    /// A durable dead letter came.
    DurableLetter = "durable_letter",
    /// And one that was refused in an earlier life.
    DurableLetterBack = "durable_letter_back",
}

/// Hash and counters of one run.
pub struct Trace {
    hash: u64,
    counts: Vec<u64>,
    print: bool,
}

impl Trace {
    /// An empty one. `print` writes each event to standard error, for looking into one seed.
    pub fn new(print: bool) -> Self {
        Trace { hash: 0xcbf2_9ce4_8422_2325, counts: vec![0; Cover::ALL.len()], print }
    }

    /// Takes an event into the hash.
    pub fn event(&mut self, what: &str, first: u64, second: u64) {
        for word in [u64::from(crc32c(what.as_bytes())), first, second] {
            self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        if self.print {
            eprintln!("{what} {first} {second}");
        }
    }

    /// A remark for the eye, outside the hash.
    pub fn note(&self, text: impl FnOnce() -> String) {
        if self.print {
            eprintln!("  {}", text());
        }
    }

    /// Counts a happening.
    pub fn cover(&mut self, what: Cover) {
        self.counts[what as usize] += 1;
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The counters, in the order of [`Cover::ALL`].
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }
}
