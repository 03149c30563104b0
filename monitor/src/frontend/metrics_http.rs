//! The frontend for scrapers: `GET /metrics` over HTTP/1.1, on a unix socket or on a loopback
//! address. It is read only; no request changes anything.

use std::{
    cell::RefCell,
    collections::VecDeque,
    convert::Infallible,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixStream as BlockingStream},
    },
    path::{Path, PathBuf},
    rc::Rc,
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
    unistd::chown,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

pub use crate::frontend::collector::Collector;
use crate::{
    error::{Error, Result},
    frontend::{
        collector::Page,
        deferred_close::DeferredClose,
        error::MetricsError,
        metrics_scraper::ScraperStream,
        seqpacket::{Access, stream::brings_descriptors},
    },
    metrics::{Selection, text},
    registry::Account,
    socket_file,
};

/// Most connections at once. For one more, the oldest is dropped of the scraper that has most.
const CONNECTIONS: usize = 16;

/// Longest time from connecting to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest time until the request's head is there.
const HEAD_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes and lines of the longest head: hyper's least, which is more than scrapers send.
const HEAD: (usize, usize) = (8192, 64);

/// Options of the metrics: the address, and the groups shown.
#[derive(Clone, Debug)]
pub struct MetricsOptions {
    /// Address that metrics are served at.
    pub address: Address,
    /// Choice of the groups shown.
    pub selection: Selection,
}

/// An address that metrics are served at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket, with the mode and group of the registration socket.
    Unix(PathBuf),
    /// An address; one that is not loopback's has to be asked for, since there is no password.
    Tcp(SocketAddr),
}

impl Address {
    /// Path of the unix socket, if it is one.
    #[must_use]
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp(_) => None,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') {
                Ok(Self::Unix(path.into()))
            } else {
                Err("a unix socket's path begins with /: unix:/run/memcg-monitor/metrics.sock".into())
            };
        }
        let usage = "unix:/PATH, 127.0.0.1:PORT or [::1]:PORT; with --metrics-exposed ADDRESS:PORT";
        text.parse().map(Self::Tcp).map_err(|_| usage.into())
    }
}

impl Address {
    /// Refuses what others than this host reach.
    ///
    /// # Errors
    /// The text says what to give instead.
    pub fn on_this_host(&self) -> Result<(), String> {
        match self {
            Self::Tcp(address) if !address.ip().is_loopback() => Err(format!(
                "{} is no loopback address, and metrics have no password: 127.0.0.1:PORT, [::1]:PORT, unix:/PATH behind a proxy of yours, or --metrics-exposed where a NetworkPolicy or firewall decides who connects",
                address.ip()
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
        }
    }
}

#[derive(Debug)]
enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener),
}

/// The file of a unix socket, removed with this value.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The bound listener, ready to serve.
#[derive(Debug)]
pub struct MetricsServer {
    listener: Listener,
    address: Address,
    selection: Selection,
}

impl MetricsServer {
    /// Binds the address and listens.
    ///
    /// # Errors
    /// The error names the call and the address.
    pub fn open(options: &MetricsOptions, access: &Access) -> Result<Self> {
        let MetricsOptions { mut address, selection } = options.clone();
        let listener = match &mut address {
            Address::Unix(path) => {
                let (listener, file) = bind_unix(path, access)?;
                Listener::Unix { listener, _file: file }
            }
            Address::Tcp(at) => {
                let address = *at;
                let failed = |call| move |error| MetricsError::Address { call, address, error };
                let bind = std::net::TcpListener::bind::<SocketAddr>;
                let listener = bind_tcp(address, bind).map_err(failed("bind"))?;
                listener.set_nonblocking(true).map_err(failed("fcntl"))?;
                // Port 0 is a port of the kernel's choice.
                *at = listener.local_addr().map_err(failed("getsockname"))?;
                let listener = TcpListener::from_std(listener).map_err(|error| Error::epoll("TCP", error))?;
                Listener::Tcp(listener)
            }
        };
        Ok(Self { listener, address, selection })
    }

    /// The address that is served, with the port that was bound.
    #[must_use]
    pub const fn address(&self) -> &Address {
        &self.address
    }

    /// Serves scrapers until the task is dropped, which ends their connections, too.
    pub async fn serve(self, collector: Collector, deferred_close: DeferredClose) {
        let (page, gathering) = collector.start(self.selection);
        let page = Rc::new(page);
        tokio::select! {
            () = gathering => {}
            () = accept(&self.listener, &page, &deferred_close) => {}
        }
    }
}

async fn accept(listener: &Listener, page: &Rc<Page>, deferred_close: &DeferredClose) {
    let connections = RefCell::new(Connections::default());
    loop {
        let accepted = match listener {
            Listener::Unix { listener, .. } => match listener.accept().await {
                Ok((stream, _)) => admit(stream, &connections, page, deferred_close).await,
                Err(error) => Err(error),
            },
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                connections.borrow_mut().add(Scraper::At(peer.ip()), stream, page);
            }),
        };
        if let Err(error) = accepted {
            log::warn!("accept on the metrics socket: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Serves a connection at the unix socket. Where descriptors of its user hang, so that no more are taken,
/// it is dropped.
async fn admit(
    stream: UnixStream,
    connections: &RefCell<Connections>,
    page: &Rc<Page>,
    deferred_close: &DeferredClose,
) -> io::Result<()> {
    let account = Account::User(stream.peer_cred()?.uid());
    if !deferred_close.has_room(account) {
        refuse(stream.into_std()?.into(), account, deferred_close).await;
        return Ok(());
    }
    let stream = ScraperStream::new(stream, account, deferred_close.clone());
    connections.borrow_mut().add(Scraper::Of(account), stream, page);
    Ok(())
}

/// Drops a connection of an account of whose descriptors no more are taken.
async fn refuse(refused: OwnedFd, account: Account, deferred_close: &DeferredClose) {
    if brings_descriptors(&refused) {
        // Closing it may wait, too. Others connect behind it: they wait while the account has its share of
        // all places, as at the other sockets, and not for each descriptor of the account's that hangs.
        deferred_close.room_in_share(account).await;
        deferred_close.close(account, refused);
    }
}

/// The one that scrapes: connections are shared between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scraper {
    /// A user, at the unix socket.
    Of(Account),
    /// A host, at an address; users of one host are not told apart.
    At(IpAddr),
}

/// Connections that are being served; they end with this value.
#[derive(Debug, Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// Handles of the tasks, oldest first.
    handles: VecDeque<(Scraper, AbortHandle)>,
}

impl Connections {
    fn add(
        &mut self,
        scraper: Scraper,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        page: &Rc<Page>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        self.handles.retain(|(_, handle)| !handle.is_finished());
        if self.handles.len() >= CONNECTIONS {
            let scrapers: Vec<_> = self.handles.iter().map(|(scraper, _)| *scraper).collect();
            if let Some((_, handle)) = self.handles.remove(to_drop(&scrapers, scraper)) {
                handle.abort();
            }
        }
        let page = Rc::clone(page);
        self.handles.push_back((scraper, self.tasks.spawn_local(converse(stream, page))));
    }
}

/// The place of the connection to drop for one more of `next`: the oldest of the scraper that has most,
/// that one counted. So nobody is dropped for those who have more.
fn to_drop(scrapers: &[Scraper], next: Scraper) -> usize {
    let held =
        |one: &Scraper| scrapers.iter().filter(|other| *other == one).count() + usize::from(*one == next);
    let most = scrapers.iter().map(held).max();
    scrapers.iter().position(|one| Some(held(one)) == most).unwrap_or(0)
}

/// Serves one request with its answer.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, page: Rc<Page>) {
    let service = service_fn(move |request| {
        let page = Rc::clone(&page);
        async move { Ok::<_, Infallible>(answer(&request, &page).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD.0)
        .max_headers(HEAD.1)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(PATIENCE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::debug!("metrics connection: {error}"),
        Err(_) => log::debug!("metrics connection: not done in time"),
    }
}

async fn answer(request: &Request<Incoming>, page: &Page) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics can be read only\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let Some(texts) = page.get().await else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the numbers could not be gathered\n");
    };
    let accepted = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (body, kind) = if accepted.into_iter().any(|value| value.contains(text::OPEN_METRICS)) {
        (texts.open_metrics, text::OPEN_METRICS_TYPE)
    } else {
        (texts.prometheus, text::PROMETHEUS_TYPE)
    };
    let mut response = Response::new(Full::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Binds an address. `[::]` is every address of the host, IPv4 included (`net.ipv6.bindv6only` is 0 by
/// default), so a host whose kernel has no IPv6 serves IPv4 alone.
fn bind_tcp<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    match bind(address) {
        Err(error)
            if address.ip() == Ipv6Addr::UNSPECIFIED && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

/// Binds a unix socket. One without a listener was left by an agent that died, and is
/// replaced.
fn bind_unix(path: &Path, access: &Access) -> Result<(UnixListener, SocketFile)> {
    let other = || MetricsError::NotASocket { path: path.into() }.into();
    if socket_file::is_there(path, other)? && BlockingStream::connect(path).is_ok() {
        return Err(MetricsError::InUse { path: path.into() }.into());
    }
    socket_file::remove_left(path, other)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| Error::file("make the directory", directory, error))?;
    }
    let failed = |call: &str, errno| Error::syscall(format!("{call} {}", path.display()), errno);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| failed("socket", errno))?;
    let address = UnixAddr::new(path).map_err(|errno| failed("sockaddr_un", errno))?;
    bind(fd.as_raw_fd(), &address).map_err(|errno| failed("bind", errno))?;
    let file = SocketFile(path.into());
    // Before any client can connect.
    chown(path, None, access.group).map_err(|errno| failed("chown", errno))?;
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode))
        .map_err(|error| Error::file("chmod", path, error))?;
    listen(&fd, Backlog::MAXCONN).map_err(|errno| failed("listen", errno))?;
    let listener =
        UnixListener::from_std(fd.into()).map_err(|error| Error::epoll(path.display().to_string(), error))?;
    Ok((listener, file))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{self, IoSlice},
        net::{SocketAddr, TcpListener, TcpStream},
        os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
        path::Path,
        pin::pin,
        task::{Context, Waker},
    };

    use nix::{
        sys::socket::{ControlMessage, MsgFlags, sendmsg},
        unistd::pipe,
    };

    use super::{
        Access, Account, Address, BlockingStream, CONNECTIONS, DeferredClose, Scraper, bind_tcp, bind_unix,
        refuse, to_drop,
    };

    #[test]
    fn all_addresses_are_those_of_ipv4_too_and_they_alone_without_ipv6() {
        let every: SocketAddr = "[::]:0".parse().expect("an address");
        let bound = bind_tcp(every, TcpListener::bind::<SocketAddr>).expect("a port");
        let port = bound.local_addr().expect("it has one").port();
        TcpStream::connect(("127.0.0.1", port)).expect("a listener");
        let without = |address: SocketAddr| {
            let lacks = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
            if address.is_ipv6() { Err(lacks) } else { Ok(address.to_string()) }
        };
        let bind = |text: &str| bind_tcp(text.parse().expect("an address"), without).ok();
        assert_eq!(bind("[::]:9101").as_deref(), Some("0.0.0.0:9101"));
        assert_eq!(bind("[::1]:9101"), None, "it asks for more than loopback");
    }

    #[test]
    fn a_user_whose_descriptors_hang_holds_up_nobody_behind_it() {
        let flood = Account::User(1);
        // Without threads: nothing is ever closed.
        let closer = DeferredClose::idle();
        while closer.has_room(flood) {
            closer.close(flood, pipe().expect("a pipe").0);
        }
        let held = closer.waiting();
        let (ours, theirs) = BlockingStream::pair().expect("a pair");
        let (foreign, _) = pipe().expect("a pipe");
        let (bytes, fds) = ([IoSlice::new(b"GET /")], [foreign.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(theirs.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).expect("room");
        let refused = pin!(refuse(ours.into(), flood, &closer));
        assert!(refused.poll(&mut Context::from_waker(Waker::noop())).is_ready(), "the next is accepted");
        assert_eq!(closer.waiting(), held + 1);
    }

    #[test]
    fn the_one_with_most_connections_loses_its_oldest() {
        let [flood, other] = [1, 2].map(|uid| Scraper::Of(Account::User(uid)));
        let mut held = vec![other];
        held.resize(CONNECTIONS, flood);
        for _ in 0..100 {
            let place = to_drop(&held, flood);
            assert_eq!(held.remove(place), flood);
            held.push(flood);
        }
        assert_eq!(to_drop(&held, other), 1);
        // With one each, the oldest has had its time.
        let each: Vec<_> = (0..16).map(|uid| Scraper::Of(Account::User(uid))).collect();
        assert_eq!((to_drop(&each, Scraper::Of(Account::User(99))), to_drop(&[], flood)), (0, 0));
    }

    fn bound(path: &Path) -> Result<(), String> {
        let access = Access { mode: 0o640, group: None };
        bind_unix(path, &access).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_socket_without_a_listener_is_replaced() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        let _inside = runtime.enter();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("new/metrics.sock");
        let access = Access { mode: 0o640, group: None };
        let first = bind_unix(&path, &access).expect("the directory is made");
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o640);
        assert!(bound(&path).expect_err("another program answers").contains("another program serves"));
        drop(first);
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("a killed agent's"));
        bound(&path).expect("no program answers");
        fs::write(&path, "precious").expect("a file");
        assert!(bound(&path).expect_err("in the way").contains("not a socket"));
        assert_eq!(fs::read_to_string(&path).expect("it stays"), "precious");
    }

    #[test]
    fn only_loopback_and_absolute_paths_are_addresses() {
        for good in ["unix:/run/m.sock", "127.0.0.1:0", "127.9.9.9:9101", "[::1]:9101"] {
            let address: Address = good.parse().expect(good);
            assert_eq!(address.on_this_host(), Ok(()), "{good}");
        }
        for bad in ["unix:m.sock", "localhost:1", "127.0.0.1", "/run/m.sock", ":9101", ""] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
        for open in ["0.0.0.0:9101", "[::]:9101", "192.0.2.1:9101"] {
            let address: Address = open.parse().expect(open);
            let why = address.on_this_host().expect_err(open);
            assert!(why.contains("loopback") && why.contains("--metrics-exposed"), "{why}");
        }
    }
}
