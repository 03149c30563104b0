//! The command `memcg-monitor status`: the agent's own state, for probes. It costs the agent
//! the same however many groups and registrations there are.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use monitor_client::{AdminConnection, wire::AgentStatus};

use crate::cli::{Output, Status};

/// The exit code after `--timeout`.
const TIMED_OUT: u8 = 3;

pub fn run(options: &Status) -> Result<ExitCode> {
    let status = AdminConnection::connect_within(&options.control_socket, options.timeout)
        .and_then(|control| control.status());
    let status = match status {
        Ok(status) => status,
        Err(error) if error.is_timeout() => {
            eprintln!("memcg-monitor: the agent has not answered within {} s", options.timeout.as_secs_f64());
            return Ok(ExitCode::from(TIMED_OUT));
        }
        Err(error) => return Err(error.into()),
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
    let mut line = |what: &str, count: u64| writeln!(out, "{what:<34} {count:>12}");
    line("registrations", status.registrations)?;
    line("signals given", status.signals)?;
    line("signals that could not be given", status.failed_signals)?;
    line("re-syncs after a loss", status.resyncs)?;
    line("calls skipped by the kernel", status.skipped)?;
    line("agents before, taken over from", status.restarts)?;
    for (name, count) in status.losses.iter().filter(|(_, count)| **count > 0) {
        line(name, *count)?;
    }
    Ok(())
}
