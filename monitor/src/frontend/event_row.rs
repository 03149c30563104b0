//! An event as the admin socket reports it.

use monitor_client::wire::{EventRow, VictimRow};

use crate::{
    kernel::page_size,
    watcher::{Cause, Event},
};

/// Makes the row of an event; `name` finds a group's directory.
#[must_use]
pub fn row(time: f64, event: &Event, lost: u64, name: impl Fn(u64) -> String) -> EventRow {
    let mut row =
        EventRow { time, cgroup: name(event.cgroup_id), signals: event.signals, lost, ..EventRow::default() };
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

/// Returns the time of day in seconds since 1970, UTC.
#[must_use]
pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
