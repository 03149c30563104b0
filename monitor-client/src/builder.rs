//! A builder that registers in one call.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::PathBuf,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{
    CONTROL_SOCKET, SOCKET,
    admin::AdminConnection,
    error::{Error, Result},
    follower::Follower,
    register::register,
    registration::Registration,
    target::Target,
    wire::{AdminRequest, Answer},
};

/// A control file to register on, and the arguments that a v1 client would write behind it.
///
/// A builder can register any number of times; each registration has an eventfd of its own.
///
/// ```no_run
/// use monitor_client::Builder;
///
/// let registration = Builder::new("/sys/fs/cgroup/a/memory.current").args("512M").register()?;
/// while let Some(signals) = registration.wait()? {
///     println!("crossed {signals} times since the last look");
/// }
/// println!("the group is gone");
/// # Ok::<_, monitor_client::Error>(())
/// ```
///
/// With the cause of each signal:
///
/// ```no_run
/// # use monitor_client::Builder;
/// let mut follower = Builder::new("/sys/fs/cgroup/a/memory.current").args("512M").follow()?;
/// while let Some(event) = follower.wait_event()? {
///     println!("{} {:?} at {:?} bytes", event.event, event.direction, event.usage);
/// }
/// # Ok::<_, monitor_client::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    control_file: PathBuf,
    args: String,
    socket: PathBuf,
    control_socket: PathBuf,
}

impl Builder {
    /// Names a control file of a group, such as `/sys/fs/cgroup/a/memory.current`. v1's names
    /// are good under a v2 directory, too, which has no such files ([`Target::open`]).
    pub fn new(control_file: impl Into<PathBuf>) -> Self {
        Self {
            control_file: control_file.into(),
            args: String::new(),
            socket: SOCKET.into(),
            control_socket: CONTROL_SOCKET.into(),
        }
    }

    /// Sets the text that follows the two numbers in the line: a threshold such as `512M` or
    /// `80%,up`, a level of pressure such as `low,hierarchy`; empty without this call.
    #[must_use]
    pub fn args(mut self, args: impl Into<String>) -> Self {
        self.args = args.into();
        self
    }

    /// Sets another registration socket than [`SOCKET`], for [`Builder::register`].
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = path.into();
        self
    }

    /// Sets another admin socket than [`CONTROL_SOCKET`], for [`Builder::follow`].
    #[must_use]
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.control_socket = path.into();
        self
    }

    /// Registers at the registration socket, and waits until the agent has done so.
    ///
    /// # Errors
    /// [`Error::File`] if the control file cannot be opened, [`Error::Syscall`] if the agent
    /// cannot be reached, [`Error::Refused`] with the errno if it refuses.
    pub fn register(&self) -> Result<Registration> {
        let (line, event, control) = self.prepare()?;
        register(&self.socket, line.as_bytes(), Some([event.as_fd(), control.as_fd()]))?;
        Ok(Registration::new(event, control.into_mark()))
    }

    /// Registers at the admin socket, which reports the cause of each signal; it is root's
    /// alone unless the agent's options admit others.
    ///
    /// # Errors
    /// The errors of [`Builder::register`], and [`Error::Ended`] if the agent ends meanwhile.
    pub fn follow(&self) -> Result<Follower> {
        let (line, event, control) = self.prepare()?;
        let connection = AdminConnection::connect(&self.control_socket)?;
        connection.send(&AdminRequest::Listen(line), &[event.as_fd(), control.as_fd()])?;
        match connection.next()? {
            Some(Answer::Listening) => Ok(Follower::new(connection, event)),
            Some(other) => Err(Error::Answer(format!("{other:?}"))),
            None => Err(Error::unanswered()),
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
