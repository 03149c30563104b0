//! The maps, and the globals that the loader fills in from the running kernel's
//! BTF. All maps are allocated in advance: a map that allocates would charge a
//! memcg from inside the charge hook.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, RingBuf, Stack},
};
use monitor_common::{
    band::Verdict,
    slot::{Doorbell, Scratch, Slot, Tally},
};

use crate::word::BpfWord;

/// One slot for each memcg; the agent maps it. The loader sets the size.
#[map]
static SLOTS: Array<Slot<BpfWord>> = Array::with_max_entries(16, BPF_F_MMAPABLE);

/// Address of a memcg's `memory` counter to its slot.
#[map]
static COUNTERS: HashMap<u64, u32> = HashMap::with_max_entries(16, 0);

/// Slots that wait for a group.
#[map]
static FREE: Stack<u32> = Stack::with_max_entries(16, 0);

/// Doorbells to the agent.
#[map]
static DOORBELLS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Files of the registered eventfds, by address.
#[map]
static FILES: HashMap<u64, u32> = HashMap::with_max_entries(16, 0);

/// Counts of losses, by [`Tally`]; the agent maps it.
#[map]
static TALLIES: Array<BpfWord> = Array::with_max_entries(Tally::COUNT as u32, BPF_F_MMAPABLE);

/// Answers to the agent; the agent maps it.
#[map]
static SCRATCH: Array<Scratch<BpfWord>> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Which call the first program of a pair has seen on a CPU; see `charge`.
#[map]
static SEEN: Array<BpfWord> = Array::with_max_entries(SEEN_CPUS, 0);

/// CPUs with a cell of their own in `SEEN`; others share one, which costs a
/// second look but never hides a charge.
const SEEN_CPUS: u32 = 1024;

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $ty:ty => $get:ident;)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            static $name: $ty = 0;

            $(#[$doc])*
            #[inline(always)]
            pub fn $get() -> $ty {
                // SAFETY: a read-only global; volatile because the loader, not
                // the compiler, knows its value.
                unsafe { (&raw const $name).read_volatile() }
            }
        )*
    };
}

globals! {
    /// `page_counter.usage`.
    OFF_COUNTER_USAGE: u64 => off_counter_usage;
    /// `page_counter.parent`.
    OFF_COUNTER_PARENT: u64 => off_counter_parent;
    /// `page_counter.watermark`.
    OFF_COUNTER_WATERMARK: u64 => off_counter_watermark;
    /// `mem_cgroup.memory`.
    OFF_MEMCG_MEMORY: u64 => off_memcg_memory;
    /// `cgroup_subsys_state.cgroup`.
    OFF_CSS_CGROUP: u64 => off_css_cgroup;
    /// `cgroup.kn`.
    OFF_CGROUP_KN: u64 => off_cgroup_kn;
    /// `kernfs_node.id`.
    OFF_KN_ID: u64 => off_kn_id;
    /// `file.f_op`.
    OFF_FILE_OP: u64 => off_file_op;
    /// `file.f_count`, or `file.f_ref` (6.13 and newer).
    OFF_FILE_REFS: u64 => off_file_refs;
    /// What to add to that word to get the number of references.
    FILE_REFS_BIAS: u64 => file_refs_bias;
    /// Unit of the packed band.
    BAND_SHIFT: u32 => band_shift;
}

/// The slot at `index`.
#[inline(always)]
pub fn slot(index: u32) -> Option<&'static Slot<BpfWord>> {
    SLOTS.get(index)
}

/// The slot index of the counter at `address`.
#[inline(always)]
pub fn slot_of(address: u64) -> Option<u32> {
    // SAFETY: a plain u32 value; a racing removal at worst yields the index of
    // a slot whose `counter` no longer matches.
    unsafe { COUNTERS.get(address) }.copied()
}

/// Enters a counter; `false` when another CPU was first or the map is full.
pub fn enter_counter(address: u64, index: u32) -> bool {
    const NOEXIST: u64 = 1;
    COUNTERS.insert(address, index, NOEXIST).is_ok()
}

/// Forgets a counter.
pub fn forget_counter(address: u64) {
    let _ = COUNTERS.remove(address);
}

/// A free slot's index.
pub fn pop_free() -> Option<u32> {
    FREE.pop().ok().flatten()
}

/// Gives a recycled slot back.
pub fn push_free(index: u32) {
    let _ = FREE.push(index, 0);
}

/// Whether the file at `address` is a registered eventfd's.
#[inline(always)]
pub fn is_registered_file(address: u64) -> bool {
    // SAFETY: only presence is looked at.
    unsafe { FILES.get(address) }.is_some()
}

/// The answer cell.
#[inline(always)]
pub fn scratch() -> Option<&'static Scratch<BpfWord>> {
    SCRATCH.get(0)
}

/// The `SEEN` cell of `cpu`.
#[inline(always)]
pub fn seen(cpu: u32) -> Option<&'static BpfWord> {
    SEEN.get(cpu & (SEEN_CPUS - 1))
}

/// Counts a loss.
pub fn count(tally: Tally) {
    if let Some(word) = TALLIES.get(tally as u32) {
        word.add(1);
    }
}

/// Rings the agent. A full ring is counted, then tried once more: an agent that
/// emptied it in between has perhaps read the count before.
pub fn ring(doorbell: Doorbell) {
    if DOORBELLS.output(doorbell, 0).is_err() {
        count(Tally::RingFull);
        let _ = DOORBELLS.output(doorbell, 0);
    }
}

/// Rings for slot `index` if `verdict` says so.
#[inline(always)]
pub fn ring_for(verdict: Verdict, index: u32, usage: u64) {
    let (kind, value) = match verdict {
        Verdict::Quiet => return,
        Verdict::Ring => (Doorbell::SLOT, 0),
        Verdict::Tell => {
            count(Tally::Contended);
            (Doorbell::READING, usage)
        }
    };
    ring(Doorbell { kind, slot: index, value });
}
