//! Arguments of the scenarios about backlogs and the disk below them.

use crate::args::{TargetArgs, count_parser, in_seconds, parse_body_bytes, parse_run_time};
use crate::disk::ALIGN_BYTES;
use clap::Args;
use forebay::base::units::parse_bytes;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Most bytes of a backlog, or that go to and from a disk.
const BYTES_MAX: u64 = 1 << 40;
/// Largest transfer.
const IO_BYTES_MAX: u64 = 64 << 20;
/// Slowest drain per second: so slow, what is delivered and waits keeps its lease.
const DRAIN_MIN: u64 = 100;

/// Arguments of `spike`.
#[derive(Args, Clone, Serialize)]
pub struct SpikeArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Messages per second before, while draining and after; on a schedule that waits for nothing
    #[arg(long, value_name = "N", default_value_t = 50_000,
          value_parser = count_parser(1, 5_000_000))]
    pub rate: u64,
    /// Messages per second that consumers take at most, all together
    #[arg(long, value_name = "N", default_value_t = 200_000,
          value_parser = count_parser(DRAIN_MIN, 20_000_000))]
    pub drain: u64,
    /// The burst is so many times the drain
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = count_parser(2, 100))]
    pub burst: u64,
    /// How long the burst is
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub burst_time: Duration,
    /// How long the steady rate is before it
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub before: Duration,
    /// How long it is after the drain
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub after: Duration,
    /// How long to watch memory when all is over
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub idle: Duration,
    /// A burst and its drain before all this, so that memory and blocks on disk were used before
    #[arg(long)]
    pub warm: bool,
    /// Consumers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 4096))]
    pub consumers: u64,
    /// Size of a body
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = parse_body_bytes)]
    pub size: usize,
    /// Messages that are unconfirmed at most; what is due meanwhile waits, and its time counts
    #[arg(long, value_name = "N", default_value_t = 65_536,
          value_parser = count_parser(1, 1_000_000))]
    pub window: u64,
}

/// Arguments of `backlog`.
#[derive(Args, Clone, Serialize)]
pub struct BacklogArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Bytes of bodies to fill in while nobody consumes
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_total_bytes)]
    pub bytes: u64,
    /// Producers that fill, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count_parser(1, 4096))]
    pub producers: u64,
    /// Consumers that drain, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 4096))]
    pub consumers: u64,
    /// Queues, used in turn: each with a producer and a consumer, on as few connections as may be
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count_parser(1, 50_000),
          conflicts_with_all = ["producers", "consumers"])]
    pub queues: u64,
    /// Size of a body
    #[arg(long, value_name = "SIZE", default_value = "1KiB", value_parser = parse_body_bytes)]
    pub size: usize,
    /// Messages that are published together while filling
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = count_parser(1, 8192))]
    pub batch: u64,
    /// Messages that a filling producer has unconfirmed at most
    #[arg(long, value_name = "N", default_value_t = 8192,
          value_parser = count_parser(1, 1_000_000))]
    pub window: u64,
    /// Fill and drain once before, so that memory and blocks on disk were used before
    #[arg(long)]
    pub warm: bool,
    /// Messages per second that one more producer publishes all the while, on a schedule that waits
    /// for nothing; its latency is what is reported
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = count_parser(0, 5_000_000))]
    pub rate: u64,
    /// Messages per second that consumers take at most, all together; else all they can get
    #[arg(long, value_name = "N", value_parser = count_parser(DRAIN_MIN, 20_000_000))]
    pub drain: Option<u64>,
    /// With --rate: how long it publishes alone, with nobody consuming, before the fill
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub before: Duration,
    /// With --rate: how long it goes on after the drain
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub after: Duration,
    /// How long to watch memory when all is over
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub idle: Duration,
    /// baseline-disk-*: the file, kept and used again; else a temporary one
    #[arg(long, value_name = "PATH")]
    pub disk_file: Option<PathBuf>,
}

/// Arguments of `disk`.
#[derive(Args, Clone, Serialize)]
pub struct DiskArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub target: TargetArgs,
    /// Size of one transfer, a multiple of 4 KiB
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_io_bytes)]
    pub size: u64,
    /// Transfers under way
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = count_parser(1, 64))]
    pub depth: u64,
    /// How much to write or read
    #[arg(long, value_name = "SIZE", default_value = "4GiB", value_parser = parse_total_bytes)]
    pub bytes: u64,
    /// Size of the file, which is gone through again and again
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_total_bytes)]
    pub file_bytes: u64,
    /// Write blocks that were allocated and never written, each once
    #[arg(long, conflicts_with = "file_bytes")]
    pub fresh: bool,
    /// The file, kept and used again; else a temporary one
    #[arg(long, value_name = "PATH")]
    pub disk_file: Option<PathBuf>,
    /// End after so long, whatever was done
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_run_time)]
    #[serde(serialize_with = "in_seconds")]
    pub duration: Duration,
}

pub(crate) fn parse_total_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if (1..=BYTES_MAX).contains(&bytes) { Ok(bytes) } else { Err("must be 1 to 1 TiB".into()) }
}

fn parse_io_bytes(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    if bytes.is_multiple_of(ALIGN_BYTES) && (1..=IO_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("must be a multiple of 4 KiB, at most 64 MiB".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_whole_blocks() {
        assert_eq!(parse_io_bytes("64KiB"), Ok(65_536));
        assert!(parse_io_bytes("4097").is_err());
        assert!(parse_io_bytes("0").is_err());
        assert!(parse_io_bytes("128MiB").is_err());
        assert!(parse_total_bytes("2TiB").is_err());
        assert_eq!(parse_total_bytes("10GiB"), Ok(10 << 30));
    }
}
