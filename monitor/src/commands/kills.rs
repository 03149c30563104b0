//! The command `memcg-monitor kills`: the last processes that the OOM killer killed.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use memcg_monitor::printable;
use monitor_client::wire::EventRow;

use crate::{
    cli::{Output, Status},
    commands::{
        connect::{admin, explained},
        fold::{columns, folded},
        timed_out, victim,
    },
};

pub fn run(options: &Status) -> Result<ExitCode> {
    let kills = admin(&options.control_socket, Some(options.timeout)).and_then(|control| control.kills());
    let (kills, status) = match kills {
        Ok(kills) => kills,
        Err(error) if error.is_timeout() => return Ok(timed_out(Some(options.timeout))),
        Err(error) => return Err(explained(error, "--control-socket")),
    };
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => {
            let columns = columns();
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            for kill in &kills {
                writeln!(out, "{}", folded("", &line(kill, now), 2, columns))?;
            }
            if kills.len() as u64 != status.kills {
                let text = format!("{} killed since the agent started; these are the last", status.kills);
                writeln!(out, "{}", folded("", &text, 2, columns))?;
            }
        }
        Output::Json => {
            for kill in &kills {
                serde_json::to_writer(&mut out, kill).context("cannot write")?;
                writeln!(out)?;
            }
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn line(kill: &EventRow, now: f64) -> String {
    let text = format!("{} ago: {}", age(now - kill.time), victim::of_kill(kill, true));
    printable(&text).into_owned()
}

/// A time that has passed, in its biggest unit.
fn age(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use monitor_client::wire::{EventRow, VictimRow};

    use super::{age, line};

    #[test]
    fn a_kill_is_a_line_that_drives_no_terminal() {
        let victim =
            VictimRow { comm: Some("\u{1b}[2J".into()), cgroup: "/a\nb".into(), ..VictimRow::default() };
        let kill = EventRow { time: 100.0, victim: Some(victim), ..EventRow::default() };
        assert_eq!(line(&kill, 161.5), "1 min ago: killed \\x1b[2J of /a\\nb");
        assert_eq!([59.9, 7200.0, 200_000.0, -1.0].map(age), ["59 s", "2 h", "2 d", "0 s"]);
    }
}
