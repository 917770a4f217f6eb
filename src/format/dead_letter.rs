//! What a dead letter says of itself: headers that the broker adds when it moves a message to a
//! dead-letter queue, and takes off again when the message is redriven.
//!
//! They stand behind the message's own properties, as text, numbers in decimal. A message that was
//! a dead letter before gets a new set in the place of the old one; only the hops go on counting.

use crate::format::properties::{self, Tag};
use crate::limits::{DEAD_LETTER_BYTES_MAX, NACK_TEXT_BYTES_MAX, NAME_BYTES_MAX};

/// All of these headers begin so.
pub const PREFIX: &[u8] = b"dead-letter-";
/// Queue that the message comes from.
pub const QUEUE: &[u8] = b"dead-letter-queue";
/// Its subscription that gave the message up.
pub const SUBSCRIPTION: &[u8] = b"dead-letter-subscription";
/// The message's sequence in that queue.
pub const SEQUENCE: &[u8] = b"dead-letter-sequence";
/// Why: `max_attempts` or `rejected`.
pub const REASON: &[u8] = b"dead-letter-reason";
/// What the consumer said last; absent if it said nothing.
pub const ERROR: &[u8] = b"dead-letter-error";
/// How often it was delivered.
pub const ATTEMPTS: &[u8] = b"dead-letter-attempts";
/// When it first failed, microseconds since 1970 UTC.
pub const FIRST_US: &[u8] = b"dead-letter-first-us";
/// When it last failed.
pub const LAST_US: &[u8] = b"dead-letter-last-us";
/// How often it was a dead letter, queue after queue.
pub const HOPS: &[u8] = b"dead-letter-hops";

const NAMES: [&[u8]; 9] =
    [QUEUE, SUBSCRIPTION, SEQUENCE, REASON, ERROR, ATTEMPTS, FIRST_US, LAST_US, HOPS];

/// What is written on a dead letter; the hops are counted from what it says already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetter<'a> {
    /// See [`QUEUE`].
    pub queue: &'a str,
    /// See [`SUBSCRIPTION`].
    pub subscription: &'a str,
    /// See [`SEQUENCE`].
    pub sequence: u64,
    /// See [`REASON`].
    pub reason: &'a str,
    /// See [`ERROR`]; may be empty.
    pub error: &'a str,
    /// See [`ATTEMPTS`].
    pub attempts: u32,
    /// See [`FIRST_US`].
    pub first_us: u64,
    /// See [`LAST_US`].
    pub last_us: u64,
}

/// The properties of a message without what a move adds: dead-letter headers and the length of a
/// body in fragments.
pub fn stripped(block: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(block.len() + DEAD_LETTER_BYTES_MAX);
    for (number, value) in properties::walk(block).map_while(Result::ok) {
        let is_ours = number == Tag::Header as u8
            && properties::split_header(value).is_some_and(|(key, _)| NAMES.contains(&key));
        if !is_ours && number != Tag::BodyBytesTotal as u8 {
            push(&mut kept, number, &[value]);
        }
    }
    kept
}

/// The properties of a message that becomes a dead letter; as [`stripped`], and the headers.
pub fn marked(block: &[u8], letter: &DeadLetter<'_>) -> Vec<u8> {
    let mut marked = stripped(block);
    let before = marked.len();
    let mut header = |name: &[u8], value: &str| {
        push(&mut marked, Tag::Header as u8, &[&[name.len() as u8], name, value.as_bytes()]);
    };
    header(QUEUE, cut(letter.queue, NAME_BYTES_MAX));
    header(SUBSCRIPTION, cut(letter.subscription, NAME_BYTES_MAX));
    header(SEQUENCE, &letter.sequence.to_string());
    header(REASON, letter.reason);
    if !letter.error.is_empty() {
        header(ERROR, cut(letter.error, NACK_TEXT_BYTES_MAX));
    }
    header(ATTEMPTS, &letter.attempts.to_string());
    header(FIRST_US, &letter.first_us.to_string());
    header(LAST_US, &letter.last_us.to_string());
    header(HOPS, &hops(block).saturating_add(1).to_string());
    debug_assert!(marked.len() - before + LENGTH_BYTES <= DEAD_LETTER_BYTES_MAX);
    marked
}

/// Bytes that [`with_length`] adds.
pub const LENGTH_BYTES: usize = 11;

/// The same properties, and the length of a body that is cut in fragments.
pub fn with_length(mut block: Vec<u8>, body_bytes: u64) -> Vec<u8> {
    push(&mut block, Tag::BodyBytesTotal as u8, &[&body_bytes.to_le_bytes()]);
    block
}

/// How often the message was a dead letter.
pub fn hops(block: &[u8]) -> u32 {
    text(block, HOPS).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The text of one of these headers, if the message has it.
pub fn text<'a>(block: &'a [u8], name: &[u8]) -> Option<&'a str> {
    std::str::from_utf8(header(block, name)?).ok()
}

/// The value of a message's first header of that name.
pub fn header<'a>(block: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    properties::walk(block)
        .map_while(Result::ok)
        .filter(|(number, _)| *number == Tag::Header as u8)
        .filter_map(|(_, value)| properties::split_header(value))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn push(block: &mut Vec<u8>, number: u8, parts: &[&[u8]]) {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = u16::try_from(bytes).expect("a property has less than 64 KiB");
    block.push(number);
    block.extend_from_slice(&bytes.to_le_bytes());
    parts.iter().for_each(|part| block.extend_from_slice(part));
}

/// The front of `text`, at most `bytes_max`, cut between characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::properties::PropertiesBuilder;
    use crate::limits::{HEADERS_MAX, PROPERTIES_BYTES_MAX};

    const LETTER: DeadLetter<'static> = DeadLetter {
        queue: "orders",
        subscription: "default",
        sequence: 7,
        reason: "rejected",
        error: "no such product",
        attempts: 3,
        first_us: 1_900_000_000_000_000,
        last_us: 1_900_000_000_000_001,
    };

    #[test]
    fn what_is_written_on_is_read_and_taken_off_again() {
        let mut own = PropertiesBuilder::default();
        own.push(Tag::MessageId, b"id").unwrap();
        own.header(b"lang", b"en").unwrap();
        own.header(b"dead-letter-office", b"a header of the user's").unwrap();
        let marked_once = marked(own.bytes(), &LETTER);
        assert_eq!(text(&marked_once, QUEUE), Some("orders"));
        assert_eq!(text(&marked_once, SEQUENCE), Some("7"));
        assert_eq!(text(&marked_once, ERROR), Some("no such product"));
        assert_eq!(text(&marked_once, LAST_US), Some("1900000000000001"));
        assert_eq!(hops(&marked_once), 1);
        assert_eq!(stripped(&marked_once), own.bytes());
        // A new set in the place of the old one; a silent consumer leaves no old word behind.
        let other = DeadLetter { queue: "orders.dead", error: "", ..LETTER };
        let marked_twice = marked(&marked_once, &other);
        assert_eq!(text(&marked_twice, QUEUE), Some("orders.dead"));
        assert_eq!((text(&marked_twice, ERROR), hops(&marked_twice)), (None, 2));
        assert_eq!(stripped(&marked_twice), own.bytes());
    }

    #[test]
    fn the_reserve_holds_the_longest_set() {
        let mut own = PropertiesBuilder::default();
        for _ in 0..HEADERS_MAX {
            own.header(b"k", b"v").unwrap();
        }
        let rest = PROPERTIES_BYTES_MAX - own.bytes().len() - 3;
        own.push(Tag::MessageId, &vec![1; rest]).unwrap();
        let long = "n".repeat(NAME_BYTES_MAX);
        let error = "é".repeat(NACK_TEXT_BYTES_MAX);
        let letter = DeadLetter {
            queue: &long,
            subscription: &long,
            sequence: u64::MAX,
            reason: "max_attempts",
            error: &error,
            attempts: u32::MAX,
            first_us: u64::MAX,
            last_us: u64::MAX,
        };
        let marked = with_length(marked(own.bytes(), &letter), 5);
        assert!(marked.len() <= PROPERTIES_BYTES_MAX + DEAD_LETTER_BYTES_MAX);
        assert_eq!(properties::find_u64(&marked, Tag::BodyBytesTotal), Some(5));
        assert_eq!(text(&marked, ERROR).map(str::len), Some(NACK_TEXT_BYTES_MAX));
        assert_eq!(stripped(&marked), own.bytes());
    }

    #[test]
    fn damage_ends_the_walk_and_nothing_else() {
        assert!(stripped(&[2, 9, 0, 1]).is_empty());
        assert_eq!(hops(&[3, 200]), 0);
    }
}
