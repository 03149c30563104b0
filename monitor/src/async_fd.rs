//! Descriptors that the event loop waits on.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::eventfd::EventFd;
use tokio::io::unix::AsyncFd;

/// Types that own one descriptor and stand for that one as long as they are there. No other
/// crate can add to them.
pub trait OwnsDescriptor: AsRawFd + private::Listed {}

mod private {
    /// Keeps the list of types in this file.
    pub trait Listed {}
}

impl private::Listed for OwnedFd {}
impl OwnsDescriptor for OwnedFd {}

impl private::Listed for EventFd {}
impl OwnsDescriptor for EventFd {}

/// Registers a descriptor with the event loop, which has it until the value is dropped.
///
/// # Errors
/// `epoll_ctl` failed: `ENOSPC` where `fs.epoll.max_user_watches` is used up, `EPERM` for a
/// file that cannot be waited for, `EEXIST` for one that is registered already.
///
/// # Panics
/// Outside a runtime with I/O.
#[expect(deprecated, reason = "its contract holds for the types above; the other form is an unsafe function")]
pub fn wait_on<T: OwnsDescriptor>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::new(inner)
}
