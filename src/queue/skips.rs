//! Messages ahead of a subscription's cursor that it does not get: dropped to make room, or meant
//! for another subscription alone. Ranges of sequences; where neighbours are skipped they are one.

use std::collections::VecDeque;

/// What a range takes.
pub const SKIP_BYTES: usize = 2 * size_of::<(u64, u64)>();

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Skips {
    /// `(first, end)`, ordered, not touching.
    ranges: VecDeque<(u64, u64)>,
}

impl Skips {
    /// Ranges: what is charged.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether nothing is skipped.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// First sequence that is skipped.
    #[inline]
    pub fn first(&self) -> Option<u64> {
        self.ranges.front().map(|&(first, _)| first)
    }

    /// All ranges, as `(first, end)`.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().copied()
    }

    /// Adds sequences that are not skipped yet.
    pub fn add(&mut self, first: u64, end: u64) {
        debug_assert!(first < end);
        let index = self.ranges.partition_point(|&(_, before)| before < first);
        let joins_before = self.ranges.get(index).is_some_and(|&(_, before)| before == first);
        if joins_before {
            self.ranges[index].1 = end;
            if self.ranges.get(index + 1).is_some_and(|&(next, _)| next == end) {
                self.ranges[index].1 = self.ranges[index + 1].1;
                self.ranges.remove(index + 1);
            }
        } else if self.ranges.get(index).is_some_and(|&(next, _)| next == end) {
            self.ranges[index].0 = first;
        } else {
            self.ranges.insert(index, (first, end));
        }
    }

    /// If `sequence` is skipped: the first one behind it that is not.
    pub fn end_of(&self, sequence: u64) -> Option<u64> {
        let index = self.ranges.partition_point(|&(_, end)| end <= sequence);
        let &(first, end) = self.ranges.get(index)?;
        (first <= sequence).then_some(end)
    }

    /// The first skipped sequence that is not before `sequence`.
    pub fn next_from(&self, sequence: u64) -> Option<u64> {
        let index = self.ranges.partition_point(|&(_, end)| end <= sequence);
        self.ranges.get(index).map(|&(first, _)| first.max(sequence))
    }

    /// The cursor has come to `sequence`; where it goes on from there.
    #[inline]
    pub fn pass(&mut self, sequence: u64) -> u64 {
        match self.ranges.front() {
            Some(&(first, end)) if first <= sequence => {
                self.ranges.pop_front();
                end.max(sequence)
            }
            _ => sequence,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one() {
        let mut skips = Skips::default();
        for (first, end) in [(10, 12), (20, 21), (12, 13), (19, 20), (13, 19), (1, 2), (30, 31)] {
            skips.add(first, end);
        }
        assert_eq!(skips.iter().collect::<Vec<_>>(), [(1, 2), (10, 21), (30, 31)]);
        assert_eq!(
            (skips.end_of(10), skips.end_of(20), skips.end_of(21)),
            (Some(21), Some(21), None)
        );
        assert_eq!((skips.next_from(2), skips.next_from(15)), (Some(10), Some(15)));
        assert_eq!((skips.pass(0), skips.pass(1), skips.pass(5)), (0, 2, 5));
        assert_eq!((skips.pass(10), skips.len()), (21, 1));
    }
}
