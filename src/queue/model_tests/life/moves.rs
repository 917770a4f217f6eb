//! Messages that leave for other queues.

use super::*;

impl Life {
    pub(super) fn redrive(&mut self, s: usize, nth: usize) {
        if self.subs.is_empty() {
            return;
        }
        let index = s % self.subs.len();
        let sub = &self.subs[index];
        let ready: Vec<u64> = sub
            .held
            .iter()
            .filter(|(_, held)| held.state == State::Ready)
            .map(|(&sequence, _)| sequence)
            .collect();
        let after = ready.get(nth / 2).copied().unwrap_or(0);
        let key = sub.key;
        let Some(shown) = self.behind(key, after, 3) else { return };
        let behind: Vec<u64> = ready.iter().copied().filter(|s| *s > after).take(3).collect();
        assert!(behind.starts_with(&shown) && shown.is_empty() == behind.is_empty());
        let Some(&sequence) = ready.get(nth) else {
            let past = self.next_sequence;
            assert_eq!(self.queue.begin_redrive(key, past, &mut self.memory), Ok(false));
            return;
        };
        // Its records are looked at first, as a redrive does.
        if self.behind(key, sequence - 1, 1).is_none() {
            return;
        }
        assert_eq!(self.queue.begin_redrive(key, sequence, &mut self.memory), Ok(true));
        assert_eq!(self.queue.begin_redrive(key, sequence, &mut self.memory), Ok(false));
        let sub = &mut self.subs[index];
        sub.held.get_mut(&sequence).unwrap().state = State::Out(MoveReason::Redrive);
        self.out.push((key, sequence));
    }

    /// Sequences of ready messages behind one; `None` where they cannot be read now.
    pub(super) fn behind(&mut self, key: Key, after: u64, count_max: usize) -> Option<Vec<u64>> {
        loop {
            if let Ok(runs) = self.queue.ready_behind(key, after, count_max) {
                return Some(runs.iter().map(|run| run.sequence).collect());
            }
            if !self.read() {
                return None;
            }
        }
    }

    pub(super) fn moves(&mut self) {
        self.move_present();
        while self.read() {
            self.move_present();
        }
    }

    pub(super) fn move_present(&mut self) {
        while let Some(out) = self.queue.poll_move(self.now()) {
            let sub = self.subs.iter_mut().find(|sub| sub.key == out.subscription).unwrap();
            let held = sub.held.get_mut(&out.sequence).expect("it is held");
            let State::Dead(reason) = held.state else { panic!("{:?} is moved", held.state) };
            assert_eq!((out.reason, out.run.sequence, out.run.count), (reason, out.sequence, 1));
            assert_eq!((out.attempts, out.failures), (held.attempts, held.failures));
            assert_eq!(
                (out.first_failed.0, out.last_failed.0),
                (held.first_failed, held.last_failed)
            );
            assert!(matches!(&*out.text, "why" | "lease expired"));
            held.state = State::Out(reason);
            self.out.push((out.subscription, out.sequence));
        }
    }

    pub(super) fn moved(&mut self, nth: usize, ok: bool) {
        if self.out.is_empty() {
            return;
        }
        let (key, sequence) = self.out.remove(nth % self.out.len());
        let outcome = if ok { Ok(()) } else { Err("target is full") };
        let now = self.now();
        self.queue.handle_moved(key, sequence, outcome, now, &mut self.memory);
        self.queue.handle_moved(key, sequence, Ok(()), now, &mut self.memory);
        let Some(sub) = self.subs.iter_mut().find(|sub| sub.key == key) else { return };
        let held = sub.held.get_mut(&sequence).unwrap();
        let State::Out(reason) = held.state else { panic!("it was on its way") };
        if ok {
            sub.gone(sequence);
            let redriven = reason == MoveReason::Redrive;
            sub.counters.redriven += u64::from(redriven);
            sub.counters.dead_lettered += u64::from(!redriven);
        } else if reason == MoveReason::Redrive {
            held.state = State::Ready;
        } else {
            held.state = State::Dead(reason);
            let shown = self.queue.subscription(key).unwrap();
            assert_eq!(shown.dead_letter_reason(), Some("target is full"));
        }
    }
}
