//! An open-loop schedule whose rate changes, and how long each of its messages waited. A message's
//! time counts from when it was due, also if it left late or never: a target that stalls shows in
//! every message that it held up (no coordinated omission).

use crate::report::{Latencies, LatencyFigures};
use serde::Serialize;

/// Unit of the log, so that 32 bits hold 7 minutes.
const TICK_NS: u64 = 100;

/// From when on how many messages are due per second.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start_ns: u64,
    /// Number of the first message of it.
    first: u64,
    rate: u64,
}

/// When each message is due. Nothing is, until a rate is set.
#[derive(Default)]
pub struct Schedule {
    pieces: Vec<Piece>,
}

impl Schedule {
    /// From `now_ns` on, `rate` messages are due per second; 0: none.
    pub fn set_rate(&mut self, now_ns: u64, rate: u64) {
        self.pieces.push(Piece { start_ns: now_ns, first: self.due(now_ns), rate });
    }

    /// Messages that are due by `now_ns`, not before the last change.
    pub fn due(&self, now_ns: u64) -> u64 {
        let Some(piece) = self.pieces.last() else { return 0 };
        if piece.rate == 0 {
            return piece.first;
        }
        let since_ns = u128::from(now_ns.saturating_sub(piece.start_ns));
        piece.first + (since_ns * u128::from(piece.rate) / 1_000_000_000) as u64 + 1
    }

    /// When message `nth` is due; `None`: not at any time that is known.
    pub fn due_ns(&self, nth: u64) -> Option<u64> {
        let behind = self.pieces.partition_point(|piece| piece.first <= nth);
        let piece = self.pieces[..behind].last().filter(|piece| piece.rate > 0)?;
        let since_ns = u128::from(nth - piece.first) * 1_000_000_000 / u128::from(piece.rate);
        Some(piece.start_ns + since_ns as u64)
    }
}

/// What became of each message of a schedule, in order.
#[derive(Default)]
pub struct WaitLog {
    /// From due to published.
    lags: Vec<u32>,
    /// From due to confirmed.
    waits: Vec<u32>,
}

impl WaitLog {
    /// With room for so many messages, so that it does not move while it is written.
    pub fn with_capacity(messages: usize) -> WaitLog {
        WaitLog { lags: Vec::with_capacity(messages), waits: Vec::with_capacity(messages) }
    }

    /// Messages published.
    pub fn sent(&self) -> u64 {
        self.lags.len() as u64
    }

    /// Messages confirmed.
    pub fn confirmed(&self) -> u64 {
        self.waits.len() as u64
    }

    /// The next message was published, so late.
    #[inline]
    pub fn add_sent(&mut self, lag_ns: u64) {
        self.lags.push(ticks(lag_ns));
    }

    /// All before number `confirmed` are confirmed by `now_ns`.
    pub fn confirm(&mut self, schedule: &Schedule, confirmed: u64, now_ns: u64) {
        for nth in self.confirmed()..confirmed.min(self.sent()) {
            let due_ns = schedule.due_ns(nth).unwrap_or(now_ns);
            self.waits.push(ticks(now_ns.saturating_sub(due_ns)));
        }
    }

    /// The run is over: what was due and never left, or was never confirmed, has waited until now.
    pub fn close(&mut self, schedule: &Schedule, now_ns: u64) {
        let due = schedule.due(now_ns);
        for nth in self.sent()..due {
            self.add_sent(now_ns.saturating_sub(schedule.due_ns(nth).unwrap_or(now_ns)));
        }
        self.confirm(schedule, due, now_ns);
    }
}

fn ticks(ns: u64) -> u32 {
    u32::try_from(ns / TICK_NS).unwrap_or(u32::MAX)
}

/// A part of a run, until the next one starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// What happened in it.
    pub name: &'static str,
    /// In nanoseconds of the run.
    pub start_ns: u64,
}

/// Messages that were due in a phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseFigures {
    /// What happened in it.
    pub phase: &'static str,
    /// How long it was.
    pub seconds: f64,
    /// Due in it.
    pub messages: u64,
    /// Due to confirmed.
    #[serde(flatten)]
    pub latency: LatencyFigures,
    /// Due to published: what of that is the client's own, or was waiting for room.
    pub send_lag_p99_us: Option<f64>,
}

/// The figures of each phase that had messages, and those of all together.
pub fn split(
    schedule: &Schedule,
    log: &WaitLog,
    phases: &[Phase],
    end_ns: u64,
) -> (Vec<PhaseFigures>, LatencyFigures) {
    let mut figures = Vec::new();
    let mut all = Latencies::default();
    let mut nth = 0;
    for (index, phase) in phases.iter().enumerate() {
        let next_ns = phases.get(index + 1).map_or(u64::MAX, |next| next.start_ns);
        let (mut waits, mut lags) = (Latencies::default(), Latencies::default());
        let first = nth;
        while nth < log.waits.len() && schedule.due_ns(nth as u64).is_some_and(|due| due < next_ns)
        {
            let wait_ns = u64::from(log.waits[nth]) * TICK_NS;
            waits.record(wait_ns);
            all.record(wait_ns);
            lags.record(u64::from(log.lags[nth]) * TICK_NS);
            nth += 1;
        }
        if nth > first {
            figures.push(PhaseFigures {
                phase: phase.name,
                seconds: next_ns.min(end_ns).saturating_sub(phase.start_ns) as f64 / 1e9,
                messages: (nth - first) as u64,
                latency: waits.figures(),
                send_lag_p99_us: lags.figures().p99_us,
            });
        }
    }
    (figures, all.figures())
}

/// Cuts the phase in which the target began to spill in three: before, `spill_starts` for
/// `start_ns_max` at most, and `spilling`. `quiet_ns` is when it was last seen not to.
pub fn cut_at_spill(phases: &mut Vec<Phase>, quiet_ns: u64, start_ns_max: u64) {
    let Some(index) = phases.iter().rposition(|phase| phase.start_ns <= quiet_ns) else { return };
    let next_ns = phases.get(index + 1).map_or(u64::MAX, |next| next.start_ns);
    let spilling_ns = quiet_ns.saturating_add(start_ns_max);
    phases.insert(index + 1, Phase { name: "spill_starts", start_ns: quiet_ns });
    if spilling_ns < next_ns {
        phases.insert(index + 2, Phase { name: "spilling", start_ns: spilling_ns });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// 10/s for a second, nothing for a second, 1000/s from then on.
    fn schedule() -> Schedule {
        let mut schedule = Schedule::default();
        schedule.set_rate(0, 10);
        schedule.set_rate(SECOND - 1, 0);
        schedule.set_rate(2 * SECOND, 1000);
        schedule
    }

    #[test]
    fn messages_are_due_by_the_rate_of_their_time() {
        let schedule = schedule();
        assert_eq!(Schedule::default().due(SECOND), 0);
        assert_eq!(schedule.due(2 * SECOND), 11);
        assert_eq!(schedule.due(2 * SECOND + 5_500_000), 16);
        assert_eq!(schedule.due_ns(0), Some(0));
        assert_eq!(schedule.due_ns(9), Some(900_000_000));
        assert_eq!(schedule.due_ns(10), Some(2 * SECOND));
        assert_eq!(schedule.due_ns(15), Some(2 * SECOND + 5_000_000));
        let mut ended = schedule;
        ended.set_rate(2 * SECOND + 5_500_000, 0);
        assert_eq!((ended.due(9 * SECOND), ended.due_ns(16)), (16, None));
        for nth in 0..16 {
            let due_ns = ended.due_ns(nth).unwrap();
            assert!(nth == 0 || ended.due_ns(nth - 1).unwrap() < due_ns, "{nth}");
        }
    }

    #[test]
    fn each_message_counts_in_the_phase_in_which_it_was_due() {
        let schedule = schedule();
        let mut log = WaitLog::default();
        (0..1011).for_each(|_| log.add_sent(0));
        // The first ten after 1 ms each; the rest all at once, a second after the first of them.
        for nth in 0..10 {
            log.confirm(&schedule, nth + 1, nth * 100_000_000 + 1_000_000);
        }
        log.confirm(&schedule, 1011, 3 * SECOND);
        let phases = [
            ("before", 0),
            ("pause", SECOND),
            ("burst", 2 * SECOND),
            ("late", 2 * SECOND + 500_000_000),
        ]
        .map(|(name, start_ns)| Phase { name, start_ns });
        let (figures, all) = split(&schedule, &log, &phases, 3 * SECOND);
        let named: Vec<_> = figures.iter().map(|each| (each.phase, each.messages)).collect();
        assert_eq!(named, [("before", 10), ("burst", 500), ("late", 501)]);
        assert!(figures[0].latency.max_us.unwrap() < 1_001.0);
        assert!((figures[1].latency.p50_us.unwrap() / 750_000.0 - 1.0).abs() < 0.01);
        assert!((figures[2].seconds - 0.5).abs() < 1e-9);
        assert!(all.max_us.unwrap() > 990_000.0);
    }

    #[test]
    fn what_was_never_sent_or_confirmed_has_waited_to_the_end() {
        let mut schedule = Schedule::default();
        schedule.set_rate(0, 100);
        let mut log = WaitLog::default();
        (0..50).for_each(|_| log.add_sent(0));
        log.confirm(&schedule, 20, 200_000_000);
        schedule.set_rate(SECOND - 1, 0);
        log.close(&schedule, 2 * SECOND);
        assert_eq!((log.sent(), log.confirmed()), (100, 100));
        let phases = [Phase { name: "all", start_ns: 0 }];
        let (figures, _) = split(&schedule, &log, &phases, 2 * SECOND);
        // 80 of 100 waited for more than a second.
        assert!(figures[0].latency.p50_us.unwrap() > 1_000_000.0, "{figures:?}");
        assert!(figures[0].latency.max_us.unwrap() > 1_790_000.0);
        assert!(figures[0].send_lag_p99_us.unwrap() > 1_000_000.0);
    }

    #[test]
    fn the_start_of_the_spill_is_a_phase_of_its_own() {
        let phase = |name, start_ns| Phase { name, start_ns };
        let stages = [phase("before", 0), phase("burst", 10), phase("draining", 100)];
        let mut phases = stages.to_vec();
        cut_at_spill(&mut phases, 30, 20);
        let cut = [phase("spill_starts", 30), phase("spilling", 50)];
        assert_eq!(phases, [stages[0], stages[1], cut[0], cut[1], stages[2]]);
        let mut phases = stages.to_vec();
        cut_at_spill(&mut phases, 90, 20);
        assert_eq!(phases, [stages[0], stages[1], phase("spill_starts", 90), stages[2]]);
        let mut none = Vec::new();
        cut_at_spill(&mut none, 5, 20);
        assert!(none.is_empty());
    }
}
