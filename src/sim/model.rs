//! The naive model of what a broker owes its clients. It is told what clients send and see;
//! whatever does not fit is a violation. `audit` compares it with the broker's queues.
//!
//! Per message it knows what became of the publish, per subscription and sequence who has it. It
//! never guesses: where a broken connection or the end of a lease hides the broker's answer, both
//! outcomes are allowed, and nothing else.

use crate::base::slot_map::Key;
use crate::protocol::control::ATTEMPTS_UNLIMITED;
use crate::protocol::hot::NackKind;
use crate::sim::Checked;
use crate::sim::body::{GHOST, Identity};
use crate::sim::letter::Letter;
use crate::sim::net::LineId;
use crate::sim::plan::{Plan, QueuePlan};
use crate::sim::rules::{Feed, Role};
use crate::sim::trace::Cover;
use crate::sim::world::Universe;
use std::collections::{BTreeMap, BTreeSet};

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
    /// When it was sent for the first time.
    pub sent_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Held(Holder),
    /// An ack is on its way.
    AckSent(Holder),
    /// The broker said that it is done, or it needed no ack.
    Acked,
    /// Its consumer gave it up, by whichever way, without acking it.
    Free,
    /// It was seen as a dead letter.
    Buried,
}

pub(super) struct Entry {
    pub identity: Identity,
    pub state: State,
    attempts: u16,
    /// The lease cannot end earlier.
    may_end_ns: u64,
    /// The delay that its consumer asked for is not over earlier.
    not_before_ns: u64,
    /// Failures that the broker has answered.
    failures: u32,
}

/// What is known of a subscription.
#[derive(Default)]
pub(super) struct Shelf {
    /// Whether the broker has it now, and by which key.
    pub key: Option<Key>,
    /// How often it was made or went.
    pub generation: u64,
    /// When it was seen to be there.
    pub created_ns: u64,
    /// It was made with its queue.
    pub from_start: bool,
    pub entries: BTreeMap<u64, Entry>,
    /// Sequence and number of each producer's messages.
    pub by_producer: BTreeMap<u32, BTreeMap<u64, u64>>,
    /// What was rejected, and what was said of each sequence.
    pub rejected: BTreeSet<u64>,
    pub texts: BTreeMap<u64, BTreeSet<u64>>,
    /// Dead letters of it that were seen.
    pub buried: u64,
    pub last_seen: Vec<u64>,
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
    pub shelves: Vec<Shelf>,
    /// A handle was opened and nobody can tell in which generation: less is known for sure.
    pub blurred: bool,
    /// Somebody asked for messages to be moved here from where its dead letters are.
    pub redriven: bool,
    /// Dead letters that were seen here: where each comes from, and its sequence here.
    pub letters: BTreeMap<(Feed, u64), u64>,
    pub published: u64,
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
    /// The subscription.
    pub feed: Feed,
    /// The subscription's generation when the consumer asked to be opened.
    pub generation: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Whose it is.
    pub identity: Identity,
    /// What it says of itself, if it is a dead letter.
    pub letter: Option<Letter>,
    /// As the broker counts them.
    pub attempts: u16,
    /// Delivered means done.
    pub auto_ack: bool,
    /// The lease cannot end earlier.
    pub may_end_ns: u64,
}

/// Names a delivery: one consumer may get a message twice, when its lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// The message.
    pub sequence: u64,
    /// Which of its deliveries.
    pub attempts: u16,
}

/// A nack that the broker has surely carried out.
pub struct Nacked {
    /// The subscription, and its generation.
    pub feed: Feed,
    /// See above.
    pub generation: u64,
    /// The delivery that was nacked.
    pub at: At,
    /// What became of it.
    pub kind: NackKind,
    /// A delay that was asked for is not over earlier.
    pub not_before_ns: u64,
}

impl Model {
    /// A model of queues with these names.
    pub fn new(plan: &Plan) -> Model {
        let ledger = |queue: &QueuePlan| Ledger {
            name: queue.name.clone(),
            shelves: queue.subscriptions.iter().map(|_| Shelf::default()).collect(),
            ..Ledger::default()
        };
        Model {
            queues: plan.queues.iter().map(ledger).collect(),
            publishes: BTreeMap::new(),
            suspects: BTreeMap::new(),
        }
    }

    /// How often a queue was made or went.
    pub fn generation(&self, queue: usize) -> u64 {
        self.queues[queue].generation
    }

    /// How often a subscription was made or went.
    pub fn feed_generation(&self, feed: Feed) -> u64 {
        self.shelf(feed).generation
    }

    /// Whether the broker has the queue.
    pub fn exists(&self, queue: usize) -> bool {
        self.queues[queue].exists
    }

    /// Whether the broker has the subscription.
    pub fn feed_exists(&self, feed: Feed) -> bool {
        self.shelf(feed).key.is_some()
    }

    fn shelf(&self, feed: Feed) -> &Shelf {
        &self.queues[feed.queue].shelves[feed.nth]
    }

    fn shelf_mut(&mut self, feed: Feed) -> &mut Shelf {
        &mut self.queues[feed.queue].shelves[feed.nth]
    }

    /// A producer that was asked for in generation `asked` is open: the generation that it is in.
    pub fn opened(&mut self, queue: usize, asked: u64) -> u64 {
        let ledger = &mut self.queues[queue];
        // The queue was missing and has been made once since: it can be in no other.
        if ledger.generation == asked + 1 && ledger.exists {
            return ledger.generation;
        }
        ledger.blurred |= ledger.generation != asked;
        asked
    }

    /// As [`Model::opened`], for a consumer.
    pub fn feed_opened(&mut self, feed: Feed, asked: u64) -> u64 {
        let shelf = self.shelf(feed);
        if shelf.generation == asked + 1 && shelf.key.is_some() {
            return shelf.generation;
        }
        let blurred = shelf.generation != asked;
        self.queues[feed.queue].blurred |= blurred;
        asked
    }

    // ---- publishes ----

    /// A message was sent under a handle that was opened in `generation`. With `twice`, an earlier
    /// sending of it may have come through unknown to all.
    pub fn sent(
        &mut self,
        identity: Identity,
        (queue, generation): (usize, u64),
        twice: bool,
        universe: &Universe,
    ) {
        let sent_ns = universe.mono().0;
        let fresh = Publish { queue, generation, fate: Fate::Open, twice, sent_ns };
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
        let seen = ledger.shelves.iter().filter_map(|of| of.by_producer.get(&identity.producer));
        let mut numbers = seen.flatten();
        if publish.generation == ledger.generation && numbers.any(|(_, n)| *n == identity.number) {
            return Err(format!("{identity:?} was refused after it had been delivered"));
        }
        Ok(())
    }

    /// When a message was first sent.
    pub fn sent_ns(&self, identity: Identity) -> u64 {
        self.publishes.get(&identity).map_or(0, |publish| publish.sent_ns)
    }

    /// Somebody asked for the dead letters in `queue` to be moved back.
    pub fn redrive_asked(&mut self, queue: usize, plan: &Plan) {
        for (ledger, of) in self.queues.iter_mut().zip(&plan.queues) {
            ledger.redriven |= of.rules.graveyard == queue;
        }
    }

    // ---- deliveries ----

    /// Somebody saw a message in a queue, whatever his standing.
    pub fn glimpsed(
        &self,
        queue: usize,
        identity: Identity,
        letter: Option<&Letter>,
        plan: &Plan,
    ) -> Checked {
        if identity.producer == GHOST {
            return Err("a message came through that had to be refused".into());
        }
        match self.publishes.get(&identity) {
            None => return Err(format!("{identity:?} came through but was never sent")),
            Some(publish) if !plan.may_reach(publish.queue, queue) => {
                return Err(format!("{identity:?} came through in another queue"));
            }
            Some(publish) if publish.fate == Fate::Refused => {
                return Err(format!("{identity:?} came through but was refused"));
            }
            Some(_) => {}
        }
        match (plan.queues[queue].role, letter) {
            (Role::Work, Some(letter)) => Err(format!("{identity:?} came back as {letter:?}")),
            (Role::SelfMade, None) => Err(format!("{identity:?} does not say why it is dead")),
            (_, Some(letter)) => origin(plan, queue, letter).map(|_| ()),
            _ => Ok(()),
        }
    }

    /// `holder` got a message over an intact connection.
    pub fn delivered(
        &mut self,
        seen: &Seen,
        holder: Holder,
        plan: &Plan,
        universe: &Universe,
    ) -> Checked {
        self.glimpsed(seen.feed.queue, seen.identity, seen.letter.as_ref(), plan)?;
        if let Some(letter) = &seen.letter {
            self.buried(seen, letter, plan, universe)?;
        }
        let ledger = &mut self.queues[seen.feed.queue];
        let shelf = &mut ledger.shelves[seen.feed.nth];
        if shelf.generation != seen.generation {
            return Ok(());
        }
        let twice = self.publishes.get(&seen.identity).is_some_and(|publish| publish.twice);
        let intact = |holder: Holder| universe.net.borrow().intact(holder.line);
        let Seen { sequence, identity, attempts, may_end_ns, .. } = *seen;
        let (name, now_ns) = (&ledger.name, universe.mono().0);
        let mut failures = 0;
        if let Some(entry) = shelf.entries.get(&sequence) {
            let is_stale = attempts < entry.attempts
                || (entry.state == State::Buried && attempts == entry.attempts);
            if is_stale {
                // The lease has ended before the news of it came; or the broker has taken it from
                // `holder` since, so it must have ended that.
                if now_ns < may_end_ns {
                    let fault = format!("{name}: {sequence} was taken from {holder:?} unsaid");
                    self.suspects.insert(holder.line, fault);
                }
                return Ok(());
            }
            if let State::Held(other) | State::AckSent(other) = entry.state
                && intact(other)
            {
                if now_ns < entry.may_end_ns {
                    let fault =
                        format!("{name}: {sequence} is held by {other:?}, came to {holder:?}");
                    self.suspects.insert(other.line, fault);
                }
                universe.cover(Cover::LeaseEnded);
            }
            let fault = entry.fault(seen, plan.queues[seen.feed.queue].failures_max(), now_ns);
            if !fault.is_empty() {
                let state = entry.state;
                return Err(format!(
                    "{name}: sequence {sequence} ({identity:?}, attempt {attempts}) {fault}: \
                     {state:?}, {:?}, attempt {}, {} failures; now to {holder:?}",
                    entry.identity, entry.attempts, entry.failures
                ));
            }
            failures = entry.failures;
        } else if !twice && plan.queues[seen.feed.queue].role == Role::Work && !ledger.redriven {
            let numbers = shelf.by_producer.entry(identity.producer).or_default();
            let before = numbers.range(..sequence).next_back().map_or(0, |(_, number)| *number);
            let after = numbers.range(sequence..).next().map_or(u64::MAX, |(_, number)| *number);
            if before >= identity.number || after <= identity.number {
                return Err(format!(
                    "{name}: {identity:?} at {sequence} stands between numbers {before} and {after}"
                ));
            }
            numbers.insert(sequence, identity.number);
        }
        let state = if seen.auto_ack { State::Acked } else { State::Held(holder) };
        let not_before_ns = 0;
        let entry = Entry { identity, state, attempts, may_end_ns, not_before_ns, failures };
        shelf.entries.insert(sequence, entry);
        Ok(())
    }

    /// A dead letter was seen in its grave: what is known of it where it comes from.
    fn buried(
        &mut self,
        seen: &Seen,
        letter: &Letter,
        plan: &Plan,
        universe: &Universe,
    ) -> Checked {
        let feed = origin(plan, seen.feed.queue, letter)?;
        universe.cover(Cover::DeadLetter);
        if letter.hops > 1 {
            universe.cover(Cover::DeadLetterAgain);
        }
        let of = &plan.queues[feed.queue];
        let most = of.failures_max();
        if !letter.rejected && !of.rules.updated && most.is_none_or(|n| letter.attempts < n.into())
        {
            return Err(format!("{letter:?}, where {most:?} failures are enough"));
        }
        if !of.is_stable() || plan.restarts {
            return Ok(());
        }
        let generation = seen.generation;
        let ledger = &mut self.queues[seen.feed.queue];
        let is_current = ledger.shelves[seen.feed.nth].generation == generation;
        if is_current {
            match ledger.letters.insert((feed, letter.sequence), seen.sequence) {
                None => self.shelf_mut(feed).buried += 1,
                Some(at) if at != seen.sequence => {
                    return Err(format!("{letter:?} stands at {at} and at {}", seen.sequence));
                }
                Some(_) => {}
            }
        }
        let shelf = self.shelf_mut(feed);
        if letter.rejected && !shelf.rejected.contains(&letter.sequence) {
            return Err(format!("{letter:?} was rejected by nobody"));
        }
        let said = shelf.texts.get(&letter.sequence);
        let is_said = |text: &str| {
            let number = text.strip_prefix("nack ").and_then(|number| number.parse().ok());
            number.is_some_and(|number: u64| said.is_some_and(|said| said.contains(&number)))
        };
        if letter.error.as_ref().is_some_and(|text| !is_said(text) && text != "lease expired") {
            return Err(format!("{letter:?}: nobody said that, but {said:?}"));
        }
        let Some(entry) = shelf.entries.get_mut(&letter.sequence) else { return Ok(()) };
        let held = matches!(entry.state, State::Held(by) if universe.net.borrow().intact(by.line));
        let fault = match entry.state {
            _ if entry.identity != seen.identity => "was another message",
            State::Acked => "was done",
            _ if letter.attempts < entry.attempts.into() => "was delivered more often",
            _ if held && universe.mono().0 < entry.may_end_ns => "is held",
            _ => "",
        };
        if !fault.is_empty() {
            return Err(format!("{letter:?} {fault}: {:?} {:?}", entry.identity, entry.state));
        }
        entry.state = State::Buried;
        entry.attempts = u16::try_from(letter.attempts).unwrap_or(u16::MAX);
        Ok(())
    }

    /// `holder` sent an ack.
    pub fn ack_sent(&mut self, feed: Feed, at: At, holder: Holder) {
        self.settle(feed, at, State::Held(holder), State::AckSent(holder));
    }

    /// The broker answered it.
    pub fn acked(&mut self, feed: Feed, at: At, holder: Holder) {
        self.settle(feed, at, State::AckSent(holder), State::Acked);
    }

    /// The broker answered it: it came too late.
    pub fn ack_late(&mut self, feed: Feed, at: At, holder: Holder) {
        self.settle(feed, at, State::AckSent(holder), State::Free);
    }

    /// `holder` is gone, or about to go, without having acked.
    pub fn let_go(&mut self, feed: Feed, at: At, holder: Holder) {
        self.settle(feed, at, State::Held(holder), State::Free);
    }

    /// `holder` sent a nack; `text` is the number that it gave as the reason.
    pub fn nack_sent(
        &mut self,
        (feed, generation): (Feed, u64),
        at: At,
        holder: Holder,
        kind: NackKind,
        text: Option<u64>,
    ) {
        let sequence = at.sequence;
        self.settle(feed, at, State::Held(holder), State::Free);
        let shelf = self.shelf_mut(feed);
        if shelf.generation != generation {
            return;
        }
        if kind == NackKind::Rejected {
            shelf.rejected.insert(sequence);
        }
        shelf.texts.entry(sequence).or_default().extend(text);
    }

    /// The broker has surely carried it out.
    ///
    /// # Errors
    /// If a rejected message has come again meanwhile.
    pub fn nacked(&mut self, nacked: &Nacked) -> Checked {
        let shelf = self.shelf_mut(nacked.feed);
        if shelf.generation != nacked.generation {
            return Ok(());
        }
        let Some(entry) = shelf.entries.get_mut(&nacked.at.sequence) else { return Ok(()) };
        match nacked.kind {
            NackKind::Failed => entry.failures += 1,
            NackKind::Rejected if entry.attempts > nacked.at.attempts => {
                return Err(format!("{:?} came again after it was rejected", nacked.at));
            }
            NackKind::Rejected => entry.not_before_ns = u64::MAX,
            NackKind::Returned => {}
        }
        if nacked.kind == NackKind::Failed && entry.attempts == nacked.at.attempts {
            entry.not_before_ns = nacked.not_before_ns;
        }
        Ok(())
    }

    /// `holder` knows that its lease cannot end before.
    pub fn lease(&mut self, feed: Feed, at: At, holder: Holder, may_end_ns: u64) {
        let entry = self.shelf_mut(feed).entries.get_mut(&at.sequence);
        let held = State::Held(holder);
        if let Some(entry) = entry
            && (entry.state, entry.attempts) == (held, at.attempts)
        {
            entry.may_end_ns = may_end_ns;
        }
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

    fn settle(&mut self, feed: Feed, at: At, from: State, to: State) {
        if let Some(entry) = self.shelf_mut(feed).entries.get_mut(&at.sequence)
            && (entry.state, entry.attempts) == (from, at.attempts)
        {
            entry.state = to;
        }
    }
}

impl Entry {
    /// Why it must not be delivered as it was `seen`; empty if it may. So many failures are enough.
    fn fault(&self, seen: &Seen, failures_max: Option<u32>, now_ns: u64) -> &'static str {
        match self.state {
            _ if self.identity != seen.identity => "is another message now",
            State::Acked => "was done",
            State::Buried => "was a dead letter",
            _ if seen.attempts == self.attempts => "came again without another attempt counted",
            _ if now_ns < self.not_before_ns => "came before its delay was over",
            _ if failures_max.is_some_and(|most| self.failures >= most) => "failed often enough",
            _ => "",
        }
    }
}

impl QueuePlan {
    /// Failures after which a message is a dead letter, where that is known.
    fn failures_max(&self) -> Option<u32> {
        match self.rules.options.max_attempts {
            _ if self.rules.updated => None,
            0 => Some(crate::limits::ATTEMPTS_DEFAULT),
            ATTEMPTS_UNLIMITED => None,
            most => Some(most),
        }
    }
}

/// Where a dead letter in `grave` comes from.
fn origin(plan: &Plan, grave: usize, letter: &Letter) -> Checked<Feed> {
    let queue = plan.queues.iter().position(|queue| queue.name == letter.queue);
    let queue = queue.filter(|&queue| plan.queues[queue].rules.graveyard == grave);
    let queue = queue.ok_or_else(|| format!("{letter:?} in {}", plan.queues[grave].name))?;
    let mut names = plan.queues[queue].subscriptions.iter();
    let nth = names.position(|of| of.name == letter.subscription);
    let nth = nth.ok_or_else(|| format!("{letter:?}: no such subscription"))?;
    Ok(Feed { queue, nth })
}
