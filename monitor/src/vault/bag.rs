//! Descriptors in flight: a socket pair on whose way lie the clients' eventfds, so that
//! the keeper holds one descriptor for thousands, and an exact number of references.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt,
        socketpair, sockopt,
    },
};

use crate::ancillary::{self, Ancillary};

/// Descriptors that one message can carry, by the kernel's `SCM_MAX_FD`.
pub const IN_A_MESSAGE: usize = 253;

/// One socket pair. What was sent into it stays in it, as long as its end is open
/// anywhere.
#[derive(Debug)]
pub struct Bag {
    /// By which the keeper knows it.
    pub name: String,
    /// Where things are put in; not handed on, a bag that was taken over is not filled
    /// any more.
    mouth: Option<OwnedFd>,
    end: OwnedFd,
}

/// A descriptor, and the number that was sent with it.
pub type Held = (u64, OwnedFd);

impl Bag {
    /// An empty bag.
    ///
    /// # Errors
    /// `socketpair` failed.
    pub fn new(name: String) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (mouth, end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // As much as the host lets everybody have.
        setsockopt(&mouth, sockopt::SndBuf, &(1 << 24))?;
        Ok(Self { name, mouth: Some(mouth), end })
    }

    /// One that an agent before has filled.
    #[must_use]
    pub const fn adopt(name: String, end: OwnedFd) -> Self {
        Self { name, mouth: None, end }
    }

    /// What the keeper holds.
    #[must_use]
    pub fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Puts in up to [`IN_A_MESSAGE`] descriptors, each with its number: all or none.
    ///
    /// # Errors
    /// `EAGAIN` when it is full, or takes nothing any more; others as `sendmsg`.
    pub fn put(&self, held: &[(u64, BorrowedFd<'_>)]) -> nix::Result<()> {
        let mouth = self.mouth.as_ref().ok_or(Errno::EAGAIN)?;
        let bytes: Vec<u8> = held.iter().flat_map(|(number, _)| number.to_le_bytes()).collect();
        let fds: Vec<RawFd> = held.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(mouth.as_raw_fd(), &[IoSlice::new(&bytes)], &control, flags, None).map(drop)
    }

    /// Duplicates of all that is in it, which stays there.
    ///
    /// # Errors
    /// `recvmsg` failed; `EMFILE` when the agent may not have that many descriptors.
    pub fn look(&self) -> nix::Result<Vec<Held>> {
        // Each message that is looked at moves the place where the next look begins.
        look_from(&self.end, 0)?;
        let found = self.take(MsgFlags::MSG_PEEK);
        look_from(&self.end, -1)?;
        found
    }

    /// Takes all out of it.
    ///
    /// # Errors
    /// As [`Bag::look`].
    pub fn empty(&self) -> nix::Result<()> {
        self.take(MsgFlags::empty()).map(drop)
    }

    fn take(&self, how: MsgFlags) -> nix::Result<Vec<Held>> {
        let mut found = Vec::new();
        loop {
            let mut bytes = [0; IN_A_MESSAGE * size_of::<u64>()];
            let mut room = ancillary::room(IN_A_MESSAGE);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = how | MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let message = match recvmsg::<()>(self.end.as_raw_fd(), &mut slices, Some(&mut room), flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(found),
                Err(errno) => return Err(errno),
            };
            let (length, cut) = (message.bytes, message.flags.contains(MsgFlags::MSG_CTRUNC));
            let fds = Ancillary::take(&room).descriptors;
            if cut {
                return Err(Errno::EMFILE);
            }
            if length == 0 {
                // The mouth is closed, and all has been seen.
                return Ok(found);
            }
            let numbers = bytes[..length].chunks_exact(size_of::<u64>());
            let numbers = numbers.map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
            found.extend(numbers.zip(fds));
        }
    }
}

/// Where a look without taking begins (`SO_PEEK_OFF`); -1: no looking on.
fn look_from(fd: &OwnedFd, offset: i32) -> nix::Result<()> {
    let (length, word) = (size_of::<i32>() as libc::socklen_t, (&raw const offset).cast());
    // SAFETY: one word, which outlives the call.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, word, length) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use nix::{errno::Errno, sys::eventfd::EventFd};

    use super::{Bag, IN_A_MESSAGE};

    fn numbers(bag: &Bag) -> Vec<u64> {
        bag.look().expect("look").into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn what_is_in_it_outlives_who_put_it_there() -> nix::Result<()> {
        let (bag, client) = (Bag::new("a".into())?, EventFd::new()?);
        let many: Vec<_> = (0..IN_A_MESSAGE as u64).map(|number| (number, client.as_fd())).collect();
        bag.put(&many)?;
        bag.put(&[(1000, client.as_fd())])?;
        let kept: OwnedFd = bag.end().try_clone_to_owned().expect("dup");
        drop(bag);
        let bag = Bag::adopt("a".into(), kept);
        for _ in 0..2 {
            assert_eq!(numbers(&bag), (0..253).chain([1000]).collect::<Vec<_>>());
        }
        let held = bag.look()?;
        client.write(5)?;
        let mut word = [0; 8];
        nix::unistd::read(&held[253].1, &mut word)?;
        assert_eq!(u64::from_ne_bytes(word), 5, "the very eventfd");
        assert_eq!(bag.put(&[(1, client.as_fd())]), Err(Errno::EAGAIN), "one that was taken over");
        bag.empty()?;
        assert_eq!(numbers(&bag), [0_u64; 0]);
        Ok(())
    }

    #[test]
    fn one_that_is_full_says_so() -> nix::Result<()> {
        let (bag, client) = (Bag::new("a".into())?, EventFd::new()?);
        let mut put = 0;
        let full = loop {
            match bag.put(&[(put, client.as_fd())]) {
                Ok(()) => put += 1,
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, Errno::EAGAIN);
        assert!(put > 100);
        assert_eq!(numbers(&bag).len() as u64, put);
        Ok(())
    }
}
