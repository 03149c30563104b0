//! Tests of new groups, which are kept for those who watch patterns of groups.

use monitor_common::{
    grammar::pressure::PressureMode,
    protocol::{
        pressure::Level,
        query::Subscriptions,
        slot::{Slot, SlotState},
        word::Word as _,
    },
};

use super::{FakeKernel, USAGE, Watcher, client, wait_for, watcher};
use crate::watcher::{Arrival, Lived};

/// Makes the group in slot 1 a new one, as the programs do.
fn announce(watcher: &mut Watcher<FakeKernel>) {
    let slot = &watcher.core.source.slots[1];
    slot.state.set(SlotState::announced(slot.state().generation()).0);
    slot.pending.set(1);
    watcher.look(1);
}

#[test]
fn a_new_group_is_kept_until_it_is_let_go_of() {
    let mut watcher = watcher();
    let _ = watcher.watch_arrivals(0, true);
    assert_ne!(watcher.core.source.wanted.get() & Subscriptions::GROUPS, 0);
    announce(&mut watcher);
    let group = watcher.core.source.group(1);
    assert_eq!(watcher.take_arrivals(8), [Arrival { group, cgroup_id: 101, above: 100 }]);
    assert_eq!(watcher.take_arrivals(8), []);
    let slot = &watcher.core.source.slots[1];
    slot.window.set(70);
    slot.limit.set(80);
    assert!(slot.leave(3, 3), "the agent has to look");
    watcher.core.source.counters[1].set(None);
    watcher.look(1);
    assert!(watcher.core.source.recycled.is_empty(), "it is still to be told of");
    let lived = watcher.lived(group).expect("no error").expect("it is known");
    assert_eq!(lived, Lived { usage: 3, peak: 70, limit: 80, ooms: 0, is_there: false, is_whole: true });
    // As the program leaves it that is called where the kernel has skipped the one at the removal.
    watcher.core.source.slots[1].window.set(Slot::<u64>::PEAK_UNKNOWN);
    let lived = watcher.lived(group).expect("no error").expect("that it is gone is known");
    assert!(!lived.is_whole && !lived.is_there);
    watcher.let_arrival_go(group);
    assert_eq!(watcher.core.source.recycled, [1]);
    watcher.let_arrival_go(group);
    assert_eq!(watcher.core.source.recycled, [1], "once");
}

#[test]
fn what_a_new_group_does_before_anyone_registers_is_kept() {
    let mut watcher = watcher();
    let _ = watcher.watch_arrivals(Subscriptions::EMPTY | Subscriptions::PRESSURE, true);
    let wanted = Subscriptions::GROUPS | Subscriptions::EMPTY | Subscriptions::PRESSURE;
    assert_eq!(watcher.core.source.wanted.get() & wanted, wanted);
    let group = watcher.core.source.group(1);
    let slot = &watcher.core.source.slots[1];
    slot.state.set(SlotState::announced(group.generation).0);
    slot.pending.set(1);
    // Both before the agent's first look, and after it.
    slot.emptied.add(1);
    assert!(watcher.is_arrival(group) && watcher.awaits_look(group));
    watcher.look(1);
    let slot = &watcher.core.source.slots[1];
    slot.emptied.add(2);
    slot.windows[1].add(1);
    slot.pending.set(1);
    watcher.look(1);
    let early = watcher.early(group).expect("it is kept");
    assert_eq!((early.emptied, early.pressure(PressureMode::Local)), (3, Some(Level::Medium)));
    assert!(watcher.is_arrival(group) && !watcher.awaits_look(group));
    watcher.let_arrival_go(group);
    assert!(watcher.early(group).is_none() && !watcher.is_arrival(group));
}

#[test]
fn a_new_group_that_is_registered_on_stays_after_it_is_let_go_of() {
    let mut watcher = watcher();
    let _ = watcher.watch_arrivals(0, true);
    announce(&mut watcher);
    let group = watcher.core.source.group(1);
    let client = client();
    assert_eq!(wait_for(&mut watcher, 1, USAGE, "4096", &client), Ok(()));
    watcher.let_arrival_go(group);
    assert!(watcher.core.source.slots[1].state().has(SlotState::WATCHED));
}

#[test]
fn a_new_group_stays_kept_while_it_begins_and_ends_to_be_recorded() {
    let mut watcher = watcher();
    let _ = watcher.watch_arrivals(0, true);
    announce(&mut watcher);
    let group = watcher.core.source.group(1);
    let is_kept =
        |watcher: &Watcher<FakeKernel>| watcher.core.source.slots[1].state().has(SlotState::WATCHED);
    assert!(is_kept(&watcher));
    for is_recorded in [true, false] {
        assert!(watcher.set_recorded(group, 101, is_recorded).expect("queried"));
        assert!(is_kept(&watcher), "recorded: {is_recorded}");
    }
    watcher.let_arrival_go(group);
    assert!(!is_kept(&watcher));
}

#[test]
fn letting_a_new_group_go_leaves_the_next_one_of_its_slot_alone() {
    let mut watcher = watcher();
    let _ = watcher.watch_arrivals(0, true);
    announce(&mut watcher);
    let group = watcher.core.source.group(1);
    watcher.core.source.replace(1, 555);
    let next = watcher.core.source.group(1);
    assert_ne!(next, group);
    let slot = &watcher.core.source.slots[1];
    assert!(slot.watch(next.generation));
    watcher.let_arrival_go(group);
    assert!(watcher.core.source.slots[1].state().has(SlotState::WATCHED));
}

#[test]
fn without_a_watch_a_new_group_is_a_slot_like_any_other() {
    let mut watcher = watcher();
    announce(&mut watcher);
    assert_eq!(watcher.take_arrivals(8), []);
    let state = watcher.core.source.slots[1].state();
    assert!(!state.has(SlotState::WATCHED) && !state.has(SlotState::NEW));
    let _ = watcher.watch_arrivals(0, true);
    let _ = watcher.watch_arrivals(0, false);
    assert_eq!(watcher.core.source.wanted.get() & Subscriptions::GROUPS, 0);
}
