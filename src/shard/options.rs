//! Options of queues and subscriptions as requests carry them: checked, absent ones filled in, and
//! back again for descriptions.

use crate::limits::{
    ATTEMPTS_DEFAULT, ATTEMPTS_MAX, BACKOFF_LIST_MAX, BACKOFF_MS_MAX, EXPIRES_AFTER_MS_MAX,
    EXPIRES_AFTER_MS_MIN, LEASE_MS_DEFAULT, LEASE_MS_MAX, LEASE_MS_MIN,
};
use crate::protocol::control::{ATTEMPTS_UNLIMITED, subscription_set, update_set};
use crate::protocol::error::ErrorCode;
use crate::protocol::hot::Reached;
use crate::protocol::wire;
use crate::queue::policy::{
    Backoff, BackoffRule, OnFull, QueueOptions, SubscriptionOptions, is_name,
};
use crate::shard::connection::error_body;

/// A request was refused: the code, what people read, and the limit where one was passed.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub code: ErrorCode,
    pub text: String,
    pub limit: Option<(&'static str, u64)>,
}

impl Refused {
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Refused { code, text: text.into(), limit: None }
    }

    /// Over or under a limit; the name is empty where it is no limit but sense.
    pub fn limit(code: ErrorCode, name: &'static str, value: u64, text: impl Into<String>) -> Self {
        let limit = (!name.is_empty()).then_some((name, value));
        Refused { limit, ..Refused::new(code, text) }
    }

    /// As the body of an error frame.
    pub fn body(&self) -> wire::ErrorT {
        wire::ErrorT {
            limit_name: self.limit.map(|(name, _)| name.to_owned()),
            limit_value: self.limit.map_or(0, |(_, value)| value),
            ..error_body(self.code, &self.text)
        }
    }
}

impl From<(ErrorCode, String)> for Refused {
    fn from((code, text): (ErrorCode, String)) -> Self {
        Refused::new(code, text)
    }
}

/// A name that is none.
pub(super) fn bad_name(name: &str) -> Refused {
    let shown: String = name.chars().take(40).collect();
    let text = format!("`{shown}` is no name: 1 to 200 of A-Z a-z 0-9 . _ - :");
    Refused::new(ErrorCode::BadName, text)
}

/// A number that has to lie between two limits.
fn in_range(
    option: &str,
    value: u64,
    (min_name, min): (&'static str, u64),
    (max_name, max): (&'static str, u64),
) -> Result<(), Refused> {
    if value < min {
        let text = format!("{option} of {value} is under the smallest, {min}");
        return Err(Refused::limit(ErrorCode::BadOption, min_name, min, text));
    }
    if value > max {
        let text = format!("{option} of {value} is over the largest, {max}");
        return Err(Refused::limit(ErrorCode::BadOption, max_name, max, text));
    }
    Ok(())
}

/// A lease in milliseconds.
pub(super) fn check_lease(option: &str, lease_ms: u32) -> Result<(), Refused> {
    let min = ("LEASE_MS_MIN", u64::from(LEASE_MS_MIN));
    let max = ("LEASE_MS_MAX", u64::from(LEASE_MS_MAX));
    in_range(option, u64::from(lease_ms), min, max)
}

/// A delay in milliseconds that a consumer asks for.
pub(super) fn check_delay(option: &str, delay_ms: u32) -> Result<(), Refused> {
    let max = ("BACKOFF_MS_MAX", u64::from(BACKOFF_MS_MAX));
    in_range(option, u64::from(delay_ms), ("", 0), max)
}

/// Options of a queue as asked, absent ones filled in, checked.
pub(super) fn queue_options(
    body: Option<&wire::QueueOptionsT>,
    message_bytes_limit: u64,
) -> Result<QueueOptions, Refused> {
    let asked = body.cloned().unwrap_or_default();
    let confirm = match (asked.durable, asked.confirm) {
        (false, wire::ConfirmAt::Synced) => Reached::Memory,
        (false, _) => {
            let text = "`confirm` is of durable queues alone; a transient one confirms in memory";
            return Err(Refused::new(ErrorCode::BadOption, text));
        }
        (true, wire::ConfirmAt::Synced) => Reached::Synced,
        (true, wire::ConfirmAt::Written) => Reached::Written,
        (true, other) => {
            let text = format!("confirm has no value {}", other.0);
            return Err(Refused::new(ErrorCode::BadOption, text));
        }
    };
    let on_full = match asked.on_full {
        wire::OnFull::Block => OnFull::Block,
        wire::OnFull::Reject => OnFull::Reject,
        wire::OnFull::DropOldest => OnFull::DropOldest,
        wire::OnFull::DropNewest => OnFull::DropNewest,
        other => {
            let text = format!("on_full has no value {}", other.0);
            return Err(Refused::new(ErrorCode::BadOption, text));
        }
    };
    let (limit, message_bytes_max) = (message_bytes_limit, asked.message_bytes_max);
    if message_bytes_max > limit {
        let text = format!("message_bytes_max of {message_bytes_max} is over the broker's {limit}");
        return Err(Refused::limit(ErrorCode::BadOption, "message_bytes_max", limit, text));
    }
    let message_bytes_max = if message_bytes_max == 0 { limit } else { message_bytes_max };
    let (messages_max, bytes_max) = (asked.messages_max, asked.bytes_max);
    Ok(QueueOptions { messages_max, bytes_max, on_full, message_bytes_max, confirm })
}

/// Puts what `set` names of `asked` into `options`.
pub(super) fn update_queue_options(
    options: &mut QueueOptions,
    asked: &QueueOptions,
    set: u32,
) -> Result<(), Refused> {
    check_set(set, update_set::KNOWN)?;
    if set & update_set::MESSAGES_MAX != 0 {
        options.messages_max = asked.messages_max;
    }
    if set & update_set::BYTES_MAX != 0 {
        options.bytes_max = asked.bytes_max;
    }
    if set & update_set::ON_FULL != 0 {
        options.on_full = asked.on_full;
    }
    if set & update_set::MESSAGE_BYTES_MAX != 0 {
        options.message_bytes_max = asked.message_bytes_max;
    }
    Ok(())
}

/// Options of a queue, for its description.
pub(super) fn wire_queue_options(options: &QueueOptions) -> wire::QueueOptionsT {
    wire::QueueOptionsT {
        durable: options.is_durable(),
        messages_max: options.messages_max,
        bytes_max: options.bytes_max,
        on_full: match options.on_full {
            OnFull::Block => wire::OnFull::Block,
            OnFull::Reject => wire::OnFull::Reject,
            OnFull::DropOldest => wire::OnFull::DropOldest,
            OnFull::DropNewest => wire::OnFull::DropNewest,
        },
        message_bytes_max: options.message_bytes_max,
        confirm: match options.confirm {
            Reached::Memory | Reached::Synced => wire::ConfirmAt::Synced,
            Reached::Written => wire::ConfirmAt::Written,
        },
    }
}

/// Options of a subscription of `queue` as asked, absent ones filled in, checked.
pub(super) fn subscription_options(
    queue: &str,
    body: Option<&wire::SubscriptionOptionsT>,
) -> Result<SubscriptionOptions, Refused> {
    let mut options = SubscriptionOptions::default();
    if let Some(asked) = body {
        update_subscription_options(&mut options, queue, asked, subscription_set::KNOWN)?;
    }
    Ok(options)
}

/// Puts what `set` names of `asked` into `options`, checked; what is absent or 0 gets its default.
pub(super) fn update_subscription_options(
    options: &mut SubscriptionOptions,
    queue: &str,
    asked: &wire::SubscriptionOptionsT,
    set: u32,
) -> Result<(), Refused> {
    check_set(set, subscription_set::KNOWN)?;
    if set & subscription_set::LEASE_MS != 0 {
        options.lease_ms = if asked.lease_ms == 0 { LEASE_MS_DEFAULT } else { asked.lease_ms };
        check_lease("lease_ms", options.lease_ms)?;
    }
    if set & subscription_set::MAX_ATTEMPTS != 0 {
        options.max_attempts = max_attempts(asked.max_attempts)?;
    }
    if set & subscription_set::BACKOFF != 0 {
        options.backoff = backoff(asked.backoff.as_deref())?;
    }
    if set & subscription_set::DEAD_LETTER != 0 {
        options.dead_letter = dead_letter(queue, asked.dead_letter.as_deref())?;
    }
    if set & subscription_set::UNACKED_MAX != 0 {
        options.unacked_max = u64::from(asked.unacked_max);
    }
    if set & subscription_set::EXPIRES_AFTER_MS != 0 {
        let expires_after_ms = asked.expires_after_ms;
        if expires_after_ms != 0 {
            let min = ("EXPIRES_AFTER_MS_MIN", EXPIRES_AFTER_MS_MIN);
            let max = ("EXPIRES_AFTER_MS_MAX", EXPIRES_AFTER_MS_MAX);
            in_range("expires_after_ms", expires_after_ms, min, max)?;
        }
        options.expires_after_ms = expires_after_ms;
    }
    Ok(())
}

/// Options of a subscription, for its description.
pub(super) fn wire_subscription_options(
    options: &SubscriptionOptions,
) -> wire::SubscriptionOptionsT {
    let backoff = &options.backoff;
    let (kind, list_ms) = match &backoff.rule {
        BackoffRule::None => (wire::BackoffKind::None, None),
        BackoffRule::Fixed => (wire::BackoffKind::Fixed, None),
        BackoffRule::Linear => (wire::BackoffKind::Linear, None),
        BackoffRule::Exponential => (wire::BackoffKind::Exponential, None),
        BackoffRule::List(list) => (wire::BackoffKind::List, Some(list.to_vec())),
    };
    wire::SubscriptionOptionsT {
        lease_ms: options.lease_ms,
        max_attempts: options.max_attempts,
        backoff: Some(Box::new(wire::BackoffT {
            kind,
            base_ms: backoff.base_ms,
            max_ms: backoff.max_ms,
            jitter: backoff.jitter,
            list_ms,
        })),
        dead_letter: options.dead_letter.as_deref().map(str::to_owned),
        unacked_max: options.unacked_max.min(u64::from(u32::MAX)) as u32,
        expires_after_ms: options.expires_after_ms,
    }
}

fn check_set(set: u32, known: u32) -> Result<(), Refused> {
    if set == 0 || set & !known != 0 {
        let text = "update names no option, or an unknown one";
        return Err(Refused::new(ErrorCode::BadOption, text));
    }
    Ok(())
}

fn max_attempts(asked: u32) -> Result<u32, Refused> {
    match asked {
        0 => Ok(ATTEMPTS_DEFAULT),
        ATTEMPTS_UNLIMITED => Ok(ATTEMPTS_UNLIMITED),
        count => {
            let max = ("ATTEMPTS_MAX", u64::from(ATTEMPTS_MAX));
            in_range("max_attempts", u64::from(count), ("", 1), max)?;
            Ok(count)
        }
    }
}

fn dead_letter(queue: &str, asked: Option<&str>) -> Result<Option<Box<str>>, Refused> {
    match asked.unwrap_or_default() {
        "" => Ok(None),
        name if name == queue => {
            let text = format!("queue `{queue}` cannot be its own dead-letter queue");
            Err(Refused::new(ErrorCode::BadOption, text))
        }
        name if !is_name(name) => Err(bad_name(name)),
        name if name.strip_prefix(queue) == Some(".dead") => Ok(None),
        name => Ok(Some(name.into())),
    }
}

fn backoff(asked: Option<&wire::BackoffT>) -> Result<Backoff, Refused> {
    let Some(asked) = asked else { return Ok(Backoff::default()) };
    check_delay("base_ms of the back-off", asked.base_ms)?;
    check_delay("max_ms of the back-off", asked.max_ms)?;
    let rule = match asked.kind {
        wire::BackoffKind::None => BackoffRule::None,
        wire::BackoffKind::Fixed => BackoffRule::Fixed,
        wire::BackoffKind::Linear => BackoffRule::Linear,
        wire::BackoffKind::Exponential => BackoffRule::Exponential,
        wire::BackoffKind::List => {
            let list = asked.list_ms.as_deref().unwrap_or_default();
            let max = ("BACKOFF_LIST_MAX", BACKOFF_LIST_MAX as u64);
            let count = list.len() as u64;
            in_range("the number of waits in the back-off's list", count, ("", 1), max)?;
            for &wait_ms in list {
                check_delay("a wait of the back-off's list", wait_ms)?;
            }
            BackoffRule::List(list.into())
        }
        other => {
            let text = format!("the back-off's kind has no value {}", other.0);
            return Err(Refused::new(ErrorCode::BadOption, text));
        }
    };
    Ok(Backoff { rule, base_ms: asked.base_ms, max_ms: asked.max_ms, jitter: asked.jitter })
}
