//! The program: the command line, and the broker behind `serve`.

use forebay::cli::{self, ServeArgs};
use forebay::config::Settings;
use forebay::server::{self, ServeError};
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(|args| match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    })
}

fn serve(args: &ServeArgs) -> Result<(), ServeError> {
    let config =
        server::configuration(Settings::from_flags(args.settings()), args.config.as_deref())?;
    if args.print_config {
        // A reader that went away is no fault.
        let _ = std::io::stdout().write_all(config.to_toml().as_bytes());
        return Ok(());
    }
    server::run(&config)
}
