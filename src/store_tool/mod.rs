//! L4: `forebay store`: what works on the files of a broker that is stopped. It reads them by the
//! same code as a recovery does, and holds the directory's lock meanwhile.
//!
//! - `directory`: the lock, which files there are, their bytes
//! - `examine`, `store`: what is there and what is wrong with it, as a start would find it
//! - `inspect`, `verify`, `dump`: what is shown of that
//! - `repair`: the only one that writes

mod directory;
mod dump;
mod examine;
mod inspect;
mod repair;
mod store;
mod verify;

use crate::cli::{Exit, Failure, Outcome, Output, StoreAction, StoreArgs, conclude};
use directory::Directory;
use std::process::ExitCode;

/// Runs `store ...`.
pub fn run(args: &StoreArgs) -> ExitCode {
    conclude(outcome(args), args.json)
}

fn outcome(args: &StoreArgs) -> Outcome {
    let directory = Directory::open(args.action.dir())?;
    let out = Output::new(args.json);
    match &args.action {
        StoreAction::Inspect { .. } => inspect::run(&directory, out),
        StoreAction::Verify { .. } => verify::run(&directory, out),
        StoreAction::Repair { dry_run, .. } => repair::run(&directory, *dry_run, out),
        StoreAction::Dump { store, queue, bodies, .. } => {
            let picked = dump::Picked { store: *store, queue: queue.as_deref(), bodies: *bodies };
            dump::run(&directory, &picked, out)
        }
    }
}

/// The directory cannot be used at all; nothing was done.
fn unusable(text: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, "data_dir", text.to_string())
}
