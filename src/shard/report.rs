//! All figures of a shard, for those who watch the broker. They are gathered a slice per tick, so
//! that a hundred thousand queues cost no tick more than a few hundred do; a queue that changes
//! meanwhile is told as it was when its turn came.

use crate::limits::REPORT_LOOKS_PER_TICK;
use crate::protocol::error::ErrorCode;
use crate::queue::Queue;
use crate::queue::counters::Counters;
use crate::queue::memory::Account;
use crate::shard::core::Core;
use crate::shard::mailbox::SpillHealth;
use crate::storage::spill::SpillState;
use std::sync::mpsc::SyncSender;

/// Why queues take nothing, as [`ShardFigures::blocked_by`] counts them.
pub const BLOCK_CODES: [ErrorCode; 6] = [
    ErrorCode::QueueMessagesMax,
    ErrorCode::QueueBytesMax,
    ErrorCode::MemoryLimit,
    ErrorCode::DiskLimit,
    ErrorCode::DiskFull,
    ErrorCode::DiskError,
];

/// Asks a shard for its figures.
#[derive(Clone, Debug)]
pub struct ReportOrder {
    /// Queues in slots below this are told one by one, the others together. A queue keeps its slot
    /// as long as it lives.
    pub named: u32,
    /// Gets the report; never waited for.
    pub answer: SyncSender<Box<ShardReport>>,
}

/// All figures of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardReport {
    /// Which.
    pub shard: u32,
    /// Of the shard itself.
    pub figures: ShardFigures,
    /// Queues told one by one, by slot.
    pub named: Vec<(Box<str>, QueueFigures)>,
    /// All other queues together, with the counters of those that were deleted.
    pub others: QueueFigures,
}

/// Figures of a shard that belong to no queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // each is named as the field does; docs/OPERATIONS.md says more
pub struct ShardFigures {
    pub ticks: u64,
    pub connections: u64,
    pub connections_accepted: u64,
    pub connections_shed: u64,
    pub connections_refused: u64,
    pub protocol_errors: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub crossed_bytes: u64,
    pub queues: u64,
    pub deleted_messages: u64,
    pub disk_allocated_bytes: u64,
    pub disk_used_bytes: u64,
    pub disk_bad_slots: u64,
    pub disk_written_bytes: u64,
    pub disk_read_bytes: u64,
    pub disk_write_errors: u64,
    pub disk_read_errors: u64,
    pub journal_bytes: u64,
    pub journal_groups: u64,
    pub journal_written_bytes: u64,
    pub journal_padding_bytes: u64,
    pub journal_refusing: u64,
    pub spill: SpillHealth,
    /// By [`Account::ALL`].
    pub memory_used_bytes: [u64; Account::ALL.len()],
    /// By [`BLOCK_CODES`].
    pub blocked_by: [u64; BLOCK_CODES.len()],
}

/// Figures of one queue, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // as above
pub struct QueueFigures {
    pub ready: u64,
    pub in_flight: u64,
    pub delayed: u64,
    pub dead_lettering: u64,
    pub bytes: u64,
    pub memory_bytes: u64,
    pub spilled_messages: u64,
    pub spilled_bytes: u64,
    pub refilling: u64,
    pub producers: u64,
    pub consumers: u64,
    pub subscriptions: u64,
    pub blocked: u64,
    pub counters: Counters,
}

impl QueueFigures {
    fn of(queue: &Queue) -> QueueFigures {
        QueueFigures {
            ready: queue.ready(),
            in_flight: queue.in_flight(),
            delayed: queue.delayed(),
            dead_lettering: queue.dead_lettering(),
            bytes: queue.bytes(),
            memory_bytes: queue.memory_bytes(),
            spilled_messages: queue.spilled_messages(),
            spilled_bytes: queue.spilled_bytes(),
            refilling: queue.refilling() as u64,
            producers: queue.producer_count() as u64,
            consumers: queue.consumer_count() as u64,
            subscriptions: queue.subscription_count() as u64,
            blocked: u64::from(queue.blocked().is_some()),
            counters: *queue.counters(),
        }
    }

    /// Adds those of other queues.
    pub fn add(&mut self, other: &QueueFigures) {
        self.ready += other.ready;
        self.in_flight += other.in_flight;
        self.delayed += other.delayed;
        self.dead_lettering += other.dead_lettering;
        self.bytes += other.bytes;
        self.memory_bytes += other.memory_bytes;
        self.spilled_messages += other.spilled_messages;
        self.spilled_bytes += other.spilled_bytes;
        self.refilling += other.refilling;
        self.producers += other.producers;
        self.consumers += other.consumers;
        self.subscriptions += other.subscriptions;
        self.blocked += other.blocked;
        self.counters.add(&other.counters);
    }
}

impl ShardReport {
    /// All queues together, those included that were deleted.
    pub fn total(&self) -> QueueFigures {
        let mut total = self.others;
        self.named.iter().for_each(|(_, figures)| total.add(figures));
        total
    }
}

/// A report that is being made.
pub(super) struct Reporting {
    order: ReportOrder,
    /// The slot to look at next.
    next: u32,
    report: Box<ShardReport>,
}

impl Core {
    /// Begins a report; [`Core::go_on_with_report`] goes on with it.
    pub fn begin_report(&mut self, order: ReportOrder) {
        let report = Box::new(ShardReport { shard: self.config.shard, ..ShardReport::default() });
        self.report = Some(Reporting { order, next: 0, report });
    }

    /// Looks at so many queues as one tick may, and answers when it has seen all.
    pub fn go_on_with_report(&mut self) {
        let Some(mut reporting) = self.report.take() else { return };
        let mut looks = REPORT_LOOKS_PER_TICK;
        while looks > 0 && (reporting.next as usize) < self.queues.slot_count() {
            // A queue is asked for each of its subscriptions.
            let subscriptions = self.report_slot(&mut reporting);
            looks = looks.saturating_sub(1 + subscriptions);
        }
        if (reporting.next as usize) < self.queues.slot_count() {
            self.report = Some(reporting);
            return;
        }
        let Reporting { order, mut report, .. } = reporting;
        report.others.counters.add(&self.deleted);
        self.report_figures(&mut report.figures);
        // Who asked may have given up; then nobody misses it.
        let _ = order.answer.try_send(report);
    }

    /// Looks at one slot. Returns the subscriptions that it had to look at.
    fn report_slot(&self, reporting: &mut Reporting) -> usize {
        let index = reporting.next;
        reporting.next += 1;
        let Some((_, slot)) = self.queues.at_index(index) else { return 0 };
        let figures = QueueFigures::of(&slot.queue);
        let report = &mut reporting.report;
        if let Some(block) = slot.queue.blocked() {
            let code = BLOCK_CODES.iter().position(|code| *code == block.code);
            debug_assert!(code.is_some(), "{block:?} is among the reasons");
            report.figures.blocked_by[code.unwrap_or(0)] += 1;
        }
        match index < reporting.order.named {
            true => report.named.push((slot.queue.name().into(), figures)),
            false => report.others.add(&figures),
        }
        slot.queue.subscription_count()
    }

    /// How writing to disk and reading goes.
    pub fn spill_health(&self) -> SpillHealth {
        if self.stores.is_refusing() {
            return SpillHealth::Failing;
        }
        match self.spill.shown_state() {
            SpillState::Off => SpillHealth::Off,
            SpillState::Ready => SpillHealth::Ready,
            SpillState::Full(_) => SpillHealth::Full,
            SpillState::Failing(_) => SpillHealth::Failing,
        }
    }

    /// All but what is counted queue by queue.
    fn report_figures(&self, figures: &mut ShardFigures) {
        let (disk, journals) = (self.spill.stats(), self.stores.figures());
        let remotes = self.remotes.iter().map(|remotes| remotes.len()).sum::<usize>();
        *figures = ShardFigures {
            ticks: self.stats.ticks,
            connections: (self.connections.len() - remotes) as u64,
            connections_accepted: self.stats.connections_accepted,
            connections_shed: self.stats.connections_shed,
            connections_refused: self.stats.connections_refused,
            protocol_errors: self.stats.protocol_errors,
            bytes_in: self.stats.bytes_in,
            bytes_out: self.stats.bytes_out,
            crossed_bytes: self.post.as_ref().map_or(0, |post| post.crossed_bytes),
            queues: self.queues.len() as u64,
            deleted_messages: self.stats.deleted_messages,
            disk_allocated_bytes: disk.allocated_bytes,
            disk_used_bytes: u64::from(disk.slots_used) * disk.slot_bytes,
            disk_bad_slots: disk.slots_bad.into(),
            disk_written_bytes: disk.written_bytes,
            disk_read_bytes: disk.read_bytes,
            disk_write_errors: disk.write_errors,
            disk_read_errors: disk.read_errors,
            journal_bytes: journals.bytes,
            journal_groups: journals.counters.groups,
            journal_written_bytes: journals.counters.group_bytes,
            journal_padding_bytes: journals.counters.padding_bytes,
            journal_refusing: u64::from(self.stores.is_refusing()),
            spill: self.spill_health(),
            memory_used_bytes: Account::ALL.map(|(account, _)| self.memory.budget.used_by(account)),
            blocked_by: figures.blocked_by,
        };
    }
}
