//! Groups that come and go while the kernel calls no program: the table of groups is right again once the
//! programs run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use monitor_client::wire::{Answer, GroupRow};
use nix::sys::signal::Signal;

use super::kernel::FtraceOff;
use crate::harness::agent::{Agent, until};
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::watch::Watcher;

/// Groups that are made and removed at once.
const GROUPS: usize = 32;

fn make(tree: &Group, kind: &str) -> Result<Vec<Group>> {
    (0..GROUPS).map(|number| tree.child(&format!("{kind}{number}"))).collect()
}

fn paths(groups: &[Group]) -> BTreeSet<PathBuf> {
    groups.iter().map(|group| group.path.clone()).collect()
}

/// The groups below `tree` in a list, and those without a name.
fn listed(tree: &Group, rows: &[GroupRow]) -> BTreeSet<PathBuf> {
    let is_of_it = |path: &Path| path.starts_with(&tree.path) && path != tree.path;
    let names = rows.iter().map(|row| PathBuf::from(&row.cgroup));
    names.filter(|path| is_of_it(path) || path.starts_with("#")).collect()
}

vm_test!(
    faults_ftrace_off_groups,
    "groups that came and went while no program was called are in the table and out of it once they run again, and a watch is told",
    V2,
    [Kernel]
);
fn faults_ftrace_off_groups() -> Result<()> {
    let tree = Group::new("silent")?;
    let gone = make(&tree, "gone")?;
    let agent = Agent::start(&[])?;
    // Of no group that is made here: nobody reads those.
    let (mut watch, _) = Watcher::start(&["/elsewhere/*", "1G,up"])?;
    let precision = |wanted: &str| until("the agent has noticed", || Ok(agent.status()?.precision == wanted));
    let off = FtraceOff::set()?;
    precision("sampled")?;
    gone.iter().try_for_each(Group::remove)?;
    let made = make(&tree, "made")?;
    until("those that have gone are out of the table", || {
        let (rows, _) = agent.list()?;
        Ok(!rows.iter().any(|row| row.cgroup.starts_with('#') || row.cgroup.contains("/silent/gone")))
    })?;
    drop(off);
    precision("exact")?;
    until("all groups are in the table, and no others", || {
        let (rows, _) = agent.list()?;
        Ok(listed(&tree, &rows) == paths(&made))
    })?;
    loop {
        if let Answer::Missed { why, count } = watch.answer()?
            && why.contains("called no program")
        {
            ensure!(count > 0, "{why}: {count}");
            break;
        }
    }
    made.iter().try_for_each(Group::remove)?;
    until("removals are seen again", || Ok(listed(&tree, &agent.list()?.0).is_empty()))?;
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}

vm_test!(
    faults_ftrace_off_unnoticed,
    "a new group in the memory of one that went while no program was called has a place of its own, noticed or not",
    V2,
    [Kernel]
);
fn faults_ftrace_off_unnoticed() -> Result<()> {
    let tree = Group::new("unnoticed")?;
    tree.enable(true)?;
    // The agent does not look itself in the time of the test.
    let agent = Agent::start(&["--sweep-ms", "3600000"])?;
    for round in 0..6 {
        let groups = make(&tree, &format!("round{round}-"))?;
        let (rows, _) = agent.list()?;
        let missing: Vec<_> = paths(&groups).difference(&listed(&tree, &rows)).cloned().collect();
        ensure!(missing.is_empty(), "round {round}: {missing:?} are not in the table");
        let off = FtraceOff::set()?;
        groups.iter().try_for_each(Group::remove)?;
        drop(off);
    }
    ensure!(agent.end(Signal::SIGTERM)? == 0, "exit code");
    Ok(())
}
