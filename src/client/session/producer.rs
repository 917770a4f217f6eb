//! One producer handle: what is gathered, what waits for the window, what waits for its answer.
//!
//! Two counts run side by side. A message's *ordinal* is the caller's name for it and never
//! changes. Its *sequence* is the broker's, given when a batch is sent, contiguous over the records
//! of a producer id: a message that is refused for good gives its sequence to the one behind it,
//! and a new producer id counts from 1 again.
//!
//! `batches` begins with the first record that is not answered, whose sequence is
//! `answered_sequence + 1`. The first `sent` of them are sent on this connection.

use super::batch::{Fragment, Gather, OutBatch};
use super::output::Output;
use crate::base::time::Mono;
use crate::client::BrokerError;
use crate::format::properties::{PropertiesBuilder, Tag};
use crate::format::record;
use crate::limits::{BATCH_HEADER_BYTES, RECORD_CONTENT_BYTES_MAX, RECORD_HEADER_BYTES};
use std::collections::VecDeque;

/// Buffers kept to be used again.
const SPARE_BUFFERS_MAX: usize = 32;
/// Pause after a refusal that may pass, when the broker names none.
const RETRY_MS: u64 = 100;
/// Refusals in a row, without a confirm between them, that are answered by resending at once.
const RESENDS_AT_ONCE_MAX: u32 = 8;
/// Checksum mismatches in a row after which a batch is given up: its bytes are bad at home.
const CHECKSUM_RESENDS_MAX: u32 = 8;

/// What a producer is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerSettings {
    /// The queue.
    pub queue: String,
    /// Deduplicates resends; 0: none.
    pub producer_id: u64,
    /// A gathered batch is closed when its records have so many bytes.
    pub batch_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not open; the caller says when to try again, or a new connection does.
    Down,
    /// Asked for, not answered.
    Opening,
    /// Open.
    Open,
    /// Closing, to be opened again under another producer id.
    Reopening,
    /// Closing, on the caller's wish.
    Closing,
}

/// Why an open producer sends nothing although there is window.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Hold {
    /// It does.
    Nothing,
    /// The broker said BLOCKED and will say UNBLOCKED.
    Blocked,
    /// A refusal that may pass: try again then.
    Until(Mono),
    /// The queue is full, and a ping is on its way to find out whether BLOCKED follows (the queue
    /// blocks) or not (it rejects).
    Asking(BrokerError),
    /// The broker is going down; the next connection will tell.
    Draining,
}

/// The broker's answers do not fit what was sent: it is no broker, or has lost its mind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense(pub(super) &'static str);

pub(super) struct Producer {
    pub(super) handle: u32,
    pub(super) settings: ProducerSettings,
    pub(super) phase: Phase,
    pub(super) hold: Hold,
    gather: Gather,
    /// Send what is gathered as soon as the window has room.
    send_wanted: bool,
    batches: VecDeque<OutBatch>,
    sent: usize,
    /// All sequences up to here are answered.
    answered_sequence: u64,
    /// Of the next record to be sent.
    next_sequence: u64,
    /// Last sequence that was ever sent under this producer id.
    sequence_high: u64,
    /// Of the next message.
    next_ordinal: u64,
    /// All messages up to here are answered.
    answered_ordinal: u64,
    sent_bytes_total: u64,
    window_bytes_total: u64,
    /// Bytes of all frames that are kept.
    batches_bytes: usize,
    /// Largest body; 0: not known yet.
    pub(super) message_bytes_max: u64,
    /// The shard that has the queue.
    pub(super) home_shard: u32,
    /// In a row, without progress between them.
    refusals: u32,
    /// Of these, for the checksum.
    checksum_refusals: u32,
    spare: Vec<Vec<u8>>,
}

impl Producer {
    pub(super) fn new(handle: u32, settings: ProducerSettings) -> Producer {
        Producer {
            handle,
            settings,
            phase: Phase::Down,
            hold: Hold::Nothing,
            gather: Gather::new(),
            send_wanted: false,
            batches: VecDeque::new(),
            sent: 0,
            answered_sequence: 0,
            next_sequence: 1,
            sequence_high: 0,
            next_ordinal: 1,
            answered_ordinal: 0,
            sent_bytes_total: 0,
            window_bytes_total: 0,
            batches_bytes: 0,
            message_bytes_max: 0,
            home_shard: 0,
            refusals: 0,
            checksum_refusals: 0,
            spare: Vec::new(),
        }
    }

    /// Ordinal of the last message that was published.
    pub(super) fn ordinal_last(&self) -> u64 {
        self.next_ordinal - 1
    }

    /// All messages up to here are answered.
    pub(super) fn answered_ordinal(&self) -> u64 {
        self.answered_ordinal
    }

    /// Bytes that are kept: gathered, waiting, unconfirmed.
    pub(super) fn outstanding_bytes(&self) -> usize {
        self.batches_bytes + self.gather.frame_bytes()
    }

    /// Messages gathered and not in a batch yet.
    pub(super) fn gathered(&self) -> u32 {
        self.gather.records()
    }

    /// Batches that are sent and not answered.
    pub(super) fn in_flight(&self) -> usize {
        self.sent
    }

    /// Whether a batch would be sent if there were one.
    pub(super) fn can_send(&self) -> bool {
        self.phase == Phase::Open
            && self.hold == Hold::Nothing
            && self.sent == self.batches.len()
            && self.sent_bytes_total < self.window_bytes_total
    }

    /// Adds a message; true if that closed a batch. The caller has checked sizes.
    #[inline]
    pub(super) fn push(&mut self, properties: &[u8], concerns_broker: bool, body: &[u8]) -> bool {
        let content_bytes = properties.len() + body.len();
        if content_bytes > RECORD_CONTENT_BYTES_MAX {
            self.push_large(properties, body);
            return true;
        }
        let mut closed = false;
        if !self.gather.fits(content_bytes, self.settings.batch_bytes) {
            self.close_batch();
            closed = true;
        }
        let flags = if concerns_broker { record::BROKER_PROPERTIES } else { 0 };
        self.gather.push(flags, properties, body);
        self.next_ordinal += 1;
        closed
    }

    #[cold]
    fn push_large(&mut self, properties: &[u8], body: &[u8]) {
        self.close_batch();
        let mut block = PropertiesBuilder::default();
        block
            .push(Tag::BodyBytesTotal, &(body.len() as u64).to_le_bytes())
            .expect("eight bytes are no more than a block may have");
        let block = [block.bytes(), properties].concat();
        let ordinal = self.next_ordinal;
        let mut rest = body;
        let mut first = true;
        while !rest.is_empty() {
            let properties: &[u8] = if first { &block } else { &[] };
            let take = rest.len().min(self.fragment_bytes() - properties.len());
            let (piece, behind) = rest.split_at(take);
            let fragment = Fragment { first, last: behind.is_empty() };
            let batch = OutBatch::fragment(ordinal, fragment, properties, piece);
            self.batches_bytes += batch.frame_bytes();
            self.batches.push_back(batch);
            (rest, first) = (behind, false);
        }
        self.next_ordinal += 1;
    }

    fn fragment_bytes(&self) -> usize {
        RECORD_CONTENT_BYTES_MAX
    }

    /// Makes a batch of what is gathered.
    fn close_batch(&mut self) {
        let records = self.gather.records();
        if records == 0 {
            return;
        }
        let buffer = self.spare.pop().unwrap_or_default();
        let batch = self.gather.take(buffer, self.next_ordinal - u64::from(records));
        self.batches_bytes += batch.frame_bytes();
        self.batches.push_back(batch);
    }

    /// What is gathered shall go out as soon as it may.
    pub(super) fn want_send(&mut self) {
        self.send_wanted = self.gather.records() > 0;
    }

    /// Hands to `output` what the window allows.
    pub(super) fn pump(&mut self, output: &mut Output) {
        if self.phase != Phase::Open || self.hold != Hold::Nothing {
            return;
        }
        loop {
            let room = self.window_bytes_total.saturating_sub(self.sent_bytes_total);
            if self.sent == self.batches.len() {
                let least = (BATCH_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
                if !self.send_wanted || room < least {
                    return;
                }
                self.send_wanted = false;
                self.close_batch();
                continue;
            }
            if self.batches[self.sent].payload_bytes() as u64 > room {
                // With something in flight, the window will grow; without, this is all it has.
                if self.sent > 0 || !self.split_front(room as usize) {
                    return;
                }
            }
            self.send_next(output);
        }
    }

    fn send_next(&mut self, output: &mut Output) {
        let (id, sequence) = (self.settings.producer_id, self.next_sequence);
        let batch = &mut self.batches[self.sent];
        output.batch(batch.sealed(self.handle, id, sequence));
        self.sent += 1;
        self.next_sequence += batch.sequences();
        self.sequence_high = self.sequence_high.max(self.next_sequence - 1);
        self.sent_bytes_total += batch.payload_bytes() as u64;
    }

    fn split_front(&mut self, payload_bytes_max: usize) -> bool {
        let before = self.batches[0].frame_bytes();
        let Some(tail) = self.batches[0].split(payload_bytes_max) else { return false };
        self.batches_bytes -= before;
        self.batches_bytes += self.batches[0].frame_bytes() + tail.frame_bytes();
        self.batches.insert(1, tail);
        true
    }

    // ---- what the broker says ----

    /// What an open must say of this producer.
    pub(super) fn next_sequence_to_open(&self) -> u64 {
        self.answered_sequence + 1
    }

    /// The connection is gone, or the handle was closed: all that is kept is to be sent anew.
    pub(super) fn went_down(&mut self) {
        self.phase = Phase::Down;
        self.hold = Hold::Nothing;
        self.rewind();
        if self.settings.producer_id == 0 {
            // Sequences of an anonymous producer mean something within one open only.
            self.count_anew();
        }
    }

    /// The broker has opened it and holds all up to `last_sequence`.
    pub(super) fn opened(
        &mut self,
        last_sequence: u64,
        window_bytes_total: u64,
        message_bytes_max: u64,
        blocked: bool,
    ) -> Result<(), Nonsense> {
        self.phase = Phase::Open;
        self.hold = if blocked { Hold::Blocked } else { Hold::Nothing };
        self.sent_bytes_total = 0;
        self.window_bytes_total = window_bytes_total;
        self.message_bytes_max = message_bytes_max;
        self.refusals = 0;
        if self.settings.producer_id != 0 && last_sequence > self.answered_sequence {
            if self.sequence_high == 0 {
                // An id with a past of its own, from another program run: go on behind it.
                self.answered_sequence = last_sequence;
            } else {
                self.advance(last_sequence)?;
            }
        }
        self.rewind();
        Ok(())
    }

    /// All sequences up to `sequence` are answered for; true if that is news.
    pub(super) fn advance(&mut self, sequence: u64) -> Result<bool, Nonsense> {
        if sequence <= self.answered_sequence {
            return Ok(false);
        }
        if sequence > self.sequence_high {
            return Err(Nonsense("a confirm of what was never sent"));
        }
        (self.refusals, self.checksum_refusals) = (0, 0);
        while self.answered_sequence < sequence {
            let Some(front) = self.batches.front_mut() else {
                return Err(Nonsense("a confirm of what is not kept"));
            };
            let left = sequence - self.answered_sequence;
            let open = u64::from(front.records - front.answered);
            if front.fragment.is_none() && left < open {
                front.answered += left as u32;
                self.answered_sequence = sequence;
                self.answered_ordinal += left;
                break;
            }
            self.answered_sequence += front.sequences() - u64::from(front.answered);
            if front.sequences() > 0 {
                self.answered_ordinal = front.ordinal_last();
            }
            self.drop_front();
        }
        Ok(true)
    }

    /// The broker grants a window.
    pub(super) fn grant(&mut self, window_bytes_total: u64) {
        self.window_bytes_total = self.window_bytes_total.max(window_bytes_total);
    }

    /// The broker took nothing from `sequence` on: send from there when nothing holds it any more.
    pub(super) fn resume_at(&mut self, sequence: u64) -> Result<(), Nonsense> {
        if sequence == 0 || sequence > self.sequence_high + 1 {
            return Err(Nonsense("a refusal of what was never sent"));
        }
        self.advance(sequence - 1)?;
        if sequence <= self.answered_sequence {
            return Err(Nonsense("a refusal of what was confirmed"));
        }
        self.rewind();
        Ok(())
    }

    fn rewind(&mut self) {
        self.sent = 0;
        self.next_sequence = self.answered_sequence + 1;
        if let Some(front) = self.batches.front_mut() {
            self.batches_bytes -= front.frame_bytes();
            front.drop_answered();
            self.batches_bytes += front.frame_bytes();
        }
    }

    fn drop_front(&mut self) {
        let Some(batch) = self.batches.pop_front() else { return };
        self.sent = self.sent.saturating_sub(1);
        self.batches_bytes -= batch.frame_bytes();
        if self.spare.len() < SPARE_BUFFERS_MAX {
            self.spare.extend(batch.into_buffer());
        }
    }

    /// When to try again after a refusal that may pass.
    pub(super) fn retry_at(&mut self, now: Mono, error: &BrokerError) -> Hold {
        self.refusals += 1;
        let asked = error.retry_after.map(|after| after.as_millis() as u64);
        match asked {
            None if self.refusals <= RESENDS_AT_ONCE_MAX => Hold::Until(now),
            _ => Hold::Until(now.plus_ms(asked.unwrap_or(RETRY_MS))),
        }
    }

    /// Counts a refusal for the checksum; true if there were too many in a row.
    pub(super) fn checksum_fails(&mut self) -> bool {
        self.checksum_refusals += 1;
        self.checksum_refusals > CHECKSUM_RESENDS_MAX
    }

    /// The first batch was refused for good, and nothing is in flight. If it holds several
    /// messages it is halved and sent again, so that one message's fault is not the others'; else
    /// its message fails: `(first, last)` ordinals.
    pub(super) fn refuse_front(&mut self) -> Option<(u64, u64)> {
        assert!(self.sent == 0, "a refusal rewinds first");
        let records = self.batches.front()?.records;
        if self.cut_front(records / 2) { None } else { self.reject_front() }
    }

    /// The first message was refused for good, and nothing is in flight: its ordinal, twice.
    pub(super) fn refuse_first(&mut self) -> Option<(u64, u64)> {
        assert!(self.sent == 0, "a refusal rewinds first");
        self.batches.front()?;
        self.cut_front(1);
        self.reject_front()
    }

    fn cut_front(&mut self, take: u32) -> bool {
        let before = self.batches[0].frame_bytes();
        let Some(tail) = self.batches[0].split_at(take) else { return false };
        self.batches_bytes += self.batches[0].frame_bytes() + tail.frame_bytes() - before;
        self.batches.insert(1, tail);
        true
    }

    /// The messages of the first batch fail: `(first, last)` ordinals.
    pub(super) fn reject_front(&mut self) -> Option<(u64, u64)> {
        let (first, last) = (self.batches.front()?.ordinal, self.batches.front()?.ordinal_last());
        while self.batches.front().is_some_and(|batch| batch.ordinal <= last) {
            self.drop_front();
        }
        self.answered_ordinal = last;
        Some((first, last))
    }

    /// Gives up all that is not answered: `(first, last)` ordinals.
    pub(super) fn abandon(&mut self) -> Option<(u64, u64)> {
        let (first, last) = (self.answered_ordinal + 1, self.ordinal_last());
        self.close_batch();
        while !self.batches.is_empty() {
            self.drop_front();
        }
        self.answered_ordinal = last;
        (first <= last).then_some((first, last))
    }

    /// Takes another producer id, under which all that is kept counts from 1.
    pub(super) fn renew(&mut self, producer_id: u64) {
        self.settings.producer_id = producer_id;
        self.rewind();
        self.count_anew();
    }

    fn count_anew(&mut self) {
        self.answered_sequence = 0;
        self.next_sequence = 1;
        self.sequence_high = 0;
    }
}
