//! The client's side of a unix `SOCK_SEQPACKET` socket: connect, send a packet with
//! descriptors, receive one.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, getsockopt, recvmsg,
            sendmsg, setsockopt, socket,
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
        set_send_limit(&fd, limit)
            .and_then(|()| setsockopt(&fd, ReceiveTimeout, &time_limit(limit)))
            .map_err(|errno| failed("setsockopt SO_SNDTIMEO", errno))?;
    }
    let address = UnixAddr::new(path).map_err(|errno| failed("sockaddr_un", errno))?;
    connect_in_spite_of_signals(&fd, &address, limit).map_err(|errno| match errno {
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

/// Connects within the limit, which bounds the socket's calls already. With one, SIGSTOP and SIGCONT
/// interrupt the call; without, only a signal that has a handler does.
fn connect_in_spite_of_signals(fd: &OwnedFd, address: &UnixAddr, limit: Option<Duration>) -> nix::Result<()> {
    let start = Instant::now();
    let outcome = loop {
        match nix::sys::socket::connect(fd.as_raw_fd(), address) {
            // To be called again: unix_stream_connect has given up, and nothing goes on as it would with TCP.
            // poll would find the socket writable, and no error.
            Err(Errno::EINTR) => {}
            outcome => break outcome,
        }
        match limit.map(|limit| limit.saturating_sub(start.elapsed())) {
            Some(Duration::ZERO) => break Err(Errno::EAGAIN),
            Some(left) => set_send_limit(fd, left)?,
            None => {}
        }
    };
    // It is shorter after an interruption.
    let restored = limit.map_or(Ok(()), |limit| set_send_limit(fd, limit));
    outcome.and(restored)
}

/// Bounds each later `connect` and `sendmsg` of a socket.
fn set_send_limit(socket: &OwnedFd, limit: Duration) -> nix::Result<()> {
    setsockopt(socket, SendTimeout, &time_limit(limit))
}

/// Bounds each later `recvmsg` of a connection; `None` removes the bound.
pub(crate) fn set_receive_limit(connection: &OwnedFd, limit: Option<Duration>) -> Result<()> {
    let limit = limit.map_or(TimeVal::new(0, 0), time_limit);
    setsockopt(connection, ReceiveTimeout, &limit)
        .map_err(|errno| Error::syscall("setsockopt SO_RCVTIMEO", errno))
}

/// The time that begins now and ends with the bound of a connection's `recvmsg`; `None` without one.
pub(crate) fn receive_deadline(connection: &OwnedFd) -> Result<Option<Instant>> {
    let limit = getsockopt(connection, ReceiveTimeout)
        .map_err(|errno| Error::syscall("getsockopt SO_RCVTIMEO", errno))?;
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    let limit = Duration::from_secs(part(limit.tv_sec())) + Duration::from_micros(part(limit.tv_usec()));
    Ok(if limit.is_zero() { None } else { Instant::now().checked_add(limit) })
}

/// Waits until there is a packet, or the connection has ended; at the deadline the errno is `EAGAIN`,
/// even if there is one.
pub(crate) fn wait_for_packet(connection: &OwnedFd, deadline: Instant) -> Result<()> {
    let failed = |errno| Error::syscall("poll of the connection to the agent", errno);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(Errno::EAGAIN));
        }
        // Rounded up, so as not to wake just before the deadline.
        let limit = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
    }
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
    let rights = [ControlMessage::ScmRights(&raw)];
    // None where there are no descriptors.
    let rights = &rights[usize::from(raw.is_empty())..];
    let slices = [IoSlice::new(bytes)];
    loop {
        match sendmsg::<UnixAddr>(connection.as_raw_fd(), &slices, rights, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            // Kernels differ in which of them says that the other side is closed.
            Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ECONNREFUSED) => return Err(Error::unanswered()),
            Err(errno) => return Err(Error::syscall("sendmsg to the agent", errno)),
        }
    }
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
            // Said once, by an agent that ended the connection before it had read all. What it has answered
            // comes next, or the end.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        env,
        io::Read as _,
        os::unix::net::UnixListener,
        process::{Command, Stdio},
        thread,
    };

    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    /// Longer than any test takes, unless it fails.
    const LONGEST: Duration = Duration::from_secs(60);

    /// Variable that tells a test's program where to connect.
    const SOCKET_OF_TEST: &str = "MONITOR_CLIENT_TEST_SOCKET";

    /// A socket at which so many connections and one more wait to be accepted.
    pub(crate) fn listener(path: &Path, backlog: i32) -> UnixListener {
        let listener =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(listener.as_raw_fd(), &UnixAddr::new(path).expect("an address")).expect("bind");
        listen(&listener, Backlog::new(backlog).expect("a number")).expect("listen");
        UnixListener::from(listener)
    }

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
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let _listener = listener(&path, 1);
        let silent = connect_within(&path, Some(Duration::from_millis(1))).expect("a listener");
        assert_eq!(receive(&silent, 16), Err(Errno::EAGAIN));
    }

    #[test]
    #[ignore = "a program for the test below"]
    fn program_that_connects() {
        let path = env::var_os(SOCKET_OF_TEST).expect("a path");
        println!("connecting");
        connect_within(path.as_ref(), Some(LONGEST)).expect("a connection");
    }

    #[test]
    fn a_stop_while_connecting_is_no_failure() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        let listener = listener(&path, 0);
        let _waits = connect(&path).expect("a listener");
        let full = connect_within(&path, Some(Duration::from_millis(1))).expect_err("one may wait");
        assert!(full.is_timeout(), "{full}");
        let mut program = Command::new(env::current_exe().expect("this program"));
        program.args(["--exact", "seqpacket::tests::program_that_connects", "--ignored", "--nocapture"]);
        program.env(SOCKET_OF_TEST, &path).stdout(Stdio::piped());
        let mut program = program.spawn().expect("this program");
        let mut output = program.stdout.take().expect("a pipe");
        let (mut told, mut part) = (Vec::new(), [0; 256]);
        while !String::from_utf8_lossy(&told).contains("connecting") {
            let length = output.read(&mut part).expect("a pipe");
            assert_ne!(length, 0, "it ended");
            told.extend_from_slice(&part[..length]);
        }
        for signal in ["STOP", "CONT"].into_iter().cycle().take(10) {
            thread::sleep(Duration::from_millis(50));
            let command = format!("kill -{signal} {}", program.id());
            assert!(Command::new("sh").args(["-c", &command]).status().expect("a shell").success());
        }
        let _accepted = listener.accept().expect("the first connection");
        output.read_to_end(&mut told).expect("a pipe");
        let status = program.wait().expect("a child");
        assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&told));
    }
}
