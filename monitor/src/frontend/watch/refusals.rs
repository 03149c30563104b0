//! The groups that a watch has no registration on although they match: each is counted, and its past is
//! told, once, however often they are found and tried again.

use std::collections::HashMap;

use crate::{frontend::watch::late::Since, source::GroupId};

/// A group that was refused.
#[derive(Clone, Copy, Debug)]
struct Refused {
    /// The group of the directory, if that is known: without a place in the table it is not.
    group: Option<GroupId>,
    /// The time from which on its past was to be told at first.
    since: Since,
}

/// The groups that were refused, by `st_ino`.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<u64, Refused>);

impl Refusals {
    /// Adds a group; false where it is there already. A directory whose controller went off and on again has
    /// another group.
    pub(super) fn add(&mut self, id: u64, group: Option<GroupId>, since: Since) -> bool {
        let before = self.0.get(&id).map(|refused| refused.group);
        let is_new = match (before, group) {
            (None, _) => true,
            (Some(Some(before)), Some(group)) => before != group,
            (Some(_), _) => false,
        };
        if is_new || group.is_some() {
            self.0.insert(id, Refused { group, since });
        }
        is_new
    }

    /// The time from which on a group's past was to be told when it was refused; `None` where it was not.
    pub(super) fn since(&self, id: u64, group: GroupId) -> Option<Since> {
        let refused = self.0.get(&id)?;
        refused.group.is_none_or(|known| known == group).then_some(refused.since)
    }

    /// Notes the end of an attempt to register on a group that is there. Whether its past is to be told:
    /// by a registration, which goes on with it, or as it is the first refusal.
    pub(super) fn tried(&mut self, id: u64, group: GroupId, since: Since, is_registered: bool) -> bool {
        if is_registered {
            self.0.remove(&id);
        }
        is_registered || self.add(id, Some(group), since)
    }

    /// Forgets the groups that are not there any more.
    pub(super) fn keep(&mut self, is_there: impl Fn(u64, Option<GroupId>) -> bool) {
        self.0.retain(|id, refused| is_there(*id, refused.group));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{GroupId, Refusals, Since};

    const GROUP: GroupId = GroupId { slot: 1, generation: 1 };

    #[test]
    fn a_group_that_is_refused_again_and_again_is_told_once() {
        let mut refusals = Refusals::default();
        assert!(refusals.tried(7, GROUP, Since::Made, false));
        assert!(!refusals.tried(7, GROUP, Since::Made, false), "nothing has changed");
        assert_eq!(refusals.since(7, GROUP), Some(Since::Made));
        assert!(refusals.tried(7, GROUP, Since::Made, true), "what it did meanwhile is told");
        assert_eq!(refusals.since(7, GROUP), None);
        let after = GroupId { generation: 2, ..GROUP };
        assert!(refusals.tried(7, GROUP, Since::Made, false) && refusals.since(7, after).is_none());
        assert!(refusals.tried(7, after, Since::Made, false), "the controller went off and on");
    }

    #[test]
    fn a_group_without_a_place_is_counted_once_and_is_the_same_when_it_has_one() {
        let mut refusals = Refusals::default();
        assert!(refusals.add(7, None, Since::Now) && !refusals.add(7, None, Since::Made));
        assert_eq!(refusals.since(7, GROUP), Some(Since::Now), "it was there when the watch began");
        assert!(!refusals.add(7, Some(GROUP), Since::Now) && !refusals.add(7, None, Since::Made));
        assert_eq!(refusals.since(7, GROUP), Some(Since::Now));
    }

    #[test]
    fn a_refused_group_that_is_gone_is_forgotten() {
        let mut refusals = Refusals::default();
        assert!(refusals.add(7, None, Since::Made) && refusals.add(8, Some(GROUP), Since::Made));
        refusals.keep(|id, _| id == 7);
        assert!(refusals.add(8, Some(GROUP), Since::Made) && !refusals.add(7, None, Since::Made));
        refusals.keep(|_, group| group.is_some_and(|group| group != GROUP));
        assert!(refusals.is_empty());
    }
}
