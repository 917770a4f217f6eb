//! The rules about documents: what they say of the code, the code says too.

use super::rules::Faults;
use super::source::Source;
use forebay::limits;
use forebay::protocol::error::ErrorCode;
use forebay::protocol::frame::Opcode;

/// Rows of the table under `heading`, cells trimmed.
fn table<'a>(document: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = section(document, heading).unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// From `heading` (with its `#`) to the next heading of the same or a higher level.
fn section<'a>(document: &'a str, heading: &str) -> Option<&'a str> {
    let start = document.find(&format!("\n{heading}\n"))? + heading.len() + 2;
    let level = heading.chars().take_while(|&c| c == '#').count();
    let is_end = |line: &str| {
        let hashes = line.chars().take_while(|&c| c == '#').count();
        hashes > 0 && hashes <= level && line[hashes..].starts_with(' ')
    };
    let mut end = start;
    for line in document[start..].split_inclusive('\n') {
        if is_end(line) {
            break;
        }
        end += line.len();
    }
    Some(&document[start..end])
}

fn differences(what: &str, documented: &[Vec<String>], real: &[Vec<String>]) -> Faults {
    let missing = real.iter().filter(|row| !documented.contains(row));
    let wrong = documented.iter().filter(|row| !real.contains(row));
    let missing = missing.map(|row| format!("{what} is not documented: {}", row.join(", ")));
    missing.chain(wrong.map(|row| format!("there is no {what} {}", row.join(", ")))).collect()
}

fn first_cells(rows: &[Vec<&str>], count: usize) -> Vec<Vec<String>> {
    let plain = |cell: &&str| cell.trim_matches('`').to_owned();
    rows.iter().map(|row| row.iter().take(count).map(plain).collect()).collect()
}

/// Every error code stands in PROTOCOL.md with its number, name and nature, and no other.
pub fn error_codes(document: &str) -> Faults {
    let documented = first_cells(&table(document, "## Error codes"), 4);
    let word = |truth: bool| if truth { "yes".to_owned() } else { "no".to_owned() };
    let real: Vec<Vec<String>> = ErrorCode::ALL
        .iter()
        .map(|&code| {
            let (number, name) = ((code as u16).to_string(), code.name().to_owned());
            vec![number, name, word(code.is_fatal()), word(code.is_retryable())]
        })
        .collect();
    differences("error code", &documented, &real)
}

/// Every opcode stands in PROTOCOL.md with its number, and no other.
pub fn opcodes(document: &str) -> Faults {
    let documented = first_cells(&table(document, "## Frames"), 2);
    let real: Vec<Vec<String>> = Opcode::ALL
        .iter()
        .map(|&opcode| vec![(opcode as u8).to_string(), screaming(&format!("{opcode:?}"))])
        .collect();
    differences("opcode", &documented, &real)
}

fn screaming(camel: &str) -> String {
    let mut name = String::new();
    for letter in camel.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

macro_rules! values {
    ($($name:ident)*) => { &[$((stringify!($name), limits::$name as u64),)*] };
}

/// Every limit that a client can meet.
const LIMITS: &[(&str, u64)] = values! {
    PREAMBLE_BYTES FRAME_HEADER_BYTES FRAME_PAYLOAD_BYTES_MAX CONTROL_PAYLOAD_BYTES_MAX
    BATCH_HEADER_BYTES BATCH_WIRE_BYTES_MAX BATCH_RECORDS_BYTES_MAX BATCH_RECORDS_MAX
    RECORD_HEADER_BYTES RECORD_CONTENT_BYTES_MAX PROPERTIES_BYTES_MAX HEADERS_MAX
    DEAD_LETTER_BYTES_MAX
    HEADER_KEY_BYTES_MAX MESSAGE_BYTES_MAX MESSAGE_BYTES_DEFAULT DELIVER_HEADER_BYTES
    RUN_RECORDS_MAX ACK_RANGES_MAX NACK_RANGES_MAX NACK_TEXT_BYTES_MAX EXTEND_RANGES_MAX
    EXTENDED_LEASES_PER_TICK_MAX
    ACK_SPAN_MAX RETRY_WAITING_MAX LEASE_MS_MIN LEASE_MS_MAX LEASE_MS_DEFAULT BACKOFF_MS_MAX
    BACKOFF_LIST_MAX ATTEMPTS_DEFAULT ATTEMPTS_MAX SUBSCRIPTIONS_MAX EXPIRES_AFTER_MS_MIN
    EXPIRES_AFTER_MS_MAX MOVES_MAX DEAD_LETTER_HOPS_MAX REDRIVE_COUNT_MAX REDRIVE_SCAN_MAX
    REDRIVE_RETRY_MS REDRIVE_WAIT_MS_MAX
    CREDIT_ENTRIES_MAX HANDLE_MAX HANDLES_MAX WINDOW_BYTES
    CREDIT_MESSAGES_MAX CREDIT_BYTES_MAX IN_FLIGHT_MAX PRODUCERS_PER_QUEUE_MAX PULLS_WAITING_MAX
    PULL_WAIT_MS_MAX PEEK_COUNT_MAX PEEK_SKIP_MAX LIST_COUNT_MAX NAME_BYTES_MAX
    TOKEN_BYTES_MAX HELLO_TIMEOUT_MS FRAME_TIMEOUT_MS STALL_TIMEOUT_MS UNSENT_BYTES_MAX
    HEARTBEAT_MS_MIN HEARTBEAT_MS_MAX
};

/// The limits stand in PROTOCOL.md with their values.
pub fn limits(document: &str) -> Faults {
    let documented = first_cells(&table(document, "## Limits"), 2);
    let row = |(name, value): &(&str, u64)| vec![(*name).to_owned(), value.to_string()];
    differences("limit", &documented, &LIMITS.iter().map(row).collect::<Vec<_>>())
}

/// Every limit that shapes a spill file or a journal.
const STORAGE_LIMITS: &[(&str, u64)] = values! {
    SPILL_SLOT_BYTES SPILL_EXTENT_SLOTS SPILL_WRITE_DEPTH SPILL_READ_DEPTH SPILL_FAILURES_MAX
    SPILL_RETRY_MS READ_RETRY_MS READ_TRIES_MAX SPILL_CALM_MS SPILL_RELEASE_PACE_MS
    SPILL_RELEASE_MS SPILL_RELEASE_DEPTH DISK_ALIGN_BYTES DISK_WRITE_CHUNKS_MAX CHUNK_HEADER_BYTES
    BATCH_PREFIX_BYTES BATCH_HEADER_BYTES
    JOURNAL_SEGMENT_BYTES JOURNAL_SEGMENT_HEADER_BYTES JOURNAL_GROUP_BYTES_MAX
    JOURNAL_GROUP_HEADER_BYTES JOURNAL_RECORD_HEADER_BYTES JOURNAL_RANGES_MAX
    JOURNAL_BODY_BYTES_MAX JOURNAL_PREWRITE_BYTES JOURNAL_FILES_MAX
};

/// The limits of storage stand in STORAGE.md with their values.
pub fn storage_limits(document: &str) -> Faults {
    let documented = first_cells(&table(document, "## Limits"), 2);
    let row = |(name, value): &(&str, u64)| vec![(*name).to_owned(), value.to_string()];
    differences("limit", &documented, &STORAGE_LIMITS.iter().map(row).collect::<Vec<_>>())
}

/// The header under `heading` of STORAGE.md is drawn as in the file that writes it: offset and
/// field.
pub fn header(document: &str, heading: &str, code: &str) -> Faults {
    let documented: Vec<Vec<String>> = first_cells(&table(document, heading), 3)
        .into_iter()
        .map(|row| vec![row[0].clone(), row[2].clone()])
        .collect();
    let drawn = code.lines().filter_map(|line| line.strip_prefix("//! "));
    let field = |line: &str| {
        let mut words = line.split_whitespace().map(|word| word.trim_end_matches(','));
        let offset: u64 = words.next()?.parse().ok()?;
        let (_type, name) = (words.next()?, words.next()?);
        Some(vec![offset.to_string(), name.to_owned()])
    };
    differences("field of a header", &documented, &drawn.filter_map(field).collect::<Vec<_>>())
}

/// Every table of the schema has a section in PROTOCOL.md that lists its fields.
pub fn schema(document: &str, schema: &str) -> Faults {
    let code: String = schema
        .lines()
        .map(|line| line.split("//").next().unwrap_or("").to_owned() + "\n")
        .collect();
    let mut faults = Faults::new();
    let bodies = section(document, "## Control bodies").unwrap_or_default();
    for part in code.split("table ").skip(1) {
        let (name, rest) = part.split_once('{').expect("a table has a body");
        let name = name.trim();
        let Some(section) = section(bodies, &format!("### {name}")) else {
            faults.push(format!("table {name} is not documented"));
            continue;
        };
        let fields = rest.split('}').next().expect("a body ends").split(';').map(str::trim);
        for field in fields.filter(|field| !field.is_empty()) {
            let field = field.split(':').next().expect("a field has a name").trim();
            if !section.contains(&format!("| `{field}` |")) {
                faults.push(format!("field {field} of table {name} is not documented"));
            }
        }
    }
    faults
}

/// Every module of `src/` stands in the code map of ARCHITECTURE.md.
pub fn code_map(document: &str, modules: &[String]) -> Faults {
    let map = section(document, "## Code map").unwrap_or_default();
    let missing = modules.iter().filter(|module| !map.contains(&format!("`src/{module}`")));
    missing.map(|module| format!("src/{module} is not in the code map")).collect()
}

/// Every test of `tests/` stands in TESTING.md.
pub fn tests(document: &str, tests: &[String]) -> Faults {
    let missing = tests.iter().filter(|test| !document.contains(&format!("`tests/{test}`")));
    missing.map(|test| format!("tests/{test} is not in TESTING.md")).collect()
}

/// The tests that TESTING.md names against the failures of others are there.
pub fn failures(document: &str, sources: &[Source]) -> Faults {
    let rows = table(document, "## Failures of others");
    if rows.is_empty() {
        return vec!["TESTING.md has no failures of others".to_owned()];
    }
    let named = rows.iter().flat_map(|row| row.last().copied().unwrap_or_default().split('`'));
    let names = named.filter(|span| span.starts_with(char::is_alphabetic));
    let is_there = |name: &str| {
        let declared = format!("fn {name}()");
        sources.iter().any(|source| source.code.contains(&declared))
    };
    let missing = names.filter(|name| !is_there(name));
    missing.map(|name| format!("there is no test {name}")).collect()
}

/// Every function that a document names as `Type::function` is there, in a file that names the
/// type.
pub fn functions(document: &str, sources: &[Source]) -> Faults {
    let spans = document.split('`').skip(1).step_by(2);
    let names = spans.filter_map(|span| span.split_once("::")).filter(|(of, function)| {
        let word = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == '_');
        word(of) && word(function) && function.starts_with(char::is_lowercase)
    });
    let missing = names.filter(|(of, function)| {
        let declared = [format!("fn {function}("), format!("fn {function}<")];
        let has = |source: &Source| {
            declared.iter().any(|declared| source.code.contains(declared))
                && source.tokens.iter().any(|token| token.text == *of)
        };
        !sources.iter().any(has)
    });
    missing.map(|(of, function)| format!("there is no {of}::{function}")).collect()
}

/// A `cargo` command that README.md tells people to run is one that CI runs, word for word; what
/// stands behind ` -- ` or is redirected may differ.
pub fn commands(readme: &str, ci: &str) -> Faults {
    let mut faults = Faults::new();
    let mut in_shell = false;
    for line in readme.lines() {
        if line.starts_with("```") {
            in_shell = line == "```sh";
            continue;
        }
        let command = line.split(" -- ").next().unwrap_or_default();
        let command = command.split(['#', '|', '<', '>']).next().unwrap_or_default().trim();
        if in_shell && command.starts_with("cargo ") && !ci.contains(command) {
            faults.push(format!("CI does not run `{command}`"));
        }
    }
    faults
}

mod fixtures {
    use super::*;

    #[test]
    fn sections_end_where_the_next_begins() {
        let document = "\n# A\na\n## B\nb\n### C\nc\n## D\nd\n";
        assert_eq!(section(document, "## B"), Some("b\n### C\nc\n"));
        assert_eq!(section(document, "### C"), Some("c\n"));
        assert_eq!(section(document, "## D"), Some("d\n"));
        assert_eq!(section(document, "## E"), None);
    }

    #[test]
    fn a_wrong_number_is_found() {
        let rows: String = ErrorCode::ALL
            .iter()
            .map(|code| {
                let word = |truth| if truth { "yes" } else { "no" };
                let (fatal, retry) = (word(code.is_fatal()), word(code.is_retryable()));
                format!("| {} | `{}` | {fatal} | {retry} | x |\n", *code as u16, code.name())
            })
            .collect();
        let document = format!("\n## Error codes\n\n| a | b |\n|---|---|\n{rows}\n## Next\n");
        assert_eq!(error_codes(&document), Faults::new());
        assert_eq!(error_codes(&document.replace("| 33 |", "| 34 |")).len(), 2);
        assert_eq!(error_codes(&document.replacen("yes", "no", 1)).len(), 2);
        assert_eq!(error_codes("").len(), ErrorCode::ALL.len());
    }

    #[test]
    fn a_wrong_opcode_or_limit_is_found() {
        let document = "\n## Frames\n\n| a | b |\n|---|---|\n| 1 | HELLO |\n| 2 | HELO |\n";
        assert_eq!(opcodes(document).len(), Opcode::ALL.len() - 1 + 1);
        assert_eq!(screaming("QueueCreate"), "QUEUE_CREATE");
        let document = "\n## Limits\n\n| a | b |\n|---|---|\n| `HANDLES_MAX` | 4097 | x |\n";
        assert_eq!(limits(document).len(), LIMITS.len() + 1);
    }

    #[test]
    fn a_wrong_offset_or_storage_limit_is_found() {
        let document = "\n## Limits\n\n| a | b |\n|---|---|\n| `SPILL_RETRY_MS` | 999 | x |\n";
        assert_eq!(storage_limits(document).len(), STORAGE_LIMITS.len() + 1);
        let code = "//! a chunk\n//!  0  u32  crc32c  over all\n//!  4  u16  flags, zero\n";
        let rows = "| 0 | 4 | `crc32c` |\n| 4 | 2 | `flags` |\n";
        let document = format!("\n## Layout\n\n| a | b | c |\n|---|---|---|\n{rows}");
        assert_eq!(header(&document, "## Layout", code), Faults::new());
        let moved = document.replace("| 4 | 2", "| 6 | 2");
        assert_eq!(header(&moved, "## Layout", code).len(), 2);
        assert_eq!(header("", "## Layout", code).len(), 2);
    }

    #[test]
    fn a_missing_field_is_found() {
        let fbs = "table A { b: c; // d\n e: [f] = 1; }\ntable G {}";
        let document = "\n## Control bodies\n\n### A\n| `b` | c |\n| `e` | f |\n### G\n";
        assert_eq!(schema(document, fbs), Faults::new());
        assert_eq!(schema(&document.replace("`e`", "`d`"), fbs).len(), 1);
        assert_eq!(schema(&document.replace("### G", ""), fbs).len(), 1);
    }

    #[test]
    fn a_function_that_is_gone_is_found() {
        let sources = [Source::new("src/x.rs", "impl X { fn here(&self) {} } // fn gone()")];
        assert_eq!(functions("by `X::here` and `x.rs` and `a::B`", &sources), Faults::new());
        assert_eq!(functions("by `X::gone`, then `Y::here`", &sources).len(), 2);
    }

    #[test]
    fn an_unmapped_module_or_command_is_found() {
        let document = "\n## Code map\n\n`src/queue/` holds\n";
        assert_eq!(code_map(document, &["queue/".to_owned()]), Faults::new());
        assert_eq!(code_map(document, &["shard/".to_owned()]).len(), 1);
        let document = "by `tests/a.rs`, `tests/b/`";
        assert_eq!(tests(document, &["a.rs".to_owned(), "b/".to_owned()]), Faults::new());
        assert_eq!(tests(document, &["c.rs".to_owned()]).len(), 1);
        let ci = "cargo test --workspace\n";
        assert_eq!(commands("```sh\ncargo test --workspace   # all\n```\n", ci), Faults::new());
        assert_eq!(commands("```sh\ncargo test --all\n```\n", ci).len(), 1);
        assert_eq!(commands("```text\ncargo test --all\n```\n", ci), Faults::new());
    }
}
