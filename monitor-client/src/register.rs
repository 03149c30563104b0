//! One registration line at the registration socket.

use std::{os::fd::BorrowedFd, path::Path};

use crate::{
    error::{Error, Result},
    seqpacket::{connect, receive, send_with},
};

/// Longest answer of the registration socket, in bytes: an errno, and one line that says why.
const LARGEST_LINE: usize = 4096;

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
/// cannot be reached.
pub fn register(socket: &Path, line: &[u8], descriptors: Option<[BorrowedFd<'_>; 2]>) -> Result<()> {
    let connection = connect(socket)?;
    send_with(&connection, line, &descriptors.map_or_else(Vec::new, |fds| fds.to_vec()))?;
    let answer = receive(&connection, LARGEST_LINE)
        .map_err(|errno| Error::syscall("recvmsg from the agent", errno))?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    if text == "0" {
        return Ok(());
    }
    let (number, message) = text.split_once(' ').unwrap_or((&text, ""));
    match number.parse::<i32>() {
        Ok(errno) if errno < 0 => Err(Error::Refused { errno: -errno, message: message.to_owned() }),
        _ => Err(Error::Answer(text)),
    }
}
