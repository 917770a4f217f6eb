//! Messages: what is published, and the properties of what is received.

use crate::client::ClientError;
use crate::format::properties::{self, PropertiesBuilder, Tag};
use std::borrow::Cow;

/// A message to publish: a body and, if wanted, properties.
///
/// ```
/// use forebay::client::Message;
///
/// let plain = Message::from("hello");
/// let described = Message::new(b"{}".as_slice())
///     .content_type("application/json")?
///     .header("tenant", b"blue")?;
/// # assert_eq!(plain.body(), b"hello");
/// # assert_eq!(described.properties().headers().count(), 1);
/// # Ok::<(), forebay::client::ClientError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Message<'a> {
    body: Cow<'a, [u8]>,
    properties: Cow<'a, PropertiesBuilder>,
}

impl<'a> Message<'a> {
    /// A message without properties. The body is borrowed or owned, as it comes.
    #[inline]
    pub fn new(body: impl Into<Cow<'a, [u8]>>) -> Self {
        Message { body: body.into(), properties: Cow::Owned(PropertiesBuilder::default()) }
    }

    /// The body.
    #[inline]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The properties so far.
    pub fn properties(&self) -> Properties<'_> {
        Properties::new(self.properties.bytes())
    }

    /// The encoded block and whether the broker has to look into it.
    #[inline]
    pub(crate) fn block(&self) -> (&[u8], bool) {
        (self.properties.bytes(), self.properties.concerns_broker())
    }

    /// Sets an id of the caller's choice; it stays with the message over moves and redrive.
    ///
    /// # Errors
    /// If the properties grow over 32 KiB; so also below.
    pub fn message_id(self, id: impl AsRef<[u8]>) -> Result<Self, ClientError> {
        self.property(Tag::MessageId, id.as_ref())
    }

    /// Adds a header. A key may stand several times; there may be 64.
    ///
    /// # Errors
    /// If the key is empty or over 255 bytes, or there are too many headers.
    pub fn header(mut self, key: &str, value: impl AsRef<[u8]>) -> Result<Self, ClientError> {
        self.properties.to_mut().header(key.as_bytes(), value.as_ref())?;
        Ok(self)
    }

    /// Says what the body is, as a media type.
    ///
    /// # Errors
    /// As [`Message::message_id`].
    pub fn content_type(self, media_type: &str) -> Result<Self, ClientError> {
        self.property(Tag::ContentType, media_type.as_bytes())
    }

    /// Ties a reply to its request.
    ///
    /// # Errors
    /// As [`Message::message_id`].
    pub fn correlation_id(self, id: impl AsRef<[u8]>) -> Result<Self, ClientError> {
        self.property(Tag::CorrelationId, id.as_ref())
    }

    /// Names the queue for replies.
    ///
    /// # Errors
    /// As [`Message::message_id`].
    pub fn reply_to(self, queue: &str) -> Result<Self, ClientError> {
        self.property(Tag::ReplyTo, queue.as_bytes())
    }

    /// Carries a W3C `traceparent`.
    ///
    /// # Errors
    /// As [`Message::message_id`].
    pub fn trace_context(self, traceparent: &str) -> Result<Self, ClientError> {
        self.property(Tag::TraceContext, traceparent.as_bytes())
    }

    fn property(mut self, tag: Tag, value: &[u8]) -> Result<Self, ClientError> {
        self.properties.to_mut().push(tag, value)?;
        Ok(self)
    }
}

impl<'a> From<&'a [u8]> for Message<'a> {
    #[inline]
    fn from(body: &'a [u8]) -> Self {
        Message::new(body)
    }
}

impl<'a, const N: usize> From<&'a [u8; N]> for Message<'a> {
    #[inline]
    fn from(body: &'a [u8; N]) -> Self {
        Message::new(body.as_slice())
    }
}

impl<'a> From<&'a Vec<u8>> for Message<'a> {
    #[inline]
    fn from(body: &'a Vec<u8>) -> Self {
        Message::new(body.as_slice())
    }
}

impl From<Vec<u8>> for Message<'_> {
    fn from(body: Vec<u8>) -> Self {
        Message::new(body)
    }
}

impl<'a> From<&'a str> for Message<'a> {
    #[inline]
    fn from(body: &'a str) -> Self {
        Message::new(body.as_bytes())
    }
}

impl From<String> for Message<'_> {
    fn from(body: String) -> Self {
        Message::new(body.into_bytes())
    }
}

impl<'a> From<&'a Message<'_>> for Message<'a> {
    #[inline]
    fn from(message: &'a Message<'_>) -> Self {
        Message {
            body: Cow::Borrowed(&message.body),
            properties: Cow::Borrowed(&message.properties),
        }
    }
}

/// The properties of a message, read from their encoded block when they are asked for. Damaged
/// blocks read as if they ended before the damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    block: &'a [u8],
}

impl<'a> Properties<'a> {
    /// Over an encoded block; empty for a message without properties.
    #[inline]
    pub fn new(block: &'a [u8]) -> Self {
        Properties { block }
    }

    /// The encoded block.
    pub fn bytes(&self) -> &'a [u8] {
        self.block
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// The id that the publisher gave.
    pub fn message_id(&self) -> Option<&'a [u8]> {
        properties::find(self.block, Tag::MessageId)
    }

    /// What the body is.
    pub fn content_type(&self) -> Option<&'a str> {
        self.text(Tag::ContentType)
    }

    /// Ties a reply to its request.
    pub fn correlation_id(&self) -> Option<&'a [u8]> {
        properties::find(self.block, Tag::CorrelationId)
    }

    /// The queue for replies.
    pub fn reply_to(&self) -> Option<&'a str> {
        self.text(Tag::ReplyTo)
    }

    /// The W3C `traceparent`.
    pub fn trace_context(&self) -> Option<&'a str> {
        self.text(Tag::TraceContext)
    }

    /// The value of the first header `key`.
    pub fn header(&self, key: &str) -> Option<&'a [u8]> {
        self.headers().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
    }

    /// All headers, in their order: keys and values.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        properties::walk(self.block)
            .map_while(Result::ok)
            .filter(|(number, _)| *number == Tag::Header as u8)
            .filter_map(|(_, value)| properties::split_header(value))
    }

    fn text(&self, tag: Tag) -> Option<&'a str> {
        properties::find(self.block, tag).and_then(|value| std::str::from_utf8(value).ok())
    }
}
