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
    watcher::{
        closed::ClosedEventFds, core::Core, fair_queue::Payer, hierarchy::above, parents::ParentSearch,
        percent_limits::PercentLimits, recovery::SkippedRuns, turns::Task,
    },
};

/// Slots that a sweep looks at in a turn, and levels that it goes up.
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
struct Sweep {
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
    walk: Option<(u32, u32)>,
    /// That slot, others, and all above them; looked at in the end.
    above: BTreeSet<u32>,
    found_deep: bool,
}

impl Sweep {
    /// Whether holds are noted in this sweep, or in the next.
    const fn notes_holds(&self) -> bool {
        self.aims.or(self.after).holds
    }
}

/// The sweep that is under way, and what sweeps have seen so far.
#[derive(Debug)]
pub(super) struct Sweeps {
    under_way: Option<Sweep>,
    /// Calls that the recursion guard kept from the programs, and how far they are made up for.
    skips: SkippedRuns,
    parents: ParentSearch,
    /// Charges that were skipped, and doorbells that were lost, up to the last sweep.
    skipped: u64,
    lost: u64,
    /// Times that all watched groups were read again.
    resyncs: u64,
}

impl Sweeps {
    pub(super) fn new(source: &impl Source) -> Self {
        let misses = source.misses();
        Self {
            under_way: None,
            skips: SkippedRuns::new(misses, source.tally(LossKind::OomJoined)),
            parents: ParentSearch::new(source),
            skipped: misses.charges,
            lost: 0,
            resyncs: 0,
        }
    }

    /// The times that all watched groups were read again after a loss.
    pub(super) const fn resyncs(&self) -> u64 {
        self.resyncs
    }

    /// Begins a sweep: finds what a lost doorbell or a skipped program left behind, and then
    /// closed eventfds, in turns.
    pub(super) fn begin<S: Source>(&mut self, core: &mut Core<S>, percent_limits: &mut PercentLimits) {
        let misses = core.source.misses();
        let (skipped, lost) = (misses.charges, losses(&core.source));
        core.delivery.sweep(&core.source);
        let all = skipped != self.skipped || lost != self.lost;
        (self.skipped, self.lost) = (skipped, lost);
        let notes_holds = self.under_way.as_ref().is_some_and(Sweep::notes_holds);
        let made_up = self.skips.make_up(core, &misses, notes_holds);
        if made_up.limits {
            percent_limits.limits_written(core);
        }
        let deep = self.parents.was_too_deep(&core.source);
        self.add_aims(core, Aims { all, deep, holds: made_up.holds });
        self.parents.go_on(core);
    }

    /// Begins a sweep where doorbells were lost; one at a time, and the next only once that one
    /// has ended.
    pub(super) fn begin_after_loss<S: Source>(&mut self, core: &mut Core<S>) {
        let lost = losses(&core.source);
        if self.under_way.is_none() && lost != self.lost {
            self.lost = lost;
            self.add_aims(core, Aims { all: true, ..Aims::default() });
        }
    }

    /// Begins a sweep; one that is under way ends first: with very many groups it may take longer
    /// than the time between two.
    fn add_aims<S>(&mut self, core: &mut Core<S>, aims: Aims) {
        if aims.all {
            log::debug!(
                "reading all watched groups again: {} calls skipped, {} losses so far",
                self.skipped,
                self.lost
            );
            self.resyncs += 1;
        }
        match &mut self.under_way {
            Some(sweep) => (sweep.is_late, sweep.after) = (true, sweep.after.or(aims)),
            None => {
                self.begin_next(core, aims, false);
                core.turns.notify();
            }
        }
    }

    fn begin_next<S>(&mut self, core: &mut Core<S>, aims: Aims, is_late: bool) {
        let watched = if aims.has_any() { Vec::new() } else { core.registry.slots() };
        self.queue(core, Sweep { aims, is_late, watched, ..Sweep::default() });
    }

    fn queue<S>(&mut self, core: &mut Core<S>, sweep: Sweep) {
        self.under_way = Some(sweep);
        core.turns.push(Payer::House, Task::Sweep);
    }

    /// Runs one turn's part of the sweep.
    pub(super) fn go_on<S: Source>(
        &mut self,
        core: &mut Core<S>,
        closed: &mut ClosedEventFds,
        percent_limits: &mut PercentLimits,
        room: &mut usize,
    ) {
        *room = 0;
        let Some(mut sweep) = self.under_way.take() else { return };
        for step in 1..=SWEPT {
            if !self.step(core, &mut sweep) {
                percent_limits.limits_written(core);
                closed.sweep(core);
                self.end(core, &sweep);
                return;
            }
            if step % UNCLOCKED == 0 && core.turns.is_time_over() {
                break;
            }
        }
        self.queue(core, sweep);
    }

    /// Handles one slot, or one level above one; false at the end.
    fn step<S: Source>(&mut self, core: &mut Core<S>, sweep: &mut Sweep) -> bool {
        if let Some((from, at)) = sweep.walk {
            // All groups above a known one are known.
            let above = if sweep.above.insert(at) { above(&core.source, at) } else { None };
            sweep.walk = above.map(|above| (from, above));
            if above.is_none() {
                // The look releases it.
                core.ring(from, 0);
            }
            return true;
        }
        if !sweep.aims.has_any() {
            let Some(index) = sweep.watched.pop() else { return false };
            if core.source.slot(index).is_some_and(|slot| slot.pending.get() != 0) {
                core.ring(index, 0);
            }
            return true;
        }
        let index = sweep.next;
        let Some(slot) = core.source.slot(index) else {
            // Only now: charges whose mark was taken on the way have been above others by then.
            let above = sweep.above.pop_first();
            if let Some(index) = above.filter(|index| core.registry.group(*index).is_some()) {
                core.ring(index, 0);
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
            sweep.walk = slot.hold(slot.state().generation()).then_some((index, index));
            sweep.found_deep |= sweep.walk.is_some();
        }
        // All slots after a loss: an OOM or a window of reclaim is delivered in other groups than
        // the one in whose slot it is.
        let (is_pending, is_watched) = (slot.pending.get() != 0, || core.registry.group(index).is_some());
        if (is_pending && all) || ((is_pending || all) && is_watched()) {
            core.ring(index, 0);
        }
        true
    }

    fn end<S>(&mut self, core: &mut Core<S>, sweep: &Sweep) {
        if sweep.aims.holds {
            self.skips.have_noted(sweep.is_late);
        }
        let mut aims = sweep.after;
        // Those charges ended at a group without a slot.
        aims.all |= sweep.aims.deep && !sweep.found_deep;
        if aims.has_any() {
            self.begin_next(core, aims, true);
        }
    }
}

fn losses(source: &impl Source) -> u64 {
    source.tally(LossKind::RingFull)
}
