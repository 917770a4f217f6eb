//! A message as a line of JSON.

use crate::cli::wall::rfc3339;
use crate::client::{Delivery, PeekedMessage, Properties};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// A message with every field. Text stands as text; bytes that are not UTF-8 stand as base64: the
/// body under another name, other values as `{"base64": "..."}`.
#[derive(Serialize)]
pub struct MessageLine<'a> {
    queue: &'a str,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    delivery_id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redelivered: Option<bool>,
    accepted_at: String,
    accepted_us: u64,
    message_id: Option<Text<'a>>,
    content_type: Option<&'a str>,
    correlation_id: Option<Text<'a>>,
    reply_to: Option<&'a str>,
    trace_context: Option<&'a str>,
    headers: Headers<'a>,
    body_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
}

impl<'a> MessageLine<'a> {
    /// A delivered message.
    pub fn of_delivery(queue: &'a str, delivery: &Delivery<'a>) -> MessageLine<'a> {
        let (body, properties) = (delivery.body(), delivery.properties());
        let (sequence, accepted_us) = (delivery.sequence(), delivery.accepted_us());
        let body_bytes = body.len() as u64;
        MessageLine {
            delivery_id: Some(delivery.id().number()),
            attempts: Some(delivery.attempts()),
            redelivered: Some(delivery.redelivered()),
            ..MessageLine::new(queue, sequence, accepted_us, properties, body, body_bytes)
        }
    }

    /// A peeked message. `body_bytes` is of the whole body, which may have been cut.
    pub fn of_peeked(queue: &'a str, message: &'a PeekedMessage) -> MessageLine<'a> {
        let properties = Properties::new(message.properties.as_deref().unwrap_or_default());
        let body = message.body.as_deref().unwrap_or_default();
        let accepted_us = message.accepted_wall_us;
        MessageLine::new(queue, message.sequence, accepted_us, properties, body, message.body_bytes)
    }

    fn new(
        queue: &'a str,
        sequence: u64,
        accepted_us: u64,
        properties: Properties<'a>,
        body: &'a [u8],
        body_bytes: u64,
    ) -> MessageLine<'a> {
        let text = std::str::from_utf8(body).ok();
        MessageLine {
            queue,
            sequence,
            delivery_id: None,
            attempts: None,
            redelivered: None,
            accepted_at: rfc3339(accepted_us),
            accepted_us,
            message_id: properties.message_id().map(Text),
            content_type: properties.content_type(),
            correlation_id: properties.correlation_id().map(Text),
            reply_to: properties.reply_to(),
            trace_context: properties.trace_context(),
            headers: Headers(properties),
            body_bytes,
            body: text,
            body_base64: text.is_none().then(|| BASE64.encode(body)),
        }
    }
}

/// Bytes that are most likely text.
#[derive(Clone, Copy)]
struct Text<'a>(&'a [u8]);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(text) = std::str::from_utf8(self.0) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("base64", &BASE64.encode(self.0))?;
        map.end()
    }
}

/// Headers as an object; a key that stands several times has a list of its values.
struct Headers<'a>(Properties<'a>);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut keys: Vec<(&[u8], Vec<Text<'_>>)> = Vec::new();
        for (key, value) in self.0.headers() {
            match keys.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.push(Text(value)),
                None => keys.push((key, vec![Text(value)])),
            }
        }
        let mut map = serializer.serialize_map(Some(keys.len()))?;
        for (key, values) in &keys {
            let key = String::from_utf8_lossy(key);
            match values.as_slice() {
                [value] => map.serialize_entry(&key, value)?,
                values => map.serialize_entry(&key, values)?,
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Message;
    use serde_json::{Value, json};

    fn peeked(message: &Message<'_>) -> Value {
        let message = PeekedMessage {
            sequence: 7,
            accepted_wall_us: 1_234_567_890_000_007,
            properties: Some(message.properties().bytes().to_vec()),
            body: Some(message.body().to_vec()),
            body_bytes: message.body().len() as u64,
        };
        serde_json::to_value(MessageLine::of_peeked("jobs", &message)).unwrap()
    }

    #[test]
    fn every_field_of_a_plain_message() {
        let expected = json!({
            "queue": "jobs",
            "sequence": 7,
            "accepted_at": "2009-02-13T23:31:30.000007Z",
            "accepted_us": 1_234_567_890_000_007_u64,
            "message_id": null,
            "content_type": null,
            "correlation_id": null,
            "reply_to": null,
            "trace_context": null,
            "headers": {},
            "body_bytes": 5,
            "body": "grün",
        });
        assert_eq!(peeked(&Message::from("grün")), expected);
    }

    #[test]
    fn bytes_that_are_no_text_are_base64() {
        let line = peeked(&Message::from(b"\xff\x00"));
        assert_eq!(line["body_base64"], "/wA=");
        assert!(line.get("body").is_none());
        let empty = peeked(&Message::from(b""));
        assert_eq!((&empty["body"], empty.get("body_base64")), (&json!(""), None));
    }

    #[test]
    fn properties_and_headers() {
        let message = Message::from("x")
            .message_id("m-1")
            .and_then(|message| message.content_type("text/plain"))
            .and_then(|message| message.correlation_id(b"\xff"))
            .and_then(|message| message.header("one", "1"))
            .and_then(|message| message.header("many", "a"))
            .and_then(|message| message.header("many", b"\xff"))
            .unwrap();
        let line = peeked(&message);
        assert_eq!(line["message_id"], "m-1");
        assert_eq!(line["content_type"], "text/plain");
        assert_eq!(line["correlation_id"], json!({ "base64": "/w==" }));
        assert_eq!(line["headers"], json!({ "one": "1", "many": ["a", { "base64": "/w==" }] }));
    }
}
