//! The agent's messages to its parent, in the protocol of systemd's `sd_notify(3)`.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
};

use monitor_sys::message;
use nix::{
    sys::socket::{MsgFlags, setsockopt, sockopt::PassCred},
    unistd::Pid,
};

use crate::error::{Error, Result};

/// Most descriptors in a message.
const FEW: usize = 16;

/// One datagram of the agent.
#[derive(Debug, Default)]
pub struct Message {
    /// The descriptors are to be kept.
    pub store: bool,
    /// Descriptors of this name are no longer to be kept.
    pub forget: bool,
    /// Name of the descriptors.
    pub name: Option<String>,
    /// The agent is ready.
    pub ready: bool,
    /// Lines that are passed on to the service manager.
    pub rest: String,
    /// Descriptors sent along with the datagram.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    fn parse(text: &str) -> Self {
        let mut message = Self::default();
        for line in text.lines() {
            match line.split_once('=') {
                Some(("FDSTORE", value)) => message.store = value == "1",
                Some(("FDSTOREREMOVE", value)) => message.forget = value == "1",
                Some(("FDNAME", name)) => message.name = Some(name.to_owned()),
                // No kept descriptor is polled here; and this process is the main one.
                Some(("FDPOLL" | "MAINPID" | "BARRIER", _)) => {}
                _ => {
                    message.ready |= line == "READY=1";
                    message.rest.push_str(line);
                    message.rest.push('\n');
                }
            }
        }
        message
    }
}

/// The socket that messages arrive at; only the agent's are read.
#[derive(Debug)]
pub struct Mailbox {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Mailbox {
    /// Binds the socket at `path`, where a killed supervisor may have left its own.
    ///
    /// # Errors
    /// The error names the call and the path.
    pub fn new(path: PathBuf) -> Result<Self> {
        let failed = |error: io::Error| Error::file("bind", &path, error);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)
                .map_err(|error| Error::file("make the directory", directory, error))?;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let socket = UnixDatagram::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        setsockopt(&socket, PassCred, &true)
            .map_err(|errno| Error::syscall("setsockopt SO_PASSCRED", errno))?;
        Ok(Self { socket, path })
    }

    /// Path of the socket, for `NOTIFY_SOCKET`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Receives the next message of process `from`; messages of others are dropped.
    pub fn receive(&self, from: Option<Pid>) -> Option<Message> {
        loop {
            let mut bytes = [0; 4096];
            let received =
                message::receive(self.socket.as_fd(), &mut bytes, FEW, MsgFlags::MSG_DONTWAIT).ok()?;
            let sender = received.sender.map(|sender| sender.pid());
            if sender.is_none() || sender != from.map(Pid::as_raw) {
                log::debug!("a notification of process {sender:?}, which is not the agent");
                continue;
            }
            let text = String::from_utf8_lossy(&bytes[..received.length]);
            return Some(Message { descriptors: received.descriptors, ..Message::parse(&text) });
        }
    }
}

impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::Message;

    #[test]
    fn what_is_the_managers_is_passed_on() {
        let message = Message::parse("READY=1\nSTATUS=watching\nMAINPID=7\n");
        assert!(message.ready && !message.store && !message.forget);
        assert_eq!(message.rest, "READY=1\nSTATUS=watching\n");
        let message = Message::parse("FDSTORE=1\nFDNAME=bag-3\nFDPOLL=0");
        assert!(message.store && !message.forget);
        assert_eq!((message.name.as_deref(), message.rest.as_str()), (Some("bag-3"), ""));
        let message = Message::parse("FDSTOREREMOVE=1\nFDNAME=state");
        assert!(message.forget && !message.store);
    }
}
