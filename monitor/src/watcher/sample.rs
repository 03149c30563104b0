//! Quantities without a doorbell: the root's usage and working sets are sampled while there are
//! registrations for them; thresholds that flapped are looked at when their hold-off is over.

use monitor_common::grammar::control_file::ControlFile;

use crate::{
    cgroup::host::Host,
    error::Result,
    registry::{Clock, ThresholdSet},
    source::{GroupId, Source},
    watcher::{Watcher, fair_queue::Payer},
};

/// One quantity that no program reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// The group that has it.
    pub group: GroupId,
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// The control file of the quantity.
    pub on: ControlFile,
    /// Whether the group is the root.
    pub is_root: bool,
    /// The payer of the sample.
    pub payer: Payer,
    /// The number that was read, in pages: inactive file pages for a group's working set, else
    /// the quantity itself.
    pub read: u64,
}

impl Sampled {
    /// Reads the quantity, which may take long; `None` when the group is gone.
    ///
    /// # Errors
    /// The files could not be read.
    pub fn read(self, host: &dyn Host) -> Result<Option<Self>> {
        let read = match self.on {
            ControlFile::Memsw => Some(host.sum()?),
            ControlFile::WorkingSet => {
                let inactive = host.inactive_file(self.cgroup_id)?;
                let usage = if self.is_root { Some(host.usage()?) } else { None };
                inactive.map(|inactive| usage.map_or(inactive, |usage| usage.saturating_sub(inactive)))
            }
            _ => Some(host.usage()?),
        };
        Ok(read.map(|read| Self { read, ..self }))
    }
}

impl<S: Source> Watcher<S> {
    /// Whether any registration has to be sampled.
    pub fn samples(&self) -> bool {
        let root = self.source.root().slot;
        self.registry.has_working_sets()
            || self.registry.group(root).is_some_and(|group| {
                [ControlFile::Usage, ControlFile::Memsw].iter().any(|file| !group.scale(*file).is_empty())
            })
    }

    /// Whether anything has to be sampled now, and had not at the last call.
    pub fn samples_anew(&mut self) -> bool {
        let (before, now) = (self.sampling, self.samples());
        self.sampling = now;
        now && !before
    }

    /// The quantities to be sampled, for a thread that may block.
    pub fn to_be_sampled(&self) -> Vec<Sampled> {
        let root = self.source.root().slot;
        let wanted = |slot: u32, on: ControlFile| {
            let group = self.registry.group(slot).filter(|group| !group.scale(on).is_empty())?;
            let payer = self.payer_of_samples(slot);
            Some(Sampled {
                group: group.id,
                cgroup_id: self.id_of(slot),
                on,
                is_root: slot == root,
                payer,
                read: 0,
            })
        };
        let mut all: Vec<Sampled> =
            [ControlFile::Usage, ControlFile::Memsw].into_iter().filter_map(|on| wanted(root, on)).collect();
        if self.registry.has_working_sets() {
            let slots = self.registry.slots().into_iter();
            all.extend(slots.filter_map(|slot| wanted(slot, ControlFile::WorkingSet)));
        }
        all
    }

    /// Takes in a sample: thresholds that were crossed since the last one are signalled in turns.
    /// A change between two samples that was undone is not seen.
    pub fn sampled(&mut self, sampled: &Sampled) {
        let Sampled { group, on, read, is_root, .. } = *sampled;
        if self.registry.group(group.slot).is_none_or(|known| known.id != group) {
            return;
        }
        match self.with_reading(group, on, is_root, read) {
            Ok(Some(now)) => self.plan_sample(group.slot, on, now),
            // Gone: a doorbell has its removal signalled.
            Ok(None) => {}
            Err(error) => log::warn!("{error}"),
        }
    }

    /// A quantity with the part of it that was read from a file.
    pub(super) fn with_reading(
        &self,
        id: GroupId,
        on: ControlFile,
        is_root: bool,
        read: u64,
    ) -> Result<Option<u64>> {
        match on {
            ControlFile::WorkingSet if !is_root => {
                Ok(self.source.usage(id)?.map(|usage| usage.saturating_sub(read)))
            }
            _ => Ok(Some(read)),
        }
    }

    /// Pages by which the root's usage may move before it crosses anything, at least; `None`
    /// where no registration is on it.
    pub fn root_distance(&self) -> Option<u64> {
        let group = self.registry.group(self.source.root().slot)?;
        let scales = [ControlFile::Usage, ControlFile::Memsw].map(|on| group.scale(on));
        // The band is [lo, hi); at 0 and at the highest number there is no end.
        let distance = |scale: &ThresholdSet| {
            let (band, now) = (scale.band(), scale.now());
            let down = if band.lo == 0 { u64::MAX } else { now.saturating_sub(band.lo).saturating_add(1) };
            let up = if band.hi == u64::MAX { u64::MAX } else { band.hi.saturating_sub(now) };
            down.min(up)
        };
        scales.into_iter().filter(|scale| !scale.is_empty()).map(distance).min()
    }

    /// The present quantity of a group, in pages; `None` when it is gone.
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

    pub(super) fn clock(&self) -> Clock {
        Clock { now: self.host.clock(), holdoff: self.limits.rest }
    }

    /// Milliseconds until something is due by the clock: the end of a hold-off, or limits that
    /// were written; `None` when nothing is.
    pub fn due_in(&self) -> Option<u64> {
        let (holdoff_end, now) = (self.holdoffs.first().map(|(until, _)| *until), self.host.clock());
        holdoff_end.into_iter().chain(self.written.due()).min().map(|when| when.saturating_sub(now))
    }

    /// Queues what is due by the clock: ends the hold-off of thresholds that flapped and whose
    /// time is up, or of `all` (those on the other side than was signalled last are signalled
    /// now); and reads limits that were written.
    pub fn wake(&mut self, all: bool) {
        let now = self.host.clock();
        while let Some(&(until, slot)) = self.holdoffs.first()
            && (all || until <= now)
        {
            self.holdoffs.pop_first();
            self.plan_wake(slot, all);
        }
        if all {
            self.follow_now();
        }
        self.follow_if_due();
    }
}
