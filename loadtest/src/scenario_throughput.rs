//! As many messages as go through: each is published, delivered, checked and acked. One thread
//! drives all clients; how much is under way is bounded end to end, so that no target can look fast
//! by holding a backlog.

use crate::args::durable::DurableArgs;
use crate::args::{ThroughputArgs, batch_max};
use crate::clock::{RunClock, as_ns};
use crate::flood::{Allowance, Flood};
use crate::integrity::{Integrity, IntegrityCounts};
use crate::report::{Latencies, UseSample};
use crate::run::{DRAIN_QUIET_NS, Interrupt, Outcome};
use crate::targets::{Shape, Wire};
use std::io;
use std::time::Duration;

/// Longest sleep while nothing can be sent; also how soon a phase's end is seen.
const WAIT_MAX: Duration = Duration::from_millis(10);

/// Windows that many queues share.
const QUEUES_SHARE: usize = 8;
/// A run with `--count` ends after so long, whatever the target does.
pub const RUN_NS_MAX: u64 = 900_000_000_000;

/// What a run does, worked out from the arguments.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its clients.
    pub shape: Shape,
    batch: usize,
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
        let (queues, subscriptions) = (args.queues as usize, args.subscriptions as usize);
        let producers = args.connections.unwrap_or(args.producers) as usize * queues;
        let consumers = match confirmed_only {
            true => 0,
            false => args.consumers as usize * queues * subscriptions,
        };
        let batch = if confirmed_only { 1 } else { args.batch as usize };
        let batch = batch.min(window).min(batch_max(args.size));
        // Many queues share what one may have under way: it is bounded end to end all the same.
        let clients =
            if queues > 1 { QUEUES_SHARE } else { producers.max(args.consumers as usize) };
        let default_backlog = 2 * window * clients;
        let warmup_ns = if args.count.is_some() { 0 } else { as_ns(args.warmup) };
        Plan {
            shape: Shape {
                producers,
                consumers,
                window,
                body_bytes: args.size,
                queues,
                subscriptions,
                credit: default_backlog,
                held: 0,
                durable: false,
            },
            batch,
            backlog: args.backlog.unwrap_or(default_backlog as u64).max(batch as u64),
            warmup_ns,
            end_ns: args.count.map_or(warmup_ns + as_ns(args.duration), |_| RUN_NS_MAX),
            count: args.count.unwrap_or(u64::MAX),
            busy_poll: args.target.busy_poll,
        }
    }

    /// Of the scenario `durable`: the same, in queues that are.
    pub fn durable(args: &DurableArgs) -> Plan {
        let mut plan = Plan::new(&args.load());
        plan.shape.durable = true;
        plan
    }

    /// Whether one message is under way at a time, and nobody consumes.
    fn is_single(&self) -> bool {
        self.shape.consumers == 0 && self.shape.producers * self.shape.window == 1
    }
}

/// A run under way.
struct Run<'p, W> {
    plan: &'p Plan,
    wire: W,
    clock: RunClock,
    flood: Flood,
    /// One for each subscription.
    integrity: Vec<Integrity>,
    latencies: Latencies,
    /// Messages that arrived, whatever they were.
    arrived: u64,
    /// When the last message left.
    sent_ns: u64,
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
        flood: Flood::new(
            plan.shape.producers,
            plan.batch,
            plan.shape.body_bytes,
            plan.shape.queues > 1,
        ),
        integrity: integrity(&plan.shape),
        latencies: Latencies::default(),
        arrived: 0,
        sent_ns: 0,
    };
    run.go(pid, interrupt)
}

/// What arrives by one subscription is checked together. Each of many queues has one consumer, so
/// that its producer's order says all.
fn integrity(shape: &Shape) -> Vec<Integrity> {
    let one = shape.queues > 1 || shape.subscriptions > 1;
    let consumers = if one { 1 } else { shape.consumers };
    (0..shape.subscriptions).map(|_| Integrity::new(shape.producers, consumers)).collect()
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
            let all_sent = self.flood.sent() >= self.plan.count || now_ns >= self.plan.end_ns;
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
        match self.plan.shape.consumers {
            0 => self.wire.confirmed(),
            _ => self.arrived / self.plan.shape.subscriptions as u64,
        }
    }

    fn under_way(&self) -> u64 {
        self.flood.sent() - self.wire.confirmed().min(self.done()).min(self.flood.sent())
    }

    /// Publishes what there is room for, on either end. Whether it could go on.
    fn send(&mut self, now_ns: u64) -> io::Result<bool> {
        // Nothing arrives between two bursts of one call.
        let limit = self.done().min(self.flood.sent()).saturating_add(self.plan.backlog);
        let allowed = Allowance { count: self.plan.count, limit };
        let sent = self.flood.sent();
        let more = self.flood.send(&mut self.wire, now_ns, allowed)?;
        if self.flood.sent() > sent {
            self.sent_ns = now_ns;
        }
        Ok(more)
    }

    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        let confirmed = self.wire.confirmed();
        self.take_in(wait)?;
        // Of one that is alone on its way it is known when it left.
        if self.plan.is_single() && self.wire.confirmed() > confirmed {
            self.latencies.record(self.clock.ns() - self.sent_ns);
        }
        Ok(())
    }

    fn take_in(&mut self, wait: Duration) -> io::Result<()> {
        let Run { wire, integrity, arrived, clock, latencies, plan, .. } = self;
        let fan_out = plan.shape.subscriptions > 1;
        let many_queues = plan.shape.queues > 1;
        // One clock reading per turn, and one latency per 64 messages: this scenario is about
        // throughput, and its latencies say how long the queues before each message are.
        let mut now_ns = 0;
        wire.turn(wait, |consumer, body| {
            let stamp = match (fan_out, many_queues) {
                (true, _) => integrity[consumer].take(0, body),
                (_, true) => integrity[0].take(0, body),
                (false, false) => integrity[0].take(consumer, body),
            };
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
        let counts = self.integrity.iter().map(|each| each.counts(confirmed));
        let mut integrity = counts.fold(IntegrityCounts::default(), IntegrityCounts::plus);
        if !consumed {
            integrity.received = 0;
            integrity.lost = self.flood.sent() - confirmed;
        }
        let messages = last.1 - first.1;
        let seconds = (last.0.ns() - first.0.ns()).max(1) as f64 / 1e9;
        let mut more = serde_json::Map::new();
        if self.plan.shape.subscriptions > 1 {
            let deliveries = messages * self.plan.shape.subscriptions as u64;
            more.insert("deliveries_per_s".into(), (deliveries as f64 / seconds).into());
        }
        Outcome {
            messages,
            seconds,
            body_bytes: self.plan.shape.body_bytes,
            sent: self.flood.sent(),
            confirmed,
            integrity,
            latency: self.latencies.figures(),
            send_lag_p99_us: None,
            processors: first.0.until(&last.0, last.1 - first.1),
            peak_rss_bytes: end.target().map(|target| target.peak_rss_bytes),
            more,
            ..Outcome::default()
        }
    }
}
