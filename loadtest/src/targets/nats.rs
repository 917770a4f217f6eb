//! NATS core as a peer, by a hand-written client. It confirms nothing and keeps nothing: a message
//! counts as confirmed when it has arrived.

use crate::clock::now;
use crate::targets::peer::{Peer, bad_bytes};
use crate::targets::text::TextConnections;
use crate::targets::{Shape, Wire};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::RawFd;
use std::time::Duration;

const CONNECT: &[u8] =
    b"CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\"}\r\n";
/// All consumers share the subject as one queue group.
const SUBSCRIBE: &[u8] = b"SUB loadtest g 1\r\nPING\r\n";
const PONG_TIMEOUT: Duration = Duration::from_secs(5);
const PONG_WAIT: Duration = Duration::from_millis(100);

/// Connections to one server.
pub struct NatsWire {
    /// Consumers first.
    connections: TextConnections,
    consumers: usize,
    window: usize,
    body: Vec<u8>,
    /// Head of each publish.
    head: Vec<u8>,
    sent: Vec<u64>,
    arrived: u64,
}

impl NatsWire {
    /// Connects producers and consumers.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connect(server: SocketAddr, shape: Shape) -> io::Result<NatsWire> {
        let mut wire = NatsWire {
            connections: TextConnections::new()?,
            consumers: shape.consumers,
            window: shape.window,
            body: vec![0; shape.body_bytes],
            head: format!("PUB loadtest {}\r\n", shape.body_bytes).into_bytes(),
            sent: vec![0; shape.producers],
            arrived: 0,
        };
        for nth in 0..shape.consumers + shape.producers {
            let mut peer = Peer::new(TcpStream::connect(server)?)?;
            peer.out.extend_from_slice(CONNECT);
            if nth < shape.consumers {
                peer.out.extend_from_slice(SUBSCRIBE);
            }
            wire.connections.add(peer)?;
        }
        wire.wait_for_pongs()?;
        Ok(wire)
    }

    /// A subscription counts from when its PING was answered.
    fn wait_for_pongs(&mut self) -> io::Result<()> {
        let begin = now();
        let mut missing = self.consumers;
        while missing > 0 {
            self.connections.turn(PONG_WAIT, |_, bytes, _| {
                // Nothing but INFO and the answer comes before the first message.
                let whole = bytes.ends_with(b"PONG\r\n");
                missing -= usize::from(whole);
                Ok(if whole { bytes.len() } else { 0 })
            })?;
            if begin.elapsed() > PONG_TIMEOUT {
                return Err(bad_bytes("nats did not answer within 5 s"));
            }
        }
        Ok(())
    }
}

/// Walks whole lines and messages. Returns the bytes used.
fn lines(bytes: &[u8], pinged: &mut bool, mut take: impl FnMut(&[u8])) -> io::Result<usize> {
    let mut at = 0;
    loop {
        let rest = &bytes[at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else { return Ok(at) };
        let line = &rest[..end];
        if line.starts_with(b"MSG ") {
            let size = line.rsplit(|byte| *byte == b' ').next();
            let size = size.and_then(|size| std::str::from_utf8(size).ok()?.parse::<usize>().ok());
            let size = size.ok_or_else(|| bad_bytes("a bad MSG line"))?;
            let Some(body) = rest.get(end + 2..end + 2 + size + 2) else { return Ok(at) };
            take(&body[..size]);
            at += end + 2 + size + 2;
            continue;
        }
        *pinged |= line == b"PING";
        if line.starts_with(b"-ERR") {
            return Err(bad_bytes(&format!("nats: {}", String::from_utf8_lossy(line))));
        }
        at += end + 2;
    }
}

impl Wire for NatsWire {
    fn room(&self, producer: usize) -> usize {
        // Nothing is confirmed to a producer: what all have under way is bounded instead.
        let sent: u64 = self.sent.iter().sum();
        let under_way = (sent - self.arrived.min(sent)) as usize;
        debug_assert!(producer < self.sent.len());
        (self.window * self.sent.len()).saturating_sub(under_way)
    }

    fn publish(
        &mut self,
        producer: usize,
        count: usize,
        mut fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let out = self.connections.out(self.consumers + producer);
        for _ in 0..count {
            fill(&mut self.body);
            out.extend_from_slice(&self.head);
            out.extend_from_slice(&self.body);
            out.extend_from_slice(b"\r\n");
        }
        self.sent[producer] += count as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
        let NatsWire { connections, arrived, .. } = self;
        connections.turn(wait, |index, bytes, out| {
            let mut pinged = false;
            let used = lines(bytes, &mut pinged, |body| {
                *arrived += 1;
                take(index, body);
            })?;
            if pinged {
                out.extend_from_slice(b"PONG\r\n");
            }
            Ok(used)
        })
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.connections.poll_fd())
    }

    fn confirmed(&self) -> u64 {
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_whole_or_not_at_all() {
        let bytes = b"INFO {}\r\nPING\r\nMSG loadtest 1 4\r\na\r\nb\r\nMSG loadtest 1 0\r\n\r\n";
        for cut in 0..=bytes.len() {
            let (mut pinged, mut bodies) = (false, Vec::new());
            let used = lines(&bytes[..cut], &mut pinged, |body| bodies.push(body.to_vec()));
            assert!(used.unwrap() <= cut);
            let whole = [vec![b"a\r\nb".to_vec(), vec![]], vec![b"a\r\nb".to_vec()], vec![]];
            assert!(whole.contains(&bodies), "{cut}: {bodies:?}");
        }
        let mut pinged = false;
        assert_eq!(lines(bytes, &mut pinged, |_| {}).unwrap(), bytes.len());
        assert!(pinged);
        assert!(lines(b"-ERR 'no'\r\n", &mut pinged, |_| {}).is_err());
    }
}
