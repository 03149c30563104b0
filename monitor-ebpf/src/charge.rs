//! The hot path: after every change of a page counter, look at it and at all
//! its ancestors.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use monitor_common::{
    band::{OPEN, Place},
    ring::{Doorbell, Tally},
    slot::{MAX_DEPTH, PARENT_ROOT, PARENT_UNKNOWN, Slot},
    word::Word as _,
};

use crate::{
    kernel::{self, Counter},
    maps,
    word::BpfWord,
};

/// Looks at `counter`, and at its ancestors where somebody waits for one of them:
/// compare with the band, if there is one.
///
/// Runs for failed charges too: they have moved the counters up and down again,
/// and another CPU's look may have caught the passing value.
#[inline(always)]
pub fn look(counter: Counter) {
    let distance = maps::distance(counter.address());
    let Some((index, slot)) = maps::guess(distance, counter.address()) else {
        look_up(kernel::scalar(counter.address()), distance);
        return;
    };
    if slot.is_awaited() {
        look_at(index, slot, || counter.usage());
    }
    if !maps::epoch().is_calm_above(slot) {
        look_above(slot.counter.get(), index);
    }
}

/// One group's part of a look.
#[inline(always)]
fn look_at(index: u32, slot: &Slot<BpfWord>, usage: impl FnOnce() -> u64) {
    if let Some((usage, above)) = slot.memory().note(usage, maps::band_shift()) {
        out_of_band(index, usage, u64::from(above));
    }
    if slot.sum_band.get() != OPEN {
        look_at_sum(index);
    }
}

// What follows are global functions: the verifier checks each once, for any
// arguments, not once for each way that leads to it.

/// Looks at a counter that was not guessed, and at all above it: the first charge of
/// a group, counters that are no group's memory (swap, hugetlb), groups without a
/// slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_up(address: u64, distance: u64) -> u64 {
    // On v1 each charge comes here once more, for memory+swap.
    let of_swap = kernel::memory_of_swap(address);
    let swap_distance = kernel::memory_of_swap(distance);
    if let Some((swapping, _)) = maps::guess(swap_distance, of_swap) {
        return look_at_sums(swapping);
    }
    if let Some(index) = maps::slot_of(address) {
        maps::remember(distance, index);
        look_there(index);
        return look_above(address, index);
    }
    if let Some(swapping) = maps::slot_of(of_swap) {
        maps::remember(swap_distance, swapping);
        return look_at_sums(swapping);
    }
    look_above(address, NO_SLOT)
}

/// Looks at one group, by its slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_there(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index)
        && let Some(usage) = kernel::usage_at(slot.counter.get())
    {
        look_at(index, slot, || usage);
    }
    0
}

/// In place of a slot's index.
const NO_SLOT: u32 = u32::MAX;

/// Looks at all ancestors of the counter at `address`, which is slot `below`'s.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_above(address: u64, below: u32) -> u64 {
    let mut calm = true;
    let mut address = address;
    let mut parent = maps::slot(below).map_or(PARENT_UNKNOWN, |slot| slot.parent.get());
    for _ in 0..MAX_DEPTH {
        if parent == PARENT_ROOT {
            if calm {
                keep_calm(below);
            }
            return 0;
        }
        if parent == PARENT_UNKNOWN {
            let Some(up) = kernel::parent_at(address) else { return 0 };
            if up == 0 {
                return 0;
            }
            address = up;
            let Some(found) = maps::slot_of(up) else { continue };
            parent = u64::from(found);
        }
        let Some(slot) = maps::slot(parent as u32) else { return 0 };
        address = slot.counter.get();
        if slot.is_awaited() {
            calm = false;
            look_there(parent as u32);
        }
        parent = slot.parent.get();
    }
    maps::count(Tally::TooDeep);
    0
}

/// Nobody seems to wait above slot `below`: walks once more, in a known epoch, and
/// keeps that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn keep_calm(below: u32) -> u64 {
    let Some(start) = maps::slot(below) else { return 0 };
    let epoch = maps::epoch().begin();
    let mut parent = start.parent.get();
    for _ in 0..MAX_DEPTH {
        if parent == PARENT_ROOT {
            start.set_calm(epoch);
            return 0;
        }
        // None, where the parent is not known.
        let Some(slot) = maps::slot(parent as u32) else { return 0 };
        if slot.is_awaited() {
            return 0;
        }
        parent = slot.parent.get();
    }
    0
}

/// The rare part of a look.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn out_of_band(index: u32, usage: u64, above: u64) -> u64 {
    if let Some(slot) = maps::slot(index) {
        maps::ring_for(slot.memory().flag(usage, above != 0), Doorbell::READING, index, usage);
    }
    0
}

/// Looks at a group's memory+swap, for which somebody waits.
///
/// Whichever of the two counters was changed last, its look sees both changes:
/// each changes its own with a full barrier before it reads the other.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_at_sum(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index)
        && let Some((sum, true)) = kernel::sum_at(slot.counter.get())
    {
        let track = slot.sum();
        match track.place(sum, maps::band_shift()) {
            Place::Inside => {}
            place => {
                let verdict = track.flag(sum, place == Place::Above);
                maps::ring_for(verdict, Doorbell::SUM_READING, index, sum);
            }
        }
    }
    0
}

/// A swap counter was changed: looks at its group and all above.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_at_sums(index: u32) -> u64 {
    let mut index = index;
    for _ in 0..MAX_DEPTH {
        let Some(slot) = maps::slot(index) else { return 0 };
        if slot.sum_band.get() != OPEN {
            look_at_sum(index);
        }
        let mut parent = slot.parent.get();
        if parent == PARENT_UNKNOWN {
            let Some(up) = kernel::parent_at(slot.counter.get()) else { return 0 };
            let Some(found) = maps::slot_of(up) else { return 0 };
            parent = u64::from(found);
        }
        if parent == PARENT_ROOT {
            return 0;
        }
        index = parent as u32;
    }
    maps::count(Tally::TooDeep);
    0
}

/// The first program of a pair: leaves a mark for the second, and looks.
///
/// The kernel skips a tracing program that is already running on the CPU, so a
/// charge from a softirq or a preempting task may miss this program; then its
/// twin, which is not running then, does the work. The mark is the address of
/// the call's own context, unique among the calls that are under way.
#[inline(always)]
pub fn first(context: u64, counter: Counter) {
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    maps::seen(cpu).set(context);
    look(counter);
}

/// The second program of a pair: looks only if the first was skipped.
#[inline(always)]
pub fn second(context: u64, counter: Counter) {
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let mark = maps::seen(cpu);
    if mark.get() == context {
        mark.set(0);
        return;
    }
    maps::count(Tally::Nested);
    look_up(kernel::scalar(counter.address()), maps::distance(counter.address()));
}
