//! Standard output: buffered, and a reader that went away is no fault.

use crate::cli::failure::{Exit, Failure, Outcome, Stop};
use serde::Serialize;
use std::io::{BufWriter, ErrorKind, StdoutLock, Write};

/// What commands print. Nothing is seen before [`Output::flush`].
pub struct Output {
    writer: BufWriter<StdoutLock<'static>>,
    /// Whether programs read it.
    pub json: bool,
}

const BUFFER_BYTES: usize = 256 * 1024;

impl Output {
    /// Takes standard output.
    pub fn new(json: bool) -> Output {
        Output { writer: BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout().lock()), json }
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// [`Stop::StdoutClosed`] if nobody reads, otherwise what the system says.
    pub fn bytes(&mut self, bytes: &[u8]) -> Outcome {
        self.writer.write_all(bytes).map_err(stop)
    }

    /// Writes a value as one line of JSON.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub fn json_line(&mut self, value: &impl Serialize) -> Outcome {
        serde_json::to_writer(&mut self.writer, value).map_err(|error| stop(error.into()))?;
        self.bytes(b"\n")
    }

    /// Writes values as an array, one to a line.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub fn json_array<T: Serialize>(&mut self, values: impl Iterator<Item = T>) -> Outcome {
        self.text("[")?;
        for (at, value) in values.enumerate() {
            self.text(if at == 0 { "\n" } else { "," })?;
            self.json_line(&value)?;
        }
        self.text("]\n")
    }

    /// Writes a text, which has its line ends.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub fn text(&mut self, text: impl std::fmt::Display) -> Outcome {
        write!(self.writer, "{text}").map_err(stop)
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub fn flush(&mut self) -> Outcome {
        self.writer.flush().map_err(stop)
    }

    /// Ends a command: the value for programs, or else the text, and all is flushed.
    ///
    /// # Errors
    /// As [`Output::bytes`].
    pub fn finish(mut self, value: &impl Serialize, text: impl std::fmt::Display) -> Outcome {
        if self.json {
            self.json_line(value)?
        } else {
            self.text(text)?
        }
        self.flush()
    }
}

fn stop(error: std::io::Error) -> Stop {
    if error.kind() == ErrorKind::BrokenPipe {
        return Stop::StdoutClosed;
    }
    let text = format!("cannot write to standard output: {error}");
    Failure::new(Exit::Failed, "stdout", text).into()
}
