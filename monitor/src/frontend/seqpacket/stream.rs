//! Connections that are streams, whose client writes once: what it wrote is looked at, and stays
//! in the socket's queue.
//!
//! A socket that is closed with something unread ends in an error for its client (`ECONNRESET`), one
//! without in an end of file. And what is still there can be looked at by the next agent, too.

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, Shutdown, SockType, recvmsg, send, setsockopt, shutdown, sockopt},
};

use super::{Access, Connection, Listener, opener};
use crate::{
    error::Result,
    frontend::{deferred_close::DeferredClose, sender::Sender},
};

/// The bytes in front of a stream, which stay there.
#[derive(Debug, Default)]
pub struct Peeked {
    /// Bytes from the beginning, as many as there was room for.
    pub bytes: Vec<u8>,
    /// Whether descriptors lie among them, or may: behind urgent data, which no look at the others shows.
    pub with_descriptors: bool,
}

/// Events of a connection that is a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// There may be more to look at.
    Written,
    /// The client has closed or shut down its side.
    Left,
}

impl Listener {
    /// The service manager's, if it handed one over, else one bound here at `path`, for streams.
    ///
    /// # Errors
    /// As [`Listener::bind`] and [`Listener::adopt`].
    pub fn open_stream(
        handed: Option<OwnedFd>,
        path: Option<&Path>,
        access: &Access,
        deferred_close: &DeferredClose,
    ) -> Result<Option<Self>> {
        match (handed, path) {
            (Some(fd), _) => Self::adopt(fd, deferred_close).map(Some),
            (None, Some(path)) => Self::bind_for(SockType::Stream, path, access, deferred_close).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Goes on with a connection that an earlier agent has accepted, however many its client has.
    ///
    /// # Errors
    /// The socket is none, or cannot be waited for.
    pub fn resume(&self, fd: OwnedFd) -> io::Result<(Connection, Sender)> {
        let peer = opener(&fd)?;
        let account = self.accounting.of_connection(&peer, |_| false);
        self.connection(fd, peer, account)
    }
}

impl Connection {
    /// Waits for the next event of a stream. What was written before the client left is not one.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub async fn stream_event(&self) -> io::Result<StreamEvent> {
        let mut guard = self.fd()?.readable().await?;
        if guard.ready().is_read_closed() {
            return Ok(StreamEvent::Left);
        }
        guard.clear_ready();
        Ok(StreamEvent::Written)
    }

    /// Looks at up to `limit` bytes of what was written.
    ///
    /// # Errors
    /// `recvmsg` failed.
    pub fn peek(&self, limit: usize) -> io::Result<Peeked> {
        Ok(peek(self.fd()?.get_ref(), limit)?)
    }

    /// Sends a byte, unless the client has enough of them to read: then it is woken by those.
    ///
    /// # Errors
    /// `EPIPE` where the client has left, or others of `send`.
    pub fn wake(&self) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.fd()?.as_raw_fd(), b"!", flags) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Bounds what lies in the client's queue to the least that the kernel allows, a few bytes.
    pub fn hold_little(&self) {
        let set = self.fd().and_then(|fd| Ok(setsockopt(fd.get_ref(), sockopt::SndBuf, &1)?));
        if let Err(error) = set {
            log::debug!("setsockopt SO_SNDBUF: {error}");
        }
    }

    /// Borrows the socket of the connection.
    ///
    /// # Errors
    /// None in practice.
    pub fn socket(&self) -> io::Result<BorrowedFd<'_>> {
        Ok(self.fd()?.as_fd())
    }
}

fn peek(socket: &OwnedFd, limit: usize) -> nix::Result<Peeked> {
    let mut bytes = vec![0; limit];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    // Without room for descriptors the kernel hands none over, and says so.
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recvmsg::<()>(socket.as_raw_fd(), &mut slices, None, flags) {
        Ok(message) => {
            let (length, flags) = (message.bytes, message.flags);
            bytes.truncate(length);
            let with_descriptors = flags.contains(MsgFlags::MSG_CTRUNC) || has_urgent(socket);
            Ok(Peeked { bytes, with_descriptors })
        }
        Err(Errno::EAGAIN) => Ok(Peeked { bytes: Vec::new(), with_descriptors: has_urgent(socket) }),
        Err(errno) => Err(errno),
    }
}

/// Whether urgent data is in the queue of a stream, which may bring descriptors (`MSG_OOB`, since 5.15). A
/// look without that flag steps over it.
fn has_urgent(socket: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    nix::sys::socket::recv(socket.as_raw_fd(), &mut [0], flags).is_ok()
}

/// Whether descriptors lie, or may lie, in the queue of a stream that is refused. Its client can
/// write no more then.
pub(in crate::frontend) fn brings_descriptors(socket: &OwnedFd) -> bool {
    /// More than an honest client writes. One that writes more waits for the thread that closes.
    const ROOM: usize = 64 << 10;
    if shutdown(socket.as_raw_fd(), Shutdown::Read).is_err() {
        return true;
    }
    !peek(socket, ROOM).is_ok_and(|peeked| !peeked.with_descriptors && peeked.bytes.len() < ROOM)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{IoSlice, Read as _, Write as _},
        os::{fd::AsRawFd as _, unix::net::UnixStream},
    };

    use nix::{
        errno::Errno,
        sys::socket::{ControlMessage, MsgFlags, send, sendmsg},
        unistd::pipe,
    };

    use super::{brings_descriptors, peek};

    fn send_with_descriptor(client: &UnixStream, bytes: &[u8]) {
        let (foreign, _) = pipe().expect("a pipe");
        let (slices, fds) = ([IoSlice::new(bytes)], [foreign.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<()>(client.as_raw_fd(), &slices, &rights, MsgFlags::MSG_DONTWAIT, None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    #[test]
    fn what_was_written_stays_and_ends_in_an_error() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        let ours = ours.into();
        assert_eq!(peek(&ours, 8).expect("nothing yet").bytes, b"");
        theirs.write_all(b"one ").expect("room");
        theirs.write_all(b"two").expect("room");
        for _ in 0..2 {
            let peeked = peek(&ours, 64).expect("there");
            assert!(peeked.bytes == b"one two" && !peeked.with_descriptors, "{peeked:?}");
        }
        assert_eq!(peek(&ours, 5).expect("there").bytes, b"one t");
        drop(ours);
        let error = theirs.read(&mut [0]).expect_err("no end of file");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn descriptors_are_seen_and_not_taken() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let ours = ours.into();
        (&theirs).write_all(b"text").expect("room");
        assert!(!peek(&ours, 64).expect("there").with_descriptors);
        send_with_descriptor(&theirs, b"!");
        assert!(peek(&ours, 64).expect("there").with_descriptors);
        assert!(brings_descriptors(&ours));
        assert!((&theirs).write_all(b"more").is_err(), "it can write no more");
    }

    #[test]
    fn urgent_data_is_seen_with_what_it_may_bring() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let ours = ours.into();
        (&theirs).write_all(b"text\0").expect("room");
        assert!(!peek(&ours, 64).expect("there").with_descriptors);
        match send(theirs.as_raw_fd(), b"!", MsgFlags::MSG_OOB) {
            // A kernel without it (CONFIG_AF_UNIX_OOB) hides nothing.
            Err(Errno::EOPNOTSUPP) => return,
            sent => assert_eq!(sent, Ok(1)),
        }
        assert!(peek(&ours, 64).expect("there").with_descriptors);
        assert!(peek(&ours, 64).expect("there").with_descriptors, "it stays");
        assert!(brings_descriptors(&ours));
    }

    #[test]
    fn a_refused_stream_with_a_text_alone_takes_no_time_to_close() {
        for text in [&b""[..], b"memory.oom_control"] {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            theirs.write_all(text).expect("room");
            assert!(!brings_descriptors(&ours.into()));
        }
    }
}
