//! The device under the disks of all simulated shards: files and their blocks, a size, moods in
//! which it fails, bits that rot, writes that are lost, crashes that keep, drop or tear what was
//! not synced.
//!
//! It knows which chunks stand where, and notes each that it may have spoiled: what else a broker
//! says is lost, the broker has lost.

use crate::base::chunk_pool::{ChunkWriter, SealedChunk};
use crate::base::prng::Prng;
use crate::format::chunk::ChunkHeader;
use crate::io::FileId;
use crate::limits::{DISK_ALIGN_BYTES, READ_TRIES_MAX};
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::ops::Range;

/// What a device keeps or loses as one.
const SECTOR_BYTES: usize = 512;
/// Unless it is limited: 1 TiB.
const CAPACITY_BLOCKS: usize = (1 << 40) / DISK_ALIGN_BYTES;

/// Why a device does not do what it should, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Fine,
    /// Writes and allocations fail.
    Broken,
    /// Writes and allocations find no space, as where others fill the device.
    Filled,
    /// Reads fail.
    Unreadable,
    /// Everything takes its time.
    Slow,
}

/// A chunk that stands on the device.
struct Image {
    queue: u64,
    /// Whose loss its loss can be.
    sequences: Range<u64>,
    used_bytes: usize,
    bytes: usize,
    /// Reads of it that failed since one succeeded: those that were refused, and those that
    /// brought something else.
    refusals: u32,
    bad_reads: u32,
    /// Every read of it is refused.
    gone: bool,
}

#[derive(Default)]
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
    /// Blocks of allocations that failed half way.
    strays: BTreeSet<usize>,
    /// By their offset.
    images: BTreeMap<u64, Image>,
    /// By queue number: first and end of the sequences that may be lost.
    damaged: BTreeMap<u64, BTreeMap<u64, u64>>,
}

/// See the module.
pub struct Device {
    files: Vec<File>,
    capacity_blocks: usize,
    used_blocks: usize,
    /// Writes that have ended.
    pub(super) writes_done: u64,
    error_per_mille: u64,
    mood: (Mood, u64),
    /// Power may fail: what was replaced is kept until it is synced.
    crashes: bool,
    /// It knows nothing of allocations.
    plain: bool,
    /// It takes no more writes once faults have ended, but can be read.
    dies: bool,
}

impl Device {
    /// A device with faults as the seed draws them.
    pub fn draw(prng: &mut Prng) -> Device {
        Device {
            files: Vec::new(),
            capacity_blocks: CAPACITY_BLOCKS,
            used_blocks: 0,
            writes_done: 0,
            error_per_mille: [0, 2, 10, 50][prng.below(4) as usize],
            mood: (Mood::Fine, 0),
            crashes: false,
            plain: prng.chance(100),
            dies: prng.chance(150),
        }
    }

    /// From now on it holds so many bytes, of all files together. What is there stays.
    pub fn limit_bytes(&mut self, capacity_bytes: u64) {
        self.capacity_blocks = capacity_bytes as usize / DISK_ALIGN_BYTES;
    }

    /// Power may fail.
    pub fn may_crash(&mut self) {
        self.crashes = true;
    }

    /// Nothing ever fails.
    pub fn calm(&mut self) {
        self.error_per_mille = 0;
        (self.plain, self.dies) = (false, false);
    }

    /// Bytes that files hold.
    pub fn used_bytes(&self) -> usize {
        self.used_blocks * DISK_ALIGN_BYTES
    }

    /// Bytes that are left.
    pub fn free_bytes(&self) -> u64 {
        (self.capacity_blocks.saturating_sub(self.used_blocks) * DISK_ALIGN_BYTES) as u64
    }

    /// The file of a name, if it was ever opened.
    pub fn find(&self, name: &str) -> Option<FileId> {
        let nth = self.files.iter().position(|file| file.name == name)?;
        Some(FileId(nth as u32))
    }

    /// Bytes of blocks that a file holds, and those of them that come from allocations that failed.
    pub fn held_bytes(&self, file: FileId) -> (u64, u64) {
        let file = &self.files[file.0 as usize];
        let held = file.blocks.iter().filter(|there| **there).count();
        ((held * DISK_ALIGN_BYTES) as u64, (file.strays.len() * DISK_ALIGN_BYTES) as u64)
    }

    /// Messages of a queue that may be lost because the device spoiled what holds them.
    pub fn damaged_messages(&self, file: FileId, queue: u64) -> u64 {
        let damaged = self.files[file.0 as usize].damaged.get(&queue);
        damaged.map_or(0, |ranges| ranges.iter().map(|(first, end)| end - first).sum())
    }

    /// The process has ended and another begins: what stands there is nothing to it.
    pub fn restart(&mut self) {
        for file in &mut self.files {
            file.images.clear();
            file.damaged.clear();
        }
    }

    /// Now and then its mood changes, a bit rots.
    pub fn disturb(&mut self, universe: &Universe) {
        if self.error_per_mille == 0 || universe.healed() {
            return;
        }
        if self.error_per_mille > 2 && universe.chance(1) {
            let moods = [Mood::Broken, Mood::Filled, Mood::Unreadable, Mood::Slow];
            let until_ns = universe.mono().0 + universe.skewed(5_000_000_000);
            self.mood = (moods[universe.index(moods.len())], until_ns);
            universe.event("disk mood", self.mood.0 as u64, until_ns);
        }
        if universe.chance(self.error_per_mille) {
            self.rot(universe);
        }
    }

    /// One bit of an image that stands on the device turns over, for good; or none of it can be
    /// read any more.
    fn rot(&mut self, universe: &Universe) {
        let count: usize = self.files.iter().map(|file| file.images.len()).sum();
        if count == 0 {
            return;
        }
        let nth = universe.index(count);
        let images = self.files.iter().enumerate();
        let mut images =
            images.flat_map(|(nth, file)| file.images.keys().map(move |&offset| (nth, offset)));
        let (file, offset) = images.nth(nth).expect("nth is below their number");
        let file = &mut self.files[file];
        let Some(image) = file.images.get_mut(&offset) else { return };
        if universe.chance(20) {
            universe.event("disk unreadable", offset, 0);
            image.gone = true;
            return;
        }
        let at = universe.index(image.bytes);
        file.bytes[offset as usize + at] ^= 1 << universe.index(8);
        universe.event("disk rot", offset, at as u64);
        if at < image.used_bytes {
            universe.cover(Cover::BitRot);
            file.spoil(offset);
        }
    }

    fn mood(&self, universe: &Universe) -> Mood {
        let (mood, until_ns) = self.mood;
        match universe.healed() {
            true if self.dies => Mood::Broken,
            true => Mood::Fine,
            false if universe.mono().0 < until_ns => mood,
            false => Mood::Fine,
        }
    }

    /// Whether everything takes its time now.
    pub fn is_slow(&self, universe: &Universe) -> bool {
        self.mood(universe) == Mood::Slow
    }

    /// What a write or an allocation fails with, if it does.
    fn refusal(&self, universe: &Universe) -> Option<ErrorKind> {
        let kind = match self.mood(universe) {
            Mood::Broken => ErrorKind::Other,
            Mood::Filled => ErrorKind::StorageFull,
            _ if !universe.fault(self.error_per_mille) => return None,
            _ if universe.chance(300) => ErrorKind::StorageFull,
            _ => ErrorKind::Other,
        };
        let full = kind == ErrorKind::StorageFull;
        universe.cover(if full { Cover::DiskFull } else { Cover::DiskError });
        Some(kind)
    }

    /// Opens a file, made if it is missing.
    pub fn open(&mut self, name: &str) -> FileId {
        self.find(name).unwrap_or_else(|| {
            self.files.push(File { name: name.to_owned(), ..File::default() });
            FileId(self.files.len() as u32 - 1)
        })
    }

    /// See [`crate::io::Disk::file_bytes`].
    pub fn file_bytes(&self, file: FileId) -> u64 {
        let file = &self.files[file.0 as usize];
        let blocks = file.blocks.iter().take_while(|there| **there).count();
        (blocks * DISK_ALIGN_BYTES).min(file.bytes.len()) as u64
    }

    /// The names that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let names = self.files.iter().map(|file| &file.name);
        let mut names: Vec<String> =
            names.filter(|name| name.starts_with(prefix)).cloned().collect();
        names.sort_unstable();
        names
    }

    /// See [`crate::io::Disk::read_now`].
    pub fn read_now(&self, file: FileId, offset: u64, into: &mut [u8]) -> usize {
        let bytes = &self.files[file.0 as usize].bytes;
        let from = bytes.len().min(offset as usize);
        let there = into.len().min(bytes.len() - from);
        into[..there].copy_from_slice(&bytes[from..from + there]);
        there
    }

    /// Cuts a file off.
    pub fn cut(&mut self, file: FileId, bytes: usize) {
        let file = &mut self.files[file.0 as usize];
        file.forget(bytes as u64..u64::MAX);
        file.bytes.truncate(bytes);
        let blocks = bytes.div_ceil(DISK_ALIGN_BYTES).min(file.blocks.len());
        self.used_blocks -= file.blocks.drain(blocks..).filter(|there| *there).count();
        file.strays.retain(|&block| block < blocks);
        file.unsynced.retain(|sector, _| (sector + 1) * SECTOR_BYTES <= bytes);
    }

    /// Whether anything was ever spoiled since the process began.
    pub fn has_damage(&self) -> bool {
        self.files.iter().any(|file| !file.damaged.is_empty())
    }

    /// Length of a file.
    pub fn length(&self, file: FileId) -> usize {
        self.files[file.0 as usize].bytes.len()
    }

    /// Writes images one behind the other.
    pub fn write(
        &mut self,
        universe: &Universe,
        file: FileId,
        offset: u64,
        chunks: &[SealedChunk],
    ) -> Result<(), ErrorKind> {
        let bytes: usize = chunks.iter().map(|chunk| chunk.image().len()).sum();
        self.files[file.0 as usize].forget(offset..offset + bytes as u64);
        let refusal = self.refusal(universe);
        let there = self.take_blocks(file, offset, bytes);
        let part = if there < bytes || refusal.is_some() { 500 } else { 1000 };
        if chunks.len() > 1 {
            universe.cover(Cover::Packed);
        }
        let mut at = 0;
        for chunk in chunks {
            let image = chunk.image();
            let lost = part == 1000 && universe.fault(self.error_per_mille / 10);
            let share = if lost { 0 } else { part };
            self.write_some(universe, file, offset as usize + at, image, share);
            if part == 1000 {
                let file = &mut self.files[file.0 as usize];
                file.note(offset + at as u64, image);
                if lost {
                    universe.cover(Cover::LostWrite);
                    file.spoil(offset + at as u64);
                }
            }
            at += image.len();
        }
        outcome(universe, refusal, there < bytes)
    }

    /// Writes pages; with `sync` no crash takes them away from then on. None is lost without an
    /// error: who asks for a sync relies on that.
    pub fn write_pages(
        &mut self,
        universe: &Universe,
        file: FileId,
        offset: u64,
        image: &[u8],
        sync: bool,
    ) -> Result<(), ErrorKind> {
        self.files[file.0 as usize].forget(offset..offset + image.len() as u64);
        let refusal = self.refusal(universe);
        let there = self.take_blocks(file, offset, image.len());
        let part = if there < image.len() || refusal.is_some() { 500 } else { 1000 };
        self.write_some(universe, file, offset as usize, image, part);
        if part == 1000 && sync {
            self.files[file.0 as usize].keep(offset as usize, image.len());
        }
        outcome(universe, refusal, there < image.len())
    }

    /// A part of a write is there already, should the process or the machine stop now.
    pub fn begin_pages(&mut self, universe: &Universe, file: FileId, offset: u64, image: &[u8]) {
        let there = self.take_blocks(file, offset, image.len());
        self.files[file.0 as usize].forget(offset..offset + there as u64);
        self.write_some(universe, file, offset as usize, &image[..there], universe.below(1000));
    }

    /// Writes each sector of `image` with a chance of `per_mille`.
    fn write_some(
        &mut self,
        universe: &Universe,
        file: FileId,
        offset: usize,
        image: &[u8],
        per_mille: u64,
    ) {
        self.writes_done += 1;
        let file = &mut self.files[file.0 as usize];
        if file.bytes.len() < offset + image.len() {
            file.bytes.resize(offset + image.len(), 0);
        }
        if per_mille == 1000 && !self.crashes {
            file.bytes[offset..offset + image.len()].copy_from_slice(image);
            return;
        }
        for (nth, sector) in image.chunks(SECTOR_BYTES).enumerate() {
            if per_mille < 1000 && !universe.chance(per_mille) {
                continue;
            }
            let at = offset + nth * SECTOR_BYTES;
            if self.crashes {
                let before = file.bytes[at..at + SECTOR_BYTES].to_vec();
                let versions = file.unsynced.entry(at / SECTOR_BYTES).or_default();
                // The entry's number is that of the write which replaced it. A few are enough.
                if versions.len() < 3 {
                    versions.push((self.writes_done, before));
                }
            }
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
                if self.used_blocks >= self.capacity_blocks {
                    return (nth - first) * DISK_ALIGN_BYTES;
                }
                file.blocks[nth] = true;
                self.used_blocks += 1;
            }
        }
        bytes
    }

    /// Finds blocks for a range, all of them or, as it fails, some.
    pub fn allocate(
        &mut self,
        universe: &Universe,
        file: FileId,
        offset: u64,
        bytes: u64,
    ) -> Result<(), ErrorKind> {
        let nth = file.0 as usize;
        if self.plain {
            return Err(ErrorKind::Unsupported);
        }
        if let Some(kind) = self.refusal(universe) {
            return Err(kind);
        }
        let first = offset as usize / DISK_ALIGN_BYTES;
        let before: Vec<bool> = self.files[nth].blocks.iter().skip(first).copied().collect();
        let there = self.take_blocks(file, offset, bytes as usize);
        let end = first + there / DISK_ALIGN_BYTES;
        let file = &mut self.files[nth];
        if there < bytes as usize {
            universe.cover(Cover::DiskFull);
            let was = |block: usize| before.get(block - first).copied().unwrap_or(false);
            let taken: Vec<usize> = (first..end).filter(|&block| !was(block)).collect();
            file.strays.extend(taken);
            return Err(ErrorKind::StorageFull);
        }
        file.strays.retain(|block| !(first..end).contains(block));
        let end = (offset + bytes) as usize;
        file.bytes.resize(file.bytes.len().max(end), 0);
        Ok(())
    }

    /// Gives the blocks of a range back.
    pub fn release(
        &mut self,
        universe: &Universe,
        file: FileId,
        offset: u64,
        bytes: u64,
    ) -> Result<(), ErrorKind> {
        if universe.fault(self.error_per_mille) {
            universe.cover(Cover::DiskError);
            return Err(ErrorKind::Other);
        }
        let there = &mut self.files[file.0 as usize];
        there.forget(offset..offset.saturating_add(bytes));
        let (first, end) = (offset as usize, offset.saturating_add(bytes) as usize);
        let blocks = first / DISK_ALIGN_BYTES..(end / DISK_ALIGN_BYTES).min(there.blocks.len());
        there.strays.retain(|block| !blocks.contains(block));
        for block in there.blocks.get_mut(blocks).unwrap_or_default() {
            self.used_blocks -= usize::from(std::mem::take(block));
        }
        // A crash may bring back what stood there, as after a write.
        let zeros = vec![0; end.min(there.bytes.len()).saturating_sub(first)];
        self.write_some(universe, file, first, &zeros, 1000);
        Ok(())
    }

    /// Reads what stands at an offset; or fails, or brings too little, or something else.
    pub fn read(
        &mut self,
        universe: &Universe,
        file: FileId,
        offset: u64,
        bytes: usize,
        into: &mut ChunkWriter,
    ) -> Result<usize, ErrorKind> {
        let image = self.files[file.0 as usize].images.get(&offset);
        let gone = image.is_some_and(|image| image.gone);
        let fails = gone || self.mood(universe) == Mood::Unreadable;
        let failure = match fails || universe.fault(self.error_per_mille) {
            true => 1 + if fails { 0 } else { universe.below(3) },
            false => 0,
        };
        let file = &mut self.files[file.0 as usize];
        let from = file.bytes.len().min(offset as usize);
        let mut there = bytes.min(file.bytes.len() - from);
        if failure == 2 {
            there = universe.index(bytes).min(there);
        }
        let flips = (failure == 3 && there > 0).then(|| (universe.index(there), universe.below(8)));
        file.note_read(universe, offset, failure);
        if failure == 1 {
            universe.cover(Cover::DiskError);
            return Err(ErrorKind::Other);
        }
        if there < bytes {
            universe.cover(Cover::ShortRead);
        }
        let image = &file.bytes;
        Ok(into.load(|all| {
            all[..there].copy_from_slice(&image[from..from + there]);
            if let Some((at, bit)) = flips {
                all[at] ^= 1 << bit;
            }
            there
        }))
    }

    /// Nothing that was written before may be lost in a crash.
    pub fn sync(
        &mut self,
        universe: &Universe,
        file: FileId,
        writes_before: u64,
        bytes_before: usize,
    ) -> Result<(), ErrorKind> {
        if universe.fault(self.error_per_mille) {
            universe.cover(Cover::DiskError);
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

    /// Power fails: of each unsynced sector any state since the last sync may be found, or a mix
    /// of two.
    pub fn crash(&mut self, universe: &Universe) {
        universe.cover(Cover::DiskCrash);
        universe.event("disk crash", 0, 0);
        for file in &mut self.files {
            if universe.chance(300) {
                // The file had grown, and the device knows nothing of it.
                let sectors = file.bytes.len().div_ceil(SECTOR_BYTES);
                let kept = universe.range(0, sectors as u64) as usize * SECTOR_BYTES;
                file.bytes.truncate(kept.max(file.synced_bytes));
                let blocks = file.bytes.len().div_ceil(DISK_ALIGN_BYTES).min(file.blocks.len());
                let lost = file.blocks.drain(blocks..).filter(|there| *there).count();
                file.strays.retain(|&block| block < blocks);
                self.used_blocks -= lost;
            }
            let (mut kept_new, mut kept_old) = (false, false);
            for (sector, mut versions) in std::mem::take(&mut file.unsynced) {
                if (sector + 1) * SECTOR_BYTES > file.bytes.len() {
                    continue;
                }
                let at = sector * SECTOR_BYTES;
                versions.push((u64::MAX, file.bytes[at..at + SECTOR_BYTES].to_vec()));
                let nth = universe.index(versions.len());
                (kept_new, kept_old) = match nth + 1 == versions.len() {
                    true => (true, kept_old),
                    false => (kept_new, true),
                };
                let kept = versions[nth].1.clone();
                file.bytes[at..at + SECTOR_BYTES].copy_from_slice(&kept);
                if universe.chance(200) {
                    universe.cover(Cover::DiskTorn);
                    let other = &versions[universe.index(versions.len())].1;
                    let cut = universe.index(SECTOR_BYTES);
                    file.bytes[at..at + cut].copy_from_slice(&other[..cut]);
                }
            }
            if kept_new && kept_old && file.name.starts_with("journal-") {
                universe.cover(Cover::DurableTorn);
            }
        }
    }
}

/// Of a write.
fn outcome(
    universe: &Universe,
    refusal: Option<ErrorKind>,
    is_short: bool,
) -> Result<(), ErrorKind> {
    match refusal {
        Some(kind) => Err(kind),
        None if is_short => {
            universe.cover(Cover::DiskFull);
            Err(ErrorKind::StorageFull)
        }
        None => Ok(()),
    }
}

impl File {
    /// A crash takes nothing away of what stands in a range now.
    fn keep(&mut self, offset: usize, bytes: usize) {
        self.synced_bytes = self.synced_bytes.max(offset + bytes);
        let sectors = offset / SECTOR_BYTES..(offset + bytes) / SECTOR_BYTES;
        self.unsynced.retain(|sector, _| !sectors.contains(sector));
    }

    /// A chunk stands at an offset now.
    fn note(&mut self, offset: u64, bytes: &[u8]) {
        let Ok(header) = ChunkHeader::decode(bytes) else { return };
        let image = Image {
            queue: header.queue,
            sequences: header.first_sequence..header.end_sequence,
            used_bytes: header.used_bytes as usize,
            bytes: bytes.len(),
            refusals: 0,
            bad_reads: 0,
            gone: false,
        };
        self.images.insert(offset, image);
    }

    /// What is refused as often as it is tried may be lost, and what is bad twice.
    fn note_read(&mut self, universe: &Universe, offset: u64, failure: u64) {
        let Some(image) = self.images.get_mut(&offset) else { return };
        if failure == 0 {
            if image.refusals > 0 {
                universe.cover(Cover::ReadAfterRefusal);
            }
            if image.sequences.is_empty() {
                universe.cover(Cover::FragmentsRefilled);
            }
            (image.refusals, image.bad_reads) = (0, 0);
            return;
        }
        image.refusals += u32::from(failure == 1);
        image.bad_reads += u32::from(failure > 1);
        let unreadable = image.refusals >= READ_TRIES_MAX;
        if unreadable {
            universe.cover(Cover::Unreadable);
        }
        if unreadable || image.bad_reads > 1 {
            self.spoil(offset);
        }
    }

    /// Nothing that stood in a range stands there any more.
    fn forget(&mut self, range: Range<u64>) {
        let before = self.images.range(..range.start).next_back();
        let reaches = before.filter(|(at, image)| *at + image.bytes as u64 > range.start);
        let first = reaches.map_or(range.start, |(at, _)| *at);
        let gone: Vec<u64> = self.images.range(first..range.end).map(|(&at, _)| at).collect();
        for at in gone {
            self.images.remove(&at);
        }
    }

    /// The messages of an image may be lost.
    fn spoil(&mut self, offset: u64) {
        let Some(image) = self.images.get(&offset) else { return };
        let Range { start, end } = image.sequences;
        // The later chunks of a large message have none of their own: it stands before them.
        let first = if start == end { start - 1 } else { start };
        let ranges = self.damaged.entry(image.queue).or_default();
        let (mut from, mut to) = (first, end);
        let touching: Vec<u64> =
            ranges.range(..=to).filter(|(_, end)| **end >= from).map(|(&first, _)| first).collect();
        for first in touching {
            let end = ranges.remove(&first).unwrap_or(first);
            (from, to) = (from.min(first), to.max(end));
        }
        ranges.insert(from, to);
    }
}
