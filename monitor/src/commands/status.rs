//! The command `memcg-monitor status`: the agent's own state, for probes. It costs the agent
//! the same however many groups and registrations there are.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
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
    writeln!(out, "{:<34} {:>12}", "backend", status.backend)?;
    writeln!(out, "{:<34} {:>12}", "thresholds", status.precision)?;
    let mut line = |what: &str, count: u64| writeln!(out, "{what:<34} {count:>12}");
    line("registrations", status.registrations)?;
    line("signals given", status.signals)?;
    line("signals that could not be given", status.failed_signals)?;
    line("processes killed by the OOM killer", status.kills)?;
    line("re-syncs after a loss", status.resyncs)?;
    line("calls skipped by the kernel", status.skipped)?;
    line("agents before, taken over from", status.restarts)?;
    for (name, count) in status.losses.iter().filter(|(_, count)| **count > 0) {
        line(name, *count)?;
    }
    Ok(())
}
