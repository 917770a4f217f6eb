//! The sans-IO session of one connection to a broker, kept over reconnects: it knows the protocol
//! and nothing of sockets, threads or clocks.
//!
//! What happens goes in by `handle_*`, what the caller wants by verbs (`open_producer`, `publish`,
//! `send`, `credit`, `ack`, `nack`, `extend`, `pull`, `request`), what comes out is polled. After
//! anything went in:
//!
//! 1. [`Session::poll_event`] until `None`; runs of delivered messages stay readable until more
//!    bytes are handled;
//! 2. write what [`Session::transmit`] gives, tell by [`Session::transmitted`];
//! 3. call [`Session::handle_timeout`] when the time of [`Session::poll_timeout`] has come.
//!
//! After [`Event::Lost`] the socket is to be closed. [`Session::handle_disconnected`] keeps
//! producers with their unconfirmed messages, and consumers; [`Session::handle_connected`] opens
//! them again on the next connection, drops what the broker has, sends the rest again. Deliveries
//! of the old connection are the broker's again, so their acks are dropped as late.
//!
//! ```
//! use forebay::base::time::Mono;
//! use forebay::client::session::{ProducerSettings, Session, SessionConfig};
//!
//! let mut session = Session::new(SessionConfig::default());
//! let settings = ProducerSettings { queue: "q".into(), producer_id: 7, batch_bytes: 64 * 1024 };
//! let producer = session.open_producer(settings).expect("the first handle is free");
//! session.publish(producer, &[], false, b"hello")?;
//! session.send(producer);
//!
//! // A connection was made: preamble, hello and open go out together; the message follows when
//! // the broker has answered.
//! session.handle_connected(Mono(0));
//! let mut to_broker = Vec::new();
//! session.poll_transmit(Mono(0), &mut to_broker);
//! assert_eq!(&to_broker[..4], b"FBAY");
//! # Ok::<(), forebay::client::ClientError>(())
//! ```

mod batch;
pub(crate) mod consumer;
mod consuming;
mod dispatch;
mod event;
mod input;
mod leases;
mod output;
mod producer;
#[cfg(test)]
mod tests;

pub use consumer::ConsumerSettings;
pub use consuming::Refusal;
pub use event::{Event, Large, Run};
pub use producer::ProducerSettings;

use crate::base::prng::Prng;
use crate::base::time::Mono;
use crate::client::{BrokerError, ClientError, LostReason};
use crate::format::properties::PropertiesError;
use crate::format::record::Records;
use crate::limits::{HANDLES_MAX, MESSAGE_BYTES_MAX, PROPERTIES_BYTES_MAX};
use crate::protocol::control::Request;
use crate::protocol::frame::{self, Opcode};
use crate::protocol::hot::AckDone;
use crate::protocol::wire;
use consumer::{Consumer, ConsumerPhase};
use input::Input;
use output::Output;
use producer::{Hold, Phase, Producer};
use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

/// The property that a message in fragments has more than the caller's own.
const LENGTH_PROPERTY_BYTES: usize = 3 + 8;

/// What a session says in its hello, and how it watches its peer.
#[derive(Clone, Debug, Default)]
pub struct SessionConfig {
    /// Shown by the broker where it lists connections.
    pub client_name: String,
    /// The broker's token, if it wants one.
    pub token: Option<String>,
    /// A queue whose home shard shall take the connection.
    pub attach: Option<String>,
    /// Asks the broker to expect, and to give, a sign of life this often; 0: not.
    pub heartbeat_ms: u32,
    /// After so long without a byte the broker is asked to answer; after as long again it is
    /// given up. 0: never.
    pub probe_ms: u32,
    /// For producer ids that replace forgotten ones.
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No connection.
    Down,
    /// The broker's preamble is expected.
    Preamble,
    /// The answer to hello is expected.
    Greeting,
    /// All is well.
    Up,
    /// An [`Event::Lost`] was given; what still comes is ignored.
    Dead,
}

/// What a correlation stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Hello,
    Open(u32),
    Close(u32),
    Request,
    Ping,
    /// A sign of life; the answer means nothing more.
    Probe,
    /// Finds out whether a full queue blocks or rejects.
    AskBlocked(u32),
    /// So many frames of acks and nacks are not answered yet.
    Ack {
        parts: u32,
        done: AckDone,
    },
    /// One of these frames.
    AckPart(u32),
    /// A ping in the place of an ack without ranges.
    AckBarrier,
    Pull(u32),
}

enum Slot {
    Producer(Box<Producer>),
    Consumer(Box<Consumer>),
}

/// The session. See the module for the order of calls.
pub struct Session {
    config: SessionConfig,
    prng: Prng,
    state: State,
    /// Counts connections.
    connection: u32,
    correlation_last: u32,
    pending: BTreeMap<u32, Pending>,
    /// By handle - 1.
    slots: Vec<Option<Slot>>,
    input: Input,
    output: Output,
    events: VecDeque<Event>,
    /// Some consumer has acks or credit to send.
    consumers_dirty: bool,
    /// What the broker granted in its hello; 0: none.
    heartbeat_ms: u32,
    /// The shard of the broker that has the connection.
    shard: u32,
    heard_at: Mono,
    sent_at: Mono,
    /// When the broker was asked for a sign of life that has not come.
    probed_at: Option<Mono>,
}

impl Session {
    /// A session without a connection.
    pub fn new(config: SessionConfig) -> Session {
        let prng = Prng::new(config.seed);
        Session {
            config,
            prng,
            state: State::Down,
            connection: 0,
            correlation_last: 0,
            pending: BTreeMap::new(),
            slots: Vec::new(),
            input: Input::new(),
            output: Output::default(),
            events: VecDeque::new(),
            consumers_dirty: false,
            heartbeat_ms: 0,
            shard: 0,
            heard_at: Mono::default(),
            sent_at: Mono::default(),
            probed_at: None,
        }
    }

    // ---- what happened ----

    /// A connection was made: says hello and opens again what was open.
    pub fn handle_connected(&mut self, now: Mono) {
        assert!(self.state == State::Down, "the old connection is disconnected first");
        self.state = State::Preamble;
        self.connection += 1;
        self.input.clear();
        self.output.clear();
        (self.heard_at, self.sent_at, self.probed_at) = (now, now, None);
        self.heartbeat_ms = 0;
        self.output.raw(&frame::preamble(frame::VERSION));
        let hello = Request::Hello(wire::HelloT {
            client_name: Some(self.config.client_name.clone()),
            token: self.config.token.clone(),
            features: 0,
            attach: self.config.attach.clone(),
            heartbeat_ms: self.config.heartbeat_ms,
        });
        self.send_request(&hello, 0, Pending::Hello);
        for at in 0..self.slots.len() {
            self.reopen(at as u32 + 1);
        }
    }

    /// The connection ended. Requests that were not answered are reported; producers and consumers
    /// wait for the next connection.
    pub fn handle_disconnected(&mut self) {
        self.state = State::Down;
        self.output.clear();
        self.consumers_dirty = false;
        for (correlation, pending) in std::mem::take(&mut self.pending) {
            let asked = matches!(
                pending,
                Pending::Request
                    | Pending::Ping
                    | Pending::Ack { .. }
                    | Pending::AckBarrier
                    | Pending::Pull(_)
            );
            if asked {
                self.events.push_back(Event::Unanswered { correlation });
            }
        }
        for at in 0..self.slots.len() {
            let closing = match &mut self.slots[at] {
                Some(Slot::Producer(producer)) => {
                    let closing = producer.phase == Phase::Closing;
                    producer.went_down();
                    closing
                }
                Some(Slot::Consumer(consumer)) => {
                    let closing = consumer.phase == ConsumerPhase::Closing;
                    consumer.went_down();
                    closing
                }
                None => false,
            };
            if closing {
                self.slots[at] = None;
                self.events.push_back(Event::Closed { handle: at as u32 + 1 });
            }
        }
    }

    /// Bytes came: takes as many as there is room for, and says how many. Give it the rest after
    /// the events were polled.
    pub fn handle_bytes(&mut self, now: Mono, bytes: &[u8]) -> usize {
        let room = self.input_room();
        let take = room.len().min(bytes.len());
        room[..take].copy_from_slice(&bytes[..take]);
        self.handle_received(now, take);
        take
    }

    /// Where a driver may read to, so that nothing is copied: then
    /// [`handle_received`](Session::handle_received). Never empty. Runs delivered before are gone.
    pub fn input_room(&mut self) -> &mut [u8] {
        self.input.room()
    }

    /// As [`input_room`](Session::input_room), but leaves delivered runs in place; may be empty.
    pub fn input_room_behind(&mut self) -> &mut [u8] {
        self.input.room_behind()
    }

    /// So many bytes were read into the room.
    pub fn handle_received(&mut self, now: Mono, bytes: usize) {
        if self.state == State::Down || bytes == 0 {
            return;
        }
        self.heard_at = now;
        self.probed_at = None;
        self.input.filled(bytes);
        self.take_frames(now);
    }

    /// The time of [`poll_timeout`](Session::poll_timeout) has come, or may have. Bytes that have
    /// arrived are to be handled before, or a live broker may be taken for a dead one.
    pub fn handle_timeout(&mut self, now: Mono) {
        for at in 0..self.slots.len() {
            let Some(Slot::Producer(producer)) = &mut self.slots[at] else { continue };
            if matches!(producer.hold, Hold::Until(at) if at <= now) {
                producer.hold = Hold::Nothing;
                producer.pump(&mut self.output);
            }
        }
        if self.state != State::Up {
            return;
        }
        self.extend_due(now);
        let probe_ms = u64::from(self.config.probe_ms);
        if probe_ms > 0 {
            match self.probed_at {
                Some(at) if at.plus_ms(probe_ms) <= now => return self.lost(LostReason::Silent),
                None if self.heard_at.plus_ms(probe_ms) <= now => {
                    self.probed_at = Some(now);
                    self.send_ping(Pending::Probe);
                }
                _ => {}
            }
        }
        if self.heartbeat_due().is_some_and(|at| at <= now) && self.output.is_empty() {
            self.sent_at = now;
            self.send_ping(Pending::Probe);
        }
    }

    /// When [`handle_timeout`](Session::handle_timeout) wants to be called.
    pub fn poll_timeout(&self) -> Option<Mono> {
        let holds = self.slots.iter().filter_map(|slot| match slot {
            Some(Slot::Producer(producer)) => match producer.hold {
                Hold::Until(at) => Some(at),
                _ => None,
            },
            _ => None,
        });
        let probe_ms = u64::from(self.config.probe_ms);
        let probe = (self.state == State::Up && probe_ms > 0)
            .then(|| self.probed_at.unwrap_or(self.heard_at).plus_ms(probe_ms));
        holds.chain(probe).chain(self.heartbeat_due()).chain(self.extend_at()).min()
    }

    fn heartbeat_due(&self) -> Option<Mono> {
        // Half of what was promised, so that a late timer does not cost the connection.
        (self.state == State::Up && self.heartbeat_ms > 0)
            .then(|| self.sent_at.plus_ms(u64::from(self.heartbeat_ms / 2)))
    }

    // ---- what comes out ----

    /// The next thing that the caller must know.
    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Fills `slices` with bytes to send, in order, and gives how many it filled.
    pub fn transmit<'a>(&'a mut self, slices: &mut [IoSlice<'a>]) -> usize {
        self.flush_consumers(0);
        self.output.slices(slices)
    }

    /// So many bytes of what [`transmit`](Session::transmit) gave were sent.
    pub fn transmitted(&mut self, now: Mono, bytes: usize) {
        self.sent_at = now;
        self.output.sent(bytes);
    }

    /// Whether there is something to send.
    pub fn wants_transmit(&self) -> bool {
        self.consumers_dirty || !self.output.is_empty()
    }

    /// Appends all that is to be sent to `bytes`; for callers who do not mind the copy.
    pub fn poll_transmit(&mut self, now: Mono, bytes: &mut Vec<u8>) {
        while self.wants_transmit() {
            let mut slices = [IoSlice::new(&[]); 16];
            let count = self.transmit(&mut slices);
            let sent = slices[..count].iter().map(|slice| {
                bytes.extend_from_slice(slice);
                slice.len()
            });
            let sent = sent.sum();
            self.transmitted(now, sent);
        }
    }

    /// The records of a delivered run.
    ///
    /// # Panics
    /// If bytes were handled since the run was reported: its place may have been overwritten.
    #[inline]
    pub fn records(&self, run: &Run) -> &[u8] {
        assert!(run.generation == self.input.generation(), "the run was overwritten");
        self.input.slice(run.start..run.end)
    }

    /// The messages of a delivered run, one by one. Panics as [`records`](Session::records).
    pub fn messages<'a>(&'a self, run: &Run) -> Records<'a> {
        Records::new(self.records(run))
    }

    /// Whether the broker has answered the hello of the present connection.
    pub fn is_connected(&self) -> bool {
        self.state == State::Up
    }

    /// The shard of the broker that has the connection, as its hello says.
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// Whether the queue of a producer or consumer that is open has its home on the shard of this
    /// connection, so that nothing of it crosses shards.
    pub fn is_at_home(&self, handle: u32) -> bool {
        match self.slots.get(handle as usize - 1) {
            Some(Some(Slot::Producer(producer))) => producer.home_shard == self.shard,
            Some(Some(Slot::Consumer(consumer))) => consumer.home_shard == self.shard,
            _ => false,
        }
    }

    /// Which connection this is, from 1; deliveries and acks name it.
    pub fn connection(&self) -> u32 {
        self.connection
    }

    // ---- requests ----

    /// Sends a request; its answer comes as [`Event::Answered`] or [`Event::Refused`] with this
    /// correlation. `None` without a connection.
    pub fn request(&mut self, request: &Request) -> Option<u32> {
        self.is_connected().then(|| self.send_request(request, 0, Pending::Request))
    }

    /// Asks for a sign of life: [`Event::Pong`]. `None` without a connection.
    pub fn ping(&mut self) -> Option<u32> {
        self.is_connected().then(|| self.send_ping(Pending::Ping))
    }

    // ---- producers ----

    /// Makes a producer; opened at once, or with the next connection. `None` if there are as many
    /// handles as there may be.
    pub fn open_producer(&mut self, settings: ProducerSettings) -> Option<u32> {
        let at = self.free_slot()?;
        let handle = at as u32 + 1;
        self.slots[at] = Some(Slot::Producer(Box::new(Producer::new(handle, settings))));
        self.reopen(handle);
        Some(handle)
    }

    /// Adds a message to what is gathered and gives its ordinal: messages of a producer count from
    /// 1, and [`Event::Confirmed`] and [`Event::PublishFailed`] name them so. A full batch is sent
    /// when the window allows; for the rest, [`send`](Session::send).
    ///
    /// # Errors
    /// [`ClientError::MessageTooLarge`], [`ClientError::Properties`] if a large message's
    /// properties leave no room for its length. Nothing was taken.
    ///
    /// # Panics
    /// If `handle` is no producer; so also below.
    #[inline]
    pub fn publish(
        &mut self,
        handle: u32,
        properties: &[u8],
        concerns_broker: bool,
        body: &[u8],
    ) -> Result<u64, ClientError> {
        self.add(handle, properties, concerns_broker, body).map(|(ordinal, _)| ordinal)
    }

    /// As [`publish`](Session::publish); true if that closed a batch.
    #[inline]
    pub(crate) fn add(
        &mut self,
        handle: u32,
        properties: &[u8],
        concerns_broker: bool,
        body: &[u8],
    ) -> Result<(u64, bool), ClientError> {
        let Some(Some(Slot::Producer(producer))) = self.slots.get_mut(handle as usize - 1) else {
            panic!("handle {handle} is no producer");
        };
        let limit_bytes = match producer.message_bytes_max {
            0 => MESSAGE_BYTES_MAX as u64,
            known => known,
        };
        let bytes = (properties.len() + body.len()) as u64;
        if bytes > limit_bytes {
            return Err(ClientError::MessageTooLarge { bytes, limit_bytes });
        }
        if properties.len() > PROPERTIES_BYTES_MAX - LENGTH_PROPERTY_BYTES {
            return Err(PropertiesError::TooLarge.into());
        }
        let closed = producer.push(properties, concerns_broker, body);
        if closed {
            producer.pump(&mut self.output);
        }
        Ok((producer.ordinal_last(), closed))
    }

    /// What is gathered goes out as soon as the window allows.
    #[inline]
    pub fn send(&mut self, handle: u32) {
        let Some(Some(Slot::Producer(producer))) = self.slots.get_mut(handle as usize - 1) else {
            panic!("handle {handle} is no producer");
        };
        producer.want_send();
        producer.pump(&mut self.output);
    }

    /// How a producer is doing.
    #[inline]
    pub fn producer(&self, handle: u32) -> ProducerView {
        let Some(Some(Slot::Producer(producer))) = self.slots.get(handle as usize - 1) else {
            panic!("handle {handle} is no producer");
        };
        ProducerView {
            open: producer.phase == Phase::Open,
            blocked: producer.hold == Hold::Blocked,
            can_send: producer.can_send(),
            ordinal_last: producer.ordinal_last(),
            answered_ordinal: producer.answered_ordinal(),
            outstanding_bytes: producer.outstanding_bytes(),
            gathered: producer.gathered(),
            batches_in_flight: producer.in_flight(),
            producer_id: producer.settings.producer_id,
        }
    }

    /// Gives up all messages of a producer that are not answered: `error` is their answer.
    pub fn abandon(&mut self, handle: u32, error: &BrokerError) {
        let Some(Some(Slot::Producer(producer))) = self.slots.get_mut(handle as usize - 1) else {
            panic!("handle {handle} is no producer");
        };
        if let Some((first, last)) = producer.abandon() {
            let error = error.clone();
            self.events.push_back(Event::PublishFailed { handle, first, last, error });
        }
    }

    // ---- both ----

    /// Opens a producer or consumer that is down. Does nothing without a connection, for the next
    /// one opens it, or when it is not down.
    pub fn reopen(&mut self, handle: u32) {
        if matches!(self.state, State::Down | State::Dead) {
            return;
        }
        let request = match self.slots.get_mut(handle as usize - 1) {
            Some(Some(Slot::Producer(producer))) if producer.phase == Phase::Down => {
                producer.phase = Phase::Opening;
                Request::ProducerOpen(wire::ProducerOpenT {
                    queue: producer.settings.queue.clone(),
                    producer_id: producer.settings.producer_id,
                    next_sequence: producer.next_sequence_to_open(),
                })
            }
            Some(Some(Slot::Consumer(consumer))) if consumer.phase == ConsumerPhase::Down => {
                consumer.phase = ConsumerPhase::Opening;
                let (credit_messages, credit_bytes) = consumer.credit_to_open();
                Request::ConsumerOpen(wire::ConsumerOpenT {
                    queue: consumer.settings.queue.clone(),
                    subscription: Some(consumer.settings.subscription.clone()),
                    auto_ack: consumer.settings.auto_ack,
                    checksum: consumer.settings.checksum,
                    credit_messages,
                    credit_bytes,
                    lease_ms: consumer.settings.lease_ms,
                    unacked_max: consumer.settings.unacked_max,
                })
            }
            _ => return,
        };
        self.send_request(&request, handle, Pending::Open(handle));
    }

    /// Closes a producer or consumer: [`Event::Closed`] follows, and the handle is free. A
    /// producer's unanswered messages are forgotten; a consumer's unacked ones go back.
    pub fn close(&mut self, handle: u32) {
        let at = handle as usize - 1;
        let (opcode, open) = match self.slots.get_mut(at) {
            Some(Some(Slot::Producer(producer))) => {
                let open = !matches!(producer.phase, Phase::Down);
                producer.phase = Phase::Closing;
                (Opcode::ProducerClose, open)
            }
            Some(Some(Slot::Consumer(_))) => {
                self.flush_consumers(0);
                let consumer = self.consumer(handle);
                let open = consumer.phase != ConsumerPhase::Down;
                consumer.phase = ConsumerPhase::Closing;
                (Opcode::ConsumerClose, open)
            }
            _ => return,
        };
        if open && !matches!(self.state, State::Down | State::Dead) {
            let correlation = self.next_correlation(Pending::Close(handle));
            self.output.frame(opcode, handle, correlation, &[]);
        } else {
            self.slots[at] = None;
            self.events.push_back(Event::Closed { handle });
        }
    }

    fn free_slot(&mut self) -> Option<usize> {
        if let Some(at) = self.slots.iter().position(Option::is_none) {
            return Some(at);
        }
        if self.slots.len() == HANDLES_MAX {
            return None;
        }
        self.slots.push(None);
        Some(self.slots.len() - 1)
    }

    // ---- sending ----

    fn next_correlation(&mut self, pending: Pending) -> u32 {
        loop {
            self.correlation_last = self.correlation_last.checked_add(1).unwrap_or(1);
            if let std::collections::btree_map::Entry::Vacant(entry) =
                self.pending.entry(self.correlation_last)
            {
                entry.insert(pending);
                return self.correlation_last;
            }
        }
    }

    fn send_request(&mut self, request: &Request, handle: u32, pending: Pending) -> u32 {
        let correlation = self.next_correlation(pending);
        self.output.frame(request.opcode(), handle, correlation, &request.encode());
        correlation
    }

    fn send_ping(&mut self, pending: Pending) -> u32 {
        let correlation = self.next_correlation(pending);
        self.output.frame(Opcode::Ping, 0, correlation, &[]);
        correlation
    }

    fn lost(&mut self, reason: LostReason) {
        self.state = State::Dead;
        self.output.clear();
        self.events.push_back(Event::Lost(reason));
    }
}

/// How a producer is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducerView {
    /// The broker has it open.
    pub open: bool,
    /// The queue takes nothing for now.
    pub blocked: bool,
    /// What is gathered would be sent now.
    pub can_send: bool,
    /// Ordinal of the last message published.
    pub ordinal_last: u64,
    /// All messages up to here are answered.
    pub answered_ordinal: u64,
    /// Bytes kept: gathered, waiting, unconfirmed.
    pub outstanding_bytes: usize,
    /// Messages gathered, not in a batch yet.
    pub gathered: u32,
    /// Batches sent and not confirmed.
    pub batches_in_flight: usize,
    /// The producer id; another one after [`Event::ProducerRenewed`].
    pub producer_id: u64,
}
