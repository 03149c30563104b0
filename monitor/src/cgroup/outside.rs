//! Which ids are outside of a root that is a group, as far as that was asked. An id is never used again, and
//! the kernel moves no group below another one (`cgroup1_rename`; v2 has no rename): so what is known of an id
//! stays true, and only room ends it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, PoisonError},
};

/// Ids that are known at once, about 40 bytes each.
const MOST: usize = 16 * 1024;

/// The ids that were asked for lately.
#[derive(Debug, Default)]
pub(super) struct KnownIds(Mutex<LatestIds>);

#[derive(Debug, Default)]
struct LatestIds {
    is_outside: HashMap<u64, bool>,
    /// The ids, the oldest first.
    order: VecDeque<u64>,
}

impl KnownIds {
    /// Whether an id is outside, by `find` where that is not known; `None`: it is not there, which is not kept.
    pub(super) fn is_outside(&self, id: u64, find: impl FnOnce() -> Option<bool>) -> Option<bool> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(is_outside) = known().is_outside.get(&id) {
            return Some(*is_outside);
        }
        // Not under the lock: it opens a directory.
        let found = find()?;
        let mut known = known();
        if known.is_outside.insert(id, found).is_none() {
            known.order.push_back(id);
        }
        if known.order.len() > MOST
            && let Some(oldest) = known.order.pop_front()
        {
            known.is_outside.remove(&oldest);
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::{KnownIds, MOST};

    #[test]
    fn an_id_is_looked_for_once_and_the_oldest_give_way() {
        let known = KnownIds::default();
        assert_eq!(known.is_outside(1, || None), None);
        assert_eq!(known.is_outside(1, || Some(true)), Some(true), "what was not there is not kept");
        assert_eq!(known.is_outside(1, || panic!("it is known")), Some(true));
        for id in 2..=MOST as u64 + 1 {
            assert_eq!(known.is_outside(id, || Some(false)), Some(false));
        }
        assert_eq!(known.is_outside(2, || panic!("it is known")), Some(false));
        assert_eq!(known.is_outside(1, || None), None, "the oldest has given way");
    }
}
