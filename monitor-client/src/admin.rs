//! The other end of the front doors: register, wait, ask.

mod registration;
mod target;

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{ControlMessage, MsgFlags, UnixAddr, recvmsg, send, sendmsg},
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::{
    error::{Error, Result},
    frontend::{
        admin_socket::{AdminRequest, AgentStatus, Answer, GroupRow},
        seqpacket::{connect, connect_within},
    },
};

pub use registration::{AsyncFollower, AsyncRegistration, Builder, Follower, Registration};
pub use target::{RemovalCheck, Target};

/// Where the agent listens unless told otherwise.
pub const SOCKET: &str = "/run/memcg-monitor/event_control.sock";
/// Where the operator's socket is unless told otherwise.
pub const CONTROL_SOCKET: &str = "/run/memcg-monitor/control.sock";

const LARGEST_ANSWER: usize = 256 * 1024;
/// The registration socket's: an errno, and one line that says why.
const LARGEST_LINE: usize = 4096;

/// Sends one line to the agent, as a v1 client would write it to
/// `cgroup.event_control`. With `descriptors` (`[event_fd, control_fd]`) the
/// line's numbers are ignored; without, they name this process's own.
///
/// # Errors
/// [`Error::Refused`] carries the kernel's errno.
pub fn register(socket: &Path, line: &[u8], descriptors: Option<[BorrowedFd<'_>; 2]>) -> Result<()> {
    let connection = connect(socket)?;
    send_with(&connection, line, &descriptors.map_or_else(Vec::new, |fds| fds.to_vec()))?;
    let answer = receive(&connection, LARGEST_LINE, MsgFlags::empty())
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

/// A connection to the operator's socket.
#[derive(Debug)]
pub struct AdminConnection(OwnedFd);

impl AdminConnection {
    /// Connects.
    ///
    /// # Errors
    /// Says which socket, and what to do.
    pub fn connect(socket: &Path) -> Result<Self> {
        connect(socket).map(Self)
    }

    /// Connects. Neither that nor any answer is waited for longer than `limit`: then the
    /// errno is `EAGAIN`.
    ///
    /// # Errors
    /// As [`Control::connect`].
    pub fn connect_within(socket: &Path, limit: Duration) -> Result<Self> {
        connect_within(socket, Some(limit)).map(Self)
    }

    /// Asks.
    ///
    /// # Errors
    /// `sendmsg` failed.
    pub fn ask(&self, request: &AdminRequest, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
        let bytes = serde_json::to_vec(request).map_err(|error| Error::Answer(error.to_string()))?;
        send_with(&self.0, &bytes, descriptors)
    }

    /// The next answer; `None` when the agent ended the connection.
    ///
    /// # Errors
    /// `recvmsg` failed, or the answer is not understood.
    pub fn next(&self) -> Result<Option<Answer>> {
        let bytes = receive(&self.0, LARGEST_ANSWER, MsgFlags::empty())
            .map_err(|errno| Error::syscall("recvmsg from the agent", errno))?;
        answer_of(&bytes)
    }

    /// Every group, and the agent's own state. All that was crossed before this call
    /// has been signalled when it returns.
    ///
    /// # Errors
    /// The agent ended, or answered something else.
    pub fn list(&self) -> Result<(Vec<GroupRow>, AgentStatus)> {
        self.ask(&AdminRequest::List, &[])?;
        let mut rows: Vec<GroupRow> = Vec::new();
        loop {
            match self.next()? {
                // A group with many registrations comes in parts.
                Some(Answer::Group(part)) => match rows.last_mut() {
                    Some(row) if row.id == part.id => row.registrations.extend(part.registrations),
                    _ => rows.push(part),
                },
                Some(Answer::Status(status)) => return Ok((rows, status)),
                Some(other) => return Err(Error::Answer(format!("{other:?}"))),
                None => return Err(Error::Host("the agent ended in the middle of the list".into())),
            }
        }
    }

    /// The agent's own state.
    ///
    /// # Errors
    /// The agent ended, or answered something else.
    pub fn status(&self) -> Result<AgentStatus> {
        self.ask(&AdminRequest::Status, &[])?;
        match self.next()? {
            Some(Answer::Status(status)) => Ok(status),
            Some(other) => Err(Error::Answer(format!("{other:?}"))),
            None => Err(Error::Host("the agent ended before it answered".into())),
        }
    }

    /// Makes [`Control::next`] fail with `EAGAIN` after this many milliseconds;
    /// 0: never.
    ///
    /// # Errors
    /// `setsockopt` failed.
    pub fn set_timeout(&self, milliseconds: i64) -> Result<()> {
        nix::sys::socket::setsockopt(
            &self.0,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(milliseconds),
        )
        .map_err(|errno| Error::syscall("setsockopt SO_RCVTIMEO", errno))
    }
}

fn send_with(connection: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<_> = descriptors.iter().map(BorrowedFd::as_raw_fd).collect();
    let sent = if raw.is_empty() {
        send(connection.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)
    } else {
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<UnixAddr>(
            connection.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
    };
    sent.map(drop).map_err(|errno| Error::syscall("sendmsg to the agent", errno))
}

/// One answer's bytes; none at all when the agent ended the connection.
fn receive(connection: &OwnedFd, largest: usize, flags: MsgFlags) -> nix::Result<Vec<u8>> {
    let mut bytes = vec![0; largest];
    let length = loop {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut slices, None, flags) {
            Ok(message) => break message.bytes,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    bytes.truncate(length);
    Ok(bytes)
}

/// What the operator's socket says.
fn answer_of(bytes: &[u8]) -> Result<Option<Answer>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    match serde_json::from_slice(bytes) {
        Ok(Answer::Error { errno, why }) => Err(Error::Refused { errno, message: why }),
        Ok(answer) => Ok(Some(answer)),
        Err(_) => Err(Error::Answer(String::from_utf8_lossy(bytes).into_owned())),
    }
}
