//! One TCP connection: reads that wait and reads that do not, gathered writes that never wait, and
//! how a server is dialled. The one place of the blocking driver that calls the system.

use crate::client::driver::Wire;
use crate::client::{ClientError, LostReason};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::io::{ErrorKind, IoSlice, Read};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A write that waits longer than this for a broker that reads nothing is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

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
}

impl Wire for Socket {
    fn try_write(&self, slices: &[IoSlice<'_>]) -> Result<Option<usize>, LostReason> {
        self.write(slices, SendFlags::DONTWAIT)
    }

    fn shut(&self) {
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
