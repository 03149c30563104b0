//! The command `memcg-monitor status`: the agent's own state, for probes. It costs the agent
//! the same however many groups and registrations there are.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use memcg_monitor::printable;
use monitor_client::wire::AgentStatus;

use crate::{
    cli::{Output, Status},
    commands::{
        connect::{admin, explained},
        timed_out,
    },
};

pub fn run(options: &Status) -> Result<ExitCode> {
    let status = admin(&options.control_socket, Some(options.timeout)).and_then(|control| control.status());
    let status = match status {
        Ok(status) => status,
        Err(error) if error.is_timeout() => return Ok(timed_out(Some(options.timeout))),
        Err(error) => return Err(explained(error, "--control-socket")),
    };
    let mut out = io::stdout().lock();
    match options.output {
        Output::Text => print(&mut out, &status)?,
        Output::Json => {
            serde_json::to_writer(&mut out, &status).context("cannot write")?;
            writeln!(out)?;
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn print(out: &mut impl io::Write, status: &AgentStatus) -> io::Result<()> {
    writeln!(out, "{:<34} {:>12}", "backend", printable(&status.backend))?;
    writeln!(out, "{:<34} {:>12}", "thresholds", printable(&status.precision))?;
    let mut line = |what: &str, count: u64| writeln!(out, "{what:<34} {count:>12}");
    line("registrations", status.registrations)?;
    line("signals given", status.signals)?;
    line("signals that could not be given", status.failed_signals)?;
    line("processes killed by the OOM killer", status.kills)?;
    line("re-syncs after a loss", status.resyncs)?;
    line("calls skipped by the kernel", status.skipped)?;
    line("agents before, taken over from", status.restarts)?;
    for (name, count) in status.losses.iter().filter(|(_, count)| **count > 0) {
        line(&printable(name), *count)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{AgentStatus, print};

    #[test]
    fn nothing_that_an_agent_says_drives_the_terminal() {
        let hostile = || "\u{1b}[2J\n".to_owned();
        let status = AgentStatus {
            backend: hostile(),
            precision: hostile(),
            losses: [(hostile(), 1)].into(),
            ..AgentStatus::default()
        };
        let mut out = Vec::new();
        print(&mut out, &status).expect("memory");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text.matches("\\x1b[2J\\n").count(), 3, "{text}");
        assert!(!text.contains('\u{1b}') && text.lines().count() == 10, "{text}");
    }
}
