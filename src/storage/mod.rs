//! L1: what goes to disk and what comes back. Formats and plans: everything here says what to
//! write or read and judges how that ended, and never does it. No queue policy either: what to
//! write out and when is decided above.

pub mod bodies;
pub mod extents;
pub mod journal;
pub mod replay;
mod salvage;
pub mod slots;
pub mod spill;
pub mod state;
