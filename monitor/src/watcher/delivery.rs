//! Delivery of signals: worked out and recorded, then given, then struck off the record. If an
//! agent is killed anywhere in between, the next one signals what was not struck off: the last
//! signals may be given twice, and none is lost.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::errno::Errno;
use tokio::sync::Notify;

use crate::{
    error::Result,
    eventfd::{EventFd, SignalOutcome, Signaller},
    persist::{Record, RecordId},
    registry::{Account, Registry, give_back},
    source::{FileId, Source},
    watcher::{
        event::{Cause, Event, EventSink},
        eventfds::EventFds,
        fair_queue::Payer,
        measurements::Measurements,
        records::Records,
        tap::RecorderTap,
        turns::{Task, Turns},
        undelivered::{Next, PendingSignals, UndeliveredSignals},
    },
};

/// Eventfds yet to be closed that are not counted as held: an eventfd that gives way makes room
/// at once. They are a part of the 1,024 descriptors beside `--max-eventfds`.
const CLOSING: u64 = 256;

/// Time in which users whose signals take long are signalled at the agent's end.
const LAST_SIGNALS: Duration = Duration::from_secs(2);
/// Time for one signal at the agent's end.
const ONE_SIGNAL: Duration = Duration::from_micros(200);
/// The serial of signals at the agent's end, which no other signal has.
const LAST_SERIAL: u64 = u64::MAX;

/// The eventfds and followers of all registrations, and what is still to be delivered to them.
#[derive(Debug)]
pub(super) struct Delivery {
    signaller: Signaller,
    eventfds: EventFds,
    /// Sinks of followers, by the registration that each follows.
    followers: HashMap<RecordId, EventSink>,
    undelivered: UndeliveredSignals,
    /// PendingSignals given, and those that could not be.
    given: u64,
    failed: u64,
    measures: Measurements,
    /// Passes events to the recorder.
    pub(super) tap: Option<RecorderTap>,
}

impl Delivery {
    /// Makes one without eventfds; `finished` is notified when a lane has given signals.
    pub(super) fn new(source: &impl Source, finished: Arc<Notify>) -> Self {
        Self {
            signaller: Signaller::new(finished),
            eventfds: EventFds::default(),
            followers: HashMap::new(),
            undelivered: UndeliveredSignals::default(),
            given: 0,
            failed: 0,
            measures: Measurements::new(source),
            tap: None,
        }
    }

    pub(super) const fn signaller(&self) -> &Signaller {
        &self.signaller
    }

    /// The signals given, and those that could not be.
    pub(super) const fn counts(&self) -> (u64, u64) {
        (self.given, self.failed)
    }

    pub(super) const fn measures(&self) -> &Measurements {
        &self.measures
    }

    /// Counts a registration that a frontend has refused.
    pub(super) fn count_refusal(&mut self, errno: Errno) {
        self.measures.refused(errno);
    }

    /// Does what a sweep does here: retries what the kernel refused, and logs new losses.
    pub(super) fn sweep(&mut self, source: &impl Source) {
        self.signaller.try_again();
        self.measures.log_shortages(source);
    }

    /// Whether the agent holds an eventfd, perhaps only for signals of ended registrations.
    pub(super) fn holds(&self, file: FileId) -> bool {
        self.eventfds.has(file)
    }

    /// Takes in an eventfd that an earlier agent has kept.
    pub(super) fn take_in(&mut self, file: FileId, eventfd: EventFd) {
        self.eventfds.insert(file, eventfd);
    }

    /// Keeps an eventfd that was taken in for the next agent, by its present name.
    ///
    /// # Errors
    /// The eventfd cannot be sent into a stash.
    pub(super) fn keep(&self, records: &mut Records, file: FileId) -> Result<()> {
        let clients = self.eventfds.clients();
        clients.get(&file).map_or(Ok(()), |eventfd| records.keep(file, eventfd, clients))
    }

    /// Makes `account` the owner of an eventfd, unless it has one already.
    pub(super) fn set_owner(&mut self, file: FileId, account: Account) {
        self.eventfds.set_owner(file, account);
    }

    /// Takes in the eventfd, if it is new, and records the registration.
    ///
    /// # Errors
    /// `ETOOMANYREFS` or `ENOBUFS`: it cannot be kept for the next agent.
    pub(super) fn admit(
        &mut self,
        record: &Record,
        eventfd: EventFd,
        records: &mut Records,
    ) -> std::result::Result<RecordId, Errno> {
        let file = record.file;
        // An eventfd that is still held may have undelivered signals of ended registrations.
        let is_new = !self.holds(file);
        if is_new {
            self.set_owner(file, record.account);
            if record.account == Account::Agent {
                self.eventfds.insert_own(file, eventfd);
            } else if let Err(error) = records.keep(file, &eventfd, self.eventfds.clients()) {
                self.eventfds.remove_owner(file);
                return Err(not_kept(&error));
            } else {
                self.eventfds.insert(file, eventfd);
            }
        }
        records.enter(record).map_err(|error| {
            if is_new {
                self.drop_file(file, records);
            }
            not_kept(&error)
        })
    }

    /// The eventfds that count against an account, and those that count in all: held, or in a long
    /// queue to be closed.
    pub(super) fn counted(&self, account: Account) -> (u64, u64) {
        let (theirs, all) = self.signaller.closing(account);
        let owned = self.eventfds.owned_by(account) + theirs.saturating_sub(CLOSING);
        (owned, self.eventfds.clients().len() as u64 + all.saturating_sub(CLOSING))
    }

    /// The agent's references to an eventfd: one, and for a client's those of the descriptor stash.
    pub(super) fn references(&self, file: FileId, records: &Records) -> u64 {
        1 + if self.eventfds.is_own(file) { 0 } else { records.stash_references() }
    }

    /// Moves all kept eventfds into new stashes.
    pub(super) fn repack(&self, records: &mut Records) {
        records.repack(self.eventfds.clients());
    }

    /// Closes eventfds without registrations or undelivered signals.
    pub(super) fn close_unused(&mut self, registry: &Registry) {
        let undelivered = &self.undelivered;
        self.eventfds.retain(|file| registry.has_file(file) || undelivered.has(file));
    }

    /// Closes an eventfd without registrations.
    pub(super) fn drop_file(&mut self, file: FileId, records: &mut Records) {
        if let Some((owner, eventfd)) = self.eventfds.remove(file) {
            self.signaller.close(owner, eventfd);
        }
        records.let_go(file, self.eventfds.clients());
    }

    /// The payer for the signals of an eventfd.
    pub(super) fn payer_of(&self, file: FileId) -> Payer {
        Payer::Account(self.eventfds.owner(file))
    }

    /// Adds the follower of a registration.
    pub(super) fn follow(&mut self, record_id: RecordId, follower: EventSink) {
        self.followers.insert(record_id, follower);
    }

    /// Removes the follower of a registration.
    pub(super) fn unfollow(&mut self, record_id: RecordId) {
        self.followers.remove(&record_id);
    }

    pub(super) fn has_followers(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Passes an event to the follower of a registration, if it has one.
    pub(super) fn notify_follower(&mut self, record_id: RecordId, event: &Event) {
        if let Some(tap) = &self.tap {
            tap.signalled(event);
        }
        if let Some(follower) = self.followers.get_mut(&record_id)
            && !follower.deliver(event)
        {
            self.followers.remove(&record_id);
        }
    }

    /// Removes the records and followers of registrations that have ended.
    pub(super) fn strike_out(&mut self, record_ids: &[RecordId], records: &mut Records) {
        for record_id in record_ids {
            self.followers.remove(record_id);
            records.leave(*record_id);
        }
        give_back(&mut self.followers);
    }

    /// Adds signals for a registration, and records them; a turn of their own gives them.
    pub(super) fn add(&mut self, signals: PendingSignals, records: &Records, turns: &mut Turns) {
        if signals.count == 0 || !self.holds(signals.file) {
            return;
        }
        // A removal is recorded by the record itself, which goes when it is signalled.
        if signals.cause != Cause::REMOVED {
            records.add_signals(signals.record_id, signals.count);
        }
        self.add_recorded(signals, turns);
    }

    /// Adds signals that are recorded already.
    pub(super) fn add_recorded(&mut self, signals: PendingSignals, turns: &mut Turns) {
        if self.undelivered.add(signals) {
            turns.push(self.payer_of(signals.file), Task::File(signals.file));
        }
    }

    /// Whether an eventfd has undelivered signals.
    pub(super) fn has_undelivered(&self, file: FileId) -> bool {
        self.undelivered.has(file)
    }

    /// Drops the undelivered signals of a closed eventfd.
    pub(super) fn discard(&mut self, file: FileId, records: &mut Records) {
        let removed = self.undelivered.discard(file);
        self.strike_out(&removed, records);
    }

    /// Gives the signals of an eventfd, as many as one turn allows.
    pub(super) fn deliver(
        &mut self,
        file: FileId,
        room: &mut usize,
        time: Duration,
        registry: &Registry,
        records: &mut Records,
        turns: &mut Turns,
    ) {
        let Some(eventfd) = self.eventfds.get(file) else {
            self.undelivered.discard(file);
            return;
        };
        let Some((serial, signals)) = self.undelivered.batch(file, room) else { return };
        match self.signaller.signal(self.eventfds.owner(file), serial, eventfd, signals, time) {
            Ok(SignalOutcome::Now(given)) => {
                self.strike_off_given(file, given, registry, records);
            }
            Ok(SignalOutcome::Later) => return self.undelivered.set_sent(file, serial),
            Err(errno) => {
                log::error!(memcg_errno = errno as i32; "an eventfd could not be signalled (io_submit): {errno}");
                self.strike_off_failed(file, signals, records);
            }
        }
        self.after_signals(file, registry, records, turns);
    }

    /// Takes the results of signals that the lane has given.
    pub(super) fn take_from_lane(&mut self, registry: &Registry, records: &mut Records, turns: &mut Turns) {
        for done in self.signaller.done() {
            let Some(file) = self.undelivered.take_sent(done.serial) else { continue };
            match done.outcome {
                Ok(()) => self.strike_off_given(file, done.count, registry, records),
                Err(errno) => {
                    log::error!(memcg_errno = errno as i32; "an eventfd could not be signalled (write): {errno}");
                    self.strike_off_failed(file, done.count, records);
                }
            }
            self.after_signals(file, registry, records, turns);
        }
    }

    fn strike_off_given(&mut self, file: FileId, signals: u64, registry: &Registry, records: &mut Records) {
        let is_own = registry.is_own(file);
        let rung = self.undelivered.take_rung(file);
        self.strike_off(file, signals, records, |delivery, cause, count| {
            if !is_own {
                delivery.given += count;
                delivery.measures.signalled(cause, count);
            }
        });
        if !is_own {
            self.measures.took(rung);
        }
    }

    fn strike_off_failed(&mut self, file: FileId, signals: u64, records: &mut Records) {
        self.failed += signals;
        self.strike_off(file, signals, records, |_, _, _| ());
    }

    /// Takes `signals` off the undelivered ones, and off the records.
    fn strike_off(
        &mut self,
        file: FileId,
        mut signals: u64,
        records: &mut Records,
        mut each: impl FnMut(&mut Self, usize, u64),
    ) {
        while signals > 0 {
            let Some(struck) = self.undelivered.strike_off(file, signals) else { return };
            signals -= struck.count;
            if struck.cause != Cause::REMOVED {
                records.strike_off(struck.record_id, struck.count);
            } else if struck.is_all {
                self.strike_out(&[struck.record_id], records);
            }
            each(self, struck.cause, struck.count);
        }
    }

    /// Signals each client's eventfd that has registrations once, all of them within about
    /// [`LAST_SIGNALS`]. Returns the numbers of those signalled, and of those that were not.
    pub(super) fn signal_the_end(&mut self, registry: &Registry) -> (u64, u64) {
        let (mut given, mut failed, mut later) = (0, 0, 0);
        let signaller = &mut self.signaller;
        // What the lane has done until now is of no further use.
        drop(signaller.done());
        for (file, eventfd) in self.eventfds.clients().iter().filter(|(file, _)| registry.has_file(**file)) {
            match signaller.signal(self.eventfds.owner(*file), LAST_SERIAL, eventfd, 1, ONE_SIGNAL) {
                Ok(SignalOutcome::Now(_)) => given += 1,
                Ok(SignalOutcome::Later) => later += 1,
                Err(errno) => {
                    log::error!(memcg_errno = errno as i32; "an eventfd could not be signalled (io_submit): {errno}");
                    failed += 1;
                }
            }
        }
        let end = Instant::now() + LAST_SIGNALS;
        while later > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            for done in signaller.done().into_iter().filter(|done| done.serial == LAST_SERIAL) {
                later -= 1;
                *(if done.outcome.is_ok() { &mut given } else { &mut failed }) += 1;
            }
        }
        (given, failed + later)
    }

    /// Queues what is left for another turn, or lets go of an eventfd without registrations.
    fn after_signals(&mut self, file: FileId, registry: &Registry, records: &mut Records, turns: &mut Turns) {
        match self.undelivered.next(file) {
            Next::Queue => turns.push(self.payer_of(file), Task::File(file)),
            Next::Done if !registry.has_file(file) => self.drop_file(file, records),
            Next::Done | Next::Nothing => {}
        }
    }
}

#[cfg(test)]
impl Delivery {
    pub(super) fn eventfds(&self) -> usize {
        self.eventfds.clients().len()
    }

    pub(super) fn followers(&self) -> usize {
        self.followers.len()
    }

    pub(super) fn without_aio(&mut self) {
        self.signaller.without_aio();
    }
}

/// The errno for an eventfd that cannot be kept for the next agent; the log has the details.
fn not_kept(error: &crate::Error) -> Errno {
    log::warn!("{error}");
    match error {
        crate::Error::Syscall { errno: Errno::ETOOMANYREFS, .. } => Errno::ETOOMANYREFS,
        _ => Errno::ENOBUFS,
    }
}
