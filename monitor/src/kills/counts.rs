//! Kills as the kernel counts them for each group: those that no line of its log told of are found by
//! the difference.
//!
//! On v2 a group's `memory.events` has the kills below it, too, so a walk goes down only where these have
//! changed.

use std::collections::HashMap;

use crate::cgroup::{
    Version,
    handle::{Directories, Directory},
    has_local_events,
    host::field,
};

/// Groups with kills that are remembered before those that are gone are forgotten.
const REMEMBERED: usize = 4096;

/// Kills of one group's processes.
#[derive(Debug, Default)]
struct Counted {
    /// Kills by the kernel's count.
    kills: u64,
    /// Kills that were told.
    told: u64,
    /// Kills that were not told at the last look, as their lines may have been on their way.
    waiting: u64,
    /// OOMs by the group's own limit, and kills of it as a whole.
    ooms: u64,
    whole: u64,
    /// The group from this one up whose limit was reached before the last look.
    limit: Option<u64>,
}

/// Kills of a group's processes that nobody told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untold {
    pub group: u64,
    pub kills: u64,
    /// Times that the group was killed as a whole.
    pub whole: u64,
    pub limit: Option<u64>,
}

/// All groups with kills, by their ids.
#[derive(Debug)]
pub(super) struct KillCounts {
    groups: HashMap<u64, Counted>,
    /// Kills of each group and all below it, at the last walk.
    totals: HashMap<u64, u64>,
    has_totals: bool,
}

impl KillCounts {
    /// Begins to count: kills so far are not told.
    pub fn new(directories: &Directories) -> Self {
        let has_totals = directories.version() == Version::V2 && !has_local_events();
        let mut counts = Self { groups: HashMap::new(), totals: HashMap::new(), has_totals };
        counts.walk(directories);
        counts.groups.values_mut().for_each(|one| one.told = one.kills);
        counts
    }

    /// Notes that a kill in a group was told; 0: one that is gone.
    pub fn told(&mut self, group: u64) {
        if group != 0 {
            self.groups.entry(group).or_default().told += 1;
        }
    }

    /// Looks for kills that were not told, and were not at the look before where lines of them may still
    /// come (`is_patient`). All lines that there are have been read.
    pub fn look(&mut self, directories: &Directories, is_patient: bool) -> Vec<Untold> {
        let wholes = self.walk(directories);
        let mut all = Vec::new();
        for (group, one) in &mut self.groups {
            // A kill is counted before its line comes.
            one.told = one.told.min(one.kills);
            let untold = one.kills - one.told;
            let kills = if is_patient { untold.min(one.waiting) } else { untold };
            let whole = if is_patient { 0 } else { wholes.get(group).copied().unwrap_or(0) };
            (one.told, one.waiting) = (one.told + kills, untold - kills);
            if kills > 0 || whole > 0 {
                all.push(Untold { group: *group, kills, whole, limit: one.limit });
            }
        }
        if self.groups.len() > REMEMBERED {
            let is_there = |id: &u64| directories.open(*id).is_ok();
            self.groups.retain(|id, _| is_there(id));
            self.totals.retain(|id, _| is_there(id));
        }
        all
    }

    /// The groups with kills that wait for their lines, and how many.
    pub fn waiting(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.groups.iter().filter(|(_, one)| one.waiting > 0).map(|(group, one)| (*group, one.waiting))
    }

    /// Notes that kills which waited were told.
    pub fn settle(&mut self, group: u64) {
        if let Some(one) = self.groups.get_mut(&group) {
            (one.told, one.waiting) = (one.kills, 0);
        }
    }

    /// Reads the counts of groups in which they may have changed; the groups that were killed as a whole
    /// since the last walk.
    fn walk(&mut self, directories: &Directories) -> HashMap<u64, u64> {
        let mut wholes = HashMap::new();
        let root = directories.root_id();
        let mut left: Vec<(u64, Option<u64>)> = vec![(root, None)];
        while let Some((id, above)) = left.pop() {
            let Ok(directory) = directories.open(id) else { continue };
            let limit = match self.see(directories, &directory, id, &mut wholes) {
                Seen::Unchanged => continue,
                Seen::Nothing if id != root && self.has_totals => continue,
                Seen::Nothing => above,
                Seen::Counts { has_oomed } => {
                    if has_oomed {
                        Some(id)
                    } else {
                        above
                    }
                }
            };
            if let Some(one) = self.groups.get_mut(&id) {
                one.limit = limit.or(one.limit.filter(|_| one.waiting > 0));
            }
            let children = directory.children().unwrap_or_default();
            left.extend(children.into_iter().map(|(child, _)| (child, limit)));
        }
        wholes
    }

    /// Reads the counts of one group.
    fn see(
        &mut self,
        directories: &Directories,
        directory: &Directory,
        id: u64,
        wholes: &mut HashMap<u64, u64>,
    ) -> Seen {
        if self.has_totals && directories.host_root() != Some(id) {
            let total = directory.text("memory.events").ok().and_then(|text| field(&text, "oom_kill"));
            let Some(total) = total else { return Seen::Nothing };
            let before = self.totals.get(&id).copied().unwrap_or(0);
            if before == total {
                return Seen::Unchanged;
            }
            self.totals.insert(id, total);
        }
        let name = match (directories.version(), self.has_totals) {
            (Version::V1, _) => "memory.oom_control",
            (Version::V2, true) => "memory.events.local",
            (Version::V2, false) => "memory.events",
        };
        let Ok(text) = directory.text(name) else { return Seen::Nothing };
        let number = |name| field(&text, name).unwrap_or(0);
        let (kills, ooms, whole) = (number("oom_kill"), number("oom"), number("oom_group_kill"));
        let one = self.groups.entry(id).or_default();
        let has_oomed = ooms > one.ooms;
        if whole > one.whole {
            wholes.insert(id, whole - one.whole);
        }
        (one.kills, one.ooms, one.whole) = (kills, ooms, whole);
        if kills == 0 && ooms == 0 {
            self.groups.remove(&id);
        }
        Seen::Counts { has_oomed }
    }
}

/// The state of a group's counts.
enum Seen {
    /// The group has no such file: it has no memory controller, or is gone.
    Nothing,
    /// There and below it nothing was killed since the last walk.
    Unchanged,
    /// It was read anew; whether its own limit was reached since.
    Counts { has_oomed: bool },
}
