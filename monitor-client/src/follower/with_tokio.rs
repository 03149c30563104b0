//! A follower to wait on with tokio.

use std::{io, os::unix::net};

use tokio::{io::Interest, net::UnixDatagram};

use super::Progress;
use crate::{
    admin::{AdminConnection, LARGEST_ANSWER, answer_of},
    error::{Error, Result},
    seqpacket::receive,
    wire::EventRow,
};

/// A [`Follower`](super::Follower) to wait on with tokio (feature `tokio`); dropping it ends it.
///
/// ```no_run
/// # async fn example() -> Result<(), monitor_client::Error> {
/// use monitor_client::Builder;
///
/// let follower = Builder::new("/sys/fs/cgroup/a/memory.oom_control").follow()?;
/// let mut follower = follower.into_async()?;
/// while let Some(event) = follower.wait_event().await? {
///     println!("{} by the limit of {:?}", event.event, event.origin);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncFollower {
    /// The connection, `SOCK_SEQPACKET` behind a type that keeps packets apart, too.
    connection: UnixDatagram,
    progress: Progress,
}

impl AsyncFollower {
    pub(super) fn new(connection: AdminConnection, progress: Progress) -> Result<Self> {
        let connection = net::UnixDatagram::from(connection.into_fd());
        connection.set_nonblocking(true).map_err(|error| Error::io("ioctl FIONBIO", &error))?;
        let connection =
            UnixDatagram::from_std(connection).map_err(|error| Error::io("epoll_ctl", &error))?;
        Ok(Self { connection, progress })
    }

    /// Waits for the next event, as [`Follower::wait_event`](super::Follower::wait_event) does.
    /// A future that is dropped before it is ready loses no event.
    ///
    /// # Errors
    /// [`Error::Ended`] when the agent ended, [`Error::Syscall`] when the connection failed.
    pub async fn wait_event(&mut self) -> Result<Option<EventRow>> {
        if self.progress.removed {
            return Ok(None);
        }
        let read = || receive(&self.connection, LARGEST_ANSWER).map_err(io::Error::from);
        let bytes = self.connection.async_io(Interest::READABLE, read).await;
        let bytes = bytes.map_err(|error| Error::io("recvmsg from the agent", &error))?;
        self.progress.advance(answer_of(&bytes)?).map(Some)
    }
}
