//! What is left of a run that was delivered: which of its messages still are in the state that
//! this portion stands for, and what happened to them before. One entry and a bitmap for up to 256
//! messages, however they are picked out of it.

use crate::base::time::Wall;
use crate::limits::RUN_RECORDS_MAX;
use crate::queue::log::Run;
use std::ops::Range;

const WORDS: usize = RUN_RECORDS_MAX / 64;

/// What happened to messages in one subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Deliveries.
    pub attempts: u16,
    /// Deliveries that failed.
    pub failures: u16,
    /// When they failed first; zero: never.
    pub first_failed: Wall,
    /// When they failed last.
    pub last_failed: Wall,
}

impl History {
    /// One more failure.
    pub fn fail(&mut self, wall: Wall) {
        self.failures = self.failures.saturating_add(1);
        self.note_failed(wall);
    }

    /// When it failed, if it did not before.
    pub fn note_failed(&mut self, wall: Wall) {
        if self.first_failed == Wall::default() {
            self.first_failed = wall;
        }
        self.last_failed = wall;
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Portion {
    /// The run.
    pub run: Run,
    /// What happened to its messages.
    pub history: History,
    left: u32,
    gone: [u64; WORDS],
}

impl Portion {
    /// All of a run.
    #[inline]
    pub fn whole(run: Run, history: History) -> Portion {
        debug_assert!(run.count as usize <= RUN_RECORDS_MAX);
        Portion { run, history, left: run.count, gone: [0; WORDS] }
    }

    /// Messages left.
    #[inline]
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Whether the n-th message is left.
    #[inline]
    pub fn has(&self, nth: u32) -> bool {
        self.gone[nth as usize / 64] & 1 << (nth % 64) == 0
    }

    /// Whether any message in `from..to` is left.
    #[inline]
    pub fn has_any(&self, from: u32, to: u32) -> bool {
        (0..WORDS).any(|word| mask(word, from, to) & !self.gone[word] != 0)
    }

    /// The next stretch of messages left in `from..to`, as `(skip, take)`.
    pub fn next(&self, from: u32, to: u32) -> Option<(u32, u32)> {
        let start = (from..to).find(|&nth| self.has(nth))?;
        let end = (start..to).find(|&nth| !self.has(nth)).unwrap_or(to);
        Some((start, end - start))
    }

    /// Index of the first message left.
    pub fn first(&self) -> u32 {
        self.next(0, self.run.count).map_or(self.run.count, |(skip, _)| skip)
    }

    /// Sequence of the first message left.
    pub fn first_sequence(&self) -> u64 {
        self.run.sequence + u64::from(self.first())
    }

    /// Takes out what is left in `from..to`; may be nothing.
    #[inline]
    pub fn take(&mut self, from: u32, to: u32) -> Portion {
        debug_assert!(from <= to && to <= self.run.count);
        let mut taken = Portion { left: 0, ..self.clone() };
        for word in 0..WORDS {
            let hit = mask(word, from, to) & !self.gone[word];
            self.gone[word] |= hit;
            taken.gone[word] = !hit;
            taken.left += hit.count_ones();
        }
        self.left -= taken.left;
        taken
    }

    /// Takes out what is left of the messages with these sequences, if anything is.
    pub fn take_range(&mut self, range: &Range<u64>) -> Option<Portion> {
        let held = self.run.sequence..self.run.sequence + u64::from(self.run.count);
        let from = range.start.clamp(held.start, held.end) - held.start;
        let to = range.end.clamp(held.start, held.end) - held.start;
        Some(self.take(from as u32, to.max(from) as u32)).filter(|taken| taken.left() > 0)
    }

    /// Adds what another portion of the same run has left.
    ///
    /// # Panics
    /// If it is none of the same run, or both have a message.
    pub fn add(&mut self, other: &Portion) {
        assert!(self.is_of(&other.run));
        for word in 0..WORDS {
            let added = mask(word, 0, self.run.count) & !other.gone[word];
            assert!(!self.gone[word] & added & mask(word, 0, self.run.count) == 0);
            self.gone[word] &= !added;
        }
        self.left += other.left;
        self.history.attempts = self.history.attempts.max(other.history.attempts);
        self.history.failures = self.history.failures.max(other.history.failures);
        self.history.last_failed = self.history.last_failed.max(other.history.last_failed);
        if self.history.first_failed == Wall::default() {
            self.history.first_failed = other.history.first_failed;
        }
    }

    /// Whether it is a portion of exactly this run.
    pub fn is_of(&self, run: &Run) -> bool {
        (self.run.sequence, self.run.count) == (run.sequence, run.count)
    }

    /// What its subscription accounts for the messages left.
    #[inline]
    pub fn charge(&self) -> u64 {
        if self.left == self.run.count {
            return self.run.charge;
        }
        let (mut from, mut sum) = (0, 0);
        while let Some((skip, take)) = self.next(from, self.run.count) {
            from = skip + take;
            sum += self.run.share(skip, take);
        }
        sum
    }

    /// Sequences left, as ranges `(first, last)`.
    pub fn sequences(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let (skip, take) = self.next(from, self.run.count)?;
            from = skip + take;
            let first = self.run.sequence + u64::from(skip);
            Some((first, first + u64::from(take) - 1))
        })
    }
}

/// The bits of `from..to` that fall into one word.
#[inline]
fn mask(word: usize, from: u32, to: u32) -> u64 {
    let base = word as u32 * 64;
    let (from, to) = (from.saturating_sub(base).min(64), to.saturating_sub(base).min(64));
    let below = |bits: u32| if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    below(to) & !below(from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::log::Position;

    fn portion(count: u32) -> Portion {
        let at = Position::chunk_start(0);
        let (bytes, charge) = (1003, 1003);
        let run = Run { at, count, bytes, charge, sequence: 1, large: false };
        Portion::whole(run, History::default())
    }

    #[test]
    fn a_portion_finds_what_is_left() {
        let mut all = portion(100);
        let taken = all.take(10, 70);
        assert_eq!((all.left(), taken.left()), (40, 60));
        assert_eq!((all.next(0, 100), all.next(10, 100)), (Some((0, 10)), Some((70, 30))));
        assert_eq!((taken.next(0, 100), taken.next(70, 100)), (Some((10, 60)), None));
        assert_eq!((all.next(10, 70), taken.first_sequence()), (None, 11));
        assert!(all.has_any(9, 10) && !all.has_any(10, 70) && all.has_any(10, 71));
        assert!(taken.has_any(69, 100) && !taken.has_any(70, 100) && !taken.has_any(10, 10));
        assert_eq!(all.take(0, 100).left(), 40);
        assert_eq!((all.left(), all.next(0, 100)), (0, None));
    }

    #[test]
    fn charges_add_up_however_a_run_is_cut() {
        for count in [1, 7, 100, 256] {
            let mut all = portion(count);
            let mut parts = vec![all.take(count / 3, count / 2)];
            parts.extend((0..count).step_by(3).map(|nth| all.take(nth, nth + 1)));
            parts.push(all);
            assert_eq!(parts.iter().map(Portion::charge).sum::<u64>(), 1003);
        }
    }

    #[test]
    fn what_was_taken_can_be_added_again() {
        let mut all = portion(256);
        let mut odd = all.take(255, 256);
        for nth in (1..255).step_by(2) {
            odd.add(&all.take(nth, nth + 1));
        }
        assert_eq!((all.left(), odd.left()), (128, 128));
        assert_eq!(odd.sequences().count(), 128);
        all.add(&odd);
        assert_eq!((all.left(), all.next(0, 256)), (256, Some((0, 256))));
        assert_eq!(all.sequences().collect::<Vec<_>>(), [(1, 256)]);
    }
}
