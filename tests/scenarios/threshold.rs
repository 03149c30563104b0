//! The main job: usage crosses a threshold, an eventfd is signalled.

use anyhow::{Context, Result, ensure};

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, page};
use crate::harness::group::Group;
use crate::harness::test::vm_test;

vm_test!(
    threshold_both_directions,
    "a threshold is signalled once on the way up and once on the way down",
    Any,
    [Oracle, Kernel, Preempt, Variant, Quick, Sampled, Standing]
);
fn threshold_both_directions() -> Result<()> {
    let group = Group::new("both")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    let waiters =
        [Waiter::on(&group, "4M")?, Waiter::on(&group, "8388608")?, Waiter::on(&group, "0x1000000")?];
    agent.settle()?;
    for waiter in &waiters {
        ensure!(waiter.take()? == 0, "signalled at registration");
    }
    charger.grow(Kind::Anonymous, 10 * MIB)?;
    ensure!(waiters[0].wait()? == 1, "4M: up");
    ensure!(waiters[1].wait()? == 1, "8M: up");
    agent.settle()?;
    ensure!(waiters[2].take()? == 0, "16M was not reached");
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiters[0].wait()? == 1, "4M: down");
    ensure!(waiters[1].wait()? == 1, "8M: down");
    charger.end()?;
    Ok(())
}

vm_test!(
    threshold_each_ancestor,
    "a charge is seen by its group and all ancestors, not by siblings",
    Any,
    [Oracle, Kernel, Preempt, Quick, Sampled, Standing]
);
fn threshold_each_ancestor() -> Result<()> {
    let top = Group::new("top")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let sibling = middle.child("sibling")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&leaf)?;
    let waiters = [&top, &middle, &leaf, &sibling].map(|group| Waiter::on(group, "6M"));
    let [on_top, on_middle, on_leaf, on_sibling] = waiters;
    let (on_top, on_middle, on_leaf, on_sibling) = (on_top?, on_middle?, on_leaf?, on_sibling?);
    for direction in ["up", "down"] {
        if direction == "up" {
            charger.grow(Kind::Anonymous, 8 * MIB)?;
        } else {
            charger.shrink(Kind::Anonymous)?;
        }
        for (name, waiter) in [("top", &on_top), ("middle", &on_middle), ("leaf", &on_leaf)] {
            let signals = waiter.wait()?;
            ensure!(signals == 1, "{name}, {direction}: {signals} signals");
        }
        agent.settle()?;
        ensure!(on_sibling.take()? == 0, "the sibling was signalled");
    }
    charger.end()?;
    Ok(())
}

vm_test!(
    threshold_first_above_an_unwatched_group,
    "a group that charged while no group above was watched is seen once one is",
    Any,
    [Oracle, Kernel, Preempt, Standing]
);
/// Charges look up only while a group above is watched: each first threshold on an
/// ancestor has to be noticed by a group that has found itself alone before.
fn threshold_first_above_an_unwatched_group() -> Result<()> {
    let top = Group::new("unwatched")?;
    let middle = top.child("middle")?;
    let leaf = middle.child("leaf")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&leaf)?;
    for round in 0..3 {
        for (name, group) in [("top", &top), ("middle", &middle), ("leaf", &leaf)] {
            charger.spike(Kind::Anonymous, 2 * MIB, 4)?;
            let waiter = Waiter::on(group, "6M")?;
            charger.grow(Kind::Anonymous, 8 * MIB)?;
            waiter.crosses(&format!("round {round}: {name}, up"))?;
            charger.shrink(Kind::Anonymous)?;
            waiter.crosses(&format!("round {round}: {name}, down"))?;
            drop(waiter);
            until("its registration ended", || Ok(agent.status()?.registrations == 0))?;
        }
    }
    charger.end()
}

vm_test!(
    threshold_every_kind_of_memory,
    "anonymous, file and kernel memory are all seen",
    Any,
    [Oracle, Kernel, Preempt, Sampled, Standing]
);
fn threshold_every_kind_of_memory() -> Result<()> {
    let group = Group::new("kinds")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    for kind in Kind::ALL {
        let before = group.usage()?;
        let waiter = Waiter::on(&group, &(before + 4 * MIB).to_string())?;
        charger.grow(kind, 8 * MIB)?;
        crosses(&waiter, &agent).with_context(|| format!("{kind:?}: up"))?;
        ensure!(group.usage()? >= before + 4 * MIB, "{kind:?} is not charged to the group");
        charger.shrink(kind)?;
        crosses(&waiter, &agent).with_context(|| format!("{kind:?}: down"))?;
    }
    charger.end()?;
    Ok(())
}

/// Waits for the signals of usage being on the other side. The counter moves by batches of 64 pages, and may
/// take a step back: when that is over a threshold, it is crossed three times.
fn crosses(waiter: &Waiter, agent: &Agent) -> Result<()> {
    let first = waiter.wait()?;
    agent.settle()?;
    let received = first + waiter.take()?;
    ensure!(received % 2 == 1, "received {received}, an even number");
    Ok(())
}

vm_test!(
    threshold_usage_and_peak_are_the_kernels,
    "usage and peak in the list equal memory.current and memory.peak",
    Any,
    [Oracle, Kernel, Preempt, Variant, Standing]
);
/// Oracle: the kernel's files, read before and after; the table's value must
/// lie between.
fn threshold_usage_and_peak_are_the_kernels() -> Result<()> {
    let existing = Group::new("existing")?;
    let mut charger = Charger::start(&existing)?;
    charger.grow(Kind::Anonymous, 5 * MIB)?;
    let agent = Agent::standing()?;
    let new = Group::new("new")?;
    let mut other = Charger::start(&new)?;
    for (group, charger) in [(&existing, &mut charger), (&new, &mut other)] {
        for bytes in [3 * MIB, 7 * MIB, 64 << 10] {
            charger.grow(Kind::Anonymous, bytes)?;
            let before = group.usage()?;
            let row = agent.row(&group.path)?;
            let after = group.usage()?;
            let (low, high) = (before.min(after), before.max(after));
            ensure!((low..=high).contains(&row.usage), "usage {} is not in {low}..={high}", row.usage);
            let peak = group.peak()?;
            ensure!(row.peak == peak, "peak {} is not the kernel's {peak}", row.peak);
            charger.shrink(Kind::Anonymous)?;
        }
    }
    Ok(())
}

vm_test!(
    threshold_spike_crosses_twice,
    "over a threshold and back within one wake-up is signalled both ways",
    Any,
    [Oracle, Kernel, Preempt, Variant, Quick, Standing]
);
fn threshold_spike_crosses_twice() -> Result<()> {
    let group = Group::new("spike")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "8M")?;
    for round in 0..5 {
        charger.spike(Kind::Anonymous, 12 * MIB, 1)?;
        agent.settle()?;
        let signals = waiter.take()?;
        ensure!(signals == 2, "round {round}: {signals} signals for up and down");
    }
    Ok(())
}

vm_test!(
    threshold_many_on_one_group,
    "of 2,000 thresholds exactly those that were crossed are signalled",
    Any,
    [Oracle, Kernel, Preempt, Standing]
);
fn threshold_many_on_one_group() -> Result<()> {
    let group = Group::new("many")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::new()?;
    let first = group.usage()? / page() + 512;
    for step in 0..2000 {
        waiter.register(&group, &((first + step) * page()).to_string())?;
    }
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    agent.settle()?;
    let reached = (group.usage()? / page()).saturating_sub(first - 1).min(2000);
    ensure!(reached > 500 && reached < 2000, "the test's own sizes are off: {reached} reached");
    let up = waiter.take()?;
    // The counter moves in batches of up to 64 pages for each CPU, also back.
    ensure!(up >= reached && up <= reached + 256, "{up} signals for {reached} thresholds");
    charger.shrink(Kind::Anonymous)?;
    agent.settle()?;
    let still = (group.usage()? / page()).saturating_sub(first - 1);
    ensure!(still == 0, "the group did not shrink below its thresholds");
    let down = waiter.take()?;
    ensure!((up + down) % 2 == 0, "{up} up and {down} down leave a threshold half crossed");
    ensure!(agent.row(&group.path)?.registrations.len() == 2000, "thresholds are missing in the list");
    Ok(())
}
