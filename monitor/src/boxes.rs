//! The boxes of the groups that are recorded, as memory that programs write to. Where no program
//! does, the memory is the agent's own, and the thread of the recorder writes what it samples.

use std::sync::atomic::{AtomicU64, Ordering};

use monitor_common::protocol::{
    black_box::{POINTS, step_of},
    word::Word as _,
};
use monitor_sys::table::{SharedBoxHead, SharedBoxPoint, Table};
use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::ftruncate,
};

use crate::{
    black_box::UsagePoint,
    error::{Error, Result},
    kernel::page_size,
    source::GroupId,
};

/// All boxes, and which slot has which.
#[derive(Debug)]
pub struct BoxTables {
    /// The box of each slot: its number plus one, or 0.
    of: Table<AtomicU64>,
    heads: Table<SharedBoxHead>,
    points: Table<SharedBoxPoint>,
}

impl BoxTables {
    pub(crate) const fn new(
        of: Table<AtomicU64>,
        heads: Table<SharedBoxHead>,
        points: Table<SharedBoxPoint>,
    ) -> Self {
        Self { of, heads, points }
    }

    /// Makes boxes that no program writes to.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn in_memory(slots: u32, boxes: u32) -> Result<Self> {
        let points = boxes as usize * POINTS as usize;
        let of = in_memory(slots as usize, size_of::<AtomicU64>())?;
        let heads = in_memory(boxes as usize, size_of::<SharedBoxHead>())?;
        let all = in_memory(points, size_of::<SharedBoxPoint>())?;
        let no = |errno| Error::syscall("mmap of the black box", errno);
        Ok(Self::new(
            Table::map(of, slots as usize).map_err(no)?,
            Table::map(heads, boxes as usize).map_err(no)?,
            Table::map(all, points).map_err(no)?,
        ))
    }

    /// The number of boxes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.heads.len()
    }

    /// The groups that have a box, by the boxes' numbers: those of an earlier agent, too.
    pub fn taken(&self) -> impl Iterator<Item = (usize, GroupId, u64)> + '_ {
        (0..self.len()).filter_map(|number| {
            let head = self.heads.get(number)?;
            let slot = u32::try_from(head.slot.get().checked_sub(1)?).ok()?;
            Some((number, GroupId { slot, generation: head.generation.get() }, head.cgroup_id.get()))
        })
    }

    /// Gives box `number` to a group, whose usage is so many pages at `at`.
    pub fn begin(&self, number: usize, group: GroupId, cgroup_id: u64, usage: u64, at: u64) {
        let (Some(head), Some(of)) = (self.heads.get(number), self.of.get(group.slot as usize)) else {
            return;
        };
        head.begin(group.slot, group.generation, cgroup_id, usage);
        self.put(number, at, usage);
        of.xchg(number as u64 + 1);
    }

    /// Sets the step of a box by the group's limit in pages.
    pub fn set_limit(&self, number: usize, limit: u64) {
        if let Some(head) = self.heads.get(number) {
            head.limit.set(limit);
            head.step.set(step_of(limit));
        }
    }

    /// Takes box `number` away from its group.
    pub fn end(&self, number: usize) {
        let Some(head) = self.heads.get(number) else { return };
        let slot = head.slot.get();
        head.end();
        let of = slot.checked_sub(1).and_then(|slot| self.of.get(usize::try_from(slot).ok()?));
        // The slot may be another group's by now, with another box.
        of.map(|of| of.cas(number as u64 + 1, 0));
    }

    /// Records a reading as programs do.
    pub fn record(&self, number: usize, at: u64, usage: u64) {
        if self.heads.get(number).is_some_and(|head| head.takes(usage)) {
            self.put(number, at, usage);
        }
    }

    fn put(&self, number: usize, at: u64, usage: u64) {
        let Some(head) = self.heads.get(number) else { return };
        let point = head.written.fetch_add(1, Ordering::AcqRel);
        if let Some(place) = self.place(number, point) {
            place.put(point, at, usage);
        }
    }

    fn place(&self, number: usize, point: u64) -> Option<&SharedBoxPoint> {
        self.points.get(number * POINTS as usize + (point % u64::from(POINTS)) as usize)
    }

    /// The step of a box, in bytes.
    pub fn step(&self, number: usize) -> u64 {
        self.heads.get(number).map_or(0, |head| head.step.get() * page_size())
    }

    /// When the last point of a box was recorded; `None` where it is being written now.
    pub fn last_at(&self, number: usize) -> Option<u64> {
        let point = self.heads.get(number)?.written.get().checked_sub(1)?;
        Some(self.place(number, point)?.read(point)?.0)
    }

    /// The points of a box, in the order of time, and how many are lost: written over by later
    /// ones, or being written now.
    pub fn read(&self, number: usize) -> (Vec<UsagePoint>, u64) {
        let Some(head) = self.heads.get(number) else { return (Vec::new(), 0) };
        let end = head.written.get();
        let begin = end.saturating_sub(POINTS.into());
        let read = (begin..end).filter_map(|point| self.place(number, point)?.read(point));
        let bytes = |(at, pages)| UsagePoint { at, bytes: pages * page_size() };
        let mut points: Vec<UsagePoint> = read.map(bytes).collect();
        points.sort_by_key(|point| point.at);
        let lost = end - points.len() as u64;
        (points, lost)
    }
}

/// A memory file of so many elements.
pub(crate) fn in_memory(elements: usize, size: usize) -> Result<std::os::fd::OwnedFd> {
    let file = memfd_create(c"memcg-monitor-black-box", MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| Error::syscall("memfd_create", errno))?;
    let bytes = i64::try_from(elements * size).unwrap_or(i64::MAX);
    ftruncate(&file, bytes).map_err(|errno| Error::syscall("ftruncate of the black box", errno))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use monitor_common::protocol::black_box::POINTS;

    use super::BoxTables;
    use crate::{kernel::page_size, source::GroupId};

    fn group(slot: u32, generation: u64) -> GroupId {
        GroupId { slot, generation }
    }

    #[test]
    fn a_box_has_the_latest_points_and_counts_the_others() {
        let boxes = BoxTables::in_memory(4, 2).expect("memory");
        boxes.begin(1, group(3, 9), 42, 0, 5);
        boxes.set_limit(1, 1);
        let step = boxes.step(1) / page_size();
        for at in 1..=u64::from(POINTS) + 10 {
            boxes.record(1, 5 + at, at * step);
            boxes.record(1, 5 + at, at * step + step - 1);
        }
        let (points, lost) = boxes.read(1);
        assert_eq!((points.len(), lost), (POINTS as usize, 11), "the first one, and ten more");
        assert!(points.is_sorted_by_key(|point| point.at));
        assert_eq!(points[points.len() - 1].bytes, (u64::from(POINTS) + 10) * step * page_size());
        assert_eq!(boxes.taken().collect::<Vec<_>>(), [(1, group(3, 9), 42)]);
    }

    #[test]
    fn a_box_that_ended_records_nothing_and_takes_no_other_box_away() {
        let boxes = BoxTables::in_memory(4, 2).expect("memory");
        boxes.begin(0, group(3, 9), 42, 0, 1);
        boxes.set_limit(0, 1);
        boxes.begin(1, group(3, 10), 43, 0, 2);
        boxes.end(0);
        boxes.record(0, 3, 1 << 20);
        assert_eq!(boxes.read(0).0.len(), 1);
        assert_eq!(boxes.taken().collect::<Vec<_>>(), [(1, group(3, 10), 43)]);
        assert_eq!(boxes.of.get(3).map(|of| of.load(std::sync::atomic::Ordering::Relaxed)), Some(2));
    }
}
