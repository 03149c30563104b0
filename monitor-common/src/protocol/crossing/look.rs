//! One look at a quantity, and what it leaves to the next: which thresholds it has signalled.

use super::{Direction, Step};
use crate::protocol::band::Excursion;

/// One look at a quantity: a step, and readings that were compared with the band before
/// the present one. They may be of a crossing that the look before has signalled: so they
/// count only where that has signalled nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// The step since the look before.
    pub step: Step,
    /// Readings that are late: compared with the band before.
    pub late: Excursion,
    /// Thresholds that the look before has signalled.
    pub signalled: Stretches,
}

impl Look {
    /// Stretches that late readings alone crossed: below the step, and above it.
    #[must_use]
    pub fn beyond(&self) -> [Pieces; 2] {
        let (lowest, highest) = self.step.range();
        [self.signalled.leave_of((self.late.min, lowest)), self.signalled.leave_of((highest, self.late.max))]
    }

    /// Whether only late readings crossed a threshold.
    #[must_use]
    pub fn is_beyond(&self, threshold: u64) -> bool {
        self.beyond().iter().flatten().any(|stretch| holds(*stretch, threshold))
    }

    /// The step as those thresholds see it.
    #[must_use]
    pub fn late_step(&self) -> Step {
        Step { seen: self.step.seen.and(self.late), ..self.step }
    }

    /// Thresholds that this look signals, for the next.
    #[must_use]
    pub fn to_signal(&self) -> Stretches {
        let [below, above] = self.beyond();
        let mut all = Stretches::NONE;
        all.add(self.step.range());
        // The nearest first: they are left out last.
        below.into_iter().rev().chain(above).for_each(|stretch| all.add(stretch));
        all
    }

    /// The crossings of one threshold, as [`Step::crossings`].
    #[must_use]
    pub fn crossings(&self, threshold: u64) -> [Option<Direction>; 2] {
        if self.is_beyond(threshold) {
            self.late_step().crossings(threshold)
        } else {
            self.step.crossings(threshold)
        }
    }
}

/// Stretches that a [`Stretches`] holds.
const MOST: usize = 4;

/// A stretch without those of a [`Stretches`], from below; empty ones among them.
pub type Pieces = [(u64, u64); MOST + 1];

/// Thresholds that a look has signalled: those in `(lowest, highest]` of any of a few
/// stretches. Where they are more, some are left out: rather signalled twice than not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretches([(u64, u64); MOST]);

impl Stretches {
    /// The set without any stretch.
    pub const NONE: Self = Self([(0, 0); MOST]);

    /// Adds one stretch to these.
    pub fn add(&mut self, (lowest, highest): (u64, u64)) {
        if lowest >= highest {
            return;
        }
        let (mut lowest, mut highest) = (lowest, highest);
        // Those that it touches become one with it.
        for held in &mut self.0 {
            if held.0 < held.1 && held.0 <= highest && lowest <= held.1 {
                (lowest, highest) = (lowest.min(held.0), highest.max(held.1));
                *held = (0, 0);
            }
        }
        if let Some(free) = self.0.iter_mut().find(|held| held.0 >= held.1) {
            *free = (lowest, highest);
        }
    }

    /// Pieces of a stretch that these do not cover.
    #[must_use]
    pub fn leave_of(&self, (lowest, highest): (u64, u64)) -> Pieces {
        let mut held = self.0;
        held.sort_unstable();
        let mut pieces = [(0, 0); MOST + 1];
        let mut from = lowest;
        for (piece, (low, high)) in pieces.iter_mut().zip(held) {
            if low < high && from < highest {
                *piece = (from, low.min(highest));
                from = from.max(high);
            }
        }
        pieces[MOST] = (from, highest);
        pieces.map(|(low, high)| if low < high { (low, high) } else { (0, 0) })
    }

    /// Whether these leave something of a stretch.
    #[must_use]
    pub fn leave_some_of(&self, stretch: (u64, u64)) -> bool {
        self.leave_of(stretch).iter().any(|(low, high)| low < high)
    }
}

/// Whether a threshold lies in a stretch.
const fn holds((lowest, highest): (u64, u64), threshold: u64) -> bool {
    lowest < threshold && threshold <= highest
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::{array::uniform3, prelude::*};

    use super::*;

    proptest! {
        /// Stretches hold what was added, and leave the rest.
        #[test]
        fn what_is_left_is_what_was_not_added(added in uniform3((0u64..30, 0u64..30)), of in (0u64..30, 0u64..30)) {
            let mut signalled = Stretches::NONE;
            added.iter().for_each(|stretch| signalled.add(*stretch));
            let left = signalled.leave_of(of);
            for threshold in 0..32 {
                let is_signalled = added.iter().any(|stretch| holds(*stretch, threshold));
                let is_left = left.iter().any(|stretch| holds(*stretch, threshold));
                prop_assert_eq!(is_left, holds(of, threshold) && !is_signalled, "{} of {:?}", threshold, left);
            }
        }
    }
}
