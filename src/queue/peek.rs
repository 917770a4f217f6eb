//! Looking at ready messages without taking them.

use crate::base::slot_map::Key;
use crate::format::properties::{self, Tag};
use crate::format::record::Records;
use crate::queue::Queue;
use crate::queue::log::{Absent, Run};

/// A ready message, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// Its sequence.
    pub sequence: u64,
    /// When it was taken, wall clock in microseconds.
    pub accepted_us: u64,
    /// Its properties block.
    pub properties: Vec<u8>,
    /// Its body, or the front of it.
    pub body: Vec<u8>,
    /// Length of the whole body.
    pub body_bytes: u64,
}

impl Queue {
    /// Sequences of a subscription that are ready, as ordered ranges `(first, end)`.
    pub fn ready_ranges(&self, subscription: Key) -> Vec<(u64, u64)> {
        let subscription = self.subscriptions.at(subscription);
        subscription.map_or(Vec::new(), |subscription| subscription.ready_ranges(&self.log))
    }

    /// Up to `count_max` ready messages of a subscription behind `sequence`, each as a run of its
    /// own, in order; fewer where the next one must be read first.
    ///
    /// # Errors
    /// If that is the first; its chunk is asked for.
    pub fn ready_behind(
        &mut self,
        subscription: Key,
        sequence: u64,
        count_max: usize,
    ) -> Result<Vec<Run>, Absent> {
        let Some(known) = self.subscriptions.at(subscription) else { return Ok(Vec::new()) };
        let (mut runs, mut missing) = (Vec::new(), None);
        'all: for run in known.ready_runs(sequence.saturating_add(1), &self.log) {
            let one =
                |run: &Run, nth| if run.large { Ok(*run) } else { self.log.part(run, nth, 1) };
            let count = run.as_ref().map_or(1, |run| run.count);
            for nth in 0..count {
                if runs.len() == count_max {
                    return Ok(runs);
                }
                match run.as_ref().map_err(|absent| *absent).and_then(|run| one(run, nth)) {
                    Ok(run) => runs.push(run),
                    Err(absent) => {
                        missing = Some(absent);
                        break 'all;
                    }
                }
            }
        }
        self.unless_missing(runs, missing)
    }

    /// What was found before something absent was met; if nothing was, that is asked for.
    fn unless_missing<T>(
        &mut self,
        found: Vec<T>,
        missing: Option<Absent>,
    ) -> Result<Vec<T>, Absent> {
        match missing {
            Some(absent) if found.is_empty() => {
                self.log.want(absent);
                Err(absent)
            }
            _ => Ok(found),
        }
    }

    /// Looks at up to `count_max` ready messages of a subscription behind the first `skip`, with
    /// bodies and properties of `bytes_max` together. Also whether there are more. Fewer where the
    /// next one must be read first.
    ///
    /// # Errors
    /// If that is the first; its chunk is asked for.
    pub fn peek(
        &mut self,
        subscription: Key,
        skip: u64,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Peeked>, bool), Absent> {
        let mut left = skip;
        let ranges = self.ready_ranges(subscription);
        let from = ranges.into_iter().find_map(|(first, end)| {
            let here = left < end - first;
            let found = here.then_some(first + left);
            left = left.saturating_sub(end - first);
            found
        });
        let known = self.subscriptions.at(subscription);
        let (Some(from), Some(known)) = (from, known) else { return Ok((Vec::new(), false)) };
        let mut bytes_left = bytes_max;
        let mut peeked: Vec<Peeked> = Vec::new();
        let mut missing = None;
        'all: for run in known.ready_runs(from, &self.log) {
            let count = run.as_ref().map_or(1, |run| run.count);
            for nth in 0..count {
                if peeked.len() == count_max || bytes_left == 0 {
                    return Ok((peeked, true));
                }
                match run.and_then(|run| self.peek_one(&run, nth, &mut bytes_left)) {
                    Ok(message) => peeked.extend(message),
                    Err(absent) => {
                        missing = Some(absent);
                        break 'all;
                    }
                }
            }
        }
        let more = missing.is_some();
        self.unless_missing(peeked, missing).map(|peeked| (peeked, more))
    }

    fn peek_one(
        &self,
        run: &Run,
        nth: u32,
        bytes_left: &mut usize,
    ) -> Result<Option<Peeked>, Absent> {
        let (part, bytes) = if run.large {
            (*run, self.log.fragment_at(run, run.at)?.0)
        } else {
            let part = self.log.part(run, nth, 1)?;
            (part, self.log.run_bytes(&part)?)
        };
        let record = Records::new(bytes.chunk.slice(bytes.range.clone())).next();
        let Some(record) = record else { return Ok(None) };
        let total = properties::find_u64(record.properties, Tag::BodyBytesTotal);
        let shown = record.body.len().min(bytes_left.saturating_sub(record.properties.len()));
        *bytes_left = bytes_left.saturating_sub(record.properties.len() + shown + 64);
        Ok(Some(Peeked {
            sequence: part.sequence,
            accepted_us: bytes.accepted_us + u64::from(record.header.time_delta_ms) * 1000,
            properties: record.properties.to_vec(),
            body: record.body[..shown].to_vec(),
            body_bytes: total.unwrap_or(record.body.len() as u64),
        }))
    }
}
