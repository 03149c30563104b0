//! Listeners by the thousand with an eventfd each: what one costs as they come, and as they
//! all end at once. A square shows as a cost that doubles with their number.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::bench::Scope;
use crate::harness::agent::{Agent, until};
use crate::harness::attack;
use crate::harness::report::{rounded, row, say};

pub(super) fn run(scope: Scope) -> Result<()> {
    let agent = Agent::start(&["--socket-mode", "0666"])?;
    for count in scope.of(&[500, 1_000, 2_000, 4_000][..], &[50]) {
        say!("{count} OOM listeners with an eventfd each, and their end");
        let start = agent.on_cpu()?;
        let listeners = attack::listeners(*count)?;
        let there = agent.on_cpu()?;
        listeners.stop()?;
        until("the agent has let go of all", || Ok(agent.status()?.registrations == 0))
            .with_context(|| format!("{count} listeners"))?;
        let gone = agent.on_cpu()?;
        let each = |from: u64, to: u64| rounded((to - from) as f64 / 1e3 / *count as f64, 1);
        row(
            "OOM listeners with an eventfd each on one group, the agent's processor time, us",
            &format!("{count} listeners"),
            &[("to register one", each(start, there)), ("to end one", each(there, gone))],
        );
    }
    agent.end(Signal::SIGTERM).map(drop)
}
