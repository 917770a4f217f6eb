//! Looking at ready messages without taking them.

use crate::base::slot_map::Key;
use crate::format::properties::{self, Tag};
use crate::format::record::Records;
use crate::queue::Queue;
use crate::queue::log::Run;

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
    /// Runs of a subscription that are ready, in the order in which they would be delivered.
    pub fn ready_runs(&self, subscription: Key) -> impl Iterator<Item = Run> + '_ {
        let subscription = self.subscriptions.at(subscription);
        subscription.into_iter().flat_map(|subscription| subscription.ready_runs(0, &self.log))
    }

    /// Up to `count_max` ready messages of a subscription behind `sequence`, each as a run of its
    /// own, in order.
    pub fn ready_behind(&self, subscription: Key, sequence: u64, count_max: usize) -> Vec<Run> {
        let Some(known) = self.subscriptions.at(subscription) else { return Vec::new() };
        let mut runs = Vec::new();
        for run in known.ready_runs(sequence.saturating_add(1), &self.log) {
            for nth in 0..run.count {
                if runs.len() == count_max {
                    return runs;
                }
                runs.push(if run.large { run } else { self.log.part(&run, nth, 1) });
            }
        }
        runs
    }

    /// Looks at up to `count_max` ready messages of a subscription behind the first `skip`, with
    /// bodies and properties of `bytes_max` together. Also whether there are more.
    pub fn peek(
        &self,
        subscription: Key,
        skip: u64,
        count_max: usize,
        bytes_max: usize,
    ) -> (Vec<Peeked>, bool) {
        let (mut skip, mut bytes_left) = (skip, bytes_max);
        let mut peeked: Vec<Peeked> = Vec::new();
        for run in self.ready_runs(subscription) {
            if skip >= u64::from(run.count) {
                skip -= u64::from(run.count);
                continue;
            }
            for nth in std::mem::take(&mut skip) as u32..run.count {
                if peeked.len() == count_max || bytes_left == 0 {
                    return (peeked, true);
                }
                let message = self.peek_one(&run, nth, &mut bytes_left);
                peeked.extend(message);
            }
        }
        (peeked, false)
    }

    fn peek_one(&self, run: &Run, nth: u32, bytes_left: &mut usize) -> Option<Peeked> {
        let part = if run.large { *run } else { self.log.part(run, nth, 1) };
        let bytes = if run.large {
            self.log.fragment_at(&part, part.at).0
        } else {
            self.log.run_bytes(&part)
        };
        let record = Records::new(bytes.chunk.slice(bytes.range.clone())).next()?;
        let total = properties::find_u64(record.properties, Tag::BodyBytesTotal);
        let shown = record.body.len().min(bytes_left.saturating_sub(record.properties.len()));
        *bytes_left = bytes_left.saturating_sub(record.properties.len() + shown + 64);
        Some(Peeked {
            sequence: part.sequence,
            accepted_us: bytes.accepted_us + u64::from(record.header.time_delta_ms) * 1000,
            properties: record.properties.to_vec(),
            body: record.body[..shown].to_vec(),
            body_bytes: total.unwrap_or(record.body.len() as u64),
        })
    }
}
