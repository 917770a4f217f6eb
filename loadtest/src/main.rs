//! Load tests of Forebay and of bare baselines; README.md says how to run them and how to read what
//! they print.

mod args;
mod body;
mod clock;
mod compare;
mod connect;
mod disk;
mod flood;
mod integrity;
mod proc;
mod report;
mod run;
mod scenario_backlog;
mod scenario_disk;
mod scenario_idle;
mod scenario_latency;
mod scenario_restart;
mod scenario_spike;
mod scenario_throughput;
mod schedule;
mod surge;
mod sys;
mod targets;
mod watch;

use args::{Cli, Command};
use clap::Parser;
use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Scenario(scenario) => measure(&scenario),
        Command::Compare(args) => {
            run::Interrupt::by_signals().and_then(|interrupt| compare::compare(&args, &interrupt))
        }
        Command::ServeBaseline(args) => targets::serve(&args).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        // Lost, doubled, reordered or damaged messages.
        Ok(false) => ExitCode::from(3),
        Err(error) => {
            eprintln!("forebay-loadtest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one scenario, shows its report. Whether no message was harmed.
fn measure(scenario: &args::Scenario) -> io::Result<bool> {
    let report = run::run(scenario, &run::Interrupt::by_signals()?)?;
    print!("{}", report.table());
    if let Some(path) = &scenario.target().json {
        report::write_json(path, &report)?;
    }
    Ok(report.is_sound())
}
