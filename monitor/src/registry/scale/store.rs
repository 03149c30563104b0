//! Thresholds on one quantity, densely: by where they are crossed next, and by their
//! eventfd. What a threshold costs in memory is decided here.

use std::collections::BTreeSet;

use monitor_common::{
    crossing::{Direction, Mark, Step},
    threshold::{At, Threshold},
};

use super::{BURST, Clock, Crossing, Outcome, Side};
use crate::{registry::Registration, source::FileId, vault::Ticket};

/// One registration of a threshold.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) file: FileId,
    /// Where it lies now, in pages.
    pub(super) threshold: u64,
    /// When its present burst began, and the crossings in it.
    pub(super) since: u64,
    pub(super) ticket: Ticket,
    pub(super) burst: u8,
    above: bool,
    ways: Ways,
    rests: bool,
    /// What v1 did not have: most do without.
    more: Option<Box<More>>,
}

/// Which directions are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    Both,
    Up,
    Down,
}

#[derive(Debug)]
struct More {
    hysteresis: u64,
    /// Where it is in percent of a limit.
    percent: Option<At>,
}

const _: () = assert!(size_of::<Entry>() == 40);

impl Entry {
    /// A threshold that lies at `pages`, while the quantity is `now`.
    pub(super) fn new(registration: &Registration, wish: Threshold, pages: u64, now: u64) -> Self {
        let Registration { file, ticket, above, .. } = *registration;
        let Threshold { at, up, down, hysteresis } = wish;
        let ways = match (up, down) {
            (true, false) => Ways::Up,
            (false, true) => Ways::Down,
            _ => Ways::Both,
        };
        let percent = matches!(at, At::Percent(_)).then_some(at);
        let is_plain = percent.is_none() && hysteresis.0 == 0;
        let more = (!is_plain).then(|| Box::new(More { hysteresis: hysteresis.0, percent }));
        let above = above.unwrap_or(Mark::new(pages, hysteresis.0, now).above);
        Self { file, threshold: pages, since: 0, ticket, burst: 0, above, ways, rests: false, more }
    }

    fn mark(&self) -> Mark {
        let hysteresis = self.more.as_ref().map_or(0, |more| more.hysteresis);
        Mark { threshold: self.threshold, hysteresis, above: self.above }
    }

    fn key(&self) -> u64 {
        self.mark().key()
    }

    /// What it is in percent of the limit, where it is.
    pub(super) fn percent(&self) -> Option<At> {
        self.more.as_ref()?.percent
    }

    /// Whether no charge rings for it at present.
    pub(super) const fn rests(&self) -> bool {
        self.rests
    }

    const fn hears(&self, way: Direction) -> bool {
        match way {
            Direction::Up => !matches!(self.ways, Ways::Down),
            Direction::Down => !matches!(self.ways, Ways::Up),
        }
    }

    /// Tells what a step crossed; true when it is to rest.
    pub(super) fn apply(&mut self, step: &Step, clock: Clock, outcome: &mut Outcome) -> bool {
        let mut mark = self.mark();
        let mut told = 0;
        for direction in mark.step(step).into_iter().flatten().filter(|way| self.hears(*way)) {
            outcome.crossings.push(Crossing { file: self.file, threshold: self.threshold, direction });
            told += 1;
        }
        if self.above != mark.above {
            self.above = mark.above;
            outcome.sides.push(Side { file: self.file, ticket: self.ticket, above: mark.above });
        }
        let is_over = self.burst == 0 || clock.now.saturating_sub(self.since) >= clock.rest;
        (self.since, self.burst) =
            if is_over { (clock.now, told) } else { (self.since, self.burst.saturating_add(told)) };
        clock.rest > 0 && u64::from(self.burst) >= BURST
    }
}

/// Up to as many thresholds, an eventfd's are found by looking at each.
const FEW: usize = 16;

/// An entry's index, as the orders know it.
type Place = u32;

/// All thresholds on a quantity.
#[derive(Debug, Default)]
pub(super) struct Store {
    entries: Vec<Entry>,
    /// By key; those that rest are not in it.
    order: BTreeSet<(u64, Place)>,
    /// By eventfd, where there are more than [`FEW`].
    files: Option<BTreeSet<(FileId, Place)>>,
    /// Those that flapped, and until when.
    resting: Vec<(u64, Place)>,
    percents: usize,
}

impl Store {
    pub(super) fn add(&mut self, entry: Entry) {
        // A few thresholds are the rule: no room for more before there are.
        if self.entries.len() < 4 {
            self.entries.reserve_exact(1);
        }
        let place = place(self.entries.len());
        self.order.insert((entry.key(), place));
        self.percents += usize::from(entry.percent().is_some());
        if let Some(files) = &mut self.files {
            files.insert((entry.file, place));
        }
        self.entries.push(entry);
        if self.files.is_none() && self.entries.len() > FEW {
            self.files = Some((0..).zip(&self.entries).map(|(at, entry)| (entry.file, at)).collect());
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) const fn percents(&self) -> usize {
        self.percents
    }

    /// All, by where they are crossed next; those that rest come last.
    pub(super) fn all(&self) -> impl Iterator<Item = &Entry> {
        let places = self.order.iter().chain(&self.resting).map(|(_, place)| *place);
        places.map(|place| &self.entries[place as usize])
    }

    /// The nearest keys: the highest at or below `now`, and the lowest above.
    pub(super) fn around(&self, now: u64) -> (Option<u64>, Option<u64>) {
        let above = (now.saturating_add(1), 0);
        let below = self.order.range(..above).next_back().map(|(key, _)| *key);
        (below, self.order.range(above..).next().map(|(key, _)| *key))
    }

    /// Those with a key in `(lowest, highest]`.
    pub(super) fn between(&self, lowest: u64, highest: u64) -> Vec<Place> {
        let range = (lowest.saturating_add(1), 0)..=(highest, Place::MAX);
        self.order.range(range).map(|(_, place)| *place).collect()
    }

    pub(super) fn places(&self) -> std::ops::Range<Place> {
        0..place(self.entries.len())
    }

    /// Changes an entry, and puts it where it then belongs.
    pub(super) fn change(&mut self, place: Place, change: impl FnOnce(&mut Entry)) {
        let entry = &mut self.entries[place as usize];
        let before = entry.key();
        change(entry);
        let after = entry.key();
        if !entry.rests && before != after {
            self.order.remove(&(before, place));
            self.order.insert((after, place));
        }
    }

    /// Lets one rest.
    pub(super) fn rest(&mut self, place: Place, until: u64) {
        let entry = &mut self.entries[place as usize];
        entry.rests = true;
        self.order.remove(&(entry.key(), place));
        self.resting.push((until, place));
    }

    /// Those that rest until a time that is `over`.
    pub(super) fn rested(&self, over: impl Fn(u64) -> bool) -> Vec<Place> {
        self.resting.iter().filter(|(until, _)| over(*until)).map(|(_, place)| *place).collect()
    }

    pub(super) fn end_rest(&mut self, place: Place) {
        let entry = &mut self.entries[place as usize];
        entry.rests = false;
        self.resting.retain(|(_, resting)| *resting != place);
        self.order.insert((entry.key(), place));
    }

    pub(super) fn rests_until(&self) -> Option<u64> {
        self.resting.iter().map(|(until, _)| *until).min()
    }

    /// Forgets all of an eventfd's; where they were recorded.
    pub(super) fn remove_file(&mut self, file: FileId) -> Vec<Ticket> {
        let mut places: Vec<Place> = match &self.files {
            Some(files) => files.range((file, 0)..=(file, Place::MAX)).map(|(_, place)| *place).collect(),
            None => self.places().filter(|place| self.entries[*place as usize].file == file).collect(),
        };
        places.sort_unstable();
        let tickets = places.iter().map(|place| self.entries[*place as usize].ticket).collect();
        // The highest first: the last entry takes its place, and is none of them.
        for place in places.iter().rev() {
            self.remove(*place);
        }
        if self.entries.capacity() > FEW.max(4 * self.entries.len()) {
            self.entries.shrink_to(2 * self.entries.len());
        }
        tickets
    }

    fn remove(&mut self, place: Place) {
        let gone = self.entries.swap_remove(place as usize);
        self.percents -= usize::from(gone.percent().is_some());
        if gone.rests {
            self.resting.retain(|(_, resting)| *resting != place);
        } else {
            self.order.remove(&(gone.key(), place));
        }
        if let Some(files) = &mut self.files {
            files.remove(&(gone.file, place));
        }
        let before = self::place(self.entries.len());
        let Some(moved) = self.entries.get(place as usize) else { return };
        if moved.rests {
            let known = self.resting.iter_mut().filter(|(_, resting)| *resting == before);
            known.for_each(|(_, resting)| *resting = place);
        } else {
            self.order.remove(&(moved.key(), before));
            self.order.insert((moved.key(), place));
        }
        if let Some(files) = &mut self.files {
            files.remove(&(moved.file, before));
            files.insert((moved.file, place));
        }
    }
}

/// More than fit would need more memory than there is.
fn place(at: usize) -> Place {
    Place::try_from(at).unwrap_or(Place::MAX)
}
