//! Planted bugs, to see that the checkers see. To the clients it looks as if the broker had them,
//! but it is the network that meddles with what goes through it.
//!
//! - [`CanaryWorld`]: now and then a batch's messages change places, with a checksum that fits: the
//!   broker has lost the order of what it confirmed
//! - [`LateCanaryWorld`]: the broker takes acks of leases that have ended
//! - [`SpillCanaryWorld`]: what is read from disk is now and then not what was written, and the
//!   device has not spoiled it: the broker wrote over what it still needs

use crate::format::batch::{self, Batch, BatchHeader};
use crate::format::record::Records;
use crate::format::u32_at;
use crate::io::{
    Accepted, Disk, DiskCompletion, DiskRequest, FileId, Net, NetEvent, ReadOutcome, Socket,
    WriteOutcome,
};
use crate::limits::{BATCH_HEADER_BYTES, FRAME_HEADER_BYTES, PREAMBLE_BYTES, RECORD_HEADER_BYTES};
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::AckDone;
use crate::sim::disk::SimDisk;
use crate::sim::net::{Detached, SimNet};
use crate::sim::world::WorldOf;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::Duration;

/// See the module.
pub type CanaryWorld = WorldOf<CanaryNet<false>, SimDisk>;
/// See the module.
pub type LateCanaryWorld = WorldOf<CanaryNet<true>, SimDisk>;
/// See the module.
pub type SpillCanaryWorld = WorldOf<SimNet, CanaryDisk>;

/// See the module.
pub struct CanaryDisk {
    disk: SimDisk,
}

impl From<SimDisk> for CanaryDisk {
    fn from(disk: SimDisk) -> CanaryDisk {
        CanaryDisk { disk }
    }
}

impl Disk for CanaryDisk {
    fn open(&mut self, name: &str) -> std::io::Result<FileId> {
        self.disk.open(name)
    }

    fn close(&mut self, file: FileId) {
        self.disk.close(file);
    }

    fn names(&self, prefix: &str) -> std::io::Result<Vec<String>> {
        self.disk.names(prefix)
    }

    fn file_len(&self, file: FileId) -> std::io::Result<u64> {
        self.disk.file_len(file)
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
        self.disk.read_now(file, offset, into)
    }

    fn file_bytes(&self, file: FileId) -> std::io::Result<u64> {
        self.disk.file_bytes(file)
    }

    fn cut(&mut self, file: FileId, bytes: u64) -> std::io::Result<()> {
        self.disk.cut(file, bytes)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.disk.free_bytes()
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        self.disk.submit(request)
    }

    fn flush(&mut self) {
        self.disk.flush();
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        let mut completion = self.disk.poll_completion()?;
        if let DiskCompletion::Read { into, result: Ok(_), .. } = &mut completion {
            let used = u32_at(into.loaded_image(), 12) as usize;
            // By its checksum, so that it is so however often it is read.
            let picked = into.loaded_image()[0].is_multiple_of(4);
            if let Some(last) = used.checked_sub(1).filter(|_| picked)
                && let Some(byte) = into.loaded_bytes().get_mut(last)
            {
                *byte ^= 1;
            }
        }
        Some(completion)
    }
}

/// Where the next frame of a socket begins, in one direction.
pub struct Follow {
    /// Bytes until then.
    skip: usize,
    /// The front of its header, where that came in pieces.
    head: Vec<u8>,
}

impl Follow {
    fn new() -> Follow {
        Follow { skip: PREAMBLE_BYTES, head: Vec::new() }
    }

    /// Finds the frames that begin in `bytes` and end there too, and shows them to `see`: opcode
    /// and payload.
    fn walk(&mut self, bytes: &mut [u8], mut see: impl FnMut(u8, &mut [u8])) {
        let mut at = 0;
        while at < bytes.len() {
            let skipped = self.skip.min(bytes.len() - at);
            at += skipped;
            self.skip -= skipped;
            let wanted = FRAME_HEADER_BYTES - self.head.len();
            let head = &bytes[at..bytes.len().min(at + wanted)];
            self.head.extend_from_slice(head);
            at += head.len();
            let Some(header) = self.head.first_chunk() else { return };
            let Ok(header) = FrameHeader::decode(header) else { return };
            self.head.clear();
            self.skip = header.payload_bytes as usize;
            if let Some(payload) = bytes.get_mut(at..at + self.skip) {
                see(header.opcode, payload);
            }
        }
    }
}

/// What comes from the broker changes (`LATE_ACKS`), or what goes to it.
pub struct CanaryNet<const LATE_ACKS: bool> {
    net: SimNet,
    follows: BTreeMap<Socket, Follow>,
}

impl<const LATE_ACKS: bool> From<SimNet> for CanaryNet<LATE_ACKS> {
    fn from(net: SimNet) -> Self {
        CanaryNet { net, follows: BTreeMap::new() }
    }
}

/// An answer to acks says that all of them came in time.
fn forgive(payload: &mut [u8]) {
    if let Some(done) = AckDone::decode(payload) {
        let forgiven = AckDone { acked: done.acked + done.late, late: 0 };
        payload.copy_from_slice(&forgiven.encode());
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

impl<const LATE_ACKS: bool> Net for CanaryNet<LATE_ACKS> {
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
        if let (ReadOutcome::Bytes(bytes), false) = (&outcome, LATE_ACKS) {
            let net = &self.net;
            let follow = self.follows.entry(socket).or_insert_with(Follow::new);
            follow.walk(&mut buffer[..*bytes], |opcode, payload| {
                if opcode == Opcode::Publish as u8 && net.universe().chance(20) {
                    swap_records(payload);
                }
            });
        }
        outcome
    }

    fn write(&mut self, socket: Socket, slices: &[IoSlice<'_>]) -> WriteOutcome {
        if !LATE_ACKS {
            return self.net.write(socket, slices);
        }
        let mut bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let follow = self.follows.entry(socket).or_insert_with(Follow::new);
        // What the socket does not take comes once more.
        let mut whole = Follow { skip: follow.skip, head: follow.head.clone() };
        whole.walk(&mut bytes, |opcode, payload| {
            if opcode == Opcode::AckDone as u8 {
                forgive(payload);
            }
        });
        let outcome = self.net.write(socket, &[IoSlice::new(&bytes)]);
        if let WriteOutcome::Bytes(taken) = outcome {
            follow.walk(&mut bytes[..taken], |_, _| {});
        }
        outcome
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
