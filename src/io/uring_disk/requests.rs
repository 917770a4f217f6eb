//! The requests of a ring without the ring: which are to be started, and what an answer of the
//! system means for one.

use crate::io::disk_file::{allocated_as_written, refuses_dsync};
use crate::io::disk_table::{DiskTable, Keep, Step, Work};
use crate::io::{DiskCompletion, DiskRequest, FileId};
use crate::limits::DISK_RETRIES_MAX;
use std::collections::{BTreeSet, VecDeque};
use std::io::Error;

/// A request by its entry in the table.
struct Running {
    file: FileId,
    /// The file was opened with O_DIRECT.
    direct: bool,
    work: Work,
    /// Answers in a row that brought nothing and blamed nobody.
    retries: u32,
}

/// Requests of a disk. Each is waiting to be started, or started, until it ends; what it points to
/// stays in place for as long (see [`DiskTable`]).
pub(super) struct Requests {
    table: DiskTable,
    running: Vec<Option<Running>>,
    waiting: VecDeque<usize>,
    started: usize,
    /// Files that refused a write that is to keep itself: a sync follows each of them instead.
    refuse_dsync: BTreeSet<FileId>,
}

impl Requests {
    /// Room for `depth` requests.
    pub(super) fn new(depth: usize) -> Requests {
        Requests {
            table: DiskTable::new(depth),
            running: (0..depth).map(|_| None).collect(),
            waiting: VecDeque::with_capacity(depth),
            started: 0,
            refuse_dsync: BTreeSet::new(),
        }
    }

    /// Enters a request; `is_direct` says how a file was opened.
    pub(super) fn submit(
        &mut self,
        request: DiskRequest,
        is_direct: impl Fn(FileId) -> bool,
    ) -> Result<(), DiskRequest> {
        let (entry, file, mut work) = self.table.begin(request)?;
        if let Work::Write(_, keep @ Keep::ByWrite) = &mut work
            && self.refuse_dsync.contains(&file)
        {
            *keep = Keep::BySync;
        }
        self.running[entry] = Some(Running { file, direct: is_direct(file), work, retries: 0 });
        self.waiting.push_back(entry);
        Ok(())
    }

    /// A file was closed, on which nothing is under way; its number may come to mean another.
    pub(super) fn forget(&mut self, file: FileId) {
        assert!(self.running.iter().flatten().all(|running| running.file != file), "closed in use");
        self.refuse_dsync.remove(&file);
    }

    /// The next request to start: it counts as started now.
    pub(super) fn start(&mut self) -> Option<(usize, FileId, &Work)> {
        let entry = self.waiting.pop_front()?;
        self.started += 1;
        let running = self.running[entry].as_ref().expect("what waits has not ended");
        Some((entry, running.file, &running.work))
    }

    /// Requests that were started and not answered yet.
    pub(super) fn started(&self) -> usize {
        self.started
    }

    /// The system's answer to a started request: bytes, or the number of an error below zero. It
    /// may be its end; if not, the rest waits to be started.
    pub(super) fn handle_answer(&mut self, entry: usize, answer: i32) -> Option<DiskCompletion> {
        self.started -= 1;
        let running = self.running[entry].as_mut().expect("what was started has not ended");
        match running.step(answer) {
            Step::More => {
                if let Work::Write(_, Keep::BySync) = running.work {
                    self.refuse_dsync.insert(running.file);
                }
                self.waiting.push_back(entry);
                None
            }
            Step::Ended(result) => {
                self.running[entry] = None;
                Some(self.table.end(entry, result))
            }
        }
    }
}

impl Running {
    fn step(&mut self, answer: i32) -> Step {
        let Ok(bytes) = usize::try_from(answer) else { return self.failed(-answer) };
        self.retries = 0;
        match &mut self.work {
            Work::Write(transfer, keep) => {
                let step = transfer.handle_written(bytes, self.direct);
                if *keep == Keep::BySync && matches!(step, Step::Ended(Ok(_))) {
                    self.work = Work::Sync;
                    return Step::More;
                }
                step
            }
            Work::Read(transfer) => transfer.handle_read(bytes, self.direct),
            Work::Sync | Work::Allocate(_) | Work::Release(_) => Step::Ended(Ok(0)),
        }
    }

    fn failed(&mut self, errno: i32) -> Step {
        // The system had no memory for it, or was interrupted, or gave it up: nothing was tried.
        let untried = matches!(errno, libc::EAGAIN | libc::EINTR | libc::ECANCELED);
        if untried && self.retries < DISK_RETRIES_MAX {
            self.retries += 1;
            return Step::More;
        }
        let error = Error::from_raw_os_error(errno);
        match &mut self.work {
            Work::Write(_, keep @ Keep::ByWrite) if refuses_dsync(&error) => {
                *keep = Keep::BySync;
                Step::More
            }
            Work::Allocate(_) => Step::Ended(allocated_as_written(error.kind())),
            _ => Step::Ended(Err(error.kind())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::chunk_pool::{ChunkPool, HeapSlabs, PoolShape};
    use crate::base::pages::Pages;
    use std::io::ErrorKind;
    use std::rc::Rc;

    const FILE: FileId = FileId(0);
    const BLOCK: usize = 4096;

    fn pool() -> ChunkPool {
        let shape = PoolShape { slab_bytes: 65536, class_bytes: vec![16384], header_bytes: 64 };
        let pool = ChunkPool::new(shape, Rc::new(HeapSlabs));
        assert!(pool.grow(0));
        pool
    }

    /// A write of two images of 16 KiB.
    fn write(pool: &ChunkPool, tag: u64) -> DiskRequest {
        let sealed = |_| {
            let mut writer = pool.take(0).unwrap();
            writer.append(&[&vec![7; writer.room_bytes()]]);
            writer.seal(&[7; 64], BLOCK)
        };
        DiskRequest::Write { tag, file: FILE, offset: 0, chunks: (0..2).map(sealed).collect() }
    }

    fn read(pool: &ChunkPool, tag: u64) -> DiskRequest {
        let into = pool.take(0).unwrap();
        DiskRequest::Read { tag, file: FILE, offset: 0, bytes: 16384, into }
    }

    fn submit(requests: &mut Requests, request: DiskRequest) {
        assert!(requests.submit(request, |_| true).is_ok());
    }

    /// Where the next request to start begins, and how many bytes it has left.
    fn start(requests: &mut Requests) -> (usize, u64, usize) {
        match requests.start() {
            Some((entry, FILE, Work::Write(transfer, _) | Work::Read(transfer))) => {
                let left = transfer.parts().iter().map(|part| part.iov_len).sum();
                (entry, transfer.offset(), left)
            }
            _ => panic!("a transfer waits"),
        }
    }

    #[test]
    fn a_short_write_is_started_again_with_its_rest() {
        let (pool, mut requests) = (pool(), Requests::new(4));
        submit(&mut requests, write(&pool, 5));
        let (entry, offset, left) = start(&mut requests);
        assert_eq!((offset, left, requests.started()), (0, 32768, 1));
        assert!(requests.handle_answer(entry, 20480 + 512).is_none());
        assert_eq!(requests.started(), 0);
        assert_eq!(start(&mut requests), (entry, 20480, 12288));
        match requests.handle_answer(entry, 12288) {
            Some(DiskCompletion::Written { tag: 5, result: Ok(()) }) => {}
            _ => panic!("it is whole"),
        }
        assert!(requests.start().is_none());
    }

    #[test]
    fn a_short_read_goes_on_to_the_end_of_the_file() {
        let (pool, mut requests) = (pool(), Requests::new(4));
        submit(&mut requests, read(&pool, 6));
        let (entry, ..) = start(&mut requests);
        assert!(requests.handle_answer(entry, 8192).is_none());
        assert_eq!(start(&mut requests), (entry, 8192, 8192));
        match requests.handle_answer(entry, 0) {
            Some(DiskCompletion::Read { tag: 6, result: Ok(8192), into }) => {
                assert_eq!(into.loaded_image().len(), 8192);
            }
            _ => panic!("the file ends there"),
        }
    }

    #[test]
    fn what_was_not_tried_is_tried_again_but_not_for_ever() {
        for errno in [libc::EAGAIN, libc::EINTR, libc::ECANCELED] {
            let (pool, mut requests) = (pool(), Requests::new(1));
            submit(&mut requests, write(&pool, 1));
            for _ in 0..DISK_RETRIES_MAX {
                let (entry, offset, left) = start(&mut requests);
                assert_eq!((offset, left), (0, 32768));
                assert!(requests.handle_answer(entry, -errno).is_none());
            }
            let (entry, ..) = start(&mut requests);
            match requests.handle_answer(entry, -errno) {
                Some(DiskCompletion::Written { tag: 1, result: Err(_) }) => {}
                _ => panic!("it is given up"),
            }
            submit(&mut requests, write(&pool, 2));
        }
    }

    #[test]
    fn answers_come_in_any_order_and_errors_by_their_kind() {
        let (pool, mut requests) = (pool(), Requests::new(4));
        submit(&mut requests, write(&pool, 1));
        submit(&mut requests, read(&pool, 2));
        submit(&mut requests, DiskRequest::Sync { tag: 3, file: FILE });
        let extent = |tag| DiskRequest::Allocate { tag, file: FILE, offset: 0, bytes: 4096 };
        submit(&mut requests, extent(4));
        assert!(requests.submit(extent(5), |_| true).is_err());
        let mut entries = Vec::new();
        while let Some((entry, ..)) = requests.start() {
            entries.push(entry);
        }
        match requests.handle_answer(entries[3], -libc::EOPNOTSUPP) {
            Some(DiskCompletion::Allocated { tag: 4, result: Ok(()) }) => {}
            _ => panic!("writes find their blocks by themselves then"),
        }
        match requests.handle_answer(entries[1], -libc::EIO) {
            Some(DiskCompletion::Read { tag: 2, result: Err(_), .. }) => {}
            _ => panic!("the read failed"),
        }
        match requests.handle_answer(entries[0], -libc::ENOSPC) {
            Some(DiskCompletion::Written { tag: 1, result: Err(ErrorKind::StorageFull) }) => {}
            _ => panic!("the device is full"),
        }
        match requests.handle_answer(entries[2], 0) {
            Some(DiskCompletion::Synced { tag: 3, result: Ok(()) }) => {}
            _ => panic!("it was synced"),
        }
        assert_eq!(requests.started(), 0);
        submit(&mut requests, extent(6));
        let (entry, ..) = requests.start().unwrap();
        match requests.handle_answer(entry, -libc::ENOSPC) {
            Some(DiskCompletion::Allocated { tag: 6, result: Err(ErrorKind::StorageFull) }) => {}
            _ => panic!("no blocks are left"),
        }
    }

    fn pages(tag: u64, file: FileId) -> DiskRequest {
        let pages = Pages::zeroed(3 * BLOCK);
        DiskRequest::WritePages { tag, file, offset: 0, pages, sync: true }
    }

    /// Starts the next request: its entry, and what is done for it.
    fn start_kept(requests: &mut Requests) -> (usize, Option<(Keep, u64)>) {
        match requests.start() {
            Some((entry, _, Work::Write(transfer, keep))) => {
                (entry, Some((*keep, transfer.offset())))
            }
            Some((entry, _, Work::Sync)) => (entry, None),
            _ => panic!("a write or a sync waits"),
        }
    }

    #[test]
    fn every_part_of_a_short_write_keeps_itself() {
        let mut requests = Requests::new(1);
        submit(&mut requests, pages(1, FILE));
        let (entry, kept) = start_kept(&mut requests);
        assert_eq!(kept, Some((Keep::ByWrite, 0)));
        assert!(requests.handle_answer(entry, BLOCK as i32).is_none());
        assert_eq!(start_kept(&mut requests).1, Some((Keep::ByWrite, BLOCK as u64)));
        match requests.handle_answer(entry, 2 * BLOCK as i32) {
            Some(DiskCompletion::WrotePages { tag: 1, pages, result: Ok(()) }) => {
                assert_eq!(pages.len(), 3 * BLOCK);
            }
            _ => panic!("it is whole"),
        }
        assert!(requests.start().is_none());
    }

    #[test]
    fn a_file_that_refuses_such_writes_is_synced_behind_each() {
        let other = FileId(1);
        for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
            let mut requests = Requests::new(2);
            submit(&mut requests, pages(1, FILE));
            let (entry, _) = start_kept(&mut requests);
            assert!(requests.handle_answer(entry, BLOCK as i32).is_none());
            start_kept(&mut requests);
            assert!(requests.handle_answer(entry, -errno).is_none());
            assert_eq!(start_kept(&mut requests).1, Some((Keep::BySync, BLOCK as u64)));
            assert!(requests.handle_answer(entry, 2 * BLOCK as i32).is_none());
            assert_eq!(start_kept(&mut requests), (entry, None));
            match requests.handle_answer(entry, 0) {
                Some(DiskCompletion::WrotePages { tag: 1, result: Ok(()), .. }) => {}
                _ => panic!("it is kept"),
            }
            // It is remembered, of this file; and a sync that fails is the write's end.
            submit(&mut requests, pages(2, FILE));
            submit(&mut requests, pages(3, other));
            let (entry, kept) = start_kept(&mut requests);
            assert_eq!(kept, Some((Keep::BySync, 0)));
            assert_eq!(start_kept(&mut requests).1, Some((Keep::ByWrite, 0)));
            assert!(requests.handle_answer(entry, 3 * BLOCK as i32).is_none());
            assert_eq!(start_kept(&mut requests), (entry, None));
            match requests.handle_answer(entry, -libc::EIO) {
                Some(DiskCompletion::WrotePages { tag: 2, result: Err(_), .. }) => {}
                _ => panic!("nobody knows what the device has"),
            }
            // Until its number is another's.
            requests.forget(FILE);
            submit(&mut requests, pages(4, FILE));
            assert_eq!(start_kept(&mut requests).1, Some((Keep::ByWrite, 0)));
        }
    }

    #[test]
    #[should_panic(expected = "closed in use")]
    fn what_is_under_way_is_not_closed() {
        let mut requests = Requests::new(1);
        submit(&mut requests, pages(1, FILE));
        requests.forget(FILE);
    }
}
