//! Runs the deterministic simulator: `sim --seed N` replays one run, `sim --seeds A..B` runs many.

use forebay::sim::cli::{USAGE, parse, run_all};
use std::process::ExitCode;

#[cfg(feature = "canary")]
type World = forebay::sim::canary::CanaryWorld;
#[cfg(not(feature = "canary"))]
type World = forebay::sim::world::SimWorld;

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(asked) if run_all::<World>(&asked) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}\nusage: {USAGE}");
            ExitCode::from(2)
        }
    }
}
