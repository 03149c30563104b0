//! A registration to wait on with tokio.

use std::io;

use nix::sys::eventfd::EventFd;
use tokio::net::unix::pipe;

use crate::{
    error::{Error, Result},
    target::RemovalCheck,
};

/// A [`Registration`](super::Registration) to wait on with tokio (feature `tokio`); dropping it
/// ends it.
///
/// ```no_run
/// # async fn example() -> Result<(), monitor_client::Error> {
/// use monitor_client::Builder;
///
/// let registration = Builder::new("/sys/fs/cgroup/a/memory.current").args("512M").register()?;
/// let registration = registration.into_async()?;
/// while let Some(signals) = registration.wait().await? {
///     println!("crossed {signals} times");
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncRegistration {
    /// The eventfd. tokio has no type for one; a pipe's end is registered for reading and read
    /// by the same calls, and is not checked to be a pipe.
    event: pipe::Receiver,
    mark: RemovalCheck,
}

impl AsyncRegistration {
    pub(super) fn new(event: EventFd, mark: RemovalCheck) -> Result<Self> {
        let event = pipe::Receiver::from_owned_fd_unchecked(event.into())
            .map_err(|error| Error::io("epoll_ctl", &error))?;
        Ok(Self { event, mark })
    }

    /// Waits for signals, as [`Registration::wait`](super::Registration::wait) does. A future
    /// that is dropped before it is ready loses no signal.
    ///
    /// # Errors
    /// [`Error::Syscall`] for `read`, [`Error::File`] if the group cannot be looked at.
    pub async fn wait(&self) -> Result<Option<u64>> {
        if !self.mark.is_there()? {
            return Ok(None);
        }
        let signals = self.take().await.map_err(|error| Error::io("read of the eventfd", &error))?;
        Ok(self.mark.is_there()?.then_some(signals))
    }

    async fn take(&self) -> io::Result<u64> {
        loop {
            self.event.readable().await?;
            let mut signals = [0; 8];
            match self.event.try_read(&mut signals) {
                Ok(_) => return Ok(u64::from_ne_bytes(signals)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
