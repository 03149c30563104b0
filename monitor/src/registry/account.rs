//! Accounts, whose quotas registrations, connections and descriptors count against.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
};

use crate::registry::give_back;

/// The account whose quota something counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Account {
    /// A user's account (`uid_t`, as the agent's user namespace numbers it).
    User(u32),
    /// A memory cgroup's account: `st_ino` of its directory, below 2^52.
    Group(u64),
    /// The account of processes with `CAP_SYS_RESOURCE` in the agent's own user namespace, once
    /// their user or group is near its quota: it has none.
    Privileged,
    /// The account of all clients whose group is unknown, where groups pay.
    Unidentified,
    /// The agent's own account, which has no quota and is shown to no client.
    Agent,
}

impl Account {
    /// Whether the account has no quota.
    #[must_use]
    pub const fn is_unlimited(self) -> bool {
        matches!(self, Self::Privileged | Self::Agent)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::Group(id) => write!(f, "the cgroup whose directory is inode {id}"),
            Self::Privileged => f.write_str("the host's root"),
            Self::Unidentified => f.write_str("the clients whose cgroup is unknown"),
            Self::Agent => f.write_str("the agent"),
        }
    }
}

/// The index of an account in the registry; another account's once that one has no registration
/// any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountIndex(u32);

/// The number of registrations of each account. An account has an index as long as it has any, so
/// that a registration names it by four bytes.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    places: HashMap<Account, AccountIndex>,
    held: Vec<(Account, u64)>,
    free: Vec<AccountIndex>,
}

impl Accounts {
    /// Counts one registration more of an account.
    pub(super) fn charge(&mut self, account: Account) -> AccountIndex {
        let payer = match self.places.entry(account) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(unknown) => {
                let payer = self.free.pop().unwrap_or_else(|| {
                    self.held.push((account, 0));
                    AccountIndex(u32::try_from(self.held.len() - 1).unwrap_or(u32::MAX))
                });
                self.held[payer.0 as usize] = (account, 0);
                *unknown.insert(payer)
            }
        };
        self.held[payer.0 as usize].1 += 1;
        payer
    }

    /// Counts one registration less of the account at an index.
    pub(super) fn release(&mut self, payer: AccountIndex) {
        let Some((account, held)) = self.held.get_mut(payer.0 as usize) else { return };
        *held -= 1;
        if *held > 0 {
            return;
        }
        self.places.remove(account);
        self.free.push(payer);
        if self.places.is_empty() {
            *self = Self::default();
        }
        give_back(&mut self.places);
    }

    /// The account at an index, if any.
    #[cfg(test)]
    pub(super) fn account(&self, payer: AccountIndex) -> Option<Account> {
        let (account, held) = self.held.get(payer.0 as usize)?;
        (*held > 0).then_some(*account)
    }

    /// The index of an account that has any registration.
    pub(super) fn place_of(&self, account: Account) -> Option<AccountIndex> {
        self.places.get(&account).copied()
    }

    /// The number of registrations that an account has.
    pub(super) fn held_by(&self, account: Account) -> u64 {
        self.places.get(&account).map_or(0, |payer| self.held[payer.0 as usize].1)
    }
}

#[cfg(test)]
mod tests {
    use super::{Account, Accounts};

    #[test]
    fn an_account_has_a_place_while_it_holds_any() {
        let mut accounts = Accounts::default();
        let (user, group) = (Account::User(7), Account::Group(7));
        let first = accounts.charge(user);
        assert_eq!(accounts.charge(user), first);
        let other = accounts.charge(group);
        assert_ne!(other, first);
        assert_eq!((accounts.held_by(user), accounts.held_by(group)), (2, 1));
        accounts.release(first);
        assert_eq!(accounts.account(first), Some(user));
        accounts.release(first);
        assert_eq!((accounts.account(first), accounts.held_by(user)), (None, 0));
        assert_eq!(accounts.charge(Account::User(8)), first, "places are used again");
        assert_eq!(accounts.account(other), Some(group));
    }
}
