//! One run: the drawn steps with a check after each, then the liveness phase in which all faults
//! have ended and everything must come out, then the end of the broker.

use crate::queue::memory::Account;
use crate::queue::subscription::Subscription;
use crate::sim::cluster::Cluster;
use crate::sim::hostile::Hostile;
use crate::sim::model::Model;
use crate::sim::peer::Peer;
use crate::sim::plan::{MEMORY_RESERVE_BYTES, Plan};
use crate::sim::session_peer::SessionPeer;
use crate::sim::spill::Watch;
use crate::sim::trace::Cover;
use crate::sim::world::{SimulatedWorld, Universe};
use crate::sim::{Checked, Stage};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// What a run is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Draws everything.
    pub seed: u64,
    /// Steps before the liveness phase.
    pub steps: u64,
    /// Writes every event to standard error.
    pub print: bool,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Over all events.
    pub hash: u64,
    /// In the order of [`Cover::ALL`].
    pub counts: Vec<u64>,
    /// Steps, those of the liveness phase included.
    pub steps: u64,
    /// Virtual time that went by.
    pub virtual_ms: u64,
    /// The promise that was broken, and at which step.
    pub violation: Option<String>,
}

/// Steps that the liveness phase may take.
const LIVENESS_STEPS_MAX: u64 = 200_000;

/// Runs one seed in a world of type `W`. A panic of the broker is a violation.
pub fn run<W: SimulatedWorld>(options: RunOptions) -> Report {
    let universe = Universe::new(options.seed, options.print);
    report(&universe, |steps| Run::<W>::new(&universe).play(options.steps, steps))
}

/// What came of a run; a panic is a violation.
pub(super) fn report(universe: &Universe, play: impl FnOnce(&mut u64) -> Checked) -> Report {
    let started_ns = universe.mono().0;
    let mut steps = 0;
    let result = catch_unwind(AssertUnwindSafe(|| play(&mut steps)));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Some(format!("panic: {}", text.unwrap_or_default()))
        }
    };
    let (hash, counts) = universe.report();
    Report {
        hash,
        counts,
        steps,
        virtual_ms: (universe.mono().0 - started_ns) / 1_000_000,
        violation: violation.map(|violation| format!("step {steps}: {violation}")),
    }
}

struct Run<W: SimulatedWorld> {
    universe: Rc<Universe>,
    stage: Stage,
    cluster: Cluster<W>,
    peers: Vec<Peer>,
    sessions: Vec<SessionPeer>,
    hostiles: Vec<Hostile>,
    watch: Watch,
    checks: u64,
}

impl<W: SimulatedWorld> Run<W> {
    fn new(universe: &Rc<Universe>) -> Self {
        let plan = Plan::draw(universe);
        if plan.calm {
            universe.net.borrow_mut().calm();
        }
        let model = Model::new(&plan);
        universe.net.borrow_mut().share(plan.config.shards as usize);
        if let Some(capacity_bytes) = plan.spill.and_then(|spill| spill.capacity_bytes) {
            universe.device.borrow_mut().limit_bytes(capacity_bytes);
        }
        if plan.restarts {
            universe.device.borrow_mut().may_crash();
        }
        let cluster = Cluster::<W>::new(universe, &plan);
        let hostiles = (0..plan.hostiles).map(|_| Hostile::default()).collect();
        let peer_count = plan.peers;
        let universe = Rc::clone(universe);
        let stage = Stage {
            universe: Rc::clone(&universe),
            model,
            plan,
            next_serial: 0,
            ticked_ns: 0,
            winding_down: false,
            demolishing: false,
            draining: false,
            memory_full_ns: None,
        };
        let peers = (0..peer_count)
            .map(|nth| Peer::new(&stage, 100 * nth as u32, universe.range(0, 3) as u32))
            .collect();
        let sessions = (0..stage.plan.session_peers)
            .map(|nth| SessionPeer::new(&stage, 10_000 + nth as u32))
            .collect();
        Run {
            universe,
            stage,
            cluster,
            peers,
            sessions,
            hostiles,
            watch: Watch::default(),
            checks: 0,
        }
    }

    fn play(&mut self, count: u64, steps: &mut u64) -> Checked {
        for _ in 0..count {
            *steps += 1;
            self.disturb()?;
            self.step()?;
        }
        // Some brokers are told to end in the middle of it all.
        if !self.universe.chance(200) {
            self.wind_down(steps)?;
            self.demolish(steps)?;
        }
        self.end(steps)
    }

    /// Somebody does something, the shard ticks, everything is checked.
    fn step(&mut self) -> Checked {
        let universe = Rc::clone(&self.universe);
        let (peers, sessions) = (self.peers.len(), self.sessions.len());
        let everybody = peers + sessions + self.hostiles.len();
        for _ in 0..1 + universe.skewed(3) {
            let nth = universe.index(everybody);
            universe.event("act", nth as u64, 0);
            if let Some(peer) = self.peers.get_mut(nth) {
                peer.act(&mut self.stage).map_err(|error| format!("peer {nth}: {error}"))?;
            } else if let Some(session) = self.sessions.get_mut(nth - peers) {
                session.act(&mut self.stage).map_err(|error| format!("session {nth}: {error}"))?;
            } else if let Some(hostile) = self.hostiles.get_mut(nth - peers - sessions) {
                hostile.act(&mut self.stage).map_err(|error| format!("hostile: {error}"))?;
            }
        }
        // A busy poll never waits, so retries need time from here.
        let busy = self.stage.plan.config.busy_poll && universe.healed();
        universe.advance_ns(universe.range(1_000, if busy { 10_000_000 } else { 40_000 }));
        self.tick()
    }

    fn tick(&mut self) -> Checked {
        self.stage.ticked_ns = self.cluster.tick()?;
        self.check()
    }

    fn check(&mut self) -> Checked {
        self.checks += 1;
        let recounts = self.checks.is_multiple_of(16);
        // What connections hold back is bounded for each, not taken from the budget first.
        let limit = self.stage.plan.config.memory_limit_bytes;
        let used: u64 = self.cluster.budgets().map(|budget| budget.used_bytes()).sum();
        let connections = self.cluster.used_by(Account::Connections);
        if used - connections > limit || used > limit + limit / 10 + (1 << 20) {
            return Err(format!("over the memory limit: {}", self.describe_memory()));
        }
        let full = |free: u64| free < MEMORY_RESERVE_BYTES / 2 + 1024;
        if self.cluster.budgets().any(|budget| full(budget.free_for_leases())) {
            self.universe.cover(Cover::MemoryFull);
            self.stage.memory_full_ns = Some(self.universe.mono().0);
        }
        if self.stage.plan.calm {
            self.stage.model.check_suspects()?;
        }
        self.watch.check(&self.cluster, &self.stage.plan, &self.universe, recounts)?;
        for nth in 0..self.stage.plan.queues.len() {
            let name = &self.stage.plan.queues[nth].name;
            let shown = self.cluster.queues().find(|(other, _)| other == name);
            let shown = shown.map(|(_, queue)| queue);
            let Stage { model, plan, universe, .. } = &mut self.stage;
            model.observe(nth, shown, plan, universe)?;
            if recounts && let Some(queue) = shown {
                Model::recount(queue)?;
            }
            if shown.is_some_and(|queue| queue.counters().dropped_oldest > 0) {
                self.universe.cover(Cover::DroppedOldest);
            }
        }
        Ok(())
    }

    fn describe_memory(&self) -> String {
        let budgets: Vec<_> = self.cluster.budgets().collect();
        let (costs, chunks) = (self.cluster.spill_costs().0, self.cluster.used_chunks());
        format!("{budgets:?}, {chunks} chunks, {costs} for files, {}", self.watch.describe())
    }

    /// Clocks jump, the process stands still or ends.
    fn disturb(&mut self) -> Checked {
        let universe = Rc::clone(&self.universe);
        if universe.chance(2) {
            let by = universe.skewed(86_400_000_000) as i64;
            universe.jump_wall_us(if universe.chance(500) { by } else { -by });
        }
        universe.device.borrow_mut().disturb(&universe);
        if self.stage.plan.calm {
            return Ok(());
        }
        if universe.chance(1) {
            universe.cover(Cover::Pause);
            universe.advance_ns(universe.skewed(20_000_000_000));
        }
        if self.stage.plan.restarts && universe.below(4000) == 0 {
            universe.cover(Cover::Restart);
            universe.event("restart", 0, 0);
            universe.net.borrow_mut().restart();
            let mut device = universe.device.borrow_mut();
            if universe.chance(500) {
                device.crash(&universe);
            }
            device.restart();
            drop(device);
            self.watch.restart();
            self.cluster = Cluster::new(&universe, &self.stage.plan);
            self.check()?;
        }
        Ok(())
    }

    /// Faults end, consumers leave, producers finish; then everything is taken out of the queues.
    fn wind_down(&mut self, steps: &mut u64) -> Checked {
        self.universe.heal();
        self.stage.winding_down = true;
        for peer in &mut self.peers {
            peer.drop_connection(&mut self.stage);
        }
        for session in &mut self.sessions {
            session.drop_connection(&mut self.stage);
        }
        let mut rest = Peer::empty();
        rest.for_the_rest = true;
        let mut rest = Some(rest);
        // Dead letters may wait for a queue that only the rest empties, or makes.
        let late = *steps + LIVENESS_STEPS_MAX / 4;
        // One at a time takes long; what counts is that it goes on.
        let (mut end, mut least) = (*steps + LIVENESS_STEPS_MAX, u64::MAX);
        while *steps < end {
            *steps += 1;
            self.step()?;
            let tried = |of: &Subscription| of.in_flight() + of.delayed() + of.dead_lettering();
            let subscriptions = self.cluster.queues().flat_map(|(_, queue)| queue.subscriptions());
            let tried: u64 = subscriptions.map(|(_, of)| tried(of)).sum();
            let consumers: usize =
                self.cluster.queues().map(|(_, queue)| queue.consumer_count()).sum();
            if (tried == 0 || *steps > late) && consumers == 0 {
                self.peers.extend(rest.take());
            }
            let held: u64 = self.cluster.queues().map(|(_, queue)| queue.messages()).sum();
            let settled = self.peers.iter().all(Peer::is_settled)
                && self.sessions.iter().all(SessionPeer::is_settled)
                && self.hostiles.iter().all(Hostile::is_settled);
            if rest.is_none() && held == 0 && settled {
                return self.finish();
            }
            if held < least {
                (end, least) = (*steps + LIVENESS_STEPS_MAX, held);
            }
        }
        let mut waiting = String::new();
        for (name, queue) in self.cluster.queues() {
            waiting += &format!(
                "\n{name}: {} ready, {} in flight, blocked {:?}, {:?}",
                queue.ready(),
                queue.in_flight(),
                queue.blocked(),
                queue.options()
            );
            for (_, of) in queue.subscriptions() {
                waiting += &format!(
                    "\n    {}: {} ready, {} in flight, {} delayed, {} dead-lettering ({:?}), {:?}",
                    of.name(),
                    of.ready(),
                    of.in_flight(),
                    of.delayed(),
                    of.dead_lettering(),
                    of.dead_letter_reason(),
                    of.paused_reason()
                );
            }
        }
        for session in &self.sessions {
            waiting += &format!("\n{}", session.describe());
        }
        for peer in &self.peers {
            waiting += &format!("\n{}", peer.describe());
        }
        Err(format!("not everything came out: {} {waiting}", self.describe_memory()))
    }

    fn finish(&mut self) -> Checked {
        self.stage.model.check_suspects()?;
        let Stage { model, plan, .. } = &self.stage;
        let find = |nth: usize| {
            let found = self.cluster.queues().find(|(name, _)| *name == plan.queues[nth].name);
            found.map(|(_, queue)| queue)
        };
        for feed in plan.feeds() {
            let Some(queue) = find(feed.queue) else { continue };
            model.finish(feed, queue, plan)?;
            if let Some(grave) = find(plan.queues[feed.queue].rules.graveyard) {
                model.finish_graves(feed, queue, grave, plan)?;
            }
        }
        Ok(())
    }

    /// Every queue is deleted, and then nothing of all that was is left in the budget.
    fn demolish(&mut self, steps: &mut u64) -> Checked {
        self.stage.demolishing = true;
        let begun = self.universe.mono();
        loop {
            *steps += 1;
            self.step()?;
            let passed_ms = self.universe.mono().ms_since(begun);
            let shards = u64::from(self.stage.plan.config.shards);
            // One has the chunk that is kept for refills.
            let slabs = if self.stage.plan.spill.is_some() { 3 } else { 2 };
            let slabs_max = slabs * shards * self.stage.plan.config.pool.slab_bytes as u64;
            let left = [Account::Handles, Account::InFlight, Account::Queues]
                .map(|account| self.cluster.used_by(account));
            let on_disk = !self.watch.is_empty(&self.stage.plan);
            let chunks = self.cluster.used_by(Account::Chunks);
            // What is known of a file stays as long as the file.
            let file = [0, 0, self.cluster.spill_costs().0];
            if left == file && chunks <= slabs_max && !on_disk {
                return Ok(());
            }
            // A release that failed is tried again after a minute; then there is one a second.
            if passed_ms > if on_disk { 200_000 } else { 60_000 } {
                let (queues, memory) = (self.cluster.queues().count(), self.describe_memory());
                return Err(format!("{queues} queues are left, and in the budget {memory}"));
            }
        }
    }

    /// The broker is told to end, with clients connected, and does so in time.
    fn end(&mut self, steps: &mut u64) -> Checked {
        let started = self.universe.mono();
        self.stage.draining = true;
        self.cluster.drain();
        let timeout_ms = self.stage.plan.config.drain_timeout_ms;
        while self.cluster.is_running() {
            *steps += 1;
            self.step()?;
            if self.universe.mono().ms_since(started) > timeout_ms + 1000 {
                return Err("the broker did not end in time".into());
            }
        }
        let sockets = self.universe.net.borrow().open_sockets();
        if sockets > 0 || self.cluster.used_by(Account::Connections) > 0 {
            let memory = self.describe_memory();
            return Err(format!("at the end {sockets} sockets are open, {memory}"));
        }
        for peer in &mut self.peers {
            peer.act(&mut self.stage)?;
        }
        Ok(())
    }
}
