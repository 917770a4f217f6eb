//! The metrics: closed lists of what is told of the broker, of each shard and of each queue, and
//! the text that Prometheus and others scrape (OpenMetrics). docs/OPERATIONS.md has the same lists,
//! and a test here holds it to them.

use crate::queue::memory::Account;
use crate::shard::mailbox::SpillHealth;
use crate::shard::report::{BLOCK_CODES, QueueFigures, ShardReport};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use std::fmt;

/// Before every name.
const PREFIX: &str = "forebay";
/// Label of all queues together that have no figures of their own. No queue of a user can have this
/// name.
const OTHER_QUEUES: &str = "$other";

const COUNTER: MetricType = MetricType::Counter;
const GAUGE: MetricType = MetricType::Gauge;

/// A family: everything about a metric but its values.
struct Family {
    /// Without prefix, scope, unit and `_total`.
    name: &'static str,
    /// Or empty.
    unit: &'static str,
    kind: MetricType,
    /// Beside the one that says whose it is; or empty.
    label: &'static str,
    help: &'static str,
}

/// Takes one value, with that of the family's own label, if it has one.
type Emit<'a> = &'a mut dyn FnMut(&str, u64) -> fmt::Result;

const fn family(
    kind: MetricType,
    name: &'static str,
    unit: &'static str,
    label: &'static str,
    help: &'static str,
) -> Family {
    Family { name, unit, kind, label, help }
}

/// Of the broker as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BrokerMetric {
    Build,
    Uptime,
    Ready,
    MemoryLimit,
    DiskLimit,
    DiskFree,
    Probes,
    ProbeFailures,
}

impl BrokerMetric {
    const ALL: [BrokerMetric; 8] = [
        BrokerMetric::Build,
        BrokerMetric::Uptime,
        BrokerMetric::Ready,
        BrokerMetric::MemoryLimit,
        BrokerMetric::DiskLimit,
        BrokerMetric::DiskFree,
        BrokerMetric::Probes,
        BrokerMetric::ProbeFailures,
    ];

    fn family(self) -> Family {
        use BrokerMetric as M;
        match self {
            M::Build => family(GAUGE, "build_info", "", "version", "Always 1"),
            M::Uptime => family(GAUGE, "uptime", "seconds", "", "Time since the broker started"),
            M::Ready => family(GAUGE, "ready", "", "", "1 while /readyz is green, else 0"),
            M::MemoryLimit => family(GAUGE, "memory_limit", "bytes", "", "The memory limit"),
            M::DiskLimit => family(GAUGE, "disk_limit", "bytes", "", "The disk limit"),
            M::DiskFree => {
                family(GAUGE, "disk_free", "bytes", "", "Free where the data directory is")
            }
            M::Probes => family(COUNTER, "probes", "", "", "Test writes to the data directory"),
            M::ProbeFailures => family(COUNTER, "probe_failures", "", "", "Of these, that failed"),
        }
    }

    fn values(self, broker: &BrokerFigures, emit: Emit<'_>) -> fmt::Result {
        use BrokerMetric as M;
        match self {
            M::Build => emit(env!("CARGO_PKG_VERSION"), 1),
            M::Uptime => emit("", broker.uptime_ms / 1000),
            M::Ready => emit("", broker.ready.into()),
            M::MemoryLimit => emit("", broker.memory_limit_bytes),
            M::DiskLimit => emit("", broker.disk_limit_bytes),
            M::DiskFree => broker.disk_free_bytes.map_or(Ok(()), |bytes| emit("", bytes)),
            M::Probes => emit("", broker.probes),
            M::ProbeFailures => emit("", broker.probe_failures),
        }
    }
}

/// Of each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShardMetric {
    Ticks,
    Connections,
    Accepted,
    Shed,
    Refused,
    ProtocolErrors,
    Received,
    Sent,
    Crossed,
    MemoryUsed,
    Queues,
    QueuesBlocked,
    Deleted,
    SpillState,
    DiskAllocated,
    DiskUsed,
    BadSlots,
    SpillWritten,
    SpillRead,
    WriteErrors,
    ReadErrors,
    JournalBytes,
    JournalGroups,
    JournalWritten,
    JournalPadding,
    JournalRefusing,
}

impl ShardMetric {
    const ALL: [ShardMetric; 26] = [
        ShardMetric::Ticks,
        ShardMetric::Connections,
        ShardMetric::Accepted,
        ShardMetric::Shed,
        ShardMetric::Refused,
        ShardMetric::ProtocolErrors,
        ShardMetric::Received,
        ShardMetric::Sent,
        ShardMetric::Crossed,
        ShardMetric::MemoryUsed,
        ShardMetric::Queues,
        ShardMetric::QueuesBlocked,
        ShardMetric::Deleted,
        ShardMetric::SpillState,
        ShardMetric::DiskAllocated,
        ShardMetric::DiskUsed,
        ShardMetric::BadSlots,
        ShardMetric::SpillWritten,
        ShardMetric::SpillRead,
        ShardMetric::WriteErrors,
        ShardMetric::ReadErrors,
        ShardMetric::JournalBytes,
        ShardMetric::JournalGroups,
        ShardMetric::JournalWritten,
        ShardMetric::JournalPadding,
        ShardMetric::JournalRefusing,
    ];

    fn family(self) -> Family {
        use ShardMetric as M;
        match self {
            M::Ticks => family(COUNTER, "ticks", "", "", "Passes of the shard's loop"),
            M::Connections => family(GAUGE, "connections", "", "", "Connections that are open"),
            M::Accepted => family(COUNTER, "accepted_connections", "", "", "Taken"),
            M::Shed => {
                family(COUNTER, "shed_connections", "", "", "Closed for want of file descriptors")
            }
            M::Refused => {
                family(COUNTER, "refused_connections", "", "", "Refused by a limit of the broker")
            }
            M::ProtocolErrors => {
                family(COUNTER, "protocol_errors", "", "", "Connections ended over what they sent")
            }
            M::Received => family(COUNTER, "received", "bytes", "", "Read from sockets"),
            M::Sent => family(COUNTER, "sent", "bytes", "", "Written to sockets"),
            M::Crossed => family(COUNTER, "crossed", "bytes", "", "Sent to other shards"),
            M::MemoryUsed => {
                family(GAUGE, "memory_used", "bytes", "account", "Counted against the memory limit")
            }
            M::Queues => family(GAUGE, "queues", "", "", "Queues that live on the shard"),
            M::QueuesBlocked => {
                family(GAUGE, "blocked_queues", "", "reason", "Queues that take nothing, and why")
            }
            M::Deleted => {
                family(COUNTER, "deleted", "messages", "", "Gone with queues that were deleted")
            }
            M::SpillState => family(GAUGE, "spill", "", "state", "1 for the state of spilling"),
            M::DiskAllocated => {
                family(GAUGE, "disk_allocated", "bytes", "", "Taken by the spill file")
            }
            M::DiskUsed => family(GAUGE, "disk_used", "bytes", "", "Of these, hold messages"),
            M::BadSlots => family(GAUGE, "bad_slots", "", "", "Of the spill file, failed to write"),
            M::SpillWritten => family(COUNTER, "spill_written", "bytes", "", "Written to disk"),
            M::SpillRead => family(COUNTER, "spill_read", "bytes", "", "Read back from disk"),
            M::WriteErrors => {
                family(COUNTER, "spill_write_errors", "", "", "Writes that failed; tried elsewhere")
            }
            M::ReadErrors => {
                family(COUNTER, "spill_read_errors", "", "", "Reads that failed; tried again")
            }
            M::JournalBytes => family(GAUGE, "journal", "bytes", "", "Files that hold the log"),
            M::JournalGroups => family(COUNTER, "journal_groups", "", "", "Written, each at once"),
            M::JournalWritten => {
                family(COUNTER, "journal_written", "bytes", "", "Of groups, without padding")
            }
            M::JournalPadding => {
                family(COUNTER, "journal_padding", "bytes", "", "Zeros behind groups")
            }
            M::JournalRefusing => {
                family(GAUGE, "journal_refusing", "", "", "1: durable queues take nothing")
            }
        }
    }

    fn values(self, report: &ShardReport, emit: Emit<'_>) -> fmt::Result {
        use ShardMetric as M;
        let figures = &report.figures;
        match self {
            M::Ticks => emit("", figures.ticks),
            M::Connections => emit("", figures.connections),
            M::Accepted => emit("", figures.connections_accepted),
            M::Shed => emit("", figures.connections_shed),
            M::Refused => emit("", figures.connections_refused),
            M::ProtocolErrors => emit("", figures.protocol_errors),
            M::Received => emit("", figures.bytes_in),
            M::Sent => emit("", figures.bytes_out),
            M::Crossed => emit("", figures.crossed_bytes),
            M::MemoryUsed => {
                let mut accounts = Account::ALL.iter().zip(figures.memory_used_bytes);
                accounts.try_for_each(|((_, name), bytes)| emit(name, bytes))
            }
            M::Queues => emit("", figures.queues),
            M::QueuesBlocked => {
                let mut reasons = BLOCK_CODES.iter().zip(figures.blocked_by);
                reasons.try_for_each(|(code, count)| emit(code.name(), count))
            }
            M::Deleted => emit("", figures.deleted_messages),
            M::SpillState => SpillHealth::ALL
                .iter()
                .try_for_each(|(state, name)| emit(name, u64::from(*state == figures.spill))),
            M::DiskAllocated => emit("", figures.disk_allocated_bytes),
            M::DiskUsed => emit("", figures.disk_used_bytes),
            M::BadSlots => emit("", figures.disk_bad_slots),
            M::SpillWritten => emit("", figures.disk_written_bytes),
            M::SpillRead => emit("", figures.disk_read_bytes),
            M::WriteErrors => emit("", figures.disk_write_errors),
            M::ReadErrors => emit("", figures.disk_read_errors),
            M::JournalBytes => emit("", figures.journal_bytes),
            M::JournalGroups => emit("", figures.journal_groups),
            M::JournalWritten => emit("", figures.journal_written_bytes),
            M::JournalPadding => emit("", figures.journal_padding_bytes),
            M::JournalRefusing => emit("", figures.journal_refusing),
        }
    }
}

/// Of the queues of each shard together, and of each queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueMetric {
    Ready,
    InFlight,
    Delayed,
    DeadLettering,
    Held,
    Memory,
    SpilledMessages,
    Spilled,
    Refilling,
    Producers,
    Consumers,
    Subscriptions,
    Blocked,
    Published,
    PublishedBytes,
    Duplicates,
    RefusedMessages,
    Delivered,
    DeliveredBytes,
    Redelivered,
    Acked,
    Returned,
    Failed,
    DeadLettered,
    Dropped,
    MovedIn,
    Redriven,
}

impl QueueMetric {
    const ALL: [QueueMetric; 27] = [
        QueueMetric::Ready,
        QueueMetric::InFlight,
        QueueMetric::Delayed,
        QueueMetric::DeadLettering,
        QueueMetric::Held,
        QueueMetric::Memory,
        QueueMetric::SpilledMessages,
        QueueMetric::Spilled,
        QueueMetric::Refilling,
        QueueMetric::Producers,
        QueueMetric::Consumers,
        QueueMetric::Subscriptions,
        QueueMetric::Blocked,
        QueueMetric::Published,
        QueueMetric::PublishedBytes,
        QueueMetric::Duplicates,
        QueueMetric::RefusedMessages,
        QueueMetric::Delivered,
        QueueMetric::DeliveredBytes,
        QueueMetric::Redelivered,
        QueueMetric::Acked,
        QueueMetric::Returned,
        QueueMetric::Failed,
        QueueMetric::DeadLettered,
        QueueMetric::Dropped,
        QueueMetric::MovedIn,
        QueueMetric::Redriven,
    ];

    fn family(self) -> Family {
        use QueueMetric as M;
        let held = |name, help| family(GAUGE, name, "messages", "", help);
        let counted = |name, help| family(COUNTER, name, "messages", "", help);
        let count = |name, help| family(GAUGE, name, "", "", help);
        match self {
            M::Ready => held("ready", "Wait for a consumer"),
            M::InFlight => held("in_flight", "With consumers, not acked"),
            M::Delayed => held("delayed", "Wait for their time"),
            M::DeadLettering => held("dead_lettering", "Dead letters that are not moved yet"),
            M::Held => family(GAUGE, "held", "bytes", "", "Of messages that are held"),
            M::Memory => family(GAUGE, "memory", "bytes", "", "Of memory for messages"),
            M::SpilledMessages => held("spilled", "On disk and not in memory"),
            M::Spilled => family(GAUGE, "spilled", "bytes", "", "On disk and not in memory"),
            M::Refilling => count("refilling_chunks", "Chunks that are being read back"),
            M::Producers => count("producers", "Open producer handles"),
            M::Consumers => count("consumers", "Open consumer handles"),
            M::Subscriptions => count("subscriptions", "Subscriptions"),
            M::Blocked => count("blocked", "Queues that take nothing: 0 or 1 for one queue"),
            M::Published => counted("published", "Accepted"),
            M::PublishedBytes => family(COUNTER, "published", "bytes", "", "Accepted"),
            M::Duplicates => counted("duplicate", "Sent again and recognised"),
            M::RefusedMessages => counted("refused", "Answered with an error"),
            M::Delivered => counted("delivered", "Sent to consumers, each time counted"),
            M::DeliveredBytes => family(COUNTER, "delivered", "bytes", "", "Sent to consumers"),
            M::Redelivered => counted("redelivered", "Of the delivered, not for the first time"),
            M::Acked => counted("acked", "Done"),
            M::Returned => counted("returned", "Given back untried"),
            M::Failed => counted("failed", "Nacked, or their lease ended"),
            M::DeadLettered => counted("dead_lettered", "Moved to a dead-letter queue"),
            M::Dropped => {
                family(COUNTER, "dropped", "messages", "reason", "Gone without being done, and why")
            }
            M::MovedIn => counted("moved_in", "Of the published: dead letters and redriven"),
            M::Redriven => counted("redriven", "Moved back out of a dead-letter queue"),
        }
    }

    fn values(self, figures: &QueueFigures, emit: Emit<'_>) -> fmt::Result {
        use QueueMetric as M;
        let counters = &figures.counters;
        let value = match self {
            M::Ready => figures.ready,
            M::InFlight => figures.in_flight,
            M::Delayed => figures.delayed,
            M::DeadLettering => figures.dead_lettering,
            M::Held => figures.bytes,
            M::Memory => figures.memory_bytes,
            M::SpilledMessages => figures.spilled_messages,
            M::Spilled => figures.spilled_bytes,
            M::Refilling => figures.refilling,
            M::Producers => figures.producers,
            M::Consumers => figures.consumers,
            M::Subscriptions => figures.subscriptions,
            M::Blocked => figures.blocked,
            M::Published => counters.published,
            M::PublishedBytes => counters.published_bytes,
            M::Duplicates => counters.duplicates,
            M::RefusedMessages => counters.refused,
            M::Delivered => counters.delivered,
            M::DeliveredBytes => counters.delivered_bytes,
            M::Redelivered => counters.redelivered,
            M::Acked => counters.acked,
            M::Returned => counters.returned,
            M::Failed => counters.failed,
            M::DeadLettered => counters.dead_lettered,
            M::MovedIn => counters.moved_in,
            M::Redriven => counters.redriven,
            M::Dropped => {
                emit("oldest", counters.dropped_oldest)?;
                emit("newest", counters.dropped_newest)?;
                emit("expired", counters.expired)?;
                emit("purged", counters.purged)?;
                return emit("damaged", counters.lost_damaged);
            }
        };
        emit("", value)
    }
}

/// Figures of the broker that no shard has.
#[derive(Clone, Debug, Default)]
pub struct BrokerFigures {
    /// Since the start.
    pub uptime_ms: u64,
    /// Whether readiness is green.
    pub ready: bool,
    /// As configured.
    pub memory_limit_bytes: u64,
    /// As configured or guessed.
    pub disk_limit_bytes: u64,
    /// As far as the system says.
    pub disk_free_bytes: Option<u64>,
    /// Probes that ended.
    pub probes: u64,
    /// Of these, that failed.
    pub probe_failures: u64,
}

/// Everything that one scrape shows.
#[derive(Debug)]
pub struct Scrape {
    broker: BrokerFigures,
    /// Of each shard; none if it did not tell.
    shards: Vec<Option<Box<ShardReport>>>,
    /// The queues of those that did.
    totals: Vec<QueueFigures>,
    others: QueueFigures,
}

impl Scrape {
    /// What was gathered.
    pub fn new(broker: BrokerFigures, shards: Vec<Option<Box<ShardReport>>>) -> Scrape {
        let told = || shards.iter().flatten();
        let totals = told().map(|report| report.total()).collect();
        let mut others = QueueFigures::default();
        told().for_each(|report| others.add(&report.others));
        Scrape { broker, shards, totals, others }
    }

    /// As OpenMetrics text.
    pub fn into_text(self) -> String {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a string does not fail");
        text
    }

    fn told(&self) -> impl Iterator<Item = &ShardReport> {
        self.shards.iter().flatten().map(|report| &**report)
    }

    fn encode_broker(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for metric in BrokerMetric::ALL {
            let family = metric.family();
            family.write(encoder, "", |out| {
                metric.values(&self.broker, &mut |own, value| out.put(("", ""), own, value))
            })?;
        }
        SHARD_UP.write(encoder, "shard_", |out| {
            self.shards.iter().enumerate().try_for_each(|(shard, report)| {
                out.put(("shard", &shard.to_string()), "", report.is_some().into())
            })
        })
    }

    fn encode_shards(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for metric in ShardMetric::ALL {
            let family = metric.family();
            family.write(encoder, "shard_", |out| {
                self.told().try_for_each(|report| {
                    let shard = report.shard.to_string();
                    let mut put = |own: &str, value| out.put(("shard", &shard), own, value);
                    metric.values(report, &mut put)
                })
            })?;
        }
        for metric in QueueMetric::ALL.into_iter().filter(|metric| metric.is_of_shards()) {
            metric.family().write(encoder, "shard_", |out| {
                self.told().zip(&self.totals).try_for_each(|(report, total)| {
                    let shard = report.shard.to_string();
                    let mut put = |own: &str, value| out.put(("shard", &shard), own, value);
                    metric.values(total, &mut put)
                })
            })?;
        }
        Ok(())
    }

    fn encode_queues(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        for metric in QueueMetric::ALL {
            metric.family().write(encoder, "queue_", |out| {
                let named = self.told().flat_map(|report| &report.named);
                let named = named.map(|(name, figures)| (&**name, figures));
                named.chain([(OTHER_QUEUES, &self.others)]).try_for_each(|(name, figures)| {
                    let mut put = |own: &str, value| out.put(("queue", name), own, value);
                    metric.values(figures, &mut put)
                })
            })?;
        }
        Ok(())
    }
}

/// Whether a shard told its figures; told of all, so that one that hangs is seen.
const SHARD_UP: Family = family(GAUGE, "up", "", "", "1 if the shard told its figures, else 0");

impl QueueMetric {
    /// Why queues of a shard are blocked is told apart.
    fn is_of_shards(self) -> bool {
        self != QueueMetric::Blocked
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_broker(&mut encoder)?;
        self.encode_shards(&mut encoder)?;
        self.encode_queues(&mut encoder)
    }
}

/// Writes the samples of one family.
struct Samples<'a> {
    encoder: MetricEncoder<'a>,
    family: &'a Family,
}

impl Samples<'_> {
    /// One value of `whose` (a label and its value, or nothing), with the value of the family's
    /// own label.
    fn put(&mut self, whose: (&str, &str), own: &str, value: u64) -> fmt::Result {
        let both = [whose, (self.family.label, own)];
        let labels: Vec<_> = both.into_iter().filter(|(name, _)| !name.is_empty()).collect();
        let labels = labels.as_slice();
        if labels.is_empty() {
            return encode_value(&mut self.encoder, self.family.kind, value);
        }
        encode_value(&mut self.encoder.encode_family(&labels)?, self.family.kind, value)
    }
}

fn encode_value(encoder: &mut MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => encoder.encode_counter::<[(&str, &str); 0], _, u64>(&value, None),
        _ => encoder.encode_gauge(&value),
    }
}

impl Family {
    fn write(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        scope: &str,
        samples: impl FnOnce(&mut Samples<'_>) -> fmt::Result,
    ) -> fmt::Result {
        let name = format!("{scope}{}", self.name);
        let unit = match self.unit {
            "" => None,
            "bytes" => Some(Unit::Bytes),
            "seconds" => Some(Unit::Seconds),
            unit => Some(Unit::Other(unit.to_owned())),
        };
        let encoder = encoder.encode_descriptor(&name, self.help, unit.as_ref(), self.kind)?;
        samples(&mut Samples { encoder, family: self })
    }
}

#[cfg(test)]
mod tests;
