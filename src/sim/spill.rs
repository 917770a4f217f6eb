//! What is on disk adds up after every step: places, slots, blocks and limits, by each count there
//! is; a queue is blocked by the disk only while that has no room; and nothing is lost but what the
//! device has spoiled.

use crate::limits::DISK_ALIGN_BYTES;
use crate::protocol::error::ErrorCode;
use crate::queue::Queue;
use crate::queue::policy::OnFull;
use crate::sim::Checked;
use crate::sim::cluster::Cluster;
use crate::sim::device::Device;
use crate::sim::plan::{Plan, SpillPlan};
use crate::sim::trace::Cover;
use crate::sim::world::{SimulatedWorld, Universe};
use crate::storage::spill::{FullReason, SpillState, SpillStats};
use std::collections::BTreeMap;

/// So long a queue may stay blocked where there is room.
const BLOCKED_NS_MAX: u64 = 2_000_000_000;
/// And so many ticks of its shard.
const BLOCKED_TICKS_MAX: u64 = 50;

/// What was seen of a shard at the last step.
#[derive(Clone, Copy)]
struct Seen {
    state: SpillState,
    stats: SpillStats,
}

/// What was seen of a queue.
#[derive(Default)]
struct Known {
    absent: u64,
    lost: u64,
    redriven: u64,
    delivered: u64,
    /// The first message that is ready was on disk.
    front_absent: bool,
    /// What it is blocked by, and since when there is room: time and ticks.
    blocked: Option<ErrorCode>,
    roomy_since: Option<(u64, u64)>,
}

/// See the module.
#[derive(Default)]
pub struct Watch {
    shards: Vec<Seen>,
    queues: BTreeMap<(usize, u64), Known>,
}

impl Watch {
    /// Compares what a cluster has on disk with what there should be; with `recounts` all that is
    /// slow to count as well.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check<W: SimulatedWorld>(
        &mut self,
        cluster: &Cluster<W>,
        plan: &Plan,
        universe: &Universe,
        recounts: bool,
    ) -> Checked {
        let Some(spill) = &plan.spill else { return Ok(()) };
        let before = std::mem::take(&mut self.shards);
        let device = universe.device.borrow();
        let mut allocated = 0;
        if cluster.spill_costs().1 > 0 {
            universe.cover(Cover::PeekWaited);
        }
        for (nth, (state, stats)) in cluster.spills().enumerate() {
            let now = Seen { state, stats };
            let was = before.get(nth).copied();
            note_changes(was, now, universe);
            check_file(nth, &stats, spill, recounts.then_some(&*device))?;
            allocated += stats.allocated_bytes;
            self.shards.push(now);
        }
        let budget = cluster.disk_budget();
        if allocated != budget.used_bytes() || allocated > budget.limit_bytes() {
            return Err(format!("{allocated} bytes on disk, of {budget:?}"));
        }
        let mut live_bytes = vec![0; self.shards.len()];
        for (shard, queue) in cluster.queues_by_shard() {
            let wrote = before.get(shard).is_none_or(|was| {
                was.stats.written_bytes != self.shards[shard].stats.written_bytes
            });
            let known = self.queues.entry((shard, queue.number())).or_default();
            known.note_changes(queue, wrote, recounts, universe);
            known.check_lost(shard, queue, &device, universe)?;
            let states = [before.get(shard).map(|was| was.state), Some(self.shards[shard].state)];
            known.check_blocked(queue, states, universe)?;
            // An eighth must be free before it takes again.
            let eighth = plan.config.memory_limit_bytes / 8;
            let roomy_bytes = eighth.max(2 * plan.config.pool.slab_bytes as u64);
            let roomy = cluster
                .budgets()
                .nth(shard)
                .is_some_and(|budget| budget.free_for_chunks() >= roomy_bytes);
            known.check_roomy(queue, roomy, cluster.ticks(shard), universe)?;
            if recounts {
                live_bytes[shard] += queue.disk_bytes();
            }
        }
        let wrong = |(seen, live): &(&Seen, &u64)| {
            seen.stats.writes_under_way == 0 && seen.stats.live_bytes != **live
        };
        match self.shards.iter().zip(&live_bytes).find(wrong).filter(|_| recounts) {
            Some((seen, live)) => Err(format!("queues hold {live} bytes of {:?}", seen.stats)),
            None => Ok(()),
        }
    }

    /// The process has ended.
    pub fn restart(&mut self) {
        *self = Watch::default();
    }

    /// Whether nothing is on disk, on its way there, or back to the file system.
    pub fn is_empty(&self, plan: &Plan) -> bool {
        let Some(spill) = &plan.spill else { return true };
        let extent_bytes = spill.shape.extent_bytes();
        self.shards.iter().all(|Seen { stats, .. }| {
            let busy = stats.writes_under_way + stats.reads_under_way > 0;
            // One free extent may stay, however many it takes to have as many good slots.
            let bad_bytes = u64::from(stats.slots_bad) * spill.shape.slot_bytes as u64;
            let spare = 2 * extent_bytes + bad_bytes - 1;
            let kept = stats.allocated_bytes <= spill.shape.reserve_bytes + spare
                // Given back one a second, more take too long.
                || stats.allocated_bytes > 20 * extent_bytes;
            !busy && stats.slots_used == 0 && stats.live_bytes == 0 && kept
        })
    }

    /// For people.
    pub fn describe(&self) -> String {
        let shards: Vec<_> = self.shards.iter().map(|seen| (seen.state, seen.stats)).collect();
        format!("{shards:?}")
    }
}

/// What happened to a shard's file is counted.
fn note_changes(was: Option<Seen>, now: Seen, universe: &Universe) {
    let stats = now.stats;
    let Some(Seen { state, stats: before }) = was else {
        if stats.allocated_bytes > 0 {
            universe.cover(Cover::WarmStart);
        }
        return;
    };
    let grew = [
        (before.written_bytes < stats.written_bytes, Cover::Spilled),
        (before.read_bytes < stats.read_bytes, Cover::Refilled),
        (before.extents_allocated < stats.extents_allocated, Cover::Grown),
        (before.extents_released < stats.extents_released, Cover::Released),
        (before.chunks_saved < stats.chunks_saved, Cover::Salvaged),
    ];
    grew.iter().filter(|(grew, _)| *grew).for_each(|(_, cover)| universe.cover(*cover));
    if state == now.state {
        return;
    }
    match now.state {
        SpillState::Full(FullReason::Limit) => universe.cover(Cover::SpillAtLimit),
        SpillState::Full(FullReason::Headroom) => universe.cover(Cover::SpillAtHeadroom),
        SpillState::Full(FullReason::NoSpace) => universe.cover(Cover::SpillNoSpace),
        SpillState::Failing(_) => universe.cover(Cover::SpillFailing),
        SpillState::Ready if matches!(state, SpillState::Failing(_)) => {
            universe.cover(Cover::SpillRecovered);
        }
        _ => {}
    }
}

/// A file's own figures, and those of the device.
fn check_file(
    shard: usize,
    stats: &SpillStats,
    spill: &SpillPlan,
    device: Option<&Device>,
) -> Checked {
    let slots = u64::from(stats.slots_used + stats.slots_free + stats.slots_bad);
    let in_slots = slots * spill.shape.slot_bytes as u64;
    let coming = stats.allocated_bytes.checked_sub(stats.leaving_bytes + in_slots);
    // One extent comes at a time.
    if coming.is_none_or(|bytes| bytes > spill.shape.extent_bytes()) {
        return Err(format!("shard {shard}: extents do not add up: {stats:?}"));
    }
    let used_bytes = u64::from(stats.slots_used) * spill.shape.slot_bytes as u64;
    let (live_bytes, page) = (stats.live_bytes, DISK_ALIGN_BYTES as u64);
    if live_bytes > used_bytes || !live_bytes.is_multiple_of(page) {
        return Err(format!("shard {shard}: slots do not add up: {stats:?}"));
    }
    let Some(device) = device else { return Ok(()) };
    let name = format!("spill-{shard}.dat");
    let (held, strays) = device.find(&name).map_or((0, 0), |file| device.held_bytes(file));
    match held - strays <= stats.allocated_bytes {
        true => Ok(()),
        false => Err(format!("{name} holds {held} bytes, {strays} of them stray: {stats:?}")),
    }
}

impl Known {
    fn note_changes(&mut self, queue: &Queue, wrote: bool, recounts: bool, universe: &Universe) {
        let absent = queue.spilled_messages();
        if absent > self.absent && !wrote {
            universe.cover(Cover::EvictedClean);
        }
        self.absent = absent;
        let counters = queue.counters();
        let delivered = counters.delivered != self.delivered;
        if counters.redriven > self.redriven && self.front_absent && !delivered {
            universe.cover(Cover::RedriveSpilled);
        }
        let redriven = counters.redriven != self.redriven;
        (self.redriven, self.delivered) = (counters.redriven, counters.delivered);
        self.front_absent &= !redriven && !delivered;
        if absent == 0 || !recounts {
            return;
        }
        for (_, subscription) in queue.subscriptions() {
            let [in_flight, delayed, dying] = subscription.held().map(|portions| {
                portions.iter().any(|portion| queue.is_absent(portion.run.at.chunk))
            });
            if in_flight || delayed {
                universe.cover(Cover::HeldSpilled);
            }
            if dying {
                universe.cover(Cover::DeadLetterSpilled);
            }
            self.front_absent |= in_flight == delayed && subscription.ready() == absent;
        }
    }

    /// Only what was spoiled on disk may be lost.
    fn check_lost(
        &mut self,
        shard: usize,
        queue: &Queue,
        device: &Device,
        universe: &Universe,
    ) -> Checked {
        let lost = queue.counters().lost_damaged;
        if lost == self.lost {
            return Ok(());
        }
        self.lost = lost;
        universe.cover(Cover::Lost);
        let file = device.find(&format!("spill-{shard}.dat"));
        let spoiled = file.map_or(0, |file| device.damaged_messages(file, queue.number()));
        for (_, subscription) in queue.subscriptions() {
            let lost = subscription.counters().lost_damaged;
            if lost > spoiled {
                let name = (queue.name(), subscription.name());
                return Err(format!("{name:?} lost {lost}, {spoiled} were spoiled on disk"));
            }
        }
        Ok(())
    }

    /// A queue that blocks for memory says why there is none.
    fn check_blocked(
        &mut self,
        queue: &Queue,
        states: [Option<SpillState>; 2],
        universe: &Universe,
    ) -> Checked {
        let code = queue.blocked().map(|block| block.code).filter(|code| code.is_of_memory());
        let before = std::mem::replace(&mut self.blocked, code);
        let Some(code) = code.filter(|code| before != Some(*code)) else { return Ok(()) };
        if code != ErrorCode::MemoryLimit {
            universe.cover(Cover::BlockedByDisk);
        }
        match states.into_iter().flatten().any(|state| code_of(state) == code) {
            true => Ok(()),
            false => {
                Err(format!("{} is blocked by {code} where spilling is {states:?}", queue.name()))
            }
        }
    }

    /// A queue that is blocked for memory only is not so for long where there is room.
    fn check_roomy(
        &mut self,
        queue: &Queue,
        roomy: bool,
        ticks: u64,
        universe: &Universe,
    ) -> Checked {
        let options = queue.options();
        let unlimited =
            options.messages_max == 0 && options.bytes_max == 0 && options.on_full == OnFull::Block;
        let now_ns = universe.mono().0;
        if self.blocked.is_none() || !roomy || !unlimited {
            self.roomy_since = None;
            return Ok(());
        }
        let (since_ns, since_ticks) = *self.roomy_since.get_or_insert((now_ns, ticks));
        let passed = (now_ns - since_ns, ticks - since_ticks);
        match passed.0 > BLOCKED_NS_MAX && passed.1 > BLOCKED_TICKS_MAX {
            true => Err(format!(
                "{} is blocked by {:?} with room for {} ms",
                queue.name(),
                self.blocked,
                passed.0 / 1_000_000
            )),
            false => Ok(()),
        }
    }
}

/// How a refusal for want of memory is worded.
fn code_of(state: SpillState) -> ErrorCode {
    match state {
        SpillState::Off | SpillState::Ready => ErrorCode::MemoryLimit,
        SpillState::Full(FullReason::Limit) => ErrorCode::DiskLimit,
        SpillState::Full(FullReason::Headroom | FullReason::NoSpace) => ErrorCode::DiskFull,
        SpillState::Failing(_) => ErrorCode::DiskError,
    }
}
