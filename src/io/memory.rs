//! Slabs from the system: anonymous maps, on huge pages where it has them.

use crate::base::chunk_pool::SlabSource;
use crate::limits::{DISK_ALIGN_BYTES, SLAB_BYTES};
use std::ptr::NonNull;

/// Maps slabs aligned to their size (up to one huge page), zeroed; unmaps what is given back, so
/// that the process shrinks at once.
pub struct MappedSlabs;

// SAFETY: an anonymous private map is memory that nobody else has, until munmap gets it back.
unsafe impl SlabSource for MappedSlabs {
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        assert!(bytes > 0 && bytes.is_multiple_of(DISK_ALIGN_BYTES));
        let align = if bytes >= SLAB_BYTES { SLAB_BYTES } else { DISK_ALIGN_BYTES };
        let memory = map_aligned(bytes, align)?;
        // SAFETY: exactly the map just made. Advice; without huge pages small ones serve.
        unsafe { libc::madvise(memory.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Some(memory)
    }

    unsafe fn unmap(&self, memory: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller gives back what `map` made, and nothing uses it any more. It cannot
        // fail but by wrong arguments or for want of map entries; then the slab stays, unused.
        unsafe { libc::munmap(memory.as_ptr().cast(), bytes) };
    }
}

/// Maps more than needed and gives the ends back, for the system aligns to small pages only.
fn map_aligned(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    let slack = if align > DISK_ALIGN_BYTES { align } else { 0 };
    let wide = bytes.checked_add(slack)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous map at a place of the system's choice touches nothing that exists.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), wide, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return None;
    }
    let start: *mut u8 = start.cast();
    let front = start.addr().next_multiple_of(align) - start.addr();
    assert!(front <= slack, "the system aligns maps to small pages");
    let back = slack - front;
    // SAFETY: both ends lie in the map just made, outside of the part that is kept; page-aligned.
    unsafe {
        if front > 0 {
            libc::munmap(start.cast(), front);
        }
        if back > 0 {
            libc::munmap(start.add(front + bytes).cast(), back);
        }
        NonNull::new(start.add(front))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_are_aligned_zeroed_and_usable_to_the_last_byte() {
        let slabs: Vec<_> = (0..5).map(|_| MappedSlabs.map(SLAB_BYTES).unwrap()).collect();
        for slab in &slabs {
            assert_eq!(slab.as_ptr().addr() % SLAB_BYTES, 0);
            // SAFETY: mapped above, with this many bytes, used by nobody else.
            let bytes = unsafe { std::slice::from_raw_parts_mut(slab.as_ptr(), SLAB_BYTES) };
            assert!(bytes.iter().all(|byte| *byte == 0));
            bytes.fill(0xA5);
        }
        for slab in slabs {
            // SAFETY: mapped above, not used from here on.
            unsafe { MappedSlabs.unmap(slab, SLAB_BYTES) };
        }
    }

    #[test]
    fn small_slabs_and_impossible_ones() {
        let small = MappedSlabs.map(4 * DISK_ALIGN_BYTES).unwrap();
        assert_eq!(small.as_ptr().addr() % DISK_ALIGN_BYTES, 0);
        // SAFETY: mapped above, not used.
        unsafe { MappedSlabs.unmap(small, 4 * DISK_ALIGN_BYTES) };
        assert!(MappedSlabs.map(1 << 60).is_none());
    }
}
