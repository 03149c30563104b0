//! Cache of the groups and control files that clients registered on before. An id is never
//! used again, and its generation distinguishes a group from the slot's others: so an entry
//! holds as long as the group is online. Whether a client may read a file is not cached.

use std::cell::Cell;

use monitor_common::grammar::control_file::ControlFile;

use crate::source::{GroupId, Slots};

/// A control file of one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedControlFile {
    /// The group of the file.
    pub group: GroupId,
    /// `st_ino` of the group's directory.
    pub cgroup_id: u64,
    /// Kind of the control file.
    pub file: ControlFile,
}

/// Places in each table; a new entry replaces the one in its place.
const PLACES: usize = 4096;

/// Entries by id (`st_ino`), each in the place that its id hashes to.
type Table<T> = Box<[Cell<Option<(u64, T)>>]>;

/// Known groups and control files, by id.
#[derive(Debug)]
pub struct GroupCache {
    groups: Table<GroupId>,
    controls: Table<ResolvedControlFile>,
}

impl Default for GroupCache {
    fn default() -> Self {
        Self { groups: table(), controls: table() }
    }
}

impl GroupCache {
    /// The group of the directory with this id, while it is online.
    pub fn group(&self, slots: &dyn Slots, id: u64) -> Option<GroupId> {
        get(&self.groups, id).filter(|group| is_online(slots, *group))
    }

    /// Remembers the group of this id.
    pub fn remember_group(&self, id: u64, group: GroupId) {
        set(&self.groups, id, group);
    }

    /// The control file with this id in the hierarchy, while its group is online.
    pub fn control(&self, slots: &dyn Slots, id: u64) -> Option<ResolvedControlFile> {
        get(&self.controls, id).filter(|control| is_online(slots, control.group))
    }

    /// Remembers the control file of this id.
    pub fn remember_control(&self, id: u64, control: ResolvedControlFile) {
        set(&self.controls, id, control);
    }
}

fn is_online(slots: &dyn Slots, group: GroupId) -> bool {
    slots.slot(group.slot).is_some_and(|slot| {
        let state = slot.state();
        state.is_live() && state.generation() == group.generation
    })
}

fn table<T: Copy>() -> Table<T> {
    (0..PLACES).map(|_| Cell::new(None)).collect()
}

fn place(id: u64) -> usize {
    // Multiplied by 2^64 / the golden ratio, the upper bits spread.
    (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % PLACES
}

fn get<T: Copy>(table: &Table<T>, id: u64) -> Option<T> {
    table[place(id)].get().filter(|(known, _)| *known == id).map(|(_, value)| value)
}

fn set<T: Copy>(table: &Table<T>, id: u64, value: T) {
    table[place(id)].set(Some((id, value)));
}

#[cfg(test)]
mod tests {
    use super::{PLACES, get, set, table};

    #[test]
    fn an_id_is_found_until_another_takes_its_place() {
        let known = table();
        for id in 0..3 * PLACES as u64 {
            set(&known, id, id + 1);
            assert_eq!(get(&known, id), Some(id + 1));
        }
        let found = (0..3 * PLACES as u64).filter(|id| get(&known, *id).is_some_and(|value| value == id + 1));
        assert!(found.count() > PLACES / 2, "the places are used evenly");
    }
}
