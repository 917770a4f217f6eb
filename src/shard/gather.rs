//! One answer made of several shards' answers: the ends of acks, nacks and extensions whose ranges
//! were cut by shard, lists of queues, and the broker's figures.

use crate::base::slot_map::Key;
use crate::limits::LIST_COUNT_MAX;
use crate::protocol::control::{Answer, Request};
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::AckDone;
use crate::protocol::wire;
use crate::shard::core::Core;

/// What has come so far.
enum Sum {
    Ranges { done: AckDone, fault: Option<(u32, Vec<u8>)> },
    Listing { count_max: usize, listing: wire::QueueListingT },
    Stats(Box<wire::StatsT>),
    Trimmed { sum: wire::TrimmedT, fault: Option<(u32, Vec<u8>)> },
}

/// An answer that waits for its parts.
pub(super) struct Gather {
    correlation: u32,
    handle: u32,
    /// Bit per shard that has not answered.
    waiting: u32,
    sum: Sum,
}

impl Gather {
    /// Of ranges that were cut for the shards of these bits.
    pub fn ranges(correlation: u32, shards: u32) -> Gather {
        let sum = Sum::Ranges { done: AckDone::default(), fault: None };
        Gather { correlation, handle: 0, waiting: shards, sum }
    }

    /// Of a request that goes to all shards.
    pub fn everywhere(request: &Request, header: &FrameHeader, shards: u32) -> Option<Gather> {
        let sum = match request {
            Request::QueueList(body) => Sum::Listing {
                count_max: body.count_max.clamp(1, LIST_COUNT_MAX) as usize,
                listing: wire::QueueListingT::default(),
            },
            Request::BrokerStats(_) => Sum::Stats(Box::default()),
            Request::Trim(_) => Sum::Trimmed { sum: wire::TrimmedT::default(), fault: None },
            _ => return None,
        };
        let waiting = u32::MAX >> (u32::BITS - shards);
        Some(Gather { correlation: header.correlation, handle: header.handle, waiting, sum })
    }

    /// What it holds in memory.
    pub fn memory_bytes(&self) -> usize {
        let queues = match &self.sum {
            Sum::Listing { listing, .. } => listing.queues.as_ref().map_or(0, Vec::len),
            _ => 0,
        };
        size_of::<Gather>() + queues * size_of::<wire::QueueDescriptionT>()
    }

    /// Whether a frame with this opcode from this shard is a part of it.
    fn takes(&self, shard: usize, opcode: Opcode, correlation: u32) -> bool {
        let fits = match self.sum {
            Sum::Ranges { .. } => matches!(opcode, Opcode::AckDone | Opcode::Error),
            Sum::Listing { .. } => opcode == Opcode::QueueListing,
            Sum::Stats(_) => opcode == Opcode::Stats,
            // One that has too many to answer has nothing to add.
            Sum::Trimmed { .. } => matches!(opcode, Opcode::Trimmed | Opcode::Error),
        };
        fits && self.correlation == correlation && self.waiting & 1 << shard != 0
    }

    fn add(&mut self, shard: usize, opcode: Opcode, handle: u32, payload: &[u8]) {
        self.waiting &= !(1 << shard);
        match &mut self.sum {
            Sum::Ranges { fault, .. } | Sum::Trimmed { fault, .. } if opcode == Opcode::Error => {
                fault.get_or_insert_with(|| (handle, payload.to_vec()));
            }
            Sum::Ranges { done, .. } => {
                let part = AckDone::decode(payload).unwrap_or_default();
                done.acked += part.acked;
                done.late += part.late;
            }
            Sum::Listing { listing, .. } => {
                if let Ok(Answer::QueueListing(part)) = Answer::decode(opcode, payload) {
                    listing.more |= part.more;
                    let queues = listing.queues.get_or_insert_default();
                    queues.extend(part.queues.into_iter().flatten());
                }
            }
            Sum::Stats(stats) => {
                if let Ok(Answer::Stats(part)) = Answer::decode(opcode, payload) {
                    add_stats(stats, part);
                }
            }
            Sum::Trimmed { sum, .. } => {
                if let Ok(Answer::Trimmed(part)) = Answer::decode(opcode, payload) {
                    sum.released_bytes += part.released_bytes;
                    sum.disk_allocated_bytes += part.disk_allocated_bytes;
                }
            }
        }
    }

    /// The whole answer: its opcode, handle and payload.
    fn finish(self) -> (Opcode, u32, Vec<u8>) {
        match self.sum {
            Sum::Ranges { fault: Some((handle, error)), .. }
            | Sum::Trimmed { fault: Some((handle, error)), .. } => (Opcode::Error, handle, error),
            Sum::Ranges { done, .. } => (Opcode::AckDone, 0, done.encode().to_vec()),
            Sum::Listing { count_max, mut listing } => {
                let queues = listing.queues.get_or_insert_default();
                queues.sort_by(|left, right| left.name.cmp(&right.name));
                listing.more |= queues.len() > count_max;
                queues.truncate(count_max);
                let answer = Answer::QueueListing(listing);
                (answer.opcode(), self.handle, answer.encode())
            }
            Sum::Stats(stats) => {
                let answer = Answer::Stats(*stats);
                (answer.opcode(), self.handle, answer.encode())
            }
            Sum::Trimmed { sum, .. } => {
                let answer = Answer::Trimmed(sum);
                (answer.opcode(), self.handle, answer.encode())
            }
        }
    }
}

/// Adds the named fields of a table's part to its sum. The others are to be named too, and are
/// variables then: no field can be forgotten.
macro_rules! add {
    ($part:expr => $sum:expr, $table:path { $($added:ident)* }, others $($other:ident)*) => {
        let $table { $($added,)* $($other),* } = $part;
        $($sum.$added += $added;)*
    };
}

/// Adds a shard's figures; what is the broker's is taken as it is.
fn add_stats(sum: &mut wire::StatsT, part: wire::StatsT) {
    add!(part => sum, wire::StatsT {
        connections connections_accepted connections_shed connections_refused
        protocol_errors queues producers consumers memory_used_bytes memory_chunk_bytes
        ready in_flight delayed ticks bytes_in bytes_out queues_blocked
        queues_deleted_messages subscriptions dead_lettering crossed_bytes chunks_in_memory
        spilled_messages spilled_bytes refilling disk_allocated_bytes disk_used_bytes
        disk_writes disk_reads disk_written_bytes disk_read_bytes disk_write_errors
        disk_read_errors journal_segments journal_bytes journal_groups journal_records
        journal_written_bytes journal_padding_bytes
    }, others server_version shards memory_limit_bytes uptime_ms counters disk_limit_bytes
        disk_free_bytes spill_state journal_state);
    (sum.server_version, sum.shards) = (server_version, shards);
    sum.memory_limit_bytes = memory_limit_bytes;
    sum.disk_limit_bytes = disk_limit_bytes;
    // Not every shard has asked for it yet.
    sum.disk_free_bytes = sum.disk_free_bytes.max(disk_free_bytes);
    sum.spill_state = worse_state(sum.spill_state.take(), spill_state);
    sum.journal_state = worse_state(sum.journal_state.take(), journal_state);
    sum.uptime_ms = sum.uptime_ms.max(uptime_ms);
    let (part, sum) = (counters.unwrap_or_default(), sum.counters.get_or_insert_default());
    add!(*part => sum, wire::QueueCountersT {
        published published_bytes duplicates refused delivered delivered_bytes redelivered
        acked returned failed dead_lettered expired dropped_oldest dropped_newest purged
        lost_damaged moved_in redriven
    }, others);
}

/// Of two shards' states, of spilling or of journals, the one that an operator has to know of.
fn worse_state(one: Option<String>, other: Option<String>) -> Option<String> {
    let rank = |state: &Option<String>| match state.as_deref() {
        Some(text) if text.starts_with("failing") => 4,
        Some(text) if text.starts_with("full") => 3,
        Some("ready") => 2,
        Some("off") => 1,
        Some(_) => 5,
        None => 0,
    };
    if rank(&other) > rank(&one) { other } else { one }
}

impl Core {
    /// Takes a frame that is about to be said to a client if it is a part of an answer that is
    /// being gathered. Where it may be the last, [`Core::send_gathered`] comes next.
    pub(super) fn gather(
        &mut self,
        key: Key,
        shard: usize,
        opcode: Opcode,
        header: &FrameHeader,
        payload: &[u8],
    ) -> bool {
        let Some(connection) = self.connections.at_mut(key) else { return false };
        let Some(crossing) = &mut connection.crossing else { return false };
        let correlation = header.correlation;
        let mut gathers = crossing.gathers.iter_mut();
        let found = gathers.position(|gather| gather.takes(shard, opcode, correlation));
        let Some(nth) = found else { return false };
        crossing.gathers[nth].add(shard, opcode, header.handle, payload);
        true
    }

    /// Lets go what is whole of a client's answers.
    pub(super) fn send_gathered(&mut self, key: Key) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        while let Some(crossing) = &mut connection.crossing
            && let Some(nth) = crossing.gathers.iter().position(|gather| gather.waiting == 0)
        {
            let gather = crossing.gathers.remove(nth);
            let correlation = gather.correlation;
            let (opcode, handle, payload) = gather.finish();
            connection.send(opcode, handle, correlation, &payload);
        }
        self.flush_later(key);
    }

    /// As [`Core::gather`], for this shard's own part.
    #[inline]
    pub(super) fn gather_own(
        &mut self,
        key: Key,
        opcode: Opcode,
        header: &FrameHeader,
        payload: impl FnOnce() -> Vec<u8>,
    ) -> bool {
        let gathers = |c: &super::connection::Connection| {
            c.crossing.as_ref().is_some_and(|crossing| !crossing.gathers.is_empty())
        };
        let own = self.config.shard as usize;
        let is_part = self.connections.at(key).is_some_and(gathers)
            && self.gather(key, own, opcode, header, &payload());
        if is_part {
            self.send_gathered(key);
        }
        is_part
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str], more: bool) -> Vec<u8> {
        let describe = |name: &&str| wire::QueueDescriptionT {
            name: (*name).to_owned(),
            ..wire::QueueDescriptionT::default()
        };
        let queues = Some(names.iter().map(describe).collect());
        Answer::QueueListing(wire::QueueListingT { queues, more }).encode()
    }

    #[test]
    fn a_list_is_in_order_and_no_longer_than_asked() {
        let request = Request::QueueList(wire::QueueListT { count_max: 3, ..Default::default() });
        let header = FrameHeader { correlation: 5, ..FrameHeader::default() };
        let mut gather = Gather::everywhere(&request, &header, 2).unwrap();
        assert!(gather.takes(1, Opcode::QueueListing, 5));
        assert!(!gather.takes(1, Opcode::Error, 5) && !gather.takes(1, Opcode::QueueListing, 6));
        gather.add(1, Opcode::QueueListing, 0, &listing(&["b", "d"], false));
        assert!(!gather.takes(1, Opcode::QueueListing, 5));
        gather.add(0, Opcode::QueueListing, 0, &listing(&["a", "c"], false));
        assert_eq!(gather.waiting, 0);
        let (opcode, _, payload) = gather.finish();
        let Ok(Answer::QueueListing(all)) = Answer::decode(opcode, &payload) else { panic!() };
        let names: Vec<_> = all.queues.unwrap().into_iter().map(|queue| queue.name).collect();
        assert_eq!((names, all.more), (vec!["a".into(), "b".into(), "c".into()], true));
    }

    #[test]
    fn one_fault_makes_the_answer_a_fault() {
        let mut gather = Gather::ranges(5, 0b11);
        gather.add(0, Opcode::AckDone, 0, &AckDone { acked: 1, late: 2 }.encode());
        gather.add(1, Opcode::Error, 7, b"why");
        assert_eq!(gather.finish(), (Opcode::Error, 7, b"why".to_vec()));
        // What one shard cannot do now is not done, and no part is left to be waited for.
        let request = Request::Trim(wire::TrimT {});
        let mut gather = Gather::everywhere(&request, &FrameHeader::default(), 2).unwrap();
        gather.add(1, Opcode::Error, 7, b"why");
        let done = Answer::Trimmed(wire::TrimmedT { released_bytes: 1, ..Default::default() });
        gather.add(0, Opcode::Trimmed, 0, &done.encode());
        assert_eq!(gather.waiting, 0);
        assert_eq!(gather.finish(), (Opcode::Error, 7, b"why".to_vec()));
    }
}
