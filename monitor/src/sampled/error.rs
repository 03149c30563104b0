//! Errors of the sampled backend.

/// The kernel does not number eventfds (`eventfd-id` in fdinfo, 5.2 and newer).
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "this kernel does not number eventfds (/proc/PID/fdinfo lacks eventfd-id; Linux 5.2 or newer has it)"
)]
pub struct UnknownEventfd;
