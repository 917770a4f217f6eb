//! `trim`: the broker gives free space on disk back at once.

use crate::base::units::show_bytes;
use crate::cli::broker::BrokerArgs;
use crate::cli::failure::Outcome;
use crate::cli::fields::Fields;
use crate::cli::output::Output;
use clap::Args;

/// The arguments of `trim`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct TrimArgs {
    #[command(flatten)]
    pub(super) broker: BrokerArgs,
}

const EXAMPLES: &str = "\
The broker keeps the space of its spill files for the next spike, and gives back what is over
its --spill-reserve slowly, while the disk is calm. This gives back all that holds nothing,
now; writes may be slow for a moment, and the next spike has to make its space again.

Examples:
  forebay trim
  forebay trim --json | jq .released_bytes";

/// Runs `trim`.
///
/// # Errors
/// If the broker cannot be reached.
pub fn run(args: &TrimArgs) -> Outcome {
    let broker = &args.broker;
    let mut connection = broker.connect()?;
    let trimmed = connection.trim().map_err(|error| broker.failure(error))?;
    let mut fields = Fields::default();
    fields.extend([
        ("released_bytes", trimmed.released_bytes),
        ("disk_allocated_bytes", trimmed.disk_allocated_bytes),
    ]);
    let text = format!(
        "{} given back; {} still taken\n",
        show_bytes(trimmed.released_bytes),
        show_bytes(trimmed.disk_allocated_bytes),
    );
    Output::new(broker.json).finish(&fields, text)
}
