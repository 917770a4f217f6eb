//! The bare echo: a publish comes back as a deliver frame with the same records, or, to a
//! connection that opened as a producer only, is just confirmed. Its round trips are what sockets
//! and wake-ups cost without any broker.

use crate::clock::now;
use crate::sys::{EVENTS_MAX, Epoll, Ready};
use crate::targets::peer::{Frames, Peer, SCRATCH_BYTES, bad_bytes};
use crate::targets::wire::HANDLE;
use forebay::format::batch::BatchHeader;
use forebay::limits::{BATCH_HEADER_BYTES, DELIVER_HEADER_BYTES};
use forebay::protocol::frame::{FrameHeader, Opcode};
use forebay::protocol::hot::{Confirm, DeliverHeader, Reached};
use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::time::Duration;

const LISTENER: u64 = u64::MAX;

struct Connection {
    peer: Peer,
    /// Sends the messages back.
    consumer: bool,
    next_delivery_id: u64,
}

/// The echo's server.
pub struct Echo {
    listener: TcpListener,
    epoll: Epoll,
    scratch: Vec<u8>,
    connections: Vec<Option<Connection>>,
}

impl Echo {
    /// Serves `listener`.
    ///
    /// # Errors
    /// As the system says.
    pub fn new(listener: TcpListener) -> io::Result<Echo> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        epoll.add(listener.as_raw_fd(), LISTENER, false)?;
        Ok(Echo { listener, epoll, scratch: vec![0; SCRATCH_BYTES], connections: Vec::new() })
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
                if event.token == LISTENER {
                    self.accept();
                    continue;
                }
                let index = event.token as usize;
                if let Err(error) = self.serve(index, event) {
                    self.connections[index] = None;
                    if error.kind() != io::ErrorKind::UnexpectedEof {
                        eprintln!("baseline-echo: closing a connection: {error}");
                    }
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let index = self.connections.iter().position(Option::is_none);
            let index = index.unwrap_or(self.connections.len());
            let Ok(peer) = Peer::new(stream) else { continue };
            if self.epoll.add(peer.fd(), index as u64, false).is_err() {
                continue;
            }
            if index == self.connections.len() {
                self.connections.push(None);
            }
            self.connections[index] =
                Some(Connection { peer, consumer: false, next_delivery_id: 1 });
        }
    }

    fn serve(&mut self, index: usize, event: &Ready) -> io::Result<()> {
        let Some(Some(connection)) = self.connections.get_mut(index) else { return Ok(()) };
        if event.readable {
            let bytes = connection.peer.read(&mut self.scratch)?;
            let mut frames = Frames::new(&self.scratch[..bytes]);
            while let Some((header, payload)) = frames.next()? {
                connection.answer(&header, payload)?;
            }
            connection.peer.keep(frames.rest());
        }
        let done = connection.peer.flush()?;
        if !done || event.writable {
            self.epoll.change(connection.peer.fd(), event.token, !done)?;
        }
        Ok(())
    }
}

impl Connection {
    fn answer(&mut self, header: &FrameHeader, payload: &[u8]) -> io::Result<()> {
        let out = &mut self.peer.out;
        match Opcode::from_u8(header.opcode) {
            Some(Opcode::Publish) => {
                let batch = BatchHeader::decode(payload).map_err(io::Error::other)?;
                if self.consumer {
                    let records = &payload[BATCH_HEADER_BYTES..];
                    let bytes = DELIVER_HEADER_BYTES + records.len();
                    let deliver = DeliverHeader {
                        delivery_id: self.next_delivery_id,
                        record_count: batch.record_count,
                        attempts: 1,
                        ..Default::default()
                    };
                    self.next_delivery_id += u64::from(batch.record_count);
                    out.extend(FrameHeader::new(Opcode::Deliver, HANDLE, bytes).encode());
                    out.extend_from_slice(&deliver.encode());
                    out.extend_from_slice(records);
                } else {
                    let confirm = Confirm {
                        sequence: batch.producer_sequence + u64::from(batch.record_count) - 1,
                        window_bytes_total: u64::MAX,
                        duplicates: 0,
                        dropped: 0,
                        reached: Reached::Memory,
                    };
                    out.extend(FrameHeader::new(Opcode::Confirm, HANDLE, Confirm::BYTES).encode());
                    out.extend_from_slice(&confirm.encode());
                }
            }
            Some(Opcode::ProducerOpen | Opcode::ConsumerOpen) => {
                self.consumer |= header.opcode == Opcode::ConsumerOpen as u8;
                out.extend_from_slice(&header.encode());
            }
            _ => return Err(bad_bytes("a frame that the echo does not know")),
        }
        Ok(())
    }
}
