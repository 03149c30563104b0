//! Tests that one user's work does not delay another's: counted in turns, not in time.

use std::{cell::Cell, collections::BTreeSet, rc::Rc, thread, time::Duration};

use monitor_common::{
    grammar::control_file::ControlFile,
    protocol::{slot::SlotState, word::Word as _},
};
use nix::errno::Errno;
use tokio::{
    runtime::Builder,
    task::{LocalSet, yield_now},
};

use super::{
    Client, FakeKernel, LIMITS, Limits, Received, RegistrationRequest, USAGE, Watcher, client,
    fake::FakeHost, follower, request, taken,
};
use crate::{
    registry::Account,
    watcher::{Payer, SharedWatcher, turns::Task},
};

const MANY: u64 = 65_000;

/// Turns in which a bystander has its own: two, and more where a busy machine cuts them short, since a
/// turn ends by the clock. All of the crowd's take hundreds.
const FEW: u32 = 16;
/// Users, on groups of their own.
const ATTACKER: Account = Account::User(1001);
const BYSTANDER: Account = Account::User(1002);

fn crowded() -> Watcher<FakeKernel> {
    let kernel = FakeKernel::with_groups(8);
    let limits = Limits { quota: 1 << 20, ..LIMITS };
    Watcher::new(kernel, Box::new(FakeHost::forever()), limits).expect("AIO")
}

fn wait(
    watcher: &mut Watcher<FakeKernel>,
    account: Account,
    slot: u32,
    on: ControlFile,
    args: &str,
    client: &Client,
) {
    let group = watcher.core.source.group(slot);
    let request = RegistrationRequest { account, ..request(group, on, args, client) };
    assert_eq!(watcher.register(request).map(drop), Ok::<(), Errno>(()));
}

/// Turns until the bystander, whose group crosses now, has its signal.
fn turns_until_signalled(watcher: &mut Watcher<FakeKernel>, slot: u32, client: &Client) -> u32 {
    watcher.core.source.charge(slot as usize, 12);
    watcher.ring(slot, 0);
    let signalled = (1..100).find(|_| {
        watcher.turn();
        taken(client) > 0
    });
    signalled.expect("signalled within a hundred turns")
}

#[test]
fn a_step_over_all_of_a_users_thresholds_is_many_turns() {
    let mut watcher = crowded();
    let (theirs, ours) = (client(), client());
    for _ in 0..MANY {
        wait(&mut watcher, ATTACKER, 3, USAGE, "10", &theirs);
    }
    wait(&mut watcher, BYSTANDER, 4, USAGE, "10", &ours);
    watcher.run();
    watcher.core.source.charge(3, 12);
    watcher.ring(3, 0);
    watcher.turn();
    assert!(!watcher.is_idle(), "the step is not done in a turn");
    let turns = turns_until_signalled(&mut watcher, 4, &ours);
    assert!(turns <= FEW, "{turns} turns");
    // The same holds when it crosses all the time.
    for usage in [3, 12, 3] {
        watcher.core.source.charge(3, usage);
        watcher.ring(3, 0);
        watcher.core.source.charge(4, 3);
        watcher.ring(4, 0);
        for _ in 0..8 {
            watcher.turn();
        }
        taken(&ours);
        let turns = turns_until_signalled(&mut watcher, 4, &ours);
        assert!(turns <= FEW, "{turns} turns");
    }
    watcher.run();
    let all = taken(&theirs);
    assert!(all >= MANY && all.is_multiple_of(MANY), "{all}: each of those crossings was signalled to all");
}

#[test]
fn an_oom_and_a_removal_with_many_listeners_are_many_turns() {
    let mut watcher = crowded();
    let (theirs, ours) = (client(), client());
    for _ in 0..MANY {
        wait(&mut watcher, ATTACKER, 3, ControlFile::Oom, "", &theirs);
    }
    wait(&mut watcher, BYSTANDER, 4, USAGE, "10", &ours);
    watcher.core.source.slots[3].ooms.add(1);
    watcher.ring(3, 0);
    watcher.turn();
    assert!(!watcher.is_idle());
    assert!(turns_until_signalled(&mut watcher, 4, &ours) <= FEW);
    watcher.run();
    assert_eq!(taken(&theirs), MANY);
    watcher.core.source.charge(4, 3);
    watcher.look(4);
    taken(&ours);
    watcher.core.source.slots[3].leave(0, 0);
    watcher.core.source.counters[3].set(None);
    watcher.ring(3, 0);
    watcher.turn();
    assert!(!watcher.is_idle());
    assert!(turns_until_signalled(&mut watcher, 4, &ours) <= FEW);
    watcher.run();
    assert_eq!(taken(&theirs), MANY);
    assert_eq!(watcher.core.source.recycled, [3]);
    assert_eq!(watcher.registry().len(), 1);
    assert_eq!(watcher.core.delivery.eventfds(), 1, "an eventfd that waits for nothing is let go");
}

#[test]
fn a_storm_of_groups_without_registrations_is_another_payers() {
    let mut watcher = crowded();
    let ours = client();
    wait(&mut watcher, BYSTANDER, 4, USAGE, "10", &ours);
    for _ in 0..1000 {
        for slot in [5, 6, 7] {
            watcher.core.source.slots[slot as usize].windows[0].add(1);
            watcher.ring(slot, 0);
        }
        watcher.turn();
    }
    // One of each of the three, at most.
    assert!(turns_until_signalled(&mut watcher, 4, &ours) <= 4);
}

#[test]
fn a_sweep_is_many_turns_and_one_at_a_time() {
    let kernel = FakeKernel::with_groups(5000);
    let limits = Limits { quota: 100, ..LIMITS };
    let mut watcher = Watcher::new(kernel, Box::new(FakeHost::forever()), limits).expect("AIO");
    let ours = client();
    wait(&mut watcher, BYSTANDER, 4, USAGE, "10", &ours);
    watcher.run();
    watcher.sweep();
    watcher.turn();
    assert!(!watcher.is_idle());
    assert!(turns_until_signalled(&mut watcher, 4, &ours) <= FEW);
    watcher.run();
    assert_eq!(watcher.counts().resyncs, 0);
}

#[test]
fn a_sweep_comes_to_its_end_however_often_the_next_is_due() {
    let limits = Limits { quota: 100, ..LIMITS };
    let kernel = FakeKernel::with_groups(5000);
    let mut watcher = Watcher::new(kernel, Box::new(FakeHost::forever()), limits).expect("AIO");
    let ours = client();
    wait(&mut watcher, BYSTANDER, 4900, USAGE, "10", &ours);
    watcher.run();
    watcher.core.source.charge(4900, 12);
    watcher.core.source.slots[4900].pending.xchg(1);
    for _ in 0..100 {
        watcher.sweep();
        watcher.turn();
    }
    assert_eq!(taken(&ours), 1, "its doorbell was lost");
}

/// However many groups a user makes, with registrations of two users in each; and with further
/// registrations on a busy group.
#[test]
fn a_slot_of_several_accounts_is_paid_for_by_the_one_that_has_had_least() {
    let mut watcher = crowded();
    let client = client();
    let both = [ATTACKER, BYSTANDER];
    for slot in [3, 4] {
        for account in both {
            wait(&mut watcher, account, slot, USAGE, "10", &client);
        }
    }
    watcher.run();
    let mut paid = BTreeSet::new();
    for slot in [3, 4] {
        let payer = watcher.core.turns.payer_of_slot(&watcher.core.source, slot);
        paid.insert(payer);
        watcher.core.turns.push(payer, Task::Slot(slot));
        watcher.core.turns.charge_time(payer, Duration::from_secs(1));
    }
    assert_eq!(paid, both.map(Payer::Account).into(), "each of the two, and no more");
    // Very many users may be there before: then the work is the subtree's as well.
    for user in 2000..2100 {
        wait(&mut watcher, Account::User(user), 5, USAGE, "10", &client);
        watcher.core.turns.push(Payer::Account(Account::User(user)), Task::Slot(5));
    }
    for user in 2000..2015 {
        watcher.core.turns.charge_time(Payer::Account(Account::User(user)), Duration::from_secs(1));
    }
    assert_eq!(watcher.core.turns.payer_of_slot(&watcher.core.source, 5), Payer::Subtree(5));
}

#[test]
fn an_oom_far_from_a_deep_group_is_many_turns() {
    let kernel = FakeKernel::with_groups(5000);
    kernel.chain(5);
    let mut watcher = Watcher::new(kernel, Box::new(FakeHost::forever()), LIMITS).expect("AIO");
    let [deep, near] = [client(), client()];
    wait(&mut watcher, ATTACKER, 4990, ControlFile::Oom, "", &deep);
    wait(&mut watcher, BYSTANDER, 3, ControlFile::Oom, "", &near);
    watcher.run();
    for (slot, received) in [(3, (0, 1)), (5, (1, 0))] {
        watcher.core.source.slots[slot].ooms.add(1);
        watcher.ring(slot as u32, 0);
        let turns = (1..).take_while(|_| watcher.turn()).count();
        assert!(turns > 4985 / 8 / 256, "{turns} turns: the climb to {slot} is bounded");
        assert_eq!((taken(&deep), taken(&near)), received);
    }
}

/// Whichever registration is followed, a kill is delivered for all registrations where it
/// happens.
#[test]
fn a_kill_is_signalled_in_many_turns() {
    let limits = Limits { quota: 5000, ..LIMITS };
    let kernel = FakeKernel::with_groups(2000);
    let mut watcher = Watcher::new(kernel, Box::new(FakeHost::forever()), limits).expect("AIO");
    let (client, received) = (client(), Received::default());
    for slot in 3..2000 {
        wait(&mut watcher, ATTACKER, slot, ControlFile::Oom, "", &client);
    }
    let group = watcher.core.source.group(3);
    let request = RegistrationRequest {
        follower: Some(follower(&received)),
        ..request(group, ControlFile::Oom, "", &client)
    };
    assert!(watcher.register(request).is_ok());
    watcher.run();
    for gone in [false, true] {
        for _ in 0..10 {
            watcher.group_kill(3, 4711);
        }
        if gone {
            watcher.core.source.counters[3].set(None);
        }
        let turns = (1..).take_while(|_| watcher.turn()).count();
        assert!(turns > 10 * 1997 / 256, "{turns} turns");
        let received: Vec<u64> =
            received.lock().expect("no panic").drain(..).map(|event| event.signals).collect();
        assert_eq!(received.len(), 10 + usize::from(gone));
        assert_eq!(received[..10], [0; 10], "nothing is signalled for a kill");
    }
}

/// Without asynchronous I/O all is signalled by threads, and no less.
#[test]
fn without_aio_all_is_signalled_a_little_later() {
    let (mut watcher, ours) = (crowded(), client());
    watcher.core.delivery.without_aio();
    for _ in 0..1000 {
        wait(&mut watcher, BYSTANDER, 4, USAGE, "10", &ours);
    }
    watcher.core.source.charge(4, 12);
    watcher.look(4);
    let mut signalled = 0;
    while signalled < 1000 {
        signalled += taken(&ours);
        watcher.run();
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(signalled, 1000);
    while watcher.counts().signals < 1000 {
        watcher.run();
        thread::yield_now();
    }
    assert!(watcher.signaller().is_without_aio());
}

/// A registration on a group in the middle of a step is none of that step's.
#[test]
fn a_registration_in_the_middle_of_a_step_is_not_signalled_of_it() {
    let mut watcher = crowded();
    let (theirs, ours) = (client(), client());
    for _ in 0..MANY {
        wait(&mut watcher, ATTACKER, 3, USAGE, "10", &theirs);
    }
    watcher.run();
    watcher.core.source.charge(3, 12);
    watcher.ring(3, 0);
    watcher.turn();
    wait(&mut watcher, BYSTANDER, 3, USAGE, "11", &ours);
    watcher.run();
    assert_eq!((taken(&theirs), taken(&ours)), (MANY, 0));
    watcher.core.source.charge(3, 3);
    watcher.look(3);
    assert_eq!((taken(&theirs), taken(&ours)), (MANY, 1));
}

/// A registration gets no OOM or window that is being delivered, there or above.
#[test]
fn a_registration_in_the_middle_of_an_oom_is_not_signalled_of_it() {
    let mut watcher = crowded();
    watcher.core.source.slots[4].parent.set(3);
    let (theirs, [at, below, later]) = (client(), [client(), client(), client()]);
    for _ in 0..3000 {
        wait(&mut watcher, ATTACKER, 3, ControlFile::Oom, "", &theirs);
    }
    watcher.run();
    // No look yet: the registration does it, as far as one turn goes.
    watcher.core.source.slots[3].ooms.add(1);
    watcher.core.source.slots[3].pending.xchg(1);
    wait(&mut watcher, BYSTANDER, 3, ControlFile::Oom, "", &at);
    wait(&mut watcher, BYSTANDER, 4, ControlFile::Oom, "", &below);
    watcher.run();
    assert_eq!((taken(&theirs), taken(&at), taken(&below)), (3000, 0, 0));
    watcher.core.source.slots[3].ooms.add(1);
    watcher.ring(3, 0);
    watcher.turn();
    wait(&mut watcher, BYSTANDER, 4, ControlFile::Oom, "", &later);
    watcher.run();
    assert_eq!((taken(&theirs), taken(&at), taken(&below), taken(&later)), (3000, 1, 1, 0));
}

/// Work that ends while a registration is made does not release the slot.
#[test]
fn a_registration_in_the_middle_of_the_last_look_keeps_the_slot() {
    let mut watcher = crowded();
    watcher.core.source.slots[4].parent.set(3);
    let (theirs, ours) = (client(), client());
    for _ in 0..3000 {
        wait(&mut watcher, ATTACKER, 4, ControlFile::Oom, "", &theirs);
    }
    watcher.run();
    // No registration is on 3: it is released when all below have been signalled.
    watcher.core.source.slots[3].ooms.add(1);
    watcher.ring(3, 0);
    watcher.turn();
    assert!(!watcher.is_idle());
    wait(&mut watcher, BYSTANDER, 3, USAGE, "10", &ours);
    assert!(watcher.core.source.slots[3].state().has(SlotState::WATCHED));
    watcher.run();
    assert!(watcher.core.source.slots[3].state().has(SlotState::WATCHED));
    watcher.core.source.charge(3, 12);
    watcher.look(3);
    assert_eq!(taken(&ours), 1);
}

/// Registrations on another user's group do not delay it, even with much else to do.
#[test]
fn a_group_of_several_accounts_is_charged_to_none_of_them() {
    let mut watcher = crowded();
    let (theirs, ours) = (client(), client());
    for slot in [3, 5, 6, 7] {
        for _ in 0..10_000 {
            wait(&mut watcher, ATTACKER, slot, USAGE, "10", &theirs);
        }
    }
    for _ in 0..100 {
        wait(&mut watcher, ATTACKER, 4, USAGE, "11", &theirs);
    }
    wait(&mut watcher, BYSTANDER, 4, USAGE, "10", &ours);
    watcher.run();
    for slot in [3, 5, 6, 7] {
        watcher.core.source.charge(slot, 12);
        watcher.ring(slot as u32, 0);
    }
    for _ in 0..20 {
        watcher.turn();
    }
    let turns = turns_until_signalled(&mut watcher, 4, &ours);
    assert!(turns <= 4, "{turns} turns");
}

#[test]
fn a_registration_that_waits_leaves_others_their_turns() {
    let mut watcher = crowded();
    let theirs = client();
    for _ in 0..MANY {
        wait(&mut watcher, ATTACKER, 3, USAGE, "10", &theirs);
    }
    watcher.run();
    watcher.core.source.charge(3, 12);
    watcher.ring(3, 0);
    watcher.turn();
    assert!(watcher.goes_on_with(3), "a step over all of them has begun");
    let group = watcher.core.source.group(3);
    let (watcher, turns) = (SharedWatcher::new(watcher), Rc::new(Cell::new(0_u32)));
    let (set, counted) = (LocalSet::new(), Rc::clone(&turns));
    set.spawn_local(async move {
        loop {
            counted.set(counted.get() + 1);
            yield_now().await;
        }
    });
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    set.block_on(&runtime, async { assert!(!watcher.settled(group).await.goes_on_with(3)) });
    assert!(turns.get() >= 16, "{} turns of others", turns.get());
}

/// An operator's list looks at all that is watched, however many groups users have registered on.
#[test]
fn a_list_queues_its_looks_a_few_groups_at_a_time() {
    const GROUPS: u32 = 1000;
    let kernel = FakeKernel::with_groups(GROUPS as usize);
    let limits = Limits { quota: 1 << 20, ..LIMITS };
    let mut watcher = Watcher::new(kernel, Box::new(FakeHost::forever()), limits).expect("AIO");
    let client = client();
    // Slot 2 is the root.
    for slot in 3..GROUPS {
        wait(&mut watcher, ATTACKER, slot, USAGE, "10", &client);
    }
    while watcher.turn() {}
    let waiting = |watcher: &Watcher<FakeKernel>| {
        (0..=GROUPS).filter(|slot| watcher.core.turns.awaits_look(*slot)).count()
    };
    let (mut next, mut before, mut uses) = (Some(0), 0, 0);
    // The root's slot is the third of this kernel's: the rest is gone through by hand.
    while let Some(first) = next.filter(|first| *first <= GROUPS) {
        watcher.look_at_some(first);
        let now = waiting(&watcher);
        assert!(now - before <= 256, "{} in one use", now - before);
        (next, before, uses) = (Some(first + 256), now, uses + 1);
    }
    assert_eq!((before, uses), (997, 4));
    // So are ends of hold-offs.
    for slot in 3..GROUPS {
        watcher.core.holdoffs.add(5, slot);
    }
    let mut rounds = 1;
    while watcher.wake(true) {
        rounds += 1;
    }
    assert_eq!((rounds, watcher.due_in()), (4, None));
}
