//! L1: the seam to the operating system. Three traits, joined by [`World`]; the shard is generic
//! over it, so production and simulation differ in a type parameter and nowhere else. Only the
//! backends below call the system.
//!
//! Nothing here calls back: `poll` fills a list of events, completions are polled, and every
//! outcome is a value. No method blocks but [`Net::poll`], the thread's one blocking point, and
//! those of [`Disk`] that say so.

pub mod affinity;
pub mod any_disk;
pub mod clock;
mod disk_file;
mod disk_files;
mod disk_table;
pub mod memory;
pub mod mio_net;
pub mod process;
pub mod thread_disk;
pub mod uring_disk;
pub mod volume;

use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::base::pages::Pages;
use crate::base::time::Now;
use std::io::{ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;

/// The types of one world: the real one, or a simulated one.
pub trait World: 'static {
    /// Sockets and the blocking point.
    type Net: Net;
    /// Files.
    type Disk: Disk;
    /// Time.
    type Clock: Clock;
}

/// The world that a broker runs in.
pub struct RealWorld;

impl World for RealWorld {
    type Net = mio_net::MioNet;
    type Disk = any_disk::AnyDisk;
    type Clock = clock::SystemClock;
}

/// Reads both clocks at once. A tick reads it once, after [`Net::poll`] returned.
pub trait Clock {
    /// The time now. The monotonic part never goes back; the wall part may jump.
    fn now(&mut self) -> Now;
}

/// Names a connected socket until it is closed. Backends use each number again only after `close`,
/// and never report an event for a closed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Socket(pub u32);

/// What [`Net::poll`] reports. Readiness is edge-triggered: after an event, read (write) until
/// `Nothing` or a short count, or the next event may never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// A listener may have connections to accept.
    Acceptable,
    /// The socket may have bytes, its end, or an error to read. `closed` says that the peer sent
    /// its last byte, or that the socket failed: read until `Closed` or `Failed`.
    Readable {
        /// Which.
        socket: Socket,
        /// The end is near.
        closed: bool,
    },
    /// The socket may take bytes.
    Writable(Socket),
    /// Somebody called the waker: look at the mailboxes.
    Woken,
}

/// Outcome of [`Net::accept`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// A connection.
    Socket(Socket, SocketAddr),
    /// There is none to accept now.
    Nothing,
    /// Out of file descriptors or kernel memory. If `closed_one`, one waiting connection was
    /// accepted and closed at once, so that its client knows. Others may wait.
    Shed {
        /// Whether a waiting connection was closed.
        closed_one: bool,
    },
    /// One connection failed before it was accepted; others may wait.
    Failed(ErrorKind),
}

/// Outcome of [`Net::read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes, at least 1. Fewer than asked for means that there are no more now.
    Bytes(usize),
    /// None now; an event will tell.
    Nothing,
    /// The peer sent its last byte.
    Closed,
    /// The connection is gone.
    Failed(ErrorKind),
}

/// Outcome of [`Net::write`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// So many bytes were taken, at least 1 unless there were none to write. Fewer than given
    /// means that a [`NetEvent::Writable`] will tell when there is room again.
    Bytes(usize),
    /// None now; an event will tell.
    Nothing,
    /// The connection is gone.
    Failed(ErrorKind),
}

/// Sockets of one shard, and its one blocking point.
pub trait Net {
    /// A connected socket on its way from one shard's net to another's.
    type Detached: Send + 'static;
    /// Waits until something is ready, at most `timeout` (`None`: for ever; zero: not at all), and
    /// appends what is. An interrupted wait returns with nothing.
    ///
    /// # Errors
    /// Only if the system's poller itself fails, which ends the shard.
    fn poll(
        &mut self,
        timeout: Option<Duration>,
        events: &mut Vec<NetEvent>,
    ) -> std::io::Result<()>;
    /// Accepts one waiting connection.
    fn accept(&mut self) -> Accepted;
    /// Reads into `buffer`, which is not empty.
    fn read(&mut self, socket: Socket, buffer: &mut [u8]) -> ReadOutcome;
    /// Writes `slices` in order.
    fn write(&mut self, socket: Socket, slices: &[IoSlice<'_>]) -> WriteOutcome;
    /// Closes the socket; bytes that the system has taken are still sent.
    fn close(&mut self, socket: Socket);
    /// Gives a socket away, for the net of another shard; its number is free as after `close`.
    /// `None` if it is lost on the way, which the peer sees as the end of the connection.
    fn release(&mut self, socket: Socket) -> Option<Self::Detached>;
    /// Takes a socket that another shard's net gave away. What has come in and what there is room
    /// for is reported anew. `None` if the system refuses it, which ends the connection.
    fn adopt(&mut self, detached: Self::Detached) -> Option<Socket>;
    /// Stops listening.
    fn stop_listening(&mut self);
}

/// Names an open file of a [`Disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

/// Something to do on disk. Offsets and lengths are multiples of
/// [`DISK_ALIGN_BYTES`](crate::limits::DISK_ALIGN_BYTES). `tag` is the caller's and comes back.
/// What overlaps and is under way at the same time happens in any order.
pub enum DiskRequest {
    /// Writes the images of sealed chunks one behind the other.
    Write {
        /// Comes back with the completion.
        tag: u64,
        /// Where.
        file: FileId,
        /// Of the first image, from the file's start.
        offset: u64,
        /// What, from 1 to [`DISK_WRITE_CHUNKS_MAX`](crate::limits::DISK_WRITE_CHUNKS_MAX); held
        /// until the completion is polled.
        chunks: Vec<SealedChunk>,
    },
    /// Writes whole pages.
    WritePages {
        /// Comes back with the completion.
        tag: u64,
        /// Where.
        file: FileId,
        /// Of the first page, from the file's start.
        offset: u64,
        /// What, at least one page; comes back with the completion.
        pages: Pages,
        /// The device keeps these bytes, and the length that the file needs for them, before the
        /// completion comes. What was written otherwise is not asked for.
        sync: bool,
    },
    /// Reads an image into an empty chunk.
    Read {
        /// Comes back with the completion.
        tag: u64,
        /// Where.
        file: FileId,
        /// From the file's start.
        offset: u64,
        /// How many.
        bytes: usize,
        /// Where to; comes back with the completion.
        into: ChunkWriter,
    },
    /// Asks the device to keep what was written (fdatasync).
    Sync {
        /// Comes back with the completion.
        tag: u64,
        /// Which.
        file: FileId,
    },
    /// Asks for blocks for a range, so that writes there find room; the file grows to hold it.
    /// What stands in the range stays. Where the file system cannot do that, nothing happens, and
    /// writes find room or not by themselves.
    Allocate {
        /// Comes back with the completion.
        tag: u64,
        /// Where.
        file: FileId,
        /// From the file's start.
        offset: u64,
        /// How many, at least one.
        bytes: u64,
    },
    /// Gives the blocks of a range back to the file system; it reads as zeros then. The file's
    /// length stays. Nothing else may be under way in the range.
    Release {
        /// Comes back with the completion.
        tag: u64,
        /// Where.
        file: FileId,
        /// From the file's start.
        offset: u64,
        /// How many, at least one.
        bytes: u64,
    },
}

/// A [`DiskRequest`] has ended. Completions come in any order.
pub enum DiskCompletion {
    /// All bytes of a write are with the system, or it failed.
    Written {
        /// The request's.
        tag: u64,
        /// How it ended.
        result: Result<(), ErrorKind>,
    },
    /// All bytes are with the system, and with the device if that was asked for; or the write
    /// failed, and then any part of it may be there.
    WrotePages {
        /// The request's.
        tag: u64,
        /// What was written, for use again.
        pages: Pages,
        /// How it ended.
        result: Result<(), ErrorKind>,
    },
    /// A read has ended. Fewer bytes than asked for means that the file ends there.
    Read {
        /// The request's.
        tag: u64,
        /// The chunk, holding what was read.
        into: ChunkWriter,
        /// Bytes read, or how it failed.
        result: Result<usize, ErrorKind>,
    },
    /// A sync has ended.
    Synced {
        /// The request's.
        tag: u64,
        /// How it ended. After an error nothing may be assumed of earlier writes.
        result: Result<(), ErrorKind>,
    },
    /// An allocation has ended.
    Allocated {
        /// The request's.
        tag: u64,
        /// How it ended; after an error a part of the range may have its blocks.
        result: Result<(), ErrorKind>,
    },
    /// A release has ended.
    Released {
        /// The request's.
        tag: u64,
        /// How it ended; `Unsupported` where the file system gives nothing back.
        result: Result<(), ErrorKind>,
    },
}

/// Files of one shard. Backends finish short reads and writes and EINTR by themselves.
pub trait Disk {
    /// Opens a file of the data directory, made if it is missing; that it is there survives a
    /// crash. At most [`DISK_FILES_MAX`](crate::limits::DISK_FILES_MAX) are open at a time. Blocks;
    /// for boot, and for what happens seldom.
    ///
    /// # Errors
    /// As the system says; `QuotaExceeded` when no number is free.
    fn open(&mut self, name: &str) -> std::io::Result<FileId>;
    /// Closes a file, on which nothing is under way; its number may be used again.
    ///
    /// # Panics
    /// If it is not open.
    fn close(&mut self, file: FileId);
    /// The names of the files of the data directory that begin with `prefix`, in order. Blocks; for
    /// boot, not for ticks.
    ///
    /// # Errors
    /// As the system says.
    fn names(&self, prefix: &str) -> std::io::Result<Vec<String>>;
    /// Length of the file, holes included. Blocks; for boot, not for ticks.
    ///
    /// # Errors
    /// As the system says.
    fn file_len(&self, file: FileId) -> std::io::Result<u64>;
    /// Reads until `into` is full or the file ends; how many bytes that were. The address of `into`
    /// and its length must be multiples of
    /// [`DISK_ALIGN_BYTES`](crate::limits::DISK_ALIGN_BYTES), as those of whole [`Pages`] are, and
    /// so must `offset`. Blocks; for boot, not for ticks.
    ///
    /// # Errors
    /// As the system says.
    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> std::io::Result<usize>;
    /// Bytes from the file's start that surely have blocks; there may be more behind a hole.
    /// Blocks; for boot, not for ticks.
    ///
    /// # Errors
    /// As the system says.
    fn file_bytes(&self, file: FileId) -> std::io::Result<u64>;
    /// Cuts a file off behind so many bytes; what stood there goes back to the file system. Blocks;
    /// for boot, not for ticks.
    ///
    /// # Errors
    /// As the system says.
    fn cut(&mut self, file: FileId, bytes: u64) -> std::io::Result<()>;
    /// Free bytes of the file system, as far as we may use them; `None` if the system does not say
    /// or nothing is open yet. Cheap.
    fn free_bytes(&self) -> Option<u64>;
    /// Takes a request; [`Disk::flush`] starts it. Gives it back when as many are under way as the
    /// backend takes.
    ///
    /// # Errors
    /// The request itself, when the backend is full: poll completions and try again.
    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest>;
    /// Hands all that was submitted to the system at once. For each tick, at its end; cheap if
    /// there is nothing.
    fn flush(&mut self);
    /// Takes one completion, if there is one. Completions wake [`Net::poll`].
    fn poll_completion(&mut self) -> Option<DiskCompletion>;
}
