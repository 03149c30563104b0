//! `cargo xtask bench build`: what the agent adds to building a C project with
//! `make -j2`, in the root group and in one three levels deep: the table that came
//! with the kernel's own patch. Instructions of the whole build, the agent's own
//! among them: one CPU, an instruction a nanosecond (see `charge`).

mod subject;

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use self::subject::{Builder, Cost};
use super::{Scope, register};
use crate::harness::agent::{Agent, until};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::report::{bars, rounded, row, say};

/// Thresholds lie above all that a build reaches, this far apart.
const OUT_OF_REACH: u64 = 1 << 30;
const APART: u64 = 64 << 10;
const MANY: u64 = 10_000;
/// Groups of a host where each is watched.
const GROUPS: u64 = 200;
/// The project's aim, in percent.
const AIM: f64 = 0.1;

/// Files of zlib, without its four largest: an emulated build has to end. Small files
/// make page faults a larger part of a build, which is against us.
const FILES: [&str; 11] = [
    "compress.o",
    "adler32.o",
    "crc32.o",
    "gzclose.o",
    "gzlib.o",
    "gzread.o",
    "gzwrite.o",
    "inffast.o",
    "inftrees.o",
    "uncompr.o",
    "zutil.o",
];

const WITHOUT: &str = "without agent";
const AGAIN: &str = "without agent again";

/// A group in which is built, and its rows.
struct Place {
    title: &'static str,
    builder: Builder,
    rows: Vec<Row>,
}

/// One condition of the measurement.
struct Row {
    name: &'static str,
    cost: Cost,
    /// The agent itself on the CPU, in nanoseconds, that is instructions.
    agent: Option<u64>,
    runs: Option<Runs>,
}

/// Runs of the agent's programs in one build, and instructions in them.
struct Runs {
    count: u64,
    instructions: u64,
}

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let (files, many, groups) = (scope.of(&FILES[..], &FILES[..1]), scope.of(MANY, 10), scope.of(GROUPS, 3));
    let host = Group::root()?;
    let top = Group::new("bench")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let mut in_leaf = Place::new("build in a group", Builder::start(Some(&leaf), files)?);
    let mut in_root = Place::new("build in the root group", Builder::start(None, files)?);

    say!("building {} files in {} and in the root group", files.len(), leaf.path.display());
    small_pages()?;
    in_root.builder.settle()?;
    in_leaf.measure(WITHOUT, None)?;
    in_root.measure(WITHOUT, None)?;
    let agent = Agent::start(&[])?;
    in_leaf.measure("no threshold", Some(&agent))?;
    in_leaf.count_runs(&agent)?;
    ensure!(in_leaf.runs() > 0, "the programs did not run");
    // In the root group the kernel charges for nothing, so there they never run.
    in_root.measure("no threshold", Some(&agent))?;

    let waiter = Waiter::new()?;
    add(&waiter, &leaf, 0..1)?;
    in_leaf.measure("1 threshold", Some(&agent))?;
    add(&waiter, &leaf, 1..many)?;
    in_leaf.measure("10,000 thresholds", Some(&agent))?;
    in_root.measure("10,000 on another group", Some(&agent))?;
    let_go(waiter, &agent)?;

    let waiter = Waiter::new()?;
    let others: Vec<_> =
        (0..groups).map(|number| middle.child(&format!("other{number}"))).collect::<Result<_>>()?;
    for group in others.iter().chain([&leaf]) {
        add(&waiter, group, 0..1)?;
    }
    in_leaf.measure("200 groups, 1 on each", Some(&agent))?;
    in_root.measure("200 groups, 1 on each", Some(&agent))?;
    let_go(waiter, &agent)?;
    drop(others);

    // What v2 has no counter for is read by the agent, now and then.
    let waiter = Waiter::new()?;
    add(&waiter, &host, 0..1)?;
    in_root.measure("1 on the root, sampled", Some(&agent))?;
    add(&waiter, &host, 1..many)?;
    in_root.measure("10,000 on the root, sampled", Some(&agent))?;
    let signals = agent.status()?.signals;
    ensure!(signals == 0, "{signals} signals, and no threshold was to be crossed");
    agent.end(Signal::SIGTERM)?;
    in_leaf.measure(AGAIN, None)?;
    in_root.measure(AGAIN, None)?;
    in_leaf.report(scope);
    in_root.report(scope);
    Ok(())
}

/// A huge page more or less, as free memory happens to lie, is 0.05 % of a build. Without
/// them more is charged, which is against us.
fn small_pages() -> Result<()> {
    let switch = "/sys/kernel/mm/transparent_hugepage/enabled";
    fs::write(switch, "never").with_context(|| format!("cannot write {switch}"))
}

/// Closes an eventfd and waits until the agent has seen that no other process holds it.
fn let_go(waiter: Waiter, agent: &Agent) -> Result<()> {
    drop(waiter);
    until("the agent has let go of the eventfd", || Ok(agent.status()?.registrations == 0))
}

impl Place {
    fn new(title: &'static str, builder: Builder) -> Self {
        Self { title, builder, rows: Vec::new() }
    }

    fn measure(&mut self, name: &'static str, agent: Option<&Agent>) -> Result<()> {
        // The host takes a long silence for a hang.
        say!("{}, {name}", self.title);
        let before = agent.map(Agent::on_cpu).transpose()?;
        let cost = self.builder.build()?;
        say!("    {:.1} M instructions", cost.instructions as f64 / 1e6);
        let after = agent.map(Agent::on_cpu).transpose()?;
        let agent = after.zip(before).map(|(after, before)| after - before);
        self.rows.push(Row { name, cost, agent, runs: None });
        Ok(())
    }

    /// Builds once more under the last condition, while the kernel counts: that
    /// costs, too.
    fn count_runs(&mut self, agent: &Agent) -> Result<()> {
        let switch = "/proc/sys/kernel/bpf_stats_enabled";
        let write = |text| fs::write(switch, text).with_context(|| format!("cannot write {switch}"));
        write("1")?;
        let before = agent.status()?;
        self.builder.build()?;
        let after = agent.status()?;
        write("0")?;
        let (count, instructions) = (after.runs - before.runs, after.run_ns - before.run_ns);
        if let Some(row) = self.rows.last_mut() {
            row.runs = Some(Runs { count, instructions });
        }
        Ok(())
    }

    fn runs(&self) -> u64 {
        self.rows.iter().filter_map(|row| row.runs.as_ref()).map(|runs| runs.count).sum()
    }

    /// Reports each row; what it adds is measured against the mean of the first and the last.
    fn report(&self, scope: Scope) {
        let of = |row: Option<&Row>| row.map_or(0.0, |row| row.cost.instructions as f64);
        let (first, last) = (of(self.rows.first()), of(self.rows.last()));
        let mut worst = f64::MIN;
        let mut heights = Vec::new();
        for (at, Row { name, cost, agent, runs }) in self.rows.iter().enumerate() {
            let mut columns = vec![("M instructions", rounded(cost.instructions as f64 / 1e6, 2))];
            if at > 0 {
                let with_agent = *name != AGAIN;
                let base = if with_agent { f64::midpoint(first, last) } else { first };
                let percent = 100.0 * (cost.instructions as f64 - base) / base;
                columns.push(("added %", rounded(percent, 3)));
                if with_agent {
                    worst = worst.max(percent);
                    heights.push((*name, percent));
                }
            }
            columns.push(("page faults", cost.faults.into()));
            if let Some(agent) = agent {
                columns.push(("agent itself %", rounded(100.0 * *agent as f64 / first, 4)));
            }
            if let Some(Runs { count, instructions }) = runs {
                columns.push(("hook runs", (*count).into()));
                columns.push(("in hooks %", rounded(100.0 * *instructions as f64 / first, 4)));
            }
            row(self.title, name, &columns);
        }
        bars(&format!("Added to a {}", self.title), "%", &heights);
        if scope == Scope::Once {
            return;
        }
        let verdict = if worst <= AIM { "within" } else { "above" };
        say!("{}: {worst:+.3} % at most, {verdict} the aim of {AIM} %", self.title);
    }
}

fn add(waiter: &Waiter, group: &Group, numbers: Range<u64>) -> Result<()> {
    register::all(waiter, group, numbers.map(|number| OUT_OF_REACH + number * APART))
}
