//! Kills that no program saw: from the kernel's log, and where that has none of them from the groups'
//! counts.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;

use super::MIB;
use super::oom::{follow, name};
use super::victims::{KernelLine, kept, kill};
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::group::Family;
use crate::harness::process;
use crate::harness::test::vm_test;

const SAMPLED: [&str; 2] = ["--backend", "sampled"];

/// Waits until so many kills are kept, and no more, and returns them.
fn all_kept(agent: &Agent, wanted: u64) -> Result<Vec<monitor_client::wire::EventRow>> {
    until("each kill is kept", || Ok(kept()?.1 >= wanted))?;
    agent.settle()?;
    let (kills, total) = kept()?;
    ensure!(total == wanted, "{total} kills, not {wanted}: {kills:?}");
    Ok(kills)
}

vm_test!(
    event_logged_kill,
    "an agent that samples tells of a kill what the kernel logs of it, with the groups",
    V2,
    [Kernel, Preempt, Sampled]
);
fn event_logged_kill() -> Result<()> {
    let family = Family::new("logged")?;
    family.group.set_limit(16 * MIB)?;
    let agent = Agent::start(&SAMPLED)?;
    let (connection, _waiter) = follow(&family.child)?;
    let outcome = process::run_in(CloneFlags::empty(), || {
        // A name that looks like the log's own fields.
        nix::sys::prctl::set_name(c"a,pid=1 (\\,uid=")?;
        fs::write("/proc/self/oom_score_adj", "137")?;
        family.child.write("cgroup.procs", "0")?;
        let mut memory = vec![0_u8; 64 << 20];
        memory.chunks_mut(4096).for_each(|page| page[0] = 1);
        black_box(memory);
        Ok(())
    });
    ensure!(outcome.is_err(), "it outlived its limit");
    let (row, victim) = kill(&connection)?;
    ensure!((row.event.as_str(), row.reason.as_deref()) == ("oom_kill", Some("limit")), "{row:?}");
    ensure!(
        row.origin == Some(name(&family.group)) && victim.cgroup == name(&family.child),
        "{row:?} {victim:?}"
    );
    let pid = victim.pid.context("no pid")?;
    ensure!(victim.comm.as_deref() == Some("a,pid=1 (\\,uid="), "{victim:?}");
    ensure!(
        victim.oom_score_adj == Some(137) && victim.uid == Some(0) && victim.swap.is_none(),
        "{victim:?}"
    );
    let line = KernelLine::of(pid)?;
    ensure!(victim.total_vm == Some(line.bytes("total-vm")?), "{victim:?} {line:?}");
    ensure!(victim.anon_rss == Some(line.bytes("anon-rss")?), "{victim:?} {line:?}");
    ensure!(victim.page_tables == Some(line.bytes("pgtables")?), "{victim:?} {line:?}");
    let kills = all_kept(&agent, 1)?;
    ensure!(kills.iter().all(|kill| kill.cgroup == name(&family.child)), "{kills:?}");
    Ok(())
}

vm_test!(
    event_logged_kills_of_a_group,
    "a group that is killed as a whole is told by an agent that samples, and each process of it once",
    V2,
    [Kernel, Preempt, Sampled]
);
fn event_logged_kills_of_a_group() -> Result<()> {
    let family = Family::new("whole")?;
    family.group.set_limit(16 * MIB)?;
    family.group.write("memory.oom.group", "1")?;
    let agent = Agent::start(&SAMPLED)?;
    let (connection, _waiter) = follow(&family.group)?;
    let mut other = Charger::start(&family.child)?;
    let mut charger = Charger::start(&family.child)?;
    let mut wanted = [other.pid(), charger.pid()].map(|pid| u64::try_from(pid.as_raw()).unwrap_or(0));
    charger.grow_to_death(64 * MIB)?;
    ensure!(other.grow(Kind::Anonymous, MIB).is_err(), "the other process of the group lives on");
    loop {
        let (row, victim) = kill(&connection)?;
        if row.event == "oom_group_kill" {
            ensure!(
                victim.cgroup == name(&family.group) && row.origin == Some(name(&family.group)),
                "{row:?}"
            );
            break;
        }
    }
    let kills = all_kept(&agent, 2)?;
    let mut pids: Vec<_> = kills.iter().filter_map(|kill| kill.victim.as_ref()?.pid).collect();
    pids.sort_unstable();
    wanted.sort_unstable();
    ensure!(pids == wanted, "{kills:?}, not {wanted:?}");
    ensure!(kills.iter().all(|kill| kill.cgroup == name(&family.child)), "{kills:?}");
    Ok(())
}

vm_test!(
    event_logged_kills_beyond_the_log,
    "each of more kills than the kernel logs in full is told once, in its group",
    V2,
    [Kernel, Preempt, Sampled]
);
fn event_logged_kills_beyond_the_log() -> Result<()> {
    // The kernel leaves out the groups of more than ten in five seconds.
    const KILLS: usize = 14;
    let family = Family::new("many")?;
    family.child.set_limit(8 * MIB)?;
    let agent = Agent::start(&SAMPLED)?;
    let mut wanted = Vec::new();
    for _ in 0..KILLS {
        let mut charger = Charger::start(&family.child)?;
        wanted.push(u64::try_from(charger.pid().as_raw())?);
        charger.grow_to_death(32 * MIB)?;
    }
    let kills = all_kept(&agent, KILLS as u64)?;
    ensure!(kills.iter().all(|kill| kill.cgroup == name(&family.child)), "{kills:?}");
    let pids: Vec<_> = kills.iter().filter_map(|kill| kill.victim.as_ref()?.pid).collect();
    ensure!(pids.iter().all(|pid| wanted.contains(pid)), "{pids:?}, not {wanted:?}");
    let mut once = pids.clone();
    once.sort_unstable();
    once.dedup();
    ensure!(once.len() == pids.len() && pids.len() >= 10, "{pids:?} of {wanted:?}");
    Ok(())
}

vm_test!(
    event_logged_kills_lost,
    "a kill whose line was overwritten before the agent read it is told once, by the groups' counts",
    V2,
    [Kernel, Preempt, Sampled]
);
fn event_logged_kills_lost() -> Result<()> {
    let family = Family::new("overwritten")?;
    family.group.set_limit(16 * MIB)?;
    let agent = Agent::start(&SAMPLED)?;
    agent.settle()?;
    agent.signal(Signal::SIGSTOP)?;
    let outcome = Charger::start(&family.child).and_then(|mut charger| {
        charger.grow_to_death(64 * MIB)?;
        // With its newline, or the kernel takes it for another word (`devkmsg_sysctl_set_loglvl`).
        fs::write("/proc/sys/kernel/printk_devkmsg", "on\n")?;
        let mut log = File::options().write(true).open("/dev/kmsg")?;
        let line = format!("<7>{}\n", "x".repeat(900));
        // More than the log has room for; below the console's level.
        (0..6000).try_for_each(|_| log.write_all(line.as_bytes()))?;
        Ok(())
    });
    agent.signal(Signal::SIGCONT)?;
    outcome?;
    let kills = all_kept(&agent, 1)?;
    let row = kills.first().context("a kill")?;
    ensure!(row.cgroup == name(&family.child) && row.origin == Some(name(&family.group)), "{row:?}");
    ensure!(row.reason.as_deref() == Some("limit"), "{row:?}");
    ensure!(row.victim.as_ref().is_some_and(|victim| victim.pid.is_none()), "{row:?}");
    ensure!(Agent::log().contains("records of the kernel's log were lost"), "{}", Agent::log());
    Ok(())
}

vm_test!(
    event_logged_kills_without_a_log,
    "an agent that samples and may not read the log says so, and tells of kills by the groups' counts",
    V2,
    [Kernel, Preempt, Sampled]
);
fn event_logged_kills_without_a_log() -> Result<()> {
    let family = Family::new("unlogged")?;
    family.group.set_limit(16 * MIB)?;
    fs::rename("/dev/kmsg", "/dev/kmsg-away")?;
    let agent = Agent::start(&SAMPLED);
    fs::rename("/dev/kmsg-away", "/dev/kmsg")?;
    let agent = agent?;
    until("it is said", || Ok(Agent::log().contains("/dev/kmsg: No such file or directory")))?;
    Charger::start(&family.child)?.grow_to_death(64 * MIB)?;
    let kills = all_kept(&agent, 1)?;
    let row = kills.first().context("a kill")?;
    ensure!(row.cgroup == name(&family.child) && row.origin == Some(name(&family.group)), "{row:?}");
    ensure!(row.victim.as_ref().is_some_and(|victim| victim.pid.is_none()), "{row:?}");
    Ok(())
}
