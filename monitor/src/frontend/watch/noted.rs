//! The notes that a watch was told, each once, and whose turn it is to be looked at.

use std::collections::{HashMap, HashSet};

use crate::source::GroupId;

/// The thresholds of a watch that were noted, and the group that was looked at last.
#[derive(Debug, Default)]
pub(super) struct Noted {
    /// Places of the specifications, by `st_ino` of the group.
    told: HashMap<u64, u16>,
    last: u64,
}

impl Noted {
    /// The next groups to look at, so many at most, in turn.
    pub(super) fn next(&mut self, mut members: Vec<(u64, GroupId)>, most: usize) -> Vec<(u64, GroupId)> {
        let there: HashSet<u64> = members.iter().map(|(id, _)| *id).collect();
        self.told.retain(|id, _| there.contains(id));
        members.sort_unstable_by_key(|(id, _)| *id);
        let first = members.partition_point(|(id, _)| *id <= self.last);
        members.rotate_left(first);
        members.truncate(most);
        self.last = members.last().map_or(0, |(id, _)| *id);
        members
    }

    pub(super) fn has(&self, id: u64, spec: usize) -> bool {
        self.told.get(&id).is_some_and(|told| told >> spec & 1 != 0)
    }

    pub(super) fn add(&mut self, id: u64, spec: usize) {
        *self.told.entry(id).or_default() |= 1 << spec;
    }
}

#[cfg(test)]
mod tests {
    use super::Noted;
    use crate::source::GroupId;

    #[test]
    fn groups_are_looked_at_in_turn_and_noted_once() {
        let mut noted = Noted::default();
        let group = GroupId { slot: 0, generation: 0 };
        let next = |ids: &[u64], noted: &mut Noted| {
            let members = ids.iter().map(|id| (*id, group)).collect();
            noted.next(members, 2).into_iter().map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(next(&[5, 1, 3], &mut noted), [1, 3]);
        assert_eq!(next(&[5, 1, 3], &mut noted), [5, 1]);
        assert_eq!(next(&[5, 1, 3, 2], &mut noted), [2, 3]);
        assert_eq!(next(&[], &mut noted), [0; 0]);
        noted.add(3, 1);
        assert!(noted.has(3, 1) && !noted.has(3, 0) && !noted.has(1, 1));
        assert_eq!(next(&[1], &mut noted), [1]);
        assert!(!noted.has(3, 1), "it is gone");
    }
}
