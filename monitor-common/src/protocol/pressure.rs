//! How hard reclaim worked, by the arithmetic of the kernel's `vmpressure.c`, 5.15 to 7.3.
//!
//! Up to 7.2 the kernel itself adds up each window of reclaim, also on v2. From 7.3 on it does
//! that for v1 alone, and [`account`] adds up what reclaim reports.

use crate::protocol::word::Word;

/// How hard reclaim worked for what it got. Higher is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Every window of reclaim is at least this.
    Low,
    /// 60 % or more of what was scanned was not reclaimed.
    Medium,
    /// 95 % or more of what was scanned was not reclaimed.
    Critical,
}

impl Level {
    /// All levels, from low to critical.
    pub const ALL: [Self; 3] = [Self::Low, Self::Medium, Self::Critical];

    /// The level as the kernel spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::Critical => "critical",
        }
    }
}

/// The level of one window, `vmpressure_calc_level`: pages that reclaim looked
/// at, and pages that it got. Wraps as `unsigned long` does, and never panics:
/// where the kernel would divide by 0, the answer is low.
#[inline(always)]
#[must_use]
pub const fn level_of(scanned: u64, reclaimed: u64) -> Level {
    if reclaimed >= scanned {
        return Level::Low;
    }
    let scale = scanned.wrapping_add(reclaimed);
    if scanned == 0 || scale == 0 {
        return Level::Low;
    }
    let pressure = scale.wrapping_sub(reclaimed.wrapping_mul(scale) / scanned);
    let percent = pressure.wrapping_mul(100) / scale;
    if percent >= 95 {
        Level::Critical
    } else if percent >= 60 {
        Level::Medium
    } else {
        Level::Low
    }
}

/// Pages that reclaim looks at in one window (`vmpressure_win`).
pub const WINDOW: u64 = 32 * 16;

/// The scanning priority from which on each pass of reclaim is taken for a window in which
/// nothing was reclaimed (`vmpressure_level_critical_prio`). The lower, the harder it scans.
pub const CRITICAL_PRIORITY: i8 = 3;

/// The allocations whose reclaim counts: `__GFP_HIGHMEM`, `__GFP_MOVABLE`, `__GFP_IO` or
/// `__GFP_FS`, whose bits are the same from 5.15 to 7.3.
const ACCOUNTED: u64 = 0x02 | 0x08 | 0x40 | 0x80;

/// Whether the kernel takes reclaim for an allocation with these flags into account.
#[inline(always)]
#[must_use]
pub const fn is_accounted(gfp: u64) -> bool {
    gfp & ACCOUNTED != 0
}

/// Pages in one report above which it does not fit into a sum with those of other CPUs.
const LARGE: u64 = 1 << 20;

/// Pages scanned and reclaimed, in the lower and in the upper half.
#[inline(always)]
const fn packed(scanned: u64, reclaimed: u64) -> u64 {
    scanned | reclaimed << 32
}

/// Attempts to take a full sum that other CPUs add to meanwhile.
const TRIES: u32 = 8;

/// Adds a report of reclaim to a group's sum, and ends the window when it is full: then the
/// pages scanned and reclaimed in it. Each report is in one window, each window is full, and of CPUs
/// that fill one together, one ends it.
#[inline(always)]
pub fn account<W: Word>(sum: &W, scanned: u64, reclaimed: u64) -> Option<(u64, u64)> {
    if scanned == 0 {
        return None;
    }
    if scanned >= LARGE {
        return Some((scanned, reclaimed));
    }
    sum.add(packed(scanned, if reclaimed < LARGE { reclaimed } else { LARGE }));
    let mut seen = sum.get();
    for _ in 0..TRIES {
        if seen & 0xffff_ffff < WINDOW {
            // Not full yet, or another CPU has ended it.
            return None;
        }
        // Only a sum that is full is taken: after another CPU's end it holds less than a window.
        let found = sum.cas(seen, 0);
        if found == seen {
            return Some((seen & 0xffff_ffff, seen >> 32));
        }
        seen = found;
    }
    // Other CPUs add without pause; the next report ends this window.
    None
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use proptest::prelude::*;

    use super::{LARGE, Level, WINDOW, account, is_accounted, level_of};

    #[test]
    fn levels_lie_where_the_kernel_has_them() {
        // A window is 512 pages. The quotient is rounded down, so the pressure up.
        assert_eq!(level_of(512, 512), Level::Low);
        assert_eq!(level_of(512, 600), Level::Low);
        assert_eq!(level_of(512, 256), Level::Low);
        assert_eq!(level_of(512, 205), Level::Low);
        assert_eq!(level_of(512, 204), Level::Medium);
        assert_eq!(level_of(512, 26), Level::Medium);
        assert_eq!(level_of(512, 25), Level::Critical);
        assert_eq!(level_of(512, 0), Level::Critical);
        assert_eq!(level_of(34_816, 0), Level::Critical);
        assert_eq!(level_of(0, 0), Level::Low);
        assert_eq!(level_of(1, 0), Level::Critical);
    }

    #[test]
    fn extremes_wrap_and_do_not_panic() {
        assert_eq!(level_of(0, u64::MAX), Level::Low);
        // 2^63 + 1 and 2^63 - 1 add up to 0, by which the kernel would divide.
        assert_eq!(level_of((1 << 63) + 1, (1 << 63) - 1), Level::Low);
        // A hundredfold of it wraps.
        assert_eq!(level_of(u64::MAX, 0), Level::Low);
    }

    #[test]
    fn a_window_ends_with_the_report_that_fills_it() {
        let sum = AtomicU64::new(0);
        assert_eq!(account(&sum, 0, 7), None, "slab pages alone are not accounted");
        assert_eq!(account(&sum, WINDOW - 1, 100), None);
        assert_eq!(account(&sum, 33, 5), Some((WINDOW + 32, 105)));
        assert_eq!(account(&sum, 32, 32), None, "the next window is empty");
        // A pass at a critical priority, on top of what is pending.
        assert_eq!(account(&sum, WINDOW, 0), Some((WINDOW + 32, 32)));
        assert_eq!(account(&sum, 1 << 40, 1 << 39), Some((1 << 40, 1 << 39)));
        // A report of so many pages is a window of its own.
        assert_eq!(account(&sum, 1, u64::MAX), None);
        assert_eq!(account(&sum, WINDOW, 0), Some((WINDOW + 1, LARGE)));
    }

    #[test]
    fn every_window_is_full_whatever_other_cpus_add() {
        const CPUS: u64 = 4;
        const REPORTS: u64 = 20_000;
        let sum = AtomicU64::new(0);
        let windows = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..CPUS {
                scope.spawn(|| {
                    let ended: Vec<_> = (0..REPORTS).filter_map(|_| account(&sum, 32, 0)).collect();
                    windows.lock().expect("no panic").extend(ended);
                });
            }
        });
        let windows = windows.into_inner().expect("no panic");
        assert!(windows.iter().all(|(scanned, _)| *scanned >= WINDOW), "a window that is not full");
        let ended: u64 = windows.iter().map(|(scanned, _)| scanned).sum();
        assert_eq!(ended + sum.into_inner(), CPUS * REPORTS * 32);
    }

    #[test]
    fn reclaim_for_dma_alone_is_not_accounted() {
        // GFP_KERNEL, GFP_HIGHUSER_MOVABLE without reclaim, GFP_NOFS.
        for gfp in [0xcc0, 0x0a, 0xc40] {
            assert!(is_accounted(gfp), "{gfp:#x}");
        }
        // GFP_DMA, GFP_DMA32, GFP_NOIO (`__GFP_RECLAIM`).
        for gfp in [0x01, 0x04, 0xc00] {
            assert!(!is_accounted(gfp), "{gfp:#x}");
        }
    }

    proptest! {
        /// All that is reported is in one window, or still in the sum; and each window is full.
        #[test]
        fn windows_hold_what_was_reported(reports in prop::collection::vec((0u64..1000, 0u64..1200), 0..200)) {
            let sum = AtomicU64::new(0);
            let mut windows = Vec::new();
            for (scanned, reclaimed) in &reports {
                windows.extend(account(&sum, *scanned, *reclaimed));
            }
            let left = sum.into_inner();
            prop_assert!(left & 0xffff_ffff < WINDOW);
            windows.push((left & 0xffff_ffff, left >> 32));
            let reported = reports.iter().filter(|(scanned, _)| *scanned > 0);
            let total = |pairs: &mut dyn Iterator<Item = (u64, u64)>| {
                pairs.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            };
            prop_assert_eq!(total(&mut windows.iter().copied()), total(&mut reported.copied()));
            windows.pop();
            prop_assert!(windows.iter().all(|(scanned, _)| *scanned >= WINDOW));
        }

        /// Unless something wraps, the level is that of the kernel's formula with
        /// arbitrarily wide integers.
        #[test]
        fn levels_follow_the_formula(scanned in 0u64..1 << 31, reclaimed in 0u64..1 << 31) {
            let (s, r) = (u128::from(scanned), u128::from(reclaimed));
            let percent = if r >= s { 0 } else { (s + r - r * (s + r) / s) * 100 / (s + r) };
            let want = match percent {
                0..60 => Level::Low,
                60..95 => Level::Medium,
                _ => Level::Critical,
            };
            prop_assert_eq!(level_of(scanned, reclaimed), want);
        }

        #[test]
        fn any_numbers_give_a_level(scanned in any::<u64>(), reclaimed in any::<u64>()) {
            let level = level_of(scanned, reclaimed);
            prop_assert!(reclaimed < scanned || level == Level::Low);
        }
    }
}
