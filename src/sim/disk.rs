//! The simulated disk: completions late and in any order, errors, a full device, reads cut short at
//! the file's end, crashes that keep, drop or tear each sector that was not synced, bits that rot.
//! What is not flushed never ends.

use crate::base::chunk_pool::SealedChunk;
use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::{DISK_ALIGN_BYTES, DISK_WRITE_CHUNKS_MAX};
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::rc::Rc;

/// What a device keeps or loses as one.
const SECTOR_BYTES: usize = 512;
/// Unless it is limited: 1 TiB.
const CAPACITY_BLOCKS: usize = (1 << 40) / DISK_ALIGN_BYTES;

struct File {
    name: String,
    /// As the system shows it.
    bytes: Vec<u8>,
    /// Of each sector that was written since the last sync: what it held, by number of the write.
    /// The first entry is what surely survives.
    unsynced: BTreeMap<usize, Vec<(u64, Vec<u8>)>>,
    /// The length that surely survives.
    synced_bytes: usize,
    /// Whether each [`DISK_ALIGN_BYTES`] have a block of the device.
    blocks: Vec<bool>,
}

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
    files: Vec<File>,
    pending: Vec<Pending>,
    writes_done: u64,
    depth_max: usize,
    /// Of the whole device.
    capacity_blocks: usize,
    used_blocks: usize,
    error_chance: u64,
}

impl SimDisk {
    /// An empty disk with faults as the seed draws them.
    pub fn new(universe: Rc<Universe>) -> Self {
        let depth_max = universe.range(1, 16) as usize;
        let error_chance = [0, 10, 100][universe.index(3)];
        SimDisk {
            number: universe.add_disk(),
            universe,
            files: Vec::new(),
            pending: Vec::new(),
            writes_done: 0,
            depth_max,
            capacity_blocks: CAPACITY_BLOCKS,
            used_blocks: 0,
            error_chance,
        }
    }

    /// From now on the device holds so many bytes, of all files together. What is there stays.
    pub fn limit_bytes(&mut self, capacity_bytes: usize) {
        self.capacity_blocks = capacity_bytes / DISK_ALIGN_BYTES;
    }

    /// Bytes of the device that files hold.
    pub fn used_bytes(&self) -> usize {
        self.used_blocks * DISK_ALIGN_BYTES
    }

    /// Power fails: requests under way may have happened or not, and of each unsynced sector any
    /// state since the last sync may be found, or a mix of two.
    pub fn crash(&mut self) {
        let universe = Rc::clone(&self.universe);
        universe.cover(Cover::DiskCrash);
        universe.event("disk crash", self.pending.len() as u64, 0);
        for pending in std::mem::take(&mut self.pending) {
            if let DiskRequest::Write { file, offset, chunks, .. } = pending.request {
                let image = joined(&chunks);
                let there = self.take_blocks(file, offset, image.len());
                self.write_some(file, offset as usize, &image[..there], 500);
            }
        }
        self.tell_due();
        for file in &mut self.files {
            if universe.chance(300) {
                // The file had grown, and the device knows nothing of it.
                let sectors = file.bytes.len().div_ceil(SECTOR_BYTES);
                let kept = universe.range(0, sectors as u64) as usize * SECTOR_BYTES;
                file.bytes.truncate(kept.max(file.synced_bytes));
                let blocks = file.bytes.len().div_ceil(DISK_ALIGN_BYTES).min(file.blocks.len());
                let lost = file.blocks.drain(blocks..).filter(|there| *there).count();
                self.used_blocks -= lost;
            }
            for (sector, mut versions) in std::mem::take(&mut file.unsynced) {
                if (sector + 1) * SECTOR_BYTES > file.bytes.len() {
                    continue;
                }
                let at = sector * SECTOR_BYTES;
                versions.push((u64::MAX, file.bytes[at..at + SECTOR_BYTES].to_vec()));
                let kept = versions[universe.index(versions.len())].1.clone();
                file.bytes[at..at + SECTOR_BYTES].copy_from_slice(&kept);
                if universe.chance(200) {
                    universe.cover(Cover::DiskTorn);
                    let other = &versions[universe.index(versions.len())].1;
                    let cut = universe.index(SECTOR_BYTES);
                    file.bytes[at..at + cut].copy_from_slice(&other[..cut]);
                }
            }
        }
    }

    /// One bit of `range` of a file turns over, for good. False if the file is shorter.
    pub fn rot(&mut self, file: FileId, at: usize) -> bool {
        let bit = self.universe.index(8);
        let byte = self.files[file.0 as usize].bytes.get_mut(at);
        byte.map(|byte| *byte ^= 1 << bit).is_some()
    }

    /// Whether it takes no more requests for now.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= self.depth_max
    }

    /// Writes each sector of `image` with a chance of `per_mille`.
    fn write_some(&mut self, file: FileId, offset: usize, image: &[u8], per_mille: u64) {
        if image.is_empty() {
            return;
        }
        self.writes_done += 1;
        let file = &mut self.files[file.0 as usize];
        if file.bytes.len() < offset + image.len() {
            file.bytes.resize(offset + image.len(), 0);
        }
        for (nth, sector) in image.chunks(SECTOR_BYTES).enumerate() {
            if per_mille < 1000 && !self.universe.chance(per_mille) {
                continue;
            }
            let at = offset + nth * SECTOR_BYTES;
            let before = file.bytes[at..at + SECTOR_BYTES].to_vec();
            let versions = file.unsynced.entry(at / SECTOR_BYTES).or_default();
            // The entry's number is that of the write which replaced it.
            versions.push((self.writes_done, before));
            file.bytes[at..at + SECTOR_BYTES].copy_from_slice(sector);
        }
    }

    /// Finds blocks for a range, from its start; how many of its bytes have blocks now.
    fn take_blocks(&mut self, file: FileId, offset: u64, bytes: usize) -> usize {
        let file = &mut self.files[file.0 as usize];
        let first = offset as usize / DISK_ALIGN_BYTES;
        let end = first + bytes / DISK_ALIGN_BYTES;
        file.blocks.resize(file.blocks.len().max(end), false);
        for nth in first..end {
            if !file.blocks[nth] {
                if self.used_blocks >= self.capacity_blocks && !self.universe.healed() {
                    return (nth - first) * DISK_ALIGN_BYTES;
                }
                file.blocks[nth] = true;
                self.used_blocks += 1;
            }
        }
        bytes
    }

    fn finish_write(&mut self, file: FileId, offset: u64, image: &[u8]) -> Result<(), ErrorKind> {
        let there = self.take_blocks(file, offset, image.len());
        if there < image.len() {
            self.universe.cover(Cover::DiskFull);
            // The system has written what there was room for.
            self.write_some(file, offset as usize, &image[..there], 1000);
            return Err(ErrorKind::StorageFull);
        }
        if self.universe.fault(self.error_chance) {
            self.universe.cover(Cover::DiskError);
            self.write_some(file, offset as usize, image, 500);
            return Err(ErrorKind::Other);
        }
        self.write_some(file, offset as usize, image, 1000);
        Ok(())
    }

    fn finish_allocate(&mut self, file: FileId, offset: u64, bytes: u64) -> Result<(), ErrorKind> {
        if self.universe.fault(self.error_chance) {
            self.universe.cover(Cover::DiskError);
            let full = self.universe.chance(500);
            return Err(if full { ErrorKind::StorageFull } else { ErrorKind::Other });
        }
        if self.take_blocks(file, offset, bytes as usize) < bytes as usize {
            self.universe.cover(Cover::DiskFull);
            return Err(ErrorKind::StorageFull);
        }
        let file = &mut self.files[file.0 as usize];
        let end = (offset + bytes) as usize;
        file.bytes.resize(file.bytes.len().max(end), 0);
        Ok(())
    }

    fn finish_release(&mut self, file: FileId, offset: u64, bytes: u64) -> Result<(), ErrorKind> {
        if self.universe.fault(self.error_chance) {
            self.universe.cover(Cover::DiskError);
            return Err(ErrorKind::Other);
        }
        let there = &mut self.files[file.0 as usize];
        let (first, end) = (offset as usize, offset.saturating_add(bytes) as usize);
        let blocks = first / DISK_ALIGN_BYTES..(end / DISK_ALIGN_BYTES).min(there.blocks.len());
        for block in there.blocks.get_mut(blocks).unwrap_or_default() {
            self.used_blocks -= usize::from(std::mem::take(block));
        }
        // A crash may bring back what stood there, as after a write.
        let zeros = vec![0; end.min(there.bytes.len()).saturating_sub(first)];
        self.write_some(file, first, &zeros, 1000);
        Ok(())
    }

    fn finish_read(
        &self,
        file: FileId,
        offset: u64,
        bytes: usize,
        into: &mut crate::base::chunk_pool::ChunkWriter,
    ) -> Result<usize, ErrorKind> {
        if self.universe.fault(self.error_chance) {
            self.universe.cover(Cover::DiskError);
            return Err(ErrorKind::Other);
        }
        let image = &self.files[file.0 as usize].bytes;
        let from = image.len().min(offset as usize);
        let there = bytes.min(image.len() - from);
        if there < bytes {
            self.universe.cover(Cover::ShortRead);
        }
        Ok(into.load(|all| {
            all[..there].copy_from_slice(&image[from..from + there]);
            there
        }))
    }

    fn finish_sync(
        &mut self,
        file: FileId,
        writes_before: u64,
        bytes_before: usize,
    ) -> Result<(), ErrorKind> {
        if self.universe.fault(self.error_chance) {
            self.universe.cover(Cover::DiskError);
            return Err(ErrorKind::Other);
        }
        // What was replaced by a write that ended before the sync began can come back no more.
        let file = &mut self.files[file.0 as usize];
        file.synced_bytes = file.synced_bytes.max(bytes_before);
        file.unsynced.retain(|_, versions| {
            versions.retain(|(write, _)| *write > writes_before);
            !versions.is_empty()
        });
        Ok(())
    }

    fn tell_due(&self) {
        let due_ns = self.pending.iter().filter_map(|pending| pending.due_ns).min();
        self.universe.disk_due(self.number, due_ns);
    }
}

impl Disk for SimDisk {
    fn open(&mut self, name: &str) -> std::io::Result<FileId> {
        let nth = match self.files.iter().position(|file| file.name == name) {
            Some(nth) => nth,
            None => {
                let name = name.to_owned();
                self.files.push(File {
                    name,
                    bytes: Vec::new(),
                    unsynced: BTreeMap::new(),
                    synced_bytes: 0,
                    blocks: Vec::new(),
                });
                self.files.len() - 1
            }
        };
        Ok(FileId(nth as u32))
    }

    fn file_bytes(&self, file: FileId) -> std::io::Result<u64> {
        let file = &self.files[file.0 as usize];
        let blocks = file.blocks.iter().take_while(|there| **there).count();
        Ok((blocks * DISK_ALIGN_BYTES).min(file.bytes.len()) as u64)
    }

    fn free_bytes(&self) -> Option<u64> {
        let healed = self.universe.healed();
        let capacity = if healed { CAPACITY_BLOCKS } else { self.capacity_blocks };
        Some((capacity.saturating_sub(self.used_blocks) * DISK_ALIGN_BYTES) as u64)
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.is_full() {
            return Err(request);
        }
        let range = range_of(&request);
        let aligned = |number: u64| number.is_multiple_of(DISK_ALIGN_BYTES as u64);
        assert!(aligned(range.start), "an offset that is not aligned");
        assert!(aligned(range.end - range.start), "a length that is not aligned");
        for Pending { request: other, .. } in &self.pending {
            let releases = |request| matches!(request, &DiskRequest::Release { .. });
            let other_range = range_of(other);
            let apart = other_range.end <= range.start || range.end <= other_range.start;
            let collide = releases(&request) || releases(other);
            assert!(apart || !collide || file_of(&request) != file_of(other), "released in use");
        }
        let writes_before = self.writes_done;
        let bytes_before = match &request {
            DiskRequest::Sync { file, .. } => self.files[file.0 as usize].bytes.len(),
            _ => 0,
        };
        self.pending.push(Pending { due_ns: None, writes_before, bytes_before, request });
        Ok(())
    }

    fn flush(&mut self) {
        let now_ns = self.universe.mono().0;
        let mut flushed = false;
        for pending in self.pending.iter_mut().filter(|pending| pending.due_ns.is_none()) {
            let latency_ns = 20_000 + self.universe.skewed(50_000_000);
            pending.due_ns = Some(now_ns + latency_ns);
            flushed = true;
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
        let Pending { request, writes_before, bytes_before, .. } = self.pending.remove(nth);
        self.tell_due();
        Some(match request {
            DiskRequest::Write { tag, file, offset, chunks } => {
                let result = self.finish_write(file, offset, &joined(&chunks));
                self.universe.event("disk written", tag, u64::from(result.is_ok()));
                DiskCompletion::Written { tag, result }
            }
            DiskRequest::Read { tag, file, offset, bytes, mut into } => {
                let result = self.finish_read(file, offset, bytes, &mut into);
                self.universe.event("disk read", tag, u64::from(result.is_ok()));
                DiskCompletion::Read { tag, into, result }
            }
            DiskRequest::Sync { tag, file } => {
                let result = self.finish_sync(file, writes_before, bytes_before);
                self.universe.event("disk synced", tag, u64::from(result.is_ok()));
                DiskCompletion::Synced { tag, result }
            }
            DiskRequest::Allocate { tag, file, offset, bytes } => {
                let result = self.finish_allocate(file, offset, bytes);
                self.universe.event("disk allocated", tag, u64::from(result.is_ok()));
                DiskCompletion::Allocated { tag, result }
            }
            DiskRequest::Release { tag, file, offset, bytes } => {
                let result = self.finish_release(file, offset, bytes);
                self.universe.event("disk released", tag, u64::from(result.is_ok()));
                DiskCompletion::Released { tag, result }
            }
        })
    }
}

/// The images one behind the other.
fn joined(chunks: &[SealedChunk]) -> Vec<u8> {
    chunks.iter().flat_map(SealedChunk::image).copied().collect()
}

/// Where a request reads or writes; empty for a sync.
fn range_of(request: &DiskRequest) -> Range<u64> {
    let (offset, bytes) = match request {
        DiskRequest::Write { offset, chunks, .. } => {
            assert!((1..=DISK_WRITE_CHUNKS_MAX).contains(&chunks.len()));
            (*offset, chunks.iter().map(|chunk| chunk.image().len() as u64).sum())
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
        | DiskRequest::Read { file, .. }
        | DiskRequest::Sync { file, .. }
        | DiskRequest::Allocate { file, .. }
        | DiskRequest::Release { file, .. } => *file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (Rc<Universe>, SimDisk, FileId) {
        let universe = Universe::new(7, false);
        let mut disk = SimDisk::new(Rc::clone(&universe));
        (disk.error_chance, disk.depth_max) = (0, 4);
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
        disk.limit_bytes(10 * DISK_ALIGN_BYTES);
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
        assert_eq!(disk.used_bytes(), 5 * DISK_ALIGN_BYTES);
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
}
