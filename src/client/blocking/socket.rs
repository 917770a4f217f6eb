//! One TCP connection: reads that wait and reads that do not, gathered writes that never wait, and
//! how a server is dialled. The one place of the client that calls the system.

use crate::base::time::Mono;
use crate::client::{ClientError, ConnectOptions, LostReason};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::io::{ErrorKind, IoSlice, Read};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A write that waits longer than this for a broker that reads nothing is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The client's only clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "the one clock of the client")]
    pub(super) fn new() -> Clock {
        Clock { start: Instant::now() }
    }

    #[inline]
    #[expect(clippy::disallowed_methods, reason = "the one clock of the client")]
    pub(super) fn now(&self) -> Mono {
        Mono(Instant::now().duration_since(self.start).as_nanos() as u64)
    }

    /// The time so far from now; `None` when it is too far to be told from never.
    pub(super) fn after(&self, duration: Duration) -> Option<Mono> {
        let nanos = u64::try_from(duration.as_nanos()).ok()?;
        self.now().0.checked_add(nanos).map(Mono)
    }
}

/// A connected socket. Reading and writing may be done by two threads at once.
pub(super) struct Socket {
    stream: TcpStream,
    /// SO_RCVTIMEO as it is set, in nanoseconds; 0: reads wait for ever.
    read_timeout_ns: AtomicU64,
}

impl Socket {
    fn new(stream: TcpStream) -> std::io::Result<Socket> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        // Best effort: where it is refused, probes still find a dead peer.
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        Ok(Socket { stream, read_timeout_ns: AtomicU64::new(0) })
    }

    /// Reads what is there; `None` if there is nothing now.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> Result<Option<usize>, LostReason> {
        loop {
            match rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(LostReason::Closed),
                Ok((_, bytes)) => return Ok(Some(bytes)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    kind => return Err(LostReason::Io(kind)),
                },
            }
        }
    }

    /// Reads, waiting for the first byte at most so long (`None`: for ever); `None` if none came.
    pub(super) fn read_within(
        &self,
        buffer: &mut [u8],
        timeout: Option<Duration>,
    ) -> Result<Option<usize>, LostReason> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return self.try_read(buffer);
        }
        self.set_read_timeout(timeout)?;
        match (&self.stream).read(buffer) {
            Ok(0) => Err(LostReason::Closed),
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
                kind => Err(LostReason::Io(kind)),
            },
        }
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> Result<(), LostReason> {
        // Rounded up to what the kernel counts in, so that like waits cost no call each.
        let nanos = timeout.map_or(0, |timeout| {
            (timeout.as_nanos().min(1 << 62) as u64).next_multiple_of(1_000_000)
        });
        if self.read_timeout_ns.swap(nanos, Ordering::Relaxed) == nanos {
            return Ok(());
        }
        let timeout = (nanos > 0).then(|| Duration::from_nanos(nanos));
        self.stream.set_read_timeout(timeout).map_err(|error| LostReason::Io(error.kind()))
    }

    /// Writes as much as the system takes without waiting; `None` if nothing.
    pub(super) fn try_write(&self, slices: &[IoSlice<'_>]) -> Result<Option<usize>, LostReason> {
        self.write(slices, SendFlags::DONTWAIT)
    }

    /// Writes, waiting until the system takes something.
    pub(super) fn write_within(&self, slices: &[IoSlice<'_>]) -> Result<usize, LostReason> {
        self.write(slices, SendFlags::empty())?.ok_or(LostReason::Silent)
    }

    fn write(&self, slices: &[IoSlice<'_>], flags: SendFlags) -> Result<Option<usize>, LostReason> {
        let flags = flags | SendFlags::NOSIGNAL;
        loop {
            let mut control = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.stream, slices, &mut control, flags) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Ok(None),
                    kind => return Err(LostReason::Io(kind)),
                },
            }
        }
    }

    /// For a caller's own poller.
    #[cfg(unix)]
    pub(super) fn raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.stream)
    }

    /// Wakes a thread that waits in a read: it finds the end.
    pub(super) fn shut(&self) {
        // Only fails when the connection is gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Connects to one server, trying all its addresses.
pub(super) fn dial(server: &str, timeout: Duration) -> Result<Socket, ClientError> {
    let addresses = server.to_socket_addrs().map_err(|error| ClientError::Address {
        server: server.into(),
        reason: error.to_string(),
    })?;
    let mut reason = LostReason::Io(ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout).and_then(Socket::new) {
            Ok(socket) => return Ok(socket),
            Err(error) => reason = LostReason::Io(error.kind()),
        }
    }
    Err(ClientError::Connect { server: server.into(), reason })
}

/// A random number that differs between processes and calls.
pub(super) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // The standard library seeds it from the system's random numbers.
    std::hash::RandomState::new().build_hasher().finish()
}

/// When to try again: exponential pauses with full jitter, within a total time.
pub(super) struct Backoff {
    prng: crate::base::prng::Prng,
    attempts: u32,
    /// When the present trouble began.
    since: Option<Mono>,
    /// When the last connection was made.
    connected_at: Option<Mono>,
}

/// A connection that held so long ends the trouble before it.
const STEADY_MS: u64 = 1000;

impl Backoff {
    pub(super) fn new() -> Backoff {
        let prng = crate::base::prng::Prng::new(random_u64());
        Backoff { prng, attempts: 0, since: None, connected_at: None }
    }

    /// A connection was made and is of use.
    pub(super) fn connected(&mut self, now: Mono) {
        self.connected_at = Some(now);
    }

    /// Something failed: when to try again, `None` if it is to be given up.
    pub(super) fn failed(&mut self, now: Mono, options: &ConnectOptions) -> Option<Mono> {
        if self.connected_at.take().is_some_and(|at| now.ms_since(at) >= STEADY_MS) {
            self.succeeded();
        }
        let policy = &options.reconnect;
        let since = *self.since.get_or_insert(now);
        let give_up_at = since.0.saturating_add(nanos(policy.give_up_after));
        if policy.give_up_after.is_zero() || now.0 >= give_up_at {
            return None;
        }
        let bound = nanos(policy.pause_first)
            .saturating_mul(1 << self.attempts.min(32))
            .min(nanos(policy.pause_max))
            .max(1);
        self.attempts += 1;
        // The last attempt is made when the time is over, not after it.
        Some(Mono(now.0.saturating_add(self.prng.below(bound)).min(give_up_at)))
    }

    /// All is well: the next trouble starts from the first pause.
    pub(super) fn succeeded(&mut self) {
        (self.attempts, self.since) = (0, None);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Whether trying again may help after a connection ended so.
pub(super) fn may_pass(reason: &LostReason) -> bool {
    match reason {
        LostReason::Fatal(error) => error.is_retryable(),
        LostReason::Protocol(_) => false,
        LostReason::Io(_) | LostReason::Closed | LostReason::Silent => true,
    }
}
