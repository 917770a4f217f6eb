//! From arguments to a report: starts or finds the target, connects, runs the scenario.

use crate::args::{ClientKind, Scenario, TargetArgs};
use crate::integrity::IntegrityCounts;
use crate::proc::{Spawned, pin_here};
use crate::report::{LatencyFigures, Machine, ProcessorFigures, Report};
use crate::targets::asynchronous::TokioWire;
use crate::targets::blocking::BlockingWire;
use crate::targets::forebay::{Control, unused_id};
use crate::targets::nats::NatsWire;
use crate::targets::redis::{self, RedisWire};
use crate::targets::wire::{FastWire, subscription_name};
use crate::targets::{Shape, Target};
use crate::{scenario_idle, scenario_latency, scenario_throughput, sys};
use forebay::limits::{DELIVER_HEADER_BYTES, FRAME_HEADER_BYTES, RECORD_HEADER_BYTES};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

/// A run ends when nothing has come for so long after the last message was sent.
pub const DRAIN_QUIET_NS: u64 = 5_000_000_000;

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
            let target = start(args, ring_bytes(plan.backlog, plan.shape.body_bytes))?;
            let outcome = throughput(&plan, args, &target, interrupt)?;
            Ok(report(args, "throughput", outcome, all))
        }
        Scenario::Latency(all) => {
            let plan = scenario_latency::Plan::new(all);
            let ring_bytes = ring_bytes(plan.shape.window as u64, plan.shape.body_bytes);
            let target = start(args, ring_bytes)?;
            let outcome = latency(&plan, args, &target, interrupt)?;
            Ok(report(args, "latency", outcome, all))
        }
        Scenario::Idle(all) => {
            let target = start(args, ring_bytes(0, 0))?;
            let outcome = scenario_idle::run(all, target.address, target.pid, interrupt)?;
            Ok(report(args, "idle", outcome, all))
        }
    }
}

fn throughput(
    plan: &scenario_throughput::Plan,
    args: &TargetArgs,
    target: &Running,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    let (server, shape) = (target.address, plan.shape);
    match (args.target, shape.consumers) {
        (target, _)
            if target != Target::Forebay && (shape.queues > 1 || shape.subscriptions > 1) =>
        {
            Err(unfit("only forebay is asked for many queues or subscriptions"))
        }
        (Target::Nats, 0) => Err(unfit("nats confirms nothing")),
        (Target::Nats, _) => {
            let wire = NatsWire::connect(server, shape)?;
            scenario_throughput::run(plan, wire, target.pid, interrupt)
        }
        (Target::RedisStream | Target::RedisList, _) => {
            let wire = RedisWire::connect(server, redis_kind(args.target), shape)?;
            scenario_throughput::run(plan, wire, target.pid, interrupt)
        }
        (Target::BaselineRelay, 0) => Err(unfit("with --connections nobody consumes")),
        (Target::BaselineEcho, 1..) => Err(unfit("the echo has no consumers")),
        (Target::BaselineRelay | Target::BaselineEcho, _) => {
            let wire = FastWire::connect_bare(server, shape)?;
            scenario_throughput::run(plan, wire, target.pid, interrupt)
        }
        (Target::Forebay, _) => {
            let queues = RunQueues::create(server, shape)?;
            match args.client {
                ClientKind::Wire => {
                    let wire =
                        FastWire::connect_forebay(server, &queues.names, shape, args.attach)?;
                    scenario_throughput::run(plan, wire, target.pid, interrupt)
                }
                ClientKind::Blocking | ClientKind::Tokio => {
                    let [queue] = &queues.names[..] else {
                        return Err(unfit("many queues need --client wire"));
                    };
                    if shape.subscriptions > 1 {
                        return Err(unfit("several subscriptions need --client wire"));
                    }
                    if args.client == ClientKind::Tokio {
                        let wire = TokioWire::connect(server, queue, shape)?;
                        return scenario_throughput::run(plan, wire, target.pid, interrupt);
                    }
                    let wire = BlockingWire::connect(server, queue, shape, args.busy_poll)?;
                    scenario_throughput::run(plan, wire, target.pid, interrupt)
                }
            }
        }
    }
}

fn latency(
    plan: &scenario_latency::Plan,
    args: &TargetArgs,
    target: &Running,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    let (server, shape) = (target.address, plan.shape);
    let wire = match args.target {
        Target::BaselineRelay => FastWire::connect_bare(server, shape)?,
        Target::BaselineEcho => FastWire::connect_echo(server, shape)?,
        Target::Nats => {
            let wire = NatsWire::connect(server, shape)?;
            return scenario_latency::run(plan, wire, target.pid, interrupt);
        }
        Target::RedisStream | Target::RedisList => {
            let wire = RedisWire::connect(server, redis_kind(args.target), shape)?;
            return scenario_latency::run(plan, wire, target.pid, interrupt);
        }
        Target::Forebay => {
            let queues = RunQueues::create(server, shape)?;
            return match args.client {
                ClientKind::Wire => {
                    let wire =
                        FastWire::connect_forebay(server, &queues.names, shape, args.attach)?;
                    scenario_latency::run(plan, wire, target.pid, interrupt)
                }
                ClientKind::Tokio => {
                    let wire = TokioWire::connect(server, &queues.names[0], shape)?;
                    scenario_latency::run(plan, wire, target.pid, interrupt)
                }
                ClientKind::Blocking => {
                    let wire =
                        BlockingWire::connect(server, &queues.names[0], shape, args.busy_poll)?;
                    scenario_latency::run(plan, wire, target.pid, interrupt)
                }
            };
        }
    };
    scenario_latency::run(plan, wire, target.pid, interrupt)
}

/// Queues of this run alone; deleted in the end, for the broker may be somebody's.
struct RunQueues {
    names: Vec<String>,
    control: Control,
}

impl RunQueues {
    fn create(server: SocketAddr, shape: Shape) -> io::Result<RunQueues> {
        let name = format!("loadtest-{:x}", unused_id());
        let names = match shape.queues {
            1 => vec![name],
            count => (0..count).map(|nth| format!("{name}-{nth}")).collect::<Vec<_>>(),
        };
        let subscriptions: Vec<String> = match shape.subscriptions {
            1 => Vec::new(),
            count => (0..count).map(subscription_name).collect(),
        };
        let mut control = Control::connect(server)?;
        control.create_queues(names.iter().cloned(), &subscriptions)?;
        Ok(RunQueues { names, control })
    }
}

impl Drop for RunQueues {
    fn drop(&mut self) {
        // The run is over; a broker that is gone has no queue to delete.
        let _ = self.control.delete_queues(std::mem::take(&mut self.names));
    }
}

fn redis_kind(target: Target) -> redis::Kind {
    if target == Target::RedisList { redis::Kind::List } else { redis::Kind::Stream }
}

fn unfit(why: &str) -> io::Error {
    io::Error::other(format!("this target cannot run this scenario: {why}"))
}

fn report(
    args: &TargetArgs,
    scenario: &'static str,
    outcome: Outcome,
    parameters: &impl serde::Serialize,
) -> Report {
    let messages_per_s = outcome.messages as f64 / outcome.seconds;
    Report {
        target: args.target.name(),
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
        more: outcome.more,
        parameters: serde_json::to_value(parameters).unwrap_or_default(),
        machine: Machine::here(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// A ring that holds `messages` under way, even if each is a run of its own, and 1 MiB at least.
fn ring_bytes(messages: u64, body_bytes: usize) -> u64 {
    let each = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES + RECORD_HEADER_BYTES + body_bytes;
    (2 * messages * each as u64).max(1 << 20)
}

/// Starts the target, or takes the one that runs.
fn start(args: &TargetArgs, ring_bytes: u64) -> io::Result<Running> {
    if let Some(address) = args.server {
        return Ok(Running { address, pid: args.server_pid, _spawned: None });
    }
    if !args.spawn {
        return Err(io::Error::other("say --spawn to start the target, or --server ADDR"));
    }
    let (command, directory) = match args.target {
        Target::Forebay => {
            let directory = TempDir::with_prefix("forebay-loadtest-")?;
            (broker_command(args, &directory)?, Some(directory))
        }
        Target::RedisStream | Target::RedisList | Target::Nats => {
            let (command, address, directory) = peer_command(args.target)?;
            let core = args.broker_core.0;
            let spawned = Spawned::start_listening(command, core, address, directory)?;
            let pid = Some(spawned.pid());
            return Ok(Running { address, pid, _spawned: Some(spawned) });
        }
        baseline => (baseline_command(baseline, ring_bytes, args.busy_poll)?, None),
    };
    let spawned = Spawned::start(command, args.broker_core.0, directory)?;
    let pid = Some(spawned.pid());
    Ok(Running { address: spawned.address, pid, _spawned: Some(spawned) })
}

/// Another broker, from the system's packages, on a port that was free a moment ago. Nothing of
/// Redis is written to disk.
fn peer_command(target: Target) -> io::Result<(Command, SocketAddr, TempDir)> {
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
        command.args(["--save", "", "--appendonly", "no", "--loglevel", "warning", "--dir"]);
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

fn broker_command(args: &TargetArgs, directory: &TempDir) -> io::Result<Command> {
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
    command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(directory.path().join("data"));
    command.args(["--shards", &args.shards.to_string()]);
    if args.busy_poll {
        command.arg("--busy-poll");
    }
    command.args(&args.forebay_args);
    Ok(command)
}
