//! Asks every shard for its figures and waits for them, with a limit.

use crate::limits::METRIC_QUEUES_MAX;
use crate::server::admin::ShardLine;
use crate::shard::mailbox::Command;
use crate::shard::report::{ReportOrder, ShardReport};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// See the module.
pub struct Gatherer {
    shards: Vec<Asked>,
}

/// One shard, and what it was asked and has not answered.
struct Asked {
    line: ShardLine,
    waiting: Option<Receiver<Box<ShardReport>>>,
}

impl Gatherer {
    /// Nothing is asked yet.
    pub fn new(shards: Vec<ShardLine>) -> Gatherer {
        let asked = |line| Asked { line, waiting: None };
        Gatherer { shards: shards.into_iter().map(asked).collect() }
    }

    /// The figures of each shard; none of those that do not tell them within `wait`.
    pub fn gather(&mut self, wait: Duration) -> Vec<Option<Box<ShardReport>>> {
        let named = METRIC_QUEUES_MAX / (self.shards.len() as u32).max(1);
        self.shards.iter_mut().for_each(|shard| shard.ask(named));
        let begun = now();
        let left = || wait.saturating_sub(now().duration_since(begun));
        self.shards.iter_mut().map(|shard| shard.answer(left())).collect()
    }
}

impl Asked {
    /// Asks, unless an older question is still open: a shard that hangs gets no more of them.
    fn ask(&mut self, named: u32) {
        if let Some(waiting) = &self.waiting {
            match waiting.try_recv() {
                Err(TryRecvError::Empty) => return,
                // Too late for who asked, too old for us; or it was never taken.
                Ok(_) | Err(TryRecvError::Disconnected) => self.waiting = None,
            }
        }
        let (answer, waiting) = sync_channel(1);
        if self.line.mailbox.push(Command::Report(ReportOrder { named, answer })).is_ok() {
            self.waiting = Some(waiting);
            self.line.waker.wake();
        }
    }

    fn answer(&mut self, wait: Duration) -> Option<Box<ShardReport>> {
        let answer = self.waiting.as_ref()?.recv_timeout(wait);
        match answer {
            Ok(report) => {
                self.waiting = None;
                Some(report)
            }
            Err(_) => None,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long an answer was waited for")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::mio_net::MioNet;
    use crate::shard::mailbox::{Commands, commands};

    fn line() -> (Commands, Gatherer, MioNet) {
        let net = MioNet::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let mailbox = commands();
        let line = ShardLine { mailbox: mailbox.clone(), waker: net.waker() };
        (mailbox, Gatherer::new(vec![line]), net)
    }

    #[test]
    fn a_shard_that_hangs_is_asked_once_and_left_out() {
        let (mailbox, mut gatherer, _net) = line();
        for _ in 0..100 {
            assert_eq!(gatherer.gather(Duration::ZERO), [None]);
        }
        let Some(Command::Report(order)) = mailbox.pop() else { panic!("it was asked") };
        assert!(mailbox.pop().is_none(), "there is room for a drain");
        // When it goes on after all, the next question is a new one.
        order.answer.try_send(Box::default()).unwrap();
        assert_eq!(gatherer.gather(Duration::ZERO), [None]);
        assert!(matches!(mailbox.pop(), Some(Command::Report(_))), "it was asked again");
    }

    #[test]
    fn an_answer_is_waited_for() {
        let (mailbox, mut gatherer, _net) = line();
        let shard = std::thread::spawn(move || {
            loop {
                if let Some(Command::Report(order)) = mailbox.pop() {
                    let report = ShardReport { shard: 7, ..ShardReport::default() };
                    return order.answer.try_send(Box::new(report)).unwrap();
                }
                std::thread::yield_now();
            }
        });
        let gathered = gatherer.gather(Duration::from_secs(60));
        assert_eq!(gathered[0].as_ref().map(|report| report.shard), Some(7));
        shard.join().unwrap();
    }

    #[test]
    fn an_order_that_was_given_up_is_asked_anew() {
        let (mailbox, mut gatherer, _net) = line();
        assert_eq!(gatherer.gather(Duration::ZERO), [None]);
        drop(mailbox.pop());
        assert_eq!(gatherer.gather(Duration::ZERO), [None]);
        assert!(mailbox.pop().is_some());
    }
}
