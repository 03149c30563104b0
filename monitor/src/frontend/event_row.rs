//! An event as the admin socket reports it.

use std::path::Path;

use monitor_client::wire::{EventRow, VictimRow};
use monitor_common::protocol::ring::{KillReason, Victim};

use crate::{
    cgroup::workload::Workload,
    kernel::page_size,
    kills::Kill,
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
        Cause::OomKill(kill) => {
            row.reason = Some(kill.reason.as_str().into());
            row.victim = Some(victim(kill, &name));
            row.origin = origin(kill, &name);
            name_of_kill(kill.reason)
        }
        Cause::GroupKill { reason, limit, victim } => {
            row.origin = limit.map(&name);
            row.reason = Some(reason.as_str().into());
            let cgroup = name(*victim);
            row.victim = Some(of_group(cgroup));
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

/// Makes the row of a kill of the log.
#[must_use]
pub fn kill(kill: &Kill) -> EventRow {
    let name = |id| format!("#{id}");
    let victim = victim(kill, name);
    EventRow {
        time: kill.time,
        cgroup: victim.cgroup.clone(),
        event: name_of_kill(kill.reason).into(),
        origin: origin(kill, name),
        reason: Some(kill.reason.as_str().into()),
        victim: Some(victim),
        ..EventRow::default()
    }
}

/// The event of a kill: the host's is one of its own, which follows no other.
const fn name_of_kill(reason: KillReason) -> &'static str {
    match reason {
        KillReason::Limit | KillReason::LoweredLimit | KillReason::Unknown => "oom_kill",
        KillReason::Host => "host_oom_kill",
    }
}

fn origin(kill: &Kill, name: impl Fn(u64) -> String) -> Option<String> {
    let found = kill.details().and_then(|details| details.limit.clone());
    found.or_else(|| kill.limit.map(name)).or_else(|| kill.groups().limit.clone())
}

/// The row of a group, with the workload that its path names.
fn of_group(cgroup: String) -> VictimRow {
    let Workload { unit, pod_uid, container_id } = Workload::of(Path::new(&cgroup));
    VictimRow { cgroup, unit, pod_uid, container_id, ..VictimRow::default() }
}

/// Makes the row of a victim; `name` finds a directory that was not looked up.
pub fn victim(kill: &Kill, name: impl Fn(u64) -> String) -> VictimRow {
    let (victim, details) = (&kill.victim, kill.details().cloned().unwrap_or_default());
    let known = |number: u64| Some(number).filter(|number| *number != Victim::UNKNOWN);
    let bytes = |pages: u64| known(pages).map(|pages| pages.saturating_mul(page_size()));
    let memory = kill.memory();
    let command = details.command;
    VictimRow {
        pid: Some(victim.pid).filter(|pid| *pid != 0),
        own_pid: Some(u64::from(victim.own_pid)).filter(|pid| *pid != 0),
        comm: Some(kill.name()).filter(|_| victim.pid != 0),
        command_cut: command.as_ref().is_some_and(|line| line.is_cut),
        command: command.map(|line| line.args()),
        exe: details.exe,
        uid: Some(victim.uid).filter(|uid| *uid != Victim::NO_USER),
        oom_score_adj: Some(victim.score_adj).filter(|score| *score != Victim::NO_SCORE),
        total_vm: bytes(memory.total),
        anon_rss: bytes(memory.anon),
        file_rss: bytes(memory.file),
        shmem_rss: bytes(memory.shmem),
        swap: bytes(memory.swap),
        page_tables: known(memory.page_tables),
        ..of_group(details.cgroup.unwrap_or_else(|| name(victim.bell.value)))
    }
}

/// Returns the time of day in seconds since 1970, UTC.
#[must_use]
pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
