//! One registration at a time, by each frontend and by the kernel itself.

use anyhow::{Context, Result};

use super::cost::Cost;
use super::frontend::{Client, Frontend, Opened};
use crate::bench::Scope;
use crate::harness::agent::{Agent, until};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::report::{bars, rounded, row, say};

const TABLE: &str = "one registration, instructions";
const FIRST: &str = "on a group of its own";
const AGAIN: &str = "the same eventfd again";

/// Registrations that a figure is the mean of.
const COUNT: u64 = 100;
/// Thresholds on a crowded group: of ours, and of the kernel's, which sorts all of
/// them for each that comes, so that more would take too long.
const MANY: u64 = 10_000;
const MANY_OF_THE_KERNEL: u64 = 2_000;

pub(super) fn run(scope: Scope, hierarchy: Hierarchy, agent: &Agent) -> Result<()> {
    let mut frontends = Frontend::OURS.to_vec();
    if hierarchy == Hierarchy::V1 {
        frontends.insert(0, Frontend::Kernel);
    }
    let mut again = Vec::new();
    for frontend in frontends {
        say!("one at a time: {}", frontend.name());
        again.push((frontend.name(), by(frontend, scope, hierarchy, agent)?.all));
        until("the agent has let go of all", || Ok(agent.status()?.registrations == 0))?;
    }
    bars("one more registration of an eventfd", "instructions of all that ran", &again);
    Ok(())
}

/// The cost of one more on the same eventfd.
fn by(frontend: Frontend, scope: Scope, hierarchy: Hierarchy, agent: &Agent) -> Result<Cost> {
    let count = scope.of(COUNT, 5);
    let client = Client::new(frontend)?;
    let top = Group::new("one")?;
    let groups = (0..count).map(|number| top.child(&number.to_string())).collect::<Result<Vec<_>>>()?;
    let opened =
        groups.iter().map(|group| client.open(group, hierarchy.root())).collect::<Result<Vec<Opened>>>()?;
    let waiters = (0..count).map(|_| Waiter::new()).collect::<Result<Vec<_>>>()?;
    let agent = (frontend != Frontend::Kernel).then_some(agent);
    let first = Cost::of(agent, count, || {
        waiters.iter().zip(&opened).try_for_each(|(waiter, group)| client.register(waiter, group, 0))
    })?;
    report_cost(frontend, FIRST, first);
    let (waiter, group) = (&waiters[0], opened.first().context("no group")?);
    let again =
        Cost::of(agent, count, || (1..=count).try_for_each(|number| client.register(waiter, group, number)))?;
    report_cost(frontend, AGAIN, again);
    let many = scope.of(if frontend == Frontend::Kernel { MANY_OF_THE_KERNEL } else { MANY }, 20);
    (count..many).try_for_each(|number| client.register(waiter, group, number))?;
    let few = if frontend == Frontend::Kernel { count.min(20) } else { count };
    let crowded = Cost::of(agent, few, || {
        (many..many + few).try_for_each(|number| client.register(waiter, group, number))
    })?;
    report_cost(frontend, &format!("with {many} on the group"), crowded);
    Ok(again)
}

fn report_cost(frontend: Frontend, what: &str, cost: Cost) {
    let columns = [
        ("client", rounded(cost.client, 0)),
        ("agent", rounded(cost.agent, 0)),
        ("whole CPU", rounded(cost.all, 0)),
        ("until done, us", rounded(cost.until_done / 1000.0, 1)),
    ];
    row(TABLE, &format!("{}: {what}", frontend.name()), &columns);
}
