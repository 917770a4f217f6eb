//! A producer of a well-behaved client: batches of random cuts, resends after refusals and broken
//! connections, fragments of large messages; now and then a publish that must be refused.

use crate::format::batch::{self, BatchBuilder, BatchHeader};
use crate::format::properties::{PropertiesBuilder, Tag};
use crate::format::record;
use crate::limits::{BATCH_HEADER_BYTES, DEAD_LETTER_BYTES_MAX, RECORD_HEADER_BYTES};
use crate::protocol::control::Request;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::Opcode;
use crate::protocol::hot::Confirm;
use crate::protocol::wire;
use crate::sim::body::{GHOST, Identity, compose};
use crate::sim::link::Link;
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};
use std::collections::VecDeque;

/// Where a handle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not open; may be opened at this time.
    Closed(u64),
    /// Asked for.
    Opening,
    /// Open.
    Open,
    /// To be closed, not yet answered.
    Closing,
}

/// A message that is not answered yet.
#[derive(Clone, Copy)]
struct Letter {
    number: u64,
    body_bytes: usize,
    /// It went out before.
    sent_before: bool,
    /// It may have been taken under an id that the broker has forgotten.
    doubtful: bool,
}

/// See the module.
pub struct Producer {
    /// Key in the model.
    pub key: u32,
    /// Index of its queue.
    pub queue: usize,
    /// Handle on its connection.
    pub handle: u32,
    /// Where the handle stands.
    pub phase: Phase,
    /// 0: anonymous.
    id: u64,
    generation: u64,
    next_number: u64,
    pending: VecDeque<Letter>,
    /// Sequence of the first pending letter.
    front_sequence: u64,
    /// Pending letters that were sent in this episode.
    sent: usize,
    /// Body bytes of the letter after those that went out as fragments.
    large_at: usize,
    /// Highest sequence that was ever sent under this id.
    sent_sequence: u64,
    window_total: u64,
    sent_bytes: u64,
    wait_until_ns: u64,
    /// A publish that must be refused is out.
    awaits_refusal: bool,
    large_share: u64,
    /// First and last sequence of what went out in this episode.
    batches: Vec<(u64, u64)>,
    /// What the broker had when the handle was opened, and in which generation that was.
    known_sequence: u64,
    known_generation: u64,
}

impl Producer {
    /// One that has published nothing yet.
    pub fn new(stage: &Stage, key: u32, queue: usize, handle: u32) -> Producer {
        let universe = &stage.universe;
        Producer {
            key,
            queue,
            handle,
            phase: Phase::Closed(0),
            id: if universe.chance(600) { universe.bits() | 1 } else { 0 },
            generation: 0,
            next_number: 1,
            pending: VecDeque::new(),
            front_sequence: 1,
            sent: 0,
            large_at: 0,
            sent_sequence: 0,
            window_total: 0,
            sent_bytes: 0,
            wait_until_ns: 0,
            awaits_refusal: false,
            large_share: [0, 0, 15][universe.index(3)],
            batches: Vec::new(),
            known_sequence: 0,
            known_generation: 0,
        }
    }

    /// Whether everything it has sent is answered.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether the broker owes it an answer.
    pub fn waits_for_answer(&self) -> bool {
        self.phase == Phase::Open && (self.sent > 0 || self.awaits_refusal)
    }

    /// What it waits for, for the report of a run that does not end.
    pub fn describe(&self) -> String {
        format!(
            "producer {} of queue {}: {:?}, {} pending, {} sent, front {}, window {}/{}",
            self.key,
            self.queue,
            self.phase,
            self.pending.len(),
            self.sent,
            self.front_sequence,
            self.sent_bytes,
            self.window_total
        )
    }

    fn identity(&self, number: u64) -> Identity {
        Identity { producer: self.key, number }
    }

    // ---- the handle ----

    /// Asks for the handle.
    pub fn open(&mut self, stage: &Stage, link: &mut Link, correlation: u32) {
        self.phase = Phase::Opening;
        self.generation = stage.model.generation(self.queue);
        self.episode();
        if self.id == 0 {
            self.front_sequence = 1 + stage.universe.skewed(100);
            self.sent_sequence = 0;
        }
        let queue = stage.plan.queues[self.queue].name.clone();
        let (producer_id, next_sequence) = (self.id, self.front_sequence);
        let body = wire::ProducerOpenT { queue, producer_id, next_sequence };
        link.request(self.handle, correlation, &Request::ProducerOpen(body));
    }

    /// The handle is open.
    ///
    /// # Errors
    /// If the broker knows less than it has confirmed, or more than it was sent.
    pub fn opened(&mut self, stage: &mut Stage, body: &wire::ProducerOpenedT) -> Checked {
        self.phase = Phase::Open;
        self.generation = stage.model.opened(self.queue, self.generation);
        (self.window_total, self.sent_bytes) = (body.window_bytes_total, 0);
        self.wait_until_ns = 0;
        let last = body.last_sequence;
        let confirmed = self.front_sequence - 1;
        (self.known_sequence, self.known_generation) = (last, self.generation);
        if last < confirmed {
            return Err(format!(
                "producer {:#x} was confirmed up to {confirmed}, reopened at {last}",
                self.id
            ));
        }
        if last > confirmed && last > self.sent_sequence {
            return Err(format!("{last} is known, only {} was sent", self.sent_sequence));
        }
        if last == 0 && stage.plan.forgets_producers {
            // An id of which nothing was confirmed may be a new one to the broker once more.
            for letter in &mut self.pending {
                letter.doubtful |= letter.sent_before;
            }
        }
        if self.pending.iter().any(|letter| letter.sent_before) {
            stage.universe.cover(Cover::ResumeBatch);
        }
        // What the broker has need not be sent again, but may be.
        if last > confirmed && stage.universe.chance(500) {
            self.confirm_up_to(stage, last, usize::MAX)?;
        }
        Ok(())
    }

    /// The handle could not be opened, for a reason that may pass.
    ///
    /// # Errors
    /// If there is no such reason.
    pub fn open_failed(&mut self, stage: &mut Stage, code: ErrorCode, text: &str) -> Checked {
        self.closed(stage);
        match code {
            ErrorCode::QueueNotFound | ErrorCode::MemoryLimit | ErrorCode::Draining => Ok(()),
            ErrorCode::HandlesMax if stage.plan.forgets_producers => Ok(()),
            ErrorCode::ProducerUnknown => {
                stage.universe.cover(Cover::ProducerUnknown);
                let same = self.known_generation == stage.model.generation(self.queue);
                if same && !stage.plan.forgets_producers {
                    return Err(format!("producer {:#x} was forgotten", self.id));
                }
                self.id = stage.universe.bits() | 1;
                for letter in &mut self.pending {
                    letter.doubtful |= letter.sent_before;
                }
                (self.front_sequence, self.sent_sequence) = (1, 0);
                Ok(())
            }
            _ => Err(format!("a producer could not be opened: {code} {text}")),
        }
    }

    /// The handle or its connection is gone.
    pub fn closed(&mut self, stage: &mut Stage) {
        let wait_ns = stage.universe.skewed(3_000_000);
        self.phase = Phase::Closed(stage.universe.mono().0 + wait_ns);
        self.episode();
    }

    /// Everything pending has to be sent (again).
    fn episode(&mut self) {
        for letter in self.pending.iter_mut().take(self.sent + usize::from(self.large_at > 0)) {
            letter.sent_before = true;
        }
        (self.sent, self.large_at, self.awaits_refusal) = (0, 0, false);
        self.batches.clear();
    }

    // ---- answers ----

    /// A confirm.
    ///
    /// # Errors
    /// If it confirms what was never sent, or takes window back.
    pub fn confirm(&mut self, stage: &mut Stage, confirm: &Confirm) -> Checked {
        let universe = &stage.universe;
        if confirm.window_bytes_total < self.window_total {
            return Err(format!("a window shrank to {}", confirm.window_bytes_total));
        }
        self.window_total = confirm.window_bytes_total;
        if confirm.duplicates > 0 {
            universe.cover(Cover::Duplicate);
        }
        if confirm.dropped > 0 {
            universe.cover(Cover::DroppedNewest);
        }
        // A duplicate is answered by all that the broker has, sent again or not.
        let known = (self.known_sequence + 1).saturating_sub(self.front_sequence) as usize;
        self.confirm_up_to(stage, confirm.sequence, self.sent.max(known))
    }

    fn confirm_up_to(&mut self, stage: &mut Stage, sequence: u64, sent: usize) -> Checked {
        let mut left = sent;
        while self.front_sequence <= sequence {
            if self.pending.is_empty() || left == 0 {
                return Err(format!(
                    "{sequence} is confirmed, {} was not sent: {}",
                    self.front_sequence,
                    self.describe()
                ));
            }
            let letter = self.pending.pop_front().expect("it is not empty");
            if self.sent == 0 {
                // Known from before, so the rest of its fragments is not needed.
                self.large_at = 0;
            }
            stage.model.confirmed(self.identity(letter.number));
            self.front_sequence += 1;
            self.sent = self.sent.saturating_sub(1);
            left -= 1;
        }
        Ok(())
    }

    /// A publish was refused.
    ///
    /// # Errors
    /// If the refusal makes no sense.
    pub fn refused(&mut self, stage: &mut Stage, error: &wire::ErrorT, code: ErrorCode) -> Checked {
        let sequence = error.sequence;
        // What was not confirmed before must have been known when the handle was opened.
        if sequence != self.front_sequence && sequence > self.known_sequence + 1 {
            return Err(format!("{code} at {sequence}, confirmed before {}", self.front_sequence));
        }
        if self.batches.iter().any(|&(first, last)| first < sequence && sequence <= last) {
            stage.universe.cover(Cover::PartTaken);
        }
        self.confirm_up_to(stage, sequence.saturating_sub(1), usize::MAX)?;
        if error.window_bytes_total < self.window_total {
            return Err(format!("a window shrank to {} by {code}", error.window_bytes_total));
        }
        self.window_total = error.window_bytes_total;
        let was_rude = std::mem::take(&mut self.awaits_refusal);
        let outstanding = self.sent + usize::from(self.large_at > 0);
        self.episode();
        let now_ns = stage.universe.mono().0;
        let wait_ns = u64::from(error.retry_after_ms) * 1_000_000;
        let cover = match code {
            ErrorCode::QueueMessagesMax
            | ErrorCode::QueueBytesMax
            | ErrorCode::MemoryLimit
            | ErrorCode::DiskLimit
            | ErrorCode::DiskFull
            | ErrorCode::DiskError => {
                self.wait_until_ns = now_ns + wait_ns;
                if code == ErrorCode::MemoryLimit {
                    stage.universe.cover(Cover::MemoryLimit);
                }
                let options = &stage.plan.queues[self.queue].options;
                if options.on_full == wire::OnFull::Reject {
                    stage.universe.cover(Cover::Rejected);
                }
                // Whoever publishes may take the refusal for an answer.
                if options.on_full != wire::OnFull::Block && stage.universe.chance(500) {
                    self.give_up(stage, outstanding)?;
                }
                None
            }
            ErrorCode::NoSubscription => {
                self.wait_until_ns = now_ns + wait_ns;
                Some(Cover::NoSubscription)
            }
            ErrorCode::NoRoomMidway if stage.plan.queues[self.queue].may_wait() => {
                self.wait_until_ns = now_ns + wait_ns;
                Some(Cover::NoRoomMidway)
            }
            ErrorCode::MessageTooLarge => {
                self.give_up(stage, 1)?;
                Some(Cover::MessageTooLarge)
            }
            ErrorCode::WindowExceeded => Some(Cover::WindowExceeded),
            ErrorCode::ChecksumMismatch if was_rude => Some(Cover::ChecksumMismatch),
            ErrorCode::BadBatch if was_rude => Some(Cover::BadBatch),
            ErrorCode::ProducerMismatch if was_rude => Some(Cover::ProducerMismatch),
            ErrorCode::Unsupported if was_rude => Some(Cover::Unsupported),
            ErrorCode::SequenceGap => Some(Cover::SequenceGap),
            ErrorCode::Draining | ErrorCode::OutOfOrder => {
                self.wait_until_ns = now_ns + wait_ns;
                None
            }
            ErrorCode::ProducerFenced => Some(Cover::Fenced),
            _ => return Err(format!("a publish was refused: {code} {:?}", error.text)),
        };
        if let Some(cover) = cover {
            stage.universe.cover(cover);
        }
        Ok(())
    }

    /// Sends some of the refused messages never again.
    fn give_up(&mut self, stage: &mut Stage, outstanding: usize) -> Checked {
        if outstanding == 0 {
            return Ok(());
        }
        let count = 1 + stage.universe.index(outstanding);
        for letter in self.pending.drain(..count.min(self.pending.len())) {
            stage.model.refused(Identity { producer: self.key, number: letter.number })?;
        }
        Ok(())
    }

    /// The queue takes nothing for now.
    pub fn blocked(&mut self, stage: &Stage, body: &wire::BlockedT) {
        stage.universe.cover(Cover::Blocked);
        let wait_ns = u64::from(body.retry_after_ms) * 1_000_000;
        self.wait_until_ns = self.wait_until_ns.max(stage.universe.mono().0 + wait_ns);
    }

    /// The queue takes again.
    pub fn unblocked(&mut self, stage: &Stage, body: &wire::UnblockedT) -> Checked {
        stage.universe.cover(Cover::Unblocked);
        if body.window_bytes_total < self.window_total {
            return Err(format!("UNBLOCKED shrank a window to {}", body.window_bytes_total));
        }
        self.window_total = body.window_bytes_total;
        self.wait_until_ns = 0;
        Ok(())
    }

    // ---- publishing ----

    /// Publishes something, if it may.
    pub fn publish(&mut self, stage: &mut Stage, link: &mut Link) {
        let waits = self.wait_until_ns > stage.universe.mono().0 || self.awaits_refusal;
        if self.phase != Phase::Open || waits || link.unsent_bytes() > 100_000 {
            return;
        }
        if self.pending.len() < 60 && !stage.winding_down {
            self.compose_more(stage);
        }
        if self.large_at == 0 && stage.whim(12) {
            self.publish_rudely(stage, link);
            return;
        }
        let Some(&next) = self.pending.get(self.sent) else { return };
        if RECORD_HEADER_BYTES + next.body_bytes + 200 > self.records_bytes_max(stage) {
            self.publish_fragments(stage, link);
            return;
        }
        let mut builder = BatchBuilder::default();
        let mut taken = 0;
        let records_max = 1 + stage.universe.skewed(60) as usize;
        let window = if stage.whim(10) { u64::MAX } else { self.window_total };
        while let Some(letter) = self.pending.get(self.sent + taken).copied() {
            let message = compose(self.identity(letter.number), letter.body_bytes, false);
            let content_bytes = message.properties.bytes().len() + message.body.len();
            let wire_bytes = builder.wire_bytes() + RECORD_HEADER_BYTES + content_bytes;
            let fits = wire_bytes <= self.records_bytes_max(stage)
                && self.sent_bytes + wire_bytes as u64 <= window;
            if taken == records_max || !fits {
                break;
            }
            builder.push(0, message.properties.bytes(), &message.body);
            self.tell_sent(stage, letter);
            taken += 1;
        }
        if taken > 0 {
            let sequence = self.front_sequence + self.sent as u64;
            let payload = builder.finish(0, self.id, sequence).to_vec();
            self.send(link, &payload);
            self.sent += taken;
            let last = sequence + taken as u64 - 1;
            let number = self.pending[self.sent - taken].number;
            stage.universe.note(|| {
                format!("{} {:x}: {taken} from {number} at {sequence}", self.key, self.id)
            });
            self.batches.push((sequence, last));
            self.sent_sequence = self.sent_sequence.max(last);
        }
    }

    fn records_bytes_max(&self, stage: &Stage) -> usize {
        // Beside the largest record a small pool's chunk needs room for a dead letter's headers.
        let room = stage.plan.batch_bytes_max - DEAD_LETTER_BYTES_MAX;
        room.min(crate::limits::BATCH_WIRE_BYTES_MAX) - BATCH_HEADER_BYTES
    }

    fn send(&mut self, link: &mut Link, payload: &[u8]) {
        link.send(Opcode::Publish, self.handle, 0, payload);
        self.sent_bytes += payload.len() as u64;
    }

    fn tell_sent(&self, stage: &mut Stage, letter: Letter) {
        let twice = letter.doubtful || (letter.sent_before && self.id == 0);
        let Stage { model, universe, .. } = stage;
        let generation = (self.queue, self.generation);
        model.sent(self.identity(letter.number), generation, twice, universe);
    }

    fn compose_more(&mut self, stage: &Stage) {
        let universe = &stage.universe;
        for _ in 0..1 + universe.skewed(30) {
            let large = universe.chance(self.large_share);
            let body_bytes = match large {
                true => universe.skewed(stage.plan.config.message_bytes_max),
                false => universe.skewed(stage.plan.body_bytes_max),
            };
            let (number, body_bytes) = (self.next_number, body_bytes as usize);
            self.pending.push_back(Letter {
                number,
                body_bytes,
                sent_before: false,
                doubtful: false,
            });
            self.next_number += 1;
        }
    }

    /// Sends fragments of the next letter as far as the window goes.
    fn publish_fragments(&mut self, stage: &mut Stage, link: &mut Link) {
        let letter = self.pending[self.sent];
        let message = compose(self.identity(letter.number), letter.body_bytes, true);
        let sequence = self.front_sequence + self.sent as u64;
        loop {
            let first = self.large_at == 0;
            let properties = if first { message.properties.bytes() } else { &[] };
            let fixed_bytes = BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + properties.len();
            let window_left = (self.window_total - self.sent_bytes.min(self.window_total)) as usize;
            let most = self.records_bytes_max(stage) + BATCH_HEADER_BYTES;
            let room = most.min(window_left).saturating_sub(fixed_bytes);
            // A fragment of a few bytes is allowed, but a whole message of them is too slow.
            if room < letter.body_bytes / 8 && room + fixed_bytes < most {
                return;
            }
            let some = room.min(1 + stage.universe.skewed(room.max(1) as u64 * 4) as usize);
            let end =
                (self.large_at + some.max(letter.body_bytes / 20).min(room)).min(letter.body_bytes);
            let last = end == letter.body_bytes;
            let mut flags = if last { record::FRAGMENT_LAST } else { 0 };
            if first {
                self.tell_sent(stage, letter);
                flags |= record::FRAGMENT_FIRST | record::BROKER_PROPERTIES;
            }
            let mut builder = BatchBuilder::default();
            builder.push(flags, properties, &message.body[self.large_at..end]);
            let payload = builder.finish(batch::FRAGMENT, self.id, sequence).to_vec();
            self.send(link, &payload);
            self.large_at = end;
            if last {
                self.large_at = 0;
                self.sent += 1;
                self.sent_sequence = self.sent_sequence.max(sequence);
                return;
            }
        }
    }

    /// Sends what must not be accepted.
    fn publish_rudely(&mut self, stage: &Stage, link: &mut Link) {
        let universe = &stage.universe;
        let number = universe.range(1, 1000);
        let message = compose(Identity { producer: GHOST, number }, 30, false);
        let (properties, body) = (message.properties.bytes(), &message.body);
        let sequence = self.front_sequence + self.sent as u64;
        let mut builder = BatchBuilder::default();
        let records = 1 + universe.skewed(5);
        (0..records).for_each(|_| builder.push(0, properties, body));
        let fits = self.sent_bytes + 4 * builder.wire_bytes() as u64 <= self.window_total;
        // Where the broker knows more than was confirmed, what comes next to it is not known here.
        if !fits || sequence <= self.known_sequence {
            return;
        }
        let mut awaits_refusal = true;
        let mut payload = match universe.range(0, 5) {
            0 => builder.finish(0, self.id, sequence + 1 + universe.skewed(9)).to_vec(),
            1 => builder.finish(0, self.id.wrapping_add(2), sequence).to_vec(),
            2 => {
                let mut odd = PropertiesBuilder::default();
                odd.push(Tag::DeliverAt, &[1; 8]).expect("a short property fits");
                builder.push(record::BROKER_PROPERTIES, odd.bytes(), body);
                builder.finish(0, self.id, sequence).to_vec()
            }
            3 if self.id != 0 && self.front_sequence > records => {
                awaits_refusal = false;
                let first = self.front_sequence - records;
                builder.finish(0, self.id, first - universe.skewed(first)).to_vec()
            }
            _ => builder.finish(0, self.id, sequence).to_vec(),
        };
        match universe.range(0, 4) {
            0 if awaits_refusal => {
                let bit = universe.index(payload.len() * 8);
                payload[bit / 8] ^= 1 << (bit % 8);
                // By chance it may be where an earlier refusal says to go on: not that one.
                let resumes = |header: BatchHeader| header.producer_sequence < sequence;
                if BatchHeader::decode(&payload).is_ok_and(resumes) {
                    payload[bit / 8] ^= 1 << (bit % 8);
                    payload[0] ^= 1;
                }
            }
            1 if awaits_refusal => {
                // The checksum is right, the counts are not.
                let lie = universe.skewed(20) as u32 + 1;
                let header = BatchHeader {
                    record_count: records as u32 + lie,
                    records_bytes: (payload.len() - BATCH_HEADER_BYTES) as u32,
                    producer_id: self.id,
                    producer_sequence: sequence,
                    ..BatchHeader::default()
                };
                batch::seal(&mut payload, header);
            }
            _ if sequence_is_plain(&payload, self.id, sequence) => {
                let cut = 1 + universe.index(payload.len());
                payload.truncate(payload.len() - cut);
            }
            _ => {}
        }
        self.awaits_refusal = awaits_refusal;
        self.send(link, &payload);
    }
}

/// Whether nothing is wrong with a batch yet.
fn sequence_is_plain(payload: &[u8], id: u64, sequence: u64) -> bool {
    batch::Batch::decode(payload).is_ok_and(|batch| {
        batch.header.producer_id == id
            && batch.header.producer_sequence == sequence
            && batch.broker_tags == 0
    })
}
