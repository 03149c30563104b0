//! The client's side of a unix `SOCK_SEQPACKET` socket: connect, send a packet with
//! descriptors, receive one.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send, sendmsg,
            setsockopt, socket,
            sockopt::{ReceiveTimeout, SendTimeout},
        },
        time::TimeVal,
    },
};

use crate::error::{Error, Result};

/// Connects to a unix `SOCK_SEQPACKET` socket such as [`SOCKET`](crate::SOCKET), blocking.
///
/// # Errors
/// [`Error::Syscall`] names the call and the socket; for `ENOENT`, `ECONNREFUSED` and `EACCES`
/// also what to do.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    connect_within(path, None)
}

/// Connects like [`connect`]. With a `limit`, neither connecting nor any later call on the
/// connection waits longer than that: then the errno is `EAGAIN` ([`Error::is_timeout`]).
///
/// # Errors
/// [`Error::Syscall`], as for [`connect`].
pub fn connect_within(path: &Path, limit: Option<Duration>) -> Result<OwnedFd> {
    let failed = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| failed("socket", errno))?;
    if let Some(limit) = limit {
        let limit = time_limit(limit);
        setsockopt(&fd, SendTimeout, &limit)
            .and_then(|()| setsockopt(&fd, ReceiveTimeout, &limit))
            .map_err(|errno| failed("setsockopt SO_SNDTIMEO", errno))?;
    }
    let address = UnixAddr::new(path).map_err(|errno| failed("sockaddr_un", errno))?;
    nix::sys::socket::connect(fd.as_raw_fd(), &address).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => {
            Error::syscall(format!("connect {} (is `memcg-monitor agent` running?)", path.display()), errno)
        }
        Errno::EACCES => Error::syscall(
            format!("connect {} (see the agent's --socket-group, --control-group)", path.display()),
            errno,
        ),
        _ => failed("connect", errno),
    })?;
    Ok(fd)
}

/// Bounds each later `recvmsg` of a connection; `None` removes the bound.
pub(crate) fn set_receive_limit(connection: &OwnedFd, limit: Option<Duration>) -> Result<()> {
    let limit = limit.map_or(TimeVal::new(0, 0), time_limit);
    setsockopt(connection, ReceiveTimeout, &limit)
        .map_err(|errno| Error::syscall("setsockopt SO_RCVTIMEO", errno))
}

/// A limit as the socket options take it, at least a microsecond: zero would mean no limit.
fn time_limit(limit: Duration) -> TimeVal {
    let seconds = limit.as_secs().try_into().unwrap_or(i64::MAX);
    let microseconds = limit.subsec_micros();
    let is_zero = seconds == 0 && microseconds == 0;
    TimeVal::new(seconds, if is_zero { 1 } else { microseconds.into() })
}

/// Sends one packet, with descriptors if there are any.
pub(crate) fn send_with(connection: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<()> {
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

/// Receives one packet of at most `largest` bytes; it is empty when the agent ended the
/// connection.
pub(crate) fn receive(connection: &impl AsRawFd, largest: usize) -> nix::Result<Vec<u8>> {
    // Its length first: room for the largest costs more than most packets do.
    let length = receive_into(connection, &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC)?;
    let mut bytes = vec![0; length.min(largest)];
    let length = receive_into(connection, &mut bytes, MsgFlags::empty())?;
    bytes.truncate(length);
    Ok(bytes)
}

fn receive_into(connection: &impl AsRawFd, bytes: &mut [u8], flags: MsgFlags) -> nix::Result<usize> {
    loop {
        let mut slices = [IoSliceMut::new(bytes)];
        match recvmsg::<UnixAddr>(connection.as_raw_fd(), &mut slices, None, flags) {
            Ok(message) => return Ok(message.bytes),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_zero_and_never_overflows() {
        assert_eq!(time_limit(Duration::ZERO), TimeVal::new(0, 1));
        assert_eq!(time_limit(Duration::from_nanos(1)), TimeVal::new(0, 1));
        assert_eq!(time_limit(Duration::from_millis(2500)), TimeVal::new(2, 500_000));
        assert_eq!(time_limit(Duration::MAX), TimeVal::new(i64::MAX, 999_999));
    }

    #[test]
    fn an_agent_that_is_not_there_is_named_with_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = connect(&directory.path().join("socket")).expect_err("no agent");
        assert_eq!(error.errno(), Some(Errno::ENOENT as i32));
        assert!(error.to_string().contains("is `memcg-monitor agent` running?"), "{error}");
    }

    #[test]
    fn a_limit_ends_a_wait_for_an_answer() {
        use nix::sys::socket::{Backlog, bind, listen};

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).expect("an address")).expect("bind");
        listen(&listener, Backlog::MAXCONN).expect("listen");
        let silent = connect_within(&path, Some(Duration::from_millis(1))).expect("a listener");
        assert_eq!(receive(&silent, 16), Err(Errno::EAGAIN));
    }
}
