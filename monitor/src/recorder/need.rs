//! Which groups need a box, where there are more groups than boxes: one that is quiet and far from its limit
//! gives way to one that is near its own.

use std::time::Duration;

/// Time without a point after which a group is quiet.
const QUIET: Duration = Duration::from_secs(300);

/// A group's usage and its lowest limit, in pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fill {
    pub usage: u64,
    pub limit: u64,
}

impl Fill {
    /// Whether it is near its limit, so that it needs a box: at three quarters.
    pub(super) const fn is_near(self) -> bool {
        self.limit != u64::MAX && self.usage >= self.limit - self.limit / 4
    }

    /// Whether it is far from it, or has none: below a half. What has given way is not near at once.
    pub(super) const fn is_far(self) -> bool {
        self.usage < self.limit / 2
    }

    /// How full it is, in percent.
    pub(super) const fn percent(self) -> u64 {
        self.usage.saturating_mul(100) / if self.limit == 0 { 1 } else { self.limit }
    }
}

/// Whether a recorded group may give its box away, whose last point is of the moment `last`.
pub(super) fn gives_way(fill: Fill, last: u64, now: u64) -> bool {
    fill.is_far() && Duration::from_nanos(now.saturating_sub(last)) >= QUIET
}

#[cfg(test)]
mod tests {
    use super::{Fill, QUIET, gives_way};

    #[test]
    fn a_group_gives_way_that_is_quiet_and_far_from_its_limit() {
        let of = |usage, limit| Fill { usage, limit };
        let quiet = u64::try_from(QUIET.as_nanos()).expect("small");
        let now = 10 * quiet;
        assert!(gives_way(of(49, 100), now - quiet, now) && gives_way(of(1 << 30, u64::MAX), 0, now));
        assert!(!gives_way(of(49, 100), now - quiet + 1, now), "it has moved");
        assert!(!gives_way(of(50, 100), 0, now), "it is half full");
        assert!(of(75, 100).is_near() && !of(74, 100).is_near() && !of(u64::MAX - 1, u64::MAX).is_near());
        assert!((0..200).all(|usage| !(of(usage, 100).is_near() && of(usage, 100).is_far())));
        assert_eq!((of(75, 100).percent(), of(1, 0).percent()), (75, 100));
    }
}
