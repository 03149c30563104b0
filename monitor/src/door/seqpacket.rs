//! A unix `SOCK_SEQPACKET` socket: listen, accept, receive a packet with its
//! sender and descriptors. Shared by the doors that are sockets.

use std::{
    fs, io,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
};

use bytes::BytesMut;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials,
        accept4, bind, listen, recvmsg, send, setsockopt, socket, sockopt::PassCred,
    },
    unistd::{Gid, chown},
};
use tokio::io::unix::AsyncFd;

use crate::{
    error::{Error, Result},
    ready::wait_on,
};

/// Descriptors that one message can carry, by the kernel's `SCM_MAX_FD`. Room
/// for all of them, so that none is ever cut off unseen.
const MAX_DESCRIPTORS: usize = 253;

/// Who may come in.
#[derive(Clone, Debug)]
pub struct Access {
    /// Permission bits of the socket.
    pub mode: u32,
    /// Its group; the agent's own when absent.
    pub group: Option<Gid>,
}

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`. The caller holds the agent's lock, so a socket that is
    /// there already was left by an agent that died.
    ///
    /// # Errors
    /// Names the call and the path.
    pub fn bind(path: &Path, access: &Access) -> Result<Self> {
        let failed = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
        match fs::symlink_metadata(path) {
            Ok(found) => {
                use std::os::unix::fs::FileTypeExt;
                if !found.file_type().is_socket() {
                    return Err(Error::Host(format!("{} exists and is not a socket", path.display())));
                }
                fs::remove_file(path).map_err(|error| Error::file("remove", path, error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("look at", path, error)),
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(|errno| failed("socket", errno))?;
        let address = UnixAddr::new(path).map_err(|errno| failed("sockaddr_un", errno))?;
        bind(fd.as_raw_fd(), &address).map_err(|errno| failed("bind", errno))?;
        let bound =
            Self { fd: wait_on(fd).map_err(|error| Error::file("epoll", path, error))?, path: path.into() };
        // Before anybody can connect: the mode that bind gave depends on umask.
        chown(path, None, access.group).map_err(|errno| failed("chown", errno))?;
        fs::set_permissions(path, fs::Permissions::from_mode(access.mode))
            .map_err(|error| Error::file("chmod", path, error))?;
        // On the listener, so that accepted sockets have it from the start: a
        // packet sent before it is set would not say who sent it.
        setsockopt(bound.fd.get_ref(), PassCred, &true)
            .map_err(|errno| failed("setsockopt SO_PASSCRED", errno))?;
        listen(bound.fd.get_ref(), Backlog::MAXALLOWABLE).map_err(|errno| failed("listen", errno))?;
        Ok(bound)
    }

    /// The next client.
    ///
    /// # Errors
    /// `accept4` failed.
    pub async fn accept(&self) -> io::Result<Connection> {
        let raw = self
            .fd
            .async_io(tokio::io::Interest::READABLE, |fd| {
                accept4(fd.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
                    .map_err(io::Error::from)
            })
            .await?;
        // SAFETY: accept4 just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Connection { fd: wait_on(fd)? })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::warn!("remove {}: {error}", self.path.display());
        }
    }
}

/// One packet.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes.
    pub bytes: BytesMut,
    /// Whether it was longer than there was room for.
    pub truncated: bool,
    /// Descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
    /// Whether more came along than were let in.
    pub descriptors_cut: bool,
    /// The process that sent it, by the kernel's word.
    pub sender: Option<UnixCredentials>,
}

/// A client's connection.
#[derive(Debug)]
pub struct Connection {
    fd: AsyncFd<OwnedFd>,
}

impl Connection {
    /// The next packet of at most `limit` bytes; `None` when the client left.
    ///
    /// # Errors
    /// `recvmsg` failed.
    pub async fn receive(&self, limit: usize) -> io::Result<Option<Packet>> {
        self.fd
            .async_io(tokio::io::Interest::READABLE, |fd| {
                receive(fd.as_raw_fd(), limit).map_err(io::Error::from)
            })
            .await
    }

    /// Sends one packet.
    ///
    /// # Errors
    /// `send` failed.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.fd
            .async_io(tokio::io::Interest::WRITABLE, |fd| {
                send(fd.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).map(drop).map_err(io::Error::from)
            })
            .await
    }
}

fn receive(fd: RawFd, limit: usize) -> nix::Result<Option<Packet>> {
    let mut bytes = BytesMut::zeroed(limit);
    let mut space = cmsg_space!([RawFd; MAX_DESCRIPTORS], UnixCredentials);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<UnixAddr>(fd, &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let (length, flags) = (message.bytes, message.flags);
    let (mut descriptors, mut sender) = (Vec::new(), None);
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::ScmRights(fds) => {
                // SAFETY: the kernel just installed these for us; each is owned
                // from here on, whatever becomes of the packet.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
            ControlMessageOwned::ScmCredentials(from) => sender = Some(from),
            _ => {}
        }
    }
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(Packet {
        bytes,
        truncated: flags.contains(MsgFlags::MSG_TRUNC),
        descriptors,
        descriptors_cut: flags.contains(MsgFlags::MSG_CTRUNC),
        sender,
    }))
}

/// Connects to a socket of this kind, blocking.
///
/// # Errors
/// Says which socket, and what to do.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let failed = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|errno| failed("socket", errno))?;
    let address = UnixAddr::new(path).map_err(|errno| failed("sockaddr_un", errno))?;
    nix::sys::socket::connect(fd.as_raw_fd(), &address).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ECONNREFUSED => {
            Error::syscall(format!("connect {} (is `memcg-monitor agent` running?)", path.display()), errno)
        }
        Errno::EACCES => Error::syscall(
            format!(
                "connect {} (the agent's options --socket-mode and --socket-group say who may)",
                path.display()
            ),
            errno,
        ),
        _ => failed("connect", errno),
    })?;
    Ok(fd)
}
