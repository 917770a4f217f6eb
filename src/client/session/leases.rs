//! What of a consumer's deliveries is not answered, so that its leases can be extended: a bit per
//! delivery id, 64 to a block, and one deadline per block. Acks cost a few instructions per block,
//! and nothing is scanned but when an extension is due.

use crate::base::time::Mono;
use std::collections::VecDeque;

/// Deliveries of one block.
const BLOCK_IDS: u64 = 64;

struct Block {
    /// By bit: delivered and not answered.
    held: u64,
    /// When the first of them came.
    since: Mono,
    /// When half of the lease of the oldest is over.
    due: Mono,
}

/// Leases that are held, of one connection.
pub(super) struct Leases {
    lease_ms: u64,
    /// No delivery is extended for longer than this in all.
    hold_ms: u64,
    blocks: VecDeque<Block>,
    /// `(delivery id - 1) / 64` of the first block.
    first_block: u64,
    /// No block is due before; `None`: nothing is held.
    due: Option<Mono>,
}

impl Leases {
    pub(super) fn new(lease_ms: u32, hold_ms: u64) -> Leases {
        let lease_ms = u64::from(lease_ms);
        Leases { lease_ms, hold_ms, blocks: VecDeque::new(), first_block: 0, due: None }
    }

    /// When [`Leases::extend`] is to be called.
    pub(super) fn due(&self) -> Option<Mono> {
        self.due
    }

    /// Deliveries `first..=last` came. Ids count up without gaps.
    pub(super) fn delivered(&mut self, now: Mono, first: u64, last: u64) {
        let due = now.plus_ms(self.lease_ms / 2);
        self.due.get_or_insert(due);
        if self.blocks.is_empty() {
            self.first_block = (first - 1) / BLOCK_IDS;
        }
        for (block, mask) in masks(first, last) {
            let at = (block - self.first_block) as usize;
            while self.blocks.len() <= at {
                self.blocks.push_back(Block { held: 0, since: now, due });
            }
            let block = &mut self.blocks[at];
            if block.held == 0 {
                (block.since, block.due) = (now, due);
            }
            block.held |= mask;
        }
    }

    /// Deliveries `first..=last` are answered; ids that never came are no harm.
    pub(super) fn answered(&mut self, first: u64, last: u64) {
        let end = self.first_block + self.blocks.len() as u64;
        let first = first.max(self.first_block * BLOCK_IDS + 1);
        let last = last.min(end * BLOCK_IDS);
        if first > last {
            return;
        }
        for (block, mask) in masks(first, last) {
            self.blocks[(block - self.first_block) as usize].held &= !mask;
        }
        // The last block stays: more of its deliveries may come.
        while self.blocks.len() > 1 && self.blocks[0].held == 0 {
            self.blocks.pop_front();
            self.first_block += 1;
        }
        if self.blocks.len() == 1 && self.blocks[0].held == 0 {
            self.due = None;
        }
    }

    /// Gives the ranges that are to be extended now, in order, and counts them as extended. What
    /// would be due soon is among them, so that it does not take a frame of its own.
    pub(super) fn extend(&mut self, now: Mono, mut range: impl FnMut(u64, u64)) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let soon = now.plus_ms(self.lease_ms / 8);
        let again = now.plus_ms(self.lease_ms / 2);
        let mut open: Option<(u64, u64)> = None;
        let mut due_next: Option<Mono> = None;
        for (block, at) in self.blocks.iter_mut().zip(self.first_block..) {
            if block.held == 0 || block.since.plus_ms(self.hold_ms) <= now {
                continue;
            }
            if block.due <= soon {
                block.due = again;
                for (first, last) in runs(block.held) {
                    let (first, last) = (at * BLOCK_IDS + 1 + first, at * BLOCK_IDS + 1 + last);
                    match &mut open {
                        Some((_, end)) if *end + 1 == first => *end = last,
                        _ => {
                            if let Some((first, last)) = open.replace((first, last)) {
                                range(first, last);
                            }
                        }
                    }
                }
            }
            due_next = Some(due_next.map_or(block.due, |due| due.min(block.due)));
        }
        if let Some((first, last)) = open {
            range(first, last);
        }
        self.due = due_next;
    }
}

/// The blocks of an id range, each with the bits that are in it.
fn masks(first: u64, last: u64) -> impl Iterator<Item = (u64, u64)> {
    let (from, to) = (first - 1, last - 1);
    (from / BLOCK_IDS..=to / BLOCK_IDS).map(move |block| {
        let low = from.saturating_sub(block * BLOCK_IDS);
        let high = (to - block * BLOCK_IDS).min(BLOCK_IDS - 1);
        (block, (u64::MAX << low) & (u64::MAX >> (BLOCK_IDS - 1 - high)))
    })
}

/// The runs of ones in `bits`: first and last bit of each.
fn runs(mut bits: u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let first = bits.trailing_zeros();
        let length = (!(bits >> first)).trailing_zeros();
        let mask = if length == 64 { u64::MAX } else { ((1 << length) - 1) << first };
        bits &= !mask;
        Some((u64::from(first), u64::from(first + length - 1)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE_MS: u32 = 1000;

    fn extended(leases: &mut Leases, at_ms: u64) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        leases.extend(Mono::default().plus_ms(at_ms), |first, last| ranges.push((first, last)));
        ranges
    }

    fn leases() -> Leases {
        Leases::new(LEASE_MS, 3_600_000)
    }

    #[test]
    fn what_is_held_is_extended_at_half_of_its_lease() {
        let mut leases = leases();
        leases.delivered(Mono(0), 1, 200);
        leases.answered(2, 3);
        leases.answered(100, 120);
        assert_eq!(extended(&mut leases, 499), []);
        let due = leases.due().expect("something is held");
        assert_eq!(due, Mono(0).plus_ms(500));
        assert_eq!(extended(&mut leases, 500), [(1, 1), (4, 99), (121, 200)]);
        assert_eq!(extended(&mut leases, 999), []);
        leases.answered(1, 199);
        assert_eq!(extended(&mut leases, 1000), [(200, 200)]);
        leases.answered(200, 200);
        assert_eq!(leases.due(), None);
    }

    #[test]
    fn nothing_is_extended_for_ever() {
        let mut leases = Leases::new(LEASE_MS, 1200);
        leases.delivered(Mono(0), 1, 1);
        assert_eq!(extended(&mut leases, 500), [(1, 1)]);
        assert_eq!(extended(&mut leases, 1000), [(1, 1)]);
        assert_eq!(extended(&mut leases, 1500), []);
        assert_eq!(leases.due(), None);
    }

    #[test]
    fn against_a_naive_set() {
        use std::collections::BTreeSet;
        let mut dice = crate::base::prng::Prng::new(3);
        for _ in 0..50 {
            let (mut leases, mut naive, mut last) = (leases(), BTreeSet::new(), 0);
            for _ in 0..200 {
                if dice.chance(500) || last == 0 {
                    let count = dice.range(1, 150);
                    leases.delivered(Mono(0), last + 1, last + count);
                    naive.extend(last + 1..=last + count);
                    last += count;
                } else {
                    let first = dice.range(1, last);
                    let end = first + dice.below(150);
                    leases.answered(first, end);
                    naive.retain(|id| !(first..=end).contains(id));
                }
            }
            // Out of range at both ends.
            leases.answered(last + 1000, u64::MAX);
            let ranges = extended(&mut leases, 500);
            let ids: BTreeSet<u64> = ranges.iter().flat_map(|(first, to)| *first..=*to).collect();
            assert_eq!(ids, naive);
            assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        }
    }
}
