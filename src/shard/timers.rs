//! What happens when a deadline of the shard comes.

use crate::base::slot_map::Key;
use crate::base::time::{Mono, Now};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::Opcode;
use crate::shard::connection::Stage;
use crate::shard::core::{Core, QueueSlot, SHRINK_MS};
use std::time::Duration;

/// Whose deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Look at a connection's timeouts.
    Connection(Key),
    /// Try to accept again.
    Accept,
    /// Look whether the drain is over.
    Drain,
    /// Try again to move connections.
    Move,
    /// Look whether a request has waited for the disk for too long.
    Waiting,
    /// Once a second: give free memory back, have synced what waits for no sync.
    Shrink,
}

/// Connections are looked at on a grid of this width, many at a time: one wake-up for all.
const GRID_MS: u64 = 250;
/// Timers handled in one tick.
const TIMERS_PER_TICK_MAX: usize = 4096;

impl Core {
    /// Time until the next deadline, `None` if there is none.
    pub fn next_deadline(&self) -> Option<Duration> {
        let queues = self.queue_deadlines.first().map(|&(at, _)| at);
        let all = self.deadlines.next().into_iter().chain(queues);
        let next = all.chain(self.spill.next_deadline()).chain(self.next_redrive()).min();
        next.map(|at| at.after(self.now.mono))
    }

    /// Sees to it that the queue is looked at when its next deadline comes. Too early a look does
    /// no harm, so a deadline that merely moves away costs nothing.
    pub fn arm_queue(&mut self, key: Key) {
        let Some(slot) = self.queues.at_mut(key) else { return };
        let Some(at) = slot.queue.next_deadline() else { return };
        if slot.armed_at.is_some_and(|armed| armed <= at) {
            return;
        }
        if let Some(armed) = slot.armed_at.replace(at) {
            self.queue_deadlines.remove(&(armed, key));
        }
        self.queue_deadlines.insert((at, key));
    }

    /// The queue is gone.
    pub fn disarm_queue(&mut self, key: Key, slot: &QueueSlot) {
        if let Some(armed) = slot.armed_at {
            self.queue_deadlines.remove(&(armed, key));
        }
    }

    fn handle_queue_deadlines(&mut self, now: Now) {
        for _ in 0..TIMERS_PER_TICK_MAX {
            let Some(&(at, key)) = self.queue_deadlines.first() else { return };
            if at > now.mono {
                return;
            }
            self.queue_deadlines.pop_first();
            let Some(slot) = self.queues.at_mut(key) else { continue };
            slot.armed_at = None;
            slot.queue.handle_deadline(now, &mut self.memory);
            // What it came to is polled where deliveries are, and the next one armed.
            self.close_deleted(key);
            self.activate(key);
        }
    }

    /// Handles what is due.
    pub fn handle_deadlines(&mut self, now: Now) {
        self.handle_queue_deadlines(now);
        for _ in 0..TIMERS_PER_TICK_MAX {
            let Some(timer) = self.deadlines.poll(now.mono) else { return };
            match timer {
                Timer::Waiting => self.end_waiting(),
                Timer::Connection(key) => self.check_connection(key, now.mono),
                Timer::Shrink => {
                    self.shrink();
                    self.stores.sync();
                    for queue in std::mem::take(&mut self.short_of_memory) {
                        if let Some(slot) = self.queues.at_mut(queue) {
                            slot.short_of_memory = false;
                        }
                        self.activate(queue);
                    }
                    self.deadlines.arm(now.mono.plus_ms(SHRINK_MS), Timer::Shrink);
                }
                // These only end the wait; the tick looks for itself.
                Timer::Accept | Timer::Drain | Timer::Move => {}
            }
        }
    }

    /// Sets the time of the next look at a connection.
    pub fn arm_connection(&mut self, key: Key, now: Mono) {
        let Some(connection) = self.connections.at(key) else { return };
        let config = &self.config;
        let mut wait_ms = match connection.stage {
            Stage::Preamble | Stage::Hello => config.hello_timeout_ms,
            Stage::Closing(at) => at.after(now).as_millis() as u64 + 1,
            Stage::Open => config.frame_timeout_ms.min(config.stall_timeout_ms) / 4,
        };
        if connection.heartbeat_ms > 0 {
            wait_ms = wait_ms.min(u64::from(connection.heartbeat_ms) / 2);
        }
        let at = now.plus_ms(wait_ms.max(1));
        let grid = if wait_ms >= 4 * GRID_MS { GRID_MS * 1_000_000 } else { 1 };
        self.deadlines.arm(Mono(at.0.next_multiple_of(grid)), Timer::Connection(key));
    }

    fn check_connection(&mut self, key: Key, now: Mono) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        let config = &self.config;
        let stalled = connection
            .stalled_since
            .is_some_and(|since| now.ms_since(since) >= config.stall_timeout_ms);
        let unfinished =
            !connection.parked && (!connection.inbox.is_empty() || connection.skip_bytes > 0);
        let slow_frame =
            unfinished && now.ms_since(connection.frame_began) >= config.frame_timeout_ms;
        let heartbeat_ms = u64::from(connection.heartbeat_ms);
        let silent = heartbeat_ms > 0
            && !connection.parked
            && now.ms_since(connection.heard) >= 2 * heartbeat_ms;
        match connection.stage {
            Stage::Closing(at) => {
                if at <= now {
                    return self.close_later(key);
                }
            }
            _ if stalled => {
                self.stats.protocol_errors += 1;
                return self.close_later(key);
            }
            Stage::Preamble | Stage::Hello => {
                if now.ms_since(connection.frame_began) >= config.hello_timeout_ms {
                    let text = format!("no hello within {} ms", config.hello_timeout_ms);
                    return self.fail(key, ErrorCode::Timeout, &text);
                }
            }
            Stage::Open if slow_frame => {
                let limit = config.frame_timeout_ms;
                let text = format!("a frame was not complete within {limit} ms");
                return self.fail(key, ErrorCode::Timeout, &text);
            }
            Stage::Open if silent => {
                let text = format!("nothing heard for two heartbeats of {heartbeat_ms} ms");
                return self.fail(key, ErrorCode::HeartbeatLost, &text);
            }
            Stage::Open => {
                if heartbeat_ms > 0 && now.ms_since(connection.said) >= heartbeat_ms / 2 {
                    connection.send(Opcode::Ping, 0, 0, &[]);
                    self.flush_later(key);
                }
                self.release_idle(key, now);
            }
        }
        self.arm_connection(key, now);
    }

    /// An idle connection keeps no buffers.
    fn release_idle(&mut self, key: Key, now: Mono) {
        let idle_ms = self.config.frame_timeout_ms / 4;
        let Some(connection) = self.connections.at_mut(key) else { return };
        if now.ms_since(connection.heard) < idle_ms || now.ms_since(connection.said) < idle_ms {
            return;
        }
        if connection.inbox.is_empty() {
            connection.inbox = Vec::new();
        }
        connection.out.shrink();
        self.charge_connection(key);
    }
}
