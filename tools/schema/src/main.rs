//! Generates `src/protocol/schema_generated.rs` from `schema.fbs`; with `--check` it writes nothing
//! and fails when the committed file is not what the compiler makes of the schema.

use std::path::Path;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    let protocol = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/protocol");
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/generated");
    std::fs::create_dir_all(&out).expect("create the output folder");
    let status = Command::new(flatc_fork::flatc())
        .args(["--rust", "--gen-object-api", "-o"])
        .arg(&out)
        .arg(protocol.join("schema.fbs"))
        .status()
        .expect("run flatc");
    if !status.success() {
        return ExitCode::FAILURE;
    }
    let made = std::fs::read(out.join("schema_generated.rs")).expect("read what flatc wrote");
    let committed = protocol.join("schema_generated.rs");
    if !check {
        std::fs::write(&committed, made).expect("write schema_generated.rs");
        return ExitCode::SUCCESS;
    }
    if std::fs::read(&committed).ok().as_deref() == Some(made.as_slice()) {
        println!("schema_generated.rs is current");
        return ExitCode::SUCCESS;
    }
    eprintln!("schema_generated.rs is not what flatc makes of schema.fbs: run without --check");
    ExitCode::FAILURE
}
