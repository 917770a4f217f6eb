//! How a queue takes a publish: window, order, checks, limits; in whole, in part, or not at all.

use crate::base::chunk_pool::ChunkWriter;
use crate::base::slot_map::Key;
use crate::base::time::Wall;
use crate::format::batch::{self, Batch, BatchError, BatchHeader};
use crate::format::change::FragmentOf;
use crate::format::properties::{self, Tag};
use crate::format::record::{self, RecordHeader, Records};
use crate::format::u32_at;
use crate::limits::{BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, CHUNK_HEADER_BYTES, RUN_RECORDS_MAX};
use crate::protocol::error::ErrorCode;
use crate::queue::Queue;
use crate::queue::assembly::Assembly;
use crate::queue::memory::{Memory, MemoryFull, Overflow};
use crate::queue::outbox::Appended;
use crate::queue::policy::{BLOCK_RETRY_MS, Block, OnFull, QueueOptions, REJECT_RETRY_MS, Refusal};

/// Tags whose meaning this version does not carry out yet: refused rather than ignored.
const UNSUPPORTED_TAGS: u32 = 1 << Tag::Key as u8
    | 1 << Tag::DeliverAt as u8
    | 1 << Tag::ExpiresAt as u8
    | 1 << Tag::DedupId as u8;

/// Why a record was not taken; the sequence is added where it is answered.
struct Refused {
    code: ErrorCode,
    text: String,
    retry_after_ms: u32,
    limit: Option<(&'static str, u64)>,
}

impl Refused {
    fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Refused { code, text: text.into(), retry_after_ms: 0, limit: None }
    }
}

/// A limit that a record does not fit under.
#[derive(Clone, Copy)]
struct Full {
    code: ErrorCode,
    limit: (&'static str, u64),
}

impl Full {
    fn of_memory(full: MemoryFull, overflow: Overflow) -> Self {
        let limit = match overflow {
            Overflow::Full(code, limit) => (code.name(), limit),
            _ => ("memory_limit", full.limit_bytes),
        };
        Full { code: overflow.code(), limit }
    }
}

/// Whether a publish takes up again where one was refused. The fragments of a message have one
/// sequence together, so those behind a refused one would seem to: only a first one does.
fn resumes_at(sequence: u64, header: &BatchHeader, payload: &[u8]) -> bool {
    let later_fragment = header.flags & batch::FRAGMENT != 0
        && payload
            .get(BATCH_HEADER_BYTES..)
            .and_then(RecordHeader::decode)
            .is_some_and(|record| record.flags & record::FRAGMENT_FIRST == 0);
    header.producer_sequence == sequence && !later_fragment
}

/// A checked batch on its way into the log.
struct Intake<'a> {
    batch: Batch<'a>,
    /// Records of it that are taken, or dropped by policy.
    taken: u32,
    dropped: u32,
    accepted_us: u64,
}

impl Queue {
    /// Takes a publish frame's payload.
    ///
    /// # Errors
    /// `Some`: what to tell the producer; records before `sequence` are taken, and a confirm that
    /// is due must be sent first. `None`: refused because an earlier refusal of the handle was not
    /// resumed, or `key` is no producer; nothing to tell.
    pub fn publish(
        &mut self,
        key: Key,
        payload: &[u8],
        wall: Wall,
        memory: &mut Memory,
    ) -> Result<(), Option<Refusal>> {
        let Some(producer) = self.producers.at_mut(key) else {
            return Err(None);
        };
        producer.received_bytes += payload.len() as u64;
        let header = BatchHeader::decode(payload);
        if let Some(sequence) = producer.refusing_at {
            if !header.is_ok_and(|header| resumes_at(sequence, &header, payload)) {
                self.pass_over(key, header.ok());
                return Err(None);
            }
            producer.refusing_at = None;
        }
        let result = self.take_publish(key, payload, wall, memory);
        result.map_err(|refused| Some(self.refuse(key, refused, header.ok())))
    }

    /// Refuses a publish of which only the header was read, for there is no memory for the rest.
    pub fn refuse_unread(
        &mut self,
        key: Key,
        front: &[u8],
        payload_bytes: u32,
        memory: &Memory,
    ) -> Option<Refusal> {
        let limit_bytes = memory.budget.limit_bytes();
        let full = Full::of_memory(MemoryFull { limit_bytes }, memory.overflow);
        if self.options.on_full == OnFull::Block {
            let needed_bytes = payload_bytes as usize;
            self.blocked.get_or_insert(Block { code: full.code, needed_bytes });
        }
        let refused = self.blocked_refusal(full);
        self.refuse_whole(key, front, payload_bytes, refused)
    }

    /// Refuses a publish because what it says could not be kept.
    pub fn refuse_unkept(
        &mut self,
        key: Key,
        payload: &[u8],
        code: ErrorCode,
        text: String,
    ) -> Option<Refusal> {
        let refused = Refused { retry_after_ms: BLOCK_RETRY_MS, ..Refused::new(code, text) };
        self.refuse_whole(key, payload, payload.len() as u32, refused)
    }

    /// Refuses a publish because the broker is going down.
    pub fn refuse_draining(
        &mut self,
        key: Key,
        payload: &[u8],
        retry_after_ms: u32,
    ) -> Option<Refusal> {
        let refused = Refused::new(ErrorCode::Draining, "the broker is going down");
        let refused = Refused { retry_after_ms, ..refused };
        self.refuse_whole(key, payload, payload.len() as u32, refused)
    }

    fn refuse_whole(
        &mut self,
        key: Key,
        front: &[u8],
        payload_bytes: u32,
        refused: Refused,
    ) -> Option<Refusal> {
        let producer = self.producers.at_mut(key)?;
        producer.received_bytes += u64::from(payload_bytes);
        let header = BatchHeader::decode(front).ok();
        if let Some(sequence) = producer.refusing_at
            && !header.is_some_and(|header| resumes_at(sequence, &header, front))
        {
            self.pass_over(key, header);
            return None;
        }
        Some(self.refuse(key, refused, header))
    }

    /// Refuses a publish behind the one that was refused at `sequence`, without a word. What was
    /// under way may have used up all that is granted, and the first that is sent again be larger
    /// than what was refused: the window moves on.
    fn pass_over(&mut self, key: Key, header: Option<BatchHeader>) {
        self.counters.refused += header.map_or(1, |header| u64::from(header.record_count));
        self.grant_ahead(key);
    }

    fn take_publish(
        &mut self,
        key: Key,
        payload: &[u8],
        wall: Wall,
        memory: &mut Memory,
    ) -> Result<(), Refused> {
        let nobody = self.turns.is_empty();
        let producer = self.producers.at_mut(key).expect("the caller looked it up");
        if producer.received_bytes > producer.window_bytes_total {
            let limit = Some(("window_bytes_total", producer.window_bytes_total));
            let text = "publish beyond the window granted; wait for a confirm or UNBLOCKED";
            let code = ErrorCode::WindowExceeded;
            return Err(Refused { limit, retry_after_ms: 1, ..Refused::new(code, text) });
        }
        let batch = Batch::decode(payload).map_err(refused_batch)?;
        let header = &batch.header;
        if header.producer_id != producer.id {
            let text = "the batch's producer id is not the handle's";
            return Err(Refused::new(ErrorCode::ProducerMismatch, text));
        }
        let first = header.producer_sequence;
        let end = first.checked_add(u64::from(header.record_count)).ok_or_else(|| {
            Refused::new(ErrorCode::BadBatch, "the producer sequence leaves no room to count on")
        })?;
        if first > 0 && end <= producer.next_sequence {
            let fragment_inside = batch.record_flags & record::FRAGMENT_LAST == 0
                && header.flags & batch::FRAGMENT != 0;
            let duplicates = if fragment_inside { 0 } else { header.record_count };
            let next = producer.next_sequence;
            self.note_taken(key, next, duplicates, 0);
            self.counters.duplicates += u64::from(duplicates);
            return Ok(());
        }
        if first != producer.next_sequence {
            let expected = producer.next_sequence;
            let text = format!("producer sequence {first} where {expected} comes next");
            return Err(Refused::new(ErrorCode::SequenceGap, text));
        }
        if nobody {
            let text = format!("queue `{}` has no subscription; nobody would get it", self.name);
            return Err(Refused::new(ErrorCode::NoSubscription, text));
        }
        if header.priority != 0 || batch.broker_tags & UNSUPPORTED_TAGS != 0 {
            let text = "priority, key, deliver_at, expires_at and dedup_id are not supported yet";
            return Err(Refused::new(ErrorCode::Unsupported, text));
        }
        if header.flags & batch::FRAGMENT != 0 {
            return self.take_fragment(key, &batch, wall, memory);
        }
        if producer.assembly.is_some() {
            let text = "a batch came between the fragments of a message";
            return Err(Refused::new(ErrorCode::BadBatch, text));
        }
        let mut intake = Intake { batch, taken: 0, dropped: 0, accepted_us: wall.0 };
        let result = self.take_batch(&mut intake, memory);
        let Intake { taken, dropped, .. } = intake;
        if taken > 0 {
            self.note_taken(key, first + u64::from(taken), 0, dropped);
        }
        result
    }

    /// The whole batch by one copy where it fits, else as many of its records as do.
    fn take_batch(&mut self, intake: &mut Intake<'_>, memory: &mut Memory) -> Result<(), Refused> {
        let count = intake.batch.header.record_count;
        let allowed = self.allowed_records(&intake.batch);
        if allowed == count && self.blocked.is_none() {
            let bytes = intake.batch.records().len() as u64;
            if self.room_for(u64::from(count), bytes).is_ok()
                && self
                    .append(intake.batch.wire, (count, bytes), None, intake.accepted_us, memory)
                    .is_ok()
            {
                intake.taken = count;
                return Ok(());
            }
        }
        self.take_records(intake, allowed, memory)?;
        if allowed < count {
            return Err(self.too_large());
        }
        Ok(())
    }

    /// Record by record, as far as the limits and the policy let it.
    fn take_records(
        &mut self,
        intake: &mut Intake<'_>,
        allowed: u32,
        memory: &mut Memory,
    ) -> Result<(), Refused> {
        let mut part = Vec::new();
        let headers: Vec<_> =
            Records::new(intake.batch.records()).map(|record| record.header).collect();
        while intake.taken < allowed {
            let rest = &headers[intake.taken as usize..allowed as usize];
            let (mut fitting, mut bytes) = (0, 0);
            let mut full = None;
            for header in rest {
                let more = bytes + header.record_bytes() as u64;
                match self.room_for(u64::from(fitting) + 1, more) {
                    Ok(()) => (fitting, bytes) = (fitting + 1, more),
                    Err(why) => {
                        full = Some(why);
                        break;
                    }
                }
            }
            if fitting > 0 && self.blocked.is_none() {
                batch::cut(&intake.batch, intake.taken, fitting, &mut part);
                match self.append(&part, (fitting, bytes), None, intake.accepted_us, memory) {
                    Ok(()) => {
                        intake.taken += fitting;
                        continue;
                    }
                    Err(memory_full) => full = Some(Full::of_memory(memory_full, memory.overflow)),
                }
            }
            let needed = rest[0].record_bytes();
            let left = allowed - intake.taken;
            let left_bytes = rest.iter().map(|header| header.record_bytes() as u64).sum();
            let dropped = self.make_room(full, needed, left, left_bytes, memory)?;
            intake.taken += dropped;
            intake.dropped += dropped;
        }
        Ok(())
    }

    /// What the policy does about a record that does not fit: older ones were dropped (0: try
    /// again), the `left` new ones are dropped, or it is refused.
    fn make_room(
        &mut self,
        full: Option<Full>,
        needed: usize,
        left: u32,
        left_bytes: u64,
        memory: &mut Memory,
    ) -> Result<u32, Refused> {
        let Some(full) = full else {
            // There would be room, but who was refused before has not been told yet: in turn.
            return Err(self.blocked_refusal(self.full_of_block(memory)));
        };
        match self.options.on_full {
            OnFull::DropNewest => {
                self.counters.published += u64::from(left);
                self.counters.dropped_newest += u64::from(left);
                return Ok(left);
            }
            OnFull::DropOldest => {
                // Room for all that is left, in few rounds; the last one dropped may be more.
                let over_bytes = (self.bytes() + left_bytes).saturating_sub(full.limit.1).max(1);
                let (count_max, bytes_max) = match full.code {
                    ErrorCode::QueueMessagesMax => (left.min(RUN_RECORDS_MAX as u32), u64::MAX),
                    ErrorCode::QueueBytesMax => (RUN_RECORDS_MAX as u32, over_bytes),
                    _ => (RUN_RECORDS_MAX as u32, u64::MAX),
                };
                let full_for = (full.code, needed as u64);
                let dropped = self.drop_oldest(full_for, count_max, bytes_max, memory);
                if dropped > 0 {
                    return Ok(0);
                }
            }
            OnFull::Reject => {
                return Err(self.rejection(full));
            }
            OnFull::Block => {}
        }
        self.blocked.get_or_insert(Block { code: full.code, needed_bytes: needed });
        Err(self.blocked_refusal(full))
    }

    fn take_fragment(
        &mut self,
        key: Key,
        fragment: &Batch<'_>,
        wall: Wall,
        memory: &mut Memory,
    ) -> Result<(), Refused> {
        let record = Records::new(fragment.records()).next().expect("a checked batch has one");
        let flags = record.header.flags;
        let producer = self.producers.at_mut(key).expect("the caller looked it up");
        let bad = |text: &str| Refused::new(ErrorCode::BadBatch, text);
        let mut assembly = match (producer.assembly.take(), flags & record::FRAGMENT_FIRST != 0) {
            (None, true) => {
                let total = properties::find_u64(record.properties, Tag::BodyBytesTotal)
                    .ok_or_else(|| bad("the first fragment does not say the whole length"))?;
                self.start_large(total, record.properties.len(), memory)?
            }
            (Some(assembly), false) => assembly,
            (Some(_), true) => return Err(bad("a second first fragment")),
            (None, false) => return Err(bad("a fragment without the first")),
        };
        let (first, last) =
            (flags & record::FRAGMENT_FIRST != 0, flags & record::FRAGMENT_LAST != 0);
        if (!first && !record.properties.is_empty()) || (!last && record.body.is_empty()) {
            return Err(bad("only the first fragment has properties, only the last may be empty"));
        }
        if fragment.body_bytes > assembly.body_bytes_left() {
            return Err(bad("the fragments are longer than the first one said"));
        }
        if let Err(memory_full) = assembly.push(fragment, wall.0, memory) {
            drop(assembly);
            let full = Full::of_memory(memory_full, memory.overflow);
            return self.large_without_room(key, full, fragment.wire.len(), memory);
        }
        let producer = self.producers.at_mut(key).expect("nothing closes it meanwhile");
        if !last {
            producer.assembly = Some(assembly);
            // Nothing is confirmed yet, but the window moves on.
            producer.note_window_due();
            return Ok(());
        }
        if assembly.body_bytes_left() > 0 {
            return Err(bad("the fragments are shorter than the first one said"));
        }
        self.finish_large(assembly.records_bytes(), memory)?;
        let next = self.producers.at(key).map_or(1, |producer| producer.next_sequence + 1);
        self.append_large(assembly, None, memory);
        self.note_taken(key, next, 0, 0);
        Ok(())
    }

    /// Room for a large message is made, or not, before its first fragment is taken.
    fn start_large(
        &mut self,
        body_bytes: u64,
        properties_bytes: usize,
        memory: &mut Memory,
    ) -> Result<Assembly, Refused> {
        if body_bytes.saturating_add(properties_bytes as u64) > self.message_bytes_max() {
            return Err(self.too_large());
        }
        while let Err(full) = self.room_for(1, body_bytes) {
            self.make_room_for_large(full, body_bytes, memory)?;
        }
        if self.blocked.is_some() {
            return Err(self.blocked_refusal(self.full_of_block(memory)));
        }
        Ok(Assembly::new(body_bytes))
    }

    /// Others may have taken the room while the fragments came: it is not kept for a message that
    /// may never be complete.
    fn finish_large(&mut self, records_bytes: u64, memory: &mut Memory) -> Result<(), Refused> {
        let bytes_max = self.options.bytes_max;
        if bytes_max != 0 && records_bytes > bytes_max {
            return Err(self.too_large());
        }
        while let Err(full) = self.room_for(1, records_bytes) {
            self.make_room_for_large(full, records_bytes, memory)?;
        }
        Ok(())
    }

    /// A large message is never dropped in part, so drop_newest refuses it as reject does.
    fn make_room_for_large(
        &mut self,
        full: Full,
        needed_bytes: u64,
        memory: &mut Memory,
    ) -> Result<(), Refused> {
        if self.options.on_full == OnFull::DropNewest {
            return Err(self.rejection(full));
        }
        self.make_room(Some(full), needed_bytes as usize, 1, needed_bytes, memory).map(|_| ())
    }

    /// Memory ran out in the middle of a large message: what came is gone, it starts anew.
    fn large_without_room(
        &mut self,
        key: Key,
        full: Full,
        needed: usize,
        memory: &mut Memory,
    ) -> Result<(), Refused> {
        debug_assert!(self.producers.at(key).is_some_and(|p| p.assembly.is_none()));
        let retry_after_ms = match self.options.on_full {
            OnFull::DropOldest => {
                self.make_room_for_large(full, needed as u64, memory)?;
                1
            }
            // It is not blocked by this: what came of the message has just become free, so it would
            // be told to send it all again at once, for ever; and smaller ones may go on.
            OnFull::Block => BLOCK_RETRY_MS,
            OnFull::Reject | OnFull::DropNewest => return Err(self.rejection(full)),
        };
        let text = "memory ran out inside a large message; send it again from its start";
        let refused = Refused::new(ErrorCode::NoRoomMidway, text);
        Err(Refused { limit: Some(full.limit), retry_after_ms, ..refused })
    }

    fn blocked_refusal(&self, full: Full) -> Refused {
        let (limit, retry_after_ms) = (Some(full.limit), BLOCK_RETRY_MS);
        Refused { limit, retry_after_ms, ..Refused::new(full.code, self.full_text(full)) }
    }

    fn rejection(&self, full: Full) -> Refused {
        let (limit, retry_after_ms) = (Some(full.limit), REJECT_RETRY_MS);
        Refused { limit, retry_after_ms, ..Refused::new(full.code, self.full_text(full)) }
    }

    /// Appends a checked batch, for all subscriptions or for one of them.
    pub(super) fn append(
        &mut self,
        wire: &[u8],
        (count, bytes): (u32, u64),
        only: Option<Key>,
        accepted_us: u64,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        self.log.append(wire, count, self.holders(only), accepted_us, memory)?;
        if let Some(outbox) = &mut self.outbox {
            outbox.note_appended(self.log.last_batch(BATCH_PREFIX_BYTES + wire.len(), count));
        }
        self.note_appended(u64::from(count), bytes, only, memory);
        Ok(())
    }

    /// Appends a whole large message, for all subscriptions or for one of them.
    pub(super) fn append_large(
        &mut self,
        assembly: Assembly,
        only: Option<Key>,
        memory: &mut Memory,
    ) {
        let bytes = assembly.records_bytes();
        let chunks = assembly.into_chunks();
        if let Some(outbox) = &mut self.outbox {
            fragments(&chunks, self.log.next_sequence())
                .for_each(|each| outbox.note_appended(each));
        }
        self.log.append_large(chunks, bytes, self.holders(only), memory);
        self.note_appended(1, bytes, only, memory);
    }

    fn holders(&self, only: Option<Key>) -> u64 {
        only.map_or(self.turns.len() as u64, |_| 1)
    }

    /// The limit that has no room for one message more, of so many bytes.
    pub(super) fn lacks_room_for(&self, bytes: u64) -> Option<ErrorCode> {
        self.room_for(1, bytes).err().map(|full| full.code)
    }

    fn note_appended(&mut self, count: u64, bytes: u64, only: Option<Key>, memory: &mut Memory) {
        match only {
            None => {
                for (_, subscription) in self.subscriptions.iter_mut() {
                    subscription.handle_appended(count, bytes);
                }
            }
            Some(only) => self.note_appended_for(only, count, bytes, memory),
        }
        self.counters.published += count;
        self.counters.published_bytes += bytes;
    }

    fn note_appended_for(&mut self, only: Key, count: u64, bytes: u64, memory: &mut Memory) {
        let end = self.log.next_sequence();
        for nth in 0..self.turns.len() {
            let key = self.turns[nth];
            let Some((subscription, mut parts)) = self.parts(key, memory) else { continue };
            match key == only {
                true => subscription.handle_appended(count, bytes),
                false => subscription.handle_passed_over(end - count, end, &mut parts),
            }
        }
    }

    /// Records before the first that is over the message limit.
    fn allowed_records(&self, batch: &Batch<'_>) -> u32 {
        let limit = self.message_bytes_max();
        if batch.records().len() as u64 <= limit {
            return batch.header.record_count;
        }
        let content = |record: &record::Record<'_>| record.properties.len() + record.body.len();
        let over = Records::new(batch.records()).position(|r| content(&r) as u64 > limit);
        over.map_or(batch.header.record_count, |index| index as u32)
    }

    /// What one message may have: its own limit, and no more than fits an empty queue.
    pub(super) fn message_bytes_max(&self) -> u64 {
        let own = self.options.message_bytes_max;
        match self.options.bytes_max {
            0 => own,
            bytes_max => {
                own.min(bytes_max.saturating_sub(crate::limits::RECORD_HEADER_BYTES as u64))
            }
        }
    }

    fn too_large(&self) -> Refused {
        let limit = self.message_bytes_max();
        let text = format!("the message is over the queue's limit of {limit} bytes per message");
        let limit = Some(("message_bytes_max", limit));
        Refused { limit, ..Refused::new(ErrorCode::MessageTooLarge, text) }
    }

    fn room_for(&self, count: u64, bytes: u64) -> Result<(), Full> {
        let QueueOptions { messages_max, bytes_max, .. } = self.options;
        if messages_max != 0 && self.messages() + count > messages_max {
            let limit = ("messages_max", messages_max);
            return Err(Full { code: ErrorCode::QueueMessagesMax, limit });
        }
        if bytes_max != 0 && self.bytes() + bytes > bytes_max {
            return Err(Full { code: ErrorCode::QueueBytesMax, limit: ("bytes_max", bytes_max) });
        }
        Ok(())
    }

    fn full_of_block(&self, memory: &Memory) -> Full {
        match self.blocked.map(|block| block.code) {
            Some(ErrorCode::QueueBytesMax) => {
                let limit = ("bytes_max", self.options.bytes_max);
                Full { code: ErrorCode::QueueBytesMax, limit }
            }
            Some(code) if code.is_of_memory() => {
                let limit_bytes = memory.budget.limit_bytes();
                Full::of_memory(MemoryFull { limit_bytes }, memory.overflow)
            }
            _ => {
                let limit = ("messages_max", self.options.messages_max);
                Full { code: ErrorCode::QueueMessagesMax, limit }
            }
        }
    }

    fn full_text(&self, full: Full) -> String {
        let (name, value) = full.limit;
        match full.code {
            ErrorCode::MemoryLimit => {
                "the broker's memory limit leaves no room; consume, or raise memory_limit".into()
            }
            ErrorCode::DiskLimit => "memory is full, and the spill files are at disk_limit; \
                                     consume, or raise disk_limit"
                .into(),
            ErrorCode::DiskFull => "memory is full, and the file system has no space to spill \
                                    to beyond disk_headroom; consume, or make space"
                .into(),
            ErrorCode::DiskError => "memory is full, and the disk fails to write what is \
                                     spilled; consume, or see to the disk"
                .into(),
            _ => format!("queue `{}` is full: {name} = {value}", self.name),
        }
    }

    /// Notes the refusal with its producer and words it.
    fn refuse(&mut self, key: Key, refused: Refused, header: Option<BatchHeader>) -> Refusal {
        let producer = self.producers.at_mut(key).expect("the caller looked it up");
        let sequence = producer.next_sequence;
        producer.refusing_at = Some(sequence);
        producer.assembly = None;
        self.counters.refused += header.map_or(1, |header| {
            let end = header.producer_sequence.saturating_add(u64::from(header.record_count));
            end.saturating_sub(sequence).clamp(1, u64::from(header.record_count))
        });
        Refusal {
            code: refused.code,
            text: refused.text,
            sequence,
            retry_after_ms: refused.retry_after_ms,
            limit: refused.limit,
        }
    }
}

/// The fragments of a large message, each as it stands in its chunk.
fn fragments(chunks: &[ChunkWriter], sequence: u64) -> impl Iterator<Item = Appended> {
    let of_chunk = |chunk: &ChunkWriter| {
        let (reader, mut at) = (chunk.reader(), CHUNK_HEADER_BYTES);
        let mut parts = Vec::new();
        while at < chunk.filled_bytes() {
            let head = reader.slice(at..at + BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES);
            let end = at + head.len() + records_bytes(&head[BATCH_PREFIX_BYTES..]);
            parts.push((reader.clone(), at..end));
            at = end;
        }
        parts
    };
    let parts: Vec<_> = chunks.iter().flat_map(of_chunk).collect();
    let count = parts.len() as u32;
    parts.into_iter().zip(0..).map(move |((chunk, range), nth)| Appended {
        chunk,
        range,
        fragment: Some(FragmentOf { sequence, nth, count }),
        moved: None,
        first_sequence: sequence,
        // Only with the last of them the message is there.
        end_sequence: sequence + u64::from(nth + 1 == count),
    })
}

/// Bytes of the records behind a batch's header.
fn records_bytes(header: &[u8]) -> usize {
    u32_at(header, batch::RECORDS_BYTES_AT) as usize
}

fn refused_batch(error: BatchError) -> Refused {
    let code = match error {
        BatchError::Checksum { .. } => ErrorCode::ChecksumMismatch,
        _ => ErrorCode::BadBatch,
    };
    let retry_after_ms = u32::from(code == ErrorCode::ChecksumMismatch);
    Refused { retry_after_ms, ..Refused::new(code, error.to_string()) }
}
