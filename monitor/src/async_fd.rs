//! Descriptors that the event loop waits on.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use tokio::io::unix::AsyncFd;

/// Registers `inner` with the event loop. `AsFd` vouches that it owns an open
/// descriptor.
///
/// # Errors
/// `epoll_ctl` failed.
pub fn wait_on<T: AsFd + AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: our types (an owned descriptor, the ring buffer, the log) return
    // the same descriptor each time and keep it open until they are dropped.
    unsafe { AsyncFd::register(inner) }.map_err(Into::into)
}
