//! The axes of a report: where their marks are, and how bytes, times and dates are written.

const SECOND: f64 = 1e9;

/// Steps of an axis of time that people count in, in nanoseconds.
const STEPS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0];

/// Bytes in the unit that fits: `12.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut scaled, mut unit) = (bytes as f64 / 1024.0, 0);
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    let tenths = (scaled * 10.0).round() / 10.0;
    format!("{tenths} {}", UNITS[unit])
}

/// A stretch of time in the unit that fits: `250 ms`, `1.5 s`, `2 min`.
pub fn duration(nanoseconds: f64) -> String {
    let (scaled, unit) = match nanoseconds.abs() {
        0.0 => return "0".to_owned(),
        short if short < 1e6 => (nanoseconds / 1e3, "us"),
        short if short < 1e9 => (nanoseconds / 1e6, "ms"),
        short if short < 120.0 * SECOND => (nanoseconds / SECOND, "s"),
        short if short < 7200.0 * SECOND => (nanoseconds / (60.0 * SECOND), "min"),
        _ => (nanoseconds / (3600.0 * SECOND), "h"),
    };
    let tenths = (scaled * 10.0).round() / 10.0;
    format!("{tenths} {unit}")
}

/// A moment before or after the end, as the axis names it: `-30 s`, `0`, `+1 s`.
pub fn offset(nanoseconds: f64) -> String {
    if nanoseconds > 0.0 { format!("+{}", duration(nanoseconds)) } else { duration(nanoseconds) }
}

/// Marks of an axis from 0 to `highest` bytes, with the end of the axis: four to eight steps that
/// are powers of two, so that each mark is a round number of a unit.
pub fn byte_marks(highest: u64) -> (Vec<u64>, u64) {
    let mut step = 4096u64;
    while highest / step >= 8 {
        step = step.saturating_mul(2);
    }
    let steps = (highest / step + 1).max(4);
    let marks: Vec<u64> = (0..=steps).map(|at| at.saturating_mul(step)).collect();
    let end = marks.last().copied().unwrap_or(step);
    (marks, end)
}

/// Marks of an axis of time, in nanoseconds beside its 0: at most nine.
pub fn time_marks(from: f64, to: f64) -> Vec<f64> {
    let span = (to - from).max(1.0);
    let mut step = 1.0;
    // Decimal below a second, as people count above.
    while step < SECOND && span / step > 8.0 {
        step *= [2.0, 2.5, 2.0][decade_place(step)];
    }
    if step >= SECOND {
        let wide = STEPS.into_iter().map(|step| step * SECOND).find(|step| span / step <= 8.0);
        step = wide.unwrap_or_else(|| (span / 8.0 / (600.0 * SECOND)).ceil() * 600.0 * SECOND);
    }
    let (first, last) = ((from / step).ceil() as i64, (to / step).floor() as i64);
    (first..=last).map(|at| at as f64 * step).collect()
}

/// Whether a step begins with 1, 2 or 5.
fn decade_place(step: f64) -> usize {
    let leading = step / 10f64.powf(step.log10().floor());
    if leading < 1.5 {
        0
    } else if leading < 3.5 {
        1
    } else {
        2
    }
}

/// A date in UTC, from milliseconds since 1970: `2026-11-29 20:00:00.250 UTC`.
pub fn date(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let seconds = ms / 1000;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03} UTC", ms % 1000)
}

/// The year, month and day of a number of days since 1970-01-01, by eras of 400 years, each of
/// which begins in March, so that a leap day is a year's last.
const fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + (month <= 2) as u64, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{byte_marks, bytes, date, duration, offset, time_marks};

    #[test]
    fn quantities_read_as_people_write_them() {
        assert_eq!(bytes(4095), "4 KiB");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes((12 << 20) + (1 << 19)), "12.5 MiB");
        assert_eq!(bytes((1 << 30) - 1), "1 GiB");
        assert_eq!(bytes(u64::MAX), "16 EiB");
        assert_eq!(duration(250e6), "250 ms");
        assert_eq!(duration(1.5e9), "1.5 s");
        assert_eq!(offset(-180e9), "-3 min");
        assert_eq!((offset(0.0), offset(2e3)), ("0".to_owned(), "+2 us".to_owned()));
    }

    #[test]
    fn dates_are_the_calendars() {
        assert_eq!(date(0), "1970-01-01 00:00:00.000 UTC");
        assert_eq!(date(951_782_400_001), "2000-02-29 00:00:00.001 UTC");
        assert_eq!(date(1_795_984_800_000), "2026-11-29 20:40:00.000 UTC");
        assert_eq!(date(4_107_542_399_999), "2100-02-28 23:59:59.999 UTC");
        assert_eq!(date(4_107_542_400_000), "2100-03-01 00:00:00.000 UTC");
    }

    #[test]
    fn marks_are_round() {
        assert_eq!(byte_marks(100 << 20).0[1], 16 << 20);
        let seconds: Vec<String> = time_marks(-61e9, 1e9).into_iter().map(offset).collect();
        assert_eq!(seconds, ["-60 s", "-50 s", "-40 s", "-30 s", "-20 s", "-10 s", "0"]);
        let short: Vec<String> = time_marks(-10e6, 0.0).into_iter().map(offset).collect();
        assert_eq!(short, ["-10 ms", "-8 ms", "-6 ms", "-4 ms", "-2 ms", "0"]);
    }

    proptest! {
        #[test]
        fn marks_reach_over_what_is_drawn(highest in any::<u64>()) {
            let (marks, end) = byte_marks(highest);
            prop_assert!(end >= highest && (4..=10).contains(&marks.len()));
            prop_assert!(marks.is_sorted());
        }

        #[test]
        fn there_are_few_marks_of_time(from in -1e15..0f64, span in 0f64..1e15) {
            let marks = time_marks(from, from + span);
            prop_assert!(marks.len() <= 9, "{marks:?}");
            prop_assert!(marks.iter().all(|mark| (from..=from + span).contains(mark)));
        }

        #[test]
        fn any_moment_has_a_date(unix_ms in any::<u64>()) {
            prop_assert!(date(unix_ms).ends_with(" UTC"));
        }
    }
}
