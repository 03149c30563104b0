//! The table of slots, in the agent's own memory. A group gets one, and so do all above it, when
//! it is first looked for; the slots' life is that of `monitor_common::protocol::life`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use monitor_common::protocol::{
    band::OPEN,
    slot::{PARENT_ROOT, PARENT_UNKNOWN, Slot, SlotState},
    word::Word as _,
};
use monitor_sys::table::SharedSlot;

use nix::errno::Errno;

use crate::{
    cgroup::handle::Directories,
    error::{Error, Result, is_shortage},
    sampled::files::GroupFiles,
    source::{GroupId, Located},
};

/// The slots, the root's last, and the groups that have them.
pub(super) struct Table {
    slots: Box<[SharedSlot]>,
    directories: Directories,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    by_id: HashMap<u64, u32>,
    files: HashMap<u32, Arc<GroupFiles>>,
    /// Slots that were used before; all from `unused` on never were.
    free: Vec<u32>,
    unused: u32,
}

/// Id of the hierarchy's own root, where that cannot be seen.
const HOST_ROOT: u64 = 1;

impl Table {
    /// Makes a table for so many groups beside the root.
    pub(super) fn new(directories: Directories, groups: u32) -> Self {
        let slots: Box<[SharedSlot]> = (0..=groups).map(|_| Slot::new(Into::into)).collect();
        if let Some(root) = slots.last() {
            root.recycle();
            root.parent.set(PARENT_ROOT);
            root.cgroup_id.set(directories.host_root().unwrap_or(HOST_ROOT));
            root.mark(SlotState::ONLINE);
        }
        Self { slots, directories, places: Mutex::default() }
    }

    /// The directories of the hierarchy.
    pub(super) const fn directories(&self) -> &Directories {
        &self.directories
    }

    pub(super) fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.slots.get(index as usize)
    }

    pub(super) fn root(&self) -> GroupId {
        let slot = u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX);
        GroupId { slot, generation: self.slot(slot).map_or(0, |root| root.state().generation()) }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files of the group in a slot, while it has it.
    pub(super) fn files(&self, index: u32) -> Option<Arc<GroupFiles>> {
        self.places().files.get(&index).cloned()
    }

    /// The slot of the group with this id, if it has one.
    pub(super) fn slot_of(&self, id: u64) -> Option<u32> {
        if self.directories.host_root() == Some(id) {
            Some(self.root().slot)
        } else {
            self.places().by_id.get(&id).copied()
        }
    }

    /// All groups that have slots.
    pub(super) fn tracked(&self) -> Vec<(u32, Arc<GroupFiles>)> {
        self.places().files.iter().map(|(index, files)| (*index, Arc::clone(files))).collect()
    }

    /// The slots above one, from its parent's on, below the root.
    pub(super) fn above(&self, index: u32) -> impl Iterator<Item = u32> + '_ {
        let parent = |index: &u32| u32::try_from(self.slot(*index)?.parent.get()).ok();
        std::iter::successors(Some(index), parent).skip(1)
    }

    /// Gives the group with this id a slot, and all above it, from the top on.
    ///
    /// # Errors
    /// The agent is out of descriptors or memory; any other failure means that there is no such
    /// group.
    pub(super) fn track(&self, id: u64) -> Result<Located> {
        let mut places = self.places();
        let mut line = Vec::new();
        let mut parent = PARENT_ROOT;
        let mut at = id;
        while self.directories.host_root() != Some(at) {
            if let Some(index) = places.by_id.get(&at) {
                parent = u64::from(*index);
                break;
            }
            match self.open(at) {
                Ok((files, above)) => {
                    line.push((at, files));
                    // A group that is the root has nothing above it here.
                    if at == self.directories.root_id() {
                        break;
                    }
                    at = above;
                }
                Err(errno) if is_shortage(errno) => {
                    return Err(Error::syscall("open a group's files (LimitNOFILE= of the agent)", errno));
                }
                Err(_) => return Ok(Located::NoGroup),
            }
        }
        let mut last = None;
        for (id, files) in line.into_iter().rev() {
            let Some(index) = self.enter(&mut places, id, parent, files) else {
                return Ok(Located::TableFull);
            };
            parent = u64::from(index);
            last = Some(index);
        }
        let known = last.or_else(|| u32::try_from(parent).ok());
        Ok(match known.and_then(|index| Some((index, self.slot(index)?))) {
            Some((slot, shared)) => Located::Group(GroupId { slot, generation: shared.state().generation() }),
            None => Located::Root,
        })
    }

    /// Opens the files of a group; with them the id of the group above.
    fn open(&self, id: u64) -> Result<(GroupFiles, u64), Errno> {
        let directory = self.directories.open(id)?;
        let above = directory.parent()?.stat()?.st_ino;
        Ok((GroupFiles::open(directory, self.directories.version())?, above))
    }

    fn enter(&self, places: &mut Places, id: u64, parent: u64, files: GroupFiles) -> Option<u32> {
        let index = places.free.pop().or_else(|| {
            let next = places.unused;
            // The last slot is the root's.
            (next + 1 < u32::try_from(self.slots.len()).unwrap_or(u32::MAX)).then(|| {
                places.unused += 1;
                next
            })
        })?;
        let slot = self.slot(index)?;
        slot.parent.set(parent);
        slot.cgroup_id.set(id);
        slot.forget();
        slot.oom_calls.set(files.ooms().unwrap_or(0));
        slot.band.set(OPEN);
        // In place of an address: this group's slot.
        slot.counter.set(id);
        if let Some(above) = u32::try_from(parent).ok().and_then(|above| self.slot(above)) {
            above.below.add(1);
        }
        // Last, and a full barrier: a live state vouches for the rest.
        slot.state.xchg(SlotState::online(slot.state().generation()).0);
        places.by_id.insert(id, index);
        places.files.insert(index, Arc::new(files));
        Some(index)
    }

    /// Takes a slot away from its group, which is gone; true when the watcher has to look at it.
    pub(super) fn leave(&self, group: GroupId) -> Option<bool> {
        let mut places = self.places();
        let slot = self.slot(group.slot)?;
        let state = slot.state();
        if !state.is_live() || state.generation() != group.generation {
            return None;
        }
        places.by_id.remove(&slot.cgroup_id.get());
        places.files.remove(&group.slot);
        Some(slot.leave(slot.last.get(), slot.sum_last.get()))
    }

    /// Gives a slot back if it is not needed, and those above that only waited for that.
    pub(super) fn give_back(&self, index: u32) {
        let mut next = Some(index);
        while let Some((index, slot)) = next.and_then(|index| Some((index, self.slot(index)?))) {
            if index == self.root().slot || !slot.retire() {
                return;
            }
            let parent = slot.parent.get();
            slot.clear();
            let mut places = self.places();
            places.free.push(index);
            drop(places);
            next = u32::try_from(parent).ok();
            if let Some(above) = next.and_then(|above| self.slot(above)) {
                above.unname();
            }
        }
    }

    /// Takes a slot away from its group, which is there, unless its state has changed: a
    /// registration that begins meanwhile keeps it.
    fn shed(&self, index: u32, slot: &SharedSlot, state: SlotState) -> bool {
        let mut places = self.places();
        if slot.state.cas(state.0, state.0 | SlotState::OFFLINE) != state.0 {
            return false;
        }
        places.by_id.remove(&slot.cgroup_id.get());
        places.files.remove(&index);
        slot.counter.set(0);
        true
    }

    /// Gives back the slots of groups that were looked up and are neither registered on nor recorded,
    /// where half of the table is taken.
    pub(super) fn shed_where_crowded(&self) {
        let tracked = self.tracked();
        if (tracked.len() + 1) * 2 < self.slots.len() {
            return;
        }
        for (index, _) in tracked {
            let Some(slot) = self.slot(index) else { continue };
            let state = slot.state();
            // A recorded group has a band, registrations or not.
            let is_looked_at = state.has(SlotState::WATCHED) || slot.band.get() != OPEN;
            let is_idle = !is_looked_at && slot.below.get() == 0 && slot.pending.get() == 0;
            if is_idle && state.is_live() && self.shed(index, slot, state) {
                self.give_back(index);
            }
        }
    }
}

// No slot's index is one of these words.
const _: () = assert!(PARENT_UNKNOWN > u32::MAX as u64);
