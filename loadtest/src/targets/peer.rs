//! One connection of the bare programs, either end of it: reads frames through a buffer that all
//! connections share, so that it stays warm, and writes without waiting.

use forebay::limits::{FRAME_HEADER_BYTES, FRAME_PAYLOAD_BYTES_MAX};
use forebay::protocol::frame::FrameHeader;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

/// Bytes that one read takes at most.
pub const READ_BYTES_MAX: usize = 256 * 1024;
/// Room for what an earlier read left over, and one read behind it.
pub const SCRATCH_BYTES: usize = READ_BYTES_MAX + FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX;

/// A connection that never blocks.
pub struct Peer {
    stream: TcpStream,
    /// Front of a frame whose rest has not come yet.
    rest: Vec<u8>,
    /// To be sent; [`Peer::flush`] sends it.
    pub out: Vec<u8>,
    sent: usize,
}

impl Peer {
    /// Takes a connected stream.
    ///
    /// # Errors
    /// If the system refuses the options.
    pub fn new(stream: TcpStream) -> io::Result<Peer> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Peer { stream, rest: Vec::new(), out: Vec::new(), sent: 0 })
    }

    /// For an epoll set.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The stream, for writes that do not go through `out`.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Reads once into `scratch`, behind what an earlier read left over. Gives the bytes that are
    /// there now: 0 if none came.
    ///
    /// # Errors
    /// If the connection failed; `UnexpectedEof` if it ended.
    #[inline]
    pub fn read(&mut self, scratch: &mut [u8]) -> io::Result<usize> {
        let old = self.rest.len();
        match self.stream.read(&mut scratch[old..old + READ_BYTES_MAX]) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(new) => {
                scratch[..old].copy_from_slice(&self.rest);
                self.rest.clear();
                Ok(old + new)
            }
            Err(error) if is_nothing(&error) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Keeps what [`frames`](Frames) did not take, until the next read.
    pub fn keep(&mut self, rest: &[u8]) {
        self.rest.extend_from_slice(rest);
    }

    /// Whether bytes wait in `out`.
    pub fn is_pending(&self) -> bool {
        self.sent < self.out.len()
    }

    /// Sends what the socket takes of `out`. Whether all is sent.
    ///
    /// # Errors
    /// If the connection failed.
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "a socket that never blocks takes what it can")]
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if is_nothing(&error) => {
                    // One that never catches up would keep all that it ever sent.
                    if self.sent > self.out.len() / 2 {
                        self.out.drain(..std::mem::take(&mut self.sent));
                    }
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }
}

/// Whether an error only says that there is nothing to do now.
pub fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Walks the whole frames at the front of some bytes.
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// Walks `bytes`.
    pub fn new(bytes: &'a [u8]) -> Frames<'a> {
        Frames { rest: bytes }
    }

    /// The front of a frame that is not all there.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next whole frame.
    ///
    /// # Errors
    /// `InvalidData` if the bytes are no frame.
    #[inline]
    pub fn next(&mut self) -> io::Result<Option<(FrameHeader, &'a [u8])>> {
        let Some((header, rest)) = self.rest.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header).map_err(io::Error::other)?;
        let Some((payload, rest)) = rest.split_at_checked(header.payload_bytes as usize) else {
            return Ok(None);
        };
        self.rest = rest;
        Ok(Some((header, payload)))
    }
}

/// An error for bytes that the other end should not have sent.
pub fn bad_bytes(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay::protocol::frame::Opcode;
    use std::net::TcpListener;

    #[test]
    fn frames_survive_being_split_at_every_byte() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        sender.set_nodelay(true).unwrap();
        let mut peer = Peer::new(listener.accept().unwrap().0).unwrap();
        let mut wire = Vec::new();
        for nth in 0..3_u8 {
            let payload = vec![nth; usize::from(nth) * 5];
            wire.extend(FrameHeader::new(Opcode::Ping, nth.into(), payload.len()).encode());
            wire.extend(payload);
        }
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut handles = Vec::new();
        for byte in wire {
            sender.write_all(&[byte]).unwrap();
            let mut bytes = 0;
            while bytes == 0 {
                bytes = peer.read(&mut scratch).unwrap();
            }
            let mut frames = Frames::new(&scratch[..bytes]);
            while let Some((header, payload)) = frames.next().unwrap() {
                assert!(payload.iter().all(|byte| u32::from(*byte) == header.handle));
                handles.push(header.handle);
            }
            peer.keep(frames.rest());
        }
        assert_eq!(handles, [0, 1, 2]);
        drop(sender);
        let end = loop {
            match peer.read(&mut scratch) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_sent_is_not_kept_while_more_comes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = Peer::new(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let peer = peer.as_mut().unwrap();
        let mut reader = listener.accept().unwrap().0;
        let (mut read, mut bytes_max) = (vec![0; 1 << 20], 0);
        // It is never done: there is more before the last of it is taken.
        for round in 0_u8..64 {
            while !peer.is_pending() || peer.flush().unwrap() {
                peer.out.extend_from_slice(&[round; 1 << 20]);
            }
            reader.read_exact(&mut read).unwrap();
            peer.out.extend_from_slice(&[round; 1 << 20]);
            bytes_max = bytes_max.max(peer.out.len());
        }
        assert!(bytes_max < 32 << 20, "{bytes_max}");
    }
}
