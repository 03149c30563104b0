//! One registration, through the checks of the kernel's
//! `memcg_write_event_control` (5.15 to 7.2): same order, same errno.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use monitor_common::{line, threshold::parse_threshold};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        stat::{Mode, SFlag, fstat},
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs},
    },
};

use crate::{
    door::{inode::Inode, peer::Credentials},
    eventfd::{EventFd, is_path_only},
    kernel::page_size,
    source::{GroupId, Located, Source},
    watcher::{Follower, Watcher},
};

/// Why a registration was refused: the kernel's errno, and what to tell a person.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As the kernel's `write` would have set it.
    pub errno: Errno,
    /// One line.
    pub why: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.errno, self.why)
    }
}

/// Which descriptor of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The first number.
    Event(u32),
    /// The second.
    Control(u32),
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(number) => write!(f, "event_fd {number}"),
            Self::Control(number) => write!(f, "control_fd {number}"),
        }
    }
}

/// Where the client's descriptors come from: its process, or its message.
pub trait Descriptors {
    /// A duplicate of the client's descriptor.
    ///
    /// # Errors
    /// `EBADF` when the client has no such descriptor.
    fn fetch(&mut self, which: Which) -> Result<OwnedFd, Refusal>;
}

/// Registers one line for a client; the group that it was for.
///
/// # Errors
/// The kernel's errno for each failure, and one line that says what was wrong.
pub fn register<S: Source>(
    watcher: &mut Watcher<S>,
    line: &[u8],
    descriptors: &mut impl Descriptors,
    client: &Credentials,
    follower: Option<Follower>,
) -> Result<GroupId, Refusal> {
    let line =
        line::parse(line).map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.to_string()))?;

    let eventfd = eventfd(descriptors, Which::Event(line.event_fd))?;

    let which = Which::Control(line.control_fd);
    let control = descriptors.fetch(which)?;
    if is_path_only(control.as_fd()).unwrap_or(true) {
        return Err(Refusal::new(
            Errno::EBADF,
            format!("{which} is an O_PATH descriptor; open it for reading"),
        ));
    }
    let group = control_group(watcher, control.as_fd(), which, client)?;
    drop(control);
    enroll(watcher, group, line.args, eventfd, follower)?;
    Ok(group)
}

/// The client's eventfd.
///
/// # Errors
/// `EBADF` when it is not open, `EINVAL` when it is no eventfd.
pub fn eventfd(descriptors: &mut impl Descriptors, which: Which) -> Result<EventFd, Refusal> {
    EventFd::adopt(descriptors.fetch(which)?).map_err(|errno| match errno {
        Errno::EBADF => Refusal::new(errno, format!("{which} is an O_PATH descriptor; open it for use")),
        _ => Refusal::new(errno, format!("{which} is not an eventfd")),
    })
}

/// The last step: what is to be told, and from then on telling it.
///
/// # Errors
/// `EINVAL` for arguments that are none, and for a group that goes; `ENOMEM`.
pub fn enroll<S: Source>(
    watcher: &mut Watcher<S>,
    group: GroupId,
    args: &[u8],
    eventfd: EventFd,
    follower: Option<Follower>,
) -> Result<(), Refusal> {
    let threshold = parse_threshold(args, page_size())
        .map_err(|error| Refusal::new(Errno::from_raw(error.errno()), error.to_string()))?;
    watcher.register(group, threshold.0, eventfd, follower).map_err(|errno| match errno {
        Errno::EINVAL => Refusal::new(errno, "the group is being removed"),
        Errno::ENOMEM => {
            Refusal::new(errno, "the agent's table of eventfds is full; see its option --max-eventfds")
        }
        _ => Refusal::new(errno, "the agent could not ask the kernel; see its log"),
    })
}

/// The group whose usage file `control` is, in the kernel's order: may the
/// client read it, is it a cgroup file, of a kind that notifies, of an online
/// group.
///
/// # Errors
/// The kernel's errno for the first of these that does not hold.
pub fn control_group<S: Source>(
    watcher: &Watcher<S>,
    control: BorrowedFd<'_>,
    which: Which,
    client: &Credentials,
) -> Result<GroupId, Refusal> {
    let stat = fstat(control).map_err(|errno| Refusal::new(errno, format!("fstat of {which} failed")))?;
    let inode = Inode {
        device: stat.st_dev,
        number: stat.st_ino,
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
    };
    inode.must_be_readable(which, client)?;
    let regular = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFREG;
    let filesystem = fstatfs(control).map(|fs| fs.filesystem_type()).ok();
    if !regular || !matches!(filesystem, Some(CGROUP_SUPER_MAGIC | CGROUP2_SUPER_MAGIC)) {
        return Err(Refusal::new(Errno::EINVAL, format!("{which} is not a file of a cgroup")));
    }

    let invalid = |why: String| Refusal::new(Errno::EINVAL, why);
    // The last part of the link is the file's own name in every mount namespace;
    // the rest of it is not looked at.
    let link = fs::read_link(format!("/proc/self/fd/{}", control.as_raw_fd())).unwrap_or_default();
    let name = link.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    let name = String::from_utf8_lossy(&name).into_owned();
    match name.strip_suffix(" (deleted)").unwrap_or(&name) {
        _ if name.ends_with(" (deleted)") => {
            return Err(gone(which));
        }
        "memory.current" | "memory.usage_in_bytes" => {}
        other => {
            return Err(invalid(format!(
                "{which} is {other}; notifications are on memory.current or memory.usage_in_bytes"
            )));
        }
    }

    // The client may have opened it for writing; its own descriptor's position
    // must not move either. The link leads to the very same file.
    let readable = open(
        format!("/proc/self/fd/{}", control.as_raw_fd()).as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(|_| gone(which))?;
    group_of(watcher, readable.as_fd(), &which.to_string())
}

/// A control file of a group that went, or goes.
pub fn gone(which: Which) -> Refusal {
    Refusal::new(Errno::EINVAL, format!("{which}: the group is gone"))
}

/// The group whose usage file `usage` is.
///
/// # Errors
/// `EINVAL` for the root and for a group that goes, `ENOMEM`.
pub fn group_of<S: Source>(
    watcher: &Watcher<S>,
    usage: BorrowedFd<'_>,
    what: &str,
) -> Result<GroupId, Refusal> {
    let invalid = |why: &str| Refusal::new(Errno::EINVAL, format!("{what}: {why}"));
    match watcher.source().locate(usage) {
        Ok(Located::Group(id)) => Ok(id),
        Ok(Located::Root) => Err(invalid("the root group's usage is not watched")),
        Ok(Located::TableFull) => Err(Refusal::new(
            Errno::ENOMEM,
            "the agent's table of groups is full; start it with a larger --max-groups",
        )),
        Ok(Located::Nobody) => Err(invalid("the group is gone")),
        Err(error) => {
            log::error!("{error}");
            Err(Refusal::new(Errno::EIO, "the agent could not ask the kernel; see its log"))
        }
    }
}
