//! Requests that wait for the disk: a look at messages that are not in memory, and a trim for the
//! space that is on its way back to the file system.

use crate::base::slot_map::Key;
use crate::base::time::Mono;
use crate::limits::{WAITING_FOR_DISK_MAX, WAITING_FOR_DISK_MS};
use crate::protocol::control::Answer;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::FrameHeader;
use crate::protocol::wire;
use crate::shard::core::Core;
use crate::shard::options::Refused;
use crate::shard::timers::Timer;
use std::collections::VecDeque;

/// A look at messages, to be done again when something came from disk.
struct WaitingPeek {
    connection: Key,
    header: FrameHeader,
    queue: Key,
    body: wire::QueuePeekT,
    until: Mono,
}

/// A trim that is not done.
struct WaitingTrim {
    connection: Key,
    header: FrameHeader,
    /// What was given back before, ever.
    released_before: u64,
}

/// See the module. Both lists are short: [`WAITING_FOR_DISK_MAX`].
#[derive(Default)]
pub(super) struct Waiting {
    peeks: VecDeque<WaitingPeek>,
    trims: Vec<WaitingTrim>,
}

impl Waiting {
    /// Peeks that wait.
    pub fn peek_count(&self) -> usize {
        self.peeks.len()
    }
}

impl Core {
    /// A peek needs what is on disk: it is answered when that is there.
    pub fn wait_with_peek(
        &mut self,
        connection: Key,
        header: &FrameHeader,
        body: wire::QueuePeekT,
    ) -> Result<Option<Answer>, Refused> {
        let queue = self.find_queue(&body.name)?;
        self.note_wants(queue);
        if self.waiting.peeks.len() >= WAITING_FOR_DISK_MAX {
            return Err(too_many());
        }
        let until = self.now.mono.plus_ms(WAITING_FOR_DISK_MS);
        self.deadlines.arm(until, Timer::Waiting);
        self.waiting.peeks.push_back(WaitingPeek {
            connection,
            header: *header,
            queue,
            body,
            until,
        });
        Ok(None)
    }

    /// Something of the queue came from disk: peeks that wait for it look again.
    pub(super) fn go_on_waiting(&mut self, queue: Key) {
        for _ in 0..self.waiting.peeks.len() {
            let Some(peek) = self.waiting.peeks.pop_front() else { return };
            if peek.queue != queue {
                self.waiting.peeks.push_back(peek);
                continue;
            }
            match self.try_peek(&peek.body) {
                Ok(Some(answer)) => self.answer(peek.connection, &peek.header, &answer),
                Ok(None) => self.waiting.peeks.push_back(peek),
                Err(refused) => self.refuse_waiting(&peek, refused),
            }
        }
    }

    /// Peeks whose time is up.
    pub(super) fn end_waiting(&mut self) {
        let now = self.now.mono;
        while self.waiting.peeks.front().is_some_and(|peek| peek.until <= now) {
            let Some(peek) = self.waiting.peeks.pop_front() else { return };
            let text = format!(
                "what was asked for did not come from disk within {WAITING_FOR_DISK_MS} ms"
            );
            self.refuse_waiting(&peek, Refused::new(ErrorCode::Refilling, text));
        }
    }

    fn refuse_waiting(&mut self, peek: &WaitingPeek, refused: Refused) {
        let header = &peek.header;
        let body = refused.body();
        self.send_error_body(peek.connection, header.handle, header.correlation, body);
    }

    /// Gives all space on disk back that holds nothing; answered when it is done.
    pub fn trim(
        &mut self,
        connection: Key,
        header: &FrameHeader,
    ) -> Result<Option<Answer>, Refused> {
        let released_before = self.released_bytes();
        let Some(store) = self.spill.store() else {
            return Ok(Some(Answer::Trimmed(wire::TrimmedT::default())));
        };
        if self.waiting.trims.len() >= WAITING_FOR_DISK_MAX {
            return Err(too_many());
        }
        store.trim();
        self.spill.look_later();
        self.waiting.trims.push(WaitingTrim { connection, header: *header, released_before });
        self.answer_trims();
        Ok(None)
    }

    /// Answers trims when nothing is on its way back any more.
    pub(super) fn answer_trims(&mut self) {
        let stats = self.spill.stats();
        if stats.leaving_bytes > 0 {
            return;
        }
        for trim in std::mem::take(&mut self.waiting.trims) {
            let answer = Answer::Trimmed(wire::TrimmedT {
                released_bytes: self.released_bytes() - trim.released_before,
                disk_allocated_bytes: stats.allocated_bytes,
            });
            self.answer(trim.connection, &trim.header, &answer);
        }
    }

    fn released_bytes(&self) -> u64 {
        self.spill.stats().extents_released * self.spill.extent_bytes()
    }
}

fn too_many() -> Refused {
    let max = WAITING_FOR_DISK_MAX as u64;
    let text = format!("{max} requests wait for the disk already");
    Refused::limit(ErrorCode::Refilling, "WAITING_FOR_DISK_MAX", max, text)
}
