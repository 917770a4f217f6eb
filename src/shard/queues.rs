//! Requests about queues: create, update, delete, purge, peek.

use crate::base::slot_map::Key;
use crate::limits::{ANSWER_PAYLOAD_BYTES_MAX, PEEK_COUNT_MAX, PEEK_SKIP_MAX, SUBSCRIPTIONS_MAX};
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::FrameHeader;
use crate::protocol::wire;
use crate::queue::Queue;
use crate::queue::moved::TRANSIENT_STORES;
use crate::queue::policy::{QueueOptions, Start, SubscriptionOptions, is_name};
use crate::shard::core::{Core, QueueSlot};
use crate::shard::options::{
    Refused, bad_name, queue_options, subscription_options, update_queue_options,
};
use crate::shard::subscriptions::{DEFAULT_SUBSCRIPTION, refused_subscription};
use std::rc::Rc;

impl Core {
    pub fn create_queue(&mut self, body: &wire::QueueCreateT) -> Result<Option<Answer>, Refused> {
        self.check_not_draining()?;
        let name = body.name.as_str();
        if !is_name(name) {
            return Err(bad_name(name));
        }
        let options = queue_options(body.options.as_deref(), self.config.message_bytes_max)?;
        let subscription_options =
            subscription_options(name, body.subscription_options.as_deref())?;
        let subscriptions = subscription_names(body)?;
        let Some(slot) = self.names.get(name).and_then(|key| self.queues.at(*key)) else {
            self.make_queue(name, options, &subscriptions, &subscription_options)?;
            return Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: true })));
        };
        // Who says nothing of subscriptions takes the queue as it is.
        let asked = body.subscription_options.is_some().then_some(&subscription_options);
        let named = body.subscriptions.as_ref().is_some_and(|names| !names.is_empty());
        let names = if named || asked.is_some() { &subscriptions[..] } else { &[] };
        let other = if *slot.queue.options() != options {
            Some("with other options".to_owned())
        } else {
            other_subscription(&slot.queue, names, asked)
        };
        match other {
            None => Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: false }))),
            Some(other) => {
                let text = format!("queue `{name}` exists {other}; update or delete it");
                Err(Refused::new(ErrorCode::QueueExists, text))
            }
        }
    }

    /// A new queue with these subscriptions; all of it or nothing.
    pub fn make_queue(
        &mut self,
        name: &str,
        options: QueueOptions,
        subscriptions: &[&str],
        subscription_options: &SubscriptionOptions,
    ) -> Result<Key, Refused> {
        self.queues_made += 1;
        // Of two queues made at the same time the waits are drawn differently.
        let seed = self.now.wall.0 ^ self.queues_made << 48;
        let (bounds, created) = (self.config.bounds, self.now.wall);
        let store = options.is_durable().then(|| self.store_for(name)).transpose()?;
        let (number, move_store) = match store.map(|index| self.stores.at(index)) {
            Some(store) => (store.next_number(), store.number()),
            None => (self.queues_made, TRANSIENT_STORES + self.config.shard),
        };
        let memory = &mut self.memory;
        let queue = Queue::new(name, options, bounds, number, created, seed, memory);
        let mut queue =
            queue.map_err(|full| Refused::new(ErrorCode::MemoryLimit, full.to_string()))?;
        for subscription in subscriptions {
            let (asked, now) = (subscription_options.clone(), self.now);
            let memory = &mut self.memory;
            let made = queue.create_subscription(subscription, asked, Start::Now, now, memory);
            if let Err(error) = made {
                queue.delete(&mut self.memory);
                return Err(refused_subscription(name, subscription, error));
            }
        }
        if store.is_some() {
            queue.make_durable();
        }
        let slot = QueueSlot { store, ..QueueSlot::new(queue, move_store) };
        let key = self.queues.insert(Box::new(slot));
        self.names.insert(Rc::from(name), key);
        self.arm_queue(key);
        self.note_changes(key);
        Ok(key)
    }

    pub fn update_queue(&mut self, body: &wire::QueueUpdateT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        let asked = queue_options(Some(&body.options), self.config.message_bytes_max)?;
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let mut options = *slot.queue.options();
        update_queue_options(&mut options, &asked, body.set)?;
        slot.queue.update(options);
        Ok(Some(Answer::QueueDone(wire::QueueDoneT { created: false })))
    }

    pub fn delete_queue(&mut self, body: &wire::QueueDeleteT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        let held = self.queues.at(key).map_or(0, |slot| slot.queue.messages());
        if body.if_empty && held > 0 {
            let text = format!("queue `{}` holds {held} messages", body.name);
            return Err(Refused::new(ErrorCode::QueueNotEmpty, text));
        }
        self.names.remove(body.name.as_str());
        let Some(slot) = self.queues.remove(key) else { return Ok(None) };
        self.disarm_queue(key, &slot);
        self.spill.forget(key, &slot);
        self.forget_durable(key, &slot);
        let producers = slot.queue.producers().map(|(_, producer)| producer.owner);
        let owners: Vec<_> = producers.chain(slot.queue.consumer_owners()).collect();
        self.deleted.add(slot.queue.counters());
        let (messages, bytes) = slot.queue.delete(&mut self.memory);
        self.stats.deleted_messages += messages;
        for owner in owners {
            let text = format!("queue `{}` was deleted", body.name);
            self.close_with(owner, ErrorCode::QueueDeleted, &text);
        }
        Ok(Some(Answer::QueueRemoved(wire::QueueRemovedT { messages, bytes })))
    }

    pub fn purge_queue(&mut self, body: &wire::QueuePurgeT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        let only = match body.subscription.as_deref().unwrap_or_default() {
            "" => None,
            name => Some(self.find_subscription(key, name)?),
        };
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let (messages, bytes) = slot.queue.purge(only, &mut self.memory);
        self.activate(key);
        Ok(Some(Answer::QueueRemoved(wire::QueueRemovedT { messages, bytes })))
    }

    pub fn peek_queue(
        &mut self,
        connection: Key,
        header: &FrameHeader,
        body: wire::QueuePeekT,
    ) -> Result<Option<Answer>, Refused> {
        match self.try_peek(&body)? {
            Some(answer) => Ok(Some(answer)),
            None => self.wait_with_peek(connection, header, body),
        }
    }

    /// A look at messages; `None` if it needs what is on disk, which then is asked for.
    pub(super) fn try_peek(&mut self, body: &wire::QueuePeekT) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.name)?;
        if body.skip > PEEK_SKIP_MAX {
            let text = format!("a peek may pass over {PEEK_SKIP_MAX} messages");
            let (name, max) = ("PEEK_SKIP_MAX", PEEK_SKIP_MAX);
            return Err(Refused::limit(ErrorCode::BadOption, name, max, text));
        }
        let name = body.subscription.as_deref().unwrap_or_default();
        let subscription = self.find_subscription_or_only(key, name)?;
        let Some(slot) = self.queues.at_mut(key) else { return Ok(None) };
        let count_max = body.count_max.clamp(1, PEEK_COUNT_MAX) as usize;
        let bytes_max = ANSWER_PAYLOAD_BYTES_MAX / 2;
        let peeked = slot.queue.peek(subscription, body.skip, count_max, bytes_max);
        let Ok((peeked, more)) = peeked else { return Ok(None) };
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
}

/// The subscriptions that a queue is made with.
/// What a queue that exists has other than asked: it may have more subscriptions, not fewer.
fn other_subscription(
    queue: &Queue,
    names: &[&str],
    options: Option<&SubscriptionOptions>,
) -> Option<String> {
    names.iter().find_map(|&name| {
        let key = queue.subscription_key(name);
        match key.and_then(|key| queue.subscription(key)) {
            None => Some(format!("without a subscription `{name}`")),
            Some(held) if options.is_some_and(|asked| held.options() != asked) => {
                Some(format!("with other options of its subscription `{name}`"))
            }
            Some(_) => None,
        }
    })
}

fn subscription_names(body: &wire::QueueCreateT) -> Result<Vec<&str>, Refused> {
    let names: Vec<&str> = match &body.subscriptions {
        Some(names) if !names.is_empty() => names.iter().map(String::as_str).collect(),
        _ => vec![DEFAULT_SUBSCRIPTION],
    };
    if names.len() > SUBSCRIPTIONS_MAX {
        let (limit, max) = ("SUBSCRIPTIONS_MAX", SUBSCRIPTIONS_MAX as u64);
        let text = format!("a queue has {max} subscriptions at most, not {}", names.len());
        return Err(Refused::limit(ErrorCode::SubscriptionsMax, limit, max, text));
    }
    for (nth, name) in names.iter().enumerate() {
        if !is_name(name) {
            return Err(bad_name(name));
        }
        if names[..nth].contains(name) {
            let text = format!("subscription `{name}` is named twice");
            return Err(Refused::new(ErrorCode::BadOption, text));
        }
    }
    Ok(names)
}
