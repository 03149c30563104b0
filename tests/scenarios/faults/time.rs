//! Clocks jump, and clients stand still.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use monitor_client::{SOCKET, connect};
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::Pid;

use super::{MIB, crosses};
use crate::harness::agent::{Agent, BINARY, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, register_line};
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

/// Times up and down.
const STORM: u64 = 100;

/// The host's time of day, moved, and put back with its value.
struct Moved(TimeSpec);

impl Moved {
    fn by(days: i64) -> Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
        clock_settime(ClockId::CLOCK_REALTIME, now + TimeSpec::seconds(days * 86_400))
            .context("clock_settime failed")?;
        Ok(Self(TimeSpec::seconds(days * 86_400)))
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        let now = clock_gettime(ClockId::CLOCK_REALTIME);
        let _ = now.and_then(|now| clock_settime(ClockId::CLOCK_REALTIME, now - self.0));
    }
}

vm_test!(
    faults_clock,
    "the clock jumps a year ahead and back: crossings, rests, samples and sweeps go on",
    Any,
    []
);
fn faults_clock() -> Result<()> {
    // What is more than 512 levels up is seen by the sweep alone.
    let top = Group::new("clock")?;
    let mut chain = vec![top.child("d")?];
    for _ in 0..530 {
        let next = chain[chain.len() - 1].child("d")?;
        chain.push(next);
    }
    let group = Group::new("clocked")?;
    let mut agent = Supervised::start(&["--sweep-ms", "100", "--holdoff-ms", "50", "--sample-ms", "50"])?;
    let mut charger = Charger::start(&group)?;
    let mut deep = Charger::start(&chain[chain.len() - 1])?;
    let waiter = Waiter::on(&group, "4M")?;
    // The groups below are kernel memory, 12 KiB each on 7.2, and weigh on the top.
    let swept = Waiter::on(&top, &(top.usage()? + 4 * MIB).to_string())?;
    let sampled = Waiter::at(&group, ControlFile::WorkingSet, "5M")?;
    let mut all_goes_on = |agent: &Agent| -> Result<()> {
        crosses(&mut charger, &waiter)?;
        deep.grow(Kind::Anonymous, 6 * MIB)?;
        swept.receives(1, "the sweep continues")?;
        deep.shrink(Kind::Anonymous)?;
        swept.receives(1, "the sweep continues a second time")?;
        // A threshold that flaps rests; its last word is said all the same.
        charger.spike(Kind::Anonymous, 6 * MIB, 40)?;
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        // From here on an odd number of signals is the last word.
        agent.settle()?;
        let mut total = 0;
        until("a rest ends", || {
            total += waiter.take()?;
            Ok(total % 2 == 1)
        })?;
        // Sampled now and then: what was above may have been missed, but not for good.
        let mut total = sampled.take()?;
        until("a sample is taken", || {
            total += sampled.take()?;
            Ok(total % 2 == 1)
        })?;
        charger.shrink(Kind::Anonymous)?;
        waiter.receives(1, "down again")?;
        until("and another", || {
            total += sampled.take()?;
            Ok(total % 2 == 0)
        })
    };
    for days in [365, -730] {
        let moved = Moved::by(days)?;
        all_goes_on(&agent.0).with_context(|| format!("{days} days"))?;
        drop(moved);
    }
    // And an agent that comes back into another time.
    let mut moved = Err(anyhow::anyhow!("not moved"));
    agent.killed_while(|| {
        moved = Moved::by(365);
        Ok(())
    })?;
    let _moved = moved?;
    ensure!(agent.registrations()? == 3, "all are kept");
    all_goes_on(&agent.0).context("a restart")?;
    charger.end()?;
    deep.end()?;
    while let Some(group) = chain.pop() {
        group.remove()?;
    }
    Ok(())
}

/// A client that reads signals from `from` and passes them on to `to`.
fn client(from: &EventFd, to: &EventFd) -> Result<Pid> {
    process::spawn(|| {
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        while let Ok(count) = from.read() {
            let _ = to.write(count);
        }
        Ok(())
    })
}

vm_test!(
    faults_stopped_clients,
    "all clients stand still in a storm: the agent waits for none, each is signalled for all of it later",
    Any,
    []
);
fn faults_stopped_clients() -> Result<()> {
    const FOLLOWER: &str = "/tmp/follower";
    let group = Group::new("still")?;
    let agent = Agent::start(&["--holdoff-ms", "0"])?;
    let mut charger = Charger::start(&group)?;
    let usage_file = group.usage_file().to_string_lossy().into_owned();
    let mut follower = Command::new(BINARY)
        .args(["listen", "-o", "json", &usage_file, "4M"])
        .stdout(File::create(FOLLOWER)?)
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the follower")?;
    // Blocking, as a client's may be.
    let (eventfd, ready) = (EventFd::from_flags(EfdFlags::empty())?, Waiter::new()?);
    let control = File::open(group.usage_file())?;
    register_line(format!("{} {} 4M", eventfd.as_raw_fd(), control.as_raw_fd()).as_bytes())?;
    let child = client(&eventfd, &ready.0)?;
    let oracle = Waiter::on(&group, "4M")?;
    until("three are registered", || Ok(agent.status()?.registrations == 3))?;
    let stopped = [child, Pid::from_raw(follower.id().cast_signed())];
    for pid in stopped {
        kill(pid, Signal::SIGSTOP)?;
        until("it stands still", || {
            let status = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            Ok(status.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
        })?;
    }
    // A client that sends requests on and on and reads no answer.
    let deaf = connect(Path::new(SOCKET))?;
    while send(deaf.as_raw_fd(), b" ", MsgFlags::MSG_DONTWAIT).is_ok() {}

    let mut total = 0;
    for _ in 0..STORM {
        charger.grow(Kind::Anonymous, 6 * MIB)?;
        total += oracle.wait()?;
        charger.shrink(Kind::Anonymous)?;
        total += oracle.wait()?;
    }
    ensure!(Waiter::on(&group, "64M").is_ok(), "others are served");
    agent.settle()?;
    total += oracle.take()?;
    ensure!(total >= 2 * STORM, "each crossing is signalled to those that read, {total} of {}", 2 * STORM);
    ensure!(ready.take()? == 0, "a stopped client receives nothing");
    for pid in stopped {
        kill(pid, Signal::SIGCONT)?;
    }
    let mut late = 0;
    until("the client receives all of it", || {
        late += ready.take()?;
        Ok(late == total)
    })
    .with_context(|| format!("{late} of {total}"))?;
    until("the follower writes all of it", || {
        let text = fs::read_to_string(FOLLOWER)?;
        Ok(text.lines().filter(|line| line.contains("crossed")).count() as u64 == total)
    })?;
    drop(deaf);
    charger.end()?;
    group.remove()?;
    ensure!(follower.wait()?.success(), "the follower ends with the group");
    Ok(())
}
