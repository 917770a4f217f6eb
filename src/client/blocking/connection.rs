//! Requests: ping, queues, stats. One is under way at a time.

use super::link::{BlockingLink, Room};
use crate::base::time::Mono;
use crate::client::driver::{Setup, create_request};
use crate::client::session::Event;
use crate::client::{
    ClientError, ConnectOptions, ConnectionEvent, LostReason, PeekedMessage, QueueChange,
    QueueDescription, QueueOptions, Stats, SubscriptionOptions, Trimmed,
};
use crate::limits::LIST_COUNT_MAX;
use crate::protocol::control::{Answer, Request, update_set};
use crate::protocol::wire;
use std::time::Duration;

/// A connection for requests. When it is lost it is made anew, and what may be asked twice is asked
/// again.
pub struct Connection {
    link: BlockingLink,
    server_version: String,
}

/// Messages that a purge or delete removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What a peek shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peeked {
    /// Ready messages, first in, first out.
    pub messages: Vec<PeekedMessage>,
    /// Whether there are more behind them.
    pub more: bool,
}

/// Whether a request may be sent again when nobody knows whether it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twice {
    Yes,
    No,
}

impl Connection {
    /// Connects to the first server that answers.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if none does, [`ClientError::Option`] for options that cannot be.
    pub fn open(options: &ConnectOptions) -> Result<Connection, ClientError> {
        let mut connection = Connection {
            link: BlockingLink::new(options, Setup::default())?,
            server_version: String::new(),
        };
        let deadline = connection.link.clock.after(options.request_timeout);
        connection.connect(deadline)?;
        Ok(connection)
    }

    /// The version that the broker gave in its hello.
    pub fn server_version(&self) -> &str {
        &self.server_version
    }

    /// Asks the broker to answer; gives the time it took.
    ///
    /// # Errors
    /// [`ClientError::Connect`] or [`ClientError::TimedOut`].
    pub fn ping(&mut self) -> Result<Duration, ClientError> {
        let deadline = self.link.clock.after(self.link.options.request_timeout);
        loop {
            self.connect(deadline)?;
            let sent_at = self.link.clock.now();
            let Some(asked) = self.link.session.ping() else { continue };
            loop {
                match self.next_event(deadline)? {
                    Event::Pong { correlation } if correlation == asked => {
                        return Ok(self.link.clock.now().after(sent_at));
                    }
                    Event::Unanswered { correlation } if correlation == asked => break,
                    _ => {}
                }
            }
        }
    }

    /// Creates a queue. False if it was there with the same options.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_exists` (with other options), `bad_name`, `bad_option`,
    /// `unsupported`, `memory_limit`, `draining`.
    pub fn queue_create(
        &mut self,
        queue: &str,
        options: &QueueOptions,
    ) -> Result<bool, ClientError> {
        match self.ask(&create_request(queue, "", options), Twice::Yes)? {
            Answer::QueueDone(done) => Ok(done.created),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`queue_create`](Connection::queue_create), with these subscriptions instead of the one
    /// named `default`, each with these options. Without names: `default`, with these options.
    ///
    /// # Errors
    /// As [`queue_create`](Connection::queue_create); [`ClientError::Option`] for options that no
    /// broker takes, of which nothing is sent.
    pub fn queue_create_with(
        &mut self,
        queue: &str,
        options: &QueueOptions,
        subscriptions: &[&str],
        subscription_options: &SubscriptionOptions,
    ) -> Result<bool, ClientError> {
        subscription_options.check()?;
        let names: Vec<String> = subscriptions.iter().map(|name| (*name).to_owned()).collect();
        let request = Request::QueueCreate(wire::QueueCreateT {
            name: queue.into(),
            options: Some(Box::new(options.to_wire())),
            subscriptions: (!names.is_empty()).then_some(names),
            // Where nothing is asked, a queue that exists is taken as it is.
            subscription_options: (*subscription_options != SubscriptionOptions::default())
                .then(|| Box::new(subscription_options.to_wire())),
        });
        match self.ask(&request, Twice::Yes)? {
            Answer::QueueDone(done) => Ok(done.created),
            other => Err(unexpected(&other)),
        }
    }

    /// Changes options of a queue.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `bad_option`.
    pub fn queue_update(&mut self, queue: &str, change: &QueueChange) -> Result<(), ClientError> {
        let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
        let options = QueueOptions {
            durable: false,
            confirm: Default::default(),
            messages_max: change.messages_max.unwrap_or(0),
            bytes_max: change.bytes_max.unwrap_or(0),
            on_full: change.on_full.unwrap_or_default(),
            message_bytes_max: change.message_bytes_max.unwrap_or(0),
        };
        let request = Request::QueueUpdate(wire::QueueUpdateT {
            name: queue.into(),
            options: Box::new(options.to_wire()),
            set: bit(change.messages_max.is_some(), update_set::MESSAGES_MAX)
                | bit(change.bytes_max.is_some(), update_set::BYTES_MAX)
                | bit(change.on_full.is_some(), update_set::ON_FULL)
                | bit(change.message_bytes_max.is_some(), update_set::MESSAGE_BYTES_MAX),
        });
        match self.ask(&request, Twice::Yes)? {
            Answer::QueueDone(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Deletes a queue and what is in it; if so asked, only when it is empty.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `queue_not_empty`. [`ClientError::Lost`] if the
    /// connection ended before the answer: it may have been done.
    pub fn queue_delete(&mut self, queue: &str, if_empty: bool) -> Result<Removed, ClientError> {
        let request = wire::QueueDeleteT { name: queue.into(), if_empty };
        self.remove(&Request::QueueDelete(request))
    }

    /// Removes the ready messages of a queue, of all its subscriptions; what consumers hold stays
    /// with them.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`. [`ClientError::Lost`] as for
    /// [`queue_delete`](Connection::queue_delete).
    pub fn queue_purge(&mut self, queue: &str) -> Result<Removed, ClientError> {
        self.remove(&Request::QueuePurge(wire::QueuePurgeT {
            name: queue.into(),
            subscription: None,
        }))
    }

    pub(super) fn remove(&mut self, request: &Request) -> Result<Removed, ClientError> {
        match self.ask(request, Twice::No)? {
            Answer::QueueRemoved(removed) => {
                Ok(Removed { messages: removed.messages, bytes: removed.bytes })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// All queues whose names begin with `prefix`, by name. Asks page by page.
    ///
    /// # Errors
    /// [`ClientError::Connect`] or [`ClientError::TimedOut`].
    pub fn queue_list(&mut self, prefix: &str) -> Result<Vec<QueueDescription>, ClientError> {
        let mut queues: Vec<QueueDescription> = Vec::new();
        loop {
            let request = Request::QueueList(wire::QueueListT {
                prefix: Some(prefix.into()),
                after: queues.last().map(|queue| queue.name.clone()),
                count_max: LIST_COUNT_MAX,
            });
            match self.ask(&request, Twice::Yes)? {
                Answer::QueueListing(listing) => {
                    let page = listing.queues.unwrap_or_default();
                    let more = listing.more && !page.is_empty();
                    queues.extend(page);
                    if !more {
                        return Ok(queues);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// State, options and counters of a queue.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`.
    pub fn queue_describe(&mut self, queue: &str) -> Result<QueueDescription, ClientError> {
        let request = Request::QueueDescribe(wire::QueueDescribeT { name: queue.into() });
        match self.ask(&request, Twice::Yes)? {
            Answer::QueueDescription(description) => Ok(description),
            other => Err(unexpected(&other)),
        }
    }

    /// Shows ready messages of the subscription `default` without taking them, after passing over
    /// `skip`. Large bodies are cut.
    ///
    /// # Errors
    /// [`ClientError::Broker`]: `queue_not_found`, `bad_option` for numbers over the limits.
    pub fn queue_peek(
        &mut self,
        queue: &str,
        count_max: u32,
        skip: u64,
    ) -> Result<Peeked, ClientError> {
        let request = wire::QueuePeekT { name: queue.into(), count_max, skip, subscription: None };
        self.peek(request)
    }

    pub(super) fn peek(&mut self, request: wire::QueuePeekT) -> Result<Peeked, ClientError> {
        match self.ask(&Request::QueuePeek(request), Twice::Yes)? {
            Answer::PeekedMessages(peeked) => {
                let messages = peeked.messages.unwrap_or_default();
                Ok(Peeked { messages, more: peeked.more })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// State and counters of the broker.
    ///
    /// # Errors
    /// [`ClientError::Connect`] or [`ClientError::TimedOut`].
    pub fn stats(&mut self) -> Result<Stats, ClientError> {
        match self.ask(&Request::BrokerStats(wire::BrokerStatsT::default()), Twice::Yes)? {
            Answer::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the broker give free space of its spill files back to the file system at once.
    ///
    /// # Errors
    /// [`ClientError::Connect`] or [`ClientError::TimedOut`].
    pub fn trim(&mut self) -> Result<Trimmed, ClientError> {
        match self.ask(&Request::Trim(wire::TrimT::default()), Twice::Yes)? {
            Answer::Trimmed(trimmed) => Ok(trimmed),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn ask(&mut self, request: &Request, twice: Twice) -> Result<Answer, ClientError> {
        let deadline = self.link.clock.after(self.link.options.request_timeout);
        loop {
            self.connect(deadline)?;
            let Some(asked) = self.link.session.request(request) else { continue };
            loop {
                match self.next_event(deadline)? {
                    Event::Answered { correlation, answer } if correlation == asked => {
                        return Ok(*answer);
                    }
                    Event::Refused { correlation, error } if correlation == asked => {
                        return Err(ClientError::Broker(error));
                    }
                    Event::Unanswered { correlation } if correlation == asked => {
                        if twice == Twice::No || self.link.options.reconnect.give_up_after.is_zero()
                        {
                            return Err(ClientError::Lost(LostReason::Closed));
                        }
                        break;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Makes sure that there is a connection whose hello is answered.
    fn connect(&mut self, deadline: Option<Mono>) -> Result<(), ClientError> {
        while !self.link.session.is_connected() {
            self.next_event(deadline)?;
        }
        Ok(())
    }

    /// Waits for the next event, dialling when there is no connection.
    fn next_event(&mut self, deadline: Option<Mono>) -> Result<Event, ClientError> {
        loop {
            self.link.tell();
            match self.link.session.poll_event() {
                Some(Event::Connected(hello)) => {
                    self.server_version = hello.server_version.clone().unwrap_or_default();
                    self.link.connected();
                    return Ok(Event::Connected(hello));
                }
                Some(Event::Lost(reason)) => self.link.drop_connection(reason)?,
                Some(Event::Drain { reason, deadline_ms }) => {
                    self.link.note(ConnectionEvent::Draining { reason: reason.clone() });
                    return Ok(Event::Drain { reason, deadline_ms });
                }
                Some(event) => return Ok(event),
                None => {
                    if deadline.is_some_and(|deadline| self.link.clock.now() >= deadline) {
                        return Err(ClientError::TimedOut);
                    }
                    if self.link.is_down() {
                        self.link.redial(deadline)?;
                    } else if let Err(reason) = self.link.turn(deadline, Room::Fresh) {
                        self.link.drop_connection(reason)?;
                    }
                }
            }
        }
    }
}

pub(super) fn unexpected(answer: &Answer) -> ClientError {
    let text = format!("{:?} answers another request", answer.opcode());
    ClientError::Lost(LostReason::Protocol(text))
}
