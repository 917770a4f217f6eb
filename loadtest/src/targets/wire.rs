//! The hand-written client, which costs as little as it can: one epoll set, one read and one write
//! per connection and turn, headers written in place. It speaks Forebay's protocol, and the bare
//! programs' subset of it: the same frame header, batch, deliver header, records, confirms and ack
//! ranges, without hello, checksums, credit and the bodies of opens.

use crate::args::Attach;
use crate::clock::now;
use crate::sys::{Epoll, Ready};
use crate::targets::forebay::{Door, Opened};
use crate::targets::peer::{Frames, Peer, SCRATCH_BYTES, bad_bytes};
use crate::targets::resend::{Spare, Unconfirmed};
use crate::targets::{Shape, Wire};
use forebay::base::checksum::crc32c;
use forebay::format::batch::BatchHeader;
use forebay::format::record::{RecordHeader, Records};
use forebay::limits::{
    ACK_RANGES_MAX, BATCH_HEADER_BYTES, BATCH_RECORDS_BYTES_MAX, CREDIT_ENTRIES_MAX,
    CREDIT_MESSAGES_MAX, FRAME_HEADER_BYTES, HANDLES_MAX, RECORD_HEADER_BYTES,
};
use forebay::protocol::control::Answer;
use forebay::protocol::error::ErrorCode;
use forebay::protocol::frame::{FrameHeader, Opcode};
use forebay::protocol::hot::{AckRange, Confirm, CreditEntry, DeliverHeader};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// The one handle of most connections; those for many queues have this one and those behind it.
pub const HANDLE: u32 = 1;
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is for; the number is that of its first handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Producer(usize),
    Consumer(usize),
    /// Producer and consumer of the same number: what it publishes comes back to it.
    Echo(usize),
}

#[derive(Default)]
struct Producer {
    peer: usize,
    handle: u32,
    /// 0 for the bare programs.
    id: u64,
    sent: u64,
    confirmed: u64,
    /// Publish payload bytes so far, and how many there may be.
    sent_bytes: u64,
    window_bytes_total: u64,
    /// Kept where a full broker may refuse: for runs that fill it.
    unconfirmed: Option<Unconfirmed>,
    /// BLOCKED came and UNBLOCKED did not.
    blocked: bool,
    /// A refused producer that is not blocked goes on at this time.
    retry_at: Option<Instant>,
}

/// Connections to a broker or a bare program.
pub struct FastWire {
    epoll: Epoll,
    ready: Vec<Ready>,
    scratch: Vec<u8>,
    peers: Vec<Peer>,
    roles: Vec<Role>,
    producers: Vec<Producer>,
    /// Peers that have something to send which no epoll event will ask for.
    dirty: Vec<usize>,
    /// Likewise, with acks: they leave after what was published meanwhile, which is waited for.
    acking: Vec<usize>,
    /// Empty between reads; kept for its memory.
    received: Vec<Received>,
    /// Of batches that are kept to be sent again.
    spare: Spare,
    /// Numbers of producers that have been refused something and not sent all of it again.
    behind: Vec<usize>,
    window: usize,
    body_bytes: usize,
    /// Whether what is not confirmed is kept to be sent again.
    resends: bool,
    /// Speaks all of Forebay's protocol, not the bare subset.
    whole: bool,
    confirmed: u64,
}

impl FastWire {
    /// Connects producers and consumers to the relay, or producers to the echo (no consumers).
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connect_bare(server: SocketAddr, shape: Shape) -> io::Result<FastWire> {
        let mut wire = FastWire::empty(shape, false)?;
        for consumer in 0..shape.consumers {
            wire.add(open_bare(server, Opcode::ConsumerOpen)?, Role::Consumer(consumer))?;
        }
        for producer in 0..shape.producers {
            wire.add(open_bare(server, Opcode::ProducerOpen)?, Role::Producer(producer))?;
        }
        Ok(wire)
    }

    /// Connects to the echo so that each producer's messages come back to it.
    ///
    /// # Errors
    /// If a connection cannot be made.
    pub fn connect_echo(server: SocketAddr, shape: Shape) -> io::Result<FastWire> {
        let mut wire = FastWire::empty(shape, false)?;
        for producer in 0..shape.producers {
            wire.add(open_bare(server, Opcode::ConsumerOpen)?, Role::Echo(producer))?;
        }
        Ok(wire)
    }

    /// Connects producers and consumers of the queues to Forebay.
    ///
    /// # Errors
    /// If a connection cannot be made or the broker refuses something.
    pub fn connect_forebay(
        server: SocketAddr,
        queues: &[String],
        shape: Shape,
        attach: Attach,
    ) -> io::Result<FastWire> {
        let mut wire = FastWire::empty(shape, true)?;
        let door = Door::find(server, &queues[0], attach)?;
        if let [queue] = queues {
            wire.connect_clients(&door, queue, shape)?;
        } else {
            for first in (0..queues.len()).step_by(HANDLES_MAX) {
                let end = queues.len().min(first + HANDLES_MAX);
                wire.connect_queues(&door, first, &queues[first..end], shape)?;
            }
        }
        Ok(wire)
    }

    /// Each client of one queue has a connection of its own.
    fn connect_clients(&mut self, door: &Door, queue: &str, shape: Shape) -> io::Result<()> {
        for consumer in 0..shape.consumers {
            let mut control = door.connect()?;
            let subscription = (shape.subscriptions > 1).then(|| subscription_name(consumer));
            control.open_consumer(HANDLE, queue, subscription, shape.credit)?;
            self.add(bare_opened(control.into_stream()), Role::Consumer(consumer))?;
        }
        for producer in 0..shape.producers {
            let mut control = door.connect()?;
            let (id, window_bytes_total) = control.open_producer(HANDLE, queue)?;
            let opened = Opened { stream: control.into_stream(), id, window_bytes_total };
            self.add(opened, Role::Producer(producer))?;
        }
        Ok(())
    }

    /// One connection consumes from all of `queues`, one publishes to them, as far as there are
    /// clients for it.
    fn connect_queues(
        &mut self,
        door: &Door,
        first: usize,
        queues: &[String],
        shape: Shape,
    ) -> io::Result<()> {
        if shape.consumers > 0 {
            let mut control = door.connect()?;
            for (handle, queue) in (HANDLE..).zip(queues) {
                // Without credit for now: answers to the other opens must not meet deliveries.
                control.open_consumer(handle, queue, None, 0)?;
            }
            self.add(bare_opened(control.into_stream()), Role::Consumer(first))?;
            self.grant_first(queues.len(), shape.credit);
        }
        if shape.producers == 0 {
            return Ok(());
        }
        let mut control = door.connect()?;
        for (handle, queue) in (HANDLE..).zip(queues) {
            let (id, window_bytes_total) = control.open_producer(handle, queue)?;
            let peer = self.peers.len();
            let unconfirmed = self.resends.then(|| Unconfirmed::new(self.body_bytes));
            self.producers.push(Producer {
                peer,
                handle,
                id,
                window_bytes_total,
                unconfirmed,
                ..Default::default()
            });
        }
        self.add_peer(control.into_stream(), Role::Producer(first))
    }

    /// Grants credit to the consumers of the last connection.
    fn grant_first(&mut self, handles: usize, credit: usize) {
        let peer = self.peers.len() - 1;
        let entry = |nth| CreditEntry {
            handle: HANDLE + nth as u32,
            messages: u32::try_from(credit).unwrap_or(u32::MAX).min(CREDIT_MESSAGES_MAX),
            bytes: 0,
        };
        for first in (0..handles).step_by(CREDIT_ENTRIES_MAX) {
            let end = handles.min(first + CREDIT_ENTRIES_MAX);
            credit_frame((first..end).map(entry), &mut self.peers[peer].out);
        }
        self.dirty.push(peer);
    }

    fn empty(shape: Shape, whole: bool) -> io::Result<FastWire> {
        Ok(FastWire {
            epoll: Epoll::new()?,
            ready: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
            peers: Vec::new(),
            roles: Vec::new(),
            producers: Vec::new(),
            dirty: Vec::new(),
            acking: Vec::new(),
            received: Vec::new(),
            spare: Spare::default(),
            behind: Vec::new(),
            window: shape.window,
            body_bytes: shape.body_bytes,
            resends: whole && shape.held > 0,
            whole,
            confirmed: 0,
        })
    }

    fn add(&mut self, opened: Opened, role: Role) -> io::Result<()> {
        if let Role::Producer(_) | Role::Echo(_) = role {
            self.producers.push(Producer {
                peer: self.peers.len(),
                handle: HANDLE,
                id: opened.id,
                window_bytes_total: opened.window_bytes_total,
                unconfirmed: self.resends.then(|| Unconfirmed::new(self.body_bytes)),
                ..Default::default()
            });
        }
        self.add_peer(opened.stream, role)
    }

    fn add_peer(&mut self, stream: TcpStream, role: Role) -> io::Result<()> {
        let peer = Peer::new(stream)?;
        self.epoll.add(peer.fd(), self.peers.len() as u64, false)?;
        self.peers.push(peer);
        self.roles.push(role);
        Ok(())
    }

    fn resend(&mut self) {
        let FastWire { behind, producers, peers, dirty, .. } = self;
        behind.retain(|index| {
            let producer = &mut producers[*index];
            let peer = &mut peers[producer.peer];
            let was_pending = peer.is_pending();
            producer.resend(peer);
            if !was_pending && peer.is_pending() {
                dirty.push(producer.peer);
            }
            producer.is_behind()
        });
    }

    fn flush_dirty(&mut self) -> io::Result<()> {
        for peer in self.dirty.drain(..).chain(self.acking.drain(..)) {
            if !self.peers[peer].flush()? {
                self.epoll.change(self.peers[peer].fd(), peer as u64, true)?;
            }
        }
        Ok(())
    }

    fn flush_writable(&mut self, peer: usize) -> io::Result<()> {
        if self.peers[peer].flush()? {
            self.epoll.change(self.peers[peer].fd(), peer as u64, false)?;
        }
        Ok(())
    }

    fn read(&mut self, index: usize, take: &mut impl FnMut(usize, &[u8])) -> io::Result<()> {
        let bytes = self.peers[index].read(&mut self.scratch)?;
        let mut frames = Frames::new(&self.scratch[..bytes]);
        let mut received = std::mem::take(&mut self.received);
        while let Some((header, payload)) = frames.next()? {
            let nth = header.handle.saturating_sub(HANDLE) as usize;
            match (self.roles[index], Opcode::from_u8(header.opcode)) {
                (Role::Producer(first), Some(Opcode::Confirm)) => {
                    let confirm = Confirm::decode(payload).ok_or(bad_bytes("a bad confirm"))?;
                    let producer = self.producers.get_mut(first + nth).ok_or(stranger())?;
                    self.confirmed += producer.take_confirm(&confirm, &mut self.spare)?;
                }
                (Role::Consumer(first), Some(Opcode::Deliver)) => {
                    let run = take_run(payload, first + nth, take)?;
                    if received.last().is_none_or(|last| last.handle != header.handle) {
                        received.push(Received { handle: header.handle, ..Received::default() });
                    }
                    if let Some(last) = received.last_mut() {
                        last.add(&run, payload.len())?;
                    }
                }
                (Role::Echo(producer), Some(Opcode::Deliver)) => {
                    let records = take_run(payload, producer, take)?.record_count;
                    self.producers[producer].confirmed += u64::from(records);
                    self.confirmed += u64::from(records);
                }
                (Role::Producer(first), Some(opcode)) if self.whole => {
                    let producer = self.producers.get_mut(first + nth).ok_or(stranger())?;
                    self.confirmed += producer.take_answer(opcode, payload, &mut self.spare)?;
                    if producer.is_behind() && !self.behind.contains(&(first + nth)) {
                        self.behind.push(first + nth);
                    }
                }
                (_, opcode) => return Err(unexpected(opcode, payload)),
            }
        }
        let peer = &mut self.peers[index];
        peer.keep(frames.rest());
        if !received.is_empty() {
            if !peer.is_pending() {
                self.acking.push(index);
            }
            answer(&received, self.whole, &mut peer.out);
            received.clear();
        }
        self.received = received;
        Ok(())
    }
}

/// Name of the n-th of several subscriptions.
pub fn subscription_name(nth: usize) -> String {
    format!("s{nth}")
}

fn stranger() -> io::Error {
    bad_bytes("a frame for a handle that is not open")
}

/// A connection to a bare program, open as a producer or consumer.
///
/// # Errors
/// If it cannot be made.
pub fn open_bare(server: SocketAddr, open: Opcode) -> io::Result<Opened> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(OPEN_TIMEOUT))?;
    stream.write_all(&FrameHeader::new(open, HANDLE, 0).encode())?;
    let mut answer = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut answer)?;
    Ok(bare_opened(stream))
}

fn bare_opened(stream: TcpStream) -> Opened {
    Opened { stream, id: 0, window_bytes_total: u64::MAX }
}

/// What an error frame says, or that the frame is a surprise.
fn unexpected(opcode: Option<Opcode>, payload: &[u8]) -> io::Error {
    match opcode.and_then(|opcode| Answer::decode(opcode, payload).ok()) {
        Some(Answer::Error(error) | Answer::PublishError(error)) => {
            bad_bytes(&format!("the broker says: {}", error.text.unwrap_or_default()))
        }
        Some(Answer::Drain(_)) => bad_bytes("the broker is going down"),
        _ => bad_bytes(&format!("{opcode:?} is not expected on this connection")),
    }
}

impl Producer {
    /// Messages that this confirms.
    fn take_confirm(&mut self, confirm: &Confirm, spare: &mut Spare) -> io::Result<u64> {
        if confirm.sequence > self.sent || confirm.sequence < self.confirmed {
            return Err(bad_bytes("a confirm of what was not sent"));
        }
        if confirm.duplicates + confirm.dropped != 0 {
            return Err(bad_bytes("a confirm of duplicates or of dropped messages"));
        }
        let confirmed = confirm.sequence - self.confirmed;
        self.confirmed = confirm.sequence;
        self.window_bytes_total = self.window_bytes_total.max(confirm.window_bytes_total);
        if let Some(unconfirmed) = &mut self.unconfirmed {
            unconfirmed.confirm(confirm.sequence, spare);
        }
        Ok(confirmed)
    }

    /// A queue that blocks just grants nothing for a while; what it refused is sent again, if it
    /// was kept. Messages that this confirms.
    fn take_answer(
        &mut self,
        opcode: Opcode,
        payload: &[u8],
        spare: &mut Spare,
    ) -> io::Result<u64> {
        match (Answer::decode(opcode, payload), &mut self.unconfirmed) {
            (Ok(Answer::Blocked(_)), _) => {
                (self.blocked, self.retry_at) = (true, None);
                Ok(0)
            }
            (Ok(Answer::Unblocked(unblocked)), _) => {
                self.window_bytes_total = self.window_bytes_total.max(unblocked.window_bytes_total);
                (self.blocked, self.retry_at) = (false, None);
                Ok(0)
            }
            (Ok(Answer::PublishError(error)), Some(unconfirmed))
                // A code that is not known is one of a later broker, and tried again.
                if ErrorCode::from_u16(error.code).is_none_or(ErrorCode::is_retryable)
                    && (self.confirmed + 1..=self.sent + 1).contains(&error.sequence) =>
            {
                unconfirmed.refuse(error.sequence, spare)?;
                self.window_bytes_total = self.window_bytes_total.max(error.window_bytes_total);
                let pause = Duration::from_millis(u64::from(error.retry_after_ms.max(1)));
                self.retry_at = (!self.blocked).then(|| now() + pause);
                let confirmed = error.sequence - 1 - self.confirmed;
                self.confirmed += confirmed;
                Ok(confirmed)
            }
            _ => Err(unexpected(Some(opcode), payload)),
        }
    }

    fn is_behind(&self) -> bool {
        self.unconfirmed.as_ref().is_some_and(Unconfirmed::is_behind)
    }

    /// Sends again what was refused, as far as the window goes.
    fn resend(&mut self, peer: &mut Peer) {
        if self.blocked || self.retry_at.is_some_and(|at| now() < at) {
            return;
        }
        self.retry_at = None;
        let Some(unconfirmed) = &mut self.unconfirmed else { return };
        while let Some(payload) =
            unconfirmed.next(self.window_bytes_total.saturating_sub(self.sent_bytes))
        {
            let header = FrameHeader::new(Opcode::Publish, self.handle, payload.len());
            peer.out.extend_from_slice(&header.encode());
            peer.out.extend_from_slice(payload);
            self.sent_bytes += payload.len() as u64;
        }
    }
}

/// What one read brought to a consumer, in one go.
#[derive(Default)]
struct Received {
    handle: u32,
    first: u64,
    messages: u64,
    /// Of records.
    bytes: u64,
}

impl Received {
    #[inline]
    fn add(&mut self, run: &DeliverHeader, payload_bytes: usize) -> io::Result<()> {
        if self.messages == 0 {
            self.first = run.delivery_id;
        }
        if run.delivery_id != self.first + self.messages {
            return Err(bad_bytes("delivery ids that do not count up"));
        }
        self.messages += u64::from(run.record_count);
        self.bytes += (payload_bytes - forebay::limits::DELIVER_HEADER_BYTES) as u64;
        Ok(())
    }
}

/// Acks all that a read brought, and grants as much again where credit is kept.
fn answer(received: &[Received], whole: bool, out: &mut Vec<u8>) {
    // A read brings fewer runs than one frame has room for, but that is the reader's affair.
    for received in received.chunks(ACK_RANGES_MAX.min(CREDIT_ENTRIES_MAX)) {
        let bytes = received.len() * AckRange::BYTES;
        out.extend_from_slice(&FrameHeader::new(Opcode::Ack, 0, bytes).encode());
        for &Received { handle, first, messages, .. } in received {
            let range = AckRange { handle, first, last: first + messages - 1 };
            out.extend_from_slice(&range.encode());
        }
        if whole {
            let entry = |&Received { handle, messages, bytes, .. }: &Received| CreditEntry {
                handle,
                messages: messages as u32,
                bytes,
            };
            credit_frame(received.iter().map(entry), out);
        }
    }
}

fn credit_frame(entries: impl ExactSizeIterator<Item = CreditEntry>, out: &mut Vec<u8>) {
    let bytes = entries.len() * CreditEntry::BYTES;
    out.extend_from_slice(&FrameHeader::new(Opcode::Credit, 0, bytes).encode());
    entries.for_each(|entry| out.extend_from_slice(&entry.encode()));
}

/// Shows the messages of a deliver frame.
#[inline]
fn take_run(
    payload: &[u8],
    consumer: usize,
    take: &mut impl FnMut(usize, &[u8]),
) -> io::Result<DeliverHeader> {
    let (run, records) = DeliverHeader::decode(payload).ok_or(bad_bytes("a bad deliver frame"))?;
    let mut records = Records::new(records);
    let mut count = 0;
    for record in &mut records {
        take(consumer, record.body);
        count += 1;
    }
    if count == 0 || count != run.record_count || !records.rest().is_empty() {
        return Err(bad_bytes("a deliver frame that counts its records wrong"));
    }
    Ok(run)
}

impl Wire for FastWire {
    #[inline]
    fn room(&self, producer: usize) -> usize {
        let producer = &self.producers[producer];
        if producer.is_behind() {
            return 0;
        }
        let by_count = self.window - (producer.sent - producer.confirmed) as usize;
        let bytes = producer.window_bytes_total.saturating_sub(producer.sent_bytes);
        let each = (RECORD_HEADER_BYTES + self.body_bytes) as u64;
        let by_bytes = bytes.saturating_sub(BATCH_HEADER_BYTES as u64) / each;
        by_count.min(usize::try_from(by_bytes).unwrap_or(usize::MAX))
    }

    fn publish(
        &mut self,
        producer: usize,
        count: usize,
        mut fill: impl FnMut(&mut [u8]),
    ) -> io::Result<()> {
        let records_bytes = count * (RECORD_HEADER_BYTES + self.body_bytes);
        assert!(records_bytes <= BATCH_RECORDS_BYTES_MAX, "batches are bounded by the arguments");
        let producer = &mut self.producers[producer];
        let peer = &mut self.peers[producer.peer];
        if !peer.is_pending() {
            self.dirty.push(producer.peer);
        }
        let payload_bytes = BATCH_HEADER_BYTES + records_bytes;
        let header = FrameHeader::new(Opcode::Publish, producer.handle, payload_bytes);
        let batch = BatchHeader {
            record_count: count as u32,
            records_bytes: records_bytes as u32,
            producer_id: producer.id,
            producer_sequence: producer.sent + 1,
            ..Default::default()
        };
        peer.out.extend_from_slice(&header.encode());
        let start = peer.out.len();
        peer.out.resize(start + payload_bytes, 0);
        let (batch_bytes, records) = peer.out[start..].split_at_mut(BATCH_HEADER_BYTES);
        batch_bytes.copy_from_slice(&batch.encode());
        let record_header =
            RecordHeader { body_bytes: self.body_bytes as u32, ..Default::default() };
        let records = records.chunks_exact_mut(RECORD_HEADER_BYTES + self.body_bytes);
        for (sequence_delta, record) in (0..).zip(records) {
            let (header, body) = record.split_at_mut(RECORD_HEADER_BYTES);
            header.copy_from_slice(&RecordHeader { sequence_delta, ..record_header }.encode());
            fill(body);
        }
        if self.whole {
            let crc = crc32c(&peer.out[start + 4..]);
            peer.out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
        }
        if let Some(unconfirmed) = &mut producer.unconfirmed {
            let payload = &peer.out[start..];
            unconfirmed.push(producer.sent + 1, count as u64, payload, &mut self.spare);
        }
        producer.sent += count as u64;
        producer.sent_bytes += payload_bytes as u64;
        Ok(())
    }

    fn turn(&mut self, wait: Duration, mut take: impl FnMut(usize, &[u8])) -> io::Result<()> {
        if !self.behind.is_empty() {
            self.resend();
        }
        self.flush_dirty()?;
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        self.epoll.wait(wait, &mut ready)?;
        for event in &ready {
            if event.writable {
                self.flush_writable(event.token as usize)?;
            }
            if event.readable {
                self.read(event.token as usize, &mut take)?;
            }
        }
        self.ready = ready;
        Ok(())
    }

    fn poll_fd(&self) -> Option<RawFd> {
        Some(self.epoll.fd())
    }

    fn confirmed(&self) -> u64 {
        self.confirmed
    }
}
