//! A client's end of a connection: frames out, frames in, at the pace the world allows. It knows
//! the protocol's frames and nothing of what they mean.

use crate::limits::{FRAME_HEADER_BYTES, PREAMBLE_BYTES};
use crate::protocol::control::Request;
use crate::protocol::frame::{FrameHeader, Opcode, preamble, preamble_version};
use crate::sim::Checked;
use crate::sim::net::{LineId, LineState};
use crate::sim::world::Universe;
use std::rc::Rc;

/// A frame of the broker.
pub struct Frame {
    /// Its header.
    pub header: FrameHeader,
    /// What the opcode's number means.
    pub opcode: Opcode,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// See the module.
pub struct Link {
    universe: Rc<Universe>,
    /// The connection in the network.
    pub line: LineId,
    out: Vec<u8>,
    out_at: usize,
    queued_total: u64,
    inbox: Vec<u8>,
    inbox_at: usize,
    /// The version in the broker's preamble, once it is here.
    pub version: Option<u16>,
    /// What the connection has come to.
    pub state: LineState,
    /// Virtual time when it was made.
    pub opened_ns: u64,
    /// Virtual time of the last byte out and in.
    pub sent_ns: u64,
    /// See above.
    pub heard_ns: u64,
}

impl Link {
    /// Connects, with nothing sent yet. `None` if nobody listens.
    pub fn connect(universe: &Rc<Universe>) -> Option<Link> {
        let line = universe.net.borrow_mut().connect()?;
        let now_ns = universe.mono().0;
        Some(Link {
            universe: Rc::clone(universe),
            line,
            out: Vec::new(),
            out_at: 0,
            queued_total: 0,
            inbox: Vec::new(),
            inbox_at: 0,
            version: None,
            state: LineState::Open,
            opened_ns: now_ns,
            sent_ns: now_ns,
            heard_ns: now_ns,
        })
    }

    /// Queues the preamble.
    pub fn greet(&mut self) {
        self.send_bytes(&preamble(crate::protocol::frame::VERSION));
    }

    /// Queues bytes. Returns where they end in the stream.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> u64 {
        self.out.extend_from_slice(bytes);
        self.queued_total += bytes.len() as u64;
        self.queued_total
    }

    /// Queues a frame. Returns where it ends in the stream.
    pub fn send(&mut self, opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) -> u64 {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
        self.universe.note(|| {
            format!("{:?} -> {opcode:?} {handle} {correlation} ({} B)", self.line, payload.len())
        });
        self.send_bytes(&header.encode());
        self.send_bytes(payload)
    }

    /// Queues a request with a control body.
    pub fn request(&mut self, handle: u32, correlation: u32, request: &Request) -> u64 {
        self.send(request.opcode(), handle, correlation, &request.encode())
    }

    /// Bytes that wait for the network to take them.
    pub fn unsent_bytes(&self) -> usize {
        self.out.len() - self.out_at
    }

    /// Gives the network what it takes.
    pub fn flush(&mut self) {
        if self.unsent_bytes() == 0 {
            return;
        }
        let mut network = self.universe.net.borrow_mut();
        let taken = network.client_write(self.line, &self.out[self.out_at..]);
        self.out_at += taken;
        if taken > 0 {
            self.sent_ns = self.universe.mono().0;
        }
        if self.out_at == self.out.len() {
            self.out.clear();
            self.out_at = 0;
        }
    }

    /// Reads at most `limit` bytes of what has arrived.
    pub fn receive(&mut self, limit: usize) {
        if self.inbox_at > 0 {
            self.inbox.drain(..self.inbox_at);
            self.inbox_at = 0;
        }
        let before = self.inbox.len();
        let mut network = self.universe.net.borrow_mut();
        self.state = network.client_read(self.line, limit, &mut self.inbox);
        if self.inbox.len() > before {
            self.heard_ns = self.universe.mono().0;
        }
    }

    /// Takes the next whole frame out of what was read.
    ///
    /// # Errors
    /// If the broker's bytes are not frames of the protocol.
    pub fn next_frame(&mut self) -> Checked<Option<Frame>> {
        if self.version.is_none() {
            let Some(bytes) = self.inbox[self.inbox_at..].first_chunk::<PREAMBLE_BYTES>() else {
                return Ok(None);
            };
            self.version = preamble_version(bytes);
            if self.version.is_none() {
                return Err(format!("the broker's first bytes are no preamble: {bytes:?}"));
            }
            self.inbox_at += PREAMBLE_BYTES;
        }
        let rest = &self.inbox[self.inbox_at..];
        let Some(bytes) = rest.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let header = FrameHeader::decode(bytes).map_err(|error| format!("broker: {error}"))?;
        let opcode = Opcode::from_u8(header.opcode)
            .ok_or_else(|| format!("the broker sent opcode {}", header.opcode))?;
        let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
        if rest.len() < end {
            return Ok(None);
        }
        let payload = rest[FRAME_HEADER_BYTES..end].to_vec();
        self.inbox_at += end;
        self.universe.note(|| {
            let FrameHeader { handle, correlation, .. } = header;
            format!("{:?} <- {opcode:?} {handle} {correlation} ({end} B)", self.line)
        });
        Ok(Some(Frame { header, opcode, payload }))
    }

    /// Whether no fault and nobody's close has touched the connection.
    pub fn intact(&self) -> bool {
        self.universe.net.borrow().intact(self.line)
    }

    /// Sends nothing more, but goes on reading. What is queued and unsent is lost.
    pub fn half_close(&mut self) {
        self.universe.net.borrow_mut().client_half_close(self.line);
    }

    /// Ends the connection.
    pub fn close(self, abort: bool) {
        self.universe.net.borrow_mut().client_close(self.line, abort);
    }
}
