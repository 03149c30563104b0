//! From doorbell to signal: takes what the programs saw, lets the registry work
//! out what was crossed, signals, and publishes the next band.

mod closed;
mod event;
mod groups;
mod lifetime;
mod measures;
mod register;
mod restore;
mod sample;
mod shared;
mod signal;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use monitor_common::{
    band::{Band, OPEN, Seen, Track, give_back, take},
    control::ControlFile,
    ring::Tally,
    slot::State,
    word::Word as _,
};
use tokio::sync::Notify;

use crate::{
    cgroup::host::Host,
    error::Result,
    eventfd::{EventFd, Signaller},
    registry::{Account, Registry},
    source::{FileId, GroupId, Source},
    vault::{Record, Ticket, Unfinished, Unrecorded, Vault},
};

pub use closed::ClosedSearch;
pub use event::{Cause, Event, Follower};
pub use measures::{CAUSES, Measures};
pub use register::{Handed, Receipt, Request};
pub use restore::Restored;
pub use shared::{Guard, Shared};

/// Counts of what the watcher did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Signals given, each an increment of an eventfd.
    pub signals: u64,
    /// Signals that could not be given.
    pub unsignalled: u64,
    /// Times that all watched groups were read again after a loss.
    pub resyncs: u64,
}

/// What clients may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Registrations that each account may have, but the privileged and the agent's own.
    pub quota: u64,
    /// Registrations that there may be in all, but for the agent's own, as
    /// [`share`](crate::registry::share) says.
    pub registrations: u64,
    /// Eventfds that can be registered at once, shared likewise.
    pub eventfds: u64,
    /// Milliseconds of rest for a threshold that was crossed [`BURST`] times
    /// within that time; 0: none.
    ///
    /// [`BURST`]: crate::registry::BURST
    pub rest: u64,
}

/// Looks that one group may take in a row before others get their turn.
const LOOKS: usize = 16;

/// The agent's heart: one kernel side, one registry, the eventfds.
pub struct Watcher<S> {
    source: S,
    host: Box<dyn Host + Send>,
    registry: Registry,
    limits: Limits,
    /// Until when thresholds rest, and on which slot.
    rests: BTreeSet<(u64, u32)>,
    signaller: Signaller,
    /// What outlives this agent, where somebody keeps it.
    vault: Option<Vault>,
    /// For registrations that it does not record.
    unrecorded: Unrecorded,
    /// Registrations taken over whose clients may not have had their answer.
    unsure: Vec<(Ticket, Record)>,
    unsure_until: u64,
    eventfds: HashMap<FileId, EventFd>,
    /// The agent's own ([`Account::Agent`](crate::registry::Account)); no agent takes them over.
    own: HashMap<FileId, EventFd>,
    /// Each hears of its own registration.
    followers: HashMap<Ticket, Follower>,
    /// Groups that moved too fast for one turn.
    due: VecDeque<u32>,
    /// The latest sweep's, for closed eventfds.
    search: ClosedSearch,
    /// Not before then is one begun for want of room, by the host's clock.
    search_from: u64,
    /// Where to go on with users whose eventfds are too many for one turn.
    asked: HashMap<Account, FileId>,
    work: Arc<Notify>,
    counts: Counts,
    measures: Measures,
    skipped: u64,
    lost: u64,
    table: groups::Rounds,
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
    ///
    /// # Errors
    /// As [`Signaller::new`].
    pub fn new(source: S, host: Box<dyn Host + Send>, limits: Limits) -> Result<Self> {
        let (skipped, measures) = (source.skipped(), Measures::new(&source));
        let table = groups::Rounds::new(&source);
        Ok(Self {
            source,
            host,
            registry: Registry::default(),
            limits,
            rests: BTreeSet::new(),
            signaller: Signaller::new()?,
            vault: None,
            unrecorded: Unrecorded::default(),
            unsure: Vec::new(),
            unsure_until: 0,
            eventfds: HashMap::new(),
            own: HashMap::new(),
            followers: HashMap::new(),
            due: VecDeque::new(),
            search: ClosedSearch::default(),
            search_from: 0,
            asked: HashMap::new(),
            work: Arc::default(),
            counts: Counts::default(),
            measures,
            skipped,
            lost: 0,
            table,
        })
    }

    /// The kernel side.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The host's own numbers.
    pub fn host(&self) -> &(dyn Host + Send) {
        self.host.as_ref()
    }

    /// Notified when a sweep or another look has become due otherwise than by a
    /// doorbell.
    pub fn work(&self) -> Arc<Notify> {
        Arc::clone(&self.work)
    }

    /// Looks at all that is watched, and samples what is sampled.
    pub fn look_at_all(&mut self) {
        for index in self.registry.slots() {
            self.look(index);
        }
        self.sample();
        self.wake(true);
    }

    /// Whether [`Watcher::look_again`] has something to do.
    pub fn is_due(&self) -> bool {
        !self.due.is_empty() || !self.search.is_done()
    }

    /// Another turn for the group that has waited longest for one, and for the search for
    /// closed eventfds.
    pub fn look_again(&mut self) {
        if let Some(slot) = self.due.pop_front() {
            self.look(slot);
        }
        if !self.search.is_done() {
            self.search_again();
        }
    }

    /// Who waits for what.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What clients may do.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What was done so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// A slot's doorbell rang, or a sweep came by. A group that moves too fast is
    /// queued for another turn.
    pub fn look(&mut self, index: u32) {
        for _ in 0..LOOKS {
            let Some(slot) = self.source.slot(index).filter(|slot| self.may_look_at(index, slot)) else {
                return;
            };
            let (state, seen) = (slot.state(), take(slot));
            let begun = self.begin(index, &seen);
            let again = self.answer(index, state, seen);
            if begun && let Some(vault) = &self.vault {
                vault.state().end();
            }
            if !again {
                return;
            }
        }
        // Still out of the band just published, so the last word is not said.
        if !self.due.contains(&index) {
            self.due.push_back(index);
        }
        self.work.notify_one();
    }

    /// Records what was taken out of a slot until it is signalled; false where there is
    /// nothing to record.
    fn begin(&self, index: u32, seen: &Seen) -> bool {
        let Some(vault) = self.vault.as_ref().filter(|_| *seen != Seen::NOTHING) else { return false };
        vault.state().begin(&Unfinished { cgroup_id: self.id_of(index), seen: *seen });
        true
    }

    /// Signals what was seen, and publishes the next bands; true when usage is out of
    /// them already.
    fn answer(&mut self, index: u32, state: State, seen: Seen) -> bool {
        self.signal_events(index, &seen);
        let Some(group) = self.registry.group(index) else {
            self.release(index);
            return false;
        };
        if index == self.source.root().slot {
            return false;
        }
        let (id, was) = (group.id, group.scale(ControlFile::Usage).now());
        let sum_too = !group.scale(ControlFile::Memsw).is_empty();
        let now = match self.measure(id, sum_too) {
            Ok(now) => now,
            Err(error) => {
                // Nothing is lost: the sweep finds it pending.
                log::error!(memcg_cgroup_id = self.id_of(index); "{error}");
                self.give_back(index, seen);
                return false;
            }
        };
        let last = |on| self.last_of(id, on);
        let (memory, sum) = now.unwrap_or_else(|| {
            let sum = sum_too.then(|| last(ControlFile::Memsw)).flatten();
            (last(ControlFile::Usage).unwrap_or(was), sum)
        });
        self.step(index, ControlFile::Usage, seen.memory, memory);
        if let Some(sum) = sum {
            self.step(index, ControlFile::Memsw, seen.sum, sum);
        }
        if now.is_none() || !state.is_live() || state.generation() != id.generation {
            self.remove_group(index);
            return false;
        }
        let Some((memory, sum)) = self.publish(index) else {
            return false;
        };
        // Second half of the band protocol: read after publishing.
        !matches!(
            self.measure(id, sum_too),
            Ok(Some((now, now_sum)))
                if memory.holds(now) && now_sum.is_none_or(|now_sum| sum.holds(now_sum))
        )
    }

    /// Memory, and memory+swap where somebody waits for it; `None` when the group
    /// is gone.
    fn measure(&self, id: GroupId, sum_too: bool) -> Result<Option<(u64, Option<u64>)>> {
        let Some(memory) = self.source.usage(id)? else {
            return Ok(None);
        };
        if !sum_too {
            return Ok(Some((memory, None)));
        }
        Ok(self.source.sum(id)?.map(|sum| (memory, Some(sum))))
    }

    /// Publishes the bands around what was measured last: memory's, and that of
    /// memory+swap. `None` when there is nothing to do here any more, or for now.
    fn publish(&self, index: u32) -> Option<(Band, Band)> {
        let (group, slot) = (self.registry.group(index)?, self.source.slot(index)?);
        let shift = self.source.band_shift();
        let publish = |track: &Track<'_, _>, file| {
            let band = group.scale(file).band();
            (band, track.publish(band, shift))
        };
        let (memory, mut first) = publish(&slot.memory(), ControlFile::Usage);
        let mut sum = Band::EVERYTHING;
        if !group.scale(ControlFile::Memsw).is_empty() || slot.sum_band.get() != OPEN {
            let published = publish(&slot.sum(), ControlFile::Memsw);
            sum = published.0;
            first |= published.1;
        }
        if first && let Err(error) = self.source.end_epoch() {
            // Charges further down would not come here: begin again.
            log::error!("{error}");
            [slot.memory(), slot.sum()].iter().for_each(Track::open);
            slot.pending.xchg(1);
            return None;
        }
        Some((memory, sum))
    }

    /// What was seen, but for what has been signalled, is to be looked at again.
    fn give_back(&self, index: u32, seen: Seen) {
        if let Some(slot) = self.source.slot(index) {
            let Seen { memory, sum, .. } = seen;
            give_back(slot, &Seen { memory, sum, ..Seen::NOTHING });
        }
    }

    /// A reading that found no place in its slot came through the ring.
    pub fn add_reading(&self, index: u32, usage: u64) {
        if let Some(slot) = self.source.slot(index) {
            slot.memory().add(usage, self.source.band_shift());
        }
    }

    /// The same, of memory+swap.
    pub fn add_sum_reading(&self, index: u32, sum: u64) {
        if let Some(slot) = self.source.slot(index) {
            slot.sum().add(sum, self.source.band_shift());
        }
    }

    /// The safety net: finds what a lost doorbell or a skipped program left behind; and
    /// begins to look for closed eventfds.
    pub fn sweep(&mut self) {
        let skipped = self.source.skipped();
        let lost = self.losses();
        let all = skipped != self.skipped || lost != self.lost;
        if all {
            log::debug!("reading all watched groups again: {skipped} calls skipped, {lost} losses so far");
            self.counts.resyncs += 1;
        }
        self.tell_shortages();
        (self.skipped, self.lost) = (skipped, lost);
        let mut index = 0;
        // All slots after a loss: an OOM or a window of reclaim is told to others
        // than the group in whose slot it is.
        while all && let Some(slot) = self.source.slot(index) {
            if slot.pending.get() != 0 {
                self.look(index);
            }
            index += 1;
        }
        for index in self.registry.slots() {
            if all || self.source.slot(index).is_some_and(|slot| slot.pending.get() != 0) {
                self.look(index);
            }
        }
        self.look_above_the_deep();
        self.find_parents();
        self.follow_limits();
        if self.search.is_done() {
            self.search = self.search_closed();
            self.asked.clear();
        }
    }

    /// Whether doorbells were lost since the last sweep.
    pub fn lost_doorbells(&self) -> bool {
        self.losses() != self.lost
    }

    fn losses(&self) -> u64 {
        self.source.tally(Tally::RingFull)
    }
}

#[cfg(test)]
pub(crate) mod tests;
