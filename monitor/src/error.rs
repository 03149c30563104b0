//! The library's error: what failed, with the system call's name and errno.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong below the command line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{call}: {errno} ({errno:?})")]
    Syscall {
        /// The call, with its argument where that helps.
        call: String,
        /// Its errno.
        errno: Errno,
    },
    /// A file could not be read or made.
    #[error("{call} {path}: {error}")]
    File {
        /// What was tried.
        call: &'static str,
        /// On which file.
        path: PathBuf,
        /// How it failed.
        error: io::Error,
    },
    /// The kernel lacks something the programs need.
    #[error("this kernel cannot be watched: {0}")]
    Kernel(String),
    /// Loading or attaching the programs failed.
    #[error("{what}: {why}")]
    Programs {
        /// Which step, and what to do about it.
        what: String,
        /// The loader's own words, with the verifier's log where there is one.
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
