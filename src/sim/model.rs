//! The naive model of what a broker owes its clients. It is told what clients send and see;
//! whatever does not fit is a violation. `audit` compares it with the broker's queues.
//!
//! Per message it knows what became of the publish, per sequence of a queue who has it. It never
//! guesses: where a broken connection hides the broker's answer, both outcomes are allowed, and
//! nothing else.

use crate::sim::Checked;
use crate::sim::body::{GHOST, Identity};
use crate::sim::net::LineId;
use crate::sim::world::Universe;
use std::collections::BTreeMap;

/// Names one opening of a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its connection.
    pub line: LineId,
    /// Counts up with every opening in the run.
    pub serial: u64,
}

/// What its producer knows of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent, not answered: may come through.
    Open,
    /// Must come through.
    Confirmed,
    /// Must never be seen.
    Refused,
}

pub(super) struct Publish {
    pub queue: usize,
    pub generation: u64,
    pub fate: Fate,
    /// Sent again where the broker cannot know it for a duplicate: may come through twice.
    pub twice: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Held(Holder),
    /// An ack is on its way.
    AckSent(Holder),
    /// The broker said that it is done, or it needed no ack.
    Acked,
    /// Its consumer went without acking it.
    Free,
}

pub(super) struct Entry {
    pub identity: Identity,
    pub state: State,
    attempts: u16,
}

/// What is known of a queue.
#[derive(Default)]
pub(super) struct Ledger {
    pub name: String,
    /// Whether the broker has it now.
    pub exists: bool,
    /// How often it was made or went.
    pub generation: u64,
    pub created_us: u64,
    pub entries: BTreeMap<u64, Entry>,
    /// Sequence and number of each producer's messages.
    pub by_producer: BTreeMap<u32, BTreeMap<u64, u64>>,
    /// A handle was opened and nobody can tell in which generation: less is known for sure.
    pub blurred: bool,
    pub published: u64,
    pub last_seen: [u64; 6],
}

/// See the module.
pub struct Model {
    pub(super) queues: Vec<Ledger>,
    pub(super) publishes: BTreeMap<Identity, Publish>,
    /// Connections whose consumers lost what they held, though nobody has seen them end yet: the
    /// broker must have ended them, and its word is on the way.
    suspects: BTreeMap<LineId, String>,
}

/// One delivery as a consumer saw it.
pub struct Seen {
    /// Index of the queue.
    pub queue: usize,
    /// The queue's generation when the consumer asked to be opened.
    pub generation: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Whose it is.
    pub identity: Identity,
    /// As the broker counts them.
    pub attempts: u16,
    /// Delivered means done.
    pub auto_ack: bool,
}

impl Model {
    /// A model of queues with these names.
    pub fn new(names: &[String]) -> Model {
        let ledger = |name: &String| Ledger { name: name.clone(), ..Ledger::default() };
        Model {
            queues: names.iter().map(ledger).collect(),
            publishes: BTreeMap::new(),
            suspects: BTreeMap::new(),
        }
    }

    /// How often a queue was made or went.
    pub fn generation(&self, queue: usize) -> u64 {
        self.queues[queue].generation
    }

    /// Whether the broker has the queue.
    pub fn exists(&self, queue: usize) -> bool {
        self.queues[queue].exists
    }

    /// A handle that was asked for in generation `asked` is open: the generation that it is in.
    pub fn opened(&mut self, queue: usize, asked: u64) -> u64 {
        let ledger = &mut self.queues[queue];
        // The queue was missing and has been made once since: it can be in no other.
        if ledger.generation == asked + 1 && ledger.exists {
            return ledger.generation;
        }
        ledger.blurred |= ledger.generation != asked;
        asked
    }

    // ---- publishes ----

    /// A message was sent under a handle that was opened in `generation`. With `twice`, an earlier
    /// sending of it may have come through unknown to all.
    pub fn sent(&mut self, identity: Identity, queue: usize, generation: u64, twice: bool) {
        let fresh = Publish { queue, generation, fate: Fate::Open, twice };
        let publish = self.publishes.entry(identity).or_insert(fresh);
        publish.twice |= twice;
        (publish.generation, publish.fate) = (generation, Fate::Open);
    }

    /// The broker has taken it.
    pub fn confirmed(&mut self, identity: Identity) {
        if let Some(publish) = self.publishes.get_mut(&identity) {
            publish.fate = Fate::Confirmed;
        }
    }

    /// The broker has not taken it, and nobody sends it again.
    pub fn refused(&mut self, identity: Identity) -> Checked {
        let Some(publish) = self.publishes.get_mut(&identity) else { return Ok(()) };
        if publish.twice {
            return Ok(());
        }
        publish.fate = Fate::Refused;
        let ledger = &self.queues[publish.queue];
        let mut numbers = ledger.by_producer.get(&identity.producer).into_iter().flatten();
        if publish.generation == ledger.generation && numbers.any(|(_, n)| *n == identity.number) {
            return Err(format!("{identity:?} was refused after it had been delivered"));
        }
        Ok(())
    }

    // ---- deliveries ----

    /// Somebody saw a message in a queue, whatever his standing.
    pub fn glimpsed(&self, queue: usize, identity: Identity) -> Checked {
        if identity.producer == GHOST {
            return Err("a message came through that had to be refused".into());
        }
        match self.publishes.get(&identity) {
            None => Err(format!("{identity:?} came through but was never sent")),
            Some(publish) if publish.queue != queue => {
                Err(format!("{identity:?} came through in another queue"))
            }
            Some(publish) if publish.fate == Fate::Refused => {
                Err(format!("{identity:?} came through but was refused"))
            }
            Some(_) => Ok(()),
        }
    }

    /// `holder` got a message over an intact connection.
    pub fn delivered(&mut self, seen: &Seen, holder: Holder, universe: &Universe) -> Checked {
        self.glimpsed(seen.queue, seen.identity)?;
        let ledger = &mut self.queues[seen.queue];
        if ledger.generation != seen.generation {
            return Ok(());
        }
        let twice = self.publishes.get(&seen.identity).is_some_and(|publish| publish.twice);
        let intact = |holder: Holder| universe.net.borrow().intact(holder.line);
        let Seen { sequence, identity, attempts, .. } = *seen;
        if let Some(entry) = ledger.entries.get(&sequence) {
            if let State::Held(other) | State::AckSent(other) = entry.state
                && intact(other)
            {
                let name = &ledger.name;
                let fault = format!("{name}: {sequence} is held by {other:?}, came to {holder:?}");
                self.suspects.insert(other.line, fault);
            }
            if attempts < entry.attempts {
                // The broker has taken it from `holder` since, so it must have ended that.
                let name = &ledger.name;
                let fault = format!("{name}: {sequence} was taken from {holder:?} unsaid");
                self.suspects.insert(holder.line, fault);
                return Ok(());
            }
            let fault = match entry.state {
                _ if entry.identity != identity => "is another message now",
                State::Acked => "was done",
                _ if attempts == entry.attempts => "came again without another attempt counted",
                _ => "",
            };
            if !fault.is_empty() {
                let (name, state) = (&ledger.name, entry.state);
                return Err(format!(
                    "{name}: sequence {sequence} ({identity:?}, attempt {attempts}) {fault}: \
                     {state:?}, {:?}, attempt {}; now to {holder:?}",
                    entry.identity, entry.attempts
                ));
            }
        } else if !twice {
            let numbers = ledger.by_producer.entry(identity.producer).or_default();
            let before = numbers.range(..sequence).next_back().map_or(0, |(_, number)| *number);
            let after = numbers.range(sequence..).next().map_or(u64::MAX, |(_, number)| *number);
            if before >= identity.number || after <= identity.number {
                let name = &ledger.name;
                return Err(format!(
                    "{name}: {identity:?} at {sequence} stands between numbers {before} and {after}"
                ));
            }
            numbers.insert(sequence, identity.number);
        }
        let state = if seen.auto_ack { State::Acked } else { State::Held(holder) };
        ledger.entries.insert(sequence, Entry { identity, state, attempts });
        Ok(())
    }

    /// `holder` sent an ack.
    pub fn ack_sent(&mut self, queue: usize, sequence: u64, holder: Holder) {
        self.settle(queue, sequence, State::Held(holder), State::AckSent(holder));
    }

    /// The broker answered it.
    pub fn acked(&mut self, queue: usize, sequence: u64, holder: Holder) {
        self.settle(queue, sequence, State::AckSent(holder), State::Acked);
    }

    /// `holder` is gone, or about to go, without having acked.
    pub fn let_go(&mut self, queue: usize, sequence: u64, holder: Holder) {
        self.settle(queue, sequence, State::Held(holder), State::Free);
    }

    /// A connection has ended, or the broker has said that it will.
    pub fn ended(&mut self, line: LineId) {
        self.suspects.remove(&line);
    }

    /// A consumer lost what it held while its connection goes on as if nothing was.
    ///
    /// # Errors
    /// If there is one.
    pub fn check_suspects(&self) -> Checked {
        self.suspects.values().next().map_or(Ok(()), |fault| Err(fault.clone()))
    }

    fn settle(&mut self, queue: usize, sequence: u64, from: State, to: State) {
        if let Some(entry) = self.queues[queue].entries.get_mut(&sequence)
            && entry.state == from
        {
            entry.state = to;
        }
    }
}
