//! The client behind a message: who it is, and its descriptors.

use std::{
    cell::RefCell,
    ffi::OsString,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    libc,
    sys::{socket::UnixCredentials, stat::Mode},
};

use crate::{
    door::{
        inode::Inode,
        process::{
            Info, OUT_OF_DESCRIPTORS, PIDFD_THREAD, eventfd_id, folder, is_path_only, path, pidfd_getfd,
            pidfd_open, status, thread_group,
        },
        request::{Asker, Refusal, Which, adopt},
    },
    eventfd::{EVENTFD, EventFd},
    source::{FileId, Source},
    watcher::{Handed, Watcher},
};

/// As whom a client asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// File-system user id.
    pub uid: u32,
    /// File-system group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// `CAP_DAC_OVERRIDE` or `CAP_DAC_READ_SEARCH` in the agent's user namespace.
    pub reads_all: bool,
}

const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_DAC_READ_SEARCH: u64 = 1 << 2;

impl Credentials {
    /// The kernel's `file_permission(MAY_READ)` for files without ACLs: the
    /// inode's mode counts, not how the descriptor was opened.
    #[must_use]
    pub fn may_read(&self, mode: u32, owner: u32, group: u32) -> bool {
        let class = if self.uid == owner {
            6
        } else if self.gid == group || self.groups.contains(&group) {
            3
        } else {
            0
        };
        self.reads_all || mode >> class & 4 != 0
    }

    /// From the text of `/proc/PID/status`. `uid` and `gid` are the kernel's
    /// word on the sender; capabilities count only where the process is in the
    /// agent's own user namespace.
    fn from_status(status: &str, sender: &UnixCredentials, same_user_namespace: bool) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let numbers = |name: &str| {
            field(name)
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|n| n.parse().ok())
                .collect::<Vec<u32>>()
        };
        let caps = field("CapEff:").and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
        Self {
            uid: numbers("Uid:").get(3).copied().unwrap_or_else(|| sender.uid()),
            gid: numbers("Gid:").get(3).copied().unwrap_or_else(|| sender.gid()),
            groups: numbers("Groups:"),
            reads_all: same_user_namespace && caps & (CAP_DAC_OVERRIDE | CAP_DAC_READ_SEARCH) != 0,
        }
    }
}

/// A client's process, or its thread, held by its directory in `/proc`: whatever is
/// looked up in there is that one's, or fails, even when its number is used again.
#[derive(Debug)]
pub struct Peer {
    folder: RefCell<OwnedFd>,
    sender: libc::ucred,
    /// Whether `sender.pid` is a thread that need not be its process's first.
    is_thread: bool,
}

impl Peer {
    /// The process that sent a message.
    ///
    /// # Errors
    /// `ESRCH` when it has died since, or is outside the agent's pid namespace.
    pub fn of(sender: &UnixCredentials) -> Result<Self, Refusal> {
        if sender.pid() <= 0 {
            return Err(Refusal::new(
                Errno::ESRCH,
                "the sender is outside the agent's pid namespace; send the two descriptors with the line (SCM_RIGHTS)",
            ));
        }
        Ok(Self { folder: folder(sender.pid())?.into(), sender: (*sender).into(), is_thread: false })
    }

    /// The same process, for the next message that it sent; `None` when it is another.
    #[must_use]
    pub fn again(self, sender: &UnixCredentials) -> Option<Self> {
        (self.sender.pid == sender.pid()).then(|| Self { sender: (*sender).into(), ..self })
    }

    /// The thread `pid`, which waits in a write meanwhile, and so cannot end.
    /// Credentials and open files are the thread's own.
    ///
    /// # Errors
    /// `ESRCH` when it is outside the agent's pid namespace.
    pub fn writer(pid: i32, uid: u32, gid: u32) -> Result<Self, Refusal> {
        if pid <= 0 {
            return Err(Refusal::new(
                Errno::ESRCH,
                "the writer is outside the agent's pid namespace; run the agent in the host's, or register at its socket with the two descriptors sent along (SCM_RIGHTS)",
            ));
        }
        Ok(Self { folder: folder(pid)?.into(), sender: libc::ucred { pid, uid, gid }, is_thread: true })
    }

    /// The text on a descriptor, its first lines at least.
    fn info(&self, number: u32) -> Result<Info, Errno> {
        let read = |folder: &OwnedFd| Info::read(folder.as_fd(), &path("fdinfo", number));
        let info = read(&self.folder.borrow());
        match info {
            // Nothing there, or nobody: perhaps the number is another process's by now.
            Err(Errno::ENOENT | Errno::ESRCH) if !self.is_thread => {
                let fresh = folder(self.sender.pid).map_err(|refusal| refusal.errno)?;
                self.folder.replace(fresh);
                read(&self.folder.borrow())
            }
            info => info,
        }
    }

    /// What the link to a descriptor says.
    fn target(&self, number: u32) -> Result<OsString, Errno> {
        readlinkat(&*self.folder.borrow(), path("fd", number).as_c_str())
    }

    fn refusal(&self, which: Which, errno: Errno) -> Refusal {
        match errno {
            Errno::EPERM | Errno::EACCES => Refusal::new(errno, NO_PTRACE),
            Errno::ESRCH => Refusal::new(errno, format!("process {} is gone", self.sender.pid)),
            _ => Refusal::new(Errno::EBADF, format!("{which} is not open in process {}", self.sender.pid)),
        }
    }

    /// A duplicate of a descriptor.
    fn take(&self, number: u32) -> Result<OwnedFd, Errno> {
        let pid = self.sender.pid;
        let pidfd = if self.is_thread {
            // Of the thread itself where the kernel can (6.9): it may share no
            // descriptors with its process, or outlive the first thread.
            pidfd_open(pid, PIDFD_THREAD).or_else(|_| {
                pidfd_open(thread_group(&status(&self.folder.borrow())?).ok_or(Errno::ESRCH)?, 0)
            })
        } else {
            pidfd_open(pid, 0)
        }?;
        pidfd_getfd(&pidfd, i32::try_from(number).map_err(|_| Errno::EBADF)?)
    }
}

fn is_in_our_user_namespace(folder: &OwnedFd) -> bool {
    let ours = std::fs::read_link("/proc/self/ns/user").ok();
    ours.is_some_and(|ours| readlinkat(folder, "ns/user").ok() == Some(ours.into_os_string()))
}

impl Asker for Peer {
    fn event<S: Source>(&self, number: u32, watcher: &Watcher<S>) -> Result<Handed, Refusal> {
        let which = Which::Event(number);
        let source = watcher.source();
        let mut info = Err(Errno::EBADF);
        // Reading its text makes the kernel show us which file it is.
        let seen = source.file_shown(&mut || info = self.info(number));
        let info = info.map_err(|errno| self.refusal(which, errno))?;
        if let Some(file) = seen.filter(|file| watcher.registry().has_file(*file)) {
            return Ok(Handed::Known(file));
        }
        if is_path_only(info.text()) {
            return Err(path_only(which, "use"));
        }
        // Only an eventfd is taken: to close anything else may take an answer.
        if seen.is_none() {
            let target = self.target(number).map_err(|errno| self.refusal(which, errno))?;
            if target != EVENTFD {
                return Err(Refusal::new(Errno::EINVAL, format!("{which} is not an eventfd")));
            }
        }
        let fd = self.take(number).map_err(|errno| match errno {
            Errno::EMFILE | Errno::ENFILE => Refusal::new(Errno::ENOMEM, OUT_OF_DESCRIPTORS),
            Errno::EBADF | Errno::EPERM | Errno::EACCES | Errno::ESRCH => self.refusal(which, errno),
            _ => Refusal::new(errno, format!("pidfd_getfd of {which} failed")),
        })?;
        // Before 6.9 a thread with descriptors of its own is served from those of
        // its process; and what was looked at may have been closed since.
        let (ours, text) = shown(source, &fd);
        let same = match (seen, ours) {
            (Some(seen), Some(ours)) => seen == ours,
            _ => eventfd_id(text.as_ref().map(Info::text).unwrap_or_default()) == eventfd_id(info.text()),
        };
        if !same {
            return Err(self.refusal(which, Errno::EBADF));
        }
        hand_over(fd, ours, which, watcher)
    }

    fn glance(&self, number: u32) -> Option<Inode> {
        const READ_OR_WRITE: u32 = 0o600;
        let (folder, path) = (self.folder.borrow(), path("fd", number));
        // The link's own mode says how the file is open: for neither, if `O_PATH`.
        let link = Inode::at(folder.as_fd(), &path, libc::AT_SYMLINK_NOFOLLOW).ok()?;
        if link.mode & READ_OR_WRITE == 0 {
            return None;
        }
        Inode::at(folder.as_fd(), &path, 0).ok()
    }

    fn control(&self, number: u32) -> Result<OwnedFd, Refusal> {
        let which = Which::Control(number);
        let info = self.info(number).map_err(|errno| self.refusal(which, errno))?;
        if is_path_only(info.text()) {
            return Err(path_only(which, "reading"));
        }
        // Made through /proc, an O_PATH descriptor asks nothing of the file system
        // that it lies on, neither now nor when it is closed.
        let (flags, path) = (OFlag::O_PATH | OFlag::O_CLOEXEC, path("fd", number));
        openat(&*self.folder.borrow(), path.as_c_str(), flags, Mode::empty())
            .map_err(|errno| self.refusal(which, errno))
    }

    fn credentials(&self) -> Result<Credentials, Refusal> {
        let folder = self.folder.borrow();
        let gone = |_| Refusal::new(Errno::ESRCH, format!("process {} is gone", self.sender.pid));
        let status = status(&folder).map_err(gone)?;
        let known = Credentials::from_status(&status, &self.sender.into(), is_in_our_user_namespace(&folder));
        // Of a writer, the kernel has said what it writes as.
        let libc::ucred { uid, gid, .. } = self.sender;
        Ok(if self.is_thread { Credentials { uid, gid, ..known } } else { known })
    }

    fn owner(&self) -> u32 {
        self.sender.uid
    }
}

/// Which eventfd a descriptor of ours is, where that was told; and its text.
pub(super) fn shown(source: &impl Source, fd: &OwnedFd) -> (Option<FileId>, Option<Info>) {
    let mut info = None;
    let file = source.file_shown(&mut || info = Info::ours(fd).ok());
    (file, info)
}

/// Takes in a duplicate, of which `shown` is known.
pub(super) fn hand_over<S: Source>(
    fd: OwnedFd,
    shown: Option<FileId>,
    which: Which,
    watcher: &Watcher<S>,
) -> Result<Handed, Refusal> {
    let (eventfd, file) = match shown {
        Some(file) => (EventFd::known(fd), file),
        None => {
            let eventfd = adopt(fd, which)?;
            let file = watcher.source().file_of(eventfd.as_fd()).map_err(|error| {
                log::error!("registration failed: {error}");
                Refusal::new(Errno::EIO, "the agent could not ask the kernel; see its log")
            })?;
            (eventfd, file)
        }
    };
    Ok(if watcher.registry().has_file(file) { Handed::Known(file) } else { Handed::New(eventfd, file) })
}

pub(super) fn path_only(which: Which, what: &str) -> Refusal {
    Refusal::new(Errno::EBADF, format!("{which} is an O_PATH descriptor; open it for {what}"))
}

const NO_PTRACE: &str = "the agent may not take descriptors from this process (CAP_SYS_PTRACE); send them with the line (SCM_RIGHTS)";

#[cfg(test)]
mod tests {
    use nix::sys::socket::UnixCredentials;

    use super::Credentials;

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials { uid, gid, groups: groups.to_vec(), reads_all: false }
    }

    #[test]
    fn the_class_of_the_caller_decides_alone() {
        assert!(user(1, 1, &[]).may_read(0o444, 0, 0));
        assert!(!user(1, 1, &[]).may_read(0o440, 0, 0));
        assert!(user(1, 1, &[7]).may_read(0o440, 0, 7));
        // The owner's class counts even where others may do more.
        assert!(!user(1, 1, &[]).may_read(0o044, 1, 0));
        assert!(Credentials { reads_all: true, ..user(1, 1, &[]) }.may_read(0, 0, 0));
    }

    #[test]
    fn status_gives_the_file_system_ids() {
        let status =
            "Name:\tx\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000002\n";
        let read = Credentials::from_status(status, &UnixCredentials::new(), true);
        assert_eq!(read, Credentials { uid: 4, gid: 8, groups: vec![9, 10], reads_all: true });
        assert!(!Credentials::from_status(status, &UnixCredentials::new(), false).reads_all);
    }
}
