//! What goes out: deliveries by credit, pulls that end, dead letters, confirms, and the word that a
//! queue blocks or takes again.

use crate::base::checksum::crc32c;
use crate::base::slot_map::Key;
use crate::base::time::Now;
use crate::limits::{DELIVER_HEADER_BYTES, UNSENT_BYTES_SOFT, WINDOW_BYTES};
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::{DELIVER_FRAGMENT, DELIVER_REDELIVERED, DeliverHeader, PullDone};
use crate::protocol::wire;
use crate::queue::consumer::Owner;
use crate::queue::memory::Account;
use crate::queue::policy::{BLOCK_RETRY_MS, Block};
use crate::queue::subscription::Delivery;
use crate::shard::connection::Connection;
use crate::shard::core::Core;

/// Bytes delivered in one tick; what is left goes on in the next, behind new reads.
const DELIVER_BYTES_PER_TICK: usize = 4 << 20;
/// Windows of each of its producers that are free before a queue takes again that was blocked for
/// want of memory, as far as that is no more than an eighth of what there is.
const WINDOWS_FREE: u64 = 4;
/// Blocked queues looked at in one tick.
const UNBLOCKS_PER_TICK: usize = 64;

impl Core {
    /// Delivers what the active queues have, as far as credit and connections let them.
    pub fn deliver(&mut self, now: Now) {
        self.go_on_redriving(now);
        let mut budget = DELIVER_BYTES_PER_TICK;
        let mut nth = 0;
        while nth < self.active.len() && budget > 0 {
            let key = self.active[nth];
            if self.deliver_queue(key, now, &mut budget) {
                nth += 1;
            }
            // Else the budget ended inside this queue: it stays, and the others go first next time.
        }
        self.active.drain(..nth);
        if self.active.len() > 1 && budget == 0 {
            self.active.rotate_left(1);
        }
    }

    /// True if the queue has nothing more to deliver for now.
    fn deliver_queue(&mut self, key: Key, now: Now, budget: &mut usize) -> bool {
        // First what leaves by another way: it may make room for deliveries.
        if !self.carry_dead_letters(key, now, budget) {
            return false;
        }
        let Some(slot) = self.queues.at_mut(key) else { return true };
        // What waits for slow readers is memory too: when that gets short, only those whose
        // sockets took everything get more.
        let is_short = self.memory.budget.is_short();
        loop {
            let connections = &self.connections;
            let mut can_take = |owner: Owner| {
                connections.at(owner.connection).is_some_and(|connection| {
                    let full = connection.out.unsent_bytes() >= UNSENT_BYTES_SOFT
                        || (is_short && connection.stalled_since.is_some());
                    if full {
                        connection.passed_over.borrow_mut().push(owner.handle);
                    }
                    !full
                })
            };
            let Some(delivery) = slot.queue.poll_delivery(now, &mut self.memory, &mut can_take)
            else {
                break;
            };
            let owner = delivery.owner;
            *budget = budget.saturating_sub(delivery.bytes.range.len() + DELIVER_HEADER_BYTES);
            let Some(connection) = self.connections.at_mut(owner.connection) else { continue };
            send_delivery(connection, &delivery);
            flush_later(&mut self.flush_list, connection, owner.connection);
            if *budget == 0 {
                return false;
            }
        }
        while let Some(end) = slot.queue.poll_pull_end(now.mono, &mut self.memory) {
            let Some(connection) = self.connections.at_mut(end.owner.connection) else { continue };
            let done = PullDone { messages: end.messages };
            connection.send(Opcode::PullDone, end.owner.handle, end.correlation, &done.encode());
            flush_later(&mut self.flush_list, connection, end.owner.connection);
        }
        slot.active = false;
        if slot.store.is_some() {
            self.note_changes(key);
        }
        let Some(slot) = self.queues.at_mut(key) else { return true };
        if !slot.short_of_memory && slot.queue.is_short_of_memory(&self.memory) {
            slot.short_of_memory = true;
            self.short_of_memory.push(key);
        }
        self.arm_queue(key);
        self.note_wants(key);
        true
    }

    /// Sends the confirms that became due in this tick, one per producer.
    pub fn confirm(&mut self) {
        for nth in 0..self.to_confirm.len() {
            let (queue, producer) = self.to_confirm[nth];
            self.confirm_one(queue, producer);
        }
        self.to_confirm.clear();
    }

    /// Sends a producer's confirm, if one is due.
    pub fn confirm_one(&mut self, queue: Key, producer: Key) {
        let Some(slot) = self.queues.at_mut(queue) else { return };
        let Some((owner, confirm)) = slot.queue.poll_confirm(producer) else { return };
        if let Some(connection) = self.connections.at_mut(owner.connection) {
            connection.send(Opcode::Confirm, owner.handle, 0, &confirm.encode());
            flush_later(&mut self.flush_list, connection, owner.connection);
        }
    }

    /// After a refusal: if the queue blocks since now, tells all its producers.
    pub fn note_blocked(&mut self, queue: Key) {
        let Some(slot) = self.queues.at_mut(queue) else { return };
        let Some(block) = slot.queue.blocked() else { return };
        if std::mem::replace(&mut slot.blocked, true) {
            return;
        }
        self.blocked.push_back(queue);
        let body = Answer::Blocked(wire::BlockedT {
            reason: Some(blocked_reason(block)),
            retry_after_ms: BLOCK_RETRY_MS,
            code: block.code as u16,
        });
        for (_, producer) in slot.queue.producers() {
            if let Some(connection) = self.connections.at_mut(producer.owner.connection) {
                connection.send_answer(&body, producer.owner.handle, 0);
                flush_later(&mut self.flush_list, connection, producer.owner.connection);
            }
        }
    }

    /// Bytes that messages may still take, and could if there were none.
    fn room_for_messages(&self) -> (u64, u64) {
        let budget = &self.memory.budget;
        let room = budget.free_for_chunks() + self.memory.free_chunk_bytes() as u64;
        let others = budget.used_bytes() - budget.used_by(Account::Chunks);
        (room, self.spill.messages_bytes().saturating_sub(others))
    }

    /// Looks at blocked queues in turn and tells the producers of those that take again.
    pub fn unblock(&mut self) {
        let (count, mut unblocked) = (self.blocked.len(), false);
        if count == 0 {
            return;
        }
        let (mut room, room_max) = self.room_for_messages();
        for _ in 0..count.min(UNBLOCKS_PER_TICK) {
            let Some(key) = self.blocked.pop_front() else { return };
            let Some(slot) = self.queues.at_mut(key) else { continue };
            // Who takes again for want of memory has room for what its producers will send at once:
            // else most of that would be refused, again and again.
            let of_memory = slot.queue.blocked().is_some_and(|block| block.code.is_of_memory());
            let windows = slot.queue.producer_count() as u64 * WINDOW_BYTES;
            let wanted = if of_memory { (WINDOWS_FREE * windows).min(room_max / 8) } else { 0 };
            if wanted > room {
                self.memory.budget.want(wanted);
            }
            let takes = wanted <= room && slot.queue.poll_unblocked(&self.memory);
            if slot.queue.blocked().is_some() && !takes {
                self.blocked.push_back(key);
                continue;
            }
            room = room.saturating_sub(wanted);
            slot.blocked = false;
            unblocked = true;
            let producers: Vec<_> =
                slot.queue.producers().map(|(key, producer)| (key, producer.owner)).collect();
            for (producer, owner) in producers {
                let window_bytes_total = slot.queue.grant_window(producer);
                let body = Answer::Unblocked(wire::UnblockedT { window_bytes_total });
                if let Some(connection) = self.connections.at_mut(owner.connection) {
                    connection.send_answer(&body, owner.handle, 0);
                    flush_later(&mut self.flush_list, connection, owner.connection);
                }
            }
        }
        // Room for one may be room for others, whom no event would bring to mind.
        self.unblocking = unblocked && count > UNBLOCKS_PER_TICK;
    }
}

/// Why a queue takes nothing: the name that the documents have for it, and words for people.
pub(super) fn blocked_reason(block: Block) -> String {
    let text = match block.code {
        ErrorCode::MemoryLimit => "the broker's memory limit leaves no room",
        ErrorCode::DiskLimit => "memory is full, and the spill files are at disk_limit",
        ErrorCode::DiskFull => "memory is full, and the file system has no space to spill to",
        ErrorCode::DiskError => "memory is full, and the disk fails to write what is spilled",
        ErrorCode::QueueBytesMax => "the queue is at bytes_max",
        _ => "the queue is at messages_max",
    };
    format!("{}: {text}", block.code.name())
}

/// Puts a connection on the list of those to flush, if it is not there yet.
pub(super) fn flush_later(list: &mut Vec<Key>, connection: &mut Connection, key: Key) {
    if !std::mem::replace(&mut connection.flush_due, true) {
        list.push(key);
    }
}

fn send_delivery(connection: &mut Connection, delivery: &Delivery) {
    let bytes = &delivery.bytes;
    let flags = if delivery.attempts > 1 { DELIVER_REDELIVERED } else { 0 }
        | if delivery.fragment { DELIVER_FRAGMENT } else { 0 };
    let crc32c = if delivery.checksum { crc32c(bytes.chunk.slice(bytes.range.clone())) } else { 0 };
    let header = DeliverHeader {
        delivery_id: delivery.delivery_id,
        base_sequence: bytes.base_sequence,
        accepted_us: bytes.accepted_us,
        record_count: delivery.count,
        crc32c,
        attempts: delivery.attempts,
        flags,
        priority: bytes.priority,
    };
    let payload_bytes = DELIVER_HEADER_BYTES + bytes.range.len();
    let frame = FrameHeader::new(Opcode::Deliver, delivery.owner.handle, payload_bytes);
    connection.out.push(&frame.encode());
    connection.out.push(&header.encode());
    connection.out.push_chunk(&bytes.chunk, bytes.range.clone());
}
