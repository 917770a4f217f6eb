//! L4: the command line. It knows the broker by the client library alone; the program joins it
//! with what works on a data directory: the server, for `serve`, and `store_tool`, for `store`.
//!
//! - one file per command: `serve` and `store` (arguments only), `queue`, `subscription`,
//!   `publish`, `consume`, `dlq`, `stats`, `trim`, `ping`
//! - `broker`, `failure`: how to reach a broker; what errors mean, with their exit codes
//! - `lines`, `source`, `pump`: what `publish` sends and how
//! - `rules`: how subscriptions treat messages, as flags and as text
//! - `output`, `table`, `fields`, `message`, `progress`, `wall`: what is shown and how

mod broker;
mod clock;
mod consume;
mod dlq;
mod failure;
mod fields;
mod lines;
mod message;
mod output;
mod ping;
mod progress;
mod publish;
mod pump;
mod queue;
mod rules;
mod serve;
mod source;
mod stats;
mod store;
mod subscription;
mod table;
mod trim;
pub(crate) mod wall;

#[cfg(test)]
mod tests;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
pub(crate) use failure::{Exit, Failure, conclude};
use std::ffi::OsString;
use std::process::ExitCode;

pub(crate) use failure::{Outcome, Stop};
pub(crate) use output::Output;
pub use serve::ServeArgs;
pub use store::{StoreAction, StoreArgs};
pub(crate) use table::{Align, Table, messages, thousands};

/// A message broker in memory that spills to disk when a spike outgrows memory.
#[derive(Parser, Debug)]
#[command(
    name = "forebay",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100,
    after_help = AFTER_HELP
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start a broker
    Serve(Box<ServeArgs>),
    /// Create, list, show, update, delete, purge and peek at queues
    Queue(queue::QueueArgs),
    /// Create, list, show, update and delete the subscriptions of a queue
    #[command(visible_alias = "sub")]
    Subscription(subscription::SubscriptionArgs),
    /// Publish messages: lines of standard input, arguments, or generated ones
    Publish(publish::PublishArgs),
    /// Take messages from a queue and write them to standard output
    Consume(consume::ConsumeArgs),
    /// Show the dead letters of a queue, or move them back
    Dlq(dlq::DlqArgs),
    /// Show what the broker holds and does
    Stats(stats::StatsArgs),
    /// Give free space of the broker's spill files back to the file system at once
    Trim(trim::TrimArgs),
    /// Look into the data directory of a broker that is stopped, check it, repair it
    Store(store::StoreArgs),
    /// Ask whether a broker is there; tries once
    Ping(ping::PingArgs),
    /// Print a script that completes this command line
    ///
    /// For bash: forebay completions bash > /etc/bash_completion.d/forebay
    Completions {
        /// Which shell
        shell: Shell,
    },
}

const AFTER_HELP: &str = "\
A first round:
  forebay serve                                 in one shell; in another:
  forebay queue create hello
  echo 'Hello, world' | forebay publish hello
  forebay consume hello

All commands but serve and store take --server ADDR (or FOREBAY_SERVER), --token TOKEN (or
FOREBAY_TOKEN) and --json. While no broker answers they try for 5 seconds, ping once.

Exit codes:
  0  done; also when the reader of standard output went away (`| head`)
  1  the broker refused the request, or a part of the work failed
  2  an option, setting or configuration that cannot be; nothing was done
  3  there is no such queue or subscription
  4  the broker cannot be reached, or went away
  5  it took longer than --timeout
  6  something in the data directory is damaged (`store verify`)";

/// Runs the command line of this process. `serve` starts a broker with the settings that it is
/// given and returns when that has stopped; `store` works on a data directory.
pub fn run(
    serve: impl FnOnce(ServeArgs) -> ExitCode,
    store: impl FnOnce(StoreArgs) -> ExitCode,
) -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let line = match CommandLine::try_parse_from(&arguments) {
        Ok(line) => line,
        Err(error) => return explain(&error, &arguments),
    };
    let (outcome, json) = match line.command {
        Command::Serve(args) => return serve(*args),
        Command::Store(args) => return store(args),
        Command::Queue(args) => (queue::run(&args), args.broker.json),
        Command::Subscription(args) => (subscription::run(&args), args.broker.json),
        Command::Publish(args) => (publish::run(&args), args.broker.json),
        Command::Consume(args) => (consume::run(&args), args.broker.json),
        Command::Dlq(args) => (dlq::run(&args), args.broker.json),
        Command::Stats(args) => (stats::run(&args), args.broker.json),
        Command::Trim(args) => (trim::run(&args), args.broker.json),
        Command::Ping(args) => (ping::run(&args), args.broker.json),
        Command::Completions { shell } => (completions(shell), false),
    };
    conclude(outcome, json)
}

fn completions(shell: Shell) -> failure::Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "forebay", &mut script);
    let mut out = output::Output::new(false);
    out.bytes(&script)?;
    out.flush()
}

/// Help and version as they are; what is wrong with the arguments on one line.
fn explain(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that went away is no fault.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
        _ => {}
    }
    let json = arguments.iter().any(|argument| argument == "--json");
    conclude(Err(usage_failure(&error.to_string(), arguments).into()), json)
}

/// clap explains itself in paragraphs: what is wrong (`error: ...`), then tips, then the usage.
fn usage_failure(explanation: &str, arguments: &[OsString]) -> Failure {
    let said = explanation.lines().map(str::trim).filter(|line| !line.is_empty());
    let what: Vec<&str> = said
        .filter(|line| !line.starts_with("Usage: ") && !line.starts_with("For more information"))
        .map(|line| line.strip_prefix("error: ").unwrap_or(line))
        .collect();
    let hint = format!("see `{} --help`", command_of(arguments));
    Failure::new(Exit::Usage, "usage", what.join(" ")).hint(hint)
}

/// The command that the arguments name, as far as they name one: `forebay queue show`.
fn command_of(arguments: &[OsString]) -> String {
    let root = CommandLine::command();
    let (mut command, mut name) = (&root, root.get_name().to_owned());
    for argument in arguments.iter().skip(1).filter_map(|argument| argument.to_str()) {
        if let Some(found) = command.find_subcommand(argument) {
            name = format!("{name} {}", found.get_name());
            command = found;
        }
    }
    name
}
