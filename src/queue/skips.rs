//! Messages ahead of a subscription's cursor that it does not get: dropped to make room, or meant
//! for another subscription alone. Sequences that are not skipped yet are added; the cursor takes
//! them out as it passes.

use crate::base::range_set::{RANGE_BYTES, RangeSet};

/// What a range takes.
pub const SKIP_BYTES: usize = RANGE_BYTES;

/// See the module.
pub type Skips = RangeSet;
