//! The simulated network: TCP as the broker sees it through [`crate::io::Net`], and as the clients
//! see it from the other side. Bytes arrive in pieces of the seed's choosing, directions stand
//! still, connections are reset, descriptors run out. Readiness is edge-triggered in the least
//! helpful way that the trait allows: an event that the shard did not earn never comes.

use crate::base::prng::Prng;
use crate::io::{Accepted, Net, NetEvent, ReadOutcome, Socket, WriteOutcome};
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// Names a connection for as long as the run lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineId(pub u64);

/// One direction of a connection.
struct Pipe {
    bytes: VecDeque<u8>,
    /// How many of them the reader may see.
    arrived: usize,
    room: usize,
    stalled_until_ns: u64,
    /// The writer sent its last byte, and whether the reader may know.
    ended: bool,
    end_arrived: bool,
    /// Bytes that the reader has taken.
    taken_total: u64,
}

impl Pipe {
    fn new(room: usize) -> Pipe {
        Pipe {
            bytes: VecDeque::new(),
            arrived: 0,
            room,
            stalled_until_ns: 0,
            ended: false,
            end_arrived: false,
            taken_total: 0,
        }
    }

    /// Takes what fits of `bytes`.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let fits = bytes.len().min(self.room - self.bytes.len());
        self.bytes.extend(&bytes[..fits]);
        fits
    }

    fn take(&mut self, buffer: &mut [u8]) -> usize {
        let wanted = buffer.len().min(self.arrived);
        let (front, back) = self.bytes.as_slices();
        let first = wanted.min(front.len());
        buffer[..first].copy_from_slice(&front[..first]);
        buffer[first..wanted].copy_from_slice(&back[..wanted - first]);
        self.bytes.drain(..wanted);
        self.arrived -= wanted;
        self.taken_total += wanted as u64;
        wanted
    }

    fn moves(&self) -> bool {
        self.arrived < self.bytes.len() || (self.ended && !self.end_arrived)
    }
}

/// What a client's end of a connection has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineState {
    /// Bytes may come.
    Open,
    /// The broker sent its last byte, and all were read.
    Ended,
    /// Reset.
    Reset,
}

struct Line {
    to_broker: Pipe,
    to_client: Pipe,
    /// The shard that has it, and its number there.
    socket: Option<(usize, Socket)>,
    /// On its way between two shards.
    moving: bool,
    /// The broker never closed it, and no fault broke it.
    reset: bool,
    broker_closed: bool,
    client_closed: bool,
    /// The broker has read until there was nothing: the next arrival is an event.
    read_armed: bool,
    read_event: bool,
    write_armed: bool,
    write_event: bool,
}

impl Line {
    /// Makes `event` pending if the shard waits for it.
    fn wake_reader(&mut self) {
        if self.socket.is_some() && self.read_armed {
            self.read_armed = false;
            self.read_event = true;
        }
    }

    fn wake_writer(&mut self) {
        if self.socket.is_some() && self.write_armed {
            self.write_armed = false;
            self.write_event = true;
        }
    }

    /// The end of the peer, or a reset, is an event whatever the shard has read so far.
    fn tell_end(&mut self) {
        self.read_event |= self.socket.is_some();
    }

    fn break_off(&mut self) {
        self.reset = true;
        self.tell_end();
        self.write_event |= self.socket.is_some();
    }
}

/// What one shard has of the network: its listener, its sockets, its waker.
struct Port {
    sockets: Vec<Option<LineId>>,
    free_sockets: Vec<u32>,
    backlog: VecDeque<LineId>,
    listening: bool,
    accept_armed: bool,
    accept_event: bool,
    woken: bool,
}

impl Port {
    fn new() -> Port {
        Port {
            sockets: Vec::new(),
            free_sockets: Vec::new(),
            backlog: VecDeque::new(),
            listening: true,
            accept_armed: true,
            accept_event: false,
            woken: false,
        }
    }

    fn number(&mut self, id: LineId) -> Socket {
        let number = self.free_sockets.pop().unwrap_or_else(|| {
            self.sockets.push(None);
            self.sockets.len() as u32 - 1
        });
        self.sockets[number as usize] = Some(id);
        Socket(number)
    }

    fn forget(&mut self, socket: Socket) {
        self.sockets[socket.0 as usize] = None;
        self.free_sockets.push(socket.0);
    }
}

/// A connection between two shards.
pub struct Detached(LineId);

/// All connections, and how badly this seed treats them.
pub struct Network {
    lines: BTreeMap<LineId, Line>,
    ports: Vec<Port>,
    next_line: u64,
    open_sockets: usize,
    /// Descriptors that the broker may have.
    descriptors_max: usize,
    /// Per mille, per poll and connection.
    stall_chance: u64,
    /// Per mille: an arrival is one byte, or a few.
    split_chance: u64,
    /// Per mille, per poll.
    reset_chance: u64,
    room: usize,
    /// Accepts may fail and descriptors run out.
    starves: bool,
    /// No descriptor is to be had until then.
    starved_until_ns: u64,
}

impl Network {
    /// A network with faults as `prng` draws them.
    pub fn draw(prng: &mut Prng) -> Network {
        Network {
            lines: BTreeMap::new(),
            ports: vec![Port::new()],
            next_line: 1,
            open_sockets: 0,
            descriptors_max: *prng.pick(&[12, 24, 64]),
            stall_chance: *prng.pick(&[0, 1, 10]),
            split_chance: *prng.pick(&[0, 50, 300, 900]),
            reset_chance: *prng.pick(&[0, 1, 4]),
            room: *prng.pick(&[600, 4096, 65536, 300_000]),
            starves: true,
            starved_until_ns: 0,
        }
    }

    /// So many shards listen; before anybody connects.
    pub fn share(&mut self, shards: usize) {
        self.ports = (0..shards).map(|_| Port::new()).collect();
    }

    /// No faults besides splits: the world in which nobody has an excuse.
    pub fn calm(&mut self) {
        (self.stall_chance, self.reset_chance) = (0, 0);
        self.starves = false;
        self.descriptors_max = 1000;
    }

    /// Faults end; what stands still moves again.
    pub fn heal(&mut self) {
        self.calm();
        self.split_chance = 0;
        self.room = 1 << 20;
        self.starved_until_ns = 0;
        for line in self.lines.values_mut() {
            for pipe in [&mut line.to_broker, &mut line.to_client] {
                (pipe.stalled_until_ns, pipe.room) = (0, self.room);
            }
            line.wake_writer();
        }
    }

    // ---- the clients' side ----

    /// Connects; `None` if nobody listens.
    pub fn connect(&mut self) -> Option<LineId> {
        let id = LineId(self.next_line);
        // As the system deals connections out: by a hash of the two addresses.
        let nth = (id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % self.ports.len();
        if !self.ports[nth].listening {
            return None;
        }
        self.next_line += 1;
        self.lines.insert(
            id,
            Line {
                to_broker: Pipe::new(self.room),
                to_client: Pipe::new(self.room),
                socket: None,
                moving: false,
                reset: false,
                broker_closed: false,
                client_closed: false,
                read_armed: true,
                read_event: false,
                write_armed: false,
                write_event: false,
            },
        );
        let port = &mut self.ports[nth];
        port.backlog.push_back(id);
        if port.accept_armed {
            port.accept_armed = false;
            port.accept_event = true;
        }
        Some(id)
    }

    /// Sends what fits of `bytes`; 0 also when the connection is gone.
    pub fn client_write(&mut self, id: LineId, bytes: &[u8]) -> usize {
        let Some(line) = self.lines.get_mut(&id) else { return 0 };
        if line.reset || line.broker_closed || line.to_broker.ended {
            return 0;
        }
        line.to_broker.put(bytes)
    }

    /// Reads at most `limit` bytes that have arrived.
    pub fn client_read(&mut self, id: LineId, limit: usize, into: &mut Vec<u8>) -> LineState {
        let Some(line) = self.lines.get_mut(&id) else { return LineState::Reset };
        let at = into.len();
        into.resize(at + limit.min(line.to_client.arrived), 0);
        line.to_client.take(&mut into[at..]);
        if line.to_client.bytes.len() < line.to_client.room {
            line.wake_writer();
        }
        match line {
            Line { to_client, .. } if to_client.arrived > 0 => LineState::Open,
            Line { reset: true, .. } => LineState::Reset,
            Line { to_client, .. } if to_client.end_arrived => LineState::Ended,
            _ => LineState::Open,
        }
    }

    /// The client sends nothing more, but still reads.
    pub fn client_half_close(&mut self, id: LineId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.to_broker.ended = true;
        }
    }

    /// The client closes; with `abort` the broker sees a reset.
    pub fn client_close(&mut self, id: LineId, abort: bool) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        line.client_closed = true;
        line.to_broker.ended = true;
        // As with real sockets: closing with unread bytes is a reset.
        if abort || !line.to_client.bytes.is_empty() {
            line.break_off();
        }
        self.forget_if_over(id);
    }

    /// Bytes of the client that the broker has read; 0 once both ends are closed.
    pub fn taken_by_broker(&self, id: LineId) -> u64 {
        self.lines.get(&id).map_or(0, |line| line.to_broker.taken_total)
    }

    /// Whether nothing has gone wrong on the connection, nor been closed by anybody.
    pub fn intact(&self, id: LineId) -> bool {
        let line = self.lines.get(&id);
        line.is_some_and(|line| !line.reset && !line.broker_closed && !line.to_broker.ended)
    }

    /// Breaks a connection from outside.
    pub fn reset(&mut self, id: LineId) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.break_off();
        }
    }

    /// Sockets that the broker holds.
    pub fn open_sockets(&self) -> usize {
        self.open_sockets
    }

    /// Wakes the poll of a shard.
    pub fn wake(&mut self, shard: usize) {
        self.ports[shard].woken = true;
    }

    /// Whether somebody has woken a shard that has not polled since.
    pub fn is_woken(&self, shard: usize) -> bool {
        self.ports[shard].woken
    }

    /// Whether a poll of the shard would report something now.
    pub fn has_events(&self, shard: usize) -> bool {
        let port = &self.ports[shard];
        let lines = port.sockets.iter().flatten().filter_map(|id| self.lines.get(id));
        port.woken
            || port.accept_event
            || lines.into_iter().any(|line| line.read_event || line.write_event)
    }

    /// The broker's process ends: every connection with it, and a new one listens.
    pub fn restart(&mut self) {
        for line in self.lines.values_mut() {
            (line.socket, line.moving) = (None, false);
            line.broker_closed = true;
            line.reset = true;
        }
        self.open_sockets = 0;
        self.share(self.ports.len());
    }

    fn forget_if_over(&mut self, id: LineId) {
        let over = |line: &Line| line.client_closed && line.socket.is_none() && !line.moving;
        let waits = self.ports.iter().any(|port| port.backlog.contains(&id));
        if self.lines.get(&id).is_some_and(over) && !waits {
            self.lines.remove(&id);
        }
    }

    // ---- the wire ----

    /// Moves bytes along, and lets faults happen.
    fn carry(&mut self, universe: &Universe) {
        let now_ns = universe.mono().0;
        if !self.lines.is_empty() && universe.fault(self.reset_chance) {
            let nth = universe.index(self.lines.len());
            let id = *self.lines.keys().nth(nth).expect("nth is below the number of lines");
            if !self.lines[&id].broker_closed {
                universe.cover(Cover::Reset);
                universe.event("reset", id.0, 0);
                self.reset(id);
            }
        }
        let (stall, split) = (self.stall_chance, self.split_chance);
        for line in self.lines.values_mut() {
            if carry_pipe(&mut line.to_broker, now_ns, stall, split, universe) {
                if line.to_broker.moves() {
                    universe.cover(Cover::SplitRead);
                }
                line.wake_reader();
                if line.to_broker.end_arrived {
                    line.tell_end();
                }
            }
            carry_pipe(&mut line.to_client, now_ns, stall, split, universe);
        }
    }

    /// When something moves again by itself.
    fn next_ns(&self, now_ns: u64) -> Option<u64> {
        let pipes = self.lines.values().flat_map(|line| [&line.to_broker, &line.to_client]);
        pipes.filter(|pipe| pipe.moves()).map(|pipe| pipe.stalled_until_ns.max(now_ns)).min()
    }

    /// Hands out pending events of a shard; now and then holds one back, or adds one that means
    /// nothing.
    fn hand_out(&mut self, shard: usize, universe: &Universe, events: &mut Vec<NetEvent>) {
        let port = &mut self.ports[shard];
        if std::mem::take(&mut port.woken) {
            events.push(NetEvent::Woken);
        }
        if std::mem::take(&mut port.accept_event) {
            events.push(NetEvent::Acceptable);
        }
        for line in self.lines.values_mut() {
            let Some((_, socket)) = line.socket.filter(|(of, _)| *of == shard) else { continue };
            let spurious = universe.fault(2);
            if (line.read_event && !universe.fault(50)) || spurious {
                line.read_event = false;
                let closed = line.reset || line.to_broker.end_arrived;
                events.push(NetEvent::Readable { socket, closed });
            }
            if (line.write_event && !universe.fault(50)) || spurious {
                line.write_event = false;
                events.push(NetEvent::Writable(socket));
            }
        }
        if universe.fault(5) {
            events.push(NetEvent::Acceptable);
        }
        if events.len() > 1 && universe.fault(500) {
            for nth in (1..events.len()).rev() {
                events.swap(nth, universe.index(nth + 1));
            }
        }
    }

    fn line_of(&mut self, shard: usize, socket: Socket) -> (LineId, &mut Line) {
        let id = self.ports[shard].sockets.get(socket.0 as usize).copied().flatten();
        let id = id.expect("the shard names a socket that it has closed or never had");
        (id, self.lines.get_mut(&id).expect("a socket's line lives until both ends are closed"))
    }
}

impl Network {
    /// A shard's poller watches a connection from now on, and reports at once that it can be
    /// written, and what is there.
    fn register(&mut self, id: LineId, shard: usize) -> Socket {
        let socket = self.ports[shard].number(id);
        let line = self.lines.get_mut(&id).expect("a line lives until both ends are closed");
        (line.socket, line.moving) = (Some((shard, socket)), false);
        (line.write_event, line.read_armed) = (true, true);
        if line.to_broker.arrived > 0 || line.to_broker.end_arrived || line.reset {
            line.wake_reader();
        }
        socket
    }
}

/// Lets bytes of one direction arrive. True if the reader has something new to see.
fn carry_pipe(pipe: &mut Pipe, now_ns: u64, stall: u64, split: u64, universe: &Universe) -> bool {
    if !pipe.moves() || pipe.stalled_until_ns > now_ns {
        return false;
    }
    if stall > 0 && universe.fault(stall) {
        universe.cover(Cover::Stall);
        pipe.stalled_until_ns = now_ns + universe.skewed(2_000_000_000);
        return false;
    }
    let waiting = pipe.bytes.len() - pipe.arrived;
    let some = match waiting {
        0 | 1 => waiting,
        _ if split > 0 && universe.fault(split) => 1 + universe.skewed(waiting as u64) as usize,
        _ => waiting,
    };
    pipe.arrived += some.min(waiting);
    pipe.end_arrived = pipe.ended && pipe.arrived == pipe.bytes.len();
    true
}

/// The sockets of one shard.
pub struct SimNet {
    universe: Rc<Universe>,
    shard: usize,
}

impl SimNet {
    /// A shard's side of `universe`'s network.
    pub fn new(universe: Rc<Universe>, shard: usize) -> Self {
        SimNet { universe, shard }
    }

    /// The world it belongs to.
    pub fn universe(&self) -> &Rc<Universe> {
        &self.universe
    }
}

impl Net for SimNet {
    type Detached = Detached;

    /// Never blocks: with nothing to report, virtual time goes on, at most by `timeout` and until
    /// another shard has something to do.
    fn poll(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<NetEvent>,
    ) -> std::io::Result<()> {
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let before = events.len();
        network.carry(universe);
        network.hand_out(self.shard, universe, events);
        if events.len() == before {
            let now_ns = universe.mono().0;
            let limit_ns = timeout.map_or(50_000_000, |timeout| timeout.as_nanos() as u64);
            let world_ns =
                [network.next_ns(now_ns), universe.disk_due_ns(), universe.others_due_ns()];
            let world_ns = world_ns.into_iter().flatten().map(|at| at.saturating_sub(now_ns)).min();
            // Clients act between two polls, so waits mostly end early; now and then one is kept
            // to the end, and then the deadline is met to the nanosecond.
            let patience_ns = match universe.chance(20) {
                // Faults make anybody late, the liveness phase nobody.
                _ if universe.healed() => universe.range(0, 20_000_000),
                true if network.starves => u64::MAX,
                true => 200_000_000,
                false => universe.skewed(500_000),
            };
            universe.advance_ns(limit_ns.min(patience_ns).min(world_ns.unwrap_or(u64::MAX)));
            network.carry(universe);
            network.hand_out(self.shard, universe, events);
        }
        universe.event("poll", universe.mono().0, events.len() as u64);
        Ok(())
    }

    fn accept(&mut self) -> Accepted {
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let Some(&id) = network.ports[self.shard].backlog.front() else {
            network.ports[self.shard].accept_armed = true;
            return Accepted::Nothing;
        };
        if network.starves && universe.fault(1) {
            network.starved_until_ns = universe.mono().0 + universe.skewed(300_000_000);
        }
        let starved = network.starved_until_ns > universe.mono().0;
        if starved || network.open_sockets >= network.descriptors_max {
            universe.cover(Cover::Emfile);
            let closed_one = universe.chance(700);
            universe.event("emfile", id.0, u64::from(closed_one));
            if closed_one {
                network.ports[self.shard].backlog.pop_front();
                let line = network.lines.get_mut(&id).expect("the backlog holds live lines");
                (line.broker_closed, line.to_client.ended) = (true, true);
                network.forget_if_over(id);
            }
            return Accepted::Shed { closed_one };
        }
        network.ports[self.shard].backlog.pop_front();
        let fails = network.starves && universe.fault(5);
        let line = network.lines.get_mut(&id).expect("the backlog holds live lines");
        if line.reset || fails {
            universe.cover(Cover::AcceptFailed);
            (line.reset, line.broker_closed) = (true, true);
            network.forget_if_over(id);
            return Accepted::Failed(ErrorKind::ConnectionAborted);
        }
        network.open_sockets += 1;
        let socket = network.register(id, self.shard);
        universe.event("accept", id.0, u64::from(socket.0));
        Accepted::Socket(socket, SocketAddr::from(([127, 0, 0, 1], 40_000)))
    }

    fn read(&mut self, socket: Socket, buffer: &mut [u8]) -> ReadOutcome {
        assert!(!buffer.is_empty(), "a read without a buffer");
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let (id, line) = network.line_of(self.shard, socket);
        if line.reset && (line.to_broker.arrived == 0 || universe.chance(500)) {
            return ReadOutcome::Failed(ErrorKind::ConnectionReset);
        }
        if universe.fault(5) && line.to_broker.arrived > 0 {
            // Nothing now, but an event tells: as if the bytes came a moment later.
            line.read_event = true;
            return ReadOutcome::Nothing;
        }
        let bytes = line.to_broker.take(buffer);
        let nothing_left = bytes < buffer.len();
        if nothing_left {
            line.read_armed = true;
        }
        universe.event("read", id.0, u64::from(crate::base::checksum::crc32c(&buffer[..bytes])));
        match bytes {
            0 if line.to_broker.end_arrived => ReadOutcome::Closed,
            0 => ReadOutcome::Nothing,
            _ => {
                // An end or reset behind a short count is still to be told.
                if nothing_left && (line.to_broker.end_arrived || line.reset) {
                    line.wake_reader();
                }
                ReadOutcome::Bytes(bytes)
            }
        }
    }

    fn write(&mut self, socket: Socket, slices: &[IoSlice<'_>]) -> WriteOutcome {
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let (id, line) = network.line_of(self.shard, socket);
        let given: usize = slices.iter().map(|slice| slice.len()).sum();
        if line.reset {
            return WriteOutcome::Failed(ErrorKind::BrokenPipe);
        }
        if line.client_closed {
            // The first write after the peer's close is taken, and answered by a reset.
            line.break_off();
            return WriteOutcome::Bytes(given);
        }
        let mut allowed = given;
        if given > 1 && universe.fault(30) {
            universe.cover(Cover::ShortWrite);
            allowed = universe.range(0, given as u64 - 1) as usize;
        }
        let mut taken = 0;
        for slice in slices {
            let part = &slice[..slice.len().min(allowed - taken)];
            let put = line.to_client.put(part);
            universe.event("write", id.0, u64::from(crate::base::checksum::crc32c(&part[..put])));
            taken += put;
            if put < slice.len() {
                break;
            }
        }
        if taken < given {
            line.write_armed = true;
            if line.to_client.bytes.len() < line.to_client.room {
                line.wake_writer();
            }
        }
        if taken == 0 && given > 0 { WriteOutcome::Nothing } else { WriteOutcome::Bytes(taken) }
    }

    fn close(&mut self, socket: Socket) {
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let (id, line) = network.line_of(self.shard, socket);
        line.socket = None;
        line.broker_closed = true;
        line.to_client.ended = true;
        if !line.to_broker.bytes.is_empty() && universe.fault(300) {
            // Closed with bytes unread: a reset overtakes what was still on its way.
            line.reset = true;
        }
        line.to_broker.bytes.clear();
        line.to_broker.arrived = 0;
        (line.read_event, line.write_event) = (false, false);
        network.ports[self.shard].forget(socket);
        network.open_sockets -= 1;
        network.forget_if_over(id);
        universe.event("close", id.0, u64::from(socket.0));
    }

    fn release(&mut self, socket: Socket) -> Option<Detached> {
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let (id, line) = network.line_of(self.shard, socket);
        (line.socket, line.moving) = (None, true);
        // What the poller knew of it is lost; the next one finds out anew.
        (line.read_event, line.write_event) = (false, false);
        (line.read_armed, line.write_armed) = (false, false);
        network.ports[self.shard].forget(socket);
        universe.event("release", id.0, u64::from(socket.0));
        Some(Detached(id))
    }

    fn adopt(&mut self, detached: Detached) -> Option<Socket> {
        let universe = &*self.universe;
        let mut network = universe.net.borrow_mut();
        let Detached(id) = detached;
        if network.starves && universe.fault(5) {
            network.open_sockets -= 1;
            let line = network.lines.get_mut(&id).expect("a line lives until both ends are closed");
            (line.moving, line.reset, line.broker_closed) = (false, true, true);
            network.forget_if_over(id);
            return None;
        }
        let socket = network.register(id, self.shard);
        universe.event("adopt", id.0, u64::from(socket.0));
        Some(socket)
    }

    fn stop_listening(&mut self) {
        let mut network = self.universe.net.borrow_mut();
        network.ports[self.shard].listening = false;
        while let Some(id) = network.ports[self.shard].backlog.pop_front() {
            let line = network.lines.get_mut(&id).expect("the backlog holds live lines");
            (line.reset, line.broker_closed) = (true, true);
            network.forget_if_over(id);
        }
    }
}
