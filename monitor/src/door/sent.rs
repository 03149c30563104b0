//! The client behind a message that brings its descriptors along.

use std::{
    cell::RefCell,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{errno::Errno, sys::socket::UnixCredentials};

use crate::{
    door::{
        inode::Inode,
        peer::{Credentials, Peer, hand_over, path_only, shown},
        request::{Asker, Refusal, Which},
    },
    eventfd,
    source::Source,
    watcher::{Handed, Watcher},
};

/// The descriptors that came with a message: `[event_fd, control_fd]`.
#[derive(Debug)]
pub struct Sent {
    event: RefCell<Option<OwnedFd>>,
    control: RefCell<Option<OwnedFd>>,
    sender: UnixCredentials,
}

impl Sent {
    /// Takes exactly two.
    ///
    /// # Errors
    /// `EINVAL` for any other number.
    pub fn new(fds: Vec<OwnedFd>, sender: &UnixCredentials) -> Result<Self, Refusal> {
        let [event, control] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
            let count = fds.len();
            Refusal::new(
                Errno::EINVAL,
                format!("{count} descriptors came along; send event_fd and control_fd, or none"),
            )
        })?;
        Ok(Self { event: Some(event).into(), control: Some(control).into(), sender: *sender })
    }

    fn missing(which: Which) -> Refusal {
        Refusal::new(Errno::EBADF, format!("{which} did not come along"))
    }
}

impl Asker for Sent {
    fn event<S: Source>(&self, number: u32, watcher: &Watcher<S>) -> Result<Handed, Refusal> {
        let which = Which::Event(number);
        let fd = self.event.take().ok_or_else(|| Self::missing(which))?;
        let (shown, _) = shown(watcher.source(), &fd);
        hand_over(fd, shown, which, watcher)
    }

    fn glance(&self, _: u32) -> Option<Inode> {
        let control = self.control.borrow();
        let fd = control.as_ref()?.as_fd();
        if eventfd::is_path_only(fd).unwrap_or(true) { None } else { Inode::of(fd).ok() }
    }

    fn control(&self, number: u32) -> Result<OwnedFd, Refusal> {
        let which = Which::Control(number);
        let fd = self.control.take().ok_or_else(|| Self::missing(which))?;
        if eventfd::is_path_only(fd.as_fd()).unwrap_or(true) {
            return Err(path_only(which, "reading"));
        }
        Ok(fd)
    }

    /// A sender that the agent cannot look at (another pid namespace, or gone
    /// already) still asks as the user that the kernel says it is.
    fn credentials(&self) -> Result<Credentials, Refusal> {
        let known = Peer::of(&self.sender).and_then(|peer| peer.credentials());
        let (uid, gid) = (self.sender.uid(), self.sender.gid());
        Ok(known.unwrap_or(Credentials { uid, gid, ..Default::default() }))
    }

    fn owner(&self) -> u32 {
        self.sender.uid()
    }
}
