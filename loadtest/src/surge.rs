//! Runs in stages, for the scenarios about backlogs. In each stage messages are due at a fixed rate
//! (open loop, one producer), or a flood of producers publishes as fast as it may, or both; and
//! consumers are away, or take so many messages per second, or all they can get. One thread drives
//! all of it: who publishes and who drains share a core and a clock.
//!
//! Publishers and consumers have connections of their own, so that those of a stage in which
//! nobody consumes are not there at all.

use crate::args::batch_max;
use crate::body::{Bodies, Stamp};
use crate::clock::RunClock;
use crate::flood::{Allowance, Flood};
use crate::integrity::{Digest, Integrity, IntegrityCounts};
use crate::report::UseSample;
use crate::run::{DRAIN_QUIET_NS, Interrupt};
use crate::schedule::{Phase, Schedule, WaitLog};
use crate::sys::Epoll;
use crate::targets::{Shape, Wire};
use std::io;
use std::time::Duration;

/// A stage is cut short after so long.
const STAGE_NS_MAX: u64 = 600_000_000_000;
/// A run as well; the stamps hold a little more.
pub const RUN_NS_MAX: u64 = 1_050_000_000_000;
/// Longest sleep.
const WAIT_NS_MAX: u64 = 10_000_000;
/// Due messages that leave in one batch at most, however late the sender is.
const BATCH_MAX: u64 = 256;
/// A fixed drain makes up for so much of the time in which nothing came, and no more.
const DRAIN_ARREARS_NS: u64 = 20_000_000;
/// Turns for what is still to be sent, before consumers go.
const LAST_TURNS: u32 = 5;
/// So soon a target has seen that they are gone.
const GONE: Duration = Duration::from_millis(100);

/// What consumers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// They are not there.
    Off,
    /// They take so many messages per second, all together.
    Limited(u64),
    /// They take all that comes.
    Free,
}

/// When a stage is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// So many nanoseconds after it began.
    Time(u64),
    /// All that floods in this stage is confirmed.
    Flooded,
    /// No more than so many confirmed messages have yet to arrive.
    Drained(u64),
}

/// A part of a run.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// For the report.
    pub name: &'static str,
    /// Messages due per second.
    pub rate: u64,
    /// Messages that are published as fast as it goes.
    pub flood: u64,
    /// What consumers do.
    pub drain: Drain,
    /// When it is over.
    pub until: Until,
}

/// What a run does, worked out from the arguments.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Of the flood; its consumers are those that drain.
    pub shape: Shape,
    /// Messages of one flooding publish.
    pub batch: usize,
    /// Messages of the flood that are unconfirmed, in all.
    pub unconfirmed_max: u64,
    /// Messages of the fixed rate that are unconfirmed.
    pub window: usize,
    /// In order.
    pub stages: Vec<Stage>,
}

/// The state of a run when a stage began, or at its end.
#[derive(Clone, Copy)]
pub struct Mark {
    /// Of the stage that began.
    pub name: &'static str,
    /// When its rate began.
    pub start_ns: u64,
    /// What was used so far, and when that was.
    pub used: UseSample,
    /// Messages that are confirmed.
    pub confirmed: u64,
    /// Messages that have arrived.
    pub arrived: u64,
}

/// What a run found.
pub struct Found {
    /// One for each stage and one for the end.
    pub marks: Vec<Mark>,
    /// Stages that were over because nothing got on any more, or by their time.
    pub cut_short: Vec<&'static str>,
    /// Of the fixed rate.
    pub schedule: Schedule,
    /// Of the fixed rate.
    pub log: WaitLog,
    /// In the whole run.
    pub sent: u64,
    /// In the whole run.
    pub confirmed: u64,
    /// Faults.
    pub integrity: IntegrityCounts,
    /// Over all that was sent.
    pub sent_digest: Digest,
    /// Over all that arrived.
    pub received_digest: Digest,
}

impl Found {
    /// The marks of a stage's beginning and end.
    pub fn stage(&self, name: &str) -> Option<(&Mark, &Mark)> {
        let index = self.marks.iter().position(|mark| mark.name == name)?;
        self.marks.get(index + 1).map(|end| (&self.marks[index], end))
    }

    /// The stages as phases.
    pub fn phases(&self) -> Vec<Phase> {
        let phase = |mark: &Mark| Phase { name: mark.name, start_ns: mark.start_ns };
        self.marks.iter().map(phase).collect()
    }
}

/// Holds a drain to its rate.
struct Pace {
    /// `None`: no rate.
    rate: Option<u64>,
    at_ns: u64,
    /// What may be taken, in billionths of a message; below 0: was taken ahead.
    credit: i128,
}

impl Pace {
    fn new(drain: Drain, now_ns: u64) -> Pace {
        let rate = if let Drain::Limited(rate) = drain { Some(rate) } else { None };
        Pace { rate, at_ns: now_ns, credit: 0 }
    }

    /// Nanoseconds until messages may be taken; 0: now.
    fn wait_ns(&mut self, now_ns: u64) -> u64 {
        let Some(rate) = self.rate.map(i128::from) else { return 0 };
        let most = rate * i128::from(DRAIN_ARREARS_NS);
        self.credit += rate * i128::from(now_ns.saturating_sub(self.at_ns));
        self.credit = self.credit.min(most);
        self.at_ns = now_ns;
        if self.credit > 0 { 0 } else { (-self.credit / rate) as u64 + 1 }
    }

    fn took(&mut self, messages: u64) {
        self.credit -= i128::from(messages) * 1_000_000_000;
    }
}

/// Publishes what is due.
struct Steady<W> {
    wire: W,
    schedule: Schedule,
    log: WaitLog,
    bodies: Bodies,
    digest: Digest,
    /// Number of this producer: behind those of the flood.
    producer: u16,
    body_bytes: usize,
}

impl<W: Wire> Steady<W> {
    fn send(&mut self, now_ns: u64) -> io::Result<()> {
        let room = self.wire.room(0) as u64;
        let mut left = self.schedule.due(now_ns).saturating_sub(self.log.sent()).min(room);
        while left > 0 {
            let batch = left.min(BATCH_MAX).min(batch_max(self.body_bytes) as u64);
            let Steady { wire, schedule, log, bodies, digest, producer, .. } = self;
            wire.publish(0, batch as usize, |body| {
                let sequence = log.sent();
                let time_ns = schedule.due_ns(sequence).unwrap_or(now_ns);
                let stamp = Stamp { producer: *producer, sequence, time_ns };
                bodies.stamp(body, stamp);
                digest.add(stamp, body.len());
                log.add_sent(now_ns.saturating_sub(time_ns));
            })?;
            left -= batch;
        }
        Ok(())
    }

    /// Sends, and takes in confirms. Whether any came.
    fn turn(&mut self, clock: &RunClock) -> io::Result<bool> {
        self.wire.turn(Duration::ZERO, |_, _| ())?;
        let confirmed = self.wire.confirmed();
        if confirmed == self.log.confirmed() {
            return Ok(false);
        }
        // Read when the confirms are in our hands.
        self.log.confirm(&self.schedule, confirmed, clock.ns());
        Ok(true)
    }

    /// When the next message leaves, if there is room for it; a confirm makes room.
    fn next_ns(&self) -> u64 {
        let next = self.schedule.due_ns(self.log.sent()).filter(|_| self.wire.room(0) > 0);
        next.unwrap_or(u64::MAX)
    }
}

/// A run under way.
struct Run<'p, W, C> {
    plan: &'p Plan,
    connect: C,
    clock: RunClock,
    steady: Option<Steady<W>>,
    flood: Option<(Flood, W)>,
    taking: Option<W>,
    pace: Pace,
    integrity: Integrity,
    received: Digest,
    arrived: u64,
    /// Messages of the flood that may have left by the end of the stage.
    flood_goal: u64,
    poller: Poller,
}

/// Waits for all connections at once.
#[derive(Default)]
struct Poller {
    publishing: Option<Epoll>,
    all: Option<Epoll>,
}

impl Poller {
    /// Of these; without one of which no file descriptor is known, nobody sleeps.
    fn new<'w, W: Wire + 'w>(
        publishing: impl Iterator<Item = &'w W>,
        taking: Option<&W>,
    ) -> io::Result<Poller> {
        let (some, all) = (Epoll::new()?, Epoll::new()?);
        for wire in publishing {
            let Some(fd) = wire.poll_fd() else { return Ok(Poller::default()) };
            some.add(fd, 0, false)?;
            all.add(fd, 0, false)?;
        }
        if let Some(wire) = taking {
            let Some(fd) = wire.poll_fd() else { return Ok(Poller::default()) };
            all.add(fd, 0, false)?;
        }
        Ok(Poller { publishing: Some(some), all: Some(all) })
    }
}

/// Runs `plan` over connections that `connect` makes; `pid` is the target's.
///
/// # Errors
/// If a connection fails or the target ends.
pub fn run<W: Wire>(
    plan: &Plan,
    connect: impl FnMut(Shape) -> io::Result<W>,
    clock: RunClock,
    pid: Option<u32>,
    interrupt: &Interrupt,
) -> io::Result<Found> {
    let Shape { producers, consumers, queues, .. } = plan.shape;
    let consumers = if queues > 1 { 1 } else { consumers };
    let mut run = Run {
        plan,
        connect,
        clock,
        steady: None,
        flood: None,
        taking: None,
        pace: Pace::new(Drain::Off, 0),
        integrity: Integrity::new(producers + 1, consumers),
        received: Digest::default(),
        arrived: 0,
        flood_goal: 0,
        poller: Poller::default(),
    };
    run.connect_publishers()?;
    run.go(pid, interrupt)
}

impl<W: Wire, C: FnMut(Shape) -> io::Result<W>> Run<'_, W, C> {
    fn connect_publishers(&mut self) -> io::Result<()> {
        let Plan { shape, batch, window, stages, .. } = self.plan;
        if stages.iter().any(|stage| stage.flood > 0) {
            let wire = (self.connect)(Shape { consumers: 0, ..*shape })?;
            let mut flood = Flood::new(shape.producers, *batch, shape.body_bytes, shape.queues > 1);
            flood.digest = Some(Digest::default());
            self.flood = Some((flood, wire));
        }
        if stages.iter().any(|stage| stage.rate > 0) {
            let shape = Shape { producers: 1, consumers: 0, queues: 1, window: *window, ..*shape };
            self.steady = Some(Steady {
                wire: (self.connect)(shape)?,
                schedule: Schedule::default(),
                log: WaitLog::with_capacity(due_at_most(stages) as usize),
                bodies: Bodies::default(),
                digest: Digest::default(),
                producer: self.plan.shape.producers as u16,
                body_bytes: shape.body_bytes,
            });
        }
        Ok(())
    }

    fn go(&mut self, pid: Option<u32>, interrupt: &Interrupt) -> io::Result<Found> {
        let (mut marks, mut cut_short) = (Vec::new(), Vec::new());
        for stage in &self.plan.stages {
            let start_ns = self.enter(stage)?;
            marks.push(self.mark(stage.name, start_ns, pid)?);
            if !self.stage(stage, interrupt)? {
                cut_short.push(stage.name);
            }
        }
        let end = self.mark("over", self.clock.ns(), pid)?;
        marks.push(end);
        Ok(self.found(marks, cut_short))
    }

    /// Consumers come or go; then the rates change. When that was.
    fn enter(&mut self, stage: &Stage) -> io::Result<u64> {
        if stage.drain == Drain::Off {
            self.dismiss()?;
        } else if self.taking.is_none() {
            self.taking = Some((self.connect)(Shape { producers: 0, ..self.plan.shape })?);
        }
        let flood = self.flood.as_ref();
        let publishing =
            self.steady.iter().map(|steady| &steady.wire).chain(flood.map(|flood| &flood.1));
        self.poller = Poller::new(publishing, self.taking.as_ref())?;
        self.flood_goal = flood.map_or(0, |flood| flood.0.sent()) + stage.flood;
        let now_ns = self.clock.ns();
        self.pace = Pace::new(stage.drain, now_ns);
        if let Some(steady) = &mut self.steady {
            steady.schedule.set_rate(now_ns, stage.rate);
        }
        Ok(now_ns)
    }

    /// Consumers go; the last acks before them.
    fn dismiss(&mut self) -> io::Result<()> {
        for _ in 0..LAST_TURNS {
            self.take()?;
        }
        if self.taking.take().is_some() {
            // A bare target gives messages to who has gone until it has seen that.
            std::thread::park_timeout(GONE);
        }
        Ok(())
    }

    /// Whether it got to its end.
    fn stage(&mut self, stage: &Stage, interrupt: &Interrupt) -> io::Result<bool> {
        let start_ns = self.clock.ns();
        let mut progress = (self.confirmed() + self.arrived, start_ns);
        loop {
            interrupt.check()?;
            let now_ns = self.clock.ns();
            if self.is_over(stage, now_ns - start_ns) {
                return Ok(true);
            }
            let moved = self.confirmed() + self.arrived;
            if moved != progress.0 {
                progress = (moved, now_ns);
            }
            let timed = matches!(stage.until, Until::Time(_));
            if (!timed && now_ns - progress.1 > DRAIN_QUIET_NS)
                || now_ns - start_ns > STAGE_NS_MAX
                || now_ns > RUN_NS_MAX
            {
                return Ok(false);
            }
            self.step(now_ns)?;
        }
    }

    fn is_over(&self, stage: &Stage, since_ns: u64) -> bool {
        match stage.until {
            Until::Time(ns) => since_ns >= ns,
            Until::Flooded => {
                let confirmed = self.flood.as_ref().map(|(_, wire)| wire.confirmed());
                confirmed.is_none_or(|confirmed| confirmed >= self.flood_goal)
            }
            Until::Drained(left) => {
                let sent = self.sent();
                sent - self.confirmed() <= left && sent.saturating_sub(self.arrived) <= left
            }
        }
    }

    fn sent(&self) -> u64 {
        let steady = self.steady.as_ref().map_or(0, |steady| steady.log.sent());
        steady + self.flood.as_ref().map_or(0, |(flood, _)| flood.sent())
    }

    fn confirmed(&self) -> u64 {
        let steady = self.steady.as_ref().map_or(0, |steady| steady.wire.confirmed());
        steady + self.flood.as_ref().map_or(0, |(_, wire)| wire.confirmed())
    }

    /// Sends, takes in what has come, and sleeps if that was nothing.
    fn step(&mut self, now_ns: u64) -> io::Result<()> {
        let mut moved = false;
        if let Some(steady) = &mut self.steady {
            steady.send(now_ns)?;
            moved |= steady.turn(&self.clock)?;
        }
        if let Some((flood, wire)) = &mut self.flood {
            let confirmed = wire.confirmed();
            let limit = confirmed + self.plan.unconfirmed_max;
            moved |= flood.send(wire, now_ns, Allowance { count: self.flood_goal, limit })?;
            wire.turn(Duration::ZERO, |_, _| ())?;
            moved |= wire.confirmed() != confirmed;
        }
        let take_ns = self.pace.wait_ns(now_ns);
        let arrived = self.arrived;
        if take_ns == 0 {
            self.take()?;
            self.pace.took(self.arrived - arrived);
        }
        if moved || self.arrived != arrived {
            return Ok(());
        }
        let steady_ns = self.steady.as_ref().map_or(u64::MAX, Steady::next_ns);
        let idle = if take_ns == 0 { &mut self.poller.all } else { &mut self.poller.publishing };
        let wait_ns = steady_ns.saturating_sub(self.clock.ns()).min(WAIT_NS_MAX);
        let wait_ns = if take_ns == 0 { wait_ns } else { wait_ns.min(take_ns) };
        match idle {
            Some(epoll) => epoll.wait(Duration::from_nanos(wait_ns), &mut Vec::new()),
            None => Ok(()),
        }
    }

    fn take(&mut self) -> io::Result<()> {
        let Run { taking, integrity, received, arrived, plan, .. } = self;
        let Some(wire) = taking else { return Ok(()) };
        let many_queues = plan.shape.queues > 1;
        wire.turn(Duration::ZERO, |consumer, body| {
            *arrived += 1;
            if let Some(stamp) = integrity.take(if many_queues { 0 } else { consumer }, body) {
                received.add(stamp, body.len());
            }
        })
    }

    fn mark(&self, name: &'static str, start_ns: u64, pid: Option<u32>) -> io::Result<Mark> {
        let used = UseSample::take(self.clock.ns(), pid)?;
        Ok(Mark { name, start_ns, used, confirmed: self.confirmed(), arrived: self.arrived })
    }

    fn found(&mut self, marks: Vec<Mark>, cut_short: Vec<&'static str>) -> Found {
        let (sent, confirmed) = (self.sent(), self.confirmed());
        let flooded = self.flood.as_ref().and_then(|(flood, _)| flood.digest).unwrap_or_default();
        let now_ns = self.clock.ns();
        let steady = self.steady.take();
        let steady = steady.map(|Steady { schedule, mut log, digest, .. }| {
            log.close(&schedule, now_ns);
            (schedule, log, digest)
        });
        let (schedule, log, due) = steady.unwrap_or_default();
        Found {
            marks,
            cut_short,
            schedule,
            log,
            sent,
            confirmed,
            integrity: self.integrity.counts(confirmed),
            sent_digest: flooded.plus(due),
            received_digest: self.received,
        }
    }
}

/// Messages that become due, if no stage lasts longer than it should: a stage without a time counts
/// as a minute. Only room is made for so many.
fn due_at_most(stages: &[Stage]) -> u64 {
    let due = |stage: &Stage| {
        let ns = if let Until::Time(ns) = stage.until { ns } else { 60_000_000_000 };
        (u128::from(stage.rate) * u128::from(ns) / 1_000_000_000) as u64
    };
    stages.iter().map(due).sum::<u64>().min(LOG_MESSAGES_MAX)
}

/// Messages that room is made for in a log, at 8 bytes each.
const LOG_MESSAGES_MAX: u64 = 50_000_000;

#[cfg(test)]
mod tests;
