//! The disk of a real broker: io_uring, or threads where the system gives us no ring.

use crate::io::thread_disk::{ThreadDisk, ThreadDiskShape, WakeUp};
use crate::io::uring_disk::{Refusal, UringDisk};
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::DISK_DEPTH;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// One of the backends.
pub enum AnyDisk {
    /// By a ring of the thread that made it.
    Uring(Box<UringDisk>),
    /// By threads of its own.
    Threads(ThreadDisk),
}

impl AnyDisk {
    /// A disk by io_uring whose files are in `directory`, which exists. For the thread that will
    /// use it; its poller must watch [`AnyDisk::event`].
    ///
    /// # Errors
    /// If the system gives us no ring.
    pub fn uring(directory: &Path) -> Result<AnyDisk, Refusal> {
        UringDisk::new(directory, DISK_DEPTH).map(|disk| AnyDisk::Uring(Box::new(disk)))
    }

    /// A disk by threads whose files are in `directory`, which exists. The threads are started,
    /// and may run wherever this thread may now.
    ///
    /// # Errors
    /// If the system gives us no threads.
    pub fn threads(directory: &Path, wake_up: WakeUp) -> std::io::Result<AnyDisk> {
        let shape = ThreadDiskShape { depth: DISK_DEPTH, ..ThreadDiskShape::default() };
        let mut disk = ThreadDisk::new(directory, shape, wake_up);
        disk.start()?;
        Ok(AnyDisk::Threads(disk))
    }

    /// The disk that `uring` gives, or one by threads, and then why.
    ///
    /// # Errors
    /// If the system gives us no threads either.
    pub fn auto(
        uring: impl FnOnce() -> Result<AnyDisk, Refusal>,
        directory: &Path,
        wake_up: WakeUp,
    ) -> std::io::Result<(AnyDisk, Option<Refusal>)> {
        match uring() {
            Ok(disk) => Ok((disk, None)),
            Err(refusal) => Ok((AnyDisk::threads(directory, wake_up)?, Some(refusal))),
        }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            AnyDisk::Uring(_) => "io_uring",
            AnyDisk::Threads(_) => "threads",
        }
    }

    /// What the poller must watch to hear of completions; `None` if a [`WakeUp`] tells.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        match self {
            AnyDisk::Uring(disk) => Some(disk.event()),
            AnyDisk::Threads(_) => None,
        }
    }
}

impl Disk for AnyDisk {
    fn open(&mut self, name: &str) -> std::io::Result<FileId> {
        match self {
            AnyDisk::Uring(disk) => disk.open(name),
            AnyDisk::Threads(disk) => disk.open(name),
        }
    }

    fn close(&mut self, file: FileId) {
        match self {
            AnyDisk::Uring(disk) => disk.close(file),
            AnyDisk::Threads(disk) => disk.close(file),
        }
    }

    fn names(&self, prefix: &str) -> std::io::Result<Vec<String>> {
        match self {
            AnyDisk::Uring(disk) => disk.names(prefix),
            AnyDisk::Threads(disk) => disk.names(prefix),
        }
    }

    fn file_len(&self, file: FileId) -> std::io::Result<u64> {
        match self {
            AnyDisk::Uring(disk) => disk.file_len(file),
            AnyDisk::Threads(disk) => disk.file_len(file),
        }
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
        match self {
            AnyDisk::Uring(disk) => disk.read_now(file, offset, into),
            AnyDisk::Threads(disk) => disk.read_now(file, offset, into),
        }
    }

    fn file_bytes(&self, file: FileId) -> std::io::Result<u64> {
        match self {
            AnyDisk::Uring(disk) => disk.file_bytes(file),
            AnyDisk::Threads(disk) => disk.file_bytes(file),
        }
    }

    fn cut(&mut self, file: FileId, bytes: u64) -> std::io::Result<()> {
        match self {
            AnyDisk::Uring(disk) => disk.cut(file, bytes),
            AnyDisk::Threads(disk) => disk.cut(file, bytes),
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        match self {
            AnyDisk::Uring(disk) => disk.free_bytes(),
            AnyDisk::Threads(disk) => disk.free_bytes(),
        }
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        match self {
            AnyDisk::Uring(disk) => disk.submit(request),
            AnyDisk::Threads(disk) => disk.submit(request),
        }
    }

    fn flush(&mut self) {
        match self {
            AnyDisk::Uring(disk) => disk.flush(),
            AnyDisk::Threads(disk) => disk.flush(),
        }
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        match self {
            AnyDisk::Uring(disk) => disk.poll_completion(),
            AnyDisk::Threads(disk) => disk.poll_completion(),
        }
    }
}

#[cfg(test)]
mod tests;
