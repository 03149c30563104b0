//! The black box: the latest points of a group's usage, which programs write and the agent reads,
//! without a lock, on memory that outlives the agent.
//!
//! A point is due when usage has moved by a step since the last one. Of CPUs that find that at
//! once one writes: the one that replaces `last`. It takes the next number, and with it a place in
//! the ring of [`POINTS`]; the number is in the point, too, so a reader knows a point that is half
//! written, or of another round, and leaves it out.

use crate::protocol::word::Word;

/// Points that a box has.
pub const POINTS: u32 = 2048;
/// Bytes of memory that a box takes.
pub const BOX_BYTES: u64 =
    size_of::<BoxHead<u64>>() as u64 + POINTS as u64 * size_of::<BoxPoint<u64>>() as u64;

/// Bits of a point's usage, in pages; its number has the others.
const USAGE_BITS: u32 = 40;
const USAGE: u64 = (1 << USAGE_BITS) - 1;

/// Smallest step in pages, of whatever size: what a CPU charges in advance
/// (`MEMCG_CHARGE_BATCH`), so that a stock that is filled or drained is no point.
const LEAST_STEP: u64 = 64;

/// The head of a group's box.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct BoxHead<W> {
    /// The group's slot, plus one; 0: the box is free.
    pub slot: W,
    /// The slot's generation: a slot that is used again has another, and writes nothing here.
    pub generation: W,
    /// `st_ino` of the group's directory.
    pub cgroup_id: W,
    /// Pages by which usage has to move; 0: nothing is recorded.
    pub step: W,
    /// Usage at the last point, in pages.
    pub last: W,
    /// Number of points so far.
    pub written: W,
    /// The group's limit in pages when the step was worked out.
    pub limit: W,
    /// Fills the cache line.
    pub spare: W,
}

/// A point of the curve.
#[derive(Debug)]
#[repr(C)]
pub struct BoxPoint<W> {
    /// When, by `CLOCK_MONOTONIC` in nanoseconds.
    pub at: W,
    /// The point's number and usage in pages, in one word; 0: being written, or never.
    pub numbered: W,
}

const _: () = assert!(size_of::<BoxHead<u64>>() == 64 && size_of::<BoxPoint<u64>>() == 16);

/// The step for a limit, both in pages: a hundredth of it, and 64 pages at least.
#[must_use]
pub const fn step_of(limit: u64) -> u64 {
    let hundredth = limit / 100;
    // No limit is a number of pages that usage cannot reach: of that a hundredth says nothing.
    if limit >= USAGE {
        4 * LEAST_STEP
    } else if hundredth > LEAST_STEP {
        hundredth
    } else {
        LEAST_STEP
    }
}

/// Whether usage has moved by `step` since the last point.
#[inline(always)]
#[must_use]
pub const fn is_due(last: u64, usage: u64, step: u64) -> bool {
    step != 0 && usage.abs_diff(last) >= step
}

/// The number and the usage of a point in one word, which is never 0.
#[inline(always)]
#[must_use]
pub const fn numbered(number: u64, usage: u64) -> u64 {
    let usage = if usage > USAGE { USAGE } else { usage };
    // From 1 on, as 0 says that there is no point.
    (number + 1) << USAGE_BITS | usage
}

impl<W: Word> BoxHead<W> {
    /// Whether this reading is a point, which the caller then writes: true for one of those that
    /// find it due at once.
    #[inline(always)]
    pub fn takes(&self, usage: u64) -> bool {
        let last = self.last.get();
        is_due(last, usage, self.step.get()) && self.last.cas(last, usage) == last
    }

    /// Empties the box and gives it to a group; `usage` is that of its first point.
    pub fn begin(&self, slot: u32, generation: u64, cgroup_id: u64, usage: u64) {
        self.step.xchg(0);
        self.generation.set(generation);
        self.cgroup_id.set(cgroup_id);
        self.last.set(usage);
        self.written.set(0);
        self.slot.xchg(u64::from(slot) + 1);
    }

    /// Takes the box away from its group.
    pub fn end(&self) {
        self.step.xchg(0);
        self.slot.xchg(0);
    }
}

impl<W: Word> BoxPoint<W> {
    /// Writes a point: what is read in between is not numbered.
    #[inline(always)]
    pub fn put(&self, number: u64, at: u64, usage: u64) {
        self.numbered.xchg(0);
        self.at.set(at);
        self.numbered.xchg(numbered(number, usage));
    }

    /// When, and the usage, of point `number`; `None` where it is another one, or half written.
    pub fn read(&self, number: u64) -> Option<(u64, u64)> {
        let before = self.numbered.or(0);
        let at = self.at.get();
        let is_whole =
            before == self.numbered.or(0) && before >> USAGE_BITS == numbered(number, 0) >> USAGE_BITS;
        is_whole.then_some((at, before & USAGE))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicU64;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::{BOX_BYTES, BoxHead, BoxPoint, POINTS, is_due, step_of};
    use crate::protocol::word::Word as _;

    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }

    fn head(step: u64) -> BoxHead<AtomicU64> {
        let [slot, generation, cgroup_id, last, written, limit, spare] = [0; 7].map(word);
        BoxHead { slot, generation, cgroup_id, step: word(step), last, written, limit, spare }
    }

    #[test]
    fn a_step_is_a_hundredth_of_the_limit_and_a_stock_of_a_cpu_at_least() {
        let mib = 256;
        assert_eq!(step_of(100 * mib), mib);
        assert_eq!(step_of(mib), 64);
        assert_eq!(step_of(u64::MAX / 4096), 256, "without a limit");
        assert_eq!(step_of(u64::MAX / 65_536), 256, "without a limit, where pages are large");
        assert_eq!(BOX_BYTES, 64 + 32_768);
    }

    #[test]
    fn a_point_of_another_round_is_not_read() {
        let point = BoxPoint { at: word(0), numbered: word(0) };
        assert_eq!(point.read(0), None, "never written");
        point.put(0, 5, 7);
        assert_eq!(point.read(0), Some((5, 7)));
        point.put(u64::from(POINTS), 6, 8);
        assert_eq!((point.read(0), point.read(POINTS.into())), (None, Some((6, 8))));
        point.numbered.set(0);
        assert_eq!(point.read(POINTS.into()), None, "half written");
    }

    #[test]
    fn nothing_is_recorded_without_a_step() {
        assert!(!head(0).takes(1 << 30));
        let head = head(5);
        head.end();
        assert!(!head.takes(1 << 30));
    }

    proptest! {
        /// Whatever usage does, it is within a step of the last point, and points are at least a
        /// step apart.
        #[test]
        fn usage_is_within_a_step_of_the_last_point(
            readings in proptest::collection::vec(0u64..10_000, 1..200), step in 1u64..500
        ) {
            let head = head(step);
            let mut points: Vec<u64> = [0].into();
            for usage in readings {
                if head.takes(usage) {
                    prop_assert!(points[points.len() - 1].abs_diff(usage) >= step);
                    points.push(usage);
                }
                prop_assert!(points[points.len() - 1].abs_diff(usage) < step);
                prop_assert!(!is_due(head.last.get(), usage, step));
            }
        }

        #[test]
        fn what_is_put_is_read(number in 0u64..1 << 23, at in any::<u64>(), usage in 0u64..1 << 39) {
            let point = BoxPoint { at: word(0), numbered: word(0) };
            point.put(number, at, usage);
            prop_assert_eq!(point.read(number), Some((at, usage)));
        }
    }
}
