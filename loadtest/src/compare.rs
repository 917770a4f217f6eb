//! Several targets in turn, several times over: the machine drifts, so only figures of the same
//! minute may be compared. Prints the median and range of each, and of the ratios round by round.

use crate::args::{Aim, CompareArgs, Scenario};
use crate::report::{Report, write_json};
use crate::run::{Interrupt, run};
use serde::Serialize;
use std::fmt::Write;
use std::io;

/// A round with more of this in any run is repeated.
const STEAL_PERCENT_MAX: f64 = 2.0;
/// As well as one with more of this: other programs were running.
const FOREIGN_PERCENT_MAX: f64 = 5.0;

/// A figure that is compared.
struct Figure {
    name: &'static str,
    of: fn(&Report) -> Option<f64>,
}

const FIGURES: [Figure; 10] = [
    Figure { name: "messages_per_s", of: |report| Some(report.messages_per_s) },
    Figure {
        name: "drain_messages_per_s",
        of: |report| report.more.get("drain_messages_per_s")?.as_f64(),
    },
    Figure { name: "start_s", of: |report| report.more.get("start_s")?.as_f64() },
    Figure { name: "p50_us", of: |report| report.latency.p50_us },
    Figure { name: "p99_us", of: |report| report.latency.p99_us },
    Figure { name: "p999_us", of: |report| report.latency.p999_us },
    Figure { name: "p9999_us", of: |report| report.latency.p9999_us },
    Figure { name: "max_us", of: |report| report.latency.max_us },
    Figure {
        name: "broker_cpu_s_per_million",
        of: |report| report.processors.broker_cpu_s_per_million,
    },
    Figure { name: "peak_rss_bytes", of: |report| report.peak_rss_bytes.map(|rss| rss as f64) },
];

/// Median and range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Spread { median: f64::midpoint(low, high), least, most })
    }
}

/// One figure of one target.
#[derive(Serialize)]
struct Row {
    figure: &'static str,
    target: String,
    value: Spread,
    /// To the first target, in the same round.
    ratio: Option<Spread>,
}

/// All that a comparison found.
#[derive(Serialize)]
struct Comparison<'r> {
    rows: Vec<Row>,
    /// Rounds that were repeated because of steal or foreign load.
    repeated: u64,
    /// The rounds that count; of each, one run per target.
    rounds: &'r [Vec<Report>],
}

/// Runs it. Whether no message was harmed.
///
/// # Errors
/// If a run fails.
pub fn compare(args: &CompareArgs, interrupt: &Interrupt) -> io::Result<bool> {
    let mut rounds: Vec<Vec<Report>> = Vec::new();
    let mut repeated = 0;
    let mut sound = true;
    while (rounds.len() as u64) < args.repetitions {
        let mut round = Vec::new();
        for aim in &args.targets {
            let mut report = run(&aimed(&args.scenario, aim), interrupt)?;
            report.target.clone_from(&aim.name);
            eprintln!("round {}\n{}", rounds.len() + 1, report.table());
            sound &= report.is_sound();
            round.push(report);
        }
        let noisy = round.iter().any(is_noisy);
        if noisy && repeated < args.repeats {
            repeated += 1;
            eprintln!("the machine was not this run's alone: this round is repeated\n");
        } else {
            rounds.push(round);
        }
    }
    let comparison = Comparison { rows: rows(&rounds), repeated, rounds: &rounds };
    print!("{}", table(&comparison));
    if let Some(path) = &args.scenario.target().json {
        write_json(path, &comparison)?;
    }
    Ok(sound)
}

fn is_noisy(run: &Report) -> bool {
    run.processors.steal_percent > STEAL_PERCENT_MAX
        || run.processors.foreign_percent > FOREIGN_PERCENT_MAX
}

fn aimed(scenario: &Scenario, aim: &Aim) -> Scenario {
    let mut scenario = scenario.clone();
    let args = scenario.target_mut();
    args.target = aim.target;
    args.forebay_args.extend_from_slice(&aim.forebay_args);
    scenario
}

fn rows(rounds: &[Vec<Report>]) -> Vec<Row> {
    let Some(first_round) = rounds.first() else { return Vec::new() };
    let mut rows = Vec::new();
    for figure in &FIGURES {
        for (nth, run) in first_round.iter().enumerate() {
            let values = rounds.iter().filter_map(|round| (figure.of)(&round[nth]));
            let Some(value) = Spread::of(values.collect()) else { continue };
            let ratios = rounds.iter().filter_map(|round| {
                Some(
                    (figure.of)(&round[nth])?
                        / (figure.of)(&round[0]).filter(|base| *base > 0.0)?,
                )
            });
            let ratio = (nth > 0).then(|| Spread::of(ratios.collect())).flatten();
            rows.push(Row { figure: figure.name, target: run.target.clone(), value, ratio });
        }
    }
    rows
}

fn table(comparison: &Comparison<'_>) -> String {
    let runs: Vec<&Report> = comparison.rounds.iter().flatten().collect();
    let worst = |of: fn(&Report) -> f64| runs.iter().map(|run| of(run)).fold(0.0, f64::max);
    let mut text = format!(
        "{} rounds, {} more repeated; worst steal {:.1} %, worst foreign load {:.1} %\n",
        comparison.rounds.len(),
        comparison.repeated,
        worst(|run| run.processors.steal_percent),
        worst(|run| run.processors.foreign_percent),
    );
    for Row { figure, target, value, ratio } in &comparison.rows {
        let digits = if value.median < 10.0 { 3 } else { 1 };
        let mut line = format!(
            "{figure:24}  {target:14}  {:>14.digits$}  ({:.digits$} .. {:.digits$})",
            value.median, value.least, value.most
        );
        if let Some(ratio) = ratio {
            let (median, least, most) = (ratio.median, ratio.least, ratio.most);
            write!(line, "  ratio {median:.2} ({least:.2} .. {most:.2})")
                .expect("a String takes all");
        }
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_medians_and_ranges() {
        assert_eq!(Spread::of(Vec::new()), None);
        let odd = Spread { median: 2.0, least: 1.0, most: 9.0 };
        assert_eq!(Spread::of(vec![9.0, 1.0, 2.0]), Some(odd));
        let even = Spread { median: 2.5, least: 1.0, most: 9.0 };
        assert_eq!(Spread::of(vec![3.0, 9.0, 1.0, 2.0]), Some(even));
    }
}
