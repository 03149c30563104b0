//! Model check of OOMs that begin and end at once, and of the doorbell for limits.

use loom::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use crate::protocol::{
    band::raise_hand,
    oom::{Hold, begin, end, hold_of},
    slot::{PARENT_ROOT, Slot},
    word::Word,
};

use super::{Fenced, Modelled as _};

/// Makes two slots; 1 is below 0.
fn pair() -> Arc<Vec<Slot<Fenced>>> {
    let slot = |parent: u64| {
        let slot = Slot::new(Fenced::new);
        slot.parent.set(parent);
        slot
    };
    Arc::new([PARENT_ROOT, 0].map(slot).into())
}

/// Two OOMs of the same group, or of related ones, begin and end at the same time: one is
/// signalled, or both; and when they are over nothing is held, so that the next one is, too.
#[test]
fn two_ooms_at_once_leave_nothing_behind() {
    for groups in [[1, 1], [0, 1]] {
        loom::model(move || {
            let tree = pair();
            let run = move |tree: &Vec<Slot<Fenced>>, thread: u32| {
                let at = |index: u32| tree.get(index as usize);
                let group = groups[thread as usize - 1];
                let signalled = begin(at, group, thread, 5);
                end(at, group, thread);
                signalled
            };
            let other = {
                let tree = Arc::clone(&tree);
                thread::spawn(move || run(&tree, 1))
            };
            let here = run(&tree, 2);
            let there = other.join().unwrap_or_default();
            assert!(here || there, "neither is signalled");
            for slot in tree.iter() {
                assert!(hold_of(slot) == Hold::NONE && slot.oom_below.get() == 0, "something is held");
            }
        });
    }
}

/// Limits are written on two CPUs while the agent may be looking: after it has answered
/// each doorbell, it has read what was written last. It is rung once for what it has not
/// looked at.
#[test]
fn a_written_limit_is_read_after_any_doorbell() {
    loom::model(|| {
        struct Shared {
            /// The kernel's `page_counter.max` of two groups.
            limits: [Fenced; 2],
            pending: Fenced,
            ring: AtomicU64,
        }
        let shared = Arc::new(Shared {
            limits: [1, 1].map(Fenced::new),
            pending: Fenced::new(0),
            ring: AtomicU64::new(0),
        });
        let look = |shared: &Shared| {
            // Cleared first: what is written from here on rings anew.
            shared.pending.xchg(0);
            shared.limits.each_ref().map(Word::get)
        };
        let writers: Vec<_> = (0..2)
            .map(|at| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    // `memory_max_write` exchanges it: a full barrier.
                    shared.limits[at].xchg(2);
                    if raise_hand(&shared.pending) {
                        shared.ring.fetch_add(1, Ordering::AcqRel);
                    }
                })
            })
            .collect();
        let mut seen = look(&shared);
        for writer in writers {
            writer.join().unwrap_or_default();
        }
        let rung = shared.ring.load(Ordering::Acquire);
        assert!(rung <= 2, "rung {rung} times for two looks");
        if shared.pending.get() != 0 {
            assert!(rung > 0, "pending without a doorbell");
            seen = look(&shared);
        }
        assert_eq!(seen, [2, 2], "a limit was written, and the agent has not looked");
    });
}
