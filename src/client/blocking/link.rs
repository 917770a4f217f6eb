//! A connection driven by one thread that waits in its socket.

use super::socket::{Socket, dial};
use crate::base::time::Mono;
use crate::client::driver::link::WRITE_SLICES_MAX;
use crate::client::driver::{Clock, Dial, Link};
use crate::client::{ClientError, LostReason};
use std::io::IoSlice;

/// A link over a socket that can be waited in.
pub(super) type BlockingLink = Link<Socket>;

/// Where reads go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Anywhere: what was delivered is dealt with.
    Fresh,
    /// Behind what was delivered.
    Behind,
}

impl Link<Socket> {
    /// For a caller's own poller; `None` while there is no connection.
    #[cfg(unix)]
    pub(super) fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        self.socket().as_deref().map(Socket::raw_fd)
    }

    /// Dials when it is time to, or waits for that until `until`.
    pub(super) fn redial(&mut self, until: Option<Mono>) -> Result<(), ClientError> {
        match self.plan_dial() {
            Dial::At(at) => {
                let wake_at = until.map_or(at, |until| until.min(at));
                std::thread::park_timeout(wake_at.after(self.clock.now()));
                Ok(())
            }
            Dial::Now(server) => {
                let dialled = dial(&server, self.options.connect_timeout);
                self.dialled(dialled)
            }
        }
    }

    /// Sends what is to be sent, reads once, waiting for bytes until `until` (`None`: for ever) or
    /// until the session has something to do. True if bytes came.
    pub(super) fn turn(&mut self, until: Option<Mono>, room: Room) -> Result<bool, LostReason> {
        self.flush()?;
        let Some(socket) = self.socket() else { return Ok(false) };
        let wake_at = self.wake_at(until);
        let buffer = match room {
            Room::Fresh => self.session.input_room(),
            Room::Behind => self.session.input_room_behind(),
        };
        let bytes = if self.options.busy_poll {
            spin(&socket, buffer, &self.clock, wake_at)?
        } else {
            let timeout = wake_at.map(|at| at.after(self.clock.now()));
            socket.read_within(buffer, timeout)?
        };
        let now = self.clock.now();
        match bytes {
            Some(bytes) => {
                self.session.handle_received(now, bytes);
                self.handle_due(now);
            }
            None if self.hello_by().is_some_and(|by| by <= now) => return Err(LostReason::Silent),
            None => self.session.handle_timeout(now),
        }
        Ok(bytes.is_some())
    }

    /// Sends what is to be sent, waiting while the system takes nothing.
    pub(super) fn flush(&mut self) -> Result<(), LostReason> {
        while !self.try_flush()? {
            let Some(socket) = self.socket() else { return Ok(()) };
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
            let count = self.session.transmit(&mut slices);
            let bytes = socket.write_within(&slices[..count])?;
            self.session.transmitted(self.clock.now(), bytes);
        }
        Ok(())
    }
}

/// Reads without ever sleeping.
pub(super) fn spin(
    socket: &Socket,
    buffer: &mut [u8],
    clock: &Clock,
    until: Option<Mono>,
) -> Result<Option<usize>, LostReason> {
    loop {
        if let Some(bytes) = socket.try_read(buffer)? {
            return Ok(Some(bytes));
        }
        if until.is_some_and(|until| clock.now() >= until) {
            return Ok(None);
        }
        std::hint::spin_loop();
    }
}
