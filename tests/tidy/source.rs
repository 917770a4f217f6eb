//! Reads Rust source just well enough for the rules: which bytes are code, which tokens there are,
//! which paths they name, which lines are tests.

use std::path::Path;

/// One Rust file.
pub struct Source {
    /// From the root of the repository, with `/`.
    pub path: String,
    /// As it stands.
    pub text: String,
    /// The same lines and columns with comments and literals blanked out.
    pub code: String,
    /// `code` in words.
    pub tokens: Vec<Token>,
    /// Per line, from 0: whether it belongs to a test.
    test_lines: Vec<bool>,
    /// Per line, from 0: how many inline modules it is in.
    inline_depth: Vec<usize>,
}

/// A word, number or punctuation mark; `::` is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// From 0.
    pub line: usize,
    /// The token.
    pub text: String,
}

impl Source {
    /// Reads `text` as if it stood at `path`.
    pub fn new(path: &str, text: &str) -> Source {
        let code = blank_comments_and_literals(text);
        let tokens = tokens(&code);
        let lines = text.lines().count() + 1;
        let mut test_lines = vec![is_test_path(path); lines];
        mark_test_items(&tokens, &mut test_lines);
        let mut inline_depth = vec![0; lines];
        mark_inline_modules(&tokens, &mut inline_depth);
        let (path, text) = (path.to_owned(), text.to_owned());
        Source { path, text, code, tokens, test_lines, inline_depth }
    }

    /// Whether line `line` (from 0) is compiled for tests only.
    pub fn is_test(&self, line: usize) -> bool {
        self.test_lines.get(line).copied().unwrap_or(false)
    }

    /// How many `mod x { }` line `line` (from 0) is in.
    pub fn inline_depth(&self, line: usize) -> usize {
        self.inline_depth.get(line).copied().unwrap_or(0)
    }

    /// First directory or file below `src/` without its ending: `queue`, `limits`, `bin`.
    pub fn module(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        Some(below.split('/').next().unwrap_or(below).trim_end_matches(".rs"))
    }

    /// Whether the file was written by a program.
    pub fn is_generated(&self) -> bool {
        self.path == "src/protocol/schema_generated.rs"
    }

    /// All paths in the code with their line, use trees taken apart: `use a::{b, c::d}` gives
    /// `a::b` and `a::c::d`.
    pub fn paths(&self) -> Vec<(usize, Vec<String>)> {
        let (mut found, mut at) = (Vec::new(), 0);
        while at < self.tokens.len() {
            if is_word(&self.tokens[at].text) {
                at = path_from(&self.tokens, at, &[], &mut found);
            } else {
                at += 1;
            }
        }
        found
    }

    /// Functions with a body: name, first and last line, from 0.
    pub fn functions(&self) -> Vec<(String, usize, usize)> {
        let mut found = Vec::new();
        for at in 0..self.tokens.len().saturating_sub(1) {
            if self.tokens[at].text != "fn" || !is_word(&self.tokens[at + 1].text) {
                continue;
            }
            let (mut depth, mut next) = (0, at + 2);
            while let Some(token) = self.tokens.get(next) {
                match token.text.as_str() {
                    "(" | "[" => depth += 1,
                    ")" | "]" => depth -= 1,
                    "{" | ";" if depth == 0 => break,
                    _ => {}
                }
                next += 1;
            }
            if self.tokens.get(next).is_some_and(|token| token.text == "{") {
                let end = closing(&self.tokens, next);
                let name = self.tokens[at + 1].text.clone();
                found.push((name, self.tokens[at].line, self.tokens[end].line));
            }
        }
        found
    }
}

/// All Rust files of the repository but those under `target/`, by path.
pub fn tree(root: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "examples", "benches", "loadtest", "tools"] {
        collect(root, folder, &mut found);
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn collect(root: &Path, folder: &str, found: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(root.join(folder)) else { return };
    for entry in entries {
        let entry = entry.expect("the entry can be read");
        let path = format!("{folder}/{}", entry.file_name().to_str().expect("a UTF-8 name"));
        if entry.file_type().expect("the entry has a type").is_dir() {
            if !path.ends_with("/target") {
                collect(root, &path, found);
            }
        } else if path.ends_with(".rs") {
            let text = std::fs::read_to_string(entry.path()).expect("the file is UTF-8");
            found.push(Source::new(&path, &text));
        }
    }
}

fn is_test_path(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

/// Marks the lines of every item behind `#[cfg(test)]` or `#[test]`.
fn mark_test_items(tokens: &[Token], lines: &mut [bool]) {
    for at in 0..tokens.len() {
        let words: Vec<&str> = tokens[at..].iter().take(7).map(|t| t.text.as_str()).collect();
        let marked = words.starts_with(&["#", "[", "cfg", "(", "test", ")", "]"])
            || words.starts_with(&["#", "[", "test", "]"]);
        if !marked {
            continue;
        }
        let body = (at..tokens.len()).find(|&next| matches!(tokens[next].text.as_str(), "{" | ";"));
        let Some(body) = body else { continue };
        let end = if tokens[body].text == "{" { closing(tokens, body) } else { body };
        lines[tokens[at].line..=tokens[end].line].fill(true);
    }
}

fn mark_inline_modules(tokens: &[Token], lines: &mut [usize]) {
    for at in 2..tokens.len() {
        if tokens[at].text == "{" && tokens[at - 2].text == "mod" {
            let end = closing(tokens, at);
            lines[tokens[at].line..=tokens[end].line].iter_mut().for_each(|depth| *depth += 1);
        }
    }
}

/// Index of the brace that closes the one at `open`, or of the last token.
fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len() - 1
}

/// Follows the path that begins at `at`, behind `prefix`; returns where to go on.
fn path_from(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let line = tokens[at].line;
    let mut path = prefix.to_vec();
    path.push(tokens[at].text.clone());
    at += 1;
    while tokens.get(at).is_some_and(|token| token.text == "::") {
        match tokens.get(at + 1).map(|token| token.text.as_str()) {
            Some("{") => return group_from(tokens, at + 2, &path, found),
            Some(word) if is_word(word) || word == "*" => path.push(word.to_owned()),
            _ => break,
        }
        at += 2;
    }
    found.push((line, path));
    at
}

fn group_from(
    tokens: &[Token],
    mut at: usize,
    prefix: &[String],
    found: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "}" => return at + 1,
            "as" => at += 2,
            word if is_word(word) => at = path_from(tokens, at, prefix, found),
            _ => at += 1,
        }
    }
    at
}

fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

fn tokens(code: &str) -> Vec<Token> {
    let mut found = Vec::new();
    for (line, text) in code.lines().enumerate() {
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let bytes = if word(first) {
                rest.find(|c| !word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            found.push(Token { line, text: rest[..bytes].to_owned() });
            rest = rest[bytes..].trim_start();
        }
    }
    found
}

/// Blanks comments and the insides of string and char literals; lines and columns stay.
fn blank_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    while at < chars.len() {
        let end = if chars[at..].starts_with(&['/', '/']) {
            (at..chars.len()).find(|&next| chars[next] == '\n').unwrap_or(chars.len())
        } else if chars[at..].starts_with(&['/', '*']) {
            end_of_block_comment(&chars, at)
        } else if let Some(end) = end_of_literal(&chars, at) {
            end
        } else {
            // A whole word at a time, so that the `r` in `for"` is no raw string's.
            let word = |c: char| c.is_alphanumeric() || c == '_';
            let mut end = at + 1;
            while word(chars[at]) && end < chars.len() && word(chars[end]) {
                end += 1;
            }
            out.extend(&chars[at..end]);
            at = end;
            continue;
        };
        out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

fn end_of_block_comment(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at < chars.len() {
        if chars[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if chars[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Where the literal that begins at `at` ends; `None` if none begins there.
fn end_of_literal(chars: &[char], at: usize) -> Option<usize> {
    let mut open = at;
    for prefix in ['b', 'c', 'r'] {
        open += usize::from(chars.get(open) == Some(&prefix));
    }
    let raw = open > at && chars[open - 1] == 'r';
    let hashes = chars[open..].iter().take_while(|&&c| raw && c == '#').count();
    match chars.get(open + hashes)? {
        '"' => {
            let mut next = open + hashes + 1;
            while next < chars.len() {
                let behind = &chars[next + 1..];
                let closes = chars[next] == '"'
                    && behind.iter().take_while(|&&c| c == '#').count() >= hashes;
                if closes {
                    return Some(next + 1 + hashes);
                }
                next += if chars[next] == '\\' && !raw { 2 } else { 1 };
            }
            Some(chars.len())
        }
        // A char literal, not a lifetime: it closes behind one character or an escape.
        '\'' if hashes == 0 && !raw => match chars.get(open + 1)? {
            '\\' => (open + 3..chars.len()).find(|&next| chars[next] == '\'').map(|end| end + 1),
            _ => (chars.get(open + 2) == Some(&'\'')).then_some(open + 3),
        },
        _ => None,
    }
}
