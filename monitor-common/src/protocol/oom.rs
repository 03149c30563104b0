//! Which OOMs are one: the rule of the kernel's `mem_cgroup_oom_trylock`, for the
//! kernels that are built without it (`CONFIG_MEMCG_V1=n`).
//!
//! v1 notifies for the OOM that wins the lock on a group and all below it. One
//! that begins while another holds the same group, one above or one below, is
//! silent. Here the OOM that is signalled leaves a [`Hold`] in its group's slot, and is
//! counted in the slots above. No table is needed, and what a thread leaves in one
//! slot is found by its end in the same slot.
//!
//! Every hold belongs to an OOM that was signalled: so an OOM that is silent because of one
//! is signalled with it. Two that begin at the very same time may both be signalled.

use crate::protocol::{
    slot::{MAX_DEPTH, PARENT_ROOT, PARENT_UNKNOWN, Slot},
    word::Word,
};

/// States of a thread that the programs have to know. Each thread has bits of its own, so that
/// none takes another's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum OomMark {
    /// The thread writes a group's `memory.max`.
    WritesLimit = 0,
    /// The thread is in `mem_cgroup_out_of_memory`.
    InOom = 1,
}

impl OomMark {
    /// Words that hold the marks of all threads: their ids are below `PID_MAX_LIMIT`, four
    /// million.
    pub const WORDS: usize = 4 * 1024 * 1024 / Self::THREADS as usize;
    /// Threads whose marks share a word.
    const THREADS: u32 = 32;

    /// The place of the mark of `thread`: the word's index, and its bit.
    #[must_use]
    #[inline(always)]
    pub const fn place(self, thread: u32) -> (u32, u64) {
        (thread / Self::THREADS, 1 << (thread % Self::THREADS * 2 + self as u32))
    }
}

/// Set in `oom_calls` of a slot: limit writes were among the calls.
pub const BY_LIMIT_WRITE: u64 = 1 << 63;

/// An OOM that holds a group: the thread that is in it, and when it began, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold(u64);

impl Hold {
    /// The word of a group that is not held.
    pub const NONE: Self = Self(0);

    /// Nanoseconds of one unit of time, as a power of two: 67 ms. 32 bits are nine years.
    const UNIT_BITS: u32 = 26;
    /// Units after which a hold counts for nothing: the program at its end was skipped, and
    /// no agent has repaired that. An OOM takes milliseconds; ten seconds on a host that
    /// writes its kernel log to a slow console.
    const STALE: u32 = 150;

    /// The hold of `thread`, a thread id that is not 0, from `now` on (nanoseconds by the
    /// clock of `bpf_ktime_get_ns`).
    #[must_use]
    #[inline(always)]
    pub const fn new(thread: u32, now: u64) -> Self {
        Self((thread as u64) << 32 | Self::time(now))
    }

    /// Converts nanoseconds to units of time.
    #[inline(always)]
    const fn time(now: u64) -> u64 {
        (now >> Self::UNIT_BITS) & 0xffff_ffff
    }

    /// The thread whose OOM it is; 0: not held.
    #[must_use]
    #[inline(always)]
    pub const fn thread(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The time at which it began, in units.
    #[must_use]
    #[inline(always)]
    pub const fn since(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// Whether `thread`, which begins an OOM at `now`, is kept silent by it. A thread is in
    /// one OOM at a time, so its own hold is left over from one before.
    #[inline(always)]
    const fn silences(self, thread: u32, now: u64) -> bool {
        let holder = self.thread();
        holder != 0 && holder != thread && is_fresh(self.since(), now)
    }
}

#[inline(always)]
const fn is_fresh(since: u64, now: u64) -> bool {
    (Hold::time(now) as u32).wrapping_sub(since as u32) < Hold::STALE
}

/// Goes up from `index`, which is left out, for at most `levels` groups, until `visit` says
/// `false`. How many were visited; `None` when one said so.
#[inline(always)]
fn climb<'a, W: Word + 'a>(
    slot_at: impl Fn(u32) -> Option<&'a Slot<W>>,
    index: u32,
    levels: u64,
    mut visit: impl FnMut(&Slot<W>) -> bool,
) -> Option<u64> {
    let Some(mut slot) = slot_at(index) else { return Some(0) };
    for level in 0..MAX_DEPTH as u64 {
        let parent = slot.parent.get();
        if parent == PARENT_ROOT || parent == PARENT_UNKNOWN || level >= levels {
            return Some(level);
        }
        let Some(above) = slot_at(parent as u32) else { return Some(level) };
        if !visit(above) {
            return None;
        }
        slot = above;
    }
    Some(MAX_DEPTH as u64)
}

/// All levels, as far up as there are any.
const ALL: u64 = u64::MAX;

/// Begins an OOM of `thread` by the limit of the group at `index`, at `now` (nanoseconds by
/// the clock of `bpf_ktime_get_ns`). True when it is to be signalled: then it holds the group
/// until [`end`].
#[inline(always)]
pub fn begin<'a, W: Word + 'a>(
    slot_at: impl Fn(u32) -> Option<&'a Slot<W>>,
    index: u32,
    thread: u32,
    now: u64,
) -> bool {
    let Some(slot) = slot_at(index) else { return false };
    let below = slot.oom_below.get();
    // Below 0 while a count is late: then no group below is held.
    if below as i64 > 0 && is_fresh(slot.oom_below_since.get(), now) {
        return false;
    }
    let mut held = Hold(slot.oom_holder.get());
    if held.silences(thread, now) {
        return false;
    }
    let is_free = |above: &Slot<W>| !Hold(above.oom_holder.get()).silences(thread, now);
    if climb(&slot_at, index, ALL, is_free).is_none() {
        return false;
    }
    let hold = Hold::new(thread, now);
    let mut before = slot.oom_holder.cas(held.0, hold.0);
    if before != held.0 && before == Hold::NONE.0 {
        // What was left over was released in between: no signal is due for that.
        held = Hold::NONE;
        before = slot.oom_holder.cas(held.0, hold.0);
    }
    if before != held.0 {
        // Another OOM was first, and is signalled.
        return false;
    }
    // One that was left over is counted above already.
    let is_counted = held != Hold::NONE;
    let levels = climb(&slot_at, index, ALL, |above| {
        above.oom_below_since.set(hold.since());
        if !is_counted {
            above.oom_below.add(1);
        }
        true
    });
    if !is_counted {
        slot.oom_levels.set(levels.unwrap_or(0));
    }
    true
}

/// Ends the OOM of `thread` by the limit of the group at `index`.
#[inline(always)]
pub fn end<'a, W: Word + 'a>(slot_at: impl Fn(u32) -> Option<&'a Slot<W>>, index: u32, thread: u32) {
    if let Some(slot) = slot_at(index) {
        let held = Hold(slot.oom_holder.get());
        if held.thread() == thread {
            release(slot_at, index, held);
        }
    }
}

/// Ends the hold `held` of the group at `index`, if it still is its hold.
#[inline(always)]
pub fn release<'a, W: Word + 'a>(slot_at: impl Fn(u32) -> Option<&'a Slot<W>>, index: u32, held: Hold) {
    let Some(slot) = slot_at(index) else { return };
    // Read first: the next holder writes its own.
    let levels = slot.oom_levels.get();
    // Once for each hold: so a count above is what holds there are below, whichever side ends them.
    if held != Hold::NONE && slot.oom_holder.cas(held.0, 0) == held.0 {
        climb(slot_at, index, levels, |above| {
            above.oom_below.add(u64::MAX);
            true
        });
    }
}

/// The hold of a slot's group.
pub fn hold_of<W: Word>(slot: &Slot<W>) -> Hold {
    Hold(slot.oom_holder.get())
}

/// Whether the group at `index` is under OOM at `now`: it or one above is held.
pub fn is_under<'a, W: Word + 'a>(
    slot_at: impl Fn(u32) -> Option<&'a Slot<W>>,
    index: u32,
    now: u64,
) -> bool {
    let is_free = |slot: &Slot<W>| !hold_of(slot).silences(0, now);
    let Some(slot) = slot_at(index) else { return false };
    !is_free(slot) || climb(slot_at, index, ALL, is_free).is_none()
}

#[cfg(all(test, not(loom)))]
mod tests;
