//! The journal of a store: one log of groups of records, each written while the next gathers.
//! Plans only: somebody submits what is planned here and brings back how it ended.
//! `format/journal.rs` draws the bytes, `replay` reads them back.
//!
//! ```text
//! append -> the sequence of the group that the record will be in
//! poll_request -> handle_completed -> how far the log is written and synced
//!                          each tick, until there is none
//! release -> segments that hold only what is needed no more are written over
//! ```
//!
//! There is no timer: a group is written as soon as the one before it is done, with whatever has
//! come until then. At most one request of the log is under way, and beside it at most one that
//! makes a segment ready for later. What holds at any moment:
//!
//! - What is synced is synced with all before it. A write that asks the device to keep it keeps
//!   itself only, so behind a group that was not synced the whole file is synced instead.
//! - A segment is opened when all before it is synced, and its header says where that ended. So
//!   only the last segment may hold what a crash takes away.
//! - A segment is written over when a later header, itself synced, says that it is not needed.
//! - After a write or sync that failed nothing is written any more: nobody knows what the device
//!   has.

mod spares;

use crate::base::pages::Pages;
use crate::format::journal::{
    GroupPlace, LogEnd, RecordKind, SegmentHeader, StoreId, encode_record, group_image_bytes,
    seal_group,
};
use crate::limits::{
    DISK_ALIGN_BYTES, JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_HEADER_BYTES, JOURNAL_PREWRITE_BYTES,
    JOURNAL_RECORD_HEADER_BYTES, JOURNAL_SEGMENT_BYTES,
};
use crate::storage::replay::Recovered;
use spares::Spares;
use std::collections::VecDeque;
use std::io::ErrorKind;

/// Sizes, in bytes; multiples of [`DISK_ALIGN_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalShape {
    /// One file, a multiple of `prewrite_bytes`.
    pub segment_bytes: u64,
    /// A group, header and padding included.
    pub group_bytes_max: usize,
    /// Zeros that are written at a time.
    pub prewrite_bytes: u64,
}

impl Default for JournalShape {
    fn default() -> JournalShape {
        JournalShape {
            segment_bytes: JOURNAL_SEGMENT_BYTES as u64,
            group_bytes_max: JOURNAL_GROUP_BYTES_MAX,
            prewrite_bytes: JOURNAL_PREWRITE_BYTES as u64,
        }
    }
}

/// Something to do on the journal's files, which have numbers. What is in memory is whole pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalRequest {
    /// Makes a file, or empties the one that is there.
    Create {
        /// Comes back with the outcome.
        tag: u64,
        /// Which.
        file: u32,
    },
    /// Writes zeros into a file that is not in use yet.
    Prewrite {
        /// Comes back with the outcome.
        tag: u64,
        /// Which.
        file: u32,
        /// From the file's start.
        offset: u64,
        /// How many.
        bytes: u64,
    },
    /// Writes to the log.
    Write {
        /// Comes back with the outcome.
        tag: u64,
        /// Which.
        file: u32,
        /// From the file's start.
        offset: u64,
        /// What; wanted back with the outcome, for use again.
        image: Pages,
        /// The device has to keep it before it counts as written (RWF_DSYNC, or a sync behind it).
        sync: bool,
    },
    /// Asks the device to keep all of a file that was written, its length, and its name.
    Sync {
        /// Comes back with the outcome.
        tag: u64,
        /// Which.
        file: u32,
    },
}

/// How far the log is on disk: sequences of groups, each with all before it; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last that is with the system.
    pub written: u64,
    /// The last that the device keeps.
    pub synced: u64,
}

/// A write or sync of the log failed; the journal takes and writes nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal failed in segment {segment} at byte {offset}: {kind}")]
pub struct Poison {
    /// Sequence of the segment.
    pub segment: u64,
    /// From the segment's start.
    pub offset: u64,
    /// As the system says.
    pub kind: ErrorKind,
}

/// A record was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The group that gathers is full and the one before it is not written yet: try again then.
    #[error("the journal's next group is full")]
    Full,
    /// The journal takes nothing any more.
    #[error(transparent)]
    Poisoned(#[from] Poison),
}

/// What a journal has written since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalCounters {
    /// Groups.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of groups: headers and records.
    pub group_bytes: u64,
    /// Zeros behind them.
    pub padding_bytes: u64,
}

/// A segment that the log is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSegment {
    /// Number of the file.
    pub file: u32,
    /// Sequence of the segment.
    pub segment: u64,
    /// One past the sequence of its last group; means nothing in the last segment.
    pub end_group: u64,
}

/// The group that gathers: room for the header, and the records.
struct Gathering {
    image: Pages,
    record_count: u32,
    wants_synced: bool,
}

impl Gathering {
    /// In memory that is free.
    fn new(mut image: Pages) -> Gathering {
        image.clear();
        image.resize(JOURNAL_GROUP_HEADER_BYTES);
        Gathering { image, record_count: 0, wants_synced: false }
    }
}

/// The request of the log that is under way.
#[derive(Clone, Copy)]
enum Step {
    Header { file: u32, needed: u64 },
    Group { image_bytes: u64, sync: bool },
    Sync,
}

/// See the module.
pub struct Journal {
    store: StoreId,
    epoch: u64,
    shape: JournalShape,
    progress: Progress,
    /// The group that a record appended now will be in.
    next_group: u64,
    gathering: Gathering,
    /// While no request of the log is under way: what the next is written from. So two buffers,
    /// each of a group at most, take turns.
    free: Pages,
    /// Somebody waits for a sync of what was written without one.
    sync_due: bool,
    /// Oldest first; the last is written to.
    segments: VecDeque<LiveSegment>,
    next_segment: u64,
    /// Where the next group goes in the last segment.
    offset: u64,
    /// A new segment is to be opened before anything else is written.
    roll: bool,
    is_ready: bool,
    /// The first group that is needed, and what the last header says of that.
    needed: u64,
    stated: u64,
    spares: Spares,
    under_way: Option<(u64, Step)>,
    next_tag: u64,
    poison: Option<Poison>,
    counters: JournalCounters,
}

impl Journal {
    /// Goes on where a recovery found the end of the log; a store's first is
    /// [`Recovered::default`]. Nothing that was there is written over before the header of a new
    /// segment is synced.
    ///
    /// # Panics
    /// If the shape does not fit together.
    pub fn open(store: StoreId, shape: JournalShape, recovered: &Recovered) -> Journal {
        let align = DISK_ALIGN_BYTES as u64;
        let group_bytes_max = shape.group_bytes_max as u64;
        assert!(shape.segment_bytes.is_multiple_of(shape.prewrite_bytes));
        assert!(
            shape.prewrite_bytes.is_multiple_of(align) && group_bytes_max.is_multiple_of(align)
        );
        assert!(align + group_bytes_max <= shape.segment_bytes);
        assert!(shape.group_bytes_max <= JOURNAL_GROUP_BYTES_MAX);
        let written = recovered.end.group - 1;
        // What was read back may still be in the device's cache.
        let synced = if recovered.live.is_empty() { written } else { 0 };
        Journal {
            store,
            epoch: recovered.epoch + 1,
            shape,
            progress: Progress { written, synced },
            next_group: recovered.end.group,
            gathering: Gathering::new(Pages::default()),
            free: Pages::default(),
            sync_due: false,
            segments: recovered.live.iter().copied().collect(),
            next_segment: recovered.end.segment + 1,
            offset: recovered.end.offset,
            roll: true,
            is_ready: false,
            needed: recovered.needed,
            stated: recovered.needed,
            spares: Spares::new(&recovered.spares, &recovered.unmade, recovered.next_file),
            under_way: None,
            next_tag: 0,
            poison: None,
            counters: JournalCounters::default(),
        }
    }

    /// Takes a record, whose body is all of the parts; the answer is the sequence of the group that
    /// it will be in. With `wants_synced` that group, with all before it, is synced as soon as it
    /// is written.
    ///
    /// # Errors
    /// If it is to be tried again later, or never.
    ///
    /// # Panics
    /// If the record does not fit an empty group.
    pub fn append(
        &mut self,
        kind: RecordKind,
        flags: u8,
        body: &[&[u8]],
        wants_synced: bool,
    ) -> Result<u64, AppendError> {
        if let Some(poison) = self.poison {
            return Err(AppendError::Poisoned(poison));
        }
        let body_bytes: usize = body.iter().map(|part| part.len()).sum();
        let bytes = JOURNAL_RECORD_HEADER_BYTES + body_bytes;
        assert!(JOURNAL_GROUP_HEADER_BYTES + bytes <= self.shape.group_bytes_max);
        if self.gathering.image.len() + bytes > self.shape.group_bytes_max {
            return Err(AppendError::Full);
        }
        encode_record(kind as u8, flags, body, &mut self.gathering.image);
        self.gathering.record_count += 1;
        self.gathering.wants_synced |= wants_synced;
        Ok(self.next_group)
    }

    /// Wants all that was appended until now to be synced.
    pub fn sync(&mut self) {
        if self.gathering.record_count > 0 {
            self.gathering.wants_synced = true;
        } else {
            self.sync_due = self.progress.synced + 1 < self.next_group;
        }
    }

    /// Groups up to this one, with it, are needed no more: there is a checkpoint, synced, that does
    /// without them.
    ///
    /// # Panics
    /// If it is not synced.
    pub fn release(&mut self, group: u64) {
        assert!(group <= self.progress.synced, "what is not synced may still be needed");
        self.needed = self.needed.max(group + 1);
    }

    /// Tries again to make a segment, if that failed. For once in a while.
    pub fn retry(&mut self) {
        self.spares.retry();
    }

    /// What is to be done next, if anything is; for each tick, until there is nothing.
    pub fn poll_request(&mut self) -> Option<JournalRequest> {
        if self.poison.is_some() {
            return None;
        }
        let tag = self.next_tag;
        let request = self.poll_log(tag).or_else(|| self.spares.poll(tag, &self.shape));
        self.next_tag += u64::from(request.is_some());
        request
    }

    /// A request has ended. Short writes count as failed. `image` is what a write was of, if that
    /// came back: the journal then asks for no memory for another.
    ///
    /// # Panics
    /// If it is none that is under way.
    pub fn handle_completed(
        &mut self,
        tag: u64,
        result: Result<(), ErrorKind>,
        image: Option<Pages>,
    ) -> Progress {
        let Some((_, step)) = self.under_way.take_if(|(own, _)| *own == tag) else {
            self.spares.handle_completed(tag, result, &self.shape);
            return self.progress;
        };
        if let Some(image) = image {
            self.free = image;
        }
        match (result, step) {
            (Err(kind), Step::Header { .. }) => self.fail(self.next_segment, 0, kind),
            (Err(kind), _) => self.fail(self.next_segment - 1, self.offset, kind),
            (Ok(()), Step::Header { file, needed }) => self.opened(file, needed),
            (Ok(()), Step::Group { image_bytes, sync }) => {
                self.offset += image_bytes;
                self.progress.written += 1;
                if sync {
                    self.progress.synced = self.progress.written;
                    self.sync_due = false;
                }
            }
            (Ok(()), Step::Sync) => {
                self.progress.synced = self.progress.written;
                self.sync_due = false;
            }
        }
        self.progress
    }

    /// How far the log is on disk. Until the journal [is ready](Self::is_ready) nothing is synced.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether its first segment is open: the store may serve.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Why nothing is written any more, if so.
    pub fn poison(&self) -> Option<Poison> {
        self.poison
    }

    /// Why no segment can be made, if so. What was appended waits for [`retry`](Self::retry).
    pub fn blocked(&self) -> Option<ErrorKind> {
        self.spares.failed()
    }

    /// What was written since the journal was opened.
    pub fn counters(&self) -> JournalCounters {
        self.counters
    }

    /// The segments that the log is in, oldest first.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = LiveSegment> {
        self.segments.iter().copied()
    }

    fn poll_log(&mut self, tag: u64) -> Option<JournalRequest> {
        if self.under_way.is_some() {
            return None;
        }
        let gathered = self.gathering.record_count > 0;
        let image_bytes = group_image_bytes(self.gathering.image.len()) as u64;
        self.roll |= gathered && self.offset + image_bytes > self.shape.segment_bytes;
        let has_unsynced = self.progress.synced < self.progress.written;
        if has_unsynced && (self.roll || self.sync_due) {
            let file = self.segments.back()?.file;
            self.under_way = Some((tag, Step::Sync));
            Some(JournalRequest::Sync { tag, file })
        } else if self.roll {
            self.open_segment(tag)
        } else if gathered {
            self.write_group(tag)
        } else {
            None
        }
    }

    fn open_segment(&mut self, tag: u64) -> Option<JournalRequest> {
        let file = self.spares.take()?;
        let (segment, group) = (self.next_segment - 1, self.progress.written + 1);
        let header = SegmentHeader {
            store: self.store,
            epoch: self.epoch,
            segment: self.next_segment,
            end: LogEnd { segment, group, offset: self.offset },
            needed: self.needed,
        };
        self.under_way = Some((tag, Step::Header { file, needed: self.needed }));
        let mut image = std::mem::take(&mut self.free);
        header.encode(&mut image);
        Some(JournalRequest::Write { tag, file, offset: 0, image, sync: true })
    }

    /// The header of a new segment is synced.
    fn opened(&mut self, file: u32, needed: u64) {
        let end_group = self.progress.written + 1;
        if let Some(last) = self.segments.back_mut() {
            last.end_group = end_group;
        }
        self.stated = needed;
        while self.segments.front().is_some_and(|oldest| oldest.end_group <= self.stated) {
            self.spares.extend(self.segments.pop_front().map(|oldest| oldest.file));
        }
        self.segments.push_back(LiveSegment { file, segment: self.next_segment, end_group });
        self.next_segment += 1;
        self.offset = DISK_ALIGN_BYTES as u64;
        self.roll = false;
        self.is_ready = true;
    }

    fn write_group(&mut self, tag: u64) -> Option<JournalRequest> {
        let last = self.segments.back()?;
        let Gathering { mut image, record_count, wants_synced } =
            std::mem::replace(&mut self.gathering, Gathering::new(std::mem::take(&mut self.free)));
        let Progress { written, synced } = self.progress;
        let place = GroupPlace {
            store: self.store,
            epoch: self.epoch,
            segment: last.segment,
            page: (self.offset / DISK_ALIGN_BYTES as u64) as u32,
        };
        let used = image.len();
        seal_group(&mut image, &place, self.next_group, synced, record_count);
        self.counters.groups += 1;
        self.counters.records += u64::from(record_count);
        self.counters.group_bytes += used as u64;
        self.counters.padding_bytes += (image.len() - used) as u64;
        self.next_group += 1;
        let sync = wants_synced && synced == written;
        self.sync_due |= wants_synced && !sync;
        self.under_way = Some((tag, Step::Group { image_bytes: image.len() as u64, sync }));
        Some(JournalRequest::Write { tag, file: last.file, offset: self.offset, image, sync })
    }

    fn fail(&mut self, segment: u64, offset: u64, kind: ErrorKind) {
        self.poison = Some(Poison { segment, offset, kind });
    }
}

#[cfg(test)]
mod tests;
