//! The client behind a message that brings its descriptors along.

use std::cell::RefCell;

use nix::errno::Errno;

use crate::{
    eventfd,
    frontend::{
        accounting::{Accounting, credentials_of},
        deferred_close::UntrustedFd,
        inode::Inode,
        peer::{Credentials, hand_over, path_only},
        refusal::{DescriptorRole, Refusal, RefusalReason},
        requester::Requester,
        sender::Sender,
    },
    registry::Account,
    source::Identify,
    watcher::ReceivedEventFd,
};

/// The descriptors that came with a message: `[event_fd, control_fd]`.
#[derive(Debug)]
pub struct SentDescriptors {
    event: RefCell<Option<UntrustedFd>>,
    control: RefCell<Option<UntrustedFd>>,
    sender: Sender,
    opener: Account,
}

impl SentDescriptors {
    /// Accepts exactly two; `opener` is the account of the connection that they came by.
    ///
    /// # Errors
    /// `EINVAL` for any other number.
    pub fn new(fds: Vec<UntrustedFd>, sender: Sender, opener: Account) -> Result<Self, Refusal> {
        let [event, control] = <[UntrustedFd; 2]>::try_from(fds).map_err(|fds| {
            let count = fds.len();
            Refusal::new(Errno::EINVAL, RefusalReason::DescriptorCount { count })
        })?;
        Ok(Self { event: Some(event).into(), control: Some(control).into(), sender, opener })
    }

    const fn missing(role: DescriptorRole) -> Refusal {
        Refusal::new(Errno::EBADF, RefusalReason::NotSent(role))
    }
}

impl Requester for SentDescriptors {
    fn event(&self, number: u32, identity: &dyn Identify) -> Result<ReceivedEventFd, Refusal> {
        let role = DescriptorRole::Event(number);
        let fd = self.event.take().ok_or_else(|| Self::missing(role))?;
        hand_over(fd, role, identity)
    }

    fn peek(&self, _: u32) -> Option<Inode> {
        let control = self.control.borrow();
        let fd = control.as_ref()?.descriptor().ok()?;
        if eventfd::is_path_only(fd).unwrap_or(true) { None } else { Inode::of(fd).ok() }
    }

    fn control(&self, number: u32) -> Result<UntrustedFd, Refusal> {
        let role = DescriptorRole::Control(number);
        let fd = self.control.take().ok_or_else(|| Self::missing(role))?;
        if fd.descriptor().and_then(eventfd::is_path_only).unwrap_or(true) {
            return Err(path_only(role));
        }
        Ok(fd)
    }

    /// A sender whose `/proc` cannot be read (another pid namespace, or ended already) has the
    /// user and group that the kernel reports.
    fn credentials(&self) -> Result<Credentials, Refusal> {
        Ok(credentials_of(&self.sender).unwrap_or_else(|_| Credentials::stranger(self.sender.credentials())))
    }

    fn account(&self, accounting: &Accounting) -> Account {
        accounting.of_packet(&self.sender, self.opener)
    }
}

#[cfg(test)]
mod tests {
    use nix::{errno::Errno, sys::socket::UnixCredentials};

    use super::SentDescriptors;
    use crate::{
        frontend::{refusal::RefusalReason, sender::Sender},
        registry::Account,
    };

    #[test]
    fn a_message_brings_two_descriptors() {
        let sender = Sender::new(UnixCredentials::new());
        let refusal = SentDescriptors::new(Vec::new(), sender, Account::Agent).expect_err("none came");
        assert_eq!(refusal.errno, Errno::EINVAL);
        assert!(matches!(refusal.reason, RefusalReason::DescriptorCount { count: 0 }), "{refusal}");
    }
}
