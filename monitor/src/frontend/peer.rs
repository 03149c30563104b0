//! The client behind a message: its identity, and its descriptors.

use std::{
    cell::RefCell,
    ffi::OsString,
    os::fd::{AsFd as _, OwnedFd},
};

use monitor_sys::pidfd;
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    libc,
    sys::stat::Mode,
};

pub use crate::frontend::credentials::Credentials;
use crate::{
    eventfd::EVENTFD,
    frontend::{
        accounting::{Accounting, is_in_our_user_namespace},
        control_file::FrontendContext,
        deferred_close::{DeferredClose, UntrustedFd},
        inode::Inode,
        process::{directory, directory_of, path, thread_group},
        refusal::{DescriptorRole, Refusal, RefusalReason, failed_by, short_of},
        requester::{Requester, adopt},
        sender::Sender,
    },
    procfs::{self, has_ended, status},
    registry::Account,
    source::Identify,
    watcher::ReceivedEventFd,
};

/// A client's process, or its thread, held by its directory in `/proc`: a lookup in there
/// reads that one, or fails, even when its number is used again.
#[derive(Debug)]
pub struct Peer {
    directory: RefCell<OwnedFd>,
    sender: Sender,
    deferred_close: DeferredClose,
    /// The account that descriptors taken from it count against, until they are closed.
    account: Account,
    /// Whether `sender.pid` is a thread that need not be its process's first.
    is_thread: bool,
}

impl Peer {
    /// The process that sent a message; descriptors taken from it count against `account`.
    ///
    /// # Errors
    /// `ESRCH` when it has died since, or is outside the agent's pid namespace.
    pub fn of(sender: Sender, account: Account, deferred_close: &DeferredClose) -> Result<Self, Refusal> {
        if sender.pid() <= 0 {
            return Err(Refusal::new(Errno::ESRCH, RefusalReason::SenderOutsidePidNamespace));
        }
        let directory = directory_of(&sender)?.into();
        Ok(Self { directory, sender, deferred_close: deferred_close.clone(), account, is_thread: false })
    }

    /// Keeps the process for the next message, if it sent that one; another number is another
    /// process.
    #[must_use]
    pub fn again(self, sender: &Sender) -> Option<Self> {
        (self.sender.pid() == sender.pid()).then(|| Self { sender: sender.clone(), ..self })
    }

    /// The thread `pid`, which waits in a write meanwhile, and so cannot end.
    /// Credentials and open files are the thread's own.
    ///
    /// # Errors
    /// `ESRCH` when it is outside the agent's pid namespace.
    pub fn writer(pid: i32, uid: u32, gid: u32, context: &FrontendContext) -> Result<Self, Refusal> {
        if pid <= 0 {
            return Err(Refusal::new(Errno::ESRCH, RefusalReason::WriterOutsidePidNamespace));
        }
        let sender = Sender::new(libc::ucred { pid, uid, gid }.into());
        let directory = directory(pid)?;
        let account = context.accounting.account(&directory, uid);
        Ok(Self {
            directory: directory.into(),
            sender,
            deferred_close: context.deferred_close.clone(),
            account,
            is_thread: true,
        })
    }

    /// The text of its `cgroup`, which names its groups.
    ///
    /// # Errors
    /// `ESRCH` when it has ended; `ENOMEM` where the agent is short of descriptors or memory.
    pub fn cgroup(&self) -> Result<Vec<u8>, Refusal> {
        self.look(|directory| procfs::read(directory, "cgroup")).map_err(|errno| self.unread(errno))
    }

    /// Whether it has begun to end.
    pub fn is_ending(&self) -> bool {
        self.look(|directory| Ok(procfs::is_ending(directory))).unwrap_or(true)
    }

    /// Looks something up in the process's directory; in a fresh one where the number is another
    /// process's than when it was opened.
    fn look<T>(&self, look: impl Fn(&OwnedFd) -> Result<T, Errno>) -> Result<T, Errno> {
        let found = look(&self.directory.borrow());
        match found {
            Err(Errno::ENOENT | Errno::ESRCH) if !self.is_thread => {
                let fresh = directory_of(&self.sender).map_err(|refusal| refusal.errno)?;
                self.directory.replace(fresh);
                look(&self.directory.borrow())
            }
            found => found,
        }
    }

    /// Whether a descriptor is open for neither reading nor writing (`O_PATH`).
    fn is_path_only(&self, number: u32) -> Result<bool, Errno> {
        const READ_OR_WRITE: u32 = 0o600;
        // The link's own mode shows that, without a request to the file that it leads to.
        let link = self
            .look(|directory| Inode::at(directory.as_fd(), &path("fd", number), libc::AT_SYMLINK_NOFOLLOW))?;
        Ok(link.mode & READ_OR_WRITE == 0)
    }

    /// The target of the link to a descriptor.
    fn target(&self, number: u32) -> Result<OsString, Errno> {
        readlinkat(&*self.directory.borrow(), path("fd", number).as_c_str())
    }

    /// The refusal for a file in the process's directory that could not be read: it has ended, as a rule.
    fn unread(&self, errno: Errno) -> Refusal {
        let ended = || Refusal::new(Errno::ESRCH, RefusalReason::ProcessGone { pid: self.sender.pid() });
        short_of(errno).unwrap_or_else(ended)
    }

    fn refusal(&self, role: DescriptorRole, errno: Errno) -> Refusal {
        let pid = self.sender.pid();
        match errno {
            Errno::EPERM | Errno::EACCES if has_ended(&self.directory.borrow()) => {
                Refusal::new(Errno::ESRCH, RefusalReason::ProcessGone { pid })
            }
            Errno::EPERM | Errno::EACCES => Refusal::new(errno, RefusalReason::MayNotDuplicate),
            Errno::ESRCH => Refusal::new(errno, RefusalReason::ProcessGone { pid }),
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => {
                Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors)
            }
            _ => Refusal::new(Errno::EBADF, RefusalReason::NotOpen { role, pid }),
        }
    }

    /// Duplicates a descriptor, whatever it is by now.
    fn take(&self, number: u32) -> Result<UntrustedFd, Errno> {
        let number = i32::try_from(number).map_err(|_| Errno::EBADF)?;
        // It may be one whose close never returns: as many as a message can bring, and no more.
        let is_privileged = || self.credentials().is_ok_and(|credentials| credentials.is_privileged());
        let account = self.deferred_close.payer(self.account, is_privileged).ok_or(Errno::ENOMEM)?;
        let pid = self.sender.pid();
        let opened;
        let pidfd = match self.sender.pidfd() {
            Some(pidfd) => pidfd,
            None if !self.is_thread => {
                opened = pidfd::open(pid, 0)?;
                &opened
            }
            None => {
                // For the thread itself where the kernel can (6.9): it may share no
                // descriptors with its process, or outlive the first thread.
                opened = pidfd::open(pid, pidfd::PIDFD_THREAD).or_else(|_| {
                    let process = thread_group(&status(&self.directory.borrow())?).ok_or(Errno::ESRCH)?;
                    if pidfd::shares_descriptors(pid, process)? {
                        pidfd::open(process, 0)
                    } else {
                        Err(Errno::EBADF)
                    }
                })?;
                &opened
            }
        };
        Ok(self.deferred_close.untrusted(account, pidfd::duplicate(pidfd, number)?))
    }

    fn not_taken(&self, role: DescriptorRole, errno: Errno) -> Refusal {
        match errno {
            Errno::EMFILE | Errno::ENFILE => Refusal::new(Errno::ENOMEM, RefusalReason::OutOfDescriptors),
            Errno::EBADF | Errno::EPERM | Errno::EACCES | Errno::ESRCH => self.refusal(role, errno),
            Errno::ENOMEM => Refusal::new(errno, RefusalReason::TooManyToClose),
            _ => Refusal::new(errno, RefusalReason::NotDuplicated(role)),
        }
    }
}

impl Requester for Peer {
    /// The client may have replaced the descriptor by the time that it is identified: so it is
    /// duplicated first. To read a file's fdinfo, or to close it, may take for ever.
    fn event(&self, number: u32, identity: &dyn Identify) -> Result<ReceivedEventFd, Refusal> {
        let role = DescriptorRole::Event(number);
        // A descriptor that is no eventfd by now is not even duplicated.
        let target = self.look(|_| self.target(number)).map_err(|errno| self.refusal(role, errno))?;
        if self.is_path_only(number).map_err(|errno| self.refusal(role, errno))? {
            return Err(path_only(role));
        }
        if target != EVENTFD {
            return Err(Refusal::new(Errno::EINVAL, RefusalReason::NotEventFd(role)));
        }
        let fd = self.take(number).map_err(|errno| self.not_taken(role, errno))?;
        hand_over(fd, role, identity)
    }

    fn peek(&self, number: u32) -> Option<Inode> {
        if self.is_path_only(number).ok()? {
            return None;
        }
        Inode::at(self.directory.borrow().as_fd(), &path("fd", number), 0).ok()
    }

    fn control(&self, number: u32) -> Result<UntrustedFd, Refusal> {
        let role = DescriptorRole::Control(number);
        if self.is_path_only(number).map_err(|errno| self.refusal(role, errno))? {
            return Err(path_only(role));
        }
        // Made through /proc, an O_PATH descriptor sends no request to the file system
        // that it lies on, neither now nor when it is closed.
        let (flags, path) = (OFlag::O_PATH | OFlag::O_CLOEXEC, path("fd", number));
        openat(&*self.directory.borrow(), path.as_c_str(), flags, Mode::empty())
            .map(UntrustedFd::harmless)
            .map_err(|errno| self.refusal(role, errno))
    }

    fn credentials(&self) -> Result<Credentials, Refusal> {
        let directory = self.directory.borrow();
        let status = status(&directory).map_err(|errno| self.unread(errno))?;
        let sender = self.sender.credentials();
        let known = if self.is_thread { Credentials::of_writer } else { Credentials::from_status };
        Ok(known(&status, sender, is_in_our_user_namespace(&directory)))
    }

    fn account(&self, accounting: &Accounting) -> Account {
        accounting.account(&self.directory.borrow(), self.sender.uid())
    }
}

/// Accepts a duplicate, if it is an eventfd.
pub(super) fn hand_over(
    fd: UntrustedFd,
    role: DescriptorRole,
    identity: &dyn Identify,
) -> Result<ReceivedEventFd, Refusal> {
    // Before anything is read from it.
    let eventfd = adopt(fd, role)?;
    let file =
        identity.file_of(eventfd.as_fd()).map_err(|error| failed_by(&error, RefusalReason::QueryFailed))?;
    Ok(ReceivedEventFd { eventfd, file })
}

pub(super) const fn path_only(role: DescriptorRole) -> Refusal {
    Refusal::new(Errno::EBADF, RefusalReason::PathOnly(role))
}
