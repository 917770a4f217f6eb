//! The shard's tick without a kernel: what publish, deliver and ack cost by themselves.
//!
//! A world whose sockets are scripted: a producer that sends batches, a consumer that acks what it
//! got and grants as much credit. `cargo bench --bench tick -- [messages per batch] [body bytes]
//! [ticks]` prints nanoseconds per message; under `valgrind --tool=callgrind` it counts
//! instructions, which repeat.

use forebay::base::chunk_pool::HeapSlabs;
use forebay::base::time::{Mono, Now, Wall};
use forebay::format::batch::{BatchBuilder, BatchHeader, seal};
use forebay::io::{
    Accepted, Clock, Disk, DiskCompletion, DiskRequest, FileId, Net, NetEvent, ReadOutcome, Socket,
    World, WriteOutcome,
};
use forebay::protocol::control::Request;
use forebay::protocol::frame::{FrameHeader, Opcode, preamble};
use forebay::protocol::hot::{AckRange, CreditEntry, DeliverHeader};
use forebay::protocol::wire;
use forebay::shard::{Shard, ShardConfig, mailbox};
use std::io::IoSlice;
use std::rc::Rc;
use std::time::{Duration, Instant};

const PRODUCER: Socket = Socket(1);
const CONSUMER: Socket = Socket(2);

/// Bytes to be read per socket, and what was written seen as deliveries.
struct Script {
    to_accept: Vec<Socket>,
    input: [Vec<u8>; 3],
    delivered: u64,
    acked: u64,
    ready: bool,
}

impl Net for Script {
    type Detached = Socket;
    fn poll(&mut self, _: Option<Duration>, events: &mut Vec<NetEvent>) -> std::io::Result<()> {
        for socket in [PRODUCER, CONSUMER] {
            if self.ready && !self.input[socket.0 as usize].is_empty() {
                events.push(NetEvent::Readable { socket, closed: false });
            }
        }
        Ok(())
    }
    fn accept(&mut self) -> Accepted {
        match self.to_accept.pop() {
            Some(socket) => Accepted::Socket(socket, ([127, 0, 0, 1], 1).into()),
            None => Accepted::Nothing,
        }
    }
    fn read(&mut self, socket: Socket, buffer: &mut [u8]) -> ReadOutcome {
        let input = &mut self.input[socket.0 as usize];
        if input.is_empty() {
            return ReadOutcome::Nothing;
        }
        let count = input.len().min(buffer.len());
        buffer[..count].copy_from_slice(&input[..count]);
        input.drain(..count);
        ReadOutcome::Bytes(count)
    }
    fn write(&mut self, socket: Socket, slices: &[IoSlice<'_>]) -> WriteOutcome {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if socket == CONSUMER && self.ready {
            for slice in slices {
                // Headers stand in slices of their own or before copied records.
                let mut rest: &[u8] = slice;
                while let Some((header, after)) = rest.split_first_chunk::<16>() {
                    let Ok(header) = FrameHeader::decode(header) else { break };
                    if header.opcode != Opcode::Deliver as u8 {
                        break;
                    }
                    let Some((deliver, _)) = DeliverHeader::decode(after) else { break };
                    self.delivered = deliver.delivery_id + u64::from(deliver.record_count) - 1;
                    rest = after.get(header.payload_bytes as usize..).unwrap_or_default();
                }
            }
        }
        WriteOutcome::Bytes(bytes)
    }
    fn close(&mut self, socket: Socket) {
        panic!("the shard closed {socket:?}");
    }
    fn release(&mut self, socket: Socket) -> Option<Socket> {
        Some(socket)
    }
    fn adopt(&mut self, socket: Socket) -> Option<Socket> {
        Some(socket)
    }
    fn stop_listening(&mut self) {}
}

struct NoDisk;

impl Disk for NoDisk {
    fn open(&mut self, _: &str) -> std::io::Result<FileId> {
        Ok(FileId(0))
    }
    fn close(&mut self, _: FileId) {}
    fn names(&self, _: &str) -> std::io::Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn file_len(&self, _: FileId) -> std::io::Result<u64> {
        Ok(0)
    }
    fn read_now(&mut self, _: FileId, _: u64, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
    fn file_bytes(&self, _: FileId) -> std::io::Result<u64> {
        Ok(0)
    }
    fn cut(&mut self, _: FileId, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        Err(request)
    }
    fn flush(&mut self) {}
    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        None
    }
}

struct Counter(u64);

impl Clock for Counter {
    fn now(&mut self) -> Now {
        self.0 += 1000;
        Now { mono: Mono(self.0), wall: Wall(self.0) }
    }
}

struct Bench;

impl World for Bench {
    type Net = Script;
    type Disk = NoDisk;
    type Clock = Counter;
}

fn frame(opcode: Opcode, handle: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { correlation: 1, ..FrameHeader::new(opcode, handle, payload.len()) };
    [&header.encode()[..], payload].concat()
}

fn request(request: &Request, handle: u32) -> Vec<u8> {
    frame(request.opcode(), handle, &request.encode())
}

fn create() -> wire::QueueCreateT {
    let mut create = wire::QueueCreateT::default();
    create.name = "q".into();
    create
}

fn produce() -> wire::ProducerOpenT {
    let mut produce = wire::ProducerOpenT::default();
    produce.queue = "q".into();
    produce
}

fn consume() -> wire::ConsumerOpenT {
    let mut consume = wire::ConsumerOpenT::default();
    consume.queue = "q".into();
    consume.credit_messages = 100_000;
    consume.credit_bytes = 1 << 28;
    consume
}

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let number = |nth: usize, default| numbers.get(nth).copied().unwrap_or(default);
    let (per_batch, body_bytes, ticks) = (number(0, 90), number(1, 128), number(2, 20_000));
    let hello = [&preamble(1)[..], &request(&Request::Hello(wire::HelloT::default()), 0)].concat();
    let producer = [
        hello.clone(),
        request(&Request::QueueCreate(create()), 0),
        request(&Request::ProducerOpen(produce()), 1),
    ]
    .concat();
    let script = Script {
        to_accept: vec![CONSUMER, PRODUCER],
        input: [Vec::new(), producer, Vec::new()],
        delivered: 0,
        acked: 0,
        ready: true,
    };
    let config = ShardConfig::new(1 << 30);
    let commands = mailbox::commands();
    let mut shard: Shard<Bench> =
        Shard::new(config, script, NoDisk, Counter(1), Rc::new(HeapSlabs), commands);
    shard.tick().expect("the script polls");
    shard.world().0.input[2] = [hello, request(&Request::ConsumerOpen(consume()), 1)].concat();
    shard.tick().expect("the script polls");

    let mut builder = BatchBuilder::default();
    (0..per_batch).for_each(|_| builder.push(0, &[], &vec![7; body_bytes as usize]));
    let mut batch = builder.finish(0, 0, 1).to_vec();
    let header = BatchHeader::decode(&batch).expect("just built");
    let mut sequence = 1;
    let mut spent = Duration::ZERO;
    for _ in 0..ticks {
        seal(&mut batch, BatchHeader { producer_sequence: sequence, ..header });
        sequence += per_batch;
        let publish = frame(Opcode::Publish, 1, &batch);
        let net = shard.world().0;
        net.input[1].extend_from_slice(&publish);
        if net.delivered > net.acked {
            let (first, last) = (net.acked + 1, net.delivered);
            let ack = AckRange { handle: 1, first, last };
            let messages = (last - first + 1) as u32;
            let bytes = u64::from(messages) * (body_bytes + 16);
            let credit = CreditEntry { handle: 1, messages, bytes };
            net.input[2].extend(frame(Opcode::Ack, 0, &ack.encode()));
            net.input[2].extend(frame(Opcode::Credit, 0, &credit.encode()));
            net.acked = last;
        }
        #[allow(clippy::disallowed_methods)] // a benchmark reads the time
        let begin = Instant::now();
        shard.tick().expect("the script polls");
        spent += begin.elapsed();
    }
    let messages = ticks * per_batch;
    let acked = shard.queues().next().expect("the queue is there").1.counters().acked;
    assert!(acked + 2 * per_batch >= messages, "{acked} of {messages} were acked");
    println!(
        "{per_batch} x {body_bytes} B per tick: {:.1} ns per message, {:.0} ns per tick",
        spent.as_nanos() as f64 / messages as f64,
        spent.as_nanos() as f64 / ticks as f64
    );
}
