//! The error of the client library: the call that failed, with its errno.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// A result with the client library's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of a client's call, or a refusal by the agent.
///
/// Each error is one line of text, complete in itself: it has no [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call has failed.
    #[error("{call}: {}", Errno::from_raw(*.errno))]
    #[non_exhaustive]
    Syscall {
        /// Name of the call, with its argument and a remedy where that helps.
        call: String,
        /// Positive errno of the call.
        errno: i32,
    },
    /// A file cannot be opened or looked at.
    #[error("{call} {path}: {}", named(error))]
    #[non_exhaustive]
    File {
        /// Verb for what was tried: `open` or `look at`.
        call: &'static str,
        /// Path of that file or directory.
        path: PathBuf,
        /// Failure that the operating system reported.
        error: io::Error,
    },
    /// The agent's answer is none that this version understands.
    #[error("the agent answered {}", shown(.0))]
    Answer(String),
    /// The agent has refused the request.
    #[error("{}", refusal(.message, *.errno))]
    #[non_exhaustive]
    Refused {
        /// Positive errno: that of cgroup v1 for a line that v1 refuses, too.
        errno: i32,
        /// Explanation by the agent, in one line; the error is shown as its errno where this is empty.
        message: String,
    },
    /// The agent has ended the connection, with itself or alone.
    #[error("{0}")]
    Ended(&'static str),
}

impl Error {
    pub(crate) fn syscall(call: impl Into<String>, errno: Errno) -> Self {
        Self::Syscall { call: call.into(), errno: errno as i32 }
    }

    pub(crate) fn file(call: &'static str, path: impl Into<PathBuf>, error: io::Error) -> Self {
        Self::File { call, path: path.into(), error }
    }

    /// A failed call of the standard library or of tokio.
    #[cfg(feature = "tokio")]
    pub(crate) fn io(call: &str, error: &io::Error) -> Self {
        Self::syscall(call, Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    /// The end of a connection at which a request was not answered.
    pub(crate) const fn unanswered() -> Self {
        Self::Ended(UNANSWERED)
    }

    pub(crate) const fn agent_ended() -> Self {
        Self::Ended("the agent ended; register again once it is back")
    }

    /// The positive errno of this error, if it has one: that of the system call, of the file's
    /// operation, or of the agent's refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Syscall { errno, .. } | Self::Refused { errno, .. } => Some(*errno),
            Self::File { error, .. } => error.raw_os_error(),
            Self::Answer(_) | Self::Ended(_) => None,
        }
    }

    /// True for a call that took longer than the limit set for its connection
    /// ([`AdminConnection::connect_within`](crate::AdminConnection::connect_within),
    /// [`AdminConnection::set_timeout`](crate::AdminConnection::set_timeout)).
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Syscall { errno, .. } if *errno == Errno::EAGAIN as i32)
    }
}

/// The words of [`Error::Ended`] for a connection that the agent has ended before it answered.
pub const UNANSWERED: &str = "the agent ended the connection without an answer: it ended itself, or this user has as \
     many connections open as one may have";

/// An answer in quotation marks: the first characters of a long one, and its length.
fn shown(answer: &str) -> String {
    /// Enough to recognise an answer by.
    const MOST: usize = 300;
    match answer.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &answer[..end], answer.len()),
        None => format!("{answer:?}"),
    }
}

/// The words of a refusal, which are its errno where the agent gives none.
fn refusal(message: &str, errno: i32) -> String {
    match (message.trim(), Errno::from_raw(errno)) {
        ("", Errno::UnknownErrno) => format!("errno {errno}"),
        ("", errno) => errno.to_string(),
        _ => message.to_owned(),
    }
}

/// The text of a failed operation, with the errno's name where there is one.
#[must_use]
pub fn named(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        None | Some(Errno::UnknownErrno) => error.to_string(),
        Some(errno) => errno.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_errno() {
        let error = Error::syscall("connect /run/x", Errno::ENOENT);
        assert_eq!(error.to_string(), "connect /run/x: ENOENT: No such file or directory");
        assert_eq!((error.errno(), error.is_timeout()), (Some(2), false));
        assert!(Error::syscall("recvmsg from the agent", Errno::EAGAIN).is_timeout());
        let error = Error::file("open", "/a/b", io::Error::from_raw_os_error(13));
        assert_eq!(error.to_string(), "open /a/b: EACCES: Permission denied");
        assert_eq!(error.errno(), Some(13));
        assert_eq!(Error::Answer("?".into()).errno(), None);
    }

    #[test]
    fn an_answer_is_shown_with_some_hundred_characters_at_most() {
        assert_eq!(Error::Answer("a\n".into()).to_string(), "the agent answered \"a\\n\"");
        let text = Error::Answer("\u{fc}".repeat(100_000)).to_string();
        assert!(text.len() < 1000 && text.ends_with("\u{fc}\"... (200000 bytes)"), "{text}");
    }

    #[test]
    fn a_refusal_without_words_names_its_errno() {
        let text = |errno, why: &str| Error::Refused { errno, message: why.into() }.to_string();
        assert_eq!(text(16, "EBUSY: try later"), "EBUSY: try later");
        assert_eq!(text(16, " "), "EBUSY: Device or resource busy");
        assert_eq!(text(-5, ""), "errno -5");
    }
}
