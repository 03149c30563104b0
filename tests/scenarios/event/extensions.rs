//! Triggers that cgroup v1 did not have: emptiness, the working set, percents, directions,
//! hysteresis, quotas; and the root's usage.

use std::fs;

use anyhow::{Context, Result, ensure};
use monitor_common::grammar::control_file::ControlFile::{self, Procs, Usage, WorkingSet};

use super::{CountingWaiter, MIB};
use crate::harness::agent::{Agent, until};
use crate::harness::block;
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, agent_errno, open_control, page};
use crate::harness::group::Group;
use crate::harness::process::check_as_user;
use crate::harness::test::vm_test;

vm_test!(
    event_empty,
    "a group is empty when the last task of it and of those below left",
    V2,
    [Kernel, Preempt, Variant, Standing]
);
fn event_empty() -> Result<()> {
    let group = Group::new("empty")?;
    let (left, right) = (group.child("left")?, group.child("right")?);
    let agent = Agent::standing()?;
    let mut all = Vec::new();
    for (name, group) in [("group", &group), ("left", &left), ("right", &right)] {
        all.push(CountingWaiter::at(name, group, Procs, "")?);
    }
    let mut expect = |counts: [u64; 3]| -> Result<()> {
        agent.settle()?;
        all.iter_mut().zip(counts).try_for_each(|(waiter, count)| waiter.await_total(count))
    };
    let chargers =
        [Charger::start(&left)?, Charger::start(&left)?, Charger::start(&right)?, Charger::start(&left)?];
    let [one, two, three, moves] = chargers;
    expect([0, 0, 0])?;
    one.end()?;
    expect([0, 0, 0])?;
    two.end()?;
    right.add(moves.pid())?;
    expect([0, 1, 0])?;
    three.end()?;
    expect([0, 1, 0])?;
    moves.end()?;
    expect([1, 1, 1])?;
    Charger::start(&right)?.end()?;
    expect([2, 1, 2])
}

/// The root's usage as v1 counted it.
fn host_usage() -> Result<u64> {
    let text = fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")?;
    let field = |name: &str| -> Result<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("no {name}"))?.parse()?)
    };
    Ok((field("nr_file_pages")? + field("nr_anon_pages")?) * page())
}

vm_test!(event_root_usage, "the root's usage crosses, sampled", V2, [Kernel, Preempt, Sampled]);
fn event_root_usage() -> Result<()> {
    let group = Group::new("below")?;
    let agent = Agent::start(&["--sample-ms", "20"])?;
    let mut charger = Charger::start(&group)?;
    let level = host_usage()? + 24 * MIB;
    let root = Group::root()?;
    let mut up = CountingWaiter::at("the root", &root, Usage, &level.to_string())?;
    let mut half = CountingWaiter::at("half of the host", &root, Usage, "90%")?;
    for round in 0..2 {
        charger.grow(Kind::Anonymous, 48 * MIB)?;
        up.await_total(2 * round + 1)?;
        charger.shrink(Kind::Anonymous)?;
        up.await_total(2 * round + 2)?;
    }
    agent.settle()?;
    half.await_total(0)
}

vm_test!(
    event_percent,
    "percents follow the limit of the group and of those above",
    V2,
    [Kernel, Preempt, Variant, Sampled, Standing]
);
fn event_percent() -> Result<()> {
    let top = Group::new("percent")?;
    let group = top.child("group")?;
    let agent = Agent::standing()?;
    let mut half = CountingWaiter::at("half", &group, Usage, "50%")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 30 * MIB)?;
    agent.settle()?;
    half.await_total(0).context("no limit, no percent")?;
    group.set_limit(40 * MIB)?;
    half.await_total(1).context("30 of 40")?;
    group.set_limit(100 * MIB)?;
    half.await_total(2).context("30 of 100")?;
    top.set_limit(50 * MIB)?;
    half.await_total(3).context("30 of the 50 above")?;
    top.write("memory.max", "max")?;
    half.await_total(4).context("30 of 100 again")?;
    charger.grow(Kind::Anonymous, 30 * MIB)?;
    half.await_total(5).context("60 of 100")?;
    charger.shrink(Kind::Anonymous)?;
    half.await_total(6).context("and back")
}

vm_test!(
    event_directions,
    "up, down and hysteresis are signalled as requested",
    V2,
    [Kernel, Preempt, Variant, Quick, Standing]
);
fn event_directions() -> Result<()> {
    let group = Group::new("directions")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    let mut up = CountingWaiter::at("up", &group, Usage, "8M,up")?;
    let mut down = CountingWaiter::at("down", &group, Usage, "8M,down")?;
    let mut both = CountingWaiter::at("both", &group, Usage, "8M")?;
    let mut damped = CountingWaiter::at("hysteresis", &group, Usage, "8M,hysteresis=4M")?;
    // The counter moves by batches of 64 pages and may step back by one: when that is over
    // the threshold, it is crossed three times. Hysteresis takes no notice of it.
    let mut crosses = |rises: bool, is_damped: bool| -> Result<()> {
        agent.settle()?;
        let counts = [&mut up, &mut down, &mut both, &mut damped].map(CountingWaiter::new_ones);
        let [up, down, both, damped] = counts;
        let (up, down, both, damped) = (up?, down?, both?, damped?);
        let there = both.div_ceil(2);
        let expected = if rises { (there, both - there) } else { (both - there, there) };
        let is_right = both % 2 == 1 && (up, down) == expected && damped == u64::from(!is_damped);
        ensure!(is_right, "rises: {rises}; up {up}, down {down}, both {both}, hysteresis {damped}");
        Ok(())
    };
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    charger.grow(Kind::Anonymous, 5 * MIB)?;
    crosses(true, false)?;
    // To about 6M: not 4M below.
    charger.shrink(Kind::Anonymous)?;
    crosses(false, true)?;
    charger.grow(Kind::Anonymous, 5 * MIB)?;
    crosses(true, true)?;
    charger.shrink(Kind::Anonymous)?;
    charger.shrink(Kind::Anonymous)?;
    crosses(false, false)
}

vm_test!(
    event_working_set,
    "inactive file pages do not count in the working set",
    V2,
    [Kernel, Preempt, Variant, Sampled]
);
fn event_working_set() -> Result<()> {
    let _disk = block::disk()?;
    let group = Group::new("set")?;
    let agent = Agent::start(&["--sample-ms", "20"])?;
    let mut charger = Charger::start(&group)?;
    let level = (group.usage()? + 12 * MIB).to_string();
    let mut set = CountingWaiter::at("working set", &group, WorkingSet, &level)?;
    let mut usage = CountingWaiter::at("usage", &group, Usage, &level)?;
    charger.read_disk(32 * MIB)?;
    agent.settle()?;
    usage.await_total(1)?;
    set.await_total(0)?;
    charger.grow(Kind::Anonymous, 24 * MIB)?;
    set.await_total(1)?;
    charger.shrink(Kind::Anonymous)?;
    set.await_total(2)?;
    usage.await_total(1)
}

vm_test!(
    event_anon,
    "page cache does not count in what is not reclaimable; anonymous, shared and kernel memory do",
    Any,
    [Kernel, Preempt, Variant, Sampled]
);
fn event_anon() -> Result<()> {
    let _disk = block::disk()?;
    let group = Group::new("anon")?;
    let agent = Agent::start(&["--sample-ms", "20"])?;
    let mut charger = Charger::start(&group)?;
    let level = (group.usage()? + 12 * MIB).to_string();
    let mut anon = CountingWaiter::at("not reclaimable", &group, ControlFile::Anon, &level)?;
    let mut usage = CountingWaiter::at("usage", &group, Usage, &level)?;
    charger.read_disk(32 * MIB)?;
    agent.settle()?;
    usage.await_total(1)?;
    anon.await_total(0)?;
    for (total, kind) in (0..).step_by(2).zip(Kind::ALL) {
        charger.grow(kind, 24 * MIB)?;
        anon.await_total(total + 1)?;
        charger.shrink(kind)?;
        anon.await_total(total + 2)?;
    }
    usage.await_total(1)
}

vm_test!(
    event_quota,
    "a user has a quota (EDQUOT), root has none, what ends comes back",
    V2,
    [Kernel, Preempt]
);
fn event_quota() -> Result<()> {
    let group = Group::new("quota")?;
    let agent = Agent::start(&["--max-per-user", "3", "--socket-mode", "0666"])?;
    let try_all = |waiter: &Waiter| -> Result<Vec<i32>> {
        use std::os::fd::AsRawFd as _;
        let kinds = [
            (Usage, "1M"),
            (ControlFile::Oom, ""),
            (ControlFile::Pressure, "low"),
            (Procs, ""),
            (Usage, "x"),
        ];
        let mut errnos = Vec::new();
        for (file, args) in kinds {
            let (control, args) = open_control(&group, file, args)?;
            let line = format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd());
            errnos.push(agent_errno(line.as_bytes())?);
        }
        Ok(errnos)
    };
    let as_user = || {
        check_as_user(|| {
            let errnos = try_all(&Waiter::new()?)?;
            let right = errnos == [0, 0, 0, libc::EDQUOT, libc::EINVAL];
            Ok(if right { String::new() } else { format!("{errnos:?}") })
        })
    };
    for _ in 0..2 {
        let wrong = as_user()?;
        ensure!(wrong.is_none(), "{wrong:?}");
        until("the user's ended with its process", || Ok(agent.status()?.registrations == 0))?;
    }
    let roots = Waiter::new()?;
    for _ in 0..2 {
        ensure!(try_all(&roots)? == [0, 0, 0, 0, libc::EINVAL], "root has a quota");
    }
    Ok(())
}
