//! Compares the model with the queues that the broker shows: the counters' equations after every
//! step, a recount of what is held, and at the end that nothing accepted is missing.

use crate::base::slot_map::Key;
use crate::queue::Queue;
use crate::queue::counters::SubscriptionCounters;
use crate::queue::subscription::Subscription;
use crate::sim::Checked;
use crate::sim::body::Identity;
use crate::sim::model::{Fate, Ledger, Model, Shelf, State};
use crate::sim::plan::{Plan, QueuePlan};
use crate::sim::rules::Feed;
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::BTreeMap;

impl Model {
    /// Compares a queue with what is known, after a step of the broker.
    pub fn observe(
        &mut self,
        queue: usize,
        shown: Option<&Queue>,
        plan: &Plan,
        universe: &Universe,
    ) -> Checked {
        let (ledger, of) = (&mut self.queues[queue], &plan.queues[queue]);
        let created_us = shown.map_or(0, |queue| queue.created().0);
        let published = shown.map_or(0, |queue| queue.counters().published);
        let other = created_us != ledger.created_us || published < ledger.published;
        let is_new = ledger.exists != shown.is_some() || other;
        if is_new {
            let remade = ledger.exists && shown.is_some();
            let generation = ledger.generation + 1 + u64::from(remade);
            let (name, mut shelves) =
                (std::mem::take(&mut ledger.name), std::mem::take(&mut ledger.shelves));
            for shelf in shelves.iter_mut().filter(|shelf| shelf.key.is_some()) {
                shelf.renew(None, universe);
            }
            let exists = shown.is_some();
            *ledger = Ledger { name, exists, generation, created_us, shelves, ..Ledger::default() };
        }
        ledger.published = published;
        let Some(shown) = shown else { return Ok(()) };
        let mut single = None;
        for (shelf, subscription) in ledger.shelves.iter_mut().zip(&of.subscriptions) {
            let key = shown.subscription_key(&subscription.name);
            if shelf.key != key {
                let expires = of.rules.options.expires_after_ms > 0 && !subscription.deleted;
                if key.is_none() && expires {
                    universe.cover(Cover::SubscriptionExpired);
                }
                shelf.renew(key, universe);
                shelf.from_start = is_new;
            }
            let found = key.and_then(|key| shown.subscriptions().find(|(other, _)| *other == key));
            if let Some((_, subscription)) = found {
                shelf.observe(&ledger.name, subscription, of)?;
                single = Some(subscription);
            }
        }
        let got = |shelf: &&Shelf| shelf.last_seen.first().is_some_and(|&entered| entered > 0);
        if ledger.shelves.iter().filter(got).count() > 1 {
            universe.cover(Cover::FanOut);
        }
        match single {
            Some(subscription) if of.subscriptions.len() == 1 && of.is_stable() => {
                check_queue(shown, subscription)
            }
            _ => Ok(()),
        }
    }

    /// Walks all that a queue holds: each message is in one state of each subscription, once, and
    /// the counters say so many.
    ///
    /// # Errors
    /// What does not add up.
    pub fn recount(shown: &Queue) -> Checked {
        for (key, subscription) in shown.subscriptions() {
            let name = format!("{}/{}", shown.name(), subscription.name());
            let (mut ready, mut last) = (0, 0);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (first, end) in shown.ready_ranges(key) {
                if first <= last {
                    return Err(format!("{name}: {first} stands ready behind {last}"));
                }
                last = end - 1;
                ready += end - first;
                held.push((first, last));
            }
            let others = subscription.held().map(|portions| {
                let before = held.len();
                held.extend(portions.into_iter().flat_map(|portion| portion.sequences()));
                held[before..].iter().map(|(first, last)| last - first + 1).sum::<u64>()
            });
            held.sort_unstable();
            if let Some(pair) = held.windows(2).find(|pair| pair[0].1 >= pair[1].0) {
                return Err(format!("{name}: {pair:?} are held twice"));
            }
            let counted = [ready, others[0], others[1], others[2]];
            let said = [
                subscription.ready(),
                subscription.in_flight(),
                subscription.delayed(),
                subscription.dead_lettering(),
            ];
            if counted != said {
                return Err(format!(
                    "{name}: ready, in flight, delayed, dead-lettering are {counted:?}, it says \
                     {said:?}"
                ));
            }
        }
        Ok(())
    }

    /// At the end, when all was drained: nothing accepted is missing but what a counter explains,
    /// or the use of auto-ack.
    pub fn finish(&self, feed: Feed, shown: &Queue, plan: &Plan) -> Checked {
        let (ledger, of) = (&self.queues[feed.queue], &plan.queues[feed.queue]);
        let shelf = &ledger.shelves[feed.nth];
        let find = |key| shown.subscriptions().find(|(other, _)| *other == key);
        let Some((_, subscription)) = shelf.key.and_then(find) else { return Ok(()) };
        let name = format!("{}/{}", ledger.name, subscription.name());
        let counters = subscription.counters();
        let explained = explained(counters);
        let mut seen: BTreeMap<Identity, (u32, u32)> = BTreeMap::new();
        let (mut lost, mut done, mut acked) = (0, 0, 0);
        for entry in shelf.entries.values() {
            let times = seen.entry(entry.identity).or_default();
            times.0 += 1;
            match entry.state {
                State::Held(_) | State::Free => lost += 1,
                State::AckSent(_) => done += 1,
                State::Acked => (times.1, done, acked) = (times.1 + 1, done + 1, acked + 1),
                State::Buried => {}
            }
        }
        // A consumer of whom nobody knows in which generation he is has acked what is not known.
        let unknown = if ledger.blurred { counters.acked.saturating_sub(acked) } else { 0 };
        if lost > explained + unknown && !of.auto_acks {
            return Err(format!("{name}: {lost} were lost: {counters:?}"));
        }
        if acked > counters.acked {
            return Err(format!("{name}: {acked} were acked: {counters:?}"));
        }
        let unseen = counters.entered - shelf.entries.len() as u64;
        let mut missing = 0;
        for (identity, publish) in &self.publishes {
            let (times, acked) = seen.get(identity).copied().unwrap_or_default();
            let again = (times > 1 && !ledger.redriven) || (acked > 1 && of.is_stable());
            if again && publish.queue == feed.queue && !publish.twice {
                return Err(format!("{name}: {identity:?} was accepted {times} times"));
            }
            let owed = publish.queue == feed.queue
                && publish.generation == ledger.generation
                && publish.fate == Fate::Confirmed
                && (shelf.from_start || publish.sent_ns > shelf.created_ns);
            missing += u64::from(owed && times == 0);
        }
        if missing > unseen + shown.counters().dropped_newest {
            return Err(format!("{name}: {missing} missing, {unseen} unseen: {counters:?}"));
        }
        if ledger.blurred {
            return Ok(());
        }
        if counters.acked > done && !of.auto_acks {
            return Err(format!("{name}: acked but by nobody, {done} were: {counters:?}"));
        }
        if unseen > explained && !of.auto_acks {
            return Err(format!("{name}: {unseen} unseen: {counters:?}"));
        }
        Ok(())
    }

    /// At the end: every dead letter of the subscription came to its grave, once.
    pub fn finish_graves(&self, feed: Feed, shown: &Queue, grave: &Queue, plan: &Plan) -> Checked {
        let of = &plan.queues[feed.queue];
        let shelf = &self.queues[feed.queue].shelves[feed.nth];
        let stable = of.is_stable() && plan.queues[of.rules.graveyard].is_stable();
        let find = |key| shown.subscriptions().find(|(other, _)| *other == key);
        let Some((_, subscription)) = shelf.key.and_then(find) else { return Ok(()) };
        let (buried, dead) = (shelf.buried, subscription.counters().dead_lettered);
        // Some leave the grave before anybody looks into it, or on the way to who does.
        let left = grave.counters();
        let unseen = left.redriven > 0
            || left.dropped_oldest > 0
            || left.purged > 0
            || left.dead_lettered > 0
            || left.lost_damaged > 0
            || plan.queues[of.rules.graveyard].auto_acks;
        if stable && !plan.restarts && (buried > dead || (buried < dead && !unseen)) {
            return Err(format!(
                "{}/{}: {dead} dead letters, {buried} were seen in {}: {left:?}",
                of.name,
                subscription.name(),
                grave.name()
            ));
        }
        Ok(())
    }
}

impl Shelf {
    /// The subscription was made, went, or is another.
    fn renew(&mut self, key: Option<Key>, universe: &Universe) {
        let remade = self.key.is_some() && key.is_some();
        let generation = self.generation + 1 + u64::from(remade);
        *self = Shelf { key, generation, created_ns: universe.mono().0, ..Shelf::default() };
    }

    fn observe(&mut self, queue: &str, shown: &Subscription, of: &QueuePlan) -> Checked {
        let name = shown.name();
        let counters = shown.counters();
        let gone = counters.acked
            + counters.dead_lettered
            + counters.expired
            + counters.dropped
            + counters.purged
            + counters.lost_damaged
            + counters.redriven;
        let held = shown.ready() + shown.in_flight() + shown.delayed() + shown.dead_lettering();
        let states = || {
            format!(
                "{queue}/{name}: {} ready, {} in flight, {} delayed, {} dying, {counters:?}",
                shown.ready(),
                shown.in_flight(),
                shown.delayed(),
                shown.dead_lettering()
            )
        };
        if counters.entered != gone + held {
            return Err(format!("{}: it does not add up", states()));
        }
        let ended = counters.acked + counters.returned + counters.failed + shown.in_flight();
        let rejected = counters.dead_lettered + shown.dead_lettering();
        let lost = counters.lost_damaged;
        if counters.delivered + lost < ended || counters.delivered > ended + rejected + lost {
            return Err(format!("{}: deliveries do not add up", states()));
        }
        let unacked_max = u64::from(of.rules.options.unacked_max);
        if !of.rules.updated && unacked_max > 0 && shown.in_flight() > unacked_max {
            return Err(format!("{}: {unacked_max} may be in flight", states()));
        }
        let now = vec![
            counters.entered,
            counters.delivered,
            counters.redelivered,
            counters.acked,
            counters.returned,
            counters.failed,
            counters.dead_lettered,
            counters.dropped,
            counters.purged,
            counters.lost_damaged,
            counters.redriven,
        ];
        if now.iter().zip(&self.last_seen).any(|(now, before)| now < before) {
            return Err(format!("{}: a counter went back: {:?}", states(), self.last_seen));
        }
        self.last_seen = now;
        Ok(())
    }
}

/// Messages that are gone by another way than an ack.
fn explained(counters: &SubscriptionCounters) -> u64 {
    counters.purged
        + counters.dropped
        + counters.dead_lettered
        + counters.redriven
        + counters.lost_damaged
}

/// The equation of a queue that never had another subscription.
fn check_queue(shown: &Queue, subscription: &Subscription) -> Checked {
    let counters = shown.counters();
    let held = subscription.ready()
        + subscription.in_flight()
        + subscription.delayed()
        + subscription.dead_lettering();
    match counters.published == counters.gone() + held {
        true => Ok(()),
        false => Err(format!("{}: {held} are held, {counters:?}", shown.name())),
    }
}
