//! Redrive: messages of a dead-letter queue go back to where they came from. A request is a job
//! that goes on tick by tick until it has looked at enough; jobs are done one after the other.

use crate::base::slot_map::Key;
use crate::base::time::{Mono, Now};
use crate::format::dead_letter;
use crate::limits::{
    MOVES_MAX, REDRIVE_COUNT_MAX, REDRIVE_RETRY_MS, REDRIVE_SCAN_MAX, REDRIVE_WAIT_MS_MAX,
};
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::FrameHeader;
use crate::protocol::wire;
use crate::queue::log::Run;
use crate::queue::memory::Account;
use crate::queue::moved::{MoveKey, MovedMessage};
use crate::queue::policy::is_name;
use crate::queue::{Absent, Queue};
use crate::shard::core::Core;
use crate::shard::moves::Move;
use crate::shard::options::{Refused, bad_name};
use crate::shard::subscriptions::DEFAULT_SUBSCRIPTION;
use std::collections::BTreeSet;

/// A request that is being carried out.
pub(super) struct Redrive {
    /// Who asked.
    connection: Key,
    header: FrameHeader,
    queue: Key,
    subscription: Key,
    target: Option<Box<str>>,
    filter: Option<(Box<str>, Box<str>)>,
    /// Messages that it may still move, and look at.
    move_left: u32,
    look_left: u32,
    /// Sequences of those on their way.
    out: Vec<u64>,
    /// How many these may be: one at first and where memory is short, one more for each that was
    /// taken, so that few overtake one that is refused.
    out_max: usize,
    /// There was no memory for these: they are tried again before anything else is looked at.
    again: BTreeSet<u64>,
    /// Then.
    again_at: Option<Mono>,
    /// Since when there is none at times, and how the last refusal said it.
    short: Option<(Mono, &'static str)>,
    /// When something was moved last.
    moved_at: Mono,
    /// What it would look at next is on disk.
    waits: Option<Absent>,
    /// It looks at no more.
    ended: bool,
    answer: wire::RedrivenT,
    charged_bytes: usize,
}

/// What is to be done with a message that a redrive looks at.
enum Found {
    /// The filter does not want it.
    Other,
    /// It does not say where it came from, and no target was asked for.
    NoOrigin,
    /// It goes there, to this one subscription if it is named.
    Goes(Box<str>, Option<Box<str>>, MovedMessage),
}

/// The message says nothing of where it came from.
const NO_ORIGIN_REASON: &str = "no_origin";
/// What a message takes that is on its way, or to be tried again, with its share of the tree.
const MOVE_BYTES: usize = 3 * size_of::<u64>();
/// Messages that are looked at in one go: to find the first of them takes longest.
const LOOK_COUNT: usize = 1024;
/// What a look counts for in the budget of a tick.
const LOOK_BYTES: usize = 256;
/// Bytes that redrives send in one tick.
const REDRIVE_BYTES_PER_TICK: usize = 4 << 20;

impl Core {
    pub fn redrive(
        &mut self,
        connection: Key,
        header: &FrameHeader,
        body: &wire::RedriveT,
    ) -> Result<Option<Answer>, Refused> {
        self.check_not_draining()?;
        let queue = self.find_queue(&body.queue)?;
        let subscription = self.find_subscription(queue, DEFAULT_SUBSCRIPTION)?;
        let text = |text: &Option<String>| {
            text.as_deref().filter(|text| !text.is_empty()).map(Box::<str>::from)
        };
        let target = text(&body.target);
        if let Some(target) = &target {
            if !is_name(target) {
                return Err(bad_name(target));
            }
            if **target == *body.queue {
                let text = "a redrive to the queue itself would never end";
                return Err(Refused::new(ErrorCode::BadOption, text));
            }
        }
        let value = || text(&body.filter_value).unwrap_or_default();
        let filter = text(&body.filter_key).map(|key| (key, value()));
        let texts = target.as_ref().map_or(0, |text| text.len())
            + filter.as_ref().map_or(0, |(key, value)| key.len() + value.len());
        let charged_bytes = size_of::<Redrive>() + texts + MOVES_MAX * MOVE_BYTES;
        let charged = self.memory.budget.try_charge(Account::Connections, charged_bytes);
        charged.map_err(|full| Refused::new(ErrorCode::MemoryLimit, full.to_string()))?;
        let last_sequence = body.after_sequence;
        self.redrives.push_back(Redrive {
            connection,
            header: *header,
            queue,
            subscription,
            target,
            filter,
            move_left: body.count_max.clamp(1, REDRIVE_COUNT_MAX),
            look_left: REDRIVE_SCAN_MAX,
            out: Vec::new(),
            out_max: 1,
            again: BTreeSet::new(),
            again_at: None,
            short: None,
            moved_at: self.now.mono,
            waits: None,
            ended: false,
            answer: wire::RedrivenT { last_sequence, ..Default::default() },
            charged_bytes,
        });
        Ok(None)
    }

    /// Goes on with the oldest redrives, as far as this tick lets it.
    pub fn go_on_redriving(&mut self, now: Now) {
        let mut budget = REDRIVE_BYTES_PER_TICK;
        if let Some(job) = self.redrives.front_mut() {
            job.end_pause(now.mono);
        }
        while budget > 0 && !self.redrives.is_empty() {
            self.look_for_redrive(now, &mut budget);
            let Some(job) = self.redrives.front() else { return };
            if !job.out.is_empty() || !job.again.is_empty() || !job.ended {
                return;
            }
            if let Some(job) = self.redrives.pop_front() {
                self.end_redrive(job);
            }
        }
    }

    /// Whether the next step of a redrive waits for nothing.
    pub fn can_redrive(&self) -> bool {
        self.redrives.front().is_some_and(Redrive::goes_on) && !self.redrive_waits()
    }

    /// When a message that there was no memory for is tried again.
    pub fn next_redrive(&self) -> Option<Mono> {
        self.redrives.front()?.again_at
    }

    /// A move is over, perhaps one of the redrive's.
    pub fn note_redriven(&mut self, key: MoveKey, outcome: Result<(), &'static str>, now: Now) {
        let Some(job) = self.redrives.front_mut() else { return };
        if (job.queue, job.subscription) != (key.queue, key.subscription) {
            return;
        }
        let Some(nth) = job.out.iter().position(|sequence| *sequence == key.name.sequence) else {
            return;
        };
        job.out.swap_remove(nth);
        match outcome {
            Ok(()) => {
                job.answer.messages += 1;
                job.moved_at = now.mono;
                job.out_max = (job.out_max + 1).min(MOVES_MAX);
            }
            Err(reason) if ErrorCode::from_name(reason).is_some_and(ErrorCode::is_of_memory) => {
                job.move_left += 1;
                job.pause(key.name.sequence, reason, now.mono);
            }
            Err(reason) => job.note_refused(reason),
        }
    }

    /// What it would look at next is on disk: it goes on when that is there.
    fn wait_with_redrive(&mut self, absent: Absent) {
        let Some(job) = self.redrives.front_mut() else { return };
        job.waits = Some(absent);
        let queue = job.queue;
        self.note_wants(queue);
    }

    /// Whether the first one waits for the disk, or for memory.
    fn redrive_waits(&self) -> bool {
        let Some(job) = self.redrives.front() else { return false };
        if job.again_at.is_some() {
            return true;
        }
        let slot = self.queues.at(job.queue);
        slot.zip(job.waits).is_some_and(|(slot, absent)| slot.queue.is_absent(absent.chunk))
    }

    /// Looks at messages in order and sends those that are wanted.
    fn look_for_redrive(&mut self, now: Now, budget: &mut usize) {
        while *budget > 0 && !self.redrive_waits() {
            let Some(job) = self.redrives.front_mut() else { return };
            job.waits = None;
            // Nobody waits for the answer any more: what is on its way is all there will be.
            if self.connections.at(job.connection).is_none() {
                return job.end();
            }
            let queue = self.queues.at_mut(job.queue).map(|slot| &mut slot.queue);
            let Some(queue) = queue.filter(|q| q.subscription(job.subscription).is_some()) else {
                return job.end();
            };
            if !job.goes_on() {
                return;
            }
            let again = job.again.first().copied();
            let (after, count) = match again {
                Some(first) => (first.saturating_sub(1), 1),
                None => (job.answer.last_sequence, LOOK_COUNT),
            };
            let runs = match queue.ready_behind(job.subscription, after, count) {
                Ok(runs) => runs,
                Err(absent) => return self.wait_with_redrive(absent),
            };
            if again.is_some() && runs.first().map(|run| run.sequence) != again {
                // Somebody else took it meanwhile.
                job.again.pop_first();
                continue;
            }
            if runs.is_empty() {
                job.answer.finished = true;
                job.ended = true;
                return;
            }
            for run in runs {
                if !self.redrive_one(&run, now, budget) {
                    break;
                }
            }
        }
    }

    /// Looks at one message. False: enough for now.
    fn redrive_one(&mut self, run: &Run, now: Now, budget: &mut usize) -> bool {
        let Some(job) = self.redrives.front_mut() else { return false };
        let is_new = !job.again.contains(&run.sequence);
        if is_new && job.has_enough() {
            job.ended = true;
            return false;
        }
        let Some(slot) = self.queues.at_mut(job.queue) else { return false };
        *budget = budget.saturating_sub(LOOK_BYTES);
        if !job.goes_on() || *budget == 0 {
            return false;
        }
        job.look_left -= u32::from(is_new);
        let record_max = self.memory.record_content_bytes_max();
        let found = match job.judge(&mut slot.queue, run, record_max) {
            Ok(found) => found,
            Err(absent) => {
                self.wait_with_redrive(absent);
                return false;
            }
        };
        let Some(job) = self.redrives.front_mut() else { return false };
        let Some(slot) = self.queues.at_mut(job.queue) else { return false };
        let (subscription, sequence) = (job.subscription, run.sequence);
        job.again.remove(&sequence);
        job.answer.last_sequence = job.answer.last_sequence.max(sequence);
        let (target, only, message) = match found {
            Found::Goes(target, only, message) => (target, only, message),
            Found::Other => return true,
            Found::NoOrigin => {
                job.note_refused(NO_ORIGIN_REASON);
                return true;
            }
        };
        match slot.queue.begin_redrive(subscription, sequence, &mut self.memory) {
            Ok(true) => {}
            // It is ready no more.
            Ok(false) => return true,
            Err(_) => {
                job.pause(sequence, ErrorCode::MemoryLimit.name(), now.mono);
                return false;
            }
        }
        job.move_left -= 1;
        job.out.push(sequence);
        *budget = budget.saturating_sub(message.bytes());
        let key = slot.move_key(self.config.shard, job.queue, subscription, sequence);
        let (makes_target, durable) = (false, slot.queue.is_durable());
        self.send_move(Move { key, target, makes_target, durable, only, message }, now);
        *budget > 0 && !self.redrive_waits()
    }

    /// The shard ends, and nobody waits for what is on disk any more.
    pub fn drop_redrives(&mut self) {
        for job in std::mem::take(&mut self.redrives) {
            self.memory.budget.release(Account::Connections, job.charged_bytes);
        }
    }

    /// Answers it.
    fn end_redrive(&mut self, job: Redrive) {
        self.memory.budget.release(Account::Connections, job.charged_bytes);
        let queue = self.queues.at(job.queue).map(|slot| &slot.queue);
        if queue.is_none_or(|queue| queue.subscription(job.subscription).is_none()) {
            let text = "the queue or its subscription went away during the redrive";
            return self.refuse(job.connection, &job.header, ErrorCode::QueueDeleted, text);
        }
        self.answer(job.connection, &job.header, &Answer::Redriven(job.answer));
    }
}

impl Redrive {
    /// Whether it may send one more.
    fn goes_on(&self) -> bool {
        (!self.ended || !self.again.is_empty()) && self.out.len() < self.out_max
    }

    /// Whether it looks at nothing new.
    fn has_enough(&self) -> bool {
        self.move_left == 0 || self.look_left == 0 || self.answer.refused >= MOVES_MAX as u64
    }

    /// Tries nothing more.
    fn end(&mut self) {
        self.ended = true;
        self.again.clear();
    }

    /// There is no memory for a message now: it is tried again in a moment, before all behind it.
    fn pause(&mut self, sequence: u64, reason: &'static str, now: Mono) {
        self.again.insert(sequence);
        self.again_at = Some(now.plus_ms(REDRIVE_RETRY_MS));
        self.out_max = 1;
        self.short = Some((self.short.map_or(now, |(since, _)| since), reason));
    }

    /// Goes on after a pause, unless this has gone on for too long.
    fn end_pause(&mut self, now: Mono) {
        let is_over = self.again_at.take_if(|at| *at <= now).is_some() && self.out.is_empty();
        let (Some((since, reason)), Some(first)) = (self.short, self.again.first()) else { return };
        if !is_over || now.ms_since(since) < REDRIVE_WAIT_MS_MAX {
            return;
        }
        if now.ms_since(since.max(self.moved_at)) < REDRIVE_WAIT_MS_MAX {
            // Others wait for their turn; the client asks again, for all from the first of these.
            self.answer.last_sequence = first.saturating_sub(1);
            self.answer.finished = false;
        } else {
            (0..self.again.len()).for_each(|_| self.note_refused(reason));
        }
        self.end();
    }

    fn note_refused(&mut self, reason: &'static str) {
        self.answer.refused += 1;
        self.answer.reason = Some(reason.to_owned());
    }

    /// Where a message goes, as one that travels.
    ///
    /// # Errors
    /// If not all of it is in memory; the rest was asked for.
    fn judge(&self, queue: &mut Queue, run: &Run, record_max: usize) -> Result<Found, Absent> {
        let name = queue.name().to_owned();
        let mut found = Found::Other;
        let mut goes = None;
        let message = queue.move_out(run, record_max, |own| {
            let text = |name: &[u8]| dead_letter::text(own, name);
            if let Some((key, value)) = &self.filter
                && dead_letter::header(own, key.as_bytes()) != Some(value.as_bytes())
            {
                return None;
            }
            let origin = text(dead_letter::QUEUE).filter(|origin| *origin != name);
            let Some(target) = self.target.as_deref().or(origin) else {
                found = Found::NoOrigin;
                return None;
            };
            let only = text(dead_letter::SUBSCRIPTION).filter(|_| origin == Some(target));
            goes = Some((Box::from(target), only.map(Box::from)));
            Some(dead_letter::stripped(own))
        });
        Ok(match (goes, message?) {
            (Some((target, only)), Some(message)) => Found::Goes(target, only, message),
            _ => found,
        })
    }
}
