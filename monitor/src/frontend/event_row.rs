//! One event as the operator's socket tells it.

use serde::{Deserialize, Serialize};

use crate::{
    kernel::page_size,
    watcher::{Cause, Event},
};

/// One event of a followed eventfd. Fields that say nothing are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Seconds since 1970, UTC.
    pub time: f64,
    /// Directory of the group that was registered on, or `#` and the id.
    pub cgroup: String,
    /// `crossed`, `oom`, `oom_kill`, `oom_group_kill`, `pressure`, `empty` or `removed`.
    pub event: String,
    /// How much was added to the eventfd: 0 for what only tells more of an OOM.
    pub signals: u64,
    /// The control file whose quantity crossed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// Threshold in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u64>,
    /// `up` or `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// Bytes when the crossing was worked out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<u64>,
    /// The group whose limit caused the OOM, or whose reclaim made the pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// `low`, `medium` or `critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// Whom the OOM killer chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub victim: Option<VictimRow>,
    /// Events that this follower was too slow for, just before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

/// A victim of the OOM killer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VictimRow {
    /// Its group: the whole of it with `oom_group_kill`.
    pub cgroup: String,
    /// Process id on the agent's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u64>,
    /// Its name, 15 bytes at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
const fn is_zero(lost: &u64) -> bool {
    *lost == 0
}

impl EventRow {
    /// The row of an event; `name` finds a group's directory.
    #[must_use]
    pub fn new(time: f64, event: &Event, lost: u64, name: impl Fn(u64) -> String) -> Self {
        let mut row =
            Self { time, cgroup: name(event.cgroup_id), signals: event.signals, lost, ..Self::default() };
        let page = page_size();
        row.event = match &event.cause {
            Cause::Crossed { on, threshold, direction, usage } => {
                row.on = Some(on.name().into());
                row.threshold = Some(threshold.saturating_mul(page));
                row.direction = Some(direction.as_str().into());
                row.usage = Some(usage * page);
                "crossed"
            }
            Cause::Oom { limit } => {
                row.origin = Some(name(*limit));
                "oom"
            }
            Cause::OomKill { limit, pid, comm, victim } => {
                row.origin = Some(name(*limit));
                let (pid, comm) = (Some(*pid), Some(comm.clone()));
                row.victim = Some(VictimRow { cgroup: name(*victim), pid, comm });
                "oom_kill"
            }
            Cause::GroupKill { limit, victim } => {
                row.origin = Some(name(*limit));
                row.victim = Some(VictimRow { cgroup: name(*victim), pid: None, comm: None });
                "oom_group_kill"
            }
            Cause::Pressure { level, origin } => {
                row.origin = Some(name(*origin));
                row.level = Some(level.as_str().into());
                "pressure"
            }
            Cause::Empty => "empty",
            Cause::Removed => "removed",
        }
        .into();
        row
    }
}

/// Seconds since 1970, UTC.
#[must_use]
pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
