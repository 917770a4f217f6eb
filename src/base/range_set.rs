//! A set of sequences, kept as ranges; neighbours are one. Every change takes the logarithm of
//! their number, wherever it is.

use std::collections::BTreeMap;

/// What a range takes, in bytes: a tree's nodes may be half empty.
pub const RANGE_BYTES: usize = 40;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// By the first: one past the last. Neither overlapping nor touching.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is nothing in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The first sequence of all.
    #[inline]
    pub fn first(&self) -> Option<u64> {
        self.ranges.first_key_value().map(|(&first, _)| first)
    }

    /// All ranges in order, as `(first, end)`.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&first, &end)| (first, end))
    }

    /// Adds `first..end`, of which any part may be there.
    pub fn add(&mut self, mut first: u64, mut end: u64) {
        debug_assert!(first < end);
        if let Some((&before, &past)) = self.ranges.range(..=first).next_back()
            && past >= first
        {
            (first, end) = (before, end.max(past));
        }
        while let Some((&next, &past)) = self.ranges.range(first + 1..).next()
            && next <= end
        {
            self.ranges.remove(&next);
            end = end.max(past);
        }
        self.ranges.insert(first, end);
    }

    /// If `sequence` is there: the first one behind it that is not.
    pub fn end_of(&self, sequence: u64) -> Option<u64> {
        let (_, &end) = self.ranges.range(..=sequence).next_back()?;
        (sequence < end).then_some(end)
    }

    /// The first that is there and not before `sequence`.
    pub fn next_from(&self, sequence: u64) -> Option<u64> {
        match self.end_of(sequence) {
            Some(_) => Some(sequence),
            None => self.ranges.range(sequence..).next().map(|(&first, _)| first),
        }
    }

    /// Whether all of `first..end` is there.
    pub fn covers(&self, first: u64, end: u64) -> bool {
        first >= end || self.end_of(first).is_some_and(|past| past >= end)
    }

    /// A cursor has come to `sequence`: where it goes on from there. The first range, if it does
    /// not begin behind that, is taken out.
    #[inline]
    pub fn pass(&mut self, sequence: u64) -> u64 {
        match self.ranges.first_entry() {
            Some(range) if *range.key() <= sequence => range.remove().max(sequence),
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
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn neighbours_become_one() {
        let mut set = RangeSet::default();
        for (first, end) in [(10, 12), (20, 21), (12, 13), (19, 20), (13, 19), (1, 2), (30, 31)] {
            set.add(first, end);
        }
        assert_eq!(set.iter().collect::<Vec<_>>(), [(1, 2), (10, 21), (30, 31)]);
        assert_eq!((set.end_of(10), set.end_of(20), set.end_of(21)), (Some(21), Some(21), None));
        assert_eq!((set.next_from(2), set.next_from(15)), (Some(10), Some(15)));
        assert_eq!((set.pass(0), set.pass(1), set.pass(5)), (0, 2, 5));
        assert_eq!((set.pass(10), set.len()), (21, 1));
    }

    proptest! {
        #[test]
        fn it_is_a_set(ranges in vec((0..60u64, 1..12u64), 0..20), at in 0..80u64, to in 0..80u64) {
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (first, count) in ranges {
                set.add(first, first + count);
                model.extend(first..first + count);
            }
            let all: Vec<u64> = set.iter().flat_map(|(first, end)| first..end).collect();
            prop_assert_eq!(&all, &model.iter().copied().collect::<Vec<_>>());
            let ends: Vec<_> = set.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ends);
            prop_assert_eq!(set.first(), model.first().copied());
            prop_assert_eq!(set.next_from(at), model.range(at..).next().copied());
            let end = (at..).find(|sequence| !model.contains(sequence)).unwrap();
            prop_assert_eq!(set.end_of(at), (end > at).then_some(end));
            prop_assert_eq!(set.covers(at, to), (at..to).all(|sequence| model.contains(&sequence)));
            let goes_on = if set.first().is_some_and(|first| first <= at) { ends[0].1 } else { at };
            prop_assert_eq!(set.pass(at), goes_on.max(at));
        }
    }
}
