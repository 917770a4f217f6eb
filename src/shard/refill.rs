//! What comes back to memory: chunks on disk that somebody waits for, ahead of the cursors, in
//! turn among the queues. It never stands in the way of what is in memory.
//!
//! How far ahead is by need: twice as far each time a cursor had to wait, half as far when what was
//! read had to go unused.

use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::base::slot_map::Key;
use crate::io::DiskRequest;
use crate::limits::{
    READ_AHEAD_CHUNKS_MAX, READ_AHEAD_CHUNKS_MIN, READ_AHEAD_MEMORY_SHARE, VICTIMS_PER_TICK_MAX,
};
use crate::shard::core::{Core, QueueSlot};
use crate::shard::spill::{Evict, Owner};
use crate::shard::timers::Timer;
use crate::storage::spill::{PlannedRead, Refilled};
use std::ops::Range;

/// A read that finds no memory is tried again after so long.
const PUT_OFF_MS: u64 = 2;

impl QueueSlot {
    /// A cursor had to wait for the disk.
    fn read_more(&mut self) {
        self.read_ahead = (self.read_ahead * 2).min(READ_AHEAD_CHUNKS_MAX);
    }

    /// What was read had to go.
    pub fn read_less(&mut self) {
        self.read_ahead = (self.read_ahead / 2).max(READ_AHEAD_CHUNKS_MIN);
    }
}

impl Core {
    /// Puts the queue on the list of those that wait for the disk, if it does and is not there.
    pub fn note_wants(&mut self, key: Key) {
        let Some(slot) = self.queues.at_mut(key) else { return };
        if slot.queue.take_waited() {
            slot.read_more();
        }
        // Half of what is read ahead is left when more is read, so that the disk is never idle.
        if slot.refilling || !slot.queue.wants_refill(slot.read_ahead / 2) {
            return;
        }
        slot.refilling = true;
        self.spill.refills.push_back(key);
    }

    /// Once per tick: plans reads, first those that were put off, then a chunk for each queue in
    /// turn, as far as the depth of the store and memory go.
    pub(super) fn plan_refill(&mut self) {
        let now = self.now.mono;
        while let Some(planned) = self.spill.store().and_then(|store| store.poll_read(now)) {
            self.request_read(planned);
        }
        for _ in 0..VICTIMS_PER_TICK_MAX {
            if !self.spill.store().is_some_and(|store| store.can_read()) {
                return;
            }
            let Some(key) = self.spill.refills.pop_front() else { return };
            if !self.refill_one(key) {
                return;
            }
        }
    }

    /// Plans the read that the queue needs next. False if there is no memory for it.
    fn refill_one(&mut self, key: Key) -> bool {
        let roomy = self.spill.clean_bytes < self.read_ahead_bytes_max();
        let Some(slot) = self.queues.at_mut(key) else { return true };
        let ahead = roomy.then_some(slot.read_ahead);
        let Some(refill) = slot.queue.poll_refill(ahead) else {
            slot.refilling = false;
            return true;
        };
        let (bytes, forced) = (refill.place.image_bytes(), refill.is_waited_for);
        let Some(into) = self.take_refill_chunk(bytes, forced) else {
            if let Some(slot) = self.queues.at_mut(key) {
                slot.queue.handle_refill_put_off(refill.chunk);
            }
            self.spill.refills.push_front(key);
            // What is being sent or acked makes room, and does not say so.
            self.deadlines.arm(self.now.mono.plus_ms(PUT_OFF_MS), Timer::Waiting);
            return false;
        };
        let bytes = into.capacity_bytes() as u32;
        let owner = Owner { queue: key, chunk: refill.chunk, bytes };
        let Some(store) = self.spill.store() else { return false };
        let planned = store.read(owner, refill.place, refill.name, into);
        self.request_read(planned);
        // Its next chunk comes when the others had their turn.
        self.spill.refills.push_back(key);
        true
    }

    /// An empty chunk for an image; where memory is full, one that was here and is on disk gives
    /// way; one that is merely read ahead only if the new one is waited for (`forced`). So whoever
    /// waits gets his chunk at last, one after the other.
    fn take_refill_chunk(&mut self, bytes: usize, forced: bool) -> Option<ChunkWriter> {
        let count = self.spill.clean.len().min(VICTIMS_PER_TICK_MAX);
        for pass in [Evict::Passed, Evict::UnlessWaited] {
            for _ in 0..=count {
                if let Some(into) = self.memory.take_refill_chunk(bytes) {
                    return Some(into);
                }
                self.evict_one(pass);
            }
            if !forced {
                return None;
            }
        }
        None
    }

    fn request_read(&mut self, planned: PlannedRead) {
        let Some(file) = self.spill.file() else { return };
        let PlannedRead { tag, offset, bytes, into } = planned;
        self.spill.requests.push_back(DiskRequest::Read { tag, file, offset, bytes, into });
    }

    /// A read has ended.
    pub(super) fn handle_read(&mut self, refilled: Refilled<Owner>) {
        match refilled {
            Refilled::Again(planned) => self.request_read(planned),
            Refilled::PutOff(error) => {
                let (shard, reason) = (self.config.shard, error.to_string());
                tracing::warn!(shard, reason, "a spill read failed; it is tried again");
            }
            Refilled::Whole(owner, sealed) => {
                self.spill.reads += 1;
                self.take_back(owner, &sealed);
                self.note_refilled(owner.queue);
            }
            Refilled::Damaged(owner, sealed, lost) => {
                self.take_back(owner, &sealed);
                for range in lost {
                    self.lose(owner, range, "its bytes are damaged");
                }
                self.note_refilled(owner.queue);
            }
            Refilled::Lost(owner, error) => {
                self.lose(owner, 0..u64::MAX, &error.to_string());
                self.note_refilled(owner.queue);
            }
        }
    }

    /// A chunk is in memory again, if anything of it is still wanted.
    fn take_back(&mut self, owner: Owner, sealed: &SealedChunk) {
        let Some(slot) = self.queues.at_mut(owner.queue) else { return };
        if slot.queue.handle_refilled(owner.chunk, sealed) {
            self.note_clean(owner);
        }
    }

    /// Messages of a chunk are not to be had any more: they are counted, and said.
    fn lose(&mut self, owner: Owner, sequences: Range<u64>, reason: &str) {
        let Some(slot) = self.queues.at_mut(owner.queue) else { return };
        let messages = slot.queue.handle_lost(owner.chunk, sequences, self.now, &mut self.memory);
        // Who had the front of a large message is told, whatever was counted.
        self.close_deleted(owner.queue);
        if messages == 0 {
            return;
        }
        let Some(slot) = self.queues.at_mut(owner.queue) else { return };
        self.spill.losses.add(messages, slot.queue.name(), reason);
        self.say_losses();
        if self.spill.losses.is_first() {
            let at = self.spill.losses.quiet_until;
            self.deadlines.arm(at, Timer::Waiting);
        }
    }

    /// Says what was lost, if it is time to.
    pub(super) fn say_losses(&mut self) {
        let Some(losses) = self.spill.losses.poll(self.now.mono) else { return };
        tracing::error!(
            shard = self.config.shard,
            messages = losses.messages,
            chunks = losses.chunks,
            queue = losses.queue,
            reason = losses.reason,
            "messages are lost: what was spilled does not come back; queue and reason are the \
             first's, `forebay queue show` counts each queue's"
        );
    }

    /// A chunk is in memory and on disk.
    pub(super) fn note_clean(&mut self, owner: Owner) {
        // Those whose messages are done have left the memory by themselves.
        while let Some(front) = self.spill.clean.front() {
            let slot = self.queues.at(front.queue);
            if slot.is_some_and(|slot| slot.queue.is_clean(front.chunk)) {
                break;
            }
            self.spill.clean_bytes -= u64::from(front.bytes);
            self.spill.clean.pop_front();
        }
        self.spill.clean_bytes += u64::from(owner.bytes);
        self.spill.clean.push_back(owner);
        if self.spill.clean_bytes > self.spill.clean_bytes_stale {
            self.forget_stale();
        }
    }

    /// Behind a clean chunk that stays, one with a message in flight for an hour, others are done
    /// with and remain on the list: they are not what read-ahead takes. Not looked for at each one.
    fn forget_stale(&mut self) {
        let queues = &self.queues;
        let is_clean = |owner: &Owner| {
            queues.at(owner.queue).is_some_and(|slot| slot.queue.is_clean(owner.chunk))
        };
        self.spill.clean.retain(is_clean);
        let bytes: u64 = self.spill.clean.iter().map(|owner| u64::from(owner.bytes)).sum();
        let more = (bytes / 4).max(self.read_ahead_bytes_max() / 4);
        (self.spill.clean_bytes, self.spill.clean_bytes_stale) = (bytes, bytes + more);
    }

    /// What chunks that were read ahead may take together.
    fn read_ahead_bytes_max(&self) -> u64 {
        self.spill.messages_bytes() / READ_AHEAD_MEMORY_SHARE
    }

    /// A chunk that somebody waited for is there, or will never be.
    fn note_refilled(&mut self, queue: Key) {
        self.activate(queue);
        self.go_on_waiting(queue);
        self.note_wants(queue);
    }
}
