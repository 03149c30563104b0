//! The end of registrations: with their group, or with the last reference to their eventfd.

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
    /// Ends registrations with their group, as many as there is room for. Each is owed one more
    /// signal, and its record goes when that was given. True once none is left: then the slot may
    /// be given to another group.
    pub(super) fn remove_group(&mut self, index: u32, rung: Option<u64>, room: &mut usize) -> bool {
        let event = Event { cgroup_id: self.id_of(index), cause: Cause::Removed, signals: 1 };
        let most = *room;
        let taken = self.registry.take_from_group(index, most);
        *room -= taken.len();
        for to in &taken {
            self.notify_follower(to.ticket, &event);
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

    /// Ends registrations on an eventfd that its client has closed, as many as there is room for;
    /// another turn does the rest.
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
        // Few: made by an agent that was killed before it replied. The eventfd's address may be
        // the next one's.
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

    /// Removes the records, tickets and followers of registrations that have ended.
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

    /// Publishes a band for the registrations that are left, or releases the slot.
    pub(super) fn settle(&mut self, index: u32) {
        match self.registry.group(index) {
            Some(group) if !group.is_empty() => self.ring(index, 0),
            _ => {
                self.registry.forget_group(index);
                self.release(index);
            }
        }
    }

    /// Releases a slot without registrations: the programs give it back when its group goes, or,
    /// if the group went first, it is given back here. The doorbell of what is still pending in
    /// it has it looked at.
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
