//! Descriptors that the event loop waits on.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the event loop, which has it until the value is dropped.
///
/// # Errors
/// `epoll_ctl` failed: `ENOSPC` where `fs.epoll.max_user_watches` is used up, `EPERM` for a
/// file that cannot be waited for, `EEXIST` for one that is registered already.
///
/// # Panics
/// Outside a runtime with I/O.
#[expect(
    deprecated,
    reason = "its contract holds for an OwnedFd, which stands for one descriptor as long as it is there; the other form is an unsafe function"
)]
pub fn wait_on(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
