//! The way from a doorbell to a signal: takes what the programs saw, lets the registry work out
//! which thresholds were crossed, signals, and publishes the next band.

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

/// Counters of the watcher's work since the agent started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Signals given, each an increment of an eventfd.
    pub signals: u64,
    /// Signals that could not be given.
    pub failed_signals: u64,
    /// Times that all watched groups were read again after a loss.
    pub resyncs: u64,
}

/// Bounds on what clients may register.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Registrations that each account may have, except [`Account::Privileged`] and the agent's
    /// own.
    pub quota: u64,
    /// Registrations that there may be in all, the agent's own not counted, divided as
    /// [`share`](crate::registry::share) says.
    pub registrations: u64,
    /// Eventfds that can be registered at once, divided likewise.
    pub eventfds: u64,
    /// Milliseconds of hold-off for a threshold that was crossed [`BURST`] times within that
    /// time; 0: none.
    ///
    /// [`BURST`]: crate::registry::BURST
    pub rest: u64,
}

/// The agent's core: one kernel side, one registry, and the eventfds.
pub struct Watcher<S> {
    source: S,
    host: Arc<dyn Host + Send + Sync>,
    registry: Registry,
    limits: Limits,
    /// Ends of hold-offs, by the host's clock, each with the slot of its threshold.
    holdoffs: BTreeSet<(u64, u32)>,
    signaller: Signaller,
    /// State that outlives this agent, where a descriptor store keeps it.
    persistence: Option<Persistence>,
    /// Record ids for registrations that are not recorded in `persistence`.
    unrecorded: Unrecorded,
    /// Registrations taken over whose clients may not have received the reply.
    unsure: Vec<(RecordId, Record)>,
    unsure_until: u64,
    eventfds: HashMap<FileId, EventFd>,
    /// The agent's own eventfds ([`Account::Agent`](crate::registry::Account)), which no later
    /// agent takes over.
    own: HashMap<FileId, EventFd>,
    /// Sinks of followers, by the registration that each follows.
    followers: HashMap<RecordId, EventSink>,
    /// The account that registered an eventfd first, which pays for its undelivered signals.
    owners: Owners,
    /// The accounts with registrations on a slot, which pay for its work.
    payers: HashMap<u32, Payers>,
    /// Pending work by slot; the work of one slot is one task.
    works: HashMap<u32, Work>,
    newcomers: Newcomers,
    climbs: AncestorWalks,
    turns: FairQueue<Task>,
    /// The time at which the present turn is to end.
    turn_ends: Instant,
    undelivered: UndeliveredSignals,
    sweep: Option<Sweep>,
    /// Whether anything had to be sampled at the last call of [`Watcher::samples_anew`].
    sampling: bool,
    /// The state of following limits that were written.
    written: limits::Written,
    /// Calls that the recursion guard kept from the programs, and how far they are made up for.
    skips: recovery::SkippedRuns,
    /// The latest search of a sweep for closed eventfds, and whether it is queued.
    search: ClosedSearch,
    search_queued: bool,
    /// The earliest time of the next search for want of room, by the host's clock.
    search_from: u64,
    /// The eventfd to continue at, for accounts with too many eventfds for one turn.
    resume_at: HashMap<Account, FileId>,
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
    /// Makes a watcher without registrations.
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
            holdoffs: BTreeSet::new(),
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
            undelivered: UndeliveredSignals::default(),
            sweep: None,
            sampling: false,
            written: limits::Written::default(),
            skips,
            search: ClosedSearch::default(),
            search_queued: false,
            search_from: 0,
            resume_at: HashMap::new(),
            work,
            counts: Counts::default(),
            measures,
            skipped: misses.charges,
            lost: 0,
            table,
        })
    }

    /// The kernel side that this watcher reads.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// The host whose clock and files this watcher reads.
    pub fn host(&self) -> &(dyn Host + Send + Sync) {
        self.host.as_ref()
    }

    /// Another reference to the host, for reads without the watcher.
    pub fn shared_host(&self) -> Arc<dyn Host + Send + Sync> {
        Arc::clone(&self.host)
    }

    /// The lane through which eventfds are signalled.
    pub const fn signaller(&self) -> &Signaller {
        &self.signaller
    }

    /// The notification that a sweep or another look has become due without a doorbell.
    pub fn work(&self) -> Arc<Notify> {
        Arc::clone(&self.work)
    }

    /// Queues a look at all watched slots, and ends all hold-offs, in turns.
    pub fn look_at_all(&mut self) {
        for index in self.registry.slots() {
            self.ring(index, 0);
        }
        self.wake(true);
    }

    /// The registrations that this watcher serves.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The bounds on what clients may register.
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The counters of work done so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Reads memory, and with `sum_too` memory+swap, in pages; `None` when the group is gone.
    fn measure(&self, id: GroupId, sum_too: bool) -> Result<Option<(u64, Option<u64>)>> {
        let Some(memory) = self.source.usage(id)? else {
            return Ok(None);
        };
        if !sum_too {
            return Ok(Some((memory, None)));
        }
        Ok(self.source.sum(id)?.map(|sum| (memory, Some(sum))))
    }

    /// Publishes the bands of memory and of memory+swap around what was measured last. `None`
    /// when the slot has nothing to do any more, or for now.
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
            // Charges further down would not reach this band: begin again.
            log::error!("{error}");
            [slot.memory(), slot.sum()].iter().for_each(Track::open);
            slot.pending.xchg(1);
            return None;
        }
        Some((memory, sum))
    }

    /// Puts readings back into their slot for another look, without what has been signalled.
    fn give_back(&self, index: u32, seen: Seen) {
        if let Some(slot) = self.source.slot(index) {
            let Seen { memory, sum, late, .. } = seen;
            give_back(slot, &Seen { memory, sum, late, ..Seen::NOTHING });
        }
    }

    /// Adds a reading of memory that came through the ring because its slot had no place for it.
    pub fn add_reading(&self, index: u32, reading: u64) {
        if let Some(slot) = self.source.slot(index) {
            slot.memory().add(Outside::from_word(reading));
        }
    }

    /// Adds such a reading of memory+swap.
    pub fn add_sum_reading(&self, index: u32, reading: u64) {
        if let Some(slot) = self.source.slot(index) {
            slot.sum().add(Outside::from_word(reading));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
