//! Writers to the view: any thread, any namespace, at any moment.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::waitpid;
use nix::unistd::chroot;

use super::{EVENT_CONTROL, MIB, USAGE, register_in, shown, waiter_on, written};
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::process;
use crate::harness::test::vm_test;

fn registered(directory: &Path, waiter: &Waiter) -> Result<()> {
    let errno = register_in(directory, USAGE, waiter, "1M")?;
    ensure!(errno == 0, "errno {errno}");
    Ok(())
}

vm_test!(
    view_any_writer,
    "a thread, a child, another mount or pid namespace and a chroot register as their process",
    Any,
    [Standing]
);
fn view_any_writer() -> Result<()> {
    let agent = Agent::standing()?;
    let group = Group::new("writers")?;
    let directory = shown(&group.path)?;
    let waiter = Waiter::new()?;
    let usage = File::open(directory.join(USAGE))?;
    let control = OpenOptions::new().write(true).open(directory.join(EVENT_CONTROL))?;
    let line = format!("{} {} 1M", waiter.0.as_raw_fd(), usage.as_raw_fd());
    let by_open_files = || -> Result<()> {
        let errno = written(nix::unistd::write(&control, line.as_bytes()), line.len())?;
        ensure!(errno == 0, "with open files: errno {errno}");
        Ok(())
    };

    // Its thread id is not its process's.
    thread::scope(|scope| scope.spawn(|| registered(&directory, &waiter)).join())
        .map_err(|_| anyhow::anyhow!("the thread panicked"))?
        .context("a thread")?;
    process::run(|| registered(&directory, &waiter).and_then(|()| by_open_files())).context("a child")?;

    let elsewhere = PathBuf::from("/run/elsewhere");
    fs::create_dir_all(&elsewhere)?;
    process::run_in(CloneFlags::CLONE_NEWNS, || {
        mount(Some(&directory), &elsewhere, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        registered(&elsewhere, &waiter)?;
        // No longer anywhere in its mountinfo.
        let hidden = OpenOptions::new().write(true).open(elsewhere.join(EVENT_CONTROL))?;
        let usage = File::open(elsewhere.join(USAGE))?;
        umount2(&elsewhere, MntFlags::MNT_DETACH)?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), usage.as_raw_fd());
        let errno = written(nix::unistd::write(&hidden, line.as_bytes()), line.len())?;
        ensure!(errno == 0, "through a detached mount: errno {errno}");
        Ok(())
    })
    .context("another mount namespace, the group\'s directory bound elsewhere")?;
    process::run_in(CloneFlags::CLONE_NEWNS, || {
        mount(Some(&directory), &elsewhere, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        chroot(&elsewhere)?;
        std::env::set_current_dir("/")?;
        registered(Path::new("/"), &waiter)?;
        by_open_files()
    })
    .context("a chroot")?;
    process::run_in(CloneFlags::CLONE_NEWPID, || registered(&directory, &waiter))
        .context("a child pid namespace")?;
    fs::remove_dir(&elsewhere)?;
    let count = agent.status()?.registrations;
    ensure!(count == 8, "{count} of 8 registrations");

    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 4 * MIB)?;
    waiter.receives(8, "each is signalled")?;
    charger.end()
}

vm_test!(
    view_own_descriptors,
    "a thread with descriptors of its own is served from those, or refused, never from others",
    Any,
    [Oracle, Kernel]
);
fn view_own_descriptors() -> Result<()> {
    let agent = Agent::start(&[])?;
    let group = Group::new("own")?;
    let directory = shown(&group.path)?;
    let others = Waiter::new()?;
    let outcome = thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<()> {
            // SAFETY: the number is this thread's own.
            let id = unsafe { libc::syscall(libc::SYS_gettid) };
            unshare(CloneFlags::CLONE_FILES)?;
            let own = Waiter::new()?;
            let number = others.0.as_raw_fd();
            // SAFETY: in this thread's own table no other value owns the number.
            ensure!(unsafe { libc::dup2(own.0.as_raw_fd(), number) } == number, "dup2 failed");
            // SAFETY: takes two numbers, returns a new descriptor or -1.
            let can = unsafe { libc::syscall(libc::SYS_pidfd_open, id, libc::O_EXCL) } >= 0;
            // In the process's own table the number is another eventfd's.
            let errno = register_in(&directory, USAGE, &others, "1M")?;
            let expected = if can { 0 } else { libc::EBADF };
            ensure!(errno == expected, "errno {errno} instead of {expected} (pidfds of threads: {can})");
            // Goes with this thread's table; elsewhere its number is another file's.
            std::mem::forget(own);
            Ok(())
        });
        thread.join()
    });
    outcome.map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    let mut charger = Charger::start(&group)?;
    charger.grow(Kind::Anonymous, 4 * MIB)?;
    agent.settle()?;
    ensure!(others.take()? == 0, "another eventfd was signalled");
    charger.end()
}

extern "C" fn ignore(_: i32) {}

vm_test!(
    view_interrupted_writers,
    "signals in the middle of writes: each registers once and says so",
    Any,
    [Standing]
);
fn view_interrupted_writers() -> Result<()> {
    const TIMES: u64 = 300;
    let agent = Agent::standing()?;
    let group = Group::new("signals")?;
    let directory = shown(&group.path)?;
    // Without SA_RESTART: whatever can be interrupted is.
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    let often = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 300 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 300 },
    };
    let waiter = Waiter::new()?;
    let usage = File::open(directory.join(USAGE))?;
    let control = OpenOptions::new().write(true).open(directory.join(EVENT_CONTROL))?;
    let line = format!("{} {} 1M", waiter.0.as_raw_fd(), usage.as_raw_fd());
    // SAFETY: the value is valid, and no old one is requested.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const often, std::ptr::null_mut()) };
    let mut taken = 0;
    for _ in 0..TIMES {
        match written(nix::unistd::write(&control, line.as_bytes()), line.len())? {
            0 => taken += 1,
            // Before the agent has seen it, a write may be called off, as any.
            libc::EINTR => {}
            errno => bail!("errno {errno}"),
        }
    }
    let never = libc::itimerval {
        it_interval: libc::timeval { tv_sec: 0, tv_usec: 0 },
        it_value: libc::timeval { tv_sec: 0, tv_usec: 0 },
    };
    // SAFETY: as above.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const never, std::ptr::null_mut()) };
    let count = agent.status()?.registrations;
    ensure!(count == taken, "{taken} writes succeeded, {count} are registered");
    ensure!(taken == TIMES, "only {taken} of {TIMES} writes were taken");
    Ok(())
}

vm_test!(view_many_at_once, "readers and writers at once are all served, and leave nothing", Any, [Kernel]);
fn view_many_at_once() -> Result<()> {
    let agent = Agent::start(&[])?;
    let group = Group::new("crowd")?;
    let directory = shown(&group.path)?;
    agent.settle()?;
    let before = agent.descriptors()?;
    let mut charger = Charger::start(&group)?;
    let reader = |n: usize| -> Result<()> {
        for round in 0..20 {
            let mine = Waiter::new()?;
            registered(&directory, &mine)?;
            for entry in fs::read_dir(&directory)? {
                let path = entry?.path();
                let silent = [EVENT_CONTROL, "memory.pressure_level", "memory.force_empty"];
                let readable = !silent.iter().any(|name| path.ends_with(name));
                ensure!(
                    !readable || !fs::read(&path)?.is_empty() || path.ends_with("cgroup.procs"),
                    "{path:?}"
                );
            }
            ensure!(n < 100 && round < 100, "counted");
        }
        Ok(())
    };
    thread::scope(|scope| -> Result<()> {
        let readers: Vec<_> = (0..8).map(|n| scope.spawn(move || reader(n))).collect();
        for _ in 0..10 {
            charger.grow(Kind::Anonymous, 4 * MIB)?;
            charger.shrink(Kind::Anonymous)?;
        }
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(outcome) => outcome,
            Err(_) => bail!("a reader panicked"),
        })
    })?;
    charger.end()?;
    until("all registrations ended", || Ok(agent.status()?.registrations == 0))?;
    until("nothing was left in the agent", || Ok(agent.descriptors()?.len() <= before.len()))
        .with_context(|| format!("before: {before:?}; after: {:?}", agent.descriptors()))
}

vm_test!(
    view_while_the_agent_stands_still,
    "writers to a stopped agent are killed or answered, never lost",
    Any,
    []
);
fn view_while_the_agent_stands_still() -> Result<()> {
    let agent = Agent::start(&[])?;
    let group = Group::new("still")?;
    let directory = shown(&group.path)?;
    let path = CString::new(directory.join(EVENT_CONTROL).to_string_lossy().into_owned())?;
    let waiter = waiter_on(&group, "1M")?;
    let usage = File::open(directory.join(USAGE))?;
    let line = format!("{} {} 2M", waiter.0.as_raw_fd(), usage.as_raw_fd());
    agent.signal(Signal::SIGSTOP)?;
    // Each thread by itself: one that took the request first would hold it.
    let tasks = format!("/proc/{}/task", agent.pid());
    until("every thread of the agent stands still", || {
        let still = |task: fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status"));
            status.is_ok_and(|status| status.contains("State:\tT"))
        };
        Ok(fs::read_dir(&tasks)?.flatten().all(still))
    })?;
    let child = process::spawn(|| {
        let file = File::options().write(true).open(Path::new(&*path.to_string_lossy()))?;
        nix::unistd::write(&file, line.as_bytes())?;
        Ok(())
    })?;
    // The agent has not seen its request: it may go at once.
    nix::sys::signal::kill(child, Signal::SIGKILL)?;
    waitpid(child, None)?;
    agent.signal(Signal::SIGCONT)?;
    ensure!(agent.status()?.registrations == 1, "the killed client's write was never made");
    let waiter = waiter_on(&group, "3M")?;
    ensure!(waiter.take()? == 0 && agent.status()?.registrations == 2, "the living are served");
    Ok(())
}
