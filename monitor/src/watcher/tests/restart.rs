//! Tests of an agent's death: the next one takes over, with the kernel's side, and what was kept.

use std::os::fd::{BorrowedFd, OwnedFd};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{
        band::{Excursion, Seen},
        slot::SlotState,
        word::Word as _,
    },
};
use monitor_sys::table::SharedSlot;
use nix::errno::Errno;
use proptest::prelude::*;

use super::{
    LIMITS, Limits, RegistrationRequest, USAGE, Watcher, client,
    fake::{FakeHost, FakeKernel},
    request, taken, wait_for,
};
use crate::{
    error::Result,
    fd_store::{FdStore, StoredDescriptors},
    persist::{Persistence, Unfinished},
    registry::Account,
    source::{FileId, GroupId, Identify, Located, Slots},
    watcher::Restored,
};

const INSTANCE: u64 = 7;

fn next(source: FakeKernel, handed: StoredDescriptors, instance: u64) -> (Watcher<FakeKernel>, Restored) {
    next_with(source, handed, instance, &FakeKernel::new())
}

fn next_with(
    mut source: FakeKernel,
    handed: StoredDescriptors,
    instance: u64,
    identity: &dyn Identify,
) -> (Watcher<FakeKernel>, Restored) {
    // The agent's, the stash's, the client's.
    source.usual_references = 3;
    let limits = Limits { quota: 100, eventfds: 10_000, ..LIMITS };
    let mut watcher = Watcher::new(source, Box::new(FakeHost::forever()), limits).expect("AIO");
    let (persistence, left) = Persistence::open(FdStore::of_tests(), handed).expect("memfd");
    let restored = watcher.restore(persistence, left, instance, identity).expect("restored");
    watcher.run();
    (watcher, restored)
}

fn first() -> Watcher<FakeKernel> {
    next(FakeKernel::new(), Vec::new(), INSTANCE).0
}

/// Kills an agent: what it held of its own is gone, the kernel and the descriptor store go on.
fn killed(watcher: Watcher<FakeKernel>) -> (FakeKernel, StoredDescriptors) {
    let handed = watcher.core.records.persistence().expect("kept").as_handed();
    let source = watcher.core.source;
    source.references.borrow_mut().clear();
    (source, handed)
}

fn killed_and_next(watcher: Watcher<FakeKernel>) -> Watcher<FakeKernel> {
    let (source, handed) = killed(watcher);
    next(source, handed, INSTANCE).0
}

/// Names eventfds as programs do, by an address.
struct ByAddress(FakeKernel);

impl Slots for ByAddress {
    fn slot(&self, index: u32) -> Option<&SharedSlot> {
        self.0.slot(index)
    }

    fn root(&self) -> GroupId {
        self.0.root()
    }
}

impl Identify for ByAddress {
    fn locate(&self, usage: BorrowedFd<'_>, directory: BorrowedFd<'_>, id: u64) -> Result<Located> {
        self.0.locate(usage, directory, id)
    }

    fn file_of(&self, fd: BorrowedFd<'_>) -> Result<FileId> {
        self.0.file_of(fd).map(|file| FileId(file.0 | 1 << 63))
    }
}

#[test]
fn an_agent_that_names_eventfds_otherwise_goes_on_with_them() {
    let (mut watcher, client) = (first(), client());
    let group = watcher.core.source.group(0);
    let receipt = watcher.register(request(group, USAGE, "100", &client)).expect("registered");
    watcher.confirm(receipt);
    for by_address in [true, false, true] {
        let (source, handed) = killed(watcher);
        let address = ByAddress(FakeKernel::new());
        let identity: &dyn Identify = if by_address { &address } else { &address.0 };
        let restored;
        (watcher, restored) = next_with(source, handed, INSTANCE, identity);
        assert_eq!((restored.registrations, restored.lost), (1, 0));
        watcher.core.source.charge(0, if by_address { 120 } else { 80 });
        watcher.look(0);
        assert_eq!(taken(&client), 1);
    }
}

#[test]
fn the_agents_own_registrations_die_with_it() {
    let (mut watcher, client) = (first(), client());
    let group = watcher.core.source.group(0);
    let own = RegistrationRequest { account: Account::Agent, ..request(group, USAGE, "10", &client) };
    let receipt = watcher.register(own).expect("registered");
    watcher.confirm(receipt);
    watcher.core.source.charge(0, 12);
    watcher.look(0);
    assert_eq!(taken(&client), 1);
    assert!(killed_and_next(watcher).registry().is_empty());
}

#[test]
fn each_account_keeps_what_it_holds_and_owes() {
    let (mut watcher, client) = (first(), client());
    watcher.core.limits.quota = 2;
    let group = watcher.core.source.group(0);
    let accounts = [Account::User(1), Account::User(2), Account::Group(2), Account::Privileged];
    let by = |watcher: &mut Watcher<FakeKernel>, account, args: &str| {
        let receipt =
            watcher.register(RegistrationRequest { account, ..request(group, USAGE, args, &client) })?;
        watcher.confirm(receipt);
        Ok(())
    };
    for account in accounts.into_iter().cycle().take(8) {
        assert_eq!(by(&mut watcher, account, "10"), Ok(()));
    }
    for _ in 0..2 {
        watcher = killed_and_next(watcher);
        watcher.core.limits.quota = 2;
        assert!(accounts.iter().all(|account| watcher.registry().held_by(*account) == 2));
        for account in &accounts[..3] {
            assert_eq!(by(&mut watcher, *account, "11"), Err(Errno::EDQUOT));
        }
    }
    // Registrations that exist are never dropped for a smaller bound.
    watcher.core.limits.registrations = 1;
    assert_eq!(by(&mut watcher, Account::User(3), "10"), Err(Errno::ENOMEM));
    let (source, handed) = killed(watcher);
    assert_eq!(next(source, handed, INSTANCE).1, Restored { registrations: 8, removed: 0, lost: 0 });
}

#[test]
fn a_registration_without_an_answer_stays_its_requesters() {
    let (mut watcher, client) = (first(), client());
    let group = watcher.core.source.group(0);
    let by = |watcher: &mut Watcher<FakeKernel>, user| {
        let account = Account::User(user);
        watcher.register(RegistrationRequest { account, ..request(group, USAGE, "10", &client) })
    };
    let _unanswered = by(&mut watcher, 1).expect("registered");
    let mut watcher = killed_and_next(watcher);
    let _others = by(&mut watcher, 2).expect("registered");
    let _the_same = by(&mut watcher, 1).expect("registered");
    let held = [1, 2].map(|user| watcher.registry().held_by(Account::User(user)));
    assert_eq!(held, [1, 1]);
}

#[test]
fn what_holds_when_the_next_agent_starts_is_signalled() {
    let (mut watcher, client) = (first(), client());
    for args in ["10", "10", "20", "30,up", "5,down"] {
        wait_for(&mut watcher, 0, USAGE, args, &client).expect("registered");
    }
    let (source, handed) = killed(watcher);
    source.charge(0, 35);
    let (mut watcher, restored) = next(source, handed, INSTANCE);
    assert_eq!(restored, Restored { registrations: 5, removed: 0, lost: 0 });
    assert_eq!(taken(&client), 4, "10 twice, 20, 30");
    watcher.core.source.charge(0, 0);
    watcher.look(0);
    assert_eq!(taken(&client), 4, "10 twice, 20, 5");
    let mut watcher = killed_and_next(killed_and_next(watcher));
    assert_eq!(taken(&client), 0, "nothing twice");
    watcher.core.source.charge(0, 12);
    watcher.look(0);
    assert_eq!(taken(&client), 2);
}

#[test]
fn what_came_and_went_meanwhile_is_signalled() {
    let (mut watcher, client) = (first(), client());
    wait_for(&mut watcher, 0, USAGE, "10", &client).expect("registered");
    wait_for(&mut watcher, 1, ControlFile::Oom, "", &client).expect("registered");
    let (source, handed) = killed(watcher);
    source.charge(0, 15);
    source.charge(0, 3);
    source.slots[0].ooms.add(1);
    source.slots[0].pending.set(1);
    let _watcher = next(source, handed, INSTANCE).0;
    assert_eq!(taken(&client), 3, "up, down, and the OOM above");
}

#[test]
fn what_old_and_new_programs_have_both_seen_is_signalled_once() {
    let (mut watcher, client) = (first(), client());
    wait_for(&mut watcher, 0, USAGE, "10", &client).expect("registered");
    wait_for(&mut watcher, 0, ControlFile::Oom, "", &client).expect("registered");
    let (_, handed) = killed(watcher);
    // Maps of its own: nothing has happened there.
    let kernel = FakeKernel::new();
    let memory = Excursion { min: u64::MAX, max: 40 };
    *kernel.before.borrow_mut() = Some(Seen { memory, ooms: 1, ..Seen::NOTHING });
    let (mut watcher, _) = next(kernel, handed, INSTANCE + 1);
    assert_eq!(taken(&client), 3, "up, down, and an OOM");
    assert!(watcher.core.source.wanted.get() != 0, "and counted from here on");
    watcher.look(0);
    assert_eq!(taken(&client), 0);
}

#[test]
fn what_was_taken_and_not_signalled_is_signalled() {
    let (mut watcher, client) = (first(), client());
    wait_for(&mut watcher, 0, USAGE, "10", &client).expect("registered");
    let seen = Seen { memory: Excursion { min: u64::MAX, max: 40 }, ..Seen::NOTHING };
    watcher.core.records.persistence().expect("kept").state().begin(&Unfinished { cgroup_id: 100, seen });
    let watcher = killed_and_next(watcher);
    assert_eq!(taken(&client), 2);
    killed_and_next(watcher);
    assert_eq!(taken(&client), 0);
}

#[test]
fn groups_that_went_are_signalled_once() {
    let (mut watcher, client) = (first(), client());
    for slot in [0, 0, 1] {
        wait_for(&mut watcher, slot, USAGE, "10", &client).expect("registered");
    }
    let (source, handed) = killed(watcher);
    // One goes as the programs report it; the other has gone with its maps.
    source.slots[0].leave(0, 0);
    source.counters[0].set(None);
    let (watcher, _) = next(source, handed, INSTANCE);
    assert_eq!(taken(&client), 2);
    assert_eq!(watcher.core.source.recycled, [0]);
    let (source, handed) = killed(watcher);
    source.slots[1].cgroup_id.set(4711);
    let (watcher, restored) = next(source, handed, INSTANCE + 1);
    assert_eq!(restored, Restored { registrations: 0, removed: 1, lost: 0 });
    assert_eq!(taken(&client), 1);
    assert!(watcher.registry().is_empty());
    assert!(watcher.core.delivery.eventfds() == 0);
}

#[test]
fn recorded_signals_are_given_though_the_group_has_gone() {
    let (mut watcher, client) = (first(), client());
    wait_for(&mut watcher, 0, ControlFile::Oom, "", &client).expect("registered");
    let to = watcher.registry().group(0).and_then(|group| group.oom().next()).expect("it waits");
    watcher.core.records.persistence().expect("kept").state().owe(to.record_id, 2);
    let (source, handed) = killed(watcher);
    source.slots[0].cgroup_id.set(4711);
    let (_watcher, restored) = next(source, handed, INSTANCE + 1);
    assert_eq!(restored, Restored { registrations: 0, removed: 1, lost: 0 });
    assert_eq!(taken(&client), 3, "two OOMs, and the removal");
}

#[test]
fn emptied_and_removed_is_signalled_both() {
    let (mut watcher, client) = (first(), client());
    watcher.core.source.charge(0, 20);
    wait_for(&mut watcher, 0, USAGE, "10", &client).expect("registered");
    let (source, handed) = killed(watcher);
    source.charge(0, 0);
    source.slots[0].mark(SlotState::OFFLINE);
    next(source, handed, INSTANCE);
    assert_eq!(taken(&client), 2, "down, and removed");
}

#[test]
fn other_maps_are_found_their_groups_by_id() {
    let (mut watcher, client) = (first(), client());
    wait_for(&mut watcher, 0, USAGE, "10", &client).expect("registered");
    let (_, handed) = killed(watcher);
    let fresh = FakeKernel::new();
    fresh.slots[0].cgroup_id.set(1);
    fresh.slots[1].cgroup_id.set(100);
    fresh.charge(1, 11);
    let (mut watcher, restored) = next(fresh, handed, INSTANCE + 1);
    assert_eq!(restored.registrations, 1);
    assert_eq!(taken(&client), 1);
    watcher.core.source.charge(1, 0);
    watcher.look(1);
    assert_eq!(taken(&client), 1);
    assert!(watcher.core.source.epochs.get() > 0, "groups without a watcher above look up again");
}

#[test]
fn a_request_whose_answer_was_lost_may_be_repeated() {
    let (mut watcher, client) = (first(), client());
    let register_again = |watcher: &mut Watcher<FakeKernel>| {
        let group = watcher.core.source.group(0);
        watcher.register(request(group, USAGE, "10", &client)).expect("registered")
    };
    let answered = register_again(&mut watcher);
    watcher.confirm(answered);
    let _ = register_again(&mut watcher);
    let mut watcher = killed_and_next(watcher);
    let again = register_again(&mut watcher);
    watcher.confirm(again);
    assert_eq!(watcher.registry().len(), 2, "the answered one, and the other one once");
    let mut watcher = killed_and_next(watcher);
    let more = register_again(&mut watcher);
    watcher.confirm(more);
    assert_eq!(watcher.registry().len(), 3, "a duplicate is a duplicate");
    watcher.core.source.charge(0, 10);
    watcher.look(0);
    assert_eq!(taken(&client), 3);
}

#[test]
fn closed_meanwhile_is_closed() {
    let (mut watcher, client) = (first(), client());
    wait_for(&mut watcher, 0, USAGE, "10", &client).expect("registered");
    let file = watcher.registry().files()[0];
    let (source, handed) = killed(watcher);
    source.references.borrow_mut().insert(file, 2);
    let (watcher, _) = next(source, handed, INSTANCE);
    assert!(watcher.registry().is_empty());
    let watcher = killed_and_next(watcher);
    assert!(watcher.registry().is_empty() && watcher.core.delivery.eventfds() == 0);
}

#[test]
fn stashes_are_packed_and_cleared_out() {
    let mut watcher = first();
    watcher.core.limits.quota = 10_000;
    let mut clients: Vec<_> = (0..600).map(|_| client()).collect();
    for client in &clients {
        wait_for(&mut watcher, 0, USAGE, "10", client).expect("registered");
    }
    let gone: Vec<_> = clients.drain(..500).collect();
    for file in gone.iter().map(super::handed) {
        let file = file.file;
        watcher.core.source.references.borrow_mut().insert(file, 2);
    }
    watcher.end_closed();
    assert_eq!(watcher.registry().len(), 100);
    let handed = watcher.core.records.persistence().expect("kept").as_handed();
    assert!(handed.len() <= 5, "{} descriptors to keep", handed.len());
    let (_, left) = Persistence::open(FdStore::of_tests(), handed).expect("opened");
    assert_eq!(left.records.len(), 100);
    assert!(left.files.len() < 400, "{} eventfds for 100", left.files.len());
    let _: Vec<(_, OwnedFd)> = left.files;
    let mut watcher = killed_and_next(watcher);
    watcher.core.source.charge(0, 10);
    watcher.look(0);
    assert!(clients.iter().all(|client| taken(client) == 1));
    assert!(gone.iter().all(|client| taken(client) == 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    /// However an agent is killed between two steps, its clients get the signals that those of a
    /// living agent get.
    #[test]
    fn a_death_changes_nothing(
        acts in prop::collection::vec((0..6u8, 1..40u64, prop::bool::weighted(0.2)), 1..40),
    ) {
        let (ours, theirs) = (client(), client());
        let (mut dying, mut living) = (first(), first());
        dying.core.limits.quota = 100;
        living.core.limits.quota = 100;
        for (act, number, dies) in acts {
            for (watcher, client) in [(&mut dying, &ours), (&mut living, &theirs)] {
                let args = match act {
                    0 => number.to_string(),
                    1 => format!("{number},up,hysteresis=5"),
                    _ => {
                        watcher.core.source.charge(0, number);
                        continue;
                    }
                };
                let group = watcher.core.source.group(0);
                let receipt = watcher.register(request(group, USAGE, &args, client)).expect("registered");
                watcher.confirm(receipt);
            }
            if dies {
                if number % 2 == 0 {
                    // Worked out, and recorded.
                    dying.looks.look_now(&mut dying.core, 0);
                }
                dying = killed_and_next(dying);
            } else {
                dying.look(0);
            }
            living.look(0);
            prop_assert_eq!(taken(&ours), taken(&theirs));
        }
    }
}
