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

/// Looks at `counter` and its ancestors: compare with the band, if there is one.
///
/// Runs for failed charges too: they have moved the counters up and down again,
/// and another CPU's look may have caught the passing value.
#[inline(always)]
pub fn look(counter: Counter) {
    let Some((mut index, mut slot)) = maps::guess(counter.address()) else {
        return look_up(counter);
    };
    let shift = maps::band_shift();
    let mut counter = counter;
    for _ in 0..MAX_DEPTH {
        look_at(index, slot, counter, shift);
        let parent = slot.parent.get();
        if parent == PARENT_ROOT {
            return;
        }
        let Some(up) = counter.parent() else { return };
        if parent == PARENT_UNKNOWN {
            return look_up(up);
        }
        (counter, index) = (up, parent as u32);
        let Some(above) = maps::slot(index) else { return };
        slot = above;
    }
    maps::count(Tally::TooDeep);
}

/// One group's part of a look.
#[inline(always)]
fn look_at(index: u32, slot: &Slot<BpfWord>, counter: Counter, shift: u32) {
    if let Some((usage, above)) = slot.memory().note(|| counter.usage(), shift) {
        out_of_band(index, usage, u64::from(above));
    }
    if slot.sum_band.get() != OPEN {
        look_at_sum(index);
    }
}

/// Looks at a counter that was not guessed, and at all above it: the first charge of
/// a group, counters that are no group's memory (swap, hugetlb), groups without a
/// slot.
#[inline(never)]
fn look_up(counter: Counter) {
    let shift = maps::band_shift();
    let address = counter.address();
    // On v1 each charge comes here once more, for memory+swap.
    let of_swap = kernel::memory_of_swap(address);
    if let Some((swapping, _)) = maps::guess(of_swap) {
        look_at_sums(swapping);
        return;
    }
    let mut counter = counter;
    // No `Option`: the compiler would copy its empty half, which the verifier refuses.
    let mut index = PARENT_UNKNOWN;
    if let Some(found) = maps::slot_of(address) {
        maps::remember(address, found);
        index = u64::from(found);
    } else if let Some(swapping) = maps::slot_of(of_swap) {
        maps::remember(of_swap, swapping);
        look_at_sums(swapping);
        return;
    }
    for _ in 0..MAX_DEPTH {
        let mut parent = PARENT_UNKNOWN;
        if index != PARENT_UNKNOWN
            && let Some(slot) = maps::slot(index as u32)
        {
            look_at(index as u32, slot, counter, shift);
            parent = slot.parent.get();
            if parent == PARENT_ROOT {
                return;
            }
        }
        let Some(up) = counter.parent() else { return };
        counter = up;
        index = parent;
        if index == PARENT_UNKNOWN
            && let Some(found) = maps::slot_of(counter.address())
        {
            index = u64::from(found);
        }
    }
    maps::count(Tally::TooDeep);
}

/// The rare part of a look. A global function: the verifier checks it once,
/// not once for each level.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn out_of_band(index: u32, usage: u64, above: u64) -> u64 {
    if let Some(slot) = maps::slot(index) {
        maps::ring_for(slot.memory().flag(usage, above != 0), Doorbell::READING, index, usage);
    }
    0
}

/// Looks at a group's memory+swap, for which somebody waits. Global for the same
/// reason, and so that a charge pays for it only then.
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

/// The first program of a pair: looks, then leaves a mark for the second.
///
/// The kernel skips a tracing program that is already running on the CPU, so a
/// charge from a softirq or a preempting task may miss this program; then its
/// twin, which is not running then, does the work. The mark is the address of
/// the call's own context, unique among the calls that are under way.
#[inline(always)]
pub fn first(context: u64, counter: Counter) {
    look(counter);
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    maps::seen(cpu).set(context);
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
    look(counter);
}
