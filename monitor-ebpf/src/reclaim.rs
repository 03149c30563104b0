//! Windows of reclaim, counted by level when the kernel has scanned one. The agent decides
//! which listeners that signals.
//!
//! Where the kernel evaluates no windows (7.3 and newer, on v2), they are added up here from what
//! reclaim reports (`vmpressure`). A pass of reclaim at a critical priority counts as a window in
//! which nothing was reclaimed (`vmpressure_prio`): the first `shrink_node` of each pass shows it.

use monitor_common::protocol::{
    pressure::{CRITICAL_PRIORITY, Level, WINDOW, account, is_accounted, level_of},
    query::Subscriptions,
    ring::LossKind,
    word::Word as _,
};

use crate::{black_box, group, maps, memcg};

/// Whether windows are wanted: of all groups, or of those that are recorded.
#[inline(always)]
fn are_windows_wanted() -> bool {
    maps::is_wanted(Subscriptions::PRESSURE | Subscriptions::RECORDED_WINDOWS)
}

/// Runs at `vmpressure_work_fn`: the kernel itself evaluates a window, on v2 without any
/// listener. Read before the kernel takes the sums under its lock; a window that is added
/// to in between shows in both.
#[inline(always)]
pub fn window(work: u64) {
    if !are_windows_wanted() {
        return;
    }
    let Some((scanned, reclaimed)) = memcg::window_at(work) else {
        return;
    };
    if scanned == 0 {
        return;
    }
    let counter = memcg::counter_of_vmpressure_work(work);
    count(counter, own_slot(counter), level_of(scanned, reclaimed));
}

/// A report of reclaim to `vmpressure`, in the arguments' order.
pub struct Report {
    pub gfp: u64,
    /// The group at whose limit reclaim works; 0: the host's memory is short.
    pub memcg: u64,
    /// Whether it is about the group and all below it: that is what v1 signals by.
    pub is_tree: u64,
    pub scanned: u64,
    pub reclaimed: u64,
}

/// Runs at `vmpressure`, which reclaim reports to.
#[inline(always)]
pub fn reported(report: Report) {
    // A `bool`: the rest of the register is anything.
    if report.is_tree & 0xff == 0 || !is_accounted(report.gfp) || report.scanned == 0 || !are_windows_wanted()
    {
        return;
    }
    add(memcg::scalar(report.memcg), report.scanned, report.reclaimed);
}

/// Adds to the window of a memcg, 0 for the root, and counts it if that ends it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn add(memcg: u64, scanned: u64, reclaimed: u64) -> u64 {
    let counter = if memcg == 0 { ROOT } else { memcg::counter_of_css(memcg) };
    // In each branch by itself: the verifier follows no pointer that may be of either map.
    let index = own_slot(counter);
    if index != NO_SLOT {
        if let Some(slot) = maps::slot(index)
            && let Some((scanned, reclaimed)) = account(&slot.window, scanned, reclaimed)
        {
            evaluate(counter, scanned, reclaimed);
        }
        return 0;
    }
    if !maps::is_wanted(Subscriptions::PRESSURE) {
        return 0;
    }
    let Some(sum) = maps::window_without_slot(counter) else {
        maps::count(LossKind::SkippedForGood);
        return 0;
    };
    if let Some((scanned, reclaimed)) = account(sum, scanned, reclaimed) {
        evaluate(counter, scanned, reclaimed);
    }
    0
}

/// Counts a window that has ended.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn evaluate(counter: u64, scanned: u64, reclaimed: u64) -> u64 {
    count(counter, own_slot(counter), level_of(scanned, reclaimed));
    0
}

/// Runs at `do_try_to_free_pages`: reclaim by an allocation begins, in passes.
#[inline(always)]
pub fn begun(control: u64) {
    if are_windows_wanted() && !maps::begin_passes(memcg::scalar(control)) {
        maps::count(LossKind::SkippedForGood);
    }
}

/// Runs when `do_try_to_free_pages` returns.
#[inline(always)]
pub fn ended(control: u64) {
    maps::end_passes(memcg::scalar(control));
}

/// Runs at `shrink_node`, once or more in each pass.
#[inline(always)]
pub fn node(control: u64) {
    if are_windows_wanted() {
        pass(memcg::scalar(control));
    }
}

/// Adds the window of a pass at a critical priority, when it begins. Reclaim that makes no
/// passes, as kswapd's, is not in the table.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn pass(control: u64) -> u64 {
    let Some(priority) = memcg::reclaim_priority(control) else { return 0 };
    if !maps::begin_pass(control, priority) || priority > CRITICAL_PRIORITY {
        return 0;
    }
    if let Some((gfp, memcg)) = memcg::accounted_reclaim(control)
        && is_accounted(gfp)
    {
        add(memcg, WINDOW, 0);
    }
    0
}

/// In place of the root's counter, which reclaim does not name.
const ROOT: u64 = 0;

/// In place of the slot of a group that has none. Not an `Option`, whose number may be anything where
/// there is none: the compiler copies it all the same, and the verifier refuses that.
const NO_SLOT: u32 = u32::MAX;

/// The slot of the group whose `memory` counter this is, or [`NO_SLOT`].
#[inline(always)]
fn own_slot(counter: u64) -> u32 {
    if counter == ROOT {
        return maps::root_slot();
    }
    match maps::slot_of(counter) {
        Some(index) => index,
        // Only the root has no parent: reclaim for the whole host.
        None if memcg::parent_at(counter) == Some(0) => maps::root_slot(),
        None => NO_SLOT,
    }
}

/// Counts a window of the group with this counter, whose own slot is `own`.
#[inline(always)]
fn count(counter: u64, own: u32, level: Level) {
    let has_slot = own != NO_SLOT;
    // Without a registration the windows of recorded groups alone are looked at.
    let is_told = maps::is_wanted(Subscriptions::PRESSURE) || has_slot && black_box::has_box(own);
    if !is_told {
        return;
    }
    // A group without a slot has no listeners; those above it may have.
    let index = if has_slot { own } else { group::nearest(memcg::scalar(counter)) as u32 };
    let Some(slot) = maps::slot(index) else { return };
    let [low, medium, critical] = if has_slot { &slot.windows } else { &slot.windows_below };
    match level {
        Level::Low => low.add(1),
        Level::Medium => medium.add(1),
        Level::Critical => critical.add(1),
    }
    maps::ring_slot(slot, index);
}
