//! A client of one durable queue and of its dead letters: it publishes, takes, acks, refuses,
//! makes, changes and deletes, by the library's own session, and has its ledger say whether what
//! comes may.

use crate::base::time::Mono;
use crate::client::session::{
    ConsumerSettings, Event, ProducerSettings, Refusal, Run, Session, SessionConfig,
};
use crate::client::{BrokerError, ErrorCode as E, LostReason};
use crate::limits::{BATCH_HEADER_BYTES, DEAD_LETTER_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::protocol::control::Request;
use crate::protocol::hot::{AckDone, NackKind};
use crate::protocol::wire::{self, BackoffKind, ConfirmAt};
use crate::sim::Checked;
use crate::sim::body::{Identity, compose, recognise};
use crate::sim::durable::ledger::{Ask, Ledger};
use crate::sim::letter;
use crate::sim::net::{LineId, LineState};
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::rc::Rc;

/// Bytes of messages that are not confirmed, at most.
const OUTSTANDING_BYTES_MAX: u64 = 40_000;
/// Messages that a consumer has at a time.
const CREDIT: u32 = 40;
/// Until a handle that went down is opened again.
const REOPEN_NS: u64 = 5_000_000;

/// What a consumer takes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Subscription(String),
    /// The dead letters.
    Grave,
}

/// A delivery without an answer.
struct Held {
    connection: u32,
    delivery_id: u64,
    identity: Identity,
    /// Of a dead letter, where it comes from.
    subscription: String,
    bytes: u64,
}

struct Taker {
    handle: u32,
    source: Source,
    held: Vec<Held>,
}

/// Answers that are under way.
struct Answering {
    correlation: u32,
    source: Source,
    /// With the subscription that each is of.
    done: Vec<(Identity, String)>,
    are_acks: bool,
}

struct Publisher {
    handle: u32,
    key: u32,
    answered: u64,
}

/// Sizes of a world, for all clients.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of a usual body at most.
    pub body_bytes: u64,
    /// Bytes of the largest batch.
    pub batch_bytes: usize,
    /// Bytes of large messages at most; 0: there are none.
    pub large_bytes: u64,
}

/// See the module.
pub struct Client {
    universe: Rc<Universe>,
    /// What it is owed.
    pub ledger: Ledger,
    sizes: Sizes,
    session: Session,
    line: Option<LineId>,
    out: Vec<u8>,
    key_base: u32,
    keys: u32,
    publishers: Vec<Publisher>,
    takers: Vec<Taker>,
    answering: Option<Answering>,
    asked: Option<u32>,
    reopen_ns: Option<u64>,
    retry_ns: u64,
    /// No new work.
    pub winding_down: bool,
}

impl Client {
    /// Number `nth`, of the queue of that name.
    pub fn new(universe: &Rc<Universe>, nth: u32, ledger: Ledger, sizes: Sizes) -> Client {
        let attach = universe.chance(500).then(|| ledger.name.clone());
        let config = SessionConfig { seed: universe.bits(), attach, ..SessionConfig::default() };
        Client {
            universe: Rc::clone(universe),
            ledger,
            sizes,
            session: Session::new(config),
            line: None,
            out: Vec::new(),
            key_base: nth * 1_000_000,
            keys: 0,
            publishers: Vec::new(),
            takers: Vec::new(),
            answering: None,
            asked: None,
            reopen_ns: None,
            retry_ns: 0,
            winding_down: false,
        }
    }

    /// Whether everything it has sent is answered, and there is nothing left that it holds.
    pub fn is_settled(&self) -> bool {
        let answered = |of: &Publisher| {
            let view = self.session.producer(of.handle);
            view.answered_ordinal == view.ordinal_last
        };
        self.asked.is_none()
            && !self.ledger.unsure
            && self.answering.is_none()
            && self.takers.iter().all(|taker| taker.held.is_empty())
            && self.publishers.iter().all(answered)
    }

    /// For people: what it waits for.
    pub fn describe(&self) -> String {
        let views: Vec<_> =
            self.publishers.iter().map(|of| self.session.producer(of.handle)).collect();
        let held: Vec<_> = self.takers.iter().map(|of| (&of.source, of.held.len())).collect();
        format!("{}: {:?} {views:?} {held:?}", self.ledger.name, self.ledger.asked)
    }

    /// Lets it do something.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn act(&mut self) -> Checked {
        let now = self.universe.mono();
        if self.line.is_none() {
            if self.retry_ns > now.0 {
                return Ok(());
            }
            self.line = self.universe.net.borrow_mut().connect();
            if self.line.is_some() {
                self.session.handle_connected(now);
            }
            self.retry_ns = now.0 + 1_000_000;
        }
        self.receive(now)?;
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
            self.handle_events()?;
        }
        if self.reopen_ns.is_some_and(|at| at <= now.0) {
            self.reopen_ns = None;
            let publishers = self.publishers.iter().map(|of| of.handle);
            let all: Vec<u32> = publishers.chain(self.takers.iter().map(|of| of.handle)).collect();
            all.into_iter().for_each(|handle| self.session.reopen(handle));
        }
        if self.line.is_some() {
            self.work();
        }
        self.handle_events()?;
        self.transmit(now);
        Ok(())
    }

    fn receive(&mut self, now: Mono) -> Checked {
        let Some(line) = self.line else { return Ok(()) };
        let mut bytes = Vec::new();
        let state = self.universe.net.borrow_mut().client_read(line, usize::MAX, &mut bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() && self.line.is_some() {
            let taken = self.session.handle_bytes(now, rest);
            rest = &rest[taken..];
            self.handle_events()?;
        }
        if state != LineState::Open {
            self.universe.note(|| format!("{}: line {state:?}", self.ledger.name));
            self.cut();
        }
        Ok(())
    }

    fn transmit(&mut self, now: Mono) {
        let Some(line) = self.line else { return };
        if self.out.is_empty() {
            self.session.poll_transmit(now, &mut self.out);
        }
        let taken = self.universe.net.borrow_mut().client_write(line, &self.out);
        self.out.drain(..taken);
    }

    /// Its connection is gone.
    pub fn cut(&mut self) {
        if let Some(line) = self.line.take() {
            self.universe.net.borrow_mut().client_close(line, true);
            self.session.handle_disconnected();
        }
        self.out.clear();
        self.takers.iter_mut().for_each(|taker| taker.held.clear());
        if let Some(answering) = self.answering.take()
            && answering.are_acks
        {
            self.judge(&answering, false);
        }
        self.asked = None;
    }

    /// The broker is there again, and the ledger knows what there is: handles on what is not go,
    /// and new ones come.
    pub fn settle_in(&mut self) {
        if !self.ledger.exists {
            self.drop_handles();
            return;
        }
        let ledger = &self.ledger;
        let is_gone = |of: &Taker| match &of.source {
            Source::Subscription(name) => !ledger.has(name),
            Source::Grave => false,
        };
        let gone: Vec<u32> =
            self.takers.iter().filter(|of| is_gone(of)).map(|of| of.handle).collect();
        self.takers.retain(|of| !gone.contains(&of.handle));
        gone.into_iter().for_each(|handle| self.session.close(handle));
        while self.publishers.len() < 2 {
            self.keys += 1;
            let key = self.key_base + self.keys;
            let largest = self.sizes.batch_bytes as u64 - 200;
            let settings = ProducerSettings {
                queue: self.ledger.name.clone(),
                producer_id: self.universe.bits() | 1,
                batch_bytes: 100 + self.universe.skewed(largest) as usize,
            };
            let Some(handle) = self.session.open_producer(settings) else { return };
            self.publishers.push(Publisher { handle, key, answered: 0 });
        }
        for name in ["default", "second"] {
            if self.ledger.has(name) {
                self.take_from(Source::Subscription(name.to_owned()));
            }
        }
        self.take_from(Source::Grave);
    }

    fn take_from(&mut self, source: Source) {
        if self.takers.iter().any(|taker| taker.source == source) {
            return;
        }
        let (queue, subscription) = match &source {
            Source::Subscription(name) => (self.ledger.name.clone(), name.clone()),
            Source::Grave => (self.grave(), String::new()),
        };
        let settings = ConsumerSettings {
            queue,
            subscription,
            credit_messages: CREDIT,
            credit_bytes: 1 << 20,
            replenish: true,
            ..ConsumerSettings::default()
        };
        if let Some(handle) = self.session.open_consumer(settings) {
            self.takers.push(Taker { handle, source, held: Vec::new() });
        }
    }

    fn grave(&self) -> String {
        format!("{}.dead", self.ledger.name)
    }

    /// Nothing of the queue is used any more.
    fn drop_handles(&mut self) {
        for of in std::mem::take(&mut self.publishers) {
            self.session.close(of.handle);
        }
        let (graves, takers): (Vec<_>, Vec<_>) =
            self.takers.drain(..).partition(|of| of.source == Source::Grave);
        self.takers = graves;
        takers.into_iter().for_each(|of| self.session.close(of.handle));
    }

    // ---- what the session says ----

    fn handle_events(&mut self) -> Checked {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Lost(LostReason::Fatal(error)) if error.code == Some(E::Draining) => {
                    self.cut();
                }
                Event::Lost(reason) => {
                    return Err(format!("{}: connection lost: {reason:?}", self.ledger.name));
                }
                Event::Confirmed { handle, ordinal, duplicates, reached, .. } => {
                    if duplicates > 0 {
                        self.universe.cover(Cover::DurableDuplicate);
                    }
                    let Some(of) = self.publishers.iter_mut().find(|of| of.handle == handle) else {
                        continue;
                    };
                    let numbers = (of.answered + 1, ordinal);
                    of.answered = ordinal;
                    if numbers.0 <= numbers.1 {
                        self.ledger.confirmed(of.key, numbers, reached)?;
                    }
                }
                Event::PublishFailed { handle, error, .. }
                    if self.publishers.iter().any(|of| of.handle == handle) =>
                {
                    return Err(format!("publishes failed: {error:?}"));
                }
                Event::ProducerRenewed { .. }
                    if !self.ledger.is_written || !self.ledger.lost_power =>
                {
                    return Err(format!("{}: a producer is not known", self.ledger.name));
                }
                Event::ProducerDown { error, .. } | Event::ConsumerDown { error, .. } => {
                    judge_down(&error)?;
                    self.reopen_ns.get_or_insert(self.universe.mono().0 + REOPEN_NS);
                }
                Event::Delivered(run) => self.delivered(&run)?,
                Event::DeliveredLarge(large) => {
                    let at = (large.sequence, large.header.attempts);
                    let of = (large.connection, large.header.delivery_id);
                    let bytes = large.records_bytes as u64;
                    self.take(large.handle, of, at, (&large.properties, &large.body), bytes)?;
                }
                Event::Acked { correlation, done } => self.answered(correlation, done),
                Event::Answered { correlation, .. } if self.asked == Some(correlation) => {
                    self.asked = None;
                    self.ledger.answered();
                    self.settle_in();
                }
                Event::Refused { correlation, error } if self.asked == Some(correlation) => {
                    self.asked = None;
                    self.universe.note(|| format!("refused: {error:?}"));
                    self.judge_refusal(&error)?;
                    self.ledger.refused();
                    self.settle_in();
                }
                Event::Fault { error, .. } => judge_fault(&error)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn judge_refusal(&self, error: &BrokerError) -> Checked {
        match (error.code, &self.ledger.asked) {
            (Some(E::Draining | E::MemoryLimit), _) => Ok(()),
            (Some(E::QueueNotFound), Some((Ask::Grave, _))) => Ok(()),
            (_, asked) => Err(format!("{}: {asked:?}: {error:?}", self.ledger.name)),
        }
    }

    fn delivered(&mut self, run: &Run) -> Checked {
        let (header, handle) = (run.header, run.handle);
        let messages: Vec<_> = self
            .session
            .messages(run)
            .map(|record| {
                let sequence = header.base_sequence + u64::from(record.header.sequence_delta);
                let bytes = record.header.record_bytes() as u64;
                (sequence, record.properties.to_vec(), record.body.to_vec(), bytes)
            })
            .collect();
        for (nth, (sequence, properties, body, bytes)) in messages.into_iter().enumerate() {
            let of = (run.connection, header.delivery_id + nth as u64);
            self.take(handle, of, (sequence, header.attempts), (&properties, &body), bytes)?;
        }
        Ok(())
    }

    fn take(
        &mut self,
        handle: u32,
        (connection, delivery_id): (u32, u64),
        at: (u64, u16),
        (properties, body): (&[u8], &[u8]),
        bytes: u64,
    ) -> Checked {
        let Some(taker) = self.takers.iter_mut().find(|of| of.handle == handle) else {
            return Ok(());
        };
        let identity = recognise(properties, body)?;
        if body.len() as u64 > self.sizes.batch_bytes as u64 {
            self.universe.cover(Cover::DurableLarge);
            if self.ledger.is_back(identity) {
                self.universe.cover(Cover::DurableLargeBack);
            }
        }
        let found = letter::read(properties)?;
        self.universe.note(|| format!("{:?} {identity:?} at {at:?}", taker.source));
        let subscription = match (&taker.source, found) {
            (Source::Subscription(name), None) => {
                self.ledger.delivered(name, identity, at)?;
                name.clone()
            }
            (Source::Grave, Some(letter)) => {
                self.ledger.buried(&letter, identity, at.0)?;
                self.universe.cover(Cover::DurableLetter);
                // What its consumer said does not survive.
                if letter.rejected && letter.error.is_none() {
                    self.universe.cover(Cover::DurableLetterBack);
                }
                letter.subscription
            }
            (source, found) => return Err(format!("{found:?} came from {source:?}")),
        };
        taker.held.push(Held { connection, delivery_id, identity, subscription, bytes });
        Ok(())
    }

    fn answered(&mut self, correlation: u32, done: AckDone) {
        if let Some(answering) = self.answering.take_if(|of| of.correlation == correlation)
            && answering.are_acks
        {
            self.judge(&answering, done.late == 0);
        }
    }

    fn judge(&mut self, answering: &Answering, is_sure: bool) {
        for (identity, subscription) in &answering.done {
            match answering.source {
                Source::Subscription(_) => self.ledger.acked(subscription, *identity, is_sure),
                Source::Grave if is_sure => self.ledger.buried_acked(subscription, *identity),
                Source::Grave => {}
            }
        }
    }

    // ---- what it does by itself ----

    fn work(&mut self) {
        let universe = Rc::clone(&self.universe);
        if self.asked.is_none() && self.session.is_connected() {
            self.ask(&universe);
        }
        self.publish(&universe);
        if self.answering.is_none() && universe.chance(300) {
            self.answer(&universe);
        }
    }

    fn publish(&mut self, universe: &Universe) {
        let is_going = matches!(self.ledger.asked, Some((Ask::Delete, _)));
        for nth in 0..self.publishers.len() {
            let Publisher { handle, key, .. } = self.publishers[nth];
            let outstanding = self.session.producer(handle).outstanding_bytes as u64;
            let is_full = outstanding > OUTSTANDING_BYTES_MAX;
            if !self.winding_down && !is_going && !is_full && universe.chance(150) {
                for _ in 0..universe.skewed(12) {
                    self.publish_one(universe, (handle, key));
                }
            }
            self.session.send(handle);
        }
    }

    fn publish_one(&mut self, universe: &Universe, (handle, key): (u32, u32)) {
        let number = self.session.producer(handle).ordinal_last + 1;
        let fixed = BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + DEAD_LETTER_BYTES_MAX + 100;
        let record_max = (self.sizes.batch_bytes - fixed) as u64;
        let large = self.sizes.large_bytes > 0 && universe.chance(15);
        let bytes = match large {
            true => universe.range(self.sizes.large_bytes / 2, self.sizes.large_bytes),
            false => universe.skewed(self.sizes.body_bytes.min(record_max)),
        };
        let identity = Identity { producer: key, number };
        let message = compose(identity, bytes as usize, false);
        let properties = message.properties.bytes();
        if self.session.publish(handle, properties, false, &message.body).is_ok() {
            self.ledger.sent(identity);
        }
    }

    fn ask(&mut self, universe: &Universe) {
        let (has_second, exists) = (self.ledger.has("second"), self.ledger.exists);
        let messages_max = 100_000 + universe.below(1000);
        let second = || "second".to_owned();
        let ask = match universe.below(4000) {
            _ if !exists => Ask::Create(messages_max),
            _ if self.ledger.unsure => Ask::Update(messages_max),
            _ if self.winding_down => return,
            0..10 => Ask::Update(messages_max),
            10..18 => Ask::Grave,
            18..20 => Ask::Purge,
            20 => Ask::Delete,
            21..24 if has_second => Ask::Unsubscribe(second()),
            24..30 if !has_second => Ask::Subscribe(second()),
            _ => return,
        };
        let request = self.request(&ask);
        match &ask {
            Ask::Delete => self.drop_handles(),
            Ask::Unsubscribe(name) => {
                let source = Source::Subscription(name.clone());
                let gone = self.takers.extract_if(.., |of| of.source == source);
                gone.for_each(|of| self.session.close(of.handle));
            }
            _ => {}
        }
        if let Some(correlation) = self.session.request(&request) {
            universe.event("durable ask", u64::from(correlation), 0);
            universe.note(|| format!("{}: {ask:?}", self.ledger.name));
            self.asked = Some(correlation);
            self.ledger.ask(ask);
        }
    }

    fn request(&self, ask: &Ask) -> Request {
        let name = self.ledger.name.clone();
        let confirm = if self.ledger.is_written { ConfirmAt::Written } else { ConfirmAt::Synced };
        let options = |messages_max| {
            Box::new(wire::QueueOptionsT {
                durable: true,
                messages_max,
                confirm,
                ..wire::QueueOptionsT::default()
            })
        };
        let rules = wire::SubscriptionOptionsT {
            max_attempts: 3,
            backoff: Some(Box::new(wire::BackoffT {
                kind: BackoffKind::Fixed,
                base_ms: 5,
                ..wire::BackoffT::default()
            })),
            ..wire::SubscriptionOptionsT::default()
        };
        let rules = Some(Box::new(rules));
        let update = |name, messages_max| {
            let options = options(messages_max);
            Request::QueueUpdate(wire::QueueUpdateT { name, options, set: 1 })
        };
        match ask {
            Ask::Create(messages_max) => Request::QueueCreate(wire::QueueCreateT {
                name,
                options: Some(options(*messages_max)),
                subscription_options: rules,
                ..wire::QueueCreateT::default()
            }),
            Ask::Update(messages_max) => update(name, *messages_max),
            Ask::Grave => update(self.grave(), 0),
            Ask::Delete => Request::QueueDelete(wire::QueueDeleteT { name, if_empty: false }),
            Ask::Purge => Request::QueuePurge(wire::QueuePurgeT { name, subscription: None }),
            Ask::Subscribe(second) => Request::SubscriptionCreate(wire::SubscriptionCreateT {
                queue: name,
                name: second.clone(),
                options: rules,
                ..wire::SubscriptionCreateT::default()
            }),
            Ask::Unsubscribe(second) => Request::SubscriptionDelete(wire::SubscriptionDeleteT {
                queue: name,
                name: second.clone(),
                force: true,
            }),
        }
    }

    /// Acks some of what one consumer holds, or refuses it.
    fn answer(&mut self, universe: &Universe) {
        let full: Vec<usize> =
            (0..self.takers.len()).filter(|&nth| !self.takers[nth].held.is_empty()).collect();
        if full.is_empty() {
            return;
        }
        let taker = &mut self.takers[full[universe.index(full.len())]];
        let count = 1 + universe.index(taker.held.len());
        let first =
            if universe.chance(300) { universe.index(taker.held.len() - count + 1) } else { 0 };
        let is_grave = taker.source == Source::Grave;
        let are_acks = self.winding_down || is_grave || !universe.chance(150);
        let kinds = [NackKind::Failed, NackKind::Returned, NackKind::Rejected];
        let kind = kinds[universe.index(kinds.len())];
        let refusal = Refusal { kind, delay_ms: None, text: "no" };
        let (mut done, mut credit) = (Vec::new(), (0, 0));
        for held in taker.held.drain(first..first + count) {
            let id = held.delivery_id;
            let (handle, connection) = (taker.handle, held.connection);
            let is_sent = match are_acks {
                true => self.session.ack(handle, connection, id, id),
                false => self.session.nack(handle, connection, id, id, &refusal),
            };
            if is_sent {
                credit = (credit.0 + 1, credit.1 + held.bytes);
                universe.note(|| format!("answer {are_acks} {kind:?} {:?}", held.identity));
                done.push((held.identity, held.subscription));
            }
        }
        if credit.0 > 0 {
            self.session.credit(taker.handle, credit.0, credit.1);
        }
        let source = taker.source.clone();
        if let Some(correlation) = self.session.ack_now() {
            self.answering = Some(Answering { correlation, source, done, are_acks });
        }
    }
}

fn judge_down(error: &BrokerError) -> Checked {
    match error.code {
        Some(E::QueueNotFound | E::QueueDeleted | E::MemoryLimit | E::Draining) => Ok(()),
        Some(E::SubscriptionNotFound | E::SubscriptionDeleted | E::ProducerFenced) => Ok(()),
        _ => Err(format!("a handle went down: {error:?}")),
    }
}

fn judge_fault(error: &BrokerError) -> Checked {
    match error.code {
        Some(E::LateAck | E::UnknownHandle | E::Draining | E::MemoryLimit) => Ok(()),
        _ => Err(format!("a fault: {error:?}")),
    }
}
