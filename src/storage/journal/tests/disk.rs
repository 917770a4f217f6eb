//! A disk that keeps what it was told to keep, and of all else what the dice say.

use super::super::{JournalRequest, LiveSegment};
use crate::base::pages::Pages;
use crate::base::prng::Prng;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

const BLOCK: usize = 4096;
/// What is written as a whole or not at all: a device may be better than its sectors, or worse.
const UNITS: [usize; 3] = [16, 512, BLOCK];

#[derive(Clone, Default)]
struct File {
    /// What a crash leaves as it is.
    kept: Vec<u8>,
    /// What was written since, in order, in the device's cache.
    cached: Vec<(usize, Vec<u8>)>,
    name_is_kept: bool,
    /// One past what was written since its last header.
    end: usize,
}

impl File {
    fn image(&self) -> Vec<u8> {
        let mut image = self.kept.clone();
        self.cached.iter().for_each(|(offset, bytes)| put(&mut image, *offset, bytes));
        image
    }

    /// Writes past the cache.
    fn keep(&mut self, at: usize, bytes: &[u8]) {
        put(&mut self.kept, at, bytes);
        for (offset, cached) in &mut self.cached {
            let (start, end) = (at.max(*offset), (at + bytes.len()).min(*offset + cached.len()));
            if start < end {
                cached[start - *offset..end - *offset]
                    .copy_from_slice(&bytes[start - at..end - at]);
            }
        }
    }
}

#[derive(Clone)]
pub struct Disk {
    files: BTreeMap<u32, File>,
    pub under_way: Vec<JournalRequest>,
    dice: Prng,
    flipped: BTreeSet<(u32, usize)>,
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    image.resize(image.len().max(offset + bytes.len()), 0);
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Disk {
    pub fn new(seed: u64) -> Disk {
        let (files, flipped) = (BTreeMap::new(), BTreeSet::new());
        Disk { files, under_way: vec![], dice: Prng::new(seed), flipped }
    }

    pub fn submit(&mut self, request: JournalRequest) {
        if let JournalRequest::Write { file, offset, image, .. } = &request {
            let (offset, file) = (*offset as usize, self.files.get_mut(file).unwrap());
            assert!(offset == 0 || offset >= file.end, "a block is written once");
            assert!(offset.is_multiple_of(BLOCK) && image.len().is_multiple_of(BLOCK));
            file.end = offset + image.len();
            assert!(file.end <= file.image().len(), "only what was written before is in use");
        }
        self.under_way.push(request);
        assert!(self.under_way.len() <= 2, "one request of the log, one that makes a segment");
    }

    /// A request ends well, or fails, and then a part of it is done.
    pub fn complete(
        &mut self,
        nth: usize,
        fails: bool,
    ) -> (u64, Result<(), ErrorKind>, Option<Pages>) {
        let request = self.under_way.remove(nth % self.under_way.len());
        let (JournalRequest::Create { tag, .. }
        | JournalRequest::Prewrite { tag, .. }
        | JournalRequest::Write { tag, .. }
        | JournalRequest::Sync { tag, .. }) = request;
        if fails {
            return (tag, Err(ErrorKind::Other), self.tear(request));
        }
        let mut written = None;
        match request {
            JournalRequest::Create { file, .. } => {
                self.files.insert(file, File::default());
            }
            JournalRequest::Prewrite { file, offset, bytes, .. } => {
                self.cache(file, offset as usize, vec![0; bytes as usize]);
            }
            JournalRequest::Write { file, offset, image, sync: false, .. } => {
                self.cache(file, offset as usize, image.as_slice().to_vec());
                written = Some(image);
            }
            JournalRequest::Write { file, offset, image, .. } => {
                // What was written elsewhere without it stays in the cache.
                self.files.get_mut(&file).unwrap().keep(offset as usize, image.as_slice());
                written = Some(image);
            }
            JournalRequest::Sync { file, .. } => {
                let file = self.files.get_mut(&file).unwrap();
                file.kept = file.image();
                file.cached.clear();
                file.name_is_kept = true;
            }
        }
        (tag, Ok(()), written)
    }

    /// The process stops; with `power_fails` the machine does, and the caches are lost in part.
    pub fn crash(&mut self, power_fails: bool) {
        for request in std::mem::take(&mut self.under_way) {
            self.tear(request);
        }
        if !power_fails {
            return;
        }
        let dice = &mut self.dice;
        self.files.retain(|_, file| file.name_is_kept || dice.chance(500));
        for file in self.files.values_mut() {
            for (offset, bytes) in std::mem::take(&mut file.cached) {
                for (offset, bytes) in what_stays(&mut self.dice, offset, &bytes) {
                    put(&mut file.kept, offset, &bytes);
                }
            }
        }
    }

    /// Flips a bit of one of the files in which the log is. None flips back: what is lost stays so.
    pub fn flip(&mut self, segments: &[LiveSegment], at: usize) {
        let Some(segment) = segments.get(at % segments.len().max(1)) else { return };
        let file = self.files.get_mut(&segment.file).unwrap();
        let image = file.image();
        let (at, bit) = (at / 64 % image.len(), at % 8);
        if self.flipped.insert((segment.file, at)) {
            file.keep(at, &[image[at] ^ (1 << bit)]);
        }
    }

    /// All files, in some order.
    pub fn images(&mut self) -> Vec<(u32, Vec<u8>)> {
        let mut images: Vec<_> = self.files.iter().map(|(&file, f)| (file, f.image())).collect();
        let first = self.dice.below(images.len().max(1) as u64) as usize;
        images.rotate_left(first);
        images
    }

    fn cache(&mut self, file: u32, offset: usize, bytes: Vec<u8>) {
        self.files.get_mut(&file).unwrap().cached.push((offset, bytes));
    }

    /// A request that was under way, or failed, is done in part; what it was to write.
    fn tear(&mut self, request: JournalRequest) -> Option<Pages> {
        match request {
            JournalRequest::Write { file, offset, image, .. } => {
                for (offset, bytes) in what_stays(&mut self.dice, offset as usize, image.as_slice())
                {
                    self.cache(file, offset, bytes);
                }
                return Some(image);
            }
            JournalRequest::Prewrite { file, offset, bytes, .. } if self.dice.chance(500) => {
                self.cache(file, offset as usize, vec![0; bytes as usize / 2]);
            }
            JournalRequest::Create { file, .. } if self.dice.chance(500) => {
                self.files.insert(file, File::default());
            }
            _ => {}
        }
        None
    }
}

/// The parts of a write that stay: none, all, those before some point, any.
fn what_stays(dice: &mut Prng, offset: usize, bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let unit = *dice.pick(&UNITS);
    let units = bytes.len().div_ceil(unit) as u64;
    let first = dice.below(units + 1) as usize;
    let way = dice.below(4);
    let parts = bytes.chunks(unit).enumerate().filter(|(nth, _)| match way {
        0 => false,
        1 => true,
        2 => *nth < first,
        _ => dice.chance(500),
    });
    parts.map(|(nth, part)| (offset + nth * unit, part.to_vec())).collect()
}
