//! How one thread hands values to another without a lock and without ever waiting: a bounded
//! [`Ring`] per ordered pair of threads, and a [`Bell`] per thread that wakes it if it sleeps.
//!
//! ```text
//! sender                                  receiver
//!   push; full? say so, push again          pop all; if somebody waits for room, ring its bell
//!   ring: asleep? then wake it, once        nothing to do? lie down, look again, then block
//! ```
//!
//! Who wants to sleep says so first and looks again after that; who has put something in looks
//! after that whether the other sleeps. One of the two sees the other, so no value is left lying
//! before a thread that sleeps. The fences are what makes this true, and `tests/mailbox.rs` shows
//! it over all interleavings: it compiles this very file against the model checker's atomics, so
//! everything that threads share comes from `super::sync`.

use super::sync::{ArrayQueue, AtomicBool, Ordering, fence};

/// Values from one thread to one other, bounded. What the receiver has emptied goes back, to be
/// filled again.
pub struct Ring<T> {
    values: ArrayQueue<T>,
    emptied: ArrayQueue<T>,
    wants_room: AtomicBool,
}

impl<T> Ring<T> {
    /// A ring with room for `capacity` values.
    pub fn new(capacity: usize) -> Self {
        Ring {
            values: ArrayQueue::new(capacity),
            emptied: ArrayQueue::new(capacity),
            wants_room: AtomicBool::new(false),
        }
    }

    /// Puts a value in. The caller then rings the receiver's bell.
    ///
    /// # Errors
    /// The value, if there is no room. The receiver will ring the sender's bell once there is.
    pub fn push(&self, value: T) -> Result<(), T> {
        let Err(value) = self.values.push(value) else { return Ok(()) };
        // Before the sender blocks it looks again, behind the fence of `Bell::lie_down`.
        self.wants_room.store(true, Ordering::SeqCst);
        self.values.push(value)
    }

    /// Takes the oldest value out.
    pub fn pop(&self) -> Option<T> {
        self.values.pop()
    }

    /// After popping: whether the sender waits for the room that is there now. Then the receiver
    /// rings the sender's bell.
    pub fn take_wish_for_room(&self) -> bool {
        fence(Ordering::SeqCst);
        self.wants_room.load(Ordering::Relaxed) && self.wants_room.swap(false, Ordering::SeqCst)
    }

    /// Whether there is nothing to pop.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether a push would fail.
    pub fn is_full(&self) -> bool {
        self.values.is_full()
    }

    /// Gives an emptied value back to the sender; more than there is room for are dropped.
    pub fn give_back(&self, value: T) {
        drop(self.emptied.push(value));
    }

    /// A value that the receiver gave back.
    pub fn reuse(&self) -> Option<T> {
        self.emptied.pop()
    }
}

/// Whether a thread sleeps; rung by those that have something for it.
#[derive(Default)]
pub struct Bell {
    asleep: AtomicBool,
}

impl Bell {
    /// The owner is about to block. It looks into all its rings after this, and blocks only if
    /// there is nothing.
    pub fn lie_down(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// The owner is awake, or will not block after all.
    pub fn rise(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Somebody has put something in. True if the owner sleeps: the caller must wake it, and
    /// nobody else will.
    pub fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::SeqCst)
    }
}
