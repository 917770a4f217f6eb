//! A consumer of one or several queues: a stream of messages.

use super::lane::{Inbox, Lane, LaneCore, Source};
use super::message::{Cursor, Delivered, Message};
use crate::client::{
    AckCount, ClientError, ConnectOptions, ConsumeCounts, ConsumerOptions, LostReason,
};
use crate::limits::PULL_WAIT_MS_MAX;
use crate::protocol::control::{Answer, Request};
use crate::protocol::wire;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

/// Receives from one or several queues, by one connection for each shard of the broker that has
/// some of them.
///
/// It reconnects by itself and opens again; what was delivered before is the broker's again and
/// comes anew, and answers to it are counted as late. What happens to its connections is told by
/// [`ConnectOptions::on_event`]. Dropped, it gives back what is not answered.
pub struct Consumer {
    lanes: Vec<Arc<Lane>>,
    inbox: Arc<Inbox>,
    options: ConsumerOptions,
    request_timeout: Duration,
    /// Taken from the inbox.
    local: VecDeque<Arc<Delivered>>,
    cursor: Option<Cursor>,
    /// By source: its lane, and what is handed out and not granted again.
    dues: Vec<Due>,
    received: u64,
    /// An error was given by the stream, which is its end.
    ended: bool,
    /// `counts` at the last flush.
    flushed: ConsumeCounts,
}

#[derive(Clone, Copy, Debug, Default)]
struct Due {
    lane: usize,
    handle: u32,
    connection: u32,
    messages: u32,
    bytes: u64,
}

/// Ends a consumer from elsewhere: see [`Consumer::stopper`].
#[derive(Clone)]
pub struct Stopper {
    inbox: Arc<Inbox>,
}

impl Stopper {
    /// The consumer hands out no more messages: [`Consumer::recv`] gives `None`, and
    /// [`Consumer::for_each_concurrent`] ends when its handlers have. What was not handed out goes
    /// back when the consumer is closed or dropped.
    pub fn stop(&self) {
        self.inbox.stop();
    }
}

impl Consumer {
    /// Connects and opens a consumer on `queue`, or on one of its subscriptions where the options
    /// name one.
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
        options: ConsumerOptions,
    ) -> Result<Consumer, ClientError> {
        Consumer::open_all(connect, [queue], options).await
    }

    /// As [`open`](Consumer::open), on several queues or subscriptions. Each has its own credit;
    /// messages come as they come, in order within each.
    ///
    /// # Errors
    /// As [`open`](Consumer::open).
    ///
    /// # Panics
    /// As [`open`](Consumer::open).
    pub async fn open_all<S: Into<Source>>(
        connect: &ConnectOptions,
        sources: impl IntoIterator<Item = S>,
        options: ConsumerOptions,
    ) -> Result<Consumer, ClientError> {
        options.check()?;
        let sources: Vec<Source> = sources.into_iter().map(Into::into).collect();
        let mut consumer = Consumer {
            lanes: Vec::new(),
            inbox: Arc::new(Inbox::default()),
            options,
            request_timeout: connect.request_timeout,
            local: VecDeque::new(),
            cursor: None,
            dues: Vec::new(),
            received: 0,
            ended: false,
            flushed: ConsumeCounts::default(),
        };
        if sources.is_empty() {
            let reason = "at least one is needed".into();
            return Err(ClientError::Option { name: "queues", reason });
        }
        for source in &sources {
            consumer.add(connect, source).await?;
        }
        Ok(consumer)
    }

    /// Opens one more source, on the lane that is at its home.
    async fn add(&mut self, connect: &ConnectOptions, source: &Source) -> Result<(), ClientError> {
        let number = self.dues.len();
        let lane = match self.lane_for(source).await? {
            Some(lane) => {
                let mut core = self.lanes[lane].lock();
                let added = core.add_feed(number, source);
                core.flush();
                self.lanes[lane].leave(core);
                added?;
                lane
            }
            None => {
                let (options, inbox) = (&self.options, &self.inbox);
                self.lanes.push(LaneCore::start(connect, options, inbox, number, source)?);
                self.lanes.len() - 1
            }
        };
        self.dues.push(Due { lane, ..Due::default() });
        let opened = self.lanes[lane].until(None, |core| {
            let opened = core.is_open().then_some(Ok(()));
            core.failed.clone().map(Err).or(opened)
        });
        opened.await.unwrap_or(Err(ClientError::TimedOut))
    }

    /// The lane on the home shard of a source, if there is one. A queue that does not exist is
    /// opened by the first lane, which knows what to do about it.
    async fn lane_for(&self, source: &Source) -> Result<Option<usize>, ClientError> {
        let Some(first) = self.lanes.first() else { return Ok(None) };
        let describe = wire::QueueDescribeT { name: source.queue.clone() };
        let request = Request::QueueDescribe(describe);
        let deadline = first.clock.after(self.request_timeout);
        let mut asked = None;
        let answer = first.until(deadline, |core| {
            if let Some(error) = core.failed.clone() {
                return Some(Err(error));
            }
            if asked.is_none() {
                asked = core.request(&request);
                core.flush();
            }
            match core.take_answer(asked?) {
                // Asked again by the next connection.
                Some(Err(ClientError::Lost(_))) => {
                    asked = None;
                    None
                }
                answer => answer,
            }
        });
        match answer.await {
            None => Err(ClientError::TimedOut),
            Some(Ok(Answer::QueueDescription(description))) => {
                let at_home = |lane: &Arc<Lane>| lane.lock().shard() == description.shard;
                Ok(self.lanes.iter().position(at_home))
            }
            Some(Err(ClientError::Broker(_)) | Ok(_)) => Ok(Some(0)),
            Some(Err(error)) => Err(error),
        }
    }

    /// The next message; waits for it. `None` once the consumer was stopped. Cancelled, it has
    /// taken nothing. Answers that are due are sent before it waits.
    ///
    /// # Errors
    /// What ended the consumer: [`ClientError::Connect`], [`ClientError::QueueMissing`],
    /// [`ClientError::Broker`].
    pub async fn recv(&mut self) -> Result<Option<Message>, ClientError> {
        ::tokio::task::consume_budget().await;
        poll_fn(|task| self.poll_recv(task)).await
    }

    /// Waits for a message and takes what is at hand with it, up to `messages_max`. Empty once the
    /// consumer was stopped. Cancelled, it has taken nothing.
    ///
    /// # Errors
    /// As [`recv`](Consumer::recv).
    pub async fn recv_batch(&mut self, messages_max: usize) -> Result<Vec<Message>, ClientError> {
        let Some(first) = self.recv().await? else { return Ok(Vec::new()) };
        let mut batch = vec![first];
        while batch.len() < messages_max {
            let Some(message) = self.next_local() else { break };
            batch.push(message);
        }
        Ok(batch)
    }

    /// Asks for up to `messages_max` messages, never more, apart from credit: what is there now, or
    /// what comes first within `wait`. For consumers with `credit_messages` and `credit_bytes` 0.
    /// Of several sources only the first is asked. Cancelled, it leaves what comes to the next
    /// call.
    ///
    /// # Errors
    /// As [`recv`](Consumer::recv); [`ClientError::Broker`] if the broker refuses the pull.
    ///
    /// # Panics
    /// If `messages_max` is 0.
    pub async fn pull(
        &mut self,
        messages_max: u32,
        wait: Duration,
    ) -> Result<Vec<Message>, ClientError> {
        assert!(messages_max > 0, "a pull asks for something");
        let lane = Arc::clone(&self.lanes[0]);
        let until = lane.clock.after(wait);
        // The broker ends the wait; this is for one that does not.
        let patience = lane.clock.after(wait.saturating_add(self.request_timeout));
        loop {
            let batch = self.take_local(messages_max as usize);
            if !batch.is_empty() {
                return Ok(batch);
            }
            let now = lane.clock.now();
            let left = until.map_or(u64::MAX, |until| until.after(now).as_millis() as u64);
            let wait_ms = left.min(u64::from(PULL_WAIT_MS_MAX)) as u32;
            let mut begun = false;
            let ended = lane.until(patience, |core| {
                if !begun {
                    core.pass_answers();
                    begun = core.begin_pull(messages_max, wait_ms);
                    return core.failed.clone().map(Err);
                }
                core.take_pull()
            });
            let ended = ended.await;
            let batch = self.take_local(messages_max as usize);
            let over = until.is_some_and(|until| lane.clock.now() >= until);
            match ended {
                None if begun => return Err(ClientError::TimedOut),
                Some(Err(error)) => return Err(error),
                _ if !batch.is_empty() || over => return Ok(batch),
                _ => {}
            }
        }
    }

    /// A handle that ends this consumer from elsewhere.
    pub fn stopper(&self) -> Stopper {
        Stopper { inbox: Arc::clone(&self.inbox) }
    }

    /// Sends answers that wait and waits until the broker has answered all so far; counts acks and
    /// nacks since the last flush.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if a connection ended before: what was acked last may come again;
    /// [`ClientError::Broker`] if the broker refused an ack; [`ClientError::TimedOut`] after the
    /// request timeout.
    pub async fn flush(&mut self) -> Result<AckCount, ClientError> {
        for lane in &self.lanes {
            let mut core = lane.lock();
            let asked = core.ask_acks();
            lane.leave(core);
            lane.wake.notify_one();
            if !asked {
                return Err(ClientError::Lost(LostReason::Closed));
            }
        }
        for lane in &self.lanes {
            let deadline = lane.clock.after(self.request_timeout);
            let answer = lane.until(deadline, LaneCore::take_acks).await;
            answer.unwrap_or(Err(ClientError::TimedOut))?;
        }
        let counts = self.counts();
        let before = std::mem::replace(&mut self.flushed, counts);
        let ended = |counts: &ConsumeCounts| counts.acked + counts.nacked;
        Ok(AckCount {
            acked: ended(&counts).saturating_sub(ended(&before)),
            late: counts.late - before.late,
        })
    }

    /// Flushes the answers and closes; what is not answered goes back to its queue.
    ///
    /// # Errors
    /// As [`flush`](Consumer::flush).
    pub async fn close(mut self) -> Result<AckCount, ClientError> {
        self.flush().await
    }

    /// What became of the messages so far.
    pub fn counts(&self) -> ConsumeCounts {
        let mut sum = ConsumeCounts { received: self.received, ..ConsumeCounts::default() };
        for lane in &self.lanes {
            let counts = lane.lock().counts;
            sum.acked += counts.acked;
            sum.nacked += counts.nacked;
            sum.late += counts.late;
        }
        sum
    }

    // ---- handing out ----

    fn poll_recv(&mut self, task: &mut Context<'_>) -> Poll<Result<Option<Message>, ClientError>> {
        if self.inbox.stopped.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(None));
        }
        if let Some(message) = self.next_local() {
            return Poll::Ready(Ok(Some(message)));
        }
        // Nothing at hand: now is the time to say what is done.
        self.send_answers();
        let inbox = Arc::clone(&self.inbox);
        let mut state = inbox.lock();
        if !state.ready.is_empty() {
            std::mem::swap(&mut state.ready, &mut self.local);
            drop(state);
            if let Some(message) = self.next_local() {
                return Poll::Ready(Ok(Some(message)));
            }
            state = inbox.lock();
        }
        if let Some(error) = state.failed.clone() {
            return Poll::Ready(Err(error));
        }
        state.waker = Some(task.waker().clone());
        if !state.ready.is_empty() || inbox.stopped.load(Ordering::Relaxed) {
            // Came between two looks.
            drop(state);
            task.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The next message at hand.
    #[inline]
    fn next_local(&mut self) -> Option<Message> {
        loop {
            if let Some(cursor) = &mut self.cursor {
                if !cursor.run.is_stale()
                    && let Some(message) = cursor.next()
                {
                    self.received += 1;
                    return Some(message);
                }
                let run = Arc::clone(&cursor.run);
                self.cursor = None;
                self.note_due(&run);
            }
            let run = match self.local.pop_front() {
                Some(run) => run,
                None => {
                    let mut state = self.inbox.lock();
                    std::mem::swap(&mut state.ready, &mut self.local);
                    drop(state);
                    self.local.pop_front()?
                }
            };
            self.cursor = Some(Cursor::new(run));
        }
    }

    fn take_local(&mut self, messages_max: usize) -> Vec<Message> {
        let mut batch = Vec::new();
        while batch.len() < messages_max {
            let Some(message) = self.next_local() else { break };
            batch.push(message);
        }
        batch
    }

    /// A run is handed out; half of the credit at a time is granted again, so that the
    /// broker goes on with the other half.
    fn note_due(&mut self, run: &Delivered) {
        if !self.options.replenish || self.options.credit_messages == 0 || run.is_stale() {
            return;
        }
        let due = &mut self.dues[run.feed];
        if due.connection != run.connection {
            *due = Due { lane: due.lane, connection: run.connection, ..Due::default() };
        }
        due.handle = run.handle;
        due.messages += run.header.record_count;
        due.bytes += run.records_bytes as u64;
        if due.messages < self.options.credit_messages.div_ceil(2)
            && due.bytes < self.options.credit_bytes.div_ceil(2)
        {
            return;
        }
        let (messages, bytes) = (std::mem::take(&mut due.messages), std::mem::take(&mut due.bytes));
        let lane = &self.lanes[due.lane];
        let mut core = lane.lock();
        core.grant(due.handle, due.connection, (messages, bytes));
        core.pass_answers();
        Consumer::write(lane, core);
    }

    fn send_answers(&mut self) {
        for lane in &self.lanes {
            let mut core = lane.lock();
            core.pass_answers();
            Consumer::write(lane, core);
        }
    }

    fn write(lane: &Arc<Lane>, mut core: super::io::Guard<'_, LaneCore>) {
        core.flush();
        let blocked = core.is_blocked();
        lane.leave(core);
        if blocked {
            lane.wake.notify_one();
        }
    }
}

impl futures_core::Stream for Consumer {
    type Item = Result<Message, ClientError>;

    /// As [`Consumer::recv`]; ends when the consumer was stopped, or after an error.
    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let polled = self.poll_recv(task);
        self.ended = matches!(polled, Poll::Ready(Err(_)));
        polled.map(Result::transpose)
    }
}

impl Drop for Consumer {
    /// Sends answers that wait, as far as that works at once.
    fn drop(&mut self) {
        // First what would be given back one by one.
        for lane in &self.lanes {
            let mut core = lane.lock();
            core.pass_answers();
            core.flush();
            core.closing = true;
            lane.leave(core);
            lane.wake.notify_one();
        }
        self.inbox.lock().ready.clear();
    }
}
