//! L2: one shard: an event loop that owns its connections, queues, timers and buffers. Here is the
//! loop; what a frame does is in `dispatch` and `control`, what goes out in `deliver`.
//!
//! One [`Shard::tick`] is one pass, in this order: poll (the thread's one blocking point), disk
//! completions, accept, reads with decode and dispatch, commands, deadlines, deliveries by credit,
//! confirms, the plan of what goes to disk and comes back, one submit of it, one gathered write per
//! connection. Consumers are written before producers: a message
//! is on its way before its confirm is.

mod carry;
pub mod connection;
mod control;
mod core;
mod crossing;
mod deliver;
mod describe;
mod dispatch;
mod gather;
pub mod mailbox;
mod moves;
mod options;
pub mod outbound;
pub mod post;
mod queues;
pub mod recover;
mod redrive;
mod refill;
mod remote;
pub mod report;
pub mod router;
mod settle;
mod spill;
pub(crate) mod store;
mod subscriptions;
mod timers;
mod waiting;

#[cfg(test)]
mod tests;

use crate::base::chunk_pool::{PoolShape, SlabSource};
use crate::base::mailbox::Ring;
use crate::base::slot_map::Key;
use crate::base::time::Now;
use crate::io::{Accepted, Clock, Disk, Net, NetEvent, ReadOutcome, Socket, World};
use crate::limits;
use crate::protocol::frame::{VERSION, preamble};
use crate::queue::Queue;
use crate::queue::memory::Budget;
use crate::shard::connection::Place;
use crate::shard::core::Core;
use crate::storage::spill::{DiskBudget, SpillShape, SpillState, SpillStats};
use mailbox::{Command, Commands};
use post::{Office, Post};
use remote::Session;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use store::{JournalAsks, journal_name};

/// What a shard is told at its start; validated by `config.rs`.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Number of this shard.
    pub shard: u32,
    /// Shards in all.
    pub shards: u32,
    /// Stores of the data directory, of all shards.
    pub stores: u32,
    /// Bytes that the shard may use, over 16 MiB in production.
    pub memory_limit_bytes: u64,
    /// Of these, bytes that chunks may not use.
    pub memory_reserve_bytes: u64,
    /// Largest message that a queue may allow.
    pub message_bytes_max: u64,
    /// Connections at a time.
    pub connections_max: u32,
    /// Asked of every client, if set.
    pub token: Option<String>,
    /// From SIGTERM to the end at the latest.
    pub drain_timeout_ms: u64,
    /// Over so many percent of the memory for messages they are written to disk,
    pub watermark_high: u32,
    /// and until it is under so many.
    pub watermark_low: u32,
    /// Chunk sizes.
    pub pool: PoolShape,
    /// Bytes that one read takes at most.
    pub read_bytes: usize,
    /// For the hello.
    pub hello_timeout_ms: u64,
    /// For a frame that was begun.
    pub frame_timeout_ms: u64,
    /// For a connection that takes none of what waits for it.
    pub stall_timeout_ms: u64,
    /// Bounds of every queue.
    pub bounds: crate::queue::policy::QueueBounds,
    /// Spin instead of sleeping.
    pub busy_poll: bool,
    /// For hello and stats.
    pub server_version: String,
}

impl ShardConfig {
    /// One shard with everything at its limit in `limits.rs`.
    pub fn new(memory_limit_bytes: u64) -> Self {
        ShardConfig {
            shard: 0,
            shards: 1,
            stores: 1,
            memory_limit_bytes,
            memory_reserve_bytes: limits::MEMORY_RESERVE_BYTES as u64,
            message_bytes_max: limits::MESSAGE_BYTES_DEFAULT as u64,
            connections_max: u32::MAX,
            token: None,
            drain_timeout_ms: 5000,
            watermark_high: 70,
            watermark_low: 60,
            pool: PoolShape {
                slab_bytes: limits::SLAB_BYTES,
                class_bytes: limits::CHUNK_CLASS_BYTES.to_vec(),
                header_bytes: limits::CHUNK_HEADER_BYTES,
            },
            read_bytes: limits::READ_BYTES_MAX,
            hello_timeout_ms: limits::HELLO_TIMEOUT_MS,
            frame_timeout_ms: limits::FRAME_TIMEOUT_MS,
            stall_timeout_ms: limits::STALL_TIMEOUT_MS,
            bounds: crate::queue::policy::QueueBounds::default(),
            busy_poll: false,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Whether there is another tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Call [`Shard::tick`] again.
    Running,
    /// Drained; everything is closed.
    Stopped,
}

/// A connection on its way to another shard.
pub struct Adopted<W: World> {
    detached: <W::Net as Net>::Detached,
    session: Session,
}

/// Where connections wait for the shard that they move to: from shard `a` to shard `b`, number
/// `a * shards + b`.
pub type Adoptions<W> = Arc<Vec<Ring<Adopted<W>>>>;

/// Empty rings for so many shards.
pub fn adoptions<W: World>(shards: u32, capacity: usize) -> Adoptions<W> {
    Arc::new((0..shards * shards).map(|_| Ring::new(capacity)).collect())
}

/// See the module.
pub struct Shard<W: World> {
    net: W::Net,
    disk: W::Disk,
    clock: W::Clock,
    commands: Commands,
    core: Core,
    events: Vec<NetEvent>,
    /// Connections with bytes to read, each once.
    readable: Vec<Key>,
    /// Those of this tick, kept for its memory.
    reading: Vec<Key>,
    /// Connection of a socket, by number.
    sockets: Vec<Option<Key>>,
    acceptable: bool,
    /// A partial frame, then what one read brings.
    buffer: Vec<u8>,
    read_bytes: usize,
    busy_poll: bool,
    /// How long the next poll may wait.
    wait: Option<Duration>,
    adoptions: Option<Adoptions<W>>,
}

impl<W: World> Shard<W> {
    /// A shard without queues.
    pub fn new(
        config: ShardConfig,
        net: W::Net,
        disk: W::Disk,
        mut clock: W::Clock,
        slabs: Rc<dyn SlabSource>,
        commands: Commands,
    ) -> Self {
        let frame_bytes = limits::FRAME_HEADER_BYTES + limits::FRAME_PAYLOAD_BYTES_MAX;
        let (read_bytes, busy_poll) = (config.read_bytes, config.busy_poll);
        Shard {
            net,
            disk,
            commands,
            core: Core::new(config, slabs, clock.now()),
            clock,
            events: Vec::with_capacity(1024),
            readable: Vec::new(),
            reading: Vec::new(),
            sockets: Vec::new(),
            acceptable: true,
            buffer: vec![0; frame_bytes + read_bytes],
            read_bytes,
            busy_poll,
            wait: Some(Duration::ZERO),
            adoptions: None,
        }
    }

    /// Makes it one of several shards; before the first tick. `wake` makes the poll of another
    /// shard return.
    pub fn join(&mut self, office: Arc<Office>, adoptions: Adoptions<W>, wake: Box<dyn Fn(usize)>) {
        let config = &self.core.config;
        let (own, common) = (config.shard as usize, Arc::clone(office.budget()));
        let reserve_bytes = config.memory_reserve_bytes;
        let budget = Budget::shared(config.memory_limit_bytes, reserve_bytes, common);
        self.core.join(Post::new(own, office, wake), budget);
        self.adoptions = Some(adoptions);
    }

    /// Lets it write messages to disk, to the file `spill-N.dat` with its number; before the first
    /// tick. All shards share the budget.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open_spill(
        &mut self,
        shape: SpillShape,
        budget: Arc<DiskBudget>,
    ) -> std::io::Result<()> {
        let file = self.disk.open(&format!("spill-{}.dat", self.core.config.shard))?;
        let found_bytes = self.disk.file_bytes(file)?;
        // What stands behind a hole, or is no whole extent, nobody would count.
        let warm_bytes = found_bytes - found_bytes % shape.extent_bytes();
        self.disk.cut(file, warm_bytes)?;
        self.core.open_spill(file, SpillShape { warm_bytes, ..shape }, budget);
        Ok(())
    }

    /// One pass. Blocks only in [`Net::poll`], and there not while anything is left to do.
    ///
    /// # Errors
    /// If the system's poller fails, which ends the shard.
    pub fn tick(&mut self) -> std::io::Result<Status> {
        self.net.poll(self.wait, &mut self.events)?;
        let now = self.clock.now();
        self.core.begin_tick(now);
        self.commands.note_tick(self.core.stats.ticks);
        self.commands.note_spill(self.core.spill_health());
        self.sort_events();
        self.complete_disk();
        self.exchange(now);
        self.accept(now);
        self.read(now);
        self.hand_over();
        self.obey(now);
        self.core.handle_deadlines(now);
        self.core.deliver(now);
        self.core.unblock();
        self.core.confirm();
        self.spill();
        self.flush(now);
        self.core.send_mail();
        self.core.go_on_with_report();
        if self.core.is_drained(now) {
            return Ok(self.stop());
        }
        self.wait = self.next_wait();
        Ok(Status::Running)
    }

    /// How long the next tick may wait for something to do; `None`: until it is woken. Others have
    /// been told that this shard sleeps, unless it is no time at all.
    pub fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// The seam, for the simulator.
    pub fn world(&mut self) -> (&mut W::Net, &mut W::Disk, &mut W::Clock) {
        (&mut self.net, &mut self.disk, &mut self.clock)
    }

    /// Whether other shards have sent something, or have room again for what had to wait, for the
    /// checkers.
    pub fn has_mail(&self) -> bool {
        self.core.post.as_ref().is_some_and(|post| {
            let mut adoptions = self.adoptions_to(post.own(), post.shards());
            post.has_something() || adoptions.any(|ring| !ring.is_empty())
        })
    }

    /// Connections that wait for another shard, for the checkers.
    pub fn parked_count(&self) -> usize {
        self.core.parked.len()
    }

    /// All queues, by name, for the checkers.
    pub fn queues(&self) -> impl Iterator<Item = (&str, &Queue)> {
        self.core.queues()
    }

    /// Bytes used of the memory limit, for the checkers.
    pub fn budget(&self) -> &crate::queue::memory::Budget {
        self.core.budget()
    }

    /// Whether it can spill, and what its file holds, for the checkers.
    pub fn spilling(&self) -> (SpillState, SpillStats) {
        (self.core.spill.state(), self.core.spill.stats())
    }

    /// Bytes charged for what is known of the file, and the peeks that wait for it, for the
    /// checkers.
    pub fn spill_costs(&self) -> (u64, usize) {
        (self.core.spill.charged_bytes() as u64, self.core.waiting.peek_count())
    }

    /// Chunks that are not free, for the checkers.
    pub fn used_chunks(&self) -> usize {
        self.core.memory.used_chunks()
    }

    /// Of each store that has a journal its number and the oldest segment that is needed, for the
    /// checkers.
    pub fn oldest_segments(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.core.stores.iter().filter_map(|store| Some((store.number(), store.oldest_segment()?)))
    }

    fn next_wait(&self) -> Option<Duration> {
        if self.busy_poll || self.acceptable || !self.readable.is_empty() || self.core.has_work() {
            return Some(Duration::ZERO);
        }
        if let Some(post) = &self.core.post {
            // Once it has said that it sleeps, it looks again.
            post.lie_down();
            if self.has_mail() {
                post.rise();
                return Some(Duration::ZERO);
            }
        }
        self.core.next_deadline()
    }

    /// The rings that lead to this shard.
    fn adoptions_to(&self, own: usize, shards: usize) -> impl Iterator<Item = &Ring<Adopted<W>>> {
        let rings = self.adoptions.iter().flat_map(|rings| rings.iter());
        rings.skip(own).step_by(shards)
    }

    /// What other shards have sent, then what had to wait for it.
    fn exchange(&mut self, now: Now) {
        if self.core.post.is_none() {
            return;
        }
        self.core.receive_mail();
        self.adopt(now);
        self.readable.extend(self.core.unpark(now));
    }

    fn adopt(&mut self, now: Now) {
        let Some(rings) = self.adoptions.clone() else { return };
        let Some(post) = &self.core.post else { return };
        let (own, shards) = (post.own(), post.shards());
        for from in post.others() {
            let ring = &rings[from * shards + own];
            let mut taken = 0;
            while taken < limits::ADOPTIONS_MAX
                && let Some(Adopted { detached, session }) = ring.pop()
            {
                taken += 1;
                let Some(socket) = self.net.adopt(detached) else {
                    self.core.forget_connection();
                    continue;
                };
                let key = self.core.handle_adopted(socket, session, now);
                self.settle_in(socket, key);
            }
        }
    }

    /// Connections that named a queue of another shard go there, before anything else of theirs.
    fn hand_over(&mut self) {
        let Some(rings) = &self.adoptions else { return };
        while let Some((key, to)) = self.core.poll_leaving() {
            let Some(post) = &self.core.post else { return };
            let (own, shards) = (post.own(), post.shards());
            let ring = &rings[own * shards + to];
            if ring.is_full() || post.is_ending() {
                self.core.stay_for_now(key);
                continue;
            }
            let Some((socket, session)) = self.core.take_leaving(key) else { continue };
            self.sockets[socket.0 as usize] = None;
            let Some(detached) = self.net.release(socket) else {
                self.core.forget_connection();
                continue;
            };
            // This shard alone fills the ring: there is room.
            let sent = ring.push(Adopted { detached, session });
            debug_assert!(sent.is_ok());
            if let Some(post) = &self.core.post {
                post.ring_bell(to);
            }
        }
    }

    /// What other threads have ordered.
    fn obey(&mut self, now: Now) {
        while let Some(command) = self.commands.pop() {
            match command {
                Command::Drain => {
                    self.net.stop_listening();
                    self.core.drain(now);
                }
                Command::Report(order) => self.core.begin_report(order),
            }
        }
    }

    fn sort_events(&mut self) {
        for event in self.events.drain(..) {
            match event {
                NetEvent::Acceptable => self.acceptable = true,
                NetEvent::Readable { socket, closed } => {
                    if let Some(Some(key)) = self.sockets.get(socket.0 as usize) {
                        self.readable.extend(self.core.note_readable(*key, closed));
                    }
                }
                NetEvent::Writable(socket) => {
                    if let Some(Some(key)) = self.sockets.get(socket.0 as usize) {
                        self.core.flush_later(*key);
                    }
                }
                NetEvent::Woken => {}
            }
        }
    }

    fn complete_disk(&mut self) {
        while let Some(completion) = self.disk.poll_completion() {
            self.core.handle_disk(completion);
        }
    }

    /// What goes to disk and what comes back is planned and handed to the system, all at once.
    fn spill(&mut self) {
        self.write_journals();
        let disk = &mut self.disk;
        self.core.plan_disk(|| disk.free_bytes());
        while let Some(request) = self.core.poll_disk_request() {
            if let Err(request) = disk.submit(request) {
                self.core.return_disk_request(request);
                break;
            }
        }
        disk.flush();
    }

    /// What changed in durable queues goes to their journals.
    fn write_journals(&mut self) {
        self.core.tell_journals();
        while let Some(asked) = self.core.poll_journal() {
            match asked {
                JournalAsks::Make { store, number, tag, file, open } => {
                    let name = journal_name(number, file);
                    let opened = open.map_or_else(|| self.disk.open(&name), Ok);
                    let made = opened.and_then(|id| self.disk.cut(id, 0).map(|()| id));
                    let made = made.map_err(|error| error.kind());
                    self.core.handle_made(store, tag, file, made);
                }
                JournalAsks::Request(request) => {
                    if let Err(request) = self.disk.submit(request) {
                        self.core.return_journal_request(request);
                        return;
                    }
                }
            }
        }
    }

    fn accept(&mut self, now: Now) {
        let mut failed = 0;
        for _ in 0..limits::ACCEPTS_PER_TICK_MAX {
            if !self.acceptable {
                return;
            }
            match self.net.accept() {
                Accepted::Socket(socket, _) => {
                    let key = self.core.handle_connected(socket, now).ok_or_else(|| {
                        let preamble = preamble(VERSION).to_vec();
                        [preamble, self.core.refusal()].concat()
                    });
                    self.settle_in(socket, key);
                }
                Accepted::Shed { closed_one } => {
                    self.core.stats.connections_shed += u64::from(closed_one);
                    self.acceptable = closed_one;
                    self.core.retry_accept(now);
                }
                Accepted::Failed(_) => failed += 1,
                Accepted::Nothing => self.acceptable = false,
            }
        }
        if failed == limits::ACCEPTS_PER_TICK_MAX {
            // Not this or that connection: the listener itself. Look again later, do not spin.
            self.acceptable = false;
            self.core.retry_accept(now);
        }
    }

    /// A socket has its connection, or there is no room for one.
    fn settle_in(&mut self, socket: Socket, key: Result<Key, Vec<u8>>) {
        let index = socket.0 as usize;
        if self.sockets.len() <= index {
            self.sockets.resize(index + 1, None);
        }
        match key {
            Ok(key) => {
                self.sockets[index] = Some(key);
                // What the client sent at once may be there already.
                self.readable.extend(self.core.note_readable(key, false));
            }
            Err(last_bytes) => {
                self.sockets[index] = None;
                // A fresh socket has room for it; if not, the close says enough.
                self.net.write(socket, &[IoSlice::new(&last_bytes)]);
                self.net.close(socket);
            }
        }
    }

    fn read(&mut self, now: Now) {
        self.acceptable |= self.core.take_accept_retry(now);
        std::mem::swap(&mut self.reading, &mut self.readable);
        for nth in 0..self.reading.len() {
            let key = self.reading[nth];
            // A connection with more to read comes again next tick: one read each.
            if self.read_one(key, now) {
                self.readable.extend(self.core.note_readable(key, false));
            }
        }
        self.reading.clear();
    }

    /// Reads once and hands on what is complete. True if there may be more.
    fn read_one(&mut self, key: Key, now: Now) -> bool {
        let Some((socket, at_end)) = self.core.begin_read(key, &mut self.buffer) else {
            return false;
        };
        let kept = self.core.inbox_bytes(key);
        let room = &mut self.buffer[kept..kept + self.read_bytes];
        match self.net.read(socket, room) {
            ReadOutcome::Bytes(count) => {
                self.core.handle_bytes(key, &self.buffer[..kept + count], count, now);
                count == self.read_bytes || at_end
            }
            ReadOutcome::Nothing => false,
            ReadOutcome::Closed | ReadOutcome::Failed(_) => {
                self.close(key);
                false
            }
        }
    }

    fn flush(&mut self, now: Now) {
        while let Some((key, place)) = self.core.poll_flush() {
            let socket = match place {
                Place::Socket(socket) => socket,
                Place::Shard { shard, connection } => {
                    if self.core.send_replies(key, shard, connection) {
                        self.close(key);
                    }
                    continue;
                }
            };
            let Some(out) = self.core.outbound(key) else { continue };
            let waiting = out.unsent_bytes();
            let flushed = out.flush(&mut self.net, socket);
            let sent = waiting - out.unsent_bytes();
            self.core.stats.bytes_out += sent as u64;
            if self.core.handle_flushed(key, flushed, now) {
                self.close(key);
            }
        }
        while let Some(key) = self.core.poll_close() {
            self.close(key);
        }
    }

    fn close(&mut self, key: Key) {
        if let Some(socket) = self.core.handle_closed(key) {
            self.sockets[socket.0 as usize] = None;
            self.net.close(socket);
        }
    }

    fn stop(&mut self) -> Status {
        self.adopt(self.core.now);
        for key in self.core.connection_keys() {
            self.close(key);
        }
        self.core.drop_redrives();
        Status::Stopped
    }
}
