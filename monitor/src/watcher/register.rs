//! A registration begins.

use std::time::Duration;

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        threshold::{At, Threshold},
    },
    protocol::{query::Subscriptions, word::Word as _},
};
use nix::errno::Errno;

use crate::{
    eventfd::EventFd,
    persist::{Record, RecordId},
    registry::{Account, Subscription, first_side, share},
    source::{FileId, GroupId, Source},
    watcher::{Cause, Event, EventSink, Sampled, Watcher},
};

/// What a registration tells at once is signalled within this time, or by a turn.
const AT_ONCE: Duration = Duration::from_micros(100);

/// So many eventfds that are yet to be closed are not counted: what gives way makes room at
/// once. They are a part of the 1,024 descriptors beside `--max-eventfds`.
const CLOSING: u64 = 256;

/// A client's eventfd, as a door hands it over.
#[derive(Debug)]
pub struct ReceivedEventFd {
    /// A duplicate; let go where the watcher holds one already.
    pub eventfd: EventFd,
    /// Which file it is.
    pub file: FileId,
}

/// What a client asks for, once it is known for whom.
#[derive(Debug)]
pub struct RegistrationRequest {
    /// On which group.
    pub group: GroupId,
    /// On which of its control files.
    pub on: ControlFile,
    /// What for.
    pub trigger: Trigger,
    /// To be signalled.
    pub eventfd: ReceivedEventFd,
    /// Told why, from the first signal of this registration on, until it answers `false`.
    pub follower: Option<EventSink>,
    /// Who asks: whose quota it counts against.
    pub account: Account,
    /// The quantity, where it is sampled: read before the watcher is locked. Absent, it is
    /// read here.
    pub sampled: Option<Sampled>,
}

/// A registration that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "to be confirmed when the client has its answer"]
pub struct Receipt {
    /// On which group.
    pub group: GroupId,
    ticket: RecordId,
    file: FileId,
}

impl<S: Source> Watcher<S> {
    /// The client has its answer.
    pub fn confirm(&self, receipt: Receipt) {
        if let Some(persistence) = self.persistence.as_ref().filter(|_| self.registry.has_file(receipt.file))
        {
            persistence.state().confirm(receipt.ticket);
        }
    }

    /// Whether it matters that who asks is privileged, and asks by [`Account::Privileged`]:
    /// the account has half of its quota or more, or else finds no room.
    pub fn is_near_bound(&self, account: Account) -> bool {
        let held = self.registry.held_by(account);
        let is_near = held.saturating_mul(2) >= self.limits.quota
            || !self.has_room(account)
            || !self.has_room_for_eventfd(account);
        !account.is_unlimited() && is_near
    }

    /// Whether there is room for one more registration of an account's.
    pub fn has_room(&self, account: Account) -> bool {
        let used = self.registry.len() - self.registry.held_by(Account::Agent);
        let held = self.registry.held_by(account);
        account == Account::Agent || share::has_room(account, held, used, self.limits.registrations)
    }

    /// The same for one more eventfd; an account has no more eventfds than registrations, but
    /// for those that are owed something still, or are yet to be closed.
    pub(super) fn has_room_for_eventfd(&self, account: Account) -> bool {
        let (theirs, all) = self.signaller.closing(account);
        let owned = self.owners.held_by(account) + theirs.saturating_sub(CLOSING);
        let held = self.registry.held_by(account).max(owned);
        let used = self.eventfds.len() as u64 + all.saturating_sub(CLOSING);
        share::has_room(account, held, used, self.limits.eventfds)
    }

    /// Registers a trigger.
    ///
    /// # Errors
    /// `EINVAL` when the group is going or gone, as the kernel's
    /// `css_tryget_online`; `EDQUOT` when the account has as many as one may have;
    /// `ENOMEM` when there is no room for more ([`Watcher::has_room`]), or as many eventfds
    /// as there may be; `ETOOMANYREFS` or `ENOBUFS` when it cannot be kept for the next
    /// agent; `EOPNOTSUPP` when this kernel cannot tell that.
    pub fn register(&mut self, request: RegistrationRequest) -> Result<Receipt, Errno> {
        let internal = |error: crate::Error| {
            log::error!("registration failed: {error}");
            Errno::EIO
        };
        let RegistrationRequest { group, on, trigger, eventfd, follower, account, sampled } = request;
        let features = self.source.features();
        let offered = match trigger {
            Trigger::Threshold(_) => true,
            Trigger::Oom => features.oom,
            Trigger::Pressure(_) => features.pressure,
            Trigger::Empty => features.empty,
        };
        if !offered {
            return Err(Errno::EOPNOTSUPP);
        }
        let file = eventfd.file;
        // Before the slot is held: a registration that gives way may be the last there.
        self.find_room(account, !self.registry.has_file(file))?;
        // What is to be done to one that is going may wait for others.
        if !self.is_there(group) {
            return Err(Errno::EINVAL);
        }
        // Nobody is added in the middle of what was begun there: a door has it end first.
        // Before the slot is held, too: at its end it may be let go.
        while self.goes_on_with(group.slot) {}
        let slot = self.source.slot(group.slot).ok_or(Errno::EINVAL)?;
        if !slot.watch(group.generation) {
            return Err(Errno::EINVAL);
        }
        if self.registry.group(group.slot).is_none() {
            // Nobody's: at most what a charge of the slot's group before left late.
            slot.memory().take();
            slot.sum().take();
        }
        // Groups above that found no place get one, if there is room by now.
        let lineage = self.lineage(group.slot);
        if trigger == Trigger::Oom {
            self.look_above(&lineage);
        }
        // Those already registered may hear something now, as in the kernel.
        self.catch_up(group.slot);
        let known = self.registry.group(group.slot).map(|known| known.scale(on));
        let now = match known.filter(|scale| !scale.is_empty()) {
            Some(scale) => Ok(Some(scale.now())),
            None => match sampled {
                Some(Sampled { is_root, read, .. }) => self.with_reading(group, on, is_root, read),
                None => self.quantity(group, on),
            },
        };
        // Asked for where it matters: a question for each level.
        let in_percent = matches!(trigger, Trigger::Threshold(Threshold { at: At::Percent(_), .. }));
        let limit = if in_percent { self.effective_limit(group.slot) } else { Ok(u64::MAX) };
        let (Some(now), limit) = (now.map_err(internal)?, limit.map_err(internal)?) else {
            self.settle(group.slot);
            return Err(Errno::EINVAL);
        };
        let cgroup_id = self.id_of(group.slot);
        let above = first_side(&trigger, now, limit);
        let record = Record { on, trigger, file, account, group, cgroup_id, above, sure: false, owed: 0 };
        let late = self.answered_late(&record);
        let ticket = match late.map_or_else(|| self.admit(&record, eventfd), Ok) {
            Ok(ticket) => ticket,
            Err(errno) => {
                self.settle(group.slot);
                return Err(errno);
            }
        };
        if let Some(follower) = follower {
            self.followers.insert(ticket, follower);
        }
        if late.is_some() {
            self.source.want(self.wanted());
            return Ok(Receipt { group, ticket, file });
        }
        let before = self.paces();
        self.shares(group.slot, account);
        self.registry.add(
            group,
            Subscription { on, trigger, file, account, ticket, above: None },
            now,
            limit,
        );
        self.newcomers.enter(ticket, self.works.is_empty());
        self.source.want(self.wanted());
        if trigger == Trigger::Empty {
            self.note_populated(group);
        }
        // A limit that was written before that was wanted has rung for nobody.
        if in_percent && self.effective_limit(group.slot).is_ok_and(|now| now != limit) {
            self.plan_follow(group.slot);
        }
        if self.paces() != before {
            self.work.notify_one();
        }
        // Publishes the new band, then reads usage again: a charge that still
        // went by the old band is caught here.
        let is_root = group.slot == self.source.root().slot;
        if is_root || self.publish(group.slot).is_none() || !self.is_quiet(group.slot) {
            self.ring(group.slot, 0);
        }
        if trigger == Trigger::Oom && self.is_under_oom(group) {
            let id = self.id_of(group.slot);
            let event = Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: 1 };
            self.tell(ticket, &event);
            self.owe(file, ticket, 1, event.cause.label(), None);
            self.deliver(file, &mut 1, AT_ONCE);
        }
        Ok(Receipt { group, ticket, file })
    }

    /// Takes in the eventfd, if it is new, and records the registration.
    fn admit(&mut self, record: &Record, eventfd: ReceivedEventFd) -> Result<RecordId, Errno> {
        let file = record.file;
        let is_own = record.account == Account::Agent;
        // One that is held still may be owed something by registrations that ended.
        let is_new = !self.eventfds.contains_key(&file) && !self.own.contains_key(&file);
        if is_new {
            let ReceivedEventFd { eventfd, .. } = eventfd;
            self.owners.insert(file, record.account);
            self.newcomers.enter_file(file, self.works.is_empty());
            if is_own {
                self.own.insert(file, eventfd);
                return Ok(self.unrecorded.enter());
            }
            if let Some(persistence) = &mut self.persistence
                && let Err(error) = persistence.keep(file, &eventfd, &self.eventfds)
            {
                self.owners.remove(&file);
                return Err(not_kept(&error));
            }
            self.eventfds.insert(file, eventfd);
        }
        let Some(persistence) = self.persistence.as_mut().filter(|_| !is_own) else {
            return Ok(self.unrecorded.enter());
        };
        persistence.state_mut().enter(record).map_err(|error| {
            if is_new {
                self.drop_file(file);
            }
            not_kept(&error)
        })
    }

    /// Whether a group is where it was found, and not going.
    pub(super) fn is_there(&self, group: GroupId) -> bool {
        let state = self.source.slot(group.slot).map(monitor_common::protocol::slot::Slot::state);
        group.slot == self.source.root().slot
            || state.is_some_and(|state| state.is_live() && state.generation() == group.generation)
    }

    /// Has OOMs above, which have begun already, be told to those who are there by now; of
    /// so many groups.
    fn look_above(&mut self, lineage: &[u32]) {
        const GROUPS: usize = 16;
        let waits = |slot: &u32| {
            self.works.get(slot).is_some_and(|work| work.look)
                || self.source.slot(*slot).is_some_and(|slot| slot.pending.get() != 0)
        };
        let above: Vec<u32> = lineage.iter().skip(1).copied().filter(waits).take(GROUPS).collect();
        for slot in above {
            self.look_now(slot);
        }
    }

    /// Looks at a group where there is something to see.
    fn catch_up(&mut self, index: u32) {
        if self.registry.group(index).is_some() && !self.is_quiet(index) {
            self.look_now(index);
        }
    }

    /// Whether a group's quantities, asked for now, are in the bands published last,
    /// and no doorbell waits for an answer: then a look would tell nothing. What was
    /// read counts as the last look's.
    fn is_quiet(&mut self, index: u32) -> bool {
        let root = self.source.root().slot;
        let Some((group, slot)) = self.registry.group(index).zip(self.source.slot(index)) else {
            return false;
        };
        let state = slot.state();
        let is_same = state.is_live() && state.generation() == group.id.generation;
        if index == root || slot.pending.get() != 0 || !is_same {
            return false;
        }
        let sum_too = !group.scale(ControlFile::Memsw).is_empty();
        let bands = [ControlFile::Usage, ControlFile::Memsw].map(|file| group.scale(file).band());
        let Ok(Some((memory, sum))) = self.measure(group.id, sum_too) else { return false };
        if !bands[0].holds(memory) || sum.is_some_and(|sum| !bands[1].holds(sum)) {
            return false;
        }
        if let Some(group) = self.registry.group_mut(index) {
            group.scale_mut(ControlFile::Usage).move_to(memory);
            if let Some(sum) = sum {
                group.scale_mut(ControlFile::Memsw).move_to(sum);
            }
        }
        true
    }

    /// What the agent's loop has to do by the clock: sweep, sample.
    fn paces(&self) -> (bool, bool) {
        (!self.registry.is_empty(), self.samples())
    }

    /// Never the root: it has no limit, and no counter to ask about. An error does
    /// not undo a registration that is made.
    fn is_under_oom(&self, group: GroupId) -> bool {
        group.slot != self.source.root().slot
            && self.source.is_under_oom(group).unwrap_or_else(|error| {
                log::error!("{error}");
                false
            })
    }

    /// What the programs are to tell: whom the OOM killer kills only while somebody follows.
    pub(super) fn wanted(&self) -> u64 {
        let victims = if self.followers.is_empty() { 0 } else { Subscriptions::VICTIMS };
        self.registry.wanted() | victims
    }

    /// Tells the programs what to count, and the agent's loop that it may have to
    /// sweep and sample.
    pub(super) fn registrations_changed(&self) {
        self.source.want(self.wanted());
        self.work.notify_one();
    }
}

/// Why something cannot be kept for the next agent, for the door's text; the rest is in the log.
fn not_kept(error: &crate::Error) -> Errno {
    log::warn!("{error}");
    match error {
        crate::Error::Syscall { errno: Errno::ETOOMANYREFS, .. } => Errno::ETOOMANYREFS,
        _ => Errno::ENOBUFS,
    }
}
