//! The hot path: after every change of a page counter, look at it and at all
//! its ancestors.

#[cfg(not(feature = "kprobe"))]
use aya_ebpf::{helpers::bpf_get_smp_processor_id, programs::FExitContext};
use monitor_common::protocol::{
    band::{OPEN, Outside, compare},
    ring::{Doorbell, LossKind},
    slot::{PARENT_ROOT, PARENT_UNKNOWN, REACH, Slot},
    usage::keep,
    word::Word as _,
};

use crate::{
    black_box,
    group::{self, TOP},
    guess, maps,
    memcg::{self, Counter},
    word::{BpfWord, full_barrier},
};

/// Compares `counter` with its band, if it has one, and its ancestors where one of them is
/// watched.
///
/// Runs for failed charges too: they have moved the counters up and down again,
/// and another CPU's look may have caught the passing value. Only where the counter
/// `rises` may its high-water mark have moved.
#[inline(always)]
fn look(counter: Counter, rises: bool) {
    let distance = guess::distance(counter.address());
    let Some((index, slot)) = guess::slot_of(distance, counter.address()) else {
        look_up(memcg::scalar(counter.address()), distance);
        return;
    };
    if slot.is_awaited() {
        let band = slot.band.get();
        let usage = counter.usage();
        slot.usage.xchg(usage);
        let again = counter.usage();
        look_at(index, slot, band, usage, again, if rises { Some(counter.watermark()) } else { None });
    }
    if !maps::epoch().is_unwatched_above(slot) {
        look_above(index.into());
    }
}

/// One group's part of a look: `band` was read first, then `kept`; that was written to the
/// slot, a full barrier, and then the counter was read again (see [`keep`]): so `usage` is
/// newer than the band on every processor.
#[inline(always)]
fn look_at(index: u32, slot: &Slot<BpfWord>, band: u64, kept: u64, usage: u64, peak: Option<u64>) {
    if usage != kept {
        keep_usage(index);
    }
    // A charge that moved the mark is behind that barrier, too: its mark or a later one is read.
    if peak.is_some_and(|peak| slot.peak.get() != peak) {
        keep_peak(index);
    }
    if let Some(outside) = compare(band, usage, maps::band_shift()) {
        out_of_band(index, outside.to_word(), MEMORY);
    }
    if slot.sum_band.get() != OPEN {
        look_at_sum(index);
    }
    if black_box::is_on() {
        black_box::record_usage(index, usage);
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
        Some(slot) if !maps::epoch().is_unwatched_above(slot) => look_above(index.into()),
        _ => 0,
    }
}

/// Looks at one group, by its slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_there(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index)
        && slot.is_awaited()
    {
        let (band, address) = (slot.band.get(), slot.counter.get());
        if let Some(usage) = memcg::usage_at(address) {
            slot.usage.xchg(usage);
            if let (Some(again), Some(peak)) = (memcg::usage_at(address), memcg::watermark_at(address)) {
                look_at(index, slot, band, usage, again, Some(peak));
            }
        }
    }
    0
}

/// Keeps a group's usage in its slot.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn keep_usage(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index) {
        keep(&slot.usage, || memcg::usage_at(slot.counter.get()), maps::rolled);
    }
    0
}

/// Keeps a group's peak in its slot.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn keep_peak(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index) {
        keep(&slot.peak, || memcg::watermark_at(slot.counter.get()), maps::rolled);
    }
    0
}

/// Levels that are climbed at once: few, for the verifier's sake, which goes through
/// each; and enough for most hierarchies.
const LEVELS: usize = 8;
/// Repetitions of that; further up, where few hierarchies are, it is [`FAR`] at once.
const TURNS: usize = 8;
/// Levels that are climbed at once further up.
const FAR: usize = LEVELS * TURNS;

/// Set beside the index: a group on the way is watched, or has no slot.
const MET: u64 = 1 << 32;

/// Whether this is an address, and no index: the kernel's have the upper half.
#[inline(always)]
const fn is_address(at: u64) -> bool {
    at >> 63 != 0
}

/// Looks at all above a slot or, where there is none, a counter. Where no group there is
/// watched, goes up once more, in a known epoch, and keeps that.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_above(from: u64) -> u64 {
    if is_address(from) {
        go_up(from);
        return 0;
    }
    // The counter of the slot's group before the walk.
    let group = maps::slot(from as u32).map_or(0, |slot| slot.counter.get());
    if go_up(from) {
        let epoch = maps::epoch().begin();
        if go_up(from)
            && let Some(slot) = maps::slot(from as u32)
        {
            slot.set_unwatched_above(epoch, group);
        }
    }
    0
}

/// Looks at all above `from`; true when none is watched, all the way to the root.
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
    if !is_address(at)
        && let Some(slot) = maps::slot(at as u32)
        && slot.deep.get() == 0
    {
        slot.deep.set(1);
    }
    // Last: the sweep that sees the count looks for the mark.
    maps::count(LossKind::TooDeep);
    false
}

/// Looks at the next [`LEVELS`] ancestors of slot `at`. Where to go on: a slot, a counter
/// that has none, or [`TOP`]; with [`MET`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn climb(at: u64) -> u64 {
    let mut met = at & MET;
    let mut index = at as u32;
    let Some(mut slot) = maps::slot(index) else { return TOP | MET };
    for _ in 0..maps::rolled(LEVELS) {
        let mut parent = slot.parent.get();
        if parent == PARENT_ROOT {
            return TOP | met;
        }
        if parent == PARENT_UNKNOWN {
            met = MET;
            let Some(above) = memcg::parent_at(slot.counter.get()) else { return TOP | MET };
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

/// Looks at the next [`FAR`] ancestors of slot `at`, as [`climb`] does.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn climb_far(at: u64) -> u64 {
    let mut at = at;
    for _ in 0..maps::rolled(TURNS) {
        if is_address(at) || at as u32 == TOP as u32 {
            break;
        }
        at = climb(at);
    }
    at
}

/// Looks above the counter at `address`, up to the first that has a slot.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn climb_counters(address: u64) -> u64 {
    let found = group::find_up(address);
    if is_address(found) {
        return found;
    }
    let Some(slot) = maps::slot(found as u32) else { return TOP | MET };
    look_there(found as u32);
    if maps::epoch().is_unwatched_above(slot) { TOP | MET } else { found | MET }
}

/// The quantity that [`out_of_band`] is called for.
const MEMORY: u64 = 0;
const SUM: u64 = 1;

/// The rare part of a look; `reading` is an [`Outside`].
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn out_of_band(index: u32, reading: u64, what: u64) -> u64 {
    if let Some(slot) = maps::slot(index) {
        let outside = Outside::from_word(reading);
        let (verdict, kind) = if what == MEMORY {
            (slot.memory().flag(outside), Doorbell::READING)
        } else {
            (slot.sum().flag(outside), Doorbell::SUM_READING)
        };
        maps::ring_for(verdict, kind, index, reading);
    }
    0
}

/// Compares a group's memory+swap with its band.
///
/// Whichever of the two counters was changed last, its look sees both changes:
/// each changes its own with a full barrier before it reads the other.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn look_at_sum(index: u32) -> u64 {
    if let Some(slot) = maps::slot(index) {
        let band = slot.sum_band.get();
        if let Some((sum, true)) = memcg::sum_at(slot.counter.get())
            && let Some(outside) = compare(band, sum, maps::band_shift())
        {
            out_of_band(index, outside.to_word(), SUM);
        }
    }
    0
}

/// The one program at a charge function's return, by a kprobe: looks behind a full barrier, since
/// a failed charge is taken back without one (see `tried`).
#[cfg(feature = "kprobe")]
#[inline(always)]
pub fn probed(counter: Counter, rises: bool) {
    full_barrier();
    look(counter, rises);
}

/// The first program of a pair: leaves a mark for the second, and looks.
///
/// The kernel skips a tracing program that is already running on the CPU, so a
/// charge from a softirq or a preempting task may miss this program; then its
/// twin, which is not running then, does the work. The mark is the address of
/// the call's own context, unique among the calls that are under way.
#[cfg(not(feature = "kprobe"))]
#[inline(always)]
pub fn first(context: u64, counter: Counter, rises: bool) {
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    maps::seen(cpu).set(context);
    look(counter, rises);
}

/// Before either program of a pair at `page_counter_try_charge`: where a counter's own limit
/// stood in the way, the kernel takes back what it added by `atomic_long_sub` (5.12 to 7.2),
/// which orders nothing; and the look has to be after that.
#[cfg(not(feature = "kprobe"))]
#[inline(always)]
pub fn tried(ctx: &FExitContext) {
    // The fourth is what it returned, a `bool`: the rest of the register is anything.
    let charged: u64 = ctx.arg(3);
    if charged & 0xff == 0 {
        full_barrier();
    }
}

/// The second program of a pair: looks only if the first was skipped.
#[cfg(not(feature = "kprobe"))]
#[inline(always)]
pub fn second(context: u64, counter: Counter) {
    // SAFETY: takes nothing, returns a number.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let mark = maps::seen(cpu);
    if mark.get() == context {
        mark.set(0);
        return;
    }
    maps::count(LossKind::Nested);
    look_up(memcg::scalar(counter.address()), guess::distance(counter.address()));
}
