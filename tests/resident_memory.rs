//! Memory that is given back leaves the process. Alone in its binary, for it measures all of it.
#![cfg(feature = "server")]
#![allow(clippy::unwrap_used, reason = "a test")]

use forebay::base::chunk_pool::{ChunkPool, PoolShape};
use forebay::io::memory::MappedSlabs;
use forebay::limits::{CHUNK_CLASS_BYTES, CHUNK_HEADER_BYTES, SLAB_BYTES};
use std::rc::Rc;

const SLABS: usize = 64;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn memory_given_back_leaves_the_process() {
    let shape = PoolShape {
        slab_bytes: SLAB_BYTES,
        class_bytes: CHUNK_CLASS_BYTES.to_vec(),
        header_bytes: CHUNK_HEADER_BYTES,
    };
    let pool = ChunkPool::new(shape, Rc::new(MappedSlabs));
    let top = CHUNK_CLASS_BYTES.len() - 1;
    let before = resident_bytes();
    let mut writers = Vec::new();
    for _ in 0..SLABS {
        assert!(pool.grow(top));
        while let Some(mut writer) = pool.take(top) {
            writer.append(&[&vec![1; writer.room_bytes()]]);
            writers.push(writer);
        }
    }
    assert!(resident_bytes() - before >= SLABS * SLAB_BYTES * 9 / 10);
    drop(writers);
    assert_eq!(pool.shrink(0), SLABS * SLAB_BYTES);
    assert!(resident_bytes().saturating_sub(before) < 2 * SLAB_BYTES);
}
