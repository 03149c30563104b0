//! One quantity of a group, and the thresholds on it.

use std::collections::{BTreeMap, VecDeque};

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

/// What time it is, and how long a threshold that flaps is given rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Milliseconds since some start.
    pub now: u64,
    /// Milliseconds; 0: never any rest.
    pub rest: u64,
}

/// Crossings of one threshold that are told at once, within the time of a rest.
/// Counters move by batches of 64 pages for each CPU, so usage that stays near a
/// threshold would cross it all the time; v1, looking every 129 events, did not.
pub const BURST: u64 = 4;

/// One registration of a threshold.
#[derive(Clone, Copy, Debug)]
struct Entry {
    file: FileId,
    mark: Mark,
    wish: Threshold,
    /// When its present burst began, and the crossings in it.
    burst: (u64, u64),
}

/// Thresholds by where usage crosses them next; the number tells equal ones apart.
#[derive(Debug, Default)]
pub struct Scale {
    /// The quantity at the last look, in pages.
    now: u64,
    entries: BTreeMap<(u64, u64), Entry>,
    /// Those that flapped: until when, number, entry. No charge rings for them.
    resting: VecDeque<(u64, u64, Entry)>,
    next: u64,
    /// Entries in percent of a limit.
    percents: usize,
}

impl Scale {
    /// Adds a threshold to a quantity that is `now` pages; `limit` is what percents
    /// are of. Not signalled at registration (`__mem_cgroup_usage_register_event`).
    pub fn add(&mut self, now: u64, wish: Threshold, limit: u64, file: FileId) {
        if self.is_empty() {
            self.now = now;
        }
        let mark = Mark::new(pages(wish, limit), wish.hysteresis.0, self.now);
        self.percents += usize::from(matches!(wish.at, At::Percent(_)));
        self.entries.insert((mark.key(), self.next), Entry { file, mark, wish, burst: (0, 0) });
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
    pub fn step(&mut self, seen: Excursion, now: u64, clock: Clock) -> Vec<Crossing> {
        let step = Step { from: self.now, seen, now };
        self.now = now;
        let (lowest, highest) = step.range();
        if lowest == highest {
            return Vec::new();
        }
        let mut crossings = Vec::new();
        let mut moved = Vec::new();
        for (&place, entry) in self.entries.range_mut((lowest.saturating_add(1), 0)..=(highest, u64::MAX)) {
            let rests = entry.apply(&step, clock, &mut crossings);
            if rests || entry.mark.key() != place.0 {
                moved.push((place, rests));
            }
        }
        for (place, rests) in moved {
            let Some(entry) = self.entries.remove(&place) else { continue };
            if rests {
                self.resting.push_back((entry.burst.0 + clock.rest, place.1, entry));
            } else {
                self.entries.insert((entry.mark.key(), place.1), entry);
            }
        }
        crossings
    }

    /// Ends the rest of those whose time is up, or of all: they are crossed if they
    /// are on the other side than was told last.
    pub fn wake(&mut self, clock: Clock, all: bool) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        let still = self.still();
        for _ in 0..self.resting.len() {
            let Some((until, number, mut entry)) = self.resting.pop_front() else { break };
            if !all && until > clock.now {
                self.resting.push_back((until, number, entry));
                continue;
            }
            entry.burst = (clock.now, 0);
            entry.apply(&still, clock, &mut crossings);
            self.entries.insert((entry.mark.key(), number), entry);
        }
        crossings
    }

    /// When the first rest ends.
    #[must_use]
    pub fn rests_until(&self) -> Option<u64> {
        self.resting.iter().map(|(until, ..)| *until).min()
    }

    const fn still(&self) -> Step {
        Step { from: self.now, seen: Excursion::NONE, now: self.now }
    }

    /// The limit is `limit` pages from now on: thresholds in percent move, and are
    /// crossed where they pass the quantity.
    pub fn follow(&mut self, limit: u64, clock: Clock) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        if self.percents == 0 {
            return crossings;
        }
        for (_, _, entry) in &mut self.resting {
            entry.mark.threshold = pages(entry.wish, limit);
        }
        let still = self.still();
        let moved: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.mark.threshold != pages(entry.wish, limit))
            .map(|(&place, _)| place)
            .collect();
        for place in moved {
            if let Some(mut entry) = self.entries.remove(&place) {
                entry.mark.threshold = pages(entry.wish, limit);
                entry.apply(&still, clock, &mut crossings);
                self.entries.insert((entry.mark.key(), place.1), entry);
            }
        }
        crossings
    }

    /// How many thresholds here are in percent of the limit.
    #[must_use]
    pub const fn percents(&self) -> usize {
        self.percents
    }

    /// The quantity in pages at the last look.
    #[must_use]
    pub const fn now(&self) -> u64 {
        self.now
    }

    /// How many thresholds there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len() + self.resting.len()
    }

    /// Whether there are no thresholds.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn all(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().chain(self.resting.iter().map(|(_, _, entry)| entry))
    }

    /// Thresholds in pages, each with its eventfd.
    pub fn thresholds(&self) -> impl Iterator<Item = (u64, FileId)> + '_ {
        self.all().map(|entry| (entry.mark.threshold, entry.file))
    }

    /// Forgets all of an eventfd's; how many there were.
    pub fn remove_file(&mut self, file: FileId) -> u64 {
        let before = self.len();
        let percents = &mut self.percents;
        let mut stays = |entry: &Entry| {
            let stays = entry.file != file;
            *percents -= usize::from(!stays && matches!(entry.wish.at, At::Percent(_)));
            stays
        };
        self.entries.retain(|_, entry| stays(entry));
        self.resting.retain(|(_, _, entry)| stays(entry));
        (before - self.len()) as u64
    }

    /// The eventfd of each registration.
    pub fn files(&self) -> impl Iterator<Item = FileId> + '_ {
        self.all().map(|entry| entry.file)
    }
}

impl Entry {
    /// Tells what a step crossed; true when it is to rest.
    fn apply(&mut self, step: &Step, clock: Clock, crossings: &mut Vec<Crossing>) -> bool {
        let (file, threshold) = (self.file, self.mark.threshold);
        let crossed = self.mark.step(step).into_iter().flatten();
        let before = crossings.len();
        crossings.extend(crossed.filter(|way| self.wish.hears(*way)).map(|direction| Crossing {
            file,
            threshold,
            direction,
        }));
        let (since, count) = self.burst;
        let told = (crossings.len() - before) as u64;
        let is_over = count == 0 || clock.now.saturating_sub(since) >= clock.rest;
        self.burst = if is_over { (clock.now, told) } else { (since, count + told) };
        clock.rest > 0 && self.burst.1 >= BURST
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
