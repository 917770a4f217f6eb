//! A well-behaved client: one connection after the other, producers and consumers on it, requests
//! about queues. It never gives the broker a reason to refuse it, besides those publishes, acks and
//! requests that it sends to be refused; so every other complaint is a violation.

use crate::protocol::control::{Answer, Request};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::Opcode;
use crate::protocol::hot::{AckDone, Confirm, NackKind, PullDone};
use crate::protocol::wire;
use crate::shard::router;
use crate::sim::admin::{self, Asked, judge};
use crate::sim::consumer::{Consumer, encode_settle};
use crate::sim::lease::{SettleAsked, Verb, Verdict};
use crate::sim::link::{Frame, Link};
use crate::sim::model::Nacked;
use crate::sim::net::{LineId, LineState};
use crate::sim::producer::{Phase, Producer};
use crate::sim::rules::Feed;
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};
use std::collections::BTreeMap;

/// In a calm world every answer has come after so long.
pub const PATIENCE_MS: u64 = 5000;

/// See the module.
pub struct Peer {
    /// The connection, if there is one.
    pub link: Option<Link>,
    /// An earlier connection that this client has forgotten, but not closed.
    zombie: Option<(Link, Vec<Consumer>)>,
    greeted: bool,
    /// The queue to whose home the connection asked to move.
    attach: Option<String>,
    retry_at_ns: u64,
    /// It does nothing until then, not even read.
    asleep_until_ns: u64,
    /// When it last had nothing to wait for, or something was answered.
    answered_ns: u64,
    producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    asked: BTreeMap<u32, Asked>,
    next_correlation: u32,
    heartbeat_ms: u32,
    /// The client half-closed, or was told that the broker goes down: the end is expected.
    ending: bool,
    /// Acks, nacks and extends that asked for no answer: errors may come unasked.
    silent_settles: u64,
    /// The broker has closed handles of this connection by itself.
    closed_unasked: bool,
    /// When a consumer of it was last ended because messages are lost.
    broken_ns: Option<u64>,
    /// Takes part in the end of the run only.
    pub for_the_rest: bool,
}

impl Peer {
    /// A client with `producers` and consumers on the queues of the plan.
    pub fn new(stage: &Stage, first_key: u32, keys: u32) -> Peer {
        let universe = &stage.universe;
        let queues = stage.plan.work_queues;
        let producers = (0..keys)
            .map(|nth| Producer::new(stage, first_key + nth, universe.index(queues), 1 + 2 * nth))
            .collect();
        let mut peer = Peer::empty();
        peer.producers = producers;
        peer.heartbeat_ms = [0, 0, 6000][universe.index(3)];
        peer
    }

    /// A client that does nothing by itself.
    pub fn empty() -> Peer {
        Peer {
            link: None,
            zombie: None,
            greeted: false,
            attach: None,
            retry_at_ns: 0,
            asleep_until_ns: 0,
            answered_ns: 0,
            producers: Vec::new(),
            consumers: Vec::new(),
            asked: BTreeMap::new(),
            next_correlation: 0,
            heartbeat_ms: 0,
            ending: false,
            silent_settles: 0,
            closed_unasked: false,
            broken_ns: None,
            for_the_rest: false,
        }
    }

    /// Whether it waits for nothing any more.
    pub fn is_settled(&self) -> bool {
        let waits = |asked: &Asked| !matches!(asked, Asked::Forgotten);
        !self.asked.values().any(waits) && self.producers.iter().all(Producer::is_settled)
    }

    /// What it waits for.
    pub fn describe(&self) -> String {
        let producers = self.producers.iter().map(Producer::describe);
        let consumers = self.consumers.iter().map(Consumer::describe);
        let parts: Vec<_> = producers.chain(consumers).collect();
        format!("greeted {}, asked {:?}; {}", self.greeted, self.asked, parts.join("; "))
    }

    fn correlation(&mut self) -> u32 {
        self.next_correlation += 1;
        self.next_correlation
    }

    // ---- the connection ----

    /// Lets it do something.
    ///
    /// # Errors
    /// The promise that was broken.
    pub fn act(&mut self, stage: &mut Stage) -> Checked {
        if self.asleep_until_ns > stage.universe.mono().0 && !stage.winding_down {
            return Ok(());
        }
        self.act_zombie(stage)?;
        if self.link.is_none() {
            self.connect(stage);
            return Ok(());
        }
        let limit = if stage.whim(100) { 100 } else { usize::MAX };
        let link = self.link.as_mut().expect("it was looked at");
        link.flush();
        link.receive(limit);
        while let Some(frame) = self.link.as_mut().map_or(Ok(None), Link::next_frame)? {
            self.handle(stage, frame)?;
        }
        let Some(link) = &mut self.link else { return Ok(()) };
        if link.state != LineState::Open {
            return self.lost(stage);
        }
        if self.greeted && !self.ending {
            self.watch(stage)?;
            self.keep_alive(stage)?;
            self.work(stage);
        }
        if let Some(link) = &mut self.link {
            link.flush();
        }
        Ok(())
    }

    fn connect(&mut self, stage: &mut Stage) {
        if self.retry_at_ns > stage.universe.mono().0 {
            return;
        }
        let Some(mut link) = Link::connect(&stage.universe) else { return };
        link.greet();
        let body = wire::HelloT {
            client_name: Some("peer".into()),
            token: stage.plan.config.token.clone(),
            features: 0,
            attach: self.attach(stage),
            heartbeat_ms: self.heartbeat_ms,
        };
        let correlation = self.correlation();
        link.request(0, correlation, &Request::Hello(body));
        self.asked.insert(correlation, Asked::Hello);
        (self.greeted, self.ending, self.silent_settles) = (false, false, 0);
        self.answered_ns = stage.universe.mono().0;
        self.closed_unasked = false;
        if self.for_the_rest {
            self.consumers = (1000..)
                .zip(stage.plan.feeds())
                .map(|(handle, feed)| Consumer::for_the_rest(feed, handle, link.line))
                .collect();
        } else {
            let count = if stage.winding_down { 0 } else { stage.universe.range(0, 3) as u32 };
            let any = || stage.plan.any_feed(&stage.universe);
            self.consumers =
                (0..count).map(|nth| Consumer::new(stage, any(), 2 + 2 * nth, link.line)).collect();
        }
        link.flush();
        self.link = Some(link);
    }

    /// Some connections move to the home of a queue, which need not exist.
    fn attach(&mut self, stage: &Stage) -> Option<String> {
        let nth = stage.universe.index(stage.plan.queues.len());
        let name = stage.plan.queues[nth].name.clone();
        self.attach = stage.universe.chance(500).then_some(name);
        self.attach.clone()
    }

    /// The connection is gone, from whichever side.
    fn lost(&mut self, stage: &mut Stage) -> Checked {
        let Some(link) = self.link.take() else { return Ok(()) };
        // Without memory for it a connection is closed as soon as it is accepted.
        let refused = !self.greeted && stage.memory_full_ns.is_some_and(|at| at >= link.opened_ns);
        if stage.plan.calm && !self.ending && !refused {
            return Err(format!("a well-behaved client lost its connection: {}", self.describe()));
        }
        self.leave(stage, link.line);
        link.close(false);
        Ok(())
    }

    fn leave(&mut self, stage: &mut Stage, line: LineId) {
        stage.model.ended(line);
        self.retry_at_ns = stage.universe.mono().0 + stage.universe.skewed(20_000_000);
        self.asked.clear();
        self.greeted = false;
        self.producers.iter_mut().for_each(|producer| producer.closed(stage));
        self.consumers.iter_mut().for_each(|consumer| consumer.closed(stage));
        self.consumers.clear();
    }

    /// Ends the connection, in one of the ways that clients do.
    pub fn hang_up(&mut self, stage: &mut Stage) {
        let Some(mut link) = self.link.take() else { return };
        match stage.universe.range(0, 3) {
            0 => {
                stage.universe.cover(Cover::HalfClose);
                self.consumers.iter_mut().for_each(|consumer| consumer.let_go(stage));
                link.half_close();
                self.ending = true;
                self.link = Some(link);
            }
            1 if self.zombie.is_none() && !stage.winding_down => {
                let consumers = std::mem::take(&mut self.consumers);
                self.leave(stage, link.line);
                self.zombie = Some((link, consumers));
            }
            way => {
                self.leave(stage, link.line);
                link.close(way == 2);
            }
        }
    }

    /// Closes every connection it has, for the end of the run.
    pub fn drop_connection(&mut self, stage: &mut Stage) {
        if let Some((link, mut consumers)) = self.zombie.take() {
            consumers.iter_mut().for_each(|consumer| consumer.let_go(stage));
            stage.model.ended(link.line);
            link.close(false);
        }
        if let Some(link) = self.link.take() {
            self.leave(stage, link.line);
            link.close(false);
        }
    }

    /// The forgotten connection only reads, until it is closed one day.
    fn act_zombie(&mut self, stage: &mut Stage) -> Checked {
        let Some((mut link, mut consumers)) = self.zombie.take() else { return Ok(()) };
        link.receive(usize::MAX);
        while let Some(frame) = link.next_frame()? {
            let handle = frame.header.handle;
            let consumer = consumers.iter_mut().find(|consumer| consumer.handle == handle);
            match (frame.opcode, consumer) {
                (Opcode::Deliver, Some(consumer)) => {
                    consumer.deliver(stage, &frame.payload, link.intact())?;
                }
                (Opcode::Error, _) if code_of(&frame)? == ErrorCode::ProducerFenced => {
                    stage.universe.cover(Cover::Fenced);
                }
                _ => {}
            }
        }
        if link.state != LineState::Open || stage.winding_down || stage.universe.chance(20) {
            consumers.iter_mut().for_each(|consumer| consumer.let_go(stage));
            stage.model.ended(link.line);
            link.close(stage.universe.chance(500));
        } else {
            self.zombie = Some((link, consumers));
        }
        Ok(())
    }

    /// Nobody in a calm world waits long for the broker, whatever others do to it.
    fn watch(&mut self, stage: &Stage) -> Checked {
        let now_ns = stage.universe.mono().0;
        let answered = |asked: &Asked| matches!(asked, Asked::Forgotten | Asked::Pull(_));
        let waits = self.asked.values().any(|asked| !answered(asked))
            || self.producers.iter().any(Producer::waits_for_answer)
            || self.link.as_ref().is_some_and(|link| link.unsent_bytes() > 0);
        if !waits {
            self.answered_ns = now_ns;
        }
        let pulls = self.consumers.iter().any(|consumer| consumer.waits_in_vain(now_ns));
        let late = now_ns.saturating_sub(self.answered_ns) > PATIENCE_MS * 1_000_000 || pulls;
        if late && stage.plan.calm && !stage.winding_down {
            return Err(format!("no answer for {PATIENCE_MS} ms: {}", self.describe()));
        }
        Ok(())
    }

    fn keep_alive(&mut self, stage: &Stage) -> Checked {
        let now_ns = stage.universe.mono().0;
        let Some(link) = &mut self.link else { return Ok(()) };
        let beat_ns = u64::from(self.heartbeat_ms) * 1_000_000;
        if beat_ns > 0 && now_ns - link.sent_ns > beat_ns / 3 && link.unsent_bytes() == 0 {
            self.next_correlation += 1;
            link.send(Opcode::Ping, 0, self.next_correlation, &[]);
            self.asked.insert(self.next_correlation, Asked::Ping);
        }
        if beat_ns > 0 && stage.plan.calm && now_ns - link.heard_ns > 3 * beat_ns {
            return Err("the broker was silent for three heartbeats".into());
        }
        Ok(())
    }

    // ---- what comes in ----

    fn handle(&mut self, stage: &mut Stage, frame: Frame) -> Checked {
        let Frame { header, opcode, payload } = &frame;
        self.answered_ns = stage.universe.mono().0;
        let intact = !self.ending && self.link.as_ref().is_some_and(Link::intact);
        match opcode {
            Opcode::Deliver => {
                self.consumer(header.handle)?.deliver(stage, payload, intact)?;
            }
            Opcode::Confirm => {
                let confirm = Confirm::decode(payload).ok_or("a confirm that is none")?;
                self.producer(header.handle)?.confirm(stage, &confirm)?;
            }
            Opcode::PullDone => {
                let done = PullDone::decode(payload).ok_or("a pull's end that is none")?;
                self.asked.remove(&header.correlation);
                let consumer = self.consumer(header.handle)?;
                consumer.pull_done(stage, header.correlation, done.messages)?;
            }
            Opcode::AckDone => {
                let done = AckDone::decode(payload).ok_or("an ack's end that is none")?;
                self.settle_done(stage, header.correlation, done)?;
            }
            Opcode::Ping => {
                let link = self.link.as_mut().expect("the frame came from it");
                link.send(Opcode::Pong, 0, header.correlation, &[]);
            }
            Opcode::Pong => {
                if !matches!(self.asked.remove(&header.correlation), Some(Asked::Ping)) {
                    return Err("a pong that nobody asked for".into());
                }
            }
            Opcode::Closed => self.handle_closed(stage, header.handle, header.correlation)?,
            Opcode::Error if header.correlation == 0 => self.unasked_error(stage, &frame)?,
            _ => {
                let answer = Answer::decode(*opcode, payload);
                let answer = answer.map_err(|error| format!("broker: {error}"))?;
                self.answer(stage, header.handle, header.correlation, answer)?;
            }
        }
        Ok(())
    }

    fn answer(
        &mut self,
        stage: &mut Stage,
        handle: u32,
        correlation: u32,
        answer: Answer,
    ) -> Checked {
        match &answer {
            Answer::PublishError(error) => {
                let code = known_code(error)?;
                return self.producer(handle)?.refused(stage, error, code);
            }
            Answer::Blocked(body) => {
                self.producer(handle)?.blocked(stage, body);
                return Ok(());
            }
            Answer::Unblocked(body) => return self.producer(handle)?.unblocked(stage, body),
            Answer::Drain(_) => {
                stage.universe.cover(Cover::Drained);
                self.ending = true;
                return Ok(());
            }
            _ => {}
        }
        let asked = self.asked.remove(&correlation);
        let asked = asked.ok_or_else(|| format!("an answer to nothing asked: {answer:?}"))?;
        match (asked, answer) {
            (Asked::Hello, Answer::HelloOk(body)) => self.welcome(stage, &body)?,
            (Asked::OpenProducer(handle), Answer::ProducerOpened(body)) => {
                self.producer(handle)?.opened(stage, &body)?;
            }
            (Asked::OpenProducer(handle), Answer::Error(error)) => {
                let (code, text) = (known_code(&error)?, error.text.unwrap_or_default());
                self.producer(handle)?.open_failed(stage, code, &text)?;
            }
            (Asked::OpenConsumer(handle), Answer::ConsumerOpened(body)) => {
                self.consumer(handle)?.opened(stage, &body)?;
            }
            (Asked::OpenConsumer(handle), Answer::Error(error)) => {
                let (code, text) = (known_code(&error)?, error.text.unwrap_or_default());
                self.consumer(handle)?.open_failed(stage, code, &text)?;
            }
            (Asked::Close, Answer::Error(error)) => {
                let code = known_code(&error)?;
                if code != ErrorCode::UnknownHandle || !self.closed_unasked {
                    return Err(format!("a close was refused: {error:?}"));
                }
            }
            (Asked::Forgotten, Answer::Error(error)) => {
                if known_code(&error)? != ErrorCode::UnknownHandle {
                    return Err(format!("a late pull was refused: {error:?}"));
                }
            }
            (Asked::Pull(handle), Answer::Error(error)) => {
                self.pull_refused(stage, handle, correlation, &error)?;
            }
            (Asked::Settle(asked), Answer::Error(_)) if self.is_excused(&asked) => {
                self.excuse(stage, &asked);
            }
            (Asked::Settle(asked), Answer::Error(error)) => settle_refused(stage, &asked, &error)?,
            (asked, answer) => judge(stage, asked, answer)?,
        }
        Ok(())
    }

    fn welcome(&mut self, stage: &Stage, body: &wire::HelloOkT) -> Checked {
        self.greeted = true;
        let home = |name: &String| router::home(name, body.shards, body.shards);
        let elsewhere = self.attach.as_ref().is_some_and(|name| home(name) != body.shard);
        match elsewhere && !stage.draining {
            true => Err(format!("attached to {:?}, and on {}", self.attach, body.shard)),
            false => Ok(()),
        }
    }

    fn pull_refused(
        &mut self,
        stage: &Stage,
        handle: u32,
        correlation: u32,
        error: &wire::ErrorT,
    ) -> Checked {
        let consumer = self.consumer(handle)?;
        match known_code(error)? {
            ErrorCode::MemoryLimit => {
                stage.universe.cover(Cover::MemoryLimit);
                consumer.pull_refused(correlation);
                Ok(())
            }
            ErrorCode::UnknownHandle if consumer.phase != Phase::Open => Ok(()),
            _ => Err(format!("a pull was refused: {error:?}")),
        }
    }

    fn settle_done(&mut self, stage: &mut Stage, correlation: u32, done: AckDone) -> Checked {
        let Some(Asked::Settle(asked)) = self.asked.remove(&correlation) else {
            return Err("an ack's end that nobody waits for".into());
        };
        if !asked.generations.iter().all(|&of| stands(stage, of)) || self.is_excused(&asked) {
            return Ok(());
        }
        if asked.late > 0 {
            stage.universe.cover(Cover::LateAck);
        }
        let verdicts = asked.verdicts(done, stage.universe.mono().0)?;
        for (of, verdict) in asked.deliveries.iter().zip(verdicts) {
            let (feed, at) = (of.feed, of.lease.at);
            if verdict == Verdict::Late {
                stage.universe.cover(Cover::LateForLease);
            }
            match (of.verb, verdict) {
                (Verb::Ack, Verdict::InTime) => stage.model.acked(feed, at, of.holder),
                (Verb::Ack, Verdict::Late) => stage.model.ack_late(feed, at, of.holder),
                (Verb::Nack(kind, delay_ms), Verdict::InTime) => {
                    let delay_ns = u64::from(delay_ms.unwrap_or(0)) * 1_000_000;
                    stage.model.nacked(&Nacked {
                        feed,
                        generation: of.generation,
                        at,
                        kind,
                        not_before_ns: asked.sent_ns + delay_ns,
                    })?;
                    stage.universe.cover(match kind {
                        NackKind::Failed => Cover::NackFailed,
                        NackKind::Returned => Cover::NackReturned,
                        NackKind::Rejected => Cover::NackRejected,
                    });
                }
                (Verb::Extend(_), verdict) => {
                    if let Ok(consumer) = self.consumer(of.handle) {
                        consumer.extended(stage, of, verdict, asked.sent_ns);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether a consumer ended by itself after this was asked, as the broker lost what it had half
    /// of.
    fn is_excused(&self, asked: &SettleAsked) -> bool {
        self.broken_ns.is_some_and(|broken_ns| asked.sent_ns <= broken_ns)
    }

    /// Acks of consumers that had ended by then came too late: what they name is no longer only
    /// theirs.
    fn excuse(&mut self, stage: &mut Stage, asked: &SettleAsked) {
        for of in asked.deliveries.iter().filter(|of| matches!(of.verb, Verb::Ack)) {
            let Ok(consumer) = self.consumer(of.handle) else { continue };
            if consumer.phase != Phase::Open || consumer.holder != of.holder {
                stage.model.ack_late(of.feed, of.lease.at, of.holder);
            }
        }
    }

    fn handle_closed(&mut self, stage: &mut Stage, handle: u32, correlation: u32) -> Checked {
        if correlation != 0 && !matches!(self.asked.remove(&correlation), Some(Asked::Close)) {
            return Err(format!("CLOSED {correlation} of handle {handle}, which was not asked"));
        }
        self.closed_unasked |= correlation == 0;
        if let Ok(producer) = self.producer(handle) {
            producer.closed(stage);
        } else {
            self.consumer(handle)?.closed(stage);
            // Its pulls end with it, without a word; those that come too late are refused.
            for asked in self.asked.values_mut() {
                if matches!(asked, Asked::Pull(of) if *of == handle) {
                    *asked = Asked::Forgotten;
                }
            }
        }
        Ok(())
    }

    fn unasked_error(&mut self, stage: &mut Stage, frame: &Frame) -> Checked {
        let code = code_of(frame)?;
        let allowed = match code {
            ErrorCode::QueueDeleted => {
                stage.universe.cover(Cover::DeletedOpen);
                true
            }
            ErrorCode::SubscriptionDeleted => {
                stage.universe.cover(Cover::SubscriptionDeletedOpen);
                true
            }
            ErrorCode::ProducerFenced => true,
            ErrorCode::DiskError => {
                stage.universe.cover(Cover::LostInFragments);
                self.broken_ns = Some(stage.universe.mono().0);
                if let Some(link) = &self.link {
                    // What it held may have come to others before it was told.
                    stage.model.ended(link.line);
                }
                stage.universe.device.borrow().has_damage()
            }
            ErrorCode::LateAck => self.silent_settles > 0,
            ErrorCode::UnknownHandle => true,
            ErrorCode::ConnectionsMax => {
                stage.universe.cover(Cover::ConnectionsMax);
                self.ending = true;
                !stage.plan.calm
            }
            ErrorCode::MemoryLimit | ErrorCode::Draining => {
                self.ending = true;
                true
            }
            ErrorCode::Timeout | ErrorCode::HeartbeatLost | ErrorCode::SlowReader => {
                !stage.plan.calm
            }
            _ => false,
        };
        match allowed {
            true => Ok(()),
            false => Err(format!("a well-behaved client was told {code}")),
        }
    }

    fn producer(&mut self, handle: u32) -> Checked<&mut Producer> {
        let found = self.producers.iter_mut().find(|producer| producer.handle == handle);
        found.ok_or_else(|| format!("a frame for producer {handle}, which is not there"))
    }

    fn consumer(&mut self, handle: u32) -> Checked<&mut Consumer> {
        let found = self.consumers.iter_mut().find(|consumer| consumer.handle == handle);
        found.ok_or_else(|| format!("a frame for consumer {handle}, which is not there"))
    }

    // ---- what it does by itself ----

    fn work(&mut self, stage: &mut Stage) {
        if stage.whim(4) {
            self.hang_up(stage);
            return;
        }
        if stage.whim(2) {
            let longest_ns = if stage.plan.calm { 500_000_000 } else { 10_000_000_000 };
            let sleep_ns = stage.universe.skewed(longest_ns);
            self.asleep_until_ns = stage.universe.mono().0 + sleep_ns;
        }
        if self.link.as_ref().is_some_and(|link| link.unsent_bytes() > 200_000) {
            return;
        }
        self.open_handles(stage);
        let link = self.link.as_mut().expect("work is done over a connection");
        for producer in &mut self.producers {
            if stage.winding_down && producer.is_settled() && producer.phase == Phase::Open {
                // Its place among the producers that a queue remembers is for another.
                self.next_correlation += 1;
                producer.phase = Phase::Closing;
                link.send(Opcode::ProducerClose, producer.handle, self.next_correlation, &[]);
                self.asked.insert(self.next_correlation, Asked::Close);
            } else if stage.winding_down || stage.universe.chance(600) {
                producer.publish(stage, link);
            }
        }
        for consumer in &mut self.consumers {
            if stage.winding_down || stage.universe.chance(100) {
                let before = self.next_correlation;
                consumer.ask(stage, &mut self.next_correlation, link);
                for correlation in before + 1..=self.next_correlation {
                    self.asked.insert(correlation, Asked::Pull(consumer.handle));
                }
            }
        }
        if stage.winding_down || stage.universe.chance(300) {
            self.settle(stage);
        }
        if stage.whim(8) {
            self.close_something(stage);
        }
        self.administer(stage);
    }

    /// Asks something about queues: makes what is missing, or whatever comes to mind.
    fn administer(&mut self, stage: &mut Stage) {
        let ours = self.for_the_rest || stage.whim(200);
        let odd = if ours { admin::odd(stage) } else { None };
        if self.asked.len() >= 20 || (odd.is_none() && !stage.whim(20)) {
            return;
        }
        let correlation = self.correlation();
        let link = self.link.as_mut().expect("work is done over a connection");
        let asked = match odd {
            Some((request, asked)) => {
                link.request(0, correlation, &request);
                asked
            }
            None => admin::ask(stage, link, correlation),
        };
        self.asked.insert(correlation, asked);
    }

    fn open_handles(&mut self, stage: &mut Stage) {
        let now_ns = stage.universe.mono().0;
        let due = |phase: Phase| matches!(phase, Phase::Closed(at) if at <= now_ns);
        let link = self.link.as_mut().expect("work is done over a connection");
        for producer in &mut self.producers {
            let wanted = !stage.winding_down || !producer.is_settled();
            if due(producer.phase) && wanted {
                self.next_correlation += 1;
                producer.open(stage, link, self.next_correlation);
                self.asked.insert(self.next_correlation, Asked::OpenProducer(producer.handle));
            }
        }
        for consumer in &mut self.consumers {
            if due(consumer.phase) && (self.for_the_rest || !stage.winding_down) {
                self.next_correlation += 1;
                consumer.open(stage, link, self.next_correlation);
                self.asked.insert(self.next_correlation, Asked::OpenConsumer(consumer.handle));
            }
        }
    }

    /// Sends an ack, nack or extend of some of what the consumers hold.
    fn settle(&mut self, stage: &mut Stage) {
        let open = |consumer: &&Consumer| consumer.phase == Phase::Open;
        let Some(first) = self.consumers.iter().find(open) else { return };
        let verb = first.next_verb(stage);
        let is_nack = matches!(verb, Verb::Nack(..));
        let text = (is_nack && stage.universe.chance(700)).then(|| stage.serial());
        let sent_ns = stage.universe.mono().0;
        let mut asked =
            SettleAsked { sent_ns, ticked_ns: stage.ticked_ns, ..SettleAsked::default() };
        let mut ranges = Vec::new();
        for consumer in &mut self.consumers {
            let plan = &stage.plan.queues[consumer.feed.queue];
            // What is rejected needs somewhere to go.
            let rejects = matches!(verb, Verb::Nack(NackKind::Rejected, _));
            if rejects && plan.rules.graveyard == consumer.feed.queue {
                continue;
            }
            let taken = consumer.settle(stage, verb, text, &mut asked);
            ranges.extend(taken.into_iter().map(|(first, last)| (consumer.handle, first, last)));
        }
        // Who comes first decides what is asked of all: another one next time.
        let count = self.consumers.len();
        self.consumers.rotate_left(usize::from(count > 1));
        if ranges.is_empty() {
            return;
        }
        if ranges.iter().any(|range| range.0 != ranges[0].0) {
            stage.universe.cover(Cover::AckMany);
        }
        let payload = encode_settle(verb, text, &ranges);
        let silent = !stage.winding_down && stage.universe.chance(400);
        let correlation = if silent { 0 } else { self.correlation() };
        let link = self.link.as_mut().expect("acks go over a connection");
        link.send(verb.opcode(), 0, correlation, &payload);
        if silent {
            self.silent_settles += 1;
        } else {
            self.asked.insert(correlation, Asked::Settle(asked));
        }
    }

    fn close_something(&mut self, stage: &mut Stage) {
        let correlation = self.correlation();
        let link = self.link.as_mut().expect("work is done over a connection");
        if stage.universe.chance(500)
            && let Some(consumer) = self.consumers.iter_mut().find(|c| c.phase == Phase::Open)
        {
            consumer.close(stage, link, correlation);
            self.asked.insert(correlation, Asked::Close);
        } else if let Some(producer) = self.producers.iter_mut().find(|p| p.phase == Phase::Open) {
            producer.phase = Phase::Closing;
            link.send(Opcode::ProducerClose, producer.handle, correlation, &[]);
            self.asked.insert(correlation, Asked::Close);
        }
    }
}

fn stands(stage: &Stage, (feed, generation): (Feed, u64)) -> bool {
    stage.model.feed_generation(feed) == generation
}

/// An ack may be refused where its consumer went with a queue or subscription, and an extension
/// where there is no memory for it.
fn settle_refused(stage: &Stage, asked: &SettleAsked, error: &wire::ErrorT) -> Checked {
    let extends = asked.deliveries.iter().any(|of| matches!(of.verb, Verb::Extend(_)));
    match known_code(error)? {
        ErrorCode::UnknownHandle if !asked.generations.iter().all(|&of| stands(stage, of)) => {
            Ok(())
        }
        ErrorCode::MemoryLimit if extends => Ok(()),
        _ => Err(format!("an ack was refused: {error:?} {asked:?}")),
    }
}

fn known_code(error: &wire::ErrorT) -> Checked<ErrorCode> {
    ErrorCode::from_u16(error.code).ok_or_else(|| format!("error code {}", error.code))
}

fn code_of(frame: &Frame) -> Checked<ErrorCode> {
    match Answer::decode(Opcode::Error, &frame.payload) {
        Ok(Answer::Error(error)) => known_code(&error),
        other => Err(format!("an error frame that is none: {other:?}")),
    }
}
