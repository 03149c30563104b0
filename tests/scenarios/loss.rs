//! Losses on the way, and that no signal is lost by them: doorbells, skipped
//! programs, deep hierarchies, slots that are used again.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::signal::{Signal, kill};

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;

fn loss(agent: &Agent, name: &str) -> Result<u64> {
    let status = agent.status()?;
    status.losses.get(name).copied().context("no such count")
}

vm_test!(
    loss_full_ring,
    "a ring too small for the storm is counted, and every final state is signalled",
    Any,
    [Kernel, Preempt]
);
fn loss_full_ring() -> Result<()> {
    // 4096 bytes hold 170 doorbells of 24 bytes; 300 groups ring while the agent does not read.
    let agent = Agent::start(&["--ring-bytes", "4096"])?;
    let groups: Vec<_> = (0..300).map(|n| Group::new(&format!("ring{n}"))).collect::<Result<_>>()?;
    let waiters: Vec<_> = groups.iter().map(|group| Waiter::on(group, "64K")).collect::<Result<_>>()?;
    agent.signal(Signal::SIGSTOP)?;
    for group in &groups {
        let mut charger = Charger::start(group)?;
        charger.grow(Kind::Anonymous, MIB)?;
        // Back below for every other one: a crossing that did not last.
        charger.end()?;
    }
    agent.signal(Signal::SIGCONT)?;
    until("the lost doorbells are counted", || Ok(loss(&agent, "ring_full")? > 0))?;
    ensure!(agent.status()?.resyncs > 0, "all is read again after a loss");
    for (n, waiter) in waiters.iter().enumerate() {
        let signals = waiter.take()?;
        // What stays charged after the exit differs; up came first in any case.
        let above = groups[n].usage()? >= 64 << 10;
        ensure!(
            signals >= 1 && (signals % 2 == 1) == above,
            "group {n}: {signals} signals, usage {}",
            groups[n].usage()?
        );
    }
    Ok(())
}

/// Loopback traffic in its own group until killed: charges from softirqs.
fn traffic(group: &Group) -> Result<nix::unistd::Pid> {
    process::spawn(|| {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        group.add(nix::unistd::getpid())?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let mut sender = TcpStream::connect(listener.local_addr()?)?;
        let (mut receiver, _) = listener.accept()?;
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while receiver.read(&mut buffer).is_ok_and(|length| length > 0) {}
        });
        let buffer = vec![1; 1 << 20];
        loop {
            sender.write_all(&buffer)?;
        }
    })
}

vm_test!(
    loss_skipped_programs,
    "page faults and network traffic nest; no lasting crossing is missed",
    Any,
    [Kernel, Preempt, Variant]
);
fn loss_skipped_programs() -> Result<()> {
    const THRESHOLDS: [u64; 3] = [4 * MIB, 8 * MIB, 12 * MIB];
    let top = Group::new("nest")?;
    let busy: Vec<_> = (0..2).map(|n| top.child(&format!("net{n}"))).collect::<Result<_>>()?;
    let leaves: Vec<_> = (0..3).map(|n| top.child(&format!("leaf{n}"))).collect::<Result<_>>()?;
    let agent = Agent::start(&[])?;
    let talkers: Vec<_> = busy.iter().map(traffic).collect::<Result<_>>()?;
    let mut chargers: Vec<_> = leaves.iter().map(Charger::start).collect::<Result<_>>()?;
    let mut waiters = Vec::new();
    for leaf in &leaves {
        for threshold in THRESHOLDS {
            waiters.push((leaf, threshold, Waiter::on(leaf, &threshold.to_string())?, 0));
        }
    }
    let rounds = 12;
    for round in 0..rounds {
        for charger in &mut chargers {
            charger.begin_spike(Kind::Anonymous, 16 * MIB, 1)?;
        }
        for charger in &mut chargers {
            charger.finish()?;
            charger.grow(Kind::Anonymous, 14 * MIB)?;
        }
        // Whatever was skipped is caught by the sweep at the latest.
        for (leaf, threshold, waiter, total) in &mut waiters {
            until("a crossing that lasts is signalled", || {
                *total += waiter.take()?;
                Ok(*total % 2 == 1)
            })
            .with_context(|| format!("round {round}, {} {threshold}", leaf.path.display()))?;
        }
        for charger in &mut chargers {
            charger.shrink(Kind::Anonymous)?;
        }
        for (leaf, threshold, waiter, total) in &mut waiters {
            until("its end is signalled", || {
                *total += waiter.take()?;
                Ok(*total % 2 == 0)
            })
            .with_context(|| format!("round {round}, {} {threshold}", leaf.path.display()))?;
        }
    }
    for talker in talkers {
        kill(talker, Signal::SIGKILL)?;
        nix::sys::wait::waitpid(talker, None)?;
    }
    let status = agent.status()?;
    crate::harness::report::say!(
        "  {} calls skipped by the kernel, {} seen by the twin alone, {} re-syncs",
        status.skipped,
        loss(&agent, "nested")?,
        status.resyncs
    );
    if std::fs::read_to_string("/proc/cmdline")?.contains("preempt=full") {
        ensure!(status.skipped > 0, "nothing was skipped, so this test showed nothing");
        ensure!(status.resyncs > 0, "skips were not followed by a re-sync");
    }
    Ok(())
}

vm_test!(
    loss_twin_stays_idle,
    "the second program of a pair works only where the first was skipped",
    Any,
    [Kernel, Preempt]
);
fn loss_twin_stays_idle() -> Result<()> {
    std::fs::write("/proc/sys/kernel/bpf_stats_enabled", "1")?;
    let group = Group::new("twin")?;
    let agent = Agent::start(&[])?;
    let mut charger = Charger::start(&group)?;
    for _ in 0..20 {
        charger.spike(Kind::Anonymous, 8 * MIB, 1)?;
    }
    let (runs, nested) = (agent.status()?.runs, loss(&agent, "nested")?);
    std::fs::write("/proc/sys/kernel/bpf_stats_enabled", "0")?;
    ensure!(runs > 1000, "only {runs} runs");
    // The first program runs before the second, or each call would be looked at
    // twice; migrations between the two are rare.
    ensure!(nested * 50 < runs, "{nested} of {runs} runs were the twin's work");
    Ok(())
}

/// Threads that write a limit at once: more than a kretprobe has instances (10, or twice the CPUs).
const WRITERS: usize = 32;

vm_test!(
    loss_kprobe_misses,
    "what kprobes miss is counted where the kernel reports it, and made up for on every kernel",
    V2,
    [Kernel, Preempt]
);
fn loss_kprobe_misses() -> Result<()> {
    let is_counted = !memcg_monitor::kernel::release().starts_with("6.1.");
    let (group, stuck) = (Group::new("probed")?, Group::new("stuck")?);
    let agent = Agent::start(&["--backend", "kprobe", "--sweep-ms", "200"])?;
    let (waiter, oom) = (Waiter::on(&group, "4M")?, Waiter::at(&group, ControlFile::Oom, "")?);
    let mut unkillable = Charger::start(&stuck)?;
    unkillable.grow(Kind::Anonymous, 8 * MIB)?;
    let score = format!("/proc/{}/oom_score_adj", unkillable.pid());
    std::fs::write(&score, "-1000").with_context(|| format!("cannot write {score}"))?;
    let before = agent.status()?;
    ensure!(!is_counted || before.resyncs == 0, "all was read again, and no call was missed: {before:?}");
    // Each writer waits for the OOM killer, within the function.
    until("calls are missed", || {
        std::thread::scope(|scope| {
            let writer = || stuck.write("memory.max", "1M");
            let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(writer)).collect();
            writers.into_iter().try_for_each(|writer| writer.join().unwrap_or(Ok(())))
        })?;
        stuck.write("memory.max", "max")?;
        let status = agent.status()?;
        Ok(if is_counted { status.skipped > 0 } else { status.resyncs > 0 })
    })?;
    unkillable.end()?;
    // The second sweep after takes away what they have left behind.
    let since = agent.status()?.resyncs;
    if !is_counted {
        until("a few sweeps", || Ok(agent.status()?.resyncs > since + 3))?;
    }
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    waiter.crosses("up")?;
    charger.shrink(Kind::Anonymous)?;
    waiter.crosses("down")?;
    charger.end()?;
    group.set_limit(16 * MIB)?;
    Charger::start(&group)?.grow_to_death(64 * MIB)?;
    ensure!(oom.wait()? >= 1, "an OOM after that is signalled");
    Ok(())
}

/// A group with so many levels below it, one in each.
fn chain(top: &Group, levels: usize) -> Result<Vec<Group>> {
    let mut chain = vec![top.child("d")?];
    for _ in 1..levels {
        let next = chain[chain.len() - 1].child("d")?;
        chain.push(next);
    }
    Ok(chain)
}

vm_test!(
    loss_deep_hierarchy,
    "an ancestor 100 levels up is signalled by a doorbell, one more than 512 up by the sweep",
    Any,
    [Kernel, Preempt]
);
fn loss_deep_hierarchy() -> Result<()> {
    let top = Group::new("deep")?;
    for (levels, sweep) in [(100, "3600000"), (530, "50")] {
        let agent = Agent::start(&["--sweep-ms", sweep])?;
        let mut chain = chain(&top, levels)?;
        let bystander = Group::new("beside")?;
        let beside = Waiter::on(&bystander, "64M")?;
        // The groups below weigh on the top.
        let waiter = Waiter::on(&top, &(top.usage()? + 4 * MIB).to_string())?;
        let mut charger = Charger::start(&chain[chain.len() - 1])?;
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        ensure!(waiter.wait()? == 1, "{levels} levels up");
        let deep = loss(&agent, "too_deep")?;
        ensure!((deep > 0) == (levels > 512), "{levels} levels: {deep} charges were too deep");
        ensure!(agent.status()?.resyncs == 0, "all that is watched was read again");
        ensure!(beside.take()? == 0, "a bystander was signalled");
        charger.end()?;
        while let Some(group) = chain.pop() {
            group.remove()?;
        }
    }
    Ok(())
}

vm_test!(
    loss_slots_are_used_again,
    "ten times as many groups as slots come and go; the last is watched as the first",
    Any,
    [Kernel, Preempt]
);
fn loss_slots_are_used_again() -> Result<()> {
    let agent = Agent::start(&["--max-groups", "64"])?;
    for round in 0..32 {
        let groups: Vec<_> = (0..20).map(|n| Group::new(&format!("r{round}-{n}"))).collect::<Result<_>>()?;
        // Half of them watched: those slots go back through the agent.
        let waiters: Vec<_> =
            groups.iter().step_by(2).map(|group| Waiter::on(group, "1M")).collect::<Result<_>>()?;
        groups.iter().try_for_each(Group::remove)?;
        for waiter in &waiters {
            ensure!(waiter.wait()? == 1, "round {round}: removal");
        }
        // Those that are not watched give their slots back as they are removed, the others when the
        // removal is signalled.
        let probe = Group::new("probe")?;
        let watched = Waiter::on(&probe, "1M");
        ensure!(watched.is_ok(), "round {round}: the slots are not back: {watched:?}");
        probe.remove()?;
    }
    let group = Group::new("last")?;
    let waiter = Waiter::on(&group, "4M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "the last group is watched as the first");
    drop(agent);
    Ok(())
}
