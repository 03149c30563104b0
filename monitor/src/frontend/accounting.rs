//! Accounting: a client's registrations count against its user, or its cgroup, or nothing
//! where it is privileged.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use nix::{errno::Errno, fcntl::readlinkat, sys::stat::FileStat};

use crate::{
    cgroup::{
        Hierarchy, Version,
        handle::{Directories, Directory},
    },
    error::{Error, Result},
    frontend::{
        credentials::Credentials,
        error::AccountingError,
        process::directory_of,
        refusal::{Refusal, RefusalReason},
        sender::Sender,
    },
    procfs::{self, status},
    registry::Account,
};

/// Owner of the quota that clients' registrations, connections and descriptors count against.
#[derive(Clone, Debug, Default)]
pub enum Accounting {
    /// Each user's quota, by the user id of a packet or a write.
    #[default]
    ByUser,
    /// Each memory cgroup's quota.
    ByGroup(Arc<Groups>),
}

impl Accounting {
    /// The account of a process, by its directory in `/proc`.
    pub(super) fn account(&self, directory: &OwnedFd, uid: u32) -> Account {
        match self {
            Self::ByUser => Account::User(uid),
            Self::ByGroup(groups) => groups.account(directory),
        }
    }

    /// The account of a sender, whether its `/proc` can be read or not.
    pub(super) fn of_sender(&self, sender: &Sender) -> Account {
        match self {
            Self::ByUser => Account::User(sender.uid()),
            Self::ByGroup(groups) => {
                directory_of(sender).map_or(Account::Unidentified, |directory| groups.account(&directory))
            }
        }
    }

    /// The account of a packet's sender. One that ended before its `/proc` could be read counts
    /// against the connection's opener, lest it has a second quota, the one shared by all
    /// unidentified senders.
    pub(super) fn of_packet(&self, sender: &Sender, opener: Account) -> Account {
        identified_by(self.of_sender(sender), opener)
    }

    /// The account of the process that opened a connection. Whether it is privileged is looked
    /// up for root, and where by `is_full` the account has as many connections as it may have.
    pub(super) fn of_connection(&self, peer: &Sender, is_full: impl Fn(Account) -> bool) -> Account {
        let account = self.of_sender(peer);
        let is_privileged = || credentials_of(peer).is_ok_and(|credentials| credentials.is_privileged());
        if (peer.uid() == 0 || is_full(account)) && is_privileged() { Account::Privileged } else { account }
    }
}

/// The opener's account, if it has a quota, in place of an unidentified sender's.
const fn identified_by(sender: Account, opener: Account) -> Account {
    match (sender, opener) {
        (Account::Unidentified, Account::User(_) | Account::Group(_)) => opener,
        _ => sender,
    }
}

/// The credentials of a sender.
///
/// # Errors
/// `ESRCH` when its `/proc` cannot be read: another pid namespace, or ended already.
pub(super) fn credentials_of(sender: &Sender) -> Result<Credentials, Refusal> {
    credentials_in(&directory_of(sender)?, sender)
}

/// The credentials of a sender, from its directory in `/proc`.
pub(super) fn credentials_in(directory: &OwnedFd, sender: &Sender) -> Result<Credentials, Refusal> {
    let status = status(directory).map_err(|errno| Refusal::new(errno, RefusalReason::SenderGone))?;
    Ok(Credentials::from_status(&status, sender.credentials(), is_in_our_user_namespace(directory)))
}

/// Whether the process of this directory in `/proc` is in the agent's user namespace: only
/// there its capabilities and its user ids mean what they mean to the agent.
pub(super) fn is_in_our_user_namespace(directory: &OwnedFd) -> bool {
    is_in_our(directory, "ns/user")
}

/// Whether the process of this directory in `/proc` is in the agent's pid namespace, where
/// the agent is visible to it.
pub(super) fn is_in_our_pid_namespace(directory: &OwnedFd) -> bool {
    is_in_our(directory, "ns/pid")
}

fn is_in_our(directory: &OwnedFd, namespace: &str) -> bool {
    let ours = fs::read_link(Path::new("/proc/self").join(namespace)).ok();
    ours.is_some_and(|ours| readlinkat(directory, namespace).ok() == Some(ours.into_os_string()))
}

/// Finds the groups of processes, by the texts of `/proc/PID/cgroup`.
#[derive(Debug)]
pub struct Groups {
    directories: Directories,
    /// Path, below the hierarchy's root, of the root of the agent's cgroup namespace, from
    /// which those texts are counted.
    base: PathBuf,
}

impl Groups {
    /// Finds groups in this hierarchy.
    ///
    /// # Errors
    /// The agent's own group is not found there, so clients' would not be.
    pub fn new(hierarchy: &Hierarchy) -> Result<Self> {
        let own = Path::new("/proc/self/cgroup");
        let text = fs::read(own).map_err(|error| Error::file("read", own, error))?;
        let base = hierarchy.version.group_of(&text).and_then(|path| base(hierarchy, path));
        let base = base.ok_or_else(|| AccountingError::NoOwnGroup { root: hierarchy.root.clone() })?;
        Ok(Self { directories: Directories::new(hierarchy)?, base })
    }

    /// The directory of the group that this text of `/proc/PID/cgroup` names; `is_ending` looks at that
    /// process after the text was read.
    ///
    /// # Errors
    /// `ENOENT` where it names none, or one that is gone; others of `openat`.
    pub(super) fn named_by(&self, text: &[u8], is_ending: impl FnOnce() -> bool) -> nix::Result<Directory> {
        let path = self.path_in(text, is_ending).and_then(|path| resolved(&self.base, path));
        self.directories.below(&path.ok_or(Errno::ENOENT)?)
    }

    /// The path in such a text. v1 shows each process that ends in `/`, whatever its namespace
    /// (`proc_cgroup_show`): that is no group of its.
    fn path_in<'t>(&self, text: &'t [u8], is_ending: impl FnOnce() -> bool) -> Option<&'t Path> {
        let version = self.directories.version();
        let path = version.group_of(text)?;
        let is_hidden = version == Version::V1 && path == Path::new("/") && is_ending();
        (!is_hidden).then_some(path)
    }

    fn account(&self, directory: &OwnedFd) -> Account {
        let text = procfs::read(directory, "cgroup").unwrap_or_default();
        let path = self.path_in(&text, || procfs::is_ending(directory));
        let id = path.and_then(|path| self.payer(&resolved(&self.base, path)?));
        id.filter(|id| id >> ID_BITS == 0).map_or(Account::Unidentified, Account::Group)
    }

    /// The group that pays for processes in the group at `place`: the first on the way down in
    /// which other users than root may make groups, else that one itself. Otherwise a user who
    /// makes groups would make quotas.
    fn payer(&self, place: &Path) -> Option<u64> {
        let mut payer = self.directories.root_id();
        let mut at = self.directories.open(payer).ok()?;
        for name in place {
            at = self.directories.child(&at, name).ok()?;
            let group = at.stat().ok()?;
            payer = group.st_ino;
            if is_delegated(&group) {
                break;
            }
        }
        Some(payer)
    }
}

/// Bits of a group's id in an account. The kernel counts groups and their files from 1.
const ID_BITS: u32 = 52;

/// Whether other users than root may make groups in this one.
const fn is_delegated(group: &FileStat) -> bool {
    group.st_uid != 0 || group.st_mode & 0o002 != 0 || (group.st_gid != 0 && group.st_mode & 0o020 != 0)
}

/// A path of `/proc/PID/cgroup`, which begins above `base` where it begins with `..`,
/// counted from the hierarchy's root; `None` where it leads above that. Groups are no
/// symbolic links.
fn resolved(base: &Path, path: &Path) -> Option<PathBuf> {
    let mut place = base.to_owned();
    for part in path.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::ParentDir if !place.pop() => return None,
            _ => {}
        }
    }
    Some(place)
}

/// Path, below the hierarchy's root, of the root of the agent's cgroup namespace, if the
/// agent itself is in `own`, counted from there.
fn base(hierarchy: &Hierarchy, own: &Path) -> Option<PathBuf> {
    let own = own.strip_prefix("/").ok()?;
    let found = hierarchy.group_with(std::process::id(), own)?;
    // In the host's cgroup namespace; or in one of its own, as containers are.
    if found == own {
        return Some(PathBuf::new());
    }
    let base = found.ancestors().nth(own.components().count())?;
    (found == base.join(own)).then(|| base.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{identified_by, resolved};
    use crate::registry::Account;

    #[test]
    fn a_process_that_has_gone_is_taken_for_the_connections_opener() {
        let (mine, other) = (Account::Group(7), Account::Group(8));
        assert_eq!(identified_by(mine, other), mine);
        assert_eq!(identified_by(Account::Unidentified, other), other);
        // That frees no client of all quotas.
        assert_eq!(identified_by(Account::Unidentified, Account::Privileged), Account::Unidentified);
        assert_eq!(identified_by(Account::Unidentified, Account::Unidentified), Account::Unidentified);
    }

    #[test]
    fn paths_are_counted_from_the_namespaces_root() {
        let resolved = |base: &str, path: &str| resolved(Path::new(base), Path::new(path));
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(resolved("", "/a/b"), at("a/b"));
        assert_eq!(resolved("", "/"), at(""));
        assert_eq!(resolved("pods/agent", "/"), at("pods/agent"));
        assert_eq!(resolved("pods/agent", "/../other/x"), at("pods/other/x"));
        assert_eq!(resolved("pods/agent", "/../.."), at(""));
        assert_eq!(resolved("pods/agent", "/../../.."), None);
    }
}
