//! The groups that a kill is of: from the one whose limit was reached down to the victim's. They are known by
//! their paths, and a group that is gone may have a successor at its own.

use monitor_common::protocol::ring::KillReason;

use crate::recorder::history::RecordedGroup;

/// A group as a kill names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct KillGroup<'a> {
    pub path: &'a str,
    /// The id of its directory; 0: not known.
    pub cgroup_id: u64,
}

impl KillGroup<'_> {
    /// Whether the recorded group at this path is this one, and not its successor or predecessor.
    const fn is(self, one: &RecordedGroup) -> bool {
        self.cgroup_id == 0 || self.cgroup_id == one.cgroup_id
    }
}

/// The first and the last group that a kill is of.
#[derive(Clone, Copy, Debug)]
pub(super) struct KillScope<'a> {
    victim: KillGroup<'a>,
    /// The group whose limit was reached; `None`: it is not known.
    limit: Option<KillGroup<'a>>,
}

impl<'a> KillScope<'a> {
    pub(super) fn new(victim: KillGroup<'a>, limit: Option<KillGroup<'a>>, reason: KillReason) -> Self {
        // The host's own is of all groups that the victim was in.
        let host = (reason == KillReason::Host).then_some(KillGroup { path: "/", cgroup_id: 0 });
        Self { victim, limit: limit.or(host) }
    }

    /// Whether the kill is of a recorded group.
    pub(super) fn has(&self, one: &RecordedGroup) -> bool {
        let Self { victim, limit } = self;
        if victim.path == one.path {
            return victim.is(one);
        }
        // By a limit that is not known it is of the victim's group alone.
        let Some(limit) = limit else { return false };
        if limit.path == one.path {
            return limit.is(one);
        }
        // The ids of the groups between are not told: one that is gone may have been removed before the kill.
        one.gone.is_none() && is_below(&one.path, limit.path) && is_below(victim.path, &one.path)
    }
}

/// Whether a path is another one, or below it.
fn is_below(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use monitor_common::protocol::ring::KillReason;

    use super::{KillGroup, KillScope};
    use crate::{recorder::history::RecordedGroup, source::GroupId};

    fn recorded(path: &str, cgroup_id: u64) -> RecordedGroup {
        RecordedGroup::new(GroupId { slot: 1, generation: 2 }, cgroup_id, path.to_owned())
    }

    fn gone(path: &str, cgroup_id: u64) -> RecordedGroup {
        let mut one = recorded(path, cgroup_id);
        one.gone = Some(Instant::now());
        one
    }

    fn named(path: &str) -> KillGroup<'_> {
        KillGroup { path, cgroup_id: 0 }
    }

    #[test]
    fn a_kill_is_of_the_groups_from_the_limits_down_to_the_victims() {
        let has = |limit, victim, path: &str| {
            let scope = KillScope::new(named(victim), Some(named(limit)), KillReason::Limit);
            scope.has(&recorded(path, 7))
        };
        let of = |path| has("/pod", "/pod/box/inner", path);
        assert!(of("/pod") && of("/pod/box") && of("/pod/box/inner"));
        assert!(!of("/") && !of("/pods") && !of("/pod/bo") && !of("/pod/box/inner/x") && !of("/pod/other"));
        assert!(has("/a", "#7", "/a"), "the victim's group is gone");
        let host = KillScope::new(named("/pod/box"), None, KillReason::Host);
        let hosts = |path| host.has(&recorded(path, 7));
        assert!(hosts("/pod") && hosts("/pod/box") && !hosts("/pod/box/inner") && !hosts("/other"));
    }

    #[test]
    fn a_group_that_is_gone_gets_no_kills_of_the_one_made_anew_at_its_path() {
        let victim = KillGroup { path: "/pod/box/inner", cgroup_id: 30 };
        let limit = Some(KillGroup { path: "/pod", cgroup_id: 10 });
        let scope = KillScope::new(victim, limit, KillReason::Limit);
        for (path, cgroup_id) in [("/pod", 10), ("/pod/box", 20), ("/pod/box/inner", 30)] {
            assert!(scope.has(&recorded(path, cgroup_id)), "{path}");
            assert!(!scope.has(&gone(path, cgroup_id - 1)), "{path}");
        }
        assert!(scope.has(&gone("/pod/box/inner", 30)), "a kill may be heard of after the group has gone");
        let logged = KillScope::new(named("/pod/box/inner"), limit, KillReason::Limit);
        assert!(logged.has(&gone("/pod/box/inner", 30)), "its path alone is known");
    }

    #[test]
    fn a_kill_by_a_limit_that_is_not_known_is_of_the_victims_group_alone() {
        for reason in [KillReason::Limit, KillReason::LoweredLimit, KillReason::Unknown] {
            let scope = KillScope::new(named("/pod/box"), None, reason);
            assert!(scope.has(&recorded("/pod/box", 7)));
            assert!(!scope.has(&recorded("/pod", 7)) && !scope.has(&recorded("/pod/box/inner", 7)));
        }
    }
}
