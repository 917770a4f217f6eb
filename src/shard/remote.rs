//! Connections whose socket is on another shard. Here, at the home of their queues, such a *remote
//! connection* is a connection like any other, but for its bytes: frames come in parcels, and what
//! it is to be sent goes into one. There, where the socket is, replies go on to the client, and
//! what the socket has taken is reported back; until then it counts as unsent here.

use crate::base::slot_map::Key;
use crate::base::time::Now;
use crate::io::Socket;
use crate::limits::{FRAME_HEADER_BYTES, UNSENT_BYTES_SOFT};
use crate::protocol::frame::{FrameHeader, Opcode};
use crate::queue::memory::Account;
use crate::shard::connection::{Connection, Place, Stage};
use crate::shard::core::{Core, LINGER_MS};
use crate::shard::post::{Item, Parcel, Post};
use crate::shard::timers::Timer;

/// What moves with a socket to another shard: everything that its connection is before its hello.
pub struct Session {
    /// Bytes that were read: the hello, and what came behind it.
    inbox: Vec<u8>,
    /// Bytes that the socket did not take yet.
    unsent: Vec<u8>,
    /// The peer has sent its last byte.
    at_end: bool,
}

impl Core {
    /// From now on this is one of several shards.
    pub(super) fn join(&mut self, post: Post, budget: crate::queue::memory::Budget) {
        self.remotes = (0..post.shards()).map(|_| Default::default()).collect();
        assert_eq!(
            self.memory.budget.used_bytes(),
            0,
            "what was charged before would be forgotten"
        );
        self.memory.budget = budget;
        let waiting_bytes = post.waiting_bytes();
        self.memory.budget.charge(Account::Mailboxes, waiting_bytes);
        self.post = Some(post);
    }

    /// What the other shards have sent. At most what the rings held at the start, so that a busy
    /// neighbour does not keep the tick from ending.
    pub(super) fn receive_mail(&mut self) {
        let Some(post) = &mut self.post else { return };
        for remote in post.begin_tick() {
            self.flush_list.push(remote);
        }
        let (others, parcels_max) = (post.others(), post.parcels_max());
        for from in others {
            let mut taken = 0;
            while taken < parcels_max
                && let Some(mut parcel) = self.post.as_mut().and_then(|post| post.take(from))
            {
                self.open_parcel(from, &mut parcel);
                taken += 1;
                if let Some(post) = &mut self.post {
                    post.give_back(from, parcel);
                }
            }
            if taken > 0
                && let Some(post) = &self.post
            {
                post.note_taken(from);
            }
        }
    }

    fn open_parcel(&mut self, from: usize, parcel: &mut Parcel) {
        let mut notes = std::mem::take(&mut parcel.notes).into_iter();
        let mut rest = &parcel.bytes[..];
        for item in &parcel.items {
            match *item {
                Item::Open { connection } => self.open_remote(from, connection),
                Item::Frames { connection, bytes } => {
                    let (frames, after) = rest.split_at(bytes as usize);
                    rest = after;
                    self.handle_remote_frames(from, connection, frames);
                }
                Item::Sent { connection, bytes } => self.handle_sent(from, connection, bytes),
                Item::Gone { connection } => {
                    if let Some(key) = self.remotes[from].remove(&connection) {
                        self.handle_closed(key);
                    }
                }
                Item::Replies { connection, bytes } => {
                    let (frames, after) = rest.split_at(bytes as usize);
                    rest = after;
                    self.handle_replies(from, connection, frames);
                }
                Item::End { connection } => self.handle_end(from, connection),
                Item::Note => {
                    if let Some(note) = notes.next() {
                        self.handle_note(from, note);
                    }
                }
            }
        }
    }

    // ---- at the home ----

    /// As many as there are connections, for each shard: charged, and not refused.
    fn open_remote(&mut self, from: usize, connection: Key) {
        let place = Place::Shard { shard: from, connection };
        let mut remote = Connection::new(place, self.now.mono);
        remote.stage = Stage::Open;
        remote.charged_bytes = size_of::<Connection>();
        self.memory.budget.charge(Account::Connections, remote.charged_bytes);
        let key = self.connections.insert(remote);
        self.remotes[from].insert(connection, key);
        self.arm_connection(key, self.now.mono);
    }

    /// Frames of a connection that has been ended here are thrown away, as they would be there.
    fn handle_remote_frames(&mut self, from: usize, connection: Key, frames: &[u8]) {
        let Some(&key) = self.remotes[from].get(&connection) else { return };
        if let Some(remote) = self.connections.at_mut(key) {
            remote.heard = self.now.mono;
        }
        let used = self.handle_frames(key, frames);
        debug_assert_eq!(used, frames.len(), "only whole frames cross");
    }

    fn handle_sent(&mut self, from: usize, connection: Key, bytes: u32) {
        let Some(&key) = self.remotes[from].get(&connection) else { return };
        let Some(remote) = self.connections.at_mut(key) else { return };
        remote.out.note_landed(bytes as usize);
        let roomy = remote.out.unsent_bytes() < UNSENT_BYTES_SOFT / 2;
        if roomy && !remote.passed_over.get_mut().is_empty() {
            self.wake_consumers(key);
        }
    }

    /// Puts what a remote connection is to be sent into the parcel for its shard. True if the
    /// connection has to be closed after that.
    pub(super) fn send_replies(&mut self, key: Key, shard: usize, connection: Key) -> bool {
        let Some(remote) = self.connections.at_mut(key) else { return false };
        let Some(post) = &mut self.post else { return false };
        if remote.out.queued_bytes() > 0 {
            if !post.has_room(shard, remote.out.queued_bytes()) {
                // Chunks are not kept for longer than a tick.
                remote.out.keep();
                remote.flush_due = true;
                post.wait_for_room(shard, key);
                self.charge_connection(key);
                return false;
            }
            post.put_replies(shard, connection, |bytes| remote.out.depart(bytes));
            remote.said = self.now.mono;
        }
        let ends = matches!(remote.stage, Stage::Closing(_))
            || remote.out.unsent_bytes() > crate::limits::UNSENT_BYTES_MAX;
        self.charge_connection(key);
        ends
    }

    /// A remote connection ends by itself: the shard with its socket is told.
    pub(super) fn end_remote(&mut self, shard: usize, connection: Key) {
        if self.remotes[shard].remove(&connection).is_some()
            && let Some(post) = &mut self.post
        {
            post.put(shard, Item::End { connection });
        }
    }

    // ---- at the socket ----

    /// Replies of another shard for a client of ours.
    fn handle_replies(&mut self, from: usize, key: Key, frames: &[u8]) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        let Some(crossing) = &connection.crossing else { return };
        if !crossing.is_linked(from) || matches!(connection.stage, Stage::Closing(_)) {
            return;
        }
        let mut rest = frames;
        let mut gathered_bytes = 0;
        // Frames of which nothing is to be known here are put into the outbound together.
        let mut plain = rest;
        let mut plain_bytes = 0;
        while let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
            let Ok(header) = FrameHeader::decode(header) else { break };
            let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
            let payload = &after[..header.payload_bytes as usize];
            rest = &rest[end..];
            if self.note_reply(from, key, &header, payload) {
                // What came before it goes out before the answer that it may be the last part of.
                self.put_plain(from, key, &plain[..plain_bytes]);
                self.send_gathered(key);
                gathered_bytes += end;
                (plain, plain_bytes) = (rest, 0);
            } else {
                plain_bytes += end;
            }
        }
        self.put_plain(from, key, &plain[..plain_bytes]);
        if gathered_bytes > 0
            && let Some(crossing) = self.crossing(key)
        {
            crossing.report(from, gathered_bytes);
            self.report_later(key);
        }
        self.flush_later(key);
    }

    /// Learns from a reply what became of a handle. True if it is part of another answer.
    fn note_reply(&mut self, from: usize, key: Key, header: &FrameHeader, payload: &[u8]) -> bool {
        let Some(opcode) = Opcode::from_u8(header.opcode) else { return false };
        let (handle, correlation) = (header.handle, header.correlation);
        match opcode {
            Opcode::AckDone
            | Opcode::QueueListing
            | Opcode::Stats
            | Opcode::Trimmed
            | Opcode::Error
                if self.gather(key, from, opcode, header, payload) =>
            {
                return true;
            }
            Opcode::Error => {
                if let Some(crossing) = self.crossing(key) {
                    crossing.refused(handle, from, correlation);
                }
            }
            Opcode::ProducerOpened | Opcode::ConsumerOpened => {
                let is_producer = opcode == Opcode::ProducerOpened;
                if let Some(crossing) = self.crossing(key) {
                    crossing.opened(handle, from, is_producer);
                }
            }
            Opcode::Closed => {
                if let Some(crossing) = self.crossing(key) {
                    crossing.closed(handle, from);
                }
            }
            _ => {}
        }
        false
    }

    fn crossing(&mut self, key: Key) -> Option<&mut super::crossing::Crossing> {
        self.connections.at_mut(key)?.crossing.as_deref_mut()
    }

    fn put_plain(&mut self, from: usize, key: Key, frames: &[u8]) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        if frames.is_empty() {
            return;
        }
        connection.out.push(frames);
        let end = connection.out.pushed_total();
        connection.crossing_mut().note_replies(from, frames.len(), end);
    }

    /// The socket has taken something: what of it was another shard's is reported.
    pub(super) fn note_sent(&mut self, key: Key) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        let sent = connection.out.sent_total();
        if let Some(crossing) = &mut connection.crossing
            && crossing.note_sent(sent)
        {
            self.report_later(key);
        }
    }

    fn report_later(&mut self, key: Key) {
        if let Some(crossing) = self.crossing(key)
            && !std::mem::replace(&mut crossing.report_due, true)
        {
            self.reports.push(key);
        }
    }

    /// Another shard has ended the connection, with a word or without.
    fn handle_end(&mut self, from: usize, key: Key) {
        let until = self.now.mono.plus_ms(LINGER_MS);
        let Some(connection) = self.connections.at_mut(key) else { return };
        match &mut connection.crossing {
            Some(crossing) if crossing.is_linked(from) => crossing.unlink(from),
            _ => return,
        }
        connection.stage = Stage::Closing(until);
        connection.inbox = Vec::new();
        self.deadlines.arm(until, Timer::Connection(key));
        self.close_handles(key);
        self.flush_later(key);
    }

    /// The other shards forget a connection.
    pub(super) fn hang_up(&mut self, key: Key) {
        let Some(connection) = self.connections.at_mut(key) else { return };
        let Some(crossing) = connection.crossing.take() else { return };
        let Some(post) = &mut self.post else { return };
        for shard in crossing.linked() {
            post.put(shard, Item::Gone { connection: key });
        }
    }

    /// What has to be said to the other shards at the end of a tick.
    pub(super) fn send_mail(&mut self) {
        self.send_parked_moves();
        let Some(post) = &mut self.post else { return };
        let connections = &mut self.connections;
        self.reports.retain(|&key| {
            let Some(connection) = connections.at_mut(key) else { return false };
            let Some(crossing) = &mut connection.crossing else { return false };
            let all = crossing.take_reports(|shard, bytes| {
                let tells = !post.is_blocked(shard);
                if tells {
                    post.put(shard, Item::Sent { connection: key, bytes });
                }
                tells
            });
            crossing.report_due = !all;
            !all
        });
        post.end_tick();
        self.memory.budget.settle();
    }

    // ---- parking ----

    /// Looks at the connections that had to wait. Gives those that may be read again.
    pub(super) fn unpark(&mut self, now: Now) -> Vec<Key> {
        let mut readable = Vec::new();
        let Some(post) = &mut self.post else { return readable };
        if !std::mem::take(&mut post.stirred) || self.parked.is_empty() {
            return readable;
        }
        for key in std::mem::take(&mut self.parked) {
            let Some(connection) = self.connections.at_mut(key) else { continue };
            let full = |to| self.post.as_ref().is_some_and(|post| post.is_blocked(to));
            if connection.parked_for.is_some_and(full) {
                // Those before it have taken the room: its bytes are not looked at in vain.
                self.parked.push(key);
                continue;
            }
            (connection.parked, connection.parked_for) = (false, None);
            connection.frame_began = now.mono;
            let bytes = std::mem::take(&mut connection.inbox);
            self.handle_bytes(key, &bytes, 0, now);
            let Some(connection) = self.connections.at_mut(key) else { continue };
            if !connection.parked && std::mem::take(&mut connection.read_later) {
                readable.extend(self.note_readable(key, false));
            }
        }
        readable
    }

    // ---- moving ----

    /// Takes a connection out that is to move: its socket, what goes with it, and where.
    pub(super) fn poll_leaving(&mut self) -> Option<(Key, usize)> {
        self.leaving.pop()
    }

    /// It cannot move now; it will be looked at again.
    pub(super) fn stay_for_now(&mut self, key: Key) {
        self.parked.push(key);
        self.deadlines.arm(self.now.mono.plus_ms(1), Timer::Move);
        if let Some(post) = &mut self.post {
            post.stirred = true;
        }
    }

    /// Forgets a connection that moves.
    pub(super) fn take_leaving(&mut self, key: Key) -> Option<(Socket, Session)> {
        let mut connection = self.connections.remove(key)?;
        self.memory.budget.release(Account::Connections, connection.charged_bytes);
        let Place::Socket(socket) = connection.place else { return None };
        let mut unsent = Vec::new();
        connection.out.depart(&mut unsent);
        let at_end = connection.at_end;
        Some((socket, Session { inbox: connection.inbox, unsent, at_end }))
    }

    /// A connection came from another shard, where it was counted.
    ///
    /// # Errors
    /// There is no memory for it: its last bytes, after which the caller closes it.
    pub(super) fn handle_adopted(
        &mut self,
        socket: Socket,
        session: Session,
        now: Now,
    ) -> Result<Key, Vec<u8>> {
        let bytes = size_of::<Connection>();
        if self.memory.try_charge(Account::Connections, bytes).is_err() {
            self.stats.connections_refused += 1;
            self.forget_connection();
            return Err([session.unsent, self.refusal()].concat());
        }
        let mut connection = Connection::new(Place::Socket(socket), now.mono);
        connection.charged_bytes = bytes;
        connection.stage = Stage::Hello;
        connection.at_end = session.at_end;
        connection.out.push(&session.unsent);
        let key = self.connections.insert(connection);
        self.arm_connection(key, now.mono);
        self.flush_later(key);
        self.handle_bytes(key, &session.inbox, 0, now);
        Ok(key)
    }

    /// A connection of ours is no more, as far as the whole broker counts them.
    pub(super) fn forget_connection(&self) {
        if let Some(post) = &self.post {
            post.forget_connection();
        }
    }
}
