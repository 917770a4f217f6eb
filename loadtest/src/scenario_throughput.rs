//! As many messages as go through: each is published, delivered, checked and acked. One thread
//! drives all clients; how much is under way is bounded end to end, so that no target can look fast
//! by holding a backlog.

use crate::args::{ThroughputArgs, batch_max};
use crate::body::{Bodies, Stamp};
use crate::clock::{RunClock, as_ns};
use crate::integrity::Integrity;
use crate::report::{Latencies, LatencyFigures, UseSample};
use crate::run::{DRAIN_QUIET_NS, Interrupt, Outcome};
use crate::targets::{Shape, Wire};
use std::io;
use std::time::Duration;

/// Longest sleep while nothing can be sent; also how soon a phase's end is seen.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// A producer sends so much between two looks at what has come: fewer, larger writes and reads
/// cost less per message (measured: 0.10 us of client CPU at 128 B against 0.15 us with 64 KiB).
const BURST_BYTES: usize = 256 * 1024;
/// A run with `--count` ends after so long, whatever the target does.
pub const RUN_NS_MAX: u64 = 900_000_000_000;

/// What a run does, worked out from the arguments.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its clients.
    pub shape: Shape,
    batch: usize,
    /// Batches of one producer between two looks at what has come.
    burst: usize,
    /// Messages sent and not received, at most.
    pub backlog: u64,
    warmup_ns: u64,
    /// End of the measured part, warm-up included; none with a count.
    end_ns: u64,
    count: u64,
    busy_poll: bool,
}

impl Plan {
    /// Works it out.
    pub fn new(args: &ThroughputArgs) -> Plan {
        let confirmed_only = args.connections.is_some();
        let window = if confirmed_only { args.in_flight } else { args.window } as usize;
        let producers = args.connections.unwrap_or(args.producers) as usize;
        let consumers = if confirmed_only { 0 } else { args.consumers as usize };
        let batch = if confirmed_only { 1 } else { args.batch as usize };
        let batch = batch.min(window).min(batch_max(args.size));
        let default_backlog = 2 * window * producers.max(consumers);
        let warmup_ns = if args.count.is_some() { 0 } else { as_ns(args.warmup) };
        Plan {
            shape: Shape {
                producers,
                consumers,
                window,
                body_bytes: args.size,
                credit: default_backlog,
            },
            batch,
            burst: (BURST_BYTES / (batch * args.size)).max(1),
            backlog: args.backlog.unwrap_or(default_backlog as u64).max(batch as u64),
            warmup_ns,
            end_ns: args.count.map_or(warmup_ns + as_ns(args.duration), |_| RUN_NS_MAX),
            count: args.count.unwrap_or(u64::MAX),
            busy_poll: args.target.busy_poll,
        }
    }
}

/// A run under way.
struct Run<'p, W> {
    plan: &'p Plan,
    wire: W,
    clock: RunClock,
    bodies: Bodies,
    integrity: Integrity,
    latencies: Latencies,
    /// Per producer.
    sent: Vec<u64>,
    sent_total: u64,
    /// Messages that arrived, whatever they were.
    arrived: u64,
    /// Where the next round of sending begins.
    turn: usize,
}

/// Runs `plan` over `wire`; `pid` is the target's.
///
/// # Errors
/// If a connection fails or the target ends.
pub fn run(
    plan: &Plan,
    wire: impl Wire,
    pid: Option<u32>,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    let mut run = Run {
        plan,
        wire,
        clock: RunClock::start(),
        bodies: Bodies::default(),
        integrity: Integrity::new(plan.shape.producers, plan.shape.consumers),
        latencies: Latencies::default(),
        sent: vec![0; plan.shape.producers],
        sent_total: 0,
        arrived: 0,
        turn: 0,
    };
    run.go(pid, interrupt)
}

impl<W: Wire> Run<'_, W> {
    fn go(&mut self, pid: Option<u32>, interrupt: &Interrupt) -> io::Result<Outcome> {
        let mut first = None;
        let mut last = None;
        let mut progress = (0, 0);
        loop {
            interrupt.check()?;
            let now_ns = self.clock.ns();
            if first.is_none() && now_ns >= self.plan.warmup_ns {
                first = Some((UseSample::take(now_ns, pid)?, self.done()));
                self.latencies = Latencies::default();
            }
            let all_sent = self.sent_total >= self.plan.count || now_ns >= self.plan.end_ns;
            let all_done = all_sent && self.under_way() == 0;
            if last.is_none() && (now_ns >= self.plan.end_ns || all_done) {
                last = Some((UseSample::take(self.clock.ns(), pid)?, self.done()));
            }
            // A run of a given length ends by itself; one with a count must get on.
            let timed = self.plan.count == u64::MAX && !all_sent;
            if self.done() != progress.0 || timed {
                progress = (self.done(), now_ns);
            }
            if all_done || now_ns - progress.1 > DRAIN_QUIET_NS {
                break;
            }
            let more = !all_sent && self.send(now_ns)?;
            let wait = if more || self.plan.busy_poll { Duration::ZERO } else { WAIT_MAX };
            self.turn(wait)?;
        }
        let end = (UseSample::take(self.clock.ns(), pid)?, self.done());
        Ok(self.outcome(first.unwrap_or(end), last.unwrap_or(end), end.0))
    }

    /// Messages that have gone all the way.
    fn done(&self) -> u64 {
        if self.plan.shape.consumers == 0 { self.wire.confirmed() } else { self.arrived }
    }

    fn under_way(&self) -> u64 {
        self.sent_total - self.wire.confirmed().min(self.done()).min(self.sent_total)
    }

    /// Publishes what each producer has room for, up to a burst. Whether any could go on.
    fn send(&mut self, now_ns: u64) -> io::Result<bool> {
        let producers = self.plan.shape.producers;
        let mut more = false;
        for nth in 0..producers {
            let producer = (self.turn + nth) % producers;
            let mut burst = self.plan.burst;
            while burst > 0 {
                let batch = self.plan.batch.min((self.plan.count - self.sent_total) as usize);
                let under_way = self.sent_total - self.done().min(self.sent_total);
                if batch == 0 || under_way + batch as u64 > self.plan.backlog {
                    self.turn = producer;
                    return Ok(false);
                }
                if self.wire.room(producer) < batch {
                    break;
                }
                self.publish(producer, batch, now_ns)?;
                burst -= 1;
            }
            more |= burst == 0;
        }
        Ok(more)
    }

    fn publish(&mut self, producer: usize, batch: usize, now_ns: u64) -> io::Result<()> {
        let Run { wire, bodies, sent, .. } = self;
        let sequence = &mut sent[producer];
        let mut stamp = Stamp { producer: producer as u16, sequence: *sequence, time_ns: now_ns };
        wire.publish(producer, batch, |body| {
            bodies.stamp(body, stamp);
            stamp.sequence += 1;
        })?;
        *sequence += batch as u64;
        self.sent_total += batch as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        let Run { wire, integrity, arrived, clock, latencies, .. } = self;
        // One clock reading per turn, and one latency per 64 messages: this scenario is about
        // throughput, and its latencies say how long the queues before each message are.
        let mut now_ns = 0;
        wire.turn(wait, |consumer, body| {
            let stamp = integrity.take(consumer, body);
            if *arrived % 64 == 0
                && let Some(stamp) = stamp
            {
                now_ns = if now_ns == 0 { clock.ns() } else { now_ns };
                latencies.record(now_ns.saturating_sub(stamp.time_ns));
            }
            *arrived += 1;
        })
    }

    fn outcome(&self, first: (UseSample, u64), last: (UseSample, u64), end: UseSample) -> Outcome {
        let consumed = self.plan.shape.consumers > 0;
        let confirmed = self.wire.confirmed();
        let mut integrity = self.integrity.counts(confirmed);
        if !consumed {
            integrity.received = 0;
            integrity.lost = self.sent_total - confirmed;
        }
        Outcome {
            messages: last.1 - first.1,
            seconds: (last.0.ns() - first.0.ns()).max(1) as f64 / 1e9,
            body_bytes: self.plan.shape.body_bytes,
            sent: self.sent_total,
            confirmed,
            integrity,
            latency: if consumed { self.latencies.figures() } else { LatencyFigures::default() },
            send_lag_p99_us: None,
            processors: first.0.until(&last.0, last.1 - first.1),
            peak_rss_bytes: end.target().map(|target| target.peak_rss_bytes),
            more: Default::default(),
        }
    }
}
