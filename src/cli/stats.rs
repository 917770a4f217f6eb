//! `stats`: the broker as a whole, once or every second.

use crate::base::units::{parse_duration, show_bytes, show_duration};
use crate::cli::broker::BrokerArgs;
use crate::cli::clock::now;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::fields::{Fields, number_lines};
use crate::cli::output::Output;
use crate::cli::queue::counter_numbers;
use crate::cli::table::{per_second, thousands};
use crate::client::{Connection, QueueCounters, Stats};
use clap::Args;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// The arguments of `stats`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct StatsArgs {
    /// Show them again every second, with rates, until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// Time between two looks of --watch
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parse_interval,
        default_value = "1s",
        requires = "watch"
    )]
    interval: Duration,

    #[command(flatten)]
    pub(super) broker: BrokerArgs,
}

const EXAMPLES: &str = "\
With --watch --json each look is one line, with rates per second beside the totals.

Examples:
  forebay stats
  forebay stats --watch
  forebay stats --json | jq .memory_used_bytes

`forebay help` lists the exit codes.";

/// Faster looks would only measure themselves.
const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// With more queues than this, the blocked ones are only counted.
const QUEUES_ASKED_MAX: u32 = 1000;
/// Of the blocked ones, so many are named.
const BLOCKED_SHOWN: usize = 5;

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text).map_err(|error| error.to_string())? {
        interval if interval < INTERVAL_MIN => Err("must be 10ms or more".to_owned()),
        interval => Ok(interval),
    }
}

/// Runs `stats`.
///
/// # Errors
/// If the broker cannot be reached, or goes away.
pub fn run(args: &StatsArgs) -> Outcome {
    let broker = &args.broker;
    let mut connection = broker.connect()?;
    if args.watch {
        return watch(args, connection);
    }
    let stats = connection.stats().map_err(|error| broker.failure(error))?;
    let blocked = blocked_queues(&mut connection, &stats, broker)?;
    Output::new(broker.json).finish(&stats_fields(&stats), stats_text(&stats, None, &blocked))
}

/// Which queues take nothing, and why. Of very many queues it is not asked.
fn blocked_queues(
    connection: &mut Connection,
    stats: &Stats,
    broker: &BrokerArgs,
) -> Result<Vec<(String, String)>, Failure> {
    if broker.json || stats.queues_blocked == 0 || stats.queues > QUEUES_ASKED_MAX {
        return Ok(Vec::new());
    }
    let queues = connection.queue_list("").map_err(|error| broker.failure(error))?;
    let blocked = queues.into_iter().filter(|queue| queue.blocked);
    let why = |reason: Option<String>| reason.unwrap_or_else(|| "full".to_owned());
    Ok(blocked.map(|queue| (queue.name, why(queue.blocked_reason))).collect())
}

fn watch(args: &StatsArgs, mut connection: Connection) -> Outcome {
    let mut out = Output::new(args.broker.json);
    let redraw = !out.json && std::io::stdout().is_terminal();
    let mut before: Option<(Instant, Stats)> = None;
    let mut due = now();
    loop {
        let stats = connection.stats().map_err(|error| args.broker.failure(error))?;
        let time = now();
        let blocked = blocked_queues(&mut connection, &stats, &args.broker)?;
        let rates = before
            .map(|(earlier, before)| Rates::between(&before, &stats, time.duration_since(earlier)));
        if out.json {
            let mut fields = stats_fields(&stats);
            rates.unwrap_or_default().add_to(&mut fields);
            out.json_line(&fields)?;
        } else {
            // To the top and over what is there; then the rest of the screen goes.
            let (front, back) = if redraw { ("\x1b[H\x1b[2J", "") } else { ("", "\n") };
            let text = stats_text(&stats, Some(rates.unwrap_or_default()), &blocked);
            out.text(format_args!("{front}{text}{back}"))?;
        }
        out.flush()?;
        before = Some((time, stats));
        due = (due + args.interval).max(time);
        while now() < due {
            std::thread::park_timeout(due.saturating_duration_since(now()));
        }
    }
}

/// Per second, between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Rates {
    published: f64,
    delivered: f64,
    acked: f64,
    bytes_in: f64,
    bytes_out: f64,
    disk_written: f64,
    disk_read: f64,
}

impl Rates {
    fn between(before: &Stats, after: &Stats, time: Duration) -> Rates {
        let (old, new) = (counters(before), counters(after));
        // A broker that was restarted begins at 0 again: no rate then.
        let rate =
            |old: u64, new: u64| new.saturating_sub(old) as f64 / time.as_secs_f64().max(1e-9);
        Rates {
            published: rate(old.published, new.published),
            delivered: rate(old.delivered, new.delivered),
            acked: rate(old.acked, new.acked),
            bytes_in: rate(before.bytes_in, after.bytes_in),
            bytes_out: rate(before.bytes_out, after.bytes_out),
            disk_written: rate(before.disk_written_bytes, after.disk_written_bytes),
            disk_read: rate(before.disk_read_bytes, after.disk_read_bytes),
        }
    }

    fn add_to(&self, fields: &mut Fields) {
        fields.push("published_per_s", self.published);
        fields.push("delivered_per_s", self.delivered);
        fields.push("acked_per_s", self.acked);
        fields.push("bytes_in_per_s", self.bytes_in);
        fields.push("bytes_out_per_s", self.bytes_out);
        fields.push("disk_written_bytes_per_s", self.disk_written);
        fields.push("disk_read_bytes_per_s", self.disk_read);
    }
}

fn counters(stats: &Stats) -> QueueCounters {
    stats.counters.as_deref().cloned().unwrap_or_default()
}

fn stats_fields(stats: &Stats) -> Fields {
    let mut fields = Fields::default();
    fields.push("server_version", stats.server_version.as_deref().unwrap_or(""));
    fields.extend([
        ("uptime_ms", stats.uptime_ms),
        ("shards", stats.shards.into()),
        ("connections", stats.connections.into()),
        ("connections_accepted", stats.connections_accepted),
        ("connections_shed", stats.connections_shed),
        ("connections_refused", stats.connections_refused),
        ("protocol_errors", stats.protocol_errors),
        ("queues", stats.queues.into()),
        ("queues_blocked", stats.queues_blocked.into()),
        ("producers", stats.producers.into()),
        ("consumers", stats.consumers.into()),
        ("memory_limit_bytes", stats.memory_limit_bytes),
        ("memory_used_bytes", stats.memory_used_bytes),
        ("memory_chunk_bytes", stats.memory_chunk_bytes),
        ("chunks_in_memory", stats.chunks_in_memory),
        ("spilled_messages", stats.spilled_messages),
        ("spilled_bytes", stats.spilled_bytes),
        ("refilling", stats.refilling),
        ("ready", stats.ready),
        ("in_flight", stats.in_flight),
        ("delayed", stats.delayed),
    ]);
    fields.extend(counter_numbers(&counters(stats)));
    fields.extend([
        ("queues_deleted_messages", stats.queues_deleted_messages),
        ("ticks", stats.ticks),
        ("bytes_in", stats.bytes_in),
        ("bytes_out", stats.bytes_out),
        ("disk_limit_bytes", stats.disk_limit_bytes),
        ("disk_allocated_bytes", stats.disk_allocated_bytes),
        ("disk_used_bytes", stats.disk_used_bytes),
        ("disk_free_bytes", stats.disk_free_bytes),
        ("disk_writes", stats.disk_writes),
        ("disk_reads", stats.disk_reads),
        ("disk_written_bytes", stats.disk_written_bytes),
        ("disk_read_bytes", stats.disk_read_bytes),
        ("disk_write_errors", stats.disk_write_errors),
        ("disk_read_errors", stats.disk_read_errors),
        ("journal_segments", stats.journal_segments),
        ("journal_bytes", stats.journal_bytes),
        ("journal_groups", stats.journal_groups),
        ("journal_records", stats.journal_records),
        ("journal_written_bytes", stats.journal_written_bytes),
        ("journal_padding_bytes", stats.journal_padding_bytes),
    ]);
    fields.push("spill_state", stats.spill_state.as_deref().unwrap_or("off"));
    fields.push("journal_state", stats.journal_state.as_deref().unwrap_or("off"));
    fields
}

fn stats_text(stats: &Stats, rates: Option<Rates>, blocked: &[(String, String)]) -> String {
    let counters = counters(stats);
    let rate = |pick: fn(&Rates) -> f64| {
        rates.as_ref().map_or(String::new(), |rates| format!("  {}", per_second(pick(rates))))
    };
    let byte_rate = |pick: fn(&Rates) -> f64| {
        let shown = |rates: &Rates| format!("  {}/s", show_bytes(pick(rates) as u64));
        rates.as_ref().map_or(String::new(), shown)
    };
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        writeln!(text, "{name:<14}{value}").expect("writing to a string does not fail");
    };
    line("broker", broker_text(stats));
    line("memory", memory_text(stats));
    line("spilled", spilled_text(stats));
    line("disk", disk_text(stats));
    line("journal", journal_text(stats));
    line("connections", connections_text(stats));
    line("queues", queues_text(stats));
    for (name, why) in blocked.iter().take(BLOCKED_SHOWN) {
        line("", format!("{name} is blocked: {why}"));
    }
    if blocked.len() > BLOCKED_SHOWN {
        line("", format!("and {} more", blocked.len() - BLOCKED_SHOWN));
    }
    line("published", thousands(counters.published) + &rate(|rates| rates.published));
    line("delivered", thousands(counters.delivered) + &rate(|rates| rates.delivered));
    line("acked", thousands(counters.acked) + &rate(|rates| rates.acked));
    line("received", show_bytes(stats.bytes_in) + &byte_rate(|rates| rates.bytes_in));
    line("sent", show_bytes(stats.bytes_out) + &byte_rate(|rates| rates.bytes_out));
    line("to disk", show_bytes(stats.disk_written_bytes) + &byte_rate(|rates| rates.disk_written));
    line("from disk", show_bytes(stats.disk_read_bytes) + &byte_rate(|rates| rates.disk_read));
    let held = [("ready", stats.ready), ("in_flight", stats.in_flight), ("delayed", stats.delayed)];
    text.push_str("held\n");
    text.push_str(&number_lines("  ", &held));
    text
}

fn broker_text(stats: &Stats) -> String {
    format!(
        "forebay {}, up {}, {} shard(s)",
        stats.server_version.as_deref().unwrap_or(""),
        show_duration(Duration::from_millis(stats.uptime_ms)),
        stats.shards,
    )
}

fn memory_text(stats: &Stats) -> String {
    let share = 100.0 * stats.memory_used_bytes as f64 / stats.memory_limit_bytes.max(1) as f64;
    format!(
        "{} of {} ({share:.1} %), {} of it chunks",
        show_bytes(stats.memory_used_bytes),
        show_bytes(stats.memory_limit_bytes),
        show_bytes(stats.memory_chunk_bytes),
    )
}

fn spilled_text(stats: &Stats) -> String {
    let lost = counters(stats).lost_damaged;
    let lost = if lost == 0 { String::new() } else { format!(", {} lost", thousands(lost)) };
    format!(
        "{} messages, {}; {} chunks refilling{lost}",
        thousands(stats.spilled_messages),
        show_bytes(stats.spilled_bytes),
        thousands(stats.refilling),
    )
}

fn disk_text(stats: &Stats) -> String {
    if stats.disk_limit_bytes == 0 {
        return "off: nothing is spilled".to_owned();
    }
    format!(
        "{}; {} used of {} taken, limit {}, {} free",
        stats.spill_state.as_deref().unwrap_or("off"),
        show_bytes(stats.disk_used_bytes),
        show_bytes(stats.disk_allocated_bytes),
        show_bytes(stats.disk_limit_bytes),
        show_bytes(stats.disk_free_bytes),
    )
}

fn journal_text(stats: &Stats) -> String {
    let state = stats.journal_state.as_deref().unwrap_or("off");
    if state == "off" {
        return "off: there is no durable queue".to_owned();
    }
    format!(
        "{state}; {} files, {}; {} groups, {}",
        thousands(stats.journal_segments),
        show_bytes(stats.journal_bytes),
        thousands(stats.journal_groups),
        show_bytes(stats.journal_written_bytes),
    )
}

fn connections_text(stats: &Stats) -> String {
    format!(
        "{} ({} accepted, {} shed, {} refused, {} protocol errors)",
        thousands(stats.connections.into()),
        thousands(stats.connections_accepted),
        thousands(stats.connections_shed),
        thousands(stats.connections_refused),
        thousands(stats.protocol_errors),
    )
}

fn queues_text(stats: &Stats) -> String {
    format!(
        "{} ({} blocked), {} producers, {} consumers",
        thousands(stats.queues.into()),
        thousands(stats.queues_blocked.into()),
        thousands(stats.producers.into()),
        thousands(stats.consumers.into()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(published: u64, bytes_in: u64) -> Stats {
        let counters = QueueCounters { published, ..QueueCounters::default() };
        Stats { counters: Some(Box::new(counters)), bytes_in, ..Stats::default() }
    }

    #[test]
    fn rates_are_per_second_and_never_negative() {
        let rates = Rates::between(&stats(100, 5000), &stats(300, 1000), Duration::from_secs(2));
        assert_eq!((rates.published, rates.bytes_in), (100.0, 0.0));
    }

    #[test]
    fn stats_for_programs_are_flat() {
        let mut fields = stats_fields(&stats(7, 0));
        Rates::default().add_to(&mut fields);
        let value = serde_json::to_value(&fields).unwrap();
        assert_eq!((&value["published"], &value["published_per_s"]), (&7.into(), &0.0.into()));
        assert!(value.as_object().unwrap().values().all(|value| !value.is_object()));
    }

    #[test]
    fn what_is_on_disk_and_who_is_blocked_is_said() {
        let shown = Stats {
            queues: 8,
            queues_blocked: 7,
            spilled_messages: 1234,
            refilling: 2,
            disk_limit_bytes: 1 << 30,
            disk_written_bytes: 3 << 20,
            spill_state: Some("full: disk_limit".to_owned()),
            ..stats(9, 0)
        };
        let why = "the broker's memory limit leaves no room".to_owned();
        let blocked: Vec<_> = (0..7).map(|nth| (format!("q{nth}"), why.clone())).collect();
        let rates = Rates { disk_written: 2048.0, ..Rates::default() };
        let text = stats_text(&shown, Some(rates), &blocked);
        for part in [
            "1,234 messages, ",
            "; 2 chunks refilling\n",
            "full: disk_limit; ",
            "limit 1.0 GiB",
            "to disk       3.0 MiB  2.0 KiB/s\n",
            "q4 is blocked: the broker's memory limit leaves no room\n",
            "and 2 more\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(!text.contains("q5 "), "{text}");
        assert!(stats_text(&stats(0, 0), None, &[]).contains("off: nothing is spilled"));
    }

    #[test]
    fn intervals_have_a_least_length() {
        assert_eq!(parse_interval("1s"), Ok(Duration::from_secs(1)));
        assert!(parse_interval("1ms").is_err() && parse_interval("1").is_err());
    }
}
