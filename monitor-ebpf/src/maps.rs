//! The maps, and the globals that the loader fills in from the running kernel's
//! BTF. All maps are allocated in advance: a map that allocates would charge a
//! memcg from inside the charge hook.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LruHashMap, Queue, RingBuf},
};
use monitor_common::protocol::{
    band::{Verdict, raise_hand},
    epoch::Epoch,
    oom::OomMark,
    query::{ANSWERS, CELLS, FileRefs, Query, QueryMailbox, READINGS},
    ring::{Doorbell, LossKind, victims_at_once},
    slot::Slot,
    word::Word as _,
};

use crate::word::BpfWord;

/// One slot for each memcg; the agent maps it. The loader sets the size.
#[map]
static SLOTS: Array<Slot<BpfWord>> = Array::with_max_entries(16, BPF_F_MMAPABLE);

/// Address of a memcg's `memory` counter to its slot.
#[map]
static COUNTERS: HashMap<u64, u32> = HashMap::with_max_entries(16, 0);

/// Slots that wait for another group. The one that waits longest is taken first, and
/// none as long as there are others that were never used: a charge that still has a
/// slot's index when that is given back has long ended when it is another group's.
#[map]
static FREE: Queue<u32> = Queue::with_max_entries(16, 0);

/// Groups that found no free slot, by the ids of their directories: each is counted
/// once, however often its usage is read.
#[map]
static REFUSED: LruHashMap<u64, u32> = LruHashMap::with_max_entries(4096, 0);

/// Doorbells for the agent, a ring buffer.
#[map]
static DOORBELLS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Files whose references the agent queries; the agent maps it.
#[map]
static FILES: Array<FileRefs<BpfWord>> = Array::with_max_entries(Query::FILES_AT_ONCE as u32, BPF_F_MMAPABLE);

/// A place for each thread id's [`OomMark`]s, so that no thread can take another's away; the
/// agent maps it.
#[map]
static THREAD_MARKS: Array<BpfWord> = Array::with_max_entries(OomMark::WORDS as u32, BPF_F_MMAPABLE);

/// Counts of losses, by [`LossKind`]; the agent maps it.
#[map]
static TALLIES: Array<BpfWord> = Array::with_max_entries(LossKind::COUNT as u32, BPF_F_MMAPABLE);

/// Answers to the agent; the agent maps it.
#[map]
static SCRATCH: Array<QueryMailbox<BpfWord>> = Array::with_max_entries(CELLS, BPF_F_MMAPABLE);

/// CPUs with a cell of their own in `SEEN`; others share one, which costs a
/// second look but never hides a charge.
const SEEN_CPUS: usize = 1024;

/// The call that the first program of a pair has seen on a CPU; see `charge`.
/// A global, not a map: no look-up to get at it.
static SEEN: [BpfWord; SEEN_CPUS] = [const { BpfWord::zero() }; SEEN_CPUS];

/// Slots from this on were never used.
static FRESH: BpfWord = BpfWord::zero();

/// Time at which it was last logged that the table is full.
static LAST_SAID: BpfWord = BpfWord::zero();

/// The number behind [`Epoch`].
static EPOCH: BpfWord = BpfWord::zero();

/// The cause of what the OOM killer is doing; see `oom`. One word, as it does one thing at a
/// time.
static CAUSE: BpfWord = BpfWord::zero();

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
    /// Byte offset of `page_counter.usage`.
    OFF_COUNTER_USAGE: u64 => off_counter_usage;
    /// Byte offset of `page_counter.parent`.
    OFF_COUNTER_PARENT: u64 => off_counter_parent;
    /// Byte offset of `page_counter.watermark`.
    OFF_COUNTER_WATERMARK: u64 => off_counter_watermark;
    /// Byte offset of `mem_cgroup.memory`.
    OFF_MEMCG_MEMORY: u64 => off_memcg_memory;
    /// Byte offset of `cgroup_subsys_state.cgroup`.
    OFF_CSS_CGROUP: u64 => off_css_cgroup;
    /// Byte offset of `page_counter.max`.
    OFF_COUNTER_MAX: u64 => off_counter_max;
    /// Byte offset of `mem_cgroup.swap`; on v1 the same place is `mem_cgroup.memsw`.
    OFF_MEMCG_SWAP: u64 => off_memcg_swap;
    /// Whether that counter is memory+swap, as on v1.
    SWAP_IS_SUM: u32 => swap_is_sum;
    /// Byte offset of `mem_cgroup.vmpressure`.
    OFF_MEMCG_VMPRESSURE: u64 => off_memcg_vmpressure;
    /// Byte offset of `mem_cgroup.under_oom` (kernels with v1 only).
    OFF_MEMCG_UNDER_OOM: u64 => off_memcg_under_oom;
    /// Byte offset of `vmpressure.work`.
    OFF_VMPRESSURE_WORK: u64 => off_vmpressure_work;
    /// Byte offset of `vmpressure.tree_scanned`.
    OFF_VMPRESSURE_SCANNED: u64 => off_vmpressure_scanned;
    /// Byte offset of `vmpressure.tree_reclaimed`.
    OFF_VMPRESSURE_RECLAIMED: u64 => off_vmpressure_reclaimed;
    /// Byte offset of `cgroup.subsys[memory_cgrp_id]`.
    OFF_CGROUP_MEMORY_CSS: u64 => off_cgroup_memory_css;
    /// Byte offset of `css_set.subsys[memory_cgrp_id]`.
    OFF_CSS_SET_MEMORY_CSS: u64 => off_css_set_memory_css;
    /// Byte offset of `task_struct.cgroups`.
    OFF_TASK_CGROUPS: u64 => off_task_cgroups;
    /// Byte offset of `task_struct.tgid`.
    OFF_TASK_TGID: u64 => off_task_tgid;
    /// Byte offset of `task_struct.comm`.
    OFF_TASK_COMM: u64 => off_task_comm;
    /// Byte offset of `task_struct.signal`; 0 where the next one is not known.
    OFF_TASK_SIGNAL: u64 => off_task_signal;
    /// Byte offset of `signal_struct.oom_mm`.
    OFF_SIGNAL_OOM_MM: u64 => off_signal_oom_mm;
    /// Byte offset of `oom_control.memcg`.
    OFF_OOM_MEMCG: u64 => off_oom_memcg;
    /// Byte offset of `mem_cgroup.memory_events_local[MEMCG_OOM]`; 0: not known.
    OFF_MEMCG_OOMS: u64 => off_memcg_ooms;
    /// Byte offset of `cgroup.nr_populated_csets`; 0 where one of the three is not known.
    OFF_CGROUP_CSETS: u64 => off_cgroup_csets;
    /// Byte offset of `cgroup.nr_populated_domain_children`.
    OFF_CGROUP_DOMAINS: u64 => off_cgroup_domains;
    /// Byte offset of `cgroup.nr_populated_threaded_children`.
    OFF_CGROUP_THREADED: u64 => off_cgroup_threaded;
    /// Whether `__oom_kill_process` is attached to: then nothing else kills.
    HAS_OOM_KILL: u32 => has_oom_kill;
    /// Whether the beginnings of `memory_max_write` are attached to.
    HAS_LIMIT_MARKS: u32 => has_limit_marks;
    /// Whether `mem_cgroup_oom_notify` is attached to, and decides.
    HAS_OOM_NOTIFY: u32 => has_oom_notify;
    /// The root group's slot, behind all others.
    ROOT_SLOT: u32 => root_slot;
    /// Byte offset of `cgroup.kn`.
    OFF_CGROUP_KN: u64 => off_cgroup_kn;
    /// Byte offset of `kernfs_node.id`.
    OFF_KN_ID: u64 => off_kn_id;
    /// Byte offset of `file.f_count`, or `file.f_ref` (6.13 and newer).
    OFF_FILE_REFS: u64 => off_file_refs;
    /// The number to add to that word to get the number of references.
    FILE_REFS_BIAS: u64 => file_refs_bias;
    /// Unit of the packed band, as a shift.
    BAND_SHIFT: u32 => band_shift;
    /// Stays 0; see [`rolled`].
    NOTHING: u64 => nothing;
}

/// The turns of a loop, but not to the compiler, which would write each out: a program
/// several times as long for the kernel to check and to translate.
#[inline(always)]
pub fn rolled(turns: usize) -> usize {
    turns + nothing() as usize
}

/// Finds the slot at `index`.
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

/// Removes the entry of a counter.
pub fn forget_counter(address: u64) {
    let _ = COUNTERS.remove(address);
}

/// Takes a free slot's index.
pub fn pop_free() -> Option<u32> {
    if FRESH.get() < u64::from(root_slot()) {
        let index = FRESH.take_number();
        if index < u64::from(root_slot()) {
            slot(index as u32)?.recycle();
            return Some(index as u32);
        }
    }
    FREE.pop().ok().flatten()
}

/// Whether this is the first time that a group of this id finds no free slot.
pub fn is_refused_anew(cgroup_id: u64) -> bool {
    const NOEXIST: u64 = 1;
    REFUSED.insert(cgroup_id, 0, NOEXIST).is_ok()
}

/// Notes that there may be slots whose parent is unknown.
pub fn raise_orphans() {
    if let Some(scratch) = scratch()
        && scratch.orphans.get() == 0
    {
        scratch.orphans.xchg(1);
    }
}

/// Gives a recycled slot back.
pub fn push_free(index: u32) {
    let _ = FREE.push(index, 0);
}

/// A file whose references the agent queries.
#[inline(always)]
pub fn file(index: u32) -> Option<&'static FileRefs<BpfWord>> {
    FILES.get(index)
}

/// The cell for answers of the `ask` program.
#[inline(always)]
pub fn scratch() -> Option<&'static QueryMailbox<BpfWord>> {
    SCRATCH.get(ANSWERS)
}

/// The cell for answers to what the agent reads.
#[inline(always)]
pub fn readings() -> Option<&'static QueryMailbox<BpfWord>> {
    SCRATCH.get(READINGS)
}

/// The `SEEN` cell of `cpu`.
#[inline(always)]
pub fn seen(cpu: u32) -> &'static BpfWord {
    &SEEN[cpu as usize % SEEN_CPUS]
}

/// Time at which it was last logged that the table is full, in nanoseconds.
pub fn last_said() -> &'static BpfWord {
    &LAST_SAID
}

/// The present [`Epoch`] of the hierarchy.
#[inline(always)]
pub fn epoch() -> Epoch<'static, BpfWord> {
    Epoch(&EPOCH)
}

/// Counts one loss of a kind.
pub fn count(tally: LossKind) {
    if let Some(word) = TALLIES.get(tally as u32) {
        word.add(1);
    }
}

/// Rings the agent. A full ring is counted, then tried once more: an agent that
/// emptied it in between has perhaps read the count before.
pub fn ring(doorbell: Doorbell) {
    if DOORBELLS.output(doorbell, 0).is_err() {
        count(LossKind::RingFull);
        let _ = DOORBELLS.output(doorbell, 0);
    }
}

/// The time by `CLOCK_MONOTONIC`, in nanoseconds.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

/// Rings for slot `index` if `verdict` says so; `reading` is the kind of doorbell
/// that carries `usage` itself.
#[inline(always)]
pub fn ring_for(verdict: Verdict, reading: u32, index: u32, usage: u64) {
    let (kind, value) = match verdict {
        Verdict::Quiet => return,
        Verdict::Ring => (Doorbell::SLOT, now()),
        Verdict::Tell => {
            count(LossKind::Contended);
            (reading, usage)
        }
    };
    ring(Doorbell { kind, slot: index, value });
}

/// Rings for a slot, unless the agent knows already that it has to look there.
#[inline(always)]
pub fn ring_slot(slot: &Slot<BpfWord>, index: u32) {
    if raise_hand(&slot.pending) {
        ring(Doorbell { kind: Doorbell::SLOT, slot: index, value: now() });
    }
}

/// Whether one more record of what the OOM killer does may be sent; counts it. So a storm
/// of them leaves room in the ring for doorbells.
#[inline(always)]
fn may_send_victim() -> bool {
    let Some(scratch) = scratch() else { return false };
    // Below 0 after an agent that began at 0 has taken what one before left.
    if (scratch.victims.get() as i64) < victims_at_once(scratch.ring.get()) as i64 {
        // Before it is sent: the agent counts down when it has it.
        scratch.victims.add(1);
        return true;
    }
    count(LossKind::VictimsDropped);
    false
}

/// Sends the agent a record of what the OOM killer does.
#[inline(always)]
pub fn send_victim<T: 'static>(record: T) {
    if may_send_victim() && DOORBELLS.output::<T>(record, 0).is_err() {
        count(LossKind::VictimsDropped);
        if let Some(scratch) = scratch() {
            scratch.victims.add(u64::MAX);
        }
    }
}

/// Rings once for limits that were written, until the agent has begun to look at them.
#[inline(always)]
pub fn ring_limits() {
    if let Some(scratch) = scratch()
        && raise_hand(&scratch.limits)
    {
        ring(Doorbell { kind: Doorbell::LIMITS, slot: 0, value: 0 });
    }
}

/// Gives `thread` a mark; whether it had it.
#[inline(always)]
pub fn mark_thread(mark: OomMark, thread: u32) -> bool {
    let (word, bit) = mark.place(thread);
    THREAD_MARKS.get(word).is_some_and(|word| word.or(bit) & bit != 0)
}

/// Takes the mark away; whether it had it.
#[inline(always)]
pub fn unmark_thread(mark: OomMark, thread: u32) -> bool {
    let (word, bit) = mark.place(thread);
    THREAD_MARKS.get(word).is_some_and(|word| word.clear(bit) & bit != 0)
}

/// Whether `thread` has the mark.
#[inline(always)]
pub fn has_mark(mark: OomMark, thread: u32) -> bool {
    let (word, bit) = mark.place(thread);
    THREAD_MARKS.get(word).is_some_and(|word| word.get() & bit != 0)
}

/// The word of `CAUSE`; see `oom`.
#[inline(always)]
pub fn cause() -> &'static BpfWord {
    &CAUSE
}

/// Whether any registration is on `what`, one of `Subscriptions`'s bits.
#[inline(always)]
pub fn is_wanted(what: u64) -> bool {
    scratch().is_some_and(|scratch| scratch.wanted.get() & what != 0)
}
