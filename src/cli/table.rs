//! Tables for people: words to the left, numbers to the right, no wider than they must be.

use std::fmt;

/// How the cells of a column stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows under a line of titles.
#[derive(Debug)]
pub struct Table {
    titles: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these columns.
    pub fn new(titles: &[(&'static str, Align)]) -> Table {
        Table { titles: titles.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, which has a cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.titles.len());
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let column = |at: usize| self.rows.iter().map(move |row| row[at].chars().count());
        let title = |at: usize| self.titles[at].0.len();
        (0..self.titles.len()).map(|at| column(at).max().unwrap_or(0).max(title(at))).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let titles: Vec<String> = self.titles.iter().map(|(title, _)| title.to_string()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, &width), (_, align)) in row.iter().zip(&widths).zip(&self.titles) {
                match align {
                    Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                    Align::Right => line.push_str(&format!("{cell:>width$}  ")),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// So many messages, in words.
pub fn messages(count: u64) -> String {
    format!("{} message{}", thousands(count), if count == 1 { "" } else { "s" })
}

/// A number with its thousands set apart: `1,000,000`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate per second for people: `950/s`, `12.3k/s`, `1.25M/s`.
pub fn per_second(rate: f64) -> String {
    match rate {
        _ if rate < 9.95 => format!("{rate:.1}/s"),
        _ if rate < 9_999.5 => format!("{rate:.0}/s"),
        _ if rate < 999_950.0 => format!("{:.1}k/s", rate / 1e3),
        _ => format!("{:.2}M/s", rate / 1e6),
    }
}

/// The beginning of a body as one line of at most `chars_max` characters: what is not text is shown
/// as escapes, what is cut off as `...`.
pub fn excerpt(body: &[u8], chars_max: usize) -> String {
    // Four bytes make a character at most, and nothing behind the cut is worth decoding.
    let head = &body[..body.len().min(chars_max.saturating_mul(4))];
    let mut text = String::new();
    let (mut chars, mut whole) = (0, head.len() == body.len());
    'chunks: for chunk in head.utf8_chunks() {
        let valid = chunk.valid().chars().map(|c| match c {
            ' '..='~' if c != '\\' => c.to_string(),
            _ if c.is_alphanumeric() => c.to_string(),
            _ => c.escape_debug().to_string(),
        });
        let invalid = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
        for shown in valid.chain(invalid) {
            let shown_chars = shown.chars().count();
            if chars + shown_chars > chars_max {
                whole = false;
                break 'chunks;
            }
            chars += shown_chars;
            text.push_str(&shown);
        }
    }
    if !whole {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_words_left() {
        let mut table = Table::new(&[("NAME", Align::Left), ("READY", Align::Right)]);
        table.row(vec!["a".into(), "12,345".into()]);
        table.row(vec!["longer-name".into(), "7".into()]);
        let expected = "NAME          READY\na            12,345\nlonger-name       7\n";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn numbers_for_people() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (123_456, "123,456"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(thousands(number), text);
        }
        assert_eq!([0, 1, 2].map(messages), ["0 messages", "1 message", "2 messages"]);
        for (rate, text) in
            [(0.0, "0.0/s"), (42.4, "42/s"), (12_345.0, "12.3k/s"), (1_250_000.0, "1.25M/s")]
        {
            assert_eq!(per_second(rate), text);
        }
    }

    #[test]
    fn excerpts_are_one_line_of_text() {
        assert_eq!(excerpt(b"plain text", 20), "plain text");
        assert_eq!(excerpt(b"", 20), "");
        assert_eq!(excerpt("grün\n\x1b[0m".as_bytes(), 40), "grün\\n\\u{1b}[0m");
        assert_eq!(excerpt(b"a\xffb", 20), "a\\xffb");
        assert_eq!(excerpt(b"0123456789", 4), "0123...");
        assert_eq!(excerpt(b"012\xff4", 4), "012...");
    }
}
