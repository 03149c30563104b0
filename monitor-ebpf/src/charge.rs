//! The hot path: after every change of a page counter, look at it and at all
//! its ancestors.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use monitor_common::{
    band::{OPEN, Place},
    ring::{Doorbell, Tally},
    slot::{PARENT_ROOT, PARENT_UNKNOWN, REACH, Slot},
    word::Word as _,
};

use crate::{
    group::{self, TOP},
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
        look_above(index.into());
    }
}

/// One group's part of a look.
#[inline(always)]
fn look_at(index: u32, slot: &Slot<BpfWord>, usage: impl FnOnce() -> u64) {
    if let Some((usage, above)) = slot.memory().note(usage, maps::band_shift()) {
        out_of_band(index, usage, if above { ABOVE } else { 0 });
    }
    if slot.sum_band.get() != OPEN {
        look_at_sum(index);
    }
}

// What follows are global functions: the verifier checks each once, for any
// arguments, not once for each way that leads to it. A loop's body is one, too: the
// verifier goes through a loop turn by turn, and so steps over a call in each.

/// Looks at a counter that was not guessed, and at all above it.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_up(address: u64, distance: u64) -> u64 {
    let index = group::place(address, distance);
    if index == TOP {
        return look_above(address);
    }
    // A group's swap counter is looked at with its memory.
    let index = index as u32;
    look_there(index);
    match maps::slot(index) {
        Some(slot) if !maps::epoch().is_calm_above(slot) => look_above(index.into()),
        _ => 0,
    }
}

/// Looks at one group, by its slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_there(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index)
        && slot.is_awaited()
        && let Some(usage) = kernel::usage_at(slot.counter.get())
    {
        look_at(index, slot, || usage);
    }
    0
}

/// Levels that are climbed at once: few, for the verifier's sake, which goes through
/// each; and enough for most hierarchies.
const LEVELS: usize = 8;
/// Times that so many are; further up, where few hierarchies are, it is [`FAR`].
const TURNS: usize = 8;
/// Levels that are climbed at once there.
const FAR: usize = LEVELS * TURNS;

/// Set beside the index: somebody waits, or not all groups on the way have a slot.
const MET: u64 = 1 << 32;

/// Whether this is an address, and no index: the kernel's have the upper half.
#[inline(always)]
const fn is_address(at: u64) -> bool {
    at >> 63 != 0
}

/// Looks at all above a slot or, where there is none, a counter. Where nobody waits there,
/// goes up once more, in a known epoch, and keeps that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_above(from: u64) -> u64 {
    // Whose slot it is before the walk.
    let group = maps::slot(from as u32).map_or(0, |slot| slot.counter.get());
    if go_up(from) {
        let epoch = maps::epoch().begin();
        if go_up(from)
            && let Some(slot) = maps::slot(from as u32)
        {
            slot.set_calm(epoch, group);
        }
    }
    0
}

/// True when nobody waits above `from`, all the way to the root.
#[inline(always)]
fn go_up(from: u64) -> bool {
    let mut at = from;
    for _ in 0..maps::rolled(TURNS) {
        at = if is_address(at) { climb_counters(at) } else { climb(at) };
        if at as u32 == TOP as u32 {
            return at == TOP;
        }
    }
    for _ in 0..maps::rolled(REACH / FAR - 1) {
        at = if is_address(at) { climb_counters(at) } else { climb_far(at) };
        if at as u32 == TOP as u32 {
            return at == TOP;
        }
    }
    maps::count(Tally::TooDeep);
    if !is_address(at)
        && let Some(slot) = maps::slot(at as u32)
        && slot.deep.get() == 0
    {
        slot.deep.set(1);
    }
    false
}

/// Looks at the next [`LEVELS`] ancestors of slot `at`. Where to go on: a slot, a counter
/// that has none, or [`TOP`]; with [`MET`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn climb(at: u64) -> u64 {
    climb_by(LEVELS, at)
}

/// The same of the next [`FAR`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn climb_far(at: u64) -> u64 {
    climb_by(FAR, at)
}

#[inline(always)]
fn climb_by(levels: usize, at: u64) -> u64 {
    let mut met = at & MET;
    let mut index = at as u32;
    let Some(mut slot) = maps::slot(index) else { return TOP | MET };
    for _ in 0..maps::rolled(levels) {
        let mut parent = slot.parent.get();
        if parent == PARENT_ROOT {
            return TOP | met;
        }
        if parent == PARENT_UNKNOWN {
            met = MET;
            let Some(above) = kernel::parent_at(slot.counter.get()) else { return TOP | MET };
            let Some(found) = maps::slot_of(above) else {
                return if is_address(above) { above } else { TOP | MET };
            };
            parent = found.into();
        }
        index = parent as u32;
        let Some(up) = maps::slot(index) else { return TOP | MET };
        if up.is_awaited() {
            met = MET;
            look_there(index);
        }
        slot = up;
    }
    u64::from(index) | met
}

/// The same of the counter at `address`, up to the first that has a slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn climb_counters(address: u64) -> u64 {
    let found = group::find_up(address);
    if is_address(found) {
        return found;
    }
    let Some(slot) = maps::slot(found as u32) else { return TOP | MET };
    look_there(found as u32);
    if maps::epoch().is_calm_above(slot) { TOP | MET } else { found | MET }
}

/// What [`out_of_band`] is about: bits.
const ABOVE: u64 = 1;
const SUM: u64 = 2;

/// The rare part of a look.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn out_of_band(index: u32, usage: u64, what: u64) -> u64 {
    if let Some(slot) = maps::slot(index) {
        let above = what & ABOVE != 0;
        let (verdict, reading) = if what & SUM == 0 {
            (slot.memory().flag(usage, above), Doorbell::READING)
        } else {
            (slot.sum().flag(usage, above), Doorbell::SUM_READING)
        };
        maps::ring_for(verdict, reading, index, usage);
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
        match slot.sum().place(sum, maps::band_shift()) {
            Place::Inside => {}
            Place::Above => {
                out_of_band(index, sum, SUM | ABOVE);
            }
            Place::Below => {
                out_of_band(index, sum, SUM);
            }
        }
    }
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
