//! What can be chosen when connecting, publishing and consuming, with the defaults.

use crate::client::session::ConsumerSettings;
use crate::client::subscription::lease_ms;
use crate::client::{BrokerError, ClientError, LostReason};
use crate::limits::{
    BATCH_RECORDS_BYTES_MAX, CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, HEARTBEAT_MS_MAX,
    HEARTBEAT_MS_MIN, MIB, TOKEN_BYTES_MAX,
};
use crate::protocol::wire::{self, ConfirmAt, OnFull};
use std::sync::Arc;
use std::time::Duration;

/// Where a broker listens when nothing else is said.
pub const DEFAULT_SERVER: &str = "127.0.0.1:7440";

/// How to reach a broker and what to do when it cannot be reached.
#[derive(Clone)]
pub struct ConnectOptions {
    /// `host:port`, tried in turn. Default: [`DEFAULT_SERVER`].
    pub servers: Vec<String>,
    /// The broker's token, if it wants one.
    pub token: Option<String>,
    /// Told to the broker, for logs and listings to come. Default: the name of the program.
    pub client_name: String,
    /// For one attempt: TCP connect and hello together. Default 5 s.
    pub connect_timeout: Duration,
    /// What to do when the connection is lost, and when the first one cannot be made.
    pub reconnect: ReconnectPolicy,
    /// After so long without a byte from the broker it is asked to answer, and after as long
    /// again the connection is given up. Where a thread or task can keep it (not in the blocking
    /// consumer), the broker is promised as much, and gives up a client that is silent for twice
    /// as long. 100 ms to 1 h; default 10 s.
    pub heartbeat: Duration,
    /// Have a publisher's or consumer's connection handed to the shard of the broker that has its
    /// queue, so that messages do not cross from one to another. Default true.
    pub attach: bool,
    /// For one request of [`Connection`](crate::client::Connection). Default 30 s.
    pub request_timeout: Duration,
    /// Spin on the socket instead of sleeping: lowest latency, one core per waiting thread.
    pub busy_poll: bool,
    /// Told of each change of a connection's state, on the thread that saw it. Must be quick.
    pub on_event: Option<EventSink>,
}

/// Receives [`ConnectionEvent`]s.
pub type EventSink = Arc<dyn Fn(&ConnectionEvent) + Send + Sync>;

impl ConnectOptions {
    /// Defaults for one server.
    pub fn new(server: impl Into<String>) -> Self {
        ConnectOptions { servers: vec![server.into()], ..ConnectOptions::default() }
    }

    /// Calls `sink` on every change of state.
    pub fn on_event(mut self, sink: impl Fn(&ConnectionEvent) + Send + Sync + 'static) -> Self {
        self.on_event = Some(Arc::new(sink));
        self
    }

    pub(crate) fn tell(&self, event: &ConnectionEvent) {
        if let Some(sink) = &self.on_event {
            sink(event);
        }
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let bad = |name, reason: &str| Err(ClientError::Option { name, reason: reason.into() });
        if self.servers.is_empty() {
            return bad("servers", "at least one is needed");
        }
        if self.token.as_ref().is_some_and(|token| token.len() > TOKEN_BYTES_MAX) {
            return bad("token", "over 256 bytes");
        }
        let heartbeat_ms = self.heartbeat.as_millis();
        if !(u128::from(HEARTBEAT_MS_MIN)..=u128::from(HEARTBEAT_MS_MAX)).contains(&heartbeat_ms) {
            return bad("heartbeat", "must be 100 ms to 1 h");
        }
        if self.connect_timeout.is_zero() {
            return bad("connect_timeout", "must not be zero");
        }
        Ok(())
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            servers: vec![DEFAULT_SERVER.into()],
            token: None,
            client_name: program_name(),
            connect_timeout: Duration::from_secs(5),
            reconnect: ReconnectPolicy::default(),
            heartbeat: Duration::from_secs(10),
            attach: true,
            request_timeout: Duration::from_secs(30),
            busy_poll: false,
            on_event: None,
        }
    }
}

impl std::fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token is a secret; whether there is one is not.
        f.debug_struct("ConnectOptions")
            .field("servers", &self.servers)
            .field("token", &self.token.is_some())
            .field("client_name", &self.client_name)
            .field("connect_timeout", &self.connect_timeout)
            .field("reconnect", &self.reconnect)
            .field("heartbeat", &self.heartbeat)
            .field("attach", &self.attach)
            .field("busy_poll", &self.busy_poll)
            .finish_non_exhaustive()
    }
}

fn program_name() -> String {
    let program = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = program.as_deref().and_then(std::path::Path::file_name);
    name.map_or_else(|| "forebay-client".into(), |name| name.to_string_lossy().into_owned())
}

/// Attempts to connect: exponential back-off with full jitter, within a total time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReconnectPolicy {
    /// Upper bound of the first pause; each next one is twice that. Default 50 ms.
    pub pause_first: Duration,
    /// Where the doubling ends. Default 2 s.
    pub pause_max: Duration,
    /// How long to try in all, since the connection was lost. Zero: never reconnect, and try the
    /// first connection once per server. Default 30 s.
    pub give_up_after: Duration,
    /// Whether the first connection is tried as long too, or once per server. Default: once.
    pub also_at_first: bool,
}

impl ReconnectPolicy {
    /// One attempt per server, no reconnect.
    pub fn never() -> Self {
        ReconnectPolicy { give_up_after: Duration::ZERO, ..ReconnectPolicy::default() }
    }

    /// Tries for so long, at first too.
    pub fn within(give_up_after: Duration) -> Self {
        ReconnectPolicy { give_up_after, also_at_first: true, ..ReconnectPolicy::default() }
    }
}

impl Default for ReconnectPolicy {
    fn default() -> Self {
        ReconnectPolicy {
            pause_first: Duration::from_millis(50),
            pause_max: Duration::from_secs(2),
            give_up_after: Duration::from_secs(30),
            also_at_first: false,
        }
    }
}

/// A change of a connection's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// Connected, hello answered.
    Connected {
        /// The server's address as it was given.
        server: String,
    },
    /// The connection ended; unless the policy says otherwise, it is tried again.
    Disconnected {
        /// Why.
        reason: LostReason,
    },
    /// The broker is going down: it takes nothing new and closes soon.
    Draining {
        /// Why, in the broker's words.
        reason: String,
    },
    /// The queue takes no messages for now; publishes wait.
    Blocked {
        /// Why, with the name of the limit.
        reason: String,
        /// When it may be over, if the broker has an idea.
        retry_after: Option<Duration>,
    },
    /// It takes messages again.
    Unblocked,
    /// The queue was gone; what was done about it is in the options.
    QueueMissing {
        /// Its name.
        queue: String,
    },
    /// The broker had forgotten this publisher. Its unconfirmed messages were sent again under a
    /// new producer id, so those of them that had been stored before are there twice.
    ProducerRenewed {
        /// Messages that were sent again.
        messages: u64,
    },
    /// A fault that the broker reports unasked, such as an ack of what is in flight no more.
    Fault {
        /// What it says.
        error: BrokerError,
    },
}

/// What to do when a publisher's or consumer's queue does not exist, at first or after the broker
/// was restarted: transient queues end with their broker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MissingQueue {
    /// Fail with [`ClientError::QueueMissing`].
    #[default]
    Fail,
    /// Try again, under the reconnect policy, until somebody has created it.
    Retry,
    /// Create it, and the subscription of a consumer; but what was deleted while it was open stays
    /// deleted.
    Create(QueueOptions),
}

/// Options of a queue. Zero limits mean none, or the broker's default for `message_bytes_max`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    /// It outlives the broker, and confirms come when messages are on disk.
    pub durable: bool,
    /// Of a durable queue: what a message has reached when its confirm comes.
    pub confirm: ConfirmAt,
    /// Messages that the queue may hold.
    pub messages_max: u64,
    /// Bytes that the queue may hold.
    pub bytes_max: u64,
    /// What happens when it is full.
    pub on_full: OnFull,
    /// Largest body.
    pub message_bytes_max: u64,
}

impl QueueOptions {
    pub(crate) fn to_wire(&self) -> wire::QueueOptionsT {
        wire::QueueOptionsT {
            durable: self.durable,
            confirm: self.confirm,
            messages_max: self.messages_max,
            bytes_max: self.bytes_max,
            on_full: self.on_full,
            message_bytes_max: self.message_bytes_max,
        }
    }
}

/// What to change of a queue; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueChange {
    /// Messages that the queue may hold; 0: no limit.
    pub messages_max: Option<u64>,
    /// Bytes that the queue may hold; 0: no limit.
    pub bytes_max: Option<u64>,
    /// What happens when it is full.
    pub on_full: Option<OnFull>,
    /// Largest body; 0: the broker's default.
    pub message_bytes_max: Option<u64>,
}

/// How a publisher gathers and sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublisherOptions {
    /// Deduplicates resends. `None`: a random one. 0: none, so that resends after a reconnect may
    /// store messages twice. Two publishers must not use the same id at once: the later one wins.
    pub producer_id: Option<u64>,
    /// A gathered batch is sent when it has so many bytes. At most 256 KiB; default 64 KiB.
    pub batch_bytes: usize,
    /// While something is unconfirmed, a batch is sent no sooner than this after the last one, so
    /// that a fast caller fills batches and a slow one does not wait. Zero: every publish is sent
    /// at once. Default 20 us.
    pub gather: Duration,
    /// No gathered message waits longer, also when the caller has gone silent. Default 1 ms.
    pub linger: Duration,
    /// Unconfirmed and unsent bytes over which a publish waits. Default 2 MiB. One message may
    /// pass it.
    pub outstanding_bytes_max: usize,
    /// What to do when the queue does not exist.
    pub on_missing_queue: MissingQueue,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        PublisherOptions {
            producer_id: None,
            batch_bytes: 64 * 1024,
            gather: Duration::from_micros(20),
            linger: Duration::from_millis(1),
            outstanding_bytes_max: 2 * MIB,
            on_missing_queue: MissingQueue::Fail,
        }
    }
}

impl PublisherOptions {
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let bad = |name, reason: &str| Err(ClientError::Option { name, reason: reason.into() });
        if self.batch_bytes == 0 || self.batch_bytes > BATCH_RECORDS_BYTES_MAX {
            return bad("batch_bytes", "must be 1 to about 256 KiB");
        }
        if self.outstanding_bytes_max == 0 {
            return bad("outstanding_bytes_max", "must not be zero");
        }
        Ok(())
    }
}

/// What a consumer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Messages that the broker may send ahead of [`recv`](crate::client::Consumer::recv). 0: it
    /// sends none unless asked by [`pull`](crate::client::Consumer::pull). Default 256.
    pub credit_messages: u32,
    /// Bytes that the broker may send ahead. Default 4 MiB.
    pub credit_bytes: u64,
    /// Grant new credit as messages are handed out, so that the broker keeps sending. Without it
    /// the consumer gets what it was granted at first and by
    /// [`grant`](crate::client::Consumer::grant). Default true.
    pub replenish: bool,
    /// Delivered means done: at most once, nothing to ack. Default false.
    pub auto_ack: bool,
    /// Which of the queue's subscriptions; empty: `default`.
    pub subscription: String,
    /// How long this consumer has for each message before it counts as failed: 100 ms to 12 h.
    /// `None`: as the subscription says.
    pub lease: Option<Duration>,
    /// Leases of messages that are not answered are extended, at half of the lease, until so long
    /// after they came; zero: never. `None`: the tokio consumer does so for an hour, the blocking
    /// one never, for it has no thread of its own and extends only when it is called.
    pub extend_for: Option<Duration>,
    /// Messages that it may have unacked at a time; 0: as many as its credit allows.
    pub unacked_max: u32,
    /// Have the broker add a checksum to each delivery, and check it: a delivery that fails ends
    /// the connection, and is delivered again by the next. Default false.
    pub checksum: bool,
    /// What to do when the queue does not exist.
    pub on_missing_queue: MissingQueue,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        ConsumerOptions {
            credit_messages: 256,
            credit_bytes: 4 * MIB as u64,
            replenish: true,
            auto_ack: false,
            subscription: String::new(),
            lease: None,
            extend_for: None,
            unacked_max: 0,
            checksum: false,
            on_missing_queue: MissingQueue::Fail,
        }
    }
}

impl ConsumerOptions {
    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let bad = |name, reason: &str| Err(ClientError::Option { name, reason: reason.into() });
        if self.credit_messages > CREDIT_MESSAGES_MAX {
            return bad("credit_messages", "over 1,000,000");
        }
        if self.credit_bytes > CREDIT_BYTES_MAX {
            return bad("credit_bytes", "over 1 GiB");
        }
        if (self.credit_messages == 0) != (self.credit_bytes == 0) {
            return bad("credit_messages", "messages and bytes: both zero, or none");
        }
        self.lease.map_or(Ok(()), |lease| lease_ms(lease).map(|_| ()))
    }

    /// The session's part of it.
    pub(crate) fn settings(&self, queue: &str, extend_for: Duration) -> ConsumerSettings {
        let extend_for = self.extend_for.unwrap_or(extend_for).as_millis();
        ConsumerSettings {
            queue: queue.into(),
            subscription: self.subscription.clone(),
            auto_ack: self.auto_ack,
            checksum: self.checksum,
            credit_messages: self.credit_messages,
            credit_bytes: self.credit_bytes,
            lease_ms: self.lease.map_or(0, |lease| lease.as_millis() as u32),
            unacked_max: self.unacked_max,
            hold_ms: u64::try_from(extend_for).unwrap_or(u64::MAX),
            replenish: self.replenish,
        }
    }
}
