//! Durable queues over crashes: the real shards with their journals on the simulated disk, clients
//! with ledgers, and processes that end at any operation of a disk, also while they begin.
//!
//! ```text
//! steps -> the process is killed | power fails | it stops by itself -> perhaps again, before it
//!       -> as many or other shards begin on the same disk -> what is there is what was promised
//! end   -> everything is drained, acked, at rest; power fails; nothing comes again
//! ```
//!
//! The net is calm and the device neither fails nor rots: here whatever is lost was lost by the
//! broker.

mod client;
mod ledger;

use crate::base::chunk_pool::PoolShape;
use crate::limits::KIB;
use crate::queue::Queue;
use crate::queue::policy::QueueBounds;
use crate::shard::ShardConfig;
use crate::shard::post::PostShape;
use crate::sim::Checked;
use crate::sim::cluster::Cluster;
use crate::sim::model::Model;
use crate::sim::plan::{MEMORY_RESERVE_BYTES, Plan, SpillPlan};
use crate::sim::run::{Report, RunOptions, report};
use crate::sim::trace::Cover;
use crate::sim::world::{SimWorld, Stopped, Universe};
use crate::storage::journal::JournalShape;
use crate::storage::spill::SpillShape;
use client::{Client, Sizes};
use ledger::Ledger;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

/// Steps until everything must have been drained.
const DRAIN_STEPS_MAX: u64 = 100_000;
/// A crash so few steps behind another is one in a row.
const ROW_STEPS: u64 = 5;

/// Runs one seed.
pub fn run(options: RunOptions) -> Report {
    let universe = Universe::new(options.seed ^ 0xd0_0ab1e, options.print);
    report(&universe, |steps| Run::new(&universe)?.play(options.steps, steps))
}

struct Run {
    universe: Rc<Universe>,
    plan: Plan,
    cluster: Cluster<SimWorld>,
    clients: Vec<Client>,
    /// The oldest segment of each store.
    oldest: BTreeMap<u32, u64>,
    steps: u64,
    crashed_at: u64,
}

impl Run {
    fn new(universe: &Rc<Universe>) -> Checked<Run> {
        let is_large = universe.chance(250);
        let plan = draw(universe, is_large);
        let sizes = Sizes {
            body_bytes: [100, 1000, 6000][universe.index(3)],
            batch_bytes: plan.batch_bytes_max.min(crate::limits::BATCH_WIRE_BYTES_MAX),
            large_bytes: if is_large { 600 * KIB as u64 } else { 0 },
        };
        universe.net.borrow_mut().calm();
        universe.net.borrow_mut().share(plan.config.shards as usize);
        universe.device.borrow_mut().calm();
        universe.device.borrow_mut().may_crash();
        let cluster = Cluster::new(universe, &plan);
        let client = |nth: u32| {
            let ledger = Ledger::new(&format!("queue-{nth}"), universe.chance(300));
            Client::new(universe, nth, ledger, sizes)
        };
        let clients = (0..universe.range(1, 4) as u32).map(client).collect();
        let universe = Rc::clone(universe);
        let oldest = BTreeMap::new();
        Ok(Run { universe, plan, cluster, clients, oldest, steps: 0, crashed_at: 0 })
    }

    fn play(&mut self, count: u64, steps: &mut u64) -> Checked {
        let universe = Rc::clone(&self.universe);
        while self.steps < count {
            match universe.below(4000) {
                0..4 => self.crash(universe.chance(500))?,
                // Soon, between two operations of a disk.
                4..8 => universe.light_fuse(Some(universe.skewed(60))),
                8 => {
                    self.stop()?;
                    self.crash(true)?;
                }
                _ => self.step()?,
            }
            *steps = self.steps;
        }
        universe.light_fuse(None);
        self.drain()?;
        for client in &self.clients {
            client.ledger.finish()?;
        }
        self.stop()?;
        self.crash(true)?;
        *steps = self.steps;
        let left: Vec<_> =
            self.cluster.queues().filter(|(_, queue)| queue.messages() > 0).collect();
        match left.first() {
            Some((name, queue)) => Err(format!("{name} has {} again", queue.messages())),
            None => Ok(()),
        }
    }

    /// Somebody does something, some shards tick, everything is compared.
    fn step(&mut self) -> Checked {
        self.steps += 1;
        let universe = Rc::clone(&self.universe);
        let nth = universe.index(self.clients.len());
        universe.event("durable act", nth as u64, 0);
        self.clients[nth].act()?;
        universe.advance_ns(universe.range(1_000, 200_000));
        let ticked = catch_unwind(AssertUnwindSafe(|| self.cluster.tick()));
        match ticked {
            Ok(ticked) => ticked.map(drop)?,
            Err(panic) if panic.is::<Stopped>() => {
                universe.cover(Cover::DurableStopped);
                return self.crash(universe.chance(500));
            }
            Err(panic) => resume_unwind(panic),
        }
        self.check()
    }

    fn check(&mut self) -> Checked {
        let queues: BTreeMap<&str, &Queue> = self.cluster.queues().collect();
        for client in &mut self.clients {
            let ledger = &mut client.ledger;
            let shown = queues.get(&ledger.name[..]).copied();
            ledger.observe(shown)?;
        }
        if self.steps.is_multiple_of(16) {
            queues.values().try_for_each(|queue| Model::recount(queue))?;
        }
        for (store, segment) in self.cluster.oldest_segments() {
            let before = self.oldest.insert(store, segment);
            if before.is_some_and(|before| before < segment) {
                self.universe.cover(Cover::DurableRound);
            }
        }
        Ok(())
    }

    /// The process ends here and now, and others take its place, until one has begun.
    fn crash(&mut self, power: bool) -> Checked {
        let universe = Rc::clone(&self.universe);
        // What was asked for and not answered may be there after one end and not after the next.
        let is_sure = !self.clients.iter().any(|client| client.ledger.unsure);
        let power = power && is_sure;
        universe.light_fuse(None);
        if self.steps < self.crashed_at + ROW_STEPS {
            universe.cover(Cover::DurableRow);
        }
        self.crashed_at = self.steps;
        self.clients.iter_mut().for_each(Client::cut);
        self.end_process(power);
        let before = self.plan.config.shards;
        self.plan.config.shards = universe.range(1, 3) as u32;
        if before != self.plan.config.shards {
            universe.cover(Cover::DurableReshard);
        }
        self.plan.config.message_bytes_max =
            self.plan.config.memory_limit_bytes / (8 * u64::from(self.plan.config.shards));
        loop {
            universe.net.borrow_mut().share(self.plan.config.shards as usize);
            if universe.chance(300) {
                universe.light_fuse(Some(universe.skewed(40)));
            }
            let begun = AssertUnwindSafe(|| Cluster::new(&universe, &self.plan));
            match catch_unwind(begun) {
                Ok(cluster) => {
                    self.cluster = cluster;
                    break;
                }
                Err(panic) if panic.is::<Stopped>() => {
                    universe.cover(Cover::DurableInRecovery);
                    self.end_process(universe.chance(500) && is_sure);
                }
                Err(panic) => resume_unwind(panic),
            }
        }
        // Often the next one comes before what came back is at rest.
        universe.light_fuse(universe.chance(300).then(|| universe.skewed(100)));
        self.compare()
    }

    fn end_process(&mut self, power: bool) {
        let universe = &*self.universe;
        universe.event("durable crash", u64::from(power), self.steps);
        universe.note(|| format!("CRASH, power {power}"));
        universe.net.borrow_mut().restart();
        let mut device = universe.device.borrow_mut();
        if power {
            device.crash(universe);
        }
        device.restart();
        drop(device);
        self.clients.iter_mut().for_each(|client| client.ledger.crashed(power));
    }

    /// What came back is what was there.
    fn compare(&mut self) -> Checked {
        for recovered in self.cluster.recovered() {
            let back = recovered.as_ref().map_err(|error| format!("recovery: {error}"))?;
            let harm = back.damages.iter().find(|damage| damage.was_synced);
            if back.lost > 0 || harm.is_some() {
                return Err(format!("recovery: {back:?}"));
            }
            let queues = back.queues;
            self.universe.note(|| format!("{queues} queues, {} messages", back.messages));
        }
        let queues: BTreeMap<&str, &Queue> = self.cluster.queues().collect();
        for client in &mut self.clients {
            let shown = queues.get(&client.ledger.name[..]).copied();
            client.ledger.restarted(shown)?;
            client.settle_in();
        }
        queues.values().try_for_each(|queue| Model::recount(queue))
    }

    /// The broker is told to end, and does.
    fn stop(&mut self) -> Checked {
        self.universe.light_fuse(None);
        let begun = self.universe.mono();
        self.cluster.drain();
        while self.cluster.is_running() {
            self.step()?;
        }
        let timeout_ms = self.plan.config.drain_timeout_ms;
        if self.universe.mono().ms_since(begun) < timeout_ms {
            self.universe.cover(Cover::DurableEnded);
            self.clients.iter_mut().for_each(|client| client.ledger.stopped());
        }
        Ok(())
    }

    /// Everything comes out.
    fn drain(&mut self) -> Checked {
        self.universe.heal();
        self.clients.iter_mut().for_each(|client| client.winding_down = true);
        let end = self.steps + DRAIN_STEPS_MAX;
        while self.steps < end {
            self.step()?;
            let held: u64 = self.cluster.queues().map(|(_, queue)| queue.messages()).sum();
            if held == 0 && self.clients.iter().all(Client::is_settled) {
                return Ok(());
            }
        }
        let mut text = String::from("not everything came out:");
        for (name, queue) in self.cluster.queues() {
            text += &format!("\n{name}: {} held, blocked {:?}", queue.messages(), queue.blocked());
            for (_, of) in queue.subscriptions() {
                let numbers = [of.ready(), of.in_flight(), of.delayed(), of.dead_lettering()];
                text += &format!(
                    "\n    {}: {numbers:?} {:?} {:?}",
                    of.name(),
                    of.dead_letter_reason(),
                    of.paused_reason()
                );
            }
        }
        self.clients.iter().for_each(|client| text += &format!("\n{}", client.describe()));
        Err(text)
    }
}

/// A small world; one with large messages has chunks and groups that hold their fragments.
fn draw(universe: &Universe, is_large: bool) -> Plan {
    let header_bytes = crate::limits::CHUNK_HEADER_BYTES;
    let class_bytes = match is_large {
        true => vec![4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB],
        false => vec![4 * KIB, 16 * KIB],
    };
    let largest = class_bytes[class_bytes.len() - 1];
    let slab_bytes = largest.max(64 * KIB);
    let pool = PoolShape { slab_bytes, class_bytes, header_bytes };
    let shards = universe.range(1, 3) as u32;
    // As many as there may be after any restart.
    let memory_limit_bytes = (slab_bytes * if is_large { 60 } else { [20, 60][universe.index(2)] })
        as u64
        + 3072 * KIB as u64;
    let watermark_high = [5, 20, 60][universe.index(3)];
    let bounds = QueueBounds {
        window_bytes: 3 * largest as u64,
        retry_waiting_max: 50,
        ..QueueBounds::default()
    };
    let config = ShardConfig {
        watermark_high,
        watermark_low: watermark_high / 2,
        memory_limit_bytes,
        memory_reserve_bytes: MEMORY_RESERVE_BYTES,
        message_bytes_max: memory_limit_bytes / (8 * u64::from(shards)),
        shards,
        stores: universe.range(1, 3) as u32,
        connections_max: 1000,
        pool,
        bounds,
        read_bytes: [4096, 65536][universe.index(2)],
        server_version: "simulated".into(),
        ..ShardConfig::new(memory_limit_bytes)
    };
    let group_bytes_max = if is_large { 512 } else { [24, 32][universe.index(2)] } * KIB;
    let segment_bytes =
        if is_large { 1024 } else { [64, 128, 256][universe.index(3)] } * KIB as u64;
    let prewrite_bytes = if is_large { 256 } else { 32 } * KIB as u64;
    let shape = SpillShape {
        slot_bytes: largest,
        extent_slots: 4,
        reserve_bytes: 0,
        headroom_bytes: 0,
        warm_bytes: 0,
    };
    Plan {
        calm: true,
        batch_bytes_max: largest - header_bytes - crate::limits::BATCH_PREFIX_BYTES,
        queues: Vec::new(),
        work_queues: 0,
        peers: 0,
        session_peers: 0,
        hostiles: 0,
        body_bytes_max: 0,
        restarts: true,
        forgets_producers: false,
        redrives: false,
        post: PostShape { ring_parcels: 4, parcel_bytes: 16_000 },
        adoptions_max: 3,
        grant_bytes: slab_bytes as u64,
        spill: Some(SpillPlan { shape, limit_bytes: 1 << 30, capacity_bytes: None }),
        journal: Some(JournalShape { segment_bytes, group_bytes_max, prewrite_bytes }),
        config,
    }
}
