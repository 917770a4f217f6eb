//! Whether the broker is ready, and if not, why: where it is in its life, and whether its data
//! directory can be written, with hysteresis, so that one slow moment of a disk turns nothing red
//! and one good moment of a bad one nothing green.

use crate::base::time::Mono;
use crate::limits::{PROBE_HUNG_MS, PROBE_ROUNDS};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where the broker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Not all shards serve yet.
    Starting = 0,
    /// It serves.
    Serving = 1,
    /// It was told to end.
    Draining = 2,
}

/// See the module. Shared between those who know and those who ask.
#[derive(Debug, Default)]
pub struct Health {
    phase: AtomicU8,
    disk: Mutex<DiskHealth>,
}

impl Health {
    /// Where the broker is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    /// It has come so far; it never goes back.
    pub fn enter(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    /// What the probes found; nobody keeps it longer than a few instructions.
    pub(super) fn disk(&self) -> MutexGuard<'_, DiskHealth> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether clients should come, at `now`.
    ///
    /// # Errors
    /// Why not, in one line.
    pub(super) fn readiness(&self, now: Mono) -> Result<(), String> {
        match self.phase() {
            Phase::Starting => Err("starting: not all shards serve yet".to_owned()),
            Phase::Draining => Err("draining: the broker was told to end".to_owned()),
            Phase::Serving => self.disk().state(now),
        }
    }
}

/// Red after so many failures in a row, green after so many successes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    red: bool,
    /// Outcomes in a row that contradict it.
    against: u32,
}

impl Verdict {
    /// An outcome. True if the verdict turned.
    pub fn note(&mut self, good: bool) -> bool {
        if good != self.red {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let turned = self.against >= PROBE_ROUNDS;
        if turned {
            *self = Verdict { red: !self.red, against: 0 };
        }
        turned
    }
}

/// What the probes of the data directory found.
#[derive(Debug, Default)]
pub(super) struct DiskHealth {
    verdict: Verdict,
    /// Since when a probe is under way.
    began: Option<Mono>,
    /// Of the last failure.
    reason: String,
    /// Probes that have ended.
    pub rounds: u64,
    /// Of these, that failed.
    pub failures: u64,
}

impl DiskHealth {
    /// A probe begins.
    pub fn begin(&mut self, now: Mono) {
        self.began = Some(now);
    }

    /// It has ended. True if the verdict turned.
    pub fn end(&mut self, now: Mono, outcome: Result<(), String>) -> bool {
        let hung_ms = self.hung_ms(now);
        let before = self.verdict.red;
        if hung_ms.is_some() {
            // As long as several; what it ended with is one more.
            self.verdict = Verdict { red: true, against: 0 };
        }
        self.began = None;
        self.rounds += 1;
        self.verdict.note(outcome.is_ok());
        if let Err(reason) = outcome {
            self.failures += 1;
            self.reason = reason;
        } else if let Some(ms) = hung_ms {
            self.reason = format!("a write took {} s", ms / 1000);
        }
        self.verdict.red != before
    }

    /// Whether the data directory can be written.
    ///
    /// # Errors
    /// Why not, in one line.
    pub fn state(&self, now: Mono) -> Result<(), String> {
        let why = match self.hung_ms(now) {
            Some(ms) => format!("a write has not ended for {} s", ms / 1000),
            None if self.verdict.red => self.reason.clone(),
            None => return Ok(()),
        };
        Err(format!("writing to the data directory fails: {why}"))
    }

    /// Milliseconds that the probe under way has taken, if that is too long.
    fn hung_ms(&self, now: Mono) -> Option<u64> {
        let ms = now.ms_since(self.began?);
        (ms >= PROBE_HUNG_MS).then_some(ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono(0).plus_ms(ms)
    }

    fn probe(disk: &mut DiskHealth, now: u64, good: bool) -> bool {
        disk.begin(at(now));
        let outcome = if good { Ok(()) } else { Err(format!("failed at {now}")) };
        disk.end(at(now), outcome)
    }

    #[test]
    fn it_takes_three_in_a_row_to_turn_either_way() {
        let mut disk = DiskHealth::default();
        for (now, good, turned) in [
            (0, false, false),
            (1, false, false),
            (2, true, false),
            (3, false, false),
            (4, false, false),
            (5, false, true),
            (6, true, false),
            (7, true, false),
            (8, false, false),
            (9, true, false),
            (10, true, false),
            (11, true, true),
        ] {
            assert_eq!(probe(&mut disk, now, good), turned, "at {now}");
            let red = (5..11).contains(&now);
            assert_eq!(disk.state(at(now)).is_err(), red, "at {now}");
        }
        assert_eq!((disk.rounds, disk.failures), (12, 6));
    }

    #[test]
    fn it_says_what_failed_last() {
        let mut disk = DiskHealth::default();
        (0..4).for_each(|now| assert_eq!(probe(&mut disk, now, false), now == 2));
        let why = disk.state(at(4)).unwrap_err();
        assert_eq!(why, "writing to the data directory fails: failed at 3");
    }

    #[test]
    fn a_write_that_hangs_is_red_before_it_ends_and_takes_three_to_forget() {
        let mut disk = DiskHealth::default();
        disk.begin(at(1000));
        assert_eq!(disk.state(at(1000 + PROBE_HUNG_MS - 1)), Ok(()));
        let why = disk.state(at(1000 + PROBE_HUNG_MS)).unwrap_err();
        assert!(why.contains("has not ended for 15 s"), "{why}");
        assert!(disk.end(at(30_000), Ok(())));
        assert!(disk.state(at(30_001)).unwrap_err().contains("took 29 s"));
        assert!(!probe(&mut disk, 30_001, true));
        assert!(probe(&mut disk, 30_002, true));
        assert_eq!(disk.state(at(30_002)), Ok(()));
    }

    #[test]
    fn it_is_ready_only_while_it_serves() {
        let health = Health::default();
        assert!(health.readiness(at(0)).unwrap_err().starts_with("starting"));
        health.enter(Phase::Serving);
        assert_eq!(health.readiness(at(0)), Ok(()));
        (0..3).for_each(|now| assert_eq!(probe(&mut health.disk(), now, false), now == 2));
        assert!(health.readiness(at(0)).unwrap_err().contains("failed at 2"));
        health.enter(Phase::Draining);
        // A broker that was told to end while it started does not serve after all.
        health.enter(Phase::Serving);
        assert!(health.readiness(at(0)).unwrap_err().starts_with("draining"));
    }
}
