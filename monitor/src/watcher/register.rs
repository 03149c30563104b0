//! The begin of a registration.

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

/// Time for what a registration signals at once; a turn signals what is left.
const AT_ONCE: Duration = Duration::from_micros(100);

/// Eventfds yet to be closed that are not counted as held: an eventfd that gives way makes room
/// at once. They are a part of the 1,024 descriptors beside `--max-eventfds`.
const CLOSING: u64 = 256;

/// A client's eventfd, as a frontend hands it over.
#[derive(Debug)]
pub struct ReceivedEventFd {
    /// A duplicate descriptor; closed where the watcher holds one already.
    pub eventfd: EventFd,
    /// The file that it refers to.
    pub file: FileId,
}

/// A client's request, once its account is known.
#[derive(Debug)]
pub struct RegistrationRequest {
    /// The group that it is on.
    pub group: GroupId,
    /// The control file of that group.
    pub on: ControlFile,
    /// The trigger to register.
    pub trigger: Trigger,
    /// The eventfd to signal.
    pub eventfd: ReceivedEventFd,
    /// The sink for this registration's events, from the first signal on, until it returns
    /// `false`.
    pub follower: Option<EventSink>,
    /// The account whose quota it counts against.
    pub account: Account,
    /// The quantity, where it is sampled: read before the watcher is locked. Without it the
    /// quantity is read here.
    pub sampled: Option<Sampled>,
}

/// A registration that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "to be confirmed when the client has its answer"]
pub struct Receipt {
    /// The group that was registered on.
    pub group: GroupId,
    ticket: RecordId,
    file: FileId,
}

impl<S: Source> Watcher<S> {
    /// Confirms that the client has received the reply.
    pub fn confirm(&self, receipt: Receipt) {
        if let Some(persistence) = self.persistence.as_ref().filter(|_| self.registry.has_file(receipt.file))
        {
            persistence.state().confirm(receipt.ticket);
        }
    }

    /// Whether it matters that a requester is privileged, and uses [`Account::Privileged`]: its
    /// account has half of its quota or more, or finds no room.
    pub fn is_near_bound(&self, account: Account) -> bool {
        let held = self.registry.held_by(account);
        let is_near = held.saturating_mul(2) >= self.limits.quota
            || !self.has_room(account)
            || !self.has_room_for_eventfd(account);
        !account.is_unlimited() && is_near
    }

    /// Whether an account has room for one more registration.
    pub fn has_room(&self, account: Account) -> bool {
        let used = self.registry.len() - self.registry.held_by(Account::Agent);
        let held = self.registry.held_by(account);
        account == Account::Agent || share::has_room(account, held, used, self.limits.registrations)
    }

    /// Whether an account has room for one more eventfd; it has no more eventfds than
    /// registrations, except those with undelivered signals, or yet to be closed.
    pub(super) fn has_room_for_eventfd(&self, account: Account) -> bool {
        let (theirs, all) = self.signaller.closing(account);
        let owned = self.owners.held_by(account) + theirs.saturating_sub(CLOSING);
        let held = self.registry.held_by(account).max(owned);
        let used = self.eventfds.len() as u64 + all.saturating_sub(CLOSING);
        share::has_room(account, held, used, self.limits.eventfds)
    }

    /// Registers a trigger for a client.
    ///
    /// # Errors
    /// `EINVAL` when the group is going or gone, as the kernel's `css_tryget_online`; `EDQUOT`
    /// when the account has as many as one may have; `ENOMEM` when there is no room for more
    /// ([`Watcher::has_room`]), or as many eventfds as there may be; `ETOOMANYREFS` or `ENOBUFS`
    /// when it cannot be kept for the next agent; `EOPNOTSUPP` when the programs cannot see that
    /// event on this kernel.
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
        // The pending work of a group that is going may wait for other groups.
        if !self.is_there(group) {
            return Err(Errno::EINVAL);
        }
        // No registration is added in the middle of begun work: a frontend ends that first.
        // Before the slot is held, too: at the end of that work it may be released.
        while self.goes_on_with(group.slot) {}
        let slot = self.source.slot(group.slot).ok_or(Errno::EINVAL)?;
        if !slot.watch(group.generation) {
            return Err(Errno::EINVAL);
        }
        if self.registry.group(group.slot).is_none() {
            // Left by late charges of the slot's group before, at most.
            slot.memory().take();
            slot.sum().take();
        }
        // Groups above that found no slot get one, if there is room by now.
        let lineage = self.lineage(group.slot);
        if trigger == Trigger::Oom {
            self.look_above(&lineage);
        }
        // Those already registered may be signalled now, as in the kernel.
        self.catch_up(group.slot);
        let known = self.registry.group(group.slot).map(|known| known.scale(on));
        let now = match known.filter(|scale| !scale.is_empty()) {
            Some(scale) => Ok(Some(scale.now())),
            None => match sampled {
                Some(Sampled { is_root, read, .. }) => self.with_reading(group, on, is_root, read),
                None => self.quantity(group, on),
            },
        };
        // Queried only where it matters: one query for each level.
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
        // A limit that was written before the limits were wanted rang no doorbell.
        if in_percent && self.effective_limit(group.slot).is_ok_and(|now| now != limit) {
            self.plan_follow(group.slot);
        }
        if self.paces() != before {
            self.work.notify_one();
        }
        // Publishes the new band, then reads usage again: that sees a charge that was still
        // compared with the old band.
        let is_root = group.slot == self.source.root().slot;
        if is_root || self.publish(group.slot).is_none() || !self.is_quiet(group.slot) {
            self.ring(group.slot, 0);
        }
        if trigger == Trigger::Oom && self.is_under_oom(group) {
            let id = self.id_of(group.slot);
            let event = Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: 1 };
            self.notify_follower(ticket, &event);
            self.owe(file, ticket, 1, event.cause.label(), None);
            self.deliver(file, &mut 1, AT_ONCE);
        }
        Ok(Receipt { group, ticket, file })
    }

    /// Takes in the eventfd, if it is new, and records the registration.
    fn admit(&mut self, record: &Record, eventfd: ReceivedEventFd) -> Result<RecordId, Errno> {
        let file = record.file;
        let is_own = record.account == Account::Agent;
        // An eventfd that is still held may have undelivered signals of ended registrations.
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

    /// Whether a group is still in its slot, and not going.
    pub(super) fn is_there(&self, group: GroupId) -> bool {
        let state = self.source.slot(group.slot).map(monitor_common::protocol::slot::Slot::state);
        group.slot == self.source.root().slot
            || state.is_some_and(|state| state.is_live() && state.generation() == group.generation)
    }

    /// Looks at groups above with pending events, so that OOMs that have begun already go to the
    /// registrations that existed then; a bounded number of groups.
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

    /// Looks at a group that has something pending, or is out of its bands.
    fn catch_up(&mut self, index: u32) {
        if self.registry.group(index).is_some() && !self.is_quiet(index) {
            self.look_now(index);
        }
    }

    /// Whether a group's quantities, read now, are in the bands published last, and no doorbell
    /// is unanswered: then a look would signal nothing. What was read counts as the last look's.
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

    /// The periodic work of the agent's loop: whether to sweep, and whether to sample.
    fn paces(&self) -> (bool, bool) {
        (!self.registry.is_empty(), self.samples())
    }

    /// Whether a group is under OOM; false for the root, which has no limit, and no counter to
    /// query. An error does not undo a registration that is made.
    fn is_under_oom(&self, group: GroupId) -> bool {
        group.slot != self.source.root().slot
            && self.source.is_under_oom(group).unwrap_or_else(|error| {
                log::error!("{error}");
                false
            })
    }

    /// The events that the programs are to report: victims of the OOM killer only while there are
    /// followers.
    pub(super) fn wanted(&self) -> u64 {
        let victims = if self.followers.is_empty() { 0 } else { Subscriptions::VICTIMS };
        self.registry.wanted() | victims
    }

    /// Sets what the programs count, and wakes the agent's loop, which may have to sweep and
    /// sample from now on.
    pub(super) fn registrations_changed(&self) {
        self.source.want(self.wanted());
        self.work.notify_one();
    }
}

/// The errno for an eventfd that cannot be kept for the next agent; the log has the details.
fn not_kept(error: &crate::Error) -> Errno {
    log::warn!("{error}");
    match error {
        crate::Error::Syscall { errno: Errno::ETOOMANYREFS, .. } => Errno::ETOOMANYREFS,
        _ => Errno::ENOBUFS,
    }
}
