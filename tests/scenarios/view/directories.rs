//! The view's directories: each group in one, under its own name, and none twice.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::cgroup::Version;
use memcg_monitor::view::POINT;

use super::{MIB, USAGE, register_in, shown};
use crate::harness::agent::Agent;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;

vm_test!(view_names, "odd names, long names and 60 levels are as in the real tree", Any, [Standing]);
fn view_names() -> Result<()> {
    let _agent = Agent::standing()?;
    let long = "n".repeat(255);
    let odd = ["a b", "\u{e4}\u{20ac}\u{1f600}", "tab\there", "-dash", "back\\slash", "%s*?[", &long];
    let groups = odd.iter().map(|name| Group::new(name)).collect::<Result<Vec<_>>>()?;
    for group in &groups {
        let errno = register_in(&shown(&group.path)?, USAGE, &Waiter::new()?, "1M")?;
        ensure!(errno == 0, "{}: errno {errno}", group.path.display());
    }
    let listed: Vec<OsString> = directories(Path::new(POINT))?;
    ensure!(odd.iter().all(|name| listed.iter().any(|found| found == name)), "listed: {listed:?}");
    if groups[0].version == Version::V2 {
        // v1 could have no group of that name.
        let _group = Group::new("tasks")?;
        let names: Vec<_> = fs::read_dir(POINT)?.flatten().map(|entry| entry.file_name()).collect();
        let same = names.iter().filter(|name| *name == "tasks").count();
        ensure!(same == 1 && Path::new(POINT).join("tasks").is_file(), "tasks is there {same} times");
    }
    let mut chain = vec![Group::new("level")?];
    for _ in 0..60 {
        let below = chain.last().context("a level")?.child("level")?;
        chain.push(below);
    }
    let deepest = chain.last().context("a level")?;
    let mut charger = Charger::start(deepest)?;
    let waiter = super::waiter_on(deepest, "4M")?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    ensure!(waiter.wait()? == 1, "60 levels down");
    charger.end()?;
    while let Some(group) = chain.pop() {
        group.remove()?;
    }
    Ok(())
}

fn directories(directory: &Path) -> Result<Vec<OsString>> {
    let entries = fs::read_dir(directory)?.collect::<std::io::Result<Vec<_>>>()?;
    let directories = entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.file_name()).collect())
}

vm_test!(
    view_lists_many,
    "1000 groups in a directory are each listed once, also while others come and go",
    Any,
    [Standing]
);
fn view_lists_many() -> Result<()> {
    let _agent = Agent::standing()?;
    let parent = Group::new("many")?;
    let name = |n: u32| format!("group-with-a-name-of-some-length-{n:04}");
    let groups = (0..1000).map(|n| parent.child(&name(n))).collect::<Result<Vec<_>>>()?;
    let directory = shown(&parent.path)?;
    let mut found = directories(&directory)?;
    found.sort();
    ensure!(
        found == (0..1000).map(|n| name(n).into()).collect::<Vec<OsString>>(),
        "{} were listed",
        found.len()
    );
    // Every tenth goes once the listing has begun, and others come.
    let mut entries = fs::read_dir(&directory)?;
    let first = entries.next().context("a first name")??.file_name();
    groups.iter().step_by(10).try_for_each(Group::remove)?;
    let late = (1000..1050).map(|n| parent.child(&name(n))).collect::<Result<Vec<_>>>()?;
    let mut found = vec![first];
    for entry in entries {
        found.push(entry?.file_name());
    }
    for n in (0..1000).filter(|n| n % 10 != 0) {
        let times = found.iter().filter(|found| **found == *name(n)).count();
        ensure!(times == 1, "{} was listed {times} times", name(n));
    }
    drop((groups, late));
    Ok(())
}
