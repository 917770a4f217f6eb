//! Files by a few threads that make the system's blocking calls: works everywhere.
//!
//! Requests and their chunks stay in a table on the caller's side; threads get a file and what to
//! do there, and give back the number in the table. The table outlives the threads: they are
//! joined before it is dropped.

use crate::io::disk_file::DiskFile;
use crate::io::disk_files::DiskFiles;
use crate::io::disk_table::{DiskTable, Work};
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::DISK_DEPTH;
use crossbeam_queue::ArrayQueue;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Called by a disk thread after each completion; wakes the shard.
pub type WakeUp = Arc<dyn Fn() + Send + Sync>;

/// How many threads and requests there may be.
#[derive(Clone, Copy, Debug)]
pub struct ThreadDiskShape {
    /// Threads.
    pub threads: usize,
    /// Requests under way.
    pub depth: usize,
}

impl Default for ThreadDiskShape {
    fn default() -> Self {
        // Depth 2 to 4 each way fills a device; threads beyond that only switch.
        ThreadDiskShape { threads: 4, depth: DISK_DEPTH }
    }
}

struct Job {
    entry: usize,
    file: Arc<DiskFile>,
    work: Work,
}

// SAFETY: the work's pointers are into the chunks or pages of table entry `entry`, which stay in
// the table until this job's completion is polled; the bytes of a write do not change while a
// handle lives, those of a read are touched by nobody else, for the table holds their only writer.
// The table outlives the threads (`ThreadDisk::drop` joins them first). The rest is Send by itself.
unsafe impl Send for Job {}

struct Done {
    entry: usize,
    result: Result<usize, ErrorKind>,
}

struct JobQueue {
    jobs: VecDeque<Job>,
    ending: bool,
}

struct Shared {
    queue: Mutex<JobQueue>,
    work: Condvar,
    done: ArrayQueue<Done>,
    wake_up: WakeUp,
}

/// See the module.
pub struct ThreadDisk {
    files: DiskFiles,
    shape: ThreadDiskShape,
    table: DiskTable,
    /// Not flushed yet.
    submitted: Vec<Job>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadDisk {
    /// A disk whose files are in `directory`, which exists.
    pub fn new(directory: &Path, shape: ThreadDiskShape, wake_up: WakeUp) -> ThreadDisk {
        assert!(shape.threads > 0);
        let queue = Mutex::new(JobQueue { jobs: VecDeque::new(), ending: false });
        let done = ArrayQueue::new(shape.depth);
        ThreadDisk {
            files: DiskFiles::new(directory),
            shape,
            table: DiskTable::new(shape.depth),
            submitted: Vec::new(),
            shared: Arc::new(Shared { queue, work: Condvar::new(), done, wake_up }),
            threads: Vec::new(),
        }
    }

    /// Starts the threads, unless they run already: where this one may run now. Opening a file
    /// does so too.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(&mut self) -> std::io::Result<()> {
        while self.threads.len() < self.shape.threads {
            let shared = Arc::clone(&self.shared);
            let name = format!("disk-{}", self.threads.len());
            let thread = std::thread::Builder::new().name(name).stack_size(256 * 1024);
            self.threads.push(thread.spawn(move || serve(&shared))?);
        }
        Ok(())
    }
}

impl Disk for ThreadDisk {
    fn open(&mut self, name: &str) -> std::io::Result<FileId> {
        self.start()?;
        self.files.open(name)
    }

    fn close(&mut self, file: FileId) {
        self.files.close(file);
    }

    fn names(&self, prefix: &str) -> std::io::Result<Vec<String>> {
        self.files.names(prefix)
    }

    fn file_len(&self, file: FileId) -> std::io::Result<u64> {
        self.files.at(file).file_len()
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
        self.files.at(file).read_now(offset, into)
    }

    fn file_bytes(&self, file: FileId) -> std::io::Result<u64> {
        self.files.at(file).block_bytes()
    }

    fn cut(&mut self, file: FileId, bytes: u64) -> std::io::Result<()> {
        self.files.at(file).file.set_len(bytes)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.files.free_bytes()
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        let (entry, file, work) = self.table.begin(request)?;
        let file = Arc::clone(self.files.at(file));
        self.submitted.push(Job { entry, file, work });
        Ok(())
    }

    fn flush(&mut self) {
        if self.submitted.is_empty() {
            return;
        }
        let count = self.submitted.len();
        self.shared.queue().jobs.extend(self.submitted.drain(..));
        for _ in 0..count.min(self.threads.len()) {
            self.shared.work.notify_one();
        }
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        let Done { entry, result } = self.shared.done.pop()?;
        Some(self.table.end(entry, result))
    }
}

impl Drop for ThreadDisk {
    fn drop(&mut self) {
        {
            let mut queue = self.shared.queue();
            queue.ending = true;
            // Nobody will poll what these bring.
            queue.jobs.clear();
        }
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has let go of its job too.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, JobQueue> {
        // Nothing that can panic runs under the lock, so what it guards is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_job(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.ending {
                return None;
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The life of a thread.
fn serve(shared: &Shared) {
    while let Some(job) = shared.next_job() {
        let (entry, result) = (job.entry, job.run());
        assert!(shared.done.push(Done { entry, result }).is_ok(), "as many as table entries");
        (shared.wake_up)();
    }
}

impl Job {
    /// The pointers that a transfer has are good: see `impl Send for Job`.
    fn run(self) -> Result<usize, ErrorKind> {
        match self.work {
            Work::Write(mut transfer, keep) => self.file.write(&mut transfer, keep),
            Work::Read(mut transfer) => self.file.read(&mut transfer),
            Work::Sync => self.file.sync(),
            Work::Allocate(extent) => self.file.allocate(extent),
            Work::Release(extent) => self.file.release(extent),
        }
    }
}

#[cfg(test)]
mod tests;
