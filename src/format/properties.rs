//! The properties block of a record: optional facts about a message, as a list of
//! `tag u8 | length u16 | value`. Unknown tags are carried along and ignored; a tag at most once,
//! except headers.

use crate::format::{u16_at, u64_at};
use crate::limits::{HEADER_KEY_BYTES_MAX, HEADERS_MAX, PROPERTIES_BYTES_MAX};

/// What a property says. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tag {
    /// Length of the whole body of a message in fragments: u64.
    BodyBytesTotal = 1,
    /// Id given by the producer, kept over moves and redrive: bytes.
    MessageId = 2,
    /// One header: key length u8, key, value.
    Header = 3,
    /// Ordering group: bytes.
    Key = 4,
    /// Not to be delivered before: u64, microseconds since 1970 UTC. The broker acts on it.
    DeliverAt = 5,
    /// Not to be delivered after: u64, microseconds since 1970 UTC. The broker acts on it.
    ExpiresAt = 6,
    /// Duplicates by this id are dropped: bytes. The broker acts on it.
    DedupId = 7,
    /// Media type of the body: text.
    ContentType = 8,
    /// Ties a reply to its request: bytes.
    CorrelationId = 9,
    /// Name of the queue for replies: text.
    ReplyTo = 10,
    /// W3C traceparent: text.
    TraceContext = 11,
}

const TAGS: [Tag; 11] = [
    Tag::BodyBytesTotal,
    Tag::MessageId,
    Tag::Header,
    Tag::Key,
    Tag::DeliverAt,
    Tag::ExpiresAt,
    Tag::DedupId,
    Tag::ContentType,
    Tag::CorrelationId,
    Tag::ReplyTo,
    Tag::TraceContext,
];

impl Tag {
    /// The tag of a number, if this version knows it.
    pub fn from_u8(number: u8) -> Option<Tag> {
        TAGS.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// Whether the broker has to act on it, so that the record's flag must say so.
    pub fn concerns_broker(self) -> bool {
        matches!(
            self,
            Tag::BodyBytesTotal | Tag::Key | Tag::DeliverAt | Tag::ExpiresAt | Tag::DedupId
        )
    }
}

/// Why a properties block is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PropertiesError {
    /// The block ends inside a property.
    #[error("the properties end inside a property")]
    Truncated,
    /// A u64 property that is not eight bytes, or a header without its key.
    #[error("property {0} has a wrong length")]
    WrongLength(u8),
    /// A property that may stand once stands twice.
    #[error("property {0} stands twice")]
    Twice(u8),
    /// More than [`HEADERS_MAX`] headers.
    #[error("more than {HEADERS_MAX} headers")]
    TooManyHeaders,
    /// The block passes [`PROPERTIES_BYTES_MAX`], or would.
    #[error("properties over {PROPERTIES_BYTES_MAX} bytes")]
    TooLarge,
    /// A header's key is empty or over [`HEADER_KEY_BYTES_MAX`] bytes.
    #[error("a header key must have 1 to {HEADER_KEY_BYTES_MAX} bytes")]
    HeaderKey,
}

/// Walks `(tag number, value)` pairs, unknown tags included.
pub fn walk(block: &[u8]) -> impl Iterator<Item = Result<(u8, &[u8]), PropertiesError>> {
    let mut rest = block;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if rest.len() < 3 || rest.len() < 3 + usize::from(u16_at(rest, 1)) {
            rest = &[];
            return Some(Err(PropertiesError::Truncated));
        }
        let (tag, value_bytes) = (rest[0], usize::from(u16_at(rest, 1)));
        let value = &rest[3..3 + value_bytes];
        rest = &rest[3 + value_bytes..];
        Some(Ok((tag, value)))
    })
}

/// Splits the value of a [`Tag::Header`] into key and value.
pub fn split_header(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&key_bytes, rest) = value.split_first()?;
    if key_bytes == 0 {
        return None;
    }
    rest.split_at_checked(usize::from(key_bytes))
}

/// Checks a whole block as a producer may send it: lengths, doubles, numbers of headers. Returns
/// the known tags that concern the broker, as a bit set by tag number.
pub fn check(block: &[u8]) -> Result<u32, PropertiesError> {
    if block.len() > PROPERTIES_BYTES_MAX {
        return Err(PropertiesError::TooLarge);
    }
    let (mut seen, mut headers) = (0u32, 0);
    for property in walk(block) {
        let (number, value) = property?;
        let Some(tag) = Tag::from_u8(number) else { continue };
        match tag {
            Tag::Header => {
                headers += 1;
                if headers > HEADERS_MAX {
                    return Err(PropertiesError::TooManyHeaders);
                }
                split_header(value).ok_or(PropertiesError::WrongLength(number))?;
                continue;
            }
            Tag::BodyBytesTotal | Tag::DeliverAt | Tag::ExpiresAt if value.len() != 8 => {
                return Err(PropertiesError::WrongLength(number));
            }
            _ => {}
        }
        if seen & 1 << number != 0 {
            return Err(PropertiesError::Twice(number));
        }
        seen |= 1 << number;
    }
    Ok(TAGS.iter().filter(|tag| tag.concerns_broker()).fold(0, |set, &tag| set | 1 << tag as u8)
        & seen)
}

/// The value of the first property `tag`; `None` if it is absent or the block is damaged before it.
pub fn find(block: &[u8], tag: Tag) -> Option<&[u8]> {
    walk(block)
        .map_while(Result::ok)
        .find(|(number, _)| *number == tag as u8)
        .map(|(_, value)| value)
}

/// The value of a u64 property.
pub fn find_u64(block: &[u8], tag: Tag) -> Option<u64> {
    find(block, tag).filter(|value| value.len() == 8).map(|value| u64_at(value, 0))
}

/// Builds a block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertiesBuilder {
    bytes: Vec<u8>,
    concerns_broker: bool,
    headers: usize,
}

impl PropertiesBuilder {
    /// Adds a property; use [`PropertiesBuilder::header`] for headers.
    pub fn push(&mut self, tag: Tag, value: &[u8]) -> Result<(), PropertiesError> {
        let value_bytes = u16::try_from(value.len()).map_err(|_| PropertiesError::TooLarge)?;
        if self.bytes.len() + 3 + value.len() > PROPERTIES_BYTES_MAX {
            return Err(PropertiesError::TooLarge);
        }
        self.bytes.push(tag as u8);
        self.bytes.extend_from_slice(&value_bytes.to_le_bytes());
        self.bytes.extend_from_slice(value);
        self.concerns_broker |= tag.concerns_broker();
        Ok(())
    }

    /// Adds a header.
    pub fn header(&mut self, key: &[u8], value: &[u8]) -> Result<(), PropertiesError> {
        let key_bytes = u8::try_from(key.len()).map_err(|_| PropertiesError::HeaderKey)?;
        if key_bytes == 0 {
            return Err(PropertiesError::HeaderKey);
        }
        if self.headers == HEADERS_MAX {
            return Err(PropertiesError::TooManyHeaders);
        }
        let mut joined = Vec::with_capacity(1 + key.len() + value.len());
        joined.push(key_bytes);
        joined.extend_from_slice(key);
        joined.extend_from_slice(value);
        self.push(Tag::Header, &joined)?;
        self.headers += 1;
        Ok(())
    }

    /// The block.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the record's flag must say that the broker has to look.
    pub fn concerns_broker(&self) -> bool {
        self.concerns_broker
    }

    /// Starts anew, keeping the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.concerns_broker = false;
        self.headers = 0;
    }
}
