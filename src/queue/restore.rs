//! A durable queue as its journal remembers it: made anew from definitions, from what its
//! subscriptions are done with, and from batches in the order of their sequences.
//!
//! ```text
//! Queue::restore -> restore_subscription -> restore_batch | restore_large ... -> restore_end
//! ```
//!
//! What was in flight is ready again, and does not count as failed. What stands nowhere and is not
//! done is lost, and counted so.

use crate::base::slot_map::Key;
use crate::base::time::{Now, Wall};
use crate::format::batch::{Batch, BatchPrefix};
use crate::format::change::{Failure, MoveName};
use crate::format::record::Records;
use crate::limits::BATCH_PREFIX_BYTES;
use crate::queue::assembly::Assembly;
use crate::queue::dead::MoveReason;
use crate::queue::durable::SubscriptionState;
use crate::queue::log::Position;
use crate::queue::memory::{Account, Memory, MemoryFull};
use crate::queue::moved::MOVE_KEY_BYTES;
use crate::queue::outbox::Outbox;
use crate::queue::policy::SubscriptionOptions;
use crate::queue::portion::{History, Portion};
use crate::queue::subscription::{Parts, Subscription};
use crate::queue::subscriptions::charged_bytes;
use crate::queue::{KNOWN_BYTES, Queue};
use std::collections::VecDeque;
use std::rc::Rc;

/// Failures of a subscription that is being restored, not yet met.
pub struct Restoring {
    /// The subscription.
    pub key: Key,
    failures: VecDeque<Failure>,
}

/// What is known of a subscription apart from its messages.
pub struct RestoredSubscription<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number in its queue.
    pub number: u64,
    /// Its options.
    pub options: SubscriptionOptions,
    /// When it was made.
    pub created: Wall,
}

impl Queue {
    /// Begins: this queue, just made, is durable, and its messages come from the journal.
    /// Numbers of new subscriptions go on from `next_subscription`.
    pub fn restore(&mut self, next_subscription: u64) {
        self.next_subscription = next_subscription;
        self.log.go_on_at(1);
    }

    /// Adds a subscription with what it is done with; before the first batch.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn restore_subscription(
        &mut self,
        of: RestoredSubscription<'_>,
        state: SubscriptionState,
        now: Now,
        memory: &mut Memory,
    ) -> Result<Restoring, MemoryFull> {
        let RestoredSubscription { name, number, options, created } = of;
        memory.budget.try_charge(Account::Queues, charged_bytes(name))?;
        let start = state.start.max(1);
        let at = Position::chunk_start(0);
        let mut made = Subscription::new((name, number), options, now, at, start);
        made.created = created;
        for (first, end) in state.done {
            if end > start {
                made.skips.add(first.max(start), end);
            }
        }
        let key = self.insert_subscription(made);
        if let Some((subscription, mut parts)) = self.parts(key, memory) {
            subscription.settle_charge(&mut parts);
        }
        Ok(Restoring { key, failures: state.failures.into() })
    }

    /// Adds producer ids and moves that it has taken. Nobody is told that what a producer gave is
    /// held before all messages up to `end_sequence` are as safe as they are to be.
    pub fn restore_known(
        &mut self,
        producers: impl IntoIterator<Item = (u64, u64)>,
        moves: impl IntoIterator<Item = MoveName>,
        end_sequence: u64,
        memory: &mut Memory,
    ) {
        for (id, last_sequence) in producers {
            if self.known.len() < self.bounds.producers_max {
                memory.budget.charge(Account::Handles, KNOWN_BYTES);
                self.known.close(id, last_sequence, Some((1, end_sequence)));
            }
        }
        for name in moves {
            memory.budget.charge(Account::Queues, MOVE_KEY_BYTES);
            self.moves_taken.insert(name);
        }
    }

    /// Adds a batch, behind its prefix. Batches come in the order of their sequences; one that
    /// nobody holds may be left out. Not even a broken one panics: it is left out.
    ///
    /// # Errors
    /// When there is no memory for it now; then nothing has changed.
    pub fn restore_batch(
        &mut self,
        batch: &[u8],
        all: &mut [Restoring],
        now: Now,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        let Some((prefix, wire)) = batch.split_at_checked(BATCH_PREFIX_BYTES) else {
            return Ok(());
        };
        let BatchPrefix { base_sequence, accepted_us } = BatchPrefix::decode(prefix);
        let Ok(checked) = Batch::decode(wire) else { return Ok(()) };
        if base_sequence < self.log.next_sequence() {
            return Ok(());
        }
        self.restore_gap(base_sequence, memory);
        let (count, holders) = (checked.header.record_count, self.turns.len() as u64);
        self.log.append(wire, count, holders, accepted_us, memory)?;
        let bytes_of = |first: u64, end: u64| -> u64 {
            let (skip, take) = ((first - base_sequence) as usize, (end - first) as usize);
            let records = Records::new(checked.records()).skip(skip).take(take);
            records.map(|record| record.header.record_bytes() as u64).sum()
        };
        self.share_out(
            (base_sequence, base_sequence + u64::from(count)),
            &bytes_of,
            all,
            now,
            memory,
        );
        Ok(())
    }

    /// Adds a large message: its fragments, each a batch behind its prefix.
    ///
    /// # Errors
    /// When there is no memory for it now; then nothing has changed.
    pub fn restore_large(
        &mut self,
        sequence: u64,
        fragments: &[impl AsRef<[u8]>],
        all: &mut [Restoring],
        now: Now,
        memory: &mut Memory,
    ) -> Result<(), MemoryFull> {
        if sequence < self.log.next_sequence() {
            return Ok(());
        }
        let mut batches = Vec::with_capacity(fragments.len());
        for fragment in fragments {
            let Some((prefix, wire)) = fragment.as_ref().split_at_checked(BATCH_PREFIX_BYTES)
            else {
                return Ok(());
            };
            let Ok(batch) = Batch::decode(wire) else { return Ok(()) };
            batches.push((batch, BatchPrefix::decode(prefix).accepted_us));
        }
        let body_bytes = batches.iter().map(|(batch, _)| batch.body_bytes).sum();
        let mut assembly = Assembly::new(body_bytes);
        for (batch, accepted_us) in &batches {
            assembly.push(batch, *accepted_us, memory)?;
        }
        self.restore_gap(sequence, memory);
        let bytes = assembly.records_bytes();
        let holders = self.turns.len() as u64;
        self.log.append_large(assembly.into_chunks(), bytes, holders, memory);
        self.share_out((sequence, sequence + 1), &|_, _| bytes, all, now, memory);
        Ok(())
    }

    /// All messages are there, and the next one gets `next_sequence`. From now on it notes what
    /// changes. Returns how many messages are lost, once for each subscription.
    pub fn restore_end(&mut self, next_sequence: u64, memory: &mut Memory) -> u64 {
        self.restore_gap(next_sequence, memory);
        for nth in 0..self.turns.len() {
            let Some((subscription, mut parts)) = self.parts(self.turns[nth], memory) else {
                continue;
            };
            subscription.settle_restored(&mut parts);
        }
        self.log.settle_charge(memory);
        self.outbox = Some(Box::new(Outbox::returned(self.log.next_sequence())));
        self.counters.lost_damaged
    }

    /// Messages from the end of the log to `sequence` stand nowhere: who is not done with them has
    /// lost them.
    fn restore_gap(&mut self, sequence: u64, memory: &mut Memory) {
        let first = self.log.next_sequence();
        if sequence <= first {
            return;
        }
        self.log.go_on_at(sequence);
        for nth in 0..self.turns.len() {
            let Some((subscription, parts)) = self.parts(self.turns[nth], memory) else { continue };
            let holes = subscription.held_ranges(first, sequence);
            for (from, to) in holes {
                subscription.skips.add(from, to);
                subscription.counters.entered += to - from;
                subscription.counters.lost_damaged += to - from;
                parts.counters.lost_damaged += to - from;
            }
        }
    }

    /// Messages `first..end` are in the log, and whoever is done with them gives them up.
    fn share_out(
        &mut self,
        (first, end): (u64, u64),
        bytes_of: &dyn Fn(u64, u64) -> u64,
        all: &mut [Restoring],
        now: Now,
        memory: &mut Memory,
    ) {
        let at = self.log.start_of_last();
        self.counters.published += end - first;
        for restoring in all {
            let Some((subscription, mut parts)) = self.parts(restoring.key, memory) else {
                continue;
            };
            let held = subscription.held_ranges(first, end);
            let mut count = 0;
            for &(from, to) in &held {
                subscription.handle_appended(to - from, bytes_of(from, to));
                count += to - from;
            }
            subscription.take_failed(&held, &mut restoring.failures, at, now, &mut parts);
            if count < end - first {
                let chunk = parts.log.settle(at).map_or(at.chunk, |at| at.chunk);
                parts.log.done(chunk, (end - first - count) as u32);
            }
        }
    }
}

impl Subscription {
    /// What of `first..end` it is not done with.
    fn held_ranges(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut from, mut held) = (first.max(self.cursor_sequence), Vec::new());
        while from < end {
            if let Some(past) = self.skips.end_of(from) {
                from = past;
                continue;
            }
            let to = self.skips.next_from(from).map_or(end, |next| next.min(end));
            held.push((from, to));
            from = to;
        }
        held
    }

    /// Those of the messages just added that failed before wait, or are dead, at their old place.
    fn take_failed(
        &mut self,
        held: &[(u64, u64)],
        failures: &mut VecDeque<Failure>,
        at: Position,
        now: Now,
        parts: &mut Parts<'_>,
    ) {
        for &(from, to) in held {
            while let Some(&failure) = failures.front() {
                let failure_end = failure.first + u64::from(failure.count);
                let (first, end) = (failure.first.max(from), failure_end.min(to));
                if failure.first >= to {
                    break;
                }
                if first < end {
                    self.put_failed(first, end, &failure, at, now, parts);
                }
                if failure_end > to {
                    break;
                }
                failures.pop_front();
            }
        }
        self.settle_charge(parts);
    }

    fn put_failed(
        &mut self,
        first: u64,
        end: u64,
        failure: &Failure,
        at: Position,
        now: Now,
        parts: &mut Parts<'_>,
    ) {
        let (mut at, mut sequence) = (parts.log.seek(at, first), first);
        let history = History {
            attempts: failure.attempts,
            failures: failure.failures,
            first_failed: Wall(failure.first_failed_us),
            last_failed: Wall(failure.last_failed_us),
        };
        let wait_ms = failure.due_us.saturating_sub(now.wall.0) / 1000;
        let is_dead = u32::from(history.failures) >= self.options.max_attempts;
        while sequence < end {
            let count_max = (end - sequence).min(crate::limits::RUN_RECORDS_MAX as u64) as u32;
            let Ok(Some((run, next))) = parts.log.run_at(at, count_max, u64::MAX) else { return };
            let (portion, count) = (Portion::whole(run, history), u64::from(run.count));
            self.skips.add(run.sequence, run.sequence + count);
            self.ready -= count;
            if failure.rejected || is_dead {
                let reason = match failure.rejected {
                    true => MoveReason::Rejected,
                    false => MoveReason::MaxAttempts,
                };
                self.dead_lettering += count;
                self.dead.put(portion, reason, Rc::from(""));
            } else if wait_ms > 0 {
                self.delayed += count;
                self.due.put_waiting(portion, now.mono.plus_ms(wait_ms));
            } else {
                self.ready += count;
                self.due.put_ready(portion);
            }
            (at, sequence) = (next, run.sequence + count);
        }
    }

    fn settle_restored(&mut self, parts: &mut Parts<'_>) {
        self.cursor_sequence = self.skips.pass(self.cursor_sequence);
        self.cursor = parts.log.seek(Position::chunk_start(0), self.cursor_sequence);
        self.span_floor = 0;
        self.span_stale = true;
        self.settle_charge(parts);
    }
}
