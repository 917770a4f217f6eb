//! The one clock of the load test.

use std::time::{Duration, Instant};

/// The monotonic time now.
#[inline]
#[expect(clippy::disallowed_methods, reason = "the one clock function of this program")]
pub fn now() -> Instant {
    Instant::now()
}

/// Nanoseconds since a run began.
#[derive(Clone, Copy)]
pub struct RunClock {
    start: Instant,
}

impl RunClock {
    /// Begins now.
    pub fn start() -> RunClock {
        RunClock { start: now() }
    }

    /// Nanoseconds since then.
    #[inline]
    pub fn ns(&self) -> u64 {
        now().saturating_duration_since(self.start).as_nanos() as u64
    }
}

/// A duration in nanoseconds; the arguments keep them far below 64 bits.
pub fn as_ns(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
