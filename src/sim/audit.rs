//! Compares the model with the queues that the broker shows: the counters' equation, a recount of
//! what is held, and at the end that nothing accepted is missing.

use crate::queue::Queue;
use crate::sim::Checked;
use crate::sim::body::Identity;
use crate::sim::model::{Fate, Ledger, Model, State};
use std::collections::BTreeMap;

impl Model {
    /// Compares a queue with what is known, after a step of the broker.
    pub fn observe(&mut self, queue: usize, shown: Option<&Queue>) -> Checked {
        let ledger = &mut self.queues[queue];
        let created_us = shown.map_or(0, |queue| queue.created().0);
        let published = shown.map_or(0, |queue| queue.counters().published);
        let other = created_us != ledger.created_us || published < ledger.published;
        if ledger.exists != shown.is_some() || other {
            let remade = ledger.exists && shown.is_some();
            let generation = ledger.generation + 1 + u64::from(remade);
            let name = std::mem::take(&mut ledger.name);
            let exists = shown.is_some();
            *ledger = Ledger { name, exists, generation, created_us, ..Ledger::default() };
        }
        ledger.published = published;
        let Some(shown) = shown else { return Ok(()) };
        let counters = shown.counters();
        let (ready, in_flight) = (shown.ready(), shown.in_flight());
        let name = &ledger.name;
        let aside = shown.delayed() + shown.dead_lettering();
        if counters.published != counters.gone() + ready + in_flight + aside {
            return Err(format!("{name}: {ready} ready, {in_flight} in flight, {counters:?}"));
        }
        let now = [
            counters.published,
            counters.acked,
            counters.delivered,
            counters.returned,
            counters.purged,
            counters.dropped_oldest,
        ];
        if now.iter().zip(ledger.last_seen).any(|(now, before)| *now < before) {
            return Err(format!(
                "{name}: a counter went back: {:?} {counters:?}",
                ledger.last_seen
            ));
        }
        ledger.last_seen = now;
        if counters.delivered != counters.acked + counters.returned + counters.failed + in_flight {
            return Err(format!("{name}: deliveries do not add up: {in_flight} {counters:?}"));
        }
        Ok(())
    }

    /// Walks all that a queue holds: each message is ready or in flight, once, and the counters say
    /// so many.
    ///
    /// # Errors
    /// What does not add up.
    pub fn recount(shown: &Queue) -> Checked {
        let name = shown.name();
        let (mut ready, mut last) = (0, 0);
        let mut held: Vec<(u64, u64)> = Vec::new();
        for run in shown.subscriptions().flat_map(|(key, _)| shown.ready_runs(key)) {
            if run.sequence <= last {
                return Err(format!("{name}: {} stands ready behind {last}", run.sequence));
            }
            last = run.sequence + u64::from(run.count) - 1;
            ready += u64::from(run.count);
            held.push((run.sequence, last));
        }
        let mut in_flight = 0;
        for (_, subscription) in shown.subscriptions() {
            let [leased, _, _] = subscription.held();
            for (first, last) in leased.into_iter().flat_map(|portion| portion.sequences()) {
                held.push((first, last));
                in_flight += last - first + 1;
            }
        }
        held.sort_unstable();
        if let Some(pair) = held.windows(2).find(|pair| pair[0].1 >= pair[1].0) {
            return Err(format!("{name}: {pair:?} are held twice"));
        }
        match (ready, in_flight) == (shown.ready(), shown.in_flight()) {
            true => Ok(()),
            false => Err(format!(
                "{name}: {ready} ready and {in_flight} in flight, but it says {} and {}",
                shown.ready(),
                shown.in_flight()
            )),
        }
    }

    /// At the end, when all was drained: nothing accepted is missing but what a counter explains,
    /// or the use of auto-ack.
    pub fn finish(&self, queue: usize, shown: &Queue, auto_acks: bool) -> Checked {
        let ledger = &self.queues[queue];
        let counters = shown.counters();
        let mut seen: BTreeMap<Identity, u32> = BTreeMap::new();
        let mut lost = 0;
        for (sequence, entry) in &ledger.entries {
            *seen.entry(entry.identity).or_default() += 1;
            if matches!(entry.state, State::Held(_) | State::Free) {
                lost += 1;
                if counters.purged + counters.dropped_oldest == 0 && !auto_acks {
                    let (name, state) = (&ledger.name, entry.state);
                    return Err(format!("{name}: {sequence} was lost: {state:?} {counters:?}"));
                }
            }
        }
        let acked = ledger.entries.values().filter(|entry| entry.state == State::Acked).count();
        if acked as u64 > counters.acked {
            return Err(format!("{}: {acked} were acked: {counters:?}", ledger.name));
        }
        let explained = counters.purged + counters.dropped_oldest + counters.dropped_newest;
        let unseen = counters.published - ledger.entries.len() as u64;
        let mut missing = 0;
        for (identity, publish) in &self.publishes {
            let times = seen.get(identity).copied().unwrap_or(0);
            if times > 1 && !publish.twice {
                return Err(format!("{}: {identity:?} was accepted twice", ledger.name));
            }
            let owed = publish.queue == queue
                && publish.generation == ledger.generation
                && publish.fate == Fate::Confirmed;
            missing += u64::from(owed && times == 0);
        }
        if missing > unseen || (lost > explained && !auto_acks) {
            let name = &ledger.name;
            return Err(format!("{name}: {missing} missing, {lost} lost, {unseen} unseen"));
        }
        if ledger.blurred {
            return Ok(());
        }
        let done = ledger
            .entries
            .values()
            .filter(|entry| matches!(entry.state, State::Acked | State::AckSent(_)));
        if counters.acked > done.count() as u64 && !auto_acks {
            return Err(format!("{}: acked but by nobody: {counters:?}", ledger.name));
        }
        if unseen > explained && !auto_acks {
            return Err(format!("{}: {unseen} unseen: {counters:?}", ledger.name));
        }
        Ok(())
    }
}
