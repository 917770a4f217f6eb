//! What threads share: the real atomics and the real queue. `mailbox` takes them from here, so that
//! its test can put the model checker's in their place.

pub use crossbeam_queue::ArrayQueue;
pub use std::sync::atomic::{AtomicBool, Ordering, fence};
