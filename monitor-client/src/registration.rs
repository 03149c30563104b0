//! A registration as a value: made in one call, waited on with a thread or with
//! tokio, ended when dropped.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        socket::MsgFlags,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    AdminConnection, CONTROL_SOCKET, LARGEST_ANSWER, RemovalCheck, SOCKET, Target, answer_of, receive,
    register,
};
use crate::{
    async_fd::wait_on,
    error::{Error, Result},
    frontend::admin_socket::{AdminRequest, Answer, EventRow},
};

/// What to register: a control file, and what a v1 client would write behind it.
///
/// ```no_run
/// use memcg_monitor::client::Builder;
///
/// let registration = Builder::new("/sys/fs/cgroup/a/memory.current").args("512M").register()?;
/// while let Some(signals) = registration.wait()? {
///     println!("crossed {signals} times since the last look");
/// }
/// println!("the group is gone");
/// # Ok::<_, memcg_monitor::Error>(())
/// ```
///
/// With the cause of each signal:
///
/// ```no_run
/// # use memcg_monitor::client::Builder;
/// let mut follower = Builder::new("/sys/fs/cgroup/a/memory.current").args("512M").follow()?;
/// while let Some(event) = follower.wait_event()? {
///     println!("{} {:?} at {:?} bytes", event.event, event.direction, event.usage);
/// }
/// # Ok::<_, memcg_monitor::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    control_file: PathBuf,
    args: String,
    socket: PathBuf,
    control_socket: PathBuf,
}

impl Builder {
    /// For a control file of a group. v1's names are good under a v2 directory,
    /// too, which has no such files.
    pub fn new(control_file: impl Into<PathBuf>) -> Self {
        Self {
            control_file: control_file.into(),
            args: String::new(),
            socket: SOCKET.into(),
            control_socket: CONTROL_SOCKET.into(),
        }
    }

    /// What follows the two numbers in the line: a threshold such as `512M`.
    #[must_use]
    pub fn args(mut self, args: impl Into<String>) -> Self {
        self.args = args.into();
        self
    }

    /// Another registration socket than [`SOCKET`].
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = path.into();
        self
    }

    /// Another operator's socket than [`CONTROL_SOCKET`].
    #[must_use]
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.control_socket = path.into();
        self
    }

    /// Registers.
    ///
    /// # Errors
    /// The control file cannot be opened, the agent cannot be reached, or
    /// [`Error::Refused`] with the kernel's errno.
    pub fn register(&self) -> Result<Registration> {
        let (line, event, control) = self.prepare()?;
        register(&self.socket, line.as_bytes(), Some([event.as_fd(), control.as_fd()]))?;
        Ok(Registration { event, mark: control.into_mark() })
    }

    /// Registers with the operator's socket, which tells the cause of each
    /// signal; it is root's alone unless the agent was told otherwise.
    ///
    /// # Errors
    /// As [`Builder::register`].
    pub fn follow(&self) -> Result<Follower> {
        let (line, event, control) = self.prepare()?;
        let connection = AdminConnection::connect(&self.control_socket)?;
        connection.ask(&AdminRequest::Listen(line), &[event.as_fd(), control.as_fd()])?;
        match connection.next()? {
            Some(Answer::Listening) => {
                Ok(Follower { connection, progress: Progress { _event: event, removed: false } })
            }
            Some(other) => Err(Error::Answer(format!("{other:?}"))),
            None => Err(ended()),
        }
    }

    fn prepare(&self) -> Result<(String, EventFd, Target)> {
        let control = Target::open(&self.control_file)?;
        // The waits block by themselves.
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::syscall("eventfd2", errno))?;
        let (args, fd) = (control.args(&self.args), control.as_fd().as_raw_fd());
        Ok((format!("{} {fd} {args}", event.as_raw_fd()), event, control))
    }
}

/// A registration; dropping it ends it.
///
/// An agent whose registrations nobody keeps (no `--supervised`, no descriptor store) takes
/// it along when it ends. Nothing signals that; a [`Follower`] notices the end of any agent.
#[derive(Debug)]
pub struct Registration {
    event: EventFd,
    mark: RemovalCheck,
}

impl Registration {
    /// Waits for signals, and says how many came since the last call; `None`
    /// once the group is gone.
    ///
    /// # Errors
    /// `poll` or `read` failed.
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

    /// The signals since the last call, without waiting.
    fn take(&self) -> Result<Option<u64>> {
        match self.event.read() {
            Ok(signals) => Ok(Some(signals)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(Error::syscall("read of the eventfd", errno)),
        }
    }

    /// The same, to wait on with tokio.
    ///
    /// # Errors
    /// The runtime has no room for its descriptor.
    ///
    /// # Panics
    /// Outside a runtime with I/O.
    pub fn into_async(self) -> Result<AsyncRegistration> {
        let event = wait_on(self.event).map_err(|error| syscall("epoll_ctl", &error))?;
        Ok(AsyncRegistration { event, mark: self.mark })
    }
}

/// To poll it along with others; then [`Registration::wait`] does not block.
impl AsFd for Registration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// A [`Registration`] to wait on with tokio.
///
/// ```no_run
/// # async fn example() -> Result<(), memcg_monitor::Error> {
/// use memcg_monitor::client::Builder;
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
    event: AsyncFd<EventFd>,
    mark: RemovalCheck,
}

impl AsyncRegistration {
    /// As [`Registration::wait`]. Dropped halfway it loses no signal.
    ///
    /// # Errors
    /// `read` failed.
    pub async fn wait(&self) -> Result<Option<u64>> {
        if !self.mark.is_there()? {
            return Ok(None);
        }
        let read = |event: &EventFd| event.read().map_err(io::Error::from);
        let signals = self.event.async_io(Interest::READABLE, read).await;
        let signals = signals.map_err(|error| syscall("read of the eventfd", &error))?;
        Ok(self.mark.is_there()?.then_some(signals))
    }
}

/// A registration that is told the cause of each signal; dropping it ends it.
#[derive(Debug)]
pub struct Follower {
    connection: AdminConnection,
    progress: Progress,
}

impl Follower {
    /// Waits for the next event; `None` after `removed`, which is the last.
    ///
    /// # Errors
    /// The agent ended, or the connection failed.
    pub fn wait_event(&mut self) -> Result<Option<EventRow>> {
        if self.progress.removed {
            return Ok(None);
        }
        self.progress.advance(self.connection.next()?).map(Some)
    }

    /// The same, to wait on with tokio.
    ///
    /// # Errors
    /// The runtime has no room for its descriptor.
    ///
    /// # Panics
    /// Outside a runtime with I/O.
    pub fn into_async(self) -> Result<AsyncFollower> {
        let connection = wait_on(self.connection.0).map_err(|error| syscall("epoll_ctl", &error))?;
        Ok(AsyncFollower { connection, progress: self.progress })
    }
}

/// A [`Follower`] to wait on with tokio.
#[derive(Debug)]
pub struct AsyncFollower {
    connection: AsyncFd<OwnedFd>,
    progress: Progress,
}

impl AsyncFollower {
    /// As [`Follower::wait_event`]. Dropped halfway it loses no event.
    ///
    /// # Errors
    /// As there.
    pub async fn wait_event(&mut self) -> Result<Option<EventRow>> {
        if self.progress.removed {
            return Ok(None);
        }
        let read =
            |fd: &OwnedFd| receive(fd, LARGEST_ANSWER, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from);
        let bytes = self.connection.async_io(Interest::READABLE, read).await;
        let bytes = bytes.map_err(|error| syscall("recvmsg from the agent", &error))?;
        self.progress.advance(answer_of(&bytes)?).map(Some)
    }
}

/// What a follower has of its registration.
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
            None => Err(ended()),
        }
    }
}

fn ended() -> Error {
    Error::Host("the agent ended; register again once it is back".to_owned())
}

fn syscall(call: &str, error: &io::Error) -> Error {
    Error::syscall(call, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
}

#[cfg(test)]
mod tests;
