//! Windows of reclaim, counted by level when the kernel has scanned one. The agent decides
//! which listeners that signals.

use monitor_common::protocol::{
    pressure::{Level, level_of},
    query::Subscriptions,
    word::Word as _,
};

use crate::{group, maps, memcg};

/// Runs at `vmpressure_work_fn`: the kernel itself evaluates a window, on v2 without any
/// listener. Read before the kernel takes the sums under its lock; a window that is added
/// to in between shows in both.
#[inline(always)]
pub fn window(work: u64) {
    if !maps::is_wanted(Subscriptions::PRESSURE) {
        return;
    }
    let Some((scanned, reclaimed)) = memcg::window_at(work) else {
        return;
    };
    if scanned == 0 {
        return;
    }
    let counter = memcg::counter_of_vmpressure_work(work);
    let own = match maps::slot_of(counter) {
        Some(index) => Some(index),
        // Only the root has no parent: reclaim for the whole host.
        None if memcg::parent_at(counter) == Some(0) => Some(maps::root_slot()),
        None => None,
    };
    // A group without a slot has no listeners; those above it may have.
    let index = own.unwrap_or_else(|| group::nearest(memcg::scalar(counter)) as u32);
    let Some(slot) = maps::slot(index) else { return };
    let [low, medium, critical] = if own.is_some() { &slot.windows } else { &slot.windows_below };
    match level_of(scanned, reclaimed) {
        Level::Low => low.add(1),
        Level::Medium => medium.add(1),
        Level::Critical => critical.add(1),
    }
    maps::ring_slot(slot, index);
}
