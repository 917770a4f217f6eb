//! The other end of a connection, frame by frame: for what the client library would never do.

use super::PATIENCE;
use forebay::format::batch::BatchBuilder;
use forebay::limits::{FRAME_HEADER_BYTES, PREAMBLE_BYTES};
use forebay::protocol::control::{Answer, Request};
use forebay::protocol::error::ErrorCode;
use forebay::protocol::frame::{FrameHeader, Opcode, VERSION, preamble, preamble_version};
use forebay::protocol::wire;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

/// A connection. Reads that wait longer than a healthy broker needs fail the test.
pub struct Peer {
    pub stream: TcpStream,
}

/// A frame of the broker.
pub type Frame = (FrameHeader, Vec<u8>);

impl Peer {
    /// Connected; nothing is said yet.
    pub fn connect(address: SocketAddr) -> Peer {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Peer { stream }
    }

    /// Connected, and the hello is answered.
    pub fn open(address: SocketAddr) -> Peer {
        Peer::try_open(address).unwrap_or_else(|refused| panic!("{refused:?}"))
    }

    /// The same, or what the broker answered instead.
    pub fn try_open(address: SocketAddr) -> Result<Peer, Vec<u8>> {
        let mut peer = Peer::connect(address);
        peer.stream.write_all(&preamble(VERSION)).unwrap();
        peer.send_hello(None);
        assert_eq!(peer.read_preamble(), Some(VERSION));
        let (header, payload) = peer.read_frame().expect("an answer to the hello");
        if header.opcode == Opcode::HelloOk as u8 { Ok(peer) } else { Err(payload) }
    }

    pub fn send_hello(&mut self, token: Option<&str>) {
        let mut hello = wire::HelloT::default();
        hello.token = token.map(str::to_owned);
        self.send_request(&Request::Hello(hello), 0);
    }

    pub fn send(&mut self, opcode: Opcode, handle: u32, correlation: u32, payload: &[u8]) {
        let header = FrameHeader { correlation, ..FrameHeader::new(opcode, handle, payload.len()) };
        self.stream.write_all(&[&header.encode()[..], payload].concat()).unwrap();
    }

    pub fn send_request(&mut self, request: &Request, handle: u32) {
        self.send(request.opcode(), handle, 1, &request.encode());
    }

    /// Sends a batch of bodies, as the producer `handle` whose next sequence is this.
    pub fn publish(&mut self, handle: u32, sequence: u64, bodies: &[&str]) {
        let mut batch = BatchBuilder::default();
        bodies.iter().for_each(|body| batch.push(0, &[], body.as_bytes()));
        let wire = batch.finish(0, 0, sequence).to_vec();
        self.send(Opcode::Publish, handle, 0, &wire);
    }

    /// A transient queue with default options.
    pub fn create_queue(&mut self, name: &str) {
        let mut create = wire::QueueCreateT::default();
        create.name = name.to_owned();
        self.send_request(&Request::QueueCreate(create), 0);
        self.expect(Opcode::QueueDone);
    }

    pub fn open_producer(&mut self, queue: &str, handle: u32) {
        let mut open = wire::ProducerOpenT::default();
        open.queue = queue.to_owned();
        self.send_request(&Request::ProducerOpen(open), handle);
        self.expect(Opcode::ProducerOpened);
    }

    pub fn open_consumer(&mut self, queue: &str, handle: u32, credit_messages: u32) {
        let mut open = wire::ConsumerOpenT::default();
        open.queue = queue.to_owned();
        open.credit_messages = credit_messages;
        open.credit_bytes = 1 << 20;
        self.send_request(&Request::ConsumerOpen(open), handle);
        self.expect(Opcode::ConsumerOpened);
    }

    pub fn read_preamble(&mut self) -> Option<u16> {
        let mut bytes = [0; PREAMBLE_BYTES];
        self.stream.read_exact(&mut bytes).unwrap();
        preamble_version(&bytes)
    }

    /// The next frame, or `None` at the end of the connection.
    pub fn read_frame(&mut self) -> Option<Frame> {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let first = self.stream.read(&mut bytes).unwrap();
        if first == 0 {
            return None;
        }
        self.stream.read_exact(&mut bytes[first..]).unwrap();
        let header = FrameHeader::decode(&bytes).unwrap();
        let mut payload = vec![0; header.payload_bytes as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some((header, payload))
    }

    /// Reads on until a frame of this kind; an error frame before it fails the test.
    pub fn expect(&mut self, opcode: Opcode) -> Frame {
        loop {
            let frame = self.read_frame().unwrap_or_else(|| panic!("closed before {opcode:?}"));
            if frame.0.opcode == opcode as u8 {
                return frame;
            }
            if let Some((code, text)) = error_of(&frame) {
                panic!("{code:?} instead of {opcode:?}: {text}");
            }
        }
    }

    /// Reads on until an error frame.
    pub fn expect_error(&mut self) -> (ErrorCode, String) {
        loop {
            let frame = self.read_frame().expect("an error before the end");
            if let Some(error) = error_of(&frame) {
                return error;
            }
        }
    }

    /// Reads on until the broker has ended the connection, without a reset.
    pub fn expect_end(&mut self) {
        while self.read_frame().is_some() {}
    }
}

fn error_of((header, payload): &Frame) -> Option<(ErrorCode, String)> {
    let opcode = Opcode::from_u8(header.opcode)?;
    match Answer::decode(opcode, payload) {
        Ok(Answer::Error(error) | Answer::PublishError(error)) => {
            let code = ErrorCode::from_u16(error.code).expect("a code that is known");
            Some((code, error.text.unwrap_or_default()))
        }
        _ => None,
    }
}
