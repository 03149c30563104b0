//! Undelivered signals by eventfd: worked out, and not given yet.

use std::collections::{BTreeMap, HashMap};

use crate::{persist::RecordId, registry::give_back, source::FileId, watcher::event::Cause};

/// Registrations whose signals one turn gives.
const BATCH: usize = 256;

/// PendingSignals for a registration.
#[derive(Clone, Copy, Debug)]
pub(super) struct PendingSignals {
    /// The eventfd to add to.
    pub(super) file: FileId,
    /// The registration that they are for.
    pub(super) record_id: RecordId,
    /// The number to add.
    pub(super) count: u64,
    /// The index of the cause in [`CAUSES`](super::event::CAUSES).
    pub(super) cause: usize,
    /// The time of the first doorbell that they are for.
    pub(super) rung: Option<u64>,
}

/// The undelivered signals of all eventfds.
#[derive(Debug, Default)]
pub(super) struct UndeliveredSignals {
    by_file: HashMap<FileId, Undelivered>,
    /// PendingSignals that the lane is about to give, by serial number, each with its eventfd.
    sent: HashMap<u64, FileId>,
    serial: u64,
}

/// The undelivered signals of an eventfd.
#[derive(Debug, Default)]
struct Undelivered {
    /// PendingSignals, by registration and cause; removals come last of a registration's.
    by: BTreeMap<(RecordId, usize), u64>,
    /// Whether it is in the queue of turns.
    queued: bool,
    /// The serial number of a signal that the lane is about to give.
    sent: Option<u64>,
    /// The time of the first doorbell that these signals are for.
    rung: Option<u64>,
}

impl Undelivered {
    /// Whether it has to be queued for a turn, which is noted as done.
    fn is_to_be_queued(&mut self) -> bool {
        !self.by.is_empty() && self.sent.is_none() && !std::mem::replace(&mut self.queued, true)
    }
}

/// PendingSignals of one registration that are struck off.
#[derive(Debug)]
pub(super) struct Struck {
    pub(super) record_id: RecordId,
    pub(super) cause: usize,
    pub(super) count: u64,
    /// Whether none for that cause is left.
    pub(super) is_all: bool,
}

/// The next thing to do with an eventfd after some of its signals were struck off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It has more signals, and waits for a turn.
    Queue,
    /// Nothing: it is queued already, or the lane is at it.
    Nothing,
    /// It has no undelivered signals any more, and is forgotten here.
    Done,
}

impl UndeliveredSignals {
    pub(super) fn has(&self, file: FileId) -> bool {
        self.by_file.contains_key(&file)
    }

    /// Adds signals; true where the eventfd has to be queued for a turn.
    pub(super) fn add(&mut self, signals: PendingSignals) -> bool {
        let PendingSignals { file, record_id, count, cause, rung } = signals;
        let pending = self.by_file.entry(file).or_default();
        *pending.by.entry((record_id, cause)).or_default() += count;
        pending.rung = pending.rung.or(rung);
        pending.is_to_be_queued()
    }

    /// The number of signals to give in this turn, which has `room`, with a serial number; `None`
    /// where the lane is at it still.
    pub(super) fn batch(&mut self, file: FileId, room: &mut usize) -> Option<(u64, u64)> {
        let pending = self.by_file.get_mut(&file)?;
        pending.queued = false;
        if pending.sent.is_some() {
            return None;
        }
        let some = BATCH.min(*room).max(1);
        let signals = pending.by.values().take(some).fold(0, |sum: u64, count| sum.saturating_add(*count));
        *room = room.saturating_sub(some.min(pending.by.len()));
        self.serial += 1;
        Some((self.serial, signals))
    }

    /// Notes that the lane gives a batch.
    pub(super) fn set_sent(&mut self, file: FileId, serial: u64) {
        if let Some(pending) = self.by_file.get_mut(&file) {
            pending.sent = Some(serial);
            self.sent.insert(serial, file);
        }
    }

    /// Notes that the lane has done a batch, and returns its eventfd; `None` where none is known
    /// for it any more: its client has gone meanwhile.
    pub(super) fn take_sent(&mut self, serial: u64) -> Option<FileId> {
        let file = self.sent.remove(&serial)?;
        let pending = self.by_file.get_mut(&file)?;
        pending.sent.take_if(|sent| *sent == serial).map(|_| file)
    }

    /// Takes the time of the first doorbell that an eventfd's signals are for.
    pub(super) fn take_rung(&mut self, file: FileId) -> Option<u64> {
        self.by_file.get_mut(&file)?.rung.take()
    }

    /// Takes up to `most` signals of one registration off the undelivered ones.
    pub(super) fn strike_off(&mut self, file: FileId, most: u64) -> Option<Struck> {
        let mut first = self.by_file.get_mut(&file)?.by.first_entry()?;
        let (record_id, cause) = *first.key();
        let count = most.min(*first.get());
        *first.get_mut() -= count;
        let is_all = *first.get() == 0;
        if is_all {
            first.remove();
        }
        Some(Struck { record_id, cause, count, is_all })
    }

    /// The next thing to do with an eventfd whose signals were struck off.
    pub(super) fn next(&mut self, file: FileId) -> Next {
        let Some(pending) = self.by_file.get_mut(&file) else { return Next::Nothing };
        if pending.is_to_be_queued() {
            return Next::Queue;
        }
        if !pending.by.is_empty() || pending.sent.is_some() {
            return Next::Nothing;
        }
        self.by_file.remove(&file);
        give_back(&mut self.by_file);
        Next::Done
    }

    /// Forgets the signals of an eventfd, and returns the registrations among them that have
    /// ended.
    pub(super) fn discard(&mut self, file: FileId) -> Vec<RecordId> {
        let Some(pending) = self.by_file.remove(&file) else { return Vec::new() };
        if let Some(serial) = pending.sent {
            self.sent.remove(&serial);
        }
        let removed = pending.by.keys().filter(|(_, cause)| *cause == Cause::REMOVED);
        removed.map(|(record_id, _)| *record_id).collect()
    }
}
