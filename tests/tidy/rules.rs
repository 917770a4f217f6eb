//! The rules about code. Each takes one file and returns what is wrong with it.

use super::source::Source;

/// One fault: where and what.
pub type Faults = Vec<String>;

/// What each module of `src/` may name, itself apart. A line may only name lines above it; the
/// world of the simulator and the binaries join what they need. The queue knows no frame, but it
/// says refusals and confirms in the protocol's words; and it knows no file, but it holds places on
/// disk, which it cannot look into.
const LAYERS: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("base", &["limits"]),
    ("format", &["limits", "base"]),
    ("protocol", &["limits", "base", "format"]),
    (
        "queue",
        &["limits", "base", "format", "protocol::error", "protocol::hot", "storage::slots::Place"],
    ),
    ("storage", &["limits", "base", "format"]),
    ("io", &["limits", "base", "format"]),
    ("config", &["limits", "base"]),
    ("shard", &["limits", "base", "format", "protocol", "queue", "storage", "io"]),
    (
        "server",
        &["limits", "base", "format", "protocol", "queue", "storage", "io", "config", "shard"],
    ),
    ("client", &["limits", "base", "format", "protocol"]),
    ("cli", &["limits", "base", "format", "protocol", "client"]),
    (
        "store_tool",
        &[
            "limits",
            "base",
            "format",
            "protocol",
            "storage",
            "io",
            "shard::router",
            "server::stores",
            "server::disk_limit",
            "cli",
        ],
    ),
    ("sim", &["limits", "base", "format", "protocol", "queue", "storage", "io", "shard", "client"]),
];

/// What programs and examples beside the library may name of it.
const CLIENT_SIDE: &[&str] = &["limits", "base", "format", "protocol", "client"];

/// Modules that never call the system, and the paths that would.
const PURE: &[&str] = &["limits", "base", "format", "protocol", "queue", "storage", "shard", "sim"];
const SYSTEM_CALLS: &[&str] = &[
    "std::fs",
    "std::thread",
    "std::process",
    "std::env",
    "std::os",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "std::net::ToSocketAddrs",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::Condvar",
    "mio",
    "socket2",
    "libc",
    "core_affinity",
    "signal_hook",
];

/// Lines of a file, of a function, columns of a line, lines of a binary.
pub const FILE_LINES_MAX: usize = 800;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;
const BIN_LINES_MAX: usize = 60;

/// What was too long before there was a rule, with its size. It may shrink, never grow.
const LONG_FILES: &[(&str, usize)] = &[];
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

const VAGUE_NAMES: &[&str] = &["Manager", "Helper", "Helpers", "Util", "Utils", "Context", "Data"];

/// Imports go down only.
pub fn layers(source: &Source) -> Faults {
    let module = source.module();
    let beside = ["examples/", "loadtest/"].iter().any(|folder| source.path.starts_with(folder));
    let (own, allowed) = match module {
        Some("lib" | "bin") => return Faults::new(),
        Some(module) => match LAYERS.iter().find(|(name, _)| *name == module) {
            Some((name, allowed)) => (*name, *allowed),
            None => return vec![format!("{}: no layer is known for `{module}`", source.path)],
        },
        None if beside => ("", CLIENT_SIDE),
        None => return Faults::new(),
    };
    let mut faults = Faults::new();
    for (line, path) in source.paths() {
        let Some(target) = inside(source, line, &path) else { continue };
        let target = target.join("::");
        let below = |module: &&str| is_below(&target, module);
        if !source.is_test(line) && !is_below(&target, own) && !allowed.iter().any(below) {
            let from = if own.is_empty() { "a program" } else { own };
            faults.push(fault(source, line, &format!("{from} may not use {target}")));
        }
    }
    faults
}

/// The part of `path` behind the library's root, if it leads there.
fn inside<'a>(source: &Source, line: usize, path: &'a [String]) -> Option<&'a [String]> {
    let first = path.first()?.as_str();
    if (first == "crate" && source.module().is_some()) || first == "forebay" {
        return path.get(1..).filter(|rest| !rest.is_empty());
    }
    // `super` once per level of src/a/b.rs leads to the crate's root; from a/mod.rs one less.
    let supers = path.iter().take_while(|part| *part == "super").count();
    let below = source.path.strip_prefix("src/")?.trim_end_matches(".rs").trim_end_matches("/mod");
    let levels = below.split('/').count() + source.inline_depth(line);
    let root = supers > 0 && supers >= levels;
    path.get(supers..).filter(|rest| root && !rest.is_empty())
}

/// Whether `path` is `module` or lies in it.
fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Only `io/` and the programs call the system.
pub fn system_calls(source: &Source) -> Faults {
    if !source.module().is_some_and(|module| PURE.contains(&module)) {
        return Faults::new();
    }
    let mut faults = Faults::new();
    for (line, path) in source.paths() {
        let path = path.join("::");
        let path = path.strip_prefix("core::").map_or(path.clone(), |rest| format!("std::{rest}"));
        let called = SYSTEM_CALLS.iter().find(|call| is_below(&path, call));
        if let Some(call) = called
            && !source.is_test(line)
        {
            faults.push(fault(source, line, &format!("{call} outside io/")));
        }
    }
    faults
}

/// Files, functions and lines fit a screen; binaries hold nothing.
pub fn sizes(source: &Source) -> Faults {
    let mut faults = Faults::new();
    let lines = source.text.lines().count();
    let path = source.path.as_str();
    let known = LONG_FILES.iter().find(|(long, _)| *long == path).map(|(_, lines)| *lines);
    faults.extend(over(path, lines, FILE_LINES_MAX, known));
    for (name, first, last) in source.functions() {
        let known = LONG_FUNCTIONS.iter().find(|(file, long, _)| *file == path && *long == name);
        let known = known.map(|(_, _, lines)| *lines);
        let place = format!("{path}:{}: fn {name}", first + 1);
        faults.extend(over(&place, last - first + 1, FUNCTION_LINES_MAX, known));
    }
    for (line, text) in source.text.lines().enumerate() {
        let columns = text.chars().count();
        if columns > COLUMNS_MAX {
            faults.push(fault(source, line, &format!("{columns} columns")));
        }
    }
    let bin = path.starts_with("src/bin/") || path == "loadtest/src/main.rs";
    if bin && lines > BIN_LINES_MAX {
        faults.push(format!("{path}: a binary of {lines} lines; at most {BIN_LINES_MAX}"));
    }
    faults
}

fn over(place: &str, lines: usize, max: usize, known: Option<usize>) -> Option<String> {
    match known {
        None if lines > max => Some(format!("{place}: {lines} lines; at most {max}")),
        Some(known) if lines > known => Some(format!("{place}: grew from {known} to {lines}")),
        Some(known) if lines < known => Some(format!("{place}: shrank to {lines}; say so here")),
        _ => None,
    }
}

/// `unsafe` in `base/` and `io/` only, each with the reason why it is sound. The load tests have a
/// seam of their own.
pub fn unsafety(source: &Source) -> Faults {
    let allowed =
        matches!(source.module(), Some("base" | "io")) || source.path == "loadtest/src/sys.rs";
    let mut faults = Faults::new();
    let lines: Vec<&str> = source.text.lines().collect();
    for (at, token) in source.tokens.iter().enumerate() {
        if token.text != "unsafe" {
            continue;
        }
        if !allowed {
            faults.push(fault(source, token.line, "unsafe outside base/ and io/"));
            continue;
        }
        let next = source.tokens.get(at + 1).map(|token| token.text.as_str());
        let declared = matches!(next, Some("fn" | "trait" | "extern"));
        if !(declared && (has_contract(&lines, token.line) || in_unsafe_impl(&lines, token.line)))
            && !has_safety_line(&lines, token.line)
        {
            faults.push(fault(source, token.line, "unsafe without its SAFETY line"));
        }
    }
    faults
}

/// A SAFETY comment ends at most two lines above (a statement may begin before its `unsafe`).
fn has_safety_line(lines: &[&str], line: usize) -> bool {
    let comment = |text: &str| text.trim_start().starts_with("//");
    let near = (line.saturating_sub(2)..line).rev().find(|&above| comment(lines[above]));
    let Some(near) = near else { return false };
    let block = (0..=near).rev().take_while(|&above| comment(lines[above]));
    block.into_iter().any(|above| lines[above].contains("SAFETY:"))
}

/// The item's doc comment has a `# Safety` section.
fn has_contract(lines: &[&str], line: usize) -> bool {
    let above = lines[..line].iter().rev().map(|text| text.trim_start());
    above
        .take_while(|text| text.starts_with("///") || text.starts_with("#["))
        .any(|text| text.contains("# Safety"))
}

/// The method belongs to an `unsafe impl`: the trait states the contract.
fn in_unsafe_impl(lines: &[&str], line: usize) -> bool {
    let opened = |text: &&&str| text.starts_with("impl") || text.starts_with("unsafe impl");
    lines[..line].iter().rev().find(opened).is_some_and(|text| text.starts_with("unsafe"))
}

/// Unfinished work, production code that knows of the simulator, vague names.
pub fn bans(source: &Source) -> Faults {
    let mut faults = Faults::new();
    let knows_sim = matches!(source.module(), Some("sim" | "bin" | "lib") | None);
    for (line, text) in source.text.lines().enumerate() {
        for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
            if text.contains(mark) {
                faults.push(fault(source, line, &format!("a {mark} mark: do it or open an issue")));
            }
        }
        for feature in ["sim", "canary"] {
            if !knows_sim && text.contains(&format!("feature = \"{feature}\"")) {
                faults.push(fault(source, line, "production code that knows of the simulator"));
            }
        }
    }
    for pair in source.tokens.windows(2) {
        let (first, second) = (pair[0].text.as_str(), pair[1].text.as_str());
        let unfinished = matches!(first, "todo" | "unimplemented" | "dbg") && second == "!";
        if unfinished {
            faults.push(fault(source, pair[0].line, &format!("{first}! in finished code")));
        }
        let named = matches!(first, "struct" | "enum" | "trait" | "type");
        if named && VAGUE_NAMES.iter().any(|vague| second.ends_with(vague)) {
            faults.push(fault(source, pair[0].line, &format!("{second} says nothing")));
        }
        if first == "fn" && second.starts_with("get_") {
            faults.push(fault(source, pair[0].line, &format!("{second}: leave out the get_")));
        }
    }
    faults
}

/// Every file says its one job first.
pub fn module_doc(source: &Source) -> Faults {
    if source.text.starts_with("//!") {
        return Faults::new();
    }
    vec![format!("{}: does not begin with //!", source.path)]
}

fn fault(source: &Source, line: usize, what: &str) -> String {
    format!("{}:{}: {what}", source.path, line + 1)
}
