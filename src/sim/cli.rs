//! What the `sim` binary does: runs seeds, says what each came to, and fails if a promise was
//! broken or if the seeds together never met something that they are there to meet.

use crate::sim::durable;
use crate::sim::run::{Report, RunOptions, run};
use crate::sim::trace::Cover;
use crate::sim::world::SimulatedWorld;
use std::ops::Range;

/// What was asked on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The seeds to run.
    pub seeds: Range<u64>,
    /// Steps of each.
    pub steps: u64,
    /// Write every event.
    pub print: bool,
    /// Only the runs of durable queues.
    pub durable: bool,
}

/// How it is used.
pub const USAGE: &str = "sim [--seed N | --seeds A..B] [--steps N] [--durable] [--print]";

/// Steps of a seed, unless others are asked for.
pub const STEPS_DEFAULT: u64 = 20_000;
/// A run of durable queues has so many for one of these.
const DURABLE_SHARE: u64 = 3;
/// From so many seeds on, together they must have met everything.
pub const SEEDS_FOR_COVERAGE: u64 = 50;

/// Reads the arguments behind the program's name.
///
/// # Errors
/// What cannot be read.
pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Asked, String> {
    let mut asked = Asked { seeds: 0..1, steps: STEPS_DEFAULT, print: false, durable: false };
    let mut arguments = arguments;
    let number = |text: &str| {
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.map_err(|_| format!("`{text}` is not a number"))
    };
    while let Some(argument) = arguments.next() {
        if argument == "--print" {
            asked.print = true;
            continue;
        }
        if argument == "--durable" {
            asked.durable = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{argument} needs a value"))?;
        match argument.as_str() {
            "--seed" => {
                let seed = number(&value)?;
                asked.seeds = seed..seed.checked_add(1).ok_or("the last seed is 2^64 - 2")?;
            }
            "--seeds" => {
                let (first, end) = value.split_once("..").ok_or("--seeds wants A..B")?;
                asked.seeds = number(first)?..number(end)?;
            }
            "--steps" => asked.steps = number(&value)?,
            _ => return Err(format!("unknown argument {argument}")),
        }
    }
    Ok(asked)
}

/// Runs all seeds. True if every promise was kept and, where there are enough seeds, everything
/// was met.
pub fn run_all<W: SimulatedWorld>(asked: &Asked) -> bool {
    let mut totals = vec![0; Cover::ALL.len()];
    for seed in asked.seeds.clone() {
        let (steps, print) = (asked.steps, asked.print);
        let usual = (!asked.durable).then(|| ("", run::<W>(RunOptions { seed, steps, print })));
        let broken = |(_, report): &(&str, Report)| report.violation.is_some();
        let durable = (!usual.as_ref().is_some_and(broken)).then(|| {
            let steps = steps / DURABLE_SHARE;
            (" --durable", durable::run(RunOptions { seed, steps, print }))
        });
        for (option, report) in usual.into_iter().chain(durable) {
            for (total, count) in totals.iter_mut().zip(&report.counts) {
                *total += count;
            }
            println!("{}", line(seed, option, &report));
            if let Some(violation) = &report.violation {
                println!("VIOLATION seed {seed}{option}: {violation}");
                println!(
                    "replay: cargo run --release --features sim --bin sim -- --seed {seed}{option}"
                );
                return false;
            }
        }
    }
    println!("coverage: {}", coverage(&totals));
    let is_unmet = |cover: &&Cover| {
        totals[**cover as usize] == 0 && (!asked.durable || cover.label().starts_with("durable"))
    };
    let unmet: Vec<_> = Cover::ALL.iter().filter(is_unmet).collect();
    let enough = asked.seeds.end - asked.seeds.start >= SEEDS_FOR_COVERAGE;
    if enough && !unmet.is_empty() {
        println!("NOT MET: {unmet:?}");
        return false;
    }
    true
}

fn line(seed: u64, option: &str, report: &Report) -> String {
    let met = report.counts.iter().filter(|&&count| count > 0).count();
    let (steps, virtual_ms) = (report.steps, report.virtual_ms);
    format!(
        "seed {seed}{option}: {steps} steps, {virtual_ms} ms, {met} of {} met, trace hash: {:016x}",
        Cover::ALL.len(),
        report.hash
    )
}

fn coverage(totals: &[u64]) -> String {
    let parts =
        Cover::ALL.iter().map(|&cover| format!("{}={}", cover.label(), totals[cover as usize]));
    parts.collect::<Vec<_>>().join(" ")
}
