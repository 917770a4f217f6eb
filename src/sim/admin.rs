//! Requests about queues, and what their answers must look like.

use crate::protocol::control::{Answer, Request, update_set};
use crate::protocol::error::ErrorCode;
use crate::protocol::frame::Opcode;
use crate::protocol::wire;
use crate::sim::body::recognise;
use crate::sim::lease::SettleAsked;
use crate::sim::link::Link;
use crate::sim::rules::{Feed, Role};
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};
use crate::sim::{letter, requests};

/// What a correlation stands for.
#[derive(Debug)]
pub enum Asked {
    /// The hello.
    Hello,
    /// A ping.
    Ping,
    /// A producer with this handle.
    OpenProducer(u32),
    /// A consumer with this handle.
    OpenConsumer(u32),
    /// The end of a handle.
    Close,
    /// An ack, nack or extend.
    Settle(SettleAsked),
    /// A pull of the consumer with this handle, which knows more.
    Pull(u32),
    /// A pull whose consumer was closed meanwhile.
    Forgotten,
    /// The creation of a queue; whether with other options than it has.
    Create(usize, bool),
    /// New options for a queue.
    Update(usize),
    /// The end of a queue.
    Delete(usize),
    /// The removal of what is ready.
    Purge(usize),
    /// A look at what is ready, in this generation.
    Peek(usize),
    /// A description of the n-th queue.
    Describe,
    /// A list.
    List,
    /// The broker's figures.
    Stats,
    /// Space on disk that nothing needs is to be given back.
    Trim,
    /// The creation of a subscription; whether with other options than it has.
    CreateSubscription(Feed, bool),
    /// New options for a subscription.
    UpdateSubscription(Feed),
    /// The end of a subscription; whether by force.
    DeleteSubscription(Feed, bool),
    /// A description of a subscription, or of all of a queue.
    DescribeSubscription,
    /// A redrive of so many dead letters of a queue at most.
    Redrive(usize, u32),
    /// Something that must be refused with this code.
    Refusal(ErrorCode),
}

/// Asks something.
pub fn ask(stage: &mut Stage, link: &mut Link, correlation: u32) -> Asked {
    let nth = stage.universe.index(stage.plan.queues.len());
    let universe = &stage.universe;
    let plan = &stage.plan.queues[nth];
    let name = plan.name.clone();
    let roll = universe.range(0, 139);
    let (request, asked) = match roll {
        0..10 if plan.purged => {
            (Request::QueuePurge(wire::QueuePurgeT { name, subscription: None }), Asked::Purge(nth))
        }
        10..14 if plan.deleted => {
            let if_empty = universe.chance(300);
            (Request::QueueDelete(wire::QueueDeleteT { name, if_empty }), Asked::Delete(nth))
        }
        14..20 if plan.updated => (draw_update(stage, nth, name), Asked::Update(nth)),
        20..30 => {
            let skip = universe.skewed(20);
            let count_max = universe.skewed(50) as u32 + 1;
            (
                Request::QueuePeek(wire::QueuePeekT { name, count_max, skip, subscription: None }),
                Asked::Peek(nth),
            )
        }
        30..40 => (Request::QueueDescribe(wire::QueueDescribeT { name }), Asked::Describe),
        40..50 => {
            let prefix = universe.chance(500).then(|| "queue-".to_owned());
            let list = wire::QueueListT { prefix, after: None, count_max: 100 };
            (Request::QueueList(list), Asked::List)
        }
        50..58 => (Request::BrokerStats(wire::BrokerStatsT {}), Asked::Stats),
        58..60 => (Request::Trim(wire::TrimT {}), Asked::Trim),
        60..65 => {
            link.send(Opcode::Ping, 0, correlation, &[]);
            return Asked::Ping;
        }
        65..80 => draw_refusal(stage, nth),
        80..85 if !plan.updated && !plan.deleted && stage.model.exists(nth) => {
            let options = wire::QueueOptionsT { messages_max: 77, ..plan.options.clone() };
            let options = Some(Box::new(options));
            (
                Request::QueueCreate(wire::QueueCreateT { name, options, ..Default::default() }),
                Asked::Create(nth, true),
            )
        }
        85..100 if plan.role != Role::SelfMade => create(stage, nth),
        _ => requests::draw(stage),
    };
    link.request(0, correlation, &request);
    asked
}

/// Something that is missing, or at the end of the run something that is still there: the request
/// that mends it.
pub fn odd(stage: &Stage) -> Option<(Request, Asked)> {
    let queues = 0..stage.plan.queues.len();
    if stage.demolishing {
        let nth = queues.into_iter().find(|&nth| stage.model.exists(nth))?;
        let name = stage.plan.queues[nth].name.clone();
        let body = wire::QueueDeleteT { name, if_empty: false };
        return Some((Request::QueueDelete(body), Asked::Delete(nth)));
    }
    let missing =
        |&nth: &usize| stage.plan.queues[nth].role != Role::SelfMade && !stage.model.exists(nth);
    if let Some(nth) = queues.into_iter().find(missing) {
        return Some(create(stage, nth));
    }
    let missing = |feed: &Feed| stage.model.exists(feed.queue) && !stage.model.feed_exists(*feed);
    stage.plan.feeds().find(missing).map(|feed| requests::create(stage, feed))
}

/// The request that makes a queue of the plan.
pub fn create(stage: &Stage, nth: usize) -> (Request, Asked) {
    let plan = &stage.plan.queues[nth];
    let options = Some(Box::new(plan.options.clone()));
    let at_start = plan.subscriptions.iter().filter(|of| of.at_start);
    let subscriptions = Some(at_start.map(|of| of.name.clone()).collect());
    let subscription_options = Some(Box::new(plan.rules.options.clone()));
    let name = plan.name.clone();
    let body = wire::QueueCreateT { name, options, subscriptions, subscription_options };
    (Request::QueueCreate(body), Asked::Create(nth, false))
}

fn draw_update(stage: &Stage, nth: usize, name: String) -> Request {
    let universe = &stage.universe;
    let on_full = [
        wire::OnFull::Block,
        wire::OnFull::Reject,
        wire::OnFull::DropOldest,
        wire::OnFull::DropNewest,
    ][universe.index(4)];
    let options = wire::QueueOptionsT {
        messages_max: universe.skewed(100),
        bytes_max: [0, 30_000][universe.index(2)],
        on_full,
        ..stage.plan.queues[nth].options.clone()
    };
    let set = universe.range(1, 7) as u32;
    Request::QueueUpdate(wire::QueueUpdateT { name, options: Box::new(options), set })
}

fn draw_refusal(stage: &Stage, nth: usize) -> (Request, Asked) {
    let universe = &stage.universe;
    let bad = ["", "$system", "a b", "slash/slash", "\u{e4}"][universe.index(5)].to_owned();
    let bad = if universe.chance(200) { "x".repeat(201) } else { bad };
    let absent = "absent".to_owned();
    let options = || Some(Box::new(wire::QueueOptionsT::default()));
    match universe.range(0, 5) {
        0 => {
            let body = wire::QueueCreateT { name: bad, options: options(), ..Default::default() };
            (Request::QueueCreate(body), Asked::Refusal(ErrorCode::BadName))
        }
        1 => {
            let body = wire::QueueDescribeT { name: absent };
            (Request::QueueDescribe(body), Asked::Refusal(ErrorCode::QueueNotFound))
        }
        2 => {
            let body = wire::QueueDeleteT { name: absent, if_empty: false };
            (Request::QueueDelete(body), Asked::Refusal(ErrorCode::QueueNotFound))
        }
        3 => {
            let options = Some(Box::new(wire::QueueOptionsT {
                durable: true,
                ..*options().unwrap_or_default()
            }));
            let body = wire::QueueCreateT { name: absent, options, ..Default::default() };
            (Request::QueueCreate(body), Asked::Refusal(ErrorCode::Unsupported))
        }
        4 if stage.model.exists(nth) && !stage.plan.queues[nth].deleted => {
            let name = stage.plan.queues[nth].name.clone();
            let options = Box::new(wire::QueueOptionsT::default());
            let set = update_set::KNOWN + 1;
            let body = wire::QueueUpdateT { name, options, set };
            (Request::QueueUpdate(body), Asked::Refusal(ErrorCode::BadOption))
        }
        _ => {
            let body = wire::QueuePurgeT { name: absent, subscription: None };
            (Request::QueuePurge(body), Asked::Refusal(ErrorCode::QueueNotFound))
        }
    }
}

/// Judges the answer to what was asked.
///
/// # Errors
/// If it is not an answer to that, or contradicts itself.
pub fn judge(stage: &mut Stage, asked: Asked, answer: Answer) -> Checked {
    let universe = &stage.universe;
    if let Answer::Error(error) = &answer {
        return judge_error(stage, &asked, error);
    }
    match (&asked, &answer) {
        (Asked::Create(nth, other), Answer::QueueDone(done)) => {
            // Another generation may have come and gone in between.
            let changed = stage.plan.queues[*nth].deleted || stage.plan.restarts;
            if *other && !done.created && !changed {
                return Err("a queue was created with the options of another".into());
            }
        }
        (Asked::Update(_), Answer::QueueDone(_)) => universe.cover(Cover::Updated),
        (Asked::Delete(_), Answer::QueueRemoved(_)) => {}
        (Asked::Purge(_), Answer::QueueRemoved(removed)) => {
            if removed.messages > 0 {
                universe.cover(Cover::Purge);
            }
        }
        (Asked::Peek(nth), Answer::PeekedMessages(peeked)) => judge_peek(stage, *nth, peeked)?,
        (Asked::Describe, Answer::QueueDescription(description)) => {
            universe.cover(Cover::Described);
            judge_description(description)?;
        }
        (Asked::List, Answer::QueueListing(listing)) => {
            let queues = listing.queues.as_deref().unwrap_or(&[]);
            if queues.windows(2).any(|pair| pair[0].name >= pair[1].name) {
                return Err("a listing that is not in order".into());
            }
            queues.iter().try_for_each(judge_description)?;
        }
        (Asked::Stats, Answer::Stats(stats)) => {
            if stats.connections_refused > 0 {
                universe.cover(Cover::ConnectionsMax);
            }
            // The shards are asked one after the other, and what connections hold back is not taken
            // from the budget first.
            let limit = stats.memory_limit_bytes;
            let most = limit + limit / 10 * u64::from(stats.shards) + (1 << 20);
            if stats.memory_used_bytes > most {
                return Err(format!("over the memory limit: {stats:?}"));
            }
        }
        (Asked::Trim, Answer::Trimmed(done)) => {
            if done.released_bytes > 0 {
                universe.cover(Cover::Trimmed);
            }
        }
        (asked, answer) => return requests::judge(stage, asked, answer),
    }
    Ok(())
}

fn judge_error(stage: &Stage, asked: &Asked, error: &wire::ErrorT) -> Checked {
    let universe = &stage.universe;
    let code = ErrorCode::from_u16(error.code);
    let code = code.ok_or_else(|| format!("error code {}", error.code))?;
    let wanted = match (asked, code) {
        (Asked::Refusal(wanted), code) if *wanted == code => {
            match code {
                ErrorCode::BadName => universe.cover(Cover::BadName),
                ErrorCode::QueueNotFound => universe.cover(Cover::QueueNotFound),
                ErrorCode::Unsupported => universe.cover(Cover::Unsupported),
                _ => {}
            }
            true
        }
        (_, ErrorCode::MemoryLimit) => {
            universe.cover(Cover::MemoryLimit);
            true
        }
        (_, ErrorCode::Draining) => true,
        (Asked::Peek(_) | Asked::Trim, ErrorCode::Refilling) => true,
        (Asked::Create(nth, other), ErrorCode::QueueExists) => {
            universe.cover(Cover::QueueExists);
            // Its subscriptions count as well, and they change.
            let plan = &stage.plan.queues[*nth];
            let changed = plan.updated || plan.subscriptions.len() > 1 || !plan.is_stable();
            *other || changed
        }
        (Asked::Hello, ErrorCode::ConnectionsMax | ErrorCode::Timeout) => !stage.plan.calm,
        (Asked::Delete(_), ErrorCode::QueueNotEmpty) => true,
        (
            Asked::Peek(_)
            | Asked::Describe
            | Asked::Update(_)
            | Asked::Purge(_)
            | Asked::Delete(_),
            ErrorCode::QueueNotFound,
        ) => true,
        (asked, code) => requests::may_fail(stage, asked, code),
    };
    match wanted {
        true => Ok(()),
        false => Err(format!("{asked:?} was refused: {code} {:?}", error.text)),
    }
}

fn judge_peek(stage: &Stage, nth: usize, peeked: &wire::PeekedMessagesT) -> Checked {
    let messages = peeked.messages.as_deref().unwrap_or(&[]);
    if !messages.is_empty() {
        stage.universe.cover(Cover::Peeked);
    }
    if messages.windows(2).any(|pair| pair[0].sequence >= pair[1].sequence) {
        return Err("a peek that is not in order".into());
    }
    for message in messages {
        let body = message.body.as_deref().unwrap_or(&[]);
        let properties = message.properties.as_deref().unwrap_or(&[]);
        if body.len() as u64 == message.body_bytes {
            let identity = recognise(properties, body)?;
            let letter = letter::read(properties)?;
            stage.model.glimpsed(nth, identity, letter.as_ref(), &stage.plan)?;
        }
    }
    Ok(())
}

pub(super) fn judge_description(shown: &wire::QueueDescriptionT) -> Checked {
    let counters = &shown.counters;
    let gone = counters.acked
        + counters.dead_lettered
        + counters.expired
        + counters.dropped_oldest
        + counters.dropped_newest
        + counters.purged
        + counters.lost_damaged
        + counters.redriven;
    let held = shown.ready + shown.in_flight + shown.delayed + shown.dead_lettering;
    // With several subscriptions more messages leave than came.
    match shown.subscriptions != 1 || counters.published <= gone + held {
        true => Ok(()),
        false => Err(format!("a description that does not add up: {shown:?}")),
    }
}
