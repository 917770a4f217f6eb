//! A consumer of a well-behaved client: push or pull, with acks or without; it checks every
//! delivery against what it asked for and tells the model.

use crate::base::checksum::crc32c;
use crate::format::record::{self, Records};
use crate::limits::{LEASE_MS_DEFAULT, LEASE_MS_MAX, RUN_RECORDS_MAX};
use crate::protocol::control::Request;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::Opcode;
use crate::protocol::hot::{
    AckRange, CreditEntry, DELIVER_FRAGMENT, DELIVER_REDELIVERED, DeliverHeader, ExtendRange, Nack,
    NackKind, NackRange, Pull,
};
use crate::protocol::wire;
use crate::sim::body::recognise;
use crate::sim::lease::{Lease, SettleAsked, Settled, Verb, Verdict};
use crate::sim::letter;
use crate::sim::link::Link;
use crate::sim::model::{At, Holder, Seen};
use crate::sim::net::LineId;
use crate::sim::peer::PATIENCE_MS;
use crate::sim::producer::Phase;
use crate::sim::rules::{Feed, Role};
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

struct Partial {
    delivery_id: u64,
    properties: Vec<u8>,
    body: Vec<u8>,
}

struct WaitingPull {
    correlation: u32,
    messages_max: u32,
    brought: u32,
    /// In a calm world its end must have come by then.
    due_ns: u64,
}

/// See the module.
pub struct Consumer {
    /// Its subscription.
    pub feed: Feed,
    /// Handle on its connection.
    pub handle: u32,
    /// Where the handle stands.
    pub phase: Phase,
    auto_ack: bool,
    checksum: bool,
    pulls_only: bool,
    /// Acks little and late.
    slow: bool,
    generation: u64,
    /// Who it is to the model.
    pub holder: Holder,
    next_delivery: u64,
    /// When it was asked for.
    asked_ns: u64,
    /// Milliseconds of its leases; 0: the subscription's.
    lease_ms: u32,
    unacked_max: u32,
    /// Of its frames about deliveries, so many in a thousand are nacks, and extend.
    nack_share: u64,
    extend_share: u64,
    /// Unacked deliveries.
    held: BTreeMap<u64, Lease>,
    /// Deliveries that an ack or nack was sent for.
    done: Vec<u64>,
    credit_messages: i64,
    credit_bytes: i64,
    pulls: VecDeque<WaitingPull>,
    /// Messages that came by pulls, less those that their ends told of.
    pulled: u32,
    partial: Option<Partial>,
    /// Highest sequence that came for the first time.
    first_sequence: u64,
    /// It is the only consumer there will be, so nothing may come behind a later message.
    alone: bool,
}

impl Consumer {
    /// One that is not open yet.
    pub fn new(stage: &Stage, feed: Feed, handle: u32, line: LineId) -> Self {
        let universe = &stage.universe;
        Consumer {
            auto_ack: stage.plan.queues[feed.queue].auto_acks && universe.chance(400),
            checksum: universe.chance(500),
            pulls_only: universe.chance(300),
            slow: universe.chance(200),
            alone: false,
            lease_ms: [0, 0, 100, 500, 20_000][universe.index(5)],
            unacked_max: [0, 0, 1 + universe.skewed(20) as u32][universe.index(3)],
            nack_share: [0, 0, 150, 600][universe.index(4)],
            extend_share: [0, 0, 300][universe.index(3)],
            ..Consumer::for_the_rest(feed, handle, line)
        }
    }

    /// One that takes all there is: for the end of a run.
    pub fn for_the_rest(feed: Feed, handle: u32, line: LineId) -> Self {
        Consumer {
            feed,
            handle,
            phase: Phase::Closed(0),
            auto_ack: false,
            checksum: true,
            pulls_only: false,
            slow: false,
            alone: true,
            generation: 0,
            holder: Holder { line, serial: 0 },
            next_delivery: 1,
            asked_ns: 0,
            lease_ms: LEASE_MS_MAX,
            unacked_max: 0,
            nack_share: 0,
            extend_share: 0,
            held: BTreeMap::new(),
            done: Vec::new(),
            credit_messages: 0,
            credit_bytes: 0,
            pulls: VecDeque::new(),
            pulled: 0,
            partial: None,
            first_sequence: 0,
        }
    }

    /// What it waits for, for the report of a run that does not end.
    pub fn describe(&self) -> String {
        format!(
            "consumer {} of {:?}: {:?}, {} held, credit {} {}, {} pulls",
            self.handle,
            self.feed,
            self.phase,
            self.held.len(),
            self.credit_messages,
            self.credit_bytes,
            self.pulls.len()
        )
    }

    // ---- the handle ----

    /// Asks for the handle.
    pub fn open(&mut self, stage: &mut Stage, link: &mut Link, correlation: u32) {
        let universe = &stage.universe;
        self.phase = Phase::Opening;
        self.generation = stage.model.feed_generation(self.feed);
        self.asked_ns = universe.mono().0;
        let pushes = !self.pulls_only;
        let credit_messages = if pushes { universe.skewed(100) as u32 } else { 0 };
        let credit_bytes = if pushes { universe.skewed(50_000) } else { 0 };
        self.holder = Holder { line: link.line, serial: stage.serial() };
        (self.next_delivery, self.first_sequence) = (1, 0);
        (self.credit_messages, self.credit_bytes) = (credit_messages.into(), credit_bytes as i64);
        let name = stage.plan.subscription(self.feed).name.clone();
        let is_default = name == "default";
        let body = wire::ConsumerOpenT {
            queue: stage.plan.queues[self.feed.queue].name.clone(),
            subscription: (!is_default || stage.universe.chance(500)).then_some(name),
            auto_ack: self.auto_ack,
            checksum: self.checksum,
            credit_messages,
            credit_bytes,
            lease_ms: self.lease_ms,
            unacked_max: self.unacked_max,
        };
        link.request(self.handle, correlation, &Request::ConsumerOpen(body));
    }

    /// The handle is open.
    ///
    /// # Errors
    /// If its leases are others than were asked for.
    pub fn opened(&mut self, stage: &mut Stage, body: &wire::ConsumerOpenedT) -> Checked {
        self.phase = Phase::Open;
        self.generation = stage.model.feed_opened(self.feed, self.generation);
        let rules = &stage.plan.queues[self.feed.queue].rules;
        let wanted = match (self.lease_ms, rules.options.lease_ms) {
            (0, 0) => LEASE_MS_DEFAULT,
            (0, of_subscription) => of_subscription,
            (own, _) => own,
        };
        if body.lease_ms != wanted && !(rules.updated && self.lease_ms == 0) {
            return Err(format!("a consumer with leases of {} for {wanted}", body.lease_ms));
        }
        self.lease_ms = body.lease_ms;
        Ok(())
    }

    /// The handle could not be opened, for a reason that may pass.
    ///
    /// # Errors
    /// If there is no such reason.
    pub fn open_failed(&mut self, stage: &mut Stage, code: ErrorCode, text: &str) -> Checked {
        self.closed(stage);
        match code {
            ErrorCode::QueueNotFound | ErrorCode::MemoryLimit | ErrorCode::Draining => Ok(()),
            ErrorCode::SubscriptionNotFound => {
                stage.universe.cover(Cover::SubscriptionNotFound);
                Ok(())
            }
            _ => Err(format!("a consumer could not be opened: {code} {text}")),
        }
    }

    /// Asks for the end of the handle; what it holds is anybody's from now on.
    pub fn close(&mut self, stage: &mut Stage, link: &mut Link, correlation: u32) {
        self.phase = Phase::Closing;
        link.send(Opcode::ConsumerClose, self.handle, correlation, &[]);
        self.let_go(stage);
    }

    /// The handle or its connection is gone.
    pub fn closed(&mut self, stage: &mut Stage) {
        let wait_ns = stage.universe.skewed(3_000_000);
        self.phase = Phase::Closed(stage.universe.mono().0 + wait_ns);
        self.let_go(stage);
        self.partial = None;
        self.pulls.clear();
        self.pulled = 0;
        self.done.clear();
    }

    /// What it holds is no longer only its own.
    pub fn let_go(&mut self, stage: &mut Stage) {
        for lease in std::mem::take(&mut self.held).into_values() {
            stage.model.let_go(self.feed, lease.at, self.holder);
        }
    }

    // ---- deliveries ----

    /// A deliver frame.
    ///
    /// # Errors
    /// If it is not what was asked for.
    pub fn deliver(&mut self, stage: &mut Stage, payload: &[u8], intact: bool) -> Checked {
        let (header, records) =
            DeliverHeader::decode(payload).ok_or("a deliver frame without its header")?;
        if self.checksum && header.crc32c != crc32c(records) {
            return Err("a deliver frame with a wrong checksum".into());
        }
        let count = header.record_count as usize;
        if count == 0 || count > RUN_RECORDS_MAX || Records::new(records).count() != count {
            return Err(format!("a deliver frame of {count} records that are not there"));
        }
        if (header.attempts > 1) != (header.flags & DELIVER_REDELIVERED != 0) {
            return Err(format!("attempt {} with flags {}", header.attempts, header.flags));
        }
        if header.flags & DELIVER_FRAGMENT != 0 {
            return self.deliver_fragment(stage, &header, records, intact);
        }
        if self.partial.is_some() {
            return Err("a run between the fragments of a message".into());
        }
        self.expect_delivery(header.delivery_id)?;
        for (nth, record) in Records::new(records).enumerate() {
            self.spend(1, record.header.record_bytes() as i64)?;
            let sequence = header.base_sequence + u64::from(record.header.sequence_delta);
            let at = Delivery {
                delivery_id: header.delivery_id + nth as u64,
                sequence,
                attempts: header.attempts,
                intact,
            };
            self.take(stage, &at, record.properties, record.body)?;
        }
        self.next_delivery += count as u64;
        Ok(())
    }

    fn deliver_fragment(
        &mut self,
        stage: &mut Stage,
        header: &DeliverHeader,
        records: &[u8],
        intact: bool,
    ) -> Checked {
        let record = Records::new(records).next().ok_or("a fragment without a record")?;
        if header.record_count != 1 {
            return Err("a fragment's frame with several records".into());
        }
        let first = record.header.flags & record::FRAGMENT_FIRST != 0;
        if first {
            self.expect_delivery(header.delivery_id)?;
            self.spend(1, record.header.record_bytes() as i64)?;
        } else {
            self.credit_bytes -= record.header.record_bytes() as i64;
        }
        let mut partial = match (self.partial.take(), first) {
            (None, true) => Partial {
                delivery_id: header.delivery_id,
                properties: record.properties.to_vec(),
                body: Vec::new(),
            },
            (Some(partial), false) if partial.delivery_id == header.delivery_id => partial,
            _ => return Err(format!("fragments of delivery {} in disorder", header.delivery_id)),
        };
        partial.body.extend_from_slice(record.body);
        if record.header.flags & record::FRAGMENT_LAST == 0 {
            self.partial = Some(partial);
            return Ok(());
        }
        let at = Delivery {
            delivery_id: header.delivery_id,
            sequence: header.base_sequence + u64::from(record.header.sequence_delta),
            attempts: header.attempts,
            intact,
        };
        stage.universe.cover(Cover::Jumbo);
        self.next_delivery += 1;
        self.take(stage, &at, &partial.properties, &partial.body)
    }

    fn expect_delivery(&self, delivery_id: u64) -> Checked {
        match delivery_id == self.next_delivery {
            true => Ok(()),
            false => Err(format!("delivery {delivery_id} where {} is next", self.next_delivery)),
        }
    }

    /// Takes a message out of a pull or the credit.
    fn spend(&mut self, messages: i64, bytes: i64) -> Checked {
        if let Some(pull) = self.pulls.iter_mut().find(|pull| pull.brought < pull.messages_max) {
            pull.brought += messages as u32;
            self.pulled += messages as u32;
            // Fragments behind the first are taken from the credit below; pulls have none.
            return Ok(());
        }
        if self.pulls_only || self.credit_messages < messages || self.credit_bytes <= 0 {
            return Err(format!("a delivery beyond the credit: {}", self.describe()));
        }
        self.credit_messages -= messages;
        self.credit_bytes -= bytes;
        Ok(())
    }

    fn take(
        &mut self,
        stage: &mut Stage,
        at: &Delivery,
        properties: &[u8],
        body: &[u8],
    ) -> Checked {
        let Delivery { delivery_id, sequence, attempts, intact } = *at;
        let (identity, letter) = (recognise(properties, body)?, letter::read(properties)?);
        // What a redrive could not move is ready again at its old place, and delivered late.
        let is_work = stage.plan.queues[self.feed.queue].role == Role::Work;
        if is_work && (attempts == 1 || self.alone) {
            if sequence <= self.first_sequence {
                return Err(format!("{sequence} came after {}", self.first_sequence));
            }
            self.first_sequence = sequence;
        }
        if attempts > 1 {
            stage.universe.cover(Cover::Returned);
        }
        let (feed, generation, auto_ack) = (self.feed, self.generation, self.auto_ack);
        let Stage { model, plan, universe, .. } = stage;
        if !auto_ack && (!intact || self.phase != Phase::Open) {
            return model.glimpsed(feed.queue, identity, letter.as_ref(), plan);
        }
        let (now_ns, lease_ns) = (universe.mono().0, u64::from(self.lease_ms) * 1_000_000);
        let begun_ns = self.asked_ns.max(model.sent_ns(identity));
        let lease = Lease {
            at: At { sequence, attempts },
            may_end_ns: begun_ns + lease_ns,
            ends_ns: now_ns + lease_ns,
            extends: 0,
        };
        let may_end_ns = lease.may_end_ns;
        let seen =
            Seen { feed, generation, sequence, identity, letter, attempts, auto_ack, may_end_ns };
        model.delivered(&seen, self.holder, plan, universe)?;
        if auto_ack {
            universe.cover(Cover::AutoAck);
            return Ok(());
        }
        self.held.insert(delivery_id, lease);
        let held = self.held.values().filter(|lease| lease.may_end_ns > now_ns).count();
        if self.unacked_max > 0 && held > self.unacked_max as usize {
            return Err(format!("{held} are unacked, {} may be", self.unacked_max));
        }
        Ok(())
    }

    /// A pull has ended.
    ///
    /// # Errors
    /// If it brought another number than it says, or was not asked for.
    pub fn pull_done(&mut self, stage: &Stage, correlation: u32, messages: u32) -> Checked {
        let pull = self.pulls.pop_front().ok_or("the end of a pull that nobody waits for")?;
        // What a later pull brought may come before the end of an earlier one.
        let over = if self.pulls.is_empty() { 0 } else { self.pulled };
        let fits = messages <= pull.messages_max && messages <= self.pulled;
        if pull.correlation != correlation || !fits || self.pulled - messages > over {
            return Err(format!(
                "{} messages came by pulls, the end of {correlation} ({}) says {messages}",
                self.pulled, pull.correlation
            ));
        }
        self.pulled -= messages;
        // The messages were counted with the first pull that had room for them.
        let mut surplus = pull.brought.saturating_sub(messages);
        for later in &mut self.pulls {
            let moved = surplus.min(later.messages_max - later.brought);
            (later.brought, surplus) = (later.brought + moved, surplus - moved);
        }
        stage.universe.cover(if messages == 0 { Cover::PullEmpty } else { Cover::PullFull });
        Ok(())
    }

    /// A pull was refused.
    pub fn pull_refused(&mut self, correlation: u32) {
        self.pulls.retain(|pull| pull.correlation != correlation);
    }

    /// Whether a pull has waited too long for its end.
    pub fn waits_in_vain(&self, now_ns: u64) -> bool {
        self.phase == Phase::Open && self.pulls.front().is_some_and(|pull| pull.due_ns < now_ns)
    }

    // ---- what it does by itself ----

    /// Asks for more, by credit or pull.
    pub fn ask(&mut self, stage: &Stage, next_correlation: &mut u32, link: &mut Link) {
        if self.phase != Phase::Open {
            return;
        }
        let universe = &stage.universe;
        if self.pulls_only {
            if self.pulls.len() < 4 {
                *next_correlation += 1;
                let correlation = *next_correlation;
                let messages_max = 1 + universe.skewed(100) as u32;
                let wait_ms = if universe.chance(500) { 0 } else { universe.skewed(2000) as u32 };
                let bytes_max = if universe.chance(500) { 0 } else { universe.skewed(20_000) };
                let pull = Pull { messages_max, wait_ms, bytes_max };
                link.send(Opcode::Pull, self.handle, correlation, &pull.encode());
                let due_ns = universe.mono().plus_ms(u64::from(wait_ms) + PATIENCE_MS).0;
                let pull = WaitingPull { correlation, messages_max, brought: 0, due_ns };
                self.pulls.push_back(pull);
            }
            return;
        }
        let rest = stage.winding_down;
        let mut messages = if rest { 500 } else { universe.skewed(200) };
        let mut bytes = if rest { 1_000_000 } else { universe.skewed(100_000) };
        messages = if self.credit_messages < 1000 { messages } else { 0 };
        bytes = if self.credit_bytes < 2_000_000 { bytes } else { 0 };
        if messages + bytes > 0 {
            let handle = self.handle;
            let entry = CreditEntry { handle, messages: messages as u32, bytes };
            self.credit_messages += messages as i64;
            self.credit_bytes += bytes as i64;
            link.send(Opcode::Credit, 0, 0, &entry.encode());
        }
    }

    /// What its next frame about deliveries asks for.
    pub fn next_verb(&self, stage: &Stage) -> Verb {
        let universe = &stage.universe;
        if stage.whim(self.nack_share) {
            // Dead letters of the last grave have nowhere to go.
            let own = stage.plan.queues[self.feed.queue].rules.graveyard == self.feed.queue;
            let kind = match universe.range(0, 9) {
                0..2 => NackKind::Returned,
                2..5 if !own => NackKind::Rejected,
                _ => NackKind::Failed,
            };
            let delay = || [0, 1, universe.skewed(1000) as u32][universe.index(3)];
            return Verb::Nack(kind, universe.chance(400).then(delay));
        }
        if stage.whim(self.extend_share) {
            return Verb::Extend([0, 100, 1000][universe.index(3)]);
        }
        Verb::Ack
    }

    /// Takes ranges of what it holds for a frame that asks for `verb`, now and then with something
    /// settled before. `text` is what a nack says.
    pub fn settle(
        &mut self,
        stage: &mut Stage,
        verb: Verb,
        text: Option<u64>,
        asked: &mut SettleAsked,
    ) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        if self.phase != Phase::Open || (self.slow && !stage.winding_down && stage.whim(800)) {
            return ranges;
        }
        let universe = Rc::clone(&stage.universe);
        let all = stage.winding_down || universe.chance(300);
        for _ in 0..if all { 50 } else { 1 + universe.skewed(4) } {
            if self.held.is_empty() || (matches!(verb, Verb::Extend(_)) && !ranges.is_empty()) {
                break;
            }
            let nth = if all { 0 } else { universe.index(self.held.len()) };
            let first = *self.held.keys().nth(nth).expect("nth is below their number");
            let longest = if all { 400 } else { 1 + universe.skewed(50) };
            let mut last = first;
            while last - first + 1 < longest && self.held.contains_key(&(last + 1)) {
                last += 1;
            }
            ranges.push((first, last));
            for delivery_id in first..=last {
                self.settle_one(stage, delivery_id, verb, text, asked);
            }
        }
        if !self.done.is_empty() && stage.whim(30) {
            let delivery_id = self.done[stage.universe.index(self.done.len())];
            asked.late += 1;
            ranges.push((delivery_id, delivery_id));
        }
        asked.generations.push((self.feed, self.generation));
        ranges
    }

    fn settle_one(
        &mut self,
        stage: &mut Stage,
        delivery_id: u64,
        verb: Verb,
        text: Option<u64>,
        asked: &mut SettleAsked,
    ) {
        let (feed, generation, holder) = (self.feed, self.generation, self.holder);
        let lease = self.held.get_mut(&delivery_id).expect("it is held");
        let (before, at) = (*lease, lease.at);
        match verb {
            Verb::Ack => stage.model.ack_sent(feed, at, holder),
            Verb::Nack(kind, _) => {
                stage.model.nack_sent((feed, generation), at, holder, kind, text);
            }
            Verb::Extend(lease_ms) => {
                let own_ms = if lease_ms == 0 { self.lease_ms } else { lease_ms };
                let may_end_ns = stage.universe.mono().plus_ms(own_ms.into()).0;
                lease.may_end_ns = lease.may_end_ns.min(may_end_ns);
                lease.ends_ns = u64::MAX;
                lease.extends += 1;
                stage.model.lease(feed, at, holder, lease.may_end_ns);
            }
        }
        if !matches!(verb, Verb::Extend(_)) {
            self.held.remove(&delivery_id);
            self.done.push(delivery_id);
        }
        let handle = self.handle;
        let settled =
            Settled { feed, generation, holder, handle, delivery_id, lease: before, verb };
        asked.deliveries.push(settled);
    }

    /// An extension was answered.
    pub fn extended(&mut self, stage: &mut Stage, of: &Settled, verdict: Verdict, sent_ns: u64) {
        let (Verb::Extend(lease_ms), true) = (of.verb, of.holder == self.holder) else { return };
        let Some(lease) = self.held.get_mut(&of.delivery_id) else { return };
        if lease.extends != of.lease.extends + 1 || of.lease.ends_ns == u64::MAX {
            return;
        }
        let own_ms = if lease_ms == 0 { self.lease_ms } else { lease_ms };
        let lease_ns = u64::from(own_ms) * 1_000_000;
        let now_ns = stage.universe.mono().0;
        match verdict {
            Verdict::InTime => {
                (lease.may_end_ns, lease.ends_ns) = (sent_ns + lease_ns, now_ns + lease_ns);
                stage.universe.cover(Cover::Extended);
                stage.model.lease(self.feed, lease.at, self.holder, lease.may_end_ns);
            }
            Verdict::Late => lease.ends_ns = of.lease.ends_ns.min(now_ns),
            Verdict::Unknown => lease.ends_ns = of.lease.ends_ns.max(now_ns + lease_ns),
        }
    }
}

/// Where a delivery stands.
struct Delivery {
    delivery_id: u64,
    sequence: u64,
    attempts: u16,
    /// The connection is as it should be.
    intact: bool,
}

/// The payload of a frame about `ranges` of consumers.
pub fn encode_settle(verb: Verb, text: Option<u64>, ranges: &[(u32, u64, u64)]) -> Vec<u8> {
    match verb {
        Verb::Ack => {
            let range = |&(handle, first, last)| AckRange { handle, first, last }.encode();
            ranges.iter().flat_map(range).collect()
        }
        Verb::Extend(lease_ms) => {
            let range =
                |&(handle, first, last)| ExtendRange { handle, lease_ms, first, last }.encode();
            ranges.iter().flat_map(range).collect()
        }
        Verb::Nack(kind, delay_ms) => {
            let range = |&(handle, first, last)| NackRange { handle, kind, first, last, delay_ms };
            let text = text.map_or(String::new(), |number| format!("nack {number}"));
            Nack { ranges: ranges.iter().map(range).collect(), text: &text }.encode()
        }
    }
}
