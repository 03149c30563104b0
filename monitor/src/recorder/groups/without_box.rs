//! The groups that found no box, in the order in which they are looked at.

use std::collections::{HashMap, VecDeque};

use crate::source::GroupId;

/// Groups without a box, by the ids of their directories.
#[derive(Debug, Default)]
pub(super) struct WithoutBox {
    groups: HashMap<u64, GroupId>,
    /// The ids of these groups, from the one that is looked at next on.
    order: VecDeque<u64>,
}

impl WithoutBox {
    pub(super) fn add(&mut self, cgroup_id: u64, group: GroupId) {
        if self.groups.insert(cgroup_id, group).is_none() {
            self.order.push_back(cgroup_id);
        }
    }

    pub(super) fn remove(&mut self, cgroup_id: u64) {
        if self.groups.remove(&cgroup_id).is_some() {
            self.order.retain(|waiting| *waiting != cgroup_id);
        }
    }

    /// Forgets groups that are not there any more: they come and go, and no box may ever become free.
    pub(super) fn retain(&mut self, is_there: impl Fn(u64) -> bool) {
        self.groups.retain(|id, _| is_there(*id));
        self.order.retain(|id| self.groups.contains_key(id));
    }

    pub(super) fn clear(&mut self) {
        self.groups.clear();
        self.order.clear();
    }

    pub(super) fn has(&self, cgroup_id: u64) -> bool {
        self.groups.contains_key(&cgroup_id)
    }

    pub(super) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The group whose turn it is; the next time it is another's.
    pub(super) fn take_turn(&mut self) -> Option<(u64, GroupId)> {
        let cgroup_id = self.order.pop_front()?;
        self.order.push_back(cgroup_id);
        Some((cgroup_id, *self.groups.get(&cgroup_id)?))
    }
}

#[cfg(test)]
mod tests {
    use super::WithoutBox;
    use crate::source::GroupId;

    fn waiting(ids: impl IntoIterator<Item = u64>) -> WithoutBox {
        let mut waiting = WithoutBox::default();
        ids.into_iter().for_each(|id| waiting.add(id, GroupId { slot: 1, generation: id }));
        waiting
    }

    #[test]
    fn groups_without_a_box_are_looked_at_in_turn() {
        let mut waiting = waiting([7, 8, 9]);
        waiting.add(7, GroupId { slot: 2, generation: 7 });
        waiting.remove(8);
        let turns: Vec<u64> = (0..4).filter_map(|_| waiting.take_turn()).map(|(id, _)| id).collect();
        assert_eq!(turns, [7, 9, 7, 9]);
        assert!(waiting.has(9) && !waiting.has(8));
    }

    #[test]
    fn groups_that_came_and_went_without_a_box_are_forgotten() {
        let mut waiting = waiting(0..1000);
        waiting.retain(|id| id == 999);
        assert_eq!((waiting.len(), waiting.order.len()), (1, 1));
        assert_eq!(waiting.take_turn().map(|(id, _)| id), Some(999));
        waiting.clear();
        assert_eq!((waiting.take_turn(), waiting.order.len()), (None, 0));
    }
}
