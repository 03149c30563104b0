//! The begin of a registration.

use std::time::Duration;

use monitor_common::{
    grammar::{
        control_file::{ControlFile, Trigger},
        threshold::{At, Threshold},
    },
    protocol::word::Word as _,
};
use nix::errno::Errno;

use crate::{
    eventfd::EventFd,
    persist::{Record, RecordId},
    registry::{Account, Subscription, first_side},
    source::{FileId, GroupId, Source},
    watcher::{
        closed::ClosedEventFds,
        core::Core,
        event::{Cause, Event, EventSink},
        hierarchy::{id_of, is_there, lineage},
        look::{Looks, publish},
        quantity,
        sample::{self, Sampled},
        undelivered::PendingSignals,
    },
};

/// Time for what a registration signals at once; a turn signals what is left.
const AT_ONCE: Duration = Duration::from_micros(100);

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
    record_id: RecordId,
    file: FileId,
}

impl Receipt {
    /// Records that the client has received the reply.
    pub(super) fn confirm<S>(self, core: &Core<S>) {
        if core.registry.has_file(self.file) {
            core.records.confirm(self.record_id);
        }
    }
}

/// Registers a trigger for a client.
///
/// # Errors
/// `EINVAL` when the group is going or gone, as the kernel's `css_tryget_online`; `EDQUOT`
/// when the account has as many as one may have; `ENOMEM` when there is no room for more
/// ([`Limits`](super::Limits)), or as many eventfds as there may be; `ETOOMANYREFS` or `ENOBUFS`
/// when it cannot be kept for the next agent; `EOPNOTSUPP` when the programs cannot see that
/// event on this kernel.
pub(super) fn register<S: Source>(
    core: &mut Core<S>,
    looks: &mut Looks,
    closed: &mut ClosedEventFds,
    request: RegistrationRequest,
) -> Result<Receipt, Errno> {
    let internal = |error: crate::Error| {
        log::error!("registration failed: {error}");
        Errno::EIO
    };
    let RegistrationRequest { group, on, trigger, eventfd, follower, account, sampled } = request;
    let features = core.source.features();
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
    let is_new = !core.registry.has_file(file);
    closed.find_room(core, account, is_new)?;
    // The pending work of a group that is going may wait for other groups.
    if !is_there(&core.source, group) {
        return Err(Errno::EINVAL);
    }
    // No registration is added in the middle of begun work: a frontend ends that first.
    // Before the slot is held, too: at the end of that work it may be released.
    while looks.goes_on_with(core, group.slot) {}
    let slot = core.source.slot(group.slot).ok_or(Errno::EINVAL)?;
    if !slot.watch(group.generation) {
        return Err(Errno::EINVAL);
    }
    if core.registry.group(group.slot).is_none() {
        // Left by late charges of the slot's group before, at most.
        slot.memory().take();
        slot.sum().take();
    }
    // Groups above that found no slot get one, if there is room by now.
    let lineage = lineage(&core.source, group.slot);
    if trigger == Trigger::Oom {
        look_above(core, looks, &lineage);
    }
    // Those already registered may be signalled now, as in the kernel.
    catch_up(core, looks, group.slot);
    let known = core.registry.group(group.slot).map(|known| known.scale(on));
    let now = match known.filter(|scale| !scale.is_empty()) {
        Some(scale) => Ok(Some(scale.now())),
        None => match sampled {
            Some(Sampled { is_root, read, .. }) => {
                quantity::with_reading(&core.source, group, on, is_root, read)
            }
            None => quantity::present(&core.source, core.host.as_ref(), group, on),
        },
    };
    // Queried only where it matters: one query for each level.
    let in_percent = matches!(trigger, Trigger::Threshold(Threshold { at: At::Percent(_), .. }));
    let limit = if in_percent { core.effective_limit(group.slot) } else { Ok(u64::MAX) };
    let (Some(now), limit) = (now.map_err(internal)?, limit.map_err(internal)?) else {
        core.settle(group.slot);
        return Err(Errno::EINVAL);
    };
    let cgroup_id = id_of(&core.source, group.slot);
    let above = first_side(&trigger, now, limit);
    let record = Record { on, trigger, file, account, group, cgroup_id, above, sure: false, owed: 0 };
    let late = core.records.answered_late(&record, core.host.clock());
    let late = late.filter(|(_, file)| core.registry.has_file(*file)).map(|(record_id, _)| record_id);
    let record_id = match late.map_or_else(|| admit(core, &record, eventfd), Ok) {
        Ok(record_id) => record_id,
        Err(errno) => {
            core.settle(group.slot);
            return Err(errno);
        }
    };
    if let Some(follower) = follower {
        core.delivery.follow(record_id, follower);
    }
    if late.is_some() {
        core.source.want(core.wanted());
        return Ok(Receipt { group, record_id, file });
    }
    let before = paces(core);
    core.turns.add_payer(&core.source, group.slot, account);
    core.registry.add(group, Subscription { on, trigger, file, account, record_id, above: None }, now, limit);
    core.newcomers.enter(record_id, core.turns.has_no_work());
    core.source.want(core.wanted());
    if trigger == Trigger::Empty {
        core.note_populated(group);
    }
    // A limit that was written before the limits were wanted rang no doorbell.
    if in_percent && core.effective_limit(group.slot).is_ok_and(|now| now != limit) {
        core.turns.plan_follow(&core.source, group.slot);
    }
    if paces(core) != before {
        core.turns.notify();
    }
    // Publishes the new band, then reads usage again: that sees a charge that was still
    // compared with the old band.
    let is_root = group.slot == core.source.root().slot;
    if is_root || publish(core, group.slot).is_none() || !is_quiet(core, group.slot) {
        core.ring(group.slot, 0);
    }
    if trigger == Trigger::Oom && is_under_oom(core, group) {
        let id = id_of(&core.source, group.slot);
        let event = Event { cgroup_id: id, cause: Cause::Oom { limit: id }, signals: 1 };
        core.delivery.notify_follower(record_id, &event);
        let cause = event.cause.label();
        core.add_signals(PendingSignals { file, record_id, count: 1, cause, rung: None });
        core.deliver(file, &mut 1, AT_ONCE);
    }
    Ok(Receipt { group, record_id, file })
}

/// Takes in the eventfd, if it is new, and records the registration.
fn admit<S>(core: &mut Core<S>, record: &Record, received: ReceivedEventFd) -> Result<RecordId, Errno> {
    if !core.delivery.holds(record.file) {
        core.newcomers.enter_file(record.file, core.turns.has_no_work());
    }
    core.delivery.admit(record, received.eventfd, &mut core.records)
}

/// Looks at groups above with pending events, so that OOMs that have begun already go to the
/// registrations that existed then; a bounded number of groups.
fn look_above<S: Source>(core: &mut Core<S>, looks: &mut Looks, lineage: &[u32]) {
    const GROUPS: usize = 16;
    let waits = |slot: &u32| {
        core.turns.awaits_look(*slot) || core.source.slot(*slot).is_some_and(|slot| slot.pending.get() != 0)
    };
    let above: Vec<u32> = lineage.iter().skip(1).copied().filter(waits).take(GROUPS).collect();
    for slot in above {
        looks.look_now(core, slot);
    }
}

/// Looks at a group that has something pending, or is out of its bands.
fn catch_up<S: Source>(core: &mut Core<S>, looks: &mut Looks, index: u32) {
    if core.registry.group(index).is_some() && !is_quiet(core, index) {
        looks.look_now(core, index);
    }
}

/// Whether a group's quantities, read now, are in the bands published last, and no doorbell
/// is unanswered: then a look would signal nothing. What was read counts as the last look's.
fn is_quiet<S: Source>(core: &mut Core<S>, index: u32) -> bool {
    let root = core.source.root().slot;
    let Some((group, slot)) = core.registry.group(index).zip(core.source.slot(index)) else {
        return false;
    };
    let state = slot.state();
    let is_same = state.is_live() && state.generation() == group.id.generation;
    if index == root || slot.pending.get() != 0 || !is_same {
        return false;
    }
    let sum_too = !group.scale(ControlFile::Memsw).is_empty();
    let bands = [ControlFile::Usage, ControlFile::Memsw].map(|file| group.scale(file).band());
    let Ok(Some((memory, sum))) = quantity::measure(&core.source, group.id, sum_too) else { return false };
    if !bands[0].holds(memory) || sum.is_some_and(|sum| !bands[1].holds(sum)) {
        return false;
    }
    if let Some(group) = core.registry.group_mut(index) {
        group.scale_mut(ControlFile::Usage).move_to(memory);
        if let Some(sum) = sum {
            group.scale_mut(ControlFile::Memsw).move_to(sum);
        }
    }
    true
}

/// The periodic work of the agent's loop: whether to sweep, and whether to sample.
fn paces<S: Source>(core: &Core<S>) -> (bool, bool) {
    (!core.registry.is_empty(), sample::has_any(core))
}

/// Whether a group is under OOM; false for the root, which has no limit, and no counter to
/// query. An error does not undo a registration that is made.
fn is_under_oom<S: Source>(core: &Core<S>, group: GroupId) -> bool {
    group.slot != core.source.root().slot
        && core.source.is_under_oom(group).unwrap_or_else(|error| {
            log::error!("{error}");
            false
        })
}
