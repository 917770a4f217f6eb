//! A steady rate, a burst at several times what the consumers take, and the drain of what that left
//! behind, with the latency of publishes in each part of it.

use crate::args::backlog::SpikeArgs;
use crate::clock::as_ns;
use crate::run::Outcome;
use crate::scenario_backlog::{credit, memory, outcome};
use crate::surge::{Drain, Found, Plan, Stage, Until};
use crate::targets::Shape;
use crate::watch::Sample;
use std::io;

/// The run that the arguments ask for.
///
/// # Errors
/// If its backlog would never be drained.
pub fn plan(args: &SpikeArgs) -> io::Result<Plan> {
    if args.drain <= args.rate {
        let text = "--drain must be more than --rate, or the backlog is never drained";
        return Err(io::Error::other(text));
    }
    let window = args.window as usize;
    let drain = Drain::Limited(args.drain);
    let stage = |name, rate, until| Stage { name, rate, flood: 0, drain, until };
    let burst = args.burst * args.drain;
    let burst_time = Until::Time(as_ns(args.burst_time));
    let drained = Until::Drained(args.rate / 20 + 256);
    let mut stages = Vec::new();
    if args.warm {
        stages.push(stage("warm_burst", burst, burst_time));
        stages.push(stage("warm_drain", 0, Until::Drained(0)));
    }
    stages.extend([
        stage("before", args.rate, Until::Time(as_ns(args.before))),
        stage("burst", burst, burst_time),
        stage("draining", args.rate, drained),
        stage("after", args.rate, Until::Time(as_ns(args.after))),
        stage("end", 0, Until::Drained(0)),
        stage("idle", 0, Until::Time(as_ns(args.idle))),
    ]);
    let consumers = args.consumers as usize;
    let shape = Shape {
        producers: 0,
        consumers,
        window,
        body_bytes: args.size,
        queues: 1,
        subscriptions: 1,
        credit: credit(window, Some(args.drain), consumers),
        held: (burst as f64 * args.burst_time.as_secs_f64()) as u64,
        durable: false,
    };
    Ok(Plan { shape, batch: 1, unconfirmed_max: 0, window, stages })
}

/// Its figures; those of the measured part are of the burst.
pub fn report(args: &SpikeArgs, found: Found, samples: &[Sample]) -> Outcome {
    let mut outcome = outcome(&found, samples, "before", "burst", args.size);
    if let Some((start, end)) = found.stage("draining") {
        let seconds = (end.used.ns() - start.used.ns()) as f64 / 1e9;
        outcome.more.insert("time_to_drain_s".into(), seconds.into());
        let left = start.confirmed.saturating_sub(start.arrived);
        outcome.more.insert("backlog_after_burst_messages".into(), left.into());
    }
    memory(&mut outcome, &found, samples, "burst");
    outcome
}
