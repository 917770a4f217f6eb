//! The deterministic world: the real shard over a simulated network, disk and clock, from one u64
//! seed, with clients good and bad, a naive model and checkers after every step.
//!
//! - `world`, `clock`, `net`, `disk`, `device`: the world behind the seam of `io`
//! - `cluster`: the broker's shards, and which of them runs next
//! - `trace`: the hash over all events, and what a run has met
//! - `plan`, `rules`: what a seed draws before the first step
//! - `body`, `letter`, `link`: messages that prove themselves, dead letters; a client's end of a
//!   connection
//! - `peer`, `producer`, `consumer`, `lease`, `admin`, `requests`: a well-behaved client, frame by
//!   frame
//! - `session_peer`: one that uses the client library's session
//! - `hostile`: the others
//! - `model`, `audit`: what a broker owes its clients; whether its queues say the same
//! - `spill`: whether what is on disk adds up, and only that is lost which the device has spoiled
//! - `durable`: durable queues, over crashes at every operation of a disk
//! - `run`: one run from the first step to the last drained message
//! - `cli`, `canary`: the `sim` binary; the planted bug that it must find

pub mod admin;
mod audit;
pub mod body;
#[cfg(feature = "canary")]
pub mod canary;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod consumer;
pub mod device;
pub mod disk;
pub mod durable;
pub mod hostile;
pub mod lease;
pub mod letter;
pub mod link;
pub mod model;
pub mod net;
pub mod peer;
pub mod plan;
pub mod producer;
pub mod requests;
pub mod rules;
pub mod run;
pub mod session_peer;
pub mod spill;
pub mod trace;
pub mod world;

#[cfg(test)]
mod tests;

use std::rc::Rc;

/// `Err` says which promise was broken.
pub type Checked<T = ()> = Result<T, String>;

/// What all clients of a run share.
pub struct Stage {
    /// The world.
    pub universe: Rc<world::Universe>,
    /// What the broker owes.
    pub model: model::Model,
    /// What the seed drew.
    pub plan: plan::Plan,
    /// Next number of a [`model::Holder`].
    pub next_serial: u64,
    /// The broker has done what was due at this time.
    pub ticked_ns: u64,
    /// No new work: what is begun is brought to its end.
    pub winding_down: bool,
    /// Everything came out: the queues are deleted.
    pub demolishing: bool,
    /// The broker was told to end.
    pub draining: bool,
    /// When memory was last so full that the broker refuses connections.
    pub memory_full_ns: Option<u64>,
}

impl Stage {
    /// A number that no consumer had before.
    pub fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    /// True `per_mille` times in a thousand, and never once the run winds down.
    pub fn whim(&self, per_mille: u64) -> bool {
        !self.winding_down && self.universe.chance(per_mille)
    }
}
