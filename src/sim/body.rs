//! Messages that prove themselves: every byte of a message follows from its identity, so loss,
//! doubles, order and damage are seen from the message alone.

use crate::base::prng::Prng;
use crate::format::properties::{self, PropertiesBuilder, Tag};
use crate::format::{u32_at, u64_at};
use crate::sim::letter::is_mark;

/// Who made a message, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Key of the producer in the model.
    pub producer: u32,
    /// Counts up from 1.
    pub number: u64,
}

/// Producer of messages that no broker may accept.
pub const GHOST: u32 = u32::MAX;

const IDENTITY_BYTES: usize = 12;

/// A message as its producer composes it.
pub struct Message {
    /// The properties block.
    pub properties: PropertiesBuilder,
    /// The body.
    pub body: Vec<u8>,
}

/// The message of `identity` with a body of `body_bytes`. `large` ones say their length.
pub fn compose(identity: Identity, body_bytes: usize, large: bool) -> Message {
    let mut prng = Prng::new(u64::from(identity.producer) << 40 ^ identity.number);
    let mut front = [0; IDENTITY_BYTES];
    front[..4].copy_from_slice(&identity.producer.to_le_bytes());
    front[4..].copy_from_slice(&identity.number.to_le_bytes());
    let mut properties = PropertiesBuilder::default();
    let mut push = |tag, value: &[u8]| {
        properties.push(tag, value).expect("a few short properties fit");
    };
    if large {
        push(Tag::BodyBytesTotal, &(body_bytes as u64).to_le_bytes());
    }
    if body_bytes < IDENTITY_BYTES {
        push(Tag::MessageId, &front);
    }
    if identity.number % 7 == 3 {
        push(Tag::ContentType, b"text/plain");
        properties.header(b"step", &front[4..]).expect("a short header fits");
    }
    let mut body = Vec::with_capacity(body_bytes + 8);
    if body_bytes >= IDENTITY_BYTES {
        body.extend_from_slice(&front);
    }
    while body.len() < body_bytes {
        body.extend_from_slice(&prng.next_u64().to_le_bytes());
    }
    body.truncate(body_bytes);
    Message { properties, body }
}

/// Finds out whose message it is and that each of its bytes is right. Where the properties say how
/// long the body is, that is checked too. What a dead letter says of itself may stand there.
///
/// # Errors
/// What is wrong with it.
pub fn recognise(properties: &[u8], body: &[u8]) -> Result<Identity, String> {
    let total = properties::find_u64(properties, Tag::BodyBytesTotal);
    if total.is_some_and(|total| total != body.len() as u64) {
        return Err(format!("{} bytes of a message of {total:?}", body.len()));
    }
    let front = match body.len() < IDENTITY_BYTES {
        true => properties::find(properties, Tag::MessageId).unwrap_or(&[]),
        false => &body[..IDENTITY_BYTES],
    };
    if front.len() != IDENTITY_BYTES {
        return Err(format!("a message of {} bytes without identity", body.len()));
    }
    let identity = Identity { producer: u32_at(front, 0), number: u64_at(front, 4) };
    let message = compose(identity, body.len(), false);
    let total = Tag::BodyBytesTotal as u8;
    let is_own = |property: &Result<(u8, &[u8]), _>| {
        property.as_ref().map_or(true, |(tag, value)| *tag != total && !is_mark(*tag, value))
    };
    let found = properties::walk(properties).filter(is_own);
    if message.body != body || !found.eq(properties::walk(message.properties.bytes())) {
        return Err(format!("message {identity:?} is damaged"));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_proves_itself() {
        for body_bytes in [0, 5, 12, 13, 4000] {
            let identity = Identity { producer: 3, number: 10 };
            let mut message = compose(identity, body_bytes, false);
            let properties = message.properties.bytes().to_vec();
            assert_eq!(recognise(&properties, &message.body), Ok(identity));
            if let Some(last) = message.body.last_mut() {
                *last ^= 1;
                assert!(recognise(&properties, &message.body).is_err());
            }
        }
    }
}
