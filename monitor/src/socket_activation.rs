//! Listening sockets among the descriptors that the service manager hands over, by the names
//! that the socket units give them (`FileDescriptorName=`). Each is checked, since names are
//! configuration.

pub mod error;

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, SockType, SockaddrLike as _, SockaddrStorage, getsockname, getsockopt, sockopt,
};

use crate::{error::Result, fd_store::StoredDescriptors, socket_activation::error::SocketActivationError};

/// Name of the registration socket.
pub const REGISTER: &str = "register";
/// Name of the admin socket.
pub const OPERATOR: &str = "operator";

/// Name of the socket of the memory-pressure protocol.
pub const PRESSURE: &str = "pressure";

/// Takes the socket of that name, which listens for packets, or for streams where it is
/// [`PRESSURE`], out of the descriptors handed over.
///
/// # Errors
/// The descriptor is something else, or there are two of that name.
pub fn listener(handed: &mut StoredDescriptors, name: &str) -> Result<Option<OwnedFd>> {
    let (kind, directive) = match name {
        PRESSURE => (SockType::Stream, "ListenStream="),
        _ => (SockType::SeqPacket, "ListenSequentialPacket="),
    };
    let mut named: Vec<_> = handed.extract_if(.., |(found, _)| found == name).collect();
    let Some((_, fd)) = named.pop() else { return Ok(None) };
    let name = name.to_owned();
    match named.len() {
        0 if is_listener(fd.as_fd(), kind) => Ok(Some(fd)),
        0 => Err(SocketActivationError::NotAListener { name, directive }.into()),
        _ => Err(SocketActivationError::Repeated { name, directive }.into()),
    }
}

/// Whether programs that are pinned can be opened again: the kernel returns their types
/// (`BPF_BTF_GET_FD_BY_ID`) to `CAP_SYS_ADMIN` alone. True where that is unknown.
#[must_use]
pub fn may_reopen_programs() -> bool {
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    mask.is_none_or(|mask| mask & SYS_ADMIN != 0)
}

fn is_listener(fd: BorrowedFd<'_>, kind: SockType) -> bool {
    let local = getsockname::<SockaddrStorage>(fd.as_raw_fd())
        .is_ok_and(|address| address.family() == Some(AddressFamily::Unix));
    local
        && getsockopt(&fd, sockopt::SockType) == Ok(kind)
        && getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd as _, OwnedFd};

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket, socketpair,
    };

    use super::listener;

    fn listening(kind: SockType) -> Result<OwnedFd, nix::Error> {
        let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // Binds an address of the kernel's choice.
        bind(fd.as_raw_fd(), &UnixAddr::new_unnamed())?;
        listen(&fd, Backlog::new(1)?)?;
        Ok(fd)
    }

    fn named(fds: Vec<OwnedFd>) -> Vec<(String, OwnedFd)> {
        fds.into_iter().map(|fd| ("register".to_owned(), fd)).collect()
    }

    #[test]
    fn a_listener_is_known_by_what_it_is() -> Result<(), Box<dyn std::error::Error>> {
        let mut handed = named(vec![listening(SockType::SeqPacket)?]);
        handed.push(("state".to_owned(), listening(SockType::Stream)?));
        assert!(listener(&mut handed, "operator")?.is_none());
        assert!(listener(&mut handed, "register")?.is_some());
        assert!(listener(&mut handed, "register")?.is_none(), "taken once");
        assert_eq!(handed.len(), 1, "another process's descriptors stay");

        let mut stream = named(vec![listening(SockType::Stream)?]);
        assert!(listener(&mut stream, "register").is_err());
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        assert!(listener(&mut named(vec![pair.0]), "register").is_err(), "it does not listen");
        let two = vec![listening(SockType::SeqPacket)?, listening(SockType::SeqPacket)?];
        assert!(listener(&mut named(two), "register").is_err());
        for (kind, is_it) in [(SockType::Stream, true), (SockType::SeqPacket, false)] {
            let mut handed = vec![("pressure".to_owned(), listening(kind)?)];
            assert_eq!(listener(&mut handed, "pressure").is_ok(), is_it, "{kind:?}");
        }
        Ok(())
    }
}
