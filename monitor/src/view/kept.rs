//! The view's connection to the kernel (`/dev/fuse`), kept in the descriptor store over a restart
//! of the agent, so that every mount of the view goes on: also bind mounts in containers.
//!
//! Node numbers follow from ids of cgroups, nothing is cached, and an open file is a number that
//! no agent repeats. So the next agent answers whatever the one before was asked. The kernel
//! greets a connection once only (`FUSE_INIT`), and fuser knows no session without a greeting;
//! it is given one on a socket pair ([`session`]). What it negotiates, and how nodes are
//! numbered, is part of [`LAYOUT`].
//!
//! Requests that an agent had read and not answered when it ended: one that hands over answers
//! all, and notes that in the connection's file flags, which all its descriptors share. After
//! any other end the kernel is requested to send them again (Linux 6.9), or they are refused
//! with `EINTR`.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use fuser::{Config, Session, SessionACL};
use monitor_sys::descriptor;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    mount::{MntFlags, umount2},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        stat::Mode,
    },
};

use crate::{
    error::{Error, Result},
    fd_store::{FdStore, StoredDescriptors, VIEW},
    kernel::fuse,
    mounts::{self, Mount},
    view::{
        fs::{LARGEST_WRITE, View},
        mount::NAME,
    },
};

/// The version of all that two agents must have in common for one to go on with the other's connection: numbers of
/// nodes and files, and what fuser negotiates. To be raised with any change of these.
const LAYOUT: u32 = 2;

/// Requests that can have been in an agent's hands when it was killed, counted from the newest.
const IN_HAND: u64 = 1 << 16;

/// Facts about a view, which are its descriptor's name in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewName {
    /// `st_ino` of the root group's real directory.
    pub root: u64,
    /// Minor number of the mount's device.
    pub device: u32,
    /// Whether the mount point is removed after the mount.
    pub remove: bool,
}

/// A connection that an earlier agent has left in the store.
#[derive(Debug)]
pub struct KeptView {
    name: String,
    device: OwnedFd,
}

impl ViewName {
    fn parse(name: &str) -> Option<Self> {
        let mut fields = name.strip_prefix(VIEW)?.split('-');
        let layout: u32 = fields.next()?.parse().ok()?;
        let (root, device) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let remove = fields.next()? == "1";
        (layout == LAYOUT && fields.next().is_none()).then_some(Self { root, device, remove })
    }

    /// The name of the descriptor in the store.
    #[must_use]
    pub fn in_store(self) -> String {
        format!("{VIEW}{LAYOUT}-{}-{}-{}", self.root, self.device, u8::from(self.remove))
    }
}

/// Takes the connections of earlier agents out of the descriptors handed over.
#[must_use]
pub fn taken(handed: &mut StoredDescriptors) -> Vec<KeptView> {
    let views = handed.extract_if(.., |(name, _)| name.starts_with(VIEW));
    views.map(|(name, device)| KeptView { name, device }).collect()
}

impl KeptView {
    /// The connection, where it is the one of the view of `root` that is mounted on `point`.
    ///
    /// # Errors
    /// It is not, and is returned.
    pub fn fitting(self, point: &Path, root: u64) -> std::result::Result<(ViewName, OwnedFd), Self> {
        let is_mounted = |name: &ViewName| {
            let mount = mounts::on(point).ok().flatten();
            mount.is_some_and(|mount| is_ours(&mount, name.device)) && is_alive(self.device.as_fd())
        };
        match ViewName::parse(&self.name).filter(|name| name.root == root && is_mounted(name)) {
            Some(name) => Ok((name, self.device)),
            None => Err(self),
        }
    }

    /// Ends a view that this agent does not go on with: every mount of it is dead afterwards.
    pub fn end(self, fd_store: Option<&FdStore>) {
        let mounted = ViewName::parse(&self.name).and_then(|name| first_mount(name.device));
        let place = mounted.as_ref().map_or(String::new(), |point| format!(" on {}", point.display()));
        log::warn!(
            "an earlier agent's view{place} is of another place, hierarchy or version, or unmounted: it is ended, and bind mounts of it answer ENOTCONN"
        );
        // The first one that was made is the agent's; bind mounts of it come later.
        if let Some(point) = mounted
            && let Err(errno) = umount2(&point, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE)
        {
            log::warn!("umount2 {}: {errno}; umount -l it", point.display());
        }
        if let Some(Err(error)) = fd_store.map(|fd_store| fd_store.forget(&self.name)) {
            log::warn!("{error}");
        }
    }
}

/// A session on a connection that was greeted by an earlier agent.
///
/// # Errors
/// There is no descriptor for a socket pair.
pub fn session(view: View, device: BorrowedFd<'_>, config: Config) -> Result<Session<View>> {
    let failed = |call: &str, error: std::io::Error| {
        Error::start(format!("a session for the kept view ({call})"), error)
    };
    let (kernel, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| failed("socketpair", errno.into()))?;
    File::from(kernel.try_clone().map_err(|error| failed("dup", error))?)
        .write_all(&fuse::greeting())
        .map_err(|error| failed("write", error))?;
    let mut session =
        Session::from_fd(view, ours, SessionACL::All, config).map_err(|error| failed("greeting", error))?;
    descriptor::replace(&mut session, device).map_err(|errno| failed("dup3", errno.into()))?;
    Ok(session)
}

/// Has what an earlier agent read and did not answer answered, if it had no time to do so itself.
pub fn begin_again(device: BorrowedFd<'_>, point: &Path) {
    if was_left_clean(device) {
        return;
    }
    match nix::unistd::write(device, &fuse::resend()) {
        Ok(_) => log::debug!("the view's requests in flight are sent again"),
        // Before Linux 6.9.
        Err(Errno::EINVAL) => refuse_in_flight(device, point),
        Err(errno) => log::warn!(
            "write to /dev/fuse (FUSE_NOTIFY_RESEND): {errno}; requests in flight at the last agent's end may hang until it ends for good"
        ),
    }
}

/// Notes in the connection's file flags that no request is in the agent's hands.
pub fn leave_clean(device: BorrowedFd<'_>) {
    if let Err(errno) = set_flags(device, |flags| flags | OFlag::O_NONBLOCK) {
        log::debug!("fcntl F_SETFL on /dev/fuse: {errno}");
    }
}

/// The note of [`leave_clean`], which is taken back.
fn was_left_clean(device: BorrowedFd<'_>) -> bool {
    let mut clean = false;
    let cleared = set_flags(device, |flags| {
        clean = flags.contains(OFlag::O_NONBLOCK);
        flags - OFlag::O_NONBLOCK
    });
    if let Err(errno) = cleared {
        log::warn!("fcntl F_SETFL on /dev/fuse: {errno}");
    }
    clean
}

fn set_flags(device: BorrowedFd<'_>, change: impl FnOnce(OFlag) -> OFlag) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(device, FcntlArg::F_GETFL)?);
    fcntl(device, FcntlArg::F_SETFL(change(flags))).map(drop)
}

/// Refuses with `EINTR` what was read before the oldest request that waits: requests are read in
/// the order of their numbers. A number that is not in flight is `ENOENT`, and changes nothing.
fn refuse_in_flight(device: BorrowedFd<'_>, point: &Path) {
    /// Time until a request that the agent makes itself is there.
    const SOON: u16 = 1000;
    let point = point.to_owned();
    // So that one waits. Answered below, or later by the session.
    let own = std::thread::Builder::new().spawn(move || std::fs::metadata(point).map(drop));
    let mut buffer = vec![0; LARGEST_WRITE as usize + 4096];
    let is_there = || {
        let mut waited = [PollFd::new(device, PollFlags::POLLIN)];
        own.is_ok() && poll(&mut waited, PollTimeout::from(SOON)).is_ok_and(|ready| ready > 0)
    };
    let Ok(mut file) = device.try_clone_to_owned().map(File::from) else { return };
    while is_there() {
        let Ok(length) = file.read(&mut buffer) else { continue };
        let Some(newest) = fuse::number_to_answer(&buffer[..length]) else { continue };
        let oldest = newest.saturating_sub(IN_HAND * fuse::NUMBER_STEP).max(fuse::NUMBER_STEP);
        let numbers = (oldest..=newest).step_by(fuse::NUMBER_STEP as usize);
        let refused = numbers.filter(|number| file.write_all(&fuse::refusal(*number, Errno::EINTR)).is_ok());
        return log::info!("{} requests to the view were interrupted (EINTR)", refused.count());
    }
    log::warn!("requests in flight at the last agent's end may hang until this one ends for good");
}

/// Minor number of the device of the view mounted on `point`.
///
/// # Errors
/// It is not mounted any more.
pub fn device_of(point: &Path) -> Option<u32> {
    mounts::on(point).ok().flatten().filter(|mount| mount.source == NAME).map(|mount| mount.device.1)
}

/// Opens the mount's root without a request to the agent.
///
/// # Errors
/// `open` failed.
pub fn open_root(point: &Path) -> nix::Result<OwnedFd> {
    open(point, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn is_ours(mount: &Mount, device: u32) -> bool {
    mount.kind == "fuse"
        && mount.source == NAME
        && mount.device == (0, device)
        && mount.root == Path::new("/")
}

fn first_mount(device: u32) -> Option<PathBuf> {
    mounts::all().ok()?.into_iter().find(|mount| is_ours(mount, device)).map(|mount| mount.point)
}

/// Whether the connection is there: without any mount, or aborted, it is not.
fn is_alive(device: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok()
        && !polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

#[cfg(test)]
mod tests {
    use super::{LAYOUT, ViewName};

    #[test]
    fn a_name_of_this_layout_leads_back_and_no_other() {
        for remove in [true, false] {
            let name = ViewName { root: 1 << 40, device: 77, remove };
            assert_eq!(ViewName::parse(&name.in_store()), Some(name));
            assert!(name.in_store().len() < 256 && !name.in_store().contains(':'));
        }
        let other = format!("view-{}-1-2-0", LAYOUT + 1);
        for name in [other.as_str(), "view-", "view-1", "view-1-2-3", "view-1-2-3-0-9", "state"] {
            assert_eq!(ViewName::parse(name), None, "{name}");
        }
    }
}
