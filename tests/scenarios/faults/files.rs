//! File systems go read-only, fill up, go, and come back.

use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use memcg_monitor::programs::PINS_DIRECTORY;
use memcg_monitor::view::POINT;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};

use super::{MIB, crosses, own_mounts, read_only};
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, register_line};
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};
use crate::scenarios::restart::{Supervised, is_dead, nothing_is_left};

const RUN: &str = "/run/memcg-monitor";
const BPF: &str = "/sys/fs/bpf";
const CGROUP: &str = "/sys/fs/cgroup";

/// An agent beside the one that runs.
const ANOTHER: [&str; 6] = [
    "agent",
    "--no-mount",
    "--socket",
    "/run/memcg-monitor/another.sock",
    "--control-socket",
    "/run/memcg-monitor/another-control.sock",
];

vm_test!(
    faults_run,
    "with /run full or read-only, a running agent continues, a new one names it, one that comes back waits",
    Any,
    []
);
fn faults_run() -> Result<()> {
    own_mounts()?;
    fs::create_dir_all(RUN)?;
    // A view that a killed agent left there would lie beneath.
    let _ = umount2(POINT, MntFlags::MNT_DETACH);
    // Four pages, and what they are charged to.
    mount(Some("run"), RUN, Some("tmpfs"), MsFlags::empty(), Some("size=16k,mode=755"))?;
    let group = Group::new("run")?;
    let mut agent = Supervised::start(&[])?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;

    let mut filler = fs::File::create(format!("{RUN}/filler"))?;
    while filler.write(&[0; 512]).is_ok_and(|written| written > 0) {}
    drop(filler);
    says(fails(&ANOTHER, |_| {})?, &["another.sock.lock", "No space left on device"])?;
    fs::remove_file(format!("{RUN}/another.sock.lock"))?;
    crosses(&mut charger, &waiter)?;
    agent.killed_while(|| charger.grow(Kind::Anonymous, 6 * MIB))?;
    ensure!(waiter.wait()? == 1, "back with what it had");
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiter.wait()? == 1, "and on");

    read_only(RUN, true)?;
    says(fails(&ANOTHER, |_| {})?, &["another.sock.lock", "Read-only file system"])?;
    crosses(&mut charger, &waiter)?;
    let late = Waiter::on(&group, "64M")?;
    let attempts = || Agent::log().matches("Read-only file system").count();
    let before = attempts();
    kill(agent.0.supervised()?, Signal::SIGKILL)?;
    until("it cannot come back, and says why", || Ok(attempts() >= before + 2))?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    read_only(RUN, false)?;
    agent.0.ready()?;
    ensure!(waiter.wait()? == 1, "what happened meanwhile is signalled");
    ensure!(agent.registrations()? == 2 && late.take()? == 0, "all are kept");
    charger.end()
}

vm_test!(faults_bpffs, "no BPF file system, or a read-only one: registrations survive all the same", Any, []);
fn faults_bpffs() -> Result<()> {
    const ALONE: &str = "nothing is seen while there is no agent";
    // What killed agents have pinned would stay attached, out of sight.
    let _ = fs::remove_dir_all(PINS_DIRECTORY);
    own_mounts()?;
    let group = Group::new("bpffs")?;
    let mut charger = Charger::start(&group)?;
    // There is none.
    umount2(BPF, MntFlags::MNT_DETACH)?;
    let mut agent = Supervised::start(&[])?;
    ensure!(Agent::log().contains(ALONE), "it does not say so");
    let (waiter, spike) = (Waiter::on(&group, "4M")?, Waiter::on(&group, "30M")?);
    agent.killed_while(|| {
        charger.spike(Kind::Anonymous, 32 * MIB, 1)?;
        charger.grow(Kind::Anonymous, 6 * MIB)
    })?;
    ensure!(waiter.wait()? == 1, "what lasts is signalled");
    agent.0.settle()?;
    ensure!(spike.take()? == 0, "a spike that no program saw is not");
    charger.shrink(Kind::Anonymous)?;
    ensure!(waiter.wait()? == 1 && agent.registrations()? == 2, "nothing is lost");
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "the agent ends well");
    drop((waiter, spike));

    // There is a read-only one.
    mount(Some("bpf"), BPF, Some("bpf"), MsFlags::empty(), Some("mode=0700"))?;
    read_only(BPF, true)?;
    let agent = Supervised::start(&[])?;
    let log = Agent::log();
    ensure!(log.contains(ALONE) && log.contains("Read-only file system"), "it does not say so: {log}");
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "the agent ends well");

    // It becomes so: what is pinned is used, and stays at the end, which is said.
    read_only(BPF, false)?;
    let mut agent = Supervised::start(&[])?;
    let waiter = Waiter::on(&group, "4M")?;
    read_only(BPF, true)?;
    agent.killed_while(|| charger.spike(Kind::Anonymous, 6 * MIB, 1))?;
    agent.0.settle()?;
    waiter.receives(2, "the pinned programs keep working, spikes included")?;
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "the agent ends well");
    ensure!(Agent::log().contains("Read-only file system"), "the pins stay, and it says so");
    // The next agent takes them over, and away.
    read_only(BPF, false)?;
    let agent = Supervised::start(&[])?;
    ensure!(agent.0.end(Signal::SIGTERM)? == 0, "the agent ends well");
    nothing_is_left()?;
    charger.end()
}

/// Registered by a control file at `path`.
fn waiter_at(path: &Path, args: &str) -> Result<Waiter> {
    let waiter = Waiter::new()?;
    let control = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    register_line(format!("{} {} {args}", waiter.0.as_raw_fd(), control.as_raw_fd()).as_bytes())?;
    Ok(waiter)
}

vm_test!(
    faults_cgroupfs,
    "the agent continues when the cgroup file system is remounted, mounted twice, unmounted, mounted again",
    V2,
    []
);
fn faults_cgroupfs() -> Result<()> {
    const SECOND: &str = "/tmp/second";
    let mount_on = |point: &str| {
        mount(Some("none"), point, Some("cgroup2"), MsFlags::empty(), None::<&str>).context("mount cgroup2")
    };
    let remount = |options: &str| {
        let (none, flags) = (None::<&str>, MsFlags::MS_REMOUNT);
        mount(none, CGROUP, none, flags, Some(options)).context("cannot remount the cgroup file system")
    };
    own_mounts()?;
    fs::create_dir_all(SECOND)?;
    let groups = ["first", "second", "third"].map(Group::new).into_iter().collect::<Result<Vec<_>>>()?;
    let agent = Agent::start(&[])?;
    let mut chargers = groups.iter().map(Charger::start).collect::<Result<Vec<_>>>()?;

    let waiter = Waiter::on(&groups[0], "4M")?;
    remount("nsdelegate")?;
    crosses(&mut chargers[0], &waiter)?;
    remount("")?;

    mount_on(SECOND)?;
    let second = Path::new(SECOND);
    let beside = waiter_at(&second.join("first/memory.current"), "4M")?;
    crosses(&mut chargers[0], &beside)?;
    agent.settle()?;
    waiter.receives(2, "both are signalled")?;
    drop(beside);

    umount2(CGROUP, MntFlags::MNT_DETACH)?;
    crosses(&mut chargers[0], &waiter)?;
    let away = waiter_at(&second.join("second/memory.current"), "4M")?;
    crosses(&mut chargers[1], &away)?;
    let shown = "/run/memcg-monitor/cgroup/third/memory.usage_in_bytes";
    let by_view = waiter_at(Path::new(shown), "4M")?;
    crosses(&mut chargers[2], &by_view)?;
    umount2(SECOND, MntFlags::MNT_DETACH)?;
    crosses(&mut chargers[0], &waiter)?;
    says(fails(&ANOTHER, |_| {})?, &["no cgroup hierarchy"])?;

    mount_on(CGROUP)?;
    let again = Waiter::on(&groups[2], "4M")?;
    crosses(&mut chargers[2], &again)?;
    let row = agent.row(&groups[2].path)?;
    ensure!(row.registrations.iter().map(|row| row.count).sum::<u64>() == 2, "both are listed: {row:?}");
    ensure!(!is_dead(agent.pid()), "the agent lives");
    drop(chargers);
    groups[0].remove()?;
    ensure!(waiter.wait()? == 1, "its removal is signalled");
    Ok(())
}
