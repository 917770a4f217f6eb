//! `consume`: writes each body and a newline, flushes, then acks (or nacks, or rejects).
//!
//! It asks for messages by pulls of exact counts, so it never takes more than `--count`. What a
//! pull brought is acked only when all of it is with whoever reads standard output; if that one
//! goes away, the rest goes back to the queue.

use crate::base::units::parse_duration;
use crate::cli::broker::BrokerArgs;
use crate::cli::clock::now;
use crate::cli::failure::{Outcome, Stop};
use crate::cli::message::MessageLine;
use crate::cli::output::Output;
use crate::cli::progress::Progress;
use crate::cli::table::thousands;
use crate::client::{AckCount, Consumer, ConsumerOptions, MissingQueue};
use clap::Args;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// The arguments of `consume`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct ConsumeArgs {
    /// Name of the queue
    name: String,

    /// Take N messages, never more [default: all]
    #[arg(long, value_name = "N")]
    count: Option<u64>,

    /// Do not stop when the queue is empty: wait for more, for ever or for --timeout
    #[arg(long)]
    follow: bool,

    /// Stop when nothing came for so long, instead of when the queue is empty
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Delivered means done: at most once; what is lost on the way is lost
    #[arg(long)]
    auto_ack: bool,

    /// Take the messages of this subscription
    #[arg(long, value_name = "NAME", default_value = "default")]
    subscription: String,

    /// How long it may take to write what came at once [default: as the subscription says]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    lease: Option<Duration>,

    /// Say that each message failed, instead of acking it: it comes again after the back-off
    #[arg(long, conflicts_with_all = ["auto_ack", "reject"])]
    nack: bool,

    /// Reject each message instead of acking it: it becomes a dead letter
    #[arg(long, conflicts_with = "auto_ack")]
    reject: bool,

    /// Why they are nacked or rejected; dead letters show it
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,

    #[command(flatten)]
    pub(super) broker: BrokerArgs,
}

const EXAMPLES: &str = "\
Each message is written as its bytes and a newline; with --json as a line with all its fields
(a body that is not UTF-8 in body_base64). A message is acked only when it has been written and
flushed: if consume is killed, what was not acked is delivered again. It ends when its acks are
answered, with exit code 0 even if fewer than --count messages came.

Examples:
  forebay consume orders
      Everything that is there now.

  forebay consume orders --count 1
      One message, if there is one.

  forebay consume orders --follow --json | jq -r .body
      For ever, as JSON.

  forebay consume orders --timeout 10s > orders.ndjson
      Until nothing came for 10 seconds.

  forebay consume orders --count 1 --reject --reason 'no such customer'
      Away with the first; `forebay dlq show orders` has it.

`forebay help` lists the exit codes.";

/// Messages asked for at once. A pull brings what is at hand, so this only bounds the work between
/// two acks.
const PULL_MESSAGES_MAX: u32 = 16_384;
/// Longest wait of one pull; longer waits are several pulls.
const PULL_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the broker may be away.
const OUTAGE_MAX: Duration = Duration::from_secs(30);

/// Runs `consume`.
///
/// # Errors
/// If the broker refuses or goes away, or standard output cannot be written.
pub fn run(args: &ConsumeArgs) -> Outcome {
    let (broker, name) = (&args.broker, args.name.as_str());
    let failure = |error| broker.subscription_failure(name, &args.subscription, error);
    let out = Output::new(broker.json);
    let progress = Progress::new(args.count, !std::io::stdout().is_terminal(), broker.json);
    // A queue that is missing now is a mistake; one that goes with its broker may come back.
    broker.connect()?.queue_describe(name).map_err(failure)?;
    let (on_missing_queue, missing) = match args.follow {
        true => (MissingQueue::Retry, Some("waiting until it is created again")),
        false => (MissingQueue::Fail, None),
    };
    let options = broker.options(OUTAGE_MAX);
    let (told, policy) = (progress.clone(), options.reconnect.clone());
    let connect = options.on_event(move |event| told.connection_event(event, &policy, missing));
    let options = ConsumerOptions {
        credit_messages: 0,
        credit_bytes: 0,
        replenish: false,
        auto_ack: args.auto_ack,
        subscription: args.subscription.clone(),
        lease: args.lease,
        on_missing_queue,
        ..ConsumerOptions::default()
    };
    let consumer = Consumer::open(&connect, name, options).map_err(failure)?;
    let mut drain = Drain { args, consumer, out, progress, written: 0 };
    let drained = drain.run();
    drain.conclude(drained)
}

/// A consumer on its way to standard output.
struct Drain<'a> {
    args: &'a ConsumeArgs,
    consumer: Consumer,
    out: Output,
    progress: Progress,
    written: u64,
}

impl Drain<'_> {
    fn run(&mut self) -> Outcome {
        let mut idle_since = now();
        loop {
            let left = self.args.count.map_or(u64::MAX, |count| count - self.written);
            if left == 0 {
                return Ok(());
            }
            let messages_max = u32::try_from(left).unwrap_or(u32::MAX).min(PULL_MESSAGES_MAX);
            let wait = self.wait(idle_since);
            if self.pull(messages_max, wait.unwrap_or_default())? {
                idle_since = now();
            } else if wait.is_none() {
                return Ok(());
            }
        }
    }

    /// How long a pull may wait now; `None`: not at all, for this is the last one.
    fn wait(&self, idle_since: Instant) -> Option<Duration> {
        let Some(timeout) = self.args.timeout else {
            return self.args.follow.then_some(PULL_WAIT_MAX);
        };
        let idle = now().duration_since(idle_since);
        let left = timeout.checked_sub(idle).filter(|left| !left.is_zero())?;
        Some(left.min(PULL_WAIT_MAX))
    }

    /// Writes what one pull brings, and acks it. False if it brought nothing.
    fn pull(&mut self, messages_max: u32, wait: Duration) -> Result<bool, Stop> {
        let (broker, name) = (&self.args.broker, self.args.name.as_str());
        let failure = |error| broker.subscription_failure(name, &self.args.subscription, error);
        let batch = self.consumer.pull(messages_max, wait).map_err(failure)?;
        for delivery in batch.iter() {
            if self.out.json {
                self.out.json_line(&MessageLine::of_delivery(name, &delivery))?;
            } else {
                self.out.bytes(delivery.body())?;
                self.out.bytes(b"\n")?;
            }
        }
        self.out.flush()?;
        // Sent before the next pull asks for more.
        match self.args {
            ConsumeArgs { nack: true, reason, .. } => batch.nack(None, reason).map_err(failure)?,
            ConsumeArgs { reject: true, reason, .. } => batch.reject(reason),
            ConsumeArgs { auto_ack: true, .. } => {}
            _ => batch.ack(),
        }
        self.written += batch.len() as u64;
        self.progress.at(self.written, self.written);
        Ok(!batch.is_empty())
    }

    /// Has the acks answered, also when it ends early, and says what came too late.
    fn conclude(self, drained: Outcome) -> Outcome {
        let (broker, name) = (&self.args.broker, self.args.name.as_str());
        let failure = |error| broker.subscription_failure(name, &self.args.subscription, error);
        let closed = self.consumer.close();
        self.progress.end("consumed", self.written);
        if let Ok(AckCount { late: late @ 1.., .. }) = closed {
            let text = format!(
                "{} answers came too late, after the connection was lost or the lease had ended: \
                 those messages are delivered again",
                thousands(late)
            );
            self.progress.notice("late_ack", &text);
        }
        drained?;
        closed.map_err(failure)?;
        Ok(())
    }
}
