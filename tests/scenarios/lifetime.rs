//! The lifetime of a registration: as long as some process holds the eventfd, and
//! the group is there; no longer, and whatever the connection does.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use monitor_client::SOCKET;
use monitor_common::grammar::control_file::ControlFile;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{dup, pause};

use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, agent_errno};
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER};
use crate::harness::test::vm_test;
use crate::scenarios::view::shown;

fn registrations(agent: &Agent) -> Result<u64> {
    Ok(agent.status()?.registrations)
}

vm_test!(
    lifetime_ends_with_the_last_reference,
    "closing the last of several references ends the registration, none before",
    Any,
    [Oracle, Kernel, Preempt, Sampled]
);
fn lifetime_ends_with_the_last_reference() -> Result<()> {
    let group = Group::new("refs")?;
    // A sweep so slow that only the list, which looks before it answers, can be what ends it.
    let agent = Agent::start(&["--sweep-ms", "3600000"])?;
    let waiter = Waiter::on(&group, "8M")?;
    waiter.register(&group, "16M")?;
    let copy = dup(&waiter.0).context("dup failed")?;
    ensure!(registrations(&agent)? == 2, "two are registered");
    drop(waiter);
    // Two closes of the same file would look alike: show that one is not enough.
    let other = Waiter::on(&group, "32M")?;
    ensure!(registrations(&agent)? == 3, "a reference is left, so nothing may end");
    drop(copy);
    until("the last close ends both", || Ok(registrations(&agent)? == 1))?;
    drop(other);
    until("and the other", || Ok(registrations(&agent)? == 0))
}

vm_test!(
    lifetime_ends_with_a_sweep,
    "eventfds that are closed end with the next sweep, however many, without any request",
    Any,
    [Kernel, Preempt]
);
fn lifetime_ends_with_a_sweep() -> Result<()> {
    const MANY: usize = 3_000;
    process::allow_descriptors(MANY)?;
    let group = Group::new("swept")?;
    let agent = Agent::start(&["--sweep-ms", "50"])?;
    agent.settle()?;
    let before = agent.descriptors()?.len();
    let stays = Waiter::on(&group, "4M")?;
    let waiters = (0..MANY).map(|_| Waiter::on(&group, "8M")).collect::<Result<Vec<_>>>()?;
    // More than are queried in one run of the program, each of them alive.
    let held = || Ok::<_, anyhow::Error>(agent.descriptors()?.len());
    ensure!(held()? > MANY, "the agent has a duplicate of each");
    drop(waiters);
    until("the agent holds what it held", || Ok(held()? <= before + 1))?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    ensure!(stays.wait()? == 1, "the one that is open is signalled");
    ensure!(registrations(&agent)? == 1, "and is the only one left");
    charger.end()
}

vm_test!(
    lifetime_closing_makes_room,
    "at a quota, and in a full table, an eventfd that was closed gives way at once",
    Any,
    [Kernel, Preempt]
);
fn lifetime_closing_makes_room() -> Result<()> {
    const QUOTA: usize = 8;
    let group = Group::new("room")?;
    // No sweep comes by.
    let quota = QUOTA.to_string();
    let slow = ["--sweep-ms", "3600000", "--socket-mode", "0666"];
    let agent = Agent::start(&[&slow[..], &["--max-per-user", &quota, "--max-eventfds", "16"]].concat())?;
    let errno = |waiter: &Waiter| -> Result<i32> {
        let control = File::open(group.usage_file())?;
        agent_errno(format!("{} {} 8M", waiter.0.as_raw_fd(), control.as_raw_fd()).as_bytes())
    };
    let user = |id: u32| {
        Process::start_as(id, || {
            let mut held = (0..QUOTA).map(|_| Waiter::new()).collect::<Result<Vec<_>>>()?;
            for waiter in &held {
                ensure!(errno(waiter)? == 0, "within the quota");
            }
            for round in 0..50 {
                let next = Waiter::new()?;
                ensure!(errno(&next)? == libc::EDQUOT, "round {round}: all are open");
                held[round % QUOTA] = next;
                let errno = errno(&held[round % QUOTA])?;
                ensure!(errno == 0, "round {round}: one was closed: errno {errno}");
            }
            Ok(())
        })
    };
    // Two users at once, which fill the table between them.
    let users = [user(USER)?, user(USER - 1)?];
    users.into_iter().try_for_each(Process::end)?;
    // All of theirs are closed, and root, which has no quota, gets their places.
    let mine = (0..16).map(|_| Waiter::new()).collect::<Result<Vec<_>>>()?;
    for (at, waiter) in mine.iter().enumerate() {
        let errno = errno(waiter)?;
        ensure!(errno == 0, "place {at}: errno {errno}");
    }
    ensure!(errno(&Waiter::new()?)? == libc::ENOMEM, "now it is full");
    ensure!(registrations(&agent)? == 16, "root's are left");
    Ok(())
}

vm_test!(
    lifetime_outlives_fork_and_kill,
    "a forked child keeps the registration; its SIGKILL ends it",
    Any,
    [Oracle, Kernel, Preempt, Sampled]
);
fn lifetime_outlives_fork_and_kill() -> Result<()> {
    let group = Group::new("fork")?;
    let agent = Agent::start(&["--sweep-ms", "3600000"])?;
    let mut charger = Charger::start(&group)?;
    let waiter = Waiter::on(&group, "4M")?;
    let child = process::spawn(|| {
        loop {
            pause();
        }
    })?;
    let copy = dup(&waiter.0)?;
    drop(waiter);
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    agent.settle()?;
    ensure!(registrations(&agent)? == 1, "the child holds the eventfd");
    let mut count = [0; 8];
    nix::unistd::read(&copy, &mut count)?;
    ensure!(u64::from_ne_bytes(count) == 1, "signalled while only copies are left");
    drop(copy);
    ensure!(registrations(&agent)? == 1, "the child alone holds the eventfd");
    kill(child, Signal::SIGKILL)?;
    waitpid(child, None)?;
    until("SIGKILL of the last holder ends it", || Ok(registrations(&agent)? == 0))
}

vm_test!(
    lifetime_removal_signals_each_registration,
    "removal adds one for each registration, with the directory gone",
    Any,
    [Oracle, Kernel, Preempt, Variant, Quick, Sampled, Standing]
);
fn lifetime_removal_signals_each_registration() -> Result<()> {
    let parent = Group::new("parent")?;
    let group = parent.child("gone")?;
    let agent = Agent::standing()?;
    let on_parent = Waiter::on(&parent, "64M")?;
    let (several, one) = (Waiter::new()?, Waiter::on(&group, "8M")?);
    for threshold in ["8M", "8M", "16M", "0", "-1"] {
        several.register(&group, threshold)?;
    }
    group.remove()?;
    ensure!(one.wait()? == 1, "one registration, one signal");
    ensure!(!group.path.exists(), "the directory is there after the signal");
    // The five are given one by one: a reader may wake between them.
    agent.settle()?;
    several.receives(5, "five registrations, five signals")?;
    ensure!(on_parent.take()? == 0, "the parent was signalled for its child's removal");
    ensure!(registrations(&agent)? == 1, "the parent's registration is left");
    let (rows, _) = agent.list()?;
    ensure!(rows.iter().all(|row| !row.cgroup.contains("gone")), "the group is still in the list");
    Ok(())
}

vm_test!(
    lifetime_controller_off_and_on,
    "turning the controller off is a removal; on again is a new group",
    V2,
    [Kernel, Preempt, Standing]
);
fn lifetime_controller_off_and_on() -> Result<()> {
    let parent = Group::new("switch")?;
    let group = parent.child("stays")?;
    let agent = Agent::standing()?;
    let before = Waiter::on(&group, "4M")?;
    parent.enable(false)?;
    ensure!(before.wait()? == 1, "the controller's end is the registration's end");
    ensure!(group.path.exists(), "the directory stays");
    parent.enable(true)?;
    let after = Waiter::on(&group, "4M")?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 6 * MIB)?;
    ensure!(after.wait()? == 1, "the new group of the same directory is watched");
    agent.settle()?;
    ensure!(before.take()? == 0, "the old registration is gone");
    charger.end()
}

vm_test!(
    lifetime_leaves_no_descriptors,
    "after 200 registrations on 50 groups came and went the agent holds what it held",
    Any,
    [Oracle, Kernel, Preempt]
);
fn lifetime_leaves_no_descriptors() -> Result<()> {
    let agent = Agent::start(&[])?;
    agent.settle()?;
    let before = agent.descriptors()?;
    for round in 0..2 {
        let groups: Vec<_> = (0..50).map(|n| Group::new(&format!("d{round}-{n}"))).collect::<Result<_>>()?;
        let waiters: Vec<_> = (0..50).map(|_| Waiter::new()).collect::<Result<_>>()?;
        for (n, group) in groups.iter().enumerate() {
            for threshold in ["1M", "2M"] {
                // By numbers, and by descriptors sent along.
                waiters[n].register(group, threshold)?;
                let control = File::open(group.usage_file())?;
                let fds = [waiters[49 - n].0.as_fd(), control.as_fd()];
                monitor_client::register(
                    Path::new(SOCKET),
                    format!("0 0 {threshold}").as_bytes(),
                    Some(fds),
                )?;
            }
        }
        ensure!(registrations(&agent)? == 200, "200 are registered");
        // Half go with their groups, the rest with their eventfds.
        groups.iter().take(25).try_for_each(Group::remove)?;
        until("those of removed groups are gone", || Ok(registrations(&agent)? == 100))
            .with_context(Agent::log)?;
        drop(waiters);
        until("all are gone", || Ok(registrations(&agent)? == 0))?;
    }
    // The connection of the list that is looked at may linger.
    until("the agent holds what it held", || Ok(agent.descriptors()?.len() <= before.len()))
        .with_context(|| format!("before: {before:?}; after: {:?}", agent.descriptors()))
}

vm_test!(
    lifetime_agent_ends_cleanly,
    "SIGTERM removes sockets and detaches every program",
    Any,
    [Oracle, Kernel, Preempt]
);
fn lifetime_agent_ends_cleanly() -> Result<()> {
    let charge = "page_counter_try_charge";
    let hooked = |wanted: bool| -> Result<()> {
        until("the kernel's list of attached functions follows", || {
            Ok(crate::harness::client::attached()?.iter().any(|name| name == charge) == wanted)
        })
    };
    hooked(false)?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let agent = Agent::start(&[])?;
        hooked(true)?;
        let group = Group::new("last")?;
        let waiter = Waiter::on(&group, "1M")?;
        let code = agent.end(signal)?;
        ensure!(code == 0, "exit code {code}");
        let left: Vec<_> =
            fs::read_dir("/run/memcg-monitor")?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        hooked(false)?;
        ensure!(waiter.0.as_raw_fd() >= 0, "the client's eventfd is its own");
    }
    Ok(())
}

vm_test!(
    lifetime_end_is_signalled,
    "an agent that ends for good signals each registered eventfd once, with the view gone; a hand-over none",
    Any,
    [Oracle, Kernel, Preempt, Sampled]
);
fn lifetime_end_is_signalled() -> Result<()> {
    let group = Group::new("end")?;
    let shown = shown(&group.path)?.join("cgroup.event_control");
    for (supervised, signal) in [(false, Signal::SIGTERM), (false, Signal::SIGHUP), (true, Signal::SIGTERM)] {
        let mut agent = Agent::start(if supervised { &["--supervised"] } else { &[] })?;
        let one = Waiter::on(&group, "64M")?;
        let several = Waiter::on(&group, "64M")?;
        several.register(&group, "128M")?;
        let oom = Waiter::at(&group, ControlFile::Oom, "")?;
        ensure!(shown.exists(), "the view is there");
        let none = |when: &str| -> Result<()> {
            for waiter in [&one, &several, &oom] {
                ensure!(waiter.take()? == 0, "signalled {when}");
            }
            Ok(())
        };
        if supervised {
            let parent = agent.pid();
            agent.signal(Signal::SIGHUP)?;
            agent.ready()?;
            ensure!(agent.pid() == parent, "the supervisor goes on");
            agent.settle()?;
            none("by a hand-over")?;
        }
        agent.signal(signal)?;
        ensure!(one.wait()? == 1, "one registration");
        let errno = fs::metadata(&shown).err().and_then(|error| error.raw_os_error());
        ensure!(errno == Some(libc::ENOENT), "{signal}: event_control when the signal is there: {errno:?}");
        ensure!(several.wait()? == 1 && oom.wait()? == 1, "{signal}: two registrations, and an OOM's");
        ensure!(agent.end(signal)? == 0, "exit code");
        none("twice")?;
        ensure!(Agent::log().contains("3 eventfds were signalled"), "it is not counted: {}", Agent::log());
    }
    Ok(())
}
