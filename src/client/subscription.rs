//! Options of subscriptions, and how they are written: back-off rules as people type them.

use crate::base::units::{UnitError, parse_duration, show_duration};
use crate::client::ClientError;
use crate::limits::{
    ATTEMPTS_MAX, BACKOFF_LIST_MAX, BACKOFF_MS_MAX, EXPIRES_AFTER_MS_MAX, EXPIRES_AFTER_MS_MIN,
    LEASE_MS_MAX, LEASE_MS_MIN,
};
use crate::protocol::control::{ATTEMPTS_UNLIMITED, subscription_set};
use crate::protocol::wire::{self, BackoffKind};
use std::str::FromStr;
use std::time::Duration;

/// Options of a subscription. What is `None` has the broker's default when it is created, and
/// stays as it is when it is updated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// How long a consumer has a message before it counts as failed: 100 ms to 12 h. Default 30 s.
    pub lease: Option<Duration>,
    /// A message that failed so often is dead-lettered: 1 to 10,000. Default 20.
    pub max_attempts: Option<MaxAttempts>,
    /// How long a failed message waits. Default: exponential from 1 s to 5 min, with jitter.
    pub backoff: Option<Backoff>,
    /// The queue for dead letters; empty: the queue's name with `.dead` behind it, which is the
    /// default. It is made on first use.
    pub dead_letter: Option<String>,
    /// Messages in flight, of all consumers together; 0: no bound of its own, the default.
    pub unacked_max: Option<u32>,
    /// It ends when it had no consumer for so long: 1 s to a year; zero: never, the default.
    pub expires_after: Option<Duration>,
}

/// How often a message may fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxAttempts {
    /// So often; then it is dead-lettered.
    Count(u32),
    /// For ever: nothing is dead-lettered but what is rejected.
    Unlimited,
}

impl SubscriptionOptions {
    /// Refuses what no broker takes, and says which option it is.
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        if let Some(lease) = self.lease {
            lease_ms(lease)?;
        }
        if let Some(MaxAttempts::Count(count)) = self.max_attempts
            && !(1..=ATTEMPTS_MAX).contains(&count)
        {
            return Err(bad("max_attempts", format!("{count} is not 1 to {ATTEMPTS_MAX}")));
        }
        if let Some(backoff) = &self.backoff {
            backoff.check().map_err(|error| bad("backoff", error.to_string()))?;
        }
        if let Some(after) = self.expires_after.filter(|after| !after.is_zero()) {
            let bounds = u128::from(EXPIRES_AFTER_MS_MIN)..=u128::from(EXPIRES_AFTER_MS_MAX);
            if !bounds.contains(&after.as_millis()) {
                return Err(bad("expires_after", "must be 1 s to a year, or zero".into()));
            }
        }
        Ok(())
    }

    pub(crate) fn to_wire(&self) -> wire::SubscriptionOptionsT {
        wire::SubscriptionOptionsT {
            lease_ms: self.lease.map_or(0, |lease| lease.as_millis() as u32),
            max_attempts: match self.max_attempts {
                None => 0,
                Some(MaxAttempts::Count(count)) => count,
                Some(MaxAttempts::Unlimited) => ATTEMPTS_UNLIMITED,
            },
            backoff: self.backoff.as_ref().map(|backoff| Box::new(backoff.to_wire())),
            dead_letter: self.dead_letter.clone(),
            unacked_max: self.unacked_max.unwrap_or(0),
            expires_after_ms: self.expires_after.map_or(0, |after| after.as_millis() as u64),
        }
    }

    /// What of it is set, for an update.
    pub(crate) fn set(&self) -> u32 {
        let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        bit(self.lease.is_some(), subscription_set::LEASE_MS)
            | bit(self.max_attempts.is_some(), subscription_set::MAX_ATTEMPTS)
            | bit(self.backoff.is_some(), subscription_set::BACKOFF)
            | bit(self.dead_letter.is_some(), subscription_set::DEAD_LETTER)
            | bit(self.unacked_max.is_some(), subscription_set::UNACKED_MAX)
            | bit(self.expires_after.is_some(), subscription_set::EXPIRES_AFTER_MS)
    }
}

fn bad(name: &'static str, reason: String) -> ClientError {
    ClientError::Option { name, reason }
}

/// A lease in milliseconds, if it may be one.
pub(crate) fn lease_ms(lease: Duration) -> Result<u32, ClientError> {
    let ms = lease.as_millis();
    if (u128::from(LEASE_MS_MIN)..=u128::from(LEASE_MS_MAX)).contains(&ms) {
        Ok(ms as u32)
    } else {
        Err(bad("lease", format!("{} is not 100 ms to 12 h", show_duration(lease))))
    }
}

/// The delay of a nack in milliseconds, if it may be one.
pub(crate) fn delay_ms(delay: Duration) -> Result<u32, ClientError> {
    // Rounded up: a delay is never cut short.
    let ms = delay.as_nanos().div_ceil(1_000_000);
    if ms <= u128::from(BACKOFF_MS_MAX) {
        Ok(ms as u32)
    } else {
        Err(bad("delay", format!("{delay:?} is over 7 days")))
    }
}

/// How long a failed message waits until it is ready again. Written and read as
///
/// ```text
/// none
/// fixed:1s
/// linear:1s..1m          1 s, 2 s, 3 s, ... up to 1 min
/// exponential:1s..5m     1 s, 2 s, 4 s, ... up to 5 min
/// list:1s,5s,1m          and 1 min from then on
/// ```
///
/// with `,jitter` or `,nojitter` behind it. With jitter a wait is drawn between 0 and what the rule
/// says, so that messages that failed together do not come back together. Where nothing is said,
/// linear and exponential have it, fixed and list do not. Without `..` the longest wait is 5 min,
/// or the first where that is longer.
///
/// ```
/// use forebay::client::Backoff;
///
/// let backoff: Backoff = "exponential:500ms..1m".parse()?;
/// assert_eq!(backoff.to_string(), "exponential:500ms..1m");
/// assert!(backoff.jitter);
/// # Ok::<(), forebay::client::BackoffError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// How it grows.
    pub rule: BackoffRule,
    /// Full jitter.
    pub jitter: bool,
}

/// How a back-off grows with the failures. Times are 1 ms to 7 days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackoffRule {
    /// No wait: ready again at once, at its old place.
    None,
    /// Always this.
    Fixed(Duration),
    /// `base` times the failures.
    Linear {
        /// The first wait.
        base: Duration,
        /// The longest.
        max: Duration,
    },
    /// `base`, doubled by each failure.
    Exponential {
        /// The first wait.
        base: Duration,
        /// The longest.
        max: Duration,
    },
    /// The wait after the first, second, ... failure; the last serves for all others. 1 to 32.
    List(Vec<Duration>),
}

/// Why a text is no back-off, or a back-off cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackoffError {
    /// A rule of another name.
    #[error(
        "`{0}` is no back-off; write none, fixed:1s, linear:1s..1m, exponential:1s..5m or \
         list:1s,5s,1m"
    )]
    Rule(String),
    /// `fixed`, `linear`, `exponential` or `list` with nothing behind it.
    #[error("`{0}` needs a time, for example {0}:1s")]
    NoTime(String),
    /// A time that is none.
    #[error(transparent)]
    Time(#[from] UnitError),
    /// A time of zero, or of more than 7 days.
    #[error("a wait of {0:?} is not 1 ms to 7 days")]
    Range(Duration),
    /// The longest wait is shorter than the first.
    #[error("the longest wait, {max:?}, is shorter than the first, {base:?}")]
    Order {
        /// The first wait.
        base: Duration,
        /// The longest.
        max: Duration,
    },
    /// More waits in a list than there may be.
    #[error("a list of {0} waits; there may be 1 to 32")]
    Waits(usize),
}

/// The longest wait where a text names none.
const WAIT_MAX: Duration = Duration::from_secs(300);

impl Backoff {
    /// With the jitter that the rule has by default.
    pub fn new(rule: BackoffRule) -> Backoff {
        let jitter = rule.has_jitter_by_default();
        Backoff { rule, jitter }
    }

    /// As the broker describes it.
    pub fn from_wire(backoff: &wire::BackoffT) -> Backoff {
        let ms = |ms: u32| Duration::from_millis(u64::from(ms));
        let (base, max) = (ms(backoff.base_ms), ms(backoff.max_ms));
        let list = || backoff.list_ms.iter().flatten().map(|&wait| ms(wait)).collect();
        let rule = match backoff.kind {
            BackoffKind::None => BackoffRule::None,
            BackoffKind::Fixed => BackoffRule::Fixed(base.min(max)),
            BackoffKind::Linear => BackoffRule::Linear { base, max },
            BackoffKind::List => BackoffRule::List(list()),
            // Also what a newer broker may know: all of them have these two.
            _ => BackoffRule::Exponential { base, max },
        };
        Backoff { rule, jitter: backoff.jitter }
    }

    pub(crate) fn to_wire(&self) -> wire::BackoffT {
        let ms = |wait: &Duration| wait.as_millis() as u32;
        let body = |kind, base_ms, max_ms| wire::BackoffT {
            kind,
            base_ms,
            max_ms,
            jitter: self.jitter,
            list_ms: None,
        };
        match &self.rule {
            BackoffRule::None => body(BackoffKind::None, 0, 0),
            BackoffRule::Fixed(wait) => body(BackoffKind::Fixed, ms(wait), ms(wait)),
            BackoffRule::Linear { base, max } => body(BackoffKind::Linear, ms(base), ms(max)),
            BackoffRule::Exponential { base, max } => {
                body(BackoffKind::Exponential, ms(base), ms(max))
            }
            BackoffRule::List(waits) => wire::BackoffT {
                list_ms: Some(waits.iter().map(ms).collect()),
                ..body(BackoffKind::List, 0, waits.iter().map(ms).max().unwrap_or(0))
            },
        }
    }

    /// Refuses times that cannot be.
    pub(crate) fn check(&self) -> Result<(), BackoffError> {
        let wait = |wait: &Duration| {
            let bounds = 1..=u128::from(BACKOFF_MS_MAX);
            if bounds.contains(&wait.as_millis()) {
                Ok(())
            } else {
                Err(BackoffError::Range(*wait))
            }
        };
        match &self.rule {
            BackoffRule::None => Ok(()),
            BackoffRule::Fixed(fixed) => wait(fixed),
            BackoffRule::Linear { base, max } | BackoffRule::Exponential { base, max } => {
                wait(base)?;
                wait(max)?;
                let (base, max) = (*base, *max);
                if max < base { Err(BackoffError::Order { base, max }) } else { Ok(()) }
            }
            BackoffRule::List(waits) if waits.is_empty() || waits.len() > BACKOFF_LIST_MAX => {
                Err(BackoffError::Waits(waits.len()))
            }
            BackoffRule::List(waits) => waits.iter().try_for_each(wait),
        }
    }
}

impl Default for Backoff {
    /// The broker's own default.
    fn default() -> Backoff {
        Backoff::new(BackoffRule::Exponential { base: Duration::from_secs(1), max: WAIT_MAX })
    }
}

impl BackoffRule {
    fn has_jitter_by_default(&self) -> bool {
        matches!(self, BackoffRule::Linear { .. } | BackoffRule::Exponential { .. })
    }
}

impl FromStr for Backoff {
    type Err = BackoffError;

    fn from_str(text: &str) -> Result<Backoff, BackoffError> {
        let text = text.trim();
        let (plain, jitter) = match text.rsplit_once(',') {
            Some((plain, "jitter")) => (plain, Some(true)),
            Some((plain, "nojitter")) => (plain, Some(false)),
            _ => (text, None),
        };
        let (name, times) = plain.split_once(':').unwrap_or((plain, ""));
        if times.is_empty() && matches!(name, "fixed" | "linear" | "exponential" | "list") {
            return Err(BackoffError::NoTime(name.into()));
        }
        let span = || -> Result<(Duration, Duration), BackoffError> {
            let (base, max) = times.split_once("..").unwrap_or((times, ""));
            let base = parse_duration(base)?;
            let max = if max.is_empty() { WAIT_MAX.max(base) } else { parse_duration(max)? };
            Ok((base, max))
        };
        let rule = match (name, times) {
            ("none", "") => BackoffRule::None,
            ("fixed", wait) => BackoffRule::Fixed(parse_duration(wait)?),
            ("linear", _) => span().map(|(base, max)| BackoffRule::Linear { base, max })?,
            ("exponential", _) => {
                span().map(|(base, max)| BackoffRule::Exponential { base, max })?
            }
            ("list", waits) => {
                BackoffRule::List(waits.split(',').map(parse_duration).collect::<Result<_, _>>()?)
            }
            _ => return Err(BackoffError::Rule(text.into())),
        };
        let jitter = jitter.unwrap_or(rule.has_jitter_by_default());
        let backoff = Backoff { rule, jitter };
        backoff.check()?;
        Ok(backoff)
    }
}

impl std::fmt::Display for Backoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.rule {
            // Nothing is drawn from no wait.
            BackoffRule::None => return write!(f, "none"),
            BackoffRule::Fixed(wait) => write!(f, "fixed:{}", Written(*wait))?,
            BackoffRule::Linear { base, max } => {
                write!(f, "linear:{}..{}", Written(*base), Written(*max))?;
            }
            BackoffRule::Exponential { base, max } => {
                write!(f, "exponential:{}..{}", Written(*base), Written(*max))?;
            }
            BackoffRule::List(waits) => {
                for (nth, wait) in waits.iter().enumerate() {
                    write!(f, "{}{}", if nth == 0 { "list:" } else { "," }, Written(*wait))?;
                }
            }
        }
        match (self.jitter, self.rule.has_jitter_by_default()) {
            (true, false) => write!(f, ",jitter"),
            (false, true) => write!(f, ",nojitter"),
            _ => Ok(()),
        }
    }
}

/// A duration in its largest whole unit, as it is read: `90s`, `2m`, `1500ms`.
struct Written(Duration);

impl std::fmt::Display for Written {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = self.0.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
        let unit = units.iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
        let (unit, name) = unit.unwrap_or(&(1, "ms"));
        write!(f, "{}{name}", ms / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoffs_that_people_write() {
        let cases = [
            ("none", "none"),
            ("fixed:1s", "fixed:1s"),
            ("fixed:90s,jitter", "fixed:90s,jitter"),
            ("linear:1s..1m", "linear:1s..1m"),
            ("linear:1s", "linear:1s..5m"),
            ("exponential:1s..5m", "exponential:1s..5m"),
            ("exponential:10m", "exponential:10m..10m"),
            ("exponential:1.5s..2h,nojitter", "exponential:1500ms..2h,nojitter"),
            ("list:1s,5s,1m", "list:1s,5s,1m"),
            ("list:1s,5s,1m,jitter", "list:1s,5s,1m,jitter"),
        ];
        for (text, canonical) in cases {
            let backoff: Backoff = text.parse().unwrap();
            assert_eq!(backoff.to_string(), canonical, "{text}");
            assert_eq!(canonical.parse::<Backoff>().unwrap(), backoff);
            assert_eq!(Backoff::from_wire(&backoff.to_wire()), backoff);
        }
        assert_eq!("exponential:1s..5m".parse(), Ok(Backoff::default()));
    }

    #[test]
    fn backoffs_that_are_none() {
        let parse = |text: &str| text.parse::<Backoff>().unwrap_err();
        for text in ["", "sometimes", "none:1s", "Fixed:1s", "exponentially:1s"] {
            assert!(matches!(parse(text), BackoffError::Rule(_)), "{text}");
        }
        for text in ["fixed", "linear:", "exponential", "list"] {
            assert!(matches!(parse(text), BackoffError::NoTime(_)), "{text}");
        }
        for text in ["fixed:1", "list:1s,,2s", "exponential:x..5m", "fixed:1s..2s", "fixed:-1s"] {
            assert!(matches!(parse(text), BackoffError::Time(_)), "{text}");
        }
        for text in ["fixed:0", "fixed:8d", "exponential:1s..30d", "list:1s,0", "fixed:10us"] {
            assert!(matches!(parse(text), BackoffError::Range(_)), "{text}");
        }
        assert!(matches!(parse("linear:1m..1s"), BackoffError::Order { .. }));
        let long = format!("list:{}1s", "1s,".repeat(40));
        assert_eq!(parse(&long), BackoffError::Waits(41));
    }

    #[test]
    fn options_that_no_broker_takes() {
        let name = |options: SubscriptionOptions| match options.check() {
            Err(ClientError::Option { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        let options = SubscriptionOptions::default;
        let years = Duration::from_secs(3 * 365 * 86_400);
        for lease in [Duration::ZERO, Duration::from_millis(99), years, Duration::MAX] {
            assert_eq!(name(SubscriptionOptions { lease: Some(lease), ..options() }), "lease");
        }
        for count in [0, 10_001, u32::MAX] {
            let max_attempts = Some(MaxAttempts::Count(count));
            assert_eq!(name(SubscriptionOptions { max_attempts, ..options() }), "max_attempts");
        }
        for after in [Duration::from_millis(1), years] {
            let expires_after = Some(after);
            assert_eq!(name(SubscriptionOptions { expires_after, ..options() }), "expires_after");
        }
        let backoff = Some(Backoff::new(BackoffRule::List(Vec::new())));
        assert_eq!(name(SubscriptionOptions { backoff, ..options() }), "backoff");
        assert!(delay_ms(years).is_err());
        assert_eq!(delay_ms(Duration::from_micros(1)), Ok(1));
    }
}
