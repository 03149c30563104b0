//! What a group is read as, for all that show groups: the operator's list, metrics.

use std::{ops::Range, sync::atomic::Ordering};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{usage::UNKNOWN, word::Word as _},
};

use crate::{
    error::Result,
    source::{GroupId, Source},
    watcher::Watcher,
};

/// A live group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) group: GroupId,
    /// `st_ino` of its directory.
    pub(super) cgroup_id: u64,
    /// In pages.
    pub(super) usage: u64,
    /// The most that it had, in pages; of the root, as much as now.
    pub(super) peak: u64,
    /// Its own limit in pages, as the kernel writes it; none of the root's.
    pub(super) limit: Option<u64>,
}

/// Before [`read`]: has the numbers of all groups in `slots` brought into the table.
///
/// # Errors
/// The programs could not be asked.
pub(super) fn refresh<S: Source>(watcher: &Watcher<S>, slots: Range<u32>) -> Result<()> {
    watcher.source().read_groups(slots)
}

/// The group in slot `index`, if there is one, as the table has it: where usage is kept, as
/// it is now; else as it was at the last [`refresh`]. The root has no counter of its own:
/// it is read as what was sampled for those who wait for it.
pub(super) fn read<S: Source>(watcher: &Watcher<S>, index: u32) -> Option<Reading> {
    let source = watcher.source();
    let slot = source.slot(index).filter(|slot| slot.state().is_live())?;
    let group = GroupId { slot: index, generation: slot.state().generation() };
    let cgroup_id = slot.cgroup_id.load(Ordering::Relaxed);
    if index == source.root().slot {
        let usage = watcher.registry().group(index)?.scale(ControlFile::Usage).now();
        return Some(Reading { group, cgroup_id, usage, peak: usage, limit: None });
    }
    if slot.read_of.get() != group.generation + 1 {
        return None;
    }
    let known = |pages: u64| Some(pages).filter(|pages| *pages != UNKNOWN);
    // Not known where several processors kept changing it: asked for by itself.
    let usage = known(slot.usage.get()).or_else(|| source.usage(group).ok()?)?;
    let peak = known(slot.peak.get()).or_else(|| source.peak(group).ok()?)?;
    Some(Reading { group, cgroup_id, usage, peak: peak.max(usage), limit: Some(slot.limit.get()) })
}
