//! Errors of the watchdog's test.

/// Reasons why a test of the watchdog failed, beside those of the calls that it makes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchdogError {
    /// The agent's own group is not known.
    #[error("/proc/self/cgroup does not name this process's memory cgroup")]
    NoOwnGroup,
    /// The agent has refused its own registration.
    #[error("the agent refused {line:?} of its own: {refusal}")]
    Refused {
        /// Line of the registration.
        line: String,
        /// Errno of the refusal and the reason, in words.
        refusal: String,
    },
    /// The pages that a test charges have no valid length.
    #[error("the page size is out of range")]
    PageSize,
}
