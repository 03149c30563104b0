//! The words in which `watch` tells what happened.

use monitor_client::wire::{EventRow, NoteRow};

use crate::commands::{human::human, listen::words};

/// The line for an event: the group, what happened, and how much of its limit it uses.
pub fn of(event: &EventRow) -> String {
    let mut line = format!("{}: {}", event.cgroup, words::of_event(event).trim_start());
    if event.event == "crossed" {
        // The words have usage.
        line.extend(event.limit.map(|limit| format!(" of {}", human(limit))));
    } else if let Some(usage) = event.usage {
        line += &format!("; usage {}", human(usage));
        line.extend(event.limit.map(|limit| format!(" of {}", human(limit))));
    }
    match event.growth {
        Some(growth) if growth > 0 => {
            line += &format!(", growing by {} a second", human(growth.unsigned_abs()));
        }
        Some(growth) if growth < 0 => {
            line += &format!(", falling by {} a second", human(growth.unsigned_abs()));
        }
        _ => {}
    }
    if event.late {
        line.extend(event.peak.map(|peak| format!(", {} at most", human(peak))));
        line += " (late)";
    }
    line
}

/// The line for a note: what cannot be told, why, and what to do.
pub fn of_note(note: &NoteRow) -> String {
    let (spec, limit) = (note.spec.as_deref().unwrap_or_default(), note.limit.map(human).unwrap_or_default());
    let mut group = note.cgroup.clone().unwrap_or_else(|| "a group".into());
    if note.groups > 1 {
        group += &format!(" and {} others", note.groups - 1);
    }
    match note.reason.as_str() {
        "above_limit" => format!(
            "{group}: {spec} cannot be crossed, the limit is {limit}; give a percentage (80%), or raise the limit"
        ),
        "above_host" => {
            format!("{group}: {spec} cannot be crossed, the host has {limit}; give a lower threshold")
        }
        "no_limit" => format!(
            "{group}: {spec} cannot be crossed, there is no limit; set one (memory.max), or give a number of bytes"
        ),
        "again" => {
            "OOMs, pressure, emptying and removals while no agent served this watch are not told".into()
        }
        _ => format!("{group}: {spec} is never crossed; give a threshold of a page or more"),
    }
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::EventRow;

    use super::of;

    #[test]
    fn a_line_has_group_cause_usage_limit_and_growth() {
        let crossed = EventRow {
            cgroup: "/g".into(),
            event: "crossed".into(),
            direction: Some("up".into()),
            threshold: Some(4 << 20),
            usage: Some(5 << 20),
            limit: Some(8 << 20),
            growth: Some(1 << 20),
            ..EventRow::default()
        };
        assert_eq!(of(&crossed), "/g: crossed 4M upwards, usage 5M of 8M, growing by 1M a second");
        let late = EventRow { growth: None, peak: Some(6 << 20), late: true, ..crossed };
        assert_eq!(of(&late), "/g: crossed 4M upwards, usage 5M of 8M, 6M at most (late)");
        let oom = EventRow {
            cgroup: "/g".into(),
            event: "oom".into(),
            origin: Some("/g".into()),
            usage: Some(8 << 20),
            limit: Some(8 << 20),
            growth: Some(-4096),
            ..EventRow::default()
        };
        assert_eq!(of(&oom), "/g: out of memory, by the limit of /g; usage 8M of 8M, falling by 4K a second");
        let removed = EventRow { cgroup: "/g".into(), event: "removed".into(), ..EventRow::default() };
        assert_eq!(of(&removed), "/g: the group was removed");
    }
}
