//! Requests about subscriptions and dead letters.

use super::connection::{Connection, Peeked, Removed, Twice, unexpected};
use crate::client::{ClientError, Start, SubscriptionDescription, SubscriptionOptions};
use crate::limits::REDRIVE_COUNT_MAX;
use crate::protocol::control::{Answer, Request};
use crate::protocol::wire;

/// What a redrive is to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redrive {
    /// The dead-letter queue.
    pub queue: String,
    /// Where to; `None`: each message to the queue that it came from.
    pub target: Option<String>,
    /// Messages moved at most, up to 1000.
    pub count_max: u32,
    /// Only messages behind this sequence are looked at; 0: from the first.
    pub after_sequence: u64,
    /// Only messages that have this header with this value.
    pub filter: Option<(String, String)>,
}

impl Redrive {
    /// All of the queue, to where each came from, up to 1000 messages.
    pub fn of(queue: impl Into<String>) -> Redrive {
        Redrive {
            queue: queue.into(),
            target: None,
            count_max: REDRIVE_COUNT_MAX,
            after_sequence: 0,
            filter: None,
        }
    }
}

/// What became of a redrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redriven {
    /// Messages moved.
    pub messages: u64,
    /// Looked at up to here: where the next redrive goes on.
    pub last_sequence: u64,
    /// There is nothing behind it.
    pub finished: bool,
    /// Messages that stay because their target would not take them.
    pub refused: u64,
    /// Why, of the last; empty if there was none.
    pub reason: String,
}

impl Connection {
    /// Creates a subscription of a queue. False if it was there with the same options.
    ///
    /// # Errors
    /// [`ClientError::Option`] for options that no broker takes, of which nothing is sent;
    /// [`ClientError::Broker`]: `queue_not_found`, `subscription_exists` (with other options),
    /// `subscriptions_max`, `bad_name`, `bad_option`, `memory_limit`.
    pub fn subscription_create(
        &mut self,
        queue: &str,
        name: &str,
        options: &SubscriptionOptions,
        start: Start,
    ) -> Result<bool, ClientError> {
        options.check()?;
        let request = Request::SubscriptionCreate(wire::SubscriptionCreateT {
            queue: queue.into(),
            name: name.into(),
            options: Some(Box::new(options.to_wire())),
            start,
        });
        match self.ask(&request, Twice::Yes)? {
            Answer::QueueDone(done) => Ok(done.created),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes what of the options is set, for what comes after: consumers that are open keep
    /// their lease.
    ///
    /// # Errors
    /// As [`subscription_create`](Connection::subscription_create); `subscription_not_found`.
    pub fn subscription_update(
        &mut self,
        queue: &str,
        name: &str,
        change: &SubscriptionOptions,
    ) -> Result<(), ClientError> {
        change.check()?;
        let request = Request::SubscriptionUpdate(wire::SubscriptionUpdateT {
            queue: queue.into(),
            name: name.into(),
            options: Box::new(change.to_wire()),
            set: change.set(),
        });
        match self.ask(&request, Twice::Yes)? {
            Answer::QueueDone(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a subscription; messages that no other needs leave the queue. With `force` also
    /// while consumers have it open: these are closed.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `subscription_not_found`, `subscription_in_use`.
    /// [`ClientError::Lost`] if the connection ended before the answer: it may have been done.
    pub fn subscription_delete(
        &mut self,
        queue: &str,
        name: &str,
        force: bool,
    ) -> Result<Removed, ClientError> {
        let request = wire::SubscriptionDeleteT { queue: queue.into(), name: name.into(), force };
        self.remove(&Request::SubscriptionDelete(request))
    }

    /// All subscriptions of a queue, by name.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`.
    pub fn subscription_list(
        &mut self,
        queue: &str,
    ) -> Result<Vec<SubscriptionDescription>, ClientError> {
        let request = Request::SubscriptionList(wire::SubscriptionListT { queue: queue.into() });
        match self.ask(&request, Twice::Yes)? {
            Answer::SubscriptionListing(listing) => Ok(listing.subscriptions.unwrap_or_default()),
            other => Err(unexpected(&other)),
        }
    }

    /// State, options and counters of a subscription.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `subscription_not_found`.
    pub fn subscription_describe(
        &mut self,
        queue: &str,
        name: &str,
    ) -> Result<SubscriptionDescription, ClientError> {
        let request = wire::SubscriptionDescribeT { queue: queue.into(), name: name.into() };
        match self.ask(&Request::SubscriptionDescribe(request), Twice::Yes)? {
            Answer::SubscriptionDescription(description) => Ok(description),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes the ready messages of one subscription; the others keep theirs.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `subscription_not_found`. [`ClientError::Lost`]
    /// as for [`queue_delete`](Connection::queue_delete).
    pub fn subscription_purge(&mut self, queue: &str, name: &str) -> Result<Removed, ClientError> {
        self.remove(&Request::QueuePurge(wire::QueuePurgeT {
            name: queue.into(),
            subscription: Some(name.into()),
        }))
    }

    /// As [`queue_peek`](Connection::queue_peek), of this subscription.
    ///
    /// # Errors
    /// As [`queue_peek`](Connection::queue_peek); `subscription_not_found`.
    pub fn subscription_peek(
        &mut self,
        queue: &str,
        name: &str,
        count_max: u32,
        skip: u64,
    ) -> Result<Peeked, ClientError> {
        let subscription = Some(name.into());
        self.peek(wire::QueuePeekT { name: queue.into(), count_max, skip, subscription })
    }

    /// Moves ready messages of a dead-letter queue back, and waits until they are moved. A long
    /// redrive is many calls, each with `after_sequence` from the answer before, until `finished`.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `bad_option`. [`ClientError::Lost`] if the
    /// connection ended before the answer: some may have been moved.
    pub fn redrive(&mut self, redrive: &Redrive) -> Result<Redriven, ClientError> {
        let (filter_key, filter_value) = redrive.filter.clone().unzip();
        let request = Request::Redrive(wire::RedriveT {
            queue: redrive.queue.clone(),
            target: redrive.target.clone(),
            count_max: redrive.count_max,
            after_sequence: redrive.after_sequence,
            filter_key,
            filter_value,
        });
        match self.ask(&request, Twice::No)? {
            Answer::Redriven(redriven) => Ok(Redriven {
                messages: redriven.messages,
                last_sequence: redriven.last_sequence,
                finished: redriven.finished,
                refused: redriven.refused,
                reason: redriven.reason.unwrap_or_default(),
            }),
            other => Err(unexpected(&other)),
        }
    }
}
