//! A broker that is killed while a durable queue is published to, and started again: how long until
//! it serves, and whether everything is there, once and in order.

use crate::args::durable::RestartArgs;
use crate::args::{TargetArgs, batch_max};
use crate::body::{Bodies, Stamp};
use crate::clock::RunClock;
use crate::connect::unfit;
use crate::integrity::Integrity;
use crate::proc::Spawned;
use crate::report::UseSample;
use crate::run::{DRAIN_QUIET_NS, Interrupt, Outcome, broker_command};
use crate::targets::Target;
use crate::targets::blocking::fault;
use forebay::client::{
    ConnectOptions, Connection, Consumer, ConsumerOptions, Publisher, PublisherOptions,
    QueueOptions, ReconnectPolicy,
};
use forebay::limits::MIB;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// An address of its own, so that no client that looks for the broker can be given its port.
const LISTEN: &str = "127.0.0.2:0";
const QUEUE: &str = "loadtest-restart";
/// The client looks for the broker so often, so that it finds it at once,
const PAUSE_MAX: Duration = Duration::from_millis(5);
/// and for so long.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks whether it has confirmed something.
const LOOK: Duration = Duration::from_micros(200);

/// What is published, and how far it is.
struct Stream {
    publisher: Publisher,
    bodies: Bodies,
    /// Of one publish, one behind the other.
    batch: Vec<u8>,
    body_bytes: usize,
    sent: u64,
}

/// Runs it.
///
/// # Errors
/// If the broker does not start, or a connection fails for good.
pub fn run(args: &RestartArgs, interrupt: &Interrupt) -> io::Result<Outcome> {
    if args.target.target != Target::Forebay || !args.target.spawn {
        return Err(unfit("restart wants --target forebay --spawn"));
    }
    let temporary = TempDir::with_prefix("forebay-loadtest-")?;
    let directory = match &args.target.data_dir {
        Some(path) => path.clone(),
        None => temporary.path().join("data"),
    };
    let first = start(&args.target, LISTEN, &directory)?;
    let listen = first.address.to_string();
    let connect = ConnectOptions {
        token: std::env::var("FOREBAY_TOKEN").ok(),
        reconnect: ReconnectPolicy { pause_max: PAUSE_MAX, ..ReconnectPolicy::within(PATIENCE) },
        ..ConnectOptions::new(&listen)
    };
    let durable = QueueOptions { durable: true, ..QueueOptions::default() };
    Connection::open(&connect)
        .and_then(|mut link| link.queue_create(QUEUE, &durable))
        .map_err(fault)?;
    let mut stream = Stream::open(&connect, args)?;
    stream.publish(args.journal_bytes.div_ceil(args.size as u64), interrupt)?;
    stream.publisher.flush().map_err(fault)?;
    stream.publish(args.more / 2, interrupt)?;
    let journal_bytes = journal_bytes(&directory)?;
    let confirmed = stream.publisher.counts().confirmed;
    let unconfirmed = stream.sent - confirmed;
    let clock = RunClock::start();
    drop(first);
    let killed_ns = clock.ns();
    let second = start(&args.target, &listen, &directory)?;
    let ready_ns = clock.ns();
    while stream.publisher.counts().confirmed == confirmed {
        interrupt.check()?;
        std::thread::park_timeout(LOOK);
    }
    let serves_ns = clock.ns();
    stream.publish(args.more - args.more / 2, interrupt)?;
    stream.publisher.flush().map_err(fault)?;
    let mut outcome = drain(&connect, &stream, second.pid(), interrupt)?;
    let seconds = |ns: u64| ns as f64 / 1e9;
    let mut add = |name: &str, value: serde_json::Value| outcome.more.insert(name.into(), value);
    add("start_s", seconds(ready_ns - killed_ns).into());
    add("serves_again_s", seconds(serves_ns).into());
    add("journal_file_bytes", journal_bytes.into());
    add("unconfirmed_when_killed", unconfirmed.into());
    Connection::open(&connect)
        .and_then(|mut link| link.queue_delete(QUEUE, false))
        .map_err(fault)?;
    Ok(outcome)
}

fn start(args: &TargetArgs, listen: &str, directory: &Path) -> io::Result<Spawned> {
    Spawned::start(broker_command(args, listen, directory)?, args.broker_core.0, None)
}

/// Of all files of journals.
fn journal_bytes(directory: &PathBuf) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("journal-") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

impl Stream {
    fn open(connect: &ConnectOptions, args: &RestartArgs) -> io::Result<Stream> {
        let options =
            PublisherOptions { outstanding_bytes_max: 16 * MIB, ..PublisherOptions::default() };
        let batch = args.size * batch_max(args.size).min(args.batch as usize);
        Ok(Stream {
            publisher: Publisher::open(connect, QUEUE, options).map_err(fault)?,
            bodies: Bodies::default(),
            batch: vec![0; batch],
            body_bytes: args.size,
            sent: 0,
        })
    }

    /// Publishes so many more; waits only for room.
    fn publish(&mut self, messages: u64, interrupt: &Interrupt) -> io::Result<()> {
        let end = self.sent + messages;
        while self.sent < end {
            interrupt.check()?;
            let count = (end - self.sent).min((self.batch.len() / self.body_bytes) as u64);
            let batch = &mut self.batch[..count as usize * self.body_bytes];
            for (nth, body) in (self.sent..).zip(batch.chunks_exact_mut(self.body_bytes)) {
                self.bodies.stamp(body, Stamp { producer: 0, sequence: nth, time_ns: 0 });
            }
            let bodies = batch.chunks_exact(self.body_bytes);
            let _ = self.publisher.publish_many(bodies).map_err(fault)?;
            self.sent += count;
        }
        Ok(())
    }
}

/// Takes all out, checks it, and acks it.
fn drain(
    connect: &ConnectOptions,
    stream: &Stream,
    pid: u32,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    let options = ConsumerOptions { credit_messages: 65_536, ..ConsumerOptions::default() };
    let mut consumer = Consumer::open(connect, QUEUE, options).map_err(fault)?;
    let mut integrity = Integrity::new(1, 1);
    let clock = RunClock::start();
    let first = UseSample::take(0, Some(pid))?;
    let (mut arrived, mut last_ns) = (0, 0);
    // What comes twice comes in the place of others, so one look more is needed at the end.
    while clock.ns() - last_ns < DRAIN_QUIET_NS {
        interrupt.check()?;
        let wait = if arrived < stream.sent { Duration::from_millis(100) } else { Duration::ZERO };
        let batch = consumer.recv_batch(Some(wait)).map_err(fault)?;
        for message in &batch {
            integrity.take(0, message.body());
        }
        batch.ack();
        if !batch.is_empty() {
            (arrived, last_ns) = (arrived + batch.len() as u64, clock.ns());
        } else if arrived >= stream.sent {
            break;
        }
    }
    consumer.close().map_err(fault)?;
    let last = UseSample::take(last_ns.max(1), Some(pid))?;
    let confirmed = stream.publisher.counts().confirmed;
    Ok(Outcome {
        messages: arrived,
        seconds: last_ns.max(1) as f64 / 1e9,
        body_bytes: stream.body_bytes,
        sent: stream.sent,
        confirmed,
        integrity: integrity.counts(confirmed),
        processors: first.until(&last, arrived),
        peak_rss_bytes: last.target().map(|target| target.peak_rss_bytes),
        ..Outcome::default()
    })
}
