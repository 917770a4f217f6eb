//! L0: the one byte layout, from the wire to memory to disk and back to the wire.
//!
//! ```text
//! chunk  = header (64 B, at seal) | batch | batch | ... | zeros
//! batch  = prefix (16 B, the broker's) | header (40 B, the producer's) | record | record | ...
//! record = header (16 B) | properties | body
//! ```
//!
//! A producer sends batches without the prefix; a delivery carries records behind a header of its
//! own. A message too large for one record is cut in fragments, each a batch of its own.

pub mod batch;
#[cfg(feature = "server")]
pub mod change;
#[cfg(feature = "server")]
pub mod chunk;
pub mod dead_letter;
#[cfg(feature = "server")]
pub mod journal;
pub mod properties;
pub mod record;

#[cfg(test)]
mod tests;

/// Reads a little-endian `u16`. The caller has checked that it is there.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

/// Reads a little-endian `u32`. The caller has checked that it is there.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// Reads a little-endian `u64`. The caller has checked that it is there.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
