//! The words in which `listen` tells what happened.

use std::path::Path;

use monitor_client::wire::EventRow;
use monitor_common::{grammar::control_file::ControlFile, protocol::pressure::Level};

use crate::commands::{
    human::{human, quantity},
    victim,
};

/// The last line of a listener, whose group is gone.
pub const REMOVED: &str = "the group was removed";

/// The words for a signal of unknown cause: the agent has ended, and may have signalled that.
pub const UNKNOWN: &str = "signalled";

/// The words for an event; those of a row without a signal begins with a space, as detail of the line
/// before.
pub fn of_event(event: &EventRow) -> String {
    let bytes = |bytes: Option<u64>| bytes.map(human).unwrap_or_default();
    let origin = event.origin.as_deref();
    match event.event.as_str() {
        "crossed" => {
            let way = event.direction.as_deref().map(|way| format!(" {way}wards")).unwrap_or_default();
            let file = event.on.as_deref().and_then(|name| ControlFile::from_name(name.as_bytes()));
            let what = file.and_then(quantity).unwrap_or("usage");
            format!("crossed {}{way}, {what} {}", bytes(event.threshold), bytes(event.usage))
        }
        "oom" => origin.map_or_else(
            || "out of memory".into(),
            |origin| format!("out of memory, by the limit of {origin}"),
        ),
        "oom_kill" | "host_oom_kill" => format!("  {}", victim::of_kill(event, false)),
        "oom_group_kill" => {
            let group = event.victim.as_ref().map_or("a group", |victim| &victim.cgroup);
            format!("  killed {group} as a whole{}", victim::why(event, false))
        }
        "pressure" => {
            let level = event.level.as_deref().unwrap_or("some");
            match origin.filter(|origin| *origin != event.cgroup) {
                Some(origin) => format!("pressure: {level}, in {origin}"),
                None => format!("pressure: {level}"),
            }
        }
        "empty" => "the group is empty".into(),
        "removed" => REMOVED.into(),
        // Of a newer agent.
        other => format!("{UNKNOWN} ({other})"),
    }
}

/// The words for a signal on this control file, where only the eventfd tells of it; `usage` is read now.
pub fn of_signal(file: Option<ControlFile>, args: &str, usage: Option<u64>) -> String {
    let level = args.split(',').next().unwrap_or_default();
    match file {
        Some(ControlFile::Usage | ControlFile::Memsw | ControlFile::WorkingSet | ControlFile::Anon) => {
            let usage = usage.map(|usage| format!(", usage now {}", human(usage))).unwrap_or_default();
            format!("crossed {level}{usage}")
        }
        Some(ControlFile::Oom) => "out of memory".into(),
        // A registration is signalled for higher levels, too.
        Some(ControlFile::Pressure) if level == Level::Critical.as_str() => format!("pressure: {level}"),
        Some(ControlFile::Pressure) => format!("pressure: {level} or higher"),
        Some(ControlFile::Procs) => "the group is empty".into(),
        None => UNKNOWN.into(),
    }
}

/// Usage of the group in this directory, where a file shows it.
pub fn usage(directory: &Path) -> Option<u64> {
    let texts = ["memory.current", "memory.usage_in_bytes"].map(|name| directory.join(name));
    texts.iter().find_map(|path| std::fs::read_to_string(path).ok())?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::{EventRow, VictimRow};
    use monitor_common::grammar::control_file::ControlFile;

    use super::{of_event, of_signal};

    fn row(event: &str) -> EventRow {
        EventRow { cgroup: "/g".into(), event: event.into(), signals: 1, ..EventRow::default() }
    }

    #[test]
    fn each_event_says_what_happened() {
        let crossed = EventRow {
            on: Some("memory.usage_in_bytes".into()),
            threshold: Some(4 << 20),
            direction: Some("up".into()),
            usage: Some(5 << 20),
            ..row("crossed")
        };
        assert_eq!(of_event(&crossed), "crossed 4M upwards, usage 5M");
        let sum = EventRow { on: Some("memory.memsw.usage_in_bytes".into()), ..crossed };
        assert_eq!(of_event(&sum), "crossed 4M upwards, memory+swap 5M");
        let oom = EventRow { origin: Some("/".into()), ..row("oom") };
        assert_eq!(of_event(&oom), "out of memory, by the limit of /");
        let victim = VictimRow {
            cgroup: "/g/a".into(),
            pid: Some(7),
            comm: Some("sh".into()),
            ..VictimRow::default()
        };
        let killed = EventRow { victim: Some(victim), ..row("oom_kill") };
        assert_eq!(of_event(&killed), "  killed sh (process 7) of /g/a");
        let victim = VictimRow { cgroup: "/g".into(), ..VictimRow::default() };
        let killed = EventRow { victim: Some(victim), ..row("oom_group_kill") };
        assert_eq!(of_event(&killed), "  killed /g as a whole");
        let at = |origin: &str| EventRow {
            level: Some("critical".into()),
            origin: Some(origin.into()),
            ..row("pressure")
        };
        assert_eq!(of_event(&at("/g")), "pressure: critical");
        assert_eq!(of_event(&at("/g/b")), "pressure: critical, in /g/b");
        assert_eq!(of_event(&row("empty")), "the group is empty");
        assert_eq!(of_event(&row("removed")), "the group was removed");
        assert_eq!(of_event(&row("later")), "signalled (later)");
    }

    #[test]
    fn a_signal_without_a_cause_says_what_its_registration_is_for() {
        let of = |file, args| of_signal(Some(file), args, None);
        assert_eq!(of(ControlFile::Usage, "80%,up"), "crossed 80%");
        assert_eq!(of_signal(Some(ControlFile::Usage), "4M", Some(5 << 20)), "crossed 4M, usage now 5M");
        assert_eq!(of(ControlFile::Oom, ""), "out of memory");
        assert_eq!(of(ControlFile::Pressure, "low,local"), "pressure: low or higher");
        assert_eq!(of(ControlFile::Pressure, "critical"), "pressure: critical");
        assert_eq!(of(ControlFile::Procs, ""), "the group is empty");
        assert_eq!(of_signal(None, "", None), "signalled");
    }
}
