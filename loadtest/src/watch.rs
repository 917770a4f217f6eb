//! Watches a target while a run goes on, in a thread of its own: its memory from `/proc`, and of a
//! Forebay also what it says it has in memory and on disk.

pub mod journal;

use crate::clock::RunClock;
use crate::proc::ProcessUse;
use forebay::client::{ConnectOptions, Connection, ReconnectPolicy};
use serde::Serialize;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks, at least.
const PAUSE: Duration = Duration::from_millis(50);
/// So many times as long as a look took: a broker with many queues works for an answer.
const PAUSE_LOOKS: u32 = 20;
/// Between two looks, at most.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Looks of one run; it is over before.
const SAMPLES_MAX: usize = 50_000;
/// Samples that a report shows.
const SHOWN_MAX: usize = 300;

/// One look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// In seconds of the run.
    pub s: f64,
    /// Resident memory of the target.
    pub rss_bytes: u64,
    /// Message bytes that it has on disk only, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spilled_bytes: Option<u64>,
    /// Memory that holds messages, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_bytes: Option<u64>,
    /// All other memory that it charges to its limit, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_bytes: Option<u64>,
}

/// The thread; it ends with this.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Sample>>>,
}

impl Watch {
    /// Starts to look at process `pid`, and to ask the broker at `server` if one is given.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(
        clock: RunClock,
        pid: Option<u32>,
        server: Option<SocketAddr>,
    ) -> io::Result<Watch> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let look = move || {
            let mut link = server.and_then(connect);
            let mut samples = Vec::new();
            while !seen.load(Ordering::Relaxed) && samples.len() < SAMPLES_MAX {
                let start_ns = clock.ns();
                samples.extend(pid.and_then(|pid| sample(&clock, pid, &mut link)));
                let took = Duration::from_nanos(clock.ns() - start_ns);
                std::thread::park_timeout((took * PAUSE_LOOKS).clamp(PAUSE, PAUSE_MAX));
            }
            samples
        };
        let thread = std::thread::Builder::new().name("watch".into()).spawn(look)?;
        Ok(Watch { stop, thread: Some(thread) })
    }

    /// Ends it; what it saw.
    pub fn finish(mut self) -> Vec<Sample> {
        self.join()
    }

    fn join(&mut self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Vec::new() };
        thread.thread().unpark();
        thread.join().unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.join();
    }
}

/// `None` if the broker does not answer: then only the process is watched.
fn connect(server: SocketAddr) -> Option<Connection> {
    let options = ConnectOptions {
        token: std::env::var("FOREBAY_TOKEN").ok(),
        reconnect: ReconnectPolicy::never(),
        ..ConnectOptions::new(server.to_string())
    };
    Connection::open(&options).ok()
}

fn sample(clock: &RunClock, pid: u32, link: &mut Option<Connection>) -> Option<Sample> {
    let rss_bytes = ProcessUse::of(pid).ok()?.rss_bytes;
    let mut sample = Sample { s: clock.ns() as f64 / 1e9, rss_bytes, ..Sample::default() };
    if let Some(stats) = link.as_mut().and_then(|link| link.stats().ok()) {
        let chunk_bytes = stats.memory_chunk_bytes;
        sample.spilled_bytes = Some(stats.spilled_bytes);
        sample.chunk_bytes = Some(chunk_bytes);
        sample.other_bytes = Some(stats.memory_used_bytes.saturating_sub(chunk_bytes));
    }
    Some(sample)
}

/// Nanoseconds of the run at which the target was last seen without anything on disk, at or after
/// `start_ns`, before it had something there. `None` if it never had.
pub fn spill_started(samples: &[Sample], start_ns: u64) -> Option<u64> {
    let spills = |sample: &Sample| sample.spilled_bytes.is_some_and(|bytes| bytes > 0);
    let ns = |sample: &Sample| (sample.s * 1e9) as u64;
    let later = samples.partition_point(|sample| ns(sample) < start_ns);
    let first = later + samples[later..].iter().position(spills)?;
    Some(samples[..first].last().map_or(start_ns, ns).max(start_ns))
}

/// As many as a report shows, evenly spread.
pub fn thinned(samples: &[Sample]) -> Vec<Sample> {
    let step = samples.len().div_ceil(SHOWN_MAX).max(1);
    samples.iter().step_by(step).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(of: impl Fn(usize) -> (u64, Option<u64>)) -> Vec<Sample> {
        let sample = |nth| {
            let (rss_bytes, spilled_bytes) = of(nth);
            Sample { s: nth as f64 * 0.5, rss_bytes, spilled_bytes, ..Sample::default() }
        };
        (0..100).map(sample).collect()
    }

    #[test]
    fn a_spill_starts_when_it_was_last_not_seen() {
        let samples = series(|nth| (1, Some(if nth >= 20 { 5 } else { 0 })));
        assert_eq!(spill_started(&samples, 0), Some(9_500_000_000));
        assert_eq!(spill_started(&samples, 12_000_000_000), Some(12_000_000_000));
        assert_eq!(spill_started(&series(|_| (1, Some(0))), 0), None);
        assert_eq!(spill_started(&series(|_| (1, None)), 0), None);
        assert_eq!(spill_started(&[], 0), None);
    }

    #[test]
    fn a_report_shows_some_of_many() {
        let samples = series(|nth| (nth as u64, None)).repeat(7);
        assert_eq!(thinned(&samples).len(), 234);
        assert_eq!(thinned(&samples[..100]), samples[..100]);
    }

    #[test]
    fn a_process_is_watched_until_it_is_enough() {
        let watch = Watch::start(RunClock::start(), Some(std::process::id()), None).unwrap();
        std::thread::park_timeout(Duration::from_millis(20));
        let samples = watch.finish();
        assert!(!samples.is_empty() && samples[0].rss_bytes > 0);
    }
}
