//! Memory that overflows to disk and comes back: the shard's planner over a disk of bytes, which
//! fails, fills up and forgets as it is told.

use super::*;
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::{
    READ_AHEAD_CHUNKS_MAX, READ_AHEAD_CHUNKS_MIN, READ_AHEAD_MEMORY_SHARE, READ_RETRY_MS,
    SPILL_READ_DEPTH,
};
use crate::queue::memory::Account;
use crate::shard::mailbox::SpillHealth;
use crate::storage::spill::{DiskBudget, SpillShape};
use std::collections::VecDeque;
use std::io::ErrorKind;

const KIB: usize = 1024;
const SLOT_BYTES: usize = 64 * KIB;
const EXTENT_SLOTS: u32 = 4;

/// A file in memory. What is submitted ends when it is asked to.
#[derive(Default)]
struct BytesDisk {
    bytes: Vec<u8>,
    pending: VecDeque<DiskRequest>,
    /// Each write, read or allocation fails so.
    write_error: Option<ErrorKind>,
    read_error: Option<ErrorKind>,
    full: Option<ErrorKind>,
    free_bytes: Option<u64>,
    writes: usize,
    reads: usize,
    /// Takes no more than so many at a time; 0: any number.
    depth: usize,
}

impl BytesDisk {
    fn end(&mut self, request: DiskRequest) -> DiskCompletion {
        match request {
            DiskRequest::Write { tag, offset, chunks, .. } => {
                self.writes += 1;
                if let Some(kind) = self.write_error {
                    return DiskCompletion::Written { tag, result: Err(kind) };
                }
                let mut at = offset as usize;
                for chunk in chunks {
                    let image = chunk.image();
                    self.bytes.resize(self.bytes.len().max(at + image.len()), 0);
                    self.bytes[at..at + image.len()].copy_from_slice(image);
                    at += image.len();
                }
                assert!(at as u64 <= offset + SLOT_BYTES as u64, "a write over its slot");
                DiskCompletion::Written { tag, result: Ok(()) }
            }
            DiskRequest::Read { tag, offset, bytes, mut into, .. } => {
                self.reads += 1;
                if let Some(kind) = self.read_error {
                    return DiskCompletion::Read { tag, into, result: Err(kind) };
                }
                let at = offset as usize;
                let from = &self.bytes[at..at + bytes];
                let bytes = into.load(|all| {
                    all[..bytes].copy_from_slice(from);
                    bytes
                });
                DiskCompletion::Read { tag, into, result: Ok(bytes) }
            }
            DiskRequest::WritePages { tag, pages, .. } => {
                DiskCompletion::WrotePages { tag, pages, result: Ok(()) }
            }
            DiskRequest::Sync { tag, .. } => DiskCompletion::Synced { tag, result: Ok(()) },
            DiskRequest::Allocate { tag, .. } => {
                DiskCompletion::Allocated { tag, result: self.full.map_or(Ok(()), Err) }
            }
            DiskRequest::Release { tag, .. } => DiskCompletion::Released { tag, result: Ok(()) },
        }
    }
}

impl Disk for BytesDisk {
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
        self.free_bytes
    }
    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.depth > 0 && self.pending.len() >= self.depth {
            return Err(request);
        }
        self.pending.push_back(request);
        Ok(())
    }
    fn flush(&mut self) {}
    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        let request = self.pending.pop_front()?;
        Some(self.end(request))
    }
}

struct SpillBench {
    bench: Bench,
    disk: BytesDisk,
    /// Nothing on disk ends.
    held: bool,
    /// From then on reads succeed.
    reads_from: Option<Mono>,
    key: Key,
}

fn config(memory_bytes: usize) -> ShardConfig {
    let mut config = ShardConfig::new(memory_bytes as u64);
    config.memory_reserve_bytes = 256 * KIB as u64;
    config.message_bytes_max = 256 * KIB as u64;
    config.pool = PoolShape {
        slab_bytes: SLOT_BYTES,
        class_bytes: vec![4 * KIB, 16 * KIB, SLOT_BYTES],
        header_bytes: limits::CHUNK_HEADER_BYTES,
    };
    config
}

impl SpillBench {
    fn new(memory_bytes: usize, disk_limit_bytes: usize) -> SpillBench {
        let mut bench = Bench::with(config(memory_bytes));
        let shape = SpillShape {
            slot_bytes: SLOT_BYTES,
            extent_slots: EXTENT_SLOTS,
            reserve_bytes: 0,
            headroom_bytes: SLOT_BYTES as u64,
            warm_bytes: 0,
        };
        let budget = DiskBudget::new(disk_limit_bytes as u64);
        if disk_limit_bytes > 0 {
            bench.core.open_spill(FileId(0), shape, budget);
        }
        let key = bench.open();
        SpillBench { bench, disk: BytesDisk::default(), held: false, reads_from: None, key }
    }

    /// A tick; its frames to the connection.
    fn tick(&mut self) -> Vec<Frame> {
        if self.reads_from.is_some_and(|at| at <= self.bench.now.mono) {
            self.disk.read_error = None;
        }
        let core = &mut self.bench.core;
        core.begin_tick(self.bench.now);
        while !self.held
            && let Some(completion) = self.disk.poll_completion()
        {
            core.handle_disk(completion);
        }
        self.bench.turn();
        let core = &mut self.bench.core;
        let disk = &mut self.disk;
        core.plan_disk(|| disk.free_bytes());
        while let Some(request) = core.poll_disk_request() {
            if let Err(request) = disk.submit(request) {
                core.return_disk_request(request);
                break;
            }
        }
        self.check();
        self.bench.sent(self.key)
    }

    /// Ticks until nothing is under way.
    fn settle(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        for _ in 0..10_000 {
            frames.extend(self.tick());
            let core = &self.bench.core;
            if self.disk.pending.is_empty()
                && core.active.is_empty()
                && core.spill.refills.is_empty()
                && core.spill.stats().reads_under_way == 0
            {
                return frames;
            }
            if self.disk.pending.is_empty() {
                let wait = core.next_deadline().unwrap_or_default();
                self.wait(wait.as_millis() as u64 + 1);
            }
        }
        panic!("the disk is never at rest");
    }

    fn wait(&mut self, ms: u64) {
        self.bench.now.mono = self.bench.now.mono.plus_ms(ms);
    }

    fn queue(&mut self, name: &str, handle: u32) {
        self.bench.create(self.key, name, wire::QueueOptionsT::default());
        self.bench.producer(self.key, name, handle, 0);
    }

    /// Publishes one message a tick until `count` are in or one is refused. How many are in.
    fn publish(&mut self, handle: u32, first: u64, count: u64, bytes: usize) -> (u64, Vec<Frame>) {
        for sequence in first..first + count {
            let frames = self.bench.publish(self.key, handle, sequence, &[&body(sequence, bytes)]);
            let ticked = self.tick();
            let refused = |(header, _): &Frame| header.opcode == Opcode::PublishError as u8;
            if frames.iter().any(refused) {
                return (sequence - first, [frames, ticked].concat());
            }
        }
        (count, Vec::new())
    }

    /// Takes and acks messages until none come; their bodies.
    fn consume(&mut self, queue: &str, handle: u32) -> Vec<Vec<u8>> {
        let mut frames = self.bench.consumer(self.key, queue, handle, 20);
        let mut bodies = Vec::new();
        loop {
            frames.extend(self.settle());
            let got = bodies_of(&std::mem::take(&mut frames));
            let (Some(first), Some(last)) = (got.first(), got.last()) else {
                self.bench.core.close_handle(self.key, handle);
                return bodies;
            };
            let range = AckRange { handle, first: first.0, last: last.0 };
            let credit = CreditEntry {
                handle,
                messages: got.len() as u32,
                bytes: got.iter().map(|(_, body)| body.len() as u64 + 100).sum(),
            };
            bodies.extend(got.into_iter().map(|(_, body)| body));
            self.bench.frame(self.key, Opcode::Ack, 0, &range.encode());
            frames = self.bench.frame(self.key, Opcode::Credit, 0, &credit.encode());
        }
    }

    fn stats(&mut self) -> wire::StatsT {
        match self.bench.ask(self.key, Request::BrokerStats(wire::BrokerStatsT::default()), 0) {
            Answer::Stats(stats) => stats,
            other => panic!("{other:?}"),
        }
    }

    fn used(&self) -> u64 {
        let core = &self.bench.core;
        let free = core.memory.free_chunk_bytes() as u64;
        core.memory.budget.used_by(Account::Chunks) - free
    }

    /// What is kept as figures equals what is there.
    fn check(&self) {
        let core = &self.bench.core;
        let memory: u64 = core.queues.iter().map(|(_, slot)| slot.queue.memory_bytes()).sum();
        let (used, leaving) = (self.used(), core.spill.leaving_bytes());
        assert!(memory <= used + leaving, "queues hold {memory} of {used}");
        assert!(core.memory.budget.used_bytes() <= core.memory.budget.limit_bytes());
        let clean: u64 = core.spill.clean.iter().map(|owner| u64::from(owner.bytes)).sum();
        assert_eq!(core.spill.clean_bytes, clean);
    }
}

fn body(sequence: u64, bytes: usize) -> Vec<u8> {
    let mut body = vec![sequence as u8; bytes];
    body[..8].copy_from_slice(&sequence.to_le_bytes());
    body
}

fn code_of(frames: &[Frame]) -> ErrorCode {
    let refused = |(header, _): &&Frame| header.opcode == Opcode::PublishError as u8;
    error_of(frames.iter().find(refused).expect("a refusal")).0
}

fn has(frames: &[Frame], opcode: Opcode) -> bool {
    frames.iter().any(|(header, _)| header.opcode == opcode as u8)
}

#[test]
fn spilling_begins_over_the_high_mark_and_ends_under_the_low_one() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    let messages = world.bench.core.spill.messages_bytes();
    let (high, low) = (messages / 100 * 70, messages / 100 * 60);
    let mut sequence = 1;
    while world.used() <= high - 2 * SLOT_BYTES as u64 {
        world.publish(1, sequence, 1, 4000);
        sequence += 1;
    }
    assert_eq!((world.stats().spilled_messages, world.disk.writes), (0, 0));
    let mut most = 0;
    while sequence < 2000 {
        world.publish(1, sequence, 1, 4000);
        most = most.max(world.bench.core.messages_used());
        sequence += 1;
    }
    world.settle();
    assert!(most > high && most < high + 8 * SLOT_BYTES as u64, "{most} of {high}");
    let (used, stats) = (world.bench.core.messages_used(), world.stats());
    assert!(used <= high && used > low - 2 * SLOT_BYTES as u64, "{used}");
    assert!(stats.spilled_messages > 1000 && stats.disk_writes > 0);
    assert_eq!(stats.spill_state.as_deref(), Some("ready"));
    // The head stayed in memory: the first messages come without the disk.
    world.bench.consumer(world.key, "q", 2, 10);
    assert_eq!(world.disk.reads, 0);
}

#[test]
fn order_holds_over_memory_and_disk_and_all_is_given_back() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    assert_eq!(world.publish(1, 1, 3000, 3000).0, 3000);
    world.settle();
    assert!(world.stats().spilled_bytes > 4 << 20);
    let bodies = world.consume("q", 2);
    assert_eq!(bodies.len(), 3000);
    for (nth, got) in bodies.iter().enumerate() {
        assert_eq!(*got, body(nth as u64 + 1, 3000));
    }
    let (stats, shown) = (world.stats(), world.bench.describe(world.key, "q"));
    assert_eq!((stats.spilled_messages, stats.spilled_bytes, stats.disk_used_bytes), (0, 0, 0));
    assert_eq!((shown.bytes, shown.memory_bytes, shown.counters.acked), (0, 0, 3000));
    assert!(world.disk.reads > 0);
    let slot = world.bench.core.queues.iter().next().unwrap().1;
    assert!(slot.read_ahead <= READ_AHEAD_CHUNKS_MAX);
}

#[test]
fn a_full_memory_says_what_keeps_the_disk_from_making_room() {
    let off = SpillBench::new(2 << 20, 0);
    let limit = SpillBench::new(2 << 20, 1 << 20);
    let mut no_space = SpillBench::new(2 << 20, 64 << 20);
    no_space.disk.full = Some(ErrorKind::StorageFull);
    let mut headroom = SpillBench::new(2 << 20, 64 << 20);
    headroom.disk.free_bytes = Some(SLOT_BYTES as u64);
    let mut failing = SpillBench::new(2 << 20, 64 << 20);
    failing.disk.write_error = Some(ErrorKind::Other);
    let mut slow = SpillBench::new(2 << 20, 64 << 20);
    slow.held = true;
    for (mut world, code) in [
        (off, ErrorCode::MemoryLimit),
        (limit, ErrorCode::DiskLimit),
        (no_space, ErrorCode::DiskFull),
        (headroom, ErrorCode::DiskFull),
        (failing, ErrorCode::DiskError),
        (slow, ErrorCode::MemoryLimit),
    ] {
        world.queue("q", 1);
        let (count, frames) = world.publish(1, 1, 5000, 4000);
        assert!(count > 300 && count < 5000, "{code}: {count}");
        assert_eq!(code_of(&frames), code);
        assert!(has(&frames, Opcode::Blocked), "{code}");
        let shown = world.bench.describe(world.key, "q");
        let reason = shown.blocked_reason.filter(|_| shown.blocked).unwrap();
        assert!(reason.starts_with(&format!("{}: ", code.name())), "{reason}");
        // Consumers are never blocked; what they free lets the producer go on.
        world.held = false;
        let mut frames = world.bench.consumer(world.key, "q", 2, count as u32);
        let credit = CreditEntry { handle: 2, messages: 0, bytes: 64 << 20 };
        frames.extend(world.bench.frame(world.key, Opcode::Credit, 0, &credit.encode()));
        frames.extend(world.settle());
        let got = bodies_of(&frames);
        assert_eq!(got.len() as u64, count, "{code}");
        let range = AckRange { handle: 2, first: 1, last: count };
        frames.extend(world.bench.frame(world.key, Opcode::Ack, 0, &range.encode()));
        frames.extend(world.settle());
        assert!(has(&frames, Opcode::Unblocked), "{code}");
        assert_eq!(world.stats().disk_used_bytes, 0);
    }
}

#[test]
fn a_failed_write_goes_elsewhere_and_a_failing_disk_is_tried_again() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    world.publish(1, 1, 200, 4000);
    world.disk.write_error = Some(ErrorKind::Other);
    let (count, _) = world.publish(1, 201, 200, 4000);
    assert_eq!(count, 200, "memory has room yet");
    world.settle();
    let stats = world.stats();
    assert!(stats.disk_write_errors >= 3 && stats.disk_writes == 0);
    assert!(stats.spill_state.unwrap().starts_with("failing"));
    world.disk.write_error = None;
    let writes = world.disk.writes;
    world.settle();
    assert_eq!(world.disk.writes, writes, "it is left alone for a second");
    world.wait(1000);
    world.settle();
    let stats = world.stats();
    assert!(stats.disk_writes > 0);
    assert_eq!(stats.spill_state.as_deref(), Some("ready"));
    let bodies = world.consume("q", 2);
    assert_eq!(bodies.len(), 400);
    assert!(bodies.iter().enumerate().all(|(nth, got)| *got == body(nth as u64 + 1, 4000)));
}

#[test]
fn what_is_damaged_is_counted_and_the_rest_comes() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    assert_eq!(world.publish(1, 1, 1000, 3000).0, 1000);
    world.settle();
    // One record somewhere, and two pages of another slot.
    let at = 3 * SLOT_BYTES + 5000;
    world.disk.bytes[at] ^= 0x10;
    world.disk.bytes[5 * SLOT_BYTES..5 * SLOT_BYTES + 8192].fill(0);
    let bodies = world.consume("q", 2);
    let shown = world.bench.describe(world.key, "q");
    let lost = shown.counters.lost_damaged;
    assert!(lost >= 2, "{lost}");
    assert_eq!(bodies.len() as u64 + lost, 1000);
    assert_eq!(shown.counters.acked, bodies.len() as u64);
    let sequences: Vec<u64> =
        bodies.iter().map(|body| u64::from_le_bytes(body[..8].try_into().unwrap())).collect();
    assert!(sequences.is_sorted_by(|one, next| one < next), "in order");
    assert_eq!((shown.ready, shown.in_flight, shown.bytes), (0, 0, 0));
    assert!(world.stats().disk_read_errors > 0);
}

/// What the system says of a device that fails.
fn device_error() -> ErrorKind {
    std::io::Error::from_raw_os_error(libc::EIO).kind()
}

/// A queue most of which is on a disk that reads nothing.
fn on_a_dead_disk() -> SpillBench {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    assert_eq!(world.publish(1, 1, 1000, 3000).0, 1000);
    world.settle();
    world.disk.read_error = Some(device_error());
    world
}

#[test]
fn a_disk_that_reads_nothing_for_seconds_loses_nothing() {
    let mut world = on_a_dead_disk();
    let began = world.bench.now.mono;
    world.reads_from = Some(began.plus_ms(3000));
    let bodies = world.consume("q", 2);
    assert_eq!(bodies.len(), 1000);
    assert!(bodies.iter().enumerate().all(|(nth, got)| *got == body(nth as u64 + 1, 3000)));
    assert_eq!(world.bench.describe(world.key, "q").counters.lost_damaged, 0);
    // Each of those that were under way was refused at once and after a second.
    let stats = world.stats();
    assert_eq!(stats.disk_read_errors, 2 * u64::from(READ_AHEAD_CHUNKS_MIN));
    assert_eq!(stats.spill_state.as_deref(), Some("ready"));
    let passed_ms = world.bench.now.mono.ms_since(began);
    assert!((3000..4000).contains(&passed_ms), "and then goes on at once: {passed_ms}");
}

#[test]
fn a_disk_that_reads_nothing_loses_what_is_there_and_no_more() {
    let mut world = on_a_dead_disk();
    let (used, began) = (world.stats().disk_used_bytes, world.bench.now.mono);
    // Nothing is said, so that all is there to be looked at.
    world.bench.core.spill.losses.quiet_until = Mono(u64::MAX);
    let bodies = world.consume("q", 2);
    let shown = world.bench.describe(world.key, "q");
    // Leases may have ended while the disk was tried.
    let bodies: std::collections::BTreeSet<_> = bodies.into_iter().collect();
    assert!(!bodies.is_empty() && bodies.len() < 1000);
    assert_eq!(bodies.len() as u64 + shown.counters.lost_damaged, 1000);
    assert_eq!(shown.counters.acked, bodies.len() as u64);
    assert_eq!((shown.ready, shown.bytes), (0, 0));
    assert_eq!(world.stats().disk_used_bytes, 0);
    let losses = &world.bench.core.spill.losses;
    assert_eq!(losses.messages, shown.counters.lost_damaged);
    assert!(losses.chunks >= used / SLOT_BYTES as u64);
    assert!(losses.reason.ends_with(" failed: input/output error"), "{}", losses.reason);
    let rounds = losses.chunks.div_ceil(SPILL_READ_DEPTH as u64);
    let passed_ms = world.bench.now.mono.ms_since(began);
    assert!(rounds > 2 && passed_ms >= rounds * 7 * READ_RETRY_MS, "{rounds} in {passed_ms} ms");
}

#[test]
fn nobody_waits_for_a_queue_that_goes_while_the_disk_reads_nothing() {
    for purge in [false, true] {
        let mut world = on_a_dead_disk();
        world.bench.consumer(world.key, "q", 2, 1000);
        for _ in 0..5 {
            world.tick();
        }
        let state = world.stats().spill_state;
        assert_eq!(state.as_deref(), Some("failing: input/output error"));
        assert_eq!(world.bench.core.spill_health(), SpillHealth::Failing);
        world.bench.core.close_handle(world.key, 2);
        let (name, opcode) = ("q".to_owned(), [Opcode::QueueDelete, Opcode::QueuePurge]);
        let request = match purge {
            true => Request::QueuePurge(wire::QueuePurgeT { name, subscription: None }),
            false => Request::QueueDelete(wire::QueueDeleteT { name, if_empty: false }),
        };
        world.bench.frame(world.key, opcode[usize::from(purge)], 0, &request.encode());
        // The slots from which there is still to be read hold nothing, and are not free.
        let used = world.stats().disk_used_bytes;
        let reads = READ_AHEAD_CHUNKS_MIN as usize;
        assert_eq!(used, (reads * SLOT_BYTES) as u64, "purge: {purge}");
        let request = Request::Trim(wire::TrimT::default()).encode();
        world.bench.frame(world.key, Opcode::Trim, 0, &request);
        let frames: Vec<Frame> = (0..100).flat_map(|_| world.tick()).collect();
        assert!(has(&frames, Opcode::Trimmed), "purge: {purge}");
        let left = world.stats().disk_allocated_bytes;
        assert!(left >= used && left <= used * u64::from(EXTENT_SLOTS), "{left} of {used}");
        // A broker that ends does not wait for the disk either.
        let began = world.bench.now.mono;
        world.bench.core.drain(world.bench.now);
        world.tick();
        world.wait(1000);
        world.tick();
        while world.bench.core.poll_flush().is_some() {}
        assert!(world.bench.core.is_drained(world.bench.now), "purge: {purge}");
        while world.stats().disk_used_bytes > 0 {
            if world.disk.pending.is_empty() {
                let wait = world.bench.core.next_deadline().expect("it is tried again");
                world.wait(wait.as_millis() as u64 + 1);
            }
            world.tick();
        }
        let passed_ms = world.bench.now.mono.ms_since(began);
        assert!(passed_ms < 8 * READ_RETRY_MS, "purge: {purge}: {passed_ms} ms");
        assert_eq!(world.stats().spill_state.as_deref(), Some("ready"));
    }
}

#[test]
fn small_queues_are_packed_into_common_slots() {
    let mut world = SpillBench::new(10 << 20, 64 << 20);
    let name = |nth: u32| format!("small-{nth}");
    for nth in 0..1000 {
        world.queue(&name(nth), nth + 1);
        assert_eq!(world.publish(nth + 1, 1, 2, 3000).0, 2);
    }
    world.settle();
    let stats = world.stats();
    assert!(stats.spilled_messages > 300, "{}", stats.spilled_messages);
    let images = stats.spilled_messages * 4096;
    let slots = stats.disk_used_bytes / SLOT_BYTES as u64;
    assert!(slots * SLOT_BYTES as u64 <= images * 3 / 2, "{slots} slots for {images} bytes");
    for nth in 0..1000 {
        let handle = 2000 + nth;
        assert_eq!(world.consume(&name(nth), handle), [body(1, 3000), body(2, 3000)], "{nth}");
    }
    assert_eq!(world.stats().disk_used_bytes, 0);
}

#[test]
fn a_queue_that_is_deleted_or_purged_leaves_nothing_behind() {
    for purge in [false, true] {
        let mut world = SpillBench::new(2 << 20, 64 << 20);
        world.queue("q", 1);
        world.publish(1, 1, 400, 4000);
        world.settle();
        // Writes and reads are under way when it goes.
        world.held = true;
        world.publish(1, 401, 200, 4000);
        world.bench.consumer(world.key, "q", 2, 1000);
        for _ in 0..5 {
            world.tick();
        }
        assert!(!world.disk.pending.is_empty());
        let name = || "q".to_owned();
        match purge {
            true => {
                world.bench.core.close_handle(world.key, 2);
                let purge = wire::QueuePurgeT { name: name(), subscription: None };
                world.bench.frame(
                    world.key,
                    Opcode::QueuePurge,
                    0,
                    &Request::QueuePurge(purge).encode(),
                );
            }
            false => {
                let delete = wire::QueueDeleteT { name: name(), if_empty: false };
                let delete = Request::QueueDelete(delete).encode();
                world.bench.frame(world.key, Opcode::QueueDelete, 0, &delete);
            }
        }
        world.held = false;
        world.settle();
        let stats = world.stats();
        assert_eq!((stats.spilled_messages, stats.disk_used_bytes), (0, 0), "purge: {purge}");
        assert!(world.used() <= SLOT_BYTES as u64, "but for the chunk set aside; purge: {purge}");
        assert_eq!(world.bench.core.spill.leaving_bytes(), 0);
    }
}

#[test]
fn a_backend_that_takes_little_at_a_time_is_enough() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.disk.depth = 1;
    world.queue("q", 1);
    let (count, _) = world.publish(1, 1, 1000, 3000);
    world.settle();
    assert_eq!(world.consume("q", 2).len() as u64, count);
}

#[test]
fn a_peek_waits_for_the_disk() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    world.publish(1, 1, 1000, 3000);
    world.settle();
    let peek = wire::QueuePeekT { name: "q".into(), count_max: 2, skip: 700, subscription: None };
    let request = Request::QueuePeek(peek);
    let frames = world.bench.frame(world.key, Opcode::QueuePeek, 0, &request.encode());
    assert!(frames.is_empty(), "it is on disk");
    let frames = world.settle();
    let Ok(Answer::PeekedMessages(peeked)) = Answer::decode(Opcode::PeekedMessages, &frames[0].1)
    else {
        panic!("an answer to the peek")
    };
    let messages = peeked.messages.unwrap();
    assert!(peeked.more && !messages.is_empty());
    assert_eq!(messages[0].sequence, 701);
    assert_eq!(messages[0].body.as_deref(), Some(&body(701, 3000)[..]));

    // One that waits too long is told to come again.
    world.held = true;
    let skip = PEEK_FAR;
    let peek = wire::QueuePeekT { name: "q".into(), count_max: 1, skip, subscription: None };
    let request = Request::QueuePeek(peek).encode();
    assert!(world.bench.frame(world.key, Opcode::QueuePeek, 0, &request).is_empty());
    world.tick();
    world.wait(limits::WAITING_FOR_DISK_MS);
    let frames = world.tick();
    assert_eq!(first_code(&frames), ErrorCode::Refilling);
    // As are those that find the list full.
    let mut frames = Vec::new();
    for _ in 0..=limits::WAITING_FOR_DISK_MAX {
        frames = world.bench.frame(world.key, Opcode::QueuePeek, 0, &request);
    }
    assert_eq!(first_code(&frames), ErrorCode::Refilling);
    assert_eq!(error_of(&frames[0]).1.limit_name.as_deref(), Some("WAITING_FOR_DISK_MAX"));
}

const PEEK_FAR: u64 = 900;

#[test]
fn a_trim_is_answered_when_the_space_is_given_back() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    world.publish(1, 1, 2000, 3000);
    world.settle();
    assert_eq!(world.consume("q", 2).len(), 2000);
    let before = world.stats().disk_allocated_bytes;
    assert!(before > 4 << 20);
    let request = Request::Trim(wire::TrimT::default());
    let frames = world.bench.frame(world.key, Opcode::Trim, 0, &request.encode());
    assert!(frames.is_empty(), "the disk has to do it first");
    let frames = world.settle();
    let Ok(Answer::Trimmed(trimmed)) = Answer::decode(Opcode::Trimmed, &frames[0].1) else {
        panic!("an answer to the trim")
    };
    assert_eq!((trimmed.released_bytes, trimmed.disk_allocated_bytes), (before, 0));
    // The next spike makes its space again.
    assert_eq!(world.publish(1, 2001, 1000, 3000).0, 1000);
    world.settle();
    assert_eq!(world.consume("q", 3).len(), 1000);
    // Where nothing spills there is nothing to give back.
    let mut off = SpillBench::new(2 << 20, 0);
    let answer = off.bench.ask(off.key, Request::Trim(wire::TrimT::default()), 0);
    assert_eq!(answer, Answer::Trimmed(wire::TrimmedT::default()));
}

#[test]
fn space_is_given_back_in_calm_without_being_asked() {
    let mut world = SpillBench::new(2 << 20, 64 << 20);
    world.queue("q", 1);
    world.publish(1, 1, 2000, 3000);
    world.settle();
    world.consume("q", 2);
    let before = world.stats().disk_allocated_bytes;
    let mut looks = 0;
    while world.stats().disk_allocated_bytes > 0 {
        let wait = world.bench.core.next_deadline().expect("somebody looks again");
        world.wait(wait.as_millis() as u64 + 1);
        world.settle();
        looks += 1;
        assert!(looks < 100_000);
    }
    assert!(before > 0);
}

#[test]
fn messages_that_fill_a_chunk_each_come_back() {
    let mut world = SpillBench::new(4 << 20, 64 << 20);
    world.queue("q", 1);
    let (count, _) = world.publish(1, 1, 200, 100 * KIB / 2);
    assert_eq!(count, 200);
    world.settle();
    assert!(world.stats().spilled_messages > 0);
    let bodies = world.consume("q", 2);
    assert_eq!(bodies.len(), 200);
    assert!(
        bodies.iter().enumerate().all(|(nth, got)| *got == body(nth as u64 + 1, 100 * KIB / 2))
    );
}

#[test]
fn what_was_read_and_is_done_is_not_counted_as_read_ahead() {
    let mut world = SpillBench::new(4 << 20, 64 << 20);
    world.queue("slow", 1);
    world.queue("fast", 2);
    assert_eq!(world.publish(1, 1, 1500, 3000).0, 1500);
    assert_eq!(world.publish(2, 1, 3000, 3000).0, 3000);
    world.settle();
    // One chunk that came from disk stays in memory, for its messages are in flight.
    let count = world.bench.describe(world.key, "slow").ready as u32;
    world.bench.consumer(world.key, "slow", 3, count);
    while world.disk.reads == 0 {
        let got = bodies_of(&world.settle());
        let Some(last) = got.last() else { panic!("nothing was on disk") };
        if world.disk.reads == 0 {
            let range = AckRange { handle: 3, first: 1, last: last.0 };
            world.bench.frame(world.key, Opcode::Ack, 0, &range.encode());
            let credit = CreditEntry { handle: 3, messages: 1, bytes: 1 << 20 };
            world.bench.frame(world.key, Opcode::Credit, 0, &credit.encode());
        }
    }
    assert_eq!(world.consume("fast", 4).len(), 3000);
    let core = &world.bench.core;
    let live = core.spill.clean.iter().filter(|owner| {
        core.queues.at(owner.queue).is_some_and(|slot| slot.queue.is_clean(owner.chunk))
    });
    let live: u64 = live.map(|owner| u64::from(owner.bytes)).sum();
    let (all, messages) = (core.spill.clean_bytes, core.spill.messages_bytes());
    assert!(live > 0, "one stays");
    assert!(all <= live + live / 4 + messages / 16, "{all} of which {live} are there");
}

#[test]
fn what_is_read_ahead_leaves_memory_for_those_who_come() {
    let (queues, messages) = (100, 6);
    let mut world = SpillBench::new(4 << 20, 64 << 20);
    for nth in 0..queues {
        world.queue(&format!("q{nth}"), nth + 1);
        assert_eq!(world.publish(nth + 1, 1, messages, 14_000).0, messages);
    }
    world.settle();
    assert!(world.stats().spilled_messages > u64::from(queues) * messages / 2);
    // They say later how much they take: all that is read for them is read ahead.
    for nth in 0..queues {
        let name = format!("q{nth}");
        world.bench.consumer(world.key, &name, queues + nth + 1, 0);
        world.settle();
    }
    let spill = &world.bench.core.spill;
    let (ahead, share) = (spill.clean_bytes, spill.messages_bytes() / READ_AHEAD_MEMORY_SHARE);
    let under_way = (SPILL_READ_DEPTH * SLOT_BYTES) as u64;
    assert!(ahead > 0 && ahead <= share + under_way, "{ahead} of {share}");
    // What was not read ahead comes when it is asked for.
    for nth in 0..queues {
        world.bench.core.close_handle(world.key, queues + nth + 1);
        assert_eq!(world.consume(&format!("q{nth}"), 4000).len() as u64, messages);
    }
}
