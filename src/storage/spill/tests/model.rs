//! Random histories of a store against a model that knows only what it was told: ranges of the
//! file, and who may write there.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// One step of a history; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Write(Vec<usize>),
    Written(usize, u8),
    Read(usize),
    WasRead(usize, u8),
    ReadAgain,
    Free(usize),
    Poll(u64),
    Changed(usize, u8),
    Later(u64),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => vec(1..=4usize, 1..4).prop_map(Step::Write),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(nth, how)| Step::Written(nth, how)),
        3 => any::<usize>().prop_map(Step::Read),
        3 => (any::<usize>(), any::<u8>()).prop_map(|(nth, how)| Step::WasRead(nth, how)),
        3 => Just(Step::ReadAgain),
        6 => any::<usize>().prop_map(Step::Free),
        6 => (0..40u64).prop_map(Step::Poll),
        6 => (any::<usize>(), any::<u8>()).prop_map(|(nth, how)| Step::Changed(nth, how)),
        3 => prop_oneof![0..50u64, 900..6000u64].prop_map(Step::Later),
        1 => Just(Step::Trim),
    ]
}

/// What the model knows of an extent of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocks {
    None,
    Coming,
    Here,
    /// Given back by a trim: it may go, whatever the time.
    Trimmed,
    Going,
}

/// A read: whose, from where, and how often the device refused it.
#[derive(Clone, Copy)]
struct Asked {
    owner: u64,
    offset: u64,
    refusals: u32,
}

struct Model {
    bench: Bench,
    extents: Vec<Blocks>,
    standing: Vec<(u64, Place)>,
    writes: Vec<(PlannedWrite, u64)>,
    reads: Vec<(PlannedRead, Asked)>,
    /// What the device refused, and when it is tried again.
    put_off: Vec<(Mono, Asked)>,
    changes: Vec<StoreRequest>,
    last_write: Mono,
}

const EXTENTS: u64 = 6;

impl Model {
    fn new(warm: u64) -> Model {
        let shape = SpillShape { warm_bytes: warm * EXTENT, ..SHAPE };
        let bench = Bench::new(EXTENTS, shape);
        let mut extents = vec![Blocks::None; 64];
        extents[..warm as usize].fill(Blocks::Here);
        let (standing, writes, changes) = (vec![], vec![], vec![]);
        let (reads, put_off, last_write) = (vec![], vec![], Mono(0));
        Model { bench, extents, standing, writes, reads, put_off, changes, last_write }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(pages) => self.write(&pages),
            Step::Written(nth, how) if !self.writes.is_empty() => {
                let nth = nth % self.writes.len();
                self.written(nth, how);
            }
            Step::Read(nth) if !self.standing.is_empty() && self.bench.store.can_read() => {
                let (owner, place) = &self.standing[nth % self.standing.len()];
                let name = name(*owner, place.image_bytes() / PAGE);
                let into = take(&self.bench.pool);
                let planned = self.bench.store.read(*owner, place.clone(), name, into);
                assert_eq!(planned.offset, place.offset());
                let asked = Asked { owner: *owner, offset: planned.offset, refusals: 0 };
                self.reads.push((planned, asked));
            }
            Step::ReadAgain => self.read_again(),
            Step::WasRead(nth, how) if !self.reads.is_empty() => {
                let nth = nth % self.reads.len();
                self.was_read(nth, how);
            }
            Step::Free(nth) if !self.standing.is_empty() => {
                self.standing.swap_remove(nth % self.standing.len());
            }
            Step::Poll(free_extents) => self.poll(free_extents * EXTENT / 2),
            Step::Changed(nth, how) if !self.changes.is_empty() => {
                let nth = nth % self.changes.len();
                self.changed(nth, how);
            }
            Step::Later(ms) => self.bench.later(ms),
            Step::Trim => self.trim(),
            _ => {}
        }
        self.check();
    }

    /// Slots that hold something, are written or read.
    fn slots_in_use(&self) -> Vec<u64> {
        let standing = self.standing.iter().map(|(_, place)| place.offset());
        let writes = self.writes.iter().map(|(planned, _)| planned.offset);
        let reads = self.reads.iter().map(|(planned, _)| planned.offset);
        let put_off = self.put_off.iter().map(|(_, asked)| asked.offset);
        let offsets = standing.chain(writes).chain(reads).chain(put_off);
        let mut slots: Vec<u64> = offsets.map(|offset| offset / SLOT as u64).collect();
        slots.sort_unstable();
        slots.dedup();
        slots
    }

    fn write(&mut self, pages: &[usize]) {
        let mut left = 4;
        let fits = |pages: &&usize| {
            let fits = **pages <= left;
            left -= if fits { **pages } else { 0 };
            fits
        };
        let pages: Vec<usize> = pages.iter().filter(fits).copied().collect();
        let (before, first) = (self.slots_in_use(), self.bench.next);
        let Some(planned) = self.bench.plan(&pages) else { return };
        let slot = planned.offset / SLOT as u64;
        assert!(!before.contains(&slot), "slot {slot} is in use");
        assert_eq!(self.extents[(planned.offset / EXTENT) as usize], Blocks::Here);
        self.writes.push((planned, first));
        self.last_write = self.bench.now;
    }

    fn written(&mut self, nth: usize, how: u8) {
        let (planned, first) = self.writes.swap_remove(nth);
        let result = match how {
            0..200 => Ok(()),
            200..230 => Err(ErrorKind::Other),
            _ => Err(ErrorKind::StorageFull),
        };
        self.last_write = self.bench.now;
        let count = planned.chunks.len() as u64;
        let owners: Vec<u64> = match self.bench.finish(planned, result) {
            Written::Done(placed) => {
                assert!(result.is_ok());
                let owners = placed.iter().map(|(owner, _)| *owner).collect();
                self.standing.extend(placed);
                owners
            }
            Written::Failed(owners, _) => {
                assert!(result.is_err());
                owners
            }
        };
        assert_eq!(owners, (first..first + count).collect::<Vec<_>>());
    }

    fn was_read(&mut self, nth: usize, how: u8) {
        let (mut planned, Asked { owner, offset, refusals }) = self.reads.swap_remove(nth);
        let (pages, now) = (planned.bytes / PAGE, self.bench.now);
        let result = match how {
            0..200 => Ok(self.bench.load(&mut planned)),
            _ => Err(ErrorKind::Other),
        };
        match self.bench.store.handle_read(planned.tag, planned.into, result, now) {
            Refilled::Whole(whose, sealed) => {
                assert_eq!((whose, result.is_ok()), (owner, true));
                assert_eq!(sealed.image(), chunk(&self.bench.pool, owner, pages).image());
            }
            Refilled::PutOff(_) => {
                assert!(result.is_err() && refusals + 1 < READ_TRIES_MAX);
                let until = now.plus_ms(READ_RETRY_MS << refusals);
                self.put_off.push((until, Asked { owner, offset, refusals: refusals + 1 }));
            }
            Refilled::Lost(..) => assert!(result.is_err() && refusals + 1 == READ_TRIES_MAX),
            Refilled::Again(_) | Refilled::Damaged(..) => panic!("nothing is damaged here"),
        }
    }

    /// The first that is due, if one is.
    fn read_again(&mut self) {
        let due = self.put_off.iter().position(|(until, _)| *until <= self.bench.now);
        let planned = self.bench.store.poll_read(self.bench.now);
        assert_eq!(planned.as_ref().map(|_| ()), due.map(|_| ()));
        if let Some((planned, nth)) = planned.zip(due) {
            let (_, asked) = self.put_off.remove(nth);
            assert_eq!(planned.offset, asked.offset);
            self.reads.push((planned, asked));
        }
    }

    fn poll(&mut self, free_bytes: u64) {
        if !self.writes.is_empty() {
            self.last_write = self.bench.now;
        }
        let used_bytes = self.bench.budget.used_bytes();
        let Some(request) = self.bench.store.poll_request(self.bench.now, || Some(free_bytes))
        else {
            return;
        };
        let (StoreRequest::Allocate { offset, bytes, .. }
        | StoreRequest::Release { offset, bytes, .. }) = request;
        assert_eq!((offset % EXTENT, bytes), (0, EXTENT));
        let extent = &mut self.extents[(offset / EXTENT) as usize];
        match request {
            StoreRequest::Allocate { .. } => {
                assert_eq!(*extent, Blocks::None);
                assert!(free_bytes - EXTENT >= SHAPE.headroom_bytes);
                *extent = Blocks::Coming;
            }
            StoreRequest::Release { .. } => {
                if *extent == Blocks::Here {
                    assert!(self.bench.now.ms_since(self.last_write) >= SPILL_CALM_MS);
                    assert!(used_bytes - EXTENT >= SHAPE.reserve_bytes);
                } else {
                    assert_eq!(*extent, Blocks::Trimmed);
                }
                *extent = Blocks::Going;
            }
        }
        let slots = self.slots_in_use();
        assert!(slots.iter().all(|slot| slot * SLOT as u64 / EXTENT != offset / EXTENT));
        self.changes.push(request);
    }

    fn changed(&mut self, nth: usize, how: u8) {
        let request = self.changes.swap_remove(nth);
        let result = match how {
            0..200 => Ok(()),
            200..230 => Err(ErrorKind::Other),
            _ => Err(ErrorKind::StorageFull),
        };
        let now = self.bench.now;
        match request {
            StoreRequest::Allocate { tag, offset, .. } => {
                self.bench.store.handle_allocated(tag, result, now);
                self.extents[(offset / EXTENT) as usize] =
                    if result.is_ok() { Blocks::Here } else { Blocks::None };
            }
            StoreRequest::Release { tag, offset, .. } => {
                self.bench.store.handle_released(tag, result, now);
                self.extents[(offset / EXTENT) as usize] =
                    if result.is_ok() { Blocks::None } else { Blocks::Here };
            }
        }
    }

    fn trim(&mut self) {
        let slots = self.slots_in_use();
        let mut bytes = 0;
        for (nth, blocks) in self.extents.iter_mut().enumerate() {
            let holds = |slot: &u64| slot * SLOT as u64 / EXTENT == nth as u64;
            if *blocks == Blocks::Here && !slots.iter().any(holds) {
                *blocks = Blocks::Trimmed;
                bytes += EXTENT;
            }
        }
        assert_eq!(self.bench.store.trim(), bytes);
    }

    fn check(&mut self) {
        let stats = self.bench.store.stats();
        let count = |wanted: &[Blocks]| {
            let is = |blocks: &&Blocks| wanted.contains(blocks);
            self.extents.iter().filter(is).count() as u64
        };
        let charged = self.extents.len() as u64 - count(&[Blocks::None]);
        assert_eq!(self.bench.budget.used_bytes(), charged * EXTENT);
        assert_eq!(stats.allocated_bytes, charged * EXTENT);
        assert!(charged <= EXTENTS);
        assert_eq!(stats.leaving_bytes, count(&[Blocks::Trimmed, Blocks::Going]) * EXTENT);
        let slots = u64::from(stats.slots_used + stats.slots_free + stats.slots_bad);
        assert_eq!(slots, 4 * count(&[Blocks::Here]));
        assert_eq!(u64::from(stats.slots_used), self.slots_in_use().len() as u64);
        let standing: usize = self.standing.iter().map(|(_, place)| place.image_bytes()).sum();
        let writing = self.writes.iter().flat_map(|(planned, _)| &planned.chunks);
        let writing: usize = writing.map(|chunk| chunk.image().len()).sum();
        assert_eq!(stats.live_bytes, (standing + writing) as u64);
        let reads = self.reads.len() + self.put_off.len();
        assert_eq!(stats.reads_under_way as usize, reads);
        assert_eq!(self.bench.store.can_read(), reads < SPILL_READ_DEPTH);
        let first = self.put_off.iter().map(|(until, _)| *until).min();
        let next = self.bench.store.next_deadline();
        assert!(first.is_none_or(|until| next.is_some_and(|next| next <= until)));
        if stats.slots_free > 0 && self.writes.is_empty() {
            let ready = self.bench.store.state() == SpillState::Ready;
            assert!(!ready || self.bench.store.can_write());
        }
    }

    /// All comes to a good end, and nothing is left.
    fn finish(mut self) {
        while !self.writes.is_empty() {
            self.written(0, 0);
        }
        self.bench.later(READ_RETRY_MS << READ_TRIES_MAX);
        while !self.put_off.is_empty() {
            self.read_again();
        }
        while !self.reads.is_empty() {
            self.was_read(0, 0);
        }
        while !self.changes.is_empty() {
            self.changed(0, 0);
        }
        for (owner, place) in std::mem::take(&mut self.standing) {
            self.bench.assert_whole(owner, &place);
        }
        self.check();
        self.trim();
        while !self.extents.iter().all(|blocks| *blocks == Blocks::None) {
            // Nothing may grow while all is given back: there is no space for it.
            self.poll(0);
            self.changed(0, 0);
        }
        self.check();
        let stats = self.bench.store.stats();
        assert_eq!((stats.slots_used, stats.slots_free, stats.slots_bad), (0, 0, 0));
        assert_eq!(self.bench.budget.used_bytes(), 0);
        assert!(!self.bench.store.is_busy());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_history_makes_the_store_forget_or_share_a_slot(
        warm in 0..EXTENTS,
        steps in vec(step(), 1..300),
    ) {
        let mut model = Model::new(warm);
        for step in steps {
            model.step(step);
        }
        model.finish();
    }
}
