//! What other threads tell a shard, and what they may see of it. They push commands here and then
//! wake its `Net`; the shard looks once per tick, and leaves here that it did.

use crate::shard::report::ReportOrder;
use crossbeam_queue::ArrayQueue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// An order from outside the shard.
#[derive(Clone, Debug)]
pub enum Command {
    /// Stop accepting, tell the clients, flush, stop: SIGTERM.
    Drain,
    /// Tell all figures. A report that is still being made is given up for it.
    Report(ReportOrder),
}

/// How writing to disk and reading goes, as far as the shard has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpillHealth {
    /// Nothing is spilled.
    #[default]
    Off,
    /// It can be.
    Ready,
    /// There is no room on disk.
    Full,
    /// Writes or reads fail.
    Failing,
}

impl SpillHealth {
    /// All of them, with the names that figures have.
    pub const ALL: [(SpillHealth, &'static str); 4] = [
        (SpillHealth::Off, "off"),
        (SpillHealth::Ready, "ready"),
        (SpillHealth::Full, "full"),
        (SpillHealth::Failing, "failing"),
    ];
}

/// See the module.
#[derive(Debug)]
pub struct Mailbox {
    commands: ArrayQueue<Command>,
    ticks: AtomicU64,
    spill: AtomicU8,
}

/// The mailbox of one shard, as both sides hold it.
pub type Commands = Arc<Mailbox>;

/// More than ever wait: one drain, and one report at a time.
const COMMANDS_MAX: usize = 16;

/// An empty mailbox for commands.
pub fn commands() -> Commands {
    Arc::new(Mailbox {
        commands: ArrayQueue::new(COMMANDS_MAX),
        ticks: AtomicU64::new(0),
        spill: AtomicU8::new(SpillHealth::Off as u8),
    })
}

impl Mailbox {
    /// Puts a command in. The caller then wakes the shard.
    ///
    /// # Errors
    /// The command, if there is no room for it.
    pub fn push(&self, command: Command) -> Result<(), Command> {
        self.commands.push(command)
    }

    /// Takes the oldest command out.
    pub fn pop(&self) -> Option<Command> {
        self.commands.pop()
    }

    /// Ticks that the shard has begun. Moves soon after the shard was woken, unless it hangs.
    pub fn ticks(&self) -> u64 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// How the shard's writing to disk and reading goes.
    pub fn spill(&self) -> SpillHealth {
        let (spill, _) = SpillHealth::ALL[self.spill.load(Ordering::Relaxed) as usize];
        spill
    }

    /// Said by the shard, each tick. Nothing else is read because of it, so no order is needed.
    pub fn note_tick(&self, ticks: u64) {
        self.ticks.store(ticks, Ordering::Relaxed);
    }

    /// Said by the shard, each tick.
    pub fn note_spill(&self, spill: SpillHealth) {
        self.spill.store(spill as u8, Ordering::Relaxed);
    }
}
