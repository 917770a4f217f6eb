//! The post between shards. What one shard has for another it gathers in a parcel, one per tick
//! and neighbour if nothing is in its way, and puts it into the ring between the two. Nobody ever
//! waits: a parcel that finds the ring full stays, and what would make it larger stays where it
//! is, with its connection. Every shard empties all rings that lead to it in every tick, whatever
//! has become of its own parcels, so no circle of full rings can stand still.

use crate::base::mailbox::{Bell, Ring};
use crate::base::slot_map::Key;
use crate::limits::{FRAME_HEADER_BYTES, MAILBOX_BYTES, PARCEL_BYTES_MAX, PARCEL_BYTES_MIN};
use crate::protocol::frame::FrameHeader;
use crate::queue::memory::CommonBudget;
use crate::shard::moves::Note;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One thing in a parcel. A connection is named as the shard that has its socket does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// To the home: a connection will send frames.
    Open { connection: Key },
    /// To the home: the next bytes of the parcel are whole frames of it.
    Frames { connection: Key, bytes: u32 },
    /// To the home: so many bytes of replies are on their way to the client.
    Sent { connection: Key, bytes: u32 },
    /// To the home: the connection has ended.
    Gone { connection: Key },
    /// From the home: the next bytes are whole frames for it.
    Replies { connection: Key, bytes: u32 },
    /// From the home: end the connection, once what it was sent is out.
    End { connection: Key },
    /// The next note of the parcel: a message moves from queue to queue.
    Note,
}

/// What one shard sends another at a time.
#[derive(Default)]
pub(super) struct Parcel {
    pub items: Vec<Item>,
    pub bytes: Vec<u8>,
    pub notes: Vec<Note>,
    /// Of the messages in the notes.
    pub notes_bytes: usize,
}

/// Parcels that wait in one ring.
const RING_PARCELS: usize = 4;
/// A parcel that once held more than this is not used again.
const PARCEL_KEPT_BYTES: usize = 4 * PARCEL_BYTES_MAX;

/// How much may wait between two shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostShape {
    /// Parcels in a ring.
    pub ring_parcels: usize,
    /// Bytes of frames in a parcel; a single burst for one connection may pass it.
    pub parcel_bytes: usize,
}

impl PostShape {
    /// For so many shards: the more there are, the less each pair may hold back.
    pub fn of(shards: u32) -> PostShape {
        let neighbours = shards.saturating_sub(1).max(1) as usize;
        let parcel_bytes =
            (MAILBOX_BYTES / RING_PARCELS / neighbours).clamp(PARCEL_BYTES_MIN, PARCEL_BYTES_MAX);
        PostShape { ring_parcels: RING_PARCELS, parcel_bytes }
    }
}

/// What all shards of a broker share.
pub struct Office {
    shards: usize,
    shape: PostShape,
    /// From shard `a` to shard `b`: number `a * shards + b`.
    rings: Vec<Ring<Parcel>>,
    bells: Vec<Bell>,
    /// Draining shards that have nothing left to do.
    quiet: Vec<AtomicBool>,
    /// The drain is over for all.
    ending: AtomicBool,
    /// Of the whole broker.
    connections: AtomicU32,
    budget: Arc<CommonBudget>,
}

impl Office {
    /// For `shards` shards that borrow from `budget`.
    pub fn new(shards: u32, shape: PostShape, budget: Arc<CommonBudget>) -> Arc<Office> {
        let count = shards as usize;
        Arc::new(Office {
            shards: count,
            shape,
            rings: (0..count * count).map(|_| Ring::new(shape.ring_parcels)).collect(),
            bells: (0..count).map(|_| Bell::default()).collect(),
            quiet: (0..count).map(|_| AtomicBool::new(false)).collect(),
            ending: AtomicBool::new(false),
            connections: AtomicU32::new(0),
            budget,
        })
    }

    /// The memory that the shards borrow from.
    pub fn budget(&self) -> &Arc<CommonBudget> {
        &self.budget
    }

    /// Whether parcels wait for a shard, for the checkers.
    pub fn has_mail(&self, shard: usize) -> bool {
        (0..self.shards).any(|from| !self.ring(from, shard).is_empty())
    }

    /// Whether any ring has no room left, for the checkers.
    pub fn has_full_ring(&self) -> bool {
        self.rings.iter().any(Ring::is_full)
    }

    fn ring(&self, from: usize, to: usize) -> &Ring<Parcel> {
        &self.rings[from * self.shards + to]
    }
}

/// What a shard has for one neighbour.
#[derive(Default)]
struct Outbox {
    parcel: Parcel,
    /// The ring was full: nothing is tried before the next tick.
    blocked: bool,
    /// Something was put into the ring in this tick.
    sent: bool,
    /// Remote connections whose replies wait for room.
    waiting: Vec<Key>,
}

/// One shard's end of the post.
pub(super) struct Post {
    own: usize,
    office: Arc<Office>,
    outboxes: Vec<Outbox>,
    wake: Box<dyn Fn(usize)>,
    /// Something came, or went after it had to wait: look at what is parked.
    pub stirred: bool,
    /// Bytes of frames that were put into parcels.
    pub crossed_bytes: u64,
}

impl Post {
    /// `wake` makes the poll of another shard return.
    pub fn new(own: usize, office: Arc<Office>, wake: Box<dyn Fn(usize)>) -> Post {
        let outboxes = (0..office.shards).map(|_| Outbox::default()).collect();
        Post { own, office, outboxes, wake, stirred: false, crossed_bytes: 0 }
    }

    /// This shard's number.
    pub fn own(&self) -> usize {
        self.own
    }

    /// Shards in all.
    pub fn shards(&self) -> usize {
        self.office.shards
    }

    /// Numbers of the other shards.
    pub fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.own;
        (0..self.office.shards).filter(move |shard| *shard != own)
    }

    /// What may wait for this shard.
    pub fn waiting_bytes(&self) -> usize {
        let shape = self.office.shape;
        shape.ring_parcels * shape.parcel_bytes * (self.office.shards - 1)
    }

    // ---- connections of the whole broker ----

    /// Counts one more connection, if there may be one.
    pub fn admit_connection(&self, max: u32) -> bool {
        let admitted = self.office.connections.fetch_add(1, Ordering::Relaxed) < max;
        if !admitted {
            self.forget_connection();
        }
        admitted
    }

    /// Counts one less.
    pub fn forget_connection(&self) {
        self.office.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether there may be no more.
    pub fn is_full_of_connections(&self, max: u32) -> bool {
        self.office.connections.load(Ordering::Relaxed) >= max
    }

    // ---- sending ----

    /// Whether `bytes` of frames may be put into the parcel for `to` now.
    pub fn has_room(&mut self, to: usize, bytes: usize) -> bool {
        let parcel = &self.outboxes[to].parcel;
        let held = parcel.bytes.len() + parcel.notes_bytes;
        held == 0 || held + bytes <= self.office.shape.parcel_bytes || self.push(to)
    }

    /// Puts a frame of a connection into the parcel, after [`Post::has_room`].
    pub fn put_frame(&mut self, to: usize, connection: Key, header: &FrameHeader, payload: &[u8]) {
        let parcel = &mut self.outboxes[to].parcel;
        parcel.bytes.extend_from_slice(&header.encode());
        parcel.bytes.extend_from_slice(payload);
        let more = (FRAME_HEADER_BYTES + payload.len()) as u32;
        self.crossed_bytes += u64::from(more);
        match parcel.items.last_mut() {
            Some(Item::Frames { connection: last, bytes }) if *last == connection => *bytes += more,
            _ => parcel.items.push(Item::Frames { connection, bytes: more }),
        }
    }

    /// Lets `fill` put replies for a connection into the parcel, after [`Post::has_room`].
    pub fn put_replies(&mut self, to: usize, connection: Key, fill: impl FnOnce(&mut Vec<u8>)) {
        let parcel = &mut self.outboxes[to].parcel;
        let before = parcel.bytes.len();
        fill(&mut parcel.bytes);
        let bytes = (parcel.bytes.len() - before) as u32;
        self.crossed_bytes += u64::from(bytes);
        parcel.items.push(Item::Replies { connection, bytes });
    }

    /// Puts something without bytes into the parcel. It needs no room: a connection has at most one
    /// of each kind under way.
    pub fn put(&mut self, to: usize, item: Item) {
        self.outboxes[to].parcel.items.push(item);
    }

    /// Puts a note with a message of `bytes` into the parcel, after [`Post::has_room`]. One without
    /// needs no room: there are no more of them than messages that are charged.
    pub fn put_note(&mut self, to: usize, note: Note, bytes: usize) {
        let parcel = &mut self.outboxes[to].parcel;
        parcel.items.push(Item::Note);
        parcel.notes.push(note);
        parcel.notes_bytes += bytes;
        self.crossed_bytes += bytes as u64;
    }

    /// Whether the ring to `to` was full when last tried.
    pub fn is_blocked(&self, to: usize) -> bool {
        self.outboxes[to].blocked
    }

    /// A remote connection's replies have to wait.
    pub fn wait_for_room(&mut self, to: usize, remote: Key) {
        self.outboxes[to].waiting.push(remote);
    }

    /// Puts the parcel into the ring, if there is room and it was not tried before in this tick.
    fn push(&mut self, to: usize) -> bool {
        let outbox = &mut self.outboxes[to];
        if outbox.blocked {
            return false;
        }
        let ring = self.office.ring(self.own, to);
        let parcel = std::mem::take(&mut outbox.parcel);
        match ring.push(parcel) {
            Ok(()) => {
                outbox.sent = true;
                outbox.parcel = ring.reuse().unwrap_or_default();
            }
            Err(parcel) => {
                outbox.blocked = true;
                outbox.parcel = parcel;
            }
        }
        !outbox.blocked
    }

    /// What had to wait is tried again. Gives the remote connections whose replies may go on.
    pub fn begin_tick(&mut self) -> Vec<Key> {
        self.office.bells[self.own].rise();
        let mut waiting = Vec::new();
        for to in 0..self.outboxes.len() {
            let was_blocked = std::mem::take(&mut self.outboxes[to].blocked);
            if was_blocked && self.push(to) {
                self.stirred = true;
                waiting.append(&mut self.outboxes[to].waiting);
            }
        }
        waiting
    }

    /// Everything is on its way, as far as there is room, and who sleeps is woken.
    pub fn end_tick(&mut self) {
        for to in 0..self.outboxes.len() {
            if !self.outboxes[to].parcel.items.is_empty() {
                self.push(to);
            }
            if std::mem::take(&mut self.outboxes[to].sent) {
                self.ring_bell(to);
            }
        }
    }

    /// Wakes a shard, if it sleeps.
    pub fn ring_bell(&self, shard: usize) {
        if self.office.bells[shard].ring() {
            (self.wake)(shard);
        }
    }

    // ---- receiving ----

    /// How many parcels lie in the ring from a neighbour: what this tick takes.
    pub fn parcels_max(&self) -> usize {
        self.office.shape.ring_parcels
    }

    /// The next parcel of a neighbour.
    pub fn take(&mut self, from: usize) -> Option<Parcel> {
        let parcel = self.office.ring(from, self.own).pop()?;
        self.stirred = true;
        Some(parcel)
    }

    /// The parcel is done with; its buffers go back to the sender.
    pub fn give_back(&mut self, from: usize, mut parcel: Parcel) {
        parcel.items.clear();
        parcel.bytes.clear();
        parcel.notes_bytes = 0;
        if parcel.bytes.capacity() <= PARCEL_KEPT_BYTES {
            self.office.ring(from, self.own).give_back(parcel);
        }
    }

    /// After taking: who waited for room is told.
    pub fn note_taken(&self, from: usize) {
        if self.office.ring(from, self.own).take_wish_for_room() {
            self.ring_bell(from);
        }
    }

    // ---- sleeping and ending ----

    /// Before blocking: from now on others wake this shard. It looks again after this.
    pub fn lie_down(&self) {
        self.office.bells[self.own].lie_down();
    }

    /// Whether a parcel has come, or there is room for one that had to wait.
    pub fn has_something(&self) -> bool {
        let room =
            |to: usize| self.outboxes[to].blocked && !self.office.ring(self.own, to).is_full();
        self.office.has_mail(self.own) || (0..self.outboxes.len()).any(room)
    }

    /// It does not block after all.
    pub fn rise(&self) {
        self.office.bells[self.own].rise();
    }

    /// Whether all shards end now.
    pub fn is_ending(&self) -> bool {
        self.office.ending.load(Ordering::SeqCst)
    }

    /// Whether nothing of this shard waits to be sent, nor is anything there for it.
    pub fn is_idle(&self) -> bool {
        let empty = |outbox: &Outbox| outbox.parcel.items.is_empty() && outbox.waiting.is_empty();
        self.outboxes.iter().all(empty) && !self.office.has_mail(self.own)
    }

    /// A draining shard says whether it has come to rest. True once all have, or one is out of
    /// time: then all end together.
    pub fn may_end(&self, quiet: bool, out_of_time: bool) -> bool {
        let office = &*self.office;
        office.quiet[self.own].store(quiet, Ordering::SeqCst);
        let all = office.quiet.iter().all(|quiet| quiet.load(Ordering::SeqCst));
        if (all || out_of_time) && !office.ending.swap(true, Ordering::SeqCst) {
            self.others().for_each(|shard| (self.wake)(shard));
        }
        office.ending.load(Ordering::SeqCst)
    }
}
