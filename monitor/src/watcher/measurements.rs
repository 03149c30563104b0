//! What the watcher counts for metrics alone.

use std::collections::BTreeMap;

use monitor_common::{grammar::control_file::Trigger, protocol::ring::LossKind};
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};

use crate::{
    metrics::Histogram,
    source::Source,
    watcher::{Cause, Watcher},
};

/// Causes of signals, as labels.
pub const CAUSES: [&str; 5] = ["crossed", "oom", "pressure", "empty", "removed"];

impl Cause {
    /// Of [`Cause::Crossed`].
    pub(super) const CROSSED: usize = 0;
    /// Of [`Cause::Removed`].
    pub(super) const REMOVED: usize = 4;

    /// The place of what a registration for `trigger` is signalled for.
    pub(super) const fn of(trigger: &Trigger) -> usize {
        match trigger {
            Trigger::Threshold(_) => Self::CROSSED,
            Trigger::Oom => 1,
            Trigger::Pressure(_) => 2,
            Trigger::Empty => 3,
        }
    }

    /// The place in [`CAUSES`] of what an eventfd is signalled for.
    pub(super) const fn label(&self) -> usize {
        match self {
            Self::Crossed { .. } => Self::CROSSED,
            Self::Oom { .. } | Self::OomKill { .. } | Self::GroupKill { .. } => 1,
            Self::Pressure { .. } => 2,
            Self::Empty => 3,
            Self::Removed => Self::REMOVED,
        }
    }
}

/// What an operator can do something about, and what.
const SHORT: [(LossKind, &str); 4] = [
    (LossKind::SlotsExhausted, "groups are not watched, because the table is full; see --max-groups"),
    (LossKind::RingFull, "doorbells found the ring full, and all was read again; see --ring-bytes"),
    (LossKind::VictimsDropped, "kills were not told to followers: too many at once; see --ring-bytes"),
    (
        LossKind::SkippedForGood,
        "calls were kept from our programs by the kernel (recursion_misses), and nothing makes up for them: windows of reclaim, OOM notices of v1's code or victims may be missing",
    ),
];

/// Counts since the agent started.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// Signals given, by [`CAUSES`].
    pub signals: [u64; CAUSES.len()],
    /// Registrations refused, by errno.
    pub refusals: BTreeMap<i32, u64>,
    /// From doorbell to signal.
    pub latency: Histogram,
    /// What the log has told of.
    told: [u64; SHORT.len()],
}

impl Measurements {
    /// What programs that were at work before had counted is no news.
    pub(super) fn new(source: &impl Source) -> Self {
        Self { told: SHORT.map(|(tally, _)| source.tally(tally)), ..Self::default() }
    }

    pub(super) const fn signalled(&mut self, cause: usize, count: u64) {
        self.signals[cause] += count;
    }

    /// An eventfd was signalled for a doorbell that rang at `rung`, by `CLOCK_MONOTONIC`.
    pub(super) fn took(&mut self, rung: Option<u64>) {
        if let Some(rung) = rung
            && let Some(now) = monotonic()
        {
            self.latency.add(now.saturating_sub(rung) as f64 / 1e9);
        }
    }
}

impl<S: Source> Watcher<S> {
    /// Logs what ran out since the last time.
    pub(super) fn tell_shortages(&mut self) {
        for (told, (tally, what)) in self.measures.told.iter_mut().zip(SHORT) {
            let count = self.source.tally(tally);
            if count > *told {
                log::warn!(memcg_count = count - *told; "{} {what}", count - *told);
                *told = count;
            }
        }
    }

    /// A door has refused a registration.
    pub fn refused(&mut self, errno: Errno) {
        *self.measures.refusals.entry(errno as i32).or_default() += 1;
    }

    /// What was counted.
    pub const fn measures(&self) -> &Measurements {
        &self.measures
    }
}

/// The clock of `bpf_ktime_get_ns`, in nanoseconds.
fn monotonic() -> Option<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    let seconds = u64::try_from(now.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).ok()?)
}
