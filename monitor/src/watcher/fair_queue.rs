//! A fair queue of work: each task is charged, by the time that it takes, to its payer, and the
//! payer that has had least time lately is next. So the work that one user causes delays another
//! by the turn that is under way; the work of many users, by one turn of each that has had as
//! little.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use crate::registry;

/// The payer that work is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payer {
    /// The account whose registrations the work is for.
    Account(registry::Account),
    /// All groups in or below the one in this slot that have no registrations, or those of very
    /// many users.
    Subtree(u32),
    /// The agent itself: its sweeps.
    House,
}

/// The head start over others of a payer that has been idle: the work of a few turns.
const CREDIT: Duration = Duration::from_millis(1);

/// Idle payers that are remembered, before those without a debt are forgotten.
const REMEMBERED: usize = 256;

/// Tasks, in the order of their payers' time.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    accounts: HashMap<Payer, PayerQueue<T>>,
    /// Payers with tasks, by the time that they have had.
    ready: BTreeSet<(Duration, Payer)>,
    /// The time that a payer would have had that was never idle.
    now: Duration,
}

#[derive(Debug)]
struct PayerQueue<T> {
    had: Duration,
    tasks: VecDeque<T>,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { accounts: HashMap::new(), ready: BTreeSet::new(), now: Duration::ZERO }
    }
}

impl<T> FairQueue<T> {
    /// Adds a task after the payer's others.
    pub(super) fn push(&mut self, payer: Payer, task: T) {
        let least = self.now.saturating_sub(CREDIT);
        let account = self.accounts.entry(payer).or_insert(PayerQueue { had: least, tasks: VecDeque::new() });
        if account.tasks.is_empty() {
            // Time that was had long ago counts no more.
            account.had = account.had.max(least);
            self.ready.insert((account.had, payer));
        }
        account.tasks.push_back(task);
    }

    /// Takes the next task, and returns its payer with it.
    pub(super) fn next(&mut self) -> Option<(Payer, T)> {
        let &(had, payer) = self.ready.first()?;
        self.now = self.now.max(had);
        let task = self.pop(payer)?;
        Some((payer, task))
    }

    /// Takes one more task of the same payer.
    pub(super) fn pop(&mut self, payer: Payer) -> Option<T> {
        let account = self.accounts.get_mut(&payer)?;
        let task = account.tasks.pop_front()?;
        if account.tasks.is_empty() {
            self.ready.remove(&(account.had, payer));
        }
        Some(task)
    }

    /// Charges a payer with the time that its task took.
    pub(super) fn charge(&mut self, payer: Payer, time: Duration) {
        self.now += time / u32::try_from(self.ready.len()).unwrap_or(u32::MAX).max(1);
        if let Some(account) = self.accounts.get_mut(&payer) {
            let is_ready = self.ready.remove(&(account.had, payer));
            account.had += time;
            if is_ready {
                self.ready.insert((account.had, payer));
            }
        }
        if self.accounts.len() > REMEMBERED + self.ready.len() {
            let least = self.now.saturating_sub(CREDIT);
            self.accounts.retain(|_, account| !account.tasks.is_empty() || account.had > least);
        }
    }

    /// The time that a payer has had, counted at least from where an idle payer begins.
    pub(super) fn had(&self, payer: Payer) -> Duration {
        let least = self.now.saturating_sub(CREDIT);
        self.accounts.get(&payer).map_or(least, |account| account.had.max(least))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CREDIT, FairQueue, Payer};
    use crate::registry::Account;

    const TURN: Duration = Duration::from_micros(200);

    fn of(id: u32) -> Payer {
        Payer::Account(Account::User(id))
    }

    fn served(turns: &mut FairQueue<u32>, again: bool) -> (Payer, u32) {
        let (payer, task) = turns.next().expect("there is something to do");
        if again {
            turns.push(payer, task);
        }
        turns.charge(payer, TURN);
        (payer, task)
    }

    #[test]
    fn a_payer_that_comes_late_is_next() {
        let mut turns = FairQueue::default();
        for user in 0..10 {
            (0..1000).for_each(|task| turns.push(of(user), task));
        }
        for _ in 0..500 {
            served(&mut turns, true);
        }
        turns.push(of(99), 7);
        assert_eq!(served(&mut turns, false), (of(99), 7));
        // A payer that often has a task does not wait for all of the others' either.
        for _ in 0..50 {
            turns.push(of(99), 7);
            let until = (0..12).find(|_| served(&mut turns, true).0 == of(99));
            assert!(until.is_some(), "one turn of each at most");
            assert_eq!(turns.pop(of(99)), Some(7));
        }
    }

    #[test]
    fn all_payers_have_the_same_time_and_absence_saves_none() {
        let mut turns = FairQueue::default();
        turns.push(of(1), 0);
        for _ in 0..10_000 {
            served(&mut turns, true);
        }
        turns.push(of(2), 0);
        let had = (0..1000).filter(|_| served(&mut turns, true).0 == of(2)).count();
        let most = 500 + (CREDIT.as_micros() / TURN.as_micros()) as usize;
        assert!((500..=most).contains(&had), "{had}");
    }

    #[test]
    fn accounts_without_work_are_removed() {
        let mut turns = FairQueue::default();
        for user in 0..100_000 {
            turns.push(of(user), 0);
            served(&mut turns, false);
        }
        assert!(turns.is_empty() && turns.accounts.len() < 1000, "{}", turns.accounts.len());
    }
}
