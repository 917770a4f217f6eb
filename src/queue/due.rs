//! What a subscription gets again: messages that came back and are ready, and failed ones that
//! wait. One entry per run that came back at once, with its bitmap.
//!
//! Ready ones are ordered by sequence, so that each stands at its old place; waiting ones by the
//! time when they are due.

use crate::base::time::Mono;
use crate::limits::RUN_RECORDS_MAX;
use crate::queue::log::{Absent, Log, Run};
use crate::queue::portion::{History, Portion};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// What an entry takes with its share of the tree.
pub const DUE_BYTES: usize = 2 * size_of::<(u64, Portion)>();

/// See the module.
#[derive(Default)]
pub struct DueSet {
    /// By sequence of the first message left.
    ready: BTreeMap<u64, Portion>,
    /// The same, with the time when they are due.
    waiting: BTreeMap<u64, (Mono, Portion)>,
    by_due: BTreeSet<(Mono, u64)>,
}

impl DueSet {
    /// Entries: what is charged.
    pub fn entries(&self) -> usize {
        self.ready.len() + self.waiting.len()
    }

    /// Sequence of the first message that is ready.
    #[inline]
    pub fn first_ready(&self) -> Option<u64> {
        self.ready.first_key_value().map(|(&sequence, _)| sequence)
    }

    /// The chunk that it stands in.
    pub fn first_ready_chunk(&self) -> Option<u64> {
        self.ready.first_key_value().map(|(_, portion)| portion.run.at.chunk)
    }

    /// When the next one is due.
    #[inline]
    pub fn next_due(&self) -> Option<Mono> {
        self.by_due.first().map(|&(at, _)| at)
    }

    /// The first messages that are ready and not before `from`: one stretch, and its sequence.
    pub fn first_ready_from(&self, from: u64, log: &Log) -> Option<(u64, Result<Run, Absent>)> {
        let ready = self.ready.range(near(from)..).map(|(&key, portion)| (key, portion));
        let (sequence, portion, skip, take) = first_stretch(from, ready)?;
        Some((sequence, log.part(&portion.run, skip, take)))
    }

    /// Portions that are ready, by sequence of their first message.
    pub fn ready(&self) -> impl Iterator<Item = &Portion> {
        self.ready.values()
    }

    /// Portions that wait, by sequence of their first message.
    pub fn waiting(&self) -> impl Iterator<Item = &Portion> {
        self.waiting.values().map(|(_, portion)| portion)
    }

    /// The same, with the time when they are due.
    pub fn waiting_with_due(&self) -> impl Iterator<Item = (Mono, &Portion)> {
        self.waiting.values().map(|(due, portion)| (*due, portion))
    }

    /// Adds what is ready.
    pub fn put_ready(&mut self, portion: Portion) {
        debug_assert!(portion.left() > 0);
        let before = self.ready.insert(portion.first_sequence(), portion);
        assert!(before.is_none(), "a message comes back from the one that had it");
    }

    /// Adds what is ready at `due`.
    pub fn put_waiting(&mut self, portion: Portion, due: Mono) {
        debug_assert!(portion.left() > 0);
        let sequence = portion.first_sequence();
        self.by_due.insert((due, sequence));
        let before = self.waiting.insert(sequence, (due, portion));
        assert!(before.is_none(), "a message fails with the one that had it");
    }

    /// Adds to an entry of the same run, where there is no memory for one more. False: none is.
    pub fn merge_ready(&mut self, portion: &Portion) -> bool {
        let key = self.ready.range(reach(portion)).find(|(_, held)| held.is_of(&portion.run));
        let Some((&key, _)) = key else { return false };
        let mut held = self.ready.remove(&key).expect("just found");
        held.add(portion);
        self.put_ready(held);
        true
    }

    /// The same for what is ready at `due`: the later of both times counts for all of the entry.
    pub fn merge_waiting(&mut self, portion: &Portion, due: Mono) -> bool {
        let mut near = self.waiting.range(reach(portion));
        let key = near.find(|(_, (_, held))| held.is_of(&portion.run));
        let Some((&key, _)) = key else { return false };
        let (at, mut held) = self.remove_waiting(key).expect("just found");
        held.add(portion);
        self.put_waiting(held, at.max(due));
        true
    }

    /// Takes the first messages that are ready: at most `records_max`, the last of which may pass
    /// `bytes_max`.
    ///
    /// # Errors
    /// If their chunk is absent; then nothing is taken.
    pub fn take_front(
        &mut self,
        log: &Log,
        records_max: u32,
        bytes_max: u64,
    ) -> Result<(Run, History), Absent> {
        let mut first = self.ready.first_entry().expect("the caller looked");
        let portion = first.get_mut();
        let (run, history) = (portion.run, portion.history);
        let (skip, take) = portion.next(0, run.count).expect("an entry is not empty");
        let stretch = log.part(&run, skip, take)?;
        let count = log.front_count(&stretch, records_max, bytes_max)?;
        // Of the run, not of the stretch: shares of shares would not add up.
        let taken = log.part(&run, skip, count)?;
        portion.take(skip, skip + count);
        let portion = first.remove();
        if portion.left() > 0 {
            self.put_ready(portion);
        }
        Ok((taken, history))
    }

    /// Takes one message that is ready, if its chunk is there.
    pub fn pick(&mut self, sequence: u64, log: &Log) -> Option<(Run, History)> {
        let reach = near(sequence)..=sequence;
        let nth = |portion: &Portion| {
            let nth = sequence.wrapping_sub(portion.run.sequence);
            (nth < u64::from(portion.run.count) && portion.has(nth as u32)).then_some(nth as u32)
        };
        let mut near = self.ready.range(reach);
        let (key, nth) = near.find_map(|(&key, portion)| Some((key, nth(portion)?)))?;
        let picked = log.part(&self.ready.get(&key)?.run, nth, 1).ok()?;
        let mut portion = self.ready.remove(&key)?;
        portion.take(nth, nth + 1);
        let picked = (picked, portion.history);
        if portion.left() > 0 {
            self.put_ready(portion);
        }
        Some(picked)
    }

    /// Makes an entry ready that is due at `now`, at most one. Returns how many messages.
    pub fn wake(&mut self, now: Mono) -> Option<u64> {
        let &(_, key) = self.by_due.first().filter(|&&(due, _)| due <= now)?;
        let (_, portion) = self.remove_waiting(key)?;
        let count = u64::from(portion.left());
        self.put_ready(portion);
        Some(count)
    }

    /// The first messages that are ready or wait, not before `from`: one stretch, and its sequence.
    pub fn first_from(&self, from: u64, log: &Log) -> Option<(u64, Result<Run, Absent>)> {
        let ready = self.ready.range(near(from)..).map(|(&key, portion)| (key, portion));
        let ready = first_stretch(from, ready);
        let waiting = self.waiting.range(near(from)..);
        let waiting = first_stretch(from, waiting.map(|(&key, (_, portion))| (key, portion)));
        let (sequence, portion, skip, take) =
            ready.into_iter().chain(waiting).min_by_key(|&(sequence, ..)| sequence)?;
        Some((sequence, log.part(&portion.run, skip, take)))
    }

    /// Takes out messages by sequence: portions that were ready, and such that waited.
    pub fn remove(&mut self, range: &Range<u64>) -> (Vec<Portion>, Vec<Portion>) {
        let reach = near(range.start)..range.end;
        let (mut ready, mut waiting) = (Vec::new(), Vec::new());
        let keys: Vec<u64> = self.ready.range(reach.clone()).map(|(&key, _)| key).collect();
        for key in keys {
            let Some(mut portion) = self.ready.remove(&key) else { continue };
            ready.extend(portion.take_range(range));
            if portion.left() > 0 {
                self.put_ready(portion);
            }
        }
        let keys: Vec<u64> = self.waiting.range(reach).map(|(&key, _)| key).collect();
        for key in keys {
            let Some((due, mut portion)) = self.remove_waiting(key) else { continue };
            waiting.extend(portion.take_range(range));
            if portion.left() > 0 {
                self.put_waiting(portion, due);
            }
        }
        (ready, waiting)
    }

    /// Takes everything.
    pub fn drain(&mut self) -> impl Iterator<Item = Portion> + use<> {
        self.by_due.clear();
        let waiting = std::mem::take(&mut self.waiting).into_values();
        let ready = std::mem::take(&mut self.ready).into_values();
        ready.chain(waiting.map(|(_, portion)| portion))
    }

    fn remove_waiting(&mut self, key: u64) -> Option<(Mono, Portion)> {
        let (due, portion) = self.waiting.remove(&key)?;
        self.by_due.remove(&(due, key));
        Some((due, portion))
    }
}

/// Where an entry of the same run may stand.
fn reach(portion: &Portion) -> Range<u64> {
    portion.run.sequence..portion.run.sequence + u64::from(portion.run.count)
}

/// The smallest key of an entry that may have message `sequence`.
fn near(sequence: u64) -> u64 {
    sequence.saturating_sub(RUN_RECORDS_MAX as u64 - 1)
}

/// The first stretch of entries in the order of their keys, not before `from`.
fn first_stretch<'a>(
    from: u64,
    entries: impl Iterator<Item = (u64, &'a Portion)>,
) -> Option<(u64, &'a Portion, u32, u32)> {
    let mut best: Option<(u64, &Portion, u32, u32)> = None;
    for (key, portion) in entries {
        // Entries may be interleaved, but none begins before its key.
        if best.is_some_and(|(sequence, ..)| sequence <= key) {
            break;
        }
        let start = from.saturating_sub(portion.run.sequence).min(u64::from(portion.run.count));
        let Some((skip, take)) = portion.next(start as u32, portion.run.count) else { continue };
        let sequence = portion.run.sequence + u64::from(skip);
        if best.is_none_or(|(before, ..)| sequence < before) {
            best = Some((sequence, portion, skip, take));
        }
    }
    best
}
