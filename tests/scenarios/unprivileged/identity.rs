//! The identity of a sender: numbers that are used again, namespaces, and what it says of
//! itself.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use monitor_client::{SOCKET, connect};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, send, sendmsg};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::{OPEN, answer_on, is_errno, nothing_moved};
use crate::harness::agent::Agent;
use crate::harness::client::{Waiter, agent_errno};
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER, become_user};
use crate::harness::test::vm_test;

/// A child with this process id, which waits to be killed.
fn begin_as(pid: Pid, user: Option<u32>) -> Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        words: [u64; 8],
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let wanted = [pid.as_raw()];
    let mut args = CloneArgs { set_tid: wanted.as_ptr() as u64, set_tid_size: 1, ..Default::default() };
    // exit_signal
    args.words[4] = libc::SIGCHLD as u64;
    // SAFETY: as fork, of a process with a single thread; the arguments are laid out as
    // the kernel's `struct clone_args`, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if Errno::result(result).with_context(|| format!("no process can be {pid}"))? == 0 {
        let outcome = user.map_or(Ok(()), become_user);
        if outcome.is_ok() {
            loop {
                nix::unistd::pause();
            }
        }
        process::end(false);
    }
    Ok(())
}

/// Whether packets bring their sender's pidfd (Linux 6.5).
fn senders_are_held(connection: &OwnedFd) -> bool {
    let on: libc::c_int = 1;
    let (fd, option) = (connection.as_raw_fd(), libc::SO_PASSPIDFD);
    // SAFETY: the kernel reads one int, which outlives the call.
    (unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const on).cast(), 4) }) == 0
}

vm_test!(
    unprivileged_number_used_again,
    "a process that got the dead sender's number is not taken for the sender",
    Any,
    [Kernel]
);
fn unprivileged_number_used_again() -> Result<()> {
    number_used_again(&Agent::start(&OPEN)?)?;
    // As in the recommended deployment: a service manager has made the socket.
    number_used_again(&Agent::start_with_socket(&OPEN)?).context("a socket that was handed over")
}

fn number_used_again(agent: &Agent) -> Result<()> {
    let group = Group::new("again")?;
    let bystander = Waiter::on(&group, "64M")?;
    let connection = connect(Path::new(SOCKET))?;
    let held = senders_are_held(&connect(Path::new(SOCKET))?);
    // Both processes have these, at the same numbers: all that protects them is that
    // the second one did not register.
    let (waiter, control) = (Waiter::new()?, File::open(group.usage_file())?);
    let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
    // Before 6.5, one of the same user is taken for the sender (docs/reference/security.md).
    let successors = if held { vec![None, Some(USER)] } else { vec![None] };
    for user in successors {
        agent.signal(Signal::SIGSTOP)?;
        let sender = Process::start_as(USER, || {
            send(connection.as_raw_fd(), line.as_bytes(), MsgFlags::empty())?;
            Ok(())
        })?;
        let number = sender.pid();
        sender.end()?;
        begin_as(number, user)?;
        agent.signal(Signal::SIGCONT)?;
        let answer = answer_on(&connection)?;
        kill(number, Signal::SIGKILL)?;
        waitpid(number, None)?;
        is_errno(&answer, libc::ESRCH).with_context(|| format!("successor of user {user:?}"))?;
    }
    nothing_moved(agent, &bystander)
}

vm_test!(
    unprivileged_pid_namespace,
    "a container's process registers its own descriptors, by its numbers",
    Any,
    []
);
fn unprivileged_pid_namespace() -> Result<()> {
    let group = Group::new("container")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    // Before its own, so that the number is another process's outside.
    let outside = super::at_number(&Waiter::new()?.0, 300)?;
    let check = || -> Result<()> {
        drop(outside);
        ensure!(nix::unistd::getpid() == Pid::from_raw(1), "the first of its namespace");
        become_user(USER)?;
        let (waiter, control) = (Waiter::new()?, File::open(group.usage_file())?);
        let errno = agent_errno(format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd()).as_bytes())?;
        ensure!(errno == 0, "its own: errno {errno}");
        // Process 1 of the host has descriptors, too: they are not meant.
        let errno = agent_errno(format!("300 {} 1M", control.as_raw_fd()).as_bytes())?;
        ensure!(errno == libc::EBADF, "not its own: errno {errno}");
        Ok(())
    };
    process::run_in(CloneFlags::CLONE_NEWPID, check)?;
    crate::harness::agent::until("it ended with its process", || Ok(agent.status()?.registrations == 1))?;
    nothing_moved(&agent, &bystander)
}

vm_test!(
    unprivileged_forged_sender,
    "no process sends as another process or user, a container's root neither",
    Any,
    []
);
fn unprivileged_forged_sender() -> Result<()> {
    let group = Group::new("forged")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    let ours = nix::unistd::getpid();
    let forge = |pid: i32, uid: u32| -> Result<Option<Errno>> {
        let connection = connect(Path::new(SOCKET))?;
        let claimed = UnixCredentials::from(libc::ucred { pid, uid, gid: nix::unistd::getgid().as_raw() });
        let messages = [ControlMessage::ScmCredentials(&claimed)];
        let line = [IoSlice::new(b"9999 0 1M")];
        match sendmsg::<UnixAddr>(connection.as_raw_fd(), &line, &messages, MsgFlags::empty(), None) {
            Ok(_) => {
                is_errno(&answer_on(&connection)?, libc::EBADF)?;
                Ok(None)
            }
            Err(errno) => Ok(Some(errno)),
        }
    };
    process::run_as(USER, || {
        let own = nix::unistd::getpid().as_raw();
        for (what, pid, uid) in
            [("process", ours.as_raw(), USER), ("first process", 1, USER), ("user", own, 0)]
        {
            let errno = forge(pid, uid)?;
            ensure!(errno == Some(Errno::EPERM), "another {what}: {errno:?}");
        }
        // Itself it may name; the line is as bad as before.
        ensure!(forge(own, USER)?.is_none(), "itself");
        // Root of a user namespace of its own, in the host's pid namespace.
        unshare(CloneFlags::CLONE_NEWUSER).context("no user namespace")?;
        let errno = forge(ours.as_raw(), USER)?;
        ensure!(errno.is_some(), "a container's root is another process of the host");
        Ok(())
    })?;
    nothing_moved(&agent, &bystander)
}

vm_test!(
    unprivileged_many_connections,
    "a user who connects without end meets a limit, others do not notice",
    Any,
    []
);
fn unprivileged_many_connections() -> Result<()> {
    const TRIES: usize = 400;
    let group = Group::new("many")?;
    let agent = Agent::start(&[&OPEN[..], &["--control-mode", "0666"]].concat())?;
    let bystander = Waiter::on(&group, "64M")?;
    // The kernel's id for whoever has none is no operator's.
    process::run_as(USER - 1, || {
        let open: Vec<_> =
            (0..TRIES).map(|_| connect(Path::new(SOCKET))).collect::<std::result::Result<_, _>>()?;
        let mut served = 0;
        for connection in &open {
            let sent = send(connection.as_raw_fd(), b"bad", MsgFlags::MSG_NOSIGNAL);
            if sent.is_ok()
                && answer_on(connection).is_ok_and(|answer| is_errno(&answer, libc::EINVAL).is_ok())
            {
                served += 1;
            }
        }
        ensure!(served == 256, "{served} of {TRIES} connections are served");
        // While it holds them all; each socket counts for itself.
        ensure!(agent.status().is_ok(), "the operator's socket");
        Ok(())
    })?;
    nothing_moved(&agent, &bystander)
}
