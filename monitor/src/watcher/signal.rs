//! The last step: add to eventfds, tell followers.

use std::collections::BTreeMap;

use monitor_common::{
    band::Seen,
    control::ControlFile,
    pressure::{Level, Propagation},
    ring::Victim,
    word::Word as _,
};

use crate::{
    registry::{Crossing, Outcome, Side, Subscriber},
    source::{FileId, Source},
    vault::Ticket,
    watcher::{
        Watcher,
        event::{Cause, Event},
    },
};

impl<S: Source> Watcher<S> {
    pub(super) fn id_of(&self, index: u32) -> u64 {
        self.source.slot(index).map_or(0, |slot| slot.cgroup_id.get())
    }

    /// Signals crossings, then records them: an agent that is killed in between lets
    /// the next one signal some of them once more, and none not at all.
    pub(super) fn signal_crossings(&mut self, cgroup_id: u64, on: ControlFile, outcome: Outcome, usage: u64) {
        let Outcome { crossings, mut sides } = outcome;
        let mut totals: BTreeMap<FileId, u64> = BTreeMap::new();
        for crossing in crossings {
            let Crossing { to, threshold, direction } = crossing;
            *totals.entry(to.file).or_default() += 1;
            let cause = Cause::Crossed { on, threshold, direction, usage };
            self.tell(to.ticket, &Event { cgroup_id, cause, signals: 1 });
        }
        // The quiet ones first, then each eventfd's after its signal.
        sides.sort_by_key(|side| (totals.contains_key(&side.to.file), side.to.file));
        let mut sides = sides.into_iter().peekable();
        self.record_sides(std::iter::from_fn(|| sides.next_if(|side| !totals.contains_key(&side.to.file))));
        for (file, total) in totals {
            self.add(file, total, Cause::CROSSED);
            self.record_sides(std::iter::from_fn(|| sides.next_if(|side| side.to.file == file)));
        }
    }

    fn record_sides(&self, sides: impl Iterator<Item = Side>) {
        for side in sides {
            if let Some(vault) = &self.vault {
                vault.state().set_above(side.to.ticket, side.above);
            }
        }
    }

    /// Signals a registration's `file` for an event, and tells who follows it.
    pub(super) fn signal(&mut self, file: FileId, ticket: Ticket, event: &Event) {
        self.tell(ticket, event);
        self.add(file, event.signals, event.cause.label());
    }

    /// What happened in a slot beside a change of usage.
    pub(super) fn signal_events(&mut self, index: u32, seen: &Seen) {
        if seen.ooms > 0 {
            self.signal_ooms(index, seen.ooms);
        }
        let own = seen.windows.map(|count| (count, Propagation::new()));
        let below = seen.windows_below.map(|count| (count, Propagation::from_below()));
        for (level, (count, window)) in
            Level::ALL.into_iter().zip(own).chain(Level::ALL.into_iter().zip(below))
        {
            if count > 0 {
                self.signal_windows(index, level, count, window);
            }
        }
        if seen.emptied > 0
            && let Some(group) = self.registry.group(index)
        {
            let event = Event { cgroup_id: self.id_of(index), cause: Cause::Empty, signals: seen.emptied };
            for Subscriber { file, ticket, .. } in group.empty().collect::<Vec<_>>() {
                self.signal(file, ticket, &event);
            }
        }
    }

    /// Those who wait for OOM in the group at `index` or below it
    /// (`mem_cgroup_oom_notify`), each with its group's id.
    fn oom_listeners(&self, index: u32) -> Vec<(u64, Subscriber)> {
        let is_in =
            |slot| std::iter::successors(Some(slot), |slot| self.above(*slot)).any(|slot| slot == index);
        self.registry
            .oom_groups()
            .filter(|group| is_in(group.id.slot))
            .flat_map(|group| group.oom().map(|to| (self.id_of(group.id.slot), to)))
            .collect()
    }

    fn signal_ooms(&mut self, index: u32, ooms: u64) {
        let limit = self.id_of(index);
        for (cgroup_id, Subscriber { file, ticket, .. }) in self.oom_listeners(index) {
            self.signal(file, ticket, &Event { cgroup_id, cause: Cause::Oom { limit }, signals: ooms });
        }
    }

    /// Carries `count` windows of one level up to the root, as
    /// `vmpressure_work_fn` does each.
    fn signal_windows(&mut self, index: u32, level: Level, count: u64, mut window: Propagation) {
        let origin = self.id_of(index);
        for slot in self.lineage(index) {
            let hearers = self.registry.group(slot).map(|group| group.hearers(window, level));
            let hearers = hearers.unwrap_or_default();
            window.next_group(!hearers.is_empty());
            let cause = Cause::Pressure { level, origin };
            let event = Event { cgroup_id: self.id_of(slot), cause, signals: count };
            for Subscriber { file, ticket, .. } in hearers {
                self.signal(file, ticket, &event);
            }
        }
    }

    /// The OOM killer has chosen a process: told, not signalled.
    pub fn victim(&mut self, victim: &Victim) {
        let limit = self.id_of(victim.bell.slot);
        let comm = victim.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let cause = Cause::OomKill {
            limit,
            pid: victim.pid,
            comm: String::from_utf8_lossy(comm).into_owned(),
            victim: victim.bell.value,
        };
        self.explain(victim.bell.slot, &cause);
    }

    /// The OOM killer kills all of a group: told, not signalled.
    pub fn group_kill(&mut self, index: u32, victim: u64) {
        let cause = Cause::GroupKill { limit: self.id_of(index), victim };
        self.explain(index, &cause);
    }

    fn explain(&mut self, index: u32, cause: &Cause) {
        // The OOM itself first: its doorbell came before.
        self.look(index);
        if self.followers.is_empty() {
            return;
        }
        for (cgroup_id, to) in self.oom_listeners(index) {
            self.tell(to.ticket, &Event { cgroup_id, cause: cause.clone(), signals: 0 });
        }
    }

    pub(super) fn add(&mut self, file: FileId, count: u64, cause: usize) {
        let Some(eventfd) = self.eventfds.get(&file).or_else(|| self.own.get(&file)) else {
            return;
        };
        match self.signaller.signal(eventfd, count) {
            Ok(()) if self.registry.is_own(file) => {}
            Ok(()) => {
                self.counts.signals += count;
                self.measures.signalled(cause, count);
            }
            Err(errno) => {
                self.counts.unsignalled += count;
                log::error!(memcg_errno = errno as i32; "an eventfd could not be signalled (io_submit): {errno}");
            }
        }
    }

    /// Tells who follows a registration, until it wants no more.
    pub(super) fn tell(&mut self, ticket: Ticket, event: &Event) {
        if self.followers.get_mut(&ticket).is_some_and(|follower| !follower.tell(event)) {
            self.followers.remove(&ticket);
        }
    }
}
