//! The log of a queue: a ring of chunk descriptors, appended at the tail, read at positions, freed
//! chunk by chunk when every message of a chunk is done.
//!
//! Sequences are dense: the n-th accepted message has sequence n, counted from 1. A message too
//! large for a batch is a chain of chunks of its own, one or more fragments in each; it counts as
//! one message, of the chain's first chunk.
//!
//! A chunk may be absent: on disk alone, see `spill`. What needs only sequences and counts works as
//! if it were there; what needs records says [`Absent`] and works once it was read again. A
//! position is then as exact as can be: it stands before the message meant, in its chunk.

use crate::base::chunk_pool::{ChunkRef, ChunkWriter, SealedChunk};
use crate::format::batch::BatchPrefix;
use crate::format::{u16_at, u32_at};
use crate::limits::{
    BATCH_HEADER_BYTES, BATCH_PREFIX_BYTES, CHUNK_BYTES_MAX, CHUNK_HEADER_BYTES, MESSAGE_BYTES_MAX,
    MIB, RECORD_HEADER_BYTES, SUBSCRIPTIONS_MAX,
};
use crate::queue::memory::{Account, Memory, MemoryFull};
use crate::queue::outbox::Appended;
use crate::queue::skips::Skips;
use crate::storage::slots::Place;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

const HEAD_BYTES: usize = BATCH_PREFIX_BYTES + BATCH_HEADER_BYTES;
/// Over so many bytes held, chunks of the largest class are taken; under it smaller ones, which
/// come round sooner and stay in cache.
const LARGE_BACKLOG_BYTES: u64 = 8 * MIB as u64;
/// A ring of descriptors that is not longer is not worth cutting.
const RING_FEW: usize = 64;

/// Records are needed of a chunk that stands on disk alone. Who asked goes on when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk {chunk} is on disk")]
pub struct Absent {
    /// Its ordinal in the log.
    pub chunk: u64,
}

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

/// What is under way with a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Travel {
    Nothing,
    Write,
    Read,
}

/// What is known of a chunk whether it is in memory or not. Kept small: there is one for each chunk
/// on disk.
pub(super) struct LogChunk {
    /// `None`: the chunk is absent.
    pub reader: Option<ChunkRef>,
    /// Of a chunk that is filled no more but not sealed yet.
    pub writer: Option<ChunkWriter>,
    /// Its image on disk. `None`: it is dirty, memory alone has it.
    pub place: Option<Place>,
    pub first_sequence: u64,
    /// Messages.
    pub count: u32,
    /// Messages that are not done, once for each subscription that has them. At zero the chunk is
    /// freed.
    pub pending: u32,
    /// Where what is in it ends.
    pub filled: u32,
    /// Bytes of the records, or of the whole large message that begins here.
    pub records_bytes: u32,
    /// Chunks of the large message that begins here; they are freed with this one. 0: none begins.
    pub chain_chunks: u32,
    pub travel: Travel,
}

const _: () = {
    assert!(size_of::<Option<LogChunk>>() <= 64);
    assert!(CHUNK_BYTES_MAX / RECORD_HEADER_BYTES * SUBSCRIPTIONS_MAX < u32::MAX as usize);
    assert!(2 * MESSAGE_BYTES_MAX < u32::MAX as usize);
};

impl LogChunk {
    pub fn end_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.count)
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> u64 {
        self.reader.as_ref().map_or(0, |reader| reader.capacity_bytes() as u64)
    }

    /// Whether it can be written to disk, if it is not the one that is filled.
    pub fn is_dirty(&self) -> bool {
        self.reader.is_some() && self.place.is_none() && self.travel == Travel::Nothing
    }

    fn chunks(&self) -> u64 {
        u64::from(self.chain_chunks.max(1))
    }
}

/// See the module.
pub struct Log {
    /// `None`: freed, but not yet at the front.
    pub(super) chunks: VecDeque<Option<LogChunk>>,
    /// Ordinal of `chunks[0]`.
    pub(super) front: u64,
    /// Fills the last chunk, if that is still written.
    pub(super) writer: Option<ChunkWriter>,
    next_sequence: u64,
    class: usize,
    memory_bytes: u64,
    /// Bytes charged for the ring of descriptors.
    ring_bytes: usize,
    pub(super) spilled: Spilled,
}

/// What of a log is on disk, on its way, or could go there.
#[derive(Default)]
pub(super) struct Spilled {
    /// Dirty chunks that are filled no more, the newest last; some may be freed or written since.
    pub dirty: Vec<u64>,
    /// How many of these are dirty indeed, and their bytes in memory.
    pub dirty_chunks: usize,
    pub dirty_bytes: u64,
    /// Sealed and not on disk: being written, or to be written again.
    pub sealed: BTreeMap<u64, SealedChunk>,
    /// Absent chunks that somebody asked for.
    pub wants: BTreeSet<u64>,
    /// Chunks that somebody needs all together, as `(first, end)`.
    pub pinned: Option<(u64, u64)>,
    /// Somebody had to wait for a chunk since this was asked.
    pub waited: bool,
    pub absent_chunks: usize,
    pub absent_messages: u64,
    pub absent_bytes: u64,
    pub reading: usize,
    /// Messages whose records are gone, as far as somebody may still have them in flight.
    pub lost: Skips,
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
            ring_bytes: 0,
            spilled: Spilled::default(),
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

    /// What the descriptors take, unused ones of the ring included.
    pub fn descriptor_bytes(&self) -> usize {
        self.chunks.capacity() * size_of::<Option<LogChunk>>()
            + self.spilled.dirty.capacity() * size_of::<u64>()
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
        tail.count += record_count;
        tail.pending += record_count * holders as u32;
        tail.filled += bytes as u32;
        tail.records_bytes += (wire.len() - BATCH_HEADER_BYTES) as u32;
        Ok(())
    }

    /// The next message gets `sequence`, which is not behind the next one.
    pub(super) fn go_on_at(&mut self, sequence: u64) {
        debug_assert!(sequence >= self.next_sequence);
        if sequence > self.next_sequence {
            // Within a chunk sequences have no gap.
            self.close_tail();
            self.next_sequence = sequence;
        }
    }

    /// The front of the chunk, or of the chain, that was appended to last.
    pub(super) fn start_of_last(&self) -> Position {
        let newest =
            self.chunks.iter().rev().position(|chunk| chunk.as_ref().is_some_and(|c| c.count > 0));
        let behind = newest.map_or(0, |nth| nth + 1);
        Position::chunk_start(self.front + (self.chunks.len() - behind) as u64)
    }

    /// The batch that was appended last, of so many bytes with its prefix.
    pub(super) fn last_batch(&self, bytes: usize, record_count: u32) -> Appended {
        let writer = self.writer.as_ref().expect("a batch was appended there");
        let end = writer.filled_bytes();
        Appended {
            chunk: writer.reader(),
            range: end - bytes..end,
            fragment: None,
            moved: None,
            first_sequence: self.next_sequence - u64::from(record_count),
            end_sequence: self.next_sequence,
        }
    }

    /// Appends a whole large message, whose fragments stand in `chunks` behind prefixes without a
    /// sequence; deliveries give them the message's.
    pub fn append_large(
        &mut self,
        chunks: Vec<ChunkWriter>,
        records_bytes: u64,
        holders: u64,
        memory: &mut Memory,
    ) {
        debug_assert!(holders > 0, "somebody must want it");
        self.close_tail();
        self.room_in_ring(chunks.len());
        self.settle_charge(memory);
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let chain_chunks = chunks.len() as u32;
        for (nth, writer) in chunks.into_iter().enumerate() {
            let first = nth == 0;
            self.memory_bytes += writer.capacity_bytes() as u64;
            self.chunks.push_back(Some(LogChunk {
                reader: Some(writer.reader()),
                place: None,
                // Those behind the first have no message of their own.
                first_sequence: if first { sequence } else { sequence + 1 },
                count: u32::from(first),
                pending: if first { holders as u32 } else { 0 },
                filled: writer.filled_bytes() as u32,
                records_bytes: if first { records_bytes as u32 } else { 0 },
                chain_chunks: if first { chain_chunks } else { 0 },
                travel: Travel::Nothing,
                writer: Some(writer),
            }));
            self.note_dirty(self.front + self.chunks.len() as u64 - 1);
        }
    }

    /// The messages from `at` on, at most `records_max` of one batch, the last of which may pass
    /// `bytes_max`; and where the next one stands. `None` at the end of the log.
    ///
    /// # Errors
    /// If the chunk is absent; of a large message it need not be there.
    #[inline]
    pub fn run_at(
        &self,
        at: Position,
        records_max: u32,
        bytes_max: u64,
    ) -> Result<Option<(Run, Position)>, Absent> {
        let Some(at) = self.settle(at) else { return Ok(None) };
        let chunk = self.chunk(at.chunk);
        if chunk.chain_chunks > 0 {
            let (bytes, sequence) = (u64::from(chunk.records_bytes), chunk.first_sequence);
            let run = Run { at, count: 1, bytes, charge: bytes, sequence, large: true };
            return Ok(Some((run, Position::chunk_start(at.chunk + chunk.chunks()))));
        }
        let reader = chunk.reader.as_ref().ok_or(Absent { chunk: at.chunk })?;
        let head = reader.slice(at.batch as usize..at.batch as usize + HEAD_BYTES);
        let base_sequence = BatchPrefix::decode(head).base_sequence;
        let left = u32_at(head, BATCH_PREFIX_BYTES + 12) - at.nth;
        let records_end = records_end(head, at);
        let (mut count, mut bytes) = (left, (records_end - at.record as usize) as u64);
        if left > records_max || bytes > bytes_max {
            let records = reader.slice(at.record as usize..records_end);
            (count, bytes) = measure(records, records_max, bytes_max);
        }
        let sequence = base_sequence + u64::from(at.nth);
        let next = if count == left {
            Position::batch_start(at.chunk, records_end)
        } else {
            Position { record: at.record + bytes as u32, nth: at.nth + count, ..at }
        };
        Ok(Some((Run { at, count, bytes, charge: bytes, sequence, large: false }, next)))
    }

    /// As many messages from the front of `run` as fit: at most `records_max`, of which the last
    /// may pass `bytes_max`. At least one.
    ///
    /// # Errors
    /// If they must be measured and the chunk is absent.
    pub fn front_count(&self, run: &Run, records_max: u32, bytes_max: u64) -> Result<u32, Absent> {
        if run.large || (run.count <= records_max && run.bytes <= bytes_max) {
            return Ok(run.count);
        }
        let records = self.run_bytes(run)?;
        Ok(measure(records.chunk.slice(records.range), records_max, bytes_max).0)
    }

    /// Messages `skip..skip + take` of a run, as a run.
    ///
    /// # Errors
    /// If it is not all of it and the chunk is absent.
    ///
    /// # Panics
    /// If the run has not so many, or is a part of a large message.
    pub fn part(&self, run: &Run, skip: u32, take: u32) -> Result<Run, Absent> {
        assert!(take > 0 && skip + take <= run.count);
        if take == run.count {
            return Ok(*run);
        }
        let records = self.run_bytes(run)?;
        let records = records.chunk.slice(records.range);
        let skipped = if skip == 0 { 0 } else { measure(records, skip, u64::MAX).1 };
        let (_, bytes) = measure(&records[skipped as usize..], take, u64::MAX);
        let at =
            Position { record: run.at.record + skipped as u32, nth: run.at.nth + skip, ..run.at };
        let (sequence, charge) = (run.sequence + u64::from(skip), run.share(skip, take));
        Ok(Run { at, count: take, bytes, charge, sequence, ..*run })
    }

    /// The bytes of a run that is no large message.
    ///
    /// # Errors
    /// If the chunk is absent.
    #[inline]
    pub fn run_bytes(&self, run: &Run) -> Result<RunBytes, Absent> {
        let start = run.at.record as usize;
        self.bytes_at(run.at, start..start + run.bytes as usize)
    }

    /// One fragment of a large message, and where the next stands, `None` after the last. `at` is
    /// the run's position first, then what this returned.
    ///
    /// # Errors
    /// If its chunk is absent.
    pub fn fragment_at(
        &self,
        run: &Run,
        at: Position,
    ) -> Result<(RunBytes, Option<Position>), Absent> {
        let chunk = self.chunk(at.chunk);
        let reader = chunk.reader.as_ref().ok_or(Absent { chunk: at.chunk })?;
        let head = reader.slice(at.batch as usize..at.batch as usize + HEAD_BYTES);
        let records_end = records_end(head, at);
        let mut bytes = self.bytes_at(at, at.record as usize..records_end)?;
        bytes.base_sequence = run.sequence;
        if records_end < chunk.filled as usize {
            return Ok((bytes, Some(Position::batch_start(at.chunk, records_end))));
        }
        let chain_end = run.at.chunk + self.chunk(run.at.chunk).chunks();
        let next = Position::chunk_start(at.chunk + 1);
        Ok((bytes, (next.chunk < chain_end).then_some(next)))
    }

    /// Whether a chunk that is held is in memory.
    ///
    /// # Errors
    /// If it is not.
    #[inline]
    pub fn check_present(&self, chunk: Option<u64>) -> Result<(), Absent> {
        chunk.map_or(Ok(()), |chunk| self.reader(chunk).map(|_| ()))
    }

    /// Counts `count` messages of the chunk as done, and frees the chunk when they were the last.
    ///
    /// # Panics
    /// If they were done before.
    pub fn done(&mut self, chunk: u64, count: u32) {
        let index = (chunk - self.front) as usize;
        let entry = self.chunks[index].as_mut().expect("messages keep their chunk");
        entry.pending =
            entry.pending.checked_sub(count).expect("a message is done only once by each");
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
            Some(Some(tail)) => Position::batch_start(next - 1, tail.filled as usize),
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
        entry.pending += count;
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
            let (from, to) = (entry.first_sequence.max(first), entry.end_sequence().min(end));
            let (count, after) = (to.saturating_sub(from), at.chunk + entry.chunks());
            if count > 0 {
                each(self, at.chunk, count as u32);
            }
            next = self.settle(Position::chunk_start(after));
        }
    }

    /// Where message `sequence` stands, or the first one behind it; `at` is not behind it. In a
    /// chunk that is absent: not behind it.
    pub fn seek(&self, at: Position, sequence: u64) -> Position {
        let mut next = at;
        while let Some(at) = self.settle(next) {
            let entry = self.chunk(at.chunk);
            if entry.end_sequence() <= sequence {
                next = Position::chunk_start(at.chunk + entry.chunks());
                continue;
            }
            let Ok(stands) = self.sequence_at(at) else { return at };
            if stands >= sequence {
                return at;
            }
            let ahead = (sequence - stands).min(u64::from(u32::MAX)) as u32;
            let Ok(Some((_, after))) = self.run_at(at, ahead, u64::MAX) else { return at };
            next = after;
        }
        self.end()
    }

    /// Sequence of the message at a position that was settled.
    fn sequence_at(&self, at: Position) -> Result<u64, Absent> {
        let entry = self.chunk(at.chunk);
        if entry.chain_chunks > 0 {
            return Ok(entry.first_sequence);
        }
        let batch = at.batch as usize;
        let prefix = self.reader(at.chunk)?.slice(batch..batch + BATCH_PREFIX_BYTES);
        Ok(BatchPrefix::decode(prefix).base_sequence + u64::from(at.nth))
    }

    #[inline]
    fn bytes_at(&self, at: Position, range: Range<usize>) -> Result<RunBytes, Absent> {
        let reader = self.reader(at.chunk)?;
        let head = reader.slice(at.batch as usize..at.batch as usize + HEAD_BYTES);
        let prefix = BatchPrefix::decode(head);
        Ok(RunBytes {
            chunk: reader.clone(),
            range,
            base_sequence: prefix.base_sequence,
            accepted_us: prefix.accepted_us,
            priority: head[BATCH_PREFIX_BYTES + 7],
        })
    }

    #[inline]
    fn reader(&self, ordinal: u64) -> Result<&ChunkRef, Absent> {
        self.chunk(ordinal).reader.as_ref().ok_or(Absent { chunk: ordinal })
    }

    #[inline]
    pub(super) fn chunk(&self, ordinal: u64) -> &LogChunk {
        let index = (ordinal - self.front) as usize;
        self.chunks[index].as_ref().expect("a position with messages has its chunk")
    }

    /// Moves a position that stands behind the last batch of its chunk to the next chunk that
    /// holds one. `None` at the end of the log.
    #[inline]
    pub(super) fn settle(&self, at: Position) -> Option<Position> {
        let mut at = if at.chunk < self.front { Position::chunk_start(self.front) } else { at };
        loop {
            let entry = self.chunks.get((at.chunk - self.front) as usize)?;
            if let Some(chunk) = entry
                && at.batch < chunk.filled
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
        let class_max = class_max.min(memory.tail_class_max(self.memory_bytes));
        // A chunk that was filled calls for a larger one.
        let class = (self.class + usize::from(self.writer.is_some())).min(class_max);
        self.room_in_ring(1);
        self.settle_charge(memory);
        let writer = memory.take_chunk(bytes, class)?;
        self.close_tail();
        self.class = class;
        self.memory_bytes += writer.capacity_bytes() as u64;
        self.chunks.push_back(Some(LogChunk {
            reader: Some(writer.reader()),
            writer: None,
            place: None,
            first_sequence: self.next_sequence,
            count: 0,
            pending: 0,
            filled: writer.filled_bytes() as u32,
            records_bytes: 0,
            chain_chunks: 0,
            travel: Travel::Nothing,
        }));
        self.writer = Some(writer);
        Ok(())
    }

    /// Room for so many descriptors more. The ring grows by a quarter: doubled, half of a long one
    /// would be nothing but room.
    fn room_in_ring(&mut self, more: usize) {
        let (len, room) = (self.chunks.len(), self.chunks.capacity());
        if len + more > room {
            self.chunks.reserve_exact(more.max(len / 4).max(4));
        } else if room > RING_FEW && room / 4 > len + more {
            self.chunks.shrink_to(2 * (len + more));
        }
    }

    /// Charges what the descriptors take now.
    pub(super) fn settle_charge(&mut self, memory: &mut Memory) {
        let bytes = self.descriptor_bytes();
        if bytes != self.ring_bytes {
            memory.budget.charge(Account::Queues, bytes);
            memory.budget.release(Account::Queues, self.ring_bytes);
            self.ring_bytes = bytes;
        }
    }

    /// Gives back what is charged for the descriptors: the queue ends.
    pub(super) fn end_charge(&mut self, memory: &mut Memory) {
        memory.budget.release(Account::Queues, std::mem::take(&mut self.ring_bytes));
    }

    /// Ends the filling of the last chunk, and frees it if nothing in it is pending.
    pub(super) fn close_tail(&mut self) {
        let Some(writer) = self.writer.take() else { return };
        let index = self.chunks.len() - 1;
        let tail = self.chunks[index].as_mut().expect("the chunk that is written is not freed");
        tail.writer = Some(writer);
        let pending = tail.pending;
        self.note_dirty(self.front + index as u64);
        if pending == 0 {
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
        for index in indexes {
            let freed = self.chunks[index].take().expect("a chunk is freed once");
            self.memory_bytes -= freed.memory_bytes();
            self.note_freed(self.front + index as u64, &freed);
        }
        while let Some(None) = self.chunks.front() {
            self.chunks.pop_front();
            self.front += 1;
        }
        if self.chunks.is_empty() && self.chunks.capacity() > RING_FEW {
            (self.chunks, self.spilled.dirty) = (VecDeque::new(), Vec::new());
        }
        let idle = |tail: &Option<LogChunk>| tail.as_ref().is_some_and(|tail| tail.pending == 0);
        if self.chunks.len() == 1 && self.writer.is_some() && self.chunks.iter().all(idle) {
            self.retire_tail();
        }
    }

    /// A chunk left memory, or came back to it.
    pub(super) fn note_memory(&mut self, before: u64, after: u64) {
        self.memory_bytes = self.memory_bytes + after - before;
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
