//! One producer handle on a queue: its place in the sequence, its window, what it must be told;
//! and what the queue remembers of producer ids after their handles are gone.

use crate::base::slot_map::Key;
use crate::protocol::hot::{Confirm, Reached};
use crate::queue::assembly::Assembly;
use crate::queue::consumer::Owner;
use std::collections::{BTreeMap, VecDeque};

/// See the module.
pub struct Producer {
    /// The connection and handle.
    pub owner: Owner,
    /// 0: anonymous.
    pub id: u64,
    /// Sequence that the next record must have.
    pub next_sequence: u64,
    /// A publish was refused here: nothing else is taken until it comes again.
    pub refusing_at: Option<u64>,
    /// Payload bytes of publishes, taken or not.
    pub received_bytes: u64,
    /// What `received_bytes` may grow to.
    pub window_bytes_total: u64,
    /// A large message that is coming in.
    pub assembly: Option<Assembly>,
    /// Of a durable queue: what is taken and not confirmed yet.
    held: Option<Held>,
    duplicates: u32,
    dropped: u32,
    confirm_due: bool,
    confirm_listed: bool,
}

/// What is taken and waits for the journal.
struct Held {
    /// Records before it are confirmed.
    confirmed: u64,
    /// In order: when the queue's messages before the first have come so far, records before the
    /// second are to be confirmed. The last may be later than need be.
    waiting: VecDeque<(u64, u64)>,
}

/// Confirms of one handle that wait for different groups of the journal.
const HELD_MAX: usize = 64;

impl Producer {
    /// A handle that has published nothing yet.
    pub fn new(owner: Owner, id: u64, next_sequence: u64, window_bytes: u64) -> Self {
        Producer {
            owner,
            id,
            next_sequence,
            refusing_at: None,
            received_bytes: 0,
            window_bytes_total: window_bytes,
            assembly: None,
            held: None,
            duplicates: 0,
            dropped: 0,
            confirm_due: false,
            confirm_listed: false,
        }
    }

    /// Records up to `next_sequence` are taken; a confirm is due. Also when nothing was taken but
    /// the window has to be told.
    pub fn note_taken(&mut self, next_sequence: u64, duplicates: u32, dropped: u32) {
        self.next_sequence = next_sequence;
        self.duplicates = self.duplicates.saturating_add(duplicates);
        self.dropped = self.dropped.saturating_add(dropped);
        self.confirm_due |= self.held.is_none();
    }

    /// A confirm is due for the window's sake, whatever there is to confirm.
    pub fn note_window_due(&mut self) {
        self.confirm_due = true;
    }

    /// From now on what is taken is confirmed when [`Producer::hold`] and
    /// [`Producer::note_reached`] say so; records before `sequence` are confirmed.
    pub fn hold_from(&mut self, sequence: u64) {
        self.held = Some(Held { confirmed: sequence, waiting: VecDeque::new() });
    }

    /// What is taken is to be confirmed when the queue's messages before `end_sequence` have come
    /// far enough. Whether nothing waited before.
    pub fn hold(&mut self, end_sequence: u64) -> bool {
        let next = self.next_sequence;
        let Some(held) = &mut self.held else { return false };
        let (is_first, is_long) = (held.waiting.is_empty(), held.waiting.len() >= HELD_MAX);
        match held.waiting.back_mut() {
            Some(last) if last.0 == end_sequence || is_long => *last = (end_sequence, next),
            _ => held.waiting.push_back((end_sequence, next)),
        }
        is_first
    }

    /// The queue's messages before `end_sequence` have come far enough. False if there is nothing
    /// left that waits.
    pub fn note_reached(&mut self, end_sequence: u64) -> bool {
        let Some(held) = &mut self.held else { return false };
        while let Some(&(needed, next)) = held.waiting.front()
            && needed <= end_sequence
        {
            held.waiting.pop_front();
            held.confirmed = next;
            self.confirm_due = true;
        }
        !held.waiting.is_empty()
    }

    /// What is not confirmed yet: where it begins, and what the last of it waits for.
    pub fn held(&self) -> Option<(u64, u64)> {
        let held = self.held.as_ref()?;
        Some((held.confirmed, held.waiting.back()?.0))
    }

    /// Grants `ahead_bytes` beyond what was received; a window never shrinks.
    pub fn grant(&mut self, ahead_bytes: u64) -> u64 {
        let total = self.received_bytes.saturating_add(ahead_bytes);
        self.window_bytes_total = self.window_bytes_total.max(total);
        self.window_bytes_total
    }

    /// Whether a confirm is due and was not listed since the last one; from now on it is.
    pub fn note_confirm_listed(&mut self) -> bool {
        self.confirm_due && !std::mem::replace(&mut self.confirm_listed, true)
    }

    /// The confirm that is due, with `ahead_bytes` of window.
    pub fn poll_confirm(&mut self, ahead_bytes: u64, reached: Reached) -> Option<Confirm> {
        self.confirm_listed = false;
        if !std::mem::take(&mut self.confirm_due) {
            return None;
        }
        let next = self.held.as_ref().map_or(self.next_sequence, |held| held.confirmed);
        Some(Confirm {
            sequence: next - 1,
            window_bytes_total: self.grant(ahead_bytes),
            duplicates: std::mem::take(&mut self.duplicates),
            dropped: std::mem::take(&mut self.dropped),
            reached,
        })
    }
}

/// What is remembered of one producer id.
#[derive(Clone, Copy, Debug)]
pub struct KnownProducer {
    /// Last sequence taken, when no handle is open.
    pub last_sequence: u64,
    /// The handle that has it open.
    pub handle: Option<Key>,
    /// When it was closed: the first sequence that was not confirmed, and the end of the queue's
    /// messages that it waited for.
    pub held: Option<(u64, u64)>,
    closed_as: u64,
}

/// Producer ids of a queue: bounded by count, the one closed longest ago is forgotten first.
#[derive(Default)]
pub struct KnownProducers {
    ids: BTreeMap<u64, KnownProducer>,
    /// `(closed_as, id)` in order of closing; stale where the id was opened since.
    closed: VecDeque<(u64, u64)>,
    closings: u64,
}

impl KnownProducers {
    /// Ids remembered.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no id is remembered.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// All ids; those that are open with their handles.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &KnownProducer)> {
        self.ids.iter().map(|(&id, known)| (id, known))
    }

    /// What is known of an id.
    pub fn find(&self, id: u64) -> Option<KnownProducer> {
        self.ids.get(&id).copied()
    }

    /// Notes that a handle has the id open. Makes room by forgetting one if there are
    /// `count_max`; `None`, and nothing noted, if all of those are open. Else whether one was
    /// forgotten.
    pub fn open(&mut self, id: u64, handle: Key, count_max: usize) -> Option<bool> {
        let mut forgot = false;
        if !self.ids.contains_key(&id) && self.ids.len() >= count_max {
            if !self.forget_oldest() {
                return None;
            }
            forgot = true;
        }
        let known =
            KnownProducer { last_sequence: 0, handle: Some(handle), held: None, closed_as: 0 };
        self.ids.insert(id, known);
        Some(forgot)
    }

    /// Notes that the handle is closed and how far it came.
    pub fn close(&mut self, id: u64, last_sequence: u64, held: Option<(u64, u64)>) {
        self.closings += 1;
        let closed_as = self.closings;
        self.ids.insert(id, KnownProducer { last_sequence, handle: None, held, closed_as });
        self.closed.push_back((closed_as, id));
        // Stale entries are dropped before they outnumber the ids.
        if self.closed.len() > 2 * self.ids.len() + 16 {
            let ids = &self.ids;
            self.closed.retain(|(closed_as, id)| is_current(ids, *closed_as, *id));
        }
    }

    fn forget_oldest(&mut self) -> bool {
        while let Some((closed_as, id)) = self.closed.pop_front() {
            if is_current(&self.ids, closed_as, id) {
                self.ids.remove(&id);
                return true;
            }
        }
        false
    }
}

fn is_current(ids: &BTreeMap<u64, KnownProducer>, closed_as: u64, id: u64) -> bool {
    ids.get(&id).is_some_and(|known| known.handle.is_none() && known.closed_as == closed_as)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_closed_longest_ago_is_forgotten_first() {
        let key = Key { index: 0, generation: 0 };
        let mut known = KnownProducers::default();
        for id in 1..=3 {
            assert_eq!(known.open(id, key, 3), Some(false));
        }
        assert_eq!(known.open(4, key, 3), None);
        known.close(2, 20, None);
        known.close(1, 10, None);
        known.open(2, key, 3);
        known.close(2, 21, None);
        assert_eq!(known.open(4, key, 3), Some(true));
        assert!(known.find(1).is_none());
        assert_eq!(known.find(2).map(|k| k.last_sequence), Some(21));
        for turn in 0..1000 {
            known.open(2, key, 3);
            known.close(2, turn, None);
        }
        assert!(known.closed.len() <= 2 * known.len() + 17);
    }
}
