//! Counters of the watcher that only the metrics use.

use std::collections::BTreeMap;

use monitor_common::protocol::ring::LossKind;
use nix::{
    errno::Errno,
    time::{ClockId, clock_gettime},
};

use crate::{metrics::Histogram, source::Source, watcher::event::CAUSES};

/// Losses that an operator can prevent, with the log's text on how.
const SHORT: [(LossKind, &str); 4] = [
    (LossKind::SlotsExhausted, "groups are not watched, because the table is full; see --max-groups"),
    (LossKind::RingFull, "doorbells found the ring full, and all was read again; see --ring-bytes"),
    (LossKind::VictimsDropped, "kills were not delivered to followers: too many at once; see --ring-bytes"),
    (
        LossKind::SkippedForGood,
        "calls were kept from the programs by the kernel (recursion_misses), and nothing makes up for them: windows of reclaim, OOM notices of v1's code or victims may be missing",
    ),
];

/// Counts since the agent started.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// Signals given, by [`CAUSES`].
    pub signals: [u64; CAUSES.len()],
    /// Registrations refused, by errno.
    pub refusals: BTreeMap<i32, u64>,
    /// Latencies from doorbell to signal.
    pub latency: Histogram,
    /// Losses that the log has reported already.
    logged: [u64; SHORT.len()],
}

impl Measurements {
    /// Starts from zero; losses that earlier programs have counted are not reported again.
    pub(super) fn new(source: &impl Source) -> Self {
        Self { logged: SHORT.map(|(tally, _)| source.tally(tally)), ..Self::default() }
    }

    pub(super) const fn signalled(&mut self, cause: usize, count: u64) {
        self.signals[cause] += count;
    }

    /// Records the latency of a signal for a doorbell that rang at `rung`, by `CLOCK_MONOTONIC`.
    pub(super) fn took(&mut self, rung: Option<u64>) {
        if let Some(rung) = rung
            && let Some(now) = monotonic()
        {
            self.latency.add(now.saturating_sub(rung) as f64 / 1e9);
        }
    }

    /// Logs the losses of [`SHORT`] since the last call.
    pub(super) fn log_shortages(&mut self, source: &impl Source) {
        for (logged, (tally, what)) in self.logged.iter_mut().zip(SHORT) {
            let count = source.tally(tally);
            if count > *logged {
                log::warn!(memcg_count = count - *logged; "{} {what}", count - *logged);
                *logged = count;
            }
        }
    }

    /// Counts a registration that a frontend has refused.
    pub(super) fn refused(&mut self, errno: Errno) {
        *self.refusals.entry(errno as i32).or_default() += 1;
    }
}

/// The clock of `bpf_ktime_get_ns`, in nanoseconds.
fn monotonic() -> Option<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
    let seconds = u64::try_from(now.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(now.tv_nsec()).ok()?)
}
