//! Where the bodies of messages come from: lines of standard input, arguments, or thin air.

use crate::cli::clock::now;
use crate::cli::lines::{LineBlocks, LineError, lines};
use crate::limits::MESSAGE_BYTES_MAX;
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// Blocks read ahead of the publisher, of about 256 KiB each.
const READ_AHEAD_BLOCKS: usize = 4;
/// Bytes of generated bodies in one block, unless a single one is larger.
const GENERATED_BLOCK_BYTES: usize = 256 * 1024;
/// Generated bodies in one block.
const GENERATED_BLOCK_COUNT: u64 = 1024;

/// Where bodies come from.
#[derive(Debug, PartialEq, Eq)]
pub enum Source {
    /// Lines of standard input.
    Lines,
    /// Arguments.
    Bodies(Vec<Vec<u8>>),
    /// So many of so many bytes each.
    Generated {
        /// How many.
        count: u64,
        /// Bytes of each.
        size: usize,
    },
}

/// Several bodies together.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    bytes: Vec<u8>,
    cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Lines,
    Whole,
    Every { count: usize, size: usize },
}

impl Source {
    /// Arguments, or `generated` (count and size), or else standard input.
    pub fn new(bodies: &[OsString], generated: Option<(u64, u64)>) -> Source {
        if let Some((count, size)) = generated {
            return Source::Generated { count, size: usize::try_from(size).unwrap_or(usize::MAX) };
        }
        if bodies.is_empty() {
            return Source::Lines;
        }
        Source::Bodies(bodies.iter().map(|body| body.as_encoded_bytes().to_vec()).collect())
    }

    /// How far there is to go, if that is known: bytes of a file, or messages.
    pub fn steps(&self) -> Option<u64> {
        match self {
            Source::Lines => stdin_file_bytes(),
            Source::Bodies(bodies) => Some(bodies.len() as u64),
            Source::Generated { count, .. } => Some(*count),
        }
    }

    /// The bodies, block by block. Standard input is read by a thread of its own.
    pub fn blocks(self) -> Blocks {
        match self {
            Source::Lines => Blocks::Lines(read_ahead()),
            Source::Bodies(bodies) => Blocks::Bodies(bodies.into_iter()),
            Source::Generated { count, size } => Blocks::Generated { done: 0, count, size },
        }
    }
}

/// See [`Source::blocks`].
pub enum Blocks {
    /// From the thread that reads.
    Lines(Receiver<Result<Vec<u8>, LineError>>),
    /// One body to a block.
    Bodies(std::vec::IntoIter<Vec<u8>>),
    /// So many are done.
    Generated {
        /// Bodies made.
        done: u64,
        /// Bodies to make.
        count: u64,
        /// Bytes of each.
        size: usize,
    },
}

impl Iterator for Blocks {
    type Item = Result<Block, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            // The reader is gone at the end, and after an error.
            Blocks::Lines(blocks) => {
                let block = blocks.recv().ok()?;
                Some(block.map(|bytes| Block { bytes, cut: Cut::Lines }))
            }
            Blocks::Bodies(bodies) => {
                bodies.next().map(|bytes| Ok(Block { bytes, cut: Cut::Whole }))
            }
            Blocks::Generated { done, count, size } => {
                let fitting = (GENERATED_BLOCK_BYTES / (*size).max(1)).max(1) as u64;
                let next = fitting.min(GENERATED_BLOCK_COUNT).min(*count - *done);
                let mut bytes = Vec::with_capacity(next as usize * *size);
                for number in *done..*done + next {
                    push_generated(&mut bytes, number, *size);
                }
                *done += next;
                let cut = Cut::Every { count: next as usize, size: *size };
                (next > 0).then_some(Ok(Block { bytes, cut }))
            }
        }
    }
}

impl Block {
    /// The bodies, in order.
    pub fn bodies(&self) -> Vec<&[u8]> {
        match self.cut {
            Cut::Lines => lines(&self.bytes).collect(),
            Cut::Whole => vec![&self.bytes],
            Cut::Every { count, size: 0 } => vec![&[]; count],
            Cut::Every { size, .. } => self.bytes.chunks_exact(size).collect(),
        }
    }

    /// How far this block goes, in the measure of [`Source::steps`].
    pub fn steps(&self) -> u64 {
        match self.cut {
            Cut::Lines => self.bytes.len() as u64,
            Cut::Whole => 1,
            Cut::Every { count, .. } => count as u64,
        }
    }
}

/// A body begins with its number, from 0, and goes on with letters: one line of text.
fn push_generated(bytes: &mut Vec<u8>, number: u64, size: usize) {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";
    let end = bytes.len() + size;
    bytes.extend_from_slice(format!("{number:010} ").as_bytes());
    while bytes.len() < end {
        bytes.extend_from_slice(LETTERS);
    }
    bytes.truncate(end);
}

fn read_ahead() -> Receiver<Result<Vec<u8>, LineError>> {
    let (sender, receiver) = sync_channel(READ_AHEAD_BLOCKS);
    if std::io::stdin().is_terminal() {
        eprintln!("forebay: each line is a message; Ctrl-D ends");
    }
    std::thread::spawn(move || {
        let mut blocks = LineBlocks::new(std::io::stdin().lock(), MESSAGE_BYTES_MAX);
        while let Some(block) = blocks.next_block().transpose() {
            let failed = block.is_err();
            // Nobody takes blocks any more once publishing has failed.
            if sender.send(block).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// The size of the file that standard input is, if it is one.
fn stdin_file_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::fd::AsFd as _;
        let stdin = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
        let metadata = std::fs::File::from(stdin).metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }
    #[cfg(not(unix))]
    None
}

/// Spaces messages evenly, at so many per second. After a standstill it goes on at the same pace
/// instead of catching up.
#[derive(Debug)]
pub struct Pace {
    interval: Duration,
    due: Instant,
}

/// A delay that is made good; after a longer one the pace begins anew.
const CATCH_UP_MAX: Duration = Duration::from_millis(100);

impl Pace {
    /// `rate` per second, over 0. The first is due now.
    pub fn new(rate: f64) -> Pace {
        let interval = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
        Pace { interval, due: now() }
    }

    /// Waits until the next message is due.
    pub fn wait(&mut self) {
        let mut time = now();
        while time < self.due {
            std::thread::park_timeout(self.due - time);
            time = now();
        }
        self.due = self.following(time);
    }

    /// When the message after the one that is sent at `time` is due.
    fn following(&self, time: Instant) -> Instant {
        let base = if time > self.due + CATCH_UP_MAX { time } else { self.due };
        // A rate of one in a century: never again.
        base.checked_add(self.interval).unwrap_or(time + Duration::from_secs(1 << 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bodies_as_they_are() {
        let source = Source::new(&["a".into(), "".into()], None);
        assert_eq!(source.steps(), Some(2));
        let blocks: Vec<Block> = source.blocks().map(Result::unwrap).collect();
        assert_eq!(blocks[0].bodies(), [b"a"]);
        assert_eq!(blocks[1].bodies(), [b""]);
    }

    #[test]
    fn generated_bodies_have_their_number_and_size() {
        for (count, size) in [(0, 10), (1, 0), (2500, 0), (3000, 20), (5, 300_000)] {
            let source = Source::new(&[], Some((count, size)));
            assert_eq!(source.steps(), Some(count));
            let blocks: Vec<Block> = source.blocks().map(Result::unwrap).collect();
            let bodies: Vec<&[u8]> = blocks.iter().flat_map(Block::bodies).collect();
            assert_eq!(bodies.len() as u64, count);
            assert_eq!(blocks.iter().map(Block::steps).sum::<u64>(), count);
            for (number, body) in bodies.iter().enumerate() {
                assert_eq!(body.len() as u64, size);
                let digits = format!("{number:010} abc");
                let shown = digits.len().min(body.len());
                assert_eq!(body[..shown], digits.as_bytes()[..shown]);
                assert!(!body.contains(&b'\n'));
            }
        }
    }

    #[test]
    fn a_pace_is_kept_but_not_made_up_for() {
        let pace = Pace::new(100.0);
        let (interval, due) = (Duration::from_millis(10), pace.due);
        assert_eq!(pace.following(due + Duration::from_millis(3)), due + interval);
        let late = due + Duration::from_secs(5);
        assert_eq!(pace.following(late), late + interval);
        let rare = Pace::new(1e-300);
        assert!(rare.following(rare.due) > rare.due + Duration::from_secs(1 << 31));
    }
}
