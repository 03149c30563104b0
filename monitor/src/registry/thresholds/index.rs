//! An index of the thresholds on one quantity, densely: by where they are crossed next, and by
//! their eventfd. It decides what a threshold costs in memory.

use std::collections::{BTreeSet, HashMap};

use monitor_common::{
    grammar::threshold::{At, Pages, Threshold},
    protocol::crossing::{Direction, Step, Stretches, ThresholdState},
};

use super::{BURST, Clock, Crossing, Outcome, Side, walk::Walk};
use crate::{
    registry::{
        Subscriber,
        dense::{Dense, Subscribed, work},
        give_back,
    },
    source::FileId,
};

pub(super) use crate::registry::dense::Place;

/// One registration of a threshold.
#[derive(Debug)]
pub(super) struct IndexEntry {
    pub(super) to: Subscriber,
    /// The present place of the threshold, in pages.
    pub(super) threshold: u64,
    /// The begin of its present burst, in milliseconds modulo 2^32, and the crossings in it.
    since: u32,
    burst: u8,
    above: bool,
    ways: Directions,
    is_held_off: bool,
    /// Extensions that v1 did not have: most thresholds have none.
    more: Option<Box<Extensions>>,
}

/// The directions that are signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directions {
    Both,
    Up,
    Down,
}

#[derive(Debug)]
struct Extensions {
    hysteresis: u64,
    /// The percentage, where it is in percent of a limit.
    percent: Option<At>,
}

const _: () = assert!(size_of::<IndexEntry>() == 40);

impl Subscribed for IndexEntry {
    fn subscriber(&self) -> Subscriber {
        self.to
    }
}

impl IndexEntry {
    /// Makes a threshold at `pages`, while the quantity is `now`; `above` is its side where that
    /// has been signalled.
    pub(super) fn new(to: Subscriber, above: Option<bool>, trigger: Threshold, pages: u64, now: u64) -> Self {
        let Threshold { at, up, down, hysteresis } = trigger;
        let ways = match (up, down) {
            (true, false) => Directions::Up,
            (false, true) => Directions::Down,
            _ => Directions::Both,
        };
        let percent = matches!(at, At::Percent(_)).then_some(at);
        let is_plain = percent.is_none() && hysteresis.0 == 0;
        let more = (!is_plain).then(|| Box::new(Extensions { hysteresis: hysteresis.0, percent }));
        let above = above.unwrap_or(ThresholdState::new(pages, hysteresis.0, now).above);
        Self { to, threshold: pages, since: 0, burst: 0, above, ways, is_held_off: false, more }
    }

    fn mark(&self) -> ThresholdState {
        let hysteresis = self.more.as_ref().map_or(0, |more| more.hysteresis);
        ThresholdState { threshold: self.threshold, hysteresis, above: self.above }
    }

    fn key(&self) -> u64 {
        self.mark().key()
    }

    /// The percentage of the limit, where it has one.
    pub(super) fn percent(&self) -> Option<At> {
        self.more.as_ref()?.percent
    }

    fn registered(&self) -> Registered {
        let at = self.percent().unwrap_or(At::Pages(Pages(self.threshold)));
        let (up, down) = (self.signals_for(Direction::Up), self.signals_for(Direction::Down));
        let hysteresis = Pages(self.mark().hysteresis);
        Registered {
            file: self.to.file,
            trigger: Threshold { at, up, down, hysteresis },
            threshold: self.threshold,
            above: self.above,
            is_held_off: self.is_held_off,
        }
    }

    /// Whether it is in a hold-off, and no charge rings for it.
    pub(super) const fn is_held_off(&self) -> bool {
        self.is_held_off
    }

    const fn signals_for(&self, way: Direction) -> bool {
        match way {
            Direction::Up => !matches!(self.ways, Directions::Down),
            Direction::Down => !matches!(self.ways, Directions::Up),
        }
    }

    /// Adds what a step crossed to `outcome`; returns the end of its hold-off, if one begins.
    pub(super) fn apply(&mut self, step: &Step, clock: Clock, outcome: &mut Outcome) -> Option<u64> {
        let mut mark = self.mark();
        let mut signalled = 0;
        for direction in mark.step(step).into_iter().flatten().filter(|way| self.signals_for(*way)) {
            outcome.crossings.push(Crossing { to: self.to, threshold: self.threshold, direction });
            signalled += 1;
        }
        if self.above != mark.above {
            self.above = mark.above;
            outcome.sides.push(Side { to: self.to, above: mark.above });
        }
        let now = clock.now as u32;
        let lasted = u64::from(now.wrapping_sub(self.since));
        let is_over = self.burst == 0 || lasted >= clock.holdoff;
        if is_over {
            (self.since, self.burst) = (now, signalled);
        } else {
            self.burst = self.burst.saturating_add(signalled);
        }
        let is_held_off = clock.holdoff > 0 && u64::from(self.burst) >= BURST;
        is_held_off.then(|| clock.now + clock.holdoff - if is_over { 0 } else { lasted })
    }

    /// Ends its hold-off: later crossings are a new burst.
    pub(super) const fn wake(&mut self, clock: Clock) {
        (self.since, self.burst) = (clock.now as u32, 0);
    }
}

/// A threshold as it is registered, and its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The eventfd that is signalled.
    pub file: FileId,
    /// Threshold and options as registered.
    pub trigger: Threshold,
    /// The present place of the threshold in pages; `u64::MAX` for a percentage of no limit.
    pub threshold: u64,
    /// Whether usage counts as at or above it.
    pub above: bool,
    /// Whether it is in a hold-off.
    pub is_held_off: bool,
}

/// Thresholds in a hold-off, by time and by place.
#[derive(Debug, Default)]
struct HeldOff {
    by_time: BTreeSet<(u64, Place)>,
    until: HashMap<Place, u64>,
}

impl HeldOff {
    fn insert(&mut self, place: Place, until: u64) {
        work::done(1);
        self.until.insert(place, until);
        self.by_time.insert((until, place));
    }

    fn remove(&mut self, place: Place) -> Option<u64> {
        work::done(1);
        let until = self.until.remove(&place)?;
        self.by_time.remove(&(until, place));
        give_back(&mut self.until);
        Some(until)
    }
}

/// A place in the order of all thresholds on a quantity.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    is_held_off: bool,
    at: (u64, Place),
}

/// All thresholds on a quantity.
#[derive(Debug, Default)]
pub(super) struct ThresholdIndex {
    entries: Dense<IndexEntry>,
    /// Thresholds by key, without those in a hold-off.
    order: BTreeSet<(u64, Place)>,
    /// None in most indexes: a threshold has to flap for it.
    held_off: Option<Box<HeldOff>>,
    /// Thresholds in percent of a limit; and the limit, where it is the same for all.
    percents: BTreeSet<Place>,
    limit: Option<u64>,
    /// A walk over many of them that is under way.
    pub(super) walk: Option<Box<Walk>>,
    /// The stretches that the last look has signalled ([`Look`](monitor_common::protocol::crossing::Look));
    /// none at first.
    pub(super) signalled: Stretches,
}

impl ThresholdIndex {
    /// Adds a threshold; percents are of `limit` pages.
    pub(super) fn add(&mut self, entry: IndexEntry, limit: u64) {
        let (key, in_percent) = (entry.key(), entry.percent().is_some());
        let place = self.entries.push(entry);
        self.order.insert((key, place));
        if let Some(Walk::Look(walk)) = self.walk.as_deref_mut() {
            walk.added(place);
        }
        if in_percent {
            self.limit = Some(limit).filter(|_| self.percents.is_empty() || self.limit == Some(limit));
            self.percents.insert(place);
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// The places of thresholds in percent.
    pub(super) const fn percents(&self) -> &BTreeSet<Place> {
        &self.percents
    }

    /// Whether some in percent are not, or may not be, of this limit.
    pub(super) fn is_of_another(&self, limit: u64) -> bool {
        !self.percents.is_empty() && self.limit != Some(limit)
    }

    /// Sets the limit of those in percent; returns whether it is another than before.
    pub(super) fn set_limit(&mut self, limit: u64) -> bool {
        let is_news = self.is_of_another(limit);
        self.limit = Some(limit);
        is_news
    }

    /// All thresholds, by where they are crossed next; those in a hold-off come last.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = &IndexEntry> {
        let held_off = self.held_off.iter().flat_map(|held_off| &held_off.by_time);
        self.order.iter().chain(held_off).filter_map(|(_, place)| self.entries.get(*place))
    }

    /// Up to `most` after a cursor, in the order of [`ThresholdIndex::all`], and where to go on.
    pub(super) fn page(&self, after: Option<Cursor>, most: usize) -> (Vec<Registered>, Option<Cursor>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut found = Vec::new();
        let mut last = None;
        let held_off = self.held_off.as_ref().map(|held_off| (true, &held_off.by_time));
        for (is_held_off, set) in std::iter::once((false, &self.order)).chain(held_off) {
            let from = match after {
                Some(Cursor { is_held_off: true, .. }) if !is_held_off => continue,
                Some(cursor) if cursor.is_held_off == is_held_off => Excluded(cursor.at),
                _ => Unbounded,
            };
            for at in set.range((from, Unbounded)).take(most - found.len()) {
                let Some(entry) = self.entries.get(at.1) else { continue };
                found.push(entry.registered());
                last = Some(Cursor { is_held_off, at: *at });
            }
        }
        let next = last.filter(|_| found.len() == most);
        (found, next)
    }

    /// The nearest keys: the highest at or below `now`, and the lowest above.
    pub(super) fn around(&self, now: u64) -> (Option<u64>, Option<u64>) {
        let above = (now.saturating_add(1), 0);
        let below = self.order.range(..above).next_back().map(|(key, _)| *key);
        (below, self.order.range(above..).next().map(|(key, _)| *key))
    }

    /// The first one by key, and then by place, from `next` to a key of `highest`.
    pub(super) fn next(&self, next: (u64, Place), highest: u64) -> Option<(u64, Place)> {
        let last = (highest, Place::MAX);
        if next > last { None } else { self.order.range(next..=last).next().copied() }
    }

    pub(super) fn key(&self, place: Place) -> u64 {
        self.entries.get(place).map_or(0, IndexEntry::key)
    }

    pub(super) fn places(&self) -> std::ops::Range<Place> {
        self.entries.places()
    }

    /// Changes an entry, and puts it where it then belongs.
    pub(super) fn change(&mut self, place: Place, change: impl FnOnce(&mut IndexEntry)) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        let before = entry.key();
        change(entry);
        let after = entry.key();
        if !entry.is_held_off && before != after {
            self.order.remove(&(before, place));
            self.order.insert((after, place));
        }
    }

    /// Begins the hold-off of a threshold.
    pub(super) fn hold_off(&mut self, place: Place, until: u64) {
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.is_held_off = true;
        self.order.remove(&(entry.key(), place));
        self.held_off.get_or_insert_default().insert(place, until);
    }

    /// The first threshold whose hold-off ends at `now` at the latest.
    pub(super) fn first_held_off(&self, now: u64) -> Option<Place> {
        let held_off = self.held_off.iter().flat_map(|held_off| held_off.by_time.range(..=(now, Place::MAX)));
        held_off.map(|(_, place)| *place).inspect(|_| work::done(1)).next()
    }

    pub(super) fn end_holdoff(&mut self, place: Place) {
        self.forget_holdoff(place);
        let Some(entry) = self.entries.get_mut(place) else { return };
        entry.is_held_off = false;
        self.order.insert((entry.key(), place));
    }

    fn forget_holdoff(&mut self, place: Place) -> Option<u64> {
        let held_off = self.held_off.as_mut()?;
        let until = held_off.remove(place);
        if held_off.until.is_empty() {
            self.held_off = None;
        }
        until
    }

    pub(super) fn first_holdoff_end(&self) -> Option<u64> {
        self.held_off.as_ref()?.by_time.first().map(|(until, _)| *until)
    }

    /// Takes out up to `most` thresholds of an eventfd.
    pub(super) fn take_file(&mut self, file: FileId, most: usize) -> Vec<Subscriber> {
        // The highest first: the entry that takes a place is none of those below.
        let places = self.entries.places_of(file, most);
        places.into_iter().rev().filter_map(|place| self.take(place)).collect()
    }

    /// Takes out up to `most` thresholds, the last ones first.
    pub(super) fn take_last(&mut self, most: usize) -> Vec<Subscriber> {
        let end = self.entries.places().end;
        let first = end.saturating_sub(u32::try_from(most).unwrap_or(u32::MAX));
        (first..end).rev().filter_map(|place| self.take(place)).collect()
    }

    fn take(&mut self, place: Place) -> Option<Subscriber> {
        let (gone, moved) = self.entries.take(place)?;
        self.percents.remove(&place);
        if let Some(Walk::Look(walk)) = self.walk.as_deref_mut() {
            walk.removed(place);
        }
        if gone.is_held_off {
            self.forget_holdoff(place);
        } else {
            self.order.remove(&(gone.key(), place));
        }
        if let Some(before) = moved {
            self.moved(before, place);
        }
        Some(gone.to)
    }

    /// The entry that was at `before` is at `place` now.
    fn moved(&mut self, before: Place, place: Place) {
        if self.percents.remove(&before) {
            self.percents.insert(place);
        }
        let Some(entry) = self.entries.get(place) else { return };
        if let Some(Walk::Look(walk)) = self.walk.as_deref_mut() {
            walk.moved((!entry.is_held_off).then(|| entry.key()), before, place);
        }
        if !entry.is_held_off {
            let key = entry.key();
            self.order.remove(&(key, before));
            self.order.insert((key, place));
        } else if let Some(held_off) = &mut self.held_off
            && let Some(until) = held_off.remove(before)
        {
            held_off.insert(place, until);
        }
    }
}
