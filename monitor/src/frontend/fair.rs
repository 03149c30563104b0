//! A frontend's time, shared fairly by user: one packet of a user's, then the next user's,
//! however many connections one has.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::registry::Account;

/// Turns at the frontend, by user.
#[derive(Debug, Default)]
pub struct Fair(RefCell<HashMap<Account, Arc<Mutex<()>>>>);

/// A user's turn, which lasts as long as this value. Not to be held while waiting for a
/// client.
#[derive(Debug)]
pub struct Turn {
    _held: OwnedMutexGuard<()>,
}

impl Turn {
    /// Ends the turn once all other users that are ready have had theirs.
    pub async fn end(self) {
        tokio::task::yield_now().await;
    }
}

impl Fair {
    /// Waits until no other connection of the user's has its turn; those that waited before are
    /// first.
    pub async fn turn(self: &Rc<Self>, user: Account) -> Turn {
        let line = Arc::clone(self.0.borrow_mut().entry(user).or_default());
        let turn = Turn { _held: line.lock_owned().await };
        self.0.borrow_mut().retain(|other, line| *other == user || Arc::strong_count(line) > 1);
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use tokio::{runtime::Builder, task::LocalSet};

    use super::Fair;
    use crate::registry::Account;

    #[test]
    fn many_connections_are_one_users_turn() {
        let (fair, served) = (Rc::new(Fair::default()), Rc::new(RefCell::new(Vec::new())));
        let set = LocalSet::new();
        for user in [vec![1; 256], vec![2]].concat() {
            let (fair, served) = (Rc::clone(&fair), Rc::clone(&served));
            set.spawn_local(async move {
                for _ in 0..3 {
                    let turn = fair.turn(Account::User(user)).await;
                    served.borrow_mut().push(user);
                    turn.end().await;
                }
            });
        }
        Builder::new_current_thread().build().expect("a runtime").block_on(set);
        let served = served.take();
        let last = served.iter().rposition(|user| *user == 2).expect("served");
        assert_eq!(served.len(), 257 * 3);
        assert!(last < 12, "{last} packets before the one connection's third");
        assert!(fair.0.borrow().len() <= 2);
    }
}
