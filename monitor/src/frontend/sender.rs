//! The sender of a packet, as the kernel reports it.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::UnixCredentials,
};

/// The sender of a packet.
#[derive(Clone, Debug)]
pub struct Sender {
    credentials: UnixCredentials,
    process: Process,
}

/// Identity of the process besides its number, which may be another's by now.
#[derive(Clone, Debug)]
enum Process {
    /// The kernel does not report it before 6.5.
    Unknown,
    /// The process of this pidfd.
    Held(Arc<OwnedFd>),
    /// The kernel gave no pidfd: `ESRCH` when the process had ended before the packet was
    /// received, and the agent's own shortage otherwise (`EMFILE`, `ENFILE`, `ENOMEM`).
    NotHeld(Errno),
}

impl Sender {
    /// A sender known from the credentials alone.
    #[must_use]
    pub const fn new(credentials: UnixCredentials) -> Self {
        Self { credentials, process: Process::Unknown }
    }

    /// A sender with the pidfd that the kernel gave, if any.
    pub(super) fn with(credentials: UnixCredentials, held: Option<Result<OwnedFd, Errno>>) -> Self {
        let process = match held {
            None => Process::Unknown,
            Some(Ok(fd)) => Process::Held(Arc::new(fd)),
            Some(Err(errno)) => Process::NotHeld(errno),
        };
        Self { credentials, process }
    }

    /// Ids of its process, user and group.
    #[must_use]
    pub const fn credentials(&self) -> &UnixCredentials {
        &self.credentials
    }

    /// Process id, 0 when it is outside the agent's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.credentials.pid()
    }

    /// User id that it sent with: its real one, unless it named another that it may use.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.credentials.uid()
    }

    /// Whether the number is still the sender's; `None` where the kernel did not report which
    /// process that was. After `true`, lookups by the number before this call were the sender's.
    ///
    /// # Errors
    /// That is unknown: the agent has no descriptor or no memory left.
    pub fn is_there(&self) -> Result<Option<bool>, Errno> {
        match &self.process {
            Process::Unknown => Ok(None),
            Process::Held(pidfd) => is_alive(pidfd).map(Some),
            Process::NotHeld(Errno::EMFILE | Errno::ENFILE) => Err(Errno::EMFILE),
            Process::NotHeld(Errno::ENOMEM) => Err(Errno::ENOMEM),
            // ESRCH, and EINVAL before Linux 6.16: it had ended.
            Process::NotHeld(_) => Ok(Some(false)),
        }
    }

    /// The pidfd of the process.
    #[must_use]
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        match &self.process {
            Process::Held(pidfd) => Some(pidfd),
            _ => None,
        }
    }
}

/// Whether a process has not ended: its pidfd is readable from then on.
fn is_alive(pidfd: &OwnedFd) -> Result<bool, Errno> {
    let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ended, PollTimeout::ZERO) {
            // A pending signal ends also a poll that does not wait (`do_poll`).
            Err(Errno::EINTR) => {}
            polled => return polled.map(|ready| ready == 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        process::{Command, Stdio},
        thread,
    };

    use monitor_sys::{
        pidfd,
        signals::{self, Thread},
    };
    use nix::libc;

    use super::*;

    fn credentials() -> UnixCredentials {
        libc::ucred { pid: 1, uid: 0, gid: 0 }.into()
    }

    #[test]
    fn a_sender_without_a_pidfd_is_gone_only_where_the_kernel_says_so() {
        let is_there = |errno| Sender::with(credentials(), Some(Err(errno))).is_there();
        assert_eq!(is_there(Errno::ESRCH), Ok(Some(false)));
        assert_eq!(is_there(Errno::EINVAL), Ok(Some(false)));
        assert_eq!(is_there(Errno::EMFILE), Err(Errno::EMFILE));
        assert_eq!(is_there(Errno::ENFILE), Err(Errno::EMFILE));
        assert_eq!(is_there(Errno::ENOMEM), Err(Errno::ENOMEM));
        assert_eq!(Sender::new(credentials()).is_there(), Ok(None));
    }

    #[test]
    fn a_living_sender_is_there_while_signals_come() -> io::Result<()> {
        signals::handle_interrupts()?;
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let sender = Sender::with(credentials(), Some(pidfd::open(child.id().cast_signed(), 0)));
        // One poll of a thousand is interrupted, or fewer where the processors are busy.
        let reader = Thread::interruptible();
        let always = thread::scope(|scope| {
            let ringer = scope.spawn(move || {
                (0..200_000).try_for_each(|_| reader.interrupt()).expect("the thread polls meanwhile");
            });
            let mut always = true;
            while !ringer.is_finished() {
                always &= sender.is_there() == Ok(Some(true));
            }
            always
        });
        drop(child.stdin.take());
        child.wait()?;
        assert!(always, "taken for gone");
        assert_eq!(sender.is_there(), Ok(Some(false)));
        Ok(())
    }
}
