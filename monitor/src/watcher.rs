//! From doorbell to signal: takes what the programs saw, lets the registry work
//! out what was crossed, signals, and publishes the next band.

mod ancestors;
mod closed;
mod event;
mod fair_queue;
mod groups;
mod lifetime;
mod limits;
mod measurements;
mod owners;
mod plan;
mod recovery;
mod register;
mod restore;
mod sample;
mod shared;
mod signal;
mod sweep;
mod turn;
mod undelivered;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        band::{Band, OPEN, Outside, Seen, Track, give_back},
        ring::LossKind,
        word::Word as _,
    },
};
use tokio::sync::Notify;

use crate::{
    cgroup::host::Host,
    error::Result,
    eventfd::{EventFd, Signaller},
    persist::{Persistence, Record, RecordId, Unrecorded},
    registry::{Account, Registry},
    source::{FileId, GroupId, Source},
    watcher::{
        ancestors::AncestorWalks,
        fair_queue::FairQueue,
        owners::Owners,
        plan::Payers,
        signal::Newcomers,
        sweep::Sweep,
        turn::{Task, Work},
        undelivered::UndeliveredSignals,
    },
};

pub use closed::ClosedSearch;
pub use event::{Cause, Event, EventSink};
pub use fair_queue::Payer;
pub use measurements::{CAUSES, Measurements};
pub use register::{Receipt, ReceivedEventFd, RegistrationRequest};
pub use restore::Restored;
pub use sample::Sampled;
pub use shared::{Guard, SharedWatcher};

/// Counts of what the watcher did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Signals given, each an increment of an eventfd.
    pub signals: u64,
    /// Signals that could not be given.
    pub failed_signals: u64,
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

/// The agent's heart: one kernel side, one registry, the eventfds.
pub struct Watcher<S> {
    source: S,
    host: Arc<dyn Host + Send + Sync>,
    registry: Registry,
    limits: Limits,
    /// Until when thresholds rest, and on which slot.
    rests: BTreeSet<(u64, u32)>,
    signaller: Signaller,
    /// What outlives this agent, where somebody keeps it.
    persistence: Option<Persistence>,
    /// For registrations that it does not record.
    unrecorded: Unrecorded,
    /// Registrations taken over whose clients may not have had their answer.
    unsure: Vec<(RecordId, Record)>,
    unsure_until: u64,
    eventfds: HashMap<FileId, EventFd>,
    /// The agent's own ([`Account::Agent`](crate::registry::Account)); no agent takes them over.
    own: HashMap<FileId, EventFd>,
    /// Each hears of its own registration.
    followers: HashMap<RecordId, EventSink>,
    /// Who registered an eventfd first: who pays for what it is owed.
    owners: Owners,
    /// Who pays for a slot's work: whose registrations are there.
    payers: HashMap<u32, Payers>,
    /// What is to be done to slots; each of them is one task.
    works: HashMap<u32, Work>,
    newcomers: Newcomers,
    climbs: AncestorWalks,
    turns: FairQueue<Task>,
    /// When the turn that is under way is to end.
    turn_ends: Instant,
    debts: UndeliveredSignals,
    sweep: Option<Sweep>,
    /// Whether something was to be sampled when that was asked last.
    sampling: bool,
    /// Limits that were written, and who is yet to follow.
    written: limits::Written,
    /// What the recursion guard kept from the programs, and what is made up for it.
    skips: recovery::SkippedRuns,
    /// The latest sweep's, for closed eventfds, and whether that is in the line.
    search: ClosedSearch,
    search_queued: bool,
    /// Not before then is one begun for want of room, by the host's clock.
    search_from: u64,
    /// Where to go on with accounts whose eventfds are too many for one turn.
    asked: HashMap<Account, FileId>,
    work: Arc<Notify>,
    counts: Counts,
    measures: Measurements,
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
    /// None at present.
    pub fn new(source: S, host: Box<dyn Host + Send + Sync>, limits: Limits) -> Result<Self> {
        let (misses, measures) = (source.misses(), Measurements::new(&source));
        let skips = recovery::SkippedRuns::new(misses, source.tally(LossKind::OomJoined));
        let table = groups::Rounds::new(&source);
        let work = Arc::<Notify>::default();
        Ok(Self {
            source,
            host: Arc::from(host),
            registry: Registry::default(),
            limits,
            rests: BTreeSet::new(),
            signaller: Signaller::new(Arc::clone(&work)),
            persistence: None,
            unrecorded: Unrecorded::default(),
            unsure: Vec::new(),
            unsure_until: 0,
            eventfds: HashMap::new(),
            own: HashMap::new(),
            followers: HashMap::new(),
            owners: Owners::default(),
            payers: HashMap::new(),
            works: HashMap::new(),
            newcomers: Newcomers::default(),
            climbs: AncestorWalks::default(),
            turns: FairQueue::default(),
            turn_ends: Instant::now(),
            debts: UndeliveredSignals::default(),
            sweep: None,
            sampling: false,
            written: limits::Written::default(),
            skips,
            search: ClosedSearch::default(),
            search_queued: false,
            search_from: 0,
            asked: HashMap::new(),
            work,
            counts: Counts::default(),
            measures,
            skipped: misses.charges,
            lost: 0,
            table,
        })
    }

    /// The kernel side.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The host's own numbers.
    pub fn host(&self) -> &(dyn Host + Send + Sync) {
        self.host.as_ref()
    }

    /// The same, for what is read without the watcher.
    pub fn shared_host(&self) -> Arc<dyn Host + Send + Sync> {
        Arc::clone(&self.host)
    }

    /// By which way eventfds are signalled.
    pub const fn signaller(&self) -> &Signaller {
        &self.signaller
    }

    /// Notified when a sweep or another look has become due otherwise than by a
    /// doorbell.
    pub fn work(&self) -> Arc<Notify> {
        Arc::clone(&self.work)
    }

    /// Has all that is watched looked at, and all rests ended, in turns.
    pub fn look_at_all(&mut self) {
        for index in self.registry.slots() {
            self.ring(index, 0);
        }
        self.wake(true);
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
        slot.forget_kept();
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
            let Seen { memory, sum, late, .. } = seen;
            give_back(slot, &Seen { memory, sum, late, ..Seen::NOTHING });
        }
    }

    /// A reading that found no place in its slot came through the ring.
    pub fn add_reading(&self, index: u32, reading: u64) {
        if let Some(slot) = self.source.slot(index) {
            slot.memory().add(Outside::from_word(reading));
        }
    }

    /// The same, of memory+swap.
    pub fn add_sum_reading(&self, index: u32, reading: u64) {
        if let Some(slot) = self.source.slot(index) {
            slot.sum().add(Outside::from_word(reading));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
