//! How long a failed message waits until it is ready again.

use crate::base::prng::Prng;

/// How the wait grows with each failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackoffRule {
    /// No wait: ready at once, so the order stays strict.
    None,
    /// Always the base.
    Fixed,
    /// The base times the failures.
    Linear,
    /// The base, doubled with each failure after the first.
    Exponential,
    /// One wait per failure in milliseconds, the last one for all that follow.
    List(Box<[u32]>),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// How it grows.
    pub rule: BackoffRule,
    /// Milliseconds that it grows from.
    pub base_ms: u32,
    /// Longest wait in milliseconds.
    pub max_ms: u32,
    /// The wait is drawn evenly from nothing to what the rule says.
    pub jitter: bool,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { rule: BackoffRule::Exponential, base_ms: 1000, max_ms: 300_000, jitter: true }
    }
}

impl Backoff {
    /// Milliseconds to wait after so many failures, the one just now included.
    pub fn wait_ms(&self, failures: u32, prng: &mut Prng) -> u64 {
        let base = u64::from(self.base_ms);
        let wait = match &self.rule {
            BackoffRule::None => 0,
            BackoffRule::Fixed => base,
            BackoffRule::Linear => base * u64::from(failures),
            // Past 2^32 times the base it is over every cap there can be.
            BackoffRule::Exponential => base << failures.saturating_sub(1).min(32),
            BackoffRule::List(waits) => {
                let nth = (failures.max(1) as usize - 1).min(waits.len().saturating_sub(1));
                waits.get(nth).map_or(0, |&wait| u64::from(wait))
            }
        };
        let wait = wait.min(u64::from(self.max_ms));
        if self.jitter && wait > 0 { prng.range(0, wait) } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(rule: BackoffRule, base_ms: u32, max_ms: u32, failures: &[u32]) -> Vec<u64> {
        let backoff = Backoff { rule, base_ms, max_ms, jitter: false };
        failures.iter().map(|&n| backoff.wait_ms(n, &mut Prng::new(1))).collect()
    }

    #[test]
    fn each_rule_grows_as_it_says() {
        assert_eq!(waits(BackoffRule::None, 1000, 9000, &[1, 5]), [0, 0]);
        assert_eq!(waits(BackoffRule::Fixed, 1000, 9000, &[1, 5]), [1000, 1000]);
        assert_eq!(
            waits(BackoffRule::Linear, 1000, 9000, &[1, 2, 9, 10]),
            [1000, 2000, 9000, 9000]
        );
        let exponential = waits(BackoffRule::Exponential, 1000, 300_000, &[1, 2, 3, 9, 10]);
        assert_eq!(exponential, [1000, 2000, 4000, 256_000, 300_000]);
        let list = BackoffRule::List([10, 0, 30].into());
        assert_eq!(waits(list, 1, 9000, &[1, 2, 3, 4, 99]), [10, 0, 30, 30, 30]);
        assert_eq!(waits(BackoffRule::List([].into()), 1, 9000, &[1]), [0]);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        for rule in [BackoffRule::Linear, BackoffRule::Exponential, BackoffRule::Fixed] {
            let most = waits(rule, u32::MAX, u32::MAX, &[0, 1, 33, 64, u32::MAX]);
            assert!(most.iter().all(|&wait| wait <= u64::from(u32::MAX)));
        }
    }

    #[test]
    fn jitter_is_full_and_repeats_with_its_seed() {
        let backoff = Backoff { rule: BackoffRule::Fixed, base_ms: 3, ..Backoff::default() };
        let draw = |seed| {
            let mut prng = Prng::new(seed);
            (0..100).map(|_| backoff.wait_ms(1, &mut prng)).collect::<Vec<_>>()
        };
        let mut drawn = draw(7);
        assert_eq!(drawn, draw(7));
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, [0, 1, 2, 3]);
    }
}
