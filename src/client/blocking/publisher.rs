//! A publisher: gathers messages into batches, keeps them until they are confirmed, sends again
//! what a lost connection left in doubt.
//!
//! The callers' threads do the work: the one that publishes writes, the one that waits for a
//! confirm reads, so a round trip costs no hand-over. Only what nobody waits for is the keeper's:
//! a thread that sends gathered messages when the callers have gone silent, reconnects, and asks
//! for signs of life. It sleeps while there is nothing of the kind.

use super::link::spin;
use super::socket::{Socket, dial};
use crate::base::time::Mono;
use crate::client::driver::{Clock, Dial, producer};
use crate::client::{
    ClientError, ConnectOptions, LostReason, Message, PublishCounts, PublisherOptions,
    PublisherState, Reached,
};
use crate::limits::KIB;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A publisher reads confirms and little else.
const READ_BYTES: usize = 16 * KIB;
/// While callers publish without waiting, confirms are read this often.
const READ_EVERY_NS: u64 = 100_000;
/// What the system would not take is tried again after so long.
const WRITE_AGAIN: Duration = Duration::from_millis(1);
/// Waits are cut into such pieces, in case that a wake-up is missed.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Publishes to one queue. Usable from several threads by reference.
///
/// ```no_run
/// use forebay::client::{ConnectOptions, Publisher, PublisherOptions};
///
/// let broker = ConnectOptions::new("127.0.0.1:7440");
/// let publisher = Publisher::open(&broker, "jobs", PublisherOptions::default())?;
/// let first = publisher.publish("one")?;
/// let rest = publisher.publish_many(["two", "three"])?;
/// first.wait()?;
/// rest.wait()?;
/// # Ok::<(), forebay::client::ClientError>(())
/// ```
pub struct Publisher {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    queue: String,
}

type Core = producer::Core<Socket>;

struct Shared {
    core: Mutex<Core>,
    /// Held by the thread that reads the socket; what it reads into.
    reader: Mutex<Vec<u8>>,
    /// Something was answered, or the reader has gone.
    changed: Condvar,
    /// The keeper has something to do.
    keeper: Condvar,
    clock: Clock,
    connect: ConnectOptions,
}

/// Stands for the answer to one publish (or to all of one `publish_many`). Dropping it is fine:
/// the message is sent all the same, and [`Publisher::flush`] tells of failures.
#[must_use = "a publish is certain only when it is confirmed: wait, or flush the publisher"]
#[derive(Clone, Copy)]
pub struct Confirm<'p> {
    publisher: &'p Publisher,
    first: u64,
    last: u64,
}

impl Publisher {
    /// Connects and opens a producer on `queue`.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::QueueMissing`], [`ClientError::Broker`] when the
    /// broker refuses the open, [`ClientError::Option`].
    pub fn open(
        connect: &ConnectOptions,
        queue: &str,
        options: PublisherOptions,
    ) -> Result<Publisher, ClientError> {
        let core = Core::new(connect, queue, options)?;
        let shared = Arc::new(Shared {
            clock: core.link.clock,
            core: Mutex::new(core),
            reader: Mutex::new(vec![0; READ_BYTES]),
            changed: Condvar::new(),
            keeper: Condvar::new(),
            connect: connect.clone(),
        });
        shared.open()?;
        let kept = Arc::clone(&shared);
        let keeper = std::thread::Builder::new()
            .name("forebay-keeper".into())
            .spawn(move || kept.keep())
            .map_err(|error| ClientError::Lost(LostReason::Io(error.kind())))?;
        Ok(Publisher { shared, keeper: Some(keeper), queue: queue.into() })
    }

    /// Publishes one message. Sends it at once when nothing is under way, else gathers. Waits
    /// while `outstanding_bytes_max` are unconfirmed.
    ///
    /// # Errors
    /// [`ClientError::MessageTooLarge`], or what ended the publisher: [`ClientError::Connect`],
    /// [`ClientError::QueueMissing`], [`ClientError::Broker`] (`producer_fenced`).
    #[inline]
    pub fn publish<'m>(&self, message: impl Into<Message<'m>>) -> Result<Confirm<'_>, ClientError> {
        self.publish_until(&message.into(), None)
    }

    /// Publishes many messages at the least cost per message; sends the last gathered batch at
    /// once when nothing is under way. The one [`Confirm`] stands for all of them (and for what
    /// other threads published between them, while this one waited for room).
    ///
    /// # Errors
    /// As [`Publisher::publish`]; messages before the one that failed are published.
    pub fn publish_many<'m, M: Into<Message<'m>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Confirm<'_>, ClientError> {
        let mut core = self.shared.room(self.shared.lock(), None)?;
        let first = core.view().ordinal_last + 1;
        let mut last = first - 1;
        for message in messages {
            match core.add(&message.into()) {
                Ok((ordinal, closed)) => {
                    last = ordinal;
                    if closed {
                        self.shared.after_batch(&mut core);
                        core = self.shared.room(core, None)?;
                    }
                }
                Err(error) => {
                    self.shared.after_publish(core);
                    return Err(error);
                }
            }
        }
        self.shared.after_publish(core);
        Ok(Confirm { publisher: self, first, last })
    }

    /// As [`Publisher::publish`], with an end to the wait for room.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] when there was no room in time: the message was not taken.
    pub fn publish_within<'m>(
        &self,
        message: impl Into<Message<'m>>,
        timeout: Duration,
    ) -> Result<Confirm<'_>, ClientError> {
        self.publish_until(&message.into(), self.shared.clock.after(timeout))
    }

    #[inline]
    fn publish_until(
        &self,
        message: &Message<'_>,
        deadline: Option<Mono>,
    ) -> Result<Confirm<'_>, ClientError> {
        let mut core = self.shared.room(self.shared.lock(), deadline)?;
        let added = core.add(message);
        self.shared.after_publish(core);
        added.map(|(ordinal, _)| Confirm { publisher: self, first: ordinal, last: ordinal })
    }

    /// Sends what is gathered, without waiting for confirms.
    ///
    /// # Errors
    /// What ended the publisher.
    pub fn send(&self) -> Result<(), ClientError> {
        let mut core = self.shared.lock();
        core.send_gathered();
        core.flush(self.shared.clock.now());
        self.shared.leave_checked(core)
    }

    /// Does what can be done without waiting: takes in confirms, sends what is due. For callers
    /// that run a loop of their own.
    ///
    /// # Errors
    /// What ended the publisher.
    pub fn poll(&self) -> Result<(), ClientError> {
        let mut core = self.shared.lock();
        self.shared.read_now(&mut core);
        core.send_due(self.shared.clock.now());
        self.shared.leave_checked(core)
    }

    /// Sends all and waits until all is confirmed.
    ///
    /// # Errors
    /// The first failure of a message since the last flush, or what ended the publisher.
    pub fn flush(&self) -> Result<(), ClientError> {
        self.flush_until(None)
    }

    /// As [`Publisher::flush`], with an end to the wait.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`]: not all was confirmed in time; it stays under way.
    pub fn flush_within(&self, timeout: Duration) -> Result<(), ClientError> {
        self.flush_until(self.shared.clock.after(timeout))
    }

    fn flush_until(&self, deadline: Option<Mono>) -> Result<(), ClientError> {
        let core = self.shared.lock();
        let last = core.view().ordinal_last;
        let mut core = self.shared.wait(core, deadline, |core| core.is_answered(last));
        let result = if core.is_answered(last) || core.failed.is_some() {
            let failed = core.failed.clone().map_or(Ok(()), Err);
            core.take_flush_failure().and(if core.is_answered(last) { Ok(()) } else { failed })
        } else {
            Err(ClientError::TimedOut)
        };
        self.shared.leave(core);
        result
    }

    /// Whether messages flow.
    pub fn state(&self) -> PublisherState {
        self.shared.lock().state()
    }

    /// What became of the messages so far.
    pub fn counts(&self) -> PublishCounts {
        self.shared.lock().counts()
    }

    /// The socket, for a caller that waits for several at once in a poller of its own, and calls
    /// [`poll`](Publisher::poll) when there is something to read. `None` while there is no
    /// connection; another after a reconnect.
    #[cfg(unix)]
    pub fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        self.shared.lock().link.raw_fd()
    }

    /// The queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Flushes and closes. Dropping a publisher closes it after one attempt to send what is
    /// gathered, without waiting for confirms.
    ///
    /// # Errors
    /// As [`Publisher::flush`].
    pub fn close(self) -> Result<(), ClientError> {
        self.flush()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.send_gathered();
        core.flush(self.shared.clock.now());
        core.closing = true;
        self.shared.keeper.notify_one();
        self.shared.leave(core);
        if let Some(keeper) = self.keeper.take() {
            // The keeper does not panic; if it did, there is nothing left to do about it.
            let _ = keeper.join();
        }
    }
}

impl Confirm<'_> {
    /// Waits until the broker has answered; sends what is gathered first. Says what was reached.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the message was refused for good, or what ended the publisher.
    pub fn wait(self) -> Result<Reached, ClientError> {
        self.wait_until(None)
    }

    /// As [`Confirm::wait`], for so long.
    ///
    /// # Errors
    /// As [`Confirm::wait`], and [`ClientError::TimedOut`]: it may still be confirmed.
    pub fn wait_for(&self, timeout: Duration) -> Result<Reached, ClientError> {
        self.wait_until(self.publisher.shared.clock.after(timeout))
    }

    fn wait_until(&self, deadline: Option<Mono>) -> Result<Reached, ClientError> {
        let shared = &self.publisher.shared;
        let core = shared.wait(shared.lock(), deadline, |core| core.is_answered(self.last));
        let answer = core.answer(self.first, self.last);
        shared.leave(core);
        answer.unwrap_or(Err(ClientError::TimedOut))
    }

    /// The answer, if it is there; `None` while it is not. Does not wait.
    ///
    /// # Errors
    /// As [`Confirm::wait`].
    pub fn poll(&self) -> Option<Result<Reached, ClientError>> {
        let shared = &self.publisher.shared;
        let mut core = shared.lock();
        if core.answer(self.first, self.last).is_none() {
            shared.read_now(&mut core);
            core.send_due(shared.clock.now());
        }
        let answer = core.answer(self.first, self.last);
        shared.leave(core);
        answer
    }
}

type Guard<'a> = MutexGuard<'a, Core>;

impl Shared {
    #[inline]
    fn lock(&self) -> Guard<'_> {
        // A panic under the lock was a caller's, inside its iterator; the core is whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the lock back, and tells the caller what there is to tell.
    #[inline]
    fn leave(&self, mut core: Guard<'_>) {
        let notices = core.link.take_notices();
        drop(core);
        for notice in notices {
            self.connect.tell(&notice);
        }
    }

    fn leave_checked(&self, core: Guard<'_>) -> Result<(), ClientError> {
        let failed = core.failed.clone();
        self.leave(core);
        failed.map_or(Ok(()), Err)
    }

    /// Tells the caller what there is to tell, without the lock.
    fn tell<'a>(&'a self, core: Guard<'a>) -> Guard<'a> {
        self.leave(core);
        self.lock()
    }

    // ---- publishing ----

    /// Waits until there is room for more.
    #[inline]
    fn room<'a>(
        &'a self,
        core: Guard<'a>,
        deadline: Option<Mono>,
    ) -> Result<Guard<'a>, ClientError> {
        if !core.is_over_room() && core.failed.is_none() {
            return Ok(core);
        }
        self.wait_for_room(core, deadline)
    }

    #[cold]
    fn wait_for_room<'a>(
        &'a self,
        core: Guard<'a>,
        deadline: Option<Mono>,
    ) -> Result<Guard<'a>, ClientError> {
        // Some room at a time, or every confirm would be a wake-up.
        let enough = core.outstanding_bytes_max() / 4 * 3;
        let core = self.wait(core, deadline, |core| core.outstanding_bytes() <= enough);
        if let Some(error) = core.failed.clone() {
            self.leave(core);
            return Err(error);
        }
        if core.is_over_room() {
            self.leave(core);
            return Err(ClientError::TimedOut);
        }
        Ok(core)
    }

    /// A batch is full: sends it, and reads confirms now and then.
    fn after_batch(&self, core: &mut Guard<'_>) {
        let now = self.clock.now();
        core.flush(now);
        if now.0 >= core.read_at.0 + READ_EVERY_NS {
            self.read_now(core);
            core.flush(now);
        }
    }

    /// Sends what is due, lets the keeper know of what is not, and gives the lock back.
    #[inline]
    fn after_publish(&self, mut core: Guard<'_>) {
        let now = self.clock.now();
        core.send_due(now);
        if now.0 >= core.read_at.0 + READ_EVERY_NS {
            self.read_now(&mut core);
            core.send_due(now);
        }
        if core.keeper_asleep && core.leaves_work() {
            core.keeper_asleep = false;
            self.keeper.notify_one();
        }
        self.leave(core);
    }

    // ---- waiting ----

    /// Waits until `done`, until the publisher has failed, or until the time is over. Sends what
    /// is gathered. One of the waiting threads reads, the others are told.
    fn wait<'a>(
        &'a self,
        mut core: Guard<'a>,
        deadline: Option<Mono>,
        done: impl Fn(&Core) -> bool,
    ) -> Guard<'a> {
        loop {
            if done(&core) || core.failed.is_some() {
                return core;
            }
            core.send_gathered();
            let now = self.clock.now();
            core.flush(now);
            if deadline.is_some_and(|deadline| now >= deadline) {
                return core;
            }
            if core.link.has_notices() {
                // The lock is given away meanwhile, and the keeper may take in what is waited for.
                core = self.tell(core);
                continue;
            }
            let Some(socket) = core.link.socket() else {
                // The keeper dials.
                self.wake_keeper(&mut core);
                core = self.wait_for_change(core, deadline);
                continue;
            };
            core = match self.reader.try_lock() {
                Ok(mut buffer) => self.read_waiting(core, &socket, &mut buffer, deadline),
                Err(TryLockError::Poisoned(error)) => {
                    self.read_waiting(core, &socket, &mut error.into_inner(), deadline)
                }
                Err(TryLockError::WouldBlock) => self.wait_for_change(core, deadline),
            };
        }
    }

    fn wait_for_change<'a>(&'a self, mut core: Guard<'a>, deadline: Option<Mono>) -> Guard<'a> {
        let left = deadline.map_or(WAIT_MAX, |deadline| deadline.after(self.clock.now()));
        core.waiters += 1;
        let waited = self.changed.wait_timeout(core, left.min(WAIT_MAX));
        let (mut core, _) = waited.unwrap_or_else(PoisonError::into_inner);
        core.waiters -= 1;
        core
    }

    /// Reads, without the lock, what comes until `deadline` or until time asks for something.
    fn read_waiting<'a>(
        &'a self,
        core: Guard<'a>,
        socket: &Arc<Socket>,
        buffer: &mut [u8],
        deadline: Option<Mono>,
    ) -> Guard<'a> {
        let now = self.clock.now();
        let again = core.link.session.wants_transmit().then(|| now.plus_ms(1));
        let wake_at = [core.link.wake_at(deadline), again].into_iter().flatten().min();
        let connection = core.link.session.connection();
        drop(core);
        let read = if self.connect.busy_poll {
            spin(socket, buffer, &self.clock, wake_at)
        } else {
            socket.read_within(buffer, wake_at.map(|at| at.after(now)))
        };
        let mut core = self.lock();
        if core.link.session.connection() == connection && !core.link.is_down() {
            self.handle_read(&mut core, read, buffer);
        }
        core
    }

    /// Reads what is there, unless another thread reads already.
    fn read_now(&self, core: &mut Guard<'_>) {
        core.read_at = self.clock.now();
        let Some(socket) = core.link.socket() else { return };
        let Ok(mut buffer) = self.reader.try_lock() else { return };
        loop {
            let read = socket.try_read(&mut buffer);
            let full = matches!(read, Ok(Some(bytes)) if bytes == buffer.len());
            self.handle_read(core, read, &buffer);
            if !full || core.link.is_down() {
                return;
            }
        }
    }

    fn handle_read(
        &self,
        core: &mut Guard<'_>,
        read: Result<Option<usize>, LostReason>,
        buffer: &[u8],
    ) {
        let now = self.clock.now();
        core.read_at = now;
        match read {
            Ok(Some(bytes)) => core.handle_bytes(now, &buffer[..bytes]),
            Ok(None) => core.handle_time(now),
            Err(reason) => core.lose(reason),
        }
        core.flush(now);
        if core.link.is_down() {
            self.wake_keeper(core);
        }
        if core.waiters > 0 {
            self.changed.notify_all();
        }
    }

    fn wake_keeper(&self, core: &mut Guard<'_>) {
        if core.keeper_asleep {
            core.keeper_asleep = false;
            self.keeper.notify_one();
        }
    }

    // ---- connecting, keeping ----

    /// Connects and waits until the producer is open.
    fn open(&self) -> Result<(), ClientError> {
        let mut core = self.lock();
        while !core.opened_once && core.failed.is_none() {
            if core.link.is_down() {
                let pause;
                (core, pause) = self.dial(core);
                if let Some(pause) = pause {
                    drop(core);
                    std::thread::park_timeout(pause);
                    core = self.lock();
                }
            } else {
                let soon = self.clock.after(WAIT_MAX);
                core = self.wait(core, soon, |core| core.opened_once || core.link.is_down());
                core.handle_time(self.clock.now());
            }
        }
        self.leave_checked(core)
    }

    /// Dials, without the lock, if it is time to; else says how long to wait.
    fn dial<'a>(&'a self, mut core: Guard<'a>) -> (Guard<'a>, Option<Duration>) {
        match core.link.plan_dial() {
            Dial::At(at) => (core, Some(at.after(self.clock.now()))),
            Dial::Now(server) => {
                self.leave(core);
                let dialled = dial(&server, self.connect.connect_timeout);
                let mut core = self.lock();
                match core.link.dialled(dialled) {
                    Ok(()) => core.flush(self.clock.now()),
                    Err(error) => core.fail(error),
                }
                self.changed.notify_all();
                (core, None)
            }
        }
    }

    /// The keeper's thread.
    fn keep(&self) {
        let mut core = self.lock();
        while !core.closing {
            let pause;
            if core.failed.is_some() {
                pause = None;
            } else if core.link.is_down() {
                (core, pause) = self.dial(core);
                if pause.is_none() {
                    continue;
                }
            } else {
                self.read_now(&mut core);
                core.handle_time(self.clock.now());
                if core.link.is_down() {
                    continue;
                }
                pause = core.keeper_pause(self.clock.now());
            }
            if core.waiters > 0 {
                self.changed.notify_all();
            }
            if core.link.has_notices() {
                // The lock is given away meanwhile: the pause may be too long by now.
                core = self.tell(core);
                continue;
            }
            core = self.sleep(core, pause);
        }
    }

    fn sleep<'a>(&'a self, mut core: Guard<'a>, pause: Option<Duration>) -> Guard<'a> {
        core.keeper_asleep = pause.is_none_or(|pause| pause > core.linger().max(WRITE_AGAIN));
        let mut core = match pause {
            None => self.keeper.wait(core).unwrap_or_else(PoisonError::into_inner),
            Some(pause) => {
                let waited = self.keeper.wait_timeout(core, pause);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        core.keeper_asleep = false;
        core
    }
}
