//! Refusals of registrations: the errno, the reason, and the descriptor that it is about.

use nix::errno::Errno;

/// Refusal of a registration: the kernel's errno, and the reason for a person.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The errno that the kernel's `write` would have set.
    pub errno: Errno,
    /// The reason, in one line.
    pub why: String,
}

impl Refusal {
    /// A refusal with this errno and reason.
    pub fn new(errno: Errno, why: impl Into<String>) -> Self {
        Self { errno, why: why.into() }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.errno, self.why)
    }
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
