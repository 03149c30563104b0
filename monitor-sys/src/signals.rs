//! Signals: some are ignored, or have their default action again, and one ends a system call of a
//! thread that waits in it.

use nix::{
    errno::Errno,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction, signal},
    unistd::{Pid, getpid, gettid},
};

/// The signal that [`Thread::interrupt`] sends: a process without a handler ignores it.
pub const INTERRUPT: Signal = Signal::SIGURG;

/// Ignores a signal, in this process and the programs that it runs.
///
/// # Errors
/// `EINVAL` for SIGKILL and SIGSTOP, which cannot be ignored.
pub fn ignore(ignored: Signal) -> Result<(), Errno> {
    // SAFETY: to ignore a signal runs no code.
    unsafe { signal(ignored, SigHandler::SigIgn) }.map(drop)
}

/// Gives a signal its default action again, in this process and the programs that it runs.
///
/// # Errors
/// `EINVAL` for SIGKILL and SIGSTOP, which have no other.
pub fn restore(restored: Signal) -> Result<(), Errno> {
    // SAFETY: the default action runs no code of this process.
    unsafe { signal(restored, SigHandler::SigDfl) }.map(drop)
}

/// Reports whether this process ignores a signal, as one that `nohup` has started ignores SIGHUP.
///
/// # Errors
/// None that `sigaction` is known to have for a signal.
pub fn is_ignored(asked: Signal) -> Result<bool, Errno> {
    // SAFETY: it has numbers and pointers alone, which may be 0.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: changes nothing, and writes to `action`, which outlives the call.
    let got = unsafe { libc::sigaction(asked as libc::c_int, std::ptr::null(), &raw mut action) };
    Errno::result(got)?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}

/// Has [`Thread::interrupt`] end a system call that waits with `EINTR`, from now on: a handler
/// that does nothing, without `SA_RESTART`. A handler that was there before is gone.
///
/// # Errors
/// None that `sigaction` is known to have for this signal.
pub fn handle_interrupts() -> Result<(), Errno> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe.
    unsafe { sigaction(INTERRUPT, &action) }.map(drop)
}

/// A thread of this process, by the kernel's number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Thread(Pid);

impl Thread {
    /// Names the calling thread, and lets it be interrupted: threads begin with the signals
    /// blocked that the thread that starts them has blocked.
    #[must_use]
    pub fn interruptible() -> Self {
        // Fails for no set of real signals (`sigprocmask`).
        let _ = SigSet::from(INTERRUPT).thread_unblock();
        Self(gettid())
    }

    /// Sends [`INTERRUPT`] to the thread. Without [`handle_interrupts`] that changes nothing.
    /// Where the thread has ended, another of this process may have its number, and is
    /// interrupted in its place.
    ///
    /// # Errors
    /// `ESRCH` where no thread of this process has the number; `EAGAIN` where the user may have
    /// no more signals queued.
    pub fn interrupt(self) -> Result<(), Errno> {
        let (process, thread) = (getpid().as_raw(), self.0.as_raw());
        // SAFETY: takes three numbers; the signal is ignored, or its handler does nothing that
        // could disturb the thread.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, INTERRUPT as libc::c_int) };
        Errno::result(sent).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::channel,
        thread::{self, sleep},
        time::Duration,
    };

    use nix::unistd::{pipe, read};

    use super::*;

    #[test]
    fn a_read_that_waits_is_interrupted() -> nix::Result<()> {
        handle_interrupts()?;
        let (reader, _writer) = pipe()?;
        let (sender, receiver) = channel();
        let waiting = thread::spawn(move || {
            sender.send(Thread::interruptible()).expect("the test waits");
            read(&reader, &mut [0])
        });
        let thread = receiver.recv().expect("the thread began");
        while !waiting.is_finished() {
            let _ = thread.interrupt();
            sleep(Duration::from_millis(1));
        }
        assert_eq!(waiting.join().expect("the thread"), Err(Errno::EINTR));
        Ok(())
    }

    #[test]
    fn a_signal_is_ignored_until_it_is_restored() -> nix::Result<()> {
        assert!(!is_ignored(Signal::SIGUSR2)?);
        ignore(Signal::SIGUSR2)?;
        assert!(is_ignored(Signal::SIGUSR2)?);
        restore(Signal::SIGUSR2)?;
        assert!(!is_ignored(Signal::SIGUSR2)?);
        Ok(())
    }

    #[test]
    fn a_thread_that_is_none_is_not_found() {
        assert_eq!(Thread(Pid::from_raw(i32::MAX)).interrupt(), Err(Errno::ESRCH));
        assert_eq!(ignore(Signal::SIGKILL), Err(Errno::EINVAL));
        assert_eq!(restore(Signal::SIGKILL), Err(Errno::EINVAL));
    }
}
