//! What the shard that has a client's socket knows of that client on other shards: which handle is
//! whose, which of them holds a connection for it, whose replies are still unsent, and what answers
//! are being gathered.

use crate::shard::gather::Gather;
use std::collections::VecDeque;

/// How far a handle on another shard has come, as far as its answers tell. The correlation is that
/// of the request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Opening(u32),
    Open,
    Closing(u32),
}

/// A handle on another shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abroad {
    pub shard: usize,
    pub is_producer: bool,
    pub state: State,
}

/// Replies of one shard in the connection's outbound.
#[derive(Clone, Copy, Debug)]
struct Replies {
    shard: usize,
    bytes: usize,
    /// Where they end, counted in all bytes that the connection was ever given to send.
    end: u64,
}

/// See the module.
#[derive(Default)]
pub(super) struct Crossing {
    /// By number.
    handles: Vec<(u32, Abroad)>,
    /// Bit per shard: it holds a connection for this one.
    links: u32,
    replies: VecDeque<Replies>,
    /// Of `replies`.
    pub unsent_bytes: usize,
    /// Replies that were sent and of which their shard was not told yet.
    reports: Vec<(usize, u32)>,
    /// In the list of those with reports.
    pub report_due: bool,
    pub gathers: Vec<Gather>,
}

impl Crossing {
    /// What it holds in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Crossing>()
            + self.handles.capacity() * size_of::<(u32, Abroad)>()
            + self.replies.capacity() * size_of::<Replies>()
            + self.gathers.iter().map(Gather::memory_bytes).sum::<usize>()
    }

    // ---- links ----

    /// Notes that `shard` holds a connection for this one. True if it did not before.
    pub fn link(&mut self, shard: usize) -> bool {
        let before = self.links;
        self.links |= 1 << shard;
        before != self.links
    }

    /// Whether it does.
    pub fn is_linked(&self, shard: usize) -> bool {
        self.links & 1 << shard != 0
    }

    /// It does no more.
    pub fn unlink(&mut self, shard: usize) {
        self.links &= !(1 << shard);
    }

    /// Shards that do.
    pub fn linked(&self) -> impl Iterator<Item = usize> + use<> {
        let links = self.links;
        (0..u32::BITS as usize).filter(move |shard| links & 1 << shard != 0)
    }

    // ---- handles ----

    /// A handle, if it is on another shard.
    #[inline]
    pub fn handle(&self, handle: u32) -> Option<Abroad> {
        let index = self.handles.binary_search_by_key(&handle, |&(number, _)| number).ok()?;
        Some(self.handles[index].1)
    }

    /// Handles on other shards.
    pub fn handle_count(&self) -> usize {
        self.handles.len()
    }

    fn set(&mut self, handle: u32, abroad: Abroad) {
        match self.handles.binary_search_by_key(&handle, |&(number, _)| number) {
            Ok(index) => self.handles[index].1 = abroad,
            Err(index) => self.handles.insert(index, (handle, abroad)),
        }
    }

    fn remove(&mut self, handle: u32) {
        if let Ok(index) = self.handles.binary_search_by_key(&handle, |&(number, _)| number) {
            self.handles.remove(index);
        }
    }

    /// The request to open it is on its way. One that is open, or opening, stays what it is: the
    /// shard will refuse the second.
    pub fn opening(&mut self, handle: u32, shard: usize, is_producer: bool, correlation: u32) {
        let state = State::Opening(correlation);
        if self.handle(handle).is_none_or(|known| matches!(known.state, State::Closing(_))) {
            self.set(handle, Abroad { shard, is_producer, state });
        }
    }

    /// The request to close it is on its way. A request of the wrong kind closes nothing.
    pub fn closing(&mut self, handle: u32, is_producer: bool, correlation: u32) {
        if let Some(abroad) = self.handle(handle)
            && abroad.is_producer == is_producer
        {
            self.set(handle, Abroad { state: State::Closing(correlation), ..abroad });
        }
    }

    /// `shard` says that it is open.
    pub fn opened(&mut self, handle: u32, shard: usize, is_producer: bool) {
        if self.handle(handle).is_none_or(|known| matches!(known.state, State::Opening(_))) {
            self.set(handle, Abroad { shard, is_producer, state: State::Open });
        }
    }

    /// `shard` says that it is closed.
    pub fn closed(&mut self, handle: u32, shard: usize) {
        let known = self.handle(handle).filter(|known| known.shard == shard);
        // One that is being opened anew was closed before.
        if known.is_some_and(|known| !matches!(known.state, State::Opening(_))) {
            self.remove(handle);
        }
    }

    /// `shard` refused a request about it.
    pub fn refused(&mut self, handle: u32, shard: usize, correlation: u32) {
        let known = self.handle(handle).filter(|known| known.shard == shard);
        let asked = [State::Opening(correlation), State::Closing(correlation)];
        if known.is_some_and(|known| asked.contains(&known.state)) {
            self.remove(handle);
        }
    }

    // ---- replies on their way ----

    /// Replies of `shard` were put behind everything else, which now ends at `end`.
    pub fn note_replies(&mut self, shard: usize, bytes: usize, end: u64) {
        self.unsent_bytes += bytes;
        match self.replies.back_mut() {
            Some(last) if last.shard == shard && last.end + bytes as u64 == end => {
                last.bytes += bytes;
                last.end = end;
            }
            _ => self.replies.push_back(Replies { shard, bytes, end }),
        }
    }

    /// The socket has taken everything up to `sent`. True if a shard must be told.
    pub fn note_sent(&mut self, sent: u64) -> bool {
        while let Some(front) = self.replies.front_mut() {
            let start = front.end - front.bytes as u64;
            if sent <= start {
                break;
            }
            let bytes = (front.end.min(sent) - start) as usize;
            front.bytes -= bytes;
            let (shard, is_done) = (front.shard, front.bytes == 0);
            if is_done {
                self.replies.pop_front();
            }
            self.unsent_bytes -= bytes;
            self.report(shard, bytes);
        }
        !self.reports.is_empty()
    }

    /// So many bytes of `shard` are done with.
    pub fn report(&mut self, shard: usize, bytes: usize) {
        match self.reports.iter_mut().find(|(of, _)| *of == shard) {
            Some((_, reported)) => *reported += bytes as u32,
            None => self.reports.push((shard, bytes as u32)),
        }
    }

    /// Takes the reports for the shards that `may_tell`. True if none is left.
    pub fn take_reports(&mut self, mut tell: impl FnMut(usize, u32) -> bool) -> bool {
        self.reports.retain(|&(shard, bytes)| !tell(shard, bytes));
        self.reports.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_socket_took_is_told_to_whose_it_was() {
        let mut crossing = Crossing::default();
        crossing.note_replies(1, 100, 100);
        crossing.note_replies(1, 50, 150);
        // 50 bytes of our own, then the other's.
        crossing.note_replies(2, 30, 230);
        assert_eq!((crossing.replies.len(), crossing.unsent_bytes), (2, 180));
        assert!(crossing.note_sent(120));
        assert!(crossing.note_sent(210));
        let mut told = Vec::new();
        assert!(!crossing.take_reports(|shard, bytes| {
            told.push((shard, bytes));
            shard == 1
        }));
        assert_eq!(told, [(1, 150), (2, 10)]);
        assert!(crossing.note_sent(230));
        assert!(crossing.take_reports(|shard, bytes| (shard, bytes) == (2, 30)));
        assert_eq!(crossing.unsent_bytes, 0);
    }

    #[test]
    fn a_handle_follows_what_its_shard_says() {
        let mut crossing = Crossing::default();
        let state = |crossing: &Crossing| crossing.handle(7).map(|abroad| abroad.state);
        crossing.opening(7, 1, true, 10);
        crossing.refused(7, 1, 11);
        assert_eq!(state(&crossing), Some(State::Opening(10)));
        crossing.opened(7, 1, true);
        crossing.closing(7, false, 12);
        assert_eq!(state(&crossing), Some(State::Open), "a consumer's close closes no producer");
        crossing.closing(7, true, 13);
        crossing.opening(7, 1, false, 14);
        crossing.closed(7, 1);
        assert_eq!(state(&crossing), Some(State::Opening(14)), "what was closed was the old one");
        crossing.refused(7, 1, 14);
        assert_eq!(state(&crossing), None);
    }
}
