//! What is under way on a disk: each request with the memory that keeps its bytes alive and in
//! place, and how far a transfer has come. Both backends keep one.

use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::base::pages::Pages;
use crate::io::{DiskCompletion, DiskRequest, FileId};
use crate::limits::{DISK_ALIGN_BYTES, DISK_WRITE_CHUNKS_MAX};
use std::io::ErrorKind;

/// A request that is under way.
enum UnderWay {
    Write { tag: u64, _chunks: Vec<SealedChunk> },
    WritePages { tag: u64, pages: Pages },
    Read { tag: u64, into: ChunkWriter },
    Sync { tag: u64 },
    Allocate { tag: u64 },
    Release { tag: u64 },
}

/// What to do for an entry.
pub(super) enum Work {
    Write(Transfer, Keep),
    Read(Transfer),
    Sync,
    Allocate(Extent),
    Release(Extent),
}

/// When the device has to keep what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// When somebody asks.
    Later,
    /// Before the write ends (RWF_DSYNC).
    ByWrite,
    /// By a sync behind the write, which does not take the flag.
    BySync,
}

/// A part of a file.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// Requests by entry. The memory that an entry's [`Work`] points to stays alive and in place, and
/// is written by nobody but the work itself, until [`DiskTable::end`] takes the entry or the table
/// is dropped.
pub(super) struct DiskTable {
    /// `None`: free.
    entries: Vec<Option<UnderWay>>,
    free: Vec<usize>,
}

impl DiskTable {
    /// Room for `depth` requests.
    pub(super) fn new(depth: usize) -> DiskTable {
        assert!(depth > 0);
        DiskTable { entries: (0..depth).map(|_| None).collect(), free: (0..depth).rev().collect() }
    }

    /// Enters a request: its entry, its file and what is to be done; the request itself if there
    /// is no room.
    pub(super) fn begin(
        &mut self,
        request: DiskRequest,
    ) -> Result<(usize, FileId, Work), DiskRequest> {
        let Some(entry) = self.free.pop() else { return Err(request) };
        let (file, work, under_way) = match request {
            DiskRequest::Write { tag, file, offset, chunks } => {
                assert!((1..=DISK_WRITE_CHUNKS_MAX).contains(&chunks.len()));
                // Written through by nobody: the system only reads from there.
                let part = |chunk: &SealedChunk| libc::iovec {
                    iov_base: chunk.image().as_ptr().cast_mut().cast(),
                    iov_len: chunk.image().len(),
                };
                let transfer = Transfer::new(offset, chunks.iter().map(part).collect());
                let work = Work::Write(transfer, Keep::Later);
                (file, work, UnderWay::Write { tag, _chunks: chunks })
            }
            DiskRequest::WritePages { tag, file, offset, mut pages, sync } => {
                assert!(!pages.is_empty());
                let all = pages.as_mut_slice();
                let part = libc::iovec { iov_base: all.as_mut_ptr().cast(), iov_len: all.len() };
                let keep = if sync { Keep::ByWrite } else { Keep::Later };
                let work = Work::Write(Transfer::new(offset, vec![part]), keep);
                (file, work, UnderWay::WritePages { tag, pages })
            }
            DiskRequest::Read { tag, file, offset, bytes, mut into } => {
                let mut start = std::ptr::null_mut();
                // The chunk stays empty until the bytes are there.
                into.load(|all| {
                    start = all[..bytes].as_mut_ptr();
                    0
                });
                let part = libc::iovec { iov_base: start.cast(), iov_len: bytes };
                let transfer = Transfer::new(offset, vec![part]);
                (file, Work::Read(transfer), UnderWay::Read { tag, into })
            }
            DiskRequest::Sync { tag, file } => (file, Work::Sync, UnderWay::Sync { tag }),
            DiskRequest::Allocate { tag, file, offset, bytes } => {
                let extent = Extent::new(offset, bytes);
                (file, Work::Allocate(extent), UnderWay::Allocate { tag })
            }
            DiskRequest::Release { tag, file, offset, bytes } => {
                let extent = Extent::new(offset, bytes);
                (file, Work::Release(extent), UnderWay::Release { tag })
            }
        };
        self.entries[entry] = Some(under_way);
        Ok((entry, file, work))
    }

    /// Takes an entry whose work has ended; `result` has the bytes of a read.
    pub(super) fn end(&mut self, entry: usize, result: Result<usize, ErrorKind>) -> DiskCompletion {
        let under_way = self.entries[entry].take().expect("what is under way ends once");
        self.free.push(entry);
        let done = result.map(drop);
        match under_way {
            UnderWay::Write { tag, _chunks } => DiskCompletion::Written { tag, result: done },
            UnderWay::WritePages { tag, pages } => {
                DiskCompletion::WrotePages { tag, pages, result: done }
            }
            UnderWay::Sync { tag } => DiskCompletion::Synced { tag, result: done },
            UnderWay::Allocate { tag } => DiskCompletion::Allocated { tag, result: done },
            UnderWay::Release { tag } => DiskCompletion::Released { tag, result: done },
            UnderWay::Read { tag, mut into } => {
                if let Ok(bytes) = result {
                    into.load(|_| bytes);
                }
                DiskCompletion::Read { tag, into, result }
            }
        }
    }
}

fn is_aligned(bytes: u64) -> bool {
    bytes.is_multiple_of(DISK_ALIGN_BYTES as u64)
}

impl Extent {
    fn new(offset: u64, bytes: u64) -> Extent {
        assert!(bytes > 0 && is_aligned(offset) && is_aligned(bytes));
        Extent { offset, bytes }
    }
}

/// Bytes on their way between memory and a file, in as many calls as the system needs. Neither
/// copied nor kept alive here: see [`DiskTable`].
pub(super) struct Transfer {
    /// Of what is left.
    offset: u64,
    /// What is left begins at `first`.
    parts: Vec<libc::iovec>,
    first: usize,
    done_bytes: usize,
    left_bytes: usize,
}

/// What a call of the system has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// There is more to transfer.
    More,
    /// So many bytes in all, or the error that ended it.
    Ended(Result<usize, ErrorKind>),
}

impl Transfer {
    fn new(offset: u64, parts: Vec<libc::iovec>) -> Transfer {
        assert!(is_aligned(offset) && parts.iter().all(|part| is_aligned(part.iov_len as u64)));
        let left_bytes = parts.iter().map(|part| part.iov_len).sum();
        Transfer { offset, parts, first: 0, done_bytes: 0, left_bytes }
    }

    /// Where what is left begins in the file.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Where what is left stands in memory.
    pub(super) fn parts(&self) -> &[libc::iovec] {
        &self.parts[self.first..]
    }

    /// The system has written so many bytes of what is left.
    pub(super) fn handle_written(&mut self, bytes: usize, direct: bool) -> Step {
        assert!(bytes <= self.left_bytes, "more was written than was given");
        // A direct write goes on at the block in which it stopped.
        let whole = bytes / DISK_ALIGN_BYTES * DISK_ALIGN_BYTES;
        let bytes = if direct { whole } else { bytes };
        if bytes == 0 {
            return Step::Ended(Err(ErrorKind::WriteZero));
        }
        self.advance(bytes);
        if self.left_bytes > 0 { Step::More } else { Step::Ended(Ok(self.done_bytes)) }
    }

    /// The system has read so many bytes of what is left.
    pub(super) fn handle_read(&mut self, bytes: usize, direct: bool) -> Step {
        assert!(bytes <= self.left_bytes, "more was read than was asked for");
        self.advance(bytes);
        // A direct read stops inside a block only where the file does.
        let cut = direct && !self.done_bytes.is_multiple_of(DISK_ALIGN_BYTES);
        if bytes > 0 && self.left_bytes > 0 && !cut {
            return Step::More;
        }
        Step::Ended(Ok(self.done_bytes))
    }

    fn advance(&mut self, bytes: usize) {
        self.offset += bytes as u64;
        self.done_bytes += bytes;
        self.left_bytes -= bytes;
        let mut rest = bytes;
        while rest > 0 {
            let part = &mut self.parts[self.first];
            let taken = rest.min(part.iov_len);
            part.iov_base = part.iov_base.wrapping_byte_add(taken);
            part.iov_len -= taken;
            rest -= taken;
            self.first += usize::from(part.iov_len == 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three parts whose addresses are never looked at.
    fn transfer() -> Transfer {
        let part = |at: usize, blocks: usize| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(at),
            iov_len: blocks * DISK_ALIGN_BYTES,
        };
        Transfer::new(8192, vec![part(0x10_0000, 1), part(0x20_0000, 2), part(0x30_0000, 1)])
    }

    fn left(transfer: &Transfer) -> Vec<(usize, usize)> {
        transfer.parts().iter().map(|part| (part.iov_base.addr(), part.iov_len)).collect()
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let mut transfer = transfer();
        assert_eq!(transfer.handle_written(4096 + 100, false), Step::More);
        assert_eq!(left(&transfer), [(0x20_0064, 8092), (0x30_0000, 4096)]);
        assert_eq!(transfer.offset(), 8192 + 4196);
        assert_eq!(transfer.handle_written(8092, false), Step::More);
        assert_eq!(left(&transfer), [(0x30_0000, 4096)]);
        assert_eq!(transfer.handle_written(4096, false), Step::Ended(Ok(16384)));
        assert!(left(&transfer).is_empty());
    }

    #[test]
    fn a_short_direct_write_goes_on_at_a_whole_block() {
        let mut transfer = transfer();
        assert_eq!(transfer.handle_written(8192 + 512, true), Step::More);
        assert_eq!(left(&transfer), [(0x20_1000, 4096), (0x30_0000, 4096)]);
        assert_eq!(transfer.offset(), 16384);
        let stuck = Step::Ended(Err(ErrorKind::WriteZero));
        assert_eq!(transfer.handle_written(512, true), stuck);
        assert_eq!(transfer.handle_written(0, false), stuck);
    }

    #[test]
    fn a_read_ends_with_its_last_byte_or_with_the_file() {
        let mut whole = transfer();
        assert_eq!(whole.handle_read(4096, true), Step::More);
        assert_eq!(whole.handle_read(12288, true), Step::Ended(Ok(16384)));
        let mut at_block = transfer();
        assert_eq!(at_block.handle_read(8192, true), Step::More);
        assert_eq!(at_block.handle_read(0, true), Step::Ended(Ok(8192)));
        let mut in_block = transfer();
        assert_eq!(in_block.handle_read(8192 + 7, true), Step::Ended(Ok(8199)));
        let mut buffered = transfer();
        assert_eq!(buffered.handle_read(8192 + 7, false), Step::More);
        assert_eq!(buffered.handle_read(0, false), Step::Ended(Ok(8199)));
    }
}
