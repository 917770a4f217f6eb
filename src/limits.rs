//! Every limit, its unit and its relations. A limit that can be configured has its default in
//! `config.rs`; here is what no configuration may pass.

/// Bytes in one KiB.
pub const KIB: usize = 1024;
/// Bytes in one MiB.
pub const MIB: usize = 1024 * KIB;

// ---- chunks and batches (the one byte layout) ----

/// Size classes of chunks, smallest first. A queue starts small and grows a class per full chunk.
pub const CHUNK_CLASS_BYTES: [usize; 5] = [4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB];
/// Largest chunk: one slot of a spill file.
pub const CHUNK_BYTES_MAX: usize = CHUNK_CLASS_BYTES[CHUNK_CLASS_BYTES.len() - 1];
/// Chunks are cut from slabs of this size, which is one huge page.
pub const SLAB_BYTES: usize = 2 * MIB;
/// Room at the front of a chunk for what makes it self-describing on disk.
pub const CHUNK_HEADER_BYTES: usize = 64;
/// Alignment of chunks in memory and on disk, for O_DIRECT.
pub const DISK_ALIGN_BYTES: usize = 4 * KIB;
/// Requests under way on one disk.
pub const DISK_DEPTH: usize = 64;
/// Files that one disk has open at a time.
pub const DISK_FILES_MAX: usize = 256;
/// Times in a row that a request which the system did not try is given to it again.
pub const DISK_RETRIES_MAX: u32 = 1000;
/// Chunk images in one write: as many of the smallest as fill the largest chunk.
pub const DISK_WRITE_CHUNKS_MAX: usize = CHUNK_BYTES_MAX / CHUNK_CLASS_BYTES[0];

/// The broker's own prefix of a batch in a chunk.
pub const BATCH_PREFIX_BYTES: usize = 16;
/// The producer's header of a batch.
pub const BATCH_HEADER_BYTES: usize = 40;
/// A batch with its prefix and header; four of them and a chunk header fit one slot.
pub const BATCH_BYTES_MAX: usize = 256 * KIB - CHUNK_HEADER_BYTES;
/// A batch as a producer sends it: without the broker's prefix.
pub const BATCH_WIRE_BYTES_MAX: usize = BATCH_BYTES_MAX - BATCH_PREFIX_BYTES;
/// The records of one batch together.
pub const BATCH_RECORDS_BYTES_MAX: usize = BATCH_WIRE_BYTES_MAX - BATCH_HEADER_BYTES;
/// Records in one batch.
pub const BATCH_RECORDS_MAX: usize = 8192;

/// The fixed part of a record.
pub const RECORD_HEADER_BYTES: usize = 16;
/// All properties of one message, encoded.
pub const PROPERTIES_BYTES_MAX: usize = 32 * KIB;
/// Headers (key, value) of one message.
pub const HEADERS_MAX: usize = 64;
/// Room that a record has behind [`PROPERTIES_BYTES_MAX`], for what the broker writes on a message
/// that it moves: where a dead letter comes from, and why.
pub const DEAD_LETTER_BYTES_MAX: usize = 2 * KIB;
/// One header's key.
pub const HEADER_KEY_BYTES_MAX: usize = 255;
/// Properties and body of a message that travels in one record; larger ones are cut in fragments.
pub const RECORD_CONTENT_BYTES_MAX: usize = BATCH_RECORDS_BYTES_MAX - RECORD_HEADER_BYTES;
/// Largest message that any configuration may allow: body bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 * MIB;
/// Default of `message_bytes_max`, when memory allows it.
pub const MESSAGE_BYTES_DEFAULT: usize = 16 * MIB;
/// `message_bytes_max <= memory_limit / (this x shards)`.
pub const MESSAGE_MEMORY_SHARE: usize = 8;
/// Smallest memory limit that a broker starts with.
pub const MEMORY_LIMIT_BYTES_MIN: usize = 16 * MIB;
/// What a shard borrows of the broker's memory at a time.
pub const MEMORY_GRANT_BYTES: usize = 4 * MIB;
/// Least of [`memory_reserve_bytes`]: what leases take.
pub const MEMORY_RESERVE_BYTES_MIN: usize = 4 * MIB;
/// Most of it.
pub const MEMORY_RESERVE_BYTES_MAX: usize = 64 * MIB;
/// All shards together keep one part in so many, within these bounds: more memory has more queues,
/// whose clients all come at once when something has filled it.
pub const MEMORY_RESERVE_SHARE: u64 = 16;

/// Kept per shard so that acks, control and drains go on when memory is full.
pub const fn memory_reserve_bytes(limit_bytes: u64, shards: u32) -> u64 {
    let share = limit_bytes / MEMORY_RESERVE_SHARE / shards as u64;
    let (least, most) = (MEMORY_RESERVE_BYTES_MIN as u64, MEMORY_RESERVE_BYTES_MAX as u64);
    if share < least {
        least
    } else if share > most {
        most
    } else {
        share
    }
}

// ---- overflow to disk ----

/// Smallest `disk_limit` of a shard that spills: a few extents.
pub const DISK_LIMIT_BYTES_MIN: usize = 16 * MIB;
/// Largest watermark, in percent of the memory for messages: something must be left to go on in
/// while the disk makes room.
pub const WATERMARK_PERCENT_MAX: u32 = 95;
/// Chunks that one queue reads ahead at least, where one of its cursors meets what is on disk.
pub const READ_AHEAD_CHUNKS_MIN: u32 = 2;
/// The same, of a cursor that is as fast as the disk.
pub const READ_AHEAD_CHUNKS_MAX: u32 = 16;
/// What is read ahead and not yet needed may have one in so many parts of the memory for messages.
pub const READ_AHEAD_MEMORY_SHARE: u64 = 4;
/// Chunks that one tick of a shard takes out of queues to write them, or drops from memory.
pub const VICTIMS_PER_TICK_MAX: usize = 512;
/// Peeks and the like of one shard that wait for what is on disk.
pub const WAITING_FOR_DISK_MAX: usize = 64;
/// They are refused after so long.
pub const WAITING_FOR_DISK_MS: u64 = 10_000;
/// One slot of a spill file: what one write fills.
pub const SPILL_SLOT_BYTES: usize = MIB;
/// Slots by which a spill file grows and shrinks, unless `disk_limit` is small.
pub const SPILL_EXTENT_SLOTS: u32 = 64;
/// Slots of one shard that are written at a time.
pub const SPILL_WRITE_DEPTH: usize = 4;
/// Images of one shard that are read at a time.
pub const SPILL_READ_DEPTH: usize = 4;
/// Writes that fail one after the other before the disk is said to fail.
pub const SPILL_FAILURES_MAX: u32 = 3;
/// A disk that is full or fails is tried again after so long.
pub const SPILL_RETRY_MS: u64 = 1000;
/// A read that the device refused is tried again after so long, then after twice as long each time.
pub const READ_RETRY_MS: u64 = 1000;
/// Times that the device refuses an image before that is lost: 7 seconds from the first try on.
pub const READ_TRIES_MAX: u32 = 4;
/// Without a write for so long, the disk is calm: blocks that nothing needs are given back.
pub const SPILL_CALM_MS: u64 = 5000;
/// In calm, one extent per so long is given back at least.
pub const SPILL_RELEASE_PACE_MS: u64 = 1000;
/// In calm, all that is over the reserve is given back within so long, if the disk is as fast.
pub const SPILL_RELEASE_MS: u64 = 30_000;
/// Extents that are given back at a time when it is asked for.
pub const SPILL_RELEASE_DEPTH: usize = 4;

// ---- journal ----

/// One file of a journal. Written once before use, so that its blocks are there.
pub const JOURNAL_SEGMENT_BYTES: usize = 64 * MIB;
/// What of a segment's first block is used.
pub const JOURNAL_SEGMENT_HEADER_BYTES: usize = 80;
/// A group with its header: what is written and synced at a time.
pub const JOURNAL_GROUP_BYTES_MAX: usize = MIB;
/// In front of a group's records.
pub const JOURNAL_GROUP_HEADER_BYTES: usize = 72;
/// In front of a record's body.
pub const JOURNAL_RECORD_HEADER_BYTES: usize = 8;
/// Ranges, failures, producers or moves in one record.
pub const JOURNAL_RANGES_MAX: usize = 4096;
/// The body of a record that fits a group.
pub const JOURNAL_BODY_BYTES_MAX: usize =
    JOURNAL_GROUP_BYTES_MAX - JOURNAL_GROUP_HEADER_BYTES - JOURNAL_RECORD_HEADER_BYTES;
/// Durable queues that are told anew in one tick, while a round is under way.
pub const CARRY_QUEUES_PER_TICK: usize = 64;
/// Times that a recovery waits a millisecond for the disk to make room for one batch.
pub const RESTORE_WAITS_MAX: u32 = 60_000;
/// Files of one journal; what has a higher number is none of them.
pub const JOURNAL_FILES_MAX: u32 = 100_000;
/// Zeros that are written at a time into a segment that is made.
pub const JOURNAL_PREWRITE_BYTES: usize = MIB;

// ---- frames ----

/// First bytes of a connection, both ways.
pub const PREAMBLE_BYTES: usize = 8;
/// Fixed header of every frame.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Payload of any frame.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 256 * KIB;
/// Payload of a frame that is not a publish or a deliver.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 64 * KIB;
/// Payload of an answer to a listing, peek or stats request.
pub const ANSWER_PAYLOAD_BYTES_MAX: usize = FRAME_PAYLOAD_BYTES_MAX;
/// Fixed part of a deliver frame's payload.
pub const DELIVER_HEADER_BYTES: usize = 48;
/// Ranges in one ack frame.
pub const ACK_RANGES_MAX: usize = 2048;
/// Ranges in one nack frame.
pub const NACK_RANGES_MAX: usize = 1024;
/// Ranges in one extend frame.
pub const EXTEND_RANGES_MAX: usize = 2048;
/// Entries in one credit frame.
pub const CREDIT_ENTRIES_MAX: usize = 2048;

// ---- connections ----

/// Open handles (producers and consumers) of one connection.
pub const HANDLES_MAX: usize = 4096;
/// Largest handle number; handles are chosen by the client, small numbers cost least.
pub const HANDLE_MAX: u32 = 4096;
/// Bytes that one read takes from a socket at most; also the budget of one connection per tick.
pub const READ_BYTES_MAX: usize = 256 * KIB;
/// Unsent bytes over which nothing more is delivered to a connection.
pub const UNSENT_BYTES_SOFT: usize = 256 * KIB;
/// Unsent answers over which a connection that does not read them is closed.
pub const UNSENT_BYTES_MAX: usize = 4 * MIB;
/// A connection must finish its hello within this time.
pub const HELLO_TIMEOUT_MS: u64 = 10_000;
/// A frame that was begun must be complete within this time.
pub const FRAME_TIMEOUT_MS: u64 = 30_000;
/// A consumer that takes no byte of what is unsent for this long is closed.
pub const STALL_TIMEOUT_MS: u64 = 60_000;
/// Heartbeat intervals a client may ask for.
pub const HEARTBEAT_MS_MIN: u32 = 100;
/// See [`HEARTBEAT_MS_MIN`].
pub const HEARTBEAT_MS_MAX: u32 = 3_600_000;
/// Answers of one connection that wait for parts from several shards; more requests of this kind
/// wait in front of it.
pub const GATHERS_MAX: usize = 64;
/// What may wait between shards, for each of them, at the ordinary number of shards.
pub const MAILBOX_BYTES: usize = 4 * MIB;
/// Frames that one shard sends another at a time.
pub const PARCEL_BYTES_MAX: usize = 256 * KIB;
/// The same, where there are many shards.
pub const PARCEL_BYTES_MIN: usize = 32 * KIB;
/// Shards of a broker.
pub const SHARDS_MAX: u32 = 16;
/// Connections on their way from one shard to another.
pub const ADOPTIONS_MAX: usize = 64;
/// Connections accepted in one tick.
pub const ACCEPTS_PER_TICK_MAX: usize = 64;

// ---- queues ----

/// Length of a queue's or subscription's name.
pub const NAME_BYTES_MAX: usize = 200;
/// Token of the hello.
pub const TOKEN_BYTES_MAX: usize = 256;
/// Records of one lease: what a single delivered run may hold.
pub const RUN_RECORDS_MAX: usize = 256;
/// Leases that extensions of one consumer go over in one tick. It is as many as twice those that
/// the consumer has, where that is more, so that each may always be extended once; at most
/// 2 x [`IN_FLIGHT_MAX`]. One lease is free for each range.
pub const EXTENDED_LEASES_PER_TICK_MAX: usize = 4096;
/// Credit in messages that one consumer may hold.
pub const CREDIT_MESSAGES_MAX: u32 = 1_000_000;
/// Credit in bytes that one consumer may hold.
pub const CREDIT_BYTES_MAX: u64 = 1 << 30;
/// Messages in flight of one subscription.
pub const IN_FLIGHT_MAX: u64 = 4_000_000;
/// From the oldest unacked to the newest delivered message of one subscription.
pub const ACK_SPAN_MAX: u64 = 64_000_000;
/// Shortest lease.
pub const LEASE_MS_MIN: u32 = 100;
/// Longest lease, also of one extension: 12 hours.
pub const LEASE_MS_MAX: u32 = 12 * 3_600_000;
/// Default lease.
pub const LEASE_MS_DEFAULT: u32 = 30_000;
/// Longest back-off, and longest delay of a nack: 7 days.
pub const BACKOFF_MS_MAX: u32 = 7 * 24 * 3_600_000;
/// Waits in a back-off list.
pub const BACKOFF_LIST_MAX: usize = 32;
/// Failures after which a message is dead-lettered, by default.
pub const ATTEMPTS_DEFAULT: u32 = 20;
/// Largest `max_attempts` that is a number.
pub const ATTEMPTS_MAX: u32 = 10_000;
/// Failed messages of one subscription that wait for their back-off; at the bound it pauses.
pub const RETRY_WAITING_MAX: u64 = 1_000_000;
/// Subscriptions of one queue.
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// Shortest `expires_after` of a subscription.
pub const EXPIRES_AFTER_MS_MIN: u64 = 1000;
/// Longest `expires_after` of a subscription: a year.
pub const EXPIRES_AFTER_MS_MAX: u64 = 366 * 24 * 3_600_000;
/// Text that a consumer may give with a nack or reject.
pub const NACK_TEXT_BYTES_MAX: usize = 1024;
/// Dead letters of one subscription that are on their way at a time.
pub const MOVES_MAX: usize = 64;
/// Moves that a queue has taken and whose sources do not know of it yet.
pub const MOVE_KEYS_MAX: usize = 65_536;
/// Times that one message may be dead-lettered, queue after queue; then it stays where it is.
pub const DEAD_LETTER_HOPS_MAX: u32 = 16;
/// Messages that one redrive request moves.
pub const REDRIVE_COUNT_MAX: u32 = 1000;
/// Messages that one redrive request looks at.
pub const REDRIVE_SCAN_MAX: u32 = 10_000;
/// A redrive whose target has no memory for a message tries it again after so long.
pub const REDRIVE_RETRY_MS: u64 = 10;
/// It does so for so long at most, then it ends with what it has moved.
pub const REDRIVE_WAIT_MS_MAX: u64 = 5_000;
/// Window in bytes that a producer handle is granted ahead.
pub const WINDOW_BYTES: u64 = MIB as u64;
/// Producer ids that one queue remembers; the one idle longest is forgotten first.
pub const PRODUCERS_PER_QUEUE_MAX: usize = 10_000;
/// A producer that was blocked tries again after so long, in case UNBLOCKED is lost on its way,
/// or memory ran out in the middle of a large message, behind which no BLOCKED comes.
pub const BLOCK_RETRY_MS: u32 = 1000;
/// A rejected publish may be tried again after so long.
pub const REJECT_RETRY_MS: u32 = 100;
/// Longest wait of a pull.
pub const PULL_WAIT_MS_MAX: u32 = 3_600_000;
/// Pulls that one consumer may have waiting.
pub const PULLS_WAITING_MAX: usize = 16;
/// Messages shown by one peek.
pub const PEEK_COUNT_MAX: u32 = 1000;
/// Messages a peek may pass over.
pub const PEEK_SKIP_MAX: u64 = 1_000_000;
/// Queues shown by one listing frame.
pub const LIST_COUNT_MAX: u32 = 200;

// ---- watching the broker ----

/// Connections to the admin address; one more ends the oldest.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
/// Head of a request to the admin address: its line and headers.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 * KIB;
/// Headers of such a request.
pub const ADMIN_HEADERS_MAX: usize = 64;
/// For the head of a request to be there.
pub const ADMIN_HEAD_TIMEOUT_MS: u64 = 5_000;
/// For a request to be read, answered and taken; then its connection is closed.
pub const ADMIN_REQUEST_TIMEOUT_MS: u64 = 15_000;
/// For all shards to tell their figures; those that have not are left out.
pub const REPORT_TIMEOUT_MS: u64 = 3_000;
/// Queues and subscriptions that a shard looks at per tick while it makes a report.
pub const REPORT_LOOKS_PER_TICK: usize = 256;
/// Queues with figures of their own in the metrics; each shard has its share of them.
pub const METRIC_QUEUES_MAX: u32 = 1000;
/// Between two looks whether each shard ticks.
pub const PULSE_MS: u64 = 1_000;
/// Looks in a row at which a shard has not ticked: it hangs.
pub const PULSES_MISSED_MAX: u32 = 5;
/// Between two probes of the data directory.
pub const PROBE_INTERVAL_MS: u64 = 5_000;
/// Failures in a row that turn readiness red, and successes that turn it green.
pub const PROBE_ROUNDS: u32 = 3;
/// A probe that takes longer has failed as often as it needs.
pub const PROBE_HUNG_MS: u64 = PROBE_INTERVAL_MS * PROBE_ROUNDS as u64;
/// What a probe writes.
pub const PROBE_BYTES: usize = 4 * KIB;

// ---- relations ----

const _: () = {
    assert!(SLAB_BYTES.is_multiple_of(CHUNK_BYTES_MAX));
    let mut class = 0;
    while class < CHUNK_CLASS_BYTES.len() {
        assert!(CHUNK_CLASS_BYTES[class].is_multiple_of(DISK_ALIGN_BYTES));
        assert!(SLAB_BYTES.is_multiple_of(CHUNK_CLASS_BYTES[class]));
        assert!(class == 0 || CHUNK_CLASS_BYTES[class] > CHUNK_CLASS_BYTES[class - 1]);
        class += 1;
    }
    // A ring has a power of two of places.
    assert!(DISK_DEPTH.is_power_of_two());
    // What one call of the system takes (IOV_MAX).
    assert!(DISK_WRITE_CHUNKS_MAX > 0 && DISK_WRITE_CHUNKS_MAX <= 1024);
    assert!(CHUNK_HEADER_BYTES + 4 * BATCH_BYTES_MAX <= CHUNK_BYTES_MAX);
    assert!(CHUNK_BYTES_MAX <= SPILL_SLOT_BYTES);
    assert!(DISK_LIMIT_BYTES_MIN >= 4 * SPILL_SLOT_BYTES);
    assert!(WATERMARK_PERCENT_MAX < 100 && READ_AHEAD_MEMORY_SHARE > 1);
    assert!(READ_AHEAD_CHUNKS_MIN > 0 && READ_AHEAD_CHUNKS_MIN <= READ_AHEAD_CHUNKS_MAX);
    assert!(VICTIMS_PER_TICK_MAX >= DISK_WRITE_CHUNKS_MAX);
    assert!(SPILL_SLOT_BYTES.is_multiple_of(DISK_ALIGN_BYTES));
    // Pages of a slot are counted in a byte.
    assert!(SPILL_SLOT_BYTES / DISK_ALIGN_BYTES <= 256);
    assert!(SPILL_EXTENT_SLOTS > 0 && SPILL_WRITE_DEPTH > 0 && SPILL_READ_DEPTH > 0);
    assert!(SPILL_RELEASE_DEPTH > 0);
    // A look at messages outlasts a read that succeeds at the last try.
    assert!(READ_TRIES_MAX > 1);
    assert!(READ_RETRY_MS * ((1 << (READ_TRIES_MAX - 1)) - 1) < WAITING_FOR_DISK_MS);
    // A write that comes while the disk is given blocks back finds it calm again before the next.
    assert!(SPILL_RELEASE_PACE_MS <= SPILL_CALM_MS);
    // Within a minute of the last write.
    assert!(SPILL_CALM_MS + SPILL_RELEASE_MS < 60_000 && SPILL_RELEASE_PACE_MS < SPILL_RELEASE_MS);
    assert!(JOURNAL_SEGMENT_HEADER_BYTES <= 512 && JOURNAL_GROUP_HEADER_BYTES <= 512); // one sector
    assert!(JOURNAL_GROUP_BYTES_MAX.is_multiple_of(DISK_ALIGN_BYTES));
    assert!(DISK_ALIGN_BYTES + JOURNAL_GROUP_BYTES_MAX <= JOURNAL_SEGMENT_BYTES);
    assert!(JOURNAL_SEGMENT_BYTES.is_multiple_of(JOURNAL_PREWRITE_BYTES));
    // The head of a published record, and of a list; a failure is the largest entry.
    assert!(64 + BATCH_BYTES_MAX <= JOURNAL_BODY_BYTES_MAX);
    assert!(16 + JOURNAL_RANGES_MAX * 48 <= JOURNAL_BODY_BYTES_MAX);
    assert!(BATCH_WIRE_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
    assert!(DELIVER_HEADER_BYTES + BATCH_RECORDS_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
    assert!(PROPERTIES_BYTES_MAX + RECORD_HEADER_BYTES < BATCH_RECORDS_BYTES_MAX);
    assert!(PROPERTIES_BYTES_MAX + DEAD_LETTER_BYTES_MAX < u16::MAX as usize);
    assert!(PROPERTIES_BYTES_MAX + DEAD_LETTER_BYTES_MAX < RECORD_CONTENT_BYTES_MAX / 2);
    assert!(2 * NAME_BYTES_MAX + NACK_TEXT_BYTES_MAX + 512 <= DEAD_LETTER_BYTES_MAX);
    assert!(HEADERS_MAX * (HEADER_KEY_BYTES_MAX + 4) < PROPERTIES_BYTES_MAX);
    assert!(BATCH_RECORDS_MAX * RECORD_HEADER_BYTES <= BATCH_RECORDS_BYTES_MAX);
    assert!(ACK_RANGES_MAX * 24 <= CONTROL_PAYLOAD_BYTES_MAX);
    assert!(8 + NACK_RANGES_MAX * 32 + NACK_TEXT_BYTES_MAX <= CONTROL_PAYLOAD_BYTES_MAX);
    assert!(EXTEND_RANGES_MAX * 24 <= CONTROL_PAYLOAD_BYTES_MAX);
    assert!(CREDIT_ENTRIES_MAX * 16 <= CONTROL_PAYLOAD_BYTES_MAX);
    assert!(
        LEASE_MS_MIN > 0 && LEASE_MS_MIN <= LEASE_MS_DEFAULT && LEASE_MS_DEFAULT <= LEASE_MS_MAX
    );
    assert!(ATTEMPTS_DEFAULT <= ATTEMPTS_MAX && ATTEMPTS_MAX <= u16::MAX as u32);
    assert!(RETRY_WAITING_MAX <= IN_FLIGHT_MAX);
    // A consumer with one run may extend it several times at once, however it is cut up.
    assert!(EXTENDED_LEASES_PER_TICK_MAX >= 4 * RUN_RECORDS_MAX);
    assert!(CONTROL_PAYLOAD_BYTES_MAX <= FRAME_PAYLOAD_BYTES_MAX);
    assert!(READ_BYTES_MAX + FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX < u32::MAX as usize);
    assert!(UNSENT_BYTES_SOFT + FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX < UNSENT_BYTES_MAX);
    assert!(MESSAGE_BYTES_DEFAULT <= MESSAGE_BYTES_MAX);
    assert!(MESSAGE_BYTES_MAX < u32::MAX as usize);
    assert!(REDRIVE_RETRY_MS > 0 && REDRIVE_RETRY_MS < REDRIVE_WAIT_MS_MAX);
    assert!(MEMORY_RESERVE_BYTES_MIN < MEMORY_LIMIT_BYTES_MIN);
    assert!(MEMORY_RESERVE_BYTES_MIN >= SLAB_BYTES);
    assert!(MEMORY_RESERVE_BYTES_MIN <= MEMORY_RESERVE_BYTES_MAX && MEMORY_RESERVE_SHARE > 1);
    assert!(MEMORY_GRANT_BYTES >= SLAB_BYTES);
    assert!(SHARDS_MAX < u32::BITS);
    assert!(PARCEL_BYTES_MIN <= PARCEL_BYTES_MAX && PARCEL_BYTES_MAX <= MAILBOX_BYTES);
    // A lone shard of the smallest broker can hold its reserve and what waits for it.
    assert!(MEMORY_RESERVE_BYTES_MIN + MAILBOX_BYTES < MEMORY_LIMIT_BYTES_MIN);
    assert!(HANDLES_MAX == HANDLE_MAX as usize);
    assert!(WINDOW_BYTES as usize >= 2 * BATCH_WIRE_BYTES_MAX);
    // Figures are told before the request has to end.
    assert!(REPORT_TIMEOUT_MS + ADMIN_HEAD_TIMEOUT_MS < ADMIN_REQUEST_TIMEOUT_MS);
    assert!(ADMIN_HEAD_BYTES_MAX >= 8 * KIB);
    assert!(METRIC_QUEUES_MAX >= SHARDS_MAX && PROBE_ROUNDS > 0 && REPORT_LOOKS_PER_TICK > 0);
    assert!(NAME_BYTES_MAX < CONTROL_PAYLOAD_BYTES_MAX);
};
