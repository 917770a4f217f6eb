//! The extents of a spill file: when it grows, and when what nobody needs goes back to the file
//! system.
//!
//! ```text
//!         allocate                    idle and calm, or a trim
//! absent ---------> growing --> here --------------------------> leaving --> absent
//! ```
//!
//! A file grows an extent ahead of need, in the background. Giving blocks back makes later writes
//! slow for seconds on some file systems, so it is done one by one, spread over half a minute, and
//! only when there was no write for a while, and never below a reserve; or sooner, because another
//! shard is refused for want of it; or all at once, because somebody asked for it.
//!
//! The bytes of all extents are charged to a [`DiskBudget`] that all shards share.

use crate::base::time::Mono;
use crate::limits::{
    SPILL_CALM_MS, SPILL_EXTENT_SLOTS, SPILL_RELEASE_DEPTH, SPILL_RELEASE_MS,
    SPILL_RELEASE_PACE_MS, SPILL_RETRY_MS, SPILL_SLOT_BYTES,
};
use crate::storage::slots::{SLOTS_MAX, SlotTable};
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that the files of all shards may have together: spill files and journals.
#[derive(Debug)]
pub struct DiskBudget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    /// A shard that got nothing wants something until then.
    wanted_until: AtomicU64,
}

impl DiskBudget {
    /// A budget of which nothing is used. 0: nothing may be spilled.
    pub fn new(limit_bytes: u64) -> Arc<DiskBudget> {
        let (used_bytes, wanted_until) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(DiskBudget { limit_bytes, used_bytes, wanted_until })
    }

    /// What spill files may have.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What they have.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// A shard got nothing, and will ask again: others that hold what they do not use give it up.
    fn want(&self, now: Mono) {
        let until = now.plus_ms(3 * SPILL_RETRY_MS);
        self.wanted_until.fetch_max(until.0, Ordering::Relaxed);
    }

    fn is_wanted(&self, now: Mono) -> bool {
        now.0 < self.wanted_until.load(Ordering::Relaxed)
    }

    /// Takes what is there anyway, or must be, also over the limit.
    pub fn charge(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.limit_bytes);
        // The counter is all there is to it: no other memory is read because of its value.
        self.used_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        let before = self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "more is given back than was taken");
    }
}

/// Sizes of one shard's spill file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpillShape {
    /// One slot: what one write fills. A multiple of 4 KiB, at most 1 MiB.
    pub slot_bytes: usize,
    /// Slots by which the file grows.
    pub extent_slots: u32,
    /// In calm the file keeps so many bytes.
    pub reserve_bytes: u64,
    /// The file does not grow when the file system would have less than this left.
    pub headroom_bytes: u64,
    /// Bytes from the file's start that surely have blocks, as it was found.
    pub warm_bytes: u64,
}

impl SpillShape {
    /// The shape for one of so many shards that share `limit_bytes`: with extents so small that
    /// each shard can have a few of them. Reserve and headroom are none, for the caller to set.
    pub fn for_limit(limit_bytes: u64, shards: u32) -> SpillShape {
        let share = limit_bytes / u64::from(shards.max(1)) / SPILL_SLOT_BYTES as u64;
        let extent_slots = (share / 4).clamp(1, u64::from(SPILL_EXTENT_SLOTS)) as u32;
        SpillShape {
            slot_bytes: SPILL_SLOT_BYTES,
            extent_slots,
            reserve_bytes: 0,
            headroom_bytes: 0,
            warm_bytes: 0,
        }
    }

    /// Bytes by which the file grows.
    pub fn extent_bytes(&self) -> u64 {
        self.slot_bytes as u64 * u64::from(self.extent_slots)
    }
}

/// Why a file does not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FullReason {
    /// The spill files have all that `disk_limit` allows.
    Limit,
    /// The file system would have less than `disk_headroom` left.
    Headroom,
    /// The file system has no space, or the user's quota is used up.
    NoSpace,
}

/// Why the last growth did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Full(FullReason),
    Failed(ErrorKind),
}

/// What is to be done to the extent of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Allocate(u32),
    Release(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extent {
    Absent,
    Growing,
    Here,
    /// To be released, or being released.
    Leaving {
        /// Not so what was found at the start and is more than the limit allows.
        charged: bool,
    },
}

/// Whether the error says that there is no space.
pub(super) fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// See the module.
pub(super) struct Extents {
    shape: SpillShape,
    budget: Arc<DiskBudget>,
    table: Rc<SlotTable>,
    extents: Vec<Extent>,
    /// Leaving, and nobody was told yet.
    condemned: VecDeque<u32>,
    releasing: usize,
    growing: bool,
    /// Extents that are charged.
    charged: u64,
    /// Somebody wants to write.
    asked: bool,
    refusal: Option<Refusal>,
    grow_at: Mono,
    last_write: Mono,
    /// When somebody last wanted to write, as far as is known.
    wanted: Option<Mono>,
    release_at: Mono,
    /// What calm gives back now is to be gone by then.
    released_by: Mono,
    polled_at: Mono,
}

impl Extents {
    /// The extents that the file was found with, free as far as the budget goes.
    pub(super) fn new(shape: SpillShape, budget: Arc<DiskBudget>, table: Rc<SlotTable>) -> Self {
        let mut extents = Extents {
            shape,
            budget,
            table,
            extents: Vec::new(),
            condemned: VecDeque::new(),
            releasing: 0,
            growing: false,
            charged: 0,
            asked: false,
            refusal: None,
            grow_at: Mono(0),
            last_write: Mono(0),
            wanted: None,
            release_at: Mono(0),
            released_by: Mono(0),
            polled_at: Mono(0),
        };
        let warm = (shape.warm_bytes / shape.extent_bytes()).min(extents.count_max());
        for extent in 0..warm as u32 {
            if extents.budget.take(shape.extent_bytes()) {
                extents.charged += 1;
                extents.extents.push(Extent::Here);
                extents.table.add_extent(extent);
            } else {
                extents.extents.push(Extent::Leaving { charged: false });
                extents.condemned.push_front(extent);
            }
        }
        extents
    }

    /// Bytes that are charged: of the extents that are here, come or go.
    pub(super) fn charged_bytes(&self) -> u64 {
        self.charged * self.shape.extent_bytes()
    }

    /// Bytes of extents that go.
    pub(super) fn leaving_bytes(&self) -> u64 {
        (self.condemned.len() + self.releasing) as u64 * self.shape.extent_bytes()
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal
    }

    /// Somebody wants to write: there should be a whole extent of free slots.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// From the file's start.
    pub(super) fn offset(&self, extent: u32) -> u64 {
        u64::from(extent) * self.shape.extent_bytes()
    }

    /// What is to be done now. `wrote` says that there was a write since the last call;
    /// `free_bytes` is asked before growth only, for it takes a call of the system.
    pub(super) fn poll(
        &mut self,
        now: Mono,
        free_bytes: impl Fn() -> Option<u64>,
        wrote: bool,
    ) -> Option<Change> {
        if wrote {
            self.last_write = now;
        }
        if self.asked {
            self.wanted = Some(now);
        }
        self.polled_at = now;
        if self.releasing < SPILL_RELEASE_DEPTH
            && let Some(extent) = self.condemned.pop_front()
        {
            self.releasing += 1;
            return Some(Change::Release(extent));
        }
        self.grow(now, free_bytes).or_else(|| self.shrink(now))
    }

    fn grow(&mut self, now: Mono, free_bytes: impl Fn() -> Option<u64>) -> Option<Change> {
        if self.growing || (!self.asked && self.refusal.is_none()) {
            return None;
        }
        if self.table.counts().free >= self.shape.extent_slots {
            (self.asked, self.refusal) = (false, None);
            return None;
        }
        if self.refusal.is_some() && now < self.grow_at {
            return None;
        }
        match self.charge(free_bytes()) {
            Ok(extent) => {
                self.growing = true;
                Some(Change::Allocate(extent))
            }
            Err(reason) => {
                if reason == FullReason::Limit {
                    self.budget.want(now);
                }
                self.refuse(Refusal::Full(reason), now);
                None
            }
        }
    }

    fn charge(&mut self, free_bytes: Option<u64>) -> Result<u32, FullReason> {
        let extent_bytes = self.shape.extent_bytes();
        let left = |free: u64| free.saturating_sub(extent_bytes);
        if free_bytes.is_some_and(|free| left(free) < self.shape.headroom_bytes) {
            return Err(FullReason::Headroom);
        }
        let absent = self.extents.iter().position(|extent| *extent == Extent::Absent);
        let nth = absent.unwrap_or(self.extents.len());
        if nth as u64 >= self.count_max() || !self.budget.take(extent_bytes) {
            return Err(FullReason::Limit);
        }
        self.charged += 1;
        if nth == self.extents.len() {
            self.extents.push(Extent::Absent);
        }
        self.extents[nth] = Extent::Growing;
        Ok(nth as u32)
    }

    fn count_max(&self) -> u64 {
        u64::from(SLOTS_MAX / self.shape.extent_slots)
    }

    fn refuse(&mut self, refusal: Refusal, now: Mono) {
        self.refusal = Some(refusal);
        self.grow_at = now.plus_ms(SPILL_RETRY_MS);
    }

    fn uncharge(&mut self, extent: u32) {
        self.extents[extent as usize] = Extent::Absent;
        self.charged -= 1;
        self.budget.give_back(self.shape.extent_bytes());
    }

    /// The outcome of an allocation.
    pub(super) fn handle_allocated(
        &mut self,
        extent: u32,
        result: Result<(), ErrorKind>,
        now: Mono,
    ) {
        assert_eq!(self.extents[extent as usize], Extent::Growing);
        self.growing = false;
        match result {
            // Where the file system cannot promise blocks, writes find them as they come.
            Ok(()) | Err(ErrorKind::Unsupported) => {
                self.extents[extent as usize] = Extent::Here;
                self.table.add_extent(extent);
                self.refusal = None;
            }
            Err(kind) => {
                self.uncharge(extent);
                let full = Refusal::Full(FullReason::NoSpace);
                self.refuse(if is_full(kind) { full } else { Refusal::Failed(kind) }, now);
            }
        }
    }

    fn shrink(&mut self, now: Mono) -> Option<Change> {
        let in_calm = self.shrink_at().is_some_and(|at| at <= now);
        // Who wants it may be this shard itself.
        let wanted = self.wanted.is_some_and(|at| now < at.plus_ms(SPILL_CALM_MS));
        let needed = self.is_last() && wanted;
        let asked_for = self.budget.is_wanted(now) && !needed;
        let for_others = self.is_spare() && now >= self.release_at && asked_for;
        if !in_calm && !for_others {
            return None;
        }
        let pace_ms = if in_calm { self.calm_pace_ms(now) } else { SPILL_RELEASE_PACE_MS };
        self.release_at = now.plus_ms(pace_ms);
        let extent = self.idle().next_back()?;
        self.condemn(&[extent]);
        self.condemned.pop_front();
        self.releasing += 1;
        Some(Change::Release(extent))
    }

    /// From one extent to the next, so that everything over the reserve is gone in time.
    fn calm_pace_ms(&mut self, now: Mono) -> u64 {
        if self.released_by <= now {
            self.released_by = now.plus_ms(SPILL_RELEASE_MS);
        }
        let over_bytes = self.kept_bytes().saturating_sub(self.shape.reserve_bytes);
        // As many as there may be that hold nothing.
        let free = self.table.counts().free / self.shape.extent_slots;
        let extents = (over_bytes / self.shape.extent_bytes()).min(u64::from(free));
        (self.released_by.ms_since(now) / extents.max(1)).min(SPILL_RELEASE_PACE_MS)
    }

    /// Bytes that are charged and stay.
    fn kept_bytes(&self) -> u64 {
        self.charged_bytes() - self.charged_leaving_bytes()
    }

    /// Whether there may be an extent that holds nothing.
    fn is_spare(&self) -> bool {
        let counts = self.table.counts();
        self.releasing == 0 && !self.growing && counts.free + counts.bad >= self.shape.extent_slots
    }

    /// Whether without one extent there would be no free one left.
    fn is_last(&self) -> bool {
        self.table.counts().free < 2 * self.shape.extent_slots
    }

    /// When an extent over the reserve may be given back, if there may be one.
    fn shrink_at(&self) -> Option<Mono> {
        let kept = self.kept_bytes().saturating_sub(self.shape.extent_bytes());
        let over = self.is_spare() && kept >= self.shape.reserve_bytes;
        // The last free extent stays while somebody may need it: it would only come again.
        let wanted = self.wanted.filter(|_| self.is_last());
        let busy = wanted.map_or(self.last_write, |at| at.max(self.last_write));
        over.then(|| self.release_at.max(busy.plus_ms(SPILL_CALM_MS)))
    }

    /// When to see whether another shard is in want of what is spare here, calm or not. Nobody is
    /// while the budget has something left.
    fn look_at(&self) -> Option<Mono> {
        let left = self.budget.limit_bytes().saturating_sub(self.budget.used_bytes());
        let look = left < self.shape.extent_bytes() && self.is_spare();
        look.then(|| self.release_at.max(self.polled_at.plus_ms(SPILL_RELEASE_PACE_MS)))
    }

    fn charged_leaving_bytes(&self) -> u64 {
        let leaving = |extent: &&Extent| matches!(extent, Extent::Leaving { charged: true });
        match self.condemned.len() + self.releasing {
            0 => 0,
            _ => self.extents.iter().filter(leaving).count() as u64 * self.shape.extent_bytes(),
        }
    }

    /// Extents that are here and hold nothing.
    fn idle(&self) -> impl DoubleEndedIterator<Item = u32> {
        let here = |extent: &u32| self.extents[*extent as usize] == Extent::Here;
        (0..self.extents.len() as u32).filter(here).filter(|extent| self.table.is_idle(*extent))
    }

    fn condemn(&mut self, extents: &[u32]) {
        self.table.remove_extents(extents);
        for &extent in extents {
            self.extents[extent as usize] = Extent::Leaving { charged: true };
            // The last of the file goes first.
            self.condemned.push_front(extent);
        }
    }

    /// All extents that hold nothing now are given back, at once. How many they are.
    pub(super) fn trim(&mut self) -> usize {
        let idle: Vec<u32> = self.idle().collect();
        self.condemn(&idle);
        // What was asked for before is given back: who still needs it asks again.
        (self.asked, self.refusal) = (false, None);
        idle.len()
    }

    /// The outcome of a release.
    pub(super) fn handle_released(
        &mut self,
        extent: u32,
        result: Result<(), ErrorKind>,
        now: Mono,
    ) {
        let Extent::Leaving { charged } = self.extents[extent as usize] else {
            panic!("extent {extent} was not leaving");
        };
        self.releasing -= 1;
        match (result, charged) {
            (Ok(()), true) => self.uncharge(extent),
            // What cannot be given back and may not be used is left alone.
            (_, false) => self.extents[extent as usize] = Extent::Absent,
            (Err(_), true) => {
                self.extents[extent as usize] = Extent::Here;
                self.table.add_extent(extent);
                self.release_at = now.plus_ms(RELEASE_RETRY_MS);
            }
        }
    }

    /// When there will be something to do that no outcome tells of.
    pub(super) fn next_deadline(&self) -> Option<Mono> {
        let grow = self.refusal.map(|_| self.grow_at).filter(|_| !self.growing);
        grow.into_iter().chain(self.shrink_at()).chain(self.look_at()).min()
    }
}

/// A file system that does not take blocks back is asked again after so long.
const RELEASE_RETRY_MS: u64 = 60_000;
