//! The command line: scenarios, what they share, and the hidden command that serves a baseline.

pub mod backlog;
pub mod durable;

use crate::args::backlog::{BacklogArgs, DiskArgs, SpikeArgs};
use crate::args::durable::{DurableArgs, RestartArgs};
use crate::body::{BODY_BYTES_MAX, BODY_BYTES_MIN, PRODUCERS_MAX, TIME_NS_MAX};
use crate::scenario_throughput::RUN_NS_MAX;
use crate::surge;
use crate::targets::Target;
use clap::{Args, Parser, Subcommand, ValueEnum};
use forebay::base::units::{parse_bytes, parse_duration};
use forebay::limits::{BATCH_RECORDS_BYTES_MAX, BATCH_RECORDS_MAX, RECORD_HEADER_BYTES};
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Longest measured part of a run.
const DURATION_MAX: Duration = Duration::from_secs(600);
/// Longest warm-up.
const WARMUP_MAX: Duration = Duration::from_secs(60);
/// Most messages of a run with `--count`.
const COUNT_MAX: u64 = 10_000_000_000;

/// Load tests of Forebay, and of bare programs that carry the same bytes without a broker.
#[derive(Parser)]
#[command(name = "forebay-loadtest", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    #[command(flatten)]
    Scenario(Scenario),
    /// Run several targets in turn, several times over, and compare medians and ratios
    Compare(CompareArgs),
    /// The server side of a baseline
    #[command(hide = true)]
    ServeBaseline(ServeArgs),
}

/// One measurement.
#[derive(Subcommand, Clone)]
pub enum Scenario {
    /// As many messages as go through: published, delivered and acked
    Throughput(ThroughputArgs),
    /// Publish to receive at a fixed rate (open loop), or one message at a time
    Latency(LatencyArgs),
    /// Memory and CPU of the target with many connections or queues that do nothing
    Idle(IdleArgs),
    /// A burst at several times what consumers take, and its drain: publish latency all through
    Spike(SpikeArgs),
    /// Fill while nobody consumes, then drain, publishing all the while
    Backlog(BacklogArgs),
    /// Raw writes to or reads from the disk, of the sizes that the broker uses
    Disk(DiskArgs),
    /// As many messages as go through a durable queue, each confirmed when the disk has it
    Durable(DurableArgs),
    /// Kill the broker while a durable queue is published to, start it again, and take all out
    Restart(RestartArgs),
}

/// What all scenarios take.
#[derive(Args, Clone, Serialize)]
pub struct TargetArgs {
    /// What to measure
    #[arg(long, value_enum, default_value_t = Target::Forebay)]
    pub target: Target,
    /// Start the target, bound to its core, and end it afterwards
    #[arg(long, conflicts_with = "server")]
    pub spawn: bool,
    /// Measure a target that runs already
    #[arg(long, value_name = "ADDR")]
    pub server: Option<SocketAddr>,
    /// Process id of a running target on this machine, for its CPU and memory
    #[arg(long, value_name = "PID", requires = "server")]
    pub server_pid: Option<u32>,
    /// Core of a target that is started; `none` leaves it to the system
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_core)]
    pub broker_core: Core,
    /// Core of all clients
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_core)]
    pub client_core: Core,
    /// The broker's program; otherwise `forebay` beside this one
    #[arg(long, value_name = "PATH")]
    pub forebay_binary: Option<PathBuf>,
    /// One more argument for `forebay serve`; can be given several times
    #[arg(long = "forebay-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub forebay_args: Vec<String>,
    /// Data directory of a broker that is started, kept and used again; else a temporary one
    #[arg(long, value_name = "PATH")]
    pub data_dir: Option<PathBuf>,
    /// Which client speaks to Forebay
    #[arg(long, value_enum, default_value_t = ClientKind::Blocking)]
    pub client: ClientKind,
    /// Shards of a broker that is started
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 16))]
    pub shards: u64,
    /// Which shard the clients' connections are on (`--client wire`)
    #[arg(long, value_enum, default_value_t = Attach::Anywhere)]
    pub attach: Attach,
    /// Spin instead of sleeping: the clients, and a baseline that is started
    #[arg(long)]
    pub busy_poll: bool,
    /// Write the report to a file
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
}

/// Which client speaks to Forebay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// The blocking client of the `forebay` crate
    Blocking,
    /// The tokio client of the `forebay` crate, on a runtime of one thread
    Tokio,
    /// The hand-written client of the baselines, so that the broker alone differs
    Wire,
}

/// Which shard of Forebay the clients' connections are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attach {
    /// Whichever the system gave them
    Anywhere,
    /// The home of the (first) queue
    Home,
    /// Another than that, so that everything crosses
    Wrong,
}

/// A core, or wherever the system likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Core(pub Option<usize>);

fn parse_core(text: &str) -> Result<Core, String> {
    if text == "none" {
        return Ok(Core(None));
    }
    text.parse().map(|core| Core(Some(core))).map_err(|_| "a core's number, or `none`".into())
}

/// Arguments of `throughput`.
#[derive(Args, Clone, Serialize)]
pub struct ThroughputArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 4096))]
    pub producers: u64,
    /// Consumers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 4096))]
    pub consumers: u64,
    /// Connections that publish and wait for confirms; nobody consumes
    #[arg(long, value_name = "N", value_parser = count_parser(1, 4096),
          conflicts_with_all = ["producers", "consumers", "window", "batch"])]
    pub connections: Option<u64>,
    /// Messages that each of `--connections` has unconfirmed
    #[arg(long, value_name = "N", default_value_t = 1, requires = "connections",
          value_parser = count_parser(1, 4096))]
    pub in_flight: u64,
    /// Queues, used in turn: each with a producer and a consumer, on as few connections as may be
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 50_000),
          conflicts_with_all = ["producers", "consumers", "connections"])]
    pub queues: u64,
    /// Subscriptions of the queue, each with a consumer that gets every message
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 256),
          conflicts_with_all = ["queues", "consumers", "connections"])]
    pub subscriptions: u64,
    /// Size of a body
    #[arg(long, value_name = "SIZE", default_value = "128", value_parser = parse_body_bytes)]
    pub size: usize,
    /// Messages that are published together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count_parser(1, 8192))]
    pub batch: u64,
    /// Messages that a producer has unconfirmed at most
    #[arg(long, value_name = "N", default_value_t = 8192,
          value_parser = count_parser(1, 1_000_000))]
    pub window: u64,
    /// Messages of all producers that are sent and not received, at most; default 2 windows of
    /// each client
    #[arg(long, value_name = "N", value_parser = count_parser(1, 100_000_000))]
    pub backlog: Option<u64>,
    /// How long to measure, after the warm-up
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_run_time,
          conflicts_with = "count")]
    #[serde(serialize_with = "in_seconds")]
    pub duration: Duration,
    /// Measure so many messages in all, without a warm-up
    #[arg(long, value_name = "N", value_parser = count_parser(1, COUNT_MAX))]
    pub count: Option<u64>,
    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_warmup)]
    #[serde(serialize_with = "in_seconds")]
    pub warmup: Duration,
}

/// Arguments of `latency`.
#[derive(Args, Clone, Serialize)]
pub struct LatencyArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Messages per second, on a schedule that does not wait for answers
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = count_parser(1, 20_000_000))]
    pub rate: u64,
    /// Instead of a rate: the next message leaves when the last one came back
    #[arg(long, conflicts_with = "rate")]
    pub one_in_flight: bool,
    /// Size of a body
    #[arg(long, value_name = "SIZE", default_value = "128", value_parser = parse_body_bytes)]
    pub size: usize,
    /// Messages that are unconfirmed at most; what is due meanwhile waits, and its time counts
    #[arg(long, value_name = "N", default_value_t = 65_536,
          value_parser = count_parser(1, 1_000_000))]
    pub window: u64,
    /// How long to measure, after the warm-up
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub duration: Duration,
    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_warmup)]
    #[serde(serialize_with = "in_seconds")]
    pub warmup: Duration,
}

/// Arguments of `idle`.
#[derive(Args, Clone, Serialize)]
pub struct IdleArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Connections that do nothing
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = count_parser(0, 100_000))]
    pub connections: u64,
    /// Queues that stay empty; Forebay only
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = count_parser(0, 10_000_000))]
    pub queues: u64,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub duration: Duration,
}

/// Arguments of `compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// Targets, or NAME=ARGS for a Forebay with these arguments of `forebay serve`; ratios are to
    /// the first
    #[arg(long, value_name = "TARGET,...", value_delimiter = ',', value_parser = parse_aim,
          default_value = "baseline-relay,forebay")]
    pub targets: Vec<Aim>,
    /// How often each target runs
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=100))]
    pub repetitions: u64,
    /// Rounds that may be repeated because of steal over 2 % or foreign load over 5 %
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u64).range(0..=100))]
    pub repeats: u64,
    /// The measurement; its `--target` is set in turn, and its `--json` gets the comparison
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// One of the targets of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// What the comparison calls it.
    pub name: String,
    /// What it is.
    pub target: Target,
    /// More arguments for `forebay serve`.
    pub forebay_args: Vec<String>,
}

fn parse_aim(text: &str) -> Result<Aim, String> {
    if let Some((name, more)) = text.split_once('=') {
        let forebay_args = more.split_ascii_whitespace().map(str::to_owned).collect();
        return Ok(Aim { name: name.to_owned(), target: Target::Forebay, forebay_args });
    }
    let target = Target::from_str(text, false)?;
    Ok(Aim { name: text.to_owned(), target, forebay_args: Vec::new() })
}

/// Arguments of the hidden command.
#[derive(Args)]
pub struct ServeArgs {
    /// Which baseline
    #[arg(value_enum)]
    pub target: Target,
    /// Bytes of the relay's ring
    #[arg(long, default_value_t = 8 << 20)]
    pub ring_bytes: usize,
    /// Spin instead of sleeping
    #[arg(long)]
    pub busy_poll: bool,
    /// End after so many seconds, whatever happens
    #[arg(long, default_value_t = 3600)]
    pub lifetime_s: u64,
}

pub(crate) fn count_parser(
    least: u64,
    most: u64,
) -> impl clap::builder::TypedValueParser<Value = u64> {
    clap::value_parser!(u64).range(least..=most)
}

pub(crate) fn parse_body_bytes(text: &str) -> Result<usize, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    usize::try_from(bytes)
        .ok()
        .filter(|bytes| (BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(bytes))
        .ok_or_else(|| format!("must be {BODY_BYTES_MIN} to {BODY_BYTES_MAX} bytes"))
}

pub(crate) fn parse_run_time(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if time > DURATION_MAX { Err("must be at most 10m".into()) } else { Ok(time) }
}

pub(crate) fn parse_warmup(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if time > WARMUP_MAX { Err("must be at most 1m".into()) } else { Ok(time) }
}

pub(crate) fn in_seconds<S: serde::Serializer>(
    time: &Duration,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl Scenario {
    /// What all scenarios take.
    pub fn target(&self) -> &TargetArgs {
        match self {
            Scenario::Throughput(args) => &args.target,
            Scenario::Latency(args) => &args.target,
            Scenario::Idle(args) => &args.target,
            Scenario::Spike(args) => &args.target,
            Scenario::Backlog(args) => &args.target,
            Scenario::Disk(args) => &args.target,
            Scenario::Durable(args) => &args.target,
            Scenario::Restart(args) => &args.target,
        }
    }

    /// As [`Scenario::target`], to change it.
    pub fn target_mut(&mut self) -> &mut TargetArgs {
        match self {
            Scenario::Throughput(args) => &mut args.target,
            Scenario::Latency(args) => &mut args.target,
            Scenario::Idle(args) => &mut args.target,
            Scenario::Spike(args) => &mut args.target,
            Scenario::Backlog(args) => &mut args.target,
            Scenario::Disk(args) => &mut args.target,
            Scenario::Durable(args) => &mut args.target,
            Scenario::Restart(args) => &mut args.target,
        }
    }
}

/// Messages that fit one batch.
pub fn batch_max(body_bytes: usize) -> usize {
    (BATCH_RECORDS_BYTES_MAX / (RECORD_HEADER_BYTES + body_bytes)).min(BATCH_RECORDS_MAX)
}

const _: () = {
    assert!(50_000 <= PRODUCERS_MAX);
    assert!(DURATION_MAX.as_nanos() + WARMUP_MAX.as_nanos() < TIME_NS_MAX as u128);
    assert!(RUN_NS_MAX < TIME_NS_MAX);
    assert!(surge::RUN_NS_MAX < TIME_NS_MAX);
};

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_times_are_bounded() {
        assert_eq!(parse_body_bytes("1KiB"), Ok(1024));
        assert!(parse_body_bytes("15").is_err());
        assert!(parse_body_bytes("1MiB").is_err());
        assert!(parse_run_time("11m").is_err());
        assert_eq!(parse_core("none"), Ok(Core(None)));
        assert_eq!(parse_core("3"), Ok(Core(Some(3))));
        assert!(parse_core("x").is_err());
    }

    #[test]
    fn a_comparison_holds_a_scenario() {
        let line = ["x", "compare", "--repetitions", "2", "throughput", "--spawn", "--size", "16"];
        let Command::Compare(args) = Cli::parse_from(line).command else { panic!("another") };
        assert!(args.repetitions == 2 && args.scenario.target().spawn);
        let targets: Vec<Target> = args.targets.iter().map(|aim| aim.target).collect();
        assert_eq!(targets, [Target::BaselineRelay, Target::Forebay]);
    }

    #[test]
    fn a_comparison_may_be_of_one_broker_with_other_arguments() {
        let aim = parse_aim("small=--memory-limit=256MiB --disk-limit=1GiB").unwrap();
        assert_eq!((aim.name.as_str(), aim.target), ("small", Target::Forebay));
        assert_eq!(aim.forebay_args, ["--memory-limit=256MiB", "--disk-limit=1GiB"]);
        assert_eq!(parse_aim("baseline-disk-read").unwrap().target, Target::BaselineDiskRead);
        assert!(parse_aim("rabbit").is_err());
    }

    #[test]
    fn batches_fit_the_wire() {
        assert_eq!(batch_max(16), 8188);
        assert_eq!(batch_max(BODY_BYTES_MAX), 1);
    }
}
