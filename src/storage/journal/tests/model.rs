//! Random histories of a journal on a disk that stops, tears and rots, against a model that knows
//! only what was appended and what it was told.

use super::disk::Disk;
use super::*;
use crate::storage::replay::Survey;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// One step of a history; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Append(usize, bool),
    Poll,
    Complete(usize),
    Fail(usize),
    Sync,
    Release(u64),
    Retry,
    /// With bits that flip before the next start.
    Crash(bool, Vec<usize>),
    /// Until nothing is left to do.
    Rest,
}

fn step(flips: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0..5000usize, any::<bool>()).prop_map(|(bytes, wants)| Step::Append(bytes, wants)),
        30 => Just(Step::Poll),
        30 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Fail),
        2 => Just(Step::Sync),
        4 => (0..6u64).prop_map(Step::Release),
        1 => Just(Step::Retry),
        3 => (any::<bool>(), vec(any::<usize>(), 0..=flips)).prop_map(|(p, f)| Step::Crash(p, f)),
        5 => Just(Step::Rest),
    ]
}

struct World {
    disk: Disk,
    journal: Journal,
    /// The bodies of each group that may come back: those that did at the last start, and later.
    log: BTreeMap<u64, Vec<Vec<u8>>>,
    /// What the log held before a start, which may have ended it earlier.
    dropped: BTreeMap<u64, Vec<Vec<u8>>>,
    next_body: u64,
    /// What was ever reported, as far as the log has it.
    synced: u64,
    released: u64,
    /// The last group that somebody wants to be synced.
    wanted: u64,
    /// A bit flipped once.
    rots: bool,
}

impl World {
    fn new(seed: u64) -> World {
        let journal = Journal::open(STORE, SHAPE, &Recovered::default());
        let (log, next_body, synced, released) = (BTreeMap::new(), 0, 0, 0);
        let (disk, wanted, rots) = (Disk::new(seed), 0, false);
        World {
            disk,
            journal,
            log,
            dropped: BTreeMap::new(),
            next_body,
            synced,
            released,
            wanted,
            rots,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(bytes, wants_synced) => {
                self.append(bytes, wants_synced);
            }
            Step::Poll => self.poll(),
            Step::Complete(nth) if !self.disk.under_way.is_empty() => self.complete(nth, false),
            Step::Fail(nth) if !self.disk.under_way.is_empty() => self.complete(nth, true),
            Step::Sync => {
                self.journal.sync();
                self.wanted = self.log.keys().next_back().map_or(0, |&last| last);
            }
            Step::Release(back) => {
                let group = self.journal.progress().synced.saturating_sub(back);
                self.released = self.released.max(group);
                self.journal.release(group);
            }
            Step::Retry => self.journal.retry(),
            Step::Crash(power_fails, flips) => self.crash(power_fails, &flips),
            Step::Rest => self.rest(),
            _ => {}
        }
    }

    fn append(&mut self, bytes: usize, wants_synced: bool) -> Option<u64> {
        let mut body = self.next_body.to_le_bytes().to_vec();
        body.resize(8 + bytes, bytes as u8);
        let kind = RecordKind::from_number(1 + (bytes % 9) as u8).unwrap();
        match self.journal.append(kind, 0, &[&body], wants_synced) {
            Ok(group) => {
                self.next_body += 1;
                self.wanted = if wants_synced { group } else { self.wanted };
                self.log.entry(group).or_default().push(body);
                Some(group)
            }
            Err(AppendError::Full) => None,
            Err(AppendError::Poisoned(poison)) => {
                assert_eq!(self.journal.poison(), Some(poison));
                None
            }
        }
    }

    fn poll(&mut self) {
        while let Some(request) = self.journal.poll_request() {
            assert_eq!(self.journal.poison(), None, "nothing is done after a failure");
            self.disk.submit(request);
        }
    }

    fn complete(&mut self, nth: usize, fails: bool) {
        let before = self.journal.progress();
        let (tag, result, image) = self.disk.complete(nth, fails);
        let progress = self.journal.handle_completed(tag, result, image);
        assert!(progress.synced <= progress.written);
        assert!(!fails || progress == before, "what fails brings nothing on");
        self.synced = self.synced.max(progress.synced);
    }

    fn rest(&mut self) {
        self.poll();
        while !self.disk.under_way.is_empty() {
            self.complete(0, false);
            self.poll();
        }
        let is_stuck = self.journal.poison().is_some() || self.journal.blocked().is_some();
        assert!(is_stuck || self.journal.progress().synced >= self.wanted);
    }

    fn crash(&mut self, power_fails: bool, flips: &[usize]) {
        let written = if power_fails { 0 } else { self.journal.progress().written };
        let must = self.synced.max(written);
        let segments: Vec<_> = self.journal.segments().collect();
        self.disk.crash(power_fails);
        self.rots |= !flips.is_empty();
        flips.iter().for_each(|&at| self.disk.flip(&segments, at));
        self.start(must, flips.len());
    }

    /// Starts anew; all groups of the log up to `must` must be there, or be reported.
    fn start(&mut self, must: u64, flips: usize) {
        let (groups, mut recovered) = recover(&self.disk.images());
        let found: Vec<u64> = groups.iter().map(|(group, _)| *group).collect();
        assert!(found.is_sorted_by(|a, b| a < b), "each group once, in order: {found:?}");
        for (group, bodies) in &groups {
            // What ended the log may be passed over once the header before it has rotted, too.
            let is_old = flips > 0 && self.dropped.get(group) == Some(bodies);
            let is_known = is_old || self.log.get(group) == Some(bodies);
            assert!(is_known, "group {group} as it was appended: {bodies:?}");
        }
        assert!(flips > 0 || recovered.needed <= self.released + 1, "only what is not needed goes");
        let is_lost = |group: &u64| recovered.damages.iter().any(|d| d.lost.contains(group));
        assert!(!found.iter().any(is_lost), "what is lost is not there");
        let is_missing = |group: &u64| (self.released + 1..=must).contains(group);
        let is_missing = |group: &u64| is_missing(group) && !found.contains(group);
        let missing: Vec<u64> = self.log.keys().copied().filter(is_missing).collect();
        // A bit costs one group, or the end of the log: from one on of which no later one says that
        // it was synced.
        let missing_before = missing.iter().filter(|&&group| group < recovered.end.group).count();
        assert!(missing_before <= flips, "{missing:?} of {must} are lost, {recovered:?}");
        assert!(missing.is_empty() || flips > 0, "{missing:?} of {must} are lost, {recovered:?}");
        let is_told = |group: &u64| is_lost(group) || *group >= recovered.end.group;
        assert!(missing.iter().all(is_told), "{missing:?} are not told of, {recovered:?}");
        for damage in &recovered.damages {
            let lost: Vec<u64> = damage.lost.clone().filter(|g| self.log.contains_key(g)).collect();
            let is_new = lost.first().is_some_and(|&first| first == damage.lost.start);
            assert!(!is_new || !damage.was_synced || damage.lost.start <= self.synced);
            assert!(self.rots || !damage.was_synced, "a false alarm: {damage}");
            assert!(self.rots || !damage.lost.is_empty(), "a false alarm: {damage}");
        }
        // What is not needed may come back, if the header that said so does not.
        self.dropped.extend(self.log.clone());
        self.log.retain(|group, _| *group < recovered.needed || found.contains(group));
        let back = groups.into_iter().filter(|(group, _)| !self.log.contains_key(group));
        self.log.extend(back.collect::<Vec<_>>());
        self.synced = self.synced.min(recovered.end.group - 1);
        self.released = self.released.min(self.synced);
        self.wanted = 0;
        let images: BTreeMap<u32, usize> =
            self.disk.images().into_iter().map(|(file, image)| (file, image.len())).collect();
        recovered.spares.retain(|file| images[file] as u64 == SHAPE.segment_bytes);
        self.journal = Journal::open(STORE, SHAPE, &recovered);
    }
}

/// A group's sequence and the bodies of its records.
type Bodies = (u64, Vec<Vec<u8>>);

/// What stands in these files.
fn recover(images: &[(u32, Vec<u8>)]) -> (Vec<Bodies>, Recovered) {
    let mut survey = Survey::new(STORE);
    for (file, image) in images {
        let block = &image[..image.len().min(4096)];
        let has_header = crate::format::journal::SegmentHeader::decode(block).is_ok();
        survey.add(*file, if has_header { block } else { image }).unwrap();
    }
    let (mut replay, mut found) = (survey.order(), vec![]);
    while let Some(file) = replay.next_file() {
        let (_, image) = images.iter().find(|(number, _)| *number == file).unwrap();
        for group in replay.read(image) {
            let bodies = group.records().map(|record| record.body.to_vec()).collect();
            found.push((group.group, bodies));
        }
    }
    (found, replay.finish())
}

fn history(seed: u64, steps: Vec<Step>) {
    let mut world = World::new(seed);
    steps.into_iter().for_each(|step| world.step(step));
    // However it was left, it goes on, twice in a row.
    for power_fails in [false, true] {
        world.crash(power_fails, &[]);
        world.rest();
        assert!(world.journal.is_ready());
        let group = world.append(100, true).unwrap();
        world.rest();
        assert_eq!(world.journal.progress(), Progress { written: group, synced: group });
    }
    world.crash(true, &[]);
    assert!(world.log.keys().next_back().is_some_and(|&last| last == world.synced));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_was_synced_survives(seed: u64, steps in vec(step(0), 0..300)) {
        history(seed, steps);
    }

    #[test]
    fn what_rots_is_told_of(seed: u64, steps in vec(step(3), 0..300)) {
        history(seed, steps);
    }
}
