//! Messages on their way from one queue to another: dead letters and what is redriven.
//!
//! The source keeps the message until the target says that it has it. What travels is a value of
//! its own, [`MovedMessage`]: sealed batches, as a producer would send them, with the properties
//! that the message has from then on. A move is named by its [`MoveKey`]: asked for twice it is
//! done once, for the target remembers the key until the source has settled it.
//!
//! A message that is meant for one subscription of the target only is skipped by the others.

use crate::base::slot_map::Key;
use crate::base::time::Wall;
use crate::format::batch::{self, Batch, BatchBuilder, BatchHeader};
use crate::format::change::MoveName;
use crate::format::dead_letter;
use crate::format::properties::{self, Tag};
use crate::format::record::{self, Records};
use crate::limits::{BATCH_HEADER_BYTES, MOVE_KEYS_MAX, SHARDS_MAX};
use crate::protocol::error::ErrorCode;
use crate::queue::Queue;
use crate::queue::assembly::Assembly;
use crate::queue::log::{Absent, Log, Run, RunBytes};
use crate::queue::memory::{Account, Memory, MemoryFull};
use crate::queue::policy::OnFull;
use std::collections::VecDeque;

/// A move, and where its source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MoveKey {
    /// Names it, also after the broker was started anew if both queues are durable.
    pub name: MoveName,
    /// Home of the source.
    pub shard: u32,
    /// The source; a queue of the same name that is made anew has another key.
    pub queue: Key,
    /// The subscription there that gives the message away.
    pub subscription: Key,
}

/// From this number on a store is none that keeps anything: it stands for a shard's transient
/// queues.
pub const TRANSIENT_STORES: u32 = u32::MAX - SHARDS_MAX;

/// A message without a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedMessage {
    /// One batch, or the fragments of a large message.
    batches: Vec<Box<[u8]>>,
    /// Properties and body, without what the broker wrote on it.
    content_bytes: u64,
    body_bytes: u64,
}

/// The target has the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// Since now.
    Done,
    /// Since the same move was asked for before.
    Duplicate,
}

/// The target does not take the message; the source keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveRefused {
    /// For a reason that a publish has too.
    Code(ErrorCode),
    /// So many moves into the queue are not settled.
    Unsettled,
}

impl MoveRefused {
    /// The reason as statistics show it.
    pub fn name(self) -> &'static str {
        match self {
            MoveRefused::Code(code) => code.name(),
            MoveRefused::Unsettled => "move_keys_max",
        }
    }
}

/// What the key of a move that was taken takes with its share of the tree, until it is settled.
pub(super) const MOVE_KEY_BYTES: usize = 2 * size_of::<MoveName>();

impl MovedMessage {
    /// Bytes that it takes while it travels.
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.len()).sum()
    }

    /// Bytes of its records in a log.
    fn records_bytes(&self) -> u64 {
        (self.bytes() - self.batches.len() * BATCH_HEADER_BYTES) as u64
    }

    /// From the parts of a body and a whole properties block; a record holds `record_max` bytes of
    /// both.
    fn build(
        properties: Vec<u8>,
        body: &[&[u8]],
        content_bytes: u64,
        record_max: usize,
    ) -> MovedMessage {
        let body_bytes: usize = body.iter().map(|piece| piece.len()).sum();
        let mut builder = BatchBuilder::default();
        let concerns = |block: &[u8]| {
            let tags = properties::walk(block).map_while(Result::ok);
            tags.filter_map(|(number, _)| Tag::from_u8(number)).any(Tag::concerns_broker)
        };
        if properties.len() + body_bytes <= record_max {
            let flags = if concerns(&properties) { record::BROKER_PROPERTIES } else { 0 };
            builder.push(flags, &properties, &body.concat());
            let batches = vec![builder.finish(0, 0, 1).into()];
            return MovedMessage { batches, content_bytes, body_bytes: body_bytes as u64 };
        }
        let properties = dead_letter::with_length(properties, body_bytes as u64);
        let mut parts: VecDeque<&[u8]> = body.iter().copied().collect();
        let (mut batches, mut left) = (Vec::new(), body_bytes);
        while left > 0 {
            let first = batches.is_empty();
            let properties = if first { &properties[..] } else { &[] };
            // Fragments are filled anew: few whole chunks for many half empty ones.
            let piece = take_front(&mut parts, record_max.saturating_sub(properties.len()).max(1));
            left -= piece.len();
            let flags = if first { record::FRAGMENT_FIRST | record::BROKER_PROPERTIES } else { 0 }
                | if left == 0 { record::FRAGMENT_LAST } else { 0 };
            builder.clear();
            builder.push(flags, properties, &piece);
            batches.push(builder.finish(batch::FRAGMENT, 0, 1).into());
        }
        MovedMessage { batches, content_bytes, body_bytes: body_bytes as u64 }
    }
}

/// The first bytes of a body in parts, at most `max`.
fn take_front(parts: &mut VecDeque<&[u8]>, max: usize) -> Vec<u8> {
    let mut taken = Vec::new();
    while taken.len() < max
        && let Some(part) = parts.pop_front()
    {
        let (front, rest) = part.split_at(part.len().min(max - taken.len()));
        taken.extend_from_slice(front);
        if !rest.is_empty() {
            parts.push_front(rest);
        }
    }
    taken
}

impl Log {
    /// The bytes of one message: its record, or all its fragments.
    fn pieces(&self, run: &Run) -> Result<Vec<RunBytes>, Absent> {
        if !run.large {
            return Ok(vec![self.run_bytes(&self.part(run, 0, 1)?)?]);
        }
        let (mut pieces, mut next) = (Vec::new(), Some(run.at));
        while let Some(at) = next {
            let (bytes, after) = self.fragment_at(run, at)?;
            pieces.push(bytes);
            next = after;
        }
        Ok(pieces)
    }
}

impl Queue {
    /// The first message of a run as one that travels, with the properties that `rewrite` makes of
    /// its own; `None` if that does not want it moved. A record of it holds `record_max` bytes of
    /// content, see [`Memory::record_content_bytes_max`].
    ///
    /// # Errors
    /// If not all of it is in memory; the rest is asked for.
    pub fn move_out(
        &mut self,
        run: &Run,
        record_max: usize,
        rewrite: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
    ) -> Result<Option<MovedMessage>, Absent> {
        self.log.need(run)?;
        let pieces = self.log.pieces(run)?;
        let records: Vec<_> = pieces
            .iter()
            .filter_map(|bytes| Records::new(bytes.chunk.slice(bytes.range.clone())).next())
            .collect();
        let Some(own) = records.first().map(|record| record.properties) else { return Ok(None) };
        let Some(properties) = rewrite(own) else { return Ok(None) };
        let body: Vec<&[u8]> = records.iter().map(|record| record.body).collect();
        let body_bytes: u64 = body.iter().map(|piece| piece.len() as u64).sum();
        let content_bytes = dead_letter::stripped(own).len() as u64 + body_bytes;
        Ok(Some(MovedMessage::build(properties, &body, content_bytes, record_max)))
    }

    /// Takes a message that comes from another queue; `only` one subscription gets it, if the
    /// queue has that. What is refused has changed nothing.
    ///
    /// # Errors
    /// See [`MoveRefused`].
    pub fn accept_move(
        &mut self,
        key: MoveKey,
        message: &MovedMessage,
        only: Option<&str>,
        wall: Wall,
        memory: &mut Memory,
    ) -> Result<Accepted, MoveRefused> {
        if self.moves_taken.contains(&key.name) {
            return Ok(Accepted::Duplicate);
        }
        if self.moves_taken.len() >= MOVE_KEYS_MAX {
            return Err(MoveRefused::Unsettled);
        }
        self.make_room_for_move(message, memory)?;
        let code = memory.overflow.code();
        let full = |_| MoveRefused::Code(code);
        memory.try_charge(Account::Queues, MOVE_KEY_BYTES).map_err(full)?;
        let only = only.and_then(|name| self.subscription_key(name));
        let appended = self.append_moved(message, only, wall.0, memory);
        if appended.is_err() {
            memory.budget.release(Account::Queues, MOVE_KEY_BYTES);
        }
        appended.map_err(full)?;
        self.moves_taken.insert(key.name);
        if key.name.store < TRANSIENT_STORES
            && let Some(outbox) = &mut self.outbox
        {
            outbox.note_moved(key.name);
        }
        Ok(Accepted::Done)
    }

    /// Moves that it has taken and whose sources do not know of it yet, for the checkers.
    pub fn unsettled_moves(&self) -> usize {
        self.moves_taken.len()
    }

    /// The source has noted that the move is done, and will not ask for it again.
    pub fn settle_move(&mut self, name: MoveName, memory: &mut Memory) {
        if self.moves_taken.remove(&name) {
            memory.budget.release(Account::Queues, MOVE_KEY_BYTES);
            if name.store < TRANSIENT_STORES
                && let Some(outbox) = &mut self.outbox
            {
                outbox.note_settled(name);
            }
        }
    }

    /// Limits hold for what is moved as for what is published, but nobody is blocked by it: the
    /// source tries again. Only a queue that drops its oldest makes room.
    fn make_room_for_move(
        &mut self,
        message: &MovedMessage,
        memory: &mut Memory,
    ) -> Result<(), MoveRefused> {
        if self.subscription_count() == 0 {
            return Err(MoveRefused::Code(ErrorCode::NoSubscription));
        }
        if message.content_bytes > self.message_bytes_max() {
            return Err(MoveRefused::Code(ErrorCode::MessageTooLarge));
        }
        // Who was refused before comes first.
        if let Some(block) = self.blocked() {
            return Err(MoveRefused::Code(block.code));
        }
        let bytes = message.records_bytes();
        while let Some(code) = self.lacks_room_for(bytes) {
            let dropped = match self.options().on_full {
                OnFull::DropOldest => self.drop_oldest((code, bytes), 1, u64::MAX, memory),
                OnFull::Block | OnFull::Reject | OnFull::DropNewest => 0,
            };
            if dropped == 0 {
                return Err(MoveRefused::Code(code));
            }
        }
        Ok(())
    }

    fn append_moved(
        &mut self,
        message: &MovedMessage,
        only: Option<Key>,
        accepted_us: u64,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        if let [wire] = &message.batches[..] {
            self.append(wire, (1, message.records_bytes()), only, accepted_us, memory)?;
        } else {
            let mut assembly = Assembly::new(message.body_bytes);
            for wire in &message.batches {
                assembly.push(&fragment(wire), accepted_us, memory)?;
            }
            self.append_large(assembly, only, memory);
        }
        self.counters.moved_in += 1;
        Ok(())
    }
}

/// A fragment that [`MovedMessage::build`] made.
fn fragment(wire: &[u8]) -> Batch<'_> {
    let header = BatchHeader::decode(wire).expect("it was sealed here");
    let body = Records::new(&wire[BATCH_HEADER_BYTES..]).next();
    let body_bytes = body.map_or(0, |record| u64::from(record.header.body_bytes));
    Batch { header, wire, body_bytes, record_flags: 0, broker_tags: 0 }
}
