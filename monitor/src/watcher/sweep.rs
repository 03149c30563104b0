//! The sweep, in turns: finds what a lost doorbell or a skipped program left behind, and eventfds
//! that their clients have closed.

use std::collections::BTreeSet;

use monitor_common::protocol::{
    oom::{Hold, hold_of},
    ring::LossKind,
    word::Word as _,
};

use crate::{
    source::Source,
    watcher::{Watcher, fair_queue::Payer, turn::Task},
};

/// Slots that a sweep looks at in a turn, and levels that it climbs.
const SWEPT: u32 = 256;
/// Slots between two looks at the clock, which take longer than a slot.
const UNCLOCKED: u32 = 16;

/// Tasks of a sweep beside finding what is pending.
#[derive(Clone, Copy, Debug, Default)]
struct Aims {
    /// Whether all that is watched is looked at, for something was lost.
    all: bool,
    /// Whether what is above charges that were too deep is looked at.
    deep: bool,
    /// Whether holds are noted, since the end of an OOM was skipped.
    holds: bool,
}

impl Aims {
    const fn or(self, other: Self) -> Self {
        Self { all: self.all || other.all, deep: self.deep || other.deep, holds: self.holds || other.holds }
    }

    const fn has_any(self) -> bool {
        self.all || self.deep || self.holds
    }
}

/// A sweep that is under way.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// The next slot, where the whole table is read.
    next: u32,
    /// The slots with registrations, else: most sweeps need none of the others, of which there
    /// may be very many.
    watched: Vec<u32>,
    aims: Aims,
    /// Whether it had not begun when one was due, or not ended when the next was.
    is_late: bool,
    /// Tasks of the next sweep, which begins as soon as this one has ended: this one may have
    /// passed what was lost.
    after: Aims,
    /// A slot, held, where charges that were too deep have ended, and the slot that the walk up
    /// from it has come to.
    climb: Option<(u32, u32)>,
    /// That slot, others, and all above them; looked at in the end.
    above: BTreeSet<u32>,
    found_deep: bool,
}

impl Sweep {
    /// Whether holds are noted in this sweep, or in the next.
    pub(super) const fn notes_holds(&self) -> bool {
        self.aims.or(self.after).holds
    }
}

impl<S: Source> Watcher<S> {
    /// Begins a sweep: finds what a lost doorbell or a skipped program left behind, and then
    /// closed eventfds, in turns.
    pub fn sweep(&mut self) {
        let misses = self.source.misses();
        let (skipped, lost) = (misses.charges, self.losses());
        self.signaller.try_again();
        self.log_shortages();
        let all = skipped != self.skipped || lost != self.lost;
        (self.skipped, self.lost) = (skipped, lost);
        let holds = self.make_up(&misses);
        let deep = self.was_too_deep();
        self.begin_sweep(Aims { all, deep, holds });
        self.find_parents();
    }

    /// Begins a sweep where doorbells were lost; one at a time, and the next only once that one
    /// has ended.
    pub fn sweep_after_loss(&mut self) {
        let lost = self.losses();
        if self.sweep.is_none() && lost != self.lost {
            self.lost = lost;
            self.begin_sweep(Aims { all: true, ..Aims::default() });
        }
    }

    /// Begins a sweep; one that is under way ends first: with very many groups it may take longer
    /// than the time between two.
    fn begin_sweep(&mut self, aims: Aims) {
        if aims.all {
            log::debug!(
                "reading all watched groups again: {} calls skipped, {} losses so far",
                self.skipped,
                self.lost
            );
            self.counts.resyncs += 1;
        }
        match &mut self.sweep {
            Some(sweep) => (sweep.is_late, sweep.after) = (true, sweep.after.or(aims)),
            None => {
                self.begin_next_sweep(aims, false);
                self.work.notify_one();
            }
        }
    }

    fn begin_next_sweep(&mut self, aims: Aims, is_late: bool) {
        let watched = if aims.has_any() { Vec::new() } else { self.registry.slots() };
        self.queue_sweep(Sweep { aims, is_late, watched, ..Sweep::default() });
    }

    fn queue_sweep(&mut self, sweep: Sweep) {
        self.sweep = Some(sweep);
        self.turns.push(Payer::House, Task::Sweep);
    }

    pub(super) fn sweep_on(&mut self, room: &mut usize) {
        *room = 0;
        let Some(mut sweep) = self.sweep.take() else { return };
        for step in 1..=SWEPT {
            if !self.sweep_step(&mut sweep) {
                self.end_sweep(&sweep);
                return;
            }
            if step % UNCLOCKED == 0 && self.is_time_over() {
                break;
            }
        }
        self.queue_sweep(sweep);
    }

    /// Handles one slot, or one level above one; false at the end.
    fn sweep_step(&mut self, sweep: &mut Sweep) -> bool {
        if let Some((from, at)) = sweep.climb {
            // All groups above a known one are known.
            let above = if sweep.above.insert(at) { self.above(at) } else { None };
            sweep.climb = above.map(|above| (from, above));
            if above.is_none() {
                // The look releases it.
                self.ring(from, 0);
            }
            return true;
        }
        if !sweep.aims.has_any() {
            let Some(index) = sweep.watched.pop() else { return false };
            if self.source.slot(index).is_some_and(|slot| slot.pending.get() != 0) {
                self.ring(index, 0);
            }
            return true;
        }
        let index = sweep.next;
        let Some(slot) = self.source.slot(index) else {
            // Only now: charges whose mark was taken on the way have been above others by then.
            let above = sweep.above.pop_first();
            if let Some(index) = above.filter(|index| self.registry.group(*index).is_some()) {
                self.ring(index, 0);
            }
            return above.is_some();
        };
        sweep.next += 1;
        let Aims { all, deep, holds } = sweep.aims;
        if holds
            && let hold = hold_of(slot)
            && hold != Hold::NONE
        {
            self.skips.note(index, hold);
        }
        if deep && slot.deep.get() != 0 && slot.deep.xchg(0) != 0 {
            sweep.climb = slot.hold(slot.state().generation()).then_some((index, index));
            sweep.found_deep |= sweep.climb.is_some();
        }
        // All slots after a loss: an OOM or a window of reclaim is delivered in other groups than
        // the one in whose slot it is.
        let (is_pending, is_watched) = (slot.pending.get() != 0, || self.registry.group(index).is_some());
        if (is_pending && all) || ((is_pending || all) && is_watched()) {
            self.ring(index, 0);
        }
        true
    }

    fn end_sweep(&mut self, sweep: &Sweep) {
        self.limits_written();
        if self.search.is_done() {
            self.search = self.search_closed();
            self.resume_at.clear();
        }
        self.queue_search();
        if sweep.aims.holds {
            self.skips.have_noted(sweep.is_late);
        }
        let mut aims = sweep.after;
        // Those charges ended at a group without a slot.
        aims.all |= sweep.aims.deep && !sweep.found_deep;
        if aims.has_any() {
            self.begin_next_sweep(aims, true);
        }
    }

    fn losses(&self) -> u64 {
        self.source.tally(LossKind::RingFull)
    }
}
