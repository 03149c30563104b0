//! When a registration ends, and what its end looks like: on both sides.

use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use memcg_monitor::view::POINT;
use monitor_common::grammar::control_file::ControlFile::{self, Memsw, Oom, Pressure, Usage};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use nix::unistd::dup;

use super::book::{Book, Both};
use super::semantics::look;
use crate::harness::MIB;
use crate::harness::agent::{Agent, until};
use crate::harness::charger::{Charger, Kind};
use crate::harness::client::Waiter;
use crate::harness::group::Group;
use crate::harness::test::vm_test;
use crate::scenarios::view::{register_in, shown};

const FILES: [(ControlFile, &str); 4] = [(Usage, "512M"), (Memsw, "512M"), (Oom, ""), (Pressure, "critical")];

/// Waits for the eventfd, then tries event_control at once: signals and errno.
fn woken(waiter: &Waiter, event_control: &Path) -> Result<String> {
    let count = waiter.wait()?;
    let errno = match nix::unistd::access(event_control, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => "still there".to_owned(),
        Err(errno) => format!("{errno:?}"),
    };
    Ok(format!("{count}, {errno}"))
}

vm_test!(
    conformance_removal_order,
    "a client woken by a removal finds event_control gone, on every control file",
    V1,
    [Oracle, Standing]
);
fn conformance_removal_order() -> Result<()> {
    let _agent = Agent::standing()?;
    let mut book = Book::default();
    for (file, args) in FILES {
        let group = Group::new("order")?;
        let directory = shown(&group.path)?;
        let both = Both::new()?;
        let waiter = Waiter::new()?;
        both.register(&group, file, args)?;
        let errno = register_in(&directory, file.name(), &waiter, args)?;
        ensure!(errno == 0, "{}: errno {errno} from the view", file.name());
        let (real, ours) = (group.path.join("cgroup.event_control"), directory.join("cgroup.event_control"));
        let (kernel, ours) = thread::scope(|scope| -> Result<_> {
            let kernel = scope.spawn(|| woken(&both.kernel, &real));
            let ours = scope.spawn(|| woken(&waiter, &ours));
            group.remove()?;
            let joined = |handle: thread::ScopedJoinHandle<'_, Result<String>>| {
                handle.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked")))
            };
            Ok((joined(kernel)?, joined(ours)?))
        })?;
        book.row(
            &format!("removal, {}: signals, then access of event_control", file.name()),
            &kernel,
            &ours,
            None,
        );
        ensure!(both.ours.wait()? == 1, "at the socket");
    }
    ensure!(Path::new(POINT).is_dir(), "the view is gone");
    book.close()
}

vm_test!(
    conformance_removal_thousand,
    "1,000 registrations on several eventfds: 1,000 signals at the group's removal",
    V1,
    [Oracle, Standing]
);
fn conformance_removal_thousand() -> Result<()> {
    let group = Group::new("thousand")?;
    let agent = Agent::standing()?;
    let mut book = Book::default();
    let mut all = (0..5).map(|_| Both::new()).collect::<Result<Vec<_>>>()?;
    for number in 0..1000 {
        let (file, args) = FILES[number % FILES.len()];
        all[number % 5].register(&group, file, args)?;
    }
    ensure!(agent.status()?.registrations == 1000, "not all are registered");
    group.remove()?;
    let (mut kernel, mut ours) = (0, 0);
    for both in &mut all {
        let total = both.reach("removal", 200)?;
        kernel += total.0;
        ours += total.1;
    }
    agent.settle()?;
    book.counts("removal: 1,000 registrations on five eventfds", (kernel, ours));
    for both in &mut all {
        ensure!(both.take()? == (0, 0), "and no more");
    }
    book.close()
}

/// Both eventfds of a pair, each handled the same.
fn each(both: &Both, mut handle: impl FnMut(&EventFd) -> Result<u64>) -> Result<(u64, u64)> {
    Ok((handle(&both.kernel.0)?, handle(&both.ours.0)?))
}

vm_test!(
    conformance_references,
    "a copy, an exec'd child and a message in flight each keep a registration",
    V1,
    [Oracle, Standing]
);
fn conformance_references() -> Result<()> {
    let group = Group::new("references")?;
    let agent = Agent::standing()?;
    let mut book = Book::default();
    let mut charger = Charger::start(&group)?;

    // The charger was forked before, and has no copies.
    let both = Both::at(&group, Usage, "8M")?;
    let copies = (dup(&both.kernel.0)?, dup(&both.ours.0)?);
    drop(both);
    charger.grow(Kind::Anonymous, 12 * MIB)?;
    look(&mut charger, &agent)?;
    book.counts("closed, a copy is left: rose above", (read(&copies.0)?, read(&copies.1)?));
    drop(copies);
    until("the last close ended it", || Ok(agent.status()?.registrations == 0))?;
    charger.shrink(Kind::Anonymous)?;

    let both = Both::new()?;
    let both = Both { kernel: blocking()?, ours: blocking()?, ..both };
    both.register(&group, Usage, "8M")?;
    let mut children = Vec::new();
    each(&both, |eventfd| {
        let out = format!("of=/run/received-{}", children.len());
        let mut command = Command::new("/bin/dd");
        command.args(["bs=8", "count=1", &out]).stdin(Stdio::from(dup(eventfd)?)).stderr(Stdio::null());
        children.push(command.spawn().context("cannot start dd")?);
        Ok(0)
    })?;
    drop(both);
    charger.grow(Kind::Anonymous, 12 * MIB)?;
    look(&mut charger, &agent)?;
    let mut received = Vec::new();
    for (number, child) in children.iter_mut().enumerate() {
        child.wait()?;
        let bytes = fs::read(format!("/run/received-{number}"))?;
        received.push(u64::from_ne_bytes(bytes.as_slice().try_into().context("no count")?));
    }
    book.counts("closed, a forked and exec'd child has it: rose above", (received[0], received[1]));
    until("the child's end ended it", || Ok(agent.status()?.registrations == 0))?;
    charger.shrink(Kind::Anonymous)?;

    let both = Both::at(&group, Usage, "8M")?;
    let mut flights = Vec::new();
    each(&both, |eventfd| {
        flights.push(send(eventfd)?);
        Ok(0)
    })?;
    drop(both);
    charger.grow(Kind::Anonymous, 12 * MIB)?;
    look(&mut charger, &agent)?;
    let landed = flights.iter().map(receive).collect::<Result<Vec<_>>>()?;
    book.counts("closed, handed over by SCM_RIGHTS: rose above", (read(&landed[0])?, read(&landed[1])?));
    charger.shrink(Kind::Anonymous)?;
    look(&mut charger, &agent)?;
    book.counts("handed over by SCM_RIGHTS: fell below", (read(&landed[0])?, read(&landed[1])?));
    drop(landed);
    until("its close ended it", || Ok(agent.status()?.registrations == 0))?;
    book.close()
}

fn blocking() -> Result<Waiter> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map(Waiter).context("eventfd failed")
}

fn read(eventfd: &OwnedFd) -> Result<u64> {
    let mut count = [0; 8];
    match nix::unistd::read(eventfd, &mut count) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(Errno::EAGAIN) => Ok(0),
        Err(errno) => Err(errno).context("read of the eventfd failed"),
    }
}

/// A socket that holds a message that holds the eventfd.
fn send(eventfd: &EventFd) -> Result<(OwnedFd, OwnedFd)> {
    let (here, there) = socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
    let fds = [eventfd.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<UnixAddr>(here.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    Ok((here, there))
}

fn receive((_, there): &(OwnedFd, OwnedFd)) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([i32; 1]);
    let message =
        recvmsg::<UnixAddr>(there.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let fd = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd.context("no descriptor came along")?) })
}
