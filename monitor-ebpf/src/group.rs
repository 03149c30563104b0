//! Groups come, are called up, and go: who has which slot.

use aya_ebpf::{EbpfContext, helpers::bpf_get_current_pid_tgid};
use aya_log_ebpf::warn;
use monitor_common::{
    ask::{Roll, Wanted},
    band::OPEN,
    ring::{Doorbell, Tally},
    slot::{PARENT_ROOT, PARENT_UNKNOWN, State},
    word::Word as _,
};

use crate::{kernel, maps};

/// Gives the memcg of `css` a slot, if it has none. Returns the slot's index,
/// [`Roll::ROOT`] or [`Roll::FULL`].
#[inline(always)]
fn track<C: EbpfContext>(ctx: &C, css: u64) -> u64 {
    let address = kernel::counter_of_css(css);
    if let Some(index) = maps::slot_of(address) {
        find_parent(index, address);
        return u64::from(index);
    }
    let parent = match kernel::parent_at(address) {
        Some(0) => return Roll::ROOT,
        Some(parent) => parent,
        None => return Roll::SILENT,
    };
    let Some(index) = maps::pop_free() else {
        maps::count(Tally::SlotsExhausted);
        warn!(ctx, "no free slot: a new group is not watched; see --max-groups");
        return Roll::FULL;
    };
    let Some(slot) = maps::slot(index) else {
        return Roll::FULL;
    };

    slot.parent.set(slot_of_parent(parent));
    slot.cgroup_id.set(kernel::cgroup_id_of_css(css).unwrap_or(0));
    slot.forget();
    slot.band.set(OPEN);
    slot.counter.set(address);
    // Last, and a full barrier: a live state vouches for the rest.
    slot.state.xchg(State::online(slot.state().generation()).0);

    if maps::enter_counter(address, index) {
        return u64::from(index);
    }
    slot.recycle();
    maps::push_free(index);
    maps::slot_of(address).map_or(Roll::FULL, u64::from)
}

/// The slot of the group whose counter is at `parent`, in the words of a slot's `parent`.
#[inline(always)]
fn slot_of_parent(parent: u64) -> u64 {
    match (maps::slot_of(parent), kernel::parent_at(parent)) {
        (Some(up), _) => u64::from(up),
        (None, Some(0)) => PARENT_ROOT,
        _ => PARENT_UNKNOWN,
    }
}

/// Looks up again the parent of a group that got its slot first: groups are read by
/// others, and made, while the agent starts. The roll call reads parents first, so after
/// it none is left but below a group without a slot.
#[inline(always)]
fn find_parent(index: u32, address: u64) {
    if let Some(slot) = maps::slot(index)
        && slot.parent.get() == PARENT_UNKNOWN
        && let Some(parent) = kernel::parent_at(address)
    {
        slot.parent.set(slot_of_parent(parent));
    }
}

/// `mem_cgroup_css_online`: a new group, before its first charge.
#[inline(always)]
pub fn online<C: EbpfContext>(ctx: &C, css: u64) {
    track(ctx, css);
}

/// `mem_cgroup_css_offline`: removed, or the controller was turned off. The
/// counter lives on and still moves its ancestors' until `freed`.
#[inline(always)]
pub fn offline(css: u64) {
    let Some(index) = maps::slot_of(kernel::counter_of_css(css)) else {
        return;
    };
    let Some(slot) = maps::slot(index) else {
        return;
    };
    if slot.mark(State::OFFLINE).has(State::WATCHED) {
        ring(index);
    }
}

/// `mem_cgroup_css_free`: the counter's memory is about to be given back.
#[inline(always)]
pub fn freed(css: u64) {
    let address = kernel::counter_of_css(css);
    let Some(index) = maps::slot_of(address) else {
        return;
    };
    maps::forget_counter(address);
    let Some(slot) = maps::slot(index) else {
        return;
    };
    // A watched slot is the agent's to recycle: it may be looking at it now.
    if slot.mark(State::FREED).has(State::WATCHED) {
        // The next group may be made at this very address: no guess may take it
        // for this one.
        slot.counter.set(0);
        ring(index);
        return;
    }
    slot.recycle();
    maps::push_free(index);
}

/// `cgroup_notify_populated`: whether any task is in a group or below it has
/// changed. Told to groups that have the controller and a watcher.
#[inline(always)]
pub fn populated(cgroup: u64, populated: u64) {
    if populated as u32 != 0 || !maps::is_wanted(Wanted::EMPTY) {
        return;
    }
    if let Some(counter) = kernel::counter_of_cgroup(cgroup)
        && let Some(index) = maps::slot_of(counter)
        && let Some(slot) = maps::slot(index)
        && slot.state().has(State::WATCHED)
    {
        slot.emptied.add(1);
        maps::ring_slot(slot, index);
    }
}

#[inline(always)]
fn ring(index: u32) {
    if let Some(slot) = maps::slot(index) {
        slot.pending.xchg(1);
    }
    maps::ring(Doorbell { kind: Doorbell::SLOT, slot: index, value: 0 });
}

/// A usage file is read. Whoever reads it, its group gets a slot; if it is the
/// agent who calls the roll, it also learns which: the kernel's own word on
/// which group a descriptor belongs to, whatever name it was opened by.
#[inline(always)]
pub fn called<C: EbpfContext>(ctx: &C, css: u64) {
    let Some(scratch) = maps::readings() else {
        return;
    };
    let index = track(ctx, css);
    if scratch.agent.get() != bpf_get_current_pid_tgid() {
        return;
    }
    scratch.slot.set(index);
    scratch.generation.set(match maps::slot(index as u32) {
        Some(slot) => slot.state().generation(),
        None => 0,
    });
    scratch.answers.set(scratch.answers.get() + 1);
}
