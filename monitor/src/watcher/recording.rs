//! Begins and ends the recording of a group: its band is published, and its usage kept.

use monitor_common::protocol::band::Band;

use crate::{
    error::Result,
    source::{GroupId, Source},
    watcher::core::Core,
};

/// Begins to record a group, or ends it; false when the group is gone.
///
/// # Errors
/// The programs could not be queried: charges of groups below may not be looked at.
pub(super) fn set_recorded<S: Source>(core: &mut Core<S>, group: GroupId, is_recorded: bool) -> Result<bool> {
    let GroupId { slot: index, generation } = group;
    let before = core.recorded.0.get(&index).copied();
    if is_recorded {
        core.recorded.0.insert(index, generation);
    } else if before == Some(generation) {
        core.recorded.0.remove(&index);
    } else {
        // The slot is another group's by now.
        return Ok(false);
    }
    let is_registered = core.registry.group(index).is_some_and(|found| !found.is_empty());
    let Some(slot) = core.source.slot(index) else { return Ok(false) };
    if is_registered {
        if before != is_recorded.then_some(generation) {
            core.ring(index, 0);
        }
        return Ok(true);
    }
    // Held, so that it is no other group's meanwhile.
    if !slot.watch(generation) {
        return Ok(false);
    }
    slot.forget_kept();
    let band = core.recorded.band(&core.source, index, Band::EVERYTHING);
    let first = slot.memory().publish(band, core.source.band_shift());
    let outcome = if first { core.source.end_epoch() } else { Ok(()) };
    // Charges that still saw no band have kept nothing.
    let kept = core.source.usage(group).map(drop);
    // A watch may hold a new group, too.
    core.release(index);
    outcome.and(kept).map(|()| true)
}
