//! The payers of a slot's work: the accounts with registrations there, or else its subtree.

use std::{collections::HashMap, time::Duration};

use crate::{
    registry::Account,
    source::Source,
    watcher::{fair_queue::Payer, hierarchy::subtree_of},
};

/// Accounts with registrations on one slot that are known one by one; further ones pay as the
/// subtree does.
const KNOWN: usize = 15;
/// Levels that are walked to find the subtree of a group.
const LEVELS: usize = 64;

/// The accounts with registrations on each slot.
#[derive(Debug, Default)]
pub(super) struct SlotPayers(HashMap<u32, Payers>);

/// The accounts with registrations on a slot.
#[derive(Debug)]
enum Payers {
    One(Account),
    Several {
        accounts: Vec<Account>,
        /// Whether there are further accounts.
        more: bool,
        /// The slot of the group two levels below the root.
        subtree: u32,
    },
}

impl SlotPayers {
    /// Notes that an account has a registration on a slot from now on.
    pub(super) fn add(&mut self, source: &impl Source, slot: u32, account: Account) {
        match self.0.get_mut(&slot) {
            None => drop(self.0.insert(slot, Payers::One(account))),
            Some(Payers::One(other)) if *other == account => {}
            Some(Payers::One(other)) => {
                let accounts = vec![*other, account];
                // At most once for a slot, so up to the root, however far that is.
                let subtree = subtree_of(source, slot, usize::MAX).unwrap_or(slot);
                self.0.insert(slot, Payers::Several { accounts, more: false, subtree });
            }
            Some(Payers::Several { accounts, .. }) if accounts.contains(&account) => {}
            Some(Payers::Several { accounts, .. }) if accounts.len() < KNOWN => accounts.push(account),
            Some(Payers::Several { more, .. }) => *more = true,
        }
    }

    /// Forgets a slot without registrations.
    pub(super) fn remove(&mut self, slot: u32) {
        self.0.remove(&slot);
    }

    /// The payer of a slot's work: of the accounts with registrations there, the one that has had
    /// least time lately, so that none delays the others, nor has more because they are several.
    /// Without registrations, it is the subtree two levels below the root, such as a user's or a
    /// service's.
    pub(super) fn of_slot(&self, source: &impl Source, slot: u32, had: impl Fn(Payer) -> Duration) -> Payer {
        match self.0.get(&slot) {
            Some(Payers::One(account)) => Payer::Account(*account),
            Some(Payers::Several { accounts, more, subtree }) => {
                let all = accounts.iter().map(|account| Payer::Account(*account));
                let all = all.chain(more.then_some(Payer::Subtree(*subtree)));
                all.min_by_key(|payer| had(*payer)).unwrap_or(Payer::House)
            }
            None => subtree_of(source, slot, LEVELS).map_or(Payer::House, Payer::Subtree),
        }
    }

    /// The payer of a slot's sampling, which sets the pace of all samples of that payer; so what
    /// several accounts registered is charged to none of them.
    pub(super) fn of_samples(&self, slot: u32) -> Payer {
        match self.0.get(&slot) {
            Some(Payers::One(account)) => Payer::Account(*account),
            Some(Payers::Several { subtree, .. }) => Payer::Subtree(*subtree),
            None => Payer::House,
        }
    }
}
