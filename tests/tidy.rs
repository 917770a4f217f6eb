//! Keeps the house tidy: layers, sizes, bans, and documents that say what the code says. Each rule
//! is a function over one file; `tidy/fixtures.rs` shows that each can fail.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic anywhere")]

#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/fixtures.rs"]
mod fixtures;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use source::Source;
use std::path::Path;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that a person wrote keeps `rule`.
fn keep(rule: fn(&Source) -> rules::Faults) {
    let tree = source::tree(root());
    assert!(tree.len() > 20, "the tree was not found at {}", root().display());
    let written = tree.iter().filter(|source| !source.is_generated());
    let faults: Vec<String> = written.flat_map(rule).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn imports_go_down_only() {
    keep(rules::layers);
}

#[test]
fn only_io_calls_the_system() {
    keep(rules::system_calls);
}

#[test]
fn what_is_long_does_not_grow() {
    keep(rules::sizes);
}

#[test]
fn unsafe_code_has_its_place_and_its_reason() {
    keep(rules::unsafety);
}

#[test]
fn nothing_banned_is_used() {
    keep(rules::bans);
}

#[test]
fn every_file_says_its_job() {
    keep(rules::module_doc);
}

/// A document or script of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn none(faults: rules::Faults) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_protocol_document_has_every_error_code() {
    none(docs::error_codes(&read("docs/PROTOCOL.md")));
}

#[test]
fn the_protocol_document_has_every_opcode() {
    none(docs::opcodes(&read("docs/PROTOCOL.md")));
}

#[test]
fn the_protocol_document_has_the_limits() {
    none(docs::limits(&read("docs/PROTOCOL.md")));
}

#[test]
fn the_protocol_document_has_the_schema() {
    none(docs::schema(&read("docs/PROTOCOL.md"), &read("src/protocol/schema.fbs")));
}

#[test]
fn the_storage_document_has_the_limits() {
    none(docs::storage_limits(&read("docs/STORAGE.md")));
}

#[test]
fn the_storage_document_has_the_chunk_header() {
    none(docs::header(&read("docs/STORAGE.md"), "## Layout", &read("src/format/chunk.rs")));
}

#[test]
fn the_storage_document_has_the_headers_of_the_journal() {
    let (document, code) = (read("docs/STORAGE.md"), read("src/format/journal.rs"));
    let (segment, group) = code.split_once("//! Group header:").unwrap();
    none(docs::header(&document, "### Segment header", segment));
    none(docs::header(&document, "### Group header", group));
}

#[test]
fn the_storage_document_has_the_records_of_the_journal() {
    let (document, code) = (read("docs/STORAGE.md"), read("src/format/change.rs"));
    for part in ["Fixed part of Queue", "Fixed part of Subscription", "Failure", "Move", "Fragment"]
    {
        let (_, drawn) = code.split_once(&format!("//! {part}:\n")).unwrap();
        let drawn = drawn.split("//!\n").next().unwrap();
        none(docs::header(&document, &format!("#### {part}"), drawn));
    }
}

/// Names in a folder, folders with a slash.
fn names(folder: &str) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let entry = entry.unwrap();
        let slash = if entry.file_type().unwrap().is_dir() { "/" } else { "" };
        format!("{}{slash}", entry.file_name().to_str().unwrap())
    };
    std::fs::read_dir(root().join(folder)).unwrap().map(name).collect()
}

#[test]
fn the_code_map_has_every_module() {
    // src/config/ holds the tests of src/config.rs.
    let modules: Vec<String> = names("src").into_iter().filter(|name| name != "config/").collect();
    none(docs::code_map(&read("docs/ARCHITECTURE.md"), &modules));
}

#[test]
fn the_testing_document_has_every_test() {
    let part = |name: &String| !matches!(name.as_str(), "common/" | "tidy/");
    let tests: Vec<String> = names("tests").into_iter().filter(part).collect();
    none(docs::tests(&read("docs/TESTING.md"), &tests));
}

#[test]
fn the_testing_document_names_real_tests() {
    none(docs::failures(&read("docs/TESTING.md"), &source::tree(root())));
}

#[test]
fn the_architecture_document_names_real_functions() {
    none(docs::functions(&read("docs/ARCHITECTURE.md"), &source::tree(root())));
}

#[test]
fn ci_runs_what_the_readme_says() {
    none(docs::commands(&read("README.md"), &(read(".ci/run") + &read(".ci/smoke"))));
}
