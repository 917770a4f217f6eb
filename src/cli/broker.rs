//! Which broker a command talks to, and what its errors mean to the user.

use crate::cli::failure::{Exit, Failure};
use crate::client::{
    ClientError, ConnectOptions, Connection, DEFAULT_SERVER, ErrorCode, LostReason, ReconnectPolicy,
};
use clap::Args;
use std::time::Duration;

/// The broker and the kind of output. All commands but `serve` have these.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BrokerArgs {
    /// Address of the broker
    #[arg(
        long,
        global = true,
        value_name = "ADDR",
        env = "FOREBAY_SERVER",
        hide_env_values = true,
        default_value = DEFAULT_SERVER,
        help_heading = "Broker and output"
    )]
    pub server: String,

    /// The broker's token, if it wants one; better given by the environment
    #[arg(
        long,
        global = true,
        value_name = "TOKEN",
        env = "FOREBAY_TOKEN",
        hide_env_values = true,
        help_heading = "Broker and output"
    )]
    pub token: Option<String>,

    /// Print JSON for programs; errors too, on standard error
    #[arg(long, global = true, help_heading = "Broker and output")]
    pub json: bool,
}

/// How long commands look for a broker that does not answer yet, unless they say otherwise.
pub const FIRST_CONNECT: Duration = Duration::from_secs(5);

impl BrokerArgs {
    /// How to connect, trying for so long; zero: once.
    pub fn options(&self, try_for: Duration) -> ConnectOptions {
        let reconnect = match try_for {
            Duration::ZERO => ReconnectPolicy::never(),
            _ => ReconnectPolicy::within(try_for),
        };
        ConnectOptions {
            token: self.token.clone().filter(|token| !token.is_empty()),
            client_name: format!("forebay-cli/{}", env!("CARGO_PKG_VERSION")),
            reconnect,
            ..ConnectOptions::new(self.server.as_str())
        }
    }

    /// Connects for requests.
    ///
    /// # Errors
    /// If no broker answers in time, or it refuses.
    pub fn connect(&self) -> Result<Connection, Failure> {
        Connection::open(&self.options(FIRST_CONNECT)).map_err(|error| self.failure(error))
    }

    /// What an error of the client means to the user.
    pub fn failure(&self, error: ClientError) -> Failure {
        let text = error.to_string();
        match error {
            ClientError::Connect { reason: LostReason::Fatal(error), .. } => {
                self.refused(error.code, error.name(), error.to_string())
            }
            ClientError::Connect { reason, .. } => self.unreachable(&reason),
            ClientError::Address { .. } => Failure::new(Exit::Usage, "bad_address", text)
                .hint(format!("write a host and a port, such as {DEFAULT_SERVER}")),
            ClientError::Lost(LostReason::Fatal(error)) => {
                self.refused(error.code, error.name(), error.to_string())
            }
            ClientError::Lost(_) => {
                let text = format!("the connection to {} was lost: {text}", self.server);
                Failure::new(Exit::Unreachable, "connection_lost", text)
            }
            ClientError::Broker(error) | ClientError::Refused(error) => {
                self.refused(error.code, error.name(), text)
            }
            ClientError::QueueMissing { queue, error } => self.queue_missing(&queue, error.code),
            ClientError::TimedOut => {
                let text = format!("the broker at {} did not answer in time", self.server);
                Failure::new(Exit::TimedOut, "timed_out", text)
            }
            ClientError::MessageTooLarge { .. } => self.refused(
                Some(ErrorCode::MessageTooLarge),
                ErrorCode::MessageTooLarge.name(),
                text,
            ),
            ClientError::Properties(_) => Failure::new(Exit::Usage, "bad_properties", text),
            ClientError::Option { .. } => Failure::new(Exit::Usage, "bad_option", text),
            ClientError::Closed => Failure::new(Exit::Failed, "closed", text),
        }
    }

    /// As [`BrokerArgs::failure`], for a request about `queue`.
    pub fn queue_failure(&self, queue: &str, error: ClientError) -> Failure {
        match (&error, error.code()) {
            (_, Some(ErrorCode::QueueNotFound)) => {
                self.queue_missing(queue, Some(ErrorCode::QueueNotFound))
            }
            (ClientError::Broker(refusal), Some(code)) => {
                let failure = self.refused(Some(code), refusal.name(), refusal.to_string());
                match code {
                    ErrorCode::QueueExists => failure.hint(format!(
                        "compare: forebay queue show {queue}; \
                         change it: forebay queue update {queue}"
                    )),
                    ErrorCode::QueueNotEmpty => {
                        failure.hint("leave out --if-empty to delete it with what is in it")
                    }
                    _ => failure,
                }
            }
            _ => self.failure(error),
        }
    }

    /// As [`BrokerArgs::queue_failure`], for a request about a subscription.
    pub fn subscription_failure(&self, queue: &str, name: &str, error: ClientError) -> Failure {
        match error.code() {
            Some(ErrorCode::SubscriptionNotFound) => self.subscription_missing(queue, name),
            Some(ErrorCode::SubscriptionExists) => self.queue_failure(queue, error).hint(format!(
                "compare: forebay subscription show {queue} {name}; \
                     change it: forebay subscription update {queue} {name}"
            )),
            Some(ErrorCode::SubscriptionInUse) => {
                self.queue_failure(queue, error).hint("end its consumers first, or give --force")
            }
            _ => self.queue_failure(queue, error),
        }
    }

    /// There is no such subscription.
    pub fn subscription_missing(&self, queue: &str, name: &str) -> Failure {
        let code = ErrorCode::SubscriptionNotFound.name();
        let text = format!("queue `{queue}` has no subscription `{name}`");
        Failure::new(Exit::NotFound, code, text).hint(format!(
            "list: forebay subscription list {queue}; \
             create it: forebay subscription create {queue} {name}"
        ))
    }

    fn unreachable(&self, reason: &LostReason) -> Failure {
        let text = match reason {
            LostReason::Io(kind) => format!("cannot reach a broker at {}: {kind}", self.server),
            reason => format!("cannot reach a broker at {}: {reason}", self.server),
        };
        Failure::new(Exit::Unreachable, "unreachable", text)
            .hint("start one with `forebay serve`, or name another with --server")
    }

    fn queue_missing(&self, queue: &str, code: Option<ErrorCode>) -> Failure {
        let text = match code {
            Some(ErrorCode::QueueDeleted) => format!("queue `{queue}` was deleted"),
            _ => format!("there is no queue `{queue}` at {}", self.server),
        };
        let name = code.unwrap_or(ErrorCode::QueueNotFound).name();
        Failure::new(Exit::NotFound, name, text)
            .hint(format!("create it: forebay queue create {queue}"))
    }

    fn refused(&self, code: Option<ErrorCode>, name: &'static str, text: String) -> Failure {
        use ErrorCode as E;
        let exit = match code {
            Some(
                E::QueueNotFound
                | E::QueueDeleted
                | E::SubscriptionNotFound
                | E::SubscriptionDeleted,
            ) => Exit::NotFound,
            Some(E::BadName | E::BadOption) => Exit::Usage,
            Some(E::ConnectionsMax | E::Draining) => Exit::Unreachable,
            _ => Exit::Failed,
        };
        let hint = match code {
            Some(E::BadToken) => "give the broker's token: FOREBAY_TOKEN or --token",
            Some(E::BadName) => "names are 1 to 200 of A-Z a-z 0-9 . _ - : and do not begin with $",
            Some(E::Draining) => "the broker is going down; try again when it is back",
            Some(E::QueueMessagesMax | E::QueueBytesMax) => {
                "consume from the queue, or raise its limit: forebay queue update"
            }
            Some(E::MemoryLimit) => "consume from the broker's queues, or raise its --memory-limit",
            Some(E::MessageTooLarge) => {
                "cut it up, or raise --message-bytes-max of the queue or of the broker"
            }
            Some(E::UnsupportedVersion) => "use a forebay of the broker's version",
            _ => "",
        };
        Failure::new(exit, name, text).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::BrokerError;
    use std::io::ErrorKind;

    fn broker() -> BrokerArgs {
        BrokerArgs { server: "127.0.0.1:1".into(), token: None, json: false }
    }

    fn refusal(code: ErrorCode) -> BrokerError {
        BrokerError {
            number: code as u16,
            code: Some(code),
            text: "because".into(),
            retry_after: None,
            limit: None,
        }
    }

    #[test]
    fn errors_have_their_exit_codes() {
        let lost = LostReason::Io(ErrorKind::ConnectionRefused);
        let server = || "127.0.0.1:1".to_owned();
        let cases = [
            (ClientError::Connect { server: server(), reason: lost.clone() }, Exit::Unreachable),
            (ClientError::Lost(lost), Exit::Unreachable),
            (ClientError::TimedOut, Exit::TimedOut),
            (ClientError::Broker(refusal(ErrorCode::QueueNotFound)), Exit::NotFound),
            (ClientError::Broker(refusal(ErrorCode::BadName)), Exit::Usage),
            (ClientError::Broker(refusal(ErrorCode::QueueExists)), Exit::Failed),
            (ClientError::Refused(refusal(ErrorCode::QueueMessagesMax)), Exit::Failed),
            (
                ClientError::Connect {
                    server: server(),
                    reason: LostReason::Fatal(refusal(ErrorCode::BadToken)),
                },
                Exit::Failed,
            ),
        ];
        for (error, exit) in cases {
            assert_eq!(broker().failure(error.clone()).exit, exit, "{error:?}");
        }
    }

    #[test]
    fn a_missing_queue_says_what_to_do() {
        let error = ClientError::Broker(refusal(ErrorCode::QueueNotFound));
        let failure = broker().queue_failure("jobs", error);
        assert_eq!((failure.exit, failure.code), (Exit::NotFound, "queue_not_found"));
        assert!(failure.line(false).contains("forebay queue create jobs"), "{failure:?}");
    }
}
