//! The command `memcg-monitor list`: all groups, and their registrations.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use memcg_monitor::printable::printable;
use monitor_client::{
    AdminConnection,
    wire::{AgentStatus, Answer, GroupRow, RegistrationRow},
};
use monitor_common::grammar::control_file::ControlFile;

use crate::cli::{List, Output};

pub fn run(options: &List) -> Result<ExitCode> {
    let control = AdminConnection::connect(&options.control_socket)?;
    let (rows, status) = control.list()?;
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => print_table(&mut out, &rows, &status)?,
        Output::Json => {
            for answer in rows.into_iter().map(Answer::Group).chain([Answer::Status(status)]) {
                serde_json::to_writer(&mut out, &answer).context("cannot write")?;
                writeln!(out)?;
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// Columns that a name may take; a longer one pushes the numbers of its own line alone to
/// the right.
const WIDEST: usize = 100;

fn print_table(out: &mut impl io::Write, rows: &[GroupRow], status: &AgentStatus) -> io::Result<()> {
    let names: Vec<_> = rows.iter().map(|row| printable(&row.cgroup)).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let width = width.clamp("CGROUP".len(), WIDEST);
    writeln!(out, "{:width$} {:>9} {:>9}  REGISTRATIONS", "CGROUP", "USAGE", "PEAK")?;
    let mut is_reached = false;
    for (row, name) in rows.iter().zip(names) {
        let thresholds = summary(&row.registrations, row.usage);
        is_reached |= thresholds.contains(REACHED);
        writeln!(out, "{name:width$} {:>9} {:>9}  {thresholds}", human(row.usage), human(row.peak))?;
    }
    if is_reached {
        writeln!(out, "{REACHED}: usage has reached this threshold")?;
    }
    writeln!(out)?;
    let losses: Vec<_> =
        status.losses.iter().filter(|(_, n)| **n > 0).map(|(name, n)| format!("{name} {n}")).collect();
    writeln!(
        out,
        "groups: {}, registrations: {}, signals given: {}, re-syncs: {}, calls skipped by the kernel: {}{}{}",
        rows.len(),
        status.registrations,
        status.signals,
        status.resyncs,
        status.skipped,
        if losses.is_empty() { "" } else { "; " },
        losses.join(", ")
    )?;
    if status.without_aio {
        writeln!(out, "signals are given by threads: io_setup fails, see sysctl fs.aio-max-nr")?;
    }
    if status.slow_users > 0 {
        writeln!(
            out,
            "users whose eventfds are slow to signal, so that threads of their own signal them: {}",
            status.slow_users
        )?;
    }
    Ok(())
}

/// The mark of a threshold on usage that usage has reached.
const REACHED: char = '^';

/// The first few registrations, with [`REACHED`] behind each threshold that usage has reached.
fn summary(registrations: &[RegistrationRow], usage: u64) -> String {
    const SHOWN: usize = 6;
    let mut parts: Vec<String> = registrations
        .iter()
        .take(SHOWN)
        .map(|row| {
            let times = if row.count > 1 { format!(" x{}", row.count) } else { String::new() };
            format!("{}{times}", trigger(row, usage))
        })
        .collect();
    if registrations.len() > SHOWN {
        parts.push(format!("and {} more", registrations.len() - SHOWN));
    }
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

fn trigger(row: &RegistrationRow, usage: u64) -> String {
    let file = ControlFile::from_name(row.on.as_bytes());
    let threshold = row.threshold.map(human).unwrap_or_default();
    match file {
        Some(ControlFile::Usage) if row.threshold.is_some_and(|bytes| bytes <= usage) => {
            format!("{threshold}{REACHED}")
        }
        Some(ControlFile::Usage) | None => threshold,
        Some(ControlFile::Memsw) => format!("memory+swap {threshold}"),
        Some(ControlFile::WorkingSet) => format!("working set {threshold}"),
        Some(ControlFile::Oom) => "oom".into(),
        Some(ControlFile::Pressure) => format!("pressure {}", row.pressure.as_deref().unwrap_or_default()),
        Some(ControlFile::Procs) => "empty".into(),
    }
}

/// Writes bytes with a binary suffix, as thresholds are written.
fn human(bytes: u64) -> String {
    const SUFFIXES: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];
    let mut step = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1024.0 && step + 1 < SUFFIXES.len() {
        scaled /= 1024.0;
        step += 1;
    }
    let decimals = usize::from(step > 0 && scaled < 100.0 && scaled.fract() >= 0.05);
    format!("{scaled:.decimals$}{}", SUFFIXES[step])
}

#[cfg(test)]
mod tests {
    use super::{AgentStatus, GroupRow, RegistrationRow, WIDEST, human, print_table, summary};

    #[test]
    fn names_neither_drive_the_terminal_nor_widen_the_table() {
        let row = |cgroup: &str| GroupRow {
            cgroup: cgroup.into(),
            id: 1,
            usage: 0,
            peak: 0,
            oom: None,
            registrations: Vec::new(),
        };
        let mut out = Vec::new();
        let rows = [row("/a\u{1b}[31m"), row(&"x".repeat(4000))];
        print_table(&mut out, &rows, &AgentStatus::default()).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("/a\\x1b[31m "), "{}", lines[1]);
        assert!(lines[0].len() < WIDEST + 40 && lines[1].len() < WIDEST + 40);
    }

    #[test]
    fn sizes_read_as_thresholds_are_written() {
        assert_eq!(human(0), "0");
        assert_eq!(human(4095), "4.0K");
        assert_eq!(human(20 << 20), "20M");
        assert_eq!(human((20 << 20) + (1 << 19)), "20.5M");
        assert_eq!(human(u64::MAX), "16E");
    }

    #[test]
    fn reached_thresholds_are_marked() {
        let row =
            |on: &str, threshold, count| RegistrationRow { on: on.into(), threshold, pressure: None, count };
        let rows = [
            row("memory.usage_in_bytes", Some(1 << 20), 1),
            row("memory.usage_in_bytes", Some(2 << 20), 3),
            row("memory.oom_control", None, 2),
        ];
        assert_eq!(summary(&rows, 1 << 20), "1M^, 2M x3, oom x2");
        assert_eq!(summary(&[], 5), "-");
        let legend = |usage| {
            let row = GroupRow {
                cgroup: "/a".into(),
                id: 1,
                usage,
                peak: usage,
                oom: None,
                registrations: vec![row("memory.usage_in_bytes", Some(1 << 20), 1)],
            };
            let mut out = Vec::new();
            print_table(&mut out, &[row], &AgentStatus::default()).expect("memory");
            String::from_utf8(out).expect("text").contains("^: usage has reached this threshold\n\n")
        };
        assert!(legend(1 << 20) && !legend((1 << 20) - 1));
    }
}
