//! What a journal's records say: the bodies of each kind, version 1. `journal` draws what is around
//! them. Every one may be said again: it then changes nothing, or says how it is now.
//!
//! ```text
//! Publish              | queue u64 | move, if MOVED | fragment, if FRAGMENT | batches |
//! Acks                 | queue u64 | subscription u64 | first u64, end u64 | first u64, ... |
//! Attempts             | queue u64 | subscription u64 | failure | failure | ... |
//! Queue                | fixed part | name | options |
//! QueueDeleted         | queue u64 |
//! Subscription         | fixed part | name | options |
//! SubscriptionDeleted  | queue u64 | subscription u64 |
//! Producers            | queue u64 | id u64, last_sequence u64 | id u64, ... |
//! MovesSettled, Moves  | queue u64 | move | move | ... |
//!
//! Fixed part of Queue:
//!  0  u64  queue             number in the store
//!  8  u64  created_us        wall clock
//! 16  u64  next_sequence
//! 24  u16  name_bytes
//! 26  u16  reserved          zero
//! 28  u32  options_bytes
//!
//! Fixed part of Subscription:
//!  0  u64  queue
//!  8  u64  subscription      number in the store
//! 16  u64  created_us        wall clock
//! 24  u64  start             no message before it is held
//! 32  u16  name_bytes
//! 34  u16  reserved          zero
//! 36  u32  options_bytes
//!
//! Failure:
//!  0  u64  first             sequence
//!  8  u32  count             of messages, one behind the other
//! 12  u16  attempts          deliveries of each
//! 14  u16  failures          those that failed
//! 16  u64  first_failed_us   wall clock
//! 24  u64  last_failed_us    wall clock
//! 32  u64  due_us            wall clock; 0: at once
//! 40  u8   state             0: failed, 1: rejected
//! 41  [7]  reserved          zero
//!
//! Move:
//!  0  u32  store             that the source is in
//!  4  u32  reserved          zero
//!  8  u64  queue             the source
//! 16  u64  subscription      of the source
//! 24  u64  sequence          in the source
//!
//! Fragment:
//!  0  u64  sequence          of the large message
//!  8  u32  nth               counted from 0
//! 12  u32  count             of its fragments
//! ```
//!
//! Numbers are little endian. A list has at least one entry; [`JOURNAL_RANGES_MAX`] fit any record.
//! Ranges are in order and do not overlap, `end` is one past the last. The options are bytes whose
//! meaning is the control plane's.
//!
//! Batches stand as in a chunk: whole, each behind its prefix. With FRAGMENT there is one, whose
//! prefix has no sequence. With MOVED the message came by that move; of a large one that stands on
//! the last fragment only. What carries a message again does without it: [`Change::Moves`] says
//! which moves are to be remembered then.
//!
//! [`JOURNAL_RANGES_MAX`]: crate::limits::JOURNAL_RANGES_MAX

use crate::format::batch::{self, Batches};
use crate::format::journal::{CARRIED, FRAGMENT, MOVED, Record, RecordKind};
use crate::format::{u16_at, u32_at, u64_at};
use std::marker::PhantomData;

/// Why a record is not understood. One that was written as it stands there always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// A later version wrote it: what is meant cannot be passed over.
    #[error("journal records of kind {0} are not known")]
    Kind(u8),
    /// The same, of its flags.
    #[error("flags {flags:#04x} of a journal record of kind {kind} are not known")]
    Flags {
        /// Of the record.
        kind: u8,
        /// All of them.
        flags: u8,
    },
    /// The body ends too early, or in the middle of an entry.
    #[error("a journal record of kind {kind} has {body_bytes} bytes")]
    Length {
        /// Of the record.
        kind: u8,
        /// Of its body.
        body_bytes: usize,
    },
    /// Fields that contradict each other, or reserved bytes that are not zero.
    #[error("a journal record of kind {0} contradicts itself")]
    Contradiction(u8),
    /// A batch that is damaged, or cannot stand there.
    #[error("the batch at byte {0} of a journal record is none")]
    Batch(usize),
}

/// A record that was checked as a whole. Queues and subscriptions have their numbers in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A queue has taken messages.
    Published(Published<'a>),
    /// A subscription is done with messages, for whatever reason.
    Done {
        /// Whose.
        queue: u64,
        /// Which.
        subscription: u64,
        /// Of sequences.
        ranges: Ranges<'a>,
    },
    /// Deliveries of a subscription failed. A later entry says all that is to be said of a message.
    Failed {
        /// Whose.
        queue: u64,
        /// Which.
        subscription: u64,
        /// In the order in which they count.
        entries: Failures<'a>,
    },
    /// A queue is there, with these options.
    Queue(QueueDefinition<'a>),
    /// A queue is gone for ever, with all that is in it.
    QueueDeleted {
        /// Which.
        queue: u64,
    },
    /// A subscription is there, with these options.
    Subscription(SubscriptionDefinition<'a>),
    /// A subscription is gone for ever.
    SubscriptionDeleted {
        /// Whose.
        queue: u64,
        /// Which.
        subscription: u64,
    },
    /// Producers have come at least so far.
    Producers {
        /// Of which queue.
        queue: u64,
        /// Ids, never 0, and their last sequences.
        entries: Producers<'a>,
    },
    /// Moves to a queue that it may forget.
    MovesSettled {
        /// To which.
        queue: u64,
        /// In any order.
        moves: Moves<'a>,
    },
    /// Moves to a queue that it must not forget, though their messages may be gone.
    Moves {
        /// To which.
        queue: u64,
        /// In any order.
        moves: Moves<'a>,
    },
}

/// Messages that a queue has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published<'a> {
    /// Which.
    pub queue: u64,
    /// The move that brought the message.
    pub moved: Option<MoveName>,
    /// It is one fragment of a large message.
    pub fragment: Option<FragmentOf>,
    /// Whole ones, each behind its prefix, for [`Batches`]; each one's own checksum is right.
    pub batches: &'a [u8],
}

/// What stands in front of the batches of a [`Published`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedHead {
    /// Number of the queue.
    pub queue: u64,
    /// The move that brought the message.
    pub moved: Option<MoveName>,
    /// It is one fragment of a large message.
    pub fragment: Option<FragmentOf>,
}

/// A move from one queue to another: it never has the name of another move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MoveName {
    /// Number of the store that the source is in.
    pub store: u32,
    /// The source's number there.
    pub queue: u64,
    /// Number of the subscription that gave the message away.
    pub subscription: u64,
    /// The message's sequence in the source.
    pub sequence: u64,
}

/// Which fragment of which large message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentOf {
    /// Sequence of the message.
    pub sequence: u64,
    /// Counted from 0.
    pub nth: u32,
    /// Fragments of the message.
    pub count: u32,
}

/// What is known of messages, one behind the other, whose deliveries failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Sequence of the first.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Deliveries of each.
    pub attempts: u16,
    /// Those that failed.
    pub failures: u16,
    /// When the first of them failed; wall clock, microseconds.
    pub first_failed_us: u64,
    /// When the last of them failed; wall clock, microseconds.
    pub last_failed_us: u64,
    /// When they are delivered again; wall clock, microseconds. 0: at once.
    pub due_us: u64,
    /// They were rejected: they are never delivered again here.
    pub rejected: bool,
}

impl Failure {
    /// One past the sequence of the last message.
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }
}

/// A queue, its options and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDefinition<'a> {
    /// Its number in the store.
    pub queue: u64,
    /// When it was made; wall clock, microseconds.
    pub created_us: u64,
    /// Of the next message.
    pub next_sequence: u64,
    /// Unique among the queues that are there at a time.
    pub name: &'a str,
    /// As the control plane wrote them.
    pub options: &'a [u8],
}

/// A subscription, its options and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionDefinition<'a> {
    /// Number of its queue in the store.
    pub queue: u64,
    /// Its own number in the store.
    pub subscription: u64,
    /// When it was made; wall clock, microseconds.
    pub created_us: u64,
    /// It holds no message before this sequence.
    pub start: u64,
    /// Unique in its queue.
    pub name: &'a str,
    /// As the control plane wrote them.
    pub options: &'a [u8],
}

/// `(first, end)`, in order and without overlap.
pub type Ranges<'a> = Entries<'a, (u64, u64)>;
/// In the order in which they count.
pub type Failures<'a> = Entries<'a, Failure>;
/// Ids and last sequences.
pub type Producers<'a> = Entries<'a, (u64, u64)>;
/// Names, in any order.
pub type Moves<'a> = Entries<'a, MoveName>;

/// One entry of a list.
pub trait Entry: Sized {
    /// What it takes.
    const BYTES: usize;
    /// Reads one of [`Entry::BYTES`]; `None` if it contradicts itself.
    fn decode(bytes: &[u8]) -> Option<Self>;
    /// Writes it behind what is there.
    fn encode(&self, into: &mut Vec<u8>);
}

/// Reads the entries of a list that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries<'a, T> {
    bytes: &'a [u8],
    entry: PhantomData<T>,
}

impl<T: Entry> Iterator for Entries<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let (entry, rest) = self.bytes.split_at_checked(T::BYTES)?;
        self.bytes = rest;
        T::decode(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let count = self.bytes.len() / T::BYTES;
        (count, Some(count))
    }
}

impl<T: Entry> ExactSizeIterator for Entries<'_, T> {}

impl Entry for (u64, u64) {
    const BYTES: usize = 16;

    fn decode(bytes: &[u8]) -> Option<(u64, u64)> {
        Some((u64_at(bytes, 0), u64_at(bytes, 8)))
    }

    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.0.to_le_bytes());
        into.extend_from_slice(&self.1.to_le_bytes());
    }
}

impl Entry for MoveName {
    const BYTES: usize = 32;

    fn decode(bytes: &[u8]) -> Option<MoveName> {
        let (queue, subscription) = (u64_at(bytes, 8), u64_at(bytes, 16));
        let (store, sequence) = (u32_at(bytes, 0), u64_at(bytes, 24));
        let name = MoveName { store, queue, subscription, sequence };
        (u32_at(bytes, 4) == 0).then_some(name)
    }

    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&u64::from(self.store).to_le_bytes());
        for number in [self.queue, self.subscription, self.sequence] {
            into.extend_from_slice(&number.to_le_bytes());
        }
    }
}

impl Entry for FragmentOf {
    const BYTES: usize = 16;

    fn decode(bytes: &[u8]) -> Option<FragmentOf> {
        let (sequence, nth, count) = (u64_at(bytes, 0), u32_at(bytes, 8), u32_at(bytes, 12));
        (nth < count && sequence < u64::MAX).then_some(FragmentOf { sequence, nth, count })
    }

    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.sequence.to_le_bytes());
        into.extend_from_slice(&self.nth.to_le_bytes());
        into.extend_from_slice(&self.count.to_le_bytes());
    }
}

impl Entry for Failure {
    const BYTES: usize = 48;

    fn decode(bytes: &[u8]) -> Option<Failure> {
        let failure = Failure {
            first: u64_at(bytes, 0),
            count: u32_at(bytes, 8),
            attempts: u16_at(bytes, 12),
            failures: u16_at(bytes, 14),
            first_failed_us: u64_at(bytes, 16),
            last_failed_us: u64_at(bytes, 24),
            due_us: u64_at(bytes, 32),
            rejected: u64_at(bytes, 40) == 1,
        };
        // The state and what is reserved behind it, as one number.
        let is_sound = u64_at(bytes, 40) <= 1
            && failure.count > 0
            && failure.first.checked_add(u64::from(failure.count)).is_some();
        is_sound.then_some(failure)
    }

    fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.first.to_le_bytes());
        into.extend_from_slice(&self.count.to_le_bytes());
        into.extend_from_slice(&self.attempts.to_le_bytes());
        into.extend_from_slice(&self.failures.to_le_bytes());
        let times = [self.first_failed_us, self.last_failed_us, self.due_us];
        for number in times.into_iter().chain([u64::from(self.rejected)]) {
            into.extend_from_slice(&number.to_le_bytes());
        }
    }
}

impl PublishedHead {
    /// The record's flags, [`CARRIED`] apart.
    pub fn flags(&self) -> u8 {
        let moved = if self.moved.is_some() { MOVED } else { 0 };
        let fragment = if self.fragment.is_some() { FRAGMENT } else { 0 };
        moved | fragment
    }

    /// Writes what stands in front of the batches: 8 to 56 bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.queue.to_le_bytes());
        self.moved.iter().for_each(|name| name.encode(into));
        self.fragment.iter().for_each(|fragment| fragment.encode(into));
    }
}

impl QueueDefinition<'_> {
    /// Writes the body of a [`RecordKind::Queue`].
    ///
    /// # Panics
    /// If the name has more than 65535 bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        encode_numbers(&[self.queue, self.created_us, self.next_sequence], into);
        encode_definition(self.name, self.options, into);
    }
}

impl SubscriptionDefinition<'_> {
    /// Writes the body of a [`RecordKind::Subscription`].
    ///
    /// # Panics
    /// If the name has more than 65535 bytes.
    pub fn encode(&self, into: &mut Vec<u8>) {
        encode_numbers(&[self.queue, self.subscription, self.created_us, self.start], into);
        encode_definition(self.name, self.options, into);
    }
}

/// Writes the body of a [`RecordKind::QueueDeleted`].
pub fn encode_queue_deleted(queue: u64, into: &mut Vec<u8>) {
    encode_numbers(&[queue], into);
}

/// Writes the body of a [`RecordKind::SubscriptionDeleted`].
pub fn encode_subscription_deleted(queue: u64, subscription: u64, into: &mut Vec<u8>) {
    encode_numbers(&[queue, subscription], into);
}

/// Writes the body of a [`RecordKind::Acks`].
///
/// # Panics
/// If there is no range, or they are not in order.
pub fn encode_done(
    queue: u64,
    subscription: u64,
    ranges: impl IntoIterator<Item = (u64, u64)>,
    into: &mut Vec<u8>,
) {
    let mut last = 0;
    let ordered = ranges.into_iter().inspect(|&(first, end)| {
        assert!(last <= first && first < end, "ranges are in order");
        last = end;
    });
    encode_list(&[queue, subscription], ordered, into);
}

/// Writes the body of a [`RecordKind::Attempts`].
///
/// # Panics
/// If there is no entry.
pub fn encode_failed(
    queue: u64,
    subscription: u64,
    entries: impl IntoIterator<Item = Failure>,
    into: &mut Vec<u8>,
) {
    encode_list(&[queue, subscription], entries, into);
}

/// Writes the body of a [`RecordKind::Producers`]: ids, which are not 0, and last sequences.
///
/// # Panics
/// If there is no entry.
pub fn encode_producers(
    queue: u64,
    entries: impl IntoIterator<Item = (u64, u64)>,
    into: &mut Vec<u8>,
) {
    encode_list(&[queue], entries, into);
}

/// Writes the body of a [`RecordKind::MovesSettled`] or a [`RecordKind::Moves`].
///
/// # Panics
/// If there is no entry.
pub fn encode_moves(queue: u64, moves: impl IntoIterator<Item = MoveName>, into: &mut Vec<u8>) {
    encode_list(&[queue], moves, into);
}

fn encode_numbers(numbers: &[u64], into: &mut Vec<u8>) {
    numbers.iter().for_each(|number| into.extend_from_slice(&number.to_le_bytes()));
}

fn encode_list<T: Entry>(
    numbers: &[u64],
    entries: impl IntoIterator<Item = T>,
    into: &mut Vec<u8>,
) {
    encode_numbers(numbers, into);
    let empty = into.len();
    entries.into_iter().for_each(|entry| entry.encode(into));
    assert!(into.len() > empty, "a list has an entry");
}

fn encode_definition(name: &str, options: &[u8], into: &mut Vec<u8>) {
    let name_bytes = u16::try_from(name.len()).expect("a name is short");
    into.extend_from_slice(&u32::from(name_bytes).to_le_bytes());
    into.extend_from_slice(&(options.len() as u32).to_le_bytes());
    into.extend_from_slice(name.as_bytes());
    into.extend_from_slice(options);
}

impl<'a> Change<'a> {
    /// Reads and checks a record.
    ///
    /// # Errors
    /// Why it is none.
    pub fn decode(record: &Record<'a>) -> Result<Change<'a>, ChangeError> {
        let &Record { kind: number, flags, body } = record;
        let kind = RecordKind::from_number(number).ok_or(ChangeError::Kind(number))?;
        let own = if kind == RecordKind::Publish { MOVED | FRAGMENT } else { 0 };
        if flags & !(CARRIED | own) != 0 {
            return Err(ChangeError::Flags { kind: number, flags });
        }
        let mut body = Body { kind: number, body_bytes: body.len(), rest: body };
        let queue = body.number()?;
        let change = match kind {
            RecordKind::Publish => Change::Published(published(queue, flags, &mut body)?),
            RecordKind::Acks => {
                let (subscription, ranges) = (body.number()?, body.list()?);
                body.check(is_ordered(ranges))?;
                Change::Done { queue, subscription, ranges }
            }
            RecordKind::Attempts => {
                let (subscription, entries) = (body.number()?, body.list()?);
                Change::Failed { queue, subscription, entries }
            }
            RecordKind::Queue => {
                let (created_us, next_sequence) = (body.number()?, body.number()?);
                let (name, options) = body.definition()?;
                let of = QueueDefinition { queue, created_us, next_sequence, name, options };
                Change::Queue(of)
            }
            RecordKind::Subscription => {
                let (subscription, created_us) = (body.number()?, body.number()?);
                let start = body.number()?;
                let (name, options) = body.definition()?;
                let of = SubscriptionDefinition {
                    queue,
                    subscription,
                    created_us,
                    start,
                    name,
                    options,
                };
                Change::Subscription(of)
            }
            RecordKind::QueueDeleted => Change::QueueDeleted { queue },
            RecordKind::SubscriptionDeleted => {
                Change::SubscriptionDeleted { queue, subscription: body.number()? }
            }
            RecordKind::Producers => {
                let mut entries: Producers<'_> = body.list()?;
                let of = Change::Producers { queue, entries };
                body.check(entries.all(|(id, _)| id != 0))?;
                of
            }
            RecordKind::MovesSettled => Change::MovesSettled { queue, moves: body.list()? },
            RecordKind::Moves => Change::Moves { queue, moves: body.list()? },
        };
        if body.rest.is_empty() { Ok(change) } else { Err(body.too_long_or_short()) }
    }
}

/// What is left to read of a body.
struct Body<'a> {
    kind: u8,
    body_bytes: usize,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn too_long_or_short(&self) -> ChangeError {
        ChangeError::Length { kind: self.kind, body_bytes: self.body_bytes }
    }

    fn check(&self, is_sound: bool) -> Result<(), ChangeError> {
        if is_sound { Ok(()) } else { Err(ChangeError::Contradiction(self.kind)) }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], ChangeError> {
        let error = self.too_long_or_short();
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(error)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, ChangeError> {
        Ok(u64_at(self.take(8)?, 0))
    }

    fn entry<T: Entry>(&mut self) -> Result<T, ChangeError> {
        T::decode(self.take(T::BYTES)?).ok_or(ChangeError::Contradiction(self.kind))
    }

    /// All that is left, as a list.
    fn list<T: Entry>(&mut self) -> Result<Entries<'a, T>, ChangeError> {
        let bytes = self.rest;
        if bytes.is_empty() || !bytes.len().is_multiple_of(T::BYTES) {
            return Err(self.too_long_or_short());
        }
        while !self.rest.is_empty() {
            self.entry::<T>()?;
        }
        Ok(Entries { bytes, entry: PhantomData })
    }

    fn definition(&mut self) -> Result<(&'a str, &'a [u8]), ChangeError> {
        let sizes = self.take(8)?;
        self.check(u16_at(sizes, 2) == 0)?;
        let name = self.take(usize::from(u16_at(sizes, 0)))?;
        let name = str::from_utf8(name).map_err(|_| ChangeError::Contradiction(self.kind))?;
        Ok((name, self.take(u32_at(sizes, 4) as usize)?))
    }
}

/// The rest of a [`RecordKind::Publish`].
fn published<'a>(queue: u64, flags: u8, body: &mut Body<'a>) -> Result<Published<'a>, ChangeError> {
    let moved = if flags & MOVED != 0 { Some(body.entry()?) } else { None };
    let fragment: Option<FragmentOf> =
        if flags & FRAGMENT != 0 { Some(body.entry()?) } else { None };
    let is_inner = fragment.is_some_and(|fragment| fragment.nth + 1 < fragment.count);
    body.check(!(is_inner && moved.is_some()))?;
    let batches = std::mem::take(&mut body.rest);
    if batches.is_empty() {
        return Err(body.too_long_or_short());
    }
    let at = |rest: &[u8]| ChangeError::Batch(body.body_bytes - rest.len());
    let (mut walked, mut count, mut here) = (Batches::new(batches), 0, batches);
    for batch in walked.by_ref() {
        let is_fragment = batch.header.flags & batch::FRAGMENT != 0;
        let records = u64::from(batch.header.record_count);
        let is_sound = is_fragment == fragment.is_some()
            && (!is_fragment || records == 1)
            && (is_fragment || batch.prefix.base_sequence.checked_add(records).is_some())
            && batch.is_whole();
        if !is_sound {
            return Err(at(here));
        }
        here = &here[batch.bytes.len()..];
        count += 1;
    }
    if !walked.rest().is_empty() {
        return Err(at(walked.rest()));
    }
    body.check(fragment.is_none() || count == 1)?;
    Ok(Published { queue, moved, fragment, batches })
}

fn is_ordered(mut ranges: Ranges<'_>) -> bool {
    let mut last = 0;
    ranges.all(|(first, end)| {
        let follows = last <= first && first < end;
        last = end;
        follows
    })
}

#[cfg(test)]
mod tests;
