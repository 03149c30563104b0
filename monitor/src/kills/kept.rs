//! The last kills, and their counts by group.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use monitor_common::protocol::ring::KillReason;

use crate::kills::Kill;

/// Kills that are kept: of more the oldest of the group with most of them go, so that a group whose
/// processes are killed all the time takes none of the others'.
const KEPT: usize = 1024;

/// Groups and reasons whose kills are counted apart: of more those go whose last kill is longest ago.
const COUNTED: usize = 1024;

/// Kills of one group's processes for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KillCount {
    /// Directory of the victims' group.
    pub cgroup: String,
    /// The reason of these kills.
    pub reason: KillReason,
    /// Processes killed since the agent started.
    pub kills: u64,
}

/// The last kills, for as long as this agent runs.
#[derive(Debug, Default)]
pub struct KillLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: VecDeque<(Arc<Kill>, String)>,
    total: u64,
    /// Kills, and the number of the last of them.
    counts: HashMap<(String, KillReason), (u64, u64)>,
}

impl Kept {
    /// Makes room for one more kill.
    fn make_room(&mut self) {
        if self.last.len() < KEPT {
            return;
        }
        let mut by_group: HashMap<&str, usize> = HashMap::new();
        for (_, cgroup) in &self.last {
            *by_group.entry(cgroup).or_default() += 1;
        }
        let most = by_group.values().max().copied().unwrap_or(0);
        // The oldest that is of such a group.
        let oldest = self.last.iter().position(|(_, cgroup)| by_group[cgroup.as_str()] == most);
        self.last.remove(oldest.unwrap_or(0));
    }
}

impl KillLog {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a kill, of a process in the group `cgroup`.
    pub(super) fn add(&self, kill: &Arc<Kill>, cgroup: String) {
        let kept = &mut *self.kept();
        kept.total += 1;
        kept.make_room();
        kept.last.push_back((Arc::clone(kill), cgroup.clone()));
        let (key, now) = ((cgroup, kill.reason), kept.total);
        if kept.counts.len() >= COUNTED && !kept.counts.contains_key(&key) {
            let oldest = kept.counts.iter().min_by_key(|(_, (_, last))| *last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                kept.counts.remove(&oldest);
            }
        }
        let count = kept.counts.entry(key).or_default();
        *count = (count.0 + 1, now);
    }

    /// The last kills, the oldest of them first.
    #[must_use]
    pub fn last(&self) -> Vec<Arc<Kill>> {
        self.kept().last.iter().map(|(kill, _)| Arc::clone(kill)).collect()
    }

    /// Kills since the agent started.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.kept().total
    }

    /// Kills by the victims' groups, in the order of their paths.
    #[must_use]
    pub fn counts(&self) -> Vec<KillCount> {
        let kept = self.kept();
        let counts = kept.counts.iter();
        let counts = counts.map(|((cgroup, reason), (kills, _))| KillCount {
            cgroup: cgroup.clone(),
            reason: *reason,
            kills: *kills,
        });
        let mut counts: Vec<_> = counts.collect();
        counts.sort_by(|one, other| (&one.cgroup, one.reason).cmp(&(&other.cgroup, other.reason)));
        counts
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{COUNTED, KEPT, KillLog};
    use crate::kills::tests::kill;

    #[test]
    fn kills_are_counted_by_group_and_the_oldest_give_way() {
        let log = KillLog::default();
        log.add(&Arc::new(kill(4711, 8, b"")), "/other".into());
        for pid in 0..KEPT as u64 + 1 {
            log.add(&Arc::new(kill(pid, 7, b"")), "/one".into());
        }
        assert_eq!(log.total(), KEPT as u64 + 2);
        let pids: Vec<_> = log.last().iter().map(|kill| kill.victim.pid).collect();
        assert_eq!((pids.len(), pids.last()), (KEPT, Some(&(KEPT as u64))));
        assert_eq!(pids[..3], [4711, 2, 3], "one group has taken the place of another");
        let counts: Vec<_> = log.counts().into_iter().map(|count| (count.cgroup, count.kills)).collect();
        assert_eq!(counts, [("/one".to_owned(), KEPT as u64 + 1), ("/other".to_owned(), 1)]);
        for group in 0..COUNTED {
            log.add(&Arc::new(kill(1, 7, b"")), format!("/{group:04}"));
        }
        let counts = log.counts();
        assert_eq!((counts.len(), counts[0].cgroup.as_str()), (COUNTED, "/0000"));
        assert!(counts.iter().all(|count| count.cgroup != "/one"), "the oldest is still there");
    }
}
