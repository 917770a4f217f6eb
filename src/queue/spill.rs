//! Chunks that leave memory for disk and come back: what may go, what is wanted again, what was
//! lost. The caller writes and reads; here is only what it means for the queue.
//!
//! ```text
//!            take_victim          handle_spilled          evict
//!   dirty ---------------> written -----------> clean ----------> absent
//!     ^                       |                   ^                  | poll_refill
//!     '-- handle_spill_failed-'                   '-- handle_refilled -- read
//! ```
//!
//! A clean chunk keeps its place on disk until all its messages are done, so that it can leave
//! memory again at once. Acks, purges and ends of leases need no chunk in memory.

use crate::base::chunk_pool::SealedChunk;
use crate::base::time::Now;
use crate::format::chunk::{self, ChunkName};
use crate::protocol::error::ErrorCode;
use crate::queue::Queue;
use crate::queue::consumer::Consumer;
use crate::queue::log::{Absent, Log, LogChunk, Run, Travel};
use crate::queue::memory::Memory;
use crate::queue::subscription::Subscription;
use crate::storage::slots::Place;
use std::ops::Range;

/// So many chunks that are dirty no more are not worth a look.
const STALE_FEW: usize = 64;

/// A chunk to be written to disk.
pub struct Victim {
    /// Its ordinal in the log.
    pub chunk: u64,
    /// Its image.
    pub sealed: SealedChunk,
}

/// A chunk to be read from disk.
pub struct Refill {
    /// Its ordinal in the log.
    pub chunk: u64,
    /// Where it stands.
    pub place: Place,
    /// What its header must say.
    pub name: ChunkName,
    /// Somebody can do nothing until it is there; else it is read ahead.
    pub is_waited_for: bool,
}

/// What became of a chunk that could leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// It left: so many bytes.
    Evicted(u64),
    /// It is clean, but somebody needs it now, or will soon.
    Needed,
    /// There is nothing to evict: it is done, or absent, or not on disk.
    Gone,
}

impl Queue {
    /// Its number in the store of the shard.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Bytes in memory of chunks that are filled no more and not on disk nor on their way there.
    pub fn spillable_bytes(&self) -> u64 {
        self.log.spilled.dirty_bytes
    }

    /// Bytes of the chunk that is filled, if it has messages: it can be spilled too.
    pub fn tail_bytes(&self) -> u64 {
        self.log.tail_bytes()
    }

    /// The newest chunk that can be written to disk, sealed; with `tails` also the one that is
    /// filled, if there is no other. It counts as being written from now on.
    pub fn take_victim(&mut self, tails: bool) -> Option<Victim> {
        self.log.take_victim(tails, self.number)
    }

    /// A chunk is on disk now. It leaves memory unless somebody needs it.
    pub fn handle_spilled(&mut self, chunk: u64, place: Place) -> Eviction {
        if !self.log.handle_spilled(chunk, place) {
            return Eviction::Gone;
        }
        self.evict(chunk, 1)
    }

    /// A chunk could not be written: it is dirty as before.
    pub fn handle_spill_failed(&mut self, chunk: u64) {
        self.log.handle_spill_failed(chunk);
    }

    /// The next absent chunk to be read: first what somebody waits for, then what stands ahead of
    /// cursors with consumers, `ahead` chunks far; with `None` nothing is read ahead, not even what
    /// a consumer will need first. It counts as being read from now on.
    pub fn poll_refill(&mut self, ahead: Option<u32>) -> Option<Refill> {
        if self.log.spilled.absent_chunks == self.log.spilled.reading {
            return None;
        }
        let want = self.log.next_want();
        let is_waited_for = want.is_some();
        let chunk = want.or_else(|| self.next_ahead(ahead?))?;
        let refill = self.log.begin_read(chunk, self.number)?;
        Some(Refill { is_waited_for, ..refill })
    }

    /// Whether something absent is needed, or stands ahead of a cursor `ahead` chunks far.
    pub fn wants_refill(&self, ahead: u32) -> bool {
        let spilled = &self.log.spilled;
        spilled.absent_chunks > spilled.reading
            && (!spilled.wants.is_empty() || self.next_ahead(ahead).is_some())
    }

    /// Whether a chunk is in memory and on disk.
    pub fn is_clean(&self, chunk: u64) -> bool {
        self.log.held(chunk).is_some_and(|entry| entry.reader.is_some() && entry.place.is_some())
    }

    /// Whether somebody had to wait for a chunk since this was asked.
    pub fn take_waited(&mut self) -> bool {
        std::mem::take(&mut self.log.spilled.waited)
    }

    /// Asks for a chunk that was said to be absent.
    pub fn want(&mut self, absent: Absent) {
        self.log.want(absent);
    }

    /// Whether a chunk is still on its way to disk; one that is done with is not.
    pub fn is_leaving(&self, chunk: u64) -> bool {
        self.log.held(chunk).is_some_and(|entry| entry.travel == Travel::Write)
    }

    /// Whether a chunk is absent still; one that is gone is not.
    pub fn is_absent(&self, chunk: u64) -> bool {
        self.log.is_absent(chunk)
    }

    /// There was no memory to read a chunk into: it is wanted as before.
    pub fn handle_refill_put_off(&mut self, chunk: u64) {
        self.log.handle_refill_put_off(chunk);
    }

    /// A chunk was read. False: it is needed no more. Poll as after any verb.
    pub fn handle_refilled(&mut self, chunk: u64, sealed: &SealedChunk) -> bool {
        self.log.handle_refilled(chunk, sealed)
    }

    /// Messages of a chunk cannot be read, or were found damaged: nobody gets them any more. What
    /// is in flight of them can still be acked. Returns how many messages, once for each
    /// subscription, and each large one whose front was taken back. A chunk of which nothing could
    /// be read is absent from then on.
    pub fn handle_lost(
        &mut self,
        chunk: u64,
        sequences: Range<u64>,
        now: Now,
        memory: &mut Memory,
    ) -> u64 {
        self.drop_waits = None;
        self.log.handle_refill_put_off(chunk);
        let end_sequence = self.log.held(chunk).map_or(0, LogChunk::end_sequence);
        for nth in 0..self.turns.len() {
            if let Some((subscription, _)) = self.parts(self.turns[nth], memory) {
                subscription.forget_place_in(chunk, end_sequence);
            }
        }
        let Some(lost) = self.log.lost_range(chunk, sequences) else { return 0 };
        self.log.note_lost(&lost);
        let lost_before = self.counters.lost_damaged;
        let mut closed = Vec::new();
        for nth in 0..self.turns.len() {
            let key = self.turns[nth];
            let Some((subscription, mut parts)) = self.parts(key, memory) else { continue };
            subscription.lose(&lost, &mut parts);
            // One that has the front of a large message would wait for the rest for ever.
            for consumer in subscription.consumers_amid(&lost) {
                let Some(owner) = subscription.consumer(consumer).map(|c| c.owner) else {
                    continue;
                };
                parts.memory.budget.release(super::Account::Handles, super::CONSUMER_BYTES);
                subscription.close_consumer(consumer, now, &mut parts);
                closed.push((owner, ErrorCode::DiskError));
            }
        }
        self.closed.extend(closed);
        self.counters.lost_damaged - lost_before
    }

    /// A clean chunk may leave memory, unless somebody waits for it, or it is one of the next
    /// `near` chunks of a cursor that goes on, the one where it stands included.
    pub fn evict(&mut self, chunk: u64, near: u32) -> Eviction {
        if !self.is_clean(chunk) {
            return Eviction::Gone;
        }
        if self.is_needed(chunk, near) {
            return Eviction::Needed;
        }
        Eviction::Evicted(self.log.evict(chunk))
    }

    /// As [`Queue::evict`], of a chunk that somebody will need but nobody waits for: one that
    /// another waits for goes first where there is no room for both.
    pub fn evict_unless_waited(&mut self, chunk: u64) -> Eviction {
        self.evict(chunk, 0)
    }

    /// Messages in chunks that are absent.
    pub fn spilled_messages(&self) -> u64 {
        self.log.spilled.absent_messages
    }

    /// Bytes of chunks that are absent.
    pub fn spilled_bytes(&self) -> u64 {
        self.log.spilled.absent_bytes
    }

    /// Bytes of the images that its chunks have on disk, counted anew, for the checkers.
    pub fn disk_bytes(&self) -> u64 {
        let places = self.log.chunks.iter().flatten().filter_map(|entry| entry.place.as_ref());
        places.map(|place| place.image_bytes() as u64).sum()
    }

    /// Chunks that are being read.
    pub fn refilling(&self) -> usize {
        self.log.spilled.reading
    }

    fn is_needed(&self, chunk: u64, near: u32) -> bool {
        let spilled = &self.log.spilled;
        spilled.wants.contains(&chunk)
            || spilled.pinned.is_some_and(|(first, end)| (first..end).contains(&chunk))
            || self.each().any(|subscription| {
                // At the end of a chunk that it is done with, it stands before the next one.
                let at = self.log.settle(subscription.cursor);
                at.is_some_and(|at| subscription.comes_to(chunk, at.chunk, near))
                    || subscription.waits_for(chunk)
            })
    }

    /// The absent chunk that stands nearest ahead of a cursor that goes on.
    fn next_ahead(&self, ahead: u32) -> Option<u64> {
        let mut best: Option<(u32, u64)> = None;
        for subscription in self.each().filter(|subscription| subscription.reads_ahead()) {
            let Some(at) = self.log.settle(subscription.cursor) else { continue };
            let reach = best.map_or(ahead + 1, |(distance, _)| distance);
            if let Some(found) = self.log.absent_ahead(at.chunk, reach) {
                best = Some(found);
            }
        }
        best.map(|(_, chunk)| chunk)
    }
}

impl Subscription {
    /// Whether its consumers will come to what is ahead.
    fn reads_ahead(&self) -> bool {
        self.ready > 0 && self.consumer_count() > 0
    }

    /// Whether it comes to a chunk within `near` chunks; its cursor stands in chunk `at`.
    fn comes_to(&self, chunk: u64, at: u64, near: u32) -> bool {
        let ahead = at..at + u64::from(near);
        near > 0
            && self.reads_ahead()
            && (ahead.contains(&chunk) || self.due.first_ready_chunk() == Some(chunk))
    }

    /// Whether it can do nothing without a chunk.
    fn waits_for(&self, chunk: u64) -> bool {
        self.waits == Some(chunk) || self.is_amid(chunk)
    }

    /// Whether a consumer has got a large message up to a chunk.
    fn is_amid(&self, chunk: u64) -> bool {
        let at = |consumer: &Consumer| consumer.large.is_some_and(|large| large.at.chunk == chunk);
        self.is_in_fragments() && self.consumers.iter().any(|(_, consumer)| at(consumer))
    }
}

impl Log {
    /// A chunk that is held, in memory or not.
    pub(super) fn held(&self, chunk: u64) -> Option<&LogChunk> {
        let index = chunk.checked_sub(self.front)?;
        self.chunks.get(index as usize)?.as_ref()
    }

    fn held_mut(&mut self, chunk: u64) -> Option<&mut LogChunk> {
        let index = chunk.checked_sub(self.front)?;
        self.chunks.get_mut(index as usize)?.as_mut()
    }

    /// Whether a chunk is held, but not in memory.
    pub(super) fn is_absent(&self, chunk: u64) -> bool {
        self.held(chunk).is_some_and(|entry| entry.reader.is_none())
    }

    /// Asks for a chunk, if it is absent.
    #[cold]
    pub(super) fn want(&mut self, absent: Absent) {
        if self
            .held(absent.chunk)
            .is_some_and(|entry| entry.reader.is_none() && entry.travel == Travel::Nothing)
        {
            self.spilled.wants.insert(absent.chunk);
        }
    }

    /// The records of a run are needed, of a large message all at once; what is absent is asked for
    /// and stays until all is there.
    ///
    /// # Errors
    /// If some are absent.
    pub(super) fn need(&mut self, run: &Run) -> Result<(), Absent> {
        let first = run.at.chunk;
        let end = first + u64::from(self.chunk(first).chain_chunks.max(1));
        let is_own = self.spilled.pinned == Some((first, end));
        let Some(chunk) = (first..end).find(|chunk| self.is_absent(*chunk)) else {
            self.spilled.pinned.take_if(|_| is_own);
            return Ok(());
        };
        (chunk..end).for_each(|chunk| self.want(Absent { chunk }));
        // Another's that is not complete yet stays: in turn.
        let other = self.spilled.pinned.filter(|&(other, end)| {
            self.held(other).is_some() && (other..end).any(|chunk| self.is_absent(chunk))
        });
        self.spilled.pinned = Some(other.unwrap_or((first, end)));
        Err(Absent { chunk })
    }

    fn tail_bytes(&self) -> u64 {
        let tail = self.writer.as_ref().and_then(|_| self.chunks.back()?.as_ref());
        tail.filter(|tail| tail.pending > 0).map_or(0, LogChunk::memory_bytes)
    }

    /// A chunk is filled no more.
    pub(super) fn note_dirty(&mut self, chunk: u64) {
        let bytes = self.chunk(chunk).memory_bytes();
        let spilled = &mut self.spilled;
        if spilled.dirty.len() > STALE_FEW && spilled.dirty.len() > 2 * spilled.dirty_chunks {
            let (front, chunks) = (self.front, &self.chunks);
            let held = |chunk: u64| chunks.get(chunk.checked_sub(front)? as usize)?.as_ref();
            spilled.dirty.retain(|&chunk| held(chunk).is_some_and(LogChunk::is_dirty));
        }
        // One that could not be written goes back to its place among the newer ones.
        let index = spilled.dirty.partition_point(|&other| other < chunk);
        if spilled.dirty.get(index) != Some(&chunk) {
            spilled.dirty.insert(index, chunk);
        }
        spilled.dirty_chunks += 1;
        spilled.dirty_bytes += bytes;
    }

    /// A chunk that is filled no more has been freed.
    pub(super) fn note_freed(&mut self, chunk: u64, freed: &LogChunk) {
        let spilled = &mut self.spilled;
        if freed.is_dirty() {
            spilled.dirty_chunks -= 1;
            spilled.dirty_bytes -= freed.memory_bytes();
        } else if freed.reader.is_none() {
            spilled.reading -= usize::from(freed.travel == Travel::Read);
            spilled.note_present(freed);
        }
        if !spilled.sealed.is_empty() {
            spilled.sealed.remove(&chunk);
        }
        if !spilled.wants.is_empty() {
            spilled.wants.remove(&chunk);
        }
    }

    fn take_victim(&mut self, tails: bool, queue: u64) -> Option<Victim> {
        if self.spilled.dirty_chunks == 0 && tails && self.tail_bytes() > 0 {
            self.close_tail();
        }
        if self.spilled.dirty_chunks == 0 {
            return None;
        }
        while let Some(chunk) = self.spilled.dirty.pop() {
            let Some(entry) = self.held_mut(chunk).filter(|entry| entry.is_dirty()) else {
                continue;
            };
            entry.travel = Travel::Write;
            let (bytes, writer, name) =
                (entry.memory_bytes(), entry.writer.take(), entry.name(queue, chunk));
            self.spilled.dirty_chunks -= 1;
            self.spilled.dirty_bytes -= bytes;
            if let Some(writer) = writer {
                self.spilled.sealed.insert(chunk, chunk::seal(writer, name));
            }
            let sealed = self.spilled.sealed.get(&chunk).expect("what was not written is kept");
            return Some(Victim { chunk, sealed: sealed.clone() });
        }
        None
    }

    fn handle_spilled(&mut self, chunk: u64, place: Place) -> bool {
        let Some(entry) = self.held_mut(chunk) else { return false };
        (entry.travel, entry.place) = (Travel::Nothing, Some(place));
        self.spilled.sealed.remove(&chunk);
        true
    }

    fn handle_spill_failed(&mut self, chunk: u64) {
        let Some(entry) = self.held_mut(chunk) else { return };
        entry.travel = Travel::Nothing;
        self.note_dirty(chunk);
    }

    fn evict(&mut self, chunk: u64) -> u64 {
        let Some(entry) = self.held_mut(chunk) else { return 0 };
        let bytes = entry.memory_bytes();
        entry.reader = None;
        let (messages, filled) = (u64::from(entry.count), u64::from(entry.filled));
        self.note_memory(bytes, 0);
        self.spilled.absent_chunks += 1;
        self.spilled.absent_messages += messages;
        self.spilled.absent_bytes += filled;
        bytes
    }

    /// The oldest chunk that somebody asked for.
    fn next_want(&mut self) -> Option<u64> {
        self.spilled.wants.pop_first()
    }

    fn begin_read(&mut self, chunk: u64, queue: u64) -> Option<Refill> {
        let entry = self.held_mut(chunk)?;
        let (name, place) = (entry.name(queue, chunk), entry.place.clone()?);
        entry.travel = Travel::Read;
        self.spilled.reading += 1;
        self.spilled.wants.remove(&chunk);
        Some(Refill { chunk, place, name, is_waited_for: false })
    }

    fn handle_refill_put_off(&mut self, chunk: u64) {
        let Some(entry) = self.held_mut(chunk).filter(|e| e.travel == Travel::Read) else { return };
        entry.travel = Travel::Nothing;
        self.spilled.reading -= 1;
        self.spilled.wants.insert(chunk);
    }

    fn handle_refilled(&mut self, chunk: u64, sealed: &SealedChunk) -> bool {
        let Some(entry) = self.held_mut(chunk).filter(|e| e.travel == Travel::Read) else {
            return false;
        };
        entry.travel = Travel::Nothing;
        entry.reader = Some(sealed.reader().clone());
        let bytes = entry.memory_bytes();
        let spilled = &mut self.spilled;
        spilled.reading -= 1;
        let entry = self.chunks[(chunk - self.front) as usize].as_mut();
        if let Some(entry) = entry {
            spilled.note_present(entry);
            // Of a damaged one, what is lost at its end takes less than what stood there.
            entry.filled = sealed.reader().filled_bytes() as u32;
        }
        self.note_memory(0, bytes);
        true
    }

    /// The first absent chunk, `reach` chunks from `chunk` on at most, and how far it is.
    fn absent_ahead(&self, chunk: u64, reach: u32) -> Option<(u32, u64)> {
        let from = (chunk - self.front) as usize;
        let held = self.chunks.range(from..).enumerate();
        let mut distance = 0;
        for (nth, entry) in held {
            if distance >= reach {
                return None;
            }
            let Some(entry) = entry else { continue };
            let ordinal = chunk + nth as u64;
            // A later chunk of a large message stands behind the message.
            let sequence = entry.first_sequence - u64::from(entry.count == 0);
            let lost = self.spilled.lost.end_of(sequence);
            let is_lost = lost.is_some_and(|end| end >= entry.end_sequence());
            if entry.reader.is_none() && entry.travel == Travel::Nothing && !is_lost {
                return Some((distance, ordinal));
            }
            distance += 1;
        }
        None
    }

    /// Which messages are lost with these of a chunk: of a large one all of it.
    fn lost_range(&self, chunk: u64, sequences: Range<u64>) -> Option<Range<u64>> {
        let entry = self.held(chunk)?;
        if entry.count == 0 {
            // A later chunk of a large message, which stands before it.
            let sequence = entry.first_sequence - 1;
            return Some(sequence..sequence + 1);
        }
        let range =
            sequences.start.max(entry.first_sequence)..sequences.end.min(entry.end_sequence());
        (!range.is_empty()).then_some(range)
    }

    fn note_lost(&mut self, lost: &Range<u64>) {
        let first_held = self.first_sequence();
        let known: Vec<(u64, u64)> =
            self.spilled.lost.iter().filter(|&(_, end)| end > first_held).collect();
        self.spilled.lost.clear();
        known.into_iter().for_each(|(first, end)| self.spilled.lost.add(first, end));
        let mut from = lost.start;
        while from < lost.end {
            if let Some(end) = self.spilled.lost.end_of(from) {
                from = end;
                continue;
            }
            let to = self.spilled.lost.next_from(from).map_or(lost.end, |next| next.min(lost.end));
            self.spilled.lost.add(from, to);
            from = to;
        }
        // Nobody waits for what will never come.
        let is_lost = |log: &Log, chunk: u64| {
            log.held(chunk).is_some_and(|entry| {
                entry.first_sequence >= lost.start && entry.end_sequence() <= lost.end
            })
        };
        let wants = std::mem::take(&mut self.spilled.wants);
        let wants = wants.into_iter().filter(|&chunk| !is_lost(self, chunk)).collect();
        self.spilled.wants = wants;
        if self.spilled.pinned.is_some_and(|(first, _)| is_lost(self, first)) {
            self.spilled.pinned = None;
        }
    }
}

impl LogChunk {
    fn name(&self, queue: u64, chunk: u64) -> ChunkName {
        let (first_sequence, end_sequence) = (self.first_sequence, self.end_sequence());
        ChunkName { queue, chunk, first_sequence, end_sequence }
    }
}

impl super::log::Spilled {
    /// A chunk is absent no more.
    fn note_present(&mut self, entry: &LogChunk) {
        self.absent_chunks -= 1;
        self.absent_messages -= u64::from(entry.count);
        self.absent_bytes -= u64::from(entry.filled);
    }
}
