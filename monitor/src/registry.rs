//! Who waits for what. Pure: no kernel, no sockets, no descriptors; so its rules
//! are tested as plain Rust.

mod group;
mod scale;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use monitor_common::{
    ask::Wanted,
    control::{ControlFile, Wish},
};

use crate::{
    source::{FileId, GroupId},
    vault::Ticket,
};

pub use group::Group;
pub use scale::{BURST, Clock, Crossing, Outcome, Scale, Side, first_side};

/// The owner of the agent's own registrations, which are shown to nobody: `(uid_t) -1`
/// is no user.
pub const AGENT: u32 = u32::MAX;

/// One registration.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// The control file that it is on.
    pub on: ControlFile,
    /// What it waits for.
    pub wish: Wish,
    /// Whose eventfd.
    pub file: FileId,
    /// The user whose quota it counts against; the first registration on an
    /// eventfd decides.
    pub owner: u32,
    /// Where it is recorded.
    pub ticket: Ticket,
    /// The side of a threshold that an agent before has told; `None`: a new one.
    pub above: Option<bool>,
}

impl Registration {
    /// A new one, which is recorded nowhere.
    #[must_use]
    pub const fn new(on: ControlFile, wish: Wish, file: FileId, owner: u32) -> Self {
        Self { on, wish, file, owner, ticket: Ticket::NONE, above: None }
    }
}

/// All registrations, by group and by eventfd.
#[derive(Debug, Default)]
pub struct Registry {
    groups: HashMap<u32, Group>,
    /// Each eventfd, and the user whose quota it counts against.
    files: HashMap<FileId, u32>,
    /// The same the other way round.
    by_owner: BTreeSet<(u32, FileId)>,
    /// How many registrations an eventfd has on a slot.
    held: BTreeMap<(FileId, u32), u32>,
    /// Slots on which somebody waits for OOM.
    ooms: BTreeSet<u32>,
    owners: HashMap<u32, u64>,
    registrations: u64,
    /// Of them, those that wait for OOM, pressure, emptiness, percentages, and working
    /// sets.
    kinds: [u64; 5],
}

impl Registry {
    /// Adds one registration. The caller has looked at the group just now, so that
    /// the quantity is `now` pages, and `limit` what percents are of.
    pub fn add(&mut self, id: GroupId, registration: Registration, now: u64, limit: u64) {
        let Registration { wish, file, owner, .. } = registration;
        let group = self.groups.entry(id.slot).or_insert_with(|| Group::new(id));
        let before = group.kinds();
        group.add(&registration, now, limit);
        let after = group.kinds();
        self.count_kinds(before, after);
        if wish == Wish::Oom {
            self.ooms.insert(id.slot);
        }
        let owner = *self.files.entry(file).or_insert(owner);
        self.by_owner.insert((owner, file));
        *self.held.entry((file, id.slot)).or_default() += 1;
        *self.owners.entry(owner).or_default() += 1;
        self.registrations += 1;
    }

    /// The group in `slot`.
    #[must_use]
    pub fn group(&self, slot: u32) -> Option<&Group> {
        self.groups.get(&slot)
    }

    /// The group in `slot`.
    pub fn group_mut(&mut self, slot: u32) -> Option<&mut Group> {
        self.groups.get_mut(&slot)
    }

    /// Every watched group.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// Those on which somebody waits for OOM.
    pub fn oom_groups(&self) -> impl Iterator<Item = &Group> {
        self.ooms.iter().filter_map(|slot| self.groups.get(slot))
    }

    /// Every watched slot.
    #[must_use]
    pub fn slots(&self) -> Vec<u32> {
        self.groups.keys().copied().collect()
    }

    /// Every registered eventfd.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        self.files.keys().copied().collect()
    }

    /// A user's eventfds, from `first` on by address.
    pub fn files_of(&self, owner: u32, first: FileId) -> impl Iterator<Item = FileId> {
        self.by_owner.range((owner, first)..=(owner, FileId(u64::MAX))).map(|(_, file)| *file)
    }

    /// Whether anything is registered on `file`.
    #[must_use]
    pub fn has_file(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// Number of registered eventfds.
    #[must_use]
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// Number of registrations.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.registrations
    }

    /// Whether the agent itself waits on `file`.
    #[must_use]
    pub fn is_own(&self, file: FileId) -> bool {
        self.files.get(&file) == Some(&AGENT)
    }

    /// Number of registrations that count against a user's quota.
    #[must_use]
    pub fn held_by(&self, owner: u32) -> u64 {
        self.owners.get(&owner).copied().unwrap_or(0)
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.registrations == 0
    }

    /// What the programs have to count: bits of [`Wanted`].
    #[must_use]
    pub fn wanted(&self) -> u64 {
        let bits = [Wanted::OOM, Wanted::PRESSURE, Wanted::EMPTY, Wanted::LIMITS];
        let awaited = bits.into_iter().zip(self.kinds).filter(|(_, count)| *count > 0);
        awaited.fold(0, |all, (bit, _)| all | bit)
    }

    /// Whether anybody waits for a working set.
    #[must_use]
    pub const fn has_working_sets(&self) -> bool {
        self.kinds[4] > 0
    }

    /// A group went: forgets its registrations, returns where they were recorded, by
    /// eventfd, for each is signalled once more.
    pub fn remove_group(&mut self, slot: u32) -> Vec<(FileId, Vec<Ticket>)> {
        let Some(group) = self.groups.remove(&slot) else {
            return Vec::new();
        };
        self.count_kinds(group.kinds(), [0; 5]);
        self.ooms.remove(&slot);
        let tickets = group.tickets();
        for (file, tickets) in &tickets {
            self.held.remove(&(*file, slot));
            self.forget(self.files.get(file).copied(), tickets.len() as u64);
            if self.slots_of(*file).next().is_none()
                && let Some(owner) = self.files.remove(file)
            {
                self.by_owner.remove(&(owner, *file));
            }
        }
        give_back(&mut self.groups);
        give_back(&mut self.files);
        tickets.into_iter().collect()
    }

    /// An eventfd's last user went: forgets its registrations everywhere, returns the
    /// slots they were on, and where they were recorded.
    pub fn remove_file(&mut self, file: FileId) -> (Vec<u32>, Vec<Ticket>) {
        let mut tickets = Vec::new();
        let Some(owner) = self.files.remove(&file) else {
            return (Vec::new(), tickets);
        };
        self.by_owner.remove(&(owner, file));
        let slots: Vec<u32> = self.slots_of(file).collect();
        for slot in &slots {
            self.held.remove(&(file, *slot));
            if let Some(group) = self.groups.get_mut(slot) {
                let before = group.kinds();
                let gone = group.remove_file(file);
                let after = group.kinds();
                if group.oom().next().is_none() {
                    self.ooms.remove(slot);
                }
                self.count_kinds(before, after);
                self.forget(Some(owner), gone.len() as u64);
                tickets.extend(gone);
            }
        }
        give_back(&mut self.files);
        (slots, tickets)
    }

    fn slots_of(&self, file: FileId) -> impl Iterator<Item = u32> {
        self.held.range((file, 0)..=(file, u32::MAX)).map(|((_, slot), _)| *slot)
    }

    /// Forgets a group on which nothing is left.
    pub fn forget_group(&mut self, slot: u32) {
        if self.groups.get(&slot).is_some_and(Group::is_empty) {
            self.groups.remove(&slot);
            give_back(&mut self.groups);
        }
    }

    fn count_kinds(&mut self, before: [usize; 5], after: [usize; 5]) {
        for ((count, before), after) in self.kinds.iter_mut().zip(before).zip(after) {
            *count = *count + after as u64 - before as u64;
        }
    }

    fn forget(&mut self, owner: Option<u32>, registrations: u64) {
        self.registrations -= registrations;
        if let Some(owner) = owner
            && let Some(count) = self.owners.get_mut(&owner)
        {
            *count -= registrations;
            if *count == 0 {
                self.owners.remove(&owner);
            }
        }
    }
}

/// A table keeps the room that it once needed; when most have gone, gives it back.
pub(crate) fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    const FEW: usize = 64;
    if table.capacity() > FEW.max(8 * table.len()) {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests;
