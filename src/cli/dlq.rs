//! `dlq`: show dead letters, and redrive them.

use crate::cli::broker::BrokerArgs;
use crate::cli::failure::{Exit, Failure, Outcome};
use crate::cli::fields::Fields;
use crate::cli::message::MessageLine;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::publish::parse_rate;
use crate::cli::rules::{Rules, own_grave};
use crate::cli::source::Pace;
use crate::cli::table::{self, Align, Table, excerpt, thousands};
use crate::cli::wall::rfc3339;
use crate::client::{Connection, ErrorCode, PeekedMessage, Properties, Redrive};
use crate::limits::REDRIVE_COUNT_MAX;
use clap::{Args, Subcommand};
use serde::Serialize;

/// The arguments of `dlq`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct DlqArgs {
    #[command(flatten)]
    pub(super) broker: BrokerArgs,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Show dead letters: where each comes from, why, how often it was tried, and when
    Show {
        /// The queue that they come from, or a dead-letter queue
        queue: String,
        /// Only those of this subscription
        #[arg(long, value_name = "NAME")]
        subscription: Option<String>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 10)]
        count: u64,
    },
    /// Move dead letters back to the queues that they come from
    Redrive(RedriveArgs),
}

#[derive(Args, Debug)]
struct RedriveArgs {
    /// The queue that they come from, or a dead-letter queue
    queue: String,

    /// How many at most [default: all that are there now]
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Messages per second, such as 100 or 100/s [default: as fast as it goes]
    #[arg(long, value_name = "R", value_parser = parse_rate_of)]
    rate: Option<f64>,

    /// Only those with this header, such as dead-letter-reason=rejected
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_filter)]
    filter: Option<(String, String)>,

    /// Move them to this queue instead
    #[arg(long, value_name = "QUEUE")]
    to: Option<String>,
}

const EXAMPLES: &str = "\
A message becomes a dead letter when it was rejected, or when it failed --max-attempts times. It
then stands in another queue, NAME.dead unless --dead-letter says otherwise. Redriven, it is a new
message of the queue that it came from, with no failures.

Examples:
  forebay dlq show orders
  forebay dlq show orders --subscription billing --count 100 --json | jq -r .error
  forebay dlq redrive orders
  forebay dlq redrive orders --count 1
  forebay dlq redrive orders --rate 50/s --filter dead-letter-reason=max_attempts

`forebay help` lists the exit codes.";

fn parse_rate_of(text: &str) -> Result<f64, String> {
    parse_rate(text.trim().strip_suffix("/s").unwrap_or(text))
}

fn parse_filter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) => Err("the key is missing: write KEY=VALUE".to_owned()),
        None => Err("there is no `=`: write KEY=VALUE".to_owned()),
    }
}

/// Runs `dlq ...`.
///
/// # Errors
/// What the broker refuses, or that it cannot be reached.
pub fn run(args: &DlqArgs) -> Outcome {
    match &args.action {
        Action::Show { queue, subscription, count } => {
            show(&args.broker, queue, subscription.as_deref(), *count)
        }
        Action::Redrive(redrive_args) => redrive(&args.broker, redrive_args),
    }
}

// ---- where dead letters are ----

/// The header that says which queue a dead letter comes from.
const ORIGIN: &str = "dead-letter-queue";
/// And which subscription.
const SUBSCRIPTION: &str = "dead-letter-subscription";

/// A dead-letter queue, and what in it is meant.
struct Grave {
    name: String,
    /// Only those of this queue: it is not alone there.
    origin: Option<String>,
}

impl Grave {
    /// What `queue` means: a dead-letter queue is one that has dead letters in it; any other has
    /// its own elsewhere. `None` if there is no such queue yet, for nothing has died.
    fn find(
        broker: &BrokerArgs,
        connection: &mut Connection,
        queue: &str,
        subscription: Option<&str>,
    ) -> Result<Option<Grave>, Failure> {
        let failure = |error| broker.queue_failure(queue, error);
        let first = connection.queue_peek(queue, 1, 0);
        let first = match first {
            Err(error) if error.code() == Some(ErrorCode::SubscriptionNotFound) => None,
            first => first.map_err(failure)?.messages.into_iter().next(),
        };
        if first.is_some_and(|message| Letter::of(&message).is_some()) {
            return Ok(Some(Grave { name: queue.to_owned(), origin: None }));
        }
        let all = connection.subscription_list(queue).map_err(failure)?;
        if let Some(name) = subscription
            && !all.iter().any(|shown| shown.name == name)
        {
            return Err(broker.subscription_missing(queue, name));
        }
        let meant = |name: &str| subscription.is_none_or(|wanted| wanted == name);
        let mut names: Vec<String> = all
            .iter()
            .filter(|shown| meant(&shown.name))
            .map(|shown| Rules::of(shown).dead_letter)
            .collect();
        names.sort_unstable();
        names.dedup();
        let name = match names.as_slice() {
            [] => own_grave(queue),
            [name] => name.clone(),
            several => {
                let text = format!(
                    "the subscriptions of `{queue}` have several dead-letter queues: {}",
                    several.join(", ")
                );
                let failure = Failure::new(Exit::Usage, "several_dead_letter_queues", text);
                return Err(failure.hint("name one of them, or a --subscription"));
            }
        };
        let is_shared = name != own_grave(queue);
        let origin = is_shared.then(|| queue.to_owned());
        match connection.queue_describe(&name) {
            Ok(_) => Ok(Some(Grave { name, origin })),
            Err(error) if error.code() == Some(ErrorCode::QueueNotFound) => Ok(None),
            Err(error) => Err(broker.queue_failure(&name, error)),
        }
    }
}

/// What a dead letter says of itself.
struct Letter<'a> {
    properties: Properties<'a>,
}

impl<'a> Letter<'a> {
    fn of(message: &'a PeekedMessage) -> Option<Letter<'a>> {
        let properties = Properties::new(message.properties.as_deref().unwrap_or_default());
        let letter = Letter { properties };
        letter.text(ORIGIN).is_some().then_some(letter)
    }

    fn text(&self, key: &str) -> Option<String> {
        let mut headers = self.properties.headers();
        let found = headers.find(|(name, _)| *name == key.as_bytes());
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    }

    fn number(&self, key: &str) -> u64 {
        self.text(key).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn is(&self, key: &str, wanted: Option<&str>) -> bool {
        wanted.is_none_or(|wanted| self.text(key).as_deref() == Some(wanted))
    }
}

// ---- show ----

/// A dead letter for programs: where it comes from and why, then the message.
#[derive(Serialize)]
struct LetterLine<'a> {
    origin_queue: Option<String>,
    origin_subscription: Option<String>,
    origin_sequence: u64,
    reason: Option<String>,
    error: Option<String>,
    origin_attempts: u64,
    first_failed_at: String,
    first_failed_us: u64,
    last_failed_at: String,
    last_failed_us: u64,
    hops: u64,
    #[serde(flatten)]
    message: MessageLine<'a>,
}

/// Messages asked for at once.
const PEEK_COUNT: u32 = 100;

fn show(broker: &BrokerArgs, queue: &str, subscription: Option<&str>, count: u64) -> Outcome {
    let mut out = Output::new(broker.json);
    let mut connection = broker.connect()?;
    let grave = Grave::find(broker, &mut connection, queue, subscription)?;
    let mut table = Table::new(&[
        ("SEQUENCE", Align::Right),
        ("FROM", Align::Left),
        ("REASON", Align::Left),
        ("ATTEMPTS", Align::Right),
        ("FIRST FAILED", Align::Left),
        ("LAST FAILED", Align::Left),
        ("ERROR", Align::Left),
        ("BODY", Align::Left),
    ]);
    let (mut skip, mut shown) = (0, 0);
    while let Some(grave) = &grave {
        let peeked = connection.queue_peek(&grave.name, PEEK_COUNT, skip);
        let peeked = peeked.map_err(|error| broker.queue_failure(&grave.name, error))?;
        for message in &peeked.messages {
            let Some(letter) = Letter::of(message) else { continue };
            let origin = grave.origin.as_deref();
            if shown == count
                || !letter.is(ORIGIN, origin)
                || !letter.is(SUBSCRIPTION, subscription)
            {
                continue;
            }
            shown += 1;
            if out.json {
                out.json_line(&letter.line(&grave.name, message))?;
            } else {
                table.row(letter.row(message));
            }
        }
        skip += peeked.messages.len() as u64;
        if shown == count || !peeked.more || peeked.messages.is_empty() {
            break;
        }
    }
    if !out.json {
        match shown {
            0 => out.text("no dead letters are ready\n")?,
            _ => out.text(table)?,
        }
    }
    out.flush()
}

impl<'a> Letter<'a> {
    fn line(&self, grave: &'a str, message: &'a PeekedMessage) -> LetterLine<'a> {
        let first_failed_us = self.number("dead-letter-first-us");
        let last_failed_us = self.number("dead-letter-last-us");
        LetterLine {
            origin_queue: self.text(ORIGIN),
            origin_subscription: self.text(SUBSCRIPTION),
            origin_sequence: self.number("dead-letter-sequence"),
            reason: self.text("dead-letter-reason"),
            error: self.text("dead-letter-error"),
            origin_attempts: self.number("dead-letter-attempts"),
            first_failed_at: rfc3339(first_failed_us),
            first_failed_us,
            last_failed_at: rfc3339(last_failed_us),
            last_failed_us,
            hops: self.number("dead-letter-hops"),
            message: MessageLine::of_peeked(grave, message),
        }
    }

    fn row(&self, message: &PeekedMessage) -> Vec<String> {
        let text = |key| self.text(key).unwrap_or_default();
        // To the second: the table is wide.
        let time = |key| {
            let micros = self.number(key);
            rfc3339(micros - micros % 1_000_000).replace(".000000", "")
        };
        let error = text("dead-letter-error");
        vec![
            message.sequence.to_string(),
            format!("{}/{}", text(ORIGIN), text(SUBSCRIPTION)),
            text("dead-letter-reason"),
            thousands(self.number("dead-letter-attempts")),
            time("dead-letter-first-us"),
            time("dead-letter-last-us"),
            excerpt(error.as_bytes(), 40),
            excerpt(message.body.as_deref().unwrap_or_default(), 40),
        ]
    }
}

// ---- redrive ----

fn redrive(broker: &BrokerArgs, args: &RedriveArgs) -> Outcome {
    let out = Output::new(broker.json);
    let mut connection = broker.connect()?;
    let grave = Grave::find(broker, &mut connection, &args.queue, None)?;
    let Some(grave) = grave else {
        return Redriver::new(broker, args, &own_grave(&args.queue)).conclude(out);
    };
    let mut filter = args.filter.clone();
    if let Some(origin) = grave.origin {
        if filter.is_some() {
            let text = format!("`{}` has dead letters of other queues too", grave.name);
            let hint = format!("name it: forebay dlq redrive {} --filter ...", grave.name);
            return Err(Failure::new(Exit::Usage, "shared_dead_letter_queue", text)
                .hint(hint)
                .into());
        }
        filter = Some((ORIGIN.to_owned(), origin));
    }
    let mut redriver = Redriver::new(broker, args, &grave.name);
    redriver.run(&mut connection, filter)?;
    redriver.conclude(out)
}

/// Many small requests, so that it shows how far it is and can be stopped.
struct Redriver<'a> {
    broker: &'a BrokerArgs,
    args: &'a RedriveArgs,
    grave: &'a str,
    progress: Progress,
    messages: u64,
    refused: u64,
    reason: String,
}

impl<'a> Redriver<'a> {
    fn new(broker: &'a BrokerArgs, args: &'a RedriveArgs, grave: &'a str) -> Self {
        let progress = Progress::new(args.count, true, broker.json);
        Redriver { broker, args, grave, progress, messages: 0, refused: 0, reason: String::new() }
    }

    fn run(&mut self, connection: &mut Connection, filter: Option<(String, String)>) -> Outcome {
        let failure = |error| self.broker.queue_failure(self.grave, error);
        // What dies again while this goes on is left for another time.
        let end = connection.queue_describe(self.grave).map_err(failure)?.next_sequence;
        let step = self
            .args
            .rate
            .map_or(REDRIVE_COUNT_MAX, |rate| ((rate / 10.0) as u32).clamp(1, REDRIVE_COUNT_MAX));
        let mut pace = self.args.rate.map(|rate| Pace::new(rate / f64::from(step)));
        let mut after_sequence = 0;
        loop {
            let left = self.args.count.map_or(u64::MAX, |count| count - self.messages.min(count));
            if left == 0 {
                return Ok(());
            }
            if let Some(pace) = &mut pace {
                pace.wait();
            }
            let done = connection.redrive(&Redrive {
                queue: self.grave.to_owned(),
                target: self.args.to.clone(),
                count_max: u32::try_from(left).unwrap_or(u32::MAX).min(step),
                after_sequence,
                filter: filter.clone(),
            });
            let done = done.map_err(failure)?;
            self.messages += done.messages;
            self.refused += done.refused;
            if !done.reason.is_empty() {
                self.reason = done.reason;
            }
            self.progress.at(self.messages, self.messages);
            after_sequence = done.last_sequence.max(after_sequence);
            let stuck = done.refused > 0 && is_of_memory(&self.reason);
            if done.finished || after_sequence + 1 >= end || stuck {
                return Ok(());
            }
        }
    }

    fn conclude(self, mut out: Output) -> Outcome {
        let Redriver { args, grave, messages, refused, reason, .. } = &self;
        let elapsed_us = self.progress.elapsed().as_micros() as u64;
        self.progress.end("redrove", *messages);
        let mut fields = Fields::default();
        fields.push("queue", args.queue.as_str());
        fields.push("dead_letter_queue", *grave);
        fields.extend([("messages", *messages), ("refused", *refused)]);
        fields.push("reason", Some(reason.as_str()).filter(|reason| !reason.is_empty()));
        fields.extend([("elapsed_us", elapsed_us)]);
        if out.json {
            out.json_line(&fields)?;
        } else {
            let moved = table::messages(*messages);
            out.text(format!("redrove {moved} from queue {grave}\n"))?;
        }
        out.flush()?;
        if *refused == 0 {
            return Ok(());
        }
        if is_of_memory(reason) {
            let text = format!("dead letters stay in queue {grave}: {reason}");
            let failure = Failure::new(Exit::Failed, "redrive_refused", text);
            return Err(failure.hint("come again when the broker has room").into());
        }
        let text = format!(
            "{} dead letters stay in queue {grave}: {}",
            thousands(*refused),
            if reason.is_empty() { "refused" } else { reason }
        );
        let failure = Failure::new(Exit::Failed, "redrive_refused", text);
        Err(failure.hint("make room in their queues, or name another with --to").into())
    }
}

/// The broker has no room for messages, and has waited for it: the next ones would fare the same.
fn is_of_memory(reason: &str) -> bool {
    ErrorCode::from_name(reason).is_some_and(ErrorCode::is_of_memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_may_say_what_they_are() {
        assert_eq!(parse_rate_of("50/s"), Ok(50.0));
        assert_eq!(parse_rate_of("0.5"), Ok(0.5));
        for text in ["0", "-1/s", "fast", "50/m", ""] {
            assert!(parse_rate_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_filter_is_a_key_and_a_value() {
        assert_eq!(parse_filter("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_filter("a="), Ok(("a".into(), String::new())));
        assert!(parse_filter("=b").is_err() && parse_filter("a").is_err());
    }
}
