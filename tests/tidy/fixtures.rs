//! The test of the test: each rule finds its fault in a few lines made for it, and does not find
//! it where there is none.

use super::rules::{self, Faults};
use super::source::Source;

fn faults(rule: fn(&Source) -> Faults, path: &str, text: &str) -> usize {
    rule(&Source::new(path, text)).len()
}

#[test]
fn code_is_told_from_comments_and_literals() {
    let text =
        "a /* b /* c */ d */ e // f\n\"g \\\" h\" i r#\"j \" k\"# l 'm' n<'o> '\\'' b\"p\" q";
    let source = Source::new("src/x.rs", text);
    let words: Vec<&str> = source.tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(words, ["a", "e", "i", "l", "n", "<", "'", "o", ">", "q"]);
    assert_eq!(source.tokens[2].line, 1);
    assert_eq!(source.code.lines().next().map(str::len), text.lines().next().map(str::len));
}

#[test]
fn use_trees_are_taken_apart() {
    let source = Source::new("src/x.rs", "use a::{b, c::{d, e as f}, g::*};\nlet x = h::i(j);");
    let paths: Vec<String> = source.paths().iter().map(|(_, path)| path.join("::")).collect();
    assert_eq!(paths, ["use", "a::b", "a::c::d", "a::c::e", "a::g::*", "let", "x", "h::i", "j"]);
}

#[test]
fn upward_imports_are_found() {
    let up = |path, text| faults(rules::layers, path, text);
    assert_eq!(up("src/queue/log.rs", "use crate::protocol::frame::Opcode;"), 1);
    assert_eq!(up("src/format/mod.rs", "fn f() { crate::queue::log::x() }"), 1);
    assert_eq!(up("src/client/mod.rs", "use crate::{base::time, shard::Shard, io};"), 2);
    assert_eq!(up("src/queue/log.rs", "use super::super::io::Net;"), 1);
    assert_eq!(up("src/queue/mod.rs", "use super::io::Net;"), 1);
    assert_eq!(up("loadtest/src/main.rs", "use forebay::server::boot;"), 1);
    assert_eq!(up("examples/x.rs", "use forebay::shard::Shard;"), 1);
    assert_eq!(up("src/unheard_of.rs", ""), 1);
}

#[test]
fn downward_imports_are_fine() {
    let up = |path, text| faults(rules::layers, path, text);
    assert_eq!(up("src/shard/mod.rs", "use crate::queue::Queue; use crate::io::Net;"), 0);
    assert_eq!(up("src/queue/log.rs", "use super::lanes; // crate::protocol\n"), 0);
    assert_eq!(up("src/queue/log.rs", "#[cfg(test)]\nmod tests { use crate::sim::Model; }"), 0);
    assert_eq!(up("src/protocol/mod.rs", "mod b {}\nmod wire {\n    use super::b::X;\n}"), 0);
    assert_eq!(up("src/bin/forebay.rs", "use forebay::{cli, server};"), 0);
    assert_eq!(up("examples/x.rs", "use forebay::client::Client;"), 0);
}

#[test]
fn system_calls_are_found() {
    let called = |path, text| faults(rules::system_calls, path, text);
    assert_eq!(called("src/queue/log.rs", "use std::{fs, net::TcpStream, thread};"), 3);
    assert_eq!(called("src/shard/mod.rs", "fn f() { std::time::Instant::now(); }"), 1);
    assert_eq!(called("src/storage/mod.rs", "use libc::c_int;"), 1);
    assert_eq!(called("src/shard/mod.rs", "use std::net::SocketAddr;"), 0);
    assert_eq!(called("src/io/mod.rs", "use std::fs;"), 0);
    assert_eq!(called("src/storage/tests.rs", "use std::fs;"), 0);
}

#[test]
fn long_things_are_found() {
    let long = |path, text: &str| faults(rules::sizes, path, text);
    let body = |lines: usize| format!("fn f(x: [u8; 2]) {{\n{}}}\n", "x;\n".repeat(lines));
    assert_eq!(long("src/x.rs", &body(69)), 1);
    assert_eq!(long("src/x.rs", &body(68)), 0);
    assert_eq!(long("src/x.rs", &"//\n".repeat(rules::FILE_LINES_MAX + 1)), 1);
    assert_eq!(long("src/x.rs", &"é".repeat(101)), 1);
    assert_eq!(long("src/x.rs", &"é".repeat(100)), 0);
    assert_eq!(long("src/bin/x.rs", &"//\n".repeat(61)), 1);
    assert_eq!(long("src/bin/x.rs", &"//\n".repeat(60)), 0);
}

#[test]
fn unsafe_code_without_reason_or_place_is_found() {
    let found = |path, text| faults(rules::unsafety, path, text);
    assert_eq!(found("src/queue/log.rs", "// SAFETY: no.\nunsafe { f() }"), 1);
    assert_eq!(found("src/base/x.rs", "unsafe { f() }"), 1);
    assert_eq!(found("src/base/x.rs", "// SAFETY: so.\nlet x =\n    unsafe { f() };"), 0);
    assert_eq!(found("src/base/x.rs", "// SAFETY: so\n// and so.\nunsafe { f() }"), 0);
    assert_eq!(found("src/base/x.rs", "/// Does.\npub unsafe fn f() {}"), 1);
    assert_eq!(found("src/base/x.rs", "/// # Safety\n/// So.\npub unsafe fn f() {}"), 0);
    let by_trait = "// SAFETY: so.\nunsafe impl T for X {\n\n\n    unsafe fn f() {}\n}";
    assert_eq!(found("src/io/x.rs", by_trait), 0);
    assert_eq!(found("src/queue/x.rs", "// not unsafe at all"), 0);
}

#[test]
fn banned_things_are_found() {
    let found = |path, text: &str| faults(rules::bans, path, text);
    assert_eq!(found("src/x.rs", concat!("// TO", "DO: later")), 1);
    assert_eq!(found("src/x.rs", concat!("fn f() { to", "do!() }")), 1);
    assert_eq!(found("src/shard/x.rs", "#[cfg(feature = \"sim\")]"), 1);
    assert_eq!(found("src/io/x.rs", "if cfg!(feature = \"canary\") {}"), 1);
    assert_eq!(found("src/sim/x.rs", "#[cfg(feature = \"canary\")]"), 0);
    assert_eq!(found("src/lib.rs", "#[cfg(feature = \"sim\")] pub mod sim;"), 0);
    assert_eq!(found("src/x.rs", concat!("struct Queue", "Manager;")), 1);
    assert_eq!(found("src/x.rs", concat!("fn get", "_depth() {}")), 1);
    assert_eq!(found("src/x.rs", "struct DataDir; fn get() {} fn todo() {}"), 0);
}

#[test]
fn a_missing_module_doc_is_found() {
    assert_eq!(faults(rules::module_doc, "src/x.rs", "use a::b;\n"), 1);
    assert_eq!(faults(rules::module_doc, "src/x.rs", "//! Does one thing.\n"), 0);
}
