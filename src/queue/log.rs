//! The log of a queue: a ring of chunk descriptors, appended at the tail, read at positions, freed
//! chunk by chunk when every message of a chunk is done.
//!
//! Sequences are dense: the n-th accepted message has sequence n, counted from 1. A message too
//! large for a batch is a chain of chunks of its own, one or more fragments in each; it counts as
//! one message, of the chain's first chunk.

use crate::base::chunk_pool::{ChunkRef, ChunkWriter};
use crate::format::batch::BatchPrefix;
use crate::format::{u16_at, u32_at};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, CHUNK_HEADER_BYTES, MIB, RECORD_HEADER_BYTES,
};
use crate::queue::memory::{Memory, MemoryFull};
use std::collections::VecDeque;
use std::ops::Range;

const HEAD_BYTES: usize = BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES;
/// Over so many bytes held, chunks of the largest class are taken; under it smaller ones, which
/// come round sooner and stay in cache.
const LARGE_BACKLOG_BYTES: u64 = 8 * MIB as u64;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Ordinal of the chunk in the log.
    pub chunk: u64,
    /// Offset of the batch's prefix in the chunk.
    pub batch: u32,
    /// Offset of the record in the chunk.
    pub record: u32,
    /// Index of the record in its batch.
    pub nth: u32,
}

impl Position {
    /// The first record of a chunk.
    pub fn chunk_start(chunk: u64) -> Position {
        Position::batch_start(chunk, CHUNK_HEADER_BYTES)
    }

    fn batch_start(chunk: u64, batch: usize) -> Position {
        Position { chunk, batch: batch as u32, record: (batch + HEAD_BYTES) as u32, nth: 0 }
    }
}

/// Consecutive messages of one batch, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the first stands.
    pub at: Position,
    /// How many messages.
    pub count: u32,
    /// Their records' bytes; of a large message all fragments'.
    pub bytes: u64,
    /// What its subscription accounts for them: `bytes` of what came from the log as it stands, a
    /// [`Run::share`] of a run that was cut since. So it adds up without a look at the records.
    pub charge: u64,
    /// Sequence of the first.
    pub sequence: u64,
    /// Whether it is one large message in fragments.
    pub large: bool,
}

impl Run {
    /// What messages `skip..skip + take` count of its charge. Shares that follow on one another add
    /// up, and those of all of it are the charge.
    #[inline]
    pub fn share(&self, skip: u32, take: u32) -> u64 {
        let front = |count: u32| self.charge * u64::from(count) / u64::from(self.count);
        front(skip + take) - front(skip)
    }
}

/// The bytes of a run, or of one fragment, ready for a deliver frame.
pub struct RunBytes {
    /// The chunk they stand in.
    pub chunk: ChunkRef,
    /// Where: whole records.
    pub range: Range<usize>,
    /// Base of their sequence deltas.
    pub base_sequence: u64,
    /// When the batch was taken, wall clock in microseconds.
    pub accepted_us: u64,
    /// Priority of the batch.
    pub priority: u8,
}

struct LogChunk {
    reader: ChunkRef,
    first_sequence: u64,
    end_sequence: u64,
    /// Messages that are not done, once for each subscription that has them. At zero the chunk is
    /// freed.
    pending: u64,
    /// Chunks of the large message that begins here; they are freed with this one. 0: none begins.
    chain_chunks: u32,
    /// Bytes of that message's records.
    chain_bytes: u64,
}

/// See the module.
pub struct Log {
    /// `None`: freed, but not yet at the front.
    chunks: VecDeque<Option<LogChunk>>,
    /// Ordinal of `chunks[0]`.
    front: u64,
    /// Fills the last chunk, if that is still written.
    writer: Option<ChunkWriter>,
    next_sequence: u64,
    class: usize,
    memory_bytes: u64,
}

impl Default for Log {
    fn default() -> Self {
        Log {
            chunks: VecDeque::new(),
            front: 0,
            writer: None,
            next_sequence: 1,
            class: 0,
            memory_bytes: 0,
        }
    }
}

impl Log {
    /// Sequence that the next message gets.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Bytes of the chunks held.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Descriptors that the ring has room for: what the log itself takes.
    pub fn descriptor_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Option<LogChunk>>()
    }

    /// Sequence of the first message of the oldest chunk held.
    pub fn first_sequence(&self) -> u64 {
        self.chunks.iter().flatten().next().map_or(self.next_sequence, |chunk| chunk.first_sequence)
    }

    /// Appends a checked batch, or a checked part of one, for so many subscriptions: one copy.
    ///
    /// # Errors
    /// When there is no chunk for it; then nothing has changed.
    pub fn append(
        &mut self,
        wire: &[u8],
        record_count: u32,
        holders: u64,
        accepted_us: u64,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        debug_assert!(holders > 0, "somebody must want it");
        let bytes = BATCH_PREFIX_BYTES + wire.len();
        if self.writer.as_ref().is_none_or(|writer| writer.room_bytes() < bytes) {
            self.open_chunk(bytes, memory)?;
        }
        let prefix = BatchPrefix { base_sequence: self.next_sequence, accepted_us };
        let writer = self.writer.as_mut().expect("opened above");
        writer.append(&[&prefix.encode(), wire]);
        self.next_sequence += u64::from(record_count);
        let tail = self.chunks.back_mut().and_then(Option::as_mut);
        let tail = tail.expect("the chunk that is written is the last and not freed");
        tail.end_sequence = self.next_sequence;
        tail.pending += u64::from(record_count) * holders;
        Ok(())
    }

    /// Appends a whole large message, whose fragments stand in `chunks` behind prefixes without a
    /// sequence; deliveries give them the message's.
    pub fn append_large(&mut self, chunks: Vec<ChunkRef>, records_bytes: u64, holders: u64) {
        debug_assert!(holders > 0, "somebody must want it");
        self.close_tail();
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let chain_chunks = chunks.len() as u32;
        for (nth, reader) in chunks.into_iter().enumerate() {
            let first = nth == 0;
            self.memory_bytes += reader.capacity_bytes() as u64;
            self.chunks.push_back(Some(LogChunk {
                reader,
                first_sequence: if first { sequence } else { sequence + 1 },
                end_sequence: sequence + 1,
                pending: if first { holders } else { 0 },
                chain_chunks: if first { chain_chunks } else { 0 },
                chain_bytes: if first { records_bytes } else { 0 },
            }));
        }
    }

    /// The messages from `at` on, at most `records_max` of one batch, the last of which may pass
    /// `bytes_max`; and where the next one stands. `None` at the end of the log.
    pub fn run_at(
        &self,
        at: Position,
        records_max: u32,
        bytes_max: u64,
    ) -> Option<(Run, Position)> {
        let at = self.settle(at)?;
        let chunk = self.chunk(at.chunk);
        if chunk.chain_chunks > 0 {
            let (bytes, sequence) = (chunk.chain_bytes, chunk.first_sequence);
            let run = Run { at, count: 1, bytes, charge: bytes, sequence, large: true };
            return Some((run, Position::chunk_start(at.chunk + u64::from(chunk.chain_chunks))));
        }
        let head = chunk.reader.slice(at.batch as usize..at.batch as usize + HEAD_BYTES);
        let base_sequence = BatchPrefix::decode(head).base_sequence;
        let left = u32_at(head, BATCH_PREFIX_BYTES + 12) - at.nth;
        let records_end = records_end(head, at);
        let (mut count, mut bytes) = (left, (records_end - at.record as usize) as u64);
        if left > records_max || bytes > bytes_max {
            let records = chunk.reader.slice(at.record as usize..records_end);
            (count, bytes) = measure(records, records_max, bytes_max);
        }
        let sequence = base_sequence + u64::from(at.nth);
        let next = if count == left {
            Position::batch_start(at.chunk, records_end)
        } else {
            Position { record: at.record + bytes as u32, nth: at.nth + count, ..at }
        };
        Some((Run { at, count, bytes, charge: bytes, sequence, large: false }, next))
    }

    /// As many messages from the front of `run` as fit: at most `records_max`, of which the last
    /// may pass `bytes_max`. At least one.
    pub fn front_count(&self, run: &Run, records_max: u32, bytes_max: u64) -> u32 {
        if run.large || (run.count <= records_max && run.bytes <= bytes_max) {
            return run.count;
        }
        let records = self.run_bytes(run);
        measure(records.chunk.slice(records.range), records_max, bytes_max).0
    }

    /// Messages `skip..skip + take` of a run, as a run.
    ///
    /// # Panics
    /// If the run has not so many, or is a part of a large message.
    pub fn part(&self, run: &Run, skip: u32, take: u32) -> Run {
        assert!(take > 0 && skip + take <= run.count);
        if take == run.count {
            return *run;
        }
        let records = self.run_bytes(run);
        let records = records.chunk.slice(records.range);
        let skipped = if skip == 0 { 0 } else { measure(records, skip, u64::MAX).1 };
        let (_, bytes) = measure(&records[skipped as usize..], take, u64::MAX);
        let at =
            Position { record: run.at.record + skipped as u32, nth: run.at.nth + skip, ..run.at };
        let (sequence, charge) = (run.sequence + u64::from(skip), run.share(skip, take));
        Run { at, count: take, bytes, charge, sequence, ..*run }
    }

    /// The bytes of a run that is no large message.
    pub fn run_bytes(&self, run: &Run) -> RunBytes {
        let start = run.at.record as usize;
        self.bytes_at(run.at, start..start + run.bytes as usize)
    }

    /// One fragment of a large message, and where the next stands, `None` after the last. `at` is
    /// the run's position first, then what this returned.
    pub fn fragment_at(&self, run: &Run, at: Position) -> (RunBytes, Option<Position>) {
        let chunk = self.chunk(at.chunk);
        let head = chunk.reader.slice(at.batch as usize..at.batch as usize + HEAD_BYTES);
        let records_end = records_end(head, at);
        let mut bytes = self.bytes_at(at, at.record as usize..records_end);
        bytes.base_sequence = run.sequence;
        if records_end < chunk.reader.filled_bytes() {
            return (bytes, Some(Position::batch_start(at.chunk, records_end)));
        }
        let chain_end = run.at.chunk + u64::from(self.chunk(run.at.chunk).chain_chunks);
        let next = Position::chunk_start(at.chunk + 1);
        (bytes, (next.chunk < chain_end).then_some(next))
    }

    /// Counts `count` messages of the chunk as done, and frees the chunk when they were the last.
    ///
    /// # Panics
    /// If they were done before.
    pub fn done(&mut self, chunk: u64, count: u32) {
        let index = (chunk - self.front) as usize;
        let entry = self.chunks[index].as_mut().expect("messages keep their chunk");
        entry.pending = entry
            .pending
            .checked_sub(u64::from(count))
            .expect("a message is done only once by each");
        if entry.pending > 0 {
            return;
        }
        let chain = entry.chain_chunks.max(1) as usize;
        if index + 1 == self.chunks.len() && self.writer.is_some() {
            // While an older chunk is held this one is filled on: given up after every message it
            // would leave a hole in the ring for each.
            if index == 0 {
                self.retire_tail();
            }
            return;
        }
        self.free(index..index + chain);
    }

    /// Where the next message will stand, or a position before it with none in between.
    pub fn end(&self) -> Position {
        let next = self.front + self.chunks.len() as u64;
        match self.chunks.back() {
            Some(Some(tail)) => Position::batch_start(next - 1, tail.reader.filled_bytes()),
            _ => Position::chunk_start(next),
        }
    }

    /// Counts messages `first..end` as done, as far as they stand in the chunk of `at` or behind
    /// it; `at` is not behind the first.
    pub fn done_between(&mut self, at: Position, first: u64, end: u64) {
        self.count_between(at, first, end, |log, chunk, count| log.done(chunk, count));
    }

    /// Counts messages `first..end` once more as not done; they are held by somebody, and `at` is
    /// not behind the first.
    pub fn hold_between(&mut self, at: Position, first: u64, end: u64) {
        self.count_between(at, first, end, |log, chunk, count| log.hold(chunk, count));
    }

    /// Counts messages of a chunk once more as not done.
    pub fn hold(&mut self, chunk: u64, count: u32) {
        let index = (chunk - self.front) as usize;
        let entry = self.chunks[index].as_mut().expect("somebody holds the messages");
        entry.pending += u64::from(count);
    }

    fn count_between(
        &mut self,
        at: Position,
        first: u64,
        end: u64,
        mut each: impl FnMut(&mut Log, u64, u32),
    ) {
        let mut next = self.settle(at);
        while let Some(at) = next {
            let entry = self.chunk(at.chunk);
            if entry.first_sequence >= end {
                return;
            }
            let count = entry.end_sequence.min(end).saturating_sub(entry.first_sequence.max(first));
            let after = at.chunk + u64::from(entry.chain_chunks.max(1));
            if count > 0 {
                each(self, at.chunk, count as u32);
            }
            next = self.settle(Position::chunk_start(after));
        }
    }

    /// Where message `sequence` stands, or the first one behind it; `at` is not behind it.
    pub fn seek(&self, at: Position, sequence: u64) -> Position {
        let mut next = at;
        while let Some(at) = self.settle(next) {
            let entry = self.chunk(at.chunk);
            if entry.end_sequence <= sequence {
                next = Position::chunk_start(at.chunk + u64::from(entry.chain_chunks.max(1)));
                continue;
            }
            let stands = self.sequence_at(at);
            if stands >= sequence {
                return at;
            }
            let ahead = (sequence - stands).min(u64::from(u32::MAX)) as u32;
            let (_, after) = self.run_at(at, ahead, u64::MAX).expect("a message stands there");
            next = after;
        }
        self.end()
    }

    /// Sequence of the message at a position that was settled.
    fn sequence_at(&self, at: Position) -> u64 {
        let entry = self.chunk(at.chunk);
        if entry.chain_chunks > 0 {
            return entry.first_sequence;
        }
        let batch = at.batch as usize;
        let prefix = entry.reader.slice(batch..batch + BATCH_PREFIX_BYTES);
        BatchPrefix::decode(prefix).base_sequence + u64::from(at.nth)
    }

    fn bytes_at(&self, at: Position, range: Range<usize>) -> RunBytes {
        let chunk = self.chunk(at.chunk);
        let head = chunk.reader.slice(at.batch as usize..at.batch as usize + HEAD_BYTES);
        let prefix = BatchPrefix::decode(head);
        RunBytes {
            chunk: chunk.reader.clone(),
            range,
            base_sequence: prefix.base_sequence,
            accepted_us: prefix.accepted_us,
            priority: head[BATCH_PREFIX_BYTES + 7],
        }
    }

    fn chunk(&self, ordinal: u64) -> &LogChunk {
        let index = (ordinal - self.front) as usize;
        self.chunks[index].as_ref().expect("a position with messages has its chunk")
    }

    /// Moves a position that stands behind the last batch of its chunk to the next chunk that
    /// holds one. `None` at the end of the log.
    fn settle(&self, at: Position) -> Option<Position> {
        let mut at = if at.chunk < self.front { Position::chunk_start(self.front) } else { at };
        loop {
            let entry = self.chunks.get((at.chunk - self.front) as usize)?;
            if let Some(chunk) = entry
                && (at.batch as usize) < chunk.reader.filled_bytes()
            {
                return Some(at);
            }
            at = Position::chunk_start(at.chunk + 1);
        }
    }

    fn open_chunk(&mut self, bytes: usize, memory: &mut Memory) -> Result<(), MemoryFull> {
        let largest = memory.class_count() - 1;
        let class_max =
            if self.memory_bytes > LARGE_BACKLOG_BYTES { largest } else { largest.max(1) - 1 };
        // A chunk that was filled calls for a larger one.
        let class = (self.class + usize::from(self.writer.is_some())).min(class_max);
        let writer = memory.take_chunk(bytes, class)?;
        self.close_tail();
        self.class = class;
        self.memory_bytes += writer.capacity_bytes() as u64;
        self.chunks.push_back(Some(LogChunk {
            reader: writer.reader(),
            first_sequence: self.next_sequence,
            end_sequence: self.next_sequence,
            pending: 0,
            chain_chunks: 0,
            chain_bytes: 0,
        }));
        self.writer = Some(writer);
        Ok(())
    }

    /// Ends the filling of the last chunk, and frees it if nothing in it is pending.
    fn close_tail(&mut self) {
        if self.writer.take().is_none() {
            return;
        }
        let index = self.chunks.len() - 1;
        if self.chunks[index].as_ref().is_some_and(|tail| tail.pending == 0) {
            self.free(index..index + 1);
        }
    }

    /// Everything in the chunk that is written is done: an idle queue holds no chunk.
    fn retire_tail(&mut self) {
        let scarcely_used =
            self.writer.as_ref().is_some_and(|w| w.filled_bytes() < w.capacity_bytes() / 2);
        self.class = self.class.saturating_sub(usize::from(scarcely_used));
        self.close_tail();
    }

    fn free(&mut self, indexes: Range<usize>) {
        for entry in self.chunks.range_mut(indexes) {
            let freed = entry.take().expect("a chunk is freed once");
            self.memory_bytes -= freed.reader.capacity_bytes() as u64;
        }
        while let Some(None) = self.chunks.front() {
            self.chunks.pop_front();
            self.front += 1;
        }
        let idle = |tail: &Option<LogChunk>| tail.as_ref().is_some_and(|tail| tail.pending == 0);
        if self.chunks.len() == 1 && self.writer.is_some() && self.chunks.iter().all(idle) {
            self.retire_tail();
        }
    }
}

/// Where the records of the batch with `head` at `at` end in its chunk.
fn records_end(head: &[u8], at: Position) -> usize {
    at.batch as usize + HEAD_BYTES + u32_at(head, BATCH_PREFIX_BYTES + 16) as usize
}

/// How many records from the front of `records`, and their bytes: at most `records_max`, of which
/// the last may pass `bytes_max`. At least one.
fn measure(records: &[u8], records_max: u32, bytes_max: u64) -> (u32, u64) {
    let (mut count, mut bytes) = (0, 0usize);
    while bytes < records.len()
        && (count == 0 || (count < records_max && (bytes as u64) < bytes_max))
    {
        bytes += record_bytes(records, bytes);
        count += 1;
    }
    (count, bytes as u64)
}

/// Bytes of the record at `at`.
#[inline]
fn record_bytes(records: &[u8], at: usize) -> usize {
    RECORD_HEADER_BYTES + usize::from(u16_at(records, at + 4)) + u32_at(records, at) as usize
}
