//! Registrations end: with their group, or with the last reference to their
//! eventfd.

use monitor_common::{band::take, slot::State, word::Word as _};

use crate::{
    registry::give_back,
    source::{FileId, Source},
    vault::{self, Ticket},
    watcher::{Cause, Event, Watcher},
};

impl<S: Source> Watcher<S> {
    /// A reference to a registered eventfd was closed. True when it may have
    /// been the last but the kernel has not dropped it yet: ask again soon.
    pub fn file_closed(&mut self, file: FileId) -> bool {
        if !self.registry.has_file(file) {
            return false;
        }
        // The agent's, and the bag's.
        let bag = self.vault.is_some() && !self.own.contains_key(&file);
        let own = 1 + if bag { vault::REFERENCES } else { 0 };
        match self.source.file_refs(file) {
            Ok(refs) if refs <= own => {
                self.forget_file(file);
                false
            }
            Ok(refs) => refs == own + 1,
            Err(error) => {
                log::error!("{error}");
                false
            }
        }
    }

    /// Each registration is signalled once more; the eventfds that wait for
    /// nothing else are let go.
    pub(super) fn remove_group(&mut self, index: u32) {
        let cgroup_id = self.source.slot(index).map_or(0, |slot| slot.cgroup_id.get());
        for (file, tickets) in self.registry.remove_group(index) {
            let signals = tickets.len() as u64;
            self.signal(file, &Event { cgroup_id, cause: Cause::Removed, signals });
            self.strike_out(&tickets);
            if !self.registry.has_file(file) {
                self.drop_file(file);
            }
        }
        self.registrations_changed();
        self.release(index);
    }

    pub(super) fn forget_file(&mut self, file: FileId) {
        let (slots, tickets) = self.registry.remove_file(file);
        self.strike_out(&tickets);
        for slot in slots {
            self.settle(slot);
        }
        self.drop_file(file);
        self.registrations_changed();
    }

    pub(super) fn drop_file(&mut self, file: FileId) {
        self.source.unfollow_file(file);
        self.followers.remove(&file);
        self.own.remove(&file);
        self.eventfds.remove(&file);
        give_back(&mut self.eventfds);
        if let Some(vault) = &mut self.vault {
            vault.let_go(file, &self.eventfds);
        }
    }

    pub(super) fn strike_out(&mut self, tickets: &[Ticket]) {
        if let Some(vault) = &mut self.vault {
            tickets.iter().for_each(|ticket| vault.state_mut().leave(*ticket));
        }
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

    /// Nobody waits on this slot: the programs may recycle it themselves, or,
    /// if its group went first, it is recycled here.
    pub(super) fn release(&mut self, index: u32) {
        let Some(slot) = self.source.slot(index) else {
            return;
        };
        let state = slot.state();
        if !state.has(State::WATCHED) {
            return;
        }
        for track in [slot.memory(), slot.sum()] {
            track.open();
        }
        take(slot);
        if !slot.unwatch(state.generation()) {
            self.source.recycle(index);
        }
    }
}
