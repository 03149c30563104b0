//! Resources that the agent depends on run short, go away or change: memory, descriptors, file
//! systems, clocks, controllers, clients. What happens then is written in
//! docs/reference/failure-modes.md.

mod files;
mod host;
mod kernel;
mod memory;
mod silence;
mod time;

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use monitor_client::{SOCKET, connect};
use nix::errno::Errno;
use nix::libc::{RLIMIT_NOFILE, prlimit, rlimit};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::answer;
use crate::scenarios::restart::Supervised;

/// Gives this test mounts of its own, which end with it.
fn own_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot unshare the mounts")?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).context("cannot make the mounts private")
}

/// Makes a mount read-only, or writable again.
fn read_only(point: &str, on: bool) -> Result<()> {
    let flags = if on { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    mount(None::<&str>, point, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot remount {point}"))
}

/// Crosses a threshold of 4M up and down: both are signalled, once.
fn crosses(charger: &mut Charger, waiter: &Waiter) -> Result<()> {
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    waiter.receives(1, "up, once")?;
    charger.shrink(Kind::Anonymous)?;
    waiter.receives(1, "down, once")
}

/// How many descriptors that process may have from now on; how many it might before.
fn limit_descriptors(process: Pid, most: u64) -> Result<u64> {
    let (new, mut old) = (rlimit { rlim_cur: most, rlim_max: 4096 }, rlimit { rlim_cur: 0, rlim_max: 0 });
    // SAFETY: both outlive the call, which reads one and writes the other.
    let outcome = unsafe { prlimit(process.as_raw(), RLIMIT_NOFILE, &raw const new, &raw mut old) };
    Errno::result(outcome).context("prlimit failed")?;
    Ok(old.rlim_cur)
}

vm_test!(
    faults_descriptors,
    "without descriptors: ENOMEM, registrations and watchdog continue, and waiting clients are served later",
    Any,
    []
);
fn faults_descriptors() -> Result<()> {
    const MANY: usize = 40;
    let (group, other) = (Group::new("held")?, Group::new("other")?);
    let agent = Agent::start_watched(&[], 15)?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let connection = connect(Path::new(SOCKET))?;
    let (late, control) = (Waiter::new()?, File::open(other.usage_file())?);
    let (e, c) = (late.0.as_raw_fd(), control.as_raw_fd());
    ensure!(answer(&connection, b" ", &[])?.starts_with("-22 "), "the connection is served");
    let before = limit_descriptors(agent.pid(), agent.descriptors()?.len() as u64 + 10)?;
    ensure!(before > 1024 || before == 4096, "the soft limit was raised to the hard one: {before}");
    let hoard: Vec<_> = (0..MANY).map(|_| connect(Path::new(SOCKET))).collect::<Result<_, _>>()?;
    until("the agent is out of descriptors", || Ok(Agent::log().contains("accept: Too many open files")))?;
    // By numbers, and with descriptors sent along.
    for fds in [&[][..], &[e, c]] {
        let said = answer(&connection, format!("{e} {c} 4M").as_bytes(), fds)?;
        ensure!(said.starts_with("-12 ENOMEM: ") && said.contains("LimitNOFILE"), "{said:?}");
    }
    crosses(&mut charger, &waiter)?;
    agent.feeds_its_watchdog()?;
    ensure!(Agent::log().contains("taken for alive"), "it had descriptors: {}", Agent::log());
    // Connections that wait to be accepted are, when others end.
    let mut waiting = hoard.into_iter();
    waiting.by_ref().take(MANY - 1).for_each(drop);
    let last = waiting.next().context("one is left")?;
    let said = answer(&last, format!("{e} {c} 4M").as_bytes(), &[])?;
    ensure!(said == "0", "the last one is served: {said}");
    crosses(&mut charger, &waiter)?;
    ensure!(agent.status()?.failed_signals == 0, "all was signalled");
    charger.end()
}

vm_test!(
    faults_descriptors_sampled,
    "an agent that samples says how many groups its limit of descriptors allows; without any: ENOMEM",
    Any,
    []
);
fn faults_descriptors_sampled() -> Result<()> {
    const MOST: &str = "/proc/sys/fs/nr_open";
    let group = Group::new("held")?;
    let before = fs::read_to_string(MOST).context("cannot read fs.nr_open")?;
    // As for an agent without CAP_SYS_RESOURCE: this bounds it, too.
    fs::write(MOST, "4096").context("cannot set fs.nr_open")?;
    let agent = Agent::start(&["--backend", "sampled"]);
    fs::write(MOST, before.trim()).context("cannot set fs.nr_open again")?;
    let agent = agent?;
    ensure!(Agent::log().contains("at most 768 groups can be watched"), "{}", Agent::log());
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    limit_descriptors(agent.pid(), agent.descriptors()?.len() as u64 + 12)?;
    let many = (0..12).map(|number| Group::new(&format!("many{number}"))).collect::<Result<Vec<_>>>()?;
    let outcomes: Vec<_> = many.iter().map(|group| Waiter::on(group, "4M")).collect();
    let refused = outcomes.iter().find_map(|outcome| outcome.as_ref().err()).context("all are registered")?;
    let said = format!("{refused:#}");
    ensure!(said.contains("ENOMEM") && said.contains("LimitNOFILE"), "{said}");
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    waiter.crosses("registered before")?;
    charger.end()
}

vm_test!(
    faults_file_max,
    "on a host without files, registrations continue, and clients that came meanwhile are served later",
    Any,
    []
);
fn faults_file_max() -> Result<()> {
    const MOST: &str = "/proc/sys/fs/file-max";
    let group = Group::new("files")?;
    let agent = Agent::start(&[])?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let open = connect(Path::new(SOCKET))?;
    let (other, control) = (Waiter::new()?, File::open(group.usage_file())?);
    let (e, c) = (other.0.as_raw_fd(), control.as_raw_fd());
    ensure!(answer(&open, b" ", &[])?.starts_with("-22 "), "the connection is served");
    let before = fs::read_to_string(MOST).context("cannot read fs.file-max")?;
    let used = fs::read_to_string("/proc/sys/fs/file-nr").context("cannot read fs.file-nr")?;
    let used: u64 = used.split_whitespace().next().context("fs.file-nr is empty")?.parse()?;
    // Not for us, who have CAP_SYS_ADMIN; the agent has given that up. Not lower: twice as many
    // unix sockets there may be, for any user.
    fs::write(MOST, (used / 2).to_string()).context("cannot set fs.file-max")?;
    let late = connect(Path::new(SOCKET))?;
    until("the host is out of files", || Ok(Agent::log().contains("accept: Too many open files in system")))?;
    let said = answer(&open, format!("{e} {c} 4M").as_bytes(), &[])?;
    ensure!(said.starts_with("-12 ENOMEM: "), "on an open connection: {said:?}");
    crosses(&mut charger, &waiter)?;
    fs::write(MOST, before.trim()).context("cannot set fs.file-max again")?;
    let said = answer(&late, format!("{e} {c} 4M").as_bytes(), &[])?;
    ensure!(said == "0", "who came meanwhile is served: {said}");
    crosses(&mut charger, &waiter)?;
    ensure!(agent.status()?.failed_signals == 0, "all was signalled");
    charger.end()
}

vm_test!(
    faults_controller,
    "a controller turned off, and on again, while there is no agent: signalled as a removal",
    V2,
    []
);
fn faults_controller() -> Result<()> {
    let parent = Group::new("switch")?;
    let group = parent.child("stays")?;
    let mut agent = Supervised::start(&[])?;
    let (before, above) = (Waiter::on(&group, "4M")?, Waiter::on(&parent, "4M")?);
    agent.killed_while(|| {
        parent.enable(false)?;
        parent.enable(true)
    })?;
    ensure!(before.wait()? == 1, "the group that was is gone");
    until("one is left", || Ok(agent.registrations()? == 1))?;
    let after = Waiter::on(&group, "4M")?;
    agent.killed_while(|| parent.enable(false))?;
    ensure!(after.wait()? == 1, "and so is the next");
    parent.enable(true)?;
    // The agent that stands still finds it off and on again, too.
    let third = Waiter::on(&group, "4M")?;
    let pid = agent.0.supervised()?;
    kill(pid, Signal::SIGSTOP)?;
    parent.enable(false)?;
    parent.enable(true)?;
    kill(pid, Signal::SIGCONT)?;
    ensure!(third.wait()? == 1, "the third one is gone");
    let fourth = Waiter::on(&group, "4M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    ensure!(fourth.wait()? == 1 && above.wait()? == 1, "the fourth is watched, and so is its parent");
    agent.0.settle()?;
    ensure!(
        before.take()? + after.take()? + third.take()? == 0,
        "a client that was signalled at the end receives no more"
    );
    charger.end()
}
