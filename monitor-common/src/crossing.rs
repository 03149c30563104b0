//! Which thresholds were crossed, and how: the rule of the kernel's
//! `__mem_cgroup_threshold` (5.15 to 7.2), applied to what was seen between two
//! looks rather than to a sample.
//!
//! A threshold counts as reached when `threshold <= usage`, in pages. So it is
//! crossed up when usage comes to or above it, and down when usage falls below.

use crate::band::{Band, Excursion};

/// How a threshold was crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Usage came to the threshold or above it.
    Up,
    /// Usage fell below the threshold.
    Down,
}

impl Direction {
    /// `up` or `down`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What happened between two looks at a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Usage at the look before, in pages.
    pub from: u64,
    /// What charges saw out of band in between.
    pub seen: Excursion,
    /// Usage now, in pages.
    pub now: u64,
}

impl Step {
    /// Lowest and highest usage of the step. Exactly the thresholds in
    /// `(lowest, highest]` were crossed.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        let lowest = self.from.min(self.now).min(self.seen.min);
        let highest = self.from.max(self.now).max(self.seen.max);
        (lowest, highest)
    }

    /// The crossings of one threshold, in the order in which they happened; at
    /// most one in each direction, however often usage went to and fro.
    #[must_use]
    pub fn crossings(&self, threshold: u64) -> [Option<Direction>; 2] {
        use Direction::{Down, Up};

        let (lowest, highest) = self.range();
        if threshold <= lowest || threshold > highest {
            return [None, None];
        }
        match (threshold <= self.from, threshold <= self.now) {
            (false, true) => [Some(Up), None],
            (true, false) => [Some(Down), None],
            (false, false) => [Some(Up), Some(Down)],
            (true, true) => [Some(Down), Some(Up)],
        }
    }
}

/// The band around `usage`, given its nearest thresholds: the highest that is
/// at or below it, and the lowest above.
#[must_use]
pub fn band_around(at_or_below: Option<u64>, above: Option<u64>) -> Band {
    Band { lo: at_or_below.unwrap_or(0), hi: above.unwrap_or(u64::MAX) }
}
