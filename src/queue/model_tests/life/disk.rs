//! Chunks that go to disk and come back, or do not, in the middle of everything.

use super::*;

impl Life {
    /// Reads what somebody waits for, unless reads are held up. Whether there was anything.
    pub(super) fn read(&mut self) -> bool {
        let reads = !self.holds_reads;
        reads && self.disk.refill(&mut self.queue, &mut self.memory, 0)
    }

    /// Which messages make room may depend on what is on disk: only where none do.
    pub(super) fn spill(&mut self, count: usize, tails: bool, fails: bool) {
        match (self.queue.options().on_full, fails) {
            (OnFull::DropOldest, _) => {}
            (_, true) => self.disk.fail_to_spill(&mut self.queue, count, tails),
            (_, false) => _ = self.disk.spill(&mut self.queue, count, tails),
        }
    }

    pub(super) fn lose(&mut self) {
        let (exact, now) = (self.queue.options().bytes_max > 0, self.now());
        if exact {
            return;
        }
        let lost = self.disk.lose(&mut self.queue, now, &mut self.memory);
        self.lost.extend(lost.into_iter().flat_map(|(range, _)| range));
    }

    /// What is lost stays with those who have it, and goes when it comes back.
    pub(super) fn settle_lost(&mut self) {
        for sub in &mut self.subs {
            for sequence in &self.lost {
                let stays = |held: &Held| matches!(held.state, State::InFlight(..) | State::Out(_));
                if sub.held.get(sequence).is_some_and(|held| !stays(held)) {
                    sub.gone(*sequence);
                    sub.counters.lost_damaged += 1;
                }
            }
        }
    }

    pub(super) fn peek(&mut self) {
        for s in 0..self.subs.len() {
            let (sub, mut shown) = (self.subs[s].key, Vec::new());
            let ready = self.subs[s].held.iter().filter(|(_, held)| held.state == State::Ready);
            let ready: Vec<u64> = ready.map(|(&sequence, _)| sequence).collect();
            while let Ok((peeked, more)) = loop {
                let skip = shown.len() as u64;
                let peeked = self.queue.peek(sub, skip, 1000, 1 << 20);
                if peeked.is_ok() || !self.read() {
                    break peeked;
                }
            } {
                shown.extend(peeked.iter().map(|message| message.sequence));
                assert!(
                    peeked.iter().all(|message| message.body == self.bodies[&message.sequence])
                );
                if !more {
                    assert_eq!(shown, ready);
                    break;
                }
            }
            assert!(ready.starts_with(&shown));
            assert!(shown == ready || self.holds_reads);
        }
    }
}
