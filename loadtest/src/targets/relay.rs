//! The bare relay: in, to a ring in memory, out to the consumers in turn, freed by batched acks.
//! It carries the same bytes as Forebay and has no queue logic: what a broker adds to it is the
//! price of being a broker.
//!
//! The ring holds runs that are ready to send: a deliver frame's headers and the records behind
//! them, contiguous; a run that does not fit before the end of the ring begins at its front.

use crate::clock::now;
use crate::sys::{EVENTS_MAX, Epoll, Ready};
use crate::targets::peer::{Frames, Peer, SCRATCH_BYTES, bad_bytes, is_nothing};
use crate::targets::wire::HANDLE;
use forebay::format::batch::BatchHeader;
use forebay::limits::{BATCH_HEADER_BYTES, DELIVER_HEADER_BYTES, FRAME_HEADER_BYTES};
use forebay::protocol::frame::{FrameHeader, Opcode};
use forebay::protocol::hot::{AckRange, Confirm, DeliverHeader, Reached};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

const LISTENER: u64 = u64::MAX;
const RUN_HEADER_BYTES: usize = FRAME_HEADER_BYTES + DELIVER_HEADER_BYTES;
/// Slices of one write.
const SLICES_MAX: usize = 64;

/// One publish's messages in the ring, as a deliver frame.
struct Run {
    start: usize,
    end: usize,
    records: u32,
    acked: bool,
}

/// Runs in the order in which they came. Numbers of runs count up for ever.
struct Ring {
    bytes: Vec<u8>,
    head: usize,
    runs: VecDeque<Run>,
    /// Number of the first in `runs`.
    first: u64,
    /// Number of the first that no consumer was given.
    unsent: u64,
}

impl Ring {
    fn new(bytes: usize) -> Ring {
        Ring { bytes: vec![0; bytes], head: 0, runs: VecDeque::new(), first: 0, unsent: 0 }
    }

    /// Where a run of so many bytes can begin; `None` if the ring is full.
    fn place(&self, bytes: usize) -> Option<usize> {
        let Some(oldest) = self.runs.front() else {
            return (bytes <= self.bytes.len()).then_some(0);
        };
        if self.head <= oldest.start {
            return (bytes < oldest.start - self.head).then_some(self.head);
        }
        if bytes <= self.bytes.len() - self.head {
            return Some(self.head);
        }
        (bytes < oldest.start).then_some(0)
    }

    fn push(&mut self, header: &BatchHeader, records: &[u8]) -> io::Result<()> {
        let bytes = RUN_HEADER_BYTES + records.len();
        let start = self.place(bytes).ok_or(bad_bytes("more under way than the ring holds"))?;
        let frame = FrameHeader::new(Opcode::Deliver, HANDLE, DELIVER_HEADER_BYTES + records.len());
        let deliver =
            DeliverHeader { record_count: header.record_count, attempts: 1, ..Default::default() };
        let run = &mut self.bytes[start..start + bytes];
        run[..FRAME_HEADER_BYTES].copy_from_slice(&frame.encode());
        run[FRAME_HEADER_BYTES..RUN_HEADER_BYTES].copy_from_slice(&deliver.encode());
        run[RUN_HEADER_BYTES..].copy_from_slice(records);
        self.head = start + bytes;
        let (end, records) = (self.head, header.record_count);
        self.runs.push_back(Run { start, end, records, acked: false });
        Ok(())
    }

    /// Takes the next run that no consumer was given; its number and where it is.
    fn take(&mut self, delivery_id: u64) -> Option<(u64, usize, usize, u32)> {
        let run = self.runs.get((self.unsent - self.first) as usize)?;
        let id = run.start + FRAME_HEADER_BYTES;
        self.bytes[id..id + 8].copy_from_slice(&delivery_id.to_le_bytes());
        self.unsent += 1;
        Some((self.unsent - 1, run.start, run.end, run.records))
    }

    fn is_all_sent(&self) -> bool {
        self.unsent == self.first + self.runs.len() as u64
    }

    fn ack(&mut self, number: u64) {
        self.runs[(number - self.first) as usize].acked = true;
        while self.runs.front().is_some_and(|run| run.acked) {
            self.runs.pop_front();
            self.first += 1;
        }
    }
}

/// A connection.
struct Connection {
    peer: Peer,
    consumer: bool,
    /// Sequence to confirm; 0: none.
    confirm: u64,
    next_delivery_id: u64,
    /// Pieces of the ring that were given to it and not to its socket.
    unsent: VecDeque<(usize, usize)>,
    /// Its socket takes no more for now.
    blocked: bool,
    /// Last delivery id and number of each run that it has not acked.
    in_flight: VecDeque<(u64, u64)>,
}

/// The relay's server.
pub struct Relay {
    listener: TcpListener,
    epoll: Epoll,
    scratch: Vec<u8>,
    connections: Vec<Option<Connection>>,
    /// Indexes of the consumers' connections, and whose turn it is.
    consumers: Vec<usize>,
    turn: usize,
    /// Connections to confirm something to.
    confirming: Vec<usize>,
    ring: Ring,
}

impl Relay {
    /// Serves `listener` with a ring of so many bytes.
    ///
    /// # Errors
    /// As the system says.
    pub fn new(listener: TcpListener, ring_bytes: usize) -> io::Result<Relay> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(listener.as_raw_fd(), LISTENER, false)?;
        Ok(Relay {
            listener,
            epoll,
            scratch: vec![0; SCRATCH_BYTES],
            connections: Vec::new(),
            consumers: Vec::new(),
            turn: 0,
            confirming: Vec::new(),
            ring: Ring::new(ring_bytes),
        })
    }

    /// Runs for `lifetime`. A connection that misbehaves is closed, with a line on standard error.
    ///
    /// # Errors
    /// If the system's poller fails.
    pub fn run(&mut self, lifetime: Duration, busy_poll: bool) -> io::Result<()> {
        let end = now() + lifetime;
        let wait = if busy_poll { Duration::ZERO } else { Duration::from_secs(1) };
        let mut ready = Vec::with_capacity(EVENTS_MAX);
        while now() < end {
            ready.clear();
            self.epoll.wait(wait, &mut ready)?;
            for event in &ready {
                self.handle(event);
            }
            self.deliver();
            self.confirm();
        }
        Ok(())
    }

    fn handle(&mut self, event: &Ready) {
        if event.token == LISTENER {
            self.accept();
            return;
        }
        let index = event.token as usize;
        if event.writable {
            let written = self.resume(index);
            self.close_if(index, written);
        }
        if event.readable && matches!(self.connections.get(index), Some(Some(_))) {
            let read = self.read(index);
            self.close_if(index, read);
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let index = self.connections.iter().position(Option::is_none);
            let index = index.unwrap_or(self.connections.len());
            let Ok(peer) = Peer::new(stream) else { continue };
            if self.epoll.add(peer.fd(), index as u64, false).is_err() {
                continue;
            }
            let connection = Connection {
                peer,
                consumer: false,
                confirm: 0,
                next_delivery_id: 1,
                unsent: VecDeque::new(),
                blocked: false,
                in_flight: VecDeque::new(),
            };
            if index == self.connections.len() {
                self.connections.push(None);
            }
            self.connections[index] = Some(connection);
        }
    }

    /// Closes the connection if `result` is an error; what it had in flight is gone.
    fn close_if(&mut self, index: usize, result: io::Result<()>) {
        let Err(error) = result else { return };
        let Some(connection) = self.connections[index].take() else { return };
        if error.kind() != io::ErrorKind::UnexpectedEof {
            eprintln!("baseline-relay: closing a connection: {error}");
        }
        self.consumers.retain(|consumer| *consumer != index);
        self.turn = 0;
        for (_, number) in connection.in_flight {
            self.ring.ack(number);
        }
    }

    fn read(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        let bytes = connection.peer.read(&mut self.scratch)?;
        let mut frames = Frames::new(&self.scratch[..bytes]);
        while let Some((header, payload)) = frames.next()? {
            match Opcode::from_u8(header.opcode) {
                Some(Opcode::Publish) => {
                    let batch = BatchHeader::decode(payload).map_err(io::Error::other)?;
                    self.ring.push(&batch, &payload[BATCH_HEADER_BYTES..])?;
                    if connection.confirm == 0 {
                        self.confirming.push(index);
                    }
                    connection.confirm =
                        batch.producer_sequence + u64::from(batch.record_count) - 1;
                }
                Some(Opcode::Ack) => {
                    let ranges = AckRange::decode_all(payload).ok_or(bad_bytes("a bad ack"))?;
                    for range in ranges {
                        while let Some((last, number)) = connection.in_flight.front()
                            && *last <= range.last
                        {
                            self.ring.ack(*number);
                            connection.in_flight.pop_front();
                        }
                    }
                }
                Some(Opcode::ProducerOpen | Opcode::ConsumerOpen) => {
                    if header.opcode == Opcode::ConsumerOpen as u8 && !connection.consumer {
                        connection.consumer = true;
                        self.consumers.push(index);
                    }
                    connection.peer.out.extend_from_slice(&header.encode());
                    connection.peer.flush()?;
                }
                _ => return Err(bad_bytes("a frame that the relay does not know")),
            }
        }
        connection.peer.keep(frames.rest());
        Ok(())
    }

    /// Gives each run to the next consumer that can take one, then writes once to each.
    fn deliver(&mut self) {
        if self.ring.is_all_sent() {
            return;
        }
        let mut skipped = 0;
        while skipped < self.consumers.len() {
            self.turn = (self.turn + 1) % self.consumers.len();
            let Some(connection) = &mut self.connections[self.consumers[self.turn]] else { break };
            if connection.blocked {
                skipped += 1;
                continue;
            }
            skipped = 0;
            let taken = self.ring.take(connection.next_delivery_id);
            let Some((number, start, end, records)) = taken else { break };
            connection.next_delivery_id += u64::from(records);
            connection.in_flight.push_back((connection.next_delivery_id - 1, number));
            match connection.unsent.back_mut() {
                Some(piece) if piece.1 == start => piece.1 = end,
                _ => connection.unsent.push_back((start, end)),
            }
        }
        for nth in (0..self.consumers.len()).rev() {
            let index = self.consumers[nth];
            let written = self.write(index);
            self.close_if(index, written);
        }
    }

    /// Goes on writing to a connection whose socket was full.
    fn resume(&mut self, index: usize) -> io::Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return Ok(()) };
        connection.blocked = !connection.peer.flush()?;
        self.epoll.change(connection.peer.fd(), index as u64, connection.blocked)?;
        self.write(index)
    }

    /// Writes to a consumer what it was given.
    fn write(&mut self, index: usize) -> io::Result<()> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        while !connection.unsent.is_empty() && !connection.blocked {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = connection.unsent.len().min(SLICES_MAX);
            for (slice, (start, end)) in slices.iter_mut().zip(&connection.unsent) {
                *slice = IoSlice::new(&self.ring.bytes[*start..*end]);
            }
            let mut bytes = match connection.peer.stream().write_vectored(&slices[..count]) {
                Ok(bytes) => bytes,
                Err(error) if is_nothing(&error) => 0,
                Err(error) => return Err(error),
            };
            connection.blocked = bytes == 0;
            while bytes > 0
                && let Some((start, end)) = connection.unsent.front_mut()
            {
                let part = bytes.min(*end - *start);
                *start += part;
                bytes -= part;
                if start == end {
                    connection.unsent.pop_front();
                }
            }
        }
        if connection.blocked {
            self.epoll.change(connection.peer.fd(), index as u64, true)?;
        }
        Ok(())
    }

    /// One cumulative confirm for each producer that published.
    fn confirm(&mut self) {
        while let Some(index) = self.confirming.pop() {
            let Some(connection) = &mut self.connections[index] else { continue };
            let confirm = Confirm {
                sequence: std::mem::take(&mut connection.confirm),
                window_bytes_total: u64::MAX,
                duplicates: 0,
                dropped: 0,
                reached: Reached::Memory,
            };
            let header = FrameHeader::new(Opcode::Confirm, HANDLE, Confirm::BYTES);
            connection.peer.out.extend_from_slice(&header.encode());
            connection.peer.out.extend_from_slice(&confirm.encode());
            let sent = connection.peer.flush().and_then(|all| match all {
                true => Ok(()),
                false => self.epoll.change(connection.peer.fd(), index as u64, true),
            });
            self.close_if(index, sent);
        }
    }
}
