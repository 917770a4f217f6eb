//! Requests about subscriptions: create, update, delete; and how one is found.

use crate::base::slot_map::Key;
use crate::limits::SUBSCRIPTIONS_MAX;
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::Opcode;
use crate::protocol::wire;
use crate::queue::CreateSubscriptionError;
use crate::queue::consumer::Owner;
use crate::queue::policy::{Start, is_name};
use crate::shard::core::Core;
use crate::shard::options::{Refused, bad_name, subscription_options, update_subscription_options};

/// The subscription of a queue that was made without naming one, and of who names none.
pub(super) const DEFAULT_SUBSCRIPTION: &str = "default";

impl Core {
    pub fn create_subscription(
        &mut self,
        body: &wire::SubscriptionCreateT,
    ) -> Result<Option<Answer>, Refused> {
        self.check_not_draining()?;
        let key = self.find_queue(&body.queue)?;
        let (queue, name) = (body.queue.as_str(), body.name.as_str());
        if !is_name(name) {
            return Err(bad_name(name));
        }
        let options = subscription_options(queue, body.options.as_deref())?;
        let start = match body.start {
            wire::Start::Now => Start::Now,
            wire::Start::Oldest => Start::Oldest,
            other => {
                let text = format!("start has no value {}", other.0);
                return Err(Refused::new(ErrorCode::BadOption, text));
            }
        };
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let (now, memory) = (self.now, &mut self.memory);
        let created = slot.queue.create_subscription(name, options, start, now, memory);
        self.activate(key);
        let created = created.map_err(|error| refused_subscription(queue, name, error))?;
        Ok(Some(Answer::QueueDone(wire::QueueDoneT { created })))
    }

    pub fn update_subscription(
        &mut self,
        body: &wire::SubscriptionUpdateT,
    ) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.queue)?;
        let subscription = self.find_subscription(key, &body.name)?;
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let known = slot.queue.subscription(subscription);
        let Some(mut options) = known.map(|known| known.options().clone()) else { return Ok(None) };
        update_subscription_options(&mut options, &body.queue, &body.options, body.set)?;
        slot.queue.update_subscription(subscription, options, self.now);
        // A new dead-letter queue, or more room in flight, may set things going.
        self.activate(key);
        Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: false })))
    }

    pub fn delete_subscription(
        &mut self,
        body: &wire::SubscriptionDeleteT,
    ) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.queue)?;
        let subscription = self.find_subscription(key, &body.name)?;
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let deleted = slot.queue.delete_subscription(subscription, body.force, &mut self.memory);
        let (messages, bytes) = deleted.map_err(|_| {
            let text = format!(
                "consumers have subscription `{}` of queue `{}` open; close them, or use force",
                body.name, body.queue
            );
            Refused::new(ErrorCode::SubscriptionInUse, text)
        })?;
        self.close_deleted(key);
        self.activate(key);
        Ok(Some(Answer::QueueRemoved(wire::QueueRemovedT { messages, bytes })))
    }

    /// Tells the consumers that were closed by what became of their queue: of a subscription that
    /// is gone, deleted or expired, or with the front of a large message whose rest is lost.
    pub fn close_deleted(&mut self, queue: Key) {
        while let Some(slot) = self.queues.at_mut(queue) {
            let Some((owner, code)) = slot.queue.poll_closed() else { return };
            let name = slot.queue.name();
            let text = match code {
                ErrorCode::DiskError => format!(
                    "the rest of a large message of queue `{name}` was lost on disk; open anew"
                ),
                _ => format!("the subscription of queue `{name}` was deleted"),
            };
            self.close_with(owner, code, &text);
        }
    }

    /// Ends a handle from the broker's side: an error that says why, and CLOSED.
    pub fn close_with(&mut self, owner: Owner, code: ErrorCode, text: &str) {
        let Some(connection) = self.connections.at_mut(owner.connection) else { return };
        connection.close_handle(owner.handle);
        connection.send_error(code, text, owner.handle, 0);
        connection.send(Opcode::Closed, owner.handle, 0, &[]);
        self.flush_later(owner.connection);
    }

    /// A subscription by its name; without one `default`.
    pub fn find_subscription(&self, queue: Key, name: &str) -> Result<Key, Refused> {
        let name = if name.is_empty() { DEFAULT_SUBSCRIPTION } else { name };
        if !is_name(name) {
            return Err(bad_name(name));
        }
        let queue = self.queues.at(queue).map(|slot| &slot.queue);
        queue.and_then(|queue| queue.subscription_key(name)).ok_or_else(|| {
            let queue = queue.map_or("", |queue| queue.name());
            let text = format!("queue `{queue}` has no subscription `{name}`");
            Refused::new(ErrorCode::SubscriptionNotFound, text)
        })
    }

    /// As [`Core::find_subscription`], but where none is named and none is the default, the only
    /// one that there is.
    pub fn find_subscription_or_only(&self, queue: Key, name: &str) -> Result<Key, Refused> {
        let found = self.find_subscription(queue, name);
        if found.is_ok() || !name.is_empty() {
            return found;
        }
        let mut all = self.queues.at(queue).into_iter().flat_map(|slot| slot.queue.subscriptions());
        match (all.next(), all.next()) {
            (Some((only, _)), None) => Ok(only),
            _ => found,
        }
    }
}

/// Why a subscription could not be made.
pub(super) fn refused_subscription(
    queue: &str,
    name: &str,
    error: CreateSubscriptionError,
) -> Refused {
    match error {
        CreateSubscriptionError::Exists => {
            let text = format!(
                "subscription `{name}` of queue `{queue}` exists with other options; update or \
                 delete it"
            );
            Refused::new(ErrorCode::SubscriptionExists, text)
        }
        CreateSubscriptionError::TooMany => {
            let (limit, max) = ("SUBSCRIPTIONS_MAX", SUBSCRIPTIONS_MAX as u64);
            let text = format!("queue `{queue}` has {max} subscriptions, as many as it may");
            Refused::limit(ErrorCode::SubscriptionsMax, limit, max, text)
        }
        CreateSubscriptionError::Absent(_) => {
            let text = format!(
                "what `{name}` of queue `{queue}` would begin with is being read from disk; try \
                 again"
            );
            Refused::new(ErrorCode::Refilling, text)
        }
        CreateSubscriptionError::MemoryFull(full) => {
            let (limit, max) = ("memory_limit", full.limit_bytes);
            Refused::limit(ErrorCode::MemoryLimit, limit, max, full.to_string())
        }
    }
}
