//! A queue of deadlines. Entries are never searched or removed: who set one checks, when it fires,
//! whether it still means anything, and sets the next. So arming costs a heap push and an
//! activity that merely pushes a timeout away costs nothing.

use crate::base::time::Mono;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Deadlines of things named by `T`, soonest first; equal times fire in the order of `T`.
pub struct Deadlines<T: Ord> {
    heap: BinaryHeap<Reverse<(Mono, T)>>,
}

impl<T: Ord> Default for Deadlines<T> {
    fn default() -> Self {
        Deadlines { heap: BinaryHeap::new() }
    }
}

impl<T: Ord> Deadlines<T> {
    /// `what` fires once `at` has come.
    pub fn arm(&mut self, at: Mono, what: T) {
        self.heap.push(Reverse((at, what)));
    }

    /// The soonest deadline.
    pub fn next(&self) -> Option<Mono> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one entry that is due at `now`.
    pub fn poll(&mut self, now: Mono) -> Option<T> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse((_, what))| what)
    }

    /// Entries held, stale ones included.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{Deadlines, Mono};

    #[test]
    fn fires_in_order_and_never_early() {
        let mut deadlines = Deadlines::default();
        deadlines.arm(Mono(30), 'c');
        deadlines.arm(Mono(10), 'a');
        deadlines.arm(Mono(20), 'b');
        assert_eq!(deadlines.poll(Mono(9)), None);
        assert_eq!(deadlines.poll(Mono(20)), Some('a'));
        assert_eq!(deadlines.poll(Mono(20)), Some('b'));
        assert_eq!(deadlines.poll(Mono(20)), None);
        assert_eq!(deadlines.next(), Some(Mono(30)));
    }
}
