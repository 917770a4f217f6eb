//! What the broker tells of itself: queues, subscriptions, statistics.

use crate::limits::LIST_COUNT_MAX;
use crate::protocol::control::Answer;
use crate::protocol::wire;
use crate::queue::Queue;
use crate::queue::counters::Counters;
use crate::queue::memory::Account;
use crate::queue::subscription::Subscription;
use crate::shard::core::Core;
use crate::shard::deliver::blocked_reason;
use crate::shard::options::{Refused, wire_queue_options, wire_subscription_options};
use crate::shard::spill::state_text;
use std::ops::Bound;

impl Core {
    pub fn list_queues(&self, body: &wire::QueueListT) -> Result<Option<Answer>, Refused> {
        let prefix = body.prefix.as_deref().unwrap_or_default();
        let after = body.after.as_deref().unwrap_or_default();
        let start = if after < prefix { prefix } else { after };
        let count_max = body.count_max.clamp(1, LIST_COUNT_MAX) as usize;
        let mut names = self
            .names
            .range::<str, _>((Bound::Included(start), Bound::Unbounded))
            .filter(|(name, _)| after.is_empty() || &***name > after)
            .take_while(|(name, _)| name.starts_with(prefix));
        let queues: Vec<_> = names
            .by_ref()
            .take(count_max)
            .filter_map(|(_, key)| Some(self.queue_description(&self.queues.at(*key)?.queue)))
            .collect();
        let more = names.next().is_some();
        let body = wire::QueueListingT { queues: Some(queues), more };
        Ok(Some(Answer::QueueListing(body)))
    }

    pub fn describe_queue(&self, name: &str) -> Result<Option<Answer>, Refused> {
        let slot = self.queues.at(self.find_queue(name)?);
        Ok(slot.map(|slot| Answer::QueueDescription(self.queue_description(&slot.queue))))
    }

    pub fn list_subscriptions(&self, queue: &str) -> Result<Option<Answer>, Refused> {
        let Some(slot) = self.queues.at(self.find_queue(queue)?) else { return Ok(None) };
        let queue = &slot.queue;
        let mut subscriptions: Vec<_> = queue
            .subscriptions()
            .map(|(_, subscription)| subscription_description(queue, subscription))
            .collect();
        subscriptions.sort_by(|left, right| left.name.cmp(&right.name));
        let body = wire::SubscriptionListingT { subscriptions: Some(subscriptions) };
        Ok(Some(Answer::SubscriptionListing(body)))
    }

    pub fn describe_subscription(
        &self,
        body: &wire::SubscriptionDescribeT,
    ) -> Result<Option<Answer>, Refused> {
        let key = self.find_queue(&body.queue)?;
        let subscription = self.find_subscription(key, &body.name)?;
        let Some(slot) = self.queues.at(key) else { return Ok(None) };
        let described = slot
            .queue
            .subscription(subscription)
            .map(|subscription| subscription_description(&slot.queue, subscription));
        Ok(described.map(Answer::SubscriptionDescription))
    }

    pub fn stats_answer(&self) -> Answer {
        let mut counters = self.deleted;
        let mut stats = wire::StatsT {
            server_version: Some(self.config.server_version.clone()),
            uptime_ms: self.now.mono.ms_since(self.started.mono),
            shards: self.config.shards,
            connections: (self.connections.len()
                - self.remotes.iter().map(|remotes| remotes.len()).sum::<usize>())
                as u32,
            connections_accepted: self.stats.connections_accepted,
            connections_shed: self.stats.connections_shed,
            connections_refused: self.stats.connections_refused,
            protocol_errors: self.stats.protocol_errors,
            queues: self.queues.len() as u32,
            memory_limit_bytes: self.memory.budget.limit_bytes(),
            memory_used_bytes: self.memory.budget.used_bytes(),
            memory_chunk_bytes: self.memory.budget.used_by(Account::Chunks),
            ticks: self.stats.ticks,
            bytes_in: self.stats.bytes_in,
            bytes_out: self.stats.bytes_out,
            queues_deleted_messages: self.stats.deleted_messages,
            crossed_bytes: self.post.as_ref().map_or(0, |post| post.crossed_bytes),
            ..wire::StatsT::default()
        };
        self.add_disk_stats(&mut stats);
        for (_, slot) in self.queues.iter() {
            let queue = &slot.queue;
            counters.add(queue.counters());
            stats.ready += queue.ready();
            stats.in_flight += queue.in_flight();
            stats.delayed += queue.delayed();
            stats.spilled_messages += queue.spilled_messages();
            stats.spilled_bytes += queue.spilled_bytes();
            stats.refilling += queue.refilling() as u64;
            stats.dead_lettering += queue.dead_lettering();
            stats.subscriptions += queue.subscription_count() as u32;
            stats.producers += queue.producer_count() as u32;
            stats.consumers += queue.consumer_count() as u32;
            stats.queues_blocked += u32::from(queue.blocked().is_some());
        }
        stats.counters = Some(Box::new(wire_counters(&counters)));
        Answer::Stats(stats)
    }

    fn add_disk_stats(&self, stats: &mut wire::StatsT) {
        let disk = self.spill.stats();
        stats.chunks_in_memory = self.memory.used_chunks() as u64;
        stats.disk_limit_bytes = self.spill.disk_limit_bytes();
        stats.disk_allocated_bytes = disk.allocated_bytes;
        stats.disk_used_bytes = u64::from(disk.slots_used) * disk.slot_bytes;
        stats.disk_free_bytes = self.spill.free_bytes();
        stats.disk_writes = self.spill.writes;
        stats.disk_reads = self.spill.reads;
        stats.disk_written_bytes = disk.written_bytes;
        stats.disk_read_bytes = disk.read_bytes;
        stats.disk_write_errors = disk.write_errors;
        stats.disk_read_errors = disk.read_errors;
        stats.spill_state = Some(state_text(self.spill.shown_state()));
        let journals = self.stores.figures();
        stats.journal_segments = journals.segments;
        stats.journal_bytes = journals.bytes;
        stats.journal_groups = journals.counters.groups;
        stats.journal_records = journals.counters.records;
        stats.journal_written_bytes = journals.counters.group_bytes;
        stats.journal_padding_bytes = journals.counters.padding_bytes;
        stats.journal_state = Some(journals.state);
    }

    fn queue_description(&self, queue: &Queue) -> wire::QueueDescriptionT {
        let (first_sequence, next_sequence) = queue.sequences();
        wire::QueueDescriptionT {
            name: queue.name().to_owned(),
            options: Box::new(wire_queue_options(queue.options())),
            ready: queue.ready(),
            in_flight: queue.in_flight(),
            delayed: queue.delayed(),
            bytes: queue.bytes(),
            memory_bytes: queue.memory_bytes(),
            spilled_bytes: queue.spilled_bytes(),
            counters: Box::new(wire_counters(queue.counters())),
            producers: queue.producer_count() as u32,
            consumers: queue.consumer_count() as u32,
            blocked: queue.blocked().is_some(),
            blocked_reason: queue.blocked().map(blocked_reason),
            created_wall_us: queue.created().0,
            shard: self.config.shard,
            first_sequence,
            next_sequence,
            dead_lettering: queue.dead_lettering(),
            subscriptions: queue.subscription_count() as u32,
            spilled_messages: queue.spilled_messages(),
            refilling: queue.refilling() as u32,
        }
    }
}

fn subscription_description(
    queue: &Queue,
    subscription: &Subscription,
) -> wire::SubscriptionDescriptionT {
    let counters = subscription.counters();
    wire::SubscriptionDescriptionT {
        queue: queue.name().to_owned(),
        name: subscription.name().to_owned(),
        options: Box::new(wire_subscription_options(subscription.options())),
        ready: subscription.ready(),
        in_flight: subscription.in_flight(),
        delayed: subscription.delayed(),
        dead_lettering: subscription.dead_lettering(),
        bytes: subscription.bytes(),
        entered: counters.entered,
        delivered: counters.delivered,
        delivered_bytes: counters.delivered_bytes,
        redelivered: counters.redelivered,
        acked: counters.acked,
        returned: counters.returned,
        failed: counters.failed,
        dead_lettered: counters.dead_lettered,
        expired: counters.expired,
        dropped: counters.dropped,
        purged: counters.purged,
        redriven: counters.redriven,
        consumers: subscription.consumer_count() as u32,
        paused_reason: subscription.paused_reason().map(str::to_owned),
        dead_letter_reason: subscription.dead_letter_reason().map(str::to_owned),
        created_wall_us: subscription.created().0,
        cursor_sequence: subscription.cursor_sequence(),
        lost: counters.lost_damaged,
    }
}

fn wire_counters(counters: &Counters) -> wire::QueueCountersT {
    wire::QueueCountersT {
        published: counters.published,
        published_bytes: counters.published_bytes,
        duplicates: counters.duplicates,
        refused: counters.refused,
        delivered: counters.delivered,
        delivered_bytes: counters.delivered_bytes,
        redelivered: counters.redelivered,
        acked: counters.acked,
        returned: counters.returned,
        failed: counters.failed,
        dead_lettered: counters.dead_lettered,
        expired: counters.expired,
        dropped_oldest: counters.dropped_oldest,
        dropped_newest: counters.dropped_newest,
        purged: counters.purged,
        lost_damaged: counters.lost_damaged,
        moved_in: counters.moved_in,
        redriven: counters.redriven,
    }
}
