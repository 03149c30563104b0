//! The black box: keeps the points of a group's usage that are due. See
//! `monitor_common::protocol::black_box`.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, helpers::bpf_ktime_get_ns, macros::map, maps::Array};
use monitor_common::protocol::{
    black_box::{BoxHead, BoxPoint, POINTS},
    ring::Doorbell,
    word::Word as _,
};

use crate::{maps, word::BpfWord};

/// The box of each slot: its number plus one, or 0. The agent maps these three; the loader sets
/// their sizes.
#[map]
static BOX_OF: Array<BpfWord> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The heads of the boxes.
#[map]
static BOXES: Array<BoxHead<BpfWord>> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// The points of all boxes, those of one after those of another.
#[map]
static BOX_POINTS: Array<BoxPoint<BpfWord>> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Whether there are boxes: where not, the verifier leaves out all that asks.
#[unsafe(no_mangle)]
static HAS_BOXES: u32 = 0;

/// Whether usage is recorded at all.
#[inline(always)]
pub fn is_on() -> bool {
    // SAFETY: a read-only global; volatile because the loader, not the compiler, knows its value.
    let has_boxes = unsafe { (&raw const HAS_BOXES).read_volatile() };
    has_boxes != 0
}

/// Whether the group in slot `index` has a box.
#[inline(always)]
pub fn has_box(index: u32) -> bool {
    is_on() && BOX_OF.get(index).is_some_and(|number| number.get() != 0)
}

/// Records the usage of the group in slot `index`, if it has a box and a point is due.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn record_usage(index: u32, usage: u64) -> u64 {
    let Some(number) = BOX_OF.get(index) else { return 0 };
    let number = number.get();
    if number == 0 {
        return 0;
    }
    let number = number as u32 - 1;
    let (Some(head), Some(slot)) = (BOXES.get(number), maps::slot(index)) else { return 0 };
    if head.generation.get() != slot.state().generation() || !head.takes(usage) {
        return 0;
    }
    let point = head.written.take_number();
    if let Some(place) = BOX_POINTS.get(number * POINTS + point as u32 % POINTS) {
        // SAFETY: reads a clock.
        let now = unsafe { bpf_ktime_get_ns() };
        place.put(point, now, usage);
    }
    0
}

/// Tells the agent of a new group, which may get a box; of one that is not told it hears when it
/// looks at all groups.
#[inline(always)]
pub fn made(index: u64) {
    if is_on() && index < u64::from(maps::root_slot()) && maps::may_ring_for_new() {
        maps::ring(Doorbell { kind: Doorbell::MADE, slot: index as u32, value: 0 });
    }
}
