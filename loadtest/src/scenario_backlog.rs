//! A backlog: filled while nobody consumes, then drained, while one more producer publishes at a
//! fixed rate and its latency is taken. How fast it goes in and comes out, what it costs in memory,
//! and whether all of it comes back once, whole and in order.

use crate::args::backlog::BacklogArgs;
use crate::args::batch_max;
use crate::clock::as_ns;
use crate::report::LatencyFigures;
use crate::run::Outcome;
use crate::schedule::{cut_at_spill, split};
use crate::surge::{Drain, Found, Mark, Plan, Stage, Until};
use crate::targets::Shape;
use crate::watch::{Sample, spill_started, thinned};
use forebay::limits::WINDOW_BYTES;
use std::io;

/// Windows that many queues share, of messages and of bytes as the broker grants one producer.
const QUEUES_SHARE: u64 = 8;
/// What belongs to the start of a spill.
const SPILL_START_NS: u64 = 2_000_000_000;
/// Credit of a consumer of one of many queues, in messages.
const QUEUES_CREDIT: usize = 256;
const GIB: f64 = (1_u64 << 30) as f64;

/// The run that the arguments ask for.
///
/// # Errors
/// If its backlog would never be drained, or is none.
pub fn plan(args: &BacklogArgs) -> io::Result<Plan> {
    if args.drain.is_some_and(|drain| drain <= args.rate) {
        let text = "--drain must be more than --rate, or the backlog is never drained";
        return Err(io::Error::other(text));
    }
    let flood = args.bytes / args.size as u64;
    if flood == 0 {
        return Err(io::Error::other("--bytes must be one message at least"));
    }
    let (queues, window) = (args.queues as usize, args.window as usize);
    let many = queues > 1;
    let (producers, consumers) = match many {
        true => (queues, queues),
        false => (args.producers as usize, args.consumers as usize),
    };
    let batch = (args.batch as usize).min(window).min(batch_max(args.size));
    let unconfirmed_max = match many {
        true => QUEUES_SHARE * args.window.min((WINDOW_BYTES / args.size as u64).max(1)),
        false => args.producers * args.window,
    };
    let credit = if many { QUEUES_CREDIT } else { credit(window, args.drain, consumers) };
    let due_before = (args.rate as f64 * args.before.as_secs_f64()) as u64;
    Ok(Plan {
        shape: Shape {
            producers,
            consumers,
            window,
            body_bytes: args.size,
            queues,
            subscriptions: 1,
            credit,
            held: flood + due_before,
            durable: false,
        },
        batch,
        unconfirmed_max,
        window: 65_536,
        stages: stages(args, flood),
    })
}

fn stages(args: &BacklogArgs, flood: u64) -> Vec<Stage> {
    let drain = args.drain.map_or(Drain::Free, Drain::Limited);
    let stage = |name, rate, drain, until| Stage { name, rate, flood: 0, drain, until };
    let fill = |name, rate| Stage { name, rate, flood, drain: Drain::Off, until: Until::Flooded };
    let mut stages = Vec::new();
    if args.warm {
        stages.push(fill("warm_fill", 0));
        stages.push(stage("warm_drain", 0, Drain::Free, Until::Drained(0)));
    }
    if args.rate > 0 {
        let time = Until::Time(as_ns(args.before));
        stages.push(stage("before", args.rate, Drain::Off, time));
    }
    stages.push(fill("filling", args.rate));
    let left = if args.rate > 0 { args.rate / 20 + 256 } else { 0 };
    stages.push(stage("draining", args.rate, drain, Until::Drained(left)));
    if args.rate > 0 {
        let time = Until::Time(as_ns(args.after));
        stages.push(stage("after", args.rate, drain, time));
    }
    stages.push(stage("end", 0, Drain::Free, Until::Drained(0)));
    stages.push(stage("idle", 0, Drain::Free, Until::Time(as_ns(args.idle))));
    stages
}

/// Messages that a consumer may have delivered and unacked; at a fixed drain a tenth of a
/// second's, so that no lease ends while they wait.
pub fn credit(window: usize, drain: Option<u64>, consumers: usize) -> usize {
    let paced = drain.map_or(usize::MAX, |drain| drain as usize / 10 / consumers);
    (2 * window).min(paced).max(256)
}

/// Its figures; those of the measured part are of the fill.
pub fn report(args: &BacklogArgs, found: Found, samples: &[Sample]) -> Outcome {
    let first = if args.rate > 0 { "before" } else { "filling" };
    let mut outcome = outcome(&found, samples, first, "filling", args.size);
    if let Some((start, end)) = found.stage("draining") {
        let seconds = seconds(start, end);
        let rate = (end.arrived - start.arrived) as f64 / seconds;
        outcome.more.insert("drain_seconds".into(), seconds.into());
        outcome.more.insert("drain_messages_per_s".into(), rate.into());
        outcome.more.insert("drain_bytes_per_s".into(), (rate * args.size as f64).into());
        let used = start.used.until(&end.used, end.arrived - start.arrived);
        let each = used.broker_cpu_s_per_million;
        outcome
            .more
            .extend(each.map(|cpu_s| ("drain_broker_cpu_s_per_million".to_owned(), cpu_s.into())));
    }
    memory(&mut outcome, &found, samples, "filling");
    outcome
}

fn seconds(start: &Mark, end: &Mark) -> f64 {
    (end.used.ns() - start.used.ns()).max(1) as f64 / 1e9
}

/// What both scenarios report. `first` is the stage from which a spill is looked for, `measured`
/// that whose messages and processor time count.
pub fn outcome(
    found: &Found,
    samples: &[Sample],
    first: &str,
    measured: &str,
    body_bytes: usize,
) -> Outcome {
    let mut phases = found.phases();
    let start_ns = phases.iter().find(|phase| phase.name == first).map_or(0, |it| it.start_ns);
    if let Some(quiet_ns) = spill_started(samples, start_ns) {
        cut_at_spill(&mut phases, quiet_ns, SPILL_START_NS);
    }
    let end_ns = found.marks.last().map_or(0, |mark| mark.used.ns());
    let (figures, all) = split(&found.schedule, &found.log, &phases, end_ns);
    let mut outcome = Outcome {
        body_bytes,
        seconds: 1.0,
        sent: found.sent,
        confirmed: found.confirmed,
        integrity: found.integrity,
        latency: if found.log.sent() > 0 { all } else { LatencyFigures::default() },
        peak_rss_bytes: found
            .marks
            .last()
            .and_then(|mark| mark.used.target())
            .map(|target| target.peak_rss_bytes),
        phases: figures,
        samples: thinned(samples),
        ..Outcome::default()
    };
    if let Some((start, end)) = found.stage(measured) {
        outcome.messages = end.confirmed - start.confirmed;
        outcome.seconds = seconds(start, end);
        outcome.processors = start.used.until(&end.used, outcome.messages);
    }
    let more = &mut outcome.more;
    more.insert("sent_digest".into(), found.sent_digest.hex().into());
    more.insert("received_digest".into(), found.received_digest.hex().into());
    if !found.cut_short.is_empty() {
        more.insert("cut_short".into(), found.cut_short.join(", ").into());
    }
    // What was lost, doubled or damaged is counted; this is another way to see it.
    if found.sent_digest != found.received_digest && outcome.integrity.is_clean() {
        outcome.integrity.corrupt += 1;
    }
    outcome
}

/// Memory before, after and per GiB; `filling` is the stage in which the backlog grew.
pub fn memory(outcome: &mut Outcome, found: &Found, samples: &[Sample], filling: &str) {
    let more = &mut outcome.more;
    let rss = |mark: &Mark| mark.used.target().map(|target| target.rss_bytes);
    let mut put = |name: &str, value: Option<serde_json::Value>| {
        more.extend(value.map(|value| (name.to_owned(), value)));
    };
    if let Some((start, end)) = found.stage(filling) {
        put("rss_before_fill_bytes", rss(start).map(Into::into));
        put("rss_after_fill_bytes", rss(end).map(Into::into));
        let within = |sample: &&Sample| {
            let ns = (sample.s * 1e9) as u64;
            (start.used.ns()..=end.used.ns()).contains(&ns)
        };
        let filled = samples.iter().rfind(within);
        put("ram_per_spilled_gib_bytes", filled.and_then(per_spilled).map(Into::into));
    }
    let spilled = samples.iter().filter_map(|sample| sample.spilled_bytes).max();
    put("spilled_bytes_max", spilled.filter(|bytes| *bytes > 0).map(Into::into));
    if let Some((start, end)) = found.stage("idle") {
        put("rss_after_drain_bytes", rss(start).map(Into::into));
        put("rss_after_idle_bytes", rss(end).map(Into::into));
    }
}

/// All memory that the broker charges to its limit but that of messages in memory, per GiB on disk.
fn per_spilled(sample: &Sample) -> Option<f64> {
    let spilled = sample.spilled_bytes.filter(|bytes| *bytes > 0)?;
    Some((sample.other_bytes? as f64 / (spilled as f64 / GIB)).round())
}
