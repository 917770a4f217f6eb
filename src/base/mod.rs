//! L0: what everything stands on and what knows nothing of messages. No OS, no clock, no I/O.

pub mod checksum;
#[cfg(feature = "server")]
pub mod chunk_pool;
#[cfg(feature = "server")]
pub mod copy;
#[cfg(feature = "server")]
pub mod deadlines;
#[cfg(feature = "server")]
pub mod mailbox;
#[cfg(feature = "server")]
pub mod pages;
pub mod prng;
#[cfg(feature = "server")]
pub mod range_set;
#[cfg(feature = "server")]
pub mod slot_map;
#[cfg(feature = "server")]
pub mod sync;
pub mod time;
pub mod units;
