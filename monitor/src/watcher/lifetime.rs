//! Registrations end: with their group, or with the last reference to their
//! eventfd.

use monitor_common::protocol::{band::OPEN, slot::SlotState, word::Word as _};

use crate::{
    persist::RecordId,
    registry::{Account, give_back},
    source::{FileId, Source},
    watcher::{
        Cause, Event, Watcher,
        turn::{ROOM, Task},
    },
};

impl<S: Source> Watcher<S> {
    /// Registrations end with their group: takes out as many as there is room for; each is
    /// owed one more signal, and its record goes when that was given. True once none is
    /// left: then the slot is another's.
    pub(super) fn remove_group(&mut self, index: u32, rung: Option<u64>, room: &mut usize) -> bool {
        let event = Event { cgroup_id: self.id_of(index), cause: Cause::Removed, signals: 1 };
        let most = *room;
        let taken = self.registry.take_from_group(index, most);
        *room -= taken.len();
        for to in &taken {
            self.tell(to.ticket, &event);
            self.followers.remove(&to.ticket);
            self.owe(to.file, to.ticket, 1, Cause::REMOVED, rung);
        }
        if taken.len() == most && self.registry.group(index).is_some() {
            return false;
        }
        self.registrations_changed();
        self.release(index);
        true
    }

    /// Ends all registrations on `files`, in turns: some at once, so that there is room for
    /// others.
    pub(super) fn forget_files(&mut self, files: &[FileId]) {
        let mut room = ROOM;
        for file in files {
            self.forget_file(*file, &mut room);
        }
    }

    /// Ends registrations on an eventfd that nobody holds any more, as many as there is
    /// room for; what is left has another turn.
    pub(super) fn forget_file(&mut self, file: FileId, room: &mut usize) {
        self.forgive(file);
        while *room > 0 {
            let Some((slot, taken)) = self.registry.take_from_file(file, *room) else { break };
            *room = room.saturating_sub(taken.len());
            let tickets: Vec<RecordId> = taken.iter().map(|to| to.ticket).collect();
            self.strike_out(&tickets);
            self.settle(slot);
        }
        if self.registry.has_file(file) {
            self.turns.push(self.payer_of_file(file), Task::Forget(file));
            self.work.notify_one();
        } else {
            self.drop_file(file);
        }
        self.registrations_changed();
    }

    pub(super) fn drop_file(&mut self, file: FileId) {
        self.own.remove(&file);
        // Few: an agent before was killed between making these and answering. Its address may
        // be another eventfd's next.
        self.unsure.retain(|(_, record)| record.file != file);
        let owner = self.owners.remove(&file);
        if let Some(eventfd) = self.eventfds.remove(&file) {
            self.signaller.close(owner.unwrap_or(Account::Agent), eventfd);
        }
        give_back(&mut self.eventfds);
        if let Some(persistence) = &mut self.persistence {
            persistence.let_go(file, &self.eventfds);
        }
    }

    /// Registrations that are over: their records, tickets and followers go.
    pub(super) fn strike_out(&mut self, tickets: &[RecordId]) {
        for ticket in tickets {
            self.followers.remove(ticket);
            match &mut self.persistence {
                _ if !ticket.is_recorded() => self.unrecorded.leave(*ticket),
                Some(persistence) => persistence.state_mut().leave(*ticket),
                None => {}
            }
        }
        give_back(&mut self.followers);
    }

    /// After registrations went: a band for those that are left, or none.
    pub(super) fn settle(&mut self, index: u32) {
        match self.registry.group(index) {
            Some(group) if !group.is_empty() => self.ring(index, 0),
            _ => {
                self.registry.forget_group(index);
                self.release(index);
            }
        }
    }

    /// Nobody waits on this slot: it is the programs' to give back when its group goes, or,
    /// if that went first, given back here. What is still pending in it is looked at by
    /// its doorbell.
    pub(super) fn release(&mut self, index: u32) {
        let Some(slot) = self.source.slot(index) else {
            return;
        };
        self.payers.remove(&index);
        let state = slot.state();
        for track in [slot.memory(), slot.sum()] {
            if track.band.get() != OPEN {
                track.open();
            }
        }
        if state.has(SlotState::WATCHED) && !slot.unwatch(state.generation()) {
            self.source.recycle(index);
        }
    }
}
