//! Quantities without a doorbell: the root's usage, working sets and what is not
//! reclaimable are sampled while there are
//! registrations for them.

use monitor_common::grammar::control_file::ControlFile;

use crate::{
    cgroup::host::Host,
    error::Result,
    registry::ThresholdSet,
    source::{GroupId, Source},
    watcher::{core::Core, fair_queue::Payer, hierarchy::id_of, quantity::with_reading},
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
            ControlFile::Anon => host.unreclaimable(self.cgroup_id)?,
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

/// The state of sampling.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// Whether anything had to be sampled at the last call of [`Sampling::has_begun`].
    had_any: bool,
}

impl Sampling {
    /// Whether anything has to be sampled now, and had not at the last call.
    pub(super) fn has_begun<S: Source>(&mut self, core: &Core<S>) -> bool {
        let now = has_any(core);
        let before = std::mem::replace(&mut self.had_any, now);
        now && !before
    }
}

/// Whether any registration has to be sampled.
pub(super) fn has_any<S: Source>(core: &Core<S>) -> bool {
    let root = core.source.root().slot;
    core.registry.has_on_files()
        || core.registry.group(root).is_some_and(|group| {
            [ControlFile::Usage, ControlFile::Memsw].iter().any(|file| !group.scale(*file).is_empty())
        })
}

/// The quantities to be sampled, for a thread that may block.
pub(super) fn wanted<S: Source>(core: &Core<S>) -> Vec<Sampled> {
    let root = core.source.root().slot;
    let one = |slot: u32, on: ControlFile| {
        let group = core.registry.group(slot).filter(|group| !group.scale(on).is_empty())?;
        let payer = core.turns.payer_of_samples(slot);
        Some(Sampled {
            group: group.id,
            cgroup_id: id_of(&core.source, slot),
            on,
            is_root: slot == root,
            payer,
            read: 0,
        })
    };
    let mut all: Vec<Sampled> =
        [ControlFile::Usage, ControlFile::Memsw].into_iter().filter_map(|on| one(root, on)).collect();
    if core.registry.has_on_files() {
        for slot in core.registry.slots() {
            all.extend(ControlFile::SAMPLED.into_iter().filter_map(|on| one(slot, on)));
        }
    }
    all
}

/// Takes in a sample: thresholds that were crossed since the last one are signalled in turns.
/// A change between two samples that was undone is not seen.
pub(super) fn take_in<S: Source>(core: &mut Core<S>, sampled: &Sampled) {
    let Sampled { group, on, read, is_root, .. } = *sampled;
    if core.registry.group(group.slot).is_none_or(|known| known.id != group) {
        return;
    }
    match with_reading(&core.source, group, on, is_root, read) {
        Ok(Some(now)) => core.turns.plan_sample(&core.source, group.slot, on, now),
        // Gone: a doorbell has its removal signalled.
        Ok(None) => {}
        Err(error) => log::warn!("{error}"),
    }
}

/// Pages by which the root's usage may move before it crosses anything, at least; `None`
/// where no registration is on it.
pub(super) fn root_distance<S: Source>(core: &Core<S>) -> Option<u64> {
    let group = core.registry.group(core.source.root().slot)?;
    let scales = ControlFile::QUANTITIES.map(|on| group.scale(on));
    // The band is [lo, hi); at 0 and at the highest number there is no end.
    let distance = |scale: &ThresholdSet| {
        let (band, now) = (scale.band(), scale.now());
        let down = if band.lo == 0 { u64::MAX } else { now.saturating_sub(band.lo).saturating_add(1) };
        let up = if band.hi == u64::MAX { u64::MAX } else { band.hi.saturating_sub(now) };
        down.min(up)
    };
    scales.into_iter().filter(|scale| !scale.is_empty()).map(distance).min()
}
