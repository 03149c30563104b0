//! Memory and swap together.

use std::fs;

use anyhow::{Context, Result, ensure};
use monitor_common::grammar::control_file::ControlFile::{Memsw, Usage};

use super::{CountingWaiter, MIB};
use crate::harness::agent::{Agent, until};
use crate::harness::block::Swap;
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::{Group, read_number};
use crate::harness::test::vm_test;
use crate::scenarios::view::shown;

fn both(group: &Group) -> Result<u64> {
    Ok(group.usage()? + read_number(&group.path.join("memory.swap.current"))?)
}

vm_test!(
    event_swap_crosses,
    "memory+swap crosses where memory alone stays below",
    V2,
    [Kernel, Preempt, Variant, Sampled, Standing]
);
fn event_swap_crosses() -> Result<()> {
    let _swap = Swap::on(128 * MIB)?;
    let group = Group::new("swap")?;
    group.set_limit(16 * MIB)?;
    let agent = Agent::standing()?;
    // A page on its way is counted in both: near the level the sum goes to and fro.
    let mut sum = CountingWaiter::at("memory+swap 24M", &group, Memsw, "24M,hysteresis=6M")?;
    let mut plain = CountingWaiter::at("without hysteresis", &group, Memsw, "24M")?;
    let mut high = CountingWaiter::at("memory+swap 200M", &group, Memsw, "200M")?;
    let mut memory = CountingWaiter::at("memory 24M", &group, Usage, "24M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 40 * MIB)?;
    ensure!(both(&group)? >= 24 * MIB && group.usage()? <= 16 * MIB, "nothing was swapped out");
    agent.settle()?;
    sum.await_total(1)?;
    ensure!(plain.total()? % 2 == 1, "{} signals do not end above", plain.total);

    let directory = shown(&group.path)?;
    let usage = read_number(&directory.join("memory.usage_in_bytes"))?;
    let with_swap = read_number(&directory.join("memory.memsw.usage_in_bytes"))?;
    ensure!(with_swap >= usage && with_swap >= 24 * MIB, "the view: {usage}, with swap {with_swap}");

    charger.shrink(Kind::Anonymous)?;
    until("the swap is given back", || Ok(both(&group)? < 16 * MIB))?;
    sum.await_total(2)?;
    charger.grow(Kind::Anonymous, 40 * MIB)?;
    sum.await_total(3)?;
    // The end of the process gives back all of both.
    charger.end()?;
    sum.await_total(4)?;
    agent.settle()?;
    ensure!(plain.total()? % 2 == 0, "{} signals do not end below", plain.total);
    memory.await_total(0)?;
    high.await_total(0)
}

vm_test!(
    event_swap_without_swap,
    "without swap memory+swap is memory",
    V2,
    [Kernel, Preempt, Sampled, Standing]
);
fn event_swap_without_swap() -> Result<()> {
    let swaps = fs::read_to_string("/proc/swaps").context("cannot read /proc/swaps")?;
    ensure!(swaps.lines().count() == 1, "there is swap: {swaps}");
    let group = Group::new("no-swap")?;
    let agent = Agent::standing()?;
    let mut sum = CountingWaiter::at("memory+swap", &group, Memsw, "8M")?;
    let mut memory = CountingWaiter::at("memory", &group, Usage, "8M")?;
    let mut charger = Charger::start(&group)?;
    for round in 0..3 {
        charger.grow(Kind::Anonymous, 12 * MIB)?;
        agent.settle()?;
        sum.await_total(2 * round + 1)?;
        memory.await_total(2 * round + 1)?;
        charger.shrink(Kind::Anonymous)?;
        agent.settle()?;
        sum.await_total(2 * round + 2)?;
        memory.await_total(2 * round + 2)?;
    }
    Ok(())
}
