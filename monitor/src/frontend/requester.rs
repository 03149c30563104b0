//! The client behind a registration, as the checks see it.

use nix::errno::Errno;

use crate::{
    eventfd::EventFd,
    frontend::{
        accounting::Accounting,
        credentials::Credentials,
        deferred_close::UntrustedFd,
        inode::Inode,
        refusal::{DescriptorRole, Refusal, RefusalReason},
    },
    registry::Account,
    source::Identify,
    watcher::ReceivedEventFd,
};

/// A client: its descriptors, which come from its process or its message, and its
/// credentials. Each is looked up when the kernel would check it.
pub trait Requester {
    /// Obtains the client's eventfd.
    ///
    /// # Errors
    /// `EBADF` when it is not open, `EINVAL` when it is no eventfd.
    fn event(&self, number: u32, identity: &dyn Identify) -> Result<ReceivedEventFd, Refusal>;

    /// The inode of the client's control descriptor, where that is read at once;
    /// [`Requester::control`] finds the others, and reports failures.
    fn peek(&self, number: u32) -> Option<Inode>;

    /// A descriptor of the client's control file, were it only by path (`O_PATH`).
    ///
    /// # Errors
    /// `EBADF` when it is not open, or an `O_PATH` descriptor of the client's.
    fn control(&self, number: u32) -> Result<UntrustedFd, Refusal>;

    /// The name of its control descriptor in a refusal.
    fn control_role(&self, number: u32) -> DescriptorRole {
        DescriptorRole::Control(number)
    }

    /// The client's credentials of now. The lookup has a cost, and most control files are
    /// readable by every user.
    ///
    /// # Errors
    /// `ESRCH` when the client has died since.
    fn credentials(&self) -> Result<Credentials, Refusal>;

    /// The account that the registration counts against, unless the client is privileged
    /// ([`Credentials::is_privileged`]).
    fn account(&self, accounting: &Accounting) -> Account;
}

/// Accepts a client's descriptor as an eventfd.
///
/// # Errors
/// The kernel's: `EBADF` for `O_PATH`, `EINVAL` for anything but an eventfd.
pub fn adopt(fd: UntrustedFd, role: DescriptorRole) -> Result<EventFd, Refusal> {
    let adopted = fd.descriptor().and_then(EventFd::check).and_then(|()| fd.into_inner()).map(EventFd::known);
    adopted.map_err(|errno| match errno {
        Errno::EBADF => Refusal::new(errno, RefusalReason::PathOnly(role)),
        _ => Refusal::new(errno, RefusalReason::NotEventFd(role)),
    })
}

/// Checks that the client may read a file, as the kernel's `file_permission(MAY_READ)` does.
///
/// # Errors
/// `EACCES`, or as [`Requester::credentials`].
pub fn must_be_readable(
    inode: &Inode,
    role: DescriptorRole,
    requester: &impl Requester,
) -> Result<(), Refusal> {
    // For every requester one of these bits is the one that counts.
    const ALL: u32 = 0o444;
    if inode.mode & ALL == ALL {
        return Ok(());
    }
    let client = requester.credentials()?;
    if client.may_read(inode.mode, inode.uid, inode.gid) {
        return Ok(());
    }
    let reason = RefusalReason::NotReadable { uid: client.uid, role, mode: inode.mode & 0o777 };
    Err(Refusal::new(Errno::EACCES, reason))
}
