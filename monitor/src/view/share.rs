//! Places in the queue of writes: as long as a user has fewer than are free, that user gets one
//! more. So one user who takes as many as possible leaves half of them, two leave a third, and
//! there is always a place for the next.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The number of places that each user has.
#[derive(Clone, Debug)]
pub struct Shares(Arc<Mutex<HeldPlaces>>);

#[derive(Debug)]
struct HeldPlaces {
    free: usize,
    by_user: HashMap<u32, usize>,
}

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub struct QueuePlace {
    user: u32,
    shares: Shares,
}

impl Shares {
    /// A queue with so many places for all users.
    #[must_use]
    pub fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(HeldPlaces { free: places, by_user: HashMap::new() })))
    }

    /// Takes a place for `user`; `None` when that user has as many as are free.
    #[must_use]
    pub fn take(&self, user: u32) -> Option<QueuePlace> {
        let mut held = self.held();
        let free = held.free;
        let mine = held.by_user.get(&user).copied().unwrap_or(0);
        if mine >= free {
            return None;
        }
        held.by_user.insert(user, mine + 1);
        held.free -= 1;
        Some(QueuePlace { user, shares: self.clone() })
    }

    /// Whether no place is taken.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held().by_user.is_empty()
    }

    fn held(&self) -> MutexGuard<'_, HeldPlaces> {
        // No change under the lock can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        held.free += 1;
        if let Some(mine) = held.by_user.get_mut(&self.user) {
            *mine -= 1;
            if *mine == 0 {
                held.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shares;

    #[test]
    fn a_user_that_takes_all_it_can_leaves_room() {
        let shares = Shares::new(1024);
        let all = |user| std::iter::from_fn(|| shares.take(user)).collect::<Vec<_>>();
        let first = all(1);
        assert_eq!(first.len(), 512);
        let second = all(2);
        assert_eq!(second.len(), 256);
        assert!(shares.take(3).is_some());
        drop(first);
        assert!(shares.take(1).is_some());
        drop(second);
        assert_eq!(all(4).len(), 512);
        assert!(shares.held().by_user.is_empty());
    }
}
