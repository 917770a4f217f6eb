//! The pulls of a subscription's consumers: who waits, until when, and which are over.

use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::queue::consumer::{Owner, PullState};
use crate::queue::memory::{Account, MemoryFull};
use crate::queue::subscription::{Parts, Subscription};
use std::collections::{BTreeSet, VecDeque};

/// What a waiting pull takes with its timer.
const PULL_BYTES: usize = 2 * size_of::<PullState>() + 2 * size_of::<(Mono, Key)>();

/// A pull whose time is over waits so much longer for what is being read from disk.
const READ_GRACE_MS: u64 = 1000;

/// A pull has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PullEnd {
    /// Whose.
    pub owner: Owner,
    /// Which.
    pub correlation: u32,
    /// What it brought.
    pub messages: u32,
}

/// See the module. Of each consumer only the oldest pull counts: the others begin when it has
/// ended.
#[derive(Default)]
pub(super) struct Pulls {
    /// Not yet polled.
    ended: VecDeque<PullEnd>,
    /// When the oldest pull of each consumer is over.
    timers: BTreeSet<(Mono, Key)>,
    /// Consumers whose oldest pull has brought something.
    brought: Vec<Key>,
}

impl Pulls {
    /// When the next one is over.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.first().map(|&(at, _)| at)
    }

    /// The consumer's oldest pull has brought its first messages.
    pub fn note_brought(&mut self, key: Key) {
        self.brought.push(key);
    }

    /// Whether none waits and no end is to be told.
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.timers.is_empty() && self.brought.is_empty() && self.ended.is_empty()
    }
}

impl Subscription {
    /// Starts a pull.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(super) fn pull(
        &mut self,
        key: Key,
        pull: PullState,
        parts: &mut Parts<'_>,
    ) -> Result<(), MemoryFull> {
        let Some(consumer) = self.consumers.at_mut(key) else {
            return Ok(());
        };
        parts.memory.try_charge(Account::Handles, PULL_BYTES)?;
        consumer.pulls.push_back(pull);
        if consumer.pulls.len() == 1 {
            self.pulls.timers.insert((pull.deadline, key));
        }
        self.enqueue(key);
        Ok(())
    }

    /// A pull that has ended: it has all it may, or something and there is no more at hand for its
    /// consumer, or its time is over. Poll after [`Subscription::poll_delivery`] gave `None`.
    pub(super) fn poll_pull_end(&mut self, now: Mono, parts: &mut Parts<'_>) -> Option<PullEnd> {
        if self.pulls.is_idle() {
            return None;
        }
        while self.pulls.ended.is_empty()
            && let Some(&(at, key)) = self.pulls.timers.first()
            && at <= now
        {
            match self.consumers.at_mut(key) {
                // Its message is on the way in fragments: what is begun is finished first.
                Some(consumer) if consumer.large.is_some() => {
                    self.pulls.timers.pop_first();
                    if let Some(pull) = consumer.pulls.front_mut() {
                        pull.over = true;
                    }
                }
                // What it waits for is ready, but must be read first.
                Some(consumer) if self.waits.is_some() && self.ready > 0 => {
                    self.pulls.timers.pop_first();
                    let Some(pull) = consumer.pulls.front_mut() else { continue };
                    if pull.brought > 0 || std::mem::replace(&mut pull.late, true) {
                        self.end_pull(key, parts);
                    } else {
                        pull.deadline = now.plus_ms(READ_GRACE_MS);
                        self.pulls.timers.insert((pull.deadline, key));
                    }
                }
                _ => self.end_pull(key, parts),
            }
        }
        let nothing_at_hand =
            self.ready() == 0 || self.waits.is_some() || self.pause(parts).is_some();
        let mut nth = 0;
        while self.pulls.ended.is_empty() && nth < self.pulls.brought.len() {
            let key = self.pulls.brought[nth];
            let consumer = self.consumers.at(key);
            let ends =
                consumer.is_none_or(|c| c.large.is_none() && (nothing_at_hand || !c.has_room()));
            if ends {
                self.end_pull(key, parts);
            } else {
                nth += 1;
            }
        }
        self.pulls.ended.pop_front()
    }

    /// Ends a consumer's oldest pull; the next one begins.
    pub(super) fn end_pull(&mut self, key: Key, parts: &mut Parts<'_>) {
        self.pulls.brought.retain(|&other| other != key);
        let Some(consumer) = self.consumers.at_mut(key) else {
            return;
        };
        let Some(pull) = consumer.pulls.pop_front() else {
            return;
        };
        parts.memory.budget.release(Account::Handles, PULL_BYTES);
        self.pulls.timers.remove(&(pull.deadline, key));
        if let Some(next) = consumer.pulls.front() {
            self.pulls.timers.insert((next.deadline, key));
        }
        let (owner, correlation) = (consumer.owner, pull.correlation);
        self.pulls.ended.push_back(PullEnd { owner, correlation, messages: pull.brought });
    }

    /// The consumer goes, its pulls with it, and nobody is told.
    pub(super) fn drop_pulls(&mut self, key: Key, parts: &mut Parts<'_>) {
        while self.consumers.at(key).is_some_and(|consumer| !consumer.pulls.is_empty()) {
            self.end_pull(key, parts);
        }
        let owner = self.consumers.at(key).map(|consumer| consumer.owner);
        self.pulls.ended.retain(|end| Some(end.owner) != owner);
    }
}
