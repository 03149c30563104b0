//! Which OOMs are one: the rule of the kernel's `mem_cgroup_oom_trylock`, for the
//! kernels that are built without it (`CONFIG_MEMCG_V1=n`).
//!
//! v1 notifies for the OOM that wins the lock on a group and all below it. One
//! that begins while another holds the same group, one above or one below, is
//! silent. Here an OOM leaves its mark in the slots of its group and of those
//! above. Two that begin at the very same time may both count.

use crate::{
    slot::{MAX_DEPTH, PARENT_ROOT, PARENT_UNKNOWN, Slot},
    word::Word,
};

/// Nanoseconds after which a mark counts for nothing: its program was skipped at
/// the OOM's end. An OOM takes milliseconds.
const STALE: u64 = 10_000_000_000;

const fn is_fresh(since: u64, now: u64) -> bool {
    since != 0 && now.wrapping_sub(since) < STALE
}

/// Goes from `index` up to the top-level group, until `visit` says `false`.
#[inline(always)]
fn climb<'a, W: Word + 'a>(
    slot_at: impl Fn(u32) -> Option<&'a Slot<W>>,
    index: u32,
    mut visit: impl FnMut(&Slot<W>) -> bool,
) -> bool {
    let mut index = index;
    for _ in 0..MAX_DEPTH {
        let Some(slot) = slot_at(index) else { return true };
        if !visit(slot) {
            return false;
        }
        let parent = slot.parent.get();
        if parent == PARENT_ROOT || parent == PARENT_UNKNOWN {
            return true;
        }
        index = parent as u32;
    }
    true
}

/// `task` begins an OOM by the limit of the group at `index`, `now` in nanoseconds
/// since boot. True when it is to be told.
#[inline(always)]
pub fn begin<'a, W: Word + 'a>(
    slot_at: impl Fn(u32) -> Option<&'a Slot<W>>,
    index: u32,
    task: u64,
    now: u64,
) -> bool {
    let Some(slot) = slot_at(index) else { return false };
    if is_fresh(slot.oom_below.get(), now) {
        return false;
    }
    let is_free = |slot: &Slot<W>| slot.oom_holder.get() == 0 || !is_fresh(slot.oom_since.get(), now);
    if !climb(&slot_at, index, is_free) {
        return false;
    }
    let held = slot.oom_holder.get();
    if slot.oom_holder.cas(held, task) != held {
        return false;
    }
    slot.oom_since.set(now);
    climb(&slot_at, index, |slot| {
        slot.oom_below.set(now);
        true
    });
    // The group itself is held, not below itself.
    slot.oom_below.set(0);
    true
}

/// `task` has ended its OOM.
#[inline(always)]
pub fn end<'a, W: Word + 'a>(slot_at: impl Fn(u32) -> Option<&'a Slot<W>>, index: u32, task: u64) {
    let Some(slot) = slot_at(index) else { return };
    if slot.oom_holder.get() != task {
        return;
    }
    climb(&slot_at, index, |slot| {
        slot.oom_below.set(0);
        true
    });
    slot.oom_holder.xchg(0);
}

/// Whether the group at `index` is under OOM: it or one above is held.
pub fn is_under<'a, W: Word + 'a>(slot_at: impl Fn(u32) -> Option<&'a Slot<W>>, index: u32) -> bool {
    !climb(slot_at, index, |slot| slot.oom_holder.get() == 0)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::{STALE, begin, end, is_under};
    use crate::{
        slot::{PARENT_ROOT, Slot},
        word::Word,
    };

    /// 0 is the top, 1 and 2 are below it, 3 is below 1.
    fn tree() -> Vec<Slot<AtomicU64>> {
        [PARENT_ROOT, 0, 0, 1]
            .into_iter()
            .map(|parent| {
                let slot = Slot::new(AtomicU64::new);
                slot.parent.set(parent);
                slot
            })
            .collect()
    }

    #[test]
    fn related_groups_share_a_signal_and_others_do_not() {
        let tree = tree();
        let at = |index: u32| tree.get(index as usize);
        assert!(begin(at, 1, 71, 5));
        assert!(!begin(at, 1, 72, 6), "the same group");
        assert!(!begin(at, 3, 73, 6), "below");
        assert!(!begin(at, 0, 74, 6), "above");
        assert!(begin(at, 2, 75, 6), "beside");
        assert!(is_under(at, 3) && is_under(at, 1) && is_under(at, 2) && !is_under(at, 0));
        end(at, 2, 75);
        end(at, 1, 99);
        assert!(is_under(at, 1), "another task's end is not this one's");
        end(at, 1, 71);
        assert!(!is_under(at, 3));
        assert!(begin(at, 0, 76, 7));
        end(at, 0, 76);
        assert!(begin(at, 3, 77, 8));
    }

    #[test]
    fn a_mark_whose_end_was_missed_does_not_stay() {
        let tree = tree();
        let at = |index: u32| tree.get(index as usize);
        assert!(begin(at, 3, 1, 5));
        assert!(!begin(at, 0, 2, 5 + STALE - 1));
        assert!(begin(at, 0, 2, 5 + STALE));
        assert!(!begin(at, 3, 3, 6 + STALE));
        assert!(begin(at, 3, 3, 5 + 2 * STALE));
    }
}
