//! Groups are created, enumerated and removed: which group has which slot. On a slot's life,
//! and why it has one owner: `monitor_common::protocol::life`.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns},
};
use aya_log_ebpf::warn;
use monitor_common::protocol::{
    band::OPEN,
    oom::{hold_of, release},
    query::{Enumeration, Query, Subscriptions},
    ring::{Doorbell, LossKind},
    slot::{NOT_POPULATED, PARENT_ROOT, PARENT_UNKNOWN, POPULATED, REACH, Slot, SlotState},
    word::Word as _,
};

use crate::{black_box, guess, maps, memcg, word::BpfWord};

// Global functions, as in `charge`: the verifier checks each once, for all programs that
// call it.

/// Gives the memcg of `css` a slot, if it has none. Returns the slot's index,
/// [`Enumeration::ROOT`], [`Enumeration::FULL`] or [`Enumeration::SILENT`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn track(css: u64) -> u64 {
    let address = memcg::counter_of_css(css);
    let parent = match memcg::parent_at(address) {
        Some(0) => return Enumeration::ROOT,
        Some(parent) => parent,
        None => return Enumeration::SILENT,
    };
    let id = memcg::cgroup_id_of_css(css).unwrap_or(0);
    let known = slot_of_group(address, id);
    if known != TOP {
        if let Some(slot) = maps::slot(known as u32)
            && slot.parent.get() == PARENT_UNKNOWN
        {
            find_parent(known as u32, parent);
        }
        return known;
    }
    let Some(index) = maps::pop_free() else {
        if maps::is_refused_anew(id) {
            maps::count(LossKind::SlotsExhausted);
        }
        return Enumeration::FULL;
    };
    let Some(slot) = maps::slot(index) else {
        return Enumeration::FULL;
    };

    slot.parent.set(PARENT_UNKNOWN);
    slot.cgroup_id.set(id);
    slot.forget();
    slot.oom_calls.set(memcg::ooms_at(address).unwrap_or(0));
    slot.band.set(OPEN);
    slot.counter.set(address);
    let is_told = maps::is_wanted(Subscriptions::GROUPS);
    let generation = slot.state().generation();
    let state = if is_told { SlotState::announced(generation) } else { SlotState::online(generation) };
    // Last, and a full barrier: a live state vouches for the rest.
    slot.state.xchg(state.0);

    if !maps::enter_counter(address, index) {
        slot.recycle();
        maps::push_free(index);
        return maps::slot_of(address).map_or(Enumeration::FULL, u64::from);
    }
    // After the entry, which CPUs that remember that there is none look for.
    guess::remember(address.wrapping_sub(guess::base()), index);
    find_parent(index, parent);
    if is_told {
        maps::ring_new(slot, index);
    }
    u64::from(index)
}

/// The slot of the group with this id, whose counter is at `address`, or [`TOP`]. While no program was
/// called, another group may have gone, and its memory have become this one's: that one's slot is left
/// first. Charges do not compare the ids: this is for groups that are made, read or queried.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn slot_of_group(address: u64, id: u64) -> u64 {
    let Some(index) = maps::slot_of(address) else { return TOP };
    let Some(slot) = maps::slot(index) else { return TOP };
    let of = slot.cgroup_id.get();
    // 0: it could not be read.
    if of == id || of == 0 || id == 0 {
        return u64::from(index);
    }
    // One of those that find it leaves it; the others find the slot of this group, or make it.
    if slot.counter.cas(address, 0) == address {
        maps::forget_counter(address);
        if leave_unseen(index) != 0 {
            maps::ring(Doorbell { kind: Doorbell::SLOT, slot: index, value: 0 });
        } else {
            give_back(index);
        }
    }
    TOP
}

/// Names the parent of slot `index`, whose counter is at `parent`, if it has a slot. Where
/// not, its children's charges go by the kernel's own pointers, and the agent is notified
/// that there is such a slot: groups are read by others, and made, while the agent
/// starts, and the table may be full.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_parent(index: u32, parent: u64) -> u64 {
    let Some(slot) = maps::slot(index) else { return 0 };
    if let Some(up) = maps::slot_of(parent) {
        name(slot, up, parent);
    } else if memcg::parent_at(parent) == Some(0) {
        slot.parent.cas(PARENT_UNKNOWN, PARENT_ROOT);
    }
    if slot.parent.get() == PARENT_UNKNOWN {
        maps::raise_orphans();
    }
    0
}

/// Makes slot `up`, of the group whose counter is at `address`, the parent of `slot`,
/// which has none.
#[inline(always)]
fn name(slot: &Slot<BpfWord>, up: u32, address: u64) {
    let Some(above) = maps::slot(up) else { return };
    if above.name(address) && slot.parent.cas(PARENT_UNKNOWN, u64::from(up)) == PARENT_UNKNOWN {
        return;
    }
    above.unname();
    // It may have waited for this alone.
    give_back(up);
}

/// Levels that are climbed in one call; see `charge`.
const LEVELS: usize = 8;

/// Stands for a slot's index where no group up to the root has a slot.
pub const TOP: u64 = u32::MAX as u64;

/// The slot of the group whose memory, or swap, counter is at `address`; [`TOP`] if it has
/// none: the first charge of a group, counters that are no group's memory (swap, hugetlb),
/// groups that are removed, or found the table full.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn place(address: u64, distance: u64) -> u64 {
    // On v1 each charge is looked up here once more, for memory+swap.
    let (of_swap, swap_distance) = (memcg::memory_of_swap(address), memcg::memory_of_swap(distance));
    if let Some((index, _)) = guess::slot_of(swap_distance, of_swap) {
        return index.into();
    }
    // Both, since a group that gets a slot makes only its memory's guess right.
    if guess::is_slotless(distance, address) && guess::is_slotless(swap_distance, of_swap) {
        return TOP;
    }
    if let Some(index) = look_up(address, distance, of_swap, swap_distance) {
        return index.into();
    }
    guess::remember_none(distance, address);
    guess::remember_none(swap_distance, of_swap);
    look_up(address, distance, of_swap, swap_distance).map_or(TOP, u64::from)
}

/// Looks a memory counter up in `COUNTERS`, then that of the group whose swap counter it may be;
/// what is found is remembered as the next guess.
#[inline(always)]
fn look_up(address: u64, distance: u64, of_swap: u64, swap_distance: u64) -> Option<u32> {
    if let Some(index) = maps::slot_of(address) {
        guess::remember(distance, index);
        return Some(index);
    }
    let index = maps::slot_of(of_swap)?;
    guess::remember(swap_distance, index);
    Some(index)
}

/// Looks for the first of the next [`LEVELS`] counters above `address` that has a slot:
/// its index, the address where to go on, or [`TOP`]. Above a swap counter, for that of
/// its group.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn find_up(address: u64) -> u64 {
    let (mut address, base) = (address, guess::base());
    for _ in 0..maps::rolled(LEVELS) {
        let Some(up) = memcg::parent_at(address) else { return TOP };
        if up == 0 {
            return TOP;
        }
        let index = place(up, up.wrapping_sub(base));
        if index != TOP {
            return index;
        }
        address = up;
    }
    address
}

/// The slot of the nearest group above the counter at `address` that has one; the root's
/// where there is none. [`TOP`] if the hierarchy is deeper than [`REACH`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn nearest(address: u64) -> u64 {
    let mut at = address;
    for _ in 0..maps::rolled(REACH / LEVELS) {
        at = find_up(at);
        if at == TOP {
            return u64::from(maps::root_slot());
        }
        if at >> 63 == 0 {
            return at;
        }
    }
    TOP
}

/// The slot of the nearest group above that of slot `index` that has one, or [`TOP`] where
/// it is not known. The parent gets a slot, if there is room.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn above(index: u32, generation: u64) -> u64 {
    let Some(slot) = maps::slot(index) else { return TOP };
    let address = slot.counter.get();
    let state = slot.state();
    if address == 0 || !state.is_live() || state.generation() != generation {
        return TOP;
    }
    let Some(parent) = memcg::parent_at(address) else { return TOP };
    track(memcg::css_of_counter(parent));
    find_parent(index, parent);
    let known = slot.parent.get();
    if known == PARENT_ROOT {
        return u64::from(maps::root_slot());
    }
    if known == PARENT_UNKNOWN { nearest(address) } else { known }
}

/// Runs at `mem_cgroup_css_online`: a new group, before its first charge.
#[inline(always)]
pub fn online<C: EbpfContext>(ctx: &C, css: u64) {
    let index = track(memcg::scalar(css));
    black_box::made(index);
    if index == Enumeration::FULL && is_time_to_say() {
        warn!(ctx, "no free slot: a new group is not watched; see --max-groups");
    }
}

/// Whether ten seconds have gone by since this was true: what any user can bring about
/// does not fill the log.
#[inline(always)]
fn is_time_to_say() -> bool {
    const PAUSE: u64 = 10_000_000_000;
    // SAFETY: reads a clock.
    let now = unsafe { bpf_ktime_get_ns() };
    let last = maps::last_said().get();
    now.wrapping_sub(last) >= PAUSE && maps::last_said().cas(last, now) == last
}

/// Runs at `mem_cgroup_css_offline`: removed, or the controller was turned off. The counter lives
/// on, perhaps for long, and still moves its ancestors', which are found by the kernel's
/// own pointers; the slot is given back, or left to the agent.
#[inline(always)]
pub fn offline(css: u64) {
    depart(memcg::counter_of_css(memcg::scalar(css)));
}

/// Runs at `mem_cgroup_css_free`: the counter's memory is about to be given back. There is
/// nothing left to do, unless the kernel has skipped the program at `mem_cgroup_css_offline`.
#[inline(always)]
pub fn freed(css: u64) {
    depart(memcg::counter_of_css(memcg::scalar(css)));
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn depart(address: u64) -> u64 {
    let Some(index) = maps::slot_of(address) else {
        maps::forget_window(address);
        return 0;
    };
    maps::forget_counter(address);
    let Some(slot) = maps::slot(index) else { return 0 };
    if slot.parent.get() == PARENT_UNKNOWN {
        // To signal what is left here, the agent has to know what is above: now or never.
        let up = nearest(address);
        if up == u64::from(maps::root_slot()) {
            slot.parent.cas(PARENT_UNKNOWN, PARENT_ROOT);
        } else if let Some(above) = maps::slot(up as u32) {
            name(slot, up as u32, above.counter.get());
        }
    }
    free_from_oom(index);
    let usage = memcg::usage_at(address).unwrap_or(0);
    let sum = memcg::sum_at(address).map_or(usage, |(sum, _)| sum);
    if slot.state().has(SlotState::WATCHED) {
        // For an agent that comes to know the group only now.
        // Not in `peak`, which the agent clears as it publishes a band.
        slot.window.set(memcg::watermark_at(address).unwrap_or(usage));
        slot.limit.set(memcg::limit_at(address).unwrap_or(u64::MAX));
    }
    if slot.leave(usage, sum) {
        maps::ring(Doorbell { kind: Doorbell::SLOT, slot: index, value: 0 });
    } else {
        give_back(index);
    }
    0
}

/// Does what [`offline`] does for a group whose removal the kernel has kept from the programs.
/// The agent watches the slot, so it is given back by no other; the counter may be gone, and
/// is not read.
#[inline(always)]
pub fn depart_unseen(index: u32, generation: u64) -> Option<u64> {
    let slot = maps::slot(index)?;
    let state = slot.state();
    if !state.is_live() || state.generation() != generation {
        return None;
    }
    // As in `slot_of_group`, which may be leaving it now.
    let address = slot.counter.get();
    if slot.counter.cas(address, 0) != address {
        return None;
    }
    maps::forget_counter(address);
    leave_unseen(index);
    Some(0)
}

/// Takes slot `index` from a group that has gone unseen, and whose last readings are not known. Not 0
/// when the agent has to look.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn leave_unseen(index: u32) -> u64 {
    let Some(slot) = maps::slot(index) else { return 0 };
    free_from_oom(index);
    slot.window.set(Slot::<u64>::PEAK_UNKNOWN);
    u64::from(slot.leave(slot.last.get(), slot.sum_last.get()))
}

/// Ends the hold of an OOM by the limit of the group in slot `index`, whose end would not
/// find the slot any more.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn free_from_oom(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index) {
        release(maps::slot, index, hold_of(slot));
    }
    0
}

/// Gives slot `index` back if it is not needed. Returns the slot above it, which may have
/// waited for that, or [`Query::NOWHERE`].
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn give_back(index: u32) -> u64 {
    let Some(slot) = maps::slot(index) else { return Query::NOWHERE };
    if index == maps::root_slot() || !slot.retire() {
        return Query::NOWHERE;
    }
    let parent = slot.parent.get();
    // Of an OOM that had found the slot before its group went.
    free_from_oom(index);
    slot.clear();
    maps::push_free(index);
    if parent >= u64::from(maps::root_slot()) {
        return Query::NOWHERE;
    }
    let Some(above) = maps::slot(parent as u32) else { return Query::NOWHERE };
    above.unname();
    parent
}

/// The slot of the group of `css`, whose limit was reached: if it has none, now is the
/// time for it, since those below are to be signalled.
#[inline(always)]
pub fn place_of_oom(css: u64) -> Option<u32> {
    match track(memcg::scalar(css)) {
        Enumeration::FULL if maps::is_wanted(Subscriptions::OOM) => {
            maps::count(LossKind::OomUnplaced);
            None
        }
        Enumeration::FULL | Enumeration::ROOT | Enumeration::SILENT => None,
        index => Some(index as u32),
    }
}

/// Runs at `cgroup_notify_populated`: whether any task is in a group or below it has
/// changed. Recorded for groups that have the controller and are watched.
#[inline(always)]
pub fn populated(cgroup: u64, populated: u64) {
    if !maps::is_wanted(Subscriptions::EMPTY) {
        return;
    }
    if let Some(counter) = memcg::counter_of_cgroup(cgroup)
        && let Some(index) = maps::slot_of(counter)
        && let Some(slot) = maps::slot(index)
        && slot.state().has(SlotState::WATCHED)
    {
        // Where a call is skipped, this is what it was before.
        slot.populated.set(if populated as u32 == 0 { NOT_POPULATED } else { POPULATED });
        if populated as u32 == 0 {
            slot.emptied.add(1);
            maps::ring_slot(slot, index);
        }
    }
}

/// Runs when a usage file is read. Whichever process reads it, its group gets a slot; if the
/// agent reads it to enumerate groups, or queries it by its directory, it is also answered which: the
/// kernel's own word on which group a descriptor belongs to, whatever name it was opened by.
#[inline(always)]
pub fn called(css: u64) {
    let Some(scratch) = maps::readings() else {
        return;
    };
    let index = track(memcg::scalar(css));
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
