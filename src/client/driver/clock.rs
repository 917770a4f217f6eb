//! The client's clock, its dice, and when a connection is tried again.

use crate::base::time::Mono;
use crate::client::{ConnectOptions, LostReason};
use std::time::{Duration, Instant};

/// The client's only clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the one clock of the client")]
    pub(crate) fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    #[inline]
    #[expect(clippy::disallowed_methods, reason = "the one clock of the client")]
    pub(crate) fn now(&self) -> Mono {
        Mono(Instant::now().duration_since(self.start).as_nanos() as u64)
    }

    /// For timers of the system.
    #[cfg(feature = "tokio")]
    pub(crate) fn instant(&self, at: Mono) -> Instant {
        self.start + Duration::from_nanos(at.0)
    }

    /// The time so far from now; `None` when it is too far to be told from never.
    pub(crate) fn after(&self, duration: Duration) -> Option<Mono> {
        let nanos = u64::try_from(duration.as_nanos()).ok()?;
        self.now().0.checked_add(nanos).map(Mono)
    }
}

/// A random number that differs between processes and calls.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds it from the system's random numbers.
    std::hash::RandomState::new().build_hasher().finish()
}

/// When to try again: exponential pauses with full jitter, within a total time.
pub(crate) struct Pauses {
    prng: crate::base::prng::Prng,
    attempts: u32,
    /// When the present trouble began.
    since: Option<Mono>,
    /// When the last connection was made.
    connected_at: Option<Mono>,
}

/// A connection that held so long ends the trouble before it.
const STEADY_MS: u64 = 1000;

impl Pauses {
    pub(crate) fn new() -> Pauses {
        let prng = crate::base::prng::Prng::new(random_u64());
        Pauses { prng, attempts: 0, since: None, connected_at: None }
    }

    /// A connection was made and is of use.
    pub(crate) fn connected(&mut self, now: Mono) {
        self.connected_at = Some(now);
    }

    /// Something failed: when to try again, `None` if it is to be given up.
    pub(crate) fn failed(&mut self, now: Mono, options: &ConnectOptions) -> Option<Mono> {
        if self.connected_at.take().is_some_and(|at| now.ms_since(at) >= STEADY_MS) {
            self.succeeded();
        }
        let policy = &options.reconnect;
        let since = *self.since.get_or_insert(now);
        let give_up_at = since.0.saturating_add(nanos(policy.give_up_after));
        if policy.give_up_after.is_zero() || now.0 >= give_up_at {
            return None;
        }
        let bound = nanos(policy.pause_first)
            .saturating_mul(1 << self.attempts.min(32))
            .min(nanos(policy.pause_max))
            .max(1);
        self.attempts += 1;
        // The last attempt is made when the time is over, not after it.
        Some(Mono(now.0.saturating_add(self.prng.below(bound)).min(give_up_at)))
    }

    /// All is well: the next trouble starts from the first pause.
    pub(crate) fn succeeded(&mut self) {
        (self.attempts, self.since) = (0, None);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether trying again may help after a connection ended so.
pub(crate) fn may_pass(reason: &LostReason) -> bool {
    match reason {
        LostReason::Fatal(error) => error.is_retryable(),
        LostReason::Protocol(_) => false,
        LostReason::Io(_) | LostReason::Closed | LostReason::Silent => true,
    }
}
