//! How subscriptions treat messages, as flags and as text: leases, back-off, dead letters.

use crate::base::units::{parse_duration, show_duration};
use crate::cli::fields::Fields;
use crate::client::{Backoff, MaxAttempts, SubscriptionDescription, SubscriptionOptions};
use crate::limits::{ATTEMPTS_DEFAULT, ATTEMPTS_MAX, LEASE_MS_DEFAULT};
use crate::protocol::control::ATTEMPTS_UNLIMITED;
use clap::{Arg, Args};
use std::time::Duration;

/// Options of a subscription, where they are given.
#[derive(Args, Clone, Debug, Default)]
pub struct RuleArgs {
    /// How long a consumer has a message before it counts as failed [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Subscriptions")]
    lease: Option<Duration>,

    /// Failures that make a message a dead letter, or `unlimited` [default: 20]
    #[arg(long, value_name = "N", value_parser = parse_attempts, help_heading = "Subscriptions")]
    max_attempts: Option<MaxAttempts>,

    /// How long a failed message waits: none, fixed:1s, linear:1s, exponential:1s..5m or
    /// list:1s,10s,1m [default: exponential:1s..5m]
    #[arg(long, value_name = "RULE", help_heading = "Subscriptions")]
    backoff: Option<Backoff>,

    /// The queue that gets the dead letters [default: NAME.dead, made when it is needed]
    #[arg(long, value_name = "QUEUE", help_heading = "Subscriptions")]
    dead_letter: Option<String>,

    /// Messages that its consumers together may hold unacked; 0: no limit
    #[arg(long, value_name = "N", help_heading = "Subscriptions")]
    unacked_max: Option<u32>,

    /// Delete the subscription when it had no consumer for so long; 0: never
    #[arg(long, value_name = "TIME", value_parser = parse_duration, help_heading = "Subscriptions")]
    expires_after: Option<Duration>,
}

impl RuleArgs {
    /// What is given; the rest has its default, or stays.
    pub fn options(&self) -> SubscriptionOptions {
        SubscriptionOptions {
            lease: self.lease,
            max_attempts: self.max_attempts,
            backoff: self.backoff.clone(),
            dead_letter: self.dead_letter.clone(),
            unacked_max: self.unacked_max,
            expires_after: self.expires_after,
        }
    }
}

/// The help of an option where one that is not given stays as it is: without a default.
pub fn without_default(arg: Arg) -> Arg {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    match help.split_once(" [default: ") {
        Some((text, _)) => arg.help(text.to_owned()),
        None => arg,
    }
}

fn parse_attempts(text: &str) -> Result<MaxAttempts, String> {
    match text.parse() {
        _ if text == "unlimited" => Ok(MaxAttempts::Unlimited),
        Ok(count) if (1..=ATTEMPTS_MAX).contains(&count) => Ok(MaxAttempts::Count(count)),
        Ok(_) => Err(format!("it must be 1 to {ATTEMPTS_MAX}, or `unlimited`")),
        Err(_) => Err("not a number; write for example 5, or `unlimited`".to_owned()),
    }
}

/// The rules of a subscription as they are in force, by their flags.
pub struct Rules {
    lease_ms: u32,
    /// `None`: unlimited.
    max_attempts: Option<u32>,
    backoff: String,
    /// Where dead letters go.
    pub dead_letter: String,
    unacked_max: u32,
    expires_after_ms: u64,
}

impl Rules {
    /// Of a subscription.
    pub fn of(shown: &SubscriptionDescription) -> Rules {
        let options = &shown.options;
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let max_attempts = or(options.max_attempts, ATTEMPTS_DEFAULT);
        let named = options.dead_letter.clone().filter(|name| !name.is_empty());
        let backoff = options.backoff.as_deref();
        Rules {
            lease_ms: or(options.lease_ms, LEASE_MS_DEFAULT),
            max_attempts: (max_attempts != ATTEMPTS_UNLIMITED).then_some(max_attempts),
            backoff: backoff.map_or_else(Backoff::default, Backoff::from_wire).to_string(),
            dead_letter: named.unwrap_or_else(|| own_grave(&shown.queue)),
            unacked_max: options.unacked_max,
            expires_after_ms: options.expires_after_ms,
        }
    }

    /// For programs.
    pub fn push_to(&self, fields: &mut Fields) {
        fields.push("lease_ms", self.lease_ms);
        fields.push("max_attempts", self.max_attempts);
        fields.push("backoff", self.backoff.as_str());
        fields.push("dead_letter", self.dead_letter.as_str());
        fields.push("unacked_max", self.unacked_max);
        fields.push("expires_after_ms", self.expires_after_ms);
    }

    /// For people: what each is called, and its value.
    pub fn lines(&self) -> [(&'static str, String); 6] {
        let time = |ms: u64| show_duration(Duration::from_millis(ms));
        [
            ("lease", time(self.lease_ms.into())),
            (
                "max attempts",
                self.max_attempts.map_or("unlimited".to_owned(), |most| most.to_string()),
            ),
            ("back-off", self.backoff.clone()),
            ("dead letter", self.dead_letter.clone()),
            (
                "unacked max",
                match self.unacked_max {
                    0 => "no limit".to_owned(),
                    most => most.to_string(),
                },
            ),
            (
                "expires",
                match self.expires_after_ms {
                    0 => "never".to_owned(),
                    ms => format!("{} after its last consumer", time(ms)),
                },
            ),
        ]
    }
}

/// Where the dead letters of a queue go that says nothing about it.
pub fn own_grave(queue: &str) -> String {
    format!("{queue}.dead")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_a_number_or_unlimited() {
        assert_eq!(parse_attempts("5"), Ok(MaxAttempts::Count(5)));
        assert_eq!(parse_attempts("unlimited"), Ok(MaxAttempts::Unlimited));
        for text in ["0", "-1", "many", "10001", ""] {
            assert!(parse_attempts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let shown = SubscriptionDescription { queue: "jobs".into(), ..Default::default() };
        let rules = Rules::of(&shown);
        let texts = rules.lines().map(|(_, value)| value);
        assert_eq!(texts[..2], ["30.0 s", "20"]);
        assert_eq!(texts[3..], ["jobs.dead", "no limit", "never"]);
    }
}
