//! Who is told what: what happened becomes what is owed, and followers hear of it.

use std::collections::{HashMap, VecDeque};

use monitor_common::{
    grammar::{control_file::ControlFile, pressure::Propagation},
    protocol::{band::Seen, pressure::Level, query::Query, ring::Victim, word::Word as _},
};

use crate::{
    persist::RecordId,
    registry::{Crossing, Outcome, Subscriber},
    source::{FileId, Source},
    watcher::{
        Watcher,
        ancestors::{AncestorWalk, WalkOutcome},
        event::{Cause, Event},
    },
};

/// An event on its way to those who wait for it.
#[derive(Debug)]
pub(super) struct Delivery {
    event: Event,
    /// How many [`Newcomers`] there had been when it happened.
    after: u64,
    /// Those of the group that it has come to who are still to be told.
    targets: Vec<Subscriber>,
    rest: Holdoff,
}

/// Registrations that were made, and eventfds that were taken in, while something was being
/// told: what happened before them is not for them, though tickets and addresses are used
/// again.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    count: u64,
    tickets: HashMap<RecordId, u64>,
    files: HashMap<FileId, u64>,
}

impl Newcomers {
    /// One more; `is_calm`: nothing is being told.
    pub(super) fn enter(&mut self, ticket: RecordId, is_calm: bool) {
        self.calm_down(is_calm);
        self.count += 1;
        if !is_calm {
            self.tickets.insert(ticket, self.count);
        }
    }

    /// One more eventfd.
    pub(super) fn enter_file(&mut self, file: FileId, is_calm: bool) {
        self.calm_down(is_calm);
        self.count += 1;
        if !is_calm {
            self.files.insert(file, self.count);
        }
    }

    fn calm_down(&mut self, is_calm: bool) {
        if is_calm && !(self.tickets.is_empty() && self.files.is_empty()) {
            (self.tickets, self.files) = Default::default();
        }
    }

    /// Whether this is another registration, or another eventfd, than the one that was there
    /// when so many had been made.
    fn is_after(&self, to: &Subscriber, count: u64) -> bool {
        let is_later = |number: Option<&u64>| number.is_some_and(|number| *number > count);
        is_later(self.tickets.get(&to.ticket)) || is_later(self.files.get(&to.file))
    }
}

/// Which groups come after.
#[derive(Debug)]
enum Holdoff {
    Nothing,
    /// Those in or below the group at `index` on which somebody waits for OOM, by slot; and
    /// one of which that is yet to be found out.
    Below {
        index: u32,
        next: u32,
        climb: Option<AncestorWalk>,
        /// Under which its climbs are remembered.
        oom: Option<u64>,
    },
    /// Those above.
    Up {
        level: Level,
        next: Option<u32>,
        window: Propagation,
    },
}

impl Delivery {
    /// To all that wait for OOM in the group at `index` or below it.
    const fn below(event: Event, after: u64, index: u32) -> Self {
        let rest = Holdoff::Below { index, next: 0, climb: None, oom: None };
        Self { event, after, targets: Vec::new(), rest }
    }
}

impl<S: Source> Watcher<S> {
    pub(super) fn id_of(&self, index: u32) -> u64 {
        self.source.slot(index).map_or(0, |slot| slot.cgroup_id.get())
    }

    /// What was crossed is owed, and then the sides are recorded: an agent that is killed
    /// in between lets the next one owe some of it once more, and none not at all.
    pub(super) fn owe_crossings(
        &mut self,
        cgroup_id: u64,
        on: ControlFile,
        outcome: Outcome,
        usage: u64,
        rung: Option<u64>,
    ) {
        let Outcome { crossings, sides } = outcome;
        for Crossing { to, threshold, direction } in crossings {
            let cause = Cause::Crossed { on, threshold, direction, usage };
            self.tell(to.ticket, &Event { cgroup_id, cause, signals: 1 });
            self.owe(to.file, to.ticket, 1, Cause::CROSSED, rung);
        }
        if let Some(persistence) = &self.persistence {
            for side in sides {
                persistence.state().set_above(side.to.ticket, side.above);
            }
        }
    }

    /// What happened in a slot beside a change of usage, to be told to those who wait.
    pub(super) fn tellings(&self, index: u32, seen: &Seen) -> VecDeque<Delivery> {
        let mut tellings = VecDeque::new();
        let (id, after) = (self.id_of(index), self.newcomers.count);
        if seen.ooms > 0 {
            let event = Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: seen.ooms };
            tellings.push_back(Delivery::below(event, after, index));
        }
        let own = seen.windows.map(|count| (count, Propagation::new()));
        let below = seen.windows_below.map(|count| (count, Propagation::from_below()));
        for (level, (count, window)) in
            Level::ALL.into_iter().zip(own).chain(Level::ALL.into_iter().zip(below))
        {
            if count > 0 {
                let event =
                    Event { cgroup_id: id, cause: Cause::Pressure { level, origin: id }, signals: count };
                let rest = Holdoff::Up { level, next: Some(index), window };
                tellings.push_back(Delivery { event, after, targets: Vec::new(), rest });
            }
        }
        if seen.emptied > 0
            && let Some(group) = self.registry.group(index)
        {
            let event = Event { cgroup_id: id, cause: Cause::Empty, signals: seen.emptied };
            let targets = group.empty().collect();
            tellings.push_back(Delivery { event, after, targets, rest: Holdoff::Nothing });
        }
        tellings
    }

    /// Goes on telling, as far as there is room; true at the end.
    pub(super) fn tell_on(&mut self, telling: &mut Delivery, rung: Option<u64>, room: &mut usize) -> bool {
        loop {
            while let Some(to) = telling.targets.pop() {
                if *room == 0 {
                    telling.targets.push(to);
                    return false;
                }
                *room -= 1;
                // Its registration may have ended since, and what it had be another's by now.
                if self.newcomers.is_after(&to, telling.after) {
                    continue;
                }
                let Event { cause, signals, .. } = &telling.event;
                let (cause, signals) = (cause.label(), *signals);
                self.tell(to.ticket, &telling.event);
                self.owe(to.file, to.ticket, signals, cause, rung);
                if self.is_time_over() {
                    *room = 0;
                }
            }
            if *room == 0 {
                return false;
            }
            *room -= 1;
            if !self.next_targets(telling) {
                return true;
            }
            if self.is_time_over() {
                *room = 0;
            }
        }
    }

    /// Goes a few levels towards the next group whose listeners hear of it; false at the end.
    fn next_targets(&mut self, telling: &mut Delivery) -> bool {
        let after = telling.after;
        match &mut telling.rest {
            Holdoff::Nothing => false,
            Holdoff::Below { index, next, climb, oom } => {
                // `mem_cgroup_oom_notify`: in the group and below it.
                let oom = *oom.get_or_insert_with(|| self.climbs.begin());
                let begun = climb.take().or_else(|| {
                    let id = self.registry.oom_group_from(*next)?.id;
                    *next = id.slot.saturating_add(1);
                    Some(AncestorWalk::from(id))
                });
                let Some(begun) = begun else {
                    self.climbs.end(oom);
                    return false;
                };
                match self.climb_on(begun, oom, *index) {
                    WalkOutcome::In(id) => {
                        // Its slots stay as they are while somebody waits; else nobody does.
                        if let Some(group) = self.registry.group(id.slot).filter(|group| group.id == id) {
                            telling.event.cgroup_id = self.id_of(id.slot);
                            telling.targets = group.oom().collect();
                        }
                    }
                    WalkOutcome::Elsewhere => {}
                    WalkOutcome::On(on) => *climb = Some(on),
                }
                true
            }
            Holdoff::Up { level, next, window } => {
                // Up to the root, as `vmpressure_work_fn` carries a window.
                let Some(slot) = *next else { return false };
                let group = self.registry.group(slot);
                telling.targets = group.map(|group| group.hearers(*window, *level)).unwrap_or_default();
                telling.targets.retain(|to| !self.newcomers.is_after(to, after));
                telling.event.cgroup_id = self.id_of(slot);
                window.next_group(self.is_heard(&telling.targets));
                *next = self.above(slot);
                true
            }
        }
    }

    /// Whether one of these is there to hear: v1 forgot an eventfd as it was closed, so those
    /// that are closed keep nothing from the groups above. Of very many some are asked for.
    fn is_heard(&self, targets: &[Subscriber]) -> bool {
        let some: Vec<_> = targets.iter().take(Query::FILES_AT_ONCE).map(|to| to.file).collect();
        let asked = some.len();
        asked < targets.len() || self.closed_among(some).len() < asked
    }

    /// The OOM killer has chosen a process: told, not signalled.
    pub fn victim(&mut self, victim: &Victim) {
        self.source.take_victim();
        if self.followers.is_empty() {
            return;
        }
        let limit = self.id_of(victim.bell.slot);
        let comm = victim.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let cause = Cause::OomKill {
            limit,
            pid: victim.pid,
            comm: String::from_utf8_lossy(comm).into_owned(),
            victim: victim.bell.value,
        };
        self.plan_telling(victim.bell.slot, cause);
    }

    /// The OOM killer kills all of a group: told, not signalled.
    pub fn group_kill(&mut self, index: u32, victim: u64) {
        self.source.take_victim();
        if !self.followers.is_empty() {
            let limit = self.id_of(index);
            self.plan_telling(index, Cause::GroupKill { limit, victim });
        }
    }

    /// To be told to each follower of a registration that waits for OOM in the group at
    /// `index` or below it; signals nothing.
    pub(super) fn explanation(&self, index: u32, cause: Cause) -> Delivery {
        let event = Event { cgroup_id: self.id_of(index), cause, signals: 0 };
        Delivery::below(event, self.newcomers.count, index)
    }

    /// Tells who follows a registration.
    pub(super) fn tell(&mut self, ticket: RecordId, event: &Event) {
        if let Some(follower) = self.followers.get_mut(&ticket)
            && !follower.tell(event)
        {
            self.followers.remove(&ticket);
        }
    }
}
