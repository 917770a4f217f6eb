//! Messages that leave a subscription for another queue: dead letters that wait for their move, and
//! everything that is on its way. It is held here until the target has it.

use crate::base::slot_map::Key;
use crate::base::time::{Mono, Wall};
use crate::limits::{MOVES_MAX, RUN_RECORDS_MAX};
use crate::protocol::error::ErrorCode;
use crate::queue::log::{Log, Run};
use crate::queue::portion::{History, Portion};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

/// A move that was refused is tried again after so long.
const RETRY_MS: u64 = 1000;
/// A message stays in a queue where it was dead-lettered too often before.
pub const HOPS_REASON: &str = "dead_letter_hops";

/// Whether a message is refused for what it is, not for how its target is.
fn is_its_own(why: &str) -> bool {
    why == HOPS_REASON || why == ErrorCode::MessageTooLarge.name()
}

/// What an entry takes with its share of the tree, its text apart.
const ENTRY_BYTES: usize = 2 * size_of::<(u64, Dead)>();

/// Why a message leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// It failed as often as it may.
    MaxAttempts,
    /// A consumer rejected it.
    Rejected,
    /// Somebody asked for it to go back where it came from.
    Redrive,
}

impl MoveReason {
    /// As the header of a dead letter says it.
    pub fn name(self) -> &'static str {
        match self {
            MoveReason::MaxAttempts => "max_attempts",
            MoveReason::Rejected => "rejected",
            MoveReason::Redrive => "redrive",
        }
    }
}

/// A message that another queue shall have.
#[derive(Clone, Debug)]
pub struct MoveOut {
    /// Who gives it up.
    pub subscription: Key,
    /// Its sequence.
    pub sequence: u64,
    /// Where it stands; one message.
    pub run: Run,
    /// Why.
    pub reason: MoveReason,
    /// What the consumer said last; may be empty.
    pub text: Rc<str>,
    /// How often it was delivered.
    pub attempts: u32,
    /// How often that failed.
    pub failures: u32,
    /// When for the first time.
    pub first_failed: Wall,
    /// And for the last.
    pub last_failed: Wall,
}

#[derive(Clone, Debug)]
struct Dead {
    portion: Portion,
    reason: MoveReason,
    text: Rc<str>,
    /// It was refused before.
    again: bool,
}

/// What became of a move.
pub(super) enum Moved {
    /// The target has the message: it is done here.
    Gone(Run, MoveReason),
    /// A redrive was refused: the message is ready again.
    Back(Run, History),
    /// A dead letter was refused, and stays.
    Stays,
    /// No such move was on its way.
    Unknown,
}

/// See the module.
#[derive(Default)]
pub(super) struct DeadLetters {
    /// Not tried yet, by sequence of the first message left.
    waiting: BTreeMap<u64, Dead>,
    /// Refused, by the time of the next try.
    refused: BTreeMap<(Mono, u64), Dead>,
    /// On the way.
    out: BTreeMap<u64, Dead>,
    /// Of these, dead letters.
    out_dead: usize,
    /// A refusal holds up the others that were not tried yet, until then: most likely they would
    /// fare the same.
    paused_until: Option<Mono>,
    /// And of those tried before, one that is refused again holds up these alone: a message that
    /// nobody ever takes is in nobody's way.
    again_paused_until: Option<Mono>,
    /// The next to go is one that was refused: neither kind holds the other up for ever.
    refused_first: bool,
    reason: Option<&'static str>,
    text_bytes: usize,
    /// The next one waits for its records, and not for a time.
    waits: bool,
}

impl DeadLetters {
    /// What is held in memory.
    pub fn bytes(&self) -> usize {
        let entries = self.waiting.len() + self.refused.len() + self.out.len();
        entries * ENTRY_BYTES + self.text_bytes
    }

    /// Why the last refused one waits.
    pub fn reason(&self) -> Option<&'static str> {
        self.reason
    }

    /// Everything held.
    pub fn portions(&self) -> impl Iterator<Item = &Portion> {
        let waiting = self.waiting.values().chain(self.refused.values());
        waiting.chain(self.out.values()).map(|dead| &dead.portion)
    }

    /// Everything held, and why.
    pub fn reasons(&self) -> impl Iterator<Item = (MoveReason, &Portion)> {
        let waiting = self.waiting.values().chain(self.refused.values());
        waiting.chain(self.out.values()).map(|dead| (dead.reason, &dead.portion))
    }

    /// Adds dead letters.
    pub fn put(&mut self, portion: Portion, reason: MoveReason, text: Rc<str>) {
        self.text_bytes += text.len();
        let dead = Dead { portion, reason, text, again: false };
        let before = self.waiting.insert(dead.portion.first_sequence(), dead);
        assert!(before.is_none(), "a message dies once");
    }

    /// Adds to an entry of the same run, where there is no memory for one more. False: none is. An
    /// entry has one text: of messages of which different things were said, none is kept.
    pub fn merge(&mut self, portion: &Portion, reason: MoveReason, text: &str) -> bool {
        let end = portion.run.sequence + u64::from(portion.run.count);
        let mut near = self.waiting.range(portion.run.sequence..end);
        let same = |dead: &Dead| dead.reason == reason && dead.portion.is_of(&portion.run);
        let Some((&key, _)) = near.find(|(_, dead)| same(dead)) else { return false };
        let mut dead = self.waiting.remove(&key).expect("just found");
        dead.portion.add(portion);
        if *dead.text != *text {
            self.text_bytes -= dead.text.len();
            dead.text = Rc::from("");
        }
        self.waiting.insert(dead.portion.first_sequence(), dead);
        true
    }

    /// The next one to go. Waits for its records where they are on disk.
    pub fn poll(&mut self, subscription: Key, now: Mono, log: &mut Log) -> Option<MoveOut> {
        // A refusal since may have begun a pause: then it is that end that is waited for.
        self.waits = false;
        if self.out_dead >= MOVES_MAX {
            return None;
        }
        let goes = |paused_until: Option<Mono>| paused_until.is_none_or(|until| until <= now);
        let due = self.refused.first_key_value().is_some_and(|(&(at, _), _)| at <= now)
            && goes(self.again_paused_until);
        let fresh = !self.waiting.is_empty() && goes(self.paused_until);
        if !due && !fresh {
            return None;
        }
        let again = due && (self.refused_first || !fresh);
        let next = match again {
            true => self.refused.first_key_value().map(|(_, dead)| dead.portion.run),
            false => self.waiting.first_key_value().map(|(_, dead)| dead.portion.run),
        }?;
        self.waits = log.need(&next).is_err();
        if self.waits {
            return None;
        }
        self.refused_first = !again;
        let one = if again { self.refused.pop_first()?.1 } else { self.next_waiting(log)? };
        self.out_dead += 1;
        Some(self.send(subscription, one))
    }

    /// Sends a message that nobody gave up; it comes back if it is refused.
    pub fn redrive(&mut self, run: Run, history: History) {
        let (reason, text) = (MoveReason::Redrive, Rc::from(""));
        let dead = Dead { portion: Portion::whole(run, history), reason, text, again: false };
        self.out.insert(run.sequence, dead);
    }

    /// A move ended.
    pub fn handle_moved(
        &mut self,
        sequence: u64,
        outcome: Result<(), &'static str>,
        now: Mono,
    ) -> Moved {
        let Some(mut dead) = self.out.remove(&sequence) else { return Moved::Unknown };
        let run = dead.portion.run;
        let redriven = dead.reason == MoveReason::Redrive;
        self.out_dead -= usize::from(!redriven);
        match outcome {
            Err(_) if redriven => return Moved::Back(run, dead.portion.history),
            Err(why) => {
                let until = now.plus_ms(RETRY_MS);
                self.reason = Some(why);
                match std::mem::replace(&mut dead.again, true) {
                    true => self.again_paused_until = Some(until),
                    // The others have to do with it only if it is not for its own sake.
                    false if !is_its_own(why) => self.paused_until = Some(until),
                    false => {}
                }
                self.refused.insert((until, sequence), dead);
                return Moved::Stays;
            }
            Ok(()) => {}
        }
        self.text_bytes -= dead.text.len();
        if !redriven {
            (self.paused_until, self.again_paused_until) = (None, None);
            if self.refused.is_empty() {
                self.reason = None;
            }
        }
        Moved::Gone(run, dead.reason)
    }

    /// When one that was refused is tried again.
    pub fn next_retry(&self) -> Option<Mono> {
        if self.out_dead >= MOVES_MAX || self.waits {
            return None;
        }
        let refused = self.refused.first_key_value().map(|(&(at, _), _)| at);
        let refused = refused.map(|at| self.again_paused_until.map_or(at, |until| until.max(at)));
        let waiting = if self.waiting.is_empty() { None } else { self.paused_until };
        waiting.into_iter().chain(refused).min()
    }

    /// Lets those go on whose pause is over.
    pub fn handle_deadline(&mut self, now: Mono) {
        for paused_until in [&mut self.paused_until, &mut self.again_paused_until] {
            paused_until.take_if(|until| *until <= now);
        }
    }

    /// Takes out messages by sequence, all but those that are on the way.
    pub fn remove(&mut self, range: &Range<u64>) -> Vec<Portion> {
        self.waits = false;
        let mut taken = Vec::new();
        let near = range.start.saturating_sub(RUN_RECORDS_MAX as u64 - 1)..range.end;
        let keys: Vec<u64> = self.waiting.range(near).map(|(&key, _)| key).collect();
        for key in keys {
            let Some(mut dead) = self.waiting.remove(&key) else { continue };
            taken.extend(dead.portion.take_range(range));
            match dead.portion.left() {
                0 => self.text_bytes -= dead.text.len(),
                _ => _ = self.waiting.insert(dead.portion.first_sequence(), dead),
            }
        }
        let refused = self.refused.keys().filter(|(_, sequence)| range.contains(sequence));
        for key in refused.copied().collect::<Vec<_>>() {
            let Some(dead) = self.refused.remove(&key) else { continue };
            self.text_bytes -= dead.text.len();
            taken.push(dead.portion);
        }
        taken
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<Portion> {
        let all = std::mem::take(self);
        let waiting = all.waiting.into_values().chain(all.refused.into_values());
        waiting.chain(all.out.into_values()).map(|dead| dead.portion).collect()
    }

    /// Takes the first message that was not tried yet out of its entry.
    fn next_waiting(&mut self, log: &Log) -> Option<Dead> {
        let first = self.waiting.first_entry()?;
        let nth = first.get().portion.first();
        let run = log.part(&first.get().portion.run, nth, 1).ok()?;
        let mut dead = first.remove();
        dead.portion.take(nth, nth + 1);
        let text = Rc::clone(&dead.text);
        let portion = Portion::whole(run, dead.portion.history);
        let one = Dead { portion, reason: dead.reason, text, again: false };
        if dead.portion.left() > 0 {
            self.text_bytes += one.text.len();
            self.waiting.insert(dead.portion.first_sequence(), dead);
        }
        Some(one)
    }

    fn send(&mut self, subscription: Key, dead: Dead) -> MoveOut {
        let (run, history) = (dead.portion.run, dead.portion.history);
        let out = MoveOut {
            subscription,
            sequence: run.sequence,
            run,
            reason: dead.reason,
            text: Rc::clone(&dead.text),
            attempts: u32::from(history.attempts),
            failures: u32::from(history.failures),
            first_failed: history.first_failed,
            last_failed: history.last_failed,
        };
        self.out.insert(run.sequence, dead);
        out
    }
}
