//! Tests of groups that come and go: what is above them, and what is still to be delivered when
//! they are gone.

use monitor_common::{
    grammar::control_file::{
        self,
        ControlFile::{Oom, Pressure},
    },
    protocol::{
        band::{OPEN, Outside},
        slot::{PARENT_UNKNOWN, SlotState},
        word::Word as _,
    },
};

use super::{
    FakeHost, FakeKernel, GroupId, LIMITS, Limits, USAGE, Watcher, client, request, taken, wait_for, watched,
    watcher,
};
use crate::{
    persist::RecordId,
    registry::{Account, Subscription},
    source::FileId,
};

#[test]
fn a_group_whose_parent_is_unknown_is_signalled_of_what_is_above() {
    let mut watcher = watcher();
    let (at, above) = (client(), client());
    watcher.core.source.slots[1].parent.set(PARENT_UNKNOWN);
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &at), Ok(()));
    assert_eq!(watcher.core.source.slots[1].parent.get(), 0, "known since the registration");
    // It was read before its parent had a slot.
    watcher.core.source.slots[1].parent.set(PARENT_UNKNOWN);
    watcher.core.source.slots[0].ooms.add(1);
    watcher.look(0);
    assert_eq!(taken(&at), 1);
    watcher.core.source.slots[1].parent.set(PARENT_UNKNOWN);
    assert_eq!(wait_for(&mut watcher, 0, Pressure, "low,hierarchy", &above), Ok(()));
    watcher.core.source.slots[1].windows[0].add(2);
    watcher.look(1);
    assert_eq!(taken(&above), 2);
}

#[test]
fn where_the_parent_has_no_slot_the_nearest_above_is_signalled() {
    let mut watcher = watcher();
    let root = client();
    watcher.core.source.slots[1].parent.set(PARENT_UNKNOWN);
    watcher.core.source.slotless.borrow_mut().push(0);
    *watcher.core.source.limits.borrow_mut() = vec![100, 200];
    assert_eq!(wait_for(&mut watcher, 2, Pressure, "low,hierarchy", &root), Ok(()));
    watcher.core.source.slots[1].windows[0].add(1);
    watcher.look(1);
    assert_eq!(taken(&root), 1);
    // Limits are the kernel's own, slot or none.
    watcher.core.source.charge(1, 85);
    let below = client();
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "90%", &below), Ok(()));
    watcher.core.source.charge(1, 90);
    watcher.look(1);
    assert_eq!(taken(&below), 1, "90 of 100");
}

#[test]
fn sweeps_find_parents_when_there_is_room_again() {
    let mut watcher = watcher();
    watcher.core.source.slots[1].parent.set(PARENT_UNKNOWN);
    watcher.core.source.slotless.borrow_mut().push(0);
    watcher.core.source.orphans.set(true);
    watcher.sweep();
    watcher.run();
    assert_eq!(watcher.core.source.slots[1].parent.get(), PARENT_UNKNOWN);
    assert!(!watcher.core.source.slots[1].state().has(SlotState::WATCHED), "let go after the look");
    assert!(watcher.core.source.orphans.get(), "to be queried again");
    watcher.core.source.slotless.borrow_mut().clear();
    watcher.sweep();
    watcher.run();
    assert_eq!(watcher.core.source.slots[1].parent.get(), 0);
    assert!(!watcher.core.source.orphans.get());
}

#[test]
fn windows_of_groups_without_a_slot_come_from_below() {
    let mut watcher = watcher();
    let [all, local] = ["low,hierarchy", "low,local"].map(|args| {
        let client = client();
        assert_eq!(wait_for(&mut watcher, 0, Pressure, args, &client), Ok(()));
        client
    });
    watcher.core.source.slots[0].windows_below[1].add(3);
    watcher.look(0);
    assert_eq!((taken(&all), taken(&local)), (3, 0));
}

#[test]
fn what_is_pending_in_a_group_that_is_gone_is_signalled() {
    let mut watcher = watcher();
    let root = client();
    assert_eq!(wait_for(&mut watcher, 2, Pressure, "low,hierarchy", &root), Ok(()));
    let slot = &watcher.core.source.slots[1];
    slot.windows[0].add(1);
    slot.pending.xchg(1);
    assert!(slot.leave(0, 0), "no registration, and yet a look is due");
    assert!(!slot.retire());
    watcher.look(1);
    assert_eq!(taken(&root), 1);
    assert_eq!(watcher.core.source.recycled, [1]);
    watcher.look(1);
    assert_eq!((taken(&root), watcher.core.source.recycled.len()), (0, 1));
}

#[test]
fn an_oom_above_is_signalled_before_the_removal_ends_it() {
    let mut watcher = watcher();
    let at = client();
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &at), Ok(()));
    // The doorbell of the first was lost, and both are gone.
    watcher.core.source.slots[0].ooms.add(1);
    watcher.core.source.slots[0].pending.xchg(1);
    watcher.core.source.slots[1].leave(0, 0);
    watcher.core.source.slots[0].leave(0, 0);
    for counter in &watcher.core.source.counters {
        counter.set(None);
    }
    watcher.look(1);
    assert_eq!(taken(&at), 2, "the OOM, and the removal");
    assert_eq!(watcher.core.source.recycled, [0, 1]);
}

#[test]
fn an_oom_above_is_signalled_before_the_removal_however_many_receive_it_first() {
    const LISTENERS: u64 = 20_000;
    let mut watcher = watcher();
    let at = client();
    assert_eq!(wait_for(&mut watcher, 1, Oom, "", &at), Ok(()));
    let group = watcher.core.source.group(0);
    let trigger = control_file::parse(Oom, b"", 1).expect("good arguments");
    for file in 1..=LISTENERS {
        let (file, record_id, account) = (FileId(file << 8), RecordId(file as u32), Account::User(1000));
        let registration = Subscription { on: Oom, trigger, file, account, record_id, above: None };
        watcher.core.registry.add(group, registration, 0, u64::MAX);
    }
    watcher.core.turns.add_payer(&watcher.core.source, 0, Account::User(1000));
    watcher.core.source.slots[0].ooms.add(1);
    watcher.ring(0, 0);
    watcher.core.source.slots[1].leave(0, 0);
    watcher.core.source.counters[1].set(None);
    watcher.look(1);
    assert_eq!(taken(&at), 2, "the OOM, and the removal");
}

#[test]
fn a_group_that_goes_is_left_where_it_was() {
    let (mut watcher, client) = watched(&[10]);
    watcher.core.source.charge(0, 15);
    watcher.look(0);
    assert_eq!(taken(&client), 1);
    // Down again, before it is removed: one signal, and one for the removal.
    watcher.core.source.charge(0, 3);
    watcher.core.source.slots[0].leave(3, 3);
    watcher.core.source.counters[0].set(None);
    watcher.look(0);
    assert_eq!(taken(&client), 2);
}

#[test]
fn one_that_is_gone_cannot_be_registered_on_and_keeps_no_band() {
    let (mut watcher, client) = watched(&[10]);
    let group: GroupId = watcher.core.source.group(0);
    watcher.core.source.slots[0].leave(0, 0);
    watcher.core.source.counters[0].set(None);
    assert!(watcher.register(request(group, USAGE, "1", &client)).is_err());
    watcher.look(0);
    assert_eq!(watcher.core.source.slots[0].band.get(), OPEN);
    assert_eq!(watcher.core.source.recycled, [0]);
}

#[test]
fn only_what_is_above_the_too_deep_is_read_again() {
    let (mut watcher, client) = watched(&[10]);
    let other = super::client();
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "10", &other), Ok(()));
    for at in [0, 1] {
        watcher.core.source.counters[at].set(Some(12));
    }
    watcher.core.source.slots[0].deep.set(1);
    watcher.sweep_after_loss();
    watcher.sweep();
    watcher.run();
    assert_eq!((taken(&client), taken(&other)), (0, 0), "no charge was too deep");
    watcher.core.source.deep.set(1);
    watcher.sweep_after_loss();
    assert!(watcher.is_idle(), "left to the timed sweep");
    watcher.sweep();
    watcher.run();
    assert_eq!((taken(&client), taken(&other)), (1, 0));
}

/// The table may have a million slots: a sweep reads them in turns, and goes up in turns.
#[test]
fn what_is_above_the_too_deep_is_found_in_turns() {
    let limits = Limits { quota: 50, ..LIMITS };
    let kernel = FakeKernel::with_groups(5000);
    kernel.chain(3);
    let mut watcher = Watcher::new(kernel, Box::new(FakeHost::forever()), limits).expect("AIO");
    let client = client();
    assert_eq!(wait_for(&mut watcher, 3, USAGE, "10", &client), Ok(()));
    for (deep, usage) in [(1, 12), (2, 3)] {
        watcher.core.source.counters[3].set(Some(usage));
        for slot in [1, 4900] {
            watcher.core.source.slots[slot].deep.set(1);
        }
        watcher.core.source.deep.set(deep);
        watcher.sweep();
        assert_eq!(watcher.core.source.slots[1].deep.get(), 1, "not in one go");
        let turns = (1..).take_while(|_| watcher.turn()).count();
        assert!(turns > 2 * 4900 / 256, "{turns} turns");
        assert_eq!((taken(&client), watcher.core.source.slots[4900].deep.get()), (1, 0));
        assert!(!watcher.core.source.slots[4900].state().has(SlotState::WATCHED), "let go");
    }
    // One that a sweep under way has passed is found by the next, which begins by itself.
    watcher.core.source.deep.set(3);
    watcher.sweep();
    watcher.turn();
    watcher.core.source.slots[4].deep.set(1);
    watcher.core.source.deep.set(4);
    watcher.core.source.counters[3].set(Some(12));
    watcher.sweep();
    watcher.run();
    assert_eq!((taken(&client), watcher.core.source.slots[4].deep.get()), (1, 0));
}

#[test]
fn what_a_killed_agent_left_is_tidied_up() {
    let mut watcher = watcher();
    watcher.core.source.slots[0].leave(0, 0);
    watcher.core.source.slots[1].parent.set(PARENT_UNKNOWN);
    watcher.take_stock();
    assert_eq!(watcher.core.source.tidied, [0]);
    assert_eq!(watcher.core.source.slots[1].parent.get(), 0);
}

#[test]
fn what_a_group_before_left_late_is_not_the_next_ones() {
    let (mut watcher, client) = (watcher(), client());
    watcher.core.source.slots[0].memory().flag(Outside { usage: 50, is_above: true, version: 0 });
    assert_eq!(wait_for(&mut watcher, 0, USAGE, "10", &client), Ok(()));
    watcher.look(0);
    assert_eq!(taken(&client), 0);
}
