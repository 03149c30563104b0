//! A unix socket: listen, accept, receive a packet with its sender and descriptors. Shared by
//! the frontends that are sockets, of which one is a stream ([`stream`]).

pub(super) mod stream;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs, io,
    os::{
        fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
pub use monitor_sys::message::MAX_DESCRIPTORS;
use monitor_sys::{message, socket as unix_socket};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, getsockname, getsockopt,
        listen, send, setsockopt, socket,
        sockopt::{self, PassCred, PeerCredentials},
    },
    unistd::{Gid, chown},
};
use tokio::io::unix::AsyncFd;

pub use self::stream::StreamEvent;
use crate::{
    async_fd::wait_on,
    error::{Error, Result},
    frontend::{
        accounting::Accounting,
        connection_share::{ConnectionPlace, ConnectionShare, IdleConnection},
        deferred_close::{DeferredClose, UntrustedFd},
        error::SocketError,
        refused::brings_descriptors,
        sender::Sender,
    },
    registry::Account,
    socket_file,
};

/// Connections that an account but the privileged may have open at once, at each socket.
const MAX_CONNECTIONS: usize = 256;

/// Permissions of a listening socket.
#[derive(Clone, Debug)]
pub struct Access {
    /// Permission bits of the socket.
    pub mode: u32,
    /// Group of the socket; the agent's own when absent.
    pub group: Option<Gid>,
}

/// A listening socket; its file goes with it, if it was bound here.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    bound: Option<PathBuf>,
    /// Path of the socket, if it has one.
    path: Option<PathBuf>,
    kind: SockType,
    deferred_close: DeferredClose,
    accounting: Accounting,
    open: Rc<RefCell<HashMap<Account, usize>>>,
    share: ConnectionShare,
}

impl Listener {
    /// Binds `path`, for packets. The caller holds the agent's lock, so a socket that is
    /// there already was left by an agent that died.
    ///
    /// # Errors
    /// Names the call and the path.
    pub fn bind(path: &Path, access: &Access, deferred_close: &DeferredClose) -> Result<Self> {
        Self::bind_for(SockType::SeqPacket, path, access, deferred_close)
    }

    fn bind_for(
        kind: SockType,
        path: &Path,
        access: &Access,
        deferred_close: &DeferredClose,
    ) -> Result<Self> {
        let failed = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
        socket_file::remove_left(path, || SocketError::NotASocket { path: path.into() }.into())?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, kind, flags, None).map_err(|errno| failed("socket", errno))?;
        let address = UnixAddr::new(path).map_err(|errno| failed("sockaddr_un", errno))?;
        bind(fd.as_raw_fd(), &address).map_err(|errno| failed("bind", errno))?;
        let bound = Self {
            fd: wait_on(fd).map_err(|error| Error::epoll(path.display().to_string(), error))?,
            bound: Some(path.into()),
            path: Some(path.into()),
            kind,
            deferred_close: deferred_close.clone(),
            accounting: Accounting::default(),
            open: Rc::default(),
            share: ConnectionShare::default(),
        };
        // Before any client can connect: the mode that bind gave depends on umask.
        chown(path, None, access.group).map_err(|errno| failed("chown", errno))?;
        fs::set_permissions(path, fs::Permissions::from_mode(access.mode))
            .map_err(|error| Error::file("chmod", path, error))?;
        name_senders(bound.fd.get_ref(), kind).map_err(|errno| failed("setsockopt SO_PASSCRED", errno))?;
        listen(bound.fd.get_ref(), Backlog::MAXALLOWABLE).map_err(|errno| failed("listen", errno))?;
        Ok(bound)
    }

    /// The service manager's, if it handed one over, else bound here.
    ///
    /// # Errors
    /// As [`Listener::bind`] and [`Listener::adopt`].
    pub fn open(
        handed: Option<OwnedFd>,
        path: &Path,
        access: &Access,
        deferred_close: &DeferredClose,
    ) -> Result<Self> {
        match handed {
            Some(fd) => Self::adopt(fd, deferred_close),
            None => Self::bind(path, access, deferred_close),
        }
    }

    /// Takes over a socket that listens already. Its file, mode and owner are those
    /// of who made it, and stay with them.
    ///
    /// # Errors
    /// Names the call.
    pub fn adopt(fd: OwnedFd, deferred_close: &DeferredClose) -> Result<Self> {
        let failed = |call: &str, errno| Error::syscall(format!("{call} (a listener handed over)"), errno);
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_err(|errno| failed("fcntl F_GETFL", errno))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&fd, FcntlArg::F_SETFL(flags)).map_err(|errno| failed("fcntl F_SETFL", errno))?;
        // Units say PassCredentials=yes, so that this holds for who came before us.
        let kind = getsockopt(&fd, sockopt::SockType).map_err(|errno| failed("getsockopt SO_TYPE", errno))?;
        name_senders(&fd, kind).map_err(|errno| failed("setsockopt SO_PASSCRED", errno))?;
        let address: UnixAddr = getsockname(fd.as_raw_fd()).map_err(|errno| failed("getsockname", errno))?;
        let path = address.path().map(Path::to_owned);
        let fd = wait_on(fd).map_err(|error| Error::epoll("a listener handed over", error))?;
        let (accounting, open, share) = Default::default();
        let deferred_close = deferred_close.clone();
        Ok(Self { fd, bound: None, path, kind, deferred_close, accounting, open, share })
    }

    /// Counts connections, and what they bring, against these accounts, which `share` their places with
    /// those at other sockets.
    #[must_use]
    pub fn counted(mut self, accounting: &Accounting, share: &ConnectionShare) -> Self {
        self.accounting = accounting.clone();
        self.share = share.clone();
        self
    }

    /// Returns the path of its file, whose mode says which clients the kernel lets in.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Accepts the connection of the next client.
    pub async fn accept(&self) -> Connection {
        self.accept_from().await.0
    }

    /// Accepts the next connection, and returns the process that opened it, too.
    pub async fn accept_from(&self) -> (Connection, Sender) {
        loop {
            match self.admit().await {
                Ok(Some(accepted)) => return accepted,
                // A client that is refused in a loop holds up no other of this thread.
                Ok(None) => tokio::task::yield_now().await,
                Err(error) => {
                    // Out of descriptors, as a rule; connections wait in the backlog.
                    log::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// The next one; `None` for one that has as many as it may have.
    async fn admit(&self) -> io::Result<Option<(Connection, Sender)>> {
        let accept = |fd: &OwnedFd| unix_socket::accept(fd).map_err(io::Error::from);
        let fd = self.fd.async_io(tokio::io::Interest::READABLE, accept).await?;
        let peer = opener(&fd)?;
        let open = |account| self.open.borrow().get(&account).copied().unwrap_or(0);
        let has_all = |account| open(account) >= MAX_CONNECTIONS;
        let is_full = |account| has_all(account) || !self.share.has_room(account);
        let account = self.accounting.of_connection(&peer, is_full);
        let has_all = !account.is_unlimited() && has_all(account);
        if has_all || !self.share.find_room(account).await {
            // What was sent already may bring descriptors of any kind. Others are closed here:
            // who connects in a loop fills no queue behind one descriptor that hangs.
            let brings = match self.kind {
                SockType::Stream => stream::brings_descriptors(&fd),
                _ => brings_descriptors(&fd).await,
            };
            if brings {
                let refused = self.deferred_close.untrusted(account, fd);
                // The kernel hands connections out in order: where all places for those that wait to be
                // closed are taken, this socket accepts no more, and the agent goes on otherwise.
                self.deferred_close.room_in_share(account).await;
                drop(refused);
            }
            return Ok(None);
        }
        self.connection(fd, peer, account).map(Some)
    }

    /// The connection of a socket, which counts from now on.
    fn connection(&self, fd: OwnedFd, peer: Sender, account: Account) -> io::Result<(Connection, Sender)> {
        let (fd, user) = (Some(wait_on(fd)?), peer.uid());
        *self.open.borrow_mut().entry(account).or_default() += 1;
        let (deferred_close, open) = (self.deferred_close.clone(), Rc::clone(&self.open));
        let (over, place) = (Cell::new(false), self.share.take(account));
        Ok((Connection { fd, user, account, over, deferred_close, open, place }, peer))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(path) = &self.bound else { return };
        if let Err(error) = fs::remove_file(path) {
            log::warn!("remove {}: {error}", path.display());
        }
    }
}

/// A packet, with its sender and its descriptors.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of the packet.
    pub bytes: BytesMut,
    /// Whether it was longer than there was room for.
    pub truncated: bool,
    /// Descriptors that came along.
    pub descriptors: Vec<UntrustedFd>,
    /// Whether more came along than were let in.
    pub descriptors_cut: bool,
    /// The process that sent it.
    pub sender: Option<Sender>,
    /// Account that the connection, and what came by it, counts against.
    pub account: Account,
}

/// A connection of a client.
#[derive(Debug)]
pub struct Connection {
    /// The socket; empty only while this is dropped.
    fd: Option<AsyncFd<OwnedFd>>,
    user: u32,
    /// Account that it counts against, as it was when it was opened.
    account: Account,
    /// The client has left, and all that it sent was taken.
    over: Cell<bool>,
    deferred_close: DeferredClose,
    open: Rc<RefCell<HashMap<Account, usize>>>,
    place: ConnectionPlace,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.open.borrow_mut();
        if let Some(count) = open.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.account);
            }
        }
        // Unread packets may bring descriptors, which are closed with it.
        if let Some(fd) = self.fd.take().filter(|_| !self.over.get()) {
            self.deferred_close.close(self.account, fd.into_inner());
        }
    }
}

impl Connection {
    /// The next packet of at most `limit` bytes; `None` when the client left.
    ///
    /// # Errors
    /// `recvmsg` failed.
    pub async fn receive(&self, limit: usize) -> io::Result<Option<Packet>> {
        loop {
            self.ready().await?;
            if let Some(packet) = self.receive_now(limit)? {
                return Ok(packet);
            }
        }
    }

    /// Waits until there may be something to receive, and room for what it brings.
    ///
    /// # Errors
    /// The descriptor cannot be waited for.
    pub async fn ready(&self) -> io::Result<()> {
        self.deferred_close.room(self.account).await;
        self.fd()?.readable().await.map(drop)
    }

    /// Returns what [`Connection::receive`] does, without waiting. `None` where there is nothing yet,
    /// or, once more, no room: all the account's connections may have waited for one packet's.
    ///
    /// # Errors
    /// As [`Connection::receive`].
    pub fn receive_now(&self, limit: usize) -> io::Result<Option<Option<Packet>>> {
        if !self.deferred_close.has_room(self.account) {
            return Ok(None);
        }
        let received = self.fd()?.try_io(tokio::io::Interest::READABLE, |fd| {
            let packet = receive(fd.as_fd(), limit, self)?;
            // A packet brings its sender, were it empty otherwise: the end has none.
            self.over.set(packet.sender.is_none());
            Ok(Some(packet).filter(|packet| !packet.bytes.is_empty() || !packet.descriptors.is_empty()))
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            received => received.map(Some),
        }
    }

    /// The user who opened it, as it was then.
    #[must_use]
    pub const fn user(&self) -> u32 {
        self.user
    }

    /// Account that its requests count against.
    #[must_use]
    pub const fn account(&self) -> Account {
        self.account
    }

    /// Offers the connection as one that gives way, until the value is dropped.
    #[must_use]
    pub fn idle(&self) -> IdleConnection {
        self.place.idle()
    }

    fn fd(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        self.fd.as_ref().ok_or_else(|| Errno::EBADF.into())
    }

    /// Sends the bytes as one packet.
    ///
    /// # Errors
    /// `send` failed.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.fd()?
            .async_io(tokio::io::Interest::WRITABLE, |fd| {
                send(fd.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).map(drop).map_err(io::Error::from)
            })
            .await
    }
}

/// The process that opened a connection.
fn opener(socket: &OwnedFd) -> io::Result<Sender> {
    Ok(Sender::with(getsockopt(socket, PeerCredentials)?, peer_pidfd(socket)))
}

/// Makes each packet say who sent it. Set on the listener, so that accepted sockets have it from
/// the start: a packet sent before it is set would not. A stream says it once, for all of it.
fn name_senders(listener: &OwnedFd, kind: SockType) -> nix::Result<()> {
    let are_packets = kind == SockType::SeqPacket;
    setsockopt(listener, PassCred, &are_packets)?;
    if are_packets {
        pass_pidfd(listener);
    }
    Ok(())
}

/// From Linux 6.5 on the kernel reports which process opened a connection; `None` before.
fn peer_pidfd(socket: &OwnedFd) -> Option<nix::Result<OwnedFd>> {
    match unix_socket::peer_pidfd(socket) {
        Err(Errno::ENOPROTOOPT) => None,
        pidfd => Some(pidfd),
    }
}

/// Requests the pidfd of each packet's sender, which the kernel gives from Linux 6.5 on.
/// Set on a listener: an accepted connection has the flag from the start (`unix_sock_inherit_flags`).
fn pass_pidfd(socket: &OwnedFd) {
    if let Err(errno) = unix_socket::set_pass_pidfd(socket, true) {
        log::debug!("setsockopt SO_PASSPIDFD: {errno}; senders are known by their number");
    }
}

/// Receives a packet with room for all that one message can bring, so that no descriptor is ever
/// cut off unseen.
fn receive(fd: BorrowedFd<'_>, limit: usize, from: &Connection) -> nix::Result<Packet> {
    let mut bytes = BytesMut::zeroed(limit);
    let message = message::receive(fd, &mut bytes, MAX_DESCRIPTORS, MsgFlags::empty())?;
    bytes.truncate(message.length);
    let (pidfd, untrusted) = (message.pidfd, |fd| from.deferred_close.untrusted(from.account, fd));
    Ok(Packet {
        bytes,
        truncated: message.is_truncated,
        descriptors: message.descriptors.into_iter().map(untrusted).collect(),
        descriptors_cut: message.is_ancillary_truncated,
        sender: message.sender.map(|credentials| Sender::with(credentials, pidfd)),
        account: from.account,
    })
}

#[cfg(test)]
mod tests;
