//! The command line's one look at the clock.

use std::time::Instant;

/// The monotonic time now.
#[expect(clippy::disallowed_methods, reason = "the one clock function of this program")]
pub fn now() -> Instant {
    Instant::now()
}
