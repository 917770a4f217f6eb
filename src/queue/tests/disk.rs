//! A disk for the tests of queues: the store as it is, with a file in memory.

use crate::base::time::{Mono, Now};
use crate::queue::Queue;
use crate::queue::memory::Memory;
use crate::queue::spill::{Eviction, Refill};
use crate::storage::extents::{DiskBudget, SpillShape};
use crate::storage::spill::{PlannedRead, Refilled, SpillStore, StoreRequest, Written};
use std::collections::BTreeMap;
use std::ops::Range;

pub struct TestDisk {
    store: SpillStore<u64>,
    /// What stands in each slot, by its offset.
    file: BTreeMap<u64, Vec<u8>>,
    /// Chunks in memory that are on disk too, as far as is known.
    pub clean: Vec<u64>,
}

impl TestDisk {
    pub fn new() -> TestDisk {
        let shape = SpillShape {
            slot_bytes: 1 << 20,
            extent_slots: 64,
            reserve_bytes: 1 << 30,
            headroom_bytes: 0,
            warm_bytes: 0,
        };
        let store = SpillStore::new(shape, DiskBudget::new(1 << 30));
        TestDisk { store, file: BTreeMap::new(), clean: Vec::new() }
    }

    /// Writes up to `count` chunks. Returns how many.
    pub fn spill(&mut self, queue: &mut Queue, count: usize, tails: bool) -> usize {
        let mut written = 0;
        while written < count
            && let Some(victim) = queue.take_victim(tails)
        {
            written += 1;
            while !self.store.can_write() {
                let request = self.store.poll_request(Mono(0), || Some(1 << 40));
                let Some(StoreRequest::Allocate { tag, .. }) = request else {
                    panic!("{request:?} where blocks are needed");
                };
                self.store.handle_allocated(tag, Ok(()), Mono(0));
            }
            let planned = self.store.write(vec![(victim.chunk, victim.sealed)]);
            let Ok(planned) = planned else { panic!("it could be written") };
            self.file.insert(planned.offset, planned.chunks[0].image().to_vec());
            let outcome = self.store.handle_written(planned.tag, Ok(()), Mono(0));
            let Written::Done(places) = outcome else { panic!("nothing fails here") };
            for (chunk, place) in places {
                if queue.handle_spilled(chunk, place) == Eviction::Needed {
                    self.clean.push(chunk);
                }
            }
        }
        written
    }

    /// Tries to write up to `count` chunks, in vain.
    pub fn fail_to_spill(&mut self, queue: &mut Queue, count: usize, tails: bool) {
        let victims: Vec<_> = (0..count).map_while(|_| queue.take_victim(tails)).collect();
        victims.iter().for_each(|victim| queue.handle_spill_failed(victim.chunk));
    }

    /// Reads the next chunk that is wanted. False: none is.
    pub fn refill(&mut self, queue: &mut Queue, memory: &mut Memory, ahead: u32) -> bool {
        let Some(refill) = queue.poll_refill(Some(ahead)) else { return false };
        let into = memory.take_refill_chunk(refill.place.image_bytes()).unwrap();
        let Refill { chunk, place, name, .. } = refill;
        let planned = self.store.read(chunk, place, name, into);
        let PlannedRead { tag, offset, bytes, mut into } = planned;
        let (&slot, image) = self.file.range(..=offset).next_back().unwrap();
        let from = (offset - slot) as usize;
        into.load(|all| {
            all[..bytes].copy_from_slice(&image[from..from + bytes]);
            bytes
        });
        let Refilled::Whole(chunk, sealed) = self.store.handle_read(tag, into, Ok(bytes), Mono(0))
        else {
            panic!("it is read as it was written");
        };
        if queue.handle_refilled(chunk, &sealed) {
            self.clean.push(chunk);
        }
        true
    }

    /// Turns a bit of the n-th byte of the image that was written last.
    pub fn rot_last(&mut self, nth: usize) {
        let (_, image) = self.file.last_key_value().unwrap();
        let mut image = image.clone();
        image[nth] ^= 1;
        let offset = *self.file.last_key_value().unwrap().0;
        self.file.insert(offset, image);
    }

    /// Reads the next chunk that is wanted, which is damaged. Returns how many messages are lost.
    pub fn refill_damaged(&mut self, queue: &mut Queue, now: Now, memory: &mut Memory) -> u64 {
        let refill = queue.poll_refill(Some(0)).unwrap();
        let into = memory.take_refill_chunk(refill.place.image_bytes()).unwrap();
        let Refill { chunk, place, name, .. } = refill;
        let mut planned = self.store.read(chunk, place, name, into);
        loop {
            let PlannedRead { tag, offset, bytes, mut into } = planned;
            let (&slot, image) = self.file.range(..=offset).next_back().unwrap();
            let from = (offset - slot) as usize;
            into.load(|all| {
                all[..bytes].copy_from_slice(&image[from..from + bytes]);
                bytes
            });
            match self.store.handle_read(tag, into, Ok(bytes), Mono(0)) {
                Refilled::Again(again) => planned = again,
                Refilled::Damaged(chunk, sealed, lost) => {
                    assert!(queue.handle_refilled(chunk, &sealed));
                    self.clean.push(chunk);
                    let lose = |range| queue.handle_lost(chunk, range, now, memory);
                    return lost.into_iter().map(lose).sum();
                }
                _ => panic!("a part of it is damaged"),
            }
        }
    }

    /// The next chunk that is wanted cannot be read. Returns its messages.
    pub fn lose(
        &mut self,
        queue: &mut Queue,
        now: Now,
        memory: &mut Memory,
    ) -> Option<(Range<u64>, u64)> {
        let Refill { chunk, name, .. } = queue.poll_refill(Some(3))?;
        let range = name.first_sequence..name.end_sequence;
        let count = queue.handle_lost(chunk, range.clone(), now, memory);
        Some((range, count))
    }

    /// What is counted of chunks on disk and to be written is what there is.
    pub fn check(queue: &Queue) {
        let (log, spilled) = (&queue.log, &queue.log.spilled);
        let tail = log.writer.as_ref().map(|_| log.chunks.len() - 1);
        let held =
            log.chunks.iter().enumerate().filter_map(|(nth, entry)| Some((nth, entry.as_ref()?)));
        let (mut dirty, mut absent, mut memory) = ((0, 0), (0, 0, 0), 0);
        for (nth, entry) in held {
            memory += entry.memory_bytes();
            if entry.is_dirty() && Some(nth) != tail {
                dirty = (dirty.0 + 1, dirty.1 + entry.memory_bytes());
                let chunk = log.front + nth as u64;
                assert!(spilled.dirty.contains(&chunk));
                assert!(entry.writer.is_some() || spilled.sealed.contains_key(&chunk));
            }
            if entry.reader.is_none() {
                assert!(entry.place.is_some() && entry.pending > 0 || entry.count == 0);
                let (messages, bytes) = (u64::from(entry.count), u64::from(entry.filled));
                absent = (absent.0 + 1, absent.1 + messages, absent.2 + bytes);
            }
        }
        assert_eq!((spilled.dirty_chunks, spilled.dirty_bytes), dirty);
        assert_eq!(spilled.absent_chunks, absent.0);
        assert_eq!((queue.spilled_messages(), queue.spilled_bytes()), (absent.1, absent.2));
        assert_eq!(queue.memory_bytes(), memory);
    }

    /// What can leave memory at once does.
    pub fn evict(&mut self, queue: &mut Queue, near: u32) {
        self.clean.retain(|&chunk| queue.evict(chunk, near) == Eviction::Needed);
    }
}
