//! Refusals of registrations: the errno, the reason, and the descriptor that it is about.

use monitor_client::wire::MAX_REQUEST;
use monitor_common::grammar::{
    control_file::{ArgsError, ControlFile},
    line::{LineError, MAX_LINE},
};
use nix::errno::Errno;

use crate::{error::Error, registry::Account};

/// Refusal of a registration: the kernel's errno, and the reason for a person.
#[derive(Debug)]
pub struct Refusal {
    /// The errno that the kernel's `write` would have set.
    pub errno: Errno,
    /// The reason, shown in one line.
    pub reason: RefusalReason,
}

impl Refusal {
    /// A refusal with this errno and reason.
    pub const fn new(errno: Errno, reason: RefusalReason) -> Self {
        Self { errno, reason }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.errno, self.reason)
    }
}

/// The reason of a refusal. Shown, it is one line for a person: the cause, and what to do about
/// it where something can be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The line does not follow the grammar.
    #[error(transparent)]
    Line(#[from] LineError),
    /// The arguments do not fit the control file.
    #[error(transparent)]
    Arguments(#[from] ArgsError),
    /// The packet is longer than a line may be.
    #[error("the line is longer than {} bytes", MAX_LINE)]
    LineTooLong,
    /// The packet came without its sender's credentials.
    #[error("the sender is unknown (SCM_CREDENTIALS)")]
    SenderUnknown,
    /// The sender has no number in the agent's pid namespace, so its descriptors are out of reach.
    #[error(
        "the sender is outside the agent's pid namespace; send the two descriptors with the line (SCM_RIGHTS)"
    )]
    SenderOutsidePidNamespace,
    /// The writer to the view has no number in the agent's pid namespace.
    #[error(
        "the writer is outside the agent's pid namespace; run the agent in the host's, or register at its socket \
         with the two descriptors sent along (SCM_RIGHTS)"
    )]
    WriterOutsidePidNamespace,
    /// The pidfd of the sender could not be queried.
    #[error("the agent cannot check whether the sender still runs")]
    SenderNotChecked,
    /// The status of the sender could not be read: the process has ended.
    #[error("the sender is gone")]
    SenderGone,
    /// The process of this number has ended.
    #[error("process {pid} is gone")]
    ProcessGone {
        /// The number of the process.
        pid: i32,
    },
    /// The process's directory could not be opened, for another reason than that it has ended.
    #[error("/proc/{pid} cannot be opened")]
    ProcessNotOpened {
        /// The number of the process.
        pid: i32,
    },
    /// Another number of descriptors than two came with the message.
    #[error("{count} descriptors came along; send event_fd and control_fd, or none")]
    DescriptorCount {
        /// The number of descriptors that came.
        count: usize,
    },
    /// Another number of descriptors than one came with a watch.
    #[error("{count} descriptors came along; send one, the eventfd")]
    WatchDescriptors {
        /// The number of descriptors that came.
        count: usize,
    },
    /// A pattern or a specification of a watch does not follow the grammar.
    #[error("{}{why}", quoted(.text))]
    NotAWatch {
        /// The pattern or specification; empty where one is missing, or there are too many.
        text: String,
        /// The reason, in words.
        why: String,
    },
    /// The descriptor was used up already, and did not come a second time.
    #[error("{0} did not come along")]
    NotSent(DescriptorRole),
    /// The client's process has no such descriptor.
    #[error("{role} is not open in process {pid}")]
    NotOpen {
        /// The descriptor that is not open.
        role: DescriptorRole,
        /// The number of the client's process.
        pid: i32,
    },
    /// The descriptor is open for neither reading nor writing.
    #[error("{0} is an O_PATH descriptor; open it for {purpose}", purpose = .0.purpose())]
    PathOnly(DescriptorRole),
    /// The descriptor is open, but is no eventfd.
    #[error("{0} is not an eventfd")]
    NotEventFd(DescriptorRole),
    /// The agent lacks the right to look up or duplicate the client's descriptors.
    #[error(
        "the agent may not take descriptors from this process (CAP_SYS_PTRACE); send them with the line (SCM_RIGHTS)"
    )]
    MayNotDuplicate,
    /// The duplication of the descriptor failed for a reason that is not expected.
    #[error("pidfd_getfd of {0} failed")]
    NotDuplicated(DescriptorRole),
    /// The client's account has as many unclosed descriptors as one may have.
    #[error("too many of your descriptors are waiting to be closed")]
    TooManyToClose,
    /// The agent's copy of the descriptor is closed.
    #[error("{0} is closed")]
    Closed(DescriptorRole),
    /// The inode of the descriptor could not be read.
    #[error("statx of {0} failed")]
    NoInode(DescriptorRole),
    /// The client has no permission to read the control file.
    #[error("uid {uid} may not read the file behind {role} (mode {mode:03o})")]
    NotReadable {
        /// The client's user id at the check.
        uid: u32,
        /// The descriptor of the control file or its directory.
        role: DescriptorRole,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file is outside the hierarchy that the agent watches.
    #[error("{0} is not a file of the hierarchy that has the memory controller")]
    OtherHierarchy(DescriptorRole),
    /// The descriptor is neither a directory's nor a regular file's.
    #[error("{0} is not a regular file")]
    NotRegularFile(DescriptorRole),
    /// The arguments for a directory name no control file.
    #[error("{0} is a directory; then the arguments begin with the name of a control file")]
    NoFileName(DescriptorRole),
    /// The file of the group is none that notifies.
    #[error("{role} is {name}, on which there are no notifications")]
    NoNotifications {
        /// The descriptor of the file.
        role: DescriptorRole,
        /// The name of the file.
        name: String,
    },
    /// The group behind the control file is removed.
    #[error("{0}: the group is gone")]
    GroupGone(DescriptorRole),
    /// The group behind the control file has no memory controller.
    #[error(
        "{role}: {group} has no memory controller; echo +memory > {above}/cgroup.subtree_control{}",
        rest(*.is_parent)
    )]
    NoController {
        /// The descriptor of the control file or its directory.
        role: DescriptorRole,
        /// Path of the group.
        group: String,
        /// Path of the nearest group above that has the controller, and does not pass it on.
        above: String,
        /// Whether that is the group's parent.
        is_parent: bool,
    },
    /// The group of the control file is in a threaded subtree, which has no memory controller.
    #[error(
        "{role}: {group} is threaded, so the kernel counts its memory in {domain}, where its threaded subtree begins; register there"
    )]
    Threaded {
        /// The descriptor of the control file or its directory.
        role: DescriptorRole,
        /// Path of the group.
        group: String,
        /// Path of the group that counts the memory.
        domain: String,
    },
    /// The group of the control file has no memory controller, nor has the root, which is a group.
    #[error(
        "{role}: {group} has no memory controller, since {root}, which is a group of the host (as in a cgroup namespace), has none; on the host, echo +memory > cgroup.subtree_control in the group above that one"
    )]
    WithheldAboveRoot {
        /// The descriptor of the control file or its directory.
        role: DescriptorRole,
        /// Path of the group.
        group: String,
        /// Path of the hierarchy's root.
        root: String,
    },
    /// The root is a threaded group, so that no group below it can have the memory controller.
    #[error(
        "{role}: {group} has no memory controller, since {root}, which is a group of the host (as in a cgroup namespace), is threaded: the kernel counts its memory above; register on the host, where its threaded subtree begins, or make that group anew as a domain (cgroup.type)"
    )]
    ThreadedAboveRoot {
        /// The descriptor of the control file or its directory.
        role: DescriptorRole,
        /// Path of the group.
        group: String,
        /// Path of the hierarchy's root.
        root: String,
    },
    /// The group is beside or above the hierarchy's root, which is a group.
    #[error(
        "{0}: the group is outside the part of the hierarchy that this agent watches (it runs in a cgroup namespace, or on a bind mount); register at the host's agent"
    )]
    OutsideRoot(DescriptorRole),
    /// The group was removed during the registration.
    #[error("the group is being removed")]
    GroupBeingRemoved,
    /// The control file is another group's than the `cgroup.event_control` that was written to.
    #[error("{0} belongs to another group than this cgroup.event_control")]
    OtherGroup(DescriptorRole),
    /// The events of a control file are not reported on this host, for this reason.
    #[error("{0}; see `memcg-monitor check`")]
    NotReported(String),
    /// The client wants an exact notification (`,exact`), and this one would be sampled.
    #[error("{on} would be sampled here, not exact: {why}; leave out `exact` to accept that", on = .on.name())]
    NotExact {
        /// Control file of the registration.
        on: ControlFile,
        /// The reason, in words.
        why: &'static str,
    },
    /// The account is at its quota, `--max-per-user`.
    #[error("{0} has as many registrations as one may have; see the agent's --max-per-user")]
    QuotaReached(Account),
    /// The table of registrations is full, `--max-registrations`.
    #[error("there is no room for more registrations of {0}; see the agent's --max-registrations")]
    RegistrationsFull(Account),
    /// The table of eventfds is full, `--max-eventfds`.
    #[error("the agent's table of eventfds has no room; see its option --max-eventfds")]
    EventFdsFull,
    /// The table of groups is full, `--max-groups`.
    #[error("the agent's table of groups is full; start it with a larger --max-groups")]
    GroupsFull,
    /// The kernel lets the agent send no further descriptor, so the eventfd cannot be kept.
    #[error(
        "too many descriptors are in flight for the agent to keep another eventfd; see its option --in-flight-uid \
         and its LimitNOFILE"
    )]
    TooManyInFlight,
    /// The registration could not be saved for the agent's next start.
    #[error("the registration cannot be kept for the agent's successor; the agent's log says why")]
    NotPersisted,
    /// The agent has as many open descriptors as it may have.
    #[error("the agent is out of descriptors; raise its LimitNOFILE")]
    OutOfDescriptors,
    /// The kernel has no memory left for the agent.
    #[error("the agent is out of memory; raise its own group's memory.max")]
    OutOfMemory,
    /// The query for a group, a file or a number failed in the kernel.
    #[error("the agent's query to the kernel failed; see its log")]
    QueryFailed,
    /// The files of the group could not be read.
    #[error("the agent could not read the group's files; see its log")]
    GroupNotRead,
    /// The client of the admin socket is no operator.
    #[error(
        "the sender, or the opener of the connection, is no operator (root in a container is none); run this as \
         the host's root, or as a user that --control-group admits"
    )]
    NotOperator,
    /// The request to the admin socket is longer than one may be.
    #[error("the request is longer than {MAX_REQUEST} bytes; divide it among several")]
    RequestTooLong,
    /// The packet to the admin socket is no request in JSON.
    #[error("not a request: {0}")]
    NotARequest(serde_json::Error),
    /// The list of groups could not be made.
    #[error("the list could not be made; see the agent's log")]
    NoList,
    /// The connections that follow changes are as many as may.
    #[error(
        "{limit} programs follow the groups' changes (`memcg-monitor top`), as many as may; end one of them"
    )]
    TooManyFollowChanges {
        /// Connections that may follow.
        limit: usize,
    },
    /// The backend reads files, which whoever wants the numbers can do as well.
    #[error("the backend `sampled` tells no changes; read the groups' files, as `memcg-monitor top` does")]
    ChangesAreSampled,
    /// There is no file of the black box, for this reason.
    #[error("{0}")]
    NotRecorded(String),
}

/// The word that is wrong, before the reason.
fn quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text:?}: ") }
}

/// The words for the groups between, where the group that withholds a controller is no parent.
const fn rest(is_parent: bool) -> &'static str {
    if is_parent { "" } else { ", then the same in each group from there down to its parent" }
}

/// The refusal where an errno says that the agent is short of something; `None` for any other errno.
pub(super) const fn short_of(errno: Errno) -> Option<Refusal> {
    match errno {
        Errno::EMFILE | Errno::ENFILE => Some(Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors)),
        Errno::ENOMEM => Some(Refusal::new(errno, RefusalReason::OutOfMemory)),
        _ => None,
    }
}

/// The refusal where the agent's own query, or its reading of a file, failed for this `reason`.
pub(super) fn failed_by(error: &Error, reason: RefusalReason) -> Refusal {
    error.shortage().and_then(short_of).unwrap_or_else(|| {
        log::error!("registration failed: {error}");
        Refusal::new(Errno::EIO, reason)
    })
}

/// Logs a refusal for the operator, for all frontends.
pub fn log_refusal(refusal: &Refusal, uid: u32, pid: i32) {
    log::info!(
        memcg_errno = refusal.errno as i32, memcg_uid = uid, memcg_pid = pid;
        "refused uid {uid}, process {pid}: {refusal}"
    );
}

/// A descriptor of the line, by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorRole {
    /// The first number, the eventfd.
    Event(u32),
    /// The second number, the control file.
    Control(u32),
    /// The directory of the client's own group, at the pressure socket.
    OwnGroup,
    /// The directory of a group that matches a watch's patterns.
    Matching,
}

impl std::fmt::Display for DescriptorRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(number) => write!(f, "event_fd {number}"),
            Self::Control(number) => write!(f, "control_fd {number}"),
            Self::OwnGroup => f.write_str("the group of the process"),
            Self::Matching => f.write_str("a group that matches"),
        }
    }
}

impl DescriptorRole {
    /// The use for which such a descriptor has to be open.
    const fn purpose(self) -> &'static str {
        match self {
            Self::Event(_) => "use",
            Self::Control(_) | Self::OwnGroup | Self::Matching => "reading",
        }
    }
}

#[cfg(test)]
mod tests;
