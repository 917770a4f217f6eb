//! Received messages: views into the consumer's read buffer, and copies that outlive it.

use crate::client::Properties;
use crate::client::session::consumer::{accepted_us, sequence};
use crate::client::session::{Large, Run, Session};
use crate::format::record::{Record, Records};
use crate::limits::RECORD_HEADER_BYTES;
use crate::protocol::hot::{DELIVER_REDELIVERED, DeliverHeader};
use std::cell::RefCell;

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

/// Deliveries that are done and whose acks are not sent yet.
#[derive(Debug, Default)]
pub(super) struct AckLog {
    /// Connection, first and last delivery number.
    ranges: RefCell<Vec<(u32, u64, u64)>>,
}

impl AckLog {
    #[inline]
    pub(super) fn add(&self, connection: u32, first: u64, last: u64) {
        let mut ranges = self.ranges.borrow_mut();
        match ranges.last_mut() {
            Some((known, _, end)) if *known == connection && *end + 1 == first => *end = last,
            _ => ranges.push((connection, first, last)),
        }
    }

    pub(super) fn drain(&mut self) -> std::vec::Drain<'_, (u32, u64, u64)> {
        self.ranges.get_mut().drain(..)
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
    acks: &'c AckLog,
}

impl<'c> Delivery<'c> {
    #[inline]
    fn from_record(run: &'c Run, nth: u32, record: Record<'c>, acks: &'c AckLog) -> Self {
        Delivery {
            body: record.body,
            properties: record.properties,
            sequence: sequence(&run.header, &record.header),
            accepted_us: accepted_us(&run.header, &record.header),
            number: run.header.delivery_id + u64::from(nth),
            header: &run.header,
            connection: run.connection,
            acks,
        }
    }

    fn from_large(large: &'c Large, acks: &'c AckLog) -> Self {
        Delivery {
            body: &large.body,
            properties: &large.properties,
            sequence: large.sequence,
            accepted_us: large.accepted_us,
            number: large.header.delivery_id,
            header: &large.header,
            connection: large.connection,
            acks,
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

    /// Marks it as done; sent with the next receive, flush or close.
    #[inline]
    pub fn ack(&self) {
        self.acks.add(self.connection, self.number, self.number);
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
    acks: &'c AckLog,
    from: Place,
    len: usize,
}

impl<'c> Batch<'c> {
    pub(super) fn new(
        session: &'c Session,
        ready: &'c [Ready],
        acks: &'c AckLog,
        from: Place,
        len: usize,
    ) -> Self {
        Batch { session, ready, acks, from, len }
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
            acks: self.acks,
            place: self.from,
            run: None,
            left: self.len,
        }
    }

    /// Marks all of them as done; sent with the next receive, flush or close.
    pub fn ack(&self) {
        let (mut left, mut nth) = (self.len as u64, self.from.nth);
        for ready in self.ready.iter().skip(self.from.index) {
            if left == 0 {
                break;
            }
            let take = left.min(u64::from(ready.messages() - nth));
            let first = ready.header().delivery_id + u64::from(nth);
            if take > 0 {
                self.acks.add(ready.connection(), first, first + take - 1);
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
    acks: &'c AckLog,
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
                    return Some(Delivery::from_record(run, nth, record, self.acks));
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
                    return Some(Delivery::from_large(large, self.acks));
                }
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}
