//! What no doorbell tells: the root's usage and working sets are read now and
//! then, while somebody waits for them; limits when one was written; thresholds
//! that flapped when they have rested.

use monitor_common::{band::Excursion, control::ControlFile};

use crate::{
    error::Result,
    registry::Clock,
    source::{GroupId, Source},
    watcher::Watcher,
};

impl<S: Source> Watcher<S> {
    /// Whether anything registered has to be sampled.
    pub fn samples(&self) -> bool {
        let root = self.source.root().slot;
        self.registry.has_working_sets()
            || self.registry.group(root).is_some_and(|group| {
                [ControlFile::Usage, ControlFile::Memsw].iter().any(|file| !group.scale(*file).is_empty())
            })
    }

    /// Reads the sampled quantities, and signals what was crossed since the last
    /// time. What came and went in between is not seen.
    pub fn sample(&mut self) {
        let root = self.source.root().slot;
        for file in [ControlFile::Usage, ControlFile::Memsw] {
            self.sample_one(root, file);
        }
        if self.registry.has_working_sets() {
            for slot in self.registry.slots() {
                self.sample_one(slot, ControlFile::WorkingSet);
            }
        }
    }

    fn sample_one(&mut self, slot: u32, file: ControlFile) {
        let Some(group) = self.registry.group(slot) else { return };
        if group.scale(file).is_empty() {
            return;
        }
        match self.quantity(group.id, file) {
            Ok(Some(now)) => self.step(slot, file, Excursion::NONE, now),
            // Gone: its removal is told by a doorbell.
            Ok(None) => {}
            Err(error) => log::warn!("{error}"),
        }
    }

    /// A quantity of a group now, in pages; `None` when it is gone.
    pub(super) fn quantity(&self, id: GroupId, file: ControlFile) -> Result<Option<u64>> {
        let is_root = id.slot == self.source.root().slot;
        match file {
            ControlFile::Usage if is_root => self.host.usage().map(Some),
            ControlFile::Memsw if is_root => self.host.sum().map(Some),
            ControlFile::Memsw => self.source.sum(id),
            ControlFile::WorkingSet => {
                let usage = if is_root { Some(self.host.usage()?) } else { self.source.usage(id)? };
                let Some(usage) = usage else { return Ok(None) };
                let inactive = self.host.inactive_file(self.id_of(id.slot))?;
                Ok(inactive.map(|inactive| usage.saturating_sub(inactive)))
            }
            // No quantity, but whether the group is still there.
            _ if is_root => Ok(Some(0)),
            _ => self.source.usage(id),
        }
    }

    /// Moves one quantity to `now`, and signals what was crossed on the way.
    pub(super) fn step(&mut self, slot: u32, file: ControlFile, seen: Excursion, now: u64) {
        let clock = self.clock();
        let Some(group) = self.registry.group_mut(slot) else { return };
        let scale = group.scale_mut(file);
        let outcome = scale.step(seen, now, clock);
        let rest = scale.rests_until();
        let cgroup_id = self.id_of(slot);
        self.rests.extend(rest.map(|until| (until, slot)));
        self.signal_crossings(cgroup_id, file, outcome, now);
    }

    /// The lowest limit from a group up to the root, in pages: what percents are
    /// of. Of the root: the host's memory. `u64::MAX` when there is none.
    pub(super) fn effective_limit(&self, slot: u32) -> Result<u64> {
        let root = self.source.root().slot;
        if slot == root {
            return self.host.ram();
        }
        let generation = self.source.slot(slot).map_or(0, |slot| slot.state().generation());
        let limit = self.source.lowest_limit(GroupId { slot, generation })?.unwrap_or(u64::MAX);
        // What the kernel writes for `max`.
        let endless = monitor_common::threshold::Pages::counter_max(crate::kernel::page_size()).0;
        Ok(if limit >= endless { u64::MAX } else { limit })
    }

    /// Some limit was written: thresholds in percent move.
    pub fn follow_limits(&mut self) {
        let groups: Vec<u32> =
            self.registry.groups().filter(|group| group.follows_limit()).map(|group| group.id.slot).collect();
        for slot in groups {
            match self.effective_limit(slot) {
                Ok(limit) => self.follow_limit(slot, limit),
                Err(error) => log::warn!("{error}"),
            }
        }
    }

    fn follow_limit(&mut self, slot: u32, limit: u64) {
        let (cgroup_id, clock) = (self.id_of(slot), self.clock());
        for file in ControlFile::QUANTITIES {
            let Some(group) = self.registry.group_mut(slot) else { return };
            let scale = group.scale_mut(file);
            let outcome = scale.follow(limit, clock);
            let now = scale.now();
            self.signal_crossings(cgroup_id, file, outcome, now);
        }
        // The bands have to follow, too.
        self.look(slot);
    }

    pub(super) fn clock(&self) -> Clock {
        Clock { now: self.host.clock(), rest: self.limits.rest }
    }

    /// Milliseconds until the first threshold has rested; `None` when none rests.
    pub fn rests(&self) -> Option<u64> {
        self.rests.first().map(|(until, _)| until.saturating_sub(self.host.clock()))
    }

    /// Ends the rest of thresholds that flapped: of those whose time is up, or of
    /// all. Those on the other side than was told last are told now.
    pub fn wake(&mut self, all: bool) {
        let clock = self.clock();
        while let Some(&(until, slot)) = self.rests.first()
            && (all || until <= clock.now)
        {
            self.rests.pop_first();
            let cgroup_id = self.id_of(slot);
            for file in ControlFile::QUANTITIES {
                let Some(group) = self.registry.group_mut(slot) else { continue };
                let scale = group.scale_mut(file);
                let outcome = scale.wake(clock, all);
                let (now, rest) = (scale.now(), scale.rests_until());
                self.rests.extend(rest.map(|until| (until, slot)));
                self.signal_crossings(cgroup_id, file, outcome, now);
            }
            // The band takes them in again.
            self.look(slot);
        }
    }
}
