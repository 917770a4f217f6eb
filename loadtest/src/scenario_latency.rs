//! Publish to receive at a fixed rate, open loop: messages leave on a schedule that waits for
//! nothing, and each one's time counts from when it should have left. A stall anywhere therefore
//! shows in every message that it held up (no coordinated omission). Or one message at a time.
//!
//! One thread publishes and receives, so both ends share a clock and no time passes between them.

use crate::args::{LatencyArgs, batch_max};
use crate::body::{Bodies, Stamp};
use crate::clock::{RunClock, as_ns};
use crate::integrity::Integrity;
use crate::report::{Latencies, UseSample};
use crate::run::{DRAIN_QUIET_NS, Interrupt, Outcome};
use crate::targets::{Shape, Wire};
use std::io;
use std::time::Duration;

/// Longest sleep; also how soon the end is seen.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// Messages that leave in one batch at most, however late the sender is.
const BATCH_MAX: u64 = 256;

/// What a run does, worked out from the arguments.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its clients.
    pub shape: Shape,
    /// `None`: one message at a time.
    rate: Option<u64>,
    warmup_ns: u64,
    end_ns: u64,
    /// Messages that are due before the end: all of them leave, however late. 0 without a rate.
    total: u64,
    /// A target that is too slow for the rate gets so much time.
    give_up_ns: u64,
    busy_poll: bool,
}

impl Plan {
    /// Works it out.
    pub fn new(args: &LatencyArgs) -> Plan {
        let window = if args.one_in_flight { 1 } else { args.window as usize };
        let warmup_ns = as_ns(args.warmup);
        let end_ns = warmup_ns + as_ns(args.duration);
        let rate = (!args.one_in_flight).then_some(args.rate);
        Plan {
            shape: Shape {
                queues: 1,
                subscriptions: 1,
                producers: 1,
                consumers: 1,
                window,
                body_bytes: args.size,
                credit: window.max(256),
                held: 0,
                durable: false,
            },
            rate,
            warmup_ns,
            end_ns,
            total: due_before(rate.unwrap_or(0), end_ns),
            give_up_ns: 2 * end_ns + DRAIN_QUIET_NS,
            busy_poll: args.target.busy_poll,
        }
    }

    /// When message `nth` should leave.
    fn due_ns(&self, nth: u64) -> Option<u64> {
        let rate = self.rate?;
        Some((u128::from(nth) * 1_000_000_000 / u128::from(rate)) as u64)
    }
}

/// Messages that a rate makes due before a time.
fn due_before(rate: u64, end_ns: u64) -> u64 {
    (u128::from(end_ns) * u128::from(rate)).div_ceil(1_000_000_000) as u64
}

struct Run<'p, W> {
    plan: &'p Plan,
    wire: W,
    clock: RunClock,
    bodies: Bodies,
    integrity: Integrity,
    latencies: Latencies,
    lags: Latencies,
    sent: u64,
    arrived: u64,
    /// Of those, in the measured part.
    measured: u64,
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
        integrity: Integrity::new(1, 1),
        latencies: Latencies::default(),
        lags: Latencies::default(),
        sent: 0,
        arrived: 0,
        measured: 0,
    };
    run.go(pid, interrupt)
}

impl<W: Wire> Run<'_, W> {
    fn go(&mut self, pid: Option<u32>, interrupt: &Interrupt) -> io::Result<Outcome> {
        let mut first = None;
        let mut progress = (0, 0);
        loop {
            interrupt.check()?;
            let now_ns = self.clock.ns();
            if first.is_none() && now_ns >= self.plan.warmup_ns {
                first = Some(UseSample::take(now_ns, pid)?);
                continue;
            }
            let sending = match self.plan.rate {
                Some(_) => self.sent < self.plan.total,
                None => now_ns < self.plan.end_ns,
            };
            if self.arrived != progress.0 || now_ns < self.plan.end_ns {
                progress = (self.arrived, now_ns);
            }
            let all_done = !sending && self.arrived.min(self.wire.confirmed()) >= self.sent;
            let quiet_ns = now_ns - progress.1;
            if all_done || quiet_ns > DRAIN_QUIET_NS || now_ns > self.plan.give_up_ns {
                break;
            }
            if sending {
                self.send(now_ns)?;
            }
            self.turn(self.wait(now_ns, sending))?;
        }
        let end = UseSample::take(self.clock.ns(), pid)?;
        Ok(self.outcome(first.unwrap_or(end), end))
    }

    /// Publishes what is due.
    fn send(&mut self, now_ns: u64) -> io::Result<()> {
        let room = self.wire.room(0) as u64;
        let due = match self.plan.rate {
            Some(rate) => {
                let due = (u128::from(now_ns) * u128::from(rate) / 1_000_000_000 + 1) as u64;
                due.min(self.plan.total).saturating_sub(self.sent)
            }
            None => u64::from(self.arrived == self.sent),
        };
        let mut left = due.min(room);
        while left > 0 {
            let batch = left.min(BATCH_MAX).min(batch_max(self.plan.shape.body_bytes) as u64);
            let Run { plan, wire, bodies, sent, lags, .. } = self;
            wire.publish(0, batch as usize, |body| {
                let time_ns = plan.due_ns(*sent).unwrap_or(now_ns);
                bodies.stamp(body, Stamp { producer: 0, sequence: *sent, time_ns });
                if time_ns >= plan.warmup_ns {
                    lags.record(now_ns.saturating_sub(time_ns));
                }
                *sent += 1;
            })?;
            left -= batch;
        }
        Ok(())
    }

    fn wait(&self, now_ns: u64, sending: bool) -> Duration {
        if self.plan.busy_poll {
            return Duration::ZERO;
        }
        let next_ns = match self.plan.due_ns(self.sent) {
            // At a full window the due time has passed: a confirm ends the wait.
            Some(next_ns) if sending && self.wire.room(0) > 0 => next_ns,
            _ => u64::MAX,
        };
        Duration::from_nanos(next_ns.saturating_sub(now_ns)).min(WAIT_MAX)
    }

    fn turn(&mut self, wait: Duration) -> io::Result<()> {
        let Run { plan, wire, clock, integrity, latencies, arrived, measured, .. } = self;
        // One reading per turn, when the first message is in our hands.
        let mut now_ns = 0;
        wire.turn(wait, |consumer, body| {
            now_ns = if now_ns == 0 { clock.ns() } else { now_ns };
            *arrived += 1;
            if let Some(stamp) = integrity.take(consumer, body)
                && stamp.time_ns >= plan.warmup_ns
            {
                *measured += 1;
                latencies.record(now_ns.saturating_sub(stamp.time_ns));
            }
        })
    }

    fn outcome(&self, first: UseSample, end: UseSample) -> Outcome {
        let confirmed = self.wire.confirmed();
        let mut more = serde_json::Map::new();
        if self.sent < self.plan.total {
            more.insert("unsent".into(), (self.plan.total - self.sent).into());
        }
        Outcome {
            messages: self.measured,
            seconds: end.ns().saturating_sub(first.ns()).max(1) as f64 / 1e9,
            body_bytes: self.plan.shape.body_bytes,
            sent: self.sent,
            confirmed,
            integrity: self.integrity.counts(confirmed),
            latency: self.latencies.figures(),
            send_lag_p99_us: self.plan.rate.and(self.lags.figures().p99_us),
            processors: first.until(&end, self.measured),
            peak_rss_bytes: end.target().map(|target| target.peak_rss_bytes),
            more,
            ..Outcome::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// Delivers each message at once, except that it stalls once for 200 ms of real time.
    struct Stalling<'s> {
        waiting: Vec<Vec<u8>>,
        sent: u64,
        stalled: &'s Cell<bool>,
    }

    impl Wire for Stalling<'_> {
        fn room(&self, _producer: usize) -> usize {
            1000 - self.waiting.len()
        }

        fn publish(
            &mut self,
            _producer: usize,
            count: usize,
            mut fill: impl FnMut(&mut [u8]),
        ) -> io::Result<()> {
            for _ in 0..count {
                let mut body = vec![0; 16];
                fill(&mut body);
                self.waiting.push(body);
                self.sent += 1;
            }
            Ok(())
        }

        fn turn(&mut self, _wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
            if self.sent > 500 && !self.stalled.replace(true) {
                std::thread::park_timeout(Duration::from_millis(200));
            }
            self.waiting.drain(..).for_each(|body| take(0, &body));
            Ok(())
        }

        fn confirmed(&self) -> u64 {
            self.sent
        }
    }

    #[test]
    fn a_stall_shows_in_every_message_that_it_held_up() {
        let plan = Plan {
            shape: Shape {
                producers: 1,
                consumers: 1,
                window: 1000,
                body_bytes: 16,
                queues: 1,
                subscriptions: 1,
                credit: 1000,
                held: 0,
                durable: false,
            },
            rate: Some(10_000),
            warmup_ns: 0,
            end_ns: 400_000_000,
            total: due_before(10_000, 400_000_000),
            give_up_ns: 60_000_000_000,
            busy_poll: true,
        };
        let stalled = Cell::new(false);
        let wire = Stalling { waiting: Vec::new(), sent: 0, stalled: &stalled };
        let outcome = run(&plan, wire, None, &Interrupt::default()).unwrap();
        assert!(stalled.get());
        assert_eq!(outcome.sent, 4000);
        assert_eq!(outcome.integrity.lost + outcome.integrity.reordered, 0);
        // About half of the messages were due in the stall; they waited 100 ms in the middle.
        assert!(outcome.latency.p90_us.unwrap() > 50_000.0, "{:?}", outcome.latency);
    }
}
