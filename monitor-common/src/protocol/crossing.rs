//! Which thresholds were crossed, and how: the rule of the kernel's
//! `__mem_cgroup_threshold` (5.15 to 7.2), applied to what was seen between two
//! looks rather than to a sample.
//!
//! A threshold counts as reached when `threshold <= usage`, in pages. So it is
//! crossed up when usage comes to or above it, and down when usage falls below.

mod look;

use crate::protocol::band::{Band, Excursion};

pub use look::{Look, Stretches};

/// How a threshold was crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Usage came to the threshold or above it.
    Up,
    /// Usage fell below the threshold.
    Down,
}

impl Direction {
    /// The direction's word in the grammar: `up` or `down`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Usage between two looks at a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Usage at the look before, in pages.
    pub from: u64,
    /// Readings of charges out of band in between.
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

/// A threshold with its memory: on which side of it usage was last signalled to be.
///
/// With hysteresis there is a stretch, from [`low`](Self::low) to below the
/// threshold, in which the side depends on where usage came from. A stored side
/// is what keeps a usage that flaps in it quiet.
///
/// A threshold of 0 pages never fires, and neither does one that usage cannot
/// reach ([`Pages::counter_max`](crate::grammar::threshold::Pages::counter_max), `u64::MAX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ThresholdState {
    /// The usage at which it is crossed up, in pages.
    pub threshold: u64,
    /// How far below `threshold` usage must fall to cross it down, in pages.
    pub hysteresis: u64,
    /// Whether usage was last signalled to be at or above it.
    pub above: bool,
}

impl ThresholdState {
    /// The state at registration: above iff `threshold <= usage` (pages). As in
    /// `__mem_cgroup_usage_register_event`, nothing is signalled for that.
    #[must_use]
    pub const fn new(threshold: u64, hysteresis: u64, usage: u64) -> Self {
        Self { threshold, hysteresis, above: threshold <= usage }
    }

    /// The usage below which it is crossed down, in pages.
    ///
    /// `threshold - hysteresis`, but at least 1: so a hysteresis of the whole
    /// threshold or more still ends, when the group holds no page at all. 0 for
    /// a threshold of 0, which never fires.
    #[must_use]
    pub const fn low(&self) -> u64 {
        let low = self.threshold.saturating_sub(self.hysteresis);
        if low == 0 && self.threshold > 0 { 1 } else { low }
    }

    /// The usage at which the next crossing lies, in pages: the band is made of these. While
    /// below, a usage of at least the key crosses it up; while above, a usage
    /// less than the key crosses it down.
    #[must_use]
    pub const fn key(&self) -> u64 {
        if self.above { self.low() } else { self.threshold }
    }

    /// Applies a step: its crossings in the order in which they happened, at
    /// most one in each direction. `above` is the new side.
    ///
    /// After it, [`key`](Self::key) is at most `now` if above, and more than
    /// `now` if below: [`band_around`] over all thresholds holds `now`.
    ///
    /// A step does not say which was first, its lowest or its highest usage. If
    /// it passed both ends and usage is in between now, the only crossing returned
    /// is the one away from the stored side: that one is sure to have happened.
    ///
    /// A threshold that was moved past usage is crossed by the next step.
    pub fn step(&mut self, step: &Step) -> [Option<Direction>; 2] {
        use Direction::{Down, Up};

        if self.threshold == 0 {
            self.above = true;
            return [None, None];
        }
        let (lowest, highest) = step.range();
        let (crossed, first, second, back) = if self.above {
            (lowest < self.low(), Down, Up, step.now >= self.threshold)
        } else {
            (highest >= self.threshold, Up, Down, step.now < self.low())
        };
        if !crossed {
            return [None, None];
        }
        if back {
            return [Some(first), Some(second)];
        }
        self.above = !self.above;
        [Some(first), None]
    }
}

/// The band around `usage`, given its nearest thresholds: the highest that is
/// at or below it, and the lowest above. Thresholds count with their keys.
#[must_use]
pub fn band_around(at_or_below: Option<u64>, above: Option<u64>) -> Band {
    Band { lo: at_or_below.unwrap_or(0), hi: above.unwrap_or(u64::MAX) }
}

#[cfg(all(test, not(loom)))]
mod exactly_once;
#[cfg(all(test, not(loom)))]
mod tests;
