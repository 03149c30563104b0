//! The check whether a client is an operator.
//!
//! The kernel has admitted the process that opened the connection, by the socket's mode; but
//! roots of containers have user id 0 and `CAP_DAC_OVERRIDE`, by which any mode admits them,
//! and `CAP_SETUID`, by which they send requests as any user afterwards. So both the opener
//! and each packet's sender are checked.

use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, stat};

use crate::frontend::{
    accounting::{credentials_in, is_in_our_pid_namespace},
    credentials::Credentials,
    process::directory_of,
    sender::Sender,
};

/// The check on a connection's packets: all fail where its opener was no operator.
#[derive(Debug)]
pub(super) struct OperatorCheck {
    is_open: bool,
    socket: Option<PathBuf>,
}

impl OperatorCheck {
    /// The check for packets on this opener's connection to the admin socket at `socket`.
    pub(super) fn of(opener: &Sender, socket: Option<&Path>) -> Self {
        Self { is_open: is_operator(opener, socket), socket: socket.map(Path::to_owned) }
    }

    /// Whether this sender of a packet may send requests.
    pub(super) fn lets(&self, sender: &Sender) -> bool {
        self.is_open && is_operator(sender, self.socket.as_deref())
    }
}

/// Whether the process that sent a packet, or opened a connection, may send requests to the
/// admin socket. One outside the agent's pid namespace has no entry in `/proc`; the kernel has
/// admitted it, and that counts.
fn is_operator(sender: &Sender, socket: Option<&Path>) -> bool {
    if sender.pid() == 0 {
        return true;
    }
    let directory = directory_of(sender).ok();
    let known = directory.as_ref().and_then(|directory| credentials_in(directory, sender).ok());
    // A process that has ended already has the kernel's ids, and no rights.
    let credentials = known.unwrap_or_else(|| Credentials::stranger(sender.credentials()));
    let sees_us = directory.as_ref().is_some_and(is_in_our_pid_namespace);
    let socket = socket.and_then(|path| stat(path).ok());
    credentials.is_administrator(sees_us) || is_let_in(&credentials, socket.as_ref())
}

/// Whether the socket's owner, group and mode admit a user other than root.
fn is_let_in(credentials: &Credentials, socket: Option<&FileStat>) -> bool {
    let is_root = credentials.uid == 0 || credentials.real.0 == 0;
    let may_write = |socket: &FileStat| credentials.may_write(socket.st_mode, socket.st_uid, socket.st_gid);
    !is_root && socket.is_some_and(may_write)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::{
        errno::Errno,
        sys::stat::{FileStat, stat},
    };

    use super::{OperatorCheck, is_let_in};
    use crate::frontend::{credentials::Credentials, sender::Sender};

    fn socket(mode: u32, owner: u32, group: u32) -> FileStat {
        let mut socket = stat("/").expect("a file");
        (socket.st_mode, socket.st_uid, socket.st_gid) = (mode, owner, group);
        socket
    }

    #[test]
    fn another_user_id_is_no_operators() {
        let user = |uid| Credentials { uid, gid: uid, real: (uid, uid), ..Credentials::default() };
        let ours = socket(0o600, 0, 0);
        assert!(!is_let_in(&user(0), Some(&ours)), "a container's root");
        assert!(!is_let_in(&user(1000), Some(&ours)), "the same after setresuid");
        let by_group = Credentials { groups: vec![7], ..user(1000) };
        assert!(is_let_in(&by_group, Some(&socket(0o660, 0, 7))));
        assert!(!is_let_in(&user(1000), Some(&socket(0o660, 0, 7))));
        assert!(is_let_in(&user(900), Some(&socket(0o600, 900, 900))), "the agent's own user");
        assert!(is_let_in(&user(1000), Some(&socket(0o666, 0, 0))));
        assert!(!is_let_in(&user(0), Some(&socket(0o666, 0, 0))));
        assert!(!is_let_in(&user(1000), None), "a socket that is not to be seen");
    }

    /// Both processes have ended, so each has the kernel's ids, without rights.
    #[test]
    fn the_opener_is_looked_at_beside_the_sender() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        std::fs::write(&path, "").expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
        let gone = |uid| {
            let credentials = libc::ucred { pid: i32::MAX, uid, gid: uid }.into();
            Sender::with(credentials, Some(Err(Errno::ESRCH)))
        };
        let (root, user) = (gone(0), gone(1000));
        assert!(OperatorCheck::of(&user, Some(&path)).lets(&user));
        assert!(!OperatorCheck::of(&user, Some(&path)).lets(&root));
        assert!(
            !OperatorCheck::of(&root, Some(&path)).lets(&user),
            "a container's root that calls itself 1000"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(!OperatorCheck::of(&user, Some(&path)).lets(&user), "let in by CAP_DAC_OVERRIDE");
    }
}
