//! How publishers and consumers are doing, in words and numbers.

use crate::client::ClientError;

/// Whether messages flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublisherState {
    /// They do.
    Open,
    /// The connection is lost and being tried again, or the queue is being waited for.
    Reconnecting,
    /// The queue takes nothing for now.
    Blocked {
        /// Why, with the name of the limit.
        reason: String,
    },
    /// Failed for good.
    Failed(ClientError),
}

/// What became of the messages of a publisher.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PublishCounts {
    /// Given to `publish` and `publish_many`.
    pub published: u64,
    /// Confirmed, duplicates and dropped ones included.
    pub confirmed: u64,
    /// Of the confirmed: the broker had them already, from before a reconnect.
    pub duplicates: u64,
    /// Of the confirmed: dropped by the queue's policy `drop_newest`.
    pub dropped: u64,
    /// Refused for good.
    pub failed: u64,
}

/// What the broker answered to acks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckCount {
    /// Messages that are done, or were nacked.
    pub acked: u64,
    /// Messages that were in flight no more: acked before, or given back to the queue.
    pub late: u64,
}

/// What became of the messages of a consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsumeCounts {
    /// Handed out.
    pub received: u64,
    /// Acks given to the broker. What was under way when a connection ended may not have arrived;
    /// those messages come again.
    pub acked: u64,
    /// Nacks given to the broker: failed, given back, rejected.
    pub nacked: u64,
    /// Acks and nacks that came too late: the delivery was of an older connection, or its lease had
    /// ended.
    pub late: u64,
}
