//! What a broker owes for one durable queue, over all of its lives: a naive model, and what it says
//! to each thing that comes out.
//!
//! A message that was confirmed comes out, or is a dead letter, or was purged. Which process kept
//! it does not matter; what a crash may take away is marked when there is one. What a client was
//! told before it asked for something and got the answer is safe by then: the broker answers when
//! all that was told to the journal before is synced.

use crate::protocol::hot::Reached;
use crate::queue::Queue;
use crate::queue::subscription::Subscription;
use crate::sim::Checked;
use crate::sim::body::Identity;
use crate::sim::letter::Letter;
use std::collections::{BTreeMap, BTreeSet};

/// A request under way: it may have been done or not when a crash comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Makes the queue, with this `messages_max`.
    Create(u64),
    /// Changes `messages_max`.
    Update(u64),
    /// Deletes the queue.
    Delete,
    /// Purges it.
    Purge,
    /// Makes a subscription.
    Subscribe(String),
    /// Deletes it.
    Unsubscribe(String),
    /// Updates the queue of dead letters, to no end but to have the answer.
    Grave,
}

#[derive(Debug, Default)]
struct Message {
    /// When it was sent, and in which life.
    sent: u64,
    life: u64,
    /// It is confirmed, and nothing has happened since that may have taken it away.
    confirmed: Option<Reached>,
    /// Its place, while that is known for sure.
    sequence: Option<u64>,
    purged: bool,
}

/// Something that was done, and may be forgotten in a crash until it is safe.
#[derive(Clone, Copy, Debug)]
struct Done {
    at: u64,
    life: u64,
    safe: bool,
}

impl Done {
    fn holds(&self, life: u64) -> bool {
        self.safe || self.life == life
    }
}

#[derive(Debug)]
struct Grave {
    sequence: u64,
    seen: Done,
    acked: Option<Done>,
}

#[derive(Debug, Default)]
struct Fate {
    acked: Option<Done>,
    /// It may be acked: the answer did not come.
    doubtful: bool,
    grave: Option<Grave>,
}

/// A subscription.
#[derive(Debug)]
struct Shelf {
    name: String,
    /// Messages sent after it was made are owed.
    born: u64,
    /// As the broker numbers it, once that was seen.
    number: Option<u64>,
    fates: BTreeMap<Identity, Fate>,
    /// Of this life: the last first delivery, and what was delivered.
    last_first: u64,
    seen: BTreeSet<Identity>,
}

impl Shelf {
    fn new(name: &str, born: u64) -> Shelf {
        Shelf {
            name: name.to_owned(),
            born,
            number: None,
            fates: BTreeMap::new(),
            last_first: 0,
            seen: BTreeSet::new(),
        }
    }
}

/// See the module.
pub struct Ledger {
    /// Of the queue.
    pub name: String,
    /// Its publishes are confirmed when they are written.
    pub is_written: bool,
    /// It is known to be there.
    pub exists: bool,
    /// Under way, and when it was asked for.
    pub asked: Option<(Ask, u64)>,
    /// Power has failed since the queue was made.
    pub lost_power: bool,
    /// It was seen after a restart what became of a request, which a power failure may undo.
    pub unsure: bool,
    messages_max: u64,
    number: Option<u64>,
    messages: BTreeMap<Identity, Message>,
    shelves: Vec<Shelf>,
    /// Producers of queues of this name that are gone, and when they went.
    forgotten: BTreeMap<u32, u64>,
    /// Names of subscriptions that were made anew: their dead letters cannot be told apart.
    remade: BTreeSet<String>,
    clock: u64,
    life: u64,
}

impl Ledger {
    /// Of a queue that was never there.
    pub fn new(name: &str, is_written: bool) -> Ledger {
        Ledger {
            name: name.to_owned(),
            is_written,
            exists: false,
            asked: None,
            lost_power: false,
            unsure: false,
            messages_max: 0,
            number: None,
            messages: BTreeMap::new(),
            shelves: Vec::new(),
            forgotten: BTreeMap::new(),
            remade: BTreeSet::new(),
            clock: 0,
            life: 1,
        }
    }

    /// A point in time, later than all before.
    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Whether a subscription is there.
    pub fn has(&self, subscription: &str) -> bool {
        self.exists && self.shelf(subscription).is_ok()
    }

    fn shelf(&self, name: &str) -> Checked<usize> {
        let found = self.shelves.iter().position(|shelf| shelf.name == name);
        found.ok_or_else(|| format!("{}: no subscription {name} is known", self.name))
    }

    // ---- requests ----

    /// A request goes out.
    pub fn ask(&mut self, ask: Ask) {
        if ask == Ask::Purge {
            self.messages.values_mut().for_each(|message| message.purged = true);
        }
        let now = self.now();
        self.asked = Some((ask, now));
    }

    /// It was refused: nothing was done.
    pub fn refused(&mut self) {
        self.asked = None;
    }

    /// It was done, and what was told before it was asked for is safe.
    pub fn answered(&mut self) {
        let Some((ask, at)) = self.asked.take() else { return };
        // What is told of another queue may be in another journal.
        self.unsure &= ask == Ask::Grave;
        let life = self.life;
        let is_safe = |done: &mut Done| done.safe |= done.at < at && done.life == life;
        let fates = self.shelves.iter_mut().flat_map(|shelf| shelf.fates.values_mut());
        for fate in fates {
            match (&ask, &mut fate.grave) {
                (Ask::Grave, Some(grave)) => {
                    is_safe(&mut grave.seen);
                    grave.acked.iter_mut().for_each(is_safe);
                }
                (Ask::Grave, None) => {}
                _ => fate.acked.iter_mut().for_each(is_safe),
            }
        }
        self.take_effect(ask);
    }

    fn take_effect(&mut self, ask: Ask) {
        let now = self.now();
        match ask {
            Ask::Create(messages_max) => {
                self.exists = true;
                self.lost_power = false;
                self.messages_max = messages_max;
                self.shelves = vec![Shelf::new("default", now)];
            }
            Ask::Update(messages_max) => self.messages_max = messages_max,
            Ask::Delete => {
                self.exists = false;
                self.number = None;
                let gone = std::mem::take(&mut self.messages);
                let life = self.life;
                self.forgotten.extend(gone.keys().map(|identity| (identity.producer, life)));
                self.shelves.clear();
                self.remade.clear();
            }
            Ask::Subscribe(name) => self.shelves.push(Shelf::new(&name, now)),
            Ask::Unsubscribe(name) => {
                self.shelves.retain(|shelf| shelf.name != name);
                self.remade.insert(name);
            }
            Ask::Purge | Ask::Grave => {}
        }
    }

    // ---- messages ----

    /// A message was given to the session.
    pub fn sent(&mut self, identity: Identity) {
        let sent = self.now();
        let purged = matches!(self.asked, Some((Ask::Purge, _)));
        let life = self.life;
        self.messages.insert(identity, Message { sent, life, purged, ..Message::default() });
    }

    /// Whether it was sent to a process before this one.
    pub fn is_back(&self, identity: Identity) -> bool {
        self.messages.get(&identity).is_some_and(|message| message.life < self.life)
    }

    /// Messages of a producer have their answer; by `Memory` the session says that an open told.
    pub fn confirmed(&mut self, producer: u32, numbers: (u64, u64), reached: Reached) -> Checked {
        let least = if self.is_written { Reached::Written } else { Reached::Synced };
        let reached = if reached == Reached::Memory { least } else { reached };
        if reached < least {
            return Err(format!("{}: confirmed at {reached:?}", self.name));
        }
        let of = |number| Identity { producer, number };
        for (_, message) in self.messages.range_mut(of(numbers.0)..=of(numbers.1)) {
            message.confirmed = message.confirmed.max(Some(reached));
        }
        Ok(())
    }

    /// A message was delivered.
    pub fn delivered(
        &mut self,
        subscription: &str,
        identity: Identity,
        (sequence, attempts): (u64, u16),
    ) -> Checked {
        let what = format!("{}/{subscription}: {identity:?} at {sequence}", self.name);
        if !self.place(identity, sequence, &what)? {
            return Ok(());
        }
        let (nth, life) = (self.shelf(subscription)?, self.life);
        let shelf = &mut self.shelves[nth];
        let fate = shelf.fates.entry(identity).or_default();
        if fate.acked.is_some_and(|acked| acked.holds(life)) {
            return Err(format!("{what} comes again after it was acked: {fate:?}"));
        }
        if fate.grave.is_some() {
            return Err(format!("{what} comes again as it is a dead letter: {fate:?}"));
        }
        if shelf.seen.insert(identity) && attempts == 1 {
            if sequence <= shelf.last_first {
                return Err(format!("{what} comes behind {}", shelf.last_first));
            }
            shelf.last_first = sequence;
        }
        Ok(())
    }

    /// Its place in the queue is this one, and was no other. False if it is of a queue that was
    /// deleted in this life: it was on its way.
    fn place(&mut self, identity: Identity, sequence: u64, what: &str) -> Checked<bool> {
        let life = self.life;
        let Some(message) = self.messages.get_mut(&identity) else {
            return match self.forgotten.get(&identity.producer) {
                Some(&gone) if gone == life => Ok(false),
                Some(_) => Err(format!("{what} is of a queue that was deleted")),
                None => Err(format!("{what} was never published")),
            };
        };
        if message.sequence.is_some_and(|other| other != sequence) {
            return Err(format!("{what} is in the queue twice: {message:?}"));
        }
        message.sequence = Some(sequence);
        let of = |number| Identity { number, ..identity };
        let before = self.messages.range(of(0)..identity).rev();
        let behind = self.messages.range(of(identity.number + 1)..=of(u64::MAX));
        let before = before.filter_map(|(_, message)| message.sequence).next();
        let behind = behind.filter_map(|(_, message)| message.sequence).next();
        match before.is_some_and(|at| at >= sequence) || behind.is_some_and(|at| at <= sequence) {
            true => Err(format!("{what} stands between {before:?} and {behind:?}")),
            false => Ok(true),
        }
    }

    /// An ack was answered, or not.
    pub fn acked(&mut self, subscription: &str, identity: Identity, is_sure: bool) {
        let done = Done { at: self.now(), life: self.life, safe: false };
        let Ok(nth) = self.shelf(subscription) else { return };
        let Some(fate) = self.shelves[nth].fates.get_mut(&identity) else { return };
        match is_sure {
            true => fate.acked = Some(done),
            false => fate.doubtful = true,
        }
    }

    /// A dead letter was delivered.
    pub fn buried(&mut self, letter: &Letter, identity: Identity, sequence: u64) -> Checked {
        let what = format!("dead letter {identity:?} at {sequence}, {letter:?}");
        let seen = Done { at: self.now(), life: self.life, safe: false };
        if letter.queue != self.name || self.forgotten.contains_key(&identity.producer) {
            return Ok(());
        }
        if self.remade.contains(&letter.subscription) {
            let shelf = self.shelves.iter_mut().find(|shelf| shelf.name == letter.subscription);
            if let Some(shelf) = shelf {
                let fate = shelf.fates.entry(identity).or_default();
                fate.doubtful = true;
            }
            return Ok(());
        }
        self.place(identity, letter.sequence, &what)?;
        let (nth, life) = (self.shelf(&letter.subscription)?, self.life);
        let fate = self.shelves[nth].fates.entry(identity).or_default();
        if fate.acked.is_some_and(|acked| acked.holds(life)) {
            return Err(format!("{what} was acked: {fate:?}"));
        }
        if let Some(grave) = &fate.grave {
            if grave.sequence != sequence && grave.seen.holds(life) {
                return Err(format!("{what} is there twice: {fate:?}"));
            }
            if grave.acked.is_some_and(|acked| acked.holds(life)) {
                return Err(format!("{what} comes again after it was acked: {fate:?}"));
            }
        }
        fate.grave = Some(Grave { sequence, seen, acked: None });
        Ok(())
    }

    /// The ack of a dead letter was answered.
    pub fn buried_acked(&mut self, subscription: &str, identity: Identity) {
        let done = Done { at: self.now(), life: self.life, safe: false };
        let Ok(nth) = self.shelf(subscription) else { return };
        let fate = self.shelves[nth].fates.get_mut(&identity);
        if let Some(grave) = fate.and_then(|fate| fate.grave.as_mut()) {
            grave.acked = Some(done);
        }
    }

    // ---- lives ----

    /// The broker has ended by itself, with everything at rest.
    pub fn stopped(&mut self) {
        self.unsure = false;
        let life = self.life;
        let is_safe = |done: &mut Done| done.safe |= done.life == life;
        let fates = self.shelves.iter_mut().flat_map(|shelf| shelf.fates.values_mut());
        for fate in fates {
            fate.acked.iter_mut().for_each(is_safe);
            if let Some(grave) = &mut fate.grave {
                is_safe(&mut grave.seen);
                grave.acked.iter_mut().for_each(is_safe);
            }
        }
        for message in self.messages.values_mut() {
            message.confirmed = message.confirmed.and(Some(Reached::Synced));
        }
    }

    /// The process was killed, or power failed.
    pub fn crashed(&mut self, power: bool) {
        self.life += 1;
        self.lost_power |= power;
        let least = if power { Reached::Synced } else { Reached::Written };
        for message in self.messages.values_mut() {
            if message.confirmed < Some(least) {
                (message.confirmed, message.sequence) = (None, None);
            }
        }
        for shelf in &mut self.shelves {
            shelf.last_first = 0;
            shelf.seen.clear();
        }
    }

    /// What is there after a restart is what was there before it, with what was under way done or
    /// not.
    pub fn restarted(&mut self, shown: Option<&Queue>) -> Checked {
        let ask = self.asked.take().map(|(ask, _)| ask);
        self.unsure |= ask.is_some();
        let there = shown.is_some();
        if there != self.exists {
            match &ask {
                Some(ask @ (Ask::Create(_) | Ask::Delete)) => self.take_effect(ask.clone()),
                _ => return Err(format!("{}: there {there}, with {ask:?}", self.name)),
            }
        }
        let Some(shown) = shown else { return Ok(()) };
        if self.number.is_some_and(|number| number != shown.number()) {
            return Err(format!("{}: it is another queue", self.name));
        }
        let options = shown.options();
        let confirm = if self.is_written { Reached::Written } else { Reached::Synced };
        let messages_max = options.messages_max;
        if messages_max != self.messages_max && ask == Some(Ask::Update(messages_max)) {
            self.messages_max = messages_max;
        }
        if messages_max != self.messages_max || options.confirm != confirm {
            return Err(format!("{}: {options:?}, asked {}", self.name, self.messages_max));
        }
        let names: BTreeSet<&str> = shown.subscriptions().map(|(_, of)| of.name()).collect();
        match &ask {
            Some(of @ Ask::Subscribe(name)) if names.contains(&name[..]) && !self.has(name) => {
                self.take_effect(of.clone());
            }
            Some(of @ Ask::Unsubscribe(name)) if !names.contains(&name[..]) => {
                self.take_effect(of.clone());
            }
            _ => {}
        }
        let known: BTreeSet<&str> = self.shelves.iter().map(|shelf| &shelf.name[..]).collect();
        match known == names {
            true => self.observe(Some(shown)),
            false => Err(format!("{}: {names:?} where {known:?} were", self.name)),
        }
    }

    /// Compares numbers and counters, after a step.
    pub fn observe(&mut self, shown: Option<&Queue>) -> Checked {
        let Some(shown) = shown else { return Ok(()) };
        if self.exists && self.asked.is_none() {
            self.number = Some(shown.number());
        }
        if shown.counters().lost_damaged > 0 {
            return Err(format!("{}: lost {:?}", self.name, shown.counters()));
        }
        for (_, of) in shown.subscriptions() {
            adds_up(&self.name, of)?;
            let shelf = self.shelves.iter_mut().find(|shelf| shelf.name == of.name());
            if let Some(shelf) = shelf.filter(|_| self.asked.is_none())
                && *shelf.number.get_or_insert(of.number()) != of.number()
            {
                return Err(format!("{}/{}: it is another one", self.name, of.name()));
            }
        }
        Ok(())
    }

    /// Everything was drained: what was confirmed came out.
    pub fn finish(&self) -> Checked {
        for shelf in &self.shelves {
            let is_owed = |message: &Message| {
                message.confirmed.is_some() && !message.purged && message.sent > shelf.born
            };
            for (identity, message) in &self.messages {
                let fate = shelf.fates.get(identity);
                let is_done = fate.is_some_and(|fate| {
                    fate.acked.is_some() || fate.doubtful || fate.grave.is_some()
                });
                if is_owed(message) && !is_done {
                    let (queue, name) = (&self.name, &shelf.name);
                    return Err(format!(
                        "{queue}/{name}: {identity:?} is lost: {message:?} {fate:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether all that came to a subscription is somewhere.
fn adds_up(queue: &str, of: &Subscription) -> Checked {
    let counters = of.counters();
    let held = of.ready() + of.in_flight() + of.delayed() + of.dead_lettering();
    match counters.entered == counters.gone() + held {
        true => Ok(()),
        false => Err(format!("{queue}/{}: {held} held, {counters:?}", of.name())),
    }
}
