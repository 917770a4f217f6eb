//! Requests about subscriptions and dead letters, and what their answers must look like.

use crate::protocol::control::{Answer, Request, subscription_set};
use crate::protocol::error::ErrorCode;
use crate::protocol::wire;
use crate::sim::admin::Asked;
use crate::sim::rules::{self, Feed, Role};
use crate::sim::trace::Cover;
use crate::sim::{Checked, Stage};

/// Asks something.
pub fn draw(stage: &mut Stage) -> (Request, Asked) {
    let universe = &stage.universe;
    let feed = stage.plan.any_feed(universe);
    let (queue, plan) = (name(stage, feed.queue), stage.plan.subscription(feed));
    let of = plan.name.clone();
    match universe.range(0, 39) {
        0..5 => {
            let body = wire::SubscriptionDescribeT { queue, name: of };
            (Request::SubscriptionDescribe(body), Asked::DescribeSubscription)
        }
        5..8 => {
            let body = wire::SubscriptionListT { queue };
            (Request::SubscriptionList(body), Asked::DescribeSubscription)
        }
        8..18 if plan.deleted => {
            let force = universe.chance(500);
            let body = wire::SubscriptionDeleteT { queue, name: of, force };
            (Request::SubscriptionDelete(body), Asked::DeleteSubscription(feed, force))
        }
        18..22 if stage.plan.queues[feed.queue].rules.updated => {
            let options = rules::draw_options(universe, None);
            // Where dead letters go stays as the plan says.
            let set = universe.range(1, 63) as u32 & !subscription_set::DEAD_LETTER;
            let set = set.max(subscription_set::LEASE_MS);
            let options = Box::new(options);
            let body = wire::SubscriptionUpdateT { queue, name: of, options, set };
            (Request::SubscriptionUpdate(body), Asked::UpdateSubscription(feed))
        }
        22..24 if stage.model.feed_exists(feed) && stage.plan.queues[feed.queue].is_stable() => {
            let (Request::SubscriptionCreate(mut body), _) = create(stage, feed) else {
                unreachable!("it makes a subscription")
            };
            body.options = Some(Box::new(wire::SubscriptionOptionsT {
                lease_ms: 77_777,
                ..*body.options.unwrap_or_default()
            }));
            (Request::SubscriptionCreate(body), Asked::CreateSubscription(feed, true))
        }
        24..30 => draw_refusal(stage, feed),
        _ if stage.plan.redrives => redrive(stage),
        _ => {
            let body = wire::SubscriptionListT { queue };
            (Request::SubscriptionList(body), Asked::DescribeSubscription)
        }
    }
}

fn name(stage: &Stage, queue: usize) -> String {
    stage.plan.queues[queue].name.clone()
}

/// The request that makes a subscription of the plan.
pub fn create(stage: &Stage, feed: Feed) -> (Request, Asked) {
    let plan = &stage.plan.queues[feed.queue];
    let subscription = stage.plan.subscription(feed);
    let body = wire::SubscriptionCreateT {
        queue: plan.name.clone(),
        name: subscription.name.clone(),
        options: Some(Box::new(plan.rules.options.clone())),
        start: subscription.start,
    };
    (Request::SubscriptionCreate(body), Asked::CreateSubscription(feed, false))
}

fn redrive(stage: &mut Stage) -> (Request, Asked) {
    let universe = &stage.universe;
    let graves: Vec<usize> = (stage.plan.work_queues..stage.plan.queues.len()).collect();
    let grave = graves[universe.index(graves.len())];
    let count_max = 1 + universe.skewed(60) as u32;
    let filter = universe.chance(100);
    let body = wire::RedriveT {
        queue: name(stage, grave),
        target: None,
        count_max,
        after_sequence: if universe.chance(800) { 0 } else { universe.skewed(50) },
        filter_key: filter.then(|| "dead-letter-reason".to_owned()),
        filter_value: filter.then(|| "rejected".to_owned()),
    };
    stage.model.redrive_asked(grave, &stage.plan);
    (Request::Redrive(body), Asked::Redrive(grave, count_max))
}

fn draw_refusal(stage: &Stage, feed: Feed) -> (Request, Asked) {
    let universe = &stage.universe;
    let plan = &stage.plan.queues[feed.queue];
    let queue = plan.name.clone();
    let is_there = stage.model.exists(feed.queue)
        && plan.is_stable()
        && plan.role == Role::Work
        && !stage.plan.restarts;
    let fresh = |options| wire::SubscriptionCreateT {
        queue: queue.clone(),
        name: "fresh".to_owned(),
        options: Some(Box::new(options)),
        start: wire::Start::Now,
    };
    let none = wire::SubscriptionOptionsT::default;
    match universe.range(0, 3) {
        0 if is_there => {
            let options = match universe.range(0, 3) {
                0 => wire::SubscriptionOptionsT { lease_ms: 99, ..none() },
                1 => wire::SubscriptionOptionsT { max_attempts: 10_001, ..none() },
                2 => wire::SubscriptionOptionsT { expires_after_ms: 1, ..none() },
                _ => wire::SubscriptionOptionsT { dead_letter: Some(queue.clone()), ..none() },
            };
            let body = fresh(options);
            (Request::SubscriptionCreate(body), Asked::Refusal(ErrorCode::BadOption))
        }
        1 if is_there => {
            let name = "absent".to_owned();
            let body = wire::SubscriptionDeleteT { queue, name, force: true };
            (Request::SubscriptionDelete(body), Asked::Refusal(ErrorCode::SubscriptionNotFound))
        }
        2 if is_there => {
            let name = "a b".to_owned();
            let body = wire::SubscriptionCreateT { name, ..fresh(none()) };
            (Request::SubscriptionCreate(body), Asked::Refusal(ErrorCode::BadName))
        }
        _ => {
            let body = wire::RedriveT { queue: "absent".to_owned(), ..wire::RedriveT::default() };
            (Request::Redrive(body), Asked::Refusal(ErrorCode::QueueNotFound))
        }
    }
}

/// Judges the answer to one of these.
///
/// # Errors
/// If it is not an answer to that, or contradicts itself.
pub fn judge(stage: &Stage, asked: &Asked, answer: &Answer) -> Checked {
    let universe = &stage.universe;
    match (asked, answer) {
        (Asked::CreateSubscription(feed, other), Answer::QueueDone(done)) => {
            let plan = &stage.plan.queues[feed.queue];
            if *other && !done.created && plan.is_stable() && !stage.plan.restarts {
                return Err("a subscription was created with the options of another".into());
            }
            if done.created && stage.plan.subscription(*feed).start == wire::Start::Oldest {
                universe.cover(Cover::FromOldest);
            }
        }
        (Asked::UpdateSubscription(_), Answer::QueueDone(_)) => universe.cover(Cover::Updated),
        (Asked::DeleteSubscription(..), Answer::QueueRemoved(_)) => {
            universe.cover(Cover::SubscriptionDeleted);
        }
        (Asked::DescribeSubscription, Answer::SubscriptionDescription(shown)) => {
            judge_description(stage, shown)?;
        }
        (Asked::DescribeSubscription, Answer::SubscriptionListing(listing)) => {
            let all = listing.subscriptions.as_deref().unwrap_or(&[]);
            if all.windows(2).any(|pair| pair[0].name >= pair[1].name) {
                return Err("a listing of subscriptions that is not in order".into());
            }
            all.iter().try_for_each(|shown| judge_description(stage, shown))?;
        }
        (Asked::Redrive(_, count_max), Answer::Redriven(done)) => {
            if done.messages > 0 {
                universe.cover(Cover::Redriven);
            }
            if done.refused > 0 {
                universe.cover(Cover::RedriveRefused);
            }
            let silent = done.reason.as_deref().unwrap_or("").is_empty();
            if done.messages > u64::from(*count_max) || (done.refused > 0 && silent) {
                return Err(format!("a redrive of {count_max} came to {done:?}"));
            }
        }
        _ => return Err(format!("{asked:?} was answered by {answer:?}")),
    }
    Ok(())
}

/// Whether what was asked may be refused with this code.
pub fn may_fail(stage: &Stage, asked: &Asked, code: ErrorCode) -> bool {
    let universe = &stage.universe;
    match (asked, code) {
        (
            Asked::CreateSubscription(..)
            | Asked::UpdateSubscription(_)
            | Asked::DeleteSubscription(..)
            | Asked::DescribeSubscription
            | Asked::Redrive(..),
            ErrorCode::QueueNotFound,
        ) => true,
        (
            Asked::UpdateSubscription(_)
            | Asked::DeleteSubscription(..)
            | Asked::DescribeSubscription
            | Asked::Redrive(..)
            | Asked::Peek(_)
            | Asked::Purge(_),
            ErrorCode::SubscriptionNotFound,
        ) => true,
        // What it begins with is on disk, and is being read.
        (Asked::CreateSubscription(..), ErrorCode::Refilling) => true,
        // They may go while it goes on.
        (Asked::Redrive(..), ErrorCode::QueueDeleted) => true,
        (Asked::DeleteSubscription(_, force), ErrorCode::SubscriptionInUse) => {
            universe.cover(Cover::SubscriptionInUse);
            !force
        }
        (Asked::CreateSubscription(feed, other), ErrorCode::SubscriptionExists) => {
            universe.cover(Cover::SubscriptionExists);
            *other || stage.plan.queues[feed.queue].rules.updated
        }
        _ => false,
    }
}

fn judge_description(stage: &Stage, shown: &wire::SubscriptionDescriptionT) -> Checked {
    let gone = shown.acked
        + shown.dead_lettered
        + shown.expired
        + shown.dropped
        + shown.purged
        + shown.lost
        + shown.redriven;
    let held = shown.ready + shown.in_flight + shown.delayed + shown.dead_lettering;
    if shown.entered != gone + held {
        return Err(format!("a description that does not add up: {shown:?}"));
    }
    if shown.paused_reason.as_ref().is_some_and(|reason| !reason.is_empty()) {
        stage.universe.cover(Cover::Paused);
    }
    if shown.dead_letter_reason.as_ref().is_some_and(|reason| !reason.is_empty()) {
        stage.universe.cover(Cover::DeadLetterWaits);
    }
    Ok(())
}
