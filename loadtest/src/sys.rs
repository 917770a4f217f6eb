//! The calls to the system that the standard library has no safe form of: epoll with nanosecond
//! timeouts, limits, timer slack, huge pages, blocks of files, and what a child does before it
//! becomes its program. All `unsafe` of the load test is here.

use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// Events that one wait reports at most.
pub const EVENTS_MAX: usize = 512;
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What a file descriptor is ready for.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// As given to [`Epoll::add`].
    pub token: u64,
    /// Bytes, an end or an error can be read.
    pub readable: bool,
    /// Bytes can be written.
    pub writable: bool,
}

/// An epoll set, level-triggered.
pub struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    /// As the system says.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { fd, events: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Watches `fd` for reading, and for writing if asked. It leaves the set when it is closed.
    ///
    /// # Errors
    /// As the system says.
    pub fn add(&self, fd: RawFd, token: u64, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, fd, token, writable)
    }

    /// Changes what `fd` is watched for.
    ///
    /// # Errors
    /// As the system says.
    pub fn change(&self, fd: RawFd, token: u64, writable: bool) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, fd, token, writable)
    }

    /// For another set to watch this one: it is readable while anything in it is ready.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn control(&self, operation: i32, fd: RawFd, token: u64, writable: bool) -> io::Result<()> {
        let wanted = libc::EPOLLIN | if writable { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event { events: wanted as u32, u64: token };
        // SAFETY: `event` lives through the call, which copies it.
        let done = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd, &mut event) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits at most `timeout` and appends what is ready. An interrupted wait reports nothing.
    ///
    /// # Errors
    /// As the system says.
    pub fn wait(&mut self, timeout: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
        };
        // SAFETY: the buffer has room for EVENTS_MAX events, the timeout lives through the call,
        // and no signal mask is given.
        let count = unsafe {
            libc::epoll_pwait2(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as i32,
                &timeout,
                std::ptr::null(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        // SAFETY: the system has filled `count` events, which is at most the capacity.
        unsafe { self.events.set_len(count as usize) };
        for event in &self.events {
            let bits = event.events;
            ready.push(Ready {
                token: event.u64,
                readable: bits & (libc::EPOLLIN | libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0,
                writable: bits & libc::EPOLLOUT as u32 != 0,
            });
        }
        Ok(())
    }
}

/// Zeroed memory that begins at a page, in huge pages if the system has them.
pub struct PageBuffer {
    start: std::ptr::NonNull<u8>,
    bytes: usize,
}

impl PageBuffer {
    /// So many bytes, rounded up to a huge page.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(bytes: usize) -> io::Result<PageBuffer> {
        let mapped = bytes.next_multiple_of(HUGE_PAGE_BYTES).max(HUGE_PAGE_BYTES);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping anywhere; no memory of ours is touched.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping just made. Without huge pages it stays as it is.
        unsafe { libc::madvise(start, mapped, libc::MADV_HUGEPAGE) };
        let start = std::ptr::NonNull::new(start.cast());
        let start = start.ok_or_else(|| io::Error::other("the system mapped nothing"))?;
        Ok(PageBuffer { start, bytes })
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is at least so long, zeroed by the system, and ours until drop.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        let mapped = self.bytes.next_multiple_of(HUGE_PAGE_BYTES).max(HUGE_PAGE_BYTES);
        // SAFETY: the mapping that `new` made, with its length; nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), mapped) };
    }
}

/// Gives `file` blocks for its first `bytes`, and that length.
///
/// # Errors
/// As the system says.
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let bytes = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open; the rest are plain numbers.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, bytes) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes this thread's sleeps exact: without it the system may add 50 us to each.
pub fn exact_timers() {
    // SAFETY: the call takes plain numbers.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// Raises the limit of open files to what the system lets this process have; returns it.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        }
    }
    limit.rlim_cur
}

/// Clock ticks per second, the unit of CPU times in `/proc`.
pub fn ticks_per_second() -> u64 {
    // SAFETY: the call takes a plain number.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    u64::try_from(ticks).ok().filter(|ticks| *ticks > 0).unwrap_or(100)
}

/// Makes the child of `command` run on `core` alone, if given, and die with the thread that
/// started it, so that no end of this process leaves it behind.
pub fn bind_child(command: &mut Command, core: Option<usize>) {
    let before_exec = move || {
        // SAFETY: plain numbers, and a set that lives on this stack; both calls are
        // async-signal-safe and allocate nothing, as is needed between fork and exec.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if let Some(core) = core {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(core, &mut set);
                if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn epoll_reports_what_is_ready_and_nothing_else() {
        let (mut left, right) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(right.as_raw_fd(), 7, false).unwrap();
        let mut ready = Vec::new();
        epoll.wait(Duration::ZERO, &mut ready).unwrap();
        assert!(ready.is_empty());
        left.write_all(b"x").unwrap();
        epoll.wait(Duration::from_secs(5), &mut ready).unwrap();
        assert_eq!(ready.len(), 1);
        assert!(ready[0].token == 7 && ready[0].readable && !ready[0].writable);
        ready.clear();
        epoll.change(right.as_raw_fd(), 8, true).unwrap();
        epoll.wait(Duration::from_secs(5), &mut ready).unwrap();
        assert!(ready[0].token == 8 && ready[0].readable && ready[0].writable);
    }

    #[test]
    fn page_buffers_are_aligned_zeroed_and_writable() {
        let mut buffer = PageBuffer::new(12_288).unwrap();
        assert_eq!((buffer.len(), buffer.as_ptr() as usize % 4096), (12_288, 0));
        assert!(buffer.iter().all(|byte| *byte == 0));
        buffer.fill(7);
        assert_eq!(buffer[12_287], 7);
    }

    #[test]
    fn files_get_blocks_and_a_length() {
        let file = tempfile::tempfile().unwrap();
        allocate(&file, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn system_values_are_sane() {
        assert!(ticks_per_second() > 0);
        assert!(raise_open_files() > 0);
    }
}
