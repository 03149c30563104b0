//! `cargo xtask bench top`: what `memcg-monitor top` and the agent run while it shows 10,000 groups,
//! which stand still or all change each second, and what a page fault costs meanwhile. The host boots
//! us with one CPU and icount: a nanosecond is an instruction.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Scope;
use super::charge::settle;
use super::groups::{Groups, Rounds, Visitor};
use super::subject::{Subject, Work};
use crate::harness::agent::{Agent, BINARY};
use crate::harness::client::page;
use crate::harness::group::Group;
use crate::harness::init::Hierarchy;
use crate::harness::report::{rounded, row};
use crate::harness::screen::{Screen, size};

const TABLE: &str = "instructions a second while top shows the groups, renewed each second";
const FAULT: &str = "a fault while top shows the groups, %";

/// Time between two readings of all groups, by default.
const TICK: Duration = Duration::from_secs(1);

pub(crate) fn run(scope: Scope, _hierarchy: Hierarchy) -> Result<()> {
    let groups = Groups::make(scope.of(10_000, 20))?;
    let home = Group::new("subject")?;
    let mut subject = Subject::start(&home)?;
    let mut visitor = Visitor::start(&groups, &home)?;
    let count = groups.count();
    let seconds = scope.of(10, 2);
    let agent = Agent::start(&[])?;
    let mut faults = Vec::new();
    let shown = |words: &[&str], source: &str| -> Result<Screen> {
        let mut screen = Screen::start(&[&[BINARY, "top"], words].concat(), size(80, 24), &[])?;
        screen.says(source)?;
        // The first tick reads everything, and what it has begun is to end.
        sleep(3 * TICK);
        Ok(screen)
    };
    for (what, words) in [("tree", &[][..]), ("list, by growth", &["--list", "--sort", "growth"])] {
        let mut screen = shown(words, "  agent: ")?;
        let measure = |name: &str, screen: &mut Screen| -> Result<()> {
            let (start, top, agents) = (Instant::now(), screen.on_cpu()?, agent.on_cpu()?);
            for _ in 0..seconds {
                sleep(TICK);
                // A terminal that nobody reads is full at some time, and `top` waits for it.
                screen.lines()?;
            }
            let time = start.elapsed().as_secs_f64();
            let each = |before: u64, after: u64| (after - before) as f64 / time;
            let (top, agents) = (each(top, screen.on_cpu()?), each(agents, agent.on_cpu()?));
            let columns = [top, agents, top + agents].map(|ran| rounded(ran, 0));
            let columns: Vec<_> = ["top", "agent", "both"].into_iter().zip(columns).collect();
            row(TABLE, &format!("{count} groups, {what}, {name}"), &columns);
            Ok(())
        };
        measure("standing still", &mut screen)?;
        settle(&mut subject)?;
        faults.push((what, subject.measure(Work::Batch)?));
        // Two rounds before and two after: in each second between, every group has changed.
        let rounds = Rounds { count: seconds + 4, pages: 3, stay: true, time: TICK };
        let before = groups.leaves[0].usage()?;
        visitor.begin(rounds)?;
        sleep(2 * TICK);
        measure("all of them changing", &mut screen)?;
        let grown = groups.leaves[0].usage()? - before;
        ensure!(grown >= page() * u64::from(seconds), "a group has grown by {grown} bytes only");
        let took = visitor.end()?;
        ensure!(took < TICK * (rounds.count + 1), "{} rounds of changes took {took:?}", rounds.count);
        screen.press("q")?;
        screen.ends()?;
    }
    let mut screen = shown(&["--control-socket", "/nonexistent"], "from files")?;
    let top = screen.on_cpu()?;
    sleep(TICK * seconds);
    let ran = (screen.on_cpu()? - top) as f64 / f64::from(seconds);
    row(TABLE, &format!("{count} groups, tree, from files"), &[("top", rounded(ran, 0))]);
    screen.press("q")?;
    screen.ends()?;
    // Last, since the kernel does not come to rest soon after 10,000 groups were made.
    settle(&mut subject)?;
    let without = subject.measure(Work::Batch)?;
    for (what, with) in faults {
        row(FAULT, what, &[("", rounded(100.0 * (with - without) / without, 2))]);
    }
    Ok(())
}
