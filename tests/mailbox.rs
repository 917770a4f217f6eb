//! The mailbox and its sleep flag over all interleavings of two threads, by loom. The source under
//! test is the broker's own, compiled here against loom's atomics; the queue inside it is a model
//! with no more ordering than a ring needs, which is less than the real one has.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]
#![allow(dead_code, reason = "each test uses a part of the mailbox")]

mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    use std::sync::Mutex;

    /// One sender, one receiver: release and acquire on two counters, and nothing else. The values
    /// lie in locks that loom does not see, so these order nothing; a mark beside each says
    /// whether its reader came too early.
    pub struct ArrayQueue<T> {
        slots: Vec<(AtomicUsize, Mutex<Option<T>>)>,
        head: AtomicUsize,
        tail: AtomicUsize,
    }

    impl<T> ArrayQueue<T> {
        pub fn new(capacity: usize) -> Self {
            let slots = (0..capacity).map(|_| (AtomicUsize::new(0), Mutex::new(None))).collect();
            ArrayQueue { slots, head: AtomicUsize::new(0), tail: AtomicUsize::new(0) }
        }

        pub fn push(&self, value: T) -> Result<(), T> {
            let tail = self.tail.load(Ordering::Relaxed);
            if tail - self.head.load(Ordering::Acquire) == self.slots.len() {
                return Err(value);
            }
            let (mark, slot) = &self.slots[tail % self.slots.len()];
            *slot.lock().unwrap() = Some(value);
            mark.store(tail + 1, Ordering::Relaxed);
            self.tail.store(tail + 1, Ordering::Release);
            Ok(())
        }

        pub fn pop(&self) -> Option<T> {
            let head = self.head.load(Ordering::Relaxed);
            if head == self.tail.load(Ordering::Acquire) {
                return None;
            }
            let (mark, slot) = &self.slots[head % self.slots.len()];
            assert_eq!(mark.load(Ordering::Relaxed), head + 1, "a value was read too early");
            let value = slot.lock().unwrap().take();
            self.head.store(head + 1, Ordering::Release);
            value
        }

        pub fn is_empty(&self) -> bool {
            self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Relaxed)
        }

        pub fn is_full(&self) -> bool {
            let held = self.tail.load(Ordering::Relaxed) - self.head.load(Ordering::Relaxed);
            held == self.slots.len()
        }
    }
}

#[path = "../src/base/mailbox.rs"]
mod mailbox;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use mailbox::{Bell, Ring};

/// Where a thread blocks: waits until it was woken as often as it blocks. Loom reports a deadlock
/// if nobody ever does.
#[derive(Default)]
struct Poller {
    woken: loom::sync::Mutex<bool>,
    changed: loom::sync::Condvar,
}

impl Poller {
    fn wake(&self) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_one();
    }

    fn block(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

struct Pair {
    ring: Ring<usize>,
    bells: [Bell; 2],
    pollers: [Poller; 2],
    taken: AtomicUsize,
}

const SENDER: usize = 0;
const RECEIVER: usize = 1;

impl Pair {
    fn new(capacity: usize) -> Arc<Pair> {
        Arc::new(Pair {
            ring: Ring::new(capacity),
            bells: Default::default(),
            pollers: Default::default(),
            taken: AtomicUsize::new(0),
        })
    }

    fn ring_bell(&self, whose: usize) {
        if self.bells[whose].ring() {
            self.pollers[whose].wake();
        }
    }

    /// A tick's end: blocks unless `work` is seen after lying down.
    fn sleep_unless(&self, whose: usize, work: impl Fn() -> bool) {
        self.bells[whose].lie_down();
        if !work() {
            self.pollers[whose].block();
        }
        self.bells[whose].rise();
    }

    /// Takes `count` values, in order.
    fn receive(&self, count: usize) {
        let mut wanted = 0;
        while wanted < count {
            let mut popped = false;
            while let Some(value) = self.ring.pop() {
                assert_eq!(value, wanted, "values come in order, each once");
                wanted += 1;
                popped = true;
            }
            self.taken.store(wanted, Ordering::Relaxed);
            if popped && self.ring.take_wish_for_room() {
                self.ring_bell(SENDER);
            }
            if wanted < count {
                self.sleep_unless(RECEIVER, || !self.ring.is_empty());
            }
        }
    }

    fn send(&self, count: usize) {
        for value in 0..count {
            let mut value = value;
            while let Err(refused) = self.ring.push(value) {
                value = refused;
                self.sleep_unless(SENDER, || !self.ring.is_full());
            }
            self.ring_bell(RECEIVER);
        }
    }
}

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

#[test]
fn what_is_sent_wakes_the_receiver_and_none_is_left_lying() {
    model(|| {
        let pair = Pair::new(2);
        let sender = Arc::clone(&pair);
        let thread = loom::thread::spawn(move || sender.send(2));
        pair.receive(2);
        thread.join().unwrap();
    });
}

#[test]
fn room_in_a_full_ring_wakes_the_sender() {
    model(|| {
        let pair = Pair::new(1);
        let sender = Arc::clone(&pair);
        let thread = loom::thread::spawn(move || sender.send(2));
        pair.receive(2);
        thread.join().unwrap();
    });
}

#[test]
fn a_bell_is_answered_once() {
    model(|| {
        let pair = Pair::new(1);
        pair.bells[RECEIVER].lie_down();
        let other = Arc::clone(&pair);
        let thread = loom::thread::spawn(move || other.bells[RECEIVER].ring());
        let here = pair.bells[RECEIVER].ring();
        let there = thread.join().unwrap();
        assert!(here != there, "one of the two wakes it, and only one");
    });
}

#[test]
fn emptied_values_go_back_to_the_sender() {
    model(|| {
        let pair = Pair::new(1);
        let sender = Arc::clone(&pair);
        let thread = loom::thread::spawn(move || {
            assert!(sender.ring.push(7).is_ok());
            while sender.ring.reuse().is_none() {
                loom::thread::yield_now();
            }
        });
        let value = loop {
            match pair.ring.pop() {
                Some(value) => break value,
                None => loom::thread::yield_now(),
            }
        };
        pair.ring.give_back(value);
        thread.join().unwrap();
    });
}
