//! The rule against the kernel's own, on random trees and in random order.

use core::sync::atomic::AtomicU64;

use proptest::{collection::vec, prelude::*};

use super::{Hold, begin, end, hold_of, is_under, release};
use crate::protocol::{
    slot::{PARENT_ROOT, PARENT_UNKNOWN, Slot},
    word::Word,
};

const SECOND: u64 = 1_000_000_000;
const STALE: u64 = (Hold::STALE as u64) << Hold::UNIT_BITS;

type Tree = Vec<Slot<AtomicU64>>;

/// Makes slots with these parents.
fn tree(parents: impl IntoIterator<Item = u64>) -> Tree {
    let slot = |parent| {
        let slot = Slot::new(AtomicU64::new);
        slot.parent.set(parent);
        slot
    };
    parents.into_iter().map(slot).collect()
}

/// 0 is the top, 1 and 2 are below it, 3 is below 1.
fn family() -> Tree {
    tree([PARENT_ROOT, 0, 0, 1])
}

/// Whether no group is held, nor counted as held below.
fn is_settled(tree: &Tree) -> bool {
    tree.iter().all(|slot| hold_of(slot) == Hold::NONE && slot.oom_below.get() == 0)
}

#[test]
fn related_groups_share_a_signal_and_others_do_not() {
    let tree = family();
    let at = |index: u32| tree.get(index as usize);
    assert!(begin(at, 1, 71, 5));
    assert!(!begin(at, 1, 72, 6), "the same group");
    assert!(!begin(at, 3, 73, 6), "below");
    assert!(!begin(at, 0, 74, 6), "above");
    assert!(begin(at, 2, 75, 6), "beside");
    assert!(is_under(at, 3, 6) && is_under(at, 1, 6) && is_under(at, 2, 6) && !is_under(at, 0, 6));
    end(at, 2, 75);
    assert!(!begin(at, 0, 74, 7), "another is under way below");
    end(at, 1, 99);
    assert!(is_under(at, 1, 7), "another thread's end is not this one's");
    end(at, 1, 71);
    assert!(!is_under(at, 3, 7));
    assert!(begin(at, 0, 76, 7));
    end(at, 0, 76);
    assert!(begin(at, 3, 77, 8));
    end(at, 3, 77);
    assert!(is_settled(&tree));
}

#[test]
fn a_hold_whose_end_was_missed_does_not_stay() {
    let tree = family();
    let at = |index: u32| tree.get(index as usize);
    assert!(begin(at, 3, 1, 5));
    assert!(!begin(at, 0, 2, STALE - 1) && is_under(at, 3, STALE - 1));
    assert!(!is_under(at, 3, STALE), "no signal at registration for what is long over");
    assert!(begin(at, 0, 2, STALE), "nor is one above kept silent");
    end(at, 0, 2);
    assert!(begin(at, 3, 3, STALE), "the next one in the group takes the hold over");
    assert!(!begin(at, 0, 2, STALE + 1));
    end(at, 3, 3);
    assert!(is_settled(&tree));
}

#[test]
fn a_thread_is_in_one_oom_at_a_time() {
    let tree = family();
    let at = |index: u32| tree.get(index as usize);
    assert!(begin(at, 1, 7, SECOND));
    assert!(begin(at, 3, 7, 2 * SECOND), "its end was missed, so what it left above silences no other");
    end(at, 3, 7);
    assert!(begin(at, 1, 7, 3 * SECOND), "nor in the same group");
    end(at, 1, 7);
    assert!(is_settled(&tree));
}

#[test]
fn a_hold_is_released_once() {
    let tree = family();
    let at = |index: u32| tree.get(index as usize);
    assert!(begin(at, 3, 7, SECOND));
    let left = hold_of(&tree[3]);
    release(at, 3, left);
    release(at, 3, left);
    end(at, 3, 7);
    assert!(is_settled(&tree));
    assert!(begin(at, 3, 8, 2 * SECOND));
    release(at, 3, left);
    assert!(is_under(at, 3, 2 * SECOND), "another's hold is another's");
}

/// The agent takes away a hold that was left over, in the middle of a beginning.
#[test]
fn a_hold_that_is_released_meanwhile_loses_no_signal() {
    let tree = family();
    let at = |index: u32| tree.get(index as usize);
    assert!(begin(at, 3, 1, SECOND));
    let left = hold_of(&tree[3]);
    let looks = core::cell::Cell::new(0);
    let in_between = |index: u32| {
        looks.set(looks.get() + 1);
        // The hold was read; now it is looked what holds those above.
        if looks.get() == 2 {
            release(at, 3, left);
        }
        at(index)
    };
    assert!(begin(in_between, 3, 2, SECOND + STALE));
    assert!(looks.get() > 2 && hold_of(&tree[3]).thread() == 2);
    assert!(!begin(at, 0, 4, SECOND + STALE), "it is counted above");
    end(at, 3, 2);
    assert!(is_settled(&tree));
}

#[test]
fn a_parent_that_is_found_in_between_is_counted_as_it_was() {
    let tree = tree([PARENT_ROOT, PARENT_UNKNOWN]);
    let at = |index: u32| tree.get(index as usize);
    assert!(begin(at, 1, 7, SECOND));
    tree[1].parent.set(0);
    end(at, 1, 7);
    assert!(is_settled(&tree), "the end counts down what the beginning counted up");
}

/// The kernel's: a flag in each group, set for all of a subtree or for none.
struct Kernel {
    parents: Vec<Option<usize>>,
    locked: Vec<bool>,
}

impl Kernel {
    fn subtree(&self, top: usize) -> Vec<usize> {
        let is_in = |group: &usize| {
            std::iter::successors(Some(*group), |group| self.parents[*group]).any(|group| group == top)
        };
        (0..self.parents.len()).filter(is_in).collect()
    }

    fn trylock(&mut self, group: usize) -> bool {
        let tree = self.subtree(group);
        let free = tree.iter().all(|group| !self.locked[*group]);
        if free {
            tree.into_iter().for_each(|group| self.locked[group] = true);
        }
        free
    }

    fn unlock(&mut self, group: usize) {
        self.subtree(group).into_iter().for_each(|group| self.locked[group] = false);
    }
}

proptest! {
    /// Whatever the tree and the order, with as many OOMs under way at once as there are
    /// threads, those are signalled for which the kernel would notify.
    #[test]
    fn signalled_is_what_the_kernel_notifies_for(
        parents in vec(any::<prop::sample::Index>(), 1..12),
        steps in vec((0..8usize, any::<prop::sample::Index>()), 0..64),
    ) {
        // Each group's parent is one before it, or none.
        let parents: Vec<Option<usize>> =
            parents.iter().enumerate().map(|(at, parent)| parent.index(at + 1).checked_sub(1)).collect();
        let tree = tree(parents.iter().map(|parent| parent.map_or(PARENT_ROOT, |parent| parent as u64)));
        let at = |index: u32| tree.get(index as usize);
        let mut kernel = Kernel { locked: vec![false; parents.len()], parents };
        // What each thread is in: a group, and whether it has the lock.
        let mut threads: [Option<(usize, bool)>; 8] = [None; 8];
        for (now, (thread, group)) in steps.into_iter().enumerate() {
            let (id, now) = (thread as u32 + 1, now as u64 * 1000);
            threads[thread] = match threads[thread] {
                None => {
                    let group = group.index(tree.len());
                    let locked = kernel.trylock(group);
                    prop_assert_eq!(begin(at, group as u32, id, now), locked);
                    Some((group, locked))
                }
                Some((group, locked)) => {
                    if locked {
                        kernel.unlock(group);
                    }
                    end(at, group as u32, id);
                    None
                }
            };
            for (group, locked) in kernel.locked.iter().enumerate() {
                prop_assert_eq!(is_under(at, group as u32, now), *locked);
            }
        }
        for (thread, state) in threads.into_iter().enumerate() {
            if let Some((group, _)) = state {
                end(at, group as u32, thread as u32 + 1);
            }
        }
        prop_assert!(is_settled(&tree));
    }

    /// After missed ends, what is left over is released by the holds alone: then
    /// nothing is held, and nothing counted.
    #[test]
    fn what_missed_ends_leave_can_be_released(
        steps in vec((1..6u32, 0..4u32, any::<bool>(), 0..20u64), 0..64),
    ) {
        let tree = family();
        let at = |index: u32| tree.get(index as usize);
        let mut now = 0;
        for (thread, group, missed, seconds) in steps {
            now += seconds * SECOND;
            begin(at, group, thread, now);
            if !missed {
                end(at, group, thread);
            }
        }
        for (index, slot) in tree.iter().enumerate() {
            release(at, index as u32, hold_of(slot));
        }
        prop_assert!(is_settled(&tree));
    }
}
