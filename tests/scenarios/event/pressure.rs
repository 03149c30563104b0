//! Reclaim pressure: levels and modes.

use anyhow::{Result, ensure};
use monitor_common::grammar::control_file::ControlFile::Pressure;

use super::{CountingWaiter, MIB};
use crate::harness::agent::{Agent, until};
use crate::harness::block;
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Family;
use crate::harness::test::vm_test;

/// Waits until two have received the same, more than `before`, and rest there.
fn agree(all: &mut [CountingWaiter], one: &str, other: &str, before: u64) -> Result<u64> {
    let mut seen = 0;
    until(&format!("{one} and {other} agree"), || {
        let (of_one, of_other) = (total(all, one)?, total(all, other)?);
        let rests = of_one == of_other && of_one > before && seen == of_one;
        seen = of_one;
        Ok(rests)
    })?;
    Ok(seen)
}

fn total(all: &mut [CountingWaiter], name: &str) -> Result<u64> {
    all.iter_mut().filter(|waiter| waiter.name == name).try_fold(0, |sum, waiter| Ok(sum + waiter.total()?))
}

vm_test!(
    event_pressure_modes,
    "default, hierarchy and local are signalled as v1's would be",
    V2,
    [Kernel, Preempt]
);
fn event_pressure_modes() -> Result<()> {
    let _disk = block::disk()?;
    let family = Family::new("modes")?;
    family.group.set_limit(8 * MIB)?;
    let agent = Agent::start(&[])?;
    let mut all = Vec::new();
    for (who, group) in family.all() {
        for mode in ["hierarchy", "local", "default"] {
            all.push(CountingWaiter::at(&format!("{who} {mode}"), group, Pressure, &format!("low,{mode}"))?);
        }
    }
    let mut charger = Charger::start(&family.child)?;
    charger.read_disk(64 * MIB)?;
    agent.settle()?;
    let windows = agree(&mut all, "group hierarchy", "root hierarchy", 0)?;
    for (name, expected) in [
        ("group local", windows),
        ("group default", windows),
        ("parent hierarchy", windows),
        ("parent local", 0),
        ("parent default", 0),
        ("root local", 0),
        ("root default", 0),
        // The pressure is the limit's, not the task's.
        ("child hierarchy", 0),
        ("child local", 0),
        ("child default", 0),
        ("sibling hierarchy", 0),
        ("sibling default", 0),
    ] {
        // Each has its signals in a turn of its own.
        until(&format!("{name} has received {expected} of {windows} windows"), || {
            let received = total(&mut all, name)?;
            ensure!(received <= expected, "{name} received {received} of {windows} windows, not {expected}");
            Ok(received == expected)
        })?;
    }
    // With no listener nearer, the parent's default one is signalled for all. The charger has
    // copies of the eventfds.
    charger.end()?;
    all = vec![
        CountingWaiter::at("default", &family.parent, Pressure, "low")?,
        CountingWaiter::at("hierarchy", &family.root, Pressure, "low,hierarchy")?,
    ];
    until("the others are gone", || Ok(agent.status()?.registrations == 2))?;
    let mut charger = Charger::start(&family.child)?;
    charger.read_disk(32 * MIB)?;
    agree(&mut all, "default", "hierarchy", 0).map(drop)
}

vm_test!(
    event_pressure_levels,
    "an OOM is critical; each level is signalled for those above it",
    V2,
    [Kernel, Preempt, Variant, Standing]
);
fn event_pressure_levels() -> Result<()> {
    let disk = block::disk()?;
    let family = Family::new("levels")?;
    family.group.set_limit(8 * MIB)?;
    let agent = Agent::standing()?;
    let mut all = Vec::new();
    for (who, group) in [("group", &family.group), ("root", &family.root)] {
        for level in ["low", "medium", "critical"] {
            all.push(CountingWaiter::at(
                &format!("{who} {level}"),
                group,
                Pressure,
                &format!("{level},hierarchy"),
            )?);
        }
    }
    let mut charger = Charger::start(&family.child)?;
    charger.read_disk(32 * MIB)?;
    agree(&mut all, "group low", "root low", 0)?;
    let easy = total(&mut all, "group critical")?;
    // Now nothing can go anywhere: with the last close the disk's pages went. Where the
    // kernel's worker comes late, an OOM's windows are one with easier ones: another OOM.
    drop(disk);
    for _ in 0..5 {
        ensure!(charger.grow(Kind::Anonymous, 32 * MIB).is_err(), "it outlived its limit");
        agent.settle()?;
        if total(&mut all, "group critical")? > easy {
            break;
        }
        charger = Charger::start(&family.child)?;
    }
    agree(&mut all, "group critical", "root critical", easy)?;
    ensure!(easy == 0, "{easy} critical windows of a disk read");
    let received = ["low", "medium", "critical"].map(|level| total(&mut all, &format!("group {level}")));
    let [low, medium, critical] = received;
    let (low, medium, critical) = (low?, medium?, critical?);
    ensure!(low >= medium && medium >= critical, "low {low}, medium {medium}, critical {critical}");
    Ok(())
}
