//! A planted bug, to see that the checkers see: a network that now and then hands the broker a
//! batch whose messages have changed places, with a checksum that fits. To the clients it looks as
//! if the broker had lost the order of what it confirmed.

use crate::format::batch::{self, Batch, BatchHeader};
use crate::format::record::Records;
use crate::io::{Accepted, Net, NetEvent, ReadOutcome, Socket, World, WriteOutcome};
use crate::limits::{BATCH_HEADER_BYTES, FRAME_HEADER_BYTES, PREAMBLE_BYTES, RECORD_HEADER_BYTES};
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::sim::clock::SimClock;
use crate::sim::disk::SimDisk;
use crate::sim::net::{Detached, SimNet};
use crate::sim::world::SimulatedWorld;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::Duration;

/// The world with the bug.
pub struct CanaryWorld;

impl World for CanaryWorld {
    type Net = CanaryNet;
    type Disk = SimDisk;
    type Clock = SimClock;
}

impl SimulatedWorld for CanaryWorld {
    fn net(net: SimNet) -> CanaryNet {
        CanaryNet { net, follows: BTreeMap::new() }
    }
}

/// Where the next frame of a socket begins.
pub struct Follow {
    /// Bytes until then.
    skip: usize,
    /// The front of its header, where that came in pieces.
    head: Vec<u8>,
}

/// See the module.
pub struct CanaryNet {
    net: SimNet,
    follows: BTreeMap<Socket, Follow>,
}

impl CanaryNet {
    /// Follows the frames of a socket, and meddles with a publish that is wholly here.
    fn meddle(&mut self, socket: Socket, bytes: &mut [u8]) {
        let fresh = || Follow { skip: PREAMBLE_BYTES, head: Vec::new() };
        let follow = self.follows.entry(socket).or_insert_with(fresh);
        let mut at = 0;
        while at < bytes.len() {
            let skipped = follow.skip.min(bytes.len() - at);
            at += skipped;
            follow.skip -= skipped;
            let wanted = FRAME_HEADER_BYTES - follow.head.len();
            let head = &bytes[at..bytes.len().min(at + wanted)];
            follow.head.extend_from_slice(head);
            at += head.len();
            let Some(header) = follow.head.first_chunk() else { return };
            let Ok(header) = FrameHeader::decode(header) else { return };
            follow.head.clear();
            follow.skip = header.payload_bytes as usize;
            if header.opcode == Opcode::Publish as u8
                && let Some(payload) = bytes.get_mut(at..at + follow.skip)
                && self.net.universe().chance(20)
            {
                swap_records(payload);
            }
        }
    }
}

/// Lets the first two neighbours of one length in a batch change places.
fn swap_records(payload: &mut [u8]) {
    let Ok(whole) = Batch::decode(payload) else { return };
    let header: BatchHeader = whole.header;
    let records: Vec<_> = Records::new(whole.records()).map(|record| record.header).collect();
    let mut left = BATCH_HEADER_BYTES;
    for pair in records.windows(2) {
        let record_bytes = pair[0].record_bytes();
        let alike = pair[0].body_bytes == pair[1].body_bytes
            && pair[0].properties_bytes == pair[1].properties_bytes;
        if alike && record_bytes > RECORD_HEADER_BYTES {
            for nth in RECORD_HEADER_BYTES..record_bytes {
                payload.swap(left + nth, left + record_bytes + nth);
            }
            return batch::seal(payload, header);
        }
        left += record_bytes;
    }
}

impl Net for CanaryNet {
    type Detached = (Detached, Option<Follow>);

    fn poll(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<NetEvent>,
    ) -> std::io::Result<()> {
        self.net.poll(timeout, events)
    }

    fn accept(&mut self) -> Accepted {
        self.net.accept()
    }

    fn read(&mut self, socket: Socket, buffer: &mut [u8]) -> ReadOutcome {
        let outcome = self.net.read(socket, buffer);
        if let ReadOutcome::Bytes(bytes) = outcome {
            self.meddle(socket, &mut buffer[..bytes]);
        }
        outcome
    }

    fn write(&mut self, socket: Socket, slices: &[IoSlice<'_>]) -> WriteOutcome {
        self.net.write(socket, slices)
    }

    fn close(&mut self, socket: Socket) {
        self.follows.remove(&socket);
        self.net.close(socket);
    }

    fn release(&mut self, socket: Socket) -> Option<Self::Detached> {
        let follow = self.follows.remove(&socket);
        Some((self.net.release(socket)?, follow))
    }

    fn adopt(&mut self, (detached, follow): Self::Detached) -> Option<Socket> {
        let socket = self.net.adopt(detached)?;
        follow.and_then(|follow| self.follows.insert(socket, follow));
        Some(socket)
    }

    fn stop_listening(&mut self) {
        self.net.stop_listening();
    }
}
