//! From doorbell to signal: takes what the programs saw, lets the registry work
//! out what was crossed, signals, and publishes the next band.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::AsFd as _,
    rc::Rc,
    sync::atomic::Ordering,
};

use monitor_common::{
    band::{Band, add, give_back, publish, take},
    crossing::Direction,
    slot::{State, Tally},
};
use nix::errno::Errno;
use tokio::sync::Notify;

use crate::{
    error::Result,
    eventfd::EventFd,
    registry::{Crossing, Group, Registry},
    source::{FileId, GroupId, Source},
};

/// Why an eventfd was signalled, for those who follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A threshold was crossed.
    Crossed {
        /// In pages.
        threshold: u64,
        /// Which way.
        direction: Direction,
        /// In pages, after the crossing.
        usage: u64,
    },
    /// The group is gone.
    Removed,
}

/// A cause, and the group in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// What happened.
    pub cause: Cause,
}

/// Counts of what the watcher did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Signals given, each an increment of an eventfd.
    pub signals: u64,
    /// Signals that a full eventfd could not take.
    pub saturated: u64,
    /// Times that all watched groups were read again after a loss.
    pub resyncs: u64,
}

/// What a following connection gets its events through.
pub type Follower = Box<dyn FnMut(&Event) -> bool>;

/// Looks that one group may take in a row before others get their turn.
const LOOKS: usize = 16;

/// Eventfds that one sweep asks for: closes ring a doorbell, so this is for those
/// that no hook saw, and must not cost more the more there are.
const FILES_IN_A_SWEEP: usize = 256;

/// The agent's heart: one kernel side, one registry, the eventfds.
pub struct Watcher<S> {
    source: S,
    registry: Registry,
    eventfds: HashMap<FileId, EventFd>,
    followers: HashMap<FileId, Vec<Follower>>,
    /// Groups that moved too fast for one turn.
    due: VecDeque<u32>,
    /// Eventfds that the sweeps have yet to ask for.
    unswept: Vec<FileId>,
    work: Rc<Notify>,
    counts: Counts,
    skipped: u64,
    lost: u64,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Watcher<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("source", &self.source)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl<S: Source> Watcher<S> {
    /// Nothing registered yet.
    pub fn new(source: S) -> Self {
        let skipped = source.skipped();
        Self {
            source,
            registry: Registry::default(),
            eventfds: HashMap::new(),
            followers: HashMap::new(),
            due: VecDeque::new(),
            unswept: Vec::new(),
            work: Rc::default(),
            counts: Counts::default(),
            skipped,
            lost: 0,
        }
    }

    /// The kernel side.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// Notified when a sweep or another look has become due otherwise than by a
    /// doorbell.
    pub fn work(&self) -> Rc<Notify> {
        Rc::clone(&self.work)
    }

    /// Whether [`Watcher::look_again`] has something to do.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Another turn for the group that has waited longest for one.
    pub fn look_again(&mut self) {
        if let Some(slot) = self.due.pop_front() {
            self.look(slot);
        }
    }

    /// Who waits for what.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What was done so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Registers `threshold` pages of `group` with `eventfd`. From its first
    /// signal on, `follower` is told why, until it answers `false`.
    ///
    /// # Errors
    /// `EINVAL` when the group is going or gone, as the kernel's
    /// `css_tryget_online`; `ENOMEM` when no further eventfd can be followed.
    pub fn register(
        &mut self,
        group: GroupId,
        threshold: u64,
        eventfd: EventFd,
        follower: Option<Follower>,
    ) -> Result<(), Errno> {
        let internal = |error: crate::Error| {
            log::error!("registration failed: {error}");
            Errno::EIO
        };
        let file = self.source.file_of(eventfd.as_fd()).map_err(internal)?;
        let slot = self.source.slot(group.slot).ok_or(Errno::EINVAL)?;
        if !slot.watch(group.generation) {
            return Err(Errno::EINVAL);
        }
        // Those already registered may hear something now, as in the kernel.
        if self.registry.group(group.slot).is_some() {
            self.look(group.slot);
        }
        let known = self.registry.group(group.slot).map(Group::usage);
        let usage = match known {
            Some(usage) => Some(usage),
            None => self.source.usage(group).map_err(internal)?,
        };
        let Some(usage) = usage else {
            self.release(group.slot);
            return Err(Errno::EINVAL);
        };
        if !self.registry.has_file(file) {
            if let Err(error) = self.source.follow_file(file) {
                log::warn!("{error}");
                self.settle(group.slot);
                return Err(Errno::ENOMEM);
            }
            self.eventfds.insert(file, eventfd);
        }
        if self.registry.is_empty() {
            self.work.notify_one();
        }
        if let Some(follower) = follower {
            self.followers.entry(file).or_default().push(follower);
        }
        self.registry.add(group, usage, threshold, file);
        // Publishes the new band, then reads usage again: a charge that still
        // went by the old band is caught here.
        self.look(group.slot);
        Ok(())
    }

    /// A slot's doorbell rang, or a sweep came by. A group that moves too fast is
    /// queued for another turn.
    pub fn look(&mut self, index: u32) {
        let Some(id) = self.registry.group(index).map(|group| group.id) else {
            self.release(index);
            return;
        };
        for _ in 0..LOOKS {
            let Some(slot) = self.source.slot(index) else {
                return;
            };
            let state = slot.state();
            let seen = take(slot);
            let cgroup_id = slot.cgroup_id.load(Ordering::Relaxed);
            let now = match self.source.usage(id) {
                Ok(usage) => usage,
                Err(error) => {
                    // Nothing is lost: the sweep finds it pending.
                    log::error!("{error}");
                    give_back(slot, seen);
                    return;
                }
            };
            let Some(group) = self.registry.group_mut(index) else {
                return;
            };
            let usage = now.unwrap_or_else(|| group.usage());
            let crossings = group.step(seen, usage);
            let band = group.band();
            self.signal_crossings(cgroup_id, &crossings, usage);
            if now.is_none() || !state.is_live() || state.generation() != id.generation {
                self.remove_group(index, cgroup_id);
                return;
            }
            let Some(slot) = self.source.slot(index) else {
                return;
            };
            publish(slot, band, self.source.band_shift());
            // Second half of the band protocol: read after publishing.
            match self.source.usage(id) {
                Ok(Some(again)) if again >= band.lo && again < band.hi => return,
                _ => {}
            }
        }
        // Still out of the band just published, so the last word is not said.
        if !self.due.contains(&index) {
            self.due.push_back(index);
        }
        self.work.notify_one();
    }

    /// A reading that found no place in its slot came through the ring.
    pub fn add_reading(&self, index: u32, usage: u64) {
        if let Some(slot) = self.source.slot(index) {
            add(slot, usage, self.source.band_shift());
        }
    }

    /// A reference to a registered eventfd was closed. True when it may have
    /// been the last but the kernel has not dropped it yet: ask again soon.
    pub fn file_closed(&mut self, file: FileId) -> bool {
        if !self.registry.has_file(file) {
            return false;
        }
        match self.source.file_refs(file) {
            Ok(refs) if refs <= 1 => {
                self.forget_file(file);
                false
            }
            Ok(refs) => refs == 2,
            Err(error) => {
                log::error!("{error}");
                false
            }
        }
    }

    /// The safety net: finds what a lost doorbell, a skipped program or an
    /// unseen close left behind.
    pub fn sweep(&mut self) {
        let skipped = self.source.skipped();
        let lost = self.losses();
        let all = skipped != self.skipped || lost != self.lost;
        if all {
            log::debug!("reading all watched groups again: {skipped} calls skipped, {lost} losses so far");
            self.counts.resyncs += 1;
        }
        (self.skipped, self.lost) = (skipped, lost);
        for index in self.registry.slots() {
            if all || self.source.slot(index).is_some_and(|slot| slot.pending.load(Ordering::Acquire) != 0) {
                self.look(index);
            }
        }
        if self.unswept.is_empty() {
            self.unswept = self.registry.files();
        }
        for _ in 0..FILES_IN_A_SWEEP {
            let Some(file) = self.unswept.pop() else { break };
            self.file_closed(file);
        }
    }

    /// Whether doorbells were lost since the last sweep.
    pub fn lost_doorbells(&self) -> bool {
        self.losses() != self.lost
    }

    fn losses(&self) -> u64 {
        self.source.tally(Tally::RingFull) + self.source.tally(Tally::TooDeep)
    }

    fn signal_crossings(&mut self, cgroup_id: u64, crossings: &[Crossing], usage: u64) {
        let mut totals: Vec<(FileId, u64)> = Vec::new();
        for crossing in crossings {
            match totals.iter_mut().rev().take(8).find(|(file, _)| *file == crossing.file) {
                Some((_, total)) => *total += 1,
                None => totals.push((crossing.file, 1)),
            }
            let cause =
                Cause::Crossed { threshold: crossing.threshold, direction: crossing.direction, usage };
            self.tell(crossing.file, &Event { cgroup_id, cause });
        }
        for (file, total) in totals {
            self.signal(file, total);
        }
    }

    /// Each registration is signalled once more; the eventfds that wait for
    /// nothing else are let go.
    fn remove_group(&mut self, index: u32, cgroup_id: u64) {
        for (file, registrations) in self.registry.remove_group(index) {
            self.tell(file, &Event { cgroup_id, cause: Cause::Removed });
            self.signal(file, u64::from(registrations));
            if !self.registry.has_file(file) {
                self.drop_file(file);
            }
        }
        self.release(index);
    }

    fn forget_file(&mut self, file: FileId) {
        for slot in self.registry.remove_file(file) {
            self.settle(slot);
        }
        self.drop_file(file);
    }

    fn drop_file(&mut self, file: FileId) {
        self.source.unfollow_file(file);
        self.followers.remove(&file);
        self.eventfds.remove(&file);
    }

    /// After registrations went: a band for those that are left, or none.
    fn settle(&mut self, index: u32) {
        match self.registry.group(index) {
            Some(group) if !group.is_empty() => {
                self.look(index);
            }
            _ => {
                self.registry.forget_group(index);
                self.release(index);
            }
        }
    }

    /// Nobody waits on this slot: the programs may recycle it themselves, or,
    /// if its group went first, it is recycled here.
    fn release(&mut self, index: u32) {
        let Some(slot) = self.source.slot(index) else {
            return;
        };
        let state = slot.state();
        if !state.has(State::WATCHED) {
            return;
        }
        publish(slot, Band::EVERYTHING, self.source.band_shift());
        take(slot);
        if !slot.unwatch(state.generation()) {
            self.source.recycle(index);
        }
    }

    fn signal(&mut self, file: FileId, count: u64) {
        let Some(eventfd) = self.eventfds.get(&file) else {
            return;
        };
        match eventfd.signal(count) {
            Ok(true) => self.counts.signals += count,
            Ok(false) => self.counts.saturated += count,
            Err(errno) => log::error!("write to an eventfd: {errno}"),
        }
    }

    fn tell(&mut self, file: FileId, event: &Event) {
        if let Some(followers) = self.followers.get_mut(&file) {
            followers.retain_mut(|follower| follower(event));
        }
    }
}

#[cfg(test)]
mod tests;
