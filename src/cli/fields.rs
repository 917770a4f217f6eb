//! Named values in a fixed order, flat: an object for programs, lines for people.

use crate::cli::table::thousands;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

/// Named values. JSON keeps their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Adds one.
    pub fn push(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    /// Adds numbers.
    pub fn extend(&mut self, numbers: impl IntoIterator<Item = (&'static str, u64)>) {
        self.0.extend(numbers.into_iter().map(|(name, number)| (name, number.into())));
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// Lines `name  number` for people, the numbers to the right, each line after `indent`.
pub fn number_lines(indent: &str, numbers: &[(&str, u64)]) -> String {
    let shown: Vec<String> = numbers.iter().map(|(_, number)| thousands(*number)).collect();
    let name_chars = numbers.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let number_chars = shown.iter().map(String::len).max().unwrap_or(0);
    let line = |((name, _), number): (&(&str, u64), &String)| {
        let name = name.replace('_', " ");
        format!("{indent}{name:<name_chars$}  {number:>number_chars$}\n")
    };
    numbers.iter().zip(&shown).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_the_order() {
        let mut fields = Fields::default();
        fields.push("zebra", "z");
        fields.extend([("ant", 1), ("bee", 2)]);
        let json = serde_json::to_string(&fields).unwrap();
        assert_eq!(json, r#"{"zebra":"z","ant":1,"bee":2}"#);
    }

    #[test]
    fn numbers_stand_right() {
        let text = number_lines("  ", &[("ready", 1_000_000), ("in_flight", 7)]);
        assert_eq!(text, "  ready      1,000,000\n  in flight          7\n");
    }
}
