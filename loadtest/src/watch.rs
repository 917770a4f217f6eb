//! Watches a target while a run goes on, in a thread of its own: its memory from `/proc`, and of a
//! Forebay also what it says it has in memory and on disk.

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

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
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
}

/// A broker that can be asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Where.
    pub server: SocketAddr,
    /// Whose spilled bytes count, where the broker has no sum.
    pub queue: String,
}

/// The thread; it ends with this.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Sample>>>,
}

impl Watch {
    /// Starts to look at process `pid`, and to ask a broker if one is given.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(clock: RunClock, pid: Option<u32>, asked: Option<Asked>) -> io::Result<Watch> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let look = move || {
            let mut link = asked.and_then(Link::connect);
            let mut samples = Vec::new();
            while !seen.load(Ordering::Relaxed) && samples.len() < SAMPLES_MAX {
                samples.extend(pid.and_then(|pid| sample(&clock, pid, &mut link)));
                std::thread::park_timeout(PAUSE);
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

struct Link {
    connection: Connection,
    queue: String,
}

impl Link {
    /// `None` if the broker does not answer: then only the process is watched.
    fn connect(asked: Asked) -> Option<Link> {
        let options = ConnectOptions {
            token: std::env::var("FOREBAY_TOKEN").ok(),
            reconnect: ReconnectPolicy::never(),
            ..ConnectOptions::new(asked.server.to_string())
        };
        let connection = Connection::open(&options).ok()?;
        Some(Link { connection, queue: asked.queue })
    }
}

fn sample(clock: &RunClock, pid: u32, link: &mut Option<Link>) -> Option<Sample> {
    let rss_bytes = ProcessUse::of(pid).ok()?.rss_bytes;
    let mut sample =
        Sample { s: clock.ns() as f64 / 1e9, rss_bytes, spilled_bytes: None, chunk_bytes: None };
    if let Some(Link { connection, queue }) = link {
        sample.chunk_bytes = connection.stats().ok().map(|stats| stats.memory_chunk_bytes);
        sample.spilled_bytes = connection.queue_describe(queue).ok().map(|it| it.spilled_bytes);
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

/// What resident memory grew by, per GiB of messages taken in, by least squares over the second
/// half of a fill: a target that keeps no more messages in memory by then shows what each spilled
/// one costs. `None` of too few samples, or if they do not grow.
pub fn growth_per_gib(samples: &[Sample], bytes_per_s: f64) -> Option<f64> {
    let late = &samples[samples.len() / 2..];
    if late.len() < 10 || bytes_per_s <= 0.0 {
        return None;
    }
    let count = late.len() as f64;
    let mean_s = late.iter().map(|sample| sample.s).sum::<f64>() / count;
    let mean_rss = late.iter().map(|sample| sample.rss_bytes as f64).sum::<f64>() / count;
    let (mut above, mut below) = (0.0, 0.0);
    for sample in late {
        above += (sample.s - mean_s) * (sample.rss_bytes as f64 - mean_rss);
        below += (sample.s - mean_s).powi(2);
    }
    (below > 0.0).then(|| above / below / bytes_per_s * (1_u64 << 30) as f64)
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
            Sample { s: nth as f64 * 0.5, rss_bytes, spilled_bytes, chunk_bytes: None }
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
    fn growth_is_that_of_the_second_half() {
        // 1 GiB/s comes in; first all of it stays, then 100 kB of each GiB.
        let samples = series(|nth| match nth {
            0..40 => (nth as u64 * (1 << 29), None),
            _ => (20 << 30 | (nth as u64 * 50_000), None),
        });
        let growth = growth_per_gib(&samples, (1_u64 << 30) as f64).unwrap();
        assert!((growth / 100_000.0 - 1.0).abs() < 0.01, "{growth}");
        assert_eq!(growth_per_gib(&samples[..10], 1e9), None);
        assert!(thinned(&samples).len() == 100);
    }

    #[test]
    fn a_process_is_watched_until_it_is_enough() {
        let watch = Watch::start(RunClock::start(), Some(std::process::id()), None).unwrap();
        std::thread::park_timeout(Duration::from_millis(20));
        let samples = watch.finish();
        assert!(!samples.is_empty() && samples[0].rss_bytes > 0);
    }
}
