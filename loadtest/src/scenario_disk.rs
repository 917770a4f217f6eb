//! The disk alone, for the ratios of what a spill reaches of it.

use crate::args::backlog::{BacklogArgs, DiskArgs};
use crate::args::durable::DurableArgs;
use crate::clock::RunClock;
use crate::connect::unfit;
use crate::disk::{self, DiskFigures, DiskPlan, DiskWork};
use crate::report::UseSample;
use crate::run::{Interrupt, Outcome};
use crate::targets::Target;
use std::io;
use std::time::Duration;

/// As the broker does it by default.
const SLOT_BYTES: u64 = 1 << 20;
const DEPTH: usize = 4;
/// Bytes and number of groups that are written and kept at a time.
const GROUPS: (u64, usize) = (64 << 10, 4);
/// The file that stands for a journal's.
const SYNCED_FILE_BYTES: u64 = 1 << 30;
/// The file that stands for a backlog's is not larger than this.
const FILE_BYTES_MAX: u64 = 4 << 30;
/// A backlog's worth of transfers takes no longer.
const TIME_MAX: Duration = Duration::from_secs(120);

/// The scenario `disk`.
///
/// # Errors
/// If the target is no disk, or the disk fails.
pub fn run(args: &DiskArgs, interrupt: &Interrupt) -> io::Result<Outcome> {
    let target = args.target.target;
    if !target.is_disk() {
        return Err(unfit("disk wants --target baseline-disk-write, -read or -sync"));
    }
    if args.fresh && target == Target::BaselineDiskRead {
        return Err(unfit("what was never written cannot be read: --fresh is for writes"));
    }
    let plan = DiskPlan {
        work: work_of(target),
        io_bytes: args.size,
        depth: args.depth as usize,
        bytes: args.bytes,
        file_bytes: if args.fresh { args.bytes } else { args.file_bytes.min(args.bytes) },
        fresh: args.fresh,
        file: args.disk_file.clone(),
        time_max: args.duration,
    };
    if plan.bytes < plan.io_bytes || plan.file_bytes < plan.io_bytes {
        return Err(io::Error::other("--bytes and --file-bytes must be one transfer at least"));
    }
    let (figures, outcome) = measured(&plan, interrupt)?;
    let body_bytes = plan.io_bytes as usize;
    Ok(Outcome { messages: figures.transfers, body_bytes, latency: figures.latency, ..outcome })
}

/// What a disk can do for the scenario `backlog`: as many bytes, as the broker moves them; counted
/// in messages of the size asked for.
///
/// # Errors
/// If the disk fails.
pub fn run_backlog(args: &BacklogArgs, interrupt: &Interrupt) -> io::Result<Outcome> {
    let bytes = args.bytes.next_multiple_of(SLOT_BYTES);
    let plan = DiskPlan {
        work: work_of(args.target.target),
        io_bytes: SLOT_BYTES,
        depth: DEPTH,
        bytes,
        file_bytes: bytes.min(FILE_BYTES_MAX),
        fresh: false,
        file: args.disk_file.clone(),
        time_max: TIME_MAX,
    };
    let (figures, mut outcome) = measured(&plan, interrupt)?;
    let messages = figures.transfers * SLOT_BYTES / args.size as u64;
    if plan.work != DiskWork::Read {
        outcome.messages = messages;
    } else {
        let rate = messages as f64 / figures.seconds;
        outcome.more.insert("drain_messages_per_s".into(), rate.into());
        let rate = (figures.transfers * SLOT_BYTES) as f64 / figures.seconds;
        outcome.more.insert("drain_bytes_per_s".into(), rate.into());
    }
    Ok(Outcome { body_bytes: args.size, ..outcome })
}

/// What a disk can do for the scenario `durable`: groups as large as a journal's under load, as
/// many at a time as the device likes best; or the smallest, one after the other.
///
/// # Errors
/// If the disk fails, or is not asked for writes that are kept.
pub fn run_durable(args: &DurableArgs, interrupt: &Interrupt) -> io::Result<Outcome> {
    if args.target.target != Target::BaselineDiskSync || args.consume {
        return Err(unfit("of the disks only baseline-disk-sync, and nobody consumes"));
    }
    let (io_bytes, depth) = if args.one_in_flight { (disk::ALIGN_BYTES, 1) } else { GROUPS };
    let plan = DiskPlan {
        work: DiskWork::Sync,
        io_bytes,
        depth,
        bytes: u64::MAX,
        file_bytes: SYNCED_FILE_BYTES,
        fresh: false,
        file: args.disk_file.clone(),
        time_max: args.duration,
    };
    let (figures, outcome) = measured(&plan, interrupt)?;
    let messages = match args.one_in_flight {
        true => figures.transfers,
        false => figures.transfers * io_bytes / args.size as u64,
    };
    Ok(Outcome { messages, body_bytes: args.size, latency: figures.latency, ..outcome })
}

fn work_of(target: Target) -> DiskWork {
    match target {
        Target::BaselineDiskWrite => DiskWork::Write,
        Target::BaselineDiskSync => DiskWork::Sync,
        _ => DiskWork::Read,
    }
}

/// Processor time of the transfers, and of making the file before, is this program's own.
fn measured(plan: &DiskPlan, interrupt: &Interrupt) -> io::Result<(DiskFigures, Outcome)> {
    let clock = RunClock::start();
    let first = UseSample::take(clock.ns(), None)?;
    let figures = disk::run(plan, interrupt)?;
    let last = UseSample::take(clock.ns(), None)?;
    let outcome = Outcome {
        seconds: figures.seconds,
        processors: first.until(&last, 0),
        ..Outcome::default()
    };
    Ok((figures, outcome))
}
