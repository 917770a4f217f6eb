//! Connections of one thread to a peer with a protocol of lines: one read and one write for each
//! that has something, and a buffer each for what is not all there yet.

use crate::sys::{Epoll, Ready};
use crate::targets::peer::{Peer, READ_BYTES_MAX, SCRATCH_BYTES};
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

struct Connection {
    peer: Peer,
    /// Bytes read and not yet parsed, and how far they are.
    bytes: Vec<u8>,
    at: usize,
}

/// All of them, by the numbers in which they were added.
pub struct TextConnections {
    epoll: Epoll,
    ready: Vec<Ready>,
    scratch: Vec<u8>,
    connections: Vec<Connection>,
}

impl TextConnections {
    /// None yet.
    ///
    /// # Errors
    /// As the system says.
    pub fn new() -> io::Result<TextConnections> {
        Ok(TextConnections {
            epoll: Epoll::new()?,
            ready: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            connections: Vec::new(),
        })
    }

    /// One more; sends what waits in it.
    ///
    /// # Errors
    /// If it failed.
    pub fn add(&mut self, mut peer: Peer) -> io::Result<()> {
        let all = peer.flush()?;
        self.epoll.add(peer.fd(), self.connections.len() as u64, !all)?;
        self.connections.push(Connection { peer, bytes: Vec::new(), at: 0 });
        Ok(())
    }

    /// What connection `index` sends with the next turn.
    pub fn out(&mut self, index: usize) -> &mut Vec<u8> {
        &mut self.connections[index].peer.out
    }

    /// For another poller.
    pub fn poll_fd(&self) -> RawFd {
        self.epoll.fd()
    }

    /// Sends what waits, then shows what has come on a connection to `parse`, with what goes out on
    /// it; that says how much of it was whole. Waits for something at most `wait`.
    ///
    /// # Errors
    /// If a connection failed, or as `parse` says.
    pub fn turn(
        &mut self,
        wait: Duration,
        mut parse: impl FnMut(usize, &[u8], &mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<()> {
        for index in 0..self.connections.len() {
            if self.connections[index].peer.is_pending() {
                self.flush(index)?;
            }
        }
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        self.epoll.wait(wait, &mut ready)?;
        for event in &ready {
            let index = event.token as usize;
            if event.writable {
                self.flush(index)?;
            }
            if event.readable {
                self.read(index, |bytes, out| parse(index, bytes, out))?;
            }
        }
        self.ready = ready;
        Ok(())
    }

    fn flush(&mut self, index: usize) -> io::Result<()> {
        let peer = &mut self.connections[index].peer;
        let all = peer.flush()?;
        self.epoll.change(peer.fd(), index as u64, !all)
    }

    fn read(
        &mut self,
        index: usize,
        parse: impl FnOnce(&[u8], &mut Vec<u8>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let count = connection.peer.read(&mut self.scratch)?;
        connection.bytes.extend_from_slice(&self.scratch[..count]);
        connection.at += parse(&connection.bytes[connection.at..], &mut connection.peer.out)?;
        if connection.at == connection.bytes.len() || connection.at > READ_BYTES_MAX {
            connection.bytes.drain(..connection.at);
            connection.at = 0;
        }
        if connection.peer.is_pending() { self.flush(index) } else { Ok(()) }
    }
}
