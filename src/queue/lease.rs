//! The leases of one consumer: what it was delivered, and until when it may have it.
//!
//! Leases are given in the order of deliveries and all for the same time, so they also end in that
//! order: a ring, of which only the front can have ended. What is extended leaves the ring for a
//! tree of its own, ordered by the new ends. So nothing is ever searched for what has ended.

use crate::base::time::Mono;
use crate::limits::{EXTENDED_LEASES_PER_TICK_MAX, RUN_RECORDS_MAX};
use crate::queue::memory::{Account, Budget};
use crate::queue::portion::Portion;
use crate::queue::settle::ExtendError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// So many finished leases are not worth a look.
const FINISHED_FEW: usize = 32;

/// A run in flight, or what is left of one.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Delivery id of the run's first message.
    pub first_delivery: u64,
    /// Ends then.
    pub deadline: Mono,
    /// The messages.
    pub portion: Portion,
    /// Once it is finished: so many from it on are, as far as was found, and none if nobody looked.
    finished: u32,
}

/// What one lease takes in memory: its record, and what its messages need when they come back.
pub const LEASE_BYTES: usize = size_of::<Lease>() + 2 * size_of::<(u64, Portion)>();

/// See the module.
#[derive(Default)]
pub struct Leases {
    /// By delivery id; finished ones stay until they are at the front or outnumber the others.
    runs: VecDeque<Lease>,
    /// How many of these are finished.
    finished: usize,
    /// Those with an end of their own, by delivery id of the first message left.
    extended: BTreeMap<u64, Lease>,
    by_deadline: BTreeSet<(Mono, u64)>,
    allowance: Allowance,
    /// Leases in the ring that ranges came to, the whole ones at its front apart: what they cost.
    looks: u64,
}

/// What extensions may cost in one tick. A range pays for one lease in the ring and one in the tree
/// itself, further ones are counted. Whoever names each delivery once, however cut into ranges,
/// does not come to as many as twice its leases: a range goes on to another lease only between two
/// deliveries in a row that are of different ones. In the ring there are fewer such places than
/// leases. In the tree a lease can lie within another, of which it was cut out, but no two cross,
/// so there are fewer than twice as many.
#[derive(Default)]
struct Allowance {
    /// The tick.
    now: Mono,
    /// Leases that may be counted in it.
    max: usize,
    /// How many of these are left.
    left: usize,
}

impl Allowance {
    /// Of a consumer with so many leases at this time.
    fn renew(&mut self, now: Mono, leases: usize) {
        if self.now != now {
            *self = Allowance { now, ..Allowance::default() };
        }
        let max = self.max.max(2 * leases).max(EXTENDED_LEASES_PER_TICK_MAX);
        self.left += max - self.max;
        self.max = max;
    }

    /// Takes from it what a range needs; false: it is used up, and nothing is left for the rest of
    /// the tick, so that the next range is not even looked at.
    fn take(&mut self, leases: usize) -> bool {
        let left = self.left.checked_sub(leases);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

impl Lease {
    /// Of a run that was just delivered.
    pub fn new(first_delivery: u64, deadline: Mono, portion: Portion) -> Lease {
        Lease { first_delivery, deadline, portion, finished: 0 }
    }

    /// One past the delivery id of the run's last message.
    fn end_delivery(&self) -> u64 {
        self.first_delivery + u64::from(self.portion.run.count)
    }

    /// Whether nothing of the run is done yet and all of it is in `first..=last`.
    #[inline]
    fn is_whole_in(&self, first: u64, last: u64) -> bool {
        self.portion.left() == self.portion.run.count
            && first <= self.first_delivery
            && self.end_delivery() <= last + 1
    }

    /// Where deliveries `first..=last`, which it overlaps, are in its run.
    #[inline]
    fn part(&self, first: u64, last: u64) -> (u32, u32) {
        let from = first.max(self.first_delivery) - self.first_delivery;
        let to = (last + 1).min(self.end_delivery()) - self.first_delivery;
        (from as u32, to as u32)
    }

    /// Whether anything is left of deliveries `first..=last`.
    #[inline]
    fn has_any(&self, first: u64, last: u64) -> bool {
        let (from, to) = self.part(first, last);
        self.portion.has_any(from, to)
    }

    /// Takes out what is left of deliveries `first..=last`.
    #[inline]
    fn take(&mut self, first: u64, last: u64) -> Portion {
        let (from, to) = self.part(first, last);
        self.portion.take(from, to)
    }

    fn key(&self) -> u64 {
        self.first_delivery + u64::from(self.portion.first())
    }
}

impl Leases {
    /// Records held, finished ones included: what is charged.
    pub fn records(&self) -> usize {
        self.runs.len() + self.extended.len()
    }

    /// Notes a delivery: the ids and the end are not before those of any other.
    #[inline]
    pub fn push(&mut self, lease: Lease) {
        debug_assert!(
            self.runs.back().is_none_or(|last| last.end_delivery() <= lease.first_delivery)
        );
        self.runs.push_back(lease);
    }

    /// The end of the newest lease is set: of a large message it counts from its last fragment.
    pub fn begin_newest(&mut self, deadline: Mono) {
        if let Some(lease) = self.runs.back_mut() {
            lease.deadline = deadline;
        }
    }

    /// When the next lease ends.
    #[inline]
    pub fn next_deadline(&self) -> Option<Mono> {
        let ring = self.runs.front().map(|lease| lease.deadline);
        let extended = self.by_deadline.first().map(|&(at, _)| at);
        ring.into_iter().chain(extended).min()
    }

    /// Everything in flight.
    pub fn portions(&self) -> impl Iterator<Item = &Portion> {
        let all = self.runs.iter().chain(self.extended.values());
        all.map(|lease| &lease.portion).filter(|portion| portion.left() > 0)
    }

    /// Takes what is in flight of deliveries `first..=last`. Returns how many records went.
    #[inline]
    pub fn take_range(&mut self, first: u64, last: u64, mut each: impl FnMut(Portion)) -> usize {
        // Acks in order take whole leases from the front: these leave without being copied.
        let mut gone = 0;
        while self.runs.front().is_some_and(|lease| lease.is_whole_in(first, last))
            && let Some(lease) = self.runs.pop_front()
        {
            each(lease.portion);
            gone += 1;
        }
        let mut index = self.runs.partition_point(|lease| lease.end_delivery() <= first);
        while let Some(lease) = self.runs.get_mut(index)
            && lease.first_delivery <= last
        {
            self.looks += 1;
            if lease.portion.left() == 0 {
                index = self.pass_finished(index);
                continue;
            }
            let taken = lease.take(first, last);
            self.finished += usize::from(lease.portion.left() == 0);
            if taken.left() > 0 {
                each(taken);
            }
            index += 1;
        }
        gone += self.drop_finished();
        if !self.extended.is_empty() {
            gone += self.take_extended(first, last, &mut each);
        }
        gone
    }

    /// The next lease behind this finished one that is not. All that it passes remember how far
    /// that is: however often ranges name what is finished, they do not go over it again.
    fn pass_finished(&mut self, index: usize) -> usize {
        let mut end = index;
        while let Some(lease) = self.runs.get(end)
            && lease.portion.left() == 0
        {
            end += lease.finished.max(1) as usize;
        }
        let mut at = index;
        while at < end {
            let lease = &mut self.runs[at];
            let to = at + lease.finished.max(1) as usize;
            lease.finished = (end - at) as u32;
            self.looks += 1;
            at = to;
        }
        end
    }

    /// What taking ranges has cost so far, for the tests: leases that they came to.
    pub fn looks(&self) -> u64 {
        self.looks
    }

    fn take_extended(&mut self, first: u64, last: u64, each: &mut impl FnMut(Portion)) -> usize {
        let before = self.extended.len();
        for key in self.extended_keys(first, last, usize::MAX) {
            let Some(mut lease) = self.remove_extended(key) else { continue };
            each(lease.take(first, last));
            self.insert_extended(lease);
        }
        before - self.extended.len()
    }

    /// Extended leases with something left in `first..=last`, so many at most.
    fn extended_keys(&self, first: u64, last: u64, keys_max: usize) -> Vec<u64> {
        let from = first.saturating_sub(RUN_RECORDS_MAX as u64 - 1);
        let all = self.extended.range(from..=last);
        let has_any = |lease: &Lease| lease.end_delivery() > first && lease.has_any(first, last);
        all.filter(|(_, lease)| has_any(lease)).map(|(&key, _)| key).take(keys_max).collect()
    }

    fn remove_extended(&mut self, key: u64) -> Option<Lease> {
        let lease = self.extended.remove(&key)?;
        self.by_deadline.remove(&(lease.deadline, key));
        Some(lease)
    }

    fn insert_extended(&mut self, lease: Lease) {
        if lease.portion.left() > 0 {
            let key = lease.key();
            self.by_deadline.insert((lease.deadline, key));
            self.extended.insert(key, lease);
        }
    }

    /// Sets the end of what is in flight of deliveries `first..=last`. Returns how many messages.
    ///
    /// # Errors
    /// When extensions have cost too much already at this time `now`: then none of the range is
    /// extended. When there is no memory for one more record: what came before in the range is.
    pub fn extend(
        &mut self,
        (first, last): (u64, u64),
        deadline: Mono,
        now: Mono,
        budget: &mut Budget,
    ) -> Result<u64, ExtendError> {
        self.allowance.renew(now, self.records());
        let from = self.runs.partition_point(|lease| lease.end_delivery() <= first);
        let to = self.runs.partition_point(|lease| lease.first_delivery <= last);
        let keys = self.extended_keys(first, last, self.allowance.left.saturating_add(2));
        if !self.allowance.take((to - from).saturating_sub(1) + keys.len().saturating_sub(1)) {
            let leases_max = self.allowance.max as u64;
            return Err(ExtendError::TooMany { first, last, leases_max });
        }
        // These first: what leaves the ring must not be met here again.
        let mut count = self.extend_again(&keys, (first, last), deadline, budget)?;
        let (mut index, mut full) = (from, None);
        while let Some(lease) = self.runs.get_mut(index)
            && lease.first_delivery <= last
        {
            index += 1;
            if lease.portion.left() == 0 {
                continue;
            }
            full = budget.try_charge(Account::InFlight, LEASE_BYTES).err();
            if full.is_some() {
                break;
            }
            let portion = lease.take(first, last);
            self.finished += usize::from(lease.portion.left() == 0);
            if portion.left() == 0 {
                budget.release(Account::InFlight, LEASE_BYTES);
                continue;
            }
            count += u64::from(portion.left());
            let extended = Lease::new(lease.first_delivery, deadline, portion);
            self.insert_extended(extended);
        }
        // Also where it ends early: what is finished must not stand at the front and end again.
        budget.release(Account::InFlight, LEASE_BYTES * self.drop_finished());
        full.map_or(Ok(count), |full| Err(ExtendError::MemoryFull(full)))
    }

    /// As [`Leases::extend`], for leases that have an end of their own already.
    fn extend_again(
        &mut self,
        keys: &[u64],
        (first, last): (u64, u64),
        deadline: Mono,
        budget: &mut Budget,
    ) -> Result<u64, ExtendError> {
        let mut count = 0;
        for &key in keys {
            let Some(lease) = self.extended.get(&key) else { continue };
            let splits = key < first || lease.end_delivery() > last + 1;
            if splits {
                let charged = budget.try_charge(Account::InFlight, LEASE_BYTES);
                charged.map_err(ExtendError::MemoryFull)?;
            }
            let Some(mut lease) = self.remove_extended(key) else { continue };
            let portion = lease.take(first, last);
            count += u64::from(portion.left());
            if splits && lease.portion.left() == 0 {
                budget.release(Account::InFlight, LEASE_BYTES);
            }
            let extended = Lease { portion, deadline, ..lease };
            self.insert_extended(lease);
            self.insert_extended(extended);
        }
        Ok(count)
    }

    /// Takes a lease that has ended at `now`, and how many records went.
    pub fn poll_expired(&mut self, now: Mono) -> Option<(Portion, usize)> {
        if self.runs.front().is_some_and(|lease| lease.deadline <= now) {
            let lease = self.runs.pop_front()?;
            return Some((lease.portion, 1 + self.drop_finished()));
        }
        let &(at, key) = self.by_deadline.first()?;
        if at > now {
            return None;
        }
        Some((self.remove_extended(key)?.portion, 1))
    }

    /// Takes everything.
    pub fn drain(&mut self) -> Vec<Portion> {
        let all = self.runs.drain(..).chain(std::mem::take(&mut self.extended).into_values());
        let all = all.map(|lease| lease.portion).filter(|portion| portion.left() > 0).collect();
        self.finished = 0;
        self.by_deadline.clear();
        all
    }

    /// Forgets finished leases, at the latest when they outnumber the others: one message that is
    /// never acked must not keep the leases of all that came after it. Returns how many.
    #[inline]
    fn drop_finished(&mut self) -> usize {
        let before = self.runs.len();
        while self.runs.front().is_some_and(|lease| lease.portion.left() == 0) {
            self.runs.pop_front();
            self.finished -= 1;
        }
        if self.finished > FINISHED_FEW && 2 * self.finished > self.runs.len() {
            self.runs.retain(|lease| lease.portion.left() > 0);
            self.finished = 0;
        }
        before - self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::prng::Prng;
    use crate::limits::ACK_RANGES_MAX;
    use crate::queue::log::{Position, Run};
    use crate::queue::portion::History;

    /// Leases of one message each.
    fn leases(count: u64) -> Leases {
        let mut leases = Leases::default();
        for sequence in 1..=count {
            let at = Position::chunk_start(0);
            let run = Run { at, count: 1, bytes: 10, charge: 10, sequence, large: false };
            leases.push(Lease::new(sequence, Mono(0), Portion::whole(run, History::default())));
        }
        leases
    }

    fn take(leases: &mut Leases, first: u64, last: u64) -> u64 {
        let mut taken = 0;
        leases.take_range(first, last, |portion| taken += u64::from(portion.left()));
        taken
    }

    #[test]
    fn what_is_finished_can_be_named_again_at_little_cost() {
        const LEASES: u64 = 100_000;
        let mut leases = leases(LEASES);
        // The first one keeps the others in the ring, for they do not outnumber the rest.
        let half = LEASES / 2;
        assert_eq!(take(&mut leases, 2, half), half - 1);
        let before = leases.looks();
        for nth in 0..ACK_RANGES_MAX as u64 {
            // Never the same range; each begins before or behind those that came before.
            let first = if nth % 2 == 0 { 2 + nth } else { half / 2 - nth };
            assert_eq!(take(&mut leases, first, half), 0);
        }
        assert_eq!(leases.records() as u64, LEASES);
        let looks = leases.looks() - before;
        assert!(looks <= LEASES + 8 * ACK_RANGES_MAX as u64, "{looks}");
    }

    /// However the ring is finished and shortened, no lease is missed and none is taken twice.
    #[test]
    fn each_lease_is_taken_once_whatever_was_passed_before() {
        for seed in 0..20 {
            let mut prng = Prng::new(seed);
            let mut leases = leases(2000);
            let mut left = vec![true; 2001];
            for _ in 0..3000 {
                let first = 1 + prng.below(2000);
                let last = (first + prng.below([3, 300][seed as usize % 2])).min(2000);
                let there = (first..=last)
                    .filter(|&id| std::mem::take(&mut left[id as usize]))
                    .count() as u64;
                assert_eq!(take(&mut leases, first, last), there);
                assert!(leases.records() <= 2 * leases.portions().count() + FINISHED_FEW);
            }
            let rest = left[1..].iter().filter(|left| **left).count() as u64;
            assert_eq!(take(&mut leases, 1, 2000), rest);
            assert_eq!(leases.records(), 0);
        }
    }
}
