//! Calls on sockets that `nix` has none for, or none that says who owns the descriptor.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::{
    errno::Errno,
    sys::socket::{SockFlag, accept4},
};

use crate::new_descriptor;

/// Accepts the next connection, whose descriptor is close-on-exec and does not block.
///
/// # Errors
/// As `accept4`: `EAGAIN` without a connection on a listener that does not block; `EMFILE` or
/// `ENFILE` without a descriptor for it; `EINVAL` where the socket does not listen.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let accepted = accept4(listener.as_fd().as_raw_fd(), flags)?;
    // SAFETY: accept4 has just made this descriptor.
    unsafe { new_descriptor(accepted.into()) }
}

/// Makes a pidfd of the process that opened the other end (`SO_PEERPIDFD`), close-on-exec.
/// Needs Linux 6.5.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; `ESRCH`, and `EINVAL` before Linux 6.16, where the process
/// has ended; `EMFILE`, `ENFILE` or `ENOMEM` without a descriptor for it; `ENODATA` or
/// `EINVAL` where the socket has no peer.
pub fn peer_pidfd(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    let mut pidfd: libc::c_int = -1;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let (fd, level, option) = (socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERPIDFD);
    // SAFETY: the kernel writes one int and its length, which outlive the call.
    let got = unsafe { libc::getsockopt(fd, level, option, (&raw mut pidfd).cast(), &raw mut length) };
    Errno::result(got)?;
    if pidfd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the call has just made this descriptor.
    unsafe { new_descriptor(pidfd.into()) }
}

/// Says whether each message is to bring its sender's pidfd (`SO_PASSPIDFD`). What a listener
/// accepts has its flag from the start (`unix_sock_inherit_flags`). Needs Linux 6.5.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 6.5; `ENOTSOCK` for another file.
pub fn set_pass_pidfd(socket: impl AsFd, on: bool) -> Result<(), Errno> {
    set_number(socket, libc::SO_PASSPIDFD, on.into())
}

/// Sets where a look without taking (`MSG_PEEK`) begins, in bytes from the oldest one
/// (`SO_PEEK_OFF`); each look moves it on. At -1 each look begins at the oldest. Needs
/// Linux 3.4 on unix sockets.
///
/// # Errors
/// `EOPNOTSUPP` where the socket's kind has no such place; `ENOTSOCK` for another file.
pub fn set_peek_offset(socket: impl AsFd, offset: i32) -> Result<(), Errno> {
    set_number(socket, libc::SO_PEEK_OFF, offset)
}

fn set_number(socket: impl AsFd, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let (fd, length) = (socket.as_fd().as_raw_fd(), size_of_val(&value) as libc::socklen_t);
    // SAFETY: the kernel reads one int, which outlives the call.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), length) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use nix::{
        fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
        sys::socket::{AddressFamily, MsgFlags, SockType, recv, send, socketpair},
    };

    use super::*;

    #[test]
    fn an_accepted_connection_neither_blocks_nor_outlives_an_exec() -> Result<(), Box<dyn std::error::Error>>
    {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        assert_eq!(accept(&listener).err(), Some(Errno::EAGAIN));
        let client = UnixStream::connect(&path)?;
        let accepted = accept(&listener)?;
        let flags = OFlag::from_bits_retain(fcntl(&accepted, FcntlArg::F_GETFL)?);
        assert!(flags.contains(OFlag::O_NONBLOCK));
        assert_eq!(fcntl(&accepted, FcntlArg::F_GETFD)?, FdFlag::FD_CLOEXEC.bits());
        match peer_pidfd(&accepted) {
            Ok(pidfd) => assert_ne!(pidfd.as_raw_fd(), accepted.as_raw_fd()),
            Err(errno) => assert_eq!(errno, Errno::ENOPROTOOPT, "before Linux 6.5"),
        }
        drop(client);
        Ok(())
    }

    #[test]
    fn a_look_moves_on_until_it_is_set_back() -> nix::Result<()> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        send(theirs.as_raw_fd(), b"ab", MsgFlags::empty())?;
        let look = || {
            let mut byte = [0];
            recv(ours.as_raw_fd(), &mut byte, MsgFlags::MSG_PEEK).map(|_| byte[0])
        };
        set_peek_offset(&ours, 0)?;
        assert_eq!((look()?, look()?), (b'a', b'b'));
        set_peek_offset(&ours, -1)?;
        assert_eq!((look()?, look()?), (b'a', b'a'));
        let null = std::fs::File::open("/dev/null").map_err(|_| Errno::ENOENT)?;
        assert_eq!(set_peek_offset(&null, 0), Err(Errno::ENOTSOCK));
        Ok(())
    }
}
