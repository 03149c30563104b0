//! `cargo xtask bench sweep`: what a sweep and a list cost while many eventfds are
//! registered, of which the references are counted. The host boots us with one CPU
//! and icount: a nanosecond is an instruction.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Scope, register};
use crate::harness::agent::{Agent, until};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::process;
use crate::harness::report::{rounded, row, say};

const SWEEP: &str = "instructions of the agent, by registered eventfds";

/// Registered between two words of progress.
const AT_ONCE: usize = 5000;

/// Out of reach of all that is charged.
const THRESHOLD: u64 = 1 << 40;

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let counts = scope.of([1, 10_000, 100_000], [1, 50, 100]);
    process::allow_descriptors(100_000)?;
    let group = Group::new("swept")?;
    let agent = Agent::start(&[])?;
    let mut waiters: Vec<Waiter> = Vec::new();
    for count in counts {
        let more = (waiters.len()..count).map(|_| Waiter::new()).collect::<Result<Vec<_>>>()?;
        for some in more.chunks(AT_ONCE) {
            register::each(some, &group, THRESHOLD)?;
            say!("{} more eventfds are registered, of {count}", some.len());
        }
        waiters.extend(more);
        let mut columns = vec![("a sweep", rounded(sweeps(&agent, scope.of(20, 2))?, 0))];
        let before = agent.on_cpu()?;
        let registrations = agent.status()?.registrations;
        ensure!(registrations == count as u64, "{registrations} registrations");
        columns.push(("a list", rounded((agent.on_cpu()? - before) as f64, 0)));
        row(SWEEP, &format!("{count}"), &columns);
    }
    let (count, before) = (waiters.len(), agent.on_cpu()?);
    drop(waiters);
    until("all are closed", || Ok(agent.status()?.registrations == 0))?;
    let each = (agent.on_cpu()? - before) as f64 / count as f64;
    row(SWEEP, "for each that is closed", &[("", rounded(each, 0))]);
    Ok(())
}

/// Measures what the agent does in a second, in which there is one sweep.
fn sweeps(agent: &Agent, seconds: u64) -> Result<f64> {
    // What it has begun is to end first.
    sleep(Duration::from_secs(2));
    let before = agent.on_cpu()?;
    sleep(Duration::from_secs(seconds));
    Ok((agent.on_cpu()? - before) as f64 / seconds as f64)
}
