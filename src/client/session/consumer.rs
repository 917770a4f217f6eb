//! One consumer handle: which deliveries came, which acks, nacks, extensions and credit wait to be
//! sent, the message that is being put together from fragments.

use super::event::Large;
use super::leases::Leases;
use super::producer::Nonsense;
use crate::base::checksum::crc32c;
use crate::base::time::Mono;
use crate::format::properties::{self, Tag};
use crate::format::record::{self, Records};
use crate::limits::{MESSAGE_BYTES_MAX, NACK_RANGES_MAX, RUN_RECORDS_MAX};
use crate::protocol::hot::{DELIVER_FRAGMENT, DeliverHeader, ExtendRange, NackRange};

/// What a consumer is opened with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerSettings {
    /// The queue.
    pub queue: String,
    /// The subscription; empty: `default`.
    pub subscription: String,
    /// Delivered means done.
    pub auto_ack: bool,
    /// Ask for checksums, and check them.
    pub checksum: bool,
    /// First grant of messages.
    pub credit_messages: u32,
    /// First grant of bytes.
    pub credit_bytes: u64,
    /// For each delivery; 0: as long as the subscription says.
    pub lease_ms: u32,
    /// Deliveries that are not answered, at most; 0: as many as the credit allows.
    pub unacked_max: u32,
    /// Extend the leases of deliveries that are not answered, at half of the lease, until so many
    /// milliseconds after they came; 0: do not.
    pub hold_ms: u64,
    /// After a reconnect, grant the first credit again; else what is left of all that was granted.
    pub replenish: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsumerPhase {
    Down,
    Opening,
    Open,
    Closing,
}

/// What a deliver frame brought.
pub(super) enum Delivered {
    /// Whole messages, in place.
    Run,
    /// A fragment that completes its message.
    Whole(Box<Large>),
    /// A fragment that does not.
    Part,
}

pub(super) struct Consumer {
    pub(super) handle: u32,
    pub(super) settings: ConsumerSettings,
    pub(super) phase: ConsumerPhase,
    /// Last delivery id of this connection.
    delivered_last: u64,
    /// Ranges to be acked, ascending where acks come in order.
    pub(super) acks: Vec<(u64, u64)>,
    /// Texts and their ranges; one frame each.
    pub(super) nacks: Vec<(Box<str>, Vec<NackRange>)>,
    pub(super) extends: Vec<ExtendRange>,
    /// As the broker said when it opened.
    lease_ms: u32,
    /// The shard that has the queue.
    pub(super) home_shard: u32,
    /// What is not answered, where leases are to be extended.
    leases: Option<Leases>,
    /// Credit to be sent.
    pub(super) grant: (u32, u64),
    /// Credit that the broker has left, pulls apart.
    credit: (u64, u64),
    /// Messages that came by pulls and are not to be taken off the credit.
    pub(super) pulling: u32,
    partial: Option<Box<Large>>,
    /// The whole body of `partial`.
    partial_bytes: u64,
}

impl Consumer {
    pub(super) fn new(handle: u32, settings: ConsumerSettings) -> Consumer {
        let credit = (u64::from(settings.credit_messages), settings.credit_bytes);
        Consumer {
            handle,
            settings,
            phase: ConsumerPhase::Down,
            delivered_last: 0,
            acks: Vec::new(),
            nacks: Vec::new(),
            extends: Vec::new(),
            lease_ms: 0,
            home_shard: 0,
            leases: None,
            grant: (0, 0),
            credit,
            pulling: 0,
            partial: None,
            partial_bytes: 0,
        }
    }

    pub(super) fn went_down(&mut self) {
        self.phase = ConsumerPhase::Down;
        self.delivered_last = 0;
        self.acks.clear();
        self.nacks.clear();
        self.extends.clear();
        self.leases = None;
        self.pulling = 0;
        self.partial = None;
    }

    /// The credit to open with.
    pub(super) fn credit_to_open(&mut self) -> (u32, u64) {
        self.grant = (0, 0);
        if self.settings.replenish {
            self.credit = (u64::from(self.settings.credit_messages), self.settings.credit_bytes);
        }
        match self.credit {
            (0, _) | (_, 0) => (0, 0),
            (messages, bytes) => (messages.try_into().unwrap_or(u32::MAX), bytes),
        }
    }

    pub(super) fn add_credit(&mut self, messages: u32, bytes: u64) {
        self.grant = (self.grant.0.saturating_add(messages), self.grant.1.saturating_add(bytes));
        self.credit.0 += u64::from(messages);
        self.credit.1 = self.credit.1.saturating_add(bytes);
    }

    /// Marks `first..=last` as to be acked.
    #[inline]
    pub(super) fn add_ack(&mut self, first: u64, last: u64) {
        match self.acks.last_mut() {
            Some((_, end)) if *end + 1 == first => *end = last,
            _ => self.acks.push((first, last)),
        }
        if let Some(leases) = &mut self.leases {
            leases.answered(first, last);
        }
    }

    /// Marks a range as not done.
    pub(super) fn add_nack(&mut self, range: NackRange, text: &str) {
        if let Some(leases) = &mut self.leases {
            leases.answered(range.first, range.last);
        }
        let group = match self.nacks.last_mut() {
            Some((known, ranges)) if **known == *text && ranges.len() < NACK_RANGES_MAX => ranges,
            _ => {
                self.nacks.push((text.into(), Vec::new()));
                &mut self.nacks.last_mut().expect("it was pushed above").1
            }
        };
        match group.last_mut() {
            Some(last)
                if last.last + 1 == range.first
                    && (last.kind, last.delay_ms) == (range.kind, range.delay_ms) =>
            {
                last.last = range.last;
            }
            _ => group.push(range),
        }
    }

    /// Marks a range as to be extended.
    pub(super) fn add_extend(&mut self, range: ExtendRange) {
        match self.extends.last_mut() {
            Some(last) if last.last + 1 == range.first && last.lease_ms == range.lease_ms => {
                last.last = range.last;
            }
            _ => self.extends.push(range),
        }
    }

    /// The broker has opened it, and gives so long for each delivery.
    pub(super) fn opened(&mut self, lease_ms: u32, home_shard: u32) {
        self.phase = ConsumerPhase::Open;
        (self.lease_ms, self.home_shard) = (lease_ms, home_shard);
        let hold_ms = self.settings.hold_ms;
        // A lease of no time cannot be extended in time.
        let held = hold_ms > 0 && lease_ms > 0 && !self.settings.auto_ack;
        self.leases = held.then(|| Leases::new(lease_ms, hold_ms));
    }

    pub(super) fn lease_ms(&self) -> u32 {
        self.lease_ms
    }

    /// Marks what is held and was not extended for half of its lease; true if there was something.
    pub(super) fn extend_held(&mut self, now: Mono) -> bool {
        let Some(leases) = &mut self.leases else { return false };
        let (handle, before) = (self.handle, self.extends.len());
        let extends = &mut self.extends;
        leases.extend(now, |first, last| {
            extends.push(ExtendRange { handle, lease_ms: 0, first, last });
        });
        extends.len() > before
    }

    pub(super) fn extend_at(&self) -> Option<Mono> {
        self.leases.as_ref().and_then(Leases::due)
    }

    /// Takes in a deliver frame.
    pub(super) fn deliver(
        &mut self,
        header: &DeliverHeader,
        records: &[u8],
        connection: u32,
        now: Mono,
    ) -> Result<Delivered, Nonsense> {
        if header.flags & DELIVER_FRAGMENT != 0 {
            let delivered = self.deliver_fragment(header, records, connection)?;
            if matches!(delivered, Delivered::Whole(_)) {
                self.hold(now, 1);
            }
            return Ok(delivered);
        }
        let count = u64::from(header.record_count);
        if count == 0 || count > RUN_RECORDS_MAX as u64 || self.partial.is_some() {
            return Err(Nonsense("a delivery with a wrong number of records"));
        }
        self.check(header, records)?;
        self.delivered_last += count;
        self.charge(count, records.len());
        self.hold(now, count);
        Ok(Delivered::Run)
    }

    /// The last `count` deliveries are held.
    #[inline]
    fn hold(&mut self, now: Mono, count: u64) {
        if let Some(leases) = &mut self.leases {
            leases.delivered(now, self.delivered_last + 1 - count, self.delivered_last);
        }
    }

    fn check(&self, header: &DeliverHeader, records: &[u8]) -> Result<(), Nonsense> {
        if header.delivery_id != self.delivered_last + 1 {
            return Err(Nonsense("a delivery id that leaves a gap"));
        }
        let mut walk = Records::new(records);
        let mut count = 0;
        for _ in walk.by_ref() {
            count += 1;
        }
        if count != header.record_count || !walk.rest().is_empty() {
            return Err(Nonsense("a delivery whose records disagree with its header"));
        }
        self.check_crc(header, records)
    }

    fn check_crc(&self, header: &DeliverHeader, records: &[u8]) -> Result<(), Nonsense> {
        if self.settings.checksum && crc32c(records) != header.crc32c {
            return Err(Nonsense("a delivery whose checksum does not match"));
        }
        Ok(())
    }

    fn charge(&mut self, messages: u64, records_bytes: usize) {
        if self.pulling > 0 {
            self.pulling = self.pulling.saturating_sub(messages as u32);
            return;
        }
        self.credit.0 = self.credit.0.saturating_sub(messages);
        self.credit.1 = self.credit.1.saturating_sub(records_bytes as u64);
    }

    fn deliver_fragment(
        &mut self,
        header: &DeliverHeader,
        records: &[u8],
        connection: u32,
    ) -> Result<Delivered, Nonsense> {
        self.check(header, records)?;
        let record = Records::new(records).next().filter(|_| header.record_count == 1);
        let record = record.ok_or(Nonsense("a fragment that is not one record"))?;
        let flags = record.header.flags;
        if flags & record::FRAGMENT_FIRST != 0 {
            let total = properties::find_u64(record.properties, Tag::BodyBytesTotal);
            let total = total.filter(|&bytes| bytes <= MESSAGE_BYTES_MAX as u64);
            self.partial_bytes = total.ok_or(Nonsense("a first fragment without a length"))?;
            let large = Large {
                handle: self.handle,
                connection,
                header: *header,
                sequence: sequence(header, &record.header),
                accepted_us: accepted_us(header, &record.header),
                properties: without_length(record.properties),
                ..Large::default()
            };
            if self.partial.replace(Box::new(large)).is_some() {
                return Err(Nonsense("a first fragment inside a message"));
            }
        }
        let large = self.partial.as_mut().ok_or(Nonsense("a fragment without its first"))?;
        large.body.extend_from_slice(record.body);
        large.records_bytes += records.len();
        let complete = large.body.len() as u64 == self.partial_bytes;
        let last = flags & record::FRAGMENT_LAST != 0;
        if large.body.len() as u64 > self.partial_bytes || last && !complete {
            return Err(Nonsense("fragments that disagree with the length of their message"));
        }
        if !last {
            return Ok(Delivered::Part);
        }
        let large = self.partial.take().expect("it was there above");
        self.delivered_last += 1;
        self.charge(1, large.records_bytes);
        Ok(Delivered::Whole(large))
    }
}

/// When the broker took a record of a run: microseconds since 1970 UTC.
#[inline]
pub(crate) fn accepted_us(header: &DeliverHeader, record: &record::RecordHeader) -> u64 {
    header.accepted_us.saturating_add(u64::from(record.time_delta_ms) * 1000)
}

/// A record's place in the queue.
#[inline]
pub(crate) fn sequence(header: &DeliverHeader, record: &record::RecordHeader) -> u64 {
    header.base_sequence.saturating_add(u64::from(record.sequence_delta))
}

/// A properties block without the one that only ties fragments together.
fn without_length(block: &[u8]) -> Vec<u8> {
    let mut rest = Vec::with_capacity(block.len());
    for (number, value) in properties::walk(block).map_while(Result::ok) {
        if number != Tag::BodyBytesTotal as u8 {
            rest.push(number);
            rest.extend_from_slice(&(value.len() as u16).to_le_bytes());
            rest.extend_from_slice(value);
        }
    }
    rest
}
