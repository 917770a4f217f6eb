//! What both drivers share: a connection that is made again when it is lost, over any kind of
//! socket, and a producer's bookkeeping.

pub(crate) mod clock;
pub(crate) mod link;
pub(crate) mod producer;

pub(crate) use clock::{Clock, random_u64};
pub(crate) use link::{Dial, Link, Reopen, Setup, Wire};

use crate::client::QueueOptions;
use crate::protocol::control::Request;
use crate::protocol::wire;

/// The request that makes a queue, with this subscription if it is not `default`.
pub(crate) fn create_request(queue: &str, subscription: &str, options: &QueueOptions) -> Request {
    Request::QueueCreate(wire::QueueCreateT {
        name: queue.into(),
        options: Some(Box::new(options.to_wire())),
        subscriptions: (!subscription.is_empty()).then(|| vec![subscription.into()]),
        subscription_options: None,
    })
}

/// The request that makes a subscription of a queue, for all that the queue still holds.
pub(crate) fn create_subscription_request(queue: &str, subscription: &str) -> Request {
    let name = if subscription.is_empty() { "default" } else { subscription };
    Request::SubscriptionCreate(wire::SubscriptionCreateT {
        queue: queue.into(),
        name: name.into(),
        options: None,
        start: wire::Start::Oldest,
    })
}
