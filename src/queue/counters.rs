//! What went in and out of a queue, counted. Plain numbers; formatting happens elsewhere.

/// Counters of one queue. `published` is the sum of every way out and of what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is named as the field does; schema.fbs and docs/PROTOCOL.md say more
pub struct Counters {
    pub published: u64,
    pub published_bytes: u64,
    pub duplicates: u64,
    pub refused: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub returned: u64,
    pub failed: u64,
    pub dead_lettered: u64,
    pub expired: u64,
    pub dropped_oldest: u64,
    pub dropped_newest: u64,
    pub purged: u64,
    pub lost_damaged: u64,
    pub moved_in: u64,
    pub redriven: u64,
}

/// Counters of one subscription: `entered` is the sum of every way out and of what is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // as above
pub struct SubscriptionCounters {
    pub entered: u64,
    pub delivered: u64,
    pub delivered_bytes: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub returned: u64,
    pub failed: u64,
    pub dead_lettered: u64,
    pub expired: u64,
    pub dropped: u64,
    pub purged: u64,
    pub lost_damaged: u64,
    pub redriven: u64,
}

impl SubscriptionCounters {
    /// Messages that left, by every way there is.
    pub fn gone(&self) -> u64 {
        self.acked
            + self.dead_lettered
            + self.expired
            + self.dropped
            + self.purged
            + self.lost_damaged
            + self.redriven
    }
}

impl Counters {
    /// Messages that left, by every way there is.
    pub fn gone(&self) -> u64 {
        self.acked
            + self.dead_lettered
            + self.expired
            + self.dropped_oldest
            + self.dropped_newest
            + self.purged
            + self.lost_damaged
            + self.redriven
    }

    /// Adds another queue's.
    pub fn add(&mut self, other: &Counters) {
        self.published += other.published;
        self.published_bytes += other.published_bytes;
        self.duplicates += other.duplicates;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.delivered_bytes += other.delivered_bytes;
        self.redelivered += other.redelivered;
        self.acked += other.acked;
        self.returned += other.returned;
        self.failed += other.failed;
        self.dead_lettered += other.dead_lettered;
        self.expired += other.expired;
        self.dropped_oldest += other.dropped_oldest;
        self.dropped_newest += other.dropped_newest;
        self.purged += other.purged;
        self.lost_damaged += other.lost_damaged;
        self.moved_in += other.moved_in;
        self.redriven += other.redriven;
    }
}
