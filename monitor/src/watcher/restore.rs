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
    watcher::{
        closed,
        core::Core,
        event::{Cause, Event},
        hierarchy::last_of,
        look::publish,
        percent_limits::PercentLimits,
        quantity,
        undelivered::PendingSignals,
    },
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

/// Takes over what an earlier agent has `left`, and keeps registrations from now on in
/// `persistence`. With `instance`, the maps are those that the slots of its records are in;
/// `identity` identifies the eventfds.
///
/// # Errors
/// The programs could not be queried.
pub(super) fn restore<S: Source>(
    core: &mut Core<S>,
    percent_limits: &mut PercentLimits,
    persistence: Persistence,
    left: Recovered,
    instance: u64,
    identity: &dyn Identify,
) -> Result<Restored> {
    let same = left.instance == instance;
    let mut restored = Restored { lost: left.flaws, ..Restored::default() };
    let ids = || left.records.iter().map(|(_, record)| record.cgroup_id).collect();
    let by_id = if same { HashMap::new() } else { core.source.place_groups(&ids()) };
    let place =
        |record: &Record| if same { Some(record.group) } else { by_id.get(&record.cgroup_id).copied() };

    let wanted: HashSet<FileId> = left.records.iter().map(|(_, record)| record.file).collect();
    let mut renamed = HashMap::new();
    for (file, fd) in left.files {
        if wanted.contains(&file)
            && let Some(now) = take_in(core, file, fd, identity)?
            && now != file
        {
            renamed.insert(file, now);
        }
    }
    core.records.keep_in(persistence);
    // Before a record has the new name; the old one is dropped from its stash at the end.
    for now in renamed.values() {
        core.delivery.keep(&mut core.records, *now)?;
    }
    let under_its_name = |record: Record| {
        let file = renamed.get(&record.file).copied().unwrap_or(record.file);
        Record { file, ..record }
    };
    let mut gone = Vec::new();
    for (record_id, record) in left.records {
        let record = under_its_name(record);
        if !core.delivery.holds(record.file) {
            log::error!("a registration of {} is lost: no eventfd was kept for it", record.account);
            restored.lost += 1;
            core.strike_out(&[record_id]);
            continue;
        }
        match place(&record).filter(|group| take_hold(core, *group)) {
            Some(group) => {
                let record = Record { group, ..record };
                enter_again(core, record_id, &record)?;
                restored.registrations += 1;
                core.records.take_over(record_id, record);
            }
            None => {
                // Under the eventfd's name of now, before the stash with the one of before goes.
                core.records.write(record_id, &record);
                gone.push((record_id, record));
            }
        }
    }
    for (record_id, record) in gone {
        let Record { file, cgroup_id, .. } = record;
        core.delivery.notify_follower(record_id, &Event { cgroup_id, cause: Cause::Removed, signals: 1 });
        core.delivery.set_owner(file, record.account);
        // Crossings worked out before the group went, and not signalled.
        if record.owed > 0 {
            add_restored(core, file, record_id, record.owed, Cause::of(&record.trigger));
        }
        add_restored(core, file, record_id, 1, Cause::REMOVED);
        restored.removed += 1;
    }
    core.delivery.close_unused(&core.registry);
    core.records.set_instance(instance);
    core.records.wait_for_repeats(core.host.clock());
    finish(core, &left.unfinished);
    // Before anything is looked at: from here on the new programs see what the old ones do.
    let root = core.source.root().slot;
    for slot in core.registry.slots() {
        if slot != root {
            publish(core, slot);
        }
    }
    core.source.take_over(core.wanted());
    catch_up_with_all(core, percent_limits);
    core.delivery.repack(&mut core.records);
    Ok(restored)
}

fn add_restored<S: Source>(core: &mut Core<S>, file: FileId, record_id: RecordId, count: u64, cause: usize) {
    let signals = PendingSignals { file, record_id, count, cause, rung: None };
    core.delivery.add_recorded(signals, &mut core.turns);
}

/// Registers a recovered record, on the side that was signalled last.
fn enter_again<S: Source>(core: &mut Core<S>, record_id: RecordId, record: &Record) -> Result<()> {
    let Record { on, trigger, file, account, group, above, .. } = *record;
    let known = core.registry.group(group.slot).map(|known| known.scale(on));
    let now = match known.filter(|scale| !scale.is_empty()) {
        Some(scale) => scale.now(),
        // Its group is gone: the look that follows signals that.
        None => match quantity::present(&core.source, core.host.as_ref(), group, on)? {
            Some(now) => now,
            None => last_of(&core.source, group, on).unwrap_or(0),
        },
    };
    let in_percent = matches!(trigger, Trigger::Threshold(Threshold { at: At::Percent(_), .. }));
    let limit = if in_percent { core.effective_limit(group.slot)? } else { u64::MAX };
    let registration = Subscription { on, trigger, file, account, record_id, above: Some(above) };
    core.delivery.set_owner(file, account);
    core.turns.add_payer(&core.source, group.slot, account);
    core.registry.add(group, registration, now, limit);
    if trigger == Trigger::Empty {
        core.note_populated(group);
    }
    core.records.write(record_id, record);
    // Worked out by an earlier agent, and perhaps signalled: the one thing that is signalled
    // twice.
    if record.owed > 0 {
        add_restored(core, file, record_id, record.owed, Cause::of(&trigger));
    }
    Ok(())
}

/// Takes in an eventfd out of a descriptor stash. Returns its name, which is another than the one that
/// it was kept by where the agent before had another backend; none where it is refused.
fn take_in<S: Source>(
    core: &mut Core<S>,
    file: FileId,
    fd: std::os::fd::OwnedFd,
    identity: &dyn Identify,
) -> Result<Option<FileId>> {
    use std::os::fd::AsFd as _;
    let found = match EventFd::check(fd.as_fd()).map(|()| EventFd::known(fd)) {
        Ok(eventfd) => (identity.file_of(eventfd.as_fd())?, eventfd),
        Err(errno) => {
            log::error!("a descriptor that was kept is no eventfd, and is closed: {errno}");
            return Ok(None);
        }
    };
    let (now, eventfd) = found;
    // Names of one kind are the same for the file's whole life.
    if now != file && now.is_address() == file.is_address() {
        log::error!("an eventfd that was kept is another than recorded, and is closed");
        return Ok(None);
    }
    // An agent that was killed meanwhile has kept it by both names.
    if !core.delivery.holds(now) {
        core.delivery.take_in(now, eventfd);
    }
    Ok(Some(now))
}

/// Whether the slot is still the group's: then the agent holds it, even if the group is on
/// its way out.
fn take_hold<S: Source>(core: &Core<S>, group: GroupId) -> bool {
    core.source.slot(group.slot).is_some_and(|slot| {
        slot.watch(group.generation) || {
            let state = slot.state();
            state.has(SlotState::WATCHED) && state.generation() == group.generation
        }
    })
}

/// Puts back what an agent that was killed had taken out of slots.
fn finish<S: Source>(core: &mut Core<S>, unfinished: &[Unfinished]) {
    for Unfinished { cgroup_id, seen } in unfinished {
        let slot = (0..)
            .map_while(|index| core.source.slot(index))
            .find(|slot| slot.state().has(SlotState::ONLINE) && slot.cgroup_id.get() == *cgroup_id);
        if let Some(slot) = slot {
            give_back(slot, seen);
        }
    }
    core.records.end_all_journals();
}

/// Queues what happened while there was no agent, to be signalled in turns.
fn catch_up_with_all<S: Source>(core: &mut Core<S>, percent_limits: &mut PercentLimits) {
    core.registrations_changed();
    // An agent that was killed may have taken its doorbell, and not looked.
    percent_limits.limits_written(core);
    // An agent that was killed may have published a first band, and no more: the looks below
    // read the results of charges that saw the old epoch.
    if let Err(error) = core.source.end_epoch() {
        log::error!("{error}");
    }
    for slot in core.registry.slots() {
        core.turns.plan_settle(&core.source, slot);
    }
    // All slots: the listeners of an OOM may be below the slot that it is in, and slots
    // without registrations are given back.
    let all = (0..).take_while(|index| core.source.slot(*index).is_some()).count();
    for index in 0..u32::try_from(all).unwrap_or(u32::MAX) {
        let state = core.source.slot(index).map(|slot| (slot.state(), slot.pending.get()));
        if state.is_some_and(|(state, pending)| state.has(SlotState::WATCHED) || pending != 0) {
            core.ring(index, 0);
        }
    }
    closed::end_all(core);
}
