//! Leases as a client knows them, and what it may conclude from the answer to an ack, nack or
//! extend. The broker says how many deliveries were late, not which; the client knows two times for
//! each: before one the lease cannot have ended, at the other it must have.

use crate::protocol::frame::Opcode;
use crate::protocol::hot::{AckDone, NackKind};
use crate::sim::Checked;
use crate::sim::model::{At, Holder};
use crate::sim::rules::Feed;

/// A delivery that its consumer has not settled yet.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// The delivery.
    pub at: At,
    /// It cannot end earlier.
    pub may_end_ns: u64,
    /// It has ended by then.
    pub ends_ns: u64,
    /// How often it was to be extended.
    pub extends: u32,
}

/// What is asked for a delivery.
#[derive(Clone, Copy, Debug)]
pub enum Verb {
    /// It is done.
    Ack,
    /// It is not, and ready again after so many milliseconds, where they are given.
    Nack(NackKind, Option<u32>),
    /// It needs so many milliseconds more.
    Extend(u32),
}

impl Verb {
    /// Of the frame that asks for it.
    pub fn opcode(self) -> Opcode {
        match self {
            Verb::Ack => Opcode::Ack,
            Verb::Nack(..) => Opcode::Nack,
            Verb::Extend(_) => Opcode::Extend,
        }
    }
}

/// A delivery in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// Whose it is.
    pub feed: Feed,
    /// The subscription's generation that the consumer is in.
    pub generation: u64,
    /// See [`Holder`].
    pub holder: Holder,
    /// Handle of the consumer.
    pub handle: u32,
    /// The delivery.
    pub delivery_id: u64,
    /// As it was when the frame was sent.
    pub lease: Lease,
    /// What is asked.
    pub verb: Verb,
}

/// What an ack, nack or extend frame asked for, to be compared with its answer.
#[derive(Clone, Debug, Default)]
pub struct SettleAsked {
    /// When it was sent.
    pub sent_ns: u64,
    /// The broker had done by then all that was due at this time.
    pub ticked_ns: u64,
    /// Deliveries that the consumer held.
    pub deliveries: Vec<Settled>,
    /// Deliveries that were settled before.
    pub late: u64,
    /// Subscription and generation of all its consumers, so that a deleted one excuses the broker.
    pub generations: Vec<(Feed, u64)>,
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was in flight, and the verb was carried out.
    InTime,
    /// Its lease had ended.
    Late,
    /// One of the two.
    Unknown,
}

impl SettleAsked {
    /// What became of each delivery, by an answer that came at `now_ns`.
    ///
    /// # Errors
    /// If the answer cannot be.
    pub fn verdicts(&self, done: AckDone, now_ns: u64) -> Checked<Vec<Verdict>> {
        let in_time = |of: &Settled| of.lease.may_end_ns > now_ns;
        let ended = |of: &Settled| of.lease.ends_ns <= self.ticked_ns;
        let count = |what: &dyn Fn(&Settled) -> bool| {
            self.deliveries.iter().filter(|of| what(of)).count() as u64
        };
        let (sure, gone) = (count(&in_time), self.late + count(&ended));
        let total = self.deliveries.len() as u64 + self.late;
        if done.acked + done.late != total || done.acked < sure || done.late < gone {
            return Err(format!(
                "{done:?} for {total} deliveries, of which {sure} are in time and {gone} late: \
                 now {now_ns}, {self:?}"
            ));
        }
        let verdict = |of: &Settled| match () {
            () if in_time(of) => Verdict::InTime,
            () if ended(of) => Verdict::Late,
            () if done.late == gone => Verdict::InTime,
            () if done.acked == sure => Verdict::Late,
            () => Verdict::Unknown,
        };
        Ok(self.deliveries.iter().map(verdict).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::net::LineId;

    fn asked(leases: &[(u64, u64)]) -> SettleAsked {
        let settled = |&(may_end_ns, ends_ns): &(u64, u64)| Settled {
            feed: Feed { queue: 0, nth: 0 },
            generation: 1,
            holder: Holder { line: LineId(1), serial: 1 },
            handle: 1,
            delivery_id: 1,
            lease: Lease { at: At { sequence: 1, attempts: 1 }, may_end_ns, ends_ns, extends: 0 },
            verb: Verb::Ack,
        };
        let deliveries = leases.iter().map(settled).collect();
        SettleAsked { sent_ns: 50, ticked_ns: 40, deliveries, ..SettleAsked::default() }
    }

    #[test]
    fn what_cannot_be_known_is_not() {
        let asked = asked(&[(100, 120), (20, 30), (45, 70), (45, 70)]);
        let verdicts = |acked, late| asked.verdicts(AckDone { acked, late }, 60);
        use Verdict::{InTime, Late, Unknown};
        assert_eq!(verdicts(3, 1), Ok(vec![InTime, Late, InTime, InTime]));
        assert_eq!(verdicts(1, 3), Ok(vec![InTime, Late, Late, Late]));
        assert_eq!(verdicts(2, 2), Ok(vec![InTime, Late, Unknown, Unknown]));
        assert!(verdicts(4, 0).is_err(), "one lease had ended");
        assert!(verdicts(0, 4).is_err(), "one lease could not have");
        assert!(verdicts(2, 1).is_err(), "one delivery is forgotten");
    }
}
