//! The broker as a target: requests and opens on plain blocking streams, for the hand-written
//! client and for connections that only sit there.

use crate::args::Attach;
use forebay::limits::{CREDIT_BYTES_MAX, CREDIT_MESSAGES_MAX, FRAME_HEADER_BYTES, PREAMBLE_BYTES};
use forebay::protocol::control::{Answer, Request};
use forebay::protocol::frame::{self, FrameHeader, Opcode};
use forebay::protocol::wire;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests that are sent before their answers are read.
const PIPELINED_MAX: usize = 64;

/// A connection that is ready to publish or to be delivered to.
pub struct Opened {
    /// Blocking.
    pub stream: TcpStream,
    /// Producer id; 0: none.
    pub id: u64,
    /// Publish payload bytes that may be sent in all.
    pub window_bytes_total: u64,
}

/// A connection that asks one thing after the other.
pub struct Control {
    stream: TcpStream,
    correlation: u32,
    /// The shard that the connection is on.
    shard: u32,
}

/// Where connections are made: at a broker, and perhaps at a shard of it.
pub struct Door {
    server: SocketAddr,
    attach: Option<String>,
}

/// Names that are tried for one whose home is another shard.
const NAMES_TRIED: u32 = 1000;

impl Door {
    /// A door to the home of `queue`, or to another shard.
    ///
    /// # Errors
    /// If the broker cannot be reached, or has no other shard.
    pub fn find(server: SocketAddr, queue: &str, attach: Attach) -> io::Result<Door> {
        let at = |attach| Door { server, attach };
        let home = at(Some(queue.to_owned()));
        match attach {
            Attach::Anywhere => Ok(at(None)),
            Attach::Home => Ok(home),
            Attach::Wrong => {
                let shard = home.connect()?.shard;
                for nth in 0..NAMES_TRIED {
                    let other = at(Some(format!("elsewhere-{nth}")));
                    if other.connect()?.shard != shard {
                        return Ok(other);
                    }
                }
                Err(io::Error::other("the broker has no other shard: say --shards 2"))
            }
        }
    }

    /// One more connection.
    ///
    /// # Errors
    /// If the broker cannot be reached or refuses.
    pub fn connect(&self) -> io::Result<Control> {
        Control::attached(self.server, self.attach.clone())
    }
}

impl Control {
    /// Connects and says hello.
    ///
    /// # Errors
    /// If the broker cannot be reached or refuses.
    pub fn connect(server: SocketAddr) -> io::Result<Control> {
        Control::attached(server, None)
    }

    fn attached(server: SocketAddr, attach: Option<String>) -> io::Result<Control> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.write_all(&frame::preamble(frame::VERSION))?;
        let mut control = Control { stream, correlation: 0, shard: 0 };
        let mut hello = wire::HelloT::default();
        hello.client_name = Some("forebay-loadtest".to_owned());
        hello.token = std::env::var("FOREBAY_TOKEN").ok();
        hello.attach = attach;
        control.send(0, &Request::Hello(hello))?;
        let mut preamble = [0; PREAMBLE_BYTES];
        control.stream.read_exact(&mut preamble)?;
        match control.answer()? {
            Answer::HelloOk(body) => Ok(Control { shard: body.shard, ..control }),
            other => Err(surprise(&other)),
        }
    }

    /// Makes queues with default options, but durable if asked, and these subscriptions; none:
    /// the default one.
    ///
    /// # Errors
    /// If the broker refuses one.
    pub fn create_queues(
        &mut self,
        names: impl IntoIterator<Item = String>,
        subscriptions: &[String],
        durable: bool,
    ) -> io::Result<()> {
        self.ask_all(names.into_iter().map(|name| {
            let mut body = wire::QueueCreateT::default();
            body.name = name;
            let mut options = wire::QueueOptionsT::default();
            options.durable = durable;
            body.options = Some(Box::new(options));
            body.subscriptions = (!subscriptions.is_empty()).then(|| subscriptions.to_vec());
            Request::QueueCreate(body)
        }))
    }

    /// Removes queues and all in them.
    ///
    /// # Errors
    /// If the broker refuses one.
    pub fn delete_queues(&mut self, names: impl IntoIterator<Item = String>) -> io::Result<()> {
        self.ask_all(names.into_iter().map(|name| {
            let mut body = wire::QueueDeleteT::default();
            body.name = name;
            Request::QueueDelete(body)
        }))
    }

    /// Asks one after the other, some ahead of the answers, which say no more than that it is done.
    fn ask_all(&mut self, requests: impl Iterator<Item = Request>) -> io::Result<()> {
        let done = |answer| match answer {
            Answer::QueueDone(_) | Answer::QueueRemoved(_) => Ok(()),
            other => Err(surprise(&other)),
        };
        let mut waiting = 0;
        for request in requests {
            self.send(0, &request)?;
            waiting += 1;
            if waiting == PIPELINED_MAX {
                done(self.answer()?)?;
                waiting -= 1;
            }
        }
        (0..waiting).try_for_each(|_| done(self.answer()?))
    }

    /// Opens a producer with an id that nobody else has; gives the id and the window.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn open_producer(&mut self, handle: u32, queue: &str) -> io::Result<(u64, u64)> {
        let producer_id = unused_id();
        let mut body = wire::ProducerOpenT::default();
        body.queue = queue.to_owned();
        body.producer_id = producer_id;
        body.next_sequence = 1;
        match self.ask(handle, &Request::ProducerOpen(body))? {
            Answer::ProducerOpened(opened) => Ok((producer_id, opened.window_bytes_total)),
            other => Err(surprise(&other)),
        }
    }

    /// Opens a consumer with so many messages of credit, and bytes in plenty.
    ///
    /// # Errors
    /// If the broker refuses.
    pub fn open_consumer(
        &mut self,
        handle: u32,
        queue: &str,
        subscription: Option<String>,
        credit: usize,
    ) -> io::Result<()> {
        let mut body = wire::ConsumerOpenT::default();
        body.queue = queue.to_owned();
        body.subscription = subscription;
        body.credit_messages = u32::try_from(credit).unwrap_or(u32::MAX).min(CREDIT_MESSAGES_MAX);
        body.credit_bytes = CREDIT_BYTES_MAX / 2;
        match self.ask(handle, &Request::ConsumerOpen(body))? {
            Answer::ConsumerOpened(_) => Ok(()),
            other => Err(surprise(&other)),
        }
    }

    /// The stream, for the data path.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    fn ask(&mut self, handle: u32, request: &Request) -> io::Result<Answer> {
        self.send(handle, request)?;
        self.answer()
    }

    fn send(&mut self, handle: u32, request: &Request) -> io::Result<()> {
        self.correlation += 1;
        let body = request.encode();
        let mut header = FrameHeader::new(request.opcode(), handle, body.len());
        header.correlation = self.correlation;
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(&body);
        self.stream.write_all(&bytes)
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let header = FrameHeader::decode(&header).map_err(io::Error::other)?;
        let mut payload = vec![0; header.payload_bytes as usize];
        self.stream.read_exact(&mut payload)?;
        let opcode = Opcode::from_u8(header.opcode)
            .ok_or_else(|| io::Error::other("the broker sent an unknown opcode"))?;
        Answer::decode(opcode, &payload).map_err(io::Error::other)
    }
}

fn surprise(answer: &Answer) -> io::Error {
    match answer {
        Answer::Error(error) => io::Error::other(format!(
            "the broker says: {}",
            error.text.as_deref().unwrap_or("nothing more")
        )),
        other => io::Error::other(format!("the broker answered with {:?}", other.opcode())),
    }
}

/// A producer id or part of a name that no other run has.
#[expect(clippy::disallowed_methods, reason = "a number that differs between runs, not a time")]
pub fn unused_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_us = since.map_or(0, |since| since.as_micros() as u64);
    // Microseconds in the high 48 bits; runs that start in one differ by process.
    (now_us << 16) ^ (u64::from(std::process::id()) << 13) ^ count
}
