//! Refusals of registrations: the errno, the reason, and the descriptor that it is about.

use monitor_common::grammar::{
    control_file::{ArgsError, ControlFile},
    line::{LineError, MAX_LINE},
};
use nix::errno::Errno;

use crate::registry::Account;

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
    /// The group was removed during the registration.
    #[error("the group is being removed")]
    GroupBeingRemoved,
    /// The control file is another group's than the `cgroup.event_control` that was written to.
    #[error("{0} belongs to another group than this cgroup.event_control")]
    OtherGroup(DescriptorRole),
    /// The kernel lacks a hook for the events of this control file.
    #[error("this kernel has no hook for {name}; see `memcg-monitor check`", name = .0.name())]
    NoHook(ControlFile),
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
        "the sender, or the opener of the connection, is no operator: an operator has CAP_SYS_ADMIN in the \
         agent's user namespace, or CAP_SYS_PTRACE there and in the agent's pid namespace (root in a container \
         has neither), or is a user other than root that the socket's owner, group and mode themselves admit; run \
         this as the host's root, or as a user that --control-mode and --control-group admit"
    )]
    NotOperator,
    /// The request to the admin socket is longer than one may be.
    #[error("the request is too long")]
    RequestTooLong,
    /// The packet to the admin socket is no request in JSON.
    #[error("not a request: {0}")]
    NotARequest(serde_json::Error),
    /// The list of groups could not be made.
    #[error("the list could not be made; see the agent's log")]
    NoList,
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
}

impl std::fmt::Display for DescriptorRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Event(number) => write!(f, "event_fd {number}"),
            Self::Control(number) => write!(f, "control_fd {number}"),
        }
    }
}

impl DescriptorRole {
    /// The use for which such a descriptor has to be open.
    const fn purpose(self) -> &'static str {
        match self {
            Self::Event(_) => "use",
            Self::Control(_) => "reading",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use monitor_common::grammar::{
        control_file::{self, ControlFile},
        line,
    };
    use nix::errno::Errno;

    use super::{
        DescriptorRole::{Control, Event},
        Refusal, RefusalReason as Reason,
    };
    use crate::registry::Account;

    /// Clients, pages and tests quote these texts.
    #[test]
    fn every_reason_has_its_text() {
        let texts = [
            (Reason::LineTooLong, "the line is longer than 4096 bytes"),
            (Reason::SenderUnknown, "the sender is unknown (SCM_CREDENTIALS)"),
            (
                Reason::SenderOutsidePidNamespace,
                "the sender is outside the agent's pid namespace; send the two descriptors with the line (SCM_RIGHTS)",
            ),
            (
                Reason::WriterOutsidePidNamespace,
                "the writer is outside the agent's pid namespace; run the agent in the host's, or register at its socket with the two descriptors sent along (SCM_RIGHTS)",
            ),
            (Reason::SenderNotChecked, "the agent cannot check whether the sender still runs"),
            (Reason::SenderGone, "the sender is gone"),
            (Reason::ProcessGone { pid: 7 }, "process 7 is gone"),
            (Reason::ProcessNotOpened { pid: 7 }, "/proc/7 cannot be opened"),
            (
                Reason::DescriptorCount { count: 3 },
                "3 descriptors came along; send event_fd and control_fd, or none",
            ),
            (Reason::NotSent(Control(5)), "control_fd 5 did not come along"),
            (Reason::NotOpen { role: Event(4), pid: 7 }, "event_fd 4 is not open in process 7"),
            (Reason::PathOnly(Event(4)), "event_fd 4 is an O_PATH descriptor; open it for use"),
            (Reason::PathOnly(Control(5)), "control_fd 5 is an O_PATH descriptor; open it for reading"),
            (Reason::NotEventFd(Event(4)), "event_fd 4 is not an eventfd"),
            (
                Reason::MayNotDuplicate,
                "the agent may not take descriptors from this process (CAP_SYS_PTRACE); send them with the line (SCM_RIGHTS)",
            ),
            (Reason::NotDuplicated(Event(4)), "pidfd_getfd of event_fd 4 failed"),
            (Reason::TooManyToClose, "too many of your descriptors are waiting to be closed"),
            (Reason::Closed(Control(5)), "control_fd 5 is closed"),
            (Reason::NoInode(Control(5)), "statx of control_fd 5 failed"),
            (
                Reason::NotReadable { uid: 1000, role: Control(5), mode: 0o40 },
                "uid 1000 may not read the file behind control_fd 5 (mode 040)",
            ),
            (
                Reason::OtherHierarchy(Control(5)),
                "control_fd 5 is not a file of the hierarchy that has the memory controller",
            ),
            (Reason::NotRegularFile(Control(5)), "control_fd 5 is not a regular file"),
            (
                Reason::NoFileName(Control(5)),
                "control_fd 5 is a directory; then the arguments begin with the name of a control file",
            ),
            (
                Reason::NoNotifications { role: Control(5), name: "memory.max".into() },
                "control_fd 5 is memory.max, on which there are no notifications",
            ),
            (Reason::GroupGone(Control(5)), "control_fd 5: the group is gone"),
            (Reason::GroupBeingRemoved, "the group is being removed"),
            (
                Reason::OtherGroup(Control(5)),
                "control_fd 5 belongs to another group than this cgroup.event_control",
            ),
            (
                Reason::NoHook(ControlFile::Oom),
                "this kernel has no hook for memory.oom_control; see `memcg-monitor check`",
            ),
            (
                Reason::QuotaReached(Account::User(1000)),
                "uid 1000 has as many registrations as one may have; see the agent's --max-per-user",
            ),
            (
                Reason::RegistrationsFull(Account::Unidentified),
                "there is no room for more registrations of the clients whose cgroup is unknown; see the agent's --max-registrations",
            ),
            (
                Reason::EventFdsFull,
                "the agent's table of eventfds has no room; see its option --max-eventfds",
            ),
            (Reason::GroupsFull, "the agent's table of groups is full; start it with a larger --max-groups"),
            (
                Reason::TooManyInFlight,
                "too many descriptors are in flight for the agent to keep another eventfd; see its option --in-flight-uid and its LimitNOFILE",
            ),
            (
                Reason::NotPersisted,
                "the registration cannot be kept for the agent's successor; the agent's log says why",
            ),
            (Reason::OutOfDescriptors, "the agent is out of descriptors; raise its LimitNOFILE"),
            (Reason::OutOfMemory, "the agent is out of memory; raise its own group's memory.max"),
            (Reason::QueryFailed, "the agent's query to the kernel failed; see its log"),
            (Reason::GroupNotRead, "the agent could not read the group's files; see its log"),
            (
                Reason::NotOperator,
                "the sender, or the opener of the connection, is no operator: an operator has CAP_SYS_ADMIN in the \
                 agent's user namespace, or CAP_SYS_PTRACE there and in the agent's pid namespace (root in a container has \
                 neither), or is a user other than root that the socket's owner, group and mode themselves admit; run this as the \
                 host's root, or as a user that --control-mode and --control-group admit",
            ),
            (Reason::RequestTooLong, "the request is too long"),
            (Reason::NoList, "the list could not be made; see the agent's log"),
        ];
        for (reason, text) in texts {
            assert_eq!(reason.to_string(), text);
        }
    }

    #[test]
    fn a_wrapped_error_shows_its_own_text_once() {
        let line = line::parse(b"4").expect_err("no control fd");
        let arguments = control_file::parse(ControlFile::Usage, b"1MB", 4096).expect_err("a byte too many");
        for (reason, text) in
            [(Reason::from(line), line.to_string()), (Reason::from(arguments), arguments.to_string())]
        {
            assert_eq!(reason.to_string(), text);
            assert!(reason.source().is_none(), "{text}");
        }
        let error = serde_json::from_slice::<u32>(b"x").expect_err("no JSON");
        let text = format!("not a request: {error}");
        assert_eq!(Reason::NotARequest(error).to_string(), text);
    }

    #[test]
    fn a_refusal_names_its_errno() {
        let refusal = Refusal::new(Errno::ESRCH, Reason::ProcessGone { pid: 7 });
        assert_eq!(refusal.to_string(), "ESRCH: process 7 is gone");
    }
}
