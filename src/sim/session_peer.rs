//! A client that uses the library's own session: it publishes, consumes and reconnects as any
//! program would, and its messages are owed like everybody's.

use crate::base::time::Mono;
use crate::client::session::{
    ConsumerSettings, Event, ProducerSettings, Refusal, Run, Session, SessionConfig,
};
use crate::client::{BrokerError, ErrorCode, ErrorCode as E};
use crate::limits::{
    BATCH_HEADER_BYTES, DEAD_LETTER_BYTES_MAX, FRAME_HEADER_BYTES, LEASE_MS_DEFAULT, LEASE_MS_MIN,
    PREAMBLE_BYTES, RECORD_HEADER_BYTES,
};
use crate::protocol::control::Answer;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::{DeliverHeader, NackKind};
use crate::sim::body::{Identity, compose, recognise};
use crate::sim::letter;
use crate::sim::model::{At, Holder, Seen};
use crate::sim::net::{LineId, LineState};
use crate::sim::rules::{Feed, RulesPlan};
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};
use std::collections::BTreeSet;

/// A delivery that is not acked yet.
struct Held {
    connection: u32,
    delivery_id: u64,
    at: At,
    /// Its lease cannot end earlier.
    may_end_ns: u64,
}

/// See the module.
pub struct SessionPeer {
    session: Session,
    key: u32,
    queue: usize,
    /// What it consumes.
    feed: Feed,
    producer: u32,
    consumer: Option<u32>,
    pulls: bool,
    nack_share: u64,
    auto_ack: bool,
    pulls_waiting: usize,
    line: Option<LineId>,
    out: Vec<u8>,
    /// Frames of the broker that are not whole yet, from here on.
    heard: Vec<u8>,
    heard_at: usize,
    large_share: u64,
    retry_at_ns: u64,
    opened_ns: u64,
    reopen_at_ns: Option<u64>,
    /// The queue's generation when producer and consumer were last asked for, then opened.
    asked_generation: u64,
    asked_feed: u64,
    asked_ns: u64,
    consumer_generation: u64,
    answered: u64,
    failed: BTreeSet<u64>,
    holder: Option<Holder>,
    held: Vec<Held>,
    /// What was acked since an `ack_now` was answered, and how much of it by the last one.
    acked: Vec<Held>,
    ack_now: Option<(u32, usize)>,
    first_sequence: u64,
    was_connected: bool,
}

impl SessionPeer {
    /// One producer and perhaps one consumer on a queue.
    pub fn new(stage: &Stage, key: u32) -> SessionPeer {
        let universe = &stage.universe;
        let queue = universe.index(stage.plan.work_queues);
        let nth = universe.index(stage.plan.queues[queue].subscriptions.len());
        let feed = Feed { queue, nth };
        let config = SessionConfig {
            client_name: "session".into(),
            token: stage.plan.config.token.clone(),
            heartbeat_ms: [0, 5000][universe.index(2)],
            probe_ms: [0, 3000][universe.index(2)],
            seed: universe.bits(),
            attach: universe.chance(500).then(|| stage.plan.queues[queue].name.clone()),
        };
        let mut session = Session::new(config);
        let name = stage.plan.queues[queue].name.clone();
        let settings = ProducerSettings {
            queue: name.clone(),
            producer_id: universe.bits() | 1,
            batch_bytes: 100 + universe.skewed(stage.plan.batch_bytes_max as u64 - 200) as usize,
        };
        let producer = session.open_producer(settings).expect("the first handle is free");
        let (pulls, auto_ack) = (universe.chance(300), universe.chance(300));
        let auto_ack = auto_ack && stage.plan.queues[queue].auto_acks;
        let settings = ConsumerSettings {
            queue: name,
            subscription: stage.plan.subscription(feed).name.clone(),
            auto_ack,
            checksum: universe.chance(500),
            credit_messages: if pulls { 0 } else { 50 },
            credit_bytes: if pulls { 0 } else { 100_000 },
            replenish: true,
            hold_ms: [0, 2000][universe.index(2)],
            ..ConsumerSettings::default()
        };
        let consumer = universe.chance(700).then(|| session.open_consumer(settings)).flatten();
        SessionPeer {
            session,
            key,
            queue,
            feed,
            producer,
            consumer,
            pulls,
            nack_share: [0, 100][universe.index(2)],
            auto_ack,
            pulls_waiting: 0,
            line: None,
            out: Vec::new(),
            heard: Vec::new(),
            heard_at: 0,
            large_share: [10, 150][universe.index(2)],
            retry_at_ns: 0,
            opened_ns: 0,
            reopen_at_ns: None,
            asked_generation: 0,
            asked_feed: 0,
            asked_ns: 0,
            consumer_generation: 0,
            answered: 0,
            failed: BTreeSet::new(),
            holder: None,
            held: Vec::new(),
            acked: Vec::new(),
            ack_now: None,
            first_sequence: 0,
            was_connected: false,
        }
    }

    /// Whether everything it has published is answered.
    pub fn is_settled(&self) -> bool {
        let view = self.session.producer(self.producer);
        view.answered_ordinal == view.ordinal_last
    }

    /// What it waits for.
    pub fn describe(&self) -> String {
        let view = self.session.producer(self.producer);
        format!("session {}: queue {}, line {:?}, {view:?}", self.key, self.queue, self.line)
    }

    fn identity(&self, ordinal: u64) -> Identity {
        Identity { producer: self.key, number: ordinal }
    }

    /// Lets it do something.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn act(&mut self, stage: &mut Stage) -> Checked {
        let now = stage.universe.mono();
        if self.line.is_none() {
            return self.connect(stage, now);
        }
        self.receive(stage, now)?;
        if self.line.is_none() {
            return Ok(());
        }
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
            self.handle_events(stage, now)?;
        }
        if let Some(at) = self.reopen_at_ns
            && at <= now.0
        {
            self.reopen_at_ns = None;
            self.ask_anew(stage);
            self.session.reopen(self.producer);
            self.consumer.into_iter().for_each(|handle| self.session.reopen(handle));
        }
        self.work(stage);
        self.transmit(stage, now);
        Ok(())
    }

    fn connect(&mut self, stage: &mut Stage, now: Mono) -> Checked {
        if self.retry_at_ns > now.0 {
            return Ok(());
        }
        self.line = stage.universe.net.borrow_mut().connect();
        if self.line.is_some() {
            self.ask_anew(stage);
            self.session.handle_connected(now);
            self.heard.clear();
            self.heard_at = PREAMBLE_BYTES;
            self.opened_ns = now.0;
            if std::mem::replace(&mut self.was_connected, true) {
                stage.universe.cover(Cover::SessionReconnect);
            }
            self.transmit(stage, now);
        }
        self.handle_events(stage, now)
    }

    fn ask_anew(&mut self, stage: &Stage) {
        self.asked_generation = stage.model.generation(self.queue);
        self.asked_feed = stage.model.feed_generation(self.feed);
        self.asked_ns = stage.universe.mono().0;
    }

    fn receive(&mut self, stage: &mut Stage, now: Mono) -> Checked {
        let Some(line) = self.line else { return Ok(()) };
        let mut bytes = Vec::new();
        let state = stage.universe.net.borrow_mut().client_read(line, usize::MAX, &mut bytes);
        self.overhear(stage, &bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() && self.line.is_some() {
            let taken = self.session.handle_bytes(now, rest);
            rest = &rest[taken..];
            self.handle_events(stage, now)?;
        }
        if state != LineState::Open && self.line.is_some() {
            // Without memory for it a connection is closed as soon as it is accepted.
            let full = stage.memory_full_ns.is_some_and(|at| at >= self.opened_ns);
            if stage.plan.calm && !stage.winding_down && !stage.draining && !full {
                return Err("a session lost its connection".into());
            }
            self.disconnect(stage);
        }
        Ok(())
    }

    /// Notes what the session sees to without a word.
    fn overhear(&mut self, stage: &Stage, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
        while let Some(rest) = self.heard.get(self.heard_at..)
            && let Some(Ok(header)) = rest.first_chunk().map(FrameHeader::decode)
            && let end = FRAME_HEADER_BYTES + header.payload_bytes as usize
            && let Some(payload) = rest.get(FRAME_HEADER_BYTES..end)
        {
            self.heard_at += end;
            if header.opcode == Opcode::PublishError as u8
                && let Ok(Answer::PublishError(error)) =
                    Answer::decode(Opcode::PublishError, payload)
                && error.code == ErrorCode::NoRoomMidway as u16
            {
                stage.universe.cover(Cover::SessionNoRoom);
            }
        }
        let done = self.heard_at.min(self.heard.len());
        self.heard.drain(..done);
        self.heard_at -= done;
    }

    fn transmit(&mut self, stage: &Stage, now: Mono) {
        let Some(line) = self.line else { return };
        if self.out.is_empty() {
            self.session.poll_transmit(now, &mut self.out);
        }
        let taken = stage.universe.net.borrow_mut().client_write(line, &self.out);
        self.out.drain(..taken);
    }

    /// Closes the connection; the session keeps what is not answered.
    fn disconnect(&mut self, stage: &mut Stage) {
        if let Some(line) = self.line.take() {
            stage.model.ended(line);
            let abort = stage.whim(300);
            stage.universe.net.borrow_mut().client_close(line, abort);
        }
        self.out.clear();
        self.let_go(stage);
        self.session.handle_disconnected();
        self.reopen_at_ns = None;
        self.retry_at_ns = stage.universe.mono().0 + stage.universe.skewed(20_000_000);
    }

    fn let_go(&mut self, stage: &mut Stage) {
        if let Some(holder) = self.holder.take() {
            for held in self.held.drain(..) {
                stage.model.let_go(self.feed, held.at, holder);
            }
        }
        self.acked.clear();
        self.ack_now = None;
        self.pulls_waiting = 0;
    }

    /// For the end of the run: what was published is brought to its end, nothing is consumed.
    pub fn drop_connection(&mut self, stage: &mut Stage) {
        self.disconnect(stage);
        if let Some(handle) = self.consumer.take() {
            self.session.close(handle);
        }
    }

    // ---- what the session says ----

    fn handle_events(&mut self, stage: &mut Stage, now: Mono) -> Checked {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Lost(reason) => {
                    stage.universe.note(|| format!("session {}: {reason:?}", self.key));
                    let full = stage.memory_full_ns.is_some_and(|at| at >= self.opened_ns);
                    if stage.plan.calm && !stage.winding_down && !stage.draining && !full {
                        return Err(format!("a session lost its connection: {reason:?}"));
                    }
                    self.disconnect(stage);
                }
                Event::ProducerOpened { .. } => self.opened(stage),
                Event::ProducerRenewed { .. } => {
                    stage.universe.cover(Cover::ProducerUnknown);
                    self.tell_sent(stage, true);
                }
                Event::Confirmed { ordinal, duplicates, .. } => {
                    if duplicates > 0 {
                        stage.universe.cover(Cover::Duplicate);
                    }
                    for number in self.answered + 1..=ordinal {
                        if !self.failed.remove(&number) {
                            stage.model.confirmed(self.identity(number));
                        }
                    }
                    self.answered = ordinal;
                }
                Event::PublishFailed { first, last, error, .. } => {
                    self.judge_failure(stage, &error)?;
                    for number in first..=last {
                        self.failed.insert(number);
                        stage.model.refused(self.identity(number))?;
                    }
                }
                Event::ProducerDown { error, .. } | Event::ConsumerDown { error, .. } => {
                    self.judge_down(stage, &error)?;
                    let wait_ns = stage.universe.skewed(30_000_000);
                    self.reopen_at_ns.get_or_insert(now.0 + wait_ns);
                }
                Event::ConsumerOpened { .. } => self.consumer_opened(stage),
                Event::Delivered(run) => self.delivered(stage, &run)?,
                Event::DeliveredLarge(large) => {
                    let identity = recognise(&large.properties, &large.body)?;
                    stage.universe.cover(Cover::Jumbo);
                    let (connection, header) = (large.connection, large.header);
                    is_alive(&large.properties)?;
                    self.take(stage, connection, &header, 0, large.sequence, identity)?;
                    self.credit(1, large.records_bytes as u64);
                }
                Event::Acked { correlation, .. } => self.ack_answered(stage, correlation),
                Event::PullDone { .. } => {
                    self.pulls_waiting = self.pulls_waiting.saturating_sub(1);
                }
                Event::Blocked { .. } => stage.universe.cover(Cover::Blocked),
                Event::Unblocked { .. } => stage.universe.cover(Cover::Unblocked),
                Event::Fault { error, .. } => judge_fault(stage, &error)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn judge_failure(&self, stage: &Stage, error: &BrokerError) -> Checked {
        let universe = &stage.universe;
        match error.code {
            Some(ErrorCode::MessageTooLarge) => universe.cover(Cover::MessageTooLarge),
            Some(
                ErrorCode::QueueMessagesMax
                | ErrorCode::QueueBytesMax
                | ErrorCode::MemoryLimit
                | ErrorCode::DiskLimit
                | ErrorCode::DiskFull
                | ErrorCode::DiskError,
            ) if stage.plan.queues[self.queue].may_reject() => universe.cover(Cover::Rejected),
            Some(ErrorCode::NoSubscription) => universe.cover(Cover::NoSubscription),
            _ => return Err(format!("a session's messages failed: {error:?}")),
        }
        Ok(())
    }

    fn judge_down(&self, stage: &Stage, error: &BrokerError) -> Checked {
        match error.code {
            // A connection that this client has closed is read later than the one after it.
            Some(E::ProducerFenced) => Ok(()),
            Some(E::HandlesMax) if stage.plan.forgets_producers => Ok(()),
            Some(E::QueueNotFound | E::QueueDeleted | E::MemoryLimit | E::Draining) => Ok(()),
            Some(E::SubscriptionNotFound | E::SubscriptionDeleted) => Ok(()),
            // It had the front of a large message whose rest is lost.
            Some(E::DiskError) if stage.universe.device.borrow().has_damage() => Ok(()),
            _ => Err(format!("a session's handle went down: {error:?}")),
        }
    }

    /// What is not answered goes out (again) in the present generation.
    fn opened(&mut self, stage: &mut Stage) {
        self.asked_generation = stage.model.opened(self.queue, self.asked_generation);
        // An id of which nothing was confirmed may be a new one to the broker once more.
        self.tell_sent(stage, stage.plan.forgets_producers);
    }

    fn tell_sent(&mut self, stage: &mut Stage, twice: bool) {
        let last = self.session.producer(self.producer).ordinal_last;
        for number in self.answered + 1..=last {
            if !self.failed.contains(&number) {
                let identity = self.identity(number);
                let generation = (self.queue, self.asked_generation);
                stage.model.sent(identity, generation, twice, &stage.universe);
            }
        }
    }

    fn consumer_opened(&mut self, stage: &mut Stage) {
        self.let_go(stage);
        self.consumer_generation = stage.model.feed_opened(self.feed, self.asked_feed);
        let line = self.line.expect("a consumer is opened over a connection");
        self.holder = Some(Holder { line, serial: stage.serial() });
        self.first_sequence = 0;
    }

    fn delivered(&mut self, stage: &mut Stage, run: &Run) -> Checked {
        let header = run.header;
        let mut seen = Vec::new();
        for (nth, record) in self.session.messages(run).enumerate() {
            let sequence = header.base_sequence + u64::from(record.header.sequence_delta);
            is_alive(record.properties)?;
            seen.push((nth as u64, sequence, recognise(record.properties, record.body)?));
        }
        let messages = seen.len() as u32;
        for (nth, sequence, identity) in seen {
            self.take(stage, run.connection, &header, nth, sequence, identity)?;
        }
        self.credit(messages, run.records_bytes() as u64);
        Ok(())
    }

    fn credit(&mut self, messages: u32, bytes: u64) {
        if let Some(handle) = self.consumer.filter(|_| !self.pulls) {
            self.session.credit(handle, messages, bytes);
        }
    }

    fn take(
        &mut self,
        stage: &mut Stage,
        connection: u32,
        header: &DeliverHeader,
        nth: u64,
        sequence: u64,
        identity: Identity,
    ) -> Checked {
        if identity.producer == self.key {
            stage.universe.cover(Cover::SessionRound);
        }
        let (feed, generation, attempts) = (self.feed, self.consumer_generation, header.attempts);
        let Some(holder) = self.holder else { return Err("a delivery to nobody".into()) };
        let auto_ack = self.auto_ack;
        if !auto_ack && !stage.universe.net.borrow().intact(holder.line) {
            return stage.model.glimpsed(feed.queue, identity, None, &stage.plan);
        }
        if attempts == 1 {
            if sequence <= self.first_sequence {
                return Err(format!("session: {sequence} came after {}", self.first_sequence));
            }
            self.first_sequence = sequence;
        }
        let lease_ms = match stage.plan.queues[feed.queue].rules {
            // Nobody knows which holds.
            RulesPlan { updated: true, .. } => LEASE_MS_MIN,
            RulesPlan { ref options, .. } if options.lease_ms == 0 => LEASE_MS_DEFAULT,
            RulesPlan { ref options, .. } => options.lease_ms,
        };
        let Stage { model, plan, universe, .. } = stage;
        let begun_ns = self.asked_ns.max(model.sent_ns(identity));
        let may_end_ns = begun_ns + u64::from(lease_ms) * 1_000_000;
        let letter = None;
        let seen =
            Seen { feed, generation, sequence, identity, letter, attempts, auto_ack, may_end_ns };
        model.delivered(&seen, holder, plan, universe)?;
        let delivery_id = header.delivery_id + nth;
        if !auto_ack {
            let at = At { sequence, attempts };
            self.held.push(Held { connection, delivery_id, at, may_end_ns });
        }
        Ok(())
    }

    fn ack_answered(&mut self, stage: &mut Stage, correlation: u32) {
        if let (Some((asked, count)), Some(holder)) = (self.ack_now, self.holder)
            && asked == correlation
        {
            let now_ns = stage.universe.mono().0;
            for held in self.acked.drain(..count) {
                // What was sent before, unasked, may have come late.
                if held.may_end_ns > now_ns {
                    stage.model.acked(self.feed, held.at, holder);
                }
            }
            self.ack_now = None;
        }
    }

    // ---- what it does by itself ----

    fn work(&mut self, stage: &mut Stage) {
        if stage.whim(4) {
            self.disconnect(stage);
            return;
        }
        let outstanding = self.session.producer(self.producer).outstanding_bytes;
        if stage.whim(500) && outstanding < 30_000 {
            for _ in 0..stage.universe.skewed(30) {
                self.publish(stage);
            }
        }
        if stage.winding_down || stage.universe.chance(300) {
            self.session.send(self.producer);
        }
        self.ack(stage);
    }

    fn publish(&mut self, stage: &mut Stage) {
        let ordinal = self.session.producer(self.producer).ordinal_last + 1;
        // One batch of the pool's largest chunk must hold it; where that is the protocol's
        // largest, messages in fragments are no problem either.
        let batch_bytes = stage.plan.batch_bytes_max;
        let record_max =
            batch_bytes - BATCH_HEADER_BYTES - RECORD_HEADER_BYTES - DEAD_LETTER_BYTES_MAX - 100;
        let fragments = batch_bytes >= crate::limits::BATCH_WIRE_BYTES_MAX;
        let body_bytes_max = stage.plan.config.message_bytes_max;
        let body_bytes = match fragments && stage.universe.chance(self.large_share) {
            true => stage.universe.range(body_bytes_max / 4, body_bytes_max),
            false => stage.universe.skewed(stage.plan.body_bytes_max.min(record_max as u64)),
        };
        let message = compose(self.identity(ordinal), body_bytes as usize, false);
        let generation = match self.session.producer(self.producer).open {
            true => self.asked_generation,
            false => stage.model.generation(self.queue),
        };
        let properties = message.properties.bytes();
        if self.session.publish(self.producer, properties, false, &message.body).is_ok() {
            let (identity, generation) = (self.identity(ordinal), (self.queue, generation));
            stage.model.sent(identity, generation, false, &stage.universe);
        }
    }

    fn ack(&mut self, stage: &mut Stage) {
        let (Some(handle), Some(holder)) = (self.consumer, self.holder) else { return };
        if self.pulls && self.pulls_waiting < 3 && stage.universe.chance(200) {
            let messages_max = 1 + stage.universe.skewed(50) as u32;
            let wait_ms = stage.universe.skewed(1000) as u32;
            let asked = self.session.pull(handle, messages_max, wait_ms, 0);
            self.pulls_waiting += usize::from(asked.is_some());
        }
        if self.held.is_empty() || !stage.universe.chance(300) {
            return;
        }
        let count = 1 + stage.universe.index(self.held.len());
        if stage.whim(self.nack_share) {
            return self.nack(stage, handle, holder, count);
        }
        for held in self.held.drain(..count) {
            let id = held.delivery_id;
            if self.session.ack(handle, held.connection, id, id) {
                stage.model.ack_sent(self.feed, held.at, holder);
                self.acked.push(held);
            } else {
                stage.model.let_go(self.feed, held.at, holder);
            }
        }
        if self.ack_now.is_none() && stage.universe.chance(300) {
            self.ack_now =
                self.session.ack_now().map(|correlation| (correlation, self.acked.len()));
        }
    }

    fn nack(&mut self, stage: &mut Stage, handle: u32, holder: Holder, count: usize) {
        let kinds = [NackKind::Failed, NackKind::Returned, NackKind::Rejected];
        let kind = kinds[stage.universe.index(kinds.len())];
        let delay_ms = stage.universe.chance(300).then(|| stage.universe.skewed(500) as u32);
        let of = (self.feed, self.consumer_generation);
        for held in self.held.drain(..count) {
            let (id, text) = (held.delivery_id, stage.serial());
            let refusal = Refusal { kind, delay_ms, text: &format!("nack {text}") };
            if self.session.nack(handle, held.connection, id, id, &refusal) {
                stage.model.nack_sent(of, held.at, holder, kind, Some(text));
            } else {
                stage.model.let_go(self.feed, held.at, holder);
            }
        }
    }
}

/// Queues that are published to have no dead letters in them.
fn is_alive(properties: &[u8]) -> Checked {
    match letter::read(properties)? {
        None => Ok(()),
        Some(letter) => Err(format!("a message came back as {letter:?}")),
    }
}

/// Whether what a session was told may be.
fn judge_fault(stage: &Stage, error: &BrokerError) -> Checked {
    match error.code {
        Some(E::LateAck | E::UnknownHandle) => Ok(()),
        Some(E::Draining | E::MemoryLimit | E::ConnectionsMax) => Ok(()),
        // It had the front of a large message whose rest is lost.
        Some(E::DiskError) if stage.universe.device.borrow().has_damage() => Ok(()),
        _ => Err(format!("a session's fault: {error:?}")),
    }
}
