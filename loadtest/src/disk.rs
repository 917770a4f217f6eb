//! The bare disk: O_DIRECT writes or reads of the size that the broker uses, a few at a time, from
//! aligned huge pages, on blocks of a file that were written before. What a spill reaches of it is
//! the broker's own work.
//!
//! A few threads with one `pwrite` or `pread` each: at 1 MiB the device is the limit from two on.

use crate::clock::{RunClock, as_ns};
use crate::report::{Latencies, LatencyFigures};
use crate::run::Interrupt;
use crate::sys::{self, PageBuffer};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// What O_DIRECT wants offsets, sizes and memory to be a multiple of.
pub const ALIGN_BYTES: u64 = 4096;
/// The file is written in pieces of this, before it is measured.
const PREPARE_BYTES: u64 = 1 << 20;

/// A kind of transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskWork {
    /// A read.
    Read,
    /// A write, which the device may keep when it likes.
    Write,
    /// A write that the device has kept when it ends.
    Sync,
}

/// What to do to the disk.
#[derive(Clone, Debug)]
pub struct DiskPlan {
    /// Of what kind the transfers are.
    pub work: DiskWork,
    /// Of one transfer.
    pub io_bytes: u64,
    /// Transfers under way.
    pub depth: usize,
    /// In all, whole transfers.
    pub bytes: u64,
    /// Of the file, which is gone through again and again.
    pub file_bytes: u64,
    /// Blocks that were allocated and never written, each once.
    pub fresh: bool,
    /// The file, kept and used again; else a temporary one.
    pub file: Option<PathBuf>,
    /// Ends after so long, whatever was done.
    pub time_max: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct DiskFigures {
    /// Transfers.
    pub transfers: u64,
    /// How long they took together.
    pub seconds: f64,
    /// Of each.
    pub latency: LatencyFigures,
}

/// Does it.
///
/// # Errors
/// As the system says; `InvalidData` if what is read was never written.
pub fn run(plan: &DiskPlan, interrupt: &Interrupt) -> io::Result<DiskFigures> {
    let temporary;
    let path = match &plan.file {
        Some(path) => path.clone(),
        None => {
            temporary = TempDir::with_prefix("forebay-loadtest-")?;
            temporary.path().join("disk")
        }
    };
    let mut file = prepare(plan, &path, interrupt)?;
    if plan.work == DiskWork::Sync {
        file = reopened(&path)?;
    }
    let clock = RunClock::start();
    let next = AtomicU64::new(0);
    let workers = || -> io::Result<Latencies> {
        std::thread::scope(|scope| {
            let work = || work(plan, &file, &clock, &next, interrupt);
            let threads: Vec<_> = (0..plan.depth).map(|_| scope.spawn(work)).collect();
            let mut latencies = Latencies::default();
            for thread in threads {
                let died = |_| io::Error::other("a thread of the disk died");
                latencies.add(&thread.join().map_err(died)??);
            }
            Ok(latencies)
        })
    };
    let latencies = workers()?;
    let seconds = clock.ns() as f64 / 1e9;
    interrupt.check()?;
    Ok(DiskFigures { transfers: latencies.count(), seconds, latency: latencies.figures() })
}

/// The file, with blocks that were written, or at least allocated where they are to be fresh.
fn prepare(plan: &DiskPlan, path: &PathBuf, interrupt: &Interrupt) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(plan.fresh);
    let file = options.custom_flags(libc::O_DIRECT).open(path)?;
    if file.metadata()?.len() >= plan.file_bytes {
        return Ok(file);
    }
    sys::allocate(&file, plan.file_bytes)?;
    if !plan.fresh {
        let mut buffer = PageBuffer::new(PREPARE_BYTES as usize)?;
        fill(&mut buffer);
        for offset in (0..plan.file_bytes).step_by(PREPARE_BYTES as usize) {
            interrupt.check()?;
            let bytes = PREPARE_BYTES.min(plan.file_bytes - offset) as usize;
            file.write_all_at(&buffer[..bytes], offset)?;
        }
    }
    file.sync_all()?;
    Ok(file)
}

/// The same file, every write to which is as one with RWF_DSYNC.
fn reopened(path: &PathBuf) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(path)
}

/// Bytes that no device compresses away; none of its words is zero.
fn fill(buffer: &mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in buffer.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn work(
    plan: &DiskPlan,
    file: &File,
    clock: &RunClock,
    next: &AtomicU64,
    interrupt: &Interrupt,
) -> io::Result<Latencies> {
    let mut buffer = PageBuffer::new(plan.io_bytes as usize)?;
    fill(&mut buffer);
    let mut latencies = Latencies::default();
    let (transfers, places) = (plan.bytes / plan.io_bytes, plan.file_bytes / plan.io_bytes);
    loop {
        let nth = next.fetch_add(1, Ordering::Relaxed);
        let begin_ns = clock.ns();
        let over = nth >= transfers || begin_ns > as_ns(plan.time_max);
        if over || interrupt.check().is_err() {
            return Ok(latencies);
        }
        let offset = nth % places * plan.io_bytes;
        if plan.work != DiskWork::Read {
            file.write_all_at(&buffer, offset)?;
        } else {
            buffer[..8].fill(0);
            file.read_exact_at(&mut buffer, offset)?;
            if buffer[..8] == [0; 8] {
                let text = "the disk read blocks that were never written: another --disk-file";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        latencies.record(clock.ns() - begin_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(work: DiskWork) -> DiskPlan {
        DiskPlan {
            work,
            io_bytes: 8192,
            depth: 3,
            bytes: 20 * 8192,
            file_bytes: 7 * 8192,
            fresh: false,
            file: None,
            time_max: Duration::from_secs(60),
        }
    }

    #[test]
    fn whole_transfers_are_made_until_the_bytes_are() {
        for work in [DiskWork::Write, DiskWork::Read, DiskWork::Sync] {
            let figures = run(&plan(work), &Interrupt::default()).unwrap();
            assert_eq!(figures.transfers, 20);
            assert!(figures.seconds > 0.0 && figures.latency.p50_us.is_some());
        }
    }

    #[test]
    fn a_named_file_is_kept_and_reading_what_was_never_written_is_an_error() {
        let directory = TempDir::new().unwrap();
        let file = directory.path().join("kept");
        let named = |work| DiskPlan { file: Some(file.clone()), ..plan(work) };
        run(&named(DiskWork::Write), &Interrupt::default()).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 7 * 8192);
        run(&named(DiskWork::Read), &Interrupt::default()).unwrap();
        let fresh = DiskPlan { fresh: true, bytes: 8192, ..named(DiskWork::Write) };
        run(&fresh, &Interrupt::default()).unwrap();
        let error = run(&named(DiskWork::Read), &Interrupt::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
