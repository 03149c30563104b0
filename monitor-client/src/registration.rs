//! A registration as a value: waited on by a thread or with tokio, ended when dropped.

use std::os::fd::{AsFd, BorrowedFd};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::EventFd,
};

use crate::{
    error::{Error, Result},
    target::RemovalCheck,
};

/// A registration with an eventfd of its own; dropping it ends it.
///
/// An agent whose registrations are kept neither by a supervisor (`--supervised`) nor by
/// systemd's descriptor store takes them along when it ends. One that is stopped (SIGTERM) signals
/// each eventfd once before that; one that is killed does not. A [`Follower`](crate::Follower)
/// notices the end of any agent.
#[derive(Debug)]
pub struct Registration {
    event: EventFd,
    mark: RemovalCheck,
}

impl Registration {
    pub(crate) const fn new(event: EventFd, mark: RemovalCheck) -> Self {
        Self { event, mark }
    }

    /// Waits for signals, and returns their number since the last call; `None`
    /// once the group is gone.
    ///
    /// # Errors
    /// [`Error::Syscall`] for `poll` or `read`, [`Error::File`] if the group cannot be looked at.
    pub fn wait(&self) -> Result<Option<u64>> {
        loop {
            if let Some(signals) = self.take()? {
                return Ok(self.mark.is_there()?.then_some(signals));
            }
            if !self.mark.is_there()? {
                return Ok(None);
            }
            match poll(&mut [PollFd::new(self.event.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::syscall("poll of the eventfd", errno)),
            }
        }
    }

    /// Reads the signals since the last call, without waiting.
    fn take(&self) -> Result<Option<u64>> {
        match self.event.read() {
            Ok(signals) => Ok(Some(signals)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(Error::syscall("read of the eventfd", errno)),
        }
    }

    /// Makes it a registration to wait on with tokio (feature `tokio`).
    ///
    /// # Errors
    /// [`Error::Syscall`] if the runtime has no room for its descriptor.
    ///
    /// # Panics
    /// Outside a runtime with I/O.
    #[cfg(feature = "tokio")]
    pub fn into_async(self) -> Result<AsyncRegistration> {
        AsyncRegistration::new(self.event, self.mark)
    }
}

/// Gives the eventfd, to poll it along with others: while it is readable,
/// [`Registration::wait`] does not block.
impl AsFd for Registration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(feature = "tokio")]
mod with_tokio;

#[cfg(feature = "tokio")]
pub use with_tokio::AsyncRegistration;

#[cfg(test)]
mod tests;
