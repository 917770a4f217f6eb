//! `ping`: is a broker there, and how far away.

use crate::base::units::{parse_duration, show_duration};
use crate::cli::broker::BrokerArgs;
use crate::cli::failure::Outcome;
use crate::cli::fields::Fields;
use crate::cli::output::Output;
use crate::client::{ConnectOptions, Connection};
use clap::Args;
use std::time::Duration;

/// The arguments of `ping`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PingArgs {
    /// How long to wait for the answer
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "5s")]
    timeout: Duration,

    #[command(flatten)]
    pub(super) broker: BrokerArgs,
}

const EXAMPLES: &str = "\
It tries once: exit code 0 if a broker answers, 4 if none does, 1 if it refuses (the token,
say).

Examples:
  forebay ping
  until forebay ping 2> /dev/null; do sleep 0.1; done";

/// Runs `ping`.
///
/// # Errors
/// If no broker answers.
pub fn run(args: &PingArgs) -> Outcome {
    let broker = &args.broker;
    let options = ConnectOptions {
        connect_timeout: args.timeout,
        request_timeout: args.timeout,
        ..broker.options(Duration::ZERO)
    };
    let mut connection = Connection::open(&options).map_err(|error| broker.failure(error))?;
    let round_trip = connection.ping().map_err(|error| broker.failure(error))?;
    let version = connection.server_version();
    let mut fields = Fields::default();
    fields.push("server", broker.server.as_str());
    fields.push("server_version", version);
    fields.push("round_trip_us", round_trip.as_nanos() as f64 / 1e3);
    let text =
        format!("{} answers in {} (forebay {version})\n", broker.server, show_duration(round_trip));
    Output::new(broker.json).finish(&fields, text)
}
