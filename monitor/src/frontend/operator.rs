//! The check whether a client is an operator.
//!
//! The kernel has admitted the process that opened the connection, by the socket's mode; but
//! roots of containers have user id 0 and `CAP_DAC_OVERRIDE`, by which any mode admits them,
//! and `CAP_SETUID`, by which they send requests as any user afterwards. So both the opener
//! and each packet's sender are checked.

use std::path::{Path, PathBuf};

use nix::{
    errno::Errno,
    sys::stat::{FileStat, stat},
};

use crate::{
    frontend::{
        accounting::{credentials_in, is_in_our_pid_namespace},
        credentials::Credentials,
        process::directory_of,
        refusal::{Refusal, RefusalReason},
        sender::Sender,
    },
    in_flight::OVERFLOW,
};

/// Outcomes of a look at one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OperatorVerdict {
    Operator,
    Stranger,
    /// The agent is short of what the look needs.
    Short,
}

/// The check on a connection's packets: all fail where its opener was no operator.
#[derive(Debug)]
pub(super) struct OperatorCheck {
    opener: OperatorVerdict,
    socket: Option<PathBuf>,
}

impl OperatorCheck {
    /// The check for packets on this opener's connection to the admin socket at `socket`.
    pub(super) fn of(opener: &Sender, socket: Option<&Path>) -> Self {
        Self { opener: verdict(opener, socket), socket: socket.map(Path::to_owned) }
    }

    /// Checks the sender by what it is; `EPERM` where it, or the opener, is no operator.
    fn lets(&self, sender: &Sender) -> Result<(), Refusal> {
        let sender = match self.opener {
            OperatorVerdict::Operator => verdict(sender, self.socket.as_deref()),
            other => other,
        };
        match sender {
            OperatorVerdict::Operator => Ok(()),
            OperatorVerdict::Stranger => Err(Refusal::new(Errno::EPERM, RefusalReason::NotOperator)),
            OperatorVerdict::Short => Err(Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors)),
        }
    }

    /// Checks a packet's sender.
    ///
    /// # Errors
    /// `EPERM` where it, or the opener, is no operator; `ESRCH` where it has ended, so that nobody knows
    /// any more whether it was one; `ENOMEM` where the agent is short of what the look needs.
    pub(super) fn check(&self, sender: Option<&Sender>) -> Result<(), Refusal> {
        let sender = sender.ok_or_else(|| Refusal::new(Errno::EPERM, RefusalReason::NotOperator))?;
        self.lets(sender).map_err(|refusal| {
            let pid = sender.pid();
            let is_stranger = refusal.errno == Errno::EPERM && pid != 0;
            if is_stranger && matches!(sender.is_there(), Ok(Some(false))) {
                Refusal::new(Errno::ESRCH, RefusalReason::ProcessGone { pid })
            } else {
                refusal
            }
        })
    }
}

/// The verdict on the process that sent a packet, or opened a connection. One outside the agent's
/// pid namespace has no entry in `/proc`, and one that has ended has none any more: both have the
/// kernel's ids, and no rights.
fn verdict(sender: &Sender, socket: Option<&Path>) -> OperatorVerdict {
    let directory = (sender.pid() != 0).then(|| directory_of(sender)).transpose();
    if let Err(Refusal { errno: Errno::ENOMEM, .. }) = directory {
        return OperatorVerdict::Short;
    }
    let directory = directory.ok().flatten();
    let known = directory.as_ref().and_then(|directory| credentials_in(directory, sender).ok());
    let credentials = known.unwrap_or_else(|| Credentials::stranger(sender.credentials()));
    let sees_us = directory.as_ref().is_some_and(is_in_our_pid_namespace);
    let socket = socket.and_then(|path| stat(path).ok());
    if credentials.is_administrator(sees_us) || is_let_in(&credentials, socket.as_ref()) {
        OperatorVerdict::Operator
    } else {
        OperatorVerdict::Stranger
    }
}

/// Whether the socket's owner, group and mode admit a user other than root. An id that the kernel
/// shows for whoever has none in the agent's user namespace is nobody's own.
fn is_let_in(credentials: &Credentials, socket: Option<&FileStat>) -> bool {
    let is_nobody = |id: u32| id == 0 || id == OVERFLOW;
    let is_other = !is_nobody(credentials.uid) && !is_nobody(credentials.real.0);
    let mut credentials = credentials.clone();
    credentials.groups.retain(|group| *group != OVERFLOW);
    for group in [&mut credentials.gid, &mut credentials.real.1] {
        *group = if *group == OVERFLOW { NO_GROUP } else { *group };
    }
    let may_write = |socket: &FileStat| credentials.may_write(socket.st_mode, socket.st_uid, socket.st_gid);
    is_other && socket.is_some_and(may_write)
}

/// A number that no group has (`(gid_t)-1`).
const NO_GROUP: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::{
        errno::Errno,
        sys::stat::{FileStat, stat},
    };

    use super::{OVERFLOW, OperatorCheck, is_let_in};
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
        let nobody = socket(0o660, OVERFLOW, OVERFLOW);
        assert!(!is_let_in(&user(OVERFLOW), Some(&nobody)), "of another user namespace");
        let by_group = Credentials { gid: OVERFLOW, real: (1000, OVERFLOW), ..user(1000) };
        assert!(!is_let_in(&by_group, Some(&nobody)));
    }

    #[test]
    fn a_process_outside_the_pid_namespace_has_no_rights_but_its_ids() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        std::fs::write(&path, "").expect("a file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
        let outside = |uid| Sender::with(libc::ucred { pid: 0, uid, gid: uid }.into(), None);
        let lets = |uid| OperatorCheck::of(&outside(uid), Some(&path)).lets(&outside(uid)).is_ok();
        assert!(!lets(0), "a container's root, by all that can be seen");
        assert!(lets(1000));
        assert!(!lets(OVERFLOW));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(!lets(1000), "let in by CAP_DAC_OVERRIDE");
    }

    #[test]
    fn without_a_descriptor_for_the_look_nothing_is_said_of_the_sender() {
        let short = Sender::with(
            libc::ucred { pid: std::process::id().cast_signed(), uid: 0, gid: 0 }.into(),
            Some(Err(Errno::EMFILE)),
        );
        let check = OperatorCheck::of(&short, None);
        let refusal = check.lets(&short).expect_err("nothing is known");
        assert_eq!(refusal.errno, Errno::ENOMEM, "{refusal}");
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
        assert!(OperatorCheck::of(&user, Some(&path)).lets(&user).is_ok());
        assert!(OperatorCheck::of(&user, Some(&path)).lets(&root).is_err());
        assert!(
            OperatorCheck::of(&root, Some(&path)).lets(&user).is_err(),
            "a container's root that calls itself 1000"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(OperatorCheck::of(&user, Some(&path)).lets(&user).is_err(), "let in by CAP_DAC_OVERRIDE");
        let errno =
            |sender| OperatorCheck::of(&user, Some(&path)).check(sender).expect_err("no operator").errno;
        let known = Sender::new(*user.credentials());
        assert_eq!(
            [errno(Some(&user)), errno(Some(&known)), errno(None)],
            [Errno::ESRCH, Errno::EPERM, Errno::EPERM]
        );
    }
}
