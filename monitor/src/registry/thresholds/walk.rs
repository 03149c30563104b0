//! Walks over many thresholds, in pieces: others come and go in between.

use std::collections::BTreeSet;

use monitor_common::protocol::{
    band::Excursion,
    crossing::{Look, Step, Stretches},
};

use super::{
    Clock, Outcome, ThresholdSet,
    index::{Place, ThresholdIndex},
    pages,
};

/// A walk over the thresholds of one quantity, as far as it has come.
#[derive(Debug)]
pub(super) enum Walk {
    /// A walk over those that a look crossed, from below.
    Look(LookWalk),
    /// A walk over those in percent, from the last, since their limit is so many pages now.
    Follow(u64, Place),
    /// A walk over all that an earlier agent has left, from the last.
    Settle(Place),
    /// A walk over those in a hold-off: those whose time is up, or all.
    Wake(bool),
}

/// A walk over the keys from `next` on that lie in a stretch.
#[derive(Debug)]
pub(super) struct LookWalk {
    look: Look,
    next: (u64, Place),
    /// Done already, or never part of it, though their keys may lie ahead.
    done: BTreeSet<Place>,
    /// Still to be done, though their keys lie behind.
    late: BTreeSet<Place>,
}

impl LookWalk {
    /// Begins a walk; `None` where nothing is crossed.
    fn new(look: Look, store: &ThresholdIndex) -> Option<Self> {
        let (done, late) = <(BTreeSet<_>, BTreeSet<_>)>::default();
        let walk = Self { look, next: (0, 0), done, late };
        walk.find(store).is_some().then_some(walk)
    }

    /// The stretches in which keys are crossed, in order: crossed only by late readings, by the
    /// step, and again only by late readings. Some are empty.
    fn stretches(&self) -> impl Iterator<Item = (u64, u64)> {
        let [below, above] = self.look.beyond();
        below.into_iter().chain([self.look.step.range()]).chain(above)
    }

    fn is_ahead(&self, key: u64, place: Place) -> bool {
        let is_part = |(lowest, highest)| lowest < key && key <= highest;
        (key, place) >= self.next && self.stretches().any(is_part)
    }

    /// The first threshold from `next` on.
    fn find(&self, store: &ThresholdIndex) -> Option<(u64, Place)> {
        let from = |(lowest, highest): (u64, u64)| {
            let first = (lowest.saturating_add(1), 0).max(self.next);
            (lowest < highest).then(|| store.next(first, highest)).flatten()
        };
        self.stretches().find_map(from)
    }

    /// The step, as a threshold with this key sees it.
    fn step_for(&self, key: u64) -> Step {
        let (lowest, highest) = self.look.step.range();
        if lowest < key && key <= highest { self.look.step } else { self.look.late_step() }
    }

    /// Notes a threshold that has been added: it was not there when keys were crossed.
    pub(super) fn added(&mut self, place: Place) {
        self.done.insert(place);
    }

    /// Notes that the threshold at `place` has gone.
    pub(super) fn removed(&mut self, place: Place) {
        self.done.remove(&place);
        self.late.remove(&place);
    }

    /// Notes that a threshold with `key`, or in a hold-off, has moved; always to a lower place.
    pub(super) fn moved(&mut self, key: Option<u64>, before: Place, place: Place) {
        if self.done.remove(&before) {
            self.done.insert(place);
        } else if self.late.remove(&before)
            || key.is_some_and(|key| self.is_ahead(key, before) && !self.is_ahead(key, place))
        {
            self.late.insert(place);
        }
    }

    /// Takes the next threshold to be done; `None` at the end.
    fn take(&mut self, store: &ThresholdIndex, room: &mut usize) -> Option<Place> {
        if let Some(place) = self.late.pop_first() {
            return Some(place);
        }
        while *room > 0 {
            let (key, place) = self.find(store)?;
            self.next = place.checked_add(1).map_or((key + 1, 0), |next| (key, next));
            if !self.done.remove(&place) {
                return Some(place);
            }
            *room -= 1;
        }
        None
    }
}

impl Walk {
    /// Runs one more piece, of at most `room` thresholds; true at the end.
    fn go_on(
        &mut self,
        store: &mut ThresholdIndex,
        still: &Step,
        clock: Clock,
        room: &mut usize,
        outcome: &mut Outcome,
    ) -> bool {
        while *room > 0 {
            let place = match self {
                Self::Look(walk) => walk.take(store, room),
                Self::Follow(_, next) => {
                    store.percents().range(..*next).next_back().copied().inspect(|place| *next = *place)
                }
                Self::Settle(next) => {
                    *next = (*next).min(store.places().end);
                    next.checked_sub(1).inspect(|place| *next = *place)
                }
                Self::Wake(all) => store.first_held_off(if *all { u64::MAX } else { clock.now }),
            };
            // Without room there may be more.
            let Some(place) = place else { return *room > 0 };
            *room -= 1;
            self.apply(place, store, still, clock, outcome);
        }
        false
    }

    fn apply(
        &mut self,
        place: Place,
        store: &mut ThresholdIndex,
        still: &Step,
        clock: Clock,
        outcome: &mut Outcome,
    ) {
        match self {
            Self::Look(walk) => {
                let step = walk.step_for(store.key(place));
                let mut holdoff_end = None;
                store.change(place, |entry| holdoff_end = entry.apply(&step, clock, outcome));
                if walk.is_ahead(store.key(place), place) {
                    walk.done.insert(place);
                }
                if let Some(until) = holdoff_end {
                    store.hold_off(place, until);
                }
            }
            Self::Follow(limit, _) => store.change(place, |entry| {
                let Some(at) = entry.percent() else { return };
                let moved = std::mem::replace(&mut entry.threshold, pages(at, *limit));
                // One in a hold-off is signalled when that ends.
                if moved != entry.threshold && !entry.is_held_off() {
                    entry.apply(still, clock, outcome);
                }
            }),
            Self::Settle(_) => store.change(place, |entry| {
                entry.apply(still, clock, outcome);
            }),
            Self::Wake(_) => {
                store.change(place, |entry| {
                    entry.wake(clock);
                    entry.apply(still, clock, outcome);
                });
                store.end_holdoff(place);
            }
        }
    }
}

impl ThresholdSet {
    /// Whether a walk has been begun and not ended. No other is begun meanwhile.
    #[must_use]
    pub fn is_walking(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.walk.is_some())
    }

    /// Moves to `now`, which was read without a band: [`ThresholdSet::walk`] works out what was
    /// crossed on the way.
    pub fn begin_step(&mut self, now: u64) {
        let step = Step { from: self.now, seen: Excursion::NONE, now };
        self.begin(Look { step, late: Excursion::NONE, signalled: Stretches::NONE });
    }

    /// Moves to `now` at a look, after which a band is published: `seen` are readings out of the
    /// present band, `late` those that were compared with the band before.
    pub fn begin_look(&mut self, seen: Excursion, late: Excursion, now: u64) {
        let step = Step { from: self.now, seen, now };
        let signalled = self.store.as_ref().map_or(Stretches::NONE, |store| store.signalled);
        let look = Look { step, late, signalled };
        if let Some(store) = &mut self.store {
            store.signalled = look.to_signal();
        }
        self.begin(look);
    }

    fn begin(&mut self, look: Look) {
        self.now = look.step.now;
        if let Some(store) = &mut self.store
            && let Some(walk) = LookWalk::new(look, store)
        {
            store.walk = Some(Box::new(Walk::Look(walk)));
        }
    }

    /// Sets the limit to `limit` pages: thresholds in percent move, and are crossed where they
    /// pass the quantity. False where none moves, which costs nothing.
    pub fn begin_follow(&mut self, limit: u64) -> bool {
        let Some(store) = &mut self.store else { return false };
        let moves = store.set_limit(limit);
        if moves {
            store.walk = Some(Box::new(Walk::Follow(limit, store.places().end)));
        }
        moves
    }

    /// Whether a limit of so many pages would move thresholds here.
    #[must_use]
    pub fn is_moved_by(&self, limit: u64) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_of_another(limit))
    }

    /// Begins a walk over thresholds taken over from an earlier agent: those on the other side
    /// than was signalled last are signalled now.
    pub fn begin_settle(&mut self) {
        if let Some(store) = &mut self.store {
            store.walk = Some(Box::new(Walk::Settle(store.places().end)));
        }
    }

    /// Ends the hold-off of those whose time is up, or of all: they are crossed if they are on
    /// the other side than was signalled last.
    pub fn begin_wake(&mut self, all: bool) {
        if let Some(store) = self.store.as_mut().filter(|store| store.first_holdoff_end().is_some()) {
            store.walk = Some(Box::new(Walk::Wake(all)));
        }
    }

    /// Goes on with what was begun, over at most `room` thresholds, which is less by those. True
    /// when nothing is left to do. Thresholds may be added and removed before it is called again:
    /// the former are no part of it.
    pub fn walk(&mut self, clock: Clock, room: &mut usize, outcome: &mut Outcome) -> bool {
        let still = Step { from: self.now, seen: Excursion::NONE, now: self.now };
        let Some(store) = &mut self.store else { return true };
        let Some(mut walk) = store.walk.take() else { return true };
        let done = walk.go_on(store, &still, clock, room, outcome);
        if !done {
            store.walk = Some(walk);
        }
        done
    }
}
