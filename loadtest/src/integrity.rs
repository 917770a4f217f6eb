//! Counts what was lost, doubled, out of order or damaged, from the stamps of what arrived.
//!
//! One producer's messages that arrive in order cost one comparison. With several consumers they
//! arrive in blocks out of order between consumers, which is right; within one consumer they must
//! rise.

use crate::body::{Bodies, Stamp};
use serde::Serialize;
use std::collections::VecDeque;

/// A hole longer than this many messages is given up as lost, to bound the memory it takes.
const SPAN_MAX: u64 = 1 << 27;

/// What a run found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IntegrityCounts {
    /// Different messages that arrived.
    pub received: u64,
    /// Sent and confirmed, but never arrived.
    pub lost: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Arrived at a consumer after a later one of the same producer, for the first time.
    pub reordered: u64,
    /// Arrived with other bytes than were sent, or from no known producer.
    pub corrupt: u64,
}

impl IntegrityCounts {
    /// Both together.
    pub fn plus(self, other: IntegrityCounts) -> IntegrityCounts {
        IntegrityCounts {
            received: self.received + other.received,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            corrupt: self.corrupt + other.corrupt,
        }
    }

    /// Whether nothing went wrong.
    pub fn is_clean(&self) -> bool {
        self.lost + self.duplicated + self.reordered + self.corrupt == 0
    }

    /// For people.
    pub fn line(&self, confirmed: u64) -> String {
        let IntegrityCounts { lost, duplicated, reordered, corrupt, .. } = self;
        format!(
            "lost {lost}, duplicated {duplicated}, reordered {reordered}, corrupt {corrupt} \
             of {confirmed} confirmed"
        )
    }
}

/// A sum over messages, whatever their order: of all that was sent and of all that arrived it is
/// the same, if each arrived once. It is taken over the stamps, which say what every byte of a body
/// is; [`Integrity::take`] compares them all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(u64);

impl Digest {
    /// Adds a message.
    #[inline]
    pub fn add(&mut self, stamp: Stamp, body_bytes: usize) {
        let who = (u64::from(stamp.producer) << 48) | stamp.sequence;
        let mixed = (who ^ stamp.time_ns.rotate_left(24)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ mixed >> 29 ^ body_bytes as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
        self.0 = self.0.wrapping_add(mixed ^ mixed >> 32);
    }

    /// Both together.
    pub fn plus(self, other: Digest) -> Digest {
        Digest(self.0.wrapping_add(other.0))
    }

    /// For people.
    pub fn hex(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// Which of one producer's messages have arrived.
#[derive(Default)]
struct Seen {
    /// All before this have arrived or were given up.
    next: u64,
    /// Bits from `next` rounded down to 64 on; empty while all is in order.
    ahead: VecDeque<u64>,
    /// Sequence of the first bit.
    ahead_start: u64,
    received: u64,
}

impl Seen {
    /// Whether the message is new.
    #[inline]
    fn add(&mut self, sequence: u64) -> bool {
        if sequence == self.next && self.ahead.is_empty() {
            self.next += 1;
            self.received += 1;
            return true;
        }
        self.add_ahead(sequence)
    }

    fn add_ahead(&mut self, sequence: u64) -> bool {
        if sequence < self.next {
            return false;
        }
        if self.ahead.is_empty() {
            self.ahead_start = self.next / 64 * 64;
            self.ahead.push_back((1 << (self.next % 64)) - 1);
        }
        if sequence - self.ahead_start >= SPAN_MAX {
            self.ahead.clear();
            self.next = sequence + 1;
            self.received += 1;
            return true;
        }
        let word = ((sequence - self.ahead_start) / 64) as usize;
        if word >= self.ahead.len() {
            self.ahead.resize(word + 1, 0);
        }
        let bit = 1 << (sequence % 64);
        if self.ahead[word] & bit != 0 {
            return false;
        }
        self.ahead[word] |= bit;
        self.received += 1;
        self.close_up();
        true
    }

    /// Moves `next` over all that has arrived without a hole.
    #[inline]
    fn close_up(&mut self) {
        while self.ahead.front() == Some(&u64::MAX) {
            self.ahead.pop_front();
            self.ahead_start += 64;
        }
        self.next = self.ahead_start;
        if let Some(front) = self.ahead.front() {
            self.next += u64::from(front.trailing_ones());
            let filled = self.next - self.ahead_start;
            if self.ahead.len() == 1 && front >> filled == 0 {
                self.ahead.clear();
            }
        }
    }
}

/// Checks every message of a run.
pub struct Integrity {
    bodies: Bodies,
    seen: Vec<Seen>,
    /// Per consumer and producer: one more than the last sequence.
    last: Vec<u64>,
    duplicated: u64,
    reordered: u64,
    corrupt: u64,
}

impl Integrity {
    /// For messages of `producers` that arrive at `consumers`.
    pub fn new(producers: usize, consumers: usize) -> Integrity {
        Integrity {
            bodies: Bodies::default(),
            seen: (0..producers).map(|_| Seen::default()).collect(),
            last: vec![0; producers * consumers],
            duplicated: 0,
            reordered: 0,
            corrupt: 0,
        }
    }

    /// Takes a message that arrived at `consumer`; its stamp, unless it is corrupt.
    #[inline]
    pub fn take(&mut self, consumer: usize, body: &[u8]) -> Option<Stamp> {
        let stamp = self.bodies.verify(body);
        let producer = stamp.map_or(usize::MAX, |stamp| usize::from(stamp.producer));
        let (Some(stamp), Some(seen)) = (stamp, self.seen.get_mut(producer)) else {
            self.corrupt += 1;
            return None;
        };
        let new = seen.add(stamp.sequence);
        let last = &mut self.last[consumer * self.seen.len() + producer];
        if !new {
            self.duplicated += 1;
        } else if stamp.sequence < *last {
            self.reordered += 1;
        } else {
            *last = stamp.sequence + 1;
        }
        Some(stamp)
    }

    /// Different messages that have arrived.
    pub fn received(&self) -> u64 {
        self.seen.iter().map(|seen| seen.received).sum()
    }

    /// What was found, if so many messages were sent and confirmed.
    pub fn counts(&self, confirmed: u64) -> IntegrityCounts {
        let received = self.received();
        IntegrityCounts {
            received,
            lost: confirmed.saturating_sub(received),
            duplicated: self.duplicated,
            reordered: self.reordered,
            corrupt: self.corrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(producer: u16, sequence: u64) -> Vec<u8> {
        let mut body = vec![0; 40];
        Bodies::default().stamp(&mut body, Stamp { producer, sequence, time_ns: 9 });
        body
    }

    fn counts_of(consumers: usize, arrivals: &[(usize, u16, u64)], sent: u64) -> IntegrityCounts {
        let mut integrity = Integrity::new(2, consumers);
        for (consumer, producer, sequence) in arrivals {
            integrity.take(*consumer, &message(*producer, *sequence));
        }
        integrity.counts(sent)
    }

    #[test]
    fn in_order_is_clean() {
        let arrivals: Vec<_> = (0..200).map(|n| (0, (n % 2) as u16, n / 2)).collect();
        let expected = IntegrityCounts { received: 200, ..Default::default() };
        assert_eq!(counts_of(1, &arrivals, 200), expected);
    }

    #[test]
    fn blocks_between_consumers_are_no_disorder() {
        let mut arrivals = Vec::new();
        for block in [1, 0, 3, 2, 5, 4] {
            arrivals.extend((0..100).map(|n| (block as usize % 2, 0, block * 100 + n)));
        }
        let expected = IntegrityCounts { received: 600, ..Default::default() };
        assert_eq!(counts_of(2, &arrivals, 600), expected);
    }

    #[test]
    fn each_fault_is_counted_as_itself() {
        // 2 is lost, 3 and 0 come twice, 4 after 5.
        let arrivals =
            [(0, 0, 0), (0, 0, 1), (0, 0, 3), (0, 0, 3), (0, 0, 5), (0, 0, 4), (0, 0, 0)];
        let expected =
            IntegrityCounts { received: 5, lost: 1, duplicated: 2, reordered: 1, corrupt: 0 };
        assert_eq!(counts_of(1, &arrivals, 6), expected);
    }

    #[test]
    fn a_digest_knows_what_is_missing_twice_or_another_and_no_order() {
        let digest = |messages: &[(u16, u64, u64)]| {
            let mut digest = Digest::default();
            for &(producer, sequence, time_ns) in messages {
                digest.add(Stamp { producer, sequence, time_ns }, 40);
            }
            digest
        };
        let sent = digest(&[(0, 0, 5), (0, 1, 6), (1, 0, 7)]);
        assert_eq!(digest(&[(1, 0, 7), (0, 1, 6), (0, 0, 5)]), sent);
        assert_eq!(digest(&[(0, 0, 5)]).plus(digest(&[(0, 1, 6), (1, 0, 7)])), sent);
        assert_ne!(digest(&[(0, 0, 5), (0, 1, 6)]), sent);
        assert_ne!(digest(&[(0, 0, 5), (0, 1, 6), (1, 0, 7), (1, 0, 7)]), sent);
        assert_ne!(digest(&[(0, 0, 5), (0, 1, 6), (1, 0, 8)]), sent);
        assert_ne!(digest(&[(0, 0, 5), (1, 1, 6), (0, 0, 7)]), sent);
    }

    #[test]
    fn damage_and_strangers_are_corrupt() {
        let mut integrity = Integrity::new(2, 1);
        let mut body = message(0, 0);
        body[20] ^= 1;
        assert_eq!(integrity.take(0, &body), None);
        assert_eq!(integrity.take(0, &message(2, 0)), None);
        let counts = integrity.counts(1);
        assert_eq!((counts.corrupt, counts.received, counts.lost), (2, 0, 1));
    }

    #[test]
    fn a_hole_that_is_too_long_is_given_up_and_stays_lost() {
        let arrivals = [(0, 0, 0), (0, 0, 2), (0, 0, SPAN_MAX + 64), (0, 0, SPAN_MAX + 65)];
        let counts = counts_of(1, &arrivals, SPAN_MAX + 66);
        assert_eq!((counts.received, counts.lost), (4, SPAN_MAX + 62));
    }

    #[test]
    fn any_order_is_counted_right() {
        // A walk over 0..997 in steps that visit each once.
        let arrivals: Vec<_> = (0..997).map(|n| (0, 0, n * 431 % 997)).collect();
        let counts = counts_of(1, &arrivals, 997);
        assert_eq!((counts.received, counts.lost, counts.duplicated), (997, 0, 0));
        assert!(counts.reordered > 0);
    }
}
