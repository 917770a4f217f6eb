//! What a subscription works on besides itself: the log and the rest of its queue. Here it gives up
//! messages, and says of a durable queue that it does.

use crate::base::prng::Prng;
use crate::base::time::Wall;
use crate::format::change::Failure;
use crate::queue::counters::Counters;
use crate::queue::log::{Log, Position, Run};
use crate::queue::memory::Memory;
use crate::queue::outbox::Outbox;
use crate::queue::policy::QueueBounds;
use crate::queue::portion::{History, Portion};

/// The parts of a queue that a subscription works on.
pub struct Parts<'a> {
    /// The messages.
    pub log: &'a mut Log,
    /// What is counted.
    pub counters: &'a mut Counters,
    /// The budget of leases.
    pub memory: &'a mut Memory,
    /// The bounds of the queue.
    pub bounds: &'a QueueBounds,
    /// For the jitter of back-offs.
    pub prng: &'a mut Prng,
    /// Of a durable queue: what its journal is to be told; and the subscription's number there.
    pub outbox: Option<(&'a mut Outbox, u64)>,
}

impl Parts<'_> {
    /// The subscription is done with what is left of a run.
    #[inline]
    pub(super) fn done(&mut self, portion: &Portion) {
        if let Some((outbox, number)) = &mut self.outbox {
            for (first, last) in portion.sequences() {
                outbox.note_done(*number, first, last + 1);
            }
        }
        self.log.done(portion.run.at.chunk, portion.left());
    }

    /// The subscription is done with a run.
    #[inline]
    pub(super) fn done_run(&mut self, run: &Run) {
        if let Some((outbox, number)) = &mut self.outbox {
            outbox.note_done(*number, run.sequence, run.sequence + u64::from(run.count));
        }
        self.log.done(run.at.chunk, run.count);
    }

    /// The subscription is done with messages `first..end`, as far as they stand in the chunk of
    /// `at` or behind it; `at` is not behind the first.
    pub(super) fn done_between(&mut self, at: Position, first: u64, end: u64) {
        if first < end
            && let Some((outbox, number)) = &mut self.outbox
        {
            outbox.note_done(*number, first, end);
        }
        self.log.done_between(at, first, end);
    }

    /// Messages failed, and are due again at `due`.
    pub(super) fn note_failed(&mut self, portion: &Portion, due: Wall, rejected: bool) {
        if let Some((outbox, number)) = &mut self.outbox {
            failures(portion, due, rejected).for_each(|failure| {
                outbox.note_failed(*number, failure);
            });
        }
    }
}

/// What the journal says of failed messages.
pub(super) fn failures(
    portion: &Portion,
    due: Wall,
    rejected: bool,
) -> impl Iterator<Item = Failure> + '_ {
    let History { attempts, failures, first_failed, last_failed } = portion.history;
    portion.sequences().map(move |(first, last)| Failure {
        first,
        count: (last - first + 1) as u32,
        attempts,
        failures,
        first_failed_us: first_failed.0,
        last_failed_us: last_failed.0,
        due_us: due.0,
        rejected,
    })
}
