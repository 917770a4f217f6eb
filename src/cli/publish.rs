//! `publish`: its arguments, and the queue that it publishes to. `pump.rs` does the work.

use crate::base::units::{parse_bytes, parse_duration, show_duration};
use crate::cli::broker::BrokerArgs;
use crate::cli::failure::{Exit, Failure, Outcome};
use crate::cli::progress::Progress;
use crate::cli::pump::{Patience, Pump, Shaping};
use crate::cli::source::Source;
use crate::client::{
    ClientError, ConnectOptions, Connection, ErrorCode, LostReason, Message, MissingQueue,
    Publisher, PublisherOptions, QueueDescription, QueueOptions, ReconnectPolicy,
};
use clap::Args;
use std::ffi::OsString;
use std::time::Duration;

/// The arguments of `publish`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PublishArgs {
    /// Name of the queue
    name: String,

    /// Messages; without them (and --count) each line of standard input is one
    #[arg(value_name = "BODY")]
    bodies: Vec<OsString>,

    /// Publish N generated messages
    #[arg(long, value_name = "N", conflicts_with = "bodies")]
    count: Option<u64>,

    /// Bytes of each generated message
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = parse_bytes,
        requires = "count",
        default_value = "128"
    )]
    size: u64,

    /// Messages per second at most, such as 1000 or 0.5 [default: as fast as it goes]
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    rate: Option<f64>,

    /// A header for each message; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_header)]
    header: Vec<(String, String)>,

    /// Create the queue if there is none, with the options of a plain `queue create`
    #[arg(long)]
    create: bool,

    /// Give up when nothing was confirmed for so long [default: 30s while the broker is away, as
    /// long as it takes while the queue is full]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,

    #[command(flatten)]
    pub(super) broker: BrokerArgs,
}

const EXAMPLES: &str = "\
Each line of standard input is a message: only the newline goes, an empty line is an empty
message, and a last line without a newline counts. Bytes need not be text.

It ends with exit code 0 only when the broker has confirmed every message. While the broker is
away (a restart, say) it keeps trying, for --timeout; what was not confirmed is sent again. A
queue that was gone after the restart is created again with the options it had, and standard
error says so.

Examples:
  forebay publish orders < orders.ndjson
  tail -f access.log | forebay publish access --create
  forebay publish orders 'one' 'two' --header tenant=blue
  forebay publish load --count 1000000 --size 1KiB --rate 50000

`forebay help` lists the exit codes.";

/// How long the broker may be away, unless the user says otherwise.
const OUTAGE_DEFAULT: Duration = Duration::from_secs(30);

/// A rate per second, over 0.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        Ok(_) => Err("a rate must be over 0".to_owned()),
        Err(_) => Err("not a number; write for example 1000 or 0.5".to_owned()),
    }
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the key is missing: write KEY=VALUE".to_owned()),
        Some((key, value)) => {
            // What the protocol refuses is refused here, before anything is sent.
            let message = Message::from("").header(key, value);
            message.map(|_| (key.to_owned(), value.to_owned())).map_err(|error| error.to_string())
        }
        None => Err("there is no `=`: write KEY=VALUE".to_owned()),
    }
}

/// Runs `publish`.
///
/// # Errors
/// If not every message was confirmed.
pub fn run(args: &PublishArgs) -> Outcome {
    let source = Source::new(&args.bodies, args.count.map(|count| (count, args.size)));
    let progress = Progress::new(source.steps(), true, args.broker.json);
    let connect = args.connect_options(&progress);
    let options = args.queue_options(&connect, &progress)?;
    let on_missing_queue = MissingQueue::Create(options);
    let publisher_options = PublisherOptions { on_missing_queue, ..PublisherOptions::default() };
    let publisher = Publisher::open(&connect, &args.name, publisher_options)
        .map_err(|error| args.broker.queue_failure(&args.name, error))?;
    let shaping = Shaping { headers: args.header.clone(), rate: args.rate };
    let patience = Patience { outage: args.outage_max(), blocked: args.timeout };
    Pump::new(publisher, shaping).run(source, &args.broker, &progress, patience)
}

impl PublishArgs {
    fn outage_max(&self) -> Duration {
        self.timeout.unwrap_or(OUTAGE_DEFAULT)
    }

    fn connect_options(&self, progress: &Progress) -> ConnectOptions {
        let options = self.broker.options(self.outage_max());
        let (progress, policy) = (progress.clone(), options.reconnect.clone());
        options.on_event(move |event| {
            let missing = "creating it again, with the options it had";
            progress.connection_event(event, &policy, Some(missing));
        })
    }

    /// The options of the queue, by which it is created again when it ends with its broker.
    fn queue_options(
        &self,
        connect: &ConnectOptions,
        progress: &Progress,
    ) -> Result<QueueOptions, Failure> {
        let mut connection = self.first_connection(connect, progress)?;
        let failure = |error| self.broker.queue_failure(&self.name, error);
        match connection.queue_describe(&self.name) {
            Ok(queue) => Ok(options_of(&queue)),
            Err(error) if error.code() == Some(ErrorCode::QueueNotFound) && self.create => {
                let options = QueueOptions::default();
                connection.queue_create(&self.name, &options).map_err(failure)?;
                progress.notice("queue_created", &format!("created queue `{}`", self.name));
                Ok(options)
            }
            Err(error) => {
                let failure = failure(error);
                let hint = format!("{}, or publish with --create", failure.hint);
                Err(if failure.exit == Exit::NotFound { failure.hint(hint) } else { failure })
            }
        }
    }

    /// Tells at once when the broker is away, then keeps trying.
    fn first_connection(
        &self,
        connect: &ConnectOptions,
        progress: &Progress,
    ) -> Result<Connection, Failure> {
        let once = ConnectOptions { reconnect: ReconnectPolicy::never(), ..connect.clone() };
        let failure = |error| self.broker.failure(error);
        match Connection::open(&once) {
            Err(ClientError::Connect { reason, .. })
                if !self.outage_max().is_zero() && may_come_back(&reason) =>
            {
                let (server, try_for) = (&self.broker.server, show_duration(self.outage_max()));
                let text = format!("cannot reach a broker at {server}; trying for {try_for}");
                progress.notice("unreachable", &text);
                Connection::open(connect).map_err(failure)
            }
            opened => opened.map_err(failure),
        }
    }
}

fn may_come_back(reason: &LostReason) -> bool {
    match reason {
        LostReason::Fatal(error) => error.is_retryable(),
        LostReason::Protocol(_) => false,
        LostReason::Io(_) | LostReason::Closed | LostReason::Silent => true,
    }
}

fn options_of(queue: &QueueDescription) -> QueueOptions {
    QueueOptions {
        durable: queue.options.durable,
        confirm: queue.options.confirm,
        messages_max: queue.options.messages_max,
        bytes_max: queue.options.bytes_max,
        on_full: queue.options.on_full,
        message_bytes_max: queue.options.message_bytes_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_headers() {
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for text in ["0", "-1", "inf", "NaN", "fast", ""] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        assert_eq!(parse_header("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_header("a="), Ok(("a".into(), String::new())));
        for text in ["", "a", "=b", &format!("{}=x", "k".repeat(256))] {
            assert!(parse_header(text).is_err(), "{text}");
        }
    }
}
