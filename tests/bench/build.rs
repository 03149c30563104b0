//! `cargo xtask bench build`: what the agent adds to building a C project with
//! `make -j2`, in the root group and in one three levels deep: the table that came
//! with the kernel's own patch. Instructions of the whole build, the agent's own
//! among them: one CPU, an instruction a nanosecond (see `charge`).

mod subject;

use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::client::SOCKET;
use memcg_monitor::door::seqpacket::connect;
use monitor_common::control::ControlFile;
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};

use self::subject::{Builder, Cost};
use super::Scope;
use crate::agent::{Agent, until};
use crate::client::{Waiter, open_control};
use crate::group::Group;
use crate::init::Hierarchy;
use crate::report::{bars, rounded, row, say};

/// Thresholds lie above all that a build reaches, this far apart.
const OUT_OF_REACH: u64 = 1 << 30;
const APART: u64 = 64 << 10;
const MANY: u64 = 10_000;
/// Groups of a host where each is watched.
const GROUPS: u64 = 200;
/// What the project aims at, in percent.
const AIM: f64 = 0.1;

const WITHOUT: &str = "without agent";
const AGAIN: &str = "without agent again";

/// Where is built.
struct Place {
    title: &'static str,
    builder: Builder,
    rows: Vec<Row>,
}

/// One condition.
struct Row {
    name: &'static str,
    cost: Cost,
    runs: Option<u64>,
}

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let host = Group::root()?;
    let top = Group::new("bench")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let goal = scope.of("libz.a", "adler32.o");
    let mut in_leaf = Place::new("build in a group, three deep", Builder::start(Some(&leaf), goal)?);
    let mut in_root = Place::new("build in the root group", Builder::start(None, goal)?);
    let once = scope == Scope::Once;

    // Brings all into memory.
    in_root.builder.build()?;
    in_leaf.measure(WITHOUT, None)?;
    if !once {
        in_root.measure(WITHOUT, None)?;
    }
    let agent = Agent::start(&[])?;
    in_leaf.measure("agent, no threshold", Some(&agent))?;
    if !once {
        in_root.measure("agent, no threshold", Some(&agent))?;
        {
            let waiter = Waiter::new()?;
            register(&waiter, &leaf, 0..1)?;
            in_leaf.measure("1 threshold", Some(&agent))?;
            register(&waiter, &leaf, 1..MANY)?;
            in_leaf.measure("10,000 thresholds", Some(&agent))?;
            in_root.measure("10,000 on another group", Some(&agent))?;
        }
        let_go(&agent)?;
        {
            let waiter = Waiter::new()?;
            let groups: Vec<_> =
                (0..GROUPS).map(|number| middle.child(&format!("group{number}"))).collect::<Result<_>>()?;
            for group in groups.iter().chain([&leaf]) {
                register(&waiter, group, 0..1)?;
            }
            in_leaf.measure("200 groups, 1 each", Some(&agent))?;
            in_root.measure("200 groups, 1 each", Some(&agent))?;
        }
        let_go(&agent)?;
        {
            let waiter = Waiter::new()?;
            register(&waiter, &host, 0..1)?;
            in_root.measure("1 on the root, sampled", Some(&agent))?;
            register(&waiter, &host, 1..MANY)?;
            in_root.measure("10,000 on the root, sampled", Some(&agent))?;
        }
        let_go(&agent)?;
    }
    let status = agent.status()?;
    ensure!(status.signals <= GROUPS, "{} signals, and no threshold was to be crossed", status.signals);
    agent.end(Signal::SIGTERM)?;
    in_leaf.measure(AGAIN, None)?;
    if !once {
        in_root.measure(AGAIN, None)?;
        in_root.report();
    }
    in_leaf.report();
    Ok(())
}

/// The agent holds an eventfd until it has seen that nobody else does.
fn let_go(agent: &Agent) -> Result<()> {
    until("the agent has let go of the eventfd", || Ok(agent.status()?.registrations == 0))
}

impl Place {
    fn new(title: &'static str, builder: Builder) -> Self {
        Self { title, builder, rows: Vec::new() }
    }

    fn measure(&mut self, name: &'static str, _agent: Option<&Agent>) -> Result<()> {
        let cost = self.builder.build()?;
        say!("{}, {name}: {} instructions, {} page faults", self.title, cost.instructions, cost.faults);
        self.rows.push(Row { name, cost, runs: None });
        Ok(())
    }

    /// What a row adds is measured against the mean of the first and the last.
    fn report(&self) {
        let of = |row: Option<&Row>| row.map_or(0.0, |row| row.cost.instructions as f64);
        let (first, last) = (of(self.rows.first()), of(self.rows.last()));
        let mut worst = f64::MIN;
        let mut heights = Vec::new();
        for (at, Row { name, cost, runs }) in self.rows.iter().enumerate() {
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
            if let Some(runs) = runs {
                columns.push(("hook runs", (*runs).into()));
            }
            columns.push(("page faults", cost.faults.into()));
            row(self.title, name, &columns);
        }
        bars(&format!("Added to a {}", self.title), "%", &heights);
        let verdict = if worst <= AIM { "within" } else { "above" };
        say!("{}: {worst:+.3} % at most, {verdict} the aim of {AIM} %", self.title);
    }
}

/// Registers one threshold for each number, over one connection.
fn register(waiter: &Waiter, group: &Group, numbers: std::ops::Range<u64>) -> Result<()> {
    let connection = connect(Path::new(SOCKET))?;
    let mut answer = [0; 512];
    for number in numbers {
        let threshold = OUT_OF_REACH + number * APART;
        // The root has no file of usage on v2; then the directory stands for it.
        let (control, args) = open_control(group, ControlFile::Usage, &threshold.to_string())?;
        let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
        send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::MSG_NOSIGNAL).context("send failed")?;
        let length = recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty()).context("recv failed")?;
        let answer = String::from_utf8_lossy(&answer[..length]);
        ensure!(answer == "0", "the agent refused {line:?}: {answer}");
    }
    Ok(())
}
