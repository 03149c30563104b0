//! One quantity of a group, and the thresholds on it.

use std::collections::BTreeMap;

use monitor_common::{
    band::{Band, Excursion},
    crossing::{Direction, Mark, Step, band_around},
    threshold::{At, Threshold, percent_of},
};

use crate::source::FileId;

/// One crossing to be signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossing {
    /// Whose eventfd.
    pub file: FileId,
    /// The threshold, in pages.
    pub threshold: u64,
    /// Which way.
    pub direction: Direction,
}

/// One registration of a threshold.
#[derive(Clone, Copy, Debug)]
struct Entry {
    file: FileId,
    mark: Mark,
    wish: Threshold,
}

/// Thresholds by where usage crosses them next; the number tells equal ones apart.
#[derive(Debug, Default)]
pub struct Scale {
    /// The quantity at the last look, in pages.
    now: u64,
    entries: BTreeMap<(u64, u64), Entry>,
    next: u64,
    /// Entries in percent of a limit.
    percents: usize,
}

impl Scale {
    /// Adds a threshold to a quantity that is `now` pages; `limit` is what percents
    /// are of. Not signalled at registration (`__mem_cgroup_usage_register_event`).
    pub fn add(&mut self, now: u64, wish: Threshold, limit: u64, file: FileId) {
        if self.entries.is_empty() {
            self.now = now;
        }
        let mark = Mark::new(pages(wish, limit), wish.hysteresis.0, self.now);
        self.percents += usize::from(matches!(wish.at, At::Percent(_)));
        self.entries.insert((mark.key(), self.next), Entry { file, mark, wish });
        self.next += 1;
    }

    /// The band around the quantity at the last look.
    #[must_use]
    pub fn band(&self) -> Band {
        let above = (self.now.saturating_add(1), 0);
        band_around(
            self.entries.range(..above).next_back().map(|((key, _), _)| *key),
            self.entries.range(above..).next().map(|((key, _), _)| *key),
        )
    }

    /// Takes what was seen, and moves to `now`. Costs what was crossed, however
    /// many thresholds there are.
    pub fn step(&mut self, seen: Excursion, now: u64) -> Vec<Crossing> {
        let step = Step { from: self.now, seen, now };
        self.now = now;
        let (lowest, highest) = step.range();
        if lowest == highest {
            return Vec::new();
        }
        let mut crossings = Vec::new();
        let mut moved = Vec::new();
        for (&place, entry) in self.entries.range_mut((lowest.saturating_add(1), 0)..=(highest, u64::MAX)) {
            entry.apply(&step, &mut crossings);
            if entry.mark.key() != place.0 {
                moved.push(place);
            }
        }
        for place in moved {
            if let Some(entry) = self.entries.remove(&place) {
                self.entries.insert((entry.mark.key(), place.1), entry);
            }
        }
        crossings
    }

    /// The limit is `limit` pages from now on: thresholds in percent move, and are
    /// crossed where they pass the quantity.
    pub fn follow(&mut self, limit: u64) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        if self.percents == 0 {
            return crossings;
        }
        let still = Step { from: self.now, seen: Excursion::NONE, now: self.now };
        let moved: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.mark.threshold != pages(entry.wish, limit))
            .map(|(&place, _)| place)
            .collect();
        for place in moved {
            if let Some(mut entry) = self.entries.remove(&place) {
                entry.mark.threshold = pages(entry.wish, limit);
                entry.apply(&still, &mut crossings);
                self.entries.insert((entry.mark.key(), place.1), entry);
            }
        }
        crossings
    }

    /// Whether a threshold here is in percent of the limit.
    #[must_use]
    pub const fn follows_limit(&self) -> bool {
        self.percents > 0
    }

    /// The quantity in pages at the last look.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// How many thresholds there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no thresholds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Thresholds in pages, each with its eventfd.
    pub fn thresholds(&self) -> impl Iterator<Item = (u64, FileId)> + '_ {
        self.entries.values().map(|entry| (entry.mark.threshold, entry.file))
    }

    /// Forgets all of an eventfd's; how many there were.
    pub fn remove_file(&mut self, file: FileId) -> u64 {
        let before = self.entries.len();
        let percents = &mut self.percents;
        self.entries.retain(|_, entry| {
            let stays = entry.file != file;
            *percents -= usize::from(!stays && matches!(entry.wish.at, At::Percent(_)));
            stays
        });
        (before - self.entries.len()) as u64
    }

    /// The eventfd of each registration.
    pub fn files(&self) -> impl Iterator<Item = FileId> + '_ {
        self.entries.values().map(|entry| entry.file)
    }
}

impl Entry {
    fn apply(&mut self, step: &Step, crossings: &mut Vec<Crossing>) {
        let (file, threshold) = (self.file, self.mark.threshold);
        let heard = self.mark.step(step).into_iter().flatten().filter(|way| self.wish.hears(*way));
        crossings.extend(heard.map(|direction| Crossing { file, threshold, direction }));
    }
}

/// Where a threshold lies, in pages. In percent of no limit it lies where it never
/// fires.
fn pages(wish: Threshold, limit: u64) -> u64 {
    match wish.at {
        At::Pages(pages) => pages.0,
        At::Percent(_) if limit == u64::MAX => u64::MAX,
        At::Percent(percent) => percent_of(limit, percent),
    }
}
