//! Groups, eventfds and thresholds by the thousand: how fast they come, what the agent
//! holds for each, what it does while nothing happens, and what is left when they go.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::cost::{Cost, Held};
use super::frontend::{Client, Frontend, Opened};
use crate::bench::Scope;
use crate::bench::groups::Groups;
use crate::bench::subject::{Subject, Work};
use crate::harness::agent::{Agent, until};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::report::{line, rounded, row, say};

const TABLE: &str = "the agent, by what it holds";
const START: &str = "start-up";
const IDLE: &str = "60 s in which nothing is crossed";

/// Thresholds of an eventfd.
const EACH: u64 = 10;
const STEPS: u64 = 10;

pub(super) fn run(scope: Scope, root: &Path) -> Result<()> {
    let (groups, files) = scope.of((10_000, 10_000), (20, 40));
    let groups = Groups::make(groups)?;
    let home = Group::new("subject")?;
    let mut subject = Subject::start(&home)?;
    let (empty, agent) = start(&format!("{} groups", groups.leaves.len()))?;
    idle("no registrations", &agent)?;
    let fault = subject.measure(Work::Batch)?;

    let client = Client::new(Frontend::Numbers)?;
    let opened = groups.leaves.iter().map(|group| client.open(group, root));
    let opened = opened.collect::<Result<Vec<_>>>()?;
    // One threshold on each group: what a group costs. The first few, with room that
    // is made once, do not count.
    let one = Waiter::new()?;
    let (few, others) = opened.split_at(opened.len() / 10);
    let each_one = |groups: &[Opened]| {
        register("one on each group", &agent, groups.len() as u64, || {
            groups.iter().try_for_each(|group| client.register(&one, group, 1))
        })
    };
    each_one(few)?;
    let first = Held::by(&agent)?;
    each_one(others)?;
    let per_group = Held::by(&agent)?;
    let waiters = fill(&agent, &client, &opened, files)?;
    let full = Held::by(&agent)?;
    let registrations = agent.status()?.registrations;
    let thresholds = registrations - opened.len() as u64;
    let each = |from: Held, to: Held, count: u64| {
        rounded((to.anonymous as f64 - from.anonymous as f64) / count as f64, 0)
    };
    row(
        TABLE,
        "bytes for each group, with one threshold",
        &[("", each(first, per_group, others.len() as u64))],
    );
    row(
        TABLE,
        "bytes for each further threshold, eventfds included",
        &[("", each(per_group, full, thresholds))],
    );
    row(TABLE, "descriptors", &[("", full.descriptors.into())]);
    row(TABLE, "MiB resident", &[("", rounded(full.resident as f64 / f64::from(1 << 20), 1))]);
    let with = subject.measure(Work::Batch)?;
    let added = 100.0 * (with - fault) / fault;
    row(TABLE, "a fault, against no registrations, %", &[("", rounded(added, 2))]);
    idle(&format!("{registrations} registrations"), &agent)?;

    let start = Held::by(&agent)?.ran;
    drop((waiters, one));
    until("the agent has let go of all", || Ok(agent.status()?.registrations == 0))?;
    let after = Held::by(&agent)?;
    row(
        TABLE,
        "instructions for each registration that ends",
        &[("", rounded((after.ran - start) as f64 / registrations as f64, 0))],
    );
    row(
        TABLE,
        "MiB resident when all have gone",
        &[("", rounded(after.resident as f64 / f64::from(1 << 20), 1))],
    );
    row(
        TABLE,
        "the same before the first came",
        &[("", rounded(empty.resident as f64 / f64::from(1 << 20), 1))],
    );
    drop(agent);
    Ok(())
}

/// Starts the agent, and says how long it took; what it holds then.
pub(super) fn start(what: &str) -> Result<(Held, Agent)> {
    let start = Instant::now();
    let agent = Agent::start(&[])?;
    let ready = start.elapsed();
    let held = Held::by(&agent)?;
    row(
        START,
        what,
        &[
            ("until ready, ms", rounded(ready.as_secs_f64() * 1000.0, 0)),
            ("million instructions", rounded(held.ran as f64 / 1e6, 0)),
            ("MiB resident", rounded(held.resident as f64 / f64::from(1 << 20), 1)),
            ("of them its own", rounded(held.anonymous as f64 / f64::from(1 << 20), 1)),
            ("descriptors", held.descriptors.into()),
        ],
    );
    Ok((held, agent))
}

/// Measures what the agent does while nothing happens.
fn idle(what: &str, agent: &Agent) -> Result<()> {
    // What it has begun is to end first.
    sleep(Duration::from_secs(2));
    let before = Held::by(agent)?;
    sleep(Duration::from_secs(60));
    let after = Held::by(agent)?;
    let (woken, ran) = (after.sleeps - before.sleeps, after.ran - before.ran);
    row(IDLE, what, &[("woken", woken.into()), ("instructions a second", rounded(ran as f64 / 60.0, 0))]);
    Ok(())
}

fn register(what: &str, agent: &Agent, count: u64, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let cost = Cost::of(Some(agent), count, work)?;
    say!(
        "{what}: {count} registrations, {:.0} a second, {:.0} instructions of the agent",
        1e9 / cost.until_done,
        cost.agent
    );
    Ok(cost)
}

/// Registers on all groups in turn, an eventfd after the other.
fn fill(agent: &Agent, client: &Client, opened: &[Opened], files: u64) -> Result<Vec<Waiter>> {
    let (mut rate, mut resident) = (Vec::new(), Vec::new());
    let mut waiters = Vec::new();
    for step in 0..STEPS {
        let count = files / STEPS * EACH;
        let cost = register(&format!("step {}", step + 1), agent, count, || {
            for _ in 0..files / STEPS {
                let waiter = Waiter::new()?;
                for number in 0..EACH {
                    let at = (waiters.len() as u64 * EACH + number) % opened.len() as u64;
                    client.register(&waiter, &opened[usize::try_from(at)?], number + 2)?;
                }
                waiters.push(waiter);
            }
            Ok(())
        })?;
        let present = (opened.len() as u64 + (step + 1) * count) as f64;
        rate.push((present, 1e9 / cost.until_done));
        resident.push((present, Held::by(agent)?.resident as f64 / f64::from(1 << 20)));
    }
    line(
        "registrations a second",
        ("thresholds present", "at 10^9 instructions a second"),
        "socket, numbers",
        &rate,
    );
    line(
        "resident memory of the agent",
        ("thresholds present", "MiB"),
        &format!("{} groups", opened.len()),
        &resident,
    );
    Ok(waiters)
}

/// Groups that come, are registered on, and go, 1,000 a second.
pub(super) fn churn(scope: Scope, root: &Path, agent: &Agent) -> Result<()> {
    const BATCH: u64 = 100;
    // More than there are slots, so that each is used again.
    let (first, batches) = scope.of((10, 170), (1, 1));
    let top = Group::new("churn")?;
    let client = Client::new(Frontend::Numbers)?;
    let waiter = Waiter::new()?;
    let round = |batches: u64| -> Result<Duration> {
        let start = Instant::now();
        for batch in 0..batches {
            for number in 0..BATCH {
                let group = top.child(&number.to_string())?;
                client.register(&waiter, &client.open(&group, root)?, 1)?;
                group.remove()?;
            }
            let due = start + Duration::from_millis(100 * (batch + 1));
            sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(start.elapsed())
    };
    round(first)?;
    agent.settle()?;
    let before = Held::by(agent)?;
    let took = round(batches)?;
    let count = BATCH * batches;
    until("every group that came has gone", || {
        let (rows, status) = agent.list()?;
        // One that has gone has no name any more.
        let below = format!("{}/", top.path.display());
        let is_left = |name: &str| name.starts_with('#') || name.starts_with(&below);
        Ok(status.registrations == 0 && !rows.iter().any(|row| is_left(&row.cgroup)))
    })?;
    let after = Held::by(agent)?;
    ensure!(waiter.take()? == count + BATCH * first, "each registration is signalled for its end, once");
    let lost: u64 = agent.status()?.losses.values().sum();
    ensure!(lost == 0, "{lost} losses: {:?}", agent.status()?.losses);
    let grown = 100.0 * (after.resident as f64 - before.resident as f64) / before.resident as f64;
    row(
        "groups that come and go",
        &format!("{count} groups"),
        &[
            ("a second", rounded(count as f64 / took.as_secs_f64(), 0)),
            (
                "instructions of the agent for each",
                rounded((after.ran - before.ran) as f64 / count as f64, 0),
            ),
            ("resident memory, %", rounded(grown, 2)),
        ],
    );
    Ok(())
}
