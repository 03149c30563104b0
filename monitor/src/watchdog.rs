//! Notifies the service manager's watchdog while the whole path works: the agent registers on
//! its own group; a charge crosses the threshold; the kernel's program sends a record; the
//! thread that signals answers; the eventfd is signalled; and, once it is closed, the kernel's
//! count of its references ends the registration. None of it happens without a watchdog.
//!
//! A test needs descriptors and memory, and signals need neither. An agent that cannot be tested
//! for want of them works, and clients need it: ending it would help nobody.

pub mod error;

use std::{
    env,
    fs::{self, File},
    io,
    num::NonZeroUsize,
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::Path,
    rc::Rc,
    time::Duration,
};

use monitor_sys::memory::ChargedPages;
use nix::{
    errno::Errno,
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::UnixCredentials,
    },
};
use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::{
    async_fd::wait_on,
    cgroup::Hierarchy,
    error::{Error, Result},
    frontend::{
        accounting::Accounting,
        control_file::FrontendContext,
        deferred_close::UntrustedFd,
        inode::Inode,
        peer::Credentials,
        refusal::Refusal,
        register::{Client, register},
        requester::Requester,
        sender::Sender,
        sent_descriptors::SentDescriptors,
    },
    kernel::page_size,
    registry::Account,
    source::{Identify, Source},
    watchdog::error::WatchdogError,
    watcher::{ReceivedEventFd, SharedWatcher},
};

/// Tests in the time after which the service manager ends the agent: one test that fails, for
/// a lost record for example, is not the end.
const TESTS: u32 = 3;

/// Pages, of whatever size, that the kernel charges at once for a CPU's next pages, and keeps
/// for it when as many are given back (`MEMCG_CHARGE_BATCH`).
const BATCH: u64 = 64;

/// Pages charged by a test, and given back: so many that a CPU's stock cannot serve them.
const CHARGE: u64 = 4 * BATCH;

/// Pages above usage at which the threshold lies: half of the charge, and more than the stocks
/// of the CPU that begins and of the one that ends may hide.
const ABOVE: u64 = 2 * BATCH;

const _: () = assert!(ABOVE + BATCH < CHARGE);

/// Time between two checks whether the eventfd is closed.
const LOOK: Duration = Duration::from_millis(1);

/// Notifies the watchdog, which ends the agent after `time` without that, until the task is
/// dropped.
pub async fn serve<S: Source>(
    time: Duration,
    watcher: SharedWatcher<S>,
    context: Rc<FrontendContext>,
    hierarchy: Hierarchy,
) {
    // Before there may be no descriptor for it.
    let manager = connect_manager().inspect_err(|error| log::warn!("NOTIFY_SOCKET: {error}")).ok();
    let notify = || match manager.as_ref().map(|manager| manager.send(b"WATCHDOG=1\n")) {
        Some(Ok(_)) => Ok(()),
        // The manager has another socket by now.
        _ => sd_notify::notify(&[NotifyState::Watchdog]),
    };
    let test = async || {
        let outcome = alive(test(&watcher, &context, &hierarchy).await);
        // Whoever holds the watcher for ever holds this up, too.
        watcher.lock().end_closed_of(Account::Agent);
        outcome
    };
    pace(time / TESTS, test, || {
        if let Err(error) = notify() {
            log::warn!("cannot notify the service manager (NOTIFY_SOCKET): {error}");
        }
    })
    .await;
}

/// A socket that is connected to the service manager's.
fn connect_manager() -> io::Result<UnixDatagram> {
    let path = env::var_os("NOTIFY_SOCKET").ok_or(io::ErrorKind::NotFound)?;
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => socket.connect(&path)?,
    }
    Ok(socket)
}

/// Takes a test that could not be made, as the host or the agent is short of something, for one that
/// went well.
fn alive(outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(error) if error.shortage().is_some() => {
            log::warn!("the watchdog's test is not made, and the agent taken for alive: {error}");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Tests once in each period `every`, with as much time for it, and reports each success.
async fn pace(every: Duration, mut test: impl AsyncFnMut() -> Result<()>, mut went_well: impl FnMut()) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match timeout(every, test()).await {
            Ok(Ok(())) => went_well(),
            Ok(Err(error)) => log::error!("the watchdog's test failed: {error}"),
            Err(_) => log::error!("the watchdog's test did not end within {} ms", every.as_millis()),
        }
    }
}

/// Tests one registration of the agent's own from begin to end.
async fn test<S: Source>(
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    hierarchy: &Hierarchy,
) -> Result<()> {
    let failed = |error| Error::epoll("the watchdog's eventfd", error);
    let eventfd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(|errno| Error::syscall("eventfd2", errno))?;
    let theirs = nix::unistd::dup(&eventfd).map_err(|errno| Error::syscall("dup", errno))?;
    let eventfd = wait_on(OwnedFd::from(eventfd)).map_err(failed)?;
    let text =
        fs::read("/proc/self/cgroup").map_err(|error| Error::file("read", "/proc/self/cgroup", error))?;
    let group = hierarchy.directory_of(&text).ok_or(WatchdogError::NoOwnGroup)?;
    if group == hierarchy.root {
        // The root's counter is never charged: only the close can be tested.
        let line = format!("0 0 memory.usage_in_bytes {}", u64::MAX);
        request(watcher, context, theirs, &group, &line).await?;
    } else {
        let file = group.join(hierarchy.version.usage_file());
        let usage = fs::read_to_string(&file).map_err(|error| Error::file("read", &file, error))?;
        let usage: u64 = usage.trim().parse().unwrap_or(0);
        if !request(watcher, context, theirs, &file, &format!("0 0 {}", usage + ABOVE * page_size())).await? {
            return Ok(());
        }
        let charge = charge()?;
        drop(eventfd.readable().await.map_err(failed)?);
        drop(charge);
    }
    drop(eventfd);
    let has_ended = || {
        let mut watcher = watcher.lock();
        watcher.end_closed_of(Account::Agent);
        watcher.registry().held_by(Account::Agent) == 0
    };
    while !has_ended() {
        sleep(LOOK).await;
    }
    Ok(())
}

/// Registers like a client whose descriptors come along. False where clients have filled the
/// tables: they need the agent as it is, and it did answer.
async fn request<S: Source>(
    watcher: &SharedWatcher<S>,
    context: &FrontendContext,
    eventfd: OwnedFd,
    control: &Path,
    line: &str,
) -> Result<bool> {
    let control = File::open(control).map_err(|error| Error::file("open", control, error))?;
    let refused =
        |refusal: Refusal| WatchdogError::Refused { line: line.into(), refusal: refusal.to_string() };
    let fds = [eventfd, control.into()].map(UntrustedFd::harmless);
    let sent = SentDescriptors::new(fds.into(), Sender::new(UnixCredentials::new()), Account::Agent)
        .map_err(refused)?;
    let client = Client { line: line.as_bytes(), requester: &OwnRequest(sent), follower: None, own: None };
    let outcome = register(watcher, context, client).await;
    match outcome {
        Ok(receipt) => {
            watcher.lock().confirm(receipt);
            Ok(true)
        }
        Err(refusal) if refusal.errno == Errno::ENOMEM => Ok(false),
        Err(refusal) => Err(refused(refusal).into()),
    }
}

/// The agent as its own client, neither counted nor shown.
#[derive(Debug)]
struct OwnRequest(SentDescriptors);

impl Requester for OwnRequest {
    fn event(&self, number: u32, identity: &dyn Identify) -> std::result::Result<ReceivedEventFd, Refusal> {
        self.0.event(number, identity)
    }

    fn peek(&self, number: u32) -> Option<Inode> {
        self.0.peek(number)
    }

    fn control(&self, number: u32) -> std::result::Result<UntrustedFd, Refusal> {
        self.0.control(number)
    }

    fn credentials(&self) -> std::result::Result<Credentials, Refusal> {
        self.0.credentials()
    }

    fn account(&self, _: &Accounting) -> Account {
        Account::Agent
    }
}

/// Charges pages to this process's group, given back on drop.
fn charge() -> Result<ChargedPages> {
    let length = usize::try_from(CHARGE * page_size()).ok().and_then(NonZeroUsize::new);
    let length = length.ok_or(WatchdogError::PageSize)?;
    ChargedPages::new(length).map_err(|errno| Error::syscall("mmap", errno))
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io, time::Duration};

    use nix::errno::Errno;

    use super::{alive, pace};
    use crate::{error::Error, watchdog::error::WatchdogError};

    #[test]
    fn an_agent_that_is_short_of_something_is_alive() {
        let lost = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            assert!(alive(Err(Error::syscall("eventfd2", errno))).is_ok(), "{errno}");
            assert!(alive(Err(Error::file("open", "/a", lost(errno)))).is_ok(), "{errno}");
            assert!(alive(Err(Error::epoll("an eventfd", lost(errno)))).is_ok(), "{errno}");
        }
        assert!(alive(Err(Error::epoll("an eventfd", lost(Errno::ENOSPC)))).is_ok());
        assert!(alive(Err(Error::file("open", "/a", lost(Errno::ENOSPC)))).is_err());
        assert!(alive(Err(Error::syscall("eventfd2", Errno::EINVAL))).is_err());
        assert!(alive(Err(WatchdogError::NoOwnGroup.into())).is_err());
    }

    /// Makes one test fail and one never end; the others succeed.
    #[test]
    fn only_a_test_that_went_well_feeds_the_watchdog() -> Result<(), io::Error> {
        let (tests, meals) = (Cell::new(0), Cell::new(0));
        let fed = tokio::sync::Notify::new();
        let test = async || {
            tests.set(tests.get() + 1);
            match tests.get() {
                1 => Err(WatchdogError::NoOwnGroup.into()),
                2 => std::future::pending().await,
                _ => Ok(()),
            }
        };
        let meal = || {
            meals.set(meals.get() + 1);
            fed.notify_one();
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            tokio::select! {
                () = pace(Duration::from_millis(1), test, meal) => {}
                () = fed.notified() => {}
            }
        });
        assert!(meals.get() > 0);
        assert_eq!(tests.get(), meals.get() + 2, "fed by each of the others, and by these alone");
        Ok(())
    }
}
