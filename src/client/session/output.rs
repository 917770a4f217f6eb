//! The bytes to send: control frames that share a buffer, and batches that the producer keeps too,
//! sent from where they are.

use crate::limits::FRAME_HEADER_BYTES;
use crate::protocol::frame::{FrameHeader, Opcode};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

enum Segment {
    Control(Vec<u8>),
    Batch(Arc<Vec<u8>>),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Segment::Control(bytes) => bytes,
            Segment::Batch(frame) => frame,
        }
    }
}

#[derive(Default)]
pub(super) struct Output {
    segments: VecDeque<Segment>,
    /// Bytes of the first segment that are sent.
    front_sent: usize,
    /// A control buffer to use again.
    spare: Vec<u8>,
}

impl Output {
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.front_sent = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The buffer that control bytes go to.
    fn control(&mut self) -> &mut Vec<u8> {
        if !matches!(self.segments.back(), Some(Segment::Control(_))) {
            let mut buffer = std::mem::take(&mut self.spare);
            buffer.clear();
            self.segments.push_back(Segment::Control(buffer));
        }
        match self.segments.back_mut() {
            Some(Segment::Control(buffer)) => buffer,
            _ => unreachable!("a control segment was pushed above"),
        }
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.control().extend_from_slice(bytes);
    }

    pub(super) fn frame(&mut self, opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) {
        let mut header = FrameHeader::new(opcode, handle, payload.len());
        header.correlation = correlation;
        let buffer = self.control();
        buffer.extend_from_slice(&header.encode());
        buffer.extend_from_slice(payload);
    }

    /// A frame whose payload `fill` appends.
    pub(super) fn frame_with(
        &mut self,
        opcode: Opcode,
        correlation: u32,
        fill: impl FnOnce(&mut Vec<u8>),
    ) {
        let buffer = self.control();
        let at = buffer.len();
        buffer.extend_from_slice(&[0; FRAME_HEADER_BYTES]);
        fill(buffer);
        let payload_bytes = buffer.len() - at - FRAME_HEADER_BYTES;
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, 0, payload_bytes) };
        buffer[at..at + FRAME_HEADER_BYTES].copy_from_slice(&header.encode());
    }

    /// A whole frame that holds a batch.
    pub(super) fn batch(&mut self, frame: Arc<Vec<u8>>) {
        self.segments.push_back(Segment::Batch(frame));
    }

    /// Fills `slices` with what is to be sent, in order; gives how many.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slot, segment) in slices.iter_mut().zip(&self.segments) {
            let skip = if count == 0 { self.front_sent } else { 0 };
            *slot = IoSlice::new(&segment.bytes()[skip..]);
            count += 1;
        }
        count
    }

    /// So many bytes were sent.
    ///
    /// # Panics
    /// If there were not so many.
    pub(super) fn sent(&mut self, mut bytes: usize) {
        while bytes > 0 {
            let front = self.segments.front().expect("no more is sent than there was to send");
            let left = front.bytes().len() - self.front_sent;
            if bytes < left {
                self.front_sent += bytes;
                return;
            }
            bytes -= left;
            self.front_sent = 0;
            if let Some(Segment::Control(buffer)) = self.segments.pop_front() {
                self.spare = buffer;
            }
        }
    }
}
