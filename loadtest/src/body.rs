//! What a test message says about itself, in its first 16 bytes, so that what is lost, doubled,
//! out of order or damaged is counted and not assumed. Stamping and checking cost a few
//! nanoseconds each.
//!
//! ```text
//!  0  u64  producer (16 bits, high) | sequence (48 bits)   the first of a producer is 0
//!  8  u64  time_ns (40 bits, high) | check (24 bits)       intended time since the run began
//! 16       a pattern that depends on the sequence
//! ```

/// Smallest body: the stamp.
pub const BODY_BYTES_MIN: usize = 16;
/// Largest body: it travels in one record of any target.
pub const BODY_BYTES_MAX: usize = 200 * 1024;
/// Largest intended time, in nanoseconds since the run began.
pub const TIME_NS_MAX: u64 = (1 << 40) - 1;
/// Most producers of a run.
pub const PRODUCERS_MAX: usize = 1 << 16;

const SEQUENCE_BITS: u32 = 48;
const CHECK_BITS: u32 = 24;
/// Bodies differ in where their pattern starts in the table: 64 places, 8 bytes apart.
const SHIFTS: usize = 64;
const PIECE_BYTES: usize = 4096;

/// Who sent a message, as which, and when it should have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the producer, below [`PRODUCERS_MAX`].
    pub producer: u16,
    /// Counts the producer's messages from 0; 48 bits.
    pub sequence: u64,
    /// Intended time in nanoseconds since the run began, at most [`TIME_NS_MAX`].
    pub time_ns: u64,
}

/// Writes and checks bodies; holds the table that the pattern is cut from.
pub struct Bodies {
    table: Vec<u8>,
}

impl Default for Bodies {
    fn default() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut table = Vec::with_capacity(PIECE_BYTES + SHIFTS * 8);
        while table.len() < PIECE_BYTES + SHIFTS * 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            table.extend_from_slice(&state.to_le_bytes());
        }
        Bodies { table }
    }
}

impl Bodies {
    /// Fills `body` whole.
    ///
    /// # Panics
    /// If it is shorter than [`BODY_BYTES_MIN`].
    #[inline]
    pub fn stamp(&self, body: &mut [u8], stamp: Stamp) {
        let bytes = body.len();
        let (words, tail) = body.split_at_mut(BODY_BYTES_MIN);
        let first = (u64::from(stamp.producer) << SEQUENCE_BITS) | stamp.sequence;
        words[..8].copy_from_slice(&first.to_le_bytes());
        let second = (stamp.time_ns << CHECK_BITS) | check(first, stamp.time_ns, bytes);
        words[8..].copy_from_slice(&second.to_le_bytes());
        for (nth, piece) in tail.chunks_mut(PIECE_BYTES).enumerate() {
            piece.copy_from_slice(self.pattern(stamp.sequence, nth, piece.len()));
        }
    }

    /// Reads the stamp; `None` if any byte of the body is not as it was sent.
    #[inline]
    pub fn verify(&self, body: &[u8]) -> Option<Stamp> {
        let (words, tail) = body.split_first_chunk::<BODY_BYTES_MIN>()?;
        let first = u64::from_le_bytes(*words.first_chunk()?);
        let second = u64::from_le_bytes(*words.last_chunk()?);
        let stamp = Stamp {
            producer: (first >> SEQUENCE_BITS) as u16,
            sequence: first & ((1 << SEQUENCE_BITS) - 1),
            time_ns: second >> CHECK_BITS,
        };
        if second & ((1 << CHECK_BITS) - 1) != check(first, stamp.time_ns, body.len()) {
            return None;
        }
        for (nth, piece) in tail.chunks(PIECE_BYTES).enumerate() {
            if piece != self.pattern(stamp.sequence, nth, piece.len()) {
                return None;
            }
        }
        Some(stamp)
    }

    #[inline]
    fn pattern(&self, sequence: u64, piece: usize, bytes: usize) -> &[u8] {
        let start = (sequence as usize).wrapping_add(piece) % SHIFTS * 8;
        &self.table[start..start + bytes]
    }
}

#[inline]
fn check(first: u64, time_ns: u64, bytes: usize) -> u64 {
    let mixed = (first ^ (bytes as u64) << 20).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ mixed >> 32 ^ time_ns).wrapping_mul(0xd6e8_feb8_6659_fd93) >> (64 - CHECK_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stamped_is_read_back() {
        let bodies = Bodies::default();
        for bytes in [16, 17, 128, 1024, 4112, 4113, 9000] {
            let mut body = vec![0; bytes];
            for sequence in [0, 1, 63, 64, (1 << 48) - 1] {
                let stamp = Stamp { producer: 65_535, sequence, time_ns: TIME_NS_MAX };
                bodies.stamp(&mut body, stamp);
                assert_eq!(bodies.verify(&body), Some(stamp));
            }
        }
    }

    #[test]
    fn any_flipped_bit_and_any_other_length_is_noticed() {
        let bodies = Bodies::default();
        let mut body = vec![0; 160];
        bodies.stamp(&mut body, Stamp { producer: 3, sequence: 12_345, time_ns: 678_901 });
        for bit in 0..body.len() * 8 {
            body[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(bodies.verify(&body), None, "bit {bit}");
            body[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(bodies.verify(&body).is_some());
        assert_eq!(bodies.verify(&body[..159]), None);
        assert_eq!(bodies.verify(&body[..15]), None);
    }
}
