//! Descriptors in flight: a socket pair in whose queue lie the clients' eventfds, so that the
//! descriptor store holds one descriptor for thousands, with an exact number of references.

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

use monitor_sys::{
    message::{self, MAX_DESCRIPTORS},
    socket::set_peek_offset,
};

use crate::in_flight;

/// Descriptors that one message can carry at most.
pub const IN_A_MESSAGE: usize = MAX_DESCRIPTORS;

/// A socket pair with descriptors in its queue, which stay there as long as its end is open
/// anywhere.
#[derive(Debug)]
pub struct FdStash {
    /// Name of the stash in the descriptor store.
    pub name: String,
    /// The end that is sent into. It is not handed on: a stash that was taken over is not
    /// filled any more.
    sender: Option<OwnedFd>,
    end: OwnedFd,
}

/// A descriptor, and the number that was sent with it.
pub type StashedFd = (u64, OwnedFd);

impl FdStash {
    /// Makes an empty stash.
    ///
    /// # Errors
    /// `socketpair` failed.
    pub fn new(name: String) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (sender, end) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        // As much as the host permits every user.
        setsockopt(&sender, sockopt::SndBuf, &(1 << 24))?;
        Ok(Self { name, sender: Some(sender), end })
    }

    /// Takes over a stash that an earlier agent has filled.
    #[must_use]
    pub const fn adopt(name: String, end: OwnedFd) -> Self {
        Self { name, sender: None, end }
    }

    /// The end that the descriptor store holds.
    #[must_use]
    pub fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Puts in up to `IN_A_MESSAGE` descriptors, each with its number: all or none.
    ///
    /// # Errors
    /// `EAGAIN` when it is full, or was taken over; `ETOOMANYREFS` when the user that they are
    /// counted against ([`in_flight`]) has too many in flight; others as `sendmsg`.
    pub fn put(&self, held: &[(u64, BorrowedFd<'_>)]) -> nix::Result<()> {
        let sender = self.sender.as_ref().ok_or(Errno::EAGAIN)?;
        let bytes: Vec<u8> = held.iter().flat_map(|(number, _)| number.to_le_bytes()).collect();
        let fds: Vec<RawFd> = held.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let send = || sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(&bytes)], &control, flags, None);
        in_flight::apart(send).map(drop)
    }

    /// Duplicates all descriptors in it, which stay there.
    ///
    /// # Errors
    /// `recvmsg` failed; `EMFILE` when the agent may not have that many descriptors.
    pub fn look(&self) -> nix::Result<Vec<StashedFd>> {
        self.look_at(usize::MAX)
    }

    /// Duplicates the descriptors of the messages in front that [`FdStash::front`] counts, which stay there.
    /// Returns how many messages these are.
    ///
    /// # Errors
    /// As [`FdStash::look`].
    pub fn look_front(&self, most: usize) -> nix::Result<(usize, Vec<StashedFd>)> {
        let (messages, _) = self.front(most)?;
        Ok((messages, self.look_at(messages)?))
    }

    fn look_at(&self, messages: usize) -> nix::Result<Vec<StashedFd>> {
        // Each message that is peeked at moves the place where the next peek begins.
        set_peek_offset(&self.end, 0)?;
        let found = self.look_on(messages);
        set_peek_offset(&self.end, -1)?;
        found
    }

    /// Reads the front of the queue: how many messages have up to `most` descriptors together, at
    /// least one where there is any, and the numbers of these. No descriptor is made for it.
    ///
    /// # Errors
    /// `recvmsg` failed.
    pub fn front(&self, most: usize) -> nix::Result<(usize, Vec<u64>)> {
        set_peek_offset(&self.end, 0)?;
        let mut found = (0, Vec::new());
        let outcome = loop {
            match self.next(MsgFlags::MSG_PEEK) {
                Ok(numbers) if numbers.is_empty() => break Ok(()),
                Ok(numbers) if found.0 > 0 && found.1.len() + numbers.len() > most => break Ok(()),
                Ok(numbers) => {
                    found.0 += 1;
                    found.1.extend(numbers);
                }
                Err(errno) => break Err(errno),
            }
        };
        set_peek_offset(&self.end, -1)?;
        outcome.map(|()| found)
    }

    /// Drops so many messages in front, with their descriptors.
    ///
    /// # Errors
    /// `recvmsg` failed.
    pub fn drop_front(&self, messages: usize) -> nix::Result<()> {
        (0..messages).try_for_each(|_| self.next(MsgFlags::empty()).map(drop))
    }

    /// Reads the numbers of one message; none at the end. Without room for descriptors the kernel
    /// hands none over.
    fn next(&self, how: MsgFlags) -> nix::Result<Vec<u64>> {
        let mut bytes = [0; IN_A_MESSAGE * size_of::<u64>()];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = how | MsgFlags::MSG_DONTWAIT;
        match recvmsg::<()>(self.end.as_raw_fd(), &mut slices, None, flags).map(|message| message.bytes) {
            Ok(length) => Ok(numbers(&bytes[..length]).collect()),
            Err(Errno::EAGAIN) => Ok(Vec::new()),
            Err(errno) => Err(errno),
        }
    }

    fn look_on(&self, messages: usize) -> nix::Result<Vec<StashedFd>> {
        let mut found = Vec::new();
        for _ in 0..messages {
            let mut bytes = [0; IN_A_MESSAGE * size_of::<u64>()];
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            let message = match message::receive(self.end.as_fd(), &mut bytes, IN_A_MESSAGE, flags) {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(found),
                Err(errno) => return Err(errno),
            };
            if message.is_ancillary_truncated {
                return Err(Errno::EMFILE);
            }
            if message.length == 0 {
                // The sending end is closed, and all messages were read.
                return Ok(found);
            }
            found.extend(numbers(&bytes[..message.length]).zip(message.descriptors));
        }
        Ok(found)
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(size_of::<u64>()).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd as _, OwnedFd};

    use nix::{errno::Errno, sys::eventfd::EventFd};

    use super::{FdStash, IN_A_MESSAGE};

    fn numbers(stash: &FdStash) -> Vec<u64> {
        stash.look().expect("look").into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn what_is_in_it_outlives_who_put_it_there() -> nix::Result<()> {
        let (stash, client) = (FdStash::new("a".into())?, EventFd::new()?);
        let many: Vec<_> = (0..IN_A_MESSAGE as u64).map(|number| (number, client.as_fd())).collect();
        stash.put(&many)?;
        stash.put(&[(1000, client.as_fd())])?;
        let kept: OwnedFd = stash.end().try_clone_to_owned().expect("dup");
        drop(stash);
        let stash = FdStash::adopt("a".into(), kept);
        for _ in 0..2 {
            assert_eq!(numbers(&stash), (0..253).chain([1000]).collect::<Vec<_>>());
        }
        let held = stash.look()?;
        client.write(5)?;
        let mut word = [0; 8];
        nix::unistd::read(&held[253].1, &mut word)?;
        assert_eq!(u64::from_ne_bytes(word), 5, "the very eventfd");
        assert_eq!(stash.put(&[(1, client.as_fd())]), Err(Errno::EAGAIN), "one that was taken over");
        assert_eq!(stash.front(10)?, (1, (0..253).collect()), "more than requested, but not none");
        assert_eq!(stash.front(300)?, (2, (0..253).chain([1000]).collect()));
        let (messages, found) = stash.look_front(10)?;
        assert_eq!((messages, found.len()), (1, IN_A_MESSAGE));
        stash.drop_front(1)?;
        assert_eq!((numbers(&stash), stash.front(1)?), (vec![1000], (1, vec![1000])));
        stash.drop_front(1)?;
        assert_eq!((numbers(&stash), stash.front(1)?), (vec![], (0, vec![])));
        Ok(())
    }

    #[test]
    fn a_full_stash_is_refused_with_eagain() -> nix::Result<()> {
        let (stash, client) = (FdStash::new("a".into())?, EventFd::new()?);
        let mut put = 0;
        let full = loop {
            match stash.put(&[(put, client.as_fd())]) {
                Ok(()) => put += 1,
                Err(errno) => break errno,
            }
        };
        assert_eq!(full, Errno::EAGAIN);
        assert!(put > 100);
        assert_eq!(numbers(&stash).len() as u64, put);
        Ok(())
    }
}
