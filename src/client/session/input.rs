//! The bytes that came and are not handled yet. The driver reads straight into this buffer, frames
//! are taken in place, and delivered records stay where they are until the next read.

use crate::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX, KIB, READ_BYTES_MAX};
use crate::protocol::frame::{FrameError, FrameHeader};

/// Room for the rest of a largest frame behind a full read.
const INPUT_BYTES: usize = READ_BYTES_MAX + FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;
/// With less room than this behind what is held, what is held moves to the front.
const ROOM_BYTES_MIN: usize = 64 * KIB;

pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Counts what overwrites or moves bytes that were taken.
    generation: u64,
}

impl Input {
    pub(super) fn new() -> Input {
        Input { bytes: vec![0; INPUT_BYTES], start: 0, end: 0, generation: 0 }
    }

    /// Forgets what is held.
    pub(super) fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        self.generation += 1;
    }

    /// Where the next bytes go; at least 64 KiB once all whole frames are taken. Taken frames may
    /// be overwritten.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.generation += 1;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < ROOM_BYTES_MIN {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.room_behind()
    }

    /// Room that leaves taken frames in place; may be empty.
    pub(super) fn room_behind(&mut self) -> &mut [u8] {
        let limit = self.bytes.len().min(self.end + READ_BYTES_MAX);
        &mut self.bytes[self.end..limit]
    }

    /// So many bytes were put into the room.
    ///
    /// # Panics
    /// If there was not so much room.
    pub(super) fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes.len() - self.end, "more bytes than there was room for");
        self.end += bytes;
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Takes `N` bytes, when they are there.
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.bytes[self.start..self.end].first_chunk::<N>()?;
        self.start += N;
        Some(bytes)
    }

    /// Takes a whole frame, when it is there: its header, and where its payload stands.
    #[inline]
    pub(super) fn take_frame(
        &mut self,
    ) -> Result<Option<(FrameHeader, std::ops::Range<usize>)>, FrameError> {
        let held = &self.bytes[self.start..self.end];
        let Some(header) = held.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
        let header = FrameHeader::decode(header)?;
        let frame_bytes = FRAME_HEADER_BYTES + header.payload_bytes as usize;
        if held.len() < frame_bytes {
            return Ok(None);
        }
        let payload = self.start + FRAME_HEADER_BYTES..self.start + frame_bytes;
        self.start += frame_bytes;
        Ok(Some((header, payload)))
    }

    #[inline]
    pub(super) fn slice(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[range]
    }
}
