//! A consumer: one connection, no thread of its own. What it hands out are views into its read
//! buffer; acks and credit gather and go out in one write before the next read.

use super::delivery::{AnswerLog, Batch, Delivery, DeliveryId, Place, Ready, Verb};
use super::link::{BlockingLink, Room};
use crate::base::time::Mono;
use crate::client::driver::{Reopen, Setup};
use crate::client::session::{Event, Refusal};
use crate::client::{
    AckCount, BrokerError, ClientError, ConnectOptions, ConnectionEvent, ConsumeCounts,
    ConsumerOptions, ErrorCode, LostReason,
};
use crate::format::record::Records;
use crate::protocol::hot::AckDone;
use std::time::Duration;

/// Receives from one queue.
pub struct Consumer {
    link: BlockingLink,
    handle: u32,
    queue: String,
    options: ConsumerOptions,
    /// What came with the last read.
    ready: Vec<Ready>,
    /// What of it is handed out.
    place: Place,
    answers: AnswerLog,
    /// Credit of messages handed out, not granted again yet.
    due: (u32, u64),
    pull: Option<PullUnderway>,
    opened: bool,
    /// While the queue is missing: when to ask for it again.
    reopen_at: Option<Mono>,
    /// The request that creates the missing queue.
    creating: Option<u32>,
    /// Answers to acks that [`Consumer::flush`] waits for.
    ack_answer: Option<(u32, Option<Result<AckDone, ClientError>>)>,
    counts: ConsumeCounts,
    /// `counts` at the last flush.
    counts_flushed: ConsumeCounts,
    failed: Option<ClientError>,
}

#[derive(Debug)]
struct PullUnderway {
    correlation: u32,
    ended: Option<Result<(), ClientError>>,
}

impl Consumer {
    /// Connects and opens a consumer on `queue`.
    ///
    /// # Errors
    /// [`ClientError::Connect`], [`ClientError::QueueMissing`], [`ClientError::Broker`] when the
    /// broker refuses the open, [`ClientError::Option`].
    pub fn open(
        connect: &ConnectOptions,
        queue: &str,
        options: ConsumerOptions,
    ) -> Result<Consumer, ClientError> {
        options.check()?;
        // It has no thread to keep a promised beat; the probes are enough while it waits.
        let setup = Setup { attach: Some(queue.into()), heartbeats: false };
        let mut link = BlockingLink::new(connect, setup)?;
        let settings = options.settings(queue, Duration::ZERO);
        let handle = link.session.open_consumer(settings).expect("the first handle is free");
        let mut consumer = Consumer {
            link,
            handle,
            queue: queue.into(),
            options,
            ready: Vec::new(),
            place: Place::default(),
            answers: AnswerLog::default(),
            due: (0, 0),
            pull: None,
            opened: false,
            reopen_at: None,
            creating: None,
            ack_answer: None,
            counts: ConsumeCounts::default(),
            counts_flushed: ConsumeCounts::default(),
            failed: None,
        };
        while !consumer.opened {
            consumer.step(None, Room::Behind)?;
        }
        Ok(consumer)
    }

    /// The next message; waits for it so long (`None`: for ever), `Ok(None)` when none came.
    /// Acks and credit that are due are sent before it waits.
    ///
    /// # Errors
    /// What ended the consumer: [`ClientError::Connect`], [`ClientError::QueueMissing`],
    /// [`ClientError::Broker`].
    #[inline]
    pub fn recv(&mut self, timeout: Option<Duration>) -> Result<Option<Delivery<'_>>, ClientError> {
        if !self.fill(timeout)? {
            return Ok(None);
        }
        let (from, _) = self.take(1);
        Ok(self.batch(from, 1).iter().next())
    }

    /// All messages that are at hand; waits for the first so long (`None`: for ever). Empty when
    /// none came.
    ///
    /// # Errors
    /// As [`Consumer::recv`].
    pub fn recv_batch(&mut self, timeout: Option<Duration>) -> Result<Batch<'_>, ClientError> {
        self.fill(timeout)?;
        let (from, len) = self.take(usize::MAX);
        Ok(self.batch(from, len))
    }

    /// Asks for up to `messages_max` messages, never more, apart from credit: what is there now,
    /// or what comes first within `wait`. A large pull comes in several batches: pull again with
    /// what is left; an empty batch says that nothing came in time.
    ///
    /// # Errors
    /// As [`Consumer::recv`]; [`ClientError::Broker`] if the broker refuses the pull.
    ///
    /// # Panics
    /// If `messages_max` is 0.
    pub fn pull(&mut self, messages_max: u32, wait: Duration) -> Result<Batch<'_>, ClientError> {
        assert!(messages_max > 0, "a pull asks for something");
        if self.place.index == self.ready.len() {
            self.forget_ready();
            self.pass_acks();
            // The broker ends the wait; this is for one that does not.
            let patience = wait.saturating_add(self.link.options.request_timeout);
            self.fill_by_pull(messages_max, wait, self.link.clock.after(patience))?;
        }
        let (from, len) = self.take(messages_max as usize);
        Ok(self.batch(from, len))
    }

    /// Grants credit beyond the first, for consumers that do not replenish it. Sent with the next
    /// receive, flush or [`send`](Consumer::send).
    pub fn grant(&mut self, messages: u32, bytes: u64) {
        self.link.session.credit(self.handle, messages, bytes);
    }

    /// Marks a delivery as done; sent with the next receive, flush or close. So are `nack`,
    /// `give_back` and `reject`, which are those of [`Delivery`].
    pub fn ack(&self, id: DeliveryId) {
        self.answers.ack(id.connection, id.number, id.number);
    }

    /// As [`Delivery::nack`].
    ///
    /// # Errors
    /// As [`Delivery::nack`].
    pub fn nack(
        &self,
        id: DeliveryId,
        delay: Option<Duration>,
        text: &str,
    ) -> Result<(), ClientError> {
        self.answer(id, Verb::nack(delay, text)?);
        Ok(())
    }

    /// As [`Delivery::give_back`].
    pub fn give_back(&self, id: DeliveryId) {
        self.answer(id, Verb::give_back());
    }

    /// As [`Delivery::reject`].
    pub fn reject(&self, id: DeliveryId, text: &str) {
        self.answer(id, Verb::reject(text));
    }

    /// Lets the lease of a delivery end so long from now (`None`: as long as this consumer's leases
    /// are), and sends that at once. If its lease has ended before, nothing happens, and the
    /// broker reports `late_ack` by [`ConnectionEvent::Fault`].
    ///
    /// # Errors
    /// [`ClientError::Option`] unless the lease is 100 ms to 12 h; what ended the consumer.
    pub fn extend(&mut self, id: DeliveryId, lease: Option<Duration>) -> Result<(), ClientError> {
        self.answer(id, Verb::extend(lease)?);
        self.send()
    }

    fn answer(&self, id: DeliveryId, verb: Verb) {
        self.answers.add(id.connection, id.number, id.number, verb);
    }

    /// How long this consumer has for each delivery, as the broker says; `None` while it is not
    /// known, and for one with automatic acks.
    pub fn lease(&mut self) -> Option<Duration> {
        let lease_ms = self.link.session.lease_ms(self.handle);
        (lease_ms > 0).then(|| Duration::from_millis(u64::from(lease_ms)))
    }

    /// Sends acks and credit that wait, without waiting for an answer.
    ///
    /// # Errors
    /// What ended the consumer. A connection that is lost is made anew by the next receive.
    pub fn send(&mut self) -> Result<(), ClientError> {
        self.pass_acks();
        self.link.handle_due(self.link.clock.now());
        match self.link.flush() {
            Ok(()) => Ok(()),
            Err(reason) => self.link.drop_connection(reason),
        }
    }

    /// Sends acks that wait and waits until the broker has answered all acks so far; counts those
    /// since the last flush. Messages that come meanwhile are kept for the next receive.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the connection ended before: what was acked last may come again;
    /// [`ClientError::Broker`] if the broker refused an ack; [`ClientError::TimedOut`] after the
    /// request timeout.
    pub fn flush(&mut self) -> Result<AckCount, ClientError> {
        self.pass_acks();
        let deadline = self.link.clock.after(self.link.options.request_timeout);
        let Some(correlation) = self.link.session.ack_now() else {
            return Err(ClientError::Lost(LostReason::Closed));
        };
        self.ack_answer = Some((correlation, None));
        loop {
            if let Some((_, Some(answer))) = self.ack_answer.take_if(|(_, answer)| answer.is_some())
            {
                return answer.map(|done| self.count_flushed(done));
            }
            if deadline.is_some_and(|deadline| self.link.clock.now() >= deadline) {
                self.ack_answer = None;
                return Err(ClientError::TimedOut);
            }
            if self.link.session.input_room_behind().is_empty() {
                self.copy_ready();
                self.step(deadline, Room::Fresh)?;
            } else {
                self.step(deadline, Room::Behind)?;
            }
        }
    }

    fn count_flushed(&mut self, done: AckDone) -> AckCount {
        self.counts.acked -= done.late.min(self.counts.acked);
        self.counts.late += done.late;
        let before = std::mem::replace(&mut self.counts_flushed, self.counts);
        let ended = |counts: &ConsumeCounts| counts.acked + counts.nacked;
        AckCount {
            acked: ended(&self.counts).saturating_sub(ended(&before)),
            late: self.counts.late - before.late,
        }
    }

    /// What became of the messages so far.
    pub fn counts(&self) -> ConsumeCounts {
        self.counts
    }

    /// The socket, for a caller that waits for several at once in a poller of its own: before it
    /// waits, it receives with a zero timeout until nothing comes, and then calls
    /// [`send`](Consumer::send). `None` while there is no connection; another after a reconnect.
    #[cfg(unix)]
    pub fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        self.link.raw_fd()
    }

    /// The queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Flushes the acks and closes; what is delivered and not acked goes back to the queue.
    ///
    /// # Errors
    /// As [`Consumer::flush`].
    pub fn close(mut self) -> Result<AckCount, ClientError> {
        self.flush()
    }

    // ---- handing out ----

    fn batch(&self, from: Place, len: usize) -> Batch<'_> {
        Batch::new(&self.link.session, &self.ready, &self.answers, from, len)
    }

    /// Hands out up to `messages_max` of what is ready: where they begin, and how many.
    #[inline]
    fn take(&mut self, messages_max: usize) -> (Place, usize) {
        let from = self.place;
        let mut taken = 0;
        while taken < messages_max && self.place.index < self.ready.len() {
            let ready = &self.ready[self.place.index];
            let left = (ready.messages() - self.place.nth) as usize;
            if left > messages_max - taken {
                self.walk(messages_max - taken);
                taken = messages_max;
                break;
            }
            taken += left;
            self.due.0 += ready.messages();
            self.due.1 += ready.records_bytes() as u64;
            self.place = Place { index: self.place.index + 1, nth: 0, offset: 0 };
        }
        self.counts.received += taken as u64;
        (from, taken)
    }

    /// Moves the place on by `messages` of the present run.
    #[inline]
    fn walk(&mut self, messages: usize) {
        let Ready::Run(run) = &self.ready[self.place.index] else { return };
        let records = &self.link.session.records(run)[self.place.offset..];
        let mut walk = Records::new(records);
        walk.by_ref().take(messages).for_each(drop);
        self.place.nth += messages as u32;
        self.place.offset += records.len() - walk.rest().len();
    }

    /// Makes sure that something is ready, or that the time is over: then false.
    #[inline]
    fn fill(&mut self, timeout: Option<Duration>) -> Result<bool, ClientError> {
        if self.place.index < self.ready.len() {
            return Ok(true);
        }
        self.fill_by_read(timeout)
    }

    fn fill_by_read(&mut self, timeout: Option<Duration>) -> Result<bool, ClientError> {
        self.forget_ready();
        self.pass_acks();
        let deadline = timeout.and_then(|timeout| self.link.clock.after(timeout));
        loop {
            self.step(deadline, Room::Fresh)?;
            if !self.ready.is_empty() {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| self.link.clock.now() >= deadline) {
                return Ok(false);
            }
        }
    }

    fn fill_by_pull(
        &mut self,
        messages_max: u32,
        wait: Duration,
        deadline: Option<Mono>,
    ) -> Result<(), ClientError> {
        let wait_until = self.link.clock.after(wait);
        loop {
            if self.pull.is_none() {
                let wait_ms = wait_until.map_or(u64::MAX, |until| {
                    until.after(self.link.clock.now()).as_nanos().div_ceil(1_000_000) as u64
                });
                let wait_ms = wait_ms.min(u64::from(crate::limits::PULL_WAIT_MS_MAX)) as u32;
                self.pull = self
                    .link
                    .session
                    .pull(self.handle, messages_max, wait_ms, 0)
                    .map(|correlation| PullUnderway { correlation, ended: None });
            }
            let asked = self.pull.is_some();
            // Append, so that what has come of this pull is handed out together.
            let full = self.link.session.input_room_behind().is_empty();
            if !full || self.ready.is_empty() {
                let room = if self.ready.is_empty() { Room::Fresh } else { Room::Behind };
                self.step(deadline, room)?;
            }
            let ended = self.pull.take_if(|pull| pull.ended.is_some()).and_then(|pull| pull.ended);
            let ended = ended.transpose()?.is_some();
            if !self.ready.is_empty() && (ended || full) {
                return Ok(());
            }
            let now = self.link.clock.now();
            let over = |until: Option<Mono>| until.is_some_and(|until| now >= until);
            // Without an answer from the broker the wait is over only when it is long over: the
            // pull may be underway in both directions.
            if ended && over(wait_until) || !asked && over(wait_until) || over(deadline) {
                return Ok(());
            }
        }
    }

    /// Copies what is not handed out, so that the read buffer is free.
    fn copy_ready(&mut self) {
        // A run's credit is due with its last message; that of its copies, one by one.
        let handed_out = (self.place.nth, self.place.offset as u64);
        let ready = self.ready[self.place.index..].iter().map(|ready| ready.messages() as usize);
        let batch = self.batch(self.place, ready.sum::<usize>() - self.place.nth as usize);
        let copies = batch.iter().map(|delivery| Ready::Large(delivery.to_large()));
        let copies: Vec<Ready> = copies.collect();
        self.ready = copies;
        self.place = Place::default();
        self.due = (self.due.0 + handed_out.0, self.due.1 + handed_out.1);
    }

    fn forget_ready(&mut self) {
        self.ready.clear();
        self.place = Place::default();
    }

    /// Gives acks and credit to the session, which sends them with the next turn.
    fn pass_acks(&mut self) {
        let (session, handle) = (&mut self.link.session, self.handle);
        for (connection, first, last) in self.answers.drain_acks() {
            if session.ack(handle, connection, first, last) {
                self.counts.acked += last - first + 1;
            } else {
                self.counts.late += last - first + 1;
            }
        }
        for answer in self.answers.take_others() {
            let (connection, first, last) = (answer.connection, answer.first, answer.last);
            match &answer.verb {
                Verb::Nack { kind, delay_ms, text } => {
                    let refusal = Refusal { kind: *kind, delay_ms: *delay_ms, text };
                    if session.nack(handle, connection, first, last, &refusal) {
                        self.counts.nacked += last - first + 1;
                    } else {
                        self.counts.late += last - first + 1;
                    }
                }
                Verb::Extend { lease_ms } => {
                    session.extend(handle, connection, first, last, *lease_ms);
                }
            }
        }
        if !self.options.replenish || self.options.credit_messages == 0 {
            self.due = (0, 0);
            return;
        }
        // Half of it at a time: the broker goes on with the other half.
        if self.due.0 >= self.options.credit_messages.div_ceil(2)
            || self.due.1 >= self.options.credit_bytes.div_ceil(2)
        {
            let (messages, bytes) = std::mem::take(&mut self.due);
            self.link.session.credit(self.handle, messages, bytes);
        }
    }

    // ---- the connection ----

    /// One read at most, and all that follows from it.
    fn step(&mut self, until: Option<Mono>, room: Room) -> Result<(), ClientError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.try_step(until, room);
        self.link.tell();
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    fn try_step(&mut self, until: Option<Mono>, room: Room) -> Result<(), ClientError> {
        if self.link.is_down() {
            self.link.redial(until)?;
        } else {
            let wake_at = [until, self.reopen_at].into_iter().flatten().min();
            if let Err(reason) = self.link.turn(wake_at, room) {
                self.lose(reason)?;
            }
        }
        if self.reopen_at.is_some_and(|at| at <= self.link.clock.now()) {
            self.reopen_at = None;
            self.link.session.reopen(self.handle);
        }
        while let Some(event) = self.link.session.poll_event() {
            self.handle_event(event)?;
        }
        Ok(())
    }

    fn lose(&mut self, reason: LostReason) -> Result<(), ClientError> {
        // What was delivered and not handed out comes again.
        self.forget_ready();
        self.due = (0, 0);
        (self.reopen_at, self.creating) = (None, None);
        if let Some((_, answer)) = &mut self.ack_answer {
            *answer = Some(Err(ClientError::Lost(reason.clone())));
        }
        self.pull = None;
        self.link.drop_connection(reason)
    }

    #[inline]
    fn handle_event(&mut self, event: Event) -> Result<(), ClientError> {
        match event {
            Event::Delivered(run) => self.ready.push(Ready::Run(run)),
            Event::DeliveredLarge(large) => self.ready.push(Ready::Large(large)),
            event => self.handle_rare_event(event)?,
        }
        Ok(())
    }

    fn handle_rare_event(&mut self, event: Event) -> Result<(), ClientError> {
        match event {
            Event::Connected(_) => self.link.connected(),
            Event::Lost(reason) => self.lose(reason)?,
            Event::ConsumerOpened { .. } => {
                self.opened = true;
                self.due = (0, 0);
                self.link.pauses.succeeded();
            }
            Event::ConsumerDown { error, .. } => self.on_down(error)?,
            Event::Answered { correlation, .. } if self.creating == Some(correlation) => {
                self.creating = None;
                self.link.session.reopen(self.handle);
            }
            Event::Refused { correlation, error } => self.on_refused(correlation, error)?,
            Event::PullDone { correlation, .. } => self.end_pull(correlation, Ok(())),
            Event::Acked { correlation, done } => self.answer_acks(correlation, Ok(done)),
            Event::Drain { reason, .. } => {
                self.link.note(ConnectionEvent::Draining { reason });
            }
            Event::Fault { error, .. } => {
                self.link.note(ConnectionEvent::Fault { error });
            }
            _ => {}
        }
        Ok(())
    }

    fn answer_acks(&mut self, asked: u32, result: Result<AckDone, ClientError>) {
        if let Some((correlation, answer)) = &mut self.ack_answer
            && *correlation == asked
        {
            *answer = Some(result);
        }
    }

    fn on_refused(&mut self, correlation: u32, error: BrokerError) -> Result<(), ClientError> {
        if self.creating == Some(correlation) {
            self.creating = None;
            if !matches!(error.code, Some(ErrorCode::QueueExists | ErrorCode::SubscriptionExists)) {
                return Err(ClientError::Broker(error));
            }
            self.link.session.reopen(self.handle);
        } else {
            self.end_pull(correlation, Err(ClientError::Broker(error.clone())));
            self.answer_acks(correlation, Err(ClientError::Broker(error)));
        }
        Ok(())
    }

    fn end_pull(&mut self, asked: u32, result: Result<(), ClientError>) {
        if let Some(pull) = &mut self.pull
            && pull.correlation == asked
        {
            pull.ended = Some(result);
        }
    }

    /// The broker has no such queue, or will not open a consumer on it now.
    fn on_down(&mut self, error: BrokerError) -> Result<(), ClientError> {
        self.pull = None;
        let on_missing = &self.options.on_missing_queue;
        let subscription = &self.options.subscription;
        match self.link.plan_reopen(&self.queue, subscription, on_missing, error)? {
            Reopen::At(at) => self.reopen_at = Some(at),
            Reopen::Creating(request) => self.creating = request,
        }
        Ok(())
    }
}

impl Drop for Consumer {
    /// Sends acks that wait, as far as that works at once.
    fn drop(&mut self) {
        self.pass_acks();
        let _ = self.link.try_flush();
    }
}
