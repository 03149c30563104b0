//! Signals that would end the command while something of its trial is left on the host.

use std::os::fd::AsFd as _;

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// The signals that end a command by a person's or a service manager's wish, held back until this is
/// dropped: they end the process then, as they would have before.
pub(super) struct HeldSignals {
    before: SigSet,
    pending: SignalFd,
}

impl HeldSignals {
    /// Holds them back for this thread, the only one of the command.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` and `ENOMEM` of `signalfd`; nothing is held back then.
    pub(super) fn hold() -> Result<Self, Errno> {
        let held: SigSet = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        let pending = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let before = SigSet::thread_get_mask()?;
        held.thread_block()?;
        Ok(Self { before, pending })
    }

    /// A descriptor that is readable while one is pending.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.pending.as_fd(), PollFlags::POLLIN)
    }

    /// Whether one is pending, so that the trial should end.
    pub(super) fn is_pending(&self) -> bool {
        poll(&mut [self.poll_fd()], PollTimeout::ZERO).is_ok_and(|readable| readable > 0)
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // Not read from the descriptor, a signal is pending still, and is delivered by this.
        let _ = self.before.thread_set_mask();
    }
}
