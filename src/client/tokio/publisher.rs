//! A publisher: gathers messages into batches, keeps them until they are confirmed, sends again
//! what a lost connection left in doubt. The caller's task writes, the connection's task reads.

use super::io::{self, Core, Guard, Shared, Stream, drive};
use crate::base::time::Mono;
use crate::client::driver::{Link, producer};
use crate::client::{
    ClientError, ConnectOptions, LostReason, Message, PublishCounts, PublisherOptions,
    PublisherState, Reached,
};
use ::tokio::sync::Notify;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Publishes to one queue. Usable from several tasks by reference.
///
/// It reconnects by itself and sends again what is unconfirmed; the broker knows it by producer id
/// and sequence, so nothing is stored twice. What happens to the connection is told by
/// [`ConnectOptions::on_event`] and by [`state`](Publisher::state).
///
/// ```no_run
/// # async fn example() -> Result<(), forebay::client::ClientError> {
/// use forebay::client::tokio::Publisher;
/// use forebay::client::{ConnectOptions, PublisherOptions};
///
/// let broker = ConnectOptions::new("127.0.0.1:7440");
/// let publisher = Publisher::open(&broker, "jobs", PublisherOptions::default()).await?;
/// let first = publisher.publish("one").await?;
/// let rest = publisher.publish_many(["two", "three"]).await?;
/// first.await?;
/// rest.await?;
/// publisher.close().await
/// # }
/// ```
pub struct Publisher {
    shared: Arc<Shared<PublisherCore>>,
    queue: String,
}

struct PublisherCore {
    core: producer::Core<Stream>,
    /// Confirms that are being waited for, by their last ordinal.
    waiting: BTreeMap<u64, Waker>,
    /// Until when the task sleeps, as far as it is known.
    asleep_until: Option<Mono>,
    closing: bool,
}

/// Stands for the answer to one publish, or to all of one `publish_many`: a future of what was
/// reached. Dropping it is fine: the message is sent all the same, and [`Publisher::flush`] tells
/// of failures.
///
/// # Errors
/// [`ClientError::Refused`] if the message was refused for good, or what ended the publisher;
/// [`ClientError::Closed`] if it was dropped before the answer came.
#[must_use = "a publish is certain only when it is confirmed: await it, or flush the publisher"]
pub struct Confirm {
    shared: Arc<Shared<PublisherCore>>,
    first: u64,
    last: u64,
    registered: bool,
}

impl Core for PublisherCore {
    fn link(&mut self) -> &mut Link<Stream> {
        &mut self.core.link
    }

    fn turn(&mut self, now: Mono) {
        self.core.handle_events();
        self.core.handle_time(now);
        self.core.send_due(now);
        self.asleep_until = self.wake_at();
    }

    fn lose(&mut self, reason: LostReason) {
        self.core.lose(reason);
    }

    fn fail(&mut self, error: ClientError) {
        self.core.fail(error);
    }

    fn wake_at(&self) -> Option<Mono> {
        self.core.wake_at()
    }

    fn is_over(&self) -> bool {
        self.closing || self.core.failed.is_some()
    }

    fn take_woken(&mut self) -> Vec<Waker> {
        let mut woken = Vec::new();
        let answered = self.core.view().answered_ordinal;
        while let Some(first) = self.waiting.first_entry() {
            if *first.key() > answered && self.core.failed.is_none() {
                break;
            }
            woken.push(first.remove());
        }
        woken
    }
}

impl Publisher {
    /// Connects and opens a producer on `queue`.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::QueueMissing`], [`ClientError::Broker`] when the
    /// broker refuses the open, [`ClientError::Option`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with its network and time drivers.
    pub async fn open(
        connect: &ConnectOptions,
        queue: &str,
        options: PublisherOptions,
    ) -> Result<Publisher, ClientError> {
        let core = PublisherCore {
            core: producer::Core::new(connect, queue, options)?,
            waiting: BTreeMap::new(),
            asleep_until: None,
            closing: false,
        };
        let shared = Shared::new(core, connect, Arc::new(Notify::new()));
        let publisher = Publisher { shared: Arc::clone(&shared), queue: queue.into() };
        ::tokio::spawn(drive(shared));
        let opened = publisher.shared.until(None, |core| {
            let opened = core.core.opened_once.then_some(Ok(()));
            core.core.failed.clone().map(Err).or(opened)
        });
        opened.await.unwrap_or(Err(ClientError::TimedOut))?;
        Ok(publisher)
    }

    /// Publishes one message: sent at once when nothing is under way, else gathered. Waits while
    /// `outstanding_bytes_max` are unconfirmed. Cancelled while it waits, it has taken nothing.
    ///
    /// # Errors
    /// [`ClientError::MessageTooLarge`], or what ended the publisher: [`ClientError::Connect`],
    /// [`ClientError::QueueMissing`], [`ClientError::Broker`] (`producer_fenced`).
    pub async fn publish<'m>(
        &self,
        message: impl Into<Message<'m>>,
    ) -> Result<Confirm, ClientError> {
        let message = message.into();
        // Whoever publishes without a pause lets the other tasks of its thread have their turn.
        ::tokio::task::consume_budget().await;
        loop {
            if let Some(result) = self.try_add(&message) {
                return result;
            }
            self.wait_for_room().await?;
        }
    }

    /// As [`publish`](Publisher::publish), if there is room now; `None` if there is not.
    ///
    /// # Errors
    /// As [`publish`](Publisher::publish).
    pub fn try_publish<'m>(
        &self,
        message: impl Into<Message<'m>>,
    ) -> Option<Result<Confirm, ClientError>> {
        self.try_add(&message.into())
    }

    /// Publishes many messages at the least cost per message. The one [`Confirm`] stands for all
    /// of them (and for what other tasks published between them, while this one waited for room).
    /// Cancelled, it has taken those before the one that waited.
    ///
    /// # Errors
    /// As [`publish`](Publisher::publish); messages before the one that failed are published.
    pub async fn publish_many<'m, M: Into<Message<'m>>>(
        &self,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<Confirm, ClientError> {
        let mut messages = messages.into_iter();
        let mut range: Option<(u64, u64)> = None;
        loop {
            ::tokio::task::consume_budget().await;
            if self.add_some(&mut messages, &mut range)? {
                let (first, last) = range.unwrap_or((1, 0));
                return Ok(self.confirm(first, last));
            }
            self.wait_for_room().await?;
        }
    }

    /// Adds messages until there is no room; true if that were all.
    fn add_some<'m, M: Into<Message<'m>>>(
        &self,
        messages: &mut impl Iterator<Item = M>,
        range: &mut Option<(u64, u64)>,
    ) -> Result<bool, ClientError> {
        let mut core = self.shared.lock();
        let result = loop {
            if let Some(error) = core.core.failed.clone() {
                break Err(error);
            }
            if core.core.is_over_room() {
                break Ok(false);
            }
            let Some(message) = messages.next() else { break Ok(true) };
            match core.core.add(&message.into()) {
                Ok((ordinal, closed)) => {
                    range.get_or_insert((ordinal, ordinal)).1 = ordinal;
                    if closed {
                        core.core.flush(self.shared.clock.now());
                    }
                }
                Err(error) => break Err(error),
            }
        };
        self.after_publish(core);
        result
    }

    #[inline]
    fn try_add(&self, message: &Message<'_>) -> Option<Result<Confirm, ClientError>> {
        let mut core = self.shared.lock();
        if let Some(error) = core.core.failed.clone() {
            return Some(Err(error));
        }
        if core.core.is_over_room() {
            return None;
        }
        let added = core.core.add(message);
        self.after_publish(core);
        Some(added.map(|(ordinal, _)| self.confirm(ordinal, ordinal)))
    }

    /// Sends what is due, and lets the task know of what is not.
    #[inline]
    fn after_publish(&self, mut core: Guard<'_, PublisherCore>) {
        core.core.send_due(self.shared.clock.now());
        if core.core.leaves_work() || core.core.link.is_down() {
            // What the system did not take can go as soon as it does.
            let blocked = core.core.link.session.wants_transmit();
            let needed = if blocked { Some(Mono::default()) } else { core.wake_at() };
            let sleeps_too_long = match (needed, core.asleep_until) {
                (Some(needed), Some(until)) => needed < until,
                (needed, None) => needed.is_some(),
                (None, _) => false,
            };
            if sleeps_too_long {
                core.asleep_until = needed;
                self.shared.wake.notify_one();
            }
        }
        self.shared.leave(core);
    }

    #[cold]
    async fn wait_for_room(&self) -> Result<(), ClientError> {
        let room = self.shared.until(None, |core| {
            // Some room at a time, or every confirm would be a wake-up.
            let enough = core.core.outstanding_bytes_max() / 4 * 3;
            let room = (core.core.outstanding_bytes() <= enough).then_some(Ok(()));
            core.core.failed.clone().map(Err).or(room)
        });
        room.await.unwrap_or(Err(ClientError::TimedOut))
    }

    fn confirm(&self, first: u64, last: u64) -> Confirm {
        Confirm { shared: Arc::clone(&self.shared), first, last, registered: false }
    }

    /// Sends all and waits until all that was published before is confirmed.
    ///
    /// # Errors
    /// The first failure of a message since the last flush, or what ended the publisher.
    pub async fn flush(&self) -> Result<(), ClientError> {
        let last = {
            let mut core = self.shared.lock();
            core.core.send_gathered();
            core.core.flush(self.shared.clock.now());
            let last = core.core.view().ordinal_last;
            self.shared.leave(core);
            last
        };
        self.shared.wake.notify_one();
        let flushed = self.shared.until(None, |core| {
            let core = &mut core.core;
            if core.is_answered(last) {
                return Some(core.take_flush_failure());
            }
            core.failed.clone().map(Err)
        });
        flushed.await.unwrap_or(Err(ClientError::TimedOut))
    }

    /// Whether messages flow.
    pub fn state(&self) -> PublisherState {
        self.shared.lock().core.state()
    }

    /// What became of the messages so far.
    pub fn counts(&self) -> PublishCounts {
        self.shared.lock().core.counts()
    }

    /// The queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Flushes and closes. Dropping a publisher closes it after one attempt to send what is
    /// gathered, without waiting for confirms.
    ///
    /// # Errors
    /// As [`flush`](Publisher::flush).
    pub async fn close(self) -> Result<(), ClientError> {
        self.flush().await
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let mut core = self.shared.lock();
        core.core.send_gathered();
        core.core.flush(self.shared.clock.now());
        core.core.fail(ClientError::Closed);
        core.closing = true;
        self.shared.leave(core);
        self.shared.wake.notify_one();
    }
}

impl Confirm {
    /// The answer, if it is there; `None` while it is not. Does not wait.
    ///
    /// # Errors
    /// As the future's.
    pub fn try_get(&self) -> Option<Result<Reached, ClientError>> {
        self.shared.lock().core.answer(self.first, self.last)
    }
}

impl Future for Confirm {
    type Output = Result<Reached, ClientError>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut core = this.shared.lock();
        if let Some(answer) = core.core.answer(this.first, this.last) {
            drop(core);
            this.registered = false;
            return Poll::Ready(answer);
        }
        core.waiting.insert(this.last, task.waker().clone());
        // Nobody gathers for one who waits.
        core.core.send_gathered();
        let now = this.shared.clock.now();
        core.core.flush(now);
        let blocked = core.core.link.session.wants_transmit();
        let core: io::Guard<'_, _> = core;
        this.shared.leave(core);
        if blocked {
            this.shared.wake.notify_one();
        }
        this.registered = true;
        Poll::Pending
    }
}

impl Drop for Confirm {
    fn drop(&mut self) {
        if self.registered {
            self.shared.lock().waiting.remove(&self.last);
        }
    }
}
