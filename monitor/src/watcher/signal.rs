//! Delivery of events: what happened becomes signals to deliver, and followers receive it.

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

/// An event on its way to the registrations for it.
#[derive(Debug)]
pub(super) struct Delivery {
    event: Event,
    /// Value of [`Newcomers::count`] when it happened.
    after: u64,
    /// Registrations of the present group that it is still to be delivered to.
    targets: Vec<Subscriber>,
    remaining: Remaining,
}

/// Registrations and eventfds that were added while an event was being delivered: what happened
/// before is not for them, though their record ids and addresses may be used again.
#[derive(Debug, Default)]
pub(super) struct Newcomers {
    count: u64,
    tickets: HashMap<RecordId, u64>,
    files: HashMap<FileId, u64>,
}

impl Newcomers {
    /// Notes a registration; `is_idle`: no event is being delivered.
    pub(super) fn enter(&mut self, ticket: RecordId, is_idle: bool) {
        self.forget_if_idle(is_idle);
        self.count += 1;
        if !is_idle {
            self.tickets.insert(ticket, self.count);
        }
    }

    /// Notes an eventfd that was taken in.
    pub(super) fn enter_file(&mut self, file: FileId, is_idle: bool) {
        self.forget_if_idle(is_idle);
        self.count += 1;
        if !is_idle {
            self.files.insert(file, self.count);
        }
    }

    fn forget_if_idle(&mut self, is_idle: bool) {
        if is_idle && !(self.tickets.is_empty() && self.files.is_empty()) {
            (self.tickets, self.files) = Default::default();
        }
    }

    /// Whether the registration or its eventfd is another than the one that was there when
    /// `count` had been made.
    fn is_after(&self, to: &Subscriber, count: u64) -> bool {
        let is_later = |number: Option<&u64>| number.is_some_and(|number| *number > count);
        is_later(self.tickets.get(&to.ticket)) || is_later(self.files.get(&to.file))
    }
}

/// The groups that an event is still to be delivered in.
#[derive(Debug)]
enum Remaining {
    Nothing,
    /// Groups with listeners for OOM in or below the group at `index`, by slot; and the walk from
    /// one for which that is not known yet.
    Below {
        index: u32,
        next: u32,
        climb: Option<AncestorWalk>,
        /// The number under which results of its walks are remembered.
        oom: Option<u64>,
    },
    /// The present group and those above it.
    Up {
        level: Level,
        next: Option<u32>,
        window: Propagation,
    },
}

impl Delivery {
    /// Makes a delivery to the listeners for OOM in the group at `index` or below it.
    const fn below(event: Event, after: u64, index: u32) -> Self {
        let remaining = Remaining::Below { index, next: 0, climb: None, oom: None };
        Self { event, after, targets: Vec::new(), remaining }
    }
}

impl<S: Source> Watcher<S> {
    pub(super) fn id_of(&self, index: u32) -> u64 {
        self.source.slot(index).map_or(0, |slot| slot.cgroup_id.get())
    }

    /// Owes a signal for each crossing, and then records the sides: an agent that is killed in
    /// between has the next one deliver some of them once more, and none is lost.
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
            self.notify_follower(to.ticket, &Event { cgroup_id, cause, signals: 1 });
            self.owe(to.file, to.ticket, 1, Cause::CROSSED, rung);
        }
        if let Some(persistence) = &self.persistence {
            for side in sides {
                persistence.state().set_above(side.to.ticket, side.above);
            }
        }
    }

    /// Events of a slot beside a change of usage, to be delivered to its registrations.
    pub(super) fn deliveries(&self, index: u32, seen: &Seen) -> VecDeque<Delivery> {
        let mut deliveries = VecDeque::new();
        let (id, after) = (self.id_of(index), self.newcomers.count);
        if seen.ooms > 0 {
            let event = Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: seen.ooms };
            deliveries.push_back(Delivery::below(event, after, index));
        }
        let own = seen.windows.map(|count| (count, Propagation::new()));
        let below = seen.windows_below.map(|count| (count, Propagation::from_below()));
        for (level, (count, window)) in
            Level::ALL.into_iter().zip(own).chain(Level::ALL.into_iter().zip(below))
        {
            if count > 0 {
                let event =
                    Event { cgroup_id: id, cause: Cause::Pressure { level, origin: id }, signals: count };
                let remaining = Remaining::Up { level, next: Some(index), window };
                deliveries.push_back(Delivery { event, after, targets: Vec::new(), remaining });
            }
        }
        if seen.emptied > 0
            && let Some(group) = self.registry.group(index)
        {
            let event = Event { cgroup_id: id, cause: Cause::Empty, signals: seen.emptied };
            let targets = group.empty().collect();
            deliveries.push_back(Delivery { event, after, targets, remaining: Remaining::Nothing });
        }
        deliveries
    }

    /// Goes on with a delivery, as far as there is room; true at the end.
    pub(super) fn deliver_on(
        &mut self,
        delivery: &mut Delivery,
        rung: Option<u64>,
        room: &mut usize,
    ) -> bool {
        loop {
            while let Some(to) = delivery.targets.pop() {
                if *room == 0 {
                    delivery.targets.push(to);
                    return false;
                }
                *room -= 1;
                // The registration may have ended since, and its id or eventfd may be another's
                // by now.
                if self.newcomers.is_after(&to, delivery.after) {
                    continue;
                }
                let Event { cause, signals, .. } = &delivery.event;
                let (cause, signals) = (cause.label(), *signals);
                self.notify_follower(to.ticket, &delivery.event);
                self.owe(to.file, to.ticket, signals, cause, rung);
                if self.is_time_over() {
                    *room = 0;
                }
            }
            if *room == 0 {
                return false;
            }
            *room -= 1;
            if !self.next_targets(delivery) {
                return true;
            }
            if self.is_time_over() {
                *room = 0;
            }
        }
    }

    /// Goes a few levels towards the next group whose listeners receive it; false at the end.
    fn next_targets(&mut self, delivery: &mut Delivery) -> bool {
        let after = delivery.after;
        match &mut delivery.remaining {
            Remaining::Nothing => false,
            Remaining::Below { index, next, climb, oom } => {
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
                        // A group keeps its slot while it has registrations.
                        if let Some(group) = self.registry.group(id.slot).filter(|group| group.id == id) {
                            delivery.event.cgroup_id = self.id_of(id.slot);
                            delivery.targets = group.oom().collect();
                        }
                    }
                    WalkOutcome::Elsewhere => {}
                    WalkOutcome::On(on) => *climb = Some(on),
                }
                true
            }
            Remaining::Up { level, next, window } => {
                // Up to the root, as `vmpressure_work_fn` carries a window.
                let Some(slot) = *next else { return false };
                let group = self.registry.group(slot);
                delivery.targets =
                    group.map(|group| group.pressure_targets(*window, *level)).unwrap_or_default();
                delivery.targets.retain(|to| !self.newcomers.is_after(to, after));
                delivery.event.cgroup_id = self.id_of(slot);
                window.next_group(self.has_listener(&delivery.targets));
                *next = self.above(slot);
                true
            }
        }
    }

    /// Whether the eventfd of one of these is open: v1 removed an eventfd as it was closed, so
    /// closed ones keep nothing from the groups above. Of very many only some are counted.
    fn has_listener(&self, targets: &[Subscriber]) -> bool {
        let some: Vec<_> = targets.iter().take(Query::FILES_AT_ONCE).map(|to| to.file).collect();
        let counted = some.len();
        counted < targets.len() || self.closed_among(some).len() < counted
    }

    /// Delivers to followers, without a signal, that the OOM killer has chosen a process.
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
        self.plan_explanation(victim.bell.slot, cause);
    }

    /// Delivers to followers, without a signal, that the OOM killer kills a whole group.
    pub fn group_kill(&mut self, index: u32, victim: u64) {
        self.source.take_victim();
        if !self.followers.is_empty() {
            let limit = self.id_of(index);
            self.plan_explanation(index, Cause::GroupKill { limit, victim });
        }
    }

    /// Makes a delivery to each follower of a registration for OOM in the group at `index` or
    /// below it; it signals nothing.
    pub(super) fn explanation(&self, index: u32, cause: Cause) -> Delivery {
        let event = Event { cgroup_id: self.id_of(index), cause, signals: 0 };
        Delivery::below(event, self.newcomers.count, index)
    }

    /// Passes an event to the follower of a registration, if it has one.
    pub(super) fn notify_follower(&mut self, ticket: RecordId, event: &Event) {
        if let Some(follower) = self.followers.get_mut(&ticket)
            && !follower.deliver(event)
        {
            self.followers.remove(&ticket);
        }
    }
}
