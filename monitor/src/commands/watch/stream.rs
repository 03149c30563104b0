//! The connection of `watch` to the agent.

use std::{
    io,
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use monitor_client::{
    AdminConnection, Error,
    wire::{AdminRequest, Answer, WatchRequest},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::commands::connect;

/// Time between two attempts to reach an agent that has ended.
const RETRY: Duration = Duration::from_millis(200);

/// The next thing that a watch has to handle.
pub enum News {
    Answer(Box<Answer>),
    AgentEnded,
    /// Nobody reads the output any more.
    ReaderGone,
    TimedOut,
}

/// A watch that an agent serves.
pub struct Stream {
    connection: AdminConnection,
    /// The registrations live as long as this.
    _eventfd: EventFd,
}

impl Stream {
    /// Begins a watch; the first agent has to be there.
    pub fn begin(socket: &Path, request: &WatchRequest, deadline: Option<Instant>) -> Result<Self> {
        let made = Self::made(eventfd()?, socket, request, deadline);
        made.map_err(|error| connect::explained(error, "--control-socket"))
    }

    /// Waits for the next agent, and begins there; `None` at the deadline.
    pub fn begin_again(
        socket: &Path,
        request: &WatchRequest,
        deadline: Option<Instant>,
    ) -> Result<Option<Self>> {
        loop {
            match Self::made(eventfd()?, socket, request, deadline) {
                Ok(stream) => return Ok(Some(stream)),
                // It is not there yet, or is about to end.
                Err(Error::Syscall { .. } | Error::Ended(_)) => {}
                Err(error) => return Err(connect::explained(error, "--control-socket")),
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            thread::sleep(RETRY);
        }
    }

    fn made(
        eventfd: EventFd,
        socket: &Path,
        request: &WatchRequest,
        deadline: Option<Instant>,
    ) -> Result<Self, Error> {
        let limit = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let connection = connect::admin(socket, limit)?;
        connection.set_timeout(None)?;
        connection.send(&AdminRequest::Watch(request.clone()), &[eventfd.as_fd()])?;
        Ok(Self { connection, _eventfd: eventfd })
    }

    /// Waits for what is next.
    pub fn next(&self, deadline: Option<Instant>) -> Result<News> {
        loop {
            let stdout = io::stdout();
            let mut watched = [
                PollFd::new(self.connection.as_fd(), PollFlags::POLLIN),
                // The end of its reader is reported anyhow.
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let limit = left.map_or(PollTimeout::NONE, |left| {
                // Rounded up, so as not to wake just before the deadline.
                PollTimeout::try_from((left + Duration::from_micros(999)).as_millis())
                    .unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut watched, limit) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(News::TimedOut),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => bail!("poll: {errno}"),
            }
            if watched[1].any().unwrap_or(false) {
                return Ok(News::ReaderGone);
            }
            return match self.connection.next() {
                Ok(Some(answer)) => Ok(News::Answer(Box::new(answer))),
                Ok(None) | Err(Error::Syscall { .. }) => Ok(News::AgentEnded),
                Err(error) => Err(connect::explained(error, "--control-socket")),
            };
        }
    }
}

fn eventfd() -> Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("eventfd2 failed")
}
