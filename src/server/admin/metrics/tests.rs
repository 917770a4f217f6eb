//! The text is OpenMetrics, adds up, and is what docs/OPERATIONS.md says.

use super::*;
use crate::queue::counters::Counters;
use crate::shard::report::ShardFigures;
use std::collections::{BTreeMap, BTreeSet};

const OPERATIONS: &str = include_str!("../../../../docs/OPERATIONS.md");

fn figures(published: u64, ready: u64) -> QueueFigures {
    let counters = Counters { published, ..Counters::default() };
    QueueFigures { ready, counters, ..QueueFigures::default() }
}

fn report(shard: u32, named: &[(&str, QueueFigures)], others: QueueFigures) -> Box<ShardReport> {
    let named = named.iter().map(|(name, figures)| ((*name).into(), *figures)).collect();
    let figures =
        ShardFigures { ticks: 7, blocked_by: [0, 2, 1, 0, 0, 0], ..ShardFigures::default() };
    Box::new(ShardReport { shard, figures, named, others })
}

/// Samples by name and labels. Fails on what no scraper would take.
fn parse(text: &str) -> BTreeMap<String, u64> {
    let mut samples = BTreeMap::new();
    let (mut family, mut families) = (String::new(), BTreeSet::new());
    let body = text.strip_suffix("# EOF\n").expect("it ends as it should");
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# ") {
            let mut words = described.split(' ');
            let (what, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(matches!(what, "HELP" | "TYPE" | "UNIT"), "{line}");
            if what == "HELP" {
                assert!(families.insert(name.to_owned()), "{name} is described twice");
                family = name.to_owned();
            }
            assert_eq!(name, family, "{line}");
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        let name = series.split('{').next().unwrap();
        assert_eq!(name.trim_end_matches("_total"), family, "{line}");
        let before = samples.insert(series.to_owned(), value.parse().expect(line));
        assert!(before.is_none(), "{series} is told twice");
    }
    samples
}

fn sum(samples: &BTreeMap<String, u64>, name: &str) -> u64 {
    let of = |series: &&String| series.split('{').next() == Some(name);
    samples.keys().filter(of).map(|series| samples[series]).sum()
}

fn example() -> BTreeMap<String, u64> {
    let first = [("orders", figures(10, 1)), ("a.b-c:d_e", figures(20, 2))];
    let second = [("mail", figures(30, 3))];
    let shards =
        vec![Some(report(0, &first, figures(5, 0))), None, Some(report(2, &second, figures(7, 4)))];
    let broker = BrokerFigures { uptime_ms: 2500, ready: true, ..BrokerFigures::default() };
    parse(&Scrape::new(broker, shards).into_text())
}

#[test]
fn the_text_can_be_parsed_and_has_every_value_once() {
    let samples = example();
    for (series, value) in [
        ("forebay_uptime_seconds", 2),
        ("forebay_ready", 1),
        ("forebay_shard_ticks_total{shard=\"2\"}", 7),
        ("forebay_shard_up{shard=\"0\"}", 1),
        ("forebay_shard_up{shard=\"1\"}", 0),
        ("forebay_shard_blocked_queues{shard=\"0\",reason=\"queue_bytes_max\"}", 2),
        ("forebay_shard_ready_messages{shard=\"0\"}", 3),
        ("forebay_queue_ready_messages{queue=\"orders\"}", 1),
        ("forebay_queue_ready_messages{queue=\"$other\"}", 4),
        ("forebay_queue_published_messages_total{queue=\"a.b-c:d_e\"}", 20),
        ("forebay_queue_dropped_messages_total{queue=\"mail\",reason=\"expired\"}", 0),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series} in {samples:#?}");
    }
    assert!(!samples.contains_key("forebay_shard_ticks_total{shard=\"1\"}"));
}

#[test]
fn the_queues_add_up_to_their_shards() {
    let samples = example();
    for metric in QueueMetric::ALL.into_iter().filter(|metric| metric.is_of_shards()) {
        let family = metric.family();
        let of = |scope| sum(&samples, &full_name(&family, scope));
        assert_eq!(of("queue_"), of("shard_"), "{}", family.name);
    }
    assert_eq!(sum(&samples, "forebay_shard_published_messages_total"), 72);
}

/// Every figure another number: a metric that shows a neighbour's shows one twice.
#[test]
fn no_two_metrics_show_the_same_figure() {
    let mut next = 0;
    let mut another = || {
        next += 1;
        next
    };
    let counters = Counters {
        published: another(),
        published_bytes: another(),
        duplicates: another(),
        refused: another(),
        delivered: another(),
        delivered_bytes: another(),
        redelivered: another(),
        acked: another(),
        returned: another(),
        failed: another(),
        dead_lettered: another(),
        expired: another(),
        dropped_oldest: another(),
        dropped_newest: another(),
        purged: another(),
        lost_damaged: another(),
        moved_in: another(),
        redriven: another(),
    };
    let figures = QueueFigures {
        ready: another(),
        in_flight: another(),
        delayed: another(),
        dead_lettering: another(),
        bytes: another(),
        memory_bytes: another(),
        spilled_messages: another(),
        spilled_bytes: another(),
        refilling: another(),
        producers: another(),
        consumers: another(),
        subscriptions: another(),
        blocked: another(),
        counters,
    };
    let mut seen = BTreeSet::new();
    for metric in QueueMetric::ALL {
        let mut note = |_: &str, value| {
            assert!(seen.insert(value), "{metric:?} shows what another one shows");
            Ok(())
        };
        metric.values(&figures, &mut note).unwrap();
    }
    assert_eq!(seen, (1..=next).collect(), "all are shown");
}

#[test]
fn without_what_the_system_does_not_say_the_rest_is_told() {
    let samples = parse(&Scrape::new(BrokerFigures::default(), vec![None]).into_text());
    assert!(!samples.contains_key("forebay_disk_free_bytes"));
    assert_eq!(samples["forebay_shard_up{shard=\"0\"}"], 0);
    assert_eq!(samples["forebay_queue_ready_messages{queue=\"$other\"}"], 0);
}

/// As it stands in the text.
fn full_name(family: &Family, scope: &str) -> String {
    let unit = if family.unit.is_empty() { String::new() } else { format!("_{}", family.unit) };
    let total = if matches!(family.kind, MetricType::Counter) { "_total" } else { "" };
    format!("{PREFIX}_{scope}{}{unit}{total}", family.name)
}

/// A row of the document.
fn row(family: &Family, scope: &str) -> String {
    let label = if family.label.is_empty() { String::new() } else { format!("`{}`", family.label) };
    let (name, kind) = (full_name(family, scope), family.kind.as_str());
    format!("| `{name}` | {kind} | {label} | {} |", family.help).replace("|  |", "| |")
}

/// Rows of the table under a heading, but for its first two lines.
fn documented(heading: &str) -> Vec<&'static str> {
    let (_, section) = OPERATIONS.split_once(&format!("\n### {heading}\n")).expect(heading);
    let lines = section.lines().take_while(|line| !line.starts_with('#'));
    lines.filter(|line| line.starts_with('|')).skip(2).collect()
}

#[test]
fn the_operations_document_has_every_metric() {
    let broker: Vec<_> = BrokerMetric::ALL.map(|metric| row(&metric.family(), "")).into();
    assert_eq!(documented("Of the broker"), broker, "{}", broker.join("\n"));
    let mut shards = vec![row(&SHARD_UP, "shard_")];
    shards.extend(ShardMetric::ALL.map(|metric| row(&metric.family(), "shard_")));
    assert_eq!(documented("Of each shard"), shards, "{}", shards.join("\n"));
    let queues: Vec<_> = QueueMetric::ALL.map(|metric| row(&metric.family(), "queue_")).into();
    assert_eq!(documented("Of each queue"), queues, "{}", queues.join("\n"));
}

#[test]
fn names_are_as_prometheus_wants_them() {
    let broker = BrokerMetric::ALL.map(BrokerMetric::family);
    let shards = ShardMetric::ALL.map(ShardMetric::family);
    let queues = QueueMetric::ALL.map(QueueMetric::family);
    for family in broker.iter().chain(&shards).chain(&queues) {
        let word = |c: char| c.is_ascii_lowercase() || c == '_';
        assert!(family.name.chars().chain(family.unit.chars()).all(word), "{}", family.name);
        assert!(!family.name.ends_with("total") && !family.help.contains(['\n', '\\', '|']));
    }
}
