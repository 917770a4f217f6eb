//! Which shard a frame is for. A queue's name alone says where its home is; a handle says it by the
//! queue that it was opened on. What is for this shard goes on to `dispatch`; what is for another
//! is put into its parcel as it came, and what is for several is cut or copied.

use crate::base::slot_map::Key;
use crate::limits::{ACK_RANGES_MAX, CREDIT_ENTRIES_MAX, EXTEND_RANGES_MAX, GATHERS_MAX};
use crate::limits::{FRAME_HEADER_BYTES, HANDLES_MAX};
use crate::protocol::control::Request;
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::protocol::hot::{AckRange, CreditEntry, ExtendRange, Nack, NackRange};
use crate::queue::policy::is_name;
use crate::shard::connection::{Place, Stage};
use crate::shard::core::Core;
use crate::shard::crossing::State;
use crate::shard::gather::Gather;

/// The shard that has the queue of this name, whether it exists or not: the one that owns the
/// store.
pub fn home(name: &str, stores: u32, shards: u32) -> u32 {
    store_of(name, stores) % shards
}

/// The store that keeps the queue of this name if it is durable.
pub fn store_of(name: &str, stores: u32) -> u32 {
    // FNV-1a, and its upper half by multiplication: every bit of the name counts.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    ((mixed * u64::from(stores)) >> 32) as u32
}

/// How the shard of a frame is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The shard that has the connection.
    Here,
    /// By the frame's handle.
    Handle,
    /// By the handles of its ranges, which begin so far behind the start and are so long.
    Ranges { head_bytes: usize, range_bytes: usize, count_max: usize },
    /// By the queue that its body names; with a handle to be opened, or without.
    Name { opens: bool },
    /// It concerns all.
    Everywhere,
}

/// How the shard of a frame with this opcode is found.
pub(super) fn way(opcode: Opcode) -> Way {
    use Opcode as O;
    let ranges = |range_bytes, count_max| Way::Ranges { head_bytes: 0, range_bytes, count_max };
    match opcode {
        O::Publish | O::Pull | O::ProducerClose | O::ConsumerClose => Way::Handle,
        O::Ack => ranges(AckRange::BYTES, ACK_RANGES_MAX),
        O::Credit => ranges(CreditEntry::BYTES, CREDIT_ENTRIES_MAX),
        O::Extend => ranges(ExtendRange::BYTES, EXTEND_RANGES_MAX),
        O::Nack => Way::Ranges {
            head_bytes: Nack::HEAD_BYTES,
            range_bytes: NackRange::BYTES,
            count_max: crate::limits::NACK_RANGES_MAX,
        },
        O::ProducerOpen | O::ConsumerOpen => Way::Name { opens: true },
        O::QueueCreate
        | O::QueueUpdate
        | O::QueueDelete
        | O::QueuePurge
        | O::QueueDescribe
        | O::QueuePeek
        | O::SubscriptionCreate
        | O::SubscriptionUpdate
        | O::SubscriptionDelete
        | O::SubscriptionList
        | O::SubscriptionDescribe
        | O::Redrive => Way::Name { opens: false },
        O::QueueList | O::BrokerStats | O::Trim => Way::Everywhere,
        O::Hello | O::Ping | O::Pong => Way::Here,
        // What only a broker says.
        O::HelloOk
        | O::Error
        | O::Drain
        | O::ProducerOpened
        | O::Confirm
        | O::PublishError
        | O::Blocked
        | O::Unblocked
        | O::ConsumerOpened
        | O::Deliver
        | O::AckDone
        | O::PullDone
        | O::Closed
        | O::QueueDone
        | O::QueueRemoved
        | O::QueueListing
        | O::QueueDescription
        | O::PeekedMessages
        | O::Stats
        | O::SubscriptionListing
        | O::SubscriptionDescription
        | O::Redriven
        | O::Trimmed => Way::Here,
    }
}

/// The queue that a request names.
fn queue_named(opcode: Opcode, payload: &[u8]) -> Option<String> {
    let name = match Request::decode(opcode, payload).ok()? {
        Request::Hello(body) => body.attach?,
        Request::ProducerOpen(body) => body.queue,
        Request::ConsumerOpen(body) => body.queue,
        Request::QueueCreate(body) => body.name,
        Request::QueueUpdate(body) => body.name,
        Request::QueueDelete(body) => body.name,
        Request::QueuePurge(body) => body.name,
        Request::QueueDescribe(body) => body.name,
        Request::QueuePeek(body) => body.name,
        Request::SubscriptionCreate(body) => body.queue,
        Request::SubscriptionUpdate(body) => body.queue,
        Request::SubscriptionDelete(body) => body.queue,
        Request::SubscriptionList(body) => body.queue,
        Request::SubscriptionDescribe(body) => body.queue,
        Request::Redrive(body) => body.queue,
        Request::QueueList(_) | Request::BrokerStats(_) | Request::Trim(_) => return None,
    };
    is_name(&name).then_some(name)
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// It is for this shard.
    Here,
    /// It is on its way, or answered.
    Done,
    /// It cannot go now: its connection is parked in front of it.
    Wait,
}

impl Core {
    /// Sends a frame on to the shard that it is for. Only with several shards.
    pub(super) fn route(&mut self, key: Key, header: &FrameHeader, payload: &[u8]) -> Route {
        let Some(connection) = self.connections.at(key) else { return Route::Here };
        let Some(opcode) = Opcode::from_u8(header.opcode) else { return Route::Here };
        let is_remote = matches!(connection.place, Place::Shard { .. });
        if is_remote {
            return Route::Here;
        }
        if connection.stage == Stage::Hello {
            return self.route_hello(key, opcode, payload);
        }
        match way(opcode) {
            Way::Here => Route::Here,
            Way::Handle => match connection.abroad(header.handle) {
                Some(shard) => self.route_by_handle(key, shard, opcode, header, payload),
                None => Route::Here,
            },
            Way::Ranges { .. } if connection.crossing.is_none() => Route::Here,
            Way::Ranges { head_bytes, range_bytes, count_max } => {
                let whole = payload.len().checked_sub(head_bytes).is_some_and(|bytes| {
                    // The ranges of a nack are counted, and a text stands behind them.
                    head_bytes > 0
                        || (bytes.is_multiple_of(range_bytes) && bytes / range_bytes <= count_max)
                });
                match opcode {
                    _ if !whole => Route::Here,
                    Opcode::Nack if Nack::decode(payload).is_none() => Route::Here,
                    _ => self.route_ranges(key, header, payload, head_bytes, range_bytes),
                }
            }
            Way::Name { opens } => match queue_named(opcode, payload) {
                Some(name) => {
                    let shard = home(&name, self.config.stores, self.config.shards) as usize;
                    match opens {
                        true => self.route_open(key, shard, opcode, header, payload),
                        false => self.forward(key, shard, header, payload),
                    }
                }
                None => Route::Here,
            },
            Way::Everywhere => self.route_everywhere(key, opcode, header, payload),
        }
    }

    /// A hello that names a queue of another shard moves the connection there.
    fn route_hello(&mut self, key: Key, opcode: Opcode, payload: &[u8]) -> Route {
        if opcode != Opcode::Hello || self.draining.is_some() {
            return Route::Here;
        }
        let Some(name) = queue_named(opcode, payload) else { return Route::Here };
        let shard = home(&name, self.config.stores, self.config.shards) as usize;
        if shard == self.config.shard as usize {
            return Route::Here;
        }
        // The home answers it: the frame stays in front of what moves.
        if let Some(connection) = self.connections.at_mut(key) {
            connection.parked = true;
        }
        self.leaving.push((key, shard));
        Route::Wait
    }

    /// Puts a frame into the parcel for `shard`, or parks the connection until there is room.
    fn forward(&mut self, key: Key, shard: usize, header: &FrameHeader, payload: &[u8]) -> Route {
        let Some(post) = &mut self.post else { return Route::Here };
        if shard == post.own() {
            return Route::Here;
        }
        if !post.has_room(shard, FRAME_HEADER_BYTES + payload.len()) {
            return self.park(key, Some(shard));
        }
        self.carry(key, shard, header, payload);
        Route::Done
    }

    /// Puts a frame into a parcel that has room for it.
    fn carry(&mut self, key: Key, shard: usize, header: &FrameHeader, payload: &[u8]) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        let Some(post) = &mut self.post else { return };
        if connection.crossing_mut().link(shard) {
            post.put(shard, super::post::Item::Open { connection: key });
        }
        post.put_frame(shard, key, header, payload);
    }

    fn route_by_handle(
        &mut self,
        key: Key,
        shard: usize,
        opcode: Opcode,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Route {
        let route = self.forward(key, shard, header, payload);
        if route == Route::Done
            && let Opcode::ProducerClose | Opcode::ConsumerClose = opcode
            && let Some(connection) = self.connections.at_mut(key)
        {
            let is_producer = opcode == Opcode::ProducerClose;
            connection.crossing_mut().closing(header.handle, is_producer, header.correlation);
        }
        route
    }

    /// Opens a handle on `shard`. A number that is still in use elsewhere, or may be, waits for
    /// the word of the shard that has it.
    fn route_open(
        &mut self,
        key: Key,
        shard: usize,
        opcode: Opcode,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Route {
        let own = self.config.shard as usize;
        let Some(connection) = self.connections.at(key) else { return Route::Here };
        let abroad = connection.crossing.as_ref().and_then(|c| c.handle(header.handle));
        match abroad {
            Some(abroad) if abroad.shard != shard && abroad.state == State::Open => {
                let text = format!("handle {} is open already", header.handle);
                self.refuse(key, header, ErrorCode::BadHandle, &text);
                return Route::Done;
            }
            Some(abroad) if abroad.shard != shard => return self.park(key, None),
            _ => {}
        }
        let abroad_count = connection.crossing.as_ref().map_or(0, |c| c.handle_count());
        let full = connection.handles().len() + abroad_count >= HANDLES_MAX;
        if full && abroad.is_none() && shard != own {
            let text = format!("a connection may have {HANDLES_MAX} handles");
            self.refuse(key, header, ErrorCode::HandlesMax, &text);
            return Route::Done;
        }
        if shard != own && connection.target(header.handle).is_some() {
            let text = format!("handle {} is open already", header.handle);
            self.refuse(key, header, ErrorCode::BadHandle, &text);
            return Route::Done;
        }
        let route = self.forward(key, shard, header, payload);
        if route == Route::Done
            && let Some(connection) = self.connections.at_mut(key)
        {
            let is_producer = opcode == Opcode::ProducerOpen;
            let crossing = connection.crossing_mut();
            crossing.opening(header.handle, shard, is_producer, header.correlation);
        }
        route
    }

    /// Cuts a frame of ranges by the shards of its handles. One with a correlation is answered when
    /// all of them have.
    fn route_ranges(
        &mut self,
        key: Key,
        header: &FrameHeader,
        payload: &[u8],
        head_bytes: usize,
        range_bytes: usize,
    ) -> Route {
        let Some(connection) = self.connections.at(key) else { return Route::Here };
        let own = self.config.shard as usize;
        let end = match head_bytes {
            0 => payload.len(),
            _ => head_bytes + crate::format::u32_at(payload, 0) as usize * range_bytes,
        };
        let (head, ranges, tail) =
            (&payload[..head_bytes], &payload[head_bytes..end], &payload[end..]);
        let shard_of =
            |range: &[u8]| connection.abroad(crate::format::u32_at(range, 0)).unwrap_or(own);
        let mut shards = 0_u32;
        ranges.chunks(range_bytes).for_each(|range| shards |= 1 << shard_of(range));
        if shards.count_ones() < 2 {
            let shard = if shards == 0 { own } else { shards.trailing_zeros() as usize };
            return self.forward(key, shard, header, payload);
        }
        let mut parts: Vec<(usize, Vec<u8>)> = Vec::new();
        for range in ranges.chunks(range_bytes) {
            let shard = shard_of(range);
            let nth = parts.iter().position(|(of, _)| *of == shard).unwrap_or_else(|| {
                parts.push((shard, head.to_vec()));
                parts.len() - 1
            });
            parts[nth].1.extend_from_slice(range);
        }
        for (_, part) in &mut parts {
            if head_bytes > 0 {
                let count = (part.len() - head_bytes) / range_bytes;
                part[..4].copy_from_slice(&(count as u32).to_le_bytes());
            }
            part.extend_from_slice(tail);
        }
        let gather = (header.correlation != 0).then(|| Gather::ranges(header.correlation, shards));
        self.send_parts(key, header, parts, gather)
    }

    /// Asks every shard and gathers their answers.
    fn route_everywhere(
        &mut self,
        key: Key,
        opcode: Opcode,
        header: &FrameHeader,
        payload: &[u8],
    ) -> Route {
        let Ok(request) = Request::decode(opcode, payload) else { return Route::Here };
        let shards = self.config.shards;
        let Some(gather) = Gather::everywhere(&request, header, shards) else {
            return Route::Here;
        };
        let parts = (0..shards as usize).map(|shard| (shard, payload.to_vec())).collect();
        self.send_parts(key, header, parts, Some(gather))
    }

    /// Sends each shard its part, this one included, or none of them anything.
    fn send_parts(
        &mut self,
        key: Key,
        header: &FrameHeader,
        parts: Vec<(usize, Vec<u8>)>,
        gather: Option<Gather>,
    ) -> Route {
        let own = self.config.shard as usize;
        let Some(connection) = self.connections.at(key) else { return Route::Here };
        let gathers = connection.crossing.as_ref().map_or(0, |c| c.gathers.len());
        let Some(post) = &mut self.post else { return Route::Here };
        let mut room = |(shard, part): &(usize, Vec<u8>)| {
            *shard == own || post.has_room(*shard, FRAME_HEADER_BYTES + part.len())
        };
        if gathers >= GATHERS_MAX {
            return self.park(key, None);
        }
        if let Some((full, _)) = parts.iter().find(|part| !room(part)) {
            let full = *full;
            return self.park(key, Some(full));
        }
        if let Some(gather) = gather
            && let Some(connection) = self.connections.at_mut(key)
        {
            connection.crossing_mut().gathers.push(gather);
        }
        for (shard, part) in parts {
            let header = FrameHeader { payload_bytes: part.len() as u32, ..*header };
            match shard == own {
                true => self.handle_frame(key, &header, &part),
                false => self.carry(key, shard, &header, &part),
            }
        }
        Route::Done
    }

    /// Nothing more is read from the connection until something has changed: there is room to a
    /// shard, if that is what it waits for.
    fn park(&mut self, key: Key, parked_for: Option<usize>) -> Route {
        if let Some(connection) = self.connections.at_mut(key) {
            connection.parked_for = parked_for;
            if !std::mem::replace(&mut connection.parked, true) {
                self.parked.push(key);
            }
        }
        Route::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_home_and_homes_have_about_as_many_names() {
        assert_eq!(home("orders", 1, 1), 0);
        for shards in [2, 3, 16] {
            let mut counts = vec![0; shards as usize];
            for nth in 0..1000 * shards {
                counts[home(&format!("queue-{nth}"), shards, shards) as usize] += 1;
            }
            assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
        }
        // The homes of a running broker must be those of the next one.
        let homes = ["a", "orders", "orders.dead", "queue-7"].map(|name| home(name, 16, 16));
        assert_eq!(homes, [6, 12, 7, 1]);
    }

    #[test]
    fn every_frame_of_a_client_has_its_way() {
        for &opcode in Opcode::ALL {
            let is_request = Request::decode(opcode, &[]).is_err_and(|error| {
                !matches!(error, crate::protocol::control::ControlError::Unexpected(_))
            });
            let by_body = matches!(way(opcode), Way::Name { .. } | Way::Everywhere);
            assert_eq!(is_request && opcode != Opcode::Hello, by_body, "{opcode:?}");
        }
    }
}
