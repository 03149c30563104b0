//! Parents of groups that were made, or read, before their parent had a slot; and charges too deep
//! for a program's walk to the root.

use monitor_common::protocol::{
    ring::LossKind,
    slot::{PARENT_UNKNOWN, SlotState},
    word::Word as _,
};

use crate::{
    source::Source,
    watcher::{core::Core, hierarchy::above},
};

/// Slots that one sweep searches for those whose parent is unknown; `PARENTS_IN_A_SWEEP` of these
/// are queried in the kernel.
const SLOTS_IN_A_SWEEP: u32 = 8192;
const PARENTS_IN_A_SWEEP: u32 = 256;

/// Progress of the sweeps over the table.
#[derive(Debug)]
pub(super) struct ParentSearch {
    /// The slot from which on parents are still to be found, if any.
    orphans: Option<u32>,
    /// Charges that were too deep, up to the last sweep.
    deep: u64,
}

impl ParentSearch {
    pub(super) fn new(source: &impl Source) -> Self {
        Self { orphans: None, deep: source.tally(LossKind::TooDeep) }
    }

    /// Runs one sweep's part of the search for parents, as long as there may be slots whose
    /// parent is unknown: the table was full, or the groups were made while the agent started.
    pub(super) fn go_on<S: Source>(&mut self, core: &mut Core<S>) {
        if self.orphans.is_none() && core.source.take_orphans() {
            self.orphans = Some(0);
        }
        let Some(from) = self.orphans else { return };
        let end = from.saturating_add(SLOTS_IN_A_SWEEP).min(core.source.root().slot);
        let (mut index, mut queried) = (from, 0);
        while index < end && queried < PARENTS_IN_A_SWEEP {
            queried += u32::from(find_parent(core, index));
            index += 1;
        }
        self.orphans = (index < core.source.root().slot).then_some(index);
    }

    /// Whether charges since the last sweep were so deep that their walk to the root was cut
    /// short: then groups above the end of the walk are looked at. Only in the timed sweep, since
    /// any user may make such groups.
    pub(super) fn was_too_deep(&mut self, source: &impl Source) -> bool {
        let deep = source.tally(LossKind::TooDeep);
        std::mem::replace(&mut self.deep, deep) != deep
    }
}

/// Completes the table after the enumeration: finds parents of groups that were read or made
/// before their parent had a slot, and gives back slots that an agent left behind when it was
/// killed.
pub(super) fn take_stock<S: Source>(core: &mut Core<S>) {
    let root = core.source.root().slot;
    core.source.take_orphans();
    for index in 0..root {
        let Some(slot) = core.source.slot(index) else { break };
        let state = slot.state();
        if state.has(SlotState::OFFLINE) && !state.has(SlotState::WATCHED) && slot.pending.get() == 0 {
            core.source.tidy(index);
        }
        find_parent(core, index);
    }
}

/// Queries the kernel for a group's parent, where that is unknown.
fn find_parent<S: Source>(core: &mut Core<S>, index: u32) -> bool {
    let Some(slot) = core.source.slot(index) else { return false };
    let state = slot.state();
    if !state.is_live() || slot.parent.get() != PARENT_UNKNOWN || !slot.hold(state.generation()) {
        return false;
    }
    above(&core.source, index);
    // The look releases it.
    core.ring(index, 0);
    true
}
