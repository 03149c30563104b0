//! One quantity of a group, and the thresholds on it.

mod index;
mod walk;

use monitor_common::{
    grammar::{
        control_file::Trigger,
        threshold::{At, Threshold, percent_of},
    },
    protocol::{
        band::Band,
        band::Excursion,
        crossing::{Direction, Stretches, band_around},
    },
};

pub use self::index::{Cursor, Registered};
use self::index::{IndexEntry, ThresholdIndex};
use crate::{registry::Subscriber, source::FileId};

/// One crossing to be signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// The registration to be signalled.
    pub to: Subscriber,
    /// The threshold, in pages.
    pub threshold: u64,
    /// The direction of the crossing.
    pub direction: Direction,
}

/// Results of a step for the thresholds on a quantity.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Crossings to be signalled, in order.
    pub crossings: Vec<Crossing>,
    /// Thresholds that are on another side now, signalled or not: to be recorded once that is
    /// signalled.
    pub sides: Vec<Side>,
}

/// The new side of a threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The registration of the threshold.
    pub to: Subscriber,
    /// Whether usage is at or above it.
    pub above: bool,
}

/// The present time, and the hold-off of a threshold that flaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds since some start.
    pub now: u64,
    /// Milliseconds of hold-off; 0: none.
    pub holdoff: u64,
}

/// Crossings of one threshold that are signalled at once, within the time of a hold-off. Counters
/// move by batches of 64 pages for each CPU, so usage that stays near a threshold would cross it
/// all the time; v1, looking every 129 events, did not.
pub const BURST: u64 = 16;

/// A quantity, and the thresholds on it by where usage crosses them next.
#[derive(Debug, Default)]
pub struct ThresholdSet {
    /// The quantity at the last look, in pages.
    now: u64,
    /// None where there are no thresholds: most groups have them on one quantity.
    store: Option<Box<ThresholdIndex>>,
}

impl ThresholdSet {
    /// Adds a threshold to a quantity that is `now` pages; percents are of `limit` pages, and
    /// `above` is the side that an earlier agent has signalled. Not signalled at registration
    /// (`__mem_cgroup_usage_register_event`).
    pub fn add(&mut self, now: u64, trigger: Threshold, limit: u64, to: Subscriber, above: Option<bool>) {
        let store = self.store.get_or_insert_with(|| {
            self.now = now;
            Box::default()
        });
        store.add(IndexEntry::new(to, above, trigger, pages(trigger.at, limit), self.now), limit);
    }

    /// The band around the quantity at the last look.
    #[must_use]
    pub fn band(&self) -> Band {
        let (below, above) = self.store.as_ref().map_or((None, None), |store| store.around(self.now));
        band_around(below, above)
    }

    /// Moves to `now`, within the band: nothing is crossed.
    pub const fn move_to(&mut self, now: u64) {
        self.now = now;
    }

    /// The end of the first hold-off, if there is one.
    #[must_use]
    pub fn first_holdoff_end(&self) -> Option<u64> {
        self.store.as_ref()?.first_holdoff_end()
    }

    /// The number of thresholds here in percent of the limit.
    #[must_use]
    pub fn percents(&self) -> usize {
        self.store.as_ref().map_or(0, |store| store.percents().len())
    }

    /// The quantity in pages at the last look.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// The part of `late` for which the look before has not signalled.
    #[must_use]
    pub fn unsignalled(&self, late: Excursion) -> Excursion {
        let signalled = self.store.as_ref().map_or(Stretches::NONE, |store| store.signalled);
        Excursion {
            min: if signalled.leave_some_of((late.min, self.now)) { late.min } else { u64::MAX },
            max: if signalled.leave_some_of((self.now, late.max)) { late.max } else { 0 },
        }
    }

    /// The number of thresholds here.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.as_ref().map_or(0, |store| store.len())
    }

    /// Whether there are no thresholds.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.store.is_none()
    }

    #[cfg(test)]
    fn all(&self) -> impl Iterator<Item = &IndexEntry> {
        self.store.iter().flat_map(|store| store.all())
    }

    /// Up to `most` thresholds after a place in their order; and the place to go on from, when
    /// there may be more. Costs what it returns.
    #[must_use]
    pub fn page(&self, after: Option<Cursor>, most: usize) -> (Vec<Registered>, Option<Cursor>) {
        self.store.as_ref().map_or((Vec::new(), None), |store| store.page(after, most))
    }

    /// Thresholds in pages, each with its registration.
    #[cfg(test)]
    pub fn thresholds(&self) -> impl Iterator<Item = (u64, Subscriber)> + '_ {
        self.all().map(|entry| (entry.threshold, entry.to))
    }

    /// Takes out up to `most` thresholds of an eventfd. Costs what it takes.
    pub fn take_file(&mut self, file: FileId, most: usize) -> Vec<Subscriber> {
        self.take(|store| store.take_file(file, most))
    }

    /// Takes out up to `most` thresholds. Costs what it takes.
    pub fn take_last(&mut self, most: usize) -> Vec<Subscriber> {
        self.take(|store| store.take_last(most))
    }

    fn take(&mut self, take: impl FnOnce(&mut ThresholdIndex) -> Vec<Subscriber>) -> Vec<Subscriber> {
        let Some(store) = &mut self.store else { return Vec::new() };
        let gone = take(store);
        if store.len() == 0 {
            self.store = None;
        }
        gone
    }
}

/// The side that a new trigger begins on.
#[must_use]
pub fn first_side(trigger: &Trigger, now: u64, limit: u64) -> bool {
    matches!(trigger, Trigger::Threshold(threshold) if pages(threshold.at, limit) <= now)
}

/// The place of a threshold, in pages. In percent of no limit it lies where it never fires.
#[must_use]
pub fn pages(at: At, limit: u64) -> u64 {
    match at {
        At::Pages(pages) => pages.0,
        At::Percent(_) if limit == u64::MAX => u64::MAX,
        At::Percent(percent) => percent_of(limit, percent),
    }
}

#[cfg(test)]
mod tests;
