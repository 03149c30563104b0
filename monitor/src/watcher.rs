//! From a doorbell to a signal: takes what the programs saw, lets the registry work out which
//! thresholds were crossed, signals, and publishes the next band. The main path is in `look`.
//!
//! A watcher owns its parts, each with its state in its own file. They import each other in one
//! direction, in three layers:
//!
//! * `core` has what all work uses: the kernel side, the registry, `records` (what outlives the
//!   agent), `delivery` (eventfds and followers), `turns` (what waits for a turn), `newcomers`,
//!   `holdoffs`. None of these knows the core; they receive what they need as arguments.
//! * Parts with work of their own receive the core: `look`, `sweep` (with `recovery` and
//!   `parents`), `closed`, `percent_limits`, `sample`; `register` and `restore` begin registrations.
//! * The watcher passes calls to its parts, and each task to the part that does it. Only `shared`,
//!   its lock, and `watching`, what patterns of groups need of it, are above it.

mod ancestors;
mod arrivals;
mod awaited;
mod bounds;
mod closed;
mod core;
mod delivery;
mod due;
mod event;
mod eventfds;
mod fair_queue;
mod fanout;
mod hierarchy;
mod holdoffs;
mod killed;
mod look;
mod measurements;
mod newcomers;
mod parents;
mod payers;
mod percent_limits;
mod quantity;
mod recorded;
mod recording;
mod records;
mod recovery;
mod register;
mod restore;
mod sample;
mod shared;
mod sweep;
mod tap;
mod turns;
mod undelivered;
mod watching;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use monitor_common::protocol::band::Outside;
use nix::errno::Errno;
use tokio::sync::Notify;

use crate::{
    cgroup::host::Host,
    error::Result,
    eventfd::Signaller,
    persist::{Persistence, Recovered},
    registry::{Account, Registry},
    source::{GroupId, Identify, Source},
    watcher::{
        closed::ClosedEventFds,
        core::Core,
        look::Looks,
        percent_limits::PercentLimits,
        sample::Sampling,
        sweep::Sweeps,
        turns::{ROOM, TURN, Task},
    },
};

pub use arrivals::{Arrival, Early};
pub use bounds::Limits;
pub use closed::ClosedSearch;
pub use event::{CAUSES, Cause, Event, EventSink};
pub use fair_queue::Payer;
pub use measurements::Measurements;
pub use register::{Receipt, ReceivedEventFd, RegistrationRequest};
pub use restore::Restored;
pub use sample::Sampled;
pub use shared::SharedWatcher;
pub use tap::{RecorderTap, TapReceiver, Tapped, monotonic};
pub use watching::Lived;

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

/// The registrations on one kernel side, and the work that signals them.
pub struct Watcher<S> {
    core: Core<S>,
    looks: Looks,
    sweeps: Sweeps,
    closed: ClosedEventFds,
    percent_limits: PercentLimits,
    sampling: Sampling,
}

impl<S: std::fmt::Debug> std::fmt::Debug for Watcher<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watcher")
            .field("source", &self.core.source)
            .field("registry", &self.core.registry)
            .finish_non_exhaustive()
    }
}

impl<S: Source> Watcher<S> {
    /// Makes a watcher without registrations.
    ///
    /// # Errors
    /// None at present.
    #[expect(clippy::unnecessary_wraps, reason = "all callers, fuzz targets among them, expect a result")]
    pub fn new(source: S, host: Box<dyn Host + Send + Sync>, limits: Limits) -> Result<Self> {
        let sweeps = Sweeps::new(&source);
        Ok(Self {
            core: Core::new(source, host, limits),
            looks: Looks::default(),
            sweeps,
            closed: ClosedEventFds::default(),
            percent_limits: PercentLimits::default(),
            sampling: Sampling::default(),
        })
    }

    /// The kernel side that this watcher reads.
    pub const fn source(&self) -> &S {
        &self.core.source
    }

    /// Lets a recorder hear what happens.
    pub fn set_tap(&mut self, tap: RecorderTap) {
        self.core.delivery.tap = Some(tap);
        self.core.registrations_changed();
    }

    /// Tells the recorder of a group that was made.
    pub fn made(&self, slot: u32) {
        if let Some(tap) = &self.core.delivery.tap {
            tap.made(slot);
        }
    }

    /// Begins to record a group, or ends it; false when the group is gone.
    ///
    /// # Errors
    /// The programs could not be queried.
    pub fn set_recorded(&mut self, group: GroupId, cgroup_id: u64, is_recorded: bool) -> Result<bool> {
        if let Some(tap) = &mut self.core.delivery.tap {
            tap.set_recorded(cgroup_id, is_recorded);
        }
        recording::set_recorded(&mut self.core, group, is_recorded)
    }

    /// Another reference to the host, for reads without the watcher.
    pub fn shared_host(&self) -> Arc<dyn Host + Send + Sync> {
        Arc::clone(&self.core.host)
    }

    /// The lane through which eventfds are signalled.
    pub const fn signaller(&self) -> &Signaller {
        self.core.delivery.signaller()
    }

    /// The notification that a sweep or another look has become due without a doorbell.
    pub fn work(&self) -> Arc<Notify> {
        self.core.turns.notification()
    }

    /// The registrations that this watcher serves.
    pub const fn registry(&self) -> &Registry {
        &self.core.registry
    }

    /// The bounds on what clients may register.
    pub const fn limits(&self) -> &Limits {
        &self.core.limits
    }

    /// The lowest limit from the group in a slot up to the root, in pages: what percents are of;
    /// `u64::MAX` where there is none.
    ///
    /// # Errors
    /// The kernel cannot be queried.
    pub fn effective_limit(&self, slot: u32) -> Result<u64> {
        self.core.effective_limit(slot)
    }

    /// The counters of work done so far.
    pub const fn counts(&self) -> Counts {
        let (signals, failed_signals) = self.core.delivery.counts();
        Counts { signals, failed_signals, resyncs: self.sweeps.resyncs() }
    }

    /// The counters since the agent started.
    pub const fn measures(&self) -> &Measurements {
        self.core.delivery.measures()
    }

    /// Counts a registration that a frontend has refused.
    pub fn refused(&mut self, errno: Errno) {
        self.core.delivery.count_refusal(errno);
    }

    /// Notes that a slot is to be looked at, since a doorbell rang at `rung` (`bpf_ktime_get_ns`;
    /// 0: not known). The cost does not grow with the number of calls.
    pub fn ring(&mut self, slot: u32, rung: u64) {
        self.core.ring(slot, rung);
    }

    /// Adds a reading of memory that came through the ring because its slot had no place for it.
    pub fn add_reading(&self, index: u32, reading: u64) {
        if let Some(slot) = self.core.source.slot(index) {
            slot.memory().add(Outside::from_word(reading));
        }
    }

    /// Adds such a reading of memory+swap.
    pub fn add_sum_reading(&self, index: u32, reading: u64) {
        if let Some(slot) = self.core.source.slot(index) {
            slot.sum().add(Outside::from_word(reading));
        }
    }

    /// Begins to read limits, after some limit was written.
    pub fn limits_written(&mut self) {
        self.percent_limits.limits_written(&mut self.core);
    }

    /// Whether nothing waits for a turn.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.core.turns.is_empty()
    }

    /// Runs one bounded piece of work, for the payer that has had least time lately; false where
    /// there is none.
    pub fn turn(&mut self) -> bool {
        self.core.take_from_lane();
        let Some((payer, mut task)) = self.core.turns.next() else { return false };
        let (start, mut room) = (self.core.turns.begin(), ROOM);
        loop {
            self.dispatch(task, &mut room, TURN.saturating_sub(start.elapsed()));
            room = room.saturating_sub(1);
            if room == 0 || start.elapsed() >= TURN {
                break;
            }
            let Some(next) = self.core.turns.next_of(payer) else { break };
            task = next;
        }
        self.core.turns.charge(payer, start);
        true
    }

    /// Passes a task to the part that does it.
    fn dispatch(&mut self, task: Task, room: &mut usize, time: Duration) {
        let core = &mut self.core;
        match task {
            Task::Slot(slot) => self.looks.work_on(core, slot, room),
            Task::File(file) => core.deliver(file, room, time),
            Task::Sweep => self.sweeps.go_on(core, &mut self.closed, &mut self.percent_limits, room),
            Task::Search => {
                self.closed.go_on(core);
                *room = 0;
            }
            // Counted again: the address may be another eventfd's by now.
            Task::Forget(file) if core.registry.has_file(file) && core.is_closed(file) => {
                core.forget_file(file, room);
            }
            Task::Forget(_) => {}
            Task::Limits => self.percent_limits.go_on(core, room),
        }
    }

    /// Runs turns until nothing is left to do, or the time is over.
    pub fn catch_up_within(&mut self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && self.turn() {}
    }

    /// Runs a piece of work begun on a slot that has to end before a registration is added there,
    /// so that the two stay apart; whether more of it is left.
    pub fn goes_on_with(&mut self, slot: u32) -> bool {
        self.looks.goes_on_with(&mut self.core, slot)
    }

    /// Completes the table after the enumeration: finds parents of groups that were read or made
    /// before their parent had a slot, and gives back slots that an agent left behind when it was
    /// killed.
    pub fn take_stock(&mut self) {
        parents::take_stock(&mut self.core);
    }

    /// Takes the slots of these groups from them, which have gone though no program was called for that.
    /// A slot that is another group's by now stays.
    pub fn depart(&mut self, groups: &[GroupId]) {
        groups.iter().for_each(|group| recovery::depart(&mut self.core, *group));
    }

    /// Whether anything that happens in groups is awaited: by registrations, by those who watch for new
    /// groups, or by the black box.
    pub fn is_awaited(&self) -> bool {
        let core = &self.core;
        !core.registry.is_empty() || core.arrivals.are_wanted() || core.delivery.tap.is_some()
    }

    /// Begins a sweep: finds what a lost doorbell or a skipped program left behind, and then
    /// closed eventfds, in turns.
    pub fn sweep(&mut self) {
        self.sweeps.begin(&mut self.core, &mut self.percent_limits);
    }

    /// Begins a sweep where doorbells were lost; one at a time, and the next only once that one
    /// has ended.
    pub fn sweep_after_loss(&mut self) {
        self.sweeps.begin_after_loss(&mut self.core);
    }

    /// Begins a search for closed eventfds among all registered ones.
    #[must_use]
    pub fn search_closed(&self) -> ClosedSearch {
        ClosedSearch::new(&self.core.registry)
    }

    /// Runs one turn of a search; true while there is more to do.
    pub fn search_on(&mut self, search: &mut ClosedSearch) -> bool {
        search.go_on(&mut self.core)
    }

    /// Ends all closed eventfds in one turn.
    #[cfg(any(test, fuzzing))]
    pub fn end_closed(&mut self) {
        closed::end_all(&mut self.core);
    }

    /// Ends closed eventfds that an account has registrations on: of up to 8,192 all, of more
    /// some, beginning where the last call ended; at most 64 at once.
    pub fn end_closed_of(&mut self, account: Account) {
        self.closed.end_some_of(&mut self.core, account);
    }

    /// Whether any registration has to be sampled.
    #[cfg(test)]
    pub fn samples(&self) -> bool {
        sample::has_any(&self.core)
    }

    /// Whether anything has to be sampled now, and had not at the last call.
    pub fn samples_anew(&mut self) -> bool {
        self.sampling.has_begun(&self.core)
    }

    /// The quantities to be sampled, for a thread that may block.
    pub fn to_be_sampled(&self) -> Vec<Sampled> {
        sample::wanted(&self.core)
    }

    /// Takes in a sample: thresholds that were crossed since the last one are signalled in turns.
    /// A change between two samples that was undone is not seen.
    pub fn sampled(&mut self, sampled: &Sampled) {
        sample::take_in(&mut self.core, sampled);
    }

    /// Pages by which the root's usage may move before it crosses anything, at least; `None`
    /// where no registration is on it.
    pub fn root_distance(&self) -> Option<u64> {
        sample::root_distance(&self.core)
    }

    /// Whether a group is still in its slot, and not going.
    pub(crate) fn is_there(&self, group: GroupId) -> bool {
        hierarchy::is_there(&self.core.source, group)
    }

    /// Whether it matters that a requester is privileged, and uses `Account::Privileged`: its
    /// account has half of its quota or more, or finds no room.
    pub fn is_near_bound(&self, account: Account) -> bool {
        self.core.limits.is_near(account, &self.core.registry, &self.core.delivery)
    }

    /// Whether an account has room for one more registration.
    pub fn has_room(&self, account: Account) -> bool {
        self.core.limits.has_room(account, &self.core.registry)
    }

    /// Registers a trigger for a client.
    ///
    /// # Errors
    /// `EINVAL` when the group is going or gone, as the kernel's `css_tryget_online`; `EDQUOT`
    /// when the account has as many as one may have; `ENOMEM` when there is no room for more
    /// ([`Watcher::has_room`]), or as many eventfds as there may be; `ETOOMANYREFS` or `ENOBUFS`
    /// when it cannot be kept for the next agent; `EOPNOTSUPP` when the programs cannot see that
    /// event on this kernel.
    pub fn register(&mut self, request: RegistrationRequest) -> Result<Receipt, Errno> {
        register::register(&mut self.core, &mut self.looks, &mut self.closed, request)
    }

    /// Confirms that the client has received the reply.
    pub fn confirm(&self, receipt: Receipt) {
        receipt.confirm(&self.core);
    }

    /// Takes over what an earlier agent has `left`, and keeps registrations from now on in
    /// `persistence`. With `instance`, the maps are those that the slots of its records are in;
    /// `identity` identifies the eventfds.
    ///
    /// # Errors
    /// The programs could not be queried.
    pub fn restore(
        &mut self,
        persistence: Persistence,
        left: Recovered,
        instance: u64,
        identity: &dyn Identify,
    ) -> Result<Restored> {
        let (core, percent_limits) = (&mut self.core, &mut self.percent_limits);
        restore::restore(core, percent_limits, persistence, left, instance, identity)
    }

    /// Signals each eventfd with a client's registration once: no agent will signal it any more.
    /// Returns the number of eventfds that were signalled, and of those that could not be.
    pub fn signal_the_end(&mut self) -> (u64, u64) {
        self.core.delivery.signal_the_end(&self.core.registry)
    }

    /// Removes the persistent state, since this agent ends for good.
    pub fn leave_nothing(&self) {
        self.core.records.give_up_all();
    }

    /// The number of agents that took over from an earlier one, with its registrations.
    pub fn restarts(&self) -> u64 {
        self.core.records.restarts()
    }
}

#[cfg(test)]
pub(crate) mod tests;
