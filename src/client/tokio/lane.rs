//! One connection of a consumer, and what it feeds from: one or several subscriptions.

use super::io::{Core, Shared, Stream, drive};
use super::message::{Answers, Delivered, Log, Other};
use crate::base::time::Mono;
use crate::client::driver::{Link, Reopen, Setup};
use crate::client::session::{Event, Refusal};
use crate::client::{
    BrokerError, ClientError, ConnectOptions, ConnectionEvent, ConsumeCounts, ConsumerOptions,
    ErrorCode, LostReason,
};
use crate::protocol::control::{Answer, Request};
use crate::protocol::hot::{AckDone, NackKind};
use ::tokio::sync::Notify;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

/// How long answers wait for others to go with them, when their consumer is busy elsewhere.
const GATHER_MS: u64 = 1;
/// While a message is held, its lease is extended for so long, if nothing else is said.
const EXTEND_FOR: Duration = Duration::from_secs(3600);

/// Where a consumer takes messages from: a queue's name, or a queue and one of its subscriptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The queue.
    pub queue: String,
    /// The subscription; empty: what the consumer's options say.
    pub subscription: String,
}

impl From<&str> for Source {
    fn from(queue: &str) -> Source {
        Source { queue: queue.into(), subscription: String::new() }
    }
}

impl From<(&str, &str)> for Source {
    fn from((queue, subscription): (&str, &str)) -> Source {
        Source { queue: queue.into(), subscription: subscription.into() }
    }
}

/// What has come and is not taken by the consumer, of all its lanes. Credit bounds it.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<InboxState>,
    /// Nothing more is to be handed out.
    pub(super) stopped: AtomicBool,
}

#[derive(Default)]
pub(super) struct InboxState {
    pub(super) ready: VecDeque<Arc<Delivered>>,
    pub(super) waker: Option<Waker>,
    pub(super) failed: Option<ClientError>,
}

impl Inbox {
    pub(super) fn lock(&self) -> MutexGuard<'_, InboxState> {
        // Nothing panics under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut InboxState)) {
        let mut state = self.lock();
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.change(|_| {});
    }
}

/// One source of a lane.
struct Feed {
    handle: u32,
    /// Which of the consumer's sources.
    number: usize,
    source: Arc<Source>,
    opened: bool,
    /// While the queue is missing: when to ask for it again.
    reopen_at: Option<Mono>,
    /// The request that creates it.
    creating: Option<u32>,
}

/// A call that waits for the broker.
struct Asked<T> {
    correlation: u32,
    answer: Option<Result<T, ClientError>>,
}

pub(super) struct LaneCore {
    link: Link<Stream>,
    options: ConsumerOptions,
    feeds: Vec<Feed>,
    inbox: Arc<Inbox>,
    answers: Arc<Answers>,
    /// Lists to take answers into.
    log: Log,
    /// When answers that nobody sends are sent.
    answers_due: Option<Mono>,
    /// What came in this turn.
    fresh: Vec<Arc<Delivered>>,
    requests: BTreeMap<u32, Option<Result<Answer, ClientError>>>,
    acked: Option<Asked<AckDone>>,
    pull: Option<Asked<()>>,
    pub(super) counts: ConsumeCounts,
    pub(super) failed: Option<ClientError>,
    pub(super) closing: bool,
}

/// A lane, as its consumer sees it.
pub(super) type Lane = Shared<LaneCore>;

impl Core for LaneCore {
    fn link(&mut self) -> &mut Link<Stream> {
        &mut self.link
    }

    fn turn(&mut self, now: Mono) {
        self.handle_events();
        for feed in &mut self.feeds {
            if feed.reopen_at.is_some_and(|at| at <= now) {
                feed.reopen_at = None;
                self.link.session.reopen(feed.handle);
            }
        }
        if self.link.session.poll_timeout().is_some_and(|at| at <= now) {
            // What is answered needs no longer lease.
            self.pass_answers();
            self.link.session.handle_timeout(now);
            self.handle_events();
        }
        if self.answers.are_told() && *self.answers_due.get_or_insert(now.plus_ms(GATHER_MS)) <= now
        {
            self.answers_due = None;
            // Before they are taken: what is said from now on is told anew.
            self.answers.forget_told();
            self.pass_answers();
        }
        self.flush();
        if !self.fresh.is_empty() {
            let fresh = &mut self.fresh;
            self.inbox.change(|inbox| inbox.ready.extend(fresh.drain(..)));
        }
    }

    fn lose(&mut self, reason: LostReason) {
        // What was delivered and not handed out comes again.
        self.answers.connection.store(0, Ordering::Relaxed);
        self.fresh.clear();
        let answers = &self.answers;
        self.inbox.lock().ready.retain(|run| !Arc::ptr_eq(&run.answers, answers));
        for feed in &mut self.feeds {
            (feed.reopen_at, feed.creating) = (None, None);
        }
        if let Some(acked) = &mut self.acked {
            acked.answer.get_or_insert(Err(ClientError::Lost(reason.clone())));
        }
        self.pull = None;
        if let Err(error) = self.link.drop_connection(reason) {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: ClientError) {
        if self.failed.is_none() {
            self.failed = Some(error.clone());
            self.inbox.change(|inbox| {
                inbox.failed.get_or_insert(error);
            });
        }
    }

    fn wake_at(&self) -> Option<Mono> {
        let reopens = self.feeds.iter().filter_map(|feed| feed.reopen_at).min();
        let soonest = [reopens, self.answers_due].into_iter().flatten().min();
        self.link.wake_at(soonest)
    }

    fn is_over(&self) -> bool {
        self.closing || self.failed.is_some()
    }

    fn take_woken(&mut self) -> Vec<Waker> {
        Vec::new()
    }
}

impl LaneCore {
    /// A lane with its task, attached to the home of `source`.
    pub(super) fn start(
        connect: &ConnectOptions,
        options: &ConsumerOptions,
        inbox: &Arc<Inbox>,
        number: usize,
        source: &Source,
    ) -> Result<Arc<Lane>, ClientError> {
        let setup = Setup { attach: Some(source.queue.clone()), heartbeats: true };
        let wake = Arc::new(Notify::new());
        let mut core = LaneCore {
            link: Link::new(connect, setup)?,
            options: options.clone(),
            feeds: Vec::new(),
            inbox: Arc::clone(inbox),
            answers: Answers::new(Arc::clone(&wake), options.auto_ack),
            log: Log::default(),
            answers_due: None,
            fresh: Vec::new(),
            requests: BTreeMap::new(),
            acked: None,
            pull: None,
            counts: ConsumeCounts::default(),
            failed: None,
            closing: false,
        };
        core.add_feed(number, source)?;
        let lane = Shared::new(core, connect, wake);
        ::tokio::spawn(drive(Arc::clone(&lane)));
        Ok(lane)
    }

    /// Takes from one more source.
    pub(super) fn add_feed(&mut self, number: usize, source: &Source) -> Result<(), ClientError> {
        let mut source = source.clone();
        if source.subscription.is_empty() {
            source.subscription.clone_from(&self.options.subscription);
        }
        let mut settings = self.options.settings(&source.queue, EXTEND_FOR);
        settings.subscription.clone_from(&source.subscription);
        let handle = self.link.session.open_consumer(settings).ok_or(ClientError::Option {
            name: "queues",
            reason: "more than one connection may have handles".into(),
        })?;
        self.feeds.push(Feed {
            handle,
            number,
            source: Arc::new(source),
            opened: false,
            reopen_at: None,
            creating: None,
        });
        Ok(())
    }

    /// Whether all feeds were opened once.
    pub(super) fn is_open(&self) -> bool {
        self.feeds.iter().all(|feed| feed.opened)
    }

    /// The shard of the broker that has the connection.
    pub(super) fn shard(&self) -> u32 {
        self.link.session.shard()
    }

    /// Sends a request; `None` without a connection.
    pub(super) fn request(&mut self, request: &Request) -> Option<u32> {
        let correlation = self.link.session.request(request)?;
        self.requests.insert(correlation, None);
        Some(correlation)
    }

    pub(super) fn take_answer(&mut self, correlation: u32) -> Option<Result<Answer, ClientError>> {
        let answer = self.requests.get_mut(&correlation)?.take();
        if answer.is_some() {
            self.requests.remove(&correlation);
        }
        answer
    }

    /// Messages of a run were handed out: the broker may send as many more. False if the run was of
    /// an older connection.
    pub(super) fn grant(&mut self, handle: u32, connection: u32, credit: (u32, u64)) {
        if self.link.session.connection() == connection && self.link.session.is_connected() {
            self.link.session.credit(handle, credit.0, credit.1);
        }
    }

    /// Gives what was answered to the session.
    pub(super) fn pass_answers(&mut self) {
        let mut log = std::mem::take(&mut self.log);
        self.answers.take(&mut log);
        let (session, counts) = (&mut self.link.session, &mut self.counts);
        for (handle, connection, first, last) in log.acks.drain(..) {
            match session.ack(handle, connection, first, last) {
                true => counts.acked += last - first + 1,
                false => counts.late += last - first + 1,
            }
        }
        for (handle, connection, number, other) in log.others.drain(..) {
            let (kind, delay_ms, text) = match &other {
                Other::Extend { lease_ms } => {
                    session.extend(handle, connection, number, number, *lease_ms);
                    continue;
                }
                Other::GiveBack => (NackKind::Returned, None, ""),
                Other::Nack { kind, delay_ms, text } => (*kind, *delay_ms, &**text),
            };
            let refusal = Refusal { kind, delay_ms, text };
            match session.nack(handle, connection, number, number, &refusal) {
                true => counts.nacked += 1,
                false => counts.late += 1,
            }
        }
        self.log = log;
    }

    /// Writes what the system takes.
    pub(super) fn flush(&mut self) {
        if !self.link.is_down()
            && self.link.session.wants_transmit()
            && let Err(reason) = self.link.try_flush()
        {
            self.lose(reason);
        }
    }

    /// Whether something is left that the system did not take.
    pub(super) fn is_blocked(&self) -> bool {
        !self.link.is_down() && self.link.session.wants_transmit()
    }

    /// Asks the broker to answer all acks so far; false without a connection.
    pub(super) fn ask_acks(&mut self) -> bool {
        self.pass_answers();
        let asked = self.link.session.ack_now();
        self.acked = asked.map(|correlation| Asked { correlation, answer: None });
        self.flush();
        asked.is_some()
    }

    /// The answer to [`ask_acks`](LaneCore::ask_acks).
    pub(super) fn take_acks(&mut self) -> Option<Result<AckDone, ClientError>> {
        let failed = self.failed.clone().map(Err);
        let Some(acked) = &mut self.acked else { return failed };
        let answer = acked.answer.take().or(failed)?;
        if let Ok(done) = &answer {
            self.counts.acked -= done.late.min(self.counts.acked);
            self.counts.late += done.late;
        }
        self.acked = None;
        Some(answer)
    }

    /// Begins a pull on the lane's first source; false unless it is open.
    pub(super) fn begin_pull(&mut self, messages_max: u32, wait_ms: u32) -> bool {
        let asked = self.link.session.pull(self.feeds[0].handle, messages_max, wait_ms, 0);
        self.pull = asked.map(|correlation| Asked { correlation, answer: None });
        self.flush();
        asked.is_some()
    }

    /// How the pull ended; also if its connection did.
    pub(super) fn take_pull(&mut self) -> Option<Result<(), ClientError>> {
        let failed = self.failed.clone().map(Err);
        let Some(pull) = &mut self.pull else { return failed.or(Some(Ok(()))) };
        let answer = pull.answer.take().or(failed)?;
        self.pull = None;
        Some(answer)
    }

    fn feed(&mut self, handle: u32) -> Option<&mut Feed> {
        self.feeds.iter_mut().find(|feed| feed.handle == handle)
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.link.session.poll_event() {
            match event {
                Event::Delivered(run) => {
                    let Some(feed) = self.feeds.iter().find(|feed| feed.handle == run.handle)
                    else {
                        continue;
                    };
                    let records = self.link.session.records(&run);
                    let answers = &self.answers;
                    let run =
                        Delivered::from_run(&run, records, feed.number, &feed.source, answers);
                    self.fresh.push(Arc::new(run));
                }
                Event::DeliveredLarge(large) => {
                    let Some(feed) = self.feeds.iter().find(|feed| feed.handle == large.handle)
                    else {
                        continue;
                    };
                    let (number, source) = (feed.number, &feed.source);
                    let run = Delivered::from_large(*large, number, source, &self.answers);
                    self.fresh.push(Arc::new(run));
                }
                event => self.handle_rare_event(event),
            }
        }
    }

    fn handle_rare_event(&mut self, event: Event) {
        match event {
            Event::Connected(_) => {
                let connection = self.link.session.connection();
                self.answers.connection.store(connection, Ordering::Relaxed);
                self.link.connected();
            }
            Event::Lost(reason) => self.lose(reason),
            Event::ConsumerOpened { handle } => {
                self.feed(handle).into_iter().for_each(|feed| feed.opened = true);
                self.link.pauses.succeeded();
            }
            Event::ConsumerDown { handle, error } => self.on_down(handle, error),
            Event::Answered { correlation, answer } => self.on_answer(correlation, Ok(*answer)),
            Event::Refused { correlation, error } => self.on_refused(correlation, error),
            Event::Unanswered { correlation } => {
                let lost = Err(ClientError::Lost(LostReason::Closed));
                self.on_answer(correlation, lost);
            }
            Event::PullDone { correlation, .. } => self.end_pull(correlation, Ok(())),
            Event::Acked { correlation, done } => self.end_acks(correlation, Ok(done)),
            Event::Drain { reason, .. } => self.link.note(ConnectionEvent::Draining { reason }),
            Event::Fault { error, .. } => self.link.note(ConnectionEvent::Fault { error }),
            _ => {}
        }
    }

    fn on_answer(&mut self, correlation: u32, answer: Result<Answer, ClientError>) {
        if let Some(feed) = self.feeds.iter_mut().find(|feed| feed.creating == Some(correlation)) {
            feed.creating = None;
            if answer.is_ok() {
                self.link.session.reopen(feed.handle);
            }
        } else if let Some(waiting) = self.requests.get_mut(&correlation) {
            *waiting = Some(answer);
        }
    }

    fn on_refused(&mut self, correlation: u32, error: BrokerError) {
        let creating = self.feeds.iter_mut().find(|feed| feed.creating == Some(correlation));
        if let Some(feed) = creating {
            feed.creating = None;
            match error.code {
                // Somebody else was faster, with other options; it is there.
                Some(ErrorCode::QueueExists | ErrorCode::SubscriptionExists) => {
                    self.link.session.reopen(feed.handle);
                }
                _ => self.fail(ClientError::Broker(error)),
            }
            return;
        }
        let error = ClientError::Broker(error);
        self.end_pull(correlation, Err(error.clone()));
        self.end_acks(correlation, Err(error.clone()));
        self.on_answer(correlation, Err(error));
    }

    fn end_pull(&mut self, correlation: u32, result: Result<(), ClientError>) {
        if let Some(pull) = self.pull.as_mut().filter(|pull| pull.correlation == correlation) {
            pull.answer = Some(result);
        }
    }

    fn end_acks(&mut self, correlation: u32, result: Result<AckDone, ClientError>) {
        if let Some(acked) = self.acked.as_mut().filter(|acked| acked.correlation == correlation) {
            acked.answer = Some(result);
        }
    }

    /// The broker has no such queue or subscription, or will not open a consumer on it now.
    fn on_down(&mut self, handle: u32, error: BrokerError) {
        self.pull = None;
        let Some(at) = self.feeds.iter().position(|feed| feed.handle == handle) else { return };
        let source = Arc::clone(&self.feeds[at].source);
        let on_missing = &self.options.on_missing_queue;
        match self.link.plan_reopen(&source.queue, &source.subscription, on_missing, error) {
            Ok(Reopen::At(time)) => self.feeds[at].reopen_at = Some(time),
            Ok(Reopen::Creating(request)) => self.feeds[at].creating = request,
            Err(error) => self.fail(error),
        }
    }
}
