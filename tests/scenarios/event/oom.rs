//! Out of memory: which groups are signalled, how often, and what `listen -o json` writes.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use monitor_client::wire::{AdminRequest, Answer, EventRow};
use monitor_client::{AdminConnection, CONTROL_SOCKET};
use monitor_common::grammar::control_file::ControlFile;

use super::{CountingWaiter, MIB, expect};
use crate::harness::agent::{Agent, PATIENCE};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, open_control};
use crate::harness::group::{Family, Group};
use crate::harness::test::vm_test;

fn listeners(family: &Family) -> Result<Vec<CountingWaiter>> {
    family
        .all()
        .into_iter()
        .map(|(name, group)| CountingWaiter::at(name, group, ControlFile::Oom, ""))
        .collect()
}

vm_test!(
    event_oom_goes_down,
    "an OOM is signalled once to the group at its limit and to those below, to no other",
    V2,
    [Kernel, Preempt, Variant, Quick, Standing]
);
fn event_oom_goes_down() -> Result<()> {
    let family = Family::new("oom")?;
    family.group.set_limit(16 * MIB)?;
    let agent = Agent::standing()?;
    let mut all = listeners(&family)?;
    for round in 1..=3 {
        Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
        agent.settle()?;
        let counted = family.group.field("memory.events.local", "oom")?;
        // A task that dies may run into the limit once more.
        ensure!(counted >= round, "the kernel counts {counted} in round {round}");
        expect(&mut all, &["group", "child"], counted)?;
    }
    let above = family.group.field("memory.events.local", "oom")?;
    // The child's own limit signals nothing to the group.
    family.child.set_limit(8 * MIB)?;
    Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
    agent.settle()?;
    let own = family.child.field("memory.events.local", "oom")?;
    for waiter in &mut all {
        waiter.await_total(match waiter.name.as_str() {
            "child" => above + own,
            "group" => above,
            _ => 0,
        })?;
    }
    Ok(())
}

vm_test!(
    event_oom_by_a_written_limit,
    "a limit written below usage signals no client",
    V2,
    [Kernel, Preempt, Standing]
);
fn event_oom_by_a_written_limit() -> Result<()> {
    let family = Family::new("written")?;
    let agent = Agent::standing()?;
    let mut all = listeners(&family)?;
    let mut charger = Charger::start(&family.child)?;
    charger.grow(Kind::Anonymous, 24 * MIB)?;
    family.group.set_limit(8 * MIB)?;
    ensure!(charger.grow(Kind::Anonymous, MIB).is_err(), "the write killed no task");
    let counted = family.group.field("memory.events.local", "oom")?;
    ensure!(counted > 0, "the kernel saw no OOM: nothing was shown");
    agent.settle()?;
    expect(&mut all, &[], 0)
}

vm_test!(
    event_oom_of_a_group_read_early,
    "a group whose usage others read while the agent starts is signalled an OOM by a limit above",
    V2,
    [Kernel, Preempt, Standing]
);
fn event_oom_of_a_group_read_early() -> Result<()> {
    let family = Family::new("early")?;
    family.parent.set_limit(16 * MIB)?;
    let usage = family.child.path.join("memory.current");
    let is_over = AtomicBool::new(false);
    let agent = thread::scope(|scope| {
        // The child, and no group above it: its slot is there before its parent's.
        let reader = scope.spawn(|| -> Result<u64> {
            let mut reads = 0;
            while !is_over.load(Ordering::Relaxed) {
                fs::read_to_string(&usage)?;
                reads += 1;
            }
            Ok(reads)
        });
        let agent = Agent::standing();
        is_over.store(true, Ordering::Relaxed);
        let reads = reader.join().map_err(|_| anyhow!("the reader panicked"))??;
        ensure!(reads > 0, "nothing was read meanwhile: nothing was shown");
        agent
    })?;
    let mut all = listeners(&family)?;
    Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
    agent.settle()?;
    let counted = family.parent.field("memory.events.local", "oom")?;
    ensure!(counted > 0, "the kernel saw no OOM: nothing was shown");
    expect(&mut all, &["parent", "group", "child", "sibling"], counted)
}

/// A connection that is sent the causes, and its eventfd.
pub(crate) fn follow(group: &Group) -> Result<(AdminConnection, Waiter)> {
    let waiter = Waiter::new()?;
    let (control, args) = open_control(group, ControlFile::Oom, "")?;
    let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
    let connection = AdminConnection::connect(Path::new(CONTROL_SOCKET))?;
    connection.set_timeout(Some(PATIENCE))?;
    connection.send(&AdminRequest::Listen(line), &[waiter.0.as_fd(), control.as_fd()])?;
    match connection.next()? {
        Some(Answer::Listening) => Ok((connection, waiter)),
        other => bail!("the agent answered {other:?}"),
    }
}

pub(crate) fn event(connection: &AdminConnection) -> Result<EventRow> {
    match connection.next()? {
        Some(Answer::Event(row)) => Ok(row),
        other => bail!("the agent answered {other:?}"),
    }
}

pub(crate) fn name(group: &Group) -> String {
    group.path.to_string_lossy().into_owned()
}

vm_test!(
    event_oom_json,
    "listen -o json writes the OOM with its origin, then the victim",
    V2,
    [Kernel, Preempt, Variant, Standing]
);
fn event_oom_json() -> Result<()> {
    let family = Family::new("json")?;
    family.group.set_limit(16 * MIB)?;
    let _agent = Agent::standing()?;
    let (connection, waiter) = follow(&family.child)?;
    let mut charger = Charger::start(&family.child)?;
    let pid = u64::try_from(charger.pid().as_raw())?;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).context("no comm")?;
    charger.grow_to_death(64 * MIB)?;

    let (limit, child) = (name(&family.group), name(&family.child));
    let oom = event(&connection)?;
    ensure!(oom.event == "oom" && oom.signals > 0, "{oom:?}");
    ensure!(oom.cgroup == child && oom.origin.as_ref() == Some(&limit), "{oom:?}");
    // A dying task may meet the limit once more: an OOM of its own, in a row of its own or,
    // where the agent sees both at once, in the same.
    let (mut ooms, mut kill) = (oom.signals, event(&connection)?);
    while kill.event == "oom" {
        (ooms, kill) = (ooms + kill.signals, event(&connection)?);
    }
    ensure!((kill.event.as_str(), kill.signals) == ("oom_kill", 0), "{kill:?}");
    ensure!(kill.cgroup == child && kill.origin.as_ref() == Some(&limit), "{kill:?}");
    let victim = kill.victim.context("no victim")?;
    ensure!(victim.cgroup == child && victim.pid == Some(pid), "{victim:?}");
    ensure!(victim.comm.as_deref() == Some(comm.trim_end()), "{victim:?}");
    // The row of another may be on its way; the victim adds nothing.
    let signals = waiter.wait()?;
    let counted = family.group.field("memory.events.local", "oom")?;
    ensure!(
        (ooms..=counted).contains(&signals),
        "{signals} signals, {ooms} in rows, the kernel counts {counted}"
    );
    Ok(())
}

vm_test!(
    event_oom_group_json,
    "memory.oom.group: the group that is killed is named, too",
    V2,
    [Kernel, Preempt, Standing]
);
fn event_oom_group_json() -> Result<()> {
    let family = Family::new("json")?;
    family.group.set_limit(16 * MIB)?;
    family.group.write("memory.oom.group", "1")?;
    let _agent = Agent::standing()?;
    let (connection, waiter) = follow(&family.group)?;
    let mut other = Charger::start(&family.child)?;
    Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
    let limit = name(&family.group);
    let (mut groups, mut victims, mut events) = (0, 0, Vec::new());
    while groups == 0 || victims < 2 {
        let row = event(&connection)?;
        ensure!(row.origin.as_ref() == Some(&limit) && row.cgroup == limit, "{row:?}");
        events.push(row.event.clone());
        match (row.event.as_str(), row.victim) {
            ("oom_group_kill", Some(victim)) => {
                ensure!(victim.cgroup == limit && victim.pid.is_none(), "{victim:?}");
                groups += 1;
            }
            ("oom_kill", Some(_)) => victims += 1,
            _ => {}
        }
    }
    ensure!(events.first().is_some_and(|first| first == "oom"), "{events:?}");
    ensure!(groups == 1, "{events:?}");
    ensure!(other.grow(Kind::Anonymous, MIB).is_err(), "the other process of the group lives on");
    // A dying task may meet the limit once more; that row may be on its way yet.
    let (signals, ooms) = (waiter.wait()?, events.iter().filter(|event| *event == "oom").count() as u64);
    ensure!(signals >= ooms, "{signals} signals of {ooms} OOMs");
    Ok(())
}
