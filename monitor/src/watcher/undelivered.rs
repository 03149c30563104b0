//! Undelivered signals: worked out and recorded, then signalled, then struck off the record. If
//! an agent is killed anywhere in between, the next one signals what was not struck off: the last
//! signals may be given twice, and none is lost.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use crate::{
    eventfd::{EventFd, SignalOutcome},
    persist::RecordId,
    registry::{Account, give_back},
    source::{FileId, Source},
    watcher::{Cause, Watcher, fair_queue::Payer, turn::Task},
};

/// Registrations whose signals one turn gives.
const BATCH: usize = 256;

/// The undelivered signals of an eventfd.
#[derive(Debug, Default)]
pub(super) struct Undelivered {
    /// Signals, by registration and cause; removals come last of a registration's.
    by: BTreeMap<(RecordId, usize), u64>,
    /// Whether it is in the queue of turns.
    queued: bool,
    /// The serial number of a signal that the lane is about to give.
    sent: Option<u64>,
    /// The time of the first doorbell that these signals are for.
    rung: Option<u64>,
}

/// The undelivered signals of all eventfds.
#[derive(Debug, Default)]
pub(super) struct UndeliveredSignals {
    by_file: HashMap<FileId, Undelivered>,
    /// Signals that the lane is about to give, by serial number, each with its eventfd.
    sent: HashMap<u64, FileId>,
    serial: u64,
}

impl UndeliveredSignals {
    pub(super) fn has(&self, file: FileId) -> bool {
        self.by_file.contains_key(&file)
    }
}

impl<S: Source> Watcher<S> {
    /// Owes `signals` more for a registration, to be given in a turn of their own.
    pub(super) fn owe(
        &mut self,
        file: FileId,
        ticket: RecordId,
        signals: u64,
        cause: usize,
        rung: Option<u64>,
    ) {
        if signals == 0 || self.eventfd(file).is_none() {
            return;
        }
        // A removal is recorded by the record itself, which goes when it is signalled.
        if cause != Cause::REMOVED
            && let Some(persistence) = self.persistence.as_ref().filter(|_| ticket.is_recorded())
        {
            persistence.state().owe(ticket, signals);
        }
        self.owes(file, ticket, signals, cause, rung);
    }

    /// Owes signals that are recorded already.
    pub(super) fn owes(
        &mut self,
        file: FileId,
        ticket: RecordId,
        signals: u64,
        cause: usize,
        rung: Option<u64>,
    ) {
        let payer = self.payer_of_file(file);
        let owed = self.undelivered.by_file.entry(file).or_default();
        *owed.by.entry((ticket, cause)).or_default() += signals;
        owed.rung = owed.rung.or(rung);
        if !owed.queued && owed.sent.is_none() {
            owed.queued = true;
            self.turns.push(payer, Task::File(file));
        }
    }

    pub(super) fn payer_of_file(&self, file: FileId) -> Payer {
        Payer::Account(self.owners.get(&file).copied().unwrap_or(Account::Agent))
    }

    fn eventfd(&self, file: FileId) -> Option<&EventFd> {
        self.eventfds.get(&file).or_else(|| self.own.get(&file))
    }

    /// Gives the signals of an eventfd, as many as one turn allows.
    pub(super) fn deliver(&mut self, file: FileId, room: &mut usize, time: Duration) {
        // Its groups have gone. v1 held no file: an eventfd closed by its client was signalled no
        // more. While the agent holds it, it is still in the client's epoll set, by a number that
        // is none any more.
        if self.undelivered.has(file) && !self.registry.has_file(file) && self.is_closed(file) {
            self.forgive(file);
            self.drop_file(file);
            return;
        }
        let account = self.owners.get(&file).copied().unwrap_or(Account::Agent);
        let Some(owed) = self.undelivered.by_file.get_mut(&file) else { return };
        owed.queued = false;
        let Some(eventfd) = self.eventfds.get(&file).or_else(|| self.own.get(&file)) else {
            self.undelivered.by_file.remove(&file);
            return;
        };
        if owed.sent.is_some() {
            return;
        }
        let some = BATCH.min(*room).max(1);
        let signals = owed.by.values().take(some).fold(0, |sum: u64, count| sum.saturating_add(*count));
        *room = room.saturating_sub(some.min(owed.by.len()));
        self.undelivered.serial += 1;
        let serial = self.undelivered.serial;
        match self.signaller.signal(account, serial, eventfd, signals, time) {
            Ok(SignalOutcome::Now(given)) => self.paid(file, given),
            Ok(SignalOutcome::Later) => {
                owed.sent = Some(serial);
                self.undelivered.sent.insert(serial, file);
            }
            Err(errno) => {
                self.counts.failed_signals += signals;
                log::error!(memcg_errno = errno as i32; "an eventfd could not be signalled (io_submit): {errno}");
                self.strike_off(file, signals, |_, _, _| ());
                self.after_payment(file);
            }
        }
    }

    /// Takes the results of signals that the lane has given.
    pub(super) fn take_from_lane(&mut self) {
        for done in self.signaller.done() {
            // No eventfd is known for it any more: its client has gone meanwhile.
            let Some(file) = self.undelivered.sent.remove(&done.serial) else { continue };
            match self.undelivered.by_file.get_mut(&file) {
                Some(owed) if owed.sent == Some(done.serial) => owed.sent = None,
                _ => continue,
            }
            match done.outcome {
                Ok(()) => self.paid(file, done.count),
                Err(errno) => {
                    self.counts.failed_signals += done.count;
                    log::error!(memcg_errno = errno as i32; "an eventfd could not be signalled (write): {errno}");
                    self.strike_off(file, done.count, |_, _, _| ());
                    self.after_payment(file);
                }
            }
        }
    }

    fn paid(&mut self, file: FileId, signals: u64) {
        let is_own = self.registry.is_own(file);
        let rung = self.undelivered.by_file.get_mut(&file).and_then(|owed| owed.rung.take());
        self.strike_off(file, signals, |watcher, cause, count| {
            if !is_own {
                watcher.counts.signals += count;
                watcher.measures.signalled(cause, count);
            }
        });
        if !is_own {
            self.measures.took(rung);
        }
        self.after_payment(file);
    }

    /// Takes `signals` off the undelivered ones, and off the records.
    fn strike_off(&mut self, file: FileId, mut signals: u64, mut each: impl FnMut(&mut Self, usize, u64)) {
        while signals > 0 {
            let Some(owed) = self.undelivered.by_file.get_mut(&file) else { return };
            let Some(mut first) = owed.by.first_entry() else { return };
            let (ticket, cause) = *first.key();
            let count = signals.min(*first.get());
            signals -= count;
            *first.get_mut() -= count;
            let is_all = *first.get() == 0;
            if is_all {
                first.remove();
            }
            if cause != Cause::REMOVED {
                if let Some(persistence) = self.persistence.as_ref().filter(|_| ticket.is_recorded()) {
                    persistence.state().pay(ticket, count);
                }
            } else if is_all {
                self.strike_out(&[ticket]);
            }
            each(self, cause, count);
        }
    }

    /// Queues what is left for another turn, or lets go of an eventfd without registrations.
    fn after_payment(&mut self, file: FileId) {
        let payer = self.payer_of_file(file);
        let Some(owed) = self.undelivered.by_file.get_mut(&file) else { return };
        if !owed.by.is_empty() {
            if !owed.queued && owed.sent.is_none() {
                owed.queued = true;
                self.turns.push(payer, Task::File(file));
            }
            return;
        }
        if owed.sent.is_some() {
            return;
        }
        self.undelivered.by_file.remove(&file);
        give_back(&mut self.undelivered.by_file);
        if !self.registry.has_file(file) {
            self.drop_file(file);
        }
    }

    /// Drops the undelivered signals of a closed eventfd.
    pub(super) fn forgive(&mut self, file: FileId) {
        let Some(owed) = self.undelivered.by_file.remove(&file) else { return };
        if let Some(serial) = owed.sent {
            self.undelivered.sent.remove(&serial);
        }
        let removed = owed.by.keys().filter(|(_, cause)| *cause == Cause::REMOVED);
        let tickets: Vec<RecordId> = removed.map(|(ticket, _)| *ticket).collect();
        self.strike_out(&tickets);
    }
}
