//! A registration that reports the cause of each signal, ended when dropped.

use nix::sys::eventfd::EventFd;

use crate::{
    admin::AdminConnection,
    error::{Error, Result},
    wire::{Answer, EventRow},
};

/// A registration that reports the cause of each signal; dropping it ends it.
///
/// It ends with the agent's connection, too: then [`Follower::wait_event`] fails with
/// [`Error::Ended`], and the program registers again.
#[derive(Debug)]
pub struct Follower {
    connection: AdminConnection,
    progress: Progress,
}

impl Follower {
    pub(crate) const fn new(connection: AdminConnection, event: EventFd) -> Self {
        Self { connection, progress: Progress { _event: event, removed: false } }
    }

    /// Waits for the next event; `None` after `removed`, which is the last.
    ///
    /// # Errors
    /// [`Error::Ended`] when the agent ended, [`Error::Syscall`] when the connection failed.
    pub fn wait_event(&mut self) -> Result<Option<EventRow>> {
        if self.progress.removed {
            return Ok(None);
        }
        self.progress.advance(self.connection.next()?).map(Some)
    }

    /// Makes it a follower to wait on with tokio (feature `tokio`).
    ///
    /// # Errors
    /// [`Error::Syscall`] if the runtime has no room for its descriptor.
    ///
    /// # Panics
    /// Outside a runtime with I/O.
    #[cfg(feature = "tokio")]
    pub fn into_async(self) -> Result<AsyncFollower> {
        AsyncFollower::new(self.connection, self.progress)
    }
}

/// The state of a follower's registration.
#[derive(Debug)]
struct Progress {
    /// The registration lives as long as this.
    _event: EventFd,
    removed: bool,
}

impl Progress {
    fn advance(&mut self, answer: Option<Answer>) -> Result<EventRow> {
        match answer {
            Some(Answer::Event(event)) => {
                self.removed = event.event == "removed";
                Ok(event)
            }
            Some(other) => Err(Error::Answer(format!("{other:?}"))),
            None => Err(Error::agent_ended()),
        }
    }
}

#[cfg(feature = "tokio")]
mod with_tokio;

#[cfg(feature = "tokio")]
pub use with_tokio::AsyncFollower;
