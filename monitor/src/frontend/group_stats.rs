//! Reads a group's numbers, for both that show groups: the operator's list and metrics.

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

/// Numbers of a live group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) group: GroupId,
    /// `st_ino` of the group's directory.
    pub(super) cgroup_id: u64,
    /// Memory charged now, in pages.
    pub(super) usage: u64,
    /// Most memory charged at once, in pages; for the root, the same as now.
    pub(super) peak: u64,
    /// The group's own limit in pages, as the kernel stores it; none for the root.
    pub(super) limit: Option<u64>,
}

/// Refreshes the numbers of all groups in `slots` in the table, for [`read`].
///
/// # Errors
/// The programs could not be queried.
pub(super) fn refresh<S: Source>(watcher: &Watcher<S>, slots: Range<u32>) -> Result<()> {
    watcher.source().read_groups(slots)
}

/// Reads the group in slot `index`, if there is one, from the table: where usage is kept, as
/// it is now; else as it was at the last [`refresh`]. The root has no counter of its own: its
/// usage is the last sample taken for registrations on it.
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
    // Unknown where several processors kept changing it: queried by itself.
    let usage = known(slot.usage.get()).or_else(|| source.usage(group).ok()?)?;
    let peak = known(slot.peak.get()).or_else(|| source.peak(group).ok()?)?;
    Some(Reading { group, cgroup_id, usage, peak: peak.max(usage), limit: Some(slot.limit.get()) })
}
