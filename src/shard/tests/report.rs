//! The figures of a shard: complete, in slices, never waited for.

use super::*;
use crate::limits::REPORT_LOOKS_PER_TICK;
use crate::queue::memory::Account;
use crate::shard::report::{BLOCK_CODES, QueueFigures, ReportOrder, ShardReport};
use std::sync::mpsc::{Receiver, sync_channel};

impl Bench {
    fn order(&mut self, named: u32) -> Receiver<Box<ShardReport>> {
        let (answer, answers) = sync_channel(1);
        self.core.begin_report(ReportOrder { named, answer });
        answers
    }

    /// Goes on until the report is there; how many ticks that took.
    fn report(&mut self, named: u32) -> (Box<ShardReport>, usize) {
        let answers = self.order(named);
        for ticks in 1.. {
            self.core.go_on_with_report();
            if let Ok(report) = answers.try_recv() {
                assert!(self.core.report.is_none());
                return (report, ticks);
            }
        }
        unreachable!("the loop ends with the report");
    }
}

#[test]
fn a_report_has_the_figures_that_requests_have() {
    let mut bench = Bench::new();
    let key = bench.open();
    let small = wire::QueueOptionsT { messages_max: 1, ..wire::QueueOptionsT::default() };
    bench.create(key, "small", small);
    bench.create(key, "large", wire::QueueOptionsT::default());
    bench.producer(key, "small", 1, 0);
    bench.producer(key, "large", 2, 0);
    bench.publish(key, 1, 1, &[b"fits"]);
    bench.publish(key, 1, 2, &[b"does not"]);
    bench.publish(key, 2, 1, &[b"one", b"two", b"three"]);
    bench.consumer(key, "large", 3, 2);

    let (report, _) = bench.report(u32::MAX);
    assert_eq!(report.others, QueueFigures::default());
    let named: Vec<_> = report.named.iter().map(|(name, figures)| (&**name, figures)).collect();
    let [("small", small), ("large", large)] = named[..] else { panic!("{named:?}") };
    assert_eq!((small.ready, small.blocked, small.producers), (1, 1, 1));
    assert_eq!((large.ready, large.in_flight, large.consumers), (1, 2, 1));
    for name in ["small", "large"] {
        let shown = bench.describe(key, name);
        let figures = if name == "small" { small } else { large };
        assert_eq!((figures.bytes, figures.memory_bytes), (shown.bytes, shown.memory_bytes));
        assert_eq!(figures.counters.published, shown.counters.published);
    }
    let total = report.total();
    assert_eq!((total.counters.published, total.subscriptions), (4, 2));

    let figures = &report.figures;
    let blocked = BLOCK_CODES.iter().zip(figures.blocked_by).find(|(_, count)| *count > 0);
    assert_eq!(blocked, Some((&ErrorCode::QueueMessagesMax, 1)));
    assert_eq!((figures.queues, figures.connections, figures.connections_accepted), (2, 1, 1));
    assert_eq!(figures.memory_used_bytes.iter().sum::<u64>(), bench.core.budget().used_bytes());
}

#[test]
fn what_has_no_figures_of_its_own_is_summed_and_what_was_deleted_too() {
    let mut bench = Bench::new();
    let key = bench.open();
    for nth in 0..5_u32 {
        let name = format!("q{nth}");
        bench.create(key, &name, wire::QueueOptionsT::default());
        bench.producer(key, &name, nth + 1, 0);
        bench.publish(key, nth + 1, 1, &[b"x"]);
    }
    let request = wire::QueueDeleteT { name: "q1".into(), ..wire::QueueDeleteT::default() };
    let other = bench.open();
    bench.ask(other, Request::QueueDelete(request), 0);
    let (report, _) = bench.report(3);
    let names: Vec<_> = report.named.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["q0", "q2"], "those of the first three slots that are there");
    assert_eq!((report.others.ready, report.others.counters.published), (2, 3));
    assert_eq!(report.total().counters.published, 5);
    assert_eq!((report.figures.queues, report.figures.deleted_messages), (4, 1));
}

#[test]
fn many_queues_take_many_ticks_and_each_looks_at_few() {
    let mut bench = Bench::new();
    let key = bench.open();
    let queues = 10 * REPORT_LOOKS_PER_TICK;
    for nth in 0..queues {
        bench.create(key, &format!("q{nth}"), wire::QueueOptionsT::default());
    }
    let (report, ticks) = bench.report(10);
    assert_eq!((report.named.len(), report.total().subscriptions), (10, queues as u64));
    // Each with its one subscription.
    assert_eq!(ticks, 2 * queues / REPORT_LOOKS_PER_TICK);
}

#[test]
fn while_a_report_is_made_the_next_tick_comes_at_once() {
    let mut bench = Bench::new();
    assert!(!bench.core.has_work());
    let answers = bench.order(0);
    assert!(bench.core.has_work());
    bench.core.go_on_with_report();
    assert!(answers.try_recv().is_ok() && !bench.core.has_work());
}

#[test]
fn nobody_is_waited_for() {
    let mut bench = Bench::new();
    let key = bench.open();
    for nth in 0..2 * REPORT_LOOKS_PER_TICK {
        bench.create(key, &format!("q{nth}"), wire::QueueOptionsT::default());
    }
    // A later order takes the place of an earlier one, whose asker hears that.
    let first = bench.order(0);
    bench.core.go_on_with_report();
    let second = bench.order(0);
    assert!(first.recv().is_err());
    // Who asked may be gone, or may not take it.
    drop(second);
    while bench.core.report.is_some() {
        bench.core.go_on_with_report();
    }
}

#[test]
fn every_account_has_its_name() {
    for (nth, (account, name)) in Account::ALL.iter().enumerate() {
        assert_eq!(*account as usize, nth, "{name}");
    }
}
