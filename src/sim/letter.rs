//! What a dead letter says of itself, read from its headers without the broker's own code, and what
//! of it can be checked by itself.

use crate::format::properties::{self, Tag};
use crate::sim::Checked;

/// The headers of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// Queue that it comes from.
    pub queue: String,
    /// Subscription there.
    pub subscription: String,
    /// Its sequence there.
    pub sequence: u64,
    /// It was rejected; else it failed too often.
    pub rejected: bool,
    /// What the consumer said.
    pub error: Option<String>,
    /// How often it was delivered there.
    pub attempts: u64,
    /// How often it was a dead letter.
    pub hops: u64,
}

/// Whether a property is one of these headers.
pub fn is_mark(tag: u8, value: &[u8]) -> bool {
    tag == Tag::Header as u8
        && properties::split_header(value).is_some_and(|(key, _)| key.starts_with(b"dead-letter-"))
}

/// Reads them. `None` if there is none of them.
///
/// # Errors
/// If one is missing, twice there, or says what cannot be.
pub fn read(block: &[u8]) -> Checked<Option<Letter>> {
    let pairs: Vec<(&[u8], &[u8])> = properties::walk(block)
        .map_while(Result::ok)
        .filter(|(tag, value)| is_mark(*tag, value))
        .filter_map(|(_, value)| properties::split_header(value))
        .collect();
    if pairs.is_empty() {
        return Ok(None);
    }
    let find = |name: &str| -> Checked<Option<String>> {
        let mut found = pairs.iter().filter(|(key, _)| *key == name.as_bytes());
        let first = found.next().map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        match found.next() {
            Some(_) => Err(format!("a dead letter has two headers {name}")),
            None => Ok(first),
        }
    };
    let text = |name: &str| find(name)?.ok_or_else(|| format!("a dead letter without {name}"));
    let number = |name: &str| -> Checked<u64> {
        let text = text(name)?;
        text.parse().map_err(|_| format!("a dead letter with `{text}` for {name}"))
    };
    let reason = text("dead-letter-reason")?;
    if reason != "rejected" && reason != "max_attempts" {
        return Err(format!("a dead letter for the reason `{reason}`"));
    }
    let letter = Letter {
        queue: text("dead-letter-queue")?,
        subscription: text("dead-letter-subscription")?,
        sequence: number("dead-letter-sequence")?,
        rejected: reason == "rejected",
        error: find("dead-letter-error")?,
        attempts: number("dead-letter-attempts")?,
        hops: number("dead-letter-hops")?,
    };
    let (first_us, last_us) = (number("dead-letter-first-us")?, number("dead-letter-last-us")?);
    if letter.hops == 0 || letter.attempts == 0 || first_us == 0 || last_us == 0 {
        return Err(format!("a dead letter with a 0 that cannot be: {letter:?}"));
    }
    Ok(Some(letter))
}
