//! The library's error: what failed, with the system call's name and errno.

use std::{io, path::PathBuf};

use monitor_client::named;
use nix::errno::Errno;

use crate::{
    cgroup::error::{HierarchyError, MeminfoError},
    device_plugin::error::PluginError,
    frontend::error::{AccountingError, MetricsError, SocketError},
    kernel::error::KernelError,
    persist::error::StateFileError,
    programs::error::{BpfError, ObjectError, PinsError, PredecessorError, QueryError},
    sampled::error::UnknownEventfd,
    sandbox::error::SandboxError,
    socket_activation::error::SocketActivationError,
    view::error::ViewError,
    watchdog::error::WatchdogError,
};

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures of the library, below the command line.
///
/// Each error is one line of text, complete in itself: it has no [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{call}: {errno}")]
    Syscall {
        /// The system call, with its argument where that helps.
        call: String,
        /// The errno of the call.
        errno: Errno,
    },
    /// A file could not be read or made.
    #[error("{call} {path}: {}", named(error))]
    File {
        /// The operation that failed.
        call: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The error of the operation.
        error: io::Error,
    },
    /// A descriptor could not be waited for.
    #[error("epoll {what}: {}", named(error))]
    Epoll {
        /// The descriptor, in words, or the path of its file.
        what: String,
        /// The error of the operation.
        error: io::Error,
    },
    /// A thread, a process or a runtime could not be started.
    #[error("start {what}: {}", named(error))]
    Start {
        /// The thread or process, in words.
        what: String,
        /// The error of the operation.
        error: io::Error,
    },
    /// A thread has panicked, and the agent cannot go on without it.
    #[error("{thread} has panicked; see the log")]
    Panicked {
        /// The thread, in words.
        thread: &'static str,
    },
    /// The kernel lacks something the programs need.
    #[error("this kernel cannot be watched: {0}")]
    Kernel(KernelError),
    /// The programs cannot be loaded, attached, pinned or run.
    #[error(transparent)]
    Programs(#[from] BpfError),
    /// The kubelet's device plugin cannot go on.
    #[error(transparent)]
    DevicePlugin(#[from] PluginError),
    /// The object with the programs lacks a part.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The programs cannot be pinned in a directory.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The programs of an earlier agent cannot be taken over from.
    #[error(transparent)]
    Predecessor(#[from] PredecessorError),
    /// A query to the programs failed.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// The hierarchy with the memory controller is not found.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The text of `/proc/meminfo` lacks something.
    #[error(transparent)]
    Meminfo(#[from] MeminfoError),
    /// The agent cannot have the path of a socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A descriptor from the service manager is no socket of the agent's.
    #[error(transparent)]
    SocketActivation(#[from] SocketActivationError),
    /// The metrics cannot be served at their address.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The clients cannot be counted by their groups.
    #[error(transparent)]
    Accounting(#[from] AccountingError),
    /// The state file of an earlier agent cannot be taken over.
    #[error(transparent)]
    StateFile(#[from] StateFileError),
    /// The view cannot be mounted on a directory.
    #[error(transparent)]
    View(#[from] ViewError),
    /// Rights of the agent are not given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// An eventfd has no number, by which the sampled backend knows it.
    #[error(transparent)]
    UnknownEventfd(#[from] UnknownEventfd),
    /// A test of the watchdog failed.
    #[error(transparent)]
    Watchdog(#[from] WatchdogError),
    /// A call of the client library failed, or the agent refused it.
    #[error(transparent)]
    Client(#[from] monitor_client::Error),
}

/// Whether an errno says that the agent, its user or the host is short of descriptors or memory just now.
pub(crate) const fn is_shortage(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

/// The conversion is not derived: a derived one would make it the
/// [`source`](std::error::Error::source), and its text be printed twice.
impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

impl Error {
    /// A failed system call.
    pub fn syscall(call: impl Into<String>, errno: Errno) -> Self {
        Self::Syscall { call: call.into(), errno }
    }

    /// A failed operation on a file.
    pub fn file(call: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        Self::File { call, path: path.into(), error }
    }

    /// A descriptor that the event loop cannot wait for.
    pub fn epoll(what: impl Into<String>, error: io::Error) -> Self {
        Self::Epoll { what: what.into(), error }
    }

    /// The errno of the system call that failed; `None` where none did, or where the error has none.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        let of = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
        match self {
            Self::Syscall { errno, .. } => Some(*errno),
            Self::File { error, .. } | Self::Epoll { error, .. } | Self::Start { error, .. } => of(error),
            Self::Kernel(KernelError::NoBtf { error, .. }) => of(error),
            Self::Metrics(MetricsError::Address { error, .. }) => of(error),
            Self::Programs(error) => error.refusal.errno,
            _ => None,
        }
    }

    /// The errno by which the kernel said that the agent, its user or the host is short of something just
    /// now: of descriptors, memory, or places that epoll may wait for (`fs.epoll.max_user_watches`).
    #[must_use]
    pub fn shortage(&self) -> Option<Errno> {
        match self {
            Self::Syscall { .. } | Self::File { .. } | Self::Start { .. } => {
                self.errno().filter(|errno| is_shortage(*errno))
            }
            Self::Epoll { .. } => self.errno().filter(|errno| is_shortage(*errno) || *errno == Errno::ENOSPC),
            _ => None,
        }
    }

    /// A thread, a process or a runtime that does not start.
    pub fn start(what: impl Into<String>, error: io::Error) -> Self {
        Self::Start { what: what.into(), error }
    }
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, io};

    use nix::errno::Errno;

    use super::Error;
    use crate::{
        cgroup::error::HierarchyError,
        frontend::error::{MetricsError, SocketError},
        kernel::error::KernelError,
        persist::error::StateFileError,
        programs::error::{BpfStep, ObjectError, PinsError, PredecessorError, QueryError},
        sandbox::error::SandboxError,
        socket_activation::error::SocketActivationError,
        view::error::ViewError,
        watchdog::error::WatchdogError,
    };

    #[test]
    fn an_errno_is_named_once() {
        let text = "call: EPERM: Operation not permitted";
        assert_eq!(Error::syscall("call", Errno::EPERM).to_string(), text);
        let file = |error| Error::file("open", "/a", error).to_string();
        let text = "open /a: EPERM: Operation not permitted";
        assert_eq!(file(io::Error::from_raw_os_error(1)), text);
        assert_eq!(file(io::Error::other("no number")), "open /a: no number");
        assert_eq!(
            file(io::Error::from_raw_os_error(99_999)),
            "open /a: Unknown error 99999 (os error 99999)"
        );
    }

    #[test]
    fn an_errno_is_found_whatever_failed() {
        let denied = || io::Error::from_raw_os_error(Errno::EACCES as i32);
        let metrics =
            MetricsError::Address { call: "bind", address: ([127, 0, 0, 1], 1).into(), error: denied() };
        let errors: [Error; 5] = [
            Error::syscall("call", Errno::EACCES),
            Error::file("open", "/a", denied()),
            Error::start("threads", denied()),
            KernelError::NoBtf { path: "/a", error: denied() }.into(),
            metrics.into(),
        ];
        assert!(
            errors.iter().all(|error| error.errno() == Some(Errno::EACCES) && error.shortage().is_none())
        );
        let refused = BpfStep::CreateMaps.failed(&io::Error::from_raw_os_error(Errno::EPERM as i32));
        assert_eq!(Error::from(refused).errno(), Some(Errno::EPERM));
        assert_eq!(Error::from(ObjectError::NoProgram("ask")).errno(), None);
        // The text of another's refusal may have an errno's name, too.
        let path = "/EACCES".into();
        assert_eq!(Error::from(SocketError::InUse { holder: "12".into(), path }).errno(), None);
        assert_eq!(Error::syscall("call", Errno::EMFILE).shortage(), Some(Errno::EMFILE));
        assert_eq!(Error::syscall("call", Errno::ENOSPC).shortage(), None);
    }

    /// The texts are those that the documents quote; no cause is printed once more after them.
    #[test]
    fn each_error_is_one_text() {
        let lost = || io::Error::from_raw_os_error(28);
        let cases: [(Error, &str); 18] = [
            (
                Error::epoll("the ring buffer", lost()),
                "epoll the ring buffer: ENOSPC: No space left on device",
            ),
            (Error::start("threads", lost()), "start threads: ENOSPC: No space left on device"),
            (
                Error::Panicked { thread: "the thread that signals" },
                "the thread that signals has panicked; see the log",
            ),
            (
                KernelError::NoController { release: "6.1".into() }.into(),
                "this kernel cannot be watched: no memory controller in its BTF (6.1); it must be built with CONFIG_MEMCG=y",
            ),
            (ObjectError::NoProgram("ask").into(), "the object has no program `ask`"),
            (
                BpfStep::OpenMap("SLOTS").failed(&io::Error::other("no such pin")).into(),
                "cannot open the pinned map SLOTS (BPF_OBJ_GET): no such pin",
            ),
            (
                PinsError::NotADirectory { path: "/a".into(), owner: None }.into(),
                "/a is not a directory, and belongs to another user: remove it",
            ),
            (
                PinsError::NotADirectory { path: "/a".into(), owner: Some(7) }.into(),
                "/a is not a directory, and belongs to user id 7: remove it",
            ),
            (
                PinsError::AboveChangeable { path: "/a".into(), owner: 7, mode: 0o777 }.into(),
                "/a, above the directory for pins, can be changed by others (owner 7, mode 777): name another directory by --pins",
            ),
            (
                PredecessorError::UnknownLayout { schema: 3 }.into(),
                "the tables of the pinned programs are of layout 3, which this agent cannot read",
            ),
            (
                QueryError::Counter { slot: 7, code: 3 }.into(),
                "the counter of slot 7 cannot be read (ask: 3)",
            ),
            (
                HierarchyError::NotMountedAt { root: "/a".into(), elsewhere: None }.into(),
                "/a is not a mounted cgroup hierarchy with the memory controller",
            ),
            (
                SocketError::InUse { holder: "12".into(), path: "/a".into() }.into(),
                "another agent (process 12) serves /a; stop it, or give this one other sockets",
            ),
            (
                SocketActivationError::Repeated {
                    name: "register".into(),
                    directive: "ListenSequentialPacket=",
                }
                .into(),
                "the descriptor \"register\" from the service manager is there more than once; one ListenSequentialPacket= of a socket unit with FileDescriptorName=register makes the right one",
            ),
            (
                MetricsError::Address { call: "bind", address: ([127, 0, 0, 1], 1).into(), error: lost() }
                    .into(),
                "bind 127.0.0.1:1: ENOSPC: No space left on device; give the agent another --metrics address",
            ),
            (
                StateFileError::Format { format: 3, magic: 16, own: 2 }.into(),
                "the state file of an earlier agent is of format 3 (magic 0x10), this agent's is 2",
            ),
            (SandboxError::OtherFilter(9).into(), "seccomp: thread 9 has a filter of its own"),
            (
                WatchdogError::Refused { line: "3 4".into(), refusal: "EINVAL: no".into() }.into(),
                "the agent refused \"3 4\" of its own: EINVAL: no",
            ),
        ];
        for (error, text) in cases {
            assert_eq!(error.to_string(), text);
            assert!(error.source().is_none(), "{text}");
        }
        let busy = Error::from(ViewError::InUse { point: "/a".into() });
        assert!(matches!(&busy, Error::View(ViewError::InUse { point }) if point.ends_with("a")));
    }
}
