//! What a shard holds, without the world around it: connections, queues, memory, and the lists of
//! what is to do this tick. The loop in `mod.rs` feeds it bytes and takes bytes out.

use crate::base::chunk_pool::{ChunkPool, SlabSource};
use crate::base::deadlines::Deadlines;
use crate::base::slot_map::{Key, SlotMap};
use crate::base::time::{Mono, Now};
use crate::format::change::MoveName;
use crate::io::Socket;
use crate::limits::{
    FRAME_HEADER_BYTES, HANDLES_MAX, READ_AHEAD_CHUNKS_MIN, UNSENT_BYTES_MAX, UNSENT_BYTES_SOFT,
};
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{self, FrameHeader, Opcode};
use crate::protocol::wire;
use crate::queue::Queue;
use crate::queue::counters::Counters;
use crate::queue::memory::{Account, Budget, Memory};
use crate::queue::moved::MoveKey;
use crate::shard::ShardConfig;
use crate::shard::carry::Body;
use crate::shard::connection::{Connection, Place, Stage, Target, error_body};
use crate::shard::deliver::flush_later;
use crate::shard::moves::Move;
use crate::shard::outbound::{Flushed, Outbound};
use crate::shard::post::Post;
use crate::shard::redrive::Redrive;
use crate::shard::report::Reporting;
use crate::shard::router::Route;
use crate::shard::spill::Spill;
use crate::shard::store::Stores;
use crate::shard::timers::Timer;
use crate::shard::waiting::Waiting;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Counters of the shard.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ShardStats {
    pub connections_accepted: u64,
    pub connections_shed: u64,
    pub connections_refused: u64,
    pub protocol_errors: u64,
    pub ticks: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub deleted_messages: u64,
}

/// A queue and whether it stands in the lists.
pub(super) struct QueueSlot {
    pub queue: Queue,
    /// In `active`: may have something to deliver.
    pub active: bool,
    /// In `blocked`.
    pub blocked: bool,
    /// In `short_of_memory`.
    pub short_of_memory: bool,
    /// When it stands in `queue_deadlines`.
    pub armed_at: Option<Mono>,
    /// Where it stands among those that could give something to the disk; 0 for nowhere.
    pub spill_rank: u8,
    pub tail_rank: u8,
    /// Waits for its turn to read from disk.
    pub refilling: bool,
    /// Chunks that it reads ahead.
    pub read_ahead: u32,
    /// Of a durable queue: index of the store that keeps it.
    pub store: Option<usize>,
    /// By which number moves from it name its store.
    pub move_store: u32,
    /// In the store's list of queues that have something to tell the journal.
    pub journaling: bool,
    /// Of a durable queue: in which groups of the journal its messages are, oldest first.
    pub bodies: VecDeque<Body>,
}

impl QueueSlot {
    /// Of a queue just made. Moves from it name their store by this number.
    pub fn new(queue: Queue, move_store: u32) -> Self {
        QueueSlot {
            queue,
            active: false,
            blocked: false,
            short_of_memory: false,
            armed_at: None,
            spill_rank: 0,
            tail_rank: 0,
            refilling: false,
            read_ahead: READ_AHEAD_CHUNKS_MIN,
            store: None,
            move_store,
            journaling: false,
            bodies: VecDeque::new(),
        }
    }

    /// Names a move of one of its messages, for the shard that has it under `queue`.
    pub fn move_key(&self, shard: u32, queue: Key, subscription: Key, sequence: u64) -> MoveKey {
        let number = self.queue.subscription(subscription).map_or(0, |found| found.number());
        let (store, queue_number) = (self.move_store, self.queue.number());
        let name = MoveName { store, queue: queue_number, subscription: number, sequence };
        MoveKey { name, shard, queue, subscription }
    }
}

/// See the module.
pub(super) struct Core {
    pub config: ShardConfig,
    pub connections: SlotMap<Connection>,
    /// Boxed, so that the map of many queues grows without moving them.
    pub queues: SlotMap<Box<QueueSlot>>,
    pub names: BTreeMap<Rc<str>, Key>,
    pub memory: Memory,
    pub deadlines: Deadlines<Timer>,
    /// The next deadline of each queue that has one: one entry each, so none is ever stale.
    pub queue_deadlines: BTreeSet<(Mono, Key)>,
    /// Queues made so far.
    pub queues_made: u64,
    /// Redrives, in the order in which they were asked for; the first is being carried out.
    pub redrives: VecDeque<Redrive>,
    /// What goes to disk and comes back.
    pub spill: Spill,
    /// What keeps durable queues.
    pub stores: Stores,
    /// Requests that wait for it.
    pub waiting: Waiting,
    /// Messages on their way to queues of other shards that found no room; each is charged.
    pub parked_moves: VecDeque<(usize, Box<Move>)>,
    pub stats: ShardStats,
    /// Counters of queues that were deleted.
    pub deleted: Counters,
    pub now: Now,
    pub started: Now,
    /// Queues that may have something to deliver.
    pub active: Vec<Key>,
    /// Queues that paused for want of memory; looked at when some may have come.
    pub short_of_memory: Vec<Key>,
    /// Queues that take nothing; looked at in turn.
    pub blocked: VecDeque<Key>,
    /// Some of `blocked` took again and others were not looked at yet.
    pub unblocking: bool,
    /// Producers that a confirm is due to: queue, producer.
    pub to_confirm: Vec<(Key, Key)>,
    pub flush_list: Vec<Key>,
    flushing: usize,
    to_close: Vec<Key>,
    accept_retry: Option<Mono>,
    /// Set by SIGTERM: since when, and until when at the latest.
    pub draining: Option<(Mono, Mono)>,
    /// The other shards, if there are any.
    pub post: Option<Post>,
    /// Per other shard: the connections that have their sockets there, by their keys there.
    pub remotes: Vec<BTreeMap<Key, Key>>,
    /// Connections whose next frame has to wait.
    pub parked: Vec<Key>,
    /// Connections that move, and where to.
    pub leaving: Vec<(Key, usize)>,
    /// Connections of which another shard is to be told what was sent.
    pub reports: Vec<Key>,
    /// Figures that another thread asked for.
    pub report: Option<Reporting>,
}

/// How long a closing connection may take to read its last frames and go.
pub(super) const LINGER_MS: u64 = 500;
/// How long after it ran out of descriptors the shard tries to accept again.
const ACCEPT_RETRY_MS: u64 = 100;
/// How long clients have at least, after they were told that the broker goes.
const DRAIN_GRACE_MS: u64 = 100;
/// An idle shard keeps so many free slabs.
const SPARE_SLABS: usize = 2;
/// Between two looks at memory to give back.
pub(super) const SHRINK_MS: u64 = 1000;

impl Core {
    pub fn new(config: ShardConfig, slabs: Rc<dyn SlabSource>, now: Now) -> Self {
        let budget = Budget::new(config.memory_limit_bytes, config.memory_reserve_bytes);
        let memory = Memory::new(budget, ChunkPool::new(config.pool.clone(), slabs));
        let mut deadlines = Deadlines::default();
        deadlines.arm(now.mono.plus_ms(SHRINK_MS), Timer::Shrink);
        let spill = Spill::new(&config);
        Core {
            config,
            spill,
            stores: Stores::default(),
            waiting: Waiting::default(),
            connections: SlotMap::default(),
            queues: SlotMap::default(),
            names: BTreeMap::new(),
            memory,
            deadlines,
            queue_deadlines: BTreeSet::new(),
            queues_made: 0,
            redrives: VecDeque::new(),
            parked_moves: VecDeque::new(),
            stats: ShardStats::default(),
            deleted: Counters::default(),
            now,
            started: now,
            active: Vec::new(),
            short_of_memory: Vec::new(),
            unblocking: false,
            blocked: VecDeque::new(),
            to_confirm: Vec::new(),
            flush_list: Vec::new(),
            flushing: 0,
            to_close: Vec::new(),
            accept_retry: None,
            draining: None,
            post: None,
            remotes: Vec::new(),
            parked: Vec::new(),
            leaving: Vec::new(),
            reports: Vec::new(),
            report: None,
        }
    }

    pub fn queues(&self) -> impl Iterator<Item = (&str, &Queue)> {
        self.names.iter().filter_map(|(name, key)| Some((&**name, &self.queues.at(*key)?.queue)))
    }

    pub fn budget(&self) -> &Budget {
        &self.memory.budget
    }

    pub fn connection_keys(&self) -> Vec<Key> {
        self.connections.keys()
    }

    pub fn begin_tick(&mut self, now: Now) {
        self.now = now;
        self.stats.ticks += 1;
    }

    /// Whether a tick would find something to do without waiting.
    pub fn has_work(&self) -> bool {
        !self.active.is_empty()
            || !self.flush_list.is_empty()
            || !self.to_close.is_empty()
            || self.unblocking
            || self.report.is_some()
            || self.stores.has_work()
            || self.can_redrive()
    }

    // ---- accepting ----

    /// A connection was accepted. `None`: there is no room for it; the caller closes it.
    pub fn handle_connected(&mut self, socket: Socket, now: Now) -> Option<Key> {
        self.stats.connections_accepted += 1;
        let max = self.config.connections_max;
        let full = match &self.post {
            Some(post) => !post.admit_connection(max),
            None => self.connections.len() >= max as usize,
        };
        let bytes = size_of::<Connection>();
        if full || self.memory.try_charge(Account::Connections, bytes).is_err() {
            self.stats.connections_refused += 1;
            if !full {
                self.forget_connection();
            }
            return None;
        }
        let mut connection = Connection::new(Place::Socket(socket), now.mono);
        connection.charged_bytes = bytes;
        let key = self.connections.insert(connection);
        self.arm_connection(key, now.mono);
        Some(key)
    }

    /// What a connection is told for which there is no room, behind the preamble.
    pub fn refusal(&self) -> Vec<u8> {
        let (max, memory) = (self.config.connections_max, self.config.memory_limit_bytes);
        let full = match &self.post {
            Some(post) => post.is_full_of_connections(max),
            None => self.connections.len() >= max as usize,
        };
        let (code, name, value) = match full {
            true => (ErrorCode::ConnectionsMax, "connections_max", u64::from(max)),
            false => (ErrorCode::MemoryLimit, "memory_limit", memory),
        };
        let text = format!("the broker takes no more connections: it is at {name}, {value}");
        let (limit_name, limit_value) = (Some(name.to_owned()), value);
        let body = wire::ErrorT { limit_name, limit_value, ..error_body(code, &text) };
        let payload = Answer::Error(body).encode();
        let header = FrameHeader::new(Opcode::Error, 0, payload.len());
        [&header.encode()[..], &payload].concat()
    }

    pub fn retry_accept(&mut self, now: Now) {
        let at = now.mono.plus_ms(ACCEPT_RETRY_MS);
        self.accept_retry = Some(at);
        self.deadlines.arm(at, Timer::Accept);
    }

    pub fn take_accept_retry(&mut self, now: Now) -> bool {
        let due = self.accept_retry.is_some_and(|at| at <= now.mono);
        if due {
            self.accept_retry = None;
        }
        due
    }

    // ---- reading ----

    /// Puts the connection on the list of those to read, if it is not there yet.
    pub fn note_readable(&mut self, key: Key, at_end: bool) -> Option<Key> {
        let connection = self.connections.at_mut(key)?;
        connection.at_end |= at_end;
        (!std::mem::replace(&mut connection.read_due, true)).then_some(key)
    }

    pub fn inbox_bytes(&self, key: Key) -> usize {
        self.connections.at(key).map_or(0, |connection| connection.inbox.len())
    }

    /// Puts what is left of the last read to the front of `buffer`. Gives the socket, and whether
    /// the peer has sent its last byte.
    pub fn begin_read(&mut self, key: Key, buffer: &mut [u8]) -> Option<(Socket, bool)> {
        let connection = self.connections.at_mut(key)?;
        connection.read_due = false;
        let Place::Socket(socket) = connection.place else { return None };
        if connection.parked {
            connection.read_later = true;
            return None;
        }
        buffer[..connection.inbox.len()].copy_from_slice(&connection.inbox);
        Some((socket, connection.at_end))
    }

    /// Bytes of a connection: its inbox, then `fresh` new ones. Handles all complete frames and
    /// keeps the rest.
    pub fn handle_bytes(&mut self, key: Key, bytes: &[u8], fresh: usize, now: Now) {
        self.stats.bytes_in += fresh as u64;
        let Some(connection) = self.connections.at_mut(key) else { return };
        if fresh > 0 {
            connection.heard = now.mono;
        }
        // Until the hello is there, preamble and hello count as one frame.
        if connection.stage == Stage::Open && connection.inbox.is_empty() {
            connection.frame_began = now.mono;
        }
        let used = self.handle_frames(key, bytes);
        let Some(connection) = self.connections.at_mut(key) else { return };
        let rest = &bytes[used..];
        if connection.stage == Stage::Open && used > 0 {
            connection.frame_began = now.mono;
        }
        if matches!(connection.stage, Stage::Closing(_)) {
            connection.inbox.clear();
            return;
        }
        connection.inbox.clear();
        connection.inbox.extend_from_slice(rest);
        self.charge_connection(key);
    }

    /// Handles frame after frame. Returns the bytes used.
    pub fn handle_frames(&mut self, key: Key, bytes: &[u8]) -> usize {
        let mut at = 0;
        while let Some(connection) = self.connections.at_mut(key) {
            let rest = &bytes[at..];
            let skipped = rest.len().min(connection.skip_bytes);
            if matches!(connection.stage, Stage::Closing(_)) {
                return bytes.len();
            }
            if connection.own_unsent_bytes() > UNSENT_BYTES_MAX {
                // One read can ask for far more than it brings; what it asked for so far is all
                // that it may hold, and it is not answered by halves.
                connection.stage = Stage::Closing(self.now.mono);
                self.stats.protocol_errors += 1;
                self.close_later(key);
                return bytes.len();
            }
            if skipped > 0 {
                connection.skip_bytes -= skipped;
                at += skipped;
                continue;
            }
            if connection.stage == Stage::Preamble {
                let Some(preamble) = rest.first_chunk() else { break };
                at += preamble.len();
                self.handle_preamble(key, frame::preamble_version(preamble));
                continue;
            }
            let Some(header) = rest.first_chunk::<FRAME_HEADER_BYTES>() else { break };
            let header = match FrameHeader::decode_from_client(header) {
                Ok(header) => header,
                Err(error) => {
                    self.fail_frame(key, error);
                    continue;
                }
            };
            let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
            if rest.len() < end {
                if self.skips(key, &header, &rest[FRAME_HEADER_BYTES..]) {
                    continue;
                }
                break;
            }
            let payload = &rest[FRAME_HEADER_BYTES..end];
            let route = match self.post {
                Some(_) => self.route(key, &header, payload),
                None => Route::Here,
            };
            match route {
                Route::Here => self.handle_frame(key, &header, payload),
                Route::Done => {}
                Route::Wait => break,
            }
            at += end;
        }
        at
    }

    /// Charges what a connection holds now.
    pub fn charge_connection(&mut self, key: Key) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        let bytes = connection.memory_bytes();
        if bytes == connection.charged_bytes {
            return;
        }
        // Bounded per connection by the limits of frames, handles and unsent bytes.
        let before = std::mem::replace(&mut connection.charged_bytes, bytes);
        self.memory.budget.charge(Account::Connections, bytes);
        self.memory.budget.release(Account::Connections, before);
    }

    // ---- writing ----

    /// Puts the connection on the list of those to flush, if it is not there yet.
    pub fn flush_later(&mut self, key: Key) {
        if let Some(connection) = self.connections.at_mut(key) {
            flush_later(&mut self.flush_list, connection, key);
        }
    }

    /// The connection to flush next, in the order in which they got something to send.
    pub fn poll_flush(&mut self) -> Option<(Key, Place)> {
        while let Some(&key) = self.flush_list.get(self.flushing) {
            self.flushing += 1;
            if let Some(connection) = self.connections.at_mut(key) {
                connection.flush_due = false;
                return Some((key, connection.place));
            }
        }
        self.flush_list.clear();
        self.flushing = 0;
        None
    }

    pub fn outbound(&mut self, key: Key) -> Option<&mut Outbound> {
        self.connections.at_mut(key).map(|connection| &mut connection.out)
    }

    /// A flush ended so. True if the connection has to be closed.
    pub fn handle_flushed(&mut self, key: Key, flushed: Flushed, now: Now) -> bool {
        self.note_sent(key);
        let Some(connection) = self.connections.at_mut(key) else { return false };
        let progress = match flushed {
            Flushed::Failed => return true,
            Flushed::All => true,
            Flushed::Part(sent) => sent > 0,
        };
        if progress {
            connection.said = now.mono;
        }
        connection.stalled_since = match flushed {
            Flushed::All | Flushed::Failed => None,
            Flushed::Part(0) => connection.stalled_since.or(Some(now.mono)),
            Flushed::Part(_) => Some(now.mono),
        };
        if connection.own_unsent_bytes() > UNSENT_BYTES_MAX {
            self.stats.protocol_errors += 1;
            return true;
        }
        let roomy = connection.out.unsent_bytes() < UNSENT_BYTES_SOFT / 2;
        if roomy && !connection.passed_over.get_mut().is_empty() {
            self.wake_consumers(key);
        }
        self.charge_connection(key);
        false
    }

    /// The connection's consumers were passed over while it was full: their turn again.
    pub(super) fn wake_consumers(&mut self, key: Key) {
        let Some(connection) = self.connections.at(key) else { return };
        for handle in connection.passed_over.borrow_mut().drain(..) {
            if let Some(Target::Consumer { queue, consumer }) = connection.target(handle)
                && let Some(slot) = self.queues.at_mut(queue)
            {
                slot.queue.handle_unstalled(consumer);
                activate(&mut self.active, slot, queue);
            }
        }
    }

    /// Marks a queue as one that may have something to deliver.
    pub fn activate(&mut self, queue: Key) {
        if let Some(slot) = self.queues.at_mut(queue) {
            activate(&mut self.active, slot, queue);
        }
    }

    // ---- closing ----

    /// Sends a fatal error; the connection is closed once it is on its way.
    pub fn fail(&mut self, key: Key, code: ErrorCode, text: &str) {
        debug_assert!(code.is_fatal());
        self.stats.protocol_errors += 1;
        let until = Stage::Closing(self.now.mono.plus_ms(LINGER_MS));
        if let Some(connection) = self.connections.at_mut(key) {
            if connection.stage == Stage::Preamble {
                connection.out.push(&frame::preamble(frame::VERSION));
            }
            connection.send_error(code, text, 0, 0);
            connection.stage = until;
            connection.inbox = Vec::new();
        }
        self.deadlines.arm(self.now.mono.plus_ms(LINGER_MS), Timer::Connection(key));
        self.close_handles(key);
        self.flush_later(key);
    }

    /// Closes it without a word at the end of this tick.
    pub fn close_later(&mut self, key: Key) {
        self.to_close.push(key);
    }

    pub fn poll_close(&mut self) -> Option<Key> {
        self.to_close.pop()
    }

    /// The connection is gone: its producers are closed, its consumers return what they have.
    pub fn handle_closed(&mut self, key: Key) -> Option<Socket> {
        self.close_handles(key);
        let connection = self.connections.remove(key)?;
        self.memory.budget.release(Account::Connections, connection.charged_bytes);
        match connection.place {
            Place::Socket(socket) => {
                self.forget_connection();
                Some(socket)
            }
            Place::Shard { shard, connection } => {
                self.end_remote(shard, connection);
                None
            }
        }
    }

    pub(super) fn close_handles(&mut self, key: Key) {
        self.hang_up(key);
        // Consumers of one queue in one go: the last of them leaves what they had to the others.
        for _ in 0..HANDLES_MAX {
            let Some(connection) = self.connections.at_mut(key) else { return };
            let Some(&(handle, _)) = connection.handles().last() else { return };
            self.close_handle(key, handle);
        }
    }

    /// Closes one handle of a connection. False if it is not open.
    pub fn close_handle(&mut self, key: Key, handle: u32) -> bool {
        let target = self.connections.at_mut(key).and_then(|c| c.close_handle(handle));
        match target {
            Some(Target::Producer { queue, producer }) => {
                if let Some(slot) = self.queues.at_mut(queue) {
                    slot.queue.close_producer(producer, &mut self.memory);
                }
            }
            Some(Target::Consumer { queue, consumer }) => {
                if let Some(slot) = self.queues.at_mut(queue) {
                    slot.queue.close_consumer(consumer, self.now, &mut self.memory);
                    activate(&mut self.active, slot, queue);
                }
            }
            None => return false,
        }
        true
    }

    // ---- draining ----

    /// SIGTERM: tells every client; what they still ack is taken until the end.
    pub fn drain(&mut self, now: Now) {
        if self.draining.is_some() {
            return;
        }
        let until = now.mono.plus_ms(self.config.drain_timeout_ms);
        self.draining = Some((now.mono, until));
        self.deadlines.arm(until, Timer::Drain);
        let body = Answer::Drain(wire::DrainT {
            reason: Some("the broker is going down".to_owned()),
            deadline_ms: self.config.drain_timeout_ms as u32,
        });
        for key in self.connections.keys() {
            // What is elsewhere is told there.
            if let Some(connection) = self.connections.at_mut(key)
                && connection.stage == Stage::Open
                && matches!(connection.place, Place::Socket(_))
            {
                connection.send_answer(&body, 0, 0);
            }
            self.flush_later(key);
        }
    }

    /// Whether a drain is over: nothing is in flight, on its way to another queue or unsent, or its
    /// time is up.
    pub fn is_drained(&mut self, now: Now) -> bool {
        let Some((since, until)) = self.draining else { return false };
        if now.mono >= until {
            return self.post.as_ref().is_none_or(|post| post.may_end(false, true));
        }
        if now.mono < since.plus_ms(DRAIN_GRACE_MS) {
            self.deadlines.arm(since.plus_ms(DRAIN_GRACE_MS), Timer::Drain);
            return false;
        }
        let quiet = self.to_confirm.is_empty()
            && self.redrives.is_empty()
            && self.memory.budget.used_by(Account::Moves) == 0
            && self.stores.is_idle()
            && self.connections.iter().all(|(_, c)| c.out.unsent_bytes() == 0)
            && self.queues.iter().all(|(_, slot)| slot.queue.in_flight() == 0);
        let quiet = quiet && !self.has_work() && self.parked.is_empty();
        match &self.post {
            Some(post) => post.may_end(quiet && post.is_idle(), false),
            None => quiet,
        }
    }

    /// Free slabs go back to the system while little is held.
    pub fn shrink(&mut self) {
        self.memory.shrink(SPARE_SLABS);
    }

    fn handle_preamble(&mut self, key: Key, version: Option<u16>) {
        let known = version == Some(frame::VERSION);
        if let Some(connection) = self.connections.at_mut(key) {
            let answered = if known { frame::VERSION } else { 0 };
            connection.out.push(&frame::preamble(answered));
            connection.stage = Stage::Hello;
        }
        self.flush_later(key);
        match version {
            Some(_) if known => {}
            Some(version) => {
                let text = format!("protocol version {version} is not spoken here, only 1");
                self.fail(key, ErrorCode::UnsupportedVersion, &text);
            }
            None => {
                let text = "the first bytes are not a Forebay preamble; is this the right port?";
                self.fail(key, ErrorCode::BadPreamble, text);
            }
        }
    }

    fn fail_frame(&mut self, key: Key, error: frame::FrameError) {
        let code = match error {
            frame::FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
            frame::FrameError::Reserved => ErrorCode::BadFrame,
        };
        self.fail(key, code, &error.to_string());
    }

    /// Room for the body of a publish is made before it is read. Where there is none it is refused
    /// by its header, and the body is thrown away as it comes.
    fn skips(&mut self, key: Key, header: &FrameHeader, body: &[u8]) -> bool {
        let bytes = header.payload_bytes as usize;
        let is_publish = header.opcode == Opcode::Publish as u8;
        let abroad = self.connections.at(key).and_then(|c| c.abroad(header.handle));
        let fits = bytes as u64 <= self.memory.budget.free_for_leases();
        // What is for another shard is refused there; here it is bounded by the frame.
        if !is_publish || fits || abroad.is_some() {
            return false;
        }
        let front_bytes = crate::limits::BATCH_HEADER_BYTES + crate::limits::RECORD_HEADER_BYTES;
        if body.len() < front_bytes.min(bytes) {
            return false;
        }
        self.refuse_unread(key, header, body);
        if let Some(connection) = self.connections.at_mut(key) {
            connection.skip_bytes = FRAME_HEADER_BYTES + bytes;
        }
        true
    }
}

/// Marks a queue as one that may have something to deliver.
pub(super) fn activate(active: &mut Vec<Key>, slot: &mut QueueSlot, queue: Key) {
    if !std::mem::replace(&mut slot.active, true) {
        active.push(queue);
    }
}
