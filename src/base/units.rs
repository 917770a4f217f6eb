//! Sizes and durations as people write them: `256MiB`, `1.5GiB`, `30s`, `500ms`, `1m30s`. One
//! reading of them for the command line, the environment and the configuration file.

use std::time::Duration;

/// Why a text is not a size or a duration. Each says what would be one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Nothing, or no digit where a number must begin.
    #[error("`{0}` does not begin with a number; write for example {1}")]
    NoNumber(String, &'static str),
    /// A number whose unit is not one.
    #[error("`{0}` is not a unit; use {1}")]
    UnknownUnit(String, &'static str),
    /// A duration without a unit.
    #[error("`{0}` has no unit; write for example {0}s or {0}ms")]
    NoUnit(String),
    /// Over what 64 bits hold.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

const SIZE_EXAMPLES: &str = "4096, 64KiB or 256MiB";
const SIZE_UNITS: &str =
    "B, KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of 1000)";
const DURATION_EXAMPLES: &str = "500ms, 30s or 2m";
const DURATION_UNITS: &str = "us, ms, s, m, h or d";

/// Reads a number of bytes. `K`, `M`, `G`, `T` alone are powers of 1024; a bare number is bytes.
///
/// ```
/// assert_eq!(forebay::base::units::parse_bytes("1.5MiB"), Ok(1_572_864));
/// ```
///
/// # Errors
/// If it is no size, or over 64 bits.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let (number, rest) = Number::take(text.trim(), text, SIZE_EXAMPLES)?;
    let unit = rest.trim();
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(UnitError::UnknownUnit(unit.to_owned(), SIZE_UNITS)),
    };
    number.times(factor).ok_or_else(|| UnitError::TooLarge(text.to_owned()))
}

/// Reads a duration: one or several numbers, each with its unit. Only `0` needs none.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(forebay::base::units::parse_duration("1m30s"), Ok(Duration::from_secs(90)));
/// ```
///
/// # Errors
/// If it is no duration, has no unit, or is over 64 bits of nanoseconds (584 years).
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let too_large = || UnitError::TooLarge(text.to_owned());
    let (mut rest, mut total_ns) = (text.trim(), 0u64);
    loop {
        let (number, behind) = Number::take(rest, text, DURATION_EXAMPLES)?;
        let behind = behind.trim_start();
        let unit_bytes = behind.bytes().take_while(|byte| !byte.is_ascii_digit() && *byte != b' ');
        let (unit, behind) = behind.split_at(unit_bytes.count());
        let factor: u64 = match unit {
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" | "sec" => 1_000_000_000,
            "m" | "min" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            "d" => 86_400 * 1_000_000_000,
            "" => return Err(UnitError::NoUnit(text.trim().to_owned())),
            _ => return Err(UnitError::UnknownUnit(unit.to_owned(), DURATION_UNITS)),
        };
        let part_ns = number.times(factor).ok_or_else(too_large)?;
        total_ns = total_ns.checked_add(part_ns).ok_or_else(too_large)?;
        rest = behind.trim_start();
        if rest.is_empty() {
            return Ok(Duration::from_nanos(total_ns));
        }
    }
}

/// A size for people: three digits or so and a unit, `1.5 GiB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    // Not 1024: what would be rounded up to it belongs to the next unit.
    while value >= 1023.95 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// A duration for people: `850 us`, `12.3 ms`, `4.2 s`, `3m 05s`, `2h 10m`, `4d 3h`.
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let ns = duration.as_nanos() as f64;
    match seconds {
        _ if ns < 1e3 => format!("{ns} ns"),
        _ if ns < 999.5e3 => format!("{:.0} us", ns / 1e3),
        _ if ns < 999.95e6 => format!("{:.1} ms", ns / 1e6),
        0..60 => format!("{:.1} s", ns / 1e9),
        60..3_600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// A decimal number, exact: `digits / 10^fraction_digits`.
struct Number {
    digits: u128,
    fraction_digits: u32,
}

impl Number {
    /// Takes the number that `rest` begins with. `whole` is for the error.
    fn take<'a>(
        rest: &'a str,
        whole: &str,
        examples: &'static str,
    ) -> Result<(Number, &'a str), UnitError> {
        let (mut digits, mut fraction_digits, mut in_fraction, mut end) = (0u128, 0, false, 0);
        for (at, byte) in rest.bytes().enumerate() {
            match byte {
                b'0'..=b'9' if at >= 32 => return Err(UnitError::TooLarge(whole.to_owned())),
                b'0'..=b'9' => {
                    digits = digits * 10 + u128::from(byte - b'0');
                    fraction_digits += u32::from(in_fraction);
                }
                b'.' if !in_fraction && at > 0 => in_fraction = true,
                b'_' if at > 0 => {}
                _ => break,
            }
            end = at + 1;
        }
        if end == 0 {
            return Err(UnitError::NoNumber(whole.to_owned(), examples));
        }
        Ok((Number { digits, fraction_digits }, &rest[end..]))
    }

    /// The number of so many of the smallest unit, rounded down.
    fn times(&self, factor: u64) -> Option<u64> {
        let product = self.digits.checked_mul(u128::from(factor))?;
        u64::try_from(product / 10u128.pow(self.fraction_digits)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_people_write() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("10b", 10),
            ("64KiB", 65_536),
            ("64k", 65_536),
            ("256MiB", 268_435_456),
            ("256 MiB", 268_435_456),
            ("1.5GiB", 1_610_612_736),
            ("1MB", 1_000_000),
            ("1_000", 1000),
            ("0.3KiB", 307),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn sizes_that_are_none() {
        for text in ["", "MiB", "-1", ".5MiB", "+3"] {
            assert!(matches!(parse_bytes(text), Err(UnitError::NoNumber(..))), "{text}");
        }
        for text in ["5XB", "5 Mi B", "1.2.3", "5MiBs", "5 5"] {
            assert!(matches!(parse_bytes(text), Err(UnitError::UnknownUnit(..))), "{text}");
        }
        for text in ["18446744073709551616", "99999999TiB", &"9".repeat(60)] {
            assert!(matches!(parse_bytes(text), Err(UnitError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn durations_that_people_write() {
        let cases = [
            ("0", 0),
            ("500ms", 500_000_000),
            ("30s", 30_000_000_000),
            ("1.5s", 1_500_000_000),
            ("250us", 250_000),
            ("250µs", 250_000),
            ("1m30s", 90_000_000_000),
            ("1m 30s", 90_000_000_000),
            ("2 h", 7_200_000_000_000),
            ("1d", 86_400_000_000_000),
        ];
        for (text, ns) in cases {
            assert_eq!(parse_duration(text), Ok(Duration::from_nanos(ns)), "{text}");
        }
    }

    #[test]
    fn durations_that_are_none() {
        assert_eq!(parse_duration("30"), Err(UnitError::NoUnit("30".to_owned())));
        for text in ["", "s", "-1s", "1s x"] {
            assert!(matches!(parse_duration(text), Err(UnitError::NoNumber(..))), "{text}");
        }
        for text in ["5y", "5sm", "3MS"] {
            assert!(matches!(parse_duration(text), Err(UnitError::UnknownUnit(..))), "{text}");
        }
        assert!(matches!(parse_duration("300000d"), Err(UnitError::TooLarge(_))));
    }

    #[test]
    fn sizes_and_durations_for_people() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (268_435_456, "256 MiB"),
            (1_048_575, "1.0 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(show_bytes(bytes), text);
        }
        let durations = [
            (85, "85 ns"),
            (85_000, "85 us"),
            (12_300_000, "12.3 ms"),
            (4_200_000_000, "4.2 s"),
            (185_000_000_000, "3m 05s"),
            (7_800_000_000_000, "2h 10m"),
            (356_400_000_000_000, "4d 3h"),
        ];
        for (ns, text) in durations {
            assert_eq!(show_duration(Duration::from_nanos(ns)), text);
        }
    }
}
