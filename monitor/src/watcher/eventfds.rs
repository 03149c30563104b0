//! The eventfds that the agent holds, each with its owner: the account that registered it first
//! owns it for as long as the agent holds it, with registrations or only for undelivered signals.

use std::collections::HashMap;

use crate::{
    eventfd::EventFd,
    registry::{Account, give_back},
    source::FileId,
};

/// The eventfds of clients and of the agent, and the number that each account owns.
#[derive(Debug, Default)]
pub(super) struct EventFds {
    clients: HashMap<FileId, EventFd>,
    /// The agent's own ([`Account::Agent`]), which no later agent takes over.
    own: HashMap<FileId, EventFd>,
    /// The account that registered an eventfd first, which pays for its undelivered signals.
    owners: HashMap<FileId, Account>,
    owned: HashMap<Account, u64>,
}

impl EventFds {
    pub(super) fn get(&self, file: FileId) -> Option<&EventFd> {
        self.clients.get(&file).or_else(|| self.own.get(&file))
    }

    pub(super) fn has(&self, file: FileId) -> bool {
        self.get(file).is_some()
    }

    /// Whether an eventfd is the agent's own.
    pub(super) fn is_own(&self, file: FileId) -> bool {
        self.own.contains_key(&file)
    }

    /// The eventfds of clients.
    pub(super) const fn clients(&self) -> &HashMap<FileId, EventFd> {
        &self.clients
    }

    /// The account that pays for an eventfd's signals.
    pub(super) fn owner(&self, file: FileId) -> Account {
        self.owners.get(&file).copied().unwrap_or(Account::Agent)
    }

    /// The number of eventfds that `account` owns.
    pub(super) fn owned_by(&self, account: Account) -> u64 {
        self.owned.get(&account).copied().unwrap_or(0)
    }

    /// Adds an eventfd of a client.
    pub(super) fn insert(&mut self, file: FileId, eventfd: EventFd) {
        self.clients.insert(file, eventfd);
    }

    /// Adds one of the agent's own.
    pub(super) fn insert_own(&mut self, file: FileId, eventfd: EventFd) {
        self.own.insert(file, eventfd);
    }

    /// Makes `account` the owner of an eventfd, unless it has one already.
    pub(super) fn set_owner(&mut self, file: FileId, account: Account) {
        self.owners.entry(file).or_insert_with(|| {
            *self.owned.entry(account).or_default() += 1;
            account
        });
    }

    /// Removes the owner of an eventfd, and returns it.
    pub(super) fn remove_owner(&mut self, file: FileId) -> Option<Account> {
        let account = self.owners.remove(&file)?;
        if let Some(owned) = self.owned.get_mut(&account) {
            *owned -= 1;
            if *owned == 0 {
                self.owned.remove(&account);
            }
        }
        give_back(&mut self.owners);
        give_back(&mut self.owned);
        Some(account)
    }

    /// Removes an eventfd; a client's is returned with its owner, to be closed.
    pub(super) fn remove(&mut self, file: FileId) -> Option<(Account, EventFd)> {
        self.own.remove(&file);
        let owner = self.remove_owner(file).unwrap_or(Account::Agent);
        let eventfd = self.clients.remove(&file);
        give_back(&mut self.clients);
        eventfd.map(|eventfd| (owner, eventfd))
    }

    /// Closes the eventfds of clients that are not to be kept.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(FileId) -> bool) {
        self.clients.retain(|file, _| keep(*file));
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, EventFds, FileId};

    #[test]
    fn each_is_counted_once_and_for_the_first() {
        let mut eventfds = EventFds::default();
        let (first, second) = (Account::User(1), Account::User(2));
        eventfds.set_owner(FileId(1), first);
        eventfds.set_owner(FileId(1), second);
        eventfds.set_owner(FileId(2), first);
        assert_eq!(eventfds.owner(FileId(1)), first);
        assert_eq!((eventfds.owned_by(first), eventfds.owned_by(second)), (2, 0));
        let removed = [(); 2].map(|()| eventfds.remove_owner(FileId(1)));
        assert_eq!(removed, [Some(first), None]);
        assert_eq!(eventfds.owned_by(first), 1);
    }
}
