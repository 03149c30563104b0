//! Descriptors that a line may name, by owner, and what may be registered on.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use memcg_monitor::view::POINT;
use monitor_client::{AdminConnection, CONTROL_SOCKET, Error, SOCKET, connect};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::{OPEN, answer_on, at_number, is_errno, nothing_moved};
use crate::harness::agent::Agent;
use crate::harness::client::{Waiter, agent_errno};
use crate::harness::group::Group;
use crate::harness::process::{self, USER};
use crate::harness::test::vm_test;
use crate::scenarios::abuse::{fails, says};

fn by_socket(line: &str, waiter: &Waiter, control: &File) -> Result<i32> {
    match monitor_client::register(
        Path::new(SOCKET),
        line.as_bytes(),
        Some([waiter.0.as_fd(), control.as_fd()]),
    ) {
        Ok(()) => Ok(0),
        Err(Error::Refused { errno, .. }) => Ok(errno),
        Err(error) => Err(error.into()),
    }
}

fn by_view(directory: &Path, line: &str) -> Result<i32> {
    let event_control = OpenOptions::new().write(true).open(directory.join("cgroup.event_control"))?;
    Ok(nix::unistd::write(&event_control, line.as_bytes()).err().map_or(0, |errno| errno as i32))
}

vm_test!(
    unprivileged_unreadable_group,
    "no frontend registers a user on a group that the user may not read",
    Any,
    []
);
fn unprivileged_unreadable_group() -> Result<()> {
    let group = Group::new("secret")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    let directory = Path::new(POINT).join("secret");
    // Handed to the user before it was closed to others.
    let control = File::open(group.usage_file())?;
    // All of its files, whichever stands for a control file; the directory stays open.
    for entry in fs::read_dir(&group.path)?.flatten().filter(|entry| entry.path().is_file()) {
        fs::set_permissions(entry.path(), Permissions::from_mode(0o600))?;
    }
    process::run_as(USER, || {
        for place in [&group.path, &directory] {
            let opened = File::open(place)?;
            for (name, args) in [
                ("memory.usage_in_bytes", "1M"),
                ("memory.memsw.usage_in_bytes", "1M"),
                ("memory.working_set_bytes", "1M"),
                ("memory.anon_bytes", "1M"),
                ("memory.oom_control", ""),
                ("memory.pressure_level", "low"),
                ("cgroup.procs", ""),
            ] {
                let waiter = Waiter::new()?;
                let line = format!("{} {} {name} {args}", waiter.0.as_raw_fd(), opened.as_raw_fd());
                let errno = by_socket(&line, &waiter, &opened)?;
                ensure!(errno == libc::EACCES, "{} by {}: errno {errno}", name, place.display());
                let errno = agent_errno(line.as_bytes())?;
                ensure!(errno == libc::EACCES, "{} by number, {}: errno {errno}", name, place.display());
            }
        }
        let waiter = Waiter::new()?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
        for (frontend, errno) in [
            ("socket, by number", agent_errno(line.as_bytes())?),
            ("socket, sent along", by_socket(&line, &waiter, &control)?),
            ("view", by_view(&directory, &line)?),
        ] {
            ensure!(errno == libc::EACCES, "{frontend}: errno {errno}");
        }
        Ok(())
    })?;
    nothing_moved(&agent, &bystander)
}

vm_test!(
    unprivileged_operators_socket,
    "a user who may register may not list, whatever the registration socket's mode",
    Any,
    []
);
fn unprivileged_operators_socket() -> Result<()> {
    let group = Group::new("listed")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    let control = File::open(group.usage_file())?;
    process::run_as(USER, || {
        let waiter = Waiter::new()?;
        let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
        let errno = by_socket(&line, &waiter, &control)?;
        ensure!(errno == 0, "the registration socket: errno {errno}");
        match AdminConnection::connect(Path::new(CONTROL_SOCKET)) {
            Err(Error::Syscall { errno: libc::EACCES, .. }) => Ok(()),
            Err(error) => Err(error).context("another error than EACCES"),
            Ok(_) => bail!("an ordinary user may list all groups"),
        }
    })?;
    ensure!(agent.status()?.registrations == 1, "the user's ended with the user");
    ensure!(bystander.take()? == 0, "the bystander was signalled");
    Ok(())
}

vm_test!(
    unprivileged_operators_group,
    "--control-mode and --control-group let a group's members list, and no other user",
    Any,
    []
);
fn unprivileged_operators_group() -> Result<()> {
    /// A user outside the group, whose number is that of its only member.
    const MEMBER: u32 = 1001;
    const OTHER: u32 = MEMBER + 1;
    let group = MEMBER.to_string();
    let open = ["--control-mode", "0660", "--control-group", &group];
    let _agent = Agent::start(&[&OPEN[..], &open].concat())?;
    let mode = fs::metadata(CONTROL_SOCKET)?.permissions().mode() & 0o777;
    ensure!(mode == 0o660, "the socket's mode is {mode:o}");
    let list = || AdminConnection::connect(Path::new(CONTROL_SOCKET))?.list();
    process::run_as(MEMBER, || list().map(drop).context("a member"))?;
    process::run_as(OTHER, || match list() {
        Err(Error::Syscall { errno: libc::EACCES, .. }) => Ok(()),
        Err(error) => Err(error).context("another error than EACCES"),
        Ok(_) => bail!("who is no member may list all groups"),
    })?;
    for command in [&["watch", "/a", "oom"][..], &["kills"], &["record", "/"], &["status"]] {
        let outcome = fails(command, |command| {
            command.uid(OTHER).gid(OTHER);
        })?;
        ensure!(outcome.1.trim_end().len() <= 200, "longer than two lines: {}", outcome.1);
        says(outcome, &["EACCES", "be root", "--control-group"])?;
    }
    Ok(())
}

vm_test!(
    unprivileged_guessed_descriptors,
    "numbers of the agent's and of other processes' descriptors are EBADF",
    Any,
    []
);
fn unprivileged_guessed_descriptors() -> Result<()> {
    let group = Group::new("guess")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    let directory = Path::new(POINT).join("guess");
    // Open in this process, and in the agent; not in the user's.
    let ours = at_number(&Waiter::new()?.0, 300)?;
    let control = File::open(group.usage_file())?;
    process::run_as(USER, || {
        drop(ours);
        let c = control.as_raw_fd();
        let mut guesses = vec![300, 301, 1023, 65_535, u32::MAX];
        // Descriptors of the agent: eventfds among them.
        guesses.extend(100..160);
        for guess in guesses {
            let line = format!("{guess} {c} 1M");
            let errno = agent_errno(line.as_bytes())?;
            ensure!(errno == libc::EBADF, "socket, eventfd {guess}: errno {errno}");
            let errno = by_view(&directory, &line)?;
            ensure!(errno == libc::EBADF, "view, eventfd {guess}: errno {errno}");
        }
        let waiter = Waiter::new()?;
        let errno = agent_errno(format!("{} 300 1M", waiter.0.as_raw_fd()).as_bytes())?;
        ensure!(errno == libc::EBADF, "control file: errno {errno}");
        Ok(())
    })?;
    nothing_moved(&agent, &bystander)
}

vm_test!(
    unprivileged_another_users_eventfd,
    "another user's eventfd is registered by a process that was given it, and by no other",
    Any,
    []
);
fn unprivileged_another_users_eventfd() -> Result<()> {
    let group = Group::new("given")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    let given = Waiter::new()?;
    process::run_as(USER, || {
        // Inherited, which is one way of being given it.
        let control = File::open(group.usage_file())?;
        let line = format!("{} {} 1M", given.0.as_raw_fd(), control.as_raw_fd());
        let errno = agent_errno(line.as_bytes())?;
        ensure!(errno == 0, "by number: errno {errno}");
        let errno = by_socket("0 0 1M", &given, &control)?;
        ensure!(errno == 0, "sent along: errno {errno}");
        // Not given: it is in the first process's table only.
        let errno = agent_errno(format!("299 {} 1M", control.as_raw_fd()).as_bytes())?;
        ensure!(errno == libc::EBADF, "not given: errno {errno}");
        Ok(())
    })?;
    ensure!(agent.status()?.registrations == 3, "two registrations and the bystander's");
    drop(given);
    crate::harness::agent::until("they end with their owner's eventfd", || {
        Ok(agent.status()?.registrations == 1)
    })?;
    nothing_moved(&agent, &bystander)
}

const HELPER: &str = "/run/helper";

vm_test!(
    unprivileged_setuid_helper,
    "a set-user-ID program that says a user's line registers nothing that the user may not",
    Any,
    []
);
fn unprivileged_setuid_helper() -> Result<()> {
    let group = Group::new("helper")?;
    let agent = Agent::start(&OPEN)?;
    let bystander = Waiter::on(&group, "64M")?;
    // Our own program, set-user-ID root: it writes its argument to its output.
    fs::copy("/proc/self/exe", HELPER)?;
    fs::set_permissions(HELPER, Permissions::from_mode(0o4755))?;
    let (waiter, control) = (Waiter::new()?, File::open(group.usage_file())?);
    for fd in [waiter.0.as_fd(), control.as_fd()] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    }
    let line = format!("{} {} 1M", waiter.0.as_raw_fd(), control.as_raw_fd());
    // It stays until it was answered: its input is open as long.
    let helper = |output: Stdio| {
        Command::new(HELPER).args(["say", &line]).stdin(Stdio::piped()).stdout(output).spawn()
    };
    let ended = |mut helper: Child| -> Result<i32> {
        drop(helper.stdin.take());
        helper.wait()?.code().context("the helper was killed")
    };
    let both_frontends = |errno: i32| -> Result<()> {
        let connection = connect(Path::new(SOCKET))?;
        let sender = helper(connection.try_clone()?.into())?;
        is_errno(&answer_on(&connection)?, errno).context("socket")?;
        ensure!(ended(sender)? == 0, "the helper could not send");
        let event_control = Path::new(POINT).join("helper/cgroup.event_control");
        let event_control = OpenOptions::new().write(true).open(event_control)?;
        let code = ended(helper(event_control.into())?)?;
        ensure!(code == errno, "view: errno {code} instead of {errno}");
        Ok(())
    };
    fs::set_permissions(group.usage_file(), Permissions::from_mode(0o600))?;
    process::run_as(USER, || both_frontends(libc::EACCES))?;
    nothing_moved(&agent, &bystander)?;
    // Where the user may, so does the helper; and root may anyway.
    fs::set_permissions(group.usage_file(), Permissions::from_mode(0o644))?;
    process::run_as(USER, || both_frontends(0))?;
    fs::set_permissions(group.usage_file(), Permissions::from_mode(0o600))?;
    both_frontends(0)?;
    ensure!(agent.status()?.registrations == 5, "four registrations and the bystander's");
    fs::remove_file(HELPER)?;
    Ok(())
}

/// The set-user-ID program's work: one write, whose errno is the exit code once its
/// input ends.
pub(crate) fn say(line: &str) -> ! {
    let code = nix::unistd::write(std::io::stdout(), line.as_bytes()).err().map_or(0, |errno| errno as i32);
    let _ = std::io::stdin().read(&mut [0]);
    std::process::exit(code)
}
