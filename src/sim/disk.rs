//! The simulated disk of a shard: completions late and in any order, and only so many requests at a
//! time. What is not flushed never ends. What stands on it is the [`Device`]'s, which all share.
//!
//! [`Device`]: crate::sim::device::Device

use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::{DISK_ALIGN_BYTES, DISK_WRITE_CHUNKS_MAX};
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

struct Pending {
    /// `None` until it is flushed.
    due_ns: Option<u64>,
    /// Of a sync: the last write that had ended when it began.
    writes_before: u64,
    /// Of a sync: the file's length then.
    bytes_before: usize,
    request: DiskRequest,
}

/// See the module.
pub struct SimDisk {
    universe: Rc<Universe>,
    number: usize,
    pending: Vec<Pending>,
    depth_max: usize,
    open: BTreeSet<FileId>,
}

impl SimDisk {
    /// A shard's way to the device.
    pub fn new(universe: Rc<Universe>) -> Self {
        let depth_max = universe.range(1, 16) as usize;
        let number = universe.add_disk();
        SimDisk { number, universe, pending: Vec::new(), depth_max, open: BTreeSet::new() }
    }

    /// The world that it is in.
    pub fn universe(&self) -> &Rc<Universe> {
        &self.universe
    }

    /// Whether it takes no more requests for now.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= self.depth_max
    }

    fn tell_due(&self) {
        let due_ns = self.pending.iter().filter_map(|pending| pending.due_ns).min();
        self.universe.disk_due(self.number, due_ns);
    }

    /// What is under way where `request` goes, so that nobody can say what comes of it.
    fn check_apart(&self, request: &DiskRequest) {
        let range = range_of(request);
        for Pending { request: other, .. } in &self.pending {
            let other_range = range_of(other);
            let apart = other_range.end <= range.start || range.end <= other_range.start;
            let kinds = [request, other];
            let releases = kinds.iter().any(|of| matches!(of, DiskRequest::Release { .. }));
            let writes = kinds
                .iter()
                .any(|of| matches!(of, DiskRequest::Write { .. } | DiskRequest::WritePages { .. }));
            assert!(apart || file_of(request) != file_of(other) || !releases, "released in use");
            assert!(apart || file_of(request) != file_of(other) || !writes, "written in use");
        }
    }

    fn check_open(&self, file: FileId) {
        assert!(self.open.contains(&file), "a file that is not open");
    }
}

impl Disk for SimDisk {
    fn open(&mut self, name: &str) -> std::io::Result<FileId> {
        self.universe.burn_fuse();
        let file = self.universe.device.borrow_mut().open(name);
        self.open.insert(file);
        Ok(file)
    }

    // Other numbers than the real one gives: a closed file is none that is open.
    fn close(&mut self, file: FileId) {
        assert!(self.open.remove(&file), "closed, and not open");
        let in_use = self.pending.iter().any(|pending| file_of(&pending.request) == file);
        assert!(!in_use, "closed in use");
    }

    fn names(&self, prefix: &str) -> std::io::Result<Vec<String>> {
        Ok(self.universe.device.borrow().names(prefix))
    }

    fn file_len(&self, file: FileId) -> std::io::Result<u64> {
        self.check_open(file);
        Ok(self.universe.device.borrow().length(file) as u64)
    }

    fn read_now(&mut self, file: FileId, offset: u64, into: &mut [u8]) -> std::io::Result<usize> {
        self.universe.burn_fuse();
        self.check_open(file);
        let numbers = [offset, into.as_ptr().addr() as u64, into.len() as u64];
        assert!(numbers.iter().all(|number| number.is_multiple_of(DISK_ALIGN_BYTES as u64)));
        Ok(self.universe.device.borrow().read_now(file, offset, into))
    }

    fn file_bytes(&self, file: FileId) -> std::io::Result<u64> {
        Ok(self.universe.device.borrow().file_bytes(file))
    }

    fn cut(&mut self, file: FileId, bytes: u64) -> std::io::Result<()> {
        self.universe.burn_fuse();
        self.universe.device.borrow_mut().cut(file, bytes as usize);
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(self.universe.device.borrow().free_bytes())
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.is_full() {
            return Err(request);
        }
        self.universe.burn_fuse();
        let range = range_of(&request);
        let aligned = |number: u64| number.is_multiple_of(DISK_ALIGN_BYTES as u64);
        assert!(aligned(range.start), "an offset that is not aligned");
        assert!(aligned(range.end - range.start), "a length that is not aligned");
        self.check_open(file_of(&request));
        self.check_apart(&request);
        let device = self.universe.device.borrow();
        let writes_before = device.writes_done;
        let bytes_before = match &request {
            DiskRequest::Sync { file, .. } => device.length(*file),
            _ => 0,
        };
        self.pending.push(Pending { due_ns: None, writes_before, bytes_before, request });
        Ok(())
    }

    fn flush(&mut self) {
        let now_ns = self.universe.mono().0;
        let slow = if self.universe.device.borrow().is_slow(&self.universe) { 20 } else { 1 };
        let mut flushed = false;
        for pending in self.pending.iter_mut().filter(|pending| pending.due_ns.is_none()) {
            let latency_ns = 20_000 + slow * self.universe.skewed(20_000_000);
            pending.due_ns = Some(now_ns + latency_ns);
            flushed = true;
            if let DiskRequest::WritePages { file, offset, pages, .. } = &pending.request
                && self.universe.chance(300)
            {
                let mut device = self.universe.device.borrow_mut();
                device.begin_pages(&self.universe, *file, *offset, pages.as_slice());
            }
        }
        if flushed {
            self.tell_due();
        }
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        let now_ns = self.universe.mono().0;
        let due = |pending: &Pending| pending.due_ns.is_some_and(|due_ns| due_ns <= now_ns);
        let first = self.pending.iter().position(due)?;
        let count = self.pending.iter().filter(|pending| due(pending)).count();
        let picked = self.universe.index(count);
        let nth = self.pending.iter().enumerate().filter(|(_, pending)| due(pending)).nth(picked);
        let nth = nth.expect("picked is below their count").0;
        if nth != first {
            self.universe.cover(Cover::DiskReordered);
        }
        let pending = self.pending.remove(nth);
        self.tell_due();
        let universe = &self.universe;
        let mut device = universe.device.borrow_mut();
        Some(match pending.request {
            DiskRequest::Write { tag, file, offset, chunks } => {
                let result = device.write(universe, file, offset, &chunks);
                universe.event("disk written", tag, u64::from(result.is_ok()));
                DiskCompletion::Written { tag, result }
            }
            DiskRequest::WritePages { tag, file, offset, pages, sync } => {
                let result = device.write_pages(universe, file, offset, pages.as_slice(), sync);
                universe.event("disk wrote pages", tag, u64::from(result.is_ok()));
                DiskCompletion::WrotePages { tag, pages, result }
            }
            DiskRequest::Read { tag, file, offset, bytes, mut into } => {
                let result = device.read(universe, file, offset, bytes, &mut into);
                universe.event("disk read", tag, u64::from(result.is_ok()));
                DiskCompletion::Read { tag, into, result }
            }
            DiskRequest::Sync { tag, file } => {
                let (writes, bytes) = (pending.writes_before, pending.bytes_before);
                let result = device.sync(universe, file, writes, bytes);
                universe.event("disk synced", tag, u64::from(result.is_ok()));
                DiskCompletion::Synced { tag, result }
            }
            DiskRequest::Allocate { tag, file, offset, bytes } => {
                let result = device.allocate(universe, file, offset, bytes);
                universe.event("disk allocated", tag, u64::from(result.is_ok()));
                DiskCompletion::Allocated { tag, result }
            }
            DiskRequest::Release { tag, file, offset, bytes } => {
                let result = device.release(universe, file, offset, bytes);
                universe.event("disk released", tag, u64::from(result.is_ok()));
                DiskCompletion::Released { tag, result }
            }
        })
    }
}

/// Where a request reads or writes; empty for a sync.
fn range_of(request: &DiskRequest) -> Range<u64> {
    let (offset, bytes) = match request {
        DiskRequest::Write { offset, chunks, .. } => {
            assert!((1..=DISK_WRITE_CHUNKS_MAX).contains(&chunks.len()));
            (*offset, chunks.iter().map(|chunk| chunk.image().len() as u64).sum())
        }
        DiskRequest::WritePages { offset, pages, .. } => {
            assert!(!pages.is_empty());
            (*offset, pages.len() as u64)
        }
        DiskRequest::Read { offset, bytes, .. } => (*offset, *bytes as u64),
        DiskRequest::Sync { .. } => (0, 0),
        DiskRequest::Allocate { offset, bytes, .. }
        | DiskRequest::Release { offset, bytes, .. } => (*offset, *bytes),
    };
    offset..offset + bytes
}

fn file_of(request: &DiskRequest) -> FileId {
    match request {
        DiskRequest::Write { file, .. }
        | DiskRequest::WritePages { file, .. }
        | DiskRequest::Read { file, .. }
        | DiskRequest::Sync { file, .. }
        | DiskRequest::Allocate { file, .. }
        | DiskRequest::Release { file, .. } => *file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::pages::Pages;
    use std::io::ErrorKind;

    fn disk() -> (Rc<Universe>, SimDisk, FileId) {
        let universe = Universe::new(7, false);
        universe.device.borrow_mut().calm();
        let mut disk = SimDisk::new(Rc::clone(&universe));
        disk.depth_max = 4;
        let file = disk.open("file").unwrap();
        (universe, disk, file)
    }

    fn outcome(universe: &Universe, disk: &mut SimDisk, request: DiskRequest) -> DiskCompletion {
        assert!(disk.submit(request).is_ok());
        universe.advance_ns(100_000_000);
        assert!(disk.poll_completion().is_none(), "it was not flushed");
        disk.flush();
        let due_ns = universe.disk_due_ns().unwrap();
        universe.advance_ns(due_ns - universe.mono().0);
        disk.poll_completion().unwrap()
    }

    #[test]
    fn blocks_are_of_one_device_and_come_back() {
        let (universe, mut disk, file) = disk();
        let other = disk.open("other").unwrap();
        universe.device.borrow_mut().limit_bytes(10 * DISK_ALIGN_BYTES as u64);
        let bytes = 6 * DISK_ALIGN_BYTES as u64;
        let allocate = |file| DiskRequest::Allocate { tag: 1, file, offset: 0, bytes };
        match outcome(&universe, &mut disk, allocate(file)) {
            DiskCompletion::Allocated { tag: 1, result: Ok(()) } => {}
            _ => panic!("there is room"),
        }
        assert_eq!(disk.file_bytes(file).unwrap(), bytes);
        assert_eq!(disk.free_bytes(), Some(4 * DISK_ALIGN_BYTES as u64));
        match outcome(&universe, &mut disk, allocate(other)) {
            DiskCompletion::Allocated { tag: 1, result: Err(ErrorKind::StorageFull) } => {}
            _ => panic!("there is no room"),
        }
        let (offset, all) = (DISK_ALIGN_BYTES as u64, 1 << 30);
        let release = DiskRequest::Release { tag: 2, file, offset, bytes: all };
        match outcome(&universe, &mut disk, release) {
            DiskCompletion::Released { tag: 2, result: Ok(()) } => {}
            _ => panic!("nothing fails here"),
        }
        assert_eq!(disk.file_bytes(file).unwrap(), offset);
        assert_eq!(universe.device.borrow().used_bytes(), 5 * DISK_ALIGN_BYTES);
    }

    #[test]
    fn each_disk_is_waited_for() {
        let (universe, mut disk, file) = disk();
        let mut other = SimDisk::new(Rc::clone(&universe));
        assert!(disk.submit(DiskRequest::Sync { tag: 1, file }).is_ok());
        disk.flush();
        let due_ns = universe.disk_due_ns();
        assert!(due_ns.is_some());
        other.flush();
        other.tell_due();
        assert_eq!(universe.disk_due_ns(), due_ns);
    }

    #[test]
    #[should_panic(expected = "released in use")]
    fn what_is_under_way_is_not_released() {
        let (_universe, mut disk, file) = disk();
        let (offset, bytes) = (0, DISK_ALIGN_BYTES as u64);
        assert!(disk.submit(DiskRequest::Allocate { tag: 1, file, offset, bytes }).is_ok());
        drop(disk.submit(DiskRequest::Release { tag: 2, file, offset, bytes }));
    }

    const BLOCK: usize = DISK_ALIGN_BYTES;

    fn write_pages(file: FileId, block: u64, fill: u8, sync: bool) -> DiskRequest {
        let mut pages = Pages::default();
        pages.extend_from_slice(&[fill; BLOCK]);
        DiskRequest::WritePages { tag: 1, file, offset: block * BLOCK as u64, pages, sync }
    }

    /// Blocks, each by the number of its bytes that are `new`, after a crash in which two writes
    /// had ended, the first synced and the second not, and two were under way.
    fn after_a_crash(seed: u64, new: u8) -> [usize; 4] {
        let universe = Universe::new(seed, false);
        universe.device.borrow_mut().calm();
        universe.device.borrow_mut().may_crash();
        let mut disk = SimDisk::new(Rc::clone(&universe));
        disk.depth_max = 4;
        let file = disk.open("file").unwrap();
        let mut end = |request| match outcome(&universe, &mut disk, request) {
            DiskCompletion::WrotePages { tag: 1, result: Ok(()), pages } => {
                assert_eq!(pages.len(), BLOCK);
            }
            _ => panic!("nothing fails here"),
        };
        // All of them are there before, and kept.
        (0..4).for_each(|block| end(write_pages(file, block, 1, true)));
        end(write_pages(file, 1, new, false));
        end(write_pages(file, 0, new, true));
        assert!(disk.submit(write_pages(file, 2, new, false)).is_ok());
        assert!(disk.submit(write_pages(file, 3, new, true)).is_ok());
        disk.flush();
        universe.device.borrow_mut().crash(&universe);
        let mut disk = SimDisk::new(Rc::clone(&universe));
        assert_eq!(disk.names("fi").unwrap(), ["file"]);
        let file = disk.open("file").unwrap();
        let mut pages = Pages::zeroed(5 * BLOCK);
        assert_eq!(disk.file_len(file).unwrap(), 4 * BLOCK as u64);
        assert_eq!(disk.read_now(file, 0, pages.as_mut_slice()).unwrap(), 4 * BLOCK);
        [0, 1, 2, 3].map(|nth| {
            let block = &pages.as_slice()[nth * BLOCK..(nth + 1) * BLOCK];
            assert!(block.iter().all(|byte| [1, new].contains(byte)));
            block.iter().filter(|byte| **byte == new).count()
        })
    }

    #[test]
    fn a_synced_write_survives_every_crash_and_another_not_always() {
        let all: Vec<[usize; 4]> = (0..200).map(|seed| after_a_crash(seed, 2)).collect();
        assert!(all.iter().all(|blocks| blocks[0] == BLOCK));
        // Of the others anything: they are there in part, as a whole or not at all.
        for nth in 1..4 {
            let torn = all.iter().filter(|blocks| (1..BLOCK).contains(&blocks[nth])).count();
            assert!((20..=200).contains(&torn), "{nth}: {torn}");
        }
        let gone = |nth: usize| all.iter().filter(|blocks| blocks[nth] == 0).count();
        assert!(gone(2) > 50 && gone(3) > 50, "a write under way may not have begun");
    }

    #[test]
    #[should_panic(expected = "not open")]
    fn a_closed_file_is_not_written_to() {
        let (_universe, mut disk, file) = disk();
        disk.close(file);
        drop(disk.submit(DiskRequest::Sync { tag: 1, file }));
    }
}
