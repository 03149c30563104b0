//! Who sent a packet, by the kernel's word.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::UnixCredentials,
};

/// A packet's sender.
#[derive(Clone, Debug)]
pub struct Sender {
    credentials: UnixCredentials,
    process: Process,
}

/// What is known of the process besides its number, which may be another's by now.
#[derive(Clone, Debug)]
enum Process {
    /// Kernels before 6.5 do not tell.
    Unknown,
    /// It was gone before the packet was taken in.
    Gone,
    /// This one.
    Held(Arc<OwnedFd>),
}

impl Sender {
    /// From the credentials alone.
    #[must_use]
    pub const fn new(credentials: UnixCredentials) -> Self {
        Self { credentials, process: Process::Unknown }
    }

    /// With what the kernel said besides.
    pub(super) fn with(credentials: UnixCredentials, held: Option<Result<OwnedFd, Errno>>) -> Self {
        let process = match held {
            None => Process::Unknown,
            Some(Err(_)) => Process::Gone,
            Some(Ok(fd)) => Process::Held(Arc::new(fd)),
        };
        Self { credentials, process }
    }

    /// Process, user and group.
    #[must_use]
    pub const fn credentials(&self) -> &UnixCredentials {
        &self.credentials
    }

    /// Its number, 0 when it is outside the agent's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.credentials.pid()
    }

    /// The user as whom it sent: its real one, unless it named another that it may be.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.credentials.uid()
    }

    /// Whether the number is still the sender's; `None` where the kernel did not say
    /// which process that was. What was looked up by the number before this was said is
    /// the sender's.
    #[must_use]
    pub fn is_there(&self) -> Option<bool> {
        match &self.process {
            Process::Unknown => None,
            Process::Gone => Some(false),
            Process::Held(pidfd) => {
                let mut over = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                Some(poll(&mut over, PollTimeout::ZERO) == Ok(0))
            }
        }
    }

    /// The process itself.
    #[must_use]
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        match &self.process {
            Process::Held(pidfd) => Some(pidfd),
            _ => None,
        }
    }
}
