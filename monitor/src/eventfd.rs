//! A client's eventfd: checked when it is taken in, signalled without blocking.

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};

/// What `/proc` says an eventfd's descriptor leads to.
pub const EVENTFD: &str = "anon_inode:[eventfd]";

/// A descriptor known to be an eventfd.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// Takes `fd` in.
    ///
    /// # Errors
    /// The kernel's: `EBADF` for an `O_PATH` descriptor, `EINVAL` for anything
    /// that is not an eventfd (`eventfd_ctx_fileget`).
    pub fn adopt(fd: OwnedFd) -> Result<Self, Errno> {
        if is_path_only(fd.as_fd())? {
            return Err(Errno::EBADF);
        }
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
        if link.as_os_str() != EVENTFD {
            return Err(Errno::EINVAL);
        }
        Ok(Self(fd))
    }

    /// Adds `count`, as `count` signals of the kernel would.
    ///
    /// The description is shared with the client, so its flags are left alone;
    /// a full counter is asked for first, as writing to it would block. Full
    /// means 2^64 - 2 unread signals: then `false` comes back.
    ///
    /// # Errors
    /// `poll` or `write` failed.
    pub fn signal(&self, count: u64) -> Result<bool, Errno> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO)?;
        if !fds[0].revents().is_some_and(|ready| ready.contains(PollFlags::POLLOUT)) {
            return Ok(false);
        }
        write(&self.0, &count.to_ne_bytes())?;
        Ok(true)
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// `O_PATH` descriptors count as closed for the kernel's `fdget`.
///
/// # Errors
/// `fcntl` failed.
pub fn is_path_only(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?).contains(OFlag::O_PATH))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use nix::{
        errno::Errno,
        fcntl::{OFlag, open},
        sys::{
            eventfd::{EfdFlags, EventFd as NixEventFd},
            stat::Mode,
        },
    };

    use super::EventFd;

    fn owned(fd: NixEventFd) -> OwnedFd {
        fd.into()
    }

    #[test]
    fn signals_add_up() -> Result<(), Errno> {
        let client = NixEventFd::from_flags(EfdFlags::EFD_NONBLOCK)?;
        let ours = EventFd::adopt(nix::unistd::dup(&client)?)?;
        assert_eq!(ours.signal(1), Ok(true));
        assert_eq!(ours.signal(2), Ok(true));
        assert_eq!(client.read(), Ok(3));
        Ok(())
    }

    #[test]
    fn a_full_counter_does_not_block() -> Result<(), Errno> {
        let client = NixEventFd::from_flags(EfdFlags::empty())?;
        client.write(u64::MAX - 1)?;
        let ours = EventFd::adopt(nix::unistd::dup(&client)?)?;
        assert_eq!(ours.signal(1), Ok(false));
        Ok(())
    }

    #[test]
    fn other_descriptors_are_refused() -> Result<(), Errno> {
        let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
        assert_eq!(EventFd::adopt(null).err(), Some(Errno::EINVAL));
        let path = open("/dev/null", OFlag::O_PATH, Mode::empty())?;
        assert_eq!(EventFd::adopt(path).err(), Some(Errno::EBADF));
        assert!(EventFd::adopt(owned(NixEventFd::new()?)).is_ok());
        Ok(())
    }
}
