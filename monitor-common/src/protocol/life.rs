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
    band, epoch,
    slot::{ATTEMPTS, PARENT_UNKNOWN, POPULATED_UNKNOWN, Slot, SlotState},
    usage,
    word::Word,
};

impl<W> Slot<W> {
    /// In place of the highest usage of a group that left without a program that could read it.
    pub const PEAK_UNKNOWN: u64 = u64::MAX;

    /// A free slot of words made by `word`.
    pub fn new(word: impl Fn(u64) -> W) -> Self {
        let zero = || word(0);
        Self {
            band: word(band::OPEN),
            sum_band: word(band::OPEN),
            parent: zero(),
            counter: zero(),
            state: zero(),
            cgroup_id: zero(),
            unwatched_above: word(epoch::NEVER),
            below: zero(),
            max_seen: [zero(), zero()],
            min_seen: [word(u64::MAX), word(u64::MAX)],
            sum_max_seen: [zero(), zero()],
            sum_min_seen: [word(u64::MAX), word(u64::MAX)],
            pending: zero(),
            ooms: zero(),
            oom_holder: zero(),
            oom_below: zero(),
            oom_below_since: zero(),
            windows: [zero(), zero(), zero()],
            emptied: zero(),
            populated: word(POPULATED_UNKNOWN),
            windows_below: [zero(), zero(), zero()],
            last: zero(),
            sum_last: zero(),
            deep: zero(),
            usage: word(usage::UNKNOWN),
            peak: word(usage::UNKNOWN),
            limit: word(usage::UNKNOWN),
            read_of: zero(),
            version: zero(),
            oom_levels: zero(),
            oom_calls: zero(),
            window: zero(),
        }
    }
}

impl<W: Word> Slot<W> {
    /// Resets everything that was seen or counted here.
    pub fn forget(&self) {
        self.sum_band.set(band::OPEN);
        // Each by itself: of a chain of iterators the verifier would have to be convinced.
        for set in 0..2 {
            self.max_seen[set].set(0);
            self.min_seen[set].set(u64::MAX);
            self.sum_max_seen[set].set(0);
            self.sum_min_seen[set].set(u64::MAX);
        }
        let counts =
            [&self.pending, &self.ooms, &self.oom_holder, &self.oom_below, &self.emptied, &self.deep];
        for word in counts {
            word.set(0);
        }
        self.populated.set(POPULATED_UNKNOWN);
        self.windows.iter().chain(&self.windows_below).for_each(|count| count.set(0));
        self.window.set(0);
    }

    /// Resets the slot as if there had been no group. The caller owns the slot. `below` stays: a
    /// slot that names this one late takes its count back.
    pub fn clear(&self) {
        self.counter.set(0);
        self.band.set(band::OPEN);
        self.unwatched_above.set(epoch::NEVER);
        self.parent.set(PARENT_UNKNOWN);
        self.forget();
    }

    /// Makes a slot ready for its next group: new generation, no flags. The caller owns
    /// the slot and gives its index back to the free list after.
    pub fn recycle(&self) {
        self.clear();
        let state = self.state().recycled();
        self.state.xchg(state.0);
    }

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

    /// Takes note of a new group, once: true for the one that does.
    pub fn take_new(&self) -> bool {
        let mut held = self.state();
        while held.has(SlotState::NEW) {
            let before = self.state.cas(held.0, held.0 & !SlotState::NEW);
            if before == held.0 {
                return true;
            }
            held = SlotState(before);
        }
        false
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
