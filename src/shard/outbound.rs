//! What a connection is about to be sent: bytes of its own and pieces of chunks, in order, written
//! by one gathered write. Pieces of chunks live for one tick: what the socket did not take is
//! copied, so that a slow reader never keeps a chunk.

use crate::base::chunk_pool::ChunkRef;
use crate::io::{Net, Socket, WriteOutcome};
use std::io::IoSlice;
use std::ops::Range;

/// A piece of a chunk under this size is copied: cheaper than another entry of the write.
const COPY_BYTES_MAX: usize = 1024;
/// Slices of one gathered write; most writes have few, and an array of many costs to clear.
const SLICES_FEW: usize = 4;
/// See [`SLICES_FEW`].
const SLICES_MAX: usize = 64;

enum Piece {
    /// Bytes of `Outbound::bytes`.
    Own(Range<usize>),
    /// Bytes of a chunk.
    Chunk(ChunkRef, Range<usize>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Own(range) | Piece::Chunk(_, range) => range.len(),
        }
    }

    fn bytes<'a>(&'a self, own: &'a [u8]) -> &'a [u8] {
        match self {
            Piece::Own(range) => &own[range.clone()],
            Piece::Chunk(chunk, range) => chunk.slice(range.clone()),
        }
    }
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Everything was taken.
    All,
    /// The socket took this many bytes and will say when it takes more.
    Part(usize),
    /// The connection is gone.
    Failed,
}

/// See the module.
#[derive(Default)]
pub struct Outbound {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// Of `pieces`.
    queued_bytes: usize,
    /// Left for the shard that has the socket, which has not said yet that they went on.
    transit_bytes: usize,
    /// Of everything that was ever put in.
    pushed_total: u64,
}

impl Outbound {
    /// Bytes that no socket has taken.
    pub fn unsent_bytes(&self) -> usize {
        self.queued_bytes + self.transit_bytes
    }

    /// Of these, bytes that wait here.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// All bytes that were ever put in.
    pub fn pushed_total(&self) -> u64 {
        self.pushed_total
    }

    /// All bytes that ever left.
    pub fn sent_total(&self) -> u64 {
        self.pushed_total - self.queued_bytes as u64
    }

    /// Memory that it holds.
    pub fn capacity_bytes(&self) -> usize {
        self.bytes.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }

    /// Gives memory back, if nothing waits.
    pub fn shrink(&mut self) {
        if self.unsent_bytes() == 0 {
            *self = Outbound { pushed_total: self.pushed_total, ..Outbound::default() };
        }
    }

    /// Adds a copy of `bytes`.
    pub fn push(&mut self, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.queued_bytes += bytes.len();
        self.pushed_total += bytes.len() as u64;
        match self.pieces.last_mut() {
            Some(Piece::Own(range)) if range.end == start => range.end = self.bytes.len(),
            _ => self.pieces.push(Piece::Own(start..self.bytes.len())),
        }
    }

    /// Adds part of a chunk, without a copy unless it is small.
    pub fn push_chunk(&mut self, chunk: &ChunkRef, range: Range<usize>) {
        if range.len() < COPY_BYTES_MAX {
            return self.push(chunk.slice(range));
        }
        self.queued_bytes += range.len();
        self.pushed_total += range.len() as u64;
        self.pieces.push(Piece::Chunk(chunk.clone(), range));
    }

    /// Writes as much as the socket takes and lets go of all chunks.
    pub fn flush(&mut self, net: &mut impl Net, socket: Socket) -> Flushed {
        let (mut done, mut offset, mut sent) = (0, 0, 0);
        while done < self.pieces.len() {
            let (given, outcome) = if self.pieces.len() - done <= SLICES_FEW {
                self.write_from::<SLICES_FEW>(done, offset, net, socket)
            } else {
                self.write_from::<SLICES_MAX>(done, offset, net, socket)
            };
            let taken = match outcome {
                WriteOutcome::Bytes(taken) => taken,
                WriteOutcome::Nothing => 0,
                WriteOutcome::Failed(_) => return Flushed::Failed,
            };
            sent += taken;
            offset += taken;
            while done < self.pieces.len() && offset >= self.pieces[done].len() {
                offset -= self.pieces[done].len();
                done += 1;
            }
            if taken < given {
                break;
            }
        }
        self.queued_bytes -= sent;
        if done == self.pieces.len() {
            self.pieces.clear();
            self.bytes.clear();
            return Flushed::All;
        }
        self.keep_from(done, offset);
        Flushed::Part(sent)
    }

    /// Puts everything behind `into`, for the shard that has the socket, and lets go of all chunks.
    pub fn depart(&mut self, into: &mut Vec<u8>) {
        into.reserve(self.queued_bytes);
        for piece in &self.pieces {
            into.extend_from_slice(piece.bytes(&self.bytes));
        }
        self.transit_bytes += self.queued_bytes;
        self.queued_bytes = 0;
        self.pieces.clear();
        self.bytes.clear();
    }

    /// So many bytes that departed have been sent on.
    pub fn note_landed(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.transit_bytes);
        self.transit_bytes = self.transit_bytes.saturating_sub(bytes);
    }

    /// Copies what is part of a chunk, for a wait.
    pub fn keep(&mut self) {
        if self.pieces.iter().any(|piece| matches!(piece, Piece::Chunk(..))) {
            self.keep_from(0, 0);
        }
    }

    /// One gathered write of up to `N` pieces. Gives the bytes offered and the outcome.
    fn write_from<const N: usize>(
        &self,
        done: usize,
        offset: usize,
        net: &mut impl Net,
        socket: Socket,
    ) -> (usize, WriteOutcome) {
        let mut slices = [IoSlice::new(&[]); N];
        let (mut count, mut given) = (0, 0);
        for (slice, piece) in slices.iter_mut().zip(&self.pieces[done..]) {
            let skip = if count == 0 { offset } else { 0 };
            *slice = IoSlice::new(&piece.bytes(&self.bytes)[skip..]);
            given += slice.len();
            count += 1;
        }
        (given, net.write(socket, &slices[..count]))
    }

    fn keep_from(&mut self, done: usize, offset: usize) {
        let mut kept = Vec::with_capacity(self.queued_bytes);
        for (nth, piece) in self.pieces[done..].iter().enumerate() {
            kept.extend_from_slice(&piece.bytes(&self.bytes)[if nth == 0 { offset } else { 0 }..]);
        }
        debug_assert_eq!(kept.len(), self.queued_bytes);
        self.bytes = kept;
        self.pieces.clear();
        self.pieces.push(Piece::Own(0..self.bytes.len()));
    }
}
