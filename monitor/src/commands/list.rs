//! The command `memcg-monitor list`: all groups, and their registrations.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use memcg_monitor::{cgroup::workload::Workload, printable};
use monitor_client::wire::{AgentStatus, Answer, GroupRow, RegistrationRow};
use monitor_common::grammar::control_file::ControlFile;

use crate::{
    cli::{List, Output},
    commands::{
        connect::{admin, explained},
        fold::{cells, columns, folded},
        human::{human, quantity},
        timed_out,
    },
};

pub fn run(options: &List) -> Result<ExitCode> {
    let list = admin(&options.control_socket, options.timeout).and_then(|control| control.list());
    let (mut rows, status) = match list {
        Ok(list) => list,
        Err(error) if error.is_timeout() => return Ok(timed_out(options.timeout)),
        Err(error) => return Err(explained(error, "--control-socket")),
    };
    if let Some(selected) = options.group.find()? {
        let top = listed_as(&rows, &selected)?;
        rows.retain(|row| Path::new(&row.cgroup).starts_with(&top));
    }
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => print_table(&mut out, &rows, &status, columns())?,
        Output::Json => {
            for row in rows {
                let workload = Workload::of(Path::new(&row.cgroup));
                let line = serde_json::to_value(Answer::Group(row)).context("cannot format")?;
                serde_json::to_writer(&mut out, &labelled(line, workload)).context("cannot write")?;
                writeln!(out)?;
            }
            serde_json::to_writer(&mut out, &Answer::Status(status)).context("cannot write")?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The directory of a group as the agent names it, which may have the hierarchy mounted elsewhere: found
/// by its id.
fn listed_as(rows: &[GroupRow], directory: &Path) -> Result<PathBuf> {
    let id = fs::metadata(directory).with_context(|| format!("stat {}", directory.display()))?.ino();
    let row = rows.iter().find(|row| row.id == id);
    Ok(row.map_or_else(|| directory.to_owned(), |row| PathBuf::from(&row.cgroup)))
}

/// Adds the workload of a group, as far as its path names it, to the group's line.
fn labelled(mut line: serde_json::Value, workload: Workload) -> serde_json::Value {
    if let Some(fields) = line.as_object_mut() {
        let Workload { unit, pod_uid, container_id } = workload;
        for (name, value) in [("unit", unit), ("pod_uid", pod_uid), ("container_id", container_id)] {
            fields.extend(value.map(|value| (name.to_owned(), value.into())));
        }
    }
    line
}

/// Columns that a name may take; a longer one pushes the numbers of its own line alone to
/// the right, or on a terminal to the next line.
const WIDEST: usize = 100;

/// Columns of usage and peak, and those that registrations have at least on a terminal.
const NUMBERS: usize = 22;
const REGISTRATIONS: usize = 22;

fn print_table(
    out: &mut impl io::Write,
    rows: &[GroupRow],
    status: &AgentStatus,
    columns: Option<usize>,
) -> io::Result<()> {
    let names: Vec<_> = rows.iter().map(|row| printable(&row.cgroup)).collect();
    let widest = columns.map_or(WIDEST, |columns| columns.saturating_sub(NUMBERS + REGISTRATIONS));
    let width = names.iter().map(|name| cells(name)).max().unwrap_or(0);
    let width = width.min(widest).max("CGROUP".len());
    writeln!(out, "{:width$} {:>9} {:>9}  REGISTRATIONS", "CGROUP", "USAGE", "PEAK")?;
    let (mut is_reached, mut is_unreachable) = (false, false);
    for (row, name) in rows.iter().zip(names) {
        let thresholds = summary(&row.registrations, row.usage, &status.precision);
        let thresholds = printable(&thresholds);
        is_reached |= thresholds.contains(REACHED);
        is_unreachable |= thresholds.contains(UNREACHABLE);
        let space = " ".repeat(width.saturating_sub(cells(&name)));
        let mut before = format!("{name}{space}");
        if columns.is_some() && cells(&name) > width {
            writeln!(out, "{name}")?;
            before = " ".repeat(width);
        }
        let before = format!("{before} {:>9} {:>9}  ", human(row.usage), human(row.peak));
        writeln!(out, "{}", folded(&before, &thresholds, width + NUMBERS, columns))?;
    }
    if is_reached {
        writeln!(out, "{REACHED}: usage has reached this threshold")?;
    }
    let mut line = |text: &str| writeln!(out, "{}", folded("", text, 2, columns));
    if is_unreachable {
        line(&format!(
            "{UNREACHABLE}: cannot be crossed now: above the limit of the group or of one above it, in percent of \
             no limit, or never (0, -1)"
        ))?;
    }
    line("")?;
    let losses = status.losses.iter().filter(|(_, n)| **n > 0);
    let losses: Vec<_> = losses.map(|(name, n)| format!("{} {n}", printable(name))).collect();
    line(&format!(
        "groups: {}, registrations: {}, signals given: {}, re-syncs: {}, calls skipped by the kernel: {}{}{}",
        rows.len(),
        status.registrations,
        status.signals,
        status.resyncs,
        status.skipped,
        if losses.is_empty() { "" } else { "; " },
        losses.join(", ")
    ))?;
    if status.precision == "sampled" {
        line(&format!(
            "backend: {}; thresholds are sampled: a crossing and its way back between two readings may be missed",
            printable(&status.backend)
        ))?;
    }
    if status.without_aio {
        line("signals are given by threads: io_setup fails, see sysctl fs.aio-max-nr")?;
    }
    if status.slow_users > 0 {
        line(&format!(
            "users whose eventfds are slow to signal, so that threads of their own signal them: {}",
            status.slow_users
        ))?;
    }
    Ok(())
}

/// The mark of a threshold on usage that usage has reached.
const REACHED: char = '^';
/// The mark of a threshold that cannot be crossed as things are.
const UNREACHABLE: char = '!';

/// The first few registrations, with [`REACHED`] behind each threshold that usage has reached.
fn summary(registrations: &[RegistrationRow], usage: u64, precision: &str) -> String {
    const SHOWN: usize = 6;
    let mut parts: Vec<String> = registrations
        .iter()
        .take(SHOWN)
        .map(|row| {
            let times = if row.count > 1 { format!(" x{}", row.count) } else { String::new() };
            let differs = !row.precision.is_empty() && row.precision != precision;
            let precision = if differs { format!(" {}", row.precision) } else { String::new() };
            format!("{}{precision}{times}", trigger(row, usage))
        })
        .collect();
    if registrations.len() > SHOWN {
        parts.push(format!("and {} more", registrations.len() - SHOWN));
    }
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

fn trigger(row: &RegistrationRow, usage: u64) -> String {
    let file = ControlFile::from_name(row.on.as_bytes());
    match file {
        Some(ControlFile::Oom) => "oom".into(),
        Some(ControlFile::Pressure) => format!("pressure {}", row.pressure.as_deref().unwrap_or_default()),
        Some(ControlFile::Procs) => "empty".into(),
        _ => match file.and_then(quantity) {
            Some(name) => format!("{name} {}", threshold(row, None)),
            None => threshold(row, Some(usage)),
        },
    }
}

/// A threshold with its mark and its options: `80% = 64M^ up hysteresis 1M`.
fn threshold(row: &RegistrationRow, usage: Option<u64>) -> String {
    let place = row.threshold.map(human);
    let mut text = match (&row.percent, place) {
        (Some(percent), Some(place)) => format!("{percent} = {place}"),
        (Some(percent), None) => format!("{percent} of no limit"),
        (None, place) => place.unwrap_or_default(),
    };
    if row.unreachable.is_some() {
        text.push(UNREACHABLE);
    } else if usage.is_some_and(|usage| row.threshold.is_some_and(|bytes| bytes <= usage)) {
        text.push(REACHED);
    }
    let hysteresis = row.hysteresis.map(|bytes| format!("hysteresis {}", human(bytes)));
    let held_off = row.held_off.then(|| "held off".to_owned());
    for option in [row.direction.clone(), hysteresis, held_off].into_iter().flatten() {
        text.push(' ');
        text.push_str(&option);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{AgentStatus, GroupRow, RegistrationRow, WIDEST, cells, print_table, summary};

    #[test]
    fn names_neither_drive_the_terminal_nor_widen_the_table() {
        let row = |cgroup: &str| GroupRow {
            cgroup: cgroup.into(),
            id: 1,
            usage: 0,
            peak: 0,
            oom: None,
            limit: None,
            registrations: Vec::new(),
        };
        let mut out = Vec::new();
        let rows = [row("/a\u{1b}[31m"), row(&"x".repeat(4000))];
        print_table(&mut out, &rows, &AgentStatus::default(), None).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("/a\\x1b[31m "), "{}", lines[1]);
        assert!(lines[0].len() < WIDEST + 40 && lines[1].len() < WIDEST + 40);
    }

    #[test]
    fn nothing_that_an_agent_says_drives_the_terminal() {
        let hostile = || "\u{1b}[2J\n".to_owned();
        let registration = |on: &str| RegistrationRow {
            on: on.into(),
            percent: Some(hostile()),
            direction: Some(hostile()),
            pressure: Some(hostile()),
            precision: hostile(),
            count: 1,
            ..RegistrationRow::default()
        };
        let row = GroupRow {
            cgroup: "/a".into(),
            id: 1,
            usage: 0,
            peak: 0,
            oom: None,
            limit: None,
            registrations: ["memory.usage_in_bytes", "memory.pressure_level"].map(registration).into(),
        };
        let status = AgentStatus {
            backend: hostile(),
            precision: "sampled".into(),
            losses: [(hostile(), 1)].into(),
            ..AgentStatus::default()
        };
        let mut out = Vec::new();
        print_table(&mut out, &[row], &status, None).expect("memory");
        let text = String::from_utf8(out).expect("text");
        // The header, the group, an empty line, the counters and the backend.
        assert!(!text.contains('\u{1b}') && text.lines().count() == 5, "{text}");
        assert_eq!(text.matches("\\x1b[2J\\n").count(), 7, "{text}");
    }

    #[test]
    fn a_terminal_of_80_columns_wraps_nothing_and_has_all() {
        let threshold = |bytes| RegistrationRow {
            on: "memory.working_set_bytes".into(),
            threshold: Some(bytes),
            unreachable: Some("never".into()),
            count: 1,
            ..RegistrationRow::default()
        };
        let row = |cgroup: &str| GroupRow {
            cgroup: cgroup.into(),
            id: 1,
            usage: 5 << 20,
            peak: 6 << 20,
            oom: None,
            limit: None,
            registrations: (1..=4).map(|step| threshold(step << 20)).collect(),
        };
        let status = AgentStatus {
            precision: "sampled".into(),
            losses: [("ring_full".into(), 1)].into(),
            ..AgentStatus::default()
        };
        let long = format!("/sys/fs/cgroup/{}.service", "a".repeat(50));
        let mut out = Vec::new();
        print_table(&mut out, &[row("/sys/fs/cgroup/\u{4e00}"), row(&long)], &status, Some(80))
            .expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert!(text.lines().all(|line| cells(line) <= 80), "{text}");
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut wide = Vec::new();
        print_table(&mut wide, &[row("/sys/fs/cgroup/\u{4e00}"), row(&long)], &status, None).expect("memory");
        assert_eq!(words(&text), words(&String::from_utf8(wide).expect("text")));
        assert!(text.lines().any(|line| line == long), "{text}");
    }

    #[test]
    fn reached_thresholds_are_marked() {
        let row = |on: &str, threshold, count| RegistrationRow {
            on: on.into(),
            threshold,
            count,
            ..RegistrationRow::default()
        };
        let rows = [
            row("memory.usage_in_bytes", Some(1 << 20), 1),
            row("memory.usage_in_bytes", Some(2 << 20), 3),
            row("memory.oom_control", None, 2),
        ];
        assert_eq!(summary(&rows, 1 << 20, ""), "1M^, 2M x3, oom x2");
        assert_eq!(summary(&[], 5, ""), "-");
        let legend = |usage| {
            let row = GroupRow {
                cgroup: "/a".into(),
                id: 1,
                usage,
                peak: usage,
                oom: None,
                limit: None,
                registrations: vec![row("memory.usage_in_bytes", Some(1 << 20), 1)],
            };
            let mut out = Vec::new();
            print_table(&mut out, &[row], &AgentStatus::default(), None).expect("memory");
            String::from_utf8(out).expect("text").contains("^: usage has reached this threshold\n\n")
        };
        assert!(legend(1 << 20) && !legend((1 << 20) - 1));
    }

    #[test]
    fn options_precision_and_what_cannot_be_crossed_are_shown() {
        let usage = "memory.usage_in_bytes".to_owned();
        let plain = RegistrationRow { on: usage, count: 1, ..RegistrationRow::default() };
        let percent = RegistrationRow { percent: Some("80%".into()), ..plain.clone() };
        let rows = [
            RegistrationRow {
                threshold: Some(80 << 20),
                direction: Some("up".into()),
                hysteresis: Some(1 << 20),
                held_off: true,
                ..percent.clone()
            },
            RegistrationRow { unreachable: Some("no_limit".into()), ..percent },
            RegistrationRow { threshold: Some(4 << 30), unreachable: Some("above_limit".into()), ..plain },
            RegistrationRow {
                on: "memory.working_set_bytes".into(),
                threshold: Some(1 << 20),
                precision: "sampled".into(),
                count: 2,
                ..RegistrationRow::default()
            },
        ];
        assert_eq!(
            summary(&rows, 90 << 20, "exact"),
            "80% = 80M^ up hysteresis 1M held off, 80% of no limit!, 4G!, working set 1M sampled x2"
        );
    }
}
