//! Messages whose records cannot be read any more: nobody gets them, and each subscription counts
//! those that it had.

use crate::base::slot_map::Key;
use crate::queue::log::{Log, Position};
use crate::queue::portion::Portion;
use crate::queue::subscription::{Parts, Subscription};
use std::ops::Range;

impl Subscription {
    /// Gives up messages of one chunk that it has ready, waiting, or has given up itself. What is
    /// in flight stays so until it ends.
    pub(super) fn lose(&mut self, lost: &Range<u64>, parts: &mut Parts<'_>) {
        let (ready, waiting) = self.due.remove(lost);
        let dead = self.dead.remove(lost);
        let count =
            |portions: &[Portion]| portions.iter().map(|p| u64::from(p.left())).sum::<u64>();
        let counts = [count(&ready), count(&waiting), count(&dead)];
        self.ready -= counts[0];
        self.delayed -= counts[1];
        self.dead_lettering -= counts[2];
        for portion in ready.iter().chain(&waiting).chain(&dead) {
            self.uncharge(portion.charge());
            parts.done(portion);
        }
        let ahead = self.lose_ahead(lost, parts);
        self.waits = None;
        self.span_stale = true;
        self.settle_charge(parts);
        self.note_lost(counts.iter().sum::<u64>() + ahead, parts);
    }

    /// A chunk came back with others than its own bytes in the place of what is lost: a cursor in
    /// it is sought anew, by its sequence.
    pub(super) fn forget_place_in(&mut self, chunk: u64, end_sequence: u64) {
        // One that is through stands before the next chunk, wherever in this one.
        if self.cursor.chunk == chunk && self.cursor_sequence < end_sequence {
            self.cursor = Position::chunk_start(chunk);
        }
    }

    /// Those ahead of the cursor leave a hole there.
    fn lose_ahead(&mut self, lost: &Range<u64>, parts: &mut Parts<'_>) -> u64 {
        let mut from = lost.start.max(self.cursor_sequence);
        let mut holes = Vec::new();
        while from < lost.end {
            if let Some(past) = self.skips.end_of(from) {
                from = past;
                continue;
            }
            let to = self.skips.next_from(from).map_or(lost.end, |next| next.min(lost.end));
            holes.push((from, to));
            from = to;
        }
        let count: u64 = holes.iter().map(|(from, to)| to - from).sum();
        if count == 0 {
            return 0;
        }
        let bytes = parts.log.share_of_chunk(self.cursor, lost.start, count);
        let at = self.cursor;
        for (from, to) in holes {
            self.skips.add(from, to);
            parts.done_between(at, from, to);
        }
        self.settle_cursor(parts.log);
        self.ready -= count;
        self.uncharge(bytes);
        count
    }

    /// What was in flight has ended, and some of it is lost meanwhile: the rest.
    pub(super) fn without_lost(
        &mut self,
        mut portion: Portion,
        parts: &mut Parts<'_>,
    ) -> Option<Portion> {
        if parts.log.spilled.lost.is_empty() {
            return Some(portion);
        }
        let ranges: Vec<_> = parts.log.spilled.lost.iter().collect();
        for (first, end) in ranges {
            let Some(gone) = portion.take_range(&(first..end)) else { continue };
            let count = u64::from(gone.left());
            self.in_flight -= count;
            self.uncharge(gone.charge());
            self.note_span(&gone);
            parts.done(&gone);
            self.note_lost(count, parts);
        }
        (portion.left() > 0).then_some(portion)
    }

    /// Consumers that have the front of a large message of which the rest is lost.
    pub(super) fn consumers_amid(&self, lost: &Range<u64>) -> Vec<Key> {
        let amid = self.consumers.iter().filter(|(_, consumer)| {
            consumer.large.is_some_and(|large| lost.contains(&large.run.sequence))
        });
        amid.map(|(key, _)| key).collect()
    }

    fn note_lost(&mut self, count: u64, parts: &mut Parts<'_>) {
        self.counters.lost_damaged += count;
        parts.counters.lost_damaged += count;
    }
}

impl Log {
    /// What `count` messages of the chunk with message `sequence`, which is not in front of `at`,
    /// count of its bytes: exact if it is all of them, or all are alike; nothing tells more. It
    /// needs no look into a chunk.
    fn share_of_chunk(&self, at: Position, sequence: u64, count: u64) -> u64 {
        let skipped = at.chunk.saturating_sub(self.front) as usize;
        let mut held = self.chunks.iter().skip(skipped).flatten();
        held.find(|entry| sequence < entry.end_sequence()).map_or(0, |entry| {
            u64::from(entry.records_bytes) * count / u64::from(entry.count.max(1))
        })
    }
}
