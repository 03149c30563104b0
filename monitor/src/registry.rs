//! Who waits for what. Pure: no kernel, no sockets, no descriptors; so its rules
//! are tested as plain Rust.

use std::collections::{BTreeMap, HashMap};

use monitor_common::{
    band::{Band, Excursion},
    crossing::{Direction, Step, band_around},
};

use crate::source::{FileId, GroupId};

/// One crossing to be signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Whose eventfd.
    pub file: FileId,
    /// The threshold, in pages.
    pub threshold: u64,
    /// Which way.
    pub direction: Direction,
}

/// A group that somebody waits for.
#[derive(Debug)]
pub struct Group {
    /// Which.
    pub id: GroupId,
    /// Usage in pages at the last look: every threshold at or below it counts
    /// as crossed.
    usage: u64,
    /// Sorted by threshold; the number tells equal thresholds apart.
    thresholds: BTreeMap<(u64, u64), FileId>,
}

impl Group {
    /// The band around the last usage.
    #[must_use]
    pub fn band(&self) -> Band {
        let above = (self.usage.saturating_add(1), 0);
        band_around(
            self.thresholds.range(..above).next_back().map(|((threshold, _), _)| *threshold),
            self.thresholds.range(above..).next().map(|((threshold, _), _)| *threshold),
        )
    }

    /// Takes what was seen, and moves to `now`. Costs what was crossed, however
    /// many thresholds there are.
    pub fn step(&mut self, seen: Excursion, now: u64) -> Vec<Crossing> {
        let step = Step { from: self.usage, seen, now };
        self.usage = now;
        let (lowest, highest) = step.range();
        if lowest == highest {
            return Vec::new();
        }
        let mut crossings = Vec::new();
        for (&(threshold, _), &file) in
            self.thresholds.range((lowest.saturating_add(1), 0)..=(highest, u64::MAX))
        {
            let both = step.crossings(threshold).into_iter().flatten();
            crossings.extend(both.map(|direction| Crossing { file, threshold, direction }));
        }
        crossings
    }

    /// Usage in pages at the last look.
    #[must_use]
    pub const fn usage(&self) -> u64 {
        self.usage
    }

    /// Thresholds in pages, each with its eventfd.
    pub fn thresholds(&self) -> impl Iterator<Item = (u64, FileId)> + '_ {
        self.thresholds.iter().map(|((threshold, _), file)| (*threshold, *file))
    }

    /// Whether nobody waits here any more.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.thresholds.is_empty()
    }
}

/// All registrations, by group and by eventfd.
#[derive(Debug, Default)]
pub struct Registry {
    groups: HashMap<u32, Group>,
    files: HashMap<FileId, HashMap<u32, u32>>,
    registrations: u64,
    next: u64,
}

impl Registry {
    /// Adds one registration. The caller has looked at the group just now, so
    /// that `usage` is what the new threshold starts from: it is not signalled
    /// at registration (`__mem_cgroup_usage_register_event`).
    pub fn add(&mut self, id: GroupId, usage: u64, threshold: u64, file: FileId) {
        let group =
            self.groups.entry(id.slot).or_insert_with(|| Group { id, usage, thresholds: BTreeMap::new() });
        group.thresholds.insert((threshold, self.next), file);
        self.next += 1;
        self.registrations += 1;
        *self.files.entry(file).or_default().entry(id.slot).or_default() += 1;
    }

    /// The group in `slot`.
    #[must_use]
    pub fn group(&self, slot: u32) -> Option<&Group> {
        self.groups.get(&slot)
    }

    /// The group in `slot`.
    pub fn group_mut(&mut self, slot: u32) -> Option<&mut Group> {
        self.groups.get_mut(&slot)
    }

    /// Every watched slot.
    #[must_use]
    pub fn slots(&self) -> Vec<u32> {
        self.groups.keys().copied().collect()
    }

    /// Every registered eventfd.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        self.files.keys().copied().collect()
    }

    /// Whether anything is registered on `file`.
    #[must_use]
    pub fn has_file(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// Number of registrations.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.registrations
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.registrations == 0
    }

    /// A group went: forgets its registrations, returns them as
    /// (eventfd, how many), for each is signalled once more.
    pub fn remove_group(&mut self, slot: u32) -> Vec<(FileId, u32)> {
        let Some(group) = self.groups.remove(&slot) else {
            return Vec::new();
        };
        let mut counts: BTreeMap<FileId, u32> = BTreeMap::new();
        for file in group.thresholds.into_values() {
            *counts.entry(file).or_default() += 1;
            self.registrations -= 1;
        }
        for file in counts.keys() {
            if let Some(groups) = self.files.get_mut(file) {
                groups.remove(&slot);
                if groups.is_empty() {
                    self.files.remove(file);
                }
            }
        }
        counts.into_iter().collect()
    }

    /// An eventfd's last user went: forgets its registrations everywhere,
    /// returns the slots they were on.
    pub fn remove_file(&mut self, file: FileId) -> Vec<u32> {
        let Some(groups) = self.files.remove(&file) else {
            return Vec::new();
        };
        for slot in groups.keys() {
            if let Some(group) = self.groups.get_mut(slot) {
                let before = group.thresholds.len();
                group.thresholds.retain(|_, held| *held != file);
                self.registrations -= (before - group.thresholds.len()) as u64;
            }
        }
        groups.into_keys().collect()
    }

    /// Forgets a group on which nothing is left.
    pub fn forget_group(&mut self, slot: u32) {
        if self.groups.get(&slot).is_some_and(Group::is_empty) {
            self.groups.remove(&slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use monitor_common::{
        band::{Band, Excursion},
        crossing::Direction::{Down, Up},
    };

    use super::{Crossing, FileId, GroupId, Registry};

    const A: FileId = FileId(1);
    const B: FileId = FileId(2);
    const G: GroupId = GroupId { slot: 7, generation: 1 };

    fn quiet(registry: &mut Registry, now: u64) -> Vec<Crossing> {
        registry.group_mut(G.slot).map(|group| group.step(Excursion::NONE, now)).unwrap_or_default()
    }

    #[test]
    fn each_entry_is_signalled_duplicates_included() {
        let mut registry = Registry::default();
        for (threshold, file) in [(10, A), (10, A), (20, B), (30, A)] {
            registry.add(G, 0, threshold, file);
        }
        let up = |threshold, file| Crossing { file, threshold, direction: Up };
        assert_eq!(quiet(&mut registry, 20), vec![up(10, A), up(10, A), up(20, B)]);
        assert_eq!(registry.group(7).map(super::Group::band), Some(Band { lo: 20, hi: 30 }));
        assert_eq!(quiet(&mut registry, 19), vec![Crossing { file: B, threshold: 20, direction: Down }]);
    }

    #[test]
    fn standing_still_crosses_nothing() {
        let mut registry = Registry::default();
        registry.add(G, 10, 10, A);
        assert_eq!(quiet(&mut registry, 10), vec![]);
        assert_eq!(quiet(&mut registry, u64::MAX), vec![]);
        assert_eq!(quiet(&mut registry, u64::MAX), vec![]);
    }

    #[test]
    fn registered_above_first_hears_of_the_drop() {
        let mut registry = Registry::default();
        registry.add(G, 50, 10, A);
        assert_eq!(quiet(&mut registry, 60), vec![]);
        assert_eq!(quiet(&mut registry, 9), vec![Crossing { file: A, threshold: 10, direction: Down }]);
    }

    #[test]
    fn removal_counts_every_registration() {
        let mut registry = Registry::default();
        registry.add(G, 0, 10, A);
        registry.add(G, 0, 20, A);
        registry.add(G, 0, 20, B);
        assert_eq!(registry.remove_group(7), vec![(A, 2), (B, 1)]);
        assert!(registry.is_empty());
        assert_eq!(registry.files(), vec![]);
    }

    #[test]
    fn closing_an_eventfd_leaves_the_others() {
        let mut registry = Registry::default();
        registry.add(G, 0, 10, A);
        registry.add(G, 0, 10, B);
        registry.add(GroupId { slot: 8, generation: 3 }, 0, 10, A);
        let mut slots = registry.remove_file(A);
        slots.sort_unstable();
        assert_eq!(slots, vec![7, 8]);
        assert_eq!(registry.len(), 1);
        registry.forget_group(8);
        registry.forget_group(7);
        assert_eq!(registry.slots(), vec![7]);
    }

    #[test]
    fn zero_and_the_maximum_never_fire() {
        let mut registry = Registry::default();
        registry.add(G, 5, 0, A);
        registry.add(G, 5, i64::MAX as u64 / 4096, A);
        assert_eq!(quiet(&mut registry, 0), vec![]);
        assert_eq!(quiet(&mut registry, 1 << 40), vec![]);
    }
}
