//! Registrations end: with their group, or with the last reference to their
//! eventfd.

use std::collections::BTreeSet;

use monitor_common::{band::OPEN, slot::State, word::Word as _};

use crate::{
    registry::give_back,
    source::{FileId, Source},
    vault::Ticket,
    watcher::{Cause, Event, Watcher},
};

impl<S: Source> Watcher<S> {
    /// Each registration is signalled once more; the eventfds that wait for
    /// nothing else are let go.
    pub(super) fn remove_group(&mut self, index: u32) {
        self.hear_from_above(index);
        let cgroup_id = self.source.slot(index).map_or(0, |slot| slot.cgroup_id.get());
        for (file, tickets) in self.registry.remove_group(index) {
            let cause = Cause::Removed;
            self.add(file, tickets.len() as u64, cause.label());
            let event = Event { cgroup_id, cause, signals: 1 };
            tickets.iter().for_each(|ticket| self.tell(*ticket, &event));
            self.strike_out(&tickets);
            if !self.registry.has_file(file) {
                self.drop_file(file);
            }
        }
        self.registrations_changed();
        self.release(index);
    }

    /// Ends all registrations on `files`. A group that several of them wait for is looked
    /// at once.
    pub(super) fn forget_files(&mut self, files: &[FileId]) {
        if files.is_empty() {
            return;
        }
        let mut left = BTreeSet::new();
        for file in files {
            let (slots, tickets) = self.registry.remove_file(*file);
            self.strike_out(&tickets);
            self.drop_file(*file);
            left.extend(slots);
        }
        for slot in left {
            self.settle(slot);
        }
        self.registrations_changed();
    }

    pub(super) fn drop_file(&mut self, file: FileId) {
        self.own.remove(&file);
        self.eventfds.remove(&file);
        give_back(&mut self.eventfds);
        if let Some(vault) = &mut self.vault {
            vault.let_go(file, &self.eventfds);
        }
    }

    /// Registrations that are over: their records, tickets and followers go.
    pub(super) fn strike_out(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            self.followers.remove(ticket);
            match &mut self.vault {
                _ if !ticket.is_recorded() => self.unrecorded.leave(*ticket),
                Some(vault) => vault.state_mut().leave(*ticket),
                None => {}
            }
        }
        give_back(&mut self.followers);
    }

    /// After registrations went: a band for those that are left, or none.
    pub(super) fn settle(&mut self, index: u32) {
        match self.registry.group(index) {
            Some(group) if !group.is_empty() => {
                self.look(index);
            }
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
        let state = slot.state();
        for track in [slot.memory(), slot.sum()] {
            if track.band.get() != OPEN {
                track.open();
            }
        }
        if state.has(State::WATCHED) && !slot.unwatch(state.generation()) {
            self.source.recycle(index);
        }
    }
}
