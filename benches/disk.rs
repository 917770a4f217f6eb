//! What each backend of the disk does: a file of recycled blocks, written and read in images of
//! 1 MiB with a few under way, by a thread that sleeps in its poll as a shard does.
//!
//! `cargo bench --bench disk -- DIRECTORY [MiB] [rounds]`. The directory should be on the device in
//! question; by default the one that holds this build.

use forebay::base::chunk_pool::{ChunkPool, PoolShape, SealedChunk};
use forebay::io::any_disk::AnyDisk;
use forebay::io::memory::MappedSlabs;
use forebay::io::mio_net::MioNet;
use forebay::io::{Disk, DiskCompletion, DiskRequest, FileId, Net};
use forebay::limits::{CHUNK_BYTES_MAX, CHUNK_HEADER_BYTES, DISK_ALIGN_BYTES, SLAB_BYTES};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

struct Bench {
    net: MioNet,
    disk: AnyDisk,
    pool: ChunkPool,
    file: FileId,
    slots: u64,
}

impl Bench {
    fn new(uring: bool, directory: &Path, slots: u64) -> Option<Bench> {
        let net = MioNet::bind(([127, 0, 0, 1], 0).into()).expect("loopback is there");
        let waker = net.waker();
        let disk = if uring {
            AnyDisk::uring(directory).map_err(|refusal| println!("io_uring: {refusal}")).ok()?
        } else {
            AnyDisk::threads(directory, Arc::new(move || waker.wake())).expect("threads")
        };
        if let Some(event) = disk.event() {
            net.watch(event).expect("the poller takes it");
        }
        let class_bytes = vec![CHUNK_BYTES_MAX];
        let header_bytes = CHUNK_HEADER_BYTES;
        let shape = PoolShape { slab_bytes: SLAB_BYTES, class_bytes, header_bytes };
        let pool = ChunkPool::new(shape, Rc::new(MappedSlabs));
        (0..8).for_each(|_| assert!(pool.grow(0)));
        let mut bench = Bench { net, disk, pool, file: FileId(0), slots };
        bench.file = bench.disk.open("bench-disk.dat").expect("the directory can be written");
        Some(bench)
    }

    fn sealed(&self, fill: u8) -> SealedChunk {
        let mut writer = self.pool.take(0).expect("few are under way");
        writer.append(&[&vec![fill; writer.room_bytes()]]);
        writer.seal(&[fill; CHUNK_HEADER_BYTES], DISK_ALIGN_BYTES)
    }

    fn completion(&mut self, polls: &mut u32) -> DiskCompletion {
        let mut events = Vec::new();
        loop {
            if let Some(completion) = self.disk.poll_completion() {
                return completion;
            }
            self.disk.flush();
            self.net.poll(None, &mut events).expect("the poller works");
            events.clear();
            *polls += 1;
        }
    }

    /// One request for each slot, `depth` at a time: GiB per second.
    fn run(&mut self, what: &str, depth: u64, request: impl Fn(&Bench, u64) -> DiskRequest) {
        #[allow(clippy::disallowed_methods, reason = "a benchmark reads the time")]
        let begin = Instant::now();
        let cpu_before_ns = cpu_ns();
        let (mut submitted, mut ended, mut polls) = (0, 0, 0);
        while ended < self.slots {
            while submitted < self.slots && submitted - ended < depth {
                let request = request(self, submitted);
                assert!(self.disk.submit(request).is_ok());
                submitted += 1;
            }
            match self.completion(&mut polls) {
                DiskCompletion::Written { result: Ok(()), .. } => {}
                DiskCompletion::Read { result: Ok(CHUNK_BYTES_MAX), .. } => {}
                DiskCompletion::Written { result, .. } => panic!("a write: {result:?}"),
                DiskCompletion::Read { result, .. } => panic!("a read: {result:?}"),
                _ => panic!("nothing else is under way"),
            }
            ended += 1;
        }
        let spent = begin.elapsed().as_secs_f64();
        let gib = self.slots as f64 * CHUNK_BYTES_MAX as f64 / f64::from(1 << 30);
        let [own, all] =
            [0, 1].map(|of| cpu_ns()[of].saturating_sub(cpu_before_ns[of]) as f64 / 1e6 / gib);
        println!(
            "{:8} {what:12} depth {depth}: {:.2} GiB/s, per GiB {own:.0} ms of this thread, \
             {all:.0} ms of all, {:.0} polls",
            self.disk.name(),
            gib / spent,
            f64::from(polls) / gib
        );
    }

    fn write(&mut self, what: &str, depth: u64) {
        let chunks: Vec<SealedChunk> = (1..=8).map(|fill| self.sealed(fill)).collect();
        let offset = |slot| slot * CHUNK_BYTES_MAX as u64;
        self.run(what, depth, |bench, tag| {
            let (file, chunks) = (bench.file, vec![chunks[tag as usize % 8].clone()]);
            DiskRequest::Write { tag, file, offset: offset(tag), chunks }
        });
    }

    fn read(&mut self, depth: u64) {
        self.run("read", depth, |bench, tag| {
            let (bytes, offset) = (CHUNK_BYTES_MAX, tag * CHUNK_BYTES_MAX as u64);
            let into = bench.pool.take(0).expect("few are under way");
            DiskRequest::Read { tag, file: bench.file, offset, bytes, into }
        });
    }
}

/// Processor time of this thread and of the process's threads together. (What the kernel does in
/// threads of its own is in neither, and what a thread that has ended had is lost.)
fn cpu_ns() -> [u64; 2] {
    let of = |path: &Path| {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    [of(Path::new("/proc/thread-self")), tasks.map(|task| of(&task.path())).sum()]
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let directory = words.first().map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let number = |nth: usize, default| words.get(nth).map_or(Ok(default), |word| word.parse());
    let slots = number(1, 1024).expect("a number of MiB");
    let rounds = number(2, 3).expect("a number of rounds");
    for round in 0..rounds {
        for uring in [true, false] {
            let Some(mut bench) = Bench::new(uring, &directory, slots) else { continue };
            if round == 0 && uring {
                bench.write("write, cold", 4);
            }
            [1, 2, 4].into_iter().for_each(|depth| bench.write("write", depth));
            [1, 2, 4].into_iter().for_each(|depth| bench.read(depth));
        }
    }
    drop(std::fs::remove_file(directory.join("bench-disk.dat")));
}
