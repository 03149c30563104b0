//! The hierarchy of groups, as the table of slots has it.

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        slot::{PARENT_ROOT, PARENT_UNKNOWN, SlotState},
        word::Word as _,
    },
};

use crate::source::{GroupId, Source};

/// The slot above `index`: its parent's; the nearest ancestor's, where the parent has no slot, and
/// so no registrations; or the root's. `None` for the root, and where the parent is unknown, which
/// is counted.
pub(super) fn above(source: &impl Source, index: u32) -> Option<u32> {
    let root = source.root().slot;
    let slot = source.slot(index)?;
    match slot.parent.get() {
        _ if index == root => None,
        PARENT_ROOT => Some(root),
        PARENT_UNKNOWN => {
            let group = GroupId { slot: index, generation: slot.state().generation() };
            source.above(group).unwrap_or_else(|error| {
                log::error!("{error}");
                None
            })
        }
        parent => u32::try_from(parent).ok(),
    }
}

/// The slots of `index` and of all groups above it.
pub(super) fn lineage(source: &impl Source, index: u32) -> Vec<u32> {
    // No group is deeper than there are slots.
    let most = source.root().slot as usize + 1;
    std::iter::successors(Some(index), |index| above(source, *index)).take(most.max(2)).collect()
}

/// The group two levels below the root that a group is in or is; the group itself where it is
/// higher; `None` where the root is more than `levels` above.
pub(super) fn subtree_of(source: &impl Source, slot: u32, levels: usize) -> Option<u32> {
    let mut line = [slot; 3];
    for _ in 0..levels {
        let Some(above) = above(source, line[2]) else { return Some(line[0]) };
        line = [line[1], line[2], above];
    }
    None
}

/// The cgroup id of the group in a slot; 0 where there is no such slot.
pub(super) fn id_of(source: &impl Source, index: u32) -> u64 {
    source.slot(index).map_or(0, |slot| slot.cgroup_id.get())
}

/// The group in a slot, unless it is going or gone.
pub(super) fn live_group(source: &impl Source, slot: u32) -> Option<GroupId> {
    let state = source.slot(slot)?.state();
    state.is_live().then_some(GroupId { slot, generation: state.generation() })
}

/// Whether a group is still in its slot, and not going.
pub(super) fn is_there(source: &impl Source, group: GroupId) -> bool {
    group.slot == source.root().slot || live_group(source, group.slot) == Some(group)
}

/// The quantity of a group when it went offline, in pages.
pub(super) fn last_of(source: &impl Source, group: GroupId, on: ControlFile) -> Option<u64> {
    let slot = source.slot(group.slot)?;
    let state = slot.state();
    let is_its = state.generation() == group.generation && state.has(SlotState::OFFLINE);
    is_its.then(|| if on == ControlFile::Memsw { slot.sum_last.get() } else { slot.last.get() })
}
