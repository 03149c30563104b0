//! The hot path: after every change of a page counter, look at it and at all
//! its ancestors.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use monitor_common::{
    band::{OPEN, Place, note},
    ring::{Doorbell, Tally},
    slot::{MAX_DEPTH, PARENT_ROOT, PARENT_UNKNOWN},
    word::Word as _,
};

use crate::{
    kernel::{self, Counter},
    maps,
};

/// Looks at `counter` and its ancestors: read, compare with the band, store.
///
/// Runs for failed charges too: they have moved the counters up and down again,
/// and another CPU's look may have caught the passing value.
#[inline(always)]
pub fn look(counter: Counter) {
    let shift = maps::band_shift();
    let mut counter = counter;
    let mut index = maps::slot_of(counter.address());
    if index.is_none()
        && let Some(swapping) = maps::slot_of(kernel::memory_of_swap(counter.address()))
    {
        look_at_sums(swapping);
        return;
    }
    for _ in 0..MAX_DEPTH {
        let mut parent = PARENT_UNKNOWN;
        if let Some(i) = index
            && let Some(slot) = maps::slot(i)
        {
            let usage = counter.usage();
            match note(slot, usage, shift) {
                Place::Inside => 0,
                place => out_of_band(i, usage, u64::from(place == Place::Above)),
            };
            if slot.sum_band.get() != OPEN {
                look_at_sum(i);
            }
            parent = slot.parent.get();
            if parent == PARENT_ROOT {
                return;
            }
        }
        let Some(up) = counter.parent() else { return };
        counter = up;
        // Other counters (hugetlb) and untracked groups come this way.
        index = if parent == PARENT_UNKNOWN { maps::slot_of(counter.address()) } else { Some(parent as u32) };
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
    if let Some(mark) = maps::seen(cpu) {
        mark.set(context);
    }
}

/// The second program of a pair: looks only if the first was skipped.
#[inline(always)]
pub fn second(context: u64, counter: Counter) {
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    if let Some(mark) = maps::seen(cpu)
        && mark.get() == context
    {
        mark.set(0);
        return;
    }
    maps::count(Tally::Nested);
    look(counter);
}
