//! The words for a victim of the OOM killer, and why it was killed.

use monitor_client::wire::{EventRow, VictimRow};

use crate::commands::human::human;

/// The words for a kill; `with_limit` also where it is by a group's limit, which `listen` has told of in
/// the line before.
pub fn of_kill(event: &EventRow, with_limit: bool) -> String {
    let none = VictimRow::default();
    let victim = event.victim.as_ref().unwrap_or(&none);
    let name = victim.comm.as_deref().unwrap_or("a process");
    let own = victim.own_pid.filter(|own| Some(*own) != victim.pid);
    let own = own.map(|own| format!(", {own} in its own namespace")).unwrap_or_default();
    let pid = victim.pid.map(|pid| format!(" (process {pid}{own})")).unwrap_or_default();
    let group = if victim.cgroup.is_empty() { String::new() } else { format!(" of {}", victim.cgroup) };
    let details = details(victim);
    let colon = if details.is_empty() { "" } else { ": " };
    format!("killed {name}{pid}{group}{}{colon}{details}", why(event, with_limit))
}

/// The words for the reason of a kill, after a comma.
pub fn why(event: &EventRow, with_limit: bool) -> String {
    let of_group = event.origin.as_ref().map(|origin| format!(" of {origin}")).unwrap_or_default();
    match event.reason.as_deref() {
        Some("host") => ", as the host ran out of memory".into(),
        Some("lowered_limit") => format!(", by lowering the limit{of_group}"),
        Some("limit") if with_limit => format!(", by the limit{of_group}"),
        Some("unknown") => ", and the kernel's line of it was not read".into(),
        _ => String::new(),
    }
}

fn details(victim: &VictimRow) -> String {
    let mut details = Vec::new();
    for (name, bytes) in [
        ("anon", victim.anon_rss),
        ("file", victim.file_rss),
        ("shmem", victim.shmem_rss),
        ("swap", victim.swap),
        ("page tables", victim.page_tables),
    ] {
        details.extend(bytes.map(|bytes| format!("{name} {}", human(bytes))));
    }
    details.extend(victim.uid.map(|uid| format!("user {uid}")));
    details.extend(victim.oom_score_adj.map(|score| format!("oom_score_adj {score}")));
    let container = victim.container_id.as_ref().map(|id| format!("container {id}"));
    let pod = victim.pod_uid.as_ref().map(|id| format!("pod {id}"));
    details.extend(container.or(pod).or_else(|| victim.unit.clone()));
    match &victim.command {
        Some(command) => {
            let args: Vec<_> = command.iter().map(|arg| quoted(arg)).collect();
            let cut = if victim.command_cut { " ..." } else { "" };
            details.push(format!("command line {}{cut}", args.join(" ")));
        }
        // An older agent says nothing at all.
        None if victim.pid.is_some() && !details.is_empty() => details.push("command line gone".into()),
        None => {}
    }
    details.join(", ")
}

/// An argument, in quotes where it would not read as one.
fn quoted(arg: &str) -> String {
    let is_plain = |character: char| character.is_alphanumeric() || "-_./=:,+@%".contains(character);
    if !arg.is_empty() && arg.chars().all(is_plain) { arg.to_owned() } else { format!("\"{arg}\"") }
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::{EventRow, VictimRow};

    use super::of_kill;

    #[test]
    fn who_was_killed_and_why_is_one_line() {
        let victim = VictimRow {
            cgroup: "/g/a.service".into(),
            pid: Some(700),
            own_pid: Some(7),
            comm: Some("sh".into()),
            command: Some(vec!["sh".into(), "-c".into(), "a b".into()]),
            command_cut: true,
            uid: Some(1000),
            oom_score_adj: Some(-5),
            anon_rss: Some(60 << 20),
            swap: Some(0),
            page_tables: Some(96 << 10),
            unit: Some("a.service".into()),
            ..VictimRow::default()
        };
        let of = |reason: &str, victim: &VictimRow, with_limit| {
            let event = EventRow {
                event: "oom_kill".into(),
                reason: Some(reason.into()),
                origin: Some("/g".into()).filter(|_| reason != "host"),
                victim: Some(victim.clone()),
                ..EventRow::default()
            };
            of_kill(&event, with_limit)
        };
        assert_eq!(
            of("limit", &victim, true),
            "killed sh (process 700, 7 in its own namespace) of /g/a.service, by the limit of /g: anon 60M, \
             swap 0, page tables 96K, user 1000, oom_score_adj -5, a.service, command line sh -c \"a b\" ..."
        );
        let gone = VictimRow { command: None, own_pid: Some(700), uid: Some(0), ..VictimRow::default() };
        let gone = VictimRow { cgroup: "/g".into(), pid: Some(700), ..gone };
        assert_eq!(
            of("host", &gone, false),
            "killed a process (process 700) of /g, as the host ran out of memory: user 0, command line gone"
        );
        let short = VictimRow { uid: None, ..gone };
        assert_eq!(
            of("lowered_limit", &short, false),
            "killed a process (process 700) of /g, by lowering the limit of /g"
        );
        assert_eq!(of("limit", &short, false), "killed a process (process 700) of /g");
    }
}
