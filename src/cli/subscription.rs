//! `subscription`: create, list, show, update, delete.

use crate::base::units::show_bytes;
use crate::cli::broker::BrokerArgs;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::fields::{Fields, number_lines};
use crate::cli::output::Output;
use crate::cli::rules::{RuleArgs, Rules, without_default};
use crate::cli::table::{self, Align, Table, thousands};
use crate::cli::wall::rfc3339;
use crate::client::{ClientError, Start, SubscriptionDescription};
use clap::{Args, Subcommand, ValueEnum};
use std::fmt::Write as _;

/// The arguments of `subscription`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct SubscriptionArgs {
    #[command(flatten)]
    pub(super) broker: BrokerArgs,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Create a subscription; fine if it is there already, with the same options
    Create {
        #[command(flatten)]
        of: Of,
        /// Which messages it gets
        #[arg(long, value_name = "FROM", default_value = "now")]
        start: StartArg,
        #[command(flatten)]
        rules: RuleArgs,
    },
    /// List the subscriptions of a queue, by name
    #[command(visible_alias = "ls")]
    List {
        /// Name of the queue
        queue: String,
    },
    /// Show one subscription: what it holds, its options, all its counters
    Show {
        #[command(flatten)]
        of: Of,
    },
    /// Change options of a subscription; what is not named stays
    #[command(arg_required_else_help = true, mut_args = without_default)]
    Update {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        rules: RuleArgs,
    },
    /// Delete a subscription and its place in the queue
    #[command(visible_alias = "rm")]
    Delete {
        #[command(flatten)]
        of: Of,
        /// Also while consumers have it open; they are told
        #[arg(long)]
        force: bool,
    },
}

/// Names a subscription.
#[derive(Args, Clone, Debug)]
struct Of {
    /// Name of the queue
    queue: String,
    /// Name of the subscription: 1 to 200 of A-Z a-z 0-9 . _ - :
    name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StartArg {
    /// What is published from now on
    Now,
    /// Also everything that the queue still holds for another subscription
    Oldest,
}

const EXAMPLES: &str = "\
A queue has one subscription, `default`, unless others are named when it is created. Each gets every
message; the consumers of one share its messages.

Examples:
  forebay subscription create orders billing --start oldest --max-attempts 5
  forebay subscription list orders
  forebay subscription update orders billing --lease 2m --backoff fixed:10s
  forebay consume orders --subscription billing

`forebay help` lists the exit codes.";

/// Runs `subscription ...`.
///
/// # Errors
/// What the broker refuses, or that it cannot be reached.
pub fn run(args: &SubscriptionArgs) -> Outcome {
    let (broker, mut out) = (&args.broker, Output::new(args.broker.json));
    match &args.action {
        Action::Create { of, start, rules } => {
            let start = match start {
                StartArg::Now => Start::Now,
                StartArg::Oldest => Start::Oldest,
            };
            let Of { queue, name } = of;
            let made = broker.connect()?.subscription_create(queue, name, &rules.options(), start);
            let created = made.map_err(|error| of.failure(broker, error))?;
            let mut fields = of.fields();
            fields.push("created", created);
            let done = if created { "created" } else { "there already, with these options:" };
            out.finish(&fields, format!("{done} subscription {name} of {queue}\n"))
        }
        Action::List { queue } => {
            let listed = broker.connect()?.subscription_list(queue);
            let all = listed.map_err(|error| broker.queue_failure(queue, error))?;
            if out.json {
                out.json_array(all.iter().map(fields))?;
            } else {
                out.text(table(&all))?;
            }
            out.flush()
        }
        Action::Show { of } => {
            let shown = broker.connect()?.subscription_describe(&of.queue, &of.name);
            let shown = shown.map_err(|error| of.failure(broker, error))?;
            out.finish(&fields(&shown), text(&shown))
        }
        Action::Update { of, rules } => {
            let Of { queue, name } = of;
            let changed = broker.connect()?.subscription_update(queue, name, &rules.options());
            changed.map_err(|error| of.failure(broker, error))?;
            out.finish(&of.fields(), format!("changed subscription {name} of {queue}\n"))
        }
        Action::Delete { of, force } => {
            let Of { queue, name } = of;
            let deleted = broker.connect()?.subscription_delete(queue, name, *force);
            let removed = deleted.map_err(|error| of.failure(broker, error))?;
            let mut fields = of.fields();
            fields.extend([("messages", removed.messages), ("bytes", removed.bytes)]);
            let (messages, bytes) = (table::messages(removed.messages), show_bytes(removed.bytes));
            let text =
                format!("deleted subscription {name} of {queue}: it had {messages}, {bytes}\n");
            out.finish(&fields, text)
        }
    }
}

impl Of {
    fn fields(&self) -> Fields {
        let mut fields = Fields::default();
        fields.push("queue", self.queue.as_str());
        fields.push("name", self.name.as_str());
        fields
    }

    fn failure(&self, broker: &BrokerArgs, error: ClientError) -> Failure {
        broker.subscription_failure(&self.queue, &self.name, error)
    }
}

fn held_numbers(shown: &SubscriptionDescription) -> [(&'static str, u64); 5] {
    [
        ("ready", shown.ready),
        ("in_flight", shown.in_flight),
        ("delayed", shown.delayed),
        ("dead_lettering", shown.dead_lettering),
        ("bytes", shown.bytes),
    ]
}

fn counter_numbers(shown: &SubscriptionDescription) -> [(&'static str, u64); 13] {
    [
        ("entered", shown.entered),
        ("delivered", shown.delivered),
        ("delivered_bytes", shown.delivered_bytes),
        ("redelivered", shown.redelivered),
        ("acked", shown.acked),
        ("returned", shown.returned),
        ("failed", shown.failed),
        ("dead_lettered", shown.dead_lettered),
        ("expired", shown.expired),
        ("dropped", shown.dropped),
        ("purged", shown.purged),
        ("redriven", shown.redriven),
        ("lost", shown.lost),
    ]
}

/// All of a subscription, flat.
pub fn fields(shown: &SubscriptionDescription) -> Fields {
    let mut fields = Fields::default();
    fields.push("queue", shown.queue.as_str());
    fields.push("name", shown.name.as_str());
    fields.extend(held_numbers(shown));
    fields.extend(counter_numbers(shown));
    Rules::of(shown).push_to(&mut fields);
    let said = |reason: &Option<String>| reason.clone().filter(|reason| !reason.is_empty());
    fields.push("consumers", shown.consumers);
    fields.push("paused_reason", said(&shown.paused_reason));
    fields.push("dead_letter_reason", said(&shown.dead_letter_reason));
    fields.push("created_at", rfc3339(shown.created_wall_us));
    fields.extend([
        ("created_us", shown.created_wall_us),
        ("cursor_sequence", shown.cursor_sequence),
    ]);
    fields
}

/// Subscriptions for people, a row each.
pub fn table(all: &[SubscriptionDescription]) -> Table {
    let mut table = Table::new(&[
        ("SUBSCRIPTION", Align::Left),
        ("READY", Align::Right),
        ("IN FLIGHT", Align::Right),
        ("DELAYED", Align::Right),
        ("ACKED", Align::Right),
        ("FAILED", Align::Right),
        ("DEAD LETTERS", Align::Right),
        ("CONSUMERS", Align::Right),
        ("STATE", Align::Left),
    ]);
    for shown in all {
        table.row(vec![
            shown.name.clone(),
            thousands(shown.ready),
            thousands(shown.in_flight),
            thousands(shown.delayed),
            thousands(shown.acked),
            thousands(shown.failed),
            thousands(shown.dead_lettered),
            thousands(shown.consumers.into()),
            state(shown),
        ]);
    }
    table
}

/// What keeps it from going on, if anything does.
fn state(shown: &SubscriptionDescription) -> String {
    let paused = shown.paused_reason.as_deref().filter(|reason| !reason.is_empty());
    let stuck = shown.dead_letter_reason.as_deref().filter(|reason| !reason.is_empty());
    let paused = paused.map(|reason| format!("paused: {reason}"));
    let stuck = stuck
        .map(|reason| format!("{} dead letters wait: {reason}", thousands(shown.dead_lettering)));
    let parts: Vec<String> = paused.into_iter().chain(stuck).collect();
    if parts.is_empty() { "open".to_owned() } else { parts.join("; ") }
}

fn text(shown: &SubscriptionDescription) -> String {
    let mut text = format!("{} of queue {}\n", shown.name, shown.queue);
    let lines = [
        ("created", rfc3339(shown.created_wall_us)),
        ("state", state(shown)),
        ("connected", format!("{} consumers", shown.consumers)),
    ];
    for (name, value) in lines.into_iter().chain(Rules::of(shown).lines()) {
        writeln!(text, "  {name:<14}{value}").expect("writing to a string does not fail");
    }
    text.push_str("holds\n");
    text.push_str(&number_lines("  ", &held_numbers(shown)));
    text.push_str("since it was created\n");
    text.push_str(&number_lines("  ", &counter_numbers(shown)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description() -> SubscriptionDescription {
        SubscriptionDescription {
            queue: "jobs".into(),
            name: "billing".into(),
            ready: 3,
            dead_lettering: 2,
            entered: 10,
            acked: 5,
            dead_letter_reason: Some("queue_messages_max".into()),
            ..SubscriptionDescription::default()
        }
    }

    #[test]
    fn a_subscription_for_programs_is_flat_and_its_sum_can_be_checked() {
        let value = serde_json::to_value(fields(&description())).unwrap();
        let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("no {name}"));
        let parts = ["acked", "dead_lettered", "expired", "dropped", "purged", "redriven"];
        let held = ["ready", "in_flight", "delayed", "dead_lettering"];
        let sum = parts.iter().chain(&held).map(|name| number(name)).sum::<u64>();
        assert_eq!(number("entered"), sum);
        assert_eq!(value["paused_reason"], serde_json::Value::Null);
        assert!(value.as_object().unwrap().values().all(|value| !value.is_object()));
    }

    #[test]
    fn a_subscription_for_people_says_what_is_wrong() {
        let text = text(&description());
        for part in ["billing of queue jobs", "2 dead letters wait: queue_messages_max", "30.0 s"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
