//! `memcg-monitor list`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use memcg_monitor::{
    client::Control,
    door::control::{Answer, GroupRow, Request, Status},
};

use crate::cli::{List, Output};

pub fn run(options: &List) -> Result<ExitCode> {
    let control = Control::connect(&options.control_socket)?;
    control.ask(&Request::List, &[])?;
    let mut rows = Vec::new();
    let status = loop {
        match control.next()? {
            Some(Answer::Group(row)) => rows.push(row),
            Some(Answer::Status(status)) => break status,
            Some(other) => bail!("the agent answered {other:?}"),
            None => bail!("the agent ended in the middle of the list"),
        }
    };
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

fn print_table(out: &mut impl io::Write, rows: &[GroupRow], status: &Status) -> io::Result<()> {
    let width = rows.iter().map(|row| row.cgroup.len()).max().unwrap_or(0).max("CGROUP".len());
    writeln!(out, "{:width$} {:>9} {:>9}  THRESHOLDS", "CGROUP", "USAGE", "PEAK")?;
    for row in rows {
        let thresholds = summary(&row.registrations, row.usage);
        writeln!(out, "{:width$} {:>9} {:>9}  {thresholds}", row.cgroup, human(row.usage), human(row.peak))?;
    }
    writeln!(out)?;
    let losses: Vec<_> =
        status.losses.iter().filter(|(_, n)| *n > 0).map(|(name, n)| format!("{name} {n}")).collect();
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
    )
}

/// The first few thresholds, `^` where usage has reached them.
fn summary(registrations: &[(u64, u64)], usage: u64) -> String {
    const SHOWN: usize = 6;
    let mut parts: Vec<String> = registrations
        .iter()
        .take(SHOWN)
        .map(|&(threshold, count)| {
            let reached = if threshold <= usage { "^" } else { "" };
            let times = if count > 1 { format!(" x{count}") } else { String::new() };
            format!("{}{reached}{times}", human(threshold))
        })
        .collect();
    if registrations.len() > SHOWN {
        parts.push(format!("and {} more", registrations.len() - SHOWN));
    }
    if parts.is_empty() { "-".into() } else { parts.join(", ") }
}

/// Bytes with a binary suffix, as thresholds are written.
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
    use super::{human, summary};

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
        assert_eq!(summary(&[(1 << 20, 1), (2 << 20, 3)], 1 << 20), "1M^, 2M x3");
        assert_eq!(summary(&[], 5), "-");
    }
}
