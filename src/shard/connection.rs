//! One client connection: where its hello stands, what it left half-sent, its handles, what it is
//! about to be sent.

use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::io::Socket;
use crate::limits::HANDLE_MAX;
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::wire;
use crate::queue::consumer::ConsumerKey;
use crate::shard::crossing::Crossing;
use crate::shard::outbound::Outbound;
use std::cell::RefCell;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was right yet.
    Preamble,
    /// The preamble was.
    Hello,
    /// It may do what it likes.
    Open,
    /// A fatal error was sent or the broker ends it: what still comes in is thrown away, and the
    /// socket is closed once the peer has, or at this time.
    Closing(Mono),
}

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A producer of a queue.
    Producer {
        /// The queue.
        queue: Key,
        /// The producer there.
        producer: Key,
    },
    /// A consumer of a queue.
    Consumer {
        /// The queue.
        queue: Key,
        /// The consumer there.
        consumer: ConsumerKey,
    },
}

/// Where the client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a socket of this shard.
    Socket(Socket),
    /// At a socket of another shard, where the connection has this key.
    Shard {
        /// Which.
        shard: usize,
        /// The connection there.
        connection: Key,
    },
}

/// See the module.
pub struct Connection {
    /// Where its bytes come from and go to.
    pub place: Place,
    /// How far it has come.
    pub stage: Stage,
    /// The front of a frame that is not complete.
    pub inbox: Vec<u8>,
    /// Bytes to throw away: the body of a publish that was refused by its header.
    pub skip_bytes: usize,
    /// What it will be sent.
    pub out: Outbound,
    /// Open handles, by number.
    handles: Vec<(u32, Target)>,
    /// Whether it stands in the list of those to read.
    pub read_due: bool,
    /// The peer has sent its last byte: read on until the end.
    pub at_end: bool,
    /// Whether it stands in the list of those to flush.
    pub flush_due: bool,
    /// Consumers that were passed over because it was full, in that order: in this order they are
    /// woken when it is not, so that none of many waits for ever.
    pub passed_over: RefCell<Vec<u32>>,
    /// Bytes charged to the budget.
    pub charged_bytes: usize,
    /// When bytes last came.
    pub heard: Mono,
    /// When the frame in the inbox began; before the hello is complete, when the connection came.
    pub frame_began: Mono,
    /// Since when the socket has taken none of what waits; `None` if nothing waits.
    pub stalled_since: Option<Mono>,
    /// When something was last sent.
    pub said: Mono,
    /// 0: none was agreed.
    pub heartbeat_ms: u32,
    /// What it does on other shards, once it does.
    pub(super) crossing: Option<Box<Crossing>>,
    /// A frame at the front of the inbox has to wait, and all behind it.
    pub parked: bool,
    /// The shard to which there was no room, if that is what it waits for.
    pub parked_for: Option<usize>,
    /// There was something to read meanwhile.
    pub read_later: bool,
}

impl Connection {
    /// Just accepted.
    pub fn new(place: Place, now: Mono) -> Self {
        Connection {
            place,
            stage: Stage::Preamble,
            inbox: Vec::new(),
            skip_bytes: 0,
            out: Outbound::default(),
            handles: Vec::new(),
            read_due: false,
            at_end: false,
            flush_due: false,
            passed_over: RefCell::default(),
            charged_bytes: 0,
            heard: now,
            frame_began: now,
            stalled_since: None,
            said: now,
            heartbeat_ms: 0,
            crossing: None,
            parked: false,
            parked_for: None,
            read_later: false,
        }
    }

    /// The shard that has the handle, if it is not this one.
    #[inline]
    pub(super) fn abroad(&self, handle: u32) -> Option<usize> {
        self.crossing.as_ref()?.handle(handle).map(|abroad| abroad.shard)
    }

    /// What it does on other shards, from now on.
    pub(super) fn crossing_mut(&mut self) -> &mut Crossing {
        self.crossing.get_or_insert_default()
    }

    /// Unsent bytes that this shard is answerable for: those of others are bounded there.
    pub fn own_unsent_bytes(&self) -> usize {
        let others = self.crossing.as_ref().map_or(0, |crossing| crossing.unsent_bytes);
        self.out.unsent_bytes() - others
    }

    /// What it holds in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Connection>()
            + self.inbox.capacity()
            + self.out.capacity_bytes()
            + self.handles.capacity() * size_of::<(u32, Target)>()
            + self.passed_over.borrow().capacity() * size_of::<u32>()
            + self.crossing.as_ref().map_or(0, |crossing| crossing.memory_bytes())
    }

    /// What a handle stands for.
    #[inline]
    pub fn target(&self, handle: u32) -> Option<Target> {
        let index = self.handles.binary_search_by_key(&handle, |&(number, _)| number).ok()?;
        Some(self.handles[index].1)
    }

    /// Whether a handle may be opened.
    ///
    /// # Errors
    /// The code and text to refuse it with.
    pub fn check_new_handle(&self, handle: u32) -> Result<(), (ErrorCode, String)> {
        if handle == 0 || handle > HANDLE_MAX {
            let text = format!("handle {handle} is not in 1..={HANDLE_MAX}");
            return Err((ErrorCode::BadHandle, text));
        }
        if self.target(handle).is_some() {
            return Err((ErrorCode::BadHandle, format!("handle {handle} is open already")));
        }
        Ok(())
    }

    /// Opens a handle that [`Connection::check_new_handle`] allowed.
    pub fn open_handle(&mut self, handle: u32, target: Target) {
        let index = self.handles.partition_point(|&(number, _)| number < handle);
        self.handles.insert(index, (handle, target));
    }

    /// Closes a handle, if it is open.
    pub fn close_handle(&mut self, handle: u32) -> Option<Target> {
        let index = self.handles.binary_search_by_key(&handle, |&(number, _)| number).ok()?;
        self.passed_over.get_mut().retain(|&other| other != handle);
        Some(self.handles.remove(index).1)
    }

    /// All open handles.
    pub fn handles(&self) -> &[(u32, Target)] {
        &self.handles
    }

    /// Sends a frame with a payload of a fixed layout.
    pub fn send(&mut self, opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
        self.out.push(&header.encode());
        self.out.push(payload);
    }

    /// Sends a control frame.
    pub fn send_answer(&mut self, answer: &Answer, handle: u32, correlation: u32) {
        self.send(answer.opcode(), handle, correlation, &answer.encode());
    }

    /// Sends an error without more to it.
    pub fn send_error(&mut self, code: ErrorCode, text: &str, handle: u32, correlation: u32) {
        self.send_answer(&Answer::Error(error_body(code, text)), handle, correlation);
    }
}

/// The body of an error frame.
pub fn error_body(code: ErrorCode, text: &str) -> wire::ErrorT {
    let retry_after_ms = if code.is_retryable() { 1000 } else { 0 };
    wire::ErrorT {
        code: code as u16,
        text: Some(text.to_owned()),
        retry_after_ms,
        ..wire::ErrorT::default()
    }
}
