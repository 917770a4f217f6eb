//! How deliveries end: acked, given back, failed, rejected, or by the end of their lease; and how
//! that end is put off.

use crate::base::slot_map::Key;
use crate::base::time::{Mono, Now, Wall};
use crate::limits::LEASE_MS_MAX;
use crate::protocol::hot::NackKind;
use crate::queue::dead::{MoveReason, Moved};
use crate::queue::due::DUE_BYTES;
use crate::queue::lease::LEASE_BYTES;
use crate::queue::memory::{Account, MemoryFull};
use crate::queue::portion::Portion;
use crate::queue::subscription::{Parts, Subscription};
use std::rc::Rc;

/// Entries that one look at the deadlines handles; the rest is due in the next tick.
const DUE_PER_CALL: usize = 4096;
/// What a dead letter says whose last lease ended.
const EXPIRED_TEXT: &str = "lease expired";

/// What became of an ack, a nack or an extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acked {
    /// Messages that are done, given back or extended by it.
    pub acked: u64,
    /// Messages that were in flight no more.
    pub late: u64,
}

/// The range names deliveries that were never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deliveries {first} to {last} were not given out; the last is {delivered}")]
pub struct NeverDelivered {
    /// As asked.
    pub first: u64,
    /// As asked.
    pub last: u64,
    /// The last delivery id given out completely.
    pub delivered: u64,
}

/// A lease was not extended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtendError {
    /// None of the range is.
    #[error(transparent)]
    NeverDelivered(NeverDelivered),
    /// To remember one more end there is no memory; what stands before in the range is extended.
    #[error(transparent)]
    MemoryFull(MemoryFull),
    /// Extensions of the consumer have gone over so many leases in this tick; none of the range is
    /// extended.
    #[error(
        "deliveries {first} to {last} are not extended: extensions of this consumer have gone over \
         {leases_max} leases all at once; extend each delivery once, and these again later"
    )]
    TooMany {
        /// As asked.
        first: u64,
        /// As asked.
        last: u64,
        /// How many are allowed.
        leases_max: u64,
    },
}

/// Deliveries that are not done.
#[derive(Clone, Copy, Debug)]
pub struct NackRequest<'a> {
    /// What became of them.
    pub kind: NackKind,
    /// First delivery id.
    pub first: u64,
    /// Last delivery id.
    pub last: u64,
    /// Of failed ones: when they are ready again; `None`: by the back-off.
    pub delay_ms: Option<u32>,
    /// Why, for people; may be empty.
    pub text: &'a str,
}

/// A text that is kept once for all dead letters of one verb.
struct Text<'a> {
    text: &'a str,
    kept: Option<Rc<str>>,
}

impl<'a> Text<'a> {
    fn new(text: &'a str) -> Self {
        Text { text, kept: None }
    }

    fn keep(&mut self) -> Rc<str> {
        Rc::clone(self.kept.get_or_insert_with(|| self.text.into()))
    }
}

impl Subscription {
    /// Ends deliveries `first..=last` of a consumer: they are done.
    ///
    /// # Errors
    /// If some of them were never given out; then none is ended.
    pub(super) fn ack(
        &mut self,
        key: Key,
        first: u64,
        last: u64,
        parts: &mut Parts<'_>,
    ) -> Result<Acked, NeverDelivered> {
        self.check_range(key, first, last)?;
        let Some(consumer) = self.consumers.at_mut(key) else {
            return Ok(Acked::default());
        };
        let (mut acked, mut bytes, mut stale) = (0, 0, false);
        let floor = self.span_floor;
        let records = consumer.leases.take_range(first, last, |portion| {
            acked += u64::from(portion.left());
            bytes += portion.charge();
            stale |= portion.run.sequence <= floor;
            parts.done(&portion);
        });
        self.span_stale |= stale;
        self.note_ended(key, acked, records, parts);
        self.count_done(acked, bytes, parts);
        Ok(Acked { acked, late: last - first + 1 - acked })
    }

    /// Ends deliveries of a consumer: they are not done.
    ///
    /// # Errors
    /// If some of them were never given out; then none is ended.
    pub(super) fn nack(
        &mut self,
        key: Key,
        nack: &NackRequest<'_>,
        now: Now,
        parts: &mut Parts<'_>,
    ) -> Result<Acked, NeverDelivered> {
        let &NackRequest { kind, first, last, .. } = nack;
        self.check_range(key, first, last)?;
        let Some(consumer) = self.consumers.at_mut(key) else {
            return Ok(Acked::default());
        };
        let mut portions = Vec::new();
        let records = consumer.leases.take_range(first, last, |portion| portions.push(portion));
        let ended = portions.iter().map(|portion| u64::from(portion.left())).sum();
        parts.memory.budget.release(Account::InFlight, LEASE_BYTES * records);
        let mut text = Text::new(nack.text);
        for mut portion in portions {
            match kind {
                NackKind::Returned => self.give_back(portion, parts),
                NackKind::Failed => self.fail(portion, nack.delay_ms, &mut text, now, parts),
                NackKind::Rejected => {
                    portion.history.note_failed(now.wall);
                    self.bury(portion, MoveReason::Rejected, &mut text, parts);
                }
            }
        }
        self.note_gone_from(key, ended);
        Ok(Acked { acked: ended, late: last - first + 1 - ended })
    }

    /// Sets the end of the leases of deliveries `first..=last` of a consumer, as far as they are
    /// in flight, to `lease_ms` from now; 0: as long as the consumer's leases are.
    ///
    /// # Errors
    /// See [`ExtendError`].
    pub(super) fn extend(
        &mut self,
        key: Key,
        (first, last): (u64, u64),
        lease_ms: u32,
        now: Now,
        parts: &mut Parts<'_>,
    ) -> Result<Acked, ExtendError> {
        self.check_range(key, first, last).map_err(ExtendError::NeverDelivered)?;
        let Some(consumer) = self.consumers.at_mut(key) else {
            return Ok(Acked::default());
        };
        let lease_ms = if lease_ms == 0 { consumer.lease_ms } else { lease_ms.min(LEASE_MS_MAX) };
        let deadline = now.mono.plus_ms(u64::from(lease_ms));
        let budget = &mut parts.memory.budget;
        let extended = consumer.leases.extend((first, last), deadline, now.mono, budget);
        self.arm(key, deadline);
        let acked = extended?;
        Ok(Acked { acked, late: last - first + 1 - acked })
    }

    /// Handles what is due: leases that have ended, waits that are over. At most so much at a time
    /// that a tick stays short; the rest is due still.
    pub(super) fn handle_deadline(&mut self, now: Now, parts: &mut Parts<'_>) {
        let mut left = DUE_PER_CALL;
        while left > 0
            && let Some(&(at, key)) = self.lease_timers.first()
            && at <= now.mono
        {
            self.lease_timers.pop_first();
            self.expire(key, &mut left, now, parts);
        }
        while left > 0
            && let Some(count) = self.due.wake(now.mono)
        {
            left -= 1;
            self.delayed -= count;
            self.ready += count;
            // It is no longer what the span begins with.
            self.span_stale = true;
        }
        self.dead.handle_deadline(now.mono);
    }

    /// When the next thing is due; `None`: nothing.
    pub(super) fn next_deadline(&self) -> Option<Mono> {
        let leases = self.lease_timers.first().map(|&(at, _)| at);
        let expires_after_ms = self.options.expires_after_ms;
        let expires = self.idle_since.filter(|_| expires_after_ms > 0);
        [
            leases,
            self.due.next_due(),
            self.dead.next_retry(),
            self.pulls.next_deadline(),
            expires.map(|since| since.plus_ms(expires_after_ms)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether it had no consumer for too long.
    pub(super) fn is_expired(&self, now: Mono) -> bool {
        let after_ms = self.options.expires_after_ms;
        after_ms > 0 && self.idle_since.is_some_and(|since| since.plus_ms(after_ms) <= now)
    }

    /// A move ended.
    pub(super) fn handle_moved(
        &mut self,
        sequence: u64,
        outcome: Result<(), &'static str>,
        now: Now,
        parts: &mut Parts<'_>,
    ) {
        match self.dead.handle_moved(sequence, outcome, now.mono) {
            Moved::Gone(run, reason) => {
                let redriven = reason == MoveReason::Redrive;
                self.dead_lettering -= 1;
                self.uncharge(run.charge);
                self.counters.redriven += u64::from(redriven);
                parts.counters.redriven += u64::from(redriven);
                self.counters.dead_lettered += u64::from(!redriven);
                parts.counters.dead_lettered += u64::from(!redriven);
                parts.done_run(&run);
            }
            Moved::Back(run, history) => {
                self.dead_lettering -= 1;
                self.ready += 1;
                self.due.put_ready(Portion::whole(run, history));
            }
            Moved::Stays | Moved::Unknown => {}
        }
        if parts.log.spilled.lost.end_of(sequence).is_some() {
            self.lose(&(sequence..sequence + 1), parts);
        }
        self.settle_charge(parts);
    }

    /// What was in flight is ready again at its old place.
    pub(super) fn give_back(&mut self, portion: Portion, parts: &mut Parts<'_>) {
        let count = u64::from(portion.left());
        self.counters.returned += count;
        parts.counters.returned += count;
        let Some(portion) = self.without_lost(portion, parts) else { return };
        let count = u64::from(portion.left());
        self.in_flight -= count;
        self.ready += count;
        self.note_span(&portion);
        if !(self.is_tight(parts) && self.due.merge_ready(&portion)) {
            self.due.put_ready(portion);
        }
        self.settle_charge(parts);
    }

    fn expire(&mut self, key: Key, left: &mut usize, now: Now, parts: &mut Parts<'_>) {
        let mut text = Text::new(EXPIRED_TEXT);
        let mut ended = 0;
        while let Some(consumer) = self.consumers.at_mut(key) {
            consumer.armed = None;
            if *left == 0 {
                break;
            }
            let Some((portion, records)) = consumer.leases.poll_expired(now.mono) else { break };
            *left -= 1;
            ended += u64::from(portion.left());
            parts.memory.budget.release(Account::InFlight, LEASE_BYTES * records);
            self.fail(portion, None, &mut text, now, parts);
        }
        let next = self.consumers.at(key).and_then(|consumer| consumer.leases.next_deadline());
        if let Some(next) = next {
            self.arm(key, next);
        }
        self.note_gone_from(key, ended);
    }

    /// What was in flight has failed: it waits, or is dead.
    fn fail(
        &mut self,
        mut portion: Portion,
        delay_ms: Option<u32>,
        text: &mut Text<'_>,
        now: Now,
        parts: &mut Parts<'_>,
    ) {
        let count = u64::from(portion.left());
        portion.history.fail(now.wall);
        self.counters.failed += count;
        parts.counters.failed += count;
        let Some(portion) = self.without_lost(portion, parts) else { return };
        let count = u64::from(portion.left());
        let failures = u32::from(portion.history.failures);
        if failures >= self.options.max_attempts {
            return self.bury(portion, MoveReason::MaxAttempts, text, parts);
        }
        let wait_ms = match delay_ms {
            Some(delay_ms) => u64::from(delay_ms),
            None => self.options.backoff.wait_ms(failures, parts.prng),
        };
        parts.note_failed(&portion, Wall(now.wall.0.saturating_add(wait_ms * 1000)), false);
        self.in_flight -= count;
        self.note_span(&portion);
        let tight = self.is_tight(parts);
        if wait_ms == 0 {
            self.ready += count;
            if !(tight && self.due.merge_ready(&portion)) {
                self.due.put_ready(portion);
            }
        } else {
            self.delayed += count;
            let due = now.mono.plus_ms(wait_ms);
            if !(tight && self.due.merge_waiting(&portion, due)) {
                self.due.put_waiting(portion, due);
            }
        }
        self.settle_charge(parts);
    }

    /// What was in flight is dead: another queue shall have it.
    fn bury(
        &mut self,
        portion: Portion,
        reason: MoveReason,
        text: &mut Text<'_>,
        parts: &mut Parts<'_>,
    ) {
        let Some(portion) = self.without_lost(portion, parts) else { return };
        let count = u64::from(portion.left());
        parts.note_failed(&portion, Wall::default(), reason == MoveReason::Rejected);
        self.in_flight -= count;
        self.dead_lettering += count;
        self.note_span(&portion);
        if !(self.is_tight(parts) && self.dead.merge(&portion, reason, text.text)) {
            self.dead.put(portion, reason, text.keep());
        }
        self.settle_charge(parts);
    }

    /// Whether an entry more is one too many: each lease has charged one entry for its messages,
    /// so where nothing is left they share that.
    fn is_tight(&self, parts: &Parts<'_>) -> bool {
        parts.memory.budget.free_for_leases() < DUE_BYTES as u64
    }

    pub(super) fn note_span(&mut self, portion: &Portion) {
        self.span_stale |= portion.run.sequence <= self.span_floor;
    }

    fn check_range(&self, key: Key, first: u64, last: u64) -> Result<(), NeverDelivered> {
        let Some(consumer) = self.consumers.at(key) else { return Ok(()) };
        let delivered = consumer.delivered();
        if first == 0 || first > last || last > delivered {
            return Err(NeverDelivered { first, last, delivered });
        }
        Ok(())
    }

    /// Messages of a consumer are done, and so are records of its leases.
    fn note_ended(&mut self, key: Key, count: u64, records: usize, parts: &mut Parts<'_>) {
        parts.memory.budget.release(Account::InFlight, LEASE_BYTES * records);
        self.in_flight -= count;
        self.note_gone_from(key, count);
    }

    /// A consumer has fewer in flight, and so perhaps room.
    fn note_gone_from(&mut self, key: Key, count: u64) {
        let Some(consumer) = self.consumers.at_mut(key) else { return };
        consumer.in_flight -= count;
        if consumer.unacked_max != u64::MAX {
            self.enqueue(key);
        }
    }
}
