//! Redis as a peer, by a hand-written client: pipelined commands, one read and one write per
//! connection and turn. As a stream each message is acked by its consumer group; as a list it is
//! gone when it was taken, so nothing of a consumer that dies comes back.

use crate::targets::peer::{Peer, bad_bytes};
use crate::targets::text::TextConnections;
use crate::targets::{Shape, Wire};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::RawFd;
use std::time::Duration;

/// Messages that one command takes.
const TAKE_COUNT: usize = 250;
/// A stream keeps what was acked; over so many entries beside those that wait the oldest go.
const STREAM_LENGTH: u64 = 200_000;
const KEY: &str = "loadtest";

/// Which of Redis' queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// XADD, XREADGROUP, XACK.
    Stream,
    /// RPUSH, BLMPOP.
    List,
}

/// Connections to one server.
pub struct RedisWire {
    kind: Kind,
    /// Consumers first.
    connections: TextConnections,
    consumers: usize,
    window: usize,
    /// Entries that wait and must not go.
    held: u64,
    body_bytes: usize,
    body: Vec<u8>,
    sent: Vec<u64>,
    confirmed: Vec<u64>,
    /// Messages of each command that was not answered yet, where one command has several.
    pushed: Vec<std::collections::VecDeque<u64>>,
}

/// One value of an answer.
#[derive(Debug, PartialEq)]
enum Value<'a> {
    Bytes(&'a [u8]),
    Nil,
    Array(usize),
    Integer,
}

impl RedisWire {
    /// Connects producers and consumers.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connect(server: SocketAddr, kind: Kind, shape: Shape) -> io::Result<RedisWire> {
        let mut wire = RedisWire {
            kind,
            connections: TextConnections::new()?,
            consumers: shape.consumers,
            window: shape.window,
            held: shape.held,
            body_bytes: shape.body_bytes,
            body: vec![0; shape.body_bytes],
            sent: vec![0; shape.producers],
            confirmed: vec![0; shape.producers],
            pushed: (0..shape.producers).map(|_| Default::default()).collect(),
        };
        for nth in 0..shape.consumers + shape.producers {
            let mut stream = TcpStream::connect(server)?;
            if nth == 0 && kind == Kind::Stream {
                let group = ["XGROUP", "CREATE", KEY, "g", "$", "MKSTREAM"];
                let mut out = Vec::new();
                command(&mut out, &group.map(str::as_bytes));
                stream.write_all(&out)?;
                let answer = answer_line(&mut stream)?;
                // Others of this run may have made it.
                if answer != b"+OK\r\n" && !answer.starts_with(b"-BUSYGROUP ") {
                    return Err(bad_bytes("redis refused the consumer group"));
                }
            }
            let mut peer = Peer::new(stream)?;
            if nth < shape.consumers {
                take_more(kind, nth, &mut peer.out);
            }
            wire.connections.add(peer)?;
        }
        Ok(wire)
    }
}

/// A short answer, to the end of its line.
fn answer_line(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n") && answer.len() < 256 {
        let mut byte = [0];
        io::Read::read_exact(stream, &mut byte)?;
        answer.push(byte[0]);
    }
    Ok(answer)
}

/// Appends a command.
fn command(out: &mut Vec<u8>, parts: &[&[u8]]) {
    begin(out, parts.len());
    parts.iter().for_each(|part| append(out, part));
}

fn begin(out: &mut Vec<u8>, parts: usize) {
    out.extend_from_slice(format!("*{parts}\r\n").as_bytes());
}

fn append(out: &mut Vec<u8>, part: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
    out.extend_from_slice(part);
    out.extend_from_slice(b"\r\n");
}

/// Asks for the next messages, waiting for the first.
fn take_more(kind: Kind, consumer: usize, out: &mut Vec<u8>) {
    let count = TAKE_COUNT.to_string();
    let name = format!("c{consumer}");
    let parts: &[&str] = match kind {
        Kind::Stream => {
            &["XREADGROUP", "GROUP", "g", &name, "COUNT", &count, "BLOCK", "0", "STREAMS", KEY, ">"]
        }
        Kind::List => &["BLMPOP", "0", "1", KEY, "LEFT", "COUNT", &count],
    };
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
    command(out, &parts);
}

/// Walks the answers at the front of `bytes`; how much of it was whole.
struct Answers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Answers<'a> {
    /// `None` if the next value is not all there.
    fn next(&mut self) -> io::Result<Option<Value<'a>>> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let number = || std::str::from_utf8(&rest[1..end]).ok()?.parse::<i64>().ok();
        let (value, bytes) = match rest[0] {
            b':' | b'+' => (Value::Integer, end + 2),
            b'*' => match number().ok_or_else(|| bad_bytes("a bad array"))? {
                -1 => (Value::Nil, end + 2),
                count => (Value::Array(count as usize), end + 2),
            },
            b'$' => match number().ok_or_else(|| bad_bytes("a bad string"))? {
                -1 => (Value::Nil, end + 2),
                length => {
                    let (start, length) = (end + 2, length as usize);
                    let Some(bytes) = rest.get(start..start + length + 2) else {
                        return Ok(None);
                    };
                    (Value::Bytes(&bytes[..length]), start + length + 2)
                }
            },
            _ => return Err(bad_bytes(&format!("redis: {}", String::from_utf8_lossy(rest)))),
        };
        self.at += bytes;
        Ok(Some(value))
    }
}

/// Counts what was confirmed. Returns the bytes used.
fn confirm(
    bytes: &[u8],
    pushed: &mut std::collections::VecDeque<u64>,
    confirmed: &mut u64,
) -> io::Result<usize> {
    let mut answers = Answers { bytes, at: 0 };
    while answers.next()?.is_some() {
        *confirmed += pushed.pop_front().ok_or_else(|| bad_bytes("an answer to nothing"))?;
    }
    Ok(answers.at)
}

/// Shows the messages of each whole answer, acks them and asks for more. Returns the bytes used.
fn consume(
    kind: Kind,
    consumer: usize,
    bytes: &[u8],
    out: &mut Vec<u8>,
    take: &mut impl FnMut(usize, &[u8]),
) -> io::Result<usize> {
    let mut used = 0;
    loop {
        let mut answers = Answers { bytes: &bytes[used..], at: 0 };
        let messages = match kind {
            Kind::Stream => stream_answer(&mut answers)?,
            Kind::List => list_answer(&mut answers)?,
        };
        let Some(messages) = messages else { return Ok(used) };
        used += answers.at;
        messages.iter().for_each(|(_, body)| take(consumer, body));
        let acked: Vec<_> = messages.iter().filter(|(id, _)| !id.is_empty()).collect();
        if !acked.is_empty() {
            begin(out, 3 + acked.len());
            [b"XACK".as_slice(), KEY.as_bytes(), b"g"].iter().for_each(|part| append(out, part));
            acked.iter().for_each(|(id, _)| append(out, id));
        }
        if !messages.is_empty() {
            take_more(kind, consumer, out);
        }
    }
}

/// Id and body of each message of an answer, empty for that of an ack; `None`: not all there.
type Messages<'a> = Option<Vec<(&'a [u8], &'a [u8])>>;

/// `[[key, [[id, [field, body]], ...]]]`, or the number that an ack gives.
fn stream_answer<'a>(answers: &mut Answers<'a>) -> io::Result<Messages<'a>> {
    match answers.next()? {
        None => return Ok(None),
        Some(Value::Array(_)) => {}
        Some(_) => return Ok(Some(Vec::new())),
    }
    let (_pair, _key) = (answers.next()?, answers.next()?);
    let Some(Value::Array(count)) = answers.next()? else { return Ok(None) };
    let mut messages = Vec::with_capacity(count);
    for _ in 0..count {
        let _pair = answers.next()?;
        let Some(Value::Bytes(id)) = answers.next()? else { return Ok(None) };
        let (_pair, _field) = (answers.next()?, answers.next()?);
        let Some(Value::Bytes(body)) = answers.next()? else { return Ok(None) };
        messages.push((id, body));
    }
    Ok(Some(messages))
}

/// `[key, [body, ...]]`.
fn list_answer<'a>(answers: &mut Answers<'a>) -> io::Result<Messages<'a>> {
    let (Some(_pair), Some(_key)) = (answers.next()?, answers.next()?) else { return Ok(None) };
    let Some(Value::Array(count)) = answers.next()? else { return Ok(None) };
    let mut messages = Vec::with_capacity(count);
    for _ in 0..count {
        let Some(Value::Bytes(body)) = answers.next()? else { return Ok(None) };
        messages.push((&[][..], body));
    }
    Ok(Some(messages))
}

impl Wire for RedisWire {
    fn room(&self, producer: usize) -> usize {
        self.window - (self.sent[producer] - self.confirmed[producer]) as usize
    }

    fn publish(
        &mut self,
        producer: usize,
        count: usize,
        mut fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let out = self.connections.out(self.consumers + producer);
        debug_assert_eq!(self.body.len(), self.body_bytes);
        if self.kind == Kind::List {
            begin(out, 2 + count);
            append(out, b"RPUSH");
            append(out, KEY.as_bytes());
            self.pushed[producer].push_back(count as u64);
        }
        let length = (STREAM_LENGTH + self.held).to_string();
        for _ in 0..count {
            fill(&mut self.body);
            match self.kind {
                Kind::List => append(out, &self.body),
                Kind::Stream => {
                    let front = [b"XADD".as_slice(), KEY.as_bytes(), b"MAXLEN", b"~"];
                    let back = [length.as_bytes(), b"*", b"b", &self.body];
                    let parts: Vec<&[u8]> = front.into_iter().chain(back).collect();
                    command(out, &parts);
                    self.pushed[producer].push_back(1);
                }
            }
        }
        self.sent[producer] += count as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
        let RedisWire { kind, connections, consumers, pushed, confirmed, .. } = self;
        connections.turn(wait, |index, bytes, out| match index.checked_sub(*consumers) {
            None => consume(*kind, index, bytes, out, &mut take),
            Some(producer) => confirm(bytes, &mut pushed[producer], &mut confirmed[producer]),
        })
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.connections.poll_fd())
    }

    fn confirmed(&self) -> u64 {
        self.confirmed.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumed(kind: Kind, bytes: &[u8]) -> (usize, Vec<Vec<u8>>, String) {
        let (mut out, mut bodies) = (Vec::new(), Vec::new());
        let used = consume(kind, 0, bytes, &mut out, &mut |_, body| bodies.push(body.to_vec()));
        (used.unwrap(), bodies, String::from_utf8(out).unwrap())
    }

    #[test]
    fn answers_of_a_stream_are_read_whole_or_not_at_all() {
        let bytes =
            b"*1\r\n*2\r\n$8\r\nloadtest\r\n*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nb\r\n$2\r\nhi\r\n\
            *2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nb\r\n$0\r\n\r\n:2\r\n";
        for cut in 0..bytes.len() - 4 {
            assert_eq!(consumed(Kind::Stream, &bytes[..cut]).1.len(), 0, "{cut}");
        }
        let (used, bodies, out) = consumed(Kind::Stream, bytes);
        assert_eq!((used, bodies), (bytes.len(), vec![b"hi".to_vec(), b"".to_vec()]));
        assert!(out.starts_with("*5\r\n$4\r\nXACK\r\n"), "{out}");
        assert!(out.contains("XREADGROUP"));
    }

    #[test]
    fn answers_of_a_list_are_read() {
        let bytes = b"*2\r\n$8\r\nloadtest\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        let (used, bodies, out) = consumed(Kind::List, bytes);
        assert_eq!((used, bodies.len()), (bytes.len(), 2));
        assert!(out.contains("BLMPOP") && !out.contains("XACK"));
    }

    #[test]
    fn confirms_count_the_messages_of_their_commands() {
        let mut pushed = [3, 1].into_iter().collect();
        let mut confirmed = 0;
        assert_eq!(confirm(b":3\r\n$3\r\n1-0\r\n:", &mut pushed, &mut confirmed).unwrap(), 13);
        assert_eq!(confirmed, 4);
        assert!(confirm(b"-ERR no\r\n", &mut pushed, &mut confirmed).is_err());
    }
}
