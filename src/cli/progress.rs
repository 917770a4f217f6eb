//! What is told on standard error while long work goes on: a bar for people at a terminal, and a
//! line for whatever should be known at once, such as a lost broker or a full queue.

use crate::base::units::show_duration;
use crate::cli::clock::now;
use crate::cli::table::{self, per_second, thousands};
use crate::client::{ConnectionEvent, ErrorCode, ReconnectPolicy};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Work that is over before this shows no bar.
const QUIET: Duration = Duration::from_millis(500);

/// Progress of one command. Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    begun: Instant,
    json: bool,
    wanted: bool,
    /// The queue was missing and is made anew.
    renewed_queue: Arc<AtomicBool>,
}

impl Progress {
    /// For work of so many steps, if that is known. No bar is shown unless it is `wanted` and
    /// standard error is a terminal. `json`: lines are for programs.
    pub fn new(steps: Option<u64>, wanted: bool, json: bool) -> Progress {
        let bar = match steps {
            Some(steps) => ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::hidden()),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()),
        };
        let template = match steps {
            Some(_) => "{bar:30} {percent:>3}%  {msg}",
            None => "{spinner} {msg}",
        };
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let wanted = wanted && !json && std::io::stderr().is_terminal();
        Progress { bar, begun: now(), json, wanted, renewed_queue: Arc::default() }
    }

    /// Time since the work began.
    pub fn elapsed(&self) -> Duration {
        now().duration_since(self.begun)
    }

    /// So many steps and messages are done. Call it a few times a second.
    pub fn at(&self, steps: u64, messages: u64) {
        let elapsed = self.elapsed();
        if !self.wanted || elapsed < QUIET {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        let rate = per_second(messages as f64 / elapsed.as_secs_f64());
        self.bar.set_position(steps);
        self.bar.set_message(format!("{}, {rate}", table::messages(messages)));
        self.bar.tick();
    }

    /// Takes the bar away, and says to people at a terminal what was done.
    pub fn end(&self, done: &str, messages: u64) {
        self.bar.finish_and_clear();
        if self.wanted {
            let elapsed = self.elapsed();
            let rate = per_second(messages as f64 / elapsed.as_secs_f64().max(1e-9));
            let (messages, elapsed) = (table::messages(messages), show_duration(elapsed));
            eprintln!("{done} {messages} in {elapsed} ({rate})");
        }
    }

    /// Says something at once, on a line of its own.
    pub fn notice(&self, code: &str, text: &str) {
        let line = match self.json {
            true => json!({ "notice": { "code": code, "text": text } }).to_string(),
            false => format!("forebay: {}", text.replace(['\n', '\r'], " ")),
        };
        self.bar.suspend(|| eprintln!("{line}"));
    }

    /// Says what becomes of a connection, as far as it is worth a line. `missing` is what is done
    /// about a queue that is gone; without it, an error will say so.
    pub fn connection_event(
        &self,
        event: &ConnectionEvent,
        policy: &ReconnectPolicy,
        missing: Option<&str>,
    ) {
        match event {
            // The first one is no news; those after a loss follow a line about it. A queue at its
            // limit may block many times a second: `Blockage` tells of it.
            ConnectionEvent::Connected { .. }
            | ConnectionEvent::Blocked { .. }
            | ConnectionEvent::Unblocked => {}
            ConnectionEvent::Disconnected { reason } => {
                let try_for = show_duration(policy.give_up_after);
                self.notice("disconnected", &format!("{reason}; trying again for {try_for}"));
            }
            ConnectionEvent::Draining { reason } => self.notice("draining", reason),
            ConnectionEvent::QueueMissing { queue } => {
                self.renewed_queue.store(true, Ordering::Relaxed);
                if let Some(missing) = missing {
                    self.notice("queue_missing", &format!("queue `{queue}` is gone; {missing}"));
                }
            }
            // In a queue that has just been created nothing is there twice.
            ConnectionEvent::ProducerRenewed { .. }
                if self.renewed_queue.swap(false, Ordering::Relaxed) => {}
            ConnectionEvent::ProducerRenewed { messages } => {
                let text = format!(
                    "the broker had forgotten this publisher: {} messages were sent again and may \
                     be there twice",
                    thousands(*messages)
                );
                self.notice("producer_renewed", &text);
            }
            // What was on its way when its handle was closed; that has its own message.
            ConnectionEvent::Fault { error } if error.code == Some(ErrorCode::UnknownHandle) => {}
            ConnectionEvent::Fault { error } => self.notice(error.name(), &error.to_string()),
        }
    }
}

/// What is said of a queue that takes nothing: that it does and why, again every ten seconds that
/// it lasts, and once that it goes on.
#[derive(Debug, Default)]
pub struct Blockage {
    /// It takes nothing since then, but for moments.
    since: Option<Instant>,
    /// It takes something since then.
    open_since: Option<Instant>,
    said: Option<Instant>,
    /// That it goes on is still to be said.
    told: bool,
}

impl Blockage {
    /// From one line about a queue that takes nothing to the next.
    const SAY_INTERVAL: Duration = Duration::from_secs(10);
    /// What is at its limit takes a little now and then, which is not going on.
    const OPEN_MIN: Duration = Duration::from_secs(1);

    /// Why the queue takes nothing at this time, if it does not. What is to be said now: a code
    /// and a text for [`Progress::notice`].
    pub fn look(&mut self, blocked: Option<&str>, time: Instant) -> Option<(&'static str, String)> {
        let Some(reason) = blocked else {
            let open_since = *self.open_since.get_or_insert(time);
            if time.duration_since(open_since) < Self::OPEN_MIN {
                return None;
            }
            self.since = None;
            let told = std::mem::take(&mut self.told);
            return told.then(|| ("unblocked", "the queue takes messages again".to_owned()));
        };
        self.open_since = None;
        let since = *self.since.get_or_insert(time);
        if self.said.is_some_and(|said| time.duration_since(said) < Self::SAY_INTERVAL) {
            return None;
        }
        self.said = Some(time);
        let text = match std::mem::replace(&mut self.told, true) {
            false => format!("the queue takes nothing for now ({reason}); waiting for room"),
            true => {
                let lasted = show_duration(time.duration_since(since));
                format!("the queue has taken next to nothing for {lasted} ({reason})")
            }
        };
        Some(("blocked", text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_blocks_many_times_a_second_is_told_of_now_and_then() {
        let (begun, mut blockage, mut lines) = (now(), Blockage::default(), Vec::new());
        // At its limit for half a minute, then open.
        for tenth in 0..600 {
            let blocked = (10..310).contains(&tenth) && tenth % 3 != 0;
            let time = begun + Duration::from_millis(100 * tenth);
            let said = blockage.look(blocked.then_some("disk_full"), time);
            lines.extend(said.map(|(code, text)| (tenth, code, text)));
        }
        let times: Vec<_> = lines.iter().map(|(tenth, code, _)| (*tenth, *code)).collect();
        let expected = [(10, "blocked"), (110, "blocked"), (211, "blocked"), (319, "unblocked")];
        assert_eq!(times, expected);
        assert!(lines[0].2.contains("(disk_full); waiting"), "{lines:?}");
        assert!(lines[2].2.contains("for 20.1 s (disk_full)"), "{lines:?}");
    }

    #[test]
    fn one_that_goes_on_and_blocks_again_is_not_told_of_before_its_time() {
        let (begun, mut blockage) = (now(), Blockage::default());
        let mut look = |blocked: bool, seconds| {
            let said = blockage
                .look(blocked.then_some("memory_limit"), begun + Duration::from_secs(seconds));
            said.map(|(code, _)| code)
        };
        assert_eq!(look(false, 0), None);
        assert_eq!(look(false, 5), None, "it never took nothing");
        assert_eq!(look(true, 6), Some("blocked"));
        assert_eq!((look(false, 7), look(false, 8)), (None, Some("unblocked")));
        // Too soon for a line, and then none is owed.
        assert_eq!((look(true, 9), look(false, 10), look(false, 11)), (None, None, None));
        assert_eq!((look(true, 15), look(true, 16)), (None, Some("blocked")));
    }
}
