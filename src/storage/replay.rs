//! Reads a journal back after the process or the machine stopped: which files are its segments, in
//! which order, which groups are whole, what is lost, where the log ends.
//!
//! ```text
//! Survey::add      for each file, in any order: what it is
//! Replay::next_file -> Replay::read      for each segment of the log, in order: its groups
//! Replay::finish -> Recovered            where the log ends; what Journal::open goes on with
//! ```
//!
//! One group is in flight at a time, so what is not whole and has a whole group of the log behind
//! it is damage: it is reported, and reading goes on at the next page that has one. What has none
//! is the torn tail of a write that was never confirmed. Sequences tell how many groups are lost.
//! Of the last segment what is missing counts only if a later group says that it was synced: else
//! the machine stopped before it was on disk, and what stands behind it ends the log as well.
//!
//! What is found of a segment, and what it is then:
//!
//! ```text
//! header    groups that name it         so
//! --------  --------------------------  --------------------------------------------------------
//! whole     any                         a segment; its header says where the log ended before it
//! not       some                        a segment, damaged; the log ended before its first group
//! not       none; zeros behind it       a spare: made and not used yet
//! not       none; something else        not known: left alone
//! of another store, or version          nothing is read at all: it is an error
//!
//! segment (in order of epoch and sequence)                       is
//! -------------------------------------------------------------  ---------------------------------
//! the last                                                       live, whatever it holds
//! it begins where a later one begins, or behind that: it has     spare
//! nothing of the log
//! its groups are all before what the last header says is needed  spare
//! any other                                                      live, up to where a later begins
//! ```

use crate::format::journal::{Group, GroupPlace, JournalError, LogEnd, SegmentHeader, StoreId};
use crate::limits::DISK_ALIGN_BYTES;
use crate::storage::journal::LiveSegment;
use std::ops::Range;

/// A directory whose journal is not to be touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SurveyError {
    /// A later program wrote it.
    #[error("journal file {file}: {error}")]
    Version {
        /// Number of the file.
        file: u32,
        /// Says which.
        error: JournalError,
    },
    /// It belongs elsewhere.
    #[error("journal file {file} belongs to another store")]
    Store {
        /// Number of the file.
        file: u32,
    },
}

/// Something on disk is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "journal segment {segment} is damaged at byte {offset} ({}): groups {lost:?} are lost",
    why.map_or("nothing follows".to_owned(), |why| why.to_string())
)]
pub struct Damage {
    /// Sequence of the segment; 0 if it is before the first that is there.
    pub segment: u64,
    /// From the segment's start.
    pub offset: u64,
    /// What is wrong there; `None` if all is well there, and what should follow is nowhere.
    pub why: Option<JournalError>,
    /// Sequences of the groups that are lost; empty if it is only a segment's header.
    pub lost: Range<u64>,
    /// The first of them was surely synced. Otherwise it may be that none was, and the machine
    /// stopped before they were on disk, though what was written after them is.
    pub was_synced: bool,
}

/// The outcome of a recovery. The default is that of an empty directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The last that was used; 0 is none.
    pub epoch: u64,
    /// Where the log ends.
    pub end: LogEnd,
    /// The first group that is needed, as far as a segment header says so.
    pub needed: u64,
    /// The segments of the log, oldest first.
    pub live: Vec<LiveSegment>,
    /// Files whose content is not needed. The caller moves those that are too short for a segment
    /// to `unmade`.
    pub spares: Vec<u32>,
    /// Files that were not made to the end, and are made anew; none as replayed.
    pub unmade: Vec<u32>,
    /// Files of which nobody knows what they are. They are left alone.
    pub unknown: Vec<u32>,
    /// The first number of a file that is free.
    pub next_file: u32,
    /// In the order of the log.
    pub damages: Vec<Damage>,
    /// The log ends at a group that was begun: this is wrong with it.
    pub torn: Option<JournalError>,
}

impl Default for Recovered {
    fn default() -> Recovered {
        Survey::new(StoreId::default()).order().finish()
    }
}

/// A file that is a segment.
#[derive(Clone, Copy, Debug)]
struct Found {
    file: u32,
    epoch: u64,
    segment: u64,
    /// Sequence of its first group, or where it would be.
    begin: u64,
    /// What the header says of `needed`, or what is wrong with it.
    needed: Result<u64, JournalError>,
}

/// Finds out which files are segments. See the module.
#[derive(Debug)]
pub struct Survey {
    store: StoreId,
    found: Vec<Found>,
    spares: Vec<u32>,
    unknown: Vec<u32>,
    next_file: u32,
}

impl Survey {
    /// Of the journal of `store`.
    pub fn new(store: StoreId) -> Survey {
        Survey { store, found: vec![], spares: vec![], unknown: vec![], next_file: 0 }
    }

    /// Looks at a file, of any length. Its first block is enough where [`SegmentHeader::decode`]
    /// succeeds; otherwise it must be all of it. What cannot be read is handed in as zeros.
    ///
    /// # Errors
    /// If the journal is not one that may be read here.
    pub fn add(&mut self, file: u32, image: &[u8]) -> Result<(), SurveyError> {
        self.next_file = self.next_file.max(file.saturating_add(1));
        match SegmentHeader::decode(image) {
            Ok(header) if header.store != self.store => return Err(SurveyError::Store { file }),
            Err(error @ JournalError::Version(_)) => {
                return Err(SurveyError::Version { file, error });
            }
            Ok(SegmentHeader { epoch, segment, end, needed, .. }) => {
                let (begin, needed) = (end.group, Ok(needed));
                self.found.push(Found { file, epoch, segment, begin, needed });
            }
            Err(error) => match first_group(image, self.store) {
                Some((place, begin)) => {
                    let GroupPlace { epoch, segment, .. } = place;
                    self.found.push(Found { file, epoch, segment, begin, needed: Err(error) });
                }
                None if image.iter().skip(DISK_ALIGN_BYTES).all(|&byte| byte == 0) => {
                    self.spares.push(file);
                }
                None => self.unknown.push(file),
            },
        }
        Ok(())
    }

    /// All files were looked at: in which order are they to be read?
    pub fn order(self) -> Replay {
        let Survey { store, mut found, mut spares, unknown, next_file } = self;
        found.sort_by_key(|found| (found.epoch, found.segment));
        let needed = found.iter().rev().find_map(|found| found.needed.ok()).unwrap_or(1);
        let (mut plan, mut end) = (Vec::new(), None);
        for &found in found.iter().rev() {
            match end {
                Some(end) if end <= needed || end <= found.begin => spares.push(found.file),
                _ => plan.push((found, end.unwrap_or(u64::MAX))),
            }
            end = Some(end.map_or(found.begin, |end: u64| end.min(found.begin)));
        }
        plan.reverse();
        let recovered = Recovered {
            epoch: found.last().map_or(0, |last| last.epoch),
            end: LogEnd { segment: 0, group: needed, offset: 0 },
            needed,
            live: Vec::with_capacity(plan.len()),
            spares,
            unmade: Vec::new(),
            unknown,
            next_file,
            damages: Vec::new(),
            torn: None,
        };
        Replay { store, plan, synced: 0, judged: 0, suspect: None, recovered }
    }
}

/// Reads the segments of the log in order. See the module.
#[derive(Debug)]
pub struct Replay {
    store: StoreId,
    /// With the sequence where the log goes on in another segment.
    plan: Vec<(Found, u64)>,
    /// The last group that is known to have been synced in the epoch that is read.
    synced: u64,
    /// Damages of which it is known whether what they hit was synced.
    judged: usize,
    /// What is not whole behind the last whole group: segment, offset, what is wrong.
    suspect: Option<(u64, u64, JournalError)>,
    /// As far as it was read; `live` are the segments that were.
    recovered: Recovered,
}

impl Replay {
    /// The file that is to be read next, all of it; `None` when all were.
    pub fn next_file(&self) -> Option<u32> {
        self.plan.get(self.recovered.live.len()).map(|(found, _)| found.file)
    }

    /// Reads the image of [`next_file`](Self::next_file): the groups of the log in it that are
    /// needed, in order. What cannot be read is handed in as zeros.
    ///
    /// # Panics
    /// If there is no next file.
    pub fn read<'a>(&mut self, image: &'a [u8]) -> Vec<Group<'a>> {
        let (found, end) = self.plan[self.recovered.live.len()];
        let Found { file, epoch, segment, .. } = found;
        self.recovered.live.push(LiveSegment { file, segment, end_group: end });
        self.begin(&found);
        let (mut groups, mut offset) = (Vec::new(), DISK_ALIGN_BYTES);
        while offset < image.len() && self.recovered.end.group < end {
            let page = (offset / DISK_ALIGN_BYTES) as u32;
            let place = GroupPlace { store: self.store, epoch, segment, page };
            match Group::decode(&image[offset..], &place) {
                Ok(group) if group.group >= end => break,
                Ok(group)
                    if group.group > self.recovered.end.group
                        && self.next_file().is_none()
                        && !self.was_synced(&image[offset..], &place) =>
                {
                    break;
                }
                Ok(group) => {
                    offset += group.image_bytes();
                    if group.group > self.recovered.end.group {
                        self.lose_until(group.group);
                    }
                    self.suspect = None;
                    if group.group == self.recovered.end.group {
                        let (group_end, offset) = (group.group + 1, offset as u64);
                        self.recovered.end = LogEnd { segment, group: group_end, offset };
                        self.synced = self.synced.max(group.synced);
                        groups.push(group);
                    }
                }
                Err(error) => {
                    self.suspect.get_or_insert((segment, offset as u64, error));
                    offset += DISK_ALIGN_BYTES;
                }
            }
        }
        groups
    }

    /// Whether the group that is missing was synced, as one of those says that are left in the last
    /// segment. If it was not, none of these was: whoever relied on them relied on it as well.
    fn was_synced(&self, image: &[u8], place: &GroupPlace) -> bool {
        let missing = self.recovered.end.group;
        let mut offsets = (0..image.len()).step_by(DISK_ALIGN_BYTES);
        let says = |offset: usize| {
            let page = place.page + (offset / DISK_ALIGN_BYTES) as u32;
            let group = Group::decode(&image[offset..], &GroupPlace { page, ..*place });
            group.is_ok_and(|group| group.synced >= missing)
        };
        self.synced >= missing || offsets.any(says)
    }

    /// Where the log ends, and all that was found on the way.
    ///
    /// # Panics
    /// If not all segments were read.
    pub fn finish(mut self) -> Recovered {
        assert!(self.next_file().is_none(), "every segment is read before the end is known");
        self.judge();
        self.recovered.torn = match self.suspect {
            None | Some((_, _, JournalError::Magic(_) | JournalError::Another { .. })) => None,
            Some((_, _, error)) => Some(error),
        };
        self.recovered
    }

    /// What the begin of a segment says of the log before it.
    fn begin(&mut self, found: &Found) {
        let before = self.recovered.live.len().checked_sub(2).map(|last| self.plan[last].0.epoch);
        if before != Some(found.epoch) {
            // What an earlier recovery did not find is not there for the later epoch to sync.
            self.judge();
        }
        if found.begin > self.recovered.end.group {
            self.lose_until(found.begin);
        }
        let segment = found.segment;
        match found.needed {
            // All before a segment was synced when it was opened.
            Ok(_) => self.synced = self.synced.max(found.begin - 1),
            Err(error) => {
                let (lost, why) = (0..0, Some(error));
                let damage = Damage { segment, offset: 0, why, lost, was_synced: false };
                self.recovered.damages.push(damage);
            }
        }
        self.suspect = None;
        let (group, offset) = (self.recovered.end.group, DISK_ALIGN_BYTES as u64);
        self.recovered.end = LogEnd { segment, group, offset };
    }

    /// Says of the damages of an epoch whether what they hit was synced.
    fn judge(&mut self) {
        for damage in &mut self.recovered.damages[self.judged..] {
            damage.was_synced = !damage.lost.is_empty() && damage.lost.start <= self.synced;
        }
        self.judged = self.recovered.damages.len();
    }

    /// The log goes on at `group`, and what should stand before it is nowhere.
    fn lose_until(&mut self, group: u64) {
        let LogEnd { segment, offset, .. } = self.recovered.end;
        let (segment, offset, why) = match self.suspect {
            Some((segment, offset, why)) => (segment, offset, Some(why)),
            None => (segment, offset, None),
        };
        let lost = self.recovered.end.group..group;
        let damage = Damage { segment, offset, why, lost, was_synced: false };
        self.recovered.damages.push(damage);
        self.recovered.end.group = group;
    }
}

/// The first whole group of the latest segment that the groups in `image` name; it stands where it
/// says. For a segment whose header is damaged.
fn first_group(image: &[u8], store: StoreId) -> Option<(GroupPlace, u64)> {
    let mut first: Option<(GroupPlace, u64)> = None;
    for (page, offset) in (0..image.len()).step_by(DISK_ALIGN_BYTES).enumerate().skip(1) {
        let here = &image[offset..];
        let Some(place) = GroupPlace::read_unchecked(here, store) else { continue };
        let is_later = first
            .is_none_or(|(first, _)| (first.epoch, first.segment) < (place.epoch, place.segment));
        if place.page as usize == page
            && is_later
            && let Ok(group) = Group::decode(here, &place)
        {
            first = Some((place, group.group));
        }
    }
    first
}

#[cfg(test)]
mod tests;
