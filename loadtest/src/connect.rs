//! Connections of a scenario to whatever target it runs against.

use crate::args::{ClientKind, TargetArgs};
use crate::run::Outcome;
use crate::targets::asynchronous::TokioWire;
use crate::targets::blocking::BlockingWire;
use crate::targets::forebay::{Control, unused_id};
use crate::targets::nats::NatsWire;
use crate::targets::redis::{self, RedisWire};
use crate::targets::wire::{FastWire, subscription_name};
use crate::targets::{Shape, Target, Wire};
use std::io;
use std::net::SocketAddr;

/// What is run over connections of one kind.
pub trait Scene {
    /// Runs over connections that `connect` makes; of shapes with no more queues than that which
    /// the queues were made for.
    ///
    /// # Errors
    /// If a connection fails or the target ends.
    fn run<W: Wire>(self, connect: impl FnMut(Shape) -> io::Result<W>) -> io::Result<Outcome>;
}

/// Runs `scene` against the target at `server`, with queues for `shape`.
///
/// # Errors
/// If the target is not one for such connections, or the run fails.
pub fn play(
    args: &TargetArgs,
    server: SocketAddr,
    shape: Shape,
    scene: impl Scene,
) -> io::Result<Outcome> {
    if args.target != Target::Forebay && (shape.queues > 1 || shape.subscriptions > 1) {
        return Err(unfit("only forebay is asked for many queues or subscriptions"));
    }
    match args.target {
        Target::BaselineDiskWrite | Target::BaselineDiskRead | Target::BaselineDiskSync => {
            Err(unfit("a disk carries no messages: see disk, backlog and durable"))
        }
        Target::Nats => scene.run(|shape| NatsWire::connect(server, shape)),
        Target::RedisStream => scene.run(redis_door(server, redis::Kind::Stream)),
        Target::RedisList => scene.run(redis_door(server, redis::Kind::List)),
        Target::BaselineEcho if shape.consumers > 0 => {
            scene.run(|shape| FastWire::connect_echo(server, shape))
        }
        Target::BaselineRelay | Target::BaselineEcho => {
            scene.run(|shape| FastWire::connect_bare(server, shape))
        }
        Target::Forebay => {
            let queues = RunQueues::create(server, shape)?;
            play_forebay(args, server, &queues.names, shape, scene)
        }
    }
}

fn redis_door(server: SocketAddr, kind: redis::Kind) -> impl FnMut(Shape) -> io::Result<RedisWire> {
    move |shape| RedisWire::connect(server, kind, shape)
}

fn play_forebay(
    args: &TargetArgs,
    server: SocketAddr,
    queues: &[String],
    shape: Shape,
    scene: impl Scene,
) -> io::Result<Outcome> {
    let first = &queues[0];
    if args.client != ClientKind::Wire && (shape.queues > 1 || shape.subscriptions > 1) {
        return Err(unfit("many queues or subscriptions need --client wire"));
    }
    match args.client {
        ClientKind::Wire => {
            let connect = |shape: Shape| {
                FastWire::connect_forebay(server, &queues[..shape.queues], shape, args.attach)
            };
            scene.run(connect)
        }
        ClientKind::Tokio => scene.run(|shape| TokioWire::connect(server, first, shape)),
        ClientKind::Blocking => {
            let connect = |shape| BlockingWire::connect(server, first, shape, args.busy_poll);
            scene.run(connect)
        }
    }
}

/// Queues of this run alone; deleted in the end, for the broker may be somebody's.
struct RunQueues {
    names: Vec<String>,
    control: Control,
}

impl RunQueues {
    fn create(server: SocketAddr, shape: Shape) -> io::Result<RunQueues> {
        let name = format!("loadtest-{:x}", unused_id());
        let names = match shape.queues {
            1 => vec![name],
            count => (0..count).map(|nth| format!("{name}-{nth}")).collect::<Vec<_>>(),
        };
        let subscriptions: Vec<String> = match shape.subscriptions {
            1 => Vec::new(),
            count => (0..count).map(subscription_name).collect(),
        };
        let mut control = Control::connect(server)?;
        control.create_queues(names.iter().cloned(), &subscriptions, shape.durable)?;
        Ok(RunQueues { names, control })
    }
}

impl Drop for RunQueues {
    fn drop(&mut self) {
        // The run is over; a broker that is gone has no queue to delete.
        let _ = self.control.delete_queues(std::mem::take(&mut self.names));
    }
}

/// The one line for a target that cannot do what a scenario needs.
pub fn unfit(why: &str) -> io::Error {
    io::Error::other(format!("this target cannot run this scenario: {why}"))
}
