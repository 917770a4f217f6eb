//! The bodies of messages that records of a journal hold: batches as they are, and large messages
//! once all of their fragments were met. One of them for each queue, for they come in between each
//! other.

use crate::format::batch::Batches;
use crate::format::change::{FragmentOf, Published};

/// What records bring of a queue's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// A batch.
    Batch {
        /// Sequence of its first message.
        first: u64,
        /// One past that of its last.
        end: u64,
        /// Behind its prefix.
        batch: &'a [u8],
    },
    /// A large message.
    Large {
        /// Its sequence.
        sequence: u64,
        /// All of its fragments, in order, each a batch behind its prefix.
        parts: &'a [Vec<u8>],
    },
}

impl Body<'_> {
    /// The sequence of its first message, and one past that of its last.
    pub fn range(&self) -> (u64, u64) {
        match *self {
            Body::Batch { first, end, .. } => (first, end),
            Body::Large { sequence, .. } => (sequence, sequence + 1),
        }
    }
}

/// The large message of a queue whose fragments are not all there: its sequence and they.
#[derive(Debug, Default)]
pub struct Bodies {
    large: Option<(u64, Vec<Vec<u8>>)>,
}

impl Bodies {
    /// Hands on what is whole with this record; the records come in the order of the log.
    ///
    /// # Errors
    /// As `each` says.
    pub fn add<E>(
        &mut self,
        published: &Published<'_>,
        mut each: impl FnMut(Body<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(fragment) = published.fragment {
            let Some((sequence, parts)) = self.add_part(fragment, published.batches) else {
                return Ok(());
            };
            return each(Body::Large { sequence, parts: &parts });
        }
        for batch in Batches::new(published.batches) {
            let first = batch.prefix.base_sequence;
            let end = first + u64::from(batch.header.record_count);
            each(Body::Batch { first, end, batch: batch.bytes })?;
        }
        Ok(())
    }

    /// The message, if this is its last fragment and the others were met.
    fn add_part(&mut self, of: FragmentOf, batch: &[u8]) -> Option<(u64, Vec<Vec<u8>>)> {
        let FragmentOf { sequence, nth, count } = of;
        if nth == 0 {
            self.large = Some((sequence, Vec::new()));
        }
        let (large, parts) = self.large.as_mut()?;
        if *large != sequence || parts.len() != nth as usize {
            return None;
        }
        parts.push(batch.to_vec());
        if nth + 1 < count { None } else { self.large.take() }
    }
}
