//! Tests of eventfds to which only the agent refers: when they are found, and at what cost.

use monitor_common::{
    grammar::control_file::{ControlFile::Pressure, Trigger, parse},
    protocol::{query::Query, slot::SlotState, word::Word as _},
};
use nix::{errno::Errno, sys::eventfd::EventFd as Client};

use super::{
    FakeHost, FakeKernel, LIMITS, Limits, RegistrationRequest, USAGE, Watcher, adopted, client, request,
    taken, wait_for, watched, watcher, with_limits,
};
use crate::{
    persist::RecordId,
    registry::{Account, Subscription},
    source::{FileId, Identify as _},
};
use std::os::fd::AsFd as _;

const USER: Account = Account::User(1000);

fn close(watcher: &Watcher<FakeKernel>, client: &Client) {
    let file = watcher.core.source.file_of(client.as_fd()).expect("it has an id");
    watcher.core.source.references.borrow_mut().insert(file, 1);
}

fn register_for(watcher: &mut Watcher<FakeKernel>, account: Account, client: &Client) -> Result<(), Errno> {
    let group = watcher.core.source.group(0);
    watcher.register(RegistrationRequest { account, ..request(group, USAGE, "10", client) }).map(drop)
}

/// Registers so many eventfds of one user, none of which is open.
fn crowd(watcher: &mut Watcher<FakeKernel>, account: Account, count: u64) {
    let group = watcher.core.source.group(0);
    let trigger: Trigger = parse(USAGE, b"10", 1).expect("good arguments");
    for file in 1..=count {
        let (on, file, record_id) = (USAGE, FileId(file << 8), RecordId(file as u32));
        let registration = Subscription { on, trigger, file, account, record_id, above: None };
        watcher.core.registry.add(group, registration, 0, u64::MAX);
    }
}

#[test]
fn a_sweep_ends_what_was_closed_and_frees_the_group() {
    let (mut watcher, client) = watched(&[10, 20]);
    let swept = |watcher: &mut Watcher<FakeKernel>| {
        watcher.sweep();
        watcher.run();
    };
    swept(&mut watcher);
    assert_eq!(watcher.registry().len(), 2);
    close(&watcher, &client);
    swept(&mut watcher);
    assert!(watcher.registry().is_empty() && watcher.core.delivery.eventfds() == 0);
    assert!(!watcher.core.source.slots[0].state().has(SlotState::WATCHED));
    assert!(watcher.core.source.recycled.is_empty(), "the group lives on");
}

#[test]
fn references_that_cannot_be_read_end_nothing() {
    let (mut watcher, client) = watched(&[10]);
    let file = watcher.core.source.file_of(client.as_fd()).expect("it has an id");
    watcher.core.source.references.borrow_mut().insert(file, 0);
    watcher.end_closed();
    assert_eq!(watcher.registry().len(), 1);
}

#[test]
fn closing_makes_room_at_the_quota_at_once() {
    let mut watcher = with_limits(FakeHost::forever(), Limits { quota: 2, eventfds: 8, ..LIMITS });
    let clients = [client(), client(), client()];
    assert_eq!(
        clients.each_ref().map(|one| register_for(&mut watcher, USER, one)),
        [Ok(()), Ok(()), Err(Errno::EDQUOT)]
    );
    assert_eq!(register_for(&mut watcher, Account::User(1001), &clients[2]), Ok(()), "others do not notice");
    close(&watcher, &clients[1]);
    let next = client();
    assert_eq!(register_for(&mut watcher, USER, &next), Ok(()));
    assert_eq!(register_for(&mut watcher, USER, &next), Err(Errno::EDQUOT));
    assert_eq!(watcher.registry().held_by(USER), 2);
}

#[test]
fn a_registration_that_gives_way_may_be_the_groups_last() {
    let mut watcher = with_limits(FakeHost::forever(), Limits { quota: 1, eventfds: 8, ..LIMITS });
    for _ in 0..3 {
        let client = client();
        assert_eq!(register_for(&mut watcher, USER, &client), Ok(()));
        assert!(watcher.core.source.slots[0].state().has(SlotState::WATCHED));
        close(&watcher, &client);
    }
    assert_eq!(watcher.registry().len(), 1);
}

#[test]
fn closing_makes_room_in_a_full_table_at_once() {
    let mut watcher = with_limits(FakeHost::forever(), Limits { quota: 5, eventfds: 2, ..LIMITS });
    let clients = [client(), client()];
    assert_eq!(clients.each_ref().map(|one| register_for(&mut watcher, USER, one)), [Ok(()), Ok(())]);
    assert_eq!(register_for(&mut watcher, USER, &client()), Err(Errno::ENOMEM));
    assert_eq!(register_for(&mut watcher, USER, &clients[0]), Ok(()), "no further eventfd");
    close(&watcher, &clients[0]);
    assert_eq!(register_for(&mut watcher, USER, &client()), Ok(()), "the user's own gives way");
    close(&watcher, &clients[1]);
    assert_eq!(register_for(&mut watcher, Account::User(0), &client()), Ok(()), "another user's gives way");
    assert_eq!(watcher.registry().file_count(), 2);
}

/// Covers a user with slow signals and closes, when his groups go, or he closes the eventfds.
#[test]
fn eventfds_without_registrations_count_as_long_as_they_are_held() {
    const MANY: u64 = 1500;
    let limits = Limits { quota: MANY, eventfds: 2 * MANY, ..LIMITS };
    let mut watcher = with_limits(FakeHost::forever(), limits);
    let (held, late) = (adopted(&client()), client());
    for file in 1..=MANY {
        watcher.core.delivery.take_in(FileId(file << 8), held.clone());
        watcher.core.delivery.set_owner(FileId(file << 8), USER);
    }
    assert_eq!(watcher.registry().held_by(USER), 0);
    assert_eq!(register_for(&mut watcher, USER, &late), Err(Errno::ENOMEM), "half is this user's already");
    assert_eq!(register_for(&mut watcher, Account::User(1001), &late), Ok(()));
    for file in 1..=MANY {
        watcher.core.delivery.drop_file(FileId(file << 8), &mut watcher.core.records);
    }
    while watcher.signaller().closing(USER).0 > 256 {
        std::thread::yield_now();
    }
    assert_eq!(register_for(&mut watcher, USER, &client()), Ok(()));
}

#[test]
fn a_full_table_refuses_and_leaves_nothing() {
    let mut watcher = with_limits(FakeHost::forever(), Limits { quota: 5, eventfds: 0, ..LIMITS });
    assert_eq!(register_for(&mut watcher, USER, &client()), Err(Errno::ENOMEM));
    assert!(!watcher.core.source.slots[0].state().has(SlotState::WATCHED));
}

#[test]
fn a_refusal_costs_a_bounded_number_of_questions() {
    const MANY: u64 = 20_000;
    let mut watcher = with_limits(FakeHost::forever(), Limits { quota: MANY, eventfds: 0, ..LIMITS });
    crowd(&mut watcher, USER, MANY);
    let late = client();
    for _ in 0..3 {
        let before = watcher.core.source.counted_files.get();
        assert_eq!(register_for(&mut watcher, USER, &late), Err(Errno::EDQUOT));
        assert!(watcher.core.source.counted_files.get() - before <= 4 * Query::FILES_AT_ONCE);
        let before = watcher.core.source.counted_files.get();
        assert_eq!(register_for(&mut watcher, Account::User(1001), &late), Err(Errno::ENOMEM));
        assert!(watcher.core.source.counted_files.get() - before <= 4 * Query::FILES_AT_ONCE);
    }
    // One among many is found by requesting again.
    watcher.closed.end_search();
    watcher.core.source.references.borrow_mut().insert(FileId((MANY - 1) << 8), 1);
    let tries = (1..=4).find(|_| register_for(&mut watcher, USER, &late) != Err(Errno::EDQUOT));
    assert!(tries.is_some());
}

#[test]
fn a_turn_of_a_search_is_bounded_and_all_are_counted() {
    const MANY: u64 = 5_000;
    let mut watcher = with_limits(FakeHost::forever(), Limits { quota: 5, eventfds: 8, ..LIMITS });
    crowd(&mut watcher, USER, MANY);
    watcher.core.source.usual_references = 1;
    let mut search = watcher.search_closed();
    let (mut turns, mut left) = (0, MANY);
    while watcher.search_on(&mut search) {
        turns += 1;
        assert!(left - watcher.registry().len() <= 64);
        left = watcher.registry().len();
    }
    assert!(watcher.registry().is_empty());
    assert!((MANY / 64..MANY / 32).contains(&turns), "{turns} turns");
}

#[test]
fn an_address_that_is_anothers_by_now_is_counted_again() {
    let (mut watcher, client) = watched(&[10]);
    close(&watcher, &client);
    let mut search = watcher.search_closed();
    assert!(watcher.search_on(&mut search), "found");
    watcher.core.source.references.borrow_mut().clear();
    assert!(!watcher.search_on(&mut search));
    assert_eq!(watcher.registry().len(), 1);
}

#[test]
fn what_is_left_of_a_closed_eventfd_is_counted_again() {
    let (mut watcher, client) = watched(&[10, 20, 30]);
    close(&watcher, &client);
    let file = watcher.core.source.file_of(client.as_fd()).expect("it has an id");
    watcher.core.forget_file(file, &mut 1);
    assert_eq!(watcher.registry().len(), 2, "as many as there was room for");
    // The address belongs to another eventfd by now.
    watcher.core.source.references.borrow_mut().insert(file, 5);
    watcher.run();
    assert_eq!(watcher.registry().len(), 2);
}

#[test]
fn what_is_closed_hides_no_window_from_those_above() {
    let mut watcher = watcher();
    let (below, above) = (client(), client());
    for (slot, client) in [(1, &below), (0, &above)] {
        assert_eq!(wait_for(&mut watcher, slot, Pressure, "low", client), Ok(()));
    }
    for received in [0, 1] {
        watcher.core.source.slots[1].windows[0].add(1);
        watcher.look(1);
        assert_eq!(taken(&above), received);
        close(&watcher, &below);
    }
}

#[test]
fn a_closed_eventfd_is_not_signalled_of_the_removal() {
    let (mut watcher, client) = watched(&[10, 20]);
    close(&watcher, &client);
    assert!(watcher.core.source.slots[0].leave(0, 0));
    watcher.core.source.counters[0].set(None);
    watcher.look(0);
    assert_eq!(taken(&client), 0);
    assert!(watcher.registry().is_empty() && watcher.core.delivery.eventfds() == 0);
}
