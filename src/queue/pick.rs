//! Messages that are taken out of a subscription from its middle: redriven, or dropped to make
//! room. What stands ahead of the cursor leaves a hole there.

use crate::protocol::error::ErrorCode;
use crate::queue::Queue;
use crate::queue::log::{Absent, Log, Position, Run};
use crate::queue::memory::Memory;
use crate::queue::portion::{History, Portion};
use crate::queue::subscription::{Parts, Subscription};

impl Queue {
    /// Drops the oldest messages of those subscriptions that are full, by the limit of this code,
    /// for a message of so many bytes: what none has in flight or on its way to another queue,
    /// from all that still have it ready or delayed. At most `count_max` of one batch, the last of
    /// which may pass `bytes_max`; but of a chunk that is on disk, and that nobody touched yet, all
    /// at once. Returns how many: none where the oldest must be read first.
    pub(super) fn drop_oldest(
        &mut self,
        (code, needed_bytes): (ErrorCode, u64),
        count_max: u32,
        bytes_max: u64,
        memory: &mut Memory,
    ) -> u64 {
        let several = self.turns.len() > 1;
        let busy = match self.busy.take() {
            Some(busy) => busy,
            None if several => self.find_busy(),
            None => Vec::new(),
        };
        // Each message more may make another one full.
        let count_max = if several { 1 } else { count_max };
        let options = self.options;
        let full = |subscription: &Subscription| match code {
            ErrorCode::QueueMessagesMax => subscription.messages() >= options.messages_max,
            ErrorCode::QueueBytesMax => subscription.bytes() + needed_bytes > options.bytes_max,
            _ => true,
        };
        let oldest = self.find_oldest(full, &busy);
        let front = |run: Run| {
            let count = self.log.front_count(&run, count_max, bytes_max)?;
            self.log.part(&run, 0, count)
        };
        let run = match oldest.map(|found| found.and_then(front)) {
            Some(Ok(run)) => run,
            Some(Err(absent)) => {
                let dropped = self.drop_chunk(absent, memory);
                self.busy = several.then_some(busy);
                return dropped;
            }
            None => {
                self.busy = several.then_some(busy);
                return 0;
            }
        };
        let mut dropped = 0;
        for key in self.turns.clone() {
            let Some((subscription, mut parts)) = self.parts(key, memory) else { continue };
            dropped += subscription.drop_run(&run, &mut parts);
        }
        // Nothing of what was dropped was in it.
        self.busy = several.then_some(busy);
        dropped
    }

    /// Drops all of an absent chunk, if those who have any of it have all of it ahead of their
    /// cursors. Else it is asked for, and the queue takes nothing until it is there. Returns how
    /// many messages.
    fn drop_chunk(&mut self, absent: Absent, memory: &mut Memory) -> u64 {
        let entry = self.log.chunk(absent.chunk);
        let (first, end) = (entry.first_sequence, entry.end_sequence());
        let (pending, bytes) = (u64::from(entry.pending), u64::from(entry.records_bytes));
        let has_all = |subscription: &Subscription| {
            let skipped = subscription.skips.next_from(first).is_some_and(|next| next < end);
            subscription.cursor_sequence <= first && !skipped
        };
        let holders = self.each().filter(|s| has_all(s)).count() as u64;
        if pending == 0 || pending != holders * (end - first) {
            self.log.want(absent);
            self.drop_waits = Some(absent.chunk);
            return 0;
        }
        for key in self.turns.clone() {
            let Some((subscription, mut parts)) = self.parts(key, memory) else { continue };
            if has_all(subscription) {
                subscription.drop_ahead_of(first, end, bytes, &mut parts);
            }
        }
        pending
    }

    /// The oldest messages in ready or delayed that nobody has in flight.
    fn find_oldest(
        &self,
        full: impl Fn(&Subscription) -> bool,
        busy: &[(u64, u64)],
    ) -> Option<Result<Run, Absent>> {
        let mut from = 0;
        loop {
            let oldest =
                self.each().filter(|s| full(s)).filter_map(|s| s.first_idle(from, &self.log));
            let (sequence, run) = oldest.min_by_key(|&(sequence, _)| sequence)?;
            let next = busy.partition_point(|&(_, busy_end)| busy_end <= sequence);
            let Ok(run) = run else {
                match busy.get(next) {
                    Some(&(first, busy_end)) if first <= sequence => from = busy_end,
                    _ => return Some(run),
                }
                continue;
            };
            let end = run.sequence + u64::from(run.count);
            match busy.get(next) {
                Some(&(first, busy_end)) if first <= run.sequence => from = busy_end,
                Some(&(first, _)) if first < end => {
                    return Some(self.log.part(&run, 0, (first - run.sequence) as u32));
                }
                _ => return Some(Ok(run)),
            }
        }
    }

    /// What any subscription has in flight or on its way, as ranges `(first, end)`, ordered.
    fn find_busy(&self) -> Vec<(u64, u64)> {
        let all = self.each().flat_map(|subscription| {
            let [in_flight, _, dead] = subscription.held();
            in_flight.into_iter().chain(dead).flat_map(Portion::sequences)
        });
        let mut busy: Vec<_> = all.map(|(first, last)| (first, last + 1)).collect();
        busy.sort_unstable();
        // Ends must be ordered too.
        busy.dedup_by(|next, before| {
            let overlaps = next.0 <= before.1;
            before.1 = if overlaps { before.1.max(next.1) } else { before.1 };
            overlaps
        });
        busy
    }
}

impl Subscription {
    /// Takes a message that is ready out for another queue. False if it is not ready; its chunk is
    /// in memory.
    pub(super) fn begin_redrive(&mut self, sequence: u64, parts: &mut Parts<'_>) -> bool {
        let picked = match self.find_ahead(sequence, parts) {
            Some((at, _)) => {
                let Ok(Some((run, _))) = parts.log.run_at(at, 1, u64::MAX) else { return false };
                self.leave_hole(&run, parts);
                Some((run, History::default()))
            }
            None => self.due.pick(sequence, parts.log),
        };
        let Some((run, history)) = picked else { return false };
        self.ready -= 1;
        self.dead_lettering += 1;
        self.dead.redrive(run, history);
        self.settle_charge(parts);
        true
    }

    /// Where a message stands that is ready and was never delivered; and how many behind it are
    /// before the next one that is skipped.
    fn find_ahead(&self, sequence: u64, parts: &Parts<'_>) -> Option<(Position, u64)> {
        let end = self.skips.next_from(sequence).unwrap_or(parts.log.next_sequence());
        if sequence < self.cursor_sequence || end <= sequence {
            return None;
        }
        Some((parts.log.seek(self.cursor, sequence), end - sequence))
    }

    /// A run ahead of the cursor is ready no more.
    fn leave_hole(&mut self, run: &Run, parts: &Parts<'_>) {
        self.skips.add(run.sequence, run.sequence + u64::from(run.count));
        self.settle_cursor(parts.log);
    }

    /// The oldest messages, not before `from`, that are ready or delayed, and their sequence.
    fn first_idle(&self, from: u64, log: &Log) -> Option<(u64, Result<Run, Absent>)> {
        let back = self.due.first_from(from, log);
        let sequence = from.max(self.cursor_sequence);
        let sequence = self.skips.end_of(sequence).unwrap_or(sequence);
        if back.is_some_and(|(back, _)| back < sequence) || sequence >= log.next_sequence() {
            return back;
        }
        let stop = self.skips.next_from(sequence).unwrap_or(u64::MAX);
        let stop = stop.min(back.map_or(u64::MAX, |(back, _)| back));
        let at = log.seek(self.cursor, sequence);
        let count_max = (stop - sequence).min(1 << 31) as u32;
        match log.run_at(at, count_max, u64::MAX) {
            Ok(found) => found.map(|(run, _)| (run.sequence, Ok(run))).or(back),
            Err(absent) => Some((sequence, Err(absent))),
        }
    }

    /// Drops all messages of a chunk, which stand ahead of the cursor.
    fn drop_ahead_of(&mut self, first: u64, end: u64, bytes: u64, parts: &mut Parts<'_>) {
        let (at, count) = (self.cursor, end - first);
        self.skips.add(first, end);
        self.settle_cursor(parts.log);
        self.uncharge(bytes);
        self.ready -= count;
        self.counters.dropped += count;
        parts.counters.dropped_oldest += count;
        parts.done_between(at, first, end);
        self.settle_charge(parts);
    }

    /// Drops messages of a run that are ready or delayed. Returns how many.
    fn drop_run(&mut self, run: &Run, parts: &mut Parts<'_>) -> u64 {
        let end = run.sequence + u64::from(run.count);
        let (ready, waiting) = self.due.remove(&(run.sequence..end));
        let count =
            |portions: &[Portion]| portions.iter().map(|p| u64::from(p.left())).sum::<u64>();
        let (mut dropped, delayed) = (count(&ready), count(&waiting));
        for portion in ready.iter().chain(&waiting) {
            self.uncharge(portion.charge());
            parts.done(portion);
        }
        let mut from = run.sequence.max(self.cursor_sequence);
        while from < end {
            if let Some(past) = self.skips.end_of(from) {
                from = past;
                continue;
            }
            let to = self.skips.next_from(from).map_or(end, |next| next.min(end));
            let skip = (from - run.sequence) as u32;
            let part = parts.log.part(run, skip, (to - from) as u32);
            let part = part.expect("the caller has just looked at it");
            self.leave_hole(&part, parts);
            self.uncharge(part.bytes);
            parts.done_run(&part);
            dropped += to - from;
            from = to;
        }
        self.ready -= dropped;
        self.delayed -= delayed;
        self.counters.dropped += dropped + delayed;
        parts.counters.dropped_oldest += dropped + delayed;
        self.settle_charge(parts);
        dropped + delayed
    }
}
