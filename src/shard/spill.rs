//! What leaves memory: under pressure the chunks that are needed last are written to the spill
//! store, and what came back from there leaves first. What comes back is in `refill`.
//!
//! ```text
//! over watermark_high                     until under watermark_low
//!   clean chunks that no cursor needs -> dropped
//!   queue with most to spill          -> its newest closed chunk \
//!   no closed ones: the longest tail  -> sealed early            /-> gathered to a slot -> written
//! ```
//!
//! The order of queues is kept as they grow, by powers of two, and looked at only here: queues are
//! never scanned. Nothing here does I/O: after [`Core::plan_disk`] [`Core::poll_disk_request`] says
//! what is to be done, and [`Core::handle_disk`] takes how it ended.

use crate::base::chunk_pool::SealedChunk;
use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::io::{DiskCompletion, DiskRequest, FileId};
use crate::limits::{SPILL_CALM_MS, VICTIMS_PER_TICK_MAX};
use crate::protocol::error::ErrorCode;
use crate::queue::memory::{Account, Overflow};
use crate::queue::spill::Eviction;
use crate::shard::ShardConfig;
use crate::shard::core::{Core, QueueSlot};
use crate::shard::store::is_of_journal;
use crate::storage::spill::{
    DiskBudget, FullReason, SpillShape, SpillState, SpillStats, SpillStore, StoreRequest,
    WriteError, Written, error_text,
};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

/// Whose chunk is written or read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub queue: Key,
    /// Its ordinal in the queue's log.
    pub chunk: u64,
    /// What it takes in memory.
    pub bytes: u32,
}

/// A spill file that is open.
struct Open {
    file: FileId,
    store: SpillStore<Owner>,
    budget: Arc<DiskBudget>,
    headroom_bytes: u64,
    extent_bytes: u64,
}

/// See the module.
pub(super) struct Spill {
    open: Option<Open>,
    /// What messages may use of the broker's memory.
    messages_bytes: u64,
    high_bytes: u64,
    low_bytes: u64,
    /// A shard's share of `high_bytes`.
    share_high_bytes: u64,
    /// Between the watermarks, on the way down.
    spilling: bool,
    /// Queues with closed chunks, and with something in their last one, by what they could give.
    closed: BTreeSet<(u8, Key)>,
    tails: BTreeSet<(u8, Key)>,
    /// Taken out of their queues for the next slot.
    gathered: Vec<(Owner, SealedChunk)>,
    gathered_bytes: usize,
    slot_bytes: usize,
    /// Memory of what is gathered or being written.
    leaving_bytes: u64,
    /// Chunks that are in memory and on disk, in the order in which they came.
    pub(super) clean: VecDeque<Owner>,
    pub(super) clean_bytes: u64,
    /// Over so many those that are clean no more are looked for among them.
    pub(super) clean_bytes_stale: u64,
    /// Queues that wait for chunks from disk, in turn.
    pub(super) refills: VecDeque<Key>,
    pub(super) requests: VecDeque<DiskRequest>,
    /// The store may have something to ask of the file system.
    look: bool,
    /// Of the file system, for those who ask for figures; 0 where it does not say.
    free_bytes: u64,
    /// When it is asked next for that.
    free_due: Mono,
    /// Charged for the store.
    charged_bytes: usize,
    said: Said,
    pub(super) losses: Losses,
    pub(super) writes: u64,
    pub(super) reads: u64,
}

/// What was said last of the store's state. At the edge of what the disk takes it changes many
/// times a second: that it is not ready is said at once, anything after that when it has lasted.
#[derive(Default)]
struct Said {
    state: Option<SpillState>,
    /// It is another since then.
    other_since: Option<Mono>,
}

impl Said {
    /// The state that was said last, if this one is to be said now instead.
    fn change(&mut self, state: SpillState, now: Mono) -> Option<SpillState> {
        let before = *self.state.get_or_insert(state);
        if before == state {
            self.other_since = None;
            return None;
        }
        let since = *self.other_since.get_or_insert(now);
        if before != SpillState::Ready && now < since.plus_ms(SPILL_CALM_MS) {
            return None;
        }
        self.other_since = None;
        self.state.replace(state)
    }
}

/// Losses are said at once, but then no more than once in so long: a disk that is gone loses chunk
/// after chunk.
const SAY_LOSSES_MS: u64 = 1000;
/// How old the file system's free bytes may be that figures show.
const FREE_FIGURE_MS: u64 = 1000;

/// What was lost and not said yet.
#[derive(Default)]
pub(super) struct Losses {
    pub messages: u64,
    pub chunks: u64,
    /// Of the first of them.
    pub queue: String,
    pub reason: String,
    /// Not before this is anything said again.
    pub quiet_until: Mono,
}

impl Losses {
    pub fn add(&mut self, messages: u64, queue: &str, reason: &str) {
        if self.chunks == 0 {
            (self.queue, self.reason) = (queue.to_owned(), reason.to_owned());
        }
        self.messages += messages;
        self.chunks += 1;
    }

    /// Whether one chunk is not said, which begins a wait.
    pub fn is_first(&self) -> bool {
        self.chunks == 1
    }

    /// What is to be said now; nothing of it is left.
    pub fn poll(&mut self, now: Mono) -> Option<Losses> {
        if self.chunks == 0 || now < self.quiet_until {
            return None;
        }
        let quiet_until = now.plus_ms(SAY_LOSSES_MS);
        Some(std::mem::replace(self, Losses { quiet_until, ..Losses::default() }))
    }
}

/// Which clean chunks may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Evict {
    /// Those that no cursor comes to soon.
    Passed,
    /// All that nobody waits for.
    UnlessWaited,
}

/// How large, by powers of two; 0 for nothing.
fn rank(bytes: u64) -> u8 {
    bytes.checked_ilog2().map_or(0, |log| log as u8 + 1)
}

impl Spill {
    /// Of a shard that has no file.
    pub fn new(config: &ShardConfig) -> Spill {
        let shards = u64::from(config.shards);
        let reserves = config.memory_reserve_bytes * shards;
        let messages_bytes = config.memory_limit_bytes.saturating_sub(reserves);
        let percent = |percent: u32| messages_bytes / 100 * u64::from(percent);
        let low_bytes = percent(config.watermark_low);
        Spill {
            open: None,
            messages_bytes,
            high_bytes: percent(config.watermark_high),
            low_bytes,
            share_high_bytes: percent(config.watermark_high) / shards,
            spilling: false,
            closed: BTreeSet::new(),
            tails: BTreeSet::new(),
            gathered: Vec::new(),
            gathered_bytes: 0,
            slot_bytes: 0,
            leaving_bytes: 0,
            clean: VecDeque::new(),
            clean_bytes: 0,
            clean_bytes_stale: 0,
            refills: VecDeque::new(),
            requests: VecDeque::new(),
            look: true,
            free_bytes: 0,
            free_due: Mono(0),
            charged_bytes: 0,
            said: Said::default(),
            losses: Losses::default(),
            writes: 0,
            reads: 0,
        }
    }

    /// Chunks go to this file from now on.
    fn open(&mut self, file: FileId, shape: SpillShape, budget: Arc<DiskBudget>) {
        let (headroom_bytes, extent_bytes) = (shape.headroom_bytes, shape.extent_bytes());
        self.slot_bytes = shape.slot_bytes;
        let store = SpillStore::new(shape, Arc::clone(&budget));
        self.open = Some(Open { file, store, budget, headroom_bytes, extent_bytes });
    }

    /// The store, where there is a file.
    pub fn store(&mut self) -> Option<&mut SpillStore<Owner>> {
        self.open.as_mut().map(|open| &mut open.store)
    }

    /// Memory charged for what is known of the file.
    pub fn charged_bytes(&self) -> usize {
        self.charged_bytes
    }

    /// By what the file grows and shrinks.
    pub fn extent_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.extent_bytes)
    }

    pub fn file(&self) -> Option<FileId> {
        self.open.as_ref().map(|open| open.file)
    }

    /// What the store has done and holds.
    pub fn stats(&self) -> SpillStats {
        self.open.as_ref().map(|open| open.store.stats()).unwrap_or_default()
    }

    /// Free in the file system, as it was while there was last something to do, or a second before.
    pub fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// What all spill files may take.
    pub fn disk_limit_bytes(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.budget.limit_bytes())
    }

    pub fn state(&self) -> SpillState {
        self.open.as_ref().map_or(SpillState::Off, |open| open.store.state())
    }

    /// What all files may have, if there is a limit.
    pub fn budget(&self) -> Option<Arc<DiskBudget>> {
        self.open.as_ref().map(|open| Arc::clone(&open.budget))
    }

    /// The state, for people: a disk that cannot be read fails, also where it can be written.
    pub fn shown_state(&self) -> SpillState {
        let failure = self.open.as_ref().and_then(|open| open.store.read_failure());
        failure.map_or_else(|| self.state(), SpillState::Failing)
    }

    /// Memory of what is on its way to the disk.
    #[cfg(test)]
    pub fn leaving_bytes(&self) -> u64 {
        self.leaving_bytes
    }

    /// What messages may use of the broker's memory.
    pub fn messages_bytes(&self) -> u64 {
        self.messages_bytes
    }

    /// When the store has something to do that no outcome tells of.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.open.as_ref().and_then(|open| open.store.next_deadline())
    }

    /// Whether there is a slot to write to; asking is what makes the file grow.
    fn ready_to_write(&mut self) -> bool {
        self.store().is_none_or(|store| store.can_write())
    }

    /// Sees to it that the store is asked what it needs of the file system.
    pub fn look_later(&mut self) {
        self.look = true;
    }

    /// A queue is gone.
    pub fn forget(&mut self, key: Key, slot: &QueueSlot) {
        self.closed.remove(&(slot.spill_rank, key));
        self.tails.remove(&(slot.tail_rank, key));
    }

    /// Notes what a queue could give, where it is more than is known; `exactly` also where it is
    /// less.
    #[inline]
    pub fn note(&mut self, key: Key, slot: &mut QueueSlot, exactly: bool) {
        let closed = rank(slot.queue.spillable_bytes());
        let tail = rank(slot.queue.tail_bytes());
        if closed > slot.spill_rank || (exactly && closed != slot.spill_rank) {
            put(&mut self.closed, key, slot.spill_rank, closed);
            slot.spill_rank = closed;
        }
        if tail > slot.tail_rank || (exactly && tail != slot.tail_rank) {
            put(&mut self.tails, key, slot.tail_rank, tail);
            slot.tail_rank = tail;
        }
    }

    /// A queue has nothing to give after all.
    fn pass_over(&mut self, key: Key, slot: &mut QueueSlot, tails: bool) {
        let (queues, rank) = match tails {
            true => (&mut self.tails, &mut slot.tail_rank),
            false => (&mut self.closed, &mut slot.spill_rank),
        };
        put(queues, key, std::mem::take(rank), 0);
    }
}

fn put(queues: &mut BTreeSet<(u8, Key)>, key: Key, before: u8, after: u8) {
    if before > 0 {
        queues.remove(&(before, key));
    }
    if after > 0 {
        queues.insert((after, key));
    }
}

impl Core {
    /// Chunks go to this file from now on.
    pub fn open_spill(&mut self, file: FileId, shape: SpillShape, budget: Arc<DiskBudget>) {
        self.spill.open(file, shape, budget);
        self.memory.keep_refill_chunk();
    }

    /// Memory that messages use of what they may, over all shards as far as this one can see.
    pub(super) fn messages_used(&self) -> u64 {
        let unused = self.unused() + self.memory.kept_chunk_bytes() as u64;
        let free = self.memory.budget.free_for_chunks() + unused;
        self.spill.messages_bytes.saturating_sub(free)
    }

    /// Memory that this shard uses.
    fn own_used(&self) -> u64 {
        self.memory.budget.used_bytes().saturating_sub(self.unused())
    }

    /// Memory of free chunks, which is of no use to another shard that is in want.
    fn unused(&self) -> u64 {
        match self.memory.budget.wanted_by_others() {
            0 => self.memory.free_chunk_bytes() as u64,
            _ => 0,
        }
    }

    /// What messages may use when spilling ends: less where another shard wants more to be left.
    fn low_bytes(&self) -> u64 {
        let wanted = self.memory.budget.wanted_by_others();
        self.spill.low_bytes.min(self.spill.messages_bytes.saturating_sub(wanted))
    }

    /// Bytes that should still leave memory.
    fn excess(&self) -> u64 {
        let own = self.own_used();
        let staying = |used: u64| used.saturating_sub(self.spill.leaving_bytes);
        let low_bytes = self.low_bytes();
        let over = staying(self.messages_used()).saturating_sub(low_bytes);
        // Where others have filled the memory, it is theirs that has to go: a shard that uses less
        // than its share leaves it to them.
        over.min(staying(own).saturating_sub(low_bytes / u64::from(self.config.shards)))
    }

    /// Once per tick, when it is known what the tick's deliveries left: takes out of memory what
    /// is too much.
    fn plan_spill(&mut self) {
        // Each shard may be under its mark by what is free in its own chunks, while another gets
        // nothing: then whoever has more than its share spills.
        let wanted = self.memory.budget.wanted_by_others() > 0;
        if wanted {
            self.memory.shrink(0);
        }
        if self.spill.open.is_none() {
            return;
        }
        let used = self.messages_used();
        let before = self.spill.spilling;
        self.spill.spilling = match before || wanted {
            true => used > self.low_bytes(),
            false => used > self.spill.high_bytes,
        };
        if before && !self.spill.spilling && self.config.shards > 1 {
            // What is free here is of no use to the others before it is given back.
            self.shrink();
        }
        // Of many queues that fill a chunk each, none gets a large one.
        let queues = (self.spill.tails.len() as u64).max(1);
        let share_bytes = self.spill.low_bytes / queues;
        self.memory.press(self.spill.spilling.then_some(share_bytes));
        // Space on disk is made before it is needed: the first of it takes longest.
        if used > self.spill.low_bytes / 2 && !self.spill.ready_to_write() {
            self.spill.look = true;
        }
        if self.spill.spilling {
            self.spill.look = true;
            self.evict_clean();
            self.gather_victims();
        }
        self.settle_gathered(used);
        self.note_overflow();
    }

    /// What is gathered is not enough for a slot: it is written only where memory is over the high
    /// mark by this shard, or another is in want, and nothing else makes room meanwhile; and goes
    /// back where it need not go any more.
    fn settle_gathered(&mut self, used: u64) {
        if self.spill.gathered.is_empty() {
            return;
        }
        if !self.spill.spilling {
            self.spill.gathered_bytes = 0;
            for (owner, _) in std::mem::take(&mut self.spill.gathered) {
                self.keep(owner);
            }
        } else if (self.memory.budget.wanted_by_others() > 0
            || used > self.spill.high_bytes && self.own_used() > self.spill.share_high_bytes)
            && self.spill.stats().writes_under_way == 0
        {
            self.write_gathered();
        } else {
            self.drop_done();
        }
    }

    /// What was gathered and is done with meanwhile takes memory for nothing.
    fn drop_done(&mut self) {
        let (queues, spill) = (&self.queues, &mut self.spill);
        let (mut bytes, mut image_bytes) = (0, 0);
        spill.gathered.retain(|(owner, sealed)| {
            let slot = queues.at(owner.queue);
            let stays = slot.is_some_and(|slot| slot.queue.is_leaving(owner.chunk));
            bytes += if stays { 0 } else { u64::from(owner.bytes) };
            image_bytes += if stays { 0 } else { sealed.image().len() };
            stays
        });
        spill.leaving_bytes -= bytes;
        spill.gathered_bytes -= image_bytes;
    }

    /// A chunk that was to be written stays in memory.
    fn keep(&mut self, owner: Owner) {
        self.spill.leaving_bytes -= u64::from(owner.bytes);
        let Some(slot) = self.queues.at_mut(owner.queue) else { return };
        slot.queue.handle_spill_failed(owner.chunk);
        self.spill.note(owner.queue, slot, true);
    }

    /// Drops chunks that are on disk as well, those first that came first.
    fn evict_clean(&mut self) {
        let count = self.spill.clean.len().min(VICTIMS_PER_TICK_MAX);
        for _ in 0..count {
            if self.excess() == 0 {
                return;
            }
            self.evict_one(Evict::Passed);
        }
    }

    /// Drops the clean chunk that has been here longest, unless it is needed: then it is the last.
    pub(super) fn evict_one(&mut self, which: Evict) {
        let Some(owner) = self.spill.clean.pop_front() else { return };
        self.spill.clean_bytes -= u64::from(owner.bytes);
        let Some(slot) = self.queues.at_mut(owner.queue) else { return };
        let eviction = match which {
            Evict::Passed => slot.queue.evict(owner.chunk, slot.read_ahead),
            Evict::UnlessWaited => {
                let eviction = slot.queue.evict_unless_waited(owner.chunk);
                if matches!(eviction, Eviction::Evicted(_)) {
                    slot.read_less();
                }
                eviction
            }
        };
        if eviction == Eviction::Needed {
            self.spill.clean_bytes += u64::from(owner.bytes);
            self.spill.clean.push_back(owner);
        }
    }

    /// Takes chunks out of the queues that have most, and writes them slot by slot.
    fn gather_victims(&mut self) {
        for _ in 0..VICTIMS_PER_TICK_MAX {
            // To ask the store is to make its file grow: it is asked only for what there is.
            let empty = self.spill.closed.is_empty() && self.spill.tails.is_empty();
            if empty || self.excess() == 0 || !self.spill.ready_to_write() {
                return;
            }
            let Some((owner, sealed)) = self.next_victim() else { return };
            let image_bytes = sealed.image().len();
            let slot_bytes = self.spill.slot_bytes;
            if self.spill.gathered_bytes + image_bytes > slot_bytes {
                self.write_gathered();
            }
            self.spill.leaving_bytes += u64::from(owner.bytes);
            self.spill.gathered_bytes += image_bytes;
            self.spill.gathered.push((owner, sealed));
            if self.spill.gathered_bytes == slot_bytes {
                self.write_gathered();
            }
        }
    }

    /// The newest closed chunk of the queue with most of them, else the longest tail.
    fn next_victim(&mut self) -> Option<(Owner, SealedChunk)> {
        for tails in [false, true] {
            let queues = if tails { &self.spill.tails } else { &self.spill.closed };
            let Some(&(rank, key)) = queues.last() else { continue };
            let Some(slot) = self.queues.at_mut(key) else {
                let queues = if tails { &mut self.spill.tails } else { &mut self.spill.closed };
                queues.remove(&(rank, key));
                continue;
            };
            let victim = slot.queue.take_victim(tails);
            self.spill.note(key, slot, true);
            let Some(victim) = victim else {
                // What it has cannot go now; it is noted again when it grows.
                self.spill.pass_over(key, slot, tails);
                continue;
            };
            let bytes = victim.sealed.reader().capacity_bytes() as u32;
            return Some((Owner { queue: key, chunk: victim.chunk, bytes }, victim.sealed));
        }
        None
    }

    /// Writes what is gathered into a slot, if one is to be had; else it waits.
    fn write_gathered(&mut self) {
        let spill = &mut self.spill;
        let Some(open) = &mut spill.open else { return };
        match open.store.write(std::mem::take(&mut spill.gathered)) {
            Ok(planned) => {
                spill.gathered_bytes = 0;
                spill.requests.push_back(DiskRequest::Write {
                    tag: planned.tag,
                    file: open.file,
                    offset: planned.offset,
                    chunks: planned.chunks,
                });
            }
            Err(gathered) => spill.gathered = gathered,
        }
    }

    /// Something on disk has ended.
    pub fn handle_disk(&mut self, completion: DiskCompletion) {
        let now = self.now.mono;
        let completion = match completion {
            DiskCompletion::WrotePages { tag, pages, result } => {
                return self.handle_journal(tag, result, Some(pages));
            }
            DiskCompletion::Synced { tag, result } if is_of_journal(tag) => {
                return self.handle_journal(tag, result, None);
            }
            other => other,
        };
        self.spill.look = true;
        let Some(store) = self.spill.store() else { return };
        match completion {
            DiskCompletion::Written { tag, result } => {
                let written = store.handle_written(tag, result, now);
                self.handle_written(written);
            }
            DiskCompletion::Read { tag, into, result } => {
                let refilled = store.handle_read(tag, into, result, now);
                self.handle_read(refilled);
            }
            DiskCompletion::Allocated { tag, result } => {
                if let Err(kind) = result {
                    let (shard, kind) = (self.config.shard, error_text(kind));
                    tracing::debug!(shard, kind, "the spill file cannot grow");
                }
                store.handle_allocated(tag, result, now);
            }
            DiskCompletion::Released { tag, result } => {
                store.handle_released(tag, result, now);
                self.answer_trims();
            }
            // Nothing is synced: what is spilled is worth nothing to the next run.
            DiskCompletion::Synced { .. } | DiskCompletion::WrotePages { .. } => {}
        }
    }

    fn handle_written(&mut self, written: Written<Owner>) {
        match written {
            Written::Done(placed) => {
                self.spill.writes += 1;
                for (owner, place) in placed {
                    self.spill.leaving_bytes -= u64::from(owner.bytes);
                    // Of a queue that is gone, the place goes too.
                    let Some(slot) = self.queues.at_mut(owner.queue) else { continue };
                    if slot.queue.handle_spilled(owner.chunk, place) == Eviction::Needed {
                        self.note_clean(owner);
                    }
                }
            }
            Written::Failed(owners, error) => {
                if let WriteError::Device { slot, kind } = error {
                    let (shard, kind) = (self.config.shard, error_text(kind));
                    let state = self.spill.state();
                    // That all of them fail is said with the state, not once for each try.
                    if state == SpillState::Ready {
                        let text = "a spill write failed; it goes elsewhere";
                        tracing::warn!(shard, slot, kind, text);
                    } else {
                        tracing::debug!(shard, slot, kind, "a spill write failed");
                    }
                }
                owners.into_iter().for_each(|owner| self.keep(owner));
            }
        }
    }

    /// Plans what goes to disk and what comes back, once per tick. `free_bytes` asks the file
    /// system what is left.
    pub fn plan_disk(&mut self, free_bytes: impl Fn() -> Option<u64>) {
        self.say_losses();
        // First, for a store that was full or failed may be tried again now.
        self.ask_store(&free_bytes);
        self.plan_spill();
        self.plan_refill();
        self.ask_store(&free_bytes);
    }

    /// What is to be done on disk next, in this order.
    pub fn poll_disk_request(&mut self) -> Option<DiskRequest> {
        self.spill.requests.pop_front()
    }

    /// Asks the store what it needs of the file system, if it may need something.
    fn ask_store(&mut self, free_bytes: impl Fn() -> Option<u64>) {
        let now = self.now.mono;
        let due = self.spill.next_deadline().is_some_and(|at| at <= now);
        if !self.spill.look && !due {
            return;
        }
        let spill = &mut self.spill;
        let Some(Open { file, store, .. }) = &mut spill.open else { return };
        let file = *file;
        spill.look = false;
        if now >= spill.free_due {
            spill.free_due = now.plus_ms(FREE_FIGURE_MS);
            spill.free_bytes = free_bytes().unwrap_or(0);
        }
        while let Some(request) = store.poll_request(now, &free_bytes) {
            spill.requests.push_back(match request {
                StoreRequest::Allocate { tag, offset, bytes } => {
                    DiskRequest::Allocate { tag, file, offset, bytes }
                }
                StoreRequest::Release { tag, offset, bytes } => {
                    DiskRequest::Release { tag, file, offset, bytes }
                }
            });
        }
        self.charge_store();
    }

    /// The backend has as many under way as it takes: the request is the next again.
    pub fn return_disk_request(&mut self, request: DiskRequest) {
        self.spill.requests.push_front(request);
    }

    /// The store's own memory: a few bytes per slot.
    fn charge_store(&mut self) {
        let bytes = self.spill.open.as_ref().map_or(0, |open| open.store.memory_bytes());
        let before = std::mem::replace(&mut self.spill.charged_bytes, bytes);
        if bytes != before {
            self.memory.budget.charge(Account::Queues, bytes);
            self.memory.budget.release(Account::Queues, before);
        }
    }

    /// Refusals for memory are worded by what keeps the disk from making room.
    fn note_overflow(&mut self) {
        let Some(open) = &self.spill.open else { return };
        let state = open.store.state();
        self.memory.overflow = match state {
            SpillState::Off => Overflow::Off,
            SpillState::Ready => Overflow::Working,
            SpillState::Full(FullReason::Limit) => {
                Overflow::Full(ErrorCode::DiskLimit, open.budget.limit_bytes())
            }
            SpillState::Full(FullReason::Headroom | FullReason::NoSpace) => {
                Overflow::Full(ErrorCode::DiskFull, open.headroom_bytes)
            }
            SpillState::Failing(_) => Overflow::Failing,
        };
        let state = self.spill.shown_state();
        let Some(before) = self.spill.said.change(state, self.now.mono) else { return };
        let (shard, before, after) = (self.config.shard, state_text(before), state_text(state));
        match state {
            SpillState::Ready => tracing::info!(shard, before, state = after, "spilling"),
            _ => tracing::warn!(shard, before, state = after, "spilling"),
        }
    }
}

/// A store's state, for people.
pub(super) fn state_text(state: SpillState) -> String {
    match state {
        SpillState::Off => "off".to_owned(),
        SpillState::Ready => "ready".to_owned(),
        SpillState::Full(FullReason::Limit) => "full: disk_limit".to_owned(),
        SpillState::Full(FullReason::Headroom) => "full: disk_headroom".to_owned(),
        SpillState::Full(FullReason::NoSpace) => "full: no space in the file system".to_owned(),
        SpillState::Failing(kind) => format!("failing: {}", error_text(kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_flutters_is_said_once() {
        let (ready, full) = (SpillState::Ready, SpillState::Full(FullReason::Limit));
        let mut said = Said::default();
        assert_eq!(said.change(ready, Mono(0)), None);
        assert_eq!(said.change(full, Mono(0).plus_ms(1)), Some(ready));
        // At the edge a slot becomes free now and then.
        for ms in 2..20_000 {
            let state = if ms % 100 == 0 { full } else { ready };
            assert_eq!(said.change(state, Mono(0).plus_ms(ms)), None);
        }
        // When it lasts it is said, once.
        let changes = (20_000..40_000).filter_map(|ms| said.change(ready, Mono(0).plus_ms(ms)));
        assert_eq!(changes.collect::<Vec<_>>(), [full]);
    }

    #[test]
    fn losses_are_said_at_once_and_then_together() {
        let (mut losses, at) = (Losses::default(), |ms| Mono(5).plus_ms(ms));
        assert!(losses.poll(at(0)).is_none());
        losses.add(7, "first", "gone");
        let said = losses.poll(at(0)).map(|said| (said.messages, said.chunks));
        assert_eq!(said, Some((7, 1)));
        for nth in 0..50 {
            losses.add(nth, if nth == 0 { "second" } else { "third" }, "gone too");
            assert!(losses.poll(at(nth)).is_none());
        }
        let said = losses.poll(at(SAY_LOSSES_MS)).expect("what is not said yet");
        assert_eq!((said.messages, said.chunks, &said.queue[..]), (49 * 25, 50, "second"));
        assert!(losses.poll(at(10 * SAY_LOSSES_MS)).is_none());
    }
}
