//! A client's eventfd: checked when it is registered, signalled without ever waiting, by
//! the kernel's asynchronous reads ([`aio`](monitor_sys::aio)), or by separate threads ([`lane`]) where there
//! are none, or the client has made signalling slow.

pub mod lane;
mod signaller;

pub use signaller::{SignalOutcome, Signaller};

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
};

/// The link of an eventfd's descriptor in `/proc/PID/fd`.
pub const EVENTFD: &str = "anon_inode:[eventfd]";

/// A descriptor known to be an eventfd. Clones are the same descriptor, so that they
/// are one reference to the file.
#[derive(Clone, Debug)]
pub struct EventFd(Arc<OwnedFd>);

impl EventFd {
    /// Checks that `fd` is an eventfd, without a request to the file system that it may lie on.
    ///
    /// # Errors
    /// The kernel's: `EBADF` for an `O_PATH` descriptor, `EINVAL` for anything
    /// that is not an eventfd (`eventfd_ctx_fileget`).
    pub fn check(fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if is_path_only(fd)? {
            return Err(Errno::EBADF);
        }
        let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
        if link.as_os_str() != EVENTFD {
            return Err(Errno::EINVAL);
        }
        Ok(())
    }

    /// Wraps a descriptor that [`EventFd::check`] or the kernel has identified as an eventfd.
    #[must_use]
    pub fn known(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
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
    use std::os::fd::AsFd as _;

    use nix::{
        errno::Errno,
        fcntl::{OFlag, open},
        sys::{eventfd::EventFd as NixEventFd, stat::Mode},
    };

    use super::EventFd;

    #[test]
    fn other_descriptors_are_refused() -> Result<(), Errno> {
        let null = open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
        assert_eq!(EventFd::check(null.as_fd()), Err(Errno::EINVAL));
        let path = open("/dev/null", OFlag::O_PATH, Mode::empty())?;
        assert_eq!(EventFd::check(path.as_fd()), Err(Errno::EBADF));
        assert_eq!(EventFd::check(NixEventFd::new()?.as_fd()), Ok(()));
        Ok(())
    }
}
