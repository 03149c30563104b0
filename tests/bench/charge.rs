//! `cargo xtask bench charge`: what the agent adds to work that charges memory, in
//! instructions: the host boots us with QEMU's icount and one CPU, so that an
//! instruction is a nanosecond of guest time.
//!
//! With `--backend kprobe` a call runs two programs, one at its entry and one at its return.
//!
//! Such a count does not show caches: an instruction that misses one counts as much as one
//! that does not.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context, Result, bail, ensure};
use monitor_client::{AdminConnection, CONTROL_SOCKET};
use nix::sys::signal::Signal;

use super::Scope;
use super::subject::{Subject, Work};
use super::{programs, register};
use crate::harness::agent::{Agent, until};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::report::{bars, line, rounded, row, say};

/// Thresholds lie above all that the measured process reaches, this far apart.
const OUT_OF_REACH: u64 = 1 << 30;
const APART: u64 = 64 << 10;
/// The project's aim, in percent of a fault three levels deep.
const AIM: f64 = 0.5;

/// One kind of work, so deep in the hierarchy.
struct Task {
    title: &'static str,
    work: Work,
    /// Index of the process that does it.
    at: usize,
}

const DEPTHS: [usize; 3] = [1, 3, 10];

const fn task(title: &'static str, work: Work, at: usize) -> Task {
    Task { title, work, at }
}

const TASKS: [Task; 7] = [
    task("page fault, 1 level deep", Work::Batch, 0),
    task("page fault, 3 levels deep", Work::Batch, 1),
    task("page fault, 10 levels deep", Work::Batch, 2),
    task("page fault, given back page by page", Work::Single, 1),
    task("page written to a file", Work::File, 1),
    task("page sent over TCP", Work::Socket, 1),
    task("fork and exit", Work::Fork, 1),
];
/// The one that the aim is about.
const JUDGED: usize = 1;

/// All tasks under one condition: instructions for each unit.
struct Stage {
    name: String,
    costs: Vec<f64>,
}

/// Runs of the agent's programs for each unit of a task, and instructions in one.
struct Runs {
    per_unit: f64,
    instructions: f64,
}

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    // v2 wants processes in leaves only: a chain, and a leaf at each depth.
    let mut chain = vec![Group::new("bench")?];
    while chain.len() + 1 < DEPTHS[2] {
        let next = chain[chain.len() - 1].child("g")?;
        chain.push(next);
    }
    let leaf = |depth: usize| match depth {
        1 => Group::new("leaf"),
        depth => chain[depth - 2].child("leaf"),
    };
    let leaves = DEPTHS.iter().map(|depth| leaf(*depth)).collect::<Result<Vec<_>>>()?;
    let sibling = chain[DEPTHS[JUDGED] - 2].child("sibling")?;
    let mut subjects = leaves.iter().map(Subject::start).collect::<Result<Vec<_>>>()?;
    let subjects = &mut subjects;

    settle(&mut subjects[JUDGED])?;
    let mut stages = vec![Stage::measure("without the agent", subjects)?];
    let agent = Agent::start(&[])?;
    stages.push(Stage::measure("no threshold anywhere", subjects)?);
    let runs = TASKS.iter().map(|task| Runs::count(subjects, task, &agent)).collect::<Result<Vec<_>>>()?;
    let waiter = Waiter::new()?;
    let mut before = 0;
    for count in scope.of([1, 100, register::MANY], [1, 2, 3]) {
        for (at, group) in leaves.iter().enumerate() {
            // The many are on one group: it is their number that is looked at.
            if count <= 100 || at == JUDGED {
                add(&waiter, group, before..count)?;
            }
        }
        before = count;
        stages.push(Stage::measure(&format!("{} in band", thresholds(count)), subjects)?);
    }
    drop(waiter);
    until("the agent has let go of the eventfd", || Ok(agent.status()?.registrations == 0))?;
    let waiter = Waiter::new()?;
    add(&waiter, &sibling, 0..scope.of(10_000, 3))?;
    stages.push(Stage::measure("10,000 thresholds on a sibling", subjects)?);
    let status = agent.status()?;
    ensure!(status.signals == 0, "{} signals, and no threshold was to be crossed", status.signals);
    agent.end(Signal::SIGTERM)?;
    drop(waiter);
    let boxed = Agent::start(&["--black-box", "--black-box-dir=/run/bench-box"])?;
    for group in leaves.iter().chain(&chain) {
        until("the group is recorded", || is_recorded(group))?;
    }
    stages.push(Stage::measure("recorded by the black box", subjects)?);
    boxed.end(Signal::SIGTERM)?;
    let boxed = Agent::start(&["--black-box=/bench/g/sibling", "--black-box-dir=/run/bench-box"])?;
    until("the sibling is recorded", || is_recorded(&sibling))?;
    stages.push(Stage::measure("a sibling is recorded by the black box", subjects)?);
    boxed.end(Signal::SIGTERM)?;
    stages.push(Stage::measure("without the agent again", subjects)?);
    report(&stages, &runs);
    programs::report()
}

fn is_recorded(group: &Group) -> Result<bool> {
    let connection = AdminConnection::connect(CONTROL_SOCKET.as_ref())?;
    Ok(connection.record(fs::metadata(&group.path)?.ino()).is_ok())
}

fn thresholds(count: u64) -> String {
    match count {
        1 => "1 threshold".to_owned(),
        1_000_000 => "1,000,000 thresholds".to_owned(),
        count => format!("{count} thresholds"),
    }
}

fn add(waiter: &Waiter, group: &Group, numbers: Range<u64>) -> Result<()> {
    let thresholds = numbers.map(|number| OUT_OF_REACH + number * APART);
    register::all(waiter, group, thresholds)
}

/// Waits until nothing else runs on the only CPU: what the kernel began at boot
/// goes on for seconds.
pub(super) fn settle(subject: &mut Subject) -> Result<()> {
    let mut before = f64::MAX;
    for _ in 0..100 {
        let cost = subject.measure(Work::Batch)?;
        if (cost - before).abs() <= before / 1000.0 {
            return Ok(());
        }
        before = cost;
    }
    bail!("the machine does not come to rest: something else runs on its CPU")
}

impl Stage {
    fn measure(name: &str, subjects: &mut [Subject]) -> Result<Self> {
        say!("{name}");
        let costs = TASKS.iter().map(|task| subjects[task.at].measure(task.work));
        Ok(Self { name: name.to_owned(), costs: costs.collect::<Result<_>>()? })
    }
}

impl Runs {
    /// Works once more, while the kernel counts: that costs, too.
    fn count(subjects: &mut [Subject], task: &Task, agent: &Agent) -> Result<Self> {
        let switch = "/proc/sys/kernel/bpf_stats_enabled";
        let write = |text| fs::write(switch, text).with_context(|| format!("cannot write {switch}"));
        write("1")?;
        let before = agent.status()?;
        subjects[task.at].measure(task.work)?;
        let after = agent.status()?;
        write("0")?;
        let runs = (after.runs - before.runs) as f64;
        ensure!(runs > 0.0, "{}: the programs did not run", task.title);
        Ok(Self {
            per_unit: runs / task.work.units(),
            instructions: (after.run_ns - before.run_ns) as f64 / runs,
        })
    }
}

/// Reports each stage; what it adds is measured against the mean of the first and the last
/// one. The last row shows how far these two lie apart.
fn report(stages: &[Stage], runs: &[Runs]) {
    for (at, task) in TASKS.iter().enumerate() {
        let (first, last) = (stages[0].costs[at], stages[stages.len() - 1].costs[at]);
        let base = f64::midpoint(first, last);
        let mut heights = Vec::new();
        for (number, stage) in stages.iter().enumerate() {
            let cost = stage.costs[at];
            let mut columns = vec![("instructions", rounded(cost, 1))];
            if number > 0 {
                let with = number + 1 < stages.len();
                let added = cost - if with { base } else { first };
                let percent = 100.0 * added / base;
                columns.extend([("added", rounded(added, 1)), ("%", rounded(percent, 3))]);
                if with {
                    heights.push((stage.name.as_str(), percent));
                }
                if number == 1 {
                    columns.push(("runs per 1000", rounded(1000.0 * runs[at].per_unit, 0)));
                    columns.push(("in a run", rounded(runs[at].instructions, 0)));
                    columns.push(("all in", rounded(added / runs[at].per_unit, 0)));
                }
            }
            row(task.title, &stage.name, &columns);
        }
        let worst = heights.iter().fold(f64::MIN, |worst, (_, percent)| worst.max(*percent));
        if at == JUDGED {
            let verdict = if worst <= AIM { "within" } else { "above" };
            say!("{}: {worst:+.3} % at most, {verdict} the aim of {AIM} %", task.title);
            bars("Added to a page fault, 3 levels deep", "%", &heights);
        } else {
            say!("{}: {worst:+.3} % at most", task.title);
        }
    }
    let tasks: Vec<_> = TASKS
        .iter()
        .enumerate()
        .map(|(at, task)| {
            let base = f64::midpoint(stages[0].costs[at], stages[stages.len() - 1].costs[at]);
            (task.title, 100.0 * (stages[2].costs[at] - base) / base)
        })
        .collect();
    bars("Added to each kind of work, 1 threshold", "%", &tasks);
    // The first tasks are page faults, one for each depth.
    let added = DEPTHS.iter().enumerate().map(|(at, depth)| {
        let base = f64::midpoint(stages[0].costs[at], stages[stages.len() - 1].costs[at]);
        (*depth as f64, stages[2].costs[at] - base)
    });
    let axes = ("levels above the process", "instructions a fault");
    line("Added to a page fault by depth", axes, "1 threshold", &added.collect::<Vec<_>>());
}
