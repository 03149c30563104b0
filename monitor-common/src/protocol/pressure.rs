//! How hard reclaim worked, by the arithmetic of the kernel's `vmpressure.c`, 5.15 to 7.2.

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

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::{Level, level_of};

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

    proptest! {
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
