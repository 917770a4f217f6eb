//! `queue`: create, list, show, update, delete, purge, peek.

use crate::base::units::{parse_bytes, show_bytes};
use crate::cli::broker::BrokerArgs;
use crate::cli::failure::Outcome;
use crate::cli::fields::{Fields, number_lines};
use crate::cli::message::MessageLine;
use crate::cli::output::Output;
use crate::cli::rules::{RuleArgs, without_default};
use crate::cli::subscription;
use crate::cli::table::{self, Align, Table, excerpt, thousands};
use crate::cli::wall::rfc3339;
use crate::client::{
    ConfirmAt, OnFull, Peeked, QueueChange, QueueCounters, QueueDescription, QueueOptions,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use std::fmt::Write as _;

/// The arguments of `queue`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct QueueArgs {
    #[command(flatten)]
    pub(super) broker: BrokerArgs,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Create a queue; fine if it is there already, with the same options
    Create {
        /// 1 to 200 of A-Z a-z 0-9 . _ - :
        name: String,
        #[command(flatten)]
        options: OptionArgs,
        /// A subscription, instead of the one named `default`; may be given several times
        #[arg(long, value_name = "NAME", help_heading = "Subscriptions")]
        subscription: Vec<String>,
        #[command(flatten)]
        rules: Box<RuleArgs>,
        /// Keep it on disk: it outlives the broker, and messages are confirmed when they are safe
        #[arg(long)]
        durable: bool,
        /// What a message of a durable queue has reached when it is confirmed
        #[arg(long, requires = "durable", default_value = "synced")]
        confirm: ConfirmArg,
    },
    /// List the queues, by name
    #[command(visible_alias = "ls")]
    List {
        /// Only those whose names begin so
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show one queue: what it holds, its options, all its counters
    Show {
        /// Name of the queue
        name: String,
    },
    /// Change options of a queue; what is not named stays
    #[command(arg_required_else_help = true, mut_args = without_default)]
    Update {
        /// Name of the queue
        name: String,
        #[command(flatten)]
        options: OptionArgs,
    },
    /// Delete a queue and everything in it
    #[command(visible_alias = "rm")]
    Delete {
        /// Name of the queue
        name: String,
        /// Only if nothing is in it
        #[arg(long)]
        if_empty: bool,
    },
    /// Remove the ready messages of a queue; those in flight stay
    Purge {
        /// Name of the queue
        name: String,
        /// Only of this subscription [default: of all]
        #[arg(long, value_name = "NAME")]
        subscription: Option<String>,
    },
    /// Look at the first ready messages without taking them
    Peek {
        /// Name of the queue
        name: String,
        /// How many
        #[arg(long, value_name = "N", default_value_t = 10)]
        count: u32,
        /// Pass over so many first
        #[arg(long, value_name = "N", default_value_t = 0)]
        skip: u64,
        /// Those of this subscription
        #[arg(long, value_name = "NAME", default_value = "default")]
        subscription: String,
    },
}

/// Options of a queue, where they are given.
#[derive(Args, Clone, Debug)]
struct OptionArgs {
    /// Messages that it may hold; 0: no limit
    #[arg(long, value_name = "N")]
    messages_max: Option<u64>,

    /// Bytes that it may hold, such as 1GiB; 0: no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    bytes_max: Option<u64>,

    /// What happens to a message when it is full [default: block]
    #[arg(long, value_name = "POLICY")]
    on_full: Option<OnFullArg>,

    /// Largest body of a message, such as 64KiB; 0: what the broker takes
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    message_bytes_max: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnFullArg {
    /// Its publisher waits
    Block,
    /// Its publisher gets an error
    Reject,
    /// The oldest message that nobody has in flight goes
    #[value(alias = "drop_oldest")]
    DropOldest,
    /// It goes itself; its publisher is told
    #[value(alias = "drop_newest")]
    DropNewest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConfirmArg {
    /// The device keeps it, also when the power fails
    Synced,
    /// The system has it: it outlives the broker, not the machine
    Written,
}

impl ConfirmArg {
    fn wire(self) -> ConfirmAt {
        match self {
            ConfirmArg::Synced => ConfirmAt::Synced,
            ConfirmArg::Written => ConfirmAt::Written,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  forebay queue create orders
  forebay queue create orders --durable
  forebay queue create recent --messages-max 1000 --on-full drop-oldest
  forebay queue create events --subscription billing --subscription search
  forebay queue create mail --lease 2m --max-attempts 5 --backoff exponential:10s..1h
  forebay queue list
  forebay queue show orders --json | jq .ready
  forebay queue peek orders --count 3

`forebay help` lists the exit codes.";

impl OptionArgs {
    fn options(&self, durable: bool, confirm: ConfirmArg) -> QueueOptions {
        QueueOptions {
            durable,
            confirm: confirm.wire(),
            messages_max: self.messages_max.unwrap_or(0),
            bytes_max: self.bytes_max.unwrap_or(0),
            on_full: self.on_full.map_or(OnFull::Block, OnFullArg::wire),
            message_bytes_max: self.message_bytes_max.unwrap_or(0),
        }
    }

    fn change(&self) -> QueueChange {
        QueueChange {
            messages_max: self.messages_max,
            bytes_max: self.bytes_max,
            on_full: self.on_full.map(OnFullArg::wire),
            message_bytes_max: self.message_bytes_max,
        }
    }
}

impl OnFullArg {
    fn wire(self) -> OnFull {
        match self {
            OnFullArg::Block => OnFull::Block,
            OnFullArg::Reject => OnFull::Reject,
            OnFullArg::DropOldest => OnFull::DropOldest,
            OnFullArg::DropNewest => OnFull::DropNewest,
        }
    }
}

/// Runs `queue ...`.
///
/// # Errors
/// What the broker refuses, or that it cannot be reached.
pub fn run(args: &QueueArgs) -> Outcome {
    let (broker, out) = (&args.broker, Output::new(args.broker.json));
    match &args.action {
        Action::Create { name, options, subscription, rules, durable, confirm } => {
            let options = options.options(*durable, *confirm);
            create(broker, out, name, &options, (subscription, rules))
        }
        Action::List { prefix } => list(broker, out, prefix),
        Action::Show { name } => {
            let failure = |error| broker.queue_failure(name, error);
            let mut connection = broker.connect()?;
            let queue = connection.queue_describe(name).map_err(failure)?;
            let subscriptions = connection.subscription_list(name).map_err(failure)?;
            let mut fields = queue_fields(&queue);
            let each: Vec<Fields> = subscriptions.iter().map(subscription::fields).collect();
            fields.push("subscriptions", json!(each));
            let table = subscription::table(&subscriptions);
            out.finish(&fields, format!("{}subscriptions\n{table}", queue_text(&queue)))
        }
        Action::Update { name, options } => {
            let changed = broker.connect()?.queue_update(name, &options.change());
            changed.map_err(|error| broker.queue_failure(name, error))?;
            let mut fields = Fields::default();
            fields.push("name", name.as_str());
            out.finish(&fields, format!("changed queue {name}\n"))
        }
        Action::Delete { name, if_empty } => {
            let deleted = broker.connect()?.queue_delete(name, *if_empty);
            let removed = deleted.map_err(|error| broker.queue_failure(name, error))?;
            removal(out, name, "deleted", removed.messages, removed.bytes)
        }
        Action::Purge { name, subscription: None } => {
            let purged = broker.connect()?.queue_purge(name);
            let removed = purged.map_err(|error| broker.queue_failure(name, error))?;
            removal(out, name, "purged", removed.messages, removed.bytes)
        }
        Action::Purge { name, subscription: Some(of) } => {
            let purged = broker.connect()?.subscription_purge(name, of);
            let removed = purged.map_err(|error| broker.subscription_failure(name, of, error))?;
            removal(out, name, "purged", removed.messages, removed.bytes)
        }
        Action::Peek { name, count, skip, subscription } => {
            let peeked = broker.connect()?.subscription_peek(name, subscription, *count, *skip);
            let failure = |error| broker.subscription_failure(name, subscription, error);
            peek(out, name, &peeked.map_err(failure)?)
        }
    }
}

fn create(
    broker: &BrokerArgs,
    out: Output,
    name: &str,
    options: &QueueOptions,
    (subscriptions, rules): (&[String], &RuleArgs),
) -> Outcome {
    let names: Vec<&str> = subscriptions.iter().map(String::as_str).collect();
    let rules = rules.options();
    let created = broker.connect()?.queue_create_with(name, options, &names, &rules);
    let created = created.map_err(|error| broker.queue_failure(name, error))?;
    let mut fields = Fields::default();
    fields.push("name", name);
    fields.push("created", created);
    fields.push("durable", options.durable);
    let text = match (created, options.durable) {
        (false, _) => format!("queue {name} is there already, with these options\n"),
        (true, true) => format!("created queue {name}\n"),
        (true, false) => format!("created queue {name} (transient: it ends with the broker)\n"),
    };
    out.finish(&fields, text)
}

fn removal(out: Output, name: &str, done: &str, messages: u64, bytes: u64) -> Outcome {
    let mut fields = Fields::default();
    fields.push("name", name);
    fields.extend([("messages", messages), ("bytes", bytes)]);
    let (messages, bytes) = (table::messages(messages), show_bytes(bytes));
    out.finish(&fields, format!("{done} queue {name}: {messages}, {bytes} removed\n"))
}

/// For programs an array, one queue to a line.
fn list(broker: &BrokerArgs, mut out: Output, prefix: &str) -> Outcome {
    let listed = broker.connect()?.queue_list(prefix);
    let queues = listed.map_err(|error| broker.failure(error))?;
    if out.json {
        out.json_array(queues.iter().map(queue_fields))?;
        return out.flush();
    }
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("READY", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("DELAYED", Align::Right),
        ("BYTES", Align::Right),
        ("PUBLISHED", Align::Right),
        ("ACKED", Align::Right),
        ("PRODUCERS", Align::Right),
        ("CONSUMERS", Align::Right),
        ("STATE", Align::Left),
    ]);
    for queue in &queues {
        table.row(vec![
            queue.name.clone(),
            thousands(queue.ready),
            thousands(queue.in_flight),
            thousands(queue.delayed),
            show_bytes(queue.bytes),
            thousands(queue.counters.published),
            thousands(queue.counters.acked),
            thousands(queue.producers.into()),
            thousands(queue.consumers.into()),
            if queue.blocked { "blocked" } else { "open" }.to_owned(),
        ]);
    }
    out.text(table)?;
    out.flush()
}

fn peek(mut out: Output, name: &str, peeked: &Peeked) -> Outcome {
    if out.json {
        for message in &peeked.messages {
            out.json_line(&MessageLine::of_peeked(name, message))?;
        }
        return out.flush();
    }
    const BODY_CHARS: usize = 60;
    let mut table = Table::new(&[
        ("SEQUENCE", Align::Right),
        ("ACCEPTED", Align::Left),
        ("BYTES", Align::Right),
        ("BODY", Align::Left),
    ]);
    for message in &peeked.messages {
        table.row(vec![
            message.sequence.to_string(),
            rfc3339(message.accepted_wall_us),
            thousands(message.body_bytes),
            excerpt(message.body.as_deref().unwrap_or_default(), BODY_CHARS),
        ]);
    }
    out.text(table)?;
    out.flush()
}

/// The counters by their names in the protocol.
pub fn counter_numbers(counters: &QueueCounters) -> [(&'static str, u64); 18] {
    [
        ("published", counters.published),
        ("published_bytes", counters.published_bytes),
        ("duplicates", counters.duplicates),
        ("refused", counters.refused),
        ("delivered", counters.delivered),
        ("delivered_bytes", counters.delivered_bytes),
        ("redelivered", counters.redelivered),
        ("acked", counters.acked),
        ("returned", counters.returned),
        ("failed", counters.failed),
        ("dead_lettered", counters.dead_lettered),
        ("expired", counters.expired),
        ("dropped_oldest", counters.dropped_oldest),
        ("dropped_newest", counters.dropped_newest),
        ("purged", counters.purged),
        ("lost_damaged", counters.lost_damaged),
        ("moved_in", counters.moved_in),
        ("redriven", counters.redriven),
    ]
}

fn on_full_name(on_full: OnFull) -> &'static str {
    match on_full {
        OnFull::Block => "block",
        OnFull::Reject => "reject",
        OnFull::DropOldest => "drop_oldest",
        OnFull::DropNewest => "drop_newest",
        _ => "unknown",
    }
}

fn held_numbers(queue: &QueueDescription) -> [(&'static str, u64); 9] {
    [
        ("ready", queue.ready),
        ("in_flight", queue.in_flight),
        ("delayed", queue.delayed),
        ("dead_lettering", queue.dead_lettering),
        ("bytes", queue.bytes),
        ("memory_bytes", queue.memory_bytes),
        ("spilled_messages", queue.spilled_messages),
        ("spilled_bytes", queue.spilled_bytes),
        ("refilling", queue.refilling.into()),
    ]
}

/// All of a queue, flat.
fn queue_fields(queue: &QueueDescription) -> Fields {
    let mut fields = Fields::default();
    fields.push("name", queue.name.as_str());
    fields.push("durable", queue.options.durable);
    fields.extend(held_numbers(queue));
    fields.extend(counter_numbers(&queue.counters));
    fields.extend([
        ("messages_max", queue.options.messages_max),
        ("bytes_max", queue.options.bytes_max),
    ]);
    fields.push("on_full", on_full_name(queue.options.on_full));
    fields.extend([
        ("message_bytes_max", queue.options.message_bytes_max),
        ("producers", queue.producers.into()),
        ("consumers", queue.consumers.into()),
    ]);
    fields.push("blocked", queue.blocked);
    fields.push("blocked_reason", queue.blocked_reason.clone().filter(|reason| !reason.is_empty()));
    fields.push("created_at", rfc3339(queue.created_wall_us));
    fields.extend([
        ("created_us", queue.created_wall_us),
        ("shard", queue.shard.into()),
        ("first_sequence", queue.first_sequence),
        ("next_sequence", queue.next_sequence),
    ]);
    fields
}

fn queue_text(queue: &QueueDescription) -> String {
    let options = &queue.options;
    let limit = |value: u64, shown: String| if value == 0 { "no limit".to_owned() } else { shown };
    let mut text = format!("{}\n", queue.name);
    let kind = match (options.durable, options.confirm) {
        (false, _) => "transient: it ends with the broker",
        (true, ConfirmAt::Written) => "durable, confirms when written",
        (true, _) => "durable, confirms when synced",
    };
    let lines = [
        ("kind", kind.to_owned()),
        ("created", rfc3339(queue.created_wall_us)),
        (
            "state",
            match queue.blocked {
                false => "open".to_owned(),
                true => format!("blocked: {}", queue.blocked_reason.as_deref().unwrap_or("full")),
            },
        ),
        ("messages max", limit(options.messages_max, thousands(options.messages_max))),
        ("bytes max", limit(options.bytes_max, show_bytes(options.bytes_max))),
        (
            "message max",
            match options.message_bytes_max {
                0 => "as the broker".to_owned(),
                bytes => show_bytes(bytes),
            },
        ),
        ("on full", on_full_name(options.on_full).to_owned()),
        ("connected", format!("{} producers, {} consumers", queue.producers, queue.consumers)),
    ];
    for (name, value) in lines {
        writeln!(text, "  {name:<14}{value}").expect("writing to a string does not fail");
    }
    text.push_str("holds\n");
    text.push_str(&number_lines("  ", &held_numbers(queue)));
    text.push_str("since it was created\n");
    text.push_str(&number_lines("  ", &counter_numbers(&queue.counters)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> QueueDescription {
        let counters = QueueCounters {
            published: 10,
            acked: 4,
            purged: 1,
            refused: 3,
            ..QueueCounters::default()
        };
        QueueDescription {
            name: "jobs".into(),
            ready: 3,
            in_flight: 2,
            counters: Box::new(counters),
            ..QueueDescription::default()
        }
    }

    #[test]
    fn a_queue_for_programs_is_flat_and_its_sum_can_be_checked() {
        let value = serde_json::to_value(queue_fields(&description())).unwrap();
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("no {name}"));
        let ways_out = ["acked", "dead_lettered", "expired", "dropped_oldest", "dropped_newest"];
        let sum: u64 = ways_out.iter().map(|name| number(name)).sum::<u64>()
            + ["purged", "lost_damaged", "redriven"].iter().map(|name| number(name)).sum::<u64>()
            + ["ready", "in_flight", "delayed", "dead_lettering"]
                .iter()
                .map(|name| number(name))
                .sum::<u64>();
        assert_eq!(number("published"), sum);
        for name in ["bytes", "memory_bytes", "spilled_bytes", "refused", "delivered_bytes"] {
            number(name);
        }
        assert_eq!(value["on_full"], "block");
        assert!(value.as_object().unwrap().values().all(|value| !value.is_object()));
    }

    #[test]
    fn a_queue_for_people_says_it_all() {
        let text = queue_text(&description());
        for part in ["jobs\n", "transient", "no limit", "published", "lost damaged", "in flight"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
