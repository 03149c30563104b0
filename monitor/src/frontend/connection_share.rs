//! Division of the connections at all sockets among the accounts, so that no user takes all of the
//! agent's descriptors, whatever number of user ids it has.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use tokio::{sync::Notify, task::yield_now};

use crate::registry::{Account, share};

/// Connections that each account may have, at all sockets together, as long as there are any.
pub const ENOUGH: u64 = 256;

/// Turns of the other tasks in which a connection that is to give way can end.
const TURNS: usize = 8;

/// The places for connections at all sockets. Clones share them.
#[derive(Clone, Debug)]
pub struct ConnectionShare(Rc<SharedPlaces>);

#[derive(Debug)]
struct SharedPlaces {
    all: u64,
    used: Cell<u64>,
    held: RefCell<HashMap<Account, u64>>,
    idle: RefCell<HashMap<Account, BTreeMap<u64, Rc<Notify>>>>,
    /// Number of the next idle connection: a smaller one is older.
    next: Cell<u64>,
}

impl Default for ConnectionShare {
    /// Shares places without a bound.
    fn default() -> Self {
        Self::new(u64::MAX)
    }
}

impl ConnectionShare {
    /// Makes so many places.
    #[must_use]
    pub fn new(all: u64) -> Self {
        let (used, held, idle, next) = Default::default();
        Self(Rc::new(SharedPlaces { all, used, held, idle, next }))
    }

    fn held_by(&self, account: Account) -> u64 {
        self.0.held.borrow().get(&account).copied().unwrap_or(0)
    }

    /// Whether the account may have one more connection.
    pub(super) fn has_room(&self, account: Account) -> bool {
        share::has_room_beyond(ENOUGH, account, self.held_by(account), self.0.used.get(), self.0.all)
    }

    /// Whether the account may have one more, once one that waits for nothing has given way.
    pub(super) async fn find_room(&self, account: Account) -> bool {
        let mut has_asked = false;
        for _ in 0..TURNS {
            if self.has_room(account) {
                return true;
            }
            if !has_asked && !self.ask(account) {
                return false;
            }
            has_asked = true;
            yield_now().await;
        }
        self.has_room(account)
    }

    /// Asks the oldest idle connection of the account with the most connections to end, if that one has
    /// more than this account.
    fn ask(&self, account: Account) -> bool {
        let mine = self.held_by(account);
        let mut idle = self.0.idle.borrow_mut();
        let largest = idle
            .iter_mut()
            .map(|(other, idle)| (self.held_by(*other), *other, idle))
            .filter(|(held, other, _)| *held > mine && *other != account)
            .max_by_key(|(held, other, _)| (*held, *other));
        let Some((_, other, theirs)) = largest else { return false };
        if let Some((_, oldest)) = theirs.pop_first() {
            oldest.notify_one();
        }
        if theirs.is_empty() {
            idle.remove(&other);
        }
        log::info!("a connection of {other} that has not sent its text gives way to one of {account}");
        true
    }

    /// Takes a place for a connection of the account.
    pub(super) fn take(&self, account: Account) -> ConnectionPlace {
        self.0.used.set(self.0.used.get() + 1);
        *self.0.held.borrow_mut().entry(account).or_default() += 1;
        ConnectionPlace { share: self.clone(), account }
    }
}

/// The place of one connection, given back on drop.
#[derive(Debug)]
pub(super) struct ConnectionPlace {
    share: ConnectionShare,
    account: Account,
}

impl ConnectionPlace {
    /// Offers the connection as one that gives way, until the value is dropped.
    pub(super) fn idle(&self) -> IdleConnection {
        let SharedPlaces { idle, next, .. } = &*self.share.0;
        let (number, ends) = (next.get(), Rc::<Notify>::default());
        next.set(number + 1);
        idle.borrow_mut().entry(self.account).or_default().insert(number, Rc::clone(&ends));
        IdleConnection { share: self.share.clone(), account: self.account, number, ends }
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        let SharedPlaces { used, held, .. } = &*self.share.0;
        used.set(used.get() - 1);
        let mut held = held.borrow_mut();
        if let Some(count) = held.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.account);
            }
        }
    }
}

/// A connection that nothing was registered by.
#[derive(Debug)]
pub struct IdleConnection {
    share: ConnectionShare,
    account: Account,
    number: u64,
    ends: Rc<Notify>,
}

impl IdleConnection {
    /// Waits until it is asked to end.
    pub async fn gives_way(&self) {
        self.ends.notified().await;
    }
}

impl Drop for IdleConnection {
    fn drop(&mut self) {
        let mut idle = self.share.0.idle.borrow_mut();
        if let Some(theirs) = idle.get_mut(&self.account) {
            theirs.remove(&self.number);
            if theirs.is_empty() {
                idle.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{runtime::Builder, task::LocalSet};

    use super::{Account, ConnectionShare};

    #[test]
    fn many_user_ids_leave_places_to_the_privileged() {
        let share = ConnectionShare::new(16_384);
        let mut places = Vec::new();
        for user in (0..1024).map(Account::User) {
            for _ in 0..256 {
                if share.has_room(user) {
                    places.push(share.take(user));
                }
            }
        }
        assert_eq!(places.len(), 16_384 - 512);
        assert!(share.has_room(Account::Privileged) && !share.has_room(Account::User(5000)));
        drop(places);
        assert!(share.has_room(Account::User(5000)));
        assert!(share.0.held.borrow().is_empty() && share.0.used.get() == 0);
    }

    #[test]
    fn what_waits_for_nothing_gives_way_to_who_has_less() {
        let share = ConnectionShare::new(5);
        let order = Rc::new(RefCell::new(Vec::new()));
        let (many, few, new) = (Account::User(1), Account::User(2), Account::User(3));
        let set = LocalSet::new();
        for (number, account) in [few, many, many, many].into_iter().enumerate() {
            let (place, order) = (share.take(account), Rc::clone(&order));
            set.spawn_local(async move {
                place.idle().gives_way().await;
                order.borrow_mut().push(number);
            });
        }
        // One that has its text, and is not asked.
        let _busy = share.take(many);
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        set.block_on(&runtime, async {
            tokio::task::yield_now().await;
            assert!(!share.find_room(many).await, "none gives way to who has the most");
            assert!(share.find_room(new).await);
            let _place = share.take(new);
            assert_eq!(*order.borrow(), [1], "the oldest of who has the most");
            assert!(share.find_room(new).await);
            assert_eq!(*order.borrow(), [1, 2]);
        });
    }
}
