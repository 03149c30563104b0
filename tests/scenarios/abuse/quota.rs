//! Quotas: to which user each registration counts, who has none, and what bounds them all.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memcg_monitor::view::POINT;
use monitor_client::wire::{AdminRequest, Answer};
use monitor_client::{AdminConnection, CONTROL_SOCKET, Error, SOCKET, connect};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, send, sendmsg};
use nix::unistd::{Uid, setfsuid, setresuid};

use crate::harness::MIB;
use crate::harness::agent::{PATIENCE, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::{Waiter, agent_errno, register_line};
use crate::harness::group::Group;
use crate::harness::process::{self, Process, USER, become_container_root};
use crate::harness::test::vm_test;
use crate::scenarios::restart::Supervised;

/// Both frontends are open to every user, and each user may have three.
const OPTIONS: [&str; 6] = ["--socket-mode", "0666", "--event-control-mode", "0222", "--max-per-user", "3"];
const FULL: i32 = libc::EDQUOT;

/// Errnos of as many registrations on `group`, by the view and the socket in turn.
fn errnos(waiter: &Waiter, group: &Group, tries: usize) -> Result<Vec<i32>> {
    let by_either = |n| if n % 2 == 0 { by_view(waiter, group) } else { by_socket(waiter, group) };
    (0..tries).map(by_either).collect()
}

fn line(waiter: &Waiter, group: &Group) -> Result<(File, String)> {
    let control = File::open(group.usage_file()).context("cannot open the control file")?;
    let line = format!("{} {} 64M", waiter.0.as_raw_fd(), control.as_raw_fd());
    Ok((control, line))
}

fn by_socket(waiter: &Waiter, group: &Group) -> Result<i32> {
    let (_control, line) = line(waiter, group)?;
    agent_errno(line.as_bytes())
}

fn by_view(waiter: &Waiter, group: &Group) -> Result<i32> {
    let (_control, line) = line(waiter, group)?;
    let name = group.path.file_name().context("the root")?;
    let path = Path::new(POINT).join(name).join("cgroup.event_control");
    let file = OpenOptions::new().write(true).open(&path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    Ok(nix::unistd::write(&file, line.as_bytes()).err().map_or(0, |errno| errno as i32))
}

fn expect(who: &str, found: &[i32], expected: &[i32]) -> Result<()> {
    ensure!(found == expected, "{who}: {found:?} instead of {expected:?}");
    Ok(())
}

vm_test!(
    abuse_one_eventfd_of_two_users,
    "users who share an eventfd have a quota each, by either frontend, and keep what they owe over a restart",
    Any,
    [Kernel, Preempt]
);
fn abuse_one_eventfd_of_two_users() -> Result<()> {
    const USERS: [u32; 2] = [USER, USER + 1];
    let group = Group::new("shared")?;
    let mut agent = Supervised::start(&OPTIONS)?;
    // Registered by root first, and inherited: one way of being given it.
    let given = Waiter::on(&group, "64M")?;
    for user in USERS {
        let tries = || expect("at first", &errnos(&given, &group, 5)?, &[0, 0, 0, FULL, FULL]);
        process::run_as(user, tries).with_context(|| format!("user {user}"))?;
    }
    agent.killed_while(|| Ok(()))?;
    for user in USERS {
        let tries = || {
            expect("after a restart", &errnos(&given, &group, 2)?, &[FULL, FULL])?;
            // Another eventfd does not help.
            expect("another eventfd", &errnos(&Waiter::new()?, &group, 2)?, &[FULL, FULL])
        };
        process::run_as(user, tries).with_context(|| format!("user {user}"))?;
    }
    process::run_as(USER + 2, || expect("a third one", &errnos(&given, &group, 1)?, &[0]))?;
    let registrations = agent.registrations()?;
    ensure!(registrations == 8, "{registrations} registrations: root's, three, three, and one");
    drop(given);
    until("all of them ended with the eventfd", || Ok(agent.registrations()? == 0))?;
    let again = || expect("afterwards", &errnos(&Waiter::new()?, &group, 4)?, &[0, 0, 0, FULL]);
    process::run_as(USER, again)
}

/// Connects to the admin socket as user id 0 of a container, or with that one's rights
/// to files under another id, and sends a request as another.
fn lists_as_another(is_opened_as_another: bool) -> Result<()> {
    let (root, user) = (Uid::from_raw(0), Uid::from_raw(USER));
    if is_opened_as_another {
        // SO_PEERCRED gives the effective id; files are opened by the file system's.
        setresuid(root, user, root)?;
        setfsuid(root);
    }
    let control = AdminConnection::connect(Path::new(CONTROL_SOCKET)).context("the kernel lets it in")?;
    setresuid(user, user, user)?;
    match control.list() {
        Err(Error::Refused { errno: libc::EPERM, .. }) => Ok(()),
        other => anyhow::bail!("a container's root lists all groups as another user: {other:?}"),
    }
}

vm_test!(
    abuse_root_of_a_container,
    "user id 0 without CAP_SYS_RESOURCE has a user's quota and connections, and no list; the host's root has no bounds, nor less for it",
    Any,
    [Kernel, Preempt]
);
fn abuse_root_of_a_container() -> Result<()> {
    const TRIES: usize = 300;
    let group = Group::new("pod")?;
    let agent = Supervised::start(&OPTIONS)?;
    // Before, and more than a quota: it is not charged to the user id alone.
    let host = Waiter::new()?;
    expect("the host's root", &errnos(&host, &group, 8)?, &[0; 8])?;
    let (reader, writer) = nix::unistd::pipe()?;
    let container = Process::start(|| {
        become_container_root()?;
        let waiter = Waiter::new()?;
        let found = (0..4).map(|_| by_view(&waiter, &group)).collect::<Result<Vec<_>>>()?;
        // Of the user id's quota the host's root has used up a half, rounded up.
        expect("a container's root", &found, &[0, FULL, FULL, FULL])?;
        // The operator's socket lets the id in, and the agent does not.
        match AdminConnection::connect(Path::new(CONTROL_SOCKET)).and_then(|control| control.list()) {
            Err(Error::Refused { errno: libc::EPERM, .. }) => {}
            other => anyhow::bail!("a container's root lists all groups: {other:?}"),
        }
        // Nor under another id, by whichever the kernel lets it in.
        for is_opened_as_another in [false, true] {
            process::run(|| lists_as_another(is_opened_as_another))?;
        }
        // The first connections of its own.
        let open: Vec<_> =
            (0..TRIES).map(|_| connect(Path::new(SOCKET))).collect::<std::result::Result<_, _>>()?;
        let is_served = |connection: &OwnedFd| {
            let sent = send(connection.as_raw_fd(), b"bad", MsgFlags::MSG_NOSIGNAL);
            sent.is_ok()
                && recv(connection.as_raw_fd(), &mut [0; 512], MsgFlags::empty()).is_ok_and(|n| n > 0)
        };
        let served = open.iter().filter(|connection| is_served(connection)).count();
        ensure!(served == 256, "{served} of {TRIES} connections are served");
        nix::unistd::write(&writer, b".")?;
        loop {
            nix::unistd::pause();
        }
    })?;
    drop(writer);
    if nix::unistd::read(&reader, &mut [0])? == 0 {
        return container.end();
    }
    // While it holds them all.
    expect("the host's root", &errnos(&host, &group, 4)?, &[0; 4])?;
    drop(container);
    until("the container's ended with it", || Ok(agent.registrations()? == 12))
}

vm_test!(
    abuse_registrations_in_all,
    "--max-registrations holds for root, too: ENOMEM that names it, and room when some have ended",
    Any,
    []
);
fn abuse_registrations_in_all() -> Result<()> {
    let group = Group::new("all")?;
    let agent = Supervised::start(&[&OPTIONS[..4], &["--max-registrations", "4"]].concat())?;
    let (ours, theirs) = (Waiter::new()?, Waiter::new()?);
    expect("root", &errnos(&ours, &group, 2)?, &[0, 0])?;
    let user = || expect("a user", &errnos(&theirs, &group, 3)?, &[0, 0, libc::ENOMEM]);
    process::run_as(USER, user)?;
    expect("root", &errnos(&ours, &group, 2)?, &[libc::ENOMEM; 2])?;
    let control = File::open(group.usage_file())?;
    match register_line(format!("{} {} 1M", ours.0.as_raw_fd(), control.as_raw_fd()).as_bytes()) {
        Err(Error::Refused { message, .. }) if message.contains("--max-registrations") => {}
        other => anyhow::bail!("what to do is not said: {other:?}"),
    }
    drop(theirs);
    until("the user's have ended", || Ok(agent.registrations()? == 2))?;
    expect("root", &errnos(&ours, &group, 3)?, &[0, 0, libc::ENOMEM])
}

/// Runs `work` in a child, in `group`, as a user.
fn run_in_group(group: &Group, user: u32, work: impl FnOnce() -> Result<()>) -> Result<()> {
    process::run(|| {
        group.add(nix::unistd::getpid())?;
        process::become_user(user)?;
        work()
    })
}

fn groups_pay() -> Result<()> {
    let on = Group::new("on")?;
    let (one, other) = (Group::new("one")?, Group::new("other")?);
    // A user's own group, in which the user makes groups.
    let own = Group::new("own")?;
    let below = [own.child("a")?, own.child("b")?];
    chown(&own.path, Some(USER), Some(USER))?;
    let mut agent = Supervised::start(&[&OPTIONS[..], &["--quota-by", "cgroup"]].concat())?;
    let held = Waiter::new()?;
    let tries = |group: &Group, user, expected: &'static [i32]| -> Result<()> {
        let work = || expect("by the eventfd", &errnos(&held, &on, expected.len())?, expected);
        run_in_group(group, user, work).with_context(|| format!("{}, user {user}", group.path.display()))
    };
    tries(&one, USER, &[0, 0, 0, FULL, FULL])?;
    tries(&one, USER + 1, &[FULL, FULL])?;
    tries(&other, USER, &[0, 0])?;
    tries(&below[0], USER, &[0, 0, 0, FULL])?;
    tries(&below[1], USER, &[FULL, FULL])?;
    agent.killed_while(|| Ok(()))?;
    tries(&one, USER, &[FULL, FULL])?;
    tries(&other, USER, &[0, FULL])?;
    let control = File::open(on.usage_file())?;
    run_in_group(&other, USER, || {
        // Sent along; and the sender may be gone by the time that it is looked at.
        let fds = [held.0.as_fd(), control.as_fd()];
        let outcome = monitor_client::register(Path::new(SOCKET), b"0 0 1M", Some(fds));
        ensure!(matches!(outcome, Err(Error::Refused { errno: FULL, .. })), "{outcome:?}");
        Ok(())
    })?;
    run_in_group(&other, USER, || {
        // Gone by the time that it is looked at, or not: its connection's opener is there.
        let connection = connect(Path::new(SOCKET))?;
        for _ in 0..8 {
            process::run(|| {
                let fds = [held.0.as_raw_fd(), control.as_raw_fd()];
                let (line, rights) = ([IoSlice::new(b"0 0 1M")], [ControlMessage::ScmRights(&fds)]);
                sendmsg::<UnixAddr>(connection.as_raw_fd(), &line, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
                Ok(())
            })?;
            let mut answer = [0; 512];
            let length = recv(connection.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            let answer = String::from_utf8_lossy(&answer[..length]);
            ensure!(answer.starts_with(&format!("-{FULL} ")), "a sender that is gone: {answer:?}");
        }
        Ok(())
    })?;
    expect("root", &errnos(&held, &on, 8)?, &[0; 8])?;
    let registrations = agent.registrations()?;
    ensure!(registrations == 17, "{registrations} registrations: 3, 3, 3 and root's 8");
    Ok(())
}

vm_test!(
    abuse_quota_by_cgroup,
    "with --quota-by cgroup groups have quotas, not users; a user who makes groups makes no quotas",
    Any,
    [Kernel, Preempt, Oracle]
);
fn abuse_quota_by_cgroup() -> Result<()> {
    groups_pay()
}

vm_test!(
    abuse_quota_by_cgroup_from_within,
    "an agent in a cgroup namespace of its own, as in a container, identifies clients' groups",
    Any,
    []
);
fn abuse_quota_by_cgroup_from_within() -> Result<()> {
    let pods = Group::new("pods")?;
    let container = pods.child("container")?;
    process::run(|| {
        container.add(nix::unistd::getpid())?;
        unshare(CloneFlags::CLONE_NEWCGROUP).context("no cgroup namespace")?;
        groups_pay()
    })
}

vm_test!(
    abuse_shared_eventfd_followed,
    "a follower of a registration receives that one's events alone, whatever else is on the same eventfd",
    Any,
    []
);
fn abuse_shared_eventfd_followed() -> Result<()> {
    let groups = [Group::new("mine")?, Group::new("theirs")?];
    let agent = Supervised::start(&OPTIONS[..4])?;
    let waiter = Waiter::new()?;
    let follow = |group: &Group| -> Result<AdminConnection> {
        let control = AdminConnection::connect(Path::new(CONTROL_SOCKET))?;
        control.set_timeout(Some(PATIENCE))?;
        let file = File::open(group.usage_file())?;
        control.send(&AdminRequest::Listen("0 0 4M".into()), &[waiter.0.as_fd(), file.as_fd()])?;
        let answer = control.next()?;
        ensure!(matches!(answer, Some(Answer::Listening)), "{answer:?}");
        Ok(control)
    };
    let [mine, theirs] = [follow(&groups[0])?, follow(&groups[1])?];
    let mut chargers = [Charger::start(&groups[0])?, Charger::start(&groups[1])?];
    // Theirs first: what is sent of it to the wrong one is before what is mine.
    for charger in chargers.iter_mut().rev() {
        charger.grow(Kind::Anonymous, 8 * MIB)?;
        waiter.receives(1, "each crossing is signalled")?;
    }
    agent.0.settle()?;
    for (control, group) in [(&mine, &groups[0]), (&theirs, &groups[1])] {
        match control.next()? {
            Some(Answer::Event(row)) => {
                ensure!(Path::new(&row.cgroup) == group.path, "sent of another's group: {row:?}");
            }
            other => anyhow::bail!("{other:?} instead of its own crossing"),
        }
    }
    for charger in chargers {
        charger.end()?;
    }
    Ok(())
}
