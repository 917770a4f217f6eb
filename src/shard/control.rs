//! Requests of the control plane: hello, opening handles; queues, subscriptions and statistics are
//! beside it.

use crate::base::slot_map::Key;
use crate::limits::{
    BATCH_RECORDS_MAX, BATCH_WIRE_BYTES_MAX, CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX,
    FRAME_PAYLOAD_BYTES_MAX, HANDLES_MAX, HEARTBEAT_MS_MAX, HEARTBEAT_MS_MIN, TOKEN_BYTES_MAX,
};
use crate::protocol::control::{Answer, Request};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::wire;
use crate::queue::OpenProducerError;
use crate::queue::consumer::{ConsumerOptions, Owner};
use crate::queue::memory::Account;
use crate::queue::policy::is_name;
use crate::shard::connection::{Stage, Target};
use crate::shard::core::Core;
use crate::shard::deliver::blocked_reason;
use crate::shard::options::{Refused, bad_name, check_lease};

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
        let changes = changed_queue(&request).map(str::to_owned);
        let kept = |core: &Core| {
            let key = *core.names.get(changes.as_deref()?)?;
            core.queues.at(key)?.store.map(|store| (store, key))
        };
        let before = kept(self);
        let answer = match request {
            Request::Hello(_) => return,
            Request::ProducerOpen(body) => self.open_producer(key, header, &body),
            Request::ConsumerOpen(body) => self.open_consumer(key, header, &body),
            Request::QueueCreate(body) => self.create_queue(&body),
            Request::QueueUpdate(body) => self.update_queue(&body),
            Request::QueueDelete(body) => self.delete_queue(&body),
            Request::QueuePurge(body) => self.purge_queue(&body),
            Request::QueueList(body) => self.list_queues(&body),
            Request::QueueDescribe(body) => self.describe_queue(&body.name),
            Request::QueuePeek(body) => self.peek_queue(key, header, body),
            Request::BrokerStats(_) => Ok(Some(self.stats_answer())),
            Request::SubscriptionCreate(body) => self.create_subscription(&body),
            Request::SubscriptionUpdate(body) => self.update_subscription(&body),
            Request::SubscriptionDelete(body) => self.delete_subscription(&body),
            Request::SubscriptionList(body) => self.list_subscriptions(&body.queue),
            Request::SubscriptionDescribe(body) => self.describe_subscription(&body),
            Request::Redrive(body) => self.redrive(key, header, &body),
            Request::Trim(_) => self.trim(key, header),
        };
        match answer {
            Ok(Some(answer)) => {
                let kept = kept(self).or(before);
                kept.into_iter().for_each(|(_, queue)| self.note_changes(queue));
                self.answer_when_kept(key, header, kept.map(|(store, _)| store), answer);
            }
            // Answered already.
            Ok(None) => {}
            Err(refused) => {
                self.send_error_body(key, header.handle, header.correlation, refused.body());
            }
        }
    }

    pub fn find_queue(&self, name: &str) -> Result<Key, Refused> {
        if !is_name(name) {
            return Err(bad_name(name));
        }
        self.names.get(name).copied().ok_or_else(|| {
            let text = format!("queue `{name}` does not exist; create it first");
            Refused::new(ErrorCode::QueueNotFound, text)
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
            return Err(Refused::new(ErrorCode::BadOption, "next_sequence begins with 1"));
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
        let name = body.subscription.as_deref().unwrap_or_default();
        let subscription = self.find_subscription(queue, name)?;
        if body.credit_messages > CREDIT_MESSAGES_MAX || body.credit_bytes > CREDIT_BYTES_MAX {
            let text = format!(
                "a consumer may hold {CREDIT_MESSAGES_MAX} messages and {CREDIT_BYTES_MAX} bytes \
                 of credit"
            );
            return Err(Refused::new(ErrorCode::CreditOverflow, text));
        }
        if body.lease_ms != 0 {
            check_lease("lease_ms", body.lease_ms)?;
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
            lease_ms: body.lease_ms,
            unacked_max: u64::from(body.unacked_max),
        };
        let Some(slot) = self.queues.at_mut(queue) else { return Ok(None) };
        let own_ms = slot.queue.subscription(subscription).map(|known| known.options().lease_ms);
        let consumer = slot.queue.open_consumer(subscription, owner, options, &mut self.memory);
        self.activate(queue);
        if let Some(connection) = self.connections.at_mut(key) {
            connection.open_handle(header.handle, Target::Consumer { queue, consumer });
        }
        let in_flight_max = self.config.bounds.in_flight_max.min(u64::from(u32::MAX)) as u32;
        Ok(Some(Answer::ConsumerOpened(wire::ConsumerOpenedT {
            in_flight_max,
            lease_ms: if body.lease_ms != 0 { body.lease_ms } else { own_ms.unwrap_or_default() },
            home_shard: self.config.shard,
        })))
    }

    pub fn check_not_draining(&self) -> Result<(), Refused> {
        match self.draining {
            Some(_) => Err(Refused::new(ErrorCode::Draining, "the broker is going down")),
            None => Ok(()),
        }
    }

    /// Handles are small and bounded per connection, but not where memory is at its end.
    fn check_memory(&mut self) -> Result<(), Refused> {
        let charged = self.memory.try_charge(Account::Handles, 1024);
        charged.map_err(|full| (ErrorCode::MemoryLimit, full.to_string()))?;
        self.memory.budget.release(Account::Handles, 1024);
        Ok(())
    }
}

/// Compares without saying by its time where two secrets differ.
fn same_bytes(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

/// The queue that a request may change, make or delete.
fn changed_queue(request: &Request) -> Option<&str> {
    match request {
        Request::QueueCreate(body) => Some(&body.name),
        Request::QueueUpdate(body) => Some(&body.name),
        Request::QueueDelete(body) => Some(&body.name),
        Request::QueuePurge(body) => Some(&body.name),
        Request::SubscriptionCreate(body) => Some(&body.queue),
        Request::SubscriptionUpdate(body) => Some(&body.queue),
        Request::SubscriptionDelete(body) => Some(&body.queue),
        _ => None,
    }
}
