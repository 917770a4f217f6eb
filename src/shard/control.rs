//! Requests of the control plane: hello, opening handles, queues, stats.

use crate::base::slot_map::Key;
use crate::limits::{
    ANSWER_PAYLOAD_BYTES_MAX, BATCH_RECORDS_MAX, BATCH_WIRE_BYTES_MAX, CREDIT_BYTES_MAX,
    CREDIT_MESSAGES_MAX, FRAME_PAYLOAD_BYTES_MAX, HANDLES_MAX, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN,
    LIST_COUNT_MAX, PEEK_COUNT_MAX, PEEK_SKIP_MAX, TOKEN_BYTES_MAX,
};
use crate::protocol::control::{Answer, Request, update_set};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::wire;
use crate::queue::consumer::{ConsumerOptions, Owner};
use crate::queue::counters::Counters;
use crate::queue::memory::Account;
use crate::queue::policy::{OnFull, QueueOptions, Start, SubscriptionOptions, is_name};
use crate::queue::{OpenProducerError, Queue};
use crate::shard::connection::{Stage, Target};
use crate::shard::core::{Core, QueueSlot};
use crate::shard::deliver::blocked_reason;
use std::rc::Rc;

/// The subscription of a queue for which none was named.
const DEFAULT_SUBSCRIPTION: &str = "default";

/// A request was refused: the code and what people read.
type Refused = (ErrorCode, String);

impl Core {
    /// The first frame of a connection.
    pub fn hello(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) {
        let hello = match Request::decode(Opcode::Hello, payload) {
            Ok(Request::Hello(hello)) => hello,
            Ok(_) => return,
            Err(error) => return self.fail(key, ErrorCode::BadFrame, &error.to_string()),
        };
        let token = hello.token.unwrap_or_default();
        if let Some(expected) = &self.config.token
            && (token.len() > TOKEN_BYTES_MAX || !same_bytes(token.as_bytes(), expected.as_bytes()))
        {
            return self.fail(key, ErrorCode::BadToken, "the token is wrong or missing");
        }
        let heartbeat_ms = match hello.heartbeat_ms {
            0 => 0,
            ms => ms.clamp(HEARTBEAT_MS_MIN, HEARTBEAT_MS_MAX),
        };
        if let Some(connection) = self.connections.at_mut(key) {
            connection.stage = Stage::Open;
            connection.heartbeat_ms = heartbeat_ms;
        }
        // One look is set for the end of the hello's time; a heartbeat needs an earlier one.
        if heartbeat_ms > 0 {
            self.arm_connection(key, self.now.mono);
        }
        let body = Answer::HelloOk(wire::HelloOkT {
            server_version: Some(self.config.server_version.clone()),
            features: 0,
            connection_id: u64::from(self.config.shard) << 56 | key.to_u64() & (u64::MAX >> 8),
            heartbeat_ms,
            frame_payload_bytes_max: FRAME_PAYLOAD_BYTES_MAX as u32,
            batch_bytes_max: BATCH_WIRE_BYTES_MAX as u32,
            message_bytes_max: self.config.message_bytes_max,
            records_per_batch_max: BATCH_RECORDS_MAX as u32,
            handles_max: HANDLES_MAX as u32,
            shards: self.config.shards,
            shard: self.config.shard,
        });
        self.answer(key, header, &body);
        if self.draining.is_some() {
            self.fail(key, ErrorCode::Draining, "the broker is going down");
        }
    }

    /// Any other request.
    pub fn request(&mut self, key: Key, header: &FrameHeader, request: Request) {
        let answer = match request {
            Request::Hello(_) => return,
            Request::ProducerOpen(body) => self.open_producer(key, header, &body),
            Request::ConsumerOpen(body) => self.open_consumer(key, header, &body),
            Request::QueueCreate(body) => self.create_queue(&body),
            Request::QueueUpdate(body) => self.update_queue(&body),
            Request::QueueDelete(body) => self.delete_queue(&body),
            Request::QueuePurge(body) => self.purge_queue(&body.name),
            Request::QueueList(body) => self.list_queues(&body),
            Request::QueueDescribe(body) => self.describe_queue(&body.name),
            Request::QueuePeek(body) => self.peek_queue(&body),
            Request::BrokerStats(_) => Ok(Some(self.stats_answer())),
            Request::SubscriptionCreate(_)
            | Request::SubscriptionUpdate(_)
            | Request::SubscriptionDelete(_)
            | Request::SubscriptionList(_)
            | Request::SubscriptionDescribe(_)
            | Request::Redrive(_) => {
                Err((ErrorCode::Unsupported, "not in this version".to_owned()))
            }
        };
        match answer {
            Ok(Some(answer)) => self.answer(key, header, &answer),
            // Answered already.
            Ok(None) => {}
            Err((code, text)) => self.refuse(key, header, code, &text),
        }
    }

    fn find_queue(&self, name: &str) -> Result<Key, Refused> {
        if !is_name(name) {
            return Err(bad_name(name));
        }
        self.names.get(name).copied().ok_or_else(|| {
            (ErrorCode::QueueNotFound, format!("queue `{name}` does not exist; create it first"))
        })
    }

    fn open_producer(
        &mut self,
        key: Key,
        header: &FrameHeader,
        body: &wire::ProducerOpenT,
    ) -> Result<Option<Answer>, Refused> {
        self.check_not_draining()?;
        let queue = self.find_queue(&body.queue)?;
        if body.next_sequence == 0 || body.next_sequence > u64::MAX / 2 {
            return Err((ErrorCode::BadOption, "next_sequence begins with 1".to_owned()));
        }
        if !self.check_new_handle(key, header) {
            return Ok(None);
        }
        self.check_memory()?;
        let owner = Owner { connection: key, handle: header.handle };
        let Some(slot) = self.queues.at_mut(queue) else { return Ok(None) };
        let (id, next) = (body.producer_id, body.next_sequence);
        let opened = slot.queue.open_producer(owner, id, next, &mut self.memory);
        let opened = opened.map_err(|error| match error {
            OpenProducerError::Unknown => (ErrorCode::ProducerUnknown, error.to_string()),
            OpenProducerError::TooMany(_) => (ErrorCode::HandlesMax, error.to_string()),
        })?;
        let blocked = slot.queue.blocked();
        let body = wire::ProducerOpenedT {
            last_sequence: opened.last_sequence,
            window_bytes_total: opened.window_bytes_total,
            message_bytes_max: slot.queue.options().message_bytes_max,
            blocked: blocked.is_some(),
            blocked_reason: blocked.map(blocked_reason),
            home_shard: self.config.shard,
        };
        if let Some(connection) = self.connections.at_mut(key) {
            let target = Target::Producer { queue, producer: opened.key };
            connection.open_handle(header.handle, target);
        }
        if let Some(fenced) = opened.fenced {
            self.fence(fenced);
        }
        Ok(Some(Answer::ProducerOpened(body)))
    }

    /// Another handle took the producer id over.
    fn fence(&mut self, owner: Owner) {
        let Some(connection) = self.connections.at_mut(owner.connection) else { return };
        connection.close_handle(owner.handle);
        let text = "the same producer id was opened elsewhere";
        connection.send_error(ErrorCode::ProducerFenced, text, owner.handle, 0);
        connection.send(Opcode::Closed, owner.handle, 0, &[]);
        self.flush_later(owner.connection);
    }

    fn open_consumer(
        &mut self,
        key: Key,
        header: &FrameHeader,
        body: &wire::ConsumerOpenT,
    ) -> Result<Option<Answer>, Refused> {
        self.check_not_draining()?;
        let queue = self.find_queue(&body.queue)?;
        let subscription = body.subscription.as_deref().unwrap_or_default();
        if !matches!(subscription, "" | "default") {
            let text = format!("queue `{}` has no subscription `{subscription}`", body.queue);
            return Err((ErrorCode::SubscriptionNotFound, text));
        }
        if body.credit_messages > CREDIT_MESSAGES_MAX || body.credit_bytes > CREDIT_BYTES_MAX {
            let text = format!(
                "a consumer may hold {CREDIT_MESSAGES_MAX} messages and {CREDIT_BYTES_MAX} bytes \
                 of credit"
            );
            return Err((ErrorCode::CreditOverflow, text));
        }
        if !self.check_new_handle(key, header) {
            return Ok(None);
        }
        self.check_memory()?;
        let owner = Owner { connection: key, handle: header.handle };
        let options = ConsumerOptions {
            auto_ack: body.auto_ack,
            checksum: body.checksum,
            credit_messages: body.credit_messages,
            credit_bytes: body.credit_bytes,
            lease_ms: 0,
            unacked_max: 0,
        };
        let Some(slot) = self.queues.at_mut(queue) else { return Ok(None) };
        let subscription = slot.queue.subscription_key(DEFAULT_SUBSCRIPTION).ok_or_else(|| {
            let text = format!("queue `{}` has no subscription `default`", body.queue);
            (ErrorCode::SubscriptionNotFound, text)
        })?;
        let consumer = slot.queue.open_consumer(subscription, owner, options, &mut self.memory);
        self.activate(queue);
        if let Some(connection) = self.connections.at_mut(key) {
            connection.open_handle(header.handle, Target::Consumer { queue, consumer });
        }
        let in_flight_max = self.config.bounds.in_flight_max.min(u64::from(u32::MAX)) as u32;
        Ok(Some(Answer::ConsumerOpened(wire::ConsumerOpenedT {
            in_flight_max,
            lease_ms: 0,
            home_shard: self.config.shard,
        })))
    }

    fn create_queue(&mut self, body: &wire::QueueCreateT) -> Result<Option<Answer>, Refused> {
        self.check_not_draining()?;
        let name = body.name.as_str();
        if !is_name(name) {
            return Err(bad_name(name));
        }
        let options = self.queue_options(body.options.as_deref())?;
        if let Some(slot) = self.names.get(name).and_then(|key| self.queues.at(*key)) {
            if *slot.queue.options() == options {
                return Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: false })));
            }
            let text = format!("queue `{name}` exists with other options; update or delete it");
            return Err((ErrorCode::QueueExists, text));
        }
        let (bounds, now) = (self.config.bounds, self.now);
        let queue = Queue::new(name, options, bounds, now.wall, now.wall.0, &mut self.memory);
        let mut queue = queue.map_err(|full| (ErrorCode::MemoryLimit, full.to_string()))?;
        let (asked, memory) = (SubscriptionOptions::default(), &mut self.memory);
        let made = queue.create_subscription(DEFAULT_SUBSCRIPTION, asked, Start::Now, now, memory);
        if let Err(error) = made {
            queue.delete(&mut self.memory);
            return Err((ErrorCode::MemoryLimit, error.to_string()));
        }
        let slot = QueueSlot {
            queue,
            active: false,
            blocked: false,
            short_of_memory: false,
            armed_at: None,
        };
        let key = self.queues.insert(Box::new(slot));
        self.names.insert(Rc::from(name), key);
        Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: true })))
    }

    fn update_queue(&mut self, body: &wire::QueueUpdateT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        if body.set == 0 || body.set & !update_set::KNOWN != 0 {
            return Err((ErrorCode::BadOption, "update names no option, or an unknown one".into()));
        }
        let asked = self.queue_options(Some(&body.options))?;
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let mut options = *slot.queue.options();
        if body.set & update_set::MESSAGES_MAX != 0 {
            options.messages_max = asked.messages_max;
        }
        if body.set & update_set::BYTES_MAX != 0 {
            options.bytes_max = asked.bytes_max;
        }
        if body.set & update_set::ON_FULL != 0 {
            options.on_full = asked.on_full;
        }
        if body.set & update_set::MESSAGE_BYTES_MAX != 0 {
            options.message_bytes_max = asked.message_bytes_max;
        }
        slot.queue.update(options);
        Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: false })))
    }

    fn delete_queue(&mut self, body: &wire::QueueDeleteT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        let held = self.queues.at(key).map_or(0, |slot| slot.queue.messages());
        if body.if_empty && held > 0 {
            let text = format!("queue `{}` holds {held} messages", body.name);
            return Err((ErrorCode::QueueNotEmpty, text));
        }
        self.names.remove(body.name.as_str());
        let Some(slot) = self.queues.remove(key) else { return Ok(None) };
        let producers = slot.queue.producers().map(|(_, producer)| producer.owner);
        let owners: Vec<Owner> = producers.chain(slot.queue.consumer_owners()).collect();
        self.deleted.add(slot.queue.counters());
        let (messages, bytes) = slot.queue.delete(&mut self.memory);
        self.stats.deleted_messages += messages;
        for owner in owners {
            let Some(connection) = self.connections.at_mut(owner.connection) else { continue };
            connection.close_handle(owner.handle);
            let text = format!("queue `{}` was deleted", body.name);
            connection.send_error(ErrorCode::QueueDeleted, &text, owner.handle, 0);
            connection.send(Opcode::Closed, owner.handle, 0, &[]);
            self.flush_later(owner.connection);
        }
        Ok(Some(Answer::QueueRemoved(wire::QueueRemovedT { messages, bytes })))
    }

    fn purge_queue(&mut self, name: &str) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(name)?;
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let (messages, bytes) = slot.queue.purge(None, &mut self.memory);
        Ok(Some(Answer::QueueRemoved(wire::QueueRemovedT { messages, bytes })))
    }

    fn list_queues(&self, body: &wire::QueueListT) -> Result<Option<Answer>, Refused> {
        let prefix = body.prefix.as_deref().unwrap_or_default();
        let after = body.after.as_deref().unwrap_or_default();
        let start = if after < prefix { prefix } else { after };
        let count_max = body.count_max.clamp(1, LIST_COUNT_MAX) as usize;
        let mut names = self
            .names
            .range::<str, _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded))
            .filter(|(name, _)| after.is_empty() || &***name > after)
            .take_while(|(name, _)| name.starts_with(prefix));
        let queues: Vec<_> = names
            .by_ref()
            .take(count_max)
            .filter_map(|(_, key)| Some(self.description(&self.queues.at(*key)?.queue)))
            .collect();
        let more = names.next().is_some();
        let body = wire::QueueListingT { queues: Some(queues), more };
        Ok(Some(Answer::QueueListing(body)))
    }

    fn describe_queue(&self, name: &str) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(name)?;
        let slot = self.queues.at(key);
        Ok(slot.map(|slot| Answer::QueueDescription(self.description(&slot.queue))))
    }

    fn peek_queue(&self, body: &wire::QueuePeekT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        if body.skip > PEEK_SKIP_MAX {
            let text = format!("a peek may pass over {PEEK_SKIP_MAX} messages");
            return Err((ErrorCode::BadOption, text));
        }
        let Some(slot) = self.queues.at(key) else { return Ok(None) };
        let count_max = body.count_max.clamp(1, PEEK_COUNT_MAX) as usize;
        let Some(subscription) = slot.queue.subscription_key(DEFAULT_SUBSCRIPTION) else {
            return Ok(None);
        };
        let bytes_max = ANSWER_PAYLOAD_BYTES_MAX / 2;
        let (peeked, more) = slot.queue.peek(subscription, body.skip, count_max, bytes_max);
        let messages = peeked
            .into_iter()
            .map(|message| wire::PeekedMessageT {
                sequence: message.sequence,
                accepted_wall_us: message.accepted_us,
                properties: Some(message.properties),
                body: Some(message.body),
                body_bytes: message.body_bytes,
            })
            .collect();
        let body = wire::PeekedMessagesT { messages: Some(messages), more };
        Ok(Some(Answer::PeekedMessages(body)))
    }

    /// Options as asked, absent ones filled in, checked.
    fn queue_options(&self, body: Option<&wire::QueueOptionsT>) -> Result<QueueOptions, Refused> {
        let asked = body.cloned().unwrap_or_default();
        if asked.durable {
            let text = "durable queues are not supported yet; this queue would be transient";
            return Err((ErrorCode::Unsupported, text.to_owned()));
        }
        let on_full = match asked.on_full {
            wire::OnFull::Block => OnFull::Block,
            wire::OnFull::Reject => OnFull::Reject,
            wire::OnFull::DropOldest => OnFull::DropOldest,
            wire::OnFull::DropNewest => OnFull::DropNewest,
            other => {
                return Err((ErrorCode::BadOption, format!("on_full has no value {}", other.0)));
            }
        };
        let limit = self.config.message_bytes_max;
        if asked.message_bytes_max > limit {
            let text = format!(
                "message_bytes_max of {} is over the broker's {limit}",
                asked.message_bytes_max
            );
            return Err((ErrorCode::BadOption, text));
        }
        let message_bytes_max =
            if asked.message_bytes_max == 0 { limit } else { asked.message_bytes_max };
        let (messages_max, bytes_max) = (asked.messages_max, asked.bytes_max);
        Ok(QueueOptions { messages_max, bytes_max, on_full, message_bytes_max })
    }

    fn description(&self, queue: &Queue) -> wire::QueueDescriptionT {
        let options = queue.options();
        let (first_sequence, next_sequence) = queue.sequences();
        wire::QueueDescriptionT {
            name: queue.name().to_owned(),
            options: Box::new(wire::QueueOptionsT {
                durable: false,
                messages_max: options.messages_max,
                bytes_max: options.bytes_max,
                on_full: match options.on_full {
                    OnFull::Block => wire::OnFull::Block,
                    OnFull::Reject => wire::OnFull::Reject,
                    OnFull::DropOldest => wire::OnFull::DropOldest,
                    OnFull::DropNewest => wire::OnFull::DropNewest,
                },
                message_bytes_max: options.message_bytes_max,
            }),
            ready: queue.ready(),
            in_flight: queue.in_flight(),
            delayed: queue.delayed(),
            bytes: queue.bytes(),
            memory_bytes: queue.memory_bytes(),
            spilled_bytes: 0,
            counters: Box::new(wire_counters(queue.counters())),
            producers: queue.producer_count() as u32,
            consumers: queue.consumer_count() as u32,
            blocked: queue.blocked().is_some(),
            blocked_reason: queue.blocked().map(blocked_reason),
            created_wall_us: queue.created().0,
            shard: self.config.shard,
            first_sequence,
            next_sequence,
            dead_lettering: queue.dead_lettering(),
            subscriptions: queue.subscription_count() as u32,
        }
    }

    fn stats_answer(&self) -> Answer {
        let mut counters = self.deleted;
        let mut stats = wire::StatsT {
            server_version: Some(self.config.server_version.clone()),
            uptime_ms: self.now.mono.ms_since(self.started.mono),
            shards: self.config.shards,
            connections: (self.connections.len()
                - self.remotes.iter().map(|remotes| remotes.len()).sum::<usize>())
                as u32,
            connections_accepted: self.stats.connections_accepted,
            connections_shed: self.stats.connections_shed,
            connections_refused: self.stats.connections_refused,
            protocol_errors: self.stats.protocol_errors,
            queues: self.queues.len() as u32,
            memory_limit_bytes: self.memory.budget.limit_bytes(),
            memory_used_bytes: self.memory.budget.used_bytes(),
            memory_chunk_bytes: self.memory.budget.used_by(Account::Chunks),
            ticks: self.stats.ticks,
            bytes_in: self.stats.bytes_in,
            bytes_out: self.stats.bytes_out,
            queues_deleted_messages: self.stats.deleted_messages,
            crossed_bytes: self.post.as_ref().map_or(0, |post| post.crossed_bytes),
            ..wire::StatsT::default()
        };
        for (_, slot) in self.queues.iter() {
            let queue = &slot.queue;
            counters.add(queue.counters());
            stats.ready += queue.ready();
            stats.in_flight += queue.in_flight();
            stats.producers += queue.producer_count() as u32;
            stats.consumers += queue.consumer_count() as u32;
            stats.queues_blocked += u32::from(queue.blocked().is_some());
        }
        stats.counters = Some(Box::new(wire_counters(&counters)));
        Answer::Stats(stats)
    }

    fn check_not_draining(&self) -> Result<(), Refused> {
        match self.draining {
            Some(_) => Err((ErrorCode::Draining, "the broker is going down".to_owned())),
            None => Ok(()),
        }
    }

    /// Handles are small and bounded per connection, but not where memory is at its end.
    fn check_memory(&mut self) -> Result<(), Refused> {
        let charged = self.memory.budget.try_charge(Account::Handles, 1024);
        charged.map_err(|full| (ErrorCode::MemoryLimit, full.to_string()))?;
        self.memory.budget.release(Account::Handles, 1024);
        Ok(())
    }
}

fn bad_name(name: &str) -> Refused {
    let shown: String = name.chars().take(40).collect();
    let text = format!("`{shown}` is no name: 1 to 200 of A-Z a-z 0-9 . _ - :");
    (ErrorCode::BadName, text)
}

/// Compares without saying by its time where two secrets differ.
fn same_bytes(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

fn wire_counters(counters: &Counters) -> wire::QueueCountersT {
    wire::QueueCountersT {
        published: counters.published,
        published_bytes: counters.published_bytes,
        duplicates: counters.duplicates,
        refused: counters.refused,
        delivered: counters.delivered,
        delivered_bytes: counters.delivered_bytes,
        redelivered: counters.redelivered,
        acked: counters.acked,
        returned: counters.returned,
        failed: counters.failed,
        dead_lettered: counters.dead_lettered,
        expired: counters.expired,
        dropped_oldest: counters.dropped_oldest,
        dropped_newest: counters.dropped_newest,
        purged: counters.purged,
        lost_damaged: counters.lost_damaged,
        ..Default::default()
    }
}
