//! OOMs while others make all the noise they can: each is signalled, and none that was not.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, chown};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use monitor_common::grammar::control_file::ControlFile;
use nix::unistd::{ForkResult, fork};

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process::{Process, USER};
use crate::harness::shared::{Atomics, Shared};
use crate::harness::test::vm_test;

/// A count that a child and its threads keep.
struct Count(AtomicU64);

// SAFETY: one atomic, for which zeros are a value.
unsafe impl Atomics for Count {}

impl Count {
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The kernel's own lines about each OOM would take longer than the OOM.
fn be_quiet() -> Result<()> {
    fs::write("/proc/sys/kernel/printk", "1").context("cannot quiet the console")?;
    fs::write("/proc/sys/vm/oom_dump_tasks", "0").context("cannot shorten what an OOM logs")
}

/// A group whose limit an ordinary user may write.
fn users_group(name: &str) -> Result<Group> {
    let group = Group::new(name)?;
    chown(group.path.join("memory.max"), Some(USER), Some(USER))?;
    Ok(group)
}

/// An ordinary user's process with so many threads, each of which writes these limits in
/// turn; and the writes so far.
fn writers(
    group: &Group,
    threads: usize,
    limits: &'static [&'static str],
) -> Result<(Process, Shared<Count>)> {
    let (count, path) = (Shared::<Count>::new()?, group.path.join("memory.max"));
    let writes = &count;
    let process = Process::start_as(USER, || {
        let write = || -> Result<()> {
            let file = OpenOptions::new().write(true).open(&path)?;
            for limit in limits.iter().cycle() {
                // A limit that cannot be had is set all the same.
                let _ = file.write_at(limit.as_bytes(), 0);
                writes.add();
            }
            Ok(())
        };
        thread::scope(|scope| -> Result<()> {
            let start = |_| thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, write);
            let threads = (0..threads).map(start).collect::<std::io::Result<Vec<_>>>()?;
            for thread in threads {
                thread.join().map_err(|_| anyhow!("a writer panicked"))??;
            }
            Ok(())
        })
    })?;
    Ok((process, count))
}

vm_test!(
    abuse_limit_writes_hide_no_oom,
    "1,200 threads of a user write memory.max below what cannot be reclaimed: another's OOMs are all signalled, and of theirs no more than the kernel kept from the programs",
    V2,
    [Kernel, Preempt]
);
fn abuse_limit_writes_hide_no_oom() -> Result<()> {
    be_quiet()?;
    let (noisy, victim) = (users_group("noisy")?, Group::new("victim")?);
    victim.set_limit(8 * MIB)?;
    let agent = Agent::start(&[])?;
    // Pages of a file in memory stay with the group that no task is in any more: so a write
    // finds no task to kill, and takes long.
    let mut charger = Charger::start(&noisy)?;
    charger.grow(Kind::File, 4 * MIB)?;
    Group::root()?.add(charger.pid())?;
    let (own, other) =
        (Waiter::at(&noisy, ControlFile::Oom, "")?, Waiter::at(&victim, ControlFile::Oom, "")?);
    let (process, writes) = writers(&noisy, 1200, &["1M"])?;
    until("all threads are at it", || {
        Ok(noisy.field("memory.events.local", "oom")? >= 8 && writes.get() > 0)
    })?;
    receives_its_ooms(&victim, &other)?;
    drop(process);
    agent.settle()?;
    let received = own.take()?;
    let status = agent.status()?;
    // One whose beginning the kernel kept from both programs looks like a charge's.
    ensure!(
        received <= status.skipped,
        "a written limit is no OOM: {received} of {} writes are signalled, {status:?}",
        writes.get()
    );
    // An OOM of a charge in that group is one again.
    noisy.set_limit(16 * MIB)?;
    let before = noisy.field("memory.events.local", "oom")?;
    Charger::start(&noisy)?.grow_to_death(64 * MIB)?;
    let counted = noisy.field("memory.events.local", "oom")? - before;
    let mut received = 0;
    until("an OOM of a charge is signalled again", || {
        received += own.take()?;
        ensure!(received <= counted, "{received} signals of {counted} OOMs");
        Ok(received == counted)
    })
}

/// A group runs out of memory three times, and its listener is signalled once for each OOM that
/// the kernel counts.
fn receives_its_ooms(group: &Group, listener: &Waiter) -> Result<()> {
    let mut received = 0;
    for round in 1..=3 {
        Charger::start(group)?.grow_to_death(32 * MIB)?;
        let counted = group.field("memory.events.local", "oom")?;
        ensure!(counted >= round, "the kernel counts {counted} in round {round}");
        until(&format!("OOM {counted} of the other group is signalled"), || {
            received += listener.take()?;
            ensure!(received <= counted, "{received} signals of {counted} OOMs");
            Ok(received == counted)
        })?;
    }
    Ok(())
}

/// Forks until it is killed, each child with memory of its own.
fn bomb(forks: &Count) -> Result<()> {
    loop {
        let memory = vec![1u8; 1 << 20];
        std::hint::black_box(&memory);
        // SAFETY: this process has one thread, so no lock is held that the child may need.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => std::mem::forget(memory),
            Ok(ForkResult::Parent { .. }) => {
                forks.add();
                // Keeps what it has, as the child does: they die of it.
                std::mem::forget(memory);
            }
            Err(_) => thread::yield_now(),
        }
    }
}

vm_test!(
    abuse_fork_bomb,
    "a user's fork bomb that OOMs all the time: another's OOMs are all signalled, and afterwards none that is over is signalled",
    V2,
    [Kernel, Preempt, Standing]
);
fn abuse_fork_bomb() -> Result<()> {
    be_quiet()?;
    let (group, victim) = (Group::new("bomb")?, Group::new("victim")?);
    group.set_limit(24 * MIB)?;
    victim.set_limit(8 * MIB)?;
    let agent = Agent::standing()?;
    let (own, other) =
        (Waiter::at(&group, ControlFile::Oom, "")?, Waiter::at(&victim, ControlFile::Oom, "")?);
    let forks = Shared::<Count>::new()?;
    let procs = group.path.join("cgroup.procs");
    let mut enter = File::options().write(true).open(procs)?;
    let process = Process::start_as(USER, || {
        enter.write_all(b"0")?;
        bomb(&forks)
    })?;
    until("it OOMs", || {
        Ok(group.field("memory.events", "oom_kill")? >= 20
            || group.field("memory.events.local", "oom")? >= 20)
    })?;
    receives_its_ooms(&victim, &other)?;
    // In the midst of it a client registers: the group is under OOM, or not.
    let during = Waiter::at(&group, ControlFile::Oom, "")?;
    group.write("cgroup.kill", "1")?;
    until("the bomb is gone", || Ok(fs::read_to_string(group.path.join("cgroup.procs"))?.is_empty()))?;
    drop(process);
    agent.settle()?;
    let (counted, received) = (group.field("memory.events.local", "oom")?, own.take()?);
    ensure!(received > 0 && received <= counted, "{received} signals of {counted} OOMs");
    ensure!(during.take()? <= received + 1, "one that registered later received more");
    // By the second sweep after, where the kernel has skipped beginnings or ends.
    until("nothing is under OOM any more", || {
        let after = Waiter::at(&group, ControlFile::Oom, "")?;
        agent.settle()?;
        Ok(after.take()? == 0)
    })
}

vm_test!(
    abuse_limit_storm,
    "a user writes memory.max in a loop: another's percent threshold is crossed, follows its limit, and the agent answers",
    V2,
    [Kernel, Preempt]
);
fn abuse_limit_storm() -> Result<()> {
    let (noisy, group) = (users_group("noisy")?, Group::new("quiet")?);
    group.set_limit(32 * MIB)?;
    let agent = Agent::start(&[])?;
    let waiter = Waiter::on(&group, "50%")?;
    let (_process, writes) = writers(&noisy, 4, &["max", "64M"])?;
    until("the storm is on", || Ok(writes.get() > 1000))?;
    let mut charger = Charger::start(&group)?;
    for round in 0..3 {
        charger.grow(Kind::Anonymous, 20 * MIB)?;
        waiter.receives(1, &format!("up, round {round}"))?;
        group.set_limit(64 * MIB)?;
        waiter.receives(1, &format!("20 MiB are less than half of 64 MiB, round {round}"))?;
        group.set_limit(32 * MIB)?;
        waiter.receives(1, &format!("and more than half of 32 MiB, round {round}"))?;
        charger.shrink(Kind::Anonymous)?;
        waiter.receives(1, &format!("down, round {round}"))?;
        let before = writes.get();
        let status = agent.status()?;
        let full = status.losses.get("ring_full").copied().unwrap_or(0);
        ensure!(full == 0, "{full} doorbells found the ring full");
        until("the writes continue", || Ok(writes.get() > before + 100))?;
    }
    Ok(())
}

vm_test!(
    abuse_oom_once_killed_is_one_line,
    "processes that meet the OOM killer again and again: one line for each that the kernel counts as killed",
    V2,
    [Kernel, Preempt, Standing]
);
fn abuse_oom_once_killed_is_one_line() -> Result<()> {
    use crate::scenarios::event::oom::{event, follow};
    be_quiet()?;
    let group = Group::new("lines")?;
    group.set_limit(16 * MIB)?;
    let _agent = Agent::standing()?;
    let (connection, waiter) = follow(&group)?;
    // A dying process may meet the limit once more, from 6.16 on as a victim again.
    for _ in 0..8 {
        Charger::start(&group)?.grow_to_death(80 * MIB)?;
    }
    let (ooms, killed) =
        (group.field("memory.events.local", "oom")?, group.field("memory.events", "oom_kill")?);
    group.remove()?;
    // The removal is signalled last.
    let (mut signals, mut pids) = (0, Vec::new());
    loop {
        let row = event(&connection)?;
        match row.event.as_str() {
            "removed" => break,
            "oom" => signals += row.signals,
            "oom_kill" => pids.push(row.victim.and_then(|victim| victim.pid).context("no victim")?),
            _ => {}
        }
    }
    ensure!(signals == ooms, "{signals} signals of {ooms} OOMs");
    ensure!(pids.len() as u64 == killed, "{} lines of {killed} kills: {pids:?}", pids.len());
    let lines = pids.len();
    pids.sort_unstable();
    pids.dedup();
    ensure!(pids.len() == lines, "a process was killed twice");
    // Followers are sent it first.
    let mut received = 0;
    until("its eventfd is signalled for each, and for the removal", || {
        received += waiter.take()?;
        Ok(received == ooms + 1)
    })
}
