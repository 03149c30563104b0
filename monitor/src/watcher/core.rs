//! The parts that all of the watcher's work uses, and what changes several of them at once: the
//! end of registrations, with their group or with the last reference to their eventfd.

use std::{sync::Arc, time::Duration};

use monitor_common::protocol::{
    band::OPEN,
    query::Subscriptions,
    ring::{KillReason, LossKind, Victim},
    slot::{NOT_POPULATED, POPULATED, POPULATED_UNKNOWN, SlotState},
    word::Word as _,
};
use monitor_sys::table::SharedSlot;
use tokio::sync::Notify;

use crate::{
    cgroup::host::Host,
    error::Result,
    kills::{Kill, KillDetails, KillTeller},
    persist::RecordId,
    registry::{Clock, Registry},
    source::{FileId, GroupId, Source},
    watcher::{
        arrivals::Arrivals,
        bounds::Limits,
        delivery::Delivery,
        event::{Cause, Event},
        hierarchy::id_of,
        holdoffs::Holdoffs,
        newcomers::Newcomers,
        quantity,
        recorded::RecordedGroups,
        records::Records,
        turns::{ROOM, Task, Turns},
        undelivered::PendingSignals,
    },
};

/// The kernel side, the registrations, and the parts that serve them. Each part keeps its own
/// state to its file.
pub(super) struct Core<S> {
    pub(super) source: S,
    pub(super) host: Arc<dyn Host + Send + Sync>,
    pub(super) registry: Registry,
    pub(super) limits: Limits,
    pub(super) records: Records,
    pub(super) delivery: Delivery,
    pub(super) turns: Turns,
    pub(super) newcomers: Newcomers,
    pub(super) holdoffs: Holdoffs,
    /// Keeps what the OOM killer does; without it that is told to followers alone.
    pub(super) kills: Option<Arc<KillTeller>>,
    pub(super) arrivals: Arrivals,
    pub(super) recorded: RecordedGroups,
}

impl<S: Source> Core<S> {
    pub(super) fn new(source: S, host: Box<dyn Host + Send + Sync>, limits: Limits) -> Self {
        let notify = Arc::<Notify>::default();
        let delivery = Delivery::new(&source, Arc::clone(&notify));
        Self {
            source,
            host: Arc::from(host),
            registry: Registry::default(),
            limits,
            records: Records::default(),
            delivery,
            turns: Turns::new(notify),
            newcomers: Newcomers::default(),
            holdoffs: Holdoffs::default(),
            kills: None,
            arrivals: Arrivals::default(),
            recorded: RecordedGroups::default(),
        }
    }

    pub(super) fn clock(&self) -> Clock {
        Clock { now: self.host.clock(), holdoff: self.limits.holdoff_ms }
    }

    /// The limit that percents on a slot are of ([`quantity::effective_limit`]).
    pub(super) fn effective_limit(&self, slot: u32) -> Result<u64> {
        quantity::effective_limit(&self.source, self.host.as_ref(), slot)
    }

    /// Queues a look at a slot ([`Turns::ring`]).
    pub(super) fn ring(&mut self, slot: u32, rung: u64) {
        self.turns.ring(&self.source, slot, rung);
    }

    /// Holds a slot without registrations, so that it is not given back during a look. False
    /// where it has been given back: the agent has nothing to do with it.
    pub(super) fn may_look_at(&self, index: u32, slot: &SharedSlot) -> bool {
        index == self.source.root().slot
            || self.registry.group(index).is_some()
            || slot.hold(slot.state().generation())
    }

    /// Notes that a task is in the group or not, for which a call may be skipped from now on.
    pub(super) fn note_populated(&self, group: GroupId) {
        let Some(slot) = self.source.slot(group.slot) else { return };
        slot.populated.set(POPULATED_UNKNOWN);
        if let Ok(Some(populated)) = self.source.is_populated(group) {
            // The programs know better.
            slot.populated.cas(POPULATED_UNKNOWN, if populated { POPULATED } else { NOT_POPULATED });
        }
    }

    /// Adds signals for a registration ([`Delivery::add`]).
    pub(super) fn add_signals(&mut self, signals: PendingSignals) {
        self.delivery.add(signals, &self.records, &mut self.turns);
    }

    /// Gives the signals of an eventfd, as many as one turn allows.
    pub(super) fn deliver(&mut self, file: FileId, room: &mut usize, time: Duration) {
        // Its groups have gone. v1 held no file: an eventfd closed by its client was signalled no
        // more. While the agent holds it, it is still in the client's epoll set, by a number that
        // is none any more.
        if self.delivery.has_undelivered(file) && !self.registry.has_file(file) && self.is_closed(file) {
            self.delivery.discard(file, &mut self.records);
            self.delivery.drop_file(file, &mut self.records);
            return;
        }
        self.delivery.deliver(file, room, time, &self.registry, &mut self.records, &mut self.turns);
    }

    /// Takes the results of signals that the lane has given.
    pub(super) fn take_from_lane(&mut self) {
        self.delivery.take_from_lane(&self.registry, &mut self.records, &mut self.turns);
    }

    /// Keeps that the OOM killer has killed a process, and plans to deliver it to followers, without a
    /// signal.
    pub(super) fn plan_victim(&mut self, victim: &Victim) {
        self.source.take_victim();
        let (reason, slot) = KillReason::of(victim.bell.slot);
        let limit = slot.map(|slot| id_of(&self.source, slot));
        // The host's is told in the victim's group, or at the root where that has no slot.
        let own = self.source.slot(victim.slot).map_or(self.source.root().slot, |_| victim.slot);
        let to = if reason == KillReason::Host { Some(own) } else { slot };
        self.plan_kill(Kill::new(*victim, reason, limit), to);
    }

    /// Does what [`plan_victim`](Self::plan_victim) does for a kill that the kernel has logged or counted.
    pub(super) fn plan_logged_kill(&mut self, kill: Kill) {
        // A group without a slot has no registrations, there or below.
        let slot = match kill.limit {
            Some(limit) => self.source.slot_of(limit),
            None => self.source.slot_of(kill.victim.bell.value).or(Some(self.source.root().slot)),
        };
        self.plan_kill(kill, slot);
    }

    /// Keeps a kill, and plans to deliver it from the slot `to` on.
    fn plan_kill(&mut self, kill: Kill, to: Option<u32>) {
        if !self.delivery.has_followers() && self.kills.is_none() && self.delivery.tap.is_none() {
            return;
        }
        let kill = Arc::new(kill);
        match &self.kills {
            Some(kills) if !kills.tell(&kill) => self.source.count(LossKind::VictimsDropped, 1),
            Some(_) => {}
            None => kill.set_details(KillDetails::default()),
        }
        if let Some(tap) = &self.delivery.tap {
            tap.killed(Cause::OomKill(Arc::clone(&kill)), kill.victim.bell.value);
        }
        if let Some(slot) = to.filter(|_| self.delivery.has_followers()) {
            self.turns.plan_explanation(&self.source, slot, Cause::OomKill(kill));
        }
    }

    /// Plans to deliver to followers, without a signal, that the OOM killer kills a whole group; `word`
    /// is the reason with the slot whose limit caused it.
    pub(super) fn plan_group_kill(&mut self, word: u32, victim: u64) {
        self.source.take_victim();
        let (reason, slot) = KillReason::of(word);
        let Some(slot) = slot else { return };
        let cause = Cause::GroupKill { reason, limit: Some(id_of(&self.source, slot)), victim };
        self.explain_group_kill(cause, victim, Some(slot));
    }

    /// Does what [`plan_group_kill`](Self::plan_group_kill) does for one that the kernel has logged or counted.
    pub(super) fn plan_logged_group_kill(&mut self, reason: KillReason, limit: Option<u64>, victim: u64) {
        let slot = self.source.slot_of(limit.unwrap_or(victim));
        self.explain_group_kill(Cause::GroupKill { reason, limit, victim }, victim, slot);
    }

    fn explain_group_kill(&mut self, cause: Cause, victim: u64, slot: Option<u32>) {
        if let Some(tap) = &self.delivery.tap {
            tap.killed(cause.clone(), victim);
        }
        if let Some(slot) = slot.filter(|_| self.delivery.has_followers()) {
            self.turns.plan_explanation(&self.source, slot, cause);
        }
    }

    /// Ends registrations with their group, as many as there is room for. Each gets one more
    /// signal, and its record goes when that was given. True once none is left: then the slot may
    /// be given to another group.
    pub(super) fn remove_group(&mut self, index: u32, rung: Option<u64>, room: &mut usize) -> bool {
        let event = Event { cgroup_id: id_of(&self.source, index), cause: Cause::Removed, signals: 1 };
        let most = *room;
        let taken = self.registry.take_from_group(index, most);
        *room -= taken.len();
        for to in &taken {
            self.delivery.notify_follower(to.record_id, &event);
            self.delivery.unfollow(to.record_id);
            let (file, record_id) = (to.file, to.record_id);
            self.add_signals(PendingSignals { file, record_id, count: 1, cause: Cause::REMOVED, rung });
        }
        if taken.len() == most && self.registry.group(index).is_some() {
            return false;
        }
        self.registrations_changed();
        self.release(index);
        true
    }

    /// Ends all registrations on `files`, in turns: some at once, so that there is room for
    /// others.
    pub(super) fn forget_files(&mut self, files: &[FileId]) {
        let mut room = ROOM;
        for file in files {
            self.forget_file(*file, &mut room);
        }
    }

    /// Ends registrations on an eventfd that its client has closed, as many as there is room for;
    /// another turn does the rest.
    pub(super) fn forget_file(&mut self, file: FileId, room: &mut usize) {
        self.delivery.discard(file, &mut self.records);
        while *room > 0 {
            let Some((slot, taken)) = self.registry.take_from_file(file, *room) else { break };
            *room = room.saturating_sub(taken.len());
            let record_ids: Vec<RecordId> = taken.iter().map(|to| to.record_id).collect();
            self.strike_out(&record_ids);
            self.settle(slot);
        }
        if self.registry.has_file(file) {
            self.turns.push(self.delivery.payer_of(file), Task::Forget(file));
            self.turns.notify();
        } else {
            self.delivery.drop_file(file, &mut self.records);
        }
        self.registrations_changed();
    }

    /// Removes the records and followers of registrations that have ended.
    pub(super) fn strike_out(&mut self, record_ids: &[RecordId]) {
        self.delivery.strike_out(record_ids, &mut self.records);
    }

    /// Publishes a band for the registrations that are left, or releases the slot.
    pub(super) fn settle(&mut self, index: u32) {
        match self.registry.group(index) {
            Some(group) if !group.is_empty() => self.ring(index, 0),
            _ => {
                self.registry.forget_group(index);
                self.release(index);
            }
        }
    }

    /// Releases a slot without registrations: the programs give it back when its group goes, or,
    /// if the group went first, it is given back here. The doorbell of what is still pending in
    /// it has it looked at.
    pub(super) fn release(&mut self, index: u32) {
        let Some(slot) = self.source.slot(index) else {
            return;
        };
        self.turns.forget_payers(index);
        let state = slot.state();
        self.recorded.open_or_record(&self.source, index);
        if slot.sum_band.get() != OPEN {
            slot.sum().open();
        }
        if self.arrivals.holds(index) {
            return;
        }
        if state.has(SlotState::WATCHED) && !slot.unwatch(state.generation()) {
            self.source.recycle(index);
        }
    }

    /// The events that the programs are to report: victims of the OOM killer only while these are told
    /// to anyone or recorded, new groups while somebody watches for them, and windows of recorded groups
    /// while there is a recorder.
    pub(super) fn wanted(&self) -> u64 {
        let are_told = self.kills.is_some() || self.delivery.has_followers() || self.delivery.tap.is_some();
        let victims = if are_told { Subscriptions::VICTIMS } else { 0 };
        let windows = if self.delivery.tap.is_some() { Subscriptions::RECORDED_WINDOWS } else { 0 };
        self.registry.wanted() | victims | windows | self.arrivals.wanted()
    }

    /// Sets what the programs count, and wakes the agent's loop, which may have to sweep and
    /// sample from now on.
    pub(super) fn registrations_changed(&self) {
        self.source.want(self.wanted());
        self.turns.notify();
    }

    /// The eventfds of `files` to which only the agent has references.
    pub(super) fn closed_among(&self, files: Vec<FileId>) -> Vec<FileId> {
        if files.is_empty() {
            return files;
        }
        let counted = match self.source.file_refs(&files) {
            Ok(counted) => counted,
            Err(error) => {
                log::error!("{error}");
                return Vec::new();
            }
        };
        // This first filter lets few through, so that a sweep looks few up. One that ended since
        // it was listed is no file any more, and its count means nothing.
        let most = 1 + self.records.stash_references();
        let few = files.into_iter().zip(counted).filter(|(_, count)| *count <= most);
        let few = few.filter(|(file, _)| self.registry.has_file(*file));
        few.filter(|(file, count)| {
            if *count == 0 {
                log::error!("the references of an eventfd cannot be read: it stays registered");
            }
            (1..=self.delivery.references(*file, &self.records)).contains(count)
        })
        .map(|(file, _)| file)
        .collect()
    }

    /// Whether only the agent has references to an eventfd that it holds; false where they cannot
    /// be counted.
    pub(super) fn is_closed(&self, file: FileId) -> bool {
        let most = self.delivery.references(file, &self.records);
        let counted = self.source.file_refs(&[file]).unwrap_or_default();
        counted.first().is_some_and(|count| (1..=most).contains(count))
    }
}
