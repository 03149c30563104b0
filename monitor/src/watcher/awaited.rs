//! The end of a group waits for what happened above it: an OOM whose doorbell may have been lost
//! is delivered before the registrations end.

use monitor_common::protocol::word::Word as _;

use crate::{
    source::Source,
    watcher::{core::Core, hierarchy::lineage},
};

/// Milliseconds: more than an OOM with 65,536 listeners takes beside others' work.
const AT_MOST: u64 = 10_000;

/// Groups above one that is gone, of which something is still to be delivered, and the time until
/// which the removal waits for that.
#[derive(Debug, Default)]
pub(super) struct AwaitedGroups {
    slots: Vec<u32>,
    until: Option<u64>,
}

impl AwaitedGroups {
    /// Whether what happened in the groups above the one at `index`, which is gone, has been
    /// delivered; then the registrations may end. True after [`AT_MOST`] in any case.
    pub(super) fn are_done<S: Source>(&mut self, core: &mut Core<S>, index: u32) -> bool {
        let now = core.host.clock();
        if self.until.is_none() {
            for above in lineage(&core.source, index).into_iter().skip(1) {
                if core.source.slot(above).is_some_and(|slot| slot.pending.get() != 0) {
                    core.ring(above, 0);
                }
                if core.turns.has_work(above) {
                    self.slots.push(above);
                }
            }
        }
        let until = *self.until.get_or_insert(now + AT_MOST);
        self.slots.retain(|above| core.turns.has_work(*above));
        self.slots.is_empty() || now >= until
    }
}
