//! All registrations, by group and by eventfd. Pure: no kernel, no sockets, no descriptors; so
//! the rules are tested as plain Rust.

mod account;
mod dense;
mod group;
pub mod share;
mod thresholds;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use monitor_common::{
    grammar::control_file::{ControlFile, Trigger},
    protocol::query::Subscriptions,
};

use self::account::Accounts;
use crate::{
    persist::RecordId,
    source::{FileId, GroupId},
};

pub use account::{Account, AccountIndex};
pub use group::Group;
#[cfg(test)]
pub use thresholds::BURST;
pub use thresholds::{
    Clock, Crossing, Cursor, Outcome, Registered, ThresholdSet, first_side, pages as place_of,
};

/// One registration for an event of a group.
#[derive(Clone, Copy, Debug)]
pub struct Subscription {
    /// The control file that it is on.
    pub on: ControlFile,
    /// The trigger that fires it.
    pub trigger: Trigger,
    /// The eventfd to be signalled.
    pub file: FileId,
    /// The account that requested it, whatever others are registered on that eventfd; it counts
    /// against this account's quota.
    pub account: Account,
    /// The record id, under which it is recorded.
    pub record_id: RecordId,
    /// The side of a threshold that an earlier agent has signalled; `None`: a new threshold.
    pub above: Option<bool>,
}

/// A registration, as far as its signals need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// The eventfd to be signalled.
    pub file: FileId,
    /// The record id; no other registration has it at the same time.
    pub record_id: RecordId,
    /// The account that pays for it.
    pub payer: AccountIndex,
}

/// All registrations, by group and by eventfd.
#[derive(Debug, Default)]
pub struct Registry {
    groups: HashMap<u32, Group>,
    /// All eventfds, and whether each is the agent's own.
    files: HashMap<FileId, bool>,
    /// The number of registrations that an account has on an eventfd.
    by_payer: BTreeMap<(AccountIndex, FileId), u32>,
    /// The number of registrations that an eventfd has on a slot.
    held: BTreeMap<(FileId, u32), u32>,
    /// Slots with registrations for OOM.
    ooms: BTreeSet<u32>,
    /// Slots with a threshold in percent of a limit.
    percents: BTreeSet<u32>,
    accounts: Accounts,
    registrations: u64,
    /// Numbers of registrations for OOM, pressure, emptiness, percentages, working sets,
    /// memory+swap, and what is not reclaimable.
    kinds: [u64; 7],
}

impl Registry {
    /// Adds one registration. The caller has looked at the group just now, so that the quantity
    /// is `now` pages, and percents are of `limit` pages.
    pub fn add(&mut self, id: GroupId, registration: Subscription, now: u64, limit: u64) {
        let Subscription { trigger, file, record_id, account, .. } = registration;
        let to = Subscriber { file, record_id, payer: self.accounts.charge(account) };
        let group = self.groups.entry(id.slot).or_insert_with(|| Group::new(id));
        let before = group.kinds();
        group.add(to, &registration, now, limit);
        let after = group.kinds();
        self.count_kinds(before, after);
        if trigger == Trigger::Oom {
            self.ooms.insert(id.slot);
        }
        if after[3] > 0 {
            self.percents.insert(id.slot);
        }
        self.files.entry(file).or_insert(account == Account::Agent);
        *self.by_payer.entry((to.payer, file)).or_default() += 1;
        *self.held.entry((file, id.slot)).or_default() += 1;
        self.registrations += 1;
    }

    /// The watched group in `slot`.
    #[must_use]
    pub fn group(&self, slot: u32) -> Option<&Group> {
        self.groups.get(&slot)
    }

    /// The watched group in `slot`, for changes.
    pub fn group_mut(&mut self, slot: u32) -> Option<&mut Group> {
        self.groups.get_mut(&slot)
    }

    /// Returns every watched group.
    #[cfg(test)]
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// Slots with registrations for OOM.
    #[must_use]
    pub fn oom_slots(&self) -> Vec<u32> {
        self.ooms.iter().copied().collect()
    }

    /// Groups with registrations for OOM.
    #[cfg(test)]
    pub fn oom_groups(&self) -> impl Iterator<Item = &Group> {
        self.ooms.iter().filter_map(|slot| self.groups.get(slot))
    }

    /// The group with registrations for OOM in the lowest slot from `slot` on.
    #[must_use]
    pub fn oom_group_from(&self, slot: u32) -> Option<&Group> {
        self.groups.get(self.ooms.range(slot..).next()?)
    }

    /// Slots with a threshold in percent of a limit.
    #[must_use]
    pub fn percent_slots(&self) -> Vec<u32> {
        self.percents.iter().copied().collect()
    }

    /// Returns every watched slot.
    #[must_use]
    pub fn slots(&self) -> Vec<u32> {
        self.groups.keys().copied().collect()
    }

    /// Returns every registered eventfd.
    #[must_use]
    pub fn files(&self) -> Vec<FileId> {
        self.files.keys().copied().collect()
    }

    /// Eventfds that an account has registrations on, from `first` on by address.
    pub fn files_of(&self, account: Account, first: FileId) -> impl Iterator<Item = FileId> {
        let held = self.accounts.place_of(account);
        let held = held.map(|payer| self.by_payer.range((payer, first)..=(payer, FileId(u64::MAX))));
        held.into_iter().flatten().map(|((_, file), _)| *file)
    }

    /// Whether anything is registered on `file`.
    #[must_use]
    pub fn has_file(&self, file: FileId) -> bool {
        self.files.contains_key(&file)
    }

    /// The number of registered eventfds.
    #[must_use]
    pub fn file_count(&self) -> u64 {
        self.files.len() as u64
    }

    /// The number of registrations in all.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.registrations
    }

    /// Whether the agent itself registered `file`.
    #[must_use]
    pub fn is_own(&self, file: FileId) -> bool {
        self.files.get(&file) == Some(&true)
    }

    /// The number of registrations that an account has.
    #[must_use]
    pub fn held_by(&self, account: Account) -> u64 {
        self.accounts.held_by(account)
    }

    /// The account at an index; `None` once it has no registration any more.
    #[cfg(test)]
    #[must_use]
    pub fn account(&self, payer: AccountIndex) -> Option<Account> {
        self.accounts.account(payer)
    }

    /// Whether there are no registrations.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.registrations == 0
    }

    /// The number of registrations on a control file.
    #[must_use]
    pub const fn len_on(&self, on: ControlFile) -> u64 {
        let [oom, pressure, empty, _, working_set, sum, anon] = self.kinds;
        match on {
            ControlFile::Usage => self.registrations - oom - pressure - empty - working_set - sum - anon,
            ControlFile::Memsw => sum,
            ControlFile::WorkingSet => working_set,
            ControlFile::Anon => anon,
            ControlFile::Oom => oom,
            ControlFile::Pressure => pressure,
            ControlFile::Procs => empty,
        }
    }

    /// The events that the programs have to count: bits of [`Subscriptions`].
    #[must_use]
    pub fn wanted(&self) -> u64 {
        let bits = [Subscriptions::OOM, Subscriptions::PRESSURE, Subscriptions::EMPTY, Subscriptions::LIMITS];
        let awaited = bits.into_iter().zip(self.kinds).filter(|(_, count)| *count > 0);
        awaited.fold(0, |all, (bit, _)| all | bit)
    }

    /// Whether any registration is on a quantity that only files have.
    #[must_use]
    pub const fn has_on_files(&self) -> bool {
        let [_, _, _, _, working_set, _, anon] = self.kinds;
        working_set + anon > 0
    }

    /// Forgets the registrations of a group that went, and returns them by eventfd, for each is
    /// signalled once more. Costs what was registered there; [`Registry::take_from_group`] does
    /// it in pieces.
    #[cfg(test)]
    pub fn remove_group(&mut self, slot: u32) -> Vec<(FileId, Vec<RecordId>)> {
        let mut record_ids: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for to in self.take_from_group(slot, usize::MAX) {
            record_ids.entry(to.file).or_default().push(to.record_id);
        }
        record_ids.into_iter().collect()
    }

    /// Takes up to `most` registrations out of a group, and forgets the group with the
    /// last one; none are left when it returns fewer than `most`. Costs what it takes,
    /// times the logarithm of what there is.
    pub fn take_from_group(&mut self, slot: u32, most: usize) -> Vec<Subscriber> {
        let taken = self.take(slot, |group| group.take_last(most));
        self.forget_group(slot);
        taken
    }

    /// Forgets all registrations of an eventfd that its client closed, and returns the slots they
    /// were on, and where they were recorded. Costs what was registered on it;
    /// [`Registry::take_from_file`] does it in pieces.
    #[cfg(test)]
    pub fn remove_file(&mut self, file: FileId) -> (Vec<u32>, Vec<RecordId>) {
        let (mut slots, mut record_ids) = (Vec::new(), Vec::new());
        while let Some((slot, taken)) = self.take_from_file(file, usize::MAX) {
            slots.push(slot);
            record_ids.extend(taken.iter().map(|to| to.record_id));
        }
        (slots, record_ids)
    }

    /// Takes up to `most`, one at least, of an eventfd's registrations out of one group;
    /// `None` when it has none left anywhere. The group stays, were it empty, for
    /// [`Registry::forget_group`]. Costs as [`Registry::take_from_group`].
    pub fn take_from_file(&mut self, file: FileId, most: usize) -> Option<(u32, Vec<Subscriber>)> {
        let slot = self.slots_of(file).next()?;
        let taken = self.take(slot, |group| group.take_file(file, most.max(1)));
        // Else there would be no end.
        debug_assert!(!taken.is_empty(), "what is held on a slot is in its group");
        (!taken.is_empty()).then_some((slot, taken))
    }

    /// Takes registrations out of a group, and out of all that counts them.
    fn take(&mut self, slot: u32, take: impl FnOnce(&mut Group) -> Vec<Subscriber>) -> Vec<Subscriber> {
        let Some(group) = self.groups.get_mut(&slot) else { return Vec::new() };
        let before = group.kinds();
        let taken = take(group);
        let after = group.kinds();
        if group.oom().next().is_none() {
            self.ooms.remove(&slot);
        }
        if after[3] == 0 {
            self.percents.remove(&slot);
        }
        self.count_kinds(before, after);
        for to in &taken {
            self.registrations -= 1;
            let paid = (to.payer, to.file);
            if let Some(count) = self.by_payer.get_mut(&paid) {
                *count -= 1;
                if *count == 0 {
                    self.by_payer.remove(&paid);
                }
            }
            self.accounts.release(to.payer);
            let held = (to.file, slot);
            if let Some(count) = self.held.get_mut(&held) {
                *count -= 1;
                if *count == 0 {
                    self.held.remove(&held);
                    if self.slots_of(to.file).next().is_none() {
                        self.files.remove(&to.file);
                    }
                }
            }
        }
        give_back(&mut self.files);
        taken
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

    fn count_kinds(&mut self, before: [usize; 7], after: [usize; 7]) {
        for ((count, before), after) in self.kinds.iter_mut().zip(before).zip(after) {
            *count = *count + after as u64 - before as u64;
        }
    }
}

/// Gives back the room of a table most of whose entries have gone.
pub(crate) fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    const FEW: usize = 64;
    if table.capacity() > FEW.max(8 * table.len()) {
        table.shrink_to(2 * table.len());
    }
}

#[cfg(test)]
mod tests;
