//! Model check of a slot's life: every interleaving of the programs, which see groups
//! created and removed, and of the agent.

use loom::{sync::Arc, thread};

use crate::protocol::{
    band::{raise_hand, take},
    slot::{Slot, SlotState},
    word::Word,
};

use super::{Fenced, Modelled as _};

const GROUP: u64 = 0x1000;
const NEXT: u64 = 0x2000;

fn online() -> Arc<Slot<Fenced>> {
    let slot = Slot::new(Fenced::new);
    slot.counter.set(GROUP);
    slot.state.set(SlotState::online(0).0);
    Arc::new(slot)
}

/// The program of `mem_cgroup_css_offline`: true when it has given the slot back.
fn goes(slot: &Slot<Fenced>) -> (bool, bool) {
    let rang = slot.leave(5, 5);
    (rang, !rang && given_back(slot))
}

fn given_back(slot: &Slot<Fenced>) -> bool {
    let done = slot.retire();
    if done {
        slot.clear();
    }
    done
}

/// The agent has done with what it watched or held: true when it has given it back.
fn released(slot: &Slot<Fenced>) -> bool {
    !slot.unwatch(0) && slot.let_go(0) && given_back(slot)
}

/// A group goes offline while the agent begins to watch it: either the agent is refused, or
/// the group's end rings; one of the two gives the slot back.
#[test]
fn a_going_group_has_one_owner() {
    loom::model(|| {
        let slot = online();
        let kernel = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || goes(&slot))
        };
        let watched = slot.watch(0);
        let (rang, given) = kernel.join().unwrap_or_default();
        assert_eq!(watched, rang, "watched without a ring, or a ring without a watch");
        if watched {
            take(&slot);
            assert!(!slot.unwatch(0), "it went first");
            assert!(slot.let_go(0) && given_back(&slot));
        } else {
            assert!(given, "neither side gives it back");
        }
        assert_eq!(slot.state(), SlotState(1 << 8));
    });
}

/// Events counted in a group that is not watched are signalled, though it goes offline at
/// once, and the slot is given back once.
#[test]
fn what_is_pending_is_signalled_before_the_slot_goes() {
    loom::model(|| {
        let slot = online();
        let kernel = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || {
                slot.windows[0].add(1);
                let rang = raise_hand(&slot.pending);
                let (rang_again, given) = goes(&slot);
                (rang || rang_again, given)
            })
        };
        let look = |slot: &Slot<Fenced>| {
            if slot.pending.get() == 0 || !slot.hold(0) {
                return (0, false);
            }
            (take(slot).windows[0], released(slot))
        };
        // By chance, and then by the doorbell.
        let (signalled, given) = look(&slot);
        let (rang, by_kernel) = kernel.join().unwrap_or_default();
        assert!(rang);
        let (signalled_then, given_then) = look(&slot);
        assert_eq!(signalled + signalled_then, 1, "signalled once");
        let owners = [given, by_kernel, given_then].into_iter().filter(|given| *given).count();
        assert_eq!(owners, 1, "{given} {by_kernel} {given_then}");
        assert_eq!(slot.state(), SlotState(1 << 8));
    });
}

/// The slot is another group's as soon as the agent has given it back: the going, which
/// may not have returned yet, writes nothing there.
#[test]
fn a_slot_that_was_given_away_is_left_alone() {
    loom::model(|| {
        let slot = online();
        assert!(slot.watch(0));
        let kernel = {
            let slot = Arc::clone(&slot);
            thread::spawn(move || goes(&slot))
        };
        let mut used = false;
        if !slot.state().is_live() {
            take(&slot);
            assert!(slot.let_go(0) && given_back(&slot));
            slot.counter.set(NEXT);
            slot.state.xchg(SlotState::online(1).0);
            used = true;
        }
        let (rang, given) = kernel.join().unwrap_or_default();
        assert!(rang && !given);
        if used {
            assert_eq!(slot.counter.get(), NEXT, "the next group is blinded");
            assert_eq!(slot.state(), SlotState::online(1));
            assert_eq!(slot.pending.get(), 0);
        }
    });
}

/// A slot and the one above it go at once: the one above is given back after, once.
#[test]
fn what_is_above_is_given_back_by_the_last_below() {
    loom::model(|| {
        let (above, below) = (online(), online());
        assert!(above.name(GROUP) && below.watch(0) && below.leave(0, 0));
        let kernel = {
            let above = Arc::clone(&above);
            thread::spawn(move || goes(&above).1)
        };
        take(&below);
        let by_agent = released(&below) && {
            above.unname();
            given_back(&above)
        };
        let by_kernel = kernel.join().unwrap_or_default();
        assert!(by_agent != by_kernel, "given back by {}", if by_agent { "both" } else { "neither" });
        assert_eq!((above.state(), below.state()), (SlotState(1 << 8), SlotState(1 << 8)));
    });
}

/// A slot is named by one below while it goes: it stays, or is not named.
#[test]
fn a_parent_that_goes_is_named_or_given_back() {
    loom::model(|| {
        let above = online();
        let kernel = {
            let above = Arc::clone(&above);
            thread::spawn(move || goes(&above).1)
        };
        let named = above.name(GROUP);
        let by_namer = !named && {
            above.unname();
            given_back(&above)
        };
        let by_kernel = kernel.join().unwrap_or_default();
        if named {
            assert!(!by_kernel, "given back under the one below");
            above.unname();
            assert!(given_back(&above));
        } else {
            assert!(by_namer != by_kernel, "given back by {}", if by_namer { "both" } else { "neither" });
        }
        assert_eq!(above.below.get(), 0);
    });
}
