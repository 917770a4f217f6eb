//! What can go wrong for a client: one typed enum, each variant saying when it happens. What the
//! broker says keeps its code.

use crate::format::properties::PropertiesError;
use crate::protocol::error::ErrorCode;
use crate::protocol::wire;
use std::io::ErrorKind;
use std::time::Duration;

/// An error as the broker sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerError {
    /// The code's number on the wire, also when this version does not know it.
    pub number: u16,
    /// The code, if this version knows it.
    pub code: Option<ErrorCode>,
    /// What the broker says about it.
    pub text: String,
    /// When retrying may help; `None` if the broker did not say.
    pub retry_after: Option<Duration>,
    /// Name and value of the limit that was hit, when one was.
    pub limit: Option<(String, u64)>,
}

impl BrokerError {
    /// From the body of an ERROR or PUBLISH_ERROR frame.
    pub fn from_wire(error: &wire::ErrorT) -> BrokerError {
        let limit_name = error.limit_name.clone().filter(|name| !name.is_empty());
        BrokerError {
            number: error.code,
            code: ErrorCode::from_u16(error.code),
            text: error.text.clone().unwrap_or_default(),
            retry_after: (error.retry_after_ms > 0)
                .then(|| Duration::from_millis(u64::from(error.retry_after_ms))),
            limit: limit_name.map(|name| (name, error.limit_value)),
        }
    }

    /// The code's name, as in docs/PROTOCOL.md; `unknown` for a code of a newer broker.
    pub fn name(&self) -> &'static str {
        self.code.map_or("unknown", ErrorCode::name)
    }

    /// Whether the same request may work later without anything else being changed.
    pub fn is_retryable(&self) -> bool {
        self.code.is_some_and(ErrorCode::is_retryable)
    }
}

impl std::fmt::Display for BrokerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code {
            Some(code) => write!(f, "{code}")?,
            None => write!(f, "error {}", self.number)?,
        }
        if !self.text.is_empty() {
            write!(f, ": {}", self.text)?;
        }
        if let Some((name, value)) = &self.limit {
            write!(f, " ({name} = {value})")?;
        }
        Ok(())
    }
}

impl std::error::Error for BrokerError {}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LostReason {
    /// The system says so: reset, broken pipe, no route.
    #[error("the connection failed: {0}")]
    Io(ErrorKind),
    /// The broker closed it without saying why: it stopped or was killed.
    #[error("the broker closed the connection")]
    Closed,
    /// The broker said why and closed it.
    #[error("the broker ended the connection: {0}")]
    Fatal(BrokerError),
    /// Nothing was heard for two heartbeats although the broker was asked to answer.
    #[error("the broker was not heard of for too long")]
    Silent,
    /// The broker speaks another version, or sent what is no frame of this protocol.
    #[error("the peer does not speak this protocol: {0}")]
    Protocol(String),
}

/// Why a call of the client failed. Cheap to clone: one failure may answer many messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No server could be connected to, within the attempts or the time that the reconnect policy
    /// allows.
    #[error("cannot connect to {server}: {reason}")]
    Connect {
        /// The address tried last.
        server: String,
        /// What went wrong there.
        reason: LostReason,
    },
    /// An address that has no `host:port` form, or a name that does not resolve.
    #[error("bad server address {server:?}: {reason}")]
    Address {
        /// The address as it was given.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The connection ended while the call waited, and the call may have been done or not (a
    /// request that must not be done twice), or the policy is not to reconnect.
    #[error(transparent)]
    Lost(LostReason),
    /// The broker refused the request.
    #[error(transparent)]
    Broker(BrokerError),
    /// The broker refused the message for good: too large, an option it does not support, a queue
    /// that rejects when full. It was not stored.
    #[error("the message was refused: {0}")]
    Refused(BrokerError),
    /// The queue does not exist (any more): a transient queue ends with its broker. Create it and
    /// open again, or let [`MissingQueue`](crate::client::MissingQueue) do it.
    #[error("no queue {queue:?}: {error}")]
    QueueMissing {
        /// The queue.
        queue: String,
        /// `queue_not_found`, or `queue_deleted` when it went while the handle was open.
        error: BrokerError,
    },
    /// The message is over what the broker takes; nothing was sent.
    #[error("a message of {bytes} bytes is over the limit of {limit_bytes}")]
    MessageTooLarge {
        /// Bytes of properties and body.
        bytes: u64,
        /// What the broker takes.
        limit_bytes: u64,
    },
    /// A property that cannot be encoded.
    #[error(transparent)]
    Properties(#[from] PropertiesError),
    /// An option of the client with a value that it cannot have.
    #[error("bad option {name}: {reason}")]
    Option {
        /// Which.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The time given to the call is over; what it waited for may still come.
    #[error("timed out")]
    TimedOut,
    /// The publisher, consumer or connection was closed before.
    #[error("closed")]
    Closed,
}

impl ClientError {
    /// The broker's code behind this error, if there is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Broker(error)
            | ClientError::Refused(error)
            | ClientError::QueueMissing { error, .. }
            | ClientError::Lost(LostReason::Fatal(error))
            | ClientError::Connect { reason: LostReason::Fatal(error), .. } => error.code,
            _ => None,
        }
    }
}
