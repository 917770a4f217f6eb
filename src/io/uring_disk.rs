//! Files by one io_uring of the shard's own thread: a tick's requests go to the system by one call,
//! and no other thread is woken for them.
//!
//! Completions signal an eventfd, which the shard's poller watches. Where the kernel can
//! (Linux 6.1), completions are made ready only when this thread asks (DEFER_TASKRUN): a flag in
//! the shared ring says when to, so that a tick without completions costs no call. As many
//! requests are under way as the table has entries, and the completion queue has twice as many
//! places, so it cannot overflow.
//!
//! Requests and what they point to stay in `Requests`, which is not freed before the system has
//! answered all that it was given.

mod requests;

use crate::io::disk_file::RELEASE_MODE;
use crate::io::disk_files::DiskFiles;
use crate::io::disk_table::{Keep, Work};
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::DISK_FILES_MAX;
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use requests::Requests;
use std::io::{Error, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Operations that must be there; all are since Linux 5.6.
const OPERATIONS: [(u8, &str); 4] = [
    (opcode::Readv::CODE, "readv"),
    (opcode::Writev::CODE, "writev"),
    (opcode::Fsync::CODE, "fsync"),
    (opcode::Fallocate::CODE, "fallocate"),
];

/// Why the system gives us no ring.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// A call failed.
    #[error("{call}: {error}; {}", advice(error))]
    System {
        /// Which.
        call: &'static str,
        /// As the system says.
        error: Error,
    },
    /// The kernel is too old.
    #[error("the kernel's io_uring has no {operation}; Linux 5.6 or newer is needed")]
    TooOld {
        /// What is missing.
        operation: &'static str,
    },
}

/// What to do about an error of the set-up.
fn advice(error: &Error) -> String {
    const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
    let disabled = std::fs::read_to_string(DISABLED).unwrap_or_default();
    match error.raw_os_error() {
        Some(libc::EPERM) if !matches!(disabled.trim(), "" | "0") => format!(
            "sysctl kernel.io_uring_disabled is {}: set it to 0, or to 1 and put this user in \
             kernel.io_uring_group",
            disabled.trim()
        ),
        Some(libc::EPERM | libc::EACCES) => "a seccomp filter or security module forbids it, as \
             Docker's default does: allow io_uring_setup, io_uring_enter and io_uring_register"
            .to_owned(),
        Some(libc::ENOSYS) => "the kernel has no io_uring, or a sandbox hides it: Linux 5.6 or \
             newer is needed"
            .to_owned(),
        Some(libc::ENOMEM) => "memory that may be locked is too little: raise `ulimit -l` \
             (LimitMEMLOCK= of systemd)"
            .to_owned(),
        Some(libc::EMFILE | libc::ENFILE) => "no file descriptor is left: raise `ulimit -n` \
             (LimitNOFILE= of systemd)"
            .to_owned(),
        Some(libc::EINVAL) => "the kernel is too old: Linux 5.6 or newer is needed".to_owned(),
        _ => "disk_backend = threads does without it".to_owned(),
    }
}

/// See the module. Stays on the thread that made it.
pub struct UringDisk {
    /// Each is registered with the ring under its number.
    files: DiskFiles,
    requests: Requests,
    ring: IoUring,
    /// Completions wait for a call of ours that asks for them.
    deferred: bool,
    event: OwnedFd,
}

impl UringDisk {
    /// A disk whose files are in `directory`, which exists, with up to `depth` requests under way.
    /// For the thread that will use it.
    ///
    /// # Errors
    /// If the system gives us no ring that can do what is needed.
    pub fn new(directory: &Path, depth: usize) -> Result<UringDisk, Refusal> {
        let (ring, deferred) = ring(depth as u32)?;
        UringDisk::over(ring, deferred, directory, depth)
    }

    fn over(
        ring: IoUring,
        deferred: bool,
        directory: &Path,
        depth: usize,
    ) -> Result<UringDisk, Refusal> {
        let mut probe = Probe::new();
        let submitter = ring.submitter();
        submitter.register_probe(&mut probe).map_err(refused("io_uring_register(probe)"))?;
        if let Some((_, operation)) = OPERATIONS.iter().find(|(code, _)| !probe.is_supported(*code))
        {
            return Err(Refusal::TooOld { operation });
        }
        register_files(&ring).map_err(refused("io_uring_register(files)"))?;
        let event = eventfd().map_err(refused("eventfd"))?;
        submitter
            .register_eventfd(event.as_raw_fd())
            .map_err(refused("io_uring_register(eventfd)"))?;
        Ok(UringDisk {
            files: DiskFiles::new(directory),
            requests: Requests::new(depth),
            ring,
            deferred,
            event,
        })
    }

    /// Becomes readable with each completion: for the poller, edge-triggered; never read.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Puts what waits into the ring, which has room for as much as the table has entries.
    fn fill_ring(&mut self) {
        let mut queue = self.ring.submission();
        while let Some((entry, file, work)) = self.requests.start() {
            let entry = operation(types::Fixed(file.0), work).user_data(entry as u64);
            // SAFETY: what the entry points to stays alive and in place until its completion was
            // handled (`Requests`); `drop` waits for those that are under way.
            let pushed = unsafe { queue.push(&entry) };
            assert!(pushed.is_ok(), "the ring has a place for each entry of the table");
        }
    }

    /// One call: hands over what is in the ring, lets deferred completions be made ready, and
    /// waits until `wanted` completions are there.
    fn enter(&mut self, wanted: u32) -> std::io::Result<usize> {
        const GETEVENTS: u32 = 1;
        let left = self.ring.submission().len() as u32;
        let flags = if self.deferred || wanted > 0 { GETEVENTS } else { 0 };
        // SAFETY: no argument is passed; what the entries point to is alive: see `fill_ring`.
        unsafe { self.ring.submitter().enter::<libc::sigset_t>(left, wanted, flags, None) }
    }

    fn next_answer(&mut self) -> Option<cqueue::Entry> {
        if let Some(answer) = self.ring.completion().next() {
            return Some(answer);
        }
        if self.requests.started() == 0 || !self.deferred || !self.ring.submission().taskrun() {
            return None;
        }
        // Where it fails, the next tick's call brings the same.
        if self.enter(0).is_err() {
            self.come_back();
        }
        self.ring.completion().next()
    }

    /// Makes the next poll return at once.
    fn come_back(&self) {
        let one = 1u64;
        // SAFETY: the eight bytes of `one` are read. It fails only when the counter is at its end,
        // and then the poll returns anyway.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl Disk for UringDisk {
    fn open(&mut self, name: &str) -> std::io::Result<FileId> {
        let file = self.files.open(name)?;
        let number = self.files.at(file).file.as_raw_fd();
        if let Err(error) = self.ring.submitter().register_files_update(file.0, &[number]) {
            self.files.close(file);
            return Err(error);
        }
        Ok(file)
    }

    fn close(&mut self, file: FileId) {
        self.files.close(file);
        self.requests.forget(file);
        // Where that fails the ring keeps the file open until the number is used again.
        drop(self.ring.submitter().register_files_update(file.0, &[-1]));
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
        self.requests.submit(request, |file| self.files.at(file).direct)
    }

    fn flush(&mut self) {
        self.fill_ring();
        while !self.ring.submission().is_empty() {
            match self.enter(0) {
                Ok(taken) if taken > 0 => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The system has no memory for more now: what is left stays in the ring.
                Ok(_) | Err(_) => {
                    self.come_back();
                    return;
                }
            }
        }
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        loop {
            let answer = self.next_answer()?;
            let entry = answer.user_data() as usize;
            if let Some(completion) = self.requests.handle_answer(entry, answer.result()) {
                return Some(completion);
            }
        }
    }
}

impl Drop for UringDisk {
    /// Waits for what the system was given: it reads and writes our memory until then.
    fn drop(&mut self) {
        const TRIES_MAX: usize = 1000;
        let mut failed = 0;
        while self.requests.started() > 0 {
            if self.enter(1).is_err() {
                failed += 1;
            }
            if failed == TRIES_MAX {
                // It cannot be waited for, so what it points to must stay for ever.
                let requests = std::mem::replace(&mut self.requests, Requests::new(1));
                Box::leak(Box::new(requests));
                return;
            }
            while let Some(answer) = self.ring.completion().next() {
                let entry = answer.user_data() as usize;
                drop(self.requests.handle_answer(entry, answer.result()));
            }
        }
    }
}

/// A ring with a place for each of `depth` requests, and whether its completions are deferred.
fn ring(depth: u32) -> Result<(IoUring, bool), Refusal> {
    let best = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(depth);
    match best {
        Ok(ring) => Ok((ring, true)),
        // Older than Linux 6.1.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let plain = IoUring::builder().build(depth);
            plain.map(|ring| (ring, false)).map_err(refused("io_uring_setup"))
        }
        Err(error) => Err(refused("io_uring_setup")(error)),
    }
}

/// Places for open files, all of them free: no more than the process may open, or it is refused.
fn register_files(ring: &IoUring) -> std::io::Result<()> {
    const FILES_MIN: usize = 16;
    let mut none = vec![-1; DISK_FILES_MAX];
    loop {
        match ring.submitter().register_files(&none) {
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) && none.len() > FILES_MIN => {
                none.truncate(none.len() / 2);
            }
            outcome => return outcome,
        }
    }
}

fn refused(call: &'static str) -> impl FnOnce(Error) -> Refusal {
    move |error| Refusal::System { call, error }
}

fn eventfd() -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes no memory.
    let number = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if number < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn operation(file: types::Fixed, work: &Work) -> squeue::Entry {
    match work {
        Work::Write(transfer, keep) => {
            let parts = transfer.parts();
            let flags = if *keep == Keep::ByWrite { libc::RWF_DSYNC } else { 0 };
            let write = opcode::Writev::new(file, parts.as_ptr(), parts.len() as u32);
            write.offset(transfer.offset()).rw_flags(flags).build()
        }
        Work::Read(transfer) => {
            let parts = transfer.parts();
            let read = opcode::Readv::new(file, parts.as_ptr(), parts.len() as u32);
            read.offset(transfer.offset()).build()
        }
        Work::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Work::Allocate(extent) => {
            opcode::Fallocate::new(file, extent.bytes).offset(extent.offset).build()
        }
        Work::Release(extent) => opcode::Fallocate::new(file, extent.bytes)
            .offset(extent.offset)
            .mode(RELEASE_MODE)
            .build(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
