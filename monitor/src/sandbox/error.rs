//! Errors of the sandbox: the step at which rights were not given up, and the reason.

use caps::errors::CapsError;
use landlock::RulesetError;
use seccompiler::BackendError;

/// Steps at which rights are not given up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// Capabilities could not be read or given up.
    #[error("{call}: {error}")]
    Capabilities {
        /// System call that failed.
        call: &'static str,
        /// Reason that the library gives.
        error: CapsError,
    },
    /// The kernel has Landlock, and refused the rules.
    #[error("Landlock: {0}")]
    Landlock(RulesetError),
    /// The filter of system calls does not compile.
    #[error("seccomp: {0}")]
    Seccomp(BackendError),
    /// The thread of this id has a filter that the others have not.
    #[error("seccomp: thread {0} has a filter of its own")]
    OtherFilter(i64),
}
