//! What a target costs while nothing happens: its memory and CPU with many connections that said
//! hello, or many queues that are empty.

use crate::args::IdleArgs;
use crate::clock::{RunClock, as_ns};
use crate::proc::ProcessUse;
use crate::report::UseSample;
use crate::run::{Interrupt, Outcome};
use crate::sys::{Epoll, raise_open_files};
use crate::targets::Target;
use crate::targets::forebay::{Control, unused_id};
use crate::targets::wire::open_bare;
use forebay::protocol::frame::Opcode;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// File descriptors that this program needs beside the connections.
const OTHER_FILES: u64 = 64;
/// How soon an interrupt is seen.
const NAP: Duration = Duration::from_millis(100);

/// Sets up what `args` ask for, then watches the target do nothing with it.
///
/// # Errors
/// If the target refuses something or ends.
pub fn run(
    args: &IdleArgs,
    server: SocketAddr,
    pid: Option<u32>,
    interrupt: &Interrupt,
) -> io::Result<Outcome> {
    let pid = pid.ok_or_else(|| io::Error::other("idle needs --spawn or --server-pid"))?;
    if args.queues > 0 && args.target.target != Target::Forebay {
        return Err(io::Error::other("only Forebay has queues"));
    }
    let open_files = raise_open_files();
    if open_files < args.connections + OTHER_FILES {
        return Err(io::Error::other(format!("{open_files} open files are too few (ulimit -n)")));
    }
    let clock = RunClock::start();
    let before = ProcessUse::of(pid)?;
    let connections = connect(args, server, interrupt)?;
    let names = queue_names(args.queues);
    let mut control = if args.queues > 0 { Some(Control::connect(server)?) } else { None };
    if let Some(control) = &mut control {
        control.create_queues(names.iter().cloned(), &[], false)?;
    }
    let set_up = UseSample::take(clock.ns(), Some(pid))?;
    nap(&clock, set_up.ns() + as_ns(args.duration), interrupt)?;
    let end = UseSample::take(clock.ns(), Some(pid))?;
    drop(connections);
    if let (Some(control), true) = (&mut control, args.target.server.is_some()) {
        control.delete_queues(names)?;
    }
    Ok(outcome(args, before, set_up, end))
}

/// Connections that said hello and now say nothing.
fn connect(
    args: &IdleArgs,
    server: SocketAddr,
    interrupt: &Interrupt,
) -> io::Result<Vec<TcpStream>> {
    let connect = |_| {
        interrupt.check()?;
        match args.target.target {
            Target::Forebay => Control::connect(server).map(Control::into_stream),
            Target::RedisStream | Target::RedisList | Target::Nats => TcpStream::connect(server),
            _ => open_bare(server, Opcode::ProducerOpen).map(|opened| opened.stream),
        }
    };
    (0..args.connections).map(connect).collect()
}

fn queue_names(count: u64) -> Vec<String> {
    let run = unused_id();
    (0..count).map(|nth| format!("loadtest-{run:x}-{nth}")).collect()
}

fn nap(clock: &RunClock, until_ns: u64, interrupt: &Interrupt) -> io::Result<()> {
    let mut nothing = Epoll::new()?;
    loop {
        interrupt.check()?;
        let left = Duration::from_nanos(until_ns.saturating_sub(clock.ns()));
        if left.is_zero() {
            return Ok(());
        }
        nothing.wait(left.min(NAP), &mut Vec::new())?;
    }
}

fn outcome(args: &IdleArgs, before: ProcessUse, set_up: UseSample, end: UseSample) -> Outcome {
    let mut more = serde_json::Map::new();
    let target = end.target().unwrap_or_default();
    more.insert("rss_before_bytes".into(), before.rss_bytes.into());
    more.insert("rss_bytes".into(), target.rss_bytes.into());
    let things = (args.connections + args.queues).max(1);
    let each = target.rss_bytes.saturating_sub(before.rss_bytes) / things;
    more.insert("rss_each_bytes".into(), each.into());
    more.insert("set_up_s".into(), (set_up.ns() as f64 / 1e9).into());
    Outcome {
        seconds: (end.ns() - set_up.ns()).max(1) as f64 / 1e9,
        processors: set_up.until(&end, 0),
        peak_rss_bytes: end.target().map(|target| target.peak_rss_bytes),
        more,
        ..Outcome::default()
    }
}
