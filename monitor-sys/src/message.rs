//! One message of a unix socket, with what comes along with it (`cmsg(3)`).
//!
//! The kernel's bytes are read here alone, also where there was no room for all of them: what
//! did come is owned then, too, and closed with the message.

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, UnixCredentials, recvmsg},
};

/// Descriptors that one message can carry at most, by the kernel's `SCM_MAX_FD`.
pub const MAX_DESCRIPTORS: usize = 253;

/// The kernel's `SCM_PIDFD`, a type of ancillary data.
const PIDFD: libc::c_int = 4;

/// Bytes of a header: length, level, type.
const HEADER: usize = 16;

/// A message that was received, and what came along.
#[derive(Debug, Default)]
pub struct ReceivedMessage {
    /// How many bytes were written to the caller's buffer, from its start.
    pub length: usize,
    /// Whether the message was longer than the buffer (`MSG_TRUNC`): the rest is lost.
    pub is_truncated: bool,
    /// Whether more came along than there was room for (`MSG_CTRUNC`): the rest is closed.
    pub is_ancillary_truncated: bool,
    /// The descriptors that came along, in order, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
    /// Process, user and group of the sender, as the kernel vouches for them. `None` where the
    /// socket has no `SO_PASSCRED`, and at the end of a connection.
    pub sender: Option<UnixCredentials>,
    /// The sender's pidfd, or the errno for which there is none. `None` before Linux 6.5, and
    /// where the socket has no `SO_PASSPIDFD`.
    pub pidfd: Option<Result<OwnedFd, Errno>>,
}

/// Receives one message into `bytes`, with room for `descriptors` of them, the sender and its
/// pidfd. `flags` are those of `recvmsg`; descriptors are close-on-exec in any case. With
/// `MSG_PEEK` the message stays, and each call makes duplicates of its own.
///
/// With fewer than [`MAX_DESCRIPTORS`] a message that brings more may take the pidfd's room,
/// so a socket with `SO_PASSPIDFD` needs that many.
///
/// # Errors
/// As `recvmsg`: `EAGAIN` without a message on a socket that does not block, or with
/// `MSG_DONTWAIT`; `ENOTSOCK` for another file.
pub fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    descriptors: usize,
    flags: MsgFlags,
) -> Result<ReceivedMessage, Errno> {
    let mut room = room(descriptors);
    let mut slices = [IoSliceMut::new(bytes)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
    let (length, flags) = (message.bytes, message.flags);
    // SAFETY: `room` was all zeros before the call above, which has written to it, and it is
    // read this once.
    let ancillary = unsafe { Ancillary::take(&room) };
    Ok(ReceivedMessage {
        length,
        is_truncated: flags.contains(MsgFlags::MSG_TRUNC),
        is_ancillary_truncated: flags.contains(MsgFlags::MSG_CTRUNC),
        descriptors: ancillary.descriptors,
        sender: ancillary.sender,
        pidfd: ancillary.pidfd,
    })
}

/// Room for so many descriptors, the sender's credentials and its pidfd, all zero: the end of
/// what the kernel writes is found by that.
fn room(descriptors: usize) -> Vec<u8> {
    let entry = |bytes: usize| HEADER + bytes.next_multiple_of(size_of::<usize>());
    let descriptors = descriptors.min(MAX_DESCRIPTORS);
    vec![
        0;
        entry(descriptors * size_of::<RawFd>()) + entry(size_of::<libc::ucred>()) + entry(size_of::<RawFd>())
    ]
}

/// Ancillary data of one message.
#[derive(Debug, Default)]
struct Ancillary {
    descriptors: Vec<OwnedFd>,
    sender: Option<UnixCredentials>,
    pidfd: Option<Result<OwnedFd, Errno>>,
}

impl Ancillary {
    /// Takes what the kernel has written into [`room`].
    ///
    /// # Safety
    /// Each descriptor that `room` has is open and owned by no other value, as the kernel
    /// leaves them in one call of `recvmsg`. So it is called once for each.
    unsafe fn take(mut room: &[u8]) -> Self {
        let mut taken = Self::default();
        while let Some((kind, data, rest)) = next(room) {
            match kind {
                libc::SCM_RIGHTS => {
                    let numbers = data.chunks_exact(size_of::<RawFd>()).filter_map(number);
                    // SAFETY: the caller says that each of these is there to be owned.
                    taken.descriptors.extend(numbers.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
                libc::SCM_CREDENTIALS => taken.sender = credentials(data).or(taken.sender),
                PIDFD => {
                    // SAFETY: as above; below 0 it is no descriptor.
                    let pidfd = number(data).map(|number| unsafe { pidfd(number) });
                    taken.pidfd = pidfd.or(taken.pidfd);
                }
                _ => {}
            }
            room = rest;
        }
        taken
    }
}

/// The first entry, whose type counts only on the socket's own level, and what follows it.
fn next(room: &[u8]) -> Option<(libc::c_int, &[u8], &[u8])> {
    let length = usize::from_ne_bytes(room.get(..8)?.try_into().ok()?);
    let (level, kind) = (number(room.get(8..12)?)?, number(room.get(12..HEADER)?)?);
    let data = room.get(HEADER..length)?;
    let rest = room.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    Some((if level == libc::SOL_SOCKET { kind } else { -1 }, data, rest))
}

fn number(bytes: &[u8]) -> Option<libc::c_int> {
    Some(libc::c_int::from_ne_bytes(bytes.get(..4)?.try_into().ok()?))
}

fn credentials(data: &[u8]) -> Option<UnixCredentials> {
    let word = |at: usize| number(data.get(at..)?);
    let (pid, uid, gid) = (word(0)?, word(4)?.cast_unsigned(), word(8)?.cast_unsigned());
    Some(libc::ucred { pid, uid, gid }.into())
}

/// Owns a pidfd. Below 0 the number is the kernel's errno, and there is none.
///
/// # Safety
/// A number from 0 on is an open descriptor that is owned by no other value.
unsafe fn pidfd(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::from_raw(number.saturating_neg()));
    }
    // SAFETY: the caller says so.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _},
    };

    use nix::sys::socket::{
        AddressFamily, ControlMessage, SockFlag, SockType, sendmsg, setsockopt, socketpair, sockopt::PassCred,
    };

    use super::*;

    fn entry(kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (HEADER + data.len()).to_ne_bytes().to_vec();
        bytes.extend(1_i32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn each_kind_is_read_to_the_end() -> std::io::Result<()> {
        let (one, two) = (std::fs::File::open("/dev/null")?, std::fs::File::open("/dev/null")?);
        let (one, two) = (one.into_raw_fd(), two.into_raw_fd());
        let mut bytes = entry(2, &[7_i32, 1000, 100].map(i32::to_ne_bytes).concat());
        bytes.extend(entry(1, &[one, two].map(i32::to_ne_bytes).concat()));
        bytes.extend(entry(4, &(-24_i32).to_ne_bytes()));
        bytes.extend([0; 32]);
        // SAFETY: both were just given up by their owners, and are taken this once.
        let taken = unsafe { Ancillary::take(&bytes) };
        let sender = taken.sender.expect("credentials");
        assert_eq!((sender.pid(), sender.uid(), sender.gid()), (7, 1000, 100));
        let numbers: Vec<_> = taken.descriptors.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        assert_eq!(numbers, [one, two]);
        assert_eq!(taken.pidfd.and_then(Result::err), Some(Errno::EMFILE));
        Ok(())
    }

    #[test]
    fn an_end_anywhere_is_an_end() {
        // SAFETY: none of the rooms below has an entry of a kind that brings descriptors.
        let take = |room: &[u8]| unsafe { Ancillary::take(room) };
        let bytes = entry(2, &[7_i32, 1000, 100].map(i32::to_ne_bytes).concat());
        for end in 0..bytes.len() - 4 {
            assert!(take(&bytes[..end]).sender.is_none());
        }
        assert!(take(&room(MAX_DESCRIPTORS)).descriptors.is_empty());
        assert!(take(&[0xff; 64]).sender.is_none());
    }

    #[test]
    fn a_message_comes_with_all_that_was_sent() -> nix::Result<()> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        setsockopt(&ours, PassCred, &true)?;
        let send = |bytes: &[u8], count: usize| {
            let fds = vec![theirs.as_raw_fd(); count];
            let control = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(bytes)], &control, MsgFlags::empty(), None)
        };
        let mut bytes = [0; 4];
        send(b"abcdef", MAX_DESCRIPTORS)?;
        let peeked = receive(ours.as_fd(), &mut bytes, MAX_DESCRIPTORS, MsgFlags::MSG_PEEK)?;
        let taken = receive(ours.as_fd(), &mut bytes, MAX_DESCRIPTORS, MsgFlags::empty())?;
        for message in [&peeked, &taken] {
            assert_eq!((message.length, &bytes), (4, b"abcd"));
            assert_eq!(message.descriptors.len(), MAX_DESCRIPTORS);
            assert!(message.is_truncated && !message.is_ancillary_truncated);
            assert_eq!(message.sender.map(|sender| sender.pid()), Some(nix::unistd::getpid().as_raw()));
            assert!(message.pidfd.is_none(), "it was not requested");
        }
        let first = |message: &ReceivedMessage| message.descriptors[0].as_raw_fd();
        assert_ne!(first(&peeked), first(&taken), "duplicates of each");

        send(b"g", 100)?;
        let cut = receive(ours.as_fd(), &mut bytes, 1, MsgFlags::empty())?;
        assert!(cut.is_ancillary_truncated && cut.descriptors.len() < 100);
        let nothing = receive(ours.as_fd(), &mut bytes, 1, MsgFlags::MSG_DONTWAIT);
        assert_eq!(nothing.err(), Some(Errno::EAGAIN));
        Ok(())
    }
}
