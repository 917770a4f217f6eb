//! Arguments of the scenarios about durable queues.

use crate::args::backlog::parse_total_bytes;
use crate::args::{
    TargetArgs, ThroughputArgs, count_parser, in_seconds, parse_body_bytes, parse_run_time,
    parse_warmup,
};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `durable`.
#[derive(Args, Clone, Serialize)]
pub struct DurableArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 4096))]
    pub producers: u64,
    /// Take and ack all of it too, by one consumer for each queue; else it is only confirmed
    #[arg(long)]
    pub consume: bool,
    /// Queues, used in turn: each with a producer, on as few connections as may be
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 50_000),
          conflicts_with = "producers")]
    pub queues: u64,
    /// One message at a time: the next leaves when the last one is confirmed. The latencies are
    /// those of the confirms
    #[arg(long, conflicts_with_all = ["producers", "queues", "consume", "batch", "window"])]
    pub one_in_flight: bool,
    /// Size of a body
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = parse_body_bytes)]
    pub size: usize,
    /// Messages that are published together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count_parser(1, 8192))]
    pub batch: u64,
    /// Messages that a producer has unconfirmed at most
    #[arg(long, value_name = "N", default_value_t = 10_000,
          value_parser = count_parser(1, 1_000_000))]
    pub window: u64,
    /// How long to measure, after the warm-up
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = parse_run_time,
          conflicts_with = "count")]
    #[serde(serialize_with = "in_seconds")]
    pub duration: Duration,
    /// Measure so many messages in all, without a warm-up
    #[arg(long, value_name = "N", value_parser = count_parser(1, 10_000_000_000))]
    pub count: Option<u64>,
    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_warmup)]
    #[serde(serialize_with = "in_seconds")]
    pub warmup: Duration,
    /// baseline-disk-sync: the file, kept and used again; else a temporary one
    #[arg(long, value_name = "PATH")]
    pub disk_file: Option<PathBuf>,
}

impl DurableArgs {
    /// The same load for the scenario `throughput`.
    pub fn load(&self) -> ThroughputArgs {
        let single = self.one_in_flight.then_some(1);
        ThroughputArgs {
            target: self.target.clone(),
            producers: self.producers,
            consumers: u64::from(self.consume),
            connections: None,
            in_flight: 1,
            queues: self.queues,
            subscriptions: 1,
            size: self.size,
            batch: single.unwrap_or(self.batch),
            window: single.unwrap_or(self.window),
            backlog: None,
            duration: self.duration,
            count: self.count,
            warmup: self.warmup,
        }
    }
}

/// Arguments of `restart`.
#[derive(Args, Clone, Serialize)]
pub struct RestartArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Bytes of bodies that are confirmed, and not acked, when the broker is killed
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = parse_total_bytes)]
    pub journal_bytes: u64,
    /// Messages that are published behind them: the broker is killed when half of them are on
    /// their way
    #[arg(long, value_name = "N", default_value_t = 20_000,
          value_parser = count_parser(2, 100_000_000))]
    pub more: u64,
    /// Size of a body
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = parse_body_bytes)]
    pub size: usize,
    /// Messages that are published together
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count_parser(1, 8192))]
    pub batch: u64,
}

#[cfg(test)]
mod tests {
    use crate::args::{Cli, Command, Scenario};
    use clap::Parser;

    #[test]
    fn one_in_flight_is_one() {
        let line = ["x", "durable", "--spawn", "--one-in-flight"];
        let Command::Scenario(Scenario::Durable(args)) = Cli::parse_from(line).command else {
            panic!("another")
        };
        let load = args.load();
        assert_eq!((load.batch, load.window, load.producers, load.consumers), (1, 1, 1, 0));
        assert_eq!(load.size, 1024);
    }
}
