//! The slots of a spill file and who holds them: a slot is free again when the last [`Place`] in it
//! is dropped.
//!
//! ```text
//! slot = | image | image | ... | whatever was there before |     each image begins a page of 4 KiB
//!        ^ place: slot, page, pages, and what tells it from what was there
//! ```
//!
//! Whoever holds a chunk holds its place, and whoever reads or writes a slot holds a clone: so no
//! slot is used again under what is under way, and nobody has to say that one is free. Slots that
//! were freed last are filled first: writing over blocks that the device has just written is much
//! faster than having it find new ones. All of a table stays on one thread.

use crate::limits::DISK_ALIGN_BYTES;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Where an image stands on disk. Dropping it is giving the place up.
///
/// A clone keeps the slot as well, but is only a visitor: in the statistics an image is live as
/// long as the place that the write gave is.
pub struct Place {
    table: Rc<SlotTable>,
    /// The slot; [`VISITOR`] beside it in a clone.
    slot: u32,
    /// Of the image's header, to tell it from what stood there before.
    check: u16,
    page: u8,
    pages_less_one: u8,
}

/// Marks the slot number of a clone.
const VISITOR: u32 = 1 << 31;
/// Slots of one file: what a number without the bit of visitors can say.
pub const SLOTS_MAX: u32 = VISITOR;
/// Pages of the largest slot.
pub const SLOT_PAGES_MAX: usize = 256;

const _: () = assert!(size_of::<Option<Place>>() == 16, "one is kept per chunk on disk");

impl Place {
    /// Bytes of the image, padding included.
    pub fn image_bytes(&self) -> usize {
        self.pages() * DISK_ALIGN_BYTES
    }

    /// Where the image begins, from the file's start.
    pub(super) fn offset(&self) -> u64 {
        let page = u64::from(self.page) * DISK_ALIGN_BYTES as u64;
        u64::from(self.slot()) * self.table.slot_bytes as u64 + page
    }

    pub(super) fn is_in(&self, table: &Rc<SlotTable>) -> bool {
        Rc::ptr_eq(&self.table, table)
    }

    pub(super) fn slot(&self) -> u32 {
        self.slot & !VISITOR
    }

    pub(super) fn check(&self) -> u16 {
        self.check
    }

    fn pages(&self) -> usize {
        usize::from(self.pages_less_one) + 1
    }
}

impl Clone for Place {
    fn clone(&self) -> Place {
        self.table.slots.borrow_mut().slots[self.slot() as usize].holders += 1;
        Place { table: Rc::clone(&self.table), slot: self.slot | VISITOR, ..*self }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let live_pages = if self.slot & VISITOR == 0 { self.pages() } else { 0 };
        self.table.drop_holder(self.slot(), live_pages);
    }
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Place({}, {}+{})", self.slot(), self.page, self.pages())
    }
}

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has no blocks, or they are being given back.
    Away,
    /// In the list of free ones.
    Free,
    /// Somebody holds a place in it.
    Used,
    /// A write failed there, and another is not tried.
    Bad,
}

/// What becomes of a slot that nobody holds any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is the next to be filled.
    Warm,
    /// It is filled when no other is left.
    Cold,
    /// It is left alone.
    Bad,
}

struct Slot {
    /// Places in it, visitors included.
    holders: u32,
    live_pages: u16,
    standing: Standing,
    fate: Fate,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    /// The next to be filled at the back.
    free: VecDeque<u32>,
    /// Per extent: slots that somebody holds.
    used_of_extent: Vec<u32>,
    counts: SlotCounts,
}

/// Slots by what they are, and the pages that are live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Somebody holds a place in them, or they are being written.
    pub used: u32,
    /// Ready to be filled.
    pub free: u32,
    /// A write failed there, and they are left alone.
    pub bad: u32,
    /// Pages of the used ones that hold a live image; the rest is padding of slots that were not
    /// full and what waits for its neighbours to go.
    pub live_pages: u64,
}

/// See the module.
pub struct SlotTable {
    slot_bytes: usize,
    extent_slots: u32,
    slots: RefCell<Slots>,
}

impl SlotTable {
    /// A table without slots.
    ///
    /// # Panics
    /// If a slot is no whole number of pages, or too many.
    pub(super) fn new(slot_bytes: usize, extent_slots: u32) -> Rc<SlotTable> {
        assert!(slot_bytes > 0 && slot_bytes.is_multiple_of(DISK_ALIGN_BYTES));
        assert!(slot_bytes <= SLOT_PAGES_MAX * DISK_ALIGN_BYTES);
        assert!(extent_slots > 0);
        Rc::new(SlotTable { slot_bytes, extent_slots, slots: RefCell::default() })
    }

    /// Slots by what they are.
    pub fn counts(&self) -> SlotCounts {
        self.slots.borrow().counts
    }

    /// Bytes that the table takes in memory.
    pub fn memory_bytes(&self) -> usize {
        let slots = self.slots.borrow();
        slots.slots.capacity() * size_of::<Slot>()
            + (slots.free.capacity() + slots.used_of_extent.capacity()) * size_of::<u32>()
    }

    /// Takes a slot for images one behind the other, given as (bytes, check), and gives the place
    /// of each. `None` if no slot is free.
    ///
    /// # Panics
    /// If there are none, or they do not fit a slot, or are not aligned.
    pub(super) fn fill(self: &Rc<Self>, images: &[(usize, u16)]) -> Option<Vec<Place>> {
        let bytes: usize = images.iter().map(|(bytes, _)| bytes).sum();
        assert!(bytes > 0 && bytes <= self.slot_bytes, "images that do not fit a slot");
        let mut slots = self.slots.borrow_mut();
        let slot = slots.free.pop_back()?;
        let live_pages = (bytes / DISK_ALIGN_BYTES) as u16;
        let holders = images.len() as u32;
        let was = &mut slots.slots[slot as usize];
        debug_assert_eq!((was.standing, was.holders), (Standing::Free, 0));
        *was = Slot { holders, live_pages, standing: Standing::Used, fate: Fate::Warm };
        slots.used_of_extent[(slot / self.extent_slots) as usize] += 1;
        slots.counts.free -= 1;
        slots.counts.used += 1;
        slots.counts.live_pages += u64::from(live_pages);
        let mut page = 0;
        let place = |&(bytes, check): &(usize, u16)| {
            assert!(bytes > 0 && bytes.is_multiple_of(DISK_ALIGN_BYTES));
            let pages = bytes / DISK_ALIGN_BYTES;
            let pages_less_one = (pages - 1) as u8;
            let table = Rc::clone(self);
            let place = Place { table, slot, check, page: page as u8, pages_less_one };
            page += pages;
            place
        };
        Some(images.iter().map(place).collect())
    }

    /// Says what becomes of a used slot when nobody holds it any more.
    pub(super) fn doom(&self, slot: u32, fate: Fate) {
        self.slots.borrow_mut().slots[slot as usize].fate = fate;
    }

    /// The slots of an extent have blocks now, and are free; they are filled after those that were
    /// free before, from the first on.
    pub(super) fn add_extent(&self, extent: u32) {
        let mut slots = self.slots.borrow_mut();
        let (first, end) = (extent * self.extent_slots, (extent + 1) * self.extent_slots);
        if slots.slots.len() < end as usize {
            let away =
                || Slot { holders: 0, live_pages: 0, standing: Standing::Away, fate: Fate::Warm };
            slots.slots.resize_with(end as usize, away);
            slots.used_of_extent.resize(extent as usize + 1, 0);
        }
        for slot in first..end {
            let standing = &mut slots.slots[slot as usize].standing;
            debug_assert_eq!(*standing, Standing::Away);
            *standing = Standing::Free;
            slots.free.push_front(slot);
        }
        slots.counts.free += self.extent_slots;
    }

    /// Whether nobody holds a slot of an extent that is here.
    pub(super) fn is_idle(&self, extent: u32) -> bool {
        self.slots.borrow().used_of_extent[extent as usize] == 0
    }

    /// The slots of extents are no longer to be filled. What was bad there is forgotten with them.
    ///
    /// # Panics
    /// If somebody holds one of them.
    pub(super) fn remove_extents(&self, extents: &[u32]) {
        let mut slots = self.slots.borrow_mut();
        let slots = &mut *slots;
        for &extent in extents {
            assert_eq!(slots.used_of_extent[extent as usize], 0, "an extent in use stays");
            let (first, end) = (extent * self.extent_slots, (extent + 1) * self.extent_slots);
            for slot in &mut slots.slots[first as usize..end as usize] {
                match slot.standing {
                    Standing::Free => slots.counts.free -= 1,
                    Standing::Bad => slots.counts.bad -= 1,
                    Standing::Away | Standing::Used => unreachable!("an idle extent that is here"),
                }
                slot.standing = Standing::Away;
            }
        }
        let is_free = |slot: &u32| slots.slots[*slot as usize].standing == Standing::Free;
        slots.free.retain(is_free);
    }

    fn drop_holder(&self, slot: u32, live_pages: usize) {
        let mut slots = self.slots.borrow_mut();
        let slots = &mut *slots;
        let held = &mut slots.slots[slot as usize];
        held.holders -= 1;
        held.live_pages -= live_pages as u16;
        slots.counts.live_pages -= live_pages as u64;
        if held.holders > 0 {
            return;
        }
        slots.used_of_extent[(slot / self.extent_slots) as usize] -= 1;
        slots.counts.used -= 1;
        if held.fate == Fate::Bad {
            held.standing = Standing::Bad;
            slots.counts.bad += 1;
            return;
        }
        held.standing = Standing::Free;
        slots.counts.free += 1;
        match held.fate {
            Fate::Cold => slots.free.push_front(slot),
            Fate::Warm | Fate::Bad => slots.free.push_back(slot),
        }
    }
}
