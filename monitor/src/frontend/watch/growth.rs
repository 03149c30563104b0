//! Growth of groups: usage of a second or two ago, beside usage now.

use std::time::{Duration, Instant};

use monitor_common::grammar::control_file::ControlFile;
use monitor_sys::table::SharedSlot;

use crate::{kernel::page_size, source::GroupId, watcher::Cause};

/// Shortest time over which growth is worked out.
const SHORTEST: Duration = Duration::from_millis(100);

/// Whether growth is told of what happened for this cause. Of other quantities than usage there are no
/// older readings.
pub(super) fn is_told_with(cause: &Cause) -> bool {
    !matches!(cause, Cause::Crossed { on, .. } if *on != ControlFile::Usage)
}

/// Usage of a group in its slot, as long as it is kept there.
pub(super) fn kept_usage(slot: &SharedSlot, group: GroupId) -> Option<u64> {
    let usage = slot.kept_usage()?;
    // Read after usage, which may be another group's by then.
    (slot.state().generation() == group.generation).then_some(usage)
}

/// Usage at a time, in pages.
#[derive(Clone, Copy, Debug)]
struct UsageReading {
    at: Instant,
    usage: u64,
}

/// The last two readings of a group.
#[derive(Clone, Copy, Debug)]
struct Readings {
    generation: u64,
    older: UsageReading,
    newer: UsageReading,
}

/// The readings of all groups, by slot: read each second, so without a search.
#[derive(Debug, Default)]
pub(super) struct Growth {
    groups: Vec<Option<Readings>>,
    /// Times of the last two passes over all groups. Readings of earlier ones are forgotten.
    passes: [Option<Instant>; 2],
}

impl Growth {
    /// Begins a pass over all groups.
    pub(super) fn begin_pass(&mut self, at: Instant) {
        self.passes = [self.passes[1], Some(at)];
    }

    /// Adds a reading of a group's usage to the pass.
    pub(super) fn add(&mut self, group: GroupId, usage: u64) {
        let [before, Some(at)] = self.passes else { return };
        let index = group.slot as usize;
        if index >= self.groups.len() {
            self.groups.resize(index + 1, None);
        }
        let newer = UsageReading { at, usage };
        let Some(known) = self.groups.get_mut(index) else { return };
        let older = match known.filter(|known| known.generation == group.generation) {
            // Two watches have it.
            Some(known) if known.newer.at == at => return,
            Some(known) if Some(known.newer.at) == before => known.newer,
            _ => newer,
        };
        *known = Some(Readings { generation: group.generation, older, newer });
    }

    /// Bytes per second since the older reading, where there is one of some time ago.
    pub(super) fn of(&self, group: GroupId, usage: u64, now: Instant) -> Option<i64> {
        let readings = self.groups.get(group.slot as usize)?.as_ref()?;
        let is_known = readings.generation == group.generation && Some(readings.newer.at) == self.passes[1];
        let older = is_known.then_some(readings.older)?;
        let time = now.saturating_duration_since(older.at);
        let pages = i128::from(usage) - i128::from(older.usage);
        let growth = pages * i128::from(page_size()) * 1000 / i128::try_from(time.as_millis().max(1)).ok()?;
        (time >= SHORTEST).then(|| i64::try_from(growth).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use monitor_common::{
        grammar::control_file::ControlFile,
        protocol::{crossing::Direction, slot::Slot, usage::UNKNOWN, word::Word as _},
    };
    use monitor_sys::table::SharedSlot;

    use super::{Cause, GroupId, Growth, is_told_with, kept_usage, page_size};

    const GROUP: GroupId = GroupId { slot: 3, generation: 1 };

    #[test]
    fn growth_is_told_of_usage_and_of_no_other_quantity() {
        let crossed = |on| Cause::Crossed { on, threshold: 1, direction: Direction::Up, usage: 2 };
        assert!(is_told_with(&crossed(ControlFile::Usage)) && is_told_with(&Cause::Oom { limit: 1 }));
        for on in [ControlFile::Memsw, ControlFile::Anon, ControlFile::WorkingSet] {
            assert!(!is_told_with(&crossed(on)), "{on:?}");
        }
    }

    #[test]
    fn usage_that_is_kept_no_longer_is_not_read() {
        let slot: SharedSlot = Slot::new(Into::into);
        let group = GroupId { slot: 0, generation: slot.state().generation() };
        slot.usage.set(7);
        assert_eq!(kept_usage(&slot, group), None, "it is what was kept for the last registration");
        slot.band.set(1);
        assert_eq!(kept_usage(&slot, group), Some(7));
        let other = GroupId { generation: group.generation + 1, ..group };
        assert_eq!(kept_usage(&slot, other), None);
        slot.usage.set(UNKNOWN);
        assert_eq!(kept_usage(&slot, group), None);
    }

    #[test]
    fn growth_is_since_the_reading_before_the_last() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let read = |growth: &mut Growth, seconds, usage| {
            growth.begin_pass(at(seconds));
            growth.add(GROUP, usage);
            growth.add(GROUP, usage + 1);
        };
        assert_eq!(growth.of(GROUP, 10, start), None);
        read(&mut growth, 0, 0);
        assert_eq!(growth.of(GROUP, 10, start), None, "no time has passed");
        let page = i64::try_from(page_size()).expect("a page");
        assert_eq!(growth.of(GROUP, 10, at(1)), Some(10 * page));
        read(&mut growth, 1, 100);
        read(&mut growth, 2, 100);
        assert_eq!(growth.of(GROUP, 50, at(2)), Some(-50 * page));
    }

    #[test]
    fn a_group_that_was_not_read_or_that_is_another_has_no_growth() {
        let (mut growth, start) = (Growth::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        growth.begin_pass(start);
        growth.add(GROUP, 0);
        let other = GroupId { generation: 2, ..GROUP };
        assert_eq!(growth.of(other, 10, at(1)), None, "in the slot of a group that is gone");
        growth.begin_pass(at(1));
        assert_eq!(growth.of(GROUP, 10, at(1)), None, "it was not read");
        growth.begin_pass(at(60));
        growth.add(GROUP, 100);
        assert_eq!(growth.of(GROUP, 100, at(61)), Some(0), "the minute before counts for nothing");
        growth.begin_pass(at(61));
        growth.add(other, 5);
        assert_eq!((growth.of(other, 5, at(62)), growth.of(GROUP, 5, at(62))), (Some(0), None));
    }
}
