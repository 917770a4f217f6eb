//! From arguments to a report: starts or finds the target, connects, runs the scenario.

use crate::args::{Scenario, TargetArgs};
use crate::clock::RunClock;
use crate::connect::{Scene, play, unfit};
use crate::integrity::IntegrityCounts;
use crate::proc::{Spawned, pin_here};
use crate::report::{LatencyFigures, Machine, ProcessorFigures, Report};
use crate::schedule::PhaseFigures;
use crate::surge::{self, Found};
use crate::targets::{Shape, Target, Wire};
use crate::watch::journal::JournalUse;
use crate::watch::{Sample, Watch};
use crate::{scenario_backlog, scenario_disk, scenario_restart, scenario_spike};
use crate::{scenario_idle, scenario_latency, scenario_throughput, sys};
use forebay::limits::{DELIVER_HEADER_BYTES, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// A run ends when nothing has come for so long after the last message was sent.
pub const DRAIN_QUIET_NS: u64 = 5_000_000_000;

/// Where a broker listens that is started.
const LISTEN: &str = "127.0.0.1:0";

/// Set by Ctrl-C and SIGTERM, so that a run ends by returning and takes its target with it.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Sets it when a signal comes.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn by_signals() -> io::Result<Interrupt> {
        let interrupt = Interrupt::default();
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        Ok(interrupt)
    }

    /// # Errors
    /// `Interrupted` if a signal has come.
    #[inline]
    pub fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }
}

/// What a scenario found.
#[derive(Default)]
pub struct Outcome {
    /// See [`Report`], as all that follows.
    pub messages: u64,
    /// Length of the measured part.
    pub seconds: f64,
    /// Size of a body.
    pub body_bytes: usize,
    /// Published.
    pub sent: u64,
    /// Confirmed.
    pub confirmed: u64,
    /// Faults.
    pub integrity: IntegrityCounts,
    /// Quantiles.
    pub latency: LatencyFigures,
    /// The sender's own lateness.
    pub send_lag_p99_us: Option<f64>,
    /// Processors.
    pub processors: ProcessorFigures,
    /// Of the target.
    pub peak_rss_bytes: Option<u64>,
    /// Publish to confirm, in parts of the run.
    pub phases: Vec<PhaseFigures>,
    /// The target's memory over time.
    pub samples: Vec<Sample>,
    /// Figures of this scenario alone.
    pub more: serde_json::Map<String, serde_json::Value>,
}

/// A target that is there.
struct Running {
    address: SocketAddr,
    pid: Option<u32>,
    /// Ends it when dropped.
    _spawned: Option<Spawned>,
}

/// Runs one scenario.
///
/// # Errors
/// If the target cannot be started or reached, or the run fails.
pub fn run(scenario: &Scenario, interrupt: &Interrupt) -> io::Result<Report> {
    let args = scenario.target();
    sys::exact_timers();
    if let Some(core) = args.client_core.0 {
        pin_here(core)?;
    }
    match scenario {
        Scenario::Throughput(all) => {
            let plan = scenario_throughput::Plan::new(all);
            let outcome = run_throughput(args, &plan, interrupt)?;
            Ok(report(args, "throughput", outcome, all))
        }
        Scenario::Durable(all) => {
            let outcome = if args.target.is_disk() {
                scenario_disk::run_durable(all, interrupt)?
            } else {
                let plan = scenario_throughput::Plan::durable(all);
                run_throughput(args, &plan, interrupt)?
            };
            Ok(report(args, "durable", outcome, all))
        }
        Scenario::Restart(all) => {
            let outcome = scenario_restart::run(all, interrupt)?;
            Ok(report(args, "restart", outcome, all))
        }
        Scenario::Latency(all) => {
            let plan = scenario_latency::Plan::new(all);
            let ring_bytes = ring_bytes(2 * plan.shape.window as u64, plan.shape.body_bytes);
            let target = start(args, ring_bytes, false)?;
            let scene = LatencyScene(&plan, target.pid, interrupt);
            let outcome = play(args, target.address, plan.shape, scene)?;
            Ok(report(args, "latency", outcome, all))
        }
        Scenario::Idle(all) => {
            let target = start(args, ring_bytes(0, 0), false)?;
            let outcome = scenario_idle::run(all, target.address, target.pid, interrupt)?;
            Ok(report(args, "idle", outcome, all))
        }
        Scenario::Spike(all) => {
            let plan = scenario_spike::plan(all)?;
            let figures = |found, samples: &[Sample]| scenario_spike::report(all, found, samples);
            let outcome = run_surge(args, &plan, figures, interrupt)?;
            Ok(report(args, "spike", outcome, all))
        }
        Scenario::Backlog(all) => {
            let outcome = if args.target.is_disk() {
                scenario_disk::run_backlog(all, interrupt)?
            } else {
                let plan = scenario_backlog::plan(all)?;
                let figures =
                    |found, samples: &[Sample]| scenario_backlog::report(all, found, samples);
                run_surge(args, &plan, figures, interrupt)?
            };
            Ok(report(args, "backlog", outcome, all))
        }
        Scenario::Disk(all) => {
            let outcome = scenario_disk::run(all, interrupt)?;
            Ok(report(args, "disk", outcome, all))
        }
    }
}

fn run_throughput(
    args: &TargetArgs,
    plan: &scenario_throughput::Plan,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    check_throughput(args.target, plan.shape)?;
    let durable = plan.shape.durable;
    let target = start(args, ring_bytes(2 * plan.backlog, plan.shape.body_bytes), durable)?;
    let scene = ThroughputScene(plan, target.pid, interrupt);
    let journal = (durable && args.target == Target::Forebay).then_some(target.address);
    let before = journal.and_then(JournalUse::of);
    let mut outcome = play(args, target.address, plan.shape, scene)?;
    if let Some((before, after)) = before.zip(journal.and_then(JournalUse::of)) {
        let bytes = outcome.sent * outcome.body_bytes as u64;
        before.until(&after, bytes, &mut outcome.more);
    }
    Ok(outcome)
}

fn run_surge(
    args: &TargetArgs,
    plan: &surge::Plan,
    report: impl FnOnce(Found, &[Sample]) -> Outcome,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    check_keeps(args.target)?;
    let (held, body_bytes) = (plan.shape.held, plan.shape.body_bytes);
    let under_way = plan.unconfirmed_max + plan.window as u64;
    let target = start(args, ring_bytes(held + 2 * under_way, body_bytes), false)?;
    let server = (args.target == Target::Forebay).then_some(target.address);
    let scene = SurgeScene { plan, target: &target, server, report, interrupt };
    play(args, target.address, plan.shape, scene)
}

/// The scenario `throughput` over whatever wire it is given.
struct ThroughputScene<'s>(&'s scenario_throughput::Plan, Option<u32>, &'s Interrupt);

impl Scene for ThroughputScene<'_> {
    fn run<W: Wire>(self, mut connect: impl FnMut(Shape) -> io::Result<W>) -> io::Result<Outcome> {
        let ThroughputScene(plan, pid, interrupt) = self;
        scenario_throughput::run(plan, connect(plan.shape)?, pid, interrupt)
    }
}

/// The scenario `latency`, likewise.
struct LatencyScene<'s>(&'s scenario_latency::Plan, Option<u32>, &'s Interrupt);

impl Scene for LatencyScene<'_> {
    fn run<W: Wire>(self, mut connect: impl FnMut(Shape) -> io::Result<W>) -> io::Result<Outcome> {
        let LatencyScene(plan, pid, interrupt) = self;
        scenario_latency::run(plan, connect(plan.shape)?, pid, interrupt)
    }
}

/// The scenarios `spike` and `backlog`, likewise; the target is watched meanwhile.
struct SurgeScene<'s, R> {
    plan: &'s surge::Plan,
    target: &'s Running,
    /// A broker that can be asked what it holds.
    server: Option<SocketAddr>,
    report: R,
    interrupt: &'s Interrupt,
}

impl<R: FnOnce(Found, &[Sample]) -> Outcome> Scene for SurgeScene<'_, R> {
    fn run<W: Wire>(self, connect: impl FnMut(Shape) -> io::Result<W>) -> io::Result<Outcome> {
        let SurgeScene { plan, target, server, report, interrupt } = self;
        let clock = RunClock::start();
        let watch = Watch::start(clock, target.pid, server)?;
        let found = surge::run(plan, connect, clock, target.pid, interrupt)?;
        Ok(report(found, &watch.finish()))
    }
}

/// Whether a target has what `throughput` needs.
fn check_throughput(target: Target, shape: Shape) -> io::Result<()> {
    match (target, shape.consumers) {
        (Target::Nats, _) if shape.durable => Err(unfit("nats core keeps nothing on disk")),
        (Target::Nats, 0) => Err(unfit("nats confirms nothing")),
        (Target::BaselineRelay, 0) => Err(unfit("nobody consumes, and it confirms what is taken")),
        (Target::BaselineEcho, 1..) => Err(unfit("the echo has no consumers")),
        _ => Ok(()),
    }
}

/// Whether a target keeps what nobody has taken yet.
fn check_keeps(target: Target) -> io::Result<()> {
    match target {
        Target::Nats => Err(unfit("nats core keeps nothing that is not consumed at once")),
        Target::BaselineEcho => Err(unfit("the echo keeps nothing")),
        _ => Ok(()),
    }
}

fn report(
    args: &TargetArgs,
    scenario: &'static str,
    outcome: Outcome,
    parameters: &impl serde::Serialize,
) -> Report {
    let messages_per_s = outcome.messages as f64 / outcome.seconds;
    Report {
        target: args.target.name().to_owned(),
        scenario,
        messages: outcome.messages,
        seconds: outcome.seconds,
        messages_per_s,
        bytes_per_s: messages_per_s * outcome.body_bytes as f64,
        sent: outcome.sent,
        confirmed: outcome.confirmed,
        integrity: outcome.integrity,
        latency: outcome.latency,
        send_lag_p99_us: outcome.send_lag_p99_us,
        processors: outcome.processors,
        peak_rss_bytes: outcome.peak_rss_bytes,
        phases: outcome.phases,
        samples: outcome.samples,
        more: outcome.more,
        parameters: serde_json::to_value(parameters).unwrap_or_default(),
        machine: Machine::here(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// A ring that holds so many messages, even if each is a run of its own, and 1 MiB at least.
fn ring_bytes(messages: u64, body_bytes: usize) -> u64 {
    let each = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES + RECORD_HEADER_BYTES + body_bytes;
    (messages * each as u64).max(1 << 20)
}

/// Starts the target, or takes the one that runs; a peer that is to be `durable` syncs before it
/// answers.
fn start(args: &TargetArgs, ring_bytes: u64, durable: bool) -> io::Result<Running> {
    if let Some(address) = args.server {
        return Ok(Running { address, pid: args.server_pid, _spawned: None });
    }
    if !args.spawn {
        return Err(io::Error::other("say --spawn to start the target, or --server ADDR"));
    }
    let (command, directory) = match args.target {
        Target::Forebay => match &args.data_dir {
            Some(path) => (broker_command(args, LISTEN, path)?, None),
            None => {
                let directory = TempDir::with_prefix("forebay-loadtest-")?;
                (broker_command(args, LISTEN, &directory.path().join("data"))?, Some(directory))
            }
        },
        Target::RedisStream | Target::RedisList | Target::Nats => {
            let (command, address, directory) = peer_command(args.target, durable)?;
            let core = args.broker_core.0;
            let spawned = Spawned::start_listening(command, core, address, directory)?;
            let pid = Some(spawned.pid());
            return Ok(Running { address, pid, _spawned: Some(spawned) });
        }
        disk if disk.is_disk() => {
            return Err(unfit("a disk carries no messages: see disk, backlog and durable"));
        }
        baseline => (baseline_command(baseline, ring_bytes, args.busy_poll)?, None),
    };
    let spawned = Spawned::start(command, args.broker_core.0, directory)?;
    let pid = Some(spawned.pid());
    Ok(Running { address: spawned.address, pid, _spawned: Some(spawned) })
}

/// Another broker, from the system's packages, on a port that was free a moment ago. Nothing of
/// Redis is written to disk, or all of it, synced before it answers.
fn peer_command(target: Target, durable: bool) -> io::Result<(Command, SocketAddr, TempDir)> {
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let port = address.port().to_string();
    let directory = TempDir::with_prefix("forebay-loadtest-")?;
    let mut command;
    if target == Target::Nats {
        command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &port]);
    } else {
        command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port]);
        command.args(["--save", "", "--appendonly", if durable { "yes" } else { "no" }]);
        command.args(["--appendfsync", "always", "--loglevel", "warning", "--dir"]);
        command.arg(directory.path());
    }
    command.stderr(Stdio::null());
    Ok((command, address, directory))
}

fn baseline_command(target: Target, ring_bytes: u64, busy_poll: bool) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve-baseline", target.name(), "--ring-bytes"]).arg(ring_bytes.to_string());
    if busy_poll {
        command.arg("--busy-poll");
    }
    Ok(command)
}

/// A broker that listens there and keeps its files in `directory`.
///
/// # Errors
/// If its program is missing.
pub fn broker_command(args: &TargetArgs, listen: &str, directory: &Path) -> io::Result<Command> {
    let binary = match &args.forebay_binary {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("forebay"),
    };
    if !binary.is_file() {
        let text = format!("{} is missing: build it, or say --forebay-binary", binary.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    }
    let mut command = Command::new(binary);
    command.env("FOREBAY_LOG", "warn");
    // As users have it, but beside any other broker.
    command.env("FOREBAY_ADMIN", "127.0.0.1:0");
    command.args(["serve", "--listen", listen, "--data-dir"]);
    command.arg(directory);
    command.args(["--shards", &args.shards.to_string()]);
    if args.busy_poll {
        command.arg("--busy-poll");
    }
    command.args(&args.forebay_args);
    Ok(command)
}
