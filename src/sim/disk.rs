//! The simulated disk: completions late and in any order, errors, a full device, reads cut short at
//! the file's end, crashes that keep, drop or tear each sector that was not synced, bits that rot.

use crate::io::{Disk, DiskCompletion, DiskRequest, FileId};
use crate::limits::DISK_ALIGN_BYTES;
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;

/// What a device keeps or loses as one.
const SECTOR_BYTES: usize = 512;

struct File {
    name: String,
    /// As the system shows it.
    bytes: Vec<u8>,
    /// Of each sector that was written since the last sync: what it held, by number of the write.
    /// The first entry is what surely survives.
    unsynced: BTreeMap<usize, Vec<(u64, Vec<u8>)>>,
    /// The length that surely survives.
    synced_bytes: usize,
}

struct Pending {
    due_ns: u64,
    /// Of a sync: the last write that had ended when it began.
    writes_before: u64,
    /// Of a sync: the file's length then.
    bytes_before: usize,
    request: DiskRequest,
}

/// See the module.
pub struct SimDisk {
    universe: Rc<Universe>,
    files: Vec<File>,
    pending: Vec<Pending>,
    writes_done: u64,
    depth_max: usize,
    /// The device is full beyond this.
    capacity_bytes: usize,
    error_chance: u64,
}

impl SimDisk {
    /// An empty disk with faults as the seed draws them.
    pub fn new(universe: Rc<Universe>) -> Self {
        let depth_max = universe.range(1, 16) as usize;
        let error_chance = [0, 10, 100][universe.index(3)];
        SimDisk {
            universe,
            files: Vec::new(),
            pending: Vec::new(),
            writes_done: 0,
            depth_max,
            capacity_bytes: usize::MAX,
            error_chance,
        }
    }

    /// From now on the device holds so many bytes per file.
    pub fn limit_bytes(&mut self, capacity_bytes: usize) {
        self.capacity_bytes = capacity_bytes;
    }

    /// Power fails: requests under way may have happened or not, and of each unsynced sector any
    /// state since the last sync may be found, or a mix of two.
    pub fn crash(&mut self) {
        let universe = Rc::clone(&self.universe);
        universe.cover(Cover::DiskCrash);
        universe.event("disk crash", self.pending.len() as u64, 0);
        for pending in std::mem::take(&mut self.pending) {
            if let DiskRequest::Write { file, offset, chunk, .. } = pending.request {
                self.write_some(file, offset as usize, chunk.image(), 500);
            }
        }
        for file in &mut self.files {
            if universe.chance(300) {
                // The file had grown, and the device knows nothing of it.
                let sectors = file.bytes.len().div_ceil(SECTOR_BYTES);
                let kept = universe.range(0, sectors as u64) as usize * SECTOR_BYTES;
                file.bytes.truncate(kept.max(file.synced_bytes));
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

    fn finish_write(&mut self, file: FileId, offset: u64, image: &[u8]) -> Result<(), ErrorKind> {
        let offset = offset as usize;
        if offset + image.len() > self.capacity_bytes && !self.universe.healed() {
            self.universe.cover(Cover::DiskFull);
            return Err(ErrorKind::StorageFull);
        }
        if self.universe.fault(self.error_chance) {
            self.universe.cover(Cover::DiskError);
            self.write_some(file, offset, image, 500);
            return Err(ErrorKind::Other);
        }
        self.write_some(file, offset, image, 1000);
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
        self.universe.disk_due(self.pending.iter().map(|pending| pending.due_ns).min());
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
                });
                self.files.len() - 1
            }
        };
        Ok(FileId(nth as u32))
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        let (offset, bytes) = match &request {
            DiskRequest::Write { offset, chunk, .. } => (*offset, chunk.image().len()),
            DiskRequest::Read { offset, bytes, .. } => (*offset, *bytes),
            DiskRequest::Sync { .. } => (0, 0),
        };
        assert!(offset.is_multiple_of(DISK_ALIGN_BYTES as u64), "an offset that is not aligned");
        assert!(bytes.is_multiple_of(DISK_ALIGN_BYTES), "a length that is not aligned");
        if self.is_full() {
            return Err(request);
        }
        let latency_ns = 20_000 + self.universe.skewed(50_000_000);
        let due_ns = self.universe.mono().0 + latency_ns;
        let writes_before = self.writes_done;
        let bytes_before = match &request {
            DiskRequest::Sync { file, .. } => self.files[file.0 as usize].bytes.len(),
            _ => 0,
        };
        self.pending.push(Pending { due_ns, writes_before, bytes_before, request });
        self.tell_due();
        Ok(())
    }

    fn poll_completion(&mut self) -> Option<DiskCompletion> {
        let now_ns = self.universe.mono().0;
        let due = |pending: &Pending| pending.due_ns <= now_ns;
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
            DiskRequest::Write { tag, file, offset, chunk } => {
                let result = self.finish_write(file, offset, chunk.image());
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
        })
    }
}
