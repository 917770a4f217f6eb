//! Segments of a journal that are ready to be used: recycled ones, and new ones that are made ahead
//! of need, by writing zeros all over them. A file that was only allocated halves the commit rate.

use crate::storage::journal::{JournalRequest, JournalShape};
use std::io::ErrorKind;

/// What is done next with a file that is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Prewrite { offset: u64 },
    Sync,
}

struct Making {
    file: u32,
    step: Step,
    /// Of the request that is under way.
    tag: Option<u64>,
    failed: Option<ErrorKind>,
}

/// Files without content, all of full length. There is always one, or one is being made.
pub struct Spares {
    /// The one that was written last is used first.
    ready: Vec<u32>,
    /// Of full length, but who knows whether the device has it: what made them was stopped.
    found: Vec<u32>,
    /// Begun once and not made to the end.
    unmade: Vec<u32>,
    making: Option<Making>,
    next_file: u32,
}

impl Spares {
    /// With these files, that a recovery found whole or begun; `next_file` is the first number that
    /// is free.
    pub fn new(found: &[u32], unmade: &[u32], next_file: u32) -> Spares {
        let (found, unmade) = (found.to_vec(), unmade.to_vec());
        Spares { ready: vec![], found, unmade, making: None, next_file }
    }

    /// Takes one, if one is ready.
    pub fn take(&mut self) -> Option<u32> {
        self.ready.pop()
    }

    /// Adds files that are needed no more.
    pub fn extend(&mut self, files: impl IntoIterator<Item = u32>) {
        self.ready.extend(files);
    }

    /// Why no segment can be made, if so.
    pub fn failed(&self) -> Option<ErrorKind> {
        self.making.as_ref()?.failed
    }

    /// Begins again with a file that could not be made.
    pub fn retry(&mut self) {
        if let Some(making) = self.making.as_mut().filter(|making| making.failed.is_some()) {
            *making = Making { file: making.file, step: Step::Create, tag: None, failed: None };
        }
    }

    /// What is to be done next so that one becomes ready.
    pub fn poll(&mut self, tag: u64, shape: &JournalShape) -> Option<JournalRequest> {
        if self.making.is_none() {
            if !self.ready.is_empty() {
                return None;
            }
            let (file, step) = match self.found.pop() {
                Some(file) => (file, Step::Sync),
                None => (self.unmade.pop().unwrap_or(self.next_file), Step::Create),
            };
            self.next_file = self.next_file.max(file.saturating_add(1));
            self.making = Some(Making { file, step, tag: None, failed: None });
        }
        let making = self.making.as_mut()?;
        if making.tag.is_some() || making.failed.is_some() {
            return None;
        }
        making.tag = Some(tag);
        let file = making.file;
        Some(match making.step {
            Step::Create => JournalRequest::Create { tag, file },
            Step::Prewrite { offset } => {
                JournalRequest::Prewrite { tag, file, offset, bytes: shape.prewrite_bytes }
            }
            Step::Sync => JournalRequest::Sync { tag, file },
        })
    }

    /// A request of [`Spares::poll`] has ended.
    ///
    /// # Panics
    /// If it is none that is under way.
    pub fn handle_completed(
        &mut self,
        tag: u64,
        result: Result<(), ErrorKind>,
        shape: &JournalShape,
    ) {
        let making = self.making.as_mut().filter(|making| making.tag == Some(tag));
        let making = making.expect("an outcome of what is under way");
        making.tag = None;
        making.failed = result.err();
        if making.failed.is_some() {
            return;
        }
        making.step = match making.step {
            Step::Create => Step::Prewrite { offset: 0 },
            Step::Prewrite { offset } if offset + shape.prewrite_bytes < shape.segment_bytes => {
                Step::Prewrite { offset: offset + shape.prewrite_bytes }
            }
            Step::Prewrite { .. } => Step::Sync,
            Step::Sync => {
                self.ready.extend(self.making.take().map(|making| making.file));
                return;
            }
        };
    }
}
