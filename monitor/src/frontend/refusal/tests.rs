//! The texts of refusals, word by word.

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
        (
            Reason::NoController {
                role: Control(5),
                group: "/sys/fs/cgroup/a".into(),
                above: "/sys/fs/cgroup".into(),
                is_parent: true,
            },
            "control_fd 5: /sys/fs/cgroup/a has no memory controller; echo +memory > /sys/fs/cgroup/cgroup.subtree_control",
        ),
        (
            Reason::NoController {
                role: Control(5),
                group: "/sys/fs/cgroup/a/b".into(),
                above: "/sys/fs/cgroup".into(),
                is_parent: false,
            },
            "control_fd 5: /sys/fs/cgroup/a/b has no memory controller; echo +memory > /sys/fs/cgroup/cgroup.subtree_control, then the same in each group from there down to its parent",
        ),
        (
            Reason::Threaded {
                role: Control(5),
                group: "/sys/fs/cgroup/a/t".into(),
                domain: "/sys/fs/cgroup/a".into(),
            },
            "control_fd 5: /sys/fs/cgroup/a/t is threaded, so the kernel counts its memory in /sys/fs/cgroup/a, where its threaded subtree begins; register there",
        ),
        (
            Reason::WithheldAboveRoot {
                role: Control(5),
                group: "/sys/fs/cgroup/a".into(),
                root: "/sys/fs/cgroup".into(),
            },
            "control_fd 5: /sys/fs/cgroup/a has no memory controller, since /sys/fs/cgroup, which is a group of the host (as in a cgroup namespace), has none; on the host, echo +memory > cgroup.subtree_control in the group above that one",
        ),
        (
            Reason::ThreadedAboveRoot {
                role: Control(5),
                group: "/sys/fs/cgroup/a".into(),
                root: "/sys/fs/cgroup".into(),
            },
            "control_fd 5: /sys/fs/cgroup/a has no memory controller, since /sys/fs/cgroup, which is a group of the host (as in a cgroup namespace), is threaded: the kernel counts its memory above; register on the host, where its threaded subtree begins, or make that group anew as a domain (cgroup.type)",
        ),
        (
            Reason::OutsideRoot(Control(5)),
            "control_fd 5: the group is outside the part of the hierarchy that this agent watches (it runs in a cgroup namespace, or on a bind mount); register at the host's agent",
        ),
        (Reason::GroupBeingRemoved, "the group is being removed"),
        (
            Reason::OtherGroup(Control(5)),
            "control_fd 5 belongs to another group than this cgroup.event_control",
        ),
        (
            Reason::NotReported("this kernel has no hook for memory.oom_control".into()),
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
        (Reason::EventFdsFull, "the agent's table of eventfds has no room; see its option --max-eventfds"),
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
            "the sender, or the opener of the connection, is no operator (root in a container is none); run this as \
             the host's root, or as a user that --control-group admits",
        ),
        (Reason::RequestTooLong, "the request is longer than 4096 bytes; divide it among several"),
        (Reason::NoList, "the list could not be made; see the agent's log"),
        (
            Reason::TooManyFollowChanges { limit: 8 },
            "8 programs follow the groups' changes (`memcg-monitor top`), as many as may; end one of them",
        ),
        (
            Reason::ChangesAreSampled,
            "the backend `sampled` tells no changes; read the groups' files, as `memcg-monitor top` does",
        ),
    ];
    for (reason, text) in texts {
        assert_eq!(reason.to_string(), text);
    }
}

#[test]
fn what_an_operators_command_is_refused_fits_into_two_lines() {
    let not_exact = Reason::NotExact { on: ControlFile::Usage, why: crate::frontend::register::BY_FILES };
    let none = "this kernel has no hook for memory.pressure_level".to_owned();
    let of_word = [not_exact.to_string(), Reason::NotReported(none).to_string()];
    let of_word = of_word.map(|why| Reason::NotAWatch { text: "80%,up,exact".into(), why });
    let others = [
        Reason::NotOperator,
        Reason::RequestTooLong,
        Reason::TooManyFollowChanges { limit: 8 },
        Reason::ChangesAreSampled,
        Reason::WatchDescriptors { count: 2 },
        Reason::OutOfDescriptors,
        Reason::SenderUnknown,
        Reason::GroupsFull,
        Reason::QuotaReached(Account::User(100_000)),
        Reason::RegistrationsFull(Account::User(100_000)),
        Reason::NotRecorded(crate::frontend::admin_socket::NO_BLACK_BOX.into()),
    ];
    for reason in of_word.into_iter().chain(others) {
        let text = Refusal::new(Errno::EOPNOTSUPP, reason).to_string();
        // With the name of the program before it.
        assert!(text.len() + "memcg-monitor: ".len() <= 200, "{text}");
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
