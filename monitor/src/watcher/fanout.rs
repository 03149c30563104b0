//! Fan-out of events: the registrations that what happened in a group is delivered to, there,
//! above and below.

use std::collections::VecDeque;

use monitor_common::{
    grammar::pressure::Propagation,
    protocol::{band::Seen, pressure::Level, query::Query, ring::KillReason},
};

use crate::{
    registry::Subscriber,
    source::Source,
    watcher::{
        ancestors::{AncestorWalk, AncestorWalks, WalkOutcome},
        core::Core,
        event::{Cause, Event},
        hierarchy::{above, id_of},
        undelivered::PendingSignals,
    },
};

/// An event on its way to the registrations for it.
#[derive(Debug)]
pub(super) struct Fanout {
    event: Event,
    /// The number of newcomers when it happened: it is not for later ones.
    after: u64,
    /// Registrations of the present group that it is still to be delivered to.
    targets: Vec<Subscriber>,
    remaining: Remaining,
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
        walk: Option<AncestorWalk>,
        /// The number under which results of its walks are remembered.
        oom: Option<u64>,
    },
    /// Listeners for OOM in the group in a slot and those above it.
    Above {
        next: Option<u32>,
    },
    /// The present group and those above it.
    Up {
        level: Level,
        next: Option<u32>,
        window: Propagation,
    },
}

impl Fanout {
    /// Makes one to the listeners for OOM in the group at `index` or below it.
    const fn below(event: Event, after: u64, index: u32) -> Self {
        let remaining = Remaining::Below { index, next: 0, walk: None, oom: None };
        Self { event, after, targets: Vec::new(), remaining }
    }

    /// Makes one to each follower of a registration for OOM in the group at `index` or below it; it
    /// signals nothing. A kill by the host, or by no limit that is known, concerns the victim's group, at
    /// `index`, and those above it.
    pub(super) fn explanation<S: Source>(core: &Core<S>, index: u32, cause: Cause) -> Self {
        let is_hosts = matches!(&cause, Cause::OomKill(kill) if kill.reason == KillReason::Host || kill.limit.is_none())
            || matches!(cause, Cause::GroupKill { limit: None, .. });
        let event = Event { cgroup_id: id_of(&core.source, index), cause, signals: 0 };
        let after = core.newcomers.count();
        if is_hosts {
            let remaining = Remaining::Above { next: Some(index) };
            return Self { event, after, targets: Vec::new(), remaining };
        }
        Self::below(event, after, index)
    }

    /// Events of a slot beside a change of usage, to be delivered to its registrations.
    pub(super) fn all_of<S: Source>(core: &Core<S>, index: u32, seen: &Seen) -> VecDeque<Self> {
        let mut fanouts = VecDeque::new();
        let (id, after) = (id_of(&core.source, index), core.newcomers.count());
        if seen.ooms > 0 {
            let event = Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: seen.ooms };
            fanouts.push_back(Self::below(event, after, index));
        }
        if let Some(tap) = &core.delivery.tap {
            for (level, _) in Level::ALL.into_iter().zip(seen.windows).filter(|(_, count)| *count > 0) {
                tap.window(id, level);
            }
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
                fanouts.push_back(Self { event, after, targets: Vec::new(), remaining });
            }
        }
        if seen.emptied > 0
            && let Some(group) = core.registry.group(index)
        {
            let event = Event { cgroup_id: id, cause: Cause::Empty, signals: seen.emptied };
            let targets = group.empty().collect();
            fanouts.push_back(Self { event, after, targets, remaining: Remaining::Nothing });
        }
        fanouts
    }

    /// Goes on with it, as far as there is room; true at the end.
    pub(super) fn go_on<S: Source>(
        &mut self,
        core: &mut Core<S>,
        walks: &mut AncestorWalks,
        rung: Option<u64>,
        room: &mut usize,
    ) -> bool {
        loop {
            while let Some(to) = self.targets.pop() {
                if *room == 0 {
                    self.targets.push(to);
                    return false;
                }
                *room -= 1;
                // The registration may have ended since, and its id or eventfd may be another's
                // by now.
                if core.newcomers.is_after(&to, self.after) {
                    continue;
                }
                let Event { cause, signals, .. } = &self.event;
                let (cause, signals) = (cause.label(), *signals);
                core.delivery.notify_follower(to.record_id, &self.event);
                let (file, record_id) = (to.file, to.record_id);
                core.add_signals(PendingSignals { file, record_id, count: signals, cause, rung });
                if core.turns.is_time_over() {
                    *room = 0;
                }
            }
            if *room == 0 {
                return false;
            }
            *room -= 1;
            if !self.next_targets(core, walks) {
                return true;
            }
            if core.turns.is_time_over() {
                *room = 0;
            }
        }
    }

    /// Goes a few levels towards the next group whose listeners receive it; false at the end.
    fn next_targets<S: Source>(&mut self, core: &mut Core<S>, walks: &mut AncestorWalks) -> bool {
        let after = self.after;
        match &mut self.remaining {
            Remaining::Nothing => false,
            Remaining::Below { index, next, walk, oom } => {
                // `mem_cgroup_oom_notify`: in the group and below it.
                let oom = *oom.get_or_insert_with(|| walks.begin());
                let begun = walk.take().or_else(|| {
                    let id = core.registry.oom_group_from(*next)?.id;
                    *next = id.slot.saturating_add(1);
                    Some(AncestorWalk::from(id))
                });
                let Some(begun) = begun else {
                    walks.end(oom);
                    return false;
                };
                match walks.walk_on(&core.source, begun, oom, *index) {
                    WalkOutcome::In(id) => {
                        // A group keeps its slot while it has registrations.
                        if let Some(group) = core.registry.group(id.slot).filter(|group| group.id == id) {
                            self.event.cgroup_id = id_of(&core.source, id.slot);
                            self.targets = group.oom().collect();
                        }
                    }
                    WalkOutcome::Elsewhere => {}
                    WalkOutcome::On(on) => *walk = Some(on),
                }
                true
            }
            Remaining::Above { next } => {
                let Some(slot) = *next else { return false };
                let group = core.registry.group(slot);
                self.targets = group.map(|group| group.oom().collect()).unwrap_or_default();
                self.event.cgroup_id = id_of(&core.source, slot);
                *next = above(&core.source, slot);
                true
            }
            Remaining::Up { level, next, window } => {
                // Up to the root, as `vmpressure_work_fn` carries a window.
                let Some(slot) = *next else { return false };
                let group = core.registry.group(slot);
                self.targets = group.map(|group| group.pressure_targets(*window, *level)).unwrap_or_default();
                let cgroup_id = id_of(&core.source, slot);
                if !matches!(self.event.cause, Cause::Pressure { origin, .. } if origin == cgroup_id) {
                    core.arrivals.note_window(slot, *window, *level);
                }
                self.event.cgroup_id = cgroup_id;
                window.next_group(has_listener(core, &self.targets, after));
                *next = above(&core.source, slot);
                true
            }
        }
    }
}

/// Whether the eventfd of one of these is open: v1 removed an eventfd as it was closed, so
/// closed ones keep nothing from the groups above. Very many are not looked at: one is taken to be open.
/// Later ones than the event, the `after`-th, are none of its listeners.
fn has_listener<S: Source>(core: &Core<S>, targets: &[Subscriber], after: u64) -> bool {
    if targets.len() > Query::FILES_AT_ONCE {
        return true;
    }
    let some = targets.iter().filter(|to| !core.newcomers.is_after(to, after));
    let some: Vec<_> = some.map(|to| to.file).collect();
    let counted = some.len();
    core.closed_among(some).len() < counted
}
