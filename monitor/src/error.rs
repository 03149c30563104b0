//! The library's error: what failed, with the system call's name and errno.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failures of the library, below the command line.
#[derive(Debug, thiserror::Error)]
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
    /// The kernel lacks something the programs need.
    #[error("this kernel cannot be watched: {0}")]
    Kernel(String),
    /// Loading or attaching the programs failed.
    #[error("{what}: {why}")]
    Programs {
        /// The step that failed, and what to do about it.
        what: String,
        /// The loader's own text, with the verifier's log where there is one.
        why: String,
    },
    /// The host's cgroup set-up does not fit.
    #[error("{0}")]
    Host(String),
    /// A call of the client library failed, or the agent refused it.
    #[error(transparent)]
    Client(#[from] monitor_client::Error),
    /// Another agent holds the lock.
    #[error("{0}")]
    Busy(String),
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
}

/// The text of an I/O error, with the errno's name where there is one.
fn named(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        None | Some(Errno::UnknownErrno) => error.to_string(),
        Some(errno) => errno.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use nix::errno::Errno;

    use super::Error;

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
}
