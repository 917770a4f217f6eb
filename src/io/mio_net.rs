//! Real sockets: mio, edge-triggered, one poll per shard.
//!
//! A closed connection whose peer still sends would be answered with a reset, and a reset may
//! overtake the last frame that was written to it: the one that says why. So a connection that we
//! end first *lingers*: we say that we have ended, and read and forget what still comes, until the
//! peer ends too, or a second has passed, or it sends too much.

use crate::base::time::Mono;
use crate::io::clock::SystemClock;
use crate::io::{Accepted, Clock, Net, NetEvent, ReadOutcome, Socket, WriteOutcome};
use mio::net::{TcpListener, TcpStream};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

const LISTENER: Token = Token(usize::MAX);
const WAKER: Token = Token(usize::MAX - 1);
/// Events taken by one poll; the rest come with the next.
const EVENTS_PER_POLL: usize = 1024;
/// Connections that the system keeps waiting for us.
const BACKLOG: i32 = 1024;
/// Idle time before the system asks whether a peer still lives, and between its questions.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const LINGER_MS: u64 = 1000;
/// Connections that linger at once, over which one is closed without.
const LINGERING_MAX: usize = 1024;
/// What a lingering connection may still send.
const LINGER_BYTES_MAX: usize = 4 << 20;

/// Wakes the poll of one [`MioNet`] from any thread.
#[derive(Clone)]
pub struct NetWaker(Arc<Waker>);

impl NetWaker {
    /// Makes the poll return, now or when it is next entered.
    pub fn wake(&self) {
        // It fails only when the poll is gone, and then nobody is left to be woken.
        drop(self.0.wake());
    }
}

struct Connection {
    stream: TcpStream,
    /// A write was short: the caller wants to hear of room.
    write_waits: bool,
    /// The peer has ended or the connection failed: closing need not linger.
    ended: bool,
}

enum Slot {
    Free,
    Open(Connection),
    Lingering { stream: TcpStream, until: Mono, left_bytes: usize },
}

/// See the module. A [`Socket`]'s number is its slot.
pub struct MioNet {
    poll: Poll,
    events: Events,
    listener: Option<TcpListener>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Closed since the last poll: events of theirs may still be in the caller's hands, so their
    /// numbers are used again only after the next.
    closed: Vec<u32>,
    /// By deadline. An entry may outlive its connection; then slot and deadline do not match.
    lingering: VecDeque<(Mono, u32)>,
    /// A file descriptor to give up when there is no other, to accept and close one connection.
    spare: Option<File>,
    waker: NetWaker,
    /// For what lingers; not read otherwise.
    clock: SystemClock,
}

impl MioNet {
    /// Listens on `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// As the system says; `AddrInUse` if another socket listens there.
    pub fn bind(address: SocketAddr) -> std::io::Result<MioNet> {
        let socket = bound(address)?;
        MioNet::new(socket)
    }

    /// One net for each of `count` shards, all listening on the same port; the system deals out
    /// the connections.
    ///
    /// # Errors
    /// As [`MioNet::bind`]: the first socket is bound as if it were alone, so another listener is
    /// an error, and only then shares the address with the others.
    pub fn bind_many(address: SocketAddr, count: usize) -> std::io::Result<Vec<MioNet>> {
        let first = bound(address)?;
        if count > 1 {
            first.set_reuse_port(true)?;
        }
        let mut nets = vec![MioNet::new(first)?];
        let address = nets[0].address()?;
        for _ in 1..count {
            let socket = unbound(address)?;
            socket.set_reuse_port(true)?;
            socket.bind(&address.into())?;
            nets.push(MioNet::new(socket)?);
        }
        Ok(nets)
    }

    /// A net that listens with `socket`, which is bound.
    fn new(socket: socket2::Socket) -> std::io::Result<MioNet> {
        socket.listen(BACKLOG)?;
        let mut listener = TcpListener::from_std(socket.into());
        let poll = Poll::new()?;
        let waker = NetWaker(Arc::new(Waker::new(poll.registry(), WAKER)?));
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(MioNet {
            poll,
            events: Events::with_capacity(EVENTS_PER_POLL),
            listener: Some(listener),
            slots: Vec::new(),
            free: Vec::new(),
            closed: Vec::new(),
            lingering: VecDeque::new(),
            spare: spare(),
            waker,
            clock: SystemClock::default(),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// As the system says, or `NotConnected` after [`Net::stop_listening`].
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.as_ref().ok_or(ErrorKind::NotConnected)?.local_addr()
    }

    /// Makes the poll return, as if woken, each time that `event` becomes readable or is written
    /// to again. Until it is closed.
    ///
    /// # Errors
    /// As the system's poller says.
    pub fn watch(&self, event: BorrowedFd<'_>) -> std::io::Result<()> {
        let number = event.as_raw_fd();
        self.poll.registry().register(&mut SourceFd(&number), WAKER, Interest::READABLE)
    }

    /// For other threads.
    pub fn waker(&self) -> NetWaker {
        self.waker.clone()
    }

    /// Lets the connections that linger end, at most for `ms`: before the process does.
    pub fn finish(&mut self, ms: u64) {
        let until = self.clock.now().mono.plus_ms(ms);
        let mut events = Vec::new();
        while self.slots.iter().any(|slot| matches!(slot, Slot::Lingering { .. })) {
            let left = until.after(self.clock.now().mono);
            if left.is_zero() || self.poll(Some(left), &mut events).is_err() {
                break;
            }
            events.clear();
        }
    }

    fn connection(&mut self, socket: Socket) -> &mut Connection {
        match &mut self.slots[socket.0 as usize] {
            Slot::Open(connection) => connection,
            _ => panic!("socket {} is not open", socket.0),
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> Accepted {
        let options = SockRef::from(&stream);
        let keepalive =
            TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
        // These fail only if the peer is gone already, which the first read will tell.
        let _ = options.set_tcp_nodelay(true);
        let _ = options.set_tcp_keepalive(&keepalive);
        match self.enter(stream) {
            Some(socket) => Accepted::Socket(socket, peer),
            // The poller's own limit or memory: one connection less, as when there is no file.
            None => Accepted::Shed { closed_one: true },
        }
    }

    /// Gives a connected stream its number and watches it.
    fn enter(&mut self, mut stream: TcpStream) -> Option<Socket> {
        let number = self.free.pop().unwrap_or(self.slots.len() as u32);
        let token = Token(number as usize);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if self.poll.registry().register(&mut stream, token, interest).is_err() {
            if (number as usize) < self.slots.len() {
                self.free.push(number);
            }
            return None;
        }
        let slot = Slot::Open(Connection { stream, write_waits: false, ended: false });
        if (number as usize) < self.slots.len() {
            self.slots[number as usize] = slot;
        } else {
            self.slots.push(slot);
        }
        Some(Socket(number))
    }

    /// Out of files or memory: uses the spare file to take one connection and close it.
    fn shed(&mut self) -> Accepted {
        let Some(listener) = &self.listener else { return Accepted::Nothing };
        drop(self.spare.take());
        let outcome = match listener.accept() {
            Ok(_) => Accepted::Shed { closed_one: true },
            // The system looks for a free file before it looks whether anybody waits.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Accepted::Nothing,
            Err(_) => Accepted::Shed { closed_one: false },
        };
        self.spare = spare();
        outcome
    }

    /// Reads what a lingering connection still sends; ends it when it ends or sends too much.
    fn hear_out(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        let Slot::Lingering { stream, left_bytes, .. } = slot else { return };
        let mut buffer = [0; 16 * 1024];
        loop {
            match stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(bytes) if bytes > 0 && bytes < *left_bytes => *left_bytes -= bytes,
                Ok(_) | Err(_) => break,
            }
        }
        *slot = Slot::Free;
        self.closed.push(number);
    }

    /// Ends what has lingered long enough. The clock is read only while something lingers.
    fn end_lingering(&mut self) {
        if self.lingering.is_empty() {
            return;
        }
        let now = self.clock.now().mono;
        while let Some((deadline, number)) = self.lingering.front().copied() {
            let slot = &mut self.slots[number as usize];
            if matches!(slot, Slot::Lingering { until, .. } if *until == deadline) {
                if deadline > now {
                    break;
                }
                *slot = Slot::Free;
                self.closed.push(number);
            }
            self.lingering.pop_front();
        }
    }

    /// The caller's timeout, or less if a lingering connection's time ends before.
    fn wait_time(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        let Some((deadline, _)) = self.lingering.front() else { return timeout };
        let left = deadline.after(self.clock.now().mono);
        Some(timeout.map_or(left, |timeout| timeout.min(left)))
    }
}

impl Net for MioNet {
    type Detached = TcpStream;

    fn poll(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<NetEvent>,
    ) -> std::io::Result<()> {
        self.free.append(&mut self.closed);
        let timeout = self.wait_time(timeout);
        match self.poll.poll(&mut self.events, timeout) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut to_hear_out = Vec::new();
        for event in &self.events {
            let number = match event.token() {
                LISTENER => {
                    events.push(NetEvent::Acceptable);
                    continue;
                }
                WAKER => {
                    events.push(NetEvent::Woken);
                    continue;
                }
                Token(number) => number as u32,
            };
            let ended = event.is_read_closed() || event.is_write_closed() || event.is_error();
            match &mut self.slots[number as usize] {
                Slot::Free => {}
                Slot::Lingering { .. } => to_hear_out.push(number),
                Slot::Open(connection) => {
                    let socket = Socket(number);
                    if event.is_readable() || ended {
                        events.push(NetEvent::Readable { socket, closed: ended });
                    }
                    // Every edge says that there is room; only a write that was short asked.
                    if connection.write_waits && (event.is_writable() || ended) {
                        connection.write_waits = false;
                        events.push(NetEvent::Writable(socket));
                    }
                }
            }
        }
        for number in to_hear_out {
            self.hear_out(number);
        }
        self.end_lingering();
        Ok(())
    }

    fn accept(&mut self) -> Accepted {
        let Some(listener) = &self.listener else { return Accepted::Nothing };
        loop {
            let error = match listener.accept() {
                Ok((stream, peer)) => return self.admit(stream, peer),
                Err(error) => error,
            };
            return match (error.kind(), error.raw_os_error()) {
                (ErrorKind::Interrupted, _) => continue,
                (ErrorKind::WouldBlock, _) => Accepted::Nothing,
                (_, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)) => {
                    self.shed()
                }
                (kind, _) => Accepted::Failed(kind),
            };
        }
    }

    fn read(&mut self, socket: Socket, buffer: &mut [u8]) -> ReadOutcome {
        let connection = self.connection(socket);
        loop {
            return match connection.stream.read(buffer) {
                Ok(0) => {
                    connection.ended = true;
                    ReadOutcome::Closed
                }
                Ok(bytes) => ReadOutcome::Bytes(bytes),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => ReadOutcome::Nothing,
                    ErrorKind::Interrupted => continue,
                    kind => {
                        connection.ended = true;
                        ReadOutcome::Failed(kind)
                    }
                },
            };
        }
    }

    fn write(&mut self, socket: Socket, slices: &[IoSlice<'_>]) -> WriteOutcome {
        /// What one call of the system takes (IOV_MAX).
        const SLICES_MAX: usize = 1024;
        let connection = self.connection(socket);
        let (mut total, mut full) = (0, false);
        for part in slices.chunks(SLICES_MAX) {
            let given: usize = part.iter().map(|slice| slice.len()).sum();
            let taken = loop {
                // Most writes have one slice, and a plain send costs less than a gathered one.
                let outcome = match part {
                    [only] => SockRef::from(&connection.stream).send(only),
                    _ => connection.stream.write_vectored(part),
                };
                match outcome {
                    Ok(bytes) => break bytes,
                    Err(error) => match error.kind() {
                        ErrorKind::Interrupted => {}
                        ErrorKind::WouldBlock => break 0,
                        // What was taken before is told first; the next call fails again.
                        _ if total > 0 => break 0,
                        kind => {
                            connection.ended = true;
                            return WriteOutcome::Failed(kind);
                        }
                    },
                }
            };
            total += taken;
            if taken < given {
                full = true;
                break;
            }
        }
        connection.write_waits |= full;
        if full && total == 0 { WriteOutcome::Nothing } else { WriteOutcome::Bytes(total) }
    }

    fn close(&mut self, socket: Socket) {
        let number = socket.0;
        let slot = std::mem::replace(&mut self.slots[number as usize], Slot::Free);
        let Slot::Open(Connection { stream, ended, .. }) = slot else {
            panic!("socket {number} is closed twice");
        };
        if ended
            || self.lingering.len() >= LINGERING_MAX
            || stream.shutdown(Shutdown::Write).is_err()
        {
            // Dropping the stream takes it out of the poller too.
            self.closed.push(number);
            return;
        }
        let until = self.clock.now().mono.plus_ms(LINGER_MS);
        self.lingering.push_back((until, number));
        let left_bytes = LINGER_BYTES_MAX;
        self.slots[number as usize] = Slot::Lingering { stream, until, left_bytes };
        // What is there already makes no event any more.
        self.hear_out(number);
    }

    fn release(&mut self, socket: Socket) -> Option<TcpStream> {
        let slot = std::mem::replace(&mut self.slots[socket.0 as usize], Slot::Free);
        let Slot::Open(Connection { mut stream, .. }) = slot else {
            panic!("socket {} is not open", socket.0);
        };
        self.closed.push(socket.0);
        self.poll.registry().deregister(&mut stream).ok()?;
        Some(stream)
    }

    fn adopt(&mut self, stream: TcpStream) -> Option<Socket> {
        let socket = self.enter(stream)?;
        // The first write may have been short before it moved.
        self.connection(socket).write_waits = true;
        Some(socket)
    }

    fn stop_listening(&mut self) {
        self.listener = None;
    }
}

/// A socket for `address`, not bound yet.
fn unbound(address: SocketAddr) -> std::io::Result<socket2::Socket> {
    let socket =
        socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run that are not yet forgotten do not count as in use.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A socket that is bound to `address` alone.
fn bound(address: SocketAddr) -> std::io::Result<socket2::Socket> {
    let socket = unbound(address)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

#[cfg(test)]
mod tests;
