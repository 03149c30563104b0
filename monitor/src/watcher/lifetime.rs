//! Registrations end: with their group, or with the last reference to their
//! eventfd.

use monitor_common::{band::take, slot::State, word::Word as _};

use crate::{
    registry::give_back,
    source::{FileId, Source},
    watcher::{Cause, Event, Watcher},
};

impl<S: Source> Watcher<S> {
    /// A reference to a registered eventfd was closed. True when it may have
    /// been the last but the kernel has not dropped it yet: ask again soon.
    pub fn file_closed(&mut self, file: FileId) -> bool {
        if !self.registry.has_file(file) {
            return false;
        }
        match self.source.file_refs(file) {
            Ok(refs) if refs <= 1 => {
                self.forget_file(file);
                false
            }
            Ok(refs) => refs == 2,
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
        for (file, registrations) in self.registry.remove_group(index) {
            let signals = u64::from(registrations);
            self.signal(file, &Event { cgroup_id, cause: Cause::Removed, signals });
            if !self.registry.has_file(file) {
                self.drop_file(file);
            }
        }
        self.registrations_changed();
        self.release(index);
    }

    pub(super) fn forget_file(&mut self, file: FileId) {
        for slot in self.registry.remove_file(file) {
            self.settle(slot);
        }
        self.drop_file(file);
        self.registrations_changed();
    }

    pub(super) fn drop_file(&mut self, file: FileId) {
        self.source.unfollow_file(file);
        self.followers.remove(&file);
        self.eventfds.remove(&file);
        give_back(&mut self.eventfds);
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
