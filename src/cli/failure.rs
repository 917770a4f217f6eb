//! How a command ends when it does not end well: what happened, why, what to do, and the exit code.

use serde::Serialize;
use std::process::ExitCode;

/// Exit codes, the same for all commands. `forebay help` and docs/CLI.md list them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The broker refused the request, or a part of the work failed.
    Failed = 1,
    /// An option, a setting or a configuration that cannot be; nothing was done.
    Usage = 2,
    /// There is no such queue.
    NotFound = 3,
    /// The broker cannot be reached, or went away.
    Unreachable = 4,
    /// It took longer than `--timeout`.
    TimedOut = 5,
    /// Something in a data directory is damaged.
    Damaged = 6,
}

/// Why a command stops before its end.
#[derive(Debug)]
pub enum Stop {
    /// It failed; the user is told.
    Failed(Failure),
    /// Nobody reads standard output any more: there is nothing left to do, and that is no fault.
    StdoutClosed,
}

/// How commands end.
pub type Outcome = Result<(), Stop>;

/// A fault as the user is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// Name for programs: the protocol's name of the error where it has one.
    pub code: &'static str,
    /// What happened and why, on one line.
    pub text: String,
    /// What to do about it, on one line; empty if there is nothing to say.
    pub hint: String,
}

impl Failure {
    /// A fault without a hint.
    pub fn new(exit: Exit, code: &'static str, text: impl Into<String>) -> Failure {
        Failure { exit, code, text: text.into(), hint: String::new() }
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = hint.into();
        self
    }

    /// The one line that is told on standard error: text, or JSON for programs.
    pub fn line(&self, json: bool) -> String {
        if json {
            let error = ErrorJson {
                code: self.code,
                text: &self.text,
                hint: &self.hint,
                exit_code: self.exit as u8,
            };
            let line = ErrorLine { error };
            return serde_json::to_string(&line).expect("strings and a number become JSON");
        }
        let joint = if self.hint.is_empty() { "" } else { "; " };
        // A text of the broker's might have line ends of its own.
        let line = format!("error: {}{joint}{}", self.text, self.hint);
        line.split(['\n', '\r']).map(str::trim).collect::<Vec<_>>().join(" ")
    }
}

#[derive(Serialize)]
struct ErrorLine<'a> {
    error: ErrorJson<'a>,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    code: &'a str,
    text: &'a str,
    hint: &'a str,
    exit_code: u8,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Tells the user how a command ended, if there is something to tell, and returns the exit code.
pub fn conclude(outcome: Outcome, json: bool) -> ExitCode {
    match outcome {
        Ok(()) | Err(Stop::StdoutClosed) => Exit::Done.into(),
        Err(Stop::Failed(failure)) => {
            eprintln!("{}", failure.line(json));
            failure.exit.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure =
            Failure::new(Exit::NotFound, "queue_not_found", "there is no queue `a`\nhere");
        assert_eq!(failure.line(false), "error: there is no queue `a` here");
        let failure = failure.hint("create it: forebay queue create a");
        let line = "error: there is no queue `a` here; create it: forebay queue create a";
        assert_eq!(failure.line(false), line);
    }

    #[test]
    fn a_failure_for_programs() {
        let failure = Failure::new(Exit::TimedOut, "timed_out", "too long").hint("wait");
        let value: serde_json::Value = serde_json::from_str(&failure.line(true)).unwrap();
        let expected = serde_json::json!({
            "error": { "code": "timed_out", "text": "too long", "hint": "wait", "exit_code": 5 }
        });
        assert_eq!(value, expected);
    }
}
