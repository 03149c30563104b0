//! The client behind a message: who it is, and its descriptors.

use std::{
    collections::VecDeque,
    fs,
    os::fd::{AsFd as _, AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    libc,
    sys::{socket::UnixCredentials, stat::Mode},
};

use crate::{
    door::request::{Descriptors, Refusal, Which, adopt},
    eventfd::{self, EVENTFD, EventFd},
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

/// A client's process, held by a pidfd so that its number cannot be used again
/// unnoticed.
#[derive(Debug)]
pub struct Peer {
    pidfd: OwnedFd,
    /// Process id; the thread's, where the sender is known to be one.
    pid: i32,
    /// Who it is.
    pub credentials: Credentials,
}

impl Peer {
    /// The process that sent a message.
    ///
    /// # Errors
    /// `ESRCH` when it has died since, `EPERM` when the agent may not look.
    pub fn of(sender: &UnixCredentials) -> Result<Self, Refusal> {
        let pid = sender.pid();
        if pid <= 0 {
            return Err(Refusal::new(
                Errno::ESRCH,
                "the sender is outside the agent's pid namespace; send the two descriptors with the line (SCM_RIGHTS)",
            ));
        }
        let gone = |_| Refusal::new(Errno::ESRCH, format!("process {pid} is gone"));
        let pidfd = pidfd_open(pid, 0).map_err(|errno| match errno {
            Errno::ESRCH => gone(errno),
            _ => Refusal::new(errno, format!("pidfd_open({pid}) failed")),
        })?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(|_| gone(Errno::ESRCH))?;
        let credentials = Credentials::from_status(&status, sender, in_our_user_namespace(pid));
        Ok(Self { pidfd, pid, credentials })
    }

    /// The thread `pid`, which waits in a write meanwhile, and so cannot end.
    /// Credentials and open files are the thread's own.
    ///
    /// # Errors
    /// `ESRCH` when it is outside the agent's pid namespace, `EPERM` when the
    /// agent may not look.
    pub fn writer(pid: i32, uid: u32, gid: u32) -> Result<Self, Refusal> {
        if pid <= 0 {
            return Err(Refusal::new(
                Errno::ESRCH,
                "the writer is outside the agent's pid namespace; run the agent in the host's, or register at its socket with the two descriptors sent along (SCM_RIGHTS)",
            ));
        }
        let path = format!("/proc/{pid}/status");
        let status = fs::read_to_string(&path)
            .map_err(|error| Refusal::new(Errno::ESRCH, format!("cannot read {path}: {error}")))?;
        let process = thread_group(&status)
            .ok_or_else(|| Refusal::new(Errno::ESRCH, format!("{path} names no process")))?;
        // Of the thread itself where the kernel can (6.9): it may share no
        // descriptors with its process, or outlive the first thread.
        let pidfd = pidfd_open(pid, PIDFD_THREAD).or_else(|_| pidfd_open(process, 0));
        let pidfd = pidfd.map_err(|errno| Refusal::new(errno, format!("pidfd_open({process}) failed")))?;
        let sender = libc::ucred { pid: process, uid, gid }.into();
        let known = Credentials::from_status(&status, &sender, in_our_user_namespace(pid));
        Ok(Self { pidfd, pid, credentials: Credentials { uid, gid, ..known } })
    }

    /// What its descriptor is, without taking it.
    ///
    /// # Errors
    /// `EBADF` when it is not open, `EPERM` when the agent may not look.
    pub fn look_at(&self, which: Which) -> Result<Seen, Refusal> {
        let (Which::Event(number) | Which::Control(number)) = which;
        let failed = |error: &std::io::Error| match error.raw_os_error().map(Errno::from_raw) {
            Some(errno @ (Errno::EPERM | Errno::EACCES)) => Refusal::new(errno, NO_PTRACE),
            _ => self.not_open(which),
        };
        let info = format!("/proc/{}/fdinfo/{number}", self.pid);
        let info = fs::read_to_string(info).map_err(|error| failed(&error))?;
        let link = PathBuf::from(format!("/proc/{}/fd/{number}", self.pid));
        let target = fs::read_link(&link).map_err(|error| failed(&error))?;
        Ok(Seen { path_only: is_path_only(&info), eventfd_id: eventfd_id(&info), link, target })
    }

    fn not_open(&self, which: Which) -> Refusal {
        Refusal::new(Errno::EBADF, format!("{which} is not open in process {}", self.pid))
    }
}

/// A descriptor of a client, seen through `/proc`.
#[derive(Debug)]
pub struct Seen {
    /// Whether it is an `O_PATH` descriptor, which the kernel takes for closed.
    pub path_only: bool,
    /// Which eventfd it is, where it is one and the kernel says (5.2).
    pub eventfd_id: Option<u64>,
    /// Leads to its file.
    pub link: PathBuf,
    /// What the link says.
    pub target: PathBuf,
}

/// `O_PATH` in the octal flags of a `/proc/PID/fdinfo/N`.
fn is_path_only(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_PATH != 0)
}

/// `eventfd-id` in a `/proc/PID/fdinfo/N`.
fn eventfd_id(info: &str) -> Option<u64> {
    info.lines().find_map(|line| line.strip_prefix("eventfd-id:")?.trim().parse().ok())
}

/// The process that a thread belongs to, from its `/proc/TID/status`.
fn thread_group(status: &str) -> Option<i32> {
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}

fn in_our_user_namespace(pid: i32) -> bool {
    let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/user")).ok();
    namespace("self").is_some_and(|ours| namespace(&pid.to_string()) == Some(ours))
}

impl Descriptors for Peer {
    fn event(&mut self, number: u32) -> Result<EventFd, Refusal> {
        let which = Which::Event(number);
        let seen = self.look_at(which)?;
        // Only an eventfd is taken: to close anything else may take an answer.
        if !seen.path_only && seen.target.as_os_str() != EVENTFD {
            return Err(Refusal::new(Errno::EINVAL, format!("{which} is not an eventfd")));
        }
        let number = i32::try_from(number).map_err(|_| self.not_open(which))?;
        let fd = pidfd_getfd(&self.pidfd, number).map_err(|errno| match errno {
            Errno::EBADF => self.not_open(which),
            Errno::ESRCH => Refusal::new(errno, format!("process {} is gone", self.pid)),
            Errno::EPERM => Refusal::new(errno, NO_PTRACE),
            Errno::EMFILE | Errno::ENFILE => {
                Refusal::new(Errno::ENOMEM, "the agent is out of descriptors; raise its LimitNOFILE")
            }
            _ => Refusal::new(errno, format!("pidfd_getfd of {which} failed")),
        })?;
        // Before 6.9 a thread with descriptors of its own is served from those of
        // its process; and what was looked at may have been closed since.
        let ours = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
        if eventfd_id(&ours) != seen.eventfd_id {
            return Err(self.not_open(which));
        }
        adopt(fd, which)
    }

    fn control(&mut self, number: u32) -> Result<OwnedFd, Refusal> {
        let which = Which::Control(number);
        let seen = self.look_at(which)?;
        if seen.path_only {
            return Err(path_only(which));
        }
        // Made through /proc, an O_PATH descriptor asks nothing of the file system
        // that it lies on, neither now nor when it is closed.
        open(seen.link.as_path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|_| self.not_open(which))
    }
}

fn path_only(which: Which) -> Refusal {
    Refusal::new(Errno::EBADF, format!("{which} is an O_PATH descriptor; open it for reading"))
}

const NO_PTRACE: &str = "the agent may not take descriptors from this process (CAP_SYS_PTRACE); send them with the line (SCM_RIGHTS)";

/// The descriptors that came with a message: `[event_fd, control_fd]`.
#[derive(Debug)]
pub struct Sent(VecDeque<OwnedFd>);

impl Sent {
    /// Takes exactly two.
    ///
    /// # Errors
    /// `EINVAL` for any other number.
    pub fn new(fds: Vec<OwnedFd>) -> Result<Self, Refusal> {
        if fds.len() == 2 {
            return Ok(Self(fds.into()));
        }
        Err(Refusal::new(
            Errno::EINVAL,
            format!("{} descriptors came along; send event_fd and control_fd, or none", fds.len()),
        ))
    }
}

impl Sent {
    fn next(&mut self, which: Which) -> Result<OwnedFd, Refusal> {
        self.0.pop_front().ok_or_else(|| Refusal::new(Errno::EBADF, format!("{which} did not come along")))
    }
}

impl Descriptors for Sent {
    fn event(&mut self, number: u32) -> Result<EventFd, Refusal> {
        let which = Which::Event(number);
        adopt(self.next(which)?, which)
    }

    fn control(&mut self, number: u32) -> Result<OwnedFd, Refusal> {
        let which = Which::Control(number);
        let fd = self.next(which)?;
        if eventfd::is_path_only(fd.as_fd()).unwrap_or(true) { Err(path_only(which)) } else { Ok(fd) }
    }
}

/// A pidfd of a thread that need not be its process's first.
const PIDFD_THREAD: i32 = libc::O_EXCL;

fn pidfd_open(pid: i32, flags: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, flags) })?;
    own(fd)
}

fn pidfd_getfd(pidfd: &OwnedFd, number: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: takes three numbers and returns a new descriptor or -1.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    own(fd)
}

fn own(fd: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = i32::try_from(fd).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the kernel just made this descriptor for us, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::UnixCredentials;

    use super::{Credentials, eventfd_id, is_path_only, thread_group};

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

    #[test]
    fn fdinfo_tells_path_descriptors() {
        let info = |flags: &str| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t31\nino:\t65\n");
        assert!(is_path_only(&info("012000000")));
        assert!(!is_path_only(&info("0100002")));
        assert!(!is_path_only("pos:\t0\n"));
        assert_eq!(eventfd_id("flags:\t02\neventfd-count:                0\neventfd-id: 17\n"), Some(17));
        assert_eq!(eventfd_id(&info("02")), None);
    }

    #[test]
    fn a_thread_names_its_process() {
        assert_eq!(thread_group("Name:\tTgid: 1\nTgid:\t812\nPid:\t815\n"), Some(812));
        assert_eq!(thread_group("Name:\tx\n"), None);
    }
}
