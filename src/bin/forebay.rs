//! The program: the command line, the broker behind `serve`, the tool behind `store`.

use forebay::cli::{self, ServeArgs};
use forebay::config::Settings;
use forebay::server::{self, ServeError};
use forebay::store_tool;
use std::io::Write as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    let serve = |args| match serve(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    };
    cli::run(serve, |args| store_tool::run(&args))
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
