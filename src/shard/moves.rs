//! Carries messages from one queue to another: dead letters here, redrive in `redrive`.
//!
//! ```text
//! source: poll_move -> Move ----> target: accept_move
//!         handle_moved <- MoveDone <----'
//!         settled -----> target: settle_move
//! ```
//!
//! The source holds the message until it has the answer, so nothing is lost on the way; the target
//! remembers the move until it is settled, so nothing is there twice. [`Move`] and [`MoveDone`] own
//! all that they need: they may travel from shard to shard.

use crate::base::slot_map::Key;
use crate::base::time::Now;
use crate::format::change::MoveName;
use crate::format::dead_letter::{self, DeadLetter};
use crate::limits::DEAD_LETTER_HOPS_MAX;
use crate::protocol::control::ATTEMPTS_UNLIMITED;
use crate::protocol::error::ErrorCode;
use crate::protocol::wire;
use crate::queue::dead::HOPS_REASON;
use crate::queue::memory::Account;
use crate::queue::moved::{Accepted, MoveKey, MovedMessage};
use crate::queue::policy::{SubscriptionOptions, is_name};
use crate::queue::{Absent, MoveOut, Queue};
use crate::shard::core::Core;
use crate::shard::options::queue_options;
use crate::shard::router::home;
use crate::shard::store::Deferred;
use crate::shard::subscriptions::DEFAULT_SUBSCRIPTION;

/// A message that its target is asked to take.
pub(super) struct Move {
    /// Which move it is, and so where the answer goes.
    pub key: MoveKey,
    /// The queue that shall have it.
    pub target: Box<str>,
    /// The target is made if it does not exist: a default dead-letter queue, as durable as its
    /// source.
    pub makes_target: bool,
    /// Whether the source is durable.
    pub durable: bool,
    /// Only this subscription of the target gets it, if it is there.
    pub only: Option<Box<str>>,
    /// It.
    pub message: MovedMessage,
}

impl Move {
    /// What it takes while it is under way.
    pub fn charged_bytes(&self) -> usize {
        self.message.bytes() + NOTES_BYTES
    }
}

/// What became of a [`Move`].
pub(super) struct MoveDone {
    /// Which.
    pub key: MoveKey,
    /// The target's home.
    pub home: u32,
    /// The target there.
    pub target: Option<Key>,
    /// Bytes that are charged for it.
    pub bytes: usize,
    /// Whether the target has it, or why not.
    pub outcome: Result<Accepted, &'static str>,
}

/// What one shard tells another of moves.
pub(super) enum Note {
    /// To the target's home.
    Asked(Box<Move>),
    /// To the source's home.
    Done(MoveDone),
    /// To the target's home: the source has noted the answer.
    Settled(Key, MoveName),
}

/// What the notes of one move take at most.
const NOTES_BYTES: usize = 2 * size_of::<Note>() + size_of::<Move>();
/// It was in memory a moment ago, and is asked for again.
const REFILLING_REASON: &str = "refilling";
/// The move was not asked for: there is no memory to carry the message in.
const MEMORY_REASON: &str = "memory_limit";

impl Core {
    /// Sends the dead letters of a queue on their way. Uses up `budget`, in bytes; true if nothing
    /// is left to send for now.
    pub fn carry_dead_letters(&mut self, queue: Key, now: Now, budget: &mut usize) -> bool {
        while let Some(slot) = self.queues.at_mut(queue) {
            let Some(out) = slot.queue.poll_move(now) else { return true };
            let target = slot.queue.dead_letter_name(out.subscription);
            let makes_target = slot.queue.makes_dead_letter(out.subscription);
            let durable = slot.queue.is_durable();
            let (subscription, sequence) = (out.subscription, out.run.sequence);
            let key = slot.move_key(self.config.shard, queue, subscription, sequence);
            let record_max = self.memory.record_content_bytes_max();
            let made = match dead_letter(&mut slot.queue, &out, record_max) {
                Ok(message) => message.ok_or(HOPS_REASON),
                Err(Absent { .. }) => Err(REFILLING_REASON),
            };
            let message = match made {
                Ok(message) => message,
                Err(reason) => {
                    self.note_moved(key, Err(reason), now);
                    *budget = budget.saturating_sub(NOTES_BYTES);
                    if *budget == 0 {
                        return false;
                    }
                    continue;
                }
            };
            *budget = budget.saturating_sub(message.bytes());
            let target = target.into();
            self.send_move(Move { key, target, makes_target, durable, only: None, message }, now);
            if *budget == 0 {
                return false;
            }
        }
        true
    }

    /// Takes a move to its target's home.
    pub fn send_move(&mut self, asked: Move, now: Now) {
        let (key, bytes) = (asked.key, asked.charged_bytes());
        if self.memory.budget.try_charge(Account::Moves, bytes).is_err() {
            let outcome = Err(MEMORY_REASON);
            let home = self.config.shard;
            let done = MoveDone { key, home, target: None, bytes: 0, outcome };
            return self.handle_move_done(done, now);
        }
        match self.queues.at(key.queue).and_then(|slot| slot.store) {
            Some(store) => self.stores.at(store).defer(Deferred::Ask(Box::new(asked))),
            None => self.ask_move(asked, now),
        }
    }

    /// See [`Core::send_move`].
    pub(super) fn ask_move(&mut self, asked: Move, now: Now) {
        let to = home(&asked.target, self.config.stores, self.config.shards);
        if to == self.config.shard {
            let done = self.handle_move(asked, now);
            self.answer_move(to as usize, done);
        } else {
            self.parked_moves.push_back((to as usize, Box::new(asked)));
            self.send_parked_moves();
        }
    }

    /// Moves that go to other shards, as far as there is room for them.
    pub fn send_parked_moves(&mut self) {
        let Some(post) = &mut self.post else { return };
        // One that has to wait lets those to other shards pass.
        for _ in 0..self.parked_moves.len() {
            let Some((to, asked)) = self.parked_moves.pop_front() else { return };
            let bytes = asked.message.bytes();
            if post.has_room(to, bytes) {
                post.put_note(to, Note::Asked(asked), bytes);
            } else {
                self.parked_moves.push_back((to, asked));
            }
        }
    }

    /// Another shard has something to say of a move.
    pub fn handle_note(&mut self, from: usize, note: Note) {
        let now = self.now;
        match note {
            Note::Asked(asked) => {
                let done = self.handle_move(*asked, now);
                self.answer_move(from, done);
            }
            Note::Done(done) => self.handle_move_done(done, now),
            Note::Settled(target, name) => self.settle_move(target, name),
        }
    }

    /// Does what a move asks, at its target's home.
    fn handle_move(&mut self, asked: Move, now: Now) -> MoveDone {
        let (key, bytes) = (asked.key, asked.charged_bytes());
        let home = self.config.shard;
        let refused = |code: ErrorCode| {
            let outcome = Err(code.name());
            MoveDone { key, home, target: None, bytes, outcome }
        };
        let target = match self.target_of(&asked) {
            Ok(target) => target,
            Err(code) => return refused(code),
        };
        let Some(slot) = self.queues.at_mut(target) else {
            return refused(ErrorCode::QueueNotFound);
        };
        let (only, memory) = (asked.only.as_deref(), &mut self.memory);
        let accepted = slot.queue.accept_move(key, &asked.message, only, now.wall, memory);
        self.spill.note(target, slot, false);
        self.activate(target);
        self.note_changes(target);
        let outcome = accepted.map_err(|refused| refused.name());
        MoveDone { key, home, target: Some(target), bytes, outcome }
    }

    /// What became of a move, at its source's home.
    pub fn handle_move_done(&mut self, done: MoveDone, now: Now) {
        self.memory.budget.release(Account::Moves, done.bytes);
        let outcome = done.outcome.map(|_| ());
        self.note_moved(done.key, outcome, now);
        self.note_redriven(done.key, outcome, now);
        // From now on nobody asks for it again.
        let (Ok(()), Some(target)) = (outcome, done.target) else { return };
        let (home, name) = (done.home as usize, done.key.name);
        match self.stores.index_of(name.store) {
            // Before that is safe it may be asked for again, after a crash; also by a queue that
            // was deleted meanwhile.
            Some(store) => self.stores.at(store).defer(Deferred::Settle(home, target, name)),
            None => self.send_settled(home, target, name),
        }
    }

    /// Tells the source's home what became of a move; if the target is durable, not before that
    /// is safe.
    fn answer_move(&mut self, to: usize, done: MoveDone) {
        let target = done.target.filter(|_| done.outcome.is_ok());
        let store = target.and_then(|target| self.queues.at(target)?.store);
        match store {
            Some(store) => self.stores.at(store).defer(Deferred::Moved(to, done)),
            None => self.send_move_done(to, done),
        }
    }

    /// See [`Core::answer_move`].
    pub(super) fn send_move_done(&mut self, to: usize, done: MoveDone) {
        match &mut self.post {
            Some(post) if to != self.config.shard as usize => {
                post.put_note(to, Note::Done(done), 0);
            }
            _ => self.handle_move_done(done, self.now),
        }
    }

    /// Tells the target's home that the source has noted a move.
    pub(super) fn send_settled(&mut self, to: usize, target: Key, name: MoveName) {
        match &mut self.post {
            Some(post) if to != self.config.shard as usize => {
                post.put_note(to, Note::Settled(target, name), 0);
            }
            _ => self.settle_move(target, name),
        }
    }

    fn settle_move(&mut self, target: Key, name: MoveName) {
        if let Some(slot) = self.queues.at_mut(target) {
            slot.queue.settle_move(name, &mut self.memory);
        }
        self.note_changes(target);
    }

    /// Tells the source, if it is still there.
    fn note_moved(&mut self, key: MoveKey, outcome: Result<(), &'static str>, now: Now) {
        let Some(slot) = self.queues.at_mut(key.queue) else { return };
        let (subscription, memory) = (key.subscription, &mut self.memory);
        slot.queue.handle_moved(subscription, key.name.sequence, outcome, now, memory);
        self.activate(key.queue);
        self.note_changes(key.queue);
    }

    /// The queue that a move goes to; a default dead-letter queue is made on first use.
    fn target_of(&mut self, asked: &Move) -> Result<Key, ErrorCode> {
        let name = &*asked.target;
        if let Some(&key) = self.names.get(name) {
            return Ok(key);
        }
        if !asked.makes_target {
            return Err(ErrorCode::QueueNotFound);
        }
        if !is_name(name) {
            return Err(ErrorCode::BadName);
        }
        let asked_options = wire::QueueOptionsT { durable: asked.durable, ..Default::default() };
        let options = queue_options(Some(&asked_options), self.config.message_bytes_max);
        // Whatever fails there was given up once already: it stays until somebody looks at it.
        let subscription =
            SubscriptionOptions { max_attempts: ATTEMPTS_UNLIMITED, ..Default::default() };
        options
            .and_then(|options| {
                self.make_queue(name, options, &[DEFAULT_SUBSCRIPTION], &subscription)
            })
            .map_err(|refused| refused.code)
    }
}

/// A dead letter as it travels; `None` if it was one too often.
fn dead_letter(
    queue: &mut Queue,
    out: &MoveOut,
    record_max: usize,
) -> Result<Option<MovedMessage>, Absent> {
    let Some(subscription) = queue.subscription(out.subscription) else { return Ok(None) };
    let (name, subscription) = (queue.name().to_owned(), subscription.name().to_owned());
    queue.move_out(&out.run, record_max, |own| {
        let letter = DeadLetter {
            queue: &name,
            subscription: &subscription,
            sequence: out.run.sequence,
            reason: out.reason.name(),
            error: &out.text,
            attempts: out.attempts,
            first_us: out.first_failed.0,
            last_us: out.last_failed.0,
        };
        let again = dead_letter::hops(own) < DEAD_LETTER_HOPS_MAX;
        again.then(|| dead_letter::marked(own, &letter))
    })
}
