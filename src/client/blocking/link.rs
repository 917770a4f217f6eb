//! A connection driven by one thread: session, socket, clock, and when to dial again.

use super::connection::{create_request, create_subscription_request};
use super::socket::{Backoff, Clock, Socket, dial, may_pass, random_u64};
use crate::base::time::Mono;
use crate::client::session::{Session, SessionConfig};
use crate::client::{
    BrokerError, ClientError, ConnectOptions, ConnectionEvent, ErrorCode, LostReason, MissingQueue,
};
use std::io::IoSlice;
use std::sync::Arc;

/// Slices of one gathered write.
const WRITE_SLICES_MAX: usize = 32;

pub(super) struct Link {
    pub(super) options: ConnectOptions,
    pub(super) session: Session,
    pub(super) clock: Clock,
    socket: Option<Arc<Socket>>,
    /// Index of the server to be dialled next.
    server_next: usize,
    /// The server that is connected, or was dialled last.
    pub(super) server: String,
    pub(super) backoff: Backoff,
    /// When the next dial is due, while there is no connection.
    dial_at: Mono,
    /// The hello must be answered by then.
    hello_by: Option<Mono>,
    /// Changes that the caller was not told of yet.
    notices: Vec<ConnectionEvent>,
}

/// What to do about a missing connection.
pub(super) enum Dial {
    /// Wait until then.
    At(Mono),
    /// Dial this server now.
    Now(String),
}

/// How a producer or consumer that could not be opened is opened after all.
pub(super) enum Reopen {
    /// By asking again then.
    At(Mono),
    /// When the request that creates its queue is answered.
    Creating(Option<u32>),
}

/// Where reads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Anywhere: what was delivered is dealt with.
    Fresh,
    /// Behind what was delivered.
    Behind,
}

impl Link {
    pub(super) fn new(options: &ConnectOptions) -> Result<Link, ClientError> {
        options.check()?;
        Ok(Link {
            options: options.clone(),
            session: Session::new(session_config(options)),
            clock: Clock::new(),
            socket: None,
            server_next: 0,
            server: options.servers[0].clone(),
            backoff: Backoff::new(),
            dial_at: Mono::default(),
            hello_by: None,
            notices: Vec::new(),
        })
    }

    /// Something that the caller shall be told by [`Link::take_notices`].
    pub(super) fn note(&mut self, event: ConnectionEvent) {
        if self.options.on_event.is_some() {
            self.notices.push(event);
        }
    }

    /// Whether there is something that the caller was not told of yet.
    pub(super) fn has_notices(&self) -> bool {
        !self.notices.is_empty()
    }

    /// What the caller shall be told, outside of any lock.
    pub(super) fn take_notices(&mut self) -> Vec<ConnectionEvent> {
        std::mem::take(&mut self.notices)
    }

    /// Tells the caller of all changes since the last time.
    pub(super) fn tell(&mut self) {
        for event in self.take_notices() {
            self.options.tell(&event);
        }
    }

    /// For a caller's own poller; `None` while there is no connection.
    #[cfg(unix)]
    pub(super) fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        self.socket.as_deref().map(Socket::raw_fd)
    }

    pub(super) fn socket(&self) -> Option<Arc<Socket>> {
        self.socket.clone()
    }

    /// The time by which the hello must be answered, while it is not.
    pub(super) fn hello_by(&self) -> Option<Mono> {
        self.hello_by
    }

    pub(super) fn is_down(&self) -> bool {
        self.socket.is_none()
    }

    /// Dials when it is time to, or waits for that until `until`.
    pub(super) fn redial(&mut self, until: Option<Mono>) -> Result<(), ClientError> {
        match self.plan_dial() {
            Dial::At(at) => {
                let wake_at = until.map_or(at, |until| until.min(at));
                std::thread::park_timeout(wake_at.after(self.clock.now()));
                Ok(())
            }
            Dial::Now(server) => {
                let dialled = dial(&server, self.options.connect_timeout);
                self.dialled(dialled)
            }
        }
    }

    /// What is to be done while there is no connection.
    pub(super) fn plan_dial(&mut self) -> Dial {
        if self.dial_at > self.clock.now() {
            return Dial::At(self.dial_at);
        }
        self.server = self.options.servers[self.server_next].clone();
        self.server_next = (self.server_next + 1) % self.options.servers.len();
        Dial::Now(self.server.clone())
    }

    /// What came of [`Dial::Now`].
    pub(super) fn dialled(
        &mut self,
        dialled: Result<Socket, ClientError>,
    ) -> Result<(), ClientError> {
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
    pub(super) fn drop_connection(&mut self, reason: LostReason) -> Result<(), ClientError> {
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
        match self.backoff.failed(now, &self.options) {
            Some(at) => self.dial_at = at,
            None => return Err(failed(&self.server, reason)),
        }
        Ok(())
    }

    /// The hello was answered.
    pub(super) fn connected(&mut self) {
        self.hello_by = None;
        self.backoff.connected(self.clock.now());
        self.note(ConnectionEvent::Connected { server: self.server.clone() });
    }

    /// Sends what is to be sent, reads once, waiting for bytes until `until` (`None`: for ever) or
    /// until the session has something to do. True if bytes came.
    pub(super) fn turn(&mut self, until: Option<Mono>, room: Room) -> Result<bool, LostReason> {
        self.flush()?;
        let Some(socket) = &self.socket else { return Ok(false) };
        let wake_at = self.wake_at(until);
        let buffer = match room {
            Room::Fresh => self.session.input_room(),
            Room::Behind => self.session.input_room_behind(),
        };
        let bytes = if self.options.busy_poll {
            spin(socket, buffer, &self.clock, wake_at)?
        } else {
            let timeout = wake_at.map(|at| at.after(self.clock.now()));
            socket.read_within(buffer, timeout)?
        };
        let now = self.clock.now();
        match bytes {
            Some(bytes) => self.session.handle_received(now, bytes),
            None if self.hello_by.is_some_and(|by| by <= now) => return Err(LostReason::Silent),
            None => self.session.handle_timeout(now),
        }
        Ok(bytes.is_some())
    }

    /// The soonest of `until` and what the connection itself waits for.
    pub(super) fn wake_at(&self, until: Option<Mono>) -> Option<Mono> {
        [until, self.session.poll_timeout(), self.hello_by].into_iter().flatten().min()
    }

    /// Sends what is to be sent, waiting while the system takes nothing.
    pub(super) fn flush(&mut self) -> Result<(), LostReason> {
        while !self.try_flush()? {
            let Some(socket) = &self.socket else { return Ok(()) };
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
            let count = self.session.transmit(&mut slices);
            let bytes = socket.write_within(&slices[..count])?;
            self.session.transmitted(self.clock.now(), bytes);
        }
        Ok(())
    }

    /// Sends what the system takes without waiting; false if something is left.
    pub(super) fn try_flush(&mut self) -> Result<bool, LostReason> {
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
    pub(super) fn plan_reopen(
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
        self.backoff.failed(now, &self.options).map(Reopen::At).ok_or(failure)
    }
}

/// The session's part of the options.
pub(super) fn session_config(options: &ConnectOptions) -> SessionConfig {
    SessionConfig {
        client_name: options.client_name.clone(),
        token: options.token.clone(),
        attach: None,
        // A consumer has no thread to keep a promised beat; the broker has TCP keepalive.
        heartbeat_ms: 0,
        probe_ms: options.heartbeat.as_millis() as u32,
        seed: random_u64(),
    }
}

/// Reads without ever sleeping.
pub(super) fn spin(
    socket: &Socket,
    buffer: &mut [u8],
    clock: &Clock,
    until: Option<Mono>,
) -> Result<Option<usize>, LostReason> {
    loop {
        if let Some(bytes) = socket.try_read(buffer)? {
            return Ok(Some(bytes));
        }
        if until.is_some_and(|until| clock.now() >= until) {
            return Ok(None);
        }
        std::hint::spin_loop();
    }
}
