//! A slot's life: a group is created, goes offline, and its slot is given back.
//!
//! `mem_cgroup_css_offline` takes the slot away from its group ([`Slot::leave`]): from
//! there on no program finds it by the group's counter, however long the kernel keeps
//! that. It is given back ([`Slot::retire`]) as soon as it is not needed any more: the
//! agent does not watch it, nothing in it is still to be signalled, and no slot names it as
//! its parent, for an event's signals depend on what is above. Whichever side makes the
//! last of these true tries, and one of those that try succeeds.
//!
//! Each condition is made true by a full barrier, or before one, and looked at after one:
//! of two that come true at once, the later one to try sees both.

use crate::protocol::{
    slot::{ATTEMPTS, Slot, SlotState},
    word::Word,
};

impl<W: Word> Slot<W> {
    /// Begins to watch `generation` of this slot: the agent's part. False when that group is no
    /// longer online. Its going offline rings from then on.
    pub fn watch(&self, generation: u64) -> bool {
        let mut held = self.state();
        loop {
            if !held.is_live() || held.generation() != generation {
                return false;
            }
            let before = self.state.cas(held.0, held.0 | SlotState::WATCHED);
            if before == held.0 {
                return true;
            }
            held = SlotState(before);
        }
    }

    /// Keeps the slot from being given back while the agent looks at it, also if its
    /// group is offline already. False when it has been given back.
    pub fn hold(&self, generation: u64) -> bool {
        let mut held = self.state();
        loop {
            if !held.has(SlotState::ONLINE) || held.generation() != generation {
                return false;
            }
            let before = self.state.cas(held.0, held.0 | SlotState::WATCHED);
            if before == held.0 {
                return true;
            }
            held = SlotState(before);
        }
    }

    /// Ends the agent's watch of `generation` of this slot. False when the group went offline
    /// first: then the slot is the agent's to give back ([`Slot::let_go`]).
    pub fn unwatch(&self, generation: u64) -> bool {
        let mut held = self.state();
        loop {
            if held.generation() != generation || held.has(SlotState::OFFLINE) {
                return false;
            }
            let before = self.state.cas(held.0, held.0 & !SlotState::WATCHED);
            if before == held.0 {
                return true;
            }
            held = SlotState(before);
        }
    }

    /// Takes the slot from its group, which goes offline; `usage` and `sum` are its last readings.
    /// True when the agent has to look, and a doorbell is due. Nothing is written here
    /// afterwards: the slot may be another group's by then.
    #[inline(always)]
    pub fn leave(&self, usage: u64, sum: u64) -> bool {
        self.last.set(usage);
        self.sum_last.set(sum);
        self.counter.set(0);
        if self.state().has(SlotState::WATCHED) {
            // The sweep finds it, should the ring be full.
            self.pending.xchg(1);
        }
        let before = self.mark(SlotState::OFFLINE);
        before.has(SlotState::WATCHED) || self.pending.get() != 0
    }

    /// Counts one more slot that names this one as its parent. False when it is no longer that of
    /// the group whose counter is at `address`: then [`Slot::unname`] it, and try to retire it.
    #[inline(always)]
    pub fn name(&self, address: u64) -> bool {
        self.below.add(1);
        // A full barrier, as in `retire`: it sees this one more, or is seen here.
        SlotState(self.state.or(0)).is_live() && self.counter.get() == address
    }

    /// Counts one slot fewer that names this one.
    #[inline(always)]
    pub fn unname(&self) {
        self.below.add(u64::MAX);
    }

    /// Ends the agent's hold on `generation` of this slot, whose group is offline.
    #[inline(always)]
    pub fn let_go(&self, generation: u64) -> bool {
        for _ in 0..ATTEMPTS {
            let held = self.state();
            if held.generation() != generation || !held.has(SlotState::OFFLINE) {
                return false;
            }
            if self.state.cas(held.0, held.0 & !SlotState::WATCHED) == held.0 {
                return true;
            }
        }
        false
    }

    /// Takes the slot out of use, if its group is offline and it is not needed. True for
    /// the one that has done it: the slot is the caller's, to [`clear`](Slot::clear) and
    /// to put on the free list, and there is one slot fewer below the one above.
    #[inline(always)]
    pub fn retire(&self) -> bool {
        let held = SlotState(self.state.or(0));
        let is_over = held.has(SlotState::OFFLINE)
            && !held.has(SlotState::WATCHED)
            && self.pending.get() == 0
            && self.below.get() == 0;
        is_over && self.state.cas(held.0, held.recycled().0) == held.0
    }
}
