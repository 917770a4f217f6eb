//! A large message while its fragments come in: chunks that become part of the log once the last
//! is there. Until then it belongs to its producer handle and ends with it.

use crate::base::chunk_pool::ChunkWriter;
use crate::format::batch::{Batch, BatchPrefix};
use crate::limits::BATCH_PREFIX_BYTES;
use crate::queue::memory::{Memory, MemoryFull};

/// See the module.
pub struct Assembly {
    /// The last one is filled.
    chunks: Vec<ChunkWriter>,
    records_bytes: u64,
    body_bytes_left: u64,
}

impl Assembly {
    /// Of a message whose whole body has `body_bytes`.
    pub fn new(body_bytes: u64) -> Self {
        Assembly { chunks: Vec::new(), records_bytes: 0, body_bytes_left: body_bytes }
    }

    /// Body bytes still to come.
    pub fn body_bytes_left(&self) -> u64 {
        self.body_bytes_left
    }

    /// Bytes of the records so far.
    pub fn records_bytes(&self) -> u64 {
        self.records_bytes
    }

    /// Adds a checked fragment, whose body is not over what is left.
    ///
    /// # Errors
    /// When there is no chunk for it; then nothing has changed.
    pub fn push(
        &mut self,
        fragment: &Batch<'_>,
        accepted_us: u64,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        let bytes = BATCH_PREFIX_BYTES + fragment.wire.len();
        if self.chunks.last().is_none_or(|writer| writer.room_bytes() < bytes) {
            let writer = memory.take_chunk(bytes, memory.class_count() - 1)?;
            self.chunks.push(writer);
        }
        let prefix = BatchPrefix { base_sequence: 0, accepted_us };
        let writer = self.chunks.last_mut().expect("opened above");
        writer.append(&[&prefix.encode(), fragment.wire]);
        self.records_bytes += fragment.records().len() as u64;
        self.body_bytes_left -= fragment.body_bytes;
        Ok(())
    }

    /// The chunks, for [`Log::append_large`](crate::queue::log::Log::append_large).
    pub fn into_chunks(self) -> Vec<ChunkWriter> {
        self.chunks
    }
}
