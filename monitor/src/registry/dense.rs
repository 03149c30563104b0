//! A list that is indexed by eventfd: each end of an eventfd, and of a group, costs what ends
//! there, however much else is in the list.

use std::collections::BTreeSet;

use crate::{registry::Subscriber, source::FileId};

/// The index of an entry. It changes when an entry before it goes.
pub(super) type Place = u32;

/// The length up to which an eventfd's entries are found by looking at each entry.
pub(super) const FEW: usize = 16;

/// An entry that belongs to a registration.
pub(super) trait Subscribed {
    /// The registration of this entry.
    fn subscriber(&self) -> Subscriber;
}

impl Subscribed for Subscriber {
    fn subscriber(&self) -> Subscriber {
        *self
    }
}

impl<T> Subscribed for (T, Subscriber) {
    fn subscriber(&self) -> Subscriber {
        self.1
    }
}

/// The list of entries. An entry that goes is replaced by the last one.
#[derive(Debug)]
pub(super) struct Dense<T> {
    entries: Vec<T>,
    /// Places by eventfd, once there are more than [`FEW`].
    files: Option<BTreeSet<(FileId, Place)>>,
}

impl<T> Default for Dense<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), files: None }
    }
}

impl<T: Subscribed> Dense<T> {
    pub(super) fn push(&mut self, entry: T) -> Place {
        // A few are the rule: no room for more before there are.
        if self.entries.len() < 4 {
            self.entries.reserve_exact(1);
        }
        let place = place(self.entries.len());
        if let Some(files) = &mut self.files {
            files.insert((entry.subscriber().file, place));
        }
        self.entries.push(entry);
        if self.files.is_none() && self.entries.len() > FEW {
            self.files =
                Some((0..).zip(&self.entries).map(|(at, one)| (one.subscriber().file, at)).collect());
        }
        place
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn places(&self) -> std::ops::Range<Place> {
        0..place(self.entries.len())
    }

    pub(super) fn get(&self, place: Place) -> Option<&T> {
        work::done(1);
        self.entries.get(place as usize)
    }

    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut T> {
        work::done(1);
        self.entries.get_mut(place as usize)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().inspect(|_| work::done(1))
    }

    /// The places of up to `most` entries of an eventfd, lowest first.
    pub(super) fn places_of(&self, file: FileId, most: usize) -> Vec<Place> {
        match &self.files {
            Some(files) => {
                let own = files.range((file, 0)..=(file, Place::MAX)).take(most);
                own.map(|(_, place)| *place).inspect(|_| work::done(1)).collect()
            }
            None => {
                let all = (0..).zip(self.iter());
                all.filter(|(_, one)| one.subscriber().file == file).map(|(at, _)| at).take(most).collect()
            }
        }
    }

    /// Takes one entry out; also returns the former place of the entry that takes its place, if
    /// any does.
    pub(super) fn take(&mut self, place: Place) -> Option<(T, Option<Place>)> {
        work::done(1);
        if place as usize >= self.entries.len() {
            return None;
        }
        let gone = self.entries.swap_remove(place as usize);
        let last = self::place(self.entries.len());
        let moved = self.entries.get(place as usize);
        if let Some(files) = &mut self.files {
            files.remove(&(gone.subscriber().file, place));
            if let Some(moved) = moved {
                files.remove(&(moved.subscriber().file, last));
                files.insert((moved.subscriber().file, place));
            }
        }
        let moved = moved.map(|_| last);
        if self.entries.capacity() > FEW.max(4 * self.entries.len()) {
            self.entries.shrink_to(2 * self.entries.len());
        }
        Some((gone, moved))
    }

    /// Takes out up to `most` entries, the last ones first.
    pub(super) fn take_last(&mut self, most: usize) -> impl Iterator<Item = T> {
        let most = most.min(self.len());
        (0..most).map_while(|_| Some(self.take(place(self.len()).checked_sub(1)?)?.0))
    }

    /// Takes out up to `most` entries of an eventfd.
    pub(super) fn take_file(&mut self, file: FileId, most: usize) -> impl Iterator<Item = T> {
        // The highest first: the entry that takes a place is none of those below.
        self.places_of(file, most).into_iter().rev().filter_map(|place| Some(self.take(place)?.0))
    }
}

/// Converts a length to a place: more than fit would need more memory than there is.
fn place(at: usize) -> Place {
    Place::try_from(at).unwrap_or(Place::MAX)
}

/// Counts the entries that were touched, for tests that show what grows with what.
pub(super) mod work {
    #[cfg(test)]
    std::thread_local! {
        static DONE: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    }

    #[cfg(test)]
    pub(in crate::registry) fn done(entries: u64) {
        DONE.set(DONE.get() + entries);
    }

    #[cfg(not(test))]
    pub(in crate::registry) const fn done(_entries: u64) {}

    /// Entries touched since the last call, by this thread.
    #[cfg(test)]
    pub(in crate::registry) fn taken() -> u64 {
        DONE.replace(0)
    }
}
