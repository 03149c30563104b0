//! Takes over from an agent that went: its registrations, and what became of them
//! meanwhile.

use std::collections::{HashMap, HashSet};

use monitor_common::{
    grammar::{
        control_file::Trigger,
        threshold::{At, Threshold},
    },
    protocol::{band::give_back, slot::SlotState, word::Word as _},
};

use crate::{
    error::Result,
    eventfd::EventFd,
    persist::{Persistence, Record, RecordId, Recovered, Unfinished},
    registry::Subscription,
    source::{FileId, GroupId, Identify, Source},
    watcher::{Cause, Event, Watcher},
};

/// What became of what an agent before had left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Registrations that go on.
    pub registrations: u64,
    /// Those whose group went meanwhile: told now.
    pub removed: u64,
    /// Records that could not be taken over: no eventfd, or no sense in them.
    pub lost: u64,
}

/// Milliseconds in which a client that lost its connection to an agent asks again.
const UNSURE_FOR: u64 = 60_000;

impl<S: Source> Watcher<S> {
    /// Takes over what an agent before has `left`, and keeps what is registered from now
    /// on in `persistence`. With `instance`, the maps are those that its slots are in; `identity`
    /// says whose the eventfds are.
    ///
    /// # Errors
    /// The programs could not be asked.
    pub fn restore(
        &mut self,
        persistence: Persistence,
        left: Recovered,
        instance: u64,
        identity: &dyn Identify,
    ) -> Result<Restored> {
        let same = left.instance == instance;
        let mut restored = Restored { lost: left.flaws, ..Restored::default() };
        let by_id = if same { HashMap::new() } else { self.source.groups_by_id() };
        let place =
            |record: &Record| if same { Some(record.group) } else { by_id.get(&record.cgroup_id).copied() };

        let wanted: HashSet<FileId> = left.records.iter().map(|(_, record)| record.file).collect();
        for (file, fd) in left.files {
            if wanted.contains(&file) {
                self.take_in(file, fd, identity)?;
            }
        }
        self.persistence = Some(persistence);
        let mut gone = Vec::new();
        for (ticket, record) in left.records {
            if !self.eventfds.contains_key(&record.file) {
                log::error!("a registration of {} came without its eventfd", record.account);
                restored.lost += 1;
                self.strike_out(&[ticket]);
                continue;
            }
            match place(&record).filter(|group| self.take_hold(*group)) {
                Some(group) => {
                    let record = Record { group, ..record };
                    self.enter_again(ticket, &record)?;
                    restored.registrations += 1;
                    self.unsure.extend((!record.sure).then_some((ticket, record)));
                }
                None => gone.push((ticket, record)),
            }
        }
        for (ticket, record) in gone {
            let Record { file, cgroup_id, .. } = record;
            self.tell(ticket, &Event { cgroup_id, cause: Cause::Removed, signals: 1 });
            self.owners.insert(file, record.account);
            // Worked out before the group went, and not given.
            if record.owed > 0 {
                self.owes(file, ticket, record.owed, Cause::of(&record.trigger), None);
            }
            self.owes(file, ticket, 1, Cause::REMOVED, None);
            restored.removed += 1;
        }
        let (registry, debts) = (&self.registry, &self.debts);
        self.eventfds.retain(|file, _| registry.has_file(*file) || debts.has(*file));
        if let Some(persistence) = &self.persistence {
            persistence.state().set_instance(instance);
        }
        self.unsure_until = self.host.clock() + UNSURE_FOR;
        self.finish(&left.unfinished);
        // Before anything is looked at: from here on the new programs see what the old ones do.
        let root = self.source.root().slot;
        for slot in self.registry.slots() {
            if slot != root {
                self.publish(slot);
            }
        }
        self.source.take_over(self.wanted());
        self.catch_up_with_all();
        if let Some(persistence) = &mut self.persistence {
            persistence.repack(&self.eventfds);
        }
        Ok(restored)
    }

    /// The end for good: nothing is kept for a next agent.
    pub fn leave_nothing(&self) {
        if let Some(persistence) = &self.persistence {
            persistence.give_up_all();
        }
    }

    /// How many agents took over from one before, with what it had.
    pub fn restarts(&self) -> u64 {
        self.persistence.as_ref().map_or(0, |persistence| persistence.state().restarts())
    }

    /// A registration that an agent before has made and perhaps not answered: whoever asks
    /// for it again means the same one.
    pub(super) fn answered_late(&mut self, request: &Record) -> Option<RecordId> {
        if self.unsure.is_empty() {
            return None;
        }
        if self.host.clock() >= self.unsure_until {
            self.unsure = Vec::new();
        }
        let at = self.unsure.iter().position(|(_, record)| record.is_same_request(request))?;
        let (ticket, record) = self.unsure.swap_remove(at);
        self.registry.has_file(record.file).then_some(ticket)
    }

    /// Registers what was registered, at the side that was told last.
    fn enter_again(&mut self, ticket: RecordId, record: &Record) -> Result<()> {
        let Record { on, trigger, file, account, group, above, .. } = *record;
        let known = self.registry.group(group.slot).map(|known| known.scale(on));
        let now = match known.filter(|scale| !scale.is_empty()) {
            Some(scale) => scale.now(),
            // One that is gone: that it went is told by the look that follows.
            None => match self.quantity(group, on)? {
                Some(now) => now,
                None => self.last_of(group, on).unwrap_or(0),
            },
        };
        let in_percent = matches!(trigger, Trigger::Threshold(Threshold { at: At::Percent(_), .. }));
        let limit = if in_percent { self.effective_limit(group.slot)? } else { u64::MAX };
        let registration = Subscription { on, trigger, file, account, ticket, above: Some(above) };
        self.owners.insert(file, account);
        self.shares(group.slot, account);
        self.registry.add(group, registration, now, limit);
        if trigger == Trigger::Empty {
            self.note_populated(group);
        }
        if let Some(persistence) = &self.persistence {
            persistence.state().write(ticket, record);
        }
        // Worked out by an agent before, and perhaps given: the one thing told twice.
        if record.owed > 0 {
            self.owes(file, ticket, record.owed, Cause::of(&trigger), None);
        }
        Ok(())
    }

    /// Takes in an eventfd out of a stash.
    fn take_in(&mut self, file: FileId, fd: std::os::fd::OwnedFd, identity: &dyn Identify) -> Result<()> {
        use std::os::fd::AsFd as _;
        let found = match EventFd::check(fd.as_fd()).map(|()| EventFd::known(fd)) {
            Ok(eventfd) => (identity.file_of(eventfd.as_fd())?, eventfd),
            Err(errno) => {
                log::error!("what was kept for an eventfd is none: {errno}");
                return Ok(());
            }
        };
        if found.0 != file {
            log::error!("what was kept for one eventfd is another");
            return Ok(());
        }
        self.eventfds.insert(file, found.1);
        Ok(())
    }

    /// Whether the slot is still the group's: then it is ours, were the group on its way
    /// out.
    fn take_hold(&self, group: GroupId) -> bool {
        self.source.slot(group.slot).is_some_and(|slot| {
            slot.watch(group.generation) || {
                let state = slot.state();
                state.has(SlotState::WATCHED) && state.generation() == group.generation
            }
        })
    }

    /// Puts back what an agent that was killed had taken out of slots.
    fn finish(&mut self, unfinished: &[Unfinished]) {
        for Unfinished { cgroup_id, seen } in unfinished {
            let slot = (0..)
                .map_while(|index| self.source.slot(index))
                .find(|slot| slot.state().has(SlotState::ONLINE) && slot.cgroup_id.get() == *cgroup_id);
            if let Some(slot) = slot {
                give_back(slot, seen);
            }
        }
        if let Some(persistence) = &mut self.persistence {
            persistence.state_mut().end_all();
        }
    }

    /// Has what happened while there was no agent signalled, in turns.
    fn catch_up_with_all(&mut self) {
        self.registrations_changed();
        // One that was killed may have taken its doorbell, and not looked.
        self.limits_written();
        // An agent that was killed may have published a first band, and no more: the looks
        // below read what charges that went by the old epoch have done.
        if let Err(error) = self.source.end_epoch() {
            log::error!("{error}");
        }
        for slot in self.registry.slots() {
            self.plan_settle(slot);
        }
        // All slots: who waits for an OOM may wait below the slot that it is in, and
        // what nobody waits on any more is given back.
        let all = (0..).take_while(|index| self.source.slot(*index).is_some()).count();
        for index in 0..u32::try_from(all).unwrap_or(u32::MAX) {
            let state = self.source.slot(index).map(|slot| (slot.state(), slot.pending.get()));
            if state.is_some_and(|(state, pending)| state.has(SlotState::WATCHED) || pending != 0) {
                self.ring(index, 0);
            }
        }
        self.end_closed();
    }
}
