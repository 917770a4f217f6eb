//! Received messages: views into the consumer's read buffer, and copies that outlive it.

use crate::client::session::consumer::{accepted_us, sequence};
use crate::client::session::{Large, Run, Session};
use crate::client::subscription::{delay_ms, lease_ms};
use crate::client::{ClientError, Properties};
use crate::format::record::{Record, Records};
use crate::limits::RECORD_HEADER_BYTES;
use crate::protocol::hot::{DELIVER_REDELIVERED, DeliverHeader, NackKind};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Names a delivery for a later ack. Ids from before a reconnect are known as such: the broker has
/// given those messages back to the queue, so their acks are counted as late and not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    /// Counts the connections of the consumer.
    pub(super) connection: u32,
    /// The broker's number: dense, from 1, per connection.
    pub(super) number: u64,
}

impl DeliveryId {
    /// The broker's number of the delivery: from 1, dense, anew with each connection.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// What is to be told the broker of deliveries, and is not sent yet.
#[derive(Debug, Default)]
pub(super) struct AnswerLog {
    /// Connection, first and last delivery number of those that are done.
    acks: RefCell<Vec<(u32, u64, u64)>>,
    /// The others, rare.
    others: RefCell<Vec<Answer>>,
}

/// An answer that is no ack.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) connection: u32,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) verb: Verb,
}

#[derive(Clone, Debug)]
pub(super) enum Verb {
    Nack { kind: NackKind, delay_ms: Option<u32>, text: Rc<str> },
    Extend { lease_ms: u32 },
}

impl Verb {
    pub(super) fn nack(delay: Option<Duration>, text: &str) -> Result<Verb, ClientError> {
        let delay_ms = delay.map(delay_ms).transpose()?;
        Ok(Verb::Nack { kind: NackKind::Failed, delay_ms, text: text.into() })
    }

    pub(super) fn give_back() -> Verb {
        Verb::Nack { kind: NackKind::Returned, delay_ms: None, text: "".into() }
    }

    pub(super) fn reject(text: &str) -> Verb {
        Verb::Nack { kind: NackKind::Rejected, delay_ms: None, text: text.into() }
    }

    pub(super) fn extend(lease: Option<Duration>) -> Result<Verb, ClientError> {
        Ok(Verb::Extend { lease_ms: lease.map_or(Ok(0), lease_ms)? })
    }
}

impl AnswerLog {
    #[inline]
    pub(super) fn ack(&self, connection: u32, first: u64, last: u64) {
        let mut ranges = self.acks.borrow_mut();
        match ranges.last_mut() {
            Some((known, _, end)) if *known == connection && *end + 1 == first => *end = last,
            _ => ranges.push((connection, first, last)),
        }
    }

    pub(super) fn add(&self, connection: u32, first: u64, last: u64, verb: Verb) {
        self.others.borrow_mut().push(Answer { connection, first, last, verb });
    }

    pub(super) fn drain_acks(&mut self) -> std::vec::Drain<'_, (u32, u64, u64)> {
        self.acks.get_mut().drain(..)
    }

    pub(super) fn take_others(&mut self) -> Vec<Answer> {
        std::mem::take(self.others.get_mut())
    }
}

/// Messages that came and are not all handed out.
#[derive(Debug)]
pub(super) enum Ready {
    Run(Run),
    Large(Box<Large>),
}

impl Ready {
    pub(super) fn header(&self) -> &DeliverHeader {
        match self {
            Ready::Run(run) => &run.header,
            Ready::Large(large) => &large.header,
        }
    }

    pub(super) fn connection(&self) -> u32 {
        match self {
            Ready::Run(run) => run.connection,
            Ready::Large(large) => large.connection,
        }
    }

    pub(super) fn records_bytes(&self) -> usize {
        match self {
            Ready::Run(run) => run.records_bytes(),
            Ready::Large(large) => large.records_bytes,
        }
    }

    pub(super) fn messages(&self) -> u32 {
        match self {
            Ready::Run(run) => run.header.record_count,
            Ready::Large(_) => 1,
        }
    }
}

/// A place between two ready messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Of the run or large message.
    pub(super) index: usize,
    /// Messages of it that lie before.
    pub(super) nth: u32,
    /// Bytes of its records that lie before.
    pub(super) offset: usize,
}

/// One received message, in place.
#[derive(Clone, Copy)]
pub struct Delivery<'c> {
    body: &'c [u8],
    properties: &'c [u8],
    sequence: u64,
    accepted_us: u64,
    number: u64,
    header: &'c DeliverHeader,
    connection: u32,
    answers: &'c AnswerLog,
}

impl<'c> Delivery<'c> {
    #[inline]
    fn from_record(run: &'c Run, nth: u32, record: Record<'c>, answers: &'c AnswerLog) -> Self {
        Delivery {
            body: record.body,
            properties: record.properties,
            sequence: sequence(&run.header, &record.header),
            accepted_us: accepted_us(&run.header, &record.header),
            number: run.header.delivery_id + u64::from(nth),
            header: &run.header,
            connection: run.connection,
            answers,
        }
    }

    fn from_large(large: &'c Large, answers: &'c AnswerLog) -> Self {
        Delivery {
            body: &large.body,
            properties: &large.properties,
            sequence: large.sequence,
            accepted_us: large.accepted_us,
            number: large.header.delivery_id,
            header: &large.header,
            connection: large.connection,
            answers,
        }
    }

    /// The body.
    #[inline]
    pub fn body(&self) -> &'c [u8] {
        self.body
    }

    /// The properties, read when asked for.
    #[inline]
    pub fn properties(&self) -> Properties<'c> {
        Properties::new(self.properties)
    }

    /// Its place in the queue: counts up, first in, first out.
    #[inline]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// For an ack after this view is gone.
    #[inline]
    pub fn id(&self) -> DeliveryId {
        DeliveryId { connection: self.connection, number: self.number }
    }

    /// How often it was delivered, this time included.
    #[inline]
    pub fn attempts(&self) -> u16 {
        self.header.attempts
    }

    /// Whether it was delivered before, to whomever.
    #[inline]
    pub fn redelivered(&self) -> bool {
        self.header.flags & DELIVER_REDELIVERED != 0
    }

    /// When the broker took it: microseconds since 1970 UTC.
    #[inline]
    pub fn accepted_us(&self) -> u64 {
        self.accepted_us
    }

    /// Marks it as done; sent with the next receive, flush or close. So are the verbs below.
    #[inline]
    pub fn ack(&self) {
        self.answers.ack(self.connection, self.number, self.number);
    }

    /// It failed: ready again after `delay`, or as the subscription's back-off says; dead-lettered
    /// when it failed too often. `text` says why, for people, and is cut at 1 KiB.
    ///
    /// # Errors
    /// [`ClientError::Option`] if the delay is over 7 days; it is not marked then.
    pub fn nack(&self, delay: Option<Duration>, text: &str) -> Result<(), ClientError> {
        self.answer(Verb::nack(delay, text)?);
        Ok(())
    }

    /// Gives it back untried: ready again at once, at its old place; no failure is counted.
    pub fn give_back(&self) {
        self.answer(Verb::give_back());
    }

    /// It can never be done: dead-lettered now. `text` as for [`nack`](Delivery::nack).
    pub fn reject(&self, text: &str) {
        self.answer(Verb::reject(text));
    }

    /// Its lease shall end so long after this is sent; `None`: as long as the consumer's leases
    /// are. [`Consumer::extend`](crate::client::Consumer::extend) sends at once.
    ///
    /// # Errors
    /// [`ClientError::Option`] unless the lease is 100 ms to 12 h.
    pub fn extend(&self, lease: Option<Duration>) -> Result<(), ClientError> {
        self.answer(Verb::extend(lease)?);
        Ok(())
    }

    fn answer(&self, verb: Verb) {
        self.answers.add(self.connection, self.number, self.number, verb);
    }

    pub(super) fn to_large(self) -> Box<Large> {
        Box::new(Large {
            connection: self.connection,
            header: DeliverHeader { delivery_id: self.number, ..*self.header },
            sequence: self.sequence,
            accepted_us: self.accepted_us,
            properties: self.properties.to_vec(),
            body: self.body.to_vec(),
            records_bytes: RECORD_HEADER_BYTES + self.properties.len() + self.body.len(),
            ..Large::default()
        })
    }

    /// A copy that outlives the read buffer.
    pub fn to_owned(&self) -> OwnedDelivery {
        OwnedDelivery {
            body: self.body.to_vec(),
            properties: self.properties.to_vec(),
            sequence: self.sequence,
            id: self.id(),
            attempts: self.attempts(),
            redelivered: self.redelivered(),
            accepted_us: self.accepted_us,
        }
    }
}

impl std::fmt::Debug for Delivery<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("id", &self.id())
            .field("sequence", &self.sequence)
            .field("attempts", &self.attempts())
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// A received message with memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedDelivery {
    /// The body.
    pub body: Vec<u8>,
    /// The encoded properties; see [`OwnedDelivery::properties`].
    pub properties: Vec<u8>,
    /// Its place in the queue.
    pub sequence: u64,
    /// For the ack.
    pub id: DeliveryId,
    /// 1 at the first delivery.
    pub attempts: u16,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// When the broker took it: microseconds since 1970 UTC.
    pub accepted_us: u64,
}

impl OwnedDelivery {
    /// The properties.
    pub fn properties(&self) -> Properties<'_> {
        Properties::new(&self.properties)
    }
}

/// Messages received together, in place.
#[derive(Clone, Copy)]
pub struct Batch<'c> {
    session: &'c Session,
    ready: &'c [Ready],
    answers: &'c AnswerLog,
    from: Place,
    len: usize,
}

impl<'c> Batch<'c> {
    pub(super) fn new(
        session: &'c Session,
        ready: &'c [Ready],
        answers: &'c AnswerLog,
        from: Place,
        len: usize,
    ) -> Self {
        Batch { session, ready, answers, from, len }
    }

    /// Messages in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none came in time.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The messages, in order of delivery.
    pub fn iter(&self) -> Iter<'c> {
        Iter {
            session: self.session,
            ready: self.ready,
            answers: self.answers,
            place: self.from,
            run: None,
            left: self.len,
        }
    }

    /// Marks all of them as done; sent with the next receive, flush or close. So are the verbs
    /// below, which are those of [`Delivery`] for all of them.
    pub fn ack(&self) {
        self.ranges(|connection, first, last| self.answers.ack(connection, first, last));
    }

    /// As [`Delivery::nack`].
    ///
    /// # Errors
    /// As [`Delivery::nack`].
    pub fn nack(&self, delay: Option<Duration>, text: &str) -> Result<(), ClientError> {
        self.answer(&Verb::nack(delay, text)?);
        Ok(())
    }

    /// As [`Delivery::give_back`].
    pub fn give_back(&self) {
        self.answer(&Verb::give_back());
    }

    /// As [`Delivery::reject`].
    pub fn reject(&self, text: &str) {
        self.answer(&Verb::reject(text));
    }

    /// As [`Delivery::extend`].
    ///
    /// # Errors
    /// As [`Delivery::extend`].
    pub fn extend(&self, lease: Option<Duration>) -> Result<(), ClientError> {
        self.answer(&Verb::extend(lease)?);
        Ok(())
    }

    fn answer(&self, verb: &Verb) {
        self.ranges(|connection, first, last| {
            self.answers.add(connection, first, last, verb.clone());
        });
    }

    fn ranges(&self, mut range: impl FnMut(u32, u64, u64)) {
        let (mut left, mut nth) = (self.len as u64, self.from.nth);
        for ready in self.ready.iter().skip(self.from.index) {
            if left == 0 {
                break;
            }
            let take = left.min(u64::from(ready.messages() - nth));
            let first = ready.header().delivery_id + u64::from(nth);
            if take > 0 {
                range(ready.connection(), first, first + take - 1);
            }
            left -= take;
            nth = 0;
        }
    }
}

impl<'c> IntoIterator for Batch<'c> {
    type Item = Delivery<'c>;
    type IntoIter = Iter<'c>;

    fn into_iter(self) -> Iter<'c> {
        self.iter()
    }
}

impl<'c> IntoIterator for &Batch<'c> {
    type Item = Delivery<'c>;
    type IntoIter = Iter<'c>;

    fn into_iter(self) -> Iter<'c> {
        self.iter()
    }
}

/// Walks the messages of a [`Batch`].
#[derive(Clone)]
pub struct Iter<'c> {
    session: &'c Session,
    ready: &'c [Ready],
    answers: &'c AnswerLog,
    place: Place,
    /// The run at `place`, and its records from there on.
    run: Option<(&'c Run, Records<'c>)>,
    left: usize,
}

impl<'c> Iterator for Iter<'c> {
    type Item = Delivery<'c>;

    #[inline]
    fn next(&mut self) -> Option<Delivery<'c>> {
        if self.left == 0 {
            return None;
        }
        loop {
            if let Some((run, records)) = &mut self.run {
                if let Some(record) = records.next() {
                    let nth = self.place.nth;
                    self.place.nth += 1;
                    self.left -= 1;
                    return Some(Delivery::from_record(run, nth, record, self.answers));
                }
                self.run = None;
                self.place = Place { index: self.place.index + 1, nth: 0, offset: 0 };
            }
            match self.ready.get(self.place.index)? {
                Ready::Run(run) => {
                    let records = &self.session.records(run)[self.place.offset..];
                    self.run = Some((run, Records::new(records)));
                }
                Ready::Large(large) => {
                    self.place = Place { index: self.place.index + 1, nth: 0, offset: 0 };
                    self.left -= 1;
                    return Some(Delivery::from_large(large, self.answers));
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}
