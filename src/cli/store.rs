//! The arguments of `store`. The program hands them to `store_tool`, which knows the files.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What the command line says about a data directory.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
pub struct StoreArgs {
    /// JSON for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// What is to be done.
    #[command(subcommand)]
    pub action: StoreAction,
}

/// What `store` can do. The broker must be stopped.
#[derive(Subcommand, Clone, Debug)]
pub enum StoreAction {
    /// Show stores, segments and queues, and what of them is damaged
    Inspect {
        /// The data directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Check everything; exit code 6 if anything is damaged
    Verify {
        /// The data directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a broker start again on a directory that it refuses
    ///
    /// What cannot be used goes to DIR/quarantine-TIME/; nothing is deleted. Damage that a start
    /// lives with is left as it is.
    Repair {
        /// The data directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Print every record of the journals, a line each
    Dump {
        /// The data directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Only of this store
        #[arg(long, value_name = "N")]
        store: Option<u32>,
        /// Only what is said of this queue
        #[arg(long, value_name = "NAME")]
        queue: Option<String>,
        /// Bodies and properties too, as base64
        #[arg(long)]
        bodies: bool,
    },
}

impl StoreAction {
    /// The data directory.
    pub fn dir(&self) -> &PathBuf {
        match self {
            StoreAction::Inspect { dir }
            | StoreAction::Verify { dir }
            | StoreAction::Repair { dir, .. }
            | StoreAction::Dump { dir, .. } => dir,
        }
    }
}

const EXAMPLES: &str = "\
The broker that uses the directory must be stopped; nothing but repair writes into it.

Examples:
  forebay store inspect ./forebay-data
  forebay store verify ./forebay-data && echo sound
  forebay store repair ./forebay-data --dry-run
  forebay store dump ./forebay-data --queue orders --json";
