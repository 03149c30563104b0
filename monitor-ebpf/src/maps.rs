//! The maps. All are allocated in advance: a map that allocates would charge a memcg from inside
//! the charge hook.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE},
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{Array, HashMap, LruHashMap, Queue, RingBuf},
};
use monitor_common::protocol::{
    band::{Verdict, raise_hand},
    epoch::Epoch,
    oom::OomMark,
    query::{ANSWERS, CELLS, FileRefs, Query, QueryMailbox, READINGS},
    ring::{Doorbell, LossKind, Victim, victims_at_once},
    slot::Slot,
    word::Word as _,
};

pub use crate::globals::*;
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

/// Windows of reclaim in groups without a slot, by the addresses of their counters. Of more
/// groups than that the oldest windows give way.
#[map]
static WINDOWS: LruHashMap<u64, BpfWord> = LruHashMap::with_max_entries(1024, 0);

/// Reclaim that makes passes, by the address of its `struct scan_control`: the priority of the
/// latest pass. Of more threads that reclaim at once, the oldest entries give way, and passes of
/// those are missed.
#[map]
static PASSES: LruHashMap<u64, i64> = LruHashMap::with_max_entries(4096, 0);

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
#[cfg(not(feature = "kprobe"))]
const SEEN_CPUS: usize = 1024;

/// The call that the first program of a pair has seen on a CPU; see `charge`.
/// A global, not a map: no look-up to get at it.
#[cfg(not(feature = "kprobe"))]
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

/// The window of a group that has no slot.
pub fn window_without_slot(counter: u64) -> Option<&'static BpfWord> {
    const NOEXIST: u64 = 1;
    if let Some(word) = WINDOWS.get_ptr(counter) {
        // SAFETY: a map's value, which lives as long as the map; whatever entry it is of when it
        // is used, it is one word that is only used by atomics.
        return Some(unsafe { &*word });
    }
    // Another CPU may be first.
    let _ = WINDOWS.insert(counter, BpfWord::zero(), NOEXIST);
    // SAFETY: as above.
    WINDOWS.get_ptr(counter).map(|word| unsafe { &*word })
}

/// Removes the window of a group without a slot that goes.
pub fn forget_window(counter: u64) {
    let _ = WINDOWS.remove(counter);
}

/// No pass has this priority, an `s8`.
const NO_PASS: i64 = 1 << 8;

/// Notes that the reclaim of this `struct scan_control` begins; `false` where there is no room.
pub fn begin_passes(control: u64) -> bool {
    PASSES.insert(control, NO_PASS, 0).is_ok()
}

/// Notes that it has ended.
pub fn end_passes(control: u64) {
    let _ = PASSES.remove(control);
}

/// Whether a pass of this priority begins, and not only another node's turn in it.
#[inline(always)]
pub fn begin_pass(control: u64, priority: i8) -> bool {
    let Some(latest) = PASSES.get_ptr_mut(control) else { return false };
    // SAFETY: a map's value; only the thread that reclaims uses its entry.
    let before = unsafe { latest.replace(priority.into()) };
    before != i64::from(priority)
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
#[cfg(not(feature = "kprobe"))]
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

/// Whether a group that was made may ring: while a quarter of the ring waits to be read, none does.
/// Any user with a directory of its own makes groups, and they are found by looks at all as well;
/// the rest of the ring is for what is found by nothing else.
#[inline(always)]
pub fn may_ring_for_new() -> bool {
    let waiting = DOORBELLS.query(BPF_RB_AVAIL_DATA.into());
    waiting < DOORBELLS.query(BPF_RB_RING_SIZE.into()) / 4
}

/// Rings for a new group's slot, or counts a full ring, after which the agent looks at all slots.
#[inline(always)]
pub fn ring_new(slot: &Slot<BpfWord>, index: u32) {
    if may_ring_for_new() {
        ring_slot(slot, index);
    } else if raise_hand(&slot.pending) {
        count(LossKind::RingFull);
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

/// Sends the agent a record of a process that the OOM killer kills, which `write` writes whole: it is
/// longer than a program's stack may hold.
#[inline(always)]
pub fn send_victim(write: impl FnOnce(*mut Victim)) {
    if !may_send_victim() {
        return;
    }
    match DOORBELLS.reserve::<Victim>(0) {
        Some(mut record) => {
            write(record.as_mut_ptr());
            record.submit(0);
        }
        None => take_back_victim(),
    }
}

/// Sends the agent that a whole group is killed.
#[inline(always)]
pub fn send_group_kill(record: Doorbell) {
    if may_send_victim() && DOORBELLS.output::<Doorbell>(record, 0).is_err() {
        take_back_victim();
    }
}

/// Counts a record that found no room.
#[inline(always)]
fn take_back_victim() {
    count(LossKind::VictimsDropped);
    if let Some(scratch) = scratch() {
        scratch.victims.add(u64::MAX);
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
