//! SIGTERM and SIGINT: the first drains the broker, the second ends the process at once, with
//! exit code 128 and the signal's number, as a shell would show it.

use crate::server::admin::{Health, Phase, ShardLine};
use crate::shard::mailbox::Command;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The thread that waits for signals.
pub struct SignalThread {
    handle: Handle,
    thread: JoinHandle<()>,
}

/// Starts it. Signals are caught from when this returns.
///
/// # Errors
/// If the system refuses the signals or the thread.
pub fn watch(shards: Vec<ShardLine>, health: Arc<Health>) -> std::io::Result<SignalThread> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let handle = signals.handle();
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let thread = thread.spawn(move || {
        let mut draining = false;
        for signal in signals.forever() {
            if draining {
                tracing::warn!(signal, "a second signal: ending at once");
                std::process::exit(128 + signal);
            }
            draining = true;
            tracing::info!(signal, "draining");
            health.enter(Phase::Draining);
            for ShardLine { mailbox, waker } in &shards {
                // There is room: one report waits there at most.
                let _ = mailbox.push(Command::Drain);
                waker.wake();
            }
        }
    })?;
    Ok(SignalThread { handle, thread })
}

impl SignalThread {
    /// Ends the thread; signals are no longer caught by it.
    pub fn end(self) {
        self.handle.close();
        drop(self.thread.join());
    }
}
