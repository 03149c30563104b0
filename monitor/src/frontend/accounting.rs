//! Who pays for what a client asks: its user, or its cgroup; and who is privileged.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use nix::{fcntl::readlinkat, sys::stat::FileStat};

use crate::{
    cgroup::{Hierarchy, handle::Directories},
    error::{Error, Result},
    frontend::{
        credentials::Credentials,
        peer::directory_of,
        process::{read_all, status},
        register::Refusal,
        sender::Sender,
    },
    registry::Account,
};

/// Whose quota clients' registrations, connections and descriptors count against.
#[derive(Clone, Debug, Default)]
pub enum Accounting {
    /// Their user's: a packet's or a write's user id.
    #[default]
    ByUser,
    /// Their memory cgroup's.
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

    /// The account of a sender, whether it can be looked at or not.
    pub(super) fn of_sender(&self, sender: &Sender) -> Account {
        match self {
            Self::ByUser => Account::User(sender.uid()),
            Self::ByGroup(groups) => {
                directory_of(sender).map_or(Account::Unidentified, |directory| groups.account(&directory))
            }
        }
    }

    /// The account of a packet's sender. One who was gone before it could be looked at is
    /// taken for one of the connection's opener's, lest it has a second quota, all others' who
    /// cannot be told.
    pub(super) fn of_packet(&self, sender: &Sender, opener: Account) -> Account {
        told_by(self.of_sender(sender), opener)
    }

    /// The account of whoever opened a connection. Whether that is a privileged process is
    /// asked of root, and where `is_full` says that the account has as many as it may have.
    pub(super) fn of_connection(&self, peer: &Sender, is_full: impl Fn(Account) -> bool) -> Account {
        let account = self.of_sender(peer);
        let is_privileged = || credentials_of(peer).is_ok_and(|credentials| credentials.is_privileged());
        if (peer.uid() == 0 || is_full(account)) && is_privileged() { Account::Privileged } else { account }
    }
}

/// The opener's account, which has a quota, where the sender's cannot be told.
const fn told_by(sender: Account, opener: Account) -> Account {
    match (sender, opener) {
        (Account::Unidentified, Account::User(_) | Account::Group(_)) => opener,
        _ => sender,
    }
}

/// As whom a sender asks.
///
/// # Errors
/// `ESRCH` when it cannot be looked at: another pid namespace, or gone already.
pub(super) fn credentials_of(sender: &Sender) -> Result<Credentials, Refusal> {
    credentials_in(&directory_of(sender)?, sender)
}

/// The same, from the sender's directory in `/proc`.
pub(super) fn credentials_in(directory: &OwnedFd, sender: &Sender) -> Result<Credentials, Refusal> {
    let status = status(directory).map_err(|errno| Refusal::new(errno, "the sender is gone"))?;
    Ok(Credentials::from_status(&status, sender.credentials(), is_in_our_user_namespace(directory)))
}

/// Whether the process of this directory in `/proc` is in the agent's user namespace: only
/// there its capabilities and its user ids mean what they mean to the agent.
pub(super) fn is_in_our_user_namespace(directory: &OwnedFd) -> bool {
    is_in_our(directory, "ns/user")
}

/// Whether the process of this directory in `/proc` is in the agent's pid namespace, so that
/// it sees the agent.
pub(super) fn is_in_our_pid_namespace(directory: &OwnedFd) -> bool {
    is_in_our(directory, "ns/pid")
}

fn is_in_our(directory: &OwnedFd, namespace: &str) -> bool {
    let ours = fs::read_link(Path::new("/proc/self").join(namespace)).ok();
    ours.is_some_and(|ours| readlinkat(directory, namespace).ok() == Some(ours.into_os_string()))
}

/// The groups of processes, by the texts of `/proc/PID/cgroup`.
#[derive(Debug)]
pub struct Groups {
    directories: Directories,
    /// Where, below the hierarchy's root, the root of the agent's cgroup namespace is:
    /// what those texts are counted from.
    base: PathBuf,
}

impl Groups {
    /// Those of this hierarchy.
    ///
    /// # Errors
    /// The agent cannot find its own group there, so it could not find others'.
    pub fn new(hierarchy: &Hierarchy) -> Result<Self> {
        let own = Path::new("/proc/self/cgroup");
        let text = fs::read(own).map_err(|error| Error::file("read", own, error))?;
        let base = hierarchy.version.group_of(&text).and_then(|path| base(hierarchy, path));
        let base = base.ok_or_else(|| {
            Error::Host(format!(
                "the agent's own group, as {} names it, is not below {}, so clients' groups cannot be told; \
                 mount the host's hierarchy there, or let users pay (--quota-by user)",
                own.display(),
                hierarchy.root.display()
            ))
        })?;
        Ok(Self { directories: Directories::new(hierarchy)?, base })
    }

    fn account(&self, directory: &OwnedFd) -> Account {
        let text = read_all(directory, "cgroup").unwrap_or_default();
        let path = self.directories.version().group_of(&text);
        let id = path.and_then(|path| self.payer(&resolved(&self.base, path)?));
        id.filter(|id| id >> ID_BITS == 0).map_or(Account::Unidentified, Account::Group)
    }

    /// The group that pays for what is in the group at `place`: the first on the way down
    /// in which other users than root may make groups, else that one itself. Else whoever
    /// makes groups would make quotas.
    fn payer(&self, place: &Path) -> Option<u64> {
        let mut payer = self.directories.root_id();
        let mut way = PathBuf::new();
        for name in place {
            way.push(name);
            let group = self.directories.stat_below(&way).ok()?;
            if group.st_dev != self.directories.device() {
                return None;
            }
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

/// Whether somebody else than root may make groups in this one.
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

/// Where, below the hierarchy's root, the root of the agent's cgroup namespace is, if the
/// agent itself is in `own`, counted from there.
fn base(hierarchy: &Hierarchy, own: &Path) -> Option<PathBuf> {
    let own = own.strip_prefix("/").ok()?;
    let pid = std::process::id().to_string();
    let is_ours = |group: &Path| {
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        text.lines().any(|line| line == pid)
    };
    // In the host's cgroup namespace; or in one of its own, as containers are.
    if is_ours(&hierarchy.root.join(own)) {
        return Some(PathBuf::new());
    }
    let found = hierarchy.paths().into_values().map(PathBuf::from).find(|group| is_ours(group))?;
    let base = found.ancestors().nth(own.components().count())?;
    let below = base.strip_prefix(&hierarchy.root).ok().filter(|_| found == base.join(own));
    below.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{resolved, told_by};
    use crate::registry::Account;

    #[test]
    fn who_has_gone_is_taken_for_the_connections_opener() {
        let (mine, other) = (Account::Group(7), Account::Group(8));
        assert_eq!(told_by(mine, other), mine);
        assert_eq!(told_by(Account::Unidentified, other), other);
        // Nobody is rid of all quotas so.
        assert_eq!(told_by(Account::Unidentified, Account::Privileged), Account::Unidentified);
        assert_eq!(told_by(Account::Unidentified, Account::Unidentified), Account::Unidentified);
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
