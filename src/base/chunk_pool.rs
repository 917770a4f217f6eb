//! Chunks: aligned buffers in a few size classes, cut from slabs.
//!
//! One [`ChunkWriter`] fills a chunk front to back; any number of [`ChunkRef`]s read what is
//! filled. Filled bytes never change, so reading and appending go on side by side. When the last
//! of them is dropped the chunk is free again, and the chunk freed last is taken first, while its
//! cache lines are warm. All of a pool stays on one thread.
//!
//! ```text
//! slab (one huge page) = | chunk | chunk | chunk | ...      all of one class
//! chunk                = | header (at seal) | filled: readers | room: the writer |
//! ```

use crate::base::copy::copy;
use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

/// Where slabs come from and go to. The memory is zeroed or not, aligned to 4 KiB at least.
///
/// # Safety
/// `map` returns memory of `bytes` that nobody else uses until `unmap` gets the same pair back.
pub unsafe trait SlabSource {
    /// Memory for one slab, or `None` when the system has none.
    fn map(&self, bytes: usize) -> Option<NonNull<u8>>;
    /// Takes a slab back.
    ///
    /// # Safety
    /// `memory` and `bytes` are those of one earlier `map`, not yet given back, and nothing reads
    /// or writes the memory any more.
    unsafe fn unmap(&self, memory: NonNull<u8>, bytes: usize);
}

/// Slabs from the heap, for the simulator and for tests.
pub struct HeapSlabs;

fn heap_layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 4096).expect("slab sizes are small multiples of 4 KiB")
}

// SAFETY: the global allocator hands out memory that nobody else has until dealloc.
unsafe impl SlabSource for HeapSlabs {
    fn map(&self, bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the layout's size is not zero (pool construction asserts it).
        NonNull::new(unsafe { std::alloc::alloc_zeroed(heap_layout(bytes)) })
    }
    unsafe fn unmap(&self, memory: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller gives back what `map` made with the same layout.
        unsafe { std::alloc::dealloc(memory.as_ptr(), heap_layout(bytes)) }
    }
}

/// Sizes of a pool.
#[derive(Clone, Debug)]
pub struct PoolShape {
    /// Bytes of one slab.
    pub slab_bytes: usize,
    /// Bytes of a chunk per class, smallest first; each divides `slab_bytes`.
    pub class_bytes: Vec<usize>,
    /// Bytes at the front of a chunk that only [`ChunkWriter::seal`] writes.
    pub header_bytes: usize,
}

struct SlabMemory {
    memory: NonNull<u8>,
    bytes: usize,
    source: Rc<dyn SlabSource>,
}

impl Drop for SlabMemory {
    fn drop(&mut self) {
        // SAFETY: mapped with the same size; every chunk holds this by Rc, so none is left.
        unsafe { self.source.unmap(self.memory, self.bytes) }
    }
}

struct RawChunk {
    start: NonNull<u8>,
    bytes: usize,
    header_bytes: usize,
    /// Bytes that readers may see. Grows only, until the chunk is free again.
    filled: Cell<usize>,
    /// Writers and readers alive.
    handles: Cell<usize>,
    class: usize,
    slab: usize,
    pool: Weak<RefCell<PoolState>>,
    _memory: Rc<SlabMemory>,
}

struct Slab {
    class: usize,
    chunks: Vec<Rc<RawChunk>>,
    /// Indexes into `chunks`, taken from the end.
    free: Vec<u32>,
}

struct PoolState {
    slabs: Vec<Option<Slab>>,
    /// Per class: slabs with a free chunk, the one to take from at the end.
    with_room: Vec<Vec<usize>>,
    mapped_slabs: usize,
    /// Of these, slabs of which no chunk is used.
    free_slabs: usize,
    /// Chunks that somebody writes or reads, and their bytes.
    used_chunks: usize,
    used_bytes: usize,
}

/// See the module.
pub struct ChunkPool {
    shape: PoolShape,
    source: Rc<dyn SlabSource>,
    state: Rc<RefCell<PoolState>>,
}

impl ChunkPool {
    /// An empty pool; it maps nothing until [`ChunkPool::grow`].
    ///
    /// # Panics
    /// If the shape is not as [`PoolShape`] says.
    pub fn new(shape: PoolShape, source: Rc<dyn SlabSource>) -> Self {
        assert!(!shape.class_bytes.is_empty());
        for bytes in &shape.class_bytes {
            assert!(*bytes > shape.header_bytes && shape.slab_bytes.is_multiple_of(*bytes));
        }
        let with_room = shape.class_bytes.iter().map(|_| Vec::new()).collect();
        let state = PoolState {
            slabs: Vec::new(),
            with_room,
            mapped_slabs: 0,
            free_slabs: 0,
            used_chunks: 0,
            used_bytes: 0,
        };
        ChunkPool { shape, source, state: Rc::new(RefCell::new(state)) }
    }

    /// The sizes it was made with.
    pub fn shape(&self) -> &PoolShape {
        &self.shape
    }

    /// Bytes mapped, used or not: what the budget is charged.
    pub fn mapped_bytes(&self) -> usize {
        self.state.borrow().mapped_slabs * self.shape.slab_bytes
    }

    /// Bytes of chunks that are mapped and free.
    pub fn free_bytes(&self) -> usize {
        self.mapped_bytes() - self.state.borrow().used_bytes
    }

    /// Chunks that somebody writes or reads.
    pub fn used_chunks(&self) -> usize {
        self.state.borrow().used_chunks
    }

    /// Takes a free chunk of `class`; `None` when a slab must be mapped first.
    pub fn take(&self, class: usize) -> Option<ChunkWriter> {
        let raw = self.state.borrow_mut().take(class)?;
        debug_assert_eq!(raw.handles.get(), 0);
        raw.filled.set(raw.header_bytes);
        raw.handles.set(1);
        Some(ChunkWriter { raw })
    }

    /// Maps one more slab for `class`. False when the system has no memory.
    pub fn grow(&self, class: usize) -> bool {
        let bytes = self.shape.slab_bytes;
        let Some(memory) = self.source.map(bytes) else {
            return false;
        };
        let memory = Rc::new(SlabMemory { memory, bytes, source: Rc::clone(&self.source) });
        let mut state = self.state.borrow_mut();
        let index = match state.slabs.iter().position(Option::is_none) {
            Some(index) => index,
            None => {
                state.slabs.push(None);
                state.slabs.len() - 1
            }
        };
        state.mapped_slabs += 1;
        self.cut(&mut state, index, class, &memory);
        true
    }

    /// Cuts a wholly free slab of another class anew for `class`. Its memory stays mapped: a new
    /// map would have to be zeroed by the system. False if there is none.
    pub fn cut_anew(&self, class: usize) -> bool {
        let mut state = self.state.borrow_mut();
        if state.free_slabs == 0 {
            return false;
        }
        let is_free = |slab: &Option<Slab>| slab.as_ref().is_some_and(Slab::is_free);
        let Some(index) = state.slabs.iter().position(is_free) else { return false };
        let Some(slab) = state.take_out(index) else { return false };
        self.cut(&mut state, index, class, &slab.chunks[0]._memory);
        true
    }

    fn cut(&self, state: &mut PoolState, index: usize, class: usize, memory: &Rc<SlabMemory>) {
        let bytes = self.shape.class_bytes[class];
        let count = self.shape.slab_bytes / bytes;
        let chunks = (0..count)
            .map(|nth| {
                Rc::new(RawChunk {
                    // SAFETY: nth * bytes < slab_bytes, so it stays inside the slab.
                    start: unsafe { memory.memory.add(nth * bytes) },
                    bytes,
                    header_bytes: self.shape.header_bytes,
                    filled: Cell::new(0),
                    handles: Cell::new(0),
                    class,
                    slab: index,
                    pool: Rc::downgrade(&self.state),
                    _memory: Rc::clone(memory),
                })
            })
            .collect();
        let free = (0..count as u32).rev().collect();
        state.slabs[index] = Some(Slab { class, chunks, free });
        state.with_room[class].push(index);
        state.free_slabs += 1;
    }

    /// Whether a chunk of `bytes` or more is free, or a whole slab that could be cut into one.
    pub fn has_free(&self, bytes: usize) -> bool {
        let state = self.state.borrow();
        let fits = |class: usize| self.shape.class_bytes[class] >= bytes;
        (0..state.with_room.len()).any(|class| fits(class) && !state.with_room[class].is_empty())
            || state.free_slabs > 0
    }

    /// Gives wholly free slabs back to the source until at most `spare` of them are left. Returns
    /// the bytes given back.
    pub fn shrink(&self, spare: usize) -> usize {
        let mut state = self.state.borrow_mut();
        let mut given = 0;
        for index in 0..state.slabs.len() {
            if state.free_slabs <= spare {
                break;
            }
            if state.slabs[index].as_ref().is_some_and(Slab::is_free) {
                drop(state.take_out(index));
                state.mapped_slabs -= 1;
                given += self.shape.slab_bytes;
            }
        }
        given
    }
}

impl Slab {
    fn is_free(&self) -> bool {
        self.free.len() == self.chunks.len()
    }
}

impl PoolState {
    /// Takes a wholly free slab off the lists.
    fn take_out(&mut self, index: usize) -> Option<Slab> {
        let slab = self.slabs[index].take()?;
        debug_assert!(slab.is_free());
        self.with_room[slab.class].retain(|&other| other != index);
        self.free_slabs -= 1;
        Some(slab)
    }

    fn take(&mut self, class: usize) -> Option<Rc<RawChunk>> {
        let index = *self.with_room[class].last()?;
        let slab = self.slabs[index].as_mut().expect("a slab with room is mapped");
        self.free_slabs -= usize::from(slab.is_free());
        let nth = slab.free.pop().expect("a slab with room has a free chunk");
        if slab.free.is_empty() {
            self.with_room[class].pop();
        }
        let raw = Rc::clone(&slab.chunks[nth as usize]);
        self.used_chunks += 1;
        self.used_bytes += raw.bytes;
        Some(raw)
    }

    fn free(&mut self, raw: &RawChunk, slab_start: usize) {
        let slab = self.slabs[raw.slab].as_mut().expect("a chunk in use keeps its slab mapped");
        let nth = (raw.start.as_ptr() as usize - slab_start) / raw.bytes;
        if slab.free.is_empty() {
            self.with_room[raw.class].push(raw.slab);
        }
        slab.free.push(nth as u32);
        self.free_slabs += usize::from(slab.is_free());
        self.used_chunks -= 1;
        self.used_bytes -= raw.bytes;
    }
}

impl RawChunk {
    fn release(&self) {
        let left = self.handles.get() - 1;
        self.handles.set(left);
        if left == 0
            && let Some(pool) = self.pool.upgrade()
        {
            pool.borrow_mut().free(self, self._memory.memory.as_ptr() as usize);
        }
    }

    /// The readable bytes `range` of the chunk.
    fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.filled.get());
        // SAFETY: inside the chunk, filled, and filled bytes are not written again while a handle
        // lives (the writer appends behind `filled`; `seal` consumes the only writer).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(range.start), range.len()) }
    }
}

/// The only handle that may fill a chunk.
pub struct ChunkWriter {
    raw: Rc<RawChunk>,
}

impl ChunkWriter {
    /// Bytes that can still be appended.
    pub fn room_bytes(&self) -> usize {
        self.raw.bytes - self.raw.filled.get()
    }

    /// Where the next byte goes, counted from the chunk's start.
    pub fn filled_bytes(&self) -> usize {
        self.raw.filled.get()
    }

    /// Size of the whole chunk.
    pub fn capacity_bytes(&self) -> usize {
        self.raw.bytes
    }

    /// The size class it was taken from.
    pub fn class(&self) -> usize {
        self.raw.class
    }

    /// Appends `parts` one after the other and returns where the first began.
    ///
    /// # Panics
    /// If they do not fit: callers look at [`ChunkWriter::room_bytes`] first.
    pub fn append(&mut self, parts: &[&[u8]]) -> usize {
        let begin = self.raw.filled.get();
        let mut at = begin;
        for part in parts {
            assert!(part.len() <= self.raw.bytes - at, "append past the end of a chunk");
            // SAFETY: the target lies inside the chunk and behind `filled`, where only this
            // writer goes; `part` cannot overlap it, for no reader sees unfilled bytes.
            unsafe { copy(part.as_ptr(), self.raw.start.as_ptr().add(at), part.len()) };
            at += part.len();
        }
        self.raw.filled.set(at);
        begin
    }

    /// The filled bytes `range`, counted from the chunk's start, past the header.
    ///
    /// # Panics
    /// If the range reaches into the header or past what is filled.
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start >= self.raw.header_bytes);
        self.raw.slice(range)
    }

    /// A reader of what is filled now and later.
    pub fn reader(&self) -> ChunkRef {
        self.raw.handles.set(self.raw.handles.get() + 1);
        ChunkRef { raw: Rc::clone(&self.raw) }
    }

    /// Writes the header and ends the filling; padding up to `align_bytes` is zeroed, so that the
    /// whole image can go to disk.
    ///
    /// # Panics
    /// If `header` is not exactly as long as the pool's header room.
    pub fn seal(self, header: &[u8], align_bytes: usize) -> SealedChunk {
        let raw = &self.raw;
        assert_eq!(header.len(), raw.header_bytes);
        let filled = raw.filled.get();
        let image_bytes = filled.next_multiple_of(align_bytes).min(raw.bytes);
        // SAFETY: header and padding lie inside the chunk; no reader sees either: `ChunkRef::slice`
        // refuses the header, and the padding lies behind `filled`.
        unsafe {
            std::ptr::copy_nonoverlapping(header.as_ptr(), raw.start.as_ptr(), header.len());
            std::ptr::write_bytes(raw.start.as_ptr().add(filled), 0, image_bytes - filled);
        }
        SealedChunk { reader: self.reader(), image_bytes }
    }

    /// Fills the chunk with an image read from disk: `fill` gets all of it and says how many bytes
    /// it wrote from the start. Only for a chunk that nobody reads and nothing was appended to.
    ///
    /// # Panics
    /// If there is a reader or something was appended, or `fill` claims more than there is.
    pub fn load(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> usize {
        assert_eq!(self.raw.handles.get(), 1, "a chunk that is read cannot be loaded");
        assert_eq!(self.raw.filled.get(), self.raw.header_bytes, "loads go into an empty chunk");
        // SAFETY: the only handle is this one, borrowed mutably; the bytes were zeroed or written
        // before (slabs are mapped zeroed), so they are initialised.
        let all =
            unsafe { std::slice::from_raw_parts_mut(self.raw.start.as_ptr(), self.raw.bytes) };
        let bytes = fill(all);
        assert!(bytes <= self.raw.bytes);
        self.raw.filled.set(bytes.max(self.raw.header_bytes));
        bytes
    }

    /// The image as loaded, header included. Nothing may be appended before it is looked at.
    pub fn loaded_image(&self) -> &[u8] {
        self.raw.slice(0..self.raw.filled.get())
    }

    /// All bytes of a chunk that an image was loaded into, to mend it.
    ///
    /// # Panics
    /// If there is a reader.
    pub fn loaded_bytes(&mut self) -> &mut [u8] {
        assert_eq!(self.raw.handles.get(), 1, "a chunk that is read cannot be mended");
        // SAFETY: as in `load`: the only handle is borrowed mutably, and all bytes are initialised.
        unsafe { std::slice::from_raw_parts_mut(self.raw.start.as_ptr(), self.raw.bytes) }
    }

    /// Forgets what was loaded, so that an image can be loaded again.
    ///
    /// # Panics
    /// If there is a reader.
    pub fn unload(&mut self) {
        assert_eq!(self.raw.handles.get(), 1, "a chunk that is read cannot be loaded");
        self.raw.filled.set(self.raw.header_bytes);
    }

    /// Ends the filling of a chunk whose image, with a header, was loaded or written by
    /// [`ChunkWriter::loaded_bytes`]: `used_bytes` of it count, and the padding behind them up to
    /// `align_bytes` is zeroed.
    ///
    /// # Panics
    /// If there is a reader, or `used_bytes` are less than a header or more than the chunk.
    pub fn seal_loaded(mut self, used_bytes: usize, align_bytes: usize) -> SealedChunk {
        assert!(used_bytes >= self.raw.header_bytes && used_bytes <= self.raw.bytes);
        let image_bytes = used_bytes.next_multiple_of(align_bytes).min(self.raw.bytes);
        self.loaded_bytes()[used_bytes..image_bytes].fill(0);
        self.raw.filled.set(used_bytes);
        SealedChunk { reader: self.reader(), image_bytes }
    }
}

impl Drop for ChunkWriter {
    fn drop(&mut self) {
        self.raw.release();
    }
}

/// Reads the filled part of a chunk and keeps the chunk from being used again.
pub struct ChunkRef {
    raw: Rc<RawChunk>,
}

impl ChunkRef {
    /// The filled bytes `range`, counted from the chunk's start, past the header.
    ///
    /// # Panics
    /// If the range reaches into the header or past what is filled.
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start >= self.raw.header_bytes);
        self.raw.slice(range)
    }

    /// End of what is filled, counted from the chunk's start.
    pub fn filled_bytes(&self) -> usize {
        self.raw.filled.get()
    }

    /// Size of the whole chunk.
    pub fn capacity_bytes(&self) -> usize {
        self.raw.bytes
    }

    /// The size class it was taken from.
    pub fn class(&self) -> usize {
        self.raw.class
    }

    /// Whether both read the same chunk.
    pub fn is_same(&self, other: &ChunkRef) -> bool {
        Rc::ptr_eq(&self.raw, &other.raw)
    }
}

impl Clone for ChunkRef {
    fn clone(&self) -> Self {
        self.raw.handles.set(self.raw.handles.get() + 1);
        ChunkRef { raw: Rc::clone(&self.raw) }
    }
}

impl Drop for ChunkRef {
    fn drop(&mut self) {
        self.raw.release();
    }
}

/// A chunk that is complete: header, batches and zeroed padding, as it stands on disk.
#[derive(Clone)]
pub struct SealedChunk {
    reader: ChunkRef,
    image_bytes: usize,
}

impl SealedChunk {
    /// The whole image, a multiple of the alignment that it was sealed with.
    pub fn image(&self) -> &[u8] {
        // SAFETY: sealing consumed the only writer after writing header and padding, so all of
        // the image is initialised and never written again while this handle lives.
        unsafe { std::slice::from_raw_parts(self.reader.raw.start.as_ptr(), self.image_bytes) }
    }

    /// Reads the batches.
    pub fn reader(&self) -> &ChunkRef {
        &self.reader
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> ChunkPool {
        let shape =
            PoolShape { slab_bytes: 16384, class_bytes: vec![4096, 8192], header_bytes: 64 };
        ChunkPool::new(shape, Rc::new(HeapSlabs))
    }

    #[test]
    fn readers_see_what_is_filled_while_more_is_appended() {
        let pool = pool();
        assert!(pool.take(0).is_none());
        assert!(pool.grow(0));
        let mut writer = pool.take(0).unwrap();
        let at = writer.append(&[b"one", b"two"]);
        assert_eq!(at, 64);
        let reader = writer.reader();
        let seen = reader.slice(at..at + 6);
        writer.append(&[b"three"]);
        assert_eq!(seen, b"onetwo");
        assert_eq!(reader.slice(70..75), b"three");
    }

    #[test]
    fn freed_last_is_taken_first_and_slabs_go_back_whole() {
        let pool = pool();
        assert!(pool.grow(0));
        let first = pool.take(0).unwrap();
        let second = pool.take(0).unwrap();
        assert_eq!((pool.used_chunks(), pool.free_bytes()), (2, 8192));
        let reader = second.reader();
        let place = reader.raw.start;
        drop(second);
        assert_eq!(pool.shrink(0), 0);
        drop(reader);
        assert_eq!(pool.take(0).unwrap().raw.start, place);
        drop(first);
        assert_eq!((pool.mapped_bytes(), pool.free_bytes()), (16384, 16384));
        assert_eq!(pool.shrink(0), 16384);
        assert_eq!(pool.mapped_bytes(), 0);
        assert!(pool.take(0).is_none());
    }

    #[test]
    fn a_free_slab_is_cut_anew_and_stays_mapped() {
        let pool = pool();
        assert!(pool.grow(0) && pool.grow(1));
        let (small, first) = (pool.take(0).unwrap(), pool.take(1).unwrap());
        let place = small.raw.start;
        assert!(!pool.cut_anew(1));
        drop(small);
        assert!(pool.cut_anew(1));
        let large = [pool.take(1).unwrap(), pool.take(1).unwrap(), pool.take(1).unwrap()];
        assert!(pool.take(1).is_none() && pool.take(0).is_none() && !pool.cut_anew(0));
        assert!(large.iter().any(|chunk| chunk.raw.start == place));
        assert_eq!((pool.mapped_bytes(), pool.free_bytes()), (32768, 0));
        drop((large, first));
        assert_eq!((pool.shrink(1), pool.shrink(1), pool.shrink(0)), (16384, 0, 16384));
    }

    #[test]
    fn a_slab_outlives_its_pool_while_a_chunk_is_read() {
        let pool = pool();
        assert!(pool.grow(1));
        let mut writer = pool.take(1).unwrap();
        writer.append(&[b"kept"]);
        let reader = writer.reader();
        drop(writer);
        drop(pool);
        assert_eq!(reader.slice(64..68), b"kept");
    }

    #[test]
    fn a_sealed_image_can_be_loaded_again() {
        let pool = pool();
        assert!(pool.grow(0));
        let mut writer = pool.take(0).unwrap();
        writer.append(&[b"body"]);
        let sealed = writer.seal(&[7; 64], 512);
        assert_eq!(sealed.image().len(), 512);
        let mut again = pool.take(0).unwrap();
        let bytes = again.load(|all| {
            all[..512].copy_from_slice(sealed.image());
            512
        });
        assert_eq!(bytes, 512);
        assert_eq!(again.loaded_image(), sealed.image());
        assert_eq!(again.slice(64..68), b"body");
        again.unload();
        again.load(|all| {
            all[..512].copy_from_slice(sealed.image());
            all[100] = 9;
            512
        });
        again.loaded_bytes()[64..68].copy_from_slice(b"mend");
        let again = again.seal_loaded(68, 512);
        assert_eq!((again.reader().filled_bytes(), again.image().len()), (68, 512));
        assert_eq!(again.reader().slice(64..68), b"mend");
        assert!(again.image()[68..].iter().all(|&byte| byte == 0));
    }

    #[test]
    #[should_panic(expected = "cannot be mended")]
    fn a_chunk_that_is_read_is_not_mended() {
        let pool = pool();
        assert!(pool.grow(0));
        let mut writer = pool.take(0).unwrap();
        let _reader = writer.reader();
        writer.loaded_bytes();
    }

    #[test]
    #[should_panic(expected = "append past the end")]
    fn an_append_never_leaves_the_chunk() {
        let pool = pool();
        assert!(pool.grow(0));
        pool.take(0).unwrap().append(&[&[0; 4096]]);
    }
}
