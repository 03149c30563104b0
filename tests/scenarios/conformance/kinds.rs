//! Memory+swap, OOM and pressure: the kernel's signals beside ours.

use anyhow::{Result, ensure};
use monitor_common::grammar::control_file::ControlFile::{Memsw, Oom, Pressure, Usage};

use super::book::{Book, Both, agree};
use super::semantics::look;
use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::block::{self, Swap};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::{Family, Group};
use crate::harness::report::say;
use crate::harness::test::vm_test;

vm_test!(
    conformance_memsw,
    "memory+swap with real swap: each crossing of the kernel's is ours",
    V1,
    [Oracle, Standing]
);
fn conformance_memsw() -> Result<()> {
    let _swap = Swap::on(128 * MIB)?;
    let group = Group::new("memsw")?;
    group.set_limit(16 * MIB)?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    let mut book = Book::default();
    let mut sum = Both::at(&group, Memsw, "24M")?;
    let mut twice = Both::at(&group, Memsw, "26M")?;
    twice.register(&group, Memsw, "26M")?;
    let mut high = Both::at(&group, Memsw, "200M")?;
    let mut memory = Both::at(&group, Usage, "24M")?;
    look(&mut charger, &agent)?;
    charger.grow(Kind::Anonymous, 40 * MIB)?;
    look(&mut charger, &agent)?;
    ensure!(group.usage()? <= 16 * MIB, "nothing was swapped out");
    // A charge that finds no room moves this counter up and down again.
    book.side("memsw: rose above, most of it in swap", sum.total()?, 1);
    book.side("memsw: rose above a threshold registered twice", twice.total()?, 2);
    let mut above = Both::at(&group, Memsw, "20M")?;
    agent.settle()?;
    book.counts("memsw: registered while above", above.take()?);
    charger.shrink(Kind::Anonymous)?;
    look(&mut charger, &agent)?;
    book.side("memsw: fell below", sum.total()?, 1);
    book.side("memsw: fell below a threshold registered twice", twice.total()?, 2);
    book.counts("memsw: registered while above, then fell", above.take()?);
    book.counts("memsw: a threshold that was not reached", high.total()?);
    book.counts("memsw: memory alone stayed below", memory.total()?);
    charger.end()?;
    group.remove()?;
    book.counts("memsw: the group was removed", high.reach("removal", 1)?);
    book.close()
}

vm_test!(
    conformance_oom,
    "an OOM is signalled to the group at its limit and those below, once on each side",
    V1,
    [Oracle, Standing]
);
fn conformance_oom() -> Result<()> {
    let family = Family::new("oom")?;
    family.group.set_limit(16 * MIB)?;
    let agent = Agent::standing()?;
    let mut book = Book::default();
    let mut all = family
        .all()
        .into_iter()
        .map(|(_, group)| Both::at(group, Oom, "whatever foo"))
        .collect::<Result<Vec<_>>>()?;
    all[0].register(&family.group, Oom, "")?;
    for _ in 0..2 {
        Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
    }
    agent.settle()?;
    agree(&mut all)?;
    for (both, (name, _)) in all.iter_mut().zip(family.all()) {
        let twice = if name == "group" { ", registered twice" } else { "" };
        book.equal(&format!("oom: limit on the group, task in its child: {name}{twice}"), both.total()?);
    }
    let (received, once) = (all[0].total()?, all[1].total()?);
    book.row(
        "oom: a second registration adds as much",
        &(received.0 == 2 * once.0).to_string(),
        &(received.1 == 2 * once.1).to_string(),
        None,
    );
    book.close()
}

vm_test!(
    conformance_oom_stuck,
    "with the killer off: signalled at registration, and again after too small a raise",
    V1,
    [Oracle, Standing]
);
fn conformance_oom_stuck() -> Result<()> {
    let family = Family::new("stuck")?;
    family.group.set_limit(16 * MIB)?;
    family.group.write("memory.oom_control", "1")?;
    let agent = Agent::standing()?;
    let mut book = Book::default();
    let mut early = Vec::new();
    for (_, group) in family.all() {
        early.push(Both::at(group, Oom, "")?);
    }
    let mut charger = Charger::start(&family.child)?;
    charger.begin_grow(Kind::Anonymous, 64 * MIB)?;
    until("the task is stuck", || Ok(family.group.field("memory.oom_control", "under_oom")? == 1))?;
    agent.settle()?;
    agree(&mut early)?;
    for (both, (name, _)) in early.iter_mut().zip(family.all()) {
        book.counts(&format!("oom, killer off, a task is stuck: {name}"), both.total()?);
    }
    for (name, group) in family.all() {
        let mut late = Both::at(group, Oom, "")?;
        agent.settle()?;
        book.counts(&format!("oom, killer off, registered under OOM: {name}"), late.take()?);
    }
    family.group.set_limit(20 * MIB)?;
    early[0].reach("a fresh signal", 2)?;
    agent.settle()?;
    agree(&mut early)?;
    for (both, (name, _)) in early.iter_mut().zip(family.all()) {
        book.counts(&format!("oom, killer off, the limit raised too little, in all: {name}"), both.total()?);
    }
    family.group.set_limit(256 * MIB)?;
    charger.finish()?;
    agent.settle()?;
    for (both, (name, _)) in early.iter_mut().zip(family.all()) {
        book.counts(&format!("oom, killer off, the limit raised enough, in all: {name}"), both.total()?);
    }
    book.close()
}

vm_test!(
    conformance_pressure,
    "each window of reclaim, by level and mode, on three levels of groups",
    V1,
    [Oracle, Standing]
);
fn conformance_pressure() -> Result<()> {
    let _swap = Swap::on(64 * MIB)?;
    let disk = block::disk()?;
    let family = Family::new("pressure")?;
    family.group.set_limit(8 * MIB)?;
    let agent = Agent::standing()?;
    let mut book = Book::default();
    let listeners = [
        ("low", "hierarchy"),
        ("low", "local"),
        ("medium", "hierarchy"),
        ("critical", "hierarchy"),
        ("medium", "default"),
        ("low", "default"),
    ];
    let mut all = Vec::new();
    let mut names = Vec::new();
    for (name, group) in family.all() {
        for (level, mode) in listeners {
            let args = format!("{level},{mode}");
            all.push(Both::at(group, Pressure, &args)?);
            names.push(format!("{name}, {args}"));
        }
    }
    let mut charger = Charger::start(&family.child)?;
    // How many windows there are is by chance, and so is their level but for an OOM.
    charger.read_disk(48 * MIB)?;
    compare(&agent, &mut all, &names, None)?;
    charger.map_disk(12 * MIB, 3)?;
    charger.grow(Kind::Anonymous, 24 * MIB)?;
    charger.shrink(Kind::Anonymous)?;
    compare(&agent, &mut all, &names, None)?;
    drop(disk);
    charger.grow_to_death(128 * MIB)?;
    compare(&agent, &mut all, &names, Some(("pressure of the group", &mut book)))?;
    // Only the parent waits now.
    drop(charger);
    all = vec![Both::at(&family.parent, Pressure, "low")?, Both::at(&family.root, Pressure, "low")?];
    let _disk = block::disk()?;
    let mut charger = Charger::start(&family.child)?;
    charger.read_disk(32 * MIB)?;
    let names = ["parent, low".to_owned(), "root, low".to_owned()];
    compare(&agent, &mut all, &names, Some(("pressure, the group has no registration", &mut book)))?;
    book.close()
}

/// Compares all counts so far; in the book, if there is one to write in.
fn compare(agent: &Agent, all: &mut [Both], names: &[String], book: Option<(&str, &mut Book)>) -> Result<()> {
    agent.settle()?;
    agree(all)?;
    let (what, book) = book.unzip();
    let mut unwritten = Book::default();
    let book = book.unwrap_or(&mut unwritten);
    for (both, name) in all.iter_mut().zip(names) {
        let (kernel, mut ours) = both.total()?;
        if ours != kernel && is_near(name, kernel, ours) {
            say!("  {name}: the kernel signalled {kernel}, we {ours}: pages came between two looks");
            ours = kernel;
        }
        match what {
            Some(what) => book.equal(&format!("{what}: {name}"), (kernel, ours)),
            None => ensure!(kernel == ours, "{name}: the kernel signalled {kernel}, we {ours}"),
        }
    }
    Ok(())
}

/// Whether the counts differ by one window's level. The program looks at a window before
/// the kernel takes it under its lock; pages that another CPU adds in between can lift or
/// lower its level. How many windows there are, which `low` counts, is not touched by that.
fn is_near(name: &str, kernel: u64, ours: u64) -> bool {
    !name.contains("low") && kernel.abs_diff(ours) == 1 && kernel.min(ours) > 1
}
