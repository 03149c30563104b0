//! How often a group's usage is read.

use std::time::{Duration, Instant};

/// Shortest time between two readings of a group.
pub(super) const LEAST: Duration = Duration::from_millis(5);
/// Longest time between two readings of a group with thresholds.
pub(super) const MOST: Duration = Duration::from_secs(1);
/// Bytes per second by which a group is expected to grow or shrink at least.
const EXPECTED: f64 = (256 << 20) as f64;
/// Time in which the fastest growth seen counts half.
const HALF: f64 = 10.0;

/// The readings of one group so far.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    usage: u64,
    /// The fastest change seen, in bytes per second, less with time.
    fastest: f64,
}

impl Pace {
    /// Begins with a reading in bytes.
    pub(super) const fn new(now: Instant, usage: u64) -> Self {
        Self { last: now, usage, fastest: EXPECTED }
    }

    /// Notes a reading in bytes, which is so far from the nearest end of the band; returns the
    /// time until the next. Usage gets there in that time at the earliest, if it moves as fast as
    /// it ever did lately.
    pub(super) fn next(&mut self, now: Instant, usage: u64, distance: u64) -> Duration {
        let elapsed = now.saturating_duration_since(self.last).as_secs_f64();
        if elapsed > 0.0 {
            let speed = usage.abs_diff(self.usage) as f64 / elapsed;
            let before = EXPECTED.max(self.fastest * 0.5_f64.powf(elapsed / HALF));
            self.fastest = before.max(speed);
        }
        (self.last, self.usage) = (now, usage);
        let seconds = distance as f64 / self.fastest;
        Duration::try_from_secs_f64(seconds).unwrap_or(MOST).clamp(LEAST, MOST)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{EXPECTED, LEAST, MOST, Pace};

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_nearer_a_threshold_the_sooner_the_next_reading() {
        let now = Instant::now();
        let mut pace = Pace::new(now, 0);
        assert_eq!(pace.next(now, 0, 0), LEAST);
        assert_eq!(pace.next(now, 0, EXPECTED as u64 / 8), Duration::from_millis(125));
        assert_eq!(pace.next(now, 0, u64::MAX), MOST);
    }

    #[test]
    fn the_fastest_growth_counts_and_is_forgotten() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now, 0);
        now += Duration::from_millis(100);
        // 10 GiB/s.
        let fast = pace.next(now, 1024 * MIB, 512 * MIB);
        assert_eq!(fast.as_millis(), 50);
        now += Duration::from_secs(120);
        assert_eq!(pace.next(now, 1024 * MIB, 512 * MIB), MOST, "it was long ago");
    }
}
