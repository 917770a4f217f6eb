//! What a seed draws about subscriptions: how many a queue has, how long leases last, how failed
//! messages wait, when they become dead letters and where those go. Everything is tiny.

use crate::protocol::control::ATTEMPTS_UNLIMITED;
use crate::protocol::wire::{BackoffKind, BackoffT, QueueOptionsT, Start, SubscriptionOptionsT};
use crate::sim::plan::QueuePlan;
use crate::sim::world::Universe;

/// Names a subscription of the run: a queue of the plan, and a subscription of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Feed {
    /// Index of the queue.
    pub queue: usize,
    /// Index among its subscriptions.
    pub nth: usize,
}

/// A subscription of a queue.
pub struct SubscriptionPlan {
    /// Its name.
    pub name: String,
    /// It is made with the queue; else somebody makes it later.
    pub at_start: bool,
    /// Where it begins when it is made later.
    pub start: Start,
    /// Somebody deletes it now and then.
    pub deleted: bool,
}

/// What dead letters of a queue are.
pub struct RulesPlan {
    /// Options of all subscriptions of the queue.
    pub options: SubscriptionOptionsT,
    /// Somebody changes them.
    pub updated: bool,
    /// Index of the queue that gets the dead letters.
    pub graveyard: usize,
}

/// How a queue of the plan comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Clients make it and publish to it.
    Work,
    /// Clients make it; dead letters come to it.
    Graveyard,
    /// The broker makes it when the first dead letter comes.
    SelfMade,
}

impl SubscriptionPlan {
    /// The one that a queue has if nothing else is said.
    pub fn default_only() -> Vec<SubscriptionPlan> {
        let name = "default".to_owned();
        vec![SubscriptionPlan { name, at_start: true, start: Start::Now, deleted: false }]
    }

    /// Those of a queue for work. Only of a `lossy` one are some deleted.
    pub fn draw(universe: &Universe, lossy: bool) -> Vec<SubscriptionPlan> {
        let mut all = SubscriptionPlan::default_only();
        if universe.chance(650) {
            return all;
        }
        for nth in 1..=universe.range(1, 2) {
            all.push(SubscriptionPlan {
                name: format!("sub-{nth}"),
                at_start: universe.chance(500),
                start: if universe.chance(500) { Start::Now } else { Start::Oldest },
                deleted: lossy && universe.chance(500),
            });
        }
        all[0].deleted = lossy && universe.chance(200);
        all
    }
}

/// Options of the subscriptions of a queue.
pub fn draw_options(universe: &Universe, dead_letter: Option<String>) -> SubscriptionOptionsT {
    let expires_after_ms = if universe.chance(100) { universe.range(1000, 2000) } else { 0 };
    SubscriptionOptionsT {
        lease_ms: [0, 100, 400, 3000][universe.index(4)],
        max_attempts: [0, 1, 2, 3, ATTEMPTS_UNLIMITED][universe.index(5)],
        backoff: draw_backoff(universe),
        dead_letter,
        unacked_max: [0, 0, universe.range(1, 8) as u32][universe.index(3)],
        expires_after_ms,
    }
}

/// Queues for the dead letters of the `work` ones, behind these in the plan; and the rules of all.
/// Some broker-made, others shared, small and in need of a grave themselves.
pub fn draw_graves(universe: &Universe, work: &mut [QueuePlan]) -> Vec<QueuePlan> {
    let (count, mut graves) = (work.len(), Vec::new());
    let shared = universe.chance(600);
    for queue in work.iter_mut() {
        if shared && universe.chance(500) {
            queue.rules.options.dead_letter = Some("graves".to_owned());
        } else {
            queue.rules.graveyard = count + graves.len();
            graves.push(grave(format!("{}.dead", queue.name), Role::SelfMade));
        }
    }
    if shared {
        let (graves_nth, last_nth) = (count + graves.len(), count + graves.len() + 1);
        let to_shared = |queue: &&mut QueuePlan| queue.rules.options.dead_letter.is_some();
        work.iter_mut().filter(to_shared).for_each(|queue| queue.rules.graveyard = graves_nth);
        let mut first = grave("graves".to_owned(), Role::Graveyard);
        first.options.messages_max = [0, 3, 20][universe.index(3)];
        first.deleted = universe.chance(200);
        first.rules.options = draw_options(universe, Some("last".to_owned()));
        first.rules.options.expires_after_ms = 0;
        first.rules.graveyard = last_nth;
        graves.push(first);
        let mut last = grave("last".to_owned(), Role::Graveyard);
        last.rules.options.max_attempts = ATTEMPTS_UNLIMITED;
        last.rules.graveyard = last_nth;
        graves.push(last);
    }
    for (nth, grave) in graves.iter_mut().enumerate() {
        if grave.role == Role::SelfMade {
            grave.rules.options.max_attempts = ATTEMPTS_UNLIMITED;
            grave.rules.graveyard = count + nth;
        }
    }
    graves
}

fn grave(name: String, role: Role) -> QueuePlan {
    QueuePlan {
        name,
        options: QueueOptionsT::default(),
        purged: false,
        deleted: false,
        updated: false,
        auto_acks: false,
        role,
        subscriptions: SubscriptionPlan::default_only(),
        rules: RulesPlan { options: SubscriptionOptionsT::default(), updated: false, graveyard: 0 },
    }
}

fn draw_backoff(universe: &Universe) -> Option<Box<BackoffT>> {
    let kind = [
        BackoffKind::None,
        BackoffKind::Fixed,
        BackoffKind::Linear,
        BackoffKind::Exponential,
        BackoffKind::List,
    ][universe.index(5)];
    let list_ms = (kind == BackoffKind::List).then(|| vec![1, 200, universe.range(0, 300) as u32]);
    let backoff = BackoffT {
        kind,
        base_ms: universe.range(1, 100) as u32,
        max_ms: 400,
        jitter: universe.chance(500),
        list_ms,
    };
    // Without any it is a second, doubled.
    universe.chance(900).then(|| Box::new(backoff))
}
