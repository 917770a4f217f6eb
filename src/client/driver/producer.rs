//! What the threads or tasks of a publisher share under one lock: the link, what waits to be sent,
//! what became of the messages.

use super::{Link, Reopen, Setup, Wire, random_u64};
use crate::base::time::Mono;
use crate::client::session::{Event, ProducerSettings, ProducerView};
use crate::client::{
    BrokerError, ClientError, ConnectOptions, ConnectionEvent, ErrorCode, LostReason, Message,
    PublishCounts, PublisherOptions, PublisherState, Reached,
};
use std::collections::VecDeque;
use std::time::Duration;

/// Failures remembered for confirms that were not waited for yet; ranges of messages.
const FAILURES_MAX: usize = 1024;
/// How often the keeper looks for a window that lets more batches go.
const WINDOW_PAUSE: Duration = Duration::from_millis(5);
/// How often it looks while there is nothing to do.
const WATCH_PAUSE: Duration = Duration::from_secs(1);
/// After gathering, the keeper looks after each linger for so long.
const WATCH_MS: u64 = 50;

pub(crate) struct Core<S> {
    pub(crate) link: Link<S>,
    pub(crate) handle: u32,
    queue: String,
    options: PublisherOptions,
    /// When the oldest gathered message came.
    gathered_at: Option<Mono>,
    /// When something was gathered last.
    gathered_last_at: Mono,
    pub(crate) sent_at: Mono,
    pub(crate) read_at: Mono,
    /// First and last ordinal, and why.
    failures: VecDeque<(u64, u64, ClientError)>,
    /// The first failure since the last flush.
    flush_failure: Option<ClientError>,
    counts: PublishCounts,
    reached: Reached,
    pub(crate) opened_once: bool,
    pub(crate) blocked: Option<String>,
    reopen_at: Option<Mono>,
    creating: Option<u32>,
    /// What ended the publisher.
    pub(crate) failed: Option<ClientError>,
    /// The keeper shall end.
    pub(crate) closing: bool,
    /// Threads that wait for a change.
    pub(crate) waiters: u32,
    /// The keeper sleeps for longer than a linger.
    pub(crate) keeper_asleep: bool,
}

impl<S: Wire> Core<S> {
    pub(crate) fn new(
        connect: &ConnectOptions,
        queue: &str,
        options: PublisherOptions,
    ) -> Result<Core<S>, ClientError> {
        options.check()?;
        let mut link = Link::new(connect, Setup { attach: Some(queue.into()), heartbeats: true })?;
        let random = || random_u64().max(1);
        let settings = ProducerSettings {
            queue: queue.into(),
            producer_id: options.producer_id.unwrap_or_else(random),
            batch_bytes: options.batch_bytes,
        };
        let handle = link.session.open_producer(settings).expect("the first handle is free");
        Ok(Core {
            link,
            handle,
            queue: queue.into(),
            options,
            gathered_at: None,
            gathered_last_at: Mono::default(),
            sent_at: Mono::default(),
            read_at: Mono::default(),
            failures: VecDeque::new(),
            flush_failure: None,
            counts: PublishCounts::default(),
            reached: Reached::Memory,
            opened_once: false,
            blocked: None,
            reopen_at: None,
            creating: None,
            failed: None,
            closing: false,
            waiters: 0,
            keeper_asleep: false,
        })
    }

    #[inline]
    pub(crate) fn view(&self) -> ProducerView {
        self.link.session.producer(self.handle)
    }

    #[inline]
    pub(crate) fn outstanding_bytes(&self) -> usize {
        self.view().outstanding_bytes
    }

    #[inline]
    pub(crate) fn is_over_room(&self) -> bool {
        self.outstanding_bytes() > self.options.outstanding_bytes_max
    }

    pub(crate) fn linger(&self) -> Duration {
        self.options.linger
    }

    pub(crate) fn outstanding_bytes_max(&self) -> usize {
        self.options.outstanding_bytes_max
    }

    pub(crate) fn counts(&self) -> PublishCounts {
        let view = self.view();
        PublishCounts {
            published: view.ordinal_last,
            confirmed: view.answered_ordinal - self.counts.failed,
            ..self.counts
        }
    }

    // ---- publishing ----

    /// Adds a message; gives its ordinal, and whether that filled a batch.
    #[inline]
    pub(crate) fn add(&mut self, message: &Message<'_>) -> Result<(u64, bool), ClientError> {
        let (properties, concerns_broker) = message.block();
        self.link.session.add(self.handle, properties, concerns_broker, message.body())
    }

    /// After messages were added: sends what is due. What is gathered goes out when nothing is
    /// under way, or when the last send was a while ago; else it waits for more.
    #[inline]
    pub(crate) fn send_due(&mut self, now: Mono) {
        let view = self.view();
        if view.gathered > 0 {
            let gather_ns = self.options.gather.as_nanos() as u64;
            let due = view.batches_in_flight == 0 || now.0 >= self.sent_at.0 + gather_ns;
            if due && view.can_send {
                self.link.session.send(self.handle);
                self.gathered_at = None;
            } else {
                self.gathered_at.get_or_insert(now);
                self.gathered_last_at = now;
            }
        }
        self.flush(now);
    }

    /// Sends what is gathered as soon as the window allows.
    pub(crate) fn send_gathered(&mut self) {
        if self.view().gathered > 0 {
            self.link.session.send(self.handle);
            self.gathered_at = None;
        }
    }

    /// Writes as much as the system takes.
    #[inline]
    pub(crate) fn flush(&mut self, now: Mono) {
        if !self.link.session.wants_transmit() || self.link.is_down() {
            return;
        }
        self.sent_at = now;
        if let Err(reason) = self.link.try_flush() {
            self.lose(reason);
        }
    }

    // ---- answers ----

    /// Whether all up to `ordinal` are answered.
    #[inline]
    pub(crate) fn is_answered(&self, ordinal: u64) -> bool {
        self.view().answered_ordinal >= ordinal
    }

    /// The answer to messages `first..=last`, if it is there.
    pub(crate) fn answer(&self, first: u64, last: u64) -> Option<Result<Reached, ClientError>> {
        let failure = self.failures.iter().find(|(from, to, _)| *from <= last && *to >= first);
        if let Some((_, _, error)) = failure {
            return Some(Err(error.clone()));
        }
        if self.is_answered(last) {
            return Some(Ok(self.reached));
        }
        self.failed.clone().map(Err)
    }

    /// What [`flush`](super::Publisher::flush) says once all is answered.
    pub(crate) fn take_flush_failure(&mut self) -> Result<(), ClientError> {
        self.flush_failure.take().map_or(Ok(()), Err)
    }

    fn add_failure(&mut self, first: u64, last: u64, error: ClientError) {
        self.counts.failed += last - first + 1;
        self.flush_failure.get_or_insert_with(|| error.clone());
        match self.failures.back_mut() {
            Some((_, end, known)) if *end + 1 == first && *known == error => *end = last,
            _ => self.failures.push_back((first, last, error)),
        }
        if self.failures.len() > FAILURES_MAX {
            self.failures.pop_front();
        }
    }

    // ---- the connection ----

    /// What ended it, for good.
    pub(crate) fn fail(&mut self, error: ClientError) {
        if self.failed.is_none() {
            self.flush_failure.get_or_insert_with(|| error.clone());
            self.failed = Some(error);
        }
    }

    pub(crate) fn lose(&mut self, reason: LostReason) {
        self.blocked = None;
        (self.reopen_at, self.creating) = (None, None);
        if let Err(error) = self.link.drop_connection(reason) {
            self.fail(error);
        }
    }

    /// Does what time asks for.
    pub(crate) fn handle_time(&mut self, now: Mono) {
        if self.link.hello_by().is_some_and(|by| by <= now) {
            return self.lose(LostReason::Silent);
        }
        if self.reopen_at.is_some_and(|at| at <= now) {
            self.reopen_at = None;
            self.link.session.reopen(self.handle);
        }
        let linger_ns = self.options.linger.as_nanos() as u64;
        if self.gathered_at.is_some_and(|at| at.0.saturating_add(linger_ns) <= now.0) {
            self.send_gathered();
        }
        if self.link.session.poll_timeout().is_some_and(|at| at <= now) {
            self.link.session.handle_timeout(now);
        }
        self.handle_events();
        self.flush(now);
    }

    /// Whether messages flow.
    pub(crate) fn state(&self) -> PublisherState {
        match (&self.failed, &self.blocked) {
            (Some(error), _) => PublisherState::Failed(error.clone()),
            (None, Some(reason)) => PublisherState::Blocked { reason: reason.clone() },
            (None, None) if self.view().open => PublisherState::Open,
            (None, None) => PublisherState::Reconnecting,
        }
    }

    /// When [`handle_time`](Core::handle_time) wants to be called, while connected.
    #[cfg(feature = "tokio")]
    pub(crate) fn wake_at(&self) -> Option<Mono> {
        let linger_ns = self.options.linger.as_nanos() as u64;
        let lingers = self.gathered_at.map(|at| Mono(at.0.saturating_add(linger_ns)));
        [self.link.wake_at(self.reopen_at), lingers].into_iter().flatten().min()
    }

    /// Whether something waits that the keeper must see to if the callers go silent.
    #[inline]
    pub(crate) fn leaves_work(&self) -> bool {
        self.view().gathered > 0 || self.link.session.wants_transmit()
    }

    /// When [`handle_time`](Core::handle_time) wants to be called, caller's silence assumed.
    pub(crate) fn keeper_pause(&self, now: Mono) -> Option<Duration> {
        let view = self.view();
        let wake_at = self.link.wake_at(self.reopen_at).map(|at| at.after(now));
        let linger = self.options.linger.max(Duration::from_micros(100));
        let recently = now.ms_since(self.gathered_last_at) < WATCH_MS;
        let pause = if self.leaves_work() || !view.open || recently && view.ordinal_last > 0 {
            Some(linger)
        } else if !view.can_send && !view.blocked {
            // Batches wait for the window, whose confirms nobody else may be reading.
            Some(linger.max(WINDOW_PAUSE))
        } else {
            // A lone publish whose caller has gone silent is watched too: its connection may end.
            Some(WATCH_PAUSE)
        };
        [pause, wake_at].into_iter().flatten().min()
    }

    /// Takes in bytes that were read.
    pub(crate) fn handle_bytes(&mut self, now: Mono, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.link.is_down() {
            let taken = self.link.session.handle_bytes(now, bytes);
            bytes = &bytes[taken..];
            self.handle_events();
        }
    }

    /// Acts on what the session reports.
    pub(crate) fn handle_events(&mut self) {
        while let Some(event) = self.link.session.poll_event() {
            match event {
                Event::Confirmed { duplicates, dropped, reached, .. } => {
                    self.counts.duplicates += u64::from(duplicates);
                    self.counts.dropped += u64::from(dropped);
                    self.reached = reached;
                }
                Event::PublishFailed { first, last, error, .. } => {
                    self.add_failure(first, last, ClientError::Refused(error));
                }
                event => self.handle_rare_event(event),
            }
        }
    }

    fn handle_rare_event(&mut self, event: Event) {
        match event {
            Event::Connected(_) => self.link.connected(),
            Event::Lost(reason) => self.lose(reason),
            Event::ProducerOpened { .. } => {
                self.opened_once = true;
                self.blocked = None;
                self.link.pauses.succeeded();
            }
            Event::ProducerDown { error, .. } => self.on_down(error),
            Event::ProducerRenewed { messages, .. } => {
                self.link.note(ConnectionEvent::ProducerRenewed { messages });
            }
            Event::Blocked { reason, retry_after_ms, .. } => {
                let retry_after =
                    (retry_after_ms > 0).then(|| Duration::from_millis(u64::from(retry_after_ms)));
                self.blocked = Some(reason.clone());
                self.link.note(ConnectionEvent::Blocked { reason, retry_after });
            }
            Event::Unblocked { .. } => {
                self.blocked = None;
                self.link.note(ConnectionEvent::Unblocked);
            }
            Event::Answered { correlation, .. } if self.creating == Some(correlation) => {
                self.creating = None;
                self.link.session.reopen(self.handle);
            }
            Event::Refused { correlation, error } if self.creating == Some(correlation) => {
                self.creating = None;
                match error.code {
                    // Somebody else was faster, with other options; the queue is there.
                    Some(ErrorCode::QueueExists) => self.link.session.reopen(self.handle),
                    _ => self.fail(ClientError::Broker(error)),
                }
            }
            Event::Drain { reason, .. } => self.link.note(ConnectionEvent::Draining { reason }),
            Event::Fault { error, .. } => self.link.note(ConnectionEvent::Fault { error }),
            _ => {}
        }
    }

    /// The broker has no such queue, or will not open a producer on it now.
    fn on_down(&mut self, error: BrokerError) {
        self.blocked = None;
        match self.link.plan_reopen(&self.queue, "", &self.options.on_missing_queue, error) {
            Ok(Reopen::At(at)) => self.reopen_at = Some(at),
            Ok(Reopen::Creating(request)) => self.creating = request,
            Err(error) => self.fail(error),
        }
    }
}
