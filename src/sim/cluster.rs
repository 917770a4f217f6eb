//! All shards of the simulated broker, and which of them runs next. A shard that sleeps runs only
//! when it would in the real world: somebody woke it, its sockets have something, or its time has
//! come. So a wake-up that is lost stays lost, and is found.

use crate::base::chunk_pool::HeapSlabs;
use crate::format::journal::StoreId;
use crate::queue::Queue;
use crate::queue::memory::{Account, Budget, CommonBudget};
use crate::shard::mailbox::{Command, Commands, commands};
use crate::shard::post::Office;
use crate::shard::recover::{RecoverError, RecoveredStore};
use crate::shard::{Adoptions, Shard, ShardConfig, Status, adoptions};
use crate::sim::Checked;
use crate::sim::clock::SimClock;
use crate::sim::disk::SimDisk;
use crate::sim::net::SimNet;
use crate::sim::plan::Plan;
use crate::sim::trace::Cover;
use crate::sim::world::{SimulatedWorld, Universe};
use crate::storage::spill::{DiskBudget, SpillState, SpillStats};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

struct Member<W: SimulatedWorld> {
    shard: Shard<W>,
    commands: Commands,
    status: Status,
    /// When it runs at the latest; `None`: not before somebody wakes it.
    due_ns: Option<u64>,
    /// When it last began to run.
    ticked_ns: u64,
    /// How often it ran.
    ticks: u64,
}

/// See the module.
pub struct Cluster<W: SimulatedWorld> {
    universe: Rc<Universe>,
    members: Vec<Member<W>>,
    office: Arc<Office>,
    adoptions: Adoptions<W>,
    disk_budget: Arc<DiskBudget>,
    recovered: Vec<Result<RecoveredStore, RecoverError>>,
}

impl<W: SimulatedWorld> Cluster<W> {
    /// The broker of a plan, just started.
    pub fn new(universe: &Rc<Universe>, plan: &Plan) -> Self {
        let (shards, config) = (plan.config.shards, &plan.config);
        let (limit, reserve) = (config.memory_limit_bytes, config.memory_reserve_bytes);
        let common = CommonBudget::new(limit, reserve, shards, plan.grant_bytes);
        let office = Office::new(shards, plan.post, common);
        let rings = adoptions::<W>(shards, plan.adoptions_max);
        let disk_budget = DiskBudget::new(plan.spill.map_or(0, |spill| spill.limit_bytes));
        universe.forget_disks();
        let mut recovered = Vec::new();
        let mut member = |nth: u32| {
            let net = W::net(SimNet::new(Rc::clone(universe), nth as usize));
            let disk = W::disk(SimDisk::new(Rc::clone(universe)));
            let clock = SimClock::new(Rc::clone(universe));
            let config = ShardConfig { shard: nth, ..config.clone() };
            let commands = commands();
            let told = Arc::clone(&commands);
            let mut shard = Shard::new(config, net, disk, clock, Rc::new(HeapSlabs), told);
            if let Some(spill) = plan.spill {
                let opened = shard.open_spill(spill.shape, Arc::clone(&disk_budget));
                opened.expect("the simulated disk opens every file");
            }
            if shards > 1 {
                let universe = Rc::clone(universe);
                let wake = move |to| {
                    universe.event("wake", to as u64, 0);
                    universe.net.borrow_mut().wake(to);
                };
                shard.join(Arc::clone(&office), Arc::clone(&rings), Box::new(wake));
            }
            if let Some(shape) = plan.journal {
                let own = (0..plan.config.stores).filter(|store| store % shards == nth);
                let open = |store: u32| shard.open_store(store, store_id(store), shape);
                recovered.extend(own.map(open));
            }
            Member {
                shard,
                commands,
                status: Status::Running,
                due_ns: Some(0),
                ticked_ns: 0,
                ticks: 0,
            }
        };
        let members = (0..shards).map(&mut member).collect();
        let universe = Rc::clone(universe);
        Cluster { universe, members, office, adoptions: rings, disk_budget, recovered }
    }

    /// What came back of each store when the broker began.
    pub fn recovered(&self) -> &[Result<RecoveredStore, RecoverError>] {
        &self.recovered
    }

    /// The sequence of the oldest segment that each journal needs.
    pub fn oldest_segments(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.members.iter().flat_map(|member| member.shard.oldest_segments())
    }

    /// Whether any shard runs.
    pub fn is_running(&self) -> bool {
        self.members.iter().any(|member| member.status == Status::Running)
    }

    /// All queues, by shard and name.
    pub fn queues(&self) -> impl Iterator<Item = (&str, &Queue)> {
        self.members.iter().flat_map(|member| member.shard.queues())
    }

    /// All queues, each with the number of its shard.
    pub fn queues_by_shard(&self) -> impl Iterator<Item = (usize, &Queue)> {
        let members = self.members.iter().enumerate();
        members.flat_map(|(nth, member)| member.shard.queues().map(move |(_, queue)| (nth, queue)))
    }

    /// Of each shard whether it can spill, and what its file holds.
    pub fn spills(&self) -> impl Iterator<Item = (SpillState, SpillStats)> {
        self.members.iter().map(|member| member.shard.spilling())
    }

    /// Of all shards the bytes charged for what is known of spill files, and the peeks that wait.
    pub fn spill_costs(&self) -> (u64, usize) {
        let costs = self.members.iter().map(|member| member.shard.spill_costs());
        costs.fold((0, 0), |sum, cost| (sum.0 + cost.0, sum.1 + cost.1))
    }

    /// Chunks of all shards that are not free.
    pub fn used_chunks(&self) -> usize {
        self.members.iter().map(|member| member.shard.used_chunks()).sum()
    }

    /// How often a shard has run.
    pub fn ticks(&self, nth: usize) -> u64 {
        self.members[nth].ticks
    }

    /// What all spill files may have and have.
    pub fn disk_budget(&self) -> &DiskBudget {
        &self.disk_budget
    }

    /// The budget of each shard.
    pub fn budgets(&self) -> impl Iterator<Item = &Budget> {
        self.members.iter().map(|member| member.shard.budget())
    }

    /// Bytes that all shards use for something.
    pub fn used_by(&self, account: Account) -> u64 {
        self.budgets().map(|budget| budget.used_by(account)).sum()
    }

    /// Tells all shards to end.
    pub fn drain(&self) {
        for (nth, member) in self.members.iter().enumerate() {
            let told = member.commands.push(Command::Drain);
            assert!(told.is_ok(), "the mailbox is empty");
            self.universe.net.borrow_mut().wake(nth);
        }
    }

    /// Lets some of the shards run. Returns a time up to which all have done what was due.
    ///
    /// # Errors
    /// If one sleeps that has something to do.
    pub fn tick(&mut self) -> Checked<u64> {
        let count = self.members.len();
        let times = if count > 1 { 1 + self.universe.below(count as u64) } else { 1 };
        for _ in 0..times {
            if let Some(nth) = self.next() {
                self.tick_one(nth)?;
            }
        }
        Ok(self.members.iter().map(|member| member.ticked_ns).min().unwrap_or(0))
    }

    fn is_ready(&self, nth: usize) -> bool {
        let due = self.members[nth].due_ns.is_some_and(|at| at <= self.universe.mono().0);
        let disk_due = self.universe.disk_due_of(nth);
        due || disk_due.is_some_and(|at| at <= self.universe.mono().0)
            || self.universe.net.borrow().has_events(nth)
    }

    fn next(&self) -> Option<usize> {
        let running = |&nth: &usize| self.members[nth].status == Status::Running;
        let running: Vec<usize> = (0..self.members.len()).filter(running).collect();
        if running.len() <= 1 {
            return running.first().copied();
        }
        let ready: Vec<usize> = running.iter().copied().filter(|&nth| self.is_ready(nth)).collect();
        // Now and then one wakes for nothing, as threads may.
        if !ready.is_empty() && !self.universe.chance(10) {
            return Some(ready[self.universe.index(ready.len())]);
        }
        running.into_iter().min_by_key(|&nth| self.members[nth].due_ns.unwrap_or(u64::MAX))
    }

    fn tick_one(&mut self, nth: usize) -> Checked {
        let universe = &*self.universe;
        let now_ns = universe.mono().0;
        let others = (0..self.members.len())
            .filter(|&other| other != nth && self.members[other].status == Status::Running);
        let due = others.filter_map(|other| match self.is_ready(other) {
            true => Some(now_ns),
            false => self.members[other].due_ns,
        });
        universe.others_due(due.min());
        if self.members.len() > 1 {
            universe.event("shard", nth as u64, now_ns);
        }
        let member = &mut self.members[nth];
        member.ticked_ns = now_ns;
        member.ticks += 1;
        member.status = member.shard.tick().map_err(|error| format!("tick: {error}"))?;
        let now_ns = universe.mono().0;
        member.due_ns = member.shard.wait().map(|wait| now_ns + wait.as_nanos() as u64);
        if self.members.len() > 1 { self.check() } else { Ok(()) }
    }

    /// Nobody sleeps before what was sent to it, and all memory is somebody's.
    fn check(&self) -> Checked {
        let universe = &*self.universe;
        let network = universe.net.borrow();
        for (nth, member) in self.members.iter().enumerate() {
            let sleeps = member.status == Status::Running
                && member.shard.wait() != Some(Duration::ZERO)
                && !network.is_woken(nth);
            if sleeps && member.shard.has_mail() {
                return Err(format!("shard {nth} sleeps, and nobody has woken it for its mail"));
            }
            if self.office.has_mail(nth) {
                universe.cover(Cover::Crossed);
            }
        }
        if self.office.has_full_ring() {
            universe.cover(Cover::FullRing);
        }
        if self.adoptions.iter().any(|ring| !ring.is_empty()) {
            universe.cover(Cover::HandOver);
        }
        if self.members.iter().any(|member| member.shard.parked_count() > 0) {
            universe.cover(Cover::Parked);
        }
        let held: u64 = self.budgets().map(Budget::held_bytes).sum();
        let (left, limit) = (self.office.budget().left_bytes(), self.members[0].shard.budget());
        if held + left != limit.limit_bytes() {
            return Err(format!("{held} bytes are lent and {left} left of {limit:?}"));
        }
        Ok(())
    }
}

fn store_id(number: u32) -> StoreId {
    StoreId([number as u8 + 1; 16])
}
