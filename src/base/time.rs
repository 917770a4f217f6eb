//! Time as two types that cannot be mixed: monotonic for leases and timeouts, wall for what people
//! and other machines read. The core takes both as arguments and never asks for them.

use std::time::Duration;

/// Monotonic time, in nanoseconds since some start. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

/// Wall clock, in microseconds since 1970-01-01 UTC. May jump either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wall(pub u64);

/// One reading of both clocks; a tick takes one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic reading.
    pub mono: Mono,
    /// Wall reading.
    pub wall: Wall,
}

impl Mono {
    /// This time and `ms` milliseconds more; saturates.
    pub fn plus_ms(self, ms: u64) -> Mono {
        Mono(self.0.saturating_add(ms.saturating_mul(1_000_000)))
    }

    /// What is left until `self`, zero if it has passed.
    pub fn after(self, now: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(now.0))
    }

    /// Milliseconds since `earlier`, zero if it lies ahead.
    pub fn ms_since(self, earlier: Mono) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}
