//! The real clock: both readings at once.

use crate::base::time::{Mono, Now, Wall};
use crate::io::Clock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time counts from when it was made; copies count from there too.
#[derive(Clone, Copy)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody is given")]
    fn default() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everybody is given")]
    fn now(&mut self) -> Now {
        let mono = Mono(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        // A wall clock before 1970 reads as 1970: due times and stamps stay ordered.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono, wall: Wall(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_never_goes_back_and_the_wall_is_of_this_century() {
        let mut clock = SystemClock::default();
        let mut last = clock.now();
        for _ in 0..1000 {
            let now = clock.now();
            assert!(now.mono >= last.mono);
            last = now;
        }
        assert!(last.wall > Wall(1_700_000_000_000_000));
    }
}
