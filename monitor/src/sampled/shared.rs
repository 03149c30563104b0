//! State that the users of the sampled backend and its threads share, and the steps by which a
//! reading becomes what a program would have left.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use monitor_common::protocol::{
    band::{Band, OPEN, Outside, Track, Verdict, compare},
    ring::{Doorbell, LossKind},
    slot::{NOT_POPULATED, POPULATED},
    word::Word as _,
};
use monitor_sys::table::SharedSlot;

use crate::{
    sampled::{bells::Bells, files::GroupFiles, table::Table, v1_ooms::V1Ooms},
    source::GroupId,
};

/// State that the backend's users and its threads share.
pub(super) struct Shared {
    pub(super) table: Table,
    pub(super) bells: Bells,
    /// Kinds of events that have registrations, bits of
    /// [`Subscriptions`](monitor_common::protocol::query::Subscriptions).
    pub(super) wanted: AtomicU64,
    /// 1 while a limit was written that the watcher has not looked at.
    pub(super) limits: AtomicU64,
    pub(super) losses: [AtomicU64; LossKind::COUNT],
    pub(super) band_shift: u32,
    /// Notices of OOM, on v1 only.
    pub(super) v1_ooms: Option<Mutex<V1Ooms>>,
}

impl Shared {
    /// Takes a group's slot away from it, which is gone; false where that was done before.
    pub(super) fn depart(&self, group: GroupId) -> bool {
        match self.table.leave(group) {
            None => false,
            Some(true) => {
                self.bells.ring(Doorbell { kind: Doorbell::SLOT, slot: group.slot, value: 0 });
                true
            }
            Some(false) => {
                self.table.give_back(group.slot);
                true
            }
        }
    }

    /// Compares a group's usage with its bands, as a program does at a charge: the band is read
    /// before the usage. Pages charged, and how far that is from the nearest end; `None` when the
    /// group is gone.
    pub(super) fn see_usage(&self, index: u32, slot: &SharedSlot, files: &GroupFiles) -> Option<(u64, u64)> {
        let (band, sum_band) = (slot.band.get(), slot.sum_band.get());
        let peak = files.peak();
        let usage = files.usage()?;
        // A band that was published meanwhile was published for a later reading than this may be: the
        // next one, which is due at once, compares with that band, and is the last if the group goes.
        if slot.band.get() != band {
            return Some((usage, 0));
        }
        slot.usage.xchg(usage);
        slot.last.set(usage);
        let mut distance = u64::MAX;
        if let Some(peak) = peak {
            slot.peak.xchg(peak.max(usage));
            // A new peak since the last reading was a usage in between. Of two readings at once the
            // one that began first may end last: what is known only rises.
            if files.known_peak.fetch_max(peak.max(usage), Ordering::Relaxed) < peak && band != OPEN {
                self.compare(index, &slot.memory(), Doorbell::READING, band, peak);
            }
            // A peak between the two readings belongs to the way that this usage ends.
            if compare(band, usage, self.band_shift).is_some()
                && let Some(peak) = files.peak()
            {
                files.known_peak.fetch_max(peak, Ordering::Relaxed);
            }
        }
        if band != OPEN {
            self.compare(index, &slot.memory(), Doorbell::READING, band, usage);
            distance = Band::distance(band, usage, self.band_shift);
        }
        if sum_band != OPEN {
            let sum = files.sum()?;
            slot.sum_last.set(sum);
            self.compare(index, &slot.sum(), Doorbell::SUM_READING, sum_band, sum);
            distance = distance.min(Band::distance(sum_band, sum, self.band_shift));
        }
        Some((usage, distance))
    }

    /// Usage that the watcher has read itself, and signals: a peak that it covers is no usage in
    /// between any more.
    pub(super) fn read_usage(&self, slot: &SharedSlot, files: &GroupFiles) -> Option<u64> {
        let band = slot.band.get();
        let peak = files.peak();
        let usage = files.usage()?;
        if let Some(peak) = peak {
            let out_of_band = |usage| (band != OPEN).then(|| compare(band, usage, self.band_shift)).flatten();
            if out_of_band(peak).is_none() || out_of_band(usage).is_some_and(|outside| outside.is_above) {
                files.known_peak.fetch_max(peak.max(usage), Ordering::Relaxed);
            }
        }
        slot.last.set(usage);
        Some(usage)
    }

    fn compare(&self, index: u32, track: &Track<'_, AtomicU64>, kind: u32, band: u64, usage: u64) {
        let Some(outside) = compare(band, usage, self.band_shift) else { return };
        match track.flag(outside) {
            Verdict::Quiet => {}
            Verdict::Ring => self.ring(index),
            Verdict::Tell => {
                self.bells.ring(Doorbell { kind, slot: index, value: Outside::to_word(outside) });
            }
        }
    }

    fn ring(&self, index: u32) {
        self.bells.ring(Doorbell { kind: Doorbell::SLOT, slot: index, value: now() });
    }

    /// Delivers OOMs by the group's limit since the last reading: those that the kernel has counted,
    /// or on v1 those that it gave notice of.
    pub(super) fn see_ooms(&self, index: u32, slot: &SharedSlot, files: &GroupFiles) {
        let new = self.new_ooms(index, slot, files);
        self.deliver_ooms(index, slot, new);
    }

    /// OOMs by the limit of a group since this was called last.
    fn new_ooms(&self, index: u32, slot: &SharedSlot, files: &GroupFiles) -> u64 {
        let Some(notices) = &self.v1_ooms else {
            let Some(ooms) = files.ooms() else { return 0 };
            return ooms.saturating_sub(slot.oom_calls.xchg(ooms));
        };
        let parent = self.table.above(index).next();
        let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
        notices.new_ooms(index, parent, files.directory()).unwrap_or_else(|errno| {
            log::debug!("OOMs of group {} are not seen: {errno}", slot.cgroup_id.get());
            0
        })
    }

    /// Begins to count the OOMs of a group, and of those above it from the top on: what was
    /// before is for no registration that follows.
    pub(super) fn count_ooms_from_here(&self, index: u32) {
        self.each_from_the_top(index, |index, slot, files| {
            self.new_ooms(index, slot, files);
        });
    }

    /// Sees the OOMs of a group that may be new in the table, and of those above it: on v1 the
    /// kernel gives notice from here on. What is due to others is delivered.
    pub(super) fn see_oom_of_newcomer(&self, index: u32) {
        self.each_from_the_top(index, |index, slot, files| self.see_ooms(index, slot, files));
    }

    /// Calls `each` for the group in a slot and those above it, the highest first.
    fn each_from_the_top(&self, index: u32, each: impl Fn(u32, &SharedSlot, &GroupFiles)) {
        let mut line: Vec<u32> = self.table.above(index).collect();
        line.insert(0, index);
        for index in line.into_iter().rev() {
            if let (Some(slot), Some(files)) = (self.table.slot(index), self.table.files(index)) {
                each(index, slot, &files);
            }
        }
    }

    fn deliver_ooms(&self, index: u32, slot: &SharedSlot, ooms: u64) {
        if ooms > 0 {
            slot.ooms.add(ooms);
            slot.pending.xchg(1);
            self.ring(index);
        }
    }

    pub(super) fn see_limit(&self, files: &GroupFiles) {
        let Some(limit) = files.limit() else { return };
        if files.known_limit.swap(limit, Ordering::Relaxed) != limit
            && self.limits.swap(1, Ordering::SeqCst) == 0
        {
            self.bells.ring(Doorbell { kind: Doorbell::LIMITS, slot: 0, value: 0 });
        }
    }

    /// Delivers that a group has become empty since the last reading, or since the watcher noted
    /// that it has tasks, at a registration.
    pub(super) fn see_populated(&self, index: u32, slot: &SharedSlot, files: &GroupFiles) {
        let Some(populated) = files.populated() else { return };
        let before = slot.populated.xchg(if populated { POPULATED } else { NOT_POPULATED });
        if before == POPULATED && !populated {
            slot.emptied.add(1);
            slot.pending.xchg(1);
            self.ring(index);
        }
    }
}

/// Nanoseconds of the clock by which doorbells are timed.
fn now() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map(Duration::from)
        .ok()
        .and_then(|time| u64::try_from(time.as_nanos()).ok())
        .unwrap_or(0)
}
