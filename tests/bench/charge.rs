//! `cargo xtask bench charge`: what the agent adds to a page fault, three groups
//! deep, in instructions: the host boots us with QEMU's icount and one CPU, so
//! that an instruction is a nanosecond of guest time.
//!
//! What such a count cannot tell: an instruction that misses a cache counts as
//! much as one that does not, and each turn of a `rep` instruction counts as one.
//! The latter flatters us where the kernel clears pages by `rep stosb`: 4096
//! instructions in each fault, on real hardware the time of one or two hundred.
//! Hence the column "% but clearing".

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{
    Scope,
    subject::{Cost, Subject, Work},
};
use crate::agent::{Agent, until};
use crate::client::Waiter;
use crate::group::Group;
use crate::init::Hierarchy;
use crate::report::{rounded, row, say};
use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::client::SOCKET;
use memcg_monitor::door::seqpacket::connect;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};

/// Thresholds lie above all that the measured process reaches, this far apart.
const OUT_OF_REACH: u64 = 1 << 30;
const APART: u64 = 64 << 10;
const MANY: u64 = 10_000;
/// What the project aims at, in percent.
const AIM: f64 = 0.5;

const WORKS: [(Work, &str); 2] =
    [(Work::Batch, "1 MiB touched, unmapped"), (Work::Single, "1 page touched, given back")];

/// All works under one condition.
struct Stage {
    name: &'static str,
    costs: Vec<Cost>,
    runs: Vec<Runs>,
}

/// Runs of the agent's programs.
#[derive(Clone, Copy)]
struct Runs {
    per_fault: f64,
    instructions: f64,
}

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let top = Group::new("bench")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let sibling = middle.child("sibling")?;
    let mut subject = Subject::start(&leaf)?;

    say!("measuring page faults in {}", leaf.path.display());
    let clearing = settle(&mut subject)?;
    let mut stages = vec![Stage::measure("without agent", &mut subject, None)?];
    let agent = Agent::start(&[])?;
    let mut with = |name, subject: &mut Subject| -> Result<()> {
        stages.push(Stage::measure(name, subject, Some(&agent))?);
        Ok(())
    };
    with("no threshold", &mut subject)?;
    let waiter = Waiter::new()?;
    register(&waiter, &leaf, 0..1)?;
    with("1 threshold", &mut subject)?;
    let many = scope.of(MANY, 10);
    register(&waiter, &leaf, 1..many)?;
    with("10,000 thresholds", &mut subject)?;
    drop(waiter);
    until("the agent has let go of the eventfd", || Ok(agent.status()?.registrations == 0))?;
    let waiter = Waiter::new()?;
    register(&waiter, &sibling, 0..many)?;
    with("10,000 on a sibling", &mut subject)?;
    let status = agent.status()?;
    ensure!(status.signals == 0, "{} signals, and no threshold was to be crossed", status.signals);
    agent.end(Signal::SIGTERM)?;
    stages.push(Stage::measure("without agent again", &mut subject, None)?);

    say!("clearing a page counts {clearing:.0} instructions of each fault");
    for (work, (_, title)) in WORKS.iter().enumerate() {
        report(title, work, &stages, clearing);
    }
    Ok(())
}

/// Waits until nothing else runs on the only CPU: what the kernel began at boot
/// goes on for seconds. Clearing a page enters no kernel, so that its cost is the
/// same each time then. Returns it.
fn settle(subject: &mut Subject) -> Result<f64> {
    let mut before = f64::MAX;
    for _ in 0..100 {
        let cost = subject.measure(Work::Clear)?.touch;
        if (cost - before).abs() <= before / 1000.0 {
            return Ok(cost);
        }
        before = cost;
    }
    bail!("the machine does not come to rest: something else runs on its CPU")
}

impl Stage {
    fn measure(name: &'static str, subject: &mut Subject, agent: Option<&Agent>) -> Result<Self> {
        say!("{name}");
        let mut stage = Self { name, costs: Vec::new(), runs: Vec::new() };
        for (work, _) in WORKS {
            stage.costs.push(subject.measure(work)?);
            if let Some(agent) = agent {
                stage.runs.push(Runs::count(subject, work, agent)?);
            }
        }
        Ok(stage)
    }
}

impl Runs {
    /// Works once more, while the kernel counts: that costs, too.
    fn count(subject: &mut Subject, work: Work, agent: &Agent) -> Result<Self> {
        let switch = "/proc/sys/kernel/bpf_stats_enabled";
        let write = |text| fs::write(switch, text).with_context(|| format!("cannot write {switch}"));
        write("1")?;
        let before = agent.status()?;
        subject.measure(work)?;
        let after = agent.status()?;
        write("0")?;
        let runs = (after.runs - before.runs) as f64;
        ensure!(runs > 0.0, "the programs did not run");
        Ok(Self {
            per_fault: runs / Subject::faults(),
            instructions: (after.run_ns - before.run_ns) as f64 / runs,
        })
    }
}

/// Registers one threshold for each number, over one connection.
fn register(waiter: &Waiter, group: &Group, numbers: std::ops::Range<u64>) -> Result<()> {
    let control = File::open(group.usage_file()).context("cannot open the control file")?;
    let connection = connect(Path::new(SOCKET))?;
    let mut answer = [0; 512];
    for number in numbers {
        let threshold = OUT_OF_REACH + number * APART;
        let line = format!("{} {} {threshold}", waiter.0.as_raw_fd(), control.as_raw_fd());
        send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::MSG_NOSIGNAL).context("send failed")?;
        let length = recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).context("recv failed")?;
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(answer == "0", "the agent refused {line:?}: {answer}");
    }
    Ok(())
}

/// The rows of one work. What a row adds is measured against the mean of the
/// first and the last stage; the last row shows how far these two lie apart.
fn report(title: &str, work: usize, stages: &[Stage], clearing: f64) {
    let sum = |stage: Option<&Stage>| stage.map_or(0.0, |stage| stage.costs[work].sum());
    let (first, last) = (sum(stages.first()), sum(stages.last()));
    let (mut worst, mut worst_but) = (f64::MIN, f64::MIN);
    for (at, stage) in stages.iter().enumerate() {
        let cost = stage.costs[work];
        let mut columns = Vec::new();
        if cost.unmap > 0.0 {
            columns.push(("touch", rounded(cost.touch, 2)));
            columns.push(("unmap", rounded(cost.unmap, 2)));
        }
        columns.push(("per fault", rounded(cost.sum(), 2)));
        if at > 0 {
            let base = if stage.runs.is_empty() { first } else { f64::midpoint(first, last) };
            let added = cost.sum() - base;
            columns.push(("added", rounded(added, 2)));
            let percent = 100.0 * added / base;
            let percent_but = 100.0 * added / (base - clearing);
            columns.push(("%", rounded(percent, 3)));
            columns.push(("% but clearing", rounded(percent_but, 3)));
            if let Some(runs) = stage.runs.get(work) {
                (worst, worst_but) = (worst.max(percent), worst_but.max(percent_but));
                columns.push(("runs per 1000", rounded(1000.0 * runs.per_fault, 1)));
                columns.push(("per run", rounded(runs.instructions, 1)));
                columns.push(("all in per run", rounded(added / runs.per_fault, 1)));
            }
        }
        row(title, stage.name, &columns);
    }
    let verdict = if worst <= AIM { "within" } else { "above" };
    say!("{title}: {worst:+.3} % at most ({worst_but:+.3} % but clearing), {verdict} the aim of {AIM} %");
}
