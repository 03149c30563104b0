//! Division of the places that all accounts share, so that none of them uses them up for others.

use crate::registry::Account;

/// Places that each account may have, as long as there are any.
pub const ENOUGH: u64 = 1024;

/// The divisor for the part of the places that is kept for the privileged: a user with many user
/// ids shuts out other users in the end, but not those who could put an end to it.
const KEPT: u64 = 32;

/// Whether `account`, which has `held` of `all` places, of which `used` are taken, may
/// have one more. Beyond [`ENOUGH`] one account may have as many as it leaves to others.
#[must_use]
pub fn has_room(account: Account, held: u64, used: u64, all: u64) -> bool {
    has_room_beyond(ENOUGH, account, held, used, all)
}

/// Returns what [`has_room`] does, where each account may have `enough` places as long as there are any.
#[must_use]
pub fn has_room_beyond(enough: u64, account: Account, held: u64, used: u64, all: u64) -> bool {
    let kept = if account.is_unlimited() || all < KEPT * enough { 0 } else { all / KEPT };
    let left = (all - kept).saturating_sub(used);
    left > 0 && (account.is_unlimited() || held < left.max(enough))
}

#[cfg(test)]
mod tests {
    use super::{Account, ENOUGH, has_room};

    /// Fills up by these accounts, one after another; returns how many each got.
    fn filled(accounts: &[Account], all: u64) -> Vec<u64> {
        let mut used = 0;
        let mut fill = |account| {
            let mut held = 0;
            while has_room(account, held, used, all) {
                (held, used) = (held + 1, used + 1);
            }
            held
        };
        accounts.iter().map(|account| fill(*account)).collect()
    }

    #[test]
    fn no_account_takes_all() {
        const ALL: u64 = 1 << 16;
        let users: Vec<_> = (0..4).map(Account::User).collect();
        let got = filled(&[&users[..], &[Account::Privileged]].concat(), ALL);
        assert_eq!(got[0], (ALL - ALL / 32) / 2);
        assert!(got.iter().all(|got| *got > ENOUGH), "{got:?}");
        assert_eq!(got.iter().sum::<u64>(), ALL, "the privileged take what is there");
    }

    #[test]
    fn few_places_are_taken_as_they_come() {
        assert_eq!(filled(&[Account::User(1), Account::User(2), Account::Privileged], 100), [100, 0, 0]);
        // Many user ids leave what is left to the privileged alone.
        let many: Vec<_> = (0..200).map(Account::User).chain([Account::Privileged]).collect();
        assert_eq!(filled(&many, 1 << 16).last(), Some(&(1 << 11)));
    }
}
