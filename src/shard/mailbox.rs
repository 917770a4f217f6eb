//! What other threads tell a shard. They push here and then wake its `Net`; the shard looks once
//! per tick.

use crossbeam_queue::ArrayQueue;
use std::sync::Arc;

/// An order from outside the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop accepting, tell the clients, flush, stop: SIGTERM.
    Drain,
}

/// Commands to one shard, bounded.
pub type Commands = Arc<ArrayQueue<Command>>;

/// An empty mailbox for commands.
pub fn commands() -> Commands {
    Arc::new(ArrayQueue::new(16))
}
