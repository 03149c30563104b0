//! Clients that take more than their share, and groups that come and go: others
//! are served, nothing stays behind.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::view::POINT;
use monitor_client::{SOCKET, connect};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv, send};
use nix::sys::wait::{WaitStatus, waitpid};

use super::answer;
use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{self, Charger, Kind};
use crate::harness::client::{Waiter, agent_errno};
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER};
use crate::harness::shared::{Atomics, Shared};
use crate::harness::test::vm_test;

vm_test!(
    abuse_full_eventfd,
    "an eventfd that is full and blocks costs its owner the signals, and no other client any",
    Any,
    [Standing]
);
fn abuse_full_eventfd() -> Result<()> {
    let group = Group::new("full")?;
    let agent = Agent::standing()?;
    let mut charger = Charger::start(&group)?;
    // Blocking: a write to it waits for ever.
    let full = Waiter(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
    full.0.write(u64::MAX - 1)?;
    full.register(&group, "4M")?;
    let other = Waiter::on(&group, "4M")?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(other.wait()? == 1, "the other one is signalled");
    charger.shrink(Kind::Anonymous)?;
    ensure!(other.wait()? == 1, "and is signalled again");
    agent.settle()?;
    // As the kernel's own signals: up to 2^64 - 1, and no further.
    ensure!(full.take()? == u64::MAX, "the full one took what it could");
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(full.wait()? == 1, "emptied, it is signalled as any other");
    Ok(())
}

vm_test!(abuse_closed_meanwhile, "an eventfd closed between the line and the look is EBADF", Any, []);
fn abuse_closed_meanwhile() -> Result<()> {
    let group = Group::new("closed")?;
    let agent = Agent::start(&[])?;
    let connection = connect(Path::new(SOCKET))?;
    let control = File::open(group.usage_file())?;
    for close_event in [true, false] {
        let (waiter, other) = (Waiter::new()?, File::open(group.usage_file())?);
        let (event, control_fd) = if close_event {
            (waiter.0.as_raw_fd(), control.as_raw_fd())
        } else {
            (waiter.0.as_raw_fd(), other.as_raw_fd())
        };
        agent.signal(Signal::SIGSTOP)?;
        send(connection.as_raw_fd(), format!("{event} {control_fd} 1M").as_bytes(), MsgFlags::empty())?;
        if close_event {
            drop(waiter);
        } else {
            drop(other);
        }
        agent.signal(Signal::SIGCONT)?;
        let mut text = [0; 512];
        let length = recv(connection.as_raw_fd(), &mut text, MsgFlags::empty())?;
        let answer = String::from_utf8_lossy(&text[..length]).into_owned();
        ensure!(answer.starts_with(&format!("-{} ", libc::EBADF)), "closed in time: {answer:?}");
    }
    ensure!(agent.status()?.registrations == 0, "nothing was registered");
    Ok(())
}

/// A count of what several processes did, added up.
struct Count(AtomicU64);

// SAFETY: an atomic, for which zeros are a value.
unsafe impl Atomics for Count {}

vm_test!(abuse_quota, "a user who registers without end meets a quota, others do not notice", Any, []);
fn abuse_quota() -> Result<()> {
    const QUOTA: usize = 300;
    const TRIES: usize = 1000;
    let group = Group::new("quota")?;
    // The user counts what is registered while it still holds all of its own.
    let modes = ["--socket-mode", "0666", "--control-mode", "0666"];
    let agent = Agent::start(&[&modes[..], &["--max-per-user", &QUOTA.to_string()]].concat())?;
    let mine = Waiter::on(&group, "4M")?;
    // The kernel's id for whoever has none is no operator's.
    process::run_as(USER - 1, || {
        let waiter = Waiter::new()?;
        let control = File::open(group.usage_file())?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
        for n in 0..TRIES {
            let expected = if n < QUOTA { 0 } else { libc::EDQUOT };
            let errno = agent_errno(line.as_bytes())?;
            if errno != expected {
                bail!("registration {n}: errno {errno} instead of {expected}");
            }
        }
        let others = agent.status()?.registrations;
        ensure!(others == QUOTA as u64 + 1, "{others} registrations");
        Ok(())
    })?;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(mine.wait()? == 1, "root is signalled, and has no quota");
    until("what the greedy one held has gone with it", || Ok(agent.status()?.registrations == 1))
}

vm_test!(
    abuse_closing_in_a_loop,
    "a user who closes copies of a registered eventfd without end costs no other client a signal",
    Any,
    [Kernel, Preempt]
);
fn abuse_closing_in_a_loop() -> Result<()> {
    const ROUNDS: u64 = 20;
    let (group, other) = (Group::new("loop")?, Group::new("bystander")?);
    // A ring that a storm of doorbells fills at once.
    let agent = Agent::start(&["--socket-mode", "0666", "--ring-bytes", "4096"])?;
    let closed = Shared::<Count>::new()?;
    let attack = || {
        Process::start_as(USER, || {
            let (waiter, spare) = (Waiter::on(&group, "64M")?, Waiter::new()?);
            loop {
                // Closes the copy that the round before has made.
                // SAFETY: takes two numbers, of descriptors of our own.
                Errno::result(unsafe { libc::dup2(waiter.0.as_raw_fd(), spare.0.as_raw_fd()) })?;
                closed.0.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let attackers = [attack()?, attack()?];
    let is_going_on =
        |from: u64| until("the attackers are at it", || Ok(closed.0.load(Ordering::Relaxed) > from + 1000));
    is_going_on(0)?;
    let waiter = Waiter::new()?;
    process::run_as(USER - 1, || waiter.register(&other, "4M"))?;
    let mut charger = Charger::start(&other)?;
    for round in 0..ROUNDS {
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        waiter.crosses(&format!("round {round}: up"))?;
        charger.shrink(Kind::Anonymous)?;
        waiter.crosses(&format!("round {round}: down"))?;
        process::run_as(USER - 1, || Waiter::on(&other, "512M").map(drop))?;
    }
    let status = agent.status()?;
    is_going_on(closed.0.load(Ordering::Relaxed))?;
    ensure!(
        status.registrations == 3,
        "{} registrations: two attackers, one bystander",
        status.registrations
    );
    let full = status.losses.get("ring_full").context("no ring_full")?;
    ensure!(*full == 0, "{} doorbells found no room", *full);
    drop(attackers);
    until("the attackers' ended with them", || Ok(agent.status()?.registrations == 1))?;
    charger.end()
}

vm_test!(
    abuse_churn,
    "groups made and removed while they are registered on leave nothing behind",
    Any,
    [Kernel, Preempt, Variant]
);
fn abuse_churn() -> Result<()> {
    const ROUNDS: usize = 600;
    let parent = Group::new("churn")?;
    // Enabled for those below, once.
    drop(parent.child("first")?);
    let agent = Agent::start(&["--max-groups", "64"])?;
    let steady = Waiter::on(&parent, "512M")?;
    let before = agent.descriptors()?;
    let child = process::spawn(|| {
        for n in 0..ROUNDS {
            let path = parent.path.join(format!("g{}", n % 8));
            let _ = fs::create_dir(&path);
            let _ = fs::remove_dir(&path);
        }
        Ok(())
    })?;
    let (mut taken, mut refused) = (0, 0);
    let waiter = Waiter::new()?;
    let mut n = 0;
    while waitpid(child, Some(nix::sys::wait::WaitPidFlag::WNOHANG))? == WaitStatus::StillAlive {
        n += 1;
        let name = format!("g{}", n % 8);
        for directory in [parent.path.join(&name), Path::new(POINT).join("churn").join(&name)] {
            let is_view = directory.starts_with(POINT);
            let file = if is_view {
                directory.join("memory.usage_in_bytes")
            } else {
                directory.join(parent.version.usage_file())
            };
            let Ok(control) = File::open(&file) else { continue };
            let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
            let errno = if is_view {
                let Ok(event_control) =
                    OpenOptions::new().write(true).open(directory.join("cgroup.event_control"))
                else {
                    continue;
                };
                nix::unistd::write(&event_control, line.as_bytes()).err().map_or(0, |errno| errno as i32)
            } else {
                agent_errno(line.as_bytes())?
            };
            match errno {
                0 => taken += 1,
                libc::EINVAL | libc::ENODEV | libc::ENOENT | libc::ESTALE => refused += 1,
                other => bail!("{}: errno {other}", file.display()),
            }
        }
    }
    // Each that was accepted is signalled for its group's end, exactly once.
    let mut received = 0;
    until("every registration on a removed group was signalled for it", || {
        received += waiter.take()?;
        Ok(agent.status()?.registrations == 1)
    })?;
    received += waiter.take()?;
    ensure!(received == taken, "{taken} registrations, {received} signals, {refused} refusals");
    ensure!(steady.take()? == 0, "the parent is still there");
    until("no descriptor was leaked", || Ok(agent.descriptors()?.len() <= before.len()))
        .with_context(|| format!("before: {before:?}; after: {:?}", agent.descriptors()))?;
    // All slots came back, or the table of 64 would be full.
    let groups: Vec<_> = (0..32).map(|n| Group::new(&format!("after{n}"))).collect::<Result<_>>()?;
    groups.iter().try_for_each(|group| Waiter::on(group, "1M").map(drop))
}

vm_test!(abuse_strict_seccomp, "a client that may only read and write registers through the view", Any, []);
fn abuse_strict_seccomp() -> Result<()> {
    let group = Group::new("strict")?;
    let agent = Agent::start(&[])?;
    let mut charger = Charger::start(&group)?;
    let directory = Path::new(POINT).join("strict");
    let waiter = Waiter::new()?;
    let control = File::open(directory.join("memory.usage_in_bytes"))?;
    let event_control = OpenOptions::new().write(true).open(directory.join("cgroup.event_control"))?;
    let line = format!("{} {} 4M", waiter.0.as_raw_fd(), control.as_raw_fd());
    let client = Process::start(|| {
        // SAFETY: from here on read, write and exit are all that is called.
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) };
        let wrote = nix::unistd::write(&event_control, line.as_bytes());
        let code = i64::from(wrote != Ok(line.len()));
        // SAFETY: `exit`, not `exit_group`, is what strict mode allows.
        unsafe { libc::syscall(libc::SYS_exit, code) };
        Ok(())
    })?;
    client.end().context("the client")?;
    ensure!(agent.status()?.registrations == 1, "it is registered");
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    ensure!(waiter.wait()? == 1, "and is signalled");
    Ok(())
}

vm_test!(
    abuse_thresholds_of_another,
    "a user who crosses thousands of thresholds all the time delays no other user's signal",
    Any,
    [Kernel, Preempt]
);
fn abuse_thresholds_of_another() -> Result<()> {
    const MANY: u64 = 5000;
    const ANOTHER: u32 = 1001;
    let (theirs, ours) = (Group::new("theirs")?, Group::new("ours")?);
    // Without hold-off, the flapping never ends by itself.
    let agent = Agent::start(&["--socket-mode", "0666", "--holdoff-ms", "0"])?;
    let (greedy, bystander) = (Waiter::new()?, Waiter::new()?);
    process::run_as(USER, || {
        let control = File::open(theirs.usage_file())?;
        let line = format!("{} {} 4M", greedy.0.as_raw_fd(), control.as_raw_fd());
        let connection = connect(Path::new(SOCKET))?;
        for n in 0..MANY {
            let answer = answer(&connection, line.as_bytes(), &[])?;
            ensure!(answer == "0", "registration {n}: {answer}");
        }
        Ok(())
    })?;
    ensure!(agent.status()?.registrations == MANY, "all are registered");
    let crossing = Process::start_as(USER, || charger::come_and_go(16 * MIB))?;
    process::run_as(ANOTHER, || bystander.register(&ours, "4M"))?;
    let mut charger = Charger::start(&ours)?;
    theirs.add(crossing.pid())?;
    greedy.wait()?;
    for _ in 0..10 {
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        bystander.crosses("up, amid another's crossings")?;
        charger.shrink(Kind::Anonymous)?;
        bystander.crosses("down again")?;
        greedy.wait()?;
    }
    ensure!(agent.status()?.registrations == MANY + 1, "the list is answered");
    let late = Waiter::on(&ours, "5M")?;
    charger.grow(Kind::Anonymous, 8 * MIB)?;
    late.crosses("one that was registered meanwhile")?;
    drop(crossing);
    Ok(())
}

vm_test!(
    abuse_no_aio,
    "an agent on a host without asynchronous reads to spare starts, and signals",
    Any,
    [Quick]
);
fn abuse_no_aio() -> Result<()> {
    let limit = Path::new("/proc/sys/fs/aio-max-nr");
    let before = fs::read_to_string(limit)?;
    fs::write(limit, "0")?;
    let outcome = (|| {
        let group = Group::new("aio")?;
        let agent = Agent::start(&[])?;
        let mut charger = Charger::start(&group)?;
        let waiter = Waiter::on(&group, "4M")?;
        for _ in 0..5 {
            charger.grow(Kind::Anonymous, 8 * MIB)?;
            waiter.receives(1, "up")?;
            charger.shrink(Kind::Anonymous)?;
            waiter.receives(1, "down")?;
        }
        ensure!(agent.status()?.without_aio, "list does not say so");
        until("the signals are counted", || Ok(agent.status()?.signals == 10))
    })();
    fs::write(limit, before)?;
    outcome
}
