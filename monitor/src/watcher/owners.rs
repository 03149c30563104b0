//! Owners of eventfds: the account that registered one first owns it for as long as the agent
//! holds it, with registrations or only for undelivered signals.

use std::collections::HashMap;

use crate::{
    registry::{Account, give_back},
    source::FileId,
};

/// The owner of each eventfd, and the number that each account owns.
#[derive(Debug, Default)]
pub(super) struct Owners {
    by_file: HashMap<FileId, Account>,
    held: HashMap<Account, u64>,
}

impl Owners {
    pub(super) fn get(&self, file: &FileId) -> Option<&Account> {
        self.by_file.get(file)
    }

    /// The number of eventfds that `account` owns.
    pub(super) fn held_by(&self, account: Account) -> u64 {
        self.held.get(&account).copied().unwrap_or(0)
    }

    /// Makes `account` the owner of an eventfd, unless it has one already.
    pub(super) fn insert(&mut self, file: FileId, account: Account) {
        self.by_file.entry(file).or_insert_with(|| {
            *self.held.entry(account).or_default() += 1;
            account
        });
    }

    /// Removes an eventfd, and returns the account that owned it.
    pub(super) fn remove(&mut self, file: &FileId) -> Option<Account> {
        let account = self.by_file.remove(file)?;
        if let Some(held) = self.held.get_mut(&account) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(&account);
            }
        }
        give_back(&mut self.by_file);
        give_back(&mut self.held);
        Some(account)
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, FileId, Owners};

    #[test]
    fn each_is_counted_once_and_for_the_first() {
        let mut owners = Owners::default();
        let (first, second) = (Account::User(1), Account::User(2));
        owners.insert(FileId(1), first);
        owners.insert(FileId(1), second);
        owners.insert(FileId(2), first);
        assert_eq!(owners.get(&FileId(1)), Some(&first));
        assert_eq!((owners.held_by(first), owners.held_by(second)), (2, 0));
        assert_eq!((owners.remove(&FileId(1)), owners.remove(&FileId(1))), (Some(first), None));
        assert_eq!(owners.held_by(first), 1);
    }
}
