//! Taking over from an earlier agent: its registrations, and what happened to their groups
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

/// Results of taking over what an earlier agent left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Registrations that go on.
    pub registrations: u64,
    /// Registrations whose group went meanwhile: signalled now.
    pub removed: u64,
    /// Records that could not be taken over: without an eventfd, or corrupt.
    pub lost: u64,
}

/// Milliseconds in which a client that lost its connection to an agent repeats its request.
const UNSURE_FOR: u64 = 60_000;

impl<S: Source> Watcher<S> {
    /// Takes over what an earlier agent has `left`, and keeps registrations from now on in
    /// `persistence`. With `instance`, the maps are those that the slots of its records are in;
    /// `identity` identifies the eventfds.
    ///
    /// # Errors
    /// The programs could not be queried.
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
                log::error!("a registration of {} is lost: no eventfd was kept for it", record.account);
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
            self.notify_follower(ticket, &Event { cgroup_id, cause: Cause::Removed, signals: 1 });
            self.owners.insert(file, record.account);
            // Crossings worked out before the group went, and not signalled.
            if record.owed > 0 {
                self.owes(file, ticket, record.owed, Cause::of(&record.trigger), None);
            }
            self.owes(file, ticket, 1, Cause::REMOVED, None);
            restored.removed += 1;
        }
        let (registry, undelivered) = (&self.registry, &self.undelivered);
        self.eventfds.retain(|file, _| registry.has_file(*file) || undelivered.has(*file));
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

    /// Removes the persistent state, since this agent ends for good.
    pub fn leave_nothing(&self) {
        if let Some(persistence) = &self.persistence {
            persistence.give_up_all();
        }
    }

    /// The number of agents that took over from an earlier one, with its registrations.
    pub fn restarts(&self) -> u64 {
        self.persistence.as_ref().map_or(0, |persistence| persistence.state().restarts())
    }

    /// The id of a registration that an earlier agent has made and perhaps not confirmed to the
    /// client: a repeated request means the same registration.
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

    /// Registers a recovered record, on the side that was signalled last.
    fn enter_again(&mut self, ticket: RecordId, record: &Record) -> Result<()> {
        let Record { on, trigger, file, account, group, above, .. } = *record;
        let known = self.registry.group(group.slot).map(|known| known.scale(on));
        let now = match known.filter(|scale| !scale.is_empty()) {
            Some(scale) => scale.now(),
            // Its group is gone: the look that follows signals that.
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
        // Worked out by an earlier agent, and perhaps signalled: the one thing that is signalled
        // twice.
        if record.owed > 0 {
            self.owes(file, ticket, record.owed, Cause::of(&trigger), None);
        }
        Ok(())
    }

    /// Takes in an eventfd out of a descriptor stash.
    fn take_in(&mut self, file: FileId, fd: std::os::fd::OwnedFd, identity: &dyn Identify) -> Result<()> {
        use std::os::fd::AsFd as _;
        let found = match EventFd::check(fd.as_fd()).map(|()| EventFd::known(fd)) {
            Ok(eventfd) => (identity.file_of(eventfd.as_fd())?, eventfd),
            Err(errno) => {
                log::error!("a descriptor that was kept is no eventfd, and is closed: {errno}");
                return Ok(());
            }
        };
        if found.0 != file {
            log::error!("an eventfd that was kept is another than recorded, and is closed");
            return Ok(());
        }
        self.eventfds.insert(file, found.1);
        Ok(())
    }

    /// Whether the slot is still the group's: then the agent holds it, even if the group is on
    /// its way out.
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

    /// Queues what happened while there was no agent, to be signalled in turns.
    fn catch_up_with_all(&mut self) {
        self.registrations_changed();
        // An agent that was killed may have taken its doorbell, and not looked.
        self.limits_written();
        // An agent that was killed may have published a first band, and no more: the looks below
        // read the results of charges that saw the old epoch.
        if let Err(error) = self.source.end_epoch() {
            log::error!("{error}");
        }
        for slot in self.registry.slots() {
            self.plan_settle(slot);
        }
        // All slots: the listeners of an OOM may be below the slot that it is in, and slots
        // without registrations are given back.
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
