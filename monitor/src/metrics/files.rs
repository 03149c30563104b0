//! Numbers that only the groups' own files have.

use std::collections::HashMap;

use crate::cgroup::{
    Version,
    handle::{Directories, Directory},
    has_local_events,
};

/// Names of the lines of `memory.events`.
pub const EVENTS: [&str; 6] = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];

/// The nearest counts on v1: the index in [`EVENTS`], the file, and its line, if it has several.
const V1: [(usize, &str, Option<&str>); 2] =
    [(2, "memory.failcnt", None), (4, "memory.oom_control", Some("oom_kill"))];

/// A group's counts of events, in the order of [`EVENTS`].
pub type EventTotals = [Option<u64>; EVENTS.len()];

/// Reads counts of events. On v2 they are those of a group and all below it, whatever the mount
/// options: with `memory_localevents` the kernel's `memory.events` counts the group alone, so those
/// of the groups below, as far as they are there, are added.
#[derive(Debug)]
pub struct EventCounts<'a> {
    directories: &'a Directories,
    is_local: bool,
    known: HashMap<u64, EventTotals>,
}

impl<'a> EventCounts<'a> {
    /// Looks at the mount options of now: the host may change them at any time.
    #[must_use]
    pub fn new(directories: &'a Directories) -> Self {
        let is_local = directories.version() == Version::V2 && has_local_events();
        Self { directories, is_local, known: HashMap::new() }
    }

    /// The counts of a group and those below it; on v1 of the group alone.
    pub fn of(&mut self, id: u64) -> EventTotals {
        let Ok(directory) = self.directories.open(id) else { return EventTotals::default() };
        if !self.is_local {
            return counts(&directory, self.directories.version());
        }
        self.add_up(id);
        self.known.get(&id).copied().unwrap_or_default()
    }

    /// OOMs by the limit of the group itself; on v1 the kernel does not count them.
    #[must_use]
    pub fn own_ooms(&self, id: u64) -> Option<u64> {
        line(&self.directories.open(id).ok()?.text("memory.events.local").ok()?, "oom")
    }

    /// Finds the sums of a group and of all below it, each group once.
    fn add_up(&mut self, id: u64) {
        let mut waiting = vec![(id, false)];
        while let Some((id, are_below_known)) = waiting.pop() {
            if self.known.contains_key(&id) {
                continue;
            }
            let Ok(directory) = self.directories.open(id) else { continue };
            let below: Vec<_> =
                directory.children().unwrap_or_default().into_iter().map(|(child, _)| child).collect();
            if are_below_known {
                let mut sums = counts(&directory, Version::V2);
                for counts in below.iter().filter_map(|child| self.known.get(child)) {
                    add(&mut sums, counts);
                }
                self.known.insert(id, sums);
            } else {
                waiting.push((id, true));
                waiting.extend(below.into_iter().map(|child| (child, false)));
            }
        }
    }
}

/// Adds the counts of a group below to those that the group above has, too.
fn add(sums: &mut EventTotals, counts: &EventTotals) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum = sum.map(|sum| sum.saturating_add(count.unwrap_or(0)));
    }
}

/// The counts that a group's files have.
fn counts(directory: &Directory, version: Version) -> EventTotals {
    match version {
        Version::V2 => {
            let text = directory.text("memory.events").unwrap_or_default();
            EVENTS.map(|name| line(&text, name))
        }
        Version::V1 => {
            let mut events = EventTotals::default();
            for (at, file, name) in V1 {
                let text = directory.text(file).unwrap_or_default();
                events[at] = name.map_or_else(|| text.trim().parse().ok(), |name| line(&text, name));
            }
            events
        }
    }
}

/// Seconds in which some, and in which all tasks waited for memory.
#[must_use]
pub fn stalls(directory: &Directory) -> [Option<f64>; 2] {
    let text = directory.text("memory.pressure").unwrap_or_default();
    ["some", "full"].map(|kind| stall(&text, kind))
}

/// The seconds of a line `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`, whose total is
/// in microseconds.
fn stall(text: &str, kind: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.split(' ').next() == Some(kind))?;
    let total: u64 = line.rsplit_once("total=")?.1.trim().parse().ok()?;
    Some(total as f64 / 1e6)
}

/// The number of the line with this name.
fn line(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::{EventTotals, add, line, stall};

    #[test]
    fn counts_of_groups_below_are_added_to_what_the_group_has() {
        let mut sums: EventTotals = [Some(1), None, Some(u64::MAX), Some(0), Some(2), None];
        add(&mut sums, &[Some(2), Some(7), Some(1), None, Some(3), None]);
        assert_eq!(sums, [Some(3), None, Some(u64::MAX), Some(0), Some(5), None]);
    }

    #[test]
    fn lines_are_found_by_their_whole_name() {
        let text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n";
        assert_eq!([line(text, "oom"), line(text, "oom_kill"), line(text, "o")], [Some(4), Some(5), None]);
        let text = "some avg10=0.00 avg60=0.10 avg300=0.02 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=20\n";
        assert_eq!([stall(text, "some"), stall(text, "full")], [Some(1.5), Some(0.000_02)]);
        assert_eq!(stall("", "some"), None);
    }
}
