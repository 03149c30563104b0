//! Records of registrations, which outlive this agent where a descriptor store keeps them, and
//! registrations taken over whose clients may repeat their request.

use std::collections::HashMap;

use crate::{
    error::Result,
    eventfd::EventFd,
    persist::{self, Persistence, Record, RecordId, Unfinished, Unrecorded},
    registry::Account,
    source::FileId,
};

/// Milliseconds in which a client that lost its connection to an agent repeats its request.
const UNSURE_FOR: u64 = 60_000;

/// The records of all registrations, and ids for those that are not recorded.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// State that outlives this agent, where a descriptor store keeps it.
    persistence: Option<Persistence>,
    /// Record ids for registrations that are not recorded in `persistence`.
    unrecorded: Unrecorded,
    /// Registrations taken over whose clients may not have received the reply.
    unsure: Vec<(RecordId, Record)>,
    unsure_until: u64,
}

impl Records {
    /// Keeps registrations from now on in `persistence`.
    pub(super) fn keep_in(&mut self, persistence: Persistence) {
        self.persistence = Some(persistence);
    }

    /// The references that a descriptor stash may have to a client's eventfd.
    pub(super) const fn stash_references(&self) -> u64 {
        if self.persistence.is_some() { persist::REFERENCES } else { 0 }
    }

    /// Keeps a client's eventfd, before a registration on it is recorded. `all` are the clients'
    /// eventfds.
    ///
    /// # Errors
    /// The eventfd cannot be sent into a stash.
    pub(super) fn keep(
        &mut self,
        file: FileId,
        eventfd: &EventFd,
        all: &HashMap<FileId, EventFd>,
    ) -> Result<()> {
        self.persistence.as_mut().map_or(Ok(()), |persistence| persistence.keep(file, eventfd, all))
    }

    /// Forgets an eventfd without registrations. `all` are the clients' eventfds that are left.
    pub(super) fn let_go(&mut self, file: FileId, all: &HashMap<FileId, EventFd>) {
        // Few: made by an agent that was killed before it replied. The eventfd's address may be
        // the next one's.
        self.unsure.retain(|(_, record)| record.file != file);
        if let Some(persistence) = &mut self.persistence {
            persistence.let_go(file, all);
        }
    }

    /// Moves all kept eventfds into new stashes.
    pub(super) fn repack(&mut self, all: &HashMap<FileId, EventFd>) {
        if let Some(persistence) = &mut self.persistence {
            persistence.repack(all);
        }
    }

    /// Records a registration, unless it is the agent's own, and returns its id.
    ///
    /// # Errors
    /// There is no room for a record.
    pub(super) fn enter(&mut self, record: &Record) -> Result<RecordId> {
        match &mut self.persistence {
            Some(persistence) if record.account != Account::Agent => persistence.state_mut().enter(record),
            _ => Ok(self.unrecorded.enter()),
        }
    }

    /// Writes the record of a registration that was taken over anew.
    pub(super) fn write(&self, record_id: RecordId, record: &Record) {
        if let Some(persistence) = &self.persistence {
            persistence.state().write(record_id, record);
        }
    }

    /// Removes the record of a registration that has ended.
    pub(super) fn leave(&mut self, record_id: RecordId) {
        match &mut self.persistence {
            _ if !record_id.is_recorded() => self.unrecorded.leave(record_id),
            Some(persistence) => persistence.state_mut().leave(record_id),
            None => {}
        }
    }

    /// Records that the client has received the reply.
    pub(super) fn confirm(&self, record_id: RecordId) {
        if let Some(persistence) = &self.persistence {
            persistence.state().confirm(record_id);
        }
    }

    /// Records the side of a threshold that is signalled.
    pub(super) fn set_above(&self, record_id: RecordId, above: bool) {
        if let Some(persistence) = &self.persistence {
            persistence.state().set_above(record_id, above);
        }
    }

    /// Records signals that are to be given for a registration.
    pub(super) fn add_signals(&self, record_id: RecordId, signals: u64) {
        if let Some(persistence) = self.persistence.as_ref().filter(|_| record_id.is_recorded()) {
            persistence.state().owe(record_id, signals);
        }
    }

    /// Takes signals off the record that were given, or cannot be.
    pub(super) fn strike_off(&self, record_id: RecordId, signals: u64) {
        if let Some(persistence) = self.persistence.as_ref().filter(|_| record_id.is_recorded()) {
            persistence.state().pay(record_id, signals);
        }
    }

    /// Opens the journal: records what was taken out of a slot, until its signals are recorded.
    pub(super) fn begin_journal(&self, taken: &Unfinished) {
        if let Some(persistence) = &self.persistence {
            persistence.state().begin(taken);
        }
    }

    /// Closes the journal, which is for one slot at a time: what `takes_longer` is recorded apart,
    /// in lines of its own, which are returned.
    pub(super) fn end_journal(&mut self, takes_longer: Option<&Unfinished>) -> Vec<RecordId> {
        let Some(persistence) = &mut self.persistence else { return Vec::new() };
        let kept = takes_longer.map(|taken| (taken, persistence.state_mut().keep_on(taken)));
        let lines = match kept {
            None => Vec::new(),
            Some((_, Ok(lines))) => lines,
            Some((taken, Err(error))) => {
                log::warn!("{error}; an agent that is killed now loses what group {} saw", taken.cgroup_id);
                Vec::new()
            }
        };
        persistence.state().end();
        lines
    }

    /// Notes that all unfinished events are in their slots again.
    pub(super) fn end_all_journals(&mut self) {
        if let Some(persistence) = &mut self.persistence {
            persistence.state_mut().end_all();
        }
    }

    /// Records the maps that the records' slots are in.
    pub(super) fn set_instance(&self, instance: u64) {
        if let Some(persistence) = &self.persistence {
            persistence.state().set_instance(instance);
        }
    }

    /// The number of agents that took over from an earlier one, with its registrations.
    pub(super) fn restarts(&self) -> u64 {
        self.persistence.as_ref().map_or(0, |persistence| persistence.state().restarts())
    }

    /// Removes the persistent state, since this agent ends for good.
    pub(super) fn give_up_all(&self) {
        if let Some(persistence) = &self.persistence {
            persistence.give_up_all();
        }
    }

    /// Notes a registration that was taken over, unless its client is known to have the reply.
    pub(super) fn take_over(&mut self, record_id: RecordId, record: Record) {
        self.unsure.extend((!record.sure).then_some((record_id, record)));
    }

    /// Begins the time in which clients repeat requests that an earlier agent may not have
    /// answered.
    pub(super) const fn wait_for_repeats(&mut self, now: u64) {
        self.unsure_until = now + UNSURE_FOR;
    }

    /// The registration that an earlier agent has made and perhaps not confirmed to the client: a
    /// repeated request means the same registration.
    pub(super) fn answered_late(&mut self, request: &Record, now: u64) -> Option<(RecordId, FileId)> {
        if self.unsure.is_empty() {
            return None;
        }
        if now >= self.unsure_until {
            self.unsure = Vec::new();
        }
        let at = self.unsure.iter().position(|(_, record)| record.is_same_request(request))?;
        let (record_id, record) = self.unsure.swap_remove(at);
        Some((record_id, record.file))
    }

    /// The persistent state, for tests that take it away from an agent.
    #[cfg(test)]
    pub(super) const fn persistence(&self) -> Option<&Persistence> {
        self.persistence.as_ref()
    }
}
