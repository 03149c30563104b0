//! The table of groups as the agent keeps it: the parent of each group, slots that are held for a
//! look, parents still to be found, and groups too deep for a charge.

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        ring::LossKind,
        slot::{PARENT_ROOT, PARENT_UNKNOWN, SlotState},
        word::Word as _,
    },
};
use monitor_sys::table::SharedSlot;

use crate::{
    source::{GroupId, Source},
    watcher::Watcher,
};

/// Slots that one sweep searches for those whose parent is unknown; `PARENTS_IN_A_SWEEP` of these
/// are queried in the kernel.
const SLOTS_IN_A_SWEEP: u32 = 8192;
const PARENTS_IN_A_SWEEP: u32 = 256;

/// Groups above one that is gone, of which something is still to be delivered, and the time until
/// which the removal waits for that.
#[derive(Debug, Default)]
pub(super) struct WatchedGroups {
    slots: Vec<u32>,
    until: Option<u64>,
}

impl WatchedGroups {
    /// Milliseconds: more than an OOM with 65,536 listeners takes beside others' work.
    const AT_MOST: u64 = 10_000;
}

/// Progress of the sweeps over the table.
#[derive(Debug)]
pub(super) struct Rounds {
    /// The slot from which on parents are still to be found, if any.
    orphans: Option<u32>,
    /// Charges that were too deep, up to the last sweep.
    deep: u64,
}

impl Rounds {
    pub(super) fn new(source: &impl Source) -> Self {
        Self { orphans: None, deep: source.tally(LossKind::TooDeep) }
    }
}

impl<S: Source> Watcher<S> {
    fn group_at(&self, index: u32) -> Option<GroupId> {
        let generation = self.source.slot(index)?.state().generation();
        Some(GroupId { slot: index, generation })
    }

    /// The slot above `index`: its parent's; the nearest ancestor's, where the parent has no
    /// slot, and so no registrations; or the root's. `None` for the root, and where the parent is
    /// unknown, which is counted.
    pub(super) fn above(&self, index: u32) -> Option<u32> {
        let root = self.source.root().slot;
        match self.source.slot(index)?.parent.get() {
            _ if index == root => None,
            PARENT_ROOT => Some(root),
            PARENT_UNKNOWN => self.source.above(self.group_at(index)?).unwrap_or_else(|error| {
                log::error!("{error}");
                None
            }),
            parent => u32::try_from(parent).ok(),
        }
    }

    /// The slots of `index` and of all groups above it.
    pub(super) fn lineage(&self, index: u32) -> Vec<u32> {
        // No group is deeper than there are slots.
        let most = self.source.root().slot as usize + 1;
        std::iter::successors(Some(index), |index| self.above(*index)).take(most.max(2)).collect()
    }

    /// Holds a slot without registrations, so that it is not given back during a look. False
    /// where it has been given back: the agent has nothing to do with it.
    pub(super) fn may_look_at(&self, index: u32, slot: &SharedSlot) -> bool {
        index == self.source.root().slot
            || self.registry.group(index).is_some()
            || slot.hold(slot.state().generation())
    }

    /// The quantity of a group when it went offline, in pages.
    pub(super) fn last_of(&self, group: GroupId, on: ControlFile) -> Option<u64> {
        let slot = self.source.slot(group.slot)?;
        let state = slot.state();
        let is_its = state.generation() == group.generation && state.has(SlotState::OFFLINE);
        is_its.then(|| if on == ControlFile::Memsw { slot.sum_last.get() } else { slot.last.get() })
    }

    /// Whether what happened in the groups above one that is gone has been delivered, such as an
    /// OOM whose doorbell may have been lost; then the registrations may end. True after
    /// [`WatchedGroups::AT_MOST`] in any case.
    pub(super) fn has_delivered_above(&mut self, index: u32, awaited: &mut WatchedGroups) -> bool {
        let now = self.host.clock();
        if awaited.until.is_none() {
            for above in self.lineage(index).into_iter().skip(1) {
                if self.source.slot(above).is_some_and(|slot| slot.pending.get() != 0) {
                    self.ring(above, 0);
                }
                if self.works.contains_key(&above) {
                    awaited.slots.push(above);
                }
            }
        }
        let until = *awaited.until.get_or_insert(now + WatchedGroups::AT_MOST);
        awaited.slots.retain(|above| self.works.contains_key(above));
        awaited.slots.is_empty() || now >= until
    }

    /// Completes the table after the enumeration: finds parents of groups that were read or made
    /// before their parent had a slot, and gives back slots that an agent left behind when it was
    /// killed.
    pub fn take_stock(&mut self) {
        let root = self.source.root().slot;
        self.source.take_orphans();
        for index in 0..root {
            let Some(slot) = self.source.slot(index) else { break };
            let state = slot.state();
            if state.has(SlotState::OFFLINE) && !state.has(SlotState::WATCHED) && slot.pending.get() == 0 {
                self.source.tidy(index);
            }
            self.find_parent(index);
        }
    }

    /// Runs one sweep's part of the search for parents, as long as there may be slots whose
    /// parent is unknown: the table was full, or the groups were made while the agent started.
    pub(super) fn find_parents(&mut self) {
        if self.table.orphans.is_none() && self.source.take_orphans() {
            self.table.orphans = Some(0);
        }
        let Some(from) = self.table.orphans else { return };
        let end = from.saturating_add(SLOTS_IN_A_SWEEP).min(self.source.root().slot);
        let (mut index, mut queried) = (from, 0);
        while index < end && queried < PARENTS_IN_A_SWEEP {
            queried += u32::from(self.find_parent(index));
            index += 1;
        }
        self.table.orphans = (index < self.source.root().slot).then_some(index);
    }

    /// Queries the kernel for a group's parent, where that is unknown.
    fn find_parent(&mut self, index: u32) -> bool {
        let Some(slot) = self.source.slot(index) else { return false };
        let state = slot.state();
        if !state.is_live() || slot.parent.get() != PARENT_UNKNOWN || !slot.hold(state.generation()) {
            return false;
        }
        self.above(index);
        // The look releases it.
        self.ring(index, 0);
        true
    }

    /// Whether charges since the last sweep were so deep that their walk to the root was cut
    /// short: then groups above the end of the walk are looked at. Only in the timed sweep, since
    /// any user may make such groups.
    pub(super) fn was_too_deep(&mut self) -> bool {
        let deep = self.source.tally(LossKind::TooDeep);
        std::mem::replace(&mut self.table.deep, deep) != deep
    }
}
