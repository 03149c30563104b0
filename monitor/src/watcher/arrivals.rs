//! Groups that are new, for those who watch patterns of groups. A new group's slot is kept, whatever
//! becomes of the group, until what the group did so far has been told.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use monitor_common::{
    grammar::pressure::{Pressure, PressureMode, Propagation},
    protocol::{band::Seen, pressure::Level, query::Subscriptions, slot::SlotState},
};
use tokio::sync::Notify;

use crate::{
    registry,
    source::{GroupId, Source},
    watcher::hierarchy::{above, id_of},
};

/// The part of the table's slots that may be kept for new groups: one in so many.
const SHARE: u32 = 16;
/// Slots that may be kept in the smallest table.
const FEW: u32 = 16;

/// The number of slots that may be kept for new groups, of so many in all.
fn most_kept(slots: u32) -> usize {
    (slots / SHARE).max(FEW) as usize
}

/// A group that is new, or was when its slot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The group, whose slot is kept.
    pub group: GroupId,
    /// `st_ino` of its directory.
    pub cgroup_id: u64,
    /// `st_ino` of the directory above; 0 where that is not known.
    pub above: u64,
}

/// The events of a new group since it was made that have no later trace in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// Times that the last process left.
    pub emptied: u64,
    /// The highest level of pressure that a listener would have been told, by its mode as in
    /// [`PressureMode::ALL`].
    pressure: [Option<Level>; 3],
}

impl Early {
    /// The highest level that a listener of this mode would have been told.
    pub fn pressure(&self, mode: PressureMode) -> Option<Level> {
        let place = PressureMode::ALL.iter().position(|known| *known == mode);
        place.and_then(|place| self.pressure[place])
    }

    /// Adds a window of reclaim, on its way up from the group whose it is.
    fn add_window(&mut self, window: Propagation, level: Level) {
        for (highest, mode) in self.pressure.iter_mut().zip(PressureMode::ALL) {
            if window.deliver(Pressure { level: Level::Low, mode }, level) {
                *highest = (*highest).max(Some(level));
            }
        }
    }
}

/// A new group whose slot is kept.
#[derive(Debug)]
struct KeptGroup {
    group: GroupId,
    early: Early,
}

/// The kinds of events that are counted in new groups while anyone who watches wants them.
const KINDS: [u64; 2] = [Subscriptions::PRESSURE, Subscriptions::EMPTY];

/// New groups that are still to be told, and all whose slots are kept.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Those who watch for new groups.
    watches: usize,
    /// The number of these who want each of [`KINDS`].
    wanted: [usize; KINDS.len()],
    queue: VecDeque<Arrival>,
    kept: HashMap<u32, KeptGroup>,
    /// Groups that were not kept, since as many are as may.
    not_kept: u64,
    notify: Arc<Notify>,
}

impl Arrivals {
    pub(super) const fn are_wanted(&self) -> bool {
        self.watches > 0
    }

    /// Notes one who watches, or (`false`) one who does so no more, and the kinds of events that this is for.
    pub(super) fn want(&mut self, kinds: u64, more: bool) {
        let change = |count: &mut usize| *count = if more { *count + 1 } else { count.saturating_sub(1) };
        change(&mut self.watches);
        let wanted = self.wanted.iter_mut().zip(KINDS).filter(|(_, kind)| kinds & kind != 0);
        wanted.for_each(|(count, _)| change(count));
    }

    /// The kinds of events that the programs have to count in new groups, and whether to report these.
    pub(super) fn wanted(&self) -> u64 {
        let kinds = self.wanted.iter().zip(KINDS).filter(|(count, _)| **count > 0);
        let groups = if self.are_wanted() { Subscriptions::GROUPS } else { 0 };
        kinds.fold(groups, |bits, (_, kind)| bits | kind)
    }

    pub(super) fn notification(&self) -> Arc<Notify> {
        Arc::clone(&self.notify)
    }

    /// Keeps the slot of a new group, which the caller holds, if anyone watches. Where many are made at
    /// once, those beyond a share of the table are counted instead: it has to have room for others.
    pub(super) fn add(&mut self, source: &impl Source, index: u32) {
        let Some(slot) = source.slot(index).filter(|_| self.are_wanted()) else { return };
        if self.kept.len() >= most_kept(source.root().slot) {
            self.not_kept += 1;
            return;
        }
        let group = GroupId { slot: index, generation: slot.state().generation() };
        let above = above(source, index).map_or(0, |above| id_of(source, above));
        self.queue.push_back(Arrival { group, cgroup_id: id_of(source, index), above });
        self.kept.insert(index, KeptGroup { group, early: Early::default() });
        self.notify.notify_one();
    }

    pub(super) const fn not_kept(&self) -> u64 {
        self.not_kept
    }

    /// Whether a slot is kept for a group.
    pub(super) fn holds(&self, index: u32) -> bool {
        self.kept.contains_key(&index)
    }

    /// Whether a group is new: it is kept, or is going to be.
    pub(super) fn is_new(&self, source: &impl Source, group: GroupId) -> bool {
        let is_made = source.slot(group.slot).is_some_and(|slot| {
            let state = slot.state();
            state.generation() == group.generation && state.has(SlotState::NEW)
        });
        is_made || self.early(group).is_some()
    }

    /// The events of a group that is kept, as far as it was looked at.
    pub(super) fn early(&self, group: GroupId) -> Option<Early> {
        self.kept.get(&group.slot).filter(|kept| kept.group == group).map(|kept| kept.early)
    }

    /// Notes what was taken out of a slot, if it is kept.
    pub(super) fn note(&mut self, index: u32, seen: &Seen) {
        let Some(KeptGroup { early, .. }) = self.kept.get_mut(&index) else { return };
        early.emptied += seen.emptied;
        for (windows, way) in
            [(seen.windows, Propagation::new()), (seen.windows_below, Propagation::from_below())]
        {
            let levels = Level::ALL.into_iter().zip(windows).filter(|(_, count)| *count > 0);
            levels.for_each(|(level, _)| early.add_window(way, level));
        }
    }

    /// Notes a window of reclaim of a group below, if the slot that it comes by is kept.
    pub(super) fn note_window(&mut self, index: u32, window: Propagation, level: Level) {
        if let Some(kept) = self.kept.get_mut(&index) {
            kept.early.add_window(window, level);
        }
    }

    /// Takes up to `most` new groups, whose slots stay kept.
    pub(super) fn take(&mut self, most: usize) -> Vec<Arrival> {
        let most = most.min(self.queue.len());
        self.queue.drain(..most).collect()
    }

    /// Keeps a group's slot no longer; false where it was not kept.
    pub(super) fn let_go(&mut self, group: GroupId) -> bool {
        let is_kept = self.early(group).is_some();
        if is_kept {
            self.kept.remove(&group.slot);
            registry::give_back(&mut self.kept);
        }
        is_kept
    }
}

#[cfg(test)]
mod tests {
    use monitor_common::{
        grammar::pressure::{PressureMode, Propagation},
        protocol::{pressure::Level, query::Subscriptions},
    };

    use super::{Arrivals, Early, most_kept};

    #[test]
    fn new_groups_leave_most_of_the_table_to_others() {
        assert_eq!((most_kept(1 << 16), most_kept(8)), (1 << 12, 16));
    }

    #[test]
    fn early_pressure_is_the_highest_that_a_listener_of_the_mode_would_have_had() {
        let mut early = Early::default();
        let mut window = Propagation::new();
        window.next_group(true);
        early.add_window(window, Level::Critical);
        let levels = |early: &Early| PressureMode::ALL.map(|mode| early.pressure(mode));
        assert_eq!(levels(&early), [None, Some(Level::Critical), None], "one below was told");
        early.add_window(Propagation::from_below(), Level::Low);
        early.add_window(Propagation::new(), Level::Medium);
        assert_eq!(levels(&early), [Some(Level::Medium), Some(Level::Critical), Some(Level::Medium)]);
    }

    #[test]
    fn kinds_are_counted_while_anyone_wants_them() {
        let mut arrivals = Arrivals::default();
        arrivals.want(Subscriptions::EMPTY, true);
        arrivals.want(Subscriptions::EMPTY | Subscriptions::PRESSURE, true);
        let all = Subscriptions::GROUPS | Subscriptions::EMPTY | Subscriptions::PRESSURE;
        assert_eq!(arrivals.wanted(), all);
        arrivals.want(Subscriptions::EMPTY | Subscriptions::PRESSURE, false);
        assert_eq!(arrivals.wanted(), Subscriptions::GROUPS | Subscriptions::EMPTY);
        arrivals.want(Subscriptions::EMPTY, false);
        assert_eq!(arrivals.wanted(), 0);
    }
}
