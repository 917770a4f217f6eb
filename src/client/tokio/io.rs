//! The task of a connection: waits for its socket, for time, and for callers who have left
//! something to do.

use crate::base::time::Mono;
use crate::client::driver::{Clock, Dial, Link, Wire};
use crate::client::{ClientError, ConnectOptions, LostReason};
use ::tokio::net::TcpStream;
use ::tokio::sync::Notify;
use ::tokio::time::Sleep;
use std::future::{Future, poll_fn};
use std::io::{ErrorKind, IoSlice};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

/// Reads of one turn; then others have theirs.
const READS_MAX: usize = 4;

/// A connected socket.
pub(super) struct Stream(TcpStream);

impl Wire for Stream {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> Result<Option<usize>, LostReason> {
        match self.0.try_write_vectored(slices) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(LostReason::Io(error.kind())),
        }
    }

    fn shut(&self) {
        // Only fails when the connection is gone already.
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

impl Stream {
    fn try_read(&self, buffer: &mut [u8]) -> Result<Option<usize>, LostReason> {
        match self.0.try_read(buffer) {
            Ok(0) => Err(LostReason::Closed),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(LostReason::Io(error.kind())),
        }
    }
}

/// What is behind the lock of a connection.
pub(super) trait Core: Send + 'static {
    fn link(&mut self) -> &mut Link<Stream>;

    /// Does all that follows from bytes that came, from time, and from what callers left: acts on
    /// events, writes what the system takes.
    fn turn(&mut self, now: Mono);

    fn lose(&mut self, reason: LostReason);

    fn fail(&mut self, error: ClientError);

    /// When [`Core::turn`] wants to be called while nothing happens and there is a connection.
    fn wake_at(&self) -> Option<Mono>;

    /// The task has nothing to do any more.
    fn is_over(&self) -> bool;

    /// Takes the wakers of what is over with, to be woken without the lock.
    fn take_woken(&mut self) -> Vec<Waker>;
}

/// What callers and the task of a connection share.
pub(super) struct Shared<C> {
    core: Mutex<C>,
    /// The task has something to do.
    pub(super) wake: Arc<Notify>,
    /// Something happened that a caller may wait for.
    changed: Notify,
    /// Until when the task sleeps; under the core's lock.
    pub(super) clock: Clock,
    options: ConnectOptions,
}

/// The lock, held.
pub(super) type Guard<'a, C> = MutexGuard<'a, C>;

enum Step {
    End,
    Dial(String),
    Wait { socket: Option<Arc<Stream>>, writes: bool, until: Option<Mono> },
}

impl<C: Core> Shared<C> {
    pub(super) fn new(mut core: C, options: &ConnectOptions, wake: Arc<Notify>) -> Arc<Shared<C>> {
        Arc::new(Shared {
            clock: core.link().clock,
            core: Mutex::new(core),
            wake,
            changed: Notify::new(),
            options: options.clone(),
        })
    }

    #[inline]
    pub(super) fn lock(&self) -> Guard<'_, C> {
        // A panic under the lock was a caller's, inside its iterator; the core is whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back; tells and wakes whom it concerns.
    #[inline]
    pub(super) fn leave(&self, mut core: Guard<'_, C>) {
        let notices = core.link().take_notices();
        let woken = core.take_woken();
        drop(core);
        woken.into_iter().for_each(Waker::wake);
        for notice in notices {
            self.options.tell(&notice);
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut C) -> T) -> T {
        let mut core = self.lock();
        let result = call(&mut core);
        self.leave(core);
        result
    }

    /// Waits until `check` gives something; `None` when the time is over. Safe to cancel.
    pub(super) async fn until<T>(
        &self,
        deadline: Option<Mono>,
        mut check: impl FnMut(&mut C) -> Option<T>,
    ) -> Option<T> {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(found) = self.with(&mut check) {
                return Some(found);
            }
            match deadline {
                None => changed.await,
                Some(at) if at <= self.clock.now() => return None,
                Some(at) => {
                    let at = self.clock.instant(at);
                    // Over or not, the next round sees it.
                    let _ = ::tokio::time::timeout_at(at.into(), changed).await;
                }
            }
        }
    }

    /// One turn of the task.
    fn step(&self) -> Step {
        let mut core = self.lock();
        for _ in 0..READS_MAX {
            let Some(socket) = core.link().socket() else { break };
            let room = core.link().session.input_room();
            let room_bytes = room.len();
            match socket.try_read(room) {
                Ok(None) => break,
                Ok(Some(bytes)) => {
                    let now = self.clock.now();
                    core.link().session.handle_received(now, bytes);
                    core.turn(now);
                    if bytes < room_bytes {
                        break;
                    }
                }
                Err(reason) => {
                    core.lose(reason);
                    break;
                }
            }
        }
        let now = self.clock.now();
        if core.link().hello_by().is_some_and(|by| by <= now) {
            core.lose(LostReason::Silent);
        }
        core.turn(now);
        let step = if core.is_over() {
            Step::End
        } else if core.link().is_down() {
            match core.link().plan_dial() {
                Dial::At(at) => Step::Wait { socket: None, writes: false, until: Some(at) },
                Dial::Now(server) => Step::Dial(server),
            }
        } else {
            let until = core.wake_at();
            let link = core.link();
            Step::Wait { socket: link.socket(), writes: link.session.wants_transmit(), until }
        };
        self.leave(core);
        self.changed.notify_waiters();
        step
    }
}

/// The task of a connection.
pub(super) async fn drive<C: Core>(shared: Arc<Shared<C>>) {
    let mut timer = Timer {
        clock: shared.clock,
        sleep: Box::pin(::tokio::time::sleep(Duration::ZERO)),
        at: None,
    };
    loop {
        match shared.step() {
            Step::End => return,
            Step::Dial(server) => {
                let dialled = dial(&server, shared.options.connect_timeout).await;
                let mut core = shared.lock();
                if let Err(error) = core.link().dialled(dialled) {
                    core.fail(error);
                }
                shared.leave(core);
            }
            Step::Wait { socket, writes, until } => {
                timer.wait(&shared.wake, socket.as_deref(), writes, until).await;
            }
        }
    }
}

/// A timer that is only set anew when it would be late: one that is early costs a turn.
struct Timer {
    clock: Clock,
    sleep: Pin<Box<Sleep>>,
    at: Option<Mono>,
}

impl Timer {
    async fn wait(
        &mut self,
        wake: &Notify,
        socket: Option<&Stream>,
        writes: bool,
        until: Option<Mono>,
    ) {
        if let Some(until) = until
            && self.at.is_none_or(|at| until < at)
        {
            self.sleep.as_mut().reset(self.clock.instant(until).into());
            self.at = Some(until);
        }
        let mut woken = pin!(wake.notified());
        poll_fn(|task| {
            if woken.as_mut().poll(task).is_ready() {
                return Poll::Ready(());
            }
            if self.at.is_some() && self.sleep.as_mut().poll(task).is_ready() {
                self.at = None;
                return Poll::Ready(());
            }
            let Some(Stream(socket)) = socket else { return Poll::Pending };
            let readable = socket.poll_read_ready(task).is_ready();
            if readable || writes && socket.poll_write_ready(task).is_ready() {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

async fn dial(server: &str, timeout: Duration) -> Result<Stream, ClientError> {
    let connecting = async {
        let addresses = ::tokio::net::lookup_host(server).await.map_err(|error| {
            ClientError::Address { server: server.into(), reason: error.to_string() }
        })?;
        let mut reason = LostReason::Io(ErrorKind::AddrNotAvailable);
        for address in addresses {
            let connected = TcpStream::connect(address).await;
            match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => {
                    // Best effort: where it is refused, probes still find a dead peer.
                    let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                    return Ok(Stream(stream));
                }
                Err(error) => reason = LostReason::Io(error.kind()),
            }
        }
        Err(ClientError::Connect { server: server.into(), reason })
    };
    let slow = || ClientError::Connect {
        server: server.into(),
        reason: LostReason::Io(ErrorKind::TimedOut),
    };
    ::tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| Err(slow()))
}
