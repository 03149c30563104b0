//! What a group is read as, for all that show groups: the operator's list, metrics.

use std::sync::atomic::Ordering;

use monitor_common::control::ControlFile;

use crate::{
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
}

/// The group in slot `index`, if there is one. The root has no counter of its own:
/// it is read as what was sampled for those who wait for it.
pub(super) fn read<S: Source>(watcher: &Watcher<S>, index: u32) -> Option<Reading> {
    let source = watcher.source();
    let slot = source.slot(index).filter(|slot| slot.state().is_live())?;
    let group = GroupId { slot: index, generation: slot.state().generation() };
    let usage = if index == source.root().slot {
        watcher.registry().group(index)?.scale(ControlFile::Usage).now()
    } else {
        source.usage(group).ok()??
    };
    Some(Reading { group, cgroup_id: slot.cgroup_id.load(Ordering::Relaxed), usage })
}

/// The most that a group read as `usage` had, in pages; `None` once it has gone.
pub(super) fn peak<S: Source>(watcher: &Watcher<S>, group: GroupId, usage: u64) -> Option<u64> {
    if group.slot == watcher.source().root().slot {
        return Some(usage);
    }
    Some(watcher.source().peak(group).ok()??.max(usage))
}
