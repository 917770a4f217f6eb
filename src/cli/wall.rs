//! Wall-clock times as RFC 3339 text, in UTC.

/// Microseconds since 1970 as `2026-02-03T04:05:06.000007Z`.
pub fn rfc3339(wall_us: u64) -> String {
    let seconds = wall_us / 1_000_000;
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = wall_us % 1_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar. Counts in
/// eras of 400 years (146,097 days) that begin on a 1 March, so that leap days come last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399_999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (951_868_800_000_000, "2000-03-01T00:00:00.000000Z"),
            (1_234_567_890_000_007, "2009-02-13T23:31:30.000007Z"),
            (4_107_542_399_000_000, "2100-02-28T23:59:59.000000Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        ];
        for (wall_us, text) in cases {
            assert_eq!(rfc3339(wall_us), text);
        }
    }

    #[test]
    fn days_follow_each_other() {
        let mut before = civil_date(0);
        for days in 1..200_000 {
            let (year, month, day) = civil_date(days);
            assert!((year, month, day) > before && (day == before.2 + 1 || day == 1), "{days}");
            assert!((1..=12).contains(&month) && day <= 31);
            before = (year, month, day);
        }
    }
}
