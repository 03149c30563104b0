//! A program in an agent's place, for tests, which choose its answers.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use monitor_client::wire::MAX_REQUEST;
use monitor_sys::{
    message::{self, MAX_DESCRIPTORS},
    socket::accept,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{
        AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, send, socket,
    },
};
use tempfile::TempDir;

/// A socket at which a thread answers, for as long as the program runs.
pub struct FakeAgent {
    directory: TempDir,
    connections: Arc<AtomicUsize>,
}

/// A connection that has sent its request.
pub struct FakeConnection(OwnedFd);

impl FakeConnection {
    pub fn send(&self, packet: &str) {
        // The client may have left.
        let _ = send(self.0.as_raw_fd(), packet.as_bytes(), MsgFlags::MSG_NOSIGNAL);
    }
}

impl FakeAgent {
    /// Starts one that serves its connections one after the other, by their numbers from 0 on: each ends
    /// when `serve` returns.
    pub fn start(serve: impl Fn(usize, &FakeConnection) + Send + 'static) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let connections = Arc::new(AtomicUsize::new(0));
        let agent = Self { directory, connections: Arc::clone(&connections) };
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None);
        let listener = listener.expect("a socket");
        let address = UnixAddr::new(&agent.socket()).expect("an address");
        bind(listener.as_raw_fd(), &address).expect("bind");
        listen(&listener, Backlog::MAXCONN).expect("listen");
        thread::spawn(move || {
            while let Ok(connection) = accept(&listener) {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                // It is made for a program that polls.
                fcntl(&connection, FcntlArg::F_SETFL(OFlag::empty())).expect("fcntl");
                let mut request = [0; MAX_REQUEST];
                let _ =
                    message::receive(connection.as_fd(), &mut request, MAX_DESCRIPTORS, MsgFlags::empty());
                serve(number, &FakeConnection(connection));
            }
        });
        agent
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}
