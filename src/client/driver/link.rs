//! A connection and what makes it anew: session, socket, clock, and when to dial again.

use super::clock::{Clock, Pauses, may_pass, random_u64};
use super::{create_request, create_subscription_request};
use crate::base::time::Mono;
use crate::client::session::{Session, SessionConfig};
use crate::client::{
    BrokerError, ClientError, ConnectOptions, ConnectionEvent, ErrorCode, LostReason, MissingQueue,
};
use std::io::IoSlice;
use std::sync::Arc;

/// Slices of one gathered write.
pub(crate) const WRITE_SLICES_MAX: usize = 32;

/// A connected socket, as a link needs it.
pub(crate) trait Wire {
    /// Writes as much as the system takes without waiting; `None` if nothing.
    fn try_write(&self, slices: &[IoSlice<'_>]) -> Result<Option<usize>, LostReason>;

    /// Ends it, also for whoever waits in a read.
    fn shut(&self);
}

/// What a connection is for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    /// The queue whose home shard shall have it.
    pub(crate) attach: Option<String>,
    /// Somebody is there to keep a promised beat.
    pub(crate) heartbeats: bool,
}

pub(crate) struct Link<S> {
    pub(crate) options: ConnectOptions,
    pub(crate) session: Session,
    pub(crate) clock: Clock,
    socket: Option<Arc<S>>,
    /// Index of the server to be dialled next.
    server_next: usize,
    /// The server that is connected, or was dialled last.
    pub(crate) server: String,
    pub(crate) pauses: Pauses,
    /// When the next dial is due, while there is no connection.
    dial_at: Mono,
    /// The hello must be answered by then.
    hello_by: Option<Mono>,
    /// Changes that the caller was not told of yet.
    notices: Vec<ConnectionEvent>,
}

/// What to do about a missing connection.
pub(crate) enum Dial {
    /// Wait until then.
    At(Mono),
    /// Dial this server now.
    Now(String),
}

/// How a producer or consumer that could not be opened is opened after all.
pub(crate) enum Reopen {
    /// By asking again then.
    At(Mono),
    /// When the request that creates its queue is answered.
    Creating(Option<u32>),
}

impl<S: Wire> Link<S> {
    pub(crate) fn new(options: &ConnectOptions, setup: Setup) -> Result<Link<S>, ClientError> {
        options.check()?;
        Ok(Link {
            options: options.clone(),
            session: Session::new(session_config(options, setup)),
            clock: Clock::new(),
            socket: None,
            server_next: 0,
            server: options.servers[0].clone(),
            pauses: Pauses::new(),
            dial_at: Mono::default(),
            hello_by: None,
            notices: Vec::new(),
        })
    }

    /// Something that the caller shall be told by [`Link::take_notices`].
    pub(crate) fn note(&mut self, event: ConnectionEvent) {
        if self.options.on_event.is_some() {
            self.notices.push(event);
        }
    }

    /// Whether there is something that the caller was not told of yet.
    pub(crate) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// What the caller shall be told, outside of any lock.
    pub(crate) fn take_notices(&mut self) -> Vec<ConnectionEvent> {
        std::mem::take(&mut self.notices)
    }

    /// Tells the caller of all changes since the last time.
    pub(crate) fn tell(&mut self) {
        for event in self.take_notices() {
            self.options.tell(&event);
        }
    }

    pub(crate) fn socket(&self) -> Option<Arc<S>> {
        self.socket.clone()
    }

    /// The time by which the hello must be answered, while it is not.
    pub(crate) fn hello_by(&self) -> Option<Mono> {
        self.hello_by
    }

    pub(crate) fn is_down(&self) -> bool {
        self.socket.is_none()
    }

    /// What is to be done while there is no connection.
    pub(crate) fn plan_dial(&mut self) -> Dial {
        if self.dial_at > self.clock.now() {
            return Dial::At(self.dial_at);
        }
        self.server = self.options.servers[self.server_next].clone();
        self.server_next = (self.server_next + 1) % self.options.servers.len();
        Dial::Now(self.server.clone())
    }

    /// What came of [`Dial::Now`].
    pub(crate) fn dialled(&mut self, dialled: Result<S, ClientError>) -> Result<(), ClientError> {
        match dialled {
            Ok(socket) => {
                self.socket = Some(Arc::new(socket));
                self.session.handle_connected(self.clock.now());
                self.hello_by = self.clock.after(self.options.connect_timeout);
                Ok(())
            }
            Err(ClientError::Connect { reason, .. }) => self.plan_redial(reason),
            // A name that did resolve once may do so again.
            Err(ClientError::Address { .. }) if self.session.connection() > 0 => {
                self.plan_redial(LostReason::Io(std::io::ErrorKind::NotFound))
            }
            Err(error) => Err(error),
        }
    }

    /// The connection is of no use: closes it and plans the next, or says why there is none.
    pub(crate) fn drop_connection(&mut self, reason: LostReason) -> Result<(), ClientError> {
        let was_up = self.hello_by.take().is_none();
        if let Some(socket) = self.socket.take() {
            socket.shut();
            self.session.handle_disconnected();
            if was_up {
                self.note(ConnectionEvent::Disconnected { reason: reason.clone() });
                if self.options.reconnect.give_up_after.is_zero() {
                    return Err(ClientError::Lost(reason));
                }
            }
        }
        self.plan_redial(reason)
    }

    fn plan_redial(&mut self, reason: LostReason) -> Result<(), ClientError> {
        let failed = |server: &str, reason| ClientError::Connect { server: server.into(), reason };
        if !may_pass(&reason) {
            return Err(failed(&self.server, reason));
        }
        let now = self.clock.now();
        let policy = &self.options.reconnect;
        let first = self.session.connection() == 0;
        if first && !policy.also_at_first || policy.give_up_after.is_zero() {
            // Once per server, and never again after that.
            if self.server_next == 0 || !first {
                return Err(failed(&self.server, reason));
            }
            self.dial_at = now;
            return Ok(());
        }
        match self.pauses.failed(now, &self.options) {
            Some(at) => self.dial_at = at,
            None => return Err(failed(&self.server, reason)),
        }
        Ok(())
    }

    /// The hello was answered.
    pub(crate) fn connected(&mut self) {
        self.hello_by = None;
        self.pauses.connected(self.clock.now());
        self.note(ConnectionEvent::Connected { server: self.server.clone() });
    }

    /// Has the session do what time asks for.
    pub(crate) fn handle_due(&mut self, now: Mono) {
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
        }
    }

    /// The soonest of `until` and what the connection itself waits for.
    pub(crate) fn wake_at(&self, until: Option<Mono>) -> Option<Mono> {
        [until, self.session.poll_timeout(), self.hello_by].into_iter().flatten().min()
    }

    /// Sends what the system takes without waiting; false if something is left.
    pub(crate) fn try_flush(&mut self) -> Result<bool, LostReason> {
        let Some(socket) = &self.socket else { return Ok(true) };
        while self.session.wants_transmit() {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
            let count = self.session.transmit(&mut slices);
            let Some(bytes) = socket.try_write(&slices[..count])? else { return Ok(false) };
            self.session.transmitted(self.clock.now(), bytes);
        }
        Ok(true)
    }

    /// What to do when the broker refused to open, or closed, the producer or consumer on `queue`.
    pub(crate) fn plan_reopen(
        &mut self,
        queue: &str,
        subscription: &str,
        on_missing: &MissingQueue,
        error: BrokerError,
    ) -> Result<Reopen, ClientError> {
        use ErrorCode::{QueueDeleted, QueueNotFound, SubscriptionDeleted, SubscriptionNotFound};
        let queue_missing = matches!(error.code, Some(QueueNotFound | QueueDeleted));
        let missing =
            queue_missing || matches!(error.code, Some(SubscriptionNotFound | SubscriptionDeleted));
        let deleted = matches!(error.code, Some(QueueDeleted | SubscriptionDeleted));
        let retryable = error.is_retryable();
        let failure = match queue_missing {
            true => ClientError::QueueMissing { queue: queue.into(), error },
            false => ClientError::Broker(error),
        };
        // What somebody deleted on purpose is not put back.
        if deleted && matches!(on_missing, MissingQueue::Create(_)) {
            return Err(failure);
        }
        if queue_missing {
            self.note(ConnectionEvent::QueueMissing { queue: queue.into() });
        }
        match on_missing {
            MissingQueue::Create(options) if missing => {
                let request = match queue_missing {
                    true => create_request(queue, subscription, options),
                    false => create_subscription_request(queue, subscription),
                };
                return Ok(Reopen::Creating(self.session.request(&request)));
            }
            MissingQueue::Fail if missing => return Err(failure),
            _ if !missing && !retryable => return Err(failure),
            _ => {}
        }
        let now = self.clock.now();
        self.pauses.failed(now, &self.options).map(Reopen::At).ok_or(failure)
    }
}

/// The session's part of the options.
fn session_config(options: &ConnectOptions, setup: Setup) -> SessionConfig {
    let heartbeat_ms = options.heartbeat.as_millis() as u32;
    SessionConfig {
        client_name: options.client_name.clone(),
        token: options.token.clone(),
        attach: setup.attach.filter(|_| options.attach),
        heartbeat_ms: if setup.heartbeats { heartbeat_ms } else { 0 },
        probe_ms: heartbeat_ms,
        seed: random_u64(),
    }
}
