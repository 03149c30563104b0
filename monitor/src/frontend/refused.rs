//! The queue of a connection that is refused: whether descriptors lie in it.

use std::{
    io::IoSliceMut,
    os::fd::{AsRawFd as _, OwnedFd},
};

use monitor_sys::socket::set_pass_pidfd;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        MsgFlags, Shutdown, UnixAddr, UnixCredentials, recvmsg, setsockopt, shutdown, sockopt::PassCred,
    },
};

/// Whether descriptors lie in the queue of a connection that is refused: then it may take any
/// time to close. Shuts the connection down, and takes packets without descriptors out of it.
pub(super) async fn brings_descriptors(fd: &OwnedFd) -> bool {
    /// Packets that are taken out in one turn. There are no more than the sender's `SO_SNDBUF`
    /// holds, some hundred as a rule.
    const IN_A_TURN: usize = 64;
    let without_pidfds = || match set_pass_pidfd(fd, false) {
        Err(Errno::ENOPROTOOPT) => Ok(()),
        set => set,
    };
    let prepared = shutdown(fd.as_raw_fd(), Shutdown::Both)
        .and_then(|()| setsockopt(fd, PassCred, &true))
        .and_then(|()| without_pidfds());
    if prepared.is_err() {
        return true;
    }
    let has_packet = |flags| {
        // Room for the credentials, which each packet has and the end lacks, and nothing else.
        let (mut byte, mut room) = ([0], cmsg_space!(UnixCredentials));
        let mut slices = [IoSliceMut::new(&mut byte)];
        let flags = flags | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<UnixAddr>(fd.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(Errno::ENOBUFS);
        }
        Ok(message.cmsgs()?.next().is_some())
    };
    loop {
        for _ in 0..IN_A_TURN {
            match has_packet(MsgFlags::MSG_PEEK) {
                Ok(false) => return false,
                // The packet that was peeked at: no other code reads here.
                Ok(true) if has_packet(MsgFlags::empty()).is_ok() => {}
                _ => return true,
            }
        }
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        os::fd::{AsRawFd as _, OwnedFd, RawFd},
    };

    use nix::{
        errno::Errno,
        sys::socket::{
            AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, send, sendmsg, socketpair,
        },
        unistd::pipe,
    };
    use tokio::runtime::Builder;

    use super::{brings_descriptors, set_pass_pidfd};

    fn send_packet(client: &OwnedFd, bytes: &[u8], descriptors: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &rights };
        let slices = [IoSlice::new(bytes)];
        let sent = sendmsg::<UnixAddr>(client.as_raw_fd(), &slices, control, MsgFlags::MSG_DONTWAIT, None);
        assert_eq!(sent, Ok(bytes.len()));
    }

    #[test]
    fn a_refused_connection_without_descriptors_takes_no_time_to_close() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let (foreign, _) = pipe().expect("a pipe");
        let brings = |packets: &[(&[u8], &[RawFd])]| {
            let (kind, flags) = (SockType::SeqPacket, SockFlag::SOCK_CLOEXEC);
            let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, flags).expect("a pair");
            set_pass_pidfd(&ours, true)
                .or_else(|errno| (errno == Errno::ENOPROTOOPT).then_some(()).ok_or(errno))
                .expect("known to the kernel");
            packets.iter().for_each(|(bytes, descriptors)| send_packet(&theirs, bytes, descriptors));
            let brings = runtime.block_on(brings_descriptors(&ours));
            assert_eq!(send(theirs.as_raw_fd(), b"more", MsgFlags::MSG_NOSIGNAL), Err(Errno::EPIPE));
            brings
        };
        let (line, none, one): (&[u8], &[RawFd], &[RawFd]) = (b"8 9 1M", &[], &[foreign.as_raw_fd()]);
        assert!(!brings(&[]));
        assert!(!brings(&[(line, none), (b"", none), (line, none)]));
        assert!(!brings(&[(line, none); 200]));
        assert!(brings(&[(line, one)]));
        assert!(brings(&[(b"", one)]));
        let mut behind_others = vec![(line, none); 100];
        behind_others.extend([(&b""[..], none), (b"", one)]);
        assert!(brings(&behind_others));
    }
}
