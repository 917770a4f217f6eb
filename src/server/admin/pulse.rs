//! Whether each shard ticks. Each is woken once a second and must have ticked by the next time;
//! looks are counted, not seconds, so that a process that was stopped or starved does not take
//! itself for hung.

use crate::limits::PULSES_MISSED_MAX;
use crate::server::admin::ShardLine;

/// One shard.
#[derive(Clone, Copy, Debug, Default)]
struct Pulse {
    ticks: u64,
    /// Looks in a row at which it had not ticked.
    missed: u32,
}

/// All shards.
pub struct Pulses {
    shards: Vec<(ShardLine, Pulse)>,
}

impl Pulses {
    /// None has missed anything yet.
    pub fn new(shards: Vec<ShardLine>) -> Pulses {
        Pulses { shards: shards.into_iter().map(|line| (line, Pulse::default())).collect() }
    }

    /// Looks at each and wakes it.
    pub fn beat(&mut self) {
        for (line, pulse) in &mut self.shards {
            pulse.note(line.mailbox.ticks());
            line.waker.wake();
        }
    }

    /// Whether all tick.
    ///
    /// # Errors
    /// Which does not, in one line.
    pub fn state(&self) -> Result<(), String> {
        let hung = self.shards.iter().position(|(_, pulse)| pulse.is_hung());
        hung.map_or(Ok(()), |shard| {
            Err(format!("shard {shard} hangs: it was woken and has not ticked"))
        })
    }
}

impl Pulse {
    fn note(&mut self, ticks: u64) {
        self.missed = if ticks == self.ticks { self.missed + 1 } else { 0 };
        self.ticks = ticks;
    }

    fn is_hung(&self) -> bool {
        self.missed >= PULSES_MISSED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::mio_net::MioNet;
    use crate::shard::mailbox::commands;

    #[test]
    fn one_that_does_not_tick_is_named() {
        let net = MioNet::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let line = || ShardLine { mailbox: commands(), waker: net.waker() };
        let lines = [line(), line()];
        let mut pulses = Pulses::new(lines.to_vec());
        for ticks in 1..=u64::from(PULSES_MISSED_MAX) {
            assert_eq!(pulses.state(), Ok(()));
            lines[0].mailbox.note_tick(ticks);
            pulses.beat();
        }
        assert!(pulses.state().unwrap_err().starts_with("shard 1 hangs"));
        lines[1].mailbox.note_tick(1);
        pulses.beat();
        assert_eq!(pulses.state(), Ok(()));
    }

    #[test]
    fn a_shard_hangs_when_it_has_missed_its_looks_and_no_longer_once_it_ticks() {
        let mut pulse = Pulse::default();
        pulse.note(1);
        for _ in 1..PULSES_MISSED_MAX {
            pulse.note(1);
            assert!(!pulse.is_hung());
        }
        pulse.note(1);
        assert!(pulse.is_hung());
        pulse.note(2);
        assert!(!pulse.is_hung());
    }
}
