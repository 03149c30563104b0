//! One registration line at the registration socket.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use crate::{
    error::{Error, Result},
    seqpacket::{connect, connect_within, receive, send_with},
};

/// Longest answer of the registration socket, in bytes: an errno, and one line that says why.
const LARGEST_LINE: usize = 4096;

/// A connection to the registration socket, for any number of lines.
///
/// It is readable, and hung up, once the agent has ended: the way to see that beside an eventfd,
/// which does not report it. The agent admits 256 connections of a user at once, and ends further
/// ones unanswered; a process with `CAP_SYS_RESOURCE` may have any number.
///
/// ```no_run
/// use std::os::fd::AsFd as _;
///
/// use monitor_client::{RegistrationConnection, Target};
///
/// let connection = RegistrationConnection::connect(monitor_client::SOCKET.as_ref())?;
/// let target = Target::open("/sys/fs/cgroup/a/memory.current".as_ref())?;
/// # let eventfd = std::fs::File::open("/dev/null").unwrap();
/// connection.register(b"0 0 512M", Some([eventfd.as_fd(), target.as_fd()]))?;
/// # Ok::<_, monitor_client::Error>(())
/// ```
#[derive(Debug)]
pub struct RegistrationConnection {
    connection: OwnedFd,
}

impl RegistrationConnection {
    /// Connects to the registration socket, such as [`SOCKET`](crate::SOCKET).
    ///
    /// # Errors
    /// [`Error::Syscall`] says why the agent cannot be reached.
    pub fn connect(socket: &Path) -> Result<Self> {
        Ok(Self { connection: connect(socket)? })
    }

    /// Connects with a limit: neither connecting nor any later line or answer takes longer than
    /// `limit`, rounded down to microseconds, at least one.
    ///
    /// # Errors
    /// [`Error::Syscall`], as for [`RegistrationConnection::connect`]; [`Error::is_timeout`] when the
    /// limit is over.
    pub fn connect_within(socket: &Path, limit: Duration) -> Result<Self> {
        Ok(Self { connection: connect_within(socket, Some(limit))? })
    }

    /// Sends one line, and waits until the agent has registered it, like [`register`].
    ///
    /// # Errors
    /// [`Error::Refused`] carries the errno of a refusal; [`Error::Ended`] if the agent ended the
    /// connection without an answer.
    pub fn register(&self, line: &[u8], descriptors: Option<[BorrowedFd<'_>; 2]>) -> Result<()> {
        send_with(&self.connection, line, &descriptors.map_or_else(Vec::new, |fds| fds.to_vec()))?;
        let answer = receive(&self.connection, LARGEST_LINE)
            .map_err(|errno| Error::syscall("recvmsg from the agent", errno))?;
        outcome(&answer)
    }
}

/// Gives the connection, to poll it: it is readable once the agent has ended.
impl AsFd for RegistrationConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// Reads the agent's answer to a line; an empty one is the end of the connection.
pub(crate) fn outcome(answer: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(answer).into_owned();
    match text.as_str() {
        "0" => return Ok(()),
        "" => return Err(Error::unanswered()),
        _ => {}
    }
    let (number, message) = text.split_once(' ').unwrap_or((&text, ""));
    // The least number has no positive one.
    match number.parse::<i32>().ok().and_then(i32::checked_neg) {
        Some(errno) if errno > 0 => Err(Error::Refused { errno, message: message.to_owned() }),
        _ => Err(Error::Answer(text)),
    }
}

/// Sends one line to the agent, as a v1 client would write it to
/// `cgroup.event_control`, and waits until it has registered. With `descriptors` (an eventfd,
/// and a control file or directory) the line's two numbers are ignored; without, they name this
/// process's own.
///
/// ```no_run
/// use std::{fs::File, os::fd::AsRawFd};
///
/// let control = File::open("/sys/fs/cgroup/a/memory.current")?;
/// # let event_fd = 0;
/// let line = format!("{event_fd} {} 512M", control.as_raw_fd());
/// monitor_client::register(monitor_client::SOCKET.as_ref(), line.as_bytes(), None)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Refused`] carries the errno of a refusal; [`Error::Syscall`] says why the agent
/// cannot be reached; [`Error::Ended`] if it ended the connection without an answer.
pub fn register(socket: &Path, line: &[u8], descriptors: Option<[BorrowedFd<'_>; 2]>) -> Result<()> {
    RegistrationConnection::connect(socket)?.register(line, descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        assert!(outcome(b"0").is_ok());
        let refused = outcome(b"-22 EINVAL: no such thing").expect_err("a refusal");
        assert_eq!((refused.errno(), refused.to_string().as_str()), (Some(22), "EINVAL: no such thing"));
        assert!(matches!(outcome(b""), Err(Error::Ended(_))));
        for unknown in ["1 x", "-0", "-2147483648 x", "-2147483649 x"] {
            assert!(matches!(outcome(unknown.as_bytes()), Err(Error::Answer(_))), "{unknown}");
        }
    }
}
