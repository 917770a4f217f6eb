//! A buffer of whole pages, aligned to them in memory, for files that are opened with O_DIRECT. It
//! grows as a `Vec` does, and used again it asks for no memory.

use crate::limits::DISK_ALIGN_BYTES;
use std::fmt;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; DISK_ALIGN_BYTES]);

const _: () = assert!(size_of::<Page>() == DISK_ALIGN_BYTES);
const _: () = assert!(align_of::<Page>() == DISK_ALIGN_BYTES);

/// See the module. Begins at a multiple of [`DISK_ALIGN_BYTES`] in memory.
#[derive(Clone, Default)]
pub struct Pages {
    /// All that was ever in use; behind `bytes` stands anything.
    pages: Vec<Page>,
    /// In use.
    bytes: usize,
}

impl Pages {
    /// Empty, with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Pages {
        Pages { pages: Vec::with_capacity(bytes.div_ceil(DISK_ALIGN_BYTES)), bytes: 0 }
    }

    /// So many zeros.
    pub fn zeroed(bytes: usize) -> Pages {
        let mut pages = Pages::with_capacity(bytes);
        pages.resize(bytes);
        pages
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Bytes that it can hold without asking for memory.
    pub fn capacity(&self) -> usize {
        self.pages.capacity() * DISK_ALIGN_BYTES
    }

    /// Forgets what it holds and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes = 0;
    }

    /// Adds bytes at the end.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let at = self.bytes;
        self.grow(at + bytes.len());
        self.as_mut_slice()[at..].copy_from_slice(bytes);
    }

    /// Has so many bytes; of those that were not in use before anything may stand there.
    pub fn stretch(&mut self, bytes: usize) {
        self.grow(bytes);
    }

    /// Cuts it off behind so many bytes, or adds zeros until it has so many.
    pub fn resize(&mut self, bytes: usize) {
        let at = self.bytes.min(bytes);
        self.grow(bytes);
        self.as_mut_slice()[at..].fill(0);
    }

    /// Adds zeros to the end of the last page.
    pub fn pad(&mut self) {
        self.resize(self.bytes.next_multiple_of(DISK_ALIGN_BYTES));
    }

    /// What it holds.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `grow` keeps at least `bytes` bytes of pages, all of them written once; a page is
        // its bytes and nothing else, and the pages stand one behind the other. Borrowed as `self`.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.bytes) }
    }

    /// What it holds, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; any bytes are a page, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.bytes) }
    }

    /// So many bytes are in use; what is new among them is anything.
    fn grow(&mut self, bytes: usize) {
        let pages = bytes.div_ceil(DISK_ALIGN_BYTES);
        if pages > self.pages.len() {
            self.pages.resize(pages, Page([0; DISK_ALIGN_BYTES]));
        }
        self.bytes = bytes;
    }
}

impl PartialEq for Pages {
    fn eq(&self, other: &Pages) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Pages {}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_added_and_begins_at_a_page() {
        let mut pages = Pages::default();
        assert!(pages.is_empty() && pages.as_slice().is_empty());
        assert!(pages.as_mut_slice().is_empty());
        let mut expected = Vec::new();
        for (nth, bytes) in [0, 1, 4094, 1, 1, 4096, 3, 20_000].into_iter().enumerate() {
            let part = vec![nth as u8 + 1; bytes];
            pages.extend_from_slice(&part);
            expected.extend_from_slice(&part);
            assert!(pages.as_slice() == expected);
            assert_eq!(pages.len(), expected.len());
            assert!(pages.as_slice().as_ptr().addr().is_multiple_of(DISK_ALIGN_BYTES));
        }
        pages.as_mut_slice()[4095] = 99;
        expected[4095] = 99;
        assert!(pages.as_slice() == expected && pages.clone() == pages);
    }

    #[test]
    fn padding_is_zeros_whatever_stood_there() {
        let mut pages = Pages::with_capacity(3 * DISK_ALIGN_BYTES);
        pages.extend_from_slice(&[7; 3 * DISK_ALIGN_BYTES]);
        pages.pad();
        assert_eq!(pages.len(), 3 * DISK_ALIGN_BYTES);
        pages.clear();
        pages.pad();
        assert!(pages.is_empty());
        pages.extend_from_slice(&[5; DISK_ALIGN_BYTES + 1]);
        pages.pad();
        let expected = [&[5; DISK_ALIGN_BYTES + 1][..], &[0; DISK_ALIGN_BYTES - 1]].concat();
        assert!(pages.as_slice() == expected);
        pages.resize(1);
        pages.resize(5);
        assert_eq!(pages.as_slice(), [5, 0, 0, 0, 0]);
        assert!(Pages::zeroed(5000).as_slice() == [0; 5000]);
    }

    #[test]
    fn used_again_it_asks_for_no_memory() {
        let mut pages = Pages::with_capacity(10_000);
        let (start, capacity) = (pages.as_slice().as_ptr(), pages.capacity());
        assert!(capacity >= 3 * DISK_ALIGN_BYTES);
        for _ in 0..3 {
            pages.extend_from_slice(&vec![1; capacity]);
            assert_eq!((pages.as_slice().as_ptr(), pages.capacity()), (start, capacity));
            pages.clear();
        }
    }
}
