//! Files by a few threads that call pread, pwrite and fdatasync: works everywhere.
//!
//! Requests and their chunks stay in a table on the caller's side; threads get a file, a place and
//! a pointer, and give back the number in the table. The table never outlives its threads: they
//! are joined before it is dropped.

use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::DISK_ALIGN_BYTES;
use crossbeam_queue::ArrayQueue;
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Called by a disk thread after each completion; wakes the shard.
pub type WakeUp = Arc<dyn Fn() + Send + Sync>;

/// How many threads and requests there may be.
#[derive(Clone, Copy, Debug)]
pub struct ThreadDiskShape {
    /// Threads, started when the first file is opened.
    pub threads: usize,
    /// Requests under way.
    pub depth: usize,
}

impl Default for ThreadDiskShape {
    fn default() -> Self {
        // Depth 2 to 4 each way fills a device; threads beyond that only switch.
        ThreadDiskShape { threads: 4, depth: 64 }
    }
}

/// A request that is under way, with the chunk that keeps its bytes alive and in place.
enum UnderWay {
    Write { tag: u64, _chunk: SealedChunk },
    Read { tag: u64, into: ChunkWriter },
    Sync { tag: u64 },
}

enum Work {
    Write { bytes: *const u8, count: usize, offset: u64 },
    Read { into: *mut u8, count: usize, offset: u64 },
    Sync,
}

struct Job {
    entry: usize,
    file: Arc<OpenFile>,
    work: Work,
}

// SAFETY: the pointers are into the chunk of table entry `entry`, whose handle stays in the table
// until this job's completion is polled; the bytes of a write do not change while a handle lives,
// those of a read are touched by nobody else, for the table holds their only writer. The table
// outlives the threads (`ThreadDisk::drop` joins them first). The rest is Send by itself.
unsafe impl Send for Job {}

struct Done {
    entry: usize,
    result: Result<usize, ErrorKind>,
}

struct OpenFile {
    file: File,
    /// Opened with O_DIRECT: offsets and lengths must stay aligned.
    direct: bool,
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
    directory: PathBuf,
    shape: ThreadDiskShape,
    files: Vec<Arc<OpenFile>>,
    /// `None`: free.
    table: Vec<Option<UnderWay>>,
    free: Vec<usize>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl ThreadDisk {
    /// A disk whose files are in `directory`, which exists.
    pub fn new(directory: &Path, shape: ThreadDiskShape, wake_up: WakeUp) -> ThreadDisk {
        assert!(shape.threads > 0 && shape.depth > 0);
        let queue = Mutex::new(JobQueue { jobs: VecDeque::new(), ending: false });
        let done = ArrayQueue::new(shape.depth);
        ThreadDisk {
            directory: directory.to_owned(),
            shape,
            files: Vec::new(),
            table: (0..shape.depth).map(|_| None).collect(),
            free: (0..shape.depth).rev().collect(),
            shared: Arc::new(Shared { queue, work: Condvar::new(), done, wake_up }),
            threads: Vec::new(),
        }
    }

    fn start_threads(&mut self) -> std::io::Result<()> {
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
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Error::new(ErrorKind::InvalidInput, "not the name of a file"));
        }
        self.start_threads()?;
        let number = u32::try_from(self.files.len()).map_err(|_| ErrorKind::QuotaExceeded)?;
        let opened = OpenFile::open(&self.directory.join(name))?;
        // So that a file that was just made is still there after a crash.
        File::open(&self.directory)?.sync_all()?;
        self.files.push(Arc::new(opened));
        Ok(FileId(number))
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        let Some(entry) = self.free.pop() else { return Err(request) };
        let aligned = |number: u64| number.is_multiple_of(DISK_ALIGN_BYTES as u64);
        let (file, work, under_way) = match request {
            DiskRequest::Write { tag, file, offset, chunk } => {
                let image = chunk.image();
                assert!(aligned(offset) && aligned(image.len() as u64));
                let work = Work::Write { bytes: image.as_ptr(), count: image.len(), offset };
                (file, work, UnderWay::Write { tag, _chunk: chunk })
            }
            DiskRequest::Read { tag, file, offset, bytes, mut into } => {
                assert!(aligned(offset) && aligned(bytes as u64));
                let mut start = std::ptr::null_mut();
                // The chunk stays empty until the bytes are there.
                into.load(|all| {
                    start = all[..bytes].as_mut_ptr();
                    0
                });
                let work = Work::Read { into: start, count: bytes, offset };
                (file, work, UnderWay::Read { tag, into })
            }
            DiskRequest::Sync { tag, file } => (file, Work::Sync, UnderWay::Sync { tag }),
        };
        self.table[entry] = Some(under_way);
        let job = Job { entry, file: Arc::clone(&self.files[file.0 as usize]), work };
        self.shared.queue().jobs.push_back(job);
        self.shared.work.notify_one();
        Ok(())
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        let Done { entry, result } = self.shared.done.pop()?;
        let under_way = self.table[entry].take().expect("a job has one completion");
        self.free.push(entry);
        Some(match under_way {
            UnderWay::Write { tag, _chunk } => {
                DiskCompletion::Written { tag, result: result.map(drop) }
            }
            UnderWay::Sync { tag } => DiskCompletion::Synced { tag, result: result.map(drop) },
            UnderWay::Read { tag, mut into } => {
                if let Ok(bytes) = result {
                    into.load(|_| bytes);
                }
                DiskCompletion::Read { tag, into, result }
            }
        })
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
        let result = job.run().map_err(|error| error.kind());
        let done = Done { entry: job.entry, result };
        assert!(shared.done.push(done).is_ok(), "there is a place for each table entry");
        (shared.wake_up)();
    }
}

impl Job {
    fn run(&self) -> std::io::Result<usize> {
        match self.work {
            Work::Write { bytes, count, offset } => {
                // SAFETY: see `impl Send for Job`: alive, initialised and unchanging.
                let bytes = unsafe { std::slice::from_raw_parts(bytes, count) };
                self.file.write(bytes, offset).map(|()| count)
            }
            Work::Read { into, count, offset } => {
                // SAFETY: see `impl Send for Job`: alive, initialised and nobody else's.
                let into = unsafe { std::slice::from_raw_parts_mut(into, count) };
                self.file.read(into, offset)
            }
            // Not tried again after an error: the system may have dropped what it could not write.
            Work::Sync => self.file.file.sync_data().map(|()| 0),
        }
    }
}

impl OpenFile {
    /// With O_DIRECT if the file system takes it.
    fn open(path: &Path) -> std::io::Result<OpenFile> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut direct_options = options.clone();
        direct_options.custom_flags(libc::O_DIRECT);
        if let Ok(file) = direct_options.open(path)
            && takes_aligned_reads(&file)
        {
            return Ok(OpenFile { file, direct: true });
        }
        Ok(OpenFile { file: options.open(path)?, direct: false })
    }

    fn write(&self, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.write_at(&bytes[done..], offset + done as u64) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                // A direct write goes on at the block in which it stopped.
                Ok(count) if self.direct && done + count < bytes.len() => {
                    let next = (done + count) / DISK_ALIGN_BYTES * DISK_ALIGN_BYTES;
                    if next == done {
                        return Err(ErrorKind::WriteZero.into());
                    }
                    done = next;
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Fewer bytes than asked for only at the end of the file.
    fn read(&self, into: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    // A direct read stops inside a block only where the file does.
                    if self.direct && !done.is_multiple_of(DISK_ALIGN_BYTES) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

/// Some file systems take O_DIRECT and then refuse every read or want larger blocks than ours.
fn takes_aligned_reads(file: &File) -> bool {
    #[repr(align(4096))]
    struct Block([u8; DISK_ALIGN_BYTES]);
    let mut block = Box::new(Block([0; DISK_ALIGN_BYTES]));
    file.read_at(&mut block.0, 0).is_ok()
}

#[cfg(test)]
mod tests;
