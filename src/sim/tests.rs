//! A few short runs, so that the world itself is tested wherever the library is.

use super::run::{RunOptions, run};
use super::world::SimWorld;

fn play(seed: u64, steps: u64) -> super::run::Report {
    run::<SimWorld>(RunOptions { seed, steps, print: false })
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (first, second) = (play(7, 1500), play(7, 1500));
    assert_eq!(first.hash, second.hash);
    assert_eq!(first.counts, second.counts);
    assert_ne!(first.hash, play(8, 1500).hash);
}

#[test]
fn a_few_seeds_keep_every_promise() {
    for seed in 100..108 {
        let report = play(seed, 2000);
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

#[test]
fn durable_queues_keep_their_promises_over_crashes() {
    for seed in 100..108 {
        let report = super::durable::run(RunOptions { seed, steps: 1500, print: false });
        assert_eq!(report.violation, None, "seed {seed}");
    }
}

#[cfg(feature = "canary")]
fn finds_the_bug_of<W: super::world::SimulatedWorld>() -> bool {
    (0..20).any(|seed| {
        let options = RunOptions { seed, steps: 5000, print: false };
        run::<W>(options).violation.is_some()
    })
}

#[test]
#[cfg(feature = "canary")]
fn the_planted_bugs_are_found() {
    assert!(finds_the_bug_of::<super::canary::CanaryWorld>());
    assert!(finds_the_bug_of::<super::canary::LateCanaryWorld>());
    assert!(finds_the_bug_of::<super::canary::SpillCanaryWorld>());
}
