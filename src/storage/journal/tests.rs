//! What a journal asks for, and in which order.

use super::*;
use crate::format::journal::{Group, RecordKind};

mod disk;
mod model;

const PAGE: u64 = DISK_ALIGN_BYTES as u64;
const STORE: StoreId = StoreId(*b"0123456789abcdef");
const SHAPE: JournalShape = JournalShape {
    segment_bytes: 8 * PAGE,
    group_bytes_max: 3 * PAGE as usize,
    prewrite_bytes: 2 * PAGE,
};
